"""The spherical form: one precision λ for all features, and so one matrix product.

About an origin o, with y = x - o, a squared distance is

    λ ‖x - m‖² = λ ‖y‖² - 2 λ (m - o)·y + λ ‖m - o‖²

as scikit-learn has it too. Nothing is lost where no term is much larger than what is
left of them: `mixtures.e_step` sees to that.
"""

from __future__ import annotations

from typing import Any, Final

from numba import njit

from daskgmm.kernel.layout import BAND, raw_width, stride
from daskgmm.kernel.products import add_dots
from daskgmm.kernel.simd import (
    COLUMNS,
    add,
    add_outer,
    add_to_rows,
    constant,
    load,
    multiply_add,
    splat,
    store,
    subtract,
    zeros,
)
from daskgmm.kernel.tile import INLINE, JIT, pitch_of, width_of


@njit(**JIT)
def _measure(plan: Any, tile: Any, run: int, width: int) -> None:
    """Set the working lines to [y, 1, ‖y‖²]."""
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
    def joint(plan: Any, work: Any, d: int, k: int, t: int, out: Any) -> None:
        """Log joint of n components from k on."""
        tile, pitch = zeros(work, n_vectors), pitch_of(work)
        for j in range(d):
            line = load(work, j * pitch + t, 0, 1, COLUMNS)
            numbers = splat(plan.linear, k * d + j * n, 1, n)
            tile = add_outer(numbers, line, tile)
        norm = load(work, (d + 1) * pitch + t, 0, 1, COLUMNS)
        tile = add_outer(splat(plan.halves, k, 1, n), norm, tile)
        tile = add_to_rows(splat(plan.offsets, k, 1, n), tile)
        store(tile, out, k * pitch + t, pitch, COLUMNS)

    return joint


_band_joint: Final = _make_joint(BAND)
_row_joint: Final = _make_joint(1)


@njit(**JIT)
def spherical_log_joint(plan: Any, tile: Any, width: int) -> None:
    """Log joint of all components."""
    d = plan.means.shape[1]
    for run in range(plan.starts.shape[0] - 1):
        first, last = plan.starts[run], plan.starts[run + 1]
        whole = last - (last - first) % BAND
        _measure(plan, tile, run, width)
        for t in range(0, width, width_of(tile.work)):
            for k in range(first, whole, BAND):
                _band_joint(plan, tile.work, d, k, t, tile.joint)
            for k in range(whole, last):
                _row_joint(plan, tile.work, d, k, t, tile.joint)


@njit(**JIT)
def add_spherical(plan: Any, tile: Any, width: int, sums: Any) -> None:
    """Add [y, 1, ‖y‖²] of every component."""
    n_columns, n_runs = raw_width(plan), plan.starts.shape[0] - 1
    step = stride(n_columns, COLUMNS)
    for run in range(n_runs):
        first, last = plan.starts[run], plan.starts[run + 1]
        if n_runs > 1:  # else the lines are as the log joint left them
            _measure(plan, tile, run, width)
        shares, at = tile.joint[first * pitch_of(tile.joint) :], first * step
        n = last - first
        add_dots(shares, n, tile.work, n_columns, width, sums.raw, at, step)
