"""What is told of work under way, and how it is seen in each place."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import threading
import time

import dask
import dask.array as da
import nbformat
import numpy as np
import pytest
from conftest import blobs, create_zarr
from distributed import Client, LocalCluster
from nbclient import NotebookClient
from rich.console import Console

import daskgmm
from daskgmm import GaussianMixture, MixtureSearch, SearchProgress, steps
from daskgmm.cli.work.report import candidates_table
from daskgmm.display import words
from daskgmm.display.curves import bounds_svg
from daskgmm.display.log import Log
from daskgmm.display.notebook import Notebook
from daskgmm.display.seen import Seen
from daskgmm.display.terminal import Bar
from daskgmm.em.progress import Progress
from daskgmm.em.state import Run, Status
from daskgmm.steps import Step


def heard_of(fit):
    """All events, and the names of steps in the order in which they began."""
    events = []
    with steps.told_to(events.append):
        fit()
    names = [event.name for event in events if isinstance(event, Step)]
    return events, [*dict.fromkeys(names)]


def parts_of(events, name):
    """How many parts were done, of how many, of a step."""
    its = [event for event in events if isinstance(event, Step) and event.name == name]
    return [(step.done, step.of) for step in its if step.of]


@pytest.fixture(scope="module")
def x():
    return blobs(0, 4000, 2, 3, spread=1.5)


@pytest.mark.parametrize("how", ["memory", "one thread", "threads", "cluster"])
def test_steps_have_names_and_parts(x, how):
    rows = np.tile(x, (1000, 1))
    if how not in ("memory", "one thread"):
        rows = da.from_array(rows, chunks=(1_000_000, 2))
    model = GaussianMixture(3, n_init=2, random_state=0, init_size=1000)

    def fit():
        if how == "cluster":
            with (
                LocalCluster(
                    n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
                ) as cluster,
                Client(cluster),
            ):
                model.fit(rows)
            return
        n_threads = 1 if how == "one thread" else 2
        with dask.config.set(scheduler="threads", num_workers=n_threads):
            model.fit(rows)

    events, names = heard_of(fit)
    assert names[:2] == ["counting rows, drawing the subsample", "initialising"]
    assert names[2:] == [f"pass {i}" for i in range(1, model.n_passes_ + 1)]
    passes = [event for event in events if isinstance(event, Progress)]
    assert [its.n_pass for its in passes] == [*range(1, model.n_passes_ + 1)]
    if how == "cluster":
        return  # a pass may end before anybody looks
    for name in (names[0], *names[2:]):
        parts = parts_of(events, name)
        n_parts = parts[0][1]
        assert n_parts > 1
        assert sorted(set(parts)) == [(i, n_parts) for i in range(1, n_parts + 1)]


def _slowly(block):
    threading.Event().wait(0.3)
    return block


@pytest.mark.slow
def test_a_cluster_is_asked_how_far_it_is(x):
    rows = da.from_array(x[:2000], chunks=(100, 2)).map_blocks(_slowly, dtype=float)
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster),
    ):
        model = GaussianMixture(2, max_iter=1, random_state=0)
        with pytest.warns(UserWarning, match="did not converge"):
            events, names = heard_of(lambda: model.fit(rows))
    parts = parts_of(events, names[0])
    assert len({done for done, _ in parts}) > 2
    assert all(0 <= done <= of for done, of in parts)


def test_rows_of_unknown_number_are_counted_and_drawn_apart(x):
    rows = da.from_array(x, chunks=(500, 2))
    rows = rows[rows[:, 0] > -np.inf]
    model = GaussianMixture(2, random_state=0, init_size=100)
    _, names = heard_of(lambda: model.fit(rows))
    assert names[:3] == ["counting rows", "drawing the subsample", "initialising"]


def test_a_search_tells_of_its_passes(x):
    search = MixtureSearch((1, 2), covariance_type="full", random_state=0)
    _, names = heard_of(lambda: search.fit(x))
    assert names[-search.n_passes_ :] == [
        f"pass {i}" for i in range(1, search.n_passes_ + 1)
    ]


def test_nobody_is_told_of_what_other_threads_do(x):
    events = []
    with steps.told_to(events.append):
        other = threading.Thread(target=GaussianMixture(1).fit, args=(x,))
        other.start()
        other.join()
        assert events == []
    GaussianMixture(1).fit(x)
    assert events == []


@pytest.mark.slow
def test_compiling_is_a_step_once(tmp_path):
    code = (
        "import numpy as np\n"
        "from daskgmm import GaussianMixture, steps\n"
        "said = []\n"
        "with steps.told_to(said.append):\n"
        "    GaussianMixture(1).fit(np.eye(3))\n"
        "print([s.name for s in said if isinstance(s, steps.Step)])\n"
    )

    def run():
        return subprocess.run(
            [sys.executable, "-c", code],
            env={"NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert "compiling the kernel" in run()
    assert "compiling the kernel" not in run()


# --- what is known --------------------------------------------------------------------


class Clock:
    """A clock that is told the time."""

    now = 0.0

    def __call__(self):
        return self.now


def progress_of(n_pass, *bounds, seconds=2.0, tol=0.2, max_iter=50, live=True):
    status = Status.TRAINING if live else Status.CONVERGED
    runs = [Run(None, status, bounds=tuple(its)) for its in bounds]
    return Progress(n_pass, runs, 1000, seconds, 16_000, max_iter, tol)


def test_time_to_go_is_that_of_this_pass_and_of_those_that_are_likely():
    clock = Clock()
    seen = Seen(clock)
    seen.hear(Step("pass 1"))
    assert (seen.part, seen.left, seen.said()) == (None, None, "")
    clock.now = 4.0
    seen.hear(Step("pass 1", 2, 5))
    assert seen.part == 0.4
    assert seen.left == pytest.approx(6.0)
    assert seen.said() == "6.0 s to go"
    # Gains of 4, 2, and then 1, 1/2, ..., until less than 1/5: four more.
    seen.hear(progress_of(3, (0.0, 4.0, 6.0)))
    seen.hear(Step("pass 4"))
    assert "about 8.0 s to go" in seen.said()
    seen.hear(Step("pass 4", 1, 2))
    said = seen.said()
    assert "about 7.0 s to go" in said
    assert "bound 6.000000  change 2.00e+00" in said
    assert "500 rows/s  7.81 kiB/s" in said
    # Nothing tells: then it is what there may be at most.
    seen.hear(progress_of(10, (0.0, 4.0, 9.0), (0.0, 1.0, 2.0)))
    assert "at most 79.0 s to go" in seen.said()
    assert "2 of 2 starts still running" in seen.said()
    seen.hear(progress_of(11, (0.0, 4.0, 9.0), live=False))
    assert "to go" not in seen.said()


def test_of_first_parts_and_of_what_has_just_begun_no_time_is_told():
    clock, lines = Clock(), []
    log = Log(lines.append, clock=clock)
    log(Step("counting rows"))
    clock.now = 12.0
    log(Step("counting rows", 1, 40))
    clock.now = 22.5
    log(Step("counting rows", 40, 40))  # what follows says more
    log(Step("drawing the subsample", 0, 40))
    assert lines == [
        "counting rows: 2% done, 12.0 s so far",
        "drawing the subsample: has begun",
    ]


def test_a_log_has_a_line_for_each_pass_and_each_ten_seconds():
    clock, lines = Clock(), []
    log = Log(lines.append, clock=clock)
    log(Step("counting rows"))
    for second in range(1, 25):
        clock.now = second
        log(Step("counting rows", second, 25))
    assert lines == [
        "counting rows: 40% done, 10.0 s so far, about 15.0 s to go",
        "counting rows: 80% done, 20.0 s so far, about 5.0 s to go",
    ]
    clock.now = 29.0
    log(progress_of(1, (1.0,)))
    log(Step("pass 2"))
    clock.now = 38.0
    log(Step("pass 2", 1, 4))
    assert len(lines) == 3
    assert lines[2].startswith("pass   1  bound 1.000000  500 rows/s")
    clock.now = 39.5
    log(Step("pass 2", 2, 4))
    assert lines[3] == "pass 2: 50% done, 10.5 s so far, about 10.5 s to go"


def test_the_time_to_go_is_that_of_what_was_not_found_done():
    clock, lines = Clock(), []
    log = Log(lines.append, clock=clock)
    log(Step("writing parts"))
    for done in range(61, 101):  # 60 were done before, by a command that broke off
        clock.now += 4.0
        log(Step("writing parts", done, 100, 60))
    assert lines[:2] == [
        "writing parts: 63% done, 12.0 s so far, about 2 min 28 s to go",
        "writing parts: 66% done, 24.0 s so far, about 2 min 16 s to go",
    ]
    assert len(lines) == 13


def test_a_step_that_begins_again_has_a_time_of_its_own():
    clock, lines = Clock(), []
    log = Log(lines.append, clock=clock)
    for _ in range(2):
        log(Step("looking for the quantile"))
        clock.now += 30.0
        log(Step("looking for the quantile", 3, 4))
    assert (
        lines
        == ["looking for the quantile: 75% done, 30.0 s so far, about 10.0 s to go"] * 2
    )


def test_it_is_told_that_a_cluster_has_no_workers():
    heard = []
    limits = dict.fromkeys(("no-workers", "worker", "scheduler"), "1s")
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster,
        Client(cluster),
        dask.config.set(
            {f"daskgmm.{name}-timeout": its for name, its in limits.items()}
        ),
        steps.told_to(heard.append),
        pytest.raises(daskgmm.ClusterError, match="no workers for 1 s"),
    ):
        GaussianMixture(2).fit(da.random.random((100, 2), chunks=50))
    names = [event.name for event in heard if isinstance(event, Step)]
    assert steps.WAITING in names[1:]


def test_ends_of_a_curve_are_told_apart():
    svg = bounds_svg([[-4.92811, -4.92810, -4.928099]])
    assert ">-4.9281<" in svg and ">-4.92811<" in svg
    assert svg.count(">1<") == 1 and bounds_svg([[1.0, 1.0]]).count(">1<") == 3


def test_a_log_speaks_also_where_nothing_is_told_to_it():
    """As while the kernel is compiled; and no more once its work has ended."""
    lines, deadline = [], time.monotonic() + 20
    with Log(lines.append, pause=0.05) as log:
        time.sleep(0.2)
        assert lines == []  # nothing has begun
        log(Step("compiling the kernel"))
        while len(lines) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    said = len(lines)
    assert all(line.startswith("compiling the kernel: ") for line in lines)
    time.sleep(0.2)
    assert len(lines) == said


def test_nobody_who_reads_is_no_error():
    def closed(_line):
        raise BrokenPipeError

    with Log(closed, pause=0.01) as log:
        log(Step("counting rows"))
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("time", "said"),
    [
        (0.0, "0 ms"),
        (0.0994, "99 ms"),
        (0.1, "0.1 s"),
        (99.94, "99.9 s"),
        (100, "1 min 40 s"),
        (3599, "59 min 59 s"),
        (3599.7, "1 h 0 min"),
        (7260, "2 h 1 min"),
    ],
)
def test_times_for_people(time, said):
    assert words.seconds(time) == said


# --- where it is seen -----------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 150])
def test_in_a_terminal_there_is_a_bar(x, width):
    """Below it, how things stand: in several lines if it must be."""
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=width)
    model = GaussianMixture(3, random_state=0, init_size=200, tol=1e-7, n_init=2)
    with Bar(console) as bar, steps.told_to(bar):
        rows = da.from_array(x, chunks=(200, 2))
        model.fit(rows, callback=lambda _: bar._bar.refresh())
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.getvalue())
    assert re.search(
        r"pass \d+ ━{24} .*\nbound -\d+\.\d+  change \S+  2 of 2 starts still\s+"
        r"running\s+[\d,]+ rows/s\s+(at most|about) \S+\s+\S+\s+to go",
        said,
    )


def test_a_search_has_a_table_above_the_bar(x):
    """It changes with each pass: what has ended, and what goes on."""
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=120)
    search = MixtureSearch((1, 4), covariance_type="full", random_state=0, tol=1e-5)

    def table(last):
        if isinstance(last, SearchProgress):
            return candidates_table(last.scored, "bic")
        return None

    with Bar(console, table) as bar, steps.told_to(bar, lambda _: bar._bar.refresh()):
        search.fit(x)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.getvalue())
    assert re.search(r"^ +1 +training *$", plain, re.M)
    assert re.search(r"^ +1 +[\d.]+ *\n +4 +training *$", plain, re.M)
    assert re.search(r"^ +1 +[\d.]+ *\n +4 +[\d.]+ *$", plain, re.M)
    assert re.search(r"pass \d+ ━.*\n.*2 of 2 candidates have ended", plain)


def test_in_a_log_there_are_lines(x, capsys):
    model = GaussianMixture(3, random_state=0)
    with daskgmm.progress():
        model.fit(x)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == model.n_passes_
    assert all(line.startswith("pass ") for line in lines)
    model.fit(x)
    assert capsys.readouterr().err == ""


class Handle:
    """What a notebook shows, as it changes."""

    def __init__(self):
        self.shown = []

    def __call__(self, picture):
        self.shown.append(picture._repr_mimebundle_())
        return self

    def update(self, picture):
        self(picture)


def test_a_notebook_has_a_bar_and_then_the_curve(x):
    clock, handle = Clock(), Handle()

    def tick(event):
        clock.now += 0.11
        picture(event)

    with Notebook(handle, clock) as picture, steps.told_to(tick):
        GaussianMixture(3, random_state=0, n_init=2).fit(x)
    texts = [its["text/plain"] for its in handle.shown]
    assert any(text.startswith("pass 2 ") for text in texts)
    assert re.match(r"done: \d+ passes, .*bound -", texts[-1])
    html = handle.shown[-1]["text/html"]
    assert html.count("<polyline") == 2
    search = MixtureSearch((1, 2, 3), covariance_type="full", random_state=0)
    with Notebook(handle, clock) as picture, steps.told_to(tick):
        search.fit(x)
    html = handle.shown[-1]["text/html"]
    assert "3 candidates" in html
    assert html.count("<polyline") == 3
    with (
        pytest.raises(KeyboardInterrupt),
        Notebook(handle) as broken,
        steps.told_to(broken),
    ):
        raise KeyboardInterrupt
    assert handle.shown[-1]["text/plain"].startswith("interrupted")


def test_pictures_in_a_notebook_are_few(x):
    clock, handle = Clock(), Handle()
    with Notebook(handle, clock) as notebook:
        for i in range(1000):
            clock.now += 0.01
            notebook(Step("pass 1", i, 1000))
    assert 45 < len(handle.shown) < 60


def test_a_real_notebook_shows_it(tmp_path, x):
    create_zarr(tmp_path / "rows.zarr", x, chunks=(500, 2))
    code = (
        "import daskgmm\n"
        "with daskgmm.progress():\n"
        "    model = daskgmm.GaussianMixture(3, random_state=0).fit('rows.zarr')\n"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=120, resources=resources).execute()
    [output] = notebook.cells[0].outputs
    assert output["output_type"] == "display_data"
    assert "<svg" in output["data"]["text/html"]
    assert output["data"]["text/plain"].startswith("done: ")


def test_curves_are_of_finite_bounds_and_say_where_they_end():
    svg = bounds_svg([[-5.0, -2.5, -1.25], [-np.inf, -3.0]])
    assert svg.count("<polyline") == 2
    assert ">-1.25<" in svg and ">-5<" in svg and "iteration 3<" in svg
    assert "nan" not in svg and "inf" not in svg
    assert bounds_svg([[1.0]]) == bounds_svg([]) == ""
    flat = bounds_svg([[1.0, 1.0]])
    assert "nan" not in flat
