"""Where the kernel's time goes: nanoseconds a row of each step, in one thread.

python -m benchmarks.phases
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from benchmarks.common import Case, best_of, make_rows
from daskgmm.kernel.bounded import bounded_log_joint
from daskgmm.kernel.dense import add_dense
from daskgmm.kernel.diagonal import add_diagonal
from daskgmm.kernel.joint import log_joint, normalise_alike, share
from daskgmm.kernel.layout import as_rows
from daskgmm.kernel.natural import add_natural
from daskgmm.kernel.pooled import add_pooled
from daskgmm.kernel.tile import cut_sums, cut_tile, load_tile, tile_rows
from daskgmm.mixtures.covariance import SHAPES
from daskgmm.mixtures.e_step import plan
from daskgmm.mixtures.gaussian import Mixture

CASES = (
    Case("full", 2, 3, 0),
    Case("full", 16, 10, 0),
    Case("full", 128, 8, 0),
    Case("diag", 16, 10, 0),
    Case("diag", 128, 64, 0),
    Case("tied", 16, 10, 0),
    Case("spherical", 768, 64, 0),
)
_JIT: dict[str, Any] = {"nogil": True, "_nrt": False}


class Work(NamedTuple):
    """One tile, as large as the kernel takes it, with all that it is worked on with.

    Each step cuts it out anew: arrays that are cut do not hold the memory they are of.
    """

    plan: Any
    rows: Any
    scratch: Any
    sums: Any
    n_rows: int


@njit(**_JIT)
def _load(n, its):
    tile = cut_tile(its.plan, its.scratch)
    for _ in range(n):
        load_tile(its.rows, its.plan, 0, its.n_rows, tile)


@njit(**_JIT)
def _joint(n, its):
    tile = cut_tile(its.plan, its.scratch)
    for _ in range(n):
        if its.plan.axes.shape[0] > 0:
            bounded_log_joint(its.plan, tile, its.n_rows)
        else:
            log_joint(its.plan, tile, its.n_rows)


@njit(**_JIT)
def _normalise(n, its):
    tile, sums = cut_tile(its.plan, its.scratch), cut_sums(its.plan, its.sums)
    tile.weights[: its.n_rows] = 1.0
    last = its.plan.means.shape[0]
    for _ in range(n):
        normalise_alike(tile, 0, last, its.n_rows, sums.log_prob, 0)


@njit(**_JIT)
def _share(n, its):
    tile = cut_tile(its.plan, its.scratch)
    for _ in range(n):
        share(its.plan, tile, 0, its.plan.means.shape[0], its.n_rows)


@njit(**_JIT)
def _add(n, its):
    tile, sums = cut_tile(its.plan, its.scratch), cut_sums(its.plan, its.sums)
    for _ in range(n):
        if its.plan.dense.shape[0] > 0:
            add_dense(its.plan, tile, its.n_rows, sums, False)
        elif its.plan.pooled.shape[0] > 0:
            add_pooled(its.plan, tile, its.n_rows, sums)
        elif its.plan.quadratic.shape[0] > 0:
            add_natural(its.plan, tile, its.rows, 0, its.n_rows, False, sums)
        else:
            add_diagonal(its.plan, tile, its.n_rows, sums)


STEPS: dict[str, Callable[..., None]] = {
    "load": _load,
    "log joint": _joint,
    "exponentials and log": _normalise,
    "responsibilities": _share,
    "sums": _add,
}


def _work(case: Case, dtype: type) -> Work:
    d, k = case.n_features, case.n_components
    n_rows = tile_rows(d)
    x = make_rows(replace(case, n_rows=n_rows)).astype(dtype)
    shape = SHAPES[case.covariance_type]
    covariances = np.ones(shape.stored(k, d))
    if shape.dense:
        covariances = np.broadcast_to(np.eye(d), covariances.shape).copy()
    means = np.resize(x, (k, d)).astype(float)
    factors = shape.factors(covariances)
    mixture = Mixture(shape, np.full(k, 1 / k), means, covariances, factors)
    message = plan(mixture, single=dtype is np.float32)
    sums = np.zeros(message.padded_size)
    rows = as_rows(x if message.is_single else x.astype(float))
    return Work(message.compiled_plan, rows, message.scratch(), sums, n_rows)


def nanoseconds(case: Case, dtype: type) -> dict[str, float]:
    """Each step's time a row, on one tile that stays in the cache."""
    work = _work(case, dtype)
    times = {}
    for name, step in STEPS.items():
        for earlier in STEPS.values():  # what it works on
            if earlier is step:
                break
            earlier(1, work)
        step(1, work)
        repeats = max(10, 10_000_000 // (work.n_rows * work.plan.means.size))
        seconds = best_of(5, lambda s=step, n=repeats: s(n, work))
        times[name] = seconds / repeats / work.n_rows * 1e9
    return times


def main() -> None:
    """Print a table in Markdown."""
    columns = {
        f"{case.name}{' float32' if dtype is np.float32 else ''}": nanoseconds(
            case, dtype
        )
        for case in CASES
        for dtype in (np.float64, np.float32)
    }
    print("| | " + " | ".join(columns) + " |")
    print("|---|" + "---:|" * len(columns))
    for name in STEPS:
        cells = " | ".join(f"{times[name]:.1f}" for times in columns.values())
        print(f"| {name} | {cells} |")
    totals = " | ".join(f"{sum(times.values()):.1f}" for times in columns.values())
    print(f"| all | {totals} |")


if __name__ == "__main__":
    main()
