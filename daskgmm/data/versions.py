"""By what the rows of a store are told from those that are there later."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, final

import dask.array as da
import zarr
from dask.base import tokenize

from daskgmm.data.dask_graph import Graph
from daskgmm.data.parquet import ParquetRows
from daskgmm.data.zarr_reader import Care
from daskgmm.storage.zarr_store import ZarrArray, facts_of, grid, key_of, readable


@final
@dataclass(frozen=True)
class Versions:
    """What a store tells of the pieces, one after the other, that rows lie in.

    Attributes
    ----------
    ends : tuple of int
        Last row, plus one, of each piece; none where lengths are not known.
    facts : tuple
        Of each piece: what is told of it, and, where that is known, its last row.
    """

    ends: tuple[int, ...]
    facts: tuple[Any, ...]

    def of_rows(self, first: float, stop: float) -> str:
        """A digest of what is told of some rows; of all, if it is not known which."""
        facts = self.facts
        if self.ends and not math.isnan(first + stop):
            low = bisect_right(self.ends, first)
            facts = facts[low : bisect_left(self.ends, stop) + 1]
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def versions_of(rows: Any) -> Versions:
    """Versions of rows that were opened; of what no store tells of, always the same."""
    if isinstance(rows, ParquetRows):
        # By the path, too: it may say what a column holds.
        facts = [(span.path, rows.fact(span)) for block in rows.spans for span in block]
        lengths = [span.n_rows for block in rows.spans for span in block]
        return _versions([] if rows.filters else lengths, facts)
    if isinstance(rows, zarr.Array):
        return _of_zarr(readable(rows))
    if isinstance(rows, da.Array):
        return _versions([], _facts_of_graph(rows))
    return _versions([], [])


def _versions(lengths: Sequence[int], facts: Sequence[Any]) -> Versions:
    if not lengths:
        return Versions((), tuple(facts))
    # With where a piece lies: those before it may be longer or shorter since.
    ends = tuple(accumulate(lengths))
    return Versions(ends, tuple(zip(ends, facts, strict=True)))


def _facts_of_graph(rows: da.Array) -> list[str]:
    """What is told of lazy rows as a whole, and of each Zarr array behind them.

    Their name is a digest of what is done to them, as by which scale they are decoded:
    that lies in no chunk.
    """
    care = Care("fill")
    Graph(dict(rows.dask)).change(care)
    arrays = care.arrays.values()
    for array in arrays:
        array.note_facts()
    return [rows.name, *map(tokenize, arrays)]


def _of_zarr(array: ZarrArray) -> Versions:
    """Of each row of chunks."""
    found = facts_of(array)
    if array.ndim == 0:
        return _versions([], list(found.values()))
    n_rows, rows = array.shape[0], (array.shards or array.chunks)[0]
    numbers = range(-(-n_rows // rows))
    return _versions(
        [min(rows, n_rows - i * rows) for i in numbers],
        [
            tuple(found.get(key_of(array, at)) for at in grid(array, range(i, i + 1)))
            for i in numbers
        ],
    )
