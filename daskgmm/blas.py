"""One thread for BLAS and OpenMP while this package's own threads do the work."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import scipy.linalg  # noqa: F401  loads SciPy's BLAS, which compiled kernels call
from threadpoolctl import ThreadpoolController


@functools.cache
def _controller() -> ThreadpoolController:
    # Finding the loaded libraries takes milliseconds, limiting them microseconds.
    return ThreadpoolController()


class _Limit:
    """A limit shared by overlapping users: the first sets it, the last lifts it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._limiter: Any = None

    def acquire(self) -> None:
        with self._lock:
            if self._users == 0:
                self._limiter = _controller().limit(limits=1)
            self._users += 1

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._limiter.restore_original_limits()
                self._limiter = None


_limit = _Limit()


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Hold BLAS and OpenMP to one thread; safe to nest and to enter concurrently.

    Sums are then the same bits on any number of cores, and threads that each run
    a block do not fight over the cores.
    """
    _limit.acquire()
    try:
        yield
    finally:
        _limit.release()
