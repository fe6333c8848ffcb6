"""Promises about memory, reads and tasks."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from itertools import pairwise

import dask
import dask.array as da
import numpy as np
import pytest
from conftest import blobs
from dask.callbacks import Callback
from sklearn.exceptions import ConvergenceWarning

from daskgmm import GaussianMixture


class Reader:
    """Rows made block by block, with a count of the reads of each."""

    def __init__(self, x, size):
        self.x, self.size = x, size
        self.counts = np.zeros(-(-len(x) // size), dtype=int)
        self.lock = threading.Lock()

    def read(self, block_id):
        with self.lock:
            self.counts[block_id[0]] += 1
        start = block_id[0] * self.size
        return self.x[start : start + self.size]

    def array(self):
        n, d = self.x.shape
        ends = [*range(0, n, self.size), n]
        sizes = tuple(b - a for a, b in pairwise(ends))
        return da.map_blocks(
            lambda block_id=None: self.read(block_id),
            chunks=(sizes, (d,)),
            dtype=self.x.dtype,
            meta=np.empty((0, 0), dtype=self.x.dtype),
        )


@pytest.mark.parametrize("n_init", [1, 4])
@pytest.mark.parametrize("init_size", [200, 10_000])
@pytest.mark.parametrize("unknown", [False, True])
def test_one_read_of_each_block_per_pass_and_two_before(n_init, init_size, unknown):
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
    assert (reader.counts <= model.n_passes_ + 2).all()
    assert (reader.counts == reader.counts[0]).all()


def test_a_complete_start_needs_one_read_before_the_first_pass():
    reader = Reader(blobs(1, 600, 2, 2), 100)
    model = GaussianMixture(
        2,
        weights_init=[0.5, 0.5],
        means_init=[[0.0, 0.0], [1.0, 1.0]],
        precisions_init=[np.eye(2)] * 2,
    ).fit(reader.array())
    assert (reader.counts == model.n_passes_ + 1).all()


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
    """What a script in a process of its own prints, in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", _PRELUDE + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.usefixtures("_compiled")
@pytest.mark.parametrize(
    ("rows", "n_blocks", "n_init"),
    [(500_000, 12, 1), (500_000, 12, 10), (50_000, 120, 10), (2_000_000, 6, 3)],
)
def test_peak_memory_is_bounded_whatever_the_rows_and_restarts(rows, n_blocks, n_init):
    """The whole process: 400 MB + 2 · threads · one block."""
    d, threads = 4, 2
    limit = 400e6 + 2 * threads * rows * d * 8
    peak = _memory(_FIT_LAZY, rows, d, n_blocks, n_init, threads)
    assert peak <= limit, f"{peak / 1e6:.0f} MB > {limit / 1e6:.0f} MB"


@pytest.mark.usefixtures("_compiled")
@pytest.mark.parametrize("n_init", [1, 10])
def test_no_table_of_rows_by_components_on_numpy_rows(n_init):
    """What a fit takes beside the rows does not grow with them."""
    extra = [_memory(_FIT_ARRAY, n, n_init) for n in (100_000, 2_000_000)]
    # A table of 2,000,000 rows and 20 columns would take 320 MB.
    assert extra[1] - extra[0] < 40e6
