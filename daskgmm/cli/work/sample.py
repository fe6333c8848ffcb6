"""``daskgmm sample``."""

from __future__ import annotations

import secrets
from time import perf_counter

from daskgmm.cli.work.common import (
    digest,
    feature_names,
    tell_written,
)
from daskgmm.cli.work.places import open_model
from daskgmm.cli.work.report import Report
from daskgmm.estimators.sampling import draw_lazily
from daskgmm.outputs.base import Work
from daskgmm.outputs.parquet_output import write_parquet
from daskgmm.outputs.zarr_output import write_zarr
from daskgmm.storage.urls import is_parquet_name


def sample(
    model: str,
    out: str,
    n_rows: int,
    seed: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """See the command."""
    report = Report(as_json=as_json)
    with report.steps():
        mixture = open_model(model)
    seed = secrets.randbits(32) if seed is None else seed
    identity = {
        "kind": "sample",
        "model": digest(mixture),
        "rows": n_rows,
        "seed": seed,
    }
    began = perf_counter()
    drawn = draw_lazily(mixture, n_rows, seed)
    work = Work(identity, overwrite)
    with report.steps():
        if is_parquet_name(out):
            written = write_parquet(drawn, out, work, names=feature_names(mixture))
        else:
            written = write_zarr(drawn, out, work)
    report.say(f"Seed {seed}.")
    tell_written(written, out, perf_counter() - began, report)
