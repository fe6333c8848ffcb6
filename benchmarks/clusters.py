"""Many small chunks on two worker processes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import dask
import dask.array as da
import numpy as np
import zarr
from distributed import Client, LocalCluster, wait

from benchmarks.common import (
    Case,
    Row,
    best_of,
    fit_of,
    make_rows,
    median_pass,
    per_iteration,
    start,
    write_zarr,
)
from daskgmm import GaussianMixture

CASE = Case("full", 4, 3, 10_000_000)
CHUNK_ROWS = 1000


@contextmanager
def cluster(n_workers: int) -> Iterator[Client]:
    """Worker processes of one thread each."""
    with (
        LocalCluster(
            n_workers=n_workers, threads_per_worker=1, dashboard_address=":0"
        ) as workers,
        Client(workers) as client,
    ):
        yield client


def _read(task: tuple[str, int, int]) -> float:
    """The bare loop: read one chunk after the other."""
    folder, first, last = task
    array = zarr.open_array(folder, mode="r")
    return sum(
        float(array[row : row + CHUNK_ROWS][0, 0])
        for row in range(first, last, CHUNK_ROWS)
    )


def _bare_loop(folder: str, n_rows: int) -> float:
    half = n_rows // 2 // CHUNK_ROWS * CHUNK_ROWS
    tasks = [(folder, 0, half), (folder, half, n_rows)]
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(_read, [(folder, 0, CHUNK_ROWS)] * 2))
        return best_of(3, lambda: list(pool.map(_read, tasks)))


def streamed(_machine: dict[str, float]) -> Iterator[Row]:
    """10,000 chunks of 1,000 × 4, read in each pass."""
    x = make_rows(CASE)
    parameters = start(CASE, x)
    with tempfile.TemporaryDirectory() as folder:
        write_zarr(folder, x, CHUNK_ROWS)
        loop = _bare_loop(folder, len(x))
        with cluster(2):
            for name, rows in (
                ("by its path", folder),
                ("as a Dask array", da.from_zarr(folder)),
            ):
                fit = fit_of(GaussianMixture, rows, parameters)
                seconds = per_iteration(fit, 1, 4, 2)
                yield Row(
                    "2 workers",
                    f"10,000 chunks of 1,000 x 4, streamed {name}",
                    seconds,
                    {"bare loop": loop},
                    seconds / loop,
                    "<= 1.3",
                )


def _persisted(x: np.ndarray, chunk_rows: int) -> da.Array:
    """Rows in the workers' memory, in chunks of so many."""
    with tempfile.TemporaryDirectory() as folder:
        write_zarr(folder, x, 100_000)
        rows = da.from_zarr(folder).rechunk((chunk_rows, -1)).persist()
        wait(rows)
        return rows


def resident(_machine: dict[str, float]) -> Iterator[Row]:
    """The same rows in the workers' memory, in few chunks and in many."""
    x = make_rows(CASE)
    parameters = start(CASE, x)
    with cluster(2):
        times: dict[int, float] = {}
        for n_chunks in (100, 1000, 10_000):
            rows = _persisted(x, len(x) // n_chunks)
            with dask.config.set(
                {"daskgmm.cache-memory": 0.5}
            ):  # as if nothing is said
                times[n_chunks] = median_pass(rows, parameters)
            yield Row(
                "2 workers",
                f"10,000,000 x 4 persisted in {n_chunks} chunks",
                times[n_chunks],
                {"100 chunks": times[100]},
                times[n_chunks] / times[100],
                "<= 1.5",
                size=n_chunks,
            )
            del rows


def workers(_machine: dict[str, float]) -> Iterator[Row]:
    """One worker and two."""
    times: dict[int, float] = {}
    case = Case("full", 16, 10, 1_000_000)
    x = make_rows(case)
    for n_workers in (1, 2):
        with cluster(n_workers):
            rows = _persisted(x, 20_000)
            times[n_workers] = median_pass(rows, start(case, x))
            del rows
        yield Row(
            "workers",
            f"{case.name}, {len(x)} rows, {n_workers} worker(s)",
            times[n_workers],
            {"1 worker": times[1]},
            times[1] / times[n_workers],
            size=n_workers,
        )
