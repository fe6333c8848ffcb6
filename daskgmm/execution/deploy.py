"""Clusters: joined by their address, or started as a file says and closed again.

A cluster file names one of Dask's cluster classes and how large its cluster is to be;
that class starts the processes, here or through SSH, a batch system or Kubernetes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import pkgutil
import re
import shutil
import signal
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Final, TypeVar, final

import dask
from dask.utils import parse_bytes, parse_timedelta
from distributed import Client, LocalCluster, Nanny, Security, Worker
from distributed.comm.addressing import (
    parse_address,
    parse_host_port,
    unparse_host_port,
)
from distributed.core import Status
from distributed.deploy.cluster import Cluster
from distributed.deploy.spec import SpecCluster
from distributed.utils import silence_logging_cmgr

from daskgmm import config, steps
from daskgmm.errors import ClusterError, MissingLibraryError, ParameterError
from daskgmm.execution.cluster_file import SECTIONS, content_of, listed
from daskgmm.execution.forking import beyond_interrupts

_SIZES: Final = {"workers", "jobs", "cores", "memory"}
_LEAST: Final = ("minimum", "minimum_jobs", "minimum_cores", "minimum_memory")
_ADAPT: Final = {
    *_LEAST,
    *(name.replace("minimum", "maximum") for name in _LEAST),
    *("interval", "target_duration", "wait_count"),
}

_C = TypeVar("_C")
_PORT: Final = 8786
"""That of Dask's schedulers, unless they are told another one."""
_LOOK: Final = 2.0
"""Seconds in which a machine says that nothing listens there."""
_GREETING: Final = 8
"""Bytes with which schedulers begin."""
_LONGEST: Final = 2**40
"""More bytes than anybody says at once; what begins in letters is a larger number."""
_EXTRAS: Final = {
    "asyncssh": "daskgmm[ssh]",
    "dask-jobqueue": "daskgmm[jobqueue]",
    "dask-kubernetes": "daskgmm[kubernetes]",
}
"""What is to be installed, by the package that is missing."""
_MODULES: Final = (
    *("distributed", "dask_cuda", "dask_jobqueue", "dask_kubernetes", "dask_gateway"),
    *("dask_cloudprovider", "dask_yarn", "dask_mpi", "coiled"),
)
"""Those of known cluster classes."""
_UNKNOWN: Final = re.compile(r"unexpected keyword argument '(\w+)'")
_POLL: Final = 0.05
"""Seconds between two looks at whether all workers were asked for."""


def addressed(
    address: str, credentials: Mapping[str, str] | None = None
) -> tuple[str, Security]:
    """A scheduler's address with its port, and what it is joined with; see `join`.

    Raises
    ------
    ParameterError
        If there is no certificate for a ``tls://`` address, or one for ``tcp://``.
    """
    security = Security(**credentials) if credentials else Security()
    scheme, place = parse_address(address)
    if scheme in ("tcp", "tls"):
        address = f"{scheme}://{unparse_host_port(*parse_host_port(place, _PORT))}"
    if scheme == "tls":
        if security.get_connection_args("client").get("ssl_context") is None:
            raise ParameterError(
                f"{address} wants certificates: pass --tls-ca-file, --tls-cert and "
                "--tls-key, or set distributed.comm.tls in Dask's configuration."
            )
    elif scheme == "tcp" and security.require_encryption:
        # Dask's client would try for ever.
        raise ParameterError(
            f"{address} is not encrypted, but certificates are given or Dask's "
            "configuration requires encryption: the address must begin with tls://."
        )
    return address, security


@contextmanager
def join(
    address: str, credentials: Mapping[str, str] | None = None
) -> Iterator[Client]:
    """Join the cluster of a scheduler, for as long as the context.

    Parameters
    ----------
    address : str
        Such as ``tcp://host:8786`` or ``tls://host:8786``; without a port, that of
        Dask's schedulers.
    credentials : mapping, optional
        ``tls_ca_file``, ``tls_client_cert`` and ``tls_client_key``: what Dask's
        configuration does not say of them.

    Raises
    ------
    ValueError
        If there is no certificate for a ``tls://`` address, or one for ``tcp://``.
    ClusterError
        If the scheduler refuses, or is not there, or if it is none.
    """
    address, security = addressed(address, credentials)
    scheme = parse_address(address)[0]
    # It may be about to start, its name included: Dask waits for it.
    if why := _why_not(address):
        steps.begin(f"waiting for {address} ({why} yet)")
    elif scheme == "tcp":
        _check_greets(address)
    with ExitStack() as stack:
        try:
            client = stack.enter_context(joined(address, security=security))
        except OSError as error:
            why = _why_not(address) or str(error) or type(error).__name__
            raise ClusterError(
                f"The scheduler at {address} could not be joined: {why}. If it is up: "
                "a scheduler that talks TLS takes tls:// alone, and certificates of "
                "its own authority; any other takes tcp://, and no port of a dashboard."
            ) from error
        except (TypeError, ValueError) as error:  # a worker's, which takes no clients
            raise ClusterError(
                f"{address} is no scheduler's address ({error}): give the one that the "
                "scheduler logs when it starts, not that of a worker."
            ) from error
        yield client


def joined(where: str | Cluster, security: Security | None = None) -> Client:
    """A client. Dask leaves one that does not come about as the current one."""
    before = _current_client()
    try:
        return Client(where, security=security)
    except BaseException:
        left = _current_client()
        if left is not None and left is not before:
            left.close()
        raise


def _current_client() -> Client | None:
    try:
        client: Client = Client.current()
    except ValueError:
        return None
    return client


def started(make: Callable[[], _C]) -> _C:
    """A cluster, whose processes here are not interrupted from this terminal.

    Raises
    ------
    KeyboardInterrupt
        If this one is meanwhile; it says so.
    """
    coming = beyond_interrupts(make)
    try:
        return coming.result()
    except KeyboardInterrupt:
        coming.add_done_callback(_close)
        raise KeyboardInterrupt(
            "while workers were starting: nothing was read or written"
        ) from None


def _close(made: Future[Any]) -> None:
    if made.exception() is None:
        made.result().close()


@final
@dataclass(frozen=True, slots=True)
class Deployment:
    """What a cluster file says.

    Attributes
    ----------
    file : Path
    cluster : str
        Where one of Dask's cluster classes is imported from, such as
        ``dask_jobqueue.SLURMCluster``.
    arguments : mapping
        Its keyword arguments.
    scale : mapping
        A fixed size: one of `workers`, `jobs`, `cores` and `memory`.
    adapt : mapping
        A size that follows the work, between a minimum and a maximum.
    security : mapping
        Arguments of Dask's ``Security``; its files are relative to the cluster file.
    dask : mapping
        Dask's configuration meanwhile. Environment variables win over it.
    """

    file: Path
    cluster: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    scale: Mapping[str, Any] = field(default_factory=dict)
    adapt: Mapping[str, Any] = field(default_factory=dict)
    security: Mapping[str, Any] = field(default_factory=dict)
    dask: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in SECTIONS:
            if not isinstance(getattr(self, name), Mapping):
                raise self._wrong(name, "write names and values below it")
        self._check_size()
        if self.security and "security" in self.arguments:
            raise self._wrong("security", "it is among the arguments already")

    def _check_size(self) -> None:
        if self.scale and self.adapt:
            raise self._wrong("adapt", "there is scale already; keep one of them")
        if self.scale and (len(self.scale) > 1 or not self.scale.keys() <= _SIZES):
            raise self._wrong("scale", f"give one of {listed(_SIZES)}")
        if unknown := self.adapt.keys() - _ADAPT:
            raise self._wrong(f"adapt.{min(unknown)}", f"known are {listed(_ADAPT)}")
        if self.adapt and not any(self.adapt.get(name) for name in _LEAST):
            # Without workers there is no work that could call for workers.
            raise self._wrong("adapt.minimum", "a fit needs one worker at least")
        for name, value in self.scale.items():
            self._check_number(f"scale.{name}", value, least=1)
        for name in self.adapt.keys() - {"interval", "target_duration"}:
            self._check_number(f"adapt.{name}", self.adapt[name], least=0)
        for name, value in self.dask.items():
            is_group = isinstance(dask.config.get(name, None), Mapping)
            if is_group and not isinstance(value, Mapping):
                raise self._wrong(f"dask.{name}", "write names and values below it")

    def _check_number(self, key: str, value: Any, *, least: int) -> None:
        """Refuse what is no number, or too small; None and inf are Dask's defaults."""
        if value in (None, math.inf):
            return
        if key.endswith("memory"):
            try:
                if parse_bytes(value) >= least:
                    return
            except (TypeError, ValueError, AttributeError):
                pass
            raise self._wrong(key, f"{value!r} is no size of memory such as 16GB")
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self._wrong(
                key, f"{value!r} is no whole number that is {least} or more"
            )

    def _wrong(self, key: str, why: str) -> ParameterError:
        end = "" if why.endswith("?") else "."
        return ParameterError(f"{self.file}: {key}: {why}{end}")

    def check(self) -> None:
        """Refuse what is known to be wrong before anything is started.

        Raises
        ------
        MissingLibraryError, ParameterError
            See `start`.
        """
        factory = self._factory()
        self._arguments(factory)
        # Of dask-jobqueue's classes.
        job = getattr(factory, "job_cls", None)
        command = getattr(job, "submit_command", None)
        if isinstance(command, str) and shutil.which(command.split()[0]) is None:
            said = f"{command} is not here: give the command where jobs are submitted"
            raise self._wrong("cluster", said)

    @contextmanager
    def start(self) -> Iterator[Cluster]:
        """Start the cluster, for as long as the context, and only the workers that
        its class starts unasked.

        Raises
        ------
        MissingLibraryError
            If the package of the class is not installed; the message says which.
        ValueError
            If there is no such class, or its arguments are wrong.
        ClusterError
            If the cluster does not start.
        """
        # First of all, as the package adds its defaults to Dask's configuration.
        factory = self._factory()
        with dask.config.set(self._configuration()), self._make(factory) as cluster:
            yield cluster

    @contextmanager
    def connect(self) -> Iterator[Client]:
        """Start the cluster, and close it after the context.

        Its first worker is waited for, no longer than `daskgmm.no-workers-timeout`.

        Raises
        ------
        MissingLibraryError, ValueError
            See `start`.
        ClusterError
            If the cluster does not start, or no worker comes.
        """
        with self.start() as cluster:
            # What fails there is raised, and need not be logged too.
            with silence_logging_cmgr(logging.CRITICAL, "tornado.application"):
                self._size(cluster)
                self._check_started(cluster)
            with joined(cluster) as client:
                self._wait(client)
                yield client

    def _factory(self) -> Callable[..., Any]:
        package, _, inside = self.cluster.partition(".")
        if not inside:
            said = f"write where it is imported from, such as distributed.{package}"
            raise self._wrong("cluster", said)
        try:
            with _signals_kept():
                found = pkgutil.resolve_name(self.cluster)
        except ModuleNotFoundError as error:
            missing = (error.name or package).split(".")[0]
            name = missing.replace("_", "-")
            if missing in _MODULES or name in _EXTRAS:
                raise self._needs(_EXTRAS.get(name, name)) from error
            meant = _meant(missing, _MODULES) if missing == package else ""
            meant = meant or ": install the package that has it"
            said = f"there is no module {missing} here{meant}"
            raise self._wrong("cluster", said) from error
        except (AttributeError, ValueError) as error:
            raise self._wrong("cluster", f"there is no {self.cluster}") from error
        if not callable(found):
            raise self._wrong("cluster", f"{self.cluster} is no cluster class")
        factory: Callable[..., Any] = found
        return factory

    def _needs(self, package: str) -> MissingLibraryError:
        return MissingLibraryError(
            f"{self.file}: {self.cluster} needs a package that is not installed: "
            f"pip install '{package}'."
        )

    def _configuration(self) -> dict[str, Any]:
        """All of Dask's configuration: what is set, this file, the environment."""
        merged: dict[str, Any] = dask.config.merge(
            dask.config.config, self.dask, dask.config.collect_env()
        )
        return merged

    def _make(self, factory: Callable[..., Any]) -> AbstractContextManager[Cluster]:
        arguments = self._arguments(factory)
        try:
            cluster = started(partial(factory, **arguments))
        except (TypeError, ValueError) as error:
            raise self._not_taken(factory, str(error)) from error
        except Exception as error:  # anything: the classes are of many packages
            causes = _causes(error)
            if "requires the `asyncssh` package" in causes:
                raise self._needs(_EXTRAS["asyncssh"]) from error
            if _UNKNOWN.search(causes):
                raise self._not_taken(factory, causes) from error
            raise ClusterError(
                f"{self.file}: the cluster did not start: {causes}"
            ) from error
        if not isinstance(cluster, Cluster):
            raise self._wrong("cluster", f"{self.cluster} is no cluster class")
        of_class: AbstractContextManager[Cluster] = cluster
        return of_class

    def _arguments(self, factory: Callable[..., Any]) -> dict[str, Any]:
        """What the class is called with."""
        arguments = {**self.arguments, **self._security()}
        if factory is LocalCluster and "worker_class" not in arguments:
            self._check_local()
        return arguments

    def _check_local(self) -> None:
        """Refuse what a local cluster hands on to workers, who would log and fail.

        And numbers that would start no workers, for which a fit would wait.
        """
        classes = {*LocalCluster.__mro__, *Nanny.__mro__, *Worker.__mro__} - {object}
        known = {name for its in classes for name in signature(its).parameters}
        for name in self.arguments:
            if name not in known:
                raise self._unknown(str(name), known)
        for name, least in (("n_workers", 0), ("threads_per_worker", 1)):
            value = self.arguments.get(name)
            self._check_number(f"arguments.{name}", value, least=least)

    def _not_taken(self, factory: Callable[..., Any], why: str) -> ParameterError:
        """An error of arguments, with the one that is meant, or what was given."""
        if found := _UNKNOWN.search(why):
            return self._unknown(found[1], signature(factory).parameters)
        given = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        why = f"{why.rstrip('.')}; given are {given or 'none'}"
        return self._wrong("arguments", why)

    def _unknown(self, name: str, known: Iterable[str]) -> ParameterError:
        said = f"{self.cluster} takes no {name}{_meant(name, sorted(known))}"
        return self._wrong("arguments", said)

    def _security(self) -> dict[str, Security]:
        if not self.security:
            return {}
        values = {name: self._resolved(name) for name in self.security}
        try:
            return {"security": Security(**values)}
        except (TypeError, ValueError) as error:
            raise self._wrong("security", str(error)) from error

    def _resolved(self, name: str) -> Any:
        """A value of `security`; a file is relative to the cluster file."""
        value = self.security[name]
        if not name.endswith(("_file", "_cert", "_key")):
            return value
        place = self.file.absolute().parent / str(value)
        if not place.is_file():
            raise self._wrong(f"security.{name}", f"there is no file {place}")
        return str(place)

    def _size(self, cluster: Cluster) -> None:
        try:
            if "workers" in self.scale:
                cluster.scale(self.scale["workers"])
            elif self.scale:
                cluster.scale(**self.scale)
            elif self.adapt:
                cluster.adapt(**self.adapt)
        except (TypeError, ValueError) as error:
            key = "scale" if self.scale else "adapt"
            why = f"{self.cluster} does not take it: {error}"
            raise self._wrong(key, why) from error

    def _check_started(self, cluster: Cluster) -> None:
        if not (self.scale and isinstance(cluster, SpecCluster)):
            return
        try:
            cluster.sync(_started, cluster)
        except Exception as error:  # anything: the classes are of many packages
            raise ClusterError(
                f"{self.file}: workers cannot be started: {_causes(error)}"
            ) from error

    def _wait(self, client: Client) -> None:
        limit = config.seconds("no-workers-timeout")
        try:
            client.wait_for_workers(1, timeout=limit)
        except TimeoutError as error:
            raise ClusterError(
                f"{self.file}: no worker came in {limit:.0f} s. Look at the queue, and "
                "at the logs of the workers. How long to wait for them is "
                "daskgmm.no-workers-timeout in Dask's configuration, which the file's "
                "dask section can set."
            ) from error


def _meant(name: str, known: Sequence[str]) -> str:
    """A word on what may have been mistyped."""
    near = get_close_matches(name, known, n=1)
    return f": is {near[0]} meant?" if near else ""


async def _started(cluster: SpecCluster) -> None:
    """Raise what keeps a worker from being started, such as a job that is refused.

    Dask's cluster only logs it, and would wait for the worker for ever.
    """
    async with asyncio.timeout(config.seconds("no-workers-timeout")):
        while cluster.workers.keys() != cluster.worker_spec.keys():
            await asyncio.sleep(_POLL)
    workers = list(cluster.workers.values())
    # What failed is tried once more, and heard.
    outcomes = await asyncio.gather(*workers, return_exceptions=True)
    failures = []
    for worker, outcome in zip(workers, outcomes, strict=True):
        if isinstance(outcome, Exception):
            failures.append(outcome)
            worker.status = Status.failed  # or the cluster would refuse to close
    if failures:
        raise failures[0]


def read(path: str | os.PathLike[str]) -> Deployment:
    """Read a cluster file.

    Raises
    ------
    ParameterError
        If it is not what a cluster file should be; the message names file and key.
    """
    file = Path(path)
    return Deployment(file, **content_of(file))


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Handlers of signals stay as they are.

    As it is imported, dask_jobqueue has Ctrl-C end the process with the exit status of
    success (seen in 0.9).
    """
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _causes(error: BaseException) -> str:
    """Messages of an error and of what led to it, each once."""
    messages: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        message = str(cause) or type(cause).__name__
        if not any(message in told for told in messages):
            messages.append(message)
        cause = cause.__cause__
    return " Cause: ".join(messages)


def _check_greets(address: str) -> None:
    """Refuse what is no scheduler: Dask's client would wait for it for ever.

    Schedulers begin to speak at once, with the length of what they say; a busy one may
    take as long as Dask waits. Who waits to be spoken to, such as a dashboard, hangs up
    when told that nothing comes; a scheduler speaks all the same.
    """
    where = parse_host_port(parse_address(address)[1], _PORT)
    patience = parse_timedelta(dask.config.get("distributed.comm.timeouts.connect"))
    try:
        with socket.create_connection(where, timeout=min(_LOOK, patience)) as it:
            said = _heard(it)
            if said is None:
                steps.begin(f"waiting for {address} (it says nothing yet)")
                it.shutdown(socket.SHUT_WR)
                it.settimeout(patience)
                said = _heard(it) or b""
    except OSError:  # gone meanwhile: Dask's client says what is wrong
        return
    if len(said) < _GREETING or int.from_bytes(said, "little") >= _LONGEST:
        raise ClusterError(
            f"What listens at {address} is no Dask scheduler, or one that talks TLS, "
            "and takes tls:// alone. Is it the port of a dashboard? Schedulers have "
            f"{_PORT}, unless told another, and log it when they start."
        )


def _heard(connection: socket.socket) -> bytes | None:
    """What is said first; None if that is too little while the connection waits."""
    said = b""
    try:
        while len(said) < _GREETING and (more := connection.recv(_GREETING)):
            said += more
    except TimeoutError:
        return None
    return said


def _why_not(address: str) -> str | None:
    """What is known at once of an address where nobody answered; None if nothing is."""
    scheme, place = parse_address(address)
    if scheme not in ("tcp", "tls", "ws", "wss"):
        return None
    host, port = parse_host_port(place, _PORT)
    try:
        socket.create_connection((host, port), timeout=_LOOK).close()
    except socket.gaierror:
        return f"no machine is called {host}"
    except ConnectionRefusedError:
        return f"nothing listens at port {port} of {host}"
    except OSError:
        pass
    return None
