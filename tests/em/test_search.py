"""Candidates train in shared passes and end as each would alone; the best is chosen."""

from __future__ import annotations

import contextlib

import dask
import dask.array as da
import numpy as np
import pytest
from conftest import COVARIANCE_TYPES, blobs, create_zarr
from oracle import log_joint, log_sum_exp, responsibilities
from scipy.stats import kstest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils.estimator_checks import check_estimator
from stored import Reader

from daskgmm import GaussianMixture, MixtureSearch, load
from daskgmm.em.held_out import Split
from daskgmm.em.search import CRITERIA, _still_to_gain
from daskgmm.em.state import Run, Status
from daskgmm.errors import (
    CheckpointError,
    DataError,
    IllDefinedCovarianceError,
    SkippedRowsWarning,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

FITTED = (
    "weights_",
    "means_",
    "covariances_",
    "precisions_cholesky_",
    "lower_bounds_",
    "n_iter_",
    "n_passes_",
    "converged_",
    "remaining_gain_",
    "arithmetic_",
    "accelerated_",
    "init_size_",
)


class Broken(Exception):
    """What ends a search before its time."""


def alone(search, params, x, sample_weight=None, **more):
    """A candidate, fitted by itself."""
    names = ("n_init", "tol", "reg_covar", "max_iter", "init_params", "accelerate")
    shared = {name: getattr(search, name) for name in names}
    model = GaussianMixture(
        **params, random_state=search.random_state_, **{**shared, **more}
    )
    return model.fit(x, sample_weight=sample_weight)


def assert_as_alone(search, x, sample_weight=None, rtol=1e-9, **more):
    """Every candidate's numbers, and the best one's attributes, to the bit."""
    results = search.results_
    for i, params in enumerate(results["params"]):
        model = alone(search, params, x, sample_weight, **more)
        for ours, theirs in (
            ("lower_bound", "lower_bound_"),
            ("n_iter", "n_iter_"),
            ("n_passes", "n_passes_"),
            ("converged", "converged_"),
        ):
            assert results[ours][i] == getattr(model, theirs), (params, ours)
        for name in ("bic", "aic"):
            expected = getattr(model, name)(x, sample_weight=sample_weight)
            assert results[name][i] == pytest.approx(expected, rel=rtol)
        if i == search.best_index_:
            assert_same(search.best_estimator_, model)


def assert_same(got, expected):
    for name in FITTED:
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
    for name in ("n_pass", "run", "bound", "change"):
        np.testing.assert_array_equal(got.history_[name], expected.history_[name])


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_each_candidate_ends_as_it_would_alone(lazy, weighted):
    x = blobs(0, 1200, 3, 3, spread=2.0)
    weights = np.random.default_rng(1).choice([0.0, 0.5, 2.0], 1200)
    rows = da.from_array(x, chunks=(250, 3)) if lazy else x
    given = None
    if weighted:
        given = da.from_array(weights, chunks=250) if lazy else weights
    search = MixtureSearch(range(1, 5), n_init=2, tol=1e-4, random_state=3)
    search.fit(rows, sample_weight=given)
    assert len(search.results_["params"]) == 16
    assert_as_alone(search, rows, given)


def test_accelerated_candidates_do_too():
    x = blobs(0, 4000, 3, 3, spread=1.5)
    search = MixtureSearch(
        (2, 3, 4), covariance_type=("full", "diag"), accelerate=True, n_init=4,
        init_size=300, random_state=0,
    ).fit(x)  # fmt: skip
    assert search.init_size_ == 300
    assert_as_alone(search, x, init_size=300)
    assert np.isfinite(search.best_estimator_.remaining_gain_)


def test_all_take_what_suits_the_one_with_most_parameters(monkeypatch):
    monkeypatch.setattr("daskgmm.em.acceleration._START_ROWS", 100)
    x = blobs(0, 24_000, 3, 3, spread=1.5)
    for n_rows, size, accelerated in ((24_000, 40 * 29, True), (12_000, 100, False)):
        # 40 rows for each of 2 + 3 · 3 + 3 · 6 parameters, if there are 20 times more.
        search = MixtureSearch((1, 3), covariance_type="full", random_state=0)
        search.fit(x[:n_rows])
        assert (search.init_size_, search.accelerated_) == (size, accelerated)
        more = {"init_size": size, "accelerate": accelerated}
        assert_as_alone(search, x[:n_rows], **more)


def test_float32_candidates_each_have_their_own_precision():
    x = blobs(0, 60_000, 6, 3, spread=2.0).astype(np.float32)
    search = MixtureSearch(
        (1, 3, 12), covariance_type=("full", "diag"), random_state=0, max_iter=5
    ).fit(x)
    assert_as_alone(search, x, rtol=1e-5)
    precisions = {
        alone(search, params, x).arithmetic_ for params in search.results_["params"]
    }
    assert precisions == {"single", "double"}


def test_candidates_that_are_close_to_singular_are_looked_at_again_each():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 2))
    x = np.column_stack([x, x.sum(axis=1)]) * 100
    search = MixtureSearch((1, 2, 3), covariance_type=("full", "tied"), random_state=0)
    assert_as_alone(search.fit(x), x, rtol=1e-6)


@pytest.mark.usefixtures("nothing_kept")
def test_twenty_candidates_read_as_often_as_the_slowest_and_twice_more():
    x = blobs(0, 3000, 3, 4, spread=1.5)
    reader = Reader(x, 500)
    search = MixtureSearch(range(1, 11), covariance_type=("full", "diag"))
    search.set_params(random_state=0, accelerate=False, tol=1e-5).fit(reader.array())
    slowest = search.results_["n_passes"].max()
    assert slowest > search.results_["n_passes"].min() + 5
    assert len(search.results_["params"]) == 20
    assert (reader.counts <= slowest + 2).all()
    assert search.n_passes_ == slowest + 1


def test_criteria_are_the_plain_formulas():
    x = blobs(0, 600, 2, 3, spread=1.0)
    search = MixtureSearch(3, random_state=0).fit(x)
    for i, params in enumerate(search.results_["params"]):
        model = alone(search, params, x)
        joint = log_joint(
            x,
            model.weights_,
            model.means_,
            model.precisions_cholesky_,
            model.covariance_type,
        )
        r = responsibilities(joint)
        entropy = -float((r * np.log(r)).sum())
        log_prob, p = float(log_sum_exp(joint).sum()), model._n_parameters()
        bic = -2 * log_prob + p * np.log(len(x))
        found = {name: search.results_[name][i] for name in CRITERIA}
        assert found["aic"] == pytest.approx(-2 * log_prob + 2 * p, rel=1e-11)
        assert found["bic"] == pytest.approx(bic, rel=1e-11)
        assert found["icl"] == pytest.approx(bic + 2 * entropy, rel=1e-10)
        assert entropy > 1.0
        assert np.isnan(found["held_out"])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_best_is_chosen_by_the_criterion(criterion):
    x = blobs(2, 900, 2, 3, spread=8.0)
    search = MixtureSearch(range(1, 6), criterion=criterion, random_state=0).fit(x)
    values = search.results_[criterion]
    best = np.argmax(values) if criterion == "held_out" else np.argmin(values)
    assert search.best_index_ == best
    assert search.best_score_ == values[best]
    assert search.best_params_ == search.results_["params"][best]
    assert search.results_["rank"][best] == 1
    assert sorted(search.results_["rank"]) == [*range(1, len(values) + 1)]
    assert search.best_params_["n_components"] >= 3


# --- rows held out --------------------------------------------------------------------


def test_held_out_rows_are_a_fair_share_whatever_the_blocks():
    split = Split.of([100_000], 0.2)
    whole = split.held_out(0, 100_000)
    assert whole.mean() == pytest.approx(0.2, abs=0.005)
    # Neither neighbours nor any stretch of rows has more of them.
    assert np.corrcoef(whole[:-1], whole[1:])[0, 1] == pytest.approx(0, abs=0.01)
    assert kstest(np.flatnonzero(whole) / 1e5, "uniform").pvalue > 0.001
    in_parts = [split.held_out(i, i + 777) for i in range(0, 99_456, 777)]
    np.testing.assert_array_equal(np.concatenate(in_parts), whole[:99_456])
    assert Split.of([3, 0, 5], 0.5).trained_on() == [
        int((~split_half[a:b]).sum())
        for split_half in [Split.of([8], 0.5).held_out(0, 8)]
        for a, b in ((0, 3), (3, 3), (3, 8))
    ]


@pytest.mark.parametrize("kind", ["memory", "dask", "unknown", "zarr", "weights"])
def test_nobody_trains_on_rows_that_are_held_out(tmp_path, kind):
    x = blobs(0, 2000, 2, 3, spread=2.0)
    held_out = Split.of([len(x)], 0.25).held_out(0, len(x))
    # They would be noticed: they lie where no other row is.
    x[held_out] += 1000.0
    rows, weights = x, None
    if kind == "dask":
        rows = da.from_array(x, chunks=(300, 2))
    elif kind == "unknown":
        rows = da.from_array(x, chunks=(300, 2))
        rows = rows[rows[:, 0] > -np.inf]
    elif kind == "zarr":
        create_zarr(tmp_path / "rows.zarr", x, chunks=(300, 2))
        rows = str(tmp_path / "rows.zarr")
    elif kind == "weights":
        weights = np.full(len(x), 2.0)
    search = MixtureSearch(
        (1, 3), covariance_type="full", criterion="held_out", held_out=0.25,
        random_state=0,
    ).fit(rows, sample_weight=weights)  # fmt: skip
    assert (np.abs(search.best_estimator_.means_) < 100).all()
    trained_on, rest = x[~held_out], x[held_out]
    for i, params in enumerate(search.results_["params"]):
        model = alone(search, params, trained_on)
        # By other blocks: sums are rounded otherwise.
        np.testing.assert_allclose(
            search.results_["lower_bound"][i], model.lower_bound_, rtol=1e-9
        )
        expected = model.score_samples(rest).mean()
        assert search.results_["held_out"][i] == pytest.approx(expected, rel=1e-6)
        n = 1 if weights is None else 2
        bic = search.results_["bic"][i]
        assert bic == pytest.approx(
            model.bic(trained_on, np.full(len(trained_on), float(n))), rel=1e-9
        )


@pytest.mark.usefixtures("nothing_kept")
def test_they_are_scored_without_another_read():
    reader = Reader(blobs(0, 3000, 3, 3), 500)
    search = MixtureSearch((1, 2, 3), criterion="held_out", random_state=0)
    search.fit(reader.array())
    assert (reader.counts <= search.results_["n_passes"].max() + 2).all()


@pytest.mark.parametrize(("share", "what"), [(1e-9, "score"), (1 - 1e-9, "train on")])
def test_a_share_that_leaves_no_rows_is_refused(share, what):
    search = MixtureSearch((1,), criterion="held_out", held_out=share)
    with pytest.raises(DataError, match=f"leaves no rows to {what}"):
        search.fit(blobs(0, 30, 2, 1))


# --- candidates that end --------------------------------------------------------------


def test_what_is_still_to_gain_is_the_limit_of_a_geometric_series():
    bounds = tuple(5.0 - 0.3 * 0.6**i for i in range(4))
    run = Run(None, bounds=bounds)
    assert run.bound + _still_to_gain(run) == pytest.approx(5.0)
    for other in (bounds[:2], (1.0, 2.0, 4.0), (1.0, 2.0, 2.0)):
        assert _still_to_gain(Run(None, bounds=other)) == np.inf
    accelerated = Run(None, bounds=bounds, memory={"anchor": np.zeros(1)})
    assert _still_to_gain(accelerated) == np.inf


def test_a_candidate_that_can_win_no_more_ends_early():
    x = blobs(2, 3000, 2, 3, spread=8.0)
    parameters = {"tol": 1e-7, "random_state": 0, "accelerate": False}
    whole = MixtureSearch(range(1, 8), **parameters).fit(x)
    short = MixtureSearch(range(1, 8), stop_losers=True, **parameters).fit(x)
    assert short.best_params_ == whole.best_params_
    assert_same(short.best_estimator_, whole.best_estimator_)
    outdone = short.results_["status"] == "outdone"
    assert outdone.any()
    assert short.n_passes_ < whole.n_passes_
    assert np.isnan(short.results_["bic"][outdone]).all()
    assert (short.results_["n_iter"] <= whole.results_["n_iter"]).all()
    # Those that went on are as they were.
    for name in ("bic", "lower_bound", "n_iter"):
        np.testing.assert_array_equal(
            short.results_[name][~outdone], whole.results_[name][~outdone]
        )
    assert (whole.results_["bic"][outdone] > whole.best_score_).all()


def test_a_candidate_that_fails_leaves_the_others():
    rng = np.random.default_rng(0)
    x = rng.choice(5, size=(400, 1)) * 1.0  # five places, and no more
    seen = []
    search = MixtureSearch(
        (1, 2, 8), covariance_type="full", reg_covar=0.0, random_state=0
    ).fit(x, callback=seen.append)
    n_trained = sum(p.scored[2].status is Status.TRAINING for p in seen)
    failed_at_start = search.results_["n_passes"][2] == 0
    assert search.results_["n_passes"][2] == (0 if failed_at_start else n_trained + 1)
    assert [*search.results_["status"][:2]] == ["converged", "converged"]
    assert search.results_["status"][2] == "failed"
    assert "Ill-defined" in search.results_["error"][2]
    assert np.isnan(search.results_["bic"][2])
    assert search.results_["rank"][2] == 3
    assert np.isfinite(search.best_score_)
    with pytest.raises(IllDefinedCovarianceError, match="the first of 2 candidates"):
        search.set_params(n_components=(8, 9)).fit(x)


def test_what_has_no_more_iterations_is_exhausted():
    x = blobs(0, 500, 2, 4, spread=1.0)
    search = MixtureSearch((3, 4), max_iter=2, tol=1e-9, random_state=0).fit(x)
    assert set(search.results_["status"]) == {"exhausted"}
    assert not search.results_["converged"].any()
    assert_as_alone(search, x)


# --- batches, checkpoints, schedulers -------------------------------------------------


def test_what_does_not_fit_trains_in_batches_with_the_same_bits():
    x = blobs(0, 800, 2, 3, spread=2.0)
    # The best one comes last.
    order = ("spherical", "diag", "tied", "full")
    parameters = {"n_components": (1, 2, 3), "covariance_type": order}
    parameters["random_state"] = 0
    together = MixtureSearch(**parameters).fit(x)
    seen = []
    with dask.config.set({"daskgmm.search-memory": "2 kB"}):
        apart = MixtureSearch(**parameters).fit(x, callback=seen.append)
    assert apart.results_["batch"][apart.best_index_] > 0
    assert together.n_batches_ == 1
    assert apart.n_batches_ > 2
    assert apart.results_["batch"].max() == apart.n_batches_ - 1
    assert {progress.n_batches for progress in seen} == {apart.n_batches_}
    assert [progress.n_pass for progress in seen] == [*range(1, apart.n_passes_ + 1)]
    for name in ("bic", "icl", "lower_bound", "n_iter", "n_passes"):
        np.testing.assert_array_equal(apart.results_[name], together.results_[name])
    assert_same(apart.best_estimator_, together.best_estimator_)


@pytest.mark.parametrize(
    "memory", ["256 MB", pytest.param("3 kB", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("criterion", ["bic", "held_out"])
@pytest.mark.parametrize("accelerate", [False, True])
def test_a_search_that_broke_off_goes_on_with_the_same_bits(
    tmp_path, memory, criterion, accelerate
):
    x = da.from_array(blobs(0, 2000, 2, 3, spread=1.5), chunks=(300, 2))
    parameters = {
        "n_components": (1, 3, 4),
        "covariance_type": ("full", "diag"),
        "criterion": criterion,
        "accelerate": accelerate,
        "init_size": 200,
        "n_init": 2,
        "random_state": 1,
    }
    expected = MixtureSearch(**parameters)
    broken = MixtureSearch(**parameters)
    with dask.config.set({"daskgmm.search-memory": memory}):
        expected.fit(x)
        for after in (1, expected.n_passes_):

            def observe(progress, after=after):
                if progress.n_pass == after:
                    raise Broken

            with pytest.raises(Broken):
                broken.fit(
                    x, callback=observe, checkpoint=tmp_path, checkpoint_interval=1
                )
            assert not hasattr(broken, "results_")
        passes = []
        broken.fit(x, callback=passes.append, checkpoint=tmp_path)
    assert len(passes) <= 1
    for name in (*CRITERIA, "lower_bound", "n_iter", "n_passes", "batch", "rank"):
        np.testing.assert_array_equal(broken.results_[name], expected.results_[name])
    assert_same(broken.best_estimator_, expected.best_estimator_)


@pytest.mark.parametrize("accelerate", [False, True])
def test_one_without_a_seed_goes_on_with_the_one_it_drew(tmp_path, accelerate):
    x = blobs(0, 900, 2, 3, spread=1.0)
    search = MixtureSearch(
        (2, 3), covariance_type="full", accelerate=accelerate, init_size=200, tol=1e-6
    )
    seen = []

    def observe(progress):
        seen.append(progress.n_pass)
        if len(seen) == 1:
            raise Broken

    for _ in range(2):
        with contextlib.suppress(Broken):
            search.fit(x, callback=observe, checkpoint=tmp_path, checkpoint_interval=1)
    assert seen[:2] == [1, 2]
    assert_as_alone(search, x, init_size=200)


def test_progress_tells_of_what_has_ended_and_never_of_less():
    seen = []
    search = MixtureSearch((2, 3, 4), n_init=3, tol=1e-6, random_state=0)
    search.fit(blobs(0, 700, 2, 4, spread=1.5), callback=seen.append)
    ended = [
        sum(its.status not in (Status.WAITING, Status.TRAINING) for its in p.scored)
        for p in seen
    ]
    assert ended == sorted(ended)
    assert ended[-1] == len(search.results_["params"])
    assert ended[0] < ended[-1]
    for progress in seen:
        for its in progress.scored:
            assert (its.fit is None) == (its.status is Status.TRAINING)


@pytest.mark.parametrize("memory", ["256 MB", "2 kB"])
def test_progress_tells_how_many_passes_are_to_go(memory):
    seen = []
    search = MixtureSearch((2, 3), covariance_type=("diag", "full"), tol=1e-6)
    search.set_params(n_init=2, random_state=0, accelerate=False)
    with dask.config.set({"daskgmm.search-memory": memory}):
        search.fit(blobs(0, 900, 2, 3, spread=2.5), callback=seen.append)
    assert (search.n_batches_ > 1) == (memory == "2 kB")
    to_go = [progress.passes_to_go for progress in seen]
    true = [search.n_passes_ - progress.n_pass for progress in seen]
    assert to_go[-2:] == [(1, True), (0, True)]
    pairs = [(*said, n) for said, n in zip(to_go, true, strict=True)]
    assert all(most >= n for most, is_likely, n in pairs if not is_likely)
    earlier = [progress.batch < search.n_batches_ - 1 for progress in seen]
    assert not any(
        said[1] for said, is_one in zip(to_go, earlier, strict=True) if is_one
    )
    likely = [(most, n) for most, is_likely, n in pairs if is_likely and n > 1]
    assert len(likely) > 5
    assert np.median([abs(np.log2(most / n)) for most, n in likely]) < 1.0


def test_another_search_is_refused_at_a_checkpoint(tmp_path):
    x = blobs(0, 300, 2, 2)
    search = MixtureSearch((1, 2), random_state=0).fit(x, checkpoint=tmp_path)
    for change in ({"max_iter": 200}, {"n_components": (1, 2, 3)}, {"n_init": 2}):
        with pytest.raises(CheckpointError, match=next(iter(change))):
            clone(search).set_params(**change).fit(x, checkpoint=tmp_path)
    with pytest.raises(CheckpointError):
        GaussianMixture(2, random_state=0).fit(x, checkpoint=tmp_path)


def test_the_bits_are_those_of_any_scheduler(tmp_path):
    create_zarr(tmp_path / "rows.zarr", blobs(0, 2000, 3, 3), chunks=(300, 3))
    found = []
    for scheduler in ("sync", "threads"):
        with dask.config.set(scheduler=scheduler):
            search = MixtureSearch((2, 3), random_state=0, criterion="held_out")
            found.append(search.fit(str(tmp_path / "rows.zarr")))
    for name in ("bic", "held_out"):
        np.testing.assert_array_equal(*(its.results_[name] for its in found))
    assert_same(*(its.best_estimator_ for its in found))


# --- as an estimator ------------------------------------------------------------------


def test_the_best_answers_for_the_search(tmp_path):
    x = blobs(0, 500, 2, 3)
    search = MixtureSearch(range(1, 5), random_state=0)
    for method in ("predict", "predict_proba", "score_samples", "score", "bic", "aic"):
        with pytest.raises(NotFittedError):
            getattr(search, method)(x)
    labels = search.fit_predict(x)
    best = search.best_estimator_
    np.testing.assert_array_equal(labels, best.predict(x))
    for method in ("predict_proba", "score_samples", "score", "bic", "aic"):
        np.testing.assert_array_equal(
            getattr(search, method)(x), getattr(best, method)(x)
        )
    assert search.sample(5)[0].shape == (5, 2)
    search.save(tmp_path / "model.zarr")
    assert_same(load(tmp_path / "model.zarr"), best)
    assert search.n_features_in_ == best.n_features_in_ == 2


@pytest.mark.parametrize("seed", [None, np.random.RandomState(4)])
def test_a_seed_that_is_none_is_drawn_once(seed):
    x = blobs(0, 400, 2, 3, spread=1.0)
    search = MixtureSearch((2, 3), random_state=seed).fit(x)
    assert_as_alone(search, x)


@pytest.mark.filterwarnings("ignore::daskgmm.errors.SkippedRowsWarning")
def test_it_warns_of_what_the_best_did_not_do():
    x = blobs(0, 500, 2, 4, spread=1.0)
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        MixtureSearch((3, 4), max_iter=2, tol=1e-9, random_state=0).fit(x)
    x[7, 1] = np.nan
    with pytest.warns(SkippedRowsWarning, match="1 rows with NaN"):
        search = MixtureSearch((1, 2), nan="skip", random_state=0).fit(x)
    assert search.best_estimator_.n_rows_skipped_ == 1
    assert_as_alone(search, x, nan="skip")


def test_names_of_columns_are_known():
    pd = pytest.importorskip("pandas")
    x = pd.DataFrame(blobs(0, 100, 2, 2), columns=["a", "b"])
    search = MixtureSearch((1, 2)).fit(x)
    assert [*search.feature_names_in_] == ["a", "b"]
    assert [*search.best_estimator_.feature_names_in_] == ["a", "b"]
    assert not hasattr(search.fit(x.to_numpy()), "feature_names_in_")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_components": ()}, "n_components must be one or more whole numbers"),
        ({"n_components": (0, 1)}, "n_components"),
        ({"covariance_type": ("full", "round")}, "covariance_type"),
        ({"criterion": "best"}, "criterion"),
        ({"held_out": 1.0}, "held_out"),
        ({"max_iter": 0}, "max_iter"),
    ],
)
def test_parameters_are_checked_by_name(parameters, message):
    with pytest.raises(ValueError, match=message):
        MixtureSearch(**parameters).fit(blobs(0, 50, 2, 2))


def test_verbose_prints_a_line_for_each_pass(capsys):
    search = MixtureSearch((1, 2), verbose=1, random_state=0).fit(blobs(0, 200, 2, 2))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == search.n_passes_
    assert lines[-1].startswith(
        f"Pass {search.n_passes_}: 8 of 8 candidates have ended"
    )


def test_it_is_scikit_learns_estimator():
    """With one component: with more, another start may win once rows are repeated."""
    check_estimator(MixtureSearch(1, covariance_type="diag"), on_skip=None)


def test_all_shapes_are_searched_by_default():
    search = MixtureSearch(2, random_state=0).fit(blobs(0, 100, 2, 2))
    assert [*search.results_["param_covariance_type"]] == [*COVARIANCE_TYPES]
