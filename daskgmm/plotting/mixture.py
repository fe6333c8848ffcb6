"""Pictures of mixtures: ellipses over rows, curves over histograms, pairs of both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from daskgmm.errors import ParameterError
from daskgmm.estimators.models import check_is_mixture
from daskgmm.plotting import style
from daskgmm.plotting.rows import (
    Feature,
    inside_of,
    names_of,
    near_span,
    places_of,
    said_of_far,
    some_rows,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from daskgmm.estimators.derived import DerivedMixtures

_SIGMAS: Final = (1, 2)
_FEW: Final = 5_000
"""Rows up to which each is a point,"""
_LARGEST: Final = 36.0
"""of at most so much, in square points."""
_MOST_BINS: Final = 200
_FEW_CURVES: Final = 15
"""Components whose curves have numbers: of more, these cover each other."""
_MOST_PAIRS: Final = 6
"""Features that `plot_pairs` draws, unless it is told."""


def plot_mixture(
    model: DerivedMixtures,
    rows: Any = None,
    *,
    features: Feature | tuple[Feature, ...] | None = None,
    true_means: ArrayLike | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a fitted mixture over rows: two features of it, or one.

    Parameters
    ----------
    model : GaussianMixture or BayesianGaussianMixture
        Fitted. Of two features, each component is drawn as ellipses at one and two
        standard deviations, with its number at its mean; of one, as a curve of its
        weight times its density. The more weight it has, the stronger are its lines.
    rows : rows of shape (n, d), default=None
        Of any kind that `fit` takes: some of them are shown, as points where they are
        few, as their density where they are many.
    features : int, str, or tuple of two, default=None
        Numbers or names of the features along the axes: by default the first two, or
        the only one.
    true_means : array-like of shape (J, d), default=None
        Means to mark with rings, where they are known.
    ax : matplotlib Axes, default=None
        Where to draw; a new figure if None.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    TypeError
        If it is no mixture.
    ValueError
        If `model` has no such features.

    Examples
    --------
    >>> import numpy as np
    >>> from daskgmm import GaussianMixture
    >>> from daskgmm.plotting import plot_mixture
    >>> rows = np.random.default_rng(0).normal(size=(1000, 2))
    >>> rows[:400] += 6
    >>> gm = GaussianMixture(2, random_state=0).fit(rows)
    >>> ax = plot_mixture(gm, rows)
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('feature 0', 'feature 1')
    >>> ax.figure.savefig("mixture.png")
    """
    check_is_mixture(model, "plot_mixture")
    if features is None:
        features = (0, 1) if len(model.means_[0]) > 1 else 0
    if isinstance(features, list | tuple) and len(features) == 1:
        [features] = features
    is_single = isinstance(features, str | int | np.integer)
    n = 1 if is_single else 2
    places = places_of(features, model, n, n)
    table = None if rows is None else some_rows(rows, model)[:, places]
    true = None if true_means is None else np.asarray(true_means)[:, places]
    ax = style.new_axes(ax)
    if is_single:
        return _draw_one(ax, model, places[0], table, true)
    return _draw_two(ax, model, places, table, true)


def plot_pairs(
    model: DerivedMixtures,
    rows: Any = None,
    *,
    features: list[Feature] | None = None,
    axes: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Draw each two features of a fitted mixture, and each alone on the diagonal.

    Parameters
    ----------
    model, rows
        As of `plot_mixture`.
    features : sequence of int or str, default=None
        By default the first six, or all if they are fewer.
    axes : ndarray of matplotlib Axes, shape (m, m), default=None
        Where to draw; a new figure if None.

    Returns
    -------
    ndarray of matplotlib Axes, shape (m, m)

    Raises
    ------
    TypeError
        If it is no mixture.
    ValueError
        If `model` has no such features, or `axes` are not as many.

    Examples
    --------
    >>> import numpy as np
    >>> from daskgmm import GaussianMixture
    >>> from daskgmm.plotting import plot_pairs
    >>> rows = np.random.default_rng(0).normal(size=(1000, 2))
    >>> rows[:400] += 6
    >>> gm = GaussianMixture(2, random_state=0).fit(rows)
    >>> plot_pairs(gm, rows).shape
    (2, 2)
    """
    check_is_mixture(model, "plot_pairs")
    d = len(model.means_[0])
    wanted = list(range(min(d, _MOST_PAIRS))) if features is None else features
    places = places_of(wanted, model, 1, d)
    m = len(places)
    table = None if rows is None else some_rows(rows, model)
    figure = None
    if axes is None:
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(
            m, m, figsize=(2.2 * m, 2.2 * m), layout="constrained", squeeze=False
        )
    if np.shape(axes) != (m, m):
        raise ParameterError(
            f"axes must have the shape {(m, m)}, not {np.shape(axes)}."
        )
    for i, below in enumerate(places):
        for j, across in enumerate(places):
            _draw_cell(axes[i, j], model, below, across, table)
            axes[i, j].label_outer()
    if figure is not None and table is not None and len(table):
        spans = [_span(model, place, table[:, place]) for place in places]
        if said := said_of_far(inside_of(table[:, places], spans)):
            figure.suptitle(said, fontsize="small")
    return axes


def _draw_cell(
    ax: Axes,
    model: DerivedMixtures,
    below: int,
    across: int,
    table: NDArray[Any] | None,
) -> None:
    if below == across:
        its = None if table is None else table[:, [below]]
        _draw_one(ax, model, below, its, None, labelled=False)
        ax.set(yticks=[], ylabel=names_of(model)[below])
        return
    pair = [across, below]
    its = None if table is None else table[:, pair]
    _draw_two(ax, model, pair, its, None, labelled=False)


# --- one feature ----------------------------------------------------------------------


def _draw_one(
    ax: Axes,
    model: DerivedMixtures,
    place: int,
    table: NDArray[Any] | None,
    true: NDArray[Any] | None,
    *,
    labelled: bool = True,
) -> Axes:
    """Curves of weighted densities, over a histogram."""
    means, variances = _of_one(model, place)
    deviations, weights = np.sqrt(variances), np.asarray(model.weights_)
    low, high = _span(model, place, None if table is None else table[:, 0])
    if table is not None and len(table):
        ax.hist(
            table[:, 0],
            bins=_n_bins(len(table)),
            range=(low, high),
            density=True,
            color=style.ROWS,
            alpha=0.45,
        )
        inside = inside_of(table, [(low, high)])
        if labelled:
            ax.set_title(said_of_far(inside), fontsize="small")
    # The narrowest of the peaks has points enough.
    near = means + deviations * np.linspace(-4.0, 4.0, 81)[:, np.newaxis]
    x = np.unique(np.concatenate([np.linspace(low, high, 500), near.ravel()]))
    x = x[(x >= low) & (x <= high)]
    z = (x[:, np.newaxis] - means) / deviations
    curves = weights * np.exp(-0.5 * z**2) / (deviations * np.sqrt(2.0 * np.pi))
    stress = style.emphasis(weights)
    heaviest = np.argsort(-weights)[:_FEW_CURVES]
    strokes = style.strokes_of(means[:, np.newaxis])
    for k, (colour, line) in enumerate(strokes):
        ax.plot(
            x, curves[:, k], color=colour, linestyle=line, linewidth=2.2 * stress[k]
        )
        if labelled and k in heaviest:
            _number(ax, k, (means[k], curves[:, k].max()), colour)
    ax.plot(x, curves.sum(axis=1), color=style.foreground(), linewidth=1, alpha=0.8)
    for mean in [] if true is None else true[:, 0]:
        ax.axvline(mean, color=style.foreground(), linewidth=1, linestyle=":")
    ax.set_ylim(bottom=0.0)
    return style.tidy(ax, xlabel=names_of(model)[place], ylabel="density")


def _of_one(
    model: DerivedMixtures, place: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means and variances of a feature, (K,)."""
    some = model._plain_mixture()
    variances = some.shape.variances(some.covariances, some.n_features)
    whole = np.broadcast_to(variances, some.means.shape)
    return some.means[:, place], whole[:, place]


def _span(
    model: DerivedMixtures, place: int, values: NDArray[Any] | None
) -> tuple[float, float]:
    """From where to where a feature is drawn: the components that count, and rows.

    Without a few rows that lie far from all others, and components of them.
    """
    means, variances = _of_one(model, place)
    weights, reach = np.asarray(model.weights_), 3.5 * np.sqrt(variances)
    counts = weights > 1e-3 * weights.max()
    low, high = (means - reach)[counts].min(), (means + reach)[counts].max()
    if values is None or not len(values):
        return float(low), float(high)
    return near_span(values, min(low, values.min()), max(high, values.max()))


def _n_bins(n: int) -> int:
    """So few that each bin has some rows."""
    return int(np.clip(2.0 * n ** (1.0 / 3.0), 10, _MOST_BINS))


# --- two features ---------------------------------------------------------------------


def _draw_two(
    ax: Axes,
    model: DerivedMixtures,
    pair: list[int],
    table: NDArray[Any] | None,
    true: NDArray[Any] | None,
    *,
    labelled: bool = True,
) -> Axes:
    if table is not None and len(table):
        spans = [_span(model, k, table[:, i]) for i, k in enumerate(pair)]
        inside = inside_of(table, spans)
        _draw_rows(ax, table[inside])
        if not inside.all():
            ax.set(xlim=spans[0], ylim=spans[1])
            if labelled:
                ax.set_title(said_of_far(inside), fontsize="small")
    _draw_components(ax, model, pair, labelled=labelled)
    if true is not None:
        _draw_rings(ax, true)
    across, below = (names_of(model)[place] for place in pair)
    return style.tidy(ax, xlabel=across, ylabel=below)


def _draw_rows(ax: Axes, rows: NDArray[Any]) -> None:
    """Points where they are few, else how many there are in small squares."""
    if len(rows) <= _FEW:
        n_points = len(np.unique(rows, axis=0))  # many at a place are one to the eye
        size = float(np.clip(3000.0 / max(n_points, 1), 3.0, _LARGEST))
        ax.scatter(
            rows[:, 0],
            rows[:, 1],
            s=size,
            color=style.ROWS,
            alpha=0.6,
            linewidths=0,
            rasterized=True,
        )
        return
    from matplotlib.colors import PowerNorm

    # The root of the counts shows the flanks of peaks that are far higher than they.
    ax.hist2d(
        rows[:, 0],
        rows[:, 1],
        bins=int(np.clip(np.sqrt(len(rows) / 5.0), 30, _MOST_BINS)),
        cmap=style.density_colours(),
        norm=PowerNorm(0.5),
        cmin=1,
        rasterized=True,
    )


def _draw_components(
    ax: Axes, model: DerivedMixtures, pair: list[int], *, labelled: bool
) -> None:
    mixture = model._plain_mixture()
    stress = style.emphasis(mixture.weights)
    strokes = style.strokes_of(mixture.means[:, pair])
    for k, (colour, line) in enumerate(strokes):
        mean = mixture.means[k, pair]
        stored = mixture.shape.of_component(mixture.covariances, k)
        whole = stored if mixture.shape.dense else stored * np.eye(mixture.n_features)
        for n_sigmas in _SIGMAS:
            outline = _ellipse(mean, whole[np.ix_(pair, pair)], n_sigmas)
            outline.set(
                edgecolor=colour,
                facecolor="none",
                linestyle=line,
                linewidth=2.2 * stress[k] / n_sigmas,
                alpha=float(stress[k]),
            )
            ax.add_patch(outline)
        ax.plot(
            *mean,
            linestyle="none",
            marker="+",
            color=colour,
            markersize=8,
            markeredgewidth=1.6,
            label="found mean" if k == 0 else None,
        )
        if labelled:
            _number(ax, k, (mean[0], mean[1]), colour)
    ax.autoscale_view()


def _ellipse(mean: NDArray[Any], covariance: NDArray[Any], n_sigmas: int) -> Any:
    """Where the Mahalanobis distance from `mean` is `n_sigmas`."""
    from matplotlib.patches import Ellipse

    variances, axes = np.linalg.eigh(covariance)
    width, height = 2 * n_sigmas * np.sqrt(np.maximum(variances, 0.0))
    angle = np.degrees(np.arctan2(axes[1, 0], axes[0, 0]))
    return Ellipse((mean[0], mean[1]), width, height, angle=angle)


def _number(ax: Axes, k: int, at: tuple[float, float], colour: str) -> None:
    """The number of a component, beside a place."""
    ax.annotate(
        str(k),
        at,
        xytext=(5, 4),
        textcoords="offset points",
        color=colour,
        fontsize="small",
        fontweight="bold",
        path_effects=style.outlined(ax),
    )


def _draw_rings(ax: Axes, means: NDArray[Any]) -> None:
    ax.plot(
        *means.T,
        linestyle="none",
        marker="o",
        markersize=13,
        markerfacecolor="none",
        markeredgecolor=style.foreground(),
        label="true mean",
    )
