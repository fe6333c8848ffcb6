"""Pictures of what a mixture says of rows: whose they are, and which are outliers."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr
from sklearn.utils.validation import check_is_fitted

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
    features: Feature | tuple[Feature, ...] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw rows in the colour of their component, the fainter the less sure it is.

    Parameters
    ----------
    model : GaussianMixture or BayesianGaussianMixture
        Fitted.
    rows : rows of shape (n, d)
        Of any kind that `fit` takes: some of them are shown.
    features : int, str, or tuple of two, default=None
        Numbers or names of the features along the axes: by default the first two, or
        the only one. Above one feature is the rows' log density.
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
    places = _places(features, model)
    table = some_rows(rows, model, _POINTS)
    mixture = _plain(model)
    points = _points(mixture, table, places)
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
                points[its, 0],
                points[its, 1],
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
    far = _leave_out_far(ax, points)
    said = f"{nobodys:.1%} of rows are between components"
    ax.set_title("\n".join(filter(None, [said, far])), fontsize="small")
    return _with_names(ax, model, places)


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
    features: Feature | tuple[Feature, ...] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw rows, and mark those that a detector holds for outliers.

    Parameters
    ----------
    detector : MixtureOutlierDetector
        Fitted.
    rows : rows of shape (n, d)
        Of any kind that `fit` takes: some of them are shown, and counted.
    features : int, str, or tuple of two, default=None
        Numbers or names of the features along the axes: by default the first two, or
        the only one. Above one feature is the rows' log density.
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
    places = _places(features, model)
    table = some_rows(rows, model, _POINTS)
    mixture = _plain(model)
    points = _points(mixture, table, places)
    out = np.asarray(mixture.score_samples(table)) < detector.offset_
    ax = style.new_axes(ax)
    for its, colour, marker, size, name in (
        (~out, style.ROWS, "o", 6, "rows"),
        (out, style.OUTLIER, "x", 22, "outliers"),
    ):
        ax.scatter(
            points[its, 0],
            points[its, 1],
            s=size,
            color=colour,
            marker=marker,
            alpha=0.6 if name == "rows" else 1.0,
            linewidths=0 if marker == "o" else 1.2,
            label=f"{its.sum():,} {name}",
            rasterized=True,
        )
    ax.legend(frameon=False, fontsize="small", title="shown here")
    ax.set_title(_leave_out_far(ax, points), fontsize="small")
    return _with_names(ax, model, places)


def _places(features: Any, model: Any) -> list[int]:
    """Numbers of the features along the axes, of which there are one or two."""
    if features is None:
        features = (0, 1) if len(model.means_[0]) > 1 else 0
    return places_of(features, model, 1, 2)


def _points(
    mixture: Any, table: NDArray[Any], places: Sequence[int]
) -> NDArray[np.float64]:
    """Rows' places along the axes, (n, 2): above one feature is their log density."""
    if len(places) == 2:
        return table[:, places]
    return np.column_stack([table[:, places[0]], mixture.score_samples(table)])


def _leave_out_far(ax: Axes, points: NDArray[Any]) -> str:
    """Limit axes where few points would make one of all others; say how many."""
    if not len(points):
        return ""
    spans = [near_span(x, x.min(), x.max()) for x in points.T]
    inside = inside_of(points, spans)
    if not inside.all():
        ax.set(xlim=spans[0], ylim=spans[1])
    return said_of_far(inside)


def _with_names(ax: Axes, model: Any, places: Sequence[int]) -> Axes:
    names = [*(names_of(model)[place] for place in places), "log density"]
    return style.tidy(ax, xlabel=names[0], ylabel=names[1])


def _plain(model: Any) -> Any:
    """A model that takes rows without names, as a table has them."""
    plain = copy(model)
    plain.__dict__.pop("feature_names_in_", None)
    return plain
