"""Choosing among mixtures: all candidates train in the same passes over the data.

Each candidate is trained as a fit of its own would be, bit for bit. Once its runs have
ended, the best of them takes part in one more pass, which others train in: what that
finds at its last parameters is what its criteria are of. So a search reads the data as
often as the slowest candidate, once before and once after.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from copy import deepcopy
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, Final, Literal, final

import numpy as np

from daskgmm import config, steps
from daskgmm.data.source import Source
from daskgmm.em.acceleration import Sampling
from daskgmm.em.fit import (
    Keeper,
    Outcome,
    Settings,
    check_enough,
    sampled_of,
    starts,
    training,
)
from daskgmm.em.held_out import HeldOut, Split
from daskgmm.em.loop import Passes, Training
from daskgmm.em.priors import completed
from daskgmm.em.progress import Progress, told
from daskgmm.em.scan import Survey, survey
from daskgmm.em.state import Run, State, Status, best
from daskgmm.em.subsample import Subsample, subsample, survey_and_draw
from daskgmm.errors import DataError, IllDefinedCovarianceError
from daskgmm.execution.runners import Shards
from daskgmm.execution.threads import n_threads
from daskgmm.mixtures.criteria import Fit, fit_of, look_at
from daskgmm.mixtures.e_step import message, moments, sums_bytes
from daskgmm.mixtures.gaussian import Mixture, n_parameters
from daskgmm.mixtures.refinement import Refined
from daskgmm.mixtures.rule import Rule
from daskgmm.mixtures.sufficient_statistics import Moments

Criterion = Literal["bic", "aic", "icl", "held_out"]
CRITERIA: Final[tuple[Criterion, ...]] = ("bic", "aic", "icl", "held_out")

_HELD_OUT: Final = "held_out"
_NUMBERS_KEPT: Final = 4
"""Mixtures of a run that are in memory: its own, and what its method remembers."""


@final
@dataclass(frozen=True, slots=True)
class Scored:
    """How a candidate ended.

    Attributes
    ----------
    n_components : int
    covariance_type : str
    weight_concentration : float or None
        Prior of a Bayesian mixture.
    run : Run
        The best of its runs: without parameters, unless it is the best candidate.
    status : Status
    fit : Fit or None
        By the rows trained on, at its last parameters; None if it was not measured.
    held_out : float
        Mean log density of a row that was held out; NaN without such rows.
    batch : int
        Number of the batch that it trained in, from 0.
    n_passes : int
        Passes in which its runs trained.
    """

    n_components: int
    covariance_type: str
    weight_concentration: float | None
    run: Run[Mixture]
    status: Status
    fit: Fit | None
    held_out: float
    batch: int
    n_passes: int

    def value(self, criterion: Criterion) -> float:
        """A criterion's value: the lower, the better, but for 'held_out'."""
        if criterion == "held_out":
            return self.held_out
        return math.nan if self.fit is None else float(getattr(self.fit, criterion))

    def loss(self, criterion: Criterion) -> float:
        """The same, so that the lowest is the best; infinity if there is none."""
        value = self.value(criterion)
        loss = -value if criterion == "held_out" else value
        return math.inf if math.isnan(loss) else loss


@final
@dataclass(frozen=True, slots=True)
class SearchProgress:
    """Where a search stands after a pass over the data.

    Attributes
    ----------
    n_pass : int
        Passes so far, from 1.
    n_rows, seconds, n_bytes
        As of a `Progress`.
    batch, n_batches : int
        Which batch of candidates trains, from 0, and of how many.
    scored : sequence of Scored
        All candidates, as far as they are: in the order of the grid.
    passes_to_go : tuple of int and bool
        As of a `Progress`; candidates that end as losers may make them fewer.
    """

    n_pass: int
    n_rows: int
    seconds: float
    n_bytes: int
    batch: int
    n_batches: int
    scored: Sequence[Scored] = field(repr=False)
    passes_to_go: tuple[int, bool]

    @property
    def n_ended(self) -> int:
        """Candidates of which nothing goes on."""
        return sum(
            its.status not in (Status.WAITING, Status.TRAINING) for its in self.scored
        )


SearchCallback = Callable[[SearchProgress], object]


@final
@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How to search.

    Attributes
    ----------
    candidates : sequence of Settings
    criterion : {'bic', 'aic', 'icl', 'held_out'}
    held_out : float
        Share of the rows that are held out; 0 for none.
    stop_losers : bool
        Whether candidates end early that can win no more.
    """

    candidates: Sequence[Settings]
    criterion: Criterion
    held_out: float
    stop_losers: bool


@final
@dataclass(frozen=True, slots=True)
class SearchOutcome:
    """What a search found.

    Attributes
    ----------
    scored : sequence of Scored
        In the order of the candidates.
    best : int
        The best of them.
    fitted : Outcome
        What a fit of that one alone would have found.
    n_passes : int
    n_batches : int
    sampled : Sampling
        What the first candidate took from a subsample; the others are like it.
    seed : int
        That each candidate started with.
    """

    scored: Sequence[Scored]
    best: int
    fitted: Outcome
    n_passes: int
    n_batches: int
    sampled: Sampling
    seed: int


def sampled_alike(
    candidates: Sequence[Settings], n_features: int, n_rows: int
) -> list[Settings]:
    """Candidates that take the same from one subsample.

    Where they would not, alone, all take what suits the one with most parameters: as
    many rows, and to be accelerated or not.
    """
    sampled = [sampled_of(its, n_features, n_rows) for its in candidates]
    if len({(its.size, its.accelerated) for its in sampled}) == 1:
        return list(candidates)
    numbers = [_n_parameters(its, n_features) for its in candidates]
    largest = sampled[int(np.argmax(numbers))]
    return [
        replace(its, init_size=largest.size, accelerate=largest.accelerated)
        for its in candidates
    ]


def search(
    source: Source,
    settings: SearchSettings,
    seed: int,
    callback: SearchCallback,
    keeper: Keeper | None = None,
) -> SearchOutcome:
    """Train all candidates in shared passes, and find the best.

    Parameters
    ----------
    source : Source
    settings : SearchSettings
    seed : int
        Of the random state that each candidate starts with.
    callback : callable
        Called with a `SearchProgress` after each pass.
    keeper : Keeper or None
        As of `fit.train`.

    Raises
    ------
    DataError
        If the data cannot be used.
    IllDefinedCovarianceError
        If no candidate is left.
    StoreError
        If the data have changed meanwhile, as far as their store tells.
    """
    read = _first_read(source, settings, seed, digest=keeper is not None)
    return _Search(source, settings, seed, read, callback, keeper).outcome()


@final
@dataclass(frozen=True, slots=True)
class _FirstRead:
    """What the data are, and the rows drawn from them.

    The candidates are those asked for, see `sampled_alike`.
    """

    shards: Shards
    found: Survey
    candidates: Sequence[Settings]
    sampled: Sequence[Sampling]
    rows: Subsample
    random_state: np.random.RandomState

    def drawn_anew(self, seed: int) -> _FirstRead:
        """The same with rows drawn by another seed, in another read."""
        random_state = np.random.RandomState(seed)
        size = self.sampled[0].size
        rows = subsample(self.shards, self.found, size, random_state)
        return replace(self, rows=rows, random_state=random_state)

    def with_priors(self) -> _FirstRead:
        """The same with all priors of Bayesian candidates, in another read."""
        wanted = [
            (its.priors, its.start.shape)
            for its in self.candidates
            if its.priors is not None
        ]
        found = iter(completed(wanted, self.shards, self.rows, self.found.n_weighted))
        candidates = [
            its if its.priors is None else replace(its, priors=next(found))
            for its in self.candidates
        ]
        return replace(self, candidates=candidates)


def _first_read(
    source: Source, settings: SearchSettings, seed: int, *, digest: bool
) -> _FirstRead:
    shards, lengths = source.shards(keep_rows=True), source.lengths
    if settings.held_out:
        unweighted = lengths is not None
        if lengths is None:
            lengths = [block.n_rows for block in survey(shards).blocks]
        split = Split.of(lengths, settings.held_out)
        of_training = split.trained_on()
        _check_split(sum(lengths), sum(of_training), settings.held_out)
        shards, lengths = HeldOut(shards, split), of_training if unweighted else None
    d, random_state = source.n_features, np.random.RandomState(seed)
    most = max(its.start.n_components for its in settings.candidates)
    found: Survey | None = None
    rows: Subsample | None = None
    if lengths is not None:
        candidates = sampled_alike(settings.candidates, d, sum(lengths))
        size = sampled_of(candidates[0], d, sum(lengths)).size
        found, rows = survey_and_draw(
            shards, lengths, size, random_state, digest=digest
        )
    if found is None:
        found = survey(shards, digest=digest)
    check_enough(found, most)
    candidates = sampled_alike(settings.candidates, d, found.n_weighted)
    sampled = [sampled_of(its, d, found.n_weighted) for its in candidates]
    if rows is None:
        rows = subsample(shards, found, sampled[0].size, random_state)
    return _FirstRead(shards, found, candidates, sampled, rows, random_state)


def _check_split(n_rows: int, n_trained_on: int, share: float) -> None:
    if n_trained_on in (0, n_rows):
        raise DataError(
            f"held_out={share} of {n_rows} rows leaves no rows to "
            f"{'train on' if n_trained_on == 0 else 'score'}."
        )


@final
@dataclass(frozen=True, slots=True)
class _Measuring:
    """A `loop.Method`: one pass that finds how well the last parameters fit."""

    rule: Rule[Mixture]

    def reopened(self, run: Run[Mixture]) -> Run[Mixture]:
        return run

    def remaining_gain(self, _run: Run[Mixture]) -> float:
        return math.nan

    def propose(self, run: Run[Mixture]) -> Sequence[Mixture]:
        assert run.parameters is not None
        return [self.rule.message(run.parameters)]

    def after(
        self,
        run: Run[Mixture],
        proposed: Sequence[Mixture],
        moments: Sequence[Moments],
    ) -> Run[Mixture]:
        fit = fit_of(proposed[0], moments[0])
        return replace(run, status=Status.CONVERGED, fit=fit)

    def look_again(
        self, before: Run[Mixture], run: Run[Mixture]
    ) -> tuple[Mixture, Mixture] | None:
        if run is before or run.fit is None:
            return None
        return look_at(self.propose(run)[0], run.fit)

    def refined(
        self,
        _before: Run[Mixture],
        run: Run[Mixture],
        refined: Refined,
        *,
        at_last: bool,
    ) -> Run[Mixture]:
        assert run.fit is not None
        moments = replace(
            refined.moments, log_prob=run.fit.log_prob, weight=run.fit.weight
        )
        return replace(run, fit=fit_of(self.propose(run)[0], moments, refined))


@final
class _Search:
    """A search under way. Its runs are those of one candidate after the other's.

    Each candidate has as many as it has restarts, and one to measure the best of them.
    """

    def __init__(
        self,
        source: Source,
        settings: SearchSettings,
        seed: int,
        read: _FirstRead,
        callback: SearchCallback,
        keeper: Keeper | None,
    ) -> None:
        self._source, self._settings = source, settings
        self._callback, self._keeper = callback, keeper
        self._n_each = [its.n_init + 1 for its in read.candidates]
        self._firsts = [0, *np.cumsum(self._n_each).tolist()]
        self._batches = list(_batches(read.candidates, source.n_features))
        self._batch_of = [i for i, batch in enumerate(self._batches) for _ in batch]
        recalled = keeper.recall(read.found, read.sampled[0]) if keeper else None
        if recalled is not None and recalled.seed not in (None, seed):
            assert recalled.seed is not None
            read = read.drawn_anew(recalled.seed)
        self._read = read = read.with_priors()
        waiting: list[Run[Mixture]] = [Run(None, Status.WAITING)] * self._firsts[-1]
        self._state = recalled or State(
            tuple(waiting),
            0,
            np.random.RandomState(seed),
            None,
            seed=seed,
        )
        assert self._state.seed is not None
        self._seed = self._state.seed
        # Of each run, the passes that it trained in.
        self._n_passes = np.bincount(
            self._state.history[:, 1].astype(int), minlength=self._firsts[-1]
        )
        self._passes = Passes(read.shards)
        self._trainings: dict[int, Training[Mixture]] = {}

    def outcome(self) -> SearchOutcome:
        """The search from where it stands to its end."""
        for number, batch in enumerate(self._batches):
            if self._is_begun(batch):
                self._prepare(batch)
            else:
                self._begin(batch)
            while self._live(batch):
                self._pass(number, batch)
            self._trainings.clear()
        self._source.check_unchanged()
        scored = self._scored()
        losses = [its.loss(self._settings.criterion) for its in scored]
        if min(losses) == math.inf:
            raise IllDefinedCovarianceError(_none_left(scored))
        first = int(np.argmin(losses))
        return SearchOutcome(
            scored,
            first,
            self._fitted(first, scored[first]),
            self._state.n_passes,
            len(self._batches),
            self._read.sampled[0],
            self._seed,
        )

    # --- runs of candidates -----------------------------------------------------------

    def _slots(self, candidate: int) -> range:
        """Numbers of the runs that a candidate trains."""
        return range(self._firsts[candidate], self._firsts[candidate + 1] - 1)

    def _measured(self, candidate: int) -> int:
        """Number of the run by which it is measured."""
        return int(self._firsts[candidate + 1]) - 1

    def _live(self, batch: Sequence[int]) -> bool:
        return any(
            self._state.runs[i].is_live
            for candidate in batch
            for i in (*self._slots(candidate), self._measured(candidate))
        )

    def _is_begun(self, batch: Sequence[int]) -> bool:
        first = self._state.runs[self._slots(batch[0])[0]]
        return first.status is not Status.WAITING

    def _begin(self, batch: Sequence[int]) -> None:
        """Find where the candidates of a batch start."""
        runs = list(self._state.runs)
        for candidate, found in zip(batch, _each(self._starts, batch), strict=True):
            for i, run in zip(self._slots(candidate), found, strict=True):
                runs[i] = run
        self._prepare(batch)
        self._follow(self._with_measured(runs, batch), at_once=True)

    def _starts(self, candidate: int) -> list[Run[Mixture]]:
        its = self._read.candidates[candidate]
        return starts(
            self._read.rows,
            its.n_init,
            its,
            self._read.sampled[candidate],
            deepcopy(self._read.random_state),
            self._read.found.weight,
        )

    def _prepare(self, batch: Sequence[int]) -> None:
        """How its runs are trained."""
        row_weight = self._read.found.weight / self._read.found.n_weighted
        for candidate in batch:
            its = training(
                self._read.candidates[candidate],
                self._read.sampled[candidate],
                self._read.found,
                self._read.rows,
                self._source,
            )
            self._trainings |= dict.fromkeys(self._slots(candidate), its)
            self._trainings[self._measured(candidate)] = Training(
                _Measuring(self._read.candidates[candidate].rule(row_weight))
            )

    # --- passes -----------------------------------------------------------------------

    def _pass(self, number: int, batch: Sequence[int]) -> None:
        before, shards = list(self._state.runs), self._read.shards
        steps.begin(f"pass {self._state.n_passes + 1}")
        began, n_read = perf_counter(), shards.n_read
        its = [*self._trainings]
        measured = [i for i in map(self._measured, batch) if before[i].is_live]
        held_out = self._ask_rest(
            [
                mixture
                for i in measured
                for mixture in self._trainings[i].method.propose(before[i])
            ]
        )
        after = self._passes.one(
            [before[i] for i in its], [self._trainings[i] for i in its]
        )
        runs = list(before)
        for i, run in zip(its, after, strict=True):
            runs[i] = run
        for i, value in zip(measured, held_out(), strict=True):
            runs[i] = replace(runs[i], memory={_HELD_OUT: np.array(value)})
        runs = self._without_losers(self._with_measured(runs, batch), batch)
        progress = Progress(
            self._state.n_passes + 1,
            runs,
            self._read.found.n_rows,
            perf_counter() - began,
            shards.n_read - n_read,
        )
        found = told(progress, before)
        history = np.concatenate([self._state.history, found])
        np.add.at(self._n_passes, found[:, 1].astype(int), 1)
        self._state = replace(self._state, n_passes=progress.n_pass, history=history)
        self._follow(self._of_best_alone(runs), at_once=not self._is_live(runs))
        found_so_far = SearchProgress(
            progress.n_pass,
            progress.n_rows,
            progress.seconds,
            progress.n_bytes,
            number,
            len(self._batches),
            self._scored(),
            self._passes_to_go(number),
        )
        steps.tell(found_so_far)
        self._callback(found_so_far)

    def _passes_to_go(self, number: int) -> tuple[int, bool]:
        """As of a `Progress`; of batches to come nothing is known."""
        batch, *later = self._batches[number:]
        if not later:
            return max(map(self._passes_to_go_of, batch))
        limits = [
            max(self._read.candidates[i].stopping.max_iter for i in its) + 1
            for its in (batch, *later)
        ]
        return sum(limits) - self._n_trained(batch), False

    def _passes_to_go_of(self, candidate: int) -> tuple[int, bool]:
        """Of a candidate that trains: that in which it is measured is the last."""
        runs, last = self._state.runs, self._measured(candidate)
        if runs[last].status is not Status.WAITING:
            return int(runs[last].is_live), True
        stopping = self._read.candidates[candidate].stopping
        trained = Progress(
            self._n_trained([candidate]),
            [runs[i] for i in self._slots(candidate)],
            self._read.found.n_rows,
            0.0,
            max_iter=stopping.max_iter,
            tol=stopping.tol,
        )
        most, is_likely = trained.passes_to_go
        return most + 1, is_likely

    def _n_trained(self, candidates: Iterable[int]) -> int:
        """Passes in which some candidates trained."""
        return max(int(self._n_passes[i]) for c in candidates for i in self._slots(c))

    @staticmethod
    def _is_live(runs: Sequence[Run[Mixture]]) -> bool:
        return any(run.is_live for run in runs)

    def _follow(self, runs: Sequence[Run[Mixture]], *, at_once: bool) -> None:
        self._state = replace(self._state, runs=tuple(runs))
        if self._keeper is not None:
            self._keeper.keep(self._state, at_once=at_once)

    def _ask_rest(self, mixtures: Sequence[Mixture]) -> Callable[[], list[float]]:
        """Have the next pass score rows that are held out; what they have, after it."""
        shards = self._read.shards
        if not isinstance(shards, HeldOut) or not mixtures:
            return lambda: [math.nan] * len(mixtures)
        sent = message(mixtures)
        shards.ask_rest(sent)

        def scores() -> list[float]:
            assert shards.found is not None
            found = moments(sent, shards.found, mixtures)
            return [its.log_prob / its.weight for its in found]

        return scores

    def _with_measured(
        self, runs: Sequence[Run[Mixture]], batch: Sequence[int]
    ) -> list[Run[Mixture]]:
        """Runs, with those to be measured whose candidates' runs have ended."""
        runs = list(runs)
        for candidate in batch:
            last = self._measured(candidate)
            its = [runs[i] for i in self._slots(candidate)]
            ended = not any(run.is_live for run in its)
            if runs[last].status is not Status.WAITING or not ended:
                continue
            if all(run.parameters is None or _is_failed(run) for run in its):
                runs[last] = replace(its[0], status=Status.FAILED, fit=None)
            elif any(run.status in (Status.CONVERGED, Status.EXHAUSTED) for run in its):
                runs[last] = Run(its[best(its)].parameters)
            else:
                runs[last] = Run(None, Status.OUTDONE)
        return runs

    def _without_losers(
        self, runs: Sequence[Run[Mixture]], batch: Sequence[int]
    ) -> list[Run[Mixture]]:
        """Runs, ended of those candidates that can win no more."""
        runs, criterion = list(runs), self._settings.criterion
        if not self._settings.stop_losers:
            return runs
        scored = [self._scored_of(c, runs) for c in range(len(self._n_each))]
        least = min(its.loss(criterion) for its in scored)
        for candidate in batch:
            live = [i for i in self._slots(candidate) if runs[i].is_live]
            if live and all(self._least_loss(candidate, runs[i]) > least for i in live):
                for i in live:
                    runs[i] = replace(runs[i], status=Status.OUTDONE)
        return self._with_measured(runs, batch)

    def _least_loss(self, candidate: int, run: Run[Mixture]) -> float:
        """The least that a run's criterion can become, by what it can still gain.

        Of ICL, what the entropy adds is at least nothing.
        """
        limit = run.bound + _still_to_gain(run)
        if not math.isfinite(limit) or run.parameters is None:
            return -math.inf
        weight = self._read.found.weight
        fit = Fit(limit * weight, weight, 0.0, run.parameters.n_parameters)
        return float(getattr(fit, self._settings.criterion))

    def _of_best_alone(self, runs: Sequence[Run[Mixture]]) -> list[Run[Mixture]]:
        """Runs, without the parameters of candidates that were measured and lost."""
        runs, criterion = list(runs), self._settings.criterion
        scored = [self._scored_of(c, runs) for c in range(len(self._n_each))]
        losses = [its.loss(criterion) for its in scored]
        leader = int(np.argmin(losses))
        for candidate, its in enumerate(scored):
            last = runs[self._measured(candidate)]
            if last.status is Status.WAITING or last.is_live:
                continue
            if candidate == leader and its.fit is not None:
                continue
            for i in (*self._slots(candidate), self._measured(candidate)):
                kept = {n: m for n, m in runs[i].memory.items() if n == _HELD_OUT}
                runs[i] = replace(runs[i], parameters=None, memory=kept)
        return runs

    # --- what was found ---------------------------------------------------------------

    def _scored(self) -> list[Scored]:
        return [
            self._scored_of(candidate, self._state.runs)
            for candidate in range(len(self._n_each))
        ]

    def _scored_of(self, candidate: int, runs: Sequence[Run[Mixture]]) -> Scored:
        its = [runs[i] for i in self._slots(candidate)]
        last = runs[self._measured(candidate)]
        run = its[_leader(its)]
        settings = self._read.candidates[candidate]
        fit, held_out = last.fit, float(last.memory.get(_HELD_OUT, math.nan))
        if fit is not None and settings.priors is not None:
            # Nobody counts the parameters of a posterior: it has no such criterion.
            fit = replace(fit, n_parameters=math.nan)
        status = run.status
        if last.status in (Status.FAILED, Status.OUTDONE):
            status = last.status
        elif fit is None:
            waits = its[0].status is Status.WAITING
            status = Status.WAITING if waits else Status.TRAINING
        priors = settings.priors
        return Scored(
            settings.start.n_components,
            settings.start.shape.name,
            None if priors is None else priors.weight_concentration,
            run,
            status,
            fit,
            held_out,
            self._batch_of[candidate],
            self._n_trained([candidate]),
        )

    def _fitted(self, candidate: int, scored: Scored) -> Outcome:
        """What a fit of one candidate alone would have found."""
        slots, state = self._slots(candidate), self._state
        its = self._trainings_of(candidate)
        run = scored.run
        assert run.parameters is not None
        rows = state.history[np.isin(state.history[:, 1], slots)].copy()
        rows[:, 1] -= slots[0]
        if len(rows):
            rows[:, 0] -= rows[0, 0] - 1
        precision = its.precision
        return Outcome(
            run,
            run.parameters,
            scored.n_passes,
            self._read.found.n_skipped,
            rows,
            self._read.sampled[candidate],
            its.method.remaining_gain(run),
            "double" if precision is None else precision.of_last(run),
            self._read.candidates[candidate].priors,
        )

    def _trainings_of(self, candidate: int) -> Training[Mixture]:
        self._prepare([candidate])
        return self._trainings[self._slots(candidate)[0]]


def _each(
    function: Callable[[int], list[Run[Mixture]]], numbers: Sequence[int]
) -> list[list[Run[Mixture]]]:
    """Values of a function, found in threads: k-means takes one for itself."""
    most = min(n_threads(), len(numbers))
    if most < 2:
        return [function(number) for number in numbers]
    with ThreadPoolExecutor(most) as pool:
        tasks = [
            pool.submit(copy_context().run, function, number) for number in numbers
        ]
        try:
            return [task.result() for task in tasks]
        finally:
            # After an error, what has not begun need not.
            pool.shutdown(wait=True, cancel_futures=True)


def _is_failed(run: Run[Any]) -> bool:
    return run.status is Status.FAILED


def _leader(runs: Sequence[Run[Mixture]]) -> int:
    """Number of the best run, or of the first if all failed."""
    return 0 if all(map(_is_failed, runs)) else best(runs)


def _still_to_gain(run: Run[Mixture]) -> float:
    """What a run's bound may still gain, as predicted; infinity if nothing tells.

    Where gains shrink like a geometric series, its limit is known from two of them
    (Aitken's acceleration; McLachlan and Krishnan, The EM Algorithm, 4.9). What EM
    that is accelerated gains is no such series.
    """
    if len(run.bounds) < 3 or run.memory:
        return math.inf
    before, last = np.diff(run.bounds[-3:])
    if not 0.0 < last < before:
        return math.inf
    return float(last**2 / (before - last))


def _n_parameters(settings: Settings, n_features: int) -> int:
    """Numbers that a candidate estimates."""
    start = settings.start
    return n_parameters(start.shape, start.n_components, n_features)


def _batches(candidates: Sequence[Settings], n_features: int) -> Iterator[list[int]]:
    """Numbers of candidates, in batches that fit `daskgmm.search-memory`."""
    most, batch, held = config.size("search-memory"), list[int](), 0
    for i, its in enumerate(candidates):
        its_bytes = sums_bytes(its.start.shape, its.start.n_components, n_features)
        its_bytes += 8 * _NUMBERS_KEPT * _n_parameters(its, n_features)
        n_bytes = (its.n_init + 1) * its_bytes
        if batch and held + n_bytes > most:
            yield batch
            batch, held = [], 0
        batch.append(i)
        held += n_bytes
    yield batch


def _none_left(scored: Sequence[Scored]) -> str:
    first = next((its.run.error for its in scored if its.run.error), "")
    return f"{first} (This is the first of {len(scored)} candidates; none is left.)"
