"""Rows of any kind, and their weights, as what a fit reads."""

from __future__ import annotations

from typing import Any

from daskgmm.data.block import NO_GAPS
from daskgmm.data.dask_array import from_parquet, grouped, is_lazy, opened
from daskgmm.data.gaps import Gaps
from daskgmm.data.in_memory import ArraySource
from daskgmm.data.parquet import ParquetRows
from daskgmm.data.partition import DaskSource
from daskgmm.data.source import Source
from daskgmm.data.weights import lazy_weights


def open_source(X: Any, sample_weight: Any = None, gaps: Gaps = NO_GAPS) -> Source:
    """Take rows of any kind, and their weights.

    Parameters
    ----------
    X : ndarray, dask.array.Array, zarr.Array, ParquetRows, str or path
        Rows, (n, d), of real numbers.
    sample_weight : array-like, lazy or not, shape (n,), or None
    gaps : Gaps

    Raises
    ------
    DataError
        If they are not of a kind, shape or dtype that can be used.
    StoreError
        If there is no Zarr array at a place.
    """
    if not is_lazy(X):
        return ArraySource(X, sample_weight, gaps.nan)
    X = opened(X)
    if isinstance(X, ParquetRows):
        # What is elsewhere has been fetched by then, so that to read is to decode: that
        # is best done by the thread that works on the rows. All else is read ahead.
        streamed = gaps.nan == "error"
        rows, chunk_rows, starts = from_parquet(X, gaps, streamed), None, X.starts
    else:
        rows, chunk_rows = grouped(X, gaps)
        streamed, starts = False, None
    weights = None
    if sample_weight is not None:
        sample_weight = opened(sample_weight)
        if isinstance(X, ParquetRows) and isinstance(sample_weight, ParquetRows):
            sample_weight = sample_weight.cut_like(X)
        weights = lazy_weights(sample_weight, rows, gaps)
    tables = [given for given in (X, sample_weight) if isinstance(given, ParquetRows)]
    return DaskSource(rows, weights, chunk_rows, gaps, starts, streamed, tables)
