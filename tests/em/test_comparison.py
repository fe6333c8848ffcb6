"""Two models on the same rows: means, and their difference with its standard error."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
from conftest import blobs
from sklearn.exceptions import NotFittedError
from stored import Reader

from daskgmm import BayesianGaussianMixture, GaussianMixture
from daskgmm.errors import DataError


@pytest.fixture(scope="module")
def models():
    x = blobs(0, 600, 2, 3, spread=1.5)
    return x, *(
        kind(n_components=k, random_state=0).fit(x)
        for kind, k in ((GaussianMixture, 3), (BayesianGaussianMixture, 2))
    )


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_the_plain_formula(models, lazy, weighted):
    x, one, two = models
    weights = np.random.default_rng(0).integers(0, 3, len(x)) if weighted else None
    rows = x if weights is None else np.repeat(x, weights, axis=0)
    a, b = one.score_samples(rows), two.score_samples(rows)
    given = da.from_array(x, chunks=(70, 2)) if lazy else x
    if weighted and lazy:
        weights = da.from_array(weights, chunks=70)
    found = one.compare(two, given, sample_weight=weights)
    expected = (a.mean(), b.mean(), (a - b).mean())
    np.testing.assert_allclose(found[:3], expected, rtol=1e-10)
    error = (a - b).std(ddof=1) / np.sqrt(len(rows))
    assert found.standard_error == pytest.approx(error, rel=1e-10)
    assert found.n_rows == len(rows)
    back = two.compare(one, given, sample_weight=weights)
    assert back.difference == pytest.approx(-found.difference, rel=1e-10)
    assert back.standard_error == pytest.approx(found.standard_error, rel=1e-10)


def test_rows_are_read_once_and_bits_are_those_of_any_scheduler(models):
    x, one, two = models
    reader = Reader(x, 100)
    found = []
    for scheduler in ("sync", "threads"):
        with dask.config.set(scheduler=scheduler):
            found.append(one.compare(two, reader.array()))
    assert found[0] == found[1]
    assert (reader.counts == 2).all()


def test_what_is_the_same_in_all_rows_has_no_error(models):
    x, one, _ = models
    found = one.compare(one, x)
    assert found.difference == found.standard_error == 0.0


def test_what_cannot_be_compared_is_named(models):
    x, one, two = models
    with pytest.raises(TypeError, match="must be a fitted mixture .* is str"):
        one.compare("two", x)
    with pytest.raises(NotFittedError):
        one.compare(GaussianMixture(2), x)
    other = GaussianMixture(1).fit(np.zeros((5, 3)) + np.eye(5, 3))
    with pytest.raises(ValueError, match="expecting 3 features"):
        one.compare(other, x)
    nothing = da.zeros(len(x), chunks=70)
    with pytest.raises(DataError, match="no rows to score"):
        one.compare(two, da.from_array(x, chunks=(70, 2)), sample_weight=nothing)
    with pytest.raises(DataError, match="NaN"):
        one.compare(two, np.full((2, 2), np.nan))
    assert np.isnan(one.compare(two, x[:1]).standard_error)
