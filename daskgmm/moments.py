"""Sufficient statistics of a pass: planned, added up over blocks, read out by run."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Protocol, Self, final

import numpy as np
from numpy.typing import NDArray

from daskgmm import kernel
from daskgmm.covariance import CovarianceShape
from daskgmm.mixture import Mixture

Array = NDArray[np.float64]

CENTRED_ABOVE: Final = 1e7
"""A component whose κ (`CovarianceShape.cancellation`) is larger is not lifted.

The largest error of a lifted row's log density, as a share of max(1, |log p|), was
measured over all shapes, d = 1 to 64, strong correlations and far rows: 1.2e-9 with
this limit, 0.5 eps κ; 9e-11 with 1e6, 2.5e-8 with 1e8.
"""

_EMPTY: Final = np.empty(0)
_thread: Final = threading.local()


@final
@dataclass(frozen=True)
class EStep:
    """A pass's message: the kernel's plan for the mixtures of all live runs.

    Pickles as a few small arrays; a worker needs nothing else.
    """

    plan: kernel.Plan

    @cached_property
    def compiled_plan(self) -> kernel.Plan:
        """The plan with arrays of the one kind that the kernel is compiled for."""
        return kernel.Plan._make(map(kernel.readonly, self.plan))

    @property
    def n_features(self) -> int:
        """Number of features, d."""
        return len(self.plan.origin)

    def scratch(self) -> Array:
        """Memory for the kernel to work in, this thread's own.

        It is kept from call to call: new memory would cost a page fault for each
        4 kB, as much time as the work on a small block.
        """
        size = kernel.scratch_size(self.plan)
        if getattr(_thread, "scratch", _EMPTY).size < size:
            _thread.scratch = np.empty(size)
        scratch: Array = _thread.scratch
        return scratch

    @cached_property
    def layout(self) -> list[tuple[int, ...]]:
        """Shapes of `kernel.Sums`, field by field."""
        plan = self.plan
        n_runs, d = len(plan.starts) - 1, self.n_features
        n_centred = len(plan.centred)
        n_dense = len(plan.dense)
        common = d if len(plan.common) else 0
        return [
            plan.natural.shape,
            (common, common),
            (n_centred,),
            (n_centred, d),
            (n_dense, d, d),
            (n_centred if n_dense == 0 else 0, d),
            (n_runs,),
            (1,),
        ]

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """Where each field ends in a flat buffer."""
        return np.cumsum([np.prod(shape, dtype=np.int64) for shape in self.layout])

    def views(self, buffer: Array) -> kernel.Sums:
        """The fields of `kernel.Sums` in one flat buffer, (size,)."""
        parts = np.split(buffer, self._ends[:-1])
        shapes = self.layout
        return kernel.Sums(
            *(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
        )

    def zeros(self) -> Array:
        """A buffer for sums."""
        return np.zeros(self._ends[-1])


@final
@dataclass(frozen=True, slots=True)
class Sums:
    """Kernel sums over some blocks, flat: a monoid under ``+``."""

    buffer: Array

    def __add__(self, other: Self) -> Sums:
        return Sums(self.buffer + other.buffer)


@final
@dataclass(frozen=True, slots=True)
class Moments:
    """Sufficient statistics of one run, about the means m that were sent out.

    r are responsibilities times row weights, in whichever form they were added up.

    Attributes
    ----------
    mass : ndarray of shape (K,)
        Σr.
    drift : ndarray of shape (K, d)
        Σr (x - m).
    scatter : ndarray of shape (K, S)
        Σr (x - m)(x - m)ᵀ, as the covariance shape keeps it.
    log_prob : float
        Σ log p(x), by row weight.
    weight : float
        Sum of the row weights.
    """

    mass: Array
    drift: Array
    scatter: Array
    log_prob: float
    weight: float


class Block(Protocol):
    """What a kernel needs of a block."""

    @property
    def x(self) -> NDArray[Any]:
        """Rows, (n, d), float32 or float64."""

    @property
    def weights(self) -> Array | None:
        """Row weights, (n,), or None for ones."""


def plan(mixtures: Sequence[Mixture], origin: Array) -> EStep:
    """Choose each component's form and lay out what the kernel needs.

    Parameters
    ----------
    mixtures : sequence of Mixture
        Of one shape and number of features.
    origin : ndarray of shape (d,)
        Where lifted rows are measured from: near the middle of the data.
    """
    shape = mixtures[0].shape
    forms = [_is_centred(mixture, origin) for mixture in mixtures]
    centred = np.concatenate(forms)
    d = len(origin)
    factors = np.concatenate(
        [shape.kernel_factors(m.factors, m.n_components, d) for m in mixtures]
    )[centred]
    means = np.concatenate([m.means for m in mixtures])[centred]
    offsets = np.concatenate([m.log_normalisers() for m in mixtures])[centred]
    lifted = np.flatnonzero(~centred)
    left, right = shape.quadratic_features(d)
    return EStep(
        kernel.Plan(
            left=np.concatenate([np.zeros(d + 1, dtype=np.int64), left]),
            right=np.concatenate([np.arange(d + 1), right]),
            origin=np.ascontiguousarray(origin, dtype=np.float64),
            starts=np.cumsum([0, *(m.n_components for m in mixtures)], dtype=np.int64),
            lifted=lifted,
            natural=_natural(mixtures, origin)[:, lifted],
            common=_common_forms(mixtures, forms),
            centred=np.flatnonzero(centred),
            means=means,
            dense=kernel.pack_factors(factors) if shape.dense else np.empty((0, 0)),
            diagonal=np.empty((0, d)) if shape.dense else factors,
            offsets=offsets,
        )
    )


def _is_centred(mixture: Mixture, origin: Array) -> NDArray[np.bool_]:
    """Whether each component, (K,), loses too much if lifted."""
    shape = mixture.shape
    distances = np.abs(mixture.means - origin)
    # Written so that NaN and infinity are centred.
    centred = ~(shape.cancellation(mixture.factors, distances) <= CENTRED_ABOVE)
    # A common form is lifted for all components or for none.
    return np.full_like(centred, centred.any()) if shape.pooled else centred


def _natural(mixtures: Sequence[Mixture], origin: Array) -> Array:
    """Coefficients of the features, (D, K).

    The features are 1, the row about the origin, and the shape's quadratic ones.
    """
    of_runs = []
    for mixture in mixtures:
        quadratic, linear, constant = mixture.shape.natural(
            mixture.factors, mixture.means - origin
        )
        quadratic = np.broadcast_to(quadratic, (len(linear), quadratic.shape[1]))
        constant = constant + mixture.log_normalisers()
        of_runs.append(np.column_stack([constant, linear, quadratic]))
    return np.concatenate(of_runs).T


def _common_forms(
    mixtures: Sequence[Mixture], forms: Sequence[NDArray[np.bool_]]
) -> Array:
    """Transposed factor of each run's common form, (R, d, d); zero if centred."""
    shape, d = mixtures[0].shape, mixtures[0].n_features
    if not shape.pooled or all(centred.all() for centred in forms):
        return np.empty((0, d, d))
    return np.stack(
        [
            shape.kernel_factors(m.factors, 1, d)[0] * (not centred.any())
            for m, centred in zip(mixtures, forms, strict=True)
        ]
    )


def e_step(message: EStep, blocks: Iterator[Block]) -> Sums:
    """The kernel of an EM pass: sums over the blocks of a leaf, for every run."""
    buffer = message.zeros()
    sums = message.views(buffer)
    scratch = message.scratch()
    for block in blocks:
        weights = _EMPTY if block.weights is None else block.weights
        kernel.accumulate(
            message.compiled_plan,
            kernel.readonly(block.x),
            kernel.readonly(weights),
            sums,
            scratch,
        )
    return Sums(buffer)


def moments(message: EStep, sums: Sums, mixtures: Sequence[Mixture]) -> list[Moments]:
    """Each run's moments, from the sums of a whole pass."""
    views = message.views(sums.buffer)
    starts = message.plan.starts
    return [
        _moments_of_run(message.plan, views, mixture, run, starts[run])
        for run, mixture in enumerate(mixtures)
    ]


def _moments_of_run(
    plan: kernel.Plan, sums: kernel.Sums, mixture: Mixture, run: int, start: int
) -> Moments:
    shape, means, d = mixture.shape, mixture.means, mixture.n_features
    n_components = mixture.n_components
    mass, drift = np.empty(n_components), np.empty((n_components, d))
    rows = slice(start, start + n_components)
    lifted = np.ones(n_components, dtype=bool)
    here = _within(plan.centred, rows)
    centred = plan.centred[here] - start
    lifted[centred] = False
    scatter = np.zeros((1 if shape.pooled else n_components, _scatter_length(shape, d)))
    if lifted.any():
        about_origin = sums.lifted[:, _within(plan.lifted, rows)].T
        mass[lifted] = about_origin[:, 0]
        raw = about_origin[:, 1 : d + 1]
        shift = means[lifted] - plan.origin
        drift[lifted] = raw - mass[lifted, np.newaxis] * shift
        second = (
            shape.kept(sums.common[np.newaxis], np.empty((0, d)))
            if shape.pooled
            else about_origin[:, d + 1 :]
        )
        scatter[... if shape.pooled else lifted] = shape.recentre(
            second, raw, mass[lifted], shift
        )
    if len(centred):
        mass[centred], drift[centred] = sums.mass[here], sums.drift[here]
        about_means = shape.kept(sums.dense[here], sums.diagonal[here])
        scatter[... if shape.pooled else centred] = about_means
    return Moments(
        mass, drift, scatter, float(sums.log_prob[run]), float(sums.weight[0])
    )


def _within(numbers: NDArray[np.int64], components: slice) -> slice:
    """Where those components' numbers stand in a sorted list of numbers."""
    first, last = np.searchsorted(numbers, [components.start, components.stop])
    return slice(int(first), int(last))


def _scatter_length(shape: CovarianceShape, n_features: int) -> int:
    nothing = np.zeros((1, n_features))
    return len(shape.outer(nothing, nothing)[0])
