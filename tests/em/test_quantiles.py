"""Quantiles of log densities, and the rows below one: as NumPy has them, exactly."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
from conftest import blobs, create_zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import check_estimator
from stored import Reader

from daskgmm import BayesianGaussianMixture, GaussianMixture, MixtureOutlierDetector
from daskgmm.em import quantiles
from daskgmm.em.quantiles import _Counts, _keys, _number, _Place
from daskgmm.errors import DataError

SHARES = [0.0, 0.001, 0.013, 0.25, 0.5, 0.999, 1.0]

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def fitted():
    x = blobs(0, 2000, 2, 3, spread=1.5)
    return x, GaussianMixture(3, random_state=0).fit(x)


@settings(max_examples=200)
@given(numbers=arrays(np.float64, 7, elements=st.floats(allow_nan=False)))
def test_keys_are_in_the_order_of_numbers(numbers):
    keys = _keys(numbers)
    expected = np.argsort(numbers + 0.0, kind="stable")
    np.testing.assert_array_equal(np.argsort(keys, kind="stable"), expected)
    np.testing.assert_array_equal([_number(int(key)) for key in keys], numbers)


@pytest.mark.parametrize("kind", ["memory", "dask", "zarr", "unknown"])
@pytest.mark.parametrize("most", [2**22, 5, 0])
def test_they_are_numpys(monkeypatch, tmp_path, fitted, kind, most):
    """However few rows may be collected: then bits are counted in more passes."""
    monkeypatch.setattr(quantiles, "_MOST", most)
    x, model = fitted
    rows = x
    if kind in ("dask", "unknown"):
        rows = da.from_array(x, chunks=(170, 2))
    if kind == "unknown":
        rows = rows[rows[:, 0] > -np.inf]
    if kind == "zarr":
        create_zarr(tmp_path / "x.zarr", x, chunks=(300, 2))
        rows = str(tmp_path / "x.zarr")
    scores = model.score_samples(x)
    got = model.score_quantile(rows, SHARES)
    np.testing.assert_allclose(got, np.quantile(scores, SHARES), rtol=1e-13)
    assert model.score_quantile(rows, 0.37) == pytest.approx(np.quantile(scores, 0.37))


def test_weights_are_rows_that_are_repeated(fitted):
    x, model = fitted
    weights = np.random.default_rng(0).integers(0, 4, len(x)).astype(float)
    scores = np.repeat(model.score_samples(x), weights.astype(int))
    for given_weights, rows in (
        (weights, x),
        (da.from_array(weights, chunks=300), da.from_array(x, chunks=(300, 2))),
    ):
        got = model.score_quantile(rows, SHARES, sample_weight=given_weights)
        np.testing.assert_allclose(got, np.quantile(scores, SHARES), rtol=1e-13)


def test_one_pass_tells_between_what_they_lie_and_how_many_rows_are_there(fitted):
    x, model = fitted
    scores = np.sort(model.score_samples(x))
    reader = Reader(x, 250)
    brackets = model.score_quantile(reader.array(), SHARES, exact=False)
    assert (reader.counts == 1).all()
    for share, (low, high, rank_error) in zip(SHARES, brackets, strict=True):
        rank = share * (len(x) - 1)
        around = scores[[int(np.floor(rank)), int(np.ceil(rank))]]
        assert low <= around[0] <= around[1] <= high
        assert ((scores >= low) & (scores <= high)).sum() == rank_error
        assert high - low <= 2e-3 * max(abs(low), abs(high)) + np.diff(around)[0]
    reader.counts[:] = 0
    model.score_quantile(reader.array(), SHARES)
    assert (reader.counts == 2).all()


def test_a_quantile_between_two_rows_that_are_far_apart_is_in_its_bracket():
    """As in the thin tail of outliers."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 2))
    x[-50:] = rng.uniform(-15, 15, size=(50, 2))
    model = GaussianMixture(1).fit(x)
    shares = np.linspace(0.0, 0.003, 61)
    exact = model.score_quantile(x, shares)
    brackets = model.score_quantile(x, shares, exact=False)
    scores = model.score_samples(x)
    for number, (low, high, rank_error) in zip(exact, brackets, strict=True):
        assert low <= number <= high
        assert ((scores >= low) & (scores <= high)).sum() == rank_error


def test_the_bits_are_those_of_any_scheduler(fitted):
    x, model = fitted
    found = []
    for scheduler in ("sync", "threads"):
        with dask.config.set(scheduler=scheduler):
            found.append(model.score_quantile(da.from_array(x, chunks=(70, 2)), SHARES))
    np.testing.assert_array_equal(*found)


def test_ties_and_infinities_have_their_ranks():
    numbers = np.array([-np.inf, -2.0, -2.0, -0.0, 0.0, 5e-324, 1e308, np.inf])
    counts = _Counts.of(_keys(numbers), np.ones(8))
    for rank in range(8):
        place = _Place(float(rank), 0.0, None).narrowed(counts, 64)
        assert _number(place.key) == numbers[rank]


def test_what_cannot_be_is_named(fitted):
    x, model = fitted
    for q in (-0.1, 1.1, np.nan, [[0.5]]):
        with pytest.raises(ValueError, match="q must be from 0 to 1"):
            model.score_quantile(x, q)
    with pytest.raises(NotFittedError):
        GaussianMixture().score_quantile(x, 0.5)
    nothing = da.zeros(len(x), chunks=500)
    with pytest.raises(DataError, match="no rows to score"):
        model.score_quantile(da.from_array(x, chunks=(500, 2)), 0.5, nothing)


# --- the detector ---------------------------------------------------------------------


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_the_share_of_rows_is_told(lazy, share):
    x = blobs(1, 1000, 3, 2)
    rows = da.from_array(x, chunks=(90, 3)) if lazy else x
    model = GaussianMixture(2, random_state=0)
    detector = MixtureOutlierDetector(model, contamination=share).fit(rows)
    assert not hasattr(model, "means_")
    labels = detector.predict(rows)
    assert isinstance(labels, da.Array) == lazy
    labels = np.asarray(labels)
    assert set(labels) == {-1, 1}
    assert labels.dtype == np.int64
    scores = model.fit(x).score_samples(x)
    assert detector.offset_ == pytest.approx(np.percentile(scores, 100 * share))
    np.testing.assert_array_equal(labels == -1, scores < detector.offset_)
    decided = np.asarray(detector.decision_function(rows))
    np.testing.assert_allclose(decided, scores - detector.offset_, rtol=1e-9)
    np.testing.assert_array_equal(np.asarray(detector.fit_predict(rows)), labels)


def test_its_fit_has_checkpoints_and_callbacks(tmp_path):
    x, told = blobs(1, 1000, 3, 2), []
    detector = MixtureOutlierDetector(GaussianMixture(2, random_state=0))
    detector.fit(x, checkpoint=tmp_path / "kept", callback=told.append)
    assert len(told) == detector.estimator_.n_passes_ > 0
    again = MixtureOutlierDetector(GaussianMixture(2, random_state=0))
    again.fit(x, checkpoint=tmp_path / "kept", callback=lambda _: pytest.fail("read"))
    assert again.offset_ == detector.offset_


def test_answers_come_in_the_kind_of_the_rows():
    pd = pytest.importorskip("pandas")
    xr = pytest.importorskip("xarray")
    x = blobs(1, 200, 2, 2)
    index = pd.Index(np.arange(200) + 5)
    frame = pd.DataFrame(x, columns=["a", "b"], index=index)
    detector = MixtureOutlierDetector(contamination=0.05).fit(frame)
    assert [*detector.feature_names_in_] == ["a", "b"]
    expected = detector.predict(frame)
    assert (np.asarray(expected) == -1).sum() == 10
    array = xr.DataArray(x, dims=("row", "band"))
    got = MixtureOutlierDetector(contamination=0.05).fit(array).predict(array)
    assert isinstance(got, xr.DataArray)
    np.testing.assert_array_equal(got.values, np.asarray(expected))


def test_a_bayesian_mixture_detects_too():
    x = blobs(1, 300, 2, 2)
    model = BayesianGaussianMixture(n_components=4, random_state=0)
    detector = MixtureOutlierDetector(model, contamination=0.1).fit(x)
    assert (detector.predict(x) == -1).sum() == 30


def test_its_parameters_are_checked():
    x = blobs(0, 50, 2, 1)
    for parameters in (
        {"contamination": 0.0},
        {"contamination": 0.6},
        {"estimator": 5},
    ):
        with pytest.raises(ValueError, match=next(iter(parameters))):
            MixtureOutlierDetector(**parameters).fit(x)
    with pytest.raises(NotFittedError):
        MixtureOutlierDetector().predict(x)


def test_it_is_scikit_learns_detector():
    check_estimator(MixtureOutlierDetector(), on_skip=None)
