"""What each pass found stays with the model: `history_`."""

from __future__ import annotations

import sys

import dask
import dask.array as da
import numpy as np
import pytest
from conftest import blobs

import daskgmm
from daskgmm import GaussianMixture, MissingLibraryError, load

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture
def x():
    return blobs(0, 3000, 2, 3, spread=1.5)


def model(max_iter=6, **parameters):
    return GaussianMixture(3, random_state=0, n_init=3, max_iter=max_iter, **parameters)


@pytest.mark.parametrize("accelerate", [False, True])
def test_it_is_what_the_callback_was_told(x, accelerate):
    told = []
    fitted = model(accelerate=accelerate, init_size=500).fit(
        da.from_array(x, chunks=(500, 2)) + 0.0, callback=told.append
    )
    expected = []
    live = range(3)
    for progress in told:
        for i in live:
            run = progress.runs[i]
            expected.append((progress.n_pass, i, run.bound, run.change))
            expected[-1] += (progress.seconds, 3000, progress.n_bytes)
        live = [i for i, run in enumerate(progress.runs) if run.is_live]
    assert len({row[0] for row in expected}) == fitted.n_passes_
    got = zip(*fitted.history_.values(), strict=True)
    assert [tuple(row) for row in got] == expected


def test_the_bounds_of_the_best_run_are_in_it(x):
    fitted = model().fit(x)
    history = fitted.history_
    best = [
        run
        for run in range(3)
        if [*history["bound"][history["run"] == run]] == fitted.lower_bounds_
    ]
    assert len(best) == 1
    its_changes = history["change"][history["run"] == best[0]]
    np.testing.assert_array_equal(its_changes[1:], np.diff(fitted.lower_bounds_))
    assert its_changes[0] == np.inf
    assert (history["seconds"] > 0.0).all()


def test_it_tells_what_was_read(x):
    rows = da.from_array(x, chunks=(500, 2)) + 0.0
    for most, n_bytes in ((0, x.nbytes), ("1 GB", 0)):
        with dask.config.set({"daskgmm.cache-memory": most}):
            history = model().fit(rows).history_
        assert set(history["n_bytes"]) == {n_bytes}


def test_a_fit_that_goes_on_has_all_of_it(x, tmp_path):
    expected = model(tol=0).fit(x).history_

    def stop(progress):
        if progress.n_pass == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        model(tol=0).fit(x, checkpoint=tmp_path, checkpoint_interval=1, callback=stop)
    got = model(tol=0).fit(x, checkpoint=tmp_path).history_
    for name in set(expected) - {"seconds"}:
        np.testing.assert_array_equal(got[name], expected[name])
        assert got[name].dtype == expected[name].dtype


def test_a_table_of_it(x, tmp_path):
    fitted = model().fit(x)
    fitted.save(tmp_path / "m")
    for one in (fitted, load(tmp_path / "m")):
        table = daskgmm.history(one)
        assert [*table.columns] == [*fitted.history_]
        for name, column in fitted.history_.items():
            np.testing.assert_array_equal(table[name], column)
            assert table[name].dtype == column.dtype


def test_models_that_have_none(x):
    assert len(model(max_iter=0).fit(x).history_["bound"]) == 0
    theirs = GaussianMixture.from_sklearn(model().fit(x).to_sklearn())
    del theirs.history_
    assert len(daskgmm.history(theirs)) == 0
    with pytest.raises(Exception, match="not fitted yet"):
        daskgmm.history(model())


def test_a_table_needs_pandas(x, monkeypatch):
    fitted = model().fit(x)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingLibraryError, match="pip install pandas"):
        daskgmm.history(fitted)
