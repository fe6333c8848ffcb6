"""What the commands that train mixtures refuse, and say at the end."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from daskgmm import steps
from daskgmm.cli.checks import check_as_many, exists
from daskgmm.cli.options import Data
from daskgmm.cli.training import Training
from daskgmm.cli.work.places import open_rows
from daskgmm.cli.work.report import Report
from daskgmm.data.opening import Opened
from daskgmm.data.parquet import ParquetRows
from daskgmm.em.fit import check_number
from daskgmm.errors import PlaceError, SkippedRowsWarning, StoreError
from daskgmm.estimators.trained import TrainedMixture
from daskgmm.storage.glance import array_at
from daskgmm.storage.models import existing
from daskgmm.storage.retry import check_free, what_is_at


def check_model(model: str, *, overwrite: bool) -> None:
    """Refuse, before any work, a place where a model must not be written."""
    steps.begin(f"looking at {model}")
    check_free(model)
    if existing(model) is not None and not overwrite:
        raise PlaceError(exists(model))


def rows_to_fit(
    data: Data, training: Training, store: str, n_components: int
) -> Opened:
    """Open the rows and look at the checkpoint, before any work."""
    rows = open_rows(data, store)
    n_rows = rows.n_rows if isinstance(rows, ParquetRows) else rows.shape[0]
    if not math.isnan(n_rows):
        check_number(int(n_rows), n_components)
        weights = None if training.weights is None else array_at(training.weights)
        if weights is not None:
            check_as_many(weights, n_rows)
    if training.checkpoint is not None:
        steps.begin(f"looking at {training.checkpoint}")
        try:
            what_is_at(training.checkpoint)
        except StoreError as error:
            raise StoreError(f"--checkpoint: {error}") from None
    return rows


@contextmanager
def told_at_the_end() -> Iterator[None]:
    """Leave out warnings of what a command tells by itself, once it is done."""
    with warnings.catch_warnings():
        for category in (ConvergenceWarning, SkippedRowsWarning):
            warnings.simplefilter("ignore", category)
        yield


def tell_trained(
    mixture: TrainedMixture, report: Report, *, goes_on_from: str | None = None
) -> None:
    """Say what to know of a mixture after its number of iterations.

    Parameters
    ----------
    mixture : TrainedMixture
    report : Report
    goes_on_from : str or None
        A checkpoint from which the same command goes on with a larger --max-iter.
    """
    left = mixture.remaining_gain_
    if not np.isnan(left):
        report.say(f"About {left:.1e} of the bound is left to gain.")
    if not mixture.converged_:
        report.say("Raise --max-iter or --tol, or try other starts.")
        if goes_on_from is not None:
            report.say(f"With a larger --max-iter, it resumes from {goes_on_from}.")
    if mixture.n_rows_skipped_:
        report.say(f"{mixture.n_rows_skipped_:,} rows with NaN were left out.")
