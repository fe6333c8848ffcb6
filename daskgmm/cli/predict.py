"""``daskgmm predict``: what it is asked, and how it helps."""

from __future__ import annotations

from typing import Any

import click

from daskgmm.cli.checks import (
    check_arguments_apart,
    check_cluster,
    check_format,
    check_holds_model,
    check_out,
    check_store,
)
from daskgmm.cli.options import (
    PLACE,
    Finite,
    cluster_options,
    data_options,
    dry_run_option,
    json_option,
    missing_option,
    nan_option,
)
from daskgmm.storage.urls import is_parquet_name


@click.command()
@click.argument("model", type=PLACE)
@click.argument("store", type=PLACE)
@click.argument("out", type=PLACE)
@click.option(
    "--kind",
    type=click.Choice(["labels", "proba", "log-density"]),
    default="labels",
    show_default=True,
    help="The most probable component of each row, the probability of each component, "
    "or the log density of the mixture.",
)
@click.option(
    "--outliers",
    type=Finite(0, 0.5, min_open=True),
    metavar="SHARE",
    help="Label outliers instead: -1 for so many of the rows, those of the lowest "
    "density, and 1 for others. To find where they begin, STORE is read twice more.",
)
@click.option(
    "--key",
    "keys",
    metavar="COLUMN",
    multiple=True,
    help="Column of STORE to carry along, if STORE and OUT are Parquet; may be given "
    "several times.",
)
@data_options
@missing_option
@nan_option
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace another output that is there. The unfinished one of this same "
    "command is resumed: to begin again, remove it.",
)
@dry_run_option
@json_option
@cluster_options
def predict(**given: Any) -> None:
    """Label the rows in STORE by MODEL, and write the labels to OUT.

    OUT is a Zarr array with a row for each of STORE, in chunks of as many rows, with
    checksums; small chunks are put into shards. If its name ends in .parquet, it is a
    folder of Parquet files, one for each block of STORE, with the columns "component",
    or "probability_0" and so on, or "log_density", or, of outliers, "label".

    \b
      daskgmm predict model.zarr rows.zarr labels.zarr
      daskgmm predict model.zarr rows.zarr proba.zarr --kind proba
      daskgmm predict model.zarr cells.parquet labels.parquet --key id
      daskgmm predict model.zarr rows.zarr outliers.zarr --outliers 0.01

    A command that was interrupted, by an error or in any other way, resumes when it is
    given again; what was done is kept. OUT says of itself whether it is complete, and
    so does "daskgmm info OUT".
    """  # noqa: D301
    kind, out = given["kind"], given["out"]
    if given["outliers"] is not None and kind != "labels":
        raise click.UsageError(f"--outliers does not go with --kind {kind}.")
    read = {"MODEL": given["model"], "STORE": given["store"]}
    check_arguments_apart({"OUT": out}, read)
    check_format(out)
    if given["keys"] and not is_parquet_name(out):
        raise click.UsageError("--key is for an OUT that is Parquet.")
    check_holds_model(given["model"])
    check_store(given["store"], given["data"], given["keys"], model=given["model"])
    check_out(out, overwrite=given["overwrite"])
    check_cluster(given["cluster"])
    from daskgmm.cli.work.predict import predict as work

    work(**given)
