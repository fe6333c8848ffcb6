"""What would be wrong without a word: a test for each, which only right code passes.

Each was found by a change of the code that no other test noticed.
"""

from __future__ import annotations

import os
import time
import warnings
from itertools import count, pairwise

import dask
import dask.array as da
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import blobs, random_mixture
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as ScikitLearn

from daskgmm import GaussianMixture
from daskgmm.data.block import Block
from daskgmm.data.prefetch import ReadAhead
from daskgmm.em import subsample
from daskgmm.errors import StoreError
from daskgmm.kernel import passes
from daskgmm.kernel.layout import as_rows
from daskgmm.mixtures.e_step import plan
from daskgmm.storage import retry

FITTED = ("weights_", "means_", "covariances_")


def assert_close(got, expected, rtol=1e-9):
    for name in FITTED:
        np.testing.assert_allclose(
            getattr(got, name), getattr(expected, name), rtol=rtol, atol=1e-12
        )


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_small_weighted_blocks_that_are_joined_keep_their_weights(covariance_type):
    """Of thousands of them, the kernel gets some together in one call."""
    x = blobs(0, 6000, 2, 3, spread=1.5)
    weights = np.random.default_rng(0).uniform(0.1, 5.0, 6000)
    start = dict(means_init=x[:3], weights_init=np.full(3, 1 / 3), max_iter=5, tol=0)
    model = GaussianMixture(3, covariance_type=covariance_type, random_state=0, **start)
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        whole = GaussianMixture(**model.get_params()).fit(x, sample_weight=weights)
        lazy = da.from_array(x, chunks=(3, 2))
        model.fit(lazy, sample_weight=da.from_array(weights, chunks=3))
        unweighted = GaussianMixture(**model.get_params()).fit(x)
    assert_close(model, whole)
    assert np.abs(unweighted.means_ - whole.means_).max() > 1e-3


@pytest.mark.parametrize("max_iter", [0, 4])
@pytest.mark.parametrize("factor", [1e-13, 1e13])
@pytest.mark.parametrize("init_params", ["kmeans", "random"])
def test_a_constant_factor_of_the_weights_cancels(factor, max_iter, init_params):
    """In the starts, in every M-step, and beside what is added to the counts."""
    x = blobs(1, 300, 2, 2, spread=1.5) + 5.0
    weights = np.random.default_rng(1).uniform(0.5, 2.0, 300)
    parameters = dict(
        n_components=2,
        max_iter=max_iter,
        tol=0,
        random_state=0,
        init_params=init_params,
    )
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        one = GaussianMixture(**parameters).fit(x, sample_weight=weights)
        other = GaussianMixture(**parameters).fit(x, sample_weight=weights * factor)
    assert_close(other, one)


def test_a_tolerance_of_zero_is_never_reached():
    """Even where nothing changes any more, as in scikit-learn."""
    x = np.array([[0.0], [0.0], [1.0], [1.0]])
    parameters = dict(tol=0, max_iter=8, random_state=0)
    for n_components in (1, 2):
        models = []
        for kind in (GaussianMixture, ScikitLearn):
            with pytest.warns(ConvergenceWarning):
                models.append(kind(n_components, **parameters).fit(x))
        ours, theirs = models
        assert ours.n_iter_ == theirs.n_iter_ == 8
        assert not ours.converged_ and not theirs.converged_
        assert ours.lower_bounds_[-1] == ours.lower_bounds_[-2]


def test_pauses_between_tries_grow(monkeypatch):
    """A store that is overloaded is not to be asked again at once."""
    pauses = []
    monkeypatch.setattr(retry.time, "sleep", pauses.append)
    with (
        dask.config.set({"daskgmm.storage-retries": 4}),
        pytest.raises(StoreError, match="somewhere"),
    ):
        retry.patiently(lambda: (_ for _ in ()).throw(TimeoutError()), "somewhere")
    assert len(pauses) == 4
    assert pauses[0] > 0 and all(b > a for a, b in pairwise(pauses))


def open_files(folder):
    """Files below a folder that this process has open."""
    links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
    return [at for link in links if (at := os.path.realpath(link)).startswith(folder)]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_a_parquet_file_that_cannot_be_read_on_is_closed(tmp_path):
    """A reader that broke off in the middle of a batch must not go on from there."""
    rows = np.random.default_rng(0).normal(size=(5000, 2))
    path = tmp_path / "rows.parquet"
    columns = {name: rows[:, j] for j, name in enumerate("ab")}
    pq.write_table(pa.table(columns), path, row_group_size=500, use_dictionary=False)
    page = pq.read_metadata(path).row_group(5).column(1).data_page_offset
    content = bytearray(path.read_bytes())
    content[page : page + 200] = bytes(200)
    path.write_bytes(content)
    with (
        dask.config.set({"scheduler": "sync", "daskgmm.storage-retries": 0}),
        pytest.raises(StoreError, match="Row group"),
    ):
        GaussianMixture(2, random_state=0).fit(path)
    # Arrow's own threads may still be about to let it go.
    for _ in range(100):
        if not open_files(str(tmp_path)):
            break
        time.sleep(0.1)
    assert open_files(str(tmp_path)) == []


@pytest.mark.parametrize("lazy", [False, True])
def test_a_row_without_weight_may_be_infinitely_far(lazy):
    """Its log density is minus infinity, which times zero is no number."""
    x = blobs(4, 500, 2, 2)
    model = GaussianMixture(2, random_state=0).fit(x)
    rows, weights = np.vstack([x, [[1e200, 1e200]]]), np.append(np.ones(500), 0.0)
    assert model.score_samples(rows)[-1] == -np.inf
    expected = model.score(x)
    if lazy:
        rows, weights = (
            da.from_array(rows, chunks=(100, 2)),
            da.from_array(weights, 100),
        )
    np.testing.assert_allclose(model.score(rows, sample_weight=weights), expected)


def test_a_point_that_rounding_puts_behind_the_last_row_is_the_last_row():
    block = Block(0, np.arange(6.0).reshape(3, 2), np.array([0.2, 0.5, 0.3]))
    message = subsample._Targets(
        np.array([0.0, 1.1]), np.array([0.1, 1.05]), by_number=False
    )
    rows, times = subsample._take_from(message, block)
    np.testing.assert_array_equal(rows, [[0.0, 1.0], [4.0, 5.0]])
    np.testing.assert_array_equal(times, [1.0, 1.0])


@pytest.mark.parametrize("n_weights", [1, 9, 11, 1000])
def test_the_kernel_refuses_weights_of_another_number(n_weights):
    x = blobs(5, 10, 2, 2)
    message = plan(random_mixture(np.random.default_rng(0), "full", 2, 2))
    given = (
        message.compiled_plan,
        as_rows(x),
        np.ones(n_weights),
        np.zeros(message.padded_size),
    )
    with pytest.raises(ValueError, match="given weights of a size"):
        passes.accumulate(*given, message.scratch())


def test_a_copy_for_scikit_learn_shares_nothing():
    model = GaussianMixture(2, random_state=0).fit(blobs(6, 100, 2, 2))
    before = model.means_.copy()
    model.to_sklearn().means_[:] = 0.0
    np.testing.assert_array_equal(model.means_, before)


@pytest.mark.parametrize("seed", range(10))
def test_a_start_from_rows_whose_weight_is_below_one(seed):
    """Nothing is left of such a row for the others, rather than less than nothing."""
    x = np.array([[100.0], [1.0], [-1.0]])
    model = GaussianMixture(
        2, covariance_type="tied", init_params="random_from_data", random_state=seed
    ).set_params(max_iter=0)
    model.fit(x, sample_weight=[0.9, 1.05, 1.05])
    chosen = np.isclose(x, model.means_.T).any(axis=1)
    assert chosen.sum() == 2
    rest = np.where(chosen, [0.0, 0.05, 0.05], [0.9, 1.05, 1.05])
    expected = (rest * x[:, 0] ** 2).sum() / 2.0 + 1e-6
    assert model.covariances_[0, 0] == pytest.approx(expected)


def test_what_is_read_ahead_is_closed_when_the_work_breaks_off():
    closed = []

    def read():
        try:
            for i in count():
                yield Block(i, np.ones((10, 2)), None)
        finally:
            closed.append(True)

    blocks = ReadAhead(reading := read(), 5)
    next(blocks)
    blocks.close()  # as an error of whoever works on a block does
    assert closed == [True]
    assert reading.gi_frame is None
