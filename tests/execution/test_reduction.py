"""The fixed tree: the same sum however the leaves are cut into shards."""

from __future__ import annotations

import gc
import threading
import time
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import dask
import numpy as np
import pytest
from dask.delayed import delayed
from hypothesis import given
from hypothesis import strategies as st

from daskgmm.execution.runners import DaskShards, ThreadShards
from daskgmm.execution.tree import (
    MAX_LEAVES,
    leaf_bounds,
    map_shard,
    merge,
    shard_bounds,
    total,
)


@dataclass(frozen=True)
class Words:
    """Concatenation: any change of order shows."""

    text: str

    def __add__(self, other):
        return Words(f"({self.text}{other.text})")


class Leaves:
    """A shard of numbered leaves with a block or two each."""

    def __init__(self, first, last):
        self.range = range(first, last)
        self.n_read = 5  # by passes before

    def leaves(self):
        for i in self.range:
            yield i, iter(range(i % 2 + 1))


def _name(message, blocks):
    return Words(f"{message}{len(list(blocks))}")


class NumberedLeaves(Leaves):
    """As `Leaves`, with each leaf's number for its only block."""

    def leaves(self):
        for i in self.range:
            self.n_read += i
            yield i, iter([i])


def _number(_message, blocks):
    [number] = blocks
    return Words(f"[{number}]")


def _noise(_message, blocks):
    """Floats whose sum depends on the order."""
    [number] = blocks
    return np.random.default_rng(number).normal() * 10.0 ** (number % 17)


@given(n_blocks=st.integers(0, 5000))
def test_leaves_cover_all_blocks_evenly(n_blocks):
    bounds = leaf_bounds(n_blocks)
    sizes = [b - a for a, b in pairwise(bounds)]
    assert sum(sizes) == n_blocks
    assert len(sizes) <= MAX_LEAVES
    assert all(size > 0 for size in sizes)
    assert len(set(sizes[:-1])) <= 1


@given(n_leaves=st.integers(1, 300), n_shards=st.integers(1, 400))
def test_shards_cover_all_leaves_evenly(n_leaves, n_shards):
    sizes = [b - a for a, b in pairwise(shard_bounds(n_leaves, n_shards))]
    assert sum(sizes) == n_leaves
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) > 0


@given(st.data(), st.integers(1, 130))
def test_the_total_does_not_depend_on_the_shards(data, n_leaves):
    cuts = data.draw(st.sets(st.integers(1, max(1, n_leaves - 1))))
    bounds = [0, *sorted(c for c in cuts if c < n_leaves), n_leaves]
    shards = [NumberedLeaves(a, b) for a, b in pairwise(bounds)]
    whole = total([map_shard(_number, None, NumberedLeaves(0, n_leaves))])
    assert whole[1] == sum(range(n_leaves))
    parts = [map_shard(_number, None, shard) for shard in shards]
    assert total(parts) == whole
    # Merged first in any groups of neighbours, as the scheduler's tasks do.
    half = len(parts) // 2
    assert total([merge(parts[:half]), merge(parts[half:])]) == whole
    order = whole[0].text.replace("(", "").replace(")", "")
    assert order == "".join(f"[{i}]" for i in range(n_leaves))


@given(n_leaves=st.integers(1, 200))
def test_the_tree_is_shallow_and_partials_are_few(n_leaves):
    partial = map_shard(_number, None, NumberedLeaves(0, n_leaves))
    assert len(partial.sums) <= 2 * max(1, n_leaves.bit_length())
    text = total([partial])[0].text
    depth = deepest = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    assert deepest <= n_leaves.bit_length()


def test_threads_and_every_dask_scheduler_give_the_same_bits():
    n = 77
    expected, _ = total([map_shard(_noise, None, NumberedLeaves(0, n))])
    for n_shards in (1, 3, 10, 40):
        shards = [NumberedLeaves(a, b) for a, b in pairwise(shard_bounds(n, n_shards))]
        for n_threads in (1, 2, 5):
            assert ThreadShards(shards, n_threads).reduce(_noise, None) == expected
        tasks = [delayed(shard, traverse=False) for shard in shards]
        lazy = DaskShards(partial(list, tasks))
        for scheduler in ("synchronous", "threads"):
            with dask.config.set(scheduler=scheduler):
                assert lazy.reduce(_noise, None) == expected


def test_a_thread_that_does_not_come_is_not_waited_for():
    """The one that asks does all, where another one is kept from it."""
    held = threading.Event()
    shards = ThreadShards([NumberedLeaves(i, i + 1) for i in range(9)], 2)
    busy = shards._others.submit(held.wait, 60)
    try:
        expected, _ = total([map_shard(_noise, None, NumberedLeaves(0, 9))])
        assert shards.reduce(_noise, None) == expected
        assert not busy.done()
    finally:
        held.set()


class Unaddable:
    """What cannot be added up, in the thread that asks."""

    def __add__(self, other):
        raise ValueError("no sum")


def test_an_error_in_adding_up_ends_the_rest():
    begun = []

    def work(_message, blocks):
        begun.extend(blocks)
        time.sleep(0.02)
        return Unaddable()

    shards = ThreadShards([NumberedLeaves(i, i + 1) for i in range(50)], 3)
    with pytest.raises(ValueError, match="no sum") as caught:
        shards.reduce(work, None)
    n_begun = len(begun)
    time.sleep(0.1)
    assert len(begun) == n_begun < 50
    del caught


def test_threads_stay_as_long_as_the_shards_and_no_longer():
    before = threading.active_count()
    shards = ThreadShards([NumberedLeaves(i, i + 1) for i in range(9)], 3)
    threads = []

    def note(_message, blocks):
        threads.append(threading.get_ident())
        time.sleep(0.01)
        return _noise(_message, blocks)

    for _ in range(3):
        shards.reduce(note, None)
    assert threading.get_ident() in threads
    assert len(set(threads)) <= 3
    del shards
    gc.collect()
    for _ in range(100):
        if threading.active_count() <= before:
            break
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_the_message_reaches_every_leaf():
    shards = [Leaves(0, 2), Leaves(2, 3)]
    got = ThreadShards(shards, 2).reduce(_name, "m")
    assert got == Words("((m1m2)m1)")


def test_an_error_in_a_kernel_comes_out_and_ends_the_rest():
    started = []
    lock = threading.Lock()

    def fail(_message, blocks):
        [number] = blocks
        with lock:
            started.append(number)
        raise ValueError(f"leaf {number}")

    shards = [NumberedLeaves(i, i + 1) for i in range(50)]
    with pytest.raises(ValueError, match="leaf 0"):
        ThreadShards(shards, 1).reduce(fail, None)
    assert started == [0]
    with pytest.raises(ValueError, match="leaf"):
        ThreadShards(shards, 2).reduce(fail, None)


def test_an_error_for_want_of_an_item_is_no_end():
    """Such an error of a leaf is raised, whichever thread it comes to."""

    def fail(_message, blocks):
        [number] = blocks
        if number == 30:
            return [].pop()
        return _noise(_message, [number])

    for n_threads in (1, 3):
        shards = [NumberedLeaves(i, i + 1) for i in range(50)]
        with pytest.raises(IndexError, match="pop from empty list"):
            ThreadShards(shards, n_threads).reduce(fail, None)
