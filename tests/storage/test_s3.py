"""Stores on S3 and behind other URLs: real servers, real workers, failing requests."""

from __future__ import annotations

import itertools
import sys
import time
from dataclasses import dataclass

import dask
import dask.array as da
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
import zarr
from checks import FITTED, check_chunks_are_named, run
from conftest import blobs, create_zarr
from distributed import Client
from services import (
    Folder,
    Relay,
    kill_until_done,
    serving,
    store_server,
    worker_processes,
)
from zarr.codecs import Crc32cCodec
from zarr.core.sync import sync

from daskgmm import GaussianMixture, load, open_rows
from daskgmm.data import fetched, parquet_reader
from daskgmm.data.signed import Pieces
from daskgmm.errors import MissingLibraryError, StoreError
from daskgmm.outputs import base, inspect, parquet_output, zarr_output
from daskgmm.storage import models

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = blobs(0, 2400, 2, 3, spread=1.5)
LAYOUTS = {
    "chunks": {"chunks": (200, 2), "compressors": (Crc32cCodec(),)},
    "shards": {"chunks": (50, 2), "shards": (200, 2)},
}
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "3",  # with five, an S3 that is gone is tried for minutes
    "AWS_EC2_METADATA_DISABLED": "true",  # nobody is asked for credentials
    # rclone's answers have checksums of parts, which clients take for the whole's.
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}


class Broken(Exception):
    """What ends a fit before its time."""


def model(**parameters):
    return GaussianMixture(3, random_state=0, tol=0, max_iter=4, n_init=2, **parameters)


def assert_same(got, expected):
    for name in FITTED:
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))


@dataclass
class S3:
    """A server: its front, which can let requests fail, and a client of its own."""

    relay: Relay
    files: s3fs.S3FileSystem


def forget_clients():
    """Let new ones be made, with what the environment says now.

    s3fs keeps an instance for each set of options, and leaves it to the garbage
    collector to close their connections.
    """
    for files in list(s3fs.S3FileSystem._cache.values()):
        if files._s3 is not None and files.asynchronous:
            sync(files._s3.close())  # Zarr's, on Zarr's loop
        elif files._s3 is not None:
            fsspec.asyn.sync(files.loop, files._s3.close)
    s3fs.S3FileSystem.clear_instance_cache()


# What fails in between fails likewise whoever answers.
OF_ONE = pytest.mark.parametrize("s3", ["rclone"], indirect=True)


@pytest.fixture(
    scope="module", params=[pytest.param("moto", marks=pytest.mark.slow), "rclone"]
)
def s3(request, tmp_path_factory):
    """An S3 server that plain s3:// URLs lead to, here and in new processes."""
    folder = tmp_path_factory.mktemp(request.param)
    with (
        store_server(request.param, folder) as port,
        serving(Relay(port)) as relay,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL_S3", relay.url)
        forget_clients()
        files = s3fs.S3FileSystem(
            endpoint_url=f"http://127.0.0.1:{port}",
            use_listings_cache=False,
        )
        files.mkdir("bucket")
        yield S3(relay, files)
        forget_clients()


@pytest.fixture(scope="module")
def stores(s3, tmp_path_factory):
    """URL of the rows in each layout, and the fit of the same rows on disk."""
    folder = tmp_path_factory.mktemp("stores")
    found = {}
    for name, layout in LAYOUTS.items():
        create_zarr(f"s3://bucket/{name}.zarr", X, **layout)
        create_zarr(folder / name, X, **layout)
        found[name] = (f"s3://bucket/{name}.zarr", model().fit(folder / name))
    return found


@pytest.fixture(scope="module")
def workers(s3):
    with worker_processes() as cluster:
        yield cluster


@pytest.fixture
def client(workers):
    with Client(workers) as client:
        yield client


NUMBERS = itertools.count()


@pytest.fixture
def place(s3):
    """Where nothing is yet, without the protocol."""
    return f"bucket/{next(NUMBERS)}"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_fit_has_the_bits_of_the_local_store(client, stores, layout):
    url, expected = stores[layout]
    assert_same(model().fit(url), expected)


@pytest.mark.parametrize("ahead", [48_000_000, 5_000_000])
@pytest.mark.parametrize("signed", [True, False])
def test_what_is_fetched_of_parquet_is_what_it_holds(
    s3, place, monkeypatch, ahead, signed
):
    """Once, and nothing between the columns: in few pieces or many."""
    x = np.random.default_rng(0).normal(size=(400_000, 6))
    columns = {f"x{j}": column for j, column in enumerate(x.T)}
    with s3.files.open(f"{place}/x.parquet", "wb") as file:
        columns["y"] = [f"{i}" for i in range(400_000)]
        pq.write_table(pa.table(columns), file)
    with s3.files.open(f"{place}/x.parquet", "rb") as file:
        group = pq.read_metadata(file).row_group(0)  # the only one
    stored = sum(group.column(j).total_compressed_size for j in range(6))
    monkeypatch.setattr(parquet_reader, "AHEAD_BYTES", ahead)
    monkeypatch.setattr(fetched, "AHEAD_BYTES", ahead)
    if not signed:
        monkeypatch.setattr(Pieces, "_requested", lambda *_: False)
    sizes, read = [], Pieces.read_into

    def counted(pieces, first, memory):
        read(pieces, first, memory)
        sizes.append(len(memory))

    monkeypatch.setattr(Pieces, "read_into", counted)
    told = []
    rows = open_rows(f"s3://{place}/x.parquet", columns=[f"x{j}" for j in range(6)])
    with dask.config.set(
        {"scheduler": "threads", "num_workers": 1, "daskgmm.cache-memory": 0}
    ):
        start = {"init_params": "random_from_data", "random_state": 0}
        model = GaussianMixture(2, max_iter=3, tol=0, accelerate=False, **start)
        model.fit(rows, callback=lambda _: told.append(sum(sizes)))
    of_passes = np.diff(told)
    assert stored >= x.nbytes
    assert ((of_passes >= stored) & (of_passes < stored + 70_000)).all()  # a footer
    assert max(sizes) <= ahead / 6


@pytest.mark.slow
@pytest.mark.parametrize("s3", ["moto"], indirect=True)  # rclone keeps no such objects
def test_empty_objects_that_mark_folders_are_no_files(s3, place):
    """pandas writes some, by Arrow, and so do many tools."""
    table = pa.table({"x0": X[:, 0], "x1": X[:, 1]})
    with s3.files.open(f"{place}/t/year=2022/part", "wb") as file:
        pq.write_table(table, file)
    bucket, _, folder = f"{place}/t".partition("/")
    for name in ("", "year=2022/", "year=2023/", "odd.parquet/"):
        s3.files.call_s3("put_object", Bucket=bucket, Key=f"{folder}/{name}", Body=b"")
    found = open_rows(f"s3://{place}/t")
    assert found.n_rows == len(X)
    assert found.names == ("x0", "x1")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_models_and_predictions(client, stores, place, layout):
    url, expected = stores[layout]
    expected.save(f"s3://{place}/model")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        expected.save(f"s3://{place}/model")
    expected.save(f"s3://{place}/model", overwrite=True)
    found = load(f"s3://{place}/model")
    assert_same(found, expected)
    labels = found.predict(url)
    assert isinstance(labels, da.Array)
    np.testing.assert_array_equal(labels.compute(), expected.predict(X))


def test_options_for_the_store(s3, stores, place, monkeypatch):
    """Given to Zarr, with nothing in the environment."""
    url, expected = stores["chunks"]
    forget_clients()
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    options = {"endpoint_url": s3.relay.url, "key": "test", "secret": "test"}
    rows = zarr.open_array(url, mode="r", storage_options=options)
    assert_same(model().fit(rows), expected)
    assert_same(model().fit(da.from_zarr(url, storage_options=options)), expected)
    forget_clients()


def test_the_commands(s3, workers, stores, place):
    url, expected = stores["chunks"]
    out, at = f"s3://{place}/model", ("--scheduler", workers.scheduler_address)
    flags = ("-k", 3, "--seed", 0, "--tol", 0, "--max-iter", 4, "--n-init", 2)
    checkpoint = ("--checkpoint", f"s3://{place}/fit", "--checkpoint-interval", 1)
    done = run("fit", url, out, *flags, *checkpoint, *at)
    assert done.exit_code == 0, done.output
    assert_same(load(out), expected)
    assert s3.files.ls(f"{place}/fit") == [f"{place}/fit/slot-{i}" for i in (0, 1)]
    again = run("fit", url, out, *flags, *checkpoint, *at)
    assert again.exit_code == 1
    assert "pass --overwrite" in again.stderr
    again = run("fit", url, out, *flags, *checkpoint, *at, "--overwrite")
    assert again.exit_code == 0, again.output
    assert "pass" not in again.stdout.split("Did not")[0]  # the checkpoint had all
    assert_same(load(out), expected)
    told = run("info", url)
    assert told.exit_code == 0, told.output
    assert "(2400, 2)" in told.stdout and "Checksums          : yes" in told.stdout
    told = run("info", out)
    assert told.exit_code == 0, told.output
    assert "3 components, 2 features" in told.stdout
    labels = f"s3://{place}/labels"
    done = run("predict", out, url, labels, *at)
    assert done.exit_code == 0, done.output
    got = zarr.open_array(labels, mode="r")[...]
    np.testing.assert_array_equal(got, expected.predict(X))


def break_off(rows, place, after):
    def observe(progress):
        if progress.n_pass == after:
            raise Broken

    with pytest.raises(Broken):
        model().fit(
            rows,
            sample_weight=None,
            callback=observe,
            checkpoint=place,
            checkpoint_interval=1,
        )


def resume(rows, place, interval=1):
    """The fit that goes on, and the first pass that it does."""
    resumed, passes = model(), []
    resumed.fit(
        rows,
        sample_weight=None,
        callback=lambda p: passes.append(p.n_pass),
        checkpoint=place,
        checkpoint_interval=interval,
    )
    return resumed, passes[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_fit_goes_on_from_s3(client, stores, place, layout):
    url, expected = stores[layout]
    break_off(url, f"s3://{place}", after=2)
    resumed, first = resume(url, f"s3://{place}")
    assert first == 3
    assert_same(resumed, expected)


@pytest.mark.slow
def test_one_request_in_ten_fails(s3, client, stores, place):
    """Chunks, checkpoints, the model: all come to the same bits."""
    url, expected = stores["chunks"]
    with s3.relay.failing(10) as relay:
        break_off(url, f"s3://{place}/fit", after=2)
        resumed, first = resume(url, f"s3://{place}/fit")
        resumed.save(f"s3://{place}/model")
        found = load(f"s3://{place}/model")
        labels = found.predict(url).compute()
        assert relay.failed > 20
    assert first == 3
    assert_same(resumed, expected)
    assert_same(found, expected)
    np.testing.assert_array_equal(labels, expected.predict(X))


@OF_ONE
@pytest.mark.slow
def test_every_write_that_fails_is_tried_again(s3, place, monkeypatch):
    """The client tries once: all that is tried again is by this package."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    forget_clients()
    with (
        dask.config.set({"daskgmm.storage-retries": 6}),
        s3.relay.failing(10, ways=("refuse",)) as relay,
    ):
        fitted = model().fit(X, checkpoint=f"s3://{place}/fit", checkpoint_interval=1)
        for overwrite in (False, True):
            fitted.save(f"s3://{place}/model", overwrite=overwrite)
            found = load(f"s3://{place}/model")
        assert relay.failed > 20
    forget_clients()
    np.testing.assert_array_equal(found.means_, fitted.means_)
    np.testing.assert_array_equal(found.lower_bounds_, model().fit(X).lower_bounds_)


@OF_ONE
@pytest.mark.slow
def test_every_request_for_an_output_is_made_again(s3, place, monkeypatch):
    """As above; of outputs of both kinds, replaced, looked at and read."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    forget_clients()
    values = np.arange(2000)
    answer = da.from_array(values, chunks=50)
    urls = [f"s3://{place}/out.{kind}" for kind in ("zarr", "parquet")]
    work = base.Work({"kind": "labels"}, overwrite=True)
    with (
        dask.config.set({"daskgmm.storage-retries": 6}),
        s3.relay.failing(10, ways=("refuse",)) as relay,
    ):
        for _ in range(2):
            zarr_output.write_zarr(answer, urls[0], work)
            parquet_output.write_parquet(answer, urls[1], work, names=["label"])
        for url in urls:
            told = inspect.standing(url)
            assert told.complete and told.n_missing == 0
            done = run("info", url)
            assert done.exit_code == 0, done.output
        rows = open_rows(urls[1])
        assert relay.failed > 20
    assert sum(rows.chunks) == 2000
    np.testing.assert_array_equal(zarr.open_array(urls[0], mode="r")[:], values)
    forget_clients()


@pytest.mark.slow
def test_a_store_that_always_fails_is_named(s3, workers, stores, place):
    url, expected = stores["chunks"]
    expected.save(f"s3://{place}/model")
    began = time.monotonic()
    with (
        dask.config.set({"daskgmm.storage-retries": 1}),
        s3.relay.failing(1, ways=("refuse",)),
    ):
        for act in (
            lambda: model().fit(X, checkpoint=f"s3://{place}/fit"),
            lambda: expected.save(f"s3://{place}/model", overwrite=True),
            lambda: load(f"s3://{place}/model"),
        ):
            with pytest.raises(StoreError, match=f"s3://{place}/.*after 2 attempts"):
                act()
        with pytest.raises(StoreError, match=url):
            model().fit(url)
        failed = run("fit", url, f"s3://{place}/new", "-k", 3)
        assert failed.exit_code == 1
        assert f"The store at s3://{place}/new cannot be used" in failed.stderr
        failed = run("info", f"s3://{place}/model")
        assert failed.exit_code == 1
    assert time.monotonic() - began < 120
    assert_same(load(f"s3://{place}/model"), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_missing_and_corrupt_chunks_are_named(s3, client, place, layout):
    create_zarr(f"s3://{place}", X, **LAYOUTS[layout])
    check_chunks_are_named(s3.files, f"s3://{place}", model().fit)


@OF_ONE
@pytest.mark.slow
def test_a_state_that_is_cut_leaves_the_one_before(s3, place):
    """Every object of the younger slot, cut or gone."""
    expected = model().fit(X)
    break_off(X, f"s3://{place}", after=3)
    slots = [f"{place}/slot-{slot}" for slot in (0, 1)]
    passes = [models.load(f"s3://{slot}").fitted["n_passes"] for slot in slots]
    assert sorted(passes) == [2, 3]
    younger = slots[int(np.argmax(passes))]
    whole = {name: s3.files.cat_file(name) for name in s3.files.find(younger)}
    assert len(whole) > 15

    def restore():
        s3.files.rm(s3.files.find(younger))
        for name, content in whole.items():
            s3.files.pipe_file(name, content)

    for name, content in whole.items():
        for left in (None, content[: len(content) // 2]):
            if left is None:
                s3.files.rm_file(name)
            else:
                s3.files.pipe_file(name, left)
            resumed, first = resume(X, f"s3://{place}", interval=1000)
            assert first == 3
            assert_same(resumed, expected)
            restore()
    resumed, first = resume(X, f"s3://{place}", interval=1000)
    assert first == 4
    assert_same(resumed, expected)


@OF_ONE
@pytest.mark.slow
def test_a_killed_client_goes_on_with_the_same_bits(s3, place):
    """SIGKILL at random times, again and again, of the command and its cluster."""
    x = blobs(12, 20_000, 3, 4, spread=1.5)
    create_zarr(f"s3://{place}/x", x, chunks=(5_000, 3))
    expected = GaussianMixture(4, random_state=0, tol=0, max_iter=15, n_init=2)
    expected.fit(f"s3://{place}/x")
    out, checkpoint = f"s3://{place}/model", f"s3://{place}/fit"
    command = [
        *(sys.executable, "-m", "daskgmm", "fit", f"s3://{place}/x", out, "-k", "4"),
        *("--seed", "0", "--tol", "0", "--max-iter", "15", "--n-init", "2"),
        *("--workers", "1", "--threads-per-worker", "1"),
        *("--checkpoint", checkpoint, "--checkpoint-interval", "1"),
    ]
    kill_until_done(command, out, seed=0)
    assert_same(load(out), expected)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the rows in each layout."""
    folder = tmp_path_factory.mktemp("folder")
    for name, layout in LAYOUTS.items():
        create_zarr(folder / name, X, **layout)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_and_memory(folder, layout):
    expected = model().fit(folder / layout)
    assert_same(model().fit(f"file://{folder}/{layout}"), expected)
    create_zarr(f"memory://{layout}", X, **LAYOUTS[layout])
    assert_same(model().fit(f"memory://{layout}"), expected)


@pytest.mark.filterwarnings("ignore:.*[Uu]nclosed:ResourceWarning")  # fsspec's sessions
@pytest.mark.parametrize("lists", [True, False])
def test_a_web_server(folder, lists):
    """One that lists its folders, and one that does not."""
    expected = model().fit(folder / "chunks")
    with serving(Folder(folder, lists=lists)) as server:
        assert_same(model().fit(f"{server.url}/chunks"), expected)
        chunk = folder / "chunks" / "c" / "7" / "0"
        chunk.rename(folder / "aside")
        try:
            with pytest.raises(StoreError, match=r"Chunk c/7/0 .* is missing"):
                model().fit(f"{server.url}/chunks")
        finally:
            (folder / "aside").rename(chunk)


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [("gs://b/x", "gcsfs", "gcs"), ("az://b/x", "adlfs", "azure")],
)
def test_packages_that_are_not_there_are_named(url, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    known = sys.modules["fsspec.registry"]._registry
    monkeypatch.delitem(known, url[:2], raising=False)
    how = rf"{url} needs a library .*: pip install 'daskgmm\[{extra}\]'"
    with pytest.raises(MissingLibraryError, match=how):
        model().fit(url)
    failed = run("fit", url, "model", "-k", 3, "--workers", 1)
    assert failed.exit_code == 1
    assert f"daskgmm[{extra}]" in failed.stderr
