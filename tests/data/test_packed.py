"""Numbers that stand for others: refused until it is said how they are meant."""

from __future__ import annotations

import base64
import os
import subprocess
import sys

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner
from conftest import blobs, create_zarr

from daskgmm import DataError, GaussianMixture, load, open_rows
from daskgmm.cli.main import main
from daskgmm.data.packed import decoded, packing
from daskgmm.data.versions import versions_of

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N = 500


@pytest.fixture(scope="module")
def x():
    return blobs(0, N, 2, 2)


def model(**parameters):
    return GaussianMixture(2, random_state=0, max_iter=5, **parameters)


def packed(place, x, **attributes):
    """Codes of x in hundredths, as int16, above 300."""
    codes = np.round((x - 300) * 100).astype(np.int16)
    array = create_zarr(place, codes, chunks=(100, *x.shape[1:]))
    said = {"scale_factor": 0.01, "add_offset": 300.0, "units": "K", **attributes}
    array.update_attributes(said)
    return array


@pytest.fixture
def store(tmp_path, x):
    packed(tmp_path / "x.zarr", x + 300)
    return tmp_path / "x.zarr"


def as_given(store):
    array = zarr.open_array(store, mode="r")
    return {
        "path": store,
        "URL": f"file://{store}",
        "opened": open_rows(store),
        "array": array,
        "dask": da.from_zarr(array),
        "inlined": da.from_zarr(array, inline_array=True),
        "sliced": da.from_zarr(array)[::-1].rechunk(70),
        "xarray": xr.DataArray(array[:], attrs=dict(array.attrs)),
    }


WAYS = ("path", "URL", "opened", "array", "dask", "inlined", "sliced", "xarray")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "method", ["fit", "predict", "score", "weights", "weights in memory"]
)
def test_packed_numbers_are_refused_on_every_way_in(store, x, way, method):
    if "weights" in method:
        store = store.with_name("w.zarr")
        packed(store, x[:, 0] + 300)
    rows = as_given(store)[way]
    fitted = model().fit(x)
    said = r"packed numbers: .* scale_factor=0\.01, add_offset=300\.0 .*(decode_cf)"
    with pytest.raises(DataError, match=said):
        if method == "fit":
            model().fit(rows)
        elif method == "weights":
            model().fit(da.from_array(x), sample_weight=rows)
        elif method == "weights in memory":
            model().fit(x, sample_weight=rows)
        else:
            getattr(fitted, method)(rows)
    if way == "dask" and "weights" not in method:
        # What is done to them may be what they need.
        model().fit(rows * 0.01 + 300)


def test_variables_of_a_dataset_that_are_packed(store, x):
    array = xr.DataArray(x, dims=("row", "b"), attrs={"add_offset": 1.0})
    with pytest.raises(DataError, match="Variable 'v' of X holds packed numbers"):
        model().fit(xr.Dataset({"v": array[:, 0]}))
    with pytest.raises(DataError, match="sample_weight holds packed numbers"):
        model().fit(xr.DataArray(x, dims=("row", "b")), sample_weight=array[:, 0])
    decoded_by_xarray = xr.decode_cf(xr.Dataset({"v": array}))["v"]
    model().fit(decoded_by_xarray)


def test_they_are_decoded_or_taken_as_they_are(store, x):
    meant = np.round(x * 100) / 100 + 300
    rows = open_rows(store, decode_cf=True)
    fitted = model().fit(rows)
    expected = model().fit(meant)
    np.testing.assert_allclose(fitted.means_, expected.means_, rtol=1e-4)
    labels = fitted.predict(rows).compute()
    np.testing.assert_array_equal(labels, expected.predict(meant))
    codes = zarr.open_array(store, mode="r")[:]
    rows = open_rows(store, decode_cf=False)
    assert isinstance(rows, zarr.Array) and dict(rows.attrs) == {"units": "K"}
    for given in (rows, da.from_zarr(rows)):
        np.testing.assert_allclose(model().fit(given).means_, model().fit(codes).means_)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    "encoding",
    [
        {"dtype": "int16", "scale_factor": 0.5, "add_offset": 10.0, "_FillValue": -99},
        {"dtype": "uint8", "scale_factor": 0.25, "_FillValue": 255},
        {"dtype": "int32", "_FillValue": -1},
        {"dtype": "float32", "_FillValue": 1e20},
        {"dtype": "float64", "_FillValue": np.float64(-9999)},
        {"dtype": "float32", "missing_value": -5.0},
        {"dtype": "int8", "scale_factor": 2.0, "_FillValue": 0, "_Unsigned": "true"},
    ],
)
def test_what_xarray_writes_is_read_as_xarray_reads_it(tmp_path, encoding, zarr_format):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 40, size=(60, 2)).astype(float)
    values[7, 1] = np.nan
    data = xr.Dataset({"v": (("row", "band"), values)})
    data.to_zarr(
        tmp_path / "x",
        encoding={"v": {**encoding, "chunks": (20, 2)}},
        zarr_format=zarr_format,
        consolidated=False,
    )
    theirs = xr.open_zarr(tmp_path / "x", consolidated=False)["v"]
    rows = open_rows(tmp_path / "x", array="v", decode_cf=True)
    assert rows.numblocks[0] == 3
    found = np.where(np.isnan(theirs), np.nan, rows.compute())
    if zarr_format == 3 or "_FillValue" not in encoding:
        np.testing.assert_array_equal(rows.compute(), theirs)
        assert rows.dtype == theirs.dtype
    np.testing.assert_array_equal(found, theirs)


def as_xarray_writes_it(value):
    """Beside Zarr 3."""
    return base64.b64encode(np.array(value, "<f8")).decode()


@pytest.mark.parametrize(
    ("attributes", "dtype", "n"),
    [
        ({}, "int16", 0),
        ({"units": "K", "valid_min": 0}, "int16", 0),
        ({"scale_factor": 1.0, "add_offset": 0}, "int16", 0),
        ({"scale_factor": 2}, "float32", 1),
        ({"_FillValue": np.nan}, "float64", 0),
        ({"_FillValue": "NaN"}, "float64", 0),
        ({"missing_value": [np.nan, np.nan]}, "float32", 0),
        ({"_FillValue": -9999}, "float64", 1),
        ({"_FillValue": 0, "missing_value": -1}, "int16", 2),
        ({"_Unsigned": "true"}, "int8", 1),
        ({"_FillValue": as_xarray_writes_it(np.nan)}, "float32", 0),
        ({"_FillValue": as_xarray_writes_it(1e20)}, "float32", 1),
    ],
)
def test_which_attributes_say_that_numbers_stand_for_others(attributes, dtype, n):
    assert len(packing(attributes, np.dtype(dtype))) == n


def test_decoding_looks_for_missing_chunks(store, x):
    rows = open_rows(store, decode_cf=True)
    (store / "c" / "3" / "0").unlink()
    for method in (model().fit, lambda rows: model().fit(x).predict(rows).compute()):
        with pytest.raises(OSError, match="Chunk c/3/0 .* is missing"):
            method(rows)


@pytest.mark.slow
def test_by_command(store, tmp_path, x):
    run = CliRunner().invoke
    at = ["--workers", "1"]
    fit = ["fit", str(store), str(tmp_path / "m"), "-k", "2", "--seed", "0", *at]
    refused = run(main, fit)
    assert refused.exit_code == 1
    assert "--decode-cf" in refused.stderr and "--no-decode-cf" in refused.stderr
    assert run(main, [*fit, "--decode-cf"]).exit_code == 0
    assert load(tmp_path / "m").means_.mean() > 200
    out = str(tmp_path / "out.zarr")
    args = ["predict", str(tmp_path / "m"), str(store), out, *at]
    assert run(main, args).exit_code == 1
    done = run(main, [*args, "--decode-cf"])
    assert done.exit_code == 0, done.stderr
    labels = load(tmp_path / "m").predict(np.round(x * 100) / 100 + 300)
    np.testing.assert_array_equal(zarr.open_array(out, mode="r")[:], labels)
    score = run(main, ["score", str(tmp_path / "m"), str(store), *at, "--no-decode-cf"])
    assert score.exit_code == 0, score.stderr


def test_without_xarray_it_says_what_to_install(store, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "xarray", None)
    with pytest.raises(ImportError, match=r"pip install 'daskgmm\[xarray\]'"):
        decoded(zarr.open_array(store, mode="r"))


def test_decoded_numbers_since_a_day_stay_numbers(tmp_path, x):
    """Days since another day are features, and xarray would make dates of them."""
    packed(tmp_path / "x", x + 300, units="days since 2000-01-01")
    rows = open_rows(tmp_path / "x", decode_cf=True)
    assert rows.dtype.kind == "f"
    meant = np.round(x * 100) / 100 + 300
    np.testing.assert_allclose(rows.compute(), meant, rtol=1e-4)


def test_codes_that_are_taken_as_they_are_say_nothing_else_any_more(tmp_path, x):
    """Whichever attribute says it: a fit would refuse them for the one that is left."""
    said = {"_FillValue": -1, "missing_value": -2, "_Unsigned": "false"}
    packed(tmp_path / "x", x + 300, **said)
    rows = open_rows(tmp_path / "x", decode_cf=False)
    assert dict(rows.attrs) == {"units": "K"}
    codes = zarr.open_array(tmp_path / "x", mode="r")[:]
    np.testing.assert_array_equal(model().fit(rows).means_, model().fit(codes).means_)


def test_versions_of_decoded_rows_are_the_same_until_their_meaning_changes(store):
    """Also to another process, which is to go on with what this one wrote."""
    said = [versions(store)]
    code = "import sys, test_packed as t; print(t.versions(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(store)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said.append(subprocess.check_output(command, env=env, text=True).strip())
    assert said[0] == said[1]
    for change in ({"scale_factor": 0.02}, {"add_offset": 1.0}, {"_FillValue": 7}):
        zarr.open_array(store, mode="r+").update_attributes(change)
        said.append(versions(store))
    assert len(set(said)) == 4


def versions(store):
    return versions_of(open_rows(store, decode_cf=True)).of_rows(0, N)
