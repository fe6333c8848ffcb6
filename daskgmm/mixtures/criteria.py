"""Criteria by which mixtures are chosen, from their moments at their own parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np

from daskgmm.mixtures.gaussian import Mixture
from daskgmm.mixtures.sufficient_statistics import Moments


@final
@dataclass(frozen=True, slots=True)
class Fit:
    """How well a mixture fits some rows.

    Attributes
    ----------
    log_prob : float
        Σ log p(x), by row weight.
    weight : float
        Sum of the row weights.
    entropy : float
        -Σ Σ r log r of the responsibilities, by row weight: zero where each row
        belongs to one component.
    n_parameters : float
        Free parameters of the mixture; NaN if nobody counts them, and so are all
        criteria.
    """

    log_prob: float
    weight: float
    entropy: float
    n_parameters: float

    @property
    def mean(self) -> float:
        """Mean log density of a row."""
        return self.log_prob / self.weight

    @property
    def aic(self) -> float:
        """Akaike's information criterion: the lower, the better (Akaike 1974)."""
        return -2.0 * self.log_prob + 2.0 * self.n_parameters

    @property
    def bic(self) -> float:
        """Bayesian information criterion: the lower, the better (Schwarz 1978)."""
        return -2.0 * self.log_prob + self.n_parameters * math.log(self.weight)

    @property
    def icl(self) -> float:
        """Integrated completed likelihood: the lower, the better.

        As McLachlan and Peel, Finite Mixture Models, 6.10.4 approximate that of
        Biernacki, Celeux and Govaert (2000): BIC and twice the entropy.
        """
        return self.bic + 2.0 * self.entropy


def fit_of(mixture: Mixture, moments: Moments) -> Fit:
    """How well a mixture fits the rows of these moments.

    Parameters
    ----------
    mixture : Mixture
    moments : Moments
        Of an E-step by it, and so about its means.
    """
    return Fit(
        moments.log_prob,
        moments.weight,
        entropy(mixture, moments),
        mixture.n_parameters,
    )


def entropy(mixture: Mixture, moments: Moments) -> float:
    """Entropy of the responsibilities of an E-step by a mixture, from its moments.

    With log joints l, log r = l - log p(x), and l is linear in what was added up:

        -Σ Σ r log r = Σ log p(x) - Σ Σ r l,
        Σ Σ r l = Σ_k mass_k c_k - ½ Σ Σ r (x - m)ᵀ Λ (x - m)

    with c the logarithms of weight times normalising constant.
    """
    shape = mixture.shape
    # A component without weight has no mass, and the logarithm of zero.
    constants = np.where(moments.mass > 0.0, mixture.log_normalisers(), 0.0)
    distances = shape.distances(moments.scatter, mixture.factors)
    joint = float(moments.mass @ constants) - 0.5 * distances
    return max(moments.log_prob - joint, 0.0)
