"""The subsample's E-steps on a cluster: the same bits, and no fit is lost with it."""

from __future__ import annotations

import os
import signal
import time

import dask
import dask.array as da
import numpy as np
import pytest
from conftest import blobs
from distributed import Client, LocalCluster

from daskgmm import BayesianGaussianMixture, GaussianMixture, MixtureSearch
from daskgmm.data.on_cluster import held_by_cluster
from daskgmm.em import acceleration
from daskgmm.em.acceleration import OnSample
from daskgmm.em.subsample import Subsample
from daskgmm.errors import ClusterError

N_ROWS = 40_000


@pytest.fixture(scope="module")
def x():
    return blobs(0, N_ROWS, 4, 3, spread=1.5)


@pytest.fixture
def client():
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def always(monkeypatch):
    """Whatever the cluster, and however little work there is."""
    monkeypatch.setattr(acceleration, "_FOR_A_CLUSTER", 0)
    monkeypatch.setattr(acceleration, "_MANY_THREADS", 0)


def mixture(x):
    return GaussianMixture(3, random_state=0, max_iter=2, tol=1.0).fit(x)._mixture()


def assert_same(got, expected):
    for name in ("mass", "drift", "scatter", "log_prob", "weight"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))


def rows_of(x, *, weighted):
    weights = np.random.default_rng(0).random(len(x)) if weighted else None
    return Subsample(x, weights)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.usefixtures("always")
def test_it_has_the_same_bits(x, client, weighted):
    at, rows = mixture(x), rows_of(x, weighted=weighted)
    there = OnSample(rows)
    got = there(at)
    assert there._there is not None
    there._there = None
    assert_same(got, there(at))


@pytest.mark.usefixtures("always")
def test_all_workers_hold_some_of_it_and_let_it_go(x, client):
    of_sample = OnSample(rows_of(x, weighted=False))
    of_sample(mixture(x))
    held = client.has_what()
    assert all(any("subsample" in str(k) for k in keys) for keys in held.values())
    del of_sample
    deadline = time.monotonic() + 20
    while any("subsample" in str(keys) for keys in client.has_what().values()):
        assert time.monotonic() < deadline


@pytest.mark.usefixtures("always")
def test_workers_that_die_take_no_fit_with_them(x, client):
    at, rows = mixture(x), rows_of(x, weighted=False)
    of_sample = OnSample(rows)
    expected = of_sample(at)
    for pid in client.run(os.getpid).values():
        os.kill(pid, signal.SIGKILL)
    assert_same(of_sample(at), expected)
    assert of_sample._there is None
    assert_same(of_sample(at), expected)


@pytest.mark.usefixtures("always")
def test_a_fit_by_it_is_the_same_fit(x, client):
    def model():
        return GaussianMixture(3, random_state=0, init_size=10_000, accelerate=True)

    far = model().fit(x)
    with dask.config.set(scheduler="threads"):
        near = model().fit(x)
    for name in ("means_", "covariances_", "lower_bounds_", "remaining_gain_"):
        np.testing.assert_array_equal(getattr(far, name), getattr(near, name))


def test_little_work_stays_here(x, client, monkeypatch):
    at = mixture(x)
    for work, threads in ((1e12, 0), (0, 1000)):
        monkeypatch.setattr(acceleration, "_FOR_A_CLUSTER", work)
        monkeypatch.setattr(acceleration, "_MANY_THREADS", threads)
        of_sample = OnSample(rows_of(x, weighted=False))
        of_sample(at)
        assert of_sample._there is None


def test_without_a_cluster_rows_are_sent_nowhere(x):
    with pytest.raises(ClusterError, match="no cluster"):
        held_by_cluster(x, None)


@pytest.mark.slow
def test_searches_and_questions_have_the_same_bits(x, client):
    """Rows held out, priors of all rows, quantiles, comparisons: by two processes."""
    rows = da.from_array(x[:6000], chunks=(700, 4))
    found = []
    for scheduler in (client, "sync"):
        with dask.config.set(scheduler=scheduler):
            search = MixtureSearch(
                (1, 3), criterion="held_out", random_state=0, init_size=500
            ).fit(rows)
            bayesian = BayesianGaussianMixture(
                n_components=3, random_state=0, init_size=500
            ).fit(rows)
            best = search.best_estimator_
            found.append(
                [
                    *(search.results_[name] for name in ("bic", "icl", "held_out")),
                    best.covariances_,
                    bayesian.covariance_prior_,
                    bayesian.covariances_,
                    bayesian.lower_bounds_,
                    best.score_quantile(rows, [0.01, 0.5]),
                    np.array(best.compare(bayesian, rows)),
                ]
            )
    for got, expected in zip(*found, strict=True):
        np.testing.assert_array_equal(got, expected)
