"""Plain formulas in extended precision, to check the fast paths by."""

from __future__ import annotations

import numpy as np
from scipy.linalg import solve_triangular

LONG = np.longdouble


def log_joint(x, weights, means, factors, covariance_type):
    """Log of weight times density, (n, K), in long double.

    `factors` are scikit-learn's precisions_cholesky_.
    """
    x, weights, means, factors = (
        np.asarray(a, dtype=LONG) for a in (x, weights, means, factors)
    )
    n_components, d = means.shape
    joint = np.empty((len(x), n_components), dtype=LONG)
    for k in range(n_components):
        factor = factor_matrix(factors, covariance_type, k, d)
        z = (x - means[k]) @ factor
        log_det = np.log(np.diag(factor)).sum()
        constant = np.log(weights[k]) + log_det - LONG(d) / 2 * np.log(2 * LONG(np.pi))
        joint[:, k] = constant - (z**2).sum(axis=1) / 2
    return joint


def factor_matrix(factors, covariance_type, k, d):
    """U of component k as a (d, d) matrix."""
    return {
        "full": lambda: factors[k],
        "tied": lambda: factors,
        "diag": lambda: np.diag(factors[k]),
        "spherical": lambda: np.eye(d, dtype=factors.dtype) * factors[k],
    }[covariance_type]()


def log_sum_exp(joint):
    """Row by row."""
    top = joint.max(axis=1, keepdims=True)
    return top[:, 0] + np.log(np.exp(joint - top).sum(axis=1))


def responsibilities(joint):
    """Posterior of each component for each row."""
    return np.exp(joint - log_sum_exp(joint)[:, np.newaxis])


def em_bounds(x, weights, means, variance, reg_covar, n_iter, tied=False):
    """Bounds of EM, and the final covariances' determinants, without any covariance.

    The factors of Σ r e eᵀ + reg_covar are those of the rows √r e themselves, by QR, so
    that they keep what sums of squares lose. The start's covariances are spherical.
    """
    d = x.shape[1]
    roots = [np.sqrt(variance) * np.eye(d)] * len(means)
    bounds = []
    for _ in range(n_iter):
        joint = np.empty((len(x), len(means)))
        for k, root in enumerate(roots):
            z = solve_triangular(root, (x - means[k]).T, trans="T")
            log_det = np.log(np.abs(np.diag(root))).sum()
            joint[:, k] = np.log(weights[k]) - log_det - (z**2).sum(axis=0) / 2
        joint = joint.astype(LONG) - LONG(d) / 2 * np.log(2 * LONG(np.pi))
        bounds.append(float(log_sum_exp(joint).mean()))
        shares = responsibilities(joint)
        mass = shares.sum(axis=0)
        means = (shares.T @ x.astype(LONG) / mass[:, np.newaxis]).astype(float)
        weights = (mass / len(x)).astype(float)
        rows = [np.sqrt(shares[:, [k]]) * (x - m) for k, m in enumerate(means)]
        counts = mass
        if tied:
            rows, counts = [np.vstack(rows)] * len(means), [len(x)] * len(means)
        lifted = np.sqrt(reg_covar) * np.eye(d)
        roots = [
            np.linalg.qr(np.vstack([(e / np.sqrt(n)).astype(float), lifted]), mode="r")
            for e, n in zip(rows, counts, strict=True)
        ]
    return np.array(bounds)
