"""Mixtures made of a mixture: of some features, given others, of fewer components."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from daskgmm.mixtures.covariance import SHAPES
from daskgmm.mixtures.gaussian import Mixture

Array = NDArray[np.float64]
Places = NDArray[np.intp]


def marginal(mixture: Mixture, features: Places) -> Mixture:
    """The mixture of some features (Bishop 2006, 2.98).

    Parameters
    ----------
    mixture : Mixture
    features : ndarray of int, shape (m,)
    """
    shape = mixture.shape
    covariances = shape.of_features(mixture.covariances, features)
    return Mixture(
        shape,
        mixture.weights,
        mixture.means[:, features],
        covariances,
        shape.factors(covariances),
    )


@final
@dataclass(frozen=True, slots=True)
class Conditional:
    """What some features are, given the others (Bishop 2006, 2.81-2.82).

    Attributes
    ----------
    given : Mixture
        Of the features that are given.
    means : ndarray of shape (K, u)
        Of the other features, where those given are at their means.
    slopes : ndarray of shape (K, u, m)
        How much those change with the features given.
    mixture : Mixture
        Of the other features, by the covariances that are left; its means and weights
        are those without anything given.
    """

    given: Mixture
    means: Array
    slopes: Array
    mixture: Mixture

    @classmethod
    def of(cls, mixture: Mixture, features: Places) -> Conditional:
        """Given some features of a mixture."""
        others = np.setdiff1d(np.arange(mixture.n_features), features)
        given, rest = marginal(mixture, features), marginal(mixture, others)
        shape, k = mixture.shape, mixture.n_components
        if not shape.dense:
            none = np.zeros((k, len(others), len(features)))
            return cls(given, rest.means, none, rest)
        matrices = np.broadcast_to(
            mixture.covariances, (k, mixture.n_features, mixture.n_features)
        )
        across = matrices[:, others[:, np.newaxis], features]
        known = matrices[:, features[:, np.newaxis], features]
        transposed = across.swapaxes(1, 2)
        solved = np.asarray(np.linalg.solve(known, transposed), dtype=np.float64)
        slopes = solved.swapaxes(1, 2)
        left: Array = np.array(matrices[:, others[:, np.newaxis], others])
        np.subtract(left, slopes @ transposed, out=left)
        # Both halves alike, but for rounding.
        left += left.swapaxes(1, 2).copy()
        left *= 0.5
        covariances = left[0] if shape.pooled else left
        return cls(
            given,
            rest.means,
            slopes,
            Mixture(
                shape,
                mixture.weights,
                rest.means,
                covariances,
                shape.factors(covariances),
            ),
        )

    def at(self, values: Array) -> Mixture:
        """The mixture of the other features at some values, (m,), of those given."""
        joint = _log_joint(self.given, values)
        weights = np.exp(joint - joint.max())
        off = values - self.given.means
        left = self.mixture
        return Mixture(
            left.shape,
            weights / weights.sum(),
            self.means + np.einsum("kum,km->ku", self.slopes, off),
            left.covariances,
            left.factors,
        )

    def means_at(self, x: Array, shares: Array) -> Array:
        """Expected other features, (n, u), at rows (n, m) of those given.

        Parameters
        ----------
        x : ndarray of shape (n, m)
        shares : ndarray of shape (n, K)
            Responsibilities of the components for what is given.
        """
        found = np.zeros((len(x), self.means.shape[1]))
        for k, its in enumerate(shares.T):
            found += its[:, np.newaxis] * self._means_of(k, x)
        return found

    def covariances_at(self, x: Array, shares: Array) -> Array:
        """Covariances of the other features there, (n, u, u).

        By the law of total covariance: those of the components, and of their means.
        """
        u, left = self.means.shape[1], _separate(self.mixture)
        within = (
            left if self.mixture.shape.dense else left[:, :, np.newaxis] * np.eye(u)
        )
        found = (shares @ within.reshape(len(left), -1)).reshape(len(x), u, u)
        centre = self.means_at(x, shares)
        for k, its in enumerate(shares.T):
            off = self._means_of(k, x) - centre
            found += its[:, np.newaxis, np.newaxis] * (
                off[:, :, np.newaxis] * off[:, np.newaxis, :]
            )
        return found

    def _means_of(self, k: int, x: Array) -> Array:
        """What component k expects of the other features, (n, u)."""
        means: Array = self.means[k] + (x - self.given.means[k]) @ self.slopes[k].T
        return means


def kl_divergences(mixture: Mixture) -> Array:
    """Kullback and Leibler's divergence of each component from each other, (K, K).

    Of component i from j, at [i, j]: ½ (tr Λ_j Σ_i + (m_j - m_i)ᵀ Λ_j (m_j - m_i) - d +
    log det Σ_j - log det Σ_i).
    """
    shape, (k, d) = mixture.shape, mixture.means.shape
    log_dets = np.asarray(shape.log_dets(mixture.factors, k, d))
    factors = shape.kernel_factors(mixture.factors, k, d)
    covariances = _separate(mixture)
    found = np.empty((k, k))
    for j in range(k):
        off = mixture.means - mixture.means[j]
        if shape.dense:
            whitened = factors[j] @ covariances @ factors[j].T
            traces = np.trace(whitened, axis1=1, axis2=2)
            off = off @ factors[j].T
        else:
            traces = (covariances * factors[j] ** 2).sum(axis=1)
            off = off * factors[j]
        distances = (off**2).sum(axis=1)
        found[:, j] = 0.5 * (traces + distances - d) + log_dets - log_dets[j]
    np.fill_diagonal(found, 0.0)
    return np.maximum(found, 0.0)


def bhattacharyya_distances(mixture: Mixture) -> Array:
    """Bhattacharyya's distance of each two components, (K, K).

    With S = ½ (Σ_i + Σ_j): ⅛ (m_i - m_j)ᵀ S⁻¹ (m_i - m_j) + ½ log det S - ¼ (log det
    Σ_i + log det Σ_j). The integral of the root of the product of both densities is
    exp of minus that (Bhattacharyya 1943).
    """
    k, d = mixture.means.shape
    full = SHAPES["full" if mixture.shape.dense else "diag"]
    covariances = _separate(mixture)
    halves = np.asarray(full.log_dets(full.factors(covariances), k, d))
    found = np.zeros((k, k))
    for i in range(k - 1):
        between = 0.5 * (covariances[i] + covariances[i + 1 :])
        factors = full.factors(between)
        n = len(between)
        kernel = full.kernel_factors(factors, n, d)
        off = mixture.means[i + 1 :] - mixture.means[i]
        form = "kij,kj->ki" if mixture.shape.dense else "kj,kj->kj"
        distances = (np.einsum(form, kernel, off) ** 2).sum(axis=1)
        # ½ log det of a precision is minus that of the covariance.
        logs = -np.asarray(full.log_dets(factors, n, d))
        logs = logs + 0.5 * (halves[i] + halves[i + 1 :])
        found[i, i + 1 :] = distances / 8.0 + logs
    return np.maximum(found + found.T, 0.0)


def merged(mixture: Mixture, n_components: int) -> tuple[Mixture, float]:
    """A mixture of fewer components, and what that loses at the most.

    Two components at a time become one with their weight, mean and covariance, those
    that lose least by Runnalls' bound (2007, Kullback-Leibler approach to Gaussian
    mixture reduction, 21). The sum of these is ½ (W log det Σ - Σ w log det Σ_i) over
    all that became one, in which the divergence of the old mixture from the new one is
    bounded: by the log sum inequality, as each part's divergence from what it became is
    that on average.

    Parameters
    ----------
    mixture : Mixture
        Of shape tied, covariances are no longer the same: a full one comes back.
    n_components : int

    Returns
    -------
    Mixture
    float
        The divergence from the old mixture, at the most.
    """
    name = "full" if mixture.shape.dense else mixture.shape.name
    shape, d = SHAPES[name], mixture.n_features
    weights = mixture.weights / mixture.weights.sum()
    means, covariances = mixture.means, mixture.covariances
    if mixture.shape.pooled:
        covariances = _separate(mixture)
    loss = 0.0
    while len(weights) > n_components:
        costs, joined = _costs(shape.name, weights, means, covariances, d)
        at = int(np.argmin(costs))
        i, j = joined[at]
        loss += float(costs[at])
        weight, mean, covariance = _joined(
            shape.name, weights, means, covariances, np.array([i]), np.array([j])
        )
        kept = np.delete(np.arange(len(weights)), [i, j])
        weights = np.concatenate([weights[kept], weight])
        means = np.concatenate([means[kept], mean])
        covariances = np.concatenate([covariances[kept], covariance])
    factors = shape.factors(covariances)
    return Mixture(shape, weights, means, covariances, factors), max(loss, 0.0)


def _costs(
    name: str, weights: Array, means: Array, covariances: Array, d: int
) -> tuple[Array, list[tuple[int, int]]]:
    """What it costs to join each two components, and which they are."""
    shape, k = SHAPES[name], len(weights)
    first, second = np.triu_indices(k, 1)
    _, _, both = _joined(name, weights, means, covariances, first, second)
    # Half the logarithms of determinants of precisions: minus those of covariances.
    of_each = weights * shape.log_dets(shape.factors(covariances), k, d)
    of_both = shape.log_dets(shape.factors(both), len(first), d)
    weight = weights[first] + weights[second]
    costs = of_each[first] + of_each[second] - weight * of_both
    return costs, list(zip(first.tolist(), second.tolist(), strict=True))


def _joined(
    name: str,
    weights: Array,
    means: Array,
    covariances: Array,
    first: Places,
    second: Places,
) -> tuple[Array, Array, Array]:
    """Weights, means and covariances of pairs of components taken as one each."""
    weight = weights[first] + weights[second]
    a, b = weights[first] / weight, weights[second] / weight
    off = means[first] - means[second]
    mean = means[second] + a[:, np.newaxis] * off
    wide = (slice(None), *(np.newaxis for _ in covariances.shape[1:]))
    within = a[wide] * covariances[first] + b[wide] * covariances[second]
    return weight, mean, within + (a * b)[wide] * SHAPES[name].squares(off)


def _separate(mixture: Mixture) -> Array:
    """Covariances of each component: matrices (K, d, d), or variances (K, d)."""
    k, d = mixture.means.shape
    if mixture.shape.dense:
        return np.broadcast_to(mixture.covariances, (k, d, d)).copy()
    variances = mixture.shape.variances(mixture.covariances, d)
    return np.broadcast_to(variances, (k, d)).copy()


def _log_joint(mixture: Mixture, row: Array) -> Array:
    """Log of weight times density of each component at a row, (d,)."""
    shape, (k, d) = mixture.shape, mixture.means.shape
    factors = shape.kernel_factors(mixture.factors, k, d)
    form = "kij,kj->ki" if shape.dense else "kj,kj->kj"
    whitened = np.einsum(form, factors, row - mixture.means)
    joint: Array = mixture.log_normalisers() - 0.5 * (whitened**2).sum(axis=1)
    return joint
