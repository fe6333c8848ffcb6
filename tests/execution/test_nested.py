"""Fits inside tasks, beside others, in forked processes, by asynchronous clients."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from itertools import groupby, pairwise

import dask
import dask.array as da
import joblib
import numpy as np
import pytest
import zarr
from conftest import blobs
from dask import delayed
from distributed import Client, LocalCluster
from sklearn.model_selection import GridSearchCV

from daskgmm import GaussianMixture, steps
from daskgmm.errors import ClusterError
from daskgmm.execution.cluster import compute, each
from daskgmm.kernel import compiling

pytestmark = pytest.mark.timeout(100)

X = blobs(0, 2000, 2, 2)
WITH_PROCESSES = pytest.param(True, marks=pytest.mark.slow)


def rows(pause=0.0):
    def read(block):
        time.sleep(pause)
        return block

    return da.from_array(X, chunks=(250, 2)).map_blocks(read)


def model(**parameters):
    return GaussianMixture(2, random_state=0, **parameters)


@contextmanager
def cluster(folder, *, processes=False, n_threads=1):
    """One worker: what waits in its only thread waits for ever."""
    with LocalCluster(
        n_workers=1,
        threads_per_worker=n_threads,
        processes=processes,
        dashboard_address=":0",
        local_directory=str(folder),
    ) as running:
        yield running


@pytest.fixture
def path(tmp_path):
    place = tmp_path / "rows.zarr"
    zarr.create_array(str(place), data=X, chunks=(250, 2))
    return str(place)


@pytest.fixture(scope="module")
def expected():
    return model().fit(rows()).lower_bound_


def fit(_i=0):
    return model().fit(rows()).lower_bound_


def fit_in_memory(_i=0):
    return model().fit(X).lower_bound_


def fit_and_ask(place):
    fitted = model().fit(place, checkpoint=f"{place}-checkpoint")
    labels = fitted.predict(place)
    return fitted.lower_bound_, fitted.score(place), int(labels.sum().compute())


def run_each(n):
    done = []

    def work(i):
        time.sleep(0.05)
        return i

    done.extend(each([delayed(work, pure=False)(i) for i in range(n)]))
    return len(done)


@pytest.mark.parametrize("processes", [False, WITH_PROCESSES])
def test_fits_inside_tasks_of_a_worker_of_one_thread(
    processes, tmp_path, path, expected
):
    with cluster(tmp_path, processes=processes) as running, Client(running) as client:
        at_once = [client.submit(fit, pure=False) for _ in range(3)]
        assert client.gather(at_once) == [expected] * 3
        assert delayed(fit)().compute() == expected
        in_memory = client.submit(fit_in_memory).result()
        assert in_memory == pytest.approx(expected, rel=1e-12)
        bound, score, n_second = client.submit(fit_and_ask, path).result()
        assert bound == pytest.approx(expected, rel=1e-12)
        assert score == pytest.approx(model().fit(X).score(X), rel=1e-9)
        assert n_second == model().fit(X).predict(X).sum()
        assert client.submit(run_each, 5).result() == 5
        of_blocks = rows().map_blocks(
            lambda block: np.full((len(block), 1), fit()),
            dtype=float,
            meta=np.empty((0, 0)),
        )
        assert of_blocks.max().compute() == of_blocks.min().compute() == expected


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_fits_inside_tasks_of_this_process(scheduler, expected):
    assert dask.compute(
        *[delayed(fit)(i) for i in range(4)], scheduler=scheduler
    ) == tuple([expected] * 4)


def test_a_grid_search_by_way_of_joblib(tmp_path):
    with (
        cluster(tmp_path) as running,
        Client(running),
        joblib.parallel_config("dask"),
    ):
        search = GridSearchCV(model(), {"n_components": [1, 2]}, cv=2).fit(X)
    assert search.best_params_ == {"n_components": 2}


def test_an_asynchronous_client_is_refused_but_for_another_thread(tmp_path, expected):
    async def work():
        async with Client(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            asynchronous=True,
            dashboard_address=":0",
            local_directory=str(tmp_path),
        ):
            in_memory = model().fit(X)
            for method in (in_memory.score, model().fit):
                with pytest.raises(ClusterError, match=r"asyncio\.to_thread"):
                    method(rows())
            there = await asyncio.to_thread(model().fit, rows())
            return in_memory.lower_bound_, there.lower_bound_

    bound, in_thread = asyncio.run(work())
    assert bound == pytest.approx(expected, rel=1e-12)
    assert in_thread == expected


def test_tasks_that_are_coroutines_are_told_so(tmp_path):
    async def coroutine():
        return fit()

    with (
        cluster(tmp_path) as running,
        Client(running) as client,
        pytest.raises(ClusterError, match="tasks that are functions"),
    ):
        client.submit(coroutine).result()


def _n_transitions(running):
    return running.scheduler.transition_counter


def test_each_fit_goes_to_the_client_of_its_thread(tmp_path, expected):
    found = {}

    def work(name, client):
        with client.as_current():
            found[name] = model().fit(rows(0.01)).lower_bound_

    with cluster(tmp_path) as one, cluster(tmp_path) as other:
        clients = {"one": Client(one), "other": Client(other, set_as_default=False)}
        threads = [threading.Thread(target=work, args=it) for it in clients.items()]
        before = _n_transitions(one), _n_transitions(other)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        after = _n_transitions(one), _n_transitions(other)
        for client in reversed(clients.values()):
            client.close()
    assert found == {"one": expected, "other": expected}
    assert after[0] > before[0] + 50
    assert after[1] > before[1] + 50


@pytest.mark.parametrize("had_client", [True, False])
def test_a_fit_stays_where_it_began(had_client, tmp_path, expected):
    """Another client becomes the current one while it is at work."""
    with cluster(tmp_path) as one, cluster(tmp_path) as other:
        opened = [Client(one)] if had_client else []
        n_before = _n_transitions(other)

        def observe(progress):
            if progress.n_pass == 1:
                opened.append(Client(other))

        fitted = model(tol=0, max_iter=4)
        with pytest.warns(match="did not converge"):
            fitted.fit(rows(), callback=observe)
        assert _n_transitions(other) == n_before
        for client in reversed(opened):  # each restores what was before it
            client.close()
    assert fitted.n_iter_ == 4


def test_a_client_that_is_closed_meanwhile_is_named(tmp_path):
    with cluster(tmp_path) as running:
        client = Client(running)

        def observe(progress):
            if progress.n_pass == 2:
                client.close()

        with pytest.raises(ClusterError, match=r"closed\. Connect a Client"):
            model(tol=0).fit(rows(), callback=observe)


def test_dasks_configuration_is_what_it_was_after_works_that_overlapped(tmp_path):
    threshold = "distributed.admin.large-graph-warning-threshold"
    before = dask.config.get(threshold)
    with cluster(tmp_path, n_threads=2) as running, Client(running):
        threads = [threading.Thread(target=fit) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert dask.config.get(threshold) == before


_FORK = """
import multiprocessing, sys, threading, warnings
warnings.simplefilter("ignore")
import dask, dask.array as da, numpy as np, pandas as pd, zarr
from distributed import Client, LocalCluster
from threadpoolctl import threadpool_info
from daskgmm import GaussianMixture, steps
from daskgmm.execution.threads import single_threaded_blas

folder = sys.argv[1]
x = np.random.default_rng(0).normal(size=(4000, 2))
x[::2] += 5
fork = multiprocessing.get_context("fork")

def fit(rows):
    return GaussianMixture(2, random_state=0).fit(rows).lower_bound_

def lazy():
    return da.from_array(x, chunks=(500, 2))

def predict():
    model = GaussianMixture(2, random_state=0).fit(x)
    return int(model.predict(lazy()).sum().compute())

def blas():
    with single_threaded_blas():
        inside = n_threads()
    return inside, n_threads()

def n_threads():
    return {i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"}

def in_child(work, *args):
    def child(queue):
        try:
            queue.put(work(*args))
        except Exception as error:
            queue.put(f"{type(error).__name__}: {error}")
    queue = fork.SimpleQueue()
    process = fork.Process(target=child, args=(queue,))
    process.start()
    process.join(30)
    if process.is_alive():
        process.kill()
        return "it hangs"
    return queue.get()

def same(works):
    for name, work, *args in works:
        expected, found = work(*args), in_child(work, *args)
        print(name, "same" if found == expected else found, flush=True)

def main():
    zarr.create_array(f"{folder}/x.zarr", data=x, chunks=(500, 2))
    pd.DataFrame(x, columns=["a", "b"]).to_parquet(f"{folder}/x.parquet")
    works = [
        ("array", fit, x),
        ("dask", fit, lazy()),
        ("zarr", fit, f"{folder}/x.zarr"),
        ("parquet", fit, f"{folder}/x.parquet"),
        ("predict", predict),
        ("blas", blas),
    ]
    same(works)
    with dask.config.set(scheduler="synchronous"):  # this thread reads
        same(works[2:4])
    go_on = threading.Event()
    def hold():
        with single_threaded_blas():
            go_on.wait()
    n_before = n_threads()
    holder = threading.Thread(target=hold)
    holder.start()
    while n_threads() != {1}:
        pass
    print("limit", in_child(n_threads) == n_before)
    with single_threaded_blas():
        print("own limit", in_child(n_threads) == {1})
    go_on.set()
    holder.join()
    options = {"n_workers": 1, "processes": False, "dashboard_address": ":0"}
    options["local_directory"] = folder
    with LocalCluster(protocol="tcp://", **options) as cluster, Client(cluster):
        expected = fit(lazy())
        print("client", in_child(fit, lazy()))
        print("client and predict", in_child(predict))
        def connect():
            with Client(cluster.scheduler_address):
                return fit(lazy())
        print("connected", in_child(connect) == expected)
        def start():
            with LocalCluster(**options) as own, Client(own):
                return fit(lazy())
        print("started", in_child(start) == expected)
        def on_threads():
            with dask.config.set(scheduler="threads"):
                return fit(lazy())
        print("on threads", in_child(on_threads) == expected)
        print("in memory", in_child(fit, x) == fit(x))

main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is forked there")
@pytest.mark.slow
def test_forked_processes_fit_or_say_why_not(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _FORK, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=90,
    )
    lines = done.stdout.splitlines()
    names = ["array", "dask", "zarr", "parquet", "predict", "blas", "zarr", "parquet"]
    assert lines[:8] == [f"{name} same" for name in names]
    assert lines[8:10] == ["limit True", "own limit True"]
    assert "client ClusterError: " in lines[10]
    assert "Connect a Client" in lines[10]
    assert "closed" in lines[11].lower()
    rest = ("connected", "started", "on threads", "in memory")
    assert lines[12:] == [f"{name} True" for name in rest]


SPANS = []
"""When pieces of work began and ended, by threads of this process."""


def note(seconds):
    began = time.monotonic()
    SPANS.append((began, np.inf))
    time.sleep(seconds)
    SPANS[SPANS.index((began, np.inf))] = began, time.monotonic()


def wait_and_note():
    assert compute(delayed(5)) == 5
    note(0.5)


def test_a_task_that_waited_takes_its_thread_again(tmp_path):
    """Else a worker does more at once than it has threads for."""
    SPANS.clear()
    with cluster(tmp_path) as running, Client(running) as client:
        first = client.submit(wait_and_note)
        rest = [client.submit(note, 0.05, pure=False) for _ in range(30)]
        client.gather([first, *rest])
    assert len(SPANS) == 31
    for (_, ended), (began, _) in pairwise(sorted(SPANS)):
        assert began >= ended - 0.01


def interrupt_once_begun():
    while not SPANS:
        time.sleep(0.01)
    signal.raise_signal(signal.SIGINT)


def test_what_has_not_begun_is_left_after_an_interrupt(tmp_path, request):
    """Also while the interrupt's traceback is kept, as notebooks keep it."""
    SPANS.clear()
    # Libraries and shells have their own ways with the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with cluster(tmp_path) as running, Client(running):
        works = [delayed(note)(0.2 + 1e-6 * number) for number in range(30)]
        thread = threading.Thread(target=interrupt_once_begun)
        thread.start()
        with pytest.raises(KeyboardInterrupt) as _kept:
            compute(delayed(works))
        thread.join()
        time.sleep(0.5)  # what had begun ends
        n_begun = len(SPANS)
        time.sleep(1.0)
        assert len(SPANS) == n_begun < len(works)


def compiled_for(seconds):
    with compiling._told():
        time.sleep(seconds)
    time.sleep(seconds)


def test_it_is_told_that_workers_compile(tmp_path):
    """What they do then is not counting rows, or whatever they were asked for."""
    with cluster(tmp_path) as running, Client(running):
        for seconds in (1.2, 0.0):  # the second time nothing of the first is left
            said = []
            work = delayed(compiled_for)(seconds)
            with steps.told_to(said.append):
                steps.begin("counting rows")
                compute(work, [work])
            names = [name for name, _ in groupby(step.name for step in said)]
            wanted = ["counting rows", steps.COMPILING, "counting rows"]
            assert names == (wanted if seconds else wanted[:1])
