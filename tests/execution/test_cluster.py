"""Faults of a real cluster: scheduler and workers in processes of their own, on TCP."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, nullcontext, suppress

import dask
import dask.array as da
import numpy as np
import psutil
import pytest
from conftest import blobs
from dask import delayed
from distributed import Client, LocalCluster, Status, get_worker
from distributed.chaos import KillWorker

from daskgmm import GaussianMixture
from daskgmm.errors import ClusterError
from daskgmm.execution.cluster import compute

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    # What the client says while its cluster is being broken.
    pytest.mark.filterwarnings("ignore:.*:ResourceWarning"),
    pytest.mark.usefixtures("nothing_kept"),  # rows take long to read in each pass
]

LIMITS = {
    "daskgmm.no-workers-timeout": "4s",
    "daskgmm.worker-timeout": "4s",
    "daskgmm.scheduler-timeout": "4s",
}
KEPT = {"daskgmm.cache-memory": 0.5}
N_BLOCKS, PAUSE = 40, 0.05


class Cluster:
    """A scheduler and workers that can be killed."""

    def __init__(self, folder, *options):
        self._folder = folder
        self._file = folder / "scheduler.json"
        self._processes = []
        self.scheduler = self._start(
            "scheduler", "--port", "0", "--no-dashboard", *options
        )
        while not self._file.exists():
            time.sleep(0.05)
        self.workers = []

    def _start(self, kind, *options, prefix=()):
        process = subprocess.Popen(
            [
                *prefix,
                *(sys.executable, "-m", "distributed.cli.dask_" + kind),
                *("--scheduler-file", str(self._file), *options),
            ],
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a nanny and its worker are killed together
        )
        self._processes.append(process)
        return process

    def add_worker(self, *options, prefix=()):
        """Start a worker of one thread, by another command if there is a prefix."""
        options = options or ("--no-nanny",)
        process = self._start(
            *("worker", "--nthreads", "1", "--no-dashboard", *options), prefix=prefix
        )
        self.workers.append(process)
        return process

    def client(self):
        return Client(scheduler_file=str(self._file), timeout=20)

    def send(self, process, sig):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sig)

    def close(self):
        for process in self._processes:
            self.send(process, signal.SIGKILL)
            process.wait()


@contextmanager
def cluster(folder, n_workers, *options):
    running = Cluster(folder)
    try:
        began = time.monotonic()
        for _ in range(n_workers):
            running.add_worker(*options)
        with running.client() as client:
            client.wait_for_workers(n_workers, timeout=60)
            # A worker is of use once it has loaded the kernel, which takes longer than
            # its start where others load it too.
            client.run(exec, "import daskgmm.kernel.passes")
            running.started_in = time.monotonic() - began
            yield running, client
    finally:
        running.close()


X = blobs(0, 4000, 2, 3, spread=1.5)


def slow_rows(pause=PAUSE):
    """Rows that take a while to read: a pass takes a second or so."""

    def read(block):
        time.sleep(pause)
        return block

    return da.from_array(X, chunks=(len(X) // N_BLOCKS, 2)).map_blocks(read)


def model(**parameters):
    return GaussianMixture(3, random_state=0, tol=0, max_iter=5, n_init=2, **parameters)


@pytest.fixture(scope="module")
def expected():
    return model().fit(da.from_array(X, chunks=(len(X) // N_BLOCKS, 2)))


def assert_same(got, expected):
    for name in ("weights_", "means_", "covariances_", "lower_bounds_", "n_iter_"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))


@contextmanager
def meanwhile(work):
    """Do something in another thread during the body."""
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("accelerate", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_worker_is_killed(tmp_path, seed, accelerate):
    """At a random moment of the fit."""
    rng = random.Random(seed)
    parameters = {"accelerate": accelerate, "init_size": 200}
    expected = model(**parameters).fit(da.from_array(X, chunks=(len(X) // N_BLOCKS, 2)))
    with cluster(tmp_path, 3) as (running, _):

        def kill(stop):
            stop.wait(rng.uniform(0.5, 3.0))
            running.send(running.workers[0], signal.SIGKILL)

        with meanwhile(kill):
            assert_same(model(**parameters).fit(slow_rows()), expected)


def test_a_worker_is_killed_with_what_it_keeps(tmp_path, expected, monkeypatch):
    """Another one reads again what was in its memory."""
    # Work that goes over to an idle worker is read there again, too.
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__WORK_STEALING", "False")
    with cluster(tmp_path, 2) as (running, _), dask.config.set(KEPT):
        read = []

        def kill(progress):
            read.append(progress.n_bytes)
            if progress.n_pass == 2:
                running.send(running.workers[0], signal.SIGKILL)

        got = model()
        got.fit(slow_rows(), sample_weight=None, callback=kill)
        assert_same(got, expected)
        # Dask may still begin a task where what it needs is not, if it is free there.
        assert read[1] <= X.nbytes / 20 < sum(read[2:]) < X.nbytes


@pytest.mark.parametrize("pause", [2.0, 4.0])
def test_workers_are_killed_again_and_again(tmp_path, expected, pause):
    """Each time one is killed, with its nanny, another one comes."""
    rng = random.Random(3)
    with cluster(tmp_path, 2, "--nanny") as (running, _):
        # Workers that died as fast as others start would never end a task.
        pause, killed = max(pause, running.started_in), []

        def kill(stop):
            while not stop.wait(pause):
                running.send(running.workers.pop(rng.randrange(2)), signal.SIGKILL)
                killed.append(running.add_worker("--nanny"))

        with meanwhile(kill):
            assert_same(model().fit(slow_rows(0.01 * pause)), expected)
        assert killed


@pytest.mark.parametrize("seed", [0, 1])
def test_workers_are_killed_while_their_nannies_start_them(tmp_path, expected, seed):
    """Nannies come during the fit, and lose what they start, which they start again.

    Two at most: more would take the processors from the worker that does the work.
    """
    rng = random.Random(seed)
    with cluster(tmp_path, 1) as (running, _):
        killed = []

        def break_starts(stop):
            while not stop.is_set():
                process = running.add_worker("--nanny")
                nanny = psutil.Process(process.pid)
                stop.wait(2.5 * rng.random())
                for child in nanny.children(recursive=True):
                    with suppress(psutil.NoSuchProcess):
                        child.kill()
                        killed.append(child.pid)
                if len(running.workers) > 2:  # the first one stays
                    running.send(running.workers.pop(1), signal.SIGKILL)

        with meanwhile(break_starts):
            assert_same(model().fit(slow_rows(0.04)), expected)
        assert killed


@pytest.mark.parametrize("mode", ["sys.exit", "graceful", "segfault"])
def test_chaos(tmp_path, expected, mode):
    """Dask's own plugin ends every worker at a random time; new ones are started."""
    # Longer than a worker takes to import all while others start beside it.
    patient = dict.fromkeys(LIMITS, "30s")
    with cluster(tmp_path, 3, "--nanny") as (running, client), dask.config.set(patient):
        # Workers that died as fast as others start would never end a task.
        delay = max(10.0, 4 * running.started_in)
        client.register_plugin(KillWorker(delay=f"{delay} s", mode=mode))

        def addresses():
            return set(client.scheduler_info(n_workers=-1)["workers"])

        def supervise(stop):
            """Nannies do not replace what exits in peace."""
            while not stop.wait(1.0):
                if len(addresses()) < 3 and len(running.workers) < 60:
                    running.add_worker("--nanny")

        before = addresses()
        with meanwhile(supervise):
            while addresses() == before:
                assert_same(model().fit(slow_rows(0.04)), expected)


@contextmanager
def link(name):
    """A network namespace with a link to this one; yields its name."""

    def ip(*arguments):
        subprocess.run(["ip", *arguments], check=True)

    ip("netns", "add", name)
    try:
        ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("addr", "add", "10.213.77.1/30", "dev", name)
        ip("link", "set", name, "up")
        inside = ("-n", name)
        ip(*inside, "addr", "add", "10.213.77.2/30", "dev", "eth0")
        ip(*inside, "link", "set", "eth0", "up")
        ip(*inside, "link", "set", "lo", "up")
        yield name
    finally:
        ip("netns", "del", name)


@pytest.mark.cluster
def test_a_worker_is_cut_off_from_the_network(tmp_path, expected):
    """Its host's link goes down: nobody is told that connections are gone."""
    with link("daskgmm-cut") as host:
        running = Cluster(tmp_path, "--host", "10.213.77.1")
        try:
            far = ("ip", "netns", "exec", host)
            running.add_worker("--no-nanny", "--host", "10.213.77.2", prefix=far)
            running.add_worker("--no-nanny", "--host", "10.213.77.1")
            with running.client() as client, dask.config.set(LIMITS):
                client.wait_for_workers(2, timeout=30)
                cut = []

                def cut_off(stop):
                    stop.wait(1.5)
                    subprocess.run(["ip", "link", "set", host, "down"], check=True)
                    cut.append(time.monotonic())

                with meanwhile(cut_off):
                    assert_same(model().fit(slow_rows()), expected)
                ended = time.monotonic()
                assert 0 < ended - cut[0] < 90  # the scheduler alone takes 5 minutes
                [left] = client.scheduler_info(n_workers=-1)["workers"]
                assert "10.213.77.1" in left
        finally:
            running.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_all_workers_are_gone_and_a_rerun_goes_on(tmp_path, expected, how):
    with cluster(tmp_path, 2) as (running, _), dask.config.set(LIMITS):
        passes = []

        def stop_all(progress):
            passes.append(progress.n_pass)
            if progress.n_pass == 2:
                for worker in running.workers:
                    running.send(worker, how)

        began = time.monotonic()
        with pytest.raises(ClusterError, match="has had no workers for 4 s"):
            model().fit(
                slow_rows(),
                sample_weight=None,
                callback=stop_all,
                checkpoint=tmp_path / "checkpoint",
                checkpoint_interval=1,
            )
        assert time.monotonic() - began < 60
        assert passes == [1, 2]
        running.add_worker()
        resumed, passes = model(), []
        resumed.fit(
            slow_rows(),
            sample_weight=None,
            callback=lambda p: passes.append(p.n_pass),
            checkpoint=tmp_path / "checkpoint",
            checkpoint_interval=1,
        )
        assert passes == [3, 4, 5]
        assert_same(resumed, expected)


def test_new_workers_come_in_time(tmp_path, expected):
    with (
        cluster(tmp_path, 1) as (running, _),
        dask.config.set({**LIMITS, "daskgmm.no-workers-timeout": "30s"}),
    ):

        def replace(stop):
            stop.wait(1.5)
            running.send(running.workers[0], signal.SIGKILL)
            stop.wait(4.0)
            running.add_worker()

        with meanwhile(replace):
            assert_same(model().fit(slow_rows()), expected)


def test_a_result_that_takes_long_to_send(tmp_path):
    """Looking at the workers meanwhile must not break off what is being sent."""

    class SlowToSend:
        def __reduce__(self):
            time.sleep(1.5)
            return str, ("sent",)

    with cluster(tmp_path, 1), dask.config.set(LIMITS):
        assert compute(delayed(SlowToSend)()) == "sent"


def test_an_error_of_the_work_comes_out_as_it_is(tmp_path):
    def fail():
        raise TimeoutError("of the work itself")

    with (
        cluster(tmp_path, 1),
        dask.config.set(LIMITS),
        pytest.raises(TimeoutError, match="of the work itself"),
    ):
        compute(delayed(fail)())


def test_a_cluster_that_grows_gets_more_pieces(tmp_path, expected):
    """A fit that began with one worker gives work to many that come."""
    with cluster(tmp_path, 1) as (running, client):
        at_work = []

        def observe(progress):
            if progress.n_pass == 1:
                for _ in range(5):
                    running.add_worker()
                client.wait_for_workers(6, timeout=60)
            held = client.has_what()
            at_work.append(sum("shard-" in str(keys) for keys in held.values()))

        grown = model()
        grown.fit(slow_rows(), sample_weight=None, callback=observe)
        assert at_work[0] == 1
        assert at_work[-1] > 4  # as many pieces as there were at first
        assert_same(grown, expected)


def test_a_frozen_worker_is_left_behind(tmp_path, expected):
    with cluster(tmp_path, 2) as (running, _), dask.config.set(LIMITS):

        def freeze(stop):
            stop.wait(1.5)
            running.send(running.workers[0], signal.SIGSTOP)

        began = time.monotonic()
        with meanwhile(freeze):
            assert_same(model().fit(slow_rows()), expected)
        assert time.monotonic() - began < 60  # the scheduler alone takes 5 minutes


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_the_scheduler_is_gone_and_a_rerun_goes_on(tmp_path, expected, how):
    place = tmp_path / "checkpoint"
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    with cluster(first, 2) as (running, _), dask.config.set(LIMITS):
        stopped = []

        def stop(progress):
            if progress.n_pass == 2:
                running.send(running.scheduler, how)
                stopped.append(time.monotonic())

        with pytest.raises(ClusterError, match="connection to the scheduler at tcp://"):
            model().fit(
                slow_rows(),
                sample_weight=None,
                callback=stop,
                checkpoint=place,
                checkpoint_interval=1,
            )
        assert time.monotonic() - stopped[0] < 30
        running.send(running.scheduler, signal.SIGKILL)
    with cluster(second, 2):
        resumed, passes = model(), []
        resumed.fit(
            slow_rows(),
            sample_weight=None,
            callback=lambda p: passes.append(p.n_pass),
            checkpoint=place,
            checkpoint_interval=1,
        )
        assert passes == [3, 4, 5]
        assert_same(resumed, expected)


MEMORY = 600_000_000
HELD = []  # of a worker's process


@contextmanager
def small_workers():
    """Two workers of little memory, which they do not spill."""
    with (
        dask.config.set({"distributed.worker.memory.spill": False}),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            memory_limit=MEMORY,
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        # Workers that begin by importing all of this give no sign of life meanwhile.
        client.run(take_nothing)
        with dask.config.set(LIMITS):
            yield client


def take_nothing():
    """What a worker does once it has imported this file."""


def take_memory():
    """Take so much memory that Dask pauses this worker."""
    held = []
    while psutil.Process().memory_info().rss < 0.85 * MEMORY:
        held.append(np.ones(1_000_000))
    return held


def keep_memory():
    """As `take_memory`, for good."""
    HELD.extend(take_memory())


def test_workers_that_are_paused_for_want_of_memory():
    """Something else fills their memory, and they do not die of it."""
    with small_workers() as client:
        client.run(keep_memory)
        with pytest.raises(ClusterError, match="paused for want of memory for 4 s"):
            model().fit(slow_rows())


def pause_with_work(address):
    """In a task of that worker: have it paused once it was given another one."""
    worker = get_worker()
    waiting = any(task.state == "ready" for task in list(worker.state.tasks.values()))
    if worker.address == address and waiting and not HELD:
        keep_memory()
        while worker.status is not Status.paused:
            time.sleep(0.05)


def test_a_worker_that_is_paused_with_work_is_left_behind(expected):
    """Paused when it was given tasks, which it never begins."""
    # Which would take these tasks, or leave it one, as it happens.
    no_stealing = dask.config.set({"distributed.scheduler.work-stealing": False})
    with no_stealing, small_workers() as client:
        full = next(iter(client.scheduler_info()["workers"]))

        def read(block):
            time.sleep(PAUSE)
            pause_with_work(full)
            return block

        rows = da.from_array(X, chunks=(len(X) // N_BLOCKS, 2))
        rows = rows.map_blocks(read, dtype=float, meta=np.empty((0, 0)))
        assert_same(model().fit(rows), expected)
        assert full not in client.scheduler_info()["workers"]


def test_paused_workers_that_are_at_work_are_waited_for():
    """A long task may pause its worker by its own memory; all workers may be at one."""

    def work(number):
        held = take_memory()
        time.sleep(10)
        return number if held else None

    with small_workers():
        assert compute(delayed([delayed(work)(i) for i in range(2)])) == [0, 1]


def test_a_block_that_is_too_large_for_the_workers_is_named(tmp_path):
    def make(block_id=None):
        return np.ones((6_000_000, 4)) * np.arange(4)

    rows = da.map_blocks(
        make, chunks=((6_000_000,) * 2, (4,)), dtype=float, meta=np.empty((0, 0))
    )
    with (
        cluster(tmp_path, 2, "--nanny", "--memory-limit", "350MB"),
        dask.config.set({"daskgmm.pass-retries": 0}),
        pytest.raises(ClusterError, match="largest block takes 192 MB"),
    ):
        model().fit(rows)


def test_a_cluster_restarted_meanwhile_gives_the_model_or_an_error(tmp_path, expected):
    found = []

    def fit(client):
        with client.as_current():
            try:
                found.append(model().fit(slow_rows()))
            except ClusterError as error:
                found.append(str(error))

    with cluster(tmp_path, 2, "--nanny") as (running, client):
        for by_another in (False, True):
            thread = threading.Thread(target=fit, args=(client,))
            thread.start()
            time.sleep(1.0)
            with running.client() if by_another else nullcontext(client) as other:
                other.restart(timeout=60)
            thread.join(60)
            assert not thread.is_alive()
            got = found.pop()
            if isinstance(got, str):
                assert "was cancelled" in got
            else:
                assert_same(got, expected)
            with client.as_current():
                assert_same(model().fit(slow_rows()), expected)
