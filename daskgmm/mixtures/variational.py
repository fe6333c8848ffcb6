"""The rule of variational Bayes: parameters are what their distributions expect.

Attias (2000), A variational Bayesian framework for graphical models; Bishop, Pattern
Recognition and Machine Learning, 10.2; for the Dirichlet process Blei and Jordan
(2006), Variational inference for Dirichlet process mixtures. In scikit-learn's terms,
and with its constants left out of the bound, so that its numbers come out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, final

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, digamma, gammaln

from daskgmm.mixtures.covariance import SHAPES, CovarianceShape
from daskgmm.mixtures.criteria import entropy
from daskgmm.mixtures.gaussian import Mixture
from daskgmm.mixtures.maximum_likelihood import MaximumLikelihood
from daskgmm.mixtures.refinement import Refined
from daskgmm.mixtures.sufficient_statistics import Moments

Array = NDArray[np.float64]

_KEPT: Final = 32
"""Mixtures whose messages are kept, at the most."""


@final
@dataclass(frozen=True, slots=True)
class Priors:
    """What is believed before the data are seen.

    Attributes
    ----------
    is_process : bool
        Whether weights come from a Dirichlet process, broken off after K components;
        else from a Dirichlet distribution.
    weight_concentration : float
    mean_precision : float
        Rows that the prior mean counts as.
    degrees_of_freedom : float
        Above d - 1.
    mean : ndarray of shape (d,) or None
    covariance : ndarray or None
        Of one component: (d, d), (d,) or (). What is None is that of all rows.
    """

    is_process: bool
    weight_concentration: float
    mean_precision: float
    degrees_of_freedom: float
    mean: Array | None
    covariance: Array | None

    @property
    def are_complete(self) -> bool:
        """Whether nothing is to be found from rows."""
        return self.mean is not None and self.covariance is not None


@final
@dataclass(frozen=True, slots=True)
class VariationalBayes:
    """A `Rule`. What it estimates is a mixture whose weights are counts.

    Counts are the rows of each component, by weight, and all else that a posterior has
    follows from them and the priors: a mixture is as much as it.

    Attributes
    ----------
    priors : Priors
    reg_covar : float
        Added to the diagonal of what rows say of covariances.
    """

    priors: Priors
    reg_covar: float
    _sent: dict[int, tuple[Mixture, Mixture]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    # --- posteriors, from counts ------------------------------------------------------

    def concentrations(self, counts: Array) -> Array:
        """Concentrations of the weights: (K,), or both parameters of a process, (2, K).

        Those of a process are of what each component takes of the rest of a stick.
        """
        prior = self.priors.weight_concentration
        if not self.priors.is_process:
            return prior + counts
        rest = np.append(np.cumsum(counts[::-1])[-2::-1], 0.0)
        return np.stack([1.0 + counts, prior + rest])

    def mean_precisions(self, counts: Array) -> Array:
        """How many rows each mean counts as, (K,)."""
        return self.priors.mean_precision + counts

    def degrees_of_freedom(self, shape: CovarianceShape, counts: Array) -> Array:
        """Of each precision, (K,); or of the one that all share, ()."""
        of_rows = counts.mean() if shape.pooled else counts
        return np.asarray(self.priors.degrees_of_freedom + of_rows)

    def weights(self, counts: Array) -> Array:
        """Expected weights, (K,)."""
        found = self.concentrations(counts)
        if self.priors.is_process:
            taken, rest = found / found.sum(axis=0)
            found = taken * np.append(1.0, np.cumprod(rest[:-1]))
        weights: Array = found / found.sum()
        return weights

    def _log_weights(self, counts: Array) -> Array:
        """What logarithms of weights are expected to be, (K,)."""
        found = self.concentrations(counts)
        if not self.priors.is_process:
            return np.asarray(digamma(found) - digamma(found.sum()))
        taken, rest = digamma(found) - digamma(found.sum(axis=0))
        return np.asarray(taken + np.append(0.0, np.cumsum(rest[:-1])))

    # --- what a rule says -------------------------------------------------------------

    def message(self, mixture: Mixture) -> Mixture:
        """The mixture that finds the responsibilities: of expected log densities.

        It is asked for several times in a pass, and takes as long as one over few rows.
        """
        known = self._sent.get(id(mixture))
        if known is None or known[0] is not mixture:
            if len(self._sent) >= _KEPT:
                self._sent.clear()
            known = self._sent[id(mixture)] = mixture, self._expected(mixture)
        return known[1]

    def _expected(self, mixture: Mixture) -> Mixture:
        shape, counts, d = mixture.shape, mixture.weights, mixture.n_features
        degrees = self.degrees_of_freedom(shape, counts)
        # Of the log determinants of precisions that are not divided by their degrees.
        log_dets = d * math.log(2.0) + digamma(_halves(degrees, d)).sum(axis=0)
        beyond = log_dets - d * np.log(degrees) - d / self.mean_precisions(counts)
        return Mixture(
            shape,
            self.weights(counts),
            mixture.means,
            mixture.covariances,
            mixture.factors,
            log_weights=self._log_weights(counts) + 0.5 * beyond,
        )

    def m_step(
        self,
        mixture: Mixture,
        moments: Moments,
        *,
        at_last: bool = False,
    ) -> Mixture:
        """The posterior that follows from moments.

        Raises
        ------
        IllDefinedCovarianceError
            If a covariance is not positive definite.
        """
        return self.posterior(mixture.shape, moments)

    def posterior(self, shape: CovarianceShape, moments: Moments) -> Mixture:
        """The posterior that follows from moments, whatever was before (10.58-10.63).

        Raises
        ------
        IllDefinedCovarianceError
            If a covariance is not positive definite.
        """
        priors = self.priors
        assert priors.mean is not None and priors.covariance is not None
        of_rows = MaximumLikelihood(self.reg_covar, row_weight=1.0)
        found = of_rows.estimate(shape, moments)
        counts, off = found.counts, found.means - priors.mean
        shares = priors.mean_precision / self.mean_precisions(counts)
        covariances = shape.with_prior(
            found.covariances,
            counts,
            priors.covariance,
            shares,
            off,
            self.degrees_of_freedom(shape, counts),
        )
        factored = shape.factored(covariances)
        means = found.means - shares[:, np.newaxis] * off
        return Mixture(shape, counts, means, covariances, factored.factors)

    def refine(
        self,
        mixture: Mixture,
        refined: Refined,
        *,
        at_last: bool,
    ) -> Mixture:
        """Nothing is rough: the prior is in every covariance."""
        return mixture

    def bound(
        self, mixture: Mixture, moments: Moments, following: Mixture | None = None
    ) -> float:
        """scikit-learn's lower bound: of all rows, less what is constant.

        The responsibilities are by `mixture`, all else is of what followed from them.
        """
        if following is None:
            following = self.m_step(mixture, moments)
        shape, counts, d = following.shape, following.weights, following.n_features
        degrees = self.degrees_of_freedom(shape, counts)
        n_components = following.n_components
        log_dets = shape.log_dets(following.factors, n_components, d)
        log_dets = log_dets - 0.5 * d * np.log(degrees)
        of_precisions = degrees * (log_dets + 0.5 * d * math.log(2.0))
        of_precisions = of_precisions + gammaln(_halves(degrees, d)).sum(axis=0)
        concentrations = self.concentrations(counts)
        if self.priors.is_process:
            of_weights = betaln(*concentrations).sum()
        else:
            of_weights = gammaln(concentrations).sum() - gammaln(concentrations.sum())
        of_means = -0.5 * d * np.log(self.mean_precisions(counts)).sum()
        found = entropy(self.message(mixture), moments)
        return float(found + of_precisions.sum() + of_weights + of_means)

    def slope(self, mixture: Mixture) -> float:
        """Nothing is known of it."""
        return math.inf


def _halves(degrees: Array, d: int) -> Array:
    """Half of the degrees of freedom less 0, 1, ... d - 1: (d, K) or (d,)."""
    less = np.arange(d).reshape(-1, *(1 for _ in degrees.shape))
    halves: Array = 0.5 * (degrees - less)
    return halves


def of_all_rows(shape: CovarianceShape, moments: Moments) -> tuple[Array, Array]:
    """Mean of all rows, and their covariance as a prior of each component's.

    Parameters
    ----------
    shape : CovarianceShape
        Of the mixture.
    moments : Moments
        Of one component that all rows belong to: full if the shape is dense, else
        diagonal.
    """
    weight, n_features = moments.mass, moments.about.shape[1]
    shift = moments.drift / weight[:, np.newaxis]
    one = SHAPES["full" if shape.dense else "diag"]
    scatter = one.recentre(moments.scatter, moments.drift, moments.mass, shift)
    covariance = shape.prior(scatter / (weight - 1.0), n_features)
    return (moments.about + shift)[0], covariance
