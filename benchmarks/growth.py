"""How an iteration's time grows with rows, components and features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from sklearn.mixture import GaussianMixture as Reference
from threadpoolctl import threadpool_limits

from benchmarks.common import (
    N_CORES,
    Case,
    Row,
    fit_of,
    floor_of,
    make_rows,
    ours_per_iteration,
    per_iteration,
    start,
)

_SCIKIT_LEARN_ROWS = 10_000_000
"""More rows than this scikit-learn is not asked for: its tables outgrow the memory."""


def _row(section: str, case: Case, x: np.ndarray, size: float, machine: dict) -> Row:
    parameters = start(case, x)
    ours = ours_per_iteration(x, parameters, rounds=2)
    peers = {}
    if len(x) <= _SCIKIT_LEARN_ROWS:
        with threadpool_limits(N_CORES):
            theirs = per_iteration(fit_of(Reference, x, parameters), 1, 2, 2)
        peers["scikit-learn"] = theirs
    return Row(
        section,
        f"{case.name}, {len(x)} rows",
        ours,
        peers,
        peers["scikit-learn"] / ours if peers else None,
        floor=floor_of(case, machine),
        size=size,
    )


def with_rows(machine: dict[str, float]) -> Iterator[Row]:
    """1M to 100M rows."""
    every = make_rows(Case("full", 2, 3, 1_000_000))
    for n_rows in (1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000):
        x = np.resize(every, (n_rows, 2))
        yield _row("rows", Case("full", 2, 3, n_rows), x, n_rows, machine)


def with_components(machine: dict[str, float]) -> Iterator[Row]:
    """1 to 64 components."""
    for k in (1, 4, 16, 64):
        case = Case("full", 8, k, 200_000)
        yield _row("components", case, make_rows(case), k, machine)


def with_many_components(machine: dict[str, float]) -> Iterator[Row]:
    """8 to 4,096 components, in both precisions; and Flash-GMM's case."""
    cases = [Case("diag", 32, k, 20_000) for k in (8, 64, 512, 4096)]
    cases += [Case("full", 8, k, 20_000) for k in (8, 64, 512, 4096)]
    for case in (*cases, Case("diag", 128, 1024, 20_000)):
        x = make_rows(case)
        for dtype in (np.float64, np.float32):
            rows, k = x.astype(dtype), case.n_components
            row = _row("many components", case, rows, k, machine)
            yield replace(row, case=f"{row.case}, {np.dtype(dtype).name}")


def with_features(machine: dict[str, float]) -> Iterator[Row]:
    """1 to 256 features."""
    for d in (1, 4, 16, 64, 256):
        case = Case("full", d, 8, max(4_000, min(400_000, 3_200_000 // d)))
        yield _row("features", case, make_rows(case), d, machine)
