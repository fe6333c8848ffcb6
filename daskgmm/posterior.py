"""What a fitted mixture says of rows: labels, responsibilities, log densities."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Self, final

import dask.array as da
import numpy as np
from dask.system import CPU_COUNT
from numpy.typing import NDArray

from daskgmm import kernel
from daskgmm.blas import single_threaded_blas
from daskgmm.data.columns import float_dtype
from daskgmm.mixture import Mixture
from daskgmm.moments import EStep, plan
from daskgmm.reduction import Shards
from daskgmm.sources import Block, as_block, block_rows
from daskgmm.survey import check_finite

Kind = Literal["labels", "responsibilities", "log_prob"]


@final
@dataclass(frozen=True)
class Question:
    """One kind of question to one mixture of K components."""

    message: EStep
    kind: Kind
    n_components: int

    def dtype(self, of_rows: np.dtype[Any]) -> np.dtype[Any]:
        """The answer's dtype for rows of a dtype."""
        return np.dtype(np.int64) if self.kind == "labels" else float_dtype(of_rows)

    def shape(self, n_rows: int) -> tuple[int, ...]:
        """The answer's shape."""
        if self.kind == "responsibilities":
            return n_rows, self.n_components
        return (n_rows,)


def ask(mixture: Mixture, kind: Kind) -> Question:
    """Prepare a question."""
    return Question(plan([mixture]), kind, mixture.n_components)


def answer_into(question: Question, x: NDArray[Any], out: NDArray[Any]) -> None:
    """Answer for a block of rows, (n, d), float32 or float64, into `out`."""
    wanted = out if out.dtype in (np.float64, np.int64) else np.empty(out.shape)
    kernel.evaluate(
        question.message.compiled_plan,
        kernel.as_rows(x),
        wanted if question.kind == "labels" else np.empty(0, dtype=np.int64),
        wanted
        if question.kind == "responsibilities"
        else np.empty((0, question.n_components)),
        wanted if question.kind == "log_prob" else np.empty(0),
        question.message.scratch(),
    )
    if wanted is not out:
        out[:] = wanted


def answer(question: Question, x: NDArray[Any]) -> NDArray[Any]:
    """Answer for rows in memory, on this process's threads."""
    out = np.empty(question.shape(len(x)), dtype=question.dtype(x.dtype))
    size = block_rows(*x.shape)
    starts = range(0, len(x), size)

    def work(start: int) -> None:
        rows = slice(start, start + size)
        answer_into(question, x[rows], out[rows])

    with single_threaded_blas():
        if len(starts) < 2:
            for start in starts:
                work(start)
        else:
            with ThreadPoolExecutor(min(CPU_COUNT, len(starts))) as pool:
                list(pool.map(work, starts))
    return out


def answer_block(
    x: NDArray[Any], question: Question, block_id: tuple[int, ...] = (0,)
) -> NDArray[Any]:
    """Answer for one block inside a task.

    Raises
    ------
    DataError
        Naming the block, row and column of a NaN or infinity.
    """
    block = as_block(block_id[0], x, question.message.n_features)
    check_finite(block)
    out = np.empty(question.shape(len(block.x)), dtype=question.dtype(block.x.dtype))
    with single_threaded_blas():
        answer_into(question, block.x, out)
    return out


def answer_lazily(question: Question, x: da.Array) -> da.Array:
    """Answer for a Dask array of rows in one column of chunks: a Dask array like it."""
    dtype = question.dtype(x.dtype)
    wide = question.kind == "responsibilities"
    answers: da.Array = da.map_blocks(
        answer_block,
        x,
        question,
        dtype=dtype,
        drop_axis=[] if wide else 1,
        chunks=(x.chunks[0], (question.n_components,)) if wide else (x.chunks[0],),
        meta=np.empty((0,) * (2 if wide else 1), dtype=dtype),
    )
    return answers


@final
@dataclass(frozen=True, slots=True)
class Score:
    """Sum of the log densities of some rows, by weight: a monoid under ``+``."""

    log_prob: float
    weight: float

    def __add__(self, other: Self) -> Score:
        return Score(self.log_prob + other.log_prob, self.weight + other.weight)

    @property
    def mean(self) -> float:
        """Mean log density of a row."""
        return self.log_prob / self.weight

    def aic(self, n_parameters: int) -> float:
        """Akaike's information criterion of a mixture with so many parameters."""
        return -2.0 * self.log_prob + 2.0 * n_parameters

    def bic(self, n_parameters: int) -> float:
        """Bayesian information criterion of a mixture with so many parameters."""
        return -2.0 * self.log_prob + n_parameters * math.log(self.weight)


def score(mixture: Mixture, shards: Shards) -> Score:
    """Log density of all rows, in one pass."""
    result: Score = shards.reduce(_score_leaf, ask(mixture, "log_prob"))
    return result


def _score_leaf(question: Question, blocks: Iterator[Block]) -> Score:
    total = Score(0.0, 0.0)
    for block in blocks:
        check_finite(block)
        log_prob = np.empty(len(block.x), dtype=question.dtype(block.x.dtype))
        answer_into(question, block.x, log_prob)
        total += _score_of(log_prob, block.weights)
    return total


def _score_of(log_prob: NDArray[Any], weights: NDArray[np.float64] | None) -> Score:
    if weights is None:
        # In the rows' own dtype, as scikit-learn's mean is.
        return Score(float(log_prob.sum()), float(len(log_prob)))
    # A row without weight is absent, whatever its density.
    counted = weights > 0
    return Score(float(weights[counted] @ log_prob[counted]), float(weights.sum()))
