"""Pictures: what is drawn, and where."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import blobs
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from sklearn.exceptions import NotFittedError

from daskgmm import GaussianMixture
from daskgmm.plotting import plot_mixture


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


def test_density_counts_the_rows():
    model, rows = fitted()
    ax = plot_mixture(model, rows, ax=axes())
    assert ax.collections[0].get_array().sum() == len(rows)


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
    pd = pytest.importorskip("pandas")
    rows = pd.DataFrame(blobs(2, 100, 2, 2), columns=["height", "width"])
    model = GaussianMixture(2, random_state=0).fit(rows)
    ax = plot_mixture(model, rows, ax=axes())
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("height", "width")


def test_a_figure_is_made_where_none_is_given():
    with plt.rc_context({"backend": "agg"}):
        ax = plot_mixture(fitted()[0])
    plt.close(ax.figure)


@pytest.mark.parametrize("features", [(0, 3), (-1, 0), (0,), (0, 1, 2)])
def test_features_that_are_not_there(features):
    with pytest.raises(ValueError, match="features must be two of 0 to 2"):
        plot_mixture(fitted()[0], features=features)


def test_a_model_that_is_not_fitted():
    with pytest.raises(NotFittedError):
        plot_mixture(GaussianMixture(2))


def test_everything_in_a_picture_is_of_its_two_features():
    """Ellipses of some features over rows of others would look as good."""
    pd = pytest.importorskip("pandas")
    rows = pd.DataFrame(blobs(2, 500, 3, 2) * [1, 10, 100], columns=["x", "y", "z"])
    model = GaussianMixture(2, random_state=0).fit(rows)
    true = model.means_ + 0.5
    ax = plot_mixture(model, rows, features=(2, 1), true_means=true, ax=axes())
    *crosses, rings = ax.lines
    marked = [cross.get_xydata()[0] for cross in crosses]
    np.testing.assert_array_equal(marked, model.means_[:, [2, 1]])
    np.testing.assert_array_equal(rings.get_xydata(), true[:, [2, 1]])
    # Of the histogram, the cells: its first and last edges are those of the rows.
    corners = ax.collections[0].get_coordinates()[[0, -1], [0, -1]]
    np.testing.assert_allclose(
        corners, [rows[["z", "y"]].min(), rows[["z", "y"]].max()]
    )
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("z", "y")
