"""Lazy data: any chunking and scheduler, the same numbers as on NumPy arrays."""

from __future__ import annotations

import os
import signal

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from checks import assert_same_model, fit_both
from conftest import blobs
from distributed import Client, LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st
from services import worker_processes
from sklearn.exceptions import ConvergenceWarning

from daskgmm import GaussianMixture


@pytest.fixture(autouse=True)
def _no_client_left_over():
    """Without a client, Dask runs on threads."""
    with dask.config.set(scheduler="threads"):
        yield


CHUNKINGS = {
    "one chunk": ((600,), (3,)),
    "one row": ((1,) * 600, (3,)),
    "empty chunks": ((0, 100, 0, 0, 500, 0), (3,)),
    "uneven": ((7, 250, 1, 342), (3,)),
    "columns": ((200, 400), (1, 2)),
    "columns of one": ((600,), (1, 1, 1)),
}


@pytest.mark.parametrize("chunking", CHUNKINGS)
def test_same_fit_as_scikit_learn_whatever_the_chunks(covariance_type, chunking):
    x = blobs(0, 600, 3, 3)
    parameters = {
        "n_components": 3,
        "covariance_type": covariance_type,
        "random_state": 1,
    }
    _, theirs = fit_both(x, **parameters)
    lazy = da.from_array(x, chunks=CHUNKINGS[chunking])
    ours = GaussianMixture(**parameters).fit(lazy)
    assert_same_model(ours, theirs)
    np.testing.assert_array_equal(ours.predict(lazy).compute(), theirs.predict(x))
    assert ours.bic(lazy) == pytest.approx(theirs.bic(x), rel=1e-10)


@pytest.mark.parametrize("n_init", [1, 3])
def test_same_fit_for_every_start(covariance_type, init_params, n_init):
    x = blobs(1, 500, 2, 2)
    parameters = {
        "n_components": 2,
        "covariance_type": covariance_type,
        "init_params": init_params,
        "n_init": n_init,
        "random_state": 4,
    }
    numpy_fit = GaussianMixture(**parameters).fit(x)
    lazy_fit = GaussianMixture(**parameters).fit(da.from_array(x, chunks=(170, 2)))
    np.testing.assert_allclose(lazy_fit.means_, numpy_fit.means_, rtol=1e-7)
    np.testing.assert_allclose(lazy_fit.covariances_, numpy_fit.covariances_, rtol=1e-7)
    assert lazy_fit.n_iter_ == numpy_fit.n_iter_


@settings(max_examples=25)
@given(
    rows=st.lists(st.integers(0, 60), min_size=1, max_size=6),
    columns=st.sampled_from([(3,), (1, 2), (1, 1, 1)]),
    weighted=st.booleans(),
    single=st.booleans(),
    seed=st.integers(0, 100),
)
def test_chunks_change_no_number(rows, columns, weighted, single, seed):
    n = sum(rows)
    if n < 10:
        return
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)).astype(np.float32 if single else np.float64)
    weights = rng.random(n) + 0.1 if weighted else None
    lazy = da.from_array(x, chunks=(tuple(rows), columns))
    lazy_weights = None if weights is None else da.from_array(weights, chunks=13)
    model = GaussianMixture(2, random_state=seed, max_iter=5, tol=0)
    with pytest.warns(Warning, match="did not converge"):
        expected = model.fit(x, sample_weight=weights)
    got = GaussianMixture(2, random_state=seed, max_iter=5, tol=0)
    with pytest.warns(Warning, match="did not converge"):
        got.fit(lazy, sample_weight=lazy_weights)
    tolerance = 1e-5 if single else 1e-8
    np.testing.assert_allclose(got.means_, expected.means_, tolerance, tolerance)
    assert got.means_.dtype == x.dtype


def test_results_are_lazy_and_chunked_like_the_rows(covariance_type):
    x = blobs(2, 400, 2, 2)
    model = GaussianMixture(2, covariance_type=covariance_type, random_state=0).fit(x)
    for dtype in (np.float64, np.float32, np.int16):
        rows = x.astype(dtype)
        lazy = da.from_array(rows, chunks=((150, 0, 250), 1))
        floats = np.float32 if dtype == np.float32 else np.float64
        for method, kind, width in (
            ("predict", np.int64, ()),
            ("predict_proba", floats, (2,)),
            ("score_samples", floats, ()),
        ):
            result = getattr(model, method)(lazy)
            assert isinstance(result, da.Array)
            assert result.shape == (400, *width)
            assert result.chunks == ((150, 0, 250), *((w,) for w in width))
            assert result.dtype == kind == result.compute().dtype
            assert result._meta.dtype == kind
            assert result._meta.ndim == result.ndim
            expected = getattr(model, method)(rows)
            np.testing.assert_array_equal(result.compute(), expected)


def test_unknown_row_counts(covariance_type):
    if dask.config.get("array.query-planning", False):
        pytest.skip("Dask's array expressions cannot choose rows by a mask")
    x = blobs(3, 500, 2, 2)
    lazy = da.from_array(x, chunks=(120, 2))
    kept = x[:, 0] > np.median(x[:, 0]) - 5
    some = lazy[da.from_array(kept, chunks=120)]
    assert np.isnan(some.shape[0])
    parameters = {
        "n_components": 2,
        "covariance_type": covariance_type,
        "random_state": 0,
        "init_size": 200,
    }
    expected = GaussianMixture(**parameters).fit(some.compute())
    model = GaussianMixture(**parameters).fit(some)
    np.testing.assert_allclose(model.means_, expected.means_, rtol=1e-8)
    labels = model.predict(some)
    assert np.isnan(labels.shape[0])
    np.testing.assert_array_equal(labels.compute(), expected.predict(some.compute()))
    assert model.score(some) == pytest.approx(expected.score(some.compute()))
    weights = lazy[lazy[:, 0] > np.median(x[:, 0]) - 5][:, 1] ** 2
    weighted = GaussianMixture(**parameters).fit(some, sample_weight=weights)
    expected = GaussianMixture(**parameters).fit(
        some.compute(), sample_weight=weights.compute()
    )
    np.testing.assert_allclose(weighted.means_, expected.means_, rtol=1e-8)


@pytest.mark.parametrize("shards", [None, (200, 2)])
@pytest.mark.parametrize("how", ["array", "path", "text", "url"])
def test_zarr_arrays_and_their_paths(tmp_path, shards, how):
    x = blobs(4, 1000, 2, 2)
    path = tmp_path / "rows.zarr"
    array = zarr.create_array(str(path), data=x, chunks=(50, 2), shards=shards)
    source = {
        "array": array,
        "path": path,
        "text": str(path),
        "url": path.as_uri(),
    }[how]
    expected = GaussianMixture(2, random_state=0).fit(x)
    model = GaussianMixture(2, random_state=0).fit(source)
    np.testing.assert_allclose(model.means_, expected.means_, rtol=1e-8)
    labels = model.predict(source)
    assert isinstance(labels, da.Array)
    assert labels.chunks[0] == ((200,) * 5 if shards else (50,) * 20)
    np.testing.assert_array_equal(labels.compute(), expected.predict(x))
    assert model.bic(source) == pytest.approx(expected.bic(x))


def test_zarr_weights(tmp_path):
    x = blobs(5, 500, 2, 2)
    weights = np.random.default_rng(0).random(500)
    zarr.create_array(str(tmp_path / "x"), data=x, chunks=(100, 2))
    zarr.create_array(str(tmp_path / "w"), data=weights, chunks=(70,))
    expected = GaussianMixture(2, random_state=0).fit(x, sample_weight=weights)
    for given_weights in (tmp_path / "w", da.from_array(weights, chunks=33), weights):
        model = GaussianMixture(2, random_state=0)
        model.fit(tmp_path / "x", sample_weight=given_weights)
        np.testing.assert_allclose(model.means_, expected.means_, rtol=1e-8)
    assert model.score(tmp_path / "x", sample_weight=tmp_path / "w") == pytest.approx(
        expected.score(x, sample_weight=weights)
    )


def _fit_bits(lazy, **parameters):
    model = GaussianMixture(3, random_state=0, init_size=500, **parameters).fit(lazy)
    arrays = (model.weights_, model.means_, model.covariances_, model.lower_bounds_)
    return b"".join(np.asarray(a).tobytes() for a in arrays), model.score(lazy)


def test_the_same_bits_on_every_scheduler_and_number_of_workers():
    x = blobs(6, 3000, 4, 3)
    chunks = ((17, 400, 3, 80, 1000, 500, 1000), 2)
    lazy = da.from_array(x, chunks=chunks)
    cases = [
        {"covariance_type": kind, "init_params": start, "n_init": 2}
        for kind, start in [
            ("full", "kmeans"),
            ("tied", "random"),
            ("diag", "k-means++"),
            ("spherical", "random_from_data"),
        ]
    ]
    with dask.config.set(scheduler="synchronous"):
        expected = [_fit_bits(lazy, **case) for case in cases]
    for n_threads in (1, 2, 4):
        with dask.config.set(scheduler="threads", num_workers=n_threads):
            assert [_fit_bits(lazy, **case) for case in cases] == expected
    for n_workers in (1, 3):
        with (
            LocalCluster(
                n_workers=n_workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address=":0",
            ) as cluster,
            Client(cluster),
            dask.config.set(scheduler="distributed"),
        ):
            assert [_fit_bits(lazy, **case) for case in cases] == expected
            resident = lazy.persist()
            assert _fit_bits(resident, **cases[0]) == expected[0]
            # A message of more than 10 MB: Dask warns of such graphs.
            wide = blobs(8, 400, 900, 1)
            wide_model = GaussianMixture(1).fit(da.from_array(wide, chunks=(200, 900)))
            assert wide_model.covariances_.nbytes * 2 > 10e6


def test_numpy_rows_need_no_scheduler():
    """They are fitted in this process even where a scheduler is set that would fail."""

    def fail(*_args, **_kwargs):
        raise AssertionError("a scheduler was used")

    x = blobs(7, 300, 2, 2)
    with dask.config.set(scheduler=fail):
        model = GaussianMixture(2, random_state=0).fit(x)
        model.predict(x)
        model.score(x)


@pytest.mark.parametrize("accelerate", [False, True])
def test_a_worker_that_is_killed_costs_no_bit(accelerate):
    """Rows that were held by it are computed anew, by another one."""
    x = da.from_array(blobs(8, 4000, 3, 3, spread=1.5), chunks=(250, 3))
    parameters = {"n_components": 3, "tol": 0, "max_iter": 6, "random_state": 0}
    parameters |= {"accelerate": accelerate, "init_size": 200}
    with pytest.warns(ConvergenceWarning):
        expected = GaussianMixture(**parameters).fit(x)
    with (
        worker_processes() as cluster,
        Client(cluster) as client,
    ):
        [victim, _] = client.run(os.getpid).values()

        def kill(progress):
            if progress.n_pass == 2:
                os.kill(victim, signal.SIGKILL)

        with pytest.warns(ConvergenceWarning):
            got = GaussianMixture(**parameters).fit(x, callback=kill)
        assert victim not in client.run(os.getpid).values()
    for name in ("weights_", "means_", "covariances_", "lower_bounds_"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
