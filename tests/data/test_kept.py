"""Rows that stay in memory from pass to pass, as far as they fit: no bit differs."""

from __future__ import annotations

import gc
import pickle
import re
import time
from contextlib import nullcontext
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from conftest import blobs, create_zarr
from distributed import Client, LocalCluster
from stored import Reader

from daskgmm import GaussianMixture, SkippedRowsWarning
from daskgmm.data import kept, partition
from daskgmm.data.sources import open_source
from daskgmm.em.scan import survey
from daskgmm.mixtures import e_step

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N, D, BLOCK = 2000, 3, 100
BLOCK_BYTES = 8 * BLOCK * D


@pytest.fixture
def x():
    return blobs(0, N, D, 3, spread=1.5)


def model(**parameters):
    return GaussianMixture(3, random_state=0, tol=0, max_iter=4, **parameters)


def keeping(most):
    return dask.config.set({"daskgmm.cache-memory": most}, scheduler="threads")


def kept_bytes():
    """What is kept in this process."""
    gc.collect()
    return sum(holder.n_bytes for holder in kept._memory.holders)


@pytest.mark.parametrize(("most", "n_once"), [(0, 0), ("1 GB", 20), (0.5, 20)])
def test_what_is_kept_is_read_once(x, most, n_once):
    reader = Reader(x, BLOCK)
    with keeping(most):
        fitted = model().fit(reader.array())
    assert (reader.counts == 1).sum() == n_once
    assert (reader.counts[reader.counts > 1] == 1 + fitted.n_passes_).all()
    assert kept_bytes() == 0  # let go with the fit


def test_as_much_is_kept_as_fits(x):
    reader, told = Reader(x, BLOCK), []
    with keeping(10 * BLOCK_BYTES):
        model().fit(reader.array(), callback=lambda p: told.append(p.n_bytes))
    assert (reader.counts == 1).sum() == 10
    assert told == [10 * BLOCK_BYTES] * 4


@pytest.mark.parametrize("n_kept", [4, 10, 15])
def test_what_is_kept_is_spread_over_the_data(x, n_kept):
    """So that the rest can be read while it is worked on, in all shards alike."""
    reader = Reader(x, BLOCK)
    with keeping(n_kept * BLOCK_BYTES):
        model().fit(reader.array())
    kept_ones = np.flatnonzero(reader.counts == 1)
    assert len(kept_ones) == n_kept
    distances = np.diff([-1, *kept_ones])
    assert distances.max() - distances.min() <= 1


def test_rows_are_read_while_what_is_kept_is_worked_on(x):
    reader = Reader(x, BLOCK)
    source = open_source(reader.array())

    def read_meanwhile(_, blocks):
        for block in blocks:
            if reader.counts[block.index] == 1:  # it was kept
                deadline = time.monotonic() + 10
                while reader.counts[block.index + 1] < 2:
                    assert time.monotonic() < deadline
        return 0

    with keeping("1 GB"), dask.config.set(num_workers=1):
        shards = source.shards(keep_rows=True)
        every_second = kept.Kept.offered

        def offered(self, number, block):
            return block if block.index % 2 else every_second(self, number, block)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kept.Kept, "offered", offered)
            survey(shards)
            shards.reduce(read_meanwhile, None)
    assert [*reader.counts] == [1, 2] * 10


def test_blocks_that_are_read_together_are_kept_together():
    places = partition._places(frozenset({0, 3, 5}), 1, 7)
    assert places == [1, 1, 2, 2, 3, 3]
    assert [*partition._places(None, 1, 7)] == [*range(1, 7)]


@pytest.mark.parametrize("kind", ["Zarr", "Parquet", "Dask"])
def test_the_bytes_that_a_pass_reads_are_told(x, tmp_path, kind):
    rows, weights = of_kind(kind, x, tmp_path), da.ones(N, chunks=BLOCK)
    for most, of_a_pass in ((0, 8 * N * D), ("1 GB", 0)):
        told = []
        with keeping(most):
            model().fit(rows, callback=lambda p, told=told: told.append(p.n_bytes))
        assert told == [of_a_pass] * 4
    told = []
    with keeping(0):
        model().fit(rows, None, weights, callback=lambda p: told.append(p.n_bytes))
        assert told == [8 * N * (D + 1)] * 4
        model().fit(x, callback=lambda p: told.append(p.n_bytes))
    assert told[4:] == [0] * 4


def of_kind(kind, x, folder):
    if kind == "Zarr":
        create_zarr(folder / "x", x, chunks=(BLOCK, D))
        return folder / "x"
    if kind == "Parquet":
        table = pd.DataFrame(x, columns=list("abc"))
        table.to_parquet(folder / "x.parquet", row_group_size=BLOCK)
        return folder / "x.parquet"
    rows = da.from_array(x, chunks=(BLOCK, D)) + 0.0
    if kind == "unknown lengths":
        return rows[da.ones(N, chunks=BLOCK, dtype=bool)]
    if kind == "shared work":
        return rows - rows.rechunk((3 * BLOCK, D)).rechunk((BLOCK, D)) / 2
    return rows


@pytest.mark.parametrize(
    "kind", ["Zarr", "Parquet", "Dask", "unknown lengths", "shared work"]
)
@pytest.mark.parametrize("given", ["nothing", "weights", "gaps"])
def test_no_bit_depends_on_what_is_kept(x, tmp_path, kind, given):
    parameters, weights = {}, None
    if given == "weights":
        weights = da.from_array(np.random.default_rng(0).random(N), chunks=BLOCK)
    if given == "gaps":
        x[317] = np.nan
        parameters = {"nan": "skip"}
    rows = of_kind(kind, x, tmp_path)
    models = []
    for most in (0, 7 * BLOCK_BYTES, "1 GB"):
        told = pytest.warns(SkippedRowsWarning) if given == "gaps" else nullcontext()
        with keeping(most), told:
            models.append(model(**parameters).fit(rows, sample_weight=weights))
    for other in models[1:]:
        for name in ("weights_", "means_", "covariances_", "lower_bounds_"):
            np.testing.assert_array_equal(
                getattr(other, name), getattr(models[0], name)
            )


@pytest.mark.parametrize("what", ["what was read", "what was put together"])
def test_what_is_kept_makes_way(x, monkeypatch, what):
    """Where others take the memory, during a fit."""
    if what == "what was read":
        rows, usual = Reader(x, BLOCK).array(), da.from_array(x, chunks=(BLOCK, D))
    else:
        x = blobs(1, 20_000, D, 3, spread=1.5)
        rows = usual = small_blocks(x)
    free = [10**9]
    monkeypatch.setattr(kept, "_free_memory", lambda: float(free[0]))
    monkeypatch.setattr(kept, "_MEASURED_FOR", -1.0)
    held = []

    def observe(progress):
        held.append(kept_bytes())
        free[0] = 0 if progress.n_pass == 2 else 10**9

    with keeping(0.5):
        found = model().fit(rows, callback=observe)
    assert held[1] == x.nbytes
    # Without anything free, half of what is kept goes each time that one looks.
    assert held[2] < held[1] / 4
    assert held[3] == x.nbytes
    expected = model().fit(usual)
    np.testing.assert_array_equal(found.means_, expected.means_)


def test_a_single_read_keeps_nothing(x):
    reader = Reader(x, BLOCK)
    held = []

    def read(block):
        held.append(kept_bytes())
        return block

    with keeping("1 GB"):
        model().fit(x).score(reader.array().map_blocks(read))
    assert held
    assert not any(held)


def test_what_is_kept_does_not_travel(x):
    source = open_source(da.from_array(x, chunks=(BLOCK, D)) + 0.0)
    with keeping("1 GB"):
        shards = source.shards(keep_rows=True)
        [shard, *_] = dask.compute(*shards._shards)
        before = len(pickle.dumps(shard))
        survey(shards)
        assert kept_bytes() == N * D * 8
        [shard, *_] = dask.compute(*shards._shards)
        assert len(pickle.dumps(shard)) < before + 100


def test_a_part_of_a_larger_array_counts_as_all_of_it(x):
    """It would keep all of it alive."""

    def read(block):
        return np.repeat(block, 10, axis=0)[: len(block)]

    lazy = da.from_array(x, chunks=(BLOCK, D)).map_blocks(read)
    reads = []
    lazy = lazy.map_blocks(lambda block: reads.append(1) or block[:], dtype=float)
    with keeping(40 * BLOCK_BYTES):
        fitted = model().fit(lazy)
    assert len(reads) >= 16 * fitted.n_passes_


def large_rows(n_blocks):
    """Rows of a megabyte a block, made when they are read."""

    def read(block_id):
        rng = np.random.default_rng(block_id[0])
        return rng.normal(size=(16_384, 8)) + 3.0 * rng.integers(0, 3, (16_384, 1))

    return da.map_blocks(
        lambda block_id=None: read(block_id),
        chunks=((16_384,) * n_blocks, (8,)),
        dtype=float,
        meta=np.empty((0, 0)),
    )


def _peak():
    """The most that this process has had in memory, in bytes."""
    said = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", said)[1])


@pytest.mark.slow
def test_workers_keep_what_their_limit_leaves():
    """Nothing is written to disk, nobody is paused or killed."""
    limit = 640_000_000
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            memory_limit=limit,
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):

        def of_worker(dask_worker):
            held = sum(holder.n_bytes for holder in kept._memory.holders)
            peak = _peak()
            return held, peak, len(getattr(dask_worker.data, "disk", ()))

        seen = []
        model(init_params="random_from_data").fit(
            large_rows(700),
            callback=lambda _: seen.extend(client.run(of_worker).values()),
        )
    assert max(held for held, _, _ in seen) > 50_000_000
    assert max(peak for _, peak, _ in seen) < 0.75 * limit
    assert all(on_disk == 0 for _, _, on_disk in seen)


def test_processes_that_forget_everything_keep_nothing():
    """Dask's own get each shard anew, for one pass."""
    with dask.config.set({"daskgmm.cache-memory": "1 GB", "scheduler": "processes"}):
        assert partition._most_kept() == 0.0
    with dask.config.set({"daskgmm.cache-memory": "1 GB", "scheduler": "threads"}):
        assert partition._most_kept() == 1e9


@pytest.mark.parametrize("wrong", [-0.5, "half", None, np.nan, "-1 GB"])
def test_a_setting_that_is_neither_share_nor_bytes_is_named(x, wrong):
    with keeping(wrong), pytest.raises(ValueError, match="cache-memory .* must be a"):
        model().fit(da.from_array(x, chunks=(BLOCK, D)))


def test_workers_without_a_limit_keep_nothing():
    """They do not know of each other."""
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            memory_limit=0,
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster),
    ):
        told = []
        model().fit(large_rows(4), callback=lambda p: told.append(p.n_bytes))
    assert told == [4 * 16_384 * 8 * 8] * 4


def small_blocks(x, size=10):
    """Rows in memory, in blocks that are less than a call of the kernel is worth."""
    return da.from_array(x, chunks=(size, D)).persist(scheduler="threads")


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("most", [0, "1 GB", 3000])
def test_small_blocks_in_memory_are_put_together_once(monkeypatch, weighted, most):
    x, weights = blobs(1, 20_000, D, 3, spread=1.5), None
    n_rows, held, together = len(x), [], []
    if weighted:
        weights = da.from_array(np.random.default_rng(0).random(n_rows), chunks=10)
        weights = weights.persist(scheduler="threads")
    joined = e_step._together

    def noted(of):
        together.append(len(of))
        return joined(of)

    monkeypatch.setattr(e_step, "_together", noted)
    seen = []

    def observe(_):
        held.append(kept_bytes())
        seen.append(sum(together))
        together.clear()

    with keeping(most):
        found = model().fit(small_blocks(x), sample_weight=weights, callback=observe)
    if most == "1 GB":
        assert held == [8 * n_rows * (D + weighted)] * 4
        assert seen[1:] == [0, 0, 0]
    elif most == 0:
        assert held == [0] * 4
        assert seen == [2000] * 4
    else:  # as much as there is room for
        assert all(0 < n <= 3000 for n in held)
        assert all(0 < n < 2000 for n in seen[1:])
    assert kept_bytes() == 0
    with keeping(0):
        expected = model().fit(small_blocks(x), sample_weight=weights)
    for name in ("weights_", "means_", "covariances_", "lower_bounds_"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
