"""A tile of rows: its memory, its lines, and how it is loaded.

What is here, and in the files that build on it, works on one tile and checks nothing:
`passes` calls it.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numba import njit

from daskgmm.kernel.compiling import for_both
from daskgmm.kernel.layout import BAND, Array, Plan, is_wide, stride, sums_ends
from daskgmm.kernel.simd import (
    COLUMNS,
    LANES,
    is_single,
    lanes,
    load,
    load_apart,
    load_like,
    load_square,
    prefetch,
    splat,
    store,
    subtract,
    transpose,
    zeros,
)

_AHEAD: Final = 2048
"""Numbers ahead of those being read that are fetched: far enough for slow memory."""
_WIDEST: Final = 2 * COLUMNS * LANES
"""Rows of data in a register tile of float32; of float64 half as many."""
MIN_UPPER: Final = COLUMNS * LANES
"""Features that a plan with `upper` has at the least."""
_TILE: Final = 256 // _WIDEST * _WIDEST
"""Rows of data in a tile, if they are not too wide."""
_TILE_NUMBERS: Final = 2**18
"""Numbers of a tile, so that it stays in the second-level cache."""
ZERO: Final = np.int64(0)
"""For arguments: were it a literal, functions would be compiled for it once more."""
_MOST_LANES: Final = 2 * LANES
_PITCH: Final = 264
_PITCH_SINGLE: Final = 272
"""From line to line: room for a tile and a vector, in an odd number of cache lines.

A power of two, or nearly one, would put all lines into the same sets of the cache.
"""

JIT: Final[dict[str, Any]] = {
    "nogil": True,
    "error_model": "numpy",
    # No reference counts: the kernel makes no arrays, and they cost more than the work.
    "_nrt": False,
    # No reassociation: vector code without it gives the same bits on each call.
    "fastmath": {"contract", "nsz"},
    # Nobody calls them from Python.
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}
INLINE: Final[dict[str, Any]] = {**JIT, "forceinline": True}
"""For what hands on register tiles: a call would write them to memory."""


class Tile(NamedTuple):
    """Where a tile of rows is worked on: lines that stand a pitch apart.

    All of it is of float64, or all of float32.
    """

    rows: Array  # d lines, as they are
    work: Array  # d + 2 lines
    white: Array  # d lines
    joint: Array  # K lines: log joint, then what is made of it
    weights: Array  # one line each
    log_prob: Array
    scale: Array
    bands: Array  # a number for each band of components
    by_row: Array  # rows once more, each up to whole vectors; or none, as what follows
    parts: Array  # as many
    centre: Array  # two such rows: a mean in two parts
    listed: Array  # one line each: numbers of rows,
    found: Array  # what they have,
    least: Array  # and what all rows do


class Padded(NamedTuple):
    """`Sums` as they are added up, each of them flat.

    The rows of a matrix stand a multiple of `COLUMNS` apart, and of a symmetric one the
    lower triangle counts.
    """

    mass: Array
    drift: Array
    dense: Array
    diagonal: Array
    raw: Array
    residual: Array
    shared: Array
    log_prob: Array
    weight: Array


@njit(**JIT)
def cut_sums(plan: Any, buffer: Any) -> Any:
    """Cut a buffer into sums."""
    ends = sums_ends(plan, COLUMNS)
    return Padded(
        mass=buffer[: ends[0]],
        drift=buffer[ends[0] : ends[1]],
        dense=buffer[ends[1] : ends[2]],
        diagonal=buffer[ends[2] : ends[3]],
        raw=buffer[ends[3] : ends[4]],
        residual=buffer[ends[4] : ends[5]],
        shared=buffer[ends[5] : ends[6]],
        log_prob=buffer[ends[6] : ends[7]],
        weight=buffer[ends[7] :],
    )


@for_both
def scratch_size(plan: Plan) -> int:
    """Numbers of scratch memory that a tile needs."""
    n_components, d = plan.means.shape
    n_lines = 3 * d + 2 + n_components + 3
    if is_wide(plan):
        n_lines += 2 * stride(d, _MOST_LANES) + _MOST_LANES + 3
    # A register tile may reach beyond the last line of each of the four areas.
    size: int = (n_lines + 4 * COLUMNS) * _PITCH_SINGLE + n_components // BAND
    return size + (2 * stride(d, _MOST_LANES) if is_wide(plan) else 0)


@njit(**INLINE)
def pitch_of(lines: Any) -> Any:
    """Numbers from one line to the next."""
    return _PITCH_SINGLE if is_single(lines) else _PITCH


@njit(**INLINE)
def width_of(lines: Any) -> Any:
    """Rows of data in a register tile."""
    return COLUMNS * lanes(lines)


@njit(**JIT)
def cut_tile(plan: Any, scratch: Any) -> Any:
    """Cut a tile out of scratch memory."""
    n_components, d = plan.means.shape
    pitch, wide = pitch_of(scratch), is_wide(plan)
    # Lines behind the last one: squares of rows are turned as a whole.
    more = _MOST_LANES if wide else 0
    length = stride(d, _MOST_LANES) if wide else 0
    work = (d + COLUMNS) * pitch
    white = work + (d + 2 + COLUMNS) * pitch
    joint = white + (d + COLUMNS + more) * pitch
    single = joint + (n_components + COLUMNS) * pitch
    bands = single + 3 * pitch
    by_row = bands + n_components // BAND
    parts = by_row + length * pitch
    centre = parts + length * pitch
    listed = centre + 2 * length
    line = pitch if wide else 0
    return Tile(
        rows=scratch[:work],
        work=scratch[work:white],
        white=scratch[white:joint],
        joint=scratch[joint:single],
        weights=scratch[single : single + pitch],
        log_prob=scratch[single + pitch : single + 2 * pitch],
        scale=scratch[single + 2 * pitch : bands],
        bands=scratch[bands:by_row],
        by_row=scratch[by_row:parts],
        parts=scratch[parts:centre],
        centre=scratch[centre:listed],
        listed=scratch[listed : listed + line],
        found=scratch[listed + line : listed + 2 * line],
        least=scratch[listed + 2 * line : listed + 3 * line],
    )


@for_both
def tile_rows(d: int) -> int:
    """Most rows of a tile: sums are added up tile by tile."""
    return min(_TILE, max(1, _TILE_NUMBERS // d // _WIDEST) * _WIDEST)


@njit(**INLINE)
def whole_width(n: int, lines: Any) -> Any:
    """Up to whole register tiles."""
    return -(-n // width_of(lines)) * width_of(lines)


def _make_few(d: int) -> Any:
    @njit(**INLINE)
    def load_few(x: Any, start: int, together: int, lines: Any) -> None:
        """Copy rows of d features that stand side by side to lines."""
        pitch, n = pitch_of(lines), lanes(lines)
        for first in range(0, together, n):
            apart = load_apart(x, (start + first) * d, lines, d)
            store(apart, lines, first, pitch, 1)

    return load_few


_load_two: Final = _make_few(2)
_load_three: Final = _make_few(3)
_load_four: Final = _make_few(4)


@njit(**JIT)
def _load_rows(
    x: Any, d: int, step: int, start: int, inside: int, lines: Any, by_row: Any
) -> None:
    """Copy rows to lines; past the end, the last row again.

    And as they are, to rows that are filled up with zeros, if there is room for them.
    """
    length = stride(d, lanes(lines)) if by_row.shape[0] > 0 else 0
    pitch, n = pitch_of(lines), lanes(lines)
    together, blocks = inside // n * n, d // n * n
    begin: Any = ZERO
    if step == d and 2 <= d <= 4:
        if d == 2:
            _load_two(x, start, together, lines)
        elif d == 3:
            _load_three(x, start, together, lines)
        else:
            _load_four(x, start, together, lines)
        begin = together
    for first in range(begin, together, n):
        at, its = (start + first) * step, first * length
        for i in range(0, blocks, n):
            for t in range(n):
                prefetch(x, at + _AHEAD + t * step + i)
            square = load_square(x, at + i, step, lines)
            if length > 0:
                store(square, by_row, its + i, length, 1)
            store(transpose(square), lines, i * pitch + first, pitch, 1)
        if blocks == d:
            continue
        for t in range(n if length > 0 else 0):
            store(zeros(lines, 1), by_row, its + t * length + length - n, 0, 1)
        # Some features once more; or lines behind the last one, which nobody has used.
        i = max(0, d - n)
        if at + (n - 1) * step + i + n <= x.shape[0]:
            square = load_square(x, at + i, step, lines)
            if length > 0:
                store(square, by_row, its + i, length, 1)
            store(transpose(square), lines, i * pitch + first, pitch, 1)
            continue
        for i in range(blocks, d):
            for t in range(n):
                lines[i * pitch + first + t] = x[at + t * step + i]
                if length > 0:
                    by_row[its + t * length + i] = x[at + t * step + i]
    for t in range(together, whole_width(inside, lines)):
        at = (start + min(t, inside - 1)) * step
        for i in range(d):
            lines[i * pitch + t] = x[at + i]
            if length > 0:
                by_row[t * length + i] = x[at + i]
        for i in range(d, length):
            by_row[t * length + i] = 0.0


@njit(**JIT)
def _turn(lines: Any, d: int, width: int, by_row: Any) -> None:
    """Copy lines to rows that are filled up with zeros."""
    pitch, n = pitch_of(lines), lanes(lines)
    length = stride(d, n)
    for first in range(0, width, n):
        for i in range(0, length, n):
            square = transpose(load_square(lines, i * pitch + first, pitch, lines))
            store(square, by_row, first * length + i, length, 1)
        for t in range(first, first + n):
            for i in range(d, length):
                by_row[t * length + i] = 0.0


@njit(**JIT)
def _load_columns(x: Any, columns: Any, start: int, inside: int, lines: Any) -> None:
    """The same from columns, which are lines already."""
    pitch, n = pitch_of(lines), lanes(lines)
    together = inside // n * n
    for i in range(columns.shape[0]):
        at, line = columns[i] + start, i * pitch
        for t in range(0, together, n):
            # The next tile's part of the column is on another page.
            prefetch(x, at + t + inside)
            store(load_like(x, at + t, lines), lines, line + t, 0, 1)
        for t in range(together, whole_width(inside, lines)):
            lines[line + t] = x[at + min(t, inside - 1)]


@njit(**JIT)
def _shift(shift: Any, lines: Any, width: int) -> None:
    """Take off what rows are measured from: exactly, where they are close to it."""
    d, pitch, parts = shift.shape[1], pitch_of(lines), shift.reshape(-1)
    for i in range(d):
        high, low = splat(parts, i, 1, 1), splat(parts, d + i, 1, 1)
        for t in range(i * pitch, i * pitch + width, width_of(lines)):
            line = subtract(load(lines, t, 0, 1, COLUMNS), high)
            store(subtract(line, low), lines, t, 0, COLUMNS)


@njit(**JIT)
def load_tile(rows: Any, plan: Any, start: int, inside: int, tile: Any) -> None:
    """Copy rows of any layout to lines, and to rows where there is room for them."""
    by_column, d, lines = rows.columns.shape[0] > 0, rows.n_columns, tile.rows
    if rows.double.shape[0] > 0:
        if by_column:
            _load_columns(rows.double, rows.columns, start, inside, lines)
        else:
            _load_rows(rows.double, d, rows.step, start, inside, lines, tile.by_row)
    elif by_column:
        _load_columns(rows.single, rows.columns, start, inside, lines)
    else:
        _load_rows(rows.single, d, rows.step, start, inside, lines, tile.by_row)
    if by_column and tile.by_row.shape[0] > 0:
        _turn(lines, d, whole_width(inside, lines), tile.by_row)
    if plan.shift.shape[0] > 0:
        _shift(plan.shift, lines, whole_width(inside, lines))


@njit(**JIT)
def set_weights(weights: Any, start: int, inside: int, line: Any) -> float:
    """Weights of a tile's rows, zero past the end; returns their sum."""
    total = float(inside)
    if weights.shape[0] > 0:
        total = 0.0
        for t in range(inside):
            line[t] = weights[start + t]
            total += weights[start + t]
    elif start == 0 or inside < _TILE:
        line[:inside] = 1.0  # they stay from tile to tile
    for t in range(inside, whole_width(inside, line)):
        line[t] = 0.0
    return total
