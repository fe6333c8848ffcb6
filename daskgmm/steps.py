"""What is going on, told to whoever listens: steps by name, and how far they are.

Nothing is told where nobody listens, and nobody is told of what other threads do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, final

Listener = Callable[[object], None]
"""What is told of each `Step`, and of what else it may know."""


COMPILING: Final = "compiling the kernel"
"""The name of that step, and of the topic by which workers of a cluster tell of it."""
WAITING: Final = "waiting for workers"
"""The name of what goes on where a cluster has none that could begin a task."""


@final
@dataclass(frozen=True, slots=True)
class Step:
    """Where some work stands.

    Attributes
    ----------
    name : str
        Such as "counting rows".
    done : int
        How many of its parts are done.
    of : int or None
        How many there are, if that is known.
    found : int
        How many were done before it began, as by a command that broke off.
    """

    name: str
    done: int = 0
    of: int | None = None
    found: int = 0


_listener: Final[ContextVar[Listener | None]] = ContextVar("listener", default=None)
_name: Final[ContextVar[str]] = ContextVar("name", default="")


@contextmanager
def told_to(*listeners: Listener) -> Iterator[None]:
    """Tell listeners of all that is done within, instead of others."""

    def listener(event: object) -> None:
        for its in listeners:
            its(event)

    token, before = _listener.set(listener), _name.set("")
    try:
        yield
    finally:
        _name.reset(before)
        _listener.reset(token)


@contextmanager
def silently(name: str | None = None) -> Iterator[None]:
    """Tell nothing of what is done within: it is a part of a step, and of no size.

    Or a step of its own, of which only the name is told.
    """
    if name is not None:
        begin(name)
    token = _listener.set(None)
    try:
        yield
    finally:
        _listener.reset(token)


def is_told() -> bool:
    """Whether anybody listens."""
    return _listener.get() is not None


def tell(event: object) -> None:
    """Tell the listener, if there is one."""
    listener = _listener.get()
    if listener is not None:
        listener(event)


def begin(name: str) -> None:
    """Begin a step, and end the one before."""
    if is_told():
        _name.set(name)
        tell(Step(name))


def advance(done: int, of: int, found: int = 0) -> None:
    """Say how far the step is, of which some was found done."""
    if is_told():
        tell(Step(_name.get(), done, of, found))


@contextmanager
def within(name: str) -> Iterator[None]:
    """Another step, in the middle of one that goes on afterwards."""
    before = _name.get()
    begin(name)
    try:
        yield
    finally:
        begin(before)
