"""Attributes and rows that do not fit each other are refused, as by scikit-learn."""

from __future__ import annotations

import warnings

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import zarr
from conftest import blobs
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture as Reference

from daskgmm import DaskGMMError, GaussianMixture

SHAPES = ("full", "tied", "diag", "spherical")
QUESTIONS = ("predict", "predict_proba", "score_samples", "score", "aic", "bic")
K, D = 3, 4
KINDS = {
    "array": lambda x, _: x,
    "columns": lambda x, _: np.asfortranarray(x),
    "dask": lambda x, _: da.from_array(x, chunks=(100, -1)),
    "frame": lambda x, _: pd.DataFrame(x),
    "path": lambda x, at: zarr.create_array(str(at), data=x, overwrite=True) and at,
}


@pytest.fixture(scope="module")
def x():
    return blobs(0, 300, D, K)


def fitted(x, covariance_type="full", **parameters):
    model = GaussianMixture(
        K, covariance_type=covariance_type, random_state=0, **parameters
    )
    return model.fit(x)


def by_hand(model):
    """A model whose parameters were set by hand: nobody counted its features."""
    other = GaussianMixture(K, covariance_type=model.covariance_type)
    for name in ("weights_", "means_", "precisions_cholesky_"):
        setattr(other, name, getattr(model, name).copy())
    return other


def answers(model, question, rows):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(getattr(model, question)(rows))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("covariance_type", SHAPES)
def test_a_warm_start_with_other_features(tmp_path, x, covariance_type, kind):
    model = fitted(x, covariance_type, warm_start=True)
    before = {name: np.copy(value) for name, value in vars(model).items()}
    for wrong in (x[:, :3], np.hstack([x, x[:, :1]])):
        said = f"X has {wrong.shape[1]} features, but GaussianMixture is expecting 4"
        with pytest.raises(ValueError, match=f"{said}.* begin anew, set it to False"):
            model.fit(KINDS[kind](wrong, tmp_path / "x"))
        for name, value in vars(model).items():
            np.testing.assert_array_equal(value, before[name])
    again = model.fit(KINDS[kind](x, tmp_path / "x"))
    assert again.n_features_in_ == D
    model.set_params(warm_start=False).fit(x[:, :3])
    assert model.means_.shape == (K, 3)


@pytest.mark.parametrize("covariance_type", SHAPES)
def test_a_warm_start_with_other_parameters(x, covariance_type):
    model = fitted(x, covariance_type, warm_start=True)
    other = "diag" if covariance_type == "full" else "full"
    with pytest.raises(ValueError, match=r"do not\s+fit each other.*fit again"):
        model.set_params(covariance_type=other).fit(x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("covariance_type", SHAPES)
def test_attributes_that_were_set_by_hand(tmp_path, x, covariance_type, question, kind):
    model = fitted(x, covariance_type)
    alone, theirs = by_hand(model), Reference(K, covariance_type=covariance_type)
    for name in ("weights_", "means_", "precisions_cholesky_"):
        setattr(theirs, name, getattr(model, name))
    rows = KINDS[kind](x, tmp_path / "x")
    found = answers(alone, question, rows)
    np.testing.assert_allclose(found, getattr(theirs, question)(x), rtol=1e-9)
    for wrong in (x[:, :3], np.hstack([x, x[:, :1]])):
        said = f"X has {wrong.shape[1]} features, but GaussianMixture is expecting 4"
        rows = KINDS[kind](wrong, tmp_path / "x")
        with pytest.raises(ValueError, match=said):
            answers(alone, question, rows)


@settings(max_examples=150)
@given(
    covariance_type=st.sampled_from(SHAPES),
    name=st.sampled_from(
        ["weights_", "means_", "covariances_", "precisions_cholesky_"]
    ),
    shape=st.lists(st.integers(0, 5), max_size=3),
    question=st.sampled_from([*QUESTIONS, "sample"]),
    seed=st.integers(0, 99),
)
def test_attributes_of_any_shape(covariance_type, name, shape, question, seed):
    """They are used if they fit, and named if they do not."""
    rows = blobs(0, 60, D, K)
    model = fitted(rows, covariance_type)
    fits = getattr(model, name).shape == tuple(shape)
    rng = np.random.default_rng(seed)
    numbers = np.abs(rng.normal(size=shape)) + 1.0
    if fits:
        numbers = getattr(model, name)
    setattr(model, name, numbers)
    ask = model.sample if question == "sample" else getattr(model, question)
    argument = 5 if question == "sample" else rows
    if fits:
        ask(argument)
        return
    with pytest.raises((ValueError, DaskGMMError)) as caught:
        ask(argument)
    assert any(word in str(caught.value) for word in (name, "means_", "features"))
