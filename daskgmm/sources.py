"""Whatever the user hands over, as blocks of rows and then as shards."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, Final, final

import dask
import dask.array as da
import numpy as np
import zarr
from dask._task_spec import Task, TaskRef
from dask.base import get_scheduler, persist, tokenize
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph
from dask.system import CPU_COUNT
from distributed import Client
from numpy.typing import NDArray

from daskgmm.errors import DataError, StoreError
from daskgmm.graph import Graph, Key, Recipes, count_sources, cut
from daskgmm.reduction import (
    MAX_LEAVES,
    DaskShards,
    Shards,
    ThreadShards,
    leaf_bounds,
    shard_bounds,
)

_SHARDS_PER_THREAD: Final = 4
_READ_BYTES: Final = 8_000_000
"""Small chunks of a Zarr array are read together until they make this many."""
_BLOCK_NUMBERS: Final = 2**17
_MIN_BLOCK_ROWS: Final = 512


@final
@dataclass(frozen=True, slots=True)
class Block:
    """A run of rows.

    Attributes
    ----------
    index : int
        Number of the block in the data set.
    x : ndarray of shape (n, d), float32 or float64
    weights : ndarray of shape (n,), float64, or None
    """

    index: int
    x: NDArray[Any]
    weights: NDArray[np.float64] | None


class Source(ABC):
    """A data set of rows.

    Attributes
    ----------
    n_features : int
        Number of features, d.
    dtype : dtype
        float32 if the rows are, else float64: what results have.
    """

    n_features: int
    dtype: np.dtype[Any]

    @abstractmethod
    def shards(self) -> Shards:
        """Cut the data set into shards; what is shared is computed here."""


def is_lazy(X: Any) -> bool:
    """Whether rows are read block by block: Dask, Zarr, or a Zarr array's place."""
    return isinstance(X, da.Array | zarr.Array | str | os.PathLike)


def open_source(X: Any, sample_weight: Any = None) -> Source:
    """Take rows of any kind, and their weights.

    Parameters
    ----------
    X : ndarray, dask.array.Array, zarr.Array, str or path
        Rows, (n, d). An array in memory must be float32 or float64.
    sample_weight : array-like, lazy or not, shape (n,), or None

    Raises
    ------
    DataError
        If they are not of a kind, shape or dtype that can be used.
    StoreError
        If there is no Zarr array at a place.
    """
    if not is_lazy(X):
        return ArraySource(np.ascontiguousarray(X), sample_weight)
    rows = _lazy_rows(X, group=True)
    weights = None if sample_weight is None else _lazy_weights(sample_weight, rows)
    return DaskSource(rows, weights)


def as_dask(X: Any) -> da.Array:
    """Lazy rows as a Dask array in one column of chunks, cut as X is.

    Raises
    ------
    DataError, StoreError
        As `open_source`.
    """
    return _lazy_rows(X, group=False)


def _lazy_rows(X: Any, *, group: bool) -> da.Array:
    if not isinstance(X, da.Array):
        X = _from_zarr(_open_zarr(X), group=group)
    _check_rows(X)
    rows: da.Array = X if X.numblocks[1] == 1 else X.rechunk({1: -1})
    return rows


def _open_zarr(X: Any) -> Any:
    """The Zarr array at a place."""
    if isinstance(X, zarr.Array):
        return X
    place = os.fspath(X)
    try:
        found = zarr.open(place, mode="r")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"There is no Zarr array at {place}.") from error
    except Exception as error:
        # An unknown protocol, a missing library, and what those libraries raise.
        raise StoreError(f"No Zarr array can be opened at {place}: {error}") from error
    if isinstance(found, zarr.Array):
        return found
    names = sorted(name for name, _ in found.arrays())
    inside = f"a group with the arrays {', '.join(names)}" if names else "a group"
    raise StoreError(f"There is no Zarr array at {place}, but {inside}: name an array.")


def _from_zarr(array: Any, *, group: bool) -> da.Array:
    if array.ndim == 0:
        raise DataError("The Zarr array is a single number, not rows of features.")
    rows = (array.shards or array.chunks)[0]
    if group:
        row_bytes = array.dtype.itemsize * int(np.prod(array.shape[1:]))
        rows *= max(1, _READ_BYTES // max(1, rows * row_bytes))
    # A chunk is read whole: cutting it in columns would read it several times.
    lazy: da.Array = da.from_zarr(array, chunks=(max(1, rows), *array.shape[1:]))
    return lazy


def _check_rows(X: da.Array) -> None:
    if X.ndim != 2:
        raise DataError(
            f"X has {X.ndim} dimension(s): expected a 2-D array of rows and features."
        )
    if np.isnan(X.shape[1]):
        raise DataError("The number of X's columns is unknown: rechunk it, or set it.")
    if X.shape[1] == 0:
        raise DataError(
            f"Found array with 0 feature(s) (shape={X.shape}) while a minimum of 1 is "
            "required."
        )
    _check_kind(X._meta, "X")


def _check_kind(meta: Any, name: str) -> None:
    """Refuse what does not hold real numbers in NumPy arrays."""
    if not isinstance(meta, np.ndarray):
        raise DataError(
            f"{name} is made of {type(meta).__module__}.{type(meta).__name__} blocks; "
            "only dense NumPy blocks can be used: convert them with map_blocks, sparse "
            "ones by toarray()."
        )
    if meta.dtype.kind not in "fiub":
        raise DataError(
            f"{name} has dtype {meta.dtype}: only real numbers can be used. Convert it "
            "with astype(float)."
        )


def _lazy_weights(weights: Any, rows: da.Array) -> Any:
    """Weights cut like the rows."""
    if not is_lazy(weights):
        weights = _weights_in_memory(weights, rows)
    elif not isinstance(weights, da.Array):
        weights = _from_zarr(_open_zarr(weights), group=False)
    if weights.ndim != 1:
        raise DataError(f"sample_weight must be 1-D, got shape {weights.shape}.")
    _check_kind(weights._meta, "sample_weight")
    n_weights, n_rows = weights.shape[0], rows.shape[0]
    if np.isnan(n_weights) or np.isnan(n_rows):
        if weights.numblocks[0] != rows.numblocks[0]:
            raise DataError(
                f"sample_weight has {weights.numblocks[0]} block(s) but X has "
                f"{rows.numblocks[0]}, and their lengths are unknown: cut both alike, "
                "or call compute_chunk_sizes() on both."
            )
        return weights
    _check_n_weights(n_weights, n_rows)
    if n_rows == 0:  # Dask does not rechunk what is empty
        return da.zeros(0, chunks=(rows.chunks[0],))
    return weights.rechunk((rows.chunks[0],))


def _weights_in_memory(weights: Any, rows: da.Array) -> Any:
    if np.isnan(rows.shape[0]):
        raise DataError(
            "sample_weight is an array in memory, and the lengths of X's blocks are "
            "unknown: call X.compute_chunk_sizes(), or pass a Dask array cut like X."
        )
    array = np.asarray(weights)
    if array.ndim != 1:
        raise DataError(f"sample_weight must be 1-D, got shape {array.shape}.")
    _check_n_weights(len(array), rows.shape[0])
    return da.from_array(array, chunks=(rows.chunks[0],))


def _check_n_weights(n_weights: int, n_rows: int) -> None:
    if n_weights != n_rows:
        raise DataError(
            f"sample_weight has {n_weights} entries but X has {n_rows} rows."
        )


def as_block(index: int, x: Any, n_features: int, weights: Any = None) -> Block:
    """Check what was computed for a block.

    Raises
    ------
    DataError
        Naming the block, if it is no array of numbers with so many columns.
    """
    x = _as_floats(x, f"Block {index} of X", keep_single=True)
    if x.ndim != 2 or x.shape[1] != n_features:
        raise DataError(
            f"Block {index} of X has shape {x.shape}: expected rows of {n_features} "
            "feature(s)."
        )
    if weights is None:
        return Block(index, x, None)
    weights = _as_floats(weights, f"Block {index} of sample_weight", keep_single=False)
    if weights.shape != x.shape[:1]:
        raise DataError(
            f"Block {index} of sample_weight has shape {weights.shape} but that of X "
            f"has {len(x)} row(s): cut both alike."
        )
    return Block(index, x, weights)


def _as_floats(array: Any, name: str, *, keep_single: bool) -> NDArray[Any]:
    """A computed block as float64, or float32 where that is kept."""
    if isinstance(array, np.ma.MaskedArray):
        if np.ma.is_masked(array):
            raise DataError(f"{name} has masked entries: fill or drop them before.")
        array = array.data
    array = np.asarray(array) if np.isscalar(array) else array
    _check_kind(array, name)
    dtype = float_dtype(array.dtype) if keep_single else np.dtype(np.float64)
    # Native byte order comes with it, and no copy where nothing changes.
    floats: NDArray[Any] = array.astype(dtype, copy=False)
    return floats


def float_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Dtype of results for rows of a dtype: float32 stays, all else is float64."""
    return np.dtype(np.float32 if dtype.newbyteorder("=") == np.float32 else np.float64)


def block_rows(n_rows: int, n_features: int) -> int:
    """Rows of a block of an array in memory: depends on its shape alone."""
    rows = max(_MIN_BLOCK_ROWS, _BLOCK_NUMBERS // n_features)
    return max(rows, -(-n_rows // MAX_LEAVES))


@final
class ArraySource(Source):
    """Rows in this process's memory, worked on by its own threads."""

    def __init__(self, x: NDArray[Any], weights: NDArray[np.float64] | None) -> None:
        self._x, self._weights = x, weights
        self.n_features = x.shape[1]
        self.dtype = x.dtype

    def shards(self) -> Shards:
        """See `Source.shards`."""
        n_leaves = -(-len(self._x) // block_rows(*self._x.shape))
        bounds = shard_bounds(n_leaves, _SHARDS_PER_THREAD * CPU_COUNT)
        return ThreadShards(
            [
                _ArrayShard(self._x, self._weights, first, last)
                for first, last in pairwise(bounds)
            ],
            CPU_COUNT,
        )


@final
class _ArrayShard:
    """A run of rows of an array: each leaf is one block."""

    def __init__(
        self,
        x: NDArray[Any],
        weights: NDArray[np.float64] | None,
        first: int,
        last: int,
    ) -> None:
        self._x, self._weights = x, weights
        self._leaves = range(first, last)

    def leaves(self) -> Iterator[tuple[int, Iterator[Block]]]:
        """See `reduction.Shard`."""
        size = block_rows(*self._x.shape)
        for leaf in self._leaves:
            rows = slice(leaf * size, (leaf + 1) * size)
            weights = None if self._weights is None else self._weights[rows]
            yield leaf, iter([Block(leaf, self._x[rows], weights)])


@final
class DaskSource(Source):
    """Rows that Dask reads, worked on by Dask's scheduler."""

    def __init__(self, x: da.Array, weights: da.Array | None) -> None:
        self._x, self._weights = x, weights
        self.n_features = int(x.shape[1])
        self.dtype = float_dtype(x.dtype)

    def shards(self) -> Shards:
        """See `Source.shards`."""
        collections = [c for c in (self._x, self._weights) if c is not None]
        # Not optimised by Dask: it fuses shared work into each block that uses it, and
        # drops the futures of persisted blocks.
        x_keys: Any = collections[0].__dask_keys__()
        columns: list[Any] = [[row[0] for row in x_keys]]
        columns += [weights.__dask_keys__() for weights in collections[1:]]
        keys = list(zip(*columns, strict=True))
        graph = Graph({k: v for c in collections for k, v in dict(c.dask).items()})
        if graph.futures and _client() is None:
            raise DataError(
                "X or sample_weight is held by a cluster, but Dask is set to run in "
                "this process: make the cluster's Client the current one."
            )
        return DaskShards(persist(*_build(graph, keys, self.n_features)))


def _build(
    graph: Graph, keys: Sequence[Sequence[Key]], n_features: int
) -> list[Delayed]:
    """Shards as Dask tasks, so that a lost one is built again from its recipe."""
    cuts = cut(graph, keys)
    leaves = leaf_bounds(len(keys))
    threads = _n_threads()
    # A source that several shards want is read by each of them.
    most = max(threads, count_sources(graph, keys, cuts))
    bounds = shard_bounds(len(leaves) - 1, min(_SHARDS_PER_THREAD * threads, most))
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
            _ShardPlan(recipes, first, of_shard, n_features),
            *(TaskRef(k) for k in recipes.inputs),
        )
        shard_keys.append(key)
    together = HighLevelGraph.from_collections(name, layer)
    return [Delayed(key, together, layer=name) for key in shard_keys]


def _client() -> Client | None:
    """The client of the cluster that will run the shards, if one will."""
    owner = getattr(get_scheduler(), "__self__", None)
    return owner if isinstance(owner, Client) else None


def _n_threads() -> int:
    """Threads of the scheduler that will run the shards."""
    if (client := _client()) is not None:
        return sum(client.nthreads().values()) or CPU_COUNT
    if get_scheduler() is dask.local.get_sync:
        return 1
    return int(dask.config.get("num_workers", None) or CPU_COUNT)


@final
class _ShardPlan:
    """All of a shard but its inputs. A plain class: Dask looks into dataclasses."""

    def __init__(
        self, recipes: Recipes, first_leaf: int, bounds: Sequence[int], n_features: int
    ) -> None:
        self.recipes = recipes
        self.first_leaf = first_leaf
        self.bounds = list(bounds)
        self.n_features = n_features


def _make_shard(plan: _ShardPlan, *inputs: Any) -> _DaskShard:
    return _DaskShard(plan, dict(zip(plan.recipes.inputs, inputs, strict=True)))


@final
class _DaskShard:
    """A run of leaves of a Dask collection, made block by block on each pass."""

    def __init__(self, plan: _ShardPlan, inputs: Mapping[Key, Any]) -> None:
        self._plan = plan
        self._inputs = inputs

    def __sizeof__(self) -> int:
        """Bytes held: Dask weighs by them whether to move or to spill a shard."""
        held = [*self._inputs.values(), *self._plan.recipes.literals.values()]
        n_bytes = sum(value.nbytes for value in held if isinstance(value, np.ndarray))
        return object.__sizeof__(self) + n_bytes

    def leaves(self) -> Iterator[tuple[int, Iterator[Block]]]:
        """See `reduction.Shard`."""
        plan = self._plan
        blocks = self._blocks()
        if plan.recipes.reads:
            blocks = _read_ahead(blocks)
        sizes = [b - a for a, b in pairwise(plan.bounds)]
        with closing(blocks):
            for leaf, size in enumerate(sizes, start=plan.first_leaf):
                rest = islice(blocks, size)
                yield leaf, rest
                # What a kernel left must not become the next leaf's.
                deque(rest, maxlen=0)

    def _blocks(self) -> Generator[Block]:
        made = iter(self._plan.recipes.make(self._inputs))
        for index in range(self._plan.bounds[0], self._plan.bounds[-1]):
            try:
                # Passed on at once: a name here would keep the block alive.
                block = [as_block_of(index, next(made), self._plan.n_features)]
            except DataError:
                raise
            except Exception as error:
                error.add_note(f"This happened while block {index} of X was read.")
                raise
            yield block.pop()


def as_block_of(index: int, made: tuple[Any, ...], n_features: int) -> Block:
    """A block from its recipe's values: rows, and weights if there are any."""
    return as_block(index, made[0], n_features, *made[1:])


_thread: Final = threading.local()


def _reader() -> ThreadPoolExecutor:
    """The thread that reads for this one, kept from pass to pass.

    New threads would each take memory from another of the allocator's arenas, and
    every arena keeps some of what was freed.
    """
    if not hasattr(_thread, "reader"):
        _thread.reader = ThreadPoolExecutor(1, "daskgmm-reader")
    reader: ThreadPoolExecutor = _thread.reader
    return reader


def _read_ahead(blocks: Generator[Block]) -> Generator[Block]:
    """Make the next block in another thread while the last one is worked on."""
    reader = _reader()
    coming = reader.submit(next, blocks, None)
    try:
        while (block := coming.result()) is not None:
            coming = reader.submit(next, blocks, None)
            ready = [block]
            del block
            # Passed on without a name here, which would keep it alive.
            yield ready.pop()
    finally:
        wait([coming])
        blocks.close()
