"""Rows of this process's memory, held by a cluster's workers."""

from __future__ import annotations

import uuid
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from daskgmm.data.block import block_rows
from daskgmm.data.partition import DaskSource
from daskgmm.errors import ClusterError
from daskgmm.execution.cluster import active_client
from daskgmm.execution.watch import NO_ANSWER


def held_by_cluster(x: NDArray[Any], weights: NDArray[np.float64] | None) -> DaskSource:
    """Send rows to the cluster, cut as `ArraySource` cuts them: no bit differs.

    What a worker has of them is lost with it.

    Raises
    ------
    ClusterError
        If there is no cluster, or no worker takes them.
    """
    rows = block_rows(*x.shape)
    return DaskSource(_sent(x, rows), None if weights is None else _sent(weights, rows))


def _sent(array: NDArray[Any], block: int) -> da.Array:
    """An array whose blocks the workers hold."""
    client = active_client()
    if client is None:
        raise ClusterError("There is no cluster to send rows to.")
    name = f"subsample-{uuid.uuid4().hex}"
    rest = (0,) * (array.ndim - 1)
    parts = {
        (name, i, *rest): array[first : first + block]
        for i, first in enumerate(range(0, len(array), block))
    }
    try:
        futures: Any = client.scatter(parts)
    except NO_ANSWER as error:
        raise ClusterError(f"The workers do not take rows: {error}") from error
    chunks = (tuple(map(len, parts.values())), *((n,) for n in array.shape[1:]))
    return da.Array(futures, name, chunks, meta=array[:0])
