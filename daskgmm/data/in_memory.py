"""Rows in this process's memory, as shards for its threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from daskgmm.data.block import Block, as_block, block_rows
from daskgmm.data.columns import float_dtype
from daskgmm.data.gaps import Nan
from daskgmm.data.source import Source
from daskgmm.execution.runners import Shards, ThreadShards
from daskgmm.execution.threads import n_threads
from daskgmm.execution.tree import shard_bounds
from daskgmm.mixtures.e_step import InPieces

_TASKS_PER_THREAD: Final = 16


@final
class ArraySource(Source):
    """Rows in this process's memory, worked on by its own threads."""

    def __init__(
        self,
        x: NDArray[Any],
        weights: NDArray[np.float64] | None,
        nan: Nan = "error",
    ) -> None:
        self._x, self._weights, self._nan = x, weights, nan
        self.n_features = x.shape[1]
        self.dtype = float_dtype(x.dtype)

    def check_unchanged(self) -> None:
        """Of memory, nothing tells."""

    @property
    def lengths(self) -> Sequence[int] | None:
        if self._weights is not None or self._nan != "error":
            return None
        n_rows, size = len(self._x), block_rows(*self._x.shape)
        return [min(size, n_rows - first) for first in range(0, n_rows, size)]

    def shards(self, *, keep_rows: bool = False) -> Shards:
        n_leaves = -(-len(self._x) // block_rows(*self._x.shape))
        most = n_threads()
        bounds = shard_bounds(n_leaves, _TASKS_PER_THREAD * most)
        return ThreadShards(
            [
                _ArrayShard(self._x, self._weights, self._nan, first, last)
                for first, last in pairwise(bounds)
            ],
            most,
            is_fixed=_is_own(self._x) and _is_own(self._weights),
        )


def _is_own(array: NDArray[Any] | None) -> bool:
    """Whether NumPy itself took an array's memory: no file, no other process has it."""
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            return False
        array = array.base
    return array is None


@final
class _ArrayShard:
    """A run of rows of an array: each leaf is one block, converted if it need be."""

    n_read = 0

    def __init__(
        self,
        x: NDArray[Any],
        weights: NDArray[np.float64] | None,
        nan: Nan,
        first: int,
        last: int,
    ) -> None:
        self._x, self._weights, self._nan = x, weights, nan
        self._leaves = range(first, last)

    def leaves(self) -> Iterator[tuple[int, Iterator[Block]]]:
        n_rows, d = self._x.shape
        size = block_rows(n_rows, d)
        for leaf in self._leaves:
            rows = slice(leaf * size, (leaf + 1) * size)
            weights = None if self._weights is None else self._weights[rows]
            cut = leaf * size, 0
            block = as_block(leaf, self._x[rows], d, weights, self._nan, cut)
            yield leaf, InPieces([block], [(block.x, block.weights)])
