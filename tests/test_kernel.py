"""The compiled kernel against the plain formula in long double."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import COVARIANCE_TYPES, random_mixture
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from oracle import LONG, log_joint, log_sum_exp, responsibilities

from daskgmm import kernel
from daskgmm.moments import e_step, moments, plan
from daskgmm.sources import Block


@njit
def _exp_all(x):
    out = np.empty_like(x)
    for i in range(x.size):
        out[i] = kernel._exp(x[i])
    return out


def test_exp_is_within_two_ulp_and_zero_below_its_range():
    rng = np.random.default_rng(0)
    x = np.concatenate([-rng.exponential(100.0, 50_000), [0.0, -1e-300, -707.99]])
    x = x[x > -708]
    exact = np.exp(x.astype(LONG)).astype(np.float64)
    assert np.max(np.abs(_exp_all(x) - exact) / np.spacing(exact)) <= 2
    assert (_exp_all(np.array([-708.0, -1e10, -np.inf])) == 0).all()


def _moments_by_oracle(mixture, x, weights, covariance_type):
    joint = log_joint(
        x, mixture.weights, mixture.means, mixture.factors, covariance_type
    )
    r = responsibilities(joint) * weights[:, np.newaxis]
    deviations = x[:, np.newaxis].astype(LONG) - mixture.means
    drift = np.einsum("nk,nkd->kd", r, deviations)
    scatter = np.einsum("nk,nkd,nke->kde", r, deviations, deviations)
    return r.sum(axis=0), drift, scatter, (weights * log_sum_exp(joint)).sum()


def _scatter_matrices(covariance_type, scatter, d):
    """Oracle's scatter as the shape keeps it."""
    i, j = np.triu_indices(d)
    diagonals = np.einsum("kii->ki", scatter)
    return {
        "full": scatter[:, i, j],
        "tied": scatter.sum(axis=0, keepdims=True)[:, i, j],
        "diag": diagonals,
        "spherical": diagonals.sum(axis=1, keepdims=True),
    }[covariance_type]


@settings(max_examples=60, deadline=None)
@given(
    covariance_type=st.sampled_from(COVARIANCE_TYPES),
    d=st.integers(1, 6),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    n=st.sampled_from([1, 2, 7, 255, 256, 257, 600]),
    single=st.booleans(),
    weighted=st.booleans(),
    spread=st.sampled_from([0.0, 3.0, 1e4]),
    seed=st.integers(0, 2**31),
)
def test_moments_are_the_oracles(
    covariance_type, d, sizes, n, single, weighted, spread, seed
):
    """For several runs at once; a large spread makes components centred."""
    rng = np.random.default_rng(seed)
    mixtures = [
        random_mixture(rng, covariance_type, k, d, spread=spread) for k in sizes
    ]
    x = rng.normal(size=(n, d)) * (1 + spread)
    x = x.astype(np.float32 if single else np.float64)
    weights = rng.choice([0.0, 0.5, 1.0, 3.0], size=n) if weighted else None
    message = plan(mixtures, x.mean(axis=0, dtype=np.float64))
    found = moments(message, e_step(message, iter([Block(0, x, weights)])), mixtures)
    for mixture, got in zip(mixtures, found, strict=True):
        w = np.ones(n) if weights is None else weights
        mass, drift, scatter, log_prob = _moments_by_oracle(
            mixture, x, w, covariance_type
        )
        size = np.abs(x).max() + np.abs(mixture.means).max()
        np.testing.assert_allclose(got.mass, mass, rtol=1e-8, atol=1e-8 * n)
        np.testing.assert_allclose(got.drift, drift, rtol=1e-8, atol=1e-8 * n * size)
        np.testing.assert_allclose(
            got.scatter,
            _scatter_matrices(covariance_type, scatter, d).astype(np.float64),
            rtol=1e-8,
            atol=1e-8 * n * size**2,
        )
        assert got.log_prob == pytest.approx(float(log_prob), rel=1e-9, abs=1e-9)
        assert got.weight == pytest.approx(w.sum())


def test_both_forms_stand_side_by_side_in_one_pass(covariance_type):
    """One run lifted, one centred, and one with both forms where the shape allows."""
    rng = np.random.default_rng(1)
    wide = random_mixture(rng, covariance_type, 3, 4)
    narrow = random_mixture(rng, covariance_type, 2, 4, scale=1e-6)
    message = plan([wide, narrow], np.zeros(4))
    assert set(message.plan.centred) == {3, 4}
    x = np.vstack([wide.sample(300, np.random.RandomState(0))[0], narrow.means])
    found = moments(message, e_step(message, iter([Block(0, x, None)])), [wide, narrow])
    for mixture, got in zip([wide, narrow], found, strict=True):
        mass, drift, scatter, _ = _moments_by_oracle(
            mixture, x, np.ones(len(x)), covariance_type
        )
        np.testing.assert_allclose(got.mass, mass.astype(float), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(got.drift, drift.astype(float), rtol=1e-8, atol=1e-7)
        np.testing.assert_allclose(
            got.scatter,
            _scatter_matrices(covariance_type, scatter, 4).astype(float),
            rtol=1e-8,
            atol=1e-6,
        )


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_many_features(covariance_type, scale):
    """More than one band of a factor and more than one lot of features."""
    rng = np.random.default_rng(5)
    d = 70
    mixture = random_mixture(rng, covariance_type, 3, d, scale=scale)
    x, _ = mixture.sample(300, np.random.RandomState(5))
    message = plan([mixture], np.zeros(d))
    assert (len(message.plan.centred) > 0) == (scale < 1)
    [got] = moments(message, e_step(message, iter([Block(0, x, None)])), [mixture])
    mass, drift, scatter, log_prob = _moments_by_oracle(
        mixture, x, np.ones(len(x)), covariance_type
    )
    np.testing.assert_allclose(got.mass, mass.astype(float), rtol=1e-8)
    np.testing.assert_allclose(got.drift, drift.astype(float), atol=1e-8 * scale * 300)
    expected = _scatter_matrices(covariance_type, scatter, d).astype(float)
    np.testing.assert_allclose(got.scatter, expected, atol=1e-8 * scale**2 * 300)
    assert got.log_prob == pytest.approx(float(log_prob), rel=1e-10)


def test_blocks_of_any_layout_give_the_same_sums(covariance_type):
    rng = np.random.default_rng(2)
    mixture = random_mixture(rng, covariance_type, 3, 5)
    x = rng.normal(size=(500, 5))
    message = plan([mixture], np.zeros(5))

    def sums(rows):
        return e_step(message, iter([Block(0, rows, None)])).buffer

    expected = sums(x)
    frozen = x.copy()
    frozen.flags.writeable = False
    for rows in (np.asfortranarray(x), np.repeat(x, 2, axis=0)[::2], frozen):
        np.testing.assert_array_equal(sums(rows), expected)


def test_an_empty_block_adds_nothing(covariance_type):
    mixture = random_mixture(np.random.default_rng(3), covariance_type, 2, 3)
    message = plan([mixture], np.zeros(3))
    sums = e_step(message, iter([Block(0, np.empty((0, 3)), None)]))
    assert (sums.buffer == 0).all()


def test_only_two_signatures_are_compiled():
    """float32 and float64: neither layout nor writability makes another."""
    rng = np.random.default_rng(4)
    mixture = random_mixture(rng, "full", 2, 3)
    message = plan([mixture], np.zeros(3))
    x = rng.normal(size=(10, 3))
    frozen = x.copy()
    frozen.flags.writeable = False
    for rows in (x, frozen, x[::2], np.asfortranarray(x), x.astype(np.float32)):
        for weights in (None, np.ones(len(rows))):
            e_step(message, iter([Block(0, rows, weights)]))
    assert len(kernel.accumulate.signatures) <= 2


def test_survey_finds_the_first_bad_entry_and_sums_columns():
    x = np.arange(12.0).reshape(4, 3)
    sums = np.zeros(3)
    ones = kernel.readonly(np.array([1.0, 0.0, 2.0, 1.0]))
    assert kernel.survey(kernel.readonly(x), ones, sums) == -1
    np.testing.assert_array_equal(sums, ones @ x)
    x[2, 1] = np.inf
    x[3, 0] = np.nan
    assert kernel.survey(kernel.readonly(x), ones, sums) == 2 * 3 + 1
