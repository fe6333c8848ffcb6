"""Priors of a Bayesian mixture: those that are not given are what all rows have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from daskgmm.data.in_memory import ArraySource
from daskgmm.em.loop import evaluated
from daskgmm.em.subsample import Subsample
from daskgmm.execution.runners import Shards
from daskgmm.mixtures.covariance import SHAPES, CovarianceShape
from daskgmm.mixtures.gaussian import Mixture
from daskgmm.mixtures.variational import Priors, of_all_rows


def completed(
    priors: Priors,
    shape: CovarianceShape,
    shards: Shards,
    rows: Subsample,
    n_rows: float,
) -> Priors:
    """Priors, with mean and covariance of all rows where none are given.

    Parameters
    ----------
    priors : Priors
    shape : CovarianceShape
    shards : Shards
        Read once, unless nothing is to be found or the subsample has all rows.
    rows : Subsample
    n_rows : float
        Rows with weight that there are.
    """
    if priors.are_complete:
        return priors
    if rows.weights is None and len(rows.x) == n_rows:
        shards = ArraySource(rows.x, None).shards()
    [moments] = evaluated(shards, [_one_about(rows, shape)])
    mean, covariance = of_all_rows(shape, moments)
    return replace(
        priors,
        mean=mean if priors.mean is None else priors.mean,
        covariance=covariance if priors.covariance is None else priors.covariance,
    )


def _one_about(rows: Subsample, shape: CovarianceShape) -> Mixture:
    """One component in the middle of the rows, to which all rows belong."""
    means = rows.x.mean(axis=0, dtype=np.float64)[np.newaxis]
    variance = rows.x.var(axis=0, dtype=np.float64)
    variances = np.where(variance > 0.0, variance, 1.0)[np.newaxis]
    one = SHAPES["full" if shape.dense else "diag"]
    if shape.dense:
        covariances, factors = (
            np.stack([np.diag(its[0])]) for its in (variances, variances**-0.5)
        )
        return Mixture(one, np.ones(1), means, covariances, factors)
    return Mixture(one, np.ones(1), means, variances, variances**-0.5)
