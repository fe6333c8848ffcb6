"""The Bayesian mixture has scikit-learn's numbers, on data of any kind and size."""

from __future__ import annotations

import warnings

import dask
import dask.array as da
import numpy as np
import pytest
from conftest import COVARIANCE_TYPES, blobs, create_zarr
from scipy import stats
from scipy.special import digamma
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture as Theirs
from stored import Reader

from daskgmm import BayesianGaussianMixture, GaussianMixture, load
from daskgmm.errors import CheckpointError
from daskgmm.mixtures.covariance import SHAPES
from daskgmm.mixtures.gaussian import Mixture
from daskgmm.mixtures.variational import Priors, VariationalBayes

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

KINDS = ("dirichlet_process", "dirichlet_distribution")
KIND = pytest.mark.parametrize("kind", KINDS)
NUMBERS = (
    "weights_",
    "means_",
    "covariances_",
    "precisions_",
    "precisions_cholesky_",
    "weight_concentration_",
    "mean_precision_",
    "degrees_of_freedom_",
    "weight_concentration_prior_",
    "mean_precision_prior_",
    "mean_prior_",
    "degrees_of_freedom_prior_",
    "covariance_prior_",
)


class Broken(Exception):
    """What ends a fit before its time."""


def rows(seed=0, n=500, d=3):
    """Groups of different widths, some rows apart from all."""
    rng = np.random.default_rng(seed)
    groups = [
        rng.normal(size=(n // 3, d)) @ rng.normal(size=(d, d)) + centre
        for centre in (-4.0, 0.0, 5.0)
    ]
    x = np.concatenate([*groups, rng.normal(size=(5, d)) * 30])
    return rng.permutation(x)


def assert_same_model(ours, theirs, x=None, rtol=1e-7):
    assert ours.n_iter_ == theirs.n_iter_
    assert ours.converged_ == theirs.converged_
    for name in NUMBERS:
        got, expected = getattr(ours, name), getattr(theirs, name)
        scale = np.abs(np.asarray(expected)).max()
        np.testing.assert_allclose(
            np.asarray(got), np.asarray(expected), rtol=rtol, atol=rtol * 1e-3 * scale
        )
        assert np.shape(got) == np.shape(expected), name
        assert type(got) is type(expected) or np.isscalar(got), name
    bounds = [float(np.squeeze(bound)) for bound in theirs.lower_bounds_]
    np.testing.assert_allclose(ours.lower_bounds_, bounds, rtol=1e-8)
    assert ours.lower_bound_ == pytest.approx(float(np.squeeze(theirs.lower_bound_)))
    if x is not None:
        np.testing.assert_allclose(
            ours.score_samples(x), theirs.score_samples(x), rtol=1e-8
        )
        np.testing.assert_allclose(
            ours.predict_proba(x), theirs.predict_proba(x), atol=1e-8
        )
        np.testing.assert_array_equal(ours.predict(x), theirs.predict(x))


def fit_both(x, **parameters):
    return (kind(**parameters).fit(x) for kind in (BayesianGaussianMixture, Theirs))


@KIND
def test_the_numbers_are_scikit_learns(covariance_type, init_params, kind):
    x = rows()
    ours, theirs = fit_both(
        x,
        n_components=6,
        covariance_type=covariance_type,
        weight_concentration_prior_type=kind,
        init_params=init_params,
        random_state=3,
        max_iter=40,
    )
    assert_same_model(ours, theirs, x)
    assert ours.n_iter_ > 1


@KIND
def test_the_best_of_several_starts_is_kept(kind):
    """Where no two of them lead to the same place."""
    x = blobs(0, 600, 2, 5, spread=1.5)
    ours, theirs = fit_both(
        x,
        n_components=4,
        weight_concentration_prior_type=kind,
        init_params="random_from_data",
        random_state=0,
        n_init=4,
        max_iter=30,
    )
    assert_same_model(ours, theirs, x)
    one = BayesianGaussianMixture(
        n_components=4,
        weight_concentration_prior_type=kind,
        init_params="random_from_data",
        random_state=0,
        max_iter=30,
    ).fit(x)
    assert ours.lower_bound_ >= one.lower_bound_


@KIND
def test_with_all_priors_given(covariance_type, kind):
    x = rows(1)
    rng = np.random.default_rng(2)
    matrix = np.cov(rng.normal(size=(3, 20)))
    prior = {"full": matrix, "tied": matrix, "diag": [0.5, 2.0, 1.0], "spherical": 0.7}
    ours, theirs = fit_both(
        x,
        n_components=4,
        covariance_type=covariance_type,
        weight_concentration_prior_type=kind,
        weight_concentration_prior=3.0,
        mean_precision_prior=0.2,
        mean_prior=[1.0, -2.0, 0.5],
        degrees_of_freedom_prior=7.5,
        covariance_prior=prior[covariance_type],
        reg_covar=0.1,
        random_state=0,
        tol=1e-5,
    )
    assert_same_model(ours, theirs, x)


def test_far_from_the_origin_nothing_is_lost(covariance_type):
    """Beside scikit-learn's own numbers about zero, where both are at their end."""
    x = rows(3)
    parameters = {
        "n_components": 3,
        "covariance_type": covariance_type,
        "random_state": 0,
        "tol": 1e-9,
        "max_iter": 1000,
    }
    near = Theirs(**parameters).fit(x)
    far = BayesianGaussianMixture(**parameters).fit(x + 1e7)
    assert near.converged_
    np.testing.assert_allclose(far.means_ - 1e7, near.means_, atol=1e-5)
    np.testing.assert_allclose(far.covariances_, near.covariances_, rtol=1e-5)


@pytest.mark.parametrize("kind_of_rows", ["dask", "unknown", "zarr", "parts"])
def test_any_kind_of_rows_and_chunks(tmp_path, kind_of_rows):
    x = rows()
    given = da.from_array(x, chunks=(77, 3))
    if kind_of_rows == "unknown":
        given = given[given[:, 0] > -np.inf]
    elif kind_of_rows == "zarr":
        create_zarr(tmp_path / "x.zarr", x, chunks=(100, 3))
        given = str(tmp_path / "x.zarr")
    elif kind_of_rows == "parts":
        given = given.rechunk((1, 3))
    parameters = {"n_components": 5, "random_state": 0, "max_iter": 30}
    ours = BayesianGaussianMixture(**parameters).fit(given)
    assert_same_model(ours, Theirs(**parameters).fit(x))
    assert isinstance(ours.predict(given), da.Array)


def test_the_bits_are_those_of_any_scheduler(tmp_path):
    create_zarr(tmp_path / "x.zarr", rows(), chunks=(60, 3))
    models = []
    for scheduler in ("sync", "threads"):
        with dask.config.set(scheduler=scheduler):
            model = BayesianGaussianMixture(
                n_components=4, random_state=0, init_size=99
            )
            models.append(model.fit(str(tmp_path / "x.zarr")))
    for name in (*NUMBERS, "lower_bounds_"):
        np.testing.assert_array_equal(*(getattr(model, name) for model in models))


@pytest.mark.usefixtures("nothing_kept")
def test_priors_of_more_rows_than_are_drawn_are_those_of_all(covariance_type):
    """They take one more read; starts count as if they were of all rows."""
    x = rows(n=3000)
    reader = Reader(x, 400)
    parameters = {"n_components": 3, "covariance_type": covariance_type}
    model = BayesianGaussianMixture(random_state=0, init_size=200, **parameters)
    model.fit(reader.array())
    np.testing.assert_allclose(model.mean_prior_, x.mean(axis=0), atol=1e-10)
    variances = np.var(x, axis=0, ddof=1)
    expected = {
        "full": np.cov(x.T), "tied": np.cov(x.T),
        "diag": variances, "spherical": variances.mean(),
    }[covariance_type]  # fmt: skip
    np.testing.assert_allclose(model.covariance_prior_, expected, rtol=1e-10)
    assert (reader.counts <= model.n_passes_ + 2).all()
    start = BayesianGaussianMixture(
        random_state=0, init_size=200, max_iter=0, **parameters
    ).fit(x)
    counts = start.mean_precision_ - start.mean_precision_prior_
    assert counts.sum() == pytest.approx(len(x))


def test_weights_count_as_rows(covariance_type):
    """Of one component, the posterior is known."""
    x = rows(n=100)
    weights = np.random.default_rng(0).integers(0, 4, size=len(x)).astype(float)
    repeated = np.repeat(x, weights.astype(int), axis=0)
    parameters = {"covariance_type": covariance_type, "random_state": 0}
    ours = BayesianGaussianMixture(**parameters).fit(x, sample_weight=weights)
    theirs = Theirs(**parameters).fit(repeated)
    for name in NUMBERS:
        np.testing.assert_allclose(
            getattr(ours, name), getattr(theirs, name), rtol=1e-9
        )
    assert ours.lower_bound_ == pytest.approx(float(np.squeeze(theirs.lower_bound_)))
    several = BayesianGaussianMixture(
        n_components=3, mean_prior=x.mean(axis=0), **parameters
    )
    lazy = da.from_array(x, chunks=(30, 3))
    got = several.fit(lazy, sample_weight=da.from_array(weights, chunks=30))
    assert got.mean_precision_.sum() == pytest.approx(weights.sum() + 3)


def test_float32_stays_float32(covariance_type):
    x = rows().astype(np.float32)
    parameters = {
        "n_components": 3, "covariance_type": covariance_type, "random_state": 0,
        "init_params": "random_from_data",
    }  # fmt: skip
    ours = BayesianGaussianMixture(**parameters).fit(x)
    expected = BayesianGaussianMixture(**parameters).fit(x.astype(float))
    assert ours.means_.dtype == ours.covariances_.dtype == np.float32
    assert ours.n_iter_ == expected.n_iter_
    for name in NUMBERS:
        np.testing.assert_allclose(
            getattr(ours, name), getattr(expected, name), rtol=1e-5, atol=1e-5
        )


def test_warm_start_goes_on():
    x = rows()
    parameters = {"n_components": 4, "random_state": 0, "tol": 1e-9, "warm_start": True}
    ours, theirs = (
        kind(max_iter=2, **parameters) for kind in (BayesianGaussianMixture, Theirs)
    )
    for _ in range(3):
        ours.fit(x)
        theirs.fit(x)
        assert_same_model(ours, theirs, x)


def test_components_nobody_needs_lose_their_weight_and_count_for_nothing():
    """Their log weights are far below what an exponential may be."""
    x = blobs(0, 400, 2, 2, spread=10.0)
    parameters = {
        "n_components": 12, "weight_concentration_prior": 1e-6, "random_state": 0,
        "max_iter": 300, "covariance_type": "diag",
    }  # fmt: skip
    ours, theirs = fit_both(x, **parameters)
    assert_same_model(ours, theirs, x)
    far = np.array([[1e3, -1e3]])
    np.testing.assert_allclose(
        ours.predict_proba(far), theirs.predict_proba(far), atol=1e-9
    )
    assert ours._mixture().log_normalisers().min() < -800
    assert (ours.weights_ > 1e-3).sum() < 6


# --- the rule -------------------------------------------------------------------------


@KIND
def test_expected_logs_of_weights_are_those_of_draws(kind):
    """By Monte Carlo, from the posterior that the concentrations say."""
    rng = np.random.default_rng(0)
    counts = np.array([30.0, 4.0, 0.5])
    priors = Priors(kind == KINDS[0], 0.4, 1.0, 2.0, np.zeros(2), np.eye(2))
    rule = VariationalBayes(priors, 0.0)
    found = rule.concentrations(counts)
    if priors.is_process:
        sticks = rng.beta(*found, size=(400_000, 3))
        rest = np.cumprod(1 - sticks, axis=1)
        drawn = sticks * np.column_stack([np.ones(len(sticks)), rest[:, :-1]])
    else:
        drawn = rng.dirichlet(found, size=400_000)
    got = rule._log_weights(counts)
    with np.errstate(divide="ignore"):
        logs = np.log(drawn)
    kept = np.isfinite(logs).all(axis=1)
    np.testing.assert_allclose(got[:2], logs[kept].mean(axis=0)[:2], atol=0.01)
    expected = drawn.mean(axis=0)
    if priors.is_process:  # broken off: what is left is shared out
        expected = expected / expected.sum()
    np.testing.assert_allclose(rule.weights(counts), expected, atol=2e-3)


def test_expected_log_densities_are_those_of_draws():
    """Precisions from the Wishart distribution, means given them."""
    rng = np.random.default_rng(0)
    d, n = 2, 200_000
    counts = np.array([7.0])
    covariance = np.array([[2.0, 0.6], [0.6, 1.0]])
    priors = Priors(False, 1.0, 1.5, 3.0, np.zeros(d), np.eye(d))
    rule = VariationalBayes(priors, 0.0)
    shape = SHAPES["full"]
    mean = np.array([[0.5, -1.0]])
    posterior = Mixture(
        shape, counts, mean, covariance[np.newaxis],
        shape.factors(covariance[np.newaxis]),
    )  # fmt: skip
    degrees = float(rule.degrees_of_freedom(shape, counts)[0])
    drawn = stats.wishart.rvs(
        degrees, np.linalg.inv(covariance) / degrees, size=n, random_state=1
    )
    wide = np.linalg.cholesky(np.linalg.inv(drawn) / rule.mean_precisions(counts)[0])
    means = mean + np.einsum("nij,nj->ni", wide, rng.normal(size=(n, d)))
    row = np.array([1.0, 1.0])
    off = row - means
    logs = (
        0.5 * np.linalg.slogdet(drawn)[1]
        - 0.5 * np.einsum("ni,nij,nj->n", off, drawn, off)
        - 0.5 * d * np.log(2 * np.pi)
    )
    message = rule.message(posterior)
    off = row - mean[0]
    got = message.log_normalisers()[0] - 0.5 * off @ np.linalg.solve(covariance, off)
    got -= float(digamma(8.0) - digamma(8.0))  # the one weight is certain
    assert got == pytest.approx(logs.mean(), abs=5 * logs.std() / np.sqrt(n))


def test_the_bound_never_falls(covariance_type):
    model = BayesianGaussianMixture(
        n_components=5, covariance_type=covariance_type, reg_covar=0.0, tol=1e-8,
        random_state=1, max_iter=100,
    ).fit(rows(4))  # fmt: skip
    assert (np.diff(model.lower_bounds_) > -1e-7).all()
    assert len(model.lower_bounds_) > 5


# --- saved, broken off, refused -------------------------------------------------------


@KIND
def test_saved_and_handed_to_scikit_learn(tmp_path, covariance_type, kind):
    x = rows()
    model = BayesianGaussianMixture(
        n_components=3, covariance_type=covariance_type, random_state=0,
        weight_concentration_prior_type=kind, mean_prior=[0.0, 1.0, 2.0],
    ).fit(x)  # fmt: skip
    model.save(tmp_path / "model.zarr")
    loaded = load(tmp_path / "model.zarr")
    assert type(loaded) is BayesianGaussianMixture
    for name in NUMBERS:
        got, expected = getattr(loaded, name), getattr(model, name)
        np.testing.assert_array_equal(got, expected)
        assert type(got) is type(expected), name
    np.testing.assert_array_equal(loaded.predict_proba(x), model.predict_proba(x))
    theirs = model.to_sklearn()
    assert type(theirs) is Theirs
    np.testing.assert_allclose(
        theirs.predict_proba(x), model.predict_proba(x), atol=1e-9
    )
    again = BayesianGaussianMixture.from_sklearn(Theirs(n_components=3).fit(x))
    np.testing.assert_allclose(again.score_samples(x).shape, (len(x),))
    assert type(load_of(tmp_path, GaussianMixture(2).fit(x))) is GaussianMixture


def load_of(folder, model):
    model.save(folder / "another.zarr")
    return load(folder / "another.zarr")


@pytest.mark.parametrize("seed", [0, None])
def test_a_fit_that_broke_off_goes_on_with_the_same_bits(tmp_path, seed):
    x = da.from_array(rows(n=2000), chunks=(300, 3))
    parameters = {"n_components": 5, "init_size": 300, "n_init": 2, "tol": 1e-6}
    model = BayesianGaussianMixture(random_state=seed, **parameters)
    passes = []

    def observe(progress):
        passes.append(progress.n_pass)
        if len(passes) == 3:
            raise Broken

    with pytest.raises(Broken):
        model.fit(x, callback=observe, checkpoint=tmp_path, checkpoint_interval=1)
    model.fit(x, callback=observe, checkpoint=tmp_path, checkpoint_interval=1)
    assert passes[:5] == [1, 2, 3, 4, 5]
    if seed is not None:
        expected = BayesianGaussianMixture(random_state=seed, **parameters).fit(x)
        for name in (*NUMBERS, "lower_bounds_", "n_iter_"):
            np.testing.assert_array_equal(getattr(model, name), getattr(expected, name))
    with pytest.raises(CheckpointError, match="mean_precision_prior"):
        model.set_params(mean_precision_prior=2.0).fit(x, checkpoint=tmp_path)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"degrees_of_freedom_prior": 1.5}, "should be greater than 2, but got 1.500"),
        ({"mean_prior": [1.0]}, r"'means' should have the shape of \(3,\)"),
        ({"covariance_prior": np.eye(2)}, "full covariance_prior"),
        ({"covariance_prior": -np.eye(3)}, "positive-definite"),
        (
            {"covariance_prior": [1, 2], "covariance_type": "spherical"},
            "a number above",
        ),
        ({"covariance_prior": [1, -1, 2], "covariance_type": "diag"}, "positive"),
        ({"weight_concentration_prior": 0.0}, "weight_concentration_prior"),
        (
            {"weight_concentration_prior_type": "gamma"},
            "weight_concentration_prior_type",
        ),
        ({"n_components": 1000}, "n_samples >= n_components"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        BayesianGaussianMixture(**parameters).fit(rows())


def test_it_has_what_scikit_learns_has_and_no_criteria():
    public = {name for name in dir(Theirs) if not name.startswith("_")}
    assert public <= set(dir(BayesianGaussianMixture))
    assert not hasattr(BayesianGaussianMixture, "bic")
    assert not hasattr(BayesianGaussianMixture, "aic")


def test_a_fit_that_does_not_converge_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        with pytest.raises(ConvergenceWarning):
            BayesianGaussianMixture(n_components=5, max_iter=1).fit(rows())


def test_all_covariance_types_are_tested():
    assert set(COVARIANCE_TYPES) == set(SHAPES)
