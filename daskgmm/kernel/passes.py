"""What is compiled and called from Python: passes over the rows of a block.

The kernel reads and writes wherever it is told to. So all that leads to it goes through
`_run`, and there, before anything is read, through one check of all that is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from daskgmm.kernel.bounded import BETWEEN, bounded_log_joint
from daskgmm.kernel.compiling import ASK, Compiled, sources, stamp_of
from daskgmm.kernel.dense import add_dense
from daskgmm.kernel.diagonal import add_apart, add_diagonal
from daskgmm.kernel.joint import (
    add_log_prob,
    find_most_probable,
    log_joint,
    normalise,
    normalise_alike,
    share,
)
from daskgmm.kernel.layout import (
    Array,
    Plan,
    RowView,
    as_rows,
    is_wide,
    packed_triangle,
    raw_width,
    readonly,
    stride,
    sums_ends,
    triangle,
)
from daskgmm.kernel.natural import add_natural
from daskgmm.kernel.pooled import add_pooled
from daskgmm.kernel.simd import COLUMNS, TARGET, VECTOR_BITS, is_single
from daskgmm.kernel.tile import (
    JIT,
    MIN_UPPER,
    ZERO,
    cut_sums,
    cut_tile,
    load_tile,
    pitch_of,
    scratch_size,
    set_weights,
    tile_rows,
    whole_width,
)
from daskgmm.kernel.upper import upper_joint

_COPIED_COLUMNS: Final = 8
"""Columns of a matrix that are copied together: a line of the cache."""

# --- sums without padding -------------------------------------------------------------


@njit(**JIT)
def _copy(numbers: Any, out: Any, at: Any) -> Any:
    """Copy numbers to out[at:]; returns where they end."""
    for i in range(numbers.shape[0]):
        out[at + i] = numbers[i]
    return at + numbers.shape[0]


@njit(**JIT)
def _copy_triangle(matrix: Any, start: int, n: int, out: Any, at: int) -> int:
    """The same of a symmetric matrix with n rows, of which the upper triangle is kept.

    Its lower one is read, some columns at a time: rows that lie far apart would be
    fetched into the cache once for each.
    """
    step = stride(n, COLUMNS)
    for first in range(0, n, _COPIED_COLUMNS):
        last = min(first + _COPIED_COLUMNS, n)
        for j in range(first, n):
            for i in range(first, min(last, j + 1)):
                # Rows before i have i less than n + ... + (n - i + 1) numbers.
                place = at + i * n - triangle(i) + j
                out[place] = matrix[start + j * step + i]
    return at + triangle(n)


@njit(**JIT)
def _copy_triangles(matrices: Any, count: int, n: int, out: Any, at: int) -> int:
    for i in range(count):
        at = _copy_triangle(matrices, i * n * stride(n, COLUMNS), n, out, at)
    return at


@njit(**JIT)
def _collect(plan: Any, sums: Any, out: Any) -> None:
    """Write sums without padding, one field of `Sums` after the other."""
    d = plan.means.shape[1]
    n_pooled, n_columns = plan.pooled.shape[0], raw_width(plan)
    step = stride(n_columns, COLUMNS)
    at = _copy(sums.mass, out, ZERO)
    at = _copy(sums.drift, out, at)
    at = _copy_triangles(sums.dense, plan.dense.shape[0], d, out, at)
    at = _copy(sums.diagonal, out, at)
    for k in range(sums.raw.shape[0] // step):
        row = sums.raw[k * step :]
        at = _copy(row[:n_columns], out, at)
    at = _copy_triangles(sums.residual, n_pooled, d, out, at)
    start: Any = ZERO
    for run in range(plan.starts.shape[0] - 1 if n_pooled > 0 else 0):
        its = plan.starts[run + 1] - plan.starts[run]
        at = _copy_triangle(sums.shared, start, its, out, at)
        start += its * stride(its, COLUMNS)
    at = _copy(sums.log_prob, out, at)
    _copy(sums.weight, out, at)


# --- answers --------------------------------------------------------------------------


@njit(**JIT)
def _write_answers(
    tile: Any,
    start: int,
    inside: int,
    labels: Any,
    responsibilities: Any,
    log_prob: Any,
) -> None:
    """Write what a tile holds into whichever output has rows."""
    pitch = pitch_of(tile.joint)
    for t in range(inside if labels.shape[0] > 0 else 0):
        labels[start + t] = np.int64(tile.scale[t])
    for t in range(inside if responsibilities.shape[0] > 0 else 0):
        for k in range(responsibilities.shape[1]):
            h = tile.joint[k * pitch + t]
            responsibilities[start + t, k] = h * h * tile.scale[t]
    for t in range(inside if log_prob.shape[0] > 0 else 0):
        log_prob[start + t] = tile.log_prob[t]


@njit(**JIT)
def _any_not_finite(x: Any, n: int, d: int, step: int, columns: Any) -> bool:
    """Whether there is a NaN or infinity."""
    by_column = columns.shape[0] > 0
    if by_column:
        n, d = d, n
    elif step == d:
        n, d = 1, n * d
    bad = 0
    for i in range(n):
        first = columns[i] if by_column else i * step
        part = x[first : first + d]
        for j in range(d):  # by number, from 0: four times as fast as by value
            bad += not (abs(part[j]) < np.inf)
    return bad > 0


@njit(**JIT)
def _find_not_finite(x: Any, n: int, d: int, step: int, columns: Any) -> Any:
    """Row times d plus column of the first NaN or infinity; -1 without one."""
    by_column = columns.shape[0] > 0
    for i in range(n if _any_not_finite(x, n, d, step, columns) else 0):
        for j in range(d):
            at = columns[j] + i if by_column else i * step + j
            if not (abs(x[at]) < np.inf):
                return i * d + j
    return -1


# --- what is called from Python -------------------------------------------------------

_FIND, _ACCUMULATE, _COLLECT, _EVALUATE = range(4)

_ARGUMENTS: Final = (
    *(f"plan.{name}" for name in Plan._fields),
    "rows",
    "weights",
    "sums",
    "out",
    "labels",
    "responsibilities",
    "log_prob",
    "scratch",
)
(
    _STARTS,
    _OFFSETS,
    _MEANS,
    _DENSE,
    _UPPER,
    _POOLED,
    _ORIGINS,
    _MIXING,
    _APART,
    _CENTRES,
    _SCALES,
    _LINEAR,
    _QUADRATIC,
    _LOWS,
    _SHIFT,
    _AXES,
    _AXIS_MEANS,
    _ROWS,
    _WEIGHTS,
    _SUMS,
    _OUT,
    _LABELS,
    _RESPONSIBILITIES,
    _LOG_PROB,
    _SCRATCH,
) = range(len(_ARGUMENTS))
_FITS: Final = -1
"""In place of the number of an argument that does not fit."""


@njit(**JIT)
def _are_rows(
    n: int, d: int, step: int, columns: Any, n_double: int, n_single: int
) -> bool:
    """Whether rows lie within their memory."""
    length, n_places = n_double + n_single, columns.shape[0]
    if n < 0 or d < 0 or (n_places > 0 and n_places != d):
        return False
    if n == 0 or d == 0:
        return True
    if n_double > 0 and n_single > 0:
        return False
    if n_places > 0:
        bad = False
        for place in columns:
            bad |= place < 0 or place > length - n
        return not bad
    if step < 0 or d > length:
        return False
    return n == 1 or step <= (length - d) // (n - 1)


@njit(**JIT)
def _are_starts(starts: Any, n_components: int) -> bool:
    """Whether the components of each run begin before the next one's."""
    n_runs = starts.shape[0] - 1
    if n_runs < 1 or starts[0] != 0 or starts[n_runs] != n_components:
        return False
    bad = False
    for run in range(n_runs):
        bad |= starts[run] >= starts[run + 1]
    return not bad


@njit(**JIT)
def _are_apart(apart: Any, n_components: int) -> bool:
    """Whether these are numbers of components, each once."""
    before, bad = -1, False
    for k in apart:
        bad |= k <= before or k >= n_components
        before = k
    return not bad


@njit(**JIT)
def _misfit_in_plan(plan: Any) -> Any:
    """Number of the first argument of a plan that does not fit the others."""
    n, d = plan.means.shape
    n_runs, n_dense = plan.starts.shape[0] - 1, plan.dense.shape[0]
    n_upper, n_pooled = plan.upper.shape[0], plan.pooled.shape[0]
    size = packed_triangle(d)
    is_pooled = n_pooled > 0 or (n_upper > 0 and plan.origins.shape[0] > 0)
    n_natural = plan.quadratic.shape[0]
    is_dense = n_dense > 0 or (n_upper > 0 and not is_pooled)
    of_runs = n_runs if is_pooled or n_natural > 0 else 0
    n_apart = plan.apart.shape[0]
    diagonal = n_apart if is_dense or n_natural > 0 else n
    n_matrices = n_runs if is_pooled else n
    if n == 0 or d == 0:
        return _MEANS
    if not _are_starts(plan.starts, n):
        return _STARTS
    if plan.offsets.shape[0] != n:
        return _OFFSETS
    if n_dense > 0 and plan.dense.shape != (n, size):
        return _DENSE
    # With fewer features, a block of columns would reach beyond a matrix.
    if n_upper > 0 and (
        plan.upper.shape != (n_matrices, d, d)
        or n_dense > 0
        or n_pooled > 0
        or d < MIN_UPPER
    ):
        return _UPPER
    if n_pooled > 0 and (plan.pooled.shape != (n_runs, size) or diagonal == 0):
        return _POOLED
    if plan.origins.shape != (of_runs, d):
        return _ORIGINS
    if plan.mixing.shape[0] != (n * d if is_pooled else 0):
        return _MIXING
    if not _are_apart(plan.apart, n if n_natural > 0 else 0):
        return _APART
    if plan.centres.shape != (diagonal, d):
        return _CENTRES
    if plan.scales.shape != (diagonal, d):
        return _SCALES
    if n_natural > 0 and (n_natural not in (n, n * d) or is_dense or is_pooled):
        return _QUADRATIC
    if plan.linear.shape[0] != (n * d if n_natural > 0 else 0):
        return _LINEAR
    is_shifted = is_pooled or n_natural > 0
    n_in_parts = n_apart if is_shifted else n
    if plan.lows.shape != (n_in_parts if is_single(plan.means) else 0, d):
        return _LOWS
    n_parts = 2 if is_single(plan.means) and is_shifted else 0
    if plan.shift.shape != (n_parts, d):
        return _SHIFT
    n_axes, n_means = plan.axes.shape[0], plan.axis_means.shape[0]
    if n_axes > 0 and (plan.axes.shape != (-(-n // 2), 4 * d) or not is_wide(plan)):
        return _AXES
    if n_means != (n if n_axes > 0 else 0):
        return _AXIS_MEANS
    return _FITS if n_means == 0 or plan.axis_means.shape[1] == 4 else _AXIS_MEANS


@njit(**JIT)
def _misfit(
    task: int,
    plan: Any,
    n: int,
    n_columns: int,
    n_weights: int,
    n_sums: int,
    n_out: int,
    n_labels: int,
    responsibilities: Any,
    n_log_prob: int,
    n_scratch: int,
) -> Any:
    """The same of all arguments, for a task, where the rows are in order.

    Nothing that is compiled checks a place before it reads or writes there: this does.
    """
    misfit = _misfit_in_plan(plan)
    if misfit != _FITS:
        return misfit
    n_components, d = plan.means.shape
    if task in (_ACCUMULATE, _COLLECT):
        if plan.upper.shape[0] > 0:
            return _UPPER
        if n_sums != sums_ends(plan, COLUMNS)[8]:
            return _SUMS
        if n_out != sums_ends(plan, 0)[8] and (n_out != 0 or task == _COLLECT):
            return _OUT
    if task == _COLLECT:
        return _FITS
    if n_columns != d:
        return _ROWS
    if n_weights != n and n_weights != 0:
        return _WEIGHTS
    if n_scratch < scratch_size(plan):
        return _SCRATCH
    if task == _EVALUATE:
        if plan.starts.shape[0] != 2:
            return _STARTS
        n_others = responsibilities.shape[0] + n_log_prob
        if n_labels != 0 and (n_labels != n or n_others > 0):
            return _LABELS
        shape = responsibilities.shape
        if shape[0] != 0 and shape != (n, n_components):
            return _RESPONSIBILITIES
        if n_log_prob != n and n_log_prob != 0:
            return _LOG_PROB
    return _FITS


def _make_enter(stamp: int) -> Callable[..., int]:
    def enter(
        task: Any,
        plan: Any,
        rows: Any,
        weights: Any,
        sums: Any,
        out: Any,
        labels: Any,
        responsibilities: Any,
        log_prob: Any,
        scratch: Any,
    ) -> Any:
        """All that is compiled, behind one check of what is given to it."""
        if task == ASK:
            return stamp
        n, d, places = rows.n_rows, rows.n_columns, rows.columns
        n_double, n_single = rows.double.shape[0], rows.single.shape[0]
        if not _are_rows(n, d, rows.step, places, n_double, n_single):
            return -2 - _ROWS
        if task == _FIND:
            if n_double > 0:
                return _find_not_finite(rows.double, n, d, rows.step, places)
            return _find_not_finite(rows.single, n, d, rows.step, places)
        misfit = _misfit(
            task,
            plan,
            n,
            d,
            weights.shape[0],
            sums.shape[0],
            out.shape[0],
            labels.shape[0],
            responsibilities,
            log_prob.shape[0],
            scratch.shape[0],
        )
        if misfit != _FITS:
            return -2 - misfit
        if is_single(scratch) and n_double > 0:
            return -2 - _ROWS
        padded = cut_sums(plan, sums)
        if task == _COLLECT:
            _collect(plan, padded, out)
            return -1
        # Not in functions of their own: what is in one is optimised in each of those
        # that it is called from, one in the other, and takes as long each time.
        tile, most, n_components = (
            cut_tile(plan, scratch),
            tile_rows(d),
            len(plan.means),
        )
        # Responsibilities are wanted however small they are.
        can_bound = plan.axes.shape[0] > 0 and responsibilities.shape[0] == 0
        n_before_next = 0
        for start in range(0, n, most):
            inside = min(most, n - start)
            width = whole_width(inside, scratch)
            load_tile(rows, plan, start, inside, tile)
            weight = 0.0
            if task == _ACCUMULATE:
                weight = set_weights(weights, start, inside, tile.weights)
            if plan.upper.shape[0] > 0:
                upper_joint(plan, tile, inside)
            elif can_bound and n_before_next == 0:
                n_found = bounded_log_joint(plan, tile, width)
                if 3 * n_found > n_components * width:
                    n_before_next = BETWEEN
            else:
                log_joint(plan, tile, width)
                n_before_next = max(0, n_before_next - 1)
            if task == _EVALUATE:
                if labels.shape[0] > 0:
                    find_most_probable(tile, ZERO, n_components, width)
                else:
                    normalise(tile, ZERO, n_components, width)
                _write_answers(tile, start, inside, labels, responsibilities, log_prob)
                continue
            padded.weight[0] += weight
            for run in range(plan.starts.shape[0] - 1):
                first, last = plan.starts[run], plan.starts[run + 1]
                if weights.shape[0] > 0:
                    normalise(tile, first, last, width)
                    add_log_prob(tile, width, padded.log_prob, run)
                else:
                    normalise_alike(tile, first, last, width, padded.log_prob, run)
                share(plan, tile, first, last, width)
            if plan.dense.shape[0] > 0:
                add_dense(plan, tile, width, padded, weights.shape[0] > 0)
            elif plan.pooled.shape[0] > 0:
                add_pooled(plan, tile, width, padded)
            elif plan.quadratic.shape[0] > 0:
                add_natural(
                    plan, tile, rows, start, width, weights.shape[0] > 0, padded
                )
                add_apart(plan, tile, width, padded)
            else:
                add_diagonal(plan, tile, width, padded)
        if task == _ACCUMULATE and out.shape[0] > 0:
            _collect(plan, padded, out)
        return -1

    return enter


def _empty(dtype: Any, n_axes: int, *, written: bool = False) -> NDArray[Any]:
    array = np.empty((0,) * n_axes, dtype=dtype)
    return array if written else readonly(array)


def _no_plan(dtype: Any) -> Plan:
    return Plan(
        starts=_empty(np.int64, 1),
        offsets=_empty(dtype, 1),
        means=_empty(dtype, 2),
        dense=_empty(dtype, 2),
        upper=_empty(dtype, 3),
        pooled=_empty(dtype, 2),
        origins=_empty(dtype, 2),
        mixing=_empty(dtype, 1),
        apart=_empty(np.int64, 1),
        centres=_empty(dtype, 2),
        scales=_empty(dtype, 2),
        linear=_empty(dtype, 1),
        quadratic=_empty(dtype, 1),
        lows=_empty(dtype, 2),
        shift=_empty(dtype, 2),
        axes=_empty(dtype, 2),
        axis_means=_empty(dtype, 2),
    )


_NO_PLAN: Final = _no_plan(np.float64)
_NO_ROWS: Final = as_rows(np.empty((0, 0)))
_NO_WEIGHTS: Final = _empty(float, 1)
_NO_NUMBERS: Final = _empty(float, 1, written=True)
_NO_SINGLE: Final = _empty(np.float32, 1, written=True)
_NO_LABELS: Final = _empty(np.int64, 1, written=True)
_NO_TABLE: Final = _empty(float, 2, written=True)


def _examples(dtype: Any) -> tuple[Any, ...]:
    """Arguments of the only kind that the kernel is compiled for, of a precision."""
    return (
        _no_plan(dtype),
        _NO_ROWS,
        _NO_WEIGHTS,
        _NO_NUMBERS,
        _NO_NUMBERS,
        _NO_LABELS,
        _NO_TABLE,
        _NO_NUMBERS,
        _empty(dtype, 1, written=True),
    )


def _compiled(dtype: Any) -> Compiled:
    stamp = stamp_of(sources(), VECTOR_BITS, TARGET, np.dtype(dtype).name)
    options = {**JIT, "no_cpython_wrapper": False}
    return Compiled(_make_enter, stamp, _examples(dtype), options)


_enter: Final = _compiled(np.float64)
_enter_single: Final = _compiled(np.float32)
"""Compiled when it is first called, as not everybody does."""


def _run(
    task: int,
    plan: Plan = _NO_PLAN,
    rows: RowView = _NO_ROWS,
    weights: Array = _NO_WEIGHTS,
    sums: Array = _NO_NUMBERS,
    out: Array = _NO_NUMBERS,
    labels: NDArray[np.int64] = _NO_LABELS,
    responsibilities: Array = _NO_TABLE,
    log_prob: Array = _NO_NUMBERS,
    scratch: NDArray[Any] = _NO_NUMBERS,
) -> int:
    """Run compiled code: nobody else does.

    Raises
    ------
    TypeError
        If an argument is of another dtype or number of axes, or not in C order.
    ValueError
        If an argument does not fit the others. Nothing was read or written then.
    """
    given = (
        plan,
        rows,
        weights,
        sums,
        out,
        labels,
        responsibilities,
        log_prob,
        scratch,
    )
    single = plan.means.dtype == np.float32
    try:
        found = (_enter_single if single else _enter)(task, *given)
    except TypeError as error:
        raise TypeError(_mistyped(given, plan.means.dtype)) from error
    if found < -1:
        raise ValueError(_misfitting(_ARGUMENTS[-2 - found], plan, rows))
    return found


def _misfitting(argument: str, plan: Plan, rows: RowView) -> str:
    n_components, d = plan.means.shape
    shapes = ", ".join(f"{name} {getattr(plan, name).shape}" for name in Plan._fields)
    return (
        f"The kernel was given {argument} of a size that does not fit the rest: it has "
        f"{rows.n_rows} rows of {rows.n_columns} features, and a plan for "
        f"{n_components} components of {d} features with arrays of shape {shapes}."
    )


def _mistyped(given: Sequence[Any], dtype: Any) -> str:
    names = ("plan", "rows", *_ARGUMENTS[len(Plan._fields) + 1 :])
    wrong = [
        f"{where} as {kind}, not {wanted}"
        for name, value, example in zip(names, given, _examples(dtype), strict=True)
        for (where, kind), (_, wanted) in zip(
            _kinds(name, value), _kinds(name, example), strict=False
        )
        if kind != wanted
    ]
    return f"The kernel was given {'; '.join(wrong)}."


def _kinds(name: str, value: Any) -> list[tuple[str, str]]:
    """What an argument, or each of its fields, is."""
    if isinstance(value, tuple):
        fields = value._asdict() if isinstance(value, Plan | RowView) else {}
        return [kind for field in fields for kind in _kinds(field, fields[field])]
    if not isinstance(value, np.ndarray):
        return [(name, type(value).__name__)]
    order = "in C order" if value.flags.c_contiguous else "not in C order"
    access = "to write to" if value.flags.writeable else "to read"
    return [(name, f"{value.dtype} with {value.ndim} axes {order} {access}")]


def accumulate(
    plan: Plan,
    rows: RowView,
    weights: Array | None,
    sums: Array,
    scratch: NDArray[Any],
    out: Array = _NO_NUMBERS,
) -> None:
    """E-step of a block: add to `sums` what its rows give for every component.

    Parameters
    ----------
    plan : Plan
        Not one with `upper`.
    rows : Rows
    weights : ndarray of shape (n,) or None
        None for weights of one.
    sums : ndarray of shape (`padded_size`,)
        Added to in place. `collect` tells what is in it.
    scratch : ndarray of shape (`scratch_size`,) or longer
        Of the plan's dtype.
    out : ndarray, optional
        Where to write what was added up with this block, the last one, as `collect`
        does: a second call takes as long as some hundred rows.

    Raises
    ------
    TypeError, ValueError
        If anything does not fit the rest.
    """
    given = _NO_WEIGHTS if weights is None else readonly(weights)
    _run(_ACCUMULATE, plan, rows, given, sums, out, scratch=scratch)


def padded_size(plan: Plan) -> int:
    """Numbers that `accumulate` adds up: it depends on this machine's vectors."""
    return sums_ends(plan, COLUMNS)[-1]


def collect(plan: Plan, sums: Array) -> Array:
    """What was added up, laid out as on every machine: see `layout.sums_in`."""
    out = np.empty(sums_ends(plan, 0)[-1])
    scratch = _NO_NUMBERS if plan.means.dtype == np.float64 else _NO_SINGLE
    _run(_COLLECT, plan, sums=sums, out=out, scratch=scratch)
    return out


def evaluate(
    plan: Plan, rows: RowView, scratch: NDArray[Any], outputs: dict[str, NDArray[Any]]
) -> None:
    """Posterior of a block's rows under one mixture, written to whichever is given.

    Parameters
    ----------
    plan : Plan
        Of a single run.
    rows : Rows
    scratch : ndarray of shape (`scratch_size`,) or longer
    outputs : dict
        "labels", int64 of shape (n,), for the most probable component, the first of
        those that tie. Or "responsibilities", (n, K), or "log_prob", (n,), or both.

    Raises
    ------
    TypeError, ValueError
        If anything does not fit the rest.
    """
    _run(_EVALUATE, plan, rows, scratch=scratch, **outputs)


def first_not_finite(rows: RowView) -> int:
    """Row times columns plus column of the first NaN or infinity; -1 without one."""
    return _run(_FIND, rows=rows)
