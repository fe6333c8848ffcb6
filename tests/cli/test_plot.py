"""`daskgmm plot` and `daskgmm warmup`: what is written, said and refused."""

from __future__ import annotations

import os
import subprocess
import sys

import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import blobs
from matplotlib.image import imread

from daskgmm import GaussianMixture
from daskgmm.cli.main import main


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plot")
    rows = pd.DataFrame(blobs(0, 600, 3, 3), columns=["a", "b", "c"])
    rows.to_parquet(folder / "rows.parquet")
    model = GaussianMixture(3, random_state=0).fit(rows)
    model.save(folder / "model.zarr")
    return folder


def run(*arguments):
    return CliRunner().invoke(main, ["plot", *map(str, arguments)])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("mixture", ()),
        ("mixture", ("--features", "c,a")),
        ("mixture", ("--features", "1")),
        ("pairs", ("--features", "0,b,2")),
        ("pairs", ()),
        ("responsibilities", ()),
        ("convergence", ()),
    ],
)
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_picture_is_written(tmp_path, places, kind, options, suffix):
    picture = tmp_path / f"picture.{suffix}"
    rows = () if kind == "convergence" else (places / "rows.parquet",)
    done = run(places / "model.zarr", *rows, picture, "--kind", kind, *options)
    assert done.exit_code == 0, done.output
    assert done.output == f"The picture is in {picture}.\n"
    assert [path.name for path in tmp_path.iterdir()] == [picture.name]
    if suffix == "png":
        assert imread(picture).std() > 0.01
    elif "--features" in options and kind == "mixture":
        assert picture.stat().st_size > 5000


def test_without_rows_components_are_drawn(tmp_path, places):
    picture = tmp_path / "p.png"
    assert run(places / "model.zarr", picture).exit_code == 0
    again = run(places / "model.zarr", picture)
    assert again.exit_code == 1
    assert "exists: pass --overwrite" in again.output
    dots = ("--overwrite", "--dpi", 50)
    assert run(places / "model.zarr", picture, *dots).exit_code == 0
    assert imread(picture).shape[:2] == (240, 320)


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (("p.doc",), 2, "must end in one of .png, .svg"),
        (("a", "b", "p.png"), 2, "STORE and PICTURE, or PICTURE alone"),
        (("p.png", "--kind", "responsibilities"), 2, "give STORE, too"),
        (("p.png", "--features", "0,1,2"), 2, "one or two features"),
        (("p.png", "--features", "a,z"), 1, "no feature z, but 0 to 2, or a, b, c."),
        (("p.png", "--kind", "convergence", "--features", "a"), 2, "leave out STORE"),
        (("x", "p.png", "--kind", "convergence"), 2, "leave out STORE"),
        (("p.png", "--features", "0,,2"), 2, "has an empty name"),
        (("p.png", "--features", "z"), 1, "no feature z, but 0 to 2, or a, b, c."),
        (("nowhere/p.png",), 1, "There is no folder"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    tmp_path, monkeypatch, places, more, code, message
):
    monkeypatch.chdir(tmp_path)
    done = run(places / "model.zarr", *more)
    assert done.exit_code == code
    assert message in " ".join(done.output.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_was_warmed_up_is_not_compiled_again(tmp_path):
    def ask():
        return subprocess.run(
            [sys.executable, "-m", "daskgmm", "warmup"],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert ask().splitlines()[-1].startswith("Compiled in ")
    assert ask() == "It was compiled before.\n"
