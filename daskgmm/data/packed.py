"""Numbers that stand for others, by the conventions for Climate and Forecast (CF).

Attributes say how a number is meant: as ``code · scale_factor + add_offset``, or, where
it is `_FillValue` or `missing_value`, as nothing.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final

import dask.array as da
import numpy as np
import zarr

from daskgmm.errors import DataError, MissingLibraryError
from daskgmm.storage.zarr_store import ZarrArray, name_of

_SCALES: Final = {"scale_factor": 1.0, "add_offset": 0.0}
"""And what each is where it changes nothing."""
_FILLS: Final = ("_FillValue", "missing_value")
_OTHERS: Final = ("_Unsigned",)


def packing(attributes: Mapping[str, Any], dtype: np.dtype[Any]) -> list[str]:
    """The attributes by which numbers stand for others, as `name=value`."""
    found = [
        f"{name}={attributes[name]!r}"
        for name, nothing in _SCALES.items()
        if attributes.get(name, nothing) != nothing
    ]
    found += [
        f"{name}={attributes[name]!r}"
        for name in _FILLS
        if name in attributes and not _is_nan(attributes[name], dtype)
    ]
    return found + [f"{n}={attributes[n]!r}" for n in _OTHERS if n in attributes]


def _is_nan(value: Any, dtype: np.dtype[Any]) -> bool:
    """Whether what stands for nothing is NaN, which it is anyway."""
    try:
        return bool(np.isnan(np.asarray(_plain(value, dtype), dtype=float)).all())
    except (TypeError, ValueError):
        return False


def _plain(value: Any, dtype: np.dtype[Any]) -> Any:
    """A fill value as a number: xarray writes it as base64 beside Zarr 3."""
    if isinstance(value, str) and dtype.kind in "fiu":
        try:
            content = base64.b64decode(value, validate=True)
        except binascii.Error:
            return value
        kind = np.dtype("<f8") if dtype.kind == "f" else dtype
        if len(content) == kind.itemsize:
            return np.frombuffer(content, kind)[0]
    return value


def check_not_packed(
    name: str, attributes: Mapping[str, Any], dtype: np.dtype[Any], how: str
) -> None:
    """Refuse numbers that stand for others.

    Parameters
    ----------
    name : str
        Of what holds them, for the message.
    attributes : mapping
    dtype : dtype
    how : str
        How the user says what is meant.

    Raises
    ------
    DataError
    """
    if said := packing(attributes, dtype):
        raise DataError(
            f"{name} holds packed numbers: its attributes {', '.join(said)} say how "
            f"they are meant, or which of them stand for nothing. {how}"
        )


def check_zarr(array: ZarrArray) -> None:
    """Refuse a Zarr array of numbers that stand for others."""
    check_not_packed(
        f"The Zarr array at {name_of(array)}",
        array.metadata.attributes,
        array.dtype,
        "Open it with daskgmm.open_rows(url, decode_cf=True), or --decode-cf, to have "
        "them decoded block by block, with NaN for nothing; or with decode_cf=False, "
        "--no-decode-cf, to take them as they are.",
    )


def as_they_are(array: ZarrArray) -> ZarrArray:
    """The same array, without the attributes that say what its numbers are meant as."""
    names = {*_SCALES, *_FILLS, *_OTHERS}
    kept = {k: v for k, v in array.metadata.attributes.items() if k not in names}
    metadata = array.metadata.update_attributes(kept)
    return zarr.Array(zarr.AsyncArray(metadata, array.store_path))


def decoded(array: ZarrArray) -> da.Array:
    """A Zarr array as a Dask array of the numbers that are meant, by xarray.

    Raises
    ------
    MissingLibraryError
        If xarray is not installed.
    """
    try:
        import xarray
    except ImportError as error:
        raise MissingLibraryError(
            "Packed numbers are decoded by xarray: pip install 'daskgmm[xarray]'."
        ) from error
    attributes = dict(array.metadata.attributes)
    for name in _FILLS:
        if name in attributes:
            attributes[name] = _plain(attributes[name], array.dtype)
    rows = (array.shards or array.chunks)[:1] if array.ndim else ()
    codes = da.from_array(as_they_are(array), chunks=(*rows, *array.shape[1:]))
    dims = [f"dim_{i}" for i in range(array.ndim)]
    data = xarray.Dataset({"codes": (dims, codes, attributes)})
    meant = xarray.decode_cf(
        data, decode_times=False, decode_coords=False, concat_characters=False
    )
    numbers: da.Array = meant["codes"].data
    return numbers
