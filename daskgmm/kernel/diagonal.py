"""The diagonal form: factors are diagonal."""

from __future__ import annotations

from typing import Any, Final

from numba import njit

from daskgmm.kernel.layout import BAND
from daskgmm.kernel.simd import (
    COLUMNS,
    add,
    add_exact_squares,
    add_lane_sums,
    add_scaled_squares,
    add_to_rows,
    constant,
    is_single,
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
from daskgmm.kernel.tile import INLINE, JIT, pitch_of, width_of


def _make_diagonal_joint(n: int) -> Any:
    n_vectors = n * COLUMNS

    @njit(**INLINE)
    def diagonal_joint(
        plan: Any, lines: Any, at: int, k: int, t: int, joint: Any, exact: bool
    ) -> None:
        """Log joint of n components from k on, from lines less centres from `at` on."""
        d = plan.means.shape[1]
        centres, scales = plan.centres.reshape(-1), plan.scales.reshape(-1)
        lows = plan.lows.reshape(-1)
        tile, pitch = zeros(joint, n_vectors), pitch_of(joint)
        for i in range(d):
            line = load(lines, i * pitch + t, 0, 1, COLUMNS)
            of_centres = splat(centres, at * d + i, d, n)
            of_scales = splat(scales, at * d + i, d, n)
            if exact:
                of_lows = splat(lows, at * d + i, d, n)
                tile = add_exact_squares(line, of_centres, of_lows, of_scales, tile)
            else:
                tile = add_scaled_squares(line, of_centres, of_scales, tile)
        tile = multiply(tile, constant(tile, -0.5))
        tile = add_to_rows(splat(plan.offsets, k, 1, n), tile)
        store(tile, joint, k * pitch + t, pitch, COLUMNS)

    return diagonal_joint


_band_joint: Final = _make_diagonal_joint(BAND)
_row_joint: Final = _make_diagonal_joint(1)


@njit(**JIT)
def diagonal_log_joint(
    plan: Any, lines: Any, first: int, last: int, width: int, joint: Any
) -> None:
    """Log joint of the components from first to last."""
    whole, exact = last - (last - first) % BAND, plan.lows.shape[0] > 0
    for t in range(0, width, width_of(joint)):
        for k in range(first, whole, BAND):
            if exact:
                _band_joint(plan, lines, k, k, t, joint, True)
            else:
                _band_joint(plan, lines, k, k, t, joint, False)
        for k in range(whole, last):
            if exact:
                _row_joint(plan, lines, k, k, t, joint, True)
            else:
                _row_joint(plan, lines, k, k, t, joint, False)


def _make_diagonal_sums(n: int, n_columns: int) -> Any:
    n_vectors = n * n_columns

    @njit(**INLINE)
    def diagonal_sums(
        plan: Any, tile: Any, at: int, k: int, width: int, sums: Any
    ) -> None:
        """Add 1, e and e² of n components from k on, of centres from `at` on."""
        means, lows = plan.centres.reshape(-1), plan.lows.reshape(-1)
        d = plan.means.shape[1]
        pitch, step = pitch_of(tile.joint), n_columns * lanes(tile.joint)
        mass = zeros(tile.joint, n_vectors)
        for t in range(0, width, step):
            shares = load(tile.joint, k * pitch + t, pitch, n, n_columns)
            mass = add(mass, shares)
        add_lane_sums(row_sums(mass, n), sums.mass, at, 1, 1)
        for i in range(d):
            centres = splat(means, at * d + i, d, n)
            drift = zeros(tile.joint, n_vectors)
            spread = zeros(tile.joint, n_vectors)
            for t in range(0, width, step):
                line = load(tile.rows, i * pitch + t, 0, 1, n_columns)
                deviation = subtract(line, centres)
                if is_single(line):
                    low = splat(lows, at * d + i, d, n)
                    deviation = subtract(deviation, low)
                shares = load(tile.joint, k * pitch + t, pitch, n, n_columns)
                part = multiply(shares, deviation)
                drift = add(drift, part)
                spread = multiply_add(part, deviation, spread)
            add_lane_sums(row_sums(drift, n), sums.drift, at * d + i, d, 1)
            add_lane_sums(row_sums(spread, n), sums.diagonal, at * d + i, d, 1)

    return diagonal_sums


_band_sums: Final = _make_diagonal_sums(BAND, 1)
_row_sums: Final = _make_diagonal_sums(1, COLUMNS)


@njit(**JIT)
def add_diagonal(plan: Any, tile: Any, width: int, sums: Any) -> None:
    """Add 1, e and e² of every component.

    Bands are of one run each, so that its bits do not depend on the runs beside it.
    """
    for run in range(plan.starts.shape[0] - 1):
        first, last = plan.starts[run], plan.starts[run + 1]
        whole = last - (last - first) % BAND
        for k in range(first, whole, BAND):
            _band_sums(plan, tile, k, k, width, sums)
        for k in range(whole, last):
            _row_sums(plan, tile, k, k, width, sums)


@njit(**JIT)
def apart_log_joint(plan: Any, tile: Any, width: int) -> None:
    """Log joint of components that stand apart in a plan of another form."""
    for at in range(plan.apart.shape[0]):
        for t in range(0, width, width_of(tile.joint)):
            if plan.lows.shape[0] > 0:
                _row_joint(plan, tile.rows, at, plan.apart[at], t, tile.joint, True)
            else:
                _row_joint(plan, tile.rows, at, plan.apart[at], t, tile.joint, False)


@njit(**JIT)
def add_apart(plan: Any, tile: Any, width: int, sums: Any) -> None:
    """Add 1, e and e² of these."""
    for at in range(plan.apart.shape[0]):
        _row_sums(plan, tile, at, plan.apart[at], width, sums)
