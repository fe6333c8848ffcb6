"""Pictures of mixtures. Needs Matplotlib: ``pip install 'daskgmm[plot]'``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from daskgmm.mixtures.covariance import SHAPES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from daskgmm.estimators.gaussian import GaussianMixture

_SIGMAS: Final = (1, 2)
_N_BINS: Final = 200


def plot_mixture(
    model: GaussianMixture,
    rows: ArrayLike | None = None,
    *,
    features: tuple[int, int] = (0, 1),
    true_means: ArrayLike | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw two features of a fitted mixture.

    Parameters
    ----------
    model : GaussianMixture
        Fitted. Each component is drawn as ellipses at one and two standard
        deviations, with a cross at its mean.
    rows : array-like of shape (n, d), default=None
        Rows to show the density of, as a histogram: a sample of the data, in memory.
    features : tuple of two int, default=(0, 1)
        The features along the two axes.
    true_means : array-like of shape (J, d), default=None
        Means to mark with rings, where they are known.
    ax : matplotlib Axes, default=None
        Where to draw; a new figure if None.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If `model` has no such features.
    """
    check_is_fitted(model)
    pair = list(features)
    if len(pair) != 2 or not all(0 <= f < model.n_features_in_ for f in pair):
        raise ValueError(
            f"features must be two of 0 to {model.n_features_in_ - 1}, not {features}."
        )
    if ax is None:
        from matplotlib import pyplot as plt

        _, ax = plt.subplots(layout="constrained")
    if rows is not None:
        _draw_density(ax, np.asarray(rows)[:, pair])
    _draw_components(ax, model, pair)
    if true_means is not None:
        _draw_rings(ax, np.asarray(true_means)[:, pair])
    names = getattr(model, "feature_names_in_", None)
    labels = [f"feature {f}" if names is None else str(names[f]) for f in pair]
    ax.set(xlabel=labels[0], ylabel=labels[1])
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _draw_density(ax: Axes, rows: NDArray[Any]) -> None:
    from matplotlib.colors import PowerNorm

    # The root of the counts shows the flanks of peaks that are far higher than they.
    ax.hist2d(
        rows[:, 0],
        rows[:, 1],
        bins=_N_BINS,
        cmap="Greys",
        norm=PowerNorm(0.5),
        cmin=1,
        rasterized=True,
    )


def _draw_components(ax: Axes, model: GaussianMixture, pair: list[int]) -> None:
    for k, mean in enumerate(model.means_[:, pair]):
        colour = f"C{k}"
        covariance = _covariance(model, k)[np.ix_(pair, pair)]
        for n_sigmas in _SIGMAS:
            _draw_ellipse(ax, mean, covariance, n_sigmas, colour)
        ax.plot(
            *mean,
            linestyle="none",
            marker="+",
            color=colour,
            markersize=9,
            markeredgewidth=2,
            label="found mean" if k == 0 else None,
        )


def _covariance(model: GaussianMixture, k: int) -> NDArray[Any]:
    """Covariance of component k, (d, d)."""
    shape = SHAPES[model.covariance_type]
    stored = shape.of_component(model.covariances_, k)
    return stored if shape.dense else stored * np.eye(model.n_features_in_)


def _draw_ellipse(
    ax: Axes,
    mean: NDArray[Any],
    covariance: NDArray[Any],
    n_sigmas: int,
    colour: str,
) -> None:
    """Draw where the Mahalanobis distance from `mean` is `n_sigmas`."""
    from matplotlib.patches import Ellipse

    variances, axes = np.linalg.eigh(covariance)
    width, height = 2 * n_sigmas * np.sqrt(variances)
    angle = np.degrees(np.arctan2(axes[1, 0], axes[0, 0]))
    outline = Ellipse(
        (mean[0], mean[1]),
        width,
        height,
        angle=angle,
        edgecolor=colour,
        facecolor="none",
        linewidth=2 / n_sigmas,
    )
    ax.add_patch(outline)
    ax.autoscale_view()


def _draw_rings(ax: Axes, means: NDArray[Any]) -> None:
    ax.plot(
        *means.T,
        linestyle="none",
        marker="o",
        markersize=13,
        markerfacecolor="none",
        markeredgecolor="black",
        label="true mean",
    )
