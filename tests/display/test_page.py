"""What notebooks show of fitted mixtures and searches."""

from __future__ import annotations

import re

import dask
import numpy as np
import pandas as pd
import pytest
from conftest import COVARIANCE_TYPES, blobs
from sklearn import config_context

import daskgmm
from daskgmm import (
    BayesianGaussianMixture,
    GaussianMixture,
    MixtureOutlierDetector,
    MixtureSearch,
    load,
)
from daskgmm.display import page

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def html_of(model):
    html = model._repr_mimebundle_()["text/html"]
    # Who asks for HTML alone gets as much; scikit-learn numbers what it shows.
    assert model._repr_html_().count("<td") == html.count("<td")
    return html


def cells(html):
    """Texts of the last table's rows."""
    rows = re.findall(r"<tr>(.*?)</tr>", html[html.rindex("<table>") :], re.S)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_components_are_a_table_with_names(covariance_type):
    x = pd.DataFrame(blobs(0, 400, 2, 3), columns=["depth", "<salt>"])
    model = GaussianMixture(3, covariance_type=covariance_type, random_state=0)
    html = html_of(model.fit(x))
    head, *rows = cells(html)
    assert head == ["", "weight", "depth (mean ± sd)", "&lt;salt&gt; (mean ± sd)"]
    assert "<salt>" not in html
    assert len(rows) == 3
    for k, row in enumerate(rows):
        assert float(row[1]) == pytest.approx(model.weights_[k], abs=1e-4)
        marginal = model.marginal(0)
        mean, deviation = map(float, row[2].split(" ± "))
        assert mean == pytest.approx(model.means_[k, 0], abs=0.006 * deviation)
        covariance = np.ravel(marginal.covariances_)
        variance = covariance[k] if len(covariance) == 3 else covariance[0]
        assert deviation == pytest.approx(np.sqrt(variance), rel=1e-2)
    assert f"400 rows; converged in {model.n_iter_} iterations" in html
    assert f"lower bound {model.lower_bound_:.6g}" in html
    assert "<polyline" in html


def test_a_detector_shows_its_mixture_and_its_threshold():
    detector = MixtureOutlierDetector(GaussianMixture(2, random_state=0))
    assert "Outliers:" not in html_of(detector)
    html = html_of(detector.fit(blobs(0, 200, 2, 2)))
    assert cells(html) == cells(html_of(detector.estimator_))
    assert f"Outliers: log density below {detector.offset_:.5g}" in html
    assert "<polyline" in html


def test_the_time_is_that_of_all_passes_once():
    model = GaussianMixture(2, n_init=3, random_state=0).fit(blobs(0, 200, 2, 2))
    n = model.n_passes_
    model.history_["seconds"] = 60.0 * np.ones_like(model.history_["seconds"])
    assert f"; {n} min 0 s in passes; " in html_of(model)


def test_of_many_only_some_are_shown():
    x = np.random.default_rng(0).normal(size=(500, 9))
    html = html_of(GaussianMixture(30, max_iter=1, random_state=0).fit(x))
    head, *rows = cells(html)
    assert (len(head), len(rows)) == (8, 20)
    assert "10 more components not shown; 3 more features not shown" in html


def test_what_is_not_fitted_is_as_scikit_learn_has_it():
    html = html_of(GaussianMixture(2))
    assert "GaussianMixture" in html
    assert "(mean ± sd)" not in html
    with config_context(display="text"):
        assert [*GaussianMixture(2)._repr_mimebundle_()] == ["text/plain"]


def test_what_was_made_or_loaded_is_shown_too(tmp_path):
    x = blobs(0, 200, 2, 2)
    model = BayesianGaussianMixture(n_components=2, random_state=0).fit(x)
    model.save(tmp_path / "m")
    assert cells(html_of(load(tmp_path / "m"))) == cells(html_of(model))
    assert cells(html_of(model.marginal(0)))[0] == ["", "weight", "x0 (mean ± sd)"]


def test_a_search_shows_its_candidates_the_best_first():
    x = blobs(0, 300, 2, 3, spread=6.0)
    search = MixtureSearch(range(1, 8), random_state=0)
    assert "rank" not in html_of(search)
    html = html_of(search.fit(x))
    head, *rows = cells(html)
    assert head == [
        "rank", "n_components", "covariance_type", "bic", "iterations", "status",
    ]  # fmt: skip
    assert [row[0] for row in rows] == [str(i) for i in range(1, 21)]
    assert rows[0][1:3] == [str(value) for value in search.best_params_.values()]
    assert "8 more candidates not shown" in html


@pytest.mark.parametrize(
    "name", ["GaussianMixture", "BayesianGaussianMixture", "MixtureOutlierDetector"]
)
def test_the_page_links_to_the_documentation_if_there_is_one(name):
    model = getattr(daskgmm, name)()
    assert model._get_doc_link() == ""
    assert "href" not in html_of(model)
    with dask.config.set({"daskgmm.documentation-url": "https://a.org/docs/"}):
        page = f"https://a.org/docs/api/generated/daskgmm.{name}.html"
        assert model._get_doc_link() == page
        assert f'href="{page}' in html_of(model)


@pytest.mark.parametrize(
    ("mean", "deviation", "said"),
    [
        (-0.00085956, 1.0, "0.00 ± 1.00"),
        (12.3456789, 0.0123, "12.3457 ± 0.0123"),
        (4567.8, 123.4, "4568 ± 123."),
        (1e6, 12345.0, "1e+06 ± 1.23e+04"),
        (2.5, 0.0, "2.5 ± 0.00"),
    ],
)
def test_a_mean_has_as_many_places_as_its_deviation(mean, deviation, said):
    assert page.mean_and_deviation(mean, deviation) == said
