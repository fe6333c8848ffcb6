"""Register tiles against NumPy and long double."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from daskgmm.kernel.simd import (
    LANES,
    add_lane_sums,
    add_outer,
    add_scaled_squares,
    add_squares,
    add_to_rows,
    exp,
    load,
    log,
    maximum,
    row_sums,
    splat,
    store,
    transpose,
    where_above,
    zeros,
)

LONG = np.longdouble


@njit
def _exp_all(x, out):
    for t in range(0, x.size, LANES):
        store(exp(load(x, t, 0, 1, 1)), out, t, 0, 1)


@njit
def _log_all(x, out):
    for t in range(0, x.size, LANES):
        store(log(load(x, t, 0, 1, 1)), out, t, 0, 1)


def _ulps(got, exact):
    rounded = exact.astype(np.float64)
    return np.max(np.abs(got - exact) / np.spacing(np.abs(rounded)))


def _padded(values):
    return np.resize(values, -(-len(values) // LANES) * LANES)


def test_exp_is_within_two_ulp_and_zero_below_its_range():
    rng = np.random.default_rng(0)
    x = np.concatenate([[0.0, -1e-300, -707.99], -rng.exponential(100.0, 50_000)])
    x = _padded(x[x > -708])
    out = np.empty_like(x)
    _exp_all(x, out)
    assert _ulps(out, np.exp(x.astype(LONG))) <= 2
    x = _padded(np.array([-708.0, -1e10, -np.inf, np.nan]))
    out = np.ones_like(x)
    _exp_all(x, out)
    assert (out == 0).all()


def test_log_is_within_two_ulp_and_minus_infinity_below_one():
    rng = np.random.default_rng(1)
    near, far = 1 + rng.exponential(1.0, 20_000), np.exp(rng.uniform(0, 700, 20_000))
    x = _padded(np.concatenate([[1.0, np.nextafter(1, 2), np.sqrt(2)], near, far]))
    out = np.empty_like(x)
    _log_all(x, out)
    exact = np.log(x.astype(LONG))
    assert out[0] == 0.0
    some = exact > 0
    assert _ulps(out[some], exact[some]) <= 2
    out = np.empty(LANES)
    _log_all(np.zeros(LANES), out)
    assert (out == -np.inf).all()


@njit
def _transposed(x, out):
    store(transpose(load(x, 0, LANES, LANES, 1)), out, 0, LANES, 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_transpose_and_conversion(dtype):
    x = np.arange(LANES * LANES, dtype=dtype)
    out = np.empty(len(x))
    _transposed(x, out)
    square = (LANES, LANES)
    np.testing.assert_array_equal(out.reshape(square), x.reshape(square).T)


@njit
def _outer(x, left, tile_out, sums_out):
    columns = load(x, 0, 0, 1, 2)
    tile = add_outer(splat(left, 0, 2, 3), columns, zeros(6))
    tile = add_to_rows(splat(left, 0, 2, 3), tile)
    store(tile, tile_out, 0, 3 * LANES, 2)
    add_lane_sums(tile, sums_out, 1, 4, 2)
    add_lane_sums(row_sums(tile, 3), sums_out, 20, 1, 1)
    add_lane_sums(row_sums(add_squares(tile, zeros(2)), 1), sums_out, 30, 0, 1)


def test_tiles_of_rows_and_columns():
    rng = np.random.default_rng(2)
    x, left = rng.normal(size=2 * LANES), rng.normal(size=6)
    tile_out, sums_out = np.zeros(9 * LANES), np.ones(31)
    _outer(x, left, tile_out, sums_out)
    expected = np.outer(left[::2], x) + left[::2, np.newaxis]
    rows = tile_out.reshape(3, 3 * LANES)
    np.testing.assert_allclose(rows[:, : 2 * LANES], expected, rtol=1e-14)
    assert (rows[:, 2 * LANES :] == 0).all()
    by_vector = expected.reshape(3, 2, LANES).sum(axis=2)
    got = sums_out[1:13].reshape(3, 4)
    np.testing.assert_allclose(got[:, :2], 1 + by_vector, rtol=1e-12)
    assert (got[:, 2:] == 1).all()
    np.testing.assert_allclose(sums_out[20:23], 1 + by_vector.sum(axis=1), rtol=1e-12)
    assert sums_out[30] == pytest.approx(1 + (expected**2).sum())


@njit
def _distances(x, means, scales, out):
    tile = add_scaled_squares(
        load(x, 0, 0, 1, 2), splat(means, 0, 1, 2), splat(scales, 0, 1, 2), zeros(4)
    )
    store(tile, out, 0, 2 * LANES, 2)


def test_scaled_squares():
    rng = np.random.default_rng(3)
    x, means, scales = (
        rng.normal(size=2 * LANES),
        rng.normal(size=2),
        np.arange(2) + 1.0,
    )
    out = np.empty(4 * LANES)
    _distances(x, means, scales, out)
    expected = ((x - means[:, np.newaxis]) * scales[:, np.newaxis]) ** 2
    np.testing.assert_allclose(out.reshape(2, -1), expected, rtol=1e-14)


@njit
def _choices(x, y, larger, chosen):
    a, b = load(x, 0, 0, 1, 1), load(y, 0, 0, 1, 1)
    store(maximum(a, b), larger, 0, 0, 1)
    store(where_above(a, b, b, a), chosen, 0, 0, 1)


def test_choices_take_the_second_at_nan():
    x, y = np.arange(LANES) * 1.0, np.full(LANES, 1.5)
    x[-1] = np.nan
    larger, chosen = np.empty(LANES), np.empty(LANES)
    _choices(x, y, larger, chosen)
    np.testing.assert_array_equal(larger[:-1], np.maximum(x, y)[:-1])
    np.testing.assert_array_equal(chosen[:-1], np.minimum(x, y)[:-1])
    assert larger[-1] == 1.5
    assert np.isnan(chosen[-1])
