"""A fit from end to end: survey the data, find starts, run EM, choose the best run."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Protocol, final

import numpy as np
from sklearn.utils import check_random_state

from daskgmm.data.source import Source
from daskgmm.em.initialization import Start, seed
from daskgmm.em.loop import em
from daskgmm.em.plain import PlainEM, Stopping
from daskgmm.em.progress import Callback, Progress
from daskgmm.em.scan import Survey, subsample, survey
from daskgmm.em.state import Run, State, Status, best
from daskgmm.errors import DataError, IllDefinedCovarianceError
from daskgmm.execution.runners import Shards
from daskgmm.mixtures.gaussian import Mixture
from daskgmm.mixtures.maximum_likelihood import MaximumLikelihood


@final
@dataclass(frozen=True, slots=True)
class Settings:
    """How to fit: scikit-learn's parameters of these names, and `init_size`."""

    start: Start
    stopping: Stopping
    reg_covar: float
    n_init: int
    init_size: int


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """What a fit found.

    Attributes
    ----------
    run : Run
        The best one.
    mixture : Mixture
        Its parameters.
    n_passes : int
        EM passes over the data.
    n_skipped : int
        Rows that were left out, as they have NaN.
    """

    run: Run[Mixture]
    mixture: Mixture
    n_passes: int
    n_skipped: int


class Keeper(Protocol):
    """Keeps states where they outlive the process."""

    def recall(self, found: Survey) -> State | None:
        """The newest state of this fit to these data, if one was kept."""

    def keep(self, state: State, *, at_once: bool) -> None:
        """Keep a state, if it is time to or if it must be."""


def train(
    source: Source,
    settings: Settings,
    random_state: np.random.RandomState,
    warm: Run[Mixture] | None,
    callback: Callback,
    keeper: Keeper | None = None,
) -> Outcome:
    """Fit a mixture to a source.

    Parameters
    ----------
    source : Source
    settings : Settings
    random_state : RandomState
        Drawn from for the sample first (only if there are more than init_size rows),
        then for each restart in turn.
    warm : Run or None
        Where to go on from, instead of new starts.
    callback : callable
        Called with a `Progress` after each pass.
    keeper : Keeper or None
        Where to go on from what was kept, and to keep states.

    Raises
    ------
    DataError
        If the data cannot be used.
    IllDefinedCovarianceError
        If no restart is left.
    StoreError
        If the data have changed meanwhile, as far as their store tells.
    """
    shards = source.shards()
    found = survey(shards, digest=keeper is not None)
    _check_enough(found, settings.start.n_components)
    state = keeper.recall(found) if keeper else None
    if state is None:
        runs = [warm] if warm else _starts(shards, found, settings, random_state)
        state = State(tuple(runs), 0, random_state)
        _keep(keeper, state, at_once=True)
    elif random_state is not check_random_state(None):
        # The user's own, not the global one, goes on from where the starts left it.
        random_state.set_state(state.random_state.get_state())
    if settings.stopping.max_iter == 0:
        # scikit-learn keeps the last start then.
        there = [run for run in state.runs if run.parameters is not None]
        return _outcome(there[-1], 0, found)
    rule = MaximumLikelihood(settings.reg_covar, found.weight / found.n_weighted)
    began = perf_counter()
    for runs in em(shards, state.runs, PlainEM(rule, settings.stopping)):
        state = State(tuple(runs), state.n_passes + 1, random_state)
        _keep(keeper, state, at_once=not any(run.is_live for run in runs))
        seconds, began = perf_counter() - began, perf_counter()
        callback(Progress(state.n_passes, runs, found.n_rows, seconds))
    source.check_unchanged()
    return _outcome(state.runs[best(state.runs)], state.n_passes, found)


def _keep(keeper: Keeper | None, state: State, *, at_once: bool) -> None:
    if keeper is not None:
        keeper.keep(state, at_once=at_once)


def _outcome(run: Run[Mixture], n_passes: int, found: Survey) -> Outcome:
    assert run.parameters is not None
    return Outcome(run, run.parameters, n_passes, found.n_skipped)


def _starts(
    shards: Shards,
    found: Survey,
    settings: Settings,
    random_state: np.random.RandomState,
) -> list[Run[Mixture]]:
    start = settings.start
    rows = (
        None
        if start.complete
        else subsample(shards, found, settings.init_size, random_state)
    )
    runs: list[Run[Mixture]] = []
    for _ in range(settings.n_init):
        try:
            mixture = seed(start, rows, settings.reg_covar, random_state)
            runs.append(Run(mixture))
        except IllDefinedCovarianceError as error:
            runs.append(Run(None, Status.FAILED, error=str(error)))
    best(runs)  # raises if none is left
    return runs


def _check_enough(found: Survey, n_components: int) -> None:
    n_rows = found.n_weighted
    if found.n_skipped > 0 and n_rows == 0:
        raise DataError(
            f"All {found.n_skipped} rows of X have NaN, and were to be skipped: none "
            "is left."
        )
    if found.n_rows > 0 and n_rows == 0:
        raise DataError("sample_weight is zero for every row: at least one must count.")
    if n_rows < 2:
        raise DataError(
            f"Found array with {n_rows} sample(s) while a minimum of 2 is required by "
            "GaussianMixture."
        )
    if n_rows < n_components:
        raise DataError(
            "Expected n_samples >= n_components but got "
            f"n_components = {n_components}, n_samples = {n_rows}"
        )
