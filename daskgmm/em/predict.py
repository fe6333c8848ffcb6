"""What a fitted mixture says of rows: labels, responsibilities, log densities."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, final
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from daskgmm import steps
from daskgmm.data.block import Block, as_block, block_rows
from daskgmm.data.columns import float_dtype
from daskgmm.data.gaps import Nan
from daskgmm.data.inputs import Axis
from daskgmm.em.scan import check_finite
from daskgmm.execution.runners import Shards
from daskgmm.execution.threads import n_threads
from daskgmm.kernel import passes
from daskgmm.mixtures.covariance import CovarianceShape
from daskgmm.mixtures.criteria import Fit
from daskgmm.mixtures.e_step import EStep, of_few, plan, plan_for_few
from daskgmm.mixtures.gaussian import Mixture

Kind = Literal["labels", "responsibilities", "log_prob"]


class RowQuestion(ABC):
    """A `RowFunction`: rows are checked, and asked about on as many threads as may be.

    Rows with NaN are an error, or have no answer if they are to be skipped.

    Attributes
    ----------
    nan : {'error', 'skip'}
    """

    nan: Nan

    @property
    @abstractmethod
    def n_features(self) -> int:
        """Features that rows have."""

    @property
    @abstractmethod
    def n_products(self) -> int:
        """Products that an answer for a row takes, about."""

    @property
    def axes(self) -> tuple[Axis, ...]:
        """What an answer for a row has."""
        return ()

    def dtype(self, of_rows: np.dtype[Any]) -> np.dtype[Any]:
        """The answer's dtype for rows of a dtype."""
        return float_dtype(of_rows)

    def shape(self, n_rows: int) -> tuple[int, ...]:
        """The answer's shape."""
        return n_rows, *(axis.length for axis in self.axes)

    @property
    def nothing(self) -> float:
        """The answer for a row that has none."""
        return np.nan

    @abstractmethod
    def into(self, x: NDArray[Any], out: NDArray[Any]) -> None:
        """Answer for a block of finite rows, (n, d), float32 or float64, into `out`."""

    def __call__(self, x: Any, index: int = 0) -> NDArray[Any]:
        """Answer for one block inside a task.

        Raises
        ------
        DataError
            Naming the block, row and column of a NaN or infinity.
        """
        if not (isinstance(x, np.ndarray) and x.ndim == 2):
            as_block(index, x, self.n_features)  # says what is wrong
        out = np.empty(self.shape(len(x)), dtype=self.dtype(x.dtype))
        _answer_rows(self, x, out, index)
        return _masked_like(x, out)

    def in_memory(self, x: NDArray[Any]) -> NDArray[Any]:
        """Answer for rows in memory, on this process's threads."""
        return answer(self, x)


@final
@dataclass(frozen=True)
class Question(RowQuestion):
    """One kind of question to one mixture of K components."""

    message: EStep
    kind: Kind
    n_components: int
    nan: Nan = "error"

    @property
    def n_features(self) -> int:
        """Features that rows have."""
        return self.message.n_features

    @property
    def n_products(self) -> int:
        """Products that an answer for a row takes, about."""
        return self.message.n_factors

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Of responsibilities, the components."""
        if self.kind == "responsibilities":
            return (Axis("component", self.n_components),)
        return ()

    def dtype(self, of_rows: np.dtype[Any]) -> np.dtype[Any]:
        """Labels are int64."""
        return np.dtype(np.int64) if self.kind == "labels" else float_dtype(of_rows)

    @property
    def nothing(self) -> float:
        """NaN, or of labels -1."""
        return -1 if self.kind == "labels" else np.nan

    def into(self, x: NDArray[Any], out: NDArray[Any]) -> None:
        """Answer for a block of finite rows, by the compiled kernel."""
        wanted = out if out.dtype in (np.float64, np.int64) else np.empty(out.shape)
        message, outputs = self.message, {str(self.kind): wanted}
        passes.evaluate(*message.given(x), message.scratch(), outputs)
        if self.kind == "log_prob" and message.bases:
            wanted += message.bases[0]
        if wanted is not out:
            out[:] = wanted


_FEW: Final = 32
"""Rows up to which a mixture's matrices are not packed to ask about them."""
_FEW_OF_LARGE: Final = 128
"""The same where the packed ones are too large to be kept."""
_FEW_OF_POOLED: Final = 16
"""The same where there is one matrix."""
_MOST_KEPT: Final = 2**19
"""Numbers of a plan that is kept, at the most."""
_STRIP: Final = 64
"""Rows of a triangle that are compared at once."""
_FOR_THREADS: Final = 2**25
"""Products of rows with numbers of a plan that are worth more than one thread."""


@final
@dataclass(frozen=True, slots=True)
class _Kept:
    """A plan, and copies of all that it depends on.

    Arrays can be written to, and nobody is told: so they are compared at each question.
    """

    message: EStep
    single: bool
    shape: CovarianceShape
    numbers: tuple[NDArray[np.float64], ...]

    def is_of(self, mixture: Mixture, *, single: bool) -> bool:
        """Whether the plan is the one that would be made of a mixture."""
        same_kind = mixture.shape is self.shape and single is self.single
        return same_kind and all(map(np.array_equal, self.numbers, _numbers(mixture)))


_kept: Final[WeakKeyDictionary[Any, _Kept]] = WeakKeyDictionary()
"""By whoever has the mixture; nothing of it is copied or pickled with them."""


def _numbers(mixture: Mixture) -> tuple[NDArray[np.float64], ...]:
    """All numbers that a plan depends on."""
    shape, factors = mixture.shape, mixture.factors
    # Their size decides whether all rows are whitened at once.
    spread = (np.diagonal(mixture.covariances),) if shape.pooled else ()
    # Of triangles what is not zero, as it takes longer to read them than to answer.
    starts = range(0, mixture.n_features, _STRIP) if shape.dense else ()
    strips = [factors[..., i : i + _STRIP, i:] for i in starts] or [factors]
    logs = () if mixture.log_weights is None else (mixture.log_weights,)
    return mixture.weights, mixture.means, *logs, *spread, *strips


def ask(
    mixture: Mixture,
    kind: Kind,
    *,
    n_rows: int | None = None,
    owner: Any = None,
    nan: Nan = "error",
    single: bool = False,
) -> Question:
    """Prepare a question.

    Parameters
    ----------
    mixture : Mixture
    kind : {'labels', 'responsibilities', 'log_prob'}
    n_rows : int, optional
        How many rows will be asked about, if that is known and the question stays in
        this process.
    owner : object, optional
        Who has the mixture, and may ask again: what can be kept is kept as long as it.
    nan : {'error', 'skip'}
        What is done about rows with NaN.
    single : bool
        Whether single precision may answer, where it is exact enough.
    """
    message = _message(mixture, n_rows, owner, single=single)
    return Question(message, kind, mixture.n_components, nan)


def _message(
    mixture: Mixture, n_rows: int | None, owner: Any, *, single: bool
) -> EStep:
    n_asked = math.inf if n_rows is None else n_rows
    # Packed, a triangle is left of each matrix.
    can_be_kept = mixture.factors.size // 2 <= _MOST_KEPT
    if n_asked <= (_FEW if can_be_kept else _FEW_OF_LARGE):
        unpacked = plan_for_few(mixture)
        if unpacked is not None:
            return unpacked
    message = _kept_or_new(mixture, owner, single=single)
    return of_few(message, mixture) if n_asked <= _FEW_OF_POOLED else message


def _kept_or_new(mixture: Mixture, owner: Any, *, single: bool) -> EStep:
    """The plan of all components, packed."""
    kept = None if owner is None else _kept.get(owner)
    if kept is not None and kept.is_of(mixture, single=single):
        return kept.message
    message = plan(mixture, single=single)
    if owner is not None and sum(map(np.size, message.plan)) <= _MOST_KEPT:
        copies = tuple(numbers.copy() for numbers in _numbers(mixture))
        _kept[owner] = _Kept(message, single, mixture.shape, copies)
    return message


def _answer_rows(
    question: RowQuestion,
    x: NDArray[Any],
    out: NDArray[Any],
    index: int = 0,
    cut: tuple[int, int] | None = None,
) -> None:
    """Answer for a block of real numbers of any dtype, (n, d), into `out`.

    Raises
    ------
    DataError
        Naming the place of a NaN, if such rows are not skipped, or infinity.
    """
    block = as_block(index, x, question.n_features, nan=question.nan, cut=cut)
    check_finite(block)
    if block.numbers is None:
        question.into(block.x, out)
        return
    some = np.empty(question.shape(len(block.x)), dtype=out.dtype)
    question.into(block.x, some)
    out[:] = question.nothing
    out[block.numbers] = some


def answer(question: RowQuestion, x: NDArray[Any]) -> NDArray[Any]:
    """Answer for rows in memory, on this process's threads.

    Errors as of a question that is called.
    """
    out = np.empty(question.shape(len(x)), dtype=question.dtype(x.dtype))
    size = block_rows(*x.shape)
    is_much = len(x) * question.n_products > _FOR_THREADS
    most = n_threads() if is_much or len(x) > size else 1
    if is_much:
        size = min(size, -(-len(x) // most))
    starts = range(0, len(x), size)
    coming = iter(starts)

    def work() -> None:
        for start in coming:
            rows = slice(start, start + size)
            _answer_rows(question, x[rows], out[rows], cut=(start, 0))

    n_others = min(most, len(starts)) - 1
    if n_others < 1:
        work()
        return _masked_like(x, out)
    with ThreadPoolExecutor(n_others) as pool:
        others = [pool.submit(work) for _ in range(n_others)]
        work()  # this thread has its scratch memory at hand
        for other in others:
            other.result()
    return _masked_like(x, out)


def _masked_like(x: NDArray[Any], answers: NDArray[Any]) -> NDArray[Any]:
    """Answers for rows, of which those are masked that have a masked number."""
    if not isinstance(x, np.ma.MaskedArray):
        return answers
    mask = np.ma.getmaskarray(x).any(axis=1)
    wide = mask.reshape(-1, *(1 for _ in answers.shape[1:]))
    masked = np.ma.MaskedArray(answers, np.broadcast_to(wide, answers.shape))
    return masked


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
        return self._fit(n_parameters).aic

    def bic(self, n_parameters: int) -> float:
        """Bayesian information criterion of a mixture with so many parameters."""
        return self._fit(n_parameters).bic

    def _fit(self, n_parameters: int) -> Fit:
        return Fit(self.log_prob, self.weight, math.nan, n_parameters)


def score_block(
    question: Question, x: NDArray[Any], weights: NDArray[np.float64] | None
) -> Score:
    """The same as `score` of rows in memory that make one block."""
    block = as_block(0, x, question.message.n_features, weights, question.nan, (0, 0))
    check_finite(block)
    return _score_of(answer(question, block.x), block.weights)


def score(question: Question, shards: Shards) -> Score:
    """Log density of all rows, in one pass, by a question for "log_prob"."""
    steps.begin("scoring rows")
    result: Score = shards.reduce(_score_leaf, question)
    return result


def _score_leaf(question: Question, blocks: Iterator[Block]) -> Score:
    total = Score(0.0, 0.0)
    for block in blocks:
        check_finite(block)
        log_prob = np.empty(len(block.x), dtype=question.dtype(block.x.dtype))
        question.into(block.x, log_prob)
        total += _score_of(log_prob, block.weights)
        del block  # before another one is read
    return total


def _score_of(log_prob: NDArray[Any], weights: NDArray[np.float64] | None) -> Score:
    if weights is None:
        # In the rows' own dtype, as scikit-learn's mean is.
        return Score(float(log_prob.sum()), float(len(log_prob)))
    # A row without weight is absent, whatever its density.
    counted = weights > 0
    return Score(float(weights[counted] @ log_prob[counted]), float(weights.sum()))
