"""``daskgmm score``: what it is asked, and how it helps."""

from __future__ import annotations

from typing import Any

import click

from daskgmm.cli.checks import check_cluster, check_holds_model, check_store
from daskgmm.cli.options import (
    PLACE,
    cluster_options,
    data_options,
    dry_run_option,
    json_option,
    missing_option,
    nan_option,
)


@click.command()
@click.argument("model", type=PLACE)
@click.argument("store", type=PLACE)
@data_options
@missing_option
@nan_option
@dry_run_option
@json_option
@cluster_options
def score(**given: Any) -> None:
    """Print how well MODEL describes the rows in STORE, from one pass over them.

    That is the mean log density of a row (the higher, the better), and the criteria of
    Akaike and of Bayes (the lower, the better), which compare models with different
    numbers of components:

    \b
      daskgmm score model-8.zarr rows.zarr
      daskgmm score model-9.zarr rows.zarr --json
    """  # noqa: D301
    check_holds_model(given["model"])
    check_store(given["store"], given["data"], model=given["model"])
    check_cluster(given["cluster"])
    from daskgmm.cli.work.score import score as work

    work(**given)
