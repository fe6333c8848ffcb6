"""Plain EM, as scikit-learn has it: a run evaluates its newest mixture in each pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, final

from daskgmm.em.state import Run, Status
from daskgmm.errors import IllDefinedCovarianceError
from daskgmm.mixtures.criteria import fit_of
from daskgmm.mixtures.gaussian import Mixture
from daskgmm.mixtures.refinement import Refined
from daskgmm.mixtures.rule import Parameters, Rule
from daskgmm.mixtures.sufficient_statistics import Moments


@final
@dataclass(frozen=True, slots=True)
class Stopping:
    """When a run ends, by scikit-learn's parameters of these names."""

    tol: float
    max_iter: int


@final
@dataclass(frozen=True, slots=True)
class PlainEM(Generic[Parameters]):
    """A `loop.Method`: each iteration is one E-step and one M-step."""

    rule: Rule[Parameters]
    stopping: Stopping

    def propose(self, run: Run[Parameters]) -> Sequence[Mixture]:
        """The newest mixture alone."""
        return [self._mixture(run)]

    def after(
        self,
        run: Run[Parameters],
        proposed: Sequence[Mixture],
        moments: Sequence[Moments],
    ) -> Run[Parameters]:
        """The run after one more iteration."""
        [its_moments] = moments
        parameters = run.parameters
        assert parameters is not None
        try:
            found, doubt = self.m_step(run, parameters, its_moments)
        except IllDefinedCovarianceError as error:
            return failed(run, error)
        bound = self.rule.bound(parameters, its_moments, found)
        after = replace(run, parameters=found, bounds=(*run.bounds, bound), error=doubt)
        after = self.judged(run, after)
        if after.is_live:
            return after
        return replace(after, fit=fit_of(proposed[0], its_moments))

    def m_step(
        self, run: Run[Parameters], parameters: Parameters, its_moments: Moments
    ) -> tuple[Parameters, str]:
        """The M-step of a run's next iteration, and what forbids another one or "".

        Raises
        ------
        IllDefinedCovarianceError
            If a covariance is not positive definite.
        """
        try:
            return self.rule.m_step(parameters, its_moments), ""
        except IllDefinedCovarianceError as error:
            if run.n_iter + 1 < self.stopping.max_iter:
                raise
            kept = self.rule.m_step(parameters, its_moments, at_last=True)
            return kept, str(error)

    def reopened(self, run: Run[Parameters]) -> Run[Parameters]:
        """A run that had ended by other limits, as these have it."""
        if run.status not in (Status.CONVERGED, Status.EXHAUSTED):
            return run
        reopened = self.judged(run, replace(run, status=Status.TRAINING))
        if reopened.is_live and run.error:
            return replace(run, status=Status.FAILED)
        return reopened

    def judged(self, before: Run[Parameters], run: Run[Parameters]) -> Run[Parameters]:
        """A run, ended if it is time to."""
        tol = self.stopping.tol
        if tol > 0.0 and self._mixture(run).rough:
            tol = max(tol, self._mixture(before).rounding)
        if abs(run.change) < tol or (tol > 0.0 and self._is_settled(run)):
            return replace(run, status=Status.CONVERGED)
        return self.exhausted(run)

    def exhausted(self, run: Run[Parameters]) -> Run[Parameters]:
        """A run, ended if it has had all its iterations."""
        if run.n_iter >= self.stopping.max_iter:
            return replace(run, status=Status.EXHAUSTED)
        return run

    def _is_settled(self, run: Run[Parameters]) -> bool:
        """Whether only rounding can change: one component is found by the first pass.

        Its bound is known from the second one on. Where the start was rough, the first
        two bounds differ by that, and are not compared.
        """
        mixture = self._mixture(run)
        return mixture.n_components == 1 and run.n_iter >= (2 if mixture.rough else 3)

    def look_again(
        self, before: Run[Parameters], run: Run[Parameters]
    ) -> tuple[Mixture, Mixture] | None:
        """Where the newest mixture is rough."""
        if run is before or run.status is Status.FAILED:
            return None
        rough = self._mixture(run)
        return (self._mixture(before), rough) if rough.rough else None

    def refined(
        self,
        before: Run[Parameters],
        run: Run[Parameters],
        refined: Refined,
        *,
        at_last: bool,
    ) -> Run[Parameters]:
        assert run.parameters is not None
        try:
            finer = self.rule.refine(run.parameters, refined, at_last=at_last)
        except IllDefinedCovarianceError as error:
            return failed(before, error)
        return replace(run, parameters=finer)

    def remaining_gain(self, run: Run[Parameters]) -> float:
        """What is left to gain: nothing predicts it."""
        return math.nan

    def _mixture(self, run: Run[Parameters]) -> Mixture:
        assert run.parameters is not None
        return self.rule.message(run.parameters)


def failed(run: Run[Parameters], error: IllDefinedCovarianceError) -> Run[Parameters]:
    """A run that ends with an error."""
    return replace(run, status=Status.FAILED, error=str(error))
