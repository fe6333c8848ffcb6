"""Stores on Google's and Azure's clouds: emulators of them, and real workers."""

from __future__ import annotations

import itertools
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass

import dask
import fsspec
import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import zarr
from checks import FITTED, check_chunks_are_named, run
from conftest import blobs, create_zarr
from distributed import Client
from services import Relay, serving, store_server, worker_processes

from daskgmm import GaussianMixture, load

X = blobs(0, 2400, 2, 3, spread=1.5)
SLOTS = itertools.count()


@dataclass
class Cloud:
    """A bucket that plain URLs lead to, and the front of its server."""

    relay: Relay
    bucket: str
    files: fsspec.AbstractFileSystem
    layout: dict


@contextmanager
def google(folder, patch):
    with store_server("google", folder) as port, serving(Relay(port)) as relay:
        patch.setenv("STORAGE_EMULATOR_HOST", relay.url)
        patch.setenv("FSSPEC_GS_TOKEN", "anon")  # for new processes
        patch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
        # Nor does it know ranges from the end, which the index of a shard needs.
        yield relay, "gs://bucket", {"chunks": (200, 2)}


# What Azurite's documentation says: they open nothing else.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # noqa: E501


@contextmanager
def azure(folder, patch):
    with store_server("azure", folder) as port, serving(Relay(port)) as relay:
        patch.setenv(
            "AZURE_STORAGE_CONNECTION_STRING",
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};"
            f"BlobEndpoint={relay.url}/{ACCOUNT};",
        )
        yield relay, "az://bucket", {"chunks": (50, 2), "shards": (200, 2)}


@pytest.fixture(
    scope="module", params=[google, pytest.param(azure, marks=pytest.mark.cluster)]
)
def cloud(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param.__name__)
    with (
        pytest.MonkeyPatch.context() as patch,
        request.param(folder, patch) as (relay, bucket, layout),
    ):
        files = fsspec.filesystem(bucket.split(":")[0], use_listings_cache=False)
        files.mkdir("bucket")
        yield Cloud(relay, bucket, files, layout)


@pytest.fixture(scope="module")
def workers(cloud):
    with worker_processes() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(workers):
    with Client(workers) as client:
        yield client


@pytest.fixture
def place(cloud):
    """Where nothing is yet."""
    return f"{cloud.bucket}/{next(SLOTS)}"


@pytest.fixture(scope="module")
def expected():
    return model().fit(X)


def model():
    return GaussianMixture(3, random_state=0, max_iter=50)


def test_zarr(cloud, client, place, expected):
    create_zarr(f"{place}/x", X, **cloud.layout)
    fitted = model().fit(f"{place}/x", checkpoint=f"{place}/fit")
    np.testing.assert_allclose(fitted.means_, expected.means_, rtol=1e-9)
    fitted.save(f"{place}/model")
    fitted.save(f"{place}/model", overwrite=True)
    found = load(f"{place}/model")
    for name in FITTED:
        np.testing.assert_array_equal(getattr(found, name), getattr(fitted, name))
    labels = found.predict(f"{place}/x").compute()
    np.testing.assert_array_equal(labels, expected.predict(X))


def test_missing_and_corrupt_chunks_are_named(cloud, client, place):
    create_zarr(f"{place}/x", X, **cloud.layout)
    check_chunks_are_named(cloud.files, f"{place}/x", model().fit)


def test_parquet_in_and_out(cloud, workers, place, expected):
    table = pd.DataFrame(X, columns=["a", "b"]).assign(key=range(len(X)))
    for part in range(3):
        rows = table[part * 800 : (part + 1) * 800]
        cloud.files.pipe_file(f"{place}/x/{part}.parquet", rows.to_parquet())
    at = ("--scheduler", workers.scheduler_address)
    columns = ("--columns", "a,b")
    fit = ("fit", f"{place}/x", f"{place}/model", "-k", 3, "--seed", 0, *columns)
    done = run(*fit, "--checkpoint", f"{place}/fit", *at)
    assert done.exit_code == 0, done.output
    found = load(f"{place}/model")
    np.testing.assert_allclose(found.means_, expected.means_, rtol=1e-9)
    predict = ("predict", f"{place}/model", f"{place}/x")
    done = run(*predict, f"{place}/labels.parquet", "--key", "key", *at)
    assert done.exit_code == 0, done.output
    labels = pyarrow.parquet.read_table(
        "bucket" + f"{place}/labels.parquet".removeprefix(cloud.bucket),
        filesystem=cloud.files,
    ).to_pandas()
    np.testing.assert_array_equal(labels["key"], table["key"])
    np.testing.assert_array_equal(labels["component"], expected.predict(X))
    done = run(*predict, f"{place}/labels.zarr", *at)
    assert done.exit_code == 0, done.output
    labels = zarr.open_array(f"{place}/labels.zarr", mode="r")
    np.testing.assert_array_equal(labels[:], expected.predict(X))


@pytest.mark.slow
def test_requests_fail_now_and_then(cloud, client, place, expected):
    create_zarr(f"{place}/x", X, **cloud.layout)
    # Azure's client waits for 15 s and more after each.
    one_in = 10 if cloud.bucket.startswith("gs:") else 60
    with (
        dask.config.set({"daskgmm.storage-retries": 6}),
        cloud.relay.failing(one_in, ways=("refuse", "drop")) as relay,
    ):
        fitted = model().fit(f"{place}/x", checkpoint=f"{place}/fit")
        fitted.save(f"{place}/model")
        found = load(f"{place}/model")
        assert relay.failed > 0
    np.testing.assert_allclose(found.means_, expected.means_, rtol=1e-9)


@pytest.mark.slow
def test_a_command_of_its_own(cloud, place, expected):
    """Nothing but the environment leads it there."""
    create_zarr(f"{place}/x", X, **cloud.layout)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "daskgmm", "fit", f"{place}/x", f"{place}/model"),
            *("-k", "3", "--seed", "0", "--workers", "1"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = load(f"{place}/model")
    np.testing.assert_allclose(found.means_, expected.means_, rtol=1e-9)
