"""Zarr arrays read with care: stores that fail, chunks that are lost or corrupt."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from copy import copy
from typing import Any, Final, final

import numpy as np
import zarr
from dask.base import normalize_token
from numpy.typing import NDArray

from daskgmm import config
from daskgmm.data.packed import check_zarr
from daskgmm.errors import StoreError
from daskgmm.storage.facts import Facts, differing, digest_of
from daskgmm.storage.retry import patiently, retrying_or
from daskgmm.storage.zarr_store import (
    Index,
    Missing,
    ZarrArray,
    changed,
    facts_of,
    gone,
    grid,
    grid_sizes,
    key_of,
    layout_of,
    lost,
    missing_chunks,
    name_of,
    opened_anew,
    readable,
    watched,
)

_UNKNOWN: Final = ""
"""Layout of an array whose metadata are not in its store, or were not looked at."""


@final
class CarefulArray:
    """A Zarr array to take slices of, for Dask.

    Whoever reads makes sure that the array is there, as it was when it was opened, and
    that all chunks are. A read that fails is tried again a few times; then the chunk
    that cannot be read is looked for and named.

    Parameters
    ----------
    array : zarr.Array
    missing : {'error', 'fill'}
        What a chunk that is not in the store is.

    Raises
    ------
    StoreError
        If the array is not there any more, or is not as it was when it was opened.
    """

    def __init__(self, array: ZarrArray, missing: Missing) -> None:
        self._plain = readable(array)
        self.array = watched(self._plain, missing)
        self.shape: tuple[int, ...] = array.shape
        self.dtype: np.dtype[Any] = array.dtype
        self.ndim = len(self.shape)
        self._missing = missing
        self._retries = config.count("storage-retries")
        self._layout = layout_of(array)
        self._is_looked_at = False
        self._facts: Facts = {}
        now = self._opened_anew()
        if now is None:
            # Such as an array that is put together of parts of others.
            self._layout = _UNKNOWN
        else:
            self._compare(now)

    def __getstate__(self) -> dict[str, Any]:
        """Others look for themselves, and leave it to this process to compare facts."""
        return {**vars(self), "_facts": {}, "_is_looked_at": False}

    def __dask_tokenize__(self) -> Any:
        """By what it is called, how it is laid out and what is known of its chunks."""
        return normalize_token(
            (
                "daskgmm",
                name_of(self._plain),
                layout_of(self._plain),
                digest_of(self._facts),
                self._missing,
            )
        )

    def __getitem__(self, place: Any) -> NDArray[Any]:
        """Read a slice.

        Raises
        ------
        StoreError
            Naming the store and the chunk that is missing or cannot be read.
        """
        return retrying_or(
            lambda error: self._named(place, error),
            lambda: self._read(place),
            self._retries,
        )

    @property
    def oindex(self) -> Any:
        """Zarr's own, for rows that xarray was told to pick one by one."""
        self._look()
        return self.array.oindex

    @property
    def vindex(self) -> Any:
        """As `oindex`."""
        self._look()
        return self.array.vindex

    def note_facts(self) -> None:
        """Take note of what the store tells of the chunks, to notice a change."""
        self._facts = self._facts_now()

    def check_complete(self) -> None:
        """Raise StoreError if the store lists what it has, and a chunk is not there."""
        if self._facts:
            for index in missing_chunks(self._plain, self._facts):
                raise lost(self._plain, key_of(self._plain, index))

    def check_unchanged(self) -> None:
        """Raise StoreError if the array, or a chunk, is not as it was."""
        self.look_again()
        self._look()
        what = differing(self._facts, self._facts_now()) if self._facts else None
        if what is not None:
            raise changed(self._plain, f"chunk {what}")

    def look_again(self) -> None:
        """Before the next read, make sure anew that the array is there."""
        self._is_looked_at = False

    def _read(self, place: Any) -> NDArray[Any]:
        self._look()
        store: Any = self.array.store_path.store
        before = store.n_filled
        values = np.asarray(self.array[place])
        if store.n_filled > before:
            # Another disk than the one it was opened on, say, has no chunk either.
            self.look_again()
            self._look()
        return values

    def _look(self) -> None:
        """Make sure that the array is there and as it was, if that was not done yet."""
        if self._is_looked_at or self._layout == _UNKNOWN:
            return
        now = self._opened_anew()
        if now is None:
            raise gone(self._plain)
        self._compare(now)

    def _compare(self, now: ZarrArray) -> None:
        if layout_of(now) != self._layout:
            what = f"its shape was {self.shape} and is {now.shape}"
            same = now.shape == self.shape
            raise changed(self._plain, "its layout is another one" if same else what)
        self._is_looked_at = True

    def _opened_anew(self) -> ZarrArray | None:
        return patiently(lambda: opened_anew(self._plain), name_of(self._plain))

    def _facts_now(self) -> Facts:
        return patiently(lambda: facts_of(self._plain), name_of(self._plain))

    def _named(self, place: Any, error: Exception) -> StoreError:
        what = "The"
        for index in _chunks_in(self.array, place):
            sizes = grid_sizes(self.array)
            chunk = tuple(
                slice(i * size, (i + 1) * size)
                for i, size in zip(index, sizes, strict=True)
            )
            try:
                self.array[chunk]
            except Exception as its_error:
                what = f"Chunk {key_of(self.array, index)} of the"
                error = its_error
                break
        return StoreError(
            f"{what} Zarr array at {name_of(self.array)} cannot be read, after "
            f"{self._retries + 1} attempts by {platform.node()}: "
            f"{type(error).__name__}: {error}. If the store is at fault, try again "
            "later; if the chunk is corrupt, write it anew."
        )


def careful(array: ZarrArray, missing: Missing) -> CarefulArray:
    """A Zarr array to read as a whole, with care.

    Raises
    ------
    StoreError
        If a chunk is missing, unless missing ones are to be filled.
    """
    with_care = CarefulArray(array, missing)
    with_care.note_facts()
    if missing == "error":
        with_care.check_complete()
    return with_care


@final
class Care:
    """Puts `CarefulArray` in the place of the Zarr arrays that a graph holds.

    Parameters
    ----------
    missing : {'error', 'fill'}

    Attributes
    ----------
    arrays : dict
        Those that were put there, or were there before, by the arrays' identities.
    """

    def __init__(self, missing: Missing) -> None:
        self._missing = missing
        self.arrays: dict[int, CarefulArray] = {}
        self._plain: list[CarefulArray] = []

    def __call__(self, value: Any, *, sliced: bool, wrapped: bool = False) -> Any:
        """The like of a value that reads with care; of most values, the value itself.

        Parameters
        ----------
        value : object
            What a node of a graph holds.
        sliced : bool
            Whether all that is done to it is to take slices. Other functions get a
            Zarr array that notices missing chunks, but does not try again.
        wrapped : bool
            Whether xarray decodes it.
        """
        if isinstance(value, zarr.Array):
            with_care = self._careful(value)
            if not wrapped:
                self._plain.append(with_care)
            return with_care if sliced else with_care.array
        for with_care in careful_arrays_in(value):
            self.arrays[id(with_care)] = with_care
        return self._inside(value) if _is_xarrays(value) else value

    def check_plain(self) -> None:
        """Raise DataError if an array holds numbers that stand for others.

        Not of those that xarray wraps: it decodes them, if it was not told otherwise.
        """
        for with_care in self._plain:
            check_zarr(with_care.array)

    def _careful(self, array: ZarrArray) -> CarefulArray:
        if id(array) not in self.arrays:
            self.arrays[id(array)] = CarefulArray(array, self._missing)
        return self.arrays[id(array)]

    def _inside(self, wrapper: Any) -> Any:
        """A wrapper of xarray's around an array that is read with care."""
        for name, inner in _wrapped(wrapper):
            with_care = self(inner, sliced=True, wrapped=True)
            if with_care is not inner:
                wrapper = copy(wrapper)
                setattr(wrapper, name, with_care)
        return wrapper


def careful_arrays_in(value: Any) -> Iterator[CarefulArray]:
    """The arrays read with care that a value of a graph is, or wraps."""
    if isinstance(value, CarefulArray):
        yield value
    elif _is_xarrays(value):
        for _, inner in _wrapped(value):
            yield from careful_arrays_in(inner)


def _is_xarrays(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "xarray"


def _wrapped(wrapper: Any) -> Iterator[tuple[str, Any]]:
    """Xarray wraps an array several times, to take slices later and to decode."""
    for name in ("array", "_array"):
        if (inner := getattr(wrapper, name, None)) is not None:
            yield name, inner
            return


def has_checksum(array: ZarrArray) -> bool:
    """Whether a codec of the data would notice a flipped bit."""
    layout: Any = array.metadata.to_dict()
    codecs = layout.get("codecs") or [
        layout.get("compressor"),
        *(layout.get("filters") or ()),
    ]
    return any(map(_is_checksum, codecs))


def _is_checksum(codec: Any) -> bool:
    settings = {} if codec is None else codec.get("configuration", codec)
    if "index_codecs" in settings:  # a shard: the checksum of its index is none of data
        return any(map(_is_checksum, settings["codecs"]))
    name = "" if codec is None else str(codec.get("name", codec.get("id")))
    marks = ("crc32", "adler32", "fletcher32")
    return settings.get("checksum") is True or any(mark in name for mark in marks)


def _chunks_in(array: ZarrArray, place: Any) -> Iterator[Index]:
    """Numbers of the chunks that a slice of rows touches."""
    places = place if isinstance(place, tuple) else (place,)
    rows = places[0] if places and isinstance(places[0], slice) else slice(None)
    touched = range(array.shape[0])[rows]
    if not touched:
        return iter(())
    ends, size = sorted((touched[0], touched[-1])), grid_sizes(array)[0]
    return grid(array, range(ends[0] // size, ends[1] // size + 1))
