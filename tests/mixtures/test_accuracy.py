"""Row densities and covariances where plain formulas lose their digits."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import COVARIANCE_TYPES
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import log_joint, log_sum_exp, responsibilities

from daskgmm import GaussianMixture
from daskgmm.em.predict import answer, ask
from daskgmm.mixtures.covariance import SHAPES
from daskgmm.mixtures.gaussian import Mixture


def _correlation(kind, rng, d, condition):
    """A covariance of unit scale and about this condition number."""
    steps = np.arange(d)
    near_one = 1.0 - 1.0 / condition
    if kind == "rotated":
        q, _ = np.linalg.qr(rng.normal(size=(d, d)))
        return (q * np.geomspace(1.0, 1.0 / condition, d)) @ q.T
    if kind == "equal":
        return (1.0 - near_one) * np.eye(d) + near_one
    return near_one ** np.abs(steps[:, np.newaxis] - steps)


def _covariances(covariance_type, kind, rng, k, d, condition):
    if covariance_type == "full":
        return np.stack([_correlation(kind, rng, d, condition) for _ in range(k)])
    if covariance_type == "tied":
        return _correlation(kind, rng, d, condition)
    if covariance_type == "diag":
        return np.stack([np.geomspace(1.0, 1.0 / condition, d)] * k)
    return np.geomspace(1.0, 1.0 / condition, k)


@settings(max_examples=150)
@given(
    covariance_type=st.sampled_from(COVARIANCE_TYPES),
    kind=st.sampled_from(["rotated", "equal", "autoregressive"]),
    d=st.sampled_from([1, 2, 3, 8, 24, 64]),
    log_condition=st.floats(0.0, 8.0),
    log_spread=st.floats(-1.0, 6.0),
    seed=st.integers(0, 2**31),
)
def test_log_densities_are_right(
    covariance_type, kind, d, log_condition, log_spread, seed
):
    """Near, far and very far rows."""
    rng = np.random.default_rng(seed)
    k = 3
    shape = SHAPES[covariance_type]
    condition = 10.0**log_condition
    covariances = _covariances(covariance_type, kind, rng, k, d, condition)
    means = rng.normal(size=(k, d)) * 10.0**log_spread
    factors = shape.factors(covariances)
    mixture = Mixture(shape, np.array([0.2, 0.3, 0.5]), means, covariances, factors)
    near, labels = mixture.sample(60, np.random.RandomState(seed % 2**31))
    centres = means[labels]
    x = np.vstack(
        [near, centres + 30 * (near - centres), centres + 1000 * (near - centres)]
    )
    joint = log_joint(x, mixture.weights, means, factors, covariance_type)
    exact = log_sum_exp(joint)
    got = answer(ask(mixture, "log_prob"), x)
    shares = answer(ask(mixture, "responsibilities"), x)
    error = np.abs(got - exact) / np.maximum(1.0, np.abs(exact))
    assert error.max() <= 1e-9
    sizes = np.maximum(1.0, np.abs(joint).min(axis=1))
    off = np.abs(shares - responsibilities(joint)).max(axis=1) / sizes
    assert off.max() <= 1e-9


def _two_groups(rng, n, d):
    """Rows around -5 and 5, and the covariance of each half."""
    x = rng.normal(size=(n, d)) @ (np.eye(d) + 0.3)
    x[: n // 2] -= 5
    x[n // 2 :] += 5
    return x


def _start(x, covariance_type, d, variance):
    half = len(x) // 2
    precisions = {
        "full": np.stack([np.eye(d) / variance] * 2),
        "tied": np.eye(d) / variance,
        "diag": np.full((2, d), 1 / variance),
        "spherical": np.full(2, 1 / variance),
    }[covariance_type]
    return {
        "means_init": np.stack([x[:half].mean(axis=0), x[half:].mean(axis=0)]),
        "weights_init": [0.5, 0.5],
        "precisions_init": precisions,
    }


@pytest.mark.parametrize(
    ("scale", "offset"),
    [(1.0, 0.0), (1.0, 1e8), (1e-9, 0.0), (1e9, 0.0), (1e9, 1e15), (1e-9, 1e-2)],
)
def test_covariances_do_not_depend_on_origin_and_scale(covariance_type, scale, offset):
    """Rows of the form scale · z + offset, rounded to float64 as any data are."""
    rng = np.random.default_rng(0)
    d = 3
    rounded = _two_groups(rng, 4000, d) * scale + offset
    z = (rounded - offset) / scale  # what is left of the rows, exactly
    plain = GaussianMixture(2, covariance_type=covariance_type, reg_covar=0, tol=1e-6)
    plain.set_params(**_start(z, covariance_type, d, 1.0)).fit(z)
    moved = GaussianMixture(2, covariance_type=covariance_type, reg_covar=0, tol=1e-6)
    moved.set_params(**_start(rounded, covariance_type, d, scale**2)).fit(rounded)
    np.testing.assert_allclose(
        moved.covariances_ / scale**2, plain.covariances_, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("init_params", ["kmeans", "k-means++"])
def test_far_from_the_origin_with_seeding(covariance_type, init_params):
    """1e8 ± 1: what raw second moments lose entirely."""
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, size=(5000, 2)) + 1e8
    model = GaussianMixture(
        1, covariance_type=covariance_type, init_params=init_params, random_state=0
    ).fit(x)
    exact = np.cov((x - 1e8).T, bias=True)
    shape = SHAPES[covariance_type]
    expected = {
        "full": exact[np.newaxis],
        "tied": exact,
        "diag": np.diag(exact)[np.newaxis],
        "spherical": np.diag(exact).mean(keepdims=True),
    }[shape.name]
    np.testing.assert_allclose(model.covariances_, expected, rtol=1e-4, atol=2e-6)


def test_a_component_much_narrower_than_the_data(covariance_type):
    rng = np.random.default_rng(2)
    d, narrow = 2, 1e-5
    wide_rows = rng.normal(size=(3000, d)) * 3
    narrow_rows = rng.normal(size=(3000, d)) * narrow + 7.0
    if covariance_type == "tied":  # one width for both: two narrow groups, far apart
        wide_rows = rng.normal(size=(3000, d)) * narrow - 7.0
    x = np.vstack([wide_rows, narrow_rows])
    model = GaussianMixture(
        2,
        covariance_type=covariance_type,
        reg_covar=0,
        random_state=0,
        tol=1e-10,
        max_iter=300,
    ).fit(x)
    k = int(np.argmax(model.means_[:, 0]))
    exact = np.cov(narrow_rows.T, bias=True)
    if covariance_type == "tied":
        exact = (exact + np.cov(wide_rows.T, bias=True)) / 2
        np.testing.assert_allclose(
            model.covariances_, exact, rtol=1e-4, atol=1e-4 * narrow**2
        )
        return
    members = rng.permutation(narrow_rows)
    expected = {
        "full": np.cov(members.T, bias=True),
        "diag": members.var(axis=0),
        "spherical": members.var(axis=0).mean(),
    }[covariance_type]
    # A few wide rows may fall among the narrow ones: none does with this seed.
    np.testing.assert_allclose(
        model.covariances_[k], expected, rtol=1e-4, atol=1e-4 * narrow**2
    )


@pytest.mark.parametrize("narrow", [1e-7, 1e-10, 1e-13])
@pytest.mark.parametrize("centre", [0.0, 7.0])
def test_a_width_is_no_rounding_until_it_is(covariance_type, narrow, centre):
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(2000, 2)) * narrow + centre
    beside = rng.normal(size=(2000, 2)) * (narrow if covariance_type == "tied" else 3)
    x = np.vstack([rows, beside + centre + 30.0])
    model = GaussianMixture(
        2, covariance_type=covariance_type, reg_covar=0, random_state=0
    ).fit(x)
    k = int(np.argmin(model.means_[:, 0]))
    covariances = SHAPES[covariance_type].of_component(model.covariances_, k)
    found = np.diag(covariances) if np.ndim(covariances) > 1 else covariances
    # Beside 30, the rows of the tied ones are rounded to 4e-15.
    np.testing.assert_allclose(np.sqrt(found), narrow, rtol=0.1)


def test_groups_far_apart_in_their_width(covariance_type):
    rng = np.random.default_rng(4)
    x = np.vstack([rng.normal(size=(1000, 2)), rng.normal(size=(1000, 2)) + 1e11])
    model = GaussianMixture(
        2, covariance_type=covariance_type, reg_covar=0, random_state=0
    ).fit(x)
    variances = SHAPES[covariance_type].variances(model.covariances_, 2)
    np.testing.assert_allclose(variances, 1.0, rtol=0.15)
