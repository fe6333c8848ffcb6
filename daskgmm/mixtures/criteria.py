"""Criteria by which mixtures are chosen, from their moments at their own parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, final

import numpy as np

from daskgmm.mixtures.gaussian import Mixture
from daskgmm.mixtures.refinement import Refined
from daskgmm.mixtures.sufficient_statistics import Moments

_KNOWN: Final = 1e-7
"""Nats of a row's entropy that rounding may take from it."""


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
        belongs to one component; NaN if it is not known.
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


def fit_of(mixture: Mixture, moments: Moments, refined: Refined | None = None) -> Fit:
    """How well a mixture fits the rows of these moments.

    Where a covariance is close to singular, sums of squares do not tell the entropy;
    those of a second look do, for which `look_at` asks.

    Parameters
    ----------
    mixture : Mixture
    moments : Moments
        Of an E-step by it, and so about its means.
    refined : Refined or None
        Of the second look.
    """
    shape, distances = mixture.shape, None
    if refined is not None and shape.dense:
        distances = float(np.einsum("kii->", refined.white_scatter))
    found = entropy(mixture, moments, distances)
    if distances is None:
        off = 0.5 * shape.distances_off(moments.scatter, mixture.factors)
        found = found if off <= _KNOWN * moments.weight else math.nan
    return Fit(moments.log_prob, moments.weight, found, mixture.n_parameters)


def look_at(mixture: Mixture, fit: Fit) -> tuple[Mixture, Mixture] | None:
    """What to look at again for the entropy: see `refinement.look_again`."""
    return (mixture, mixture) if math.isnan(fit.entropy) else None


def entropy(
    mixture: Mixture, moments: Moments, distances: float | None = None
) -> float:
    """Entropy of the responsibilities of an E-step by a mixture, from its moments.

    With log joints l, log r = l - log p(x), and l is linear in what was added up:

        -Σ Σ r log r = Σ log p(x) - Σ Σ r l,
        Σ Σ r l = Σ_k mass_k c_k - ½ Σ Σ r (x - m)ᵀ Λ (x - m)

    with c the logarithms of weight times normalising constant.
    """
    shape = mixture.shape
    # A component without weight has no mass, and the logarithm of zero.
    constants = np.where(moments.mass > 0.0, mixture.log_normalisers(), 0.0)
    if distances is None:
        distances = shape.distances(moments.scatter, mixture.factors)
    joint = float(moments.mass @ constants) - 0.5 * distances
    return max(moments.log_prob - joint, 0.0)
