"""What each way to estimate mixtures must say: parameters from moments, the bound."""

from __future__ import annotations

from typing import Protocol, TypeVar

from daskgmm.mixtures.gaussian import Mixture
from daskgmm.mixtures.refinement import Refined
from daskgmm.mixtures.sufficient_statistics import Moments

Parameters = TypeVar("Parameters")
"""What is estimated: under maximum likelihood a `Mixture`, else what implies one."""


class Rule(Protocol[Parameters]):
    """How parameters follow from moments, as pure functions."""

    def message(self, parameters: Parameters) -> Mixture:
        """The mixture by which the E-step finds the responsibilities."""

    def m_step(
        self, parameters: Parameters, moments: Moments, *, at_last: bool = False
    ) -> Parameters:
        """The parameters that follow.

        Parameters
        ----------
        parameters
            Those that the E-step was by.
        moments : Moments
        at_last : bool
            Whether no iteration follows.

        Raises
        ------
        IllDefinedCovarianceError
            If a covariance is not positive definite.
        """

    def refine(
        self, parameters: Parameters, refined: Refined, *, at_last: bool
    ) -> Parameters:
        """Rough parameters anew, from what another pass measured about and by them.

        Raises
        ------
        IllDefinedCovarianceError
            If a covariance is not positive definite; at last, if it is still rough.
        """

    def bound(
        self,
        parameters: Parameters,
        moments: Moments,
        following: Parameters | None = None,
    ) -> float:
        """What EM makes larger: by the parameters that the E-step was by.

        Parameters
        ----------
        parameters
        moments : Moments
            Of an E-step by these.
        following
            What follows from them, if it is known.
        """

    def slope(self, parameters: Parameters) -> float:
        """How fast the bound may fall along EM's own step, by what draws it elsewhere.

        In units of `Coordinates`: an upper bound; zero if EM never makes it fall.
        """
