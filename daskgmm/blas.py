"""One thread for BLAS and OpenMP while this package's own threads do the work."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import scipy.linalg  # noqa: F401  loads SciPy's BLAS, which compiled kernels call
from threadpoolctl import ThreadpoolController


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


class _BlasLimit:
    """A limit shared by overlapping users: the first sets it, the last lifts it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_users = 0
        self._before: list[tuple[Any, int]] = []

    def acquire(self) -> None:
        with self._lock:
            if self._n_users == 0:
                libraries = _controller("blas").lib_controllers
                self._before = [(lib, lib.get_num_threads()) for lib in libraries]
                for library in libraries:
                    _set_n_threads(library, 1)
            self._n_users += 1

    def release(self) -> None:
        with self._lock:
            self._n_users -= 1
            if self._n_users == 0:
                for library, n_threads in self._before:
                    _set_n_threads(library, n_threads)


_limit = _BlasLimit()


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Hold BLAS to one thread; safe to nest and to enter concurrently.

    Sums are then the same bits on any number of cores, and threads that each run
    a block do not fight over the cores.
    """
    _limit.acquire()
    try:
        yield
    finally:
        _limit.release()


def single_threaded_openmp() -> AbstractContextManager[Any]:
    """Hold OpenMP to one thread for loops that the calling thread starts.

    scikit-learn's k-means adds up its threads' sums in the order in which they end.
    """
    limit: AbstractContextManager[Any] = _controller("openmp").limit(limits=1)
    return limit
