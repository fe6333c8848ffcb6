"""How rows, mixtures and sums lie in memory when the kernel reads and writes them.

Nothing here depends on the machine. What travels between processes, plans and sums, is
laid out without padding, so that it means the same on all of them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple, final

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from daskgmm.kernel.compiling import for_both

Array = NDArray[np.float64]

BAND: Final = 4
"""Rows of a register tile, and of a band of a packed matrix."""
WIDE: Final = 16
"""Features from which on the dense form has rows by row, too, and lists of them."""
SPILL: Final = 64
"""Numbers behind padded matrices: whole vectors of a row reach beyond its end."""
_FOUR: Final = np.dtype((np.void, BAND * 8))
"""The numbers of a column of a band."""
_AT_ONCE: Final = 2**12
"""Numbers of a matrix up to which to pack band by band costs more than the moves."""


class Plan(NamedTuple):
    """What the kernel needs of the mixtures of R runs, K components in all.

    The runs' components stand one after the other: those of run r are numbers
    ``starts[r]`` to ``starts[r + 1]``. The form is dense if `dense` has components,
    pooled if `pooled` has runs, natural if there is a `quadratic` part, else diagonal.
    In the natural form, some components may stand `apart`: these are diagonal.
    To ask one run about a few rows, `upper` stands instead of `dense`, or of `pooled`
    if there are `origins`.

    All is float64, or all is float32: then the kernel computes in float32, but for its
    sums over tiles, and takes rows of float32 alone. So that nothing is lost where they
    lie far from zero, means are the sums of two numbers, `means` and `lows`; or rows,
    and with them means and origins, are measured from `shift`, the sum of its two rows.
    """

    starts: NDArray[np.int64]  # (R + 1,)
    offsets: Array  # (K,) log weight + log normalising constant
    means: Array  # (K, d)
    dense: Array  # (K, F) `pack_triangular` of the components, or (0, 0)
    upper: Array  # (K, d, d), or (1, d, d) if pooled: not packed, transposed
    pooled: Array  # (R, F) `pack_triangular` of the runs, or (0, 0)
    origins: Array  # (R, d) what rows are measured from, or (0, d) if dense, diagonal
    mixing: Array  # (K d,) `pack` of the means about it, run by run, or (0,)
    apart: NDArray[np.int64]  # (A,) components that are diagonal all the same
    centres: Array  # (K, d) means: of whitened rows if pooled; or (A, d)
    scales: Array  # (K, d) diagonal factors: ones if pooled; or (A, d)
    linear: Array  # (K d,) `pack` of λ times the means about it, run by run, or (0,)
    quadratic: Array  # (K,) -½ λ if features have one λ, (K d,) `pack` of all, or (0,)
    lows: Array  # (K, d) if float32, and dense or diagonal; or (A, d)
    shift: Array  # (2, d) if float32, and pooled or natural; or (0, d)
    axes: Array  # (⌈K/2⌉, 4 d), see `mixtures.bounds`, if dense; or (0, 0)
    axis_means: Array  # (K, 4), the same


class Sums(NamedTuple):
    """What the kernel adds up over rows, weighted by responsibility and row weight.

    Of a symmetric matrix with n rows the upper triangle is kept, row by row:
    T(n) = n (n + 1) / 2 numbers. [y, 1] is a row with a one behind it. Sums that the
    form does not make have length 0.
    """

    mass: Array  # (K,): of 1, if dense or diagonal; (A,) if natural
    drift: Array  # (K, d): of e, the same; (A, d)
    dense: Array  # (K, T(d)): of e eᵀ
    diagonal: Array  # (K, d): of e², if diagonal; (A, d) if natural
    raw: Array  # (K, d + 1): of [y, 1], if pooled; of [y, 1, ‖y‖²]; or of [y, y², 1]
    residual: Array  # (R, T(d)): of v vᵀ, by row weight, if pooled
    shared: Array  # (Σ T(K'),): of r rᵀ, by row weight, run by run, if pooled
    log_prob: Array  # (R,): of log p(x), by row weight
    weight: Array  # (1,): of the row weights


class RowView(NamedTuple):
    """A block of rows, (n, d), as they lie in memory: one kind for all layouts.

    The numbers are in one of the two flat arrays, the other is empty. What lies side by
    side is either a row or, where there are places of columns, a feature.
    """

    double: Array
    single: NDArray[np.float32]
    n_rows: int
    n_columns: int
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


@for_both
def triangle(n: int) -> int:
    """Numbers of a triangle with n rows."""
    return n * (n + 1) // 2


@for_both
def packed_triangle(n: int) -> int:
    """Numbers of a lower triangular matrix as `pack_triangular` has it."""
    n_bands = n // BAND
    whole = n_bands * BAND
    in_bands = BAND * BAND * triangle(n_bands)
    return in_bands + triangle(n) - triangle(whole)


@for_both
def stride(n_columns: int, whole: int) -> int:
    """The next multiple of `whole` columns."""
    return -(-n_columns // whole) * whole


@for_both
def _symmetric(n: int, whole: int) -> int:
    """Numbers that are kept of a symmetric matrix with n rows; see `sums_ends`."""
    return n * stride(n, whole) if whole > 0 else triangle(n)


@for_both
def is_wide(plan: Plan) -> bool:
    """Whether a plan of the dense form has so many features."""
    wide: bool = plan.dense.shape[0] > 0 and plan.means.shape[1] >= WIDE
    return wide


@for_both
def is_isotropic(plan: Plan) -> bool:
    """Whether a plan of the natural form has one precision for all features."""
    same: bool = plan.quadratic.shape[0] == plan.offsets.shape[0]
    return same


@for_both
def raw_width(plan: Plan) -> int:
    """Numbers of a row of `Sums.raw`."""
    d: int = plan.means.shape[1]
    if plan.quadratic.shape[0] == 0:
        return d + 1
    return d + 2 if is_isotropic(plan) else 2 * d + 1


@for_both
def sums_ends(plan: Plan, whole: int) -> tuple[int, ...]:
    """Where the fields of `Sums` end, one after the other, if `whole` is 0.

    Else while they are added up: a symmetric matrix is a square then, and its rows, as
    those of `raw`, are filled up to a multiple of `whole` columns.
    """
    n, d = plan.means.shape
    n_runs, n_dense = plan.starts.shape[0] - 1, plan.dense.shape[0]
    n_pooled, columns = plan.pooled.shape[0], raw_width(plan)
    has_raw = n_pooled > 0 or plan.quadratic.shape[0] > 0
    mass = plan.apart.shape[0] if has_raw else n
    drift = mass + mass * d
    dense = drift + n_dense * _symmetric(d, whole)
    dense += SPILL if n_dense > 0 and whole > 0 else 0
    diagonal = dense + (mass * d if n_dense == 0 else 0)
    n_raw = n if has_raw else 0
    raw = diagonal + n_raw * (stride(columns, whole) if whole > 0 else columns)
    residual = raw + n_pooled * _symmetric(d, whole)
    shared = residual
    for run in range(n_runs if n_pooled > 0 else 0):
        shared += _symmetric(plan.starts[run + 1] - plan.starts[run], whole)
    log_prob = shared + n_runs
    return mass, drift, dense, diagonal, raw, residual, shared, log_prob, log_prob + 1


def sums_in(plan: Plan, buffer: Array) -> Sums:
    """The fields of `Sums` in a flat buffer.

    Raises
    ------
    ValueError
        If the buffer was filled by another plan, or another version.
    """
    *ends, size = sums_ends(plan, 0)
    if buffer.shape != (size,):
        raise ValueError(
            f"Sums came back as an array of shape {buffer.shape} where {(size,)} was "
            "expected: workers and client must have the same version of daskgmm."
        )
    d = plan.means.shape[1]
    widths = {
        "drift": d,
        "dense": triangle(d),
        "diagonal": d,
        "raw": raw_width(plan),
        "residual": triangle(d),
    }
    bounds = pairwise((0, *ends, size))
    fields = [buffer[first:last] for first, last in bounds]
    return Sums._make(
        field.reshape(-1, widths[name]) if name in widths else field
        for name, field in zip(Sums._fields, fields, strict=True)
    )


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
    if n_rows * n_columns > _AT_ONCE:
        return _pack_by_bands(matrices, triangular=triangular)
    places = _places_when_packed(n_rows, n_columns, triangular)
    # To clip costs nothing, to check does.
    return matrices.reshape(n, -1).take(places, axis=1, mode="clip")


@functools.lru_cache(maxsize=16)
def _places_when_packed(
    n_rows: int, n_columns: int, triangular: bool
) -> NDArray[np.intp]:
    """Where in a matrix the packed numbers stand."""
    places = np.arange(n_rows * n_columns, dtype=np.float64)
    matrix = places.reshape(1, n_rows, n_columns)
    packed: Array = _pack_by_bands(matrix, triangular=triangular)[0]
    return packed.astype(np.intp)


def _pack_by_bands(matrices: Array, *, triangular: bool) -> Array:
    n, n_rows, n_columns = matrices.shape
    whole = n_rows - n_rows % BAND
    ends = [*range(0, whole, BAND), *range(whole, n_rows + 1)]
    size = packed_triangle(n_rows) if triangular else n_rows * n_columns
    packed, at = np.empty((n, size)), 0
    for first, last in pairwise(ends):
        length = last if triangular else n_columns
        band = packed[:, at : at + (last - first) * length]
        by_column = band.reshape(n, length, last - first)
        source = matrices[:, first:last, :length].swapaxes(1, 2)
        if last - first == BAND and source.strides[-1] == source.itemsize:
            # Numbers that stand together are moved as one: that takes half the time.
            by_column, source = by_column.view(_FOUR), source.view(_FOUR)
        by_column[...] = source
        at += band.shape[1]
    return packed


def readonly(array: NDArray[Any]) -> NDArray[Any]:
    """The array in C order, aligned and not writable.

    Arrays that came through a scheduler may or may not be writable; compiled code
    would be made once for each kind.
    """
    flags = array.flags
    if not (flags.c_contiguous and flags.aligned):
        array = np.require(array, requirements=["C", "A"])
    elif not flags.writeable:
        return array
    view = array.view()
    view.setflags(write=False)
    return view


_NONE: Final = readonly(np.empty(0))
_NONE_SINGLE: Final = readonly(np.empty(0, dtype=np.float32))
_NO_COLUMNS: Final = np.empty(0, dtype=np.int64)
_KINDS: Final = (np.dtype(np.float64), np.dtype(np.float32))


def as_rows(x: NDArray[Any] | Columns) -> RowView:
    """Rows, (n, d), float64 or float32, as compiled code takes them.

    They are copied only if neither the numbers of a row nor those of a column lie side
    by side. Whoever calls holds `x` for as long as the rows are used.

    Raises
    ------
    TypeError, ValueError
        If they are of another dtype, or columns differ in dtype or length.
    """
    if isinstance(x, Columns):
        return _as_columns(x)
    n_rows, d = x.shape
    if _side_by_side(x.T):
        step = x.strides[1] // x.itemsize if d > 1 else n_rows
        reach = (d - 1) * step + n_rows if x.size else 0
        return _rows(x, reach, n_rows, d, 0, np.arange(d) * step)
    if not _side_by_side(x):
        x = np.require(x, requirements=["C", "A"])
    step = x.strides[0] // x.itemsize if n_rows > 1 else d
    reach = (n_rows - 1) * step + d if x.size else 0
    return _rows(x, reach, n_rows, d, step, _NO_COLUMNS)


def _as_columns(x: Columns) -> RowView:
    """Columns as they lie in memory, counted from the first one there.

    The flat array reaches over all that lies between them, which nobody touches.
    """
    n, dtype = len(x), x.columns[0].dtype
    for i, column in enumerate(x.columns):
        if column.shape != (n,) or column.dtype != dtype:
            raise ValueError(
                f"Column {i} is {column.dtype} of shape {column.shape}, and column 0 "
                f"{dtype} of shape {(n,)}: all must be alike."
            )
    size = dtype.itemsize
    places = [column.__array_interface__["data"][0] for column in x.columns]
    in_pieces = n > 1 and any(column.strides != (size,) for column in x.columns)
    if in_pieces or any(place % size for place in places):
        return as_rows(x.array())
    lowest = min(places)
    distances = [(place - lowest) // size for place in places]
    first = x.columns[places.index(lowest)]
    reach = max(distances) + n
    return _rows(first, reach, n, len(places), 0, np.array(distances))


def _rows(
    x: NDArray[Any],
    reach: int,
    n_rows: int,
    n_columns: int,
    step: int,
    columns: NDArray[np.int64],
) -> RowView:
    """Rows that begin where `x` does, and so many numbers from there on."""
    if x.dtype not in _KINDS:
        raise TypeError(f"Rows must be float64 or float32, and are {x.dtype}.")
    if x.flags.c_contiguous and reach == x.size:
        flat = readonly(x.reshape(-1))  # the same, and takes a tenth of the time
    else:
        flat = as_strided(x, (reach,), (x.itemsize,), writeable=False)
    if x.dtype == np.float64:
        return RowView(flat, _NONE_SINGLE, n_rows, n_columns, step, columns)
    return RowView(_NONE, flat, n_rows, n_columns, step, columns)


def _side_by_side(x: NDArray[Any]) -> bool:
    """Whether the numbers of each row are, and rows stand one after the other."""
    n, length = x.shape
    ahead, within = x.strides
    return (
        x.flags.aligned
        and (within == x.itemsize or length < 2)
        and (n < 2 or (ahead >= 0 and ahead % x.itemsize == 0))
    )
