"""Covariance shapes against NumPy's dense algebra."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import random_covariances
from oracle import factor_matrix
from sklearn.mixture import GaussianMixture
from sklearn.mixture._gaussian_mixture import _compute_precision_cholesky

from daskgmm.errors import IllDefinedCovarianceError
from daskgmm.mixtures.covariance import SHAPES


@pytest.fixture
def case(covariance_type):
    rng = np.random.default_rng(0)
    k, d = 3, 4
    covariances = random_covariances(rng, covariance_type, k, d)
    return SHAPES[covariance_type], covariances, k, d


def _dense(shape, covariances, k, d):
    return np.stack(
        [factor_matrix(covariances, shape.name, i, d).astype(float) for i in range(k)]
    )


def test_factors_are_scikit_learns(case):
    shape, covariances, _, _ = case
    np.testing.assert_allclose(
        shape.factors(covariances),
        _compute_precision_cholesky(covariances, shape.name),
        rtol=1e-12,
        atol=1e-14,
    )


def test_precisions_invert_covariances(case):
    shape, covariances, k, d = case
    factors = shape.factors(covariances)
    precisions = _dense(shape, shape.precisions(factors), k, d)
    identity = precisions @ _dense(shape, covariances, k, d)
    np.testing.assert_allclose(identity, np.stack([np.eye(d)] * k), atol=1e-12)
    np.testing.assert_allclose(shape.covariances_of_factors(factors), covariances)


def test_factors_of_precisions_are_the_factors(case):
    shape, covariances, _, _ = case
    factors = shape.factors(covariances)
    again = shape.factors_of_precisions(shape.precisions(factors))
    np.testing.assert_allclose(again, factors, rtol=1e-10, atol=1e-12)


def test_log_dets(case):
    shape, covariances, k, d = case
    _, expected = np.linalg.slogdet(_dense(shape, covariances, k, d))
    got = shape.log_dets(shape.factors(covariances), k, d)
    np.testing.assert_allclose(got, -0.5 * expected)


def test_n_parameters_are_scikit_learns(case):
    shape, _, k, d = case
    model = GaussianMixture(k, covariance_type=shape.name)
    model.means_ = np.zeros((k, d))
    expected = model._n_parameters() - k * d - k + 1
    assert shape.n_parameters(k, d) == expected


def test_recentre_moves_a_scatter(case):
    shape, _, k, d = case
    rng = np.random.default_rng(1)
    x, r = rng.normal(size=(50, d)), rng.random((50, k))
    old, new = rng.normal(size=(2, k, d))

    def scatter(about):
        return shape.pool(
            np.stack([shape.scatter(x - about[i], r[:, i]) for i in range(k)])
        )

    drift = np.einsum("nk,nkd->kd", r, x[:, np.newaxis] - old)
    moved = shape.recentre(scatter(old), drift, r.sum(axis=0), new - old)
    np.testing.assert_allclose(moved, scatter(new), rtol=1e-10)


def test_a_covariance_that_is_not_positive_names_its_component(covariance_type):
    shape = SHAPES[covariance_type]
    covariances = random_covariances(np.random.default_rng(4), covariance_type, 3, 2)
    covariances[... if shape.pooled else 1] *= -1.0
    with pytest.raises(IllDefinedCovarianceError) as raised:
        shape.factors(covariances)
    assert "increase reg_covar" in str(raised.value)
    expected = "all components share" if shape.pooled else "component 1."
    assert expected in str(raised.value)


def test_nan_is_ill_defined(covariance_type):
    shape = SHAPES[covariance_type]
    covariances = random_covariances(np.random.default_rng(5), covariance_type, 2, 2)
    covariances[...] = np.nan
    with pytest.raises(IllDefinedCovarianceError):
        shape.factors(covariances)
