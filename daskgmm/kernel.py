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
_LINE: Final = 8
"""Numbers of a cache line."""
_BLOCK: Final = 32
"""Rows of a band of a triangular matrix."""
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
    dense: Array  # (C, F) `pack_factors` of the precisions, or (0, 0)
    diagonal: Array  # (C, d) the same where they are diagonal, or (0, d)
    offsets: Array  # (C,) log weight + log normalising constant


class _Tile(NamedTuple):
    """Where a tile of T rows is worked on."""

    rows: Array  # (d, T) as they are
    z: Array  # (d, T)
    work: Array  # (d, T)
    base: Array  # (d + 2, T)
    features: Array  # (up to _FEATURES, T)
    joint: Array  # (K, T) log joint, then responsibilities
    apart: Array  # (L, T) the same of lifted components, where there are others
    weights: Array  # (T,) of rows
    log_prob: Array  # (T,)
    scale: Array  # (T,)


class Sums(NamedTuple):
    """What the kernel adds up over rows, weighted by responsibility and row weight."""

    lifted: Array  # (D, L): of the features, or (0, 0)
    common: Array  # (d, d): of y yᵀ, not by responsibility; or (0, 0)
    mass: Array  # (C,): of 1
    drift: Array  # (C, d): of x - m
    dense: Array  # (C, d, d): of (x - m)(x - m)ᵀ below the diagonal, or (0, …)
    diagonal: Array  # (C, d): of (x - m)², or (0, d)
    log_prob: Array  # (R,): of log p(x), by row weight
    weight: Array  # (1,): of the row weights


@intrinsic
def _as_bits(_context: Any, _value: Any) -> Any:
    """Reinterpret a float64 as an int64."""

    def generate(_ctx: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(64))

    return types.int64(types.float64), generate


@intrinsic
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


@njit(inline="always", **_JIT)
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


@njit(**_JIT)
def _lines(scratch: Any, first: int, n_lines: int, width: int) -> Any:
    return scratch[first * width : (first + n_lines) * width].reshape(n_lines, width)


@njit(**_JIT)
def _tile(plan: Any, n_rows: int, scratch: Any) -> Any:
    """Cut a tile out of scratch memory: no more rows than there are, in whole lines."""
    width = min(_TILE, max(1, -(-n_rows // _LINE)) * _LINE)
    d, n_components = plan.origin.shape[0], plan.starts[-1]
    n_made = min(_FEATURES, plan.natural.shape[0])
    base = _lines(scratch, 3 * d, d + 2, width)
    base[0, :] = 1.0
    rest = 4 * d + 2 + n_made
    single = rest + 2 * n_components
    return _Tile(
        rows=_lines(scratch, 0, d, width),
        z=_lines(scratch, d, d, width),
        work=_lines(scratch, 2 * d, d, width),
        base=base,
        features=_lines(scratch, 4 * d + 2, n_made, width),
        joint=_lines(scratch, rest, n_components, width),
        apart=_lines(scratch, rest + n_components, plan.lifted.shape[0], width),
        weights=_lines(scratch, single, 1, width)[0],
        log_prob=_lines(scratch, single + 1, 1, width)[0],
        scale=_lines(scratch, single + 2, 1, width)[0],
    )


@njit(**_JIT)
def _load(x: Any, start: int, rows: Any) -> None:
    """Copy a tile as features × rows; past the end, the last row again."""
    n_rows, n_features = x.shape
    tile = rows.shape[1]
    inside = min(tile, n_rows - start)
    whole = inside // _LINE * _LINE
    # Eight rows at a time fill whole cache lines; one would touch a line per feature,
    # all of them in the same few sets of the cache.
    for first in range(0, whole, _LINE):
        for i in range(n_features):
            for t in range(_LINE):
                rows[i, first + t] = x[start + first + t, i]
    for i in range(n_features):
        for t in range(whole, inside):
            rows[i, t] = x[start + t, i]
        for t in range(inside, tile):
            rows[i, t] = rows[i, inside - 1]


@njit(**_JIT)
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


@njit(**_JIT)
def _make_features(plan: Any, base: Any, first: int, features: Any) -> None:
    for q in range(features.shape[0]):
        a, b = base[plan.left[first + q]], base[plan.right[first + q]]
        for t in range(features.shape[1]):
            features[q, t] = a[t] * b[t]


@njit(**_JIT)
def _subtract_half_squares(z: Any, row: Any) -> None:
    for i in range(z.shape[0]):
        for t in range(z.shape[1]):
            row[t] -= 0.5 * z[i, t] * z[i, t]


@njit(**_JIT)
def _deviate(rows: Any, mean: Any, deviations: Any) -> None:
    for i in range(rows.shape[0]):
        for t in range(rows.shape[1]):
            deviations[i, t] = rows[i, t] - mean[i]


@njit(**_JIT)
def _add(part: Any, whole: Any) -> None:
    for i in range(whole.shape[0]):
        for j in range(whole.shape[1]):
            whole[i, j] += part[i, j]


@njit(**_JIT)
def _lifted_joint(plan: Any, tile: Any) -> None:
    """Fill the rows of lifted components, but for common forms."""
    length, n_lifted = plan.natural.shape
    out = tile.joint if n_lifted == tile.joint.shape[0] else tile.apart
    for first in range(0, length, _FEATURES):
        last = min(length, first + _FEATURES)
        features = tile.features[: last - first]
        _make_features(plan, tile.base, first, features)
        coefficients = plan.natural[first:last].T
        if first == 0:
            np.dot(coefficients, features, out)
        else:
            _add(np.dot(coefficients, features), out)
    if n_lifted < tile.joint.shape[0]:
        for k in range(n_lifted):
            tile.joint[plan.lifted[k]] = out[k]


@njit(**_JIT)
def _add_common_forms(plan: Any, tile: Any) -> None:
    d, width = tile.rows.shape
    half_squares = tile.work[0]
    for run in range(plan.common.shape[0]):
        np.dot(plan.common[run], tile.base[1 : d + 1], tile.z)
        half_squares[:] = 0.0
        _subtract_half_squares(tile.z, half_squares)
        for k in range(plan.starts[run], plan.starts[run + 1]):
            for t in range(width):
                tile.joint[k, t] += half_squares[t]


@njit(**_JIT)
def _triangular_product(packed: Any, x: Any, out: Any) -> None:
    """Product of a lower triangular matrix, as `pack_factors` has it, with x."""
    d = x.shape[0]
    start = 0
    for first in range(0, d, _BLOCK):
        last = min(d, first + _BLOCK)
        end = start + (last - first) * last
        block = packed[start:end].reshape(last - first, last)
        np.dot(block, x[:last], out[first:last])
        start = end


@njit(**_JIT)
def _centred_joint(plan: Any, tile: Any) -> None:
    """Fill the rows of centred components."""
    d, width = tile.rows.shape
    for c in range(plan.centred.shape[0]):
        row = tile.joint[plan.centred[c]]
        row[:] = plan.offsets[c]
        if plan.dense.shape[0] > 0:
            _deviate(tile.rows, plan.means[c], tile.work)
            _triangular_product(plan.dense[c], tile.work, tile.z)
        else:
            for i in range(d):
                for t in range(width):
                    deviation = tile.rows[i, t] - plan.means[c, i]
                    tile.z[i, t] = deviation * plan.diagonal[c, i]
        _subtract_half_squares(tile.z, row)


@njit(**_JIT)
def _log_joint(plan: Any, tile: Any) -> None:
    """Log of weight times density, components × rows."""
    if plan.lifted.shape[0] > 0:
        _lift(tile.rows, plan.origin, tile.base)
        _lifted_joint(plan, tile)
        _add_common_forms(plan, tile)
    _centred_joint(plan, tile)


@njit(**_JIT)
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


@njit(**_JIT)
def _set_weights(weights: Any, start: int, n_rows: int, of_tile: Any) -> float:
    """Weights of a tile's rows, zero past the end; returns their sum."""
    total = 0.0
    for t in range(of_tile.shape[0]):
        row = start + t
        weight = 0.0
        if row < n_rows:
            weight = weights[row] if weights.shape[0] > 0 else 1.0
        of_tile[t] = weight
        total += weight
    return total


@njit(**_JIT)
def _set_responsibilities(plan: Any, tile: Any, log_prob_sums: Any) -> None:
    """Turn log joint into responsibilities times row weights; sum log p(x) by run."""
    width = tile.weights.shape[0]
    for run in range(plan.starts.shape[0] - 1):
        joint = tile.joint[plan.starts[run] : plan.starts[run + 1]]
        _normalise(joint, tile.log_prob, tile.scale)
        total = 0.0
        for t in range(width):
            # A row without weight adds nothing, whatever its density.
            weight = tile.weights[t]
            total += weight * tile.log_prob[t] if weight > 0 else 0.0
            tile.scale[t] *= weight
        log_prob_sums[run] += total
        for k in range(joint.shape[0]):
            for t in range(width):
                joint[k, t] *= tile.scale[t]


@njit(**_JIT)
def _add_lifted(plan: Any, sums: Any, tile: Any) -> None:
    """Add responsibilities times features of the lifted components."""
    length, n_lifted = sums.lifted.shape
    responsibilities = tile.joint
    if n_lifted < tile.joint.shape[0]:
        responsibilities = tile.apart
        for k in range(n_lifted):
            responsibilities[k] = tile.joint[plan.lifted[k]]
    for first in range(0, length, _FEATURES):
        last = min(length, first + _FEATURES)
        features = tile.features[: last - first]
        if length > _FEATURES:  # else they are still there
            _make_features(plan, tile.base, first, features)
        _add(np.dot(features, responsibilities.T), sums.lifted[first:last])


@njit(**_JIT)
def _add_common(sums: Any, tile: Any) -> None:
    """Add y yᵀ, for the components of all runs with a common form."""
    if sums.common.shape[0] == 0:
        return
    d, width = tile.rows.shape
    y = tile.base[1 : d + 1]
    for i in range(d):
        for t in range(width):
            tile.work[i, t] = y[i, t] * tile.weights[t]
    _add(np.dot(tile.work, y.T), sums.common)


@njit(**_JIT)
def _add_centred(plan: Any, sums: Any, tile: Any) -> None:
    """Add responsibilities times deviations of the centred components."""
    d, width = tile.rows.shape
    deviations, scaled = tile.work, tile.z
    for c in range(plan.centred.shape[0]):
        responsibilities = tile.joint[plan.centred[c]]
        _deviate(tile.rows, plan.means[c], deviations)
        mass = 0.0
        for t in range(width):
            mass += responsibilities[t]
        sums.mass[c] += mass
        for i in range(d):
            drift = 0.0
            for t in range(width):
                scaled[i, t] = responsibilities[t] * deviations[i, t]
                drift += scaled[i, t]
            sums.drift[c, i] += drift
        if sums.dense.shape[0] > 0:
            for first in range(0, d, _BLOCK):
                last = min(d, first + _BLOCK)
                part = np.dot(scaled[first:last], deviations[:last].T)
                _add(part, sums.dense[c, first:last, :last])
        else:
            for i in range(d):
                spread = 0.0
                for t in range(width):
                    spread += scaled[i, t] * deviations[i, t]
                sums.diagonal[c, i] += spread


@njit(**_JIT)
def accumulate(plan: Any, x: Any, weights: Any, sums: Any, scratch: Any) -> None:
    """E-step of a block: add to `sums` what its rows give for every component.

    Parameters
    ----------
    plan : Plan
    x : ndarray of shape (n, d), float32 or float64, C order
    weights : ndarray of shape (n,), or (0,) for weights of one
    sums : Sums
        Added to in place.
    scratch : ndarray of shape (`scratch_size`,)
    """
    n_rows = x.shape[0]
    tile = _tile(plan, n_rows, scratch)
    for start in range(0, n_rows, tile.rows.shape[1]):
        _load(x, start, tile.rows)
        sums.weight[0] += _set_weights(weights, start, n_rows, tile.weights)
        _log_joint(plan, tile)
        _set_responsibilities(plan, tile, sums.log_prob)
        _add_lifted(plan, sums, tile)
        _add_common(sums, tile)
        _add_centred(plan, sums, tile)


@njit(**_JIT)
def evaluate(
    plan: Any,
    x: Any,
    labels: Any,
    responsibilities: Any,
    log_prob: Any,
    scratch: Any,
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
    scratch : ndarray of shape (`scratch_size`,)
    """
    n_rows = x.shape[0]
    tile = _tile(plan, n_rows, scratch)
    width = tile.rows.shape[1]
    for start in range(0, n_rows, width):
        inside = min(width, n_rows - start)
        _load(x, start, tile.rows)
        _log_joint(plan, tile)
        if labels.shape[0] > 0:
            _most_probable(tile.joint, labels[start : start + inside])
        if responsibilities.shape[0] > 0 or log_prob.shape[0] > 0:
            _normalise(tile.joint, tile.log_prob, tile.scale)
        if responsibilities.shape[0] > 0:
            for t in range(inside):
                for k in range(responsibilities.shape[1]):
                    share = tile.joint[k, t] * tile.scale[t]
                    responsibilities[start + t, k] = share
        if log_prob.shape[0] > 0:
            for t in range(inside):
                log_prob[start + t] = tile.log_prob[t]


@njit(**_JIT)
def _most_probable(joint: Any, labels: Any) -> None:
    labels[:] = 0
    for k in range(1, joint.shape[0]):
        for t in range(labels.shape[0]):
            if joint[k, t] > joint[labels[t], t]:
                labels[t] = k


@njit(**_JIT)
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


def pack_factors(factors: Array) -> Array:
    """Lower triangular matrices (C, d, d) as (C, F): bands of rows, less their zeros.

    Half the products with a triangular matrix are with zeros; a band at a time, most
    of them are left out.
    """
    n, d = factors.shape[:2]
    ends = [min(d, first + _BLOCK) for first in range(0, d, _BLOCK)]
    bands = [
        factors[:, first:end, :end].reshape(n, (end - first) * end)
        for first, end in zip(range(0, d, _BLOCK), ends, strict=True)
    ]
    return np.concatenate(bands, axis=1)


def scratch_size(plan: Plan) -> int:
    """Numbers of scratch memory that a tile needs."""
    d, n_components = len(plan.origin), int(plan.starts[-1])
    n_made = min(_FEATURES, len(plan.natural))
    n_lines = 4 * d + 2 + n_made + 2 * n_components + 3
    return n_lines * _TILE


def readonly(array: NDArray[Any]) -> NDArray[Any]:
    """The array in C order, aligned and not writable.

    Arrays that came through a scheduler may or may not be writable; compiled code
    would be made once for each kind.
    """
    view = np.require(array, requirements=["C", "A"]).view()
    view.flags.writeable = False
    return view
