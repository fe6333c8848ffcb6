"""Gaussian mixture regression: what some features are, given the others of each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from daskgmm.data.gaps import Nan
from daskgmm.data.inputs import Axis
from daskgmm.em.predict import Question, RowQuestion
from daskgmm.mixtures.parts import Conditional

_TILE_NUMBERS: Final = 2**17
"""Numbers of rows that are asked about together, so that they take little memory."""


class Regression(NamedTuple):
    """What a mixture says of features of some rows, given the others.

    Each is of the kind that the rows came in, and lazy if they are.

    Attributes
    ----------
    mean : array of shape (n, u)
        Expected values.
    covariance : array of shape (n, u, u)
        Of a data frame, a column for each two features.
    log_density : array of shape (n,)
        Of what is given: where it is low, no row like that was seen.
    """

    mean: Any
    covariance: Any
    log_density: Any


@final
@dataclass(frozen=True)
class RegressionQuestion(RowQuestion):
    """What the other features are expected to be, or their covariance (Bishop, 2.3.9).

    Attributes
    ----------
    responsibilities : Question
        To the mixture of the features that are given.
    conditional : Conditional
    wanted : {'mean', 'covariance'}
    labels : tuple of str, or None
        Of the other features.
    nan : {'error', 'skip'}
    """

    responsibilities: Question
    conditional: Conditional
    wanted: Literal["mean", "covariance"]
    labels: tuple[str, ...] | None
    nan: Nan

    @property
    def n_features(self) -> int:
        """Features that rows have."""
        return self.responsibilities.n_features

    @property
    def n_products(self) -> int:
        """Products that an answer for a row takes, about."""
        return self.responsibilities.n_products + self.conditional.slopes.size

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The other features, once or twice."""
        n_others = self.conditional.means.shape[1]
        axes = (
            Axis("feature", n_others, self.labels),
            Axis("other_feature", n_others, self.labels),
        )
        return axes[:1] if self.wanted == "mean" else axes

    def into(self, x: NDArray[Any], out: NDArray[Any]) -> None:
        """Answer for a block of finite rows, tile by tile."""
        of_a_row = self.responsibilities.n_components + np.prod(self.shape(1))
        size = max(1, int(_TILE_NUMBERS // of_a_row))
        for first in range(0, len(x), size):
            rows = x[first : first + size].astype(np.float64, copy=False)
            shares = np.empty(self.responsibilities.shape(len(rows)))
            self.responsibilities.into(rows, shares)
            if self.wanted == "mean":
                out[first : first + size] = self.conditional.means_at(rows, shares)
            else:
                found = self.conditional.covariances_at(rows, shares)
                out[first : first + size] = found
