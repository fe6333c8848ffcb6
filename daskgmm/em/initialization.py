"""Starting parameters, from the rows drawn for it, as scikit-learn finds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.cluster import KMeans, kmeans_plusplus

from daskgmm.em.subsample import Subsample
from daskgmm.execution.threads import single_threaded_openmp
from daskgmm.mixtures.covariance import CovarianceShape
from daskgmm.mixtures.gaussian import Mixture
from daskgmm.mixtures.maximum_likelihood import TINY, MaximumLikelihood
from daskgmm.mixtures.sufficient_statistics import Moments

Array = NDArray[np.float64]
RandomState = np.random.RandomState

_TILE: Final = 4096
_FAR: Final = 1e10
_BY_ROWS: Final = ("k-means++", "random_from_data")
"""Methods that start each component from one row."""


@final
@dataclass(frozen=True, slots=True)
class Start:
    """What the user says of the starting parameters.

    Attributes
    ----------
    n_components : int
    shape : CovarianceShape
    method : str
        scikit-learn's ``init_params``.
    weights, means, precisions : ndarray or None
        Given parameters; the others are found by the method.
    """

    n_components: int
    shape: CovarianceShape
    method: str
    weights: Array | None
    means: Array | None
    precisions: Array | None

    @property
    def complete(self) -> bool:
        """Whether nothing is left to find."""
        given = (self.weights, self.means, self.precisions)
        return all(parameter is not None for parameter in given)


def seed(
    start: Start,
    subsample: Subsample | None,
    reg_covar: float,
    random_state: RandomState,
) -> Mixture:
    """Starting parameters of one run; draws from random_state as scikit-learn does.

    Parameters
    ----------
    start : Start
    subsample : Subsample or None
        None will do if the start is complete.
    reg_covar : float
    random_state : RandomState

    Raises
    ------
    IllDefinedCovarianceError
        If a covariance is not positive definite; see `MaximumLikelihood.start`.
    """
    shape, weights, means = start.shape, start.weights, start.means
    found = None
    if not start.complete:
        assert subsample is not None
        moments = assigned(start, subsample, random_state)
        rule = MaximumLikelihood(reg_covar, row_weight=1.0)
        found = rule.estimate(shape, moments)
        # Not normalised: scikit-learn's first bound depends on it.
        weights = found.counts / moments.weight if weights is None else weights
        means = found.means if means is None else means
    assert weights is not None and means is not None
    if start.precisions is not None:
        factors = shape.factors_of_precisions(start.precisions)
        covariances = shape.covariances_of_factors(factors)
        return Mixture(shape, weights, means, covariances, factors)
    assert found is not None
    factored = rule.start(shape, found, by_rows=start.method in _BY_ROWS)
    return Mixture(shape, weights, means, found.covariances, factored.factors)


def assigned(start: Start, subsample: Subsample, random_state: RandomState) -> Moments:
    """Moments of the method's responsibilities."""
    if start.method == "random":
        return _random_moments(start, subsample, random_state)
    if start.method == "kmeans":
        means = KMeans(start.n_components, n_init=1, random_state=random_state)
        # Parameters and rows were looked through before.
        known = config_context(skip_parameter_validation=True, assume_finite=True)
        with single_threaded_openmp(), known:
            labels = means.fit(subsample.x, sample_weight=subsample.weights).labels_
        groups = [np.flatnonzero(labels == k) for k in range(start.n_components)]
        return _group_moments(start.shape, subsample, groups)
    rows = _draw_means(start, subsample, random_state)
    return _row_moments(start.shape, subsample, rows)


def _draw_means(
    start: Start, subsample: Subsample, random_state: RandomState
) -> NDArray[np.intp]:
    """Numbers of the rows that become means, (K,)."""
    if start.method == "k-means++":
        _, rows = kmeans_plusplus(
            subsample.x,
            start.n_components,
            sample_weight=subsample.weights,
            random_state=random_state,
        )
        return np.asarray(rows)
    weights = subsample.weights
    return random_state.choice(
        len(subsample.x),
        size=start.n_components,
        replace=False,
        p=None if weights is None else weights / weights.sum(),
    )


def _weight(subsample: Subsample) -> float:
    """Sum of the sample's weights."""
    return float(
        len(subsample.x) if subsample.weights is None else subsample.weights.sum()
    )


def _weights_of(subsample: Subsample, rows: slice | NDArray[np.intp]) -> Array:
    if subsample.weights is not None:
        return subsample.weights[rows]
    # To take slices costs nothing, to take rows a copy.
    return np.ones(len(subsample.x[rows]) if isinstance(rows, slice) else len(rows))


def _group_moments(
    shape: CovarianceShape, subsample: Subsample, groups: Sequence[NDArray[np.intp]]
) -> Moments:
    """Each row belongs to one component entirely."""
    means = np.zeros((len(groups), subsample.x.shape[1]))
    mass, drift = np.zeros(len(groups)), np.zeros_like(means)
    scatters = []
    # One for all groups: new memory costs as much as what is done in it.
    memory = np.empty((max(map(len, groups)), subsample.x.shape[1]))
    for k, rows in enumerate(groups):
        weights = _weights_of(subsample, rows)
        x = memory[: len(rows)]
        if subsample.x.dtype == x.dtype:
            # To clip costs nothing, to check does.
            np.take(subsample.x, rows, axis=0, out=x, mode="clip")
        else:
            x[...] = subsample.x[rows]
        mass[k] = weights.sum()
        if len(rows):  # of no rows, the mean is zero, where scikit-learn has it
            means[k] = weights @ x / mass[k]
        x -= means[k]
        drift[k] = weights @ x
        scatters.append(shape.scatter(x, weights))
    scatter = shape.pool(np.stack(scatters))
    return Moments(means, mass, drift, scatter, 0.0, _weight(subsample))


def _mean(x: NDArray[Any], weights: Array) -> Array:
    """Weighted mean."""
    mean: Array = np.average(x.astype(np.float64), axis=0, weights=weights)
    return mean


def _row_moments(
    shape: CovarianceShape, subsample: Subsample, rows: NDArray[np.intp]
) -> Moments:
    """One row belongs to each component, and the others to none.

    What is left of the variance then decides about the first bound, so scikit-learn's
    is kept to the bit: the rounding of x²/n - (x/n)² on diagonals, and of x - x/n in
    matrices. Its tied covariance takes the second moment of all rows about zero
    nevertheless, which is kept too: here as the rows' own, without its cancellation.
    """
    means = subsample.x[rows].astype(np.float64)
    ones = np.ones(len(rows))
    counts = ones[:, np.newaxis] + TINY
    rounding = (means**2 / counts - (means / counts) ** 2) * counts
    if shape.pooled:
        scatter = _scatter_of_rest(shape, subsample, rows)
    elif shape.dense:
        off, exact = means - means / counts, TINY * means / counts
        # The M-step adds the square of the exact difference.
        scatter = shape.products(off, off) - shape.products(exact, exact)
    else:
        scatter = shape.kept(np.empty(0), rounding)
    return Moments(means, ones, np.zeros_like(means), scatter, 0.0, _weight(subsample))


def _scatter_of_rest(
    shape: CovarianceShape, subsample: Subsample, rows: NDArray[np.intp]
) -> Array:
    """Scatter about zero of what is not in `rows`, (1, S).

    About their own mean where that is so far from zero, measured in their spread, that
    the matrix would be singular to rounding: scikit-learn breaks down there.
    """
    rest = _weights_of(subsample, slice(None)).copy()
    np.subtract.at(rest, rows, 1.0)
    np.maximum(rest, 0.0, out=rest)
    if not rest.any():
        return shape.no_scatter(1, subsample.x.shape[1])
    centre = _mean(subsample.x, rest)[np.newaxis]
    mass, spread = rest.sum(keepdims=True), 0.0
    scatter = shape.no_scatter(*centre.shape)
    for tile in _tiles(len(rest)):
        deviations = subsample.x[tile].astype(np.float64) - centre
        scatter = scatter + shape.scatter(deviations, rest[tile])
        spread += rest[tile] @ (deviations**2).sum(axis=1)
    if mass[0] * (centre**2).sum() > _FAR * spread:
        return scatter
    return shape.recentre(scatter, np.zeros_like(centre), mass, -centre)


def _random_moments(
    start: Start, subsample: Subsample, random_state: RandomState
) -> Moments:
    """Each row belongs to all components, by random numbers, drawn tile by tile."""
    shape, n_components = start.shape, start.n_components
    centre = _mean(subsample.x, _weights_of(subsample, slice(None)))
    about = np.repeat(centre[np.newaxis], n_components, axis=0)
    mass = np.zeros(n_components)
    drift = np.zeros_like(about)
    scatter = shape.no_scatter(*about.shape)
    for tile in _tiles(len(subsample.x)):
        deviations = subsample.x[tile].astype(np.float64) - centre
        size = (len(deviations), n_components)
        drawn = random_state.uniform(size=size).astype(subsample.x.dtype)
        drawn /= drawn.sum(axis=1, keepdims=True)
        shares = drawn.astype(np.float64) * _weights_of(subsample, tile)[:, np.newaxis]
        mass += shares.sum(axis=0)
        drift += shares.T @ deviations
        of_each = shape.pool(shares.T).T
        scatter = scatter + np.stack([shape.scatter(deviations, r) for r in of_each.T])
    return Moments(about, mass, drift, scatter, 0.0, _weight(subsample))


def _tiles(n_rows: int) -> Iterator[slice]:
    for first in range(0, n_rows, _TILE):
        yield slice(first, first + _TILE)
