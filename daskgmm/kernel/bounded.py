"""The dense form's log joint of those components alone that may matter to a row.

A squared distance is at least the sum of the squares of a row's coordinates along two
axes of a component's whitened space, and to find these takes 2 d steps, not ½ d². So
each log joint has an upper bound. Of the component where it is highest the log joint is
found first, for each row; then of all those whose bound is not far below that. With
many features or components these are few. What is left out is as if it were zero: all
of it together is less than rounding, as in the sums.
"""

from __future__ import annotations

from math import inf, sqrt
from typing import Any, Final

import numpy as np
from numba import njit

from daskgmm.kernel.dense import make_store_joint
from daskgmm.kernel.joint import find_most_probable
from daskgmm.kernel.layout import BAND
from daskgmm.kernel.listed import gather, list_bits
from daskgmm.kernel.products import make_product
from daskgmm.kernel.simd import (
    COLUMNS,
    add,
    add_squares,
    add_to_rows,
    bits_above,
    constant,
    lanes,
    load,
    maximum,
    multiply,
    multiply_add,
    part,
    splat,
    store,
    where_above,
    zeros,
)
from daskgmm.kernel.tile import INLINE, JIT, pitch_of, width_of

BETWEEN: Final = 31
"""Tiles in which all is found, after one in which little could be left out."""
_FAR: Final = 92.2
"""So far below the largest one is a responsibility below 1e-40: see `dense.DEAD`."""
SLACK: Final = 2.0**-10
"""Part of the squares that stands for all roundings. See `mixtures.bounds`."""
_TWO: Final = 2 * COLUMNS
_coordinates: Final = make_product(BAND, 0)


@njit(**JIT)
def _reach(tile: Any, d: int, width: int) -> float:
    """No row of a tile is farther from zero."""
    pitch, total = pitch_of(tile.rows), zeros(tile.rows, 1)
    for j in range(d):
        most = zeros(tile.rows, 1)
        for t in range(0, width, lanes(tile.rows)):
            x = load(tile.rows, j * pitch + t, 0, 1, 1)
            most = maximum(multiply(x, x), most)
        total = add(total, most)
    store(total, tile.found, 0, 0, 1)
    square = 0.0
    for i in range(lanes(tile.rows)):
        square = max(square, np.float64(tile.found[i]))
    return sqrt(square)


@njit(**INLINE)
def _store_bound(plan: Any, tile: Any, k: int, t: int, z: Any, reach: float) -> None:
    """Upper bounds of a component's log joint, from products with its two axes."""
    off = reach * np.float64(plan.axis_means[k, 2]) + np.float64(plan.axis_means[k, 3])
    offset = constant(tile.joint, plan.offsets[k] + 0.5 / SLACK * off * off)
    coordinates = add_to_rows(splat(plan.axis_means.reshape(-1), 4 * k, 1, 2), z)
    squares = add_squares(coordinates, zeros(tile.joint, COLUMNS))
    bound = multiply_add(squares, constant(tile.joint, -0.5), offset)
    store(bound, tile.joint, k * pitch_of(tile.joint) + t, 0, COLUMNS)


@njit(**JIT)
def _bound(plan: Any, tile: Any, width: int, reach: float) -> None:
    """Upper bounds of all log joints, of two components at a time."""
    n, d = plan.means.shape
    axes = plan.axes.reshape(-1)
    for t in range(0, width, width_of(tile.joint)):
        for k in range(0, n, 2):
            z = _coordinates(axes, k * 2 * d, d, tile.rows, t, axes, axes, 0)
            _store_bound(plan, tile, k, t, part(z, 0, _TWO), reach)
            if k + 1 < n:
                _store_bound(plan, tile, k + 1, t, part(z, _TWO, _TWO), reach)


_store_wide, _store_two, _store_one = (make_store_joint(n) for n in (COLUMNS, 2, 1))


@njit(**INLINE)
def _find(plan: Any, tile: Any, k: int, n: int) -> None:
    """Log joint of one component for the listed rows.

    In `least`, rows have the largest log joint that was found, less what is far.
    """
    n_lanes, pitch = lanes(tile.joint), pitch_of(tile.joint)
    gather(tile, plan.means.shape[1], n)
    for t in range(0, n, width_of(tile.joint)):
        if n - t > 2 * n_lanes:
            _store_wide(plan, k, tile.white, t, tile.found, t)
        elif n - t > n_lanes:
            _store_two(plan, k, tile.white, t, tile.found, t)
        else:
            _store_one(plan, k, tile.white, t, tile.found, t)
    for i in range(n):
        row, joint = np.int64(tile.listed[i]), tile.found[i]
        tile.joint[k * pitch + row] = joint
        if joint - _FAR > tile.least[row]:
            tile.least[row] = joint - _FAR


@njit(**INLINE)
def _are_guessed(tile: Any, k: int, t: int) -> int:
    """A bit for each row of a vector: whether this component was guessed."""
    guess = load(tile.scale, t, 0, 1, 1)
    low, high = constant(guess, k - 0.5), constant(guess, k + 0.5)
    bits: int = bits_above(guess, low) & ~bits_above(guess, high)
    return bits


@njit(**INLINE)
def _list_guessed(tile: Any, k: int, width: int) -> int:
    """List rows for which a component was guessed; returns how many there are."""
    n = 0
    for t in range(0, width, lanes(tile.joint)):
        n = list_bits(_are_guessed(tile, k, t), t, tile, n)
    return n


@njit(**INLINE)
def _list_others(tile: Any, k: int, width: int) -> int:
    """List rows of whose log joint the bound is not far below, where it is not known.

    All others are set to minus infinity.
    """
    nothing, n_lanes = constant(tile.joint, -inf), lanes(tile.joint)
    n, all_of_them, start = 0, (1 << n_lanes) - 1, k * pitch_of(tile.joint)
    for t in range(0, width, n_lanes):
        least = load(tile.least, t, 0, 1, 1)
        bound = load(tile.joint, start + t, 0, 1, 1)
        left = where_above(least, bound, nothing, bound)
        store(left, tile.joint, start + t, 0, 1)
        done = bits_above(least, bound) | _are_guessed(tile, k, t)
        n = list_bits(~done & all_of_them, t, tile, n)
    return n


@njit(**INLINE)
def _find_those(plan: Any, tile: Any, first: int, last: int, width: int) -> int:
    """Log joint of those components of a run that may matter; returns of how many.

    For each row, first of the one with the highest bound.
    """
    n_found = 0
    find_most_probable(tile, first, last, width)
    for guessing in (True, False):
        for k in range(first, last):
            if guessing:
                n = _list_guessed(tile, k, width)
            else:
                n = _list_others(tile, k, width)
            n_found += n
            if n > 0:
                _find(plan, tile, k, n)
    return n_found


@njit(**JIT)
def bounded_log_joint(plan: Any, tile: Any, width: int) -> int:
    """Log joint of those components that may matter; of others minus infinity.

    Returns how many were found, of rows times components.
    """
    _bound(plan, tile, width, _reach(tile, plan.means.shape[1], width))
    n_found = 0
    for run in range(plan.starts.shape[0] - 1):
        tile.least[:width] = -inf
        first, last = plan.starts[run], plan.starts[run + 1]
        n_found += _find_those(plan, tile, first, last, width)
    return n_found
