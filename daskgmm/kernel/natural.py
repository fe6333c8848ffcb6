"""The natural form: log joints are linear in y and y², and so products of matrices.

About an origin o, with y = x - o and precisions λ, a squared distance is

    Σ λ (x - m)² = Σ λ y² - 2 Σ λ (m - o) y + Σ λ (m - o)²

as scikit-learn has it too; λ (m - o) and -½ λ are the natural parameters. Where all
features have one λ, ‖y‖² stands for all y². Nothing is lost where no term is much
larger than what is left of them: `mixtures.e_step` sees to that.

Features are taken in blocks, so that lines stay in the first-level cache for all
components.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit

from daskgmm.kernel.layout import BAND, is_isotropic, raw_width, stride
from daskgmm.kernel.products import LINES, band_dot, row_dot
from daskgmm.kernel.simd import (
    COLUMNS,
    add,
    add_lane_sums,
    add_outer,
    add_quadratic,
    add_to_rows,
    constant,
    lanes,
    load,
    multiply,
    multiply_add,
    row_sums,
    splat,
    store,
    subtract,
    zeros,
)
from daskgmm.kernel.sparse import add_where_few
from daskgmm.kernel.tile import INLINE, JIT, pitch_of, width_of

_BLOCK: Final = 64
"""Features that are taken together for the log joint."""
_LINES: Final = 16
"""The same for sums."""
_PAIR: Final = max(1, COLUMNS // 2)
"""Features of which a register tile holds sums of y and of y²."""


@njit(**JIT)
def _measure(plan: Any, tile: Any, run: int, width: int) -> None:
    """Set the working lines to y, and those behind to [1, ‖y‖²]."""
    d, origins = plan.means.shape[1], plan.origins.reshape(-1)
    pitch = pitch_of(tile.work)
    for t in range(0, width, width_of(tile.work)):
        norm = zeros(tile.work, COLUMNS)
        for i in range(d):
            line = load(tile.rows, i * pitch + t, 0, 1, COLUMNS)
            y = subtract(line, splat(origins, run * d + i, 1, 1))
            store(y, tile.work, i * pitch + t, 0, COLUMNS)
            norm = multiply_add(y, y, norm)
        ones = add(zeros(norm, COLUMNS), constant(norm, 1.0))
        store(ones, tile.work, d * pitch + t, 0, COLUMNS)
        store(norm, tile.work, (d + 1) * pitch + t, 0, COLUMNS)


def _make_joint(n: int) -> Any:
    n_vectors = n * COLUMNS

    @njit(**INLINE)
    def begun(plan: Any, work: Any, d: int, k: int, t: int) -> Any:
        """What the log joint of n components from k on has beside products with y."""
        tile, pitch = zeros(work, n_vectors), pitch_of(work)
        if is_isotropic(plan):
            norm = load(work, (d + 1) * pitch + t, 0, 1, COLUMNS)
            tile = add_outer(splat(plan.quadratic, k, 1, n), norm, tile)
        return add_to_rows(splat(plan.offsets, k, 1, n), tile)

    @njit(**INLINE)
    def isotropic(
        plan: Any, work: Any, d: int, k: int, t: int, first: int, last: int, tile: Any
    ) -> Any:
        """Add products with y, for features from first to last."""
        pitch = pitch_of(work)
        for j in range(first, last):
            y = load(work, j * pitch + t, 0, 1, COLUMNS)
            tile = add_outer(splat(plan.linear, k * d + j * n, 1, n), y, tile)
        return tile

    @njit(**INLINE)
    def general(
        plan: Any, work: Any, d: int, k: int, t: int, first: int, last: int, tile: Any
    ) -> Any:
        """The same, and with y²: by Horner's rule, which makes no squares."""
        pitch = pitch_of(work)
        for j in range(first, last):
            y, at = load(work, j * pitch + t, 0, 1, COLUMNS), k * d + j * n
            linear = splat(plan.linear, at, 1, n)
            tile = add_quadratic(splat(plan.quadratic, at, 1, n), linear, y, tile)
        return tile

    @njit(**INLINE)
    def joint(
        plan: Any, tile: Any, d: int, k: int, t: int, first: int, last: int
    ) -> None:
        pitch, work = pitch_of(tile.work), tile.work
        if first == 0:
            part = begun(plan, work, d, k, t)
        else:
            part = load(tile.joint, k * pitch + t, pitch, n, COLUMNS)
        if is_isotropic(plan):
            part = isotropic(plan, work, d, k, t, first, last, part)
        else:
            part = general(plan, work, d, k, t, first, last, part)
        store(part, tile.joint, k * pitch + t, pitch, COLUMNS)

    return joint


_band_joint: Final = _make_joint(BAND)
_row_joint: Final = _make_joint(1)


@njit(**JIT)
def natural_log_joint(plan: Any, tile: Any, width: int) -> None:
    """Log joint of all components."""
    d = plan.means.shape[1]
    for run in range(plan.starts.shape[0] - 1):
        begin, end = plan.starts[run], plan.starts[run + 1]
        whole = end - (end - begin) % BAND
        _measure(plan, tile, run, width)
        for t in range(0, width, width_of(tile.work)):
            for first in range(0, d, _BLOCK):
                last = min(first + _BLOCK, d)
                for k in range(begin, whole, BAND):
                    _band_joint(plan, tile, d, k, t, first, last)
                for k in range(whole, end):
                    _row_joint(plan, tile, d, k, t, first, last)


def _make_sums(n: int, n_lines: int) -> Any:
    n_vectors = n * n_lines

    @njit(**INLINE)
    def sums_of(
        tile: Any, k: int, j: int, d: int, width: int, raw: Any, at: int, step: int
    ) -> None:
        """Add y and y² of n components from k on, of some features from j on."""
        pitch = pitch_of(tile.work)
        of_y, of_squares = zeros(tile.work, n_vectors), zeros(tile.work, n_vectors)
        for t in range(0, width, lanes(tile.work)):
            shares = load(tile.joint, k * pitch + t, pitch, n, 1)
            y = load(tile.work, j * pitch + t, pitch, n_lines, 1)
            of_y = add_outer(shares, y, of_y)
            of_squares = add_outer(shares, multiply(y, y), of_squares)
        add_lane_sums(of_y, raw, at + j, step, n_lines)
        add_lane_sums(of_squares, raw, at + d + j, step, n_lines)

    return sums_of


_band_pair: Final = _make_sums(BAND, _PAIR)
_band_one: Final = _make_sums(BAND, 1)
_row_pair: Final = _make_sums(1, _PAIR)
_row_one: Final = _make_sums(1, 1)


@njit(**JIT)
def _add_masses(
    plan: Any, tile: Any, first: int, last: int, width: int, sums: Any
) -> None:
    pitch, n_columns = pitch_of(tile.joint), raw_width(plan)
    step = stride(n_columns, COLUMNS)
    for k in range(first, last):
        mass = zeros(tile.joint, COLUMNS)
        for t in range(k * pitch, k * pitch + width, width_of(tile.joint)):
            mass = add(mass, load(tile.joint, t, 0, 1, COLUMNS))
        add_lane_sums(row_sums(mass, 1), sums.raw, k * step + n_columns - 1, 0, 1)


@njit(**JIT)
def _add_squares(
    plan: Any, tile: Any, n_bands: int, whole: int, last: int, width: int, sums: Any
) -> None:
    """Add [y, y²] of some bands of components, and of those up to the last one."""
    d, step = plan.means.shape[1], stride(raw_width(plan), COLUMNS)
    for block in range(0, d, _LINES):
        end = min(block + _LINES, d)
        pairs = end - (end - block) % _PAIR
        for i in range(n_bands):
            k: Any = np.int64(tile.bands[i])
            for j in range(block, pairs, _PAIR):
                _band_pair(tile, k, j, d, width, sums.raw, k * step, step)
            for j in range(pairs, end):
                _band_one(tile, k, j, d, width, sums.raw, k * step, step)
        for k in range(whole, last):
            for j in range(block, pairs, _PAIR):
                _row_pair(tile, k, j, d, width, sums.raw, k * step, step)
            for j in range(pairs, end):
                _row_one(tile, k, j, d, width, sums.raw, k * step, step)


@njit(**JIT)
def _add_lines(
    plan: Any, tile: Any, n_bands: int, whole: int, last: int, width: int, sums: Any
) -> None:
    """Add [y, 1, ‖y‖²] of the same."""
    n_columns = raw_width(plan)
    step = stride(n_columns, COLUMNS)
    for block in range(0, n_columns, LINES):
        end = min(block + LINES, n_columns)
        for i in range(n_bands):
            k: Any = np.int64(tile.bands[i])
            for j in range(block, end, COLUMNS):
                at = k * step + j
                band_dot(tile.joint, k, tile.work, j, width, sums.raw, at, step)
        for k in range(whole, last):
            for j in range(block, end, COLUMNS):
                at = k * step + j
                row_dot(tile.joint, k, tile.work, j, width, sums.raw, at, step)


@njit(**JIT)
def add_natural(
    plan: Any,
    tile: Any,
    rows: Any,
    start: int,
    width: int,
    weighted: bool,
    sums: Any,
) -> None:
    """Add [y, 1, ‖y‖²], or [y, y², 1], of every component."""
    n_runs = plan.starts.shape[0] - 1
    for run in range(n_runs):
        first, last = plan.starts[run], plan.starts[run + 1]
        whole = last - (last - first) % BAND
        if n_runs > 1:  # else the lines are as the log joint left them
            _measure(plan, tile, run, width)
        n_bands = add_where_few(rows, start, plan, tile, run, width, weighted, sums)
        if is_isotropic(plan):
            _add_lines(plan, tile, n_bands, whole, last, width, sums)
        else:
            _add_masses(plan, tile, first, last, width, sums)
            _add_squares(plan, tile, n_bands, whole, last, width, sums)
