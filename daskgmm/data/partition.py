"""Lazy rows as shards that Dask makes, keeps and makes again."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any, Final, final

import dask
import dask.array as da
import dask.multiprocessing
import numpy as np
from dask.base import tokenize
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph
from dask.system import CPU_COUNT
from dask.utils import parse_bytes

from daskgmm.data.block import NO_GAPS
from daskgmm.data.columns import float_dtype
from daskgmm.data.dask_graph import (
    Graph,
    Key,
    Recipes,
    Task,
    TaskRef,
    count_sources,
    cut,
)
from daskgmm.data.gaps import Gaps
from daskgmm.data.lazy_shard import ShardPlan, make_shard
from daskgmm.data.source import Source, Unchanging
from daskgmm.data.zarr_reader import Care, CarefulArray
from daskgmm.errors import DataError
from daskgmm.execution.cluster import (
    active_client,
    chosen_scheduler,
    count_threads,
    keep,
)
from daskgmm.execution.runners import DaskShards, Shards
from daskgmm.execution.threads import n_threads
from daskgmm.execution.tree import leaf_bounds, shard_bounds

_SHARDS_PER_THREAD: Final = 4
_STORES_AT_ONCE: Final = 16


@final
class DaskSource(Source):
    """Rows that Dask reads, worked on by Dask's scheduler."""

    def __init__(
        self,
        x: da.Array,
        weights: da.Array | None,
        chunk_rows: int | None = None,
        gaps: Gaps = NO_GAPS,
        starts: frozenset[int] | None = None,
        streamed: bool = False,
        read_from: Sequence[Unchanging] = (),
    ) -> None:
        self._x, self._weights = x, weights
        self._streamed = streamed  # x is of `Stream`
        self._starts = starts  # blocks that are cheap to begin with, if not all are
        self._gaps = gaps
        self._read_from = list(read_from)
        # Rows of a block, and of the user's chunks in it.
        self._cut = None if chunk_rows is None else (x.chunks[0][0], chunk_rows)
        self.n_features = int(x.shape[1])
        self.dtype = float_dtype(x.dtype)

    @property
    def lengths(self) -> Sequence[int] | None:
        lengths = self._x.chunks[0]
        counts_all = self._weights is None and self._gaps.nan == "error"
        return lengths if counts_all and not np.isnan(sum(lengths)) else None

    def shards(self, *, keep_rows: bool = False) -> Shards:
        collections = [c for c in (self._x, self._weights) if c is not None]
        # Not optimised by Dask: it fuses shared work into each block that uses it, and
        # drops the futures of persisted blocks.
        x_keys: Any = collections[0].__dask_keys__()
        columns: list[Any] = [[row[0] for row in x_keys]]
        columns += [weights.__dask_keys__() for weights in collections[1:]]
        keys = list(zip(*columns, strict=True))
        graph = Graph({k: v for c in collections for k, v in dict(c.dask).items()})
        care = Care(self._gaps.missing_chunks)
        graph.change(care)
        if graph.only_moves_rows:
            care.check_plain()
        self._watch(list(care.arrays.values()))
        if graph.futures and active_client() is None:
            raise DataError(
                "X or sample_weight is held by a cluster, but Dask is set to run in "
                "this process: make the cluster's Client the current one."
            )
        built_for = 0
        plan = partial(
            ShardPlan,
            uuid.uuid4().hex,
            self.n_features,
            self._cut,
            self._streamed,
            self._gaps.nan,
            _most_kept() if keep_rows else 0.0,
        )

        def cut_for_threads() -> Sequence[Delayed] | None:
            """Shards; anew where a cluster has grown to twice its size since."""
            nonlocal built_for
            threads = _n_threads(otherwise=built_for)
            if threads < 2 * built_for:
                return None
            built_for = threads
            shards = _build(
                graph,
                keys,
                plan,
                threads,
                self._starts,
            )
            return keep(shards)

        n_leaves = len(leaf_bounds(len(keys))) - 1
        return DaskShards(cut_for_threads, self._largest_block(), n_leaves)

    def _watch(self, arrays: Sequence[CarefulArray]) -> None:
        """Take note of what stores tell of the arrays that the graph reads."""
        with ThreadPoolExecutor(_STORES_AT_ONCE) as pool:
            list(pool.map(CarefulArray.note_facts, arrays))
        self._read_from += arrays

    def check_unchanged(self) -> None:
        with ThreadPoolExecutor(_STORES_AT_ONCE) as pool:
            list(pool.map(lambda store: store.check_unchanged(), self._read_from))

    def _largest_block(self) -> float | None:
        """Bytes of the largest block, if its length is known."""
        rows = max(self._x.chunks[0], default=0)
        return None if np.isnan(rows) else rows * self.n_features * self.dtype.itemsize


def _build(
    graph: Graph,
    keys: Sequence[Sequence[Key]],
    plan: Callable[[Recipes, int, Sequence[int], Sequence[int]], ShardPlan],
    threads: int,
    starts: frozenset[int] | None = None,
) -> list[Delayed]:
    """Shards as Dask tasks, so that a lost one is built again from its recipe."""
    cuts = cut(graph, keys)
    leaves = leaf_bounds(len(keys))
    # A source that several shards want is read by each of them.
    most = max(threads, count_sources(graph, keys, cuts))
    bounds = shard_bounds(len(leaves) - 1, min(_SHARDS_PER_THREAD * threads, most))
    if starts is not None:
        bounds = _bounds_at(starts, leaves, bounds, threads)
    name = f"shard-{tokenize(keys, bounds)}"
    layer: dict[Key, Any] = {**(graph.nodes if cuts else {}), **graph.futures}
    shard_keys = []
    for first, last in pairwise(bounds):
        of_shard = leaves[first : last + 1]
        recipes = Recipes(graph, keys[of_shard[0] : of_shard[-1]], cuts)
        key = (name, first)
        places = _places(starts, of_shard[0], of_shard[-1])
        layer[key] = Task(
            key,
            make_shard,
            plan(recipes, first, of_shard, places),
            *(TaskRef(k) for k in recipes.inputs),
        )
        shard_keys.append(key)
    together = HighLevelGraph.from_collections(name, layer)
    return [Delayed(key, together, layer=name) for key in shard_keys]


def _bounds_at(
    starts: frozenset[int], leaves: Sequence[int], bounds: Sequence[int], threads: int
) -> list[int]:
    """Bounds of shards moved to leaves that are cheap to begin with.

    If that leaves too few shards for the threads, a shard for each of them: what a
    thread must read in vain is less than what it would miss.
    """
    cheap = [i for i, block in enumerate(leaves[:-1]) if block in starts]
    places = np.array([*cheap, len(leaves) - 1])
    moved = sorted({int(places[np.abs(places - bound).argmin()]) for bound in bounds})
    if len(moved) <= threads and len(moved) < len(bounds):
        return shard_bounds(len(leaves) - 1, threads)
    return moved


def _places(starts: frozenset[int] | None, first: int, last: int) -> Sequence[int]:
    """Places of blocks: those that are read with the one before have the same."""
    if starts is None:
        return range(first, last)
    of_starts = np.sort([*starts])
    return [int(n) for n in of_starts.searchsorted(range(first, last), side="right")]


def _most_kept() -> float:
    """What is kept of the rows: as set in this process, whatever workers have set."""
    if chosen_scheduler() is dask.multiprocessing.get:
        return 0.0  # its processes get the shards anew on each pass
    given = dask.config.get("daskgmm.cache-memory")
    try:
        most = float(parse_bytes(given)) if isinstance(given, str) else float(given)
    except (TypeError, ValueError):
        most = -1.0
    if not 0.0 <= most < np.inf:
        raise ValueError(
            "daskgmm.cache-memory of Dask's configuration must be a share from 0 to 1, "
            f"or a number of bytes such as '2 GB', got {given!r}."
        )
    return most


def _n_threads(otherwise: int) -> int:
    """Threads of the scheduler that will run the shards; `otherwise` without answer."""
    if active_client() is not None:
        return count_threads() or otherwise or CPU_COUNT
    return 1 if chosen_scheduler() is dask.local.get_sync else n_threads()
