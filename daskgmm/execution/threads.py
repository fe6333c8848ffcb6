"""One thread for BLAS and OpenMP while this package's own threads do the work."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import dask
import dask.local
import scipy.linalg  # noqa: F401  loads SciPy's BLAS, which compiled kernels call
from dask.base import named_schedulers
from dask.system import CPU_COUNT
from threadpoolctl import ThreadpoolController

from daskgmm import config
from daskgmm.execution.forking import after_fork

_OPENMP: Final = "OMP_NUM_THREADS"


def n_threads() -> int:
    """Threads that this process's own work may take.

    One where Dask is to run all in order; as many as Dask is given; or else as the
    machine has, its affinity and the limits of a container considered, but no more than
    OMP_NUM_THREADS: that is how joblib shares out processors to its processes.
    """
    scheduler = dask.config.get("scheduler", None)
    if isinstance(scheduler, str):
        scheduler = named_schedulers.get(scheduler.lower())
    if scheduler is dask.local.get_sync:
        return 1
    if given := dask.config.get("num_workers", None):
        return int(given)
    left = _openmp_threads().split(",")[0].strip()
    return min(CPU_COUNT, int(left)) if left.isdecimal() and int(left) else CPU_COUNT


def _openmp_threads() -> str:
    """What OpenMP is told by the environment, by whoever started this process.

    Dask sets it for the workers that it starts here, and leaves it so for this process.
    """
    its_own = dask.config.get("distributed.nanny.pre-spawn-environ", {})
    is_of_dask = _OPENMP in its_own and all(
        os.environ.get(name) == str(value) for name, value in its_own.items()
    )
    return config.OPENMP_THREADS if is_of_dask else os.environ.get(_OPENMP, "")


@functools.cache
def _controller(user_api: str) -> Any:
    # Finding the loaded libraries takes milliseconds, limiting them microseconds.
    return ThreadpoolController().select(user_api=user_api)


def _set_n_threads(library: Any, n_threads: int) -> None:
    """Set a BLAS library's threads, for the whole process, from whichever thread.

    Since threadpoolctl 3.7 only the thread that limited OpenBLAS first is heard, and
    the last user to leave need not be the first that came.
    """
    if library.user_api == "blas" and hasattr(library, "_real_set_num_threads"):
        library._real_set_num_threads(n_threads)
    else:
        library.set_num_threads(n_threads)


class _BlasLimit(AbstractContextManager[None]):
    """A limit shared by overlapping users: the first sets it, the last lifts it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_users = 0
        self._of_thread = threading.local()
        self._before: list[tuple[Any, int]] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._n_users == 0:
                libraries = _controller("blas").lib_controllers
                self._before = [(lib, lib.get_num_threads()) for lib in libraries]
                for library in libraries:
                    _set_n_threads(library, 1)
            self._n_users += 1
        self._of_thread.n_users = self._n_users_here + 1

    def __exit__(self, *_error: object) -> None:
        self._of_thread.n_users = self._n_users_here - 1
        with self._lock:
            self._n_users -= 1
            if self._n_users == 0:
                self._lift()

    def forget_others(self) -> None:
        """Keep this thread's uses only, in a process where there are no others."""
        self._lock = threading.Lock()  # another one may have held it
        was_used, self._n_users = self._n_users > 0, self._n_users_here
        if was_used and self._n_users == 0:
            self._lift()

    @property
    def _n_users_here(self) -> int:
        """Uses by this thread."""
        return int(getattr(self._of_thread, "n_users", 0))

    def _lift(self) -> None:
        for library, n_threads in self._before:
            _set_n_threads(library, n_threads)


_limit = _BlasLimit()
after_fork(_limit.forget_others)


def single_threaded_blas() -> AbstractContextManager[None]:
    """Hold BLAS to one thread; safe to nest and to enter concurrently.

    Sums are then the same bits on any number of cores, and threads that each run
    a block do not fight over the cores.
    """
    return _limit


@contextmanager
def single_threaded_openmp() -> Iterator[None]:
    """Hold OpenMP to one thread for loops that the calling thread starts.

    scikit-learn's k-means adds up its threads' sums in the order in which they end.
    """
    libraries = _controller("openmp").lib_controllers
    before = [(library, library.get_num_threads()) for library in libraries]
    for library in libraries:
        library.set_num_threads(1)
    try:
        yield
    finally:
        for library, n_threads in before:
            library.set_num_threads(n_threads)
