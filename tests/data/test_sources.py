"""Rows of every kind as blocks: all of them, in order, read once."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from functools import partial

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from conftest import create_zarr
from dask.delayed import delayed
from dask.sizeof import sizeof
from distributed import Client, LocalCluster, wait
from hypothesis import given, settings
from hypothesis import strategies as st

from daskgmm.data import partition
from daskgmm.data.block import as_block, block_rows
from daskgmm.data.dask_array import as_dask
from daskgmm.data.dask_graph import Graph, Recipes, cut
from daskgmm.data.lazy_shard import ShardPlan, make_shard
from daskgmm.data.sources import open_source
from daskgmm.em.scan import survey
from daskgmm.errors import DataError, StoreError


class Rows:
    """Blocks put one after the other: a monoid."""

    def __init__(self, blocks):
        self.blocks = blocks

    def __add__(self, other):
        return Rows(self.blocks + other.blocks)


def _collect(_message, blocks):
    return Rows([(b.index, b.x.copy(), b.weights) for b in blocks])


def read(source):
    """All blocks of a source."""
    return source.shards().reduce(_collect, None).blocks


def assert_reads(lazy, expected=None, weights=None, lengths=None):
    """Blocks are those of the collection, in order."""
    expected = lazy.compute() if expected is None else expected
    blocks = read(open_source(lazy, weights))
    assert [index for index, _, _ in blocks] == list(range(len(blocks)))
    np.testing.assert_array_equal(np.concatenate([x for _, x, _ in blocks]), expected)
    if lengths is not None:
        assert tuple(len(x) for _, x, _ in blocks) == lengths
    return blocks


@pytest.fixture(autouse=True)
def _on_two_threads():
    with dask.config.set(scheduler="threads", num_workers=2):
        yield


def _data(n, d=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


chunk_sizes = st.lists(st.integers(0, 9), min_size=1, max_size=12)


@settings(max_examples=40)
@given(
    rows=chunk_sizes,
    columns=st.sampled_from([(3,), (1, 2), (1, 1, 1)]),
    weights=chunk_sizes,
    unknown=st.booleans(),
)
def test_any_chunking(rows, columns, weights, unknown):
    n = sum(rows)
    x = _data(n)
    lazy = da.from_array(x, chunks=(tuple(rows), columns))
    w = np.arange(float(n))
    missing = n - sum(weights)
    if missing < 0 or unknown:
        weights, missing = rows, 0
    lazy_weights = da.from_array(w, chunks=((*weights, missing),))
    if unknown:
        lazy_weights = da.from_array(w, chunks=(tuple(rows),))
        # Not by a mask: Dask itself computes the wrong rows where a chunk is empty.
        lengths = (np.nan,) * len(rows)
        lazy = lazy.map_blocks(np.asarray, chunks=(lengths, columns))
        lazy_weights = lazy_weights.map_blocks(np.asarray, chunks=(lengths,))
        assert np.isnan(lazy.shape[0])
    blocks = assert_reads(lazy, x, lazy_weights, tuple(rows))
    np.testing.assert_array_equal(np.concatenate([b[2] for b in blocks]), w)


def _recipes():
    x = da.from_array(_data(120), chunks=(10, 3))
    big = da.from_array(_data(120), chunks=(120, 3))
    return {
        "scaled by its mean": (x - x.mean(axis=0)) / x.std(axis=0),
        "overlapping": da.overlap.overlap(x, depth={0: 2}, boundary="reflect"),
        "smoothed": x.map_overlap(lambda b: b * 2, depth={0: 1}, boundary="none"),
        "misaligned": x.rechunk((7, 3)),
        "one chunk cut in many": big.rechunk((5, 3)),
        "columns": da.from_array(_data(120), chunks=(10, 1)).rechunk((25, 2)),
        "concatenated": da.concatenate([x, big[:50], x[::2]]),
        "stacked columns": da.stack([x[:, 0], x[:, 1] ** 2], axis=1),
        "masked": x[x[:, 0] > 0],
        "cumulative": x.cumsum(axis=0),
        "reversed": x[::-1],
        "random": da.random.RandomState(0).normal(size=(50, 2), chunks=(8, 2)),
        "of delayed": da.concatenate(
            [
                da.from_delayed(delayed(_data)(n, 3, n), (np.nan, 3), dtype=float)
                for n in (3, 0, 5)
            ],
            allow_unknown_chunksizes=True,
        ),
        "literals": da.from_array(_data(20), chunks=(5, 3), name=False),
        "integers": da.from_array(np.arange(24).reshape(8, 3), chunks=(3, 3)),
        "mapped": da.map_blocks(
            lambda block_id=None: np.full((4, 2), block_id[0], dtype=float),
            chunks=((4,) * 6, (2,)),
            dtype=float,
            meta=np.empty((0, 0)),
        ),
    }


@pytest.mark.parametrize("name", _recipes())
def test_recipes(name):
    assert_reads(_recipes()[name])


@pytest.mark.parametrize("name", ["scaled by its mean", "misaligned", "masked"])
def test_persisted_on_threads(name):
    lazy = _recipes()[name]
    expected = lazy.compute()
    assert_reads(lazy.persist(), expected)
    assert_reads(lazy.persist().map_blocks(lambda b: b + 1), expected + 1)


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.mark.parametrize(
    "name",
    ["scaled by its mean", "overlapping", "one chunk cut in many", "cumulative"],
)
def test_on_a_cluster(client, name):
    lazy = _recipes()[name]
    expected = lazy.compute()
    with client.as_current(), dask.config.set(scheduler=client):
        assert_reads(lazy, expected)
        persisted = lazy.persist()
        wait(persisted)
        assert_reads(persisted, expected)
        assert_reads(persisted.map_blocks(np.negative), -expected)
        assert_reads((persisted - persisted.mean(axis=0)).rechunk((9, 3)))


def test_shards_are_built_again_when_a_worker_is_lost():
    x = _data(300)
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        lazy = abs(da.from_array(x, chunks=(20, 3)))
        shards = open_source(lazy).shards()
        before = shards.reduce(_collect, None).blocks
        victim = next(iter(cluster.workers.values()))
        victim_pid = client.run(lambda: __import__("os").getpid())
        client.run(
            lambda pid: (
                __import__("os").kill(pid, 9)
                if __import__("os").getpid() == pid
                else None
            ),
            victim_pid[victim.worker_address],
            on_error="ignore",
        )
        after = shards.reduce(_collect, None).blocks
    for (i, a, _), (j, b, _) in zip(before, after, strict=True):
        assert i == j
        np.testing.assert_array_equal(a, b)


class CountedReads:
    """A source of chunks that counts how often each is read."""

    def __init__(self, n_chunks, rows=4):
        self.counts = Counter()
        self.lock = threading.Lock()
        self.n_chunks, self.rows = n_chunks, rows

    def array(self):
        def make(block_id=None):
            with self.lock:
                self.counts[block_id[0]] += 1
            return _data(self.rows, 2, block_id[0])

        return da.map_blocks(
            make,
            chunks=((self.rows,) * self.n_chunks, (2,)),
            dtype=float,
            meta=np.empty((0, 0)),
        )


@pytest.mark.parametrize("n_chunks", [1, 2, 3, 4, 9, 40])
@pytest.mark.usefixtures("nothing_kept")
def test_each_chunk_is_read_once_a_pass_and_shared_work_done_once(n_chunks):
    reads = CountedReads(n_chunks)
    x = reads.array()
    means = Counter()

    def keep(mean):
        means["computed"] += 1
        return mean

    shared = x.mean(axis=0).map_blocks(keep, dtype=float, meta=np.empty(0))
    shards = open_source(x - shared).shards()
    assert set(reads.counts.values()) <= {1}
    before = dict(reads.counts)
    for n_passes in (1, 2, 3):
        shards.reduce(_collect, None)
        spent = {i: reads.counts[i] - before.get(i, 0) for i in range(n_chunks)}
        assert set(spent.values()) == {n_passes}
    # Of a single block, nothing is shared.
    assert means["computed"] == (3 if n_chunks == 1 else 1)


def test_work_shared_by_a_group_of_blocks_is_done_once():
    """Three groups of chunks, each less its own mean."""
    reads = CountedReads(60)
    x = reads.array()
    groups = [x[i : i + 80] for i in (0, 80, 160)]
    lazy = da.concatenate([g - g.mean(axis=0) for g in groups])
    shards = open_source(lazy).shards()
    assert set(reads.counts.values()) == {1}
    shards.reduce(_collect, None)
    assert set(reads.counts.values()) == {2}


def test_weights_made_from_the_rows_cost_no_second_read():
    reads = CountedReads(10)
    x = reads.array()
    shards = open_source(x, abs(x[:, 0])).shards()
    shards.reduce(_collect, None)
    assert set(reads.counts.values()) == {1}


def test_chunks_shared_by_neighbours_are_read_once_in_a_shard():
    reads = CountedReads(40, rows=10)
    lazy = reads.array().rechunk((7, 2))
    shards = open_source(lazy).shards()
    assert not reads.counts
    shards.reduce(_collect, None)
    # Once, but for the chunks that two shards share at their border.
    assert sum(reads.counts.values()) <= 40 + 8


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize(("rows", "most_a_thread"), [(62_500, 2), (25_000, 2 * 3)])
@pytest.mark.usefixtures("nothing_kept")
def test_no_more_than_two_blocks_a_thread_are_in_memory(n_threads, rows, most_a_thread):
    """Or two lots of 1 MB, of smaller blocks."""
    lock, alive, most = threading.Lock(), [0], [0]

    def forget():
        with lock:
            alive[0] -= 1

    def make(block_id=None):
        block = np.ones((rows, 2))
        with lock:
            alive[0] += 1
            most[0] = max(most[0], alive[0])
        weakref.finalize(block, forget)
        return block

    lazy = da.map_blocks(
        make, chunks=((rows,) * 60, (2,)), dtype=float, meta=np.empty((0, 0))
    )

    def work(_message, blocks):
        return sum(float(block.x.sum()) for block in blocks)

    with dask.config.set(scheduler="threads", num_workers=n_threads):
        shards = open_source(lazy).shards()
        for _ in range(3):
            assert shards.reduce(work, None) == 120 * rows
    assert most[0] <= most_a_thread * n_threads
    assert alive[0] == 0


def test_reading_runs_ahead_of_the_work():
    """While a block is worked on, the next is being read."""
    reading = threading.Event()
    overlapped = []

    def make(block_id=None):
        if block_id[0] == 1:
            reading.set()
        return np.ones((rows, 2))

    rows = 62_500  # 1 MB: smaller ones are handed over together
    lazy = da.map_blocks(
        make, chunks=((rows,) * 2, (2,)), dtype=float, meta=np.empty((0, 0))
    )

    def work(_message, blocks):
        for block in blocks:
            if block.index == 0:
                overlapped.append(reading.wait(timeout=20))
        return 0

    with dask.config.set(scheduler="synchronous"):
        shards = open_source(lazy).shards()
        # Both blocks in one shard, for the sake of the test.
        recipes = Recipes(
            Graph(dict(lazy.dask)), [(k[0],) for k in lazy.__dask_keys__()], set()
        )
        plan = shard_plan(2)(recipes, 0, [0, 1, 2], range(2))
        for _, blocks in make_shard(plan).leaves():
            work(None, blocks)
        del shards
    assert overlapped == [True]


def test_a_consumer_that_stops_early_ends_the_reader():
    stop = RuntimeError("enough")
    reads = CountedReads(30)

    def fail(_message, blocks):
        next(blocks)
        raise stop

    shards = open_source(reads.array()).shards()
    with pytest.raises(RuntimeError, match="enough"):
        shards.reduce(fail, None)
    assert len(read(open_source(reads.array()))) == 30


def shard_plan(n_features):
    """Of plain blocks: what is left to say is which."""
    return partial(ShardPlan, "of a test", n_features, None, False, "error", 0)


def test_building_takes_linear_time():
    """Counted in steps: dependencies asked for, per block."""

    def steps(n_chunks):
        x = da.ones((n_chunks, 2), chunks=(1, 2))
        lazy = (x - x.mean(axis=0)).rechunk((1, 2))
        graph = Graph(dict(lazy.dask))
        asked = Counter()
        original = graph.dependencies

        def dependencies(key):
            asked["n"] += 1
            return original(key)

        graph.dependencies = dependencies
        keys = [(row[0],) for row in lazy.__dask_keys__()]
        cuts = cut(graph, keys)
        partition._build(graph, keys, shard_plan(2), 2)
        assert 1 <= len(cuts) <= 3
        return asked["n"]

    few, many = steps(250), steps(1000)
    assert many <= 4.5 * few


def test_arrays_in_memory_are_cut_by_their_shape_alone():
    x = _data(5000, 2)
    blocks = read(open_source(x, np.ones(5000)))
    np.testing.assert_array_equal(np.concatenate([b[1] for b in blocks]), x)
    assert block_rows(5000, 2) == 65536
    assert block_rows(10**9, 2) == -(-(10**9) // 1024)
    assert block_rows(1000, 5000) == 1024


@pytest.mark.parametrize("shards", [None, (40, 4)])
def test_predictions_are_cut_as_a_store_is(tmp_path, shards):
    create_zarr(tmp_path / "x", _data(1000, 4), chunks=(10, 2), shards=shards)
    rows, n = (40, 25) if shards else (10, 100)
    assert as_dask(tmp_path / "x").chunks == ((rows,) * n, (4,))


def test_small_zarr_chunks_are_read_together(tmp_path):
    """Up to 16 MB, as long as 16 reads are left: by path, array or Dask array."""
    x = _data(1290, 4)
    array = create_zarr(tmp_path / "x", x, chunks=(10, 4))
    lazies = [da.from_zarr(array), da.from_array(array, chunks=(10, 4))]
    lazies.append(da.from_array(array, chunks=(10, 4), inline_array=True))
    for rows in (tmp_path / "x", array, *lazies):
        blocks = assert_reads_path(rows, x)
        assert [len(b[1]) for b in blocks] == [80] * 16 + [10]
    wide = _data(1280, 4000)
    create_zarr(tmp_path / "wide", wide, chunks=(4, 4000))
    blocks = assert_reads_path(tmp_path / "wide", wide)
    assert [len(b[1]) for b in blocks] == [80] * 16


def test_dask_arrays_that_are_not_zarr_as_it_is_are_left_alone(tmp_path):
    x = _data(1280, 4)
    lazy = da.from_zarr(create_zarr(tmp_path / "x", x, chunks=(10, 4)))
    uneven = da.from_zarr(str(tmp_path / "x"), chunks=((30, 20) * 25 + (30,), 4))
    for rows, expected in (
        (lazy + 1, x + 1),
        (lazy[5:], x[5:]),
        (lazy[::-1], x[::-1]),
        (lazy[:, :2], x[:, :2]),
        (uneven, x),
    ):
        blocks = assert_reads_path(rows, expected)
        assert [len(b[1]) for b in blocks] == list(rows.chunks[0])


def test_large_shards_are_read_in_parts(tmp_path):
    x = _data(6000, 500)  # shards of 24 MB, chunks of 2 MB
    array = create_zarr(tmp_path / "x", x, chunks=(500, 500), shards=(6000, 500))
    assert as_dask(array).numblocks == (1, 1)
    assert [len(b[1]) for b in assert_reads_path(array, x)] == [500] * 12


@pytest.mark.parametrize(
    "layout",
    [{"chunks": (10, 4)}, {"chunks": (2500, 4), "shards": (625_000, 4)}],
    ids=["read together", "read in parts"],
)
def test_bad_rows_are_named_by_the_chunks_that_the_user_knows(tmp_path, layout):
    n_rows, row = (1280, 1003) if layout["chunks"][0] == 10 else (625_000, 600_001)
    x = np.ones((n_rows, 4))
    x[row, 2] = np.nan
    array = create_zarr(tmp_path / "x", x, **layout)
    where = "block 100, row 3" if n_rows == 1280 else "block 0, row 600001"
    with pytest.raises(DataError, match=f"NaN in {where}, column 2"):
        survey(open_source(array).shards())
    weights = np.ones(n_rows)
    weights[row] = -1.0
    array[row] = 1.0
    with pytest.raises(DataError, match=f"negative .* in {where} "):
        survey(open_source(array, weights).shards())


def assert_reads_path(path, expected):
    blocks = read(open_source(path))
    np.testing.assert_array_equal(np.concatenate([b[1] for b in blocks]), expected)
    return blocks


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        ("f4", "f4"),
        ("f8", "f8"),
        ("f2", "f8"),
        ("i4", "f8"),
        ("?", "f8"),
        (">f4", "f4"),
    ],
)
def test_dtypes(dtype, kept):
    x = np.arange(12).reshape(6, 2).astype(dtype)
    source = open_source(da.from_array(x, chunks=(4, 2)))
    assert source.dtype == kept
    blocks = read(source)
    assert all(b[1].dtype == np.dtype(kept) for b in blocks)
    assert all(b[1].dtype.isnative for b in blocks)
    np.testing.assert_array_equal(np.concatenate([b[1] for b in blocks]), x)


def _broken(function, weights=False):
    """Blocks of which number 2 is not what the array says it is."""

    def spoil(block, block_id=None):
        return function(block) if block_id[0] == 2 else block

    x = da.ones((40, 2), chunks=(10, 2))
    if weights:
        return open_source(x, da.ones(40, chunks=10).map_blocks(spoil, dtype=float))
    return open_source(x.map_blocks(spoil, dtype=float))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda b: b[:, :1], "shape"),
        (lambda b: b[0], "shape"),
        (lambda b: b.astype(complex), "complex"),
        (lambda b: b.tolist(), "list"),
        (lambda b: np.ma.masked_less(b, 2), "masked"),
        (lambda b: b.astype(object), "object"),
    ],
)
def test_a_block_that_is_not_as_declared_is_named(function, message):
    with pytest.raises(DataError, match=rf"Block 2 of X.*{message}"):
        read(_broken(function))


def test_weights_that_do_not_fit_their_block_are_named():
    with pytest.raises(DataError, match="Block 2 of sample_weight"):
        read(_broken(lambda b: b[1:], weights=True))


def test_an_array_without_a_mask_is_taken():
    block = as_block(0, np.ma.array(np.ones((3, 2))), 2)
    assert type(block.x) is np.ndarray


def test_wrong_weights_are_refused_before_anything_is_read():
    x = da.ones((40, 2), chunks=(10, 2))
    with pytest.raises(DataError, match="5 entries but X has 40 rows"):
        open_source(x, np.ones(5))
    with pytest.raises(DataError, match="41 entries but X has 40 rows"):
        open_source(x, da.ones(41))
    for two in (np.ones((40, 1)), da.ones((40, 1))):
        with pytest.raises(DataError, match="1-D"):
            open_source(x, two)
    with pytest.raises(DataError, match="complex"):
        open_source(x, da.ones(40, dtype=complex))
    unknown = x[x[:, 0] > 0]
    with pytest.raises(DataError, match="compute_chunk_sizes"):
        open_source(unknown, np.ones(40))
    with pytest.raises(DataError, match="1 block.*X has 4"):
        open_source(unknown, da.ones(40, chunks=40))


def test_shapes_that_are_no_rows(tmp_path):
    with pytest.raises(DataError, match="3 dimension"):
        open_source(da.ones((2, 2, 2)))
    with pytest.raises(DataError, match="0 feature"):
        open_source(da.ones((5, 0)))
    with pytest.raises(DataError, match="columns is unknown"):
        open_source(da.ones((5, 4))[:, da.ones(4, dtype=bool)])
    zarr.create_array(str(tmp_path / "cube"), data=np.ones((2, 2, 2)))
    with pytest.raises(DataError, match="3 dimension"):
        open_source(tmp_path / "cube")
    zarr.create_array(str(tmp_path / "number"), data=np.float64(1.0))
    with pytest.raises(DataError, match="single number"):
        open_source(tmp_path / "number")


def _add(block, term):
    return block + term


def test_a_future_passed_as_an_argument(client):
    with client.as_current(), dask.config.set(scheduler=client):
        five = client.submit(int, 5)
        lazy = da.ones((40, 2), chunks=(10, 2)).map_blocks(_add, five, dtype=float)
        assert_reads(lazy, np.full((40, 2), 6.0))


def test_data_on_a_cluster_need_its_client(client):
    with client.as_current(), dask.config.set(scheduler=client):
        persisted = da.ones((40, 2), chunks=(10, 2)).persist()
        wait(persisted)
    with pytest.raises(DataError, match="Client"):
        open_source(persisted).shards()


@pytest.mark.parametrize(
    ("place", "error"),
    [("no-such-protocol://x/y", ValueError), ("memory://nothing", StoreError)],
)
def test_urls_that_cannot_be_opened(place, error):
    with pytest.raises(error, match=place):
        open_source(place)


def test_a_resident_shard_tells_its_size():
    persisted = da.ones((4000, 4), chunks=(100, 4)).persist()
    graph = Graph(dict(persisted.dask))
    recipes = Recipes(graph, [(k,) for k in graph.nodes], set(graph.nodes))
    plan = shard_plan(4)(recipes, 0, [0, 40], range(40))
    arrays = [graph.nodes[key]({}) for key in recipes.inputs]
    assert sizeof(make_shard(plan, *arrays)) >= persisted.nbytes


def test_chunks_put_together_and_cut_up_again_are_not_kept():
    x = da.ones((40_000, 1), chunks=(100, 1)).map_blocks(np.negative)
    lazy = x.rechunk((4000, 1)).rechunk((200, 1))
    keys = [(row[0],) for row in lazy.__dask_keys__()]
    assert not cut(Graph(dict(lazy.dask)), keys)


def test_blocks_that_a_kernel_leaves_are_skipped():
    def first(_message, blocks):
        return [next(blocks).index]

    lazy = da.ones((2100, 1), chunks=(1, 1))
    assert open_source(lazy).shards().reduce(first, None) == list(range(0, 2100, 3))


def test_few_large_chunks_are_not_read_by_many_shards():
    reads = CountedReads(4, rows=30)
    shards = open_source(reads.array().rechunk((10, 2))).shards()
    shards.reduce(_collect, None)
    assert sum(reads.counts.values()) == 4
