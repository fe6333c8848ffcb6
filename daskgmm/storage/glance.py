"""A first look at places of this machine, which loads no library that is slow to load.

What it does not find out, whoever opens the place will.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from glob import escape as glob_escape
from glob import glob
from typing import Any, Final, final

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
DESCRIPTION: Final = "_daskgmm.json"
"""The same beside Parquet files; readers pass over names that begin like this."""
NOT_OUR_PARQUET: Final = (
    "{} exists and was not written by this program: choose another place."
)
NOT_OUR_ARRAY: Final = (
    "{} is a Zarr array that this program did not write: choose another place, or "
    "remove it yourself."
)
NO_ARRAY: Final = "{} exists and is no Zarr array: choose another place."
_NAMED: Final = 20
"""Most arrays of a group that an error names."""
_NO_NUMBERS: Final = (
    *("complex", "string", "fixed_length", "null_terminated", "variable_length"),
    *("raw_bytes", "structured", "numpy.", "c", "U", "S", "V", "M8", "m8", "O"),
)
"""How Zarr's names of what is no real number begin, in its formats 3 and 2."""
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


def is_folder(place: str) -> bool:
    """Whether a place is a folder of this machine."""
    path = _path(place)
    return path is not None and os.path.isdir(path)


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


@final
@dataclass(frozen=True, slots=True)
class ArrayThere:
    """What a Zarr array says of itself.

    Attributes
    ----------
    shape : tuple of int
    dtype : str
        In the words of Zarr's format.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def is_of_numbers(self) -> bool:
        """Whether it may have real numbers: of text and the like it is known."""
        return not self.dtype.lstrip("<>|=").startswith(_NO_NUMBERS)


def array_at(place: str, array: str | None = None) -> ArrayThere | None:
    """A Zarr array on this machine, such as one in a group."""
    path = _path(place)
    return None if path is None else _array(_document(_join(path, array)))


def arrays_in(
    place: str, group: str | None = None
) -> dict[str, tuple[int, ...]] | None:
    """Paths and shapes of all arrays in a Zarr group of this machine."""
    path = _path(place)
    top = None if path is None else _join(path, group)
    if top is None or _document(top).get("node_type") != "group":
        return None
    found = {}
    for folder, inside, _files in os.walk(top):
        its = _array(_document(folder))
        if its is not None:
            found[os.path.relpath(folder, top).replace(os.sep, "/")] = its.shape
            inside.clear()
    return found


def said_of_group(
    place: str,
    array: str | None,
    arrays: Mapping[str, tuple[int, ...]],
    *,
    n_dimensions: int = 2,
) -> str:
    """That a group is no array, but holds some: those that suit, or else all."""
    what = place if array is None else f"{place}, array {array!r}"
    suited = {path: its for path, its in arrays.items() if len(its) == n_dimensions}
    found = sorted((suited or arrays).items())
    if not found:
        return f"There is no Zarr array at {what}, but a group without arrays."
    named = [f"{path} {shape}" for path, shape in found[:_NAMED]]
    more = len(found) - len(named)
    rest = f" and {more} more" if more else ""
    path = "/".join([place.rstrip("/"), *([array] if array else []), found[0][0]])
    # Weights have no option that names an array.
    by_name = "name one of its arrays with --array, or with array=… in Python, or "
    how = f"{by_name if n_dimensions == 2 else ''}give the path of one, such as {path}"
    return (
        f"There is no Zarr array at {what}, but a group with the arrays "
        f"{', '.join(named)}{rest}: {how}."
    )


def n_features_of(model: str) -> int | None:
    """How many features a model on this machine has, if it says so."""
    found = _fitted(model).get("n_features_in_")
    return found if isinstance(found, int) else None


def names_of(model: str) -> list[str]:
    """Names of a model's features, on this machine; none if they have none."""
    return list((_fitted(model).get("feature_names_in_") or {}).get("strings", ()))


def _fitted(model: str) -> dict[str, Any]:
    """What a model on this machine says of what was fitted."""
    attributes = _zarr_document(model).get("attributes") or {}
    return dict((attributes.get(OURS) or {}).get("fitted") or {})


def why_no_data(place: str) -> str | None:
    """What is said of a folder of this machine that has no data, or broken metadata."""
    path = _path(place)
    if path is None or not os.path.isdir(path):
        return None
    document = os.path.join(path, "zarr.json")
    if os.path.isfile(document) and not _json(document):
        return f"No Zarr array can be opened at {place}: its zarr.json is no JSON."
    if _document(path):
        return None
    for _, inside, files in os.walk(path):
        names = {*inside, *files}
        if not names.isdisjoint({DELTA_LOG, *REFUSED, *ZARR}):
            return None
        if any(is_parquet_name(name) or "." not in name for name in files):
            return None
    return f"There is no Zarr array and no Parquet in the folder {place}."


def why_not_written(out: str) -> str | None:
    """What is said of something of this machine that no output may replace."""
    path = _path(out)
    if path is None or not os.path.lexists(path):
        return None
    names = os.listdir(path) if os.path.isdir(path) else [""]
    if is_parquet_name(out):
        is_ours = DESCRIPTION in names or all(name.startswith(".") for name in names)
        return None if is_ours else NOT_OUR_PARQUET.format(out)
    said = _document(path)
    if kind_of(said) == ARRAY:
        is_ours = OURS in (said.get("attributes") or {})
        return None if is_ours else NOT_OUR_ARRAY.format(out)
    return None if all(map(is_metadata, names)) else NO_ARRAY.format(out)


def is_metadata(name: str) -> bool:
    """Whether a name is of what Zarr's format 2 or 3 says of a folder."""
    return name.startswith(("zarr.", ".zarray", ".zattrs"))


def is_whole_output(out: str) -> bool:
    """Whether all of an output is on this machine, which is complete as it says."""
    path = _path(out)
    if path is None:
        return False
    if is_parquet_name(out):
        said = _json(os.path.join(path, DESCRIPTION))
        n_parts = (said.get("layout") or {}).get("files")
        files = glob(os.path.join(glob_escape(path), "part-*.parquet"))
        return bool(said.get("complete")) and len(files) == n_parts
    said = _document(path)
    ours = (said.get("attributes") or {}).get(OURS) or {}
    if kind_of(said) != ARRAY or not ours.get("complete"):
        return False
    sizes = zip(
        said["shape"], said["chunk_grid"]["configuration"]["chunk_shape"], strict=True
    )
    n_parts = math.prod(-(-int(size) // int(part)) for size, part in sizes)
    there = (len(files) for _, _, files in os.walk(os.path.join(path, "c")))
    return sum(there) == n_parts


def first_parquet(place: str) -> str | None:
    """The first Parquet file at a place; None of tables whose logs say which count."""
    path = _path(place)
    if path is None or not os.path.isdir(path):
        return path if path and os.path.isfile(path) and is_parquet_name(path) else None
    if _document(path):  # there may be a million chunks
        return None
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
    """What a folder says of itself in Zarr's formats."""
    path = _path(place)
    return {} if path is None else _document(path)


def _document(folder: str) -> dict[str, Any]:
    """What a folder says of itself in Zarr's format 3, or else in the one before."""
    if said := _json(os.path.join(folder, "zarr.json")):
        return said
    if said := _json(os.path.join(folder, ".zarray")):
        return {"node_type": "array", **said}
    is_group = os.path.isfile(os.path.join(folder, ".zgroup"))
    return {"node_type": "group"} if is_group else {}


def _json(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            said = json.load(file)
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _array(said: Mapping[str, Any]) -> ArrayThere | None:
    if said.get("node_type") != "array":
        return None
    dtype = said.get("data_type", said.get("dtype"))  # of formats 3 and 2
    name = dtype.get("name") if isinstance(dtype, dict) else dtype
    return ArrayThere(tuple(said["shape"]), str(name))


def _join(path: str, inside: str | None) -> str:
    return path if inside is None else os.path.join(path, inside.strip("/"))
