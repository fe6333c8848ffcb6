"""Machines with vectors of other lengths work on one fit, or one after the other."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import COVARIANCE_TYPES, random_mixture
from distributed import Client

from daskgmm import GaussianMixture

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

WIDTHS = (128, 256, 512)
FOLDERS = (os.getcwd(), *map(str, Path(__file__).parents[:2]))
PLACES = {"PYTHONPATH": os.pathsep.join(FOLDERS)}
ANSWERS = ("predict", "predict_proba", "score_samples")
SAME = 1e-12


def with_width(bits):
    return {**os.environ, **PLACES, "DASKGMM_VECTOR_BITS": str(bits)}


@contextmanager
def cluster(folder, *widths):
    """A scheduler, and a worker process for each width; yields the scheduler's file."""
    file = folder / "scheduler.json"

    def start(kind, *options, bits=256):
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}"]
        return subprocess.Popen(
            [*command, "--scheduler-file", str(file), "--no-dashboard", *options],
            env=with_width(bits),
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    processes = [start("scheduler", "--port", "0")]
    try:
        for bits in widths:
            options = ("--no-nanny", "--nthreads", "1")
            processes.append(start("worker", *options, bits=bits))
        yield file
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


def run(bits, function, *arguments):
    """Run a function of this module in a process of a width; return what it returns."""
    script = (
        "import pickle, sys, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "import test_widths\n"
        "function, arguments = pickle.load(sys.stdin.buffer)\n"
        "found = getattr(test_widths, function)(*arguments)\n"
        "sys.stdout.buffer.write(b'FOUND' + pickle.dumps(found))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=pickle.dumps((function.__name__, arguments)),
        env=with_width(bits),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return pickle.loads(done.stdout.partition(b"FOUND")[2])


CASES = [
    *((name, d, 3) for name in COVARIANCE_TYPES for d in range(1, 21)),
    # More components than products of features, and so not whitened at once.
    *(("tied", d, d * (d + 1) + 1) for d in (1, 2)),
]


def rows_of(covariance_type, d, k):
    rng = np.random.default_rng(100 * d + k)
    mixture = random_mixture(rng, "full", min(k, 3), d, spread=4.0)
    x, _ = mixture.sample(1500, np.random.RandomState(d))
    return rng.permutation(x)


def model_of(covariance_type, d, k, **parameters):
    usual = {
        "covariance_type": covariance_type,
        "init_params": "random_from_data",
        "max_iter": 4,
        "random_state": 1,
        "reg_covar": 1e-2,
        "tol": 0,
    }
    return GaussianMixture(k, **usual | parameters)


def what_is_found(model, x):
    fitted = {
        name: np.asarray(getattr(model, name))
        for name in ("weights_", "means_", "covariances_", "lower_bounds_")
    }
    answers = {name: np.asarray(getattr(model, name)(x)) for name in ANSWERS}
    return fitted | answers | {"score": np.asarray(model.score(x))}


def fit_all(parquet):
    """All cases, by whichever scheduler Dask has."""
    found = {}
    for case in CASES:
        x = da.from_array(rows_of(*case), chunks=(200, case[1]))
        found[case] = what_is_found(model_of(*case).fit(x), x)
    of_file = model_of("full", 3, 3).fit(parquet)
    return found | {"parquet": what_is_found(of_file, parquet)}


def fit_all_on(file, parquet):
    """All cases, on a cluster; and the width of each worker, once it compiled."""
    with Client(scheduler_file=file, timeout=60) as client:
        client.wait_for_workers(2, timeout=60)
        return fit_all(parquet), sorted(client.run(width_once_compiled).values())


def fit_all_here(parquet):
    """All cases in this process."""
    with dask.config.set(scheduler="synchronous"):
        return fit_all(parquet)


def width_once_compiled():
    from daskgmm.kernel import passes, simd

    return simd.VECTOR_BITS if passes._enter._entry is not None else 0


def assert_same(got, expected, about):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        if name == "predict":
            np.testing.assert_array_equal(got[name], value, err_msg=f"{about} {name}")
            continue
        largest = np.abs(value).max()
        difference = np.abs(got[name] - value).max()
        assert difference <= SAME * largest, (about, name, difference / largest)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """A Parquet file of several row groups, which are cut where tiles end."""
    place = tmp_path_factory.mktemp("rows") / "x.parquet"
    x = np.concatenate([rows_of("full", 3, 3)] * 4)
    table = pa.table({f"x{j}": column for j, column in enumerate(x.T)})
    pq.write_table(table, place, row_group_size=1700)
    return str(place)


@pytest.fixture(scope="module")
def alone(parquet):
    """What one process finds, by its width."""
    return {bits: run(bits, fit_all_here, parquet) for bits in WIDTHS}


def test_every_width_finds_the_same(alone):
    for bits in WIDTHS:
        for case, expected in alone[256].items():
            assert_same(alone[bits][case], expected, (bits, case))


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("of_client", "of_workers"),
    [(256, (256, 512)), (512, (128, 256))],
)
def test_a_cluster_of_any_mix_finds_the_same(
    tmp_path, parquet, alone, of_client, of_workers
):
    with cluster(tmp_path, *of_workers) as file:
        found, widths = run(of_client, fit_all_on, str(file), parquet)
    assert tuple(widths) == of_workers
    for case, expected in alone[256].items():
        assert_same(found[case], expected, case)


class _Broken(Exception):
    pass


def fit_with_checkpoint(case, url, passes):
    """Fit with a checkpoint, or break off after some passes; return what is found."""
    x = rows_of(*case)
    model = model_of(*case, max_iter=8, n_init=2)

    def observe(progress):
        if progress.n_pass == passes:
            raise _Broken

    try:
        model.fit(x, callback=observe, checkpoint=url, checkpoint_interval=1)
    except _Broken:
        return None
    return what_is_found(model, x)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_checkpoint_is_gone_on_from_by_another_width(tmp_path, covariance_type):
    case = (covariance_type, 5, 3)
    expected = run(256, fit_with_checkpoint, case, str(tmp_path / "whole"), None)
    for first, then in ((256, 512), (512, 256), (128, 512)):
        url = str(tmp_path / f"{first}-{then}")
        assert run(first, fit_with_checkpoint, case, url, 4) is None
        assert_same(run(then, fit_with_checkpoint, case, url, None), expected, case)
