"""A first look at places of this machine, which loads no library that is slow to load.

What it does not find out, whoever opens the place will.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from glob import glob
from typing import Any, Final

from fsspec.core import split_protocol

from daskgmm.storage.urls import CHAIN, as_path, is_parquet_name, is_wild

OURS: Final = "daskgmm"
"""The attribute of Zarr arrays and groups in which this package says what they are."""


HIDDEN: Final = ("_", ".")
"""Names that begin like this are not data, by the custom of all who write Parquet."""
ZARR: Final = ("zarr.json", ".zarray", ".zgroup", ".zmetadata")
"""Files by which a folder is one of Zarr's."""
DELTA_LOG: Final = "_delta_log"
REFUSED: Final = {
    ".hoodie": "Apache Hudi",
    "metadata": "Apache Iceberg",
}
"""Formats whose logs say which files and rows count, by what lies in their tables."""
OTHER_FILE: Final = (
    "It is a file of another kind: of files, .parquet and .zip (of a Zarr array) are "
    "read. Write it as Zarr or Parquet, or open it in Python and give the array or "
    "table."
)
ARRAY: Final = "a Zarr array"
MODEL: Final = "a model"


def is_empty(place: str) -> bool:
    """Whether a place has nothing, or an empty folder; False of URLs."""
    path = _path(place)
    if path is None:
        return _is_glob_of_nothing(place)
    if not os.path.lexists(path):
        return True
    try:
        return os.path.isdir(path) and not os.listdir(path)
    except OSError:  # whoever opens it says why
        return False


def _is_glob_of_nothing(place: str) -> bool:
    path = _here(place)
    return path is not None and not os.path.lexists(path) and not glob(path)


def lacks_array(place: str, array: str) -> bool:
    """Whether a group on this machine surely has nothing of an array's name."""
    path = _path(place)
    return (
        path is not None
        and os.path.isdir(path)
        and not os.path.lexists(os.path.join(path, array.strip("/")))
    )


def is_other_file(place: str) -> bool:
    """Whether a file of this machine is by its name none that is read."""
    path = _path(place)
    return (
        path is not None
        and os.path.isfile(path)
        and not is_parquet_name(path)
        and not path.lower().endswith(".zip")
    )


def holds_model(place: str) -> bool:
    """Whether a folder is a model."""
    return kind_of(_zarr_document(place)) == MODEL


def holds_array(place: str) -> bool:
    """Whether a folder is a Zarr array."""
    return kind_of(_zarr_document(place)) == ARRAY


def first_parquet(place: str) -> str | None:
    """The first Parquet file at a place; None of tables whose logs say which count."""
    path = _path(place)
    if path is None or not os.path.isdir(path):
        return path if path and os.path.isfile(path) and is_parquet_name(path) else None
    for folder, inside, files in os.walk(path):
        if not {DELTA_LOG, *REFUSED, *ZARR}.isdisjoint([*inside, *files]):
            return None
        inside[:] = sorted(name for name in inside if not name.startswith(HIDDEN))
        for name in sorted(files):
            if is_parquet_name(name) and not name.startswith(HIDDEN):
                return os.path.join(folder, name)
    return None


def kind_of(said: Mapping[str, Any]) -> str | None:
    """What a folder is that says so of itself in Zarr's format 3."""
    if said.get("node_type") == "array":
        return ARRAY
    return MODEL if OURS in (said.get("attributes") or {}) else None


def _path(place: str) -> str | None:
    """A place as a path of this machine; None if it is another one, or several."""
    path = _here(place)
    return None if path is None or is_wild(path) else path


def _here(place: str) -> str | None:
    """A path of this machine, which may be of several; None if it is elsewhere."""
    path = as_path(place)
    is_elsewhere = split_protocol(path)[0] is not None or CHAIN in path
    return None if is_elsewhere else path


def _zarr_document(place: str) -> dict[str, Any]:
    """What a folder says of itself in Zarr's format 3."""
    path = _path(place)
    if path is None:
        return {}
    try:
        with open(os.path.join(path, "zarr.json"), encoding="utf-8") as file:
            said = json.load(file)
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
