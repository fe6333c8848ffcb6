"""Blocks are read while others are worked on, also where one shard ends."""

from __future__ import annotations

import gc
import threading
from itertools import pairwise

import dask
import dask.array as da
import numpy as np
import pytest
from conftest import blobs
from distributed import Client, LocalCluster, get_worker

from daskgmm import GaussianMixture
from daskgmm.data import lazy_shard
from daskgmm.data.sources import open_source

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N_BLOCKS, BLOCK, D = 12, 50, 2


class Reads:
    """Rows that tell which of their blocks were read, in which order."""

    def __init__(self, fails=()):
        self.order, self.fails = [], set(fails)
        self.x = blobs(0, N_BLOCKS * BLOCK, D, 3, spread=1.5)
        self._changed = threading.Condition()

    def array(self):
        def read(block, block_info):
            [(index, _)] = [block_info[0]["chunk-location"]]
            with self._changed:
                self.order.append(index)
                self._changed.notify_all()
                if (index, self.order.count(index)) in self.fails:
                    raise OSError(f"block {index} is not to be read")
            return block

        rows = da.from_array(self.x, chunks=(BLOCK, D))
        return rows.map_blocks(read, dtype=float, meta=np.empty((0, 0)))

    def wait_for(self, n_reads):
        """Whether so many blocks are read in time."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self.order) >= n_reads, 10)


@pytest.fixture(params=["sync", "threads"])
def scheduler(request):
    with dask.config.set(
        {"scheduler": request.param, "num_workers": 2, "daskgmm.cache-memory": 0}
    ):
        yield request.param


def numbers(_, blocks):
    """Of the blocks of a leaf."""
    return Numbers([block.index for block in blocks])


class Numbers(list):
    def __add__(self, other):
        return Numbers([*self, *other])


@pytest.mark.parametrize("scheduler", ["sync"], indirect=True)
def test_reading_goes_on_where_a_shard_ends(scheduler):
    reads = Reads()
    shards = open_source(reads.array()).shards()
    assert len(shards._shards) > 1
    assert shards.reduce(numbers, None) == [*range(N_BLOCKS)]
    first, reads.order = list(reads.order), []
    worked_on = []

    def slowly(_, blocks):
        for block in blocks:
            worked_on.append(block.index)
            # All but the last one are followed by one that is read meanwhile.
            n_reads = min(len(worked_on) + 1, N_BLOCKS)
            assert reads.wait_for(n_reads), f"nothing is read beside block {block}"
        return Numbers(worked_on[-1:])

    shards.reduce(slowly, None)
    assert sorted(worked_on) == [*range(N_BLOCKS)]
    assert sorted(reads.order) == sorted(first) == [*range(N_BLOCKS)]
    assert reads.order == worked_on


def test_every_block_is_read_once_a_pass(scheduler):
    reads = Reads()
    fitted = GaussianMixture(3, random_state=0, tol=0, max_iter=4).fit(reads.array())
    counts = np.bincount(reads.order, minlength=N_BLOCKS)
    assert (counts == fitted.n_passes_ + 1).all()


@pytest.mark.parametrize("index", range(0, N_BLOCKS, 3))
def test_an_error_of_what_was_read_ahead_comes_out(scheduler, index):
    """In the second pass, of whichever block; nothing goes on being read."""
    reads = Reads(fails=[(index, 2)])
    shards = open_source(reads.array()).shards()
    shards.reduce(numbers, None)
    with pytest.raises(OSError, match=f"block {index} is not to be read") as caught:
        shards.reduce(numbers, None)
    assert f"block {index} of X" in "".join(caught.value.__notes__)
    # What others had begun is of no use to the next pass, which reads all.
    reads.order.clear()
    assert shards.reduce(numbers, None) == [*range(N_BLOCKS)]
    assert set(reads.order) == {*range(N_BLOCKS)}


def test_a_shard_that_goes_elsewhere_is_not_read_ahead_for_ever():
    reads = Reads()
    with dask.config.set({"scheduler": "sync", "daskgmm.cache-memory": 0}):
        shards = open_source(reads.array()).shards()
        here = dask.compute(*shards._shards)
    *others, elsewhere = here

    def run_over(some):
        for shard in some:
            for _, blocks in shard.leaves():
                list(blocks)

    run_over(here)
    for _ in range(3):
        run_over(others)
    before = len(reads.order)
    run_over(others)
    n_blocks = sum(shard._plan.n_blocks for shard in others)
    assert len(reads.order) - before <= n_blocks
    assert elsewhere.ahead is None


def test_shards_are_let_go():
    reads = Reads()
    with dask.config.set({"scheduler": "threads"}):
        GaussianMixture(3, random_state=0, tol=0, max_iter=4).fit(reads.array())
    gc.collect()
    assert len(lazy_shard._here._shards) == 0


@pytest.mark.parametrize("scheduler", ["sync"], indirect=True)
def test_the_order_of_a_pass_is_that_of_the_one_before(scheduler):
    reads = Reads()
    shards = open_source(reads.array()).shards()
    orders = []
    for _ in range(3):
        began = []

        def note(_, blocks, began=began):
            indices = [block.index for block in blocks]
            began.append(indices[0])
            return Numbers(indices)

        shards.reduce(note, None)
        orders.append(began)
    assert all(a == b for a, b in pairwise(orders))


WORKERS = set()


def ask_for_the_worker(block):
    WORKERS.add(get_worker().name)
    return block


def test_what_reads_a_block_may_ask_for_its_worker():
    """Which is a matter of context: a thread beside the task's reads it."""
    with (
        LocalCluster(2, processes=False, dashboard_address=":0") as running,
        Client(running),
    ):
        x = da.random.default_rng(0).normal(size=(800, 2), chunks=(100, 2))
        as_they_are = {"dtype": float, "meta": np.empty((0, 0))}
        GaussianMixture(2, tol=0.1).fit(x.map_blocks(ask_for_the_worker, **as_they_are))
    assert WORKERS  # and no error that there is none
