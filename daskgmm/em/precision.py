"""In which precision the passes of a fit, and questions, are computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, final

import numpy as np
from numpy.typing import NDArray

from daskgmm.em.state import Run, Status
from daskgmm.mixtures.e_step import stays_single
from daskgmm.mixtures.gaussian import Mixture
from daskgmm.mixtures.rule import Parameters
from daskgmm.mixtures.single import shift_of

Arithmetic = Literal["auto", "double"]

_ENOUGH: Final = 2**22
"""Products of rows and means that are worth another kind of compiled code."""
_NOISE: Final = 1e-6
"""What the mean log density of rows may be off by in single precision, with so few
features that what is added up for them does not matter:"""
_FEW: Final = 16
_SLACK: Final = 4.0
"""How many times as much what follows may be off by, before it is found in double."""


def may_be_single(
    arithmetic: Arithmetic,
    dtype: np.dtype[Any],
    n_rows: float,
    n_components: int,
    n_features: int,
) -> bool:
    """Whether rows are float32, and so many that single precision pays.

    It depends on numbers alone, not on where the rows are or how they are cut.
    """
    n_products = n_rows * n_components * (n_features + 2)
    return arithmetic == "auto" and dtype == np.float32 and n_products >= _ENOUGH


@final
@dataclass(frozen=True, slots=True)
class Precision(Generic[Parameters]):
    """Which runs the next pass may evaluate in single precision.

    Each run for itself: its numbers do not depend on those beside it.

    Attributes
    ----------
    allowed : bool
        See `may_be_single`.
    tol : float
        As of a fit. Where it is below what single precision is off by, runs that gain
        no more than that go on in double.
    mixture_of : callable
        The mixture that parameters imply.
    """

    allowed: bool
    tol: float
    mixture_of: Callable[[Parameters], Mixture]

    def shift(
        self, run: Run[Parameters], mixture: Mixture
    ) -> NDArray[np.float64] | None:
        """What to measure from in single precision; None if double is needed.

        Parameters
        ----------
        run : Run
        mixture : Mixture
            One of those that it has evaluated next.
        """
        if not self.allowed or self._needs_more(run, mixture.n_features):
            return None
        return shift_of(mixture)

    def _needs_more(self, run: Run[Parameters], n_features: int) -> bool:
        noise = _NOISE * max(1.0, n_features / _FEW)
        # Before two bounds are known, there is no change, but a NaN or infinity.
        return self.tol < noise and bool(np.abs(run.change) <= noise)

    def is_sound(self, run: Run[Parameters]) -> bool:
        """Whether what follows from sums in single precision may be kept.

        What is close to singular then may be nothing but rounding.
        """
        if run.status is Status.FAILED or run.parameters is None:
            return False
        return stays_single(self.mixture_of(run.parameters), slack=_SLACK)

    def of_last(self, run: Run[Parameters]) -> Literal["single", "double"]:
        """The precision of a run that has ended."""
        if run.parameters is None:
            return "double"
        mixture = self.mixture_of(run.parameters)
        is_single = self.shift(run, mixture) is not None and stays_single(mixture)
        return "single" if is_single else "double"
