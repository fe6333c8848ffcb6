"""``daskgmm plot``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from daskgmm.cli.options import Data
from daskgmm.cli.work.places import open_model, open_rows
from daskgmm.cli.work.report import Report
from daskgmm.errors import MissingLibraryError, StoreError
from daskgmm.estimators.trained import TrainedMixture
from daskgmm.plotting import (
    plot_convergence,
    plot_mixture,
    plot_pairs,
    plot_responsibilities,
)


def plot(
    model: str,
    store: str | None,
    picture: str,
    kind: str,
    features: tuple[int | str, ...] | None,
    dpi: int,
    missing_chunks: str,
    data: Data,
) -> None:
    """See the command."""
    target = Path(picture)
    try:
        from matplotlib import use
    except ImportError:
        raise MissingLibraryError(
            "Pictures need Matplotlib: pip install 'daskgmm[plot]'."
        ) from None
    use("agg")
    report = Report(as_json=False)
    with report.steps():
        mixture = open_model(model).set_params(
            missing_chunks=missing_chunks, nan="skip"
        )
        names = getattr(mixture, "feature_names_in_", None)
        rows = None if store is None else open_rows(data, store, names)
        figure = _drawn(mixture, kind, rows, features)
    # In its place once it is whole.
    unfinished = target.with_name(f".{os.getpid()}-{target.name}")
    try:
        figure.savefig(unfinished, dpi=dpi)
        unfinished.replace(target)
    except OSError as error:  # such as a disk without room
        raise StoreError(
            f"{picture} cannot be written ({error.strerror or error}). Choose another "
            "place, or make some room."
        ) from None
    finally:
        unfinished.unlink(missing_ok=True)
    report.say(f"The picture is in {picture}.")


def _drawn(
    mixture: TrainedMixture,
    kind: str,
    rows: Any,
    features: tuple[int | str, ...] | None,
) -> Any:
    if kind == "pairs":
        wanted = None if features is None else list(features)
        return np.ravel(plot_pairs(mixture, rows, features=wanted))[0].figure
    if kind == "convergence":
        return plot_convergence(mixture).figure
    if kind == "responsibilities":
        return plot_responsibilities(mixture, rows, features=features).figure
    return plot_mixture(mixture, rows, features=features).figure
