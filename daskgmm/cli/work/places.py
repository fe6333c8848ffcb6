"""Where the rows of a command are, and its workers."""

from __future__ import annotations

import logging
import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from multiprocessing import get_context

import dask
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster
from distributed.deploy.utils import nprocesses_nthreads

from daskgmm import steps
from daskgmm.cli.options import Cluster, Data
from daskgmm.data.opening import Opened, open_for
from daskgmm.data.parquet import ParquetRows
from daskgmm.estimators.models import load
from daskgmm.estimators.trained import TrainedMixture
from daskgmm.execution import deploy


def open_rows(data: Data, store: str, features: Sequence[str] | None = None) -> Opened:
    """Open the rows; of Parquet a model's features, unless columns are named."""
    steps.begin(f"opening {store}")
    return open_for(
        store,
        features,
        array=data.array,
        columns=data.columns,
        filters=list(data.filters) or None,
        storage_options=data.storage_options,
        decode_cf=data.decode_cf,
        version=data.version,
    )


def open_model(model: str) -> TrainedMixture:
    """Load a model."""
    steps.begin(f"opening {model}")
    return load(model)


def model_and_rows(
    model: str, store: str, data: Data, **gaps: str
) -> tuple[TrainedMixture, Opened]:
    """A model, and rows that it is asked about, checked before any work.

    Raises
    ------
    ValueError
        If they have another number of features, in scikit-learn's words.
    """
    mixture = open_model(model).set_params(**gaps)
    rows = open_rows(data, store, getattr(mixture, "feature_names_in_", None))
    if isinstance(rows, ParquetRows):
        mixture._check_n_features(rows.n_features)
    elif rows.ndim == 2:  # of others, it is said once they are read what is wrong
        mixture._check_n_features(int(rows.shape[1]))
    return mixture, rows


def threads(cluster: Cluster) -> tuple[int | None, int | None]:
    """Threads of all workers and of one, as far as they are known beforehand."""
    if cluster.scheduler is not None or cluster.file is not None:
        return None, None
    workers, threads = cluster.n_workers, cluster.threads_per_worker
    if workers is None and threads is None:
        workers, threads = nprocesses_nthreads()
    elif workers is None:
        workers = max(1, CPU_COUNT // (threads or 1))
    elif threads is None:
        threads = max(1, math.ceil(CPU_COUNT / workers))
    return int(workers * (threads or 1)), threads


@contextmanager
def connect(cluster: Cluster) -> Iterator[Client | None]:
    """Join the scheduler, or start a cluster, for as long as the context.

    Where there cannot be one, the work is done by this process's threads.
    """
    is_joined = cluster.scheduler is not None
    steps.begin("joining workers" if is_joined else "starting workers")
    with _connected(cluster) as client:
        yield client
        steps.begin("leaving workers" if is_joined else "ending workers")


def _connected(cluster: Cluster) -> AbstractContextManager[Client | None]:
    if cluster.scheduler is not None:
        return deploy.join(cluster.scheduler, cluster.credentials())
    if cluster.file is not None:
        _quieten(logging.ERROR)
        return deploy.read(cluster.file).connect()
    _quieten(logging.CRITICAL)  # errors reach the user as exceptions
    if (lack := _lack_of_workers()) is not None:
        warnings.warn(
            f"No worker processes can be started here ({lack}): this process does "
            "the work, and --memory-limit is not kept to. Set TMPDIR to a folder "
            "that can be written to, and see that /dev/shm can.",
            stacklevel=2,
        )
        return _threads(cluster)
    return _local(cluster)


@contextmanager
def _threads(cluster: Cluster) -> Iterator[None]:
    with dask.config.set(scheduler="threads", num_workers=threads(cluster)[0]):
        yield


@contextmanager
def _local(cluster: Cluster) -> Iterator[Client]:
    with (
        deploy.started(
            partial(
                LocalCluster,
                n_workers=cluster.n_workers,
                threads_per_worker=cluster.threads_per_worker,
                memory_limit=cluster.memory_limit,
                dashboard_address=cluster.dashboard or "127.0.0.1:0",  # any free port
                silence_logs=logging.CRITICAL,
            )
        ) as workers,
        deploy.joined(workers) as client,
    ):
        yield client


def _lack_of_workers() -> OSError | None:
    """What a worker process needs and cannot have, as in a read-only container."""
    try:
        if dask.config.get("temporary-directory", None) is None:
            tempfile.gettempdir()
        get_context("spawn").Lock()
    except OSError as error:
        return error
    return None


def _quieten(level: int) -> None:
    """Keep what Dask logs below a level off the terminal, from now on.

    Not only until the cluster is closed: that its connections are gone, workers' that
    were lost among them, is logged after that, with tracebacks. Loggers that Dask's
    configuration names have handlers of their own, and are heard as before.
    """
    for handler in logging.getLogger("distributed").handlers:
        handler.setLevel(level)
    # Of what nobody waits for any more, such as connections as they are closed.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
