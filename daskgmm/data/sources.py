"""Whatever the user hands over, as blocks of rows and then as shards."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice, pairwise
from typing import Any, Final, Protocol, final

import dask
import dask.array as da
import numpy as np
import zarr
from dask._task_spec import DataNode, Task, TaskRef
from dask.base import tokenize
from dask.blockwise import Blockwise
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph, Layer, MaterializedLayer
from dask.system import CPU_COUNT
from numpy.typing import NDArray

from daskgmm.data.columns import float_dtype
from daskgmm.data.dask_graph import (
    GETTERS,
    Graph,
    Key,
    Recipes,
    changed,
    count_sources,
    cut,
    function_name,
    is_task,
    moves_rows,
)
from daskgmm.data.gaps import Gaps, Nan, left_out
from daskgmm.data.opening import open_rows
from daskgmm.data.packed import check_zarr
from daskgmm.data.parquet import ParquetRows
from daskgmm.data.parquet_reader import Reading, Span, Stream, go_on_with, let_go
from daskgmm.data.zarr_reader import Care, CarefulArray, careful, careful_arrays_in
from daskgmm.errors import DataError
from daskgmm.execution.cluster import (
    active_client,
    chosen_scheduler,
    count_threads,
    keep,
)
from daskgmm.execution.forking import forget_thread
from daskgmm.execution.tree import (
    MAX_LEAVES,
    DaskShards,
    Shards,
    ThreadShards,
    leaf_bounds,
    shard_bounds,
)
from daskgmm.kernel.layout import Part, as_rows
from daskgmm.kernel.passes import first_not_finite
from daskgmm.storage.zarr_store import name_of

_SHARDS_PER_THREAD: Final = 4
_TASKS_PER_THREAD: Final = 16
_READ_BYTES: Final = 16_000_000
"""Small chunks of a Zarr array are read together until they make this many."""
_READS: Final = 16
"""Reads that are left at least, so that there is work for several threads."""
_HANDED_BYTES: Final = 1_000_000
"""Small blocks that are read ahead change threads together."""
_BLOCK_NUMBERS: Final = 2**17
_MIN_BLOCK_ROWS: Final = 512
_STORES_AT_ONCE: Final = 16
_NO_GAPS: Final = Gaps()


@final
@dataclass(frozen=True, slots=True)
class Block:
    """A run of rows.

    Attributes
    ----------
    index : int
        Number of the block in the data set.
    rows : ndarray of shape (n, d), float32 or float64, or Stream
        A stream only without weights, and where no row is left out.
    weights : ndarray of shape (n,), float64, or None
    cut : tuple of int, or None
        How the user knows the rows, if not by the number of the block: its first row,
        and rows of a chunk, or 0 if the rows are not cut.
    numbers : ndarray of int, shape (n,), or None
        Of the rows in what was given, where some of those are left out.
    n_skipped : int
        Rows with weight that were left out, as they have NaN.
    """

    index: int
    rows: NDArray[Any] | Stream
    weights: NDArray[np.float64] | None
    cut: tuple[int, int] | None = None
    numbers: NDArray[np.intp] | None = None
    n_skipped: int = 0

    @property
    def x(self) -> NDArray[Any]:
        """The rows in one piece, (n, d)."""
        return self.rows.array() if isinstance(self.rows, Stream) else self.rows

    @property
    def size(self) -> int:
        """Numbers in all rows, before filters."""
        if isinstance(self.rows, Stream):
            return self.rows.n_rows * self.rows.n_columns
        return self.rows.size

    def parts(
        self,
    ) -> Iterator[Part]:
        """Rows and their weights as they come, to be gone through once.

        They end where the kernel's tiles do, but for the last.
        """
        if isinstance(self.rows, Stream):
            for part in self.rows.parts():
                yield part, None
        else:
            yield self.rows, self.weights

    def place(self, row: int, column: int | None = None) -> str:
        """Where a row is, or a number in it, as the user knows the data."""
        if self.numbers is not None:
            row = int(self.numbers[row])
        in_row = "" if column is None else f", column {column}"
        if self.cut is None:
            block = self.index
        else:
            first_row, chunk_rows = self.cut
            row += first_row
            if not chunk_rows:
                return f"row {row}{in_row}"
            block, row = divmod(row, chunk_rows)
        return f"block {block}, row {row}{in_row} (counted from the start of the block)"


class Unchanging(Protocol):
    """What must not change while it is read."""

    def check_unchanged(self) -> None:
        """Raise StoreError if it has changed, as far as its store tells."""


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

    @abstractmethod
    def check_unchanged(self) -> None:
        """Raise StoreError if a store tells that the data are not as they were.

        To be called once all reads are done.
        """


def is_lazy(X: Any) -> bool:
    """Whether rows are read block by block: Dask, Zarr, Parquet, or a place of them."""
    return isinstance(X, da.Array | zarr.Array | ParquetRows | str | os.PathLike)


def place_of(X: Any) -> str | None:
    """Where lazy rows, or weights, lie; None if that is not one place, or not known."""
    if isinstance(X, str | os.PathLike):
        return os.fspath(X)
    if isinstance(X, ParquetRows):
        return X.url
    return name_of(X) if isinstance(X, zarr.Array) else None


def opened(X: Any) -> Any:
    """Rows, where they are given by a place; whatever else it is, as it is.

    Raises
    ------
    DataError, StoreError
        As `open_source`.
    """
    if not isinstance(X, str | os.PathLike):
        return X
    return open_rows(X)


def open_source(X: Any, sample_weight: Any = None, gaps: Gaps = _NO_GAPS) -> Source:
    """Take rows of any kind, and their weights.

    Parameters
    ----------
    X : ndarray, dask.array.Array, zarr.Array, ParquetRows, str or path
        Rows, (n, d), of real numbers.
    sample_weight : array-like, lazy or not, shape (n,), or None
    gaps : Gaps

    Raises
    ------
    DataError
        If they are not of a kind, shape or dtype that can be used.
    StoreError
        If there is no Zarr array at a place.
    """
    if not is_lazy(X):
        return ArraySource(X, sample_weight, gaps.nan)
    X = opened(X)
    if isinstance(X, ParquetRows):
        # From this machine's files, to read is to decode: that is best done by the
        # thread that works on the rows, just before. All else is read ahead.
        streamed = X.is_local and sample_weight is None and gaps.nan == "error"
        rows, chunk_rows, starts = _from_parquet(X, gaps, streamed), None, X.starts
    else:
        rows, chunk_rows = _grouped(X, gaps)
        streamed, starts = False, None
    weights = None
    if sample_weight is not None:
        sample_weight = opened(sample_weight)
        weights = _lazy_weights(sample_weight, rows, gaps)
    tables = [given for given in (X, sample_weight) if isinstance(given, ParquetRows)]
    return DaskSource(rows, weights, chunk_rows, gaps, starts, streamed, tables)


def as_dask(X: Any, gaps: Gaps = _NO_GAPS) -> da.Array:
    """Lazy rows as a Dask array in one column of chunks, cut as X is.

    Raises
    ------
    DataError, StoreError
        As `open_source`.
    """
    X = opened(X)
    if isinstance(X, ParquetRows):
        return _from_parquet(X, gaps)
    return _checked(X if isinstance(X, da.Array) else _from_zarr(X, gaps))


def with_care(X: da.Array, gaps: Gaps) -> da.Array:
    """A lazy array whose graph reads with care the Zarr arrays that it holds."""
    if hasattr(X, "expr"):
        return _careful_expression(X, Care(gaps.missing_chunks))
    layers, care = X.dask.layers, Care(gaps.missing_chunks)
    # An array may stand alone, for others to take slices of.
    not_only_sliced = {
        name
        for consumer, needed in X.dask.dependencies.items()
        if not _takes_slices(layers[consumer])
        for name in needed
    }
    careful_ones = {
        name: _careful_layer(layers[name], care, name not in not_only_sliced)
        for name in layers
    }
    if all(map(_moves_rows, layers.values())):
        care.check_plain()
    graph = HighLevelGraph(careful_ones, X.dask.dependencies)
    return da.Array(graph, X.name, X.chunks, meta=X._meta)


def _careful_expression(X: da.Array, care: Care) -> da.Array:
    """The same of an array that is an expression (`array.query-planning`)."""
    expression: Any = X.expr  # type: ignore[attr-defined]
    only_moves_rows = True
    for node in list(expression.walk()):
        reads = type(node).__name__ == "FromArray"
        only_moves_rows &= reads
        operands = [care(operand, sliced=reads) for operand in node.operands]
        if any(
            new is not old for new, old in zip(operands, node.operands, strict=True)
        ):
            expression = expression.substitute(node, type(node)(*operands))
    if only_moves_rows:
        care.check_plain()
    kind: Any = type(X)
    array: da.Array = kind(expression)
    return array


def _moves_rows(layer: Layer) -> bool:
    if isinstance(layer, Blockwise):
        return moves_rows(layer.task)
    nodes = layer.values() if type(layer) is MaterializedLayer else ()
    return all(moves_rows(node) for node in nodes if is_task(node))


def _takes_slices(layer: Layer) -> bool:
    return function_name(getattr(layer, "task", None)) in GETTERS


def _careful_layer(layer: Layer, care: Care, sliced: bool) -> Layer:
    """A layer of a graph, anew if there is a Zarr array in it."""
    if isinstance(layer, Blockwise):
        sliced = _takes_slices(layer)
        inputs = [
            (value if place is not None else changed(value, care, sliced=sliced), place)
            for value, place in layer.indices
        ]
        before = (value for value, _ in layer.indices)
        if all(new is old for (new, _), old in zip(inputs, before, strict=True)):
            return layer
        return Blockwise(
            layer.output,
            layer.output_indices,
            layer.task,
            inputs,
            layer.numblocks,
            concatenate=layer.concatenate,
            new_axes=layer.new_axes,
            output_blocks=layer.output_blocks,
            io_deps=layer.io_deps,
            annotations=layer.annotations,
        )
    if type(layer) is not MaterializedLayer:
        return layer
    new = {k: changed(v, care, sliced=sliced) for k, v in layer.items()}
    if all(new[key] is layer[key] for key in new):
        return layer
    return MaterializedLayer(new, layer.annotations)


def _grouped(X: Any, gaps: Gaps) -> tuple[da.Array, int | None]:
    """Lazy rows to be read many times: Zarr in reads of a good size.

    With them the rows of the chunks that the user knows, where those are others.
    """
    if isinstance(X, da.Array):
        array, cut_alike = _zarr_behind(X), X.chunks
    else:
        array = X
        cut_alike = tuple((size,) for size in array.shards or array.chunks)
    chunk_rows: Any = cut_alike[0][0] if cut_alike else 0
    rows = None if array is None else _rows_at_once(array, chunk_rows)
    if rows is None or rows == chunk_rows:
        lazy = X if isinstance(X, da.Array) else _from_zarr(array, gaps)
        return _checked(lazy), None
    return _checked(_from_zarr(array, gaps, rows)), chunk_rows


def _rows_at_once(array: Any, chunk_rows: int) -> int:
    """Rows to read together: several chunks if they are small, or a part of a shard."""
    if array.ndim != 2:
        return chunk_rows
    row_bytes = max(1, array.dtype.itemsize * array.shape[1])
    if array.shards and chunk_rows * row_bytes > _READ_BYTES:
        chunk_rows = int(array.chunks[0])
    n_chunks = int(array.shape[0]) // max(1, chunk_rows)
    together = min(_READ_BYTES // max(1, chunk_rows * row_bytes), n_chunks // _READS)
    return int(chunk_rows * max(1, together))


def _zarr_behind(X: da.Array) -> Any:
    """The Zarr array whose rows a Dask array is, cut evenly; or else None."""
    columns: Any = X.chunks
    if X.ndim != 2 or len(columns[1]) != 1:
        return None
    chunks = columns[0]
    if not sum(chunks) > 0:  # NaN, too, is no number
        return None
    if len(set(chunks[:-1])) > 1 or chunks[-1] > chunks[0]:
        return None
    # A graph of few layers at most: one that computes is not even looked through.
    if isinstance(X.dask, HighLevelGraph) and len(X.dask.layers) > 2:
        return None
    nodes = Graph(dict(X.dask)).nodes
    arrays = {}
    for i, first in enumerate(range(0, chunks[0] * len(chunks), chunks[0])):
        array, slices = _slice_of(nodes.get((X.name, i, 0)), nodes)
        last = min(first + chunks[0], sum(chunks))
        if slices != (slice(first, last), slice(0, columns[1][0])):
            return None
        arrays[id(array)] = array
    [array] = arrays.values() if len(arrays) == 1 else [None]
    return array if isinstance(array, zarr.Array) and array.shape == X.shape else None


def _slice_of(node: Any, nodes: Mapping[Key, Any]) -> tuple[Any, Any]:
    """What a node that does nothing else takes a slice of, and the slice."""
    if function_name(node) not in GETTERS:
        return None, None
    source, place = node.args[:2]
    source = nodes.get(source.key) if isinstance(source, TaskRef) else source
    if not (isinstance(source, DataNode) and isinstance(place, DataNode)):
        return None, None
    return source.value, place.value


def _checked(X: da.Array) -> da.Array:
    _check_rows(X)
    rows: da.Array = X if X.numblocks[1] == 1 else X.rechunk({1: -1})
    return rows


def _from_zarr(array: Any, gaps: Gaps, rows: int | None = None) -> da.Array:
    """A Zarr array as a Dask array in chunks of so many rows, or in its own."""
    if array.ndim == 0:
        raise DataError("The Zarr array is a single number, not rows of features.")
    check_zarr(array)
    rows = rows or (array.shards or array.chunks)[0]
    # A chunk is read whole: cutting it in columns would read it several times.
    lazy: da.Array = da.from_array(
        careful(array, gaps.missing_chunks),
        chunks=(max(1, rows), *array.shape[1:]),
        meta=np.empty((0,) * array.ndim, dtype=array.dtype),
        fancy=False,
    )
    return lazy


def _from_parquet(rows: ParquetRows, gaps: Gaps, streamed: bool = False) -> da.Array:
    """Parquet as a Dask array; streamed, one of `Stream`, that only shards can take."""
    read = _stream_spans if streamed else _read_spans
    reading = rows.reading(nulls=gaps.nan == "skip")
    name = f"parquet-{gaps.nan}-{reading.token}"
    shared = f"{name}-reading"
    graph: dict[Key, Any] = {shared: DataNode(shared, reading)}
    for i, spans in enumerate(rows.spans):
        key = (name, i, 0)
        graph[key] = Task(key, read, TaskRef(shared), _Spans(spans))
    return da.Array(
        graph,
        name,
        chunks=(rows.chunks, (rows.n_features,)),
        meta=np.empty((0, 0), dtype=rows.dtype),
    )


@final
class _Spans:
    """A plain class: Dask looks into tuples and dataclasses."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self.spans = spans


def _read_spans(reading: Reading, spans: _Spans) -> NDArray[Any]:
    return reading.block(spans.spans)


def _stream_spans(reading: Reading, spans: _Spans) -> Stream:
    return Stream(reading, spans.spans)


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


def _lazy_weights(weights: Any, rows: da.Array, gaps: Gaps) -> Any:
    """Weights cut like the rows."""
    if not is_lazy(weights):
        weights = _weights_in_memory(weights, rows)
    elif not isinstance(weights, da.Array):
        weights = _lazy_column(weights, gaps)
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


def _lazy_column(weights: Any, gaps: Gaps) -> da.Array:
    """Weights of a Zarr array, or of Parquet's only column."""
    if not isinstance(weights, ParquetRows):
        return _from_zarr(weights, gaps)
    column: da.Array = _from_parquet(weights, _NO_GAPS)
    return column[:, 0] if weights.n_features == 1 else column


def weights_of_rows_in_memory(weights: Any, gaps: Gaps) -> Any:
    """Weights of rows in memory: lazy ones are read, with the same care as rows."""
    if not is_lazy(weights):
        return weights
    weights = opened(weights)
    if not isinstance(weights, da.Array):
        weights = _lazy_column(weights, gaps)
    return with_care(weights, gaps).compute()


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


def as_block(
    index: int,
    x: Any,
    n_features: int,
    weights: Any = None,
    nan: Nan = "error",
    cut: tuple[int, int] | None = None,
) -> Block:
    """Check what was computed for a block, and leave out the rows that do not count.

    Raises
    ------
    DataError
        Naming the block, if it is no array of numbers with so many columns.
    """
    if isinstance(x, Stream):
        return Block(index, x, None)
    name = f"Block {index} of X"
    x = as_floats(x, name, nan, keep_single=True)
    if x.ndim != 2 or x.shape[1] != n_features:
        raise DataError(
            f"{name} has shape {x.shape}: expected rows of {n_features} feature(s)."
        )
    if weights is not None:
        of_weights = f"Block {index} of sample_weight"
        weights = as_floats(weights, of_weights, keep_single=False)
        if weights.shape != x.shape[:1]:
            raise DataError(
                f"{of_weights} has shape {weights.shape} but that of X has {len(x)} "
                "row(s): cut both alike."
            )
    block = Block(index, x, weights, cut)
    if nan == "skip" or (weights is not None and not weights.all()):
        return _without_gaps(block, nan)
    return block


def _without_gaps(block: Block, nan: Nan) -> Block:
    """A block less the rows that are left out; most have none of those."""
    x, weights = block.x, block.weights
    if first_not_finite(as_rows(x)) < 0:
        return block
    found = left_out(x, weights, nan)
    if found is None:
        return block
    out, n_skipped = found
    kept = np.flatnonzero(~out)
    return replace(
        block,
        rows=x[kept],
        weights=None if weights is None else weights[kept],
        numbers=kept,
        n_skipped=n_skipped,
    )


_AS_IT_IS: Final = {
    True: (np.dtype(np.float64), np.dtype(np.float32)),
    False: (np.dtype(np.float64),),
}


def as_floats(
    array: Any, name: str, nan: Nan = "error", *, keep_single: bool
) -> NDArray[Any]:
    """A computed block as float64, or float32 where that is kept.

    What is masked is NaN, if such rows are to be skipped, or else an error.
    """
    if type(array) is np.ndarray and array.dtype in _AS_IT_IS[keep_single]:
        return array
    is_masked = isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array)
    if is_masked and nan == "error":
        row = int(np.argwhere(np.ma.getmaskarray(array))[0][0])
        raise DataError(
            f"{name} has a masked entry in row {row}: fill or drop masked entries "
            "before, or pass nan='skip' to leave out rows that have one."
        )
    mask = np.ma.getmaskarray(array) if is_masked else None
    plain = np.ma.getdata(array) if isinstance(array, np.ma.MaskedArray) else array
    plain = np.asarray(plain) if np.isscalar(plain) else plain
    _check_kind(plain, name)
    dtype = float_dtype(plain.dtype) if keep_single else np.dtype(np.float64)
    # Native byte order comes with it, and no copy where nothing changes.
    floats: NDArray[Any] = plain.astype(dtype, copy=mask is not None)
    if mask is not None:
        floats[mask] = np.nan
    return floats


def block_rows(n_rows: int, n_features: int) -> int:
    """Rows of a block of an array in memory: depends on its shape alone."""
    rows = max(_MIN_BLOCK_ROWS, _BLOCK_NUMBERS // n_features)
    return max(rows, -(-n_rows // MAX_LEAVES))


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
        """See `Source.check_unchanged`; of memory, nothing tells."""

    def shards(self) -> Shards:
        """See `Source.shards`."""
        n_leaves = -(-len(self._x) // block_rows(*self._x.shape))
        bounds = shard_bounds(n_leaves, _TASKS_PER_THREAD * CPU_COUNT)
        return ThreadShards(
            [
                _ArrayShard(self._x, self._weights, self._nan, first, last)
                for first, last in pairwise(bounds)
            ],
            CPU_COUNT,
        )


@final
class _ArrayShard:
    """A run of rows of an array: each leaf is one block, converted if it need be."""

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
        """See `reduction.Shard`."""
        n_rows, d = self._x.shape
        size = block_rows(n_rows, d)
        for leaf in self._leaves:
            rows = slice(leaf * size, (leaf + 1) * size)
            weights = None if self._weights is None else self._weights[rows]
            cut = leaf * size, 0
            yield (
                leaf,
                iter([as_block(leaf, self._x[rows], d, weights, self._nan, cut)]),
            )


@final
class DaskSource(Source):
    """Rows that Dask reads, worked on by Dask's scheduler."""

    def __init__(
        self,
        x: da.Array,
        weights: da.Array | None,
        chunk_rows: int | None = None,
        gaps: Gaps = _NO_GAPS,
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
        built_for, nan = 0, self._gaps.nan

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
                partial(_ShardPlan, self.n_features, self._cut, self._streamed, nan),
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
        """See `Source.check_unchanged`."""
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
        recipes: Recipes,
        first_leaf: int,
        bounds: Sequence[int],
    ) -> None:
        self.n_features = n_features
        self.cut_rows = cut_rows
        self.streamed = streamed
        self.nan = nan
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
        self._kept: list[Block] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """All but the blocks that were made of the inputs."""
        return {**vars(self), "_kept": None}

    def __sizeof__(self) -> int:
        """Bytes held: Dask weighs by them whether to move or to spill a shard."""
        held = [*self._inputs.values(), *self._plan.recipes.literals.values()]
        n_bytes = sum(value.nbytes for value in held if isinstance(value, np.ndarray))
        return object.__sizeof__(self) + n_bytes

    def leaves(self) -> Iterator[tuple[int, Iterator[Block]]]:
        """See `reduction.Shard`."""
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
        """Blocks that are not in memory.

        Streams are taken as they are, until one shows that to read is to wait.
        """
        blocks = self._blocks()
        if not self._plan.streamed:
            yield from _read_ahead(blocks)
            return
        for block in blocks:
            yield block
            if isinstance(block.rows, Stream) and block.rows.waited:
                # The file that is open goes to the other thread and comes back.
                _reader().submit(go_on_with, let_go()).result()
                yield from _read_ahead(blocks)
                go_on_with(_reader().submit(let_go).result())

    def _resident(self) -> Generator[Block]:
        """Blocks of what is in memory: checked once, not on each pass."""
        if self._kept is None:
            self._kept = list(self._blocks())
        yield from self._kept

    def _block(self, index: int, made: tuple[Any, ...]) -> Block:
        """A block from its recipe's values: rows, and weights if there are any."""
        plan, cut = self._plan, None
        if plan.cut_rows is not None:
            block_rows, chunk_rows = plan.cut_rows
            cut = index * block_rows, chunk_rows
        weights = made[1] if len(made) > 1 else None
        return as_block(index, made[0], plan.n_features, weights, plan.nan, cut)

    def _blocks(self) -> Generator[Block]:
        made = iter(self._plan.recipes.make(self._inputs))
        for index in range(self._plan.bounds[0], self._plan.bounds[-1]):
            try:
                # Passed on at once: a name here would keep the block alive.
                block = [self._block(index, next(made))]
            except DataError:
                raise
            except Exception as error:
                error.add_note(f"This happened while block {index} of X was read.")
                raise
            yield block.pop()


_thread: Final = threading.local()
forget_thread(_thread)  # its reader is a thread


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
    """Make the next blocks in another thread while the last ones are worked on."""
    reader = _reader()
    coming = reader.submit(_take, blocks)
    try:
        while ready := coming.result():
            coming = reader.submit(_take, blocks)
            while ready:
                # Passed on without a name here, which would keep it alive.
                yield ready.popleft()
    finally:
        wait([coming])
        blocks.close()


def _take(blocks: Generator[Block]) -> deque[Block]:
    """The next block, or several small ones: to change threads for each costs more."""
    taken: deque[Block] = deque()
    n_bytes = 0
    for block in blocks:
        taken.append(block)
        n_bytes += block.x.nbytes
        if n_bytes >= _HANDED_BYTES:
            break
    return taken
