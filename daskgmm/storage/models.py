"""Models as Zarr groups: no pickle, a version, a digest of all that is in them.

A group holds one child group with the arrays and, in its own attributes, everything
else. The attributes name the child and are written after it, so that a write that
breaks off leaves the model that was there before.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, final

import numpy as np
import zarr
from numpy.typing import NDArray

from daskgmm.errors import DaskGMMError, ModelFileError, NewerFormatError, PlaceError
from daskgmm.storage.glance import OURS
from daskgmm.storage.patient_store import patient_store
from daskgmm.storage.retry import (
    ask_files,
    check_free,
    naming_failures,
    what_is_at,
)
from daskgmm.storage.urls import absolute

FORMAT: Final = 1
"""Version of what is written; every version up to it can be read."""

_STATE: Final = "state-"
_GROUP: Final = "zarr.json"

Arrays = dict[str, NDArray[Any]]


@final
@dataclass(frozen=True, slots=True)
class Model:
    """What is saved of an estimator.

    Attributes
    ----------
    kind : str
        Name of its class.
    parameters, fitted : mapping
        By name: None, numbers, strings, arrays, lists of floats, random states.
    """

    kind: str
    parameters: Mapping[str, Any]
    fitted: Mapping[str, Any]


def save(url: str | os.PathLike[str], model: Model, *, overwrite: bool) -> None:
    """Write a model; an older one there is replaced only if `overwrite`.

    Raises
    ------
    PlaceError
        If something else is there, or a model and not `overwrite`.
    StoreError
        If the store fails again and again.
    """
    target = absolute(url)
    check_free(target)
    old = existing(target)
    if old is not None and not overwrite:
        raise PlaceError(
            f"There is a model at {target} already: pass overwrite=True to replace it."
        )
    encoded = _Encoded.of(model)
    with naming_failures(target):
        # Nothing is there, or the remnants of a write: those go.
        group = _open_group(target, "w" if old is None else "a")
        encoded.write_into(group)
        if old is not None:
            del group[old["state"]]


def write(url: str | os.PathLike[str], model: Model) -> None:
    """Write a model to a place that `check_ours` allows, whatever is there."""
    encoded = _Encoded.of(model)
    with naming_failures(os.fspath(url)):
        encoded.write_into(_open_group(os.fspath(url), "w"))


def _open_group(target: str, mode: Literal["r", "a", "w"]) -> zarr.Group:
    return zarr.open_group(patient_store(target, writable=mode != "r"), mode=mode)


@final
@dataclass(frozen=True, slots=True)
class _Encoded:
    """A model as it is written: before that, all of it is known to be writable."""

    header: dict[str, Any]
    arrays: Arrays

    @classmethod
    def of(cls, model: Model) -> Self:
        arrays: Arrays = {}
        header: dict[str, Any] = {
            "format": FORMAT,
            "kind": model.kind,
            "state": f"{_STATE}{uuid.uuid4().hex}",
            "parameters": _encode_all("parameters", model.parameters, arrays),
            "fitted": _encode_all("fitted", model.fitted, arrays),
        }
        return cls({**header, "digest": _digest(header, arrays)}, arrays)

    def write_into(self, group: zarr.Group) -> None:
        """Write the arrays first, and then what names them."""
        state = self.header["state"]
        try:
            _write_arrays(group.create_group(state), self.arrays)
            group.attrs[OURS] = self.header
        except BaseException:
            # On a disk that is full, what is there of it would stay in the way.
            with suppress(Exception):
                del group[state]
            raise


def _write_arrays(group: zarr.Group, arrays: Arrays) -> None:
    for name, array in arrays.items():
        # An array of zeros would otherwise be left out, and a lost one read as zeros.
        written = group.create_array(
            name,
            shape=array.shape,
            dtype=array.dtype,
            chunks=tuple(max(1, size) for size in array.shape),
            config={"write_empty_chunks": True},
        )
        written[...] = array


def check_ours(url: str | os.PathLike[str]) -> None:
    """Refuse a place where something is that is no model, damaged or not.

    Raises
    ------
    PlaceError
    """
    with suppress(ModelFileError):
        existing(absolute(url))


def load(url: str | os.PathLike[str]) -> Model:
    """Read a model.

    Raises
    ------
    ModelFileError
        If there is none, or it is damaged, or of a newer version.
    StoreError
        If the store fails again and again.
    """
    target = absolute(url)
    header = _header(target)
    if header is None:
        raise ModelFileError(f"There is no model at {target}.")
    if not isinstance(header, dict) or not isinstance(header.get("format"), int):
        raise _damaged(target, "its header cannot be read")
    if header["format"] > FORMAT:
        raise NewerFormatError(
            f"What is saved at {target} has format {header['format']}, and this "
            f"version of daskgmm reads formats up to {FORMAT}: install a newer one."
        )
    try:
        with naming_failures(target):
            child: Any = _open_group(target, "r")[header["state"]]
            arrays = {name: np.asarray(array[...]) for name, array in child.arrays()}
        intact = header["digest"] == _digest(header, arrays)
    except DaskGMMError:
        raise
    except Exception as error:
        raise _damaged(target, f"{type(error).__name__}: {error}") from error
    if not intact:
        raise _damaged(target, "what is in it is not what was written")
    return Model(
        header["kind"],
        _decode_all(header["parameters"], arrays),
        _decode_all(header["fitted"], arrays),
    )


def _damaged(target: str, how: str) -> ModelFileError:
    return ModelFileError(f"The model at {target} is damaged ({how}): save it again.")


def existing(target: str) -> dict[str, Any] | None:
    """Header of the model at a place, or None where nothing is that is whole.

    Raises
    ------
    PlaceError
        If something else is there.
    ModelFileError
        If what is there cannot be read.
    """
    there = what_is_at(target)
    if there is None:
        return None
    is_file = there == "file"
    found = {} if is_file else ask_files(target, _sizes)
    remnants = all(map(_may_be_left, found))
    if found and remnants and not found.get(_GROUP):
        return None  # a write broke off before the group was described
    header = _header(target)
    if header is not None:
        return dict(header)
    if remnants and not is_file:
        return None
    raise PlaceError(f"{target} exists and is not a model: choose another place.")


def _may_be_left(name: str) -> bool:
    """Whether a write that broke off may have left something of that name.

    Zarr writes a file by another name first, as zarr.0123abcd.partial.
    """
    is_unfinished = name.startswith("zarr.") and name.endswith(".partial")
    return name == _GROUP or name.startswith(_STATE) or is_unfinished


def _sizes(files: Any, path: str) -> dict[str, int]:
    """Bytes of what lies in a folder, by name."""
    return {
        entry["name"].rstrip("/").rsplit("/", 1)[-1]: entry["size"]
        for entry in files.ls(path, detail=True)
    }


def _header(target: str) -> Any:
    """The model's attributes; None if there is no model."""
    try:
        with naming_failures(target):
            found = zarr.open(patient_store(target, writable=False), mode="r")
    except FileNotFoundError:
        return None
    except DaskGMMError:
        raise
    except Exception as error:
        raise _damaged(target, f"{type(error).__name__}: {error}") from error
    if isinstance(found, zarr.Array):
        raise ModelFileError(f"{target} holds no model, but a Zarr array.")
    return found.attrs.asdict().get(OURS)


def _digest(header: Mapping[str, Any], arrays: Arrays) -> str:
    """SHA-256 of the header, less the digest itself, and of every array."""
    rest = {key: value for key, value in header.items() if key != "digest"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _encode_all(
    prefix: str, values: Mapping[str, Any], arrays: Arrays
) -> dict[str, Any]:
    return {
        name: _encode(f"{prefix}.{name}", value, arrays)
        for name, value in values.items()
    }


def _encode(name: str, value: Any, arrays: Arrays) -> Any:
    """A value as JSON; numbers in bulk go to `arrays` and are named in it."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, np.random.RandomState):
        return {"random_state": _encode_state(name, value, arrays)}
    if isinstance(value, np.ndarray) and value.dtype == object:
        return {"strings": [str(item) for item in value]}
    kind = "list" if isinstance(value, list) else "array"
    arrays[name] = np.asarray(value)
    if arrays[name].dtype.kind not in "bfiu":
        raise TypeError(f"{name} cannot be saved: {value!r}")
    return {kind: name}


def _encode_state(name: str, value: np.random.RandomState, arrays: Arrays) -> Any:
    algorithm, keys, position, has_gauss, cached = state_of(value)
    arrays[f"{name}.keys"] = np.asarray(keys)
    return [algorithm, f"{name}.keys", int(position), int(has_gauss), float(cached)]


def state_of(value: np.random.RandomState) -> tuple[Any, ...]:
    """A random state's algorithm, keys, position, and its next normal number.

    Raises
    ------
    TypeError
        If it does not draw by NumPy's default for it.
    """
    drawn_by = value.get_state(legacy=False)["bit_generator"]
    if drawn_by != "MT19937":
        raise TypeError(
            f"A random_state that draws by {drawn_by} cannot be saved: pass a number, "
            "or a RandomState of one."
        )
    return tuple(value.get_state(legacy=True))


def _decode_all(values: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    return {name: _decode(value, arrays) for name, value in values.items()}


def _decode(value: Any, arrays: Arrays) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "float":
        return float(content)
    if kind == "strings":
        return np.array(content, dtype=object)
    if kind == "list":
        return arrays[content].tolist()
    if kind == "array":
        return arrays[content]
    algorithm, keys, *rest = content
    random_state = np.random.RandomState()
    random_state.set_state((algorithm, arrays[keys], *rest))
    return random_state
