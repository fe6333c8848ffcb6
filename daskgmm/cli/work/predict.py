"""``daskgmm predict``."""

from __future__ import annotations

from time import perf_counter
from typing import Any, Final

import click
import dask.array as da
import numpy as np

from daskgmm import steps
from daskgmm.cli.options import Cluster, Data
from daskgmm.cli.work.common import (
    digest,
    tell_forecast,
    tell_written,
)
from daskgmm.cli.work.estimate import forecast_answer
from daskgmm.cli.work.places import connect, model_and_rows, threads
from daskgmm.cli.work.report import Report
from daskgmm.data.dask_array import as_dask
from daskgmm.data.opening import Opened
from daskgmm.data.parquet import ParquetRows
from daskgmm.data.versions import versions_of
from daskgmm.estimators.trained import TrainedMixture
from daskgmm.outputs import inspect
from daskgmm.outputs.base import Work
from daskgmm.outputs.parquet_output import check_names, write_parquet
from daskgmm.outputs.zarr_output import write_zarr
from daskgmm.storage.urls import is_parquet_name

_METHODS: Final = {
    "labels": "predict",
    "proba": "predict_proba",
    "log-density": "score_samples",
}


def predict(
    model: str,
    store: str,
    out: str,
    kind: str,
    outliers: float | None,
    keys: tuple[str, ...],
    missing_chunks: str,
    nan: str,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    data: Data,
    cluster: Cluster,
) -> None:
    """See the command."""
    report = Report(as_json=as_json)
    with report.steps():
        mixture, rows = model_and_rows(
            model, store, data, missing_chunks=missing_chunks, nan=nan
        )
    keyed = _keyed(rows, keys)
    check_names(keys, _columns(kind, mixture.n_components, outliers))
    work = Work(
        {
            "kind": kind if outliers is None else f"outliers {outliers}",
            "model": digest(mixture),
            "keys": keys,
            "nan": nan,
            "missing_chunks": missing_chunks,
            **_identity(rows, data, store),
        },
        overwrite,
        versions_of(rows).of_rows,
    )
    with report.steps():
        steps.begin(f"looking at {out}")
        inspect.check(out, work)
    if dry_run:
        tell_forecast(forecast_answer(mixture, rows, *threads(cluster)), report)
        return
    began = perf_counter()
    with report.steps(), connect(cluster):
        answer = _answer(mixture, rows, kind, outliers)
        if is_parquet_name(out):
            written = write_parquet(
                answer,
                out,
                work,
                names=_columns(kind, mixture.n_components, outliers),
                keys=keys,
                keyed=keyed,
            )
        else:
            written = write_zarr(_with_lengths(answer, rows), out, work)
    tell_written(written, out, perf_counter() - began, report)


def _keyed(rows: Opened, keys: tuple[str, ...]) -> ParquetRows | None:
    """What has the key columns."""
    if not keys:
        return None
    if not isinstance(rows, ParquetRows):
        raise click.UsageError("--key is for a STORE that is Parquet.")
    rows.check_columns(keys)
    # Blocks are cut by what a row takes: more columns to read would cut them anew.
    return rows


def _answer(
    mixture: TrainedMixture, rows: Opened, kind: str, outliers: float | None
) -> Any:
    """The answer for all rows, lazily; what is an outlier is found before."""
    if outliers is None:
        return getattr(mixture, _METHODS[kind])(rows)
    offset = mixture.score_quantile(rows, outliers)
    # As `MixtureOutlierDetector` has it; NaN, of rows that are skipped, is below, too.
    return (mixture.score_samples(rows) >= offset) * 2 - 1


def _columns(kind: str, n_components: int, outliers: float | None) -> list[str]:
    if outliers is not None:
        return ["label"]
    if kind == "proba":
        return [f"probability_{k}" for k in range(n_components)]
    return ["component" if kind == "labels" else "log_density"]


def _with_lengths(answer: da.Array, rows: Opened) -> da.Array:
    """An answer whose blocks' lengths are known, if need be by counting rows."""
    if not np.isnan(answer.shape[0]):
        return answer
    # To count rows costs less than to count answers.
    steps.begin("counting rows")
    counted: Any = as_dask(rows).compute_chunk_sizes()
    chunks = (counted.chunks[0], *answer.chunks[1:])
    known: da.Array = da.map_blocks(
        _as_it_is, answer, chunks=chunks, dtype=answer.dtype
    )
    return known


def _as_it_is(block: Any) -> Any:
    return block


def _identity(rows: Opened, data: Data, store: str) -> dict[str, Any]:
    """The data, as far as they are known before they are read."""
    if isinstance(rows, ParquetRows):
        return {
            "data": rows.url,
            "columns": rows.columns,
            "filters": [[name, op, str(value)] for name, op, value in data.filters],
            "blocks": rows.n_blocks,
            "rows": None if np.isnan(rows.n_rows) else int(rows.n_rows),
        }
    return {
        "data": store if data.array is None else f"{store}, array {data.array}",
        "decode_cf": data.decode_cf,
        "shape": rows.shape,
        "dtype": str(rows.dtype),
    }
