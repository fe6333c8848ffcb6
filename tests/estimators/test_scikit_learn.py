"""The same numbers as scikit-learn, on NumPy arrays."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import sklearn
from checks import assert_same_model, fit_both
from conftest import COVARIANCE_TYPES, INIT_PARAMS, blobs
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Reference
from sklearn.utils.estimator_checks import check_estimator

from daskgmm import GaussianMixture, IllDefinedCovarianceError

SAME_BOUND = 1e-10


def tie(x, parameters, theirs):
    """Whether an earlier restart than scikit-learn's winner reaches its bound."""
    rng = np.random.RandomState(parameters["random_state"])
    single = {**parameters, "n_init": 1, "random_state": rng}
    bounds = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for _ in range(parameters["n_init"]):
            bounds.append(Reference(**single).fit(x).lower_bound_)
    close = np.abs(np.array(bounds) - theirs.lower_bound_) <= SAME_BOUND * abs(
        theirs.lower_bound_
    )
    return close.sum() > 1


@pytest.mark.parametrize("n_init", [1, 3])
@pytest.mark.parametrize(("n", "d", "k"), [(300, 1, 2), (1000, 3, 4), (1500, 10, 3)])
def test_same_fit(covariance_type, init_params, n, d, k, n_init):
    x = blobs(d, n, d, k)
    parameters = {
        "n_components": k,
        "covariance_type": covariance_type,
        "init_params": init_params,
        "n_init": n_init,
        "random_state": 5,
    }
    ours, theirs = fit_both(x, **parameters)
    if n_init > 1 and tie(x, parameters, theirs):
        assert ours.lower_bound_ == pytest.approx(theirs.lower_bound_, rel=SAME_BOUND)
        return
    assert_same_model(ours, theirs)


@settings(max_examples=40)
@given(
    covariance_type=st.sampled_from(COVARIANCE_TYPES),
    init_params=st.sampled_from(INIT_PARAMS),
    d=st.integers(1, 5),
    k=st.integers(1, 4),
    n=st.integers(20, 200),
    max_iter=st.integers(0, 8),
    log_reg=st.integers(-6, -1),
    seed=st.integers(0, 10_000),
)
def test_same_fit_on_arbitrary_data(
    covariance_type, init_params, d, k, n, max_iter, log_reg, seed
):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) + rng.integers(0, 3, size=(n, 1))
    ours, theirs = fit_both(
        x,
        n_components=k,
        covariance_type=covariance_type,
        init_params=init_params,
        max_iter=max_iter,
        reg_covar=10.0**log_reg,
        random_state=seed,
    )
    if max_iter == 0:
        np.testing.assert_allclose(ours.means_, theirs.means_, rtol=1e-9, atol=1e-9)
        assert ours.n_iter_ == 0
        assert ours.lower_bounds_ == []
        assert ours.lower_bound_ == theirs.lower_bound_ == -np.inf
        return
    assert_same_model(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize(("d", "k"), [(1, 2), (2, 3), (5, 4)])
def test_same_fit_without_reg_covar(covariance_type, init_params, d, k):
    """And where theirs is refused, so is ours; variances of one row are no result."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(200, d)) + rng.integers(0, 3, size=(200, 1)) * 3
        parameters = {
            "n_components": k,
            "covariance_type": covariance_type,
            "init_params": init_params,
            "reg_covar": 0,
            "max_iter": 8,
            "random_state": seed,
        }
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                theirs = Reference(**parameters).fit(x)
        except ValueError:
            theirs = None
        if theirs is None or (theirs.weights_ * len(x) < 1.01).any():
            with pytest.raises(IllDefinedCovarianceError):
                GaussianMixture(**parameters).fit(x)
            continue
        assert_same_model(*fit_both(x, **parameters), rtol=1e-6)


def test_same_predictions(covariance_type):
    x = blobs(3, 800, 4, 3)
    ours, theirs = fit_both(
        x, n_components=3, covariance_type=covariance_type, random_state=0
    )
    np.testing.assert_array_equal(ours.predict(x), theirs.predict(x))
    np.testing.assert_allclose(
        ours.predict_proba(x), theirs.predict_proba(x), atol=1e-9
    )
    np.testing.assert_allclose(
        ours.score_samples(x), theirs.score_samples(x), rtol=1e-9
    )
    for method in ("score", "aic", "bic"):
        got, expected = getattr(ours, method)(x), getattr(theirs, method)(x)
        assert isinstance(got, float)
        assert got == pytest.approx(expected, rel=1e-10)
    assert ours._n_parameters() == theirs._n_parameters()
    np.testing.assert_array_equal(ours.fit_predict(x), theirs.fit_predict(x))


def test_same_sample(covariance_type):
    x = blobs(4, 500, 3, 3)
    ours, theirs = fit_both(
        x, n_components=3, covariance_type=covariance_type, random_state=1
    )
    rows, labels = ours.sample(50)
    expected_rows, expected_labels = theirs.sample(50)
    np.testing.assert_array_equal(labels, expected_labels)
    np.testing.assert_allclose(rows, expected_rows, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("given_names", [("means",), ("weights", "precisions"), "all"])
def test_same_fit_from_given_parameters(covariance_type, given_names):
    x = blobs(5, 600, 3, 2)
    start = Reference(2, covariance_type=covariance_type, random_state=9).fit(x)
    parameters = {
        "weights_init": np.array([0.3, 0.7]),
        "means_init": start.means_ + 0.1,
        "precisions_init": start.precisions_ * 1.3,
    }
    if given_names != "all":
        wanted = {f"{name}_init" for name in given_names}
        parameters = {k: v for k, v in parameters.items() if k in wanted}
    ours, theirs = fit_both(
        x,
        n_components=2,
        covariance_type=covariance_type,
        random_state=0,
        **parameters,
    )
    assert_same_model(ours, theirs)


def test_same_warm_start(covariance_type):
    x = blobs(6, 500, 2, 3, spread=1.0)
    parameters = {
        "n_components": 3,
        "covariance_type": covariance_type,
        "warm_start": True,
        "max_iter": 2,
        "random_state": 0,
    }
    ours, theirs = GaussianMixture(**parameters), Reference(**parameters)
    for _ in range(4):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            ours.fit(x)
            theirs.fit(x)
        assert_same_model(ours, theirs)


def test_float32_stays_float32(covariance_type):
    x = blobs(7, 1000, 3, 3).astype(np.float32)
    ours, theirs = fit_both(
        x, n_components=3, covariance_type=covariance_type, random_state=0
    )
    for name in ("weights_", "means_", "covariances_", "precisions_"):
        assert getattr(ours, name).dtype == np.float32, name
        np.testing.assert_allclose(
            getattr(ours, name), getattr(theirs, name), rtol=2e-3, atol=2e-3
        )
    assert ours.precisions_cholesky_.dtype == np.float32
    assert ours.predict_proba(x).dtype == np.float32
    assert ours.score_samples(x).dtype == np.float32
    assert ours.score(x) == np.float32(ours.score(x))


def test_a_data_frame_is_taken_as_scikit_learn_takes_it():
    x = blobs(8, 200, 2, 2)
    frame = pd.DataFrame(x, columns=["a", "b"])
    model = GaussianMixture(2, random_state=0).fit(frame)
    assert list(model.feature_names_in_) == ["a", "b"]
    np.testing.assert_array_equal(model.predict(frame), model.predict(frame.copy()))
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame[["b", "a"]])
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        model.predict(x)


def test_the_ties_between_restarts_go_to_the_first():
    """Two groups so far apart that each restart ends in the same optimum."""
    x = np.vstack([blobs(9, 300, 2, 1), blobs(10, 300, 2, 1) + 100])
    parameters = {"n_components": 2, "n_init": 5, "random_state": 3}
    many = GaussianMixture(**parameters).fit(x)
    first = GaussianMixture(2, random_state=3).fit(x)
    np.testing.assert_array_equal(many.means_, first.means_)


def test_the_worst_restarts_do_not_win():
    x = blobs(11, 600, 2, 6, spread=6.0)
    parameters = {
        "n_components": 6,
        "n_init": 8,
        "init_params": "random_from_data",
        "random_state": 0,
        "max_iter": 300,
    }
    ours, theirs = fit_both(x, **parameters)
    assert not tie(x, parameters, theirs)
    assert_same_model(ours, theirs)


# scikit-learn's tests of its own private functions, with those of its class: they
# never touch the public interface.
_PRIVATE = (
    "test_gaussian_mixture_precisions_init",  # calls _initialize, _set_parameters
    "test_gaussian_mixture_all_init_does_not_estimate_gaussian_parameters",  # mocks
    "test_compare_covar_type",  # calls _check_parameters, _initialize_parameters
)


def _with_our_class(folder: Path) -> None:
    """scikit-learn's mixture tests, importing our class in place of its own."""
    tests = Path(sklearn.__file__).parent / "mixture" / "tests"
    swaps = {
        "test_gaussian_mixture.py": [
            (
                "from sklearn.mixture import GaussianMixture\n",
                "from daskgmm import GaussianMixture\n",
            )
        ],
        "test_bayesian_mixture.py": [
            (
                "from sklearn.mixture import BayesianGaussianMixture\n",
                "from daskgmm import BayesianGaussianMixture\n",
            )
        ],
        "test_mixture.py": [
            (
                "from sklearn.mixture import BayesianGaussianMixture, "
                "GaussianMixture\n",
                "from daskgmm import BayesianGaussianMixture, GaussianMixture\n",
            ),
        ],
    }
    for name, replacements in swaps.items():
        text = (tests / name).read_text()
        for old, new in replacements:
            assert old in text, (name, old)
            text = text.replace(old, new)
        (folder / name).write_text(text)


@pytest.mark.slow
def test_scikit_learns_own_tests_pass(tmp_path):
    _with_our_class(tmp_path)
    report = tmp_path / "report.xml"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "sklearn.conftest",
            "-p",
            "no:cacheprovider",
            "-c",
            os.devnull,
            f"--junit-xml={report}",
            f"--rootdir={tmp_path}",
            str(tmp_path),
        ],
        env={
            **os.environ,
            "SKLEARN_RUN_FLOAT32_TESTS": "1",
            "SCIPY_ARRAY_API": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    cases = ElementTree.parse(report).getroot().iter("testcase")
    passed, failed = [], []
    for case in cases:
        name = case.attrib["name"]
        kinds = {child.tag for child in case}
        if "skipped" in kinds:
            # Only other array libraries, which this package does not take.
            assert "array_api" in name, (name, done.stdout)
        elif kinds & {"failure", "error"}:
            failed.append(name)
        else:
            passed.append(name)
    public = [name for name in failed if not name.startswith(_PRIVATE)]
    assert public == [], done.stdout
    assert len(passed) > 50


@pytest.mark.parametrize("name", ["GaussianMixture", "BayesianGaussianMixture"])
def test_every_estimator_check_passes(name):
    """In a process of its own: one check needs SCIPY_ARRAY_API before SciPy loads."""
    script = (
        "from sklearn.utils.estimator_checks import check_estimator\n"
        f"from daskgmm import {name}\n"
        f"results = check_estimator({name}(), on_skip=None, on_fail=None)\n"
        "for r in results:\n"
        "    print(r['status'], r['check_name'], r['exception'] or '')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env={**os.environ, "SCIPY_ARRAY_API": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith("passed ")] == []
    assert len(lines) >= 41
    assert any("check_sample_weight_equivalence" in line for line in lines)


def test_check_estimator_raises_nothing_here():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_estimator(GaussianMixture())


def test_fits_within_fits_do_not_share_random_states():
    """One may be used again, for another fit, only when its fit has ended."""
    x = blobs(0, 300, 2, 3)
    parameters = {"init_params": "random", "n_init": 2, "random_state": 3}
    expected = GaussianMixture(3, **parameters).fit(x)
    inner = []

    def another(_progress):
        inner.append(GaussianMixture(2, init_params="random", random_state=9).fit(x))

    for _ in range(2):
        found = GaussianMixture(3, **parameters).fit(x, callback=another)
        np.testing.assert_array_equal(found.means_, expected.means_)
    alone = GaussianMixture(2, init_params="random", random_state=9).fit(x)
    np.testing.assert_array_equal(inner[-1].means_, alone.means_)


def test_a_fit_that_was_broken_off_leaves_nothing_to_the_next():
    x = blobs(0, 300, 2, 3)
    expected = GaussianMixture(3, random_state=0).fit(x)

    def broken(_progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        GaussianMixture(3, random_state=1).fit(x, callback=broken)
    found = GaussianMixture(3, random_state=np.int64(0)).fit(x)
    np.testing.assert_array_equal(found.means_, expected.means_)
