r"""The four covariance shapes: the only place that tells them apart.

Everyone else holds a `CovarianceShape` and asks it. Notation: K components of one
model, d features, m a mean, Λ a precision, U the upper triangular factor with
Λ = U Uᵀ (scikit-learn's ``precisions_cholesky_``). Covariances, precisions and factors
are stored as scikit-learn stores them: (K, d, d), (d, d), (K, d) or (K,).

A *scatter* Σr (x - c)(x - c)ᵀ is kept as (K, S), the S numbers of it that the shape
needs: the packed upper triangle, entries (i, j), i ≤ j, row by row (full; tied, where
one row stands for all components), the diagonal (diag), or its sum (spherical).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache
from typing import ClassVar, Final, final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from daskgmm.errors import IllDefinedCovarianceError

Array = NDArray[np.float64]

_EPS: Final = float(np.finfo(np.float64).eps)
_ILL_DEFINED: Final = (
    "Fitting the mixture model failed because some components have "
    "ill-defined empirical covariance (for instance caused by singleton "
    "or collapsed samples). Try to decrease the number of components, "
    "increase reg_covar, or scale the input data."
)
"""scikit-learn's words, which people search for."""


@cache
def _pairs(n_features: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Row and column of each packed entry."""
    return np.triu_indices(n_features)


def _pack(matrices: Array) -> Array:
    """Upper triangles of matrices (…, d, d) as (…, P)."""
    i, j = _pairs(matrices.shape[-1])
    return matrices[..., i, j]


def _unpack(packed: Array, n_features: int) -> Array:
    """Symmetric matrices (…, d, d) from (…, P)."""
    i, j = _pairs(n_features)
    matrices = np.empty((*packed.shape[:-1], n_features, n_features))
    matrices[..., i, j] = packed
    matrices[..., j, i] = packed
    return matrices


def _upper_factor(covariance: Array) -> Array:
    """U with U Uᵀ the inverse of a covariance; raises `LinAlgError`."""
    lower = np.linalg.cholesky(covariance)
    # What a singular matrix leaves of a pivot is rounding, above or below zero.
    rounding = 2 * len(covariance) * _EPS * np.diag(covariance)
    if (np.diag(lower) ** 2 <= rounding).any():
        raise np.linalg.LinAlgError
    inverse = solve_triangular(
        lower, np.eye(len(covariance)), lower=True, check_finite=False
    )
    if not np.isfinite(inverse).all():
        raise np.linalg.LinAlgError
    return np.ascontiguousarray(inverse.T)


def _upper_factor_of_precision(precision: Array) -> Array:
    """U with U Uᵀ a precision: Cholesky's factor of it with both axes reversed."""
    return np.ascontiguousarray(np.linalg.cholesky(precision[::-1, ::-1])[::-1, ::-1])


def _inverse_transposed(factor: Array) -> Array:
    """U⁻ᵀ, whose product with its transpose is the covariance."""
    identity = np.eye(len(factor), dtype=factor.dtype)
    inverse: Array = solve_triangular(factor, identity, trans="T", check_finite=False)
    return inverse


class CovarianceShape(ABC):
    """What depends on the shape of the covariances, as pure functions."""

    name: ClassVar[str]
    pooled: ClassVar[bool] = False
    """Whether all components of a model share one covariance."""
    dense: ClassVar[bool]
    """Whether factors are matrices."""

    @abstractmethod
    def stored(self, n_components: int, n_features: int) -> tuple[int, ...]:
        """Shape of the array of covariances, precisions or factors."""

    @abstractmethod
    def n_parameters(self, n_components: int, n_features: int) -> int:
        """Free parameters of the covariances."""

    @abstractmethod
    def outer(self, a: Array, b: Array) -> Array:
        """½(a bᵀ + b aᵀ) of vectors (K, d), as a scatter is kept, (K, S)."""

    @abstractmethod
    def scatter(self, deviations: Array, weights: Array) -> Array:
        """Weighted Σ e eᵀ over rows e, (n, d), as a scatter is kept, (S,)."""

    @abstractmethod
    def kept(self, dense: Array, diagonal: Array) -> Array:
        """A scatter (K, S) from packed upper triangles, or from diagonals.

        Which of the two depends on `dense`.
        """

    @abstractmethod
    def covariances(
        self, scatter: Array, counts: Array, n_features: int, reg_covar: float
    ) -> Array:
        """Scatter (K, S) over counts (K,), with reg_covar on the diagonal."""

    @abstractmethod
    def factors(self, covariances: Array) -> Array:
        """U of each precision.

        Raises
        ------
        IllDefinedCovarianceError
            Naming the components whose covariance is not positive definite.
        """

    @abstractmethod
    def factors_of_precisions(self, precisions: Array) -> Array:
        """U of precisions given by a user.

        Raises
        ------
        ValueError
            Unless they are symmetric and positive definite.
        """

    @abstractmethod
    def precisions(self, factors: Array) -> Array:
        """Λ = U Uᵀ, in the dtype of the factors."""

    @abstractmethod
    def covariances_of_factors(self, factors: Array) -> Array:
        """Λ⁻¹."""

    @abstractmethod
    def log_dets(self, factors: Array, n_components: int, n_features: int) -> Array:
        """½ log det Λ of each component, (K,)."""

    @abstractmethod
    def kernel_factors(self, factors: Array, n_components: int, d: int) -> Array:
        """Uᵀ of every component, (K, d, d) if dense, else (K, d)."""

    @abstractmethod
    def draw(
        self, random_state: np.random.RandomState, mean: Array, cov: Array, n: int
    ) -> Array:
        """Rows (n, d) of one component, with scikit-learn's calls."""

    def pool(self, scatter: Array) -> Array:
        """Rows (K, S) of a scatter as the shape keeps them."""
        return scatter.sum(axis=0, keepdims=True) if self.pooled else scatter

    def recentre(
        self, scatter: Array, drift: Array, mass: Array, shift: Array
    ) -> Array:
        """Scatter about c + shift, from scatter, drift Σr(x - c) and mass about c."""
        moved = mass[:, np.newaxis] * self.outer(shift, shift)
        return scatter + self.pool(moved - 2.0 * self.outer(drift, shift))

    def trace(self, scatter: Array, n_features: int) -> float:
        """Sum of the squares on the diagonals of a scatter, all rows (K, S) of it."""
        return float(scatter[:, self.diagonal(n_features)].sum())

    def diagonal(self, n_features: int) -> slice | NDArray[np.intp]:
        """Where the numbers that are kept of a scatter are those of its diagonal."""
        return slice(None)

    def of_component(self, covariances: Array, k: int) -> Array:
        """Covariance of component k."""
        component: Array = covariances if self.pooled else covariances[k]
        return component

    def _ill_defined(self, ill: NDArray[np.bool_]) -> IllDefinedCovarianceError:
        if self.pooled:
            where = "It is the covariance that all components share."
        else:
            names = ", ".join(str(k) for k in np.flatnonzero(ill))
            where = f"Ill-defined is the covariance of component {names}."
        return IllDefinedCovarianceError(f"{_ILL_DEFINED} {where}")


class _MatrixShape(CovarianceShape):
    """Covariances are matrices: (K, d, d), or (1, d, d) for all components."""

    dense = True

    def diagonal(self, n_features: int) -> slice | NDArray[np.intp]:
        i, j = _pairs(n_features)
        return np.flatnonzero(i == j)

    @staticmethod
    @abstractmethod
    def _matrices(stored: Array) -> Array:
        """Storage as a stack of matrices."""

    @staticmethod
    @abstractmethod
    def _store(matrices: Array) -> Array:
        """A stack of matrices as storage."""

    def outer(self, a: Array, b: Array) -> Array:
        i, j = _pairs(a.shape[-1])
        return 0.5 * (a[..., i] * b[..., j] + a[..., j] * b[..., i])

    def scatter(self, deviations: Array, weights: Array) -> Array:
        return _pack((deviations.T * weights) @ deviations)

    def kept(self, dense: Array, diagonal: Array) -> Array:
        return self.pool(dense)

    def covariances(
        self, scatter: Array, counts: Array, n_features: int, reg_covar: float
    ) -> Array:
        per_matrix = self.pool(counts[:, np.newaxis])
        matrices = _unpack(scatter / per_matrix, n_features)
        np.einsum("kii->ki", matrices)[...] += reg_covar
        return self._store(matrices)

    def factors(self, covariances: Array) -> Array:
        matrices = self._matrices(covariances)
        factors = np.empty_like(matrices)
        ill = np.zeros(len(matrices), dtype=bool)
        for k, matrix in enumerate(matrices):
            try:
                factors[k] = _upper_factor(matrix)
            except np.linalg.LinAlgError:
                ill[k] = True
        if ill.any():
            raise self._ill_defined(ill)
        return self._store(factors)

    def factors_of_precisions(self, precisions: Array) -> Array:
        matrices = self._matrices(precisions)
        for matrix in matrices:
            symmetric = np.allclose(matrix, matrix.T)
            if not (symmetric and (np.linalg.eigvalsh(matrix) > 0.0).all()):
                raise ValueError(
                    f"'{self.name} precision' should be symmetric, positive-definite"
                )
        return self._store(np.stack([_upper_factor_of_precision(m) for m in matrices]))

    def precisions(self, factors: Array) -> Array:
        return factors @ factors.swapaxes(-1, -2)

    def covariances_of_factors(self, factors: Array) -> Array:
        inverses = np.stack([_inverse_transposed(f) for f in self._matrices(factors)])
        return self._store(inverses @ inverses.swapaxes(-1, -2))

    def log_dets(self, factors: Array, n_components: int, n_features: int) -> Array:
        diagonals = np.einsum("kii->ki", self._matrices(factors))
        return np.broadcast_to(np.log(diagonals).sum(axis=1), n_components)

    def kernel_factors(self, factors: Array, n_components: int, d: int) -> Array:
        transposed = self._matrices(factors).swapaxes(-1, -2)
        return np.broadcast_to(transposed, (n_components, d, d))

    def draw(
        self, random_state: np.random.RandomState, mean: Array, cov: Array, n: int
    ) -> Array:
        return random_state.multivariate_normal(mean, cov, n)


class _DiagonalShape(CovarianceShape):
    """Covariances are diagonal: variances (K, d), or (K, 1) for all features."""

    dense = False

    @staticmethod
    @abstractmethod
    def _variances(stored: Array) -> Array:
        """Storage as a table of variances, precisions or factors."""

    def factors(self, covariances: Array) -> Array:
        # Written so that a NaN fails too.
        ill = np.logical_not((self._variances(covariances) > 0.0).all(axis=1))
        if ill.any():
            raise self._ill_defined(ill)
        return 1.0 / np.sqrt(covariances)

    def factors_of_precisions(self, precisions: Array) -> Array:
        if not (precisions > 0.0).all():
            raise ValueError(f"'{self.name} precision' should be positive")
        return np.sqrt(precisions)

    def precisions(self, factors: Array) -> Array:
        return factors**2

    def covariances_of_factors(self, factors: Array) -> Array:
        return 1.0 / factors**2

    def log_dets(self, factors: Array, n_components: int, n_features: int) -> Array:
        table = self._variances(factors)
        log_dets: Array = np.log(table).sum(axis=1) * (n_features / table.shape[1])
        return log_dets

    def kernel_factors(self, factors: Array, n_components: int, d: int) -> Array:
        return np.broadcast_to(self._variances(factors), (n_components, d))

    def draw(
        self, random_state: np.random.RandomState, mean: Array, cov: Array, n: int
    ) -> Array:
        normal = random_state.standard_normal(size=(n, len(mean)))
        return mean + normal * np.sqrt(cov)


@final
class Full(_MatrixShape):
    """Each component has its own covariance matrix, (K, d, d)."""

    name = "full"

    def stored(self, n_components: int, n_features: int) -> tuple[int, ...]:
        return n_components, n_features, n_features

    def n_parameters(self, n_components: int, n_features: int) -> int:
        return n_components * n_features * (n_features + 1) // 2

    @staticmethod
    def _matrices(stored: Array) -> Array:
        return stored

    @staticmethod
    def _store(matrices: Array) -> Array:
        return matrices


@final
class Tied(_MatrixShape):
    """All components have one covariance matrix, (d, d)."""

    name = "tied"
    pooled = True

    def stored(self, n_components: int, n_features: int) -> tuple[int, ...]:
        return n_features, n_features

    def n_parameters(self, n_components: int, n_features: int) -> int:
        return n_features * (n_features + 1) // 2

    @staticmethod
    def _matrices(stored: Array) -> Array:
        return stored[np.newaxis]

    @staticmethod
    def _store(matrices: Array) -> Array:
        stored: Array = matrices[0]
        return stored


@final
class Diag(_DiagonalShape):
    """Each component has its own diagonal covariance, (K, d)."""

    name = "diag"

    def stored(self, n_components: int, n_features: int) -> tuple[int, ...]:
        return n_components, n_features

    def n_parameters(self, n_components: int, n_features: int) -> int:
        return n_components * n_features

    @staticmethod
    def _variances(stored: Array) -> Array:
        return stored

    def outer(self, a: Array, b: Array) -> Array:
        return a * b

    def scatter(self, deviations: Array, weights: Array) -> Array:
        return weights @ deviations**2

    def kept(self, dense: Array, diagonal: Array) -> Array:
        return diagonal

    def covariances(
        self, scatter: Array, counts: Array, n_features: int, reg_covar: float
    ) -> Array:
        return scatter / counts[:, np.newaxis] + reg_covar


@final
class Spherical(_DiagonalShape):
    """Each component has one variance for all features, (K,)."""

    name = "spherical"

    def stored(self, n_components: int, n_features: int) -> tuple[int, ...]:
        return (n_components,)

    def n_parameters(self, n_components: int, n_features: int) -> int:
        return n_components

    @staticmethod
    def _variances(stored: Array) -> Array:
        return stored[:, np.newaxis]

    def outer(self, a: Array, b: Array) -> Array:
        products: Array = np.einsum("...i,...i->...", a, b)[..., np.newaxis]
        return products

    def scatter(self, deviations: Array, weights: Array) -> Array:
        return np.array([weights @ (deviations**2).sum(axis=1)])

    def kept(self, dense: Array, diagonal: Array) -> Array:
        traces: Array = diagonal.sum(axis=1, keepdims=True)
        return traces

    def covariances(
        self, scatter: Array, counts: Array, n_features: int, reg_covar: float
    ) -> Array:
        return scatter[:, 0] / (counts * n_features) + reg_covar


SHAPES: Final[dict[str, CovarianceShape]] = {
    shape.name: shape for shape in (Full(), Tied(), Diag(), Spherical())
}
"""By scikit-learn's ``covariance_type``."""
