"""The driver: runs, their ends, and the choice between them."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import blobs, random_mixture

from daskgmm.data.sources import open_source
from daskgmm.em.loop import Run, Status, Stopping, advance, best, em
from daskgmm.errors import IllDefinedCovarianceError
from daskgmm.execution.tree import Shards
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

    def reduce(self, kernel, message):
        self.n_passes += 1
        return self._shards.reduce(kernel, message)


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
    return Moments(np.ones(k), np.zeros((k, d)), scatter, log_prob, 2.0)


def test_advance_keeps_scikit_learns_books():
    mixture = random_mixture(np.random.default_rng(0), "full", 2, 2)
    stopping = Stopping(tol=0.1, max_iter=3)
    run = advance(Run(mixture), _moments(mixture, -8.0), RULE, stopping)
    assert (run.bounds, run.status) == ((-4.0,), Status.TRAINING)
    assert run.change == np.inf
    after = advance(run, _moments(mixture, -7.9), RULE, stopping)
    assert (after.bounds, after.status) == ((-4.0, -3.95), Status.CONVERGED)
    slow = advance(run, _moments(mixture, -6.0), RULE, stopping)
    last = advance(slow, _moments(mixture, -4.0), RULE, stopping)
    assert (last.n_iter, last.status) == (3, Status.EXHAUSTED)


def test_a_warm_run_compares_with_the_bound_it_had():
    mixture = random_mixture(np.random.default_rng(1), "full", 2, 2)
    run = Run(mixture, previous=-4.0)
    stopping = Stopping(tol=0.1, max_iter=9)
    after = advance(run, _moments(mixture, -8.0), RULE, stopping)
    assert after.status is Status.CONVERGED


def test_a_failed_m_step_ends_the_run_and_says_which_component():
    mixture = random_mixture(np.random.default_rng(2), "diag", 2, 2)
    scatter = np.array([[1.0, 1.0], [1.0, -1.0]])
    run = advance(
        Run(mixture), _moments(mixture, -8.0, scatter), RULE, Stopping(0.1, 9)
    )
    assert run.status is Status.FAILED
    assert "component 1" in run.error
    assert run.mixture is mixture


def test_all_runs_share_each_pass_and_leave_when_they_end():
    x = blobs(3, 500, 2, 3, spread=1.5)
    shards = CountingShards(open_source(x).shards())
    rng = np.random.default_rng(4)
    starts = [Run(random_mixture(rng, "full", k, 2)) for k in (1, 3, 3)]
    stopping = Stopping(tol=1e-4, max_iter=50)
    passes = list(em(shards, starts, RULE, stopping))
    ended = passes[-1]
    assert shards.n_passes == len(passes) == max(run.n_iter for run in ended)
    assert ended[0].n_iter < len(passes)
    for start, run in zip(starts, ended, strict=True):
        *_, [alone] = em(open_source(x).shards(), [start], RULE, stopping)
        assert alone.n_iter == run.n_iter
        np.testing.assert_allclose(alone.mixture.means, run.mixture.means, rtol=1e-10)
