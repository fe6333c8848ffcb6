"""What child processes do otherwise than their parent: its threads are not theirs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from multiprocessing import resource_tracker
from typing import TypeVar

import dask.threaded

_T = TypeVar("_T")


def after_fork(forget: Callable[[], None]) -> None:
    """Have something called in each process that is forked off, where there are any."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=forget)


def forget_thread(local: threading.local) -> None:
    """Have the forking thread's own data forgotten in each process forked off."""
    # Looked up there: `vars` are those of the thread that asks.
    after_fork(lambda: vars(local).clear())


def _forget_pools() -> None:
    """Let Dask's threaded scheduler start anew: it would wait for threads for ever."""
    dask.threaded.pools_lock = threading.Lock()
    dask.threaded.pools.clear()
    dask.threaded.default_pool = None


after_fork(_forget_pools)


def beyond_interrupts(make: Callable[[], _T]) -> Future[_T]:
    """Make something whose processes go on where a terminal interrupts all of its own.

    Whoever had them started ends them. What blocks a signal is inherited: by threads
    that a thread begins, and by processes that they start.
    """
    # Starting it lets signals through again; it ignores them by itself.
    resource_tracker.ensure_running()
    pool = ThreadPoolExecutor(1, initializer=_block_interrupts)
    made = pool.submit(copy_context().run, make)
    pool.shutdown(wait=False)
    return made


def _block_interrupts() -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
