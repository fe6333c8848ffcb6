"""One Gaussian mixture: its parameters, and what follows from them alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from daskgmm.mixtures.covariance import CovarianceShape

Array = NDArray[np.float64]

_SINGLE: Final = float(np.finfo(np.float32).eps)
_DOUBLE: Final = float(np.finfo(np.float64).eps)
_LEAST_SINGLE: Final = 1e-37
_MOST_SINGLE: Final = 1e37
"""Variances that float32 holds with all digits, and precisions with them."""
_TOLERABLE: Final = 0.1
"""Errors of squared distances that leave log densities, nearly, what they are."""


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
    rough : bool
        Whether some covariance is so close to singular that the sums behind it do not
        determine its factor, which stands for a little more on the diagonal.
    log_weights : ndarray of shape (K,) or None
        Given if densities are weighted by others than the logarithms of the weights.
    """

    shape: CovarianceShape
    weights: Array
    means: Array
    covariances: Array
    factors: Array
    rough: bool = field(default=False, kw_only=True)
    log_weights: Array | None = field(default=None, kw_only=True)

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
        return n_parameters(self.shape, self.n_components, self.n_features)

    @property
    def centre(self) -> Array:
        """Mean of the mixture, (d,)."""
        centre: Array = self.weights @ self.means / self.weights.sum()
        return centre

    @property
    def fits_in_single(self) -> bool:
        """Whether float32 holds the parameters, so that log densities stay as they are.

        Of those in its range, only covariances close to singular are asked about:
        others are as good as the rows.
        """
        shape, d = self.shape, self.n_features
        variances = shape.variances(self.covariances, d)
        if not ((variances > _LEAST_SINGLE) & (variances < _MOST_SINGLE)).all():
            return False
        if not shape.factored(self.covariances).rough.any():
            return True
        squares = self.means**2 + variances
        return bool((self._distances(_SINGLE**2 * squares) < _TOLERABLE).all())

    @property
    def rounding(self) -> float:
        """What the mean log density of rows is off by, as means are rounded."""
        # Evenly between two numbers: a twelfth of the square of their distance.
        off = self._distances((_DOUBLE * self.means) ** 2 / 12.0)
        return float(self.weights @ off / self.weights.sum() / 2.0)

    def _distances(self, squares: Array) -> Array:
        """Mean squared distances, (K,), for deviations of mean squares (K, d)."""
        n_components, d = self.means.shape
        factors = self.shape.kernel_factors(self.factors, n_components, d)
        form = "kij,kj->k" if self.shape.dense else "kj,kj->k"
        distances: Array = np.einsum(form, factors**2, squares)
        return distances

    def log_normalisers(self) -> Array:
        """Log of weight times normalising constant of each component, (K,)."""
        n_components, n_features = self.means.shape
        log_dets = self.shape.log_dets(self.factors, n_components, n_features)
        with np.errstate(divide="ignore"):  # a component may have no weight
            log_weights = np.log(self.weights)
        if self.log_weights is not None:
            log_weights = self.log_weights
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
            self.shape.sample(
                random_state,
                self.means[k],
                self.shape.of_component(self.covariances, k),
                int(count),
            )
            for k, count in enumerate(counts)
        ]
        return np.vstack(rows), np.repeat(np.arange(self.n_components), counts)


def n_parameters(shape: CovarianceShape, n_components: int, n_features: int) -> int:
    """Free parameters of a mixture: of the covariances, the means and the weights."""
    of_covariances = shape.n_parameters(n_components, n_features)
    return of_covariances + n_features * n_components + n_components - 1
