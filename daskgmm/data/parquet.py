"""Parquet as blocks of rows: which files, columns and row groups, from the footers."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Any, Final, TypeVar, final

import numpy as np
from fsspec.implementations.local import LocalFileSystem

from daskgmm import config
from daskgmm.data.column_check import need_arrow, no_column
from daskgmm.data.columns import element_names
from daskgmm.data.parquet_reader import (
    BLOCK_BYTES,
    Filters,
    Footer,
    Reading,
    Span,
    batch_rows,
    column_path,
    filter_columns,
    filter_expression,
    first_no_number,
    is_text_type,
    single_filters,
)
from daskgmm.data.table_files import TableFiles, find_files
from daskgmm.errors import DaskGMMError, DataError, StoreError
from daskgmm.storage.retry import retrying
from daskgmm.storage.urls import files_of

if TYPE_CHECKING:
    import pyarrow as pa

_T = TypeVar("_T")

_BLOCKS: Final = 16
"""Blocks that are left at least, so that there is work for several threads."""
_FOOTERS_AT_ONCE: Final = 16
_LOOKED_AT: Final = 1024
"""Rows of which the first one that is there tells how long its list is."""
_INDEX: Final = re.compile(r"__index_level_\d+__|__null_dask_index__")
"""What pandas and Dask call an index without a name; their notes may be lost."""
_ELEMENT: Final = re.compile(r"(.+)\[(\d+)\]")
"""The feature that is an element of a list."""


@final
class ParquetRows:
    """Rows of Parquet files, read block by block.

    Attributes
    ----------
    url : str
    columns : tuple of str
        Columns of the files that are the features, in order.
    names : tuple of str
        Of the features: of columns of numbers, theirs; a column of lists gives a
        feature for each element, `name[0]`, `name[1]` and so on.
    n_blocks : int
    chunks : tuple of int or NaN
        Rows of each block; NaN where filters pick some of them.
    dtype : dtype
        float32 if all columns are, else float64.
    """

    def __init__(
        self,
        files: TableFiles,
        columns: Mapping[str, int],
        dtype: np.dtype[Any],
        spans: Sequence[Sequence[Span]],
        filters: Filters | None,
    ) -> None:
        self.url = files.url
        self.columns = tuple(columns)
        self.names = tuple(_feature_names(columns))
        self.dtype = dtype
        self.spans = tuple(tuple(block) for block in spans)
        self.filters = filters
        self._files = files
        self._widths = tuple(columns.values())
        # Not by the place: a file that was written anew is to be opened anew.
        self._token = uuid.uuid4().hex

    def __repr__(self) -> str:
        return f"ParquetRows({self.url!r}, columns={list(self.columns)})"

    @property
    def n_features(self) -> int:
        """Number of features, d."""
        return len(self.names)

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.spans)

    @property
    def chunks(self) -> tuple[float, ...]:
        """Rows of each block."""
        at_most = tuple(sum(span.n_rows for span in block) for block in self.spans)
        # Where nothing is left to pick from, nothing is picked.
        return tuple(n and np.nan for n in at_most) if self.filters else at_most

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

    def fact(self, span: Span) -> tuple[Any, ...]:
        """What the store told of the file that some rows lie in."""
        return self._files.facts.get(span.path, ())

    @property
    def _meta(self) -> Any:
        """An empty DataFrame of the features, as Dask's DataFrames have."""
        import pandas as pd

        return pd.DataFrame({name: np.empty(0, self.dtype) for name in self.names})

    def check_unchanged(self) -> None:
        """Raise StoreError if the store tells that a file is not as it was opened."""
        self._files.check_unchanged()

    def reading(self, *, nulls: bool = False) -> Reading:
        """How a block is read; nulls are NaN, or else an error."""
        return Reading(
            self.url,
            self.columns,
            self._widths,
            self.dtype,
            self.filters,
            nulls,
            self._files.storage_options,
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

    def cut_like(self, other: ParquetRows) -> ParquetRows:
        """The same rows in blocks of another's, if they are of the same files.

        Else as they are: their own cut depends on how many columns they have.
        """
        if self.filters != other.filters or _whole(self.spans) != _whole(other.spans):
            return self
        alike = copy(self)
        alike.spans = other.spans
        return alike

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise DataError if the files have no such columns."""
        fragment = _fragments(self._files, None)[0]
        for name in columns:
            _check_has(fragment, name)


def _whole(blocks: Iterable[Iterable[Span]]) -> list[tuple[str, int, int]]:
    """Rows of files that follow each other, however they are cut."""
    runs: list[tuple[str, int, int]] = []
    for span in chain.from_iterable(blocks):
        if runs and runs[-1][0] == span.path and runs[-1][2] == span.start:
            runs[-1] = span.path, runs[-1][1], span.stop
        else:
            runs.append((span.path, span.start, span.stop))
    return runs


def _feature_names(columns: Mapping[str, int]) -> Iterator[str]:
    for name, width in columns.items():
        if width:
            yield from element_names(name, width)
        else:
            yield name


def open_parquet(
    url: str | os.PathLike[str],
    columns: Sequence[str] | None = None,
    filters: Filters | None = None,
    storage_options: Mapping[str, Any] | None = None,
    version: int | None = None,
) -> ParquetRows:
    """Rows of a Parquet file, or of all files of a folder, a glob or a Delta table.

    Only the footers are read here. Folders of Hive's form, `key=value`, give columns
    that filters can look at; they are features only if `columns` names them.

    Parameters
    ----------
    url : str or path
        A file, a folder, a glob, or a table of Delta Lake; any URL that fsspec knows. A
        name with wild cards is a glob only if nothing has that very name. Of a folder
        those files are taken that are Parquet, by their names or first bytes.
    columns : sequence of str, default=None
        The features, in order: columns of numbers; fields of structs, `struct.field`;
        columns of lists, all of one length, of which each element is a feature. Without
        them all columns of the first file with rows, but those that pandas or Dask
        wrote for an index.
    filters : sequence, default=None
        Which rows: tuples (column, operator, value) that must all hold, or lists of
        them of which one must; operators as `pyarrow.parquet.read_table` has them.
    storage_options : mapping, default=None
        What fsspec needs to open the store.
    version : int, default=None
        Of a table of Delta Lake; the newest, unless given.

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
    files = find_files(url, storage_options, version)
    if files is None:
        raise StoreError(f"There is no Parquet file at {os.fspath(url)}.")
    return rows_of(files, columns, filters)


def rows_of(
    files: TableFiles, columns: Sequence[str] | None, filters: Filters | None
) -> ParquetRows:
    """Rows of files that were found; see `open_parquet`."""
    columns = None if columns is None else column_names(columns)
    _check_filters(filters)
    fragments = _fragments(files, filters)
    # Of empty files, whose columns may have no type yet, nothing is wanted.
    filled = [f for f in fragments if f.metadata.num_rows] or fragments[:1]
    if columns is None:
        chosen = dict.fromkeys(_all_features(filled[0]), 0)
    else:
        chosen = _whole_lists(columns, _whole_schema(filled[0]))
    for fragment in filled:
        for name in [*chosen, *filter_columns(filters)]:
            _check_has(fragment, name)
            _type(_whole_schema(fragment), name, fragment.path)
    named = columns is not None
    kinds = [_kinds(fragment, list(chosen), named=named) for fragment in filled]
    _check_texts(filled, list(chosen))
    widths = {name: _width(filled, kinds, name) for name in chosen}
    for name, n_named in chosen.items():
        if n_named not in (0, widths[name]):
            raise _not_whole(name)
    single = all(kind.is_single for its in kinds for kind in its.values())
    dtype = np.dtype(np.float32 if single else np.float64)
    spans = [span for fragment in fragments for span in _spans(fragment)]
    partitions = [_partition(fragment) for fragment in fragments]
    in_files = set(filter_columns(filters)) - set().union(*partitions)
    n_features = sum(max(1, width) for width in widths.values())
    return ParquetRows(
        files,
        widths,
        dtype,
        _blocks(spans, n_features, dtype.itemsize),
        filters if in_files else None,  # else the folders were picked already
    )


# --- columns --------------------------------------------------------------------------


def column_names(columns: Any) -> list[str]:
    """Names of columns as a list; an error if they are none, or in no order."""
    in_order = isinstance(columns, Iterable) and not isinstance(
        columns, (str, bytes, Mapping, Set)
    )
    names = list(columns) if in_order else []
    if not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"columns must be a list of names, got {columns!r}.")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(
            f"columns names {twice[0]!r} twice: each feature must be there once."
        )
    return [str(name) for name in names]


def _all_features(fragment: Any) -> list[str]:
    """All columns of a file that are no index."""
    names = _not_index(fragment.physical_schema)
    if not names:
        raise DataError(
            f"The Parquet file {fragment.path} has no columns but those of an "
            "index: name the columns to use with columns=[…]."
        )
    return names


def _not_index(schema: Any) -> list[str]:
    """A file's columns but those that pandas, or Dask, wrote for an index."""
    notes = schema.pandas_metadata or {}
    index = {name for name in notes.get("index_columns", ()) if isinstance(name, str)}
    return [n for n in schema.names if n not in index and not _INDEX.fullmatch(n)]


def _whole_lists(columns: Sequence[str], schema: Any) -> dict[str, int]:
    """Columns, and how many elements of each are named; 0 for a column as a whole.

    So the features of a model name the columns that it was fitted to.
    """
    chosen: dict[str, int] = {}
    for name in columns:
        found = _ELEMENT.fullmatch(name)
        if column_path(schema.names, name) is not None or found is None:
            chosen[name] = 0
            continue
        column, number = found[1], int(found[2])
        if number != chosen.get(column, 0) or [*chosen, column][-1] != column:
            raise _not_whole(column)
        chosen[column] = number + 1
    return chosen


def _not_whole(column: str) -> DataError:
    return DataError(
        f"columns names some elements of the lists in {column!r}, or in another order: "
        f"name {column!r} as a whole."
    )


def _check_has(fragment: Any, name: str) -> None:
    names = _whole_schema(fragment).names
    if column_path(names, name) is None:
        raise DataError(no_column(fragment.path, name, names))


@final
@dataclass(frozen=True, slots=True)
class _Kind:
    """What a column holds: numbers, or lists of them, of a length if that is fixed."""

    is_list: bool
    length: int | None
    is_single: bool


def _kinds(fragment: Any, columns: Sequence[str], *, named: bool) -> dict[str, _Kind]:
    """What columns of a file hold; an error if one holds no numbers.

    Texts may be of numbers where the user has named the columns.
    """
    schema, path = _whole_schema(fragment), fragment.path
    return {name: _kind(schema, name, path, named=named) for name in columns}


def _type(schema: Any, name: str, path: str) -> Any:
    """The type of a column, or of a field of a struct; an error if that has none."""
    from pyarrow import types

    inside = column_path(schema.names, name)
    assert inside is not None  # as `_check_has` has found
    kind = schema.field(inside[0]).type
    for field in inside[1:]:
        index = kind.get_field_index(field) if types.is_struct(kind) else -1
        if index < 0:
            raise DataError(
                f"Column {inside[0]!r} of the Parquet file {path} holds {kind}, "
                f"without a field {field!r}."
            )
        kind = kind.field(index).type
    return kind


def _kind(schema: Any, name: str, path: str, *, named: bool) -> _Kind:
    from pyarrow import types

    kind = _type(schema, name, path)
    whole, length = kind, None
    if is_list := _is_list(kind):
        length = kind.list_size if types.is_fixed_size_list(kind) else None
        kind = kind.value_type
    if types.is_dictionary(kind):  # categories, as pandas writes them
        kind = kind.value_type
    is_text = not is_list and is_text_type(kind)
    if not (_is_plain(kind) or types.is_decimal(kind) or (named and is_text)):
        fields = (
            f" A struct's fields are columns of their own, such as "
            f"'{name}.{whole.field(0).name}'."
            if types.is_struct(whole) and whole.num_fields
            else ""
        )
        raise DataError(
            f"Column {name!r} of the Parquet file {path} holds {_said(whole)}, no "
            "numbers: "
            f"name those that do, or have texts of numbers, with columns=[…].{fields}"
        )
    return _Kind(is_list, length, types.is_float32(kind))


def _said(kind: Any) -> str:
    return "texts" if is_text_type(kind) else str(kind)


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    tests = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    return any(is_one(kind) for is_one in tests)


def _is_plain(kind: Any) -> bool:
    from pyarrow import types

    return bool(
        types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind)
    )


def _width(
    fragments: Sequence[Any], kinds: Sequence[Mapping[str, _Kind]], name: str
) -> int:
    """Elements of a column's lists; 0 of a column of numbers."""
    of_files = {its[name].is_list for its in kinds}
    if of_files == {False}:
        return 0
    if len(of_files) > 1:
        raise DataError(
            f"Column {name!r} holds lists in some of the files at "
            f"{fragments[0].path} and numbers in others."
        )
    fixed = kinds[0][name].length
    return _first_length(fragments[0], name) if fixed is None else fixed


def _first_length(fragment: Any, name: str) -> int:
    """Elements of the first list that is there."""
    import pyarrow.compute as pc

    lists = _first_values(fragment, name)
    lengths = pc.list_value_length(lists).drop_null()
    if not lengths or not lengths[0].as_py():
        raise DataError(
            f"Column {name!r} of the Parquet file {fragment.path} begins with lists "
            "that are null or empty: how many features it gives is not known. Leave "
            "such rows out, or store it as lists of a fixed size."
        )
    return int(lengths[0].as_py())


def _check_texts(fragments: Sequence[Any], columns: Sequence[str]) -> None:
    """Refuse columns that begin with texts of no numbers: readers would, later."""
    import pyarrow as pa
    from pyarrow import types

    first = fragments[0]
    for name in columns:
        kind = _type(_whole_schema(first), name, first.path)
        if types.is_dictionary(kind):
            kind = kind.value_type
        if not is_text_type(kind):
            continue
        if name in _partition(first):
            texts = pa.array(sorted({str(_partition(its)[name]) for its in fragments}))
        else:
            texts = _first_values(first, name).cast(kind)
        if (row := first_no_number(texts)) is not None:
            raise DataError(
                f"Column {name!r} has texts that are no numbers, such as "
                f"{texts[row].as_py()!r} in the Parquet file {first.path}: name "
                "columns of numbers with columns=[…]."
            )


def _first_values(fragment: Any, name: str) -> Any:
    """What a column has in the first rows of a file."""
    import pyarrow.compute as pc

    def look() -> Any:
        path = column_path(fragment.physical_schema.names, name) or ()
        found = fragment.head(_LOOKED_AT, columns={"values": pc.field(*path)})
        return found["values"]

    return _of_file(fragment, look)


# --- files ----------------------------------------------------------------------------


def _spans(fragment: Any) -> Iterator[Span]:
    """Row groups that are to be read of a file."""
    found = fragment.metadata
    footer = Footer.of(found)
    partition = tuple(_partition(fragment).items())
    n_rows = [found.row_group(i).num_rows for i in range(found.num_row_groups)]
    firsts = [0, *accumulate(n_rows)]
    for group in fragment.row_groups:
        first, stop = firsts[group.id : group.id + 2]
        yield Span(fragment.path, group.id, first, stop, footer, partition)


def _check_filters(filters: Filters | None) -> None:
    if not filters:
        return
    need_arrow()
    try:
        for name in filter_columns(filters):
            if not isinstance(name, str):
                raise TypeError(f"{name!r} is no column's name")
        filter_expression(filters, ())
    except (TypeError, ValueError) as error:
        raise DataError(
            f"filters must be tuples (column, operator, value), or lists of them, got "
            f"{filters!r}: {error}"
        ) from error


def _of_dataset(found: TableFiles, look: Callable[[Any], _T]) -> _T:
    """What all files together, as Arrow's dataset, look like.

    It is looked at again while its store fails; an error names the place.
    """
    need_arrow()
    import pyarrow as pa
    import pyarrow.dataset as ds
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    partitioning: Any = "hive"
    if found.partitioning is not None:
        partitioning = ds.partitioning(found.partitioning, flavor="hive")

    def look_once() -> _T:
        files, _ = files_of(found.url, found.storage_options)
        is_local = isinstance(files, LocalFileSystem)
        return look(
            ds.dataset(
                list(found.paths),
                format="parquet",
                filesystem=None if is_local else PyFileSystem(FSSpecHandler(files)),
                partitioning=partitioning,
            )
        )

    try:
        return retrying(look_once)
    except DaskGMMError:
        raise
    except (OSError, pa.ArrowException, ImportError, ValueError) as error:
        # Arrow names the file, asks what it is, and then says what was wrong.
        why = str(error).rpartition("?: ")[2]
        raise StoreError(f"No Parquet can be opened at {found.url}: {why}") from None


def summary(files: TableFiles) -> tuple[list[str], int]:
    """Names of the columns, whatever they hold, and number of rows.

    Raises
    ------
    StoreError
        If there is nothing that can be read.
    """
    names = _of_dataset(files, lambda found: list(found.schema.names))
    # Not count_rows: where one request in ten fails, it does with some hundred.
    found = _fragments(files, None)
    return names, sum(fragment.metadata.num_rows for fragment in found)


def _fragments(files: TableFiles, filters: Filters | None) -> list[Any]:
    """What is to be read, file by file, each with its footer."""
    everything = _of_dataset(files, partial(_picked_fragments, filters=filters))
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        return list(pool.map(partial(_with_footer, filters=filters), everything))


def _picked_fragments(found: Any, filters: Filters | None) -> list[Any]:
    """Files by their paths; one at least, for its schema."""
    import pyarrow as pa

    if not filters:
        return list(found.get_fragments())
    expression = filter_expression(filters, found.schema.names)
    try:
        picked = list(found.get_fragments(filter=expression))
    except pa.ArrowInvalid:
        picked = []  # a column is missing, say: found and named below
    except (pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise _does_not_fit(filters, found.schema, error) from error
    return picked or list(found.get_fragments())


def _does_not_fit(filters: Filters, schema: Any, error: Exception) -> DataError:
    """Which filter compares a column with what it cannot be compared with."""
    import pyarrow as pa

    nothing = schema.empty_table()
    for name, operator, value in single_filters(filters):
        try:
            one = filter_expression([(name, operator, value)], schema.names)
            nothing.filter(one)
        except pa.ArrowInvalid:
            continue  # of a column that is missing, say
        except (pa.ArrowNotImplementedError, pa.ArrowTypeError):
            kind = _said(_type(schema, name, "the table"))
            return DataError(
                f"The filter {name} {operator} {value!r} does not fit the column "
                f"{name}, which holds {kind}: a column is compared "
                "with values of its own type, and lists are not."
            )
    return DataError(f"The filters {filters!r} do not fit the table: {error}")


def _with_footer(fragment: Any, filters: Filters | None) -> Any:
    """A fragment with its row groups, less those that no row can be picked from."""
    import pyarrow as pa

    _of_file(fragment, fragment.ensure_complete_metadata)
    if not filters:
        return fragment
    schema = _whole_schema(fragment)
    try:
        expression = filter_expression(filters, schema.names)
        return fragment.subset(filter=expression, schema=schema)
    except (pa.ArrowException, ValueError):
        return fragment  # a column is missing, say: found and named below


def _of_file(fragment: Any, look: Callable[[], _T]) -> _T:
    """What a look at a file tells, in spite of a store that fails now and then."""
    import pyarrow as pa

    try:
        return retrying(look)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(
            f"The Parquet file {fragment.path} cannot be read: {error}"
        ) from error


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


def _blocks(spans: Sequence[Span], n_columns: int, itemsize: int) -> list[list[Span]]:
    """Spans cut and joined so that blocks are of a good size."""
    total = sum(span.n_rows for span in spans)
    most = max(1, min(BLOCK_BYTES // (n_columns * itemsize), -(-total // _BLOCKS)))
    blocks: list[list[Span]] = [[]]
    n_rows = 0
    for span in spans:
        for part in _cut(span, most, batch_rows(n_columns)):
            if n_rows + part.n_rows > most and blocks[-1]:
                blocks.append([])
                n_rows = 0
            blocks[-1].append(part)
            n_rows += part.n_rows
    return blocks


def _cut(span: Span, most: int, unit: int) -> list[Span]:
    """A span in parts of as equal a length as can be, of whole batches if they fit."""
    unit = unit if unit <= most else 1
    n_units = -(-span.n_rows // unit)
    n_parts = -(-n_units // (most // unit))
    ends = [unit * (n_units * i // n_parts) for i in range(n_parts)]
    return [
        replace(span, start=span.start + first, stop=span.start + last)
        for first, last in pairwise([*ends, span.n_rows])
    ]
