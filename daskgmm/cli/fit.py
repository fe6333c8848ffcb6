"""``daskgmm fit``: what it is asked, and how it helps."""

from __future__ import annotations

from typing import Any

import click

from daskgmm.cli.options import (
    PLACE,
    SHAPES,
    Finite,
    cluster_options,
    data_options,
    dry_run_option,
    json_option,
    missing_option,
    nan_option,
)
from daskgmm.cli.training import (
    bayesian_option,
    check_places,
    check_training,
    overwrite_option,
    priors_of,
    training_options,
    weights_from_option,
)


@click.command()
@click.argument("store", type=PLACE)
@click.argument("model", type=PLACE)
@click.option(
    "-k",
    "--components",
    "n_components",
    type=click.IntRange(min=1),
    required=True,
    help="Number of components.",
)
@click.option(
    "--covariance-type",
    type=click.Choice(list(SHAPES)),
    default="full",
    show_default=True,
    help="A matrix for each component, one matrix for all, a diagonal for each, or "
    "one variance for each.",
)
@bayesian_option
@click.option(
    "--weight-concentration",
    type=Finite(min=0, min_open=True),
    help="With --bayesian, the prior of the weights: the lower, the fewer components "
    "have weight.  [default: 1 / components]",
)
@weights_from_option
@training_options
@data_options
@missing_option
@nan_option
@overwrite_option
@dry_run_option
@json_option
@cluster_options
def fit(**given: Any) -> None:
    """Fit a mixture to the rows in STORE, and save it as MODEL.

    STORE is a Zarr array of shape (rows, features), or Parquet: a file, a folder or a
    glob. Each pass reads it once, or what does not stay in memory, and prints a line:
    the number of the pass, the mean log likelihood of a row (the bound), its change,
    the speed, and how long it goes on: about, or at most. Large data take few passes.

    \b
      daskgmm fit rows.zarr model.zarr -k 8 --n-init 5 --seed 0
      daskgmm fit 'cells/*.parquet' model.zarr -k 8 --columns x,y --filter 'x > 0'
      daskgmm fit rows.zarr model.zarr -k 30 --bayesian
      daskgmm fit rows.zarr model.zarr -k 8 --dry-run

    With --checkpoint, a fit that was interrupted resumes when the same command is given
    again, and ends with the same model to the last bit. It also resumes with a larger
    --max-iter or a lower --tol, with more restarts, or accelerated.
    """  # noqa: D301
    training = given["training"]
    check_training(given["model"], given["store"], training, given["n_components"])
    asked = given.pop("weight_concentration"), given.pop("weights_from")
    priors = priors_of(*asked, training, bayesian=given["bayesian"])
    check_places(given, given["n_components"])
    from daskgmm.cli.work.fit import fit as work

    work(**given, priors=priors)
