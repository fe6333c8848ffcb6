"""Whatever is handed over, and wherever: a sentence comes back, and no bare error."""

from __future__ import annotations

import decimal
import warnings
from pathlib import Path

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse
import xarray as xr
import zarr
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import daskgmm
from daskgmm import DaskGMMError, GaussianMixture, from_xarray, load, open_rows
from daskgmm.cli.main import main

OURS = (DaskGMMError, ValueError, TypeError)
BARE = (UnicodeError,)
"""ValueErrors of Python's own that say nothing to a user."""


def assert_sentence(error):
    assert isinstance(error, OURS) and not isinstance(error, BARE), repr(error)
    text = str(error)
    assert len(text.split()) >= 4, repr(error)
    assert "HistGradientBoosting" not in text


class Strange:
    """An object that is nothing that anybody knows."""


STRANGE = [
    None,
    5,
    2.5,
    True,
    "",
    "word",
    b"bytes",
    [],
    [[]],
    [[], []],
    {},
    {"a": [1.0, 2.0]},
    {1, 2},
    (),
    range(10),
    [1.0, 2.0],
    [[1.0, 2.0], [3.0]],
    [["a", "b"], ["c", "d"]],
    [[None, 1.0], [2.0, 3.0]],
    [[1 + 2j, 3.0], [1.0, 2.0]],
    [[decimal.Decimal(1), 2], [3, 4]],
    [[{}, {}], [{}, {}]],
    np.float64(3),
    np.array(3.0),
    np.zeros(0),
    np.zeros((0, 3)),
    np.zeros((3, 0)),
    np.zeros((0, 0)),
    np.ones(7),
    np.ones((2, 3, 4)),
    np.ones((4, 2), dtype=complex),
    np.ones((4, 2), dtype="U3"),
    np.ones((4, 2), dtype="S3"),
    np.ones((4, 2), dtype=object),
    np.full((4, 2), "x", dtype=object),
    np.ones((4, 2), dtype="datetime64[s]"),
    np.ones((4, 2), dtype="timedelta64[s]"),
    np.ones(4, dtype=[("a", float), ("b", float)]),
    np.full((5, 2), np.nan),
    np.full((5, 2), np.inf),
    np.array([[1e308, -1e308], [1e308, 1e308], [0, 0]]),
    np.ma.masked_array(np.ones((5, 2)), mask=True),
    np.matrix([[1.0, 2.0], [3.0, 4.0]]) if hasattr(np, "matrix") else None,
    scipy.sparse.eye(5, format="csr"),
    pd.DataFrame(),
    pd.DataFrame({"a": []}),
    pd.DataFrame({"a": ["x", "y", "z"]}),
    pd.DataFrame({"a": pd.date_range("2020", periods=3)}),
    pd.DataFrame({"a": [[1.0], [1.0, 2.0], []]}),
    pd.DataFrame({"a": [[], [], []]}),
    pd.DataFrame({"a": [{}, {}, {}]}),
    pd.DataFrame({"a": pd.array([1, None, 3], dtype="Int64")}),
    pd.DataFrame([[1.0, 2.0], [3.0, 4.0]], columns=["a", "a"]),
    pd.DataFrame([[1.0, 2.0], [3.0, 4.0]], columns=["a", 1]),
    pd.Series([1.0, 2.0]),
    pd.Index([1.0, 2.0]),
    pa.table({"a": [1.0, 2.0]}),
    pa.table({"a": ["x", "y"]}),
    xr.DataArray(np.ones((2, 3, 4))),
    xr.DataArray(np.ones(3)),
    xr.DataArray(3.0),
    xr.Dataset(),
    xr.Dataset({"a": ("x", ["p", "q"])}),
    da.zeros(7),
    da.zeros((4, 2), dtype=complex),
    da.zeros((4, 0)),
    da.zeros((0, 2)),
    da.zeros((2, 3, 4)),
    da.from_array(np.full((4, 2), "x")),
    da.zeros((6, 2), chunks=(2, 1)) + np.nan,
    da.zeros((4, 2)).map_blocks(lambda b: b[:, :1]),
    da.zeros((4, 2)).map_blocks(lambda b: None),
    da.zeros((4, 2)).map_blocks(lambda b: "word"),
    da.zeros((4, 2)).map_blocks(lambda b: b.astype(str)),
    da.zeros((4, 2)).map_blocks(lambda b: scipy.sparse.csr_matrix(b)),
    dd.from_pandas(pd.DataFrame({"a": ["x", "y"]}), npartitions=1),
    dd.from_pandas(pd.DataFrame({"a": [1.0, 2.0]}), npartitions=1)["a"],
    Strange(),
    Strange,
    print,
    iter([1, 2]),
    open,
    Path("/nothing/there"),
    "/nothing/there.parquet",
    "/nothing/*.parquet",
    "nosuch://place/rows",
    "s3://",
    "http://127.0.0.1:1/rows.zarr",
    "memory://nothing",
    "zip://a::/nothing.zip",
    "\x00",
    "a" * 5000,
    "::",
    "file://",
]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Files and folders that are no rows."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "empty").touch()
    (folder / "empty.parquet").touch()
    (folder / "text.csv").write_text("a,b\n1,2\n")
    (folder / "broken.parquet").write_bytes(b"PAR1 and nothing else PAR1")
    (folder / "broken.zip").write_bytes(b"PK and nothing else")
    (folder / "folder").mkdir()
    (folder / "broken.zarr").mkdir()
    (folder / "broken.zarr" / "zarr.json").write_text("{")
    (folder / "odd.zarr").mkdir()
    (folder / "odd.zarr" / "zarr.json").write_text('{"zarr_format": 3, "node_type": 1}')
    (folder / "odder.zarr").mkdir()
    (folder / "odder.zarr" / "zarr.json").write_text("[]")
    (folder / "old.zarr").mkdir()
    (folder / "old.zarr" / ".zarray").write_text("{}")
    pq.write_table(pa.table({}), folder / "columnless.parquet")
    pq.write_table(pa.table({"a": pa.array([], pa.string())}), folder / "none.parquet")
    pq.write_table(pa.table({"a": ["x"]}), folder / "words.parquet")
    pq.write_table(pa.table({"a": [[["x"]]]}), folder / "deep.parquet")
    pq.write_table(pa.table({"a": [None]}), folder / "nulls.parquet")
    (folder / "delta" / "_delta_log").mkdir(parents=True)
    (folder / "delta2" / "_delta_log").mkdir(parents=True)
    (folder / "delta2" / "_delta_log" / f"{0:020}.json").write_text("{}")
    for name, array in {
        "number": np.array(3.0),
        "line": np.ones(5),
        "cube": np.ones((2, 3, 4)),
        "words": np.full((4, 2), "x", dtype="U3"),
        "complex": np.ones((4, 2), dtype=complex),
        "none": np.ones((0, 2)),
        "thin": np.ones((4, 0)),
    }.items():
        with warnings.catch_warnings(action="ignore"):
            zarr.create_array(folder / f"{name}.zarr", data=array)
    zarr.create_group(folder / "group.zarr")
    GaussianMixture(1).fit(np.random.default_rng(0).normal(size=(9, 2))).save(
        folder / "model"
    )
    return sorted(folder.iterdir())


@pytest.fixture(autouse=True)
def at_once():
    """Nothing here is to be had by trying again."""
    with dask.config.set({"daskgmm.storage-retries": 0}):
        yield


METHODS = (
    *("fit", "fit_predict", "predict", "predict_proba", "score_samples"),
    *("score", "aic", "bic"),
)


@pytest.fixture(scope="module")
def fitted():
    return GaussianMixture(1).fit(np.random.default_rng(0).normal(size=(9, 2)))


def ask(model, method, *args, **kwargs):
    """A method's answer, all of it; or a sentence."""
    with warnings.catch_warnings(action="ignore"):
        try:
            answer = getattr(model, method)(*args, **kwargs)
            if method != "fit" and hasattr(answer, "compute"):
                answer.compute(scheduler="sync")
        except Exception as error:
            assert_sentence(error)


def fresh():
    return GaussianMixture(1, max_iter=3, random_state=0)


@pytest.mark.parametrize("method", METHODS)
def test_strange_rows(fitted, method):
    for rows in STRANGE:
        ask(fresh() if method.startswith("fit") else fitted, method, rows)


@pytest.mark.parametrize("method", METHODS)
def test_strange_places(fitted, places, method):
    for place in places:
        ask(fresh() if method.startswith("fit") else fitted, method, place)


@pytest.mark.parametrize("method", ["fit", "score", "bic"])
@pytest.mark.parametrize("lazy", [False, True])
def test_strange_weights(fitted, places, method, lazy):
    rows = np.random.default_rng(0).normal(size=(9, 2))
    rows = da.from_array(rows, chunks=(4, 2)) if lazy else rows
    more = [np.zeros(9), -np.ones(9), np.full(9, np.nan), np.ones(8), np.ones((9, 1))]
    for weights in [*STRANGE, *more, *places]:
        model = fresh() if method == "fit" else fitted
        ask(model, method, rows, sample_weight=weights)


OTHERS = {
    "BayesianGaussianMixture": {"n_components": 1, "max_iter": 3, "random_state": 0},
    "MixtureSearch": {"n_components": 1, "max_iter": 3, "random_state": 0},
}
PARAMETERS = [("GaussianMixture", name) for name in GaussianMixture().get_params()] + [
    (kind, name)
    for kind in OTHERS
    for name in getattr(daskgmm, kind)().get_params()
    if kind == "MixtureSearch" or name not in GaussianMixture().get_params()
]


def made(kind):
    return getattr(daskgmm, kind)(**OTHERS[kind]) if kind in OTHERS else fresh()


@pytest.mark.parametrize(("kind", "name"), PARAMETERS)
def test_strange_parameters(kind, name):
    rows = np.random.default_rng(0).normal(size=(9, 2))
    for value in [*STRANGE, -1, 0, 1e9, np.nan, np.inf, "full", 10**30]:
        if name in ("max_iter", "n_init", "n_components", "init_size") and (
            isinstance(value, int) and value > 100
        ):
            continue  # they mean it
        ask(made(kind).set_params(**{name: value}), "fit", rows)


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("criterion", [None, "held_out"])
def test_strange_rows_and_weights_of_others(kind, criterion, places):
    model = made(kind)
    if kind == "MixtureSearch" and criterion:
        model.set_params(criterion=criterion, held_out=0.5)
    rows = np.random.default_rng(0).normal(size=(9, 2))
    for value in [*STRANGE, *places]:
        ask(model, "fit", value)
        ask(model, "fit", rows, sample_weight=value)
        ask(model, "fit", rows, checkpoint_interval=value)
        ask(model, "fit", rows, callback=value)
        ask(model, "predict", value)


@pytest.mark.parametrize("what", ["save", "load", "checkpoint", "interval", "sample"])
def test_strange_arguments(fitted, places, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).normal(size=(9, 2))
    for value in [*STRANGE, *places]:
        if what == "save" and isinstance(value, Path):
            ask(fitted, "save", value, overwrite=True)
        elif what in ("save", "sample"):
            ask(fitted, what, value)
        elif what == "load":
            ask(daskgmm, "load", value)
        else:
            option = {"checkpoint": "checkpoint", "interval": "checkpoint_interval"}
            more = {option[what]: value}
            if what == "interval":
                more["checkpoint"] = str(tmp_path / "c")
            ask(fresh(), "fit", rows, **more)


@pytest.mark.parametrize(
    "option",
    *[["array", "columns", "filters", "storage_options", "decode_cf", "version"]],
)
def test_strange_options_of_rows(places, tmp_path, option):
    zarr.create_array(tmp_path / "x.zarr", data=np.ones((4, 2)))
    pq.write_table(pa.table({"a": [1.0], "b": [2.0]}), tmp_path / "x.parquet")
    filters = [("a",), [("a", "~", 1)], [("c", "==", 1)], [("a", "==", "x")], "a > 1"]
    for value in [*STRANGE, ["c"], ["a", "a"], -1, [5], filters, *filters]:
        for place in (tmp_path / "x.zarr", tmp_path / "x.parquet"):
            with warnings.catch_warnings(action="ignore"):
                try:
                    rows = open_rows(place, **{option: value})
                    fresh().fit(rows)
                except Exception as error:
                    assert_sentence(error)


def test_strange_labelled_arrays():
    for value in STRANGE:
        for dim in (None, "x", 5, Strange()):
            with warnings.catch_warnings(action="ignore"):
                try:
                    from_xarray(value, dim)
                except Exception as error:
                    assert_sentence(error)


SHAPES = st.lists(st.integers(0, 4), min_size=0, max_size=3).map(tuple)
DTYPES = st.sampled_from(
    ["f2", "f4", "f8", ">f4", ">f8", "g", "i1", "u8", "?", "c8", "U2", "O", "M8[s]"]
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    shape=SHAPES,
    dtype=DTYPES,
    kind=st.sampled_from(["numpy", "fortran", "dask", "frame", "xarray", "masked"]),
    method=st.sampled_from(METHODS),
    number=st.sampled_from([0, 1, -1, 1e300, np.nan, np.inf]),
    weights=st.none() | SHAPES,
    nan=st.sampled_from(["error", "skip"]),
    seed=st.integers(0, 1000),
)
def test_arrays_of_any_shape_and_dtype(
    fitted, shape, dtype, kind, method, number, weights, nan, seed
):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=shape)
    with warnings.catch_warnings(action="ignore"):
        if rows.ndim:
            rows[rng.random(shape) < 0.1] = number
        rows = rows.astype("i8" if dtype == "M8[s]" else dtype).astype(dtype)
        if kind == "fortran":
            rows = np.asfortranarray(rows)
        elif kind == "dask":
            rows = da.from_array(rows, chunks=2)
        elif kind == "frame" and rows.ndim == 2:
            rows = pd.DataFrame(rows)
        elif kind == "xarray":
            rows = xr.DataArray(rows)
        elif kind == "masked":
            rows = np.ma.masked_array(rows, mask=rng.random(shape) < 0.2)
    model = fresh() if method.startswith("fit") else fitted
    model = GaussianMixture(**model.get_params()).set_params(nan=nan)
    if not method.startswith("fit"):
        vars(model).update(vars(fitted), nan=nan)
    takes = method in ("fit", "fit_predict", "score", "aic", "bic")
    more = {} if weights is None or not takes else {"sample_weight": np.ones(weights)}
    ask(model, method, rows, **more)


COMMANDS = (
    ("fit", "{}", "{out}", "-k", "2"),
    ("predict", "{model}", "{}", "{out}"),
    ("predict", "{}", "{rows}", "{out}"),
    ("predict", "{model}", "{rows}", "{}"),
    ("score", "{model}", "{}"),
    ("score", "{}", "{rows}"),
    ("sample", "{}", "{out}", "-n", "5"),
    ("sample", "{model}", "{}", "-n", "5"),
    ("info", "{}"),
    ("fit", "{rows}", "{}", "-k", "2"),
    ("select", "{}", "{out}", "-k", "1,2"),
    ("select", "{rows}", "{out}", "-k", "{}"),
    ("fit", "{}", "{out}", "-k", "2", "--bayesian"),
    ("fit", "{rows}", "{out}", "-k", "2", "--checkpoint", "{}"),
    ("fit", "{rows}", "{out}", "-k", "2", "--weights", "{}"),
)


@pytest.fixture(scope="module")
def scheduler():
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1, processes=False, protocol="tcp", dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield cluster.scheduler_address


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_strange_places_for_commands(
    places, tmp_path, scheduler, command, fitted, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # where names without a folder lead
    rows, model = str(tmp_path / "rows.zarr"), str(tmp_path / "model")
    zarr.create_array(rows, data=np.random.default_rng(0).normal(size=(9, 2)))
    fitted.save(model)
    texts = [str(value) for value in STRANGE if isinstance(value, str | Path)]
    at = [] if command[0] in ("sample", "info") else ["--scheduler", scheduler]
    for i, value in enumerate([*texts, *map(str, places)]):
        if value.startswith("-"):
            continue
        out = str(tmp_path / f"out{i}")
        args = [part.format(value, out=out, model=model, rows=rows) for part in command]
        with warnings.catch_warnings(action="ignore"):
            done = CliRunner().invoke(main, [*args, *at])
        assert done.exception is None or isinstance(done.exception, SystemExit), (
            args,
            repr(done.exception),
        )
        if done.exit_code == 1:
            assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1
            assert len(done.stderr.split()) >= 4


def test_loading_what_was_saved_and_spoilt(tmp_path, fitted):
    """Bytes of a model changed one by one: it is found damaged, or it is the same."""
    fitted.save(tmp_path / "m")
    files = [path for path in (tmp_path / "m").rglob("*") if path.is_file()]
    for path in files:
        content = path.read_bytes()
        for at in range(0, len(content), max(1, len(content) // 25)):
            path.write_bytes(content[:at] + b"7" + content[at + 1 :])
            try:
                again = load(tmp_path / "m")
                np.testing.assert_array_equal(again.means_, fitted.means_)
            except Exception as error:
                assert_sentence(error)
        path.write_bytes(content)
