"""The dense form for few rows: matrices are read where they are, unpacked."""

from __future__ import annotations

from typing import Any, Final

from numba import njit

from daskgmm.kernel.diagonal import diagonal_log_joint
from daskgmm.kernel.layout import BAND
from daskgmm.kernel.simd import (
    COLUMNS,
    add_outer,
    add_squares,
    constant,
    load,
    multiply_add,
    prefetch,
    splat,
    store,
    subtract,
    where_above,
    zeros,
)
from daskgmm.kernel.tile import INLINE, JIT, ZERO, pitch_of, whole_width, width_of


def _make_panel(n: int) -> Any:
    @njit(**INLINE)
    def add_panel(upper: Any, start: int, d: int, j: int, tile: Any, t: int) -> None:
        """Add to the products of n rows what four of their features make.

        The matrix is upper triangular, (d, d), row by row: what is below its diagonal
        does not count. Blocks of columns are laid from its right end on, so that none
        reaches beyond it; what the first one has of the second one is left out.
        """
        lines, out = tile.white, tile.work
        pitch, width = pitch_of(lines), width_of(lines)
        nothing, numbers = constant(lines, 0.0), load(tile.weights, 0, 0, 1, COLUMNS)
        next_j = min(j + BAND, d)
        after = d - (d - j - 1) // width * width
        at = max(0, after - width)
        while at < next_j:
            products = load(out, t * d + at, d, n, COLUMNS)
            for i in range(j, next_j):
                row = load(upper, start + i * d + at, 0, 1, COLUMNS)
                row = where_above(numbers, constant(lines, i - at - 0.5), row, nothing)
                row = where_above(
                    constant(lines, after - at - 0.5), numbers, row, nothing
                )
                line = splat(lines, i * pitch + t, 1, n)
                products = add_outer(line, row, products)
            store(products, out, t * d + at, d, COLUMNS)
            at, after = after, after + width
        for whole in range(at, d, width):
            products = load(out, t * d + whole, d, n, COLUMNS)
            for i in range(BAND):
                place = start + (j + i) * d + whole
                prefetch(upper, place + BAND * d)
                row = load(upper, place, 0, 1, COLUMNS)
                line = splat(lines, (j + i) * pitch + t, 1, n)
                products = add_outer(line, row, products)
            store(products, out, t * d + whole, d, COLUMNS)

    return add_panel


_band_panel: Final = _make_panel(BAND)
_row_panel: Final = _make_panel(1)


@njit(**JIT)
def _multiply_upper(upper: Any, start: int, d: int, tile: Any, n_rows: int) -> None:
    """Lines in `white` times a matrix that is not packed; row by row of data in `work`.

    The matrix is read once, as it lies in memory. Sums are made number by number as
    `multiply_lines` makes them, so that the same bits come out.
    """
    whole = n_rows - n_rows % BAND
    for i in range(width_of(tile.weights)):
        tile.weights[i] = float(i)
    tile.work[: (n_rows + BAND) * d] = 0.0
    for j in range(0, d, BAND):
        for t in range(0, whole, BAND):
            _band_panel(upper, start, d, j, tile, t)
        for t in range(whole, n_rows):
            _row_panel(upper, start, d, j, tile, t)


@njit(**INLINE)
def _centre_lines(tile: Any, means: Any, mean: int, d: int, width: int) -> None:
    """Lines of rows less a mean, into `white`."""
    pitch = pitch_of(tile.rows)
    for i in range(d):
        its = splat(means, mean + i, 1, 1)
        for t in range(0, width, width_of(tile.rows)):
            line = load(tile.rows, i * pitch + t, 0, 1, COLUMNS)
            store(subtract(line, its), tile.white, i * pitch + t, 0, COLUMNS)


@njit(**JIT)
def upper_joint(plan: Any, tile: Any, n_rows: int) -> None:
    """Log joint of a few rows, from matrices that are not packed."""
    n_components, d = plan.means.shape
    half, pitch = constant(tile.joint, -0.5), pitch_of(tile.joint)
    upper, means = plan.upper.reshape(-1), plan.means.reshape(-1)
    width, origins = whole_width(n_rows, tile.rows), plan.origins.reshape(-1)
    if plan.origins.shape[0] > 0:
        _centre_lines(tile, origins, ZERO, d, width)
        _multiply_upper(upper, ZERO, d, tile, n_rows)
        for i in range(d):
            for t in range(n_rows):
                tile.white[i * pitch + t] = tile.work[t * d + i]
        diagonal_log_joint(plan, tile.white, ZERO, n_components, width, tile.joint)
        return
    for k in range(n_components):
        _centre_lines(tile, means, k * d, d, width)
        _multiply_upper(upper, k * d * d, d, tile, n_rows)
        offset = splat(plan.offsets, k, 1, 1)
        for t in range(0, n_rows, BAND):
            squares = zeros(tile.joint, BAND)
            for i in range(d):
                numbers = splat(tile.work, t * d + i, d, BAND)
                squares = add_squares(numbers, squares)
            # Each vector repeats one row's number: the next one's overwrites the rest.
            joint = multiply_add(squares, half, offset)
            store(joint, tile.joint, k * pitch + t, 1, 1)
