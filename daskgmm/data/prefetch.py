"""Blocks read ahead, in a thread beside the one that works on them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Final

from daskgmm.data.block import Block
from daskgmm.execution.forking import forget_thread

_HANDED_BYTES: Final = 1_000_000
"""Small blocks that are read ahead change threads together."""


_thread: Final = threading.local()
forget_thread(_thread)  # its reader is a thread


def reading_thread() -> ThreadPoolExecutor:
    """The thread that reads for this one, kept from pass to pass.

    New threads would each take memory from another of the allocator's arenas, and
    every arena keeps some of what was freed.
    """
    if not hasattr(_thread, "reader"):
        _thread.reader = ThreadPoolExecutor(1, "daskgmm-reader")
    reader: ThreadPoolExecutor = _thread.reader
    return reader


def read_ahead(blocks: Generator[Block]) -> Generator[Block]:
    """Make the next blocks in another thread while the last ones are worked on."""
    reader = reading_thread()
    coming = reader.submit(_take, blocks)
    try:
        while ready := coming.result():
            coming = reader.submit(_take, blocks)
            while ready:
                # Passed on without a name here, which would keep it alive.
                yield ready.popleft()
    finally:
        wait([coming])
        blocks.close()


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
