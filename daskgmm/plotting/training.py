"""Pictures of how fits went, and searches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from sklearn.utils.validation import check_is_fitted

from daskgmm.errors import ParameterError
from daskgmm.estimators.models import check_is_mixture
from daskgmm.plotting import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from daskgmm.estimators.search import MixtureSearch
    from daskgmm.estimators.trained import TrainedMixture

_FEW_RUNS: Final = 8
"""Runs up to which each is named."""


def plot_convergence(model: TrainedMixture, *, ax: Axes | None = None) -> Axes:
    """Draw the lower bound of each run by pass; the run that was kept stands out.

    Parameters
    ----------
    model : GaussianMixture or BayesianGaussianMixture
        Fitted.
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
        If no passes are known, as of a model that was made of another one.

    Examples
    --------
    >>> import numpy as np
    >>> from daskgmm import GaussianMixture
    >>> from daskgmm.plotting import plot_convergence
    >>> rows = np.random.default_rng(0).normal(size=(1000, 2))
    >>> rows[:400] += 6
    >>> gm = GaussianMixture(2, n_init=3, random_state=0).fit(rows)
    >>> ax = plot_convergence(gm)
    >>> len(ax.lines)
    3
    """
    check_is_mixture(model, "plot_convergence")
    told = getattr(model, "history_", None)
    if told is None or not len(told["n_pass"]):
        raise ParameterError(
            "The model has no history of passes: it was not fitted here."
        )
    ax = style.new_axes(ax)
    runs = np.unique(told["run"])
    last = {run: told["bound"][told["run"] == run][-1] for run in runs}
    kept = min(last, key=lambda run: (abs(last[run] - model.lower_bound_), run))
    first_other = next((run for run in runs if run != kept), None)
    for run, (colour, line) in zip(runs, style.strokes(len(runs)), strict=True):
        its = told["run"] == run
        is_kept = run == kept
        label: str | None = f"run {run}, kept" if is_kept else f"run {run}"
        if len(runs) > _FEW_RUNS and not is_kept:
            # Of so many, names would cover the picture.
            colour, line = style.ROWS, "-"
            label = f"{len(runs) - 1} other runs" if run == first_other else None
        ax.plot(
            told["n_pass"][its],
            told["bound"][its],
            color=colour,
            linestyle=line,
            linewidth=2.2 if is_kept else 1.0,
            marker="." if its.sum() < 30 else None,
            zorder=3 if is_kept else 2,
            label=label,
        )
    if len(runs) > 1:
        ax.legend(frameon=False, fontsize="small")
    style.count_along(ax)
    # Not as what is beside a number that stands apart.
    ax.ticklabel_format(axis="y", useOffset=False)
    return style.tidy(ax, xlabel="pass", ylabel="lower bound")


def plot_criterion(search: MixtureSearch, *, ax: Axes | None = None) -> Axes:
    """Draw a search's criterion by the number of components; the best has a ring.

    Parameters
    ----------
    search : MixtureSearch
        Fitted.
    ax : matplotlib Axes, default=None
        Where to draw; a new figure if None.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    TypeError
        If it is no search.

    Examples
    --------
    >>> import numpy as np
    >>> from daskgmm import MixtureSearch
    >>> from daskgmm.plotting import plot_criterion
    >>> rows = np.random.default_rng(0).normal(size=(1000, 2))
    >>> rows[:400] += 6
    >>> search = MixtureSearch((1, 2, 3), covariance_type="full", random_state=0)
    >>> ax = plot_criterion(search.fit(rows))
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('components', 'bic')
    """
    check_is_fitted(search)
    if not hasattr(search, "results_"):
        raise TypeError(
            "plot_criterion draws a fitted MixtureSearch, not a "
            f"{type(search).__name__}."
        )
    ax = style.new_axes(ax)
    found, lines = search.results_, dict[str, list[tuple[int, float]]]()
    for params, value in zip(found["params"], found[search.criterion], strict=True):
        others = [str(v) for name, v in params.items() if name != "n_components"]
        lines.setdefault(", ".join(others), []).append((params["n_components"], value))
    for (name, points), (colour, line) in zip(
        lines.items(), style.strokes(len(lines)), strict=True
    ):
        ax.plot(
            *np.array(sorted(points)).T,
            color=colour,
            linestyle=line,
            marker="o",
            markersize=4,
            label=name,
        )
    ax.plot(
        search.best_params_["n_components"],
        search.best_score_,
        linestyle="none",
        marker="o",
        markersize=13,
        markerfacecolor="none",
        markeredgecolor=style.foreground(),
        label="best",
    )
    ax.legend(frameon=False, fontsize="small")
    style.count_along(ax)
    return style.tidy(ax, xlabel="components", ylabel=search.criterion)
