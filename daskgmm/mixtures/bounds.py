"""Axes along which a component lies apart from the rows, for bounds of log joints.

With P a component's factor and u a unit vector, the square of the coordinate
uᵀ Pᵀ (x - m) is at most the squared distance ‖Pᵀ (x - m)‖². Along the leading
eigenvectors of Pᵀ S P, with S the covariance of all rows, it is the largest on average:
these are the leading discriminants of one component beside the rest. Any other unit
vectors give valid bounds, too, so that one step of subspace iteration is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from daskgmm.kernel.bounded import SLACK
from daskgmm.kernel.layout import BAND, pack, stride
from daskgmm.mixtures.gaussian import Mixture

Array = NDArray[np.float64]

_LEAST: Final = 4
_WIDE: Final = 24
"""Components and features from which on it is less work to ask what matters."""
_ROWS: Final = 2**12
_PRODUCTS: Final = 2**26
"""What a pass must have for the axes to be found in a small part of its time."""


def pay(mixture: Mixture, n_rows: float) -> bool:
    """Whether bounds take so much less time than log joints that they may pay."""
    n_components, d = mixture.means.shape
    is_dense = mixture.shape.dense and not mixture.shape.pooled
    is_large = n_rows >= _ROWS and n_rows * n_components * d * d >= _PRODUCTS
    return is_dense and d >= _WIDE and n_components >= _LEAST and is_large


def axes(mixtures: Sequence[Mixture], dtype: Any = np.float64) -> dict[str, Array]:
    """Two axes of each component, and where its mean lies along them.

    Parameters
    ----------
    mixtures : sequence of Mixture
        With a matrix for each component, K in all.
    dtype : dtype
        In which the kernel will compute.

    Returns
    -------
    fields : dict
        Of a `Plan`: `axes`, (⌈K/2⌉, 4 d), as `pack` has those of two components.
        Somewhat shortened: `SLACK` of the squares stands for roundings. And
        `axis_means`, (K, 4): minus the coordinates of the mean, and what those of rows
        may be off by, as a part of their distance from zero, and beyond.
    """
    means = np.concatenate([mixture.means for mixture in mixtures])
    n_components, d = means.shape
    # Where a scatter is no number in range, axes are NaN: nothing is left out then.
    with np.errstate(all="ignore"):
        along = np.concatenate([_along(mixture) for mixture in mixtures])
        coordinates = np.einsum("kda,kd->ka", along, means)
        lengths = np.sqrt(np.einsum("kda,kda->ka", along, along))
    rounding = (d + 3) * np.finfo(dtype).eps
    off = rounding * np.stack([lengths, np.abs(coordinates)]).sum(axis=2)
    # A register tile has both axes of two components.
    in_pairs = np.zeros((stride(n_components, 2), 2, d))
    in_pairs[:n_components] = along.swapaxes(1, 2)
    return {
        "axes": pack(in_pairs.reshape(-1, BAND, d)),
        "axis_means": np.hstack([-coordinates, off.T]),
    }


def _along(mixture: Mixture) -> Array:
    """The axes of a mixture's components, (K, d, 2)."""
    start = mixture.factors @ _start(mixture.n_features)
    axes = mixture.factors @ _unit_vectors(_turned(mixture, start))
    along: Array = np.sqrt(1.0 - SLACK) * axes
    return along


@lru_cache(maxsize=8)
def _start(d: int) -> Array:
    """Two directions that favour nothing."""
    return np.random.default_rng(d).standard_normal((d, 2))


def _turned(mixture: Mixture, vectors: Array) -> Array:
    """Pᵀ S v for vectors (K, d, 2)."""
    weights = mixture.weights / mixture.weights.sum()
    off = mixture.means - mixture.centre
    pooled = np.tensordot(weights, mixture.covariances, axes=1)
    scatter = pooled + (weights * off.T) @ off
    turned: Array = mixture.factors.swapaxes(1, 2) @ (scatter @ vectors)
    return turned


def _unit_vectors(vectors: Array) -> Array:
    """Two orthogonal unit vectors of what two vectors span, (K, d, 2)."""
    first, second = vectors[..., 0], vectors[..., 1]
    first = first / _lengths(first)
    second = second - np.einsum("kd,kd->k", first, second)[:, np.newaxis] * first
    second = second / _lengths(second)
    # Once more: what was taken off may have been nearly all.
    second = second - np.einsum("kd,kd->k", first, second)[:, np.newaxis] * first
    return np.stack([first, second / _lengths(second)], axis=2)


def _lengths(vectors: Array) -> Array:
    lengths: Array = np.linalg.norm(vectors, axis=1, keepdims=True)
    return lengths
