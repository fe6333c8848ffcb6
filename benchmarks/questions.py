"""Questions about a few rows, against scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from sklearn.mixture import GaussianMixture as Reference

from benchmarks.common import Case, Row, make_rows
from benchmarks.iterations import by_turns
from daskgmm import GaussianMixture

METHODS = ("predict", "predict_proba", "score_samples")
SHAPES = ("full", "tied", "diag", "spherical")
N_FEATURES = (2, 32, 128, 384, 768)
N_ROWS = (1, 10, 100)


def questions(_machine: dict[str, float]) -> Iterator[Row]:
    """The method that does worst, of a model of eight components in memory."""
    for covariance_type in SHAPES:
        for d in N_FEATURES:
            case = Case(covariance_type, d, 8, 8 * 30)
            theirs = _fitted(case)
            ours = GaussianMixture.from_sklearn(theirs)
            for n in N_ROWS:
                x = np.random.default_rng(0).normal(size=(n, d))
                rows = [_row(case, method, ours, theirs, x) for method in METHODS]
                yield min(rows, key=lambda row: row.ratio)


def _fitted(case: Case) -> Reference:
    model = Reference(
        case.n_components,
        covariance_type=case.covariance_type,
        reg_covar=0.1,
        max_iter=1,
        init_params="random_from_data",
        random_state=0,
    )
    return model.fit(make_rows(case))


def _row(
    case: Case,
    method: str,
    ours: GaussianMixture,
    theirs: Reference,
    x: np.ndarray,
) -> Row:
    np.testing.assert_allclose(
        getattr(ours, method)(x), getattr(theirs, method)(x), rtol=1e-6, atol=1e-9
    )
    seconds, peers, ratio = by_turns(
        lambda: getattr(ours, method)(x), lambda: getattr(theirs, method)(x)
    )
    return Row(
        "questions",
        f"{method}, {case.name}, {len(x)} rows",
        seconds,
        peers,
        ratio,
        ">= 1",
    )
