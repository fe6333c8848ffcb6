"""Lazy rows of any kind as one Dask array, read with care."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, final

import dask.array as da
import numpy as np
import zarr
from dask.array.utils import meta_from_array
from dask.blockwise import Blockwise
from dask.highlevelgraph import HighLevelGraph, Layer, MaterializedLayer
from numpy.typing import NDArray

from daskgmm.data.block import NO_GAPS, check_kind
from daskgmm.data.dask_graph import (
    GETTERS,
    DataNode,
    Graph,
    Key,
    Task,
    TaskRef,
    changed,
    function_name,
    is_task,
    moves_rows,
)
from daskgmm.data.gaps import Gaps
from daskgmm.data.opening import open_rows
from daskgmm.data.packed import check_zarr
from daskgmm.data.parquet import ParquetRows
from daskgmm.data.parquet_reader import Reading, Span, Stream
from daskgmm.data.zarr_reader import Care, careful
from daskgmm.errors import DataError

_READ_BYTES: Final = 16_000_000
"""Small chunks of a Zarr array are read together until they make this many."""
_READS: Final = 16
"""Reads that are left at least, so that there is work for several threads."""


def is_lazy(X: Any) -> bool:
    """Whether rows are read block by block: Dask, Zarr, Parquet, or a place of them."""
    return isinstance(X, da.Array | zarr.Array | ParquetRows | str | os.PathLike)


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


def as_dask(X: Any, gaps: Gaps = NO_GAPS) -> da.Array:
    """Lazy rows as a Dask array in one column of chunks, cut as X is.

    Raises
    ------
    DataError, StoreError
        As `open_source`.
    """
    X = opened(X)
    if isinstance(X, ParquetRows):
        return from_parquet(X, gaps)
    return _checked(X if isinstance(X, da.Array) else from_zarr(X, gaps))


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
    return da.Array(graph, X.name, X.chunks, meta=meta_from_array(X))


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


def grouped(X: Any, gaps: Gaps) -> tuple[da.Array, int | None]:
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
        lazy = X if isinstance(X, da.Array) else from_zarr(array, gaps)
        return _checked(lazy), None
    return _checked(from_zarr(array, gaps, rows)), chunk_rows


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


def from_zarr(array: Any, gaps: Gaps, rows: int | None = None) -> da.Array:
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


def from_parquet(rows: ParquetRows, gaps: Gaps, streamed: bool = False) -> da.Array:
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
    check_kind(meta_from_array(X), "X")


def slices_of_some(
    X: da.Array, n_blocks: int, n_rows: int, random: np.random.Generator
) -> da.Array:
    """Slices of some blocks, about so many rows in all.

    Not more is kept, nor read where less can be: a single slice of a block is all that
    Dask asks its source for. Rows may be in some order: so of fewer blocks, several
    slices are taken, that lie all over them.
    """
    chosen = sorted(random.permutation(X.numblocks[0])[:n_blocks].tolist())
    each = -(-n_rows // max(len(chosen), 1))
    n_slices = n_blocks // max(len(chosen), 1)
    lengths = np.array(X.chunks[0], dtype=float)
    if np.isnan(lengths).any():
        some: da.Array = X.blocks[chosen].map_blocks(_first, each)
        return some
    ends = np.cumsum(lengths)
    slices = []
    for block in chosen:
        begin, end = int(ends[block] - lengths[block]), int(ends[block])
        if end - begin <= each:
            slices.append(X[begin:end])
            continue
        size = -(-each // n_slices)
        bounds = np.linspace(begin, end, -(-each // size) + 1).astype(int)
        for first, last in pairwise(bounds.tolist()):
            start = first + int(random.integers(max(0, last - first - size) + 1))
            slices.append(X[start : min(start + size, last)])
    return da.concatenate(slices) if slices else X


def _first(block: Any, n_rows: int) -> Any:
    # A copy: a view would hold the whole block.
    return block[:n_rows].copy()
