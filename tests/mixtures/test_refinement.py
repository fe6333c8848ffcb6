"""Covariances close to singular, against the singular values of the rows themselves."""

from __future__ import annotations

import re
import warnings

import dask
import dask.array as da
import numpy as np
import pytest
from conftest import blobs, random_mixture
from distributed import Client, LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import LONG, em_bounds
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Reference

from daskgmm import GaussianMixture, IllDefinedCovarianceError
from daskgmm.data.sources import open_source
from daskgmm.mixtures.e_step import e_step, message, moments
from daskgmm.mixtures.maximum_likelihood import MaximumLikelihood
from daskgmm.mixtures.refinement import look_again, refine

DENSE = ("full", "tied")


def variances_along_axes(x):
    """Eigenvalues of the rows' covariance, to rounding of the rows, not of squares."""
    n, d = x.shape
    centred = x.astype(LONG) - x.astype(LONG).mean(axis=0)
    values = np.zeros(d)
    values[: min(n, d)] = np.linalg.svd(centred.astype(float), compute_uv=False) ** 2
    return values / n


def bound_of_one(x, reg_covar):
    """Mean log likelihood of one component's own rows under it."""
    values = variances_along_axes(x)
    logs = np.log(2 * np.pi * (values + reg_covar))
    return -0.5 * (logs + values / (values + reg_covar)).sum()


def _sum_as_column(rng, n):
    a = rng.normal(size=(n, 2))
    return np.column_stack([a, a.sum(axis=1)])


def _pictures(rng, n, d, depth):
    """Pictures of few patterns, in whole numbers of so many bits, one side dark."""
    x = rng.normal(size=(n, 4)) @ rng.normal(size=(4, d))
    x = np.round((x - x.min()) / np.ptp(x) * (2**depth - 1))
    x[:, : d // 4] = 0.0
    return x


CASES = {
    "fewer rows than features": lambda rng: rng.normal(size=(40, 64)) * 1e4,
    "8-bit noise": lambda rng: rng.integers(0, 2**8, size=(40, 64)) * 1.0,
    "16-bit noise": lambda rng: rng.integers(0, 2**16, size=(40, 64)) * 1.0,
    "8-bit pictures": lambda rng: _pictures(rng, 50, 100, 8),
    "16-bit pictures": lambda rng: _pictures(rng, 50, 100, 16),
    "a + b": lambda rng: _sum_as_column(rng, 500),
    "a + b, times 100": lambda rng: _sum_as_column(rng, 500) * 1e2,
    "a + b, times 100,000": lambda rng: _sum_as_column(rng, 500) * 1e5,
    "a + b, times 1e9": lambda rng: _sum_as_column(rng, 500) * 1e9,
    "a + b, far from the origin": lambda rng: _sum_as_column(rng, 500) * 1e4 + 1e8,
    "a + b, scales apart": lambda rng: _sum_as_column(rng, 500) @ np.diag([1e6, 1, 1]),
}


@pytest.mark.parametrize("covariance_type", DENSE)
@pytest.mark.parametrize("case", CASES)
def test_one_component_is_found_at_once_and_right(case, covariance_type):
    x = CASES[case](np.random.default_rng(0))
    model = GaussianMixture(1, covariance_type=covariance_type, tol=1e-9).fit(x)
    assert model.lower_bound_ == pytest.approx(bound_of_one(x, 1e-6), abs=1e-5)
    assert model.score(x) == pytest.approx(model.lower_bound_, abs=1e-5)
    assert model.converged_
    assert model.n_iter_ <= 3
    assert GaussianMixture(1, covariance_type=covariance_type).fit(x).n_iter_ == 2


@pytest.mark.parametrize("seed", [19, 61, 155, 226, 278])
def test_what_is_large_along_a_direction_is_rounded_in_it(seed):
    """The last pivot is far above rounding of its own feature, but not of others."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(85, 4)) @ rng.normal(size=(4, 5)) * 5e5
    model = GaussianMixture(1, reg_covar=4e-3).fit(x)
    assert model.lower_bound_ == pytest.approx(bound_of_one(x, 4e-3), abs=1e-6)


@settings(max_examples=60)
@given(
    covariance_type=st.sampled_from(DENSE),
    n=st.integers(5, 200),
    d=st.integers(2, 40),
    rank=st.integers(1, 40),
    log_scale=st.floats(-2.0, 8.0),
    log_offset=st.floats(0.0, 2.0),
    log_reg=st.floats(-9.0, -3.0),
    whole=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_one_component_of_any_rank_and_scale(
    covariance_type, n, d, rank, log_scale, log_offset, log_reg, whole, seed
):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, d)) * 10.0**log_scale
    x += rng.normal(size=d) * 10.0 ** (log_scale + log_offset)
    x = np.round(x) if whole else x
    reg_covar = 10.0**log_reg
    model = GaussianMixture(
        1, covariance_type=covariance_type, reg_covar=reg_covar, random_state=0
    ).fit(x)
    # The means, too, are rounded: that is what the rows' distances are measured from.
    rounded = np.abs(x).max() * 2.0**-52
    tolerance = 1e-4 + d * rounded**2 / reg_covar
    assert model.lower_bound_ == pytest.approx(
        bound_of_one(x, reg_covar), rel=tolerance
    )
    assert (model.converged_, model.n_iter_) == (True, 2)


def test_equal_rows_are_told_a_reg_covar_of_the_usual_size():
    """And not one of how their mean was rounded, 5e-36."""
    start = {"reg_covar": 0.0, "init_params": "random_from_data", "random_state": 0}
    for value in (1.0, 0.1, 1e8, 0.0):
        rows = np.full((50, 2), value)
        with pytest.raises(IllDefinedCovarianceError, match="reg_covar=1e-06 is"):
            GaussianMixture(2, **start).fit(rows)


@pytest.mark.parametrize("log_noise", [-5, -7, -9, -11])
@pytest.mark.parametrize("covariance_type", DENSE)
def test_a_little_noise_is_enough_without_reg_covar(covariance_type, log_noise):
    """Eigenvalues of 1e-22 beside 1: no sums of squares hold them."""
    rng = np.random.default_rng(1)
    x = _sum_as_column(rng, 500)
    x[:, 2] += rng.normal(size=500) * 10.0**log_noise
    model = GaussianMixture(1, covariance_type=covariance_type, reg_covar=0).fit(x)
    assert model.lower_bound_ == pytest.approx(bound_of_one(x, 0.0), abs=1e-4)
    assert (model.converged_, model.n_iter_) == (True, 2)


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e9])
@pytest.mark.parametrize("covariance_type", DENSE)
def test_what_is_singular_is_refused_and_the_remedy_is_one(covariance_type, scale):
    rng = np.random.default_rng(2)
    wide = rng.normal(size=(20, 30))
    for x in (_sum_as_column(rng, 300) * scale, wide * scale, wide[:, :5] * [[0.0]]):
        parameters = {"covariance_type": covariance_type, "random_state": 0}
        with pytest.raises(IllDefinedCovarianceError, match="is enough") as raised:
            GaussianMixture(1, reg_covar=0, **parameters).fit(x)
        named = re.search(r"reg_covar=(\S+) is enough", str(raised.value))
        assert named is not None
        reg_covar = float(named[1])
        assert reg_covar <= max(1e-6, 1e-5 * x.var(axis=0).max())
        model = GaussianMixture(1, reg_covar=reg_covar, **parameters).fit(x)
        assert model.converged_
        assert model.lower_bound_ == pytest.approx(bound_of_one(x, reg_covar), rel=1e-6)


def test_too_little_reg_covar_for_the_rounding_of_the_rows_is_refused():
    x = _sum_as_column(np.random.default_rng(3), 300) * 1e13
    with pytest.raises(IllDefinedCovarianceError, match=r"reg_covar=\S+ is enough"):
        GaussianMixture(1).fit(x)


def test_rounded_means_do_not_keep_a_fit_from_ending():
    """What they do to the bound is far more than `tol`, and stays."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(120, 12)) @ rng.normal(size=(12, 24)) * 7e8
        x += rng.normal(size=24) * 5e11
        model = GaussianMixture(
            2, reg_covar=1e-8, init_params="k-means++", max_iter=40, random_state=seed
        ).fit(x)
        assert model.converged_, seed


@pytest.mark.parametrize("covariance_type", DENSE)
def test_attributes_that_single_precision_cannot_hold_are_double(covariance_type):
    rng = np.random.default_rng(10)
    for depth, dtype in ((8, np.float32), (16, np.float64)):
        x = rng.integers(0, 2**depth, size=(40, 64)).astype(np.float32)
        model = GaussianMixture(1, covariance_type=covariance_type).fit(x)
        for name in ("means_", "precisions_cholesky_"):
            assert getattr(model, name).dtype == dtype
        far = (rng.normal(size=(200, 2)) * 30 + 1e8).astype(np.float32)
        assert GaussianMixture(1).fit(far).means_.dtype == np.float32
        assert model.score_samples(x).dtype == np.float32
        assert model.score(x) == pytest.approx(bound_of_one(x, 1e-6), abs=1e-2)


def _groups(rng, kind, scale):
    groups = []
    for _ in range(3):
        rows = (
            rng.normal(size=(60, 64)) if kind == "n < d" else rng.normal(size=(90, 8))
        )
        if kind == "rank":
            rows = rows[:, :3] @ rng.normal(size=(3, 8))
        elif kind == "a + b":
            rows[:, 2] = rows[:, 0] + rows[:, 1]
        groups.append((rows + rng.normal(size=rows.shape[1]) * 2) * scale)
    return groups


@pytest.mark.parametrize("covariance_type", DENSE)
@pytest.mark.parametrize("kind", ["n < d", "rank", "a + b"])
@pytest.mark.parametrize("scale", [1.0, 300.0, 1e5])
def test_iterations_of_three_components(covariance_type, kind, scale):
    groups = _groups(np.random.default_rng(4), kind, scale)
    x, d = np.vstack(groups), groups[0].shape[1]
    start = {
        "weights_init": np.full(3, 1 / 3),
        "means_init": np.stack([rows[:9].mean(axis=0) for rows in groups]),
    }
    variance = 3.0 * scale**2
    expected = em_bounds(
        x, *start.values(), variance, 1e-6, 8, tied=covariance_type == "tied"
    )
    model = GaussianMixture(
        3,
        covariance_type=covariance_type,
        precisions_init=np.eye(d) / variance
        if covariance_type == "tied"
        else np.stack([np.eye(d) / variance] * 3),
        tol=1e-300,
        max_iter=8,
        **start,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x)
    bounds = np.array(model.lower_bounds_)
    np.testing.assert_allclose(bounds, expected[: len(bounds)], rtol=0, atol=1e-4)
    assert len(bounds) >= 3


@pytest.mark.parametrize("covariance_type", DENSE)
def test_the_second_look_sees_all_kinds_of_rows_and_weights(covariance_type, tmp_path):
    """Chunks of uneven lengths, rows without weight, several runs, a cluster."""
    rng = np.random.default_rng(5)
    groups = [_sum_as_column(rng, 200) * 1e5 + offset for offset in (0.0, 1e6)]
    x = rng.permutation(np.vstack(groups))
    weights = rng.integers(0, 3, size=400) * 1.0
    spoilt = np.where(weights[:, np.newaxis] > 0, x, 1e300)
    parameters = {"n_components": 2, "covariance_type": covariance_type}
    parameters |= {"random_state": 0, "n_init": 2}
    repeated = GaussianMixture(**parameters).fit(
        np.repeat(x, weights.astype(int), axis=0)
    )

    def fit():
        rows = da.from_array(spoilt, chunks=((50, 1, 149, 200), 3))
        return GaussianMixture(**parameters).fit(rows, sample_weight=weights)

    with dask.config.set(scheduler="synchronous"):
        alone = fit()
    assert alone.lower_bound_ == pytest.approx(repeated.lower_bound_, abs=1e-4)
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=False,
            dashboard_address=":0",
            local_directory=str(tmp_path),
        ) as cluster,
        Client(cluster),
    ):
        there = fit()
    assert there.lower_bounds_ == alone.lower_bounds_
    np.testing.assert_array_equal(
        there.precisions_cholesky_, alone.precisions_cholesky_
    )


@pytest.mark.parametrize("covariance_type", DENSE)
def test_the_second_look_is_about_the_mean_whatever_it_was_about(covariance_type):
    x = blobs(8, 300, 3, 2)
    rng = np.random.default_rng(9)
    mixture, rough = (random_mixture(rng, covariance_type, 2, 3) for _ in range(2))
    rule = MaximumLikelihood(reg_covar=1e-3, row_weight=1.0)
    [expected_moments] = moments(
        sent := message([mixture]),
        open_source(x).shards().reduce(e_step, sent),
        [mixture],
    )
    expected = rule.m_step(mixture, expected_moments)
    sums = open_source(x).shards().reduce(refine, look_again([(mixture, rough)]))
    found = rule.refine(rough, sums.runs[0], at_last=True)
    for name in ("weights", "means", "covariances", "factors"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-12
        )


def test_a_mean_that_comes_from_afar_takes_its_variance_along(covariance_type):
    """What is left of squares of 1e12 is no variance of one."""
    x = blobs(6, 400, 3, 1)
    d = x.shape[1]
    precisions = {
        "full": np.eye(d)[np.newaxis],
        "tied": np.eye(d),
        "diag": np.ones((1, d)),
        "spherical": np.ones(1),
    }[covariance_type]
    parameters = {"covariance_type": covariance_type, "reg_covar": 0, "max_iter": 1}
    model = GaussianMixture(
        1, means_init=np.full((1, d), 1e7), precisions_init=precisions, **parameters
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x)
    near = GaussianMixture(1, covariance_type=covariance_type, reg_covar=0).fit(x)
    np.testing.assert_allclose(model.covariances_, near.covariances_, rtol=1e-9)
    np.testing.assert_allclose(model.precisions_, near.precisions_, rtol=1e-7)


@pytest.mark.parametrize("init_params", ["kmeans", "random_from_data"])
def test_one_component_ends_as_scikit_learns_does(covariance_type, init_params):
    x = blobs(7, 300, 3, 2)
    parameters = {
        "covariance_type": covariance_type,
        "init_params": init_params,
        "random_state": 0,
    }
    ours, theirs = GaussianMixture(**parameters).fit(x), Reference(**parameters).fit(x)
    assert (ours.n_iter_, ours.converged_) == (theirs.n_iter_, theirs.converged_)
    # However little is asked for, but not if the bound is never to end it.
    assert GaussianMixture(tol=1e-300, **parameters).fit(x).converged_
    with pytest.warns(ConvergenceWarning):
        model = GaussianMixture(tol=0, max_iter=7, **parameters).fit(x)
    assert model.n_iter_ == 7
