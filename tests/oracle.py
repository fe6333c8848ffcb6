"""Plain formulas in extended precision, to check the fast paths by."""

from __future__ import annotations

import numpy as np

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
