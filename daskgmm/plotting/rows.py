"""Rows for pictures: some of them, of any kind, and the features that are drawn."""

from __future__ import annotations

from numbers import Integral
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from daskgmm.data.dask_array import as_dask, with_care
from daskgmm.data.gaps import Gaps
from daskgmm.data.inputs import open_input

MOST: Final = 200_000
"""Rows that a picture shows."""
_BLOCKS: Final = 8
"""Blocks that are read of lazy rows, chosen at random."""
Feature = str | int


def some_rows(X: Any, model: Any, most: int = MOST) -> NDArray[np.float64]:
    """Rows without NaN: all, or so many of them, drawn with a fixed seed.

    Parameters
    ----------
    X : rows of any kind that a mixture takes
    model : fitted mixture
        Of as many features, or of these names.
    most : int

    Raises
    ------
    ValueError
        If they have another number of features.
    """
    random = np.random.default_rng(0)
    gaps = Gaps(model.missing_chunks, model.nan)
    given = open_input(X, gaps)
    rows: Any = given.rows
    if given.is_lazy:
        blocks = with_care(as_dask(rows, gaps), gaps)
        n_blocks = blocks.numblocks[0]
        chosen = random.permutation(n_blocks)[:_BLOCKS]
        rows = blocks.blocks[sorted(chosen.tolist())].compute()
    table = np.ma.filled(np.ma.asarray(rows, dtype=np.float64), np.nan)
    d = len(model.means_[0])
    if table.ndim != 2 or table.shape[1] != d:
        raise ValueError(
            f"X has the shape {table.shape}, and the mixture has {d} features."
        )
    table = table[~np.isnan(table).any(axis=1)]
    if len(table) > most:
        table = table[np.sort(random.choice(len(table), most, replace=False))]
    return table


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
    if not known or not n_least <= len(places) <= n_most:
        counts = {1: "one", 2: "two"}
        least = counts.get(n_least, str(n_least))
        how_many = least if n_least == n_most else f"{least} or more"
        by_name = f", or of {', '.join(map(str, names))}" if names else ""
        raise ValueError(
            f"features must be {how_many} of 0 to {d - 1}{by_name}, not {features}."
        )
    return [int(p) for p in places]
