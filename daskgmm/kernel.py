"""The compiled kernel: every row of a block against every component, once.

It knows nothing of covariance shapes. A component's log density comes in one of two
forms, chosen by the caller:

- *lifted*: natural parameters times features of the row about a common origin, one
  matrix product for all components of all runs, and one more for their sums. A
  *common* quadratic form may stand beside the features where all components of a run
  share one precision.
- *centred*: deviations from the component's own mean times the Cholesky factor of its
  precision. Twice the arithmetic, and no cancellation.

Rows go through in tiles that stay in the cache, stored features × rows so that each
operation runs along contiguous rows. The *base* of a tile is [1, y, ‖y‖²], y the rows
about the origin, d + 2 lines in all; a feature is the product of two of its lines.
Features are made a few at a time and made again for the second product: that is
cheaper than to fetch many of them from memory. One call holds the GIL at no time.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

Array = NDArray[np.float64]

_TILE: Final = 256
"""Rows of a tile."""
_FEATURES: Final = 64
"""Features made at a time: with a tile's rows, they fit the second-level cache."""

_JIT: Final[dict[str, Any]] = {
    "nogil": True,
    "cache": True,
    "error_model": "numpy",
    # No reassociation: vector code without it gives the same bits on each call.
    "fastmath": {"contract", "nsz"},
}


class Plan(NamedTuple):
    """What the kernel needs of the mixtures of R runs, K components in all.

    The runs' components stand one after the other: those of run r are numbers
    ``starts[r]`` to ``starts[r + 1]``; L of them are lifted and C centred. D is the
    number of features of a lifted row.
    """

    left: NDArray[np.int64]  # (D,) lines of the base whose products
    right: NDArray[np.int64]  # (D,) are the features
    origin: Array  # (d,)
    starts: NDArray[np.int64]  # (R + 1,)
    lifted: NDArray[np.int64]  # (L,) numbers of the lifted components
    natural: Array  # (D, L) natural parameters, or (0, 0)
    common: Array  # (R, d, d) transposed factors of common forms, zero if centred, or 0
    centred: NDArray[np.int64]  # (C,) numbers of the centred components
    means: Array  # (C, d)
    dense: Array  # (C, d, d) transposed Cholesky factors of the precisions, or (0, …)
    diagonal: Array  # (C, d) the same where they are diagonal, or (0, d)
    offsets: Array  # (C,) log weight + log normalising constant


class Sums(NamedTuple):
    """What the kernel adds up over rows, weighted by responsibility and row weight."""

    lifted: Array  # (D, L): of the features, or (0, 0)
    common: Array  # (d, d): of y yᵀ, not by responsibility; or (0, 0)
    mass: Array  # (C,): of 1
    drift: Array  # (C, d): of x - m
    dense: Array  # (C, d, d): of (x - m)(x - m)ᵀ, or (0, …)
    diagonal: Array  # (C, d): of (x - m)², or (0, d)
    log_prob: Array  # (R,): of log p(x), by row weight
    weight: Array  # (1,): of the row weights


@intrinsic  # type: ignore[untyped-decorator]
def _as_bits(_context: Any, _value: Any) -> Any:
    """Reinterpret a float64 as an int64."""

    def generate(_ctx: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(64))

    return types.int64(types.float64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _as_float(_context: Any, _value: Any) -> Any:
    """Reinterpret an int64 as a float64."""

    def generate(_ctx: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), generate


_LOG2_E: Final = 1.4426950408889634
# Adding it rounds to a whole number, which then stands in the lowest bits.
_ROUND: Final = 6755399441055744.0
# ln 2 in two parts, the first short enough that n times it is exact (fdlibm, e_exp.c).
_LN2_HIGH: Final = 6.93147180369123816490e-01
_LN2_LOW: Final = 1.90821492927058770002e-10
_EXP_MIN: Final = -708.0


@njit(inline="always", **_JIT)  # type: ignore[untyped-decorator]
def _exp(x: float) -> float:
    """exp(x) for x ≤ 0, within 2 ulp; 0 below -708. Plain enough to be vectorised."""
    clipped = max(x, _EXP_MIN)
    shifted = clipped * _LOG2_E + _ROUND
    whole = shifted - _ROUND
    r = (clipped - whole * _LN2_HIGH) - whole * _LN2_LOW
    # Taylor's series: |r| ≤ ln(2)/2, so the first term left out is below 5e-18.
    p = 1.0 / 6227020800.0
    p = p * r + 1.0 / 479001600.0
    p = p * r + 1.0 / 39916800.0
    p = p * r + 1.0 / 3628800.0
    p = p * r + 1.0 / 362880.0
    p = p * r + 1.0 / 40320.0
    p = p * r + 1.0 / 5040.0
    p = p * r + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    power = _as_float((_as_bits(shifted) + 1023) << 52)
    return p * power if x > _EXP_MIN else 0.0


@njit(**_JIT)  # type: ignore[untyped-decorator]
def _tile_rows(n_rows: int) -> int:
    """Rows of a tile: no more than there are, in whole vectors."""
    return min(_TILE, max(8, (n_rows + 7) // 8 * 8))


@njit(**_JIT)  # type: ignore[untyped-decorator]
def _load(x: Any, start: int, rows: Any) -> None:
    """Copy a tile as features × rows; past the end, the last row again."""
    n_rows, n_features = x.shape
    tile = rows.shape[1]
    inside = min(tile, n_rows - start)
    for t in range(inside):
        for i in range(n_features):
            rows[i, t] = x[start + t, i]
    for i in range(n_features):
        for t in range(inside, tile):
            rows[i, t] = rows[i, inside - 1]


@njit(**_JIT)  # type: ignore[untyped-decorator]
def _lift(rows: Any, origin: Any, base: Any) -> None:
    """Fill the base, but for its first line of ones."""
    n_features, tile = rows.shape
    norm = base[n_features + 1]
    norm[:] = 0.0
    for i in range(n_features):
        line = base[i + 1]
        for t in range(tile):
            line[t] = rows[i, t] - origin[i]
            norm[t] += line[t] * line[t]


@njit(**_JIT)  # type: ignore[untyped-decorator]
def _make_features(plan: Any, base: Any, first: int, features: Any) -> None:
    for q in range(features.shape[0]):
        a, b = base[plan.left[first + q]], base[plan.right[first + q]]
        for t in range(features.shape[1]):
            features[q, t] = a[t] * b[t]


@njit(**_JIT)  # type: ignore[untyped-decorator]
def _subtract_half_squares(z: Any, row: Any) -> None:
    for i in range(z.shape[0]):
        for t in range(z.shape[1]):
            row[t] -= 0.5 * z[i, t] * z[i, t]


@njit(**_JIT)  # type: ignore[untyped-decorator]
def _lifted_joint(plan: Any, base: Any, features: Any, joint: Any) -> None:
    """Fill the rows of lifted components."""
    length, n_lifted = plan.natural.shape
    apart = n_lifted < joint.shape[0]
    out = np.empty((n_lifted, joint.shape[1])) if apart else joint
    for first in range(0, length, _FEATURES):
        last = min(length, first + _FEATURES)
        part = features[: last - first]
        _make_features(plan, base, first, part)
        coefficients = plan.natural[first:last].T
        if first == 0:
            np.dot(coefficients, part, out)
        else:
            _add(np.dot(coefficients, part), out)
    if apart:
        for k in range(n_lifted):
            joint[plan.lifted[k]] = out[k]


@njit(**_JIT)  # type: ignore[untyped-decorator]
def _log_joint(
    plan: Any, rows: Any, base: Any, features: Any, z: Any, work: Any, joint: Any
) -> None:
    """Log of weight times density, components × rows."""
    n_features, tile = rows.shape
    if plan.lifted.shape[0] > 0:
        _lift(rows, plan.origin, base)
        _lifted_joint(plan, base, features, joint)
        for run in range(plan.common.shape[0]):
            np.dot(plan.common[run], base[1 : n_features + 1], z)
            work[0, :] = 0.0
            _subtract_half_squares(z, work[0])
            for k in range(plan.starts[run], plan.starts[run + 1]):
                for t in range(tile):
                    joint[k, t] += work[0, t]
    for c in range(plan.centred.shape[0]):
        row = joint[plan.centred[c]]
        row[:] = plan.offsets[c]
        if plan.dense.shape[0] > 0:
            _deviate(rows, plan.means[c], work)
            np.dot(plan.dense[c], work, z)
        else:
            for i in range(n_features):
                for t in range(tile):
                    deviation = rows[i, t] - plan.means[c, i]
                    z[i, t] = deviation * plan.diagonal[c, i]
        _subtract_half_squares(z, row)


@njit(**_JIT)  # type: ignore[untyped-decorator]
def _deviate(rows: Any, mean: Any, deviations: Any) -> None:
    for i in range(rows.shape[0]):
        for t in range(rows.shape[1]):
            deviations[i, t] = rows[i, t] - mean[i]


@njit(**_JIT)  # type: ignore[untyped-decorator]
def _normalise(joint: Any, log_prob: Any, scale: Any) -> None:
    """Turn one run's log joint into exp(joint - its maximum) by row; log p(x) beside.

    A responsibility is then the entry times the row's `scale`.
    """
    n_components, tile = joint.shape
    for t in range(tile):
        log_prob[t] = joint[0, t]
    for k in range(1, n_components):
        for t in range(tile):
            log_prob[t] = max(log_prob[t], joint[k, t])
    for t in range(tile):
        scale[t] = 0.0
    for k in range(n_components):
        for t in range(tile):
            part = _exp(joint[k, t] - log_prob[t])
            joint[k, t] = part
            scale[t] += part
    for t in range(tile):
        log_prob[t] += math.log(scale[t])
        scale[t] = 1.0 / scale[t]


@njit(**_JIT)  # type: ignore[untyped-decorator]
def _add_lifted(plan: Any, sums: Any, base: Any, features: Any, joint: Any) -> None:
    """Add a tile's responsibilities times features of the lifted components."""
    length, n_lifted = sums.lifted.shape
    responsibilities = joint
    if n_lifted < joint.shape[0]:
        responsibilities = np.empty((n_lifted, joint.shape[1]))
        for k in range(n_lifted):
            responsibilities[k] = joint[plan.lifted[k]]
    for first in range(0, length, _FEATURES):
        last = min(length, first + _FEATURES)
        part = features[: last - first]
        if length > _FEATURES:  # else they are still there
            _make_features(plan, base, first, part)
        _add(np.dot(part, responsibilities.T), sums.lifted[first:last])


@njit(**_JIT)  # type: ignore[untyped-decorator]
def _add_centred(
    plan: Any, sums: Any, rows: Any, joint: Any, deviations: Any, scaled: Any
) -> None:
    """Add a tile's responsibilities times deviations of the centred components."""
    n_features, tile = rows.shape
    for c in range(plan.centred.shape[0]):
        responsibilities = joint[plan.centred[c]]
        _deviate(rows, plan.means[c], deviations)
        mass = 0.0
        for t in range(tile):
            mass += responsibilities[t]
        sums.mass[c] += mass
        for i in range(n_features):
            drift = 0.0
            for t in range(tile):
                scaled[i, t] = responsibilities[t] * deviations[i, t]
                drift += scaled[i, t]
            sums.drift[c, i] += drift
        if sums.dense.shape[0] > 0:
            _add(np.dot(scaled, deviations.T), sums.dense[c])
        else:
            for i in range(n_features):
                spread = 0.0
                for t in range(tile):
                    spread += scaled[i, t] * deviations[i, t]
                sums.diagonal[c, i] += spread


@njit(**_JIT)  # type: ignore[untyped-decorator]
def _add(part: Any, whole: Any) -> None:
    for i in range(whole.shape[0]):
        for j in range(whole.shape[1]):
            whole[i, j] += part[i, j]


@njit(**_JIT)  # type: ignore[untyped-decorator]
def _row_weights(weights: Any, start: int, n_rows: int, tile_weights: Any) -> float:
    """Weights of a tile's rows, zero past the end; returns their sum."""
    total = 0.0
    for t in range(tile_weights.shape[0]):
        row = start + t
        weight = 0.0
        if row < n_rows:
            weight = weights[row] if weights.shape[0] > 0 else 1.0
        tile_weights[t] = weight
        total += weight
    return total


@njit(**_JIT)  # type: ignore[untyped-decorator]
def accumulate(plan: Any, x: Any, weights: Any, sums: Any) -> None:
    """E-step of a block: add to `sums` what its rows give for every component.

    Parameters
    ----------
    plan : Plan
    x : ndarray of shape (n, d), float32 or float64, C order
    weights : ndarray of shape (n,), or (0,) for weights of one
    sums : Sums
        Added to in place.
    """
    n_rows, n_features = x.shape
    n_components = plan.starts[-1]
    tile = _tile_rows(n_rows)
    rows = np.empty((n_features, tile))
    base = np.empty((n_features + 2, tile))
    base[0, :] = 1.0
    features = np.empty((min(_FEATURES, plan.natural.shape[0]), tile))
    joint = np.empty((n_components, tile))
    z = np.empty((n_features, tile))
    work = np.empty((n_features, tile))
    tile_weights = np.empty(tile)
    log_prob = np.empty(tile)
    scale = np.empty(tile)
    for start in range(0, n_rows, tile):
        _load(x, start, rows)
        sums.weight[0] += _row_weights(weights, start, n_rows, tile_weights)
        _log_joint(plan, rows, base, features, z, work, joint)
        for run in range(plan.starts.shape[0] - 1):
            of_run = joint[plan.starts[run] : plan.starts[run + 1]]
            _normalise(of_run, log_prob, scale)
            total = 0.0
            for t in range(tile):
                # A row without weight adds nothing, whatever its density.
                total += tile_weights[t] * log_prob[t] if tile_weights[t] > 0 else 0.0
                scale[t] *= tile_weights[t]
            sums.log_prob[run] += total
            for k in range(of_run.shape[0]):
                for t in range(tile):
                    of_run[k, t] *= scale[t]
        _add_lifted(plan, sums, base, features, joint)
        if sums.common.shape[0] > 0:
            linear = base[1 : n_features + 1]
            for i in range(n_features):
                for t in range(tile):
                    work[i, t] = linear[i, t] * tile_weights[t]
            _add(np.dot(work, linear.T), sums.common)
        _add_centred(plan, sums, rows, joint, work, z)


@njit(**_JIT)  # type: ignore[untyped-decorator]
def evaluate(
    plan: Any, x: Any, labels: Any, responsibilities: Any, log_prob: Any
) -> None:
    """Posterior of a block's rows under one mixture, into whichever output has rows.

    Parameters
    ----------
    plan : Plan
        Of a single run.
    x : ndarray of shape (n, d), float32 or float64, C order
    labels : ndarray of int64, shape (n,) or (0,)
        The most probable component, the first of those that tie.
    responsibilities : ndarray like x, shape (n, K) or (0, K)
    log_prob : ndarray like x, shape (n,) or (0,)
    """
    n_rows, n_features = x.shape
    n_components = plan.starts[-1]
    tile = _tile_rows(n_rows)
    rows = np.empty((n_features, tile))
    base = np.empty((n_features + 2, tile))
    base[0, :] = 1.0
    features = np.empty((min(_FEATURES, plan.natural.shape[0]), tile))
    joint = np.empty((n_components, tile))
    z = np.empty((n_features, tile))
    work = np.empty((n_features, tile))
    tile_log_prob = np.empty(tile)
    scale = np.empty(tile)
    for start in range(0, n_rows, tile):
        inside = min(tile, n_rows - start)
        _load(x, start, rows)
        _log_joint(plan, rows, base, features, z, work, joint)
        if labels.shape[0] > 0:
            _most_probable(joint, labels[start : start + inside])
        if responsibilities.shape[0] > 0 or log_prob.shape[0] > 0:
            _normalise(joint, tile_log_prob, scale)
        if responsibilities.shape[0] > 0:
            for t in range(inside):
                for k in range(n_components):
                    responsibilities[start + t, k] = joint[k, t] * scale[t]
        if log_prob.shape[0] > 0:
            for t in range(inside):
                log_prob[start + t] = tile_log_prob[t]


@njit(**_JIT)  # type: ignore[untyped-decorator]
def _most_probable(joint: Any, labels: Any) -> None:
    labels[:] = 0
    for k in range(1, joint.shape[0]):
        for t in range(labels.shape[0]):
            if joint[k, t] > joint[labels[t], t]:
                labels[t] = k


@njit(**_JIT)  # type: ignore[untyped-decorator]
def survey(x: Any, weights: Any, sums: Any) -> int:
    """Add each column's weighted sum to `sums`; return the first non-finite entry.

    Parameters
    ----------
    x : ndarray of shape (n, d), float32 or float64, C order
    weights : ndarray of shape (n,), or (0,) for weights of one
    sums : ndarray of shape (d,)

    Returns
    -------
    int
        Its row times d plus its column, or -1 if all entries are finite.
    """
    n_rows, n_features = x.shape
    bad = 0
    for t in range(n_rows):
        weight = weights[t] if weights.shape[0] > 0 else 1.0
        for i in range(n_features):
            value = np.float64(x[t, i])
            sums[i] += weight * value
            bad += not (abs(value) < np.inf)
    if bad:
        for t in range(n_rows):
            for i in range(n_features):
                if not (abs(x[t, i]) < np.inf):
                    return int(t * n_features + i)
    return -1


def readonly(array: NDArray[Any]) -> NDArray[Any]:
    """The array in C order, aligned and not writable.

    Arrays that came through a scheduler may or may not be writable; compiled code
    would be made once for each kind.
    """
    view = np.require(array, requirements=["C", "A"]).view()
    view.flags.writeable = False
    return view
