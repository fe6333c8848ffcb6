"""Weights laid beside rows of any kind."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
from dask.array.utils import meta_from_array

from daskgmm.data.block import NO_GAPS, check_kind
from daskgmm.data.dask_array import from_parquet, from_zarr, is_lazy, opened, with_care
from daskgmm.data.gaps import Gaps
from daskgmm.data.parquet import ParquetRows
from daskgmm.errors import DataError


def lazy_weights(weights: Any, rows: da.Array, gaps: Gaps) -> Any:
    """Weights cut like the rows."""
    if not is_lazy(weights):
        weights = _weights_in_memory(weights, rows)
    elif not isinstance(weights, da.Array):
        weights = _lazy_column(weights, gaps)
    if weights.ndim != 1:
        raise DataError(f"sample_weight must be 1-D, got shape {weights.shape}.")
    check_kind(meta_from_array(weights), "sample_weight")
    n_weights, n_rows = weights.shape[0], rows.shape[0]
    if np.isnan(n_weights) or np.isnan(n_rows):
        if weights.numblocks[0] != rows.numblocks[0]:
            raise DataError(
                f"sample_weight has {weights.numblocks[0]} block(s) but X has "
                f"{rows.numblocks[0]}, and their lengths are unknown: cut both alike, "
                "or call compute_chunk_sizes() on both."
            )
        return weights
    _check_n_weights(n_weights, n_rows)
    if n_rows == 0:  # Dask does not rechunk what is empty
        return da.zeros(0, chunks=(rows.chunks[0],))
    return weights.rechunk((rows.chunks[0],))


def _lazy_column(weights: Any, gaps: Gaps) -> da.Array:
    """Weights of a Zarr array, or of Parquet's only column."""
    if not isinstance(weights, ParquetRows):
        return from_zarr(weights, gaps)
    column: da.Array = from_parquet(weights, NO_GAPS)
    return column[:, 0] if weights.n_features == 1 else column


def weights_of_rows_in_memory(weights: Any, gaps: Gaps) -> Any:
    """Weights of rows in memory: lazy ones are read, with the same care as rows."""
    if not is_lazy(weights):
        return weights
    weights = opened(weights)
    if not isinstance(weights, da.Array):
        weights = _lazy_column(weights, gaps)
    return with_care(weights, gaps).compute()


def _weights_in_memory(weights: Any, rows: da.Array) -> Any:
    if np.isnan(rows.shape[0]):
        raise DataError(
            "sample_weight is an array in memory, and the lengths of X's blocks are "
            "unknown: call X.compute_chunk_sizes(), or pass a Dask array cut like X."
        )
    array = np.asarray(weights)
    if array.ndim != 1:
        raise DataError(f"sample_weight must be 1-D, got shape {array.shape}.")
    _check_n_weights(len(array), rows.shape[0])
    return da.from_array(array, chunks=(rows.chunks[0],))


def _check_n_weights(n_weights: int, n_rows: int) -> None:
    if n_weights != n_rows:
        raise DataError(
            f"sample_weight has {n_weights} entries but X has {n_rows} rows."
        )
