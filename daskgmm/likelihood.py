"""The rule of maximum likelihood: parameters from moments, and the bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from daskgmm.covariance import CovarianceShape
from daskgmm.mixture import Mixture
from daskgmm.moments import Moments

Array = NDArray[np.float64]

TINY: Final = 10 * np.finfo(np.float64).eps
"""Rows that scikit-learn adds to each component, at the origin of the coordinates."""


@final
@dataclass(frozen=True, slots=True)
class MaximumLikelihood:
    """How parameters follow from moments, as in scikit-learn's GaussianMixture.

    Attributes
    ----------
    reg_covar : float
        Added to the diagonal of covariances.
    row_weight : float
        Mean weight of a row, so that a constant factor in the weights cancels.
    """

    reg_covar: float
    row_weight: float

    def estimate(
        self, shape: CovarianceShape, means: Array, moments: Moments
    ) -> tuple[Array, Array, Array]:
        """Counts (K,), means (K, d) and covariances from moments about `means`.

        The equations of the M-step (Dempster, Laird and Rubin 1977; Bishop, Pattern
        Recognition and Machine Learning, 9.24-9.26), written in the deviation from
        the old means, so that data far from the origin lose nothing.
        """
        tiny = TINY * self.row_weight
        counts = moments.mass + tiny
        shift = (moments.drift - tiny * means) / counts[:, np.newaxis]
        scatter = shape.recentre(moments.scatter, moments.drift, moments.mass, shift)
        covariances = shape.covariances(scatter, counts, means.shape[1], self.reg_covar)
        return counts, means + shift, covariances

    def m_step(self, mixture: Mixture, moments: Moments) -> Mixture:
        """The parameters that follow `mixture`.

        Raises
        ------
        IllDefinedCovarianceError
            If a covariance is not positive definite.
        """
        shape = mixture.shape
        counts, means, covariances = self.estimate(shape, mixture.means, moments)
        return Mixture(
            shape,
            counts / counts.sum(),
            means,
            covariances,
            shape.factors(covariances),
        )

    def bound(self, moments: Moments) -> float:
        """Mean log likelihood of a row under the parameters that were sent out."""
        return moments.log_prob / moments.weight
