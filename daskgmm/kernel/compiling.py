"""A function that is compiled when it is first called, and kept on disk if it can be.

Numba's cache on disk knows a function by its own file, its bytecode and closure, and by
the processor. So a *stamp* of all that compiled code depends on is in the closure, and
in the names of the files: what was compiled from other sources, or for vectors of
another width, is neither found nor written over.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from importlib.resources import files
from time import perf_counter
from typing import Any, Final, TypeVar, final

import numba
from numba import njit, typeof
from numba.extending import register_jitable

from daskgmm import steps

_Function = TypeVar("_Function", bound=Callable[..., Any])

ASK: Final = -1
"""First argument of a call that asks for the stamp."""

_STAMP_BYTES: Final = 7
"""A stamp is an int64 above zero."""


def for_both(function: _Function) -> _Function:
    """Let a function be called from Python and from compiled functions."""
    same: _Function = register_jitable(function)
    return same


def sources() -> tuple[str, ...]:
    """Names of all Python files of this folder: what is compiled comes from them."""
    names = (file.name for file in files("daskgmm.kernel").iterdir())
    return tuple(sorted(name for name in names if name.endswith(".py")))


def stamp_of(names: Sequence[str], *others: object) -> int:
    """A digest of files of this folder, and of what else compiled code depends on.

    It is 0 where there are no such files, as in an installation without sources.
    """
    if not names:
        return 0
    digest = hashlib.sha256(repr(others).encode())
    try:
        for name in names:
            digest.update(files("daskgmm.kernel").joinpath(name).read_bytes())
    except OSError:
        return 0
    return int.from_bytes(digest.digest()[:_STAMP_BYTES], "big")


@final
class Compiled:
    """A function that Numba compiles once, for one kind of arguments.

    Parameters
    ----------
    make : callable
        Makes the function, from a stamp that it has in its closure, and that it returns
        if its first argument is `ASK`.
    stamp : int
        See `stamp_of`.
    examples : sequence
        The other arguments, of the only kind that is taken.
    options : dict
        Of `numba.njit`.
    """

    def __init__(
        self,
        make: Callable[[int], Callable[..., int]],
        stamp: int,
        examples: Sequence[Any],
        options: dict[str, Any],
    ) -> None:
        self._function = make(stamp)
        # The cache's files are named by it.
        self._function.__qualname__ = f"{self._function.__name__}_{stamp:x}"
        self._stamp, self._options = stamp, options
        self._examples = (ASK, *examples)
        self._lock = threading.Lock()
        self._entry: Any = None

    def __call__(self, *arguments: Any) -> int:
        """Call the function.

        Raises
        ------
        TypeError
            If an argument is not of the kind that is taken.
        """
        entry = self._entry or self._load()
        result: int = entry(*arguments)
        return result

    def _load(self) -> Any:
        message = ""
        with self._lock:
            if self._entry is None:
                began = perf_counter()
                entry, is_kept = self._through_cache()
                if entry is None:
                    entry = njit(**self._options)(self._function)
                    with _told():
                        self._compile(entry)
                if not is_kept:
                    message = _not_kept(perf_counter() - began)
                # Arguments of other kinds are refused from now on.
                entry.disable_compile()
                self._entry = entry
        if message:
            _notify(message)
        return self._entry

    def _through_cache(self) -> tuple[Any, bool]:
        """The function, if it could be loaded or compiled, and whether it is kept.

        Whatever is wrong with a cache, it can be done without.
        """
        entry, is_kept = None, False
        if self._stamp and _may_keep(self._function):
            with suppress(Exception):
                entry = njit(cache=True, **self._options)(self._function)
                known = self._is_known(entry)
                with nullcontext() if known else _told():
                    self._compile(entry)
                is_kept = True
        if entry is not None and not self._is_whole(entry):
            # What is there is damaged, or was written by two processes at once.
            is_kept = False
            with suppress(Exception):
                entry.recompile()
                if not entry.signatures:
                    self._compile(entry)
                is_kept = True
        # What could not be written is compiled nevertheless.
        return (entry if self._is_whole(entry) else None), is_kept

    def _is_known(self, entry: Any) -> bool:
        """Whether it was kept before, by the names of the files."""
        kept = os.listdir(entry.stats.cache_path)
        return any(f"_{self._stamp:x}" in name for name in kept)

    def _is_whole(self, entry: Any) -> bool:
        """Whether there is compiled code, and of this stamp."""
        if entry is None or not entry.signatures:
            return False
        return bool(entry(*self._examples) == self._stamp)

    def _compile(self, entry: Any) -> None:
        entry.compile(tuple(map(typeof, self._examples)))


def _worker() -> Any:
    """The worker of Dask's that this is, or None."""
    # Who is a worker has loaded it.
    distributed = sys.modules.get("distributed")
    try:
        return None if distributed is None else distributed.get_worker()
    except (AttributeError, ValueError):  # half loaded, or no worker
        return None


def _notify(message: str) -> None:
    """Warn the user: on a worker of Dask's, in the processes of its clients."""
    worker = _worker()
    if worker is None:
        warnings.warn(message, stacklevel=2)
    else:
        worker.log_event("warn", message)


@contextmanager
def _told() -> Iterator[None]:
    """Say that the kernel is compiled: here, and to the clients of a worker."""
    worker = _worker()

    def tell(*, begins: bool) -> None:
        if worker is not None:
            worker.log_event(steps.COMPILING, (worker.address, begins))

    tell(begins=True)
    try:
        with steps.within(steps.COMPILING):
            yield
    finally:
        tell(begins=False)


def _may_keep(function: Callable[..., Any]) -> bool:
    """Whether Numba may look for a folder to write to.

    Where nobody knows of a home, it would make one in the working directory, "~".
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~")
    beside = os.path.join(os.path.dirname(function.__code__.co_filename), "__pycache__")
    return os.path.isabs(home) or any(
        folder and _is_writable(folder) for folder in (numba.config.CACHE_DIR, beside)
    )


def _is_writable(folder: str) -> bool:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _not_kept(seconds: float) -> str:
    return (
        f"To compile daskgmm's kernel took about {_roughly(seconds)} s, and each new "
        "process will do it again, as there is no folder where it can be kept. Set the "
        "environment variable NUMBA_CACHE_DIR to a folder that can be written to."
    )


def _roughly(seconds: float) -> int:
    """Seconds to the next of a few numbers, so that all workers say the same."""
    return min((1, 2, 5, 10, 20, 50, 100), key=lambda s: abs(math.log(seconds / s)))
