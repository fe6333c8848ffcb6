"""Blocks read ahead, in a thread beside the one that works on them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from functools import partial
from typing import Final, ParamSpec, Self, TypeVar, final

from daskgmm.data.block import Block
from daskgmm.execution.forking import forget_thread

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")

_HANDED_BYTES: Final = 1_000_000
"""Small blocks that are read ahead change threads together."""


_thread: Final = threading.local()
forget_thread(_thread)  # its reader is a thread


def in_reading_thread(
    function: Callable[Arguments, Returned],
    *args: Arguments.args,
    **kwargs: Arguments.kwargs,
) -> Future[Returned]:
    """Have it called by the thread that reads for this one, kept from pass to pass.

    New threads would each take memory from another of the allocator's arenas, and
    every arena keeps some of what was freed. The context is that of this thread:
    what reads a block may ask Dask for the worker that it is on.
    """
    if not hasattr(_thread, "reader"):
        _thread.reader = ThreadPoolExecutor(1, "daskgmm-reader")
    reader: ThreadPoolExecutor = _thread.reader
    return reader.submit(copy_context().run, partial(function, *args, **kwargs))


@final
class ReadAhead:
    """Blocks that another thread makes while the last ones are worked on.

    It begins at once, before the first one is asked for.

    Parameters
    ----------
    blocks : generator of Block
    n_blocks : int
        How many of them are wanted.
    """

    def __init__(self, blocks: Generator[Block], n_blocks: int) -> None:
        self._blocks, self._left = blocks, n_blocks
        self._ready: deque[Block] = deque()
        self._coming = self._read_on()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Block:
        if not self._ready:
            if self._coming is None:
                raise StopIteration
            self._ready = self._coming.result()
            self._left -= len(self._ready)
            # By the thread that reads for whoever asks: not always that which began.
            self._coming = self._read_on() if self._ready else None
            if not self._ready:
                raise StopIteration
        # Passed on without a name here, which would keep it alive.
        return self._ready.popleft()

    def _read_on(self) -> Future[deque[Block]] | None:
        # What nobody wants is not waited for: the thread may have other work by then.
        return in_reading_thread(_take, self._blocks) if self._left > 0 else None

    def close(self) -> None:
        """Stop reading."""
        if self._coming is not None:
            wait([self._coming])
        self._ready.clear()
        self._blocks.close()


def _take(blocks: Generator[Block]) -> deque[Block]:
    """The next block, or several small ones: to change threads for each costs more."""
    taken: deque[Block] = deque()
    n_bytes = 0
    for block in blocks:
        taken.append(block)
        n_bytes += block.x.nbytes
        if n_bytes >= _HANDED_BYTES:
            break
    return taken
