"""Stores that fail now and then: what they are asked is asked again."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from daskgmm import config
from daskgmm.errors import DaskGMMError, PlaceError, StoreError
from daskgmm.storage.glance import ARRAY, DELTA_LOG, DESCRIPTION, kind_of
from daskgmm.storage.urls import (
    absolute,
    as_path,
    check_writable,
    files_of,
    folders_above,
    is_parquet_name,
    nearest_folder,
    why_read_only,
)

_T = TypeVar("_T")
_FIRST_PAUSE: Final = 0.1
_LIBRARIES: Final = frozenset(
    ["aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google", "urllib3"]
)
"""Those whose own errors come through fsspec."""
_ANSWERS: Final = (
    DaskGMMError,
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
"""Not of a store that fails: it does not have, or allow, what it is asked for."""
_FULL: Final = ("ENOSPC", "EDQUOT", "EFBIG")
_NOT_ALLOWED: Final = ("EACCES", "EPERM", "EROFS", "ENAMETOOLONG", "ELOOP", "EINVAL")
_NUMBERS: Final = {
    getattr(errno, name): name for name in _FULL + _NOT_ALLOWED if hasattr(errno, name)
}
"""What a disk says that has no room, or does not allow what it is asked for."""


def is_failure(error: BaseException) -> bool:
    """Whether a store failed, so that another try may help."""
    if isinstance(error, _ANSWERS) or _refusal(error) is not None:
        return False
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or library in _LIBRARIES


def _refusal(error: BaseException) -> str | None:
    """Name of what a disk says that does not do what it is asked for, if it does."""
    number = error.errno if isinstance(error, OSError) else None
    return None if number is None else _NUMBERS.get(number)


def _is_foreign(error: Exception) -> bool:
    """Whether an error is neither this package's own nor for want of memory.

    What a store raises depends on its library; corrupt chunks come here too, and cost a
    few reads more.
    """
    return not isinstance(error, (MemoryError, DaskGMMError))


def pauses(retries: int) -> Iterator[float]:
    """Seconds to wait before each further try."""
    return (_FIRST_PAUSE * 2**i for i in range(retries))


def _retrying(
    act: Callable[[], _T], retries: int, may_help: Callable[[Exception], bool]
) -> _T:
    """What an action comes to, which is tried again so many times, after pauses."""
    for pause in pauses(retries):
        try:
            return act()
        except Exception as error:
            if not may_help(error):
                raise
            time.sleep(pause)
    return act()


def retrying_or(
    named: Callable[[Exception], StoreError], act: Callable[[], _T], retries: int
) -> _T:
    """What an action comes to, tried so many times, or an error that says what failed.

    It is tried again after any error that is not our own.
    """
    try:
        return _retrying(act, retries, _is_foreign)
    except Exception as error:
        if not _is_foreign(error):
            raise
        raise named(error) from None


def retrying(act: Callable[[], _T]) -> _T:
    """What an action comes to, which is tried again while its store fails."""
    return _retrying(act, config.count("storage-retries"), is_failure)


def patiently(act: Callable[[], _T], place: str) -> _T:
    """As `retrying`, with the place in the error.

    Raises
    ------
    StoreError
        Naming the place, if it fails too often.
    """
    with naming_failures(place):
        return retrying(act)


@contextmanager
def naming_failures(place: str) -> Iterator[None]:
    """Name the place in the error of a store that refuses, or has failed often enough.

    Raises
    ------
    StoreError
        It says what to do.
    """
    try:
        yield
    except Exception as error:
        refusal = _refusal(error)
        if refusal is None and not is_failure(error):
            raise
        what = f"{type(error).__name__}: {error}"
        if refusal in _FULL:
            message = f"There is no room left at {place} ({what}). Make some."
        elif refusal is not None:
            message = f"{place} cannot be used ({what}). Choose another place."
        else:
            attempts = config.count("storage-retries") + 1
            message = (
                f"The store at {place} cannot be used, after {attempts} attempts: "
                f"{what}. {_advice(error)}"
            )
        raise StoreError(message) from None


def _advice(error: Exception) -> str:
    """What to do about a store that fails."""
    # Asked for again nevertheless: machines in a cloud get theirs by a request.
    if "Credential" in type(error).__name__:
        return (
            "Give credentials to the library that reads it, on every machine that "
            "does: by its environment variables, its file in the home folder, or the "
            "service account of the machine."
        )
    return "Try again later."


def ask_files(url: str, question: Callable[[Any, str], _T]) -> _T:
    """Ask the file system of a URL, patiently and anew, about the path in it."""
    files, path = files_of(url)

    def once() -> _T:
        files.invalidate_cache()  # others may have written there
        return question(files, path)

    return patiently(once, url)


def check_free(url: str | os.PathLike[str]) -> None:
    """Refuse to write inside a Zarr array, a model or an output, which it would spoil.

    And where this user may not, so that it is known before the work is done.

    Raises
    ------
    PlaceError
        Naming what the place lies in.
    StoreError
        Naming the folder to which nothing can be written.
    ValueError
        If the name has characters that a store takes for wild cards.
    """
    place = absolute(url)
    check_writable(place)
    nearest = nearest_folder(place)
    for i, folder in enumerate(folders_above(place)):
        # Elsewhere each question is a request.
        what = _what_not_to_write_in(folder, nearest is not None or i == 0)
        if what is not None:
            raise PlaceError(
                f"{place} lies inside {folder}, which is {what}: choose another place."
            )
    if said := why_read_only(place):
        raise StoreError(said)


def _what_not_to_write_in(folder: str, is_near: bool) -> str | None:
    """What a folder is, if nothing else must be written in it."""
    if os.path.isfile(as_path(folder)):
        return "a file"
    try:
        return _what_is_in(folder, is_near)
    except StoreError:
        return None  # whoever writes there will be told, and need not wait twice


def _what_is_in(folder: str, is_near: bool) -> str | None:
    """What a folder is, by what is in it; nearer ones are looked at more closely."""
    if (kind := kind_of(_document(folder, "zarr.json"))) is not None:
        return kind
    if _document(folder, ".zarray"):
        return ARRAY
    if _document(folder, DESCRIPTION):
        return "an output"
    if is_near and _is_there(f"{folder}/{DELTA_LOG}"):
        return "a table of Delta Lake"
    if is_parquet_name(folder) and _is_there(folder):
        return "a folder of Parquet files"
    return None


def _document(folder: str, name: str) -> dict[str, Any]:
    """A JSON document in a folder; empty if there is none."""
    try:
        content = ask_files(
            f"{folder}/{name}", lambda files, path: files.cat_file(path)
        )
        found = json.loads(content)
    except StoreError:
        raise
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_there(url: str) -> bool:
    """Whether there is something, as far as this user may know."""
    try:
        return what_is_at(url) is not None
    except StoreError:
        raise
    except (OSError, ValueError):
        return False


def what_is_at(url: str) -> str | None:
    """'file' or 'directory', as fsspec says; None if there is nothing."""
    # Not by `exists` and `isdir`: they get a no from stores that fail.
    try:
        return str(ask_files(url, lambda files, path: files.info(path)["type"]))
    except FileNotFoundError:
        return None
