"""Memory that this process has taken at most, and a limit to it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np
import psutil
from distributed import WorkerPlugin
from scipy.linalg import blas

if sys.platform == "linux":
    import resource


def hold_memory(megabytes: int) -> None:
    """Let this process allocate only what is left to it of some megabytes, on Linux.

    What it cannot have it is refused at once, with a MemoryError. Linux counts what
    is set aside (stacks of threads, for one), and not only what is in use, so what is
    set aside already is let be.
    """
    if sys.platform != "linux":
        return
    _set_aside_for_blas()
    now = psutil.Process().memory_info()
    left = max(0, megabytes * 10**6 - now.rss)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (now.data + left, hard))


def _set_aside_for_blas() -> None:
    """Have NumPy's and SciPy's BLAS reserve their buffers, 128 MB each, never filled.

    OpenBLAS does so with the first product, and tries for ever if it is refused.
    """
    square = np.ones((512, 512))
    np.matmul(square, square)
    blas.dgemm(1.0, square, square)


@contextmanager
def held(megabytes: int) -> Iterator[None]:
    """Hold this process's memory for as long as the context."""
    if sys.platform != "linux":
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    hold_memory(megabytes)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@final
class HeldWorker(WorkerPlugin):
    """Holds the memory of each worker, of one that is started anew too."""

    def __init__(self, megabytes: int) -> None:
        self._megabytes = megabytes

    def setup(self, worker: Any) -> None:
        """Called by Dask when the worker starts."""
        hold_memory(self._megabytes)


def peak_memory() -> float:
    """MB of memory that this process has taken at most."""
    if sys.platform == "linux":
        # Not getrusage: it counts what the parent held when it started this process.
        status = Path("/proc/self/status").read_text()
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert peak is not None
        return int(peak[1]) * 1024 / 10**6
    info = psutil.Process().memory_info()
    return float(getattr(info, "peak_wset", info.rss)) / 10**6


def is_refused(n_bytes: int) -> bool:
    """Whether this process cannot allocate so much."""
    try:
        np.empty(n_bytes, dtype=np.uint8)  # set aside, never touched
    except MemoryError:
        return True
    return False
