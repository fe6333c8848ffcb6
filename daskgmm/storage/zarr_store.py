"""Zarr arrays in their stores: which chunks are there, and whether they changed."""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Final, Literal, Self, final

import numpy as np
import zarr
from dask.base import tokenize
from zarr.abc.buffer import Buffer, BufferPrototype
from zarr.abc.store import ByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
from zarr.storage import FsspecStore, LocalStore, StorePath, WrapperStore, ZipStore

from daskgmm.errors import StoreError
from daskgmm.storage.facts import Facts, facts_of_files, facts_of_folder, facts_of_path
from daskgmm.storage.zarr_internals import sync

if TYPE_CHECKING:
    ZarrArray = zarr.Array[Any]
else:
    ZarrArray = zarr.Array  # no generic class before Zarr 3.1
Missing = Literal["error", "fill"]
Index = tuple[int, ...]
"""Number of a chunk, along each axis."""

_ENTRY_BYTES: Final = 16
"""Offset and length of a chunk in the index of its shard."""
_CHECKSUM_BYTES: Final = 4
_ABSENT: Final = np.uint64(2**64 - 1)
_DOCUMENTS: Final = ("zarr.json", ".zarray", ".zattrs", ".zmetadata")
_AZURE: Final = {"abfs", "abfss", "az"}
"""Names that fsspec has for Azure's storage."""


# --- names ----------------------------------------------------------------------------


def name_of(array: ZarrArray) -> str:
    """Where an array lies, as a URL if that is known."""
    store = array.store_path.store
    if isinstance(store, WatchedStore | _ReadFromTheStart):
        store = store.wrapped
    if not isinstance(store, FsspecStore):
        return str(array.store_path)
    # Zarr wraps file systems that are not asynchronous.
    files: Any = getattr(store.fs, "sync_fs", store.fs)
    path = f"{store.path}/{array.store_path.path}".rstrip("/")
    return str(files.unstrip_protocol(path))


def key_of(array: ZarrArray, index: Index) -> str:
    """Name of a chunk, or shard, in its array."""
    return str(array.metadata.encode_chunk_key(index))


def chunk_path(array: ZarrArray, index: Index) -> str:
    """Name of a chunk, or shard, in its store."""
    return f"{array.store_path.path}/{key_of(array, index)}".lstrip("/")


def grid_sizes(array: ZarrArray) -> Index:
    """Shape of what is one object in the store: a shard, or a chunk."""
    return tuple(array.shards or array.chunks)


def grid(array: ZarrArray, row_chunks: range | None = None) -> Iterator[Index]:
    """Numbers of the chunks, all of them or those of some rows."""
    sizes = zip(array.shape, grid_sizes(array), strict=True)
    ranges = [range(-(-length // size)) for length, size in sizes]
    if row_chunks is not None:
        ranges[0] = row_chunks
    return product(*ranges)


# --- what is there --------------------------------------------------------------------


def facts_of(array: ZarrArray) -> Facts:
    """What the store tells of an array's chunks, by their names in the array.

    Empty where it does not list what it has.
    """
    store, path = array.store_path.store, array.store_path.path
    if isinstance(store, _ReadFromTheStart):
        store = store.wrapped
    if not store.supports_listing:
        return {}
    if isinstance(store, LocalStore):
        found = facts_of_folder(os.path.join(store.root, path))
    elif isinstance(store, FsspecStore):
        found = sync(_facts_by_fsspec(store.fs, f"{store.path}/{path}".rstrip("/")))
    else:
        # Of what lies in one file, that file tells.
        fact = facts_of_path(str(store.path)) if isinstance(store, ZipStore) else ()
        found = dict.fromkeys(sync(_names(store, path)), fact)
    return {name: fact for name, fact in found.items() if name not in _DOCUMENTS}


async def _facts_by_fsspec(files: Any, folder: str) -> Facts:
    files.invalidate_cache()  # others may have written there
    return facts_of_files(await files._find(folder, detail=True), folder)


async def _names(store: Store, path: str) -> list[str]:
    prefix = f"{path}/" if path else ""
    return [key.removeprefix(prefix) async for key in store.list_prefix(prefix)]


def missing_chunks(array: ZarrArray, facts: Facts | None = None) -> Iterator[Index]:
    """Numbers of the chunks that are not in a store which lists what it has."""
    there = facts_of(array) if facts is None else facts
    return (index for index in grid(array) if key_of(array, index) not in there)


# --- what it is -----------------------------------------------------------------------


def layout_of(array: ZarrArray) -> str:
    """A digest of an array's shape, dtype, chunks and codecs."""
    layout: Any = dict(array.metadata.to_dict())
    for name in ("attributes", "consolidated_metadata"):
        layout.pop(name, None)
    return str(tokenize(layout))


def opened_anew(array: ZarrArray) -> ZarrArray | None:
    """The array as it is in its store now; None if it is not there."""
    try:
        return zarr.open_array(
            array.store_path, mode="r", zarr_format=array.metadata.zarr_format
        )
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None  # nothing, or a group, or what is no metadata


def is_here(array: ZarrArray) -> bool:
    """Whether an array's store has it, as seen from this machine."""
    return opened_anew(array) is not None


def lost(array: ZarrArray, chunk: str) -> StoreError:
    """The error of a chunk that is not there."""
    return StoreError(
        f"Chunk {chunk} of the Zarr array at {name_of(array)} is missing, as seen from "
        f"{platform.node()}: it was lost, or never written. Zarr would read it as "
        f"{array.fill_value}. Write it anew; or, if such chunks were left out on "
        "purpose, pass missing_chunks='fill'."
    )


def gone(array: ZarrArray) -> StoreError:
    """The error of an array that is not there."""
    return StoreError(
        f"There is no Zarr array at {name_of(array)}, as seen from {platform.node()}, "
        "though there was one when it was opened. If workers run on other machines, or "
        "the place is in a process's own memory, give a place that all of them reach "
        "by the same name: on a disk that they share, or in an object store."
    )


def changed(array: ZarrArray, what: str) -> StoreError:
    """The error of an array that was written to while it was read."""
    return StoreError(
        f"The Zarr array at {name_of(array)} has been changed since it was opened: "
        f"{what}. What was found so far is of neither. Let nobody write to it "
        "meanwhile, and begin again."
    )


# --- stores ---------------------------------------------------------------------------


@final
class WatchedStore(WrapperStore[Any]):
    """A store that notices, at each read, that a chunk of its array is not there.

    Zarr would take the fill value in its place: also where this process sees another
    disk, or none, by the array's name.

    Parameters
    ----------
    store : Store
    array : zarr.Array
        The array, in that store.
    missing : {'error', 'fill'}
        What a chunk that is not there is.
    """

    def __init__(self, store: Store, array: ZarrArray, missing: Missing) -> None:
        super().__init__(store)
        self._array, self._missing = array, missing
        self._index = None if array.shards is None else _ShardIndex.of(array)
        self.n_filled = 0
        """Chunks that were read as the fill value, so far."""

    @property
    def wrapped(self) -> Store:
        """The store itself."""
        store: Store = self._store
        return store

    def __str__(self) -> str:
        return str(self._store)

    def _with_store(self, store: Store) -> Self:
        return type(self)(store, self._array, self._missing)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Raise StoreError if a chunk is not there, and is not to be filled."""
        found: Buffer | None = await self._store.get(key, prototype, byte_range)
        name = key.removeprefix(f"{self._array.store_path.path}/")
        if name in _DOCUMENTS:
            return found
        if self._missing == "fill":
            self.n_filled += found is None
        elif found is None:
            raise lost(self._array, name)
        elif self._index is not None:
            self._index.check(name, found, byte_range)
        return found


def watched(array: ZarrArray, missing: Missing) -> ZarrArray:
    """The same array, of which each read notices the chunks that are not there."""
    store, path = array.store_path.store, array.store_path.path
    if isinstance(store, WatchedStore):
        return array
    where = StorePath(WatchedStore(store, array, missing), path)
    return zarr.Array(zarr.AsyncArray(array.metadata, where))


@final
@dataclass(frozen=True, slots=True)
class _ShardIndex:
    """How the index of a shard lies in it.

    Attributes
    ----------
    array : zarr.Array
    n_bytes : int
    at_end : bool
    grid : tuple of int
        Chunks along each axis of a shard.
    """

    array: ZarrArray
    n_bytes: int
    at_end: bool
    grid: Index

    @classmethod
    def of(cls, array: ZarrArray) -> Self | None:
        """That of an array with shards; None if it is laid out in a way of its own."""
        metadata: Any = array.metadata
        [codec] = [c for c in metadata.codecs if isinstance(c, ShardingCodec)]
        if [type(its) for its in codec.index_codecs] != [BytesCodec, Crc32cCodec]:
            return None  # Zarr alone can tell
        # A string in newer versions of Zarr, a member of an enumeration before.
        location: Any = codec.index_location
        shape: Any = array.shards
        chunks = tuple(s // c for s, c in zip(shape, array.chunks, strict=True))
        return cls(
            array,
            _ENTRY_BYTES * math.prod(chunks) + _CHECKSUM_BYTES,
            getattr(location, "value", location) == "end",
            chunks,
        )

    def check(self, shard: str, found: Buffer, asked: ByteRequest | None) -> None:
        """Raise StoreError if what was read of a shard says that a chunk is not there.

        Zarr reads the index before it reads chunks, or the shard as a whole.
        """
        its_index = (
            SuffixByteRequest(self.n_bytes)
            if self.at_end
            else RangeByteRequest(0, self.n_bytes)
        )
        if asked is not None and asked != its_index:
            return
        content = found[-self.n_bytes :] if self.at_end else found[: self.n_bytes]
        entries = np.frombuffer(content.to_bytes()[:-_CHECKSUM_BYTES], dtype="<u8")
        if entries.size != 2 * math.prod(self.grid):
            return  # the shard is too short: Zarr says so
        absent = (entries.reshape(*self.grid, 2) == _ABSENT).all(axis=-1)
        if not absent.any():
            return
        for inner in np.argwhere(absent[self._inside(shard)])[:1]:
            numbers = ", ".join(map(str, inner))
            raise lost(self.array, f"({numbers}) inside shard {shard}")

    def _inside(self, shard: str) -> tuple[slice, ...]:
        """Its chunks that are not beyond the array's edge: those are never written."""
        index = tuple(map(int, re.findall(r"\d+", shard)))
        sizes: Any = self.array.shards
        return tuple(
            slice(-(-min(size, length - i * size) // chunk))
            for i, size, length, chunk in zip(
                index, sizes, self.array.shape, self.array.chunks, strict=True
            )
        )


class _ReadFromTheStart(WrapperStore[Any]):
    """A store whose last bytes are asked for by where they begin."""

    @property
    def wrapped(self) -> Store:
        """The store itself."""
        store: Store = self._store
        return store

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


def readable(array: ZarrArray) -> ZarrArray:
    """The same array, which other processes find, and all of which can be read.

    Relative paths are made absolute. The index of a shard is at its end, and Azure
    knows no ranges that say just that.
    """
    store, path = array.store_path.store, array.store_path.path
    if isinstance(store, LocalStore) and not store.root.is_absolute():
        store = LocalStore(store.root.absolute(), read_only=store.read_only)
    elif isinstance(store, ZipStore) and not store.path.is_absolute():
        store = ZipStore(store.path.absolute(), mode="r", read_only=True)
    protocol = getattr(getattr(store, "fs", None), "protocol", ())
    names = {protocol} if isinstance(protocol, str) else set(protocol)
    if array.shards is not None and names & _AZURE:
        store = _ReadFromTheStart(store)
    if store is array.store_path.store:
        return array
    return zarr.Array(zarr.AsyncArray(array.metadata, StorePath(store, path)))
