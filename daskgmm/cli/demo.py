"""``daskgmm demo``: what it is asked, and how it helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from daskgmm.cli.options import Finite, json_option

GIGABYTES: Final = 3.2
BUDGET: Final = 450
"""As `daskgmm.demo.run` has them."""


@click.command()
@click.option(
    "--folder",
    type=click.Path(file_okay=False, writable=True, path_type=Path),
    default="demo-output",
    show_default=True,
    help="Where to write.",
)
@click.option(
    "--size",
    "gigabytes",
    type=Finite(min=BUDGET / 1000),
    default=GIGABYTES,
    show_default=True,
    help="Size of the data in GB, more than a process may take.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--keep", is_flag=True, help="Keep the data when done.")
@json_option
def demo(**given: Any) -> None:
    """Fit data in less memory than they take, and show what was found.

    Writes rows of a known mixture to a Zarr array, fits a mixture on a local cluster
    whose processes are kept from taking the memory to hold them, compares it with the
    known one, and draws it. Fails unless they agree and the memory was kept to.

    \b
      daskgmm demo
      daskgmm demo --size 0.5 --folder /tmp/demo
    """  # noqa: D301
    from daskgmm.cli.work.demo import demo as work

    work(**given)
