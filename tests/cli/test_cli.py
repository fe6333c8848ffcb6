"""The command line: on real stores, and on real schedulers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from click.testing import CliRunner
from conftest import blobs

from daskgmm import DataError, GaussianMixture, StoreError, load, open_rows
from daskgmm.cli import options
from daskgmm.cli.main import COMMANDS, main
from daskgmm.execution.tree import most_sums
from daskgmm.mixtures.covariance import SHAPES
from daskgmm.mixtures.e_step import sums_bytes

N, D, K = 3000, 2, 3
PASS = re.compile(r"^pass +\d+  bound -?\d+\.\d+(?:  change \S+)?  [\d,]+ rows/s", re.M)


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


def run_alone(*args, **options):
    """A command that needs no cluster."""
    return CliRunner().invoke(main, [*map(str, args)], **options)


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
    assert "of 3 starts still running" in result.stdout


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
    other = tmp_path / "other.zarr"
    zarr.create_array(other, data=np.arange(5.0))
    args = ("fit", store, other, "-k", 2, "--overwrite")
    assert_failed(run(*args), "holds no model, but a Zarr array")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("irreplaceable")
    args = ("fit", store, tmp_path / "notes", "-k", 2, "--overwrite")
    assert_failed(run(*args), "is not a model")
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
    assert out.attrs["daskgmm"]["complete"] is True
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
    run_alone("sample", model, out, "-n", 5)
    assert_failed(run("predict", model, store, out), "exists: pass --overwrite")
    assert zarr.open_array(out, mode="r").shape == (5, D)
    result = run("predict", model, store, out, "--overwrite")
    assert result.exit_code == 0, result.output
    assert zarr.open_array(out, mode="r").shape == (N,)


def test_predict_never_replaces_what_is_no_array(run, store, model, tmp_path):
    other = tmp_path / "other"
    (other / "folder").mkdir(parents=True)
    args = ("predict", model, store, other, "--overwrite")
    assert_failed(run(*args), "is no Zarr array")
    zarr.create_array(other / "rows", data=np.arange(5.0))
    args = ("predict", model, store, other / "rows", "--overwrite")
    assert_failed(run(*args), "this program did not write")
    assert zarr.open_array(other / "rows", mode="r").shape == (5,)


@pytest.mark.parametrize("which", ["store", "model"])
def test_predict_refuses_to_write_over_what_it_reads(run, store, model, which):
    out = {"store": store, "model": model}[which]
    result = run("predict", model, store, out, "--overwrite")
    assert result.exit_code == 2
    assert "another place" in result.stderr
    assert zarr.open_array(store, mode="r").shape == (N, D)


def test_predict_keeps_what_is_done_when_it_fails(run, model, tmp_path, rows):
    broken = rows.copy()
    broken[2500, 1] = np.nan
    path, out = str(tmp_path / "broken"), tmp_path / "out"
    array = zarr.create_array(path, data=broken, chunks=(700, D))
    result = run("predict", model, path, out)
    assert_failed(result, "NaN in block 3, row 400, column 1.*out is not complete")
    assert "Give the same command again to resume it" in result.stderr
    assert zarr.open_array(str(out), mode="r").attrs["daskgmm"]["complete"] is False
    missing = re.search(r"(\d) of 5 chunks missing", run_alone("info", out).stdout)
    array[2500, 1] = rows[2500, 1]
    result = run("predict", model, path, out)
    assert result.exit_code == 0, result.output
    assert f"{5 - int(missing[1])} of 5 parts being there" in result.stdout
    labels = zarr.open_array(str(out), mode="r")[:]
    assert np.array_equal(labels, load(model).predict(rows))


def test_predict_refuses_the_unfinished_output_of_another_command(
    run, store, model, tmp_path, rows
):
    path, out = str(tmp_path / "broken"), tmp_path / "out"
    zarr.create_array(path, data=np.full((N, D), np.nan), chunks=(700, D))
    run("predict", model, path, out)
    said = r"unfinished output .* kind was 'labels' and is 'proba'"
    assert_failed(run("predict", model, path, out, "--kind", "proba"), said)
    said = r"data was '\S+broken' and is '\S+rows.zarr'"
    assert_failed(run("predict", model, store, out), said)
    other = str(tmp_path / "other")
    GaussianMixture(K, random_state=1).fit(rows[:2000]).save(other)
    assert_failed(run("predict", other, path, out), "model was 'array of .* and is")
    result = run("predict", model, store, out, "--overwrite")
    assert result.exit_code == 0, result.output


def test_predict_wants_the_features_of_the_model(run, model, tmp_path):
    path = str(tmp_path / "wide")
    zarr.create_array(path, data=np.ones((10, 5)))
    result = run("predict", model, path, tmp_path / "out")
    assert_failed(result, "STORE has 5 features, and MODEL was fitted to 2")
    assert not (tmp_path / "out").exists()


def test_bad_data_are_one_line(run, tmp_path, rows):
    broken = rows.copy()
    broken[1500, 0] = np.inf
    path = str(tmp_path / "broken")
    zarr.create_array(path, data=broken, chunks=(700, D))
    args = ("fit", path, tmp_path / "m", "-k", 2)
    assert_failed(run(*args), "infinity in block 2, row 100, column 0")
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
        ["select", "rows", "model"],
        ["predict", "model", "rows", "out", "--kind", "colour"],
        ["nonsense"],
    ],
)
def test_wrong_usage_is_status_2(args):
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr


@pytest.mark.parametrize(
    "command", ["fit", "select", "predict", "score", "sample", "info", "demo"]
)
def test_help_of_commands_has_examples(command):
    result = run_alone(command, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")
    examples = re.findall(rf"^ +daskgmm {command}\b.*$", result.stdout, re.M)
    assert len(examples) >= 2
    given = {flag for line in examples for flag in re.findall(r" (--?[a-z]\S*)", line)}
    options = result.stdout.partition("Options:")[2]
    assert all(re.search(rf"(^|[ ,]){flag}\b", options, re.M) for flag in given)
    assert "--json" in options


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
    assert "Output             : complete" in result.stdout


def test_info_refuses_a_damaged_model(model):
    group = zarr.open_group(model, mode="a")
    group.attrs["daskgmm"] = {**group.attrs["daskgmm"], "fitted": {}}
    assert_failed(CliRunner().invoke(main, ["info", model]), "is damaged")


def test_score_tells_what_the_model_says(run, store, model, rows):
    fitted = load(model)
    result = run("score", model, store)
    assert result.exit_code == 0, result.output
    assert f"Rows               : {N:,}" in result.stdout
    assert f"Mean log density   : {fitted.score(rows):.6f}" in result.stdout
    assert f"AIC                : {fitted.aic(rows):.3f}" in result.stdout
    assert f"BIC                : {fitted.bic(rows):.3f}" in result.stdout
    result = run("score", model, store, "--json")
    told = json.loads(result.stdout)
    assert told.keys() == {"rows", "mean_log_density", "aic", "bic"}
    assert told["rows"] == N
    assert told["mean_log_density"] == pytest.approx(fitted.score(rows))
    assert told["aic"] == pytest.approx(fitted.aic(rows))
    assert told["bic"] == pytest.approx(fitted.bic(rows))


def test_score_of_nothing_is_one_line(run, model, tmp_path):
    zarr.create_array(str(tmp_path / "none"), shape=(0, D), chunks=(5, D), dtype=float)
    assert_failed(run("score", model, tmp_path / "none"), "no rows to score")


def test_fit_and_info_tell_programs(run, store, tmp_path):
    args = ("fit", store, tmp_path / "m", "-k", K, "--seed", 0, "--json")
    result = run(*args)
    assert result.exit_code == 0, result.output
    told, fitted = json.loads(result.stdout), load(tmp_path / "m")
    assert told.pop("seconds") > 0
    assert told == {
        "model": str(tmp_path / "m"),
        "converged": fitted.converged_,
        "iterations": fitted.n_iter_,
        "passes": fitted.n_passes_,
        "bound": fitted.lower_bound_,
        "remaining_gain": None,
        "rows_skipped": 0,
    }
    assert len(PASS.findall(result.stderr)) == fitted.n_passes_
    told = json.loads(run_alone("info", tmp_path / "m", "--json").stdout)
    assert told["type"] == "model"
    assert told["means"] == fitted.means_.tolist()
    told = json.loads(run_alone("info", store, "--json").stdout)
    assert (told["type"], told["shape"], told["checksums"]) == ("array", [N, D], False)
    assert "complete" not in told


@pytest.mark.parametrize("option", ["--accelerate", "--no-accelerate", None])
def test_fits_are_accelerated_as_told(run, store, tmp_path, option):
    args = ["fit", store, tmp_path / "m", "-k", K, "--seed", 0, "--init-size", 150]
    result = run(*args, *([option] if option else []))
    assert result.exit_code == 0, result.output
    fitted = load(tmp_path / "m")
    chosen = {"--accelerate": True, "--no-accelerate": False, None: "auto"}[option]
    assert (fitted.accelerate, fitted.init_size) == (chosen, 150)
    told = f"About {fitted.remaining_gain_:.1e} of the bound is left to gain."
    assert (told in result.output) is (option != "--no-accelerate")


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_longer_fit_goes_on_from_the_checkpoint(run, store, tmp_path):
    place = tmp_path / "c"
    common = ["-k", K, "--seed", 0, "--tol", 0]
    args = ["fit", store, tmp_path / "m", *common, "--checkpoint", place]
    result = run(*args, "--max-iter", 2)
    assert "Did not converge in 2 iterations" in result.output
    assert f"With a larger --max-iter, it resumes from {place}." in result.output
    result = run(*args, "--max-iter", 4, "--overwrite")
    assert "Resuming from the checkpoint after pass 2." in result.output
    again = run(*args, "--max-iter", 4, "--overwrite")  # there is no pass to make
    assert again.exit_code == 0 and "pass" not in again.stderr
    expected = GaussianMixture(K, random_state=0, tol=0, max_iter=4).fit(str(store))
    np.testing.assert_array_equal(load(tmp_path / "m").means_, expected.means_)


@pytest.mark.parametrize("size", ["0", "many", "-3", "1.5", "²"])
def test_an_init_size_that_is_none_is_named(run, store, tmp_path, size):
    result = run("fit", store, tmp_path / "m", "-k", K, f"--init-size={size}")
    assert result.exit_code == 2
    assert f"{size!r} is neither 'auto' nor a number from 1" in result.stderr


@pytest.mark.parametrize("interval", ["0", "soon", "²"])
def test_an_interval_that_is_none_is_named(run, store, tmp_path, interval):
    result = run(
        "fit", store, tmp_path / "m", "-k", K, "--checkpoint-interval", interval
    )
    assert result.exit_code == 2
    assert "must be a number of passes" in result.stderr


def test_predict_tells_programs(run, store, model, tmp_path):
    result = run("predict", model, store, tmp_path / "out", "--json")
    told = json.loads(result.stdout)
    assert told.pop("seconds") > 0
    out = str(tmp_path / "out")
    assert told == {"out": out, "rows": N, "parts": 5, "parts_found": 0}
    assert "Wrote 3,000 rows" in result.stderr
    told = json.loads(run_alone("info", out, "--json").stdout)
    assert (told["complete"], told["parts"], told["parts_missing"]) == (True, 5, 0)


def test_infinity_is_told_to_programs_in_words(run, model, tmp_path):
    far = np.full((10, D), 1e200)
    zarr.create_array(str(tmp_path / "far"), data=far, chunks=(5, D))
    result = run("score", model, tmp_path / "far", "--json")
    assert json.loads(result.stdout)["mean_log_density"] == "-inf"


SAMPLE_BLOCK = 500_000


def test_sample_draws_from_the_model(model, tmp_path):
    n = SAMPLE_BLOCK + 50_000
    out = tmp_path / "drawn.zarr"
    result = run_alone("sample", model, out, "-n", n, "--seed", 5, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rows"] == n
    drawn, fitted = zarr.open_array(str(out), mode="r"), load(model)
    assert drawn.shape == (n, D)
    assert drawn.chunks == (SAMPLE_BLOCK, D)
    x = drawn[:]
    # The mean of each half is the mixture's: rows are not in the order of components.
    for half in (x[: n // 2], x[n // 2 :]):
        error = half.std(axis=0) / np.sqrt(len(half))
        expected = fitted.weights_ @ fitted.means_
        assert (np.abs(half.mean(axis=0) - expected) < 5 * error).all()
    assert fitted.score(x) == pytest.approx(fitted.score(x[: n // 10]), abs=0.02)
    assert len(np.unique(x[:, 0])) == n


def test_sample_depends_on_its_seed_alone(model, tmp_path):
    def draw(name, n, seed):
        result = run_alone("sample", model, tmp_path / name, "-n", n, "--seed", seed)
        assert result.exit_code == 0, result.output
        return zarr.open_array(str(tmp_path / name), mode="r")[:]

    few, more = draw("a", SAMPLE_BLOCK, 1), draw("b", SAMPLE_BLOCK + 10, 1)
    assert np.array_equal(few, more[:SAMPLE_BLOCK])
    assert not np.array_equal(few[:10], draw("c", 10, 2))
    assert np.array_equal(draw("d", 1000, 3), draw("e", 1000, 3))


def test_sample_without_a_seed_says_which_it_took(model, tmp_path):
    result = run_alone("sample", model, tmp_path / "a", "-n", 100)
    seed = re.search(r"^Seed (\d+)\.$", result.stdout, re.M)[1]
    run_alone("sample", model, tmp_path / "b", "-n", 100, "--seed", seed)
    a, b = (zarr.open_array(str(tmp_path / name), mode="r")[:] for name in "ab")
    assert np.array_equal(a, b)
    refused = run_alone("sample", model, tmp_path / "a", "-n", 100)
    assert_failed(refused, "exists: pass --overwrite")
    assert run_alone("sample", model, model, "-n", 5, "--overwrite").exit_code == 2


def test_sample_writes_parquet(model, tmp_path):
    out = tmp_path / "drawn.parquet"
    run_alone("sample", model, out, "-n", 1000, "--seed", 1)
    table = pq.read_table(out)
    assert table.column_names == ["feature_0", "feature_1"]
    run_alone("sample", model, tmp_path / "drawn.zarr", "-n", 1000, "--seed", 1)
    expected = zarr.open_array(str(tmp_path / "drawn.zarr"), mode="r")[:]
    assert np.array_equal(np.column_stack(table.columns), expected)


def test_a_dry_run_tells_and_does_nothing(store, model, tmp_path):
    local = ("--workers", 2, "--threads-per-worker", 3, "--json", "--dry-run")
    result = run_alone("fit", store, tmp_path / "m", "-k", K, "--max-iter=10", *local)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["rows"], told["features"], told["blocks"]) == (N, D, 5)
    assert told["bytes_per_pass"] == N * D * 8
    assert (told["threads"], told["threads_per_worker"]) == (6, 3)
    of_leaf = sums_bytes(SHAPES["full"], K, D)
    assert told["sums_bytes"] == most_sums(5) * of_leaf
    of_threads = 3 * (2 * 700 * D * 8 + told["sums_bytes"])
    assert told["memory_per_worker"] == 400_000_000 + of_threads
    assert (told["passes"], told["likely_passes"]) == (12, None)
    seconds = told["seconds_per_block"]
    assert seconds > 0
    assert told["seconds_per_pass"] == pytest.approx(seconds)  # 5 blocks, 5 threads
    assert told["seconds"] == pytest.approx(12 * seconds)
    assert "an estimate, from one block on this machine" in result.stderr
    for args in (("predict", model, store, tmp_path / "o"), ("score", model, store)):
        told = json.loads(run_alone(*args, *local).stdout)
        assert (told["rows"], told["passes"]) == (N, 1)
        assert told["seconds"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {"rows.zarr", "model.zarr"}


def test_a_dry_run_tells_how_many_passes_are_likely(store, tmp_path):
    args = ("fit", store, tmp_path / "m", "-k", K, "--init-size", 100, "--dry-run")
    told = json.loads(run_alone(*args, "--json").stdout)
    assert (told["passes"], told["likely_passes"]) == (102, 6)
    assert "102 at most, 6 likely" in run_alone(*args, "--workers", 1).stdout
    told = json.loads(run_alone(*args, "--json", "--max-iter", 1).stdout)
    assert (told["passes"], told["likely_passes"]) == (3, 3)
    told = json.loads(run_alone(*args, "--json", "--no-accelerate").stdout)
    assert told["likely_passes"] is None


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_more_components_than_rows(run, store, tmp_path, dry):
    said = run("fit", store, tmp_path / "m", "-k", N + 1, *dry)
    assert_failed(said, f"--components {N + 1} is more than there are rows: {N}.")


def test_a_dry_run_asks_no_scheduler(store, tmp_path):
    scheduler = ("--scheduler", "tcp://127.0.0.1:9")
    args = ("fit", store, tmp_path / "m", "-k", K, "--dry-run", *scheduler)
    result = run_alone(*args)
    assert result.exit_code == 0, result.output
    assert "how many threads there will be is not known here" in result.stdout
    assert "for each of its threads" in result.stdout


def test_a_fit_says_how_long_it_goes_on(run, store, tmp_path):
    result = run("fit", store, tmp_path / "m", "-k", K, "--seed", 0)
    lines = PASS.findall(result.stdout)
    said = (
        r"^pass .* rows/s  (?:\S+ k?i?B read|all rows in memory)  \S+ m?s"
        r"(, (?:about|at most) \S+ .*to go)?$"
    )
    found = re.findall(said, result.stdout, re.M)
    assert len(found) == len(lines)
    assert [to_go != "" for to_go in found] == [True] * (len(lines) - 1) + [False]


def test_in_a_terminal_there_is_a_bar(store, model, tmp_path, address):
    args = ("--scheduler", address)
    terminal = {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "COLUMNS": "120"}
    result = run_alone("predict", model, store, tmp_path / "o", *args, env=terminal)
    assert result.exit_code == 0, result.output
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", result.stdout)
    assert re.search(r"writing parts ━", plain)
    result = run_alone("score", model, store, *args, env=terminal)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", result.stdout)
    assert re.search(r"(joining|leaving) workers|scoring rows ━", plain)
    fit = ("fit", store, tmp_path / "m", "-k", K, "--seed", 0)
    result = run_alone(*fit, *args, env=terminal)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", result.stdout)
    assert re.search(r"(starting|joining workers|pass \d+) ━", plain)


@pytest.fixture
def group(tmp_path, rows):
    path = str(tmp_path / "group.zarr")
    zarr.open_group(path, mode="w").create_array("0/x", data=rows, chunks=(700, D))
    return path


def test_an_array_inside_a_group(run, group, model, tmp_path, rows):
    refused = run("score", model, group)
    assert_failed(refused, "but a group.*--array")
    result = run("predict", model, group, tmp_path / "out", "--array", "0/x")
    assert result.exit_code == 0, result.output
    labels = zarr.open_array(str(tmp_path / "out"), mode="r")[:]
    assert np.array_equal(labels, load(model).predict(rows))


@pytest.fixture(scope="module")
def table(rows):
    """Rows with keys; `third` is 1 in the second half of a block only."""
    days = np.array(["mon", "tue", "wed"])[np.arange(N) % 3]
    return pa.table(
        {
            "id": [f"row {i}" for i in range(N)],
            "y": rows[:, 1],
            "x": rows[:, 0],
            "day": days,
            "third": np.arange(N) // 1000,
        }
    )


@pytest.fixture
def parquet(tmp_path, table):
    path = str(tmp_path / "rows.parquet")
    pq.write_table(table, path, row_group_size=N)
    return path


def test_a_dry_run_knows_the_names_of_features(parquet, tmp_path):
    model = str(tmp_path / "m")
    rows = open_rows(parquet, columns=["x", "y"])
    GaussianMixture(K, random_state=0).fit(rows).save(model)
    for args in (
        ("score", model, parquet),
        ("predict", model, parquet, tmp_path / "o"),
    ):
        result = run_alone(*args, "--dry-run")  # warnings are errors here
        assert result.exit_code == 0, result.output


def test_storage_options_reach_the_store(run, parquet, tmp_path, rows):
    """A file system that does not know by itself where its paths begin."""
    options = (f"path={tmp_path}", "target_protocol=file")
    flags = [f"--storage-option={option}" for option in options]
    args = ("fit", "dir://rows.parquet", tmp_path / "m", "-k", K, "--columns=x,y")
    result = run(*args, "--seed", 0, *flags)
    assert result.exit_code == 0, result.output
    expected = GaussianMixture(K, random_state=0).fit(rows)
    np.testing.assert_allclose(load(tmp_path / "m").means_, expected.means_, rtol=1e-9)


def test_storage_options_are_json_where_they_can_be():
    texts = ("anon=true", "key=abc", 'secret="12"', 'more={"a": [1, 2]}', "empty=")
    found = options._storage_options(None, None, texts)
    more = {"a": [1, 2]}
    plain = {"anon": True, "key": "abc", "secret": "12", "empty": ""}
    assert found == {**plain, "more": more}


def test_parquet_in_and_out(run, parquet, tmp_path, rows, table):
    model, out = tmp_path / "m", tmp_path / "out.parquet"
    result = run("fit", parquet, model, "-k", K, "--columns", "x, y", "--seed", 0)
    assert result.exit_code == 0, result.output
    fitted, expected = load(model), GaussianMixture(K, random_state=0).fit(rows)
    np.testing.assert_allclose(fitted.means_, expected.means_, rtol=1e-9)
    # Without --columns, they are those of the fit.
    result = run("predict", model, parquet, out, "--key", "day", "--key", "id")
    assert result.exit_code == 0, result.output
    found = pq.read_table(out)
    assert found.column_names == ["day", "id", "component"]
    assert found.drop_columns("component").equals(table.select(["day", "id"]))
    assert np.array_equal(found["component"], expected.predict(rows))
    assert_failed(run("predict", model, parquet, out), "exists: pass --overwrite")
    listed = json.loads((out / "_daskgmm.json").read_text())["files"]
    assert sum(entry["rows"] for entry in listed) == N
    told = json.loads(run_alone("info", out, "--json").stdout)
    assert told["columns"] == ["day", "id", "component"]
    assert (told["rows"], told["complete"]) == (N, True)


@pytest.mark.parametrize(
    ("kind", "names", "method"),
    [
        ("proba", [f"probability_{k}" for k in range(K)], "predict_proba"),
        ("log-density", ["log_density"], "score_samples"),
    ],
)
def test_columns_of_parquet(run, store, model, tmp_path, rows, kind, names, method):
    out = tmp_path / "out.parquet"
    result = run("predict", model, store, out, "--kind", kind)
    assert result.exit_code == 0, result.output
    found = pq.read_table(out)
    assert found.column_names == names
    expected = getattr(load(model), method)(rows).reshape(N, -1)
    np.testing.assert_allclose(np.column_stack(found.columns), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("filters", "which"),
    [
        (["x > 3"], lambda t: t["x"] > 3),
        (["day == tue", "y<=1.5"], lambda t: (t["day"] == "tue") & (t["y"] <= 1.5)),
        (["third == 1"], lambda t: t["third"] == 1),
        (["day in 'mon','wed'"], lambda t: t["day"] != "tue"),
        (["third in [0, 2]"], lambda t: t["third"] != 1),
        (["third not  in 0,2"], lambda t: t["third"] == 1),
        (["day not in mon, wed"], lambda t: t["day"] == "tue"),
        (["day != mon"], lambda t: t["day"] != "mon"),
    ],
)
def test_filters(run, parquet, tmp_path, table, filters, which):
    """Rows that are left, in their order, beside their keys; also to Zarr."""
    frame, model = table.to_pandas(), tmp_path / "model"
    fitted = GaussianMixture(K, random_state=0).fit(frame[["x", "y"]])
    fitted.save(str(model))
    left = frame[which(frame)]
    options = [f"--filter={text}" for text in filters]
    result = run("predict", model, parquet, tmp_path / "o.pq", "--key=id", *options)
    assert result.exit_code == 0, result.output
    found = pq.read_table(tmp_path / "o.pq")
    assert found["id"].to_pylist() == left["id"].to_list()
    labels = fitted.predict(left[["x", "y"]])
    assert np.array_equal(found["component"], labels)
    result = run("predict", model, parquet, tmp_path / "o.zarr", *options)
    assert result.exit_code == 0, result.output
    assert np.array_equal(zarr.open_array(str(tmp_path / "o.zarr"))[:], labels)


def test_data_options_that_do_not_fit(run, store, model, parquet, tmp_path):
    predict = ("predict", model, store, tmp_path / "out.parquet")
    assert_failed(run("score", model, store, "--columns", "a"), "is not Parquet")
    assert_failed(run("score", model, store, "--filter", "a > 1"), "is not Parquet")
    assert_failed(run("score", model, parquet, "--array", "a"), "is not Zarr, which")
    assert_failed(run(*predict, "--key", "id"), "is not Parquet, which --key is for")
    usage = ("--filter=x", "--filter=x ~ 3", "--storage-option=a", "--columns=a,,b")
    for option in usage:
        assert run("score", model, parquet, option).exit_code == 2


def test_open_rows_opens_what_it_is_told(store, group, parquet, rows):
    assert np.array_equal(open_rows(store)[:], rows)
    assert np.array_equal(open_rows(group, array="0/x")[:], rows)
    found = open_rows(parquet, columns=["x", "y"], filters=[("third", "==", 1)])
    assert found.columns == ("x", "y")
    with pytest.raises(DataError, match="not Parquet"):
        open_rows(store, columns=["x"])
    with pytest.raises(StoreError, match=r"arrays x \(3000, 2\): name one .*array=…"):
        open_rows(f"{group}/0")


@pytest.mark.slow
def test_it_is_a_command_of_dask(store, tmp_path):
    command = str(Path(sys.executable).with_name("dask"))
    result = subprocess.run([command, "gmm", "--help"], capture_output=True, text=True)
    assert result.stdout.startswith("Usage: dask gmm [OPTIONS] COMMAND")
    args = ["fit", store, str(tmp_path / "m"), "-k", str(K), "--seed=0", "--workers=1"]
    result = subprocess.run([command, "gmm", *args], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert load(tmp_path / "m").converged_


def test_the_environment_configures_a_new_process():
    code = "from daskgmm import config; print(config.seconds('no-workers-timeout'))"
    environment = os.environ | {"DASK_DASKGMM__NO_WORKERS_TIMEOUT": "7 minutes"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert result.stdout == "420.0\n"


def daskgmm(*args):
    return subprocess.run(
        [sys.executable, "-m", "daskgmm", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("size", ["lots", "2 potatoes", "-1GB", ""])
def test_what_is_no_size_is_refused_by_its_option(store, tmp_path, size):
    limit = f"--memory-limit={size}"
    result = run_alone("fit", store, tmp_path / "m", "-k", K, limit)
    assert result.exit_code == 2
    assert "'--memory-limit'" in result.output
    assert "is not a size: write 2GB" in " ".join(result.output.split())


@pytest.mark.slow
def test_a_local_cluster_is_started_and_left(store, tmp_path, rows):
    options = ("--workers", 1, "--threads-per-worker", 2, "--memory-limit", "2GB")
    args = ("fit", store, tmp_path / "m", "-k", K, "--seed", 0)
    result = daskgmm(*args, *options)
    assert result.returncode == 0, result.stderr
    assert len(PASS.findall(result.stdout)) == load(tmp_path / "m").n_passes_
    assert result.stderr == ""


@pytest.mark.slow
def test_an_error_on_a_local_cluster_is_one_line(tmp_path):
    path = str(tmp_path / "broken")
    x = np.ones((100, 2))
    x[0, 0] = np.nan
    zarr.create_array(path, data=x, chunks=(50, 2))
    result = daskgmm("fit", path, tmp_path / "m", "-k", 2, "--workers", 1)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "NaN in block 0, row 0, column 0" in result.stderr


def wait_until(is_so, process):
    for _ in range(6000):
        if is_so():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("it never came to that")


@pytest.mark.parametrize(
    ("name", "parts"),
    [("out.zarr", 17), pytest.param("out.parquet", 50, marks=pytest.mark.slow)],
)
def test_a_killed_prediction_goes_on_with_the_same_bytes(
    run, tmp_path, name, parts, model
):
    """Processes are killed by SIGKILL, all at once, in the middle of the writing."""
    x = np.random.default_rng(0).normal(size=(1_000_000, D))
    store = tmp_path / "large.zarr"
    zarr.create_array(str(store), data=x, chunks=(20_000, D))
    out, undisturbed = tmp_path / name, tmp_path / f"undisturbed-{name}"
    args = ("predict", model, store, out, "--kind", "proba")
    command = [sys.executable, "-m", "daskgmm", *map(str, args), "--workers=1"]
    mark = "part-*.parquet" if name.endswith("parquet") else "c/*/0"
    with subprocess.Popen(
        [*command, "--threads-per-worker=1"],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        wait_until(lambda: len(list(out.glob(mark))) >= 3, process)
        os.killpg(process.pid, signal.SIGKILL)
    told = json.loads(run_alone("info", out, "--json").stdout)
    assert told["complete"] is False
    assert told["parts"] == parts
    assert 0 < told["parts_missing"] <= parts - 3
    result = run(*args, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["parts_found"] == parts - told["parts_missing"]
    run("predict", model, store, undisturbed, "--kind", "proba")
    assert contents(out) == contents(undisturbed)
    assert json.loads(run_alone("info", out, "--json").stdout)["complete"] is True


@pytest.mark.slow
@pytest.mark.parametrize("name", ["out.zarr", "out.parquet"])
def test_predictions_are_streamed(tmp_path, name, model):
    """The worker may not take what the rows take, nor what the answers take."""
    rows, n_chunks = 1_000_000, 60
    store = zarr.create_array(
        str(tmp_path / "large.zarr"),
        shape=(n_chunks * rows, D),
        chunks=(rows, D),
        dtype=float,
    )
    x = np.random.default_rng(0).normal(size=(rows, D)).round(2)
    for first in range(0, n_chunks * rows, rows):
        store[first : first + rows] = x
    limits = ("--workers=1", "--threads-per-worker=2", "--memory-limit=700MB")
    out = tmp_path / name
    args = ("predict", model, tmp_path / "large.zarr", out, "--kind", "proba")
    result = daskgmm(*args, *limits)
    assert result.returncode == 0, result.stderr
    told = json.loads(run_alone("info", out, "--json").stdout)
    assert (told["complete"], told["parts"]) == (True, n_chunks)
    expected = load(model).predict_proba(x)
    if name.endswith("zarr"):
        last = zarr.open_array(str(out), mode="r")[-rows:]
    else:
        last = np.column_stack(pq.read_table(sorted(out.glob("part-*"))[-1]).columns)
    np.testing.assert_allclose(last, expected, rtol=1e-12)


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


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


# --- what is read is not written to ---------------------------------------------------


def in_other_words(place, how):
    folder, name = os.path.split(place)
    if how == "link":
        os.symlink(place, f"{folder}/link")
        return f"{folder}/link"
    return {
        "the same": place,
        "URL": f"file://{place}",
        "dots": f"{folder}/./../{os.path.basename(folder)}/{name}",
        "slashes": f"{folder}//{name}/",
        "inside": f"{place}/out.zarr",
        "around": folder,
    }[how]


SPELLINGS = ("the same", "URL", "dots", "slashes", "link", "inside", "around")


def everything(folder):
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files}


@pytest.mark.parametrize("how", SPELLINGS)
@pytest.mark.parametrize("what", ["store", "model"])
def test_predict_writes_to_nothing_that_it_reads(store, model, tmp_path, how, what):
    before = everything(tmp_path)
    out = in_other_words({"store": store, "model": model}[what], how)
    for more in ([], ["--overwrite"]):
        result = run_alone("predict", model, store, out, *more)
        assert result.exit_code == 2, result.output
        assert f"{what.upper()} (" in result.stderr or how == "around"
        assert "Choose another place" in result.stderr
    assert everything(tmp_path) == before


@pytest.mark.parametrize("how", SPELLINGS)
@pytest.mark.parametrize("option", ["MODEL", "--checkpoint"])
@pytest.mark.parametrize("what", ["STORE", "--weights"])
def test_fit_writes_to_nothing_that_it_reads(store, tmp_path, how, option, what):
    weights = str(tmp_path / "w.zarr")
    zarr.create_array(weights, data=np.ones(N))
    before = everything(tmp_path)
    out = in_other_words({"STORE": store, "--weights": weights}[what], how)
    target = out if option == "MODEL" else str(tmp_path / "m")
    args = ["fit", store, target, "-k", K, "--weights", weights, "--overwrite"]
    args += [] if option == "MODEL" else ["--checkpoint", out]
    result = run_alone(*args)
    assert result.exit_code == 2, result.output
    assert "Choose another place" in result.stderr
    assert everything(tmp_path) == before


def test_fit_keeps_its_model_and_its_checkpoint_apart(store, tmp_path):
    args = ["fit", store, tmp_path / "m", "-k", K, "--checkpoint", tmp_path / "m/c"]
    result = run_alone(*args)
    assert result.exit_code == 2
    assert "--checkpoint" in result.stderr and "MODEL" in result.stderr


def test_sample_writes_to_nothing_that_it_reads(model, tmp_path):
    before = everything(tmp_path)
    for how in ("the same", "URL", "inside", "around"):
        result = run_alone("sample", model, in_other_words(model, how), "-n", 5)
        assert result.exit_code == 2
    assert everything(tmp_path) == before


@pytest.mark.parametrize("how", ["folder", "glob"])
def test_outputs_among_parquet_files(model, tmp_path, rows, how):
    """They would be rows, too, the next time."""
    (tmp_path / "cells").mkdir()
    for i, part in enumerate(np.split(rows, 3)):
        table = pa.table({"x": part[:, 0], "y": part[:, 1]})
        pq.write_table(table, tmp_path / "cells" / f"{i}.parquet")
    given = tmp_path / "cells" if how == "folder" else tmp_path / "cells" / "*.parquet"
    before = everything(tmp_path)
    out = tmp_path / "cells" / "labels.parquet"
    result = run_alone("predict", model, given, out)
    assert result.exit_code == 2
    assert "Choose another place" in result.stderr
    assert everything(tmp_path) == before


def test_a_chunk_that_was_repaired_is_predicted_anew(run, model, tmp_path, rows):
    """The labels of a chunk that was changed since are not those of the new rows."""
    broken = rows.copy()
    broken[2500, 1] = np.nan
    path, out = str(tmp_path / "broken"), tmp_path / "out"
    array = zarr.create_array(path, data=broken, chunks=(700, D))
    done = []
    while not done:  # a worker may begin with the chunk that fails
        assert_failed(run("predict", model, path, out), "NaN in block")
        done = [int(p.name) for p in out.glob("c/*")]
    changed = broken[done[0] * 700 :][:700]  # the last chunk has fewer rows
    changed[:] = rows[: len(changed)] + 1
    broken[2500, 1] = rows[2500, 1]
    array[:] = broken
    time.sleep(0.01)
    result = run("predict", model, path, out)
    assert result.exit_code == 0, result.output
    labels = zarr.open_array(str(out), mode="r")[:]
    assert np.array_equal(labels, load(model).predict(broken))


def test_the_list_of_commands_says_what_they_say():
    """It is written down, so that it costs no import; and is what click would make."""
    for name, (load_command, says) in COMMANDS.items():
        command = load_command()
        assert command.name == name
        assert command.get_short_help_str(limit=200) == says


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_loads_neither_arrays_nor_scikit_learn(option):
    code = (
        "import sys\n"
        "from daskgmm.__main__ import main\n"
        f"sys.argv = ['daskgmm', {option!r}]\n"
        "try:\n    main()\n"
        "finally:\n"
        "    heavy = {'dask.array', 'distributed', 'numpy', 'sklearn', 'zarr'}\n"
        "    print(sorted(heavy & set(sys.modules)))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (["--nan", "skip"], "nan was 'error' and is 'skip'"),
        (["--missing-chunks", "fill"], "missing_chunks was 'error' and is 'fill'"),
        (["--no-decode-cf"], "decode_cf was None and is False"),
        (["--array", "1/x"], r"data was '\S+, array 0/x' and is '\S+, array 1/x'"),
    ],
)
def test_predict_does_not_go_on_with_other_options(run, model, tmp_path, other, said):
    """The output would be of both, and say that it is complete."""
    path, out = str(tmp_path / "group"), tmp_path / "out"
    group, broken = zarr.open_group(path, mode="w"), np.full((N, D), np.nan)
    for name in ("0/x", "1/x"):
        group.create_array(name, data=broken, chunks=(700, D))
    args = ("predict", model, path, out, "--array", "0/x")
    assert_failed(run(*args), "NaN in block")
    assert_failed(run(*args, *other), said)
    assert_failed(run(*args), "NaN in block")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (["--filter", "third == 0"], r"filters was \[\] and is \[\['third', '==', '0'"),
        (["--columns", "y,x"], "gives y, x, and MODEL was fitted to x, y"),
        (["--key", "id"], r"keys was \[\] and is \['id'\]"),
    ],
)
def test_predict_of_parquet_does_not_go_on_with_other_options(
    run, tmp_path, table, other, said
):
    path, out = str(tmp_path / "broken.parquet"), tmp_path / "out.parquet"
    model = str(tmp_path / "model")
    frame = table.to_pandas()[["x", "y"]]
    GaussianMixture(K, random_state=0).fit(frame).save(model)
    at = table.column_names.index("x")
    broken = table.set_column(at, "x", pa.array(np.full(N, np.nan)))
    pq.write_table(broken, path, row_group_size=1000)
    args = ("predict", model, path, out)
    assert_failed(run(*args), "NaN")
    assert_failed(run(*args, *other), said)


def test_a_chunk_of_packed_numbers_that_was_repaired_is_predicted_anew(
    run, tmp_path, rows
):
    """Decoded rows are as old as the codes that they are made of."""
    path, out = str(tmp_path / "packed"), tmp_path / "out"
    codes = np.round(rows * 100).astype(np.int32)
    broken = codes.copy()
    broken[2500, 1] = -(10**6)
    array = zarr.create_array(path, data=broken, chunks=(100, D))
    array.update_attributes({"scale_factor": 0.01, "_FillValue": -(10**6)})
    model = str(tmp_path / "model")
    GaussianMixture(K, random_state=0).fit(codes * 0.01).save(model)
    while not list(out.glob("c/*")):  # a worker may begin with the chunk that fails
        assert_failed(run("predict", model, path, out, "--decode-cf"), "NaN in block")
    array[:] = codes[::-1]
    result = run("predict", model, path, out, "--decode-cf")
    assert result.exit_code == 0, result.output
    labels = zarr.open_array(str(out), mode="r")[:]
    assert np.array_equal(labels, load(model).predict(codes[::-1] * 0.01))


@pytest.mark.parametrize("name", ["scale_factor", "add_offset"])
def test_packed_numbers_that_mean_others_since_are_predicted_anew(
    run, tmp_path, rows, name
):
    """Their codes are as they were, so the store tells of no chunk that changed."""
    path, out = str(tmp_path / "packed"), tmp_path / "out"
    codes = np.round(rows * 100).astype(np.int32)
    codes[2500, 1] = nothing = -(10**6)
    array = zarr.create_array(path, data=codes, chunks=(100, D))
    array.update_attributes({"scale_factor": 0.01, "_FillValue": nothing})
    model = str(tmp_path / "model")
    GaussianMixture(K, random_state=0).fit(rows).save(model)
    while not list(out.glob("c/*")):  # a worker may begin with the chunk that fails
        assert_failed(run("predict", model, path, out, "--decode-cf"), "NaN in block")
    array.update_attributes({name: 0.03, "_FillValue": nothing + 1})
    result = run("predict", model, path, out, "--decode-cf")
    assert result.exit_code == 0, result.output
    labels = zarr.open_array(str(out), mode="r")[:]
    meant = open_rows(path, decode_cf=True)
    assert np.array_equal(labels, load(model).predict(meant.compute()))
