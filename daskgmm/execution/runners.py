"""A data set as shards, and what runs a pass over them: threads, or Dask."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from threading import Lock
from typing import Any, Final, final

from dask.delayed import Delayed, delayed

from daskgmm import config, steps
from daskgmm.execution.cluster import (
    by_scheduler,
    compute,
    current_scheduler,
    drop,
    explain,
    hold,
    is_finished,
    killed_worker,
    revive,
)
from daskgmm.execution.threads import single_threaded_blas
from daskgmm.execution.tree import (
    MAX_LEAVES,
    LeafFunction,
    Partial,
    Shard,
    map_leaves,
    map_shard,
    merge,
    most_sums,
    total,
)

_SUMS_IN_MEMORY: Final = 8e6
_FAN_IN: Final = 8
"""Partials that one task of Dask's merges, where they are small."""
_SMALL: Final = 1e6
"""Bytes of sums below which it does not matter how many are held."""


class Shards(ABC):
    """A data set, cut into shards: the one thing a pass is run on.

    Attributes
    ----------
    n_read : int
        Bytes that were read so far, as they are in memory.
    """

    n_read = 0

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

    def reduce(self, function: LeafFunction, message: Any) -> Any:
        """Sum of the function's values over all leaves, in the fixed tree's order.

        Raises
        ------
        ClusterError
            If the workers or the scheduler are gone, or the workers die of the data.
        """
        value, n_read = self._reduce(function, message)
        self.n_read += n_read
        return value

    @abstractmethod
    def _reduce(self, function: LeafFunction, message: Any) -> tuple[Any, int]:
        """The same, and the bytes that were read for it."""


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
        self._n_others = min(n_threads, len(shards)) - 1
        # They stay until the shards go: to start them costs as much as a small pass.
        self._others = (
            ThreadPoolExecutor(self._n_others) if self._n_others > 0 else None
        )

    @property
    def sums_bytes(self) -> float:
        """To read memory again costs next to nothing."""
        return _SUMS_IN_MEMORY

    @property
    def is_fixed(self) -> bool:
        return self._is_fixed

    def _reduce(self, function: LeafFunction, message: Any) -> tuple[Any, int]:
        work = _SharedWork(function, message, self._shards)
        others: list[Future[None]] = []
        if self._others is not None:
            run, each = self._others.submit, range(self._n_others)
            others = [run(copy_context().run, work.take) for _ in each]
        try:
            work.take(tells=True)
            for other in others:
                if not other.cancel():  # else it has not begun, and need not
                    other.result()
        finally:
            work.coming.clear()
            wait([other for other in others if not other.cancel()])
        work.tell()
        return total([work.joined])


@final
class _SharedWork:
    """A pass over shards, which threads take one by one, and add up as they end.

    A task for each shard would take as long as a small one.
    """

    def __init__(
        self, function: LeafFunction, message: Any, shards: Sequence[Shard]
    ) -> None:
        self._function, self._message = function, message
        self.coming, self.joined = deque(shards), Partial()
        self._lock = Lock()
        self._n_shards, self._n_done, self._n_told = len(shards), 0, 0

    def take(self, *, tells: bool = False) -> None:
        """Work on shards until there are none, which after an error is at once."""
        with single_threaded_blas():
            while (shard := self._next()) is not None:
                try:
                    self._add(shard)
                except BaseException:
                    self.coming.clear()
                    raise
                if tells:
                    self.tell()

    def _next(self) -> Shard | None:
        try:
            return self.coming.popleft()
        except IndexError:
            return None

    def _add(self, shard: Shard) -> None:
        partial = map_leaves(self._function, self._message, shard)
        with self._lock:
            self.joined.join(partial)
            self._n_done += 1

    def tell(self) -> None:
        """Say of each that is done, if that was not said."""
        while self._n_told < self._n_done:
            self._n_told += 1
            steps.advance(self._n_told, self._n_shards)


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

    def _reduce(self, function: LeafFunction, message: Any) -> tuple[Any, int]:
        """The same, by Dask's scheduler.

        Where the workers of a task died again and again, what the others made is kept,
        and the pass goes on as long as more of it gets done each time.
        """
        with by_scheduler(self._scheduler):
            return self._reduce_there(function, message)

    def _reduce_there(self, function: LeafFunction, message: Any) -> tuple[Any, int]:
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
            # The names differ by pass alone, so that Dask's order is that of the last.
            name = f"{map_shard.__name__}-{uuid.uuid4().hex}"
            held = hold(
                [
                    run(function, sent, shard, dask_key_name=f"{name}-{i:06d}")
                    if partial is None
                    else partial
                    for i, (partial, shard) in enumerate(
                        zip(partials, self._shards, strict=True)
                    )
                ]
            )
            try:
                value, n_read = compute(_merged(held, fan_in), held)
                return value, n_read
            except Exception as error:
                if (killed := killed_worker(error)) is None:
                    raise
                partials = [work if is_finished(work) else None for work in held]
                now_done = {i for i, work in enumerate(partials) if work is not None}
                retries = most if now_done - done else retries - 1
                if retries < 0:
                    held_bytes = self._most_sums * sums_bytes
                    raise explain(killed, self._block_bytes, held_bytes) from error
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
