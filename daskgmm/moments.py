"""Sufficient statistics of a pass: planned, added up over blocks, read out by run."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Protocol, Self, final

import numpy as np
from numpy.typing import NDArray

from daskgmm import kernel
from daskgmm.mixture import Mixture

Array = NDArray[np.float64]

POOLED_BELOW: Final = 1e6
"""The longest whitened row, mean and σ together, for which rows are whitened once.

Whitening about one origin for all components rounds a row to eps times this length.
"""

_SMALL: Final = 2**15
"""Numbers of a block from which on it is worth a call of its own."""

_EMPTY: Final = kernel.readonly(np.empty(0))
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
        return int(self.plan.means.shape[1])

    def scratch(self) -> Array:
        """Memory for the kernel to work in, this thread's own.

        It is kept from call to call: new memory would cost a page fault for each
        4 kB, as much time as the work on a small block.
        """
        size = kernel.scratch_size(self.plan)
        if getattr(_thread, "scratch", _EMPTY).size < size:
            _thread.scratch = np.zeros(size)
        scratch: Array = _thread.scratch
        return scratch

    @cached_property
    def layout(self) -> dict[str, tuple[int, ...]]:
        """Shapes of `kernel.Sums`, field by field."""
        plan, d = self.plan, self.n_features
        n_runs, stride = len(plan.starts) - 1, kernel.stride
        n_components, n_dense = len(plan.means), len(plan.dense)
        n_pooled = len(plan.pooled)
        is_diagonal = n_dense == n_pooled == 0
        n_pooled_components = n_components if n_pooled else 0
        return {
            "mass": (n_components - n_pooled_components,),
            "drift": (n_components - n_pooled_components, d),
            "dense": (n_dense, d, stride(d)),
            "diagonal": (n_components if is_diagonal else 0, d),
            "raw": (n_pooled_components, stride(d + 1)),
            "residual": (n_pooled, d, stride(d)),
            "shared": (_shared_size(plan.starts) if n_pooled else 0,),
            "log_prob": (n_runs,),
            "weight": (1,),
        }

    @cached_property
    def _places(self) -> list[tuple[slice, tuple[int, ...]]]:
        """Where each field stands in a flat buffer, and its shape."""
        places, start = [], 0
        for name in kernel.Sums._fields:
            shape = self.layout[name]
            size = math.prod(shape)
            places.append((slice(start, start + size), shape))
            start += size
        return places

    def views(self, buffer: Array) -> kernel.Sums:
        """The fields of `kernel.Sums` in one flat buffer, (size,)."""
        return kernel.Sums._make(
            buffer[place].reshape(shape) for place, shape in self._places
        )

    def zeros(self) -> Array:
        """A buffer for sums."""
        return np.zeros(self._places[-1][0].stop)


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

    @property
    def size(self) -> int:
        """Numbers in all rows, n d, or a few more."""

    def parts(self) -> Iterator[kernel.Part]:
        """Rows and weights in parts, which end where the kernel's tiles do."""


def plan(mixtures: Sequence[Mixture]) -> EStep:
    """Lay out what the kernel needs of mixtures of one shape and number of features."""
    shape, d = mixtures[0].shape, mixtures[0].n_features
    means = np.concatenate([m.means for m in mixtures])
    fields: dict[str, Any] = {
        "starts": np.cumsum([0, *(m.n_components for m in mixtures)], dtype=np.int64),
        "offsets": np.concatenate([m.log_normalisers() for m in mixtures]),
        "means": means,
        "nothing": np.zeros(len(means)),
        "dense": np.empty((0, 0)),
        "pooled": np.empty((0, 0)),
        "origins": np.empty((0, d)),
        "mixing": np.empty(0),
        "centres": np.empty((0, d)),
        "scales": np.empty((0, d)),
    }
    if shape.pooled and all(map(_can_be_pooled, mixtures)):
        return EStep(kernel.Plan(**{**fields, **_pooled(mixtures)}))
    factors = np.concatenate(
        [shape.kernel_factors(m.factors, m.n_components, d) for m in mixtures]
    )
    form = (
        {"dense": kernel.pack_triangular(factors)}
        if shape.dense
        else {"centres": means, "scales": factors}
    )
    return EStep(kernel.Plan(**{**fields, **form}))


def _pooled_factor(mixture: Mixture) -> Array:
    """Uᵀ of the one precision, (d, d)."""
    shape, d = mixture.shape, mixture.n_features
    factor: Array = shape.kernel_factors(mixture.factors, 1, d)[0]
    return factor


def _can_be_pooled(mixture: Mixture) -> bool:
    """Whether whitening all rows about one origin is as exact, and no more work."""
    n_components, d = mixture.means.shape
    if n_components > d * (d + 1):
        return False  # products of responsibilities are then more than of features
    deviations = np.sqrt(np.diagonal(mixture.covariances))
    sizes = np.abs(mixture.means - mixture.centre) + deviations
    whitened = np.linalg.norm(sizes @ np.abs(_pooled_factor(mixture)).T, axis=1)
    # Written so that NaN and infinity are not pooled.
    return bool((whitened <= POOLED_BELOW).all())


def _pooled(mixtures: Sequence[Mixture]) -> dict[str, Array]:
    """The fields of a plan of the pooled form."""
    factors = np.stack([_pooled_factor(mixture) for mixture in mixtures])
    about = [mixture.means - mixture.centre for mixture in mixtures]
    centres = [m @ factor.T for m, factor in zip(about, factors, strict=True)]
    return {
        "pooled": kernel.pack_triangular(factors),
        "origins": np.stack([mixture.centre for mixture in mixtures]),
        "mixing": np.concatenate([kernel.pack(m.T[np.newaxis])[0] for m in about]),
        "centres": np.concatenate(centres),
        "scales": np.ones_like(np.concatenate(centres)),
    }


def e_step(message: EStep, blocks: Iterator[Block]) -> Sums:
    """The kernel of an EM pass: sums over the blocks of a leaf, for every run."""
    buffer = message.zeros()
    sums, scratch = message.views(buffer), message.scratch()
    for x, weights in _pieces(blocks):
        kernel.accumulate(
            message.compiled_plan,
            kernel.as_rows(x),
            _EMPTY if weights is None else kernel.readonly(weights),
            sums,
            scratch,
        )
    return Sums(buffer)


def _pieces(blocks: Iterator[Block]) -> Iterator[kernel.Part]:
    """Blocks in parts, and small ones put together: a call costs more than a copy."""
    small: list[Block] = []
    size = 0
    for block in blocks:
        if not small and block.size >= _SMALL:
            yield from block.parts()
            continue
        small.append(block)
        size += block.size
        if size >= _SMALL:
            yield _joined(small)
            small, size = [], 0
    if small:
        yield _joined(small)


def _joined(blocks: Sequence[Block]) -> kernel.Part:
    if len(blocks) == 1:
        return blocks[0].x, blocks[0].weights
    weights = [block.weights for block in blocks if block.weights is not None]
    rows = np.concatenate([block.x for block in blocks])
    return rows, np.concatenate(weights) if weights else None


def moments(message: EStep, sums: Sums, mixtures: Sequence[Mixture]) -> list[Moments]:
    """Each run's moments, from the sums of a whole pass."""
    views, starts = message.views(sums.buffer), message.plan.starts
    read = _read_pooled if len(message.plan.pooled) else _read
    return [
        Moments(
            *read(message.plan, views, mixture, run, slice(*starts[run : run + 2])),
            float(views.log_prob[run]),
            float(views.weight[0]),
        )
        for run, mixture in enumerate(mixtures)
    ]


def _read(
    _plan: kernel.Plan, sums: kernel.Sums, mixture: Mixture, _run: int, its: slice
) -> tuple[Array, Array, Array]:
    """Mass, drift and scatter of a run of the dense or the diagonal form."""
    dense = sums.dense[its, :, : mixture.n_features]
    scatter = mixture.shape.kept(dense, sums.diagonal[its])
    return sums.mass[its], sums.drift[its], scatter


def _shared_size(starts: NDArray[np.int64]) -> int:
    """Numbers of `kernel.Sums.shared` for runs whose components start there."""
    return sum(int(n) * kernel.stride(int(n)) for n in np.diff(starts))


def _read_pooled(
    plan: kernel.Plan, sums: kernel.Sums, mixture: Mixture, run: int, its: slice
) -> tuple[Array, Array, Array]:
    """The same of the pooled form."""
    shape, means = mixture.shape, mixture.means
    n_components, d = means.shape
    raw = sums.raw[its]
    mass = raw[:, d]
    drift = raw[:, :d] - mass[:, np.newaxis] * (means - plan.origins[run])
    scatter = shape.kept(sums.residual[run : run + 1, :, :d], np.empty((0, d)))
    # Those of earlier runs come before.
    first, last = (_shared_size(plan.starts[: run + n]) for n in (1, 2))
    shared = sums.shared[first:last].reshape(n_components, -1)
    for k in range(1, n_components):
        scatter[0] += shape.scatter(means[:k] - means[k], shared[k, :k])
    return mass, drift, scatter
