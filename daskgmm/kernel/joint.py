"""Log joint densities of a tile, and what follows from them in any form."""

from __future__ import annotations

from typing import Any, Final

from numba import njit

from daskgmm.kernel.dense import dense_log_joint
from daskgmm.kernel.diagonal import apart_log_joint, diagonal_log_joint
from daskgmm.kernel.natural import natural_log_joint
from daskgmm.kernel.pooled import whiten
from daskgmm.kernel.simd import (
    COLUMNS,
    add,
    add_lane_sums,
    constant,
    divide,
    exp,
    load,
    log,
    maximum,
    multiply,
    multiply_add,
    root,
    store,
    subtract,
    where_above,
    zeros,
)
from daskgmm.kernel.tile import INLINE, JIT, ZERO, pitch_of, width_of

_FACTORS: Final = 8
"""Sums of a row that are multiplied before their logarithm is taken."""


@njit(**JIT)
def log_joint(plan: Any, tile: Any, width: int) -> None:
    """Log of weight times density, components × rows."""
    n_components, n_pooled = plan.means.shape[0], plan.pooled.shape[0]
    if plan.dense.shape[0] > 0:
        dense_log_joint(plan, tile, width)
        return
    if plan.quadratic.shape[0] > 0:
        natural_log_joint(plan, tile, width)
        apart_log_joint(plan, tile, width)
        return
    if n_pooled == 0:
        diagonal_log_joint(plan, tile.rows, ZERO, n_components, width, tile.joint)
        return
    for run in range(n_pooled):
        whiten(plan, tile, run, width)
        first, last = plan.starts[run], plan.starts[run + 1]
        diagonal_log_joint(plan, tile.white, first, last, width, tile.joint)


@njit(**INLINE)
def _exponentials(tile: Any, first: int, last: int, t: int) -> Any:
    """Turn one run's log joint into h = exp(½ (joint - its maximum)), row by row.

    Returns the maximum, and the sum of h². A responsibility is h² over that.
    """
    pitch = pitch_of(tile.joint)
    top = load(tile.joint, first * pitch + t, 0, 1, COLUMNS)
    for k in range(first + 1, last):
        top = maximum(load(tile.joint, k * pitch + t, 0, 1, COLUMNS), top)
    total = zeros(tile.joint, COLUMNS)
    for k in range(first, last):
        line = load(tile.joint, k * pitch + t, 0, 1, COLUMNS)
        part = exp(multiply(subtract(line, top), constant(top, 0.5)))
        store(part, tile.joint, k * pitch + t, 0, COLUMNS)
        total = multiply_add(part, part, total)
    return top, total


@njit(**INLINE)
def normalise(tile: Any, first: int, last: int, width: int) -> None:
    """Turn one run's log joint into h, beside it log p(x) and a scale s.

    A responsibility is h² s. Its root h √s is what most sums are made with, and costs
    one square root a row.
    """
    for t in range(0, width, width_of(tile.joint)):
        top, total = _exponentials(tile, first, last, t)
        store(add(top, log(total)), tile.log_prob, t, 0, COLUMNS)
        store(divide(constant(total, 1.0), total), tile.scale, t, 0, COLUMNS)


@njit(**INLINE)
def normalise_alike(
    tile: Any, first: int, last: int, width: int, sums: Any, run: int
) -> None:
    """The same where rows have weight one; log p(x) is but added up.

    One logarithm is of the product of several sums. Each is from 1 to K, so that, of
    K up to 65,000, no product leaves float32.
    """
    nothing, one = constant(tile.joint, 0.0), constant(tile.joint, 1.0)
    together = _FACTORS * width_of(tile.joint)
    sum_of_all = zeros(tile.joint, COLUMNS)
    for begin in range(0, width, together):
        product = add(zeros(tile.joint, COLUMNS), one)
        for t in range(begin, min(begin + together, width), width_of(tile.joint)):
            top, total = _exponentials(tile, first, last, t)
            weight = load(tile.weights, t, 0, 1, COLUMNS)  # zero past the end
            sum_of_all = add(sum_of_all, where_above(weight, nothing, top, nothing))
            product = multiply(product, where_above(weight, nothing, total, one))
            store(divide(one, total), tile.scale, t, 0, COLUMNS)
        sum_of_all = add(sum_of_all, log(product))
    add_lane_sums(sum_of_all, sums, run, 0, 1)


@njit(**JIT)
def find_most_probable(tile: Any, first: int, last: int, width: int) -> None:
    """Numbers of a run's most probable components, into the line of scales."""
    pitch, start = pitch_of(tile.joint), constant(tile.joint, float(first))
    for t in range(0, width, width_of(tile.joint)):
        top = load(tile.joint, first * pitch + t, 0, 1, COLUMNS)
        best = add(zeros(tile.joint, COLUMNS), start)
        for k in range(first + 1, last):
            line = load(tile.joint, k * pitch + t, 0, 1, COLUMNS)
            best = where_above(line, top, constant(top, float(k)), best)
            top = maximum(line, top)
        store(best, tile.scale, t, 0, COLUMNS)


@njit(**JIT)
def add_log_prob(tile: Any, width: int, sums: Any, run: int) -> None:
    """Add log p(x) by row weight."""
    nothing, total = constant(tile.joint, 0.0), zeros(tile.joint, COLUMNS)
    for t in range(0, width, width_of(tile.joint)):
        weight = load(tile.weights, t, 0, 1, COLUMNS)
        part = multiply(weight, load(tile.log_prob, t, 0, 1, COLUMNS))
        # A row without weight adds nothing, whatever its density.
        total = add(total, where_above(weight, nothing, part, nothing))
    add_lane_sums(total, sums, run, 0, 1)


@njit(**JIT)
def share(plan: Any, tile: Any, first: int, last: int, width: int) -> None:
    """Turn h into what the form's sums are made with, w the row weights.

    Dense: √(w r). Pooled: √w r. Natural and diagonal: w r.
    """
    nothing, pitch = constant(tile.joint, 0.0), pitch_of(tile.joint)
    is_dense, is_pooled = plan.dense.shape[0] > 0, plan.pooled.shape[0] > 0
    for t in range(0, width, width_of(tile.joint)):
        weight = load(tile.weights, t, 0, 1, COLUMNS)
        scale = load(tile.scale, t, 0, 1, COLUMNS)
        if is_dense:
            factor = root(multiply(scale, weight))
        elif is_pooled:
            factor = multiply(scale, root(weight))
        else:
            factor = multiply(scale, weight)
        factor = where_above(weight, nothing, factor, nothing)
        for k in range(first, last):
            line = load(tile.joint, k * pitch + t, 0, 1, COLUMNS)
            part = multiply(line, factor)
            if not is_dense:
                part = multiply(part, line)
            store(part, tile.joint, k * pitch + t, 0, COLUMNS)
