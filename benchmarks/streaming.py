"""Passes over Zarr and Parquet: reading and computing alone, and both at once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from zarr.storage import LocalStore
from zarr.testing.store import LatencyStore

from benchmarks.common import (
    N_CORES,
    Case,
    Row,
    best_of,
    fit_of,
    make_rows,
    median_of,
    median_pass,
    ours_per_iteration,
    per_iteration,
    start,
    write_zarr,
)
from daskgmm import GaussianMixture, open_rows

CASES = (
    (Case("full", 2, 3, 32_000_000), 65_536),
    (Case("full", 8, 8, 8_000_000), 65_536),
    (Case("full", 16, 10, 4_000_000), 16_384),
)
READ_BYTES = 16_000_000

ROUNDS = 7
PASSES = 8


def _read_alone(array: zarr.Array, rows_at_once: int) -> None:
    """Read all rows on all cores, block after block."""
    starts = list(range(0, array.shape[0], rows_at_once))
    parts = np.array_split(starts, N_CORES)

    def read(part: np.ndarray) -> None:
        for first in part:
            array[int(first) : int(first) + rows_at_once]

    with ThreadPoolExecutor(N_CORES) as pool:
        list(pool.map(read, parts))


def local_stores(_machine: dict[str, float]) -> Iterator[Row]:
    """Uncompressed and zstd, on this machine's disk (or its cache)."""
    for case, chunk_rows in CASES:
        x = make_rows(case)
        chunk_bytes = chunk_rows * 8 * case.n_features
        at_once = max(1, READ_BYTES // chunk_bytes) * chunk_rows
        for name, codec in (("uncompressed", None), ("zstd", "auto")):
            with tempfile.TemporaryDirectory() as folder:
                array = write_zarr(folder, x, chunk_rows, compressors=codec)
                what = f"{case.name}, {len(x)} rows, {name}"
                readers = [partial(_read_alone, array, at_once)]
                yield _beside("Zarr", what, case, x, folder, readers)


def kept(_machine: dict[str, float]) -> Iterator[Row]:
    """Later passes over a zstd store that stays in memory, in whole and by half."""
    for case, chunk_rows in CASES[1:]:
        x = make_rows(case)
        with tempfile.TemporaryDirectory() as folder:
            yield from _kept_of(folder, "", case, x, chunk_rows)
    case = Case("full", 16, 10, 1_000_000)
    x = make_rows(case)
    with tempfile.TemporaryDirectory() as folder, _s3(folder):
        place = "s3://bucket/x.zarr"
        yield from _kept_of(place, ", S3 on loopback", case, x, 16_384)


def _kept_of(
    place: str, kind: str, case: Case, x: np.ndarray, chunk_rows: int
) -> Iterator[Row]:
    at_once = READ_BYTES // (chunk_rows * 8 * case.n_features) * chunk_rows
    array = write_zarr(place, x, chunk_rows, compressors="auto")
    readers = [partial(_read_alone, array, at_once)]
    for name, most, left in (
        ("in whole", 2 * x.nbytes, 0.0),
        ("by half", x.nbytes // 2, 0.5),
    ):
        what = f"{case.name}, {len(x)} rows{kind}, {name}"
        with dask.config.set({"daskgmm.cache-memory": most}):
            yield _beside("kept", what, case, x, place, readers, left, "<= 1.1")


def _arrow_s3() -> Any:
    """Arrow's own files on the same server."""
    from pyarrow.fs import S3FileSystem

    return S3FileSystem(
        access_key=os.environ["AWS_ACCESS_KEY_ID"],
        secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        endpoint_override=os.environ["AWS_ENDPOINT_URL"],
        region=os.environ["AWS_DEFAULT_REGION"],
    )


@contextmanager
def _s3(folder: str) -> Iterator[None]:
    """An S3 server in a process of its own, to which plain s3:// URLs lead."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rclone = Path(sys.executable).parent / "rclone"
    server = subprocess.Popen(
        [rclone, "serve", "s3", "--addr", f"127.0.0.1:{port}", folder],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }
    Path(folder, "bucket").mkdir()
    try:
        while True:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.wait()


def _beside(
    section: str,
    what: str,
    case: Case,
    x: np.ndarray,
    place: object,
    readers: Sequence[Callable[[], object]],
    left: float = 1.0,
    target: str = "<= 1.15",
    weights: tuple[object, object] = (None, None),
) -> Row:
    """Passes over a store beside reading alone, the faster way, and computing alone.

    Of reading, only the part counts that is left where rows stay in memory. Weights are
    those of the store, and the same in memory.
    In turns, as the machine's speed changes, and all by the same measure: medians of
    some passes, of several rounds, and of their ratios.
    """
    parameters = start(case, x)
    rounds = []
    for _ in range(ROUNDS):
        reading = left * min(median_of(PASSES, reader) for reader in readers)
        computing = median_pass(x, parameters, PASSES, weights[1])
        both = median_pass(place, parameters, PASSES, weights[0])
        rounds.append((both, reading, computing))
    seconds, reading, computing = np.median(rounds, axis=0)
    return Row(
        section,
        what,
        float(seconds),
        {"reading": float(reading), "computing": float(computing)},
        float(np.median([s / (r + c) for s, r, c in rounds])),
        target,
    )


def parquet_files(_machine: dict[str, float]) -> Iterator[Row]:
    """A Parquet file as pyarrow writes it, and one in small row groups."""
    for case, _ in CASES:
        x = make_rows(case)
        names = [f"x{j}" for j in range(case.n_features)]
        for name, group_rows in (("default row groups", None), ("small", 65_536)):
            with tempfile.TemporaryDirectory() as folder:
                path = f"{folder}/x.parquet"
                columns = dict(zip(names, x.T, strict=True))
                pq.write_table(pa.table(columns), path, row_group_size=group_rows)
                del columns
                what = f"{case.name}, {len(x)} rows, {name}"
                readers = _parquet_readers(path, names)
                yield _beside("Parquet", what, case, x, path, readers)

    case, _ = CASES[1]
    x = make_rows(case)
    names = [f"x{j}" for j in range(case.n_features)]
    weights = np.random.default_rng(0).random(len(x)) + 0.5
    with tempfile.TemporaryDirectory() as folder, _s3(folder):
        path = f"{folder}/bucket/x.parquet"
        columns = dict(zip([*names, "w"], [*x.T, weights], strict=True))
        pq.write_table(pa.table(columns), path)
        rows, of_rows = (open_rows(path, columns=some) for some in (names, ["w"]))
        yield _beside(
            "Parquet",
            f"{case.name}, {len(x)} rows, with weights",
            case,
            x,
            rows,
            _parquet_readers(path, [*names, "w"]),
            weights=(of_rows, weights),
        )
        x = x[: len(x) // 4]
        pq.write_table(pa.table(dict(zip(names, x.T, strict=True))), path)
        readers = _parquet_readers(path, names, _arrow_s3())
        what = f"{case.name}, {len(x)} rows, S3 on loopback"
        yield _beside("Parquet", what, case, x, "s3://bucket/x.parquet", readers)


def _parquet_readers(
    path: str, names: list[str], files: Any = None
) -> list[Callable[[], object]]:
    """Ways to read all columns with pyarrow on all cores.

    By its own threads, or a row group for each of ours.
    """
    groups = range(pq.read_metadata(path).num_row_groups)
    if files is not None:
        path = "/".join(Path(path).parts[-2:])

    def read(i: int) -> None:
        file = pq.ParquetFile(path, filesystem=files, pre_buffer=True)
        file.read_row_group(i, columns=names, use_threads=False)

    def by_groups() -> None:
        with ThreadPoolExecutor(N_CORES) as pool:
            list(pool.map(read, groups))

    def at_once() -> None:
        pq.read_table(path, columns=names, use_threads=True, filesystem=files)

    return [by_groups, at_once]


def slow_store(_machine: dict[str, float]) -> Iterator[Row]:
    """A store that takes 50 ms for each block."""
    for case, chunk_rows in (
        (Case("full", 16, 10, 32 * 65_536), 65_536),
        (Case("full", 16, 10, 32 * 131_072), 131_072),
    ):
        x = make_rows(case)
        parameters = start(case, x)
        with tempfile.TemporaryDirectory() as folder:
            write_zarr(folder, x, chunk_rows, compressors=None)
            store = LatencyStore(LocalStore(Path(folder)), get_latency=0.05)
            array = zarr.open_array(store, mode="r")
            reading = best_of(3, partial(_read_alone, array, chunk_rows))
            computing = ours_per_iteration(x, parameters)
            fit = fit_of(GaussianMixture, array, parameters)
            seconds = per_iteration(fit, 1, 3, 2)
        yield Row(
            "slow store",
            f"{case.name}, 32 blocks of {chunk_rows} rows",
            seconds,
            {"reading": reading, "computing": computing},
            max(reading, computing) / seconds,
            ">= 0.7",
        )
