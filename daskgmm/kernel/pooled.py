"""The pooled form: all components of a run share one factor."""

from __future__ import annotations

from typing import Any

from numba import njit

from daskgmm.kernel.layout import stride
from daskgmm.kernel.products import add_dots, multiply_deviations, multiply_lines
from daskgmm.kernel.simd import COLUMNS, load, multiply, root, splat, store, subtract
from daskgmm.kernel.tile import JIT, ZERO, pitch_of, width_of


@njit(**JIT)
def whiten(plan: Any, tile: Any, run: int, width: int) -> None:
    """Rows about a run's origin times its factor, into `white`."""
    d, origins = plan.means.shape[1], plan.origins.reshape(-1)
    pooled, at = plan.pooled.reshape(-1), run * plan.pooled.shape[1]
    multiply_deviations(
        pooled, at, d, ZERO, tile.rows, origins, run * d, width, tile.white
    )


@njit(**JIT)
def _root_rows(plan: Any, tile: Any, run: int, width: int) -> None:
    """Set the working lines to √w [y, 1]."""
    d, origins = plan.means.shape[1], plan.origins.reshape(-1)
    pitch = pitch_of(tile.work)
    for t in range(0, width, width_of(tile.work)):
        rooted = root(load(tile.weights, t, 0, 1, COLUMNS))
        for i in range(d):
            line = load(tile.rows, i * pitch + t, 0, 1, COLUMNS)
            y = subtract(line, splat(origins, run * d + i, 1, 1))
            store(multiply(y, rooted), tile.work, i * pitch + t, 0, COLUMNS)
        store(rooted, tile.work, d * pitch + t, 0, COLUMNS)


@njit(**JIT)
def add_pooled(plan: Any, tile: Any, width: int, sums: Any) -> None:
    """Add [y, 1] of every component; v vᵀ and r rᵀ of every run."""
    d, shared_at = plan.means.shape[1], 0
    raw_step, step = stride(d + 1, COLUMNS), stride(d, COLUMNS)
    pitch = pitch_of(tile.joint)
    for run in range(plan.pooled.shape[0]):
        first, last = plan.starts[run], plan.starts[run + 1]
        n = last - first
        shares = tile.joint[first * pitch :]
        _root_rows(plan, tile, run, width)
        at = first * raw_step
        add_dots(shares, n, tile.work, d + 1, width, sums.raw, at, raw_step)
        shared_step = stride(n, COLUMNS)
        add_dots(shares, n, shares, ZERO, width, sums.shared, shared_at, shared_step)
        shared_at += n * shared_step
        multiply_lines(
            plan.mixing, first * d, d, n, shares, plan.mixing, ZERO, width, tile.white
        )
        for at in range(0, d * pitch, pitch):
            for t in range(at, at + width, width_of(tile.work)):
                y = load(tile.work, t, 0, 1, COLUMNS)
                v = subtract(y, load(tile.white, t, 0, 1, COLUMNS))
                store(v, tile.white, t, 0, COLUMNS)
        at = run * d * step
        add_dots(tile.white, d, tile.white, ZERO, width, sums.residual, at, step)
