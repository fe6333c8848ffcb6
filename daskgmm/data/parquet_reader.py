"""Rows of Parquet files, decoded block by block wherever the work is done.

A row group may be larger than a worker's memory, and Parquet has no way to begin in the
middle of one. So a thread keeps the row group that it reads open: blocks that follow
each other, as in a pass, take up where the last one ended.
"""

from __future__ import annotations

import hashlib
import io
import platform
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from time import perf_counter, thread_time
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from daskgmm.data.fetched import AHEAD_BYTES, FetchedFile, Range
from daskgmm.data.signed import Pieces
from daskgmm.data.table_files import changed
from daskgmm.errors import DataError, StoreError
from daskgmm.execution.forking import forget_thread
from daskgmm.kernel.layout import Columns
from daskgmm.kernel.tile import tile_rows
from daskgmm.storage.facts import facts_of_entry, facts_of_path
from daskgmm.storage.retry import retrying_or
from daskgmm.storage.urls import files_of

if TYPE_CHECKING:
    import pyarrow as pa

Filters = Sequence[Any]
"""(column, operator, value), all of which must hold, or lists of them, one of which."""

BLOCK_BYTES: Final = 16_000_000
"""Rows that make up so much are read together."""
_BATCH_BYTES: Final = 2**21
_PIECE_BYTES: Final = 200_000, 8_000_000
"""Least and most of a column that is fetched at once, if there is so much."""
_GROUPS_AT_ONCE: Final = 16
"""To begin costs a millisecond, and a tenth of one for each row group."""
_BUFFER_BYTES: Final = 2**16
"""Pieces of columns that are read, each column's in memory of its own."""
_READERS: Final = 2
"""Files that a thread keeps open: that of the rows, and that of their weights."""
_MEMORIES: Final = 2
"""Blocks whose memory a thread uses in turn: one is read, one is worked on."""


@final
@dataclass(frozen=True, slots=True)
class Footer:
    """By what another file in a file's place is noticed.

    Attributes
    ----------
    n_rows, n_groups, n_bytes : int
        Of the file, and of its footer.
    digest : str
        Of all that the footer says: statistics and places of the columns.
    arrow : str
        The version of Arrow that wrote it down for the digest; others may differ.
    """

    n_rows: int
    n_groups: int
    n_bytes: int
    digest: str
    arrow: str

    @classmethod
    def of(cls, metadata: Any) -> Footer:
        """That of a file's metadata."""
        import pyarrow as pa

        written = io.BytesIO()
        metadata.write_metadata_file(written)
        return cls(
            metadata.num_rows,
            metadata.num_row_groups,
            metadata.serialized_size,
            hashlib.sha256(written.getbuffer()).hexdigest()[:32],
            pa.__version__,
        )

    def is_of_same_file(self, other: Footer) -> bool:
        """Whether two footers may be of the same file."""
        if self.arrow != other.arrow:
            other = replace(other, digest=self.digest, arrow=self.arrow)
        return self == other


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
    footer : Footer
        Of the file, when it was opened.
    partition : tuple of (str, object)
        Columns that are in the path alone, `key=value`.
    """

    path: str
    group: int
    start: int
    stop: int
    footer: Footer
    partition: tuple[tuple[str, Any], ...] = ()

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start


Part = Columns | NDArray[Any]
"""Rows, (n, d), as Arrow has them: column by column, or, of lists, row by row."""


@final
@dataclass(frozen=True)
class Reading:
    """How blocks are read: what travels to the workers once for all of them.

    Attributes
    ----------
    url : str
    columns : tuple of str
        In the files; a field of a struct is `struct.field`.
    widths : tuple of int
        Features that each gives: of lists, their length; of numbers, 0 stands for one.
    dtype : dtype
    filters : sequence or None
    nulls : bool
        Whether nulls are NaN, and no error.
    storage_options : mapping
    retries : int
    token : str
        By which readings are told apart.
    """

    url: str
    columns: tuple[str, ...]
    widths: tuple[int, ...]
    dtype: np.dtype[Any]
    filters: Filters | None
    nulls: bool
    storage_options: Mapping[str, Any] = field(repr=False)
    retries: int
    token: str

    @property
    def n_features(self) -> int:
        """Number of features, d."""
        return sum(max(1, width) for width in self.widths)

    def block(self, spans: Sequence[Span]) -> NDArray[Any]:
        """Rows of some spans, (n, d), in the layout that Parquet has them in.

        Raises
        ------
        DataError
            If a value is null, or a list of another length; it names the file, the
            column and the row.
        StoreError
            If a file cannot be read, or is not as it was.
        """
        n_rows = sum(span.n_rows for span in spans)
        by_row = len(self.widths) == 1 and self.widths[0] > 0
        rows = _empty(n_rows, self.n_features, self.dtype, by_row=by_row)
        filled = 0
        for part in self._parts(spans):
            into = rows[filled : filled + len(part)]
            if isinstance(part, Columns):
                for j, column in enumerate(part.columns):
                    into[:, j] = column
            else:
                into[:] = part
            filled += len(part)
        return rows[:filled]

    def parts(self, spans: Sequence[Span]) -> Iterator[Part]:
        """Rows of some spans, a few at a time, where Arrow has put them.

        They end where the kernel's tiles do: its sums are those of the rows in one
        piece, bit for bit, wherever a batch of Arrow's ends.

        Raises
        ------
        DataError, StoreError
            As `block`.
        """
        tile = tile_rows(self.n_features)
        rest: NDArray[Any] | None = None
        for part in self._parts(spans):
            taken = 0
            if rest is not None:
                taken = min(tile - len(rest), len(part))
                rest = np.concatenate([rest, _copied(part[:taken])])
                if len(rest) < tile:
                    continue
                yield rest
            whole = taken + (len(part) - taken) // tile * tile
            if taken < whole:
                yield part[taken:whole]
            rest = _copied(part[whole:]) if whole < len(part) else None
        if rest is not None:
            yield rest

    def table(self, spans: Sequence[Span], columns: Sequence[str]) -> pa.Table:
        import pyarrow as pa

        lasts = _last_groups(spans)
        tables = [
            pa.table({name: _values(batch, name) for name in columns})
            for span in spans
            for _, batch in self._batches(span, lasts[span.path], columns, len(columns))
        ]
        if not tables:
            return pa.table({name: pa.nulls(0) for name in columns})
        # Files may differ in types, such as int32 and int64.
        return pa.concat_tables(tables, promote_options="permissive")

    def _next(
        self, span: Span, last: int, columns: Sequence[str], n_numbers: int
    ) -> Any:
        """The next batch of a span, in spite of a store that fails now and then."""

        def read() -> Any:
            try:
                reader = _reader(self, span, columns, n_numbers)
                reader.expect(last)
                return reader.take(span)
            except Exception:
                _close()  # it may be in the middle of a batch
                raise

        return retrying_or(
            lambda error: _cannot_be_read(span, error, self.retries), read, self.retries
        )

    def _parts(self, spans: Sequence[Span]) -> Iterator[Part]:
        """The features' numbers, a few rows at a time."""
        lasts = _last_groups(spans)
        for span in spans:
            for row, batch in self._batches(
                span, lasts[span.path], self.columns, self.n_features
            ):
                if batch.num_rows:
                    yield self._part(batch, _Where(span, None if self.filters else row))

    def _part(self, batch: Any, where: _Where) -> Part:
        """The features' numbers of a batch."""
        found = [
            _numbers(_values(batch, name), name, width, self.nulls, where)
            for name, width in zip(self.columns, self.widths, strict=True)
        ]
        numbers = [array.astype(self.dtype, copy=False) for array in found]
        if len(numbers) == 1 and numbers[0].ndim == 2:
            return numbers[0]
        # The elements of lists beside other columns: each in memory of its own, too.
        columns = chain.from_iterable(
            [array] if array.ndim == 1 else np.ascontiguousarray(array.T)
            for array in numbers
        )
        return Columns(tuple(columns))

    def _batches(
        self, span: Span, last: int, columns: Sequence[str], n_numbers: int
    ) -> Iterator[tuple[int, Any]]:
        """The span's rows, a few at a time, without those that a filter drops.

        With each of them the row of the file where they began, before the filter. Of
        the file, row groups up to the last are wanted next.
        """
        partition = dict(span.partition)
        wanted = [name for name in columns if name not in partition]
        asked = [name for name in filter_columns(self.filters) if name not in partition]
        to_read = list(dict.fromkeys([*wanted, *asked]))
        while span.n_rows:
            batch = self._next(span, last, to_read, n_numbers)
            for picked in self._picked(batch, partition):
                yield span.start, picked
            span = replace(span, start=span.start + batch.num_rows)

    def _picked(self, batch: Any, partition: Mapping[str, Any]) -> Iterable[Any]:
        if not self.filters and not partition:
            return [batch]
        import pyarrow as pa

        table = pa.Table.from_batches([batch])
        for name, value in partition.items():
            constant = pa.repeat(pa.scalar(value), batch.num_rows)
            table = table.append_column(name, constant)
        if self.filters:
            table = table.filter(filter_expression(self.filters, table.schema.names))
        # None of an empty table, whose types are wanted all the same.
        return table.to_batches() or [pa.RecordBatch.from_pylist([], table.schema)]


def _last_groups(spans: Iterable[Span]) -> dict[str, int]:
    """The last row group of each file that is wanted."""
    lasts: dict[str, int] = {}
    for span in spans:
        lasts[span.path] = max(span.group, lasts.get(span.path, 0))
    return lasts


def _copied(part: Part) -> NDArray[Any]:
    return part.array() if isinstance(part, Columns) else part.copy()


@final
class Stream:
    """Rows of a block that are read as they are asked for: in one piece, or in parts.

    Attributes
    ----------
    n_rows, n_columns, n_bytes : int
        Before filters.
    is_whole : bool
        Whether there are no filters, so that those are all rows.
    waited : bool
        Whether to read took mostly other than the reading thread's own time, so that
        the thread could have done something else meanwhile.
    """

    def __init__(self, reading: Reading, spans: Sequence[Span]) -> None:
        self._reading, self._spans = reading, spans
        self._array: NDArray[Any] | None = None
        self._seconds = self._own_seconds = 0.0
        self.n_rows = sum(span.n_rows for span in spans)
        self.n_columns = reading.n_features
        self.n_bytes = self.n_rows * self.n_columns * reading.dtype.itemsize
        self.is_whole = not reading.filters

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

    def parts(self) -> Iterator[Part]:
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


def _empty(
    n_rows: int, n_columns: int, dtype: np.dtype[Any], *, by_row: bool
) -> NDArray[Any]:
    """Rows to be filled, (n, d), each row in one piece, or else each column.

    In memory that a block took which nobody holds any more, if there is some: to clear
    new memory takes the system as long as to read half a block.
    """
    n_bytes = n_rows * n_columns * dtype.itemsize
    numbers = _memory(n_bytes)[:n_bytes].view(dtype)
    if by_row:
        return numbers.reshape(n_rows, n_columns)
    return numbers.reshape(n_columns, n_rows).T


def _memory(n_bytes: int) -> NDArray[np.uint8]:
    """Memory of this thread that was given back, or new.

    It is on lease: given back once neither it nor a view of it is held any more.
    """
    if not hasattr(_thread, "free"):
        _thread.free = deque(maxlen=_MEMORIES)
    free: deque[NDArray[np.uint8]] = _thread.free
    memory = _taken(free, n_bytes)
    if memory is None:
        memory = np.empty(n_bytes, np.uint8)
    if n_bytes > BLOCK_BYTES:
        return memory
    # Views hold the array that is behind them all: this one, as it is none of NumPy's.
    lease = np.frombuffer(memory.data, np.uint8)
    weakref.finalize(lease, free.append, memory).atexit = False
    return lease


def _taken(free: deque[NDArray[np.uint8]], n_bytes: int) -> NDArray[np.uint8] | None:
    """The first that is large enough, taken out; other threads may give back."""
    for _ in range(len(free)):
        memory = free.popleft()
        if len(memory) >= n_bytes:
            return memory
        free.append(memory)
    return None


# --- numbers of a column --------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class _Where:
    """Where a batch comes from, for errors; its first row is not known of a filter."""

    span: Span
    first: int | None

    def of(self, row: int) -> str:
        """The place of a row of the batch."""
        where = "" if self.first is None else f", row {self.first + row}"
        group = self.span.group
        return f"row group {group}{where} of the Parquet file {self.span.path}"


def column_path(names: Sequence[str], column: str) -> tuple[str, ...] | None:
    """A column's name, and names of the fields inside it; None if there is none.

    Parameters
    ----------
    names : sequence of str
        Of the columns that there are.
    column : str
        One of them, or a field of a struct, `struct.field`.
    """
    parts = column.split(".")
    for n in range(len(parts), 0, -1):
        if (top := ".".join(parts[:n])) in names:
            return top, *parts[n:]
    return None


def _values(batch: Any, column: str) -> Any:
    """A column of a batch, or a field of a struct in it."""
    import pyarrow.compute as pc

    path = column_path(batch.schema.names, column)
    assert path is not None  # it was looked for in the file's schema
    values = batch.column(path[0])
    return pc.struct_field(values, list(path[1:])) if path[1:] else values


def _numbers(
    column: Any, name: str, width: int, nulls: bool, where: _Where
) -> NDArray[Any]:
    """A column's numbers, (n,), or (n, width) of lists; a null may be an error."""
    from pyarrow import types

    if width:
        return _elements(column, name, width, nulls, where)
    if column.null_count and not nulls:
        raise _null(name, int(_first(column.is_null())), where)
    if is_text_type(column.type) or types.is_dictionary(column.type):
        return _parsed(column, name, where)
    return _plain(column)


def is_text_type(kind: Any) -> bool:
    """Whether a type of Arrow's is of texts."""
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind))


def _parsed(column: Any, name: str, where: _Where) -> NDArray[Any]:
    """The numbers that texts or categories stand for."""
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    numbers = _as_numbers(column)
    if numbers is None:
        row = first_no_number(column) or 0
        raise DataError(
            f"Column {name!r} has {column[row].as_py()!r} in {where.of(row)}: texts "
            "are read if they are of numbers."
        )
    return _plain(numbers)


def first_no_number(texts: Any) -> int | None:
    """The row of the first text that is of no number; None if all are of numbers."""
    first, stop = 0, len(texts)
    if _as_numbers(texts) is not None:
        return None
    while stop - first > 1:
        middle = (first + stop) // 2
        if _as_numbers(texts.slice(first, middle - first)) is None:
            stop = middle
        else:
            first = middle
    return first


def _as_numbers(texts: Any) -> Any:
    """What texts stand for; None if that is not numbers everywhere."""
    import pyarrow as pa

    try:
        return texts.cast("float64")
    except pa.ArrowInvalid:
        return None


def _plain(column: Any) -> NDArray[Any]:
    """A column of numbers as an array, with NaN for null."""
    from pyarrow import types

    if types.is_decimal(column.type) or (
        column.null_count and not types.is_floating(column.type)
    ):
        column = column.cast("float64")
    numbers: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return numbers


def _elements(
    column: Any, name: str, width: int, nulls: bool, where: _Where
) -> NDArray[Any]:
    import pyarrow.compute as pc

    if column.null_count and not nulls:
        raise _null(name, int(_first(column.is_null())), where, in_list=True)
    ragged = pc.fill_null(pc.not_equal(pc.list_value_length(column), width), False)
    if pc.any(ragged, min_count=0).as_py():
        row = int(_first(ragged))
        raise DataError(
            f"The lists of column {name!r} have {width} elements, but the one in "
            f"{where.of(row)} has {len(column[row])}: features are lists of one length."
        )
    flat = column.flatten()  # without those that are null
    if flat.null_count and not nulls:
        raise _null(name, int(_first(flat.is_null())) // width, where, in_list=True)
    numbers = _plain(flat).reshape(-1, width)
    if not column.null_count:
        return numbers
    rows = np.full((len(column), width), np.nan)
    rows[column.is_valid().to_numpy(zero_copy_only=False)] = numbers
    return rows


def _first(marks: Any) -> np.intp:
    """Number of the first true one."""
    return np.argmax(marks.to_numpy(zero_copy_only=False))


def _null(name: str, row: int, where: _Where, *, in_list: bool = False) -> DataError:
    # Filters cannot look into lists.
    leave_out = (
        ""
        if in_list
        else f"leave out such rows with filters=[({name!r}, '>', float('-inf'))], "
    )
    return DataError(
        f"Column {name!r} has a null in {where.of(row)}: fill nulls before, {leave_out}"
        "or pass nan='skip'."
    )


# --- readers of threads ---------------------------------------------------------------


def _cannot_be_read(span: Span, error: Exception, retries: int) -> StoreError:
    if isinstance(error, FileNotFoundError):
        return StoreError(
            f"There is no file {span.path}, as seen from {platform.node()}, though "
            "there was one when it was opened. If workers run on other machines, give "
            "a place that all of them reach by the same name: on a disk that they "
            "share, or in an object store."
        )
    return StoreError(
        f"Row group {span.group} of the Parquet file {span.path} cannot be read, after "
        f"{retries + 1} attempts by {platform.node()}: {type(error).__name__}: "
        f"{error}. If the store is at fault, try again later; if the file is damaged, "
        "write it anew."
    )


@final
class _Reader:
    """A file that is read from a row group on, and where it stands.

    Parameters
    ----------
    reading : Reading
    span : Span
    columns : sequence of str
    n_numbers : int
        Numbers that a row takes.
    known : _Reader or None
        One of the same file, whose footer need not be read again.

    Raises
    ------
    StoreError
        If the file is not the one that was opened.
    """

    def __init__(
        self,
        reading: Reading,
        span: Span,
        columns: Sequence[str],
        n_numbers: int,
        known: _Reader | None,
    ) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        files, _ = files_of(reading.url, reading.storage_options)
        self._fetched: FetchedFile | None = None
        if isinstance(files, LocalFileSystem):
            self._facts = facts_of_path(span.path)
            self._source: Any = pa.OSFile(span.path)
        else:
            pieces = Pieces(files, span.path)
            self._facts = facts_of_entry(pieces.details)
            self._source = self._fetched = FetchedFile(pieces)
        self.metadata: Any
        if known is not None and known._facts == self._facts:
            self.metadata = known.metadata
        else:
            self.metadata = pq.read_metadata(self._source)
            if not span.footer.is_of_same_file(Footer.of(self.metadata)):
                raise changed(f"{span.path}, as seen from {platform.node()}")
        self._file = pq.ParquetFile(
            self._source,
            metadata=self.metadata,
            pre_buffer=False,
            buffer_size=_BUFFER_BYTES,
        )
        groups = range(self.metadata.num_row_groups)
        self._columns = tuple(columns)
        self._planned = span.group
        self.position = sum(
            self.metadata.row_group(i).num_rows for i in groups[: span.group]
        )
        # Batches begin anew with each large one.
        n_bytes = self.metadata.row_group(span.group).num_rows * n_numbers * 8
        at_once = 1 if n_bytes >= BLOCK_BYTES else _GROUPS_AT_ONCE
        firsts = range(span.group, len(groups), at_once)
        self._batches = chain.from_iterable(
            self._file.iter_batches(
                batch_size=batch_rows(n_numbers),
                row_groups=list(groups[first : first + at_once]),
                columns=list(columns),
                use_threads=False,
            )
            for first in firsts
        )
        self._rest: Any = None

    def expect(self, last: int) -> None:
        """Have all row groups fetched up to the last one, if they are elsewhere."""
        if self._fetched is not None:
            for group in range(self._planned, last + 1):
                self._fetched.plan(_ranges(self.metadata, group, self._columns))
        self._planned = max(self._planned, last + 1)

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
        self._source.close()


def batch_rows(n_columns: int) -> int:
    """Rows of a batch: 2^k of the kernel's tiles, as row groups have 2^k rows often."""
    rows, most = tile_rows(n_columns), _BATCH_BYTES // (n_columns * 8)
    while 2 * rows <= most:
        rows *= 2
    return rows


def _ranges(metadata: Any, group: int, columns: Sequence[str]) -> list[Range]:
    """What is to be fetched of a row group's columns, as it will be read.

    Of a small one several columns at once; of a large one columns piece by piece, side
    by side.
    """
    found = metadata.row_group(group)
    chunks = [
        _chunk(part)
        for part in map(found.column, range(found.num_columns))
        if column_path(columns, part.path_in_schema) is not None
    ]
    if sum(n_bytes for _, n_bytes in chunks) <= AHEAD_BYTES // 2:
        return [Range(group, *run) for run in _runs(sorted(chunks))]
    least, most = _PIECE_BYTES
    piece = max(least, min(most, AHEAD_BYTES * 2 // 3 // len(chunks)))
    pieces = [
        (begin / n_bytes, Range(group, first + begin, min(piece, n_bytes - begin)))
        for first, n_bytes in chunks
        for begin in range(0, n_bytes, piece)
    ]
    return [one for _, one in sorted(pieces)]


def _chunk(part: Any) -> tuple[int, int]:
    """Where a column's pages of a row group begin, and how many bytes they take."""
    first = part.data_page_offset
    if part.has_dictionary_page and part.dictionary_page_offset:
        first = min(first, part.dictionary_page_offset)
    return first, part.total_compressed_size


def _runs(chunks: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Neighbours joined, as far as they are no more than a piece."""
    runs: list[tuple[int, int]] = []
    for first, n_bytes in chunks:
        if runs:
            begin, before = runs[-1]
            together = first + n_bytes - begin
            if begin + before == first and together <= _PIECE_BYTES[1]:
                runs[-1] = begin, together
                continue
        runs.append((first, n_bytes))
    return runs


_thread: Final = threading.local()
forget_thread(_thread)  # the file that is open is read by its parent, too


def _reader(
    reading: Reading, span: Span, columns: Sequence[str], n_numbers: int
) -> _Reader:
    """A reader of this thread that stands before the span's rows, or a new one."""
    of = (reading.token, tuple(columns))
    reader: _Reader
    # Other columns of the file may be open, such as keys beside the features.
    of_reading = [it for its, it in _kept().items() if its[0] == reading.token]
    known = next((it for path, it, _ in of_reading if path == span.path), None)
    if (kept := _kept().pop(of, None)) is not None:
        path, reader, group = kept
        # Not over row groups that a filter excludes.
        near = reader.position == span.start or group == span.group
        if path == span.path and reader.position <= span.start and near:
            _kept()[of] = path, reader, span.group
            return reader
        reader.close()
    while len(_kept()) >= _READERS:
        longest_ago = next(iter(_kept()))
        _kept().pop(longest_ago)[1].close()
    reader = _Reader(reading, span, columns, n_numbers, known)
    _kept()[of] = span.path, reader, span.group
    return reader


def _kept() -> dict[Any, tuple[str, _Reader, int]]:
    """The thread's open files, by what is read of them, and where they are read."""
    if not hasattr(_thread, "kept"):
        _thread.kept = {}
    kept: dict[Any, tuple[str, _Reader, int]] = _thread.kept
    return kept


def let_go() -> Any:
    """Leave the open files for another thread to go on with."""
    kept, _thread.kept = _kept(), {}
    return kept


def go_on_with(kept: Any) -> None:
    """Take over the files that another thread let go."""
    _close()
    _thread.kept = kept


def _close() -> None:
    """Close this thread's files."""
    for _, reader, _ in let_go().values():
        reader.close()


def filter_columns(filters: Filters | None) -> list[str]:
    """Names of the columns that filters look at."""
    return list(dict.fromkeys(name for name, _, _ in single_filters(filters)))


def single_filters(filters: Filters | None) -> list[Any]:
    """All filters one by one, whichever of them must hold together."""
    return [one for group in filters or () for one in as_group(group)]


def filter_expression(filters: Filters, names: Sequence[str]) -> Any:
    """Filters as an expression of Arrow's, about columns of these names."""
    from pyarrow.parquet import filters_to_expression

    def led_inside(name: str, *condition: Any) -> tuple[Any, ...]:
        path = column_path(names, name) or (name,)
        return (path if path[1:] else name, *condition)

    groups = [filters] if isinstance(filters[0], tuple) else filters
    return filters_to_expression(
        [[led_inside(*one) for one in as_group(group)] for group in groups]
    )


def as_group(group: Any) -> list[Any]:
    """Filters that must all hold, as a list."""
    return [group] if isinstance(group, tuple) else list(group)
