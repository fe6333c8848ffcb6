"""Products in register tiles: packed matrices times lines, and sums of products."""

from __future__ import annotations

from typing import Any, Final

from numba import njit

from daskgmm.kernel.layout import BAND
from daskgmm.kernel.simd import (
    COLUMNS,
    add_lane_sums,
    add_outer,
    add_squares,
    lanes,
    load,
    splat,
    store,
    subtract,
    zeros,
)
from daskgmm.kernel.tile import INLINE, JIT, pitch_of, width_of

LINES: Final = 4 * COLUMNS
_BAND_VECTORS: Final = BAND * COLUMNS


@njit(**INLINE)
def centre(
    lines: Any, t: int, n: int, means: Any, lows: Any, at: int, out: Any
) -> None:
    """Some rows of data, in n lines, less a mean: in two parts if there are lows."""
    pitch = pitch_of(lines)
    for j in range(n):
        line = load(lines, j * pitch + t, 0, 1, COLUMNS)
        line = subtract(line, splat(means, at + j, 1, 1))
        if lows.shape[0] > 0:
            line = subtract(line, splat(lows, at + j, 1, 1))
        store(line, out, j * pitch + t, 0, COLUMNS)


def _make_product(n_rows: int) -> Any:
    n_vectors = n_rows * COLUMNS

    @njit(**INLINE)
    def product(packed: Any, at: int, n: int, lines: Any, t: int) -> Any:
        """Some rows of a packed matrix times n lines."""
        tile, pitch = zeros(lines, n_vectors), pitch_of(lines)
        for j in range(n):
            line = load(lines, j * pitch + t, 0, 1, COLUMNS)
            numbers = splat(packed, at + j * n_rows, 1, n_rows)
            tile = add_outer(numbers, line, tile)
        return tile

    return product


_band_product: Final = _make_product(BAND)
_row_product: Final = _make_product(1)


@njit(**INLINE)
def squared_lengths(packed: Any, at: int, d: int, lines: Any, t: int) -> Any:
    """Squares of a packed triangular matrix times d lines, summed."""
    sums = zeros(lines, COLUMNS)
    whole = d - d % BAND
    for last in range(BAND, whole + 1, BAND):
        sums = add_squares(_band_product(packed, at, last, lines, t), sums)
        at += BAND * last
    for last in range(whole + 1, d + 1):
        sums = add_squares(_row_product(packed, at, last, lines, t), sums)
        at += last
    return sums


@njit(**JIT)
def multiply_lines(
    packed: Any, at: int, n_rows: int, n: int, lines: Any, width: int, out: Any
) -> None:
    """A packed matrix times n lines; a triangular matrix if n is 0."""
    start, whole, pitch = at, n_rows - n_rows % BAND, pitch_of(lines)
    for t in range(0, width, width_of(lines)):
        at = start
        for first in range(0, whole, BAND):
            length = n if n else first + BAND
            tile = _band_product(packed, at, length, lines, t)
            store(tile, out, first * pitch + t, pitch, COLUMNS)
            at += BAND * length
        for i in range(whole, n_rows):
            length = n if n else i + 1
            tile = _row_product(packed, at, length, lines, t)
            store(tile, out, i * pitch + t, 0, COLUMNS)
            at += length


def _make_dot(n_rows: int) -> Any:
    n_vectors = n_rows * COLUMNS

    @njit(**INLINE)
    def dot(
        left: Any, i: int, right: Any, j: int, width: int, out: Any, at: int, step: int
    ) -> None:
        """Add sums over rows of data of left lines from i times right ones from j."""
        tile, pitch = zeros(left, n_vectors), pitch_of(left)
        for t in range(0, width, lanes(left)):
            a = load(left, i * pitch + t, pitch, n_rows, 1)
            b = load(right, j * pitch + t, pitch, COLUMNS, 1)
            tile = add_outer(a, b, tile)
        add_lane_sums(tile, out, at, step, COLUMNS)

    return dot


band_dot: Final = _make_dot(BAND)
row_dot: Final = _make_dot(1)


@njit(**JIT)
def add_dots(
    left: Any,
    n_left: int,
    right: Any,
    n_right: int,
    width: int,
    out: Any,
    start: int,
    step: int,
) -> None:
    """Add left lines times right ones to a matrix; a lower triangle if n_right is 0."""
    whole = n_left - n_left % BAND
    # In blocks of right lines, which stay in the first-level cache for all left ones.
    for block in range(0, n_right if n_right else 1, LINES):
        end = min(block + LINES, n_right)
        for first in range(0, whole, BAND):
            at = start + first * step
            for j in range(block, end if n_right else first + BAND, COLUMNS):
                band_dot(left, first, right, j, width, out, at + j, step)
        for i in range(whole, n_left):
            at = start + i * step
            for j in range(block, end if n_right else i + 1, COLUMNS):
                row_dot(left, i, right, j, width, out, at + j, step)
