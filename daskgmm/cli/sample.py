"""``daskgmm sample``: what it is asked, and how it helps."""

from __future__ import annotations

from typing import Any

import click

from daskgmm.cli.checks import (
    check_arguments_apart,
    check_format,
    check_holds_model,
    check_out,
)
from daskgmm.cli.options import PLACE, json_option


@click.command()
@click.argument("model", type=PLACE)
@click.argument("out", type=PLACE)
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
    help="Replace another output that is there. The unfinished one of this same "
    "command is resumed: to begin again, remove it.",
)
@json_option
def sample(**given: Any) -> None:
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
    check_arguments_apart({"OUT": given["out"]}, {"MODEL": given["model"]})
    check_format(given["out"])
    check_holds_model(given["model"])
    check_out(given["out"], overwrite=given["overwrite"])
    from daskgmm.cli.work.sample import sample as work

    work(**given)
