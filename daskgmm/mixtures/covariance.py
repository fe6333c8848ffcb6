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
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Final, final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dtrtri

from daskgmm.errors import IllDefinedCovarianceError

Array = NDArray[np.float64]

_EPS: Final = float(np.finfo(np.float64).eps)
ROUNDING: Final = (4 * _EPS) ** 2
"""Mean square of rounding beside that of what was rounded, with a margin."""
_DOUBTFUL: Final = 1e-5
"""Sum of relative errors of the variances, along d directions, that makes them rough.

The mean log density of the rows is off by less than that.
"""
_FEW_PRODUCTS: Final = 2**10
"""Numbers of products up to which matrices are not worth their preparation."""
_LIFTS: Final = 10.0 ** np.arange(8)
"""How often the rounding of a matrix is added to its diagonal until it has a factor."""
_AT_MOST: Final = 100.0
"""Times its usual rounding by which a sum is off at most, where there are many rows."""
_AT_ONCE: Final = 2**15
"""Numbers of small matrices that are made in one call, which costs as much as they."""
_ILL_DEFINED: Final = (
    "Fitting the mixture model failed because some components have "
    "ill-defined empirical covariance (for instance caused by singleton "
    "or collapsed samples). Try to decrease the number of components, "
    "increase reg_covar, or scale the input data."
)
"""scikit-learn's words, which people search for."""


def _triangle(n_features: int) -> int:
    """Numbers of an upper triangle."""
    return n_features * (n_features + 1) // 2


@lru_cache(maxsize=4)
def _places(n_features: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where packed numbers are in a matrix, (P,), and its numbers when packed, (d, d).

    As large as a matrix or two, of which there is one for each component.
    """
    i, j = np.triu_indices(n_features)
    when_packed = np.empty((n_features, n_features), dtype=np.intp)
    when_packed[i, j] = when_packed[j, i] = np.arange(len(i))
    return np.ravel_multi_index((i, j), when_packed.shape), when_packed


def _pack(matrices: Array) -> Array:
    """Upper triangles of matrices (…, d, d) as (…, P)."""
    *stack, d, _ = matrices.shape
    # To clip costs nothing, to check does.
    return matrices.reshape(*stack, d * d).take(_places(d)[0], axis=-1, mode="clip")


def _unpack(packed: Array, n_features: int) -> Array:
    """Symmetric matrices (…, d, d) from (…, P)."""
    return packed.take(_places(n_features)[1], axis=-1, mode="clip")


@final
@dataclass(frozen=True, slots=True)
class Factored:
    """Factors U of precisions.

    Attributes
    ----------
    factors : ndarray
        As the shape stores them.
    rough : ndarray of bool, shape (K,), or (1,) if pooled
        Which covariances did not determine theirs, as what is left of some pivot is
        rounding: they were given a rounding more on the diagonal.
    """

    factors: Array
    rough: NDArray[np.bool_]


def _factor(covariance: Array, sizes: Array, out: Array) -> bool:
    """U of a covariance, into `out`, and whether it is rough; raises `LinAlgError`.

    `sizes` are the numbers, (d,), of which the diagonal is what was left, and which it
    is off by rounding of. Along a column of U, where the variance is one, that is
    rounding of them times the column's squares: in sum, of the features' variance
    inflation factors.
    """
    try:
        _upper_factor(covariance, out)
        # Not so either if something in U is not finite.
        if _EPS * np.einsum("i,ij,ij->", sizes, out, out) <= _DOUBTFUL:
            return False
    except np.linalg.LinAlgError:
        pass
    rounding = 2 * len(covariance) * _EPS * sizes
    # Written so that a NaN fails too.
    if not (np.diag(covariance) + _AT_MOST * rounding > 0.0).all():
        raise np.linalg.LinAlgError
    for lift in _LIFTS:
        try:
            _upper_factor(covariance + np.diag(lift * rounding), out)
        except np.linalg.LinAlgError:
            continue
        if np.isfinite(out).all():
            return True
    raise np.linalg.LinAlgError


def _upper_factor(covariance: Array, out: Array) -> None:
    """U with U Uᵀ the inverse of a covariance, into `out`; raises `LinAlgError`."""
    out[...] = covariance
    # As LAPACK sees the same memory, Cholesky's factor and its inverse are lower
    # triangular. Both are made where they are: new memory costs as much as they do.
    lower = out.T
    _, failed = dpotrf(lower, lower=True, overwrite_a=True, clean=True)
    if not failed:
        _, failed = dtrtri(lower, lower=True, overwrite_c=True)
    if failed:
        raise np.linalg.LinAlgError


def _upper_factor_of_precision(precision: Array) -> Array:
    """U with U Uᵀ a precision: Cholesky's factor of it with both axes reversed."""
    return np.ascontiguousarray(np.linalg.cholesky(precision[::-1, ::-1])[::-1, ::-1])


def _inverse_transposed(factor: Array) -> Array:
    """U⁻ᵀ, whose product with its transpose is the covariance."""
    inverse, failed = dtrtri(factor.T, lower=True)
    if failed:
        raise np.linalg.LinAlgError
    return np.asarray(inverse, dtype=np.float64)


class CovarianceShape(ABC):
    """What depends on the shape of the covariances, as pure functions."""

    name: ClassVar[str]
    pooled: ClassVar[bool] = False
    """Whether all components of a model share one covariance."""
    dense: ClassVar[bool]
    """Whether factors are matrices."""
    isotropic: ClassVar[bool] = False
    """Whether a component has one variance for all features."""

    @abstractmethod
    def stored(self, n_components: int, n_features: int) -> tuple[int, ...]:
        """Shape of the array of covariances, precisions or factors."""

    @abstractmethod
    def n_parameters(self, n_components: int, n_features: int) -> int:
        """Free parameters of the covariances."""

    @abstractmethod
    def n_sums(self, n_components: int, n_features: int) -> int:
        """Numbers that a pass adds up in for the scatters of a mixture."""

    @abstractmethod
    def no_scatter(self, n_components: int, n_features: int) -> Array:
        """The scatters of a mixture before anything is added, (K, S)."""

    @abstractmethod
    def products(self, a: Array, b: Array) -> Array:
        """½(a bᵀ + b aᵀ) of vectors (K, d), as the scatters of a mixture are kept."""

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
    def of_features(self, covariances: Array, features: NDArray[np.intp]) -> Array:
        """Covariances of some features alone."""

    @abstractmethod
    def squares(self, off: Array) -> Array:
        """What deviations, (n, d), are squared, as n covariances are stored."""

    @abstractmethod
    def prior(self, moments_scatter: Array, n_features: int) -> Array:
        """What one component's covariance is before, from that of all rows.

        Parameters
        ----------
        moments_scatter : ndarray of shape (1, S)
            Over so many rows as it is to be divided by, of a full component if the
            shape is dense, else of a diagonal one.

        Returns
        -------
        ndarray of shape (d, d), (d,) or ()
        """

    @abstractmethod
    def with_prior(
        self,
        covariances: Array,
        counts: Array,
        prior: Array,
        shares: Array,
        off: Array,
        degrees: Array,
    ) -> Array:
        """Expected covariances, from those of rows and a prior.

        Parameters
        ----------
        covariances : ndarray
            Of each component's rows, as they are stored.
        counts : ndarray of shape (K,)
            Rows of each component.
        prior : ndarray of shape (d, d), (d,) or ()
        shares : ndarray of shape (K,)
            What the prior mean counts in each mean.
        off : ndarray of shape (K, d)
            By how much the rows' means are off the prior mean.
        degrees : ndarray of shape (K,), or () if pooled
            Degrees of freedom.
        """

    @abstractmethod
    def factored(
        self, covariances: Array, moved: Array | None = None, floor: Array | None = None
    ) -> Factored:
        """U of each precision, rough where the covariances do not determine it.

        Parameters
        ----------
        covariances : ndarray
        moved : ndarray of shape (K, d), or (1, d) if pooled, or None
            Squares that were subtracted from the variances, which are what was left.
        floor : ndarray of the same shape, or None
            Variance of a feature that rounding makes alone: no more of it, along a
            feature or any other direction, is ill-defined.

        Raises
        ------
        IllDefinedCovarianceError
            Naming the components whose covariance is not positive definite.
        """

    @abstractmethod
    def refined(
        self,
        covariances: Array,
        floor: Array | None,
        basis: Array,
        whitened: Array,
        reg_covar: float,
    ) -> Factored:
        """U of each precision, from covariances that were measured a second time.

        Parameters
        ----------
        covariances, floor : ndarray
            As in `factored`.
        basis : ndarray
            Factors B, rough ones, as they are stored.
        whitened : ndarray of shape (K, d, d), or (1, d, d) if pooled, or (0, d, d)
            Covariances of the rows Bᵀx without reg_covar; none if not `dense`.
        reg_covar : float

        Raises
        ------
        IllDefinedCovarianceError
            Naming the components whose covariance is not positive definite.
        """

    def factors(self, covariances: Array) -> Array:
        """U of each precision.

        Raises
        ------
        IllDefinedCovarianceError
            Unless the covariances determine it.
        """
        found = self.factored(covariances)
        if found.rough.any():
            raise self.ill_defined(found.rough)
        return found.factors

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
    def distances(self, scatter: Array, factors: Array) -> float:
        """Sum of the squared Mahalanobis distances of which a scatter is."""

    @abstractmethod
    def distances_off(self, scatter: Array, factors: Array) -> float:
        """What rounding may have made of that sum."""

    @abstractmethod
    def logs(self, factors: Array, basis: Array, n_features: int) -> Array:
        """Covariances as unbounded numbers, (n, P), all zero at that of the basis.

        The sum of their squares is twice the divergence of Kullback and Leibler from a
        Gaussian that has the basis as its factor, to second order.

        Parameters
        ----------
        factors, basis : ndarray
            Factors of precisions.
        n_features : int
        """

    @abstractmethod
    def of_logs(self, logs: Array, basis: Array, n_features: int) -> Array:
        """The covariances that `logs` makes such numbers of."""

    @abstractmethod
    def sample(
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
        moved = mass[:, np.newaxis] * shift - 2.0 * drift
        products = self.products(moved, shift)
        products += scatter
        return products

    def trace(self, scatter: Array, n_features: int) -> float:
        """Sum of the squares on the diagonals of a scatter, all rows (K, S) of it."""
        return float(scatter[:, self.diagonal(n_features)].sum())

    def diagonal(self, n_features: int) -> slice | NDArray[np.intp]:
        """Where the numbers that are kept of a scatter are those of its diagonal."""
        return slice(None)

    def averaged(self, table: Array, counts: Array) -> Array:
        """A table (K, d) as it counts for covariances: (1, d), by counts, if pooled."""
        return (counts @ table / counts.sum())[np.newaxis] if self.pooled else table

    @abstractmethod
    def variances(self, covariances: Array, n_features: int) -> Array:
        """Diagonals of covariances, (K, d), or (1, d) if pooled."""

    def of_component(self, covariances: Array, k: int) -> Array:
        """Covariance of component k."""
        component: Array = covariances if self.pooled else covariances[k]
        return component

    def ill_defined(self, ill: NDArray[np.bool_]) -> IllDefinedCovarianceError:
        """The error of components whose covariance is not positive definite."""
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
        return _places(n_features)[1].diagonal()

    @staticmethod
    @abstractmethod
    def _matrices(stored: Array) -> Array:
        """Storage as a stack of matrices."""

    @staticmethod
    @abstractmethod
    def _store(matrices: Array) -> Array:
        """A stack of matrices as storage."""

    def no_scatter(self, n_components: int, n_features: int) -> Array:
        n = 1 if self.pooled else n_components
        return np.zeros((n, _triangle(n_features)))

    def products(self, a: Array, b: Array) -> Array:
        if self.pooled:
            products = a.T @ b
            return _pack((0.5 * (products + products.T))[np.newaxis])
        n, d = a.shape
        if n * d**2 <= _FEW_PRODUCTS:
            outer = a[:, :, np.newaxis] * b[:, np.newaxis]
            return _pack(0.5 * (outer + outer.swapaxes(1, 2)))
        packed = np.empty((n, _triangle(d)))
        at_once = max(1, _AT_ONCE // d**2)
        for first in range(0, n, at_once):
            some = slice(first, first + at_once)
            columns = 0.5 * np.stack([a[some], b[some]], axis=2)
            packed[some] = _pack(columns @ np.stack([b[some], a[some]], axis=1))
        return packed

    def scatter(self, deviations: Array, weights: Array) -> Array:
        return _pack((deviations.T * weights) @ deviations)

    def kept(self, dense: Array, diagonal: Array) -> Array:
        return self.pool(dense)

    def of_features(self, covariances: Array, features: NDArray[np.intp]) -> Array:
        return np.asarray(covariances[..., features[:, np.newaxis], features])

    def squares(self, off: Array) -> Array:
        return off[:, :, np.newaxis] * off[:, np.newaxis]

    def prior(self, moments_scatter: Array, n_features: int) -> Array:
        matrix: Array = _unpack(moments_scatter, n_features)[0]
        return matrix

    def covariances(
        self, scatter: Array, counts: Array, n_features: int, reg_covar: float
    ) -> Array:
        per_matrix = self.pool(counts[:, np.newaxis])
        matrices = _unpack(scatter, n_features)
        matrices /= per_matrix[:, np.newaxis]
        np.einsum("kii->ki", matrices)[...] += reg_covar
        return self._store(matrices)

    def variances(self, covariances: Array, n_features: int) -> Array:
        diagonals: Array = np.einsum("kii->ki", self._matrices(covariances))
        return diagonals

    def factored(
        self, covariances: Array, moved: Array | None = None, floor: Array | None = None
    ) -> Factored:
        matrices = self._matrices(covariances)
        sizes = np.einsum("kii->ki", matrices).copy()
        if moved is not None:
            sizes += moved
        return self._all_factored(matrices, sizes, floor)

    def refined(
        self,
        covariances: Array,
        floor: Array | None,
        basis: Array,
        whitened: Array,
        reg_covar: float,
    ) -> Factored:
        bases = self._matrices(basis)
        # In these coordinates nothing is small beside the rest, if the basis is right.
        matrices = whitened + reg_covar * (bases.swapaxes(-1, -2) @ bases)
        # Rows that were whitened are off by rounding of all that was added up for them.
        d = matrices.shape[-1]
        rounding = d * ROUNDING * self.variances(covariances, d)
        return self._all_factored(
            matrices,
            np.einsum("kii->ki", matrices),
            rounding if floor is None else rounding + floor,
            bases,
        )

    def _all_factored(
        self,
        matrices: Array,
        sizes: Array,
        floor: Array | None,
        bases: Array | None = None,
    ) -> Factored:
        """Factors of all matrices, by way of the bases in which they are given."""
        factors = np.empty(matrices.shape)
        ill = np.zeros(len(matrices), dtype=bool)
        rough = np.zeros(len(matrices), dtype=bool)
        for k, matrix in enumerate(matrices):
            try:
                rough[k] = _factor(matrix, sizes[k], factors[k])
            except np.linalg.LinAlgError:
                ill[k] = True
                continue
            if bases is not None:
                factors[k] = bases[k] @ factors[k]
            # Each column of the factor is a direction in which the variance is one.
            if floor is not None:
                ill[k] = not (floor[k] @ factors[k] ** 2 < 1.0).all()
        if ill.any():
            raise self.ill_defined(ill)
        return Factored(self._store(factors), rough)

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
        return _to_all(np.log(diagonals).sum(axis=1), (n_components,))

    def kernel_factors(self, factors: Array, n_components: int, d: int) -> Array:
        transposed = self._matrices(factors).swapaxes(-1, -2)
        return _to_all(transposed, (n_components, d, d))

    def distances(self, scatter: Array, factors: Array) -> float:
        precisions = self._matrices(self.precisions(factors))
        matrices = _unpack(scatter, precisions.shape[-1])
        return float(np.einsum("kij,kij->", precisions, matrices))

    def distances_off(self, scatter: Array, factors: Array) -> float:
        squares = self._matrices(factors) ** 2
        sizes = np.einsum("kii->ki", _unpack(scatter, squares.shape[-1]))
        return _EPS * float(np.einsum("ki,kij->", sizes, squares))

    def logs(self, factors: Array, basis: Array, n_features: int) -> Array:
        # Lower triangular, as both are: Cholesky's factor of the whitened covariance.
        roots = np.stack([_inverse_transposed(f) for f in self._matrices(factors)])
        lower = self._matrices(basis).swapaxes(-1, -2) @ roots
        diagonals = np.einsum("kii->ki", lower)
        diagonals[...] = np.sqrt(2.0) * np.log(diagonals)
        return _pack(lower.swapaxes(-1, -2))

    def of_logs(self, logs: Array, basis: Array, n_features: int) -> Array:
        bases = self._matrices(basis)
        lower = np.tril(_unpack(logs, bases.shape[-1]))
        diagonals = np.einsum("kii->ki", lower)
        diagonals[...] = np.exp(diagonals / np.sqrt(2.0))
        roots = np.stack([_inverse_transposed(f) for f in bases]) @ lower
        return self._store(roots @ roots.swapaxes(-1, -2))

    def sample(
        self, random_state: np.random.RandomState, mean: Array, cov: Array, n: int
    ) -> Array:
        return random_state.multivariate_normal(mean, cov, n)


class _DiagonalShape(CovarianceShape):
    """Covariances are diagonal: variances (K, d), or (K, 1) for all features."""

    dense = False

    def n_sums(self, n_components: int, n_features: int) -> int:
        return n_components * n_features

    @staticmethod
    @abstractmethod
    def _variances(stored: Array) -> Array:
        """Storage as a table of variances, precisions or factors."""

    @staticmethod
    @abstractmethod
    def _of_features(table: Array) -> Array:
        """A table (K, d) as it counts for the variances."""

    def variances(self, covariances: Array, n_features: int) -> Array:
        table = self._variances(covariances)
        return np.broadcast_to(table, (len(table), n_features))

    def factored(
        self, covariances: Array, moved: Array | None = None, floor: Array | None = None
    ) -> Factored:
        variances = self._variances(covariances)
        least = 0.0 if floor is None else self._of_features(floor)
        rounding = np.zeros_like(variances)
        if moved is not None:
            rounding = _EPS * self._of_features(moved)
        rough = np.any(rounding > _DOUBTFUL * variances, axis=1)
        if rough.any():
            variances = variances + _AT_MOST * rounding
        # Written so that a NaN fails too.
        ill = np.logical_not((variances > least).all(axis=1))
        if ill.any():
            raise self.ill_defined(ill)
        return Factored(1.0 / np.sqrt(variances.reshape(covariances.shape)), rough)

    def refined(
        self,
        covariances: Array,
        floor: Array | None,
        basis: Array,
        whitened: Array,
        reg_covar: float,
    ) -> Factored:
        return self.factored(covariances, floor=floor)

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
        return _to_all(self._variances(factors), (n_components, d))

    def distances(self, scatter: Array, factors: Array) -> float:
        return float((scatter * self._variances(factors) ** 2).sum())

    def distances_off(self, scatter: Array, factors: Array) -> float:
        return _EPS * self.distances(scatter, factors)

    def logs(self, factors: Array, basis: Array, n_features: int) -> Array:
        table = self._variances(basis)
        ratios = table / self._variances(factors)
        logs: Array = np.log(ratios) * np.sqrt(2.0 * n_features / table.shape[1])
        return logs

    def of_logs(self, logs: Array, basis: Array, n_features: int) -> Array:
        table = self._variances(basis)
        ratios = np.exp(logs / np.sqrt(2.0 * n_features / table.shape[1]))
        variances: Array = ((ratios / table) ** 2).reshape(basis.shape)
        return variances

    def sample(
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
        return n_components * _triangle(n_features)

    def n_sums(self, n_components: int, n_features: int) -> int:
        return n_components * n_features**2

    @staticmethod
    def _matrices(stored: Array) -> Array:
        return stored

    @staticmethod
    def _store(matrices: Array) -> Array:
        return matrices

    def with_prior(
        self,
        covariances: Array,
        counts: Array,
        prior: Array,
        shares: Array,
        off: Array,
        degrees: Array,
    ) -> Array:
        between = np.einsum("k,ki,kj->kij", shares, off, off)
        whole = prior + counts[:, np.newaxis, np.newaxis] * (covariances + between)
        return np.asarray(whole / degrees[:, np.newaxis, np.newaxis])


@final
class Tied(_MatrixShape):
    """All components have one covariance matrix, (d, d)."""

    name = "tied"
    pooled = True

    def stored(self, n_components: int, n_features: int) -> tuple[int, ...]:
        return n_features, n_features

    def n_parameters(self, n_components: int, n_features: int) -> int:
        return _triangle(n_features)

    def n_sums(self, n_components: int, n_features: int) -> int:
        # One of all rows, and one of the components: or one of each, if that is less.
        pooled = n_features**2 + n_components**2 + n_components * n_features
        return min(pooled, n_components * n_features**2)

    @staticmethod
    def _matrices(stored: Array) -> Array:
        return stored[np.newaxis]

    @staticmethod
    def _store(matrices: Array) -> Array:
        stored: Array = matrices[0]
        return stored

    def with_prior(
        self,
        covariances: Array,
        counts: Array,
        prior: Array,
        shares: Array,
        off: Array,
        degrees: Array,
    ) -> Array:
        between = (counts * shares * off.T) @ off / len(counts)
        return np.asarray((prior + counts.mean() * covariances + between) / degrees)


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

    @staticmethod
    def _of_features(table: Array) -> Array:
        return table

    def no_scatter(self, n_components: int, n_features: int) -> Array:
        return np.zeros((n_components, n_features))

    def products(self, a: Array, b: Array) -> Array:
        return a * b

    def scatter(self, deviations: Array, weights: Array) -> Array:
        return weights @ deviations**2

    def kept(self, dense: Array, diagonal: Array) -> Array:
        return diagonal

    def of_features(self, covariances: Array, features: NDArray[np.intp]) -> Array:
        return np.asarray(covariances[:, features])

    def squares(self, off: Array) -> Array:
        return off**2

    def prior(self, moments_scatter: Array, n_features: int) -> Array:
        variances: Array = moments_scatter[0]
        return variances

    def with_prior(
        self,
        covariances: Array,
        counts: Array,
        prior: Array,
        shares: Array,
        off: Array,
        degrees: Array,
    ) -> Array:
        between = shares[:, np.newaxis] * off**2
        whole = prior + counts[:, np.newaxis] * (covariances + between)
        return np.asarray(whole / degrees[:, np.newaxis])

    def covariances(
        self, scatter: Array, counts: Array, n_features: int, reg_covar: float
    ) -> Array:
        return scatter / counts[:, np.newaxis] + reg_covar


@final
class Spherical(_DiagonalShape):
    """Each component has one variance for all features, (K,)."""

    name = "spherical"
    isotropic = True

    def stored(self, n_components: int, n_features: int) -> tuple[int, ...]:
        return (n_components,)

    def n_parameters(self, n_components: int, n_features: int) -> int:
        return n_components

    @staticmethod
    def _variances(stored: Array) -> Array:
        return stored[:, np.newaxis]

    @staticmethod
    def _of_features(table: Array) -> Array:
        means: Array = table.mean(axis=1, keepdims=True)
        return means

    def no_scatter(self, n_components: int, n_features: int) -> Array:
        return np.zeros((n_components, 1))

    def products(self, a: Array, b: Array) -> Array:
        products: Array = np.einsum("ki,ki->k", a, b)[:, np.newaxis]
        return products

    def scatter(self, deviations: Array, weights: Array) -> Array:
        return np.array([weights @ (deviations**2).sum(axis=1)])

    def kept(self, dense: Array, diagonal: Array) -> Array:
        traces: Array = diagonal.sum(axis=1, keepdims=True)
        return traces

    def of_features(self, covariances: Array, features: NDArray[np.intp]) -> Array:
        return covariances

    def squares(self, off: Array) -> Array:
        return np.asarray((off**2).mean(axis=1))

    def prior(self, moments_scatter: Array, n_features: int) -> Array:
        return np.asarray(moments_scatter[0].mean())

    def with_prior(
        self,
        covariances: Array,
        counts: Array,
        prior: Array,
        shares: Array,
        off: Array,
        degrees: Array,
    ) -> Array:
        between = shares * (off**2).mean(axis=1)
        return np.asarray((prior + counts * (covariances + between)) / degrees)

    def covariances(
        self, scatter: Array, counts: Array, n_features: int, reg_covar: float
    ) -> Array:
        return scatter[:, 0] / (counts * n_features) + reg_covar


SHAPES: Final[dict[str, CovarianceShape]] = {
    shape.name: shape for shape in (Full(), Tied(), Diag(), Spherical())
}
"""By scikit-learn's ``covariance_type``."""


def _to_all(array: Array, shape: tuple[int, ...]) -> Array:
    """An array of all components, if it is one of all together; else as it is.

    NumPy takes as long to find that out as a pass over few rows.
    """
    return array if array.shape == shape else np.broadcast_to(array, shape)
