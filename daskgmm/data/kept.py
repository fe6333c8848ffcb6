"""Blocks that stay in memory from pass to pass, as far as they fit.

They are what was read, so no bit depends on whether they are there. What is kept is
shared out in each process: it makes way as soon as others need the memory, and it is
never pickled, so Dask neither spills nor moves it.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import floor
from time import monotonic
from typing import Any, Final, final

import dask
import numpy as np
import psutil

from daskgmm.data.block import Block
from daskgmm.data.parquet_reader import Stream
from daskgmm.execution.forking import after_fork
from daskgmm.kernel.layout import Part
from daskgmm.mixtures.e_step import InPieces, pieces_of, puts_together

_MEASURED_FOR: Final = 0.05
"""Seconds for which what is free counts as known, or so many bytes kept since:"""
_MEASURED_BYTES: Final = 32_000_000
_SLACK: Final = 1.1
"""How much more than its share may be kept before some of it goes."""


@final
class Kept:
    """Some blocks of a shard, kept as they were read.

    They are spread over the data, so that the others can be read while these are worked
    on, and so that all shards have as many.

    Parameters
    ----------
    most : float
        What all shards of a process may keep: a share up to 1 of what would be free
        without it, or a number of bytes.
    places : sequence of int
        Of the shard's blocks, counted over all of the data. Blocks of one place are
        kept or not together: those of them that are not cannot be read without it.

    Attributes
    ----------
    n_bytes : int
        What its blocks take.
    n_blocks : int
        All of the shard's, kept or not.
    n_seen, bytes_seen : int
        Blocks that were offered so far, and their bytes.
    """

    def __init__(self, most: float, places: Sequence[int]) -> None:
        self._most, self._places = most, places
        self._blocks: dict[int, tuple[Block, int]] = {}
        self.n_bytes, self.n_blocks = 0, len(places)
        self.n_seen = self.bytes_seen = 0
        if most > 0.0:
            with _memory.lock:
                _memory.holders.add(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Elsewhere, nothing is kept yet."""
        return Kept, (self._most, self._places)

    def trimmed(self) -> Mapping[int, Block]:
        """What is kept, by number; less than before where memory has become scarce."""
        with _memory.lock:
            if self._blocks and not _memory.has_room(0, self._most, _SLACK):
                part = _memory.part(self._most)
                self._drop([i for i in self._blocks if not self._is_due(i, part)])
            while self._blocks and not _memory.has_room(0, self._most, _SLACK):
                self._drop([max(self._blocks)])
            return {number: block for number, (block, _) in self._blocks.items()}

    def offered(self, number: int, block: Block) -> Block:
        """A block that was read, number so many of the shard; kept if it may be.

        Streams that are kept are read in one piece.
        """
        n_bytes = _bytes_of(block)
        with _memory.lock:
            self.n_seen += 1
            self.bytes_seen += n_bytes
            if number in self._blocks or not _memory.has_room(n_bytes, self._most):
                return block
            if not self._is_due(number, _memory.part(self._most)):
                return block
            self._blocks[number] = block, n_bytes
            self.n_bytes += n_bytes
        if not isinstance(block.rows, Stream):
            return block
        try:
            block = replace(block, rows=block.rows.array())
        except BaseException:
            with _memory.lock:
                self._drop([number])
            raise
        with _memory.lock:
            if number in self._blocks:
                self._blocks[number] = block, n_bytes
        return block

    def _is_due(self, number: int, part: float) -> bool:
        """Whether a block is kept if this part of all blocks is."""
        place = self._places[number]
        return part >= 1.0 or floor((place + 1) * part) > floor(place * part)

    def _drop(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            _, n_bytes = self._blocks.pop(number, (None, 0))
            self.n_bytes -= n_bytes
        _memory.measure_anew()


@final
class Pieces:
    """What E-steps make of a shard's blocks that are in memory: small ones together.

    Made once, where there is room for it, as to copy scattered blocks can take as long
    as to work on them.

    Parameters
    ----------
    most : float
        See `Kept`.

    Attributes
    ----------
    n_bytes : int
        What was copied takes.
    """

    n_blocks = n_seen = bytes_seen = 0  # nothing that others should wait for

    def __init__(self, most: float) -> None:
        self._most = most
        self._of_leaf: dict[int, Sequence[Part]] = {}
        self.n_bytes = 0
        if most > 0.0:
            with _memory.lock:
                _memory.holders.add(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Elsewhere, nothing is kept yet."""
        return Pieces, (self._most,)

    def of(self, leaf: int, blocks: Sequence[Block]) -> Iterator[Block]:
        """The blocks of a leaf, with their pieces if there is room for those."""
        if leaf not in self._of_leaf and puts_together(blocks):
            n_bytes = sum(block.n_bytes for block in blocks)
            with _memory.lock:
                if not _memory.has_room(n_bytes, self._most):
                    return iter(blocks)
                self.n_bytes += n_bytes
            self._of_leaf[leaf] = tuple(pieces_of(iter(blocks)))
        pieces = self._of_leaf.get(leaf)
        return iter(blocks) if pieces is None else InPieces(blocks, pieces)

    def trim(self) -> None:
        """Let all go if memory has become scarce."""
        with _memory.lock:
            if self._of_leaf and not _memory.has_room(0, self._most, _SLACK):
                self._of_leaf.clear()
                self.n_bytes = 0
                _memory.measure_anew()


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
        self.holders: weakref.WeakSet[Kept | Pieces] = weakref.WeakSet()
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
        return kept + n_bytes <= self._room(most, slack, kept)

    def part(self, most: float) -> float:
        """The part of all blocks that may be kept, if all are as those seen so far."""
        kept = sum(holder.n_bytes for holder in self.holders)
        n_seen = sum(holder.n_seen for holder in self.holders)
        bytes_seen = sum(holder.bytes_seen for holder in self.holders)
        wanted = bytes_seen * sum(holder.n_blocks for holder in self.holders)
        return n_seen * self._room(most, 1.0, kept) / wanted if wanted else 1.0

    def _room(self, most: float, slack: float, kept: int) -> float:
        """Bytes that may be kept in all, where so many are, with what is free now."""
        if most > 1.0:
            return most
        is_old = monotonic() - self._measured_at > _MEASURED_FOR
        if is_old or abs(kept - self._kept_then) > _MEASURED_BYTES:
            self._free, self._kept_then = _free_memory(), kept
            self._measured_at = monotonic()
        # What was free then is shared by what was kept then and has been since.
        return slack * most * (self._free + self._kept_then)


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
