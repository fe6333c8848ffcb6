"""``daskgmm select``: what it is asked, and how it helps."""

from __future__ import annotations

import math
import re
from typing import Any, Final

import click

from daskgmm.cli.options import (
    PLACE,
    SHAPES,
    Finite,
    cluster_options,
    data_options,
    is_given,
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

CRITERIA: Final = ("bic", "aic", "icl", "held_out")
"""As `daskgmm.em.search` has them."""
_RANGE: Final = re.compile(r"\s*([0-9]{1,9})(?::([0-9]{1,9})(?::([0-9]{1,9}))?)?\s*")
_MOST: Final = 10_000
"""Numbers of components: more of them are a slip of the finger."""


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
@click.argument("store", type=PLACE)
@click.argument("model", type=PLACE)
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
    type=Finite(0, 1, min_open=True, max_open=True),
    default=0.1,
    show_default=True,
    help="Share of the rows that no candidate trains on, if they are the criterion.",
)
@click.option(
    "--stop-losers",
    is_flag=True,
    help="End candidates early that, as it is predicted, can win no more. Those that "
    "are accelerated, and with --criterion held_out all, run to the end.",
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
def select(**given: Any) -> None:
    """Choose among mixtures of the rows in STORE, and save the best as MODEL.

    There is a candidate for each number of components and type of covariance, and with
    --bayesian for each prior of the weights. All of them train in the same passes over
    STORE, which is as for "daskgmm fit". Each pass prints a line: its number, how many
    candidates have ended, the speed, how long it goes on (about, or at most), and the
    best of them so far. At the end there is a table of all, the best first.

    \b
      daskgmm select rows.zarr model.zarr -k 1:10 --seed 0
      daskgmm select rows.zarr model.zarr -k 2:20:2,30 --covariance-type full,diag
      daskgmm select rows.zarr model.zarr -k 1:10 --criterion held_out --held-out 0.2
      daskgmm select rows.zarr model.zarr -k 30 --bayesian \
        --weight-concentration 0.001,0.1,10

    With --checkpoint, a search that was interrupted resumes when the same command is
    given again, and ends with the same model to the last bit.
    """  # noqa: D301
    training, bayesian = given["training"], given["bayesian"]
    check_training(given["model"], given["store"], training, max(given["n_components"]))
    given["criterion"] = _criterion(given["criterion"], bayesian=bayesian)
    if is_given("held_out") and given["criterion"] != "held_out":
        raise click.UsageError("--held-out goes with --criterion held_out.")
    asked = given.pop("weight_concentration"), given.pop("weights_from")
    priors = priors_of(*asked, training, bayesian=bayesian)
    check_places(given, max(given["n_components"]))
    from daskgmm.cli.work.select import select as work

    work(**given, priors=priors)


def _criterion(asked: str | None, *, bayesian: bool) -> str:
    """What is asked for, or what suits the mixtures."""
    if asked is None:
        return "held_out" if bayesian else "bic"
    if bayesian and asked != "held_out":
        raise click.UsageError(
            f"--criterion {asked} does not go with --bayesian: the parameters of "
            "such mixtures are not to be counted. Use held_out."
        )
    return asked
