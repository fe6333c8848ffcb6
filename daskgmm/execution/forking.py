"""What child processes do otherwise than their parent: its threads are not theirs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress

import dask.threaded


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


def leave_interrupts() -> None:
    """Have this process, a worker, go on where a terminal interrupts all of its own.

    Whoever started the workers ends them.
    """
    with suppress(ValueError):  # only the main thread can say so
        signal.signal(signal.SIGINT, signal.SIG_IGN)
