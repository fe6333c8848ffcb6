"""``daskgmm sample``."""

from __future__ import annotations

import secrets
from time import perf_counter

import click

from daskgmm.cli.common import (
    check_arguments_apart,
    check_format,
    digest,
    feature_names,
    tell_written,
)
from daskgmm.cli.options import json_option
from daskgmm.cli.report import Report
from daskgmm.data.table_files import has_suffix
from daskgmm.estimators.models import load
from daskgmm.estimators.sampling import draw_lazily
from daskgmm.outputs.base import Work
from daskgmm.outputs.parquet_output import write_parquet
from daskgmm.outputs.zarr_output import write_zarr
from daskgmm.storage.urls import absolute as place


@click.command()
@click.argument("model", type=place)
@click.argument("out", type=place)
@click.option(
    "-n",
    "--rows",
    "n_rows",
    type=click.IntRange(min=1),
    required=True,
    help="How many rows to draw.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    help="Seed of the draw.  [default: another one each time]",
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace another output that is there. The unfinished one of this very "
    "command is gone on with: to begin anew, remove it.",
)
@json_option
def sample(
    model: str,
    out: str,
    n_rows: int,
    seed: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Draw rows from MODEL, in random order, and write them to OUT.

    OUT is a Zarr array of shape (rows, features), or, if its name ends in .parquet, a
    folder of Parquet files. Rows are drawn block by block: any number of them takes
    little memory.

    \b
      daskgmm sample model.zarr drawn.zarr -n 1000000 --seed 0
      daskgmm sample model.zarr drawn.parquet -n 1000000

    The same seed gives the same rows. Each block of 8 MB has a seed of its own, the
    i-th child of SEED, so that more rows begin with the same whole blocks.
    """  # noqa: D301
    check_arguments_apart({"OUT": out}, {"MODEL": model})
    check_format(out)
    mixture = load(model)
    report = Report(as_json=as_json)
    seed = secrets.randbits(32) if seed is None else seed
    identity = {
        "kind": "sample",
        "model": digest(mixture),
        "rows": n_rows,
        "seed": seed,
    }
    began = perf_counter()
    drawn = draw_lazily(mixture, n_rows, seed)
    with report.counting("parts") as observe:
        work = Work(identity, overwrite, observer=observe)
        if has_suffix(out):
            written = write_parquet(drawn, out, work, names=feature_names(mixture))
        else:
            written = write_zarr(drawn, out, work)
    report.say(f"Seed {seed}.")
    tell_written(written, out, perf_counter() - began, report)
