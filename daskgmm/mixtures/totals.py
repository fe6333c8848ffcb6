"""What the moments of a pass say of the rows alone, whatever the mixture was.

The responsibilities of a row sum to one: so the weight, the sum and the sum of squares
of all rows come out of any mixture's moments. They are the same in every pass, unless
the rows are others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self, final

import numpy as np
from numpy.typing import NDArray

from daskgmm.mixtures.gaussian import Mixture
from daskgmm.mixtures.sufficient_statistics import Moments

Array = NDArray[np.float64]

_TOLERANCE: Final = 1e-6
"""Of a mean, in standard deviations, and of weights and squares, relative: sums of the
same rows differ by less;"""
_TOLERANCE_SINGLE: Final = 5e-6
"""and in single precision."""
_ROUNDING: Final = 1e-10
"""The part of what was added up that rounding may have changed."""
_TINY: Final = np.finfo(np.float64).tiny
_SUBNORMAL: Final = _TINY / np.finfo(np.float64).eps
"""Weights below which sums have lost digits."""


@final
@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all rows x, of weight w, about a centre c.

    Attributes
    ----------
    centre : ndarray of shape (d,)
    weight : float
        Σw.
    sums : ndarray of shape (d,)
        Σw (x - c).
    squares : float
        Σw |x - c|².
    size : float
        What the terms of `squares` are together, before they cancel.
    """

    centre: Array
    weight: float
    sums: Array
    squares: float
    size: float

    @classmethod
    def of(
        cls, mixture: Mixture, moments: Moments, centre: Array | None = None
    ) -> Self:
        """Those that the moments about a mixture's means come to.

        Parameters
        ----------
        mixture : Mixture
            The one that was sent out.
        moments : Moments
        centre : ndarray of shape (d,), optional
            By default that of the mixture.
        """
        centre = mixture.centre if centre is None else centre
        shifts = moments.about - centre
        sums = moments.drift.sum(axis=0) + moments.mass @ shifts
        about_means = mixture.shape.trace(moments.scatter, mixture.n_features)
        moved = float(moments.mass @ np.einsum("kj,kj->k", shifts, shifts))
        crossed = 2.0 * float(np.vdot(moments.drift, shifts))
        squares = about_means + crossed + moved
        size = about_means + abs(crossed) + moved
        return cls(centre, moments.weight, sums, squares, size)

    def differ(self, other: Totals, *, single: bool = False) -> bool:
        """Whether two totals, about one centre, are of other rows.

        Some may be made of sums in single precision, if that is said.
        """
        tolerance = _TOLERANCE_SINGLE if single else _TOLERANCE
        if max(self.weight, other.weight) < _SUBNORMAL:
            return False
        size, least = max(self.size, other.size), self.weight * _TINY
        scale = np.sqrt(max(self.squares, 0.0) / self.weight)
        # Squares of what is smaller than the root of _TINY are zero.
        rounding = _ROUNDING * np.sqrt(size / self.weight) + np.sqrt(_TINY)
        shift = np.abs(self.sums / self.weight - other.sums / other.weight).max()
        change = abs(self.squares - other.squares)
        # Written so that NaN, which says nothing, does not differ.
        return bool(
            abs(self.weight - other.weight) > tolerance * self.weight
            or shift > tolerance * scale + rounding
            or change > tolerance * self.squares + _ROUNDING * size + least
        )
