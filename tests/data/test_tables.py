"""Tables as people have them: of other writers, in table formats, with lists."""

from __future__ import annotations

import base64
import json
import shutil
import string
import struct

import dask
import dask.dataframe as dd
import fsspec
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner
from conftest import blobs
from deltalake import DeltaTable, write_deltalake
from sklearn.mixture import GaussianMixture as Theirs

from daskgmm import (
    DataError,
    GaussianMixture,
    SkippedRowsWarning,
    StoreError,
    from_xarray,
    open_rows,
)
from daskgmm.cli.main import main
from daskgmm.data import parquet
from daskgmm.data.parquet import open_parquet

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N = 600
NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def x():
    return blobs(0, N, 3, 2)


@pytest.fixture(scope="module")
def expected(x):
    return model().fit(x)


def model(**parameters):
    return GaussianMixture(2, random_state=0, max_iter=5, **parameters)


def check(rows, expected, x, names=NAMES):
    """A fit to rows of any kind that are x, and its predictions."""
    fitted = model().fit(rows)
    assert list(fitted.feature_names_in_) == names
    np.testing.assert_allclose(fitted.means_, expected.means_, rtol=1e-6)
    labels = np.asarray(fitted.predict(rows))
    np.testing.assert_array_equal(labels, expected.predict(x))


def frame(x, **more):
    return pd.DataFrame(x, columns=NAMES).assign(**more)


# --- columns that are no features -----------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Dask's own writer
@pytest.mark.parametrize("index", ["default", "named", "unnamed", "two levels", "dask"])
def test_an_index_is_no_feature(tmp_path, x, expected, index):
    data, place = frame(x), tmp_path / "x.parquet"
    if index == "dask":
        dd.from_pandas(data, npartitions=3).to_parquet(place)
    else:
        numbers = np.arange(N) * 7.0
        data.index = {
            "default": data.index,
            "named": pd.Index(numbers, name="cell"),
            "unnamed": pd.Index(numbers),
            "two levels": pd.MultiIndex.from_arrays([numbers, numbers[::-1]]),
        }[index]
        data.to_parquet(place)
    check(place, expected, x)


def test_an_index_without_notes_is_no_feature(tmp_path, x, expected):
    """Other programs write the columns anew, and not what pandas noted of them."""
    table = pa.table({**frame(x), "__index_level_0__": np.arange(N)})
    pq.write_table(table, tmp_path / "x.parquet")
    check(tmp_path / "x.parquet", expected, x)


def test_an_index_may_be_named(tmp_path, x):
    data = frame(x, cell=np.arange(N) * 7.0).set_index("cell")
    data.to_parquet(tmp_path / "x.parquet")
    rows = open_rows(tmp_path / "x.parquet", columns=["cell", "a"])
    assert rows.names == ("cell", "a")
    assert model().fit(rows).means_.shape == (2, 2)
    only = data[[]]
    only.to_parquet(tmp_path / "only.parquet")
    with pytest.raises(DataError, match="no columns but those of an index"):
        model().fit(tmp_path / "only.parquet")


def test_folders_are_no_features_unless_named(tmp_path, x, expected):
    data = frame(x, site=np.repeat([1, 2], N // 2))
    data.to_parquet(tmp_path / "x", partition_cols=["site"])
    check(tmp_path / "x", expected, x)
    rows = open_rows(tmp_path / "x", columns=["a", "site"])
    assert np.asarray(model().fit(rows).means_[:, 1].min()) >= 1


# --- which files ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a?b.parquet", "a*.parquet", "a[1].parquet"])
def test_a_name_is_no_glob_if_something_has_it(tmp_path, x, expected, name):
    frame(x).to_parquet(tmp_path / name)
    for neighbour in ("axb.parquet", "a1.parquet"):
        frame(x * 100).to_parquet(tmp_path / neighbour)
    check(tmp_path / name, expected, x)
    check(open_rows(f"{tmp_path}/{name}"), expected, x)


def test_a_folder_with_wild_cards_in_its_name(tmp_path, x, expected):
    for name in ("day[1]", "day1"):
        (tmp_path / name).mkdir()
    frame(x).to_parquet(tmp_path / "day[1]" / "x.parquet")
    frame(x * 100).to_parquet(tmp_path / "day1" / "x.parquet")
    check(tmp_path / "day[1]", expected, x)
    check(f"{tmp_path}/day?1?/*.parquet", expected, x)


@pytest.mark.parametrize(
    "name", ["x", "x.PARQUET", "x.parquet.gzip", "x.parq", "x.snappy.parquet", "x.dat"]
)
def test_files_by_any_name(tmp_path, x, expected, name):
    frame(x).to_parquet(tmp_path / name)
    check(tmp_path / name, expected, x)


@pytest.mark.parametrize("suffix", [".parquet", "", ".PARQUET", ".parquet.gzip"])
def test_what_else_lies_in_a_folder(tmp_path, x, expected, suffix):
    folder = tmp_path / "x"
    folder.mkdir()
    for i, part in enumerate(np.split(x, 3)):
        frame(part).to_parquet(folder / f"part-{i}{suffix}")
    for stray in ("README.txt", "_SUCCESS", ".part-0.crc", "_metadata", "LICENSE"):
        (folder / stray).write_text("no Parquet")
    (folder / "_temporary").mkdir()
    frame(x * 100).to_parquet(folder / "_temporary" / "part-0.parquet")
    check(folder, expected, x)


def test_a_folder_without_parquet(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "README.txt").touch()
    with pytest.raises(StoreError, match="no Zarr array and no Parquet at"):
        model().fit(tmp_path / "x")
    with pytest.raises(StoreError, match="no Parquet file at"):
        model().fit(tmp_path / "x.parquet")
    with pytest.raises(StoreError, match="no Parquet file at"):
        model().fit(f"{tmp_path}/*.parquet")


def test_what_is_not_there_and_what_is_of_another_kind(tmp_path):
    """Neither is only "not Parquet"."""
    with pytest.raises(StoreError, match="no Zarr array and no Parquet at .*nothing"):
        open_rows(tmp_path / "nothing", columns=["x", "y"])
    (tmp_path / "rows.csv").write_text("1,2\n")
    with pytest.raises(StoreError, match=r"rows.csv\. It is a file of another kind"):
        open_rows(tmp_path / "rows.csv")


def test_an_empty_file_of_no_types(tmp_path, x, expected):
    """As pandas writes an empty part: its columns are all null."""
    folder = tmp_path / "x"
    folder.mkdir()
    frame(x[:0]).astype(object).to_parquet(folder / "0.parquet")
    frame(x).to_parquet(folder / "1.parquet")
    frame(x[:0]).astype(object).to_parquet(folder / "2.parquet")
    check(folder, expected, x)


# --- table formats --------------------------------------------------------------------


@pytest.fixture
def delta(tmp_path, x):
    """A table in whose folder lie files that its log has removed."""
    place = str(tmp_path / "delta")
    data = frame(x, site=np.repeat(["x y", "z"], N // 2))
    write_deltalake(place, pa.Table.from_pandas(data), partition_by=["site"])
    write_deltalake(place, pa.Table.from_pandas(data * 1), mode="append")
    DeltaTable(place).delete("a > -1e9 and site = 'z'")
    wrong = data.assign(a=1e6)
    write_deltalake(place, pa.Table.from_pandas(wrong), mode="overwrite")
    write_deltalake(place, pa.Table.from_pandas(data), mode="overwrite")
    return place


def test_a_delta_table_is_the_files_of_its_log(delta, x, expected):
    check(delta, expected, x)
    check(f"file://{delta}", expected, x)
    with pytest.raises(DataError, match="give it by itself"):
        model().fit(f"{delta[:-1]}*")


def test_a_version_of_a_delta_table(delta, x, tmp_path):
    first = open_rows(delta, version=0)
    np.testing.assert_allclose(model().fit(first).means_, model().fit(x).means_)
    assert open_rows(delta, version=1).n_rows == 2 * N
    assert open_rows(delta, version=2).n_rows == N
    with pytest.raises(StoreError, match="cannot be read at version 99: "):
        open_rows(delta, version=99)
    frame(x).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="has no versions"):
        open_rows(tmp_path / "x.parquet", version=1)


def test_partitions_of_a_delta_table(delta, x):
    rows = open_rows(delta, filters=[("site", "==", "x y")])
    assert rows.n_rows == N // 2
    assert model().fit(rows).means_.shape == (2, 3)


def test_a_delta_table_by_command(delta, tmp_path):
    run = CliRunner().invoke
    out = str(tmp_path / "m")
    args = ["fit", delta, out, "-k", "2", "--workers", "1", "--json"]
    done = run(main, [*args, "--table-version", "1", "--dry-run"])
    assert done.exit_code == 0, done.stderr
    assert f'"rows": {2 * N}' in done.stdout


def deletion_vector(rows):
    """Deleted rows in the format that a log holds: a Roaring bitmap, in Z85."""
    words = struct.pack("<IQI", 1681511377, 1, 0)  # magic, bitmaps, upper half
    words += struct.pack("<IIHHI", 12346, 1, 0, len(rows) - 1, 16)
    words += struct.pack(f"<{len(rows)}H", *rows)
    digits = string.digits + string.ascii_lowercase + string.ascii_uppercase
    theirs = digits + ".-:+=^!/*?&<>()[]{}@%$#"
    ours = (
        string.digits
        + string.ascii_uppercase
        + string.ascii_lowercase
        + "!#$%&()*+-;<=>?@^_`{|}~"
    )
    encoded = base64.b85encode(words).decode()
    return encoded.translate(str.maketrans(ours, theirs)), len(words)


@pytest.mark.parametrize("deleted", [[], [1, 2, 5, 7]])
def test_a_delta_table_with_deletion_vectors(tmp_path, x, expected, deleted):
    """Marks of deleted rows beside the files: what is read of them is not the table."""
    place = tmp_path / "delta"
    write_deltalake(place, pa.Table.from_pandas(frame(x)))
    log = place / "_delta_log" / f"{0:020}.json"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    feature = ["deletionVectors"]
    for line in lines:
        if "protocol" in line:
            line["protocol"] = {
                **{"minReaderVersion": 3, "minWriterVersion": 7},
                **{"readerFeatures": feature, "writerFeatures": feature},
            }
        if "add" in line and deleted:
            vector, n_bytes = deletion_vector(deleted)
            line["add"]["deletionVector"] = {
                **{"storageType": "i", "pathOrInlineDv": vector},
                **{"sizeInBytes": n_bytes, "cardinality": len(deleted)},
            }
    log.write_text("\n".join(map(json.dumps, lines)))
    if not deleted:
        check(place, expected, x)
        return
    with pytest.raises(DataError, match="cannot be read file by file: .*as deleted"):
        open_rows(place)


def test_a_delta_table_with_other_names_in_its_files(tmp_path, x):
    place = str(tmp_path / "delta")
    write_deltalake(place, pa.Table.from_pandas(frame(x)))
    log = tmp_path / "delta" / "_delta_log" / f"{0:020}.json"
    text = log.read_text()
    assert '"configuration":{}' in text
    log.write_text(
        text.replace(
            '"configuration":{}', '"configuration":{"delta.columnMapping.mode":"name"}'
        )
    )
    with pytest.raises(
        (DataError, StoreError), match="Delta Lake at .* cannot be read"
    ):
        open_rows(place)


@pytest.mark.parametrize("kind", ["Apache Iceberg", "Apache Hudi"])
def test_other_table_formats_are_refused_by_name(tmp_path, x, kind):
    place = tmp_path / "table"
    (place / "data").mkdir(parents=True)
    frame(x).to_parquet(place / "data" / "0.parquet")
    if kind == "Apache Hudi":
        (place / ".hoodie").mkdir()
    else:
        (place / "metadata").mkdir()
        (place / "metadata" / "v1.metadata.json").write_text("{}")
    with pytest.raises(DataError, match=f"is a table of {kind}, whose log says"):
        model().fit(place)


def test_folders_that_are_no_tables(tmp_path, x, expected):
    place = tmp_path / "cells"
    for name in ("data", "metadata"):
        (place / name).mkdir(parents=True)
    frame(x).to_parquet(place / "data" / "0.parquet")
    (place / "metadata" / "notes.txt").touch()
    check(place, expected, x)


# --- lists and structs ----------------------------------------------------------------

LISTS = {
    "list": lambda d: pa.list_(pa.float64()),
    "large": lambda d: pa.large_list(pa.float64()),
    "fixed": lambda d: pa.list_(pa.float64(), d),
    "single": lambda d: pa.list_(pa.float32()),
    "integers": lambda d: pa.list_(pa.int16()),
}
ELEMENTS = ["e[0]", "e[1]", "e[2]"]


def of_lists(x, kind="list"):
    return pa.array(x.tolist(), type=pa.list_(pa.float64())).cast(
        LISTS[kind](x.shape[1]), safe=False
    )


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("group_rows", [100, 10_000])
def test_lists_are_features(tmp_path, x, kind, group_rows):
    if kind == "integers":
        x = np.round(100 * x)
    x = x.astype(np.float32 if kind == "single" else np.float64)
    expected = model().fit(x)
    table = pa.table({"id": np.arange(N), "e": of_lists(x, kind)})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=group_rows)
    rows = open_rows(tmp_path / "x.parquet", columns=["e"])
    assert rows.dtype == x.dtype
    check(rows, expected, x, ELEMENTS)


def test_lists_beside_numbers(tmp_path, x):
    table = pa.table({"e": of_lists(x[:, :2]), "c": x[:, 2]})
    pq.write_table(table, tmp_path / "x.parquet")
    both = np.column_stack([x[:, 2], x[:, :2]])
    rows = open_rows(tmp_path / "x.parquet", columns=["c", "e"])
    check(rows, model().fit(both), both, ["c", "e[0]", "e[1]"])
    # As an array, and with a filter.
    for options in ({}, {"filters": [("c", ">", -1e9)]}):
        rows = open_rows(tmp_path / "x.parquet", columns=["c", "e"], **options)
        weights = np.ones(N) if not options else None
        fitted = model().fit(rows, sample_weight=weights)
        np.testing.assert_allclose(fitted.means_, model().fit(both).means_)


def test_a_model_knows_lists_by_their_elements(tmp_path, x):
    table = pa.table({"id": np.arange(N) * 1.0, "e": of_lists(x)})
    place = str(tmp_path / "x.parquet")
    pq.write_table(table, place)
    run, at = CliRunner().invoke, ["--workers", "1"]
    fit = ["fit", place, str(tmp_path / "m"), "-k", "2", "--columns", "e", *at]
    assert run(main, fit).exit_code == 0
    out = str(tmp_path / "out.parquet")
    args = ["predict", str(tmp_path / "m"), place, out, "--key", "id", *at]
    done = run(main, args)
    assert done.exit_code == 0, done.stderr
    labels = pq.read_table(out)
    np.testing.assert_array_equal(labels["id"], np.arange(N))
    fitted = GaussianMixture(2, random_state=None).fit(x)
    assert len(np.unique(labels["component"])) == len(np.unique(fitted.predict(x)))
    for some in (["e[0]", "e[2]"], ["e[0]", "e[1]"], ["e[1]", "e[0]", "e[2]"]):
        with pytest.raises(DataError, match="some elements of the lists in 'e'"):
            open_rows(place, columns=some)


@pytest.mark.parametrize("kind", ["list", "fixed", "large"])
@pytest.mark.parametrize("gap", ["row", "element"])
def test_nulls_in_lists_are_named(tmp_path, x, kind, gap):
    rows = x.tolist()
    rows[417] = None if gap == "row" else [1.0, None, 2.0]
    column = pa.array(rows, type=LISTS[kind](3))
    pq.write_table(pa.table({"e": column}), tmp_path / "x.parquet", row_group_size=100)
    said = r"Column 'e' has a null in row group 4, row 417 of the Parquet .*x\.parquet"
    with pytest.raises(DataError, match=said):
        model().fit(tmp_path / "x.parquet")


def test_ragged_lists_are_named(tmp_path, x):
    rows = x.tolist()
    rows[417] = [1.0, 2.0]
    column = pa.array(rows, type=pa.list_(pa.float64()))
    pq.write_table(pa.table({"e": column}), tmp_path / "x.parquet", row_group_size=100)
    said = (
        r"'e' have 3 elements, but the one in row group 4, row 417 .*x\.parquet has 2"
    )
    with pytest.raises(DataError, match=said):
        model().fit(tmp_path / "x.parquet")
    empty = pa.array([None, []], type=pa.list_(pa.float64()))
    pq.write_table(pa.table({"e": empty}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="begins with lists that are null or empty"):
        model().fit(tmp_path / "x.parquet")


def test_fields_of_structs(tmp_path, x, expected):
    struct = pa.StructArray.from_arrays(
        [pa.array(x[:, 1]), of_lists(x[:, 2:])], names=["u", "v"]
    )
    table = pa.table({"a": x[:, 0], "s": struct, "s.t": x[:, 0]})
    pq.write_table(table, tmp_path / "x.parquet")
    rows = open_rows(tmp_path / "x.parquet", columns=["a", "s.u", "s.v"])
    check(rows, expected, x, ["a", "s.u", "s.v[0]"])
    by_dot = open_rows(tmp_path / "x.parquet", columns=["s.t", "s.u", "s.v"])
    check(by_dot, expected, x, ["s.t", "s.u", "s.v[0]"])
    with pytest.raises(DataError, match="'s' of .* holds struct.*no numbers"):
        open_rows(tmp_path / "x.parquet", columns=["s"])
    with pytest.raises(DataError, match="without a field 'w'"):
        open_rows(tmp_path / "x.parquet", columns=["s.w"])


def test_filters_look_into_structs(tmp_path, x):
    struct = pa.StructArray.from_arrays([pa.array(x[:, 1])], names=["u"])
    pq.write_table(pa.table({"a": x[:, 0], "s": struct}), tmp_path / "x.parquet")
    picked = x[(x[:, 1] > 0) & (x[:, 0] < 1)][:, :2]
    expected = model().fit(picked)
    for filters in (
        [("s.u", ">", 0.0), ("a", "<", 1.0)],
        [[("s.u", ">", 0.0), ("a", "<", 1.0)], [("a", ">", 1e9)]],
    ):
        rows = open_rows(tmp_path / "x.parquet", columns=["a", "s.u"], filters=filters)
        np.testing.assert_allclose(model().fit(rows).means_, expected.means_, rtol=1e-9)


@pytest.mark.parametrize(
    "condition",
    [
        ("a", ">", "text"),
        ("e", ">", 0.0),
        ("s", ">", 0),
        ("t", ">", 3),
        ("a", "in", ["text"]),
        ("s.w", ">", 0),
        ("a.u", ">", 0),
    ],
)
def test_filters_that_do_not_fit_their_columns(tmp_path, x, condition):
    struct = pa.StructArray.from_arrays([pa.array(x[:, 1])], names=["u"])
    table = {"a": x[:, 0], "s": struct, "e": of_lists(x), "t": x[:, 0].astype(str)}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="does not fit the column|without a field"):
        model().fit(
            open_rows(tmp_path / "x.parquet", columns=["a"], filters=[condition])
        )


def test_a_filter_that_does_not_fit_is_named_beside_one_of_no_column(tmp_path, x):
    pq.write_table(pa.table({"a": x[:, 0]}), tmp_path / "x.parquet")
    for filters in (
        [("nothing", ">", 0.0), ("a", ">", "text")],
        [("a", ">", "text"), ("nothing", ">", 0.0)],
    ):
        with pytest.raises(DataError, match="nothing|does not fit the column a, which"):
            open_rows(tmp_path / "x.parquet", columns=["a"], filters=filters)


def test_categories_and_texts_of_numbers_in_parquet(tmp_path, x, expected, monkeypatch):
    def categories(numbers):
        return pa.array(numbers).dictionary_encode()

    table = pa.table(
        {"a": x[:, 0].astype(str), "b": categories(x[:, 1]), "c": categories(x[:, 2])}
    )
    pq.write_table(table, tmp_path / "x.parquet")
    check(open_rows(tmp_path / "x.parquet", columns=NAMES), expected, x)
    # Texts are often the names of rows: only if they are asked for.
    with pytest.raises(DataError, match="'a' of .* holds texts.*texts of numbers"):
        model().fit(tmp_path / "x.parquet")
    words = ["1.5"] * N
    words[417] = "word"
    pq.write_table(table.set_column(0, "a", pa.array(words)), tmp_path / "x.parquet")
    message = r"Column 'a' has 'word' in row group 0, row 417 of .*x\.parquet"
    monkeypatch.setattr(parquet, "_LOOKED_AT", 400)
    with pytest.raises(DataError, match=message):
        model().fit(open_rows(tmp_path / "x.parquet", columns=NAMES))
    monkeypatch.undo()  # what is looked at before any work is told then
    with pytest.raises(DataError, match=r"are no numbers, such as 'word' in .*x\.parq"):
        open_rows(tmp_path / "x.parquet", columns=NAMES)


def test_outputs_among_the_data_are_no_data(tmp_path, x):
    """Such as drawn rows, whose columns have the names of the data's."""
    table = pd.DataFrame(x, columns=NAMES)
    (tmp_path / "data").mkdir()
    table.to_parquet(tmp_path / "data" / "1.parquet")
    fitted = model().fit(open_rows(tmp_path / "data", columns=NAMES))
    drawn = tmp_path / "data" / "drawn.parquet"
    fitted.save(tmp_path / "m")
    run_ = CliRunner().invoke(main, ["sample", str(tmp_path / "m"), str(drawn), "-n9"])
    assert run_.exit_code == 0, run_.output
    assert open_rows(drawn, columns=NAMES).n_rows == 9
    with pytest.raises(DataError, match=r"drawn\.parquet was written by daskgmm, and"):
        open_rows(tmp_path / "data", columns=NAMES)
    assert open_rows(tmp_path / "data" / "*.parquet", columns=NAMES).n_rows == N + 9
    drawn.rename(tmp_path / "data" / "_drawn.parquet")  # that is passed over
    assert open_rows(tmp_path / "data", columns=NAMES).n_rows == N


def test_what_is_no_data_points_to_what_is(tmp_path, x):
    zarr.create_array(tmp_path / "group" / "rows", data=x)
    (tmp_path / "group" / "zarr.json").unlink(missing_ok=True)
    with pytest.raises(StoreError, match=r"Is .*/group/rows meant\?"):
        open_rows(tmp_path / "group")
    (tmp_path / "group" / "rows" / "zarr.json").write_text("{'")
    with pytest.raises(StoreError, match="its metadata are no JSON"):
        open_rows(tmp_path / "group" / "rows")


def test_texts_of_paths_are_looked_at_before_any_work(tmp_path, x):
    for name, part in (("1", x[:400]), ("b", x[400:])):
        (tmp_path / f"a={name}").mkdir()
        table = pa.table({"b": part[:, 1], "c": part[:, 2]})
        pq.write_table(table, tmp_path / f"a={name}" / "x.parquet")
    with pytest.raises(DataError, match="'a' has texts that are no numbers, .* 'b'"):
        open_rows(tmp_path, columns=NAMES)


@pytest.mark.parametrize(
    "columns", [[], "a", {"a"}, {"a": 1}, [0], [None], [["a"]], 5, b"a"]
)
def test_columns_are_names_in_order(tmp_path, x, columns):
    pq.write_table(pa.table({"a": x[:, 0]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="columns must be a list of names"):
        open_rows(tmp_path / "x.parquet", columns=columns)


def test_a_column_that_is_named_twice(tmp_path, x):
    pq.write_table(pa.table({"a": x[:, 0], "b": x[:, 1]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="columns names 'a' twice"):
        open_rows(tmp_path / "x.parquet", columns=["a", "b", "a"])


@pytest.mark.parametrize("kind", [tuple, pd.Index, np.array])
def test_names_of_columns_in_other_lists(tmp_path, x, expected, kind):
    pq.write_table(pa.table(dict(zip(NAMES, x.T, strict=True))), tmp_path / "x.parquet")
    check(open_rows(tmp_path / "x.parquet", columns=kind(NAMES)), expected, x)


# --- data frames ----------------------------------------------------------------------


def as_frames(data, npartitions=3):
    """A data frame of pandas, and one of Dask's that keeps objects as they are."""
    with dask.config.set({"dataframe.convert-string": False}):
        return [data, dd.from_pandas(data, npartitions=npartitions)]


@pytest.mark.parametrize("kind", ["arrays", "lists", "arrow"])
def test_lists_in_data_frames(x, expected, kind):
    if kind == "arrow":
        column = pd.Series(pd.arrays.ArrowExtensionArray(of_lists(x)))
    else:
        column = pd.Series(list(x) if kind == "arrays" else x.tolist())
    for data in as_frames(pd.DataFrame({"e": column})):
        check(data, expected, x, ELEMENTS)
    both = pd.DataFrame({"e": column, "d": x[:, 0]})
    for data in as_frames(both):
        fitted = model().fit(data)
        assert list(fitted.feature_names_in_) == [*ELEMENTS, "d"]


def test_lists_in_data_frames_that_are_ragged_or_missing(x):
    rows = x.tolist()
    rows[417] = [1.0]
    for data in as_frames(pd.DataFrame({"e": pd.Series(rows)})):
        said = r"'e' of X.* has a list of 1 elements in row \d+, and lists of 3"
        with pytest.raises(DataError, match=said):
            model().fit(data)
    rows[417] = None
    for data in as_frames(pd.DataFrame({"e": pd.Series(rows)})):
        with pytest.raises(ValueError, match="NaN"):
            model().fit(data)


LISTS_WITH_A_NULL = {
    "no list": (417, None),
    "the first is none": (0, None),
    "no element": (417, [1.0, None, 2.0]),
    "no element of the first": (0, [None, 1.0, 2.0]),
}


@pytest.mark.parametrize("where", LISTS_WITH_A_NULL)
@pytest.mark.parametrize(
    "kind", ["path", "table", "polars", "frame", "arrow frame", "dask", "dask of arrow"]
)
def test_lists_with_nulls_are_rows_with_nan(tmp_path, x, kind, where):
    row, value = LISTS_WITH_A_NULL[where]
    lists = x.tolist()
    lists[row] = value
    table = pa.table({"e": pa.array(lists)})
    pq.write_table(table, tmp_path / "x.parquet")
    plain, arrow = table.to_pandas(), table.to_pandas(types_mapper=pd.ArrowDtype)
    rows = {
        "path": tmp_path / "x.parquet",
        "table": table,
        "polars": pl.from_arrow(table),
        "frame": plain,
        "arrow frame": arrow,
        "dask": as_frames(plain)[1],
        "dask of arrow": as_frames(arrow)[1],
    }[kind]
    expected = model().fit(np.delete(x, row, axis=0))
    with pytest.warns(SkippedRowsWarning):
        fitted = model(nan="skip").fit(rows)
    assert fitted.n_rows_skipped_ == 1
    np.testing.assert_allclose(fitted.lower_bound_, expected.lower_bound_, rtol=0.01)
    labels = np.asarray(fitted.predict(rows))
    assert labels[row] == -1
    assert (np.delete(labels, row) >= 0).all()
    with pytest.raises(ValueError, match="NaN|null"):
        model().fit(rows)


def test_tensors_of_one_axis_in_tables(x, expected):
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(x)
    check(pa.table({"e": tensors}), expected, x, ELEMENTS)


def test_decimals_in_data_frames(x, expected):
    decimals = {
        n: pa.array(c).cast(pa.decimal128(30, 12))
        for n, c in zip(NAMES, x.T, strict=True)
    }
    rows = pa.table(decimals).to_pandas(types_mapper=pd.ArrowDtype)
    check(rows, expected, x)


def test_structs_in_tables_are_refused_with_advice(x):
    struct = pa.StructArray.from_arrays([pa.array(x[:, 1])], names=["u"])
    with pytest.raises(DataError, match="Column 's' of X.*a struct's fields"):
        model().fit(pa.table({"s": struct}))


def test_lists_of_which_dask_made_strings(x):
    data = dd.from_pandas(pd.DataFrame({"e": list(x)}), npartitions=2)
    with pytest.raises(DataError, match="not numeric.*convert-string to False"):
        model().fit(data)


def dummies(values, **options):
    return pd.get_dummies(pd.Series(values), prefix="c", sparse=True, **options)


NUMBERS = {
    "categories": lambda v: pd.Categorical(v),
    "categories of strings": lambda v: pd.Categorical(v.astype(str)),
    "strings": lambda v: v.astype(str),
    "objects": lambda v: pd.Series(v.astype(str), dtype=object),
    "arrow strings": lambda v: pd.Series(v.astype(str), dtype="string[pyarrow]"),
    "booleans": lambda v: v > 0,
    "nullable": lambda v: pd.array(v, dtype="Int64"),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_in_other_dress_as_scikit_learn_takes_them(x, kind):
    values = np.random.default_rng(0).integers(0, 3, N)
    data = frame(x, c=NUMBERS[kind](values))
    theirs = Theirs(2, random_state=0, max_iter=5).fit(data)
    for rows in (data, dd.from_pandas(data, npartitions=3)):
        ours = model().fit(rows)
        np.testing.assert_allclose(ours.means_, theirs.means_, rtol=1e-6)
        assert list(ours.feature_names_in_) == list(theirs.feature_names_in_)


def test_sparse_dummies(x):
    values = np.random.default_rng(0).integers(0, 3, N)
    data = frame(x).join(dummies(values))
    dense = data.astype(float)
    theirs = Theirs(2, random_state=0, max_iter=5).fit(dense)
    for rows in as_frames(data):
        ours = model().fit(rows)
        np.testing.assert_allclose(ours.means_, theirs.means_, rtol=1e-6)
        np.testing.assert_array_equal(ours.predict(rows), theirs.predict(dense))


@pytest.mark.parametrize("kind", ["words", "dates", "categories of words", "intervals"])
def test_what_is_no_number_is_named(x, kind):
    values = {
        "words": ["word"] * N,
        "dates": pd.date_range("2020-01-01", periods=N),
        "categories of words": pd.Categorical(["word", "other"] * (N // 2)),
        "intervals": pd.cut(x[:, 0], 3),
    }[kind]
    for rows in as_frames(frame(x, c=values)):
        with pytest.raises(DataError, match="Column 'c' of X"):
            model().fit(rows)


def partitioned(parts):
    """A Dask data frame of such partitions, whatever their columns are."""
    delayed = [dask.delayed(part) for part in parts]
    return dd.from_delayed(delayed, meta=parts[0][:0], verify_meta=False)


@pytest.mark.parametrize("method", ["fit", "predict", "score"])
def test_partitions_in_another_order_of_columns(x, expected, method):
    parts = [frame(part) for part in np.split(x, 3)]
    parts[1] = parts[1][["c", "a", "b"]]
    rows = partitioned(parts)
    if method == "fit":
        fitted = model().fit(rows)
        np.testing.assert_allclose(fitted.means_, expected.means_, rtol=1e-6)
    fitted = model().fit(frame(x))
    if method == "predict":
        labels = fitted.predict(rows).compute()
        np.testing.assert_array_equal(labels, expected.predict(x))
    if method == "score":
        assert fitted.score(rows) == pytest.approx(expected.score(x))
    rows = partitioned([*parts[:2], parts[2].rename(columns={"b": "d"})])
    said = r"X \(partition 2\) has the columns \['a', 'd'"
    with pytest.raises(DataError, match=said):
        result = getattr(fitted, method)(rows)
        result.compute()


# --- tables of others -----------------------------------------------------------------


def test_tables_of_polars_and_arrow(x, expected):
    for rows in (pl.DataFrame(x, schema=NAMES), pa.table({**frame(x)})):
        check(rows, expected, x)
    for rows in (
        pl.DataFrame({"e": x}, schema={"e": pl.Array(pl.Float64, 3)}),
        pl.DataFrame({"e": x.tolist()}),
        pa.table({"e": of_lists(x)}),
    ):
        check(rows, expected, x, ELEMENTS)


def not_taken(kind, x, tmp_path):
    import duckdb

    data = frame(x)
    if kind == "LazyFrame":
        return pl.LazyFrame(x, schema=NAMES)
    if kind == "DuckDBPyRelation":
        return duckdb.from_arrow(pa.Table.from_pandas(data))
    if kind == "DuckDBPyConnection":
        return duckdb.connect()
    data.to_parquet(tmp_path / "x.parquet")
    if kind == "ParquetFile":
        return pq.ParquetFile(tmp_path / "x.parquet")
    if kind == "Scanner":
        return ds.dataset(tmp_path / "x.parquet").scanner()
    if kind == "RecordBatchReader":
        return ds.dataset(tmp_path / "x.parquet").scanner().to_reader()
    return ds.dataset(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("LazyFrame", r"collect\(\).* write it as Parquet"),
        ("DuckDBPyRelation", r"df\(\).* write it as Parquet"),
        ("DuckDBPyConnection", r"df\(\).* write it as Parquet"),
        ("ParquetFile", "the path"),
        ("Scanner", r"open_rows\("),
        ("RecordBatchReader", r"read_all\(\)"),
        ("FileSystemDataset", r"open_rows\("),
    ],
)
def test_tables_that_are_computed_elsewhere(tmp_path, x, expected, kind, advice):
    rows = not_taken(kind, x, tmp_path)
    for method in (model().fit, expected.predict, expected.score):
        with pytest.raises(DataError, match=f"X is a .*{kind}: .*{advice}"):
            method(rows)


# --- Zarr -----------------------------------------------------------------------------


@pytest.mark.parametrize("remote", [False, True])
def test_zarr_in_a_zip_file(tmp_path, x, expected, remote):
    folder = tmp_path / "x.zarr"
    zarr.create_array(folder, data=x, chunks=(100, 3))
    zarr.create_group(tmp_path / "g.zarr").create_array("deep/x", data=x)
    for name in ("x.zarr", "g.zarr"):
        shutil.make_archive(str(tmp_path / name), "zip", tmp_path / name)
    place = str(tmp_path)
    if remote:
        files = fsspec.filesystem("memory")
        for name in ("x.zarr.zip", "g.zarr.zip"):
            files.put_file(str(tmp_path / name), f"/zips/{name}")
        place = "memory://zips"
    np.testing.assert_allclose(
        model().fit(f"{place}/x.zarr.zip").means_, expected.means_, rtol=1e-6
    )
    rows = open_rows(f"{place}/g.zarr.zip", array="deep/x")
    np.testing.assert_allclose(model().fit(rows).means_, expected.means_, rtol=1e-6)


def test_a_group_names_its_arrays_at_any_depth(tmp_path, x):
    group = zarr.create_group(
        tmp_path / "cells.zarr", attributes={"encoding-type": "anndata"}
    )
    group.create_array("X/data", data=np.arange(5.0))
    group.create_array("obsm/X_pca", data=x)
    group.create_array("layers/raw/counts", data=x[:, :2])
    said = (
        r"a group with the arrays layers/raw/counts \(600, 2\), obsm/X_pca \(600, 3\): "
        "name one"
    )
    with pytest.raises(StoreError, match=said):
        model().fit(tmp_path / "cells.zarr")
    for i in range(40):
        group.create_array(f"obsm/{i}", data=x)
    with pytest.raises(StoreError, match=r"and 22 more: name one"):
        model().fit(tmp_path / "cells.zarr")


# --- xarray ---------------------------------------------------------------------------


@pytest.mark.parametrize("lazy", [False, True])
def test_variables_by_depth(x, lazy):
    rng = np.random.default_rng(0)
    profiles = xr.Dataset(
        {
            "temp": (("profile", "depth"), rng.normal(size=(N, 3)) + x[:, :1]),
            "salt": (("depth", "profile"), rng.normal(size=(3, N))),
            "bottom": (("profile",), x[:, 1]),
        },
        coords={"depth": [0.0, 10.0, 20.0], "lat": ("profile", x[:, 2])},
    )
    flat = np.column_stack(
        [profiles["temp"].values, profiles["salt"].values.T, profiles["bottom"].values]
    )
    names = [f"{n}[{z}]" for n in ("temp", "salt") for z in (0.0, 10.0, 20.0)]
    if lazy:
        profiles = profiles.chunk({"profile": 100, "depth": 2})
    rows = from_xarray(profiles, "depth")
    fitted = model().fit(rows)
    assert list(fitted.feature_names_in_) == [*names, "bottom"]
    plain = model().fit(flat)
    np.testing.assert_allclose(fitted.means_, plain.means_, rtol=1e-6)
    labels = fitted.predict(rows)
    assert labels.dims == ("profile",) and "lat" in labels.coords
    np.testing.assert_array_equal(labels, plain.predict(flat))


def test_open_parquet_is_what_it_was(tmp_path, x):
    frame(x).to_parquet(tmp_path / "x.parquet")
    rows = open_parquet(tmp_path / "x.parquet")
    assert repr(rows).startswith("ParquetRows('/")
    assert rows.columns == rows.names == tuple(NAMES)
