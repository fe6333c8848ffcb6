"""Parts of an output, written one by one, resumed, and put in place once complete."""

from __future__ import annotations

import enum
import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final, Self, final

from dask.delayed import Delayed

from daskgmm import steps
from daskgmm.errors import PlaceError, StoreError
from daskgmm.execution import cluster
from daskgmm.storage.glance import DESCRIPTION
from daskgmm.storage.retry import ask_files, check_free, patiently
from daskgmm.storage.urls import beside, files_of, is_local, remove_tree, replace_folder

Identity = Mapping[str, Any]
"""What an output is, by names that the user knows: values that JSON can hold."""
_REQUESTS: Final = 16
"""Objects that are copied or removed at once."""
_ASIDE: Final = ".new-"
"""Before the name of what is to replace an output."""


@final
@dataclass(frozen=True, slots=True)
class Written:
    """What came of writing an output.

    Attributes
    ----------
    n_rows : int
    n_parts : int
        Chunks or shards, or files.
    n_found : int
        Parts that were there already, from a run that was interrupted.
    """

    n_rows: int
    n_parts: int
    n_found: int


@final
@dataclass(frozen=True, slots=True)
class Standing:
    """How far an output is.

    Attributes
    ----------
    n_parts, n_missing : int
        Parts in all, and those that are not there.
    complete : bool
        Whether it says that it is whole.
    """

    n_parts: int
    n_missing: int
    complete: bool


@final
@dataclass(frozen=True)
class Work:
    """What is to be written, and what makes it this output and no other.

    Attributes
    ----------
    identity : mapping
        By names that the user knows. The unfinished output of the same work is gone on
        with.
    versions : callable
        A digest of what the data's store tells of the rows from one to another: a part
        of rows that were changed since is written anew.
    overwrite : bool
        Whether another output of this package is replaced, once this one is complete.
    """

    identity: Identity
    overwrite: bool
    versions: Callable[[float, float], str] = lambda _first, _stop: ""


class OutputPlace(ABC):
    """Where an output goes, and how it is laid out there."""

    url: str
    layout: Mapping[str, Any]

    @property
    @abstractmethod
    def n_parts(self) -> int:
        """Parts that there are to be."""

    @abstractmethod
    def description(self) -> dict[str, Any] | None:
        """What the output there says of itself; None if there is nothing.

        Raises
        ------
        PlaceError
            If there is something that must never be replaced.
        """

    @abstractmethod
    def describe(self, description: Mapping[str, Any]) -> None:
        """Let the output say something else of itself."""

    @abstractmethod
    def create(self, description: Mapping[str, Any]) -> None:
        """Begin an output where nothing is, or what a write left that broke off."""

    @abstractmethod
    def missing(self) -> list[int]:
        """Numbers of the parts that are not there."""

    @abstractmethod
    def remove(self, parts: Iterable[int]) -> None:
        """Remove parts that are there."""

    @abstractmethod
    def remove_broken(self) -> None:
        """Remove parts that cannot be read: a machine that fell may leave such."""

    @property
    @abstractmethod
    def document(self) -> str:
        """Name of the object that has the description."""

    def contents(self) -> dict[str, Any]:
        """What a complete output says in addition."""
        return {}

    def aside(self) -> Self:
        """A place beside this one, for what replaces the output here."""
        return replace(self, url=beside(self.url, _ASIDE))  # type: ignore[type-var]


class _How(enum.Enum):
    """How an output comes to its place."""

    NEW = "nothing is there"
    GO_ON = "its unfinished like is there"
    REPLACE = "another one is there"


def write_output(
    output: OutputPlace,
    write: Callable[[OutputPlace, int, str], Delayed],
    bounds: Callable[[int], tuple[float, float]],
    work: Work,
) -> int:
    """Write what is missing of an output; return how many parts were there."""
    check_free(output.url)
    said = {
        "identity": as_json(work.identity),
        "layout": as_json(output.layout),
        "versions": [work.versions(*bounds(part)) for part in range(output.n_parts)],
    }
    aside = output.aside()
    found, set_aside = output.description(), aside.description()
    how = how_to_write(output, found, said["identity"], work.overwrite, said["layout"])
    is_left = set_aside is not None and _is_same(set_aside, said)
    if how is not _How.REPLACE and not (is_left and how is _How.NEW):
        return _write_parts(output, found, write, said)
    if set_aside is not None and not is_left:
        # Of another command, which nobody goes on with.
        patiently(lambda: remove_tree(aside.url), aside.url)
        set_aside = None
    try:
        n_found = _write_parts(aside, set_aside, write, said)
    except BaseException as error:
        error.add_note(f"Until then {output.url} stays as it is.")
        raise
    _move(aside, output)
    return n_found


def _is_same(found: Mapping[str, Any], said: Mapping[str, Any]) -> bool:
    """Whether an output that was found is of the same work."""
    return all(found.get(name) == said[name] for name in ("identity", "layout"))


def _write_parts(
    output: OutputPlace,
    found: Mapping[str, Any] | None,
    write: Callable[[OutputPlace, int, str], Delayed],
    said: Mapping[str, Any],
) -> int:
    """Write what is missing at a place; return how many parts were there."""
    run = uuid.uuid4().hex
    begun = {**said, "complete": False, "run": run}
    if found is None:
        output.create(begun)
    else:
        changed = [
            part
            for part, (was, now) in enumerate(
                zip(found.get("versions", ()), said["versions"], strict=False)
            )
            if was != now
        ]
        output.remove(changed)
        output.describe(begun)
        output.remove_broken()
    parts = output.missing()
    n_found = output.n_parts - len(parts)
    try:
        works = [write(output, part, run) for part in parts]
        steps.begin("writing parts")
        for done, _ in enumerate(cluster.each(works), start=n_found + 1):
            steps.advance(done, output.n_parts, n_found)
        if lost := output.missing():
            raise StoreError(f"{len(lost)} parts that were written are not there.")
    except BaseException as error:
        error.add_note(
            f"{output.url} is not complete. Give the same command again to resume "
            "it, or remove it."
        )
        raise
    output.describe({**said, "complete": True, **output.contents()})
    return n_found


def _move(source: OutputPlace, target: OutputPlace) -> None:
    """Put a complete output in the place of another, which goes."""
    files, _ = files_of(target.url)
    if is_local(files):
        replace_folder(source.url, target.url)
        return
    # At no time must a mixture of both look whole: what says that it is comes last.
    if target.description() is not None:
        target.describe({"complete": False})
        remove_all(target.url, set(names_at(target.url)) - {target.document})
    _copy_all(source, target)
    patiently(lambda: remove_tree(source.url), source.url)


def _copy_all(source: OutputPlace, target: OutputPlace) -> None:
    """Copy all objects, what says that they are an output last."""
    _, old = files_of(source.url)
    files, new = files_of(target.url)
    found = ask_files(source.url, lambda files, path: files.find(path))
    names = {str(name).removeprefix(old) for name in found}
    last = {f"/{source.document}"}

    def copy(name: str) -> None:
        # Each by itself: of many objects, one always fails if one in a thousand does.
        patiently(lambda: files.cp_file(old + name, new + name), target.url + name)

    _all_at_once(copy, names - last)
    _all_at_once(copy, last)


def how_to_write(
    output: OutputPlace,
    found: Mapping[str, Any] | None,
    identity: Identity,
    overwrite: bool,
    layout: Any = None,
) -> _How:
    """How an output comes to its place; refuse if it must not."""
    if found is None:
        return _How.NEW
    differing = _differing(found.get("identity", {}), identity)
    if layout is not None:
        differing += _differing(found.get("layout", {}), layout)
    complete = found.get("complete", True)
    if not differing and not (complete and _is_whole(output, found)):
        return _How.GO_ON
    if not complete and not overwrite:
        raise PlaceError(
            f"{output.url} is the unfinished output of another command: "
            f"{'; '.join(differing)}. Give that command again to resume it, "
            "choose another place, or pass --overwrite to replace it."
        )
    if not overwrite:
        raise PlaceError(f"{output.url} exists: pass --overwrite to replace it.")
    return _How.REPLACE


def _is_whole(output: OutputPlace, found: Mapping[str, Any]) -> bool:
    """Whether all parts are there still, of an output that was complete."""
    if "layout" not in found:  # of another version: it is as it says
        return True
    same = replace(output, layout=found["layout"])  # type: ignore[type-var]
    return not same.missing()


def _differing(theirs: Identity, ours: Identity) -> list[str]:
    return [
        f"{name} was {theirs.get(name)!r} and is {ours.get(name)!r}"
        for name in {**ours, **theirs}
        if theirs.get(name) != ours.get(name)
    ]


def as_json(value: Any) -> Any:
    """A value as it comes back from JSON, to be compared."""
    return json.loads(json.dumps(value))


def check_run(found: Mapping[str, Any], url: str, run: str) -> None:
    """Keep what a dead command left on a cluster from writing into a new output."""
    if found.get("run") != run:
        raise StoreError(f"Another command writes to {url} meanwhile.")


def names_at(url: str) -> list[str]:
    """Names of what lies in a folder."""
    entries = ask_files(url, lambda files, path: files.ls(path, detail=False))
    return [str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries]


def remove_all(url: str, names: Iterable[str]) -> None:
    """Remove files of a folder, those that are there."""

    def remove(name: str) -> None:
        place = f"{url}/{name}"
        patiently(lambda: remove_tree(place), place)

    _all_at_once(remove, names)


def _all_at_once(act: Callable[[str], None], names: Iterable[str]) -> None:
    """Do something to each of many objects; stores take as long for one as for many."""
    with ThreadPoolExecutor(_REQUESTS) as pool:
        for _ in pool.map(act, names):
            pass


def said_at(url: str) -> dict[str, Any] | None:
    """What the description beside Parquet files says; None if there is none."""
    try:
        content = ask_files(
            url, lambda files, path: files.cat_file(f"{path}/{DESCRIPTION}")
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    said: dict[str, Any] = json.loads(content)
    return said


def put(url: str, name: str, content: bytes) -> None:
    """Write a file so that it is there whole, or not at all."""

    def put(files: Any, path: str) -> None:
        place = f"{path}/{name}"
        if not is_local(files):
            files.pipe_file(place, content)  # one object, in one request
            return
        files.makedirs(path, exist_ok=True)
        unfinished = f"{path}/.{name}.{uuid.uuid4().hex}"
        files.pipe_file(unfinished, content)
        files.mv(unfinished, place)

    ask_files(url, put)
