"""What several commands check and tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any, Final

import click
import numpy as np

from daskgmm.cli.estimate import Forecast
from daskgmm.cli.report import Report
from daskgmm.display.words import seconds
from daskgmm.em.checkpoint import describe
from daskgmm.estimators.trained import TrainedMixture
from daskgmm.outputs.base import Written
from daskgmm.storage.urls import check_apart

_NOT_WRITTEN: Final = frozenset(
    {".csv", ".tsv", ".txt", ".json", ".jsonl", ".npy", ".npz", ".h5", ".hdf5", ".nc"}
    | {".feather", ".arrow", ".orc", ".avro", ".xls", ".xlsx", ".db", ".sqlite"}
    | {".pkl", ".pickle", ".joblib"}
)
"""Suffixes of what people may expect, and would not get."""


def check_format(out: str) -> None:
    """Refuse a name that promises a format which is none of those written."""
    suffix = PurePosixPath(out.rstrip("/").lower()).suffix
    if suffix in _NOT_WRITTEN:
        raise click.UsageError(
            f"{out} would be no {suffix[1:].upper()}: what is written is Parquet if "
            "the name of OUT ends in .parquet, and else a Zarr array. Choose such a "
            "name."
        )


def check_arguments_apart(
    written: Mapping[str, str | None], read: Mapping[str, str | None]
) -> None:
    """Refuse arguments that would have the command write to what it reads."""
    try:
        check_apart(written, read)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def tell_forecast(forecast: Forecast, report: Report) -> None:
    """Say what a dry run found."""
    for line in forecast.lines():
        report.say(line)
    report.end(**asdict(forecast))


def digest(mixture: TrainedMixture) -> Any:
    """A digest of the parameters, by which models are told apart."""
    parameters = (mixture.weights_, mixture.means_, mixture.precisions_cholesky_)
    return describe(np.concatenate([np.ravel(array) for array in parameters]))


def tell_written(written: Written, out: str, time: float, report: Report) -> None:
    """Say what was written, and what was there already."""
    found = written.n_found
    kept = f", {found} of {written.n_parts} parts being there already" if found else ""
    report.say(f"Wrote {written.n_rows:,} rows to {out} in {seconds(time)}{kept}.")
    report.end(
        out=out,
        rows=written.n_rows,
        parts=written.n_parts,
        parts_found=found,
        seconds=time,
    )


def feature_names(mixture: TrainedMixture) -> list[str]:
    """Names of the features, or numbers where they have none."""
    numbered = [f"feature_{j}" for j in range(mixture.n_features_in_)]
    return list(map(str, getattr(mixture, "feature_names_in_", numbered)))
