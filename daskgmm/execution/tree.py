"""Map one function over shards and merge its values in a fixed tree.

The blocks of a data set are grouped into *leaves*, runs of consecutive blocks that
depend on the number of blocks alone. A function turns the blocks of one leaf into a
value with ``+``; the values are the leaves of a binary tree whose shape depends on
the number of leaves alone. A *shard*, the unit of work, covers a run of leaves and
returns the sums of the largest whole subtrees in it, so the total is the same bits
however the leaves are spread over shards, threads and workers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Final, Protocol, Self, final

from dask.delayed import Delayed, delayed
from distributed import KilledWorker

from daskgmm import config
from daskgmm.execution.cluster import (
    by_scheduler,
    compute,
    current_scheduler,
    drop,
    explain,
    hold,
    is_finished,
    revive,
)
from daskgmm.execution.threads import single_threaded_blas

_SUMS_IN_MEMORY: Final = 8e6
MAX_LEAVES: Final = 1024
"""More leaves than this are not made: each costs its own (K, d, d) sums."""

_FAN_IN: Final = 8
"""Partials that one task of Dask's merges, where they are small."""
_SMALL: Final = 1e6
"""Bytes of sums below which it does not matter how many are held."""


class Addable(Protocol):
    """What the function returns: a commutative monoid's element."""

    def __add__(self, other: Self, /) -> Self: ...


class Shard(Protocol):
    """A run of consecutive leaves, each an iterator over its blocks."""

    def leaves(self) -> Iterator[tuple[int, Iterator[Any]]]:
        """Yield the number of each leaf and its blocks, read as they are asked for."""
        ...


LeafFunction = Callable[[Any, Iterator[Any]], Addable]
"""``function(message, blocks)``: the value of one leaf."""

Partial = dict[tuple[int, int], Addable]
"""Sums of whole subtrees by (level, index): 2^level leaves from index · 2^level on."""


def leaf_bounds(n_blocks: int) -> list[int]:
    """Cut blocks into leaves: leaf i holds blocks bounds[i] to bounds[i + 1]."""
    size = max(1, -(-n_blocks // MAX_LEAVES))
    return [*range(0, n_blocks, size), n_blocks]


def most_sums(n_leaves: int) -> int:
    """How many sums a thread holds at once, at most.

    What the kernel adds up in, the same without padding, the one that is joined and
    what waits for others; and the subtrees of a shard on both sides of its largest one,
    one for each level.
    """
    return 6 + 2 * max(1, n_leaves - 1).bit_length()


def shard_bounds(n_leaves: int, n_shards: int) -> list[int]:
    """Cut leaves into at most n_shards runs of as equal a length as can be."""
    n_shards = max(1, min(n_shards, n_leaves))
    return [n_leaves * i // n_shards for i in range(n_shards + 1)]


def _insert(partial: Partial, level: int, index: int, value: Addable) -> None:
    """Put a subtree's sum in, joined with its sibling as often as there is one."""
    while (sibling := partial.pop((level, index ^ 1), None)) is not None:
        value = sibling + value if index & 1 else value + sibling
        level, index = level + 1, index >> 1
    partial[level, index] = value


def map_shard(function: LeafFunction, message: Any, shard: Shard) -> Partial:
    """Values of the leaves of a shard, as its whole subtrees' sums."""
    with single_threaded_blas():
        return _map_shard(function, message, shard)


def _map_shard(function: LeafFunction, message: Any, shard: Shard) -> Partial:
    partial: Partial = {}
    for leaf, blocks in shard.leaves():
        _insert(partial, 0, leaf, function(message, blocks))
    return partial


def merge(partials: Iterable[Partial]) -> Partial:
    """Join the subtrees of several shards."""
    merged: Partial = {}
    for partial in partials:
        for (level, index), value in partial.items():
            _insert(merged, level, index, value)
    return merged


def total(partials: Iterable[Partial]) -> Addable:
    """The sum over all leaves, from partials that cover each leaf once."""
    # What is left are the subtrees of the number of leaves' binary digits, so the
    # last one, the smallest, joins its left neighbour first.
    left_to_right = sorted(merge(partials).items(), key=lambda item: -item[0][0])
    *others, (_, value) = left_to_right
    for _, left in reversed(others):
        value = left + value
    return value


class Shards(ABC):
    """A data set, cut into shards: the one thing a pass is run on."""

    @property
    @abstractmethod
    def sums_bytes(self) -> float:
        """Bytes that the sums of a leaf should take, at most.

        Runs that take more train in turns, each of which reads the data. It depends on
        neither threads nor workers, as the runs that share a pass may share bits.
        """

    @property
    @abstractmethod
    def is_fixed(self) -> bool:
        """Whether each pass is bound to read the same rows, so that none need ask."""

    @abstractmethod
    def reduce(self, function: LeafFunction, message: Any) -> Any:
        """Sum of the function's values over all leaves, in the fixed tree's order."""


@final
class ThreadShards(Shards):
    """Shards in this process's memory, run on its own threads.

    Parameters
    ----------
    shards : sequence of Shard
    n_threads : int
    is_fixed : bool
        Whether no other process can change the memory.
    """

    def __init__(
        self, shards: Sequence[Shard], n_threads: int, *, is_fixed: bool = False
    ) -> None:
        self._shards, self._is_fixed = shards, is_fixed
        self._n_threads = min(n_threads, len(shards))

    @property
    def sums_bytes(self) -> float:
        """To read memory again costs next to nothing."""
        return _SUMS_IN_MEMORY

    @property
    def is_fixed(self) -> bool:
        return self._is_fixed

    def reduce(self, function: LeafFunction, message: Any) -> Any:
        with single_threaded_blas():
            if self._n_threads == 1:
                return total(_map_shard(function, message, s) for s in self._shards)
            with ThreadPoolExecutor(self._n_threads) as pool:
                tasks = {
                    pool.submit(map_shard, function, message, s) for s in self._shards
                }
                try:
                    return total(_as_they_end(tasks))
                finally:
                    # After an error or an interrupt, what has not begun need not.
                    pool.shutdown(wait=True, cancel_futures=True)


def _as_they_end(tasks: set[Future[Partial]]) -> Iterator[Partial]:
    """What tasks return; each is let go once it is passed on, as it may be large."""
    while tasks:
        ended, tasks = wait(tasks, return_when=FIRST_COMPLETED)
        while ended:
            yield ended.pop().result()


@final
class DaskShards(Shards):
    """Persisted shards, run wherever Dask's scheduler put them, by that scheduler.

    Parameters
    ----------
    cut : callable
        Cuts the data into persisted shards; after the first time, only if the cluster
        has grown so much that there are too few, and else returns None.
    block_bytes : float or None
        Size of the largest block, for messages.
    n_leaves : int
        In all shards.
    """

    def __init__(
        self,
        cut: Callable[[], Sequence[Delayed] | None],
        block_bytes: float | None = None,
        n_leaves: int = MAX_LEAVES,
    ) -> None:
        self._cut = cut
        self._most_sums = most_sums(n_leaves)
        self._scheduler = current_scheduler()
        with by_scheduler(self._scheduler):
            self._shards: Sequence[Delayed] = cut() or ()
        self._block_bytes = block_bytes

    @property
    def sums_bytes(self) -> float:
        return config.size("sums-memory") / self._most_sums

    @property
    def is_fixed(self) -> bool:
        """A graph may draw its rows anew each time."""
        return False

    def reduce(self, function: LeafFunction, message: Any) -> Any:
        """Sum of the function's values over all leaves.

        Where the workers of a task died again and again, what the others made is kept,
        and the pass goes on as long as more of it gets done each time.

        Raises
        ------
        ClusterError
            If the workers or the scheduler are gone, or the workers die of the data.
        """
        with by_scheduler(self._scheduler):
            return self._reduce(function, message)

    def _reduce(self, function: LeafFunction, message: Any) -> Any:
        self._shards = self._cut() or self._shards
        run = delayed(map_shard, pure=False, traverse=False)
        partials: list[Delayed | None] = [None] * len(self._shards)
        done: set[int] = set()
        sums_bytes = getattr(message, "sums_bytes", 0)
        # Each that waits for others to be merged with is held.
        fan_in = 2 if sums_bytes > _SMALL else _FAN_IN
        retries = most = config.count("pass-retries")
        while True:
            # One node holds the message: each worker fetches it once, not once a task.
            # New keys each time: Dask counts deaths by key, and would give up sooner.
            sent = delayed(message, traverse=False, pure=False)
            held = hold(
                [
                    run(function, sent, shard) if partial is None else partial
                    for partial, shard in zip(partials, self._shards, strict=True)
                ]
            )
            try:
                return compute(_merged(held, fan_in))
            except KilledWorker as error:
                partials = [work if is_finished(work) else None for work in held]
                now_done = {i for i, work in enumerate(partials) if work is not None}
                retries = most if now_done - done else retries - 1
                if retries < 0:
                    held_bytes = self._most_sums * sums_bytes
                    raise explain(error, self._block_bytes, held_bytes) from error
                done |= now_done
            finally:
                drop(held)
            # Shards that were lost too often count as failed: they are built anew.
            revive(self._shards)


def _merged(partials: Sequence[Delayed], fan_in: int) -> Delayed:
    """The total of partials, merged in a tree."""
    while len(partials) > fan_in:
        partials = [
            delayed(merge, pure=False)(list(partials[i : i + fan_in]))
            for i in range(0, len(partials), fan_in)
        ]
    whole: Delayed = delayed(total, pure=False)(list(partials))
    return whole
