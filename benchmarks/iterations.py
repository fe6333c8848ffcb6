"""EM iterations and whole fits on an array in memory, against scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from time import sleep
from typing import Final

import numpy as np
from sklearn.datasets import make_blobs
from sklearn.mixture import BayesianGaussianMixture as ReferenceBayesian
from sklearn.mixture import GaussianMixture as Reference
from threadpoolctl import threadpool_limits

from benchmarks.common import (
    N_CORES,
    Case,
    Row,
    best_of,
    fit_of,
    floor_of,
    make_rows,
    ours_per_iteration,
    peak_of_fit,
    per_iteration,
    start,
)
from daskgmm import BayesianGaussianMixture, GaussianMixture

_SPINNING: Final = 0.2
"""Seconds after which threads of a BLAS no longer wait for more work, at work."""
CASES = (
    (Case("full", 2, 3, 1_000_000), 18.0),
    (Case("full", 8, 8, 400_000), 15.0),
    (Case("full", 16, 10, 200_000), 10.0),
    (Case("full", 32, 16, 60_000), 5.0),
    (Case("full", 64, 16, 40_000), 3.5),
    (Case("full", 128, 8, 20_000), 2.5),
    (Case("diag", 16, 10, 400_000), 5.0),
    (Case("diag", 128, 8, 60_000), 3.0),
    (Case("tied", 16, 10, 400_000), 15.0),
    (Case("spherical", 16, 10, 400_000), 9.0),
)

SMALL = (
    ("full", 1250, 2, 3, 1),
    ("full", 1250, 5, 4, 1),
    *((shape, 200, 384, 3, 1) for shape in ("full", "tied", "diag", "spherical")),
    ("full", 100, 128, 2, 1),
    ("full", 50, 32, 2, 1),
    ("full", 768, 768, 2, 1),
)
"""Shape, rows, features and components; rows to begin with, or as few as features."""


def with_threads(measure: Callable[[], float]) -> dict[str, float]:
    """scikit-learn's seconds with one BLAS thread and with one for each core."""
    times = {}
    for n in (1, N_CORES):
        with threadpool_limits(n):
            times[f"scikit-learn, {n} BLAS thread(s)"] = measure()
    return times


def by_turns(
    ours: Callable[[], object], theirs: Callable[[], object], turns: int = 5
) -> tuple[float, dict[str, float], float]:
    """Least seconds of ours and of scikit-learn's, and the ratio.

    Both are measured in turns, and the ratio is the median of those of each turn:
    machines are slower in one second than in another. Ours is measured before and
    after, so that each has as many tries.
    """
    seconds, peers, ratios = [], [], []
    for _ in range(turns):
        sleep(_SPINNING)
        ours()  # what was let go in the pause is at hand again
        before = best_of(5, ours)
        peers.append(with_threads(lambda: best_of(5, theirs)))
        sleep(_SPINNING)
        ours()
        seconds.append(min(before, best_of(5, ours)))
        ratios.append(min(peers[-1].values()) / seconds[-1])
    least = {name: min(peer[name] for peer in peers) for name in peers[0]}
    return min(seconds), least, float(np.median(ratios))


def iterations(machine: dict[str, float]) -> Iterator[Row]:
    """One iteration from the same start."""
    for case, target in CASES:
        x = make_rows(case)
        parameters = start(case, x)
        theirs = fit_of(Reference, x, parameters)
        ours = ours_per_iteration(x, parameters)
        peers = with_threads(lambda fit=theirs: per_iteration(fit, 1, 3, 3))
        yield Row(
            "iteration",
            f"{case.name}, {len(x)} rows",
            ours,
            peers,
            min(peers.values()) / ours,
            f">= {target:g}",
            floor_of(case, machine),
            peak_of_fit(GaussianMixture, case),
            peak_of_fit(Reference, case),
        )


def restarts(_machine: dict[str, float]) -> Iterator[Row]:
    """Ten restarts of ten iterations, k-means included."""
    for (case, _), target in zip((CASES[0], CASES[2]), (20, 12), strict=True):
        x = make_rows(case)
        parameters = {"n_init": 10, "max_iter": 10, "tol": 0, "random_state": 0}

        def fit(estimator: type, x=x, case=case, parameters=parameters) -> None:
            estimator(case.n_components, **parameters).fit(x)

        ours = best_of(2, lambda fit=fit: fit(GaussianMixture))
        peers = with_threads(lambda fit=fit: best_of(1, lambda: fit(Reference)))
        yield Row(
            "10 restarts",
            f"{case.name}, {len(x)} rows",
            ours,
            peers,
            min(peers.values()) / ours,
            f">= {target}",
        )


def bayesian(_machine: dict[str, float]) -> Iterator[Row]:
    """An iteration of variational Bayes, beside plain EM's and scikit-learn's."""
    for case in (
        Case("full", 2, 3, 1_000_000),
        Case("full", 16, 10, 200_000),
        Case("full", 128, 8, 20_000),
        Case("diag", 16, 10, 400_000),
    ):
        x = make_rows(case)
        parameters = {
            "n_components": case.n_components,
            "covariance_type": case.covariance_type,
            "init_params": "random_from_data",
            "random_state": 0,
            "tol": 0,
        }

        def seconds(kind: type, x=x, parameters=parameters, **more: object) -> float:
            return per_iteration(fit_of(kind, x, {**parameters, **more}), 2, 12, 3)

        ours = seconds(BayesianGaussianMixture)
        for name, peer, target in (
            ("GaussianMixture", seconds(GaussianMixture, accelerate=False), ">= 0.91"),
            ("scikit-learn", seconds(ReferenceBayesian), ""),
        ):
            yield Row(
                "bayesian",
                f"{case.name}, {case.n_rows} rows",
                ours,
                {name: peer},
                peer / ours,
                target,
            )


def small(_machine: dict[str, float]) -> Iterator[Row]:
    """Whole fits of few rows, down to fewer than features."""
    for covariance_type, n, d, k, target in SMALL:
        x, _ = make_blobs(n, d, centers=k, random_state=0)
        parameters = {"covariance_type": covariance_type, "random_state": 0}

        def fit(estimator: type, x=x, k=k, parameters=parameters) -> None:
            estimator(k, **parameters).fit(x)

        fit(GaussianMixture)
        ours, peers, ratio = by_turns(
            partial(fit, GaussianMixture), partial(fit, Reference), turns=15
        )
        yield Row(
            "small",
            f"{covariance_type} d={d} K={k}, {n} rows",
            ours,
            peers,
            ratio,
            f">= {target}",
        )


def predictions(_machine: dict[str, float]) -> Iterator[Row]:
    """Labels, responsibilities and densities of one model's rows."""
    for case, target in (CASES[0], CASES[2], CASES[6]):
        x = make_rows(case)
        parameters = {**start(case, x), "max_iter": 3}
        ours, theirs = (
            kind(**parameters).fit(x) for kind in (GaussianMixture, Reference)
        )
        for method in ("predict", "predict_proba", "score_samples"):
            seconds = best_of(5, lambda m=method, g=ours, x=x: getattr(g, m)(x))
            peer = best_of(3, lambda m=method, g=theirs, x=x: getattr(g, m)(x))
            yield Row(
                "predictions",
                f"{method}, {case.name}, {len(x)} rows",
                seconds,
                {"scikit-learn": peer},
                peer / seconds,
                f"~ {target:g}",
            )


def first_pass(_machine: dict[str, float]) -> Iterator[Row]:
    """The pass after a start with covariances of reg_covar: every row is far away."""
    case = CASES[2][0]
    x = make_rows(case)
    tiny = {**start(case, x), "precisions_init": np.stack([1e6 * np.eye(16)] * 10)}
    usual = ours_per_iteration(x, start(case, x))
    ours = best_of(3, lambda: GaussianMixture(max_iter=1, **tiny).fit(x))
    plain = best_of(3, lambda: GaussianMixture(max_iter=1, **start(case, x)).fit(x))
    yield Row(
        "first pass",
        f"{case.name}, covariances of 1e-6",
        usual + ours - plain,
        {"any other pass": usual},
        usual / (usual + ours - plain),
    )
