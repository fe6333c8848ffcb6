"""A fit from end to end: survey the data, find starts, run EM, choose the best run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Literal, Protocol, final

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state

from daskgmm import steps
from daskgmm.data.source import Source
from daskgmm.em.acceleration import (
    Accelerate,
    InitSize,
    OnSample,
    Sampling,
    improved,
    sampling,
)
from daskgmm.em.anchored import AnchoredEM
from daskgmm.em.initialization import Start, assigned, seed
from daskgmm.em.loop import Method, Training, em
from daskgmm.em.plain import PlainEM, Stopping
from daskgmm.em.precision import Arithmetic, Precision, may_be_single
from daskgmm.em.priors import completed
from daskgmm.em.progress import Progress, told
from daskgmm.em.scan import Survey, of_lengths, survey
from daskgmm.em.state import Run, State, Status, best
from daskgmm.em.subsample import Subsample, subsample, survey_and_draw
from daskgmm.errors import DataError, IllDefinedCovarianceError
from daskgmm.execution.runners import Shards
from daskgmm.mixtures.gaussian import Mixture
from daskgmm.mixtures.maximum_likelihood import MaximumLikelihood
from daskgmm.mixtures.rule import Rule
from daskgmm.mixtures.variational import Priors, VariationalBayes


@final
@dataclass(frozen=True, slots=True)
class Settings:
    """How to fit: the estimator's parameters of these names.

    With priors, by variational Bayes; what is estimated is as that rule has it.
    """

    start: Start
    stopping: Stopping
    reg_covar: float
    n_init: int
    init_size: InitSize
    accelerate: Accelerate
    arithmetic: Arithmetic
    priors: Priors | None = None

    def rule(self, row_weight: float) -> Rule[Mixture]:
        """How parameters follow from moments."""
        if self.priors is None:
            return MaximumLikelihood(self.reg_covar, row_weight)
        return VariationalBayes(self.priors, self.reg_covar)


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
    history : ndarray of shape (m, 7)
        See `progress.told`.
    sampled : Sampling
        What it took from a subsample.
    remaining_gain : float
        What is left to gain, as predicted; NaN if nothing predicts it.
    arithmetic : {'single', 'double'}
        That of the last pass.
    priors : Priors or None
        All of them, where they were asked for.
    stopped : {'', 'callback', 'interrupt'}
        What ended it before its time, if anything did.
    """

    run: Run[Mixture]
    mixture: Mixture
    n_passes: int
    n_skipped: int
    history: NDArray[np.float64]
    sampled: Sampling
    remaining_gain: float = np.nan
    arithmetic: Literal["single", "double"] = "double"
    priors: Priors | None = None
    stopped: Literal["", "callback", "interrupt"] = ""


Observer = Callable[[Progress, Callable[[], Outcome]], bool]
"""Told of each pass, and of what a fit that ended there would find; true ends it."""


class Keeper(Protocol):
    """Keeps states where they outlive the process."""

    def recall(self, found: Survey, sampled: Sampling) -> State | None:
        """The newest state of this fit to these data, if one was kept."""

    def keep(self, state: State, *, at_once: bool) -> None:
        """Keep a state, if it is time to or if it must be."""


def train(
    source: Source,
    settings: Settings,
    random_state: np.random.RandomState,
    warm: Run[Mixture] | None,
    observe: Observer,
    keeper: Keeper | None = None,
    *,
    keep_on_interrupt: bool = False,
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
    observe : callable
        See `Observer`.
    keeper : Keeper or None
        Where to go on from what was kept, and to keep states.
    keep_on_interrupt : bool
        Whether an interrupt ends it with what was found so far, if there was a pass.

    Raises
    ------
    DataError
        If the data cannot be used.
    IllDefinedCovarianceError
        If no restart is left.
    StoreError
        If the data have changed meanwhile, as far as their store tells.
    """
    read = _first_read(source, settings, random_state, warm, keep=keeper is not None)
    found, sampled = read.found, read.sampled
    recalled = keeper.recall(found, sampled) if keeper else None
    if settings.priors is not None:
        read = read.with_rows(random_state)
        settings = read.with_priors(settings, recalled)
    # Nobody here holds the starts: they may take as much memory as what follows.
    fit = _Fit(
        read,
        settings,
        _begun(read, settings, random_state, warm, recalled, keeper),
        source,
        keeper,
    )
    del recalled
    if settings.stopping.max_iter == 0:
        return fit.unmoved()
    try:
        return fit.moved(observe)
    except KeyboardInterrupt:
        if not (keep_on_interrupt and fit.n_passes):
            raise
        return fit.outcome("interrupt")


@final
class _Fit:
    """A fit whose starts are known."""

    def __init__(
        self,
        read: _FirstRead,
        settings: Settings,
        begun: tuple[State, Subsample | None],
        source: Source,
        keeper: Keeper | None,
    ) -> None:
        self._read, self._settings = read, settings
        self._source, self._keeper = source, keeper
        self._state, rows = begun
        its = training(settings, read.sampled, read.found, rows, source)
        self._method, self._precision = its.method, its.precision

    @property
    def n_passes(self) -> int:
        """Passes so far."""
        return self._state.n_passes

    def unmoved(self) -> Outcome:
        """The last start, as scikit-learn keeps it where no pass may follow."""
        there = [run for run in self._state.runs if run.parameters is not None]
        outcome = _outcome(there[-1], self._state, self._read)
        return replace(outcome, priors=self._settings.priors)

    def moved(self, observe: Observer) -> Outcome:
        """What the passes find, or what was found when an observer ended it."""
        # They may have ended by other limits.
        runs = tuple(map(self._method.reopened, self._state.runs))
        self._state = replace(self._state, runs=runs)
        if any(run.is_live for run in runs):
            steps.begin(f"pass {self.n_passes + 1}")
        del runs
        shards, began = self._read.shards, perf_counter()
        before = shards.n_read
        for after in em(
            shards,
            self._state.runs,
            self._method,
            at_first=self._enough if self._read.unread else None,
            precision=self._precision,
        ):
            now = perf_counter()
            progress = self._after(after, now - began, shards.n_read - before)
            began, before = now, shards.n_read
            del after
            if observe(progress, self.outcome):
                return self.outcome("callback" if progress.n_live else "")
            if progress.n_live:
                steps.begin(f"pass {self.n_passes + 1}")
        self._source.check_unchanged()
        return self.outcome()

    def _enough(self, n_rows: int) -> None:
        """Check what was only said before."""
        check_enough(of_lengths([n_rows]), self._settings.start.n_components)

    def _after(
        self, runs: Sequence[Run[Mixture]], seconds: float, n_bytes: int
    ) -> Progress:
        """Take note of a pass."""
        limits = self._settings.stopping
        progress = Progress(
            self.n_passes + 1,
            runs,
            self._read.found.n_rows,
            seconds,
            n_bytes,
            limits.max_iter,
            limits.tol,
        )
        history = np.concatenate(
            [self._state.history, told(progress, self._state.runs)]
        )
        self._state = replace(
            self._state, runs=tuple(runs), n_passes=progress.n_pass, history=history
        )
        _keep(self._keeper, self._state, at_once=not progress.n_live)
        steps.tell(progress)
        return progress

    def outcome(self, stopped: Literal["", "callback", "interrupt"] = "") -> Outcome:
        """What was found so far."""
        run = self._state.runs[best(self._state.runs)]
        precision = self._precision
        return replace(
            _outcome(run, self._state, self._read),
            remaining_gain=self._method.remaining_gain(run),
            arithmetic="double" if precision is None else precision.of_last(run),
            priors=self._settings.priors,
            stopped=stopped,
        )


def training(
    settings: Settings,
    sampled: Sampling,
    found: Survey,
    rows: Subsample | None,
    source: Source,
) -> Training[Mixture]:
    """How the runs of a fit are trained: accelerated by the rows drawn, or not."""
    rule = settings.rule(found.weight / found.n_weighted)
    plain = PlainEM(rule, settings.stopping)
    method: Method[Mixture] = plain
    if sampled.accelerated:
        assert rows is not None
        method = AnchoredEM(plain, OnSample(rows), sampled.trust, sampled.most_between)
    allowed = may_be_single(
        settings.arithmetic,
        source.dtype,
        found.n_rows,
        settings.start.n_components,
        source.n_features,
    )
    return Training(method, Precision(allowed, settings.stopping.tol, rule.message))


def sampled_of(settings: Settings, n_features: int, n_rows: int) -> Sampling:
    """What a fit to so many rows, with weight, takes from a subsample."""
    return sampling(
        # No pass, no acceleration.
        settings.accelerate if settings.stopping.max_iter else False,
        settings.init_size,
        settings.start,
        n_features,
        n_rows,
    )


@final
@dataclass(frozen=True, slots=True)
class _FirstRead:
    """What the data are, by one read of them.

    Rows were drawn in it, if all that a draw depends on was known before: if not, or if
    nothing needs any, there are none. Where nothing needs such a read at all, what is
    found is what was known before. Without a checkpoint, `before_draw` is not kept.
    """

    shards: Shards
    found: Survey
    unread: bool
    sampled: Sampling
    rows: Subsample | None
    before_draw: np.random.RandomState | None

    def with_rows(self, random_state: np.random.RandomState) -> _FirstRead:
        """The same with rows, drawn in another read if it need be."""
        if self.rows is not None:
            return self
        return replace(self, rows=self.drawn(random_state))

    def with_priors(self, settings: Settings, recalled: State | None) -> Settings:
        """Settings with all priors: those that the fit began with, if it goes on."""
        assert settings.priors is not None and self.rows is not None
        if recalled is not None and recalled.of_priors is not None:
            mean, covariance = recalled.of_priors
            priors = replace(settings.priors, mean=mean, covariance=covariance)
            return replace(settings, priors=priors)
        [priors] = completed(
            [(settings.priors, settings.start.shape)],
            self.shards,
            self.rows,
            self.found.n_weighted,
        )
        return replace(settings, priors=priors)

    def drawn(self, random_state: np.random.RandomState) -> Subsample:
        """Rows drawn by a random state, in another read."""
        return subsample(self.shards, self.found, self.sampled.size, random_state)


def _first_read(
    source: Source,
    settings: Settings,
    random_state: np.random.RandomState,
    warm: Run[Mixture] | None,
    *,
    keep: bool,
) -> _FirstRead:
    shards, lengths = source.shards(keep_rows=True), source.lengths
    d = source.n_features
    # Copies take as long as a pass over few rows: none is made that nobody keeps.
    before_draw = deepcopy(random_state) if keep else None
    rows, unread = None, False
    likely = None if lengths is None else sampled_of(settings, d, sum(lengths))
    if lengths is not None and likely and _needs_rows(settings, likely, warm):
        found, rows = survey_and_draw(
            shards, lengths, likely.size, random_state, digest=keep
        )
    elif lengths is None or keep or settings.stopping.max_iter == 0:
        found = survey(shards, digest=keep)
    else:
        found, unread = of_lengths(lengths), True
    check_enough(found, settings.start.n_components)
    sampled = sampled_of(settings, d, found.n_weighted)
    return _FirstRead(shards, found, unread, sampled, rows, before_draw)


def _needs_rows(
    settings: Settings, sampled: Sampling, warm: Run[Mixture] | None
) -> bool:
    return sampled.accelerated or not (warm or settings.start.complete)


def _begun(
    read: _FirstRead,
    settings: Settings,
    random_state: np.random.RandomState,
    warm: Run[Mixture] | None,
    recalled: State | None,
    keeper: Keeper | None,
) -> tuple[State, Subsample | None]:
    """The state to go on from, and the rows that were drawn, if anything needs them."""
    found, sampled, rows = read.found, read.sampled, read.rows
    n_begun = len(recalled.runs) if recalled else 0
    n_starts = 0 if warm else settings.n_init - n_begun
    if sampled.accelerated or (n_starts and not settings.start.complete):
        if recalled and not _are_alike(recalled.before_draw, read.before_draw):
            assert recalled.before_draw is not None
            rows = read.drawn(deepcopy(recalled.before_draw))
        elif rows is None:
            rows = read.drawn(random_state)
    state = recalled or State(
        (warm,) if warm else (),
        0,
        random_state,
        read.before_draw,
        of_priors=_of_priors(settings),
    )
    if recalled and random_state is not check_random_state(None):
        # The user's own, not the global one, goes on from where the starts left it.
        random_state.set_state(recalled.random_state.get_state())
        state = replace(state, random_state=random_state)
    if n_starts or not recalled:
        begun = starts(
            rows, n_starts, settings, sampled, state.random_state, found.weight
        )
        state = replace(state, runs=(*state.runs, *begun))
        best(state.runs)  # raises if none is left
        _keep(keeper, state, at_once=True)
    return state, rows


def _of_priors(
    settings: Settings,
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """What a checkpoint keeps of priors: all else is among the parameters."""
    if settings.priors is None:
        return None
    mean, covariance = settings.priors.mean, settings.priors.covariance
    assert mean is not None and covariance is not None
    return mean, covariance


def _are_alike(
    a: np.random.RandomState | None, b: np.random.RandomState | None
) -> bool:
    """Whether two random states draw the same."""
    if a is None or b is None:
        return False
    pairs = zip(a.get_state(), b.get_state(), strict=True)
    return all(np.array_equal(*pair) for pair in pairs)


def _keep(keeper: Keeper | None, state: State, *, at_once: bool) -> None:
    if keeper is not None:
        keeper.keep(state, at_once=at_once)


def _outcome(run: Run[Mixture], state: State, read: _FirstRead) -> Outcome:
    assert run.parameters is not None
    n_skipped = read.found.n_skipped
    return Outcome(
        run, run.parameters, state.n_passes, n_skipped, state.history, read.sampled
    )


@steps.silently("initialising")
def starts(
    rows: Subsample | None,
    n_starts: int,
    settings: Settings,
    sampled: Sampling,
    random_state: np.random.RandomState,
    weight: float,
) -> list[Run[Mixture]]:
    """Runs that begin from so many starts; failed where there is none."""
    start = settings.start
    of_start = None if rows is None else rows.thinned(sampled.start_size)
    runs: list[Run[Mixture]] = []
    for _ in range(n_starts):
        try:
            if settings.priors is None:
                mixture = seed(start, of_start, settings.reg_covar, random_state)
            else:
                assert of_start is not None
                moments = assigned(start, of_start, random_state)
                moments = moments.scaled(weight / moments.weight)
                rule = VariationalBayes(settings.priors, settings.reg_covar)
                mixture = rule.posterior(start.shape, moments)
            runs.append(Run(mixture))
        except IllDefinedCovarianceError as error:
            runs.append(Run(None, Status.FAILED, error=str(error)))
    if sampled.accelerated and not start.complete:
        assert rows is not None
        of_sample = settings.rule(row_weight=1.0)
        runs = improved(runs, of_sample, rows, sampled, settings.stopping.tol)
    return runs


def check_enough(found: Survey, n_components: int) -> None:
    """Refuse fewer rows than components, or than two."""
    n_rows = found.n_weighted
    if found.n_skipped > 0 and n_rows == 0:
        raise DataError(
            f"All {found.n_skipped} rows of X have NaN, and were to be skipped: none "
            "is left."
        )
    if found.n_rows > 0 and n_rows == 0:
        raise DataError("sample_weight is zero for every row: at least one must count.")
    check_number(n_rows, n_components)


def check_number(n_rows: int, n_components: int) -> None:
    """Refuse fewer rows than components, or than two, in scikit-learn's words."""
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
