"""What is done about gaps in data: rows with NaN, chunks that are not there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from daskgmm.storage.zarr_store import Missing

Nan = Literal["error", "skip"]


@final
@dataclass(frozen=True, slots=True)
class Gaps:
    """What the estimator's parameters of these names say.

    Attributes
    ----------
    missing_chunks : {'error', 'fill'}
    nan : {'error', 'skip'}
    """

    missing_chunks: Missing = "error"
    nan: Nan = "error"


def has_nan(x: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows (n, d) have a NaN."""
    found: NDArray[np.bool_] = np.isnan(x).any(axis=1)
    return found


def left_out(
    x: NDArray[Any], weights: NDArray[np.float64] | None, nan: Nan
) -> tuple[NDArray[np.bool_], int] | None:
    """Which rows (n, d), not all of which are finite, are left out of a fit.

    Those with NaN, if they are to be skipped; and those of weight 0, which count for
    nothing, whatever they hold.

    Returns
    -------
    ndarray of bool, shape (n,), and the number of rows with weight among them; or None
        if none is left out
    """
    skipped = has_nan(x) if nan == "skip" else np.zeros(len(x), dtype=bool)
    out = skipped
    if weights is not None:
        weightless = weights == 0
        skipped = skipped & ~weightless
        out = out | (weightless & ~np.isfinite(x).all(axis=1))
    return (out, int(skipped.sum())) if out.any() else None
