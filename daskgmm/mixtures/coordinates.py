"""Mixtures as vectors, so that they can be extrapolated, in EM's own metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from daskgmm.mixtures.gaussian import Mixture

Array = NDArray[np.float64]


@final
@dataclass(frozen=True, slots=True)
class Coordinates:
    """Mixtures near another one as vectors: that of the other one is about zero.

    Of log weights, means and log scales, each in such units that half the squared
    length of a step is, to second order, what the complete-data log likelihood of a
    row loses by it: the metric in which EM goes uphill (Xu and Jordan 1996).

    Attributes
    ----------
    origin : Mixture
        Whose weights are all above zero.
    """

    origin: Mixture

    def of(self, mixture: Mixture) -> Array:
        """The vector of a mixture whose weights are all above zero."""
        origin, d = self.origin, self.origin.n_features
        log_weights = np.log(mixture.weights / origin.weights)[:, np.newaxis]
        means = self._whitened(mixture.means - origin.means)
        logs = origin.shape.logs(mixture.factors, origin.factors, d)
        # In a tied mixture, all weight is that of the one covariance.
        parts = self._roots * log_weights, self._roots * means, self._scales * logs
        return np.concatenate([part.ravel() for part in parts])

    def mixture(self, vector: Array) -> Mixture:
        """The mixture of a vector.

        Raises
        ------
        IllDefinedCovarianceError
            If a covariance is not positive definite to rounding.
        """
        origin = self.origin
        shape = origin.shape
        log_weights, means, logs = self._split(vector)
        weights = origin.weights * np.exp(log_weights)
        covariances = shape.of_logs(logs, origin.factors, origin.n_features)
        factored = shape.factored(covariances)
        return Mixture(
            shape,
            weights / weights.sum(),
            origin.means + self._unwhitened(means),
            covariances,
            factored.factors,
            rough=bool(factored.rough.any()),
        )

    def size(self, step: Array) -> float:
        """The largest change of a log weight, or of a log scale, in a step."""
        log_weights, _, logs = self._split(step)
        return float(max(np.abs(log_weights).max(), np.abs(logs).max()))

    def _split(self, vector: Array) -> tuple[Array, Array, Array]:
        """A vector in the units of log weights, whitened means, and logs."""
        n_components, d = self.origin.means.shape
        ends = [n_components, n_components * (d + 1)]
        log_weights, means, logs = np.split(vector, ends)
        return (
            log_weights / self._roots[:, 0],
            means.reshape(n_components, d) / self._roots,
            logs.reshape(len(self._scales), -1) / self._scales,
        )

    @property
    def _roots(self) -> Array:
        roots: Array = np.sqrt(self.origin.weights)[:, np.newaxis]
        return roots

    @property
    def _scales(self) -> Array:
        """The weight of each covariance, likewise."""
        return np.ones((1, 1)) if self.origin.shape.pooled else self._roots

    @property
    def _factors(self) -> Array:
        origin = self.origin
        return origin.shape.kernel_factors(origin.factors, *origin.means.shape)

    def _whitened(self, deviations: Array) -> Array:
        if not self.origin.shape.dense:
            return deviations * self._factors
        whitened: Array = np.einsum("kij,kj->ki", self._factors, deviations)
        return whitened

    def _unwhitened(self, whitened: Array) -> Array:
        if not self.origin.shape.dense:
            return whitened / self._factors
        columns = np.linalg.solve(self._factors, whitened[..., np.newaxis])
        return np.asarray(columns[..., 0], dtype=np.float64)
