"""How many passes a fit takes, and how far from the optimum it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from daskgmm.mixtures.covariance import SHAPES
from daskgmm.mixtures.gaussian import n_parameters

Array = NDArray[np.float64]
Rng = np.random.Generator


@dataclass(frozen=True)
class DataSet:
    """Rows of one kind, and the mixture that is fitted to them.

    `rows` are of the subsample for each parameter, `times` as many are in all.
    """

    name: str
    n_components: int
    n_features: int
    draw: Callable[[Rng, int], Array]
    rows: int = 40
    times: int = 30
    covariance_type: str = "full"

    @property
    def init_size(self) -> int:
        """Rows of the subsample."""
        shape = SHAPES[self.covariance_type]
        return self.rows * n_parameters(shape, self.n_components, self.n_features)


def mixture(
    n_components: int, n_features: int, distance: float, weights: Any = None
) -> Callable[[Rng, int], Array]:
    """Components of spread about 1, whose means lie `distance` apart or more.

    They are drawn nearer and nearer until the nearest two are that far.
    """

    def draw(rng: Rng, n: int) -> Array:
        means = rng.normal(size=(n_components, n_features))
        apart = np.linalg.norm(means[:, None] - means[None], axis=2)
        means *= distance / np.median(apart[np.triu_indices(n_components, 1)])
        shares = (
            np.full(n_components, 1.0 / n_components) if weights is None else weights
        )
        shapes = rng.normal(size=(n_components, n_features, n_features))
        shapes = np.eye(n_features) + 0.3 * shapes / np.sqrt(n_features)
        labels = rng.choice(n_components, n, p=shares)
        x = rng.normal(size=(n, n_features))
        for k in range(n_components):
            of_k = labels == k
            x[of_k] = x[of_k] @ shapes[k] + means[k]
        return x

    return draw


def digits(n_features: int) -> Callable[[Rng, int], Array]:
    """Handwritten digits, on their principal axes, drawn again with some noise."""

    def draw(rng: Rng, n: int) -> Array:
        axes = PCA(n_features, random_state=0).fit_transform(load_digits().data)
        noise = rng.normal(size=(n, n_features)) * 0.2 * axes.std(axis=0)
        drawn: Array = axes[rng.integers(len(axes), size=n)] + noise
        return drawn

    return draw


def tails(rng: Rng, n: int) -> Array:
    """Heavy tails on some axes, skewness on others: no mixture of few Gaussians."""
    centres = rng.normal(size=(4, 6)) * 4.0
    x = rng.standard_t(4.0, size=(n, 6))
    x[:, 3:] = rng.gamma(2.0, size=(n, 3)) - 2.0
    drawn: Array = x + centres[rng.integers(4, size=n)]
    return drawn


def speech(rng: Rng, n: int) -> Array:
    """Like cepstra of speech: many diagonal components, which fade along the axes."""
    d, k = 20, 24
    fading = 1.0 / np.sqrt(1.0 + np.arange(d))
    means = rng.normal(size=(k, d)) * 2.0 * fading
    spreads = fading * rng.gamma(8.0, 1.0 / 8.0, size=(k, d))
    labels = rng.choice(k, n, p=rng.dirichlet(np.full(k, 3.0)))
    drawn: Array = means[labels] + spreads[labels] * rng.normal(size=(n, d))
    return drawn


RARE = np.array([0.4, 0.3, 0.299, 0.001])
DATA_SETS = (
    DataSet("blobs", 8, 8, mixture(8, 8, 16.0)),
    DataSet("overlap 1.5 sd, d=2", 3, 2, mixture(3, 2, 1.5), rows=50, times=40),
    DataSet("overlap 1.5 sd, d=8", 6, 8, mixture(6, 8, 1.5)),
    DataSet("overlap 2.5 sd, d=5", 4, 5, mixture(4, 5, 2.5)),
    DataSet("digits, K=10", 10, 8, digits(8)),
    DataSet("digits, K=30", 30, 8, digits(8), rows=15),
    DataSet("a component of 0.1 %", 4, 4, mixture(4, 4, 6.0, RARE), rows=50),
    DataSet("K twice the truth", 8, 5, mixture(4, 5, 4.0)),
    DataSet("heavy tails, skewed", 6, 6, tails),
    DataSet("like speech, diag", 24, 20, speech, covariance_type="diag"),
)
