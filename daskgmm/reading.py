"""Zarr arrays read with care: stores that fail, chunks that are lost or corrupt."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from itertools import product
from typing import TYPE_CHECKING, Any, Final, Literal, final

import numpy as np
import zarr
from dask.base import normalize_token
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.codecs import (
    BytesCodec,
    Crc32cCodec,
    ShardingCodec,
    ShardingCodecIndexLocation,
)
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import StorePath, WrapperStore

from daskgmm import config
from daskgmm.errors import StoreError
from daskgmm.patience import patiently, retrying_or

if TYPE_CHECKING:
    ZarrArray = zarr.Array[Any]
else:
    ZarrArray = zarr.Array  # no generic class before Zarr 3.1
Missing = Literal["error", "fill"]
_Index = tuple[int, ...]
"""Number of a chunk, along each axis."""

_ENTRY_BYTES: Final = 16
"""Offset and length of a chunk in the index of its shard."""
_CHECKSUM_BYTES: Final = 4
_DOCUMENTS: Final = ("zarr.json", ".zarray", ".zattrs", ".zmetadata")
_AZURE: Final = {"abfs", "abfss", "az"}
"""Names that fsspec has for Azure's storage."""
_ABSENT: Final = np.uint64(2**64 - 1)


@final
class CarefulArray:
    """A Zarr array to take slices of, for Dask.

    A read that fails is tried again a few times; then the chunk that cannot be read is
    looked for and named.

    Parameters
    ----------
    array : zarr.Array
    verify : bool
        Whether to make sure that a chunk is there before it is first read.
    """

    def __init__(self, array: ZarrArray, *, verify: bool) -> None:
        self.array = array
        self._verify = verify
        self._verified: set[_Index] = set()
        self.shape: tuple[int, ...] = array.shape
        self.dtype: np.dtype[Any] = array.dtype
        self.ndim = len(self.shape)
        self._retries = config.count("storage-retries")

    def __dask_tokenize__(self) -> Any:
        """By what it is called and how it is laid out."""
        return normalize_token(
            ("daskgmm", _name(self.array), self.array.metadata.to_dict())
        )

    def __getitem__(self, place: Any) -> NDArray[Any]:
        """Read a slice.

        Raises
        ------
        StoreError
            Naming the store and the chunk that cannot be read.
        """
        return retrying_or(
            lambda error: self._named(place, error),
            lambda: self._read(place),
            self._retries,
        )

    @property
    def oindex(self) -> Any:
        """Zarr's own, for rows that xarray was told to pick one by one."""
        return self.array.oindex

    @property
    def vindex(self) -> Any:
        """As `oindex`."""
        return self.array.vindex

    def _read(self, place: Any) -> NDArray[Any]:
        values = np.asarray(self.array[place])
        if self._verify:
            # After the read: an index of a shard that is corrupt has failed by now.
            self._make_sure(place)
        return values

    def _make_sure(self, place: Any) -> None:
        for index in set(_chunks_in(self.array, place)) - self._verified:
            if self.array.shards:
                _check_shard(self.array, index)
            elif not _is_there(self.array, index):
                raise _lost(self.array, _key(self.array, index))
            self._verified.add(index)

    def _named(self, place: Any, error: Exception) -> StoreError:
        what = "The"
        for index in _chunks_in(self.array, place):
            sizes = _grid_sizes(self.array)
            chunk = tuple(
                slice(i * size, (i + 1) * size)
                for i, size in zip(index, sizes, strict=True)
            )
            try:
                self.array[chunk]
            except Exception as its_error:
                what = f"Chunk {_key(self.array, index)} of the"
                error = its_error
                break
        return StoreError(
            f"{what} Zarr array at {_name(self.array)} cannot be read, after "
            f"{self._retries + 1} attempts: {type(error).__name__}: {error}. If the "
            "store is at fault, try again later; if the chunk is corrupt, write it "
            "anew."
        )


def careful(array: ZarrArray, missing: Missing, *, whole: bool) -> CarefulArray:
    """A Zarr array to read with care, all of whose chunks are there.

    If it is read as a whole, its store is looked through here, once; else each chunk is
    looked for when it is first read, and in any case each chunk inside a shard.

    Raises
    ------
    StoreError
        If one is missing, unless missing ones are to be filled.
    """
    array = _readable(array)
    must_be_there = missing == "error"
    at_first_read = not whole or array.shards is not None
    if must_be_there and whole:
        there = patiently(lambda: _listed(array), _name(array))
        if there:
            for index in _grid(array):
                if chunk_path(array, index) not in there:
                    raise _lost(array, _key(array, index))
        else:
            at_first_read = True  # few servers of HTTP list what they have
    return CarefulArray(array, verify=must_be_there and at_first_read)


class _ReadFromTheStart(WrapperStore[Any]):
    """A store whose last bytes are asked for by where they begin."""

    def __str__(self) -> str:
        return str(self._store)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        if isinstance(byte_range, SuffixByteRequest):
            try:
                size = await self._store.getsize(key)
            except FileNotFoundError:
                return None
            byte_range = RangeByteRequest(max(0, size - byte_range.suffix), size)
        found: Buffer | None = await self._store.get(key, prototype, byte_range)
        return found


def _readable(array: ZarrArray) -> ZarrArray:
    """The same array, of which chunks inside shards can be read.

    The index of a shard is at its end, and Azure knows no ranges that say just that.
    """
    store, path = array.store_path.store, array.store_path.path
    protocol = getattr(getattr(store, "fs", None), "protocol", ())
    names = {protocol} if isinstance(protocol, str) else set(protocol)
    if array.shards is None or not names & _AZURE:
        return array
    where = StorePath(_ReadFromTheStart(store), path)
    return zarr.Array(zarr.AsyncArray(array.metadata, where))


def careful_inside(value: Any, missing: Missing) -> Any:
    """Any value, or its like that reads the Zarr array with care that it is, or wraps.

    Chunks are looked for when they are first read. xarray wraps an array several times,
    to take slices of it later and to decode what it holds.
    """
    if isinstance(value, zarr.Array):
        return careful(value, missing, whole=False)
    if type(value).__module__.partition(".")[0] != "xarray":
        return value
    for name in ("array", "_array"):
        inner = getattr(value, name, None)
        with_care = careful_inside(inner, missing)
        if with_care is not inner:
            wrapper = copy(value)
            setattr(wrapper, name, with_care)
            return wrapper
    return value


def _check_shard(array: ZarrArray, index: _Index) -> None:
    """Raise if a shard, or a chunk inside it, is missing."""
    metadata: Any = array.metadata
    [codec] = [c for c in metadata.codecs if isinstance(c, ShardingCodec)]
    shard: Any = array.shards
    grid = [size // chunk for size, chunk in zip(shard, array.chunks, strict=True)]
    n_bytes = _ENTRY_BYTES * math.prod(grid) + _CHECKSUM_BYTES
    at_end = codec.index_location is ShardingCodecIndexLocation.end
    where = SuffixByteRequest(n_bytes) if at_end else RangeByteRequest(0, n_bytes)
    store, path = array.store_path.store, chunk_path(array, index)
    found = sync(store.get(path, default_buffer_prototype(), where))
    if found is None:
        raise _lost(array, _key(array, index))
    if not _has_plain_index(codec):
        return  # laid out in another way: Zarr alone can tell
    entries = np.frombuffer(found.to_bytes()[:-_CHECKSUM_BYTES], dtype="<u8")
    absent = (entries.reshape(*grid, 2) == _ABSENT).all(axis=-1)
    firsts = [i * size for i, size in zip(index, shard, strict=True)]
    # What lies beyond the array's edge is never written.
    inside = tuple(
        slice(-(-min(size, length - first) // chunk))
        for size, length, first, chunk in zip(
            shard, array.shape, firsts, array.chunks, strict=True
        )
    )
    for inner in np.argwhere(absent[inside])[:1]:
        numbers = ", ".join(map(str, inner))
        raise _lost(array, f"({numbers}) inside shard {_key(array, index)}")


def _has_plain_index(codec: ShardingCodec) -> bool:
    """Whether a shard's index is what Zarr writes unless told otherwise."""
    names = [type(its_codec) for its_codec in codec.index_codecs]
    return names == [BytesCodec, Crc32cCodec]


def _lost(array: ZarrArray, chunk: str) -> StoreError:
    return StoreError(
        f"Chunk {chunk} of the Zarr array at {_name(array)} is missing: "
        f"it was lost, or never written. Zarr would read it as {array.fill_value}. "
        "Write it anew; or, if such chunks were left out on purpose, pass "
        "missing_chunks='fill'."
    )


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


def _name(array: ZarrArray) -> str:
    return str(array.store_path)


def _grid_sizes(array: ZarrArray) -> tuple[int, ...]:
    """Shape of what is one object in the store: a shard, or a chunk."""
    return tuple(array.shards or array.chunks)


def _grid(array: ZarrArray, row_chunks: range | None = None) -> Iterator[_Index]:
    """Numbers of the chunks, all of them or those of some rows."""
    sizes = zip(array.shape, _grid_sizes(array), strict=True)
    ranges = [range(-(-length // size)) for length, size in sizes]
    if row_chunks is not None:
        ranges[0] = row_chunks
    return product(*ranges)


def _chunks_in(array: ZarrArray, place: Any) -> Iterator[_Index]:
    """Numbers of the chunks that a slice of rows touches."""
    places = place if isinstance(place, tuple) else (place,)
    rows = places[0] if places and isinstance(places[0], slice) else slice(None)
    touched = range(array.shape[0])[rows]
    if not touched:
        return iter(())
    ends, size = sorted((touched[0], touched[-1])), _grid_sizes(array)[0]
    return _grid(array, range(ends[0] // size, ends[1] // size + 1))


def _key(array: ZarrArray, index: _Index) -> str:
    return str(array.metadata.encode_chunk_key(index))


def chunk_path(array: ZarrArray, index: _Index) -> str:
    """Name of a chunk in its store."""
    return f"{array.store_path.path}/{_key(array, index)}".lstrip("/")


def _is_there(array: ZarrArray, index: _Index) -> bool:
    """Whether a chunk is in the store.

    By its first byte: to ask for its existence gets a no from a server that fails.
    """
    one = RangeByteRequest(0, 1)
    get = array.store_path.store.get
    return (
        sync(get(chunk_path(array, index), default_buffer_prototype(), one)) is not None
    )


def _listed(array: ZarrArray) -> set[str]:
    """Names of what the store lists of an array; none if it cannot list."""
    store = array.store_path.store
    if not store.supports_listing:
        return set()
    path = array.store_path.path
    documents = {f"{path}/{name}".lstrip("/") for name in _DOCUMENTS}
    return sync(_keys(store, path)) - documents


def missing_chunks(array: ZarrArray) -> Iterator[_Index]:
    """Numbers of the chunks that are not in the store."""
    store = array.store_path.store
    if store.supports_listing:
        there = sync(_keys(store, array.store_path.path))
        return (i for i in _grid(array) if chunk_path(array, i) not in there)
    return (i for i in _grid(array) if not sync(store.exists(chunk_path(array, i))))


async def _keys(store: Any, prefix: str) -> set[str]:
    return {key async for key in store.list_prefix(f"{prefix}/" if prefix else "")}
