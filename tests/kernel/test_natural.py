"""The natural form: products instead of deviations, where that loses nothing."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import blobs
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import LONG, log_joint, log_sum_exp, responsibilities
from sklearn.mixture import GaussianMixture as Theirs

from daskgmm import GaussianMixture
from daskgmm.data.block import Block
from daskgmm.kernel import passes
from daskgmm.kernel.layout import as_rows
from daskgmm.mixtures import e_step as of_mixtures
from daskgmm.mixtures.covariance import SHAPES
from daskgmm.mixtures.e_step import NATURAL_BELOW, e_step, message, moments, plan
from daskgmm.mixtures.gaussian import Mixture
from daskgmm.mixtures.single import shift_of

EPS = np.finfo(np.float64).eps


SHAPE = pytest.mark.parametrize("shape", ["spherical", "diag"])


@pytest.fixture(autouse=True)
def few_components_are_enough(monkeypatch):
    monkeypatch.setattr(of_mixtures, "MIN_GENERAL", 4)


def mixture(
    rng,
    k,
    d,
    shape="spherical",
    *,
    distance=3.0,
    offset=0.0,
    spread=1.0,
    n_narrow=0,
    narrow=1e-4,
):
    """Means that lie so far from their centre, in the least standard deviations.

    For some of them, which are narrow, it is many more.
    """
    means = rng.normal(size=(k, d))
    means -= means.mean(axis=0)
    means *= distance * spread / max(np.linalg.norm(means, axis=1).max(), 1e-300)
    size = (k, d) if shape == "diag" else k
    variances = spread**2 * rng.uniform(1.0, 3.0, size=size)
    variances[rng.choice(k, n_narrow, replace=False)] *= narrow**2
    weights = np.full(k, 1.0 / k)
    return Mixture(SHAPES[shape], weights, means + offset, variances, variances**-0.5)


def deviations_of(some):
    """Standard deviations, (K, d)."""
    return np.sqrt(np.broadcast_to(some.covariances.T, some.means.T.shape).T)


def rows_of(rng, some, n):
    """Rows of its components, and one far away from all."""
    labels = rng.integers(len(some.means), size=n)
    noise = rng.normal(size=(n, some.n_features))
    x = some.means[labels] + noise * deviations_of(some)[labels]
    x[-1] += 50.0 * np.sqrt(some.covariances.max())
    return x


def check(mixtures, x, weights, *, within):
    """Moments and log densities against the plain formula, as parts of their size."""
    sent = message(mixtures)
    found = moments(sent, e_step(sent, iter([Block(0, x, weights)])), mixtures)
    w = np.ones(len(x)) if weights is None else weights
    for some, got in zip(mixtures, found, strict=True):
        name = some.shape.name
        joint = log_joint(x, some.weights, some.means, some.factors, name)
        r = responsibilities(joint) * w[:, np.newaxis]
        deviations = x[:, np.newaxis].astype(LONG) - some.means
        squares = np.einsum("nk,nkd,nkd->kd", r, deviations, deviations)
        drift = np.einsum("nk,nkd->kd", r, deviations)
        of_rows = w * np.abs(log_sum_exp(joint))
        mass, size = r.sum(axis=0).astype(float), deviations_of(some)
        far = np.linalg.norm((some.means - some.centre) / size, axis=1)
        far[of_mixtures.far_apart(some)] = 0.0  # measured from their own means
        scale = (1.0 + far[:, np.newaxis] ** 2) * within
        np.testing.assert_allclose(got.mass, mass, rtol=scale.max(), atol=scale.max())
        tolerance = scale * (mass[:, np.newaxis] + 1.0) * size
        assert (np.abs(got.drift - drift) <= 100 * tolerance).all()
        tolerance = 100 * scale * (squares + size**2)
        if name == "spherical":
            squares, tolerance = (a.sum(axis=1)[:, None] for a in (squares, tolerance))
        assert (np.abs(got.scatter - squares) <= tolerance).all()
        assert abs(got.log_prob - (w * log_sum_exp(joint)).sum()) <= (
            scale.max() * (1.0 + of_rows.sum())
        )
    return sent


@settings(max_examples=60)
@given(
    shape=st.sampled_from(["spherical", "diag"]),
    d=st.one_of(st.integers(4, 20), st.sampled_from([32, 39, 66])),
    sizes=st.lists(st.integers(4, 11), min_size=1, max_size=3),
    n=st.sampled_from([1, 7, 255, 256, 257, 600]),
    distance=st.sampled_from([0.0, 3.0, 50.0, 90.0]),
    offset=st.sampled_from([0.0, 1e3, -1e6]),
    spread=st.sampled_from([1e-8, 1.0, 1e5]),
    single=st.booleans(),
    weighted=st.booleans(),
    by_column=st.booleans(),
    n_narrow=st.integers(0, 1),
    seed=st.integers(0, 2**31),
)
def test_it_is_the_oracles(
    shape,
    d,
    sizes,
    n,
    distance,
    offset,
    spread,
    single,
    weighted,
    by_column,
    n_narrow,
    seed,
):
    rng = np.random.default_rng(seed)
    offset = offset * spread  # else rows are no more than rounding
    mixtures = [
        mixture(
            rng,
            k,
            d,
            shape,
            distance=distance,
            offset=offset + i * spread,
            spread=spread,
            n_narrow=n_narrow,
        )
        for i, k in enumerate(sizes)
    ]
    x = rows_of(rng, mixtures[0], n)
    x = x.astype(np.float32 if single else np.float64)
    x = np.asfortranarray(x) if by_column else x
    weights = rng.choice([0.0, 0.5, 1.0, 3.0], size=n) if weighted else None
    sent = check(mixtures, x, weights, within=1e5 * EPS if single else 2e4 * EPS)
    [its] = sent.e_steps
    assert its.plan.quadratic.size == sum(sizes) * (d if shape == "diag" else 1)


@SHAPE
@pytest.mark.parametrize("d", [4, 64, 130])
def test_it_is_left_where_something_would_be_lost(d, shape):
    rng = np.random.default_rng(d)
    farthest = NATURAL_BELOW - np.sqrt(d)
    for distance, is_taken in ((0.99 * farthest, True), (1.8 * farthest, False)):
        some = mixture(rng, 6, d, shape, distance=distance)
        assert (len(plan(some).plan.quadratic) > 0) == is_taken
        x = rows_of(rng, some, 200)
        sent = message([some])
        [found] = moments(sent, e_step(sent, iter([Block(0, x, None)])), [some])
        joint = log_joint(x, some.weights, some.means, some.factors, shape)
        expected = float(log_sum_exp(joint).mean())
        assert found.log_prob / len(x) == pytest.approx(expected, rel=1e-12, abs=1e-12)
    some.covariances[0] = some.factors[0] = np.nan
    assert len(plan(some).plan.quadratic) == 0


@SHAPE
@pytest.mark.parametrize(("k", "d"), [(3, 20), (20, 3)])
def test_few_components_or_features_are_no_products(k, d, shape):
    assert len(plan(mixture(np.random.default_rng(0), k, d, shape)).plan.quadratic) == 0


def test_only_diagonal_covariances_have_it():
    x = blobs(0, 500, 6, 5)
    for name in SHAPES:
        model = GaussianMixture(5, covariance_type=name, random_state=0).fit(x)
        is_taken = len(plan(model._mixture()).plan.quadratic) > 0
        assert is_taken == (name in ("spherical", "diag"))


@SHAPE
@pytest.mark.parametrize("single", [False, True])
def test_answers_are_the_diagonal_forms(monkeypatch, single, shape):
    rng = np.random.default_rng(1)
    some = mixture(rng, 7, 12, shape, distance=20.0)
    x = rows_of(rng, some, 300).astype(np.float32 if single else np.float64)

    def answers():
        its = plan(some)
        log_prob, shares = np.empty(len(x)), np.empty((len(x), 7))
        outputs = {"log_prob": log_prob, "responsibilities": shares}
        passes.evaluate(its.compiled_plan, as_rows(x), its.scratch(), outputs)
        return len(its.plan.quadratic) > 0, log_prob, shares

    taken, *found = answers()
    monkeypatch.setattr(of_mixtures, "NATURAL_BELOW", 0.0)
    not_taken, *expected = answers()
    assert taken
    assert not not_taken
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-12)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-9, atol=1e-14)


@SHAPE
def test_fits_are_scikit_learns(shape):
    x = blobs(3, 2000, 10, 6, spread=1.5) + 10.0
    parameters = {"n_components": 6, "covariance_type": shape, "random_state": 0}
    ours, theirs = (kind(**parameters).fit(x) for kind in (GaussianMixture, Theirs))
    assert ours.n_iter_ == theirs.n_iter_
    np.testing.assert_allclose(ours.means_, theirs.means_, rtol=1e-9)
    np.testing.assert_allclose(ours.covariances_, theirs.covariances_, rtol=1e-6)
    assert ours.lower_bound_ == pytest.approx(theirs.lower_bound_, rel=1e-9)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@SHAPE
def test_a_component_that_collapses_is_measured_again(shape):
    """Of its variance, only rounding is left beside its distance from the origin."""
    rng = np.random.default_rng(0)
    k, d, narrow = 4, 6, 1e-7
    means = 20.0 * np.eye(k, d)
    spreads = np.array([narrow, 1.0, 1.0, 1.0])
    labels = np.repeat(np.arange(k), 500)
    x = means[labels] + rng.normal(size=(2000, d)) * spreads[labels][:, np.newaxis]
    model = GaussianMixture(
        k,
        covariance_type=shape,
        means_init=means,
        precisions_init=np.ones((k, d) if shape == "diag" else k),
        reg_covar=0.0,
        max_iter=1,
    ).fit(x)
    its = x[labels == 0].astype(LONG)
    expected = ((its - its.mean(axis=0)) ** 2).mean(axis=0)
    if shape == "spherical":
        expected = expected.mean()
    got = model.covariances_[0]
    np.testing.assert_allclose(got, expected.astype(float), rtol=1e-6)
    np.testing.assert_allclose(model.covariances_[1:], 1.0, rtol=0.3)


@SHAPE
@pytest.mark.parametrize("offset", [0.0, 30000.1234567])
@pytest.mark.parametrize("weighted", [False, True])
def test_few_live_rows_are_added_up_as_they_lie(monkeypatch, shape, offset, weighted):
    """In single precision, far from zero, against sums of all rows in double."""
    rng = np.random.default_rng(5)
    some = mixture(
        rng, 14, 40, shape, distance=20.0, offset=offset, n_narrow=1, narrow=1e-2
    )
    x = rows_of(rng, some, 500)[:-1].astype(np.float32)
    weights = rng.choice([0.0, 1.0, 3.0], size=len(x)) if weighted else None

    def found(sent):
        return moments(sent, e_step(sent, iter([Block(0, x, weights)])), [some])[0]

    sent = message([some], [shift_of(some)])
    assert sent.e_steps[0].is_single
    assert len(sent.e_steps[0].plan.quadratic) > 0
    assert len(sent.e_steps[0].plan.apart) == 1
    got = found(sent)
    monkeypatch.setattr(of_mixtures, "NATURAL_BELOW", 0.0)
    expected = found(message([some]))
    # Of a narrow component, rows are rounded as they are measured from the others.
    size, mass = np.maximum(deviations_of(some), 1.0), expected.mass[:, np.newaxis]
    np.testing.assert_allclose(got.mass, expected.mass, rtol=1e-6, atol=1e-6)
    assert (np.abs(got.drift - expected.drift) <= 2e-5 * (mass + 1.0) * size).all()
    np.testing.assert_allclose(got.scatter, expected.scatter, rtol=1e-3)
    assert got.log_prob == pytest.approx(expected.log_prob, rel=1e-5)


@SHAPE
def test_components_that_are_too_far_stand_apart(shape):
    rng = np.random.default_rng(2)
    some = mixture(rng, 9, 6, shape, n_narrow=2)
    sent = message([some])
    apart = sent.e_steps[0].plan.apart
    np.testing.assert_array_equal(
        apart, np.flatnonzero(deviations_of(some)[:, 0] < 1e-2)
    )
    x = rows_of(rng, some, 300)
    [found] = moments(sent, e_step(sent, iter([Block(0, x, None)])), [some])
    # They were measured from their own means: nothing was taken from their squares.
    assert not found.from_origin[apart].any()
    assert np.delete(found.from_origin, apart, axis=0).all()
    several = mixture(rng, 9, 6, shape, n_narrow=3)
    assert len(plan(several).plan.quadratic) == 0


@SHAPE
@pytest.mark.parametrize(("narrow", "is_single"), [(1e-2, True), (1e-6, False)])
def test_what_stands_apart_is_exact_in_single_precision_or_not(
    shape, narrow, is_single
):
    rng = np.random.default_rng(2)
    some = mixture(rng, 9, 24, shape, n_narrow=1, narrow=narrow)
    assert plan(some, single=True).is_single == is_single
