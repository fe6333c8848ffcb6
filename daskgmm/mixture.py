"""One Gaussian mixture: its parameters, and what follows from them alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from daskgmm.covariance import CovarianceShape

Array = NDArray[np.float64]


@final
@dataclass(frozen=True, slots=True)
class Mixture:
    """Parameters of a mixture of K Gaussians in d dimensions.

    Attributes
    ----------
    shape : CovarianceShape
    weights : ndarray of shape (K,)
        Mixing proportions. Starting parameters need not sum to one, as in
        scikit-learn.
    means : ndarray of shape (K, d)
    covariances, factors : ndarray
        As `shape` stores them; the factors are scikit-learn's
        ``precisions_cholesky_``.
    """

    shape: CovarianceShape
    weights: Array
    means: Array
    covariances: Array
    factors: Array

    @property
    def n_components(self) -> int:
        """K."""
        return len(self.means)

    @property
    def n_features(self) -> int:
        """Number of features, d."""
        return int(self.means.shape[1])

    @property
    def n_parameters(self) -> int:
        """Free parameters: of the covariances, the means and the weights."""
        n_components, n_features = self.n_components, self.n_features
        of_covariances = self.shape.n_parameters(n_components, n_features)
        return of_covariances + n_features * n_components + n_components - 1

    @property
    def centre(self) -> Array:
        """Mean of the mixture, (d,)."""
        centre: Array = self.weights @ self.means / self.weights.sum()
        return centre

    def log_normalisers(self) -> Array:
        """Log of weight times normalising constant of each component, (K,)."""
        n_components, n_features = self.means.shape
        log_dets = self.shape.log_dets(self.factors, n_components, n_features)
        with np.errstate(divide="ignore"):  # a component may have no weight
            log_weights = np.log(self.weights)
        normalisers: Array = (
            log_weights + log_dets - 0.5 * n_features * np.log(2 * np.pi)
        )
        return normalisers

    def sample(
        self, n_samples: int, random_state: np.random.RandomState
    ) -> tuple[Array, NDArray[np.int64]]:
        """Rows (n, d) and their components (n,), by component, as scikit-learn does."""
        counts = random_state.multinomial(n_samples, self.weights / self.weights.sum())
        rows = [
            self.shape.draw(
                random_state,
                self.means[k],
                self.shape.of_component(self.covariances, k),
                int(count),
            )
            for k, count in enumerate(counts)
        ]
        return np.vstack(rows), np.repeat(np.arange(self.n_components), counts)
