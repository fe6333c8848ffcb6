"""What stores tell of files that are not read: size, and time or tag of a version."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

Facts = Mapping[str, tuple[Any, ...]]
"""By name: whatever differs between two versions of a file."""

_TELLING: Final = (
    *("size", "etag", "content_md5", "md5hash", "generation", "version_id"),
    *("mtime", "lastmodified", "last_modified", "last-modified", "updated"),
)
"""What fsspec's file systems call it, in small letters."""
_IF_NOTHING_ELSE: Final = "created"
"""Of files on a disk it changes with their rights, too."""


def facts_of_entry(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """What fsspec tells of a file."""
    said = {str(name).lower(): value for name, value in entry.items()}
    names = [name for name in _TELLING if said.get(name) is not None]
    if names == ["size"] and _IF_NOTHING_ELSE in said:
        names.append(_IF_NOTHING_ELSE)
    return tuple(f"{name} {said[name]}" for name in names)


def facts_of_files(entries: Mapping[str, Mapping[str, Any]], folder: str) -> Facts:
    """Facts from what fsspec finds in a folder, by names in it."""
    start = f"{folder.strip('/')}/".lstrip("/")
    return {
        name.lstrip("/").removeprefix(start): facts_of_entry(entry)
        for name, entry in entries.items()
    }


def facts_of_folder(folder: str) -> Facts:
    """Facts of all files in a folder on a disk, by names in it."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            with suppress(FileNotFoundError):  # it has gone meanwhile
                found[os.path.relpath(path, folder)] = facts_of_path(path)
    return {name.replace(os.sep, "/"): fact for name, fact in found.items()}


def facts_of_path(path: str) -> tuple[Any, ...]:
    """Facts of a file on a disk."""
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


def differing(before: Facts, after: Facts) -> str | None:
    """What is not as it was, by the name of a file; None if nothing is known to differ.

    A store that tells nothing of a file, or lists nothing, tells of no change.
    """
    if not before or not after:
        return None
    for name in sorted({*before, *after}):
        if name not in after:
            return f"{name} is gone"
        if name not in before:
            return f"{name} is new"
        if before[name] != after[name]:
            return f"{name} was written anew"
    return None


def digest_of(facts: Facts) -> str:
    """A digest by which other facts are told apart."""
    return hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()[:32]
