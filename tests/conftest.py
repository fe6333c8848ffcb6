"""Data and mixtures that many tests use."""

from __future__ import annotations

import os
from collections import Counter

import dask
import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from distributed import Client, LocalCluster
from hypothesis import settings

from daskgmm.cli.main import main
from daskgmm.kernel import passes
from daskgmm.kernel.layout import as_rows
from daskgmm.mixtures.covariance import SHAPES
from daskgmm.mixtures.e_step import e_step, message, moments
from daskgmm.mixtures.gaussian import Mixture

# gcsfs would ask for a bucket's kind by gRPC, which the emulator does not know, and
# wait for a minute each time. It looks for this once, where it is first imported.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"

# A machine that is busy takes its time: no example fails for that.
settings.register_profile("daskgmm", deadline=None)
settings.load_profile("daskgmm")

COVARIANCE_TYPES = ("full", "tied", "diag", "spherical")
INIT_PARAMS = ("kmeans", "k-means++", "random", "random_from_data")


def random_covariances(rng, covariance_type, n_components, d, scale=1.0):
    """Well-conditioned covariances of any shape."""
    roots = rng.normal(size=(n_components, d, d)) / np.sqrt(d)
    matrices = (roots @ roots.transpose(0, 2, 1) + 0.2 * np.eye(d)) * scale**2
    diagonals = np.einsum("kii->ki", matrices)
    return {
        "full": matrices,
        "tied": matrices[0],
        "diag": diagonals.copy(),
        "spherical": diagonals.mean(axis=1),
    }[covariance_type]


def random_mixture(rng, covariance_type, n_components, d, *, spread=3.0, scale=1.0):
    """A mixture with random parameters."""
    shape = SHAPES[covariance_type]
    covariances = random_covariances(rng, covariance_type, n_components, d, scale)
    return Mixture(
        shape,
        rng.dirichlet(np.full(n_components, 5.0)),
        rng.normal(size=(n_components, d)) * spread,
        covariances,
        shape.factors(covariances),
    )


def blobs(seed, n, d, n_components, spread=4.0):
    """Rows (n, d) from a random full mixture, shuffled."""
    rng = np.random.default_rng(seed)
    mixture = random_mixture(rng, "full", n_components, d, spread=spread)
    x, _ = mixture.sample(n, np.random.RandomState(seed))
    return rng.permutation(x)


def create_zarr(place, x, **layout):
    """A Zarr array of x; sharded ones given data at once are corrupt in old Zarr."""
    array = zarr.create_array(str(place), shape=x.shape, dtype=x.dtype, **layout)
    array[:] = x
    return array


LEFT_OUT = pytest.StashKey[Counter]()
RUN_BY = {"slow": "make test-slow", "cluster": "make test-cluster"}
"""Which command runs the tests of a marker, the last one if they have several."""


def pytest_deselected(items):
    """Count the tests that are left out, by what would run them."""
    for item in items:
        names = [name for name in RUN_BY if item.get_closest_marker(name)]
        if names and f"not {names[-1]}" in item.config.option.markexpr:
            counts = item.config.stash.setdefault(LEFT_OUT, Counter())
            counts[names[-1]] += 1


def pytest_sessionfinish(session):
    """Tell the process that started this one, where tests run in several."""
    if hasattr(session.config, "workeroutput"):
        counts = session.config.stash.get(LEFT_OUT, Counter())
        session.config.workeroutput["left out"] = dict(counts)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Take what such a process tells: each of them has collected all tests."""
    counts = getattr(node, "workeroutput", {}).get("left out", {})
    node.config.stash[LEFT_OUT] = Counter(counts)


def pytest_terminal_summary(terminalreporter, config):
    """Say what was left out, and how to run it."""
    for name, count in sorted(config.stash.get(LEFT_OUT, Counter()).items()):
        terminalreporter.write_line(
            f"left out: {count} tests marked {name}; run them with {RUN_BY[name]}"
        )


def current_client():
    """The client that fits go to, if there is one."""
    try:
        return Client.current()
    except ValueError:
        return None


@pytest.fixture(autouse=True)
def _no_client_left():
    """The fits of the next tests would go to its workers, and wait for them."""
    before = current_client()
    yield
    assert current_client() is before


@pytest.fixture
def nothing_kept(monkeypatch):
    """Every pass reads all rows, here and in new processes."""
    monkeypatch.setenv("DASK_DASKGMM__CACHE_MEMORY", "0")
    with dask.config.set({"daskgmm.cache-memory": 0}):
        yield


@pytest.fixture(params=COVARIANCE_TYPES)
def covariance_type(request):
    """Each covariance type in turn."""
    return request.param


@pytest.fixture(params=INIT_PARAMS)
def init_params(request):
    """Each way to start in turn."""
    return request.param


def sums_over(its, parts):
    """What the kernel adds up over parts of rows, one after the other."""
    added, scratch = np.zeros(its.padded_size), its.scratch()
    for part in parts:
        passes.accumulate(its.compiled_plan, as_rows(part), None, added, scratch)
    return added


def moments_over(shards, mixture):
    """What a pass over shards gives of one mixture."""
    sent = message([mixture])
    [found] = moments(sent, shards.reduce(e_step, sent), [mixture])
    return found


@pytest.fixture(scope="module")
def address():
    """A scheduler to talk to over TCP, with two workers, in this process.

    Not for longer: Hypothesis notices that its threads use Python's random numbers.
    """
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=False,
        protocol="tcp",
        dashboard_address="127.0.0.1:0",
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def run(address):
    """Run a command, on that cluster unless it uses none."""

    def run(command, *args, scheduler=True, **options):
        at = ["--scheduler", address] if scheduler else []
        return CliRunner().invoke(main, [command, *map(str, args), *at], **options)

    return run
