"""As many threads as the user says: for rows in memory, in fits and in questions."""

from __future__ import annotations

import subprocess
import sys
import threading

import dask
import dask.local
import joblib
import numpy as np
import pytest
from conftest import blobs
from dask.system import CPU_COUNT

from daskgmm import GaussianMixture
from daskgmm.execution.threads import n_threads
from daskgmm.kernel import passes

X = blobs(0, 200_000, 8, 4)


class AtWork:
    """Counts the threads that are in a function at once; as many as expected meet."""

    def __init__(self, function, expected):
        self._function, self._meeting = function, threading.Barrier(expected)
        self._to_meet, self._lock = expected, threading.Lock()
        self._now = self.most = 0

    def __call__(self, *args):
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            is_met, self._to_meet = self._to_meet <= 0, self._to_meet - 1
        try:
            if not is_met:
                self._meeting.wait(timeout=20)
            return self._function(*args)
        finally:
            with self._lock:
                self._now -= 1


@pytest.mark.parametrize("work", ["fit", "predict", "score_samples", "predict_proba"])
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"num_workers": 1}, 1),
        ({"num_workers": 3}, 3),
        ({"scheduler": "synchronous"}, 1),
        ({"scheduler": "Sync", "num_workers": 3}, 1),
        ({"scheduler": dask.local.get_sync}, 1),
        ({"scheduler": "threads", "num_workers": 2}, 2),
    ],
)
def test_as_many_as_dask_is_given(monkeypatch, work, said, expected):
    model = GaussianMixture(4, random_state=0, tol=1.0).fit(X)
    name = "accumulate" if work == "fit" else "evaluate"
    at_work = AtWork(getattr(passes, name), expected)
    monkeypatch.setattr(passes, name, at_work)
    with dask.config.set(said):
        assert n_threads() == expected
        getattr(model, work)(X)
    assert at_work.most == expected


@pytest.mark.parametrize(
    ("left", "expected"),
    [("1", 1), ("1,4", 1), ("1000", CPU_COUNT), ("0", CPU_COUNT), ("", CPU_COUNT)],
)
def test_no_more_than_openmp_may_take(monkeypatch, left, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", left)
    # A test before may have had workers here: then all is set that Dask sets for them.
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    assert n_threads() == expected
    with dask.config.set(num_workers=7):
        assert n_threads() == 7


_WORKERS_HERE = """
from daskgmm import GaussianMixture
from distributed import LocalCluster
from daskgmm.execution.threads import n_threads

if __name__ == "__main__":
    before = n_threads()
    with LocalCluster(n_workers=1, dashboard_address=":0") as cluster:
        with cluster.get_client() as client:
            print(before, n_threads(), client.submit(n_threads).result())
    print(n_threads())
"""


@pytest.mark.slow
def test_what_dask_leaves_for_its_workers_is_theirs(tmp_path, monkeypatch):
    """It sets OMP_NUM_THREADS in the process that starts them, and leaves it so."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    script = tmp_path / "script.py"
    script.write_text(_WORKERS_HERE)
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True, timeout=60
    )
    said = [int(word) for word in done.stdout.split()]
    assert said == [CPU_COUNT, CPU_COUNT, 1, CPU_COUNT]


def test_what_joblib_leaves():
    """Its processes share the processors out."""
    with joblib.parallel_config("loky", n_jobs=2, inner_max_num_threads=1):
        assert joblib.Parallel()(joblib.delayed(n_threads)() for _ in range(2)) == [
            1,
            1,
        ]


@pytest.mark.skipif(CPU_COUNT < 2, reason="needs two processors")
def test_no_more_than_this_process_may_run_on():
    """As Dask counts: affinity here; quotas of containers are Dask's own tests."""
    code = (
        "import os; os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]});"
        "from daskgmm.execution.threads import n_threads; print(n_threads())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "1", done.stderr


def test_no_bit_depends_on_them():
    models = []
    for n in (1, 2, 5):
        with dask.config.set(num_workers=n):
            models.append(GaussianMixture(4, random_state=0, tol=1e-4).fit(X))
    for model in models[1:]:
        np.testing.assert_array_equal(model.means_, models[0].means_)
        np.testing.assert_array_equal(model.lower_bounds_, models[0].lower_bounds_)
