"""Sufficient statistics of a run, about the points that rows were measured from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, final

import numpy as np
from numpy.typing import NDArray

from daskgmm.mixtures.covariance import CovarianceShape

Array = NDArray[np.float64]


@final
@dataclass(frozen=True, slots=True)
class Moments:
    """Sufficient statistics of one run over some rows: a monoid under ``+``.

    r are responsibilities times row weights, in whichever form they were added up.

    Attributes
    ----------
    about : ndarray of shape (K, d)
        The points c that deviations are measured from: in a pass, the means that were
        sent out.
    mass : ndarray of shape (K,)
        Σr.
    drift : ndarray of shape (K, d)
        Σr (x - c).
    scatter : ndarray of shape (K, S)
        Σr (x - c)(x - c)ᵀ, as the covariance shape keeps it.
    log_prob : float
        Σ log p(x), by row weight; NaN where it was not measured.
    weight : float
        Sum of the row weights; NaN where it was not measured.
    from_origin : ndarray of shape (K, d), or None
        The points c from where rows were measured, if the scatter is what is left of
        one about there.
    """

    about: Array
    mass: Array
    drift: Array
    scatter: Array
    log_prob: float
    weight: float
    from_origin: Array | None = None

    def __add__(self, other: Self) -> Moments:
        """Those of both sets of rows.

        Raises
        ------
        ValueError
            If they are about other points: sums of squares would mean nothing then.
        """
        if not np.array_equal(self.about, other.about):
            raise ValueError("Moments about different points cannot be added.")
        return Moments(
            self.about,
            self.mass + other.mass,
            self.drift + other.drift,
            self.scatter + other.scatter,
            self.log_prob + other.log_prob,
            self.weight + other.weight,
            self.from_origin,
        )

    def scaled(self, factor: float) -> Moments:
        """Those of so many times as many rows."""
        return Moments(
            self.about,
            self.mass * factor,
            self.drift * factor,
            self.scatter * factor,
            self.log_prob * factor,
            self.weight * factor,
            self.from_origin,
        )


def moved(shape: CovarianceShape, moments: Moments, about: Array) -> Moments:
    """The same moments, about other points."""
    shift = about - moments.about
    return Moments(
        about,
        moments.mass,
        moments.drift - moments.mass[:, np.newaxis] * shift,
        shape.recentre(moments.scatter, moments.drift, moments.mass, shift),
        moments.log_prob,
        moments.weight,
        moments.from_origin,
    )
