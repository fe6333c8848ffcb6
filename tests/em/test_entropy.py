"""Entropy of responsibilities, ICL and cluster sizes: after a fit, and of any rows."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pandas as pd
import pytest
from conftest import COVARIANCE_TYPES, blobs, create_zarr
from oracle import log_joint, log_sum_exp, responsibilities
from stored import Reader

from daskgmm import BayesianGaussianMixture, GaussianMixture, MixtureSearch, load
from daskgmm.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def plain(model, x, weights=None):
    """Entropy, ICL and sums of responsibilities by the formulas alone."""
    weights = np.ones(len(x)) if weights is None else weights
    joint = log_joint(
        x,
        model.weights_,
        model.means_,
        model.precisions_cholesky_,
        model.covariance_type,
    )
    r = responsibilities(joint)
    logs = np.log(r, out=np.zeros_like(r), where=r > 0)
    entropy = -float(weights @ (r * logs).sum(axis=1))
    log_prob = float(weights @ log_sum_exp(joint))
    bic = -2 * log_prob + model._n_parameters() * np.log(weights.sum())
    return entropy, bic + 2 * entropy, weights @ r


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_fit_knows_them_of_its_last_pass(covariance_type, weighted):
    x = blobs(0, 900, 2, 3, spread=1.5)
    weights = np.random.default_rng(1).uniform(0.5, 3.0, 900) if weighted else None
    parameters = {
        "n_components": 3,
        "covariance_type": covariance_type,
        "random_state": 0,
        "tol": 0,
    }
    model = GaussianMixture(**parameters, max_iter=6)
    before = GaussianMixture(**parameters, max_iter=5)
    for its in (model, before):
        its.fit(da.from_array(x, chunks=(250, 2)), sample_weight=weights)
    entropy, icl, sizes = plain(before, x, weights)
    assert entropy > 10
    assert model.entropy_ == pytest.approx(entropy, rel=1e-9)
    assert model.icl_ == pytest.approx(icl, rel=1e-10)
    np.testing.assert_allclose(model.cluster_sizes_, sizes, rtol=1e-9)


@pytest.mark.usefixtures("nothing_kept")
def test_an_accelerated_fit_does_without_another_pass():
    rows = blobs(0, 6000, 2, 3, spread=2.0)
    reader = Reader(rows, 1000)
    model = GaussianMixture(3, accelerate=True, init_size=600, random_state=0)
    model.set_params(tol=1e-9).fit(reader.array())
    assert (reader.counts <= model.n_passes_ + 1).all()
    entropy, icl, sizes = plain(model, rows)
    assert model.entropy_ == pytest.approx(entropy, rel=1e-3)
    assert model.icl_ == pytest.approx(icl, rel=1e-4)
    np.testing.assert_allclose(model.cluster_sizes_, sizes, rtol=1e-3)
    assert model.cluster_sizes_.sum() == pytest.approx(6000)


@pytest.mark.parametrize("max_iter", [2, 200])
@pytest.mark.parametrize("accelerate", [False, True])
def test_they_stay_with_checkpoints_and_models(tmp_path, accelerate, max_iter):
    x = blobs(0, 900, 2, 3, spread=1.5)
    model = GaussianMixture(
        2, accelerate=accelerate, init_size=100, max_iter=max_iter, random_state=0
    ).fit(x, checkpoint=tmp_path / "checkpoint")
    model.save(tmp_path / "model.zarr")
    again = GaussianMixture(**model.get_params())
    again.fit(x, checkpoint=tmp_path / "checkpoint")
    for its in (load(tmp_path / "model.zarr"), again):
        assert its.entropy_ == model.entropy_
        assert its.icl_ == model.icl_
        np.testing.assert_array_equal(its.cluster_sizes_, model.cluster_sizes_)
    assert np.isfinite(model.entropy_)


def test_without_a_pass_they_are_not_known():
    model = GaussianMixture(2, max_iter=0, random_state=0).fit(blobs(0, 90, 2, 2))
    assert np.isnan([model.entropy_, model.icl_, *model.cluster_sizes_]).all()


@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr", "frame", "weights", "nan"])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_rows_of_any_kind_are_asked(tmp_path, covariance_type, kind):
    x = blobs(0, 700, 2, 3, spread=1.5)
    model = GaussianMixture(3, covariance_type=covariance_type, random_state=0).fit(x)
    rows, weights, kept = x, None, x
    if kind == "dask":
        rows = da.from_array(x, chunks=(300, 2))
    elif kind == "zarr":
        create_zarr(tmp_path / "rows.zarr", x, chunks=(300, 2))
        rows = str(tmp_path / "rows.zarr")
    elif kind == "frame":
        rows = pd.DataFrame(x)
    elif kind == "weights":
        weights = np.random.default_rng(1).uniform(0.0, 3.0, 700)
    elif kind == "nan":
        rows = x.copy()
        rows[::7, 1] = np.nan
        kept = x[~np.isnan(rows[:, 1])]
        model.set_params(nan="skip")
    entropy, icl, _ = plain(model, kept, weights)
    assert model.entropy(rows, sample_weight=weights) == pytest.approx(entropy, 1e-10)
    assert model.icl(rows, sample_weight=weights) == pytest.approx(icl, 1e-11)


@pytest.mark.parametrize("covariance_type", ["full", "tied"])
def test_close_to_singular_the_sums_of_a_pass_are_not_trusted(covariance_type):
    x = np.random.default_rng(0).normal(size=(3000, 3))
    x[:1500] += 1.5
    x[:, 2] = x[:, 0] + 1e-7 * x[:, 2]
    parameters = {"covariance_type": covariance_type, "reg_covar": 0, "random_state": 0}
    model = GaussianMixture(3, **parameters).fit(x)
    assert np.isnan(model.entropy_)
    proba = model.predict_proba(x)
    entropy = -float((proba * np.log(np.maximum(proba, 1e-300))).sum())
    assert model.entropy(x) == pytest.approx(entropy, rel=1e-9)
    icl = model.bic(x) + 2 * entropy
    assert model.icl(x) == pytest.approx(icl, rel=1e-12)
    search = MixtureSearch(3, **parameters, criterion="icl").fit(x)
    assert search.results_["icl"][0] == pytest.approx(icl, rel=1e-9)


def test_a_bayesian_mixture_knows_sizes_and_entropy():
    x = blobs(0, 900, 2, 3, spread=2.0)
    parameters = {"n_components": 5, "random_state": 0, "tol": 0}
    model = BayesianGaussianMixture(**parameters, max_iter=8).fit(x)
    before = BayesianGaussianMixture(**parameters, max_iter=7).fit(x)
    r = before.predict_proba(x)
    entropy = -float((r * np.log(np.maximum(r, 1e-300))).sum())
    assert model.entropy_ == pytest.approx(entropy, rel=1e-9)
    assert before.entropy(x) == pytest.approx(entropy, rel=1e-9)
    np.testing.assert_allclose(model.cluster_sizes_, r.sum(axis=0), rtol=1e-9)
    assert not hasattr(model, "icl_")
    assert not hasattr(model, "icl")


def test_bad_rows_are_named():
    x = blobs(0, 90, 2, 2)
    model = GaussianMixture(2, random_state=0).fit(x)
    x[17, 1] = np.inf
    with pytest.raises(DataError, match="row 17"):
        model.entropy(da.from_array(x, chunks=(30, 2)))
    none = da.zeros(90, chunks=30)
    with pytest.raises(DataError, match="no rows to score"):
        model.icl(da.from_array(x, chunks=(30, 2)), sample_weight=none)
