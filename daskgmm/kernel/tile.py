"""The compiled kernel: every row of a block against every component, once.

It knows nothing of covariance shapes. All is measured in deviations from a
component's own mean, so nothing cancels, and comes in one of three forms that the
caller chooses:

- *dense*: each component has a factor of its own. The squared distance of a row is the
  sum of squares of the factor's product with the deviation e, and the scatter is the
  lower triangle of Σ r e eᵀ: half the arithmetic of two matrix products.
- *diagonal*: the same where factors are diagonal.
- *pooled*: all components of a run share one dense factor. Rows are whitened once,
  about the run's origin, and the distances are diagonal. The scatter of a row y about
  all means m is that of its residual v = y - Σ r m and of the means about their average
  (the law of total variance). The latter is Σ r_k r_l (m_k - m_l)(m_k - m_l)ᵀ over
  k < l: so the products r_k r_l are added up, and nothing cancels here either.

Rows go through in tiles that stay in the cache, stored as *lines*: features × rows, so
that a vector holds one feature of several rows. Products are made in register tiles of
four rows by `COLUMNS` vectors, where a number is loaded once for many multiplications.
One call holds the GIL at no time.

What is here works on one tile and checks nothing: `passes` calls it.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numba import njit

from daskgmm.kernel.compiling import for_both
from daskgmm.kernel.layout import BAND, Array, Plan, stride, sums_ends
from daskgmm.kernel.simd import (
    COLUMNS,
    LANES,
    add,
    add_lane_sums,
    add_outer,
    add_scaled_squares,
    add_squares,
    add_to_rows,
    constant,
    divide,
    exp,
    load,
    log,
    maximum,
    multiply,
    multiply_add,
    prefetch,
    root,
    row_sums,
    splat,
    store,
    subtract,
    transpose,
    where_above,
    zeros,
)

_AHEAD: Final = 2048
"""Numbers ahead of those being read that are fetched: far enough for slow memory."""
_BAND_VECTORS: Final = BAND * COLUMNS
_WIDTH: Final = COLUMNS * LANES
"""Rows of data in a register tile."""
MIN_UPPER: Final = _WIDTH
"""Features that a plan with `upper` has at the least."""
_TILE: Final = 256 // _WIDTH * _WIDTH
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
    work: Array  # d + 1 lines
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
    n_lines: int = 3 * d + 1 + n_components + 3
    # A register tile may reach beyond the last line of each of the four areas.
    return (n_lines + 4 * COLUMNS) * LINE


@njit(**JIT)
def cut_tile(plan: Any, scratch: Any) -> Any:
    """Cut a tile out of scratch memory."""
    n_components, d = plan.means.shape
    work = (d + COLUMNS) * LINE
    white = work + (d + 1 + COLUMNS) * LINE
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
    return min(_TILE, max(1, _TILE_NUMBERS // d // _WIDTH) * _WIDTH)


@njit(**INLINE)
def whole_width(n: int) -> int:
    """Up to whole register tiles."""
    return -(-n // _WIDTH) * _WIDTH


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


# --- products in register tiles -------------------------------------------------------


def _make_product(n_rows: int) -> Any:
    n_vectors = n_rows * COLUMNS

    @njit(**INLINE)
    def product(
        packed: Any, at: int, n: int, lines: Any, t: int, means: Any, mean: int
    ) -> Any:
        """Some rows of a packed matrix times n lines less a mean."""
        tile = zeros(n_vectors)
        for j in range(n):
            line = load(lines, j * LINE + t, 0, 1, COLUMNS)
            line = subtract(line, splat(means, mean + j, 1, 1))
            numbers = splat(packed, at + j * n_rows, 1, n_rows)
            tile = add_outer(numbers, line, tile)
        return tile

    return product


_band_product: Final = _make_product(BAND)
_row_product: Final = _make_product(1)


@njit(**INLINE)
def _squared_distances(
    packed: Any, at: int, lines: Any, t: int, means: Any, mean: int, d: int
) -> Any:
    """Squares of a packed triangular matrix times lines less a mean, summed."""
    sums = zeros(COLUMNS)
    whole = d - d % BAND
    for last in range(BAND, whole + 1, BAND):
        tile = _band_product(packed, at, last, lines, t, means, mean)
        sums = add_squares(tile, sums)
        at += BAND * last
    for last in range(whole + 1, d + 1):
        tile = _row_product(packed, at, last, lines, t, means, mean)
        sums = add_squares(tile, sums)
        at += last
    return sums


@njit(**JIT)
def _multiply_lines(
    packed: Any,
    at: int,
    n_rows: int,
    n: int,
    lines: Any,
    means: Any,
    mean: int,
    width: int,
    out: Any,
) -> None:
    """A packed matrix times n lines less a mean; a triangular matrix if n is 0."""
    start, whole = at, n_rows - n_rows % BAND
    for t in range(0, width, _WIDTH):
        at = start
        for first in range(0, whole, BAND):
            length = n if n else first + BAND
            tile = _band_product(packed, at, length, lines, t, means, mean)
            store(tile, out, first * LINE + t, LINE, COLUMNS)
            at += BAND * length
        for i in range(whole, n_rows):
            length = n if n else i + 1
            tile = _row_product(packed, at, length, lines, t, means, mean)
            store(tile, out, i * LINE + t, 0, COLUMNS)
            at += length


def _make_dot(n_rows: int) -> Any:
    n_vectors = n_rows * COLUMNS

    @njit(**INLINE)
    def dot(
        left: Any, i: int, right: Any, j: int, width: int, out: Any, at: int, step: int
    ) -> None:
        """Add sums over rows of data of left lines from i times right ones from j."""
        tile = zeros(n_vectors)
        for t in range(0, width, LANES):
            a = load(left, i * LINE + t, LINE, n_rows, 1)
            b = load(right, j * LINE + t, LINE, COLUMNS, 1)
            tile = add_outer(a, b, tile)
        add_lane_sums(tile, out, at, step, COLUMNS)

    return dot


_band_dot: Final = _make_dot(BAND)
_row_dot: Final = _make_dot(1)


@njit(**JIT)
def _add_dots(
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
    for first in range(0, whole, BAND):
        at = start + first * step
        for j in range(0, n_right if n_right else first + BAND, COLUMNS):
            _band_dot(left, first, right, j, width, out, at + j, step)
    for i in range(whole, n_left):
        at = start + i * step
        for j in range(0, n_right if n_right else i + 1, COLUMNS):
            _row_dot(left, i, right, j, width, out, at + j, step)


# --- log joint ------------------------------------------------------------------------


@njit(**JIT)
def _dense_joint(plan: Any, tile: Any, width: int) -> None:
    n_components, d = plan.means.shape
    half, means, factors = (
        constant(-0.5),
        plan.means.reshape(-1),
        plan.dense.reshape(-1),
    )
    length = plan.dense.shape[1]
    for k in range(n_components):
        offset = splat(plan.offsets, k, 1, 1)
        for t in range(0, width, _WIDTH):
            squares = _squared_distances(
                factors, k * length, tile.rows, t, means, k * d, d
            )
            joint = multiply_add(squares, half, offset)
            store(joint, tile.joint, k * LINE + t, 0, COLUMNS)


def _make_diagonal_joint(n: int) -> Any:
    n_vectors = n * COLUMNS

    @njit(**INLINE)
    def diagonal_joint(plan: Any, lines: Any, k: int, t: int, joint: Any) -> None:
        """Log joint of n components from k on, from lines less their centres."""
        d = plan.means.shape[1]
        centres, scales = plan.centres.reshape(-1), plan.scales.reshape(-1)
        tile = zeros(n_vectors)
        for i in range(d):
            line = load(lines, i * LINE + t, 0, 1, COLUMNS)
            of_centres = splat(centres, k * d + i, d, n)
            of_scales = splat(scales, k * d + i, d, n)
            tile = add_scaled_squares(line, of_centres, of_scales, tile)
        tile = multiply(tile, constant(-0.5))
        tile = add_to_rows(splat(plan.offsets, k, 1, n), tile)
        store(tile, joint, k * LINE + t, LINE, COLUMNS)

    return diagonal_joint


_band_joint: Final = _make_diagonal_joint(BAND)
_row_joint: Final = _make_diagonal_joint(1)


@njit(**JIT)
def _diagonal_joint(
    plan: Any, lines: Any, first: int, last: int, width: int, joint: Any
) -> None:
    """Log joint of the components from first to last."""
    whole = last - (last - first) % BAND
    for t in range(0, width, _WIDTH):
        for k in range(first, whole, BAND):
            _band_joint(plan, lines, k, t, joint)
        for k in range(whole, last):
            _row_joint(plan, lines, k, t, joint)


@njit(**JIT)
def log_joint(plan: Any, tile: Any, width: int) -> None:
    """Log of weight times density, components × rows."""
    n_components, d = plan.means.shape
    n_pooled = plan.pooled.shape[0]
    if plan.dense.shape[0] > 0:
        _dense_joint(plan, tile, width)
        return
    pooled, origins = plan.pooled.reshape(-1), plan.origins.reshape(-1)
    # Without pooled factors there is one round, of all components.
    for run in range(max(1, n_pooled)):
        lines, first, last = tile.rows, 0, n_components
        if n_pooled > 0:
            at = run * plan.pooled.shape[1]
            _multiply_lines(
                pooled, at, d, ZERO, lines, origins, run * d, width, tile.white
            )
            lines, first, last = tile.white, plan.starts[run], plan.starts[run + 1]
        _diagonal_joint(plan, lines, first, last, width, tile.joint)


@njit(**INLINE)
def normalise(tile: Any, first: int, last: int, width: int) -> None:
    """Turn one run's log joint into h = exp(½ (joint - its maximum)), row by row.

    Beside it log p(x) and the scale s: a responsibility is h² s. Its root h √s is what
    most sums are made with, and costs one square root a row.
    """
    for t in range(0, width, _WIDTH):
        top = load(tile.joint, first * LINE + t, 0, 1, COLUMNS)
        for k in range(first + 1, last):
            top = maximum(load(tile.joint, k * LINE + t, 0, 1, COLUMNS), top)
        total = zeros(COLUMNS)
        for k in range(first, last):
            line = load(tile.joint, k * LINE + t, 0, 1, COLUMNS)
            part = exp(multiply(subtract(line, top), constant(0.5)))
            store(part, tile.joint, k * LINE + t, 0, COLUMNS)
            total = multiply_add(part, part, total)
        store(add(top, log(total)), tile.log_prob, t, 0, COLUMNS)
        store(divide(constant(1.0), total), tile.scale, t, 0, COLUMNS)


@njit(**JIT)
def find_most_probable(tile: Any, n_components: int, width: int) -> None:
    """Numbers of the most probable components, into the line of scales."""
    for t in range(0, width, _WIDTH):
        top, best = load(tile.joint, t, 0, 1, COLUMNS), zeros(COLUMNS)
        for k in range(1, n_components):
            line = load(tile.joint, k * LINE + t, 0, 1, COLUMNS)
            best = where_above(line, top, constant(float(k)), best)
            top = maximum(line, top)
        store(best, tile.scale, t, 0, COLUMNS)


def _make_panel(n: int) -> Any:
    @njit(**INLINE)
    def add_panel(upper: Any, start: int, d: int, j: int, tile: Any, t: int) -> None:
        """Add to the products of n rows what four of their features make.

        The matrix is upper triangular, (d, d), row by row: what is below its diagonal
        does not count. Blocks of columns are laid from its right end on, so that none
        reaches beyond it; what the first one has of the second one is left out.
        """
        lines, out = tile.white, tile.work
        nothing, numbers = constant(0.0), load(tile.weights, 0, 0, 1, COLUMNS)
        next_j = min(j + BAND, d)
        after = d - (d - j - 1) // _WIDTH * _WIDTH
        at = max(0, after - _WIDTH)
        while at < next_j:
            products = load(out, t * d + at, d, n, COLUMNS)
            for i in range(j, next_j):
                row = load(upper, start + i * d + at, 0, 1, COLUMNS)
                row = where_above(numbers, constant(i - at - 0.5), row, nothing)
                row = where_above(constant(after - at - 0.5), numbers, row, nothing)
                line = splat(lines, i * LINE + t, 1, n)
                products = add_outer(line, row, products)
            store(products, out, t * d + at, d, COLUMNS)
            at, after = after, after + _WIDTH
        for whole in range(at, d, _WIDTH):
            products = load(out, t * d + whole, d, n, COLUMNS)
            for i in range(BAND):
                place = start + (j + i) * d + whole
                prefetch(upper, place + BAND * d)
                row = load(upper, place, 0, 1, COLUMNS)
                line = splat(lines, (j + i) * LINE + t, 1, n)
                products = add_outer(line, row, products)
            store(products, out, t * d + whole, d, COLUMNS)

    return add_panel


_band_panel: Final = _make_panel(BAND)
_row_panel: Final = _make_panel(1)


@njit(**JIT)
def _multiply_upper(upper: Any, start: int, d: int, tile: Any, n_rows: int) -> None:
    """Lines in `white` times a matrix that is not packed; row by row of data in `work`.

    The matrix is read once, as it lies in memory. Sums are made number by number as
    `_multiply_lines` makes them, so that the same bits come out.
    """
    whole = n_rows - n_rows % BAND
    for i in range(_WIDTH):
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
    for i in range(d):
        its = splat(means, mean + i, 1, 1)
        for t in range(0, width, _WIDTH):
            line = load(tile.rows, i * LINE + t, 0, 1, COLUMNS)
            store(subtract(line, its), tile.white, i * LINE + t, 0, COLUMNS)


@njit(**JIT)
def upper_joint(plan: Any, tile: Any, n_rows: int) -> None:
    """Log joint of a few rows, from matrices that are not packed."""
    n_components, d = plan.means.shape
    half, upper, means = constant(-0.5), plan.upper.reshape(-1), plan.means.reshape(-1)
    width, origins = whole_width(n_rows), plan.origins.reshape(-1)
    if plan.origins.shape[0] > 0:
        _centre_lines(tile, origins, ZERO, d, width)
        _multiply_upper(upper, ZERO, d, tile, n_rows)
        for i in range(d):
            for t in range(n_rows):
                tile.white[i * LINE + t] = tile.work[t * d + i]
        _diagonal_joint(plan, tile.white, ZERO, n_components, width, tile.joint)
        return
    for k in range(n_components):
        _centre_lines(tile, means, k * d, d, width)
        _multiply_upper(upper, k * d * d, d, tile, n_rows)
        offset = splat(plan.offsets, k, 1, 1)
        for t in range(0, n_rows, BAND):
            squares = zeros(BAND)
            for i in range(d):
                numbers = splat(tile.work, t * d + i, d, BAND)
                squares = add_squares(numbers, squares)
            # Each vector repeats one row's number: the next one's overwrites the rest.
            joint = multiply_add(squares, half, offset)
            store(joint, tile.joint, k * LINE + t, 1, 1)


# --- sums -----------------------------------------------------------------------------


@njit(**JIT)
def add_log_prob(tile: Any, width: int, sums: Any, run: int) -> None:
    """Add log p(x) by row weight."""
    nothing, total = constant(0.0), zeros(COLUMNS)
    for t in range(0, width, _WIDTH):
        weight = load(tile.weights, t, 0, 1, COLUMNS)
        part = multiply(weight, load(tile.log_prob, t, 0, 1, COLUMNS))
        # A row without weight adds nothing, whatever its density.
        total = add(total, where_above(weight, nothing, part, nothing))
    add_lane_sums(total, sums, run, 0, 1)


@njit(**JIT)
def share(plan: Any, tile: Any, first: int, last: int, width: int) -> None:
    """Turn h into what the form's sums are made with, w the row weights.

    Dense: √(w r). Pooled: √w r. Diagonal: w r.
    """
    nothing = constant(0.0)
    is_dense, is_pooled = plan.dense.shape[0] > 0, plan.pooled.shape[0] > 0
    for t in range(0, width, _WIDTH):
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
            line = load(tile.joint, k * LINE + t, 0, 1, COLUMNS)
            part = multiply(line, factor)
            if not is_dense:
                part = multiply(part, line)
            store(part, tile.joint, k * LINE + t, 0, COLUMNS)


@njit(**JIT)
def add_dense(plan: Any, tile: Any, width: int, sums: Any) -> None:
    """Add 1, e and e eᵀ of every component."""
    n_components, d = plan.means.shape
    step, means = stride(d, COLUMNS), plan.means.reshape(-1)
    for k in range(n_components):
        mass = zeros(COLUMNS)
        for t in range(0, width, _WIDTH):
            mass = add_squares(load(tile.joint, k * LINE + t, 0, 1, COLUMNS), mass)
        add_lane_sums(row_sums(mass, 1), sums.mass, k, 0, 1)
        for i in range(d):
            mean, total = splat(means, k * d + i, 1, 1), zeros(COLUMNS)
            for t in range(0, width, _WIDTH):
                line = load(tile.rows, i * LINE + t, 0, 1, COLUMNS)
                rooted = load(tile.joint, k * LINE + t, 0, 1, COLUMNS)
                part = multiply(subtract(line, mean), rooted)
                total = multiply_add(part, rooted, total)
                store(part, tile.work, i * LINE + t, 0, COLUMNS)
            add_lane_sums(row_sums(total, 1), sums.drift, k * d + i, 0, 1)
        _add_dots(tile.work, d, tile.work, ZERO, width, sums.dense, k * d * step, step)


def _make_diagonal_sums(n: int, n_columns: int) -> Any:
    n_vectors, step = n * n_columns, n_columns * LANES

    @njit(**INLINE)
    def diagonal_sums(
        tile: Any, k: int, width: int, means: Any, d: int, sums: Any
    ) -> None:
        """Add 1, e and e² of n components from k on."""
        mass = zeros(n_vectors)
        for t in range(0, width, step):
            shares = load(tile.joint, k * LINE + t, LINE, n, n_columns)
            mass = add(mass, shares)
        add_lane_sums(row_sums(mass, n), sums.mass, k, 1, 1)
        for i in range(d):
            centres = splat(means, k * d + i, d, n)
            drift, spread = zeros(n_vectors), zeros(n_vectors)
            for t in range(0, width, step):
                line = load(tile.rows, i * LINE + t, 0, 1, n_columns)
                deviation = subtract(line, centres)
                shares = load(tile.joint, k * LINE + t, LINE, n, n_columns)
                part = multiply(shares, deviation)
                drift = add(drift, part)
                spread = multiply_add(part, deviation, spread)
            add_lane_sums(row_sums(drift, n), sums.drift, k * d + i, d, 1)
            add_lane_sums(row_sums(spread, n), sums.diagonal, k * d + i, d, 1)

    return diagonal_sums


_band_sums: Final = _make_diagonal_sums(BAND, 1)
_row_sums: Final = _make_diagonal_sums(1, COLUMNS)


@njit(**JIT)
def add_diagonal(plan: Any, tile: Any, width: int, sums: Any) -> None:
    """Add 1, e and e² of every component."""
    n_components, d = plan.means.shape
    means, whole = plan.means.reshape(-1), n_components - n_components % BAND
    for k in range(0, whole, BAND):
        _band_sums(tile, k, width, means, d, sums)
    for k in range(whole, n_components):
        _row_sums(tile, k, width, means, d, sums)


@njit(**JIT)
def _root_rows(plan: Any, tile: Any, run: int, width: int) -> None:
    """Set the working lines to √w [y, 1]."""
    d, origins = plan.means.shape[1], plan.origins.reshape(-1)
    for t in range(0, width, _WIDTH):
        rooted = root(load(tile.weights, t, 0, 1, COLUMNS))
        for i in range(d):
            line = load(tile.rows, i * LINE + t, 0, 1, COLUMNS)
            y = subtract(line, splat(origins, run * d + i, 1, 1))
            store(multiply(y, rooted), tile.work, i * LINE + t, 0, COLUMNS)
        store(rooted, tile.work, d * LINE + t, 0, COLUMNS)


@njit(**JIT)
def add_pooled(plan: Any, tile: Any, width: int, sums: Any) -> None:
    """Add [y, 1] of every component; v vᵀ and r rᵀ of every run."""
    d, nothing = plan.means.shape[1], plan.nothing
    raw_step, step, shared_at = stride(d + 1, COLUMNS), stride(d, COLUMNS), 0
    for run in range(plan.pooled.shape[0]):
        first, last = plan.starts[run], plan.starts[run + 1]
        n = last - first
        shares = tile.joint[first * LINE :]
        _root_rows(plan, tile, run, width)
        at = first * raw_step
        _add_dots(shares, n, tile.work, d + 1, width, sums.raw, at, raw_step)
        shared_step = stride(n, COLUMNS)
        _add_dots(shares, n, shares, ZERO, width, sums.shared, shared_at, shared_step)
        shared_at += n * shared_step
        _multiply_lines(
            plan.mixing, first * d, d, n, shares, nothing, ZERO, width, tile.white
        )
        for at in range(0, d * LINE, LINE):
            for t in range(at, at + width, _WIDTH):
                y = load(tile.work, t, 0, 1, COLUMNS)
                v = subtract(y, load(tile.white, t, 0, 1, COLUMNS))
                store(v, tile.white, t, 0, COLUMNS)
        at = run * d * step
        _add_dots(tile.white, d, tile.white, ZERO, width, sums.residual, at, step)
