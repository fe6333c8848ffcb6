"""Fits and answers in single precision: those of double, and double where needed."""

from __future__ import annotations

import warnings

import dask
import dask.array as da
import numpy as np
import pytest
from conftest import COVARIANCE_TYPES, blobs
from sklearn.exceptions import ConvergenceWarning

from daskgmm import GaussianMixture, load
from daskgmm.em.precision import Precision, may_be_single
from daskgmm.em.state import Run
from daskgmm.errors import IllDefinedCovarianceError

N, D, K = 140_000, 3, 6
SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)


@pytest.fixture(scope="module")
def rows():
    return (blobs(0, N, D, K, spread=2.0) + 50.0).astype(np.float32)


@pytest.fixture
def kept_double(monkeypatch):
    """Attributes are not rounded to float32, so that fits can be compared."""
    monkeypatch.setattr("daskgmm.mixtures.gaussian.Mixture.fits_in_single", False)


def fit(x, arithmetic, sample_weight=None, **parameters):
    defaults = {"n_components": K, "random_state": 0, "max_iter": 200}
    defaults |= {"accelerate": False, "init_size": 2000}
    model = GaussianMixture(**(defaults | parameters), arithmetic=arithmetic)
    return model.fit(x, sample_weight=sample_weight)


def assert_near(got, expected, tol):
    """Parameters beside each other, in standard deviations."""
    variances = expected._mixture().shape.variances(expected.covariances_, D)
    deviations = np.sqrt(variances)
    np.testing.assert_allclose(got.weights_, expected.weights_, atol=tol)
    off = np.abs(got.means_ - expected.means_) / deviations
    assert off.max() <= tol
    largest = np.abs(expected.covariances_).max()
    np.testing.assert_allclose(
        got.covariances_, expected.covariances_, atol=tol * largest
    )
    assert got.lower_bound_ == pytest.approx(expected.lower_bound_, abs=tol)


@pytest.mark.usefixtures("kept_double")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("accelerate", [False, True])
def test_a_fit_is_that_of_double(rows, covariance_type, weighted, accelerate):
    if accelerate:
        # No saddles: where a path leaves one, it is by what it is off, so by rounding.
        rows = (blobs(0, N, D, K, spread=4.0) + 50.0).astype(np.float32)
    weights = np.random.default_rng(1).uniform(0, 2, size=N) if weighted else None
    parameters = {"covariance_type": covariance_type, "accelerate": accelerate}
    expected = fit(rows, "double", weights, **parameters)
    got = fit(rows, "auto", weights, **parameters)
    assert (got.arithmetic_, expected.arithmetic_) == ("single", "double")
    assert got.n_iter_ == expected.n_iter_
    assert_near(got, expected, 1e-5)
    assert got.lower_bound_ != expected.lower_bound_


@pytest.mark.usefixtures("kept_double")
def test_a_tol_that_single_precision_does_not_hold_ends_in_double(covariance_type):
    parameters = {"covariance_type": covariance_type, "tol": 1e-9, "max_iter": 2000}
    x = (blobs(1, N, D, K, spread=6.0) + 50.0).astype(np.float32)
    expected = fit(x, "double", **parameters)
    got = fit(x, "auto", **parameters)
    assert got.converged_
    assert got.arithmetic_ == "double"
    assert abs(got.n_iter_ - expected.n_iter_) <= 3
    assert_near(got, expected, 1e-4)
    assert got.lower_bound_ == pytest.approx(expected.lower_bound_, abs=1e-8)


def test_what_begins_in_single_is_told_by_numbers_alone():
    enough = 2**22 // (K * (D + 2)) + 1
    assert may_be_single("auto", SINGLE, enough, K, D)
    assert not may_be_single("auto", SINGLE, enough - 1, K, D)
    assert not may_be_single("auto", DOUBLE, enough, K, D)
    assert not may_be_single("double", SINGLE, enough, K, D)


@pytest.mark.parametrize("covariance_type", ["full", "tied"])
@pytest.mark.parametrize("reg_covar", [0.0, 1e-6])
def test_a_column_that_follows_from_others(rows, covariance_type, reg_covar):
    """Sums in single precision would make it look as if it did not."""
    x = rows.astype(np.float64) - 50.0
    x = np.column_stack([x, x[:, 0] + x[:, 1]]).astype(np.float32)
    x[:, 3] = x[:, 0] + x[:, 1]
    parameters = {"covariance_type": covariance_type, "reg_covar": reg_covar}
    both = []
    for arithmetic in ("double", "auto"):
        try:
            both.append(fit(x, arithmetic, **parameters))
        except IllDefinedCovarianceError as error:
            both.append(str(error))
    if isinstance(both[0], str):
        assert both[0] == both[1]
        return
    expected, got = both
    assert got.arithmetic_ == "double"
    assert got.lower_bound_ == pytest.approx(expected.lower_bound_, abs=1e-4)


@pytest.mark.parametrize("far", [1e12, 1e25, 3e38])
def test_a_row_that_lies_where_float32_ends(rows, far):
    x = rows.copy()
    x[77] = far
    clean = fit(rows, "double", covariance_type="diag")
    start = {
        "covariance_type": "diag",
        "weights_init": clean.weights_,
        "means_init": clean.means_,
        "precisions_init": clean.precisions_,
    }
    expected, got = fit(x, "double", **start), fit(x, "auto", **start)
    assert got.n_iter_ == expected.n_iter_
    assert np.isfinite(got.lower_bound_)
    assert got.lower_bound_ == pytest.approx(expected.lower_bound_, rel=1e-5)
    np.testing.assert_allclose(got.means_, expected.means_, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e-16, 1e16, 1e30])
def test_rows_of_any_size(rows, scale):
    x = (rows - 50.0) * np.float32(scale)
    parameters = {"reg_covar": 0.0, "tol": 1e-2, "init_params": "random"}
    expected, got = fit(x, "double", **parameters), fit(x, "auto", **parameters)
    np.testing.assert_allclose(got.means_ / scale, expected.means_ / scale, atol=1e-4)
    assert got.lower_bound_ == pytest.approx(expected.lower_bound_, rel=1e-5)


@pytest.mark.usefixtures("kept_double")
def test_bits_do_not_depend_on_chunks_or_threads(rows):
    """As long as chunks end where tiles do not tell."""
    expected = fit(da.from_array(rows, chunks=(20_000, D)), "auto")
    assert expected.arithmetic_ == "single"
    for scheduler in ("sync", "threads"):
        with dask.config.set(scheduler=scheduler):
            got = fit(da.from_array(rows, chunks=(20_000, D)), "auto")
        assert_same(got, expected)


def assert_same(got, expected):
    for name in ("weights_", "means_", "covariances_", "lower_bounds_", "n_iter_"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))


@pytest.mark.slow
@pytest.mark.usefixtures("kept_double")
def test_a_fit_that_goes_on_has_the_same_bits(rows, tmp_path):
    parameters = {"n_init": 2, "tol": 1e-8, "init_params": "random_from_data"}
    place, passes = tmp_path / "checkpoint", []

    def stop(progress):
        passes.append(progress.n_pass)
        if len(passes) == 4:
            raise KeyboardInterrupt

    expected = GaussianMixture(K, random_state=0, **parameters)
    expected.fit(rows)
    model = GaussianMixture(K, random_state=0, **parameters)
    with pytest.raises(KeyboardInterrupt):
        model.fit(rows, callback=stop, checkpoint=place, checkpoint_interval=1)
    model.fit(rows, checkpoint=place, checkpoint_interval=1)
    assert_same(model, expected)
    assert model.arithmetic_ == expected.arithmetic_


@pytest.mark.usefixtures("kept_double")
def test_a_run_does_not_depend_on_those_beside_it(rows):
    alone = {"init_params": "random_from_data", "max_iter": 8, "tol": 0.0}
    found = []
    for n_init in (1, 3):
        model = GaussianMixture(
            K, random_state=0, n_init=n_init, accelerate=False, **alone
        )
        bounds = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(rows, callback=lambda p, b=bounds: b.append(p.runs[0].bound))
        found.append(bounds)
    assert found[0] == found[1]


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_answers_are_those_of_double(rows, covariance_type):
    model = fit(rows, "double", covariance_type=covariance_type)
    expected = {
        name: getattr(model, name)(rows)
        for name in ("score_samples", "predict_proba", "predict")
    }
    score = model.score(rows)
    model.arithmetic = "auto"
    lazy = da.from_array(rows, chunks=(30_000, D))
    log_prob = model.score_samples(rows)
    least = np.maximum(1, np.abs(expected["score_samples"]))
    assert (np.abs(log_prob - expected["score_samples"]) <= 1.1e-5 * least).all()
    assert (log_prob != expected["score_samples"]).any()
    np.testing.assert_array_equal(model.score_samples(lazy), log_prob)
    shares = model.predict_proba(rows)
    np.testing.assert_allclose(shares, expected["predict_proba"], atol=1e-4)
    np.testing.assert_array_equal(model.predict_proba(lazy), shares)
    differ = model.predict(rows) != expected["predict"]
    top = np.sort(expected["predict_proba"][differ], axis=1)
    assert (top[:, -1] - top[:, -2] < 1e-4).all()
    assert model.score(rows) == pytest.approx(score, rel=1e-5)


def test_few_rows_are_asked_in_double(rows):
    model = fit(rows, "auto")
    few = rows[:500]
    expected = model.score_samples(few)
    model.arithmetic = "double"
    np.testing.assert_array_equal(model.score_samples(few), expected)


def test_the_precision_is_kept_with_a_model(rows, tmp_path):
    model = fit(rows, "auto")
    model.save(tmp_path / "model.zarr")
    again = load(tmp_path / "model.zarr")
    assert again.arithmetic_ == "single"
    assert again.get_params()["arithmetic"] == "auto"
    assert "arithmetic" not in again.to_sklearn().get_params()
    with pytest.raises(ValueError, match="arithmetic"):
        fit(rows, "half")


def test_runs_that_gain_little_go_on_in_double(rows):
    mixture = fit(rows, "auto")._mixture()
    run = Run(mixture, bounds=(1.0, 1.0 + 1e-7))
    for tol, bounds, is_single in (
        (1e-3, (1.0, 1.0 + 1e-7), True),
        (1e-9, (1.0, 1.0 + 1e-7), False),
        (1e-9, (1.0, 1.0 - 1e-7), False),
        (1e-9, (1.0, 1.1), True),
        (1e-9, (1.0,), True),
        (1e-9, (), True),
        (0.0, (1.0, 1.0), False),
    ):
        run = Run(mixture, bounds=bounds)
        found = Precision(True, tol, lambda m: m).shift(run, mixture)
        assert (found is not None) == is_single
        assert Precision(False, tol, lambda m: m).shift(run, mixture) is None
