"""Lazy rows as shards that Dask makes, keeps and makes again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import chain, count, islice, pairwise
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

from daskgmm.data.block import NO_GAPS, Block, as_block
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
from daskgmm.data.gaps import Gaps, Nan
from daskgmm.data.kept import Kept
from daskgmm.data.parquet_reader import Stream, go_on_with, let_go
from daskgmm.data.prefetch import read_ahead, reading_thread
from daskgmm.data.source import Source, Unchanging
from daskgmm.data.zarr_reader import Care, CarefulArray, careful_arrays_in
from daskgmm.errors import DataError
from daskgmm.execution.cluster import (
    active_client,
    chosen_scheduler,
    count_threads,
    keep,
)
from daskgmm.execution.runners import DaskShards, Shards
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
            _ShardPlan,
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
    plan: Callable[[Recipes, int, Sequence[int]], _ShardPlan],
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
        layer[key] = Task(
            key,
            _make_shard,
            plan(recipes, first, of_shard),
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
    if chosen_scheduler() is dask.local.get_sync:
        return 1
    return int(dask.config.get("num_workers", None) or CPU_COUNT)


@final
class _ShardPlan:
    """All of a shard but its inputs. A plain class: Dask looks into dataclasses."""

    def __init__(
        self,
        n_features: int,
        cut_rows: tuple[int, int] | None,
        streamed: bool,
        nan: Nan,
        most_kept: float,
        recipes: Recipes,
        first_leaf: int,
        bounds: Sequence[int],
    ) -> None:
        self.n_features = n_features
        self.cut_rows = cut_rows
        self.streamed = streamed
        self.nan = nan
        self.most_kept = most_kept
        self.recipes = recipes
        held = chain.from_iterable(map(careful_arrays_in, recipes.values()))
        self.arrays = tuple({id(array): array for array in held}.values())
        self.first_leaf = first_leaf
        self.bounds = list(bounds)


def _make_shard(plan: _ShardPlan, *inputs: Any) -> _DaskShard:
    return _DaskShard(plan, dict(zip(plan.recipes.inputs, inputs, strict=True)))


@final
class _DaskShard:
    """A run of leaves of a Dask collection, made block by block on each pass."""

    def __init__(self, plan: _ShardPlan, inputs: Mapping[Key, Any]) -> None:
        self._plan = plan
        self._inputs = inputs
        self._made: list[Block] | None = None
        self._kept = Kept(plan.most_kept)
        self.n_read = 0

    def __getstate__(self) -> dict[str, Any]:
        """All but the blocks that were made of the inputs."""
        return {**vars(self), "_made": None}

    def __sizeof__(self) -> int:
        """Bytes held: Dask weighs by them whether to move or to spill a shard."""
        held = [*self._inputs.values(), *self._plan.recipes.literals.values()]
        n_bytes = sum(value.nbytes for value in held if isinstance(value, np.ndarray))
        return object.__sizeof__(self) + n_bytes

    def leaves(self) -> Iterator[tuple[int, Iterator[Block]]]:
        plan = self._plan
        for array in plan.arrays:
            array.look_again()  # disks and data may change from pass to pass
        blocks = self._read() if plan.recipes.reads else self._resident()
        sizes = [b - a for a, b in pairwise(plan.bounds)]
        with closing(blocks):
            for leaf, size in enumerate(sizes, start=plan.first_leaf):
                rest = islice(blocks, size)
                yield leaf, rest
                # What a kernel left must not become the next leaf's.
                deque(rest, maxlen=0)

    def _read(self) -> Generator[Block]:
        """Blocks that are read, but for those that are kept from passes before."""
        are_apart = self._plan.recipes.are_apart
        kept = self._kept.trimmed() if are_apart else ()
        yield from kept
        with closing(self._read_from(len(kept))) as rest:
            # A name here would keep a block alive while the next one is read.
            counted = map(self._counted, rest)
            offered = map(self._kept.offered, count(len(kept)), counted)
            yield from offered if are_apart else counted

    def _counted(self, block: Block) -> Block:
        """A block that was read."""
        self.n_read += block.n_bytes
        return block

    def _read_from(self, first: int) -> Generator[Block]:
        """Blocks that are not in memory, from one on.

        Streams are taken as they are, until one shows that to read is to wait.
        """
        blocks = self._blocks(first)
        if not self._plan.streamed:
            yield from read_ahead(blocks)
            return
        for block in blocks:
            yield block
            if isinstance(block.rows, Stream) and block.rows.waited:
                # The file that is open goes to the other thread and comes back.
                reading_thread().submit(go_on_with, let_go()).result()
                yield from read_ahead(blocks)
                go_on_with(reading_thread().submit(let_go).result())

    def _resident(self) -> Generator[Block]:
        """Blocks of what is in memory: checked once, not on each pass."""
        if self._made is None:
            self._made = list(self._blocks())
        yield from self._made

    def _block(self, index: int, made: tuple[Any, ...]) -> Block:
        """A block from its recipe's values: rows, and weights if there are any."""
        plan, cut = self._plan, None
        if plan.cut_rows is not None:
            block_rows, chunk_rows = plan.cut_rows
            cut = index * block_rows, chunk_rows
        weights = made[1] if len(made) > 1 else None
        return as_block(index, made[0], plan.n_features, weights, plan.nan, cut)

    def _blocks(self, first: int = 0) -> Generator[Block]:
        made = iter(self._plan.recipes.make(self._inputs, first))
        for index in range(self._plan.bounds[0] + first, self._plan.bounds[-1]):
            try:
                # Passed on at once: a name here would keep the block alive.
                block = [self._block(index, next(made))]
            except DataError:
                raise
            except Exception as error:
                error.add_note(f"This happened while block {index} of X was read.")
                raise
            yield block.pop()
