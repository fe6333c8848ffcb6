"""``daskgmm score``."""

from __future__ import annotations

from daskgmm.cli.options import Cluster, Data
from daskgmm.cli.work.common import tell_forecast
from daskgmm.cli.work.estimate import forecast_answer
from daskgmm.cli.work.places import connect, model_and_rows, threads
from daskgmm.cli.work.report import Report
from daskgmm.estimators.gaussian import GaussianMixture


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
    """See the command."""
    report = Report(as_json=as_json)
    with report.steps():
        mixture, rows = model_and_rows(
            model, store, data, missing_chunks=missing_chunks, nan=nan
        )
    if dry_run:
        tell_forecast(forecast_answer(mixture, rows, *threads(cluster)), report)
        return
    with report.steps(), connect(cluster):
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
