"""`daskgmm select --bayesian`: what Python finds, what it says, and refusals."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
from conftest import blobs, create_zarr

from daskgmm import BayesianGaussianMixture, MixtureSearch, load
from daskgmm.cli.work.report import candidates_table


@pytest.fixture
def store(tmp_path):
    place = tmp_path / "rows.zarr"
    create_zarr(place, blobs(0, 600, 2, 3, spread=8.0), chunks=(200, 2))
    return str(place)


@pytest.fixture
def run(run):
    return partial(run, "select")


@pytest.mark.parametrize("kind", ["process", "distribution"])
def test_it_chooses_and_saves_what_python_does(run, tmp_path, store, kind):
    place = str(tmp_path / "model.zarr")
    done = run(
        *(store, place, "-k", "3,6", "--seed", "0", "--covariance-type", "diag,full"),
        *("--bayesian", "--weight-concentration", "10,0.01", "--weights-from", kind),
        *("--held-out", "0.2", "--json"),
    )
    assert done.exit_code == 0, done.output
    expected = MixtureSearch(
        (3, 6),
        covariance_type=("full", "diag"),
        bayesian=True,
        criterion="held_out",
        held_out=0.2,
        weight_concentration_prior=(0.01, 10.0),
        weight_concentration_prior_type=f"dirichlet_{kind}",
        random_state=0,
    ).fit(store)
    found = load(place)
    assert type(found) is BayesianGaussianMixture
    for name in ("weights_", "means_", "mean_precision_", "lower_bounds_"):
        np.testing.assert_array_equal(
            getattr(found, name), getattr(expected.best_estimator_, name)
        )
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["criterion"] == "held_out"
    assert last["value"] == expected.best_score_
    assert last["best"] == {
        "components": expected.best_params_["n_components"],
        "covariance_type": expected.best_params_["covariance_type"],
        "weight_concentration": expected.best_params_["weight_concentration_prior"],
    }
    assert len(last["candidates"]) == 8
    assert all(its["bic"] is None for its in last["candidates"])


def test_the_table_has_the_priors(run, tmp_path, store):
    place = str(tmp_path / "model.zarr")
    priors = ("--weight-concentration", "0.25,4")
    done = run(store, place, "-k", "2", "--bayesian", "--seed", "0", *priors)
    assert done.exit_code == 0, done.output
    head = next(li for li in done.output.splitlines() if li.startswith("components"))
    assert "concentration" in head
    assert "bic" not in head
    assert "0.25" in done.output
    best = load(place).weight_concentration_prior
    assert f"weight concentration {best:g} (held_out " in done.output
    assert "best so far: 2 components and " in done.output
    done = run(store, str(tmp_path / "m"), "-k", "2", "--bayesian", "--seed", "0")
    assert "1 / 2" in done.output


def test_a_candidate_has_its_place_in_the_table_that_is_seen_meanwhile():
    x = blobs(0, 400, 2, 3, spread=8.0)
    seen = []
    search = MixtureSearch(
        (2, 3), covariance_type="full", bayesian=True, criterion="held_out",
        weight_concentration_prior=(None, 0.01), random_state=0,
    ).fit(x, callback=seen.append)  # fmt: skip
    table = candidates_table(seen[-1].scored, "held_out")
    heads = [column.header for column in table.columns]
    assert heads == ["components", "full, 1 / K", "full, 0.01"]
    told = np.array([[str(cell) for cell in column.cells] for column in table.columns])
    values = search.results_["held_out"].reshape(2, 2)
    np.testing.assert_array_equal(told[0], ["2", "3"])
    np.testing.assert_allclose(told[1:].T.astype(float), values, atol=1e-6)
    styles = [[cell.style for cell in column.cells] for column in table.columns[1:]]
    assert sum("bold" in str(style) for its in styles for style in its) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--weight-concentration", "1"), "go with --bayesian"),
        (("--weights-from", "process"), "go with --bayesian"),
        (("--bayesian", "--accelerate"), "does not go with --bayesian"),
        (("--bayesian", "--criterion", "bic"), "Use held_out"),
        (("--bayesian", "--weight-concentration", "0,1"), "numbers above 0"),
        (("--bayesian", "--weight-concentration", "1,a"), "numbers above 0"),
        (("--bayesian", "--weight-concentration", "inf"), "numbers above 0"),
        (("--bayesian", "--weight-concentration", ""), "numbers above 0"),
    ],
)
def test_what_does_not_go_together_is_refused(run, tmp_path, store, options, message):
    done = run(store, str(tmp_path / "m"), "-k", "2", *options)
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
    assert not (tmp_path / "m").exists()
