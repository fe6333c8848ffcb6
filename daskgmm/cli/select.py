"""``daskgmm select``."""

from __future__ import annotations

import math
import re
from time import perf_counter
from typing import Any, Final

import click
from rich.table import Column

from daskgmm.cli.options import (
    Cluster,
    Data,
    cluster_options,
    data_options,
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
from daskgmm.display.words import candidate, number, seconds
from daskgmm.em.search import CRITERIA, Criterion
from daskgmm.estimators.search import MixtureSearch
from daskgmm.mixtures.covariance import SHAPES
from daskgmm.storage.urls import absolute as place
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


def _numbers(
    _context: click.Context, _parameter: click.Parameter, value: str
) -> tuple[int, ...]:
    """Numbers from '1:10', '2:10:2', '1,2,5', …: in order, each once.

    So the same numbers in other words are the same search to a checkpoint.
    """
    ranges = list(map(_range, value.split(",")))
    if not all(ranges):
        raise click.BadParameter(
            f"{value!r} is none of these: a number from 1; FIRST:LAST, both of them "
            "included, as in 1:10; FIRST:LAST:STEP, as in 2:10:2; several of these "
            "with commas between, as in 1:3,8."
        )
    if sum(map(len, ranges)) > _MOST:
        raise click.BadParameter(f"{value!r} is more than {_MOST:,} numbers.")
    return tuple(sorted(set().union(*ranges)))


def _range(text: str) -> range:
    """A range with its last number; empty if the text is none."""
    found = _RANGE.fullmatch(text)
    if found is None:
        return range(0)
    first = int(found[1])
    last = first if found[2] is None else int(found[2])
    step = 1 if found[3] is None else int(found[3])
    return range(first, last + 1, step) if first and step else range(0)


def _shapes(
    _context: click.Context, _parameter: click.Parameter, value: str
) -> tuple[str, ...]:
    names = [name.strip() for name in value.split(",")]
    for name in names:
        if name not in SHAPES:
            raise click.BadParameter(
                f"{name!r} is no covariance type: name one or more of "
                f"{', '.join(SHAPES)}, with commas between."
            )
    return tuple(name for name in SHAPES if name in names)


def _concentrations(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> tuple[float, ...] | None:
    """Numbers above 0: in order, each once."""
    if value is None:
        return None
    try:
        numbers = [float(text) for text in value.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0.0 < number < math.inf for number in numbers):
        raise click.BadParameter(
            f"{value!r} is not one or more numbers above 0 with commas between."
        )
    return tuple(sorted(set(numbers)))


@click.command()
@click.argument("store", type=place)
@click.argument("model", type=place)
@click.option(
    "-k",
    "--components",
    "n_components",
    metavar="NUMBERS",
    required=True,
    callback=_numbers,
    help="Numbers of components: FIRST:LAST, both of them included, or "
    "FIRST:LAST:STEP, or one, or several of these with commas between.",
)
@click.option(
    "--covariance-type",
    "covariance_types",
    metavar="A,B,...",
    default=",".join(SHAPES),
    show_default=True,
    callback=_shapes,
    help="Which to choose from: a matrix for each component, one matrix for all, a "
    "diagonal for each, one variance for each.",
)
@click.option(
    "--criterion",
    type=click.Choice(list(CRITERIA)),
    help="What the best is chosen by: an information criterion, the lower the better, "
    "of which icl asks for components apart from each other; or the mean log density "
    "of rows held out, the higher the better.  [default: bic; with --bayesian "
    "held_out, the only one]",
)
@click.option(
    "--held-out",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.1,
    show_default=True,
    help="Share of the rows that no candidate trains on, if they are the criterion.",
)
@click.option(
    "--stop-losers",
    is_flag=True,
    help="End candidates early that, as it is predicted, can win no more. Those that "
    "are accelerated, and with --criterion held_out all, go on to the end.",
)
@bayesian_option
@click.option(
    "--weight-concentration",
    metavar="A,B,...",
    callback=_concentrations,
    help="With --bayesian, priors of the weights to choose from: the lower, the fewer "
    "components have weight.  [default: 1 / components]",
)
@weights_from_option
@training_options
@data_options
@missing_option
@nan_option
@overwrite_option
@json_option
@cluster_options
def select(
    store: str,
    model: str,
    n_components: tuple[int, ...],
    covariance_types: tuple[str, ...],
    criterion: Criterion | None,
    held_out: float,
    stop_losers: bool,
    bayesian: bool,
    weight_concentration: tuple[float, ...] | None,
    weights_from: str | None,
    missing_chunks: Missing,
    nan: Nan,
    overwrite: bool,
    as_json: bool,
    training: Training,
    data: Data,
    cluster: Cluster,
) -> None:
    """Choose among mixtures of the rows in STORE, and save the best as MODEL.

    There is a candidate for each number of components and type of covariance, and with
    --bayesian for each prior of the weights. All of them train in the same passes over
    STORE, which is as for "daskgmm fit". Each pass prints a line: its number, how many
    candidates have ended, the speed, and the best of them so far. At the end there is a
    table of all, the best first.

    \b
      daskgmm select rows.zarr model.zarr -k 1:10 --seed 0
      daskgmm select rows.zarr model.zarr -k 2:20:2,30 --covariance-type full,diag
      daskgmm select rows.zarr model.zarr -k 1:10 --criterion held_out --held-out 0.2
      daskgmm select rows.zarr model.zarr -k 30 --bayesian \
        --weight-concentration 0.001,0.1,10

    With --checkpoint, a search that was broken off goes on when the same command is
    given again, and ends with the same model to the last bit.
    """  # noqa: D301
    check_places(store, model, training, overwrite=overwrite)
    if criterion is None:
        criterion = "held_out" if bayesian else "bic"
    elif bayesian and criterion != "held_out":
        raise click.UsageError(
            f"--criterion {criterion} does not go with --bayesian: the parameters of "
            "such mixtures are not to be counted. Use held_out."
        )
    priors = priors_of(weight_concentration, weights_from, training, bayesian=bayesian)
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
    rows = data.open(store)
    began = perf_counter()
    with report.search(criterion), cluster.connect(), told_at_the_end():
        search.fit(rows, **training.of_fit())
    search.save(model, overwrite=overwrite)
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
