"""What all rows have beyond a subsample of them, told by the moments of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from daskgmm.mixtures.covariance import CovarianceShape
from daskgmm.mixtures.gaussian import Mixture
from daskgmm.mixtures.sufficient_statistics import Moments, moved

Array = NDArray[np.float64]


@final
@dataclass(frozen=True, slots=True)
class Correction:
    """All rows' moments less a subsample's, at one mixture, the anchor.

    Added to the subsample's moments at any mixture, it makes EM on the subsample go
    uphill on a likelihood whose gradient at the anchor is that of all rows (the
    surrogate likelihood of Jordan, Lee and Yang 2019; the variance reduction of Chen,
    Zhu, Teh and Zhang 2018 is the same): in an exponential family, the gradient is the
    moments of the E-step less those of the model.

    The fewer the rows for each parameter, the less the subsample knows of directions
    in which the likelihood is flat. So it is trusted in part: the other part of all
    rows keeps the responsibilities that it has at the anchor, which is EM's own bound
    on the likelihood (with no trust, the first step is EM's, and the last).

    Attributes
    ----------
    shape : CovarianceShape
    factor : float
        What the subsample's moments are multiplied by: the weight of all rows that it
        stands for over its weight.
    rest : Moments
        About the anchor's means.
    """

    shape: CovarianceShape
    factor: float
    rest: Moments

    @classmethod
    def between(
        cls,
        shape: CovarianceShape,
        of_all: Moments,
        of_sample: Moments,
        trust: float = 1.0,
    ) -> Correction:
        """The correction from both moments at the anchor.

        Parameters
        ----------
        shape : CovarianceShape
        of_all, of_sample : Moments
        trust : float
            The part of all rows that the subsample stands for, from 0 to 1.
        """
        factor = trust * of_all.weight / of_sample.weight
        return cls(shape, factor, of_all + _scaled(of_sample, -factor))

    def corrected(self, of_sample: Moments) -> Moments:
        """Moments of the subsample at some mixture, as if they were of all rows."""
        rest = moved(self.shape, self.rest, of_sample.about)
        return _scaled(of_sample, self.factor) + rest

    def objective(self, mixture: Mixture, of_sample: Moments) -> float:
        """The surrogate likelihood of a mixture, per row of all, but for a constant.

        The subsample's log likelihood, and what the mixture's log densities add up to
        over the rest, by complete data.
        """
        rest = moved(self.shape, self.rest, mixture.means)
        squares = self.shape.distances(rest.scatter, mixture.factors)
        added = rest.mass @ mixture.log_normalisers() - 0.5 * squares
        weight = self.factor * of_sample.weight + self.rest.weight
        return float((self.factor * of_sample.log_prob + added) / weight)


def _scaled(moments: Moments, factor: float) -> Moments:
    return Moments(
        moments.about,
        factor * moments.mass,
        factor * moments.drift,
        factor * moments.scatter,
        factor * moments.log_prob,
        factor * moments.weight,
    )
