"""Rows drawn from all rows: what starts are found from, and EM goes on on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, final

import numpy as np
from numpy.typing import NDArray

from daskgmm import steps
from daskgmm.data.block import Block
from daskgmm.em.scan import Survey, survey_leaf
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
    if of.n_weighted > size and not of.equal_weights:
        targets = np.sort(random_state.uniform(size=size)) * of.weight
        weights = [block.weight for block in of.blocks]
        message: _Targets | None = _Targets(_starts(weights), targets, False)
    else:
        message = _by_number([b.n_weighted for b in of.blocks], size, random_state)
    steps.begin("drawing the subsample")
    return _as_subsample(shards.reduce(_take, message), of.equal_weights)


def survey_and_draw(
    shards: Shards,
    lengths: Sequence[int],
    size: int,
    random_state: np.random.RandomState,
    *,
    digest: bool = False,
) -> tuple[Survey, Subsample | None]:
    """`survey` and `subsample` in one read, of blocks whose lengths are known.

    Parameters
    ----------
    shards : Shards
        Without weights.
    lengths : sequence of int
        Rows of each block. Where they turn out to be others, nothing is drawn, and the
        random state is as before.
    size, random_state
        As of `subsample`.
    digest : bool
        As of `survey`.

    Raises
    ------
    DataError
        As `survey`.
    """
    before = random_state.get_state(legacy=False) if sum(lengths) > size else None
    message = _ToDraw(digest, _by_number(lengths, size, random_state))
    steps.begin("counting rows, drawing the subsample")
    both: _Surveyed = shards.reduce(_survey_and_take, message)
    found = both.survey
    if not both.drawn.x or [block.n_rows for block in found.blocks] != [*lengths]:
        if before is not None:
            random_state.set_state(before)
        return found, None
    return found, _as_subsample(both.drawn, found.equal_weights)


def _by_number(
    lengths: Sequence[int], size: int, random_state: np.random.RandomState
) -> _Targets | None:
    """Rows to take of blocks of such lengths; None for all of them."""
    n_rows = sum(lengths)
    if n_rows <= size:
        return None
    targets = _draw_numbers(n_rows, size, random_state).astype(np.float64)
    return _Targets(_starts(lengths), targets, True)


def _starts(measures: Sequence[float]) -> Array:
    return np.concatenate([[0.0], np.cumsum(measures, dtype=np.float64)])


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

    def fits(self, block: Block) -> bool:
        """Whether a block without weights is as long as its stretch."""
        start, end = self.starts[block.index : block.index + 2]
        return bool(len(block.x) == end - start)


@final
@dataclass(frozen=True, slots=True)
class _ToDraw:
    """What a read is to take a survey, with digests or not, and draw."""

    digest: bool
    targets: _Targets | None


@final
@dataclass(frozen=True, slots=True)
class _Surveyed:
    """What such a read gives: a monoid under ``+``."""

    survey: Survey
    drawn: Drawn

    def __add__(self, other: Self) -> _Surveyed:
        return _Surveyed(self.survey + other.survey, self.drawn + other.drawn)


def _survey_and_take(message: _ToDraw, blocks: Iterator[Block]) -> _Surveyed:
    taken = []

    def then_taken_from() -> Iterator[Block]:
        for block in blocks:
            yield block  # rows that are in order are taken
            # Of blocks that are not as was said, nothing is drawn in the end.
            if message.targets is None or message.targets.fits(block):
                taken.append(_taken(message.targets, block))
            del block  # before another one is read

    found = survey_leaf(message.digest, then_taken_from())
    return _Surveyed(found, _kept(taken))


def _take(message: _Targets | None, blocks: Iterator[Block]) -> Drawn:
    return _kept(_taken(message, block) for block in blocks)


def _taken(targets: _Targets | None, block: Block) -> tuple[NDArray[Any], Array]:
    """What is drawn of a block; without targets, all rows with weight."""
    if targets is not None:
        return _take_from(targets, block)
    if block.weights is None:
        return block.x, np.ones(len(block.x))
    positive = block.weights > 0
    return block.x[positive], block.weights[positive]


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
    x = _one_behind_the_other(rows.x)
    if equal_weights:
        return Subsample(x, None)
    weights = np.concatenate(rows.weights)
    return Subsample(x, weights / weights.mean())


def _one_behind_the_other(pieces: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The rows of all pieces; all rows of an array in memory are not copied."""
    whole = pieces[0] if pieces[0].base is None else pieces[0].base
    if type(whole) is np.ndarray and whole.size == sum(x.size for x in pieces):
        nexts = np.cumsum([0, *(x.nbytes for x in pieces)])
        places = [_place(x) - _place(whole) for x in pieces]
        if whole.flags.c_contiguous and places == nexts[:-1].tolist():
            return whole.view(pieces[0].dtype).reshape(-1, pieces[0].shape[1])
    return np.concatenate(pieces)


def _place(x: NDArray[Any]) -> int:
    address: int = x.__array_interface__["data"][0]
    return address
