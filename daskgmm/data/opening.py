"""Rows that lie in a store, opened as options say: Zarr or Parquet."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from json import JSONDecodeError
from typing import Any, Final

import dask.array as da
import zarr
from fsspec.implementations.local import LocalFileSystem
from zarr.storage import ZipStore

from daskgmm.data.packed import as_they_are, decoded
from daskgmm.data.parquet import ParquetRows, column_names, rows_of
from daskgmm.data.parquet_reader import Filters
from daskgmm.data.table_files import find_files
from daskgmm.errors import DataError, StoreError
from daskgmm.storage.glance import OTHER_FILE, holds_array, said_of_group
from daskgmm.storage.retry import patiently
from daskgmm.storage.urls import (
    absolute,
    as_path,
    files_of,
    is_parquet_name,
    needs_library,
)
from daskgmm.storage.zarr_store import ZarrArray, name_of

Opened = ZarrArray | ParquetRows | da.Array
_NAMES: Final = 100
"""Most names of a folder that are looked at."""


def open_rows(
    url: str | os.PathLike[str],
    *,
    array: str | None = None,
    columns: Sequence[str] | None = None,
    filters: Filters | None = None,
    storage_options: Mapping[str, Any] | None = None,
    decode_cf: bool | None = None,
    version: int | None = None,
) -> Opened:
    """Open rows to be passed as `X`.

    Parameters
    ----------
    url : str or path
        A Zarr array or group, also in a .zip file, or Parquet: a file, a folder of
        files, a glob, or a table of Delta Lake. On a disk, where ``~`` is the home, or
        at any URL that fsspec knows.
    array : str, default=None
        Path of the array inside a Zarr group.
    columns : sequence of str, default=None
        Of Parquet: the features, in order; see `daskgmm.data.parquet.open_parquet`.
        All but an index, unless given.
    filters : sequence, default=None
        Of Parquet: tuples (column, operator, value) that rows must fulfil.
    storage_options : mapping, default=None
        What fsspec needs to open the store.
    decode_cf : bool, default=None
        Of Zarr whose attributes `scale_factor`, `add_offset`, `_FillValue` or
        `missing_value` say that its numbers stand for others: True decodes them block
        by block, with NaN for what is nothing; False takes them as they are. Unless
        given, such an array is refused when it is used.
    version : int, default=None
        Of a table of Delta Lake.

    Returns
    -------
    zarr.Array, ParquetRows, or dask.array.Array if it is decoded

    Raises
    ------
    DataError
        If an option is not for data of this kind, or does not fit these data.
    StoreError
        If there is nothing that can be opened.

    Examples
    --------
    >>> import pandas as pd
    >>> from daskgmm import GaussianMixture, open_rows
    >>> table = pd.DataFrame({"id": range(4), "x": [0.0, 1.0, 8.0, 9.0]})
    >>> table.to_parquet("cells.parquet")
    >>> rows = open_rows("cells.parquet", columns=["x"], filters=[("id", "<", 3)])
    >>> GaussianMixture(1).fit(rows).means_
    array([[3.]])
    """
    return open_for(
        url,
        None,
        array=array,
        columns=columns,
        filters=filters,
        storage_options=storage_options,
        decode_cf=decode_cf,
        version=version,
    )


def open_for(
    url: str | os.PathLike[str],
    features: Sequence[str] | None,
    *,
    array: str | None = None,
    columns: Sequence[str] | None = None,
    filters: Filters | None = None,
    storage_options: Mapping[str, Any] | None = None,
    decode_cf: bool | None = None,
    version: int | None = None,
) -> Opened:
    """As `open_rows`; of Parquet a model's features, unless columns are named."""
    place = absolute(url)
    columns = None if columns is None else column_names(columns)
    found = find_files(place, storage_options, version)
    if found is None:
        # What is not there at all is not told to be of another kind.
        meant = _meant(_open_zarr(place, array, storage_options), decode_cf)
        for name, given in (
            ("columns", columns),
            ("filters", filters),
            ("version", version),
        ):
            if given:
                raise DataError(f"{place} is not Parquet, which `{name}` is for.")
        return meant
    for name, given in (("array", array), ("decode_cf", decode_cf)):
        if given is not None:
            raise DataError(f"{place} is Parquet, and has no {name} {given!r}.")
    return rows_of(found, features if columns is None else columns, filters)


def _meant(array: ZarrArray, decode_cf: bool | None) -> ZarrArray | da.Array:
    """An array of the numbers that are meant, or of codes that are to be taken."""
    if decode_cf is None:
        return array
    return decoded(array) if decode_cf else as_they_are(array)


def _open_zarr(
    place: str, array: str | None, storage_options: Mapping[str, Any] | None
) -> ZarrArray:
    found = open_node(place, array, storage_options)
    if isinstance(found, zarr.Array):
        return found
    raise StoreError(said_of_group(place, array, shapes_in(found)))


def open_node(
    place: str,
    array: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Any:
    """The Zarr array or group at a place.

    Raises
    ------
    StoreError
        If there is none.
    """
    what = place if array is None else f"{place}, array {array!r}"
    try:
        return patiently(lambda: _zarr_node(place, array, storage_options), place)
    except StoreError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(
            f"There is no Zarr array and no Parquet at {what}.{_what_is_there(place)}"
        ) from None
    except ImportError as error:
        raise needs_library(what, place, error) from None
    except JSONDecodeError as error:
        raise StoreError(
            f"No Zarr array can be opened at {what}: its metadata are no JSON "
            f"({error})."
        ) from None
    except Exception as error:  # libraries have their own
        raise StoreError(f"No Zarr array can be opened at {what}: {error}") from None


def _what_is_there(place: str) -> str:
    """A word on what is there on this machine instead."""
    path = as_path(place)
    if os.path.isfile(path):
        return f" {OTHER_FILE}"
    inside = sorted(os.listdir(path)) if os.path.isdir(path) else []
    for name in inside[:_NAMES]:
        below = os.path.join(path, name)
        if holds_array(below) or (os.path.isfile(below) and is_parquet_name(below)):
            return f" Is {below} meant?"
    return ""


def _zarr_node(
    place: str, array: str | None, storage_options: Mapping[str, Any] | None
) -> Any:
    options: Any = dict(storage_options) if storage_options else None
    store: Any = place
    if place.lower().endswith(".zip"):
        files, path = files_of(place, options)
        if isinstance(files, LocalFileSystem):
            store, options = ZipStore(path, mode="r", read_only=True), None
        else:
            protocol = place.partition("://")[0]
            store, options = f"zip://::{place}", {protocol: options or {}}
    return zarr.open(store, mode="r", path=array, storage_options=options)


def shapes_in(group: zarr.Group) -> dict[str, tuple[int, ...]]:
    """Paths and shapes of the arrays in a group, at any depth."""
    return {
        path: tuple(node.shape)
        for path, node in group.members(max_depth=None)
        if isinstance(node, zarr.Array)
    }


def place_of(X: Any) -> str | None:
    """Where lazy rows, or weights, lie; None if that is not one place, or not known."""
    if isinstance(X, str | os.PathLike):
        return os.fspath(X)
    if isinstance(X, ParquetRows):
        return X.url
    return name_of(X) if isinstance(X, zarr.Array) else None
