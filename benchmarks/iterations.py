"""Seconds per EM iteration, side by side with scikit-learn on the same array.

Both start from the same parameters and run a fixed number of iterations (tol=0) in
this process, one after the other. An iteration is the difference between a fit of many
and a fit of few iterations, so validation and starts do not count; the best of several
rounds is taken. scikit-learn runs with one and with two BLAS threads, and the better
time counts.
"""

from __future__ import annotations

import argparse
import json
import platform
import warnings
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Reference
from threadpoolctl import threadpool_limits

from daskgmm import GaussianMixture


@dataclass(frozen=True)
class Case:
    """One shape of problem."""

    covariance_type: str
    n_features: int
    n_components: int
    n_rows: int

    @property
    def name(self) -> str:
        """As it stands in the table."""
        return f"{self.covariance_type} d={self.n_features} K={self.n_components}"


CASES = (
    Case("full", 2, 3, 1_000_000),
    Case("full", 8, 8, 400_000),
    Case("full", 16, 10, 200_000),
    Case("full", 32, 16, 60_000),
    Case("full", 64, 16, 40_000),
    Case("full", 128, 8, 20_000),
    Case("diag", 16, 10, 400_000),
    Case("diag", 128, 8, 60_000),
    Case("tied", 16, 10, 400_000),
    Case("spherical", 16, 10, 400_000),
)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    case: str
    n_rows: int
    seconds: float
    nanoseconds_per_row: float
    scikit_learn_1_thread: float
    scikit_learn_2_threads: float
    ratio: float


def make_rows(case: Case) -> np.ndarray:
    """Rows of K overlapping groups, shuffled."""
    rng = np.random.default_rng(0)
    d, k = case.n_features, case.n_components
    sizes = np.full(k, case.n_rows // k)
    groups = [
        rng.standard_normal((n, d)) @ (rng.standard_normal((d, d)) / np.sqrt(d))
        + 2 * rng.standard_normal(d)
        for n in sizes
    ]
    return rng.permutation(np.vstack(groups))


def start(case: Case, x: np.ndarray) -> dict[str, object]:
    """Starting parameters, the same for both."""
    d, k = case.n_features, case.n_components
    precisions = {
        "full": np.stack([np.eye(d)] * k),
        "tied": np.eye(d),
        "diag": np.ones((k, d)),
        "spherical": np.ones(k),
    }
    return {
        "n_components": k,
        "covariance_type": case.covariance_type,
        "weights_init": np.full(k, 1 / k),
        "means_init": x[:k].copy(),
        "precisions_init": precisions[case.covariance_type],
        "tol": 0,
    }


def seconds_of(
    estimator: type, x: np.ndarray, parameters: dict, max_iter: int
) -> float:
    """Time of a fit of so many iterations."""
    began = perf_counter()
    estimator(max_iter=max_iter, **parameters).fit(x)
    return perf_counter() - began


def per_iteration(
    estimator: type, x: np.ndarray, parameters: dict, few: int, many: int, rounds: int
) -> float:
    """Best seconds per iteration of several rounds."""
    fits = [
        (
            seconds_of(estimator, x, parameters, few),
            seconds_of(estimator, x, parameters, many),
        )
        for _ in range(rounds)
    ]
    # Best of each end: their difference may not be taken round by round, or a slow
    # short fit would make an iteration look fast.
    return (min(m for _, m in fits) - min(f for f, _ in fits)) / (many - few)


def measure(case: Case, rounds: int) -> Row:
    """Time one case with both."""
    x = make_rows(case)
    parameters = start(case, x)
    seconds_of(GaussianMixture, x[:1000], parameters, 1)  # compiles
    ours = per_iteration(GaussianMixture, x, parameters, 2, 12, rounds)
    theirs = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            theirs.append(per_iteration(Reference, x, parameters, 1, 3, rounds))
    return Row(
        case.name, len(x), ours, ours / len(x) * 1e9, *theirs, ratio=min(theirs) / ours
    )


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=None, help="write results here")
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    names = ("daskgmm", "scikit-learn", "numpy", "scipy", "numba")
    versions = {name: version(name) for name in names}
    print(f"{date.today()}, Python {platform.python_version()}, {versions}")
    print(
        f"{'case':22}{'rows':>9}{'ns/row':>9}{'ms':>9}"
        f"{'sklearn ms, 1 / 2':>20}{'ratio':>7}"
    )
    rows = []
    for case in CASES:
        row = measure(case, options.rounds)
        rows.append(row)
        theirs = (
            f"{row.scikit_learn_1_thread * 1e3:.1f} / "
            f"{row.scikit_learn_2_threads * 1e3:.1f}"
        )
        print(
            f"{row.case:22}{row.n_rows:>9}{row.nanoseconds_per_row:>9.1f}"
            f"{row.seconds * 1e3:>9.2f}{theirs:>20}{row.ratio:>7.1f}",
            flush=True,
        )
    if options.json is not None:
        record = {
            "date": str(date.today()),
            "python": platform.python_version(),
            "versions": versions,
            "rows": [asdict(row) for row in rows],
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
