"""Pictures of what a mixture says of rows: whose they are, and which are outliers."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from scipy.special import entr
from sklearn.utils.validation import check_is_fitted

from daskgmm.estimators.models import check_is_mixture
from daskgmm.plotting import style
from daskgmm.plotting.rows import Feature, names_of, places_of, some_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from daskgmm.estimators.derived import DerivedMixtures
    from daskgmm.estimators.outliers import MixtureOutlierDetector

_POINTS: Final = 20_000
"""Rows that are drawn, at most."""
_NAMED: Final = 10
_NAMED_INSIDE: Final = 5
"""Components that a legend has room for."""
_PALEST: Final = 0.3
"""How much is left of the colour of rows that are between components."""
_SURE: Final = 0.5
"""Entropy, as a part of what it can be, above which a row is nobody's."""


def plot_responsibilities(
    model: DerivedMixtures,
    rows: Any,
    *,
    features: tuple[Feature, Feature] = (0, 1),
    ax: Axes | None = None,
) -> Axes:
    """Draw rows in the colour of their component, the fainter the less sure it is.

    Parameters
    ----------
    model : GaussianMixture or BayesianGaussianMixture
        Fitted.
    rows : rows of shape (n, d)
        Of any kind that `fit` takes: some of them are shown.
    features : tuple of two int or str, default=(0, 1)
        Numbers or names of the features along the axes.
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
    >>> from daskgmm.plotting import plot_responsibilities
    >>> rows = np.random.default_rng(0).normal(size=(1000, 2))
    >>> rows[:400] += 6
    >>> gm = GaussianMixture(2, random_state=0).fit(rows)
    >>> ax = plot_responsibilities(gm, rows)
    >>> ax.get_title()
    '0.0% of rows are between components'
    """
    check_is_mixture(model, "plot_responsibilities")
    places = places_of(features, model, 2, 2)
    table = some_rows(rows, model, _POINTS)
    mixture = _plain(model)
    shares = np.asarray(mixture.predict_proba(table))
    labels, n_components = shares.argmax(axis=1), shares.shape[1]
    unsure = entr(shares).sum(axis=1) / max(np.log(n_components), 1e-300)
    ax = style.new_axes(ax)
    is_beside = _has_room_beside(ax)
    n_named = _NAMED if is_beside else _NAMED_INSIDE
    heaviest = np.argsort(-np.bincount(labels, minlength=n_components))[:n_named]
    for k, (colour, marker) in enumerate(style.markers_of(mixture.means_[:, places])):
        its = labels == k
        if its.any():
            ax.scatter(
                table[its, places[0]],
                table[its, places[1]],
                s=9,
                color=style.faded(colour, np.clip(1.0 - unsure[its], _PALEST, 1.0)),
                marker=marker,
                linewidths=0,
                label=f"{k} ({its.mean():.1%})" if k in heaviest else None,
                rasterized=True,
            )
    nobodys = float((unsure > _SURE).mean())
    title = "component"
    if n_components > n_named:
        title = f"{n_named} largest of {n_components}"
    legend = ax.legend(
        loc="upper left" if is_beside else "best",
        bbox_to_anchor=(1.0, 1.0) if is_beside else None,
        frameon=not is_beside,
        framealpha=0.7,
        markerscale=1.6,
        fontsize="small",
        title_fontsize="small",
        title=title,
    )
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)  # whatever that of its first point is
    across, below = (names_of(model)[place] for place in places)
    style.tidy(ax, xlabel=across, ylabel=below)
    ax.set_title(f"{nobodys:.1%} of rows are between components", fontsize="small")
    return ax


def _has_room_beside(ax: Axes) -> bool:
    """Whether a legend can be beside the points, which it would hide among them.

    The figure's layout makes room for it, if it has one.
    """
    figure = ax.get_figure()
    return figure is not None and figure.get_layout_engine() is not None


def plot_outliers(
    detector: MixtureOutlierDetector,
    rows: Any,
    *,
    features: tuple[Feature, Feature] = (0, 1),
    ax: Axes | None = None,
) -> Axes:
    """Draw rows, and mark those that a detector holds for outliers.

    Parameters
    ----------
    detector : MixtureOutlierDetector
        Fitted.
    rows : rows of shape (n, d)
        Of any kind that `fit` takes: some of them are shown, and counted.
    features : tuple of two int or str, default=(0, 1)
        Numbers or names of the features along the axes.
    ax : matplotlib Axes, default=None
        Where to draw; a new figure if None.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    TypeError
        If it is no detector.
    ValueError
        If the detector knows no such features.

    Examples
    --------
    >>> import numpy as np
    >>> from daskgmm import GaussianMixture, MixtureOutlierDetector
    >>> from daskgmm.plotting import plot_outliers
    >>> rows = np.random.default_rng(0).normal(size=(1000, 2))
    >>> rows[:400] += 6
    >>> detector = MixtureOutlierDetector(GaussianMixture(2, random_state=0))
    >>> ax = plot_outliers(detector.fit(rows), rows)
    >>> ax.get_legend().get_texts()[1].get_text()
    '100 outliers'
    """
    check_is_fitted(detector)
    if not hasattr(detector, "estimator_"):
        raise TypeError(
            "plot_outliers draws what a fitted MixtureOutlierDetector finds, not a "
            f"{type(detector).__name__}: fit MixtureOutlierDetector(mixture)."
        )
    model = detector.estimator_
    places = places_of(features, model, 2, 2)
    table = some_rows(rows, model, _POINTS)
    out = np.asarray(_plain(model).score_samples(table)) < detector.offset_
    ax = style.new_axes(ax)
    for its, colour, marker, size, name in (
        (~out, style.ROWS, "o", 6, "rows"),
        (out, style.OUTLIER, "x", 22, "outliers"),
    ):
        ax.scatter(
            table[its, places[0]],
            table[its, places[1]],
            s=size,
            color=colour,
            marker=marker,
            alpha=0.6 if name == "rows" else 1.0,
            linewidths=0 if marker == "o" else 1.2,
            label=f"{its.sum():,} {name}",
            rasterized=True,
        )
    ax.legend(frameon=False, fontsize="small", title="shown here")
    across, below = (names_of(model)[place] for place in places)
    return style.tidy(ax, xlabel=across, ylabel=below)


def _plain(model: Any) -> Any:
    """A model that takes rows without names, as a table has them."""
    plain = copy(model)
    plain.__dict__.pop("feature_names_in_", None)
    return plain
