"""Components without a part in some rows: what is left out of their sums is nothing."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import random_mixture
from oracle import LONG, log_joint, responsibilities
from sklearn.mixture import GaussianMixture as Theirs

from daskgmm import GaussianMixture
from daskgmm.data.block import Block
from daskgmm.mixtures.e_step import e_step, message, moments
from daskgmm.mixtures.single import shift_of

K = 24
D = (9, 17, 33)
"""Features: by vectors of rows, and by lists of them, without and with bounds."""


def far_apart(seed, d, spread=12.0):
    """Components of which each row is but of one or two, and rows of all but two.

    The first one is nobody's, and the second has a little part in some rows.
    """
    rng = np.random.default_rng(seed)
    mixture = random_mixture(rng, "full", K, d, spread=spread)
    mixture.means[0] = 1e3
    mixture.means[1] = mixture.means[2] + 12.0 / np.sqrt(d)
    mixture.covariances[1] = mixture.factors[1] = np.eye(d)
    x, labels = mixture.sample(1500, np.random.RandomState(seed))
    return mixture, x[labels > 1]


def found(mixture, x, weights, *, single=False):
    sent = message([mixture], [shift_of(mixture)] if single else None)
    assert sent.in_single(1) == [single]
    return moments(sent, e_step(sent, iter([Block(0, x, weights)])), [mixture])[0]


@pytest.mark.parametrize(
    ("scale", "single"),
    [(None, False), (1.0, False), (1e-60, False), (None, True), (1.0, True)],
)
@pytest.mark.parametrize(("seed", "d"), [*enumerate(D)])
def test_sums_are_the_oracles(seed, d, scale, single):
    """With weights, too, of which the root is far below what is left out without."""
    mixture, x = far_apart(seed, d)
    if single:
        x = x.astype(np.float32)
    rng = np.random.default_rng(seed)
    weights = None if scale is None else scale * rng.uniform(0.5, 2.0, size=len(x))
    got = found(mixture, x, weights, single=single)
    joint = log_joint(x, mixture.weights, mixture.means, mixture.factors, "full")
    w = np.ones(len(x)) if weights is None else weights
    r = responsibilities(joint) * w[:, np.newaxis].astype(LONG)
    # Most vectors of eight rows have no part in most components.
    assert (r < 1e-40 * w.max()).mean() > 0.5
    e = x[:, np.newaxis].astype(LONG) - mixture.means
    mass = r.sum(axis=0)
    largest = float(mass.max())
    rtol = 1e-4 if single else 1e-11
    tiny = 1e-36 if single else 1e-39
    np.testing.assert_allclose(
        got.mass, mass.astype(float), rtol=rtol, atol=tiny * largest
    )
    drift = np.einsum("nk,nkd->kd", r, e).astype(float)
    size = np.einsum("nk,nkd->kd", r, np.abs(e)).astype(float)
    off = np.abs(got.drift - drift)
    assert (off <= rtol * size + 1e6 * tiny * largest).all()
    upper = np.triu_indices(d)
    scatter = np.einsum("nk,nki,nkj->kij", r, e, e)[:, *upper].astype(float)
    size = np.einsum("nk,nki,nkj->kij", r, np.abs(e), np.abs(e))[:, *upper]
    off = np.abs(got.scatter - scatter)
    assert (off <= rtol * size.astype(float) + 1e9 * tiny * largest).all()
    assert got.mass[0] <= tiny * largest
    assert 1e-35 < mass[1] / largest < 1e-12


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_an_empty_component_means_what_it_does_for_scikit_learn():
    mixture, x = far_apart(0, 9)
    parameters = {
        "n_components": K,
        "weights_init": mixture.weights / mixture.weights.sum(),
        "means_init": mixture.means,
        "precisions_init": mixture.shape.precisions(mixture.factors),
        "max_iter": 1,
    }
    ours, theirs = (kind(**parameters).fit(x) for kind in (GaussianMixture, Theirs))
    np.testing.assert_allclose(ours.weights_, theirs.weights_, rtol=1e-9, atol=1e-18)
    np.testing.assert_allclose(ours.means_[1:], theirs.means_[1:], rtol=1e-7)
    np.testing.assert_allclose(ours.means_[0], theirs.means_[0], atol=1e-12)
