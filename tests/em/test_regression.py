"""What some features of rows are, given the others: integrals, and any kind of rows."""

from __future__ import annotations

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from conftest import COVARIANCE_TYPES, blobs, create_zarr

from daskgmm import BayesianGaussianMixture, GaussianMixture, from_xarray
from daskgmm.errors import DataError

NAMES = ["a", "b", "c", "d"]


def model_of(covariance_type="full", d=4, names=True):
    x = blobs(0, 800, d, 3, spread=2.0)
    x[:, -1] += x[:, 0] ** 2 / 4
    rows = pd.DataFrame(x, columns=NAMES[:d]) if names else x
    model = GaussianMixture(3, covariance_type=covariance_type, random_state=0)
    return model.fit(rows), x


def one_by_one(model, features, rows):
    """Means and covariances of the mixtures that are left, row by row."""
    means, covariances = [], []
    for row in rows:
        left = model.conditional(features, row)
        k, u = left.means_.shape
        within = {
            "full": lambda c: c,
            "tied": lambda c, k=k, u=u: np.broadcast_to(c, (k, u, u)),
            "diag": lambda c, u=u: c[:, :, np.newaxis] * np.eye(u),
            "spherical": lambda c, u=u: c[:, np.newaxis, np.newaxis] * np.eye(u),
        }[left.covariance_type](left.covariances_)
        second = within + left.means_[:, :, np.newaxis] * left.means_[:, np.newaxis]
        mean = left.weights_ @ left.means_
        means.append(mean)
        covariances.append(
            np.einsum("k,kij->ij", left.weights_, second) - np.outer(mean, mean)
        )
    return np.array(means), np.array(covariances)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_means_and_variances_are_integrals(covariance_type):
    model, x = model_of(covariance_type, d=2)
    y = np.linspace(x[:, 1].min() - 40, x[:, 1].max() + 40, 40_001)
    known = np.quantile(x[:, 0], [0.01, 0.3, 0.5, 0.9])
    found = model.predict_conditional(pd.DataFrame({"a": known}))
    step = y[1] - y[0]
    for i, a in enumerate(known):
        rows = pd.DataFrame({"a": np.full_like(y, a), "b": y})
        joint = np.exp(model.score_samples(rows))
        density = joint.sum() * step
        mean = (joint * y).sum() * step / density
        variance = (joint * (y - mean) ** 2).sum() * step / density
        assert found.log_density[i] == pytest.approx(np.log(density), abs=1e-9)
        assert found.mean[i, 0] == pytest.approx(mean, rel=1e-9)
        assert found.covariance[i, 0, 0] == pytest.approx(variance, rel=1e-8)


@pytest.mark.parametrize("features", [["a"], ["c", "b"], ["d", "a", "c"]])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_each_row_is_as_the_mixture_that_is_left(covariance_type, features):
    model, x = model_of(covariance_type)
    rows = pd.DataFrame(x, columns=NAMES)[features].iloc[:40]
    found = model.predict_conditional(rows)
    means, covariances = one_by_one(model, features, rows.to_numpy())
    np.testing.assert_allclose(found.mean, means, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.covariance, covariances, rtol=1e-8, atol=1e-9)
    np.testing.assert_array_equal(
        found.log_density, model.marginal(features).score_samples(rows)
    )
    assert (np.linalg.eigvalsh(found.covariance) > 0).all()


KINDS = ["dask", "unknown", "zarr", "pandas", "frame", "xarray", "xarray on dask"]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_any_kind_have_answers_of_theirs(tmp_path, kind):
    named = kind in ("pandas", "frame", "xarray", "xarray on dask")
    model, x = model_of(names=named)
    known = np.ascontiguousarray(x[:, [2, 0]])
    expected = model_of(names=False)[0].predict_conditional(known, features=[2, 0])
    table = pd.DataFrame(known, columns=["c", "a"])
    features = None if named else [2, 0]
    data = xr.Dataset({name: ("row", table[name].to_numpy()) for name in table})
    rows = {
        "dask": lambda: da.from_array(known, chunks=(300, 2)),
        "unknown": lambda: (lambda a: a[a[:, 0] > -np.inf])(
            da.from_array(known, chunks=(300, 2))
        ),
        "zarr": lambda: str(tmp_path / "rows.zarr"),
        "pandas": lambda: table.set_index(np.arange(len(x)) + 7),
        "frame": lambda: dd.from_pandas(table, npartitions=3),
        "xarray": lambda: data,
        "xarray on dask": lambda: data.chunk(row=300),
    }[kind]
    create_zarr(tmp_path / "rows.zarr", known, chunks=(300, 2))
    found = model.predict_conditional(rows(), features)
    if kind not in ("pandas", "xarray"):
        assert all(map(dask.is_dask_collection, found))
    mean, covariance, log_density = dask.compute(*found)
    if kind == "frame":
        assert [*mean.columns] == ["b", "d"]
        assert [*covariance.columns] == ["b,b", "b,d", "d,b", "d,d"]
        covariance = covariance.to_numpy().reshape(-1, 2, 2)
    elif kind.startswith("xarray"):
        assert mean.dims == ("row", "feature")
        assert [*mean.feature.values] == ["b", "d"]
        assert covariance.dims == ("row", "feature", "other_feature")
    np.testing.assert_allclose(mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(covariance, expected.covariance, rtol=1e-11)
    np.testing.assert_allclose(log_density, expected.log_density, rtol=1e-12)


def test_pictures_keep_their_dimensions():
    model, x = model_of()
    image = xr.DataArray(
        x[:600, :2].reshape(20, 30, 2),
        dims=("y", "x", "band"),
        coords={"band": ["a", "b"], "y": np.arange(20.0)},
    ).transpose("band", "y", "x")
    for its in (image, image.chunk(y=7)):
        found = model.predict_conditional(from_xarray(its, feature_dim="band"))
        assert found.covariance.sizes == {
            "y": 20, "x": 30, "feature": 2, "other_feature": 2,
        }  # fmt: skip
        np.testing.assert_array_equal(found.mean.y, image.y)
        expected = model.predict_conditional(
            pd.DataFrame(x[:600, :2], columns=["a", "b"])
        )
        np.testing.assert_allclose(
            found.covariance.to_numpy().reshape(600, 2, 2), expected.covariance
        )


def test_rows_are_asked_about_in_tiles(monkeypatch):
    model, x = model_of(names=False)
    expected = model.predict_conditional(x[:, :2], features=[0, 1])
    monkeypatch.setattr("daskgmm.em.regression._TILE_NUMBERS", 100)
    found = model.predict_conditional(x[:, :2], features=[0, 1])
    for name in ("mean", "covariance"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=1e-12
        )


def test_single_precision_comes_back():
    model, x = model_of(names=False)
    single = x[:, :1].astype(np.float32)
    found = model.predict_conditional(single, features=0)
    assert {its.dtype for its in found} == {np.dtype(np.float32)}
    expected = model.predict_conditional(single.astype(float), features=0)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-5, atol=1e-5)


def test_rows_with_nan_are_named_or_have_no_answer():
    model, x = model_of(names=False)
    rows = x[:, :2].copy()
    rows[5, 1] = np.nan
    lazy = da.from_array(rows, chunks=(300, 2))
    with pytest.raises(DataError, match="NaN"):
        model.predict_conditional(rows, features=[0, 1])
    with pytest.raises(DataError, match="NaN"):
        model.predict_conditional(lazy, features=[0, 1]).mean.compute()
    model.set_params(nan="skip")
    for its in (rows, lazy):
        found = dask.compute(*model.predict_conditional(its, features=[0, 1]))
        for answer in found:
            assert np.isnan(answer[5]).all()
            assert np.isfinite(np.delete(answer, 5, axis=0)).all()


def test_far_from_all_rows_nothing_overflows():
    model, _ = model_of(names=False)
    found = model.predict_conditional([[1e6]], features=0)
    assert np.isfinite(found.mean).all()
    assert np.isfinite(found.covariance).all()
    assert found.log_density[0] < -1e6


def test_a_bayesian_mixture_answers_by_its_means_and_covariances():
    x = blobs(0, 500, 3, 2, spread=3.0)
    model = BayesianGaussianMixture(n_components=3, random_state=0).fit(x)
    found = model.predict_conditional(x[:5, :1], features=0)
    means, covariances = one_by_one(model, [0], x[:5, :1])
    np.testing.assert_allclose(found.mean, means, rtol=1e-9)
    np.testing.assert_allclose(found.covariance, covariances, rtol=1e-9)


@pytest.mark.parametrize(
    ("rows", "features", "message"),
    [
        (np.zeros((3, 1)), None, "features must be given"),
        (np.zeros((3, 4)), [0, 1, 2, 3], "none is left"),
        (pd.DataFrame(np.zeros((3, 2)), columns=["a", "b"]), [0], "feature names"),
        (np.zeros((3, 1)), [5], "no feature 5"),
        (pd.DataFrame({"z": [1.0]}), None, "no feature 'z'"),
    ],
)
def test_what_cannot_be_is_named(rows, features, message):
    with pytest.raises(ValueError, match=message):
        model_of()[0].predict_conditional(rows, features)


def test_names_in_another_order_are_refused():
    rows = pd.DataFrame({"a": [1.0], "b": [2.0]})
    with pytest.raises(ValueError, match="order"):
        model_of()[0].predict_conditional(rows, ["b", "a"])


def test_a_dimension_that_the_answer_would_add_is_refused():
    data = xr.Dataset({"a": ("feature", np.zeros(3))})
    with pytest.raises(DataError, match="'feature', which the answer would add"):
        model_of()[0].predict_conditional(data)
