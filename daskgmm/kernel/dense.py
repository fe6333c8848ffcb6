"""The dense form: each component has a factor of its own."""

from __future__ import annotations

from math import sqrt
from typing import Any, Final

import numpy as np
from numba import njit

from daskgmm.kernel.few import FEW, add_few, few_log_joint
from daskgmm.kernel.layout import is_wide, stride
from daskgmm.kernel.listed import add_listed, list_live
from daskgmm.kernel.products import add_dots, make_squared_distances
from daskgmm.kernel.simd import (
    COLUMNS,
    add_lane_sums,
    add_squares,
    constant,
    count_above,
    is_single,
    lanes,
    load,
    multiply,
    multiply_add,
    row_sums,
    splat,
    store,
    subtract,
    zeros,
)
from daskgmm.kernel.tile import INLINE, JIT, ZERO, pitch_of, width_of

DEAD: Final = 1e-20
"""Roots of responsibilities, times weights, that are left out.

All of them together, below 1e-40 each, are less than rounding of the 10 eps that each
component's mass is given. Where rows have weights, that is of the largest in the tile.
In float32 there are none: zeros are left out.
"""
_WIDE: Final = 8
"""Features from which on it is less work to look for them than to add them up."""


def make_store_joint(n_columns: int) -> Any:
    """A function for so many vectors of rows of data."""
    squared_distances = make_squared_distances(1, n_columns)
    exact_squared_distances = make_squared_distances(2, n_columns)

    @njit(**INLINE)
    def store_joint(plan: Any, k: int, lines: Any, t: int, out: Any, at: int) -> None:
        """Log joint of a component for lines from t on, to out[at:]."""
        d, length = plan.means.shape[1], plan.dense.shape[1]
        half, offset = constant(lines, -0.5), splat(plan.offsets, k, 1, 1)
        means, factors = plan.means.reshape(-1), plan.dense.reshape(-1)
        lows, start, mean = plan.lows.reshape(-1), k * length, k * d
        if is_single(lines):
            squares = exact_squared_distances(
                factors, start, lines, t, means, lows, mean, d
            )
        else:
            squares = squared_distances(factors, start, lines, t, means, lows, mean, d)
        store(multiply_add(squares, half, offset), out, at, 0, n_columns)

    return store_joint


_store_joint: Final = make_store_joint(COLUMNS)


@njit(**JIT)
def dense_log_joint(plan: Any, tile: Any, width: int) -> None:
    """Log joint of all components."""
    n_components, d = plan.means.shape
    if d <= FEW:
        few_log_joint(plan, tile, width)
        return
    pitch = pitch_of(tile.joint)
    for k in range(n_components):
        for t in range(0, width, width_of(tile.joint)):
            _store_joint(plan, k, tile.rows, t, tile.joint, k * pitch + t)


@njit(**JIT)
def _find_live(tile: Any, k: int, width: int, dead: float) -> int:
    """List the vectors of rows that a component has a part in; returns how many.

    Their places are written over the line of scales.
    """
    pitch, n_live = pitch_of(tile.joint), 0
    least = constant(tile.joint, dead)
    for t in range(0, width, lanes(tile.joint)):
        if count_above(load(tile.joint, k * pitch + t, 0, 1, 1), least) > 0:
            tile.scale[n_live] = float(t)
            n_live += 1
    return n_live


@njit(**JIT)
def _add_live(plan: Any, tile: Any, k: int, n_live: int, sums: Any) -> None:
    """Add 1, e and e eᵀ of a component over some vectors of rows."""
    d, pitch, n = plan.means.shape[1], pitch_of(tile.joint), lanes(tile.joint)
    step, means, lows = (
        stride(d, COLUMNS),
        plan.means.reshape(-1),
        plan.lows.reshape(-1),
    )
    mass = zeros(tile.joint, 1)
    for i in range(n_live):
        t = np.int64(tile.scale[i])
        mass = add_squares(load(tile.joint, k * pitch + t, 0, 1, 1), mass)
    add_lane_sums(mass, sums.mass, k, 0, 1)
    for j in range(d):
        mean, total = splat(means, k * d + j, 1, 1), zeros(tile.joint, 1)
        for i in range(n_live):
            t = np.int64(tile.scale[i])
            e = subtract(load(tile.rows, j * pitch + t, 0, 1, 1), mean)
            if is_single(e):
                e = subtract(e, splat(lows, k * d + j, 1, 1))
            rooted = load(tile.joint, k * pitch + t, 0, 1, 1)
            part = multiply(e, rooted)
            total = multiply_add(part, rooted, total)
            store(part, tile.work, j * pitch + i * n, 0, 1)
        add_lane_sums(total, sums.drift, k * d + j, 0, 1)
    at = k * d * step
    add_dots(tile.work, d, tile.work, ZERO, n_live * n, sums.dense, at, step)


@njit(**JIT)
def _add_all(plan: Any, tile: Any, k: int, width: int, sums: Any) -> None:
    """Add 1, e and e eᵀ of a component."""
    d, pitch = plan.means.shape[1], pitch_of(tile.joint)
    step, means, lows = (
        stride(d, COLUMNS),
        plan.means.reshape(-1),
        plan.lows.reshape(-1),
    )
    mass = zeros(tile.joint, COLUMNS)
    for t in range(0, width, width_of(tile.joint)):
        mass = add_squares(load(tile.joint, k * pitch + t, 0, 1, COLUMNS), mass)
    add_lane_sums(row_sums(mass, 1), sums.mass, k, 0, 1)
    for i in range(d):
        mean, total = splat(means, k * d + i, 1, 1), zeros(tile.joint, COLUMNS)
        for t in range(0, width, width_of(tile.joint)):
            e = subtract(load(tile.rows, i * pitch + t, 0, 1, COLUMNS), mean)
            if is_single(e):
                e = subtract(e, splat(lows, k * d + i, 1, 1))
            rooted = load(tile.joint, k * pitch + t, 0, 1, COLUMNS)
            part = multiply(e, rooted)
            total = multiply_add(part, rooted, total)
            store(part, tile.work, i * pitch + t, 0, COLUMNS)
        add_lane_sums(row_sums(total, 1), sums.drift, k * d + i, 0, 1)
    add_dots(tile.work, d, tile.work, ZERO, width, sums.dense, k * d * step, step)


@njit(**INLINE)
def _root_of_heaviest(tile: Any, width: int) -> float:
    """Root of the largest weight of a tile's rows."""
    heaviest = 0.0
    for t in range(width):
        heaviest = max(heaviest, np.float64(tile.weights[t]))
    return sqrt(heaviest)


@njit(**JIT)
def add_dense(plan: Any, tile: Any, width: int, sums: Any, weighted: bool) -> None:
    """Add 1, e and e eᵀ of every component."""
    dead = DEAD * _root_of_heaviest(tile, width) if weighted else DEAD
    n_components, d = plan.means.shape
    n_vectors = width // lanes(tile.joint)
    if d <= FEW:
        add_few(plan, tile, width, sums)
        return
    if is_wide(plan):
        for k in range(n_components):
            n_live = list_live(tile, k, width, dead)
            if n_live > 0:
                add_listed(plan, tile, k, n_live, sums)
        return
    for k in range(n_components):
        n_live = _find_live(tile, k, width, dead) if d >= _WIDE else n_vectors
        if n_live == n_vectors:
            _add_all(plan, tile, k, width, sums)
        elif n_live > 0:
            _add_live(plan, tile, k, n_live, sums)
