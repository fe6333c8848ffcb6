"""Answers written to Zarr and Parquet, part by part, and gone on with after a break.

What is there always says what it is: first of all is written that it is not complete,
and what it is going to be; that it is complete is written last. A part that is there is
whole, as stores put objects in their place at once.
"""

from __future__ import annotations

import enum
import io
import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, final

import dask.array as da
import fsspec
import numpy as np
import zarr
from dask.delayed import Delayed, delayed
from dask.system import CPU_COUNT
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.sync import sync

from daskgmm.data.table_files import has_suffix
from daskgmm.errors import PlaceError, StoreError
from daskgmm.execution import cluster
from daskgmm.storage.retry import (
    DESCRIPTION,
    OURS,
    ask_files,
    check_free,
    is_failure,
    naming_failures,
    patient_store,
    patiently,
    what_is_at,
)
from daskgmm.storage.urls import (
    absolute,
    beside,
    is_local,
    remove_tree,
    replace_folder,
)
from daskgmm.storage.zarr_store import chunk_path, missing_chunks

if TYPE_CHECKING:
    import pyarrow as pa

Identity = Mapping[str, Any]
"""What an output is, by names that the user knows: values that JSON can hold."""
Observer = Callable[[int, int], None]
"""Called with the number of parts that are done, and of all."""

_SMALL_BYTES: Final = 1_000_000
"""Zarr chunks that are smaller are put into shards."""
_SHARD_BYTES: Final = 8_000_000
_SHARDS: Final = 16
"""Shards that are left at least, so that there is work for several threads."""
_REQUESTS: Final = 16
"""Objects that are copied or removed at once."""
_ASIDE: Final = ".new-"
"""Before the name of what is to replace an output."""
_ZARR_METADATA: Final = ("zarr.", ".zarray", ".zattrs")


class Keyed(Protocol):
    """Rows whose blocks have other columns too, as `parquet.ParquetRows`."""

    def read_table(self, index: int, columns: Sequence[str]) -> pa.Table:
        """Some columns of a block."""


@final
@dataclass(frozen=True, slots=True)
class Written:
    """What came of writing an output.

    Attributes
    ----------
    n_rows : int
    n_parts : int
        Chunks or shards, or files.
    n_found : int
        Parts that were there already, from a run that broke off.
    """

    n_rows: int
    n_parts: int
    n_found: int


@final
@dataclass(frozen=True, slots=True)
class Standing:
    """How far an output is.

    Attributes
    ----------
    n_parts, n_missing : int
        Parts in all, and those that are not there.
    complete : bool
        Whether it says that it is whole.
    """

    n_parts: int
    n_missing: int
    complete: bool


@final
@dataclass(frozen=True)
class Work:
    """What is to be written, and what makes it this output and no other.

    Attributes
    ----------
    identity : mapping
        By names that the user knows. The unfinished output of the same work is gone on
        with.
    versions : callable
        A digest of what the data's store tells of the rows from one to another: a part
        of rows that were changed since is written anew.
    overwrite : bool
        Whether another output of this package is replaced, once this one is complete.
    observer : callable, optional
    """

    identity: Identity
    overwrite: bool
    versions: Callable[[float, float], str] = lambda _first, _stop: ""
    observer: Observer | None = None


def check(url: str, work: Work) -> None:
    """Refuse a place that must not be written to.

    Raises
    ------
    PlaceError
        If there is something else; or an output that is complete, or of another
        command, and is not to be overwritten. The message says what differs.
    """
    check_free(url)
    output = _place(absolute(url))
    _how(output, output.description(), _as_json(work.identity), work.overwrite)


def write_zarr(answer: da.Array, url: str, work: Work) -> Written:
    """Write a Dask array to a Zarr array, in chunks like its own, with checksums.

    Small chunks are put into shards. Blocks of unknown length are counted first, which
    computes them once.

    Parameters
    ----------
    answer : dask.array.Array of shape (n,) or (n, m)
        In one column of chunks.
    url : str
        A folder, or any URL that Zarr can write to.
    work : Work

    Raises
    ------
    PlaceError
        As `check`.
    StoreError
        If something that was written is not there in the end.
    """
    if np.isnan(answer.shape[0]):
        answer = answer.compute_chunk_sizes()
    output = _ZarrPlace(absolute(url), _zarr_layout(answer))
    blocks = answer.to_delayed().ravel().tolist()
    ends = np.cumsum(answer.chunks[0])
    rows = output.part_rows

    def bounds(part: int) -> tuple[int, int]:
        return part * rows, min((part + 1) * rows, len(answer))

    def write(place: _Place, part: int, run: str) -> Delayed:
        first, last = bounds(part)
        low = int(np.searchsorted(ends, first, side="right"))
        high = int(np.searchsorted(ends, last, side="left")) + 1
        skipped = first - (int(ends[low - 1]) if low else 0)
        wanted = slice(skipped, skipped + last - first)
        task: Delayed = delayed(_write_chunk)(
            place.url, run, first, blocks[low:high], wanted
        )
        return task

    n_found = _write(output, write, bounds, work)
    return Written(len(answer), output.n_parts, n_found)


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
    if clash := set(keys) & set(names):
        raise ValueError(
            f"The key column {min(clash)!r} has the name of an answer's column: "
            "rename it."
        )
    blocks = answer.to_delayed().ravel().tolist()
    layout = {"files": len(blocks), "columns": [*keys, *names]}
    output = _ParquetPlace(absolute(url), layout)
    ends = [0, *np.cumsum(answer.chunks[0]).tolist()]

    def bounds(part: int) -> tuple[float, float]:
        return ends[part], ends[part + 1]

    def write(place: _Place, part: int, run: str) -> Delayed:
        table = delayed(_keys_of)(keyed, part, tuple(keys)) if keys else None
        task: Delayed = delayed(_write_file)(
            place.url, run, output.name(part), blocks[part], tuple(names), table
        )
        return task

    n_found = _write(output, write, bounds, work)
    written: Any = output.description()  # of all footers, which were read just now
    n_rows = sum(file["rows"] for file in written["files"])
    return Written(n_rows, len(blocks), n_found)


def standing(url: str) -> Standing | None:
    """How far an output is; None if what is there is no output of ours."""
    place = _place(absolute(url))
    try:
        found = place.description()
    except FileExistsError:
        return None
    if not found:
        return None
    complete = bool(found.get("complete"))
    if "layout" not in found:  # another one's, or what an overwriting left
        return None if complete else Standing(0, 0, False)
    place = type(place)(place.url, found["layout"])
    missing = place.missing()
    return Standing(place.n_parts, len(missing), complete)


class _Place(ABC):
    """Where an output goes, and how it is laid out there."""

    url: str
    layout: Mapping[str, Any]

    @property
    @abstractmethod
    def n_parts(self) -> int:
        """Parts that there are to be."""

    @abstractmethod
    def description(self) -> dict[str, Any] | None:
        """What the output there says of itself; None if there is nothing.

        Raises
        ------
        PlaceError
            If there is something that must never be replaced.
        """

    @abstractmethod
    def describe(self, description: Mapping[str, Any]) -> None:
        """Let the output say something else of itself."""

    @abstractmethod
    def create(self, description: Mapping[str, Any]) -> None:
        """Begin an output where nothing is, or what a write left that broke off."""

    @abstractmethod
    def missing(self) -> list[int]:
        """Numbers of the parts that are not there."""

    @abstractmethod
    def remove(self, parts: Iterable[int]) -> None:
        """Remove parts that are there."""

    @abstractmethod
    def remove_broken(self) -> None:
        """Remove parts that cannot be read: a machine that fell may leave such."""

    @property
    @abstractmethod
    def document(self) -> str:
        """Name of the object that has the description."""

    def contents(self) -> dict[str, Any]:
        """What a complete output says in addition."""
        return {}

    def aside(self) -> Self:
        """A place beside this one, for what replaces the output here."""
        return replace(self, url=beside(self.url, _ASIDE))  # type: ignore[type-var]


class _How(enum.Enum):
    """How an output comes to its place."""

    NEW = "nothing is there"
    GO_ON = "its unfinished like is there"
    REPLACE = "another one is there"


def _write(
    output: _Place,
    write: Callable[[_Place, int, str], Delayed],
    bounds: Callable[[int], tuple[float, float]],
    work: Work,
) -> int:
    """Write what is missing of an output; return how many parts were there."""
    check_free(output.url)
    said = {
        "identity": _as_json(work.identity),
        "layout": _as_json(output.layout),
        "versions": [work.versions(*bounds(part)) for part in range(output.n_parts)],
    }
    aside = output.aside()
    found, set_aside = output.description(), aside.description()
    how = _how(output, found, said["identity"], work.overwrite, said["layout"])
    is_left = set_aside is not None and _is_same(set_aside, said)
    if how is not _How.REPLACE and not (is_left and how is _How.NEW):
        return _write_parts(output, found, write, said, work.observer)
    if set_aside is not None and not is_left:
        # Of another command, which nobody goes on with.
        patiently(lambda: remove_tree(aside.url), aside.url)
        set_aside = None
    try:
        n_found = _write_parts(aside, set_aside, write, said, work.observer)
    except BaseException as error:
        error.add_note(f"Until then {output.url} stays as it is.")
        raise
    _move(aside, output)
    return n_found


def _is_same(found: Mapping[str, Any], said: Mapping[str, Any]) -> bool:
    """Whether an output that was found is of the same work."""
    return all(found.get(name) == said[name] for name in ("identity", "layout"))


def _write_parts(
    output: _Place,
    found: Mapping[str, Any] | None,
    write: Callable[[_Place, int, str], Delayed],
    said: Mapping[str, Any],
    observer: Observer | None,
) -> int:
    """Write what is missing at a place; return how many parts were there."""
    run = uuid.uuid4().hex
    begun = {**said, "complete": False, "run": run}
    if found is None:
        output.create(begun)
    else:
        changed = [
            part
            for part, (was, now) in enumerate(
                zip(found.get("versions", ()), said["versions"], strict=False)
            )
            if was != now
        ]
        output.remove(changed)
        output.describe(begun)
        output.remove_broken()
    parts = output.missing()
    n_found = output.n_parts - len(parts)
    try:
        works = [write(output, part, run) for part in parts]
        for done, _ in enumerate(cluster.each(works), start=n_found + 1):
            if observer is not None:
                observer(done, output.n_parts)
        if lost := output.missing():
            raise StoreError(f"{len(lost)} parts that were written are not there.")
    except BaseException as error:
        error.add_note(
            f"{output.url} is not complete. The same command goes on where this one "
            "broke off; or remove it."
        )
        raise
    output.describe({**said, "complete": True, **output.contents()})
    return n_found


def _move(source: _Place, target: _Place) -> None:
    """Put a complete output in the place of another, which goes."""
    files, _ = fsspec.url_to_fs(target.url)
    if is_local(files):
        replace_folder(source.url, target.url)
        return
    # At no time must a mixture of both look whole: what says that it is comes last.
    if target.description() is not None:
        target.describe({"complete": False})
        _remove_all(target.url, set(_names(target.url)) - {target.document})
    _copy_all(source, target)
    patiently(lambda: remove_tree(source.url), source.url)


def _copy_all(source: _Place, target: _Place) -> None:
    """Copy all objects, what says that they are an output last."""
    _, old = fsspec.url_to_fs(source.url)
    files, new = fsspec.url_to_fs(target.url)
    found = ask_files(source.url, lambda files, path: files.find(path))
    names = {str(name).removeprefix(old) for name in found}
    last = {f"/{source.document}"}

    def copy(name: str) -> None:
        # Each by itself: of many objects, one always fails if one in a thousand does.
        patiently(lambda: files.cp_file(old + name, new + name), target.url + name)

    _all_at_once(copy, names - last)
    _all_at_once(copy, last)


def _how(
    output: _Place,
    found: Mapping[str, Any] | None,
    identity: Identity,
    overwrite: bool,
    layout: Any = None,
) -> _How:
    """How an output comes to its place; refuse if it must not."""
    if found is None:
        return _How.NEW
    complete = found.get("complete", True)
    if not complete:
        differing = _differing(found.get("identity", {}), identity)
        if layout is not None:
            differing += _differing(found.get("layout", {}), layout)
        if not differing:
            return _How.GO_ON
        if not overwrite:
            raise PlaceError(
                f"{output.url} is the unfinished output of another command: "
                f"{'; '.join(differing)}. Give that command again to go on with it, "
                "choose another place, or pass --overwrite to replace it."
            )
    if not overwrite:
        raise PlaceError(f"{output.url} exists: pass --overwrite to replace it.")
    return _How.REPLACE


def _differing(theirs: Identity, ours: Identity) -> list[str]:
    return [
        f"{name} was {theirs.get(name)!r} and is {ours.get(name)!r}"
        for name in {**ours, **theirs}
        if theirs.get(name) != ours.get(name)
    ]


def _as_json(value: Any) -> Any:
    """A value as it comes back from JSON, to be compared."""
    return json.loads(json.dumps(value))


def _check_run(found: Mapping[str, Any], url: str, run: str) -> None:
    """Keep what a dead command left on a cluster from writing into a new output."""
    if found.get("run") != run:
        raise StoreError(f"Another command writes to {url} meanwhile.")


def _names(url: str) -> list[str]:
    """Names of what lies in a folder."""
    entries = ask_files(url, lambda files, path: files.ls(path, detail=False))
    return [str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries]


def _remove_all(url: str, names: Iterable[str]) -> None:
    def remove(name: str) -> None:
        place = f"{url}/{name}"
        patiently(lambda: remove_tree(place), place)

    _all_at_once(remove, names)


def _all_at_once(act: Callable[[str], None], names: Iterable[str]) -> None:
    """Do something to each of many objects; stores take as long for one as for many."""
    with ThreadPoolExecutor(_REQUESTS) as pool:
        for _ in pool.map(act, names):
            pass


def _zarr_layout(answer: da.Array) -> dict[str, Any]:
    """Chunks of the largest block's rows, and shards of many of them if small."""
    n_rows, *width = (int(size) for size in answer.shape)
    rows = max(1, *(int(size) for size in answer.chunks[0]))
    chunk_bytes = rows * int(np.prod(width)) * answer.dtype.itemsize
    together = min(_SHARD_BYTES // chunk_bytes, -(-n_rows // rows) // _SHARDS)
    shards = [rows * together, *width]
    return {
        "shape": [n_rows, *width],
        "dtype": answer.dtype.str,
        "chunks": [rows, *width],
        "shards": shards if chunk_bytes < _SMALL_BYTES and together > 1 else None,
    }


@final
@dataclass(frozen=True)
class _ZarrPlace(_Place):
    """A Zarr array; its parts are shards, or chunks."""

    url: str
    layout: Mapping[str, Any] = field(default_factory=dict)

    @property
    def part_rows(self) -> int:
        """Rows of a part."""
        return int((self.layout["shards"] or self.layout["chunks"])[0])

    @property
    def n_parts(self) -> int:
        """See `_Place`."""
        return -(-int(self.layout["shape"][0]) // self.part_rows)

    def description(self) -> dict[str, Any] | None:
        """See `_Place`."""
        there = what_is_at(self.url)
        if there is None:
            return None
        found = self._node()
        if isinstance(found, zarr.Array):
            said: Any = found.attrs.asdict().get(OURS)
            if said is None:
                raise PlaceError(
                    f"{self.url} is a Zarr array that this program did not write: "
                    "choose another place, or remove it yourself."
                )
            return dict(said)
        if found is None and there == "directory" and self._is_remnant():
            return None
        raise PlaceError(
            f"{self.url} exists and is no Zarr array: choose another place."
        )

    def _node(self) -> Any:
        """The Zarr array or group that there is; None if it is neither."""
        with naming_failures(self.url):
            try:
                return zarr.open(patient_store(self.url, writable=False), mode="r")
            except Exception as error:  # whatever it is, it is no Zarr node
                if is_failure(error):
                    raise
                return None

    def _is_remnant(self) -> bool:
        """Whether a write broke off before the array was described."""
        return all(name.startswith(_ZARR_METADATA) for name in _names(self.url))

    def describe(self, description: Mapping[str, Any]) -> None:
        """See `_Place`."""
        with naming_failures(self.url):
            array = zarr.open_array(patient_store(self.url, writable=True), mode="r+")
            array.update_attributes({OURS: dict(description)})

    def create(self, description: Mapping[str, Any]) -> None:
        """See `_Place`."""
        dtype = np.dtype(self.layout["dtype"])
        with naming_failures(self.url):
            zarr.create_array(
                patient_store(self.url, writable=True),
                shape=tuple(self.layout["shape"]),
                chunks=tuple(self.layout["chunks"]),
                shards=tuple(self.layout["shards"]) if self.layout["shards"] else None,
                dtype=dtype,
                # A chunk that goes missing must not read as an answer.
                fill_value=-1 if dtype.kind == "i" else np.nan,
                compressors=(ZstdCodec(), Crc32cCodec()),
                attributes={OURS: dict(description)},
                overwrite=True,
            )

    def missing(self) -> list[int]:
        """See `_Place`."""
        with naming_failures(self.url):
            array = zarr.open_array(patient_store(self.url, writable=False), mode="r")
            return [index[0] for index in missing_chunks(array)]

    @property
    def document(self) -> str:
        """See `_Place`."""
        return "zarr.json"

    def remove(self, parts: Iterable[int]) -> None:
        """See `_Place`."""
        there = set(range(self.n_parts)) - set(self.missing())
        array = zarr.open_array(patient_store(self.url, writable=True), mode="r+")
        for part in there.intersection(parts):
            index = (part, *(0 for _ in array.shape[1:]))
            with naming_failures(self.url):
                sync(array.store_path.store.delete(chunk_path(array, index)))

    def remove_broken(self) -> None:
        """See `_Place`."""
        files, path = fsspec.url_to_fs(self.url)
        if not is_local(files):
            return  # stores of objects take them whole or not at all
        for unfinished in Path(path).rglob("*.partial"):
            unfinished.unlink(missing_ok=True)
        array = zarr.open_array(self.url, mode="r+")
        there = sorted(set(range(self.n_parts)) - set(self.missing()))
        with ThreadPoolExecutor(CPU_COUNT) as pool:
            whole = pool.map(lambda part: self._is_whole(array, part), there)
            broken = [p for p, fine in zip(there, whole, strict=True) if not fine]
        self.remove(broken)

    def _is_whole(self, array: zarr.Array[Any], part: int) -> bool:
        try:
            array[part * self.part_rows : (part + 1) * self.part_rows]
        except Exception:  # codecs raise what they like
            return False
        return True


def _write_chunk(
    url: str, run: str, first: int, pieces: Sequence[NDArray[Any]], wanted: slice
) -> None:
    """Write some rows of what the pieces, one after the other, hold."""
    values = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    with naming_failures(url):
        array = zarr.open_array(
            patient_store(url, writable=True),
            mode="r+",
            config={"write_empty_chunks": True},
        )
        said: Any = array.attrs.asdict().get(OURS, {})
        _check_run(said, url, run)
        array[first : first + wanted.stop - wanted.start] = values[wanted]


@final
@dataclass(frozen=True)
class _ParquetPlace(_Place):
    """A folder of Parquet files; each is a part."""

    url: str
    layout: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_parts(self) -> int:
        """See `_Place`."""
        return int(self.layout["files"])

    def name(self, part: int) -> str:
        """Name of a part's file: names sort as parts do."""
        width = max(5, len(str(self.n_parts - 1)))
        return f"part-{part:0{width}}.parquet"

    def description(self) -> dict[str, Any] | None:
        """See `_Place`."""
        there = what_is_at(self.url)
        if there is None:
            return None
        said = _said(self.url)
        if said is not None:
            return said
        if there == "directory" and all(n.startswith(".") for n in _names(self.url)):
            return None  # a write broke off before the output was described
        raise PlaceError(
            f"{self.url} exists and was not written by this program: choose another "
            "place."
        )

    def describe(self, description: Mapping[str, Any]) -> None:
        """See `_Place`."""
        _put(self.url, DESCRIPTION, json.dumps(description, indent=1).encode())

    def create(self, description: Mapping[str, Any]) -> None:
        """See `_Place`."""
        self.describe(description)

    def missing(self) -> list[int]:
        """See `_Place`."""
        there = set(_names(self.url))
        return [i for i in range(self.n_parts) if self.name(i) not in there]

    @property
    def document(self) -> str:
        """See `_Place`."""
        return DESCRIPTION

    def remove(self, parts: Iterable[int]) -> None:
        """See `_Place`."""
        _remove_all(self.url, map(self.name, parts))

    def remove_broken(self) -> None:
        """See `_Place`."""
        names = set(_names(self.url))
        there = [i for i in range(self.n_parts) if self.name(i) in names]
        broken = [self.name(i) for i in there if self._file(i) is None]
        unfinished = [n for n in names if n.startswith(".part-")]
        _remove_all(self.url, [*broken, *unfinished])

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


def _place(url: str) -> _ZarrPlace | _ParquetPlace:
    """Where an output goes, by its name."""
    return _ParquetPlace(url) if has_suffix(url) else _ZarrPlace(url)


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

    _check_run(_said(url) or {}, url, run)
    columns = [values] if values.ndim == 1 else list(values.T)
    table = pa.table(dict(zip(names, map(np.ascontiguousarray, columns), strict=True)))
    if keys is not None:
        _check_as_long(keys, table, name)
        for i, key in enumerate(keys.column_names):
            table = table.add_column(i, keys.schema.field(key), keys.column(key))
    written = io.BytesIO()
    pq.write_table(table, written)
    _put(url, name, written.getvalue())


def _check_as_long(keys: pa.Table, table: pa.Table, name: str) -> None:
    if keys.num_rows != table.num_rows:
        raise StoreError(
            f"There are {keys.num_rows} keys for the {table.num_rows} rows of {name}: "
            "the data were changed meanwhile."
        )


def _said(url: str) -> dict[str, Any] | None:
    """What the description beside Parquet files says; None if there is none."""
    try:
        content = ask_files(
            url, lambda files, path: files.cat_file(f"{path}/{DESCRIPTION}")
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    said: dict[str, Any] = json.loads(content)
    return said


def _put(url: str, name: str, content: bytes) -> None:
    """Write a file so that it is there whole, or not at all."""

    def put(files: Any, path: str) -> None:
        place = f"{path}/{name}"
        if not is_local(files):
            files.pipe_file(place, content)  # one object, in one request
            return
        files.makedirs(path, exist_ok=True)
        unfinished = f"{path}/.{name}.{uuid.uuid4().hex}"
        files.pipe_file(unfinished, content)
        files.mv(unfinished, place)

    ask_files(url, put)
