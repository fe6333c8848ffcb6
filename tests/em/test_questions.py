"""Questions about a few rows: the same bits, and nothing is kept too long."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest

from daskgmm import GaussianMixture
from daskgmm.em import predict

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

METHODS = ("predict", "predict_proba", "score_samples")
SHAPES = ("full", "tied", "diag", "spherical")


def fitted(covariance_type, d, k=2):
    rng = np.random.default_rng(d)
    x = rng.normal(size=(k * 20, d)) + np.repeat(3.0 * np.arange(k), 20)[:, np.newaxis]
    model = GaussianMixture(
        k,
        covariance_type=covariance_type,
        reg_covar=0.5,
        max_iter=1,
        tol=10.0,
        random_state=0,
    )
    return model.fit(x)


@pytest.mark.parametrize("covariance_type", SHAPES)
@pytest.mark.parametrize("d", [1, 5, 64, 200, 600])
def test_a_row_has_the_same_answer_alone_and_among_others(covariance_type, d):
    model = fitted(covariance_type, d)
    x = np.random.default_rng(0).normal(size=(140, d))
    for method in METHODS:
        ask = getattr(model, method)
        together = ask(x)
        for n in (1, 2, 5, 7, 16, 17, 32, 33, 100, 128, 129):
            np.testing.assert_array_equal(ask(x[:n]), together[:n])


def in_place(model, name):
    """Change one number of an attribute, and set it back when done with it."""
    numbers = getattr(model, name)
    d = numbers.shape[-1]
    places = {
        "weights_": [(0,)],
        "means_": [(0, 0), (1, d - 1)],
        # Where the packed copies of a triangle begin, end and go on.
        "precisions_cholesky_": [
            (0, 0),
            (0, d - 1),
            (63, 64),
            (64, 64),
            (d - 1, d - 1),
        ],
    }[name]
    for place in places:
        where = (*(0 for _ in range(numbers.ndim - len(place))), *place)
        before = numbers[where]
        numbers[where] = (
            np.nextafter(before, np.inf) if name == "means_" else before + 1
        )
        yield
        numbers[where] = before


def same_answers(model, other, x):
    return all(
        np.array_equal(getattr(model, method)(x), getattr(other, method)(x))
        for method in METHODS
    )


@pytest.mark.parametrize("covariance_type", ["full", "tied"])
@pytest.mark.parametrize("d", [70, 200])
@pytest.mark.parametrize("n", [1, 50])
@pytest.mark.parametrize("name", ["weights_", "means_", "precisions_cholesky_"])
def test_no_answer_is_of_attributes_that_were(covariance_type, d, n, name):
    model = fitted(covariance_type, d)
    x = model.means_[0] + np.random.default_rng(0).normal(size=(n, d))
    before = model.score_samples(x)
    for _ in in_place(model, name):
        assert same_answers(model, copy.deepcopy(model), x)
        if name != "means_":
            assert not np.array_equal(model.score_samples(x), before)
    np.testing.assert_array_equal(model.score_samples(x), before)
    setattr(model, name, getattr(model, name) * 1.25)
    assert same_answers(model, copy.deepcopy(model), x)
    assert not np.array_equal(model.score_samples(x), before)


def test_what_is_kept_is_of_its_model_alone():
    model = fitted("full", 70)
    x = np.random.default_rng(0).normal(size=(50, 70))
    size = len(pickle.dumps(model))
    expected = model.score_samples(x)
    assert model in predict._kept
    assert len(pickle.dumps(model)) == size
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other not in predict._kept
        np.testing.assert_array_equal(other.score_samples(x), expected)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_plan_that_is_large_is_not_kept():
    model = fitted("full", 200, 32)
    model.score_samples(np.zeros((200, 200)))
    assert model not in predict._kept
