"""Places by path or URL: the same for every process, and told apart before writing."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from itertools import combinations, product
from tempfile import TemporaryFile
from typing import Any, Final

import fsspec
from fsspec.core import split_protocol, strip_protocol, url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from daskgmm.errors import DataError, MissingLibraryError, ParameterError, StoreError

CHAIN: Final = "::"
"""Between the links of a URL such as ``zip://rows.zarr::s3://bucket/data.zip``."""
_LOCAL: Final = ("file", "local")
_OF_STORES: Final = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "http", "https")
_WILD: Final = "*?["
_SUFFIXES: Final = (".parquet", ".parq", ".pq")
_COMPRESSED: Final = (".gz", ".gzip", ".snappy", ".zstd", ".br", ".lz4")
"""What some writers put behind the suffix."""


def absolute(place: str | os.PathLike[str]) -> str:
    """A place under a name that other processes and folders know it by, too.

    Relative paths are made absolute and ``~`` is expanded, inside chained URLs too; all
    other URLs stay as they are.

    Raises
    ------
    TypeError
        If it is neither text nor a path.
    ValueError
        If it, or a part of it, is empty, has a character that no name has, or a
        protocol that is not known.
    """
    text = os.fsdecode(place)
    links = text.split(CHAIN)
    if not all(links) or "\0" in text or _is_bare(links[-1]):
        raise ParameterError(f"{text!r} names no place: give a path or a URL.")
    return CHAIN.join(_absolute_link(link, len(links) > 1) for link in links)


def _is_bare(link: str) -> bool:
    """Whether a URL names no path, in stores where only a path holds anything."""
    protocol, path = split_protocol(link)
    in_stores = protocol in _OF_STORES and not path.strip("/")
    return in_stores or (protocol in _LOCAL and not path)


def _absolute_link(link: str, chained: bool) -> str:
    protocol, path = split_protocol(link)
    if protocol in _LOCAL:
        return f"{protocol}://{_absolute_path(path)}"
    known = fsspec.available_protocols()
    if protocol is not None and protocol not in known:
        near = get_close_matches(protocol.lower(), known, n=1)
        meant = f": is {near[0]}:// meant?" if near else "."
        raise ParameterError(f"{link!r}: no protocol {protocol}:// is known{meant}")
    if protocol is not None or (chained and link in known):
        return link
    return _absolute_path(link)


def _absolute_path(path: str) -> str:
    whole = os.path.join(os.getcwd(), os.path.expanduser(path))
    # Through a link, `..` leads elsewhere than the text says.
    return whole if ".." in whole.split(os.sep) else os.path.normpath(whole)


def as_path(place: str) -> str:
    """A place of this machine as a plain path; any other as it is."""
    protocol, path = split_protocol(place)
    if protocol not in _LOCAL or CHAIN in place:
        return place
    return str(path)


def files_of(place: str, options: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """The file system of a place, and the path in it.

    Raises
    ------
    DataError
        If the options are not what the file system takes.
    MissingLibraryError
        If its library is not installed.
    StoreError
        If the library wants what is not given.
    """
    try:
        files, path = url_to_fs(place, **(options or {}))
    except ImportError as error:
        raise needs_library(place, place, error) from None
    except Exception as error:  # each library has its own
        raise _not_made(place, options, error) from None
    return files, str(path)


def _not_made(
    place: str, options: Mapping[str, Any] | None, error: Exception
) -> DataError | StoreError:
    protocol, _ = split_protocol(place)
    if options and isinstance(error, TypeError):
        return DataError(
            f"storage_options are not what the file system of {place} takes: {error}."
        )
    said = str(error).rstrip(".! ") or type(error).__name__
    return StoreError(
        f"{place} cannot be opened: {said}. Give the library that reads {protocol}:// "
        "what it asks for: by its environment variables, or, where rows are opened, "
        "with storage_options={…}."
    )


_EXTRAS: Final = {
    **dict.fromkeys(("s3", "s3a"), "daskgmm[s3]"),
    **dict.fromkeys(("gs", "gcs"), "daskgmm[gcs]"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "daskgmm[azure]"),
    **dict.fromkeys(("http", "https"), "fsspec[http]"),
}
"""What is to be installed, by protocol."""


_INSTALL: Final = re.compile(r"[Ii]nstall ([A-Za-z][A-Za-z0-9_-]*) to access")
_PACKAGE: Final = re.compile(r'"([A-Za-z][A-Za-z0-9_-]*)"')
"""A package as fsspec names it in its errors."""


def needs_library(what: str, place: str, error: ImportError) -> MissingLibraryError:
    """The error that says how to install what a place needs."""
    protocols = [link.partition("://")[0] for link in place.split(CHAIN)]
    extras = [_EXTRAS[protocol] for protocol in protocols if protocol in _EXTRAS]
    packages = " ".join(_PACKAGE.findall(str(error)))
    if extras:
        how = f"pip install '{extras[-1]}'."
    elif packages and "requires" in str(error):
        how = f"pip install {packages}."
    elif found := _INSTALL.match(str(error)):
        how = f"pip install {found[1]}."
    else:
        how = f"{error}."
    return MissingLibraryError(f"{what} needs a library that is not installed: {how}")


def check_library(place: str) -> None:
    """Raise MissingLibraryError if what reads a place is not installed."""
    for link in place.split(CHAIN):
        protocol = split_protocol(link)[0]
        if protocol is not None:
            try:
                fsspec.get_filesystem_class(protocol)
            except ImportError as error:
                raise needs_library(place, place, error) from None


def is_local(files: Any) -> bool:
    """Whether a file system is this machine's own."""
    return isinstance(files, LocalFileSystem)


def is_wild(place: str) -> bool:
    """Whether a place may be a glob; it may also be a name with such characters."""
    return any(mark in place for mark in _WILD)


def is_parquet_name(name: str) -> bool:
    """Whether a name is one of Parquet, of a file or a folder of them."""
    name = name.rstrip("/").lower()
    for compressed in _COMPRESSED:
        name = name.removesuffix(compressed)
    return name.endswith(_SUFFIXES)


def check_apart(
    written: Mapping[str, str | os.PathLike[str] | None],
    read: Mapping[str, str | os.PathLike[str] | None],
) -> None:
    """Refuse to write to what is read, or to two places of which one holds the other.

    Parameters
    ----------
    written, read : mapping
        Places by what the user calls them; None where there is none. A place that is
        read may be a glob.

    Raises
    ------
    ValueError
        Naming two places that are the same, or one inside the other, however they are
        spelt: by links, relative paths, other names of a protocol, or on a disk that
        takes capitals for small letters.
    """
    outputs = [(name, os.fsdecode(p)) for name, p in written.items() if p is not None]
    inputs = [(name, os.fsdecode(p)) for name, p in read.items() if p is not None]
    for (name, output), (other, place) in (
        *product(outputs, inputs),
        *combinations(outputs, 2),
    ):
        how = _clash(output, place)
        if how is not None:
            raise ParameterError(
                f"{name} ({output}) {how} {other} ({place}): writing the one would "
                "destroy or hide the other. Choose another place."
            )


def _clash(output: str, place: str) -> str | None:
    """How a place to write to lies to another one, if they are not apart."""
    for ours, theirs in product(_links(output), _links(place)):
        if _is_inside(ours, theirs):
            return "is" if _is_inside(theirs, ours) else "lies inside"
        if _is_inside(_fixed_part(theirs), ours):
            return "holds"
        if is_wild(theirs[1]) and _is_matched(ours, theirs):
            return "is matched by"
    return None


_Link = tuple[str, str]
"""A file system's name and a path in it."""


def _links(place: str) -> list[_Link]:
    """Where the links of a URL lead."""
    return list(map(_resolved, filter(_has_path, absolute(place).split(CHAIN))))


def _has_path(link: str) -> bool:
    return "/" in link or os.sep in link


def _resolved(link: str) -> _Link:
    protocol, path = split_protocol(link)
    if protocol is None or protocol in _LOCAL:
        return "file", os.path.realpath(path)
    with suppress(ImportError, ValueError):  # by the text, without its library
        names: Any = fsspec.get_filesystem_class(protocol).protocol
        protocol = names if isinstance(names, str) else names[0]
    try:
        path = strip_protocol(link)  # no store is asked, which may not answer
    except Exception:  # whatever a library wants that is not given here
        _, _, path = link.partition("://")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return protocol, "/".join(parts)


def _is_inside(inner: _Link, outer: _Link) -> bool:
    """Whether a place is another one, or lies in it."""
    if inner[0] != outer[0]:
        return False
    if inner[0] == "file":
        return any(_is_same_file(path, outer[1]) for path in _upwards(inner[1]))
    return f"{inner[1]}/".startswith(f"{outer[1]}/")


def _upwards(path: str) -> Iterator[str]:
    """A path and all folders around it."""
    yield path
    while (above := os.path.dirname(path)) != path:
        path = above
        yield path


def _is_same_file(a: str, b: str) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:  # one of them is not there yet
        return os.path.normcase(a) == os.path.normcase(b)


def _fixed_part(link: _Link) -> _Link:
    """The folder that all matches of a glob lie in; what is no glob, as it is."""
    protocol, path = link
    parts = path.split("/")
    first = next((i for i, part in enumerate(parts) if is_wild(part)), None)
    return (protocol, path if first is None else "/".join(parts[:first]) or "/")


def _is_matched(place: _Link, glob: _Link) -> bool:
    """Whether a place, or a folder around it, is one of a glob's matches."""
    if place[0] != glob[0]:
        return False
    pattern = re.compile(glob_translate(glob[1]))
    return any(pattern.match(path) for path in _upwards(place[1]))


# --- writing --------------------------------------------------------------------------


def folders_above(place: str | os.PathLike[str]) -> Iterator[str]:
    """The folders that a place lies in, the nearest first."""
    place = absolute(place).rstrip("/")
    protocol, path = split_protocol(place)
    if protocol is None or protocol in _LOCAL:
        _, *above = _upwards(os.path.realpath(path))
        yield from above
        return
    while "/" in path and (path := path.rpartition("/")[0]):
        yield f"{protocol}://{path}"


def nearest_folder(place: str) -> str | None:
    """The first folder above a place that is there; None at a URL."""
    if not is_local(files_of(place)[0]):
        return None
    return next(filter(os.path.isdir, folders_above(place)), None)


def why_read_only(place: str) -> str | None:
    """What is said of a place of this machine where nothing can be written.

    It is tried: what a system says of it is not true of all file systems and users.
    """
    nearest = nearest_folder(place)
    if nearest is None:
        return None
    file = next((path for path in folders_above(place) if os.path.isfile(path)), None)
    if file is not None:
        return f"{place} cannot be used: {file} is a file. Choose another place."
    try:
        with TemporaryFile(dir=nearest):
            return None
    except OSError as error:
        return (
            f"{place} cannot be used: nothing can be written to {nearest} "
            f"({error.strerror}). Choose another place."
        )


def beside(place: str, prefix: str) -> str:
    """The place in the same folder whose name has a prefix."""
    protocol, path = split_protocol(place)
    if protocol is None or protocol in _LOCAL:
        # What a link leads to is replaced, and not the link.
        folder, name = os.path.split(os.path.realpath(path))
        return str(os.path.join(folder, prefix + name))
    folder, _, name = place.rstrip("/").rpartition("/")
    return f"{folder}/{prefix}{name}"


def check_writable(place: str) -> None:
    """Refuse to write where a store may take a name for a glob, and remove what fits.

    And to a store without a name in it, which would be taken for a folder of this
    machine once something is added to it.

    Raises
    ------
    ValueError
        If the name has such characters, or is of several places.
    """
    if CHAIN in place:
        raise ParameterError(
            f"{place} leads through other places, and can only be read: choose a place "
            "to write to without '::'."
        )
    protocol, path = split_protocol(place)
    if protocol is not None and not path.strip("/"):
        raise ParameterError(f"{place} names no folder: give one that is in it.")
    if protocol is not None and protocol not in _LOCAL and is_wild(path):
        raise ParameterError(
            f"{place} has one of the characters {' '.join(_WILD)}, which stores at "
            "URLs take for wild cards: choose a name without."
        )


def remove_tree(place: str) -> None:
    """Remove a file, or a folder and all in it, if it is there."""
    files, path = files_of(place)
    if is_local(files):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            with suppress(FileNotFoundError):
                os.unlink(path)
        return
    check_writable(place)
    with suppress(FileNotFoundError):
        files.rm(path, recursive=True)


def replace_folder(source: str, target: str) -> None:
    """Put a folder in the place of another one, which goes; both on this machine."""
    _, new = files_of(source)
    _, path = files_of(target)
    path = os.path.realpath(path)
    old = beside(path, ".old-")
    if os.path.lexists(path):
        remove_tree(old)
        os.rename(path, old)
    os.rename(new, path)
    remove_tree(old)
