"""Single precision: which mixtures it is exact enough for, and plans in it.

A row of float32 less a mean in two parts, (x - m) - m', is rounded to a part of itself,
wherever it is; for the forms that measure rows from one point, so are those from a
point in the middle of the mixture. The rest of an E-step is rounded, too: what that
does to the log density of a row is estimated here.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from daskgmm.kernel.layout import Plan
from daskgmm.mixtures.gaussian import Mixture

Array = NDArray[np.float64]

EXACT: Final = 1e-5
"""What a log density may be off by, as a part of it or of one."""
_ROUNDING: Final = float(np.finfo(np.float32).eps) / 2.0
"""What a number is off by, as a part of it, at the most."""
_SURELY: Final = 2.5
"""Standard deviations of the sum of many roundings that it hardly ever exceeds."""
_HARDLY: Final = 13.8
"""Minus the logarithm of the part of rows of which nothing is promised: one in 10⁶."""
_MANY: Final = 2**15
"""Components up to which products of eight sums over them stay in float32."""
_APART_OF: Final = 4
"""A component in so many may be apart: it takes a few times as long as in products."""
_FEW_DEVIATIONS: Final = 10.0
"""Deviations that a square may be of, to be taken from another."""
_FARTHEST: Final = 1e30
"""How far from zero means may be in float32."""
_LEAST: Final = 1e-15
_MOST: Final = 1e15
"""Deviations whose squares are far from where float32 ends."""


def shift_of(mixture: Mixture) -> Array:
    """The middle of a mixture, (d,), in the digits of two numbers of float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        nearest: Array = _parts(mixture.centre).astype(np.float64).sum(axis=0)
    return nearest


def _parts(point: Array) -> NDArray[np.float32]:
    """Two numbers of float32 for each, (2, d), that come to it."""
    high = point.astype(np.float32)
    return np.stack([high, (point - high).astype(np.float32)])


def can_stand_apart(apart: NDArray[np.bool_]) -> bool:
    """Whether so few components are apart that the natural form still pays."""
    return bool(_APART_OF * np.count_nonzero(apart) <= len(apart))


def is_exact_in_single(
    mixture: Mixture, form: str, shift: Array, slack: float = 1.0
) -> bool:
    """Whether the log densities of a mixture's rows stay within `EXACT`.

    In the natural form, those may be apart that would not.
    """
    if mixture.n_components > _MANY:
        return False
    exact = are_exact_in_single(mixture, form, shift, slack)
    if form != "natural" or exact.all():
        return bool(exact.all())
    if not can_stand_apart(~exact):
        return False
    exact |= are_exact_in_single(mixture, "apart", shift, slack)
    return bool(exact.all())


def are_exact_in_single(
    mixture: Mixture, form: str, shift: Array, slack: float = 1.0
) -> NDArray[np.bool_]:
    """Which components' log densities do, of their own rows, (K,).

    Parameters
    ----------
    mixture : Mixture
    form : str
        See `e_step`; or 'apart', for components that are diagonal in the natural one.
    shift : ndarray of shape (d,)
        What rows are measured from.
    slack : float
        How many times as much they may be off by.
    """
    shape, d = mixture.shape, mixture.n_features
    with np.errstate(over="ignore", invalid="ignore"):
        deviations = np.sqrt(shape.variances(mixture.covariances, d))
        reach = np.abs(mixture.means - shift) + deviations
        # All comparisons are written so that NaN is not exact.
        in_range = (
            (np.abs(mixture.means) <= _FARTHEST)
            & (deviations >= _LEAST)
            & (reach <= _MOST)
        )
        if not is_measured_from_one_point(form):
            reach = np.broadcast_to(deviations, reach.shape)
        if form == "natural":  # what is left of squares is a variance
            in_range &= reach <= _FEW_DEVIATIONS * deviations
        off = _ROUNDING * _SURELY * _roundings(mixture, form, reach)
        most = slack * EXACT * _log_densities(mixture)
        exact: NDArray[np.bool_] = in_range.all(axis=1) & (off <= most)
        return exact


def _roundings(mixture: Mixture, form: str, reach: Array) -> Array:
    """What the log density of a row is off by, where each number is off by one, (K,).

    Roundings are independent, so their squares are added up. Those of what factors are
    multiplied with, and of the factors, come through as they are; those of sums of d
    terms grow as the sums do, so that they are √(d/3) roundings of the whole sum. A sum
    is a whitened number, and the squared distance, ½ of which is wanted: d, but for the
    natural form.
    """
    shape, (n_components, d) = mixture.shape, mixture.means.shape
    factors = shape.kernel_factors(mixture.factors, n_components, d)
    indices = "kij,kj->k" if shape.dense else "kj,kj->k"
    squares = np.einsum(indices, factors**2, reach**2)
    of_sums = np.sqrt(d / 3.0)
    whitened = np.sqrt(2.0) + (of_sums if shape.dense else 0.0)
    whole = squares if form == "natural" else d
    roundings: Array = whitened * np.sqrt(squares) + 0.5 * whole * of_sums
    return roundings


def _log_densities(mixture: Mixture) -> Array:
    """How large log densities of a component's rows are, at the least, (K,); or one.

    Half a squared distance is ½ d on average. Beyond the bounds here (Laurent and
    Massart 2000, lemma 1) is that of hardly any row.
    """
    d = mixture.n_features
    spread = np.sqrt(d * _HARDLY)
    lowest, highest = max(0.0, 0.5 * d - spread), 0.5 * d + spread + _HARDLY
    normalisers = mixture.log_normalisers()
    with np.errstate(invalid="ignore"):
        nearest = np.clip(normalisers, lowest, highest)
        least: Array = np.maximum(np.abs(normalisers - nearest), 1.0)
    # Without weight it is never the largest, and its density is nothing.
    return np.where(np.isfinite(least), least, 1.0)


def base_of(mixture: Mixture) -> float:
    """About what log densities are, so that only what is beside it is rounded."""
    normalisers = mixture.log_normalisers()
    return float(normalisers.max()) - 0.5 * mixture.n_features


def is_measured_from_one_point(form: str) -> bool:
    """Whether the kernel's form has one origin for all components of a run."""
    return form in ("pooled", "natural", "apart")


def in_single(plan: Plan, shift: Array) -> Plan:
    """A plan in single precision.

    Parameters
    ----------
    plan : Plan
        About `shift`, if its form measures rows from one point.
    shift : ndarray of shape (d,)
    """
    if len(plan.origins):
        of_all = plan._asdict() | {"shift": _parts(shift)}
        if len(plan.apart):
            high, low = _parts(plan.centres)
            of_all |= {"centres": high, "lows": low}
    else:
        of_all = plan._asdict() | _in_parts(plan)
    return Plan(
        **{
            name: field.astype(np.float32) if field.dtype == np.float64 else field
            for name, field in of_all.items()
        }
    )


def _in_parts(plan: Plan, means: Array | None = None) -> dict[str, Any]:
    """The fields of means, by default the plan's own."""
    high, low = _parts(plan.means if means is None else means)
    centres = high if len(plan.centres) else plan.centres
    return {"means": high, "centres": centres, "lows": low}


def exact_means(plan: Plan) -> Array:
    """The means, (K, d), that rows are measured from; from its shift, if it has one."""
    means = plan.means.astype(np.float64)
    if len(plan.apart):
        means[plan.apart] = plan.centres.astype(np.float64) + plan.lows
    elif len(plan.lows):
        means += plan.lows
    return means


def about_shift(plan: Plan) -> tuple[Plan, Array]:
    """A plan for rows that are measured from a point before, and that point, (d,)."""
    if len(plan.shift):
        nothing = plan._replace(shift=np.zeros_like(plan.shift))
        return nothing, plan.shift.astype(np.float64).sum(axis=0)
    means = exact_means(plan)
    point: Array = means.mean(axis=0)
    return plan._replace(**_in_parts(plan, means - point)), point
