"""Choosing among candidates in shared passes, beside one fit after the other."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from time import perf_counter
from typing import Any, Final

import numpy as np
from sklearn.mixture import GaussianMixture as Theirs

from benchmarks.common import Case, Row, make_rows, write_zarr
from daskgmm import GaussianMixture, MixtureSearch

CASE: Final = Case("full", 8, 5, 1_000_000)
CHUNK_ROWS: Final = 16_384
GRID: Final[dict[str, Any]] = {
    "n_components": tuple(range(1, 11)),
    "covariance_type": ("full", "diag"),
}


def search(_machine: dict[str, float]) -> Iterator[Row]:
    """Twenty candidates, streamed from Zarr; scikit-learn has the rows in memory."""
    x = make_rows(CASE)
    with tempfile.TemporaryDirectory() as folder:
        write_zarr(folder, x, CHUNK_ROWS, compressors="auto")
        GaussianMixture(max_iter=1, random_state=0).fit(folder)  # reads the files once
        for accelerate in (False, "auto"):
            parameters = {"random_state": 0, "accelerate": accelerate}
            began = perf_counter()
            found = MixtureSearch(**GRID, **parameters).fit(folder)
            seconds = perf_counter() - began
            peers = {"one by one": _one_by_one(GaussianMixture, folder, parameters)}
            if accelerate == "auto":
                peers["scikit-learn"] = _one_by_one(Theirs, x, {"random_state": 0})
            how = "plain EM" if accelerate is False else "as it comes"
            for name, (of_peer, n_passes) in peers.items():
                yield Row(
                    "search",
                    f"20 candidates, d=8, {CASE.n_rows} rows, {how}",
                    seconds,
                    {name: of_peer},
                    of_peer / seconds,
                    ">= 5" if name == "one by one" else "",
                    passes=found.n_passes_,
                    peer_passes=n_passes,
                )


def _one_by_one(estimator: type, rows: Any, parameters: dict) -> tuple[float, int]:
    """Seconds and passes of a loop over the grid, criteria included."""
    began, n_passes, values = perf_counter(), 0, []
    for shape in GRID["covariance_type"]:
        for k in GRID["n_components"]:
            model = estimator(k, covariance_type=shape, **parameters).fit(rows)
            values.append(model.bic(rows))
            n_passes += model.n_iter_ + 1
    assert np.isfinite(values).all()
    return perf_counter() - began, n_passes
