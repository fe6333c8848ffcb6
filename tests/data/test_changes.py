"""Data that are not where they are read, or not what they were when opened."""

from __future__ import annotations

import mmap
import os
import re
import shutil
import sys

import dask.array as da
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from click.testing import CliRunner
from conftest import blobs, random_mixture
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from services import free_port, program, running, worker_processes
from sklearn.mixture import GaussianMixture as Theirs
from stored import CHUNK, KINDS, as_given, chunk_file, create, model

from daskgmm import DataError, GaussianMixture, StoreError, open_rows
from daskgmm.cli.main import main
from daskgmm.data.block import Block
from daskgmm.mixtures.e_step import e_step, message, moments
from daskgmm.mixtures.totals import Totals

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture
def x():
    return blobs(0, 6500, 2, 3)


@pytest.fixture(scope="module")
def processes():
    """A cluster of worker processes that run in another folder."""
    with (
        worker_processes() as cluster,
        Client(cluster) as client,
    ):
        client.run(os.chdir, "/")
        yield client


# --- workers that see other files -----------------------------------------------------


def relative(x):
    """Rows by relative names, in every way; the paths lead nowhere from elsewhere."""
    create("rows.zarr", x)
    pq.write_table(pa.table({"a": x[:, 0], "b": x[:, 1]}), "rows.parquet")
    shutil.make_archive("rows.zarr", "zip", "rows.zarr")
    array = zarr.open_array("rows.zarr", mode="r")
    return {
        "path": "rows.zarr",
        "URL": "file://rows.zarr",
        "zip": "rows.zarr.zip",
        "array": array,
        "dask": da.from_zarr("rows.zarr"),
        "inlined": da.from_zarr("rows.zarr", inline_array=True),
        "Parquet": "rows.parquet",
        "home": "~/rows.zarr",
    }


WAYS = ("path", "URL", "zip", "array", "dask", "inlined", "Parquet", "home")


@pytest.mark.parametrize("way", WAYS)
def test_relative_names_lead_to_the_rows_from_any_folder(
    processes, tmp_path, monkeypatch, x, way
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    rows = relative(x)[way]
    expected = model().fit(x)
    fitted = model().fit(rows)
    np.testing.assert_allclose(fitted.means_, expected.means_, rtol=1e-6)
    np.testing.assert_array_equal(fitted.predict(rows).compute(), expected.predict(x))
    assert fitted.score(rows) == pytest.approx(expected.score(x))


def test_relative_names_of_weights(processes, tmp_path, monkeypatch, x):
    monkeypatch.chdir(tmp_path)
    create("rows.zarr", x)
    weights = np.random.default_rng(0).integers(0, 3, len(x)).astype(float)
    create("weights.zarr", weights, chunks=(500,), dimension_names=("row",))
    expected = model().fit(x, sample_weight=weights)
    fitted = model().fit("rows.zarr", sample_weight="weights.zarr")
    np.testing.assert_allclose(fitted.means_, expected.means_, rtol=1e-6)


def in_memory(x):
    """Rows in this process's memory, in each way that Zarr takes them from there."""
    array = create("memory://rows.zarr", x, overwrite=True)
    return {"path": "memory://rows.zarr", "array": array, "dask": da.from_zarr(array)}


@pytest.mark.parametrize("way", ["path", "array", "dask"])
@pytest.mark.parametrize("missing_chunks", ["error", "fill"])
def test_what_other_processes_do_not_have_is_an_error(
    processes, x, way, missing_chunks
):
    """Zarr would read it as zeros, there."""
    rows = in_memory(x)[way]
    fitted = model(missing_chunks=missing_chunks).fit(x)
    gone = r"no Zarr array at memory://.*zarr, as seen from .*disk that they share"
    with pytest.raises(StoreError, match=gone):
        model(missing_chunks=missing_chunks).fit(rows)
    for method in ("predict", "predict_proba", "score_samples"):
        with pytest.raises(StoreError, match=gone):
            getattr(fitted, method)(rows).compute()
    with pytest.raises(StoreError, match=gone):
        fitted.score(rows)
    with pytest.raises(StoreError, match=gone):
        model(missing_chunks=missing_chunks).fit(
            da.from_array(x, chunks=(CHUNK, 2)),
            sample_weight=create(
                "memory://w.zarr",
                np.ones(len(x)),
                chunks=(50,),
                dimension_names=["row"],
                overwrite=True,
            ),
        )


def test_parquet_that_other_processes_do_not_have(processes, tmp_path, x):
    import fsspec

    with fsspec.open("memory://rows.parquet", "wb") as file:
        pq.write_table(pa.table({"a": x[:, 0], "b": x[:, 1]}), file)
    with pytest.raises(StoreError, match=r"There is no file /rows\.parquet, as seen"):
        model().fit("memory://rows.parquet")


@pytest.mark.cluster
def test_workers_on_a_machine_without_the_disk(tmp_path, x):
    """One worker sees the disk, and another one an empty folder in its place."""
    data = tmp_path / "data"
    data.mkdir()
    create(str(data / "x"), x)
    expected = model().fit(x)
    here = ["--no-dashboard", "--nthreads", "1", "--no-nanny"]
    hidden = f"mount -t tmpfs none {data} && exec "
    port = free_port()
    at = f"tcp://127.0.0.1:{port}"
    scheduler = ("scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard")
    command = [sys.executable, "-m", "dask"]
    blind = [program("unshare"), "--mount", "sh", "-c", hidden + '"$@"', "sh"]
    with (
        running(tmp_path / "scheduler.log", *command, *scheduler),
        running(tmp_path / "seeing.log", *command, "worker", at, *here) as seeing,
        Client(at) as client,
    ):
        client.wait_for_workers(1)
        fitted = model().fit(data / "x")
        np.testing.assert_allclose(fitted.means_, expected.means_, rtol=1e-6)
        with running(tmp_path / "blind.log", *blind, *command, "worker", at, *here):
            client.wait_for_workers(2)
            seeing.terminate()
            for missing in ("error", "fill"):
                with pytest.raises(StoreError, match=r"no Zarr array .*/x, as seen"):
                    model(missing_chunks=missing).fit(data / "x")
            args = ("fit", str(data / "x"), str(tmp_path / "m"), "-k", "3")
            done = CliRunner().invoke(main, [*args, "--scheduler", at])
            assert done.exit_code == 1
            assert re.search(r"no Zarr array .*/x, as seen from", done.stderr)
            assert not (tmp_path / "m").exists()


# --- data that change meanwhile -------------------------------------------------------


def fit_while(rows, change, **parameters):
    """Fit, and change the data once the first pass is done."""

    def observe(progress):
        if progress.n_pass == 1:
            change()

    fitted = model(**parameters).set_params(tol=0, max_iter=5)
    fitted.fit(rows, callback=observe)
    return fitted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("nothing_kept")
def test_a_chunk_that_vanishes_after_the_first_pass(tmp_path, x, kind):
    create(str(tmp_path / "x"), x)
    rows = as_given(tmp_path / "x")[kind]
    with pytest.raises(StoreError, match=r"Chunk c/17/0 .*/x is missing"):
        fit_while(rows, chunk_file(tmp_path / "x", 17).unlink)


@pytest.mark.parametrize("kind", KINDS)
def test_a_chunk_that_vanishes_is_noticed_of_rows_that_are_kept(tmp_path, x, kind):
    """At the end; or before, where another worker has to read them."""
    create(str(tmp_path / "x"), x)
    rows = as_given(tmp_path / "x")[kind]
    said = r"/x has been changed .*: chunk c/17/0|Chunk c/17/0 .*/x is missing"
    with pytest.raises(StoreError, match=said):
        fit_while(rows, chunk_file(tmp_path / "x", 17).unlink)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("missing_chunks", ["error", "fill"])
def test_an_array_that_vanishes_after_the_first_pass(tmp_path, x, kind, missing_chunks):
    create(str(tmp_path / "x"), x)
    rows = as_given(tmp_path / "x")[kind]
    with pytest.raises(StoreError, match=r"There is no Zarr array at .*/x, as seen"):
        fit_while(
            rows,
            lambda: shutil.rmtree(tmp_path / "x"),
            missing_chunks=missing_chunks,
        )


@pytest.mark.parametrize("kind", KINDS)
def test_an_array_that_is_made_anew_in_another_shape(tmp_path, x, kind):
    create(str(tmp_path / "x"), x)
    rows = as_given(tmp_path / "x")[kind]

    def change():
        zarr.open_array(str(tmp_path / "x"), mode="r+").resize((7000, 2))

    said = r"/x has been changed .* shape was \(6500, 2\) and is \(7000, 2\)"
    with pytest.raises(StoreError, match=said):
        fit_while(rows, change)


def test_an_array_that_is_made_anew_in_another_dtype(tmp_path, x):
    """Of the same size, so that the old metadata read the new chunks."""
    plain = {"compressors": None, "overwrite": True}
    create(str(tmp_path / "x"), x, **plain)

    def change():
        create(str(tmp_path / "x"), x.astype(np.int64), **plain)

    with pytest.raises(StoreError, match=r"has been changed .* its layout"):
        fit_while(tmp_path / "x", change)


@pytest.mark.parametrize("kind", KINDS)
def test_a_chunk_that_is_written_anew(tmp_path, x, kind):
    """In the first block, which differs so little that its sums do not tell."""
    array = create(str(tmp_path / "x"), x)
    rows = as_given(tmp_path / "x")[kind]
    with pytest.raises(StoreError, match=r"/x has been changed .*c/0/0 was written"):
        fit_while(rows, lambda: array.__setitem__(slice(0, 5), x[:5] + 1e-9))


def test_attributes_may_change(tmp_path, x):
    array = create(str(tmp_path / "x"), x)
    fit_while(tmp_path / "x", lambda: array.update_attributes({"note": "being read"}))


def test_weights_that_are_written_anew(tmp_path, x):
    create(str(tmp_path / "x"), x)
    layout = {"chunks": (500,), "dimension_names": ("row",)}
    weights = create(str(tmp_path / "w"), np.ones(len(x)), **layout)
    place = tmp_path / "w"
    fitted = model().set_params(tol=0, max_iter=3)
    with pytest.raises(StoreError, match=r"/w has been changed"):
        fitted.fit(
            tmp_path / "x",
            sample_weight=place,
            callback=lambda progress: weights.__setitem__(0, 1 + 1e-9),
        )


def write_parquet(folder, x, **options):
    folder.mkdir(exist_ok=True)
    for i, part in enumerate(np.array_split(x, 3)):
        table = pa.table({"a": part[:, 0], "b": part[:, 1]})
        pq.write_table(table, folder / f"{i}.parquet", **options)


@pytest.mark.parametrize("how", ["other rows", "fewer rows", "same statistics", "gone"])
@pytest.mark.usefixtures("nothing_kept")
def test_parquet_that_changes_after_the_first_pass(tmp_path, x, how):
    plain = {"compression": "none", "use_dictionary": False}
    write_parquet(tmp_path / "x", x, **plain)
    x = x.copy()

    def change():
        if how == "gone":
            (tmp_path / "x" / "1.parquet").unlink()
            return
        if how == "same statistics":
            x[100:200] = x[100:200][::-1]
        elif how == "other rows":
            x[3000:4000] += 1
        write_parquet(tmp_path / "x", x[:6000] if how == "fewer rows" else x, **plain)

    said = "no file .*1.parquet" if how == "gone" else "Parquet has been changed"
    with pytest.raises(StoreError, match=said):
        fit_while(tmp_path / "x", change)


def test_files_that_are_added_do_not_matter(tmp_path, x):
    write_parquet(tmp_path / "x", x)

    def change():
        shutil.copy(tmp_path / "x" / "1.parquet", tmp_path / "x" / "3.parquet")

    fit_while(tmp_path / "x", change)


@pytest.mark.parametrize("opened", [False, True])
def test_score_of_data_that_change(tmp_path, x, opened):
    """Opened, they are as they were then."""
    array = create(str(tmp_path / "x"), x)
    fitted = model().fit(x)
    rows = open_rows(tmp_path / "x") if opened else tmp_path / "x"
    array.resize((7000, 2))
    if opened:
        with pytest.raises(StoreError, match="has been changed"):
            fitted.score(rows)
    else:
        with pytest.raises(StoreError, match="is missing"):
            fitted.score(rows)


@pytest.mark.usefixtures("nothing_kept")
def test_rows_that_are_drawn_anew_in_each_pass(x):
    rng = np.random.default_rng(0)
    noisy = da.from_array(x, chunks=(1000, 2)).map_blocks(
        lambda block: block + rng.normal(size=block.shape) / 10
    )
    with pytest.raises(DataError, match="not the same in two passes .* persisted"):
        model(tol=0).fit(noisy)


def test_memory_that_others_can_change(x, tmp_path):
    """Arrays of NumPy's own memory are not asked whether they are the same."""
    x.astype(np.float64).tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", np.float64, shape=x.shape)
    with (tmp_path / "rows").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        buffered = np.frombuffer(memory, np.float64).reshape(x.shape)

        def change(_progress):
            mapped[:100] += 10.0

        for rows in (mapped, np.asarray(mapped)[:, ::-1], buffered):
            with pytest.raises(DataError, match="not the same in two passes"):
                model(tol=0).fit(rows, callback=change)
        del buffered, rows


@pytest.mark.usefixtures("nothing_kept")
def test_rows_whose_number_changes_from_pass_to_pass(x):
    rng = np.random.default_rng(0)
    some = da.from_array(x, chunks=(1000, 2)).map_blocks(
        lambda block: block[rng.random(len(block)) < 0.5], chunks=((np.nan,) * 7, (2,))
    )
    with pytest.raises(DataError, match="not the same in two passes"):
        model(tol=0).fit(some)


@settings(max_examples=60)
@given(
    covariance_type=st.sampled_from(["full", "tied", "diag", "spherical"]),
    d=st.integers(1, 5),
    n=st.integers(2, 400),
    offset=st.sampled_from([0.0, 1e3, 1e8]),
    log_scale=st.floats(-6, 6),
    weighted=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_totals_are_of_the_rows_alone(
    covariance_type, d, n, offset, log_scale, weighted, seed
):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * 10**log_scale + offset
    weights = rng.integers(0, 3, n).astype(float) if weighted else None
    w = np.ones(n) if weights is None else weights
    if not w.sum():
        return

    def totals(rows, spread, centre=None):
        mixture = random_mixture(rng, covariance_type, 3, d, scale=10**log_scale)
        mixture.means[:] = rows[rng.integers(0, n, 3)] + spread * mixture.means
        sent = message([mixture])
        sums = e_step(sent, iter([Block(0, rows, weights)]))
        return Totals.of(mixture, moments(sent, sums, [mixture])[0], centre)

    before = totals(x, 0.0)
    exact = (x - before.centre).astype(np.longdouble)
    scale = float(np.sqrt((w @ exact**2).sum() / w.sum()))
    np.testing.assert_allclose(before.weight, w.sum())
    np.testing.assert_allclose(
        before.sums.astype(float), (w @ exact).astype(float), atol=1e-8 * scale * n
    )
    np.testing.assert_allclose(before.squares, float((w @ exact**2).sum()), rtol=1e-8)
    after = totals(x, 10**log_scale, before.centre)
    assert not before.differ(after)
    if scale > 1e-6 * (offset + 10**log_scale) and w[0]:
        other = x.copy()
        other[0] += 0.01 * scale
        assert before.differ(totals(other, 0.0, before.centre))
        if weights is not None:
            weights = np.roll(weights, 1) if np.ptp(weights) else weights + 1
            changed = totals(x, 0.0, before.centre)
            assert before.differ(changed) or abs(changed.weight - w.sum()) < 1e-6


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
@pytest.mark.parametrize("offset", [0.0, 1.0, 1e9])
def test_rows_that_are_all_the_same_do_not_change(covariance_type, offset):
    """Nothing but rounding is left of their squares."""
    rows = np.full((500, 3), offset)
    rows[:, 1] += 0.1
    for x in (rows, da.from_array(rows, chunks=(100, 3))):
        model(covariance_type=covariance_type, init_params="random").fit(x)


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
@pytest.mark.parametrize("scale", [1e-158, 1e-170, 1e-200, 1e-300])
def test_numbers_whose_squares_are_zero_are_not_taken_for_others(
    covariance_type, scale
):
    """Then the sums say nothing; scikit-learn fits them by what reg_covar adds."""
    x = blobs(0, 300, 3, 2) * scale
    ours = GaussianMixture(2, covariance_type=covariance_type, random_state=0).fit(x)
    theirs = Theirs(2, covariance_type=covariance_type, random_state=0).fit(x)
    np.testing.assert_allclose(ours.lower_bound_, theirs.lower_bound_, rtol=1e-9)


def test_weights_that_are_subnormal_are_not_taken_for_others():
    x = blobs(0, 300, 3, 2)
    fitted = GaussianMixture(1).fit(x, sample_weight=np.full(300, 1e-320))
    np.testing.assert_allclose(fitted.means_[0], x.mean(axis=0), rtol=0.05)
