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
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple, final

import numpy as np
from numba import njit
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from daskgmm.vectors import (
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

Array = NDArray[np.float64]

_AHEAD: Final = 2048
"""Numbers ahead of those being read that are fetched: far enough for slow memory."""
_BAND: Final = 4
"""Rows of a register tile."""
_WIDTH: Final = COLUMNS * LANES
"""Rows of data in a register tile."""
_TILE: Final = 256 // _WIDTH * _WIDTH
"""Rows of data in a tile, if they are not too wide."""
_TILE_NUMBERS: Final = 2**16
"""Numbers of a tile, so that it stays in the second-level cache."""
_LINE: Final = _TILE + LANES
"""From line to line. A power of two would put all into the same sets of the cache."""

_JIT: Final[dict[str, Any]] = {
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
_INLINE: Final[dict[str, Any]] = {**_JIT, "forceinline": True}
"""For what hands on register tiles: a call would write them to memory."""
_ENTRY: Final[dict[str, Any]] = {**_JIT, "cache": True, "no_cpython_wrapper": False}


class Plan(NamedTuple):
    """What the kernel needs of the mixtures of R runs, K components in all.

    The runs' components stand one after the other: those of run r are numbers
    ``starts[r]`` to ``starts[r + 1]``. The form is dense if `dense` has components,
    pooled if `pooled` has runs, else diagonal.
    """

    starts: NDArray[np.int64]  # (R + 1,)
    offsets: Array  # (K,) log weight + log normalising constant
    means: Array  # (K, d)
    dense: Array  # (K, F) `pack_triangular` of the components, or (0, 0)
    pooled: Array  # (R, F) `pack_triangular` of the runs, or (0, 0)
    origins: Array  # (R, d) where the rows of pooled runs are measured from, or (0, d)
    mixing: Array  # (K d,) `pack` of the means about it, run by run, or (0,)
    centres: Array  # (K, d) means: of whitened rows if pooled; or (0, d) if dense
    scales: Array  # (K, d) diagonal factors: ones if pooled; or (0, d) if dense
    nothing: Array  # (K,) zeros


class Sums(NamedTuple):
    """What the kernel adds up over rows, weighted by responsibility and row weight.

    The rows of a matrix stand `stride` of its columns apart, and of a symmetric one
    the lower triangle counts. [y, 1] is a row with a one behind it. Sums that the form
    does not make have length 0.
    """

    mass: Array  # (K,): of 1, unless pooled
    drift: Array  # (K, d): of e, unless pooled
    dense: Array  # (K, d, stride): of e eᵀ
    diagonal: Array  # (K, d): of e²
    raw: Array  # (K, stride of d + 1): of [y, 1], if pooled
    residual: Array  # (R, d, stride): of v vᵀ, by row weight, if pooled
    shared: Array  # (Σ K' stride of K',): of r rᵀ, by row weight, run by run, if pooled
    log_prob: Array  # (R,): of log p(x), by row weight
    weight: Array  # (1,): of the row weights


class Rows(NamedTuple):
    """A block of rows, (n, d), as they lie in memory: one kind for all layouts.

    The numbers are in one of the two flat arrays, the other is empty. What lies side by
    side is either a row or, where there are places of columns, a feature.
    """

    double: Array
    single: NDArray[np.float32]
    n_rows: int
    step: int  # from row to row
    columns: NDArray[np.int64]  # (d,) or (0,): where each column begins


@final
@dataclass(frozen=True, slots=True)
class Columns:
    """Rows, (n, d), each column of which lies in memory of its own, as in a table.

    Attributes
    ----------
    columns : tuple of ndarray of shape (n,)
        All float64 or all float32, each with its numbers side by side.
    """

    columns: tuple[NDArray[Any], ...]

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, rows: slice) -> Columns:
        return Columns(tuple(column[rows] for column in self.columns))

    def array(self) -> NDArray[Any]:
        """A copy as one array."""
        return np.stack(self.columns, axis=1)


Part = tuple[NDArray[Any] | Columns, Array | None]
"""Rows of a block, and their weights or None for ones."""


class _Tile(NamedTuple):
    """Where a tile of rows is worked on: lines that stand `_LINE` numbers apart."""

    rows: Array  # d lines, as they are
    work: Array  # d + 1 lines
    white: Array  # d lines
    joint: Array  # K lines: log joint, then what is made of it
    weights: Array  # one line each
    log_prob: Array
    scale: Array


def stride(n_columns: int) -> int:
    """From row to row of a matrix in `Sums` with so many columns."""
    return -(-n_columns // COLUMNS) * COLUMNS


_stride: Final = njit(**_INLINE)(stride)


def scratch_size(plan: Plan) -> int:
    """Numbers of scratch memory that a tile needs."""
    n_components, d = plan.means.shape
    n_lines = 3 * d + 1 + n_components + 3
    # A register tile may reach beyond the last line of each of the four areas.
    return int((n_lines + 4 * COLUMNS) * _LINE)


@njit(**_JIT)
def _tile(plan: Any, scratch: Any) -> Any:
    """Cut a tile out of scratch memory."""
    n_components, d = plan.means.shape
    work = (d + COLUMNS) * _LINE
    white = work + (d + 1 + COLUMNS) * _LINE
    joint = white + (d + COLUMNS) * _LINE
    single = joint + (n_components + COLUMNS) * _LINE
    return _Tile(
        rows=scratch[:work],
        work=scratch[work:white],
        white=scratch[white:joint],
        joint=scratch[joint:single],
        weights=scratch[single : single + _LINE],
        log_prob=scratch[single + _LINE : single + 2 * _LINE],
        scale=scratch[single + 2 * _LINE : single + 3 * _LINE],
    )


def tile_rows(d: int) -> int:
    """Most rows of a tile: sums are added up tile by tile."""
    return min(_TILE, max(1, _TILE_NUMBERS // d // _WIDTH) * _WIDTH)


_tile_rows: Final = njit(**_INLINE)(tile_rows)


@njit(**_INLINE)
def _whole(n: int) -> int:
    """Up to whole register tiles."""
    return -(-n // _WIDTH) * _WIDTH


@njit(**_JIT)
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
            store(transpose(square), lines, i * _LINE + first, _LINE, 1)
        for i in range(blocks, d):
            for t in range(LANES):
                lines[i * _LINE + first + t] = x[at + t * step + i]
    for t in range(together, _whole(inside)):
        at = (start + min(t, inside - 1)) * step
        for i in range(d):
            lines[i * _LINE + t] = x[at + i]


@njit(**_JIT)
def _load_columns(x: Any, columns: Any, start: int, inside: int, lines: Any) -> None:
    """The same from columns, which are lines already."""
    together = inside // LANES * LANES
    for i in range(columns.shape[0]):
        at, line = columns[i] + start, i * _LINE
        for t in range(0, together, LANES):
            # The next tile's part of the column is on another page.
            prefetch(x, at + t + inside)
            store(load(x, at + t, 0, 1, 1), lines, line + t, 0, 1)
        for t in range(together, _whole(inside)):
            lines[line + t] = x[at + min(t, inside - 1)]


@njit(**_JIT)
def _load(rows: Any, d: int, start: int, inside: int, lines: Any) -> None:
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


@njit(**_JIT)
def _set_weights(weights: Any, start: int, inside: int, line: Any) -> float:
    """Weights of a tile's rows, zero past the end; returns their sum."""
    total = float(inside)
    if weights.shape[0] > 0:
        total = 0.0
        for t in range(inside):
            line[t] = weights[start + t]
            total += weights[start + t]
    elif start == 0 or inside < _TILE:
        line[:inside] = 1.0  # they stay from tile to tile
    for t in range(inside, _whole(inside)):
        line[t] = 0.0
    return total


# --- products in register tiles -------------------------------------------------------


def _make_product(n_rows: int) -> Any:
    n_vectors = n_rows * COLUMNS

    @njit(**_INLINE)
    def product(
        packed: Any, at: int, n: int, lines: Any, t: int, means: Any, mean: int
    ) -> Any:
        """Some rows of a packed matrix times n lines less a mean."""
        tile = zeros(n_vectors)
        for j in range(n):
            line = load(lines, j * _LINE + t, 0, 1, COLUMNS)
            line = subtract(line, splat(means, mean + j, 1, 1))
            numbers = splat(packed, at + j * n_rows, 1, n_rows)
            tile = add_outer(numbers, line, tile)
        return tile

    return product


_band_product: Final = _make_product(_BAND)
_row_product: Final = _make_product(1)


@njit(**_INLINE)
def _squared_distances(
    packed: Any, at: int, lines: Any, t: int, means: Any, mean: int, d: int
) -> Any:
    """Squares of a packed triangular matrix times lines less a mean, summed."""
    sums = zeros(COLUMNS)
    whole = d - d % _BAND
    for last in range(_BAND, whole + 1, _BAND):
        tile = _band_product(packed, at, last, lines, t, means, mean)
        sums = add_squares(tile, sums)
        at += _BAND * last
    for last in range(whole + 1, d + 1):
        tile = _row_product(packed, at, last, lines, t, means, mean)
        sums = add_squares(tile, sums)
        at += last
    return sums


@njit(**_JIT)
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
    start, whole = at, n_rows - n_rows % _BAND
    for t in range(0, width, _WIDTH):
        at = start
        for first in range(0, whole, _BAND):
            length = n if n else first + _BAND
            tile = _band_product(packed, at, length, lines, t, means, mean)
            store(tile, out, first * _LINE + t, _LINE, COLUMNS)
            at += _BAND * length
        for i in range(whole, n_rows):
            length = n if n else i + 1
            tile = _row_product(packed, at, length, lines, t, means, mean)
            store(tile, out, i * _LINE + t, 0, COLUMNS)
            at += length


def _make_dot(n_rows: int) -> Any:
    n_vectors = n_rows * COLUMNS

    @njit(**_INLINE)
    def dot(
        left: Any, i: int, right: Any, j: int, width: int, out: Any, at: int, step: int
    ) -> None:
        """Add sums over rows of data of left lines from i times right ones from j."""
        tile = zeros(n_vectors)
        for t in range(0, width, LANES):
            a = load(left, i * _LINE + t, _LINE, n_rows, 1)
            b = load(right, j * _LINE + t, _LINE, COLUMNS, 1)
            tile = add_outer(a, b, tile)
        add_lane_sums(tile, out, at, step, COLUMNS)

    return dot


_band_dot: Final = _make_dot(_BAND)
_row_dot: Final = _make_dot(1)


@njit(**_JIT)
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
    whole = n_left - n_left % _BAND
    for first in range(0, whole, _BAND):
        at = start + first * step
        for j in range(0, n_right if n_right else first + _BAND, COLUMNS):
            _band_dot(left, first, right, j, width, out, at + j, step)
    for i in range(whole, n_left):
        at = start + i * step
        for j in range(0, n_right if n_right else i + 1, COLUMNS):
            _row_dot(left, i, right, j, width, out, at + j, step)


# --- log joint ------------------------------------------------------------------------


@njit(**_JIT)
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
            store(joint, tile.joint, k * _LINE + t, 0, COLUMNS)


def _make_diagonal_joint(n: int) -> Any:
    n_vectors = n * COLUMNS

    @njit(**_INLINE)
    def diagonal_joint(plan: Any, lines: Any, k: int, t: int, joint: Any) -> None:
        """Log joint of n components from k on, from lines less their centres."""
        d = plan.means.shape[1]
        centres, scales = plan.centres.reshape(-1), plan.scales.reshape(-1)
        tile = zeros(n_vectors)
        for i in range(d):
            line = load(lines, i * _LINE + t, 0, 1, COLUMNS)
            of_centres = splat(centres, k * d + i, d, n)
            of_scales = splat(scales, k * d + i, d, n)
            tile = add_scaled_squares(line, of_centres, of_scales, tile)
        tile = multiply(tile, constant(-0.5))
        tile = add_to_rows(splat(plan.offsets, k, 1, n), tile)
        store(tile, joint, k * _LINE + t, _LINE, COLUMNS)

    return diagonal_joint


_band_joint: Final = _make_diagonal_joint(_BAND)
_row_joint: Final = _make_diagonal_joint(1)


@njit(**_JIT)
def _diagonal_joint(
    plan: Any, lines: Any, first: int, last: int, width: int, joint: Any
) -> None:
    """Log joint of the components from first to last."""
    whole = last - (last - first) % _BAND
    for t in range(0, width, _WIDTH):
        for k in range(first, whole, _BAND):
            _band_joint(plan, lines, k, t, joint)
        for k in range(whole, last):
            _row_joint(plan, lines, k, t, joint)


@njit(**_JIT)
def _log_joint(plan: Any, tile: Any, width: int) -> None:
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
                pooled, at, d, 0, lines, origins, run * d, width, tile.white
            )
            lines, first, last = tile.white, plan.starts[run], plan.starts[run + 1]
        _diagonal_joint(plan, lines, first, last, width, tile.joint)


@njit(**_INLINE)
def _normalise(tile: Any, first: int, last: int, width: int) -> None:
    """Turn one run's log joint into h = exp(½ (joint - its maximum)), row by row.

    Beside it log p(x) and the scale s: a responsibility is h² s. Its root h √s is what
    most sums are made with, and costs one square root a row.
    """
    for t in range(0, width, _WIDTH):
        top = load(tile.joint, first * _LINE + t, 0, 1, COLUMNS)
        for k in range(first + 1, last):
            top = maximum(load(tile.joint, k * _LINE + t, 0, 1, COLUMNS), top)
        total = zeros(COLUMNS)
        for k in range(first, last):
            line = load(tile.joint, k * _LINE + t, 0, 1, COLUMNS)
            part = exp(multiply(subtract(line, top), constant(0.5)))
            store(part, tile.joint, k * _LINE + t, 0, COLUMNS)
            total = multiply_add(part, part, total)
        store(add(top, log(total)), tile.log_prob, t, 0, COLUMNS)
        store(divide(constant(1.0), total), tile.scale, t, 0, COLUMNS)


# --- sums -----------------------------------------------------------------------------


@njit(**_JIT)
def _add_log_prob(tile: Any, width: int, sums: Any, run: int) -> None:
    """Add log p(x) by row weight."""
    nothing, total = constant(0.0), zeros(COLUMNS)
    for t in range(0, width, _WIDTH):
        weight = load(tile.weights, t, 0, 1, COLUMNS)
        part = multiply(weight, load(tile.log_prob, t, 0, 1, COLUMNS))
        # A row without weight adds nothing, whatever its density.
        total = add(total, where_above(weight, nothing, part, nothing))
    add_lane_sums(total, sums, run, 0, 1)


@njit(**_JIT)
def _share(plan: Any, tile: Any, first: int, last: int, width: int) -> None:
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
            line = load(tile.joint, k * _LINE + t, 0, 1, COLUMNS)
            part = multiply(line, factor)
            if not is_dense:
                part = multiply(part, line)
            store(part, tile.joint, k * _LINE + t, 0, COLUMNS)


@njit(**_JIT)
def _add_dense(plan: Any, tile: Any, width: int, sums: Any) -> None:
    """Add 1, e and e eᵀ of every component."""
    n_components, d = plan.means.shape
    step, means = sums.dense.shape[2], plan.means.reshape(-1)
    dense, drift = sums.dense.reshape(-1), sums.drift.reshape(-1)
    for k in range(n_components):
        mass = zeros(COLUMNS)
        for t in range(0, width, _WIDTH):
            mass = add_squares(load(tile.joint, k * _LINE + t, 0, 1, COLUMNS), mass)
        add_lane_sums(row_sums(mass, 1), sums.mass, k, 0, 1)
        for i in range(d):
            mean, total = splat(means, k * d + i, 1, 1), zeros(COLUMNS)
            for t in range(0, width, _WIDTH):
                line = load(tile.rows, i * _LINE + t, 0, 1, COLUMNS)
                rooted = load(tile.joint, k * _LINE + t, 0, 1, COLUMNS)
                part = multiply(subtract(line, mean), rooted)
                total = multiply_add(part, rooted, total)
                store(part, tile.work, i * _LINE + t, 0, COLUMNS)
            add_lane_sums(row_sums(total, 1), drift, k * d + i, 0, 1)
        _add_dots(tile.work, d, tile.work, 0, width, dense, k * d * step, step)


def _make_diagonal_sums(n: int, n_columns: int) -> Any:
    n_vectors, step = n * n_columns, n_columns * LANES

    @njit(**_INLINE)
    def diagonal_sums(
        tile: Any, k: int, width: int, means: Any, d: int, sums: Any
    ) -> None:
        """Add 1, e and e² of n components from k on."""
        mass = zeros(n_vectors)
        for t in range(0, width, step):
            shares = load(tile.joint, k * _LINE + t, _LINE, n, n_columns)
            mass = add(mass, shares)
        add_lane_sums(row_sums(mass, n), sums.mass, k, 1, 1)
        drift_sums, spread_sums = sums.drift.reshape(-1), sums.diagonal.reshape(-1)
        for i in range(d):
            centres = splat(means, k * d + i, d, n)
            drift, spread = zeros(n_vectors), zeros(n_vectors)
            for t in range(0, width, step):
                line = load(tile.rows, i * _LINE + t, 0, 1, n_columns)
                deviation = subtract(line, centres)
                shares = load(tile.joint, k * _LINE + t, _LINE, n, n_columns)
                part = multiply(shares, deviation)
                drift = add(drift, part)
                spread = multiply_add(part, deviation, spread)
            add_lane_sums(row_sums(drift, n), drift_sums, k * d + i, d, 1)
            add_lane_sums(row_sums(spread, n), spread_sums, k * d + i, d, 1)

    return diagonal_sums


_band_sums: Final = _make_diagonal_sums(_BAND, 1)
_row_sums: Final = _make_diagonal_sums(1, COLUMNS)


@njit(**_JIT)
def _add_diagonal(plan: Any, tile: Any, width: int, sums: Any) -> None:
    """Add 1, e and e² of every component."""
    n_components, d = plan.means.shape
    means, whole = plan.means.reshape(-1), n_components - n_components % _BAND
    for k in range(0, whole, _BAND):
        _band_sums(tile, k, width, means, d, sums)
    for k in range(whole, n_components):
        _row_sums(tile, k, width, means, d, sums)


@njit(**_JIT)
def _root_rows(plan: Any, tile: Any, run: int, width: int) -> None:
    """Set the working lines to √w [y, 1]."""
    d, origins = plan.means.shape[1], plan.origins.reshape(-1)
    for t in range(0, width, _WIDTH):
        rooted = root(load(tile.weights, t, 0, 1, COLUMNS))
        for i in range(d):
            line = load(tile.rows, i * _LINE + t, 0, 1, COLUMNS)
            y = subtract(line, splat(origins, run * d + i, 1, 1))
            store(multiply(y, rooted), tile.work, i * _LINE + t, 0, COLUMNS)
        store(rooted, tile.work, d * _LINE + t, 0, COLUMNS)


@njit(**_JIT)
def _add_pooled(plan: Any, tile: Any, width: int, sums: Any) -> None:
    """Add [y, 1] of every component; v vᵀ and r rᵀ of every run."""
    d, nothing = plan.means.shape[1], plan.nothing
    raw, raw_step = sums.raw.reshape(-1), sums.raw.shape[1]
    residual, step = sums.residual.reshape(-1), sums.residual.shape[2]
    shared_at = 0
    for run in range(plan.pooled.shape[0]):
        first, last = plan.starts[run], plan.starts[run + 1]
        n = last - first
        shares = tile.joint[first * _LINE :]
        _root_rows(plan, tile, run, width)
        _add_dots(shares, n, tile.work, d + 1, width, raw, first * raw_step, raw_step)
        shared_step = _stride(n)
        _add_dots(shares, n, shares, 0, width, sums.shared, shared_at, shared_step)
        shared_at += n * shared_step
        _multiply_lines(
            plan.mixing, first * d, d, n, shares, nothing, 0, width, tile.white
        )
        for at in range(0, d * _LINE, _LINE):
            for t in range(at, at + width, _WIDTH):
                y = load(tile.work, t, 0, 1, COLUMNS)
                v = subtract(y, load(tile.white, t, 0, 1, COLUMNS))
                store(v, tile.white, t, 0, COLUMNS)
        at = run * d * step
        _add_dots(tile.white, d, tile.white, 0, width, residual, at, step)


@njit(**_ENTRY)
def accumulate(plan: Any, rows: Any, weights: Any, sums: Any, scratch: Any) -> None:
    """E-step of a block: add to `sums` what its rows give for every component.

    Parameters
    ----------
    plan : Plan
    rows : Rows
    weights : ndarray of shape (n,), or (0,) for weights of one
    sums : Sums
        Added to in place.
    scratch : ndarray of shape (`scratch_size`,)
    """
    d = plan.means.shape[1]
    n_rows, most = rows.n_rows, _tile_rows(d)
    tile = _tile(plan, scratch)
    for start in range(0, n_rows, most):
        inside = min(most, n_rows - start)
        width = _whole(inside)
        _load(rows, d, start, inside, tile.rows)
        sums.weight[0] += _set_weights(weights, start, inside, tile.weights)
        _log_joint(plan, tile, width)
        for run in range(plan.starts.shape[0] - 1):
            first, last = plan.starts[run], plan.starts[run + 1]
            _normalise(tile, first, last, width)
            _add_log_prob(tile, width, sums.log_prob, run)
            _share(plan, tile, first, last, width)
        if plan.dense.shape[0] > 0:
            _add_dense(plan, tile, width, sums)
        elif plan.pooled.shape[0] > 0:
            _add_pooled(plan, tile, width, sums)
        else:
            _add_diagonal(plan, tile, width, sums)


@njit(**_ENTRY)
def evaluate(
    plan: Any,
    rows: Any,
    labels: Any,
    responsibilities: Any,
    log_prob: Any,
    scratch: Any,
) -> None:
    """Posterior of a block's rows under one mixture, into whichever output has rows.

    Parameters
    ----------
    plan : Plan
        Of a single run.
    rows : Rows
    labels : ndarray of int64, shape (n,) or (0,)
        The most probable component, the first of those that tie.
    responsibilities : ndarray of shape (n, K) or (0, K)
    log_prob : ndarray of shape (n,) or (0,)
    scratch : ndarray of shape (`scratch_size`,)
    """
    n_components, d = plan.means.shape
    n_rows, most = rows.n_rows, _tile_rows(d)
    tile = _tile(plan, scratch)
    for start in range(0, n_rows, most):
        inside = min(most, n_rows - start)
        width = _whole(inside)
        _load(rows, d, start, inside, tile.rows)
        _log_joint(plan, tile, width)
        if labels.shape[0] > 0:
            _find_most_probable(tile, n_components, width)
            for t in range(inside):
                labels[start + t] = np.int64(tile.scale[t])
        else:
            _normalise(tile, 0, n_components, width)
        for t in range(inside if responsibilities.shape[0] > 0 else 0):
            for k in range(n_components):
                h = tile.joint[k * _LINE + t]
                responsibilities[start + t, k] = h * h * tile.scale[t]
        for t in range(inside if log_prob.shape[0] > 0 else 0):
            log_prob[start + t] = tile.log_prob[t]


@njit(**_JIT)
def _find_most_probable(tile: Any, n_components: int, width: int) -> None:
    """Numbers of the most probable components, into the line of scales."""
    for t in range(0, width, _WIDTH):
        top, best = load(tile.joint, t, 0, 1, COLUMNS), zeros(COLUMNS)
        for k in range(1, n_components):
            line = load(tile.joint, k * _LINE + t, 0, 1, COLUMNS)
            best = where_above(line, top, constant(float(k)), best)
            top = maximum(line, top)
        store(best, tile.scale, t, 0, COLUMNS)


@njit(**_JIT)
def _any_not_finite(x: Any, rows: Any, d: int) -> bool:
    """Whether there is a NaN or infinity."""
    n, length = (d, rows.n_rows) if rows.columns.shape[0] > 0 else (rows.n_rows, d)
    bad = 0
    if rows.columns.shape[0] == 0 and rows.step == d:
        n, length = 1, n * length
    for i in range(n):
        first = rows.columns[i] if rows.columns.shape[0] > 0 else i * rows.step
        for value in x[first : first + length]:
            bad += not (abs(value) < np.inf)
    return bad > 0


@njit(**_JIT)
def _first_not_finite(x: Any, rows: Any, d: int) -> int:
    by_column = rows.columns.shape[0] > 0
    for i in range(rows.n_rows if _any_not_finite(x, rows, d) else 0):
        for j in range(d):
            at = rows.columns[j] + i if by_column else i * rows.step + j
            if not (abs(x[at]) < np.inf):
                return i * d + j
    return -1


@njit(**_ENTRY)
def first_not_finite(rows: Any, d: int) -> int:
    """Row times d plus column of the first NaN or infinity of rows; -1 without one."""
    found: int
    if rows.double.shape[0] > 0:
        found = _first_not_finite(rows.double, rows, d)
    else:
        found = _first_not_finite(rows.single, rows, d)
    return found


def pack(matrices: Array) -> Array:
    """Matrices (C, m, n) as (C, m n): bands of four rows, each column by column, then
    the rows that are left.

    So the numbers that a register tile takes in turn stand side by side.
    """
    return _pack(matrices, triangular=False)


def pack_triangular(matrices: Array) -> Array:
    """Lower triangular matrices (C, d, d) as (C, F): bands without columns of zeros."""
    return _pack(matrices, triangular=True)


def _pack(matrices: Array, *, triangular: bool) -> Array:
    n, n_rows, n_columns = matrices.shape
    whole = n_rows - n_rows % _BAND
    ends = [*range(0, whole, _BAND), *range(whole, n_rows + 1)]
    bands = []
    for first, last in pairwise(ends):
        band = matrices[:, first:last, : last if triangular else n_columns]
        bands.append(band.swapaxes(1, 2).reshape(n, -1))
    return np.concatenate(bands, axis=1)


def readonly(array: NDArray[Any]) -> NDArray[Any]:
    """The array in C order, aligned and not writable.

    Arrays that came through a scheduler may or may not be writable; compiled code
    would be made once for each kind.
    """
    if not (array.flags.c_contiguous and array.flags.aligned):
        array = np.require(array, requirements=["C", "A"])
    view = array.view()
    view.setflags(write=False)
    return view


_NONE: Final = readonly(np.empty(0))
_NONE_SINGLE: Final = readonly(np.empty(0, dtype=np.float32))
_NO_COLUMNS: Final = np.empty(0, dtype=np.int64)


def as_rows(x: NDArray[Any] | Columns) -> Rows:
    """Rows, (n, d), float64 or float32, as compiled code takes them.

    They are copied only if neither the numbers of a row nor those of a column lie side
    by side. Whoever calls holds `x` for as long as the rows are used.
    """
    if isinstance(x, Columns):
        return _as_columns(x)
    n_rows, d = x.shape
    if _side_by_side(x.T):
        step = x.strides[1] // x.itemsize if d > 1 else n_rows
        reach = (d - 1) * step + n_rows if x.size else 0
        return _rows(x, reach, n_rows, 0, np.arange(d) * step)
    if not _side_by_side(x):
        x = np.require(x, requirements=["C", "A"])
    step = x.strides[0] // x.itemsize if n_rows > 1 else d
    return _rows(x, (n_rows - 1) * step + d if x.size else 0, n_rows, step, _NO_COLUMNS)


def _as_columns(x: Columns) -> Rows:
    """Columns as they lie in memory, counted from the first one there.

    The flat array reaches over all that lies between them, which nobody touches.
    """
    places = [column.__array_interface__["data"][0] for column in x.columns]
    size = x.columns[0].itemsize
    if any(place % size for place in places):
        return as_rows(x.array())
    lowest = min(places)
    distances = [(place - lowest) // size for place in places]
    first = x.columns[places.index(lowest)]
    return _rows(first, max(distances) + len(x), len(x), 0, np.array(distances))


def _rows(
    x: NDArray[Any], reach: int, n_rows: int, step: int, columns: NDArray[np.int64]
) -> Rows:
    """Rows that begin where `x` does, and so many numbers from there on."""
    flat = as_strided(x, (reach,), (x.itemsize,), writeable=False)
    if x.dtype == np.float64:
        return Rows(flat, _NONE_SINGLE, n_rows, step, columns)
    return Rows(_NONE, flat, n_rows, step, columns)


def _side_by_side(x: NDArray[Any]) -> bool:
    """Whether the numbers of each row are, and rows stand one after the other."""
    n, length = x.shape
    ahead, within = x.strides
    return (
        x.flags.aligned
        and (within == x.itemsize or length < 2)
        and (n < 2 or (ahead >= 0 and ahead % x.itemsize == 0))
    )
