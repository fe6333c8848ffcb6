"""``daskgmm fit``."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np

from daskgmm.cli.options import Cluster, Data
from daskgmm.cli.training import Training
from daskgmm.cli.work.common import tell_forecast
from daskgmm.cli.work.estimate import forecast_fit
from daskgmm.cli.work.places import connect, threads
from daskgmm.cli.work.report import Report
from daskgmm.cli.work.training import (
    check_model,
    rows_to_fit,
    tell_trained,
    told_at_the_end,
)
from daskgmm.data.gaps import Nan
from daskgmm.display.words import seconds
from daskgmm.estimators.bayesian import BayesianGaussianMixture
from daskgmm.estimators.gaussian import GaussianMixture
from daskgmm.estimators.trained import TrainedMixture
from daskgmm.storage.zarr_store import Missing


def fit(
    store: str,
    model: str,
    n_components: int,
    covariance_type: str,
    bayesian: bool,
    priors: dict[str, Any],
    missing_chunks: Missing,
    nan: Nan,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    training: Training,
    data: Data,
    cluster: Cluster,
) -> None:
    """See the command."""
    of_all: dict[str, Any] = {
        "n_components": n_components,
        "covariance_type": covariance_type,
        "missing_chunks": missing_chunks,
        "nan": nan,
    }
    mixture: TrainedMixture
    parameters = training.parameters(bayesian=bayesian)
    if bayesian:
        mixture = BayesianGaussianMixture(**of_all, **parameters, **priors)
    else:
        mixture = GaussianMixture(**of_all, **parameters)
    report = Report(as_json=as_json)
    with report.steps():
        check_model(model, overwrite=overwrite)
        rows = rows_to_fit(data, training, store, n_components)
    if dry_run:
        tell_forecast(forecast_fit(mixture, rows, *threads(cluster)), report)
        return
    began = perf_counter()
    with report.steps(), connect(cluster), told_at_the_end():
        mixture.fit(rows, **training.of_fit())
        # Before the cluster is closed, which an interrupt may break off.
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
