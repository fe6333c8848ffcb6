"""Places by path and URL: made absolute, and told apart before anything is written."""

from __future__ import annotations

import os
import re
import sys

import numpy as np
import pytest
from botocore.exceptions import NoCredentialsError

from daskgmm import GaussianMixture, load, open_rows
from daskgmm.errors import MissingLibraryError, StoreError
from daskgmm.storage import urls
from daskgmm.storage.retry import naming_failures
from daskgmm.storage.urls import absolute, check_apart


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("rows.zarr", "{here}/rows.zarr"),
        ("./a//rows.zarr/", "{here}/a/rows.zarr"),
        ("~/rows.zarr", "{here}/home/rows.zarr"),
        ("/data/rows.zarr", "/data/rows.zarr"),
        ("/data/../rows.zarr", "/data/../rows.zarr"),  # `data` may be a link
        ("file://rows.zarr", "file://{here}/rows.zarr"),
        ("file:///data/rows.zarr", "file:///data/rows.zarr"),
        ("s3://bucket/rows.zarr", "s3://bucket/rows.zarr"),
        ("memory://rows.zarr", "memory://rows.zarr"),
        ("https://host/a?b=1", "https://host/a?b=1"),
        ("zip://rows.zarr::data.zip", "zip://rows.zarr::{here}/data.zip"),
        ("simplecache::s3://bucket/x", "simplecache::s3://bucket/x"),
        ("zip://::file://data.zip", "zip://::file://{here}/data.zip"),
    ],
)
def test_places_are_made_absolute(here, place, expected):
    assert absolute(place) == expected.format(here=here)
    os.chdir("/")
    assert absolute(absolute(place)) == absolute(place)


def clash(output, place):
    with pytest.raises(ValueError, match="Choose another place") as caught:
        check_apart({"OUT": output}, {"STORE": place})
    return str(caught.value)


@pytest.mark.parametrize(
    "output",
    [
        "rows.zarr",
        "./rows.zarr/",
        "{here}//rows.zarr",
        "file://{here}/rows.zarr",
        "local://{here}/rows.zarr",
        "other/../rows.zarr",
        "link.zarr",
        "folder/rows.zarr",
        "~/../rows.zarr",
    ],
)
@pytest.mark.parametrize("is_there", [True, False])
def test_the_same_place_in_other_spellings(here, output, is_there):
    (here / "other").mkdir()
    (here / "home").mkdir()
    if is_there:
        (here / "rows.zarr").mkdir()
    (here / "link.zarr").symlink_to(here / "rows.zarr")
    (here / "folder").symlink_to(here)
    said = clash(output.format(here=here), "rows.zarr")
    assert said.startswith(f"OUT ({output.format(here=here)}) is STORE (rows.zarr): ")
    check_apart({"OUT": "out.zarr"}, {"STORE": "rows.zarr"})


def test_one_file_by_two_names(here):
    """As on a disk that takes capitals for small letters."""
    (here / "rows.parquet").write_bytes(b"")
    os.link(here / "rows.parquet", here / "ROWS.parquet")
    assert "is STORE" in clash("ROWS.parquet", "rows.parquet")


@pytest.mark.parametrize(
    ("output", "place"),
    [
        ("s3://bucket/rows", "s3a://bucket/rows/"),
        ("s3://bucket//a/./rows", "s3://bucket/a/rows"),
        pytest.param(
            *("gs://bucket/rows", "gcs://bucket/rows"),
            marks=pytest.mark.slow,  # to load these libraries takes long
        ),
        ("memory://rows", "memory:///rows"),
        ("memory://rows", "simplecache::memory://rows"),
        pytest.param(
            "az://container/rows",
            "abfs://container@account.dfs.core.windows.net/rows",
            marks=pytest.mark.slow,
        ),
        ("https://host/rows", "https://host/rows/"),
    ],
)
def test_the_same_place_in_other_spellings_of_urls(output, place):
    assert " is STORE" in clash(output, place)


@pytest.mark.parametrize(
    ("output", "place", "how"),
    [
        ("rows.zarr/model.zarr", "rows.zarr", "lies inside"),
        ("data", "data/rows.zarr", "holds"),
        ("data", "file://{here}/data/more/rows.zarr", "holds"),
        ("s3://bucket/rows/model", "s3://bucket/rows", "lies inside"),
        ("s3://bucket/a", "s3://bucket/a/rows", "holds"),
        ("data.zip", "zip://rows.zarr::data.zip", "is"),
        ("cells/labels.parquet", "cells/*.parquet", "is matched by"),
        ("cells/a.parquet/labels.zarr", "cells/*.parquet", "is matched by"),
        ("cells", "cells/*.parquet", "holds"),
        ("s3://bucket/cells", "s3://bucket/cells/day=*/*.parquet", "holds"),
    ],
)
def test_one_place_in_the_other(here, output, place, how):
    assert f"OUT ({output}) {how} STORE" in clash(output, place.format(here=here))


@pytest.mark.parametrize(
    ("output", "place"),
    [
        ("rows.zarr.labels", "rows.zarr"),
        ("s3://bucket/rows2", "s3://bucket/rows"),
        ("s3://other/rows", "s3://bucket/rows"),
        ("memory://bucket/rows", "s3://bucket/rows"),
        ("cells/labels.zarr", "cells/*.parquet"),
        ("labels.parquet", "cells/*.parquet"),
    ],
)
def test_places_apart(here, output, place):
    check_apart({"OUT": output}, {"STORE": place, "--weights": None})


def test_two_places_to_write_to(here):
    with pytest.raises(ValueError, match=r"MODEL \(m\) holds --checkpoint \(m/c\)"):
        check_apart({"MODEL": "m", "--checkpoint": "m/c"}, {})
    check_apart({"MODEL": "m", "--checkpoint": "c"}, {})


def test_what_is_replaced_is_whole_until_then(here):
    for name, content in (("new", "new"), ("rows", "old")):
        (here / name).mkdir()
        (here / name / "part").write_text(content)
    (here / "link").symlink_to(here / "rows")
    urls.replace_folder(str(here / "new"), str(here / "link"))
    assert (here / "rows" / "part").read_text() == "new"
    assert (here / "link").is_symlink()
    assert sorted(path.name for path in here.iterdir()) == ["link", "rows"]


def test_removing_takes_names_as_they_are(here):
    """A name with wild cards is not a glob, and a link is not what it leads to."""
    for name in ("a1", "a[1]", "a*", "b"):
        (here / name).mkdir()
        (here / name / "x").touch()
    (here / "link").symlink_to(here / "b")
    for name in ("a[1]", "a*", "link", "nothing"):
        urls.remove_tree(str(here / name))
    assert sorted(path.name for path in here.iterdir()) == ["a1", "b"]
    assert (here / "b" / "x").exists()
    with pytest.raises(ValueError, match="wild cards"):
        urls.remove_tree("memory://a[1]")


@pytest.mark.parametrize("place", ["", "::", "file://", "zip://x::", "s3://", "gs:///"])
def test_what_names_no_place_is_not_looked_for(place):
    """Not in all folders below this one, nor with requests that take minutes."""
    with pytest.raises(ValueError, match="names no place: give a path or a URL"):
        GaussianMixture(1).fit(place)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("htps://host/x", "no protocol htps:// is known: is https:// meant"),
        ("zip://x::s4://b/x.zip", "no protocol s4:// is known."),
        ("abc://", "no protocol abc:// is known."),
    ],
)
def test_protocols_that_nobody_knows_are_refused(place, said):
    x = np.zeros((9, 2))
    for fit in (
        lambda: GaussianMixture(1).fit(place),
        lambda: GaussianMixture(1).fit(x, sample_weight=place),
        lambda: GaussianMixture(1).fit(x, checkpoint=place),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            fit()


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("abfs://c/x.zarr", "either a connection_string or account_name"),
        ("reference://x", "required positional argument: 'fo'. Give the library"),
    ],
)
def test_what_a_library_wants_besides_a_url_is_told(place, said, monkeypatch):
    for name in ("ACCOUNT_NAME", "CONNECTION_STRING"):
        monkeypatch.delenv(f"AZURE_STORAGE_{name}", raising=False)
    x = np.zeros((9, 2))
    fitted = GaussianMixture(1).fit(x + np.arange(9)[:, None])
    for ask in (
        lambda: GaussianMixture(1).fit(place),
        lambda: open_rows(place),
        lambda: fitted.save(place),
        lambda: load(place),
        lambda: GaussianMixture(1).fit(x, checkpoint=place),
    ):
        with pytest.raises(StoreError, match=re.escape(said)):
            ask()


@pytest.mark.parametrize(
    ("place", "parts", "how"),
    [
        ("https://host/x", ("requests", "aiohttp"), "pip install 'fsspec[http]'"),
        ("zip://::https://host/x.zip", ("aiohttp",), "pip install 'fsspec[http]'"),
    ],
)
def test_the_library_of_a_protocol_is_named(place, parts, how, monkeypatch):
    for part in (*parts, "fsspec.implementations.http"):
        monkeypatch.setitem(sys.modules, part, None)  # as if it were not installed
    known = sys.modules["fsspec.registry"]._registry
    monkeypatch.delitem(known, "https", raising=False)
    for ask in (lambda: GaussianMixture(1).fit(place), lambda: load(place)):
        with pytest.raises(MissingLibraryError, match=re.escape(how)):
            ask()


@pytest.mark.parametrize(
    ("place", "said"),
    [
        *[(place, f"'{place}' names no place") for place in ("s3://", "gs:///")],
        *[
            (place, f"{place} names no folder")
            for place in ("memory://", "file:///", "ftp://")
        ],
    ],
)
def test_a_store_without_a_name_in_it_is_not_written_to(here, place, said):
    model = GaussianMixture(1)
    x = np.random.default_rng(0).normal(size=(9, 2))
    before = sorted(os.listdir("."))
    with pytest.raises(ValueError, match=said):
        model.fit(x, checkpoint=place)
    with pytest.raises(ValueError, match=said):
        model.fit(x).save(place)
    assert sorted(os.listdir(".")) == before


def test_who_lacks_credentials_is_told_so():
    """As s3fs says it; waiting does not help."""
    with (
        pytest.raises(StoreError, match="NoCredentialsError.*Give credentials to"),
        naming_failures("s3://bucket/rows.zarr"),
    ):
        raise NoCredentialsError
    with (
        pytest.raises(StoreError, match="Try again later"),
        naming_failures("s3://bucket/rows.zarr"),
    ):
        raise ConnectionResetError
