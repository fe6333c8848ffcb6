"""Answers as a Zarr array."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

import dask.array as da
import numpy as np
import zarr
from dask.delayed import Delayed, delayed
from dask.system import CPU_COUNT
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from daskgmm.errors import PlaceError
from daskgmm.outputs.base import (
    OutputPlace,
    Work,
    Written,
    check_run,
    names_at,
    write_output,
)
from daskgmm.storage.glance import NO_ARRAY, NOT_OUR_ARRAY, OURS, is_metadata
from daskgmm.storage.patient_store import patient_store
from daskgmm.storage.retry import (
    is_failure,
    naming_failures,
    what_is_at,
)
from daskgmm.storage.urls import absolute, files_of, is_local
from daskgmm.storage.zarr_internals import sync
from daskgmm.storage.zarr_store import chunk_path, missing_chunks

_SMALL_BYTES: Final = 1_000_000
"""Zarr chunks that are smaller are put into shards."""
_SHARD_BYTES: Final = 8_000_000
_SHARDS: Final = 16
"""Shards that are left at least, so that there is work for several threads."""


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
    output = ZarrPlace(absolute(url), _zarr_layout(answer))
    blocks = answer.to_delayed().ravel().tolist()
    ends = np.cumsum(answer.chunks[0])
    rows = output.part_rows

    def bounds(part: int) -> tuple[int, int]:
        return part * rows, min((part + 1) * rows, len(answer))

    def write(place: OutputPlace, part: int, run: str) -> Delayed:
        first, last = bounds(part)
        low = int(np.searchsorted(ends, first, side="right"))
        high = int(np.searchsorted(ends, last, side="left")) + 1
        skipped = first - (int(ends[low - 1]) if low else 0)
        wanted = slice(skipped, skipped + last - first)
        task: Delayed = delayed(_write_chunk)(
            place.url, run, first, blocks[low:high], wanted
        )
        return task

    n_found = write_output(output, write, bounds, work)
    return Written(len(answer), output.n_parts, n_found)


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
class ZarrPlace(OutputPlace):
    """A Zarr array; its parts are shards, or chunks."""

    url: str
    layout: Mapping[str, Any] = field(default_factory=dict)

    @property
    def part_rows(self) -> int:
        """Rows of a part."""
        return int((self.layout["shards"] or self.layout["chunks"])[0])

    @property
    def n_parts(self) -> int:
        return -(-int(self.layout["shape"][0]) // self.part_rows)

    def description(self) -> dict[str, Any] | None:
        there = what_is_at(self.url)
        if there is None:
            return None
        found = self._node()
        if isinstance(found, zarr.Array):
            said: Any = found.attrs.asdict().get(OURS)
            if said is None:
                raise PlaceError(NOT_OUR_ARRAY.format(self.url))
            return dict(said)
        if found is None and there == "directory" and self._is_remnant():
            return None
        raise PlaceError(NO_ARRAY.format(self.url))

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
        return all(map(is_metadata, names_at(self.url)))

    def describe(self, description: Mapping[str, Any]) -> None:
        with naming_failures(self.url):
            array = zarr.open_array(patient_store(self.url, writable=True), mode="r+")
            array.update_attributes({OURS: dict(description)})

    def create(self, description: Mapping[str, Any]) -> None:
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
        with naming_failures(self.url):
            array = zarr.open_array(patient_store(self.url, writable=False), mode="r")
            return [index[0] for index in missing_chunks(array)]

    @property
    def document(self) -> str:
        return "zarr.json"

    def remove(self, parts: Iterable[int]) -> None:
        there = set(range(self.n_parts)) - set(self.missing())
        array = zarr.open_array(patient_store(self.url, writable=True), mode="r+")
        for part in there.intersection(parts):
            index = (part, *(0 for _ in array.shape[1:]))
            with naming_failures(self.url):
                sync(array.store_path.store.delete(chunk_path(array, index)))

    def remove_broken(self) -> None:
        files, path = files_of(self.url)
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
        found: Any = zarr.open_array(patient_store(url, writable=True), mode="r+")
        # Answers that are all "none" would be left out, and be taken for lost ones.
        # `open_array` takes this setting and does not heed it.
        config: Any = {"write_empty_chunks": True}
        array = zarr.Array(zarr.AsyncArray(found.metadata, found.store_path, config))
        said: Any = array.attrs.asdict().get(OURS, {})
        check_run(said, url, run)
        array[first : first + wanted.stop - wanted.start] = values[wanted]
