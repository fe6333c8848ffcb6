"""``daskgmm fit``."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import click
import numpy as np

from daskgmm.cli.common import tell_forecast
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
from daskgmm.cli.report import Report
from daskgmm.cli.training import (
    Training,
    bayesian_option,
    check_places,
    overwrite_option,
    priors_of,
    tell_trained,
    told_at_the_end,
    training_options,
    weights_from_option,
)
from daskgmm.data.gaps import Nan
from daskgmm.display.words import seconds
from daskgmm.estimators.bayesian import BayesianGaussianMixture
from daskgmm.estimators.gaussian import GaussianMixture
from daskgmm.estimators.trained import TrainedMixture
from daskgmm.mixtures.covariance import SHAPES
from daskgmm.storage.urls import absolute as place
from daskgmm.storage.zarr_store import Missing


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
@bayesian_option
@click.option(
    "--weight-concentration",
    type=click.FloatRange(min=0, min_open=True),
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
def fit(
    store: str,
    model: str,
    n_components: int,
    covariance_type: str,
    bayesian: bool,
    weight_concentration: float | None,
    weights_from: str | None,
    missing_chunks: Missing,
    nan: Nan,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    training: Training,
    data: Data,
    cluster: Cluster,
) -> None:
    """Fit a mixture to the rows in STORE, and save it as MODEL.

    STORE is a Zarr array of shape (rows, features), or Parquet: a file, a folder or a
    glob. Each iteration reads it once and prints a line: the number of the pass, the
    mean log likelihood of a row (the bound), its change, the speed, and how long it
    goes on at most.

    \b
      daskgmm fit rows.zarr model.zarr -k 8 --n-init 5 --seed 0
      daskgmm fit 'cells/*.parquet' model.zarr -k 8 --columns x,y --filter 'x > 0'
      daskgmm fit rows.zarr model.zarr -k 30 --bayesian
      daskgmm fit rows.zarr model.zarr -k 8 --dry-run

    With --checkpoint, a fit that was broken off goes on when the same command is given
    again, and ends with the same model to the last bit. It also goes on with a larger
    --max-iter or a lower --tol, with more restarts, or accelerated.
    """  # noqa: D301
    check_places(store, model, training, overwrite=overwrite)
    of_all: dict[str, Any] = {
        "n_components": n_components,
        "covariance_type": covariance_type,
        "missing_chunks": missing_chunks,
        "nan": nan,
    }
    mixture: TrainedMixture
    priors = priors_of(weight_concentration, weights_from, training, bayesian=bayesian)
    parameters = training.parameters(bayesian=bayesian)
    if bayesian:
        mixture = BayesianGaussianMixture(**of_all, **parameters, **priors)
    else:
        mixture = GaussianMixture(**of_all, **parameters)
    report = Report(as_json=as_json)
    rows = data.open(store)
    if dry_run:
        tell_forecast(forecast_fit(mixture, rows, *cluster.threads()), report)
        return
    began = perf_counter()
    with report.passes(), cluster.connect(), told_at_the_end():
        mixture.fit(rows, **training.of_fit())
    mixture.save(model, overwrite=overwrite)
    _tell_fitted(mixture, model, training, perf_counter() - began, report)


def _tell_fitted(
    mixture: TrainedMixture,
    model: str,
    training: Training,
    time: float,
    report: Report,
) -> None:
    how = "Converged" if mixture.converged_ else "Did not converge"
    report.say(f"{how} in {mixture.n_iter_} iterations, {seconds(time)}.")
    tell_trained(mixture, report, goes_on_from=training.checkpoint)
    report.say(f"The model is in {model}.")
    left = mixture.remaining_gain_
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
