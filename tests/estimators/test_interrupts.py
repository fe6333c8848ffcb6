"""Fits that are broken off by hand: what is kept, and what is said."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import dask
import dask.array as da
import nbformat
import numpy as np
import psutil
import pytest
from conftest import blobs, create_zarr
from nbclient import NotebookClient
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils.validation import check_is_fitted

from daskgmm import BayesianGaussianMixture, GaussianMixture, InterruptedFit
from daskgmm import MixtureSearch as Search

MODELS = {
    "plain": GaussianMixture(3, random_state=0, tol=0, max_iter=9, n_init=2),
    "accelerated": GaussianMixture(
        3, random_state=0, tol=0, max_iter=9, init_size=100, accelerate=True
    ),
    "bayesian": BayesianGaussianMixture(
        n_components=3, random_state=0, tol=0, max_iter=9
    ),
}


@pytest.fixture(scope="module")
def x():
    return da.from_array(blobs(0, 900, 2, 3, spread=2.0), chunks=(300, 2))


def interrupt_after(n_pass):
    """A callback by which this process is sent what Ctrl-C sends."""

    def observe(progress):
        if progress.n_pass == n_pass:
            signal.raise_signal(signal.SIGINT)

    return observe


def new(kind, **parameters):
    return type(MODELS[kind])(**{**MODELS[kind].get_params(), **parameters})


@pytest.mark.parametrize("kind", MODELS)
def test_a_fit_may_end_with_what_it_has_found(x, kind):
    model = new(kind)
    with pytest.warns(ConvergenceWarning, match="best of 4 passes"):
        model.fit(x, callback=interrupt_after(4), keep_on_interrupt=True)
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        expected = new(kind, max_iter=4).fit(x)
    for name in ("means_", "weights_", "lower_bounds_", "n_iter_", "n_passes_"):
        np.testing.assert_array_equal(getattr(model, name), getattr(expected, name))
    assert not model.converged_


@pytest.mark.parametrize("kind", MODELS)
def test_otherwise_nothing_changes_and_one_line_says_so(x, kind):
    model = new(kind)
    with pytest.raises(InterruptedFit, match="nothing was kept. With checkpoint"):
        model.fit(x, callback=interrupt_after(2))
    with pytest.raises(NotFittedError):
        check_is_fitted(model)
    assert issubclass(InterruptedFit, KeyboardInterrupt)


def test_before_the_first_pass_nothing_can_be_kept(tmp_path):
    def interrupted(block):
        signal.raise_signal(signal.SIGINT)

    x = da.zeros((100, 2), chunks=(50, 2))
    x = x.map_blocks(interrupted, dtype=float, meta=np.empty((0, 2)))
    with dask.config.set(scheduler="synchronous"), pytest.raises(InterruptedFit):
        GaussianMixture(2).fit(x, keep_on_interrupt=True)
    said = f"nothing was kept. No state had been written to the checkpoint {tmp_path}"
    with (
        dask.config.set(scheduler="synchronous"),
        pytest.raises(InterruptedFit, match=re.escape(said)) as caught,
    ):
        GaussianMixture(2).fit(x, checkpoint=tmp_path / "c")
    assert caught.value.checkpoint is None
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_the_checkpoint_goes_on(tmp_path, x, kind, keep):
    model = new(kind)
    kept = {"checkpoint": tmp_path / "c", "checkpoint_interval": 1}
    told = {"callback": interrupt_after(3), "keep_on_interrupt": keep, **kept}
    if keep:
        with pytest.warns(ConvergenceWarning, match=r"resumes from .*c\."):
            model.fit(x, **told)
        model = new(kind)
    else:
        with pytest.raises(InterruptedFit, match="resumes from the checkpoint .*c"):
            model.fit(x, **told)
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        model.fit(x, **kept)
        expected = new(kind).fit(x)
    np.testing.assert_array_equal(model.means_, expected.means_)


def test_a_search_says_so_too(tmp_path, x):
    search = Search((1, 2), covariance_type="full", random_state=0, tol=0, max_iter=5)
    with pytest.raises(InterruptedFit, match="nothing was kept"):
        search.fit(x, callback=interrupt_after(2))
    with pytest.raises(InterruptedFit, match="resumes from the checkpoint"):
        search.fit(x, callback=interrupt_after(2), checkpoint=tmp_path / "c")


SCRIPT = """
import signal
from daskgmm import GaussianMixture

def fit():
    GaussianMixture(2, random_state=0).fit(
        [[0.0], [1.0], [5.0], [6.0]],
        callback=lambda _: signal.raise_signal(signal.SIGINT),
    )

fit()
"""


def test_a_notebook_shows_one_line(tmp_path):
    cell = nbformat.v4.new_code_cell(SCRIPT)
    notebook = nbformat.v4.new_notebook(cells=[cell])
    client = NotebookClient(notebook, timeout=120, allow_errors=True)
    client.execute()
    [output] = notebook.cells[0].outputs
    assert output["ename"] == "InterruptedFit"
    [line] = output["traceback"]
    assert line.startswith("Interrupted: nothing was kept.")


def test_so_does_a_script():
    """Unless it has a hook of its own, which stays; other errors are shown as ever."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True
    )
    assert done.returncode == 130
    assert done.stderr.startswith("\nInterrupted: nothing was kept.")
    assert len(done.stderr.strip().splitlines()) == 1
    own = "import sys\nsys.excepthook = lambda *_: print('own')\n"
    done = subprocess.run(
        [sys.executable, "-c", own + SCRIPT], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("own\n", "")
    later = "\ntry:\n    fit()\nexcept KeyboardInterrupt:\n    1 / 0\n"
    again = SCRIPT.replace("\nfit()\n", later)
    done = subprocess.run([sys.executable, "-c", again], capture_output=True, text=True)
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


def interrupted(*arguments, after=None, terminate=False):
    """What a command says that is interrupted with all its processes, as by Ctrl-C.

    After some words, or while it starts its workers. Or it is terminated, alone.
    """
    command = subprocess.Popen(
        [sys.executable, "-m", "daskgmm", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A job in the background ignores it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    said = ""
    while after is None and len(psutil.Process(command.pid).children()) < 3:
        time.sleep(0.02)
    while after and after not in said:
        line = command.stdout.readline()
        assert line, f"it ended early: {said}"
        said += line
    time.sleep(0.5 if after else 0.0)  # workers may need no longer to start
    if terminate:
        command.terminate()
    else:
        os.killpg(command.pid, signal.SIGINT)
    rest, _ = command.communicate(timeout=60)
    return said + rest, command.returncode


@pytest.mark.slow
def test_a_command_ends_with_one_line_while_its_workers_start(tmp_path):
    """They are processes of the same terminal, and hear nothing."""
    create_zarr(tmp_path / "x", blobs(0, 400, 2, 2), chunks=(50, 2))
    said, code = interrupted(
        *("fit", tmp_path / "x", tmp_path / "m", "-k", 2, "--workers", 2)
    )
    assert code == 130
    end = ["", "Interrupted while workers were starting: nothing was read or written."]
    assert said.split("\n") == [*end, ""]
    said, code = interrupted("demo", "--folder", tmp_path / "demo")
    assert code == 130
    assert said.split("\n")[-3:] == [*end, ""]
    assert not list((tmp_path / "demo").iterdir())


@pytest.mark.slow
def test_a_command_ends_with_one_line_and_goes_on(tmp_path):
    create_zarr(tmp_path / "x", blobs(0, 400_000, 8, 20), chunks=(50_000, 8))
    fit = ["fit", tmp_path / "x", tmp_path / "m", "-k", 20, "--tol", 0, "--seed", 0]
    fit += ["--no-accelerate", "--max-iter", 3000]
    said, code = interrupted(*fit, after="pass   2")
    assert code == 130
    # Before the first pass, what takes seconds is told as well.
    _, *_, end = said.split("pass ")
    end = [line for line in end.splitlines()[1:] if line]
    assert end == [
        "Interrupted; nothing was kept. With --checkpoint, the same command resumes "
        "where it stopped."
    ]
    kept = ["--checkpoint", tmp_path / "c", "--checkpoint-interval", 1]
    said, code = interrupted(*fit, *kept, after="pass   3")
    assert code == 130
    assert said.splitlines()[-1].startswith("Interrupted. The same command resumes fr")
    said, _ = interrupted(*fit, *kept, after="pass ")
    # On a busy machine, what comes before that is told, too.
    first, *_ = [line for line in said.splitlines() if "pass " in line]
    assert first.startswith("Resuming from the checkpoint after pass ")
    assert "Traceback" not in said
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
def test_a_queue_that_ends_a_command_is_told_the_same(tmp_path):
    create_zarr(tmp_path / "x", blobs(0, 400_000, 8, 20), chunks=(50_000, 8))
    fit = ["fit", tmp_path / "x", tmp_path / "m", "-k", 20, "--tol", 0, "--seed", 0]
    fit += ["--no-accelerate", "--max-iter", 3000, "--checkpoint", tmp_path / "c"]
    said, code = interrupted(*fit, after="pass   3", terminate=True)
    assert code == 128 + signal.SIGTERM
    assert said.splitlines()[-1].startswith("Interrupted. The same command resumes fr")
    assert "resource_tracker" not in said


@pytest.mark.slow
def test_the_demo_is_quiet_while_it_compiles(tmp_path):
    demo = "demo", "--folder", tmp_path / "demo", "--size", 0.5
    said, code = interrupted(*demo, after="Wrote them")
    assert code == 130
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("Interrupted")
