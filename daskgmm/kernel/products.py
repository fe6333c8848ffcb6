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


def make_product(n_rows: int, n_parts: int, n_columns: int = COLUMNS) -> Any:
    """A function for so many rows, register tiles so wide."""
    n_vectors = n_rows * n_columns

    @njit(**INLINE)
    def product(
        packed: Any, at: int, n: int, lines: Any, t: int, means: Any, lows: Any, k: int
    ) -> Any:
        """Some rows of a packed matrix times n lines less a mean, in so many parts.

        To take it off for each band anew is less work than to write lines without it.
        """
        tile, pitch = zeros(lines, n_vectors), pitch_of(lines)
        for j in range(n):
            line = load(lines, j * pitch + t, 0, 1, n_columns)
            if n_parts > 0:
                line = subtract(line, splat(means, k + j, 1, 1))
            if n_parts > 1:
                line = subtract(line, splat(lows, k + j, 1, 1))
            numbers = splat(packed, at + j * n_rows, 1, n_rows)
            tile = add_outer(numbers, line, tile)
        return tile

    return product


def make_squared_distances(n_parts: int, n_columns: int = COLUMNS) -> Any:
    """A function for means in so many parts, register tiles so wide."""
    band = make_product(BAND, n_parts, n_columns)
    row = make_product(1, n_parts, n_columns)

    @njit(**INLINE)
    def squared_distances(
        packed: Any, at: int, lines: Any, t: int, means: Any, lows: Any, k: int, d: int
    ) -> Any:
        """Squares of a packed triangular matrix times lines less a mean, summed."""
        sums = zeros(lines, n_columns)
        whole = d - d % BAND
        for last in range(BAND, whole + 1, BAND):
            tile = band(packed, at, last, lines, t, means, lows, k)
            sums = add_squares(tile, sums)
            at += BAND * last
        for last in range(whole + 1, d + 1):
            tile = row(packed, at, last, lines, t, means, lows, k)
            sums = add_squares(tile, sums)
            at += last
        return sums

    return squared_distances


def _make_multiply(n_parts: int) -> Any:
    band, row = make_product(BAND, n_parts), make_product(1, n_parts)

    @njit(**JIT)
    def multiply(
        packed: Any,
        at: int,
        n_rows: int,
        n: int,
        lines: Any,
        means: Any,
        k: int,
        width: int,
        out: Any,
    ) -> None:
        """A packed matrix times n lines less a mean; a triangular matrix if n is 0."""
        start, whole, pitch = at, n_rows - n_rows % BAND, pitch_of(lines)
        for t in range(0, width, width_of(lines)):
            at = start
            for first in range(0, whole, BAND):
                length = n if n else first + BAND
                tile = band(packed, at, length, lines, t, means, means, k)
                store(tile, out, first * pitch + t, pitch, COLUMNS)
                at += BAND * length
            for i in range(whole, n_rows):
                length = n if n else i + 1
                tile = row(packed, at, length, lines, t, means, means, k)
                store(tile, out, i * pitch + t, 0, COLUMNS)
                at += length

    return multiply


multiply_deviations: Final = _make_multiply(1)
multiply_lines: Final = _make_multiply(0)
"""The same of lines as they are."""


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
