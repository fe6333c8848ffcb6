"""Whether a fit is accelerated, by how many rows, and what that begins with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, final

from daskgmm import config, steps
from daskgmm.data.in_memory import ArraySource
from daskgmm.data.on_cluster import held_by_cluster
from daskgmm.em.anchored import ascend, is_heavy
from daskgmm.em.initialization import Start
from daskgmm.em.loop import evaluated
from daskgmm.em.plain import failed
from daskgmm.em.state import Run, Status
from daskgmm.em.subsample import Subsample
from daskgmm.errors import ClusterError, IllDefinedCovarianceError
from daskgmm.execution.cluster import count_threads
from daskgmm.execution.runners import Shards
from daskgmm.execution.threads import n_threads
from daskgmm.mixtures.gaussian import Mixture, n_parameters
from daskgmm.mixtures.rule import Rule
from daskgmm.mixtures.sufficient_statistics import Moments

Accelerate = bool | Literal["auto"]
InitSize = int | Literal["auto"]

_START_ROWS: Final = 100_000
"""Rows that starts are found from, where nothing else is said."""
_ROWS_PER_PARAMETER: Final = 40
"""Rows of a subsample that says enough of all rows; 15 is too few."""
_ENOUGH_ROWS: Final = 20
"""Rows for each of the subsample, from which on its work pays in any case."""

_FOR_A_CLUSTER: Final = 2e9
"""Rows times parameters from which on an E-step is more work than to ask a cluster,"""
_MANY_THREADS: Final = 2
"""if that has so many times as many threads as are free here."""

_LIKELY_PASSES: Final = 4

_PART: Final = 8
"""EM on the subsample begins on an eighth of it,"""
_ENOUGH_FOR_PART: Final = 20
"""or so many rows for each parameter: fewer lead nowhere."""
_MOST_ON_PART: Final = 300
"""Evaluations of the part for each restart, at most."""
_NEAR: Final = 3e-3
"""The part of what a subsample's optimum is off by that its starts may be off by.

As predicted, which on plateaus is far less than the truth.
"""
_NEAR_OF_PART: Final = 1e-3
"""The same of its part, where most plateaus are left, and an evaluation costs less."""
_PROMOTED: Final = 3
"""Most restarts that go on with all rows: the best of them on the subsample."""


@final
@dataclass(frozen=True, slots=True)
class Sampling:
    """What a fit takes from a subsample.

    Attributes
    ----------
    size : int
        Rows that are drawn.
    start_size : int
        Rows of them that starts are found from.
    part_size : int
        Rows of them that EM begins on; 0 if it begins on all of them.
    most_at_start : int
        Evaluations of the subsample for each restart before the first pass, at most.
    most_between : int
        The same between two passes; 0 if EM is not accelerated.
    trust : float
        See `Correction`.
    """

    size: int
    start_size: int
    part_size: int = 0
    most_at_start: int = 0
    most_between: int = 0
    trust: float = 0.0

    @property
    def accelerated(self) -> bool:
        """Whether EM is."""
        return self.most_between > 0


def sampling(
    accelerate: Accelerate,
    init_size: InitSize,
    start: Start,
    n_features: int,
    n_rows: int,
) -> Sampling:
    """What a fit to so many rows takes from a subsample.

    It depends on numbers alone, never on the clock.
    """
    its_parameters = n_parameters(start.shape, start.n_components, n_features)
    start_size = _START_ROWS if init_size == "auto" else int(init_size)
    size = _auto_size(its_parameters, n_features) if init_size == "auto" else start_size
    enough = _ENOUGH_ROWS * size if accelerate == "auto" else size + 1
    wanted = not start.complete if accelerate == "auto" else accelerate
    if not wanted or n_rows < enough:
        return Sampling(start_size, start_size)
    part_size = max(size // _PART, _ENOUGH_FOR_PART * its_parameters)
    return Sampling(
        size,
        min(size, start_size),
        part_size if 2 * part_size <= size else 0,
        most_at_start=_between(50, 0.3 * n_rows / size, 300),
        most_between=_between(10, 0.1 * n_rows / size, 30),
        trust=1.0 / (1.0 + math.sqrt(its_parameters / size)),
    )


def likely_passes(sampled: Sampling) -> int | None:
    """How many EM takes with the default `tol`; None if nothing is known of that.

    Ten kinds of data took 2 to 4, in the median, but 6 where only 15 rows were drawn
    for each of many parameters (`benchmarks/`).
    """
    return _LIKELY_PASSES if sampled.accelerated else None


def _between(least: int, number: float, most: int) -> int:
    return min(max(least, int(number)), most)


def _auto_size(its_parameters: int, n_features: int) -> int:
    in_memory = int(config.size("sample-memory") / (8 * n_features))
    return min(max(_START_ROWS, _ROWS_PER_PARAMETER * its_parameters), in_memory)


@final
class OnSample:
    """The E-step on a subsample, wherever that is faster: here, or by a cluster.

    Both have the same bits. A cluster is of use where it has many more threads, and an
    E-step is more work than to ask it. If it loses what it has of the subsample, or
    does not answer, this process's threads go on.
    """

    def __init__(self, rows: Subsample) -> None:
        self._rows = rows
        self._here = ArraySource(rows.x, rows.weights).shards()
        self._there: Shards | None = None
        self._asked = False

    @steps.silently()
    def __call__(self, mixture: Mixture) -> Moments:
        """The rows' moments."""
        if not self._asked:
            self._asked = True
            self._there = self._on_cluster(mixture)
        if self._there is not None:
            try:
                return evaluated(self._there, [mixture])[0]
            except ClusterError:
                self._there = None
        return evaluated(self._here, [mixture])[0]

    def _on_cluster(self, mixture: Mixture) -> Shards | None:
        if len(self._rows.x) * mixture.n_parameters < _FOR_A_CLUSTER:
            return None
        try:
            if (count_threads() or 0) < _MANY_THREADS * n_threads():
                return None
            return held_by_cluster(self._rows.x, self._rows.weights).shards()
        except ClusterError:
            return None


def improved(
    runs: Sequence[Run[Mixture]],
    rule: Rule[Mixture],
    rows: Subsample,
    sampled: Sampling,
    tol: float,
) -> list[Run[Mixture]]:
    """Starts, after EM on the subsample; those that others have outdone there end.

    It begins on a part of the subsample, if that is enough for it, and the best three
    go on on all of it.

    Parameters
    ----------
    runs : sequence of Run
        Some may have failed.
    rule : Rule
        The subsample's.
    rows : Subsample
    sampled : Sampling
    tol : float
        See `is_heavy`: where it is, nothing is done.
    """
    whole = _Climb(rule, rows, sampled.most_at_start)
    first = whole
    if sampled.part_size:
        part = rows.thinned(sampled.part_size)
        first = _Climb(rule, part, _MOST_ON_PART, _NEAR_OF_PART)
    stepped = _each(runs, first.step)
    if any(
        is_heavy(rule.slope(run.parameters), tol)
        for run in stepped
        if run.is_live and run.parameters is not None
    ):
        return list(runs)
    ended = _promoted(_each(stepped, first.to_end), whole)
    return ended if first is whole else _each(ended, whole.to_end)


@final
class _Climb:
    """EM on some rows, from starts to near its end.

    Parameters
    ----------
    rule : Rule
    rows : Subsample
        By them their optimum is off by ½ p/n, for p parameters and n rows.
    most : int
        Evaluations, at most.
    near : float
        The part of that which the end may be off by.
    """

    def __init__(
        self, rule: Rule[Mixture], rows: Subsample, most: int, near: float = _NEAR
    ) -> None:
        self._rule, self._of_sample = rule, OnSample(rows)
        self._near = 0.5 * near / len(rows.x)
        self._most = most

    def step(self, start: Mixture) -> Mixture:
        """EM's own: starts are not what it leads to, of one row or not normalised."""
        return self._rule.m_step(start, self._of_sample(start))

    def to_end(self, start: Mixture) -> Mixture:
        """The end of the path."""
        return ascend(
            start,
            self._rule.m_step,
            self._of_sample,
            self._rule.bound,
            most=self._most,
            least=self._near * start.n_parameters,
            slope=self._rule.slope(start),
        ).mixtures[-1]

    def value(self, mixture: Mixture) -> float:
        """The bound."""
        return self._rule.bound(mixture, self._of_sample(mixture))


def _each(
    runs: Sequence[Run[Mixture]], change: Callable[[Mixture], Mixture]
) -> list[Run[Mixture]]:
    """Live runs with their parameters changed, failed where there are none then."""
    changed: list[Run[Mixture]] = []
    for run in runs:
        if run.is_live and run.parameters is not None:
            try:
                run = replace(run, parameters=change(run.parameters))
            except IllDefinedCovarianceError as error:
                run = failed(run, error)
        changed.append(run)
    return changed


def _promoted(runs: Sequence[Run[Mixture]], climb: _Climb) -> list[Run[Mixture]]:
    """The runs, all but the best ended."""
    if sum(run.is_live for run in runs) <= _PROMOTED:
        return list(runs)
    values = {
        i: climb.value(run.parameters)
        for i, run in enumerate(runs)
        if run.is_live and run.parameters is not None
    }
    best = sorted(values, key=lambda i: -values[i])[:_PROMOTED]
    return [
        replace(run, status=Status.OUTDONE) if i in values and i not in best else run
        for i, run in enumerate(runs)
    ]
