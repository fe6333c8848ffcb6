"""Rows in memory beside oneDAL and scikit-learn: single and double precision.

Both wall time and processor time of an iteration, on one thread and on all cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from time import perf_counter, process_time
from typing import Any, NamedTuple

import dask
import numpy as np
from sklearn.mixture import GaussianMixture as Reference
from threadpoolctl import threadpool_limits

from benchmarks.common import N_CORES, Case, Row, make_rows, start
from daskgmm import GaussianMixture


class Rival(NamedTuple):
    """A case, and the least ratios to oneDAL and to scikit-learn that are asked for."""

    case: Case
    single: bool
    onedal: float | None
    scikit_learn: float | None


RIVALS = (
    Rival(Case("full", 2, 3, 1_000_000), True, 2.5, 30.0),
    Rival(Case("full", 16, 10, 200_000), True, 2.5, 18.0),
    Rival(Case("full", 64, 16, 40_000), True, 2.5, 7.0),
    Rival(Case("full", 256, 8, 10_000), True, None, 3.5),  # oneDAL aborts
    Rival(Case("diag", 128, 64, 20_000), True, 3.0, 3.0),
    Rival(Case("full", 2, 3, 1_000_000), False, 2.5, 30.0),
    Rival(Case("full", 2, 100, 1_000_000), False, 3.0, None),
    Rival(Case("full", 16, 256, 100_000), False, 8.0, 60.0),
    Rival(Case("full", 128, 8, 20_000), False, 2.5, 4.0),
    Rival(Case("full", 256, 8, 10_000), False, 2.5, 3.0),
    Rival(Case("diag", 128, 64, 20_000), False, 4.0, 3.0),
    Rival(Case("diag", 39, 512, 100_000), False, 7.0, 40.0),
    Rival(Case("diag", 768, 64, 8_000), True, None, 1.8),
    Rival(Case("spherical", 768, 64, 8_000), True, None, 2.5),
    Rival(Case("spherical", 256, 64, 20_000), True, None, 2.5),
    Rival(Case("diag", 256, 16, 20_000), True, None, 1.8),
    Rival(Case("diag", 768, 16, 8_000), True, None, 1.8),
    Rival(Case("diag", 768, 64, 8_000), False, None, 1.8),
    Rival(Case("spherical", 768, 64, 8_000), False, None, 2.5),
)
_ROUNDS, _LONG = 5, 5.0
"""Most times that a fit is measured, and seconds after which it is not once more."""
_EMBEDDINGS = 256
"""Features from which on rows are unit vectors, as embeddings are,"""
_APART = 6.0
"""with groups that are so many standard deviations apart: else EM is at its end at
once, and goes on in double."""


def rivals(_machine: dict[str, float]) -> Iterator[Row]:
    """One iteration from the same start."""
    has_onedal = find_spec("daal4py") is not None
    if not has_onedal:
        print("(no scikit-learn-intelex here: oneDAL is left out)")
    for rival in RIVALS:
        x, parameters = _data(rival)
        for n_threads in (1, N_CORES):
            ours = _iteration(_ours(x, parameters, n_threads))
            peers: dict[str, tuple[_Fit, float | None]] = {}
            if rival.scikit_learn is not None:
                theirs = _scikit_learn(x, parameters, n_threads)
                peers["scikit-learn"] = theirs, rival.scikit_learn
            if rival.onedal is not None and has_onedal:
                peers["oneDAL"] = _onedal(rival, x, parameters, n_threads), rival.onedal
            for name, (fit, target) in peers.items():
                try:
                    theirs_wall, theirs_cpu = _iteration(fit)
                except RuntimeError as error:  # oneDAL's, of a covariance
                    print(f"({name} fails: {str(error).splitlines()[0]})")
                    continue
                for clock, mine, other in (
                    ("wall", ours[0], theirs_wall),
                    ("CPU", ours[1], theirs_cpu),
                ):
                    yield Row(
                        f"beside {name}",
                        f"{_name(rival)}, {n_threads} thread(s), {clock}",
                        mine,
                        {name: other},
                        other / mine,
                        f">= {target:g}",
                        size=n_threads,
                    )


_Fit = Callable[[int], object]


def _name(rival: Rival) -> str:
    kind = "float32 " if rival.single else ""
    return f"{kind}{rival.case.name}, {rival.case.n_rows} rows"


def _data(rival: Rival) -> tuple[np.ndarray, dict[str, Any]]:
    case = rival.case
    if case.n_features >= _EMBEDDINGS and case.covariance_type != "full":
        x = make_rows(case, _APART / np.sqrt(2.0 * case.n_features))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    else:
        x = make_rows(case)
    x = x.astype(np.float32 if rival.single else np.float64)
    parameters = start(rival.case, x.astype(np.float64))
    # Covariances of the rows' own size, so that no component dies at once.
    variance = float(x.var(axis=0, dtype=np.float64).mean())
    parameters["precisions_init"] = parameters["precisions_init"] / variance
    return x, parameters


def _ours(x: np.ndarray, parameters: dict[str, Any], n_threads: int) -> _Fit:
    def fit(n: int) -> None:
        with dask.config.set(num_workers=n_threads):
            GaussianMixture(max_iter=n, accelerate=False, **parameters).fit(x)

    return fit


def _scikit_learn(x: np.ndarray, parameters: dict[str, Any], n_threads: int) -> _Fit:
    cast = {
        name: value.astype(x.dtype) if isinstance(value, np.ndarray) else value
        for name, value in parameters.items()
    }

    def fit(n: int) -> None:
        with threadpool_limits(n_threads):
            Reference(max_iter=n, **cast).fit(x)

    return fit


def _onedal(
    rival: Rival, x: np.ndarray, parameters: dict[str, Any], n_threads: int
) -> _Fit:
    import daal4py

    case, dtype = rival.case, x.dtype
    d, k = case.n_features, case.n_components
    precisions = np.asarray(parameters["precisions_init"])
    if case.covariance_type == "full":
        diagonals = np.diagonal(precisions, axis1=1, axis2=2)
        covariances = [np.diag(1.0 / row).astype(dtype) for row in diagonals]
    else:
        covariances = [(1.0 / row)[np.newaxis].astype(dtype) for row in precisions]
    weights = np.full((1, k), 1.0 / k, dtype)
    means = np.ascontiguousarray(parameters["means_init"], dtype).reshape(k, d)

    def fit(n: int) -> None:
        daal4py.daalinit(n_threads)
        daal4py.em_gmm(
            k,
            fptype="float" if rival.single else "double",
            maxIterations=n,
            accuracyThreshold=0.0,
            regularizationFactor=1e-6,
            covarianceStorage="full" if case.covariance_type == "full" else "diagonal",
        ).compute(x, weights, means, covariances)

    return fit


def _iteration(fit: _Fit) -> tuple[float, float]:
    """Wall and processor seconds of an iteration: a long fit less a short one."""
    few, many = 2, 6

    def best(n: int) -> np.ndarray:
        times: list[tuple[float, float]] = []
        while len(times) < _ROUNDS and sum(wall for wall, _ in times) < _LONG:
            wall, cpu = perf_counter(), process_time()
            fit(n)
            times.append((perf_counter() - wall, process_time() - cpu))
        return np.min(times, axis=0)

    fit(1)
    wall, cpu = (best(many) - best(few)) / (many - few)
    return float(wall), float(cpu)
