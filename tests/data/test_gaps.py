"""Rows with NaN, null or masked numbers: named, or skipped in a fit and in answers."""

from __future__ import annotations

import warnings

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner
from conftest import blobs, create_zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from daskgmm import DataError, GaussianMixture, SkippedRowsWarning, from_xarray, load
from daskgmm.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N = 700
SKIPPED = pytest.mark.filterwarnings("ignore::daskgmm.SkippedRowsWarning")
UNNAMED = pytest.mark.filterwarnings("ignore:X (has|does not have valid) feature names")


@pytest.fixture(scope="module")
def x():
    return blobs(0, N, 3, 2)


@pytest.fixture(scope="module")
def bad():
    rng = np.random.default_rng(0)
    return rng.random(N) < 0.2


@pytest.fixture(scope="module")
def gappy(x, bad):
    rows = x.copy()
    rows[bad, np.random.default_rng(1).integers(0, 3, bad.sum())] = np.nan
    return rows


def model(**parameters):
    parameters = {"random_state": 0, "max_iter": 5, **parameters}
    return GaussianMixture(2, **parameters)


def masked(x):
    return np.ma.masked_invalid(x)


def nulls(x):
    return [pa.array(column, mask=np.isnan(column)) for column in x.T]


def in_parquet(x, folder):
    table = pa.table(dict(zip("abc", nulls(x), strict=True)))
    pq.write_table(table, folder / "x.parquet", row_group_size=200)
    return folder / "x.parquet"


def in_lists(x, folder):
    rows = [None if np.isnan(row).any() else row.tolist() for row in x]
    table = pa.table({"e": pa.array(rows, type=pa.list_(pa.float64()))})
    pq.write_table(table, folder / "e.parquet", row_group_size=200)
    return folder / "e.parquet"


def lazily(x, rows):
    return da.from_array(x, chunks=(rows, 3), asarray=False)


def labelled(x):
    return xr.DataArray(x.reshape(-1, 7, 3), dims=("y", "x", "band"))


KINDS = {
    "array": lambda x, _: x,
    "fortran": lambda x, _: np.asfortranarray(x),
    "masked": lambda x, _: masked(np.where(np.isnan(x), np.nan, x)),
    "dask": lambda x, _: da.from_array(x, chunks=(90, 3)),
    "masked blocks": lambda x, _: lazily(masked(x), 90),
    "zarr": lambda x, f: create_zarr(f / "x.zarr", x, chunks=(90, 3)),
    "parquet": in_parquet,
    "lists": in_lists,
    "frame": lambda x, _: pd.DataFrame(x),
    "nullable": lambda x, _: pd.DataFrame(x).convert_dtypes(),
    "dask frame": lambda x, _: dd.from_pandas(pd.DataFrame(x), npartitions=8),
    "xarray": lambda x, _: from_xarray(labelled(x), "band"),
    "lazy xarray": lambda x, _: from_xarray(labelled(x).chunk(y=13), "band"),
}


@UNNAMED
@pytest.mark.parametrize("kind", KINDS)
def test_rows_with_nan_are_named(tmp_path, gappy, bad, kind):
    rows = KINDS[kind](gappy, tmp_path)
    fitted = model().fit(gappy[~bad])
    words = "NaN|null|masked"
    with pytest.raises(DataError, match=words) as caught:
        model().fit(rows)
    assert "nan='skip'" in str(caught.value)
    assert "HistGradientBoosting" not in str(caught.value)
    for method in ("predict", "predict_proba", "score_samples", "score"):
        with pytest.raises(DataError, match=words):
            getattr(fitted, method)(rows).compute()


def plain(answer):
    """An answer in memory, as a plain array, with what is masked left as it is."""
    answer = answer.compute() if hasattr(answer, "compute") else answer
    answer = answer.to_numpy() if hasattr(answer, "to_numpy") else answer
    return answer


@SKIPPED
@UNNAMED
@pytest.mark.parametrize("kind", KINDS)
def test_rows_with_nan_are_skipped(tmp_path, gappy, bad, kind):
    rows = KINDS[kind](gappy, tmp_path)
    whole = gappy[~bad]
    expected = model().fit(whole)
    fitted = model(nan="skip")
    said = f"{bad.sum()} rows with NaN were left out"
    with pytest.warns(SkippedRowsWarning, match=said):
        fitted.fit(rows)
    assert fitted.n_rows_skipped_ == bad.sum()
    np.testing.assert_allclose(fitted.means_, expected.means_, rtol=1e-6)
    np.testing.assert_allclose(fitted.weights_, expected.weights_, rtol=1e-6)
    assert fitted.score(rows) == pytest.approx(expected.score(whole))
    assert fitted.bic(rows) == pytest.approx(expected.bic(whole))
    for method, nothing in (
        ("predict", -1),
        ("predict_proba", np.nan),
        ("score_samples", np.nan),
    ):
        answer = plain(getattr(fitted, method)(rows))
        of_rows = getattr(expected, method)(whole)
        answer = answer.reshape(N, *of_rows.shape[1:])
        np.testing.assert_allclose(answer[~bad], of_rows, rtol=1e-6)
        assert answer.dtype == of_rows.dtype
        if "masked" in kind:
            assert isinstance(answer, np.ma.MaskedArray)
            where = np.ma.getmaskarray(answer)
            np.testing.assert_array_equal(where.reshape(N, -1).all(axis=1), bad)
        assert np.isnan(nothing) == np.isnan(np.ma.getdata(answer)[bad]).all()
        if nothing == -1:
            assert (np.ma.getdata(answer)[bad] == -1).all()


@SKIPPED
@pytest.mark.parametrize("kind", ["array", "dask", "zarr", "parquet"])
def test_skipping_with_weights(tmp_path, gappy, bad, kind):
    rows = KINDS[kind](gappy, tmp_path)
    weights = np.random.default_rng(2).integers(0, 3, N).astype(float)
    whole = ~bad & (weights > 0)
    expected = model().fit(gappy[whole], sample_weight=weights[whole])
    fitted = model(nan="skip").fit(rows, sample_weight=weights)
    np.testing.assert_allclose(fitted.means_, expected.means_, rtol=1e-6)
    assert fitted.n_rows_skipped_ == (bad & (weights > 0)).sum()
    score = expected.score(gappy[whole], sample_weight=weights[whole])
    assert fitted.score(rows, sample_weight=weights) == pytest.approx(score)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["array", "dask", "zarr", "frame"])
def test_rows_of_weight_zero_may_hold_anything(tmp_path, x, bad, kind, value):
    rows = x.copy()
    rows[bad, 1] = value
    weights = np.where(bad, 0.0, 1.0)
    expected = model().fit(x, sample_weight=weights)
    given = KINDS[kind](rows, tmp_path)
    fitted = model().fit(given, sample_weight=weights)
    np.testing.assert_array_equal(fitted.means_, expected.means_)
    assert fitted.n_rows_skipped_ == 0
    score = expected.score(np.where(bad[:, None], 0, x), sample_weight=weights)
    assert fitted.score(given, sample_weight=weights) == pytest.approx(score)
    weights[np.argmax(bad)] = 1e-9
    what = "NaN" if np.isnan(value) else "infinity"
    with pytest.raises(DataError, match=f"X contains {what} in .*row {np.argmax(bad)}"):
        model().fit(given, sample_weight=weights)


@UNNAMED
@pytest.mark.parametrize("kind", ["array", "dask", "zarr", "parquet"])
def test_infinity_is_never_skipped(tmp_path, gappy, bad, kind):
    rows = gappy.copy()
    at = np.flatnonzero(~bad)[300]
    rows[at, 2] = np.inf
    given = KINDS[kind](rows, tmp_path)
    where = f"row {at}" if kind == "array" else f"row {at % 90}"
    if kind == "parquet":
        where = ""
    with pytest.raises(DataError, match=f"X contains infinity in .*{where}"):
        model(nan="skip").fit(given)
    fitted = model(nan="skip").fit(rows[~bad][:200])
    with pytest.raises(DataError, match="infinity"):
        fitted.predict(given).compute()


def test_the_place_is_that_in_the_users_data(x):
    rows = x.copy()
    rows[[5, 17, 400]] = np.nan
    rows[405, 1] = np.inf
    said = r"infinity in row 405, column 1\. Remove or replace"
    with pytest.raises(DataError, match=said):
        model(nan="skip").fit(rows)
    said = r"infinity in block 4, row 5, column 1 \(counted"
    with pytest.raises(DataError, match=said):
        model(nan="skip").fit(da.from_array(rows, chunks=(100, 3)))
    rows[405, 1] = 0
    with pytest.raises(DataError, match=r"NaN in row 5, column 0\. .*nan='skip'"):
        model().fit(rows)
    with pytest.raises(DataError, match=r"NaN in row 5, column 0\. .*nan='skip'"):
        model().fit(x).predict(rows)


@SKIPPED
def test_all_rows_skipped(x):
    nothing = np.full_like(x, np.nan)
    for rows in (nothing, da.from_array(nothing, chunks=(100, 3))):
        with pytest.raises(DataError, match="All 700 rows of X have NaN"):
            model(nan="skip").fit(rows)
        fitted = model(nan="skip").fit(x)
        assert (np.asarray(fitted.predict(rows)) == -1).all()
        for method in ("score", "aic", "bic"):
            with pytest.raises(DataError, match="no rows to score"):
                getattr(fitted, method)(rows)


@SKIPPED
def test_whole_and_empty_blocks(x):
    """Blocks of which all rows are left out, and some that are empty."""
    rows = x.copy()
    rows[100:200] = np.nan
    lazy = da.from_array(rows, chunks=((100, 100, 500), (3,)))
    empty = da.concatenate([lazy[:0], lazy])
    expected = model().fit(np.delete(x, np.s_[100:200], axis=0))
    for some in (lazy, empty):
        fitted = model(nan="skip").fit(some)
        np.testing.assert_allclose(fitted.means_, expected.means_, rtol=1e-6)


def test_nothing_changes_without_gaps(x):
    for rows in (x, da.from_array(x, chunks=(100, 3))):
        plain, lenient = model().fit(rows), model(nan="skip").fit(rows)
        np.testing.assert_array_equal(plain.means_, lenient.means_)
        assert plain.n_rows_skipped_ == lenient.n_rows_skipped_ == 0


@SKIPPED
def test_checkpoints_know_what_was_skipped(tmp_path, gappy, bad):
    lazy = da.from_array(gappy, chunks=(100, 3))
    whole = model(nan="skip", tol=0).fit(lazy)
    first = model(nan="skip", tol=0)

    class Break(Exception):
        pass

    def observe(progress):
        if progress.n_pass == 2:
            raise Break

    with pytest.raises(Break):
        first.fit(lazy, callback=observe, checkpoint=tmp_path, checkpoint_interval=1)
    again = model(nan="skip", tol=0).fit(lazy, checkpoint=tmp_path)
    np.testing.assert_array_equal(again.means_, whole.means_)
    assert again.n_rows_skipped_ == bad.sum()
    again.save(tmp_path / "m")
    assert load(tmp_path / "m").n_rows_skipped_ == bad.sum()


# --- masked arrays --------------------------------------------------------------------


def test_masked_entries_are_refused_in_memory_and_lazily(x, bad):
    rows = np.ma.masked_array(x, mask=np.broadcast_to(bad[:, None], x.shape))
    at = int(np.argmax(bad))
    said = f"masked entry in row {at}: .*nan='skip'"
    for some in (rows, lazily(rows, 700)):
        with pytest.raises(DataError, match=said):
            model().fit(some)
    fitted = model().fit(x)
    with pytest.raises(DataError, match="masked entry"):
        fitted.predict(rows)
    weights = np.ma.masked_array(np.ones(N), mask=bad)
    for some in (x, lazily(x, 100), dd.from_pandas(pd.DataFrame(x), npartitions=2)):
        with pytest.raises(DataError, match="sample_weight.* has a masked entry"):
            model().fit(some, sample_weight=weights)
    unmasked = np.ma.masked_array(x, mask=np.zeros(x.shape, dtype=bool))
    np.testing.assert_array_equal(model().fit(unmasked).means_, fitted.means_)
    assert isinstance(fitted.predict(unmasked), np.ndarray)
    with pytest.raises(ValueError, match="'means' has masked entries"):
        model(means_init=rows[bad][:2]).fit(x)


@SKIPPED
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_masked_pixels_of_an_image_come_back_masked(dtype):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, size=(40, 50, 3)).astype(dtype)
    mask = rng.random((40, 50)) < 0.3
    pixels = np.ma.masked_array(image, np.broadcast_to(mask[..., None], image.shape))
    flat = pixels.reshape(-1, 3)
    fitted = model(nan="skip").fit(flat)
    assert fitted.n_rows_skipped_ == mask.sum()
    labels = fitted.predict(flat).reshape(40, 50)
    np.testing.assert_array_equal(labels.mask, mask)
    whole = image[~mask]
    np.testing.assert_array_equal(labels.compressed(), fitted.predict(whole))


# --- numbers of other dtypes in memory ------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["uint8", "int64", "bool", "float16", ">f4", ">f8", "g"]
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_other_dtypes_are_worked_on_as_float64(dtype, order):
    rng = np.random.default_rng(0)
    rows = np.asarray(rng.integers(0, 200, size=(5000, 3)) > 90, dtype=dtype)
    if dtype != "bool":
        rows = rng.integers(0, 200, size=(5000, 3)).astype(dtype)
    rows = np.asarray(rows, order=order)
    kind = np.float32 if dtype == ">f4" else np.float64
    expected, fitted = model().fit(rows.astype(kind)), model().fit(rows)
    np.testing.assert_array_equal(fitted.means_, expected.means_)
    assert fitted.means_.dtype == kind
    for method in ("predict", "predict_proba", "score_samples"):
        found = getattr(fitted, method)(rows)
        of_floats = getattr(expected, method)(rows.astype(kind))
        np.testing.assert_array_equal(found, of_floats)
        assert found.dtype == of_floats.dtype
    assert fitted.score(rows) == expected.score(rows.astype(kind))


@settings(max_examples=60)
@given(
    n=st.integers(1, 60),
    d=st.integers(1, 4),
    share=st.floats(0, 1),
    lazy=st.booleans(),
    weighted=st.booleans(),
    single=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_skipped_rows_are_as_good_as_absent(n, d, share, lazy, weighted, single, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)).astype(np.float32 if single else np.float64)
    bad = rng.random(n) < share
    x[bad, rng.integers(0, d, bad.sum())] = np.nan
    weights = rng.integers(0, 3, n).astype(float) if weighted else None
    fitted = GaussianMixture(2, nan="skip", reg_covar=1e-3, random_state=0, max_iter=2)
    rows = da.from_array(x, chunks=(7, d)) if lazy else x
    kept = ~bad if weights is None else ~bad & (weights > 0)
    others = None if weights is None else weights[kept]
    same = GaussianMixture(**fitted.get_params())

    def outcome(estimator, *args, **kwargs):
        try:
            estimator.fit(*args, **kwargs)
        except ValueError as error:
            return type(error)
        return estimator.means_

    with warnings.catch_warnings(action="ignore"):
        found = outcome(fitted, rows, sample_weight=weights)
        expected = outcome(same, x[kept], sample_weight=others)
    if isinstance(expected, type):
        assert isinstance(found, type) and issubclass(found, ValueError)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.slow
@SKIPPED
def test_by_command(tmp_path, gappy, bad):
    place, out = str(tmp_path / "x.zarr"), str(tmp_path / "out.zarr")
    zarr.create_array(place, data=gappy, chunks=(100, 3))
    run, at = CliRunner().invoke, ["--workers", "1"]
    fit = ["fit", place, str(tmp_path / "m"), "-k", "2", "--seed", "0", *at]
    refused = run(main, fit)
    assert refused.exit_code == 1 and "NaN" in refused.stderr
    done = run(main, [*fit, "--nan", "skip"])
    assert done.exit_code == 0, done.stderr
    assert f"{bad.sum()} rows with NaN were left out" in done.stdout
    predict = ["predict", str(tmp_path / "m"), place, out, *at]
    assert run(main, predict).exit_code == 1
    done = run(main, [*predict, "--nan", "skip", "--overwrite"])
    assert done.exit_code == 0, done.stderr
    labels = zarr.open_array(out, mode="r")[:]
    np.testing.assert_array_equal(labels == -1, bad)
