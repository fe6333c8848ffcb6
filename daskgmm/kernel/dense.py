"""The dense form: each component has a factor of its own."""

from __future__ import annotations

from typing import Any

from numba import njit

from daskgmm.kernel.layout import stride
from daskgmm.kernel.products import add_dots, squared_distances
from daskgmm.kernel.simd import (
    COLUMNS,
    add_lane_sums,
    add_squares,
    constant,
    is_single,
    load,
    multiply,
    multiply_add,
    row_sums,
    splat,
    store,
    subtract,
    zeros,
)
from daskgmm.kernel.tile import JIT, ZERO, pitch_of, width_of


@njit(**JIT)
def dense_log_joint(plan: Any, tile: Any, width: int) -> None:
    """Log joint of all components."""
    n_components, d = plan.means.shape
    half, length = constant(tile.joint, -0.5), plan.dense.shape[1]
    means, factors = plan.means.reshape(-1), plan.dense.reshape(-1)
    lows = plan.lows.reshape(-1)
    pitch = pitch_of(tile.joint)
    for k in range(n_components):
        offset = splat(plan.offsets, k, 1, 1)
        for t in range(0, width, width_of(tile.joint)):
            squares = squared_distances(
                factors, k * length, tile.rows, t, means, lows, k * d, d
            )
            joint = multiply_add(squares, half, offset)
            store(joint, tile.joint, k * pitch + t, 0, COLUMNS)


@njit(**JIT)
def add_dense(plan: Any, tile: Any, width: int, sums: Any) -> None:
    """Add 1, e and e eᵀ of every component."""
    n_components, d = plan.means.shape
    step, means = stride(d, COLUMNS), plan.means.reshape(-1)
    lows = plan.lows.reshape(-1)
    pitch = pitch_of(tile.joint)
    for k in range(n_components):
        mass = zeros(tile.joint, COLUMNS)
        for t in range(0, width, width_of(tile.joint)):
            mass = add_squares(load(tile.joint, k * pitch + t, 0, 1, COLUMNS), mass)
        add_lane_sums(row_sums(mass, 1), sums.mass, k, 0, 1)
        for i in range(d):
            mean, total = splat(means, k * d + i, 1, 1), zeros(tile.joint, COLUMNS)
            for t in range(0, width, width_of(tile.joint)):
                line = load(tile.rows, i * pitch + t, 0, 1, COLUMNS)
                rooted = load(tile.joint, k * pitch + t, 0, 1, COLUMNS)
                e = subtract(line, mean)
                if is_single(e):
                    e = subtract(e, splat(lows, k * d + i, 1, 1))
                part = multiply(e, rooted)
                total = multiply_add(part, rooted, total)
                store(part, tile.work, i * pitch + t, 0, COLUMNS)
            add_lane_sums(row_sums(total, 1), sums.drift, k * d + i, 0, 1)
        add_dots(tile.work, d, tile.work, ZERO, width, sums.dense, k * d * step, step)
