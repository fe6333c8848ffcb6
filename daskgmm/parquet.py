"""Parquet files as blocks of rows: lengths from the footers, columns by name.

A row group may be larger than a worker's memory, and Parquet has no way to begin in the
middle of one. So a thread keeps the row group that it reads open: blocks that follow
each other, as in a pass, take up where the last one ended.
"""

from __future__ import annotations

import os
import sys
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain, pairwise
from time import perf_counter, thread_time
from typing import TYPE_CHECKING, Any, Final, TypeVar, final

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from daskgmm import config
from daskgmm.errors import DataError, StoreError
from daskgmm.forking import forget_thread
from daskgmm.kernel import Columns, tile_rows
from daskgmm.patience import retrying, retrying_or

if TYPE_CHECKING:
    import pyarrow as pa

_T = TypeVar("_T")
Filters = Sequence[Any]
"""(column, operator, value), all of which must hold, or lists of them, one of which."""

BLOCK_BYTES: Final = 16_000_000
"""Rows that make up so much are read together."""
_BLOCKS: Final = 16
"""Blocks that are left at least, so that there is work for several threads."""
_BATCH_BYTES: Final = 2**21
_FETCHED_GROUP_BYTES: Final = 64_000_000
"""Columns of a row group that take more, compressed, are read piece by piece."""
_FETCHED_BYTES: Final = 1_000_000
_GROUPS_AT_ONCE: Final = 16
"""To begin costs a millisecond, and a tenth of one for each row group."""
_LOCAL_BYTES: Final = 2**16
"""Pieces of columns of a local file, each column's in memory of its own."""
_MEMORIES: Final = 2
"""Blocks whose memory a thread uses in turn: one is read, one is worked on."""
_FOOTERS_AT_ONCE: Final = 16
_SUFFIXES: Final = (".parquet", ".parq", ".pq")


@final
@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive rows of a row group.

    Attributes
    ----------
    path : str
        Of the file, in its file system.
    group : int
        Number of the row group in it.
    start, stop : int
        Rows of the file.
    partition : tuple of (str, object)
        Columns that are in the path alone, `key=value`.
    """

    path: str
    group: int
    start: int
    stop: int
    partition: tuple[tuple[str, Any], ...] = ()

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start


@final
class ParquetRows:
    """Rows of Parquet files, read block by block.

    Attributes
    ----------
    url : str
    columns : tuple of str
        The features, in order.
    n_blocks : int
    chunks : tuple of int or NaN
        Rows of each block; NaN where filters pick some of them.
    dtype : dtype
        float32 if all columns are, else float64.
    """

    def __init__(
        self,
        url: str,
        columns: Sequence[str],
        dtype: np.dtype[Any],
        spans: Sequence[Sequence[Span]],
        filters: Filters | None,
        storage_options: Mapping[str, Any],
    ) -> None:
        self.url = url
        self.columns = tuple(columns)
        self.dtype = dtype
        self.spans = tuple(tuple(block) for block in spans)
        self.filters = filters
        self._storage_options = dict(storage_options)
        # Not by the place: a file that was written anew is to be opened anew.
        self._token = uuid.uuid4().hex

    def __repr__(self) -> str:
        return f"ParquetRows({self.url!r}, columns={list(self.columns)})"

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.spans)

    @property
    def chunks(self) -> tuple[float, ...]:
        """Rows of each block."""
        if self.filters:
            return (np.nan,) * self.n_blocks
        return tuple(sum(span.n_rows for span in block) for block in self.spans)

    @property
    def is_local(self) -> bool:
        """Whether the files are in this machine's file system."""
        files, _ = fsspec.url_to_fs(self.url, **self._storage_options)
        return isinstance(files, LocalFileSystem)

    @property
    def starts(self) -> frozenset[int]:
        """Blocks that begin a row group: from others, what lies before is read too."""
        groups = [(block[0].path, block[0].group) for block in self.spans if block]
        first_blocks = {group: i for i, group in reversed([*enumerate(groups)])}
        return frozenset(first_blocks.values())

    @property
    def n_rows(self) -> float:
        """Rows in all; NaN where filters pick some of them."""
        return sum(self.chunks)

    @property
    def _meta(self) -> Any:
        """An empty DataFrame of the features, as Dask's DataFrames have."""
        import pandas as pd

        return pd.DataFrame({name: np.empty(0, self.dtype) for name in self.columns})

    def reading(self) -> Reading:
        """How a block is read."""
        return Reading(
            self.url,
            self.columns,
            self.dtype,
            self.filters,
            self._storage_options,
            config.count("storage-retries"),
            self._token,
        )

    def read_table(self, index: int, columns: Sequence[str]) -> pa.Table:
        """Some columns of a block, in Arrow's form, row by row as in the block.

        Raises
        ------
        DataError
            If there is no such column.
        StoreError
            If the file cannot be read.
        """
        return self.reading().table(self.spans[index], columns)


@final
@dataclass(frozen=True)
class Reading:
    """How blocks are read: what travels to the workers once for all of them."""

    url: str
    columns: tuple[str, ...]
    dtype: np.dtype[Any]
    filters: Filters | None
    storage_options: Mapping[str, Any] = field(repr=False)
    retries: int
    token: str

    def block(self, spans: Sequence[Span]) -> NDArray[Any]:
        """Rows of some spans, (n, d), column by column as Parquet has them.

        Raises
        ------
        DataError
            If a value is null; it names the file, the column and the row.
        StoreError
            If a file cannot be read.
        """
        n_rows = sum(span.n_rows for span in spans)
        rows = _empty(n_rows, len(self.columns), self.dtype)
        filled = 0
        for part in self._parts(spans):
            for j, column in enumerate(part.columns):
                rows[filled : filled + len(part), j] = column
            filled += len(part)
        return rows[:filled]

    def parts(self, spans: Sequence[Span]) -> Iterator[Columns | NDArray[Any]]:
        """Rows of some spans, a few at a time, where Arrow has put them.

        They end where the kernel's tiles do: its sums are those of the rows in one
        piece, bit for bit, wherever a batch of Arrow's ends.

        Raises
        ------
        DataError, StoreError
            As `block`.
        """
        tile = tile_rows(len(self.columns))
        rest: NDArray[Any] | None = None
        for part in self._parts(spans):
            taken = 0
            if rest is not None:
                taken = min(tile - len(rest), len(part))
                rest = np.concatenate([rest, part[:taken].array()])
                if len(rest) < tile:
                    continue
                yield rest
            whole = taken + (len(part) - taken) // tile * tile
            if taken < whole:
                yield part[taken:whole]
            rest = part[whole:].array() if whole < len(part) else None
        if rest is not None:
            yield rest

    def table(self, spans: Sequence[Span], columns: Sequence[str]) -> pa.Table:
        """See `ParquetRows.read_table`."""
        import pyarrow as pa

        batches = [batch for span in spans for _, batch in self._batches(span, columns)]
        tables = [pa.Table.from_batches([batch]) for batch in batches]
        if not tables:
            return pa.table({name: pa.nulls(0) for name in columns})
        # Files may differ in types, such as int32 and int64.
        return pa.concat_tables(tables, promote_options="permissive")

    def _next(self, span: Span, columns: Sequence[str]) -> Any:
        """The next batch of a span, in spite of a store that fails now and then."""

        def read() -> Any:
            try:
                return _reader(self, span, columns).take(span)
            except Exception:
                _close()  # it may be in the middle of a batch
                raise

        return retrying_or(
            lambda error: StoreError(
                f"Row group {span.group} of the Parquet file {span.path} cannot be "
                f"read, after {self.retries + 1} attempts: {type(error).__name__}: "
                f"{error}. If the store is at fault, try again later; if the file is "
                "damaged, write it anew."
            ),
            read,
            self.retries,
        )

    def _parts(self, spans: Sequence[Span]) -> Iterator[Columns]:
        """The features' numbers, a few rows at a time."""
        for span in spans:
            for row, batch in self._batches(span, self.columns):
                if batch.num_rows:
                    first = None if self.filters else row
                    yield _as_columns(batch, self.dtype, span, first)

    def _batches(self, span: Span, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
        """The span's rows, a few at a time, without those that a filter drops.

        With each of them the row of the file where they began, before the filter.
        """
        partition = dict(span.partition)
        wanted = [name for name in columns if name not in partition]
        asked = [name for name in filter_columns(self.filters) if name not in partition]
        to_read = list(dict.fromkeys([*wanted, *asked]))
        while span.n_rows:
            batch = self._next(span, to_read)
            for picked in self._picked(batch, partition, columns):
                yield span.start, picked
            span = replace(span, start=span.start + batch.num_rows)

    def _picked(
        self, batch: Any, partition: Mapping[str, Any], columns: Sequence[str]
    ) -> Iterable[Any]:
        if not self.filters and not partition:
            same = batch.schema.names == list(columns)
            return [batch if same else batch.select(list(columns))]
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_batches([batch])
        for name, value in partition.items():
            constant = pa.repeat(pa.scalar(value), batch.num_rows)
            table = table.append_column(name, constant)
        if self.filters:
            table = table.filter(pq.filters_to_expression(self.filters))
        picked = table.select(list(columns))
        # None of an empty table, whose types are wanted all the same.
        return picked.to_batches() or [pa.RecordBatch.from_pylist([], picked.schema)]


@final
class Stream:
    """Rows of a block that are read as they are asked for: in one piece, or in parts.

    Attributes
    ----------
    n_rows, n_columns : int
        Before filters.
    waited : bool
        Whether to read took mostly other than the reading thread's own time, so that
        the thread could have done something else meanwhile.
    """

    def __init__(self, reading: Reading, spans: Sequence[Span]) -> None:
        self._reading, self._spans = reading, spans
        self._array: NDArray[Any] | None = None
        self._seconds = self._own_seconds = 0.0
        self.n_rows = sum(span.n_rows for span in spans)
        self.n_columns = len(reading.columns)

    @property
    def waited(self) -> bool:
        """See the class."""
        return self._own_seconds < self._seconds / 2

    def array(self) -> NDArray[Any]:
        """All rows, (n, d); read once. Errors as of `Reading.block`."""
        if self._array is None:
            with self._clock():
                self._array = self._reading.block(self._spans)
        return self._array

    def parts(self) -> Iterator[Columns | NDArray[Any]]:
        """The rows as of `Reading.parts`, or as the array if that was read."""
        if self._array is not None:
            yield self._array
            return
        parts = self._reading.parts(self._spans)
        while True:
            with self._clock():
                part = next(parts, None)
            if part is None:
                return
            yield part

    @contextmanager
    def _clock(self) -> Iterator[None]:
        began, own = perf_counter(), thread_time()
        try:
            yield
        finally:
            self._seconds += perf_counter() - began
            self._own_seconds += thread_time() - own


def _empty(n_rows: int, n_columns: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Rows to be filled, (n, d), each column in one piece.

    In memory that a block took which nobody holds any more, if there is some: to clear
    new memory takes the system as long as to read half a block.
    """
    n_bytes = n_rows * n_columns * dtype.itemsize
    memory = _memory(n_bytes)
    lines = memory[:n_bytes].view(dtype).reshape(n_columns, n_rows)
    return lines.T


def _memory(n_bytes: int) -> NDArray[np.uint8]:
    """Memory of this thread that is free, or new."""
    if not hasattr(_thread, "memories"):
        _thread.memories = deque(maxlen=_MEMORIES)
    memories: deque[NDArray[np.uint8]] = _thread.memories
    for i in range(len(memories)):
        # Held by the deque, and for the question. What is a view of it holds it too.
        if len(memories[i]) >= n_bytes and sys.getrefcount(memories[i]) == 2:
            return memories[i]
    memory = np.empty(n_bytes, np.uint8)
    if n_bytes <= BLOCK_BYTES:
        memories.append(memory)
    return memory


def _as_columns(
    batch: Any, dtype: np.dtype[Any], span: Span, first: int | None
) -> Columns:
    """A batch's numbers, of which the first row is known or not; a null is an error."""
    from pyarrow import types

    columns = []
    for j, column in enumerate(batch.columns):
        if column.null_count:
            raise _null(batch.schema.names[j], column, span, first)
        if types.is_decimal(column.type):
            column = column.cast("float64")
        numbers = column.to_numpy(zero_copy_only=False)
        columns.append(numbers.astype(dtype, copy=False))
    return Columns(tuple(columns))


def _null(name: str, column: Any, span: Span, first: int | None) -> DataError:
    null = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
    row = "" if first is None else f", row {first + null}"
    return DataError(
        f"Column {name!r} has a null in row group {span.group}{row} of the Parquet "
        f"file {span.path}: fill nulls before, or leave out such rows with "
        f"filters=[({name!r}, '>', float('-inf'))]."
    )


def _is_plain(kind: Any) -> bool:
    from pyarrow import types

    return bool(
        types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind)
    )


@final
class _Reader:
    """A file that is read from a row group on, and where it stands."""

    def __init__(
        self,
        reading: Reading,
        span: Span,
        columns: Sequence[str],
        metadata: Any = None,
    ) -> None:
        import pyarrow.parquet as pq

        files, _ = fsspec.url_to_fs(reading.url, **reading.storage_options)
        is_local = isinstance(files, LocalFileSystem)
        options: dict[str, Any] = {} if is_local else {"filesystem": _arrow(files)}
        self.metadata = metadata or pq.read_metadata(span.path, **options)
        # What is fetched from another machine is fetched by whole row groups, as each
        # page would be a request.
        size = _compressed_bytes(self.metadata, span.group, columns)
        whole = not is_local and size <= _FETCHED_GROUP_BYTES
        self._file = pq.ParquetFile(
            span.path,
            metadata=self.metadata,
            pre_buffer=whole,
            buffer_size=0 if whole else _LOCAL_BYTES if is_local else _FETCHED_BYTES,
            **options,
        )
        groups = range(self.metadata.num_row_groups)
        self.position = sum(
            self.metadata.row_group(i).num_rows for i in groups[: span.group]
        )
        # Of several whole ones at once, all would be fetched at once; and batches begin
        # anew with each large one.
        n_bytes = self.metadata.row_group(span.group).num_rows * len(columns) * 8
        at_once = 1 if whole or n_bytes >= BLOCK_BYTES else _GROUPS_AT_ONCE
        firsts = range(span.group, len(groups), at_once)
        self._batches = chain.from_iterable(
            self._file.iter_batches(
                batch_size=_batch_rows(len(columns)),
                row_groups=list(groups[first : first + at_once]),
                columns=list(columns),
                use_threads=False,
            )
            for first in firsts
        )
        self._rest: Any = None

    def take(self, span: Span) -> Any:
        """The next batch of the span's rows; those before it are read and left."""
        while True:
            batch = next(self._batches) if self._rest is None else self._rest
            first = max(span.start - self.position, 0)
            stop = min(span.stop - self.position, batch.num_rows)
            self._rest = batch.slice(stop) if stop < batch.num_rows else None
            self.position += stop
            if first < stop:
                return batch.slice(first, stop - first)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _batch_rows(n_columns: int) -> int:
    """Rows of a batch: 2^k of the kernel's tiles, as row groups have 2^k rows often."""
    rows, most = tile_rows(n_columns), _BATCH_BYTES // (n_columns * 8)
    while 2 * rows <= most:
        rows *= 2
    return rows


def _compressed_bytes(metadata: Any, group: int, columns: Sequence[str]) -> int:
    found = metadata.row_group(group)
    parts = (found.column(i) for i in range(found.num_columns))
    return sum(
        part.total_compressed_size
        for part in parts
        if part.path_in_schema.split(".")[0] in columns
    )


_thread: Final = threading.local()
forget_thread(_thread)  # the file that is open is read by its parent, too


def _reader(reading: Reading, span: Span, columns: Sequence[str]) -> _Reader:
    """A reader of this thread that stands before the span's rows, or a new one."""
    of = (reading.token, span.path, tuple(columns))
    reader: _Reader
    metadata = None
    if (kept := getattr(_thread, "kept", None)) is not None:
        kept_of, reader, group = kept
        # Not over row groups that a filter excludes.
        near = reader.position == span.start or group == span.group
        if kept_of == of and reader.position <= span.start and near:
            _thread.kept = of, reader, span.group
            return reader
        if kept_of[:2] == of[:2]:
            metadata = reader.metadata
        _close()
    reader = _Reader(reading, span, columns, metadata)
    _thread.kept = of, reader, span.group
    return reader


def let_go() -> Any:
    """Leave the open file, if there is one, for another thread to go on with."""
    kept, _thread.kept = getattr(_thread, "kept", None), None
    return kept


def go_on_with(kept: Any) -> None:
    """Take over a file that another thread let go."""
    _close()
    _thread.kept = kept


def _close() -> None:
    """Close this thread's reader, if there is one."""
    if (kept := getattr(_thread, "kept", None)) is not None:
        _thread.kept = None
        kept[1].close()


def _arrow(files: Any) -> Any:
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return PyFileSystem(FSSpecHandler(files))


def filter_columns(filters: Filters | None) -> list[str]:
    """Names of the columns that filters look at."""
    flat = [f for group in filters or () for f in _as_group(group)]
    return list(dict.fromkeys(name for name, _, _ in flat))


def _as_group(group: Any) -> list[Any]:
    return [group] if isinstance(group, tuple) else list(group)


def _is_glob(place: str) -> bool:
    return any(mark in place for mark in "*?[")


def is_parquet(
    url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> bool:
    """Whether a place is Parquet by its name, or a folder with such files in it."""
    text = os.fspath(url)
    if has_suffix(text):
        return True
    if _is_glob(text):
        return False

    def looks_like_it() -> bool:
        files, path = fsspec.url_to_fs(text, **(storage_options or {}))
        if files.exists(f"{path}/zarr.json"):
            return False
        if files.info(path)["type"] != "directory":  # `isdir` hides that a store fails
            return False
        names = [str(n).rsplit("/", 1)[-1] for n in files.ls(path, detail=False)]
        return "zarr.json" not in names and any(
            has_suffix(name) or "=" in name for name in names
        )

    try:
        return retrying(looks_like_it)
    except (OSError, ImportError, ValueError):
        return False  # whoever opens it says what is wrong


def has_suffix(name: str) -> bool:
    """Whether a name is one of Parquet."""
    return name.rstrip("/").endswith(_SUFFIXES)


def open_parquet(
    url: str | os.PathLike[str],
    columns: Sequence[str] | None = None,
    filters: Filters | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> ParquetRows:
    """Rows of a Parquet file, or of all files of a folder or a glob.

    Only the footers are read here. Folders of Hive's form, `key=value`, give columns
    that filters can look at.

    Parameters
    ----------
    url : str or path
        A file, a folder or a glob; any URL that fsspec knows.
    columns : sequence of str, default=None
        The features, in order; without them all columns of the first file.
    filters : sequence, default=None
        Which rows: tuples (column, operator, value) that must all hold, or lists of
        them of which one must; operators as `pyarrow.parquet.read_table` has them.
    storage_options : mapping, default=None
        What fsspec needs to open the store.

    Returns
    -------
    ParquetRows
        To be passed as `X`.

    Raises
    ------
    DataError
        If a file lacks a column, or has one that does not hold numbers.
    StoreError
        If there is nothing, or a file that is no Parquet file.
    """
    text, options = os.fspath(url), dict(storage_options or {})
    expression = _expression(filters)
    fragments = _fragments(text, options, expression)
    if columns is None:
        columns = fragments[0].physical_schema.names
    elif isinstance(columns, str) or not len(columns):
        raise DataError(f"columns must be a list of names, got {columns!r}.")
    partitions = [_partition(fragment) for fragment in fragments]
    dtypes = {
        _check_schema(fragment, columns, filters, partition)
        for fragment, partition in zip(fragments, partitions, strict=True)
    }
    [dtype] = dtypes if len(dtypes) == 1 else [np.dtype(np.float64)]
    spans = [
        span
        for fragment, partition in zip(fragments, partitions, strict=True)
        for span in _spans(fragment, partition)
    ]
    in_files = set(filter_columns(filters)) - set().union(*partitions)
    return ParquetRows(
        text,
        columns,
        dtype,
        _blocks(spans, len(columns), dtype.itemsize),
        filters if in_files else None,  # else the folders were picked already
        options,
    )


def _spans(fragment: Any, partition: Mapping[str, Any]) -> Iterator[Span]:
    """Row groups that are to be read of a file."""
    found = fragment.metadata
    n_rows = [found.row_group(i).num_rows for i in range(found.num_row_groups)]
    firsts = [0, *accumulate(n_rows)]
    for group in fragment.row_groups:
        first, stop = firsts[group.id : group.id + 2]
        yield Span(fragment.path, group.id, first, stop, tuple(partition.items()))


def _expression(filters: Filters | None) -> Any:
    if not filters:
        return None
    from pyarrow.parquet import filters_to_expression

    try:
        filter_columns(filters)
        return filters_to_expression(filters)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"filters must be tuples (column, operator, value), or lists of them, got "
            f"{filters!r}: {error}"
        ) from error


def _of_dataset(url: str, options: Mapping[str, Any], look: Callable[[Any], _T]) -> _T:
    """What all files of a place together, as Arrow's dataset, look like.

    It is looked at again while its store fails; an error names the place.
    """
    try:
        import pyarrow as pa
        import pyarrow.dataset as ds
    except ImportError as error:
        raise ImportError(
            "Parquet needs pyarrow: pip install 'daskgmm[parquet]'."
        ) from error

    def look_once() -> _T:
        files, path = fsspec.url_to_fs(url, **options)
        if _is_glob(path):
            paths: Any = sorted(files.glob(path))
        else:
            files.info(path)  # `exists` says no for a store that fails
            paths = path
        if not paths:
            raise FileNotFoundError
        filesystem = None if isinstance(files, LocalFileSystem) else _arrow(files)
        return look(
            ds.dataset(
                paths, format="parquet", filesystem=filesystem, partitioning="hive"
            )
        )

    try:
        return retrying(look_once)
    except FileNotFoundError as error:
        raise StoreError(f"There is no Parquet file at {url}.") from error
    except (OSError, pa.ArrowException, ImportError, ValueError) as error:
        raise StoreError(f"No Parquet can be opened at {url}: {error}") from error


def summary(url: str) -> tuple[list[str], int]:
    """Names of the columns, whatever they hold, and number of rows.

    Raises
    ------
    StoreError
        If there is nothing that can be read.
    """
    names, everything = _of_dataset(
        url, {}, lambda found: (found.schema.names, _picked_fragments(found, None))
    )
    # Not count_rows: where one request in ten fails, it does with some hundred.
    files = _with_footers(everything, url, None)
    return names, sum(file.metadata.num_rows for file in files)


def _fragments(url: str, options: Mapping[str, Any], expression: Any) -> list[Any]:
    """What is to be read, file by file, each with its footer."""
    everything = _of_dataset(
        url, options, lambda found: _picked_fragments(found, expression)
    )
    return _with_footers(everything, url, expression)


def _with_footers(everything: list[Any], url: str, expression: Any) -> list[Any]:
    """All fragments of a place; see `_with_footer`."""
    if not everything:
        raise StoreError(f"There is no Parquet file at {url}.")
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        return list(pool.map(lambda f: _with_footer(f, expression), everything))


def _picked_fragments(found: Any, expression: Any) -> list[Any]:
    """Files by their paths; one at least, for its schema."""
    import pyarrow as pa

    try:
        picked = list(found.get_fragments(filter=expression))
    except pa.ArrowInvalid:
        picked = []  # a column is missing, say: found and named below
    return picked or list(found.get_fragments())


def _with_footer(fragment: Any, expression: Any) -> Any:
    """A fragment with its row groups, less those that no row can be picked from."""
    import pyarrow as pa

    try:
        retrying(fragment.ensure_complete_metadata)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(
            f"The Parquet file {fragment.path} cannot be read: {error}"
        ) from error
    if expression is None:
        return fragment
    try:
        return fragment.subset(filter=expression, schema=_whole_schema(fragment))
    except (pa.ArrowException, ValueError):
        return fragment  # a column is missing, say: found and named below


def _whole_schema(fragment: Any) -> Any:
    """A file's schema, and the columns of its path."""
    import pyarrow as pa

    schema = fragment.physical_schema
    for name, value in _partition(fragment).items():
        schema = schema.append(pa.field(name, pa.scalar(value).type))
    return schema


def _partition(fragment: Any) -> dict[str, Any]:
    """Columns that are in a file's path alone."""
    import pyarrow.dataset as ds

    found = ds.get_partition_keys(fragment.partition_expression)
    return {k: v for k, v in found.items() if k not in fragment.physical_schema.names}


def _check_schema(
    fragment: Any,
    columns: Sequence[str],
    filters: Filters | None,
    partition: Mapping[str, Any],
) -> np.dtype[Any]:
    """Dtype of the features; an error if one is missing or holds no numbers."""
    from pyarrow import types

    schema = _whole_schema(fragment)
    for name in [*columns, *filter_columns(filters)]:
        if name not in schema.names:
            raise DataError(
                f"The Parquet file {fragment.path} has no column {name!r}: it has "
                f"{', '.join(map(repr, schema.names))}."
            )
    kinds = [schema.field(name).type for name in columns]
    for name, kind in zip(columns, kinds, strict=True):
        if not (_is_plain(kind) or types.is_decimal(kind)):
            raise DataError(
                f"Column {name!r} of the Parquet file {fragment.path} holds {kind}, no "
                "numbers: name the columns to use with columns=[…]."
            )
    single = all(types.is_float32(kind) for kind in kinds)
    return np.dtype(np.float32 if single else np.float64)


def _blocks(spans: Sequence[Span], n_columns: int, itemsize: int) -> list[list[Span]]:
    """Spans cut and joined so that blocks are of a good size."""
    total = sum(span.n_rows for span in spans)
    most = max(1, min(BLOCK_BYTES // (n_columns * itemsize), -(-total // _BLOCKS)))
    blocks: list[list[Span]] = [[]]
    n_rows = 0
    for span in spans:
        for part in _cut(span, most, _batch_rows(n_columns)):
            if n_rows + part.n_rows > most and blocks[-1]:
                blocks.append([])
                n_rows = 0
            blocks[-1].append(part)
            n_rows += part.n_rows
    return blocks


def _cut(span: Span, most: int, batch_rows: int) -> list[Span]:
    """A span in parts of as equal a length as can be, of whole batches if they fit."""
    unit = batch_rows if batch_rows <= most else 1
    n_units = -(-span.n_rows // unit)
    n_parts = -(-n_units // (most // unit))
    ends = [unit * (n_units * i // n_parts) for i in range(n_parts)]
    return [
        replace(span, start=span.start + first, stop=span.start + last)
        for first, last in pairwise([*ends, span.n_rows])
    ]
