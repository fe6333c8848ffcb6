"""What one would write in an hour: full-covariance EM with one Dask task per chunk."""

from __future__ import annotations

import dask
import numpy as np
from scipy.special import logsumexp
from scipy.stats import multivariate_normal


def e_step(x, weights, means, covariances):
    """Sums of responsibilities, of rows and of their outer products, and log p(x)."""
    joint = np.column_stack(
        [
            np.log(weight) + multivariate_normal.logpdf(x, mean, covariance)
            for weight, mean, covariance in zip(
                weights, means, covariances, strict=True
            )
        ]
    )
    log_prob = logsumexp(joint, axis=1)
    r = np.exp(joint - log_prob[:, np.newaxis])
    return r.sum(axis=0), r.T @ x, np.einsum("nk,ni,nj->kij", r, x, x), log_prob.sum()


def fit(x, n_iterations, weights, means, covariances, reg_covar=1e-6):
    """EM on a Dask array; returns weights, means and covariances."""
    blocks = x.to_delayed().ravel()
    for _ in range(n_iterations):
        sums = dask.compute(
            *(dask.delayed(e_step)(b, weights, means, covariances) for b in blocks)
        )
        mass, first, second, _ = (sum(part) for part in zip(*sums, strict=True))
        weights = mass / mass.sum()
        means = first / mass[:, np.newaxis]
        squares = means[:, :, np.newaxis] * means[:, np.newaxis]
        covariances = second / mass[:, np.newaxis, np.newaxis] - squares
        covariances += reg_covar * np.eye(x.shape[1])
    return weights, means, covariances
