"""`daskgmm fit --bayesian`: the model that Python fits, and refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import blobs, create_zarr

from daskgmm import BayesianGaussianMixture, load


@pytest.fixture
def store(tmp_path):
    place = tmp_path / "rows.zarr"
    create_zarr(place, blobs(0, 400, 2, 2, spread=8.0), chunks=(100, 2))
    return str(place)


@pytest.mark.parametrize("kind", ["process", "distribution"])
def test_it_fits_and_saves_what_python_does(run, tmp_path, store, kind):
    place = str(tmp_path / "model.zarr")
    done = run(
        *("fit", store, place, "-k", "6", "--seed", "0", "--bayesian", "--json"),
        *("--weight-concentration", "0.01", "--weights-from", kind),
    )
    assert done.exit_code == 0, done.output
    found = load(place)
    expected = BayesianGaussianMixture(
        n_components=6,
        random_state=0,
        weight_concentration_prior=0.01,
        weight_concentration_prior_type=f"dirichlet_{kind}",
    ).fit(store)
    assert type(found) is BayesianGaussianMixture
    for name in ("weights_", "means_", "covariances_", "mean_precision_"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["bound"] == expected.lower_bound_
    labels = str(tmp_path / "labels.zarr")
    assert run("predict", place, store, labels).exit_code == 0
    scored = json.loads(run("score", place, store, "--json").stdout)
    assert scored["mean_log_density"] == pytest.approx(expected.score(store))
    assert "bic" not in scored
    info = run("info", place, scheduler=False)
    assert info.exit_code == 0, info.output


def test_a_dry_run_tells_what_it_takes(run, tmp_path, store):
    done = run("fit", store, str(tmp_path / "m"), "-k", "3", "--bayesian", "--dry-run")
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--weight-concentration", "1"), "go with --bayesian"),
        (("--weights-from", "process"), "go with --bayesian"),
        (("--bayesian", "--accelerate"), "does not go with --bayesian"),
        (("--bayesian", "--weight-concentration", "0"), "--weight-concentration"),
    ],
)
def test_what_does_not_go_together_is_refused(run, tmp_path, store, options, message):
    done = run("fit", store, str(tmp_path / "m"), "-k", "2", *options)
    assert done.exit_code == 2
    assert message in done.output
    assert not (tmp_path / "m").exists()
