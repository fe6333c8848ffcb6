"""What the commands that train mixtures have in common: options, refusals, the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, final

import click

from daskgmm.cli.checks import (
    check_arguments_apart,
    check_checkpoint,
    check_cluster,
    check_model_name,
    check_new_model,
    check_not_read_only,
    check_store,
    check_weights,
)
from daskgmm.cli.options import PLACE, Finite, gathered, is_given

_INTERVAL: Final = "1 minute"
_STARTS: Final = ("kmeans", "k-means++", "random", "random_from_data")


@final
@dataclass(frozen=True, slots=True)
class Training:
    """How mixtures are trained, as the options say."""

    tol: float
    reg_covar: float
    max_iter: int
    n_init: int
    init_params: str
    init_size: int | str
    accelerate: bool | None
    arithmetic: str
    random_state: int | None
    weights: str | None
    checkpoint: str | None
    checkpoint_interval: int | str

    def parameters(self, *, bayesian: bool = False) -> dict[str, Any]:
        """What an estimator is made with.

        A Bayesian one has no other precision or method.
        """
        given = asdict(self)
        for name in ("weights", "checkpoint", "checkpoint_interval"):
            del given[name]
        if bayesian:
            del given["accelerate"], given["arithmetic"]
        elif self.accelerate is None:
            given["accelerate"] = "auto"
        return given

    def of_fit(self) -> dict[str, Any]:
        """What its `fit` takes beside the rows."""
        return {
            "sample_weight": self.weights,
            "checkpoint": self.checkpoint,
            "checkpoint_interval": self.checkpoint_interval,
        }


def check_training(
    model: str, store: str, training: Training, n_components: int
) -> None:
    """Refuse what does not go together, such as a model where the rows are."""
    check_arguments_apart(
        {"MODEL": model, "--checkpoint": training.checkpoint},
        {"STORE": store, "--weights": training.weights},
    )
    if training.checkpoint is None and is_given("checkpoint_interval"):
        raise click.UsageError("--checkpoint-interval goes with --checkpoint.")
    size, drawn = training.init_size, training.init_params != "random"
    if drawn and isinstance(size, int) and size < n_components:
        raise click.UsageError(
            f"--init-size {training.init_size} is less than --components "
            f"{n_components}."
        )
    check_not_read_only(model, training.checkpoint)
    check_checkpoint(training.checkpoint)


def check_places(given: Mapping[str, Any], n_components: int) -> None:
    """Refuse places where a command cannot write, or that have not what it needs."""
    model, store, data = given["model"], given["store"], given["data"]
    check_model_name(model)
    check_new_model(model, overwrite=given["overwrite"])
    check_store(store, data, n_components=n_components)
    check_weights(given["training"].weights, store, data)
    check_cluster(given["cluster"])


def priors_of(
    concentration: Any, weights_from: str | None, training: Training, *, bayesian: bool
) -> dict[str, Any]:
    """What Bayesian mixtures are made with besides; nothing if none are asked for."""
    if not bayesian:
        if concentration is not None or weights_from is not None:
            raise click.UsageError(
                "--weight-concentration and --weights-from go with --bayesian."
            )
        return {}
    if training.accelerate:
        raise click.UsageError("--accelerate does not go with --bayesian.")
    return {
        "weight_concentration_prior": concentration,
        "weight_concentration_prior_type": f"dirichlet_{weights_from or 'process'}",
    }


def _interval(
    _context: click.Context, _parameter: click.Parameter, value: str
) -> int | str:
    """An interval as `fit` takes it: digits alone are passes."""
    interval = int(value) if value.isdecimal() else value
    if interval == _INTERVAL:
        return interval
    from daskgmm.em.interval import parse_interval

    try:
        parse_interval(interval)
    except ValueError as error:
        what = str(error).removeprefix("checkpoint_interval ")
        raise click.BadParameter(f"the interval {what}") from error
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


_TRAINING_OPTIONS: Final = (
    click.option(
        "--tol",
        type=Finite(min=0),
        default=1e-3,
        show_default=True,
        help="Stop when a row's mean log likelihood gains less.",
    ),
    click.option(
        "--reg-covar",
        type=Finite(min=0),
        default=1e-6,
        show_default=True,
        help="Added to the diagonal of each covariance.",
    ),
    click.option(
        "--max-iter",
        type=click.IntRange(min=1),
        default=100,
        show_default=True,
        help="Stop after so many iterations.",
    ),
    click.option(
        "--n-init",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Starts; they train in the same passes over the data, and the best is "
        "kept.",
    ),
    click.option(
        "--init-params",
        type=click.Choice(_STARTS),
        default="kmeans",
        show_default=True,
        help="How starts are found.",
    ),
    click.option(
        "--init-size",
        default="auto",
        show_default=True,
        callback=_init_size,
        help="Starts are found from so many rows, drawn uniformly. 'auto' draws "
        "100,000, or more where EM is accelerated and the model has many parameters.",
    ),
    click.option(
        "--accelerate/--no-accelerate",
        default=None,
        help="Let EM run on the rows that were drawn, between the passes, so that "
        "far fewer passes lead to the same place.  [default: if there are 20 rows for "
        "each that is drawn]",
    ),
    click.option(
        "--arithmetic",
        type=click.Choice(["auto", "double"]),
        default="auto",
        show_default=True,
        help="Precision: 'auto' computes with rows of float32 in float32 where log "
        "densities stay within 1e-5.",
    ),
    click.option(
        "--seed",
        "random_state",
        type=click.IntRange(0, 2**32 - 1),
        help="Seed of the starts.  [default: another one each time]",
    ),
    click.option(
        "--weights",
        type=PLACE,
        metavar="STORE",
        help="Zarr array with the weight of each row.",
    ),
    click.option(
        "--checkpoint",
        type=PLACE,
        metavar="PLACE",
        help="Keep the state of the fit there, a folder or URL. If the same command "
        "was interrupted, it resumes from there.",
    ),
    click.option(
        "--checkpoint-interval",
        default=_INTERVAL,
        show_default=True,
        callback=_interval,
        help="How often: a number of passes, or a time such as 30s.",
    ),
)

training_options: Final = gathered(Training, "training", _TRAINING_OPTIONS)
bayesian_option: Final = click.option(
    "--bayesian",
    is_flag=True,
    help="Fit by variational Bayes: components that the data do not ask for lose their "
    "weight. The bound is of all rows then.",
)
weights_from_option: Final = click.option(
    "--weights-from",
    type=click.Choice(["process", "distribution"]),
    help="With --bayesian, whether weights come from a Dirichlet process or "
    "distribution.  [default: process]",
)
overwrite_option: Final = click.option(
    "--overwrite", is_flag=True, help="Replace a model that is there."
)
