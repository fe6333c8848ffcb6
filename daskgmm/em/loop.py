"""The loop over passes: all live runs share each of them, whatever their method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, final

import numpy as np
from numpy.typing import NDArray

from daskgmm.data.block import Block
from daskgmm.em.precision import Precision
from daskgmm.em.scan import checked
from daskgmm.em.state import Run
from daskgmm.errors import DataError
from daskgmm.execution.runners import Shards
from daskgmm.execution.tree import LeafFunction
from daskgmm.mixtures.e_step import (
    FlatSums,
    Message,
    e_step,
    message,
    moments,
    sums_bytes,
)
from daskgmm.mixtures.gaussian import Mixture
from daskgmm.mixtures.refinement import Refined, look_again, refine
from daskgmm.mixtures.rule import Parameters
from daskgmm.mixtures.sufficient_statistics import Moments
from daskgmm.mixtures.totals import Totals

_LOOKS: Final = 3
"""Most passes to refine the covariances of one iteration."""


class Method(Protocol[Parameters]):
    """How runs go on from pass to pass, as pure functions.

    What a run must remember for it is in its `memory`, which checkpoints keep.
    """

    def reopened(self, run: Run[Parameters]) -> Run[Parameters]:
        """A run that had ended by other limits, as this method has it."""

    def remaining_gain(self, run: Run[Parameters]) -> float:
        """What is left to gain from the run's bound on, as predicted; or NaN."""

    def propose(self, run: Run[Parameters]) -> Sequence[Mixture]:
        """Mixtures that the next pass is to evaluate: one or more."""

    def after(
        self,
        run: Run[Parameters],
        proposed: Sequence[Mixture],
        moments: Sequence[Moments],
    ) -> Run[Parameters]:
        """The run after a pass that gave these moments of what it proposed."""

    def look_again(
        self, before: Run[Parameters], run: Run[Parameters]
    ) -> tuple[Mixture, Mixture] | None:
        """What to measure again before the next pass: see `refinement.look_again`.

        Parameters
        ----------
        before, run : Run
            Before and after the pass.
        """

    def refined(
        self,
        before: Run[Parameters],
        run: Run[Parameters],
        refined: Refined,
        *,
        at_last: bool,
    ) -> Run[Parameters]:
        """The run after that was measured; at last, it is not measured once more."""


@final
@dataclass(frozen=True, slots=True)
class Training(Generic[Parameters]):
    """How a run is trained: by which method, and in which precision.

    Attributes
    ----------
    method : Method
    precision : Precision or None
        By default double.
    """

    method: Method[Parameters]
    precision: Precision[Parameters] | None = None


def em(
    shards: Shards,
    runs: Sequence[Run[Parameters]],
    method: Method[Parameters],
    *,
    at_first: Callable[[int], None] | None = None,
    precision: Precision[Parameters] | None = None,
) -> Iterator[list[Run[Parameters]]]:
    """Train runs, yielding all of them after each pass over the data.

    Runs that have ended leave the message; the data are read once per pass whatever
    the number of runs, unless their sums take too much memory. Covariances close to
    singular take further passes, within the same iteration.

    Parameters
    ----------
    shards : Shards
    runs : sequence of Run
    method : Method
    at_first : callable or None
        Given if the first pass is the first read of the data, and is to check them:
        called with the number of rows, before anything follows from them.
    precision : Precision or None
        By default double.

    Raises
    ------
    DataError
        If the rows are not the same in all passes; at the first read, as `scan.survey`.
    """
    trainings = [Training(method, precision)] * len(runs)
    passes = Passes(shards, at_first)
    while any(run.is_live for run in runs):
        runs = passes.one(runs, trainings)
        yield list(runs)


@final
class Passes:
    """Passes over the same data, one after the other.

    Parameters
    ----------
    shards : Shards
    at_first : callable or None
        As of `em`.
    """

    def __init__(
        self, shards: Shards, at_first: Callable[[int], None] | None = None
    ) -> None:
        self._shards, self._at_first = shards, at_first
        self._totals: Totals | None = None
        self._n_rows = 0.0
        """About how many there are, or what they weigh: once they were read."""

    def one(
        self,
        runs: Sequence[Run[Parameters]],
        trainings: Sequence[Training[Parameters]],
    ) -> list[Run[Parameters]]:
        """The runs after one more pass, each by its own training.

        Raises
        ------
        DataError
            As `em`.
        """
        runs = list(runs)
        live = [i for i, run in enumerate(runs) if run.is_live]
        proposed = {i: trainings[i].method.propose(runs[i]) for i in live}
        for turn in _turns(proposed, self._shards.sums_bytes):
            self._take(turn, runs, trainings, proposed)
        self._at_first = None
        return runs

    def _take(
        self,
        turn: Sequence[int],
        runs: list[Run[Parameters]],
        trainings: Sequence[Training[Parameters]],
        proposed: Mapping[int, Sequence[Mixture]],
    ) -> None:
        """Take those whose turn it is on, in one read of the data."""
        before = list(runs)

        def after(found: Mapping[int, Sequence[Moments]]) -> None:
            for i, its_moments in found.items():
                method = trainings[i].method
                runs[i] = method.after(before[i], proposed[i], its_moments)

        leaf = e_step if self._at_first is None else checked_e_step
        shifts = {i: _shift(trainings[i], runs[i], proposed[i][0]) for i in turn}
        found, in_single = _found(self._shards, proposed, shifts, leaf, self._n_rows)
        self._n_rows = found[turn[0]][0].weight
        if self._at_first is not None:
            self._at_first(round(found[turn[0]][0].weight))
        after(found)
        if unsound := [i for i in in_single if not _is_sound(trainings[i], runs[i])]:
            in_double = dict.fromkeys(unsound)
            doubles, _ = _found(self._shards, proposed, in_double, e_step, self._n_rows)
            after(doubles)
            found |= doubles
        if not self._shards.is_fixed:
            its = turn[0]
            precisions = [t.precision for t in trainings if t.precision is not None]
            single = any(precision.allowed for precision in precisions)
            self._totals = _same_rows(
                self._totals, proposed[its][0], found[its][0], single
            )
        _look_again(self._shards, before, runs, trainings)


def _shift(
    training: Training[Parameters], run: Run[Parameters], mixture: Mixture
) -> NDArray[np.float64] | None:
    """What a run is measured from in single precision, or None."""
    if training.precision is None:
        return None
    return training.precision.shift(run, mixture)


def _is_sound(training: Training[Parameters], run: Run[Parameters]) -> bool:
    """Whether sums in single precision suffice for what follows from them."""
    return training.precision is None or training.precision.is_sound(run)


def _found(
    shards: Shards,
    proposed: Mapping[int, Sequence[Mixture]],
    shifts: Mapping[int, NDArray[np.float64] | None],
    leaf: LeafFunction,
    n_rows: float,
) -> tuple[dict[int, list[Moments]], list[int]]:
    """Moments of the rows, about so many, at what some runs proposed, in one pass.

    And those of the runs of which some are in single precision.
    """
    mixtures = [mixture for i in shifts for mixture in proposed[i]]
    of_all = [shifts[i] for i in shifts for _ in proposed[i]]
    sent = message(mixtures, of_all, n_rows)
    found = iter(moments(sent, shards.reduce(leaf, sent), mixtures))
    of_runs = iter(sent.in_single(len(mixtures)))
    singles = {i: any([next(of_runs) for _ in proposed[i]]) for i in shifts}
    by_run = {i: [next(found) for _ in proposed[i]] for i in shifts}
    return by_run, [i for i in shifts if singles[i]]


def evaluated(
    shards: Shards, mixtures: Sequence[Mixture], *, check: bool = False
) -> Sequence[Moments]:
    """The E-step: moments of the rows at each mixture, in one pass.

    Raises
    ------
    DataError
        If rows are to be checked, and hold what is no finite number.
    """
    sent = message(mixtures)
    leaf = checked_e_step if check else e_step
    return moments(sent, shards.reduce(leaf, sent), mixtures)


def checked_e_step(sent: Message, blocks: Iterator[Block]) -> FlatSums:
    """`e_step` of rows that nobody has looked at before."""
    return e_step(sent, map(checked, blocks))


def _turns(
    proposed: Mapping[int, Sequence[Mixture]], most: float
) -> Iterator[Sequence[int]]:
    """Runs in groups whose sums together take at most so many bytes, if they can.

    The data are read once for each group.
    """
    turn: list[int] = []
    held = 0
    for i, mixtures in proposed.items():
        n_bytes = sum(sums_bytes(m.shape, *m.means.shape) for m in mixtures)
        if turn and held + n_bytes > most:
            yield turn
            turn, held = [], 0
        turn.append(i)
        held += n_bytes
    yield turn


def _same_rows(
    before: Totals | None, mixture: Mixture, its_moments: Moments, single: bool
) -> Totals:
    """The rows' totals of the first pass; an error if those of another pass differ."""
    if before is None:
        return Totals.of(mixture, its_moments)
    if before.differ(Totals.of(mixture, its_moments, before.centre), single=single):
        raise DataError(
            "The rows of X, or their weights, were not the same in two passes over "
            "them: what was found is of neither. Data that are drawn or changed anew "
            "each time that they are read must be persisted, or written, before."
        )
    return before


def _look_again(
    shards: Shards,
    before: Sequence[Run[Parameters]],
    runs: list[Run[Parameters]],
    trainings: Sequence[Training[Parameters]],
) -> None:
    """Measure again, together, what the sums of some runs were too rough for."""
    for n_looks in range(1, _LOOKS + 1):
        looks = {
            i: look
            for i, run in enumerate(runs)
            if (look := trainings[i].method.look_again(before[i], run)) is not None
        }
        if not looks:
            return
        sums = shards.reduce(refine, look_again([*looks.values()]))
        for i, refined in zip(looks, sums.runs, strict=True):
            runs[i] = trainings[i].method.refined(
                before[i], runs[i], refined, at_last=n_looks == _LOOKS
            )
