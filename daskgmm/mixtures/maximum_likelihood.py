"""The rule of maximum likelihood: parameters from moments, and the bound."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from daskgmm.errors import IllDefinedCovarianceError
from daskgmm.mixtures.covariance import ROUNDING, CovarianceShape, Factored
from daskgmm.mixtures.gaussian import Mixture
from daskgmm.mixtures.refinement import Refined
from daskgmm.mixtures.sufficient_statistics import Moments

Array = NDArray[np.float64]

TINY: Final = 10 * np.finfo(np.float64).eps
"""Rows that scikit-learn adds to each component, at the origin of the coordinates."""

_ROUNDED: Final = 100 * np.finfo(np.float64).eps
_ENOUGH: Final = 1e-6
"""The part of a feature's variance that is enough to make covariances well-defined."""


@final
@dataclass(frozen=True, slots=True)
class Estimate:
    """What moments say of a mixture's parameters.

    Attributes
    ----------
    counts : ndarray of shape (K,)
    means : ndarray of shape (K, d)
    covariances : ndarray
        As the shape stores them.
    shift : ndarray of shape (K, d)
        From the means that the moments are about to those that were found.
    """

    counts: Array
    means: Array
    covariances: Array
    shift: Array


@final
@dataclass(frozen=True, slots=True)
class MaximumLikelihood:
    """A `Rule`: parameters follow from moments as in scikit-learn's GaussianMixture.

    Attributes
    ----------
    reg_covar : float
        Added to the diagonal of covariances.
    row_weight : float
        Mean weight of a row, so that a constant factor in the weights cancels.
    """

    reg_covar: float
    row_weight: float

    def estimate(self, shape: CovarianceShape, moments: Moments) -> Estimate:
        """Parameters from moments.

        The equations of the M-step (Dempster, Laird and Rubin 1977; Bishop, Pattern
        Recognition and Machine Learning, 9.24-9.26), written in the deviation from
        the old means, so that data far from the origin lose nothing.
        """
        means = moments.about
        tiny = TINY * self.row_weight
        counts = moments.mass + tiny
        shift = (moments.drift - tiny * means) / counts[:, np.newaxis]
        scatter = shape.recentre(moments.scatter, moments.drift, moments.mass, shift)
        covariances = shape.covariances(scatter, counts, means.shape[1], self.reg_covar)
        return Estimate(counts, means + shift, covariances, shift)

    def message(self, mixture: Mixture) -> Mixture:
        """The parameters are the mixture."""
        return mixture

    def m_step(
        self, mixture: Mixture, moments: Moments, *, at_last: bool = False
    ) -> Mixture:
        """The parameters that follow `mixture`, rough ones where moments are.

        At last, when no iteration follows, scikit-learn keeps what collapsed on one
        row, and warns that it did not converge: so it is here.

        Raises
        ------
        IllDefinedCovarianceError
            If a covariance is not positive definite.
        """
        shape = mixture.shape
        found = self.estimate(shape, moments)
        floor = self._floor(shape, found, of_means=not at_last)
        moved = found.shift**2
        if moments.from_origin is not None:
            moved = moved + moments.from_origin**2
        moved = shape.averaged(moved, found.counts)
        with self._remedied(shape, found):
            factored = shape.factored(found.covariances, moved, floor)
        return _mixture(shape, found, factored)

    def refine(self, mixture: Mixture, refined: Refined, *, at_last: bool) -> Mixture:
        """Rough parameters anew, from what another pass measured about and by them.

        They may be rough still; at last that is an error.

        Raises
        ------
        IllDefinedCovarianceError
            If a covariance is not positive definite.
        """
        shape = mixture.shape
        found = self.estimate(shape, refined.moments)
        with self._remedied(shape, found):
            factored = shape.refined(
                found.covariances,
                self._floor(shape, found),
                mixture.factors,
                refined.whitened(shape, found.counts),
                self.reg_covar,
            )
            if at_last and factored.rough.any():
                raise shape.ill_defined(factored.rough)
        return _mixture(shape, found, factored)

    def start(
        self, shape: CovarianceShape, found: Estimate, *, by_rows: bool
    ) -> Factored:
        """Factors to start from: rough ones will do, as the first M-step's are not.

        Parameters
        ----------
        shape : CovarianceShape
        found : Estimate
        by_rows : bool
            Whether each component has one row, and its variance is rounding on purpose.

        Raises
        ------
        IllDefinedCovarianceError
            If a covariance is not positive definite.
        """
        with self._remedied(shape, found):
            if not by_rows:
                return shape.factored(
                    found.covariances, floor=self._floor(shape, found)
                )
            factored = shape.factored(found.covariances)
            if factored.rough.any() and not shape.pooled:
                # What is left is rounding along the row alone: singular, but for luck.
                raise shape.ill_defined(factored.rough)
            return factored

    def _floor(
        self, shape: CovarianceShape, found: Estimate, *, of_means: bool = True
    ) -> Array | None:
        """Variances that rounding alone makes; None where reg_covar is in any case.

        That of the rows, and that of the means, which `TINY` draws to the origin: the
        whole variance of a component of one row.
        """
        if self.reg_covar > 0.0:
            return None
        floor = ROUNDING * (found.means**2 + _variances(shape, found))
        if of_means:
            tiny = TINY * self.row_weight / found.counts[:, np.newaxis]
            floor = floor + 4.0 * (tiny * found.means) ** 2
        return shape.averaged(floor, found.counts)

    @contextmanager
    def _remedied(self, shape: CovarianceShape, found: Estimate) -> Iterator[None]:
        """Have errors say which reg_covar would do."""
        try:
            yield
        except IllDefinedCovarianceError as error:
            variances = _variances(shape, found)
            if not np.isfinite(variances).all():
                raise
            # What is left of equal numbers is how their mean was rounded.
            noise = (_ROUNDED * np.abs(found.means).max(axis=0)) ** 2
            positive = variances[variances > noise]
            enough = _ENOUGH * positive.min() if positive.size else _ENOUGH
            # Not lost beside the widest feature either, and more than it was.
            enough = max(enough, _ENOUGH**3 * variances.max(), 10.0 * self.reg_covar)
            raise IllDefinedCovarianceError(
                f"{error} With these data, reg_covar={enough:.0e} is enough."
            ) from None

    def bound(
        self, mixture: Mixture, moments: Moments, following: Mixture | None = None
    ) -> float:
        """Mean log likelihood of a row under the mixture that was sent out."""
        return moments.log_prob / moments.weight

    def slope(self, mixture: Mixture) -> float:
        """How fast the bound may fall along EM's own step, in units of `Coordinates`.

        With reg_covar, where EM stays is not where the bound is highest: an upper bound
        of the gradient's length there.
        """
        shape, d = mixture.shape, mixture.n_features
        precisions = shape.variances(shape.precisions(mixture.factors), d)
        traces = precisions.sum(axis=1)
        weights = np.ones(1) if shape.pooled else mixture.weights
        return self.reg_covar * float(np.sqrt(weights @ traces**2))


def _mixture(shape: CovarianceShape, found: Estimate, factored: Factored) -> Mixture:
    return Mixture(
        shape,
        found.counts / found.counts.sum(),
        found.means,
        found.covariances,
        factored.factors,
        rough=bool(factored.rough.any()),
    )


def _variances(shape: CovarianceShape, found: Estimate) -> Array:
    """Variance of each feature in all of the data, (d,), by the law of total variance.

    That within components, and that of their means.
    """
    shares = found.counts / found.counts.sum()
    within = shape.variances(found.covariances, found.means.shape[1])
    between = (found.means - shares @ found.means) ** 2
    variances: Array = shares @ (between + within)
    return variances
