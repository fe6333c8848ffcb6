"""``daskgmm score``."""

from __future__ import annotations

import click

from daskgmm.cli.common import tell_forecast
from daskgmm.cli.estimate import forecast_answer
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
from daskgmm.estimators.gaussian import GaussianMixture
from daskgmm.estimators.models import load
from daskgmm.storage.urls import absolute as place


@click.command()
@click.argument("model", type=place)
@click.argument("store", type=place)
@data_options
@missing_option
@nan_option
@dry_run_option
@json_option
@cluster_options
def score(
    model: str,
    store: str,
    missing_chunks: str,
    nan: str,
    dry_run: bool,
    as_json: bool,
    data: Data,
    cluster: Cluster,
) -> None:
    """Print how well MODEL describes the rows in STORE, from one pass over them.

    That is the mean log density of a row (the higher, the better), and the criteria of
    Akaike and of Bayes (the lower, the better), which compare models with different
    numbers of components:

    \b
      daskgmm score model-8.zarr rows.zarr
      daskgmm score model-9.zarr rows.zarr --json
    """  # noqa: D301
    mixture = load(model).set_params(missing_chunks=missing_chunks, nan=nan)
    report = Report(as_json=as_json)
    rows = data.open(store, getattr(mixture, "feature_names_in_", None))
    if dry_run:
        tell_forecast(forecast_answer(mixture, rows, *cluster.threads()), report)
        return
    with cluster.connect(), report.console.status("reading"):
        found, dtype = mixture._score(rows, None)
    facts = {
        "rows": int(found.weight),
        "mean_log_density": float(dtype.type(found.mean)),
    }
    # Of a Bayesian mixture there are none: its parameters are distributions.
    if isinstance(mixture, GaussianMixture):
        facts["aic"] = found.aic(mixture._n_parameters())
        facts["bic"] = found.bic(mixture._n_parameters())
    report.say(f"Rows               : {facts['rows']:,}")
    report.say(f"Mean log density   : {facts['mean_log_density']:.6f}")
    if "bic" in facts:
        report.say(f"AIC                : {facts['aic']:.3f}")
        report.say(f"BIC                : {facts['bic']:.3f}")
    report.end(**facts)
