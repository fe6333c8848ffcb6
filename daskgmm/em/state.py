"""What a fit knows between two passes: its runs, and which of them is the best."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, final

import numpy as np
from numpy.typing import NDArray

from daskgmm.errors import IllDefinedCovarianceError
from daskgmm.mixtures.criteria import Fit
from daskgmm.mixtures.gaussian import Mixture
from daskgmm.mixtures.rule import Parameters

_SAME_BOUND: Final = 1e-10
"""Relative difference below which two runs' bounds differ by rounding alone."""


@final
class Status(enum.Enum):
    """Where a run stands."""

    WAITING = "waiting"
    TRAINING = "training"
    CONVERGED = "converged"
    EXHAUSTED = "exhausted"
    OUTDONE = "outdone"
    FAILED = "failed"


@final
@dataclass(frozen=True, slots=True)
class Run(Generic[Parameters]):
    """One sequence of parameters, from one start.

    Attributes
    ----------
    parameters : Mixture, or what another rule estimates, or None
        The newest ones; None if not even the start was well-defined.
    status : Status
    bounds : tuple of float
        After each iteration, the bound of the parameters before it.
    previous : float
        Bound that the first iteration's is compared with.
    error : str
        Why the run failed; of one that is exhausted, why it would have failed next.
    memory : mapping of str to ndarray
        What else its method goes on from.
    fit : Fit or None
        Once it has ended, how well the parameters fitted that its bound is of.
    """

    parameters: Parameters | None
    status: Status = Status.TRAINING
    bounds: tuple[float, ...] = ()
    previous: float = -np.inf
    error: str = ""
    memory: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    fit: Fit | None = None

    @property
    def n_iter(self) -> int:
        """Iterations so far."""
        return len(self.bounds)

    @property
    def is_live(self) -> bool:
        """Whether it goes on."""
        return self.status is Status.TRAINING

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
class State:
    """All that a fit needs to go on after a pass.

    Attributes
    ----------
    runs : tuple of Run
    n_passes : int
        EM passes so far.
    random_state : RandomState
        As the starts left it.
    before_draw : RandomState or None
        As it was before rows were drawn for them; None if no state is kept.
    history : ndarray of shape (m, 7)
        See `progress.told`.
    seed : int or None
        What a search's candidates all start with.
    of_priors : tuple of ndarray, or None
        Mean and covariance of the priors of a Bayesian mixture.
    """

    runs: tuple[Run[Mixture], ...]
    n_passes: int
    random_state: np.random.RandomState
    before_draw: np.random.RandomState | None
    history: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 7)))
    seed: int | None = None
    of_priors: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None


def best(runs: Sequence[Run[Any]]) -> int:
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


def _all_failed(runs: Sequence[Run[Any]]) -> str:
    first = runs[0].error
    if len(runs) == 1:
        return first
    return f"{first} (This is the first of {len(runs)} runs; all of them failed.)"
