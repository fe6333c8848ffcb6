"""What several files of tests run, and check, alike."""

from __future__ import annotations

import warnings

import dask
import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Reference

from daskgmm import GaussianMixture
from daskgmm.cli.main import main
from daskgmm.errors import StoreError

FITTED = ("weights_", "means_", "covariances_", "lower_bounds_", "n_iter_")


def fit_both(x, **parameters):
    """Ours and scikit-learn's, fitted to the same rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        ours = GaussianMixture(**parameters).fit(x)
        theirs = Reference(**parameters).fit(x)
    return ours, theirs


def assert_same_model(ours, theirs, rtol=1e-7):
    """Parameters to `rtol`, bounds to 1e-8, all relative to the largest number."""
    for name in ("weights_", "means_", "covariances_", "precisions_"):
        expected = getattr(theirs, name)
        np.testing.assert_allclose(
            getattr(ours, name),
            expected,
            rtol=rtol,
            atol=rtol * np.abs(expected).max(),
            err_msg=name,
        )
    assert ours.n_iter_ == theirs.n_iter_
    assert ours.converged_ == theirs.converged_
    if hasattr(theirs, "lower_bounds_"):  # since scikit-learn 1.7
        np.testing.assert_allclose(ours.lower_bounds_, theirs.lower_bounds_, rtol=1e-8)
    assert ours.lower_bound_ == pytest.approx(theirs.lower_bound_, rel=1e-8)
    assert ours.lower_bound_ == ours.lower_bounds_[-1]


def run(*args):
    return CliRunner().invoke(main, [*map(str, args)])


def check_chunks_are_named(files, url, fit):
    """Fit a store whose chunk 7 is missing, is cut, and is there again."""
    place = url.partition("://")[2]  # clients differ in how they name themselves
    chunk = f"{place}/c/7/0"
    content = files.cat_file(chunk)
    files.rm_file(chunk)
    with pytest.raises(StoreError, match=rf"Chunk c/7/0 .*{place}.* is missing"):
        fit(url)
    files.pipe_file(chunk, content[: len(content) // 2])
    with (
        dask.config.set({"daskgmm.storage-retries": 0}),
        pytest.raises(StoreError, match=rf"Chunk c/7/0 .*{place}.* cannot be read"),
    ):
        fit(url)
    files.pipe_file(chunk, content)
    fit(url)  # nothing of what was there is remembered
