"""Pictures: what is drawn, and where."""

from __future__ import annotations

import tracemalloc
from functools import partial

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from conftest import blobs, create_zarr
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from sklearn.exceptions import NotFittedError
from sklearn.mixture import GaussianMixture as Reference

from daskgmm import (
    BayesianGaussianMixture,
    GaussianMixture,
    MixtureOutlierDetector,
)
from daskgmm.plotting import (
    plot_convergence,
    plot_mixture,
    plot_outliers,
    plot_pairs,
    plot_responsibilities,
    style,
)
from daskgmm.plotting.rows import some_rows

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def fitted(covariance_type="full", d=3):
    rows = blobs(2, 500, d, 2)
    model = GaussianMixture(2, covariance_type=covariance_type, random_state=0)
    return model.fit(rows), rows


def axes():
    return Figure().add_subplot()


def ellipses(ax):
    return [patch for patch in ax.patches if isinstance(patch, Ellipse)]


def dense(model, k):
    """Covariance of component k, by scikit-learn's documentation."""
    c = model.covariances_
    return {
        "full": lambda: c[k],
        "tied": lambda: c,
        "diag": lambda: np.diag(c[k]),
        "spherical": lambda: c[k] * np.eye(model.n_features_in_),
    }[model.covariance_type]()


@pytest.mark.parametrize("features", [(0, 1), (2, 0)])
def test_ellipses_are_level_sets_of_the_components(covariance_type, features):
    model, _ = fitted(covariance_type)
    ax = plot_mixture(model, features=features, ax=axes())
    found = ellipses(ax)
    assert len(found) == 4
    pair = list(features)
    for i, ellipse in enumerate(found):
        k, n_sigmas = i // 2, i % 2 + 1
        outline = ellipse.get_patch_transform().transform(
            ellipse.get_path().vertices[::3]  # the curve's own points
        )
        z = outline - model.means_[k, pair]
        covariance = dense(model, k)[np.ix_(pair, pair)]
        distances = np.sqrt(
            np.einsum("ni,ni->n", z, np.linalg.solve(covariance, z.T).T)
        )
        np.testing.assert_allclose(distances, n_sigmas, rtol=1e-2)


@pytest.mark.parametrize("n", [800, 20_000])  # points, and a density
def test_rows_far_away_do_not_make_a_point_of_all_others(n):
    rows = blobs(2, n, 2, 2)
    low, high = rows.min(axis=0), rows.max(axis=0)
    rows[5] = 1e6, 0.0
    model = GaussianMixture(3, random_state=0).fit(rows)
    ax = plot_mixture(model, rows, ax=axes())
    assert ax.get_title() == f"1 of {n:,} rows lie far outside"
    with plt.rc_context({"backend": "agg"}):
        figure = plot_pairs(model, rows)[0, 0].figure
    assert figure.get_suptitle() == ax.get_title()
    plt.close(figure)
    first, last = ax.get_xlim()
    width = high[0] - low[0]
    assert low[0] - 2 * width < first < last < high[0] + 2 * width
    one = plot_mixture(model, rows, features=0, ax=axes())
    assert one.get_title() == ax.get_title()
    assert one.get_xlim()[1] < high[0] + 2 * width
    near = np.delete(rows, 5, axis=0)
    assert plot_mixture(model, near[:0], ax=axes()).get_title() == ""
    ax = plot_mixture(GaussianMixture(2, random_state=0).fit(near), near, ax=axes())
    assert ax.get_title() == ""
    assert (ax.get_xlim()[0] <= low[0]) and (high[0] <= ax.get_xlim()[1])


def test_models_of_scikit_learn_are_told_how_to_be_drawn():
    rows = blobs(2, 100, 2, 2)
    theirs = Reference(2, random_state=0).fit(rows)
    with pytest.raises(TypeError, match=r"daskgmm\.GaussianMixture\.from_sklearn"):
        plot_mixture(theirs, rows, ax=axes())
    with pytest.raises(TypeError, match="takes a fitted mixture, not a str"):
        plot_mixture("model.zarr", rows, ax=axes())
    plot_mixture(GaussianMixture.from_sklearn(theirs), rows, ax=axes())


def test_means_are_marked():
    model, _ = fitted()
    true = model.means_ + 0.5
    ax = plot_mixture(model, true_means=true, ax=axes())
    *crosses, rings = ax.lines
    np.testing.assert_array_equal(
        [cross.get_xydata()[0] for cross in crosses], model.means_[:, :2]
    )
    np.testing.assert_array_equal(rings.get_xydata(), true[:, :2])
    _, labels = ax.get_legend_handles_labels()
    assert labels == ["found mean", "true mean"]


def test_few_rows_are_points_that_can_be_seen():
    model, rows = fitted()
    ax = plot_mixture(model, rows, ax=axes())
    points = ax.collections[0]
    np.testing.assert_array_equal(points.get_offsets(), rows[:, :2])
    assert points.get_facecolor()[0, 3] > 0.5
    assert points.get_sizes()[0] >= 3


def test_of_many_rows_the_density_is_drawn_and_nothing_white():
    model, rows = fitted()
    many = np.tile(rows, (20, 1)) + np.random.default_rng(0).normal(size=(10_000, 3))
    ax = plot_mixture(model, many, ax=axes())
    squares = ax.collections[0]
    counts = squares.get_array()
    assert counts.sum() == len(many)
    shown = squares.cmap(squares.norm(counts.compressed()))
    assert shown[:, 3].min() > 0.2
    assert (shown[:, :3] < 0.7).all()


def test_everything_is_in_view():
    model, rows = fitted()
    ax = plot_mixture(model, rows, ax=axes())
    for ellipse in ellipses(ax):
        corners = ellipse.get_extents().transformed(ax.transData.inverted())
        assert ax.get_xlim()[0] <= corners.x0 <= corners.x1 <= ax.get_xlim()[1]
        assert ax.get_ylim()[0] <= corners.y0 <= corners.y1 <= ax.get_ylim()[1]


def test_axes_are_named_and_returned():
    model, _ = fitted()
    ax = axes()
    assert plot_mixture(model, features=(2, 1), ax=ax) is ax
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("feature 2", "feature 1")


def test_names_of_columns_are_used():
    rows = pd.DataFrame(blobs(2, 100, 2, 2), columns=["height", "width"])
    model = GaussianMixture(2, random_state=0).fit(rows)
    ax = plot_mixture(model, rows, ax=axes())
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("height", "width")


def test_a_figure_is_made_where_none_is_given():
    with plt.rc_context({"backend": "agg"}):
        ax = plot_mixture(fitted()[0])
    plt.close(ax.figure)


@pytest.mark.parametrize("features", [(0, 3), (-1, 0), (0, 1, 2), (1, 1)])
def test_features_that_are_not_there(features):
    with pytest.raises(ValueError, match="features must be two of 0 to 2"):
        plot_mixture(fitted()[0], features=features)


def test_a_model_that_is_not_fitted():
    with pytest.raises(NotFittedError):
        plot_mixture(GaussianMixture(2))


def test_everything_in_a_picture_is_of_its_two_features():
    """Ellipses of some features over rows of others would look as good."""
    rows = pd.DataFrame(blobs(2, 500, 3, 2) * [1, 10, 100], columns=["x", "y", "z"])
    model = GaussianMixture(2, random_state=0).fit(rows)
    true = model.means_ + 0.5
    ax = plot_mixture(model, rows, features=(2, 1), true_means=true, ax=axes())
    *crosses, rings = ax.lines
    marked = [cross.get_xydata()[0] for cross in crosses]
    np.testing.assert_array_equal(marked, model.means_[:, [2, 1]])
    np.testing.assert_array_equal(rings.get_xydata(), true[:, [2, 1]])
    points = ax.collections[0].get_offsets()
    np.testing.assert_array_equal(points, rows[["z", "y"]].to_numpy())
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("z", "y")


# --- one feature, pairs, and looks ----------------------------------------------------


def test_one_feature_is_a_histogram_with_curves_that_add_up(covariance_type):
    model, rows = fitted(covariance_type)
    ax = plot_mixture(model, rows, features=2, ax=axes())
    *parts, whole = ax.lines
    x, total = whole.get_data()
    np.testing.assert_allclose(sum(part.get_ydata() for part in parts), total)
    expected = np.exp(model.marginal(2).score_samples(x[:, np.newaxis]))
    np.testing.assert_allclose(total, expected, rtol=1e-9, atol=1e-12)
    heights = [patch.get_height() * patch.get_width() for patch in ax.patches]
    assert sum(heights) == pytest.approx(1.0)
    assert ax.get_xlim()[0] <= rows[:, 2].min() <= rows[:, 2].max() <= ax.get_xlim()[1]


def test_a_narrow_peak_is_seen():
    model = GaussianMixture(2, covariance_type="spherical")
    model.weights_, model.means_ = np.array([0.5, 0.5]), np.array([[0.0], [1.0]])
    model.covariances_ = np.array([100.0, 1e-8])
    model.precisions_cholesky_ = model.covariances_**-0.5
    ax = plot_mixture(model, ax=axes())
    peak = ax.lines[-1].get_ydata().max()
    assert peak == pytest.approx(0.5 / np.sqrt(2e-8 * np.pi), rel=1e-3)


def test_features_go_by_name():
    rows = pd.DataFrame(blobs(2, 100, 3, 2), columns=["a", "b", "c"])
    model = GaussianMixture(2, random_state=0).fit(rows)
    ax = plot_mixture(model, rows, features=("c", "a"), ax=axes())
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("c", "a")
    assert plot_mixture(model, features="b", ax=axes()).get_xlabel() == "b"
    with pytest.raises(ValueError, match="0 to 2, or of a, b, c, not"):
        plot_mixture(model, features=("c", "z"), ax=axes())


def test_components_have_numbers_and_weight_gives_them_strength():
    model, _ = fitted()
    model.weights_ = np.array([0.99, 0.01])
    ax = plot_mixture(model, ax=axes())
    assert [text.get_text() for text in ax.texts] == ["0", "1"]
    strong, _, weak, _ = ellipses(ax)
    assert strong.get_linewidth() > 1.8 * weak.get_linewidth()
    assert strong.get_alpha() > weak.get_alpha() >= 0.3


def test_fifty_components_all_look_different():
    strokes = style.strokes(50)
    assert len(set(strokes)) == 50
    centres = np.random.default_rng(0).normal(size=(50, 2))
    markers = style.markers_of(centres)
    assert len(set(markers)) == 50
    # As in the picture of the mixture.
    assert [c for c, _ in markers] == [c for c, _ in style.strokes_of(centres)]
    # The first ones differ in lightness or hue for those who see no red, too.
    assert len({colour for colour, _ in strokes[:7]}) == 7


@pytest.mark.parametrize("columns", [1, 2])
def test_neighbours_have_different_colours(columns):
    centres = np.random.default_rng(0).normal(size=(50, columns)) * [1, 1e6][:columns]
    strokes = style.strokes_of(centres)
    assert len(set(strokes)) == 50
    assert strokes[:7] == style.strokes(7)

    def nearest_of_same_colour(strokes):
        scaled = centres / np.ptp(centres, axis=0)
        apart = np.linalg.norm(scaled[:, np.newaxis] - scaled, axis=2)
        colours = np.array([colour for colour, _ in strokes])
        same = colours[:, np.newaxis] == colours
        return np.where(same & ~np.eye(50, dtype=bool), apart, np.inf).min()

    by_number = nearest_of_same_colour(style.strokes(50))
    assert nearest_of_same_colour(strokes) > 2.0 * by_number
    assert style.strokes_of(np.zeros((9, columns)))[8][1] != strokes[0][1]


def test_it_is_right_in_dark_mode():
    model, rows = fitted()
    with plt.style.context("dark_background"):
        ax = plot_mixture(model, rows, true_means=model.means_, ax=axes())
        assert ax.lines[-1].get_markeredgecolor() == "white"
        [effect] = ax.texts[0].get_path_effects()
        assert to_rgb(effect._gc["foreground"]) == (0.0, 0.0, 0.0)


def test_pairs_are_drawn_below_above_and_alone():
    model, rows = fitted()
    drawn = np.array([[axes() for _ in range(3)] for _ in range(3)])
    assert plot_pairs(model, rows, axes=drawn) is drawn
    for i in range(3):
        for j in range(3):
            ax = drawn[i, j]
            if i == j:
                assert len(ellipses(ax)) == 0
                continue
            points = ax.collections[0].get_offsets()
            np.testing.assert_array_equal(points, rows[:, [j, i]])
            np.testing.assert_allclose(
                ellipses(ax)[0].get_center(), model.means_[0, [j, i]]
            )
    with pytest.raises(ValueError, match=r"axes must have the shape \(2, 2\)"):
        plot_pairs(model, features=[0, 1], axes=drawn)
    with plt.rc_context({"backend": "agg"}):
        made = plot_pairs(model, features=[2, 0])
    assert made.shape == (2, 2)
    plt.close(made[0, 0].figure)


# --- rows of any kind -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_blocks", "length", "n_read"), [(25, 50, 25), (200, 20, 100), (12, 200_000, 8)]
)
def test_of_small_blocks_more_are_read(n_blocks, length, n_read):
    """All of a small data set; of a large one, no more than a few blocks."""
    read = []

    def rows(block_id):
        read.append(block_id[0])
        return np.random.default_rng(block_id[0]).normal(size=(length, 2))

    lazy = da.map_blocks(
        rows,
        chunks=((length,) * n_blocks, (2,)),
        dtype=float,
        meta=np.empty((0, 0)),
    )
    model = GaussianMixture(1, random_state=0).fit(blobs(0, 100, 2, 1))
    plot_mixture(model, lazy, ax=axes())
    assert len(read) == len(set(read)) == n_read


@pytest.mark.parametrize("kind", ["dask", "zarr", "parquet", "frame", "xarray"])
def test_of_lazy_rows_only_some_blocks_are_read(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("daskgmm.plotting.rows._MOST_BLOCKS", 8)
    rows = blobs(2, 4000, 2, 2)
    named = kind in ("parquet", "frame", "xarray")
    table = pd.DataFrame(rows, columns=["a", "b"])
    model = GaussianMixture(2, random_state=0).fit(table if named else rows)
    read = []

    def noted(block):
        if len(block):
            read.append(len(block))
        return block

    lazy = da.from_array(rows, chunks=(100, 2)).map_blocks(noted, dtype=float)
    if kind == "zarr":
        create_zarr(tmp_path / "x", rows, chunks=(100, 2))
        lazy = str(tmp_path / "x")
    elif kind == "parquet":
        table.to_parquet(tmp_path / "x.parquet", row_group_size=100)
        lazy = str(tmp_path / "x.parquet")
    elif kind == "frame":
        lazy = dd.from_pandas(table, npartitions=40)
    elif kind == "xarray":
        lazy = xr.Dataset({n: ("row", table[n].to_numpy()) for n in table}).chunk(
            row=100
        )
    shown = plot_mixture(model, lazy, ax=axes()).collections[0].get_offsets()
    assert {tuple(row) for row in shown.tolist()} <= {tuple(r) for r in rows.tolist()}
    if kind == "dask":
        assert read == [100] * 8
        assert len(shown) == 800


class Noted:
    """Rows that note how many were asked for; Dask may pickle them."""

    rows, read = blobs(2, 400_000, 2, 2), []
    shape, dtype, ndim = rows.shape, rows.dtype, 2

    def __getitem__(self, where):
        found = Noted.rows[where]
        Noted.read.append(len(found))
        return found


@pytest.mark.parametrize("n_blocks", [1, 8])
def test_not_more_is_read_than_is_drawn(n_blocks):
    """Of blocks that are slices of something, slices of them are read."""
    rows = Noted.rows
    model = GaussianMixture(2, random_state=0).fit(rows[:1000])
    lazy = da.from_array(Noted(), chunks=(len(rows) // n_blocks, 2), asarray=False)
    Noted.read.clear()
    table = some_rows(lazy, model, 4_000)
    # Of a single block, which is read once, less is kept.
    assert sum(Noted.read) == (len(rows) if n_blocks == 1 else len(table))
    assert 3_900 <= len(table) <= 4_100
    # Of all of the blocks, as rows may be in some order.
    place = {tuple(row): i for i, row in enumerate(rows.tolist())}
    counts, _ = np.histogram(
        [place[tuple(row)] for row in table.tolist()], 8, range=(0, len(rows))
    )
    assert counts.min() > 300


def test_of_mapped_memory_only_what_is_drawn_is_copied(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((1_000_000, 4), dtype=np.float32))
    rows = np.load(tmp_path / "x.npy", mmap_mode="r")
    model = GaussianMixture(1).fit(np.random.default_rng(0).normal(size=(100, 4)))
    tracemalloc.start()
    table = some_rows(rows, model, 10_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 9_000 <= len(table) <= 10_000
    assert peak < 4_000_000


@pytest.mark.parametrize(
    "draw", [plot_mixture, plot_pairs, plot_responsibilities, plot_outliers]
)
@pytest.mark.parametrize(
    "wrap", [lambda table: table, partial(dd.from_pandas, npartitions=2)]
)
def test_features_of_other_names_or_in_another_order_are_refused(draw, wrap):
    table = pd.DataFrame(blobs(2, 300, 2, 2), columns=["a", "b"])
    model = GaussianMixture(2, random_state=0)
    if draw is plot_outliers:
        model = MixtureOutlierDetector(model)
    model.fit(table)
    before = plt.get_fignums()
    for other in (table[["b", "a"]], table.set_axis(["a", "c"], axis=1)):
        with pytest.raises(ValueError, match="feature names"):
            draw(model, wrap(other))
    assert plt.get_fignums() == before


def test_of_many_curves_the_heaviest_have_numbers():
    model = GaussianMixture(20, random_state=0, max_iter=1)
    model.fit(np.linspace(0, 1, 400)[:, np.newaxis] ** 2)
    drawn = plot_mixture(model, ax=axes())
    numbers = {int(text.get_text()) for text in drawn.texts}
    assert numbers == set(np.argsort(-model.weights_)[:15].tolist())


def test_rows_with_nan_are_not_drawn_and_others_are_refused():
    model, rows = fitted()
    rows = rows.copy()
    rows[::2, 1] = np.nan
    shown = plot_mixture(model, rows, ax=axes()).collections[0].get_offsets()
    assert len(shown) == 250
    with pytest.raises(ValueError, match="the mixture has 3 features"):
        plot_mixture(model, rows[:, :2], ax=axes())


def test_all_pictures_are_of_a_bayesian_mixture_too():
    rows = blobs(2, 300, 2, 2)
    model = BayesianGaussianMixture(n_components=3, random_state=0).fit(rows)
    assert len(ellipses(plot_mixture(model, rows, ax=axes()))) == 6
    plot_responsibilities(model, rows, ax=axes())
    plot_convergence(model, ax=axes())


def test_few_points_are_large_however_many_rows_they_are():
    model = GaussianMixture(1).fit(blobs(0, 50, 2, 1))

    def size(rows):
        [points] = plot_mixture(model, rows, ax=axes()).collections
        return points.get_sizes()[0]

    one = size([[0.0, 0.0]])
    assert size(np.zeros((500, 2))) == one == 36.0
    assert size(blobs(0, 500, 2, 1)) < one
