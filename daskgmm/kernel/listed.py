"""Rows that are listed: gathered, and added up.

Where a component has a part in some rows of a tile alone, these are put together: then
whole vectors are of use, wherever the rows stood. To list and to move a row takes d
steps, and the work on it d².
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit

from daskgmm.kernel.layout import BAND, stride
from daskgmm.kernel.simd import (
    COLUMNS,
    add_lane_sums,
    add_outer,
    add_squares,
    add_to,
    bits_above,
    constant,
    first_bit,
    is_single,
    lanes,
    load,
    load_listed,
    multiply,
    multiply_add,
    splat,
    store,
    subtract,
    transpose,
    zeros,
)
from daskgmm.kernel.tile import INLINE, JIT, pitch_of

_TOGETHER: Final = 32
"""Rows that are added up in float32 before their sum is added in float64."""


@njit(**INLINE)
def list_bits(bits: int, t: int, tile: Any, n: int) -> int:
    """List rows from t on by their bits, after n others; returns how many there are."""
    while bits != 0:
        tile.listed[n] = float(t + first_bit(bits))
        bits &= bits - 1
        n += 1
    return n


@njit(**INLINE)
def list_live(tile: Any, k: int, width: int, dead: float) -> int:
    """List the rows that a component has a part in; returns how many there are."""
    at, least, n = k * pitch_of(tile.joint), constant(tile.joint, dead), 0
    for t in range(0, width, lanes(tile.joint)):
        bits = bits_above(load(tile.joint, at + t, 0, 1, 1), least)
        n = list_bits(bits, t, tile, n)
    return n


@njit(**INLINE)
def gather(tile: Any, d: int, n: int) -> None:
    """Copy listed rows to lines in `white`, up to whole vectors of them."""
    pitch, n_lanes = pitch_of(tile.white), lanes(tile.white)
    length = stride(d, n_lanes)
    for i in range(n, stride(n, n_lanes)):
        tile.listed[i] = tile.listed[n - 1]
    for first in range(0, n, n_lanes):
        for j in range(0, length, n_lanes):
            square = load_listed(tile.by_row, tile.listed, first, length, j)
            store(transpose(square), tile.white, j * pitch + first, pitch, 1)


@njit(**INLINE)
def _centre(plan: Any, tile: Any, k: int, n: int) -> None:
    """Deviations of listed rows from a mean, times the roots of responsibilities.

    They are written to `parts`, row by row, and the roots to `found`.
    """
    d, pitch, n_lanes = plan.means.shape[1], pitch_of(tile.joint), lanes(tile.joint)
    length = stride(d, n_lanes)
    tile.centre[: 2 * length] = 0.0
    for j in range(d):
        tile.centre[j] = plan.means[k, j]
        if is_single(tile.joint):
            tile.centre[length + j] = plan.lows[k, j]
    for i in range(n):
        t = np.int64(tile.listed[i])
        tile.found[i] = tile.joint[k * pitch + t]
        rooted = splat(tile.found, i, 1, 1)
        for j in range(0, length, n_lanes):
            e = load(tile.by_row, t * length + j, 0, 1, 1)
            e = subtract(e, load(tile.centre, j, 0, 1, 1))
            if is_single(e):
                e = subtract(e, load(tile.centre, length + j, 0, 1, 1))
            store(multiply(e, rooted), tile.parts, i * length + j, 0, 1)
    tile.found[n : stride(n, n_lanes)] = 0.0


@njit(**INLINE)
def _add_drift(plan: Any, tile: Any, k: int, n: int, sums: Any) -> None:
    """Add 1 and e of the listed rows."""
    d, n_lanes = plan.means.shape[1], lanes(tile.joint)
    length, mass = stride(d, n_lanes), zeros(tile.joint, 1)
    for i in range(0, n, n_lanes):
        mass = add_squares(load(tile.found, i, 0, 1, 1), mass)
    add_lane_sums(mass, sums.mass, k, 0, 1)
    # Behind the last feature, zeros are added to what comes next.
    for begin in range(0, n, _TOGETHER):
        end = min(begin + _TOGETHER, n)
        for j in range(0, length, n_lanes):
            total = zeros(tile.joint, 1)
            for i in range(begin, end):
                part = load(tile.parts, i * length + j, 0, 1, 1)
                total = multiply_add(part, splat(tile.found, i, 1, 1), total)
            add_to(total, sums.drift, k * d + j, 0, 1)


def _make_block(n_rows: int, n_columns: int) -> Any:
    n_vectors = n_rows * n_columns

    @njit(**INLINE)
    def add_block(
        parts: Any, n: int, length: int, i: int, j: int, out: Any, at: int, step: int
    ) -> None:
        """Add e eᵀ over n rows: some rows of it from i on, some vectors from j on."""
        together = _TOGETHER if is_single(parts) else n
        for begin in range(0, n, together):
            tile = zeros(parts, n_vectors)
            for row in range(begin, min(begin + together, n)):
                left = splat(parts, row * length + i, 1, n_rows)
                right = load(parts, row * length + j, 0, 1, n_columns)
                tile = add_outer(left, right, tile)
            add_to(tile, out, at + j, step, n_columns)

    return add_block


def _make_rows(n_rows: int) -> Any:
    wide, two, one = (_make_block(n_rows, n) for n in (COLUMNS, 2, 1))

    @njit(**JIT)
    def add_rows(
        parts: Any, n: int, length: int, i: int, out: Any, at: int, step: int
    ) -> None:
        """Add some rows from i on, up to the diagonal or somewhat beyond it."""
        n_lanes = lanes(parts)
        end, j = i + n_rows, 0
        while j < end:
            left = -(-(end - j) // n_lanes)
            if left >= COLUMNS:
                wide(parts, n, length, i, j, out, at, step)
                j += COLUMNS * n_lanes
            elif left >= 2:
                two(parts, n, length, i, j, out, at, step)
                j += 2 * n_lanes
            else:
                one(parts, n, length, i, j, out, at, step)
                j += n_lanes

    return add_rows


_add_band: Final = _make_rows(BAND)
_add_row: Final = _make_rows(1)


@njit(**INLINE)
def add_listed(plan: Any, tile: Any, k: int, n: int, sums: Any) -> None:
    """Add 1, e and e eᵀ of a component over the listed rows."""
    d = plan.means.shape[1]
    length, step = stride(d, lanes(tile.joint)), stride(d, COLUMNS)
    _centre(plan, tile, k, n)
    _add_drift(plan, tile, k, n, sums)
    whole = d - d % BAND
    for i in range(0, whole, BAND):
        _add_band(tile.parts, n, length, i, sums.dense, (k * d + i) * step, step)
    for i in range(whole, d):
        _add_row(tile.parts, n, length, i, sums.dense, (k * d + i) * step, step)
