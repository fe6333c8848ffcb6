"""The examples run, and show the numbers that they should."""

from __future__ import annotations

import base64
import io
import re
import runpy
import warnings
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
from matplotlib.image import imread

EXAMPLES = Path(__file__).parent.parent / "examples"

WEIGHTS = [0.3903, 0.4001, 0.2097]
MEANS = [[0.051, 0.075], [-1.408, 1.427], [3.399, 1.059]]


@pytest.fixture(scope="module")
def walkthrough():
    import matplotlib

    backend = matplotlib.get_backend()
    yield runpy.run_path(str(EXAMPLES / "seed_walkthrough.py"))
    matplotlib.use(backend)


@pytest.fixture(scope="module")
def fitted(walkthrough, tmp_path_factory):
    from matplotlib import pyplot as plt

    folder = tmp_path_factory.mktemp("walkthrough")
    model = walkthrough["main"](folder)
    plt.close("all")
    return model, folder


def in_order(model):
    """Components in the order of the numbers above."""
    distances = np.linalg.norm(model.means_ - np.array(MEANS)[:, np.newaxis], axis=2)
    order = distances.argmin(axis=1)
    assert sorted(order) == [0, 1, 2]
    return order


def test_script_finds_the_known_mixture(fitted):
    model, _ = fitted
    order = in_order(model)
    np.testing.assert_allclose(model.weights_[order], WEIGHTS, atol=1.5e-4)
    np.testing.assert_allclose(model.means_[order], MEANS, atol=1e-3)
    assert model.converged_ is True
    assert model.n_iter_ == 4


def test_script_draws_the_four_covariance_types(fitted):
    _, folder = fitted
    assert (folder / "covariance_types.png").read_bytes().startswith(b"\x89PNG")


def test_what_the_model_says_of_the_rows(walkthrough, fitted):
    model, _ = fitted
    X = walkthrough["make_data"]()
    labels = model.predict(X)
    assert labels.chunks == (X.chunks[0],)
    proba = model.predict_proba(X).compute()
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    assert np.array_equal(proba.argmax(axis=1), labels.compute())
    # The rows come cluster by cluster, the small one last.
    assert (labels[1000:].compute() == in_order(model)[2]).mean() > 0.95
    log_density = model.score_samples(X).compute()
    assert model.score(X) == pytest.approx(log_density.mean())
    rows, components = model.sample(6)
    assert rows.shape == (6, 2)
    assert set(components) <= {0, 1, 2}


def test_notebook_runs_and_finds_the_known_mixture():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the notebook tools' own
        notebook = nbformat.read(EXAMPLES / "seed_walkthrough.ipynb", as_version=4)
        nbformat.validate(notebook)
        notebook.cells.append(
            nbformat.v4.new_code_cell(
                "print(*gm.weights_.tolist(), *gm.means_.ravel().tolist(), "
                "int(gm.converged_), gm.n_iter_)"
            )
        )
        stored = _pictures(notebook)
        client = nbclient.NotebookClient(notebook, timeout=120)
        client.execute()
    _assert_alike(_pictures(notebook), stored)
    stated = np.array(notebook.cells[-1].outputs[0].text.split(), dtype=float)
    weights, means = stated[:3], stated[3:9].reshape(3, 2)
    order = np.argsort(weights)
    expected = np.argsort(WEIGHTS)
    np.testing.assert_allclose(weights[order], np.take(WEIGHTS, expected), atol=1.5e-4)
    np.testing.assert_allclose(means[order], np.take(MEANS, expected, 0), atol=1e-3)
    assert stated[9:].tolist() == [1, 4]


def _pictures(notebook):
    """All pictures of a notebook, as numbers."""
    code = (cell for cell in notebook.cells if cell.cell_type == "code")
    data = (output.get("data", {}) for cell in code for output in cell.outputs)
    encoded = (its["image/png"] for its in data if "image/png" in its)
    return [imread(io.BytesIO(base64.b64decode(one)))[..., :3] for one in encoded]


def _assert_alike(pictures, others):
    """As far as the eye sees from afar: size, ink, and colour; not the last pixel."""
    assert len(pictures) == len(others)
    for one, other in zip(pictures, others, strict=True):
        np.testing.assert_allclose(one.shape, other.shape, rtol=0.02)
        inked, before = ((its < 0.95).any(axis=2).mean() for its in (one, other))
        np.testing.assert_allclose(inked, before, rtol=0.1)
        np.testing.assert_allclose(
            one.mean(axis=(0, 1)), other.mean(axis=(0, 1)), atol=0.01
        )


NOTEBOOKS = {
    "seed_walkthrough": 2,
    "choosing_components": 2,
    "larger_than_memory": 2,
    "parquet_on_s3": 1,
    "cluster_and_checkpoint": 1,
    "ocean_profiles": 6,
    "anomaly_detection": 3,
    "embeddings": 3,
}
"""And how many pictures each has."""


def test_all_notebooks_are_tested():
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == set(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_stored_outputs_of_a_notebook_are_those_of_a_run(name):
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    outputs = [output for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    said = [output for output in outputs if output.output_type == "stream"]
    assert not any(output.name == "stderr" for output in said)
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    assert pictures == NOTEBOOKS[name]


def test_small_workers_find_the_kernel_compiled():
    """Compiling takes 400 MB, for which Dask ends a worker of 800 MB."""
    limited = 0
    for name in NOTEBOOKS:
        notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
        code = (cell.source for cell in notebook.cells if cell.cell_type == "code")
        before, found, _ = "\n".join(code).partition("memory_limit=")
        limited += bool(found)
        assert not found or "GaussianMixture().fit(" in before, name
    assert limited == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in NOTEBOOKS if n != "seed_walkthrough"])
def test_other_notebooks_run_from_top_to_bottom(name):
    """And say the same numbers again, where they say but numbers."""
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    before, pictures = _said(notebook), _pictures(notebook)
    nbclient.NotebookClient(notebook, timeout=400).execute()
    _assert_alike(_pictures(notebook), pictures)
    after = _said(notebook)
    assert len(after) == len(before) > 2
    for now, then in zip(after, before, strict=True):
        np.testing.assert_allclose(_numbers(now), _numbers(then), rtol=0.05, atol=1e-9)


def _said(notebook):
    """What was printed, cell by cell: it may come in one piece or several."""
    found = []
    for cell in notebook.cells:
        outputs = cell.get("outputs", ())
        found.append("".join(o.text for o in outputs if o.get("name") == "stdout"))
    return [text for text in found if text]


def _numbers(text):
    return [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", text)]
