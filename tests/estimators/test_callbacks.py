"""scikit-learn's callbacks are told of fits and passes, and may end them."""

from __future__ import annotations

import warnings

import dask.array as da
import numpy as np
import pytest
from conftest import blobs
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from daskgmm import (
    BayesianGaussianMixture,
    GaussianMixture,
    MixtureOutlierDetector,
    MixtureSearch,
)
from daskgmm.errors import DataError

callback = pytest.importorskip("sklearn.callback", reason="scikit-learn 1.9 has it")


class Recorder:
    """Takes note of all that it is told, and asks to stop after some pass."""

    def __init__(self, stop_after=None):
        self.told, self.models, self.stop_after = [], [], stop_after

    def setup(self, estimator, context):
        self.told.append("setup")

    def teardown(self, estimator, context):
        self.told.append("teardown")

    def on_fit_task_begin(self, estimator, context, *, X, y, metadata):
        self.told.append(f"begin {context.task_name} {context.task_id}")
        self.given = X, y, metadata

    def on_fit_task_end(self, estimator, context, *, fitted_estimator):
        self.told.append(f"end {context.task_name} {context.task_id}")
        if context.task_name == "pass":
            self.models.append(fitted_estimator)
            return context.task_id + 1 == self.stop_after
        return None


MODELS = [
    GaussianMixture(3, random_state=0, tol=1e-4),
    GaussianMixture(3, random_state=0, tol=1e-7, init_size=100, accelerate=True),
    BayesianGaussianMixture(n_components=3, random_state=0, tol=1.0),
]


@pytest.mark.parametrize("model", MODELS)
def test_each_pass_is_a_task_with_the_model_so_far(model):
    x, recorder = blobs(0, 600, 2, 3, spread=2.0), Recorder()
    model = clone(model).set_callbacks(recorder)
    rows = da.from_array(x, chunks=(200, 2))
    weights = np.ones(600)
    model.fit(rows, sample_weight=weights)
    passes = [
        f"{what} pass {i}" for i in range(model.n_passes_) for what in ("begin", "end")
    ]
    around = ["setup", "begin fit 0"], ["end fit 0", "teardown"]
    assert recorder.told == [*around[0], *passes, *around[1]]
    assert recorder.given[0] is rows
    assert recorder.given[2]["sample_weight"] is weights
    assert recorder.models[-1].lower_bound_ == model.lower_bound_
    for i, its in enumerate(recorder.models):
        assert its.n_iter_ == i + 1
        assert np.isfinite(its.score(x))
    np.testing.assert_array_equal(recorder.models[-1].means_, model.means_)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = clone(model).set_params(max_iter=1).set_callbacks()
        first.fit(rows, sample_weight=weights)
    np.testing.assert_array_equal(recorder.models[0].means_, first.means_)


@pytest.mark.parametrize("model", MODELS)
def test_a_callback_ends_a_fit_without_a_warning(model):
    x = blobs(0, 600, 2, 3, spread=2.0)
    model = clone(model).set_callbacks(Recorder(stop_after=1)).set_params(tol=1e-12)
    model.fit(x)
    assert (model.n_passes_, model.n_iter_, model.converged_) == (1, 1, False)
    assert np.isfinite(model.means_).all()


def test_what_was_set_up_is_torn_down_where_a_fit_fails():
    recorder = Recorder()
    model = GaussianMixture(2, random_state=0).set_callbacks(recorder)
    x = blobs(0, 100, 2, 2)
    x[3, 1] = np.nan
    with pytest.raises(DataError):
        model.fit(da.from_array(x, chunks=(50, 2)))
    assert recorder.told == ["setup", "begin fit 0", "begin pass 0", "teardown"]
    assert [name for name in vars(model) if name.startswith("_")] == ["_skl_callbacks"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_in_a_grid_search_they_are_handed_on(jobs, capsys):
    x = blobs(0, 300, 2, 3, spread=4.0)
    search = GridSearchCV(
        GaussianMixture(random_state=0), {"n_components": [1, 3]}, cv=2, n_jobs=jobs
    )
    search.set_callbacks(callback.ProgressBar(max_propagation_depth=None)).fit(x)
    assert search.best_params_ == {"n_components": 3}
    out = capsys.readouterr().out
    assert "GaussianMixture - fit" in out


def test_a_progress_bar_counts_passes(capsys):
    x = blobs(0, 300, 2, 3, spread=4.0)
    model = GaussianMixture(3, random_state=0).set_callbacks(callback.ProgressBar())
    model.fit(x)
    out = capsys.readouterr().out
    assert "GaussianMixture - fit" in out
    assert "100%" in out


def test_without_a_pass_there_is_no_task_for_one():
    recorder = Recorder()
    model = GaussianMixture(2, max_iter=0, random_state=0).set_callbacks(recorder)
    model.fit(blobs(0, 100, 2, 2))
    assert recorder.told == ["setup", "begin fit 0", "end fit 0", "teardown"]


def test_what_is_no_callback_is_refused():
    with pytest.raises(TypeError, match="FitCallback protocol"):
        GaussianMixture(2).set_callbacks(print)


@pytest.mark.parametrize("criterion", ["bic", "held_out"])
def test_each_pass_of_a_search_is_a_task(criterion):
    recorder, lines = Recorder(stop_after=1), []
    search = MixtureSearch((1, 2), covariance_type="full", criterion=criterion)
    search.set_params(random_state=0).set_callbacks(recorder)
    search.fit(blobs(0, 600, 2, 3, spread=2.0), callback=lines.append)
    passes = [
        f"{what} pass {i}" for i in range(len(lines)) for what in ("begin", "end")
    ]
    assert len(lines) == search.n_passes_ > 1
    assert recorder.told == [
        *("setup", "begin fit 0"),
        *passes,
        *("end fit 0", "teardown"),
    ]


def test_the_fit_within_a_detector_is_a_task(capsys):
    x, recorder = blobs(0, 300, 2, 3, spread=4.0), Recorder()
    mixture = GaussianMixture(3, random_state=0)
    detector = MixtureOutlierDetector(mixture).set_callbacks(recorder)
    detector.fit(x)
    around = ["setup", "begin fit 0", "begin mixture 0"]
    assert recorder.told == [*around, "end mixture 0", "end fit 0", "teardown"]
    assert "_skl_callbacks" not in vars(detector.estimator_)
    detector.set_callbacks(callback.ProgressBar(max_propagation_depth=None)).fit(x)
    out = capsys.readouterr().out
    assert "MixtureOutlierDetector - fit" in out
    assert "GaussianMixture - fit" in out


def test_warnings_are_where_a_search_was_asked_for():
    search = MixtureSearch(2, covariance_type="full", max_iter=1, tol=0)
    with pytest.warns(UserWarning, match="did not converge") as caught:
        search.fit(blobs(0, 300, 2, 3))
    assert caught[0].filename == __file__
