"""Anchored EM: a pass verifies what a corrected subsample says of all rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from daskgmm.em.plain import PlainEM, failed
from daskgmm.em.state import Run, Status
from daskgmm.errors import IllDefinedCovarianceError
from daskgmm.mixtures.coordinates import Coordinates
from daskgmm.mixtures.correction import Correction
from daskgmm.mixtures.criteria import fit_of
from daskgmm.mixtures.gaussian import Mixture
from daskgmm.mixtures.refinement import Refined
from daskgmm.mixtures.sufficient_statistics import Moments

Array = NDArray[np.float64]
OfSample = Callable[[Mixture], Moments]
"""The E-step on the subsample: its moments about the mixture's means."""

_DEPTH: Final = 10
"""Steps that an extrapolation looks back on (Anderson's m)."""
_FARTHEST: Final = 2.0
"""Longest extrapolated change of a log weight, and of a log scale."""
_REACH: Final = 2.0
"""How many times as long a step is taken at first, where steps grow: each time that
goes higher, twice as many more, and else a quarter."""
_RANK: Final = 1e-10
"""Changes of steps that are smaller, beside the largest, are rounding."""
_NOISE: Final = 16 * np.finfo(np.float64).eps
"""What the mean of log densities is off by, as a part of them."""
_NOTHING: Final = 1e-28
"""A gain that no double precision tells from none: its square root is rounding."""
_SMALL_PART: Final = 0.1
"""The part of a gain that reg_covar may take."""
_LEAST_TOL: Final = 1e-5
"""A gain below which the length of EM's own steps tells where it stays."""
_SETTLED: Final = 1e-3
"""The part of a path's gain below which what is left to gain ends it."""
_TOLD_PART: Final = 0.1
"""The same where only the gain is told, which is not known to a part as small,"""
_TOLD_MOST: Final = 6
"""and most evaluations for that."""

Past = Sequence[tuple[Mixture, Mixture]]
"""Anchors, each with the end of its path."""
_ENDS: Final = 3
"""Ends of paths whose moments are known: no more runs go on, mostly."""
_PAST: Final = 5
"""Most of them that a run remembers."""
_SHOWN: Final = (1, 6)
"""Places of a path that a wary pass evaluates, besides its end.

The first one is EM's step on all rows, so that no pass gains less than EM's would.
Early ones are better where the subsample is small, and says little of all rows.
"""


@final
@dataclass(frozen=True, slots=True)
class AnchoredEM:
    """A `loop.Method`: between two passes, EM goes on on a corrected subsample.

    A run has an anchor: the best mixture that a pass has evaluated, with the moments of
    all rows at it. From there, EM climbs a likelihood of the subsample that is
    corrected so that its gradient at the anchor is that of all rows (`Correction`), and
    the next pass evaluates some points of that path. The first step is EM's own on all
    rows, so what EM stays at, this stays at, and nothing else.

    At first a pass evaluates the end of the path alone, and where there are earlier
    ones, where they all lead to. Once that gained less than EM's step may have, the
    run is wary: EM's own step is among what each pass evaluates. So a subsample that
    misleads costs a pass, and no more.

    A run's parameters are always one step of EM on all rows from its anchor.

    Attributes
    ----------
    plain : PlainEM
        The rule, and when to stop.
    of_sample : callable
        The E-step on the subsample.
    trust : float
        See `Correction`.
    most : int
        Evaluations of the subsample between two passes, at most.
    ends : Ends
        What is known of the subsample at the ends of paths. It saves evaluations, and
        changes nothing.
    """

    plain: PlainEM[Mixture]
    of_sample: OfSample
    trust: float
    most: int
    ends: Ends = field(default_factory=lambda: Ends(), repr=False, compare=False)

    def propose(self, run: Run[Mixture]) -> Sequence[Mixture]:
        """Points of a path from the anchor, or the newest mixture alone."""
        anchor = _anchor(run)
        if anchor is None or self._is_heavy(run):
            return self.plain.propose(run)
        path = self._path(*anchor, part=_SETTLED, most=self.most).mixtures
        if len(path) < 2:
            return self.plain.propose(run)
        last = len(path) - 1
        places = (*_SHOWN, last) if _is_wary(run) else (last,)
        shown = [path[i] for i in sorted({min(i, last) for i in places})]
        farther = _farther(_past(run), anchor[0], path[-1])
        return shown if farther is None else [farther, *shown]

    def reopened(self, run: Run[Mixture]) -> Run[Mixture]:
        """As plain EM has it; but where EM's own step gained nothing, no limit did."""
        at_end = _is_wary(run) and run.change == 0.0
        return run if at_end else self.plain.reopened(run)

    def remaining_gain(self, run: Run[Mixture]) -> float:
        """What is left to gain from the run's bound on, as predicted; or NaN."""
        anchor = _anchor(run)
        if anchor is None or run.status is Status.FAILED:
            return np.nan
        path = self._path(*anchor, part=_TOLD_PART, most=min(self.most, _TOLD_MOST))
        return max(path.gain + path.left, 0.0) if np.isfinite(path.left) else np.nan

    def _path(self, mixture: Mixture, of_all: Moments, part: float, most: int) -> Path:
        rule, known = self.plain.rule, self.ends.at(mixture)
        at_start = self.of_sample(mixture) if known is None else known
        correction = Correction.between(mixture.shape, of_all, at_start, self.trust)

        def step(here: Mixture, of_sample: Moments) -> Mixture:
            corrected = correction.corrected(of_sample)
            if not (corrected.mass > 0.0).all():
                raise IllDefinedCovarianceError("A component has lost all its rows.")
            return rule.m_step(here, corrected)

        path = ascend(
            mixture,
            step,
            self.of_sample,
            correction.objective,
            at_start=at_start,
            most=most,
            part=part,
            slope=rule.slope(mixture),
        )
        self.ends.add(path.mixtures[-1], path.at_end)
        return path

    def after(
        self,
        run: Run[Mixture],
        proposed: Sequence[Mixture],
        moments: Sequence[Moments],
    ) -> Run[Mixture]:
        """The run, anchored at the best of all that passes have evaluated."""
        after = self._anchored(run, proposed, moments)
        anchor = None if after.is_live else _anchor(after)
        if anchor is None:
            return after
        return replace(after, fit=fit_of(*anchor))

    def _anchored(
        self,
        run: Run[Mixture],
        proposed: Sequence[Mixture],
        moments: Sequence[Moments],
    ) -> Run[Mixture]:
        if self._is_heavy(run):
            return self.plain.after(replace(run, memory={}), proposed, moments)
        points, error = self._points(run, proposed, moments)
        anchor, was_wary = _anchor(run), _is_wary(run)
        at, slack = self._best(points)
        if at is None and (anchor is None or was_wary):
            assert error is not None
            return failed(run, error)
        if anchor is None:
            assert at is not None
            return self.plain.judged(run, _moved(run, points[at], moments[at], []))
        least_gain = _least_gain(anchor[0], _parameters(run))
        gain = -np.inf if at is None else points[at].value - run.bound
        wary = was_wary or not gain >= least_gain
        if at is not None and gain >= -slack:
            past = _past_after(run, anchor[0], proposed)
            after = _moved(run, points[at], moments[at], past)
        else:
            after = replace(run, bounds=(*run.bounds, run.bound))
            if was_wary:  # EM's own step gains nothing
                return replace(after, status=Status.CONVERGED)
        after = replace(after, memory={**after.memory, "wary": np.asarray(wary)})
        if wary and not was_wary and 2.0 * least_gain >= self.plain.stopping.tol:
            return self.plain.exhausted(after)
        return self.plain.judged(run, after)

    def _is_heavy(self, run: Run[Mixture]) -> bool:
        mixture = _parameters(run)
        return is_heavy(self.plain.rule.slope(mixture), self.plain.stopping.tol)

    def _points(
        self,
        run: Run[Mixture],
        proposed: Sequence[Mixture],
        moments: Sequence[Moments],
    ) -> tuple[list[Point], IllDefinedCovarianceError | None]:
        """What a pass found, and the last error of those that EM cannot go on from."""
        rule, last_error = self.plain.rule, None
        points = []
        for mixture, its_moments in zip(proposed, moments, strict=True):
            step, doubt = None, ""
            try:
                step, doubt = self.plain.m_step(run, mixture, its_moments)
            except IllDefinedCovarianceError as error:
                last_error = error
            bound = rule.bound(mixture, its_moments)
            points.append(Point(mixture, bound, step, doubt))
        return points, last_error

    def _best(self, points: Sequence[Point]) -> tuple[int | None, float]:
        """The highest one, and what heights are known to; or None.

        Of those that are as high, the one that is nearest to where EM stays.
        """
        there = [i for i, point in enumerate(points) if point.ahead is not None]
        if not there:
            return None, 0.0
        highest = points[max(there, key=lambda i: points[i].value)]
        slope = self.plain.rule.slope(highest.mixture)
        slack = _slack(highest.value, slope, highest.least_gain)
        as_high = [i for i in there if points[i].value >= highest.value - slack]
        return min(as_high, key=lambda i: points[i].least_gain), slack

    def look_again(
        self, before: Run[Mixture], run: Run[Mixture]
    ) -> tuple[Mixture, Mixture] | None:
        """Where the newest mixture is rough: about the anchor that it follows."""
        anchor = _anchor(run)
        if anchor is None:  # with a heavy reg_covar: what it follows is that before
            return self.plain.look_again(before, run)
        if run is before or run.status is Status.FAILED:
            return None
        rough = _parameters(run)
        return (anchor[0], rough) if rough.rough else None

    def refined(
        self,
        before: Run[Mixture],
        run: Run[Mixture],
        refined: Refined,
        *,
        at_last: bool,
    ) -> Run[Mixture]:
        """As plain EM has it: the newest mixture is measured again, not the anchor."""
        return self.plain.refined(before, run, refined, at_last=at_last)


_OF_MIXTURE: Final = "weights", "means", "covariances", "factors"
_OF_MOMENTS: Final = "mass", "drift", "scatter", "log_prob", "weight"


def _memory(mixture: Mixture, moments: Moments, past: Past) -> dict[str, NDArray[Any]]:
    """What a run remembers: its anchor, and those before with the ends of their paths.

    The latter in pairs, one after the other.
    """
    kept = {name: getattr(mixture, name) for name in _OF_MIXTURE}
    kept |= {name: np.asarray(getattr(moments, name)) for name in _OF_MOMENTS}
    before = [one for pair in past for one in pair]
    if before:
        for name in _OF_MIXTURE:
            kept["past_" + name] = np.stack([getattr(one, name) for one in before])
    return kept | {"rough": np.asarray(mixture.rough)}


def _moved(run: Run[Mixture], to: Point, moments: Moments, past: Past) -> Run[Mixture]:
    """The run, anchored at a point."""
    return replace(
        run,
        parameters=to.ahead,
        bounds=(*run.bounds, to.value),
        error=to.doubt,
        memory=_memory(to.mixture, moments, past),
    )


def _parameters(run: Run[Mixture]) -> Mixture:
    assert run.parameters is not None
    return run.parameters


def _is_wary(run: Run[Mixture]) -> bool:
    """Whether the subsample has misled it."""
    return bool(run.memory.get("wary", False))


def _past(run: Run[Mixture]) -> Past:
    """Earlier anchors of a run, each with the end of its path."""
    if "past_means" not in run.memory:
        return []
    shape = _parameters(run).shape
    of_all = zip(*(run.memory["past_" + name] for name in _OF_MIXTURE), strict=True)
    before = [Mixture(shape, *one) for one in of_all]
    return [*zip(before[::2], before[1::2], strict=True)]


def _past_after(
    run: Run[Mixture], anchor: Mixture, proposed: Sequence[Mixture]
) -> Past:
    """The same with the anchor before a pass, and the end of its path."""
    return [*_past(run), (anchor, proposed[-1])][-_PAST:]


def _farther(past: Past, anchor: Mixture, end: Mixture) -> Mixture | None:
    """Where a linear model of all paths so far has anchor and end the same."""
    trail = Trail(Coordinates(anchor))
    for here, ahead in [*past, (anchor, end)]:
        trail.add(here, ahead)
    jump = trail.jump()
    # Of steps that grow, nothing says how far: the ends of paths are what there is.
    return None if jump.is_stretched else jump.mixture


def _anchor(run: Run[Mixture]) -> tuple[Mixture, Moments] | None:
    """A run's anchor and the moments of all rows at it; None before the first pass."""
    memory = run.memory
    if not memory:
        return None
    mixture = Mixture(
        _parameters(run).shape,
        *(memory[name] for name in _OF_MIXTURE),
        rough=bool(memory["rough"]),
    )
    mass, drift, scatter = (memory[name] for name in _OF_MOMENTS[:3])
    log_prob, weight = (float(memory[name]) for name in _OF_MOMENTS[3:])
    return mixture, Moments(mixture.means, mass, drift, scatter, log_prob, weight)


@final
@dataclass(frozen=True, slots=True)
class Point:
    """A mixture on a path, what it is worth, and EM's step from it, if there is one.

    The doubt is what forbids another step after that.
    """

    mixture: Mixture
    value: float
    ahead: Mixture | None
    doubt: str = ""

    @property
    def least_gain(self) -> float:
        """What EM's step gains at least, to second order; infinite if there is none."""
        return np.inf if self.ahead is None else _least_gain(self.mixture, self.ahead)


@final
@dataclass(frozen=True, slots=True)
class Path:
    """Where `ascend` went.

    Attributes
    ----------
    mixtures : list of Mixture
        From the start on.
    gain : float
        By how much the last one's value is more than the start's, per row.
    left : float
        What is left to gain after it, as predicted; infinite if nothing is known.
    at_end : Moments
        The last one's.
    """

    mixtures: list[Mixture]
    gain: float
    left: float
    at_end: Moments


@final
class Ends:
    """Moments of the subsample at the newest ends of paths.

    Another path begins where one ended, if the pass between found nothing better.
    """

    def __init__(self) -> None:
        self._newest: list[tuple[Mixture, Moments]] = []

    def add(self, mixture: Mixture, moments: Moments) -> None:
        """Keep one's."""
        self._newest = [*self._newest, (mixture, moments)][-_ENDS:]

    def at(self, mixture: Mixture) -> Moments | None:
        """Those of a mixture with the same bits, if they are known."""
        for known, moments in self._newest:
            if _are_same(known, mixture):
                return moments
        return None


def _are_same(a: Mixture, b: Mixture) -> bool:
    names = (*_OF_MIXTURE, "log_weights")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


def is_heavy(slope: float, tol: float) -> bool:
    """Whether where EM stays is so far from where the bound is highest, that plain EM
    it must be.

    A gain of `tol` is made by a step of about √(2 tol), and the bound's slope along it,
    which reg_covar makes, is then no small part of that gain.

    Parameters
    ----------
    slope : float
        See `Rule.slope`.
    tol : float
    """
    return slope > _SMALL_PART * math.sqrt(max(tol, _LEAST_TOL) / 2.0)


def _slack(value: float, slope: float, least_gain: float) -> float:
    """By how much EM's step may lower a value: rounding, and what reg_covar does."""
    return float(_NOISE * (1.0 + abs(value)) + slope * np.sqrt(2.0 * least_gain))


def _least_gain(here: Mixture, ahead: Mixture) -> float:
    step = Coordinates(here).of(ahead)
    return 0.5 * float(step @ step)


@final
@dataclass(frozen=True, slots=True)
class Jump:
    """Where to go from the end of a trail.

    Attributes
    ----------
    mixture : Mixture or None
        None if there is no such mixture, or if it is the next one in any case.
    gain : float
        What is to gain until there, as predicted, per row.
    is_stretched : bool
        Whether it lies on the newest step's way, only farther.
    """

    mixture: Mixture | None
    gain: float
    is_stretched: bool = False


@final
class Trail:
    """Where a path has been, and where a linear model of its steps would have it go.

    Anderson acceleration (Anderson 1965; for EM, Henderson and Varadhan 2019).
    """

    def __init__(self, coordinates: Coordinates) -> None:
        self._coordinates = coordinates
        self._places: list[Array] = []
        self._steps: list[Array] = []

    def add(self, here: Mixture, ahead: Mixture) -> None:
        """Add a step of EM's."""
        place = self._coordinates.of(here)
        self._places = [*self._places, place][-_DEPTH:]
        self._steps = [*self._steps, self._coordinates.of(ahead) - place][-_DEPTH:]

    @property
    def least_gain(self) -> float:
        """What the newest step gains at least, to second order."""
        step = self._steps[-1]
        return 0.5 * float(step @ step)

    def jump(self, reach: float = _REACH) -> Jump:
        """Where the linear model has its fixed point.

        Next to a saddle steps grow, and that point is the saddle, which lies behind:
        the newest step is taken `reach` times as long then.
        """
        step = self._steps[-1]
        if len(self._places) < 2:
            return Jump(None, self.least_gain)
        changes = np.diff(self._steps, axis=0).T
        moves = np.diff(self._places, axis=0).T
        parts = np.linalg.lstsq(changes, step, rcond=_RANK)[0]
        jump = step - (moves + changes) @ parts
        lies_behind = float(step @ jump) <= 0.0
        if lies_behind:
            jump = reach * step
        # EM's step is the gradient, and what it goes up by falls to none linearly.
        gain = max(0.5 * float(step @ jump), self.least_gain)
        jump *= _FARTHEST / max(_FARTHEST, self._coordinates.size(jump))
        try:
            mixture = self._coordinates.mixture(self._places[-1] + jump)
        except IllDefinedCovarianceError:
            return Jump(None, gain, lies_behind)
        return Jump(None if mixture.rough else mixture, gain, lies_behind)


def ascend(
    start: Mixture,
    step: Callable[[Mixture, Moments], Mixture],
    of_sample: OfSample,
    value: Callable[[Mixture, Moments], float],
    *,
    at_start: Moments | None = None,
    most: int,
    part: float = 0.0,
    least: float = 0.0,
    slope: float = 0.0,
) -> Path:
    """Go uphill by EM's steps, and farther where that goes higher.

    Parameters
    ----------
    start : Mixture
    step : callable
        EM's step from a mixture, by its moments.
    of_sample : callable
        The E-step.
    value : callable
        What the steps make larger, per row.
    at_start : Moments, optional
        The start's, where they are known.
    most : int
        E-steps, at most.
    part, least : float
        It ends when what is left to gain is less than this part of what was gained,
        or less than so much.
    slope : float
        See `Rule.slope`.

    Returns
    -------
    Path
    """

    def at(mixture: Mixture, known: Moments | None = None) -> tuple[Point, Moments]:
        moments = of_sample(mixture) if known is None else known
        try:
            ahead = step(mixture, moments)
        except IllDefinedCovarianceError:
            ahead = None
        return Point(mixture, value(mixture, moments), ahead), moments

    trail = Trail(Coordinates(start))
    here, at_here = at(start, at_start)
    first = here
    mixtures, left, n_steps, reach = [start], np.inf, 1, _REACH
    while n_steps < most and here.ahead is not None and not here.ahead.rough:
        trail.add(here.mixture, here.ahead)
        jump = trail.jump(reach)
        left = jump.gain
        if left <= max(part * (here.value - first.value), least, _NOTHING):
            break
        there = None
        if jump.mixture is not None:
            (there, at_there), n_steps = at(jump.mixture), n_steps + 1
        # As high as EM's own step is at least; where that is less than what is known of
        # heights, nearer to where EM stays.
        gain = trail.least_gain
        slack = _slack(here.value, slope, gain)
        if there is None or not (
            there.value >= here.value + gain - slack
            and (gain > slack or there.least_gain < gain)
        ):
            (there, at_there), n_steps = at(here.ahead), n_steps + 1
            reach = max(_REACH, reach / 4.0)
        elif jump.is_stretched:
            reach *= 2.0
        if not there.value >= here.value - slack:
            break
        here, at_here = there, at_there
        mixtures.append(here.mixture)
    return Path(mixtures, here.value - first.value, left, at_here)
