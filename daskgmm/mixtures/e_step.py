"""The E-step of a pass: planned, added up over blocks, read out by mixture."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any, Final, Generic, Protocol, Self, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from daskgmm.kernel import passes, tile
from daskgmm.kernel.layout import (
    Columns,
    Part,
    Plan,
    RowView,
    Sums,
    as_rows,
    is_isotropic,
    pack,
    pack_triangular,
    readonly,
    sums_ends,
    sums_in,
    triangle,
)
from daskgmm.mixtures import bounds
from daskgmm.mixtures.covariance import CovarianceShape
from daskgmm.mixtures.gaussian import Mixture
from daskgmm.mixtures.single import (
    about_shift,
    are_exact_in_single,
    base_of,
    can_stand_apart,
    exact_means,
    in_single,
    is_exact_in_single,
    is_measured_from_one_point,
    shift_of,
)
from daskgmm.mixtures.sufficient_statistics import Moments, moved

Array = NDArray[np.float64]

POOLED_BELOW: Final = 1e6
"""The longest whitened row, mean and σ together, for which rows are whitened once.

Whitening about one origin for all components rounds a row to eps times this length.
"""

NATURAL_BELOW: Final = 100.0
"""The longest whitened row, mean and σ together, whose distance is made of products.

Densities and scatters are rounded to eps times its square.
"""
MIN_NATURAL: Final = 4
"""Components and features from which on products pay where features have one λ,"""
MIN_GENERAL: Final = 16
"""and components where they do not."""

_LARGE: Final = 2**16
"""Numbers in the matrices of a mixture from which on it is work to pack them."""
_SMALL: Final = 2**15
"""Numbers of a block from which on it is worth a call of its own."""

_EMPTY: Final = np.empty(0)
_KEPT: Final = 2**19
"""Numbers of sums whose memory is kept, at the most."""
_thread: Final = threading.local()


@final
@dataclass(frozen=True)
class EStep:
    """The kernel's plan for mixtures of one form.

    Pickles as a few small arrays; a worker needs nothing else.

    Attributes
    ----------
    plan : Plan
    bases : tuple of float
        What the log densities of each run are more than the plan says.
    """

    plan: Plan
    bases: tuple[float, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        """Nothing travels that follows from the plan: some of it is this machine's."""
        return EStep, (self.plan, self.bases)

    @property
    def is_single(self) -> bool:
        """Whether it is done in single precision."""
        return bool(self.plan.means.dtype == np.float32)

    def given(self, x: NDArray[Any] | Columns) -> tuple[Plan, RowView]:
        """What the kernel takes for some rows.

        In single precision, of rows that are not float32, what is left is rounded.
        """
        if not self.is_single or _dtype(x) == np.float32:
            return self.compiled_plan, as_rows(x)
        rows = x.array() if isinstance(x, Columns) else x
        plan, shift = self._about_shift
        return plan, as_rows((rows - shift).astype(np.float32))

    @cached_property
    def _about_shift(self) -> tuple[Plan, Array]:
        """The plan for rows that are measured from some point already, and that."""
        plan, point = about_shift(self.plan)
        return Plan._make(map(readonly, plan)), point

    @cached_property
    def compiled_plan(self) -> Plan:
        """The plan with arrays of the one kind that the kernel is compiled for."""
        return Plan._make(map(readonly, self.plan))

    def measured_from(self, run: int, mixture: Mixture) -> tuple[Array, Array]:
        """The means, (K, d), that the sums of a run are about; and about its origin.

        In single precision they are rounded.
        """
        plan = self.plan
        if self.is_single:
            its = slice(*plan.starts[run : run + 2])
            about = exact_means(plan)[its]
            return plan.shift.astype(np.float64).sum(axis=0) + about, about
        if len(plan.origins):
            return mixture.means, mixture.means - plan.origins[run]
        return mixture.means, mixture.means

    @property
    def n_features(self) -> int:
        """Number of features, d."""
        return int(self.plan.means.shape[1])

    @cached_property
    def n_factors(self) -> int:
        """Numbers that each row is multiplied with."""
        plan = self.plan
        in_matrices = plan.dense.size + plan.pooled.size + plan.upper.size // 2
        return int(in_matrices + plan.scales.size + plan.linear.size)

    @cached_property
    def _scratch_size(self) -> int:
        return tile.scratch_size(self.plan)

    @cached_property
    def n_sums(self) -> int:
        """Numbers of the sums when they travel."""
        return int(sums_ends(self.plan, 0)[-1])

    @cached_property
    def padded_size(self) -> int:
        """Numbers that the kernel adds up in."""
        return passes.padded_size(self.plan)

    def scratch(self) -> NDArray[Any]:
        """Memory for the kernel to work in, this thread's own."""
        return _memory("scratch", self._scratch_size, self.plan.means.dtype)


@final
@dataclass(frozen=True, slots=True)
class Message:
    """A pass's message: an E-step for each form that its mixtures have.

    All are taken over the same blocks, which are read once.

    Attributes
    ----------
    e_steps : tuple of EStep
    members : tuple of tuple of int
        Which of the pass's mixtures each is of.
    """

    e_steps: tuple[EStep, ...]
    members: tuple[tuple[int, ...], ...]

    def in_single(self, n_mixtures: int) -> list[bool]:
        """Which of the pass's mixtures are evaluated in single precision."""
        pairs = zip(self.e_steps, self.members, strict=True)
        found = {i for e_step, its in pairs if e_step.is_single for i in its}
        return [i in found for i in range(n_mixtures)]

    @property
    def sums_bytes(self) -> int:
        """Bytes that the kernel's sums take, once."""
        return 8 * sum(e_step.padded_size for e_step in self.e_steps)

    def padded(self) -> list[Array]:
        """Zeros for the kernel to add up in, this thread's own if they are few."""
        sizes = [e_step.padded_size for e_step in self.e_steps]
        ends = [*accumulate(sizes)]
        if ends[-1] > _KEPT:
            memory = np.zeros(ends[-1])
        else:
            memory = _memory("sums", ends[-1])[: ends[-1]]
            memory[:] = 0.0
        return [memory[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _dtype(x: NDArray[Any] | Columns) -> np.dtype[Any]:
    return x.columns[0].dtype if isinstance(x, Columns) else x.dtype


def _memory(name: str, size: int, dtype: Any = np.float64) -> NDArray[Any]:
    """So many numbers or more, this thread's own.

    They are kept from call to call: new memory would cost a page fault for each 4 kB,
    as much time as the work on a small block.
    """
    n_doubles = -(-size * np.dtype(dtype).itemsize // 8)
    if getattr(_thread, name, _EMPTY).size < n_doubles:
        setattr(_thread, name, np.zeros(n_doubles))
    memory: NDArray[Any] = getattr(_thread, name).view(dtype)
    return memory


def sums_bytes(shape: CovarianceShape, n_components: int, n_features: int) -> int:
    """Bytes that the sums of one run take, once; see `tree.most_sums`."""
    n_numbers = n_components * (n_features + 1) + shape.n_sums(n_components, n_features)
    return 8 * n_numbers


@final
@dataclass(frozen=True, slots=True)
class FlatSums:
    """Kernel sums over some blocks, flat: a monoid under ``+``.

    It means the same on all machines: see `layout.Sums`.
    """

    buffer: Array

    def __add__(self, other: Self) -> FlatSums:
        return FlatSums(self.buffer + other.buffer)


class BlockLike(Protocol):
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

    def parts(self) -> Iterator[Part]:
        """Rows and weights in parts, which end where the kernel's tiles do."""


AnyBlock = TypeVar("AnyBlock", bound=BlockLike)


def message(
    mixtures: Sequence[Mixture],
    shifts: Sequence[Array | None] | None = None,
    n_rows: float = math.inf,
) -> Message:
    """What a pass is to evaluate: mixtures of one number of features, of any shape.

    Parameters
    ----------
    mixtures : sequence of Mixture
    shifts : sequence of ndarray of shape (d,), or of None
        Where each is to be measured from if it may be evaluated in single precision,
        and stays exact enough; those of one array share the work on rows. See
        `single.shift_of`.
    n_rows : float
        About how many there are, by which to choose what pays. It makes no difference
        to the numbers.
    """
    members: dict[tuple[str, int | None], list[int]] = {}
    points: dict[int | None, Array | None] = {None: None}
    for i, mixture in enumerate(mixtures):
        form, shift = _form(mixture), None if shifts is None else shifts[i]
        place = None
        if shift is not None and is_exact_in_single(mixture, form, shift):
            place = id(shift)
            points[place] = shift
        members.setdefault((form, place), []).append(i)
    return Message(
        tuple(
            _plan(form, [mixtures[i] for i in its], points[place], n_rows)
            for (form, place), its in members.items()
        ),
        tuple(map(tuple, members.values())),
    )


def plan(mixture: Mixture, *, single: bool = False, n_rows: float = math.inf) -> EStep:
    """Lay out what the kernel needs of one mixture.

    In single precision if that may be, and is exact enough. See `message`.
    """
    shift = shift_of(mixture) if single else None
    [e_step] = message([mixture], [shift], n_rows).e_steps
    return e_step


def _form(mixture: Mixture) -> str:
    """The form in which the kernel takes a mixture: that of its fields in a `Plan`."""
    if mixture.shape.pooled and _can_be_pooled(mixture):
        return "pooled"
    if mixture.shape.dense:
        return "dense"
    return "natural" if _can_be_natural(mixture) else "diagonal"


def _plan(
    form: str, mixtures: Sequence[Mixture], shift: Array | None, n_rows: float
) -> EStep:
    """The plan of a form; in single precision if there is a point to measure from."""
    if shift is None:
        has_origin = form in ("pooled", "natural")
        origins = [mixture.centre for mixture in mixtures if has_origin]
        return EStep(
            _plan_about(form, mixtures, origins, far_apart, np.float64, n_rows)
        )
    if is_measured_from_one_point(form):
        mixtures = [replace(its, means=its.means - shift) for its in mixtures]
    origin = np.zeros_like(shift)
    plan = _plan_about(
        form,
        mixtures,
        [origin] * len(mixtures),
        lambda mixture: ~are_exact_in_single(mixture, "natural", origin),
        np.float32,
        n_rows,
    )
    bases = [base_of(mixture) for mixture in mixtures]
    offsets = plan.offsets - np.repeat(bases, np.diff(plan.starts))
    return EStep(in_single(plan._replace(offsets=offsets), shift), tuple(bases))


def _plan_about(
    form: str,
    mixtures: Sequence[Mixture],
    origins: Sequence[Array],
    apart: Callable[[Mixture], NDArray[np.bool_]],
    dtype: Any,
    n_rows: float,
) -> Plan:
    fields = _fields(mixtures)
    if form == "pooled":
        return Plan(**{**fields, **_pooled(mixtures, origins)})
    if form == "natural":
        return Plan(**{**fields, **_natural(mixtures, origins, apart)})
    factors = [
        m.shape.kernel_factors(m.factors, m.n_components, m.n_features)
        for m in mixtures
    ]
    of_form = (
        {"dense": _joined([pack_triangular(factor) for factor in factors])}
        if form == "dense"
        else {"centres": fields["means"], "scales": _joined(factors)}
    )
    if form == "dense" and all(bounds.pay(mixture, n_rows) for mixture in mixtures):
        of_form |= bounds.axes(mixtures, dtype)
    return Plan(**{**fields, **of_form})


def _joined(arrays: Sequence[Array]) -> Array:
    """Arrays one after the other; not copied if there is one."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def plan_for_few(mixture: Mixture) -> EStep | None:
    """Lay out what the kernel needs to evaluate one mixture for a few rows.

    Its matrices are read where they are, as to pack them takes as long as to ask about
    a hundred rows: the plan is good for as long as they stay as they are. None where
    that is not worth while or not possible.
    """
    shape = mixture.shape
    if shape.pooled or not shape.dense or not _can_stay_unpacked(mixture):
        return None
    return EStep(Plan(**{**_fields([mixture]), "upper": mixture.factors}))


def of_few(message: EStep, mixture: Mixture) -> EStep:
    """The message for a few rows, if its mixture is pooled; else as it is.

    Of few rows, those that a register has no use for cost more than to read a matrix
    that is not packed.
    """
    plan = message.plan
    if not plan.pooled.size or not _can_stay_unpacked(mixture):
        return message
    factors = mixture.factors[np.newaxis]
    return EStep(plan._replace(pooled=np.empty((0, 0)), upper=factors))


def _can_stay_unpacked(mixture: Mixture) -> bool:
    return mixture.factors.size > _LARGE and mixture.n_features >= tile.MIN_UPPER


def _fields(mixtures: Sequence[Mixture]) -> dict[str, Any]:
    """The fields of a plan that all forms have; the others are empty."""
    # Copied: attributes may be changed in place before the plan is used.
    means = np.concatenate([m.means for m in mixtures])
    d = means.shape[1]
    starts = accumulate((m.n_components for m in mixtures), initial=0)
    return {
        **_no_fields(d),
        "starts": np.array([*starts], dtype=np.int64),
        "offsets": _joined([m.log_normalisers() for m in mixtures]),
        "means": means,
    }


@lru_cache(maxsize=8)
def _no_fields(d: int) -> dict[str, Any]:
    """Fields of a plan that are empty, made once: it takes a tenth of a small pass."""
    shapes = {
        **dict.fromkeys(("dense", "pooled", "axes", "axis_means"), (0, 0)),
        "upper": (0, 0, 0),
        **dict.fromkeys(("origins", "centres", "scales", "lows", "shift"), (0, d)),
        **dict.fromkeys(("mixing", "linear", "quadratic"), (0,)),
    }
    fields = {name: readonly(np.empty(shape)) for name, shape in shapes.items()}
    return {**fields, "apart": readonly(np.empty(0, dtype=np.int64))}


def stays_single(mixture: Mixture, slack: float = 1.0) -> bool:
    """Whether a mixture could be evaluated in single precision, about its centre."""
    return is_exact_in_single(mixture, _form(mixture), shift_of(mixture), slack)


def _can_be_natural(mixture: Mixture) -> bool:
    """Whether products lose nothing, and are less work than deviations."""
    least = MIN_NATURAL if mixture.shape.isotropic else MIN_GENERAL
    if mixture.n_components < least or mixture.n_features < MIN_NATURAL:
        return False
    return can_stand_apart(far_apart(mixture))


def far_apart(mixture: Mixture) -> NDArray[np.bool_]:
    """Which components would lose something in the natural form, (K,)."""
    whitened = (mixture.means - mixture.centre) * _scales(mixture)
    distances = np.linalg.norm(whitened, axis=1)
    # Written so that those with NaN or infinity are far.
    far: NDArray[np.bool_] = ~(distances + np.sqrt(mixture.n_features) <= NATURAL_BELOW)
    return far


def _scales(mixture: Mixture) -> Array:
    """Factors of diagonal covariances, (K, d)."""
    return mixture.shape.kernel_factors(mixture.factors, *mixture.means.shape)


def _natural(
    mixtures: Sequence[Mixture],
    origins: Sequence[Array],
    apart: Callable[[Mixture], NDArray[np.bool_]],
) -> dict[str, Any]:
    """The fields of a plan of the natural form."""
    about = _about(mixtures, origins)
    are_apart = [apart(mixture) for mixture in mixtures]
    of_all = np.concatenate(are_apart)
    precisions = [
        np.where(its[:, np.newaxis], 0.0, _scales(mixture) ** 2)
        for mixture, its in zip(mixtures, are_apart, strict=True)
    ]
    both = list(zip(precisions, about, strict=True))
    offsets = [
        mixture.log_normalisers() - 0.5 * np.einsum("kd,kd,kd->k", p, m, m)
        for mixture, (p, m) in zip(mixtures, both, strict=True)
    ]
    isotropic = mixtures[0].shape.isotropic
    quadratic = [p[:, 0] if isotropic else pack(p[np.newaxis])[0] for p in precisions]
    return {
        "offsets": _joined(offsets),
        "origins": np.stack(origins),
        "apart": np.flatnonzero(of_all),
        "centres": np.concatenate([m.means for m in mixtures])[of_all],
        "scales": np.concatenate([_scales(m) for m in mixtures])[of_all],
        "linear": _joined([pack((p * m)[np.newaxis])[0] for p, m in both]),
        "quadratic": -0.5 * _joined(quadratic),
    }


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
    factor = _pooled_factor(mixture)
    longest = np.linalg.norm(sizes, axis=1).max()
    # All comparisons are written so that NaN and infinity are not pooled.
    if np.linalg.norm(factor) * longest <= POOLED_BELOW:
        return True  # by Cauchy and Schwarz, and with less work
    whitened = np.linalg.norm(sizes @ np.abs(factor).T, axis=1)
    return bool((whitened <= POOLED_BELOW).all())


def _about(mixtures: Sequence[Mixture], origins: Sequence[Array]) -> list[Array]:
    """Means about an origin of each mixture."""
    pairs = zip(mixtures, origins, strict=True)
    return [mixture.means - origin for mixture, origin in pairs]


def _pooled(mixtures: Sequence[Mixture], origins: Sequence[Array]) -> dict[str, Array]:
    """The fields of a plan of the pooled form."""
    factors = np.stack([_pooled_factor(mixture) for mixture in mixtures])
    about = _about(mixtures, origins)
    centres = [m @ factor.T for m, factor in zip(about, factors, strict=True)]
    return {
        "pooled": pack_triangular(factors),
        "origins": np.stack(origins),
        "mixing": np.concatenate([pack(m.T[np.newaxis])[0] for m in about]),
        "centres": np.concatenate(centres),
        "scales": np.ones_like(np.concatenate(centres)),
    }


def e_step(message: Message, blocks: Iterator[BlockLike]) -> FlatSums:
    """What a pass does with the blocks of a leaf: sums over them, for every mixture."""
    sums = Adding(message, message.padded())
    if isinstance(blocks, InPieces):
        *pieces, last = blocks.pieces
        for piece in pieces:
            sums.add(*piece)
        return sums.collected_with(*last)
    for x, weights in pieces_of(blocks):
        sums.add(x, weights)
        # Let go before another one is begun to be read, as it may be large.
        del x, weights
    return sums.collected()


@final
class Adding:
    """Sums while they are added up.

    Parameters
    ----------
    message : Message
    memory : sequence of ndarray
        Zeros, as many as `Message.padded` has.
    """

    def __init__(self, message: Message, memory: Sequence[Array]) -> None:
        self._work = [*zip(message.e_steps, memory, strict=True)]

    def add(self, x: NDArray[Any] | Columns, weights: Array | None) -> None:
        """Add some rows."""
        for its, sums in self._work:
            passes.accumulate(*its.given(x), weights, sums, its.scratch())

    def collected(self) -> FlatSums:
        """What was added up."""
        its = [passes.collect(e.compiled_plan, sums) for e, sums in self._work]
        return FlatSums(_joined(its))

    def collected_with(
        self, x: NDArray[Any] | Columns, weights: Array | None
    ) -> FlatSums:
        """The same with some rows more, the last ones."""
        told = []
        for its, sums in self._work:
            told.append(out := np.empty(its.n_sums))
            passes.accumulate(*its.given(x), weights, sums, its.scratch(), out)
        return FlatSums(_joined(told))


@final
class InPieces(Generic[AnyBlock]):
    """Blocks of a leaf, and beside them the pieces that were made of them before."""

    def __init__(self, blocks: Sequence[AnyBlock], pieces: Sequence[Part]) -> None:
        self._rest = iter(blocks)
        self.pieces = pieces

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> AnyBlock:
        return next(self._rest)


def puts_together(blocks: Sequence[BlockLike]) -> bool:
    """Whether the pieces of blocks are other than they."""
    return any(block.size < _SMALL for block in blocks[:-1])


def pieces_of(blocks: Iterator[BlockLike]) -> Iterator[Part]:
    """Blocks in parts, and small ones put together: a call costs more than a copy."""
    small: list[BlockLike] = []
    size = 0
    for block in blocks:
        if not small and block.size >= _SMALL:
            yield from block.parts()
            del block
            continue
        small.append(block)
        size += block.size
        if size >= _SMALL:
            yield _together(small)
            small, size = [], 0
    if small:
        yield _together(small)


def _together(blocks: Sequence[BlockLike]) -> Part:
    if len(blocks) == 1:
        return blocks[0].x, blocks[0].weights
    weights = [block.weights for block in blocks if block.weights is not None]
    rows = np.concatenate([block.x for block in blocks])
    return rows, np.concatenate(weights) if weights else None


def moments(
    message: Message, total: FlatSums, mixtures: Sequence[Mixture]
) -> list[Moments]:
    """Each mixture's moments, from the sums of a whole pass.

    Raises
    ------
    ValueError
        If the sums are of another message, or of another version.
    """
    of_all: dict[int, Moments] = {}
    rest = total.buffer
    for its, members in zip(message.e_steps, message.members, strict=True):
        # The last one has all that is left, so that a number too many is noticed.
        end = its.n_sums if its is not message.e_steps[-1] else len(rest)
        found = _moments(its, rest[:end], [mixtures[i] for i in members])
        of_all |= dict(zip(members, found, strict=True))
        rest = rest[end:]
    return [of_all[i] for i in range(len(mixtures))]


@final
@dataclass(frozen=True, slots=True)
class _Found:
    """Where the sums of one mixture stand among those of its form."""

    sums: Sums
    run: int
    its: slice
    about: Array
    """Its means, (K, d), about the run's origin."""


def _moments(
    e_step: EStep, buffer: Array, mixtures: Sequence[Mixture]
) -> Iterator[Moments]:
    """The same of mixtures of one form."""
    plan = e_step.plan
    sums, starts = sums_in(plan, buffer), plan.starts
    weight = float(sums.weight[0])
    read = _read_pooled if len(plan.pooled) else _read
    if is_natural := len(plan.quadratic) > 0:
        read = _read_natural
    for run, mixture in enumerate(mixtures):
        its = slice(*starts[run : run + 2])
        means, about = e_step.measured_from(run, mixture)
        found = _Found(sums, run, its, about)
        base = e_step.bases[run] if e_step.bases else 0.0
        its_moments = Moments(
            means,
            *read(plan, found, mixture),
            float(sums.log_prob[run]) + base * weight,
            weight,
            _from_origin(plan, found) if is_natural else None,
        )
        if e_step.is_single:  # about means that were rounded
            its_moments = moved(mixture.shape, its_moments, mixture.means)
        yield its_moments


def _from_origin(plan: Plan, found: _Found) -> Array:
    """Where rows of the natural form were measured from, as `Moments` have it."""
    about, its = found.about.copy(), found.its
    apart = plan.apart[(plan.apart >= its.start) & (plan.apart < its.stop)]
    about[apart - its.start] = 0.0
    return about


def _read(plan: Plan, found: _Found, mixture: Mixture) -> tuple[Array, Array, Array]:
    """Mass, drift and scatter of a run of the dense or the diagonal form."""
    sums, its = found.sums, found.its
    scatter = mixture.shape.kept(sums.dense[its], sums.diagonal[its])
    return sums.mass[its], sums.drift[its], scatter


def _read_natural(
    plan: Plan, found: _Found, mixture: Mixture
) -> tuple[Array, Array, Array]:
    """The same of the natural form."""
    about, raw, d = found.about, found.sums.raw[found.its], mixture.n_features
    if is_isotropic(plan):
        y, mass, squares = raw[:, :d], raw[:, d], raw[:, d + 1 :]
    else:
        y, squares, mass = raw[:, :d], raw[:, d:-1], raw[:, -1]
    drift = y - mass[:, np.newaxis] * about
    taken = about * (y + drift)
    if is_isotropic(plan):
        taken = taken.sum(axis=1, keepdims=True)
    scatter = squares - taken
    its = found.its
    first, last = np.searchsorted(plan.apart, [its.start, its.stop])
    apart, of_apart = plan.apart[first:last] - its.start, slice(first, last)
    drift[apart] = found.sums.drift[of_apart]
    scatter[apart] = mixture.shape.kept(_EMPTY, found.sums.diagonal[of_apart])
    return mass, drift, scatter


def _read_pooled(
    plan: Plan, found: _Found, mixture: Mixture
) -> tuple[Array, Array, Array]:
    """The same of the pooled form."""
    shape, about, run = mixture.shape, found.about, found.run
    n_components, d = about.shape
    raw = found.sums.raw[found.its]
    mass = raw[:, d]
    drift = raw[:, :d] - mass[:, np.newaxis] * about
    scatter = shape.kept(found.sums.residual[run : run + 1], np.empty((0, d)))
    shared = _shared(plan, found.sums, run)
    for k in range(1, n_components):
        scatter[0] += shape.scatter(about[:k] - about[k], shared[k, :k])
    return mass, drift, scatter


def _shared(plan: Plan, sums: Sums, run: int) -> Array:
    """The sums r rᵀ of a run, (K, K): their lower triangle."""
    # Those of earlier runs come before.
    sizes = [triangle(int(n)) for n in np.diff(plan.starts[: run + 2])]
    start, n = sum(sizes[:-1]), int(np.diff(plan.starts)[run])
    matrix = np.zeros((n, n))
    matrix.T[np.triu_indices(n)] = sums.shared[start : start + sizes[-1]]
    return matrix
