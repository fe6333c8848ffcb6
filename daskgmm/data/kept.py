"""Blocks that stay in memory from pass to pass, as far as they fit.

They are what was read, so no bit depends on whether they are there. What is kept is
shared out in each process: it makes way as soon as others need the memory, and it is
never pickled, so Dask neither spills nor moves it.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace
from time import monotonic
from typing import Any, Final, final

import dask
import numpy as np
import psutil

from daskgmm.data.block import Block
from daskgmm.data.parquet_reader import Stream
from daskgmm.execution.forking import after_fork

_MEASURED_FOR: Final = 0.05
"""Seconds for which what is free counts as known, or so many bytes kept since:"""
_MEASURED_BYTES: Final = 32_000_000
_SLACK: Final = 1.1
"""How much more than its share may be kept before some of it goes."""


@final
class Kept:
    """The first blocks of a shard, kept as they were read.

    Parameters
    ----------
    most : float
        What all shards of a process may keep: a share up to 1 of what would be free
        without it, or a number of bytes.

    Attributes
    ----------
    n_bytes : int
        What its blocks take.
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self._blocks: list[tuple[Block, int]] = []
        self.n_bytes = 0
        with _memory.lock:
            _memory.holders.add(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Elsewhere, nothing is kept yet."""
        return Kept, (self._most,)

    def trimmed(self) -> Sequence[Block]:
        """What is kept; less than before where memory has become scarce."""
        with _memory.lock:
            while self._blocks and not _memory.has_room(0, self._most, _SLACK):
                self._drop_from(len(self._blocks) - 1)
                _memory.measure_anew()
            return [block for block, _ in self._blocks]

    def offered(self, number: int, block: Block) -> Block:
        """A block that was read, number so many of the shard; kept if it is the next.

        Streams that are kept are read in one piece.
        """
        n_bytes = _bytes_of(block)
        with _memory.lock:
            if number != len(self._blocks):
                return block
            if not _memory.has_room(n_bytes, self._most):
                return block
            self._blocks.append((block, n_bytes))
            self.n_bytes += n_bytes
        if not isinstance(block.rows, Stream):
            return block
        try:
            block = replace(block, rows=block.rows.array())
        except BaseException:
            with _memory.lock:
                self._drop_from(number)
            raise
        with _memory.lock:
            if number < len(self._blocks):
                self._blocks[number] = (block, n_bytes)
        return block

    def _drop_from(self, number: int) -> None:
        self.n_bytes -= sum(n_bytes for _, n_bytes in self._blocks[number:])
        del self._blocks[number:]


def _bytes_of(block: Block) -> int:
    """What a block keeps alive: all of an array, where it is a part of one."""
    rows = block.rows
    n_bytes = rows.n_bytes if isinstance(rows, Stream) else _held_by(rows)
    return n_bytes + (0 if block.weights is None else _held_by(block.weights))


def _held_by(array: np.ndarray[Any, Any]) -> int:
    base: Any = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    return int(base.nbytes)


@final
class _Memory:
    """What all shards of this process keep, and what they may."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.holders: weakref.WeakSet[Kept] = weakref.WeakSet()
        self._measured_at = -1.0
        self._free = 0.0
        self._kept_then = 0

    def measure_anew(self) -> None:
        """Forget what was free."""
        self._measured_at = -1.0

    def has_room(self, n_bytes: int, most: float, slack: float = 1.0) -> bool:
        """Whether so many bytes more may be kept, with what is free now."""
        if most == 0.0:
            return False
        kept = sum(holder.n_bytes for holder in self.holders)
        if most > 1.0:
            return kept + n_bytes <= most
        is_old = monotonic() - self._measured_at > _MEASURED_FOR
        if is_old or abs(kept - self._kept_then) > _MEASURED_BYTES:
            self._free, self._kept_then = _free_memory(), kept
            self._measured_at = monotonic()
        # What was free then is shared by what was kept then and has been since.
        total = self._free + self._kept_then
        return kept + n_bytes <= slack * most * total


_memory: Final = _Memory()


def _forget() -> None:
    _memory.lock = threading.RLock()  # another thread may have held it


after_fork(_forget)


def _free_memory() -> float:
    """Bytes that this process may still take, before others suffer from it."""
    limit, used = _limit_of_worker(), psutil.Process().memory_info().rss
    if limit is not None:
        # From there on Dask writes to disk what its workers hold.
        spill = dask.config.get("distributed.worker.memory.spill") or 1.0
        return float(spill * limit - used)
    from distributed.system import MEMORY_LIMIT

    return float(min(psutil.virtual_memory().available, MEMORY_LIMIT - used))


def _limit_of_worker() -> int | None:
    """The limit of the worker that this thread works for, 0 if it has none.

    Workers without a limit do not know of each other: they keep nothing. None where
    this is no worker.
    """
    distributed = sys.modules.get("distributed")
    try:
        worker = None if distributed is None else distributed.get_worker()
    except (AttributeError, ValueError):  # half loaded, or no worker
        return None
    return None if worker is None else int(worker.memory_manager.memory_limit or 0)
