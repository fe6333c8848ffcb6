"""Sums row by row, where few rows of a tile have a part in a component.

With many features a row belongs to one component, or to a few: all other
responsibilities are zero, or as good as that. To add up the rows that are left, as they
lie in memory, takes less time than to multiply lines with zeros.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit

from daskgmm.kernel.layout import BAND, is_isotropic, raw_width, stride
from daskgmm.kernel.simd import COLUMNS, constant, count_above, lanes, load
from daskgmm.kernel.tile import JIT, pitch_of

DEAD: Final = 1e-40
"""Responsibilities that are left out where rows have weight one.

All of them together are less than rounding of the 10 eps that each component's mass is
given. Where rows have weights, and in float32, zeros are left out.
"""
_FEATURES: Final = 256
"""Features that are added up together."""
_WIDE: Final = 32
"""Features from which on it takes less time to look for them than to add them up."""


@njit(**JIT)
def _count_live(tile: Any, k: int, width: int, dead: float) -> Any:
    """How many rows a component has a part in."""
    at, n_live = k * pitch_of(tile.joint), 0
    least = constant(tile.joint, dead)
    for t in range(at, at + width, lanes(tile.joint)):
        n_live += count_above(load(tile.joint, t, 0, 1, 1), least)
    return n_live


@njit(**JIT)
def _list_live(tile: Any, k: int, width: int, dead: float) -> int:
    """Write the numbers of those rows to `scale`, which nobody needs any more."""
    pitch, n, n_live = pitch_of(tile.joint), lanes(tile.joint), 0
    least = constant(tile.joint, dead)
    for first in range(0, width, n):
        if count_above(load(tile.joint, k * pitch + first, 0, 1, 1), least) == 0:
            continue
        for t in range(first, first + n):
            if np.float64(tile.joint[k * pitch + t]) > dead:
                tile.scale[n_live] = float(t)
                n_live += 1
    return n_live


@njit(**JIT)
def _add_row(x: Any, high: Any, low: Any, share: float, of_y: Any) -> None:
    """Add y = x - high - low."""
    if len(low) == 0:
        for j in range(len(x)):
            of_y[j] += share * (np.float64(x[j]) - high[j])
        return
    for j in range(len(x)):
        y = np.float64(x[j]) - np.float64(high[j]) - np.float64(low[j])
        of_y[j] += share * y


@njit(**JIT)
def _add_with_squares(
    x: Any, high: Any, low: Any, share: float, of_y: Any, of_squares: Any
) -> None:
    """The same, and y²."""
    if len(low) == 0:
        for j in range(len(x)):
            y = np.float64(x[j]) - high[j]
            of_y[j] += share * y
            of_squares[j] += share * y * y
        return
    for j in range(len(x)):
        y = np.float64(x[j]) - np.float64(high[j]) - np.float64(low[j])
        of_y[j] += share * y
        of_squares[j] += share * y * y


@njit(**JIT)
def _add_live(
    x: Any,
    start: int,
    step: int,
    plan: Any,
    tile: Any,
    run: int,
    k: int,
    width: int,
    dead: float,
    out: Any,
) -> None:
    """Add [y, 1, ‖y‖²], or [y, y², .], of the rows that a component has a part in.

    Some features of all of them before the next ones, so that sums stay in the cache.
    """
    pitch, d, isotropic = pitch_of(tile.joint), plan.means.shape[1], is_isotropic(plan)
    high, low = plan.origins[run], plan.origins[run][:0]
    if plan.shift.shape[0] > 0:
        high, low = plan.shift[0], plan.shift[1]
    n_live = _list_live(tile, k, width, dead)
    for begin in range(0, d, _FEATURES):
        end = min(begin + _FEATURES, d)
        for i in range(n_live):
            t = np.int64(tile.scale[i])
            share, at = np.float64(tile.joint[k * pitch + t]), (start + t) * step
            part, its_high, its_low = (
                x[at + begin : at + end],
                high[begin:end],
                low[begin:end],
            )
            if isotropic:
                _add_row(part, its_high, its_low, share, out[begin:end])
            else:
                _add_with_squares(
                    part,
                    its_high,
                    its_low,
                    share,
                    out[begin:end],
                    out[d + begin : d + end],
                )
    for i in range(n_live if isotropic else 0):
        t = np.int64(tile.scale[i])
        share = np.float64(tile.joint[k * pitch + t])
        out[d] += share
        out[d + 1] += share * np.float64(tile.work[(d + 1) * pitch + t])


@njit(**JIT)
def _add_bands(
    x: Any,
    start: int,
    step: int,
    plan: Any,
    tile: Any,
    run: int,
    width: int,
    dead: float,
    sums: Any,
) -> Any:
    row, n_left = stride(raw_width(plan), COLUMNS), 0
    begin, end = plan.starts[run], plan.starts[run + 1]
    for k in range(begin, end - (end - begin) % BAND, BAND):
        n_live = 0
        for i in range(k, k + BAND):
            n_live += _count_live(tile, i, width, dead)
        # Numbers of a row are multiplied one vector at a time, too.
        if n_live * lanes(tile.joint) > BAND * width:
            tile.bands[n_left] = float(k)
            n_left += 1
            continue
        for i in range(k, k + BAND):
            out = sums.raw[i * row : (i + 1) * row]
            _add_live(x, start, step, plan, tile, run, i, width, dead, out)
    return n_left


@njit(**JIT)
def add_where_few(
    rows: Any,
    start: int,
    plan: Any,
    tile: Any,
    run: int,
    width: int,
    weighted: bool,
    sums: Any,
) -> Any:
    """Add up those bands of a run's components that few rows have a part in.

    Returns how many are left; the first component of each is listed in `bands`.
    """
    dead = 0.0 if weighted else DEAD
    if rows.columns.shape[0] == 0 and plan.means.shape[1] >= _WIDE:
        if rows.double.shape[0] > 0:
            return _add_bands(
                rows.double, start, rows.step, plan, tile, run, width, dead, sums
            )
        return _add_bands(
            rows.single, start, rows.step, plan, tile, run, width, dead, sums
        )
    begin, n_left = plan.starts[run], (plan.starts[run + 1] - plan.starts[run]) // BAND
    for i in range(n_left):
        tile.bands[i] = float(begin + i * BAND)
    return n_left
