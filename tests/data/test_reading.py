"""Stores that lose chunks, hold corrupt ones, or fail now and then."""

from __future__ import annotations

import subprocess
import sys

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from conftest import blobs
from stored import CHUNK, KINDS, ROWS, as_given, chunk_file, create, in_xarray, model
from zarr.codecs import Crc32cCodec
from zarr.storage import LocalStore, WrapperStore

from daskgmm import from_xarray
from daskgmm.cli.main import main
from daskgmm.data import zarr_reader
from daskgmm.data.zarr_reader import careful, has_checksum
from daskgmm.errors import StoreError

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture
def x():
    return blobs(0, ROWS, 2, 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_missing_chunk_is_named(tmp_path, x, kind, sharded):
    layout = {"chunks": (10, 2), "shards": (CHUNK, 2)} if sharded else {}
    create(str(tmp_path / "x"), x, **layout)
    chunk_file(tmp_path / "x", 17).unlink()
    rows = as_given(tmp_path / "x")[kind]
    with pytest.raises(StoreError, match=r"Chunk c/17/0 .*tmp.*/x is missing"):
        model().fit(rows)
    filled = model(missing_chunks="fill").fit(rows)
    if kind not in ("computed", "inlined"):
        x[1700:1800] = 0.0
        expected = model(missing_chunks="fill").fit(da.from_array(x, chunks=(CHUNK, 2)))
        np.testing.assert_allclose(filled.means_, expected.means_, rtol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["fit", "score"])
def test_a_missing_chunk_of_weights_is_named(tmp_path, x, kind, method):
    """Of rows in memory too, whose weights are read at once."""
    names = ("row",)
    create(str(tmp_path / "x"), np.ones(len(x)), chunks=(CHUNK,), dimension_names=names)
    weights = as_given(tmp_path / "x")[kind]
    fitted = model().fit(x)
    expected = fitted.score(x)
    np.testing.assert_allclose(fitted.score(x, sample_weight=weights), expected)
    (tmp_path / "x" / "c" / "17").unlink()
    weights = as_given(tmp_path / "x")[kind]
    with pytest.raises(StoreError, match=r"Chunk c/17 .*tmp.*/x is missing"):
        getattr(fitted, method)(x, sample_weight=weights)


@pytest.mark.parametrize(
    ("kind", "index_location"), [*((kind, "end") for kind in KINDS), ("path", "start")]
)
def test_a_missing_chunk_inside_a_shard_is_named(tmp_path, x, kind, index_location):
    x = x[:2000]
    x[1730:1740] = 0.0  # all fill value: Zarr leaves it out
    layout = {"shape": (100, 2), "index_location": index_location}
    create(str(tmp_path / "x"), x, chunks=(10, 2), shards=layout)
    rows = as_given(tmp_path / "x")[kind]
    lost = r"Chunk \(3, 0\) inside shard c/17/0 .*tmp.*/x is missing"
    with pytest.raises(StoreError, match=lost):
        model().fit(rows)
    model(missing_chunks="fill").fit(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_beyond_the_edge_are_not_missing(tmp_path, x, kind):
    x = x[:635]  # four chunks of the last shard, the last of them in part
    create(str(tmp_path / "x"), x, chunks=(10, 1), shards=(CHUNK, 4))
    model().fit(as_given(tmp_path / "x")[kind])


def test_a_chunk_that_is_missing_elsewhere_does_not_matter(tmp_path, x):
    array = create(str(tmp_path / "x"), x)
    chunk_file(tmp_path / "x", 17).unlink()
    model().fit(da.from_zarr(array)[:1500])
    with pytest.raises(StoreError, match="Chunk c/17/0"):
        model().fit(da.from_zarr(array)[1790:3000])


@pytest.mark.parametrize("decoded", [False, True])
def test_xarray_reads_with_care_what_it_picks_and_decodes(tmp_path, x, decoded):
    array = create(str(tmp_path / "x"), np.round(x * 100).astype(np.int32))
    array.attrs["scale_factor"] = 0.01
    chunk_file(tmp_path / "x", 17).unlink()
    options = {} if decoded else {"mask_and_scale": False}
    rows = in_xarray(tmp_path / "x", **options).drop_attrs()
    scale = 1 if decoded else 100
    np.testing.assert_allclose(
        model().fit(rows[:1500]).means_, model().fit(x[:1500]).means_ * scale, rtol=1e-2
    )
    with pytest.raises(StoreError, match="Chunk c/17/0"):
        model().fit(rows[1790:3000])
    # Picked one by one, before it is cut in chunks.
    whole = in_xarray(tmp_path / "x", chunks=None, **options).drop_attrs()
    few = whole.isel(row=np.arange(1500)[::-1]).chunk(row=500)
    model().fit(few)


def test_missing_chunks_when_predicting(tmp_path, x):
    create(str(tmp_path / "x"), x)
    fitted = model().fit(tmp_path / "x")
    chunk_file(tmp_path / "x", 3).unlink()
    for method in ("predict", "predict_proba", "score_samples", "score"):
        with pytest.raises(StoreError, match="Chunk c/3/0"):
            getattr(fitted, method)(tmp_path / "x")
    fitted.set_params(missing_chunks="fill").predict(tmp_path / "x").compute()


@pytest.mark.parametrize("kind", ["dask", "computed", "xarray", "labelled"])
def test_missing_chunks_when_predicting_lazily(tmp_path, x, kind):
    create(str(tmp_path / "x"), x)
    fitted = model().fit(tmp_path / "x")
    expected = fitted.predict(x)
    chunk_file(tmp_path / "x", 3).unlink()
    if kind == "labelled":
        rows = from_xarray(as_given(tmp_path / "x")["xarray"], feature_dim="feature")
    else:
        rows = as_given(tmp_path / "x")[kind]
    for method in ("predict", "predict_proba", "score_samples"):
        with pytest.raises(StoreError, match="Chunk c/3/0"):
            getattr(fitted, method)(rows).compute()
    labels = fitted.set_params(missing_chunks="fill").predict(rows).compute()
    if kind != "computed":
        there = [i for i in range(len(x)) if not 300 <= i < 400]
        np.testing.assert_array_equal(labels[there], expected[there])


def test_missing_weights(tmp_path, x):
    create(str(tmp_path / "x"), x)
    weights = zarr.create_array(
        str(tmp_path / "w"), shape=(ROWS,), dtype=float, chunks=(500,)
    )
    weights[:] = 1.0
    (tmp_path / "w" / "c" / "2").unlink()
    with pytest.raises(StoreError, match=r"Chunk c/2 .*/w is missing"):
        model().fit(tmp_path / "x", sample_weight=tmp_path / "w")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_a_corrupt_chunk_is_named(tmp_path, x, kind, how):
    codecs = {"compressors": (Crc32cCodec(),)} if how == "flipped" else {}
    create(str(tmp_path / "x"), x, **codecs)
    path = chunk_file(tmp_path / "x", 42)
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    else:
        content = content[: len(content) // 2]
    path.write_bytes(content)
    rows = as_given(tmp_path / "x")[kind]
    with (
        dask.config.set({"daskgmm.storage-retries": 1}),
        pytest.raises(StoreError, match=r"Chunk c/42/0 .*/x cannot be read"),
    ):
        model().fit(rows)


class Flaky(WrapperStore):
    """A real store, of which one request for a chunk in ten fails."""

    def __init__(self, store, *, every=10):
        super().__init__(store)
        self.every = every
        self.n_requests = 0

    async def get(self, key, *args, **kwargs):
        if "c/" in key:
            self.n_requests += 1
            if self.n_requests % self.every == 0:
                raise ConnectionResetError("the store is busy")
        return await super().get(key, *args, **kwargs)


@pytest.mark.parametrize("kind", ["array", "dask"])
def test_a_store_that_fails_now_and_then(tmp_path, x, kind):
    create(str(tmp_path / "x"), x, chunks=(CHUNK, 2))
    expected = model().fit(as_given(tmp_path / "x")[kind])
    flaky = Flaky(LocalStore(tmp_path / "x", read_only=True))
    array = zarr.open_array(flaky, mode="r")
    got = model().fit(array if kind == "array" else da.from_zarr(array))
    assert flaky.n_requests > ROWS // CHUNK
    np.testing.assert_array_equal(got.means_, expected.means_)


def test_a_store_that_always_fails_is_named_in_bounded_time(tmp_path, x):
    create(str(tmp_path / "x"), x)
    flaky = Flaky(LocalStore(tmp_path / "x", read_only=True), every=1)
    with (
        dask.config.set({"daskgmm.storage-retries": 2}),
        pytest.raises(StoreError, match=r"after 3 attempts by .*: .*the store is busy"),
    ):
        model().fit(zarr.open_array(flaky, mode="r"))


@pytest.mark.parametrize(
    ("rows", "numbers"),
    [
        (slice(100, 300), [1, 2]),
        (slice(99, 101), [0, 1]),
        (slice(450, 150, -1), [1, 2, 3, 4]),
        (slice(0, 0), []),
        (slice(None), list(range(ROWS // CHUNK))),
        (np.array([5, 6]), list(range(ROWS // CHUNK))),
    ],
)
def test_the_chunks_of_a_slice(tmp_path, x, rows, numbers):
    array = create(tmp_path / "x", x)
    assert [i for i, _ in zarr_reader._chunks_in(array, (rows, slice(None)))] == numbers


def test_equal_arrays_have_equal_tokens(tmp_path, x):
    array = create(str(tmp_path / "x"), x)
    token = dask.base.tokenize(careful(array, "error"))
    again = zarr.open_array(str(tmp_path / "x"), mode="r")
    assert dask.base.tokenize(careful(again, "error")) == token
    # What the one fills must not be taken for what the other read.
    assert dask.base.tokenize(careful(again, "fill")) != token
    other = create(str(tmp_path / "y"), x)
    assert dask.base.tokenize(careful(other, "error")) != token
    array[:100] = (
        x[:100] + 1
    )  # a result of before that a cluster holds is of other data
    assert dask.base.tokenize(careful(again, "error")) != token


def test_info_says_whether_there_are_checksums(tmp_path, x):
    plain = create(str(tmp_path / "x"), x)
    checked = create(str(tmp_path / "y"), x, compressors=(Crc32cCodec(),))
    sharded = create(
        str(tmp_path / "z"),
        x,
        chunks=(10, 2),
        shards=(CHUNK, 2),
        compressors=(Crc32cCodec(),),
    )
    unchecked = create(str(tmp_path / "u"), x, chunks=(10, 2), shards=(CHUNK, 2))
    assert not has_checksum(plain)
    assert not has_checksum(unchecked)  # though its index is
    assert has_checksum(checked)
    assert has_checksum(sharded)
    run = CliRunner().invoke
    assert (
        "a flipped bit would not be" in run(main, ["info", str(tmp_path / "x")]).stdout
    )
    assert "Checksums          : yes" in run(main, ["info", str(tmp_path / "y")]).stdout


_EVERY_WAY = """
import os, sys, warnings
import dask

planning = sys.argv.pop() == "True"
dask.config.set({"array.query-planning": planning})
import dask.array as da
import numpy as np
import xarray as xr
import zarr
from daskgmm import GaussianMixture, StoreError

warnings.simplefilter("ignore")
group, lost = sys.argv[1:]
array = zarr.open_group(group, mode="r")["x"]
assert hasattr(da.from_array(array, chunks=(100, 2)), "expr") == planning


def as_given():
    lazy = da.from_array(array, chunks=(100, 2))
    yield "path", f"{group}/x"
    yield "array", array
    for inline in (False, True):
        try:
            yield "from_zarr", da.from_zarr(array, inline_array=inline)
        except NotImplementedError:  # as in Dask's array expressions
            assert planning
    yield "dask", lazy
    yield "inlined", da.from_array(array, chunks=(100, 2), inline_array=True)
    yield "computed", lazy + 0.0
    yield "sliced", lazy[::1].rechunk((50, 2))
    yield "xarray", xr.open_zarr(group, consolidated=False)["x"]


x = array[:]
model = GaussianMixture(2, random_state=0, max_iter=3).fit(x)
methods = ("predict", "predict_proba", "score_samples")
for name, rows in as_given():
    for method in methods:
        found = np.asarray(getattr(model, method)(rows).compute())
        assert np.array_equal(found, getattr(model, method)(x)), (name, method)
os.remove(lost)
for name, rows in as_given():
    for method in (*methods, "score", "fit"):
        try:
            found = getattr(model, method)(rows)
            if method in methods:
                found.compute()
        except StoreError as error:
            assert "Chunk c/2/0 of the Zarr array" in str(error)
        else:
            raise AssertionError((name, method))
"""


@pytest.mark.parametrize("planning", [False, True])
def test_a_missing_chunk_is_named_by_every_method(tmp_path, planning):
    """Also where Dask's arrays are expressions, which they are from its import on."""
    group = zarr.open_group(str(tmp_path / "g"), mode="w")
    rows = blobs(0, 400, 2, 2)
    names = ("row", "feature")
    array = group.create_array(
        "x", shape=rows.shape, dtype=float, chunks=(100, 2), dimension_names=names
    )
    array[:] = rows
    lost = tmp_path / "g" / "x" / "c" / "2" / "0"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            _EVERY_WAY,
            str(tmp_path / "g"),
            str(lost),
            str(planning),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
