"""A walk through GaussianMixture on a Dask array.

Run as ``python seed_walkthrough.py [FOLDER]``; a picture is saved to the folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import dask.array as da
import matplotlib

matplotlib.use("agg")  # a picture in a file, no window

import numpy as np
from matplotlib import pyplot as plt
from sklearn.datasets import make_blobs

from daskgmm import GaussianMixture
from daskgmm.plotting import plot_mixture


def make_data() -> da.Array:
    """1,250 rows in three clusters: two long ones side by side, and a round one."""
    long, _ = make_blobs(n_samples=1000, centers=((4, -4), (0, 0)), random_state=42)
    long = long @ [[0.374, 0.95], [0.732, 0.598]]
    small, _ = make_blobs(n_samples=250, centers=1, random_state=42)
    rows = np.concatenate([long, small + [6, -8]])
    return da.from_array(rows, chunks=(250, 2))


def main(folder: Path) -> GaussianMixture:
    X = make_data()

    # Ten starts train at once: each block is read once per iteration for all of them.
    gm = GaussianMixture(n_components=3, n_init=10, random_state=42).fit(X)
    print("weights_   ", gm.weights_.round(4))
    print("means_     ", *gm.means_.round(3))
    print("converged_ ", gm.converged_)
    print("n_iter_    ", gm.n_iter_)

    # Answers about a Dask array are Dask arrays: lazy, and chunked like it.
    print("\npredict        ", gm.predict(X))
    print("its first rows ", gm.predict(X)[:10].compute())
    print("predict_proba   ", *gm.predict_proba(X)[:3].compute().round(3))
    print("score_samples   ", gm.score_samples(X)[:5].compute().round(3))
    print("score           ", round(gm.score(X), 4))
    print("bic and aic     ", round(gm.bic(X), 1), round(gm.aic(X), 1))

    # The model is generative.
    rows, components = gm.sample(6)
    print("\nsample(6)")
    for row, component in zip(rows.round(3), components, strict=True):
        print("  ", row, "of component", component)

    picture = folder / "covariance_types.png"
    plot_covariance_types(X).savefig(picture, dpi=150)
    print("\nThe four covariance types are drawn in", picture.name)
    return gm


def plot_covariance_types(X: da.Array) -> plt.Figure:
    figure, grid = plt.subplots(2, 2, figsize=(9, 8), layout="constrained")
    rows = X.compute()
    types = ("full", "tied", "diag", "spherical")
    for ax, covariance_type in zip(grid.flat, types, strict=True):
        gm = GaussianMixture(3, covariance_type=covariance_type, random_state=42)
        gm.fit(X)
        ax.scatter(*rows.T, s=3, color="0.75")
        plot_mixture(gm, ax=ax)
        ax.set_title(f"{covariance_type}, BIC {gm.bic(X):.0f}")
    return figure


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
