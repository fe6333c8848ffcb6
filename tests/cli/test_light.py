"""Help, and what is mistyped, are answered before anything is loaded for the work."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import socket
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import click
import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import zarr
from click.testing import CliRunner
from conftest import blobs, create_zarr

from daskgmm import (
    ClusterError,
    DataError,
    GaussianMixture,
    StoreError,
    load,
    open_rows,
    steps,
)
from daskgmm.cli import demo as of_demo
from daskgmm.cli import options, select
from daskgmm.cli.info import info
from daskgmm.cli.main import COMMANDS, main
from daskgmm.cli.wording import as_options
from daskgmm.cli.work import places as of_places
from daskgmm.data.column_check import missing_column
from daskgmm.demo import run
from daskgmm.em.search import CRITERIA
from daskgmm.estimators.base import _NO_ROWS
from daskgmm.execution.deploy import join
from daskgmm.mixtures.covariance import SHAPES
from daskgmm.storage.glance import (
    ArrayThere,
    array_at,
    arrays_in,
    first_parquet,
    is_whole_output,
    n_features_of,
    said_of_group,
    why_not_written,
)

HEAVY = ("numba", "sklearn", "distributed", "zarr", "scipy", "pandas", "pyarrow")
ASK = """
import sys
from pathlib import Path
from daskgmm.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print("loaded:", *(m for m in {heavy} if m in sys.modules), file=sys.stderr)
sys.exit(code)
"""


def ask(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-c", ASK.format(heavy=HEAVY), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_nothing_large(command):
    done = ask(*command.split(), "--help")
    assert done.returncode == 0
    assert "Usage: " in done.stdout
    assert done.stderr.splitlines()[-1] == "loaded:"


MISTAKES = [
    (
        ("select", "r", "m", "-k", "2", "--held-out", "0.2"),
        "--held-out goes with --criterion held_out.",
    ),
    (
        ("select", "r", "m", "-k", "2", "--bayesian", "--checkpoint-interval", "3"),
        "--checkpoint-interval goes with --checkpoint.",
    ),
    (
        ("fit", "r", "m", "-k", "3", "--init-size", "2"),
        "--init-size 2 is less than --components 3.",
    ),
    (("plot", "m", "p.png", "--columns", "x"), "Options for the rows are given, but"),
    (("plot", "m", "p.png", "--missing-chunks", "fill"), "Options for the rows are g"),
    (("plot", "m", "x", "p.png", "--nan", "skip"), "No such option"),
    (("score", "m", "rows", "--filter", "x in 1,,2"), "'x in 1,,2' has an empty val"),
    (("score", "m", "rows", "--filter", "x in 1,b"), "'x in 1,b' has numbers and te"),
    (("score", "m", "rows", "--filter", "x > 'a"), "a quote that does not end"),
    (
        ("fit", "r", "m", "-k", "2", "--checkpoint-interval", "a"),
        "the interval must be a number of passes",
    ),
    (("fitt",), "No such command 'fitt'. Did you mean 'fit'?"),
    (("nothing",), "No such command"),
    (("fit", "rows"), "Missing argument 'MODEL'"),
    (("fit", "rows", "model", "-k", "0"), "not in the range"),
    (("fit", "rows", "rows", "-k", "2"), "MODEL"),
    (("fit", "S3://host/x.zarr", "m2", "-k", "2"), "is s3:// meant?"),
    (("predict", "m", "rows", "out.csv.gz"), "out.csv.gz would be no CSV"),
    (("fit", "rows", "model.json.zst", "-k", "2"), "would be no JSON"),
    (("fit", "htps://host/x.zarr", "m2", "-k", "2"), "is https:// meant?"),
    (("fit", "rows", "m", "-k", "2", "--weights-from", "process"), "--bayesian"),
    (("select", "rows", "m", "-k", "3:a"), "none of these"),
    (
        ("select", "rows", "m", "-k", "3", "--bayesian", "--criterion", "bic"),
        "held_out",
    ),
    (("predict", "m", "rows", "out.csv"), "would be no CSV"),
    (("predict", "m", "rows", "out/labels.NPY/"), "would be no NPY"),
    (("fit", "rows", "m.pkl", "-k", "2"), "would be no PKL: a model is a folder"),
    (("select", "rows", "m.parquet", "-k", "2"), "would be no PARQUET: a model"),
    (("predict", "m", "rows", "m"), "OUT"),
    (("predict", "m", "rows", "o", "--kind", "proba", "--outliers", "0.1"), "--kind"),
    (("predict", "m", "rows", "o", "--filter", "x >> 3"), "operator '>>'"),
    (("predict", "m", "rows", "o", "--filter", "x =< 3"), "operator '=<'"),
    (("score", "m", "rows", "--filter", "x > 3 and y < 2"), "of several conditions"),
    (("score", "m", "rows", "--nan", "drop"), "'error', 'skip'"),
    (("fit", "rows", "m", "-k", "2", "--tol", "nan"), "nan is no finite number"),
    (("fit", "rows", "m", "-k", "2", "--tol", "-1"), "-1.0 is not in the range"),
    (("fit", "rows", "m", "-k", "2", "--reg-covar", "inf"), "inf is no finite number"),
    (("predict", "m", "rows", "o", "--outliers", "nan"), "nan is no finite number"),
    (("select", "rows", "m", "-k", "2", "--held-out", "nan"), "nan is no finite numb"),
    (
        ("fit", "r", "m", "-k", "2", "--bayesian", "--weight-concentration", "nan"),
        "nan is no finite number",
    ),
    (("score", "m", "rows", "--scheduler", "host:port"), "is no address"),
    (("score", "m", "rows", "--scheduler", "tcp://localhost:abc"), "is no address"),
    (("score", "m", "rows", "--scheduler", ""), "is no address"),
    (("score", "m", "rows", "--dashboard", "xyz"), "is no address"),
    (("score", "m", "rows", "--dashboard", ":99999"), "is no address"),
    (("score", "m", "rows", "--dashboard", "xyz1"), "is no address"),
    (("score", "m", "rows", "--memory-limit", "2"), "too little for a process"),
    (("score", "m", "rows", "--memory-limit", "1kB"), "too little for a process"),
    (("sample", "m", "out.json", "-n", "3"), "would be no JSON"),
    (("predict", "m", "rows", "o", "--key", "id"), "for an OUT that is Parquet"),
    (
        ("fit", "rows", "m", "-k", "2", "--checkpoint-interval", "often"),
        "must be a number of passes",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_so_do_mistakes(tmp_path, arguments, message):
    done = ask(*arguments)
    assert done.returncode == 2, done.stderr
    *said, loaded = done.stderr.splitlines()
    assert message in " ".join(said)
    assert loaded == "loaded:"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A model, and rows."""
    folder = tmp_path_factory.mktemp("places")
    rows = blobs(0, 20, 2, 1)
    GaussianMixture(1).fit(rows).save(folder / "m")
    create_zarr(folder / "x", rows, chunks=(10, 2))
    (folder / "rows.csv").write_text("a,b\n1,2\n")
    (folder / "empty").mkdir()
    return folder


MISPLACED = [
    (("fit", "rows", "new", "-k", "2"), "STORE: there is nothing at"),
    (("fit", "x", "m", "-k", "2"), "m exists: pass --overwrite"),
    (("select", "x", "m", "-k", "2"), "m exists: pass --overwrite"),
    (("fit", "x", "n", "-k", "2", "--checkpoint", "m"), "m is a model: choose another"),
    (("select", "y", "n", "-k", "2", "--checkpoint", "x"), "x is a Zarr array: choose"),
    (("select", "rows", "new", "-k", "2"), "STORE: there is nothing at"),
    (("fit", "x", "new", "-k", "2", "--weights", "w"), "--weights: there is nothing"),
    (("predict", "n", "x", "o"), "There is no model at"),
    (("predict", "m", "rows", "o"), "STORE: there is nothing at"),
    (("predict", "x", "m", "o"), "x holds no model, but a Zarr array"),
    (("score", "m", "rows"), "STORE: there is nothing at"),
    (("score", "x", "m"), "x holds no model, but a Zarr array"),
    (("sample", "x", "o", "-n", "3"), "x holds no model, but a Zarr array"),
    (("info", "nothing"), "MODEL_OR_STORE: there is nothing at"),
    (("info", "empty"), "MODEL_OR_STORE: there is nothing in the folder"),
    (("fit", "empty", "new", "-k", "2"), "STORE: there is nothing in the folder"),
    (
        ("fit", "x", "n", "-k", "2", "--checkpoint", "rows.csv"),
        "rows.csv is a file: choose another place.",
    ),
    (("fit", "x", "rows.csv/n", "-k", "2"), "rows.csv is a file. Choose another pl"),
    (("sample", "m", "rows.csv/n", "-n", "3"), "rows.csv is a file. Choose another"),
    (("plot", "m", "p.png", "--features", "0,0"), "--features names a feature twice"),
    (("predict", "m", "rows.csv", "o"), "rows.csv. It is a file of another kind"),
    (("info", "rows.csv"), "rows.csv. It is a file of another kind"),
    (("plot", "n", "p.png"), "There is no model at"),
    (("plot", "m", "rows", "p.png"), "STORE: there is nothing at"),
    (("plot", "m", "x", "nowhere/p.png"), "There is no folder"),
    (("plot", "m", "p.png", "--features", "0,2"), "has no feature 2, but 0 to 1, wi"),
    (("plot", "m", "p.png", "--features", "x,0"), "has no feature x, but 0 to 1, wi"),
    (("plot", "m", "x", "s3://bucket/p.png"), "A picture is written to this machine"),
]


@pytest.mark.parametrize(("arguments", "message"), MISPLACED)
def test_so_do_places_where_something_else_is(places, arguments, message):
    done = ask(*arguments, cwd=places)
    assert done.returncode == 1, done.stderr
    *said, loaded = done.stderr.splitlines()
    assert message in " ".join(said)
    assert loaded == "loaded:"


MISFITS = [
    (("fit", "x", "new", "-k", "2", "--columns", "a"), "x is not Parquet, which --co"),
    (("select", "x", "new", "-k", "2", "--filter", "a > 1"), "which --filter is for"),
    (("score", "m", "x", "--table-version", "3"), "which --table-version is for"),
    (("predict", "m", "x", "o.parquet", "--key", "a"), "which --key is for"),
    (("fit", "p.parquet", "new", "-k", "2", "--array", "a"), "p.parquet is not Zarr, "),
    (("fit", "folder", "new", "-k", "2", "--no-decode-cf"), "which --decode-cf is for"),
    (("fit", "p.parquet", "new", "-k", "2", "--table-version", "3"), "has no versions"),
    (
        ("fit", "group", "new", "-k", "2", "--array", "row"),
        "There is no array 'row' in",
    ),
    (("fit", "nope/*.parquet", "new", "-k", "2"), "STORE: there is nothing at"),
    (
        ("fit", "x", "new", "-k", "2", "--cluster", "bad.yaml"),
        "bad.yaml: cluster: name a class such as distributed.LocalCluster.",
    ),
    (
        ("fit", "x", "new", "-k", "2", "--cluster", "worse.yaml"),
        "worse.yaml is no YAML: ",
    ),
    (("fit", "hf://datasets/x", "new", "-k", "2"), ": pip install huggingface_hub."),
    (("fit", "sftp://host/x", "new", "-k", "2"), "installed: pip install paramiko."),
    (("fit", "x", "sftp://host/m", "-k", "2"), "needs a library that is not install"),
    (("predict", "m", "x", "sftp://host/out"), "needs a library that is not install"),
    (
        ("fit", "x", "new", "-k", "2", "--checkpoint", "sftp://host/c"),
        "needs a library that is not install",
    ),
]
UNSUITED = [
    (("fit", "x", "new", "-k", "2", "--array", "y"), "itself: leave out --array."),
    (("fit", "csvs", "new", "-k", "2"), "no Zarr array and no Parquet in the folder"),
    (("score", "m", "broken"), "broken: its zarr.json is no JSON."),
    (("fit", "g", "new", "-k", "2"), "a group with the arrays in/xy (20, 2): name one"),
    (("fit", "old", "new", "-k", "2"), "a group with the arrays xy (20, 2): name one"),
    (("fit", "none", "new", "-k", "2"), "none, but a group without arrays."),
    (("fit", "g", "new", "-k", "2", "--array", "in"), "array 'in', but a group with "),
    (("fit", "m", "new", "-k", "2"), "m holds a model, and nothing for STORE."),
    (("fit", "text", "new", "-k", "2"), "text holds fixed_length_utf32: only real nu"),
    (("fit", "bytes", "new", "-k", "2"), "bytes holds null_terminated_bytes: only r"),
    (("fit", "times", "new", "-k", "2"), "times holds numpy.datetime64: only real n"),
    (("fit", "text2", "new", "-k", "2"), "text2 holds <U1: only real numbers can be "),
    (("fit", "x", "new", "-k", "2", "--weights", "m"), "and nothing for --weights."),
    (("fit", "x", "new", "-k", "2", "--weights", "x"), "(20, 2): expected a 1-D array"),
    (
        ("select", "x", "new", "-k", "2", "--weights", "g"),
        "the arrays in/w (5,), in/y (20,): give the path of one, such as ",
    ),
    (
        ("fit", "x", "new", "-k", "2", "--weights", "g/in/w"),
        "--weights has 5 entries, but STORE has 20 rows.",
    ),
    (("fit", "x", "new", "-k", "2", "--storage-option", "a=1"), "a STORE at a URL, an"),
    (("score", "m", "g", "--array", "in/y"), "array 'in/y' has the shape (20,): exp"),
    (("plot", "m3", "x", "p.png"), "STORE has 2 features, and MODEL was fitted to 3: "),
    (("fit", "x", "new", "-k", "21"), "--components 21 is more than there are rows: 2"),
    (("select", "x", "new", "-k", "1,21"), "--components 21 is more than there are r"),
    (("predict", "m", "x", "g"), "g exists and is no Zarr array: choose another plac"),
    (("predict", "m", "x", "old/xy"), "is a Zarr array that this program did not wri"),
    (("sample", "m", "m3", "-n", "1"), "m3 exists and is no Zarr array: choose anot"),
    (("predict", "m", "x", "p.parquet"), "exists and was not written by this program"),
    (("predict", "m", "x", "done"), "done exists: pass --overwrite to replace it."),
    (("sample", "m", "done.parquet", "-n", "1"), "exists: pass --overwrite to replac"),
]
MISNAMED = [
    ("fit", "p.parquet", "new", "-k", "2", "--columns", "a,nope"),
    ("select", "folder", "new", "-k", "2", "--filter", "nope > 1"),
    ("predict", "m", "p.parquet", "o.parquet", "--key", "nope"),
    ("score", "m", "folder", "--columns", "nope,b"),
    ("plot", "m", "p.parquet", "p.png", "--columns", "a,nope"),
]


@pytest.fixture(scope="module")
def tables(places):
    """Parquet beside them: a file, a folder, and one of folders named by a column."""
    table = pd.DataFrame({"a": [0.0, 1.0], "b": [2.0, 3.0], "s": [{"x": 1.0}] * 2})
    words = table.assign(s=["1", "a"])
    words.to_parquet(places / "words.parquet")
    GaussianMixture(1).fit(table[["a", "b"]]).save(places / "named")
    table.to_parquet(places / "p.parquet")
    (places / "folder" / "inner").mkdir(parents=True)
    table.to_parquet(places / "folder" / "inner" / "1.parquet")
    table[["b"]].to_parquet(places / "folder" / "inner" / "_hidden.parquet")
    table.to_parquet(places / "by", partition_cols=["b"])
    (places / "bad.yaml").write_text("arguments: {n_workers: 2}")
    (places / "worse.yaml").write_text("cluster: [")
    create_zarr(places / "group" / "rows", blobs(0, 20, 2, 1), chunks=(10, 2))
    return places


@pytest.mark.parametrize(("arguments", "message"), MISFITS)
def test_so_do_options_of_the_other_kind_of_data(tables, arguments, message):
    test_so_do_places_where_something_else_is(tables, arguments, message)


@pytest.fixture(scope="module")
def outputs(tables):
    """Groups, of both of Zarr's formats, and outputs that are complete."""
    rows = blobs(0, 20, 3, 1)
    GaussianMixture(1).fit(rows).save(tables / "m3")
    zarr.create_group(tables / "none")
    for name, file in (("csvs", "1.csv"), ("broken", "zarr.json")):
        (tables / name).mkdir()
        (tables / name / file).write_text("{'")
    inside = zarr.create_group(tables / "g").create_group("in")
    inside.create_array("xy", data=rows[:, :2], chunks=(10, 2))
    inside.create_array("y", data=rows[:, 0])
    inside.create_array("w", data=rows[:5, 0])
    texts = np.array([["a", "b"]] * 20)
    for name, of, version in (
        ("text", texts, 3),
        ("text2", texts, 2),
        ("bytes", texts.astype("S1"), 3),
        ("times", np.zeros((20, 2), "datetime64[s]"), 3),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", zarr.errors.UnstableSpecificationWarning)
            zarr.create_array(tables / name, data=of, zarr_format=version)
    old = zarr.create_group(tables / "old", zarr_format=2)
    old.create_array("xy", data=rows[:, :2], chunks=(10, 2))
    for out in ("done", "done.parquet"):
        names = [str(tables / name) for name in ("m", "x", out)]
        done = CliRunner().invoke(main, ["predict", *names, "--workers", "1"])
        assert done.exit_code == 0, done.output
    return tables


@pytest.mark.parametrize(("arguments", "message"), UNSUITED)
def test_so_do_arrays_and_outputs_that_do_not_suit(outputs, arguments, message):
    test_so_do_places_where_something_else_is(outputs, arguments, message)


def test_outputs_that_may_be_written_are_left_to_who_writes_them(outputs, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("done", "done.parquet", tmp_path / "empty", tmp_path / "new.parquet"):
        assert why_not_written(str(outputs / name)) is None
    for name in ("done", "done.parquet"):
        assert is_whole_output(str(outputs / name))
        shutil.copytree(outputs / name, tmp_path / name)
        part = next(
            path
            for path in (tmp_path / name).rglob("*")
            if path.is_file() and not path.name.endswith(".json")
        )
        part.unlink()  # the same command writes it anew
        assert not is_whole_output(str(tmp_path / name))
    for name in ("x", "m", "p.parquet", "folder", "s3://bucket/x"):
        assert not is_whole_output(str(outputs / name))


def test_what_is_looked_at_is_what_is_found_when_it_is_opened(outputs):
    for place, array in (("g", None), ("g", "in"), ("old", None), ("none", None)):
        at = str(outputs / place)
        with pytest.raises(StoreError, match="There is no Zarr array") as caught:
            open_rows(at, array=array)
        assert str(caught.value) == said_of_group(at, array, arrays_in(at, array))
    assert array_at(str(outputs / "old"), "xy") == ArrayThere((20, 2), "<f8")
    assert array_at(str(outputs / "g"), "in/xy") == ArrayThere((20, 2), "float64")
    assert n_features_of(str(outputs / "m3")) == load(outputs / "m3").n_features_in_


def test_where_nothing_can_be_written_is_known_at_once(outputs):
    """Also where the system says to an administrator that all may be written to."""
    at, other = str(outputs / "x"), "/proc/new"
    for asked in (
        ["fit", at, other, "-k", "2"],
        ["select", at, other, "-k", "2"],
        ["fit", at, "s3://bucket/m", "-k", "2", "--checkpoint", other],
        ["predict", str(outputs / "m"), at, other],
        ["sample", str(outputs / "m"), other, "-n", "3"],
        ["plot", str(outputs / "m"), f"{other}.png"],
    ):
        done = CliRunner().invoke(main, asked)
        assert done.exit_code == 1
        place = asked[-1] if asked[0] == "plot" else other
        said = f"{place} cannot be used: nothing can be written to /proc"
        assert said in done.output


CLUSTERS = [
    (
        "cluster: dask_jobqueue.LSFCluster\narguments: {cores: 1, memory: 1GB}",
        "bsub is not here: give the command where jobs are submitted.",
    ),
    ("cluster: distributed.LocalClutser", "cluster: there is no distributed.LocalCl"),
    (
        "cluster: dask_jobqueu.SLURMCluster",
        "dask_jobqueu here: is dask_jobqueue meant?",
    ),
    ("cluster: nobodys.Cluster", "nobodys here: install the package that has it."),
    ("cluster: distributed.LocalCluster\narguments: {n_worker: 1}", "is n_workers me"),
    ("cluster: distributed.LocalCluster\narguments: {n_workers: a}", "no whole number"),
    ("cluster: distributed.LocalCluster\nscale: 3", "scale: write names and values"),
    ("cluster: distributed.LocalCluster\nsecurity: {tls_ca_file: a}", "no file"),
]


@pytest.mark.parametrize(("content", "message"), CLUSTERS)
def test_cluster_files_are_looked_at_before_anything_starts(
    places, tmp_path, content, message
):
    (tmp_path / "c.yaml").write_text(content)
    for asked in (("fit", "x", "n", "-k", "2"), ("predict", "m", "x", "o")):
        done = ask(*asked, "--cluster", str(tmp_path / "c.yaml"), cwd=places)
        assert done.returncode == 1, done.stderr
        said, loaded = done.stderr.splitlines()
        assert message in said
        assert loaded == "loaded: distributed"


def test_certificates_are_looked_for_before_anything_starts(places):
    for asked in (("fit", "x", "n", "-k", "2"), ("score", "m", "x")):
        done = ask(*asked, "--scheduler", "tls://127.0.0.1:1", cwd=places)
        assert done.returncode == 1, done.stderr
        said, loaded = done.stderr.splitlines()
        assert "tls://127.0.0.1:1 wants certificates: pass --tls-ca-file" in said
        assert loaded == "loaded: distributed"


def test_rows_are_counted_and_checkpoints_looked_at_before_workers_start(
    tables, monkeypatch
):
    """As far as statistics of the files tell how many rows a filter leaves."""
    monkeypatch.chdir(tables)
    monkeypatch.setattr(of_places, "_connected", None)
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "nonsense")
    zarr.create_array(tables / "w", data=np.ones(7))
    columns = ["--columns", "a,b", "--filter"]
    for asked, said in (
        (
            ["fit", "folder", "n", "-k", "2", *columns, "a > 7"],
            "leaves, 0 rows: a fit ",
        ),
        (["select", "folder", "n", "-k", "2", *columns, "a > 7"], "leaves, 0 rows: a "),
        (["fit", "x", "n", "-k", "2", "--checkpoint", "abfs://b/c"], "abfs://b/c cann"),
        (
            ["fit", "folder", "n", "-k", "2", "--columns", "a,b", "--weights", "w"],
            "--weights has 7 entries, but STORE has 2 rows.",
        ),
    ):
        done = CliRunner().invoke(main, asked)
        assert done.exit_code == 1
        assert said in done.output


def test_a_group_is_described_by_its_arrays(outputs):
    place = str(outputs / "g")
    done = CliRunner().invoke(main, ["info", place])
    assert done.exit_code == 0, done.output
    assert "in/xy  (20, 2)" in done.output
    done = CliRunner().invoke(main, ["info", place, "--json"])
    assert json.loads(done.stdout)["arrays"]["in/w"] == [5]
    done = CliRunner().invoke(main, ["info", str(outputs / "none")])
    assert done.exit_code == 1
    assert "There is no model at" in done.output


@pytest.mark.parametrize("arguments", MISNAMED)
def test_columns_are_looked_for_by_arrow_alone(tables, arguments):
    done = ask(*arguments, cwd=tables)
    assert done.returncode == 1, done.stderr
    said, loaded = done.stderr.splitlines()
    assert said.endswith(".parquet has no column 'nope': it has 'a', 'b', 's'.")
    assert loaded == "loaded: pyarrow"


MISTYPED = [
    (("predict", "m", "words.parquet", "o"), "words.parquet holds texts, no numbers"),
    (("fit", "words.parquet", "new", "-k", "2"), "words.parquet holds texts, no numb"),
    (
        ("fit", "words.parquet", "new", "-k", "2", "--columns", "a,s"),
        "Column 's' has texts that are no numbers, such as 'a' in the Parquet file",
    ),
    (
        ("score", "m", "p.parquet", "--columns", "a"),
        "1 features, and MODEL was fitted to 2: choose them with --columns.",
    ),
    (
        ("predict", "named", "p.parquet", "o", "--columns", "b,a"),
        "--columns gives b, a, and MODEL was fitted to a, b, in this order.",
    ),
    (
        ("fit", "p.parquet", "new", "-k", "3", "--columns", "a"),
        "--components 3 is more than there are rows: 2.",
    ),
    (("fit", "folder", "new", "-k", "2"), "Column 's' of the Parquet file "),
    (("select", "p.parquet", "new", "-k", "2"), "name those that do, or have texts"),
    (("score", "m", "p.parquet", "--columns", "s"), "holds struct<x: double>, no"),
    (("fit", "p.parquet", "new", "-k", "2", "--filter", "a > hello"), "does not"),
    (
        ("fit", "p.parquet", "new", "-k", "2", "--columns", "a", "--filter", "b > x"),
        "The filter b > 'x' does not fit the column b, which holds double",
    ),
    (("score", "m", "folder", "--filter", "b > hello"), "The filter b > 'hello' does"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTYPED)
def test_what_columns_hold_is_looked_at_before_anything_starts(
    tables, arguments, message
):
    done = ask(*arguments, cwd=tables)
    assert done.returncode == 1, done.stderr
    *said, loaded = done.stderr.splitlines()
    assert message in " ".join(said)
    assert not {"distributed", "sklearn"}.intersection(loaded.split())


@pytest.mark.parametrize(
    "asked",
    [
        ("fit", "p.parquet", "new", "-k", "2", "--columns", "a"),
        ("sample", "m", "new.parquet", "-n", "10"),
        ("predict", "m", "x", "new.parquet"),
    ],
)
def test_what_parquet_needs_is_named(tables, tmp_path, monkeypatch, asked):
    monkeypatch.chdir(tmp_path)
    GaussianMixture(1).fit(blobs(0, 20, 2, 1)).save("m")
    create_zarr("x", blobs(0, 20, 2, 1), chunks=(10, 2))
    shutil.copy(tables / "p.parquet", ".")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pyarrow", None)
        done = CliRunner().invoke(main, asked)
    assert done.exit_code == 1
    assert "Parquet needs pyarrow: pip install 'daskgmm[parquet]'." in done.output
    assert {path.name for path in tmp_path.iterdir()} == {"m", "x", "p.parquet"}


def test_text_that_only_a_filter_looks_at_is_no_mistake(tmp_path):
    rows = pd.DataFrame({"a": blobs(0, 40, 1, 1)[:, 0], "s": ["x", "y"] * 20})
    (tmp_path / "x").mkdir()
    rows.to_parquet(tmp_path / "x" / "1.parquet")
    rows[:0].astype({"a": object, "s": object}).to_parquet(tmp_path / "x/0.parquet")
    at, model = str(tmp_path / "x"), str(tmp_path / "m")
    only = ["--filter", "s == x"]
    for asked in (
        ["fit", at, model, "-k", "1", "--columns", "a"],
        ["score", model, at],
    ):
        done = CliRunner().invoke(main, [*asked, *only, "--workers", "1"])
        assert done.exit_code == 0, done.output


def test_what_a_glance_does_not_know_is_left_to_who_opens_it(tables):
    def found(place):
        return first_parquet(str(tables / place))

    assert missing_column(found("p.parquet"), ["a", "s.x", "s[0]"]) is None
    assert missing_column(found("by"), ["b", "nope"]) is None
    assert found("x") is None
    assert found("nothing") is None
    assert found("folder").endswith("inner/1.parquet")
    (tables / "folder" / "_delta_log").mkdir()
    assert found("folder") is None
    (tables / "folder" / "_delta_log").rmdir()
    (tables / "bad.parquet").write_bytes(b"PAR1")
    assert missing_column(found("bad.parquet"), ["nope"]) is None


def test_what_options_know_is_what_the_library_has():
    assert tuple(SHAPES) == options.SHAPES
    assert select.CRITERIA == CRITERIA
    assert (of_demo.GIGABYTES, of_demo.BUDGET) == (run.GIGABYTES, run.BUDGET)


def test_what_nobody_foresaw_is_a_line_too(monkeypatch):
    """Where it arose is shown to those who ask for it."""

    def broken(**_given):
        raise KeyError("colour")

    monkeypatch.setattr(info, "callback", broken)
    done = CliRunner().invoke(main, ["info", "x"])
    assert done.exit_code == 1
    assert done.output.startswith("Error: KeyError: 'colour'. Nobody foresaw this")
    assert "Traceback" not in done.output
    monkeypatch.setenv("DASKGMM_TRACEBACK", "1")
    assert isinstance(CliRunner().invoke(main, ["info", "x"]).exception, KeyError)


def test_rows_of_other_features_are_refused_before_workers_start(tmp_path):
    GaussianMixture(1).fit(blobs(0, 20, 3, 1)).save(tmp_path / "m")
    create_zarr(tmp_path / "x", blobs(0, 20, 2, 1), chunks=(10, 2))
    # There is no such scheduler, nor is it looked for.
    nowhere = ["--scheduler", "tcp://127.0.0.1:1"]
    for command, more in (("score", []), ("predict", [str(tmp_path / "out")])):
        at = [str(tmp_path / "m"), str(tmp_path / "x"), *more]
        done = CliRunner().invoke(main, [command, *at, *nowhere])
        assert done.exit_code == 1
        assert "STORE has 2 features, and MODEL was fitted to 3: ch" in done.output


def test_a_key_that_is_no_column_is_refused_before_workers_start(tmp_path):
    rows = pd.DataFrame({"id": range(20), "x": np.arange(20.0)})
    rows.to_parquet(tmp_path / "x.parquet")
    GaussianMixture(1).fit(rows[["x"]]).save(tmp_path / "m")
    at = [str(tmp_path / name) for name in ("m", "x.parquet", "out.parquet")]
    nowhere = ["--scheduler", "tcp://127.0.0.1:1"]
    for key, message in (("idd", "no column 'idd'"), ("component", "no column 'comp")):
        done = CliRunner().invoke(main, ["predict", *at, "--key", key, *nowhere])
        assert done.exit_code == 1
        assert message in done.output
        assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize("text", ["x = 3", "x=3", "name = 'a b'"])
def test_one_sign_too_few_is_named(text):
    with pytest.raises(click.BadParameter, match=r"operator '=', .* is '==' meant\?"):
        options._filter(text)


def test_what_is_quoted_in_a_filter_is_a_value():
    text = "dish == 'fish > 3 and chips < 2'"
    assert options._filter(text) == ("dish", "==", "fish > 3 and chips < 2")


def test_errors_speak_of_options():
    assert as_options("use columns=[…], or pass nan='skip'.") == (
        "use --columns A,B,…, or pass --nan skip."
    )
    said = "leave out such rows with filters=[('x', '>', float('-inf'))], or"
    option = as_options(said).removeprefix("leave out such rows with ")
    text = option[option.index("'") + 1 : option.rindex("'")]
    assert options._filter(text) == ("x", ">", float("-inf"))
    assert as_options("raise reg_covar to 1e-3") == "raise --reg-covar to 1e-3"
    assert " or --filter leaves none," in as_options(_NO_ROWS)
    with pytest.raises(DataError) as caught:
        GaussianMixture(1).fit(da.from_array(np.empty((0, 2))))
    said = as_options(str(caught.value))
    assert said == "STORE has, or --filter leaves, 0 rows: a fit needs 2 at least."


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("tcp://127.0.0.1:1", "nothing listens at port 1 of 127.0.0.1"),
        ("ws://127.0.0.1:1", "nothing listens at port 1 of 127.0.0.1"),
        (
            "tcp://no-such-host.invalid:8786",
            "no machine is called no-such-host.invalid",
        ),
    ],
)
def test_why_a_scheduler_is_not_joined(address, why):
    """And, at once, what it is that is waited for: it may be about to start."""
    short = dask.config.set({"distributed.comm.timeouts.connect": "100ms"})
    told = []
    with (
        steps.told_to(told.append),
        short,
        pytest.raises(ClusterError, match=f"could not be joined: {why}"),
    ):
        join(address).__enter__()
    assert told == [steps.Step(f"waiting for {address} ({why} yet)")]


def _answer(server, says):
    """Say the same to two who ask: whether anybody listens, and who it is."""
    asked = []
    for _ in range(2):
        asked.append(server.accept()[0])
        with contextlib.suppress(OSError):
            asked[-1].sendall(says)
    return asked


@pytest.mark.parametrize(
    "says", [b"", b"\x05\x00", b"SSH-2.0-x\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"]
)
def test_what_listens_there_may_be_no_scheduler(says):
    """Such as a dashboard, which waits for a question: Dask would wait for ever."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        answered = pool.submit(_answer, server, says)
        short = dask.config.set({"distributed.comm.timeouts.connect": "100ms"})
        told = []
        with (
            steps.told_to(told.append),
            short,
            pytest.raises(ClusterError, match=r"Is it the port of a dashboard\?"),
        ):
            join(address).__enter__()
    waits = steps.Step(f"waiting for {address} (it says nothing yet)")
    assert told == ([] if len(says) >= 8 else [waits])
    for connection in answered.result():
        connection.close()


def test_a_dashboard_hangs_up_when_nothing_is_asked():
    """And is known long before Dask gives up."""
    with (
        HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        pool.submit(server.serve_forever)
        long = dask.config.set({"distributed.comm.timeouts.connect": "10m"})
        with long, pytest.raises(ClusterError, match="is no Dask scheduler"):
            join(f"tcp://127.0.0.1:{server.server_port}").__enter__()
        server.shutdown()


ADDRESSES = [
    (
        "http://localhost:8787",
        "is where a dashboard is looked at: write the scheduler'",
    ),
    ("tpc://localhost:8786", "begin with tpc://: is tcp:// meant?"),
    ("nothing://localhost:8786", "Dask knows no addresses that begin with nothing://"),
    ("TCP://localhost:8786", "begin with TCP://: is tcp:// meant?"),
    ("://localhost:8786", "Dask knows no addresses that begin with ://"),
    ("localhost:99999", "with a number from 1 to 65535 for PORT"),
    ("tcp://localhost:0", "with a number from 1 to 65535 for PORT"),
    ("tcp://localhost:87a6", "is no address: write HOST, HOST:PORT,"),
]


@pytest.mark.parametrize(("address", "message"), ADDRESSES)
def test_addresses_of_no_scheduler_are_refused(address, message):
    done = CliRunner().invoke(
        main, ["fit", "x", "m", "-k", "2", "--scheduler", address]
    )
    assert done.exit_code == 2
    assert "Invalid value for '--scheduler'" in done.output
    assert message in " ".join(done.output.split())


def test_a_scheduler_may_be_named_without_its_port():
    with (
        socket.socket() as taken,
        pytest.raises(ClusterError, match=r"tcp://127\.0\.0\.1:8786 could not be"),
        dask.config.set({"distributed.comm.timeouts.connect": "100ms"}),
    ):
        with contextlib.suppress(OSError):
            taken.bind(("127.0.0.1", 8786))  # nobody listens
        with join("127.0.0.1"):
            pass


def test_what_a_library_says_at_length_is_cut(monkeypatch):
    """Of Hadoop's, ten thousand characters of folders without it."""

    def broken(**_given):
        raise OSError("Unable to load libjvm" + " /usr/lib/jvm/libjvm.so" * 1_000)

    monkeypatch.setattr(info, "callback", broken)
    said = CliRunner().invoke(main, ["info", "hdfs://host/x"]).output
    assert said.startswith("Error: Unable to load libjvm /usr")
    assert said.endswith(" …\n") and len(said) < 1_020


TRIED = """
import logging
from daskgmm.cli.info import info
from daskgmm.cli.main import main

def broken(**_given):
    logging.getLogger("gcsfs").error("tried in vain")
    raise OSError("gone")

info.callback = broken
main(["info", "gs://bucket/rows"])
"""


def test_tries_of_a_library_are_not_logged_beside_the_error():
    done = subprocess.run(
        [sys.executable, "-c", TRIED], capture_output=True, text=True, check=False
    )
    assert done.stderr == "Error: gone\n"


@pytest.mark.parametrize(
    "words", ["fit ro", "predict m ro", "plot m", "info ro", "fit a b --checkpoint ro"]
)
def test_a_shell_completes_places(words):
    """By itself: it knows the files, and is told that they are wanted."""
    typed = {
        "COMP_WORDS": f"daskgmm {words}",
        "COMP_CWORD": str(len(words.split())),
        "_DASKGMM_COMPLETE": "bash_complete",
    }
    done = subprocess.run(
        [Path(sys.executable).parent / "daskgmm"],
        env={**os.environ, **typed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"file,{words.split()[-1]}\n"


def _seen_in_a_terminal(command, words, environment, cwd):
    """Whether a command writes some words to a terminal; it is ended once it has."""
    outside, inside = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "daskgmm", *command],
        stdin=inside,
        stdout=inside,
        stderr=inside,
        env=environment,
        cwd=cwd,
    ) as process:
        os.close(inside)
        seen = b""
        with contextlib.suppress(OSError):  # that it has ended
            while words not in seen and (more := os.read(outside, 4096)):
                seen += more
        process.kill()
    os.close(outside)
    return words in seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "step"),
    [
        (["fit", "s3://b/x", "new", "-k", "2"], b"opening"),
        (["fit", "x", "s3://b/x", "-k", "2"], b"looking at"),
        (["select", "s3://b/x", "new", "-k", "2"], b"opening"),
        (["score", "s3://b/x", "x"], b"opening"),
        (["predict", "m", "s3://b/x", "out"], b"opening"),
        (["predict", "m", "x", "s3://b/x"], b"looking at"),
        (["sample", "s3://b/x", "out", "-n", "3"], b"opening"),
        (["plot", "s3://b/x", "p.png"], b"opening"),
        (["info", "s3://b/x"], b"opening"),
    ],
)
def test_a_store_that_does_not_answer_is_named_meanwhile(places, command, step):
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        environment = {
            **os.environ,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "TERM": "xterm",
            "COLUMNS": "120",
        }
        assert _seen_in_a_terminal(command, step + b" s3://b/x", environment, places)
