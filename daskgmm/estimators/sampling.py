"""Rows drawn from a fitted mixture, however many: block by block."""

from __future__ import annotations

from copy import copy
from typing import Any, Final

import dask.array as da
import numpy as np
from dask.delayed import delayed
from numpy.typing import NDArray

from daskgmm.estimators.gaussian import GaussianMixture

_BLOCK_BYTES: Final = 8_000_000


def draw_lazily(model: GaussianMixture, n_rows: int, seed: int) -> da.Array:
    """Rows from a fitted mixture, in random order, as a lazy Dask array.

    They depend on the mixture, the number of its features and the seed alone: block i
    is drawn with the i-th child of the seed (`numpy.random.SeedSequence`), whoever
    draws it and whatever else is drawn. So the first blocks are the same for any
    number of rows; only the last block, which is shorter, is not.

    Parameters
    ----------
    model : GaussianMixture
    n_rows : int
    seed : int

    Returns
    -------
    dask.array.Array of float64, shape (n_rows, d)
    """
    n_features = model.n_features_in_
    most = max(1, _BLOCK_BYTES // (8 * n_features))
    lengths = [min(most, n_rows - first) for first in range(0, n_rows, most)]
    shared = delayed(model, pure=True)
    blocks = [
        da.from_delayed(
            delayed(_draw_block)(shared, length, seed, i),
            (length, n_features),
            dtype=np.float64,
        )
        for i, length in enumerate(lengths)
    ]
    rows: da.Array = da.concatenate(blocks)
    return rows


def _draw_block(
    model: GaussianMixture, n_rows: int, seed: int, block: int
) -> NDArray[Any]:
    words = np.random.SeedSequence(seed, spawn_key=(block,)).generate_state(8)
    random_state = np.random.RandomState(words)
    drawing = copy(model).set_params(random_state=random_state)
    by_component, _ = drawing.sample(n_rows)
    rows: NDArray[Any] = by_component[random_state.permutation(n_rows)]
    return rows
