"""A subsample's likelihood, corrected: at the anchor it climbs as that of all rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import blobs, moments_over, random_mixture

from daskgmm.data.sources import open_source
from daskgmm.mixtures.coordinates import Coordinates
from daskgmm.mixtures.correction import Correction
from daskgmm.mixtures.maximum_likelihood import MaximumLikelihood
from daskgmm.mixtures.sufficient_statistics import moved

K, D = 3, 3
RULE = MaximumLikelihood(reg_covar=0.0, row_weight=1.0)


def moments_of(x, mixture, weights=None):
    return moments_over(open_source(x, sample_weight=weights).shards(), mixture)


@pytest.fixture(params=[0.0, 1e4], ids=["near", "far from the origin"])
def rows(request):
    return blobs(2, 3000, D, K, spread=1.5) + request.param


@pytest.fixture
def anchor(covariance_type, rows):
    mixture = random_mixture(np.random.default_rng(3), covariance_type, K, D)
    start = np.random.default_rng(4).choice(rows, K)
    return replace(mixture, means=start)


def assert_same(got, expected, rtol):
    np.testing.assert_array_equal(got.about, expected.about)
    for name in ("mass", "drift", "scatter", "weight"):
        ours, theirs = getattr(got, name), getattr(expected, name)
        size = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol * size)


def test_moments_about_other_points(covariance_type, rows, anchor):
    rng = np.random.default_rng(5)
    its = moments_of(rows, anchor)
    there = moved(anchor.shape, its, anchor.means + rng.normal(size=(K, D)))
    back = moved(anchor.shape, there, anchor.means)
    assert_same(back, its, 1e-9)
    # The covariances that follow do not depend on where they were measured from.
    for got, expected in zip(
        *(
            (found.counts, found.means, found.covariances)
            for found in (RULE.estimate(anchor.shape, m) for m in (there, its))
        ),
        strict=True,
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("trust", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_at_the_anchor_it_is_all_rows(rows, anchor, weighted, trust):
    rng = np.random.default_rng(6)
    weights = rng.uniform(0.5, 2.0, len(rows)) if weighted else None
    of_all = moments_of(rows, anchor, weights)
    of_sample = moments_of(rows[:200], anchor)
    correction = Correction.between(anchor.shape, of_all, of_sample, trust)
    assert_same(correction.corrected(of_sample), of_all, 1e-12)


def test_without_trust_it_stays_at_ems_own_step(rows, anchor):
    of_all = moments_of(rows, anchor)
    correction = Correction.between(
        anchor.shape, of_all, moments_of(rows[:200], anchor), trust=0.0
    )
    first = RULE.m_step(anchor, of_all)
    then = RULE.m_step(first, correction.corrected(moments_of(rows[:200], first)))
    for name in ("weights", "means", "covariances"):
        got, expected = getattr(then, name), getattr(first, name)
        np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("trust", [0.3, 1.0])
def test_the_gradient_at_the_anchor_is_that_of_all_rows(rows, anchor, trust):
    """By central differences, along directions of the coordinates."""
    sample = rows[:200]
    of_all = moments_of(rows, anchor)
    correction = Correction.between(
        anchor.shape, of_all, moments_of(sample, anchor), trust
    )
    coordinates = Coordinates(anchor)
    rng = np.random.default_rng(7)
    for _ in range(4):
        step = 1e-4 * rng.normal(size=len(coordinates.of(anchor)))
        there, here = coordinates.mixture(step), coordinates.mixture(-step)
        bounds = [RULE.bound(m, moments_of(rows, m)) for m in (there, here)]
        objectives = [
            correction.objective(m, moments_of(sample, m)) for m in (there, here)
        ]
        alone = [RULE.bound(m, moments_of(sample, m)) for m in (there, here)]
        slope = np.subtract(*bounds)
        assert abs(np.subtract(*objectives) - slope) < 1e-4 * abs(slope) + 1e-9
        # What the subsample says alone is another slope.
        assert abs(np.subtract(*alone) - slope) > 1e-3 * abs(slope)
