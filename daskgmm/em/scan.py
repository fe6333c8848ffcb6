"""The pass before EM: counts and checks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self, final

import numpy as np
from numpy.typing import NDArray

from daskgmm import steps
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
    steps.begin("counting rows")
    result: Survey = shards.reduce(survey_leaf, digest)
    return result


def of_lengths(lengths: Sequence[int]) -> Survey:
    """The survey of blocks of so many rows, without weights, before they are read."""
    blocks = [BlockSummary(i, n, n, float(n)) for i, n in enumerate(lengths)]
    return Survey(tuple(blocks), 1.0, 1.0)


def survey_leaf(digest: bool, blocks: Iterable[Block]) -> Survey:
    """The survey of some blocks: see `survey`."""
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
        del block, weights  # before another one is read
    return Survey(tuple(summaries), lightest, heaviest)


def digest_of(array: NDArray[Any] | None) -> bytes:
    """A digest of an array's dtype and bytes; nothing for nothing."""
    if array is None:
        return b""
    digest = hashlib.sha256(array.dtype.str.encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.digest()[:16]


def checked(block: Block) -> Block:
    """The block itself, if all its numbers are finite; else DataError."""
    check_finite(block)
    return block


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
