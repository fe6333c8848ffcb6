"""Quantiles of the rows' log densities, exactly, without a number for each row.

A float64 is read as a whole number that is in the same order. A pass counts how many
rows begin with which bits of it: these counts can be added up, and say exactly between
which numbers a rank lies. The rows of the few prefixes that are asked for are counted
again by more bits, until they are few enough to be collected.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Self, final

import numpy as np
from numpy.typing import NDArray

from daskgmm import steps
from daskgmm.data.block import Block
from daskgmm.em.predict import Question
from daskgmm.em.scan import check_finite
from daskgmm.execution.runners import Shards

Array = NDArray[np.float64]
Keys = NDArray[np.uint64]

_BITS: Final = (22, 42, 64)
"""Of a number's bits, those that are counted by: its sign, exponent, and ten digits;
then as many again as numbers differ by in part of a millionth, then all."""
_MOST: Final = 2**22
"""Rows that are collected, at the most."""


class Bracket(NamedTuple):
    """Between what a quantile lies, after one pass.

    Attributes
    ----------
    low, high : float
        It is from the one to the other.
    rank_error : float
        Rows, by weight, that are: by so many ranks any of these may be off, at most.
    """

    low: float
    high: float
    rank_error: float


@final
@dataclass(frozen=True, slots=True)
class _Counts:
    """Rows, by weight, for each key, in order: a monoid under ``+``."""

    keys: Keys
    weights: Array

    @classmethod
    def of(cls, keys: Keys, weights: Array) -> _Counts:
        found, places = np.unique(keys, return_inverse=True)
        sums = np.bincount(places, weights, len(found))
        return cls(found, sums.astype(np.float64))

    def __add__(self, other: Self) -> _Counts:
        keys = np.concatenate([self.keys, other.keys])
        return _Counts.of(keys, np.concatenate([self.weights, other.weights]))


@final
@dataclass(frozen=True, slots=True)
class _Sent:
    """What a pass counts: rows whose keys begin with some bits, by more of them."""

    question: Question
    prefixes: Keys | None
    n_before: int
    n_bits: int


def _keys(numbers: Array) -> Keys:
    """Whole numbers in the same order: of those below zero all bits are turned."""
    bits = (numbers + 0.0).view(np.uint64)  # there is but one zero
    sign = np.uint64(1 << 63)
    return np.where(bits & sign, ~bits, bits | sign)


def _number(key: int) -> float:
    """The number of a key."""
    sign = 1 << 63
    bits = key & ~sign if key & sign else ~key & (2**64 - 1)
    return float(np.array(bits, dtype=np.uint64).view(np.float64))


def _beginning(keys: Keys, n_bits: int) -> Keys:
    return keys >> np.uint64(64 - n_bits)


def _count_leaf(sent: _Sent, blocks: Iterator[Block]) -> _Counts:
    total = _Counts(np.empty(0, dtype=np.uint64), np.empty(0))
    for block in blocks:
        check_finite(block)
        log_prob = np.empty(len(block.x))
        sent.question.into(block.x, log_prob)
        weights = np.ones(len(log_prob)) if block.weights is None else block.weights
        counted = weights > 0.0
        keys, weights = _keys(log_prob[counted]), weights[counted]
        if sent.prefixes is not None:
            among = np.isin(_beginning(keys, sent.n_before), sent.prefixes)
            keys, weights = keys[among], weights[among]
        total += _Counts.of(_beginning(keys, sent.n_bits), weights)
        del block  # before another one is read
    return total


@final
class Quantiles:
    """Quantiles of rows' log densities, by passes over them.

    Parameters
    ----------
    question : Question
        For "log_prob".
    shards : Shards
        Read once at first, and once or twice for `exact`.
    """

    def __init__(self, question: Question, shards: Shards) -> None:
        self._question, self._shards = question, shards
        self._first = self._counts(None, 0, _BITS[0])
        self.weight = float(self._first.weights.sum())

    def _counts(self, prefixes: Keys | None, n_before: int, n_bits: int) -> _Counts:
        steps.begin("looking for the quantile")
        sent = _Sent(self._question, prefixes, n_before, n_bits)
        counts: _Counts = self._shards.reduce(_count_leaf, sent)
        return counts

    def bracket(self, rank: float) -> Bracket:
        """Between what the number of a rank, from 0, lies, by the first pass alone.

        Of a rank between two rows it is between theirs.
        """
        keys, weights = self._first.keys, self._first.weights
        width = 1 << (64 - _BITS[0])
        first, last = (self._place(whole) for whole in (np.floor(rank), np.ceil(rank)))
        return Bracket(
            _number(int(keys[first]) * width),
            _number((int(keys[last]) + 1) * width - 1),
            float(weights[first : last + 1].sum()),
        )

    def _place(self, rank: float) -> int:
        """Number of the key that a rank has in the first pass."""
        place = _Place(rank, 0.0, None).narrowed(self._first, _BITS[0])
        assert place.key is not None
        return int(np.searchsorted(self._first.keys, np.uint64(place.key)))

    def interpolated(self, ranks: Array) -> Array:
        """Numbers of ranks from 0, linearly between those of whole ones."""
        lower, upper = np.floor(ranks), np.ceil(ranks)
        numbers = self.exact([*lower, *upper])
        low, high = np.split(numbers, 2)
        found: Array = low + (ranks - lower) * (high - low)
        return found

    def exact(self, ranks: Sequence[float]) -> Array:
        """The numbers of some ranks, from 0, by weight."""
        found = [_Place(rank, 0.0, None) for rank in ranks]
        counts, n_bits = self._first, _BITS[0]
        while True:
            found = [place.narrowed(counts, n_bits) for place in found]
            if n_bits == 64:
                return np.array([_number(place.key or 0) for place in found])
            prefixes = np.unique(np.array([place.key for place in found], np.uint64))
            n_rows = counts.weights[np.isin(counts.keys, prefixes)].sum()
            before = n_bits
            n_bits = 64 if n_rows <= _MOST else _BITS[_BITS.index(n_bits) + 1]
            counts = self._counts(prefixes, before, n_bits)


@final
@dataclass(frozen=True, slots=True)
class _Place:
    """Where a rank is: the first bits of its number, and what is below, by weight."""

    rank: float
    below: float
    key: int | None
    n_bits: int = 0

    def narrowed(self, counts: _Counts, n_bits: int) -> _Place:
        """The same by more bits, from counts of at least those that begin alike."""
        keys, weights = counts.keys, counts.weights
        if self.key is not None:
            its = keys >> np.uint64(n_bits - self.n_bits) == np.uint64(self.key)
            keys, weights = keys[its], weights[its]
        ends = self.below + np.cumsum(weights)
        at = min(int(np.searchsorted(ends, self.rank, side="right")), len(ends) - 1)
        return _Place(self.rank, float(ends[at] - weights[at]), int(keys[at]), n_bits)
