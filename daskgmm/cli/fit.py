"""``daskgmm fit``."""

from __future__ import annotations

import warnings
from time import perf_counter
from typing import Any, Final

import click
import numpy as np
from sklearn.exceptions import ConvergenceWarning

from daskgmm.cli.common import check_arguments_apart, tell_forecast
from daskgmm.cli.estimate import forecast_fit
from daskgmm.cli.options import (
    Cluster,
    Data,
    cluster_options,
    data_options,
    dry_run_option,
    json_option,
    missing_option,
    nan_option,
)
from daskgmm.cli.report import Report, seconds
from daskgmm.em.checkpoint import parse_interval
from daskgmm.errors import PlaceError, SkippedRowsWarning
from daskgmm.estimators.gaussian import GaussianMixture
from daskgmm.mixtures.covariance import SHAPES
from daskgmm.storage.models import existing
from daskgmm.storage.retry import check_free
from daskgmm.storage.urls import absolute as place

_STARTS: Final = ("kmeans", "k-means++", "random", "random_from_data")


def _interval(
    _context: click.Context, _parameter: click.Parameter, value: str
) -> int | str:
    """An interval as `fit` takes it: digits alone are passes."""
    interval = int(value) if value.isdecimal() else value
    try:
        parse_interval(interval)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return interval


def _init_size(
    _context: click.Context, _parameter: click.Parameter, value: str
) -> int | str:
    """A number of rows, or 'auto'."""
    if value == "auto":
        return value
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is neither 'auto' nor a number from 1.")
    return int(value)


@click.command()
@click.argument("store", type=place)
@click.argument("model", type=place)
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
@click.option(
    "--tol",
    type=click.FloatRange(min=0),
    default=1e-3,
    show_default=True,
    help="Stop when a row's mean log likelihood gains less.",
)
@click.option(
    "--reg-covar",
    type=click.FloatRange(min=0),
    default=1e-6,
    show_default=True,
    help="Added to the diagonal of each covariance.",
)
@click.option(
    "--max-iter",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Stop after so many iterations.",
)
@click.option(
    "--n-init",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Starts; they train in the same passes over the data, and the best is kept.",
)
@click.option(
    "--init-params",
    type=click.Choice(_STARTS),
    default="kmeans",
    show_default=True,
    help="How starts are found.",
)
@click.option(
    "--init-size",
    default="auto",
    show_default=True,
    callback=_init_size,
    help="Starts are found from so many rows, drawn uniformly. 'auto' draws 100,000, "
    "or more where EM is accelerated and the model has many parameters.",
)
@click.option(
    "--accelerate/--no-accelerate",
    default=None,
    help="Have EM go on on the rows that were drawn, between the passes, so that far "
    "fewer passes lead to the same place.  [default: if there are 20 rows for each "
    "that is drawn]",
)
@click.option(
    "--arithmetic",
    type=click.Choice(["auto", "double"]),
    default="auto",
    show_default=True,
    help="Precision: 'auto' computes with rows of float32 in float32 where log "
    "densities stay within 1e-5.",
)
@click.option(
    "--seed",
    "random_state",
    type=click.IntRange(0, 2**32 - 1),
    help="Seed of the starts.  [default: another one each time]",
)
@click.option(
    "--weights",
    type=place,
    metavar="STORE",
    help="Zarr array with the weight of each row.",
)
@click.option(
    "--checkpoint",
    type=place,
    metavar="PLACE",
    help="Keep the state of the fit there, a folder or URL. If the same command was "
    "broken off, it goes on from it.",
)
@click.option(
    "--checkpoint-interval",
    default="1 minute",
    show_default=True,
    callback=_interval,
    help="How often: a number of passes, or a time such as 30s.",
)
@data_options
@missing_option
@nan_option
@click.option("--overwrite", is_flag=True, help="Replace a model that is there.")
@dry_run_option
@json_option
@cluster_options
def fit(
    store: str,
    model: str,
    weights: str | None,
    checkpoint: str | None,
    checkpoint_interval: int | str,
    overwrite: bool,
    accelerate: bool | None,
    dry_run: bool,
    as_json: bool,
    data: Data,
    cluster: Cluster,
    **parameters: Any,
) -> None:
    """Fit a mixture to the rows in STORE, and save it as MODEL.

    STORE is a Zarr array of shape (rows, features), or Parquet: a file, a folder or a
    glob. Each iteration reads it once and prints a line: the number of the pass, the
    mean log likelihood of a row (the bound), its change, the speed, and how long it
    goes on at most.

    \b
      daskgmm fit rows.zarr model.zarr -k 8 --n-init 5 --seed 0
      daskgmm fit 'cells/*.parquet' model.zarr -k 8 --columns x,y --filter 'x > 0'
      daskgmm fit rows.zarr model.zarr -k 8 --dry-run

    With --checkpoint, a fit that was broken off goes on when the same command is given
    again, and ends with the same model to the last bit. It also goes on with a larger
    --max-iter or a lower --tol, with more restarts, or accelerated.
    """  # noqa: D301
    check_arguments_apart(
        {"MODEL": model, "--checkpoint": checkpoint},
        {"STORE": store, "--weights": weights},
    )
    check_free(model)
    if existing(model) is not None and not overwrite:
        raise PlaceError(f"{model} exists: pass --overwrite to replace it.")
    mixture = GaussianMixture(
        accelerate="auto" if accelerate is None else accelerate, **parameters
    )
    report = Report(as_json=as_json)
    rows = data.open(store)
    if dry_run:
        tell_forecast(forecast_fit(mixture, rows, *cluster.threads()), report)
        return
    began = perf_counter()
    with (
        cluster.connect(),
        report.passes(mixture.max_iter, mixture.tol) as observe,
        warnings.catch_warnings(),
    ):
        for told_below in (ConvergenceWarning, SkippedRowsWarning):
            warnings.simplefilter("ignore", told_below)
        mixture.fit(
            rows,
            sample_weight=weights,
            callback=observe,
            checkpoint=checkpoint,
            checkpoint_interval=checkpoint_interval,
        )
    mixture.save(model, overwrite=overwrite)
    _tell_fitted(mixture, model, checkpoint, perf_counter() - began, report)


def _tell_fitted(
    mixture: GaussianMixture,
    model: str,
    checkpoint: str | None,
    time: float,
    report: Report,
) -> None:
    how = "Converged" if mixture.converged_ else "Did not converge"
    report.say(f"{how} in {mixture.n_iter_} iterations, {seconds(time)}.")
    left = mixture.remaining_gain_
    if not np.isnan(left):
        report.say(f"About {left:.1e} of the bound is left to gain.")
    if not mixture.converged_:
        report.say("Raise --max-iter or --tol, or try other starts.")
        if checkpoint is not None:
            report.say(f"With a larger --max-iter, it goes on from {checkpoint}.")
    if mixture.n_rows_skipped_:
        report.say(f"{mixture.n_rows_skipped_:,} rows with NaN were left out.")
    report.say(f"The model is in {model}.")
    report.end(
        model=model,
        converged=mixture.converged_,
        iterations=mixture.n_iter_,
        passes=mixture.n_passes_,
        bound=mixture.lower_bound_,
        remaining_gain=None if np.isnan(left) else left,
        rows_skipped=mixture.n_rows_skipped_,
        seconds=time,
    )
