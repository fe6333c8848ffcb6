"""Anchored EM: what EM on all rows finds, in few passes over them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import blobs, moments_over, random_mixture

from daskgmm.data.sources import open_source
from daskgmm.em.anchored import AnchoredEM, Ends, ascend
from daskgmm.em.loop import em
from daskgmm.em.plain import PlainEM, Stopping
from daskgmm.em.state import Run, Status
from daskgmm.mixtures.maximum_likelihood import MaximumLikelihood

RULE = MaximumLikelihood(reg_covar=1e-6, row_weight=1.0)
K, D = 3, 2


def step_on(x, weights=None):
    """The E-step on rows, as a function of a mixture."""
    shards = open_source(x, sample_weight=weights).shards()

    return lambda mixture: moments_over(shards, mixture)


def trained(x, start, method, weights=None):
    """The run, and its state after each pass."""
    shards = open_source(x, sample_weight=weights).shards()
    passes = [runs[0] for runs in em(shards, [start], method)]
    return passes[-1], passes


def started(x, covariance_type, seed=0):
    """A mixture of the rows' own size, one step of EM from random means."""
    rng = np.random.default_rng(seed)
    mixture = random_mixture(rng, covariance_type, K, x.shape[1], spread=1.0)
    return RULE.m_step(mixture, step_on(x)(mixture))


@pytest.fixture(scope="module")
def rows():
    return blobs(1, 20_000, D, K, spread=2.0)[:10_000]


def plain_of(tol, max_iter):
    return PlainEM(RULE, Stopping(tol, max_iter))


def anchored(plain, sampled):
    return AnchoredEM(plain, sampled, trust=0.9, most=30)


def of_sample(x, covariance_type, n=1000, seed=0):
    """Steps on a subsample, and the best mixture of it from one start."""
    drawn = np.random.default_rng(seed).choice(len(x), n, replace=False)
    sample = x[drawn]
    moments_of = step_on(sample)
    start = started(sample, covariance_type)
    path = ascend(start, RULE.m_step, moments_of, RULE.bound, most=200, least=1e-6)
    return moments_of, path.mixtures[-1]


def test_a_path_climbs_where_em_climbs(rows, covariance_type):
    x = rows[:2000]
    moments_of = step_on(x)
    n_evaluated = 0

    def counted(mixture):
        nonlocal n_evaluated
        n_evaluated += 1
        return moments_of(mixture)

    start = started(x, covariance_type)
    path = ascend(start, RULE.m_step, counted, RULE.bound, most=500, least=1e-8)
    values = [RULE.bound(m, moments_of(m)) for m in path.mixtures]
    assert path.gain == values[-1] - values[0]
    assert (np.diff(values) > 0.0).all()
    ended, passes = trained(x, Run(start), plain_of(1e-12, 5000))
    np.testing.assert_allclose(values[-1], ended.bound, rtol=1e-6)
    assert 0.0 < path.left < 1e-8
    assert n_evaluated < len(passes) / 2


def test_few_evaluations_are_in_vain(covariance_type):
    """Next to saddles, where a linear model of EM's steps leads back."""
    rng = np.random.default_rng(2)
    means, seen = rng.normal(size=(6, 8)) * 0.4, []
    x = means[rng.integers(6, size=6000)] + rng.normal(size=(6000, 8))
    moments_of = step_on(x)

    def counted(mixture):
        seen.append(mixture)
        return moments_of(mixture)

    mixture = random_mixture(rng, covariance_type, 6, 8, spread=0.4)
    start = RULE.m_step(mixture, moments_of(mixture))
    path = ascend(start, RULE.m_step, counted, RULE.bound, most=500, least=1e-6)
    assert len(seen) < 1.4 * len(path.mixtures)


def test_it_ends_where_em_ends(rows, covariance_type):
    """Both ends driven together, from the same start."""
    sampled, start = of_sample(rows, covariance_type)
    ours, passes = trained(rows, Run(start), anchored(plain_of(0.0, 60), sampled))
    theirs, _ = trained(rows, Run(ours.parameters), plain_of(0.0, 200))
    for name in ("weights", "means", "covariances"):
        got, expected = (getattr(r.parameters, name) for r in (ours, theirs))
        np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-8)
    # Plain EM gets there too, in many more passes.
    alone, of_alone = trained(rows, Run(start), plain_of(1e-11, 5000))
    np.testing.assert_allclose(alone.bound, ours.bound, rtol=1e-8)
    n_passes = [run.bound > ours.bound - 1e-9 for run in passes].index(True) + 1
    assert n_passes < len(of_alone) / 4


def test_no_pass_loses(rows, covariance_type):
    sampled, start = of_sample(rows, covariance_type, n=200)
    _, passes = trained(rows, Run(start), anchored(plain_of(0.0, 20), sampled))
    assert (np.diff(passes[-1].bounds) > -1e-9).all()


def test_few_passes(rows, covariance_type):
    sampled, start = of_sample(rows, covariance_type)
    method = anchored(plain_of(1e-3, 100), sampled)
    run, passes = trained(rows, Run(start), method)
    assert run.status is Status.CONVERGED
    assert len(passes) <= 3
    best, _ = trained(rows, Run(run.parameters), anchored(plain_of(0.0, 12), sampled))
    assert best.bound - run.bound < 1e-3


def test_parameters_are_a_step_from_the_best_that_was_evaluated(rows, covariance_type):
    sampled, start = of_sample(rows, covariance_type)
    run, _ = trained(rows, Run(start), anchored(plain_of(1e-3, 100), sampled))
    bound = RULE.bound(run.parameters, step_on(rows)(run.parameters))
    assert run.bound <= bound + 1e-9
    assert bound - run.bound < 1e-3


def test_weighted_rows_are_repeated_rows(rows, covariance_type):
    rng = np.random.default_rng(3)
    times = rng.integers(1, 4, len(rows))
    sampled, start = of_sample(np.repeat(rows, times, axis=0), covariance_type)
    rule = MaximumLikelihood(1e-6, times.mean())
    plain = PlainEM(rule, Stopping(1e-6, 50))
    weighted, _ = trained(
        rows, Run(start), anchored(plain, sampled), times.astype(float)
    )
    repeated, _ = trained(
        np.repeat(rows, times, axis=0),
        Run(start),
        anchored(plain_of(1e-6, 50), sampled),
    )
    np.testing.assert_allclose(weighted.bounds, repeated.bounds, rtol=1e-9)
    np.testing.assert_allclose(
        weighted.parameters.means, repeated.parameters.means, rtol=1e-7, atol=1e-7
    )


@pytest.mark.parametrize("kind", ["sorted", "of one place", "of other rows", "few"])
def test_a_sample_that_misleads_costs_a_pass_at_most(rows, covariance_type, kind):
    x = rows[np.argsort(rows[:, 0])]
    rng = np.random.default_rng(4)
    sample = {
        "sorted": x[:1000],
        "of one place": np.repeat(x[:10], 100, axis=0) + rng.normal(0, 1e-3, (1000, D)),
        "of other rows": rng.normal(size=(1000, D)) * 5.0,
        "few": x[rng.choice(len(x), 20)],
    }[kind]
    # In the same basin, but far from its end.
    *_, near = trained(x, Run(started(x, covariance_type)), plain_of(0.0, 25))[1]
    start = near.parameters
    theirs, of_plain = trained(x, Run(start), plain_of(1e-5, 500))
    as_many = plain_of(0.0, len(of_plain) + 1)
    ours, _ = trained(x, Run(start), anchored(as_many, step_on(sample)))
    assert (np.diff(ours.bounds) > -1e-9).all()
    assert ours.bound >= theirs.bound - 1e-9


def test_without_an_anchor_rough_covariances_are_looked_at_as_in_plain_em(rows):
    """As with a heavy reg_covar, where there is none."""
    start = started(rows, "full")
    before, after = Run(start), Run(replace(start, rough=True), bounds=(-3.0,))
    method = anchored(plain_of(1e-3, 100), step_on(rows[:500]))
    assert method.look_again(before, after) == (start, after.parameters)
    assert method.look_again(before, before) is None


def test_it_goes_on_from_what_a_run_remembers(rows, covariance_type):
    """The same bits: what a checkpoint keeps is enough."""
    sampled, start = of_sample(rows, covariance_type)
    method = anchored(plain_of(0.0, 6), sampled)
    ended, passes = trained(rows, Run(start), method)
    again, _ = trained(rows, passes[2], method)
    assert again.bounds == ended.bounds
    for name in ("weights", "means", "covariances"):
        np.testing.assert_array_equal(
            getattr(again.parameters, name), getattr(ended.parameters, name)
        )


def test_ends_are_known_by_all_their_bits(rows):
    """Whatever differs, and the newest alone."""
    mixture, ends = started(rows, "full"), Ends()
    moments = step_on(rows)(mixture)
    ends.add(mixture, moments)
    assert ends.at(replace(mixture)) is moments
    for name in ("weights", "means", "covariances", "factors"):
        other = np.array(getattr(mixture, name))
        other.flat[-1] = np.nextafter(other.flat[-1], np.inf)
        assert ends.at(replace(mixture, **{name: other})) is None
    weighted = replace(mixture, log_weights=np.log(mixture.weights))
    assert ends.at(weighted) is None
    for shift in range(1, 4):
        ends.add(replace(mixture, means=mixture.means + shift), moments)
    assert ends.at(mixture) is None


def test_a_path_ends_where_there_is_nothing_to_gain(rows, covariance_type):
    """One component is found by the first step: the next one is none."""
    x = rows[:500]
    mixture = random_mixture(np.random.default_rng(5), covariance_type, 1, D)
    moments_of = step_on(x)
    start = RULE.m_step(mixture, moments_of(mixture))
    path = ascend(start, RULE.m_step, moments_of, RULE.bound, most=20)
    assert path.left < 1e-20
    np.testing.assert_allclose(path.mixtures[-1].means[0], x.mean(axis=0), rtol=1e-12)
