"""``daskgmm plot``: what it is asked, and how it helps."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any, Final

import click

from daskgmm.cli.checks import (
    check_arguments_apart,
    check_features,
    check_holds_model,
    check_picture,
    check_store,
)
from daskgmm.cli.options import (
    PLACE,
    data_options,
    is_given,
    missing_option,
)
from daskgmm.storage.urls import absolute as place
from daskgmm.storage.urls import as_path

KINDS: Final = ("mixture", "pairs", "responsibilities", "convergence")
_FORMATS: Final = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")


def _features(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> tuple[int | str, ...] | None:
    """Numbers of features, or names, with commas between."""
    if value is None:
        return None
    texts = [text.strip() for text in value.split(",")]
    if not all(texts):
        raise click.BadParameter(f"{value!r} has an empty name.")
    return tuple(int(text) if text.isdecimal() else text for text in texts)


@click.command()
@click.argument("model", type=PLACE)
@click.argument(
    "places", metavar="[STORE] PICTURE", nargs=-1, required=True, type=click.Path()
)
@click.option(
    "--kind",
    type=click.Choice(list(KINDS)),
    default="mixture",
    show_default=True,
    help="Components over rows, of two features or one; each two features; rows in "
    "the colour of their component; or the bound of each run by pass.",
)
@click.option(
    "--features",
    metavar="A,B,...",
    callback=_features,
    help="Numbers, from 0, or names of the features that are drawn: one or two, or "
    "more for pairs.  [default: the first two, or six]",
)
@click.option(
    "--dpi",
    type=click.IntRange(30, 1200),
    default=150,
    show_default=True,
    help="Dots of the picture in an inch.",
)
@data_options
@missing_option
@click.option("--overwrite", is_flag=True, help="Replace a picture that is there.")
def plot(**given: Any) -> None:
    """Draw MODEL, over some rows of STORE if it is given, and write PICTURE.

    Of STORE a few blocks are read, chosen at random; rows with NaN are not drawn. The
    name of PICTURE says its format: .png, .svg, .pdf, .jpg, .webp or .tif.

    \b
      daskgmm plot model.zarr picture.png
      daskgmm plot model.zarr rows.zarr picture.png --features 0,2
      daskgmm plot model.zarr cells.parquet pairs.svg --kind pairs
      daskgmm plot model.zarr bound.png --kind convergence
    """  # noqa: D301
    *stores, picture = given.pop("places")
    if len(stores) > 1:
        raise click.UsageError("After MODEL, give STORE and PICTURE, or PICTURE alone.")
    if PurePosixPath(picture.lower()).suffix not in _FORMATS:
        raise click.UsageError(
            f"{picture!r} says no format: its name must end in one of "
            f"{', '.join(_FORMATS)}."
        )
    store = place(stores[0]) if stores else None
    kind, features = given["kind"], given["features"]
    of_rows = [*asdict(given["data"]).values(), is_given("missing_chunks")]
    if store is None and any(of_rows):
        raise click.UsageError("Options for the rows are given, but no STORE.")
    if store is None and kind == "responsibilities":
        raise click.UsageError("--kind responsibilities is of rows: give STORE, too.")
    if kind == "convergence" and (store is not None or features):
        raise click.UsageError(
            "--kind convergence is of the model's passes: leave out STORE and "
            "--features."
        )
    if features and kind != "pairs" and len(features) > 2:
        raise click.UsageError(f"--kind {kind} has one or two features.")
    picture = as_path(place(picture))
    check_arguments_apart(
        {"PICTURE": picture}, {"MODEL": given["model"], "STORE": store}
    )
    check_holds_model(given["model"])
    check_features(given["model"], features)
    if store is not None:
        check_store(store, given["data"], model=given["model"])
    check_picture(picture, overwrite=given.pop("overwrite"))
    from daskgmm.cli.work.plot import plot as work

    work(**given, store=store, picture=picture)
