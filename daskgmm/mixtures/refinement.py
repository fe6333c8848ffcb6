"""A second look at the rows, for covariances that are close to singular.

Sums of squares know a variance to rounding of the largest one only: in the other
directions they hold reg_covar, or what little else there is, to no digit. So the rows
are looked at again, about the means that were found, and in coordinates in which the
covariance is close to the identity, by what the sums said: there nothing small stands
beside what is large. The responsibilities are those of the same E-step.

It is written with NumPy's matrix products, slower than the kernel: few data need it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Self, final

import numpy as np
from numpy.typing import NDArray

from daskgmm.kernel import passes
from daskgmm.kernel.layout import as_rows
from daskgmm.mixtures.covariance import CovarianceShape
from daskgmm.mixtures.e_step import BlockLike, EStep, plan
from daskgmm.mixtures.gaussian import Mixture
from daskgmm.mixtures.sufficient_statistics import Moments

Array = NDArray[np.float64]

_TILE_NUMBERS: Final = 2**17
"""Numbers of the rows that are looked at together, so that they take little memory."""


@final
@dataclass(frozen=True, slots=True)
class Look:
    """What to look at for one run.

    Attributes
    ----------
    e_step : EStep
        Of the mixture that the responsibilities follow from.
    rough : Mixture
        What was made of them: rows are measured about its means, by its factors.
    """

    e_step: EStep
    rough: Mixture


@final
@dataclass(frozen=True, slots=True)
class Refined:
    """Sums over rows of one run, about the rough means m: a monoid under ``+``.

    Attributes
    ----------
    moments : Moments
        About the rough means; the bound and the weight are not measured.
    white_drift : ndarray of shape (K, d)
        Σr z with z = Uᵀ(x - m), U a rough factor; (0, d) if factors are diagonal.
    white_scatter : ndarray of shape (K, d, d), or (1, d, d) if pooled
        Σr z zᵀ; (0, d, d) if factors are diagonal.
    """

    moments: Moments
    white_drift: Array
    white_scatter: Array

    def __add__(self, other: Self) -> Refined:
        return Refined(
            self.moments + other.moments,
            self.white_drift + other.white_drift,
            self.white_scatter + other.white_scatter,
        )

    def whitened(self, shape: CovarianceShape, counts: Array) -> Array:
        """Covariances of the rows Uᵀx: (K, d, d), (1, d, d) if pooled, or (0, d, d)."""
        if not len(self.white_scatter):
            return self.white_scatter
        by_count, drift = counts[:, np.newaxis, np.newaxis], self.white_drift
        about = drift[:, :, np.newaxis] * drift[:, np.newaxis, :] / by_count
        return (self.white_scatter - shape.pool(about)) / shape.pool(by_count)


@final
@dataclass(frozen=True, slots=True)
class RefinedRuns:
    """The sums of several runs: a monoid under ``+``."""

    runs: tuple[Refined, ...]

    def __add__(self, other: Self) -> RefinedRuns:
        pairs = zip(self.runs, other.runs, strict=True)
        return RefinedRuns(tuple(a + b for a, b in pairs))


def look_again(mixtures: Sequence[tuple[Mixture, Mixture]]) -> list[Look]:
    """The message of a second pass: for each run the mixture, and the rough one."""
    return [Look(plan(mixture, n_rows=0), rough) for mixture, rough in mixtures]


def refine(message: Sequence[Look], blocks: Iterator[BlockLike]) -> RefinedRuns:
    """What it does with the blocks of a leaf: sums over them, for every run."""
    runs = tuple(_zeros(look.rough) for look in message)
    for block in blocks:
        for x, weights in _tiles(block):
            for look, sums in zip(message, runs, strict=True):
                _add(look, x, weights, sums)
            del x, weights
        del block  # before another one is read
    return RefinedRuns(runs)


def _zeros(rough: Mixture) -> Refined:
    shape, (n_components, d) = rough.shape, rough.means.shape
    n_white = n_components if shape.dense else 0
    nothing = Moments(
        rough.means,
        np.zeros(n_components),
        np.zeros((n_components, d)),
        shape.no_scatter(n_components, d),
        log_prob=np.nan,
        weight=np.nan,
    )
    return Refined(
        nothing,
        np.zeros((n_white, d)),
        shape.pool(np.zeros((n_white, d, d))) if n_white else np.zeros((0, d, d)),
    )


def _tiles(block: BlockLike) -> Iterator[tuple[Array, Array]]:
    """Rows with weight, and their weights."""
    rows, weights = block.x, block.weights
    if weights is not None:
        rows, weights = rows[weights > 0.0], weights[weights > 0.0]
    size = max(1, _TILE_NUMBERS // rows.shape[1])
    for first in range(0, len(rows), size):
        x = np.ascontiguousarray(rows[first : first + size], dtype=np.float64)
        yield x, np.ones(len(x)) if weights is None else weights[first : first + size]


def _add(look: Look, x: Array, weights: Array, sums: Refined) -> None:
    """Add what some rows give to the sums, in place."""
    rough, shares = look.rough, _responsibilities(look.e_step, x)
    shape, (n_components, d) = rough.shape, rough.means.shape
    shares *= weights[:, np.newaxis]
    factors = shape.kernel_factors(rough.factors, n_components, d)
    moments = sums.moments
    for k, mean in enumerate(rough.means):
        deviations, its = x - mean, np.ascontiguousarray(shares[:, k])
        at = 0 if shape.pooled else k
        moments.mass[k] += its.sum()
        moments.drift[k] += its @ deviations
        moments.scatter[at] += shape.scatter(deviations, its)
        if shape.dense:
            white = deviations @ factors[k].T
            sums.white_drift[k] += its @ white
            sums.white_scatter[at] += (white.T * its) @ white


def _responsibilities(e_step: EStep, x: Array) -> Array:
    """Of each component for each row, (n, K)."""
    shares = np.empty((len(x), len(e_step.plan.means)))
    outputs = {"responsibilities": shares}
    passes.evaluate(e_step.compiled_plan, as_rows(x), e_step.scratch(), outputs)
    return shares
