"""What `verbose` prints, and what a callback is told."""

from __future__ import annotations

import re

import dask.array as da
import pytest
from conftest import blobs
from sklearn.mixture import GaussianMixture as Reference

from daskgmm import GaussianMixture, Progress
from daskgmm.em.progress import Reporter
from daskgmm.em.state import Run, Status


def _without_times(text):
    return re.sub(r"time lapse \d+\.\d+s", "time lapse", text)


def test_one_run_prints_what_scikit_learn_prints(capsys):
    x = blobs(0, 300, 2, 3, spread=2.0)
    for verbose in (0, 1, 2):
        parameters = {
            "n_components": 3,
            "random_state": 0,
            "verbose": verbose,
            "verbose_interval": 2,
            "max_iter": 200,
        }
        GaussianMixture(**parameters).fit(x)
        ours = capsys.readouterr().out
        Reference(**parameters).fit(x)
        theirs = capsys.readouterr().out
        assert _without_times(ours) == _without_times(theirs)
        assert bool(ours) == bool(verbose)


def test_several_runs_each_begin_and_end(capsys):
    x = blobs(1, 300, 2, 3, spread=2.0)
    GaussianMixture(3, n_init=4, random_state=0, verbose=2, verbose_interval=1).fit(x)
    out = capsys.readouterr().out
    for i in range(4):
        assert f"Initialization {i}\n" in out
        assert f"Initialization {i} converged." in out
    assert "(4 of 4 initializations still running)" in out


def test_a_callback_is_told_of_each_pass():
    x = blobs(3, 1000, 2, 3)
    told = []
    model = GaussianMixture(3, n_init=2, random_state=0).fit(
        da.from_array(x, chunks=(100, 2)), callback=told.append
    )
    assert all(isinstance(progress, Progress) for progress in told)
    assert [p.n_pass for p in told] == list(range(1, model.n_passes_ + 1))
    assert told[-1].bound == model.lower_bound_
    assert {p.n_rows for p in told} == {1000}
    assert told[0].n_runs == 2 and told[-1].n_live == 0
    assert re.fullmatch(
        r"Progress\(n_pass=1, bound=-\d\.\d+, change=\S+, n_live=2, n_runs=2, "
        r"n_rows=1000, n_bytes=\d+, seconds=\S+\)",
        str(told[0]),
    )


def test_a_callback_that_cannot_be_called_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"callback must be callable .* got 'print'"):
        GaussianMixture(2).fit(tmp_path / "nothing is there", callback="print")


def progress_of(*bounds, tol=0.2, max_iter=10):
    runs = [Run(None, bounds=tuple(its)) for its in bounds]
    return Progress(1, runs, 10, 1.0, max_iter=max_iter, tol=tol)


def test_passes_to_go_are_told_by_how_gains_shrink():
    # Gains of 4, 2, and then 1, 1/2, ..., until less than 1/5.
    shrinking = (0.0, 4.0, 6.0)
    assert progress_of(shrinking).likely_passes == 4
    assert progress_of(shrinking, (0.0, 1.0, 1.25)).likely_passes == 4
    assert progress_of(shrinking, tol=1.9).likely_passes == 1
    for unknown in ((0.0, 4.0), (0.0, 2.0, 6.0), (0.0, 4.0, 4.0)):
        assert progress_of(unknown).likely_passes is None
        assert progress_of(shrinking, unknown).likely_passes is None
        assert progress_of(unknown).passes_to_go == (9, False)
    assert progress_of(shrinking, tol=0.0).likely_passes is None
    assert progress_of(shrinking).passes_to_go == (4, True)
    # A half, and then two thirds: three quarters and a bit next, not two thirds.
    slower = (0.0, 6.0, 9.0, 11.0)
    assert progress_of(slower, tol=1.0).likely_passes == 3
    faster = (0.0, 6.0, 10.0, 12.0)
    assert progress_of(faster, tol=1.0).likely_passes == 1
    assert progress_of(shrinking, max_iter=3).passes_to_go == (2, False)
    ended = Run(None, Status.CONVERGED, (0.0, 1.0, 1.1))
    last = Progress(1, [ended], 10, 1.0, max_iter=10, tol=0.2)
    assert (last.likely_passes, last.passes_to_go) == (0, (0, True))


def test_long_passes_are_printed_each_with_the_bound(capsys):
    reporter = Reporter(1, 10)
    run = Run(None, bounds=(-3.0, -2.5))
    reporter.report(Progress(2, [run], 10, 0.5))
    assert capsys.readouterr().out == ""
    reporter.report(Progress(3, [run], 10, 1.5))
    assert capsys.readouterr().out == "  Iteration 3\t lower bound -2.50000\n"
