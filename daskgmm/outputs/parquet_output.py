"""Answers as a folder of Parquet files, with keys."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, final

import dask.array as da
import numpy as np
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from daskgmm.data.column_check import need_arrow
from daskgmm.errors import ParameterError, PlaceError, StoreError
from daskgmm.storage.glance import DESCRIPTION, NOT_OUR_PARQUET
from daskgmm.storage.retry import ask_files, what_is_at
from daskgmm.storage.urls import absolute

if TYPE_CHECKING:
    import pyarrow as pa

from daskgmm.outputs.base import (
    OutputPlace,
    Work,
    Written,
    check_run,
    names_at,
    put,
    remove_all,
    said_at,
    write_output,
)


class Keyed(Protocol):
    """Rows whose blocks have other columns too, as `parquet.ParquetRows`."""

    def read_table(self, index: int, columns: Sequence[str]) -> pa.Table:
        """Some columns of a block."""


def write_parquet(
    answer: da.Array,
    url: str,
    work: Work,
    *,
    names: Sequence[str],
    keys: Sequence[str] = (),
    keyed: Keyed | None = None,
) -> Written:
    """Write a Dask array to a folder of Parquet files, one for each of its blocks.

    Parameters
    ----------
    answer : dask.array.Array of shape (n,) or (n, m)
        In one column of chunks, whose lengths may be unknown.
    url : str
        A folder, or any URL that fsspec can write to.
    work : Work
    names : sequence of str
        Of the answer's columns.
    keys : sequence of str
        Columns of `keyed` to write before them, row by row.
    keyed : parquet.ParquetRows, optional
        The rows that were asked about.

    Raises
    ------
    PlaceError
        As `check`.
    ValueError
        If a key is named as an answer's column is.
    StoreError
        If something that was written is not there in the end.
    """
    check_names(keys, names)
    blocks = answer.to_delayed().ravel().tolist()
    layout = {"files": len(blocks), "columns": [*keys, *names]}
    output = ParquetPlace(absolute(url), layout)
    ends = [0, *np.cumsum(answer.chunks[0]).tolist()]

    def bounds(part: int) -> tuple[float, float]:
        return ends[part], ends[part + 1]

    def write(place: OutputPlace, part: int, run: str) -> Delayed:
        table = delayed(_keys_of)(keyed, part, tuple(keys)) if keys else None
        task: Delayed = delayed(_write_file)(
            place.url, run, output.name(part), blocks[part], tuple(names), table
        )
        return task

    n_found = write_output(output, write, bounds, work)
    written: Any = output.description()  # of all footers, which were read just now
    n_rows = sum(file["rows"] for file in written["files"])
    return Written(n_rows, len(blocks), n_found)


@final
@dataclass(frozen=True)
class ParquetPlace(OutputPlace):
    """A folder of Parquet files; each is a part."""

    url: str
    layout: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        need_arrow()

    @property
    def n_parts(self) -> int:
        return int(self.layout["files"])

    def name(self, part: int) -> str:
        """Name of a part's file: names sort as parts do."""
        width = max(5, len(str(self.n_parts - 1)))
        return f"part-{part:0{width}}.parquet"

    def description(self) -> dict[str, Any] | None:
        there = what_is_at(self.url)
        if there is None:
            return None
        said = said_at(self.url)
        if said is not None:
            return said
        if there == "directory" and all(n.startswith(".") for n in names_at(self.url)):
            return None  # a write broke off before the output was described
        raise PlaceError(NOT_OUR_PARQUET.format(self.url))

    def describe(self, description: Mapping[str, Any]) -> None:
        put(self.url, DESCRIPTION, json.dumps(description, indent=1).encode())

    def create(self, description: Mapping[str, Any]) -> None:
        self.describe(description)

    def missing(self) -> list[int]:
        there = set(names_at(self.url))
        return [i for i in range(self.n_parts) if self.name(i) not in there]

    @property
    def document(self) -> str:
        return DESCRIPTION

    def remove(self, parts: Iterable[int]) -> None:
        remove_all(self.url, map(self.name, parts))

    def remove_broken(self) -> None:
        names = set(names_at(self.url))
        there = [i for i in range(self.n_parts) if self.name(i) in names]
        broken = [self.name(i) for i in there if self._file(i) is None]
        unfinished = [n for n in names if n.startswith(".part-")]
        remove_all(self.url, [*broken, *unfinished])

    def contents(self) -> dict[str, Any]:
        """Name, rows and bytes of all files."""
        found = [self._file(i) for i in range(self.n_parts)]
        if None in found:
            broken = self.name(found.index(None))
            raise StoreError(f"{broken}, which was written to {self.url}, is broken.")
        return {"files": found}

    def _file(self, part: int) -> dict[str, Any] | None:
        """What a file's footer says; None if it has none."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        name = self.name(part)

        def look(files: Any, path: str) -> dict[str, Any]:
            place = f"{path}/{name}"
            with files.open(place, "rb") as file:
                n_rows = pq.read_metadata(file).num_rows
            return {"name": name, "rows": n_rows, "bytes": files.size(place)}

        try:
            return ask_files(self.url, look)
        except (pa.ArrowInvalid, FileNotFoundError, StoreError):
            return None


def check_names(keys: Sequence[str], names: Sequence[str]) -> None:
    """Raise ValueError if a key is named as an answer's column is."""
    if clash := set(keys) & set(names):
        raise ParameterError(
            f"The key column {min(clash)!r} has the name of an answer's column: "
            "rename it."
        )


def _keys_of(keyed: Keyed, part: int, keys: tuple[str, ...]) -> pa.Table:
    return keyed.read_table(part, keys)


def _write_file(
    url: str,
    run: str,
    name: str,
    values: NDArray[Any],
    names: tuple[str, ...],
    keys: pa.Table | None,
) -> None:
    """Write one block's answers, after its keys."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_run(said_at(url) or {}, url, run)
    columns = [values] if values.ndim == 1 else list(values.T)
    table = pa.table(dict(zip(names, map(np.ascontiguousarray, columns), strict=True)))
    if keys is not None:
        _check_as_long(keys, table, name)
        for i, key in enumerate(keys.column_names):
            table = table.add_column(i, keys.schema.field(key), keys.column(key))
    written = io.BytesIO()
    pq.write_table(table, written)
    put(url, name, written.getvalue())


def _check_as_long(keys: pa.Table, table: pa.Table, name: str) -> None:
    if keys.num_rows != table.num_rows:
        raise StoreError(
            f"There are {keys.num_rows} keys for the {table.num_rows} rows of {name}: "
            "the data were changed meanwhile."
        )
