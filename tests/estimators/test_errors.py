"""Bad input: a clear error that names the place, and an estimator left as it was."""

from __future__ import annotations

import re
import subprocess
import sys
import traceback
import warnings

import dask
import dask.array as da
import nbformat
import numpy as np
import pytest
import scipy.sparse
import zarr
from conftest import blobs
from nbclient import NotebookClient
from sklearn.exceptions import ConvergenceWarning

from daskgmm import DataError, GaussianMixture, IllDefinedCovarianceError, StoreError
from daskgmm.em import fit as training
from daskgmm.mixtures.covariance import SHAPES
from daskgmm.mixtures.gaussian import Mixture


def _model(**parameters):
    return GaussianMixture(2, random_state=0, **parameters)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", ["fit", "predict", "score"])
def test_non_finite_rows_name_block_row_and_column(bad, method):
    x = blobs(0, 100, 3, 2)
    fitted = _model().fit(x)
    x[57, 2] = bad
    lazy = da.from_array(x, chunks=(25, 3))
    what = "NaN" if np.isnan(bad) else "infinity"
    with pytest.raises(
        DataError, match=f"X contains {what} in block 2, row 7, column 2"
    ):
        if method == "fit":
            _model().fit(lazy)
        elif method == "score":
            fitted.score(lazy)
        else:
            fitted.predict(lazy).compute()
    with pytest.raises(ValueError, match="NaN|infinity"):
        getattr(fitted, method)(x)


def test_non_finite_rows_in_a_zarr_array(tmp_path):
    x = blobs(1, 100, 2, 2)
    x[99, 0] = np.nan
    zarr.create_array(str(tmp_path / "x"), data=x, chunks=(10, 2))
    with pytest.raises(DataError, match=r"NaN in block \d+, row \d+, column 0"):
        _model().fit(tmp_path / "x")


@pytest.mark.parametrize("lazy", [False, True])
def test_wrong_number_of_features(lazy):
    x = blobs(2, 50, 3, 2)
    model = _model().fit(x)
    rows = da.from_array(x[:, :2]) if lazy else x[:, :2]
    for method in ("predict", "predict_proba", "score_samples", "score", "bic"):
        with pytest.raises(ValueError, match="X has 2 features.*expecting 3 features"):
            getattr(model, method)(rows)


@pytest.mark.parametrize("lazy", [False, True])
def test_fewer_rows_than_components(lazy):
    x = blobs(3, 5, 2, 2)
    rows = da.from_array(x, chunks=(2, 2)) if lazy else x
    message = "n_samples >= n_components but got n_components = 6, n_samples = 5"
    with pytest.raises(ValueError, match=message):
        GaussianMixture(6).fit(rows)
    with pytest.raises(ValueError, match="n_components = 3, n_samples = 2"):
        GaussianMixture(3).fit(rows, sample_weight=[1.0, 0.0, 0.0, 2.0, 0.0])


@pytest.mark.parametrize("lazy", [False, True])
def test_no_rows_or_one(lazy):
    for n in (0, 1):
        rows = np.zeros((n, 2))
        rows = da.from_array(rows) if lazy else rows
        with pytest.raises(ValueError, match=rf"{n} sample\(s\)"):
            GaussianMixture(1).fit(rows)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("shape", [(20,), (4, 5, 2)])
def test_wrong_number_of_dimensions(lazy, shape):
    rows = np.random.default_rng(0).normal(size=shape)
    rows = da.from_array(rows) if lazy else rows
    with pytest.raises(ValueError, match="[dD]im|2-D|2D|1-D|3-D"):
        _model().fit(rows)
    with pytest.raises(ValueError, match="[dD]im|2-D|2D|1-D|3-D"):
        _model().fit(blobs(4, 20, 2, 2)).predict(rows)


def test_object_data():
    x = blobs(5, 30, 2, 2)
    model = _model().fit(x.astype(object))
    np.testing.assert_allclose(model.means_, _model().fit(x).means_)
    words = np.full((30, 2), "word", dtype=object)
    with pytest.raises(ValueError, match="could not convert string to float"):
        _model().fit(words)
    with pytest.raises(DataError, match="object"):
        _model().fit(da.from_array(x.astype(object), chunks=10))


@pytest.mark.parametrize("kind", ["complex128", "datetime64[s]", "U3"])
def test_lazy_data_that_are_no_real_numbers(kind):
    x = np.ones((10, 2)).astype("int64").astype(kind)
    with pytest.raises(DataError, match=r"dtype|type"):
        _model().fit(da.from_array(x, chunks=5))


def test_complex_data():
    with pytest.raises(ValueError, match="[Cc]omplex"):
        _model().fit(np.ones((10, 2), dtype=complex))


def test_sparse_data():
    x = scipy.sparse.csr_array(np.eye(10))
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        _model().fit(x)
    lazy = da.from_array(np.eye(10), chunks=5).map_blocks(scipy.sparse.csr_matrix)
    with pytest.raises(DataError, match=r"[Ss]parse|csr"):
        _model().fit(lazy)


@pytest.mark.parametrize("lazy", [False, True])
def test_bad_weights(lazy):
    x = blobs(6, 40, 2, 2)

    def rows():
        return da.from_array(x, chunks=(10, 2)) if lazy else x

    def fit(weights):
        weights = np.asarray(weights, dtype=float)
        _model().fit(rows(), da.from_array(weights, chunks=7) if lazy else weights)

    negative = np.ones(40)
    negative[25] = -1.0
    with pytest.raises(ValueError, match="[Nn]egative"):
        _model().fit(rows(), sample_weight=negative)
    if lazy:
        with pytest.raises(
            DataError, match=r"sample_weight is negative .* block 2, row 5"
        ):
            _model().fit(rows(), sample_weight=negative)
    with pytest.raises(ValueError, match="zero for every row|weights are zero|zero"):
        _model().fit(rows(), sample_weight=np.zeros(40))
    with pytest.raises(ValueError, match="sample_weight"):
        _model().fit(rows(), sample_weight=np.ones(39))
    with pytest.raises(ValueError, match="sample_weight|[Ss]ample weights"):
        _model().fit(rows(), sample_weight=np.ones((40, 2)))
    spoilt = np.ones(40)
    spoilt[31] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        _model().fit(rows(), sample_weight=spoilt)


def test_a_missing_store_and_what_is_no_array(tmp_path):
    with pytest.raises(StoreError, match="nothing"):
        _model().fit(tmp_path / "nothing.zarr")
    zarr.create_group(str(tmp_path / "group"))
    zarr.create_array(str(tmp_path / "group" / "inside"), data=np.eye(3))
    with pytest.raises(StoreError, match="inside"):
        _model().fit(tmp_path / "group")
    (tmp_path / "file.txt").write_text("no array")
    with pytest.raises(StoreError, match=r"file\.txt"):
        _model().fit(str(tmp_path / "file.txt"))


def test_an_ill_defined_covariance_names_component_and_remedy(covariance_type):
    x = np.vstack([np.zeros((20, 2)), np.ones((20, 2))])
    model = _model(covariance_type=covariance_type, reg_covar=0)
    where = "all components share" if covariance_type == "tied" else "component [01]"
    with pytest.raises(
        IllDefinedCovarianceError, match=rf"increase reg_covar.*{where}"
    ):
        model.fit(x)


@pytest.mark.parametrize(
    ("scale", "offset"), [(1.0, 0.0), (1.0, 1e8), (1e9, 0.0), (1e-9, 0.0), (100.0, 3.0)]
)
def test_collapsed_groups_are_ill_defined(covariance_type, scale, offset):
    """Variances of 1e-33 are what rounding leaves of none."""
    rows = np.random.default_rng(0).normal(size=(12, 3)) * scale + offset
    x = np.repeat(rows, 100, axis=0)
    # As whoever computed them rounded them.
    beside = np.where(np.arange(1200)[:, np.newaxis] % 3, x, np.nextafter(x, np.inf))
    model = GaussianMixture(
        12, covariance_type=covariance_type, reg_covar=0, random_state=0
    )
    for weights in (None, np.linspace(0.5, 2.0, 1200)):
        for rounded in (x, beside):
            with pytest.raises(IllDefinedCovarianceError, match="is enough") as raised:
                model.fit(rounded, sample_weight=weights)
    named = re.search(r"reg_covar=(\S+) is enough", str(raised.value))
    assert named is not None
    remedied = model.set_params(reg_covar=float(named[1])).fit(x)
    assert remedied.converged_
    hair = scale * 1e-3
    assert remedied.score(x + hair) == pytest.approx(remedied.score(x), abs=100)


def test_a_component_that_collapses_on_one_row_is_ill_defined():
    """Its mean is off by ten roundings of the row, as scikit-learn's: its variance."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(200, 10)) + rng.integers(0, 3, size=(200, 1)) * 3
    for covariance_type in ("diag", "spherical"):
        model = GaussianMixture(
            4,
            covariance_type=covariance_type,
            init_params="k-means++",
            reg_covar=0,
            random_state=7,
        )
        with pytest.raises(IllDefinedCovarianceError, match=r"component \d\."):
            model.fit(x)


def test_one_failed_run_does_not_end_the_others(monkeypatch):
    """The first start has a component on five equal rows, where it collapses."""
    x = blobs(7, 60, 2, 1)
    x = np.vstack([x, np.repeat(x[:1], 5, axis=0)])
    shape = SHAPES["full"]

    def start(means, variances):
        covariances = np.array(variances)[:, np.newaxis, np.newaxis] * np.eye(2)
        weights = np.array([0.5, 0.5])
        factors = shape.factors(covariances)
        return Mixture(shape, weights, np.array(means), covariances, factors)

    bad = start([x[0], x.mean(axis=0)], [1e-12, 1.0])
    good = start([x.mean(axis=0) - 1, x.mean(axis=0) + 1], [1.0, 1.0])
    parameters = {"reg_covar": 0, "max_iter": 20}

    def fit(*starts):
        queue = iter(starts)
        monkeypatch.setattr(training, "seed", lambda *_args: next(queue))
        return _model(n_init=len(starts), **parameters).fit(x)

    with pytest.raises(IllDefinedCovarianceError, match="component 0"):
        fit(bad)
    np.testing.assert_array_equal(fit(bad, good).means_, fit(good).means_)


def test_all_failed_runs_are_an_error():
    x = np.vstack([np.zeros((20, 2)), np.ones((20, 2))])
    with pytest.raises(IllDefinedCovarianceError, match="first of 3 runs; all of them"):
        _model(n_init=3, reg_covar=0).fit(x)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_components", 0),
        ("covariance_type", "round"),
        ("tol", -1.0),
        ("reg_covar", -1.0),
        ("max_iter", -1),
        ("n_init", 0),
        ("init_params", "guess"),
        ("init_size", 0),
        ("verbose_interval", 0),
    ],
)
def test_bad_parameters_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        GaussianMixture(**{name: value}).fit(blobs(8, 20, 2, 2))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("lazy", [False, True])
def test_an_interrupted_fit_leaves_the_estimator_as_it_was(error, fitted, lazy):
    x = blobs(9, 200, 2, 2)
    model = _model(tol=0, max_iter=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if fitted:
            model.fit(x)
    before = dict(vars(model))

    def interrupt(progress):
        if progress.n_pass == 3:
            raise error

    other = blobs(10, 100, 4, 2)
    with pytest.raises(error):
        model.fit(
            da.from_array(other, chunks=30) if lazy else other, callback=interrupt
        )
    after = vars(model)
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)


_INTERRUPTED = """
import os, signal, sys
import dask.array as da
import numpy as np
from daskgmm import GaussianMixture

# A job in a shell's background starts with the signal ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
x = np.random.default_rng(0).normal(size=(400_000, 8))
rows = da.from_array(x, chunks=(20_000, 8)) if sys.argv[1] == "lazy" else x
model = GaussianMixture(8, tol=0, max_iter=100_000, random_state=0)
before = dict(vars(model))

def observe(progress):
    if progress.n_pass == 2:  # from another process, in the middle of a later pass
        os.system(f"(sleep 0.3; kill -INT {os.getpid()}) &")

try:
    model.fit(rows, callback=observe)
except KeyboardInterrupt:
    print("interrupted", vars(model) == before, flush=True)
"""


@pytest.mark.parametrize("kind", ["lazy", "array"])
def test_ctrl_c_ends_a_fit_and_leaves_the_estimator_as_it_was(kind):
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, kind],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout == "interrupted True\n"


def test_an_error_while_reading_names_the_block():
    def read(block, block_id=None):
        if block_id[0] == 3:
            raise OSError("the disk is gone")
        return block

    lazy = da.ones((50, 2), chunks=(10, 2)).map_blocks(read, dtype=float)
    with (
        dask.config.set(scheduler="threads"),
        pytest.raises(OSError, match="the disk is gone") as raised,
    ):
        _model().fit(lazy)
    assert any("block 3" in note for note in raised.value.__notes__)


@pytest.mark.parametrize(
    "method", ["fit", "score", "predict", "predict_proba", "score_samples"]
)
@pytest.mark.parametrize(
    "made", [None, [[1.0, 2.0]], "text", np.ones(2), np.ones((2, 3))]
)
def test_blocks_that_are_not_as_they_say_are_named(method, made):
    """Dask believes what `meta` says of them."""
    lazy = da.from_array(np.eye(8)[:, :2], chunks=(4, 2))
    rows = lazy.map_blocks(lambda _: made, dtype=float, meta=np.empty((0, 0)))
    fitted = GaussianMixture(1, random_state=0).fit(lazy)
    with pytest.raises(DataError, match=r"Block \d of X"):
        np.asarray(getattr(fitted, method)(rows))


@pytest.mark.parametrize(
    ("n_samples", "error", "message"),
    [
        (10**15, ValueError, "do not fit into memory"),
        (10**30, ValueError, "do not fit into memory"),
        ("5", TypeError, "must be an integer"),
        (2.5, TypeError, "must be an integer"),
    ],
)
def test_samples_that_cannot_be_drawn(n_samples, error, message):
    fitted = GaussianMixture(1, random_state=0).fit(np.eye(4))
    with pytest.raises(error, match=message):
        fitted.sample(n_samples)


@pytest.mark.parametrize("place", ["nothing.zarr", "nothing.parquet", "no*.parquet"])
def test_of_a_missing_place_no_library_tells_its_own_story(tmp_path, place):
    """The message says it all: what another library raised is not printed, but kept."""
    with pytest.raises(StoreError) as caught:
        GaussianMixture(2).fit(str(tmp_path / place))
    printed = "".join(traceback.format_exception(caught.value))
    assert printed.count("Traceback") == 1
    assert len(printed.splitlines()) < 45


MISTAKES = {
    "GaussianMixture(2).fit('nothing.zarr')": (
        "StoreError: There is no Zarr array and no Parquet at"
    ),
    "fitted.predict([[1.0, 2.0]])": (
        "DataError: X has 2 features, but GaussianMixture is expecting 1 features as"
    ),
    "GaussianMixture(2, covariance_type='ful').fit([[0.0], [1.0]])": (
        "ParameterError: The 'covariance_type' parameter of GaussianMixture must be"
    ),
    "fitted.score([1.0])": "DataError: Expected 2D array, got 1D array instead",
}


def test_a_notebook_shows_who_asked_and_what_is_wrong():
    """And no frames of libraries, of which there would be a hundred lines."""
    first = (
        "from daskgmm import GaussianMixture\n"
        "fitted = GaussianMixture(1).fit([[0.0], [1.0]])"
    )
    codes = [first, *(f"def ask():\n    {code}\nask()" for code in MISTAKES)]
    cells = [nbformat.v4.new_code_cell(code) for code in codes]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=120, allow_errors=True).execute()
    for cell, (code, message) in zip(cells[1:], MISTAKES.items(), strict=True):
        [output] = cell.outputs
        shown = "\n".join(output["traceback"])
        assert message in shown
        assert f"line 2, in ask\n    {code}" in shown
        assert shown.count("\n") < 12
        assert "/daskgmm/" not in shown
