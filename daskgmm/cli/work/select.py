"""``daskgmm select``."""

from __future__ import annotations

import math
import re
from time import perf_counter
from typing import Any, Final

from rich.table import Column

from daskgmm.cli.options import Cluster, Data
from daskgmm.cli.training import Training
from daskgmm.cli.work.places import connect
from daskgmm.cli.work.report import Report
from daskgmm.cli.work.training import (
    check_model,
    rows_to_fit,
    tell_trained,
    told_at_the_end,
)
from daskgmm.data.gaps import Nan
from daskgmm.display.words import candidate, number, seconds
from daskgmm.em.search import CRITERIA, Criterion
from daskgmm.estimators.search import MixtureSearch
from daskgmm.storage.zarr_store import Missing

_RANGE: Final = re.compile(r"\s*([0-9]{1,9})(?::([0-9]{1,9})(?::([0-9]{1,9}))?)?\s*")
_MOST: Final = 10_000
"""Numbers of components: more of them are a slip of the finger."""

_TOLD: Final[dict[str, str]] = {
    "rank": "rank",
    "components": "param_n_components",
    "covariance_type": "param_covariance_type",
    "weight_concentration": "param_weight_concentration_prior",
    **{name: name for name in CRITERIA},
    "bound": "lower_bound",
    "iterations": "n_iter",
    "passes": "n_passes",
    "status": "status",
    "error": "error",
}
"""What programs are told of each candidate, by the names in a search's results."""
_GRID: Final = ("components", "covariance_type", "weight_concentration")


def select(
    store: str,
    model: str,
    n_components: tuple[int, ...],
    covariance_types: tuple[str, ...],
    criterion: Criterion,
    held_out: float,
    stop_losers: bool,
    bayesian: bool,
    priors: dict[str, Any],
    missing_chunks: Missing,
    nan: Nan,
    overwrite: bool,
    as_json: bool,
    training: Training,
    data: Data,
    cluster: Cluster,
) -> None:
    """See the command."""
    search = MixtureSearch(
        n_components,
        covariance_type=covariance_types,
        criterion=criterion,
        held_out=held_out,
        stop_losers=stop_losers,
        missing_chunks=missing_chunks,
        nan=nan,
        bayesian=bayesian,
        **training.parameters(bayesian=bayesian),
        **priors,
    )
    report = Report(as_json=as_json)
    with report.steps():
        check_model(model, overwrite=overwrite)
        rows = rows_to_fit(data, training, store, max(n_components))
    began = perf_counter()
    with report.search(criterion), connect(cluster), told_at_the_end():
        search.fit(rows, **training.of_fit())
        search.save(model, overwrite=overwrite)  # before the cluster is closed
    _tell_chosen(search, model, perf_counter() - began, report)


def _tell_chosen(
    search: MixtureSearch, model: str, time: float, report: Report
) -> None:
    candidates = _by_rank(search)
    _tell_candidates(candidates, search.criterion, report)
    best, mixture = candidates[0], search.best_estimator_
    report.say(f"The search took {search.n_passes_} passes, {seconds(time)}.")
    said = candidate(
        best["components"], best["covariance_type"], best.get("weight_concentration")
    )
    value = number(search.criterion, search.best_score_)
    report.say(f"The best has {said} ({search.criterion} {value}).")
    if not mixture.converged_:
        report.say(f"It did not converge in {mixture.n_iter_} iterations.")
    tell_trained(mixture, report)
    report.say(f"The model is in {model}.")
    report.end(
        model=model,
        best={name: best[name] for name in _GRID if name in best},
        criterion=search.criterion,
        value=search.best_score_,
        converged=mixture.converged_,
        passes=search.n_passes_,
        rows_skipped=mixture.n_rows_skipped_,
        seconds=time,
        candidates=[
            {name: _plain(value) for name, value in its.items()} for its in candidates
        ],
    )


def _by_rank(search: MixtureSearch) -> list[dict[str, Any]]:
    """What there is to tell of each candidate, of the best first."""
    columns = {
        name: search.results_[its].tolist()
        for name, its in _TOLD.items()
        if its in search.results_
    }
    told = [
        dict(zip(columns, its, strict=True))
        for its in zip(*columns.values(), strict=True)
    ]
    return sorted(told, key=lambda its: its["rank"])


def _tell_candidates(
    candidates: list[dict[str, Any]], criterion: Criterion, report: Report
) -> None:
    are_bayesian = "weight_concentration" in candidates[0]
    shown = [criterion] if criterion == "bic" or are_bayesian else [criterion, "bic"]
    columns = [
        Column("components", justify="right"),
        Column("covariance type"),
        *([Column("concentration", justify="right")] if are_bayesian else []),
        *(Column(name, justify="right") for name in shown),
        Column("iterations", justify="right"),
        Column("status"),
    ]
    rows = [
        [
            str(its["components"]),
            its["covariance_type"],
            *([_concentration(its)] if are_bayesian else []),
            *(number(name, its[name]) for name in shown),
            str(its["iterations"]),
            its["status"],
        ]
        for its in candidates
    ]
    report.table(columns, rows)
    errors = [its["error"] for its in candidates if its["status"] == "failed"]
    if errors:
        report.say(f"{len(errors)} failed. The first of them: {errors[0]}")


def _concentration(candidate: dict[str, Any]) -> str:
    value = candidate["weight_concentration"]
    return f"1 / {candidate['components']}" if value is None else f"{value:g}"


def _plain(value: Any) -> Any:
    """A value that JSON has: none for NaN, and infinity in words."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else repr(value)
    return value
