"""Which files a place holds that are Parquet, and which of them a table format counts.

A place is a file, a folder, a glob, or a table of Delta Lake.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, final

from daskgmm.errors import DataError, MissingLibraryError, StoreError
from daskgmm.storage.facts import Facts, differing, facts_of_entry
from daskgmm.storage.glance import DELTA_LOG, DESCRIPTION, HIDDEN, REFUSED, ZARR
from daskgmm.storage.retry import patiently
from daskgmm.storage.urls import absolute, files_of, is_parquet_name, is_wild

_MAGIC: Final = b"PAR1"
_AT_ONCE: Final = 16


@final
@dataclass(frozen=True)
class TableFiles:
    """Files that together are one table.

    Attributes
    ----------
    url : str
        Where they were looked for.
    storage_options : mapping
    paths : tuple of str
        In their file system, in order.
    facts : mapping
        What the store told of them.
    partitioning : pyarrow.Schema or None
        Columns that are in the paths alone, `key=value`, if a log tells their types.
    """

    url: str
    storage_options: Mapping[str, Any] = field(repr=False)
    paths: tuple[str, ...] = field(repr=False)
    facts: Facts = field(repr=False)
    partitioning: Any = field(default=None, repr=False)

    def check_unchanged(self) -> None:
        """Raise StoreError if the store tells that a file is not as it was."""
        files, path = files_of(self.url, self.storage_options)
        # By the same requests as before: other answers round times in other ways.
        now = patiently(lambda: _facts(files, path, self.paths), self.url)
        what = differing(self.facts, now)
        if what is not None:
            raise changed(f"{what}, in {self.url}")


def changed(what: str) -> StoreError:
    """The error of a file that was written to while it was read."""
    return StoreError(
        f"Parquet has been changed since it was opened: {what}. What was found so far "
        "is of neither. Let nobody write to it meanwhile, and begin again."
    )


def _facts(files: Any, path: str, paths: Iterable[str]) -> Facts:
    """What the store tells of such files of a place."""
    entries = _entries(files, path)
    if entries is None:
        # Of a log's files one by one: there are many more in the folder.
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            looked_at = pool.map(partial(_entry, files), paths)
            entries = dict(zip(paths, looked_at, strict=True))
    return {path: facts_of_entry(entries[path]) for path in paths if entries.get(path)}


def _entry(files: Any, path: str) -> Mapping[str, Any]:
    """What fsspec says of a file; nothing if it is not there."""
    try:
        found: Mapping[str, Any] = files.info(path)
    except FileNotFoundError:
        return {}
    return found


def find_files(
    url: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None = None,
    version: int | None = None,
) -> TableFiles | None:
    """The Parquet files of a place; None if what is there is no Parquet.

    Parameters
    ----------
    url : str or path
        A name with wild cards is a glob only if nothing has that very name.
    storage_options : mapping, optional
    version : int, optional
        Of a table of Delta Lake.

    Raises
    ------
    DataError
        If it is a table whose files cannot be read one by one, or the options do not
        fit.
    MissingLibraryError
        If the library of its file system is not installed.
    StoreError
        If the store fails again and again, or a name of Parquet leads to nothing.
    """
    place, options = absolute(url), _as_options(storage_options)
    files, path = files_of(place, options)
    entries = patiently(lambda: _entries(files, path), place)
    if entries is None:
        return _of_delta(files, path, place, options, version)
    if version is not None:
        raise DataError(f"{place} has no versions: it is no table of Delta Lake.")
    if not entries:
        if is_parquet_name(place) or is_wild(place):
            raise StoreError(f"There is no Parquet file at {place}.")
        return None
    paths = tuple(sorted(entries))
    facts = {path: facts_of_entry(entries[path]) for path in paths}
    return TableFiles(place, options, paths, facts)


def _as_options(given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if not (isinstance(given, Mapping) and all(isinstance(key, str) for key in given)):
        raise DataError(
            f"storage_options must be a dictionary of names and values, got {given!r}."
        )
    return dict(given)


_Entries = dict[str, Mapping[str, Any]]
"""What fsspec says of files, by their paths."""


def _entries(files: Any, path: str) -> _Entries | None:
    """The Parquet files of a place; None for a table with a log of its own."""
    files.invalidate_cache()  # others may have written there
    try:
        found = files.info(path)  # `exists` says no for a store that fails
    except FileNotFoundError:
        return _matches(files, path) if is_wild(path) else {}
    if found["type"] == "directory":
        return _in_folder(files, path)
    return {path: found} if is_parquet_name(path) or _is_parquet(files, path) else {}


def _matches(files: Any, pattern: str) -> _Entries:
    """The files that a glob matches, and those in folders that it matches."""
    found: _Entries = {}
    for path, entry in files.glob(pattern, detail=True).items():
        if entry["type"] == "directory":
            inside = _in_folder(files, path)
            if inside is None:
                raise DataError(f"{path} is a table of Delta Lake: give it by itself.")
            found |= inside
        elif is_parquet_name(path) or _is_parquet(files, path):
            found[path] = entry
    return found


def _in_folder(files: Any, folder: str) -> _Entries | None:
    """The Parquet files of a folder; None for a table with a log of its own."""
    names = {_last(name) for name in files.ls(folder, detail=False)}
    if names & set(ZARR):
        return {}
    if DELTA_LOG in names:
        return None
    _check_plain(files, folder, names)
    if not any(
        is_parquet_name(name) or "=" in name or "." not in name for name in names
    ):
        return {}
    start = f"{folder.rstrip('/')}/"
    inside: _Entries = files.find(folder, detail=True)
    parts = {path: path.rpartition(start)[2].split("/") for path in inside}
    _check_data_alone(folder, parts.values())
    visible = [
        path
        for path, its in parts.items()
        if not any(part.startswith(HIDDEN) for part in its)
    ]
    # Object stores mark folders by empty objects, which some list as files.
    unnamed = [p for p in visible if "." not in _last(p) and inside[p].get("size") != 0]
    named = [path for path in visible if is_parquet_name(path) and path[-1] != "/"]
    taken = named + _parquet_without_suffix(files, unnamed)
    return {path: inside[path] for path in taken}


def _check_data_alone(folder: str, parts: Iterable[Sequence[str]]) -> None:
    """Refuse a folder with outputs of this package inside: they are no more data."""
    for *inside, name in parts:
        is_hidden = any(part.startswith(HIDDEN) for part in inside)
        if name == DESCRIPTION and inside and not is_hidden:
            raise DataError(
                f"{'/'.join(inside)} was written by daskgmm, and lies among the data "
                f"in {folder}: move it out of there, or name the files of the data by "
                f"a glob such as {folder}/*.parquet."
            )


def _parquet_without_suffix(files: Any, paths: Sequence[str]) -> list[str]:
    """Those that begin as Parquet does; if none of the first few does, none."""
    look = partial(_is_parquet, files)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(look, paths[:_AT_ONCE]))
        if any(found):
            found += pool.map(look, paths[_AT_ONCE:])
    return [path for path, its in zip(paths, found, strict=False) if its]


def _last(path: str) -> str:
    return str(path).rstrip("/").rpartition("/")[2]


def _is_parquet(files: Any, path: str) -> bool:
    """Whether a file begins as Parquet does."""
    try:
        return bytes(files.cat_file(path, start=0, end=len(_MAGIC))) == _MAGIC
    except (FileNotFoundError, IsADirectoryError):
        return False


def _check_plain(files: Any, folder: str, names: set[str]) -> None:
    """Refuse tables of formats whose log says which files count."""
    for mark in names & set(REFUSED):
        if mark == "metadata":
            inside = files.ls(f"{folder.rstrip('/')}/{mark}", detail=False)
            if not any(_last(path).endswith(".metadata.json") for path in inside):
                continue
        raise DataError(
            f"{folder} is a table of {REFUSED[mark]}, whose log says which of its "
            "files and rows count. Read it with the library of that format, into a "
            "Dask DataFrame say, or write a snapshot of it as plain Parquet."
        )


# --- Delta Lake -----------------------------------------------------------------------


def _of_delta(
    files: Any, path: str, place: str, options: Mapping[str, Any], version: int | None
) -> TableFiles:
    """Files of a table of Delta Lake, as its log has them at a version."""
    try:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError
    except ImportError as error:
        raise MissingLibraryError(
            f"{place} is a table of Delta Lake, whose log says which of its files "
            "count: pip install 'daskgmm[delta]'."
        ) from error
    is_local = "file" in files.protocol
    try:
        table = DeltaTable(
            path if is_local else place,
            version,
            storage_options=None if is_local else _for_delta(options),
        )
        uris, why_not = table.file_uris(), _why_not_by_files(table)
    except (DeltaError, OSError, ValueError) as error:
        raise StoreError(
            f"The table of Delta Lake at {place} cannot be read"
            + ("" if version is None else f" at version {version}")
            + f": {error}"
        ) from error
    if why_not is not None:
        raise DataError(
            f"The table of Delta Lake at {place} cannot be read file by file: "
            f"{why_not}. Rewrite it without, or write a snapshot of it as plain "
            "Parquet."
        )
    paths = tuple(sorted(files_of(uri, options)[1] for uri in uris))
    facts = patiently(lambda: _facts(files, path, paths), place)
    return TableFiles(place, options, paths, facts, _in_paths(table))


_OF_DELTA: Final = {
    "key": "aws_access_key_id",
    "secret": "aws_secret_access_key",
    "token": "aws_session_token",
    "endpoint_url": "aws_endpoint_url",
    "anon": "aws_skip_signature",
}
"""What deltalake calls the options of s3fs."""


def _for_delta(options: Mapping[str, Any]) -> dict[str, str]:
    flat = {**options, **options.get("client_kwargs", {})}
    flat.pop("client_kwargs", None)
    told = {_OF_DELTA.get(name, name): str(value) for name, value in flat.items()}
    if told.get("aws_endpoint_url", "").startswith("http://"):
        told["aws_allow_http"] = "true"
    return told


def _why_not_by_files(table: Any) -> str | None:
    """Why a table's files do not say all of its rows, if they do not."""
    mapping = table.metadata().configuration.get("delta.columnMapping.mode", "none")
    if mapping != "none":
        return "its columns have other names in its files (column mapping)"
    if "deletionVectors" in (table.protocol().reader_features or ()):
        vectors = getattr(table, "deletion_vectors", None)
        if vectors is None or any(batch.num_rows for batch in vectors()):
            return "some rows of its files are marked as deleted (deletion vectors)"
    return None


def _in_paths(table: Any) -> Any:
    """Schema of the columns that are in the paths alone."""
    import pyarrow as pa

    schema = pa.schema(table.schema().to_arrow())
    names = table.metadata().partition_columns
    return pa.schema([schema.field(name) for name in names])
