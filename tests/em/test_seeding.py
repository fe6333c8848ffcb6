"""Rows drawn for seeding, and the starts found from them."""

from __future__ import annotations

import tracemalloc

import dask.array as da
import numpy as np
import pytest
from conftest import blobs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from daskgmm import DataError, GaussianMixture
from daskgmm.data.sources import open_source
from daskgmm.em.initialization import Start, seed
from daskgmm.em.scan import survey
from daskgmm.em.subsample import (
    _draw_numbers,
    _one_behind_the_other,
    subsample,
    survey_and_draw,
)
from daskgmm.mixtures.covariance import SHAPES


def _sample(x, size, random_state, weights=None):
    source = open_source(x, weights)
    shards = source.shards()
    found = survey(shards)
    return subsample(shards, found, size, np.random.RandomState(random_state))


def _numbered(n):
    """Rows that say which they are."""
    return np.arange(n, dtype=float)[:, np.newaxis]


def test_all_rows_are_taken_if_there_are_no_more():
    x = blobs(0, 100, 3, 2)
    sample = _sample(x, 100, 0)
    np.testing.assert_array_equal(sample.x, x)
    assert sample.weights is None


@settings(max_examples=30)
@given(
    chunks=st.lists(st.integers(0, 30), min_size=1, max_size=8),
    size=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_the_draw_depends_on_the_number_of_rows_alone(chunks, size, seed):
    n = sum(chunks)
    if n == 0:
        return
    x = _numbered(n)
    plain = _sample(x, size, seed)
    chunked = _sample(da.from_array(x, chunks=(tuple(chunks), 1)), size, seed)
    np.testing.assert_array_equal(chunked.x, plain.x)
    assert len(plain.x) == min(n, size)
    assert len(np.unique(plain.x)) == len(plain.x)


@settings(max_examples=30)
@given(
    chunks=st.lists(st.integers(0, 30), min_size=1, max_size=8),
    size=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_one_read_finds_and_draws_what_two_do(chunks, size, seed):
    n = sum(chunks)
    if n == 0:
        return
    source = open_source(da.from_array(_numbered(n), chunks=(tuple(chunks), 1)))
    by_two, by_one = np.random.RandomState(seed), np.random.RandomState(seed)
    expected = survey(source.shards())
    rows = subsample(source.shards(), expected, size, by_two)
    found, drawn = survey_and_draw(source.shards(), source.lengths, size, by_one)
    assert found == expected
    np.testing.assert_array_equal(drawn.x, rows.x)
    assert drawn.weights is None
    assert by_one.uniform() == by_two.uniform()


@pytest.mark.parametrize("size", [5, 1000])
def test_nothing_is_drawn_where_blocks_are_not_as_long_as_was_said(size):
    source = open_source(da.from_array(_numbered(100), chunks=(10, 1)))
    random_state = np.random.RandomState(0)
    lengths = [9, 11, *[10] * 8]
    found, drawn = survey_and_draw(source.shards(), lengths, size, random_state)
    assert found == survey(source.shards())
    assert drawn is None
    assert random_state.uniform() == np.random.RandomState(0).uniform()


@pytest.mark.parametrize("init_size", [200, 10_000])
def test_a_dask_array_of_other_lengths_than_it_says_is_fitted_all_the_same(init_size):
    x = blobs(0, 1000, 2, 2)
    lies = da.from_array(x, chunks=(500, 2)).map_blocks(
        lambda block, block_info=None: (
            block[:-100] if block[0, 0] == x[0, 0] else block
        ),
        meta=np.empty((0, 0)),
    )
    assert lies.chunks[0] == (500, 500)
    assert len(lies.compute(scheduler="sync")) == 900
    estimator = GaussianMixture(2, random_state=0, init_size=init_size)
    found = estimator.fit(lies).means_
    expected = estimator.fit(np.delete(x, slice(400, 500), axis=0)).means_
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("kept", [0, 1])
def test_too_few_rows_are_noticed_where_more_were_said(kept):
    """By the first pass, where a complete start needs no read before."""
    rows = da.from_array(blobs(0, 100, 2, 2), chunks=(50, 2))
    lies = rows.map_blocks(lambda block: block[:kept], meta=np.empty((0, 0)))
    start = {
        "weights_init": np.full(3, 1 / 3),
        "means_init": [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]],
        "precisions_init": [np.eye(2)] * 3,
    }
    said = "0 sample" if kept == 0 else "n_components = 3, n_samples = 2"
    with pytest.raises(DataError, match=said):
        GaussianMixture(3, **start).fit(lies)


def test_the_draw_is_uniform():
    n, size = 40, 10
    counts = np.zeros(n)
    for i in range(600):
        counts[_sample(_numbered(n), size, i).x.astype(int)] += 1
    assert stats.chisquare(counts).pvalue > 1e-4


def test_rows_of_unequal_weight_are_drawn_in_proportion():
    weights = np.repeat([0.0, 1.0, 4.0], 20)
    counts = np.zeros(60)
    for i in range(600):
        sample = _sample(_numbered(60), 10, i, weights)
        drawn = sample.x[:, 0].astype(int)
        # Weights are one on average: the multiplicity, up to a factor.
        times = sample.weights / sample.weights.sum() * 10
        counts[drawn] += times
    assert (counts[:20] == 0).all()
    expected = weights[20:] / weights.sum() * 6000
    assert stats.chisquare(counts[20:], expected).pvalue > 1e-4


def test_a_constant_factor_in_the_weights_changes_no_draw():
    weights = np.random.default_rng(0).choice([0.0, 0.5, 1.0, 3.0], size=200)
    plain = _sample(_numbered(200), 20, 1, weights)
    scaled = _sample(_numbered(200), 20, 1, weights * 37.5)
    np.testing.assert_array_equal(plain.x, scaled.x)
    np.testing.assert_allclose(plain.weights, scaled.weights)


def test_rows_without_weight_are_absent_from_the_draw():
    keep = np.random.default_rng(1).random(300) < 0.5
    x = _numbered(300)
    weighted = _sample(x, 40, 2, keep * 2.0)
    np.testing.assert_array_equal(weighted.x, _sample(x[keep], 40, 2).x)
    assert weighted.weights is None


def test_the_draw_takes_memory_for_the_drawn_rows_only():
    """Of a billion row numbers, 1,000: no array of all of them."""
    tracemalloc.start()
    numbers = _draw_numbers(10**9, 1000, np.random.RandomState(0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6
    assert len(np.unique(numbers)) == 1000
    assert numbers.max() < 10**9


@pytest.mark.parametrize(
    "method", ["kmeans", "k-means++", "random", "random_from_data"]
)
def test_repeated_rows_are_rows_of_integer_weight(covariance_type, method):
    """From the same starting parameters, to rounding; sums of weights in seeding."""
    x = blobs(2, 150, 2, 2)
    weights = np.random.default_rng(3).integers(0, 4, size=150)
    start = {"means_init": x[:2], "weights_init": [0.4, 0.6]}
    if method == "kmeans":  # its random draws see the same groups
        start = {}
    parameters = {
        "n_components": 2,
        "covariance_type": covariance_type,
        "random_state": 0,
        "init_params": method,
        "tol": 1e-8,
        "max_iter": 500,
    }
    if method in ("k-means++", "random", "random_from_data"):
        found = GaussianMixture(**parameters).fit(x)
        start["precisions_init"] = found.precisions_
    weighted = GaussianMixture(**parameters, **start).fit(x, sample_weight=weights)
    repeated = GaussianMixture(**parameters, **start).fit(np.repeat(x, weights, axis=0))
    order = np.argsort(weighted.means_[:, 0]), np.argsort(repeated.means_[:, 0])
    np.testing.assert_allclose(
        weighted.means_[order[0]], repeated.means_[order[1]], rtol=1e-5, atol=1e-6
    )
    for method_name in ("score", "aic", "bic"):
        got = getattr(weighted, method_name)(x, sample_weight=weights)
        expected = getattr(weighted, method_name)(np.repeat(x, weights, axis=0))
        assert got == pytest.approx(expected, rel=1e-10)


def test_weights_of_zero_leave_no_trace(covariance_type, init_params):
    x = blobs(4, 200, 2, 2)
    keep = np.random.default_rng(5).random(200) < 0.7
    spoilt = np.where(keep[:, np.newaxis], x, 1e6)
    parameters = {
        "n_components": 2,
        "covariance_type": covariance_type,
        "init_params": init_params,
        "random_state": 0,
    }
    with_zeros = GaussianMixture(**parameters).fit(spoilt, sample_weight=keep * 1.0)
    without = GaussianMixture(**parameters).fit(x[keep])
    np.testing.assert_allclose(with_zeros.means_, without.means_, rtol=1e-7)
    np.testing.assert_allclose(with_zeros.covariances_, without.covariances_, rtol=1e-6)
    assert with_zeros.n_iter_ == without.n_iter_


def test_a_constant_factor_changes_nothing(covariance_type, init_params):
    x = blobs(6, 300, 3, 3)
    weights = np.random.default_rng(7).random(300) + 0.1
    parameters = {
        "n_components": 3,
        "covariance_type": covariance_type,
        "init_params": init_params,
        "random_state": 0,
        "init_size": 200,
    }
    plain = GaussianMixture(**parameters).fit(x, sample_weight=weights)
    for factor in (1e-6, 12345.6):
        scaled = GaussianMixture(**parameters).fit(x, sample_weight=weights * factor)
        assert scaled.n_iter_ == plain.n_iter_
        np.testing.assert_allclose(scaled.means_, plain.means_, rtol=1e-8)
        np.testing.assert_allclose(scaled.weights_, plain.weights_, rtol=1e-8)
        np.testing.assert_allclose(
            scaled.covariances_, plain.covariances_, rtol=1e-7, atol=1e-12
        )


def test_equal_weights_are_no_weights(covariance_type, init_params):
    x = blobs(8, 300, 2, 2)
    parameters = {
        "n_components": 2,
        "covariance_type": covariance_type,
        "init_params": init_params,
        "random_state": 0,
    }
    plain = GaussianMixture(**parameters).fit(x)
    weighted = GaussianMixture(**parameters).fit(x, sample_weight=np.full(300, 2.5))
    np.testing.assert_allclose(weighted.means_, plain.means_, rtol=1e-9)
    assert weighted.n_iter_ == plain.n_iter_


def test_a_complete_start_needs_no_sample():
    shape = SHAPES["diag"]
    precisions = np.array([[1.0, 2.0], [3.0, 4.0]])
    start = Start(2, shape, "kmeans", np.array([0.5, 0.5]), np.eye(2), precisions)
    mixture = seed(start, None, 1e-6, np.random.RandomState(0))
    np.testing.assert_allclose(mixture.covariances, 1 / precisions)


def test_the_first_bound_after_more_rows_than_init_size(init_params):
    """Seeding from a part of the rows still leads to a sound fit."""
    x = blobs(9, 3000, 2, 3, spread=8.0)
    whole = GaussianMixture(3, random_state=0, n_init=3).fit(x)
    part = GaussianMixture(
        3,
        random_state=0,
        n_init=5,
        init_size=300,
        init_params=init_params,
        max_iter=500,
    ).fit(x)
    assert part.lower_bound_ == pytest.approx(whole.lower_bound_, abs=0.02)


def test_pieces_of_an_array_are_one_only_if_they_are_all_of_it_in_order():
    whole = np.arange(40.0).reshape(10, 4)
    for pieces, is_shared in (
        ([whole], True),
        ([whole[:3], whole[3:7], whole[7:]], True),
        ([whole[:3], whole[7:], whole[3:7]], False),
        ([whole[:3], whole[:3], whole[6:]], False),
        ([whole[1:3], whole[3:7]], False),
        ([whole[:5].copy(), whole[5:]], False),
        ([np.asfortranarray(whole)[:5], whole[5:]], False),
        ([whole[:5], whole[::-1][:5]], False),
    ):
        found = _one_behind_the_other(pieces)
        np.testing.assert_array_equal(found, np.concatenate(pieces))
        assert np.shares_memory(found, whole) == is_shared
