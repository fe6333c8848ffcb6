"""Rows that are held out: never trained on, and scored in the same passes.

Which rows these are follows from their numbers alone, so they are the same in each
pass, on any cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self, final

import numpy as np
from numpy.typing import NDArray

from daskgmm.data.block import Block
from daskgmm.execution.runners import Shards
from daskgmm.execution.tree import Addable, LeafFunction
from daskgmm.mixtures.e_step import Adding, FlatSums, Message, pieces_of

_AT_ONCE: Final = 2**20
"""Rows that are counted together."""


@final
@dataclass(frozen=True, slots=True)
class Split:
    """Which rows are held out.

    Attributes
    ----------
    starts : ndarray of int, shape (n_blocks + 1,)
        Number of the first row of each block, and how many there are in all.
    share : float
        How many of all rows are held out, about.
    """

    starts: NDArray[np.int64]
    share: float

    @classmethod
    def of(cls, lengths: Sequence[int], share: float) -> Split:
        """The split of blocks of so many rows."""
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return cls(starts.astype(np.int64), share)

    def held_out(self, first: int, last: int) -> NDArray[np.bool_]:
        """Whether each row from the first to the last is held out."""
        # SplitMix64 (Steele, Lea and Flood 2014): each number's bits are mixed so that
        # neighbours have nothing in common.
        mixed = np.arange(first + 1, last + 1, dtype=np.uint64)
        mixed *= np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed ^= mixed >> np.uint64(shift)
            mixed *= np.uint64(factor)
        mixed ^= mixed >> np.uint64(31)
        uniform = (mixed >> np.uint64(11)) * 2.0**-53
        found: NDArray[np.bool_] = uniform < self.share
        return found

    def trained_on(self) -> list[int]:
        """Rows of each block that are not held out."""
        lengths = []
        for start, end in zip(self.starts[:-1], self.starts[1:], strict=True):
            parts = range(int(start), int(end), _AT_ONCE)
            n_held_out = sum(
                int(self.held_out(i, min(i + _AT_ONCE, int(end))).sum()) for i in parts
            )
            lengths.append(int(end - start) - n_held_out)
        return lengths

    def parts(self, block: Block) -> tuple[Block, Block]:
        """The rows of a block to train on, and those that are held out."""
        start = int(self.starts[block.index])
        x = block.x
        held_out = self.held_out(start, start + len(x))
        return _rows_of(block, x, ~held_out), _rows_of(block, x, held_out)


def _rows_of(block: Block, x: NDArray[Any], wanted: NDArray[np.bool_]) -> Block:
    places = np.flatnonzero(wanted)
    numbers = places if block.numbers is None else block.numbers[places]
    weights = None if block.weights is None else block.weights[places]
    return replace(block, rows=x[places], weights=weights, numbers=numbers)


@final
@dataclass(frozen=True, slots=True)
class _Sent:
    """What a pass over rows to train on, and over the rest, is sent."""

    split: Split
    function: LeafFunction
    message: Any
    rest: Message | None

    @property
    def sums_bytes(self) -> int:
        """As a `Message` has it."""
        its = int(getattr(self.message, "sums_bytes", 0))
        return its + (0 if self.rest is None else self.rest.sums_bytes)


@final
@dataclass(frozen=True, slots=True)
class _Both:
    """What such a pass gives: a monoid under ``+``."""

    value: Any
    rest: FlatSums | None

    def __add__(self, other: Self) -> _Both:
        if self.rest is None or other.rest is None:
            return _Both(self.value + other.value, None)
        return _Both(self.value + other.value, self.rest + other.rest)


def _both(sent: _Sent, blocks: Iterator[Block]) -> Addable:
    adding = None
    if sent.rest is not None:
        # Memory of its own: that of this thread is the function's.
        sizes = [its.padded_size for its in sent.rest.e_steps]
        adding = Adding(sent.rest, [np.zeros(size) for size in sizes])

    def trained_on() -> Iterator[Block]:
        for block in blocks:
            kept, held_out = sent.split.parts(block)
            if adding is not None:
                for x, weights in pieces_of(iter([held_out])):
                    adding.add(x, weights)
            yield kept
            del block, kept, held_out  # before another one is read

    value = sent.function(sent.message, trained_on())
    return _Both(value, None if adding is None else adding.collected())


@final
class HeldOut(Shards):
    """Shards of which a part of the rows is held out.

    Parameters
    ----------
    shards : Shards
    split : Split
    """

    def __init__(self, shards: Shards, split: Split) -> None:
        self._shards, self._split = shards, split
        self._asked: Message | None = None
        self.found: FlatSums | None = None
        """Sums over the rows held out, once they were asked for and read."""

    @property
    def sums_bytes(self) -> float:
        """As of all rows."""
        return self._shards.sums_bytes

    @property
    def is_fixed(self) -> bool:
        """As of all rows."""
        return self._shards.is_fixed

    def ask_rest(self, message: Message) -> None:
        """Have the next read evaluate mixtures on the rows held out, too."""
        self._asked, self.found = message, None

    def _reduce(self, function: LeafFunction, message: Any) -> tuple[Any, int]:
        sent = _Sent(self._split, function, message, self._asked)
        before = self._shards.n_read
        both: _Both = self._shards.reduce(_both, sent)
        if self._asked is not None:
            self.found, self._asked = both.rest, None
        return both.value, self._shards.n_read - before
