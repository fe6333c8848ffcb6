"""Register tiles of either precision against NumPy and long double."""

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
    lanes,
    load,
    load_square,
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
KINDS = pytest.mark.parametrize("dtype", [np.float64, np.float32])


def lanes_of(dtype):
    """Numbers of a dtype in a vector."""
    return LANES * 8 // np.dtype(dtype).itemsize


@njit
def _exp_all(x, out):
    for t in range(0, x.size, lanes(x)):
        store(exp(load(x, t, 0, 1, 1)), out, t, 0, 1)


@njit
def _log_all(x, out):
    for t in range(0, x.size, lanes(x)):
        store(log(load(x, t, 0, 1, 1)), out, t, 0, 1)


def _ulps(got, exact):
    rounded = exact.astype(got.dtype)
    return np.max(np.abs(got - exact) / np.spacing(np.abs(rounded)))


def _padded(values, dtype):
    n = lanes_of(dtype)
    return np.resize(values, -(-len(values) // n) * n).astype(dtype)


LOWEST = {np.float64: -708.0, np.float32: -43.0}


@KINDS
def test_exp_is_within_two_ulp_and_zero_below_its_range(dtype):
    rng, lowest = np.random.default_rng(0), LOWEST[dtype]
    least = np.nextafter(dtype(lowest), dtype(0.0))
    x = np.concatenate([[0.0, -1e-30, least], lowest * rng.uniform(0, 1, 50_000)])
    x = _padded(x[x > lowest], dtype)
    out = np.empty_like(x)
    _exp_all(x, out)
    assert _ulps(out, np.exp(x.astype(LONG))) <= 2
    assert (out**2 >= np.finfo(dtype).tiny).all() or dtype is np.float64
    x = _padded(np.array([lowest, -1e10, -np.inf, np.nan]), dtype)
    out = np.ones_like(x)
    _exp_all(x, out)
    assert (out == 0).all()


@KINDS
def test_log_is_within_two_ulp_and_minus_infinity_below_one(dtype):
    rng = np.random.default_rng(1)
    farthest = np.log(np.finfo(dtype).max)
    near = 1 + rng.exponential(1.0, 20_000)
    far = np.exp(rng.uniform(0, farthest - 1, 20_000))
    next_one = np.nextafter(dtype(1), dtype(2))
    x = _padded(np.concatenate([[1.0, next_one, np.sqrt(2)], near, far]), dtype)
    out = np.empty_like(x)
    _log_all(x, out)
    exact = np.log(x.astype(LONG))
    assert out[0] == 0.0
    some = exact > 0
    assert _ulps(out[some], exact[some]) <= 2
    out = np.empty(lanes_of(dtype), dtype=dtype)
    _log_all(np.zeros_like(out), out)
    assert (out == -np.inf).all()


@njit
def _transposed(x, step, out):
    store(transpose(load_square(x, 0, step, out)), out, 0, step, 1)


@pytest.mark.parametrize("of_rows", [np.float32, np.float64])
@KINDS
def test_transpose_and_conversion(of_rows, dtype):
    n = lanes_of(dtype)
    x = np.arange(n * n, dtype=of_rows)
    out = np.empty(len(x), dtype=dtype)
    _transposed(x, n, out)
    np.testing.assert_array_equal(out.reshape(n, n), x.reshape(n, n).T)


@njit
def _outer(x, left, tile_out, sums_out):
    columns = load(x, 0, 0, 1, 2)
    tile = add_outer(splat(left, 0, 2, 3), columns, zeros(x, 6))
    tile = add_to_rows(splat(left, 0, 2, 3), tile)
    store(tile, tile_out, 0, 3 * lanes(x), 2)
    add_lane_sums(tile, sums_out, 1, 4, 2)
    add_lane_sums(row_sums(tile, 3), sums_out, 20, 1, 1)
    add_lane_sums(row_sums(add_squares(tile, zeros(x, 2)), 1), sums_out, 30, 0, 1)


@KINDS
def test_tiles_of_rows_and_columns(dtype):
    rng, n = np.random.default_rng(2), lanes_of(dtype)
    x, left = rng.normal(size=2 * n).astype(dtype), rng.normal(size=6).astype(dtype)
    tile_out, sums_out = np.zeros(9 * n, dtype=dtype), np.ones(31)
    _outer(x, left, tile_out, sums_out)
    expected = np.outer(left[::2], x).astype(float) + left[::2, np.newaxis]
    rows = tile_out.reshape(3, 3 * n)
    near = {"rtol": 50 * np.finfo(dtype).eps, "atol": 4 * np.finfo(dtype).eps}
    np.testing.assert_allclose(rows[:, : 2 * n], expected, **near)
    assert (rows[:, 2 * n :] == 0).all()
    by_vector = expected.reshape(3, 2, n).sum(axis=2)
    got = sums_out[1:13].reshape(3, 4)
    near["atol"] *= n
    np.testing.assert_allclose(got[:, :2], 1 + by_vector, **near)
    assert (got[:, 2:] == 1).all()
    np.testing.assert_allclose(sums_out[20:23], 1 + by_vector.sum(axis=1), **near)
    squares = 1 + (expected**2).sum()
    np.testing.assert_allclose(sums_out[30], squares, **near)


def test_sums_of_singles_are_added_up_in_double():
    x, out = np.zeros(2 * LANES * 2, dtype=np.float32), np.array([1e9] * 31)
    x[0] = 1.0
    _outer(
        x, np.array([0.5, 0, 0, 0, 0, 0], dtype=np.float32), np.zeros(200, "f4"), out
    )
    assert out[1] == 1e9 + 0.5 + 0.5 * 2 * LANES


@njit
def _distances(x, means, scales, out):
    tile = add_scaled_squares(
        load(x, 0, 0, 1, 2), splat(means, 0, 1, 2), splat(scales, 0, 1, 2), zeros(x, 4)
    )
    store(tile, out, 0, 2 * lanes(x), 2)


@KINDS
def test_scaled_squares(dtype):
    rng, n = np.random.default_rng(3), lanes_of(dtype)
    x, means, scales = (
        rng.normal(size=2 * n).astype(dtype),
        rng.normal(size=2).astype(dtype),
        (np.arange(2) + 1.0).astype(dtype),
    )
    out = np.empty(4 * n, dtype=dtype)
    _distances(x, means, scales, out)
    expected = ((x - means[:, np.newaxis]) * scales[:, np.newaxis]) ** 2
    rtol = 50 * np.finfo(dtype).eps
    np.testing.assert_allclose(out.reshape(2, -1), expected, rtol=rtol)


@njit
def _choices(x, y, larger, chosen):
    a, b = load(x, 0, 0, 1, 1), load(y, 0, 0, 1, 1)
    store(maximum(a, b), larger, 0, 0, 1)
    store(where_above(a, b, b, a), chosen, 0, 0, 1)


@KINDS
def test_choices_take_the_second_at_nan(dtype):
    n = lanes_of(dtype)
    x, y = np.arange(n).astype(dtype), np.full(n, 1.5, dtype=dtype)
    x[-1] = np.nan
    larger, chosen = np.empty_like(x), np.empty_like(x)
    _choices(x, y, larger, chosen)
    np.testing.assert_array_equal(larger[:-1], np.maximum(x, y)[:-1])
    np.testing.assert_array_equal(chosen[:-1], np.minimum(x, y)[:-1])
    assert larger[-1] == 1.5
    assert np.isnan(chosen[-1])
