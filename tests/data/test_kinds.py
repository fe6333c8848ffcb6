"""Data frames, labelled arrays and memory maps: the numbers of their rows in NumPy."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
import warnings

import dask
import dask.array as da
import dask.dataframe as dd
import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from conftest import blobs
from distributed import Client, LocalCluster
from sklearn.mixture import GaussianMixture as Reference
from sklearn.utils import check_array

from daskgmm import DataError, GaussianMixture, from_xarray, load
from daskgmm.data.gaps import Gaps
from daskgmm.data.inputs import open_input

NAMES = ["length", "width", "height"]
METHODS = ("predict", "predict_proba", "score_samples")
MODELS = ("weights_", "means_", "covariances_", "lower_bounds_")
ANSWERS = {"rtol": 1e-9, "atol": 1e-12}


@pytest.fixture(autouse=True)
def _on_two_threads():
    with dask.config.set(scheduler="threads", num_workers=2):
        yield


@pytest.fixture(scope="module")
def x():
    return blobs(0, 600, 3, 2)


@pytest.fixture(scope="module")
def expected(x):
    """The model of the rows as a NumPy array."""
    return new_model().fit(x)


def new_model(**parameters):
    return GaussianMixture(2, **{"random_state": 0, **parameters})


def started_at(model):
    """A model that starts where another ended, whatever the order of the rows."""
    return new_model(
        weights_init=model.weights_,
        means_init=model.means_,
        precisions_init=model.precisions_,
        tol=1e-12,
        max_iter=500,
    )


def assert_same_fit(model, expected, rtol=1e-9):
    for name in MODELS:
        np.testing.assert_allclose(
            getattr(model, name), getattr(expected, name), rtol, rtol, err_msg=name
        )


def as_frame(x, names=NAMES, **options):
    return dd.from_pandas(
        pd.DataFrame(x, columns=names), **{"npartitions": 4, **options}
    )


def as_image(x, *, dims=("y", "x", "band"), shape=(20, 30)):
    """Rows as an array over y and x, with coordinates of every sort."""
    image = xr.DataArray(
        x.reshape(*shape, x.shape[1]),
        dims=("y", "x", "band"),
        coords={
            "y": np.arange(float(shape[0])),
            "x": 10.0 * np.arange(shape[1]),
            "latitude": (("y", "x"), np.arange(600.0).reshape(shape)),
            "wavelength": ("band", np.arange(3.0)),
            "when": 7,
            "band": NAMES[: x.shape[1]],
        },
    )
    return image.transpose(*dims)


# Dask DataFrames


FRAMES = {
    "known divisions": as_frame,
    "one partition": lambda x: as_frame(x, npartitions=1),
    "unknown divisions": lambda x: as_frame(x).clear_divisions(),
    "empty partitions": lambda x: dd.from_delayed(
        [
            dask.delayed(pd.DataFrame)(part, columns=NAMES)
            for part in (x[:0], x[:250], x[:0], x[250:], x[:0])
        ]
    ),
    "concatenated": lambda x: dd.concat([as_frame(x[:250]), as_frame(x[250:])]),
    "chosen rows": lambda x: as_frame(np.vstack([x, x + 1e6])).query("width < 1e5"),
    "computed columns": lambda x: as_frame(x / 2).assign(
        **{name: lambda frame, n=name: frame[n] * 2 for name in NAMES}
    ),
    "chosen columns": lambda x: as_frame(
        np.c_[x, x], [*NAMES, "unused", "useless", "needless"]
    )[NAMES],
    "delayed": lambda x: dd.from_delayed(
        [dask.delayed(pd.DataFrame)(x[i::2], columns=NAMES) for i in range(2)]
    ),
    "persisted": lambda x: as_frame(x).persist(),
}


@pytest.mark.parametrize("name", FRAMES)
def test_a_dask_data_frame_is_its_rows(x, name):
    frame = FRAMES[name](x)
    rows = frame.compute()
    model = new_model().fit(frame)
    assert_same_fit(model, new_model().fit(rows.to_numpy()))
    assert model.feature_names_in_.tolist() == NAMES
    assert model.n_features_in_ == 3
    for method in METHODS:
        got = getattr(model, method)(frame)
        assert got.npartitions == frame.npartitions
        assert got.divisions == frame.divisions
        computed = got.compute()
        assert computed.index.equals(rows.index)
        np.testing.assert_allclose(
            computed.to_numpy(), getattr(model, method)(rows), **ANSWERS
        )
    assert model.score(frame) == pytest.approx(model.score(rows), rel=1e-12)
    assert model.aic(frame) == pytest.approx(model.aic(rows), rel=1e-12)
    assert model.bic(frame) == pytest.approx(model.bic(rows), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int16, bool])
def test_answers_for_a_dask_data_frame_are_what_they_say_they_are(x, dtype):
    model = new_model().fit(x)
    frame = as_frame(x.astype(dtype), npartitions=3)
    floats = np.float32 if dtype == np.float32 else np.float64
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the model has no names
        labels = model.predict(frame)
        shares, densities = model.predict_proba(frame), model.score_samples(frame)
    assert isinstance(labels, dd.Series)
    assert isinstance(densities, dd.Series)
    assert isinstance(shares, dd.DataFrame)
    assert shares.columns.tolist() == [0, 1]
    assert labels.dtype == np.int64 == labels.compute().dtype
    assert densities.dtype == floats == densities.compute().dtype
    assert set(shares.dtypes) == {np.dtype(floats)} == set(shares.compute().dtypes)


@pytest.mark.parametrize("name", FRAMES)
def test_labels_can_be_assigned_to_the_frame_that_they_are_of(x, name):
    frame = FRAMES[name](x)
    model = new_model().fit(frame)
    done = frame.assign(
        component=model.predict(frame), density=model.score_samples(frame)
    )
    got = done.compute()
    np.testing.assert_array_equal(got.component, model.predict(got[NAMES]))
    np.testing.assert_allclose(got.density, model.score_samples(got[NAMES]), **ANSWERS)
    if name != "concatenated":  # Dask 2026.8 fails to group what it concatenated
        sizes = done.groupby("component").size().compute().sort_index()
        labels = model.predict(got[NAMES])
        np.testing.assert_array_equal(sizes, np.bincount(labels))


def test_labels_can_be_assigned_to_a_frame_with_more_columns(x):
    frame = as_frame(np.c_[x, np.arange(600.0)], [*NAMES, "number"])
    model = new_model().fit(frame[NAMES])
    got = frame.assign(component=model.predict(frame[NAMES])).compute()
    assert got.columns.tolist() == [*NAMES, "number", "component"]
    np.testing.assert_array_equal(got.component, model.predict(got[NAMES]))
    np.testing.assert_array_equal(got.number, np.arange(600.0))


def test_two_models_of_one_frame_are_not_confused(x):
    frame = as_frame(x)
    first, other = new_model().fit(frame), new_model(reg_covar=10.0).fit(frame)
    got = dask.compute(first.score_samples(frame), other.score_samples(frame))
    for model, densities in zip((first, other), got, strict=True):
        np.testing.assert_allclose(
            densities, model.score_samples(frame.compute()), **ANSWERS
        )


def test_fit_predict_answers_in_kind(x, expected):
    labels = expected.predict(x)
    series = new_model().fit_predict(as_frame(x))
    assert isinstance(series, dd.Series)
    np.testing.assert_array_equal(series.compute(), labels)
    image = new_model().fit_predict(from_xarray(as_image(x).chunk({"y": 7}), "band"))
    assert isinstance(image, xr.DataArray)
    np.testing.assert_array_equal(image.to_numpy().ravel(), labels)
    assert type(new_model().fit_predict(pd.DataFrame(x))) is np.ndarray


def test_nothing_is_computed_before_it_is_asked_for(x, expected):
    def fail(_frame):
        raise AssertionError("a partition was computed")

    frame = as_frame(x).map_partitions(fail, meta=as_frame(x)._meta)
    lazy = as_image(x).chunk({"y": 7})
    lazy = lazy.copy(
        data=lazy.data.map_blocks(fail, dtype=float, meta=np.empty((0,) * 3))
    )
    model = expected
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for rows in (frame, from_xarray(lazy, "band")):
            for method in METHODS:
                lazy_answer = getattr(model, method)(rows)
                with pytest.raises(AssertionError, match="was computed"):
                    lazy_answer.compute()


def test_on_a_cluster(x, expected):
    frame, image = (
        as_frame(x),
        from_xarray(as_image(x).chunk({"y": 7, "x": 11}), "band"),
    )
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=True, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
        dask.config.set(scheduler=client),
    ):
        persisted = frame.persist()
        for rows in (frame, persisted):
            model = new_model().fit(rows, sample_weight=abs(rows.length) + 1)
            weighted = new_model().fit(x, sample_weight=abs(x[:, 0]) + 1)
            assert_same_fit(model, weighted)
            assigned = rows.assign(component=model.predict(rows)).compute()
            np.testing.assert_array_equal(
                assigned.component, model.predict(assigned[NAMES])
            )
        model = started_at(expected).fit(image)
        assert_same_fit(model, started_at(expected).fit(x))
        labels = model.predict(image).compute()
        np.testing.assert_array_equal(labels.to_numpy().ravel(), expected.predict(x))


# Names and columns


def _both(call):
    """What scikit-learn and we say: kinds and texts of exceptions or warnings."""
    said = []
    for model in (Reference(2, random_state=0), new_model()):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                call(model)
            except Exception as error:
                # Our own class is one of that kind.
                kind = ValueError if isinstance(error, ValueError) else type(error)
                said.append((kind, str(error)))
            else:
                said.append([(w.category, str(w.message)) for w in caught])
    return said


CHANGES = {
    "another order": lambda f: f[NAMES[::-1]],
    "one is missing": lambda f: f[NAMES[:2]],
    "one is new": lambda f: f.assign(depth=1.0),
    "others": lambda f: f.rename(columns={"length": "a", "width": "b", "height": "c"}),
    "numbers": lambda f: f.rename(columns=dict(zip(NAMES, range(3), strict=True))),
    "numbers, too few": lambda f: f.rename(
        columns=dict(zip(NAMES, range(3), strict=True))
    )[[0, 1]],
    "the same": lambda f: f,
}


@pytest.mark.parametrize("method", ["predict", "score_samples", "score"])
@pytest.mark.parametrize("change", CHANGES)
def test_names_are_checked_as_by_scikit_learn(x, change, method):
    """Dask, pandas and xarray: the words of scikit-learn for pandas, to the letter."""
    frame = pd.DataFrame(x, columns=NAMES)
    changed = CHANGES[change](frame)
    theirs, ours = _both(lambda model: getattr(model.fit(frame), method)(changed))
    assert ours == theirs
    assert bool(theirs) == (change != "the same")

    def dask_frames(model):
        lazy = dd.from_pandas(frame, npartitions=2)
        getattr(model.fit(lazy), method)(CHANGES[change](lazy))

    def datasets(model):
        labelled = changed.rename_axis("sample").to_xarray()
        fitted = model.fit(frame.rename_axis("sample").to_xarray())
        getattr(fitted, method)(labelled)

    for call in (dask_frames, datasets):
        _, ours = _both(call)
        # A Dataset's variables may be numbers, too: no names then.
        assert ours == theirs


def test_data_without_names_after_names_and_the_other_way_round(x):
    frame = as_frame(x)
    model = new_model().fit(frame)
    with pytest.warns(
        UserWarning, match="X does not have valid feature names, but Gauss"
    ):
        model.predict(da.from_array(x))
    model.fit(x)
    assert not hasattr(model, "feature_names_in_")
    with pytest.warns(
        UserWarning, match="X has feature names, but GaussianMixture was"
    ):
        model.predict(frame)


def test_names_of_which_only_some_are_text_are_refused_by_scikit_learn(x):
    mixed = pd.DataFrame(x, columns=["a", 1, "b"])
    theirs, ours = _both(lambda model: model.fit(mixed))
    assert ours == theirs
    _, lazy = _both(lambda model: model.fit(dd.from_pandas(mixed, npartitions=2)))
    assert lazy == theirs
    assert theirs[0] is TypeError


def test_models_with_names_are_saved_with_them(x, tmp_path):
    frame = as_frame(x)
    new_model().fit(frame).save(tmp_path / "model")
    model = load(tmp_path / "model")
    assert model.feature_names_in_.tolist() == NAMES
    with pytest.raises(ValueError, match="must be in the same order"):
        model.predict(frame[NAMES[::-1]])


def test_columns_of_parquet_files_are_names(x, tmp_path, expected):
    frame = pd.DataFrame(x, columns=NAMES)
    frame.to_parquet(tmp_path / "rows.parquet")
    model = new_model().fit(tmp_path / "rows.parquet")
    assert_same_fit(model, expected)
    assert model.feature_names_in_.tolist() == NAMES
    np.testing.assert_array_equal(
        model.predict(tmp_path / "rows.parquet"), model.predict(frame)
    )
    frame[NAMES[::-1]].to_parquet(tmp_path / "turned.parquet")
    with pytest.raises(ValueError, match="must be in the same order"):
        model.predict(tmp_path / "turned.parquet")


NOT_NUMERIC = {
    "text": pd.Series(["a", "b"] * 300),
    "objects": pd.Series([{}, None] * 300, dtype=object),
    "categories": pd.Series(["a", "b"] * 300, dtype="category"),
    "dates": pd.Series(pd.date_range("2020", periods=600)),
    "zoned dates": pd.Series(pd.date_range("2020", periods=600, tz="UTC")),
    "durations": pd.Series(pd.to_timedelta(np.arange(600), "s")),
    "complex": pd.Series(np.ones(600) * 1j),
    "arrow text": pd.Series(["a", "b"] * 300, dtype="string[pyarrow]"),
}


@pytest.mark.parametrize("kind", NOT_NUMERIC)
def test_columns_that_are_no_numbers_are_named(x, kind):
    frame = pd.DataFrame(x, columns=NAMES).assign(width=NOT_NUMERIC[kind])
    fitted = new_model().fit(pd.DataFrame(x, columns=NAMES))
    for rows in (frame, dd.from_pandas(frame, npartitions=2)):
        for call in (new_model().fit, fitted.predict, fitted.score):
            with pytest.raises(DataError, match=r"Column 'width' of X .*"):
                dask.compute(call(rows))  # only a partition tells of texts


def test_variables_that_are_no_numbers_are_named(x):
    data = (
        as_image(x).to_dataset("band").assign(name=(("y", "x"), np.full((20, 30), "a")))
    )
    with pytest.raises(DataError, match="Variable 'name' of X has dtype <U1"):
        new_model().fit(data)
    with pytest.raises(DataError, match="X has dtype complex128"):
        from_xarray(as_image(x) * 1j, "band")


def test_objects_that_are_numbers_are_taken_as_scikit_learn_takes_them(x, expected):
    frame = pd.DataFrame(x, columns=NAMES).astype({"width": object})
    assert_same_fit(new_model().fit(frame), expected)
    mixed = frame.astype({"length": "Float64"})
    assert_same_fit(new_model().fit(mixed), expected)


# Dtypes and nulls


def whole(x):
    return np.rint(x * 4).astype(np.int64)


NULLABLE = {
    "Int64": ("Int64", whole),
    "UInt8": ("UInt8", lambda x: whole(x) % 100),
    "Float64": ("Float64", np.asarray),
    "Float32": ("Float32", lambda x: x.astype(np.float32)),
    "boolean": ("boolean", lambda x: x > 0),
    "arrow double": ("double[pyarrow]", np.asarray),
    "arrow float": ("float[pyarrow]", lambda x: x.astype(np.float32)),
    "arrow int": ("int32[pyarrow]", whole),
    "arrow bool": ("bool[pyarrow]", lambda x: x > 0),
}


@pytest.mark.parametrize("name", NULLABLE)
@pytest.mark.parametrize("mixed", [False, True])
def test_nullable_and_arrow_columns(x, name, mixed):
    dtype, make = NULLABLE[name]
    plain = pd.DataFrame(make(x), columns=NAMES)
    frame = plain.astype({"width": dtype} if mixed else dtype)
    parameters = {"max_iter": 3, "tol": 0, "reg_covar": 1e-2}
    is_single = plain.dtypes.eq(np.float32).all()
    with pytest.warns(Warning, match="did not converge"):
        wanted = new_model(**parameters).fit(plain.to_numpy())
    for rows in (frame, dd.from_pandas(frame, npartitions=3)):
        with pytest.warns(Warning, match="did not converge"):
            model = new_model(**parameters).fit(rows)
        assert_same_fit(model, wanted, rtol=1e-5 if is_single else 1e-9)
        assert model.means_.dtype == (np.float32 if is_single else np.float64)
        np.testing.assert_array_equal(model.predict(rows), model.predict(plain))
    broken = frame.copy()
    broken.loc[7, "width"] = None
    with pytest.raises(ValueError, match="X contains NaN in row 7, column 1"):
        model.fit(broken)
    lazy = dd.from_pandas(broken, npartitions=1)
    with pytest.raises(DataError, match="X contains NaN in block 0, row 7, column 1"):
        model.fit(lazy)
    with pytest.raises(DataError, match="X contains NaN in block 0, row 7, column 1"):
        model.predict(lazy).compute()


def test_float32_stays_and_what_is_mixed_is_what_scikit_learn_makes_of_it(x):
    single = pd.DataFrame(x, columns=NAMES).astype(np.float32)
    for frame in (
        single,
        single.astype({"width": np.float64}),
        single.astype({"width": np.int8}),
        single.astype({"width": np.int64}),
        single.astype({"width": np.float16}),
        single.astype(np.float16),
    ):
        floats = check_array(frame, dtype=[np.float64, np.float32]).dtype
        for rows in (frame, dd.from_pandas(frame, npartitions=2)):
            ours = new_model(reg_covar=1e-2).fit(rows)
            assert ours.means_.dtype == floats
            assert ours.score_samples(rows).dtype == floats
    image = as_image(x.astype(np.float32))
    for data in (
        image.chunk({"y": 7}),
        image,
        image.chunk({"y": 7}).to_dataset("band"),
    ):
        rows = data if isinstance(data, xr.Dataset) else from_xarray(data, "band")
        ours = new_model().fit(rows)
        assert ours.means_.dtype == np.float32
        assert ours.predict_proba(rows).dtype == np.float32
        assert ours.predict_proba(rows).to_numpy().dtype == np.float32


def test_a_bad_row_is_named_by_its_partition_or_block(x, expected):
    broken = x.copy()
    broken[333, 2] = np.inf
    image = from_xarray(as_image(broken).chunk({"y": 5, "x": 15}), "band")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for rows, place in (
            (as_frame(broken), "block 2, row 33"),
            (image, "block 4, row 18"),
        ):
            for call in (new_model().fit, expected.score):
                with pytest.raises(DataError, match=f"infinity in {place}, column 2"):
                    call(rows)
            for method in METHODS:
                with pytest.raises(DataError, match=f"infinity in {place}, column 2"):
                    getattr(expected, method)(rows).compute()


# Sample weights


def test_weights_of_every_kind_for_a_dask_data_frame(x):
    w = np.random.default_rng(0).random(600)
    frame = as_frame(x)
    wanted = new_model().fit(x, sample_weight=w)
    series = dd.from_pandas(pd.Series(w), npartitions=4)
    for weights in (
        series,
        series.astype("Float64"),
        series.astype("double[pyarrow]"),
        series.clear_divisions(),
        series.to_dask_array(),
        series.to_dask_array(lengths=True),
        pd.Series(w),
        pd.Series(w, dtype="double[pyarrow]"),
        pd.Series(w, index=np.arange(600)[::-1]),  # by place, as in scikit-learn
        w,
        w.tolist(),
    ):
        model = new_model().fit(frame, sample_weight=weights)
        assert_same_fit(model, wanted)
        for method in ("score", "aic", "bic"):
            got = getattr(model, method)(frame, sample_weight=weights)
            assert got == pytest.approx(
                getattr(model, method)(pd.DataFrame(x, columns=NAMES), sample_weight=w),
                rel=1e-12,
            )


def test_a_column_may_be_the_weights(x):
    frame = as_frame(np.c_[x, np.arange(600.0)], [*NAMES, "weight"])
    frame = frame[frame.length > np.median(x[:, 0])]
    model = new_model().fit(frame[NAMES], sample_weight=frame.weight)
    rows = frame.compute()
    assert 0 < len(rows) < 600
    wanted = new_model().fit(rows[NAMES].to_numpy(), sample_weight=rows.weight)
    assert_same_fit(model, wanted)


def test_series_as_weights_of_arrays(x):
    w = np.random.default_rng(0).random(600)
    wanted = new_model().fit(x, sample_weight=w)
    unknown = as_frame(x).to_dask_array()
    series = dd.from_pandas(pd.Series(w), npartitions=4)
    for rows, weights in (
        (x, pd.Series(w)),
        (x, pd.Series(w, dtype="Float64")),
        (x, series),
        (x, xr.DataArray(w)),
        (pd.DataFrame(x), pd.Series(w)),
        (unknown, series),
        (da.from_array(x, chunks=(100, 3)), pd.Series(w, dtype="Float64")),
        (da.from_array(x, chunks=(100, 3)), xr.DataArray(w)),
        (da.from_array(x, chunks=(100, 3)), xr.DataArray(w).chunk(70)),
    ):
        assert_same_fit(new_model().fit(rows, sample_weight=weights), wanted)


def test_weights_that_do_not_fit_a_dask_data_frame(x):
    frame = as_frame(x)
    series = dd.from_pandas(pd.Series(np.ones(600)), npartitions=3)
    with pytest.raises(DataError, match=r"divisions .* but X has .*repartition"):
        new_model().fit(frame, sample_weight=series)
    moved = series.repartition(divisions=frame.divisions)
    assert new_model().fit(frame, sample_weight=moved).converged_
    with pytest.raises(DataError, match=r"3 block\(s\) but X has 4"):
        new_model().fit(frame, sample_weight=series.clear_divisions())
    with pytest.raises(DataError, match=r"shape \(5,\) but X has 600 rows"):
        new_model().fit(frame, sample_weight=np.ones(5))
    with pytest.raises(DataError, match=r"shape \(600, 1\) but X has 600 rows"):
        new_model().fit(frame, sample_weight=np.ones((600, 1)))
    text = dd.from_pandas(pd.Series(["a"] * 600), npartitions=4)
    for weights in (text, pd.Series(["a"] * 600), text.astype("category")):
        with pytest.raises(DataError, match="sample_weight has dtype"):
            new_model().fit(frame, sample_weight=weights)
    null = dd.from_pandas(
        pd.Series([1.0, None] + [1.0] * 598, dtype="Float64"), npartitions=4
    )
    with pytest.raises(DataError, match="sample_weight contains NaN in block 0, row 1"):
        new_model().fit(frame, sample_weight=null)


def test_what_is_no_dask_data_frame_of_rows(x):
    frame = as_frame(x)
    with pytest.raises(DataError, match="X is a Dask Series.*to_frame"):
        new_model().fit(frame.length)
    with pytest.raises(DataError, match="X is a Dask Index"):
        new_model().fit(frame.index)
    assert new_model().fit(frame.length.to_frame()).feature_names_in_ == ["length"]
    with pytest.raises(ValueError, match="0 feature"):
        new_model().fit(frame[[]])


# xarray


IMAGES = {
    "in memory": lambda x: as_image(x),
    "bands first": lambda x: as_image(x, dims=("band", "y", "x")),
    "chunks of y": lambda x: as_image(x).chunk({"y": 7}),
    "bands first, chunks of y": lambda x: as_image(x, dims=("band", "y", "x")).chunk(
        {"y": 7}
    ),
    "chunks of all": lambda x: as_image(x).chunk({"y": 7, "x": 11, "band": 1}),
    "x first, in between": lambda x: as_image(x, dims=("x", "band", "y")).chunk(
        {"x": 8}
    ),
}


def rows_of(image):
    """Rows in the order of the sample dimensions."""
    return image.transpose(..., "band").to_numpy().reshape(-1, image.sizes["band"])


@pytest.mark.parametrize("name", IMAGES)
def test_samples_are_stacked_from_several_dimensions(x, name):
    image = IMAGES[name](x)
    given = from_xarray(image, feature_dim="band")
    rows = rows_of(image)
    model = new_model().fit(given)
    if name != "chunks of all":  # where rows are in another order
        assert_same_fit(model, new_model().fit(rows))
    far = new_model(max_iter=2, tol=1e6).fit(rows)
    assert_same_fit(started_at(far).fit(given), started_at(far).fit(rows))
    assert model.feature_names_in_.tolist() == NAMES
    named = pd.DataFrame(rows, columns=NAMES)
    samples = tuple(dim for dim in image.dims if dim != "band")
    sizes = tuple(image.sizes[dim] for dim in samples)
    for method in METHODS:
        got = getattr(model, method)(given)
        assert isinstance(got, xr.DataArray)
        expected_dims = (
            (*samples, "component") if method == "predict_proba" else samples
        )
        assert got.dims == expected_dims
        assert got.name is None
        assert set(got.coords) == {"x", "y", "latitude", "when"}
        for coordinate in ("x", "y", "latitude", "when"):
            assert got[coordinate].identical(
                image[coordinate].drop_vars(
                    set(image[coordinate].coords) - set(got.coords)
                )
            )
        if image.chunks is None:
            assert got.chunks is None
        else:
            of_samples = tuple(image.chunksizes[dim] for dim in samples)
            assert got.chunks[: len(samples)] == of_samples
        wanted_answer = getattr(model, method)(named)
        np.testing.assert_allclose(
            got.to_numpy(),
            wanted_answer.reshape(*sizes, *wanted_answer.shape[1:]),
            **ANSWERS,
        )
        assert got.dtype == wanted_answer.dtype
    for method in ("score", "aic", "bic"):
        got = getattr(model, method)(given)
        assert got == pytest.approx(getattr(model, method)(named), rel=1e-12)


AWKWARD = [
    ((1, 600, 3), (1, 100, 3)),
    ((600, 1, 3), (100, 1, 3)),
    ((20, 30, 1), (5, 7, 1)),
    ((1, 1, 3), (1, 1, 3)),
    ((1, 1, 1), (1, 1, 1)),
    ((5, 3, 4, 5), (2, 2, 3, 4)),
    ((2, 1, 4, 1), (1, 1, 3, 1)),
    ((20, 30, 3), ((5, 0, 15), (7, 23), 3)),
    ((4, 6, 24), (2, 3, 24)),
    ((0, 3, 2), (1, 2, 2)),
]


@pytest.mark.parametrize(("shape", "chunks"), AWKWARD)
def test_blocks_become_rows_one_after_the_other(shape, chunks):
    numbers = np.arange(float(np.prod(shape))).reshape(shape)
    lazy = da.from_array(numbers, chunks=chunks)
    places = list(np.ndindex(*lazy.numblocks[:-1]))
    features = lazy.rechunk({-1: -1})
    blocks = [features.blocks[place].compute() for place in places]
    expected = [block.reshape(-1, shape[-1]) for block in blocks]
    array = xr.DataArray(lazy)
    given = from_xarray(array, array.dims[-1])
    assert given.rows.chunks == (tuple(map(len, expected)), (shape[-1],))
    np.testing.assert_array_equal(given.rows, np.concatenate(expected))
    weights = given.weights(array[..., 0])
    assert weights.chunks == given.rows.chunks[:1]
    np.testing.assert_array_equal(weights, np.concatenate(expected)[:, 0])
    model = new_model().fit(blobs(1, 100, shape[-1], 2))
    labels = model.predict(given)
    assert labels.chunks == lazy.chunks[:-1]
    if numbers.size:
        wanted = model.predict(numbers.reshape(-1, shape[-1]))
        np.testing.assert_array_equal(labels, wanted.reshape(shape[:-1]))
    else:
        assert labels.compute().shape == shape[:-1]


@pytest.mark.parametrize("chunks", [None, {"y": 7}, {"y": 7, "x": 11}])
def test_a_datasets_variables_are_its_features(x, chunks):
    image = as_image(x) if chunks is None else as_image(x).chunk(chunks)
    data = image.to_dataset("band")
    model, other = new_model().fit(data), new_model().fit(from_xarray(data))
    np.testing.assert_array_equal(model.means_, other.means_)
    start = new_model(max_iter=2, tol=1e6).fit(x)
    assert_same_fit(started_at(start).fit(data), started_at(start).fit(x))
    assert model.feature_names_in_.tolist() == NAMES
    got = model.predict(data)
    assert got.dims == ("y", "x")
    assert got.chunks == (None if chunks is None else data.length.chunks)
    named = pd.DataFrame(x, columns=NAMES)
    np.testing.assert_array_equal(got.to_numpy().ravel(), model.predict(named))
    assert "component" in data.assign(component=got).compute()
    with pytest.raises(ValueError, match="must be in the same order"):
        model.predict(data[NAMES[::-1]])


def test_variables_are_broadcast_and_may_be_chunked_differently(x):
    image = as_image(x)
    data = image.to_dataset("band")
    data = data.assign(width=data.width.isel(x=0, drop=True))
    rows = np.stack([b.to_numpy() for b in xr.broadcast(*data.values())], -1).reshape(
        -1, 3
    )
    wanted = new_model(reg_covar=1e-3).fit(rows)
    lazy = data.copy()
    for i, name in enumerate(NAMES):
        lazy[name] = data[name].chunk({"y": 4 + i})
    for given in (data, lazy):
        assert_same_fit(new_model(reg_covar=1e-3).fit(given), wanted)
        assert new_model(reg_covar=1e-3).fit_predict(given).dims == ("y", "x")


def test_two_dimensions_are_samples_and_features(x, expected):
    bare = xr.DataArray(x, dims=("time", "place"), coords={"time": np.arange(600)})
    for rows in (
        bare,
        bare.chunk({"time": 170}),
        bare.chunk({"time": 170, "place": 1}),
    ):
        model = new_model().fit(rows)
        assert_same_fit(model, expected)
        assert not hasattr(model, "feature_names_in_")
        got = model.predict(rows)
        assert got.dims == ("time",)
        assert got.time.identical(bare.time)
        np.testing.assert_array_equal(got, expected.predict(x))
    turned = from_xarray(bare.T.chunk({"time": 170}), "time")
    assert turned.rows.shape == (3, 600)
    turned = from_xarray(bare.T, "place")
    assert_same_fit(new_model().fit(turned), expected)


def test_dimensions_that_were_stacked_by_the_user_keep_their_index(x, expected):
    stacked = as_image(x).stack(pixel=("y", "x")).transpose("pixel", "band")
    for rows in (stacked, stacked.chunk({"pixel": 100})):
        got = new_model().fit(rows).predict(rows)
        assert got.dims == ("pixel",)
        assert got.indexes["pixel"].equals(stacked.indexes["pixel"])
        unstacked = got.compute().unstack("pixel")
        assert unstacked.sizes == {"y": 20, "x": 30}
        np.testing.assert_array_equal(unstacked.to_numpy().ravel(), expected.predict(x))


def test_where_the_features_are_must_be_clear(x):
    image = as_image(x)
    for bare in (image, image.chunk({"y": 7}), image.isel(x=0, band=0)):
        with pytest.raises(DataError, match=r"dimensions \('y',.*daskgmm.from_xarray"):
            new_model().fit(bare)
    with pytest.raises(DataError, match="and 'color' as feature dimension"):
        from_xarray(image, "color")
    with pytest.raises(DataError, match="and 'y' as feature dimension"):
        from_xarray(image.isel(x=0, band=0), "y")
    with pytest.raises(DataError, match="DataArray or Dataset, not ndarray"):
        from_xarray(x)
    with pytest.raises(DataError, match="No variable of X has .* 'z'"):
        from_xarray(image.to_dataset("band"), "z")
    with pytest.raises(DataError, match="Dataset without variables"):
        new_model().fit(xr.Dataset(coords={"y": np.arange(3)}))
    single = from_xarray(image.to_dataset(name="image"), "band")
    assert new_model().fit(single).feature_names_in_.tolist() == NAMES
    taken = image.rename(y="component")
    model = new_model().fit(from_xarray(taken, "band"))
    assert model.predict(from_xarray(taken, "band")).dims == ("component", "x")
    labelled = image.assign_coords(component=image.latitude)
    for data in (taken, labelled, taken.chunk(x=7)):
        with pytest.raises(DataError, match="'component', which the answer would"):
            model.predict_proba(from_xarray(data, "band"))


@pytest.mark.parametrize("chunks", [None, {"y": 7}, {"y": 7, "x": 11}])
def test_labelled_weights_are_laid_beside_the_samples(x, chunks):
    image = as_image(x) if chunks is None else as_image(x).chunk(chunks)
    given = from_xarray(image, "band")
    w = np.random.default_rng(0).random((20, 30))
    full = xr.DataArray(w, dims=("y", "x"), coords={"y": image.y, "x": image.x})
    of_y = full.isel(x=0, drop=True)
    start = new_model(max_iter=2, tol=1e6).fit(x)
    for weights, flat in (
        (full, w.ravel()),
        (full.T, w.ravel()),
        (full.drop_vars(["x", "y"]), w.ravel()),
        (full.chunk({"y": 3, "x": 30}), w.ravel()),
        (of_y, np.repeat(w[:, 0], 30)),
        (of_y.chunk(6), np.repeat(w[:, 0], 30)),
    ):
        model = started_at(start).fit(given, sample_weight=weights)
        assert_same_fit(model, started_at(start).fit(x, sample_weight=flat))
        got = model.score(given, sample_weight=weights)
        named = pd.DataFrame(x, columns=NAMES)
        assert got == pytest.approx(model.score(named, sample_weight=flat), rel=1e-12)


def test_labelled_weights_that_disagree_are_refused(x):
    image = as_image(x)
    full = image.isel(band=0, drop=True) * 0 + 1
    for given in (from_xarray(image, "band"), from_xarray(image.chunk(y=7), "band")):
        for weights, message in (
            (full.assign_coords(y=full.y + 1), "does not fit X.*y"),
            (full.isel(y=slice(5)), "does not fit X.*y"),
            (full.isel(y=slice(5)).drop_vars("y"), "does not fit X.*y"),
            (full.isel(y=slice(None, None, -1)), "does not fit X.*y"),
            (full.rename(y="t"), r"dimensions \('t', 'x'\) but the samples"),
            (image, "dimensions .*'band'.* but the samples"),
            (full.astype(str), "sample_weight has dtype"),
            (np.ones(600), r"samples along \('y', 'x'\): give sample_weight as a Data"),
        ):
            with pytest.raises(DataError, match=message):
                new_model().fit(given, sample_weight=weights)
    line = xr.DataArray(x, dims=("time", "place"))
    for rows in (line, line.chunk(time=100)):
        w = np.arange(600.0)
        model = new_model().fit(rows, sample_weight=w)
        assert_same_fit(model, new_model().fit(x, sample_weight=w))


def test_no_chunk_of_an_xarray_is_put_together_with_others(x):
    """One task reads one chunk, in fits and in answers, however samples are cut."""
    most = []

    def look(block):
        most.append(block.shape)
        return block

    image = as_image(x).chunk({"y": 5, "x": 6})
    image = image.copy(
        data=image.data.map_blocks(look, dtype=float, meta=np.empty((0,) * 3))
    )
    rows = open_input(from_xarray(image, "band"), Gaps()).rows
    assert rows.chunks == ((30,) * 20, (3,))
    # Each block of rows depends on one chunk alone.
    for i in range(20):
        most.clear()
        rows.blocks[i].compute(scheduler="synchronous")
        assert most == [(5, 6, 3)]


# Memory maps and HDF5


def _big_file_rows():
    """30 MB of rows: more than any step of a fit is to hold."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(940_000, 4))
    x[::3] += 5.0
    return x


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same rows as .npy and .h5, and their model."""
    folder = tmp_path_factory.mktemp("rows")
    x = _big_file_rows()
    np.save(folder / "rows.npy", x)
    with h5py.File(folder / "rows.h5", "w") as file:
        file.create_dataset("rows", data=x, chunks=(10_000, 4))
    model = big_model().fit(x)
    return folder, model, model.predict(x)


def big_model():
    return new_model(init_size=2000, max_iter=3, tol=1e6)


@pytest.fixture
def _holds_little(files):
    """All that the test allocates is less than half of the file, NumPy's arrays too."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < (files[0] / "rows.npy").stat().st_size / 2


def _assert_fits_and_predicts(rows, files):
    _, expected, labels = files
    model = big_model().fit(rows)
    assert_same_fit(model, expected)
    got = model.predict(rows)
    for start in range(0, len(labels), 100_000):
        part = slice(start, start + 100_000)
        np.testing.assert_array_equal(got[part], labels[part])
    assert model.score(rows[:200_000]) == pytest.approx(
        expected.score(rows[:200_000]), rel=1e-12
    )


def _rows_of_file(path, block_info=None):
    start, stop = block_info[None]["array-location"][0]
    return np.load(path, mmap_mode="r")[start:stop]


@pytest.mark.usefixtures("_holds_little", "nothing_kept")
@pytest.mark.parametrize("how", ["itself", "sliced by Dask"])
def test_a_memory_map_is_not_copied(files, how):
    path = files[0] / "rows.npy"
    rows = np.load(path, mmap_mode="r")
    assert isinstance(rows, np.memmap)
    if how == "sliced by Dask":
        chunks = da.core.normalize_chunks((50_000, 4), rows.shape)
        rows = da.map_blocks(_rows_of_file, path, chunks=chunks, dtype=float)
    _assert_fits_and_predicts(rows, files)


@pytest.mark.parametrize("columns", [2, 4])
def test_a_memory_map_through_dask(files, columns):
    """Dask itself copies it into memory, where the lines above would not."""
    mapped = np.load(files[0] / "rows.npy", mmap_mode="r")
    _assert_fits_and_predicts(da.from_array(mapped, chunks=(50_000, columns)), files)


@pytest.mark.usefixtures("_holds_little", "nothing_kept")
@pytest.mark.parametrize("rows_at_once", [10_000, 64_000])
def test_hdf5_through_dask(files, rows_at_once):
    with h5py.File(files[0] / "rows.h5") as file:
        rows = da.from_array(file["rows"], chunks=(rows_at_once, 4))
        _assert_fits_and_predicts(rows, files)


# What is not there


def test_the_package_needs_neither_pandas_nor_data_frames_nor_xarray():
    script = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in ("pandas", "xarray", "dask.dataframe", "pyarrow"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import dask.array as da
import numpy as np
from daskgmm import GaussianMixture, from_xarray
x = np.random.default_rng(0).normal(size=(100, 2))
for rows in (x, da.from_array(x, chunks=(30, 2))):
    model = GaussianMixture(2, random_state=0).fit(rows, sample_weight=np.ones(100))
    print(np.asarray(model.predict(rows)).shape)
try:
    from_xarray(x)
except ValueError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "(100,)",
        "(100,)",
        "Expected an xarray DataArray or Dataset, not ndarray.",
    ]


def test_data_frames_of_dask_are_not_loaded_for_other_kinds():
    script = """
import sys
import numpy as np, pandas as pd, xarray as xr
from daskgmm import GaussianMixture
x = np.random.default_rng(0).normal(size=(100, 2))
for rows in (x, pd.DataFrame(x), xr.DataArray(x)):
    GaussianMixture(2, random_state=0).fit(rows).predict(rows)
print("dask.dataframe" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False"]
