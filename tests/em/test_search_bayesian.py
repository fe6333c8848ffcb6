"""Bayesian mixtures as candidates: a grid of priors in the same passes."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from conftest import blobs
from stored import Reader

from daskgmm import BayesianGaussianMixture, GaussianMixture, MixtureSearch, load
from daskgmm.em.held_out import Split

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

PRIORS = (
    "weight_concentration_prior_",
    "mean_precision_prior_",
    "mean_prior_",
    "degrees_of_freedom_prior_",
    "covariance_prior_",
)
POSTERIOR = ("weights_", "means_", "covariances_", "mean_precision_", "lower_bounds_")


class Broken(Exception):
    """What ends a search before its time."""


def bayesian(**parameters):
    return MixtureSearch(
        **{
            "n_components": (2, 5),
            "covariance_type": ("full", "diag"),
            "weight_concentration_prior": (0.01, None, 50.0),
            "bayesian": True,
            "criterion": "held_out",
            "held_out": 0.25,
            "random_state": 1,
            **parameters,
        }
    )


def trained_on(x, share=0.25):
    held_out = Split.of([len(x)], share).held_out(0, len(x))
    return x[~held_out], x[held_out]


def alone(search, params, x, **more):
    return BayesianGaussianMixture(
        **params, random_state=search.random_state_, **more
    ).fit(x)


@pytest.mark.parametrize("init_size", ["auto", 300])
@pytest.mark.parametrize("kind", ["dirichlet_process", "dirichlet_distribution"])
def test_each_candidate_ends_as_it_would_alone(kind, init_size):
    """Also where priors are of more rows than are drawn."""
    x = blobs(0, 1500, 2, 3, spread=1.5)
    more = {
        "weight_concentration_prior_type": kind,
        "init_size": init_size,
        "mean_precision_prior": 0.5,
        "max_iter": 30,
    }
    search = bayesian(**more).fit(x)
    kept, rest = trained_on(x)
    assert len(search.results_["params"]) == 12
    for i, params in enumerate(search.results_["params"]):
        model = alone(search, params, kept, **more)
        for ours, theirs in (
            ("lower_bound", "lower_bound_"),
            ("n_iter", "n_iter_"),
            ("converged", "converged_"),
        ):
            assert search.results_[ours][i] == getattr(model, theirs), params
        expected = model.score(rest)
        assert search.results_["held_out"][i] == pytest.approx(expected, rel=1e-9)
        if i == search.best_index_:
            for name in (*PRIORS, *POSTERIOR):
                np.testing.assert_array_equal(
                    getattr(search.best_estimator_, name), getattr(model, name)
                )
    for name in ("bic", "aic", "icl"):
        assert np.isnan(search.results_[name]).all()
    assert search.best_index_ == np.argmax(search.results_["held_out"])
    assert [*search.results_["param_weight_concentration_prior"][:3]] == [
        0.01,
        None,
        50,
    ]


@pytest.mark.usefixtures("nothing_kept")
def test_priors_of_all_shapes_take_one_read():
    reader = Reader(blobs(0, 3000, 3, 3), 500)
    shapes = ("full", "tied", "diag", "spherical")
    search = bayesian(covariance_type=shapes, n_components=(1, 2), init_size=400)
    search.fit(reader.array())
    slowest = search.results_["n_passes"].max()
    assert (reader.counts <= slowest + 3).all()
    given = {"mean_prior": np.zeros(3), "covariance_prior": np.eye(3)}
    reader = Reader(blobs(0, 3000, 3, 3), 500)
    search = bayesian(covariance_type="full", init_size=400, **given)
    search.fit(reader.array())
    assert (reader.counts <= search.results_["n_passes"].max() + 2).all()


def test_a_search_that_broke_off_goes_on_with_the_same_bits(tmp_path):
    x = da.from_array(blobs(0, 2000, 2, 3, spread=1.5), chunks=(300, 2))
    more = {"init_size": 200, "n_init": 2, "max_iter": 20}
    expected, broken = bayesian(**more).fit(x), bayesian(**more)
    for after in (1, expected.n_passes_):

        def observe(progress, after=after):
            if progress.n_pass == after:
                raise Broken

        with pytest.raises(Broken):
            broken.fit(x, callback=observe, checkpoint=tmp_path, checkpoint_interval=1)
    passes = []
    broken.fit(x, callback=passes.append, checkpoint=tmp_path)
    assert len(passes) <= 1
    for name in ("held_out", "lower_bound", "n_iter", "n_passes", "rank"):
        np.testing.assert_array_equal(broken.results_[name], expected.results_[name])
    for name in (*PRIORS, *POSTERIOR):
        np.testing.assert_array_equal(
            getattr(broken.best_estimator_, name),
            getattr(expected.best_estimator_, name),
        )


def test_the_best_answers_for_the_search_and_is_saved(tmp_path):
    x = blobs(0, 600, 2, 3, spread=6.0)
    search = bayesian(max_iter=20).fit(x)
    best = search.best_estimator_
    assert isinstance(best, BayesianGaussianMixture)
    assert best.weight_concentration_prior in (0.01, None, 50.0)
    np.testing.assert_array_equal(search.predict(x), best.predict(x))
    assert not hasattr(search, "bic")
    assert not hasattr(search, "aic")
    search.save(tmp_path / "model.zarr")
    loaded = load(tmp_path / "model.zarr")
    np.testing.assert_array_equal(loaded.predict_proba(x), best.predict_proba(x))


def test_others_have_criteria():
    search = MixtureSearch(1, covariance_type="full")
    assert hasattr(search, "bic")
    assert isinstance(search.fit(blobs(0, 60, 2, 1)).best_estimator_, GaussianMixture)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"criterion": "bic"}, "criterion='held_out'"),
        ({"accelerate": True}, "accelerate at 'auto'"),
        ({"weight_concentration_prior": (0.1, 0.0)}, "weight_concentration_prior"),
        ({"weight_concentration_prior": -1.0}, "weight_concentration_prior"),
        ({"weight_concentration_prior": ("a",)}, "weight_concentration_prior must be"),
        (
            {"weight_concentration_prior_type": "both"},
            "weight_concentration_prior_type",
        ),
        ({"degrees_of_freedom_prior": 0.5}, "degrees_of_freedom_prior"),
        ({"mean_prior": [1.0, 2.0, 3.0]}, "means"),
        ({"covariance_prior": [[1.0, 0.0], [0.0, 1.0]]}, "covariance_prior"),
    ],
)
def test_parameters_are_checked_by_name(parameters, message):
    with pytest.raises(ValueError, match=message):
        bayesian(**parameters).fit(blobs(0, 50, 2, 2))


@pytest.mark.parametrize(
    "parameters",
    [
        {"weight_concentration_prior": (0.1, 1.0)},
        {"weight_concentration_prior_type": "dirichlet_distribution"},
        {"mean_precision_prior": 1.0},
        {"mean_prior": [0.0, 0.0]},
        {"degrees_of_freedom_prior": 2.0},
        {"covariance_prior": 1.0},
    ],
)
def test_priors_of_no_bayesian_mixture_are_refused(parameters):
    [name] = parameters
    with pytest.raises(ValueError, match=f"{name} is of Bayesian mixtures"):
        MixtureSearch(2, **parameters).fit(blobs(0, 50, 2, 2))
