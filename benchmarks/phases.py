"""Where the kernel's time goes: nanoseconds a row of each step, in one thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from benchmarks.common import Case, best_of, make_rows
from daskgmm.kernel.dense import add_dense
from daskgmm.kernel.diagonal import add_diagonal
from daskgmm.kernel.joint import add_log_prob, log_joint, normalise, share
from daskgmm.kernel.layout import as_rows
from daskgmm.kernel.pooled import add_pooled
from daskgmm.kernel.tile import cut_sums, cut_tile, load_tile
from daskgmm.mixtures.covariance import SHAPES
from daskgmm.mixtures.e_step import plan
from daskgmm.mixtures.gaussian import Mixture

CASES = (
    Case("full", 2, 3, 256),
    Case("full", 16, 10, 256),
    Case("full", 128, 8, 256),
    Case("diag", 16, 10, 256),
    Case("tied", 16, 10, 256),
)
_ROWS = 256
_JIT: dict[str, Any] = {"nogil": True, "_nrt": False}


@njit(**_JIT)
def _load(n, plan, rows, tile, sums):
    for _ in range(n):
        load_tile(rows, plan.means.shape[1], 0, _ROWS, tile.rows)


@njit(**_JIT)
def _joint(n, plan, rows, tile, sums):
    for _ in range(n):
        log_joint(plan, tile, _ROWS)


@njit(**_JIT)
def _normalise(n, plan, rows, tile, sums):
    for _ in range(n):
        normalise(tile, 0, plan.means.shape[0], _ROWS)


@njit(**_JIT)
def _share(n, plan, rows, tile, sums):
    for _ in range(n):
        add_log_prob(tile, _ROWS, sums.log_prob, 0)
        share(plan, tile, 0, plan.means.shape[0], _ROWS)


@njit(**_JIT)
def _add(n, plan, rows, tile, sums):
    for _ in range(n):
        if plan.dense.shape[0] > 0:
            add_dense(plan, tile, _ROWS, sums)
        elif plan.pooled.shape[0] > 0:
            add_pooled(plan, tile, _ROWS, sums)
        else:
            add_diagonal(plan, tile, _ROWS, sums)


@njit(**_JIT)
def _cut(plan, scratch, sums):
    return cut_tile(plan, scratch), cut_sums(plan, sums)


STEPS: dict[str, Callable[..., None]] = {
    "load": _load,
    "log joint": _joint,
    "exponentials and log": _normalise,
    "responsibilities": _share,
    "sums": _add,
}


def nanoseconds(case: Case) -> dict[str, float]:
    """Each step's time a row, on one tile that stays in the cache."""
    x = make_rows(case)
    shape, d, k = SHAPES[case.covariance_type], case.n_features, case.n_components
    covariances = np.ones(shape.stored(k, d))
    if shape.dense:
        covariances = np.broadcast_to(np.eye(d), covariances.shape).copy()
    mixture = Mixture(
        shape, np.full(k, 1 / k), x[:k], covariances, shape.factors(covariances)
    )
    message = plan(mixture)
    plan_, scratch = message.compiled_plan, message.scratch()
    tile, sums = _cut(plan_, scratch, np.zeros(message.padded_size))
    arguments = (plan_, as_rows(x), tile.Tile(*tile), tile.Padded(*sums))
    times = {}
    for name, step in STEPS.items():
        for earlier in STEPS.values():  # what it works on
            arguments[2].weights[:] = 1.0
            if earlier is step:
                break
            earlier(1, *arguments)
        step(1, *arguments)
        repeats = 2000 if case.n_features < 64 else 100
        seconds = best_of(5, lambda s=step, n=repeats: s(n, *arguments))
        times[name] = seconds / repeats / _ROWS * 1e9
    return times


def main() -> None:
    """Print a table in Markdown."""
    columns = {case.name: nanoseconds(case) for case in CASES}
    print("| | " + " | ".join(columns) + " |")
    print("|---|" + "---:|" * len(columns))
    for name in STEPS:
        print(
            f"| {name} | "
            + " | ".join(f"{c[name]:.1f}" for c in columns.values())
            + " |"
        )
    print(
        "| all | "
        + " | ".join(f"{sum(c.values()):.1f}" for c in columns.values())
        + " |"
    )


if __name__ == "__main__":
    main()
