"""What is refused before anything is loaded for the work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final

import click

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
