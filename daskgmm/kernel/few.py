"""The dense form of few features: all that a component has stays in registers.

With one to three features, to walk over lines and to fill up register tiles takes more
time than the work itself. Mean, factor and sums are so few numbers that they fit.
"""

from __future__ import annotations

from typing import Any, Final

from numba import njit

from daskgmm.kernel.layout import stride, triangle
from daskgmm.kernel.simd import (
    COLUMNS,
    add_lane_sums,
    add_outer,
    add_squares,
    add_triangular_squares,
    constant,
    is_single,
    lanes,
    load,
    multiply,
    multiply_add,
    splat,
    store,
    subtract,
    zeros,
)
from daskgmm.kernel.tile import INLINE, JIT, pitch_of

FEW: Final = 3
"""Features up to which this is done: so few rows of a matrix are packed as they are."""


def _make_few(d: int) -> tuple[Any, Any]:
    """Log joint and sums for d features."""
    n_factors, n_products = triangle(d), d * d

    @njit(**INLINE)
    def mean_of(plan: Any, k: int, like: Any) -> Any:
        """A component's mean in two parts, of which double has but one."""
        mean, low = splat(plan.means.reshape(-1), k * d, 1, d), zeros(like, d)
        if is_single(like):
            low = splat(plan.lows.reshape(-1), k * d, 1, d)
        return mean, low

    @njit(**INLINE)
    def deviations(tile: Any, mean: Any, low: Any, t: int) -> Any:
        """Rows of data less that."""
        e = subtract(load(tile.rows, t, pitch_of(tile.rows), d, 1), mean)
        return subtract(e, low) if is_single(e) else e

    @njit(**JIT)
    def log_joint(plan: Any, tile: Any, width: int) -> None:
        """Log joint of all components."""
        half, pitch = constant(tile.joint, -0.5), pitch_of(tile.joint)
        factors = plan.dense.reshape(-1)
        for k in range(plan.means.shape[0]):
            offset = splat(plan.offsets, k, 1, 1)
            factor = splat(factors, k * n_factors, 1, n_factors)
            mean, low = mean_of(plan, k, half)
            for t in range(0, width, lanes(tile.joint)):
                e = deviations(tile, mean, low, t)
                squares = add_triangular_squares(factor, e, zeros(half, 1))
                joint = multiply_add(squares, half, offset)
                store(joint, tile.joint, k * pitch + t, 0, 1)

    @njit(**JIT)
    def add_sums(plan: Any, tile: Any, width: int, sums: Any) -> None:
        """Add 1, e and e eᵀ of every component."""
        pitch, step = pitch_of(tile.joint), stride(d, COLUMNS)
        for k in range(plan.means.shape[0]):
            mean, low = mean_of(plan, k, tile.joint)
            mass, drift = zeros(tile.joint, 1), zeros(tile.joint, d)
            scatter = zeros(tile.joint, n_products)
            for t in range(0, width, lanes(tile.joint)):
                rooted = load(tile.joint, k * pitch + t, 0, 1, 1)
                part = multiply(deviations(tile, mean, low, t), rooted)
                mass = add_squares(rooted, mass)
                drift = multiply_add(part, rooted, drift)
                scatter = add_outer(part, part, scatter)
            add_lane_sums(mass, sums.mass, k, 0, 1)
            add_lane_sums(drift, sums.drift, k * d, 0, d)
            add_lane_sums(scatter, sums.dense, k * d * step, step, d)

    return log_joint, add_sums


_joint_of_one, _add_one = _make_few(1)
_joint_of_two, _add_two = _make_few(2)
_joint_of_three, _add_three = _make_few(3)


@njit(**JIT)
def few_log_joint(plan: Any, tile: Any, width: int) -> None:
    """Log joint of all components."""
    d = plan.means.shape[1]
    if d == 1:
        _joint_of_one(plan, tile, width)
    elif d == 2:
        _joint_of_two(plan, tile, width)
    else:
        _joint_of_three(plan, tile, width)


@njit(**JIT)
def add_few(plan: Any, tile: Any, width: int, sums: Any) -> None:
    """Add 1, e and e eᵀ of every component."""
    d = plan.means.shape[1]
    if d == 1:
        _add_one(plan, tile, width, sums)
    elif d == 2:
        _add_two(plan, tile, width, sums)
    else:
        _add_three(plan, tile, width, sums)
