"""``daskgmm info``: what it is asked, and how it helps."""

from __future__ import annotations

from typing import Any

import click

from daskgmm.cli.checks import check_there
from daskgmm.cli.options import PLACE, json_option


@click.command()
@click.argument("what", metavar="MODEL_OR_STORE", type=PLACE)
@json_option
def info(**given: Any) -> None:
    """Describe a model, data, or an output: whether it is complete.

    \b
      daskgmm info model.zarr
      daskgmm info labels.zarr
      daskgmm info cells.parquet --json
    """  # noqa: D301
    check_there(MODEL_OR_STORE=given["what"])
    from daskgmm.cli.work.info import info as work

    work(**given)
