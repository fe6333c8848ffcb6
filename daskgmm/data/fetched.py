"""A file of another machine, whose pieces are fetched before they are asked for."""

from __future__ import annotations

import io
import os
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, NamedTuple, final

from daskgmm.data.signed import Pieces
from daskgmm.execution.forking import after_fork

AHEAD_BYTES: Final = 48_000_000
"""What a file takes that is fetched, or coming, and not yet read."""
_AT_ONCE: Final = 8
"""Requests of a process: to wait for one takes no time of a processor."""

_free: Final[deque[bytearray]] = deque(maxlen=4)
"""Memory of ranges that were read, for the next ones."""
_pools: Final[list[ThreadPoolExecutor]] = []
after_fork(_pools.clear)  # its threads are not the child's


class Range(NamedTuple):
    """Bytes of a file that will be wanted.

    Attributes
    ----------
    part : int
        Parts of the file are read one after the other.
    first, n_bytes : int
    """

    part: int
    first: int
    n_bytes: int


@final
@dataclass(frozen=True, slots=True)
class _Coming:
    """A range, and what will be there."""

    range: Range
    content: Future[memoryview]


@final
class FetchedFile(io.RawIOBase):
    """A file to be read, from which what is planned is fetched beforehand.

    Inside a range it is read from its beginning to its end, and then let go.

    Parameters
    ----------
    pieces : Pieces
    """

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._position = 0
        self._planned: deque[Range] = deque()
        self._firsts: list[int] = []
        self._coming: dict[int, _Coming] = {}
        self._n_bytes = 0

    def readable(self) -> bool:
        """Whether it can be read: yes."""
        return True

    def seekable(self) -> bool:
        """Whether it can be read from anywhere: yes."""
        return True

    def tell(self) -> int:
        """Where it is read next."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Read from elsewhere next."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: -1}[whence]
        self._position = offset + (self._pieces.size if base < 0 else base)
        return self._position

    def plan(self, ranges: Iterable[Range]) -> None:
        """Have ranges fetched, in this order, after those that were planned before."""
        self._planned.extend(ranges)
        self._fetch_on()

    def read(self, size: int | None = -1) -> bytes:
        """Bytes from here on, as many as are asked for if there are so many."""
        left = max(0, self._pieces.size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        found = []
        while wanted:
            found.append(self._next(wanted))
            self._position += len(found[-1])
            wanted -= len(found[-1])
        self._fetch_on()
        return found[0] if len(found) == 1 else b"".join(found)

    def close(self) -> None:
        """Fetch no more."""
        self._planned.clear()
        for coming in self._coming.values():
            coming.content.cancel()
        self._coming.clear()
        self._pieces.close()
        super().close()

    def _next(self, most: int) -> bytes:
        """Bytes from here on, of one range; at least one."""
        coming = self._covering(self._position)
        if coming is None:
            found = bytearray(most)
            self._pieces.read_into(self._position, memoryview(found))
            return bytes(found)
        self._forget_before(coming.range.part - 1)
        content, of = coming.content.result(), coming.range
        begin = self._position - of.first
        # A copy: the memory is used again.
        copied = bytes(content[begin : begin + most])
        if begin + most >= of.n_bytes:
            self._forget(of)
            _give_back(content)
        return copied

    def _covering(self, position: int) -> _Coming | None:
        """The range that a place is in, if it is a range's."""
        at = bisect_right(self._firsts, position) - 1
        if at >= 0:
            coming = self._coming[self._firsts[at]]
            if position < coming.range.first + coming.range.n_bytes:
                return coming
        for one in self._planned:
            if one.first <= position < one.first + one.n_bytes:
                self._planned.remove(one)
                return self._fetch(one)
        return None

    def _fetch_on(self) -> None:
        while self._planned and self._n_bytes < AHEAD_BYTES:
            self._fetch(self._planned.popleft())

    def _fetch(self, of: Range) -> _Coming:
        content = _pool().submit(_fetched, self._pieces, of)
        coming = _Coming(of, content)
        self._coming[of.first] = coming
        insort(self._firsts, of.first)
        self._n_bytes += of.n_bytes
        return coming

    def _forget(self, of: Range) -> None:
        del self._coming[of.first]
        self._firsts.remove(of.first)
        self._n_bytes -= of.n_bytes

    def _forget_before(self, part: int) -> None:
        """Let go what nobody has read to its end."""
        for of in [coming.range for coming in self._coming.values()]:
            if of.part < part:
                self._forget(of)


def _fetched(pieces: Pieces, of: Range) -> memoryview:
    memory = _memory(of.n_bytes)
    pieces.read_into(of.first, memory)
    return memory


def _memory(n_bytes: int) -> memoryview:
    """Memory that was given back, or new: which takes the system long to clear."""
    for _ in range(len(_free)):
        try:
            memory = _free.popleft()
        except IndexError:  # another thread was faster
            break
        if len(memory) >= n_bytes:
            return memoryview(memory)[:n_bytes]
        _free.append(memory)
    return memoryview(bytearray(n_bytes))


def _give_back(memory: memoryview) -> None:
    _free.append(memory.obj)  # type: ignore[arg-type]


def _pool() -> ThreadPoolExecutor:
    if not _pools:
        _pools.append(ThreadPoolExecutor(_AT_ONCE, "daskgmm-fetch"))
    return _pools[0]
