"""Rows for pictures: some of them, of any kind, and the features that are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import validate_data

from daskgmm.data.dask_array import as_dask, slices_of_some, with_care
from daskgmm.data.gaps import Gaps
from daskgmm.data.inputs import open_input
from daskgmm.errors import ParameterError

MOST: Final = 200_000
"""Rows that a picture shows."""
_LEAST_BLOCKS: Final = 8
"""Blocks that are read of lazy rows, chosen at random,"""
_MOST_BLOCKS: Final = 100
"""or more up to so many, where they are small."""
Feature = str | int

_FAR: Final = 0.005
"""At each end of an axis, the part of the rows that may lie far from the others:"""
_FARTHEST: Final = 4.0
"""by so many times what all others span,"""
_EDGE: Final = 0.05
"""of which so much is left free at the ends."""


def some_rows(X: Any, model: Any, most: int = MOST) -> NDArray[np.float64]:
    """Rows without NaN: all, or about so many of them, drawn with a fixed seed.

    Parameters
    ----------
    X : rows of any kind that a mixture takes
    model : fitted mixture
        Of as many features, of the same names if both have names.
    most : int

    Raises
    ------
    ValueError
        If they have other features.
    """
    random = np.random.default_rng(0)
    gaps = Gaps(model.missing_chunks, model.nan)
    given = open_input(X, gaps)
    d = len(model.means_[0])
    names = given.names
    if hasattr(model, "feature_names_in_") and hasattr(names, "columns"):
        validate_data(model, names, reset=False, skip_check_array=True)
    if np.ndim(names) != 2 or np.shape(names)[1] != d:
        raise ParameterError(
            f"X has the shape {np.shape(names)}, and the mixture has {d} features."
        )
    if given.is_lazy:
        lazy = as_dask(given.rows, gaps)
        drawn = slices_of_some(lazy, _n_blocks(lazy, most), most, random)
        some: Any = with_care(drawn, gaps).compute()
    else:
        some = _some_here(given.rows, most, random)
    table = np.ma.filled(np.ma.asarray(some, dtype=np.float64), np.nan)
    return table[~np.isnan(table).any(axis=1)]


def _n_blocks(rows: Any, most: int) -> int:
    """How many blocks have so many rows; of unknown length, as of large ones."""
    length: float = rows.shape[0] / max(rows.numblocks[0], 1)
    if not length > 0:
        return _LEAST_BLOCKS
    return max(_LEAST_BLOCKS, min(_MOST_BLOCKS, math.ceil(most / length)))


def _some_here(rows: Any, most: int, random: np.random.Generator) -> Any:
    """Rows in memory, or mapped into it; only those that are drawn are copied."""
    if len(rows) <= most:
        return rows
    # One of each stretch: to draw without replacement takes a number for each row.
    places = (np.arange(most) + random.random(most)) * (len(rows) / most)
    places = np.unique(places.astype(np.intp))
    return rows.iloc[places] if hasattr(rows, "iloc") else np.asanyarray(rows)[places]


def names_of(model: Any) -> list[str]:
    """Names of a model's features, or what they are called without."""
    names = getattr(model, "feature_names_in_", None)
    if names is not None:
        return list(map(str, names))
    return [f"feature {j}" for j in range(len(model.means_[0]))]


def places_of(features: Any, model: Any, n_least: int, n_most: int) -> list[int]:
    """Numbers of features that are given by number or name.

    Raises
    ------
    ValueError
        If there are no such features, or not so many.
    """
    single = isinstance(features, str | Integral)
    given = [features] if single else list(features)
    d, names = len(model.means_[0]), list(getattr(model, "feature_names_in_", ()))
    places = [names.index(f) if f in names else f for f in given]
    known = all(isinstance(p, Integral) and 0 <= int(p) < d for p in places)
    once = len(set(places)) == len(places)
    if not (known and once and n_least <= len(places) <= n_most):
        counts = {1: "one", 2: "two"}
        least = counts.get(n_least, str(n_least))
        how_many = least if n_least == n_most else f"{least} or more"
        by_name = f", or of {', '.join(map(str, names))}" if names else ""
        raise ParameterError(
            f"features must be {how_many} of 0 to {d - 1}{by_name}"
            f"{'' if once else ', each once'}, not {', '.join(map(str, given))}."
        )
    return [int(p) for p in places]


def near_span(values: NDArray[Any], low: float, high: float) -> tuple[float, float]:
    """From where to where an axis goes that else would go from low to high.

    A few rows that lie far from all others would make a point of those: they are left
    out.
    """
    n_far = max(1, int(_FAR * len(values)))
    if len(values) > 2 * n_far:
        ordered = np.sort(values)
        first, last = ordered[n_far], ordered[-1 - n_far]
        width = last - first
        if 0.0 < width * _FARTHEST < max(first - low, high - last):
            edge = _EDGE * width
            low = max(low - edge, first - width)
            high = min(high + edge, last + width)
    return float(low), float(high)


def inside_of(
    points: NDArray[Any], spans: Sequence[tuple[float, float]]
) -> NDArray[np.bool_]:
    """Which points, (n, m), are inside spans along all m axes."""
    low, high = np.array(spans).T
    inside: NDArray[np.bool_] = ((low <= points) & (points <= high)).all(axis=1)
    return inside


def said_of_far(inside: NDArray[np.bool_]) -> str:
    """How many rows are not to be seen; nothing if all are."""
    n_far = int((~inside).sum())
    return f"{n_far:,} of {len(inside):,} rows lie far outside" if n_far else ""
