"""What several commands check and tell."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from daskgmm.cli.work.estimate import Forecast
from daskgmm.cli.work.report import Report
from daskgmm.display.words import seconds
from daskgmm.em.checkpoint import describe
from daskgmm.estimators.trained import TrainedMixture
from daskgmm.outputs.base import Written


def tell_forecast(forecast: Forecast, report: Report) -> None:
    """Say what a dry run found."""
    for line in forecast.lines():
        report.say(line)
    report.end(**asdict(forecast))


def digest(mixture: TrainedMixture) -> Any:
    """A digest of the parameters, by which models are told apart."""
    parameters = (mixture.weights_, mixture.means_, mixture.precisions_cholesky_)
    return describe(np.concatenate([np.ravel(array) for array in parameters]))


def tell_written(written: Written, out: str, time: float, report: Report) -> None:
    """Say what was written, and what was there already."""
    found = written.n_found
    kept = f", {found} of {written.n_parts} parts being there already" if found else ""
    report.say(f"Wrote {written.n_rows:,} rows to {out} in {seconds(time)}{kept}.")
    report.end(
        out=out,
        rows=written.n_rows,
        parts=written.n_parts,
        parts_found=found,
        seconds=time,
    )


def feature_names(mixture: TrainedMixture) -> list[str]:
    """Names of the features, or numbers where they have none."""
    numbered = [f"feature_{j}" for j in range(mixture.n_features_in_)]
    return list(map(str, getattr(mixture, "feature_names_in_", numbered)))
