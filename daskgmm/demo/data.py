"""The demo's rows: a known mixture, and what is drawn from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import dask.array as da
import numpy as np
import zarr
from numpy.typing import NDArray

from daskgmm.storage.urls import remove_tree

N_COMPONENTS: Final = 5
N_FEATURES: Final = 6
BLOCK_ROWS: Final = 2**17

Array = NDArray[np.float64]

_MARK: Final = {"made by": "daskgmm demo"}


@final
@dataclass(frozen=True, slots=True)
class Truth:
    """The mixture that the rows are drawn from.

    Attributes
    ----------
    weights : ndarray of shape (K,)
    means : ndarray of shape (K, d)
    roots : ndarray of shape (K, d, d)
        A component's rows are its mean plus standard normal rows times its root.
    """

    weights: Array
    means: Array
    roots: Array

    @property
    def covariances(self) -> Array:
        """(K, d, d)."""
        products: Array = np.matmul(self.roots.transpose(0, 2, 1), self.roots)
        return products


def make_truth(seed: int) -> Truth:
    """Five components that overlap a little."""
    rng = np.random.default_rng(seed)
    weights = np.array([0.30, 0.25, 0.20, 0.15, 0.10])
    angles = 2 * np.pi * np.arange(N_COMPONENTS) / N_COMPONENTS
    means = rng.normal(size=(N_COMPONENTS, N_FEATURES))
    # Features 0 and 1 are the ones in the picture: their means lie on a ring.
    means[:, :2] = 5.0 * np.column_stack([np.cos(angles), np.sin(angles)])
    noise = rng.normal(size=(N_COMPONENTS, N_FEATURES, N_FEATURES))
    roots = np.eye(N_FEATURES) + 0.25 * noise
    return Truth(weights, means, roots)


def draw_block(
    truth: Truth, n_rows: int, seed: int, block_id: tuple[int, ...] = (0,)
) -> Array:
    """One block of rows, (n, d): the same whatever draws it, and when."""
    rng = np.random.default_rng([seed, block_id[0]])
    rows = rng.standard_normal((n_rows, truth.means.shape[1]))
    ends = np.cumsum(rng.multinomial(n_rows, truth.weights))[:-1]
    for k, part in enumerate(np.split(rows, ends)):  # views
        part[:] = part @ truth.roots[k] + truth.means[k]
    return rng.permutation(rows)


def is_of_demo(store: Path) -> bool:
    """Whether an array was written here, even if the writing was broken off."""
    try:
        said = json.loads((store / "zarr.json").read_text())["attributes"]
    except (OSError, ValueError, KeyError):
        return False
    return bool(said == _MARK)


def write(url: str, truth: Truth, n_blocks: int, seed: int) -> None:
    """Write rows of a mixture to a Zarr array, each block where Dask puts it."""
    n_features = truth.means.shape[1]
    rows = da.map_blocks(
        draw_block,
        truth,
        BLOCK_ROWS,
        seed,
        chunks=((BLOCK_ROWS,) * n_blocks, (n_features,)),
        dtype=np.float64,
        meta=np.empty((0, 0)),
    )
    remove_tree(url)
    target = zarr.create_array(
        url,
        shape=rows.shape,
        chunks=rows.chunksize,
        dtype=rows.dtype,
        compressors=None,  # random digits cannot be compressed
        attributes=dict(_MARK),
    )
    da.store(rows, target, lock=False)  # type: ignore[arg-type]
