"""Parquet as rows: what is read, in what pieces, and what is refused."""

from __future__ import annotations

import pickle
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import dask
import dask.array as da
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import blobs, random_mixture, sums_over
from distributed import Client, LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from daskgmm import GaussianMixture
from daskgmm.data import block, parquet, parquet_reader
from daskgmm.data.dask_array import as_dask
from daskgmm.data.parquet import open_parquet
from daskgmm.data.partition import _bounds_at
from daskgmm.data.sources import open_source
from daskgmm.data.table_files import find_files
from daskgmm.data.versions import versions_of
from daskgmm.errors import DataError, StoreError
from daskgmm.execution.tree import leaf_bounds, shard_bounds
from daskgmm.kernel.tile import tile_rows
from daskgmm.mixtures.e_step import plan

NAMES = ["b", "a", "c"]


@pytest.fixture
def x():
    return blobs(0, 5000, 3, 3)


def table(x, names=NAMES, **more):
    return pa.table({**dict(zip(names, x.T, strict=True)), **more})


def write(place, x, row_group_size=700, **more):
    pq.write_table(table(x, **more), place, row_group_size=row_group_size)
    return place


def write_folder(folder, x, n_files=4):
    folder.mkdir()
    for i, part in enumerate(np.array_split(x, n_files)):
        write(folder / f"part-{i}.parquet", part)
    (folder / "_SUCCESS").write_text("")
    return folder


def model(**parameters):
    return GaussianMixture(3, random_state=0, **parameters)


def assert_same_fit(got, expected):
    np.testing.assert_allclose(got.means_, expected.means_, rtol=1e-9)
    np.testing.assert_allclose(got.covariances_, expected.covariances_, rtol=1e-8)
    assert got.n_iter_ == expected.n_iter_


def test_a_file_a_folder_a_glob_and_a_url(tmp_path, x):
    write(tmp_path / "x.parquet", x)
    folder = write_folder(tmp_path / "many", x)
    expected = model().fit(x)
    for place in (
        tmp_path / "x.parquet",
        str(folder),
        f"{folder}/part-*.parquet",
        f"file://{folder}",
        open_parquet(folder),
    ):
        fitted = model().fit(place)
        assert_same_fit(fitted, expected)
        labels = fitted.predict(place)
        assert isinstance(labels, da.Array)
        assert labels.shape == (5000,)  # from the footers
        np.testing.assert_array_equal(labels.compute(), expected.predict(x))
        assert fitted.score(place) == pytest.approx(expected.score(x), rel=1e-12)


def test_columns_in_the_order_asked_for(tmp_path, x):
    place = write(tmp_path / "x.parquet", x, name=["text"] * len(x))
    rows = open_parquet(place, columns=["a", "b"])
    np.testing.assert_array_equal(as_dask(rows).compute(), x[:, [1, 0]])
    assert list(rows._meta.columns) == ["a", "b"]
    assert rows.n_rows == 5000


@pytest.mark.parametrize(
    ("filters", "picked"),
    [
        ([("a", ">", 0.0)], lambda x: x[:, 1] > 0),
        ([("a", ">", 0.0), ("k", "<", 3000)], lambda x: (x[:, 1] > 0) & (K < 3000)),
        (
            [[("k", "<", 1000)], [("k", ">=", 4500)]],
            lambda _: (K < 1000) | (K >= 4500),
        ),
        ([("k", "in", [5, 6])], lambda _: (K == 5) | (K == 6)),
    ],
)
def test_filters(tmp_path, x, filters, picked):
    place = write(tmp_path / "x.parquet", x, k=K)
    rows = open_parquet(place, columns=NAMES, filters=filters)
    expected = x[picked(x)]
    np.testing.assert_array_equal(as_dask(rows).compute(), expected)
    assert np.isnan(rows.n_rows)
    if len(expected) > 10:
        assert_same_fit(model().fit(rows), model().fit(expected))


K = np.arange(5000)


def test_row_groups_that_a_filter_excludes_are_not_read(tmp_path, x):
    place = write(tmp_path / "x.parquet", x, k=K)
    rows = open_parquet(place, columns=NAMES, filters=[("k", ">=", 4900)])
    assert {span.group for block in rows.spans for span in block} == {7}


def test_folders_of_hives_form(tmp_path, x):
    for year in (2024, 2025):
        (tmp_path / "t" / f"year={year}").mkdir(parents=True)
        part = x[:2000] if year == 2024 else x[2000:]
        write(tmp_path / "t" / f"year={year}" / "0.parquet", part)
    assert find_files(tmp_path / "t") is not None
    np.testing.assert_array_equal(as_dask(tmp_path / "t").compute(), x)
    late = open_parquet(tmp_path / "t", filters=[("year", "==", 2025)])
    assert late.n_rows == 3000  # known: only folders are picked
    np.testing.assert_array_equal(as_dask(late).compute(), x[2000:])
    both = [("year", "==", 2025), ("a", ">", 0.0)]
    np.testing.assert_array_equal(
        as_dask(open_parquet(tmp_path / "t", filters=both)).compute(),
        x[2000:][x[2000:, 1] > 0],
    )
    with_year = open_parquet(tmp_path / "t", columns=["year", "a"])
    np.testing.assert_array_equal(
        as_dask(with_year).compute()[:, 0], [2024] * 2000 + [2025] * 3000
    )


@settings(deadline=None, max_examples=30)
@given(
    groups=st.lists(st.integers(1, 900), min_size=1, max_size=8),
    block_bytes=st.integers(200, 20_000),
    data=st.data(),
)
def test_any_row_groups_and_blocks(tmp_path_factory, groups, block_bytes, data):
    """Blocks joined of small row groups and cut from large ones, in any order."""
    x = np.arange(sum(groups) * 3.0).reshape(-1, 3)
    folder = tmp_path_factory.mktemp("x")
    bounds = np.cumsum(groups)[:-1]
    for i, part in enumerate(np.split(x, bounds)):
        write(folder / f"{i:03d}.parquet", part, row_group_size=500)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "BLOCK_BYTES", block_bytes)
        rows = open_parquet(folder)
    assert sum(rows.chunks) == len(x)
    assert max(rows.chunks) <= max(1, block_bytes // 24)
    ends = np.cumsum([0, *rows.chunks]).astype(int)
    reading = pickle.loads(pickle.dumps(rows)).reading()
    order = data.draw(st.permutations(range(rows.n_blocks)))[:12]
    for i in [*order, *range(rows.n_blocks)]:
        expected = x[ends[i] : ends[i + 1]]
        np.testing.assert_array_equal(reading.block(rows.spans[i]), expected)
        read = rows.read_table(i, ["c", "b"])
        np.testing.assert_array_equal(read["b"], expected[:, 0])
        assert read.column_names == ["c", "b"]


@settings(deadline=None, max_examples=40)
@given(
    groups=st.lists(st.integers(1, 900), min_size=1, max_size=8),
    group_rows=st.sampled_from([100, 256, 500, 1024]),
    block_bytes=st.integers(2000, 40_000),
    batch_bytes=st.integers(1, 20_000),
    single=st.booleans(),
    filters=st.sampled_from([None, [("a", ">", 1000.0)]]),
    data=st.data(),
)
def test_parts_are_the_block_and_give_the_same_bits(
    tmp_path_factory,
    groups,
    group_rows,
    block_bytes,
    batch_bytes,
    single,
    filters,
    data,
):
    """However Arrow cuts the rows, and wherever a reader stands already."""
    rng = np.random.default_rng(len(groups))
    x = 1000 + rng.normal(size=(sum(groups), 3))
    x = x.astype(np.float32 if single else np.float64)
    folder = tmp_path_factory.mktemp("x")
    for i, part in enumerate(np.split(x, np.cumsum(groups)[:-1])):
        write(folder / f"{i:03d}.parquet", part, row_group_size=group_rows)
    e_step = plan(random_mixture(rng, "full", 2, 3))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "BLOCK_BYTES", block_bytes)
        patch.setattr(parquet_reader, "_BATCH_BYTES", batch_bytes)
        rows = open_parquet(folder, filters=filters)
        reading = rows.reading()
        order = data.draw(st.permutations(range(rows.n_blocks)))[:12]
        for i in [*order, *range(rows.n_blocks)]:
            spans = rows.spans[i]
            parts = [
                p if isinstance(p, np.ndarray) else p.array()
                for p in reading.parts(spans)
            ]
            block = reading.block(spans)
            np.testing.assert_array_equal(np.concatenate([block[:0], *parts]), block)
            assert all(len(part) % tile_rows(3) == 0 for part in parts[:-1])
            assert all(map(len, parts))
            added = sums_over(e_step, reading.parts(spans))
            np.testing.assert_array_equal(added, sums_over(e_step, [block]))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_local_file_is_decoded_by_the_thread_that_works_on_it(tmp_path, x):
    """What waits for a disk is read ahead instead, with the same bits."""
    place = tmp_path / "x.parquet"
    write(place, blobs(0, 200_000, 3, 3), row_group_size=50_000)  # four blocks each
    start = model(max_iter=3, tol=0, init_params="random_from_data")
    take, fits = parquet_reader._Reader.take, []
    ahead = {True: set(), False: set()}
    in_vain = set()
    for slow in (False, True):

        def watched(self, span, slow=slow):
            ahead[slow].add("daskgmm-reader" in threading.current_thread().name)
            time.sleep(0.01 * slow)
            in_vain.add(span.start - self.position)
            return take(self, span)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parquet_reader._Reader, "take", watched)
            fits.append(start.fit(place).means_)
    assert False in ahead[False]
    assert True in ahead[True]
    assert in_vain == {0}
    np.testing.assert_array_equal(*fits)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("kind", "filters", "streams"),
    [
        ("column", None, True),
        ("single", None, True),
        ("array", None, True),
        ("with zeros", None, False),
        ("column", [("a", ">", -1.0)], False),
    ],
)
def test_rows_with_weights_are_streamed_too(
    tmp_path, kind, filters, streams, monkeypatch
):
    """With the same bits; nothing is read in vain, though two files are open."""
    if filters is None:  # some batches for each block
        monkeypatch.setattr(parquet_reader, "_BATCH_BYTES", 100_000)
    place = tmp_path / "x.parquet"
    weights = np.random.default_rng(0).random(200_000) + 0.01
    if kind == "with zeros":
        weights[::1000] = 0.0
    if kind == "single":
        weights = weights.astype(np.float32)
    x = blobs(0, len(weights), 3, 3)
    write(place, x, row_group_size=50_000, w=weights)  # four blocks each
    rows = open_parquet(place, columns=NAMES, filters=filters)
    if kind != "array":
        weights = open_parquet(place, columns=["w"], filters=filters)
    start = model(max_iter=3, tol=0, init_params="random_from_data")
    take, weighs_all = parquet_reader._Reader.take, block._weighs_all
    streamed, in_vain = set(), set()

    def watched(self, span):
        in_vain.add(span.start - self.position)
        return take(self, span)

    def noted(*given):
        streamed.add(weighs_all(*given))
        return weighs_all(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_reader._Reader, "take", watched)
        patch.setattr(block, "_weighs_all", noted)
        found = start.fit(rows, sample_weight=weights)
    assert streamed == {streams}
    assert in_vain == {0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block, "_weighs_all", lambda *_: False)
        expected = clone(start).fit(rows, sample_weight=weights)
    for name in ("means_", "covariances_", "lower_bounds_"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_the_footer_is_read_once_for_all_columns_of_a_file(tmp_path, x, monkeypatch):
    """Also where keys are read beside the features, and from the file's start again."""
    rows = open_parquet(write_folder(tmp_path / "many", x), columns=["a", "b"])
    reading, footers = rows.reading(), []
    read_metadata = pq.read_metadata

    def noted(file):
        footers.append(file)
        return read_metadata(file)

    monkeypatch.setattr(pq, "read_metadata", noted)
    for spans in rows.spans:
        reading.block(spans)
        reading.table(spans, ["c"])
        reading.block(spans)
    assert len(footers) == len({span.path for spans in rows.spans for span in spans})


def test_weights_that_are_too_few_for_a_stream_are_named(tmp_path, x):
    place = write(tmp_path / "x.parquet", x)
    weights = da.ones(len(x), chunks=len(x)).map_blocks(lambda w: w[:-1], dtype=float)
    with pytest.raises(DataError, match=r"sample_weight has shape \(\d+,\) but that"):
        model().fit(place, sample_weight=weights)


@pytest.mark.parametrize(
    ("starts", "threads", "expected"),
    [
        (range(16), 2, [0, 2, 4, 6, 8, 10, 12, 14, 16]),  # small row groups
        (range(0, 16, 4), 2, [0, 4, 8, 12, 16]),  # of four blocks each
        (range(0, 16, 5), 2, [0, 5, 10, 15, 16]),
        ([0], 2, [0, 8, 16]),  # one for all: half of it is read in vain once
        ([0, 15], 1, [0, 15, 16]),
    ],
)
def test_shards_begin_where_row_groups_do(starts, threads, expected):
    bounds = shard_bounds(16, 8)
    leaves = leaf_bounds(16)
    assert _bounds_at(frozenset(starts), leaves, bounds, threads) == expected


def test_a_row_group_larger_than_memory_is_read_in_pieces(tmp_path):
    x = np.random.default_rng(0).normal(size=(2_000_000, 4))
    place = tmp_path / "x.parquet"
    pq.write_table(table(x, list("abcd")), place, row_group_size=len(x))
    rows = open_parquet(place)
    assert rows.n_blocks >= 4
    reading = rows.reading()
    tracemalloc.start()
    before, total = pa.total_allocated_bytes(), np.zeros(4)
    most = 0
    for spans in rows.spans:
        block = reading.block(spans)
        total += block.sum(axis=0)
        most = max(most, pa.total_allocated_bytes() - before)
        del block
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_allclose(total, x.sum(axis=0))
    assert peak < 2 * parquet.BLOCK_BYTES + 5e6  # NumPy's, of 64 MB
    assert most < 30e6  # Arrow's


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("compression", ["none", "snappy"])
def test_a_row_group_larger_than_a_workers_memory(tmp_path, compression):
    """1.3 GB in one row group, for workers that are paused at 80 % of 1 GB."""
    n = 40_000_000
    column = np.random.default_rng(0).normal(size=n)
    if compression == "snappy":  # 80 MB in the file, by its dictionary
        column = np.round(column)
    columns = {name: column for name in "abcd"}
    place = tmp_path / "x.parquet"
    pq.write_table(pa.table(columns), place, row_group_size=n, compression=compression)
    start = {
        "means_init": np.zeros((1, 4)),
        "weights_init": [1.0],
        "precisions_init": np.eye(4)[None],
    }
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            memory_limit="1GB",
            dashboard_address=":0",
        ) as cluster,
        Client(cluster) as client,
        dask.config.set({"daskgmm.no-workers-timeout": "30s"}),
    ):
        before = set(client.scheduler_info(n_workers=-1)["workers"])
        fitted = GaussianMixture(1, max_iter=2, tol=0, **start).fit(place)
        assert set(client.scheduler_info(n_workers=-1)["workers"]) == before
    np.testing.assert_allclose(fitted.means_[0], column.mean(), atol=1e-9)
    np.testing.assert_allclose(fitted.covariances_[0], column.var() + 1e-6 * np.eye(4))


def test_kinds_of_numbers(tmp_path, x):
    single = table(x.astype(np.float32))
    pq.write_table(single, tmp_path / "single.parquet")
    rows = open_parquet(tmp_path / "single.parquet")
    assert rows.dtype == np.float32
    assert model().fit(rows).means_.dtype == np.float32
    columns = {
        "int": pa.array([1, 2, 3], pa.int16()),
        "bool": pa.array([True, False, True]),
        "decimal": pa.array([1, 2, 3]).cast(pa.decimal128(24, 2)),
        "half": pa.array(np.array([1, 2, 3], np.float16)),
        "single": pa.array([1, 2, 3], pa.float32()),
    }
    pq.write_table(pa.table(columns), tmp_path / "mixed.parquet")
    mixed = as_dask(tmp_path / "mixed.parquet")
    assert mixed.dtype == np.float64
    expected = np.array([[1.0, 1, 1, 1, 1], [2, 0, 2, 2, 2], [3, 1, 3, 3, 3]])
    np.testing.assert_array_equal(mixed.compute(), expected)


def test_files_may_differ_in_types_and_order_of_columns(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    a, b = np.arange(4.0), np.arange(4)
    pq.write_table(pa.table({"a": a, "b": b}), folder / "0.parquet")
    pq.write_table(
        pa.table({"b": b.astype(np.int8), "more": b, "a": a.astype(np.float32)}),
        folder / "1.parquet",
    )
    expected = np.tile(np.stack([a, b], axis=1), (2, 1))
    np.testing.assert_array_equal(as_dask(folder).compute(), expected)


def test_nulls_and_nans_are_named(tmp_path, x):
    nulls = pa.array([None if i == 1234 else 1.0 for i in range(5000)])
    place = write(tmp_path / "null.parquet", x, d=nulls)
    message = (
        r"Column 'd' has a null in row group 1, row 1234 of the Parquet .*null\.parquet"
    )
    with pytest.raises(DataError, match=message):
        model().fit(place)
    rows = open_parquet(place, filters=[("d", ">", float("-inf"))])
    assert len(as_dask(rows).compute()) == 4999
    x[17, 1] = np.nan
    with pytest.raises(DataError, match="NaN in block 0, row 17, column 1"):
        model().fit(write(tmp_path / "nan.parquet", x))


def test_what_is_refused(tmp_path, x):
    place = write(tmp_path / "x.parquet", x, name=["text"] * len(x))
    with pytest.raises(DataError, match=r"Column 'name' of .*x\.parquet holds texts"):
        model().fit(place)
    with pytest.raises(DataError, match=r"x\.parquet has no column 'z': it has 'b'"):
        open_parquet(place, columns=["a", "z"])
    with pytest.raises(DataError, match="has no column 'z'"):
        open_parquet(place, columns=["a"], filters=[("z", ">", 0)])
    with pytest.raises(DataError, match="filters must be tuples"):
        open_parquet(place, columns=["a"], filters=["a > 0"])
    with pytest.raises(DataError, match="columns must be a list"):
        open_parquet(place, columns="a")
    for missing in (tmp_path / "none.parquet", f"{tmp_path}/none-*.parquet"):
        with pytest.raises(StoreError, match="There is no Parquet file at .*none"):
            model().fit(missing)
    (tmp_path / "no.parquet").write_text("no Parquet")
    with pytest.raises(StoreError, match=r"no\.parquet"):
        model().fit(tmp_path / "no.parquet")
    folder = write_folder(tmp_path / "many", x)
    pq.write_table(pa.table({"b": x[:, 0]}), folder / "part-9.parquet")
    with pytest.raises(DataError, match=r"part-9\.parquet has no column 'a'"):
        model().fit(folder)


def test_no_rows(tmp_path, x):
    place = write(tmp_path / "x.parquet", x[:0])
    with pytest.raises(DataError, match="0 sample"):
        model().fit(place)
    folder = write_folder(tmp_path / "many", x)
    write(folder / "part-9.parquet", x[:0])  # some files without any are no matter
    np.testing.assert_array_equal(as_dask(folder).compute(), x)
    rows = open_parquet(folder, filters=[("a", ">", 1e9)])
    with pytest.raises(DataError, match="0 sample"):
        model().fit(rows)
    assert as_dask(rows).compute().shape == (0, 3)
    assert rows.read_table(0, ["c"]).shape == (0, 1)
    some = open_parquet(place, filters=[("a", ">", 0.0)])
    assert some.read_table(0, ["c", "a"]).shape == (0, 2)
    first = open_parquet(folder, filters=[("a", "<", x[:, 1].min() + 1e-9)])
    tables = [first.read_table(i, ["a"]) for i in range(first.n_blocks)]
    assert sum(map(len, tables)) == 1
    assert {str(table.schema.field("a").type) for table in tables} == {"double"}


def test_a_file_that_is_damaged_after_it_was_opened_is_named(tmp_path, x):
    place = write(tmp_path / "x.parquet", x)
    rows = open_parquet(place)
    content = place.read_bytes()
    place.write_bytes(content[: len(content) // 2])
    with (
        dask.config.set({"daskgmm.storage-retries": 1}),
        pytest.raises(StoreError, match=r"x\.parquet cannot be read, after 2 attempts"),
    ):
        model().fit(rows)


def test_a_file_that_is_written_anew_is_read_anew(tmp_path, x):
    place = write(tmp_path / "x.parquet", x)
    with dask.config.set(scheduler="synchronous"):
        assert as_dask(place).sum().compute() == pytest.approx(x.sum())
        write(place, x + 1)
        assert as_dask(place).sum().compute() == pytest.approx((x + 1).sum())


def test_weights_are_cut_like_the_rows_whatever_a_filter_drops(tmp_path, monkeypatch):
    """By themselves one column would be cut in fewer blocks than three."""
    x = blobs(0, 4_000, 3, 3)
    weights = np.random.default_rng(0).integers(0, 3, len(x)).astype(float)
    place = write(tmp_path / "x.parquet", x, row_group_size=700, w=weights)
    monkeypatch.setattr(parquet, "BLOCK_BYTES", 3_000)
    filters = [(NAMES[0], ">", float(np.median(x[:, 0])))]
    rows = open_parquet(place, columns=NAMES, filters=filters)
    of_rows = open_parquet(place, columns=["w"], filters=filters)
    assert rows.n_blocks != of_rows.n_blocks > 16
    kept = x[:, 0] > np.median(x[:, 0])
    expected = model().fit(x[kept], sample_weight=weights[kept])
    assert_same_fit(model().fit(rows, sample_weight=of_rows), expected)
    others = open_parquet(place, columns=["w"], filters=[(NAMES[1], ">", 0.0)])
    with pytest.raises(DataError, match="cut both alike"):
        model().fit(rows, sample_weight=others)


def test_weights_from_a_column(tmp_path, x):
    weights = np.random.default_rng(0).integers(0, 3, len(x)).astype(float)
    place = write(tmp_path / "x.parquet", x, w=weights)
    rows = open_parquet(place, columns=NAMES)
    fitted = model().fit(rows, sample_weight=open_parquet(place, columns=["w"]))
    assert_same_fit(fitted, model().fit(x, sample_weight=weights))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_same_bits_on_a_cluster(tmp_path, x):
    folder = write_folder(tmp_path / "many", x)
    expected = model(max_iter=5).fit(folder)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as c,
        Client(c),
    ):
        fitted = model(max_iter=5).fit(folder)
        labels = fitted.predict(folder).compute()
    np.testing.assert_array_equal(fitted.means_, expected.means_)
    np.testing.assert_array_equal(labels, expected.predict(folder).compute())


def test_sources_take_it_as_blocks(tmp_path, x):
    source = open_source(write(tmp_path / "x.parquet", x))
    assert (source.n_features, source.dtype) == (3, np.float64)


def test_memory_of_blocks_is_used_again_once_nobody_holds_it():
    def at(rows):
        return rows.__array_interface__["data"][0]

    def empty(n_rows):
        return parquet_reader._empty(n_rows, 3, np.dtype("f4"), by_row=True)

    def run():
        first = empty(100)
        place, part = at(first), first[5:7].T
        del first
        other = empty(100)
        assert at(other) != place, "a view of it is held"
        del part
        assert at(empty(101)) != place, "it is too small"
        assert at(third := empty(99)) == place
        assert at(empty(100)) != at(third) != at(other)

    with ThreadPoolExecutor(1) as thread:  # whose memory is its own
        thread.submit(run).result()


def all_spans(rows):
    return [span for block in rows.spans for span in block]


def test_a_file_that_was_replaced_is_not_read_by_the_old_footer(tmp_path, x):
    """Which is kept from pass to pass, as long as the file is the same."""
    place = write(tmp_path / "x.parquet", x)
    rows = open_parquet(place)
    np.testing.assert_array_equal(rows.reading().block(all_spans(rows)), x)
    write(place, x + 1)
    with pytest.raises(StoreError, match="has been changed since it was opened"):
        rows.reading().block(all_spans(rows))


def test_a_file_that_was_opened_anew_is_not_read_on_where_the_old_one_was_left(
    tmp_path, x
):
    """The thread has the old one open still, and stands before the rows in it."""
    place = write(tmp_path / "x.parquet", x)
    rows = open_parquet(place)
    some = all_spans(rows)[:3]
    rows.reading().block(some)
    write(tmp_path / "new.parquet", x + 1).replace(place)
    anew = open_parquet(place)
    found = anew.reading().block(all_spans(anew)[3:])
    np.testing.assert_array_equal(found, x[some[-1].stop :] + 1)


def versions(place, first, stop, **options):
    return versions_of(open_parquet(place, **options)).of_rows(first, stop)


def test_rows_that_moved_are_of_another_version(tmp_path, x):
    """Though the file that they lie in, and the number of all rows, are the same."""
    place = write_folder(tmp_path / "x", x)
    before = [versions(place, first, first + 100) for first in (0, 1300, 4900)]
    write(place / "part-2.parquet", x[2500:3750] + 1)
    assert [versions(place, i, i + 100) for i in (0, 1300, 4900)] == before
    write(place / "part-0.parquet", x[:1240])
    write(place / "part-3.parquet", x[3740:])
    after = [versions(place, first, first + 100) for first in (0, 1300, 4900)]
    assert all(a != b for a, b in zip(before, after, strict=True))


def test_a_file_that_is_of_another_partition_since_is_of_another_version(tmp_path, x):
    """Its path says what some columns hold, and the file stays what it was."""
    (place := tmp_path / "x" / "key=1").mkdir(parents=True)
    write(place / "0.parquet", x)
    before = versions(tmp_path / "x", 0, 100, columns=["a", "key"])
    place.rename(tmp_path / "x" / "key=2")
    assert versions(tmp_path / "x", 0, 100, columns=["a", "key"]) != before
