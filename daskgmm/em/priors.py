"""Priors of a Bayesian mixture: those that are not given are what all rows have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from daskgmm.data.in_memory import ArraySource
from daskgmm.em.loop import evaluated
from daskgmm.em.subsample import Subsample
from daskgmm.execution.runners import Shards
from daskgmm.mixtures.covariance import SHAPES, CovarianceShape
from daskgmm.mixtures.gaussian import Mixture
from daskgmm.mixtures.sufficient_statistics import Moments
from daskgmm.mixtures.variational import Priors, of_all_rows


def completed(
    wanted: Sequence[tuple[Priors, CovarianceShape]],
    shards: Shards,
    rows: Subsample,
    n_rows: float,
) -> list[Priors]:
    """Priors, with mean and covariance of all rows where none are given.

    Parameters
    ----------
    wanted : sequence of (Priors, CovarianceShape)
    shards : Shards
        Read once, unless nothing is to be found or the subsample has all rows.
    rows : Subsample
    n_rows : float
        Rows with weight that there are.
    """
    kinds = sorted({shape.dense for its, shape in wanted if not its.are_complete})
    if not kinds:
        return [priors for priors, _ in wanted]
    if rows.weights is None and len(rows.x) == n_rows:
        shards = ArraySource(rows.x, None).shards()
    moments = evaluated(shards, [_one_about(rows, dense=dense) for dense in kinds])
    found = dict(zip(kinds, moments, strict=True))
    return [_filled(priors, shape, found) for priors, shape in wanted]


def _filled(
    priors: Priors, shape: CovarianceShape, found: Mapping[bool, Moments]
) -> Priors:
    if priors.are_complete:
        return priors
    mean, covariance = of_all_rows(shape, found[shape.dense])
    return replace(
        priors,
        mean=mean if priors.mean is None else priors.mean,
        covariance=covariance if priors.covariance is None else priors.covariance,
    )


def _one_about(rows: Subsample, *, dense: bool) -> Mixture:
    """One component in the middle of the rows, to which all rows belong."""
    means = rows.x.mean(axis=0, dtype=np.float64)[np.newaxis]
    variance = rows.x.var(axis=0, dtype=np.float64)
    variances = np.where(variance > 0.0, variance, 1.0)[np.newaxis]
    one = SHAPES["full" if dense else "diag"]
    if dense:
        covariances, factors = (
            np.stack([np.diag(its[0])]) for its in (variances, variances**-0.5)
        )
        return Mixture(one, np.ones(1), means, covariances, factors)
    return Mixture(one, np.ones(1), means, variances, variances**-0.5)
