"""Single precision against long double, and where it is not exact enough."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import COVARIANCE_TYPES, random_mixture
from hypothesis import example, given, settings
from hypothesis import strategies as st

from daskgmm.data.block import Block
from daskgmm.kernel import passes
from daskgmm.kernel.layout import Columns
from daskgmm.mixtures import single
from daskgmm.mixtures.covariance import SHAPES
from daskgmm.mixtures.e_step import e_step, message, moments, plan
from daskgmm.mixtures.gaussian import Mixture
from daskgmm.mixtures.single import EXACT, shift_of

LONG = np.longdouble


def make_mixture(covariance_type, k, d, spread, condition, scale, offset, seed):
    """A mixture whose variances lie so far apart, wherever it is."""
    rng = np.random.default_rng(seed)
    mixture, shape = random_mixture(rng, covariance_type, k, d), SHAPES[covariance_type]
    n_matrices = 1 if covariance_type == "tied" else k
    places = np.tile(np.linspace(-0.5, 0.5, d), (n_matrices, 1))
    logs = np.log(condition) * rng.permuted(places, axis=1)
    variances = np.exp(logs) * scale**2
    covariances = {"diag": variances, "spherical": variances[:, 0]}.get(covariance_type)
    if covariances is None:
        axes = [np.linalg.qr(rng.normal(size=(d, d)))[0] for _ in range(n_matrices)]
        pairs = zip(axes, variances, strict=True)
        matrices = np.array([(a * v) @ a.T for a, v in pairs])
        covariances = matrices[0] if covariance_type == "tied" else matrices
    means = scale * (
        spread * rng.normal(size=(k, d)) + offset * rng.normal(size=(1, d))
    )
    factors = shape.factors(covariances)
    return Mixture(shape, mixture.weights, means, covariances, factors)


def factors_of(mixture):
    """Of every component, as a matrix or a diagonal that whitens deviations."""
    n_components, d = mixture.means.shape
    factors = mixture.shape.kernel_factors(mixture.factors, n_components, d)
    return np.broadcast_to(factors, (n_components, *factors.shape[1:]))


def rows_of(mixture, n, seed):
    """Rows drawn from a mixture, float64."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(mixture.n_components, size=n, p=mixture.weights)
    factors, z = factors_of(mixture)[labels], rng.normal(size=(n, mixture.n_features))
    if mixture.shape.dense:
        return mixture.means[labels] + np.linalg.solve(factors, z[..., None])[..., 0]
    return mixture.means[labels] + z / factors


def log_densities(mixture, x):
    """By the formula, in long double."""
    shape, factors = mixture.shape, factors_of(mixture)
    e = x.astype(LONG)[:, np.newaxis] - mixture.means.astype(LONG)
    form = "kij,nkj->nki" if shape.dense else "kj,nkj->nkj"
    z = np.einsum(form, factors.astype(LONG), e)
    joint = mixture.log_normalisers() - (z**2).sum(axis=2) / 2
    top = joint.max(axis=1)
    return top + np.log(np.exp(joint - top[:, np.newaxis]).sum(axis=1))


def answers(its, x):
    out = np.empty(len(x))
    passes.evaluate(*its.given(x), its.scratch(), {"log_prob": out})
    return out + sum(its.bases)


@settings(max_examples=150)
# Log densities of some of their rows are about zero, far from all others.
@example("spherical", 9, 33, 0.1, 1e3, 10.0**-0.75, 1.0, 0)
@example("full", 1, 3, 0.47962391230836243, 65617.47444502835, 0.0484, 14.9, 426605521)
@example(
    "spherical", 9, 33, 2.75275, 557284.3, 0.016557359832899916, 1.1187, 1592158401
)
@given(
    covariance_type=st.sampled_from(COVARIANCE_TYPES),
    k=st.sampled_from([1, 2, 5, 9]),
    d=st.sampled_from([1, 2, 3, 7, 16, 33]),
    spread=st.floats(-1, 2).map(lambda p: 10.0**p),
    condition=st.floats(0, 6).map(lambda p: 10.0**p),
    scale=st.floats(-13, 13).map(lambda p: 10.0**p),
    offset=st.floats(-1, 7).map(lambda p: 10.0**p),
    seed=st.integers(0, 2**31),
)
def test_log_densities_are_as_exact_as_is_said(
    covariance_type, k, d, spread, condition, scale, offset, seed
):
    mixture = make_mixture(
        covariance_type, k, d, spread, condition, scale, offset, seed
    )
    its = plan(mixture, single=True)
    x = rows_of(mixture, 60, seed).astype(np.float32)
    exact = log_densities(mixture, x)
    # Of rows that are on a grid wider than a component, none are its own.
    factors, grid = np.abs(factors_of(mixture)), np.spacing(np.abs(x)).max(axis=0)
    width = factors @ grid if mixture.shape.dense else factors * grid
    if its.is_single and np.linalg.norm(width, axis=-1).max() <= 1.0:
        off = np.abs(answers(its, x) - exact)
        assert (off <= EXACT * np.maximum(1.0, np.abs(exact))).all()


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("d", [1, 2, 16, 64, 256])
def test_what_is_well_conditioned_is_single_wherever_it_is(covariance_type, d):
    for offset in (0.0, 1e6):
        for scale in (1e-12, 1.0, 1e12):
            # Products of the spherical form are rounded by the square of the spread.
            spread = 0.3 if covariance_type == "spherical" else 3.0
            mixture = make_mixture(covariance_type, 6, d, spread, 4.0, scale, offset, 0)
            assert plan(mixture, single=True).is_single


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize(
    "changed",
    [
        {"scale": 1e-16},  # squares vanish
        {"scale": 1e16},
        {"spread": 1e6},
        {"condition": 1e10},
        {"offset": np.nan},
        {"offset": 1e39},
    ],
)
def test_what_it_does_not_hold_is_left_to_double(covariance_type, changed):
    parameters = {"spread": 3.0, "condition": 4.0, "scale": 1.0, "offset": 0.0}
    mixture = make_mixture(covariance_type, 3, 5, **(parameters | changed), seed=1)
    is_single = plan(mixture, single=True).is_single
    # Each mean is taken off by itself, and each variance measured by itself.
    if "spread" in changed:
        assert is_single
    elif "condition" in changed:
        assert is_single == (covariance_type in ("diag", "spherical"))
    else:
        assert not is_single


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("n", [1, 7, 300, 5000])
def test_sums_are_those_of_double(covariance_type, offset, n):
    mixture = make_mixture(covariance_type, 5, 6, 2.0, 10.0, 3.0, offset, n)
    x = rows_of(mixture, n, 0).astype(np.float32)
    weights = np.random.default_rng(n).uniform(0.5, 2.0, size=n)
    shift = shift_of(mixture)
    for held in (x, np.asfortranarray(x)):
        blocks = [Block(0, held, weights)]
        exact, single = (
            of_pass([mixture, mixture], shifts, blocks)[1]
            for shifts in (None, [shift, shift])
        )
        assert exact.weight == pytest.approx(single.weight, rel=1e-7)
        assert exact.log_prob == pytest.approx(single.log_prob, rel=1e-6)
        deviations = np.sqrt(mixture.shape.variances(mixture.covariances, 6))
        size = weights.sum()
        np.testing.assert_allclose(single.mass, exact.mass, atol=1e-5 * size, rtol=0)
        off = np.abs(single.drift - exact.drift) / deviations
        assert (off <= 1e-5 * size).all()
        largest = np.abs(exact.scatter).max()
        np.testing.assert_allclose(
            single.scatter, exact.scatter, atol=1e-5 * largest, rtol=0
        )
        np.testing.assert_array_equal(single.about, mixture.means)


def of_pass(mixtures, shifts, blocks):
    sent = message(mixtures, shifts)
    assert sent.in_single(2) == [shifts is not None] * 2
    return moments(sent, e_step(sent, iter(blocks)), mixtures)


def test_runs_measured_from_one_point_share_the_work():
    rng = np.random.default_rng(0)
    mixtures = [random_mixture(rng, "full", 2, 3) for _ in range(3)]
    shift, other = shift_of(mixtures[0]), shift_of(mixtures[0])
    sent = message(mixtures, [shift, other, shift])
    assert sent.members == ((0, 2), (1,))
    assert message(mixtures, [shift, None, shift]).members == ((0, 2), (1,))


def test_rows_that_are_double_after_all_keep_their_digits():
    """As what a block is may differ from what its array says."""
    mixture = make_mixture("full", 3, 4, 3.0, 10.0, 1.0, 1e6, 0)
    its = plan(mixture, single=True)
    x = rows_of(mixture, 200, 0)
    exact = log_densities(mixture, x)
    for rows in (x, np.asfortranarray(x), Columns(tuple(x.T.copy()))):
        off = np.abs(answers(its, rows) - exact)
        assert (off <= EXACT * np.maximum(1.0, np.abs(exact))).all()
    rounded = np.abs(answers(its, x.astype(np.float32)) - exact)
    assert rounded.max() > 100 * EXACT


def test_of_too_many_components_sums_would_leave_float32(monkeypatch):
    shape, k = SHAPES["spherical"], 8
    some = Mixture(shape, np.full(k, 1 / k), np.eye(k), np.ones(k), np.ones(k))
    assert plan(some, single=True).is_single
    monkeypatch.setattr(single, "_MANY", 7)
    assert not plan(some, single=True).is_single
