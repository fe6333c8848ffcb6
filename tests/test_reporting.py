"""What `verbose` prints."""

from __future__ import annotations

import re

from conftest import blobs
from sklearn.mixture import GaussianMixture as Reference

from daskgmm import GaussianMixture


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
    assert "(4 of 4 initializations go on)" in out
