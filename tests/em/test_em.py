"""The driver: runs, their ends, and the choice between them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import blobs, random_mixture

from daskgmm.data.sources import open_source
from daskgmm.em.loop import em
from daskgmm.em.plain import PlainEM, Stopping
from daskgmm.em.state import Run, Status, best
from daskgmm.errors import IllDefinedCovarianceError
from daskgmm.execution.runners import Shards
from daskgmm.mixtures.maximum_likelihood import MaximumLikelihood
from daskgmm.mixtures.sufficient_statistics import Moments

RULE = MaximumLikelihood(reg_covar=1e-6, row_weight=1.0)


class CountingShards(Shards):
    """Passes on to other shards, counting."""

    def __init__(self, shards):
        self._shards = shards
        self.n_passes = 0

    @property
    def sums_bytes(self):
        return self._shards.sums_bytes

    @property
    def is_fixed(self):
        return self._shards.is_fixed

    def _reduce(self, kernel, message):
        self.n_passes += 1
        return self._shards.reduce(kernel, message), 0


def _run(bound, status=Status.CONVERGED, error=""):
    return Run(None, status, (bound,), error=error)


def test_the_best_run_has_the_largest_bound():
    assert best([_run(-3.0), _run(-1.0), _run(-2.0)]) == 1


def test_bounds_that_differ_by_rounding_tie_and_the_first_wins():
    assert best([_run(-5.0), _run(-1.0 - 1e-11), _run(-1.0), _run(-1.0 + 1e-11)]) == 1
    assert best([_run(-1.0 - 1e-8), _run(-1.0)]) == 1


def test_failed_runs_do_not_win():
    failed = _run(10.0, Status.FAILED, "broken")
    assert best([failed, _run(-1.0)]) == 1
    with pytest.raises(IllDefinedCovarianceError, match=r"broken.*all of them failed"):
        best([failed, failed])


def test_runs_without_a_finite_bound():
    assert best([_run(np.nan), _run(-np.inf)]) == 0
    assert best([_run(np.nan), _run(-7.0)]) == 1


def _moments(mixture, log_prob, scatter=None):
    k, d = mixture.means.shape
    scatter = (
        np.stack([np.eye(d)[np.triu_indices(d)]] * k) if scatter is None else scatter
    )
    return Moments(mixture.means, np.ones(k), np.zeros((k, d)), scatter, log_prob, 2.0)


def advance(run, moments, stopping):
    return PlainEM(RULE, stopping).after(run, [run.parameters], [moments])


def test_advance_keeps_scikit_learns_books():
    mixture = random_mixture(np.random.default_rng(0), "full", 2, 2)
    stopping = Stopping(tol=0.1, max_iter=3)
    run = advance(Run(mixture), _moments(mixture, -8.0), stopping)
    assert (run.bounds, run.status) == ((-4.0,), Status.TRAINING)
    assert run.change == np.inf
    after = advance(run, _moments(mixture, -7.9), stopping)
    assert (after.bounds, after.status) == ((-4.0, -3.95), Status.CONVERGED)
    slow = advance(run, _moments(mixture, -6.0), stopping)
    last = advance(slow, _moments(mixture, -4.0), stopping)
    assert (last.n_iter, last.status) == (3, Status.EXHAUSTED)


def test_a_warm_run_compares_with_the_bound_it_had():
    mixture = random_mixture(np.random.default_rng(1), "full", 2, 2)
    run = Run(mixture, previous=-4.0)
    stopping = Stopping(tol=0.1, max_iter=9)
    after = advance(run, _moments(mixture, -8.0), stopping)
    assert after.status is Status.CONVERGED


def test_a_failed_m_step_ends_the_run_and_says_which_component():
    mixture = random_mixture(np.random.default_rng(2), "diag", 2, 2)
    scatter = np.array([[1.0, 1.0], [1.0, -1.0]])
    run = advance(Run(mixture), _moments(mixture, -8.0, scatter), Stopping(0.1, 9))
    assert run.status is Status.FAILED
    assert "component 1" in run.error
    assert run.parameters is mixture


def test_all_runs_share_each_pass_and_leave_when_they_end():
    x = blobs(3, 500, 2, 3, spread=1.5)
    shards = CountingShards(open_source(x).shards())
    rng = np.random.default_rng(4)
    starts = [Run(random_mixture(rng, "full", k, 2)) for k in (1, 3, 3)]
    stopping = Stopping(tol=1e-4, max_iter=50)
    passes = list(em(shards, starts, PlainEM(RULE, stopping)))
    ended = passes[-1]
    assert shards.n_passes == len(passes) == max(run.n_iter for run in ended)
    assert ended[0].n_iter < len(passes)
    for start, run in zip(starts, ended, strict=True):
        *_, [alone] = em(open_source(x).shards(), [start], PlainEM(RULE, stopping))
        assert alone.n_iter == run.n_iter
        np.testing.assert_allclose(
            alone.parameters.means, run.parameters.means, rtol=1e-10
        )


def test_runs_of_any_shape_share_each_pass():
    x = blobs(5, 400, 3, 3, spread=1.5)
    shards = CountingShards(open_source(x).shards())
    rng = np.random.default_rng(6)
    kinds = ("full", "diag", "tied", "spherical", "tied", "full")
    starts = [
        Run(random_mixture(rng, name, k, 3)) for k, name in enumerate(kinds, start=1)
    ]
    method = PlainEM(RULE, Stopping(tol=1e-4, max_iter=50))
    passes = list(em(shards, starts, method))
    assert shards.n_passes == len(passes) == max(run.n_iter for run in passes[-1])
    for start, run in zip(starts, passes[-1], strict=True):
        *_, [alone] = em(open_source(x).shards(), [start], method)
        assert (alone.n_iter, alone.status) == (run.n_iter, run.status)
        np.testing.assert_allclose(alone.bounds, run.bounds, rtol=1e-12)
        assert run.parameters.shape is start.parameters.shape
        for name in ("weights", "means", "covariances", "factors"):
            np.testing.assert_allclose(
                getattr(alone.parameters, name),
                getattr(run.parameters, name),
                rtol=1e-9,
                atol=1e-12,
            )


class BestOfSeveral:
    """Evaluates its mixture and others near it in one pass, and goes on from the best.

    How often it moved away from its mixture is what it remembers.
    """

    def __init__(self, plain):
        self._plain = plain

    def propose(self, run):
        mixture = run.parameters
        steps = (0.0, 1e-3, -1e-3)[: 1 + 2 * (run.n_iter % 2)]
        return [replace(mixture, means=mixture.means + step) for step in steps]

    def after(self, run, mixtures, moments):
        for its, mixture in zip(moments, mixtures, strict=True):
            np.testing.assert_array_equal(its.about, mixture.means)
        at = int(np.argmax([its.log_prob / its.weight for its in moments]))
        chosen = replace(run, parameters=mixtures[at])
        n_moved = run.memory.get("n_moved", np.zeros(1)) + (at > 0)
        return replace(
            self._plain.after(chosen, [mixtures[at]], [moments[at]]),
            memory={"n_moved": n_moved},
        )

    def look_again(self, before, run):
        return self._plain.look_again(before, run)

    def refined(self, before, run, refined, *, at_last):
        return self._plain.refined(before, run, refined, at_last=at_last)


def test_a_method_may_propose_several_mixtures():
    x = blobs(7, 500, 2, 3, spread=1.5)
    shards = CountingShards(open_source(x).shards())
    rng = np.random.default_rng(8)
    starts = [Run(random_mixture(rng, name, 3, 2)) for name in ("full", "tied")]
    method = BestOfSeveral(PlainEM(RULE, Stopping(tol=1e-6, max_iter=40)))
    passes = list(em(shards, starts, method))
    assert shards.n_passes == len(passes)
    for run in passes[-1]:
        assert run.memory["n_moved"][0] > 0
        assert (np.diff(run.bounds) > -1e-10).all()
