"""Two models beside each other, on the same rows, in one pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self, final

import numpy as np

from daskgmm.data.block import Block
from daskgmm.em.predict import Question
from daskgmm.em.scan import check_finite
from daskgmm.execution.runners import Shards


class Comparison(NamedTuple):
    """Two models on the same rows.

    Attributes
    ----------
    mean, other_mean : float
        Mean log density of a row by each.
    difference : float
        The first less the second.
    standard_error : float
        Of that difference, which is paired: what rows have in common drops out. NaN
        of one row.
    n_rows : float
        Rows, by weight.
    """

    mean: float
    other_mean: float
    difference: float
    standard_error: float
    n_rows: float


@final
@dataclass(frozen=True, slots=True)
class _Differences:
    """Of log densities by two models, by row weight: a monoid under ``+``.

    Deviations from a mean are joined as Chan, Golub and LeVeque (1983) have it, so that
    a difference that is the same in all rows has none.
    """

    weight: float
    log_prob: float
    mean: float
    squares: float

    def __add__(self, other: Self) -> _Differences:
        weight = self.weight + other.weight
        if weight == 0.0:
            return self
        off, share = other.mean - self.mean, other.weight / weight
        return _Differences(
            weight,
            self.log_prob + other.log_prob,
            self.mean + share * off,
            self.squares + other.squares + off**2 * self.weight * share,
        )


def compare(question: Question, other: Question, shards: Shards) -> Comparison:
    """Log densities of all rows by two models, in one pass.

    Parameters
    ----------
    question, other : Question
        For "log_prob".
    shards : Shards
    """
    found: _Differences = shards.reduce(_compare_leaf, (question, other))
    weight = found.weight
    if not weight > 0.0:
        return Comparison(math.nan, math.nan, math.nan, math.nan, 0.0)
    mean, error = found.log_prob / weight, math.nan
    if weight > 1.0:
        error = math.sqrt(found.squares / (weight - 1.0) / weight)
    return Comparison(mean, mean - found.mean, found.mean, error, weight)


def _compare_leaf(
    questions: tuple[Question, Question], blocks: Iterator[Block]
) -> _Differences:
    total = _Differences(0.0, 0.0, 0.0, 0.0)
    for block in blocks:
        check_finite(block)
        one, two = (np.empty(len(block.x)) for _ in questions)
        for question, log_prob in zip(questions, (one, two), strict=True):
            question.into(block.x, log_prob)
        weights = np.ones(len(one)) if block.weights is None else block.weights
        counted = weights > 0.0  # a row without weight is absent, whatever its density
        total += _of_rows(one[counted], two[counted], weights[counted])
        del block  # before another one is read
    return total


def _of_rows(
    one: np.ndarray[tuple[int], np.dtype[np.float64]],
    two: np.ndarray[tuple[int], np.dtype[np.float64]],
    weights: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> _Differences:
    weight = float(weights.sum())
    if weight == 0.0:
        return _Differences(0.0, 0.0, 0.0, 0.0)
    differences = one - two
    mean = float(weights @ differences) / weight
    squares = float(weights @ (differences - mean) ** 2)
    return _Differences(weight, float(weights @ one), mean, squares)
