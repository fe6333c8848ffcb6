"""The command line: on real stores, and on real schedulers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from contextlib import contextmanager

import dask
import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from conftest import blobs
from distributed import LocalCluster

from daskgmm import GaussianMixture, load
from daskgmm.cli import main

N, D, K = 3000, 2, 3
PASS = re.compile(r"^pass +\d+  bound -?\d+\.\d+  change \S+  [\d,]+ rows/s", re.M)


@pytest.fixture(scope="module")
def address():
    """A scheduler to talk to over TCP, with two workers, in this process."""
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=False,
        protocol="tcp",
        dashboard_address="127.0.0.1:0",
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="module")
def rows():
    return blobs(3, N, D, K)


@pytest.fixture
def store(tmp_path, rows):
    path = str(tmp_path / "rows.zarr")
    zarr.create_array(path, data=rows, chunks=(700, D))
    return path


@pytest.fixture
def model(tmp_path, rows):
    path = str(tmp_path / "model.zarr")
    GaussianMixture(K, random_state=0).fit(rows).save(path)
    return path


@pytest.fixture
def run(address):
    def run(*args, scheduler=True):
        options = ["--scheduler", address] if scheduler else []
        return CliRunner().invoke(main, [*map(str, args), *options])

    return run


def assert_failed(result, words):
    """Status 1 and one line that says why, with no traceback."""
    assert result.exit_code == 1, result.output
    assert result.stderr.count("\n") == 1
    assert re.search(words, result.stderr)


def test_fit_saves_what_the_estimator_finds(run, store, tmp_path, rows):
    result = run("fit", store, tmp_path / "m", "-k", K, "--seed", 0, "--n-init", 2)
    assert result.exit_code == 0, result.output
    found, expected = load(tmp_path / "m"), GaussianMixture(K, n_init=2, random_state=0)
    expected.fit(rows)
    np.testing.assert_allclose(found.means_, expected.means_, rtol=1e-9)
    assert found.get_params() == expected.get_params()


def test_fit_prints_a_line_for_each_pass(run, store, tmp_path):
    result = run("fit", store, tmp_path / "m", "-k", K, "--seed", 0)
    model = load(tmp_path / "m")
    lines = result.stdout.splitlines()
    assert len(PASS.findall(result.stdout)) == model.n_passes_
    assert len(lines) == model.n_passes_ + 2
    assert f"bound {model.lower_bound_:.6f}" in lines[model.n_passes_ - 1]
    assert lines[-2].startswith(f"Converged in {model.n_iter_} iterations")
    assert lines[-1] == f"The model is in {tmp_path / 'm'}."


def test_fit_counts_the_starts_that_go_on(run, store, tmp_path):
    result = run("fit", store, tmp_path / "m", "-k", K, "--seed", 0, "--n-init", 3)
    assert "of 3 starts go on" in result.stdout


def test_fit_passes_its_options_on(run, store, tmp_path):
    options = {
        "covariance_type": "diag",
        "tol": 1e-5,
        "reg_covar": 1e-5,
        "max_iter": 7,
        "n_init": 2,
        "init_params": "k-means++",
        "init_size": 500,
    }
    flags = [(f"--{name.replace('_', '-')}", v) for name, v in options.items()]
    result = run("fit", store, tmp_path / "m", "-k", K, *sum(flags, ()), "--seed", 4)
    assert result.exit_code == 0, result.output
    options |= {"n_components": K, "random_state": 4}
    assert options.items() <= load(tmp_path / "m").get_params().items()


def test_fit_says_when_it_did_not_converge(run, store, tmp_path):
    result = run("fit", store, tmp_path / "m", "-k", K, "--max-iter", 1, "--seed", 0)
    assert result.exit_code == 0
    assert "Did not converge in 1 iterations" in result.stdout
    assert result.stderr == ""


def test_fit_weighs_rows(run, store, tmp_path, rows):
    weights = np.random.default_rng(0).integers(0, 3, size=N).astype(float)
    zarr.create_array(str(tmp_path / "w"), data=weights, chunks=(700,))
    args = ("fit", store, tmp_path / "m", "-k", K, "--seed", 0)
    result = run(*args, "--weights", tmp_path / "w")
    assert result.exit_code == 0, result.output
    expected = GaussianMixture(K, random_state=0).fit(rows, sample_weight=weights)
    np.testing.assert_allclose(load(tmp_path / "m").means_, expected.means_, rtol=1e-9)


def test_fit_replaces_a_model_only_when_told(run, store, model):
    before = load(model).means_
    assert_failed(run("fit", store, model, "-k", 2), "exists: pass --overwrite")
    assert np.array_equal(load(model).means_, before)
    result = run("fit", store, model, "-k", 2, "--overwrite")
    assert result.exit_code == 0, result.output
    assert load(model).n_components == 2


def test_fit_never_replaces_what_is_no_model(run, store, tmp_path):
    args = ("fit", store, store, "-k", 2, "--overwrite")
    assert_failed(run(*args), "is no Zarr group")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("irreplaceable")
    args = ("fit", store, tmp_path / "notes", "-k", 2, "--overwrite")
    assert_failed(run(*args), "is no Zarr group")
    assert (tmp_path / "notes" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("kind", "method", "missing"),
    [
        ("labels", "predict", -1),
        ("proba", "predict_proba", np.nan),
        ("log-density", "score_samples", np.nan),
    ],
)
def test_predict_writes_what_the_model_says(
    run, store, model, tmp_path, rows, kind, method, missing
):
    result = run("predict", model, store, tmp_path / "out", "--kind", kind)
    assert result.exit_code == 0, result.output
    assert f"Wrote {N:,} rows" in result.stdout
    out = zarr.open_array(str(tmp_path / "out"), mode="r")
    expected = getattr(load(model), method)(rows)
    assert out.dtype == expected.dtype
    np.testing.assert_allclose(out[:], expected, rtol=1e-12)
    assert out.chunks[0] == 700
    assert out.attrs["daskgmm"] == {"complete": True}
    np.testing.assert_equal(out.fill_value, missing)


def test_predict_writes_checksums(run, store, model, tmp_path):
    run("predict", model, store, tmp_path / "out")
    chunk = tmp_path / "out" / "c" / "1"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_array(str(tmp_path / "out"), mode="r")[:]


def test_predict_chunks_its_output_as_the_shards_of_its_input(
    run, model, tmp_path, rows
):
    path = str(tmp_path / "sharded")
    zarr.create_array(path, data=rows, chunks=(100, 1), shards=(1000, D))
    result = run("predict", model, path, tmp_path / "out")
    assert result.exit_code == 0, result.output
    out = zarr.open_array(str(tmp_path / "out"), mode="r")
    assert np.array_equal(out[:], load(model).predict(rows))
    assert out.chunks == (1000,)


def test_predict_replaces_an_array_only_when_told(run, store, model, tmp_path):
    out = str(tmp_path / "out")
    zarr.create_array(out, data=np.arange(5.0))
    assert_failed(run("predict", model, store, out), "exists: pass --overwrite")
    assert zarr.open_array(out, mode="r").shape == (5,)
    result = run("predict", model, store, out, "--overwrite")
    assert result.exit_code == 0, result.output
    assert zarr.open_array(out, mode="r").shape == (N,)


def test_predict_never_replaces_what_is_no_array(run, store, model, tmp_path):
    args = ("predict", model, store, tmp_path, "--overwrite")
    assert_failed(run(*args), "is no Zarr array")
    assert zarr.open_array(store, mode="r").shape == (N, D)


@pytest.mark.parametrize("which", ["store", "model"])
def test_predict_refuses_to_write_over_what_it_reads(run, store, model, which):
    out = {"store": store, "model": model}[which]
    result = run("predict", model, store, out, "--overwrite")
    assert result.exit_code == 2
    assert "another place" in result.stderr
    assert zarr.open_array(store, mode="r").shape == (N, D)


def test_predict_leaves_nothing_half_written(run, model, tmp_path, rows):
    broken = rows.copy()
    broken[2500, 1] = np.nan
    path = str(tmp_path / "broken")
    zarr.create_array(path, data=broken, chunks=(700, D))
    out = tmp_path / "out"
    result = run("predict", model, path, out)
    assert_failed(result, "NaN in block 3, row 400, column 1")
    assert not (out / "zarr.json").exists()


def test_predict_wants_the_features_of_the_model(run, model, tmp_path):
    path = str(tmp_path / "wide")
    zarr.create_array(path, data=np.zeros((10, 5)))
    result = run("predict", model, path, tmp_path / "out")
    assert_failed(result, "5 features.* 2 features")
    assert not (tmp_path / "out").exists()


def test_bad_data_are_one_line(run, tmp_path, rows):
    broken = rows.copy()
    broken[1500, 0] = np.inf
    path = str(tmp_path / "broken")
    zarr.create_array(path, data=broken, chunks=(700, D))
    args = ("fit", path, tmp_path / "m", "-k", 2)
    assert_failed(run(*args), "infinity in block 0, row 1500, column 0")
    assert not (tmp_path / "m").exists()


def test_a_store_that_is_not_there_is_one_line(run, model, tmp_path):
    nowhere = tmp_path / "nowhere"
    assert_failed(run("fit", nowhere, tmp_path / "m", "-k", 2), "nowhere")
    assert_failed(run("predict", model, nowhere, tmp_path / "out"), "nowhere")
    assert_failed(run("info", nowhere, scheduler=False), "nowhere")


def test_a_model_that_is_not_there_is_one_line(run, store, tmp_path):
    args = ("predict", tmp_path / "nowhere", store, tmp_path / "out")
    assert_failed(run(*args), "no model at .*nowhere")


def test_a_scheduler_that_is_not_there_is_one_line(store, tmp_path):
    args = ["fit", store, str(tmp_path / "m"), "-k", "2"]
    with dask.config.set({"distributed.comm.timeouts.connect": "500ms"}):
        result = CliRunner().invoke(main, [*args, "--scheduler", "tcp://127.0.0.1:9"])
    assert_failed(result, "127.0.0.1:9")


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["fit"],
        ["fit", "rows", "model"],
        ["fit", "rows", "model", "-k", "0"],
        ["fit", "rows", "model", "-k", "2", "--covariance-type", "round"],
        ["fit", "rows", "model", "-k", "2", "--scheduler", "tcp://a:1", "--workers=2"],
        ["predict", "model", "rows", "out", "--kind", "colour"],
        ["nonsense"],
    ],
)
def test_wrong_usage_is_status_2(args):
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr


@pytest.mark.parametrize("command", [[], ["fit"], ["predict"], ["info"], ["demo"]])
def test_help(command):
    result = CliRunner().invoke(main, [*command, "--help"])
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")


def test_help_shows_what_to_type():
    result = CliRunner().invoke(main, ["--help"])
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert "daskgmm fit rows.zarr model.zarr -k 8" in lines
    assert "daskgmm predict model.zarr rows.zarr labels.zarr" in lines


def test_version():
    result = CliRunner().invoke(main, ["--version"])
    assert "0.1.0" in result.stdout


def test_info_describes_a_model(model):
    result = CliRunner().invoke(main, ["info", model])
    assert result.exit_code == 0, result.output
    fitted = load(model)
    assert "3 components, 2 features, full covariance" in result.stdout
    assert f"converged after {fitted.n_iter_} iterations" in result.stdout
    for weight in fitted.weights_:
        assert f"{weight:.4f}" in result.stdout


def test_info_describes_data_and_results(run, store, model, tmp_path):
    result = CliRunner().invoke(main, ["info", store])
    assert result.exit_code == 0, result.output
    assert "(3000, 2)" in result.stdout
    assert "(700, 2)" in result.stdout
    run("predict", model, store, tmp_path / "out")
    result = CliRunner().invoke(main, ["info", str(tmp_path / "out")])
    assert "{'complete': True}" in result.stdout


def test_info_refuses_a_damaged_model(model):
    group = zarr.open_group(model, mode="a")
    group.attrs["daskgmm"] = {**group.attrs["daskgmm"], "fitted": {}}
    assert_failed(CliRunner().invoke(main, ["info", model]), "is damaged")


def daskgmm(*args):
    return subprocess.run(
        [sys.executable, "-m", "daskgmm", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_local_cluster_is_started_and_left(store, tmp_path, rows):
    options = ("--workers", 1, "--threads-per-worker", 2, "--memory-limit", "2GB")
    args = ("fit", store, tmp_path / "m", "-k", K, "--seed", 0)
    result = daskgmm(*args, *options)
    assert result.returncode == 0, result.stderr
    assert len(PASS.findall(result.stdout)) == load(tmp_path / "m").n_passes_
    assert result.stderr == ""


def test_an_error_on_a_local_cluster_is_one_line(tmp_path):
    path = str(tmp_path / "broken")
    zarr.create_array(path, data=np.full((100, 2), np.nan), chunks=(50, 2))
    result = daskgmm("fit", path, tmp_path / "m", "-k", 2, "--workers", 1)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "NaN in block 0, row 0, column 0" in result.stderr


@contextmanager
def background(*args):
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", *map(str, args)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def wait_for_address(path):
    for _ in range(600):
        try:
            return json.loads(path.read_text())["address"]
        except (OSError, ValueError):
            time.sleep(0.05)
    raise AssertionError("the scheduler did not start")


@pytest.mark.slow
def test_on_a_scheduler_and_workers_of_their_own(store, tmp_path, rows):
    file = tmp_path / "scheduler.json"
    ports = ("--port", 0, "--dashboard-address", ":0")
    worker = ("worker", "--scheduler-file", file, "--nthreads", 1)
    with (
        background(
            "scheduler", "--scheduler-file", file, "--host", "127.0.0.1", *ports
        ),
        background(*worker),
        background(*worker),
    ):
        scheduler = ("--scheduler", wait_for_address(file))
        options = ("-k", K, "--seed", 0, *scheduler)
        result = daskgmm("fit", store, tmp_path / "m", *options)
        assert result.returncode == 0, result.stderr
        result = daskgmm("predict", tmp_path / "m", store, tmp_path / "o", *scheduler)
        assert result.returncode == 0, result.stderr
    expected = GaussianMixture(K, random_state=0).fit(rows)
    np.testing.assert_allclose(load(tmp_path / "m").means_, expected.means_, rtol=1e-9)
    labels = zarr.open_array(str(tmp_path / "o"), mode="r")[:]
    assert np.array_equal(labels, expected.predict(rows))
