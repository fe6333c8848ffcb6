"""Rows drawn from all rows: what starts are found from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self, final

import numpy as np
from numpy.typing import NDArray

from daskgmm.data.block import Block
from daskgmm.em.scan import Survey
from daskgmm.execution.runners import Shards

Array = NDArray[np.float64]


@final
@dataclass(frozen=True, slots=True)
class Drawn:
    """Rows taken from blocks, in order: a monoid under ``+``."""

    x: tuple[NDArray[Any], ...]
    weights: tuple[Array, ...]

    def __add__(self, other: Self) -> Drawn:
        return Drawn(self.x + other.x, self.weights + other.weights)


@final
@dataclass(frozen=True, slots=True)
class Subsample:
    """Rows for seeding.

    Attributes
    ----------
    x : ndarray of shape (n, d), float32 or float64
    weights : ndarray of shape (n,) or None
        Above zero and one on average; None if they are all the same.
    """

    x: NDArray[Any]
    weights: Array | None

    def thinned(self, size: int) -> Subsample:
        """No more than so many of its rows, evenly over all."""
        every = -(-len(self.x) // size)
        if every <= 1:
            return self
        weights = None if self.weights is None else self.weights[::every]
        return Subsample(np.ascontiguousarray(self.x[::every]), weights)


def subsample(
    shards: Shards, of: Survey, size: int, random_state: np.random.RandomState
) -> Subsample:
    """Draw rows uniformly, or all rows with weight if there are no more than `size`.

    Rows of unequal weight are drawn in proportion to it, with replacement: what a
    uniform draw from repeated rows comes to. The draw depends on the number of rows
    (or their weights) and the random state alone, and takes memory for the drawn
    rows only.
    """
    if of.n_weighted <= size:
        return _as_subsample(shards.reduce(_take_all, None), of.equal_weights)
    if of.equal_weights:
        targets = _draw_numbers(of.n_weighted, size, random_state).astype(np.float64)
        measures = [float(block.n_weighted) for block in of.blocks]
    else:
        targets = np.sort(random_state.uniform(size=size)) * of.weight
        measures = [block.weight for block in of.blocks]
    starts = np.concatenate([[0.0], np.cumsum(measures)])
    message = _Targets(starts, targets, of.equal_weights)
    return _as_subsample(shards.reduce(_take_drawn, message), of.equal_weights)


def _draw_numbers(
    n_rows: int, size: int, random_state: np.random.RandomState
) -> NDArray[np.int64]:
    # Here, not above: workers load this module, and draw nothing.
    from sklearn.utils.random import sample_without_replacement

    # Of scikit-learn's methods, 'tracking_selection' needs no memory for the rows
    # that are not drawn but slows down as they run out, 'pool' needs it.
    method = "tracking_selection" if size < n_rows // 2 else "pool"
    numbers: NDArray[np.int64] = sample_without_replacement(
        n_rows, size, method=method, random_state=random_state
    )
    return np.sort(numbers)


@final
@dataclass(frozen=True, slots=True)
class _Targets:
    """Points to find on the line where each block has a stretch of its own.

    Its length is the block's number of rows with weight, or their weight.
    """

    starts: Array
    targets: Array
    by_number: bool


def _take_all(_message: None, blocks: Iterator[Block]) -> Drawn:
    taken = []
    for block in blocks:
        if block.weights is None:
            taken.append((block.x, np.ones(len(block.x))))
        else:
            positive = block.weights > 0
            taken.append((block.x[positive], block.weights[positive]))
    return _kept(taken)


def _take_drawn(message: _Targets, blocks: Iterator[Block]) -> Drawn:
    return _kept(_take_from(message, block) for block in blocks)


def _take_from(message: _Targets, block: Block) -> tuple[NDArray[Any], Array]:
    """Rows by number: copies, so that no block stays in memory for a few of them."""
    start, end = message.starts[block.index : block.index + 2]
    first, last = np.searchsorted(message.targets, [start, end])
    targets = message.targets[first:last] - start
    if block.weights is None:
        return block.x[targets.astype(np.intp)], np.ones(len(targets))
    positive = np.flatnonzero(block.weights > 0)
    weights = block.weights[positive]
    ends = np.cumsum(np.ones_like(weights) if message.by_number else weights)
    places = np.searchsorted(ends, targets, side="right")
    # Rounding may put a point behind the block's last row.
    drawn, times = np.unique(np.minimum(places, len(positive) - 1), return_counts=True)
    return block.x[positive[drawn]], times.astype(np.float64)


def _kept(taken: Iterable[tuple[NDArray[Any], Array]]) -> Drawn:
    """What was taken, in C order, as sums over it depend on that; nothing left out."""
    kept = [(np.ascontiguousarray(x), weights) for x, weights in taken if len(x)]
    return Drawn(tuple(x for x, _ in kept), tuple(weights for _, weights in kept))


def _as_subsample(rows: Drawn, equal_weights: bool) -> Subsample:
    # What is one piece is not copied once more.
    x = rows.x[0] if len(rows.x) == 1 else np.concatenate(rows.x)
    if equal_weights:
        return Subsample(x, None)
    weights = np.concatenate(rows.weights)
    return Subsample(x, weights / weights.mean())
