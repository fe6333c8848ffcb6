"""Rows that lie in a store, opened as options say: Zarr or Parquet."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import zarr

from daskgmm.errors import DataError, StoreError
from daskgmm.parquet import Filters, ParquetRows, is_parquet, open_parquet
from daskgmm.patience import patiently
from daskgmm.reading import ZarrArray


def open_rows(
    url: str | os.PathLike[str],
    *,
    array: str | None = None,
    columns: Sequence[str] | None = None,
    filters: Filters | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> ZarrArray | ParquetRows:
    """Open rows to be passed as `X`.

    Parameters
    ----------
    url : str or path
        A Zarr array or group, or Parquet: a name that ends in .parquet or .pq, a folder
        of such files, or a glob. On a disk, or at any URL that fsspec knows.
    array : str, default=None
        Path of the array inside a Zarr group.
    columns : sequence of str, default=None
        Of Parquet: the features, in order.  All, unless given.
    filters : sequence, default=None
        Of Parquet: tuples (column, operator, value) that rows must fulfil; see
        `daskgmm.parquet.open_parquet`.
    storage_options : mapping, default=None
        What fsspec needs to open the store.

    Returns
    -------
    zarr.Array or ParquetRows

    Raises
    ------
    DataError
        If an option is not for data of this kind, or does not fit these data.
    StoreError
        If there is nothing that can be opened.

    Examples
    --------
    >>> import daskgmm
    >>> rows = daskgmm.open_rows(
    ...     "s3://bucket/cells.zarr", array="0/features",
    ...     storage_options={"anon": True},
    ... )  # doctest: +SKIP
    """
    place = os.fspath(url)
    if is_parquet(place, storage_options):
        if array is not None:
            raise DataError(f"{place} is Parquet, and has no array {array!r} inside.")
        return open_parquet(place, columns, filters, storage_options)
    if columns or filters:
        raise DataError(
            f"{place} is not Parquet: columns and filters are for Parquet alone."
        )
    return _open_zarr(place, array, storage_options)


def _open_zarr(
    place: str, array: str | None, storage_options: Mapping[str, Any] | None
) -> ZarrArray:
    options = dict(storage_options) if storage_options else None
    what = place if array is None else f"{place}, array {array!r}"
    try:
        found = patiently(
            lambda: zarr.open(place, mode="r", path=array, storage_options=options),
            place,
        )
    except StoreError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"There is no Zarr array at {what}.") from error
    except Exception as error:
        # An unknown protocol, a missing library, and what those libraries raise.
        raise StoreError(f"No Zarr array can be opened at {what}: {error}") from error
    if isinstance(found, zarr.Array):
        return found
    names = sorted(name for name, _ in found.arrays())
    inside = f"a group with the arrays {', '.join(names)}" if names else "a group"
    raise StoreError(
        f"There is no Zarr array at {what}, but {inside}: name one of its arrays with "
        "--array, or with array=… in Python."
    )
