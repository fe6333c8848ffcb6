"""A tile of rows: its memory, its lines, and how it is loaded.

What is here, and in the files that build on it, works on one tile and checks nothing:
`passes` calls it.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numba import njit

from daskgmm.kernel.compiling import for_both
from daskgmm.kernel.layout import Array, Plan, sums_ends
from daskgmm.kernel.simd import COLUMNS, LANES, load, prefetch, store, transpose

_AHEAD: Final = 2048
"""Numbers ahead of those being read that are fetched: far enough for slow memory."""
WIDTH: Final = COLUMNS * LANES
"""Rows of data in a register tile."""
MIN_UPPER: Final = WIDTH
"""Features that a plan with `upper` has at the least."""
_TILE: Final = 256 // WIDTH * WIDTH
"""Rows of data in a tile, if they are not too wide."""
_TILE_NUMBERS: Final = 2**16
"""Numbers of a tile, so that it stays in the second-level cache."""
ZERO: Final = np.int64(0)
"""For arguments: were it a literal, functions would be compiled for it once more."""
LINE: Final = 264
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
    """Where a tile of rows is worked on: lines that stand `LINE` numbers apart."""

    rows: Array  # d lines, as they are
    work: Array  # d + 2 lines
    white: Array  # d lines
    joint: Array  # K lines: log joint, then what is made of it
    weights: Array  # one line each
    log_prob: Array
    scale: Array


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
    n_lines: int = 3 * d + 2 + n_components + 3
    # A register tile may reach beyond the last line of each of the four areas.
    return (n_lines + 4 * COLUMNS) * LINE


@njit(**JIT)
def cut_tile(plan: Any, scratch: Any) -> Any:
    """Cut a tile out of scratch memory."""
    n_components, d = plan.means.shape
    work = (d + COLUMNS) * LINE
    white = work + (d + 2 + COLUMNS) * LINE
    joint = white + (d + COLUMNS) * LINE
    single = joint + (n_components + COLUMNS) * LINE
    return Tile(
        rows=scratch[:work],
        work=scratch[work:white],
        white=scratch[white:joint],
        joint=scratch[joint:single],
        weights=scratch[single : single + LINE],
        log_prob=scratch[single + LINE : single + 2 * LINE],
        scale=scratch[single + 2 * LINE : single + 3 * LINE],
    )


@for_both
def tile_rows(d: int) -> int:
    """Most rows of a tile: sums are added up tile by tile."""
    return min(_TILE, max(1, _TILE_NUMBERS // d // WIDTH) * WIDTH)


@njit(**INLINE)
def whole_width(n: int) -> int:
    """Up to whole register tiles."""
    return -(-n // WIDTH) * WIDTH


@njit(**JIT)
def _load_rows(x: Any, d: int, step: int, start: int, inside: int, lines: Any) -> None:
    """Copy rows to lines; past the end, the last row again."""
    together = inside // LANES * LANES
    blocks = d // LANES * LANES
    for first in range(0, together, LANES):
        at = (start + first) * step
        for i in range(0, blocks, LANES):
            for t in range(LANES):
                prefetch(x, at + _AHEAD + t * step + i)
            square = load(x, at + i, step, LANES, 1)
            store(transpose(square), lines, i * LINE + first, LINE, 1)
        for i in range(blocks, d):
            for t in range(LANES):
                lines[i * LINE + first + t] = x[at + t * step + i]
    for t in range(together, whole_width(inside)):
        at = (start + min(t, inside - 1)) * step
        for i in range(d):
            lines[i * LINE + t] = x[at + i]


@njit(**JIT)
def _load_columns(x: Any, columns: Any, start: int, inside: int, lines: Any) -> None:
    """The same from columns, which are lines already."""
    together = inside // LANES * LANES
    for i in range(columns.shape[0]):
        at, line = columns[i] + start, i * LINE
        for t in range(0, together, LANES):
            # The next tile's part of the column is on another page.
            prefetch(x, at + t + inside)
            store(load(x, at + t, 0, 1, 1), lines, line + t, 0, 1)
        for t in range(together, whole_width(inside)):
            lines[line + t] = x[at + min(t, inside - 1)]


@njit(**JIT)
def load_tile(rows: Any, d: int, start: int, inside: int, lines: Any) -> None:
    """Copy rows of any layout to lines."""
    by_column = rows.columns.shape[0] > 0
    if rows.double.shape[0] > 0:
        if by_column:
            _load_columns(rows.double, rows.columns, start, inside, lines)
        else:
            _load_rows(rows.double, d, rows.step, start, inside, lines)
    elif by_column:
        _load_columns(rows.single, rows.columns, start, inside, lines)
    else:
        _load_rows(rows.single, d, rows.step, start, inside, lines)


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
    for t in range(inside, whole_width(inside)):
        line[t] = 0.0
    return total
