"""The demo, and that its checks do fail."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import dask
import numpy as np
import pytest
import zarr

from daskgmm import GaussianMixture
from daskgmm.demo import data as demo_data
from daskgmm.demo import run as demo

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Linux holds memory")


def run_demo(*args, timeout=500):
    return subprocess.run(
        [sys.executable, "-m", "daskgmm", "demo", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def run_python(code):
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


@pytest.mark.slow
def test_small(tmp_path):
    result = run_demo("--folder", tmp_path, "--size", 0.5, "--keep", "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    told = {"folder": str(tmp_path), "gigabytes": 0.5, "seed": 0, "passed": True}
    assert json.loads(result.stdout) == told
    assert "The truth was found, and the memory was kept to." in result.stderr
    assert (tmp_path / "mixture.png").read_bytes().startswith(b"\x89PNG")
    assert zarr.open_array(tmp_path / "rows.zarr", mode="r").nbytes >= 4.9e8


@pytest.mark.slow
@pytest.mark.timeout(600)
@LINUX
def test_whole(tmp_path):
    result = run_demo("--folder", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "each worker is refused the memory" in result.stdout
    assert not (tmp_path / "rows.zarr").exists()


def test_no_room_on_the_disk(tmp_path):
    result = run_demo("--folder", tmp_path, "--size", 1e9)
    assert result.returncode == 1
    assert "GB of disk" in result.stderr
    assert result.stderr.count("\n") == 1


def test_rows_follow_the_truth():
    truth = demo_data.make_truth(0)
    rows = demo_data.draw_block(truth, 200_000, 0)
    mean = truth.weights @ truth.means
    np.testing.assert_allclose(rows.mean(axis=0), mean, atol=0.05)
    centred = truth.means - mean
    covariance = np.einsum("k,kij->ij", truth.weights, truth.covariances)
    covariance += np.einsum("k,ki,kj->ij", truth.weights, centred, centred)
    np.testing.assert_allclose(np.cov(rows.T), covariance, atol=0.15)


def test_blocks_differ_and_do_not_depend_on_the_scheduler(tmp_path):
    truth = demo_data.make_truth(0)
    arrays = []
    for scheduler in ("synchronous", "threads"):
        with dask.config.set(scheduler=scheduler):
            demo_data.write(str(tmp_path / scheduler), truth, 2, seed=0)
        arrays.append(zarr.open_array(tmp_path / scheduler, mode="r")[:])
    assert np.array_equal(*arrays)
    assert not np.array_equal(*np.split(arrays[0], 2))


def a_model_of(truth, order):
    model = GaussianMixture(len(order))
    model.weights_ = truth.weights[order]
    model.means_ = truth.means[order]
    model.covariances_ = truth.covariances[order]
    return model


def test_components_are_matched_in_any_order():
    truth = demo_data.make_truth(0)
    found = demo.match(a_model_of(truth, [3, 1, 4, 0, 2]), truth)
    assert np.array_equal(found.means, truth.means)
    assert np.array_equal(found.weights, truth.weights)
    assert np.array_equal(found.covariances, truth.covariances)
    assert found.near


def test_errors_are_measured_in_standard_deviations():
    truth = demo_data.make_truth(0)
    model = a_model_of(truth, [0, 1, 2, 3, 4])
    model.means_ = (
        truth.means + np.array([0, 0.25, 0, 0, 0])[:, None] * truth.roots[1, 0]
    )
    found = demo.match(model, truth)
    np.testing.assert_allclose(found.mean_errors, [0, 0.25, 0, 0, 0], atol=1e-12)


@pytest.mark.parametrize(
    "errors", ["weight_errors", "mean_errors", "covariance_errors"]
)
def test_what_is_far_from_the_truth_is_not_near(errors):
    truth = demo_data.make_truth(0)
    found = demo.match(a_model_of(truth, [0, 1, 2, 3, 4]), truth)
    far = np.array([0, 0, 0, 0, 0.06])
    assert not dataclasses.replace(found, **{errors: far}).near
    assert not dataclasses.replace(found, **{errors: far * np.nan}).near


@pytest.mark.parametrize(
    ("peak", "refused", "restarted", "kept"),
    [
        (demo.BUDGET - 1, True, False, True),
        (demo.BUDGET + 1, True, False, False),
        (demo.BUDGET - 1, True, True, False),
        pytest.param(demo.BUDGET - 1, False, False, False, marks=LINUX),
    ],
)
def test_memory_is_kept_only_if_no_process_took_more_or_could_have(
    peak, refused, restarted, kept
):
    peaks = {"client and scheduler": 100.0, "worker 0": float(peak)}
    assert demo.Memory(peaks, refused, restarted).kept == kept


@LINUX
def test_held_memory_is_refused_and_less_is_given():
    code = """
from daskgmm.demo import memory
import numpy as np
before = memory.is_refused(10**9)
memory.hold_memory(600)
small = np.ones(10**8, dtype=np.uint8)
print(before, memory.is_refused(10**9), memory.is_refused(10**7))
"""
    assert run_python(code) == ["False", "True", "False"]


@LINUX
def test_peak_memory_is_of_this_process_and_outlives_its_use():
    code = """
from daskgmm.demo import memory
import numpy as np
before = memory.peak_memory()
np.ones(3 * 10**8, dtype=np.uint8)
print(before, memory.peak_memory())
"""
    before, after = map(float, run_python(code))
    assert 50 < before < after
    assert 250 < after - before < 350


@pytest.mark.parametrize("name", ["rows.zarr", "mixture.png"])
def test_what_is_not_the_demos_is_left_alone(tmp_path, name):
    """Data of that name in the folder would be replaced, and removed in the end."""
    if name == "rows.zarr":
        zarr.create_array(tmp_path / name, data=np.arange(6.0))
    else:
        (tmp_path / name).write_bytes(b"a picture of mine")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    result = run_demo("--folder", tmp_path, "--size", 0.45)
    assert result.returncode == 1
    assert f"{name} exists and is not of an earlier demo" in result.stderr
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_a_folder_that_is_an_array_is_left_alone(tmp_path):
    zarr.create_array(tmp_path / "x.zarr", data=np.arange(6.0))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    result = run_demo("--folder", tmp_path / "x.zarr", "--size", 0.45)
    assert result.returncode == 1
    assert "which is a Zarr array: choose another place" in result.stderr
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_what_an_earlier_demo_left_is_replaced(tmp_path):
    truth = demo_data.make_truth(0)
    for _ in range(2):
        demo_data.write(str(tmp_path / "rows.zarr"), truth, 1, 0)
    assert demo_data.is_of_demo(tmp_path / "rows.zarr")


@LINUX
def test_memory_is_held_no_longer_than_the_demo():
    """Whoever runs it from a program has all of the memory again, also after errors."""
    code = """
from daskgmm.demo import memory
def refused():
    return memory.is_refused(10**9)
print(refused())
with memory.held(600):
    print(refused())
print(refused())
try:
    with memory.held(600):
        1 / 0
except ZeroDivisionError:
    print(refused())
"""
    assert run_python(code) == ["False", "True", "False", "False"]


@LINUX
def test_what_a_process_takes_already_counts_as_held():
    """Python and its libraries alone are a good part of the demo's budget."""
    code = """
from daskgmm.demo import memory
import numpy as np, psutil
some = np.ones(10**8, dtype=np.uint8)
taken = psutil.Process().memory_info().rss
memory.hold_memory(600)
print(memory.is_refused(600 * 10**6 - taken // 2))
"""
    assert run_python(code) == ["True"]
