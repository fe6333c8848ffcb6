"""Mixtures as vectors: there and back, and how long a step is."""

from __future__ import annotations

import numpy as np
from conftest import random_mixture

from daskgmm.mixtures.coordinates import Coordinates

K, D = 3, 4


def dense(mixture, k):
    """The covariance of a component as a matrix."""
    stored = mixture.shape.of_component(mixture.covariances, k)
    return stored if mixture.shape.dense else np.eye(D) * stored


def divergence(of, from_):
    """Kullback and Leibler's, of complete data: of components and rows together."""
    total = of.weights @ np.log(of.weights / from_.weights)
    for k in range(K):
        precision = np.linalg.inv(dense(from_, k))
        ratio, moved = precision @ dense(of, k), of.means[k] - from_.means[k]
        between = np.trace(ratio) - D - np.linalg.slogdet(ratio)[1]
        total += of.weights[k] * 0.5 * (between + moved @ precision @ moved)
    return total


def test_mixtures_come_back(covariance_type):
    rng = np.random.default_rng(0)
    origin, mixture = (random_mixture(rng, covariance_type, K, D) for _ in range(2))
    coordinates = Coordinates(origin)
    np.testing.assert_allclose(coordinates.of(origin), 0.0, atol=1e-14)
    back = coordinates.mixture(coordinates.of(mixture))
    for name in ("weights", "means", "covariances", "factors"):
        np.testing.assert_allclose(
            getattr(back, name), getattr(mixture, name), rtol=1e-12, atol=1e-12
        )


def test_half_the_square_of_a_step_is_its_divergence(covariance_type):
    rng = np.random.default_rng(1)
    origin = random_mixture(rng, covariance_type, K, D)
    coordinates = Coordinates(origin)
    roots = np.sqrt(origin.weights)
    for _ in range(5):
        step = 1e-4 * rng.normal(size=len(coordinates.of(origin)))
        step[:K] -= roots * (roots @ step[:K])  # weights add up to one
        got = divergence(origin, coordinates.mixture(step))
        np.testing.assert_allclose(got, 0.5 * step @ step, rtol=1e-3)
