"""Promises about memory, reads and tasks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import tracemalloc
import warnings
from types import SimpleNamespace

import dask
import dask.array as da
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from conftest import blobs
from dask.callbacks import Callback
from distributed import KilledWorker
from sklearn.exceptions import ConvergenceWarning
from stored import Reader

from daskgmm import DataError, GaussianMixture
from daskgmm.cli.work.estimate import forecast_fit
from daskgmm.data.in_memory import ArraySource
from daskgmm.data.sources import open_source
from daskgmm.execution import runners, tree
from daskgmm.execution.cluster import explain
from daskgmm.mixtures.covariance import SHAPES
from daskgmm.mixtures.e_step import sums_bytes


@pytest.mark.parametrize("n_init", [1, 4])
@pytest.mark.parametrize("init_size", [200, 10_000])
@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.usefixtures("nothing_kept")
def test_one_read_of_each_block_per_pass_and_few_before(n_init, init_size, unknown):
    reader = Reader(blobs(0, 1000, 2, 2), 150)
    lazy = reader.array()
    if unknown:
        lazy = lazy[da.ones(len(lazy), chunks=(lazy.chunks[0],), dtype=bool)]
        assert np.isnan(lazy.shape[0])
    with dask.config.set(scheduler="threads", num_workers=2):
        model = GaussianMixture(
            2, n_init=n_init, random_state=0, init_size=init_size, tol=1e-4
        ).fit(lazy)
    assert model.n_passes_ >= model.n_iter_
    # Rows are counted, looked through and drawn at once, where that can be.
    before = 2 if unknown else 1
    assert (reader.counts == model.n_passes_ + before).all()


_COMPLETE = {
    "weights_init": [0.5, 0.5],
    "means_init": [[0.0, 0.0], [1.0, 1.0]],
    "precisions_init": [np.eye(2)] * 2,
}


@pytest.mark.usefixtures("nothing_kept")
def test_a_complete_start_needs_no_read_before_the_first_pass(tmp_path):
    x = blobs(1, 600, 2, 2)
    expected = GaussianMixture(2, **_COMPLETE).fit(x)

    def n_reads(fit, **parameters):
        reader = Reader(x, 100)
        model = fit(GaussianMixture(2, **_COMPLETE, **parameters), reader.array())
        assert (reader.counts == reader.counts[0]).all()
        return reader.counts[0] - model.n_passes_, model

    before, model = n_reads(lambda gm, rows: gm.fit(rows))
    assert before == 0
    np.testing.assert_allclose(model.means_, expected.means_, rtol=1e-12)
    # What is needed before is read before: weights, digests; no pass checks without.
    assert n_reads(lambda gm, rows: gm.fit(rows, None, np.ones(600)))[0] == 1
    assert n_reads(lambda gm, rows: gm.fit(rows, checkpoint=tmp_path / "c"))[0] == 1
    assert n_reads(lambda gm, rows: gm.fit(rows), nan="skip")[0] == 1
    assert n_reads(lambda gm, rows: gm.fit(rows), max_iter=0)[0] == 1


@pytest.mark.usefixtures("nothing_kept")
def test_a_warm_start_needs_no_read_before_the_first_pass():
    reader = Reader(blobs(1, 600, 2, 2), 100)
    model = GaussianMixture(2, warm_start=True, random_state=0).fit(reader.array())
    reader.counts[:] = 0
    model.fit(reader.array())
    assert (reader.counts == model.n_passes_).all()


@pytest.mark.parametrize("kind", ["array", "Dask", "many small blocks"])
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_first_pass_that_nothing_was_read_before_names_bad_numbers(kind, bad):
    x = blobs(1, 600, 2, 2)
    x[317, 1] = bad
    rows = x if kind == "array" else da.from_array(x, (100 if kind == "Dask" else 5, 2))
    what = "NaN" if np.isnan(bad) else "infinity"
    where = {"array": "row 317", "Dask": "block 3, row 17"}.get(kind, "block 63, row 2")
    with pytest.raises(DataError, match=f"X contains {what} in {where}, column 1"):
        GaussianMixture(2, **_COMPLETE).fit(rows)


class _CountTasks(Callback):
    def __init__(self):
        super().__init__(pretask=self._count)
        self.n = 0

    def _count(self, _key, _dsk, _state):
        self.n += 1


def _tasks_of_passes(n_chunks, n_passes):
    x = np.random.default_rng(0).normal(size=(n_chunks, 2))
    lazy = da.from_array(x, chunks=(1, 2))
    model = GaussianMixture(
        1,
        weights_init=[1.0],
        means_init=[[0.0, 0.0]],
        precisions_init=[np.eye(2)],
        tol=0,
        max_iter=n_passes,
    )
    counter = _CountTasks()
    with (
        dask.config.set(scheduler="threads", num_workers=2),
        warnings.catch_warnings(),
        counter,
    ):
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(lazy)
    assert model.n_passes_ == n_passes
    return counter.n


def test_tasks_per_pass_do_not_grow_with_the_number_of_chunks():
    per_pass = {
        n: _tasks_of_passes(n, 6) - _tasks_of_passes(n, 5) for n in (100, 10_000)
    }
    assert per_pass[10_000] == per_pass[100]
    assert per_pass[100] < 40


# ru_maxrss of a new process starts at its parent's; VmHWM is its own.
_PRELUDE = """
import re, sys, warnings
import dask, dask.array as da
import numpy as np
from daskgmm import GaussianMixture
from daskgmm.execution import runners, tree
from daskgmm.mixtures.covariance import SHAPES
from daskgmm.cli.work.estimate import forecast_fit
from daskgmm.mixtures.e_step import sums_bytes
from daskgmm.data.in_memory import ArraySource

warnings.simplefilter("ignore")

def peak_memory():
    status = open("/proc/self/status").read()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024
"""

_FIT_LAZY = """
rows, d, n_blocks, n_init, threads = map(int, sys.argv[1:])

def make(block_id=None):
    rng = np.random.default_rng(block_id[0])
    x = rng.standard_normal((rows, d))
    x[: rows // 2] += 8
    return x

lazy = da.map_blocks(
    make, chunks=((rows,) * n_blocks, (d,)), dtype=float, meta=np.empty((0, 0))
)
with dask.config.set(scheduler="threads", num_workers=threads):
    GaussianMixture(
        5, n_init=n_init, random_state=0, max_iter=3, tol=0, init_size=20_000
    ).fit(lazy)
print(peak_memory())
"""

_FIT_ARRAY = """
n, n_init = map(int, sys.argv[1:])
x = np.random.default_rng(0).standard_normal((n, 2))
GaussianMixture(20, n_init=n_init, max_iter=2, random_state=0, init_size=5000).fit(x)
print(peak_memory() - x.nbytes)
"""


@pytest.fixture(scope="module")
def _compiled():
    """The kernel in Numba's cache: compiling it takes about 130 MB, once a machine."""
    GaussianMixture(1, random_state=0).fit(np.eye(4))


def _memory(script, *arguments):
    """What a script in a process of its own prints, in bytes.

    As Dask has it for its workers, memory that is let go is given back at once: what
    is kept for later differs from run to run.
    """
    done = subprocess.run(
        [sys.executable, "-c", _PRELUDE + script, *map(str, arguments)],
        env={**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.usefixtures("_compiled")
@pytest.mark.parametrize(
    ("rows", "n_blocks", "n_init"),
    [
        (500_000, 12, 10),
        (50_000, 120, 10),
        pytest.param(500_000, 12, 1, marks=pytest.mark.slow),
        pytest.param(2_000_000, 6, 3, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("nothing_kept")
def test_peak_memory_is_bounded_whatever_the_rows_and_restarts(rows, n_blocks, n_init):
    """The whole process: 390 MB + 2 · threads · one block."""
    d, threads = 4, 2
    limit = 390e6 + 2 * threads * rows * d * 8
    peak = _memory(_FIT_LAZY, rows, d, n_blocks, n_init, threads)
    assert peak <= limit, f"{peak / 1e6:.0f} MB > {limit / 1e6:.0f} MB"


@pytest.mark.slow
@pytest.mark.usefixtures("_compiled")
@pytest.mark.parametrize("n_init", [1, 10])
def test_no_table_of_rows_by_components_on_numpy_rows(n_init):
    """What a fit takes beside the rows does not grow with them."""
    extra = [_memory(_FIT_ARRAY, n, n_init) for n in (100_000, 2_000_000)]
    # A table of 2,000,000 rows and 20 columns would take 320 MB.
    assert extra[1] - extra[0] < 40e6


# --- what is held at once -------------------------------------------------------------


def traced_peak(work):
    """MB that some work has NumPy and Python hold at most."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    "kind", ["array", "fortran", "map", "frame", "masked", "arrow", "polars"]
)
def test_bytes_in_memory_are_converted_block_by_block(tmp_path, kind):
    """Eight times the memory is what they would take as a whole."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 255, size=(4_000_000, 3)).astype(np.uint8)
    if kind == "fortran":
        x = np.asfortranarray(x)
    elif kind == "map":
        np.save(tmp_path / "x.npy", x)
        x = np.load(tmp_path / "x.npy", mmap_mode="r")
    elif kind == "frame":
        x = pd.DataFrame(x)
    elif kind in ("arrow", "polars"):
        x = pa.table({name: column for name, column in zip("abc", x.T, strict=True)})
        x = pl.from_arrow(x) if kind == "polars" else x
    elif kind == "masked":
        x = np.ma.masked_array(x, mask=np.zeros(x.shape, dtype=bool))
    model = GaussianMixture(2, max_iter=2, init_size=1000, random_state=0)

    def work():
        model.fit(x)
        model.score(x)

    assert traced_peak(work) < 45  # 96 as float64
    assert traced_peak(lambda: model.predict(x)) < 32 + 45  # the labels


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_rows_in_memory_of_which_all_are_drawn_are_not_copied():
    x = np.random.default_rng(0).normal(size=(80_000, 64))  # 41 MB
    model = GaussianMixture(
        2, max_iter=2, init_params="random_from_data", random_state=0
    ).fit(x)
    assert traced_peak(lambda: model.fit(x)) < 20


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("chunk_rows", [None, 1100, 50, 4])
def test_restarts_do_not_hold_the_sums_of_all_blocks(chunk_rows):
    """Ten restarts of eight matrices: 84 MB of parameters, and some sums."""
    n = 300 if chunk_rows == 4 else 1100
    x = np.random.default_rng(0).normal(size=(n, 256))
    model = GaussianMixture(
        8, n_init=10, max_iter=2, init_params="random", reg_covar=0.1, random_state=0
    )
    if chunk_rows is None:
        assert traced_peak(lambda: model.fit(x)) < 230
        return
    lazy = da.from_array(x, chunks=(chunk_rows, 256))
    limit = {"daskgmm.sums-memory": "100 MB"}
    with dask.config.set(limit), dask.config.set(scheduler="threads", num_workers=2):
        assert traced_peak(lambda: model.fit(lazy)) < 180 + 2 * 100


class _Counted:
    """A sum that knows how many of its kind are there."""

    n_live = most = 0
    lock = threading.Lock()

    def __init__(self, value):
        self.value = value
        with _Counted.lock:
            _Counted.n_live += 1
            _Counted.most = max(_Counted.most, _Counted.n_live)

    def __del__(self):
        with _Counted.lock:
            _Counted.n_live -= 1

    def __add__(self, other):
        return _Counted(self.value + other.value)


def _count(_message, blocks):
    return _Counted(sum(len(block.x) for block in blocks))


def test_threads_hold_as_many_sums_as_they_need():
    n_rows = 2**19
    shards = ArraySource(np.ones((n_rows, 1)), None).shards()
    _Counted.n_live = _Counted.most = 0
    assert shards.reduce(_count, None).value == n_rows
    # Of a thread its subtrees, and those that are put together; not one of each leaf.
    assert _Counted.most < 60


@pytest.mark.parametrize("n_blocks", [2, 8, 40, 275, 1024, 3000])
@pytest.mark.parametrize("threads", [1, 2, 8])
def test_tasks_hold_as_many_large_sums_as_is_said(n_blocks, threads):
    rows = da.ones((n_blocks, 1), chunks=(1, 1))
    large = SimpleNamespace(sums_bytes=2e6)
    n_leaves = len(tree.leaf_bounds(n_blocks)) - 1
    with dask.config.set(scheduler="threads", num_workers=threads):
        shards = open_source(rows).shards()
        _Counted.n_live = _Counted.most = 0
        assert shards.reduce(_count, large).value == n_blocks
    assert _Counted.most <= threads * tree.most_sums(n_leaves)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
@pytest.mark.usefixtures("nothing_kept")
def test_restarts_that_take_turns_end_where_they_do_together(
    covariance_type, monkeypatch
):
    x = blobs(0, 1000, 3, 2)
    parameters = {
        "covariance_type": covariance_type,
        "n_init": 5,
        "tol": 0,
        "max_iter": 4,
        "random_state": 0,
        "init_params": "random_from_data",
    }

    def fit(rows):
        return GaussianMixture(2, **parameters).fit(rows)

    expected = fit(x)
    with monkeypatch.context() as patch:
        patch.setattr(runners, "_SUMS_IN_MEMORY", 1.0)
        found = fit(x)
    np.testing.assert_allclose(found.means_, expected.means_, rtol=1e-12)
    assert found.n_passes_ == 4
    of_run = sums_bytes(SHAPES[covariance_type], 2, 3)
    of_run *= tree.most_sums(10)  # of ten blocks
    for most, turns in ((1, 5), (2 * of_run, 3), (1e9, 1)):
        reader = Reader(x, 100)
        limit = {"daskgmm.sums-memory": most}
        with dask.config.set(limit), dask.config.set(scheduler="threads"):
            model = fit(reader.array())
        np.testing.assert_allclose(model.means_, expected.means_, rtol=1e-9)
        assert (reader.counts == 1 + 4 * turns).all()
        assert model.n_passes_ == 4


def test_a_dry_run_tells_of_sums():
    x = da.zeros((100, 50), chunks=(50, 50)) + 1.0
    model = GaussianMixture(20, n_init=10, random_state=0)
    with dask.config.set({"daskgmm.sums-memory": "18 MB"}):
        found = forecast_fit(model, da.random.default_rng(0).normal(size=x.shape), 2, 1)
    # 0.4 MB each, of which eight are held; five runs at once.
    of_run = 8 * sums_bytes(SHAPES["full"], 20, 50)
    assert found.sums_bytes == 5 * of_run
    assert found.passes == 2 * 100 + 2
    assert found.memory_per_worker == 400_000_000 + 2 * found.block_bytes + 5 * of_run
    assert "MB for sums in each thread" in " ".join(found.lines())


@pytest.mark.parametrize("sums_bytes", [5e5, 5e7])
def test_workers_that_died_are_told_of_sums_that_are_large(sums_bytes):
    last = SimpleNamespace(address="tcp://192.0.2.1:5", memory_limit=4e8)
    died = KilledWorker("shard", last, 4)
    said = str(explain(died, 1e6, sums_bytes))
    assert "may take 400 MB" in said
    assert "largest block takes 1 MB" in said
    assert ("sums of all runs take 50 MB for each thread" in said) == (sums_bytes > 1e7)
