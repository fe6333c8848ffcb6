"""Work on a cluster that ends in bounded time, with a result or with a clear error.

Some limits only the scheduler can be told (``no-workers-timeout``, ``worker-ttl``),
and the cluster may not be the user's own: so the client watches for itself.

It may be that of a worker, inside a task: then this thread leaves the worker's pool
while it waits, as Dask's own waiting does, or there would be none to do the work.

Where nobody has imported distributed, there is no cluster: it is not loaded for that.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from contextvars import ContextVar
from time import sleep
from typing import TYPE_CHECKING, Any, Final, final
from weakref import WeakKeyDictionary

import dask
from dask.base import compute as compute_here
from dask.base import get_scheduler
from dask.base import persist as persist_here
from dask.callbacks import Callback
from dask.delayed import Delayed
from dask.system import CPU_COUNT

from daskgmm import steps
from daskgmm.errors import ClusterError
from daskgmm.execution.forking import after_fork
from daskgmm.execution.watch import NO_ANSWER, Watch, address_of, ask, lost
from daskgmm.loaded import is_a

if TYPE_CHECKING:
    from distributed import Client, KilledWorker

_POLL: Final = 0.5
"""Seconds between two looks at whether the work is done, while it is not."""
_SHORT_POLL: Final = 0.05
"""The same, where each of many works is looked for."""
_ASYNCHRONOUS: Final = (
    "Fits wait for their work: let another thread wait, as in "
    "await asyncio.to_thread(model.fit, X), and instead of coroutines use tasks that "
    "are functions."
)
_NO_CLIENT: Final = (
    "Connect a Client to the cluster, also in a process that was forked off another "
    "one, whose Clients do nothing there."
)
_MUCH: Final = 1e7
"""Bytes of sums that are worth a word."""

Scheduler = Callable[..., Any]
"""What Dask runs graphs by: a client's `get`, or that of threads or of processes."""

_compiling: Final[WeakKeyDictionary[Client, set[str]]] = WeakKeyDictionary()
_chosen: Final[ContextVar[Scheduler | None]] = ContextVar("chosen", default=None)


def current_scheduler() -> Scheduler:
    """What Dask runs work by, as it is set in this thread now.

    Raises
    ------
    ClusterError
        If it is a cluster that cannot be waited for here.
    """
    try:
        scheduler: Scheduler = get_scheduler(cls=Delayed)
    except RuntimeError as error:
        remedy = _ASYNCHRONOUS if "asynchronous" in str(error) else _NO_CLIENT
        raise ClusterError(f"{str(error).rstrip('.')}. {remedy}") from error
    _client_of(scheduler)
    return scheduler


@contextmanager
def by_scheduler(scheduler: Scheduler) -> Iterator[None]:
    """Keep to a scheduler, whichever becomes the current one meanwhile."""
    token = _chosen.set(scheduler)
    try:
        yield
    finally:
        _chosen.reset(token)


def chosen_scheduler() -> Scheduler:
    """The scheduler that is kept to, or else the current one."""
    return _chosen.get() or current_scheduler()


def active_client() -> Client | None:
    """The client of the cluster that Dask will run work on, if it will.

    Raises
    ------
    ClusterError
        If it is closed, or as `current_scheduler`.
    """
    return _client_of(chosen_scheduler())


def killed_worker(error: BaseException) -> KilledWorker | None:
    """An error, if it says that the workers of a task died again and again."""
    found: Any = error
    killed: KilledWorker | None = (
        found if is_a(found, "distributed", "KilledWorker") else None
    )
    return killed


def _client_of(scheduler: Scheduler) -> Client | None:
    owner = getattr(scheduler, "__self__", None)
    client: Client | None = owner if is_a(owner, "distributed", "Client") else None
    if client is not None and client.status == "closed":
        raise ClusterError(f"Dask's Client is closed. {_NO_CLIENT}")
    return client


def _leave_clients() -> None:
    """Close what a process that was forked off has of its parent's clients.

    Their threads are not here, so whoever asks them for something would wait for ever.
    """
    if "distributed" not in sys.modules:
        return
    from distributed import Client, utils

    for client in list(Client._instances):
        client.status = "closed"
    utils._offload_executor = ThreadPoolExecutor(1, thread_name_prefix="Dask-Offload")


after_fork(_leave_clients)


@contextmanager
def _waiting() -> Iterator[None]:
    """Leave a worker's threads to its work while a task of its own waits for it."""
    from distributed import rejoin, secede

    try:
        secede()
        has_left = True
    except Exception:
        has_left = False  # in no task, or in one that left before
    try:
        yield
    finally:
        if has_left:
            rejoin()


def compute(work: Delayed, parts: Sequence[Delayed] = ()) -> Any:
    """The result of some work, wherever Dask runs it.

    Parameters
    ----------
    work : Delayed
    parts : sequence of Delayed
        What it is made of, where it is told how many of them are done.

    Raises
    ------
    ClusterError
        If the workers, or the scheduler, are gone for longer than the time limits.
    KilledWorker
        If the workers of a task died again and again.
    """
    client = active_client()
    if client is None:
        with _counted(parts):
            return work.compute(scheduler=chosen_scheduler())
    with _large_graphs:
        future: Any = client.compute(work)
    try:
        with _waiting():
            return _wait(client, future, parts)
    finally:
        # Also after an interrupt: what has not begun need not.
        if not future.done() and client.status == "running":
            future.cancel()


def each(works: Sequence[Delayed]) -> Iterator[None]:
    """Run some works for what they do, wherever Dask runs them; tell as each ends.

    A cluster is told of all works at once; it begins only as many as it has threads.

    Raises
    ------
    ClusterError, KilledWorker
        As `compute`.
    """
    client = active_client()
    if client is None:
        step = 2 * CPU_COUNT
        for first in range(0, len(works), step):
            batch = works[first : first + step]
            compute_here(*batch, scheduler=chosen_scheduler())
            yield from (None for _ in batch)
        return
    with _large_graphs:
        futures: Any = client.compute(list(works))
    try:
        with _waiting():
            yield from _as_they_end(client, futures)
    finally:
        drop(futures)


def _as_they_end(client: Client, futures: Sequence[Any]) -> Iterator[None]:
    from distributed import as_completed

    watch = Watch(client)
    coming: Any = as_completed(futures, loop=client.loop)
    while not coming.is_empty():
        for future in coming.next_batch(block=False):
            if future.status != "finished":
                _raise_its_error(client, future)
            # What is done must not be done again when its worker leaves.
            future.release()
            yield
        if not coming.is_empty() and not coming.has_ready():
            sleep(_SHORT_POLL)
            watch.look()


def _raise_its_error(client: Client, future: Any) -> None:
    from distributed.comm.core import CommClosedError

    try:
        future.result()
    except (CancelledError, CommClosedError) as error:
        raise _cancelled(client) from error


@final
class _LargeGraphs:
    """Dask warns of large graphs, but many or wide components make a message large.

    Its configuration is that of all threads: the first one in sets it, the last one out
    sets it back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_users = 0
        self._setting: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._n_users == 0:
                threshold = "distributed.admin.large-graph-warning-threshold"
                self._setting = dask.config.set({threshold: "1TB"})
            self._n_users += 1

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            self._n_users -= 1
            if self._n_users == 0:
                self._setting.__exit__(None, None, None)


_large_graphs: Final = _LargeGraphs()
after_fork(_large_graphs.__init__)


@contextmanager
def _counted(parts: Sequence[Delayed]) -> Iterator[None]:
    """Tell how many parts of some work are done, by a scheduler in this process."""
    if not (parts and steps.is_told()):
        yield
        return
    keys, done = {part.key for part in parts}, set[Any]()

    def note(key: Any, *_more: object) -> None:
        if key in keys:
            done.add(key)
            steps.advance(len(done), len(keys))

    with Callback(posttask=note):
        yield


def _wait(client: Client, future: Any, parts: Sequence[Delayed]) -> Any:
    from distributed.comm.core import CommClosedError

    # Not `future.result(timeout=...)`: it breaks off what is being sent, so that what
    # takes longer would never come, and leaves the client's next gathering cancelled.
    watch = Watch(client)
    loop: Any = client.loop
    coming = asyncio.run_coroutine_threadsafe(
        client.gather(future, asynchronous=True), loop.asyncio_loop
    )

    def is_ready() -> bool:
        ready = bool(wait_for([coming], timeout=_POLL).done)
        if not ready:
            watch.look()
        return ready

    is_told = bool(parts) and steps.is_told()
    compiling = _compiling_on(client) if is_told else set()
    delays: tuple[tuple[str, Callable[[], bool]], ...] = (
        (steps.COMPILING, lambda: bool(compiling)),
        (steps.WAITING, watch.lacks_workers),
    )
    while not is_ready():
        for name, goes_on in delays if is_told else ():
            if goes_on():
                with steps.within(name):
                    while goes_on() and not is_ready():
                        pass
        if is_told:
            steps.advance(sum(map(is_finished, parts)), len(parts))
    try:
        return coming.result()
    except (CancelledError, CommClosedError) as error:
        raise _cancelled(client) from error


def _compiling_on(client: Client) -> set[str]:
    """Addresses of the workers that compile the kernel now, kept up to date.

    Of those that began once this was asked.
    """
    if client not in _compiling:
        busy = _compiling[client] = set()

        def note(event: tuple[float, tuple[str, bool]]) -> None:
            _, (address, begins) = event
            (busy.add if begins else busy.discard)(address)

        client.subscribe_topic(steps.COMPILING, note)
    # A worker that died has never said that it was done.
    _compiling[client].clear()
    return _compiling[client]


def _cancelled(client: Client) -> ClusterError:
    """Why nothing will come of work: it was cancelled, or nobody is there to do it."""
    if client.status != "running":
        return lost(client)
    try:
        ask(client, "identity")
    except NO_ANSWER:
        return lost(client)
    return ClusterError(
        f"What a fit had on the cluster at {address_of(client)} was cancelled, as by "
        "client.restart(). Fit again: a fit with a checkpoint continues where it "
        "stopped."
    )


def count_threads() -> int | None:
    """Threads of the cluster's workers; None if there is no cluster, or no answer."""
    client = active_client()
    if client is None:
        return None
    try:
        return int(sum(ask(client, "ncores").values()))
    except NO_ANSWER:
        return None  # work that is sent there will say what is wrong


def hold(works: Sequence[Delayed]) -> Sequence[Delayed]:
    """Begin some works on the cluster, which keeps their results; else do nothing."""
    return works if active_client() is None else keep(works)


def keep(works: Sequence[Delayed]) -> Sequence[Delayed]:
    """The same, but where there is no cluster the results are made, and kept, here."""
    with _large_graphs:
        kept: Sequence[Delayed] = persist_here(*works, scheduler=chosen_scheduler())
    return kept


def _futures_of(works: Any) -> Sequence[Any]:
    """What the cluster holds of some works; nothing where there is no cluster."""
    if "distributed" not in sys.modules:
        return ()
    from distributed import futures_of

    futures: Sequence[Any] = futures_of(works)
    return futures


def is_finished(work: Delayed) -> bool:
    """Whether the cluster holds the result of a held work."""
    return all(future.status == "finished" for future in _futures_of(work))


def drop(works: Sequence[Delayed]) -> None:
    """Let what is not done of held works be; an error's traceback would keep it.

    Not by cancelling: the scheduler breaks the connection of a client that cancels what
    others, which nobody wants any more, depend on (`assert ts.who_wants`).
    """
    for future in _futures_of(works):
        if not future.done():
            future.release()


def revive(collections: Sequence[Any]) -> None:
    """Let what failed of persisted collections be computed again."""
    client = active_client()
    if client is not None:
        failed = [f for f in _futures_of(collections) if f.status == "error"]
        client.retry(failed)


def explain(
    error: KilledWorker, block_bytes: float | None, sums_bytes: float = 0.0
) -> ClusterError:
    """Say what most likely killed the workers of a task."""
    worker = error.last_worker
    limit = getattr(worker, "memory_limit", 0)
    of_block = (
        ""
        if block_bytes is None
        else f" Its largest block takes {block_bytes / 1e6:.0f} MB, and two are held "
        "for each thread."
    )
    of_sums = (
        f" The sums of all runs take {sums_bytes / 1e6:.0f} MB for each thread."
        if sums_bytes > _MUCH
        else ""
    )
    has = f"; it may take {limit / 1e6:.0f} MB" if limit else ""
    return ClusterError(
        f"Workers died again and again at the same piece of work, the last one at "
        f"{worker.address}{has}.{of_block}{of_sums} Most likely they ran out of "
        "memory: give them more, let each have fewer threads, or cut the data into "
        "smaller blocks."
    )
