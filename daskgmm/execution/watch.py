"""What a client sees of a cluster's workers, and how long it waits for them."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, final

from daskgmm import config
from daskgmm.errors import ClusterError

if TYPE_CHECKING:
    from distributed import Client

NO_ANSWER: Final = (OSError, TimeoutError, RuntimeError, AttributeError)
"""What asking a scheduler raises that is gone."""
_LOOKS: Final = 4.0
"""Looks at the workers within the shortest time limit."""


@final
class Watch:
    """What is known of a cluster's workers, by this process's clock.

    Clocks of other machines may differ: a worker is alive when the time of its last
    sign of life changes.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._limits = {
            name: config.seconds(f"{name}-timeout")
            for name in ("no-workers", "worker", "scheduler")
        }
        self._pause = min(self._limits.values()) / _LOOKS
        self._looked = self._answered = self._had_workers = monotonic()
        self._signs: dict[str, tuple[float, float]] = {}
        self._stuck: dict[str, float] = {}
        self._is_lacking = False

    def lacks_workers(self) -> bool:
        """Whether none could begin a task when they were looked at last."""
        return self._is_lacking

    def look(self) -> None:
        """Look at the workers if it is time to."""
        if monotonic() - self._looked < self._pause:
            return
        self._looked = monotonic()
        try:
            workers = self._workers()
            self._remove_silent(workers)
            self._is_lacking = self._remove_stuck(workers)
        except NO_ANSWER:
            if monotonic() - self._answered > self._limits["scheduler"]:
                raise lost(self._client) from None
            return
        self._answered = monotonic()
        if not self._is_lacking:
            self._had_workers = monotonic()
        elif monotonic() - self._had_workers > self._limits["no-workers"]:
            raise self._without_workers(workers)

    def _without_workers(self, workers: Mapping[str, Any]) -> ClusterError:
        seconds = f"{self._limits['no-workers']:.0f} s"
        what = f"has had no workers for {seconds}. Start some"
        if workers:
            what = (
                f"has had only workers that Dask paused for want of memory for "
                f"{seconds}. Give them more memory, or fewer threads each,"
            )
        return ClusterError(
            f"The cluster at {address_of(self._client)} {what} and fit again: a fit "
            "with a checkpoint continues where it stopped. How long a fit waits is "
            "daskgmm.no-workers-timeout in Dask's configuration."
        )

    def _workers(self) -> Mapping[str, Any]:
        """All workers by address."""
        try:
            info = ask(self._client, "identity", n_workers=-1)
        except TypeError:  # older schedulers tell of all workers, unasked
            info = ask(self._client, "identity")
        workers: Mapping[str, Any] = info["workers"]
        return workers

    def _remove_silent(self, workers: Mapping[str, Any]) -> None:
        now = monotonic()
        for address, worker in workers.items():
            sign, since = self._signs.get(address, (None, now))
            if worker["last_seen"] != sign:
                self._signs[address] = (worker["last_seen"], now)
            elif now - since > self._limits["worker"]:
                del self._signs[address]
                self._remove(address)

    def _remove_stuck(self, workers: Mapping[str, Any]) -> bool:
        """Whether no worker can begin a task; if some can, they get what others cannot.

        Dask steals from paused workers only while they have more tasks than threads.
        """
        now = monotonic()
        stuck = [address for address in workers if _is_stuck(workers[address])]
        self._stuck = {address: self._stuck.get(address, now) for address in stuck}
        if len(stuck) == len(workers):
            return True
        for address, since in self._stuck.items():
            if now - since > self._limits["worker"] and self._has_tasks(address):
                self._remove(address)
        return False

    def _has_tasks(self, address: str) -> bool:
        """Whether a worker was given tasks that it has not done."""
        return bool(ask(self._client, "processing").get(address))

    def _remove(self, address: str) -> None:
        """Take a worker off the cluster, so that others do its work."""
        what = f"daskgmm-removes-{address}-{monotonic()}"
        ask(self._client, "unregister", address=address, stimulus_id=what)


def _is_stuck(worker: Mapping[str, Any]) -> bool:
    """Whether a worker begins no task, for want of memory, and is at none."""
    tasks = worker["metrics"].get("task_counts", {})
    at_work = tasks.get("executing") or tasks.get("long-running")
    return worker["status"] == "paused" and not at_work


def ask(client: Client, question: str, **about: Any) -> Any:
    """Call one of the scheduler's handlers."""
    handler = getattr(client.scheduler, question)
    limit = config.seconds("scheduler-timeout")
    return client.sync(handler, callback_timeout=limit, **about)


def lost(client: Client) -> ClusterError:
    """The error of a scheduler that is gone."""
    return ClusterError(
        f"The connection to the scheduler at {address_of(client)} is lost, and with it "
        "what the workers held. Start the cluster again and fit again: a fit with a "
        "checkpoint continues where it stopped."
    )


def address_of(client: Client) -> str:
    """Where the scheduler is."""
    return str(getattr(client.scheduler, "address", "an unknown address"))
