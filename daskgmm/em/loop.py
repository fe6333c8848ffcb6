"""Expectation-maximisation of many runs at once: one pass over the data for all."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, final

import numpy as np

from daskgmm.errors import DataError, IllDefinedCovarianceError
from daskgmm.execution.tree import Shards
from daskgmm.mixtures.gaussian import Mixture
from daskgmm.mixtures.maximum_likelihood import MaximumLikelihood
from daskgmm.mixtures.refinement import look_again, refine
from daskgmm.mixtures.sufficient_statistics import (
    Moments,
    e_step,
    moments,
    plan,
    sums_bytes,
)
from daskgmm.mixtures.totals import Totals

_SAME_BOUND: Final = 1e-10
"""Relative difference below which two runs' bounds differ by rounding alone."""
_LOOKS: Final = 3
"""Most passes to refine the covariances of one iteration."""


@final
class Status(enum.Enum):
    """Where a run stands."""

    TRAINING = "training"
    CONVERGED = "converged"
    EXHAUSTED = "exhausted"
    FAILED = "failed"


@final
@dataclass(frozen=True, slots=True)
class Run:
    """One sequence of parameters, from one start.

    Attributes
    ----------
    mixture : Mixture or None
        The newest parameters; None if not even the start was well-defined.
    status : Status
    bounds : tuple of float
        After each iteration, the bound of the parameters before it.
    previous : float
        Bound that the first iteration's is compared with.
    error : str
        Why the run failed.
    """

    mixture: Mixture | None
    status: Status = Status.TRAINING
    bounds: tuple[float, ...] = ()
    previous: float = -np.inf
    error: str = ""

    @property
    def n_iter(self) -> int:
        """Iterations so far."""
        return len(self.bounds)

    @property
    def is_rough(self) -> bool:
        """Whether the newest parameters are to be refined; see `Mixture`."""
        ended = self.status is Status.FAILED
        return not ended and self.mixture is not None and self.mixture.rough

    @property
    def bound(self) -> float:
        """The newest bound."""
        return self.bounds[-1] if self.bounds else -np.inf

    @property
    def change(self) -> float:
        """The last change of the bound."""
        before = self.bounds[-2] if len(self.bounds) > 1 else self.previous
        return self.bound - before


@final
@dataclass(frozen=True, slots=True)
class Stopping:
    """When a run ends, by scikit-learn's parameters of these names."""

    tol: float
    max_iter: int


def advance(
    run: Run, its_moments: Moments, rule: MaximumLikelihood, stopping: Stopping
) -> Run:
    """The run after one more iteration, whose E-step gave `its_moments`."""
    assert run.mixture is not None
    try:
        at_last = run.n_iter + 1 >= stopping.max_iter
        mixture = rule.m_step(run.mixture, its_moments, at_last=at_last)
    except IllDefinedCovarianceError as error:
        return _failed(run, error)
    after = replace(run, mixture=mixture, bounds=(*run.bounds, rule.bound(its_moments)))
    tol = stopping.tol
    if tol > 0.0 and mixture.rough:
        tol = max(tol, run.mixture.rounding)
    if abs(after.change) < tol or (tol > 0.0 and _is_settled(after)):
        return replace(after, status=Status.CONVERGED)
    if after.n_iter >= stopping.max_iter:
        return replace(after, status=Status.EXHAUSTED)
    return after


def _failed(run: Run, error: IllDefinedCovarianceError) -> Run:
    return replace(run, status=Status.FAILED, error=str(error))


def _is_settled(run: Run) -> bool:
    """Whether only rounding can change: one component is found by the first pass.

    Its bound is known from the second one on. Where the start was rough, the first two
    bounds differ by that, and are not compared.
    """
    assert run.mixture is not None
    settled_at = 2 if run.is_rough else 3
    return run.mixture.n_components == 1 and run.n_iter >= settled_at


def em(
    shards: Shards,
    runs: Sequence[Run],
    rule: MaximumLikelihood,
    stopping: Stopping,
) -> Iterator[list[Run]]:
    """Train runs, yielding all of them after each pass over the data.

    Runs that have ended leave the message; the data are read once per pass whatever
    the number of runs, unless their sums take too much memory. Covariances close to
    singular take further passes, within the same iteration.

    Raises
    ------
    DataError
        If the rows are not the same in all passes.
    """
    runs = list(runs)
    totals: Totals | None = None
    while live := [i for i, run in enumerate(runs) if run.status is Status.TRAINING]:
        for turn in _turns(live, runs, shards.sums_bytes):
            mixtures = [m for i in turn if (m := runs[i].mixture) is not None]
            message = plan(mixtures)
            sums = shards.reduce(e_step, message)
            before, of_runs = list(runs), moments(message, sums, mixtures)
            if not shards.is_fixed:
                totals = _same_rows(totals, mixtures[0], of_runs[0])
            for i, its_moments in zip(turn, of_runs, strict=True):
                runs[i] = advance(runs[i], its_moments, rule, stopping)
            _refine(shards, before, runs, rule)
        yield list(runs)


def _turns(live: Sequence[int], runs: Sequence[Run], most: float) -> list[list[int]]:
    """Live runs in groups whose sums together take at most so many bytes, if they can.

    The data are read once for each group.
    """
    turns: list[list[int]] = []
    held = 0
    for i in live:
        mixture = runs[i].mixture
        assert mixture is not None
        n_bytes = sums_bytes(mixture.shape, *mixture.means.shape)
        if not turns or held + n_bytes > most:
            turns.append([])
            held = 0
        turns[-1].append(i)
        held += n_bytes
    return turns


def _same_rows(before: Totals | None, mixture: Mixture, its_moments: Moments) -> Totals:
    """The rows' totals of the first pass; an error if those of another pass differ."""
    if before is None:
        return Totals.of(mixture, its_moments)
    if before.differ(Totals.of(mixture, its_moments, before.centre)):
        raise DataError(
            "The rows of X, or their weights, were not the same in two passes over "
            "them: what was found is of neither. Data that are drawn or changed anew "
            "each time that they are read must be persisted, or written, before."
        )
    return before


def _refine(
    shards: Shards,
    before: Sequence[Run],
    runs: list[Run],
    rule: MaximumLikelihood,
) -> None:
    """Measure again, together, what the sums of some runs were too rough for."""
    for n_looks in range(1, _LOOKS + 1):
        rough = [
            i for i, run in enumerate(runs) if run is not before[i] and run.is_rough
        ]
        if not rough:
            return
        mixtures = [(before[i].mixture, runs[i].mixture) for i in rough]
        message = look_again([(old, new) for old, new in mixtures if old and new])
        sums = shards.reduce(refine, message)
        for i, refined in zip(rough, sums.runs, strict=True):
            mixture = runs[i].mixture
            assert mixture is not None
            try:
                finer = rule.refine(mixture, refined, at_last=n_looks == _LOOKS)
                runs[i] = replace(runs[i], mixture=finer)
            except IllDefinedCovarianceError as error:
                runs[i] = _failed(before[i], error)


def best(runs: Sequence[Run]) -> int:
    """Number of the run with the largest bound: the first of those that tie.

    Raises
    ------
    IllDefinedCovarianceError
        If all runs failed.
    """
    ended = [i for i, run in enumerate(runs) if run.status is not Status.FAILED]
    if not ended:
        raise IllDefinedCovarianceError(_all_failed(runs))
    bounds = {i: runs[i].bound for i in ended}
    finite = [bound for bound in bounds.values() if np.isfinite(bound)]
    if not finite:
        return ended[0]
    lowest = max(finite) - _SAME_BOUND * abs(max(finite))
    return next(i for i in ended if bounds[i] >= lowest)


def _all_failed(runs: Sequence[Run]) -> str:
    first = runs[0].error
    if len(runs) == 1:
        return first
    return f"{first} (This is the first of {len(runs)} runs; all of them failed.)"
