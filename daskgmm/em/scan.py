"""The passes before EM: counts, checks, and rows drawn for seeding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self, final

import numpy as np
from numpy.typing import NDArray

from daskgmm.data.block import Block
from daskgmm.errors import DataError
from daskgmm.execution.runners import Shards
from daskgmm.kernel import passes
from daskgmm.kernel.layout import as_rows

Array = NDArray[np.float64]


@final
@dataclass(frozen=True, slots=True)
class BlockSummary:
    """Counts of one block: rows, rows with weight, their weight, and rows skipped.

    The digests of what is in it are empty unless they were asked for.
    """

    index: int
    n_rows: int
    n_weighted: int
    weight: float
    n_skipped: int = 0
    digest: bytes = b""
    weights_digest: bytes = b""


@final
@dataclass(frozen=True, slots=True)
class Survey:
    """What one pass over the data says of it: a monoid under ``+``.

    Attributes
    ----------
    blocks : tuple of BlockSummary
        In order.
    lightest, heaviest : float
        The smallest and largest weight above zero.
    """

    blocks: tuple[BlockSummary, ...]
    lightest: float
    heaviest: float

    def __add__(self, other: Self) -> Survey:
        return Survey(
            self.blocks + other.blocks,
            min(self.lightest, other.lightest),
            max(self.heaviest, other.heaviest),
        )

    @property
    def n_rows(self) -> int:
        """Rows, those without weight included."""
        return sum(block.n_rows for block in self.blocks)

    @property
    def n_weighted(self) -> int:
        """Rows with weight: the others are as good as absent."""
        return sum(block.n_weighted for block in self.blocks)

    @property
    def n_skipped(self) -> int:
        """Rows with weight that were left out, as they have NaN."""
        return sum(block.n_skipped for block in self.blocks)

    @property
    def weight(self) -> float:
        """Sum of the weights."""
        return sum(block.weight for block in self.blocks)

    @property
    def equal_weights(self) -> bool:
        """Whether all rows with weight have the same."""
        return self.lightest == self.heaviest


def survey(shards: Shards, *, digest: bool = False) -> Survey:
    """Read the data once.

    Parameters
    ----------
    shards : Shards
    digest : bool
        Whether to take a digest of each block, by which other data are told apart.

    Raises
    ------
    DataError
        Naming the block, row and column of a NaN or infinity, or a negative weight.
    """
    result: Survey = shards.reduce(_survey_leaf, digest)
    return result


def _survey_leaf(digest: bool, blocks: Iterator[Block]) -> Survey:
    summaries = []
    lightest, heaviest = np.inf, -np.inf
    for block in blocks:
        weights = block.weights
        if weights is None:
            n_weighted, weight = len(block.x), float(len(block.x))
            lightest, heaviest = min(lightest, 1.0), max(heaviest, 1.0)
        else:
            _check_weights(block)
            positive = weights[weights > 0]
            n_weighted, weight = len(positive), float(positive.sum())
            if n_weighted:
                lightest = min(lightest, float(positive.min()))
                heaviest = max(heaviest, float(positive.max()))
        check_finite(block)
        digests = (digest_of(block.x), digest_of(weights)) if digest else ()
        summaries.append(
            BlockSummary(
                block.index,
                len(block.x),
                n_weighted,
                weight,
                block.n_skipped,
                *digests,
            )
        )
    return Survey(tuple(summaries), lightest, heaviest)


def digest_of(array: NDArray[Any] | None) -> bytes:
    """A digest of an array's dtype and bytes; nothing for nothing."""
    if array is None:
        return b""
    digest = hashlib.sha256(array.dtype.str.encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.digest()[:16]


def check_finite(block: Block) -> None:
    """Raise DataError at a NaN or infinity."""
    at = passes.first_not_finite(as_rows(block.x))
    if at >= 0:
        row, column = divmod(at, block.x.shape[1])
        raise non_finite("X", block.x[row, column], block.place(row, column))


def non_finite(name: str, value: Any, place: str) -> DataError:
    """The error of a NaN or infinity."""
    if not np.isnan(value):
        return DataError(
            f"{name} contains infinity in {place}. Remove or replace such rows before."
        )
    skip = ", or pass nan='skip' to leave them out" if name == "X" else ""
    return DataError(
        f"{name} contains NaN in {place}. Remove or impute such rows before{skip}."
    )


def _check_weights(block: Block) -> None:
    weights = block.weights
    assert weights is not None
    wrong = ~((weights >= 0) & (weights < np.inf))
    if not wrong.any():
        return
    row = int(np.argmax(wrong))
    if not np.isfinite(weights[row]):
        raise non_finite("sample_weight", weights[row], block.place(row))
    raise DataError(
        f"sample_weight is negative ({weights[row]}) in {block.place(row)}: weights "
        "must not be below 0."
    )


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
