"""Pictures of how fits and searches went, and of what mixtures say of rows."""

from __future__ import annotations

from functools import partial

import dask.array as da
import numpy as np
import pandas as pd
import pytest
from conftest import blobs
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

import daskgmm
from daskgmm import GaussianMixture, MixtureOutlierDetector, MixtureSearch
from daskgmm.plotting import (
    plot_convergence,
    plot_criterion,
    plot_mixture,
    plot_outliers,
    plot_pairs,
    plot_responsibilities,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def axes():
    return Figure().add_subplot()


def test_each_run_has_a_curve_and_the_kept_one_stands_out():
    x = blobs(0, 600, 2, 4, spread=1.5)
    model = GaussianMixture(4, n_init=3, random_state=1, tol=1e-6, init_params="random")
    ax = plot_convergence(model.fit(x), ax=axes())
    assert len(ax.lines) == 3
    [kept] = [line for line in ax.lines if "kept" in line.get_label()]
    assert kept.get_ydata()[-1] == model.lower_bound_
    np.testing.assert_array_equal(kept.get_ydata(), model.lower_bounds_)
    assert all(kept.get_linewidth() >= line.get_linewidth() for line in ax.lines)
    with pytest.raises(ValueError, match="no history of passes"):
        plot_convergence(model.marginal(0), ax=axes())


@pytest.mark.parametrize("criterion", ["bic", "held_out"])
def test_a_search_is_lines_by_shape_with_the_best_marked(criterion):
    x = blobs(0, 400, 2, 3, spread=6.0)
    search = MixtureSearch(
        (3, 1, 2), covariance_type=("full", "diag"), criterion=criterion, random_state=0
    ).fit(x)
    ax = plot_criterion(search, ax=axes())
    *lines, best = ax.lines
    assert [line.get_label() for line in lines] == ["full", "diag"]
    for line, shape in zip(lines, ("full", "diag"), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
        its = search.results_["param_covariance_type"] == shape
        order = np.argsort(search.results_["param_n_components"][its])
        np.testing.assert_array_equal(
            line.get_ydata(), search.results_[criterion][its][order]
        )
    assert best.get_xydata().tolist() == [
        [search.best_params_["n_components"], search.best_score_]
    ]


def test_rows_have_the_colour_of_their_component_and_are_faint_between():
    x = np.concatenate([np.random.default_rng(0).normal(size=(300, 2)) - 4] * 2)
    x[300:] += 8
    x = np.concatenate([x, [[0.0, 0.0]]])
    model = GaussianMixture(2, covariance_type="tied", random_state=0).fit(x)
    x[-1] = model.means_.mean(axis=0)
    ax = plot_responsibilities(model, x, ax=Figure(layout="tight").add_subplot())
    labels, sizes, faintest = model.predict(x), [], []
    for k, points in enumerate(ax.collections):
        sizes.append(len(points.get_offsets()))
        faintest.append(points.get_facecolors()[:, 3].min())
        assert sizes[-1] == (labels == k).sum()
    assert sum(sizes) == len(x)
    assert min(faintest) == 0.3
    legend = ax.get_legend()
    assert [handle.get_alpha() for handle in legend.legend_handles] == [1.0, 1.0]
    ax.figure.draw_without_rendering()
    beside = legend.get_window_extent().x0 >= ax.get_window_extent().x1
    assert beside, "it hides points"
    assert "0.2% of rows are between components" in ax.get_title()


@pytest.mark.parametrize("lazy", [False, True])
def test_outliers_are_those_of_the_detector(lazy):
    x = pd.DataFrame(blobs(0, 500, 3, 2), columns=["a", "b", "c"])
    detector = MixtureOutlierDetector(GaussianMixture(2, random_state=0))
    detector.set_params(contamination=0.04).fit(x)
    if lazy:
        detector.fit(x.to_numpy())
    rows = da.from_array(x.to_numpy(), chunks=(100, 3)) if lazy else x
    features = (2, 0) if lazy else ("c", "a")
    ax = plot_outliers(detector, rows, features=features, ax=axes())
    inside, outside = ax.collections
    out = np.asarray(detector.predict(rows)) == -1
    assert 0 < out.sum() <= 21
    points = x[["c", "a"]].to_numpy()
    np.testing.assert_array_equal(outside.get_offsets(), points[out])
    np.testing.assert_array_equal(inside.get_offsets(), points[~out])
    assert to_rgba(outside.get_edgecolor()[0])[0] > 0.8
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        f"{(~out).sum()} rows", f"{out.sum()} outliers",
    ]  # fmt: skip


def test_of_many_runs_the_kept_one_has_a_name():
    """A legend of thirty lines is larger than the picture."""
    rows = blobs(3, 300, 2, 3)
    model = GaussianMixture(3, n_init=30, random_state=0).fit(rows)
    drawn = plot_convergence(model, ax=axes())
    names = [text.get_text() for text in drawn.get_legend().get_texts()]
    assert len(names) == 2
    assert sum(name.endswith("kept") for name in names) == 1
    assert "29 other runs" in names
    assert len(drawn.lines) == 30
    drawn.figure.canvas.draw()
    assert drawn.yaxis.get_offset_text().get_text() == ""


@pytest.mark.parametrize(("layout", "n_named"), [(None, 5), ("constrained", 10)])
def test_of_many_components_the_largest_have_names(layout, n_named):
    rows = blobs(3, 1000, 2, 3)
    model = GaussianMixture(50, random_state=0, max_iter=2).fit(rows)
    first, _ = Figure(layout=layout).subplots(1, 2)
    drawn = plot_responsibilities(model, rows, ax=first)
    legend = drawn.get_legend()
    assert legend.get_title().get_text() == f"{n_named} largest of 50"
    shares = np.bincount(model.predict(rows), minlength=50)
    named = [int(text.get_text().split()[0]) for text in legend.get_texts()]
    assert sorted(named) == sorted(np.argsort(-shares)[:n_named])


@pytest.mark.parametrize("layout", [None, "constrained", "tight"])
def test_nothing_covers_or_cuts_a_legend(layout):
    rows = blobs(3, 300, 2, 3)
    model = GaussianMixture(3, random_state=0).fit(rows)
    figure = Figure(layout=layout)
    first, second = figure.subplots(1, 2)
    for ax in (first, second):
        plot_responsibilities(model, rows, ax=ax)
    figure.draw_without_rendering()
    whole, other = figure.bbox, second.get_tightbbox()
    for ax in (first, second):
        seen = ax.get_legend().get_window_extent()
        assert whole.x0 <= seen.x0 and seen.x1 <= whole.x1
        assert ax is second or seen.x1 <= other.x0


def test_what_is_not_drawn_is_refused_by_name():
    rows = blobs(3, 200, 2, 2)
    model = GaussianMixture(2, random_state=0).fit(rows)
    search = MixtureSearch(2, random_state=0).fit(rows)
    detector = MixtureOutlierDetector().fit(rows)
    functions = (plot_convergence, daskgmm.history, plot_mixture, plot_pairs)
    for draw in (*functions, partial(plot_responsibilities, rows=rows)):
        for other, name in ((search, "best_estimator_"), (detector, "estimator_")):
            with pytest.raises(TypeError, match=f"a fitted mixture.*its {name} is one"):
                draw(other)
    with pytest.raises(TypeError, match="plot_criterion draws a fitted MixtureSearch"):
        plot_criterion(model)
    with pytest.raises(TypeError, match="plot_outliers draws what a fitted"):
        plot_outliers(model, rows)


def test_of_one_feature_the_log_density_is_above_it():
    rows = blobs(3, 300, 1, 2)
    model = GaussianMixture(2, random_state=0).fit(rows)
    detector = MixtureOutlierDetector(GaussianMixture(2, random_state=0)).fit(rows)
    drawn = plot_responsibilities(model, rows, ax=axes())
    assert (drawn.get_xlabel(), drawn.get_ylabel()) == ("feature 0", "log density")
    points = np.concatenate([its.get_offsets() for its in drawn.collections])
    order = np.argsort(points[:, 0])
    np.testing.assert_allclose(
        points[order, 1], model.score_samples(np.sort(rows, axis=0)), rtol=1e-9
    )
    drawn = plot_outliers(detector, rows, ax=axes())
    usual, unusual = (its.get_offsets()[:, 1] for its in drawn.collections)
    assert unusual.max() < detector.offset_ <= usual.min()
    assert plot_pairs(model, rows).shape == (1, 1)
    plt.close("all")


@pytest.mark.parametrize("function", [plot_responsibilities, plot_outliers])
def test_neither_do_far_rows_make_a_point_of_all_others(function):
    rows = blobs(3, 500, 2, 2)
    low, high = rows.min(axis=0), rows.max(axis=0)
    rows[:2] = [[1e5, 0.0], [0.0, -1e5]]
    model = GaussianMixture(2, random_state=0)
    fitted = MixtureOutlierDetector(model) if function is plot_outliers else model
    ax = function(fitted.fit(rows), rows, ax=axes())
    assert ax.get_title().endswith("2 of 500 rows lie far outside")
    width = (high - low).max()
    assert np.ptp(ax.get_xlim()) < 4 * width and np.ptp(ax.get_ylim()) < 4 * width
