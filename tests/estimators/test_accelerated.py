"""Accelerated fits: few passes, and nothing else that a user could tell."""

from __future__ import annotations

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from conftest import blobs, create_zarr
from sklearn import mixture as sklearn_mixture

from daskgmm import GaussianMixture, load
from daskgmm.em.acceleration import OnSample, sampling
from daskgmm.em.initialization import Start
from daskgmm.estimators.base import PARAMETERS
from daskgmm.mixtures.covariance import SHAPES

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N, D, K = 20_000, 3, 4
SAMPLE = 1000


@pytest.fixture(scope="module")
def rows():
    """Components that overlap, on which plain EM takes many passes."""
    return blobs(5, N, D, K, spread=1.5)


def model(**parameters):
    return GaussianMixture(
        **{
            "n_components": K,
            "random_state": 0,
            "init_size": SAMPLE,
            "accelerate": True,
            **parameters,
        }
    )


def same(one, other):
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in (*PARAMETERS, "lower_bounds_", "n_passes_")
    )


def complete(fitted):
    """The parameters that make a start complete."""
    return {
        "weights_init": fitted.weights_,
        "means_init": fitted.means_,
        "precisions_init": fitted.precisions_,
    }


def test_few_passes_to_a_better_place(rows, covariance_type):
    ours = model(covariance_type=covariance_type).fit(rows)
    plain = model(covariance_type=covariance_type, accelerate=False).fit(rows)
    assert ours.converged_
    assert ours.n_passes_ <= 5
    assert ours.n_passes_ <= plain.n_passes_
    assert ours.score(rows) >= plain.score(rows) - 1e-3


def test_it_ends_where_em_ends(covariance_type):
    """EM on all rows moves nothing where acceleration ends."""
    rows = blobs(7, N, D, K, spread=2.5)
    ended = model(covariance_type=covariance_type, tol=0, max_iter=80).fit(rows)
    theirs = sklearn_mixture.GaussianMixture(
        K, covariance_type=covariance_type, tol=0, max_iter=30, **complete(ended)
    ).fit(rows)
    for name in ("weights_", "means_", "covariances_"):
        np.testing.assert_allclose(
            getattr(ended, name), getattr(theirs, name), rtol=1e-8, atol=1e-8
        )


def test_no_pass_loses(rows, covariance_type):
    ended = model(covariance_type=covariance_type, tol=0, max_iter=15).fit(rows)
    assert (np.diff(ended.lower_bounds_) > -1e-9).all()


def test_attributes_mean_what_they_did(rows):
    fitted = model(tol=1e-5).fit(rows)
    assert fitted.lower_bound_ == fitted.lower_bounds_[-1]
    assert len(fitted.lower_bounds_) == fitted.n_iter_ == fitted.n_passes_
    # One step of EM from a mixture that has the bound.
    assert 0.0 <= fitted.score(rows) - fitted.lower_bound_ < 1e-4
    assert abs(fitted.lower_bounds_[-1] - fitted.lower_bounds_[-2]) < 1e-5


def test_on_from_20_rows_for_each_that_is_drawn(rows):
    few, enough = rows[:-1], rows
    for x, accelerated in ((few, False), (enough, True)):
        auto = model(accelerate="auto").fit(x)
        assert same(auto, model(accelerate=accelerated).fit(x))
        assert not same(auto, model(accelerate=not accelerated).fit(x))
        assert np.isnan(auto.remaining_gain_) is np.bool_(not accelerated)
        assert auto.accelerated_ is accelerated
        assert auto.init_size_ == N // 20


def test_rows_without_weight_do_not_count(rows):
    weights = np.ones(N)
    weights[-1:] = 0.0
    auto = model(accelerate="auto").fit(rows, sample_weight=weights)
    assert np.isnan(auto.remaining_gain_)


def test_a_complete_start_is_gone_on_from_as_it_is(rows):
    before = model(max_iter=2, accelerate=False).fit(rows)
    start = complete(before)
    auto = model(accelerate="auto", **start).fit(rows)
    assert same(auto, model(accelerate=False, **start).fit(rows))
    accelerated = model(accelerate=True, **start).fit(rows)
    assert accelerated.lower_bounds_[0] >= before.lower_bounds_[-1]
    assert accelerated.lower_bounds_[0] == pytest.approx(auto.lower_bounds_[0], 1e-9)
    assert accelerated.lower_bound_ > auto.lower_bound_


@pytest.mark.parametrize("accelerate", ["auto", True])
def test_no_more_rows_than_are_drawn_change_nothing(rows, accelerate):
    x = rows[:SAMPLE]
    ours = model(accelerate=accelerate).fit(x)
    theirs = sklearn_mixture.GaussianMixture(K, random_state=0).fit(x)
    assert same(ours, model(accelerate=False).fit(x))
    assert ours.n_iter_ == theirs.n_iter_
    np.testing.assert_allclose(ours.means_, theirs.means_, rtol=1e-9)


def test_the_same_bits_however_rows_come(rows, covariance_type):
    weights = np.random.default_rng(1).random(N)
    expected = model(covariance_type=covariance_type).fit(
        da.from_array(rows, chunks=(3000, D)), sample_weight=weights
    )
    for threads in (1, 3):
        lazy = da.from_array(rows, chunks=(3000, D))
        with dask.config.set(scheduler="threads", num_workers=threads):
            again = model(covariance_type=covariance_type)
            again.fit(lazy, sample_weight=weights)
        assert same(again, expected)
        assert again.remaining_gain_ == expected.remaining_gain_


def in_kind(kind, rows, folder):
    """Rows as users have them: what reads them has blocks of its own."""
    table = pd.DataFrame(rows, columns=list("abc"))
    if kind in ("Zarr path", "Zarr array", "shards"):
        shards = {"shards": (4000, D)} if kind == "shards" else {}
        array = create_zarr(folder / "x", rows, chunks=(500, D), **shards)
        return array if kind == "Zarr array" else folder / "x"
    if kind == "Parquet":
        table.to_parquet(folder / "x.parquet", row_group_size=1500)
        return folder / "x.parquet"
    return {
        "pandas": lambda: table,
        "Dask frame": lambda: dd.from_pandas(table, npartitions=7),
        "xarray": lambda: xr.DataArray(rows, dims=("row", "feature")).chunk(row=3000),
        "by column": lambda: np.asfortranarray(rows),
        "memory map": lambda: _mapped(rows, folder / "x.npy"),
    }[kind]()


def _mapped(rows, file):
    np.save(file, rows)
    return np.load(file, mmap_mode="r")


@pytest.mark.parametrize(
    "kind",
    [
        *("Zarr path", "Zarr array", "shards", "Parquet", "pandas", "Dask frame"),
        *("xarray", "by column", "memory map"),
    ],
)
def test_any_kind_of_rows(rows, kind, tmp_path):
    """The same rows are drawn; sums of other blocks differ in their last digits."""
    expected = model(tol=1e-5).fit(rows)
    found = model(tol=1e-5).fit(in_kind(kind, rows, tmp_path))
    assert found.n_passes_ == expected.n_passes_
    np.testing.assert_allclose(found.lower_bounds_, expected.lower_bounds_, rtol=1e-9)
    np.testing.assert_allclose(found.means_, expected.means_, rtol=1e-5)
    np.testing.assert_allclose(
        found.remaining_gain_, expected.remaining_gain_, rtol=1e-2
    )


def test_weights_are_repetitions(rows):
    """The draws differ; where they lead does not."""
    rows = blobs(7, N, D, K, spread=2.5)
    weights = np.random.default_rng(2).integers(0, 4, N)
    weighted = model(tol=0, max_iter=40).fit(rows, sample_weight=weights)
    repeated = model(tol=0, max_iter=20, accelerate=False, **complete(weighted))
    repeated.fit(np.repeat(rows, weights, axis=0))
    np.testing.assert_allclose(weighted.lower_bound_, repeated.lower_bound_, rtol=1e-9)
    np.testing.assert_allclose(weighted.means_, repeated.means_, atol=1e-7)


def test_the_best_three_restarts_go_on(rows):
    seen = []
    fitted = model(n_init=6, tol=1e-5)
    fitted.fit(rows, callback=lambda p: seen.append((p.n_runs, p.n_live, p.runs)))
    assert seen[0][0] == 6
    assert max(n_live for _, n_live, _ in seen) <= 3
    named = [run.status.value for run in seen[0][2]]
    assert named.count("outdone") == 3
    alone = model(n_init=1, tol=1e-5).fit(rows)
    assert fitted.lower_bound_ >= alone.lower_bound_ - 1e-6


def test_verbose_tells_of_restarts_that_were_outdone(rows, capsys):
    model(n_init=4, verbose=1).fit(rows)
    assert capsys.readouterr().out.count("was outdone by others on a subsample") == 1


def test_a_warm_start_goes_on_from_its_parameters():
    rows = blobs(7, N, D, K, spread=2.5)
    fitted = model(warm_start=True, tol=1e-7, max_iter=60).fit(rows)
    passes, bound = fitted.n_passes_, fitted.lower_bound_
    fitted.fit(rows)
    assert fitted.n_passes_ == 1 < passes
    assert 0.0 <= fitted.lower_bound_ - bound < 1e-7
    # Of other rows, too.
    other = blobs(6, N, D, K, spread=1.5)
    fitted.fit(other)
    assert fitted.score(other) > fitted.lower_bounds_[0]


@pytest.mark.parametrize("reg_covar", [0.0, 1e-5])
def test_reg_covar(covariance_type, reg_covar):
    """What EM with it stays at, which is not where the bound is highest."""
    rows = blobs(7, N, D, K, spread=2.5)
    common = {"covariance_type": covariance_type, "reg_covar": reg_covar}
    ended = model(tol=1e-6, **common).fit(rows)
    further = model(tol=0, max_iter=100, accelerate=False, **common, **complete(ended))
    further.fit(rows)
    assert ended.remaining_gain_ < 1e-5
    for name in ("weights_", "means_", "covariances_"):
        got, expected = (getattr(fitted, name) for fitted in (ended, further))
        np.testing.assert_allclose(got, expected, atol=0.02)


@pytest.mark.parametrize("n_init", [1, 4])
def test_with_a_heavy_reg_covar_it_is_plain_em(rows, covariance_type, n_init):
    """Its bound may fall, and says nothing of what is better."""
    parameters = {"covariance_type": covariance_type, "n_init": n_init}
    heavy = model(reg_covar=0.1, **parameters).fit(rows)
    plain = model(reg_covar=0.1, accelerate=False, **parameters).fit(rows)
    assert same(heavy, plain)
    assert np.isnan(heavy.remaining_gain_)


def test_what_is_left_to_gain_is_told(rows, tmp_path):
    fitted = model(n_components=2, tol=1e-3).fit(rows)
    best = model(n_components=2, tol=1e-10, max_iter=200, **complete(fitted)).fit(rows)
    left = best.lower_bound_ - fitted.lower_bound_
    assert left / 10.0 < fitted.remaining_gain_ < 10.0 * left
    fitted.save(tmp_path / "m")
    assert load(tmp_path / "m").remaining_gain_ == fitted.remaining_gain_
    assert best.remaining_gain_ < 1e-6


def of_other_blocks(x):
    return x[np.argsort(x[:, 0] // 1.0, kind="stable")]


def with_a_rare_component(x):
    return np.concatenate([x[: len(x) - 2], np.full((2, D), 300.0)])


ADVERSARIAL = {
    "sorted": lambda x: x[np.argsort(x[:, 0])],
    "duplicated": lambda x: np.repeat(x[::50], 50, axis=0),
    "a rare component": with_a_rare_component,
    "blocks of other rows": of_other_blocks,
}


@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_it_costs_a_pass_more_than_plain_em_at_most(rows, covariance_type, kind):
    x = da.from_array(ADVERSARIAL[kind](rows), chunks=(2500, D))
    common = {"covariance_type": covariance_type, "tol": 1e-4}
    start = complete(model(**common, max_iter=3, accelerate=False).fit(x))
    ours = model(**common, **start).fit(x)
    plain = model(**common, **start, accelerate=False).fit(x)
    # Until it is as high; it may go on to where EM would stop before.
    there = np.array(ours.lower_bounds_) >= plain.lower_bound_ - 1e-4
    assert np.argmax(there) + 1 <= plain.n_passes_ + 1
    assert there[-1]


def test_without_an_iteration_the_start_is_kept(rows):
    started = model(max_iter=0).fit(rows)
    assert same(started, model(max_iter=0, accelerate=False).fit(rows))


@pytest.mark.parametrize(
    ("d", "k", "size"), [(2, 3, 100_000), (30, 10, 40 * 4959), (30, 100, 266_666)]
)
def test_how_many_rows_are_drawn(d, k, size):
    """40 for each parameter, within what Dask's configuration allows."""
    start = Start(k, SHAPES["full"], "kmeans", None, None, None)
    with dask.config.set({"daskgmm.sample-memory": "64 MB"}):
        drawn = sampling(True, "auto", start, d, 10**9)
    assert (drawn.size, drawn.start_size) == (size, 100_000)
    assert drawn.accelerated
    plain = sampling(False, "auto", start, d, 10**9)
    assert (plain.size, plain.accelerated) == (100_000, False)
    assert not sampling("auto", "auto", start, d, 20 * size - 1).accelerated
    assert sampling("auto", "auto", start, d, 10**8).accelerated


def test_drawn_rows_are_asked_once_and_no_more_than_the_rule_allows(rows, monkeypatch):
    """A path begins where another one ended: its moments are known."""
    asked = {}  # by what asks, which so lives on: its number is no other one's

    def counted(self, mixture):
        asked.setdefault(self, []).append(mixture.means.tobytes())
        return found(self, mixture)

    found = OnSample.__call__
    monkeypatch.setattr(OnSample, "__call__", counted)
    fitted = model().fit(rows)
    limits = sampling(
        True, SAMPLE, Start(K, SHAPES["full"], "kmeans", None, None, None), D, N
    )
    *_, at_start, between = asked.values()
    assert 1 < len(at_start) <= limits.most_at_start
    assert 1 < len(between) <= limits.most_between * fitted.n_passes_
    assert len(set(between)) == len(between)


def test_parameters_are_checked(rows):
    for wrong in ({"accelerate": "yes"}, {"init_size": "all"}, {"init_size": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            model(**wrong).fit(rows)
