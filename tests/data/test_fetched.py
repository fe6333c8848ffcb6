"""Files of other machines: what is fetched beforehand, and how much."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskgmm.data import fetched
from daskgmm.data.fetched import FetchedFile, Range

CONTENT = np.random.default_rng(0).bytes(10_000)


class Held:
    """Pieces of what is in memory; they are counted."""

    def __init__(self, content=CONTENT):
        self.content, self.size = content, len(content)
        self.asked = []

    def read_into(self, first, memory):
        self.asked.append((first, len(memory)))
        memory[:] = self.content[first : first + len(memory)]

    def close(self):
        pass


@st.composite
def columns(draw):
    """Columns of parts of a file, cut into pieces, and in which order each is read."""
    cuts = draw(st.lists(st.integers(1, 9_999), min_size=1, max_size=8, unique=True))
    bounds = [0, *sorted(cuts), 10_000]
    piece = draw(st.integers(50, 3_000))
    return [
        [(at, min(piece, stop - at)) for at in range(first, stop, piece)]
        for first, stop in pairwise(bounds)
    ]


@settings(max_examples=100)
@given(columns(), st.integers(10, 700), st.integers(100, 4_000), st.data())
def test_what_is_read_is_the_file_however_it_is_planned(cut, step, ahead, data):
    """Columns are read side by side, some of them unplanned."""
    planned = data.draw(st.lists(st.sampled_from(range(len(cut))), unique=True))
    ranges = [Range(0, *piece) for j in planned for piece in cut[j]]
    pieces = Held()
    with pytest.MonkeyPatch.context() as patch, FetchedFile(pieces) as file:
        patch.setattr(fetched, "AHEAD_BYTES", ahead)
        file.plan(data.draw(st.permutations(ranges)))
        at = {j: column[0][0] for j, column in enumerate(cut)}
        stops = [sum(column[-1]) for column in cut]
        while at:
            j = data.draw(st.sampled_from(sorted(at)))
            file.seek(at[j])
            n_bytes = min(step, stops[j] - at[j])
            assert file.read(n_bytes) == CONTENT[at[j] : at[j] + n_bytes]
            at[j] += n_bytes
            if at[j] == stops[j]:
                del at[j]
        assert not file._coming and not file._planned
        assert file._n_bytes == 0
    for one in ranges:
        assert pieces.asked.count((one.first, one.n_bytes)) == 1


def test_no_more_is_fetched_ahead_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(fetched, "AHEAD_BYTES", 1_000)
    file = FetchedFile(Held())
    file.plan(Range(0, first, 200) for first in range(0, 10_000, 200))
    for position in range(0, 10_000, 100):
        assert file._n_bytes <= 1_000
        file.seek(position)
        assert file.read(100) == CONTENT[position : position + 100]
    assert file._n_bytes == 0
    file.close()


def test_what_nobody_reads_of_parts_before_is_let_go():
    with FetchedFile(Held()) as file:
        file.plan(Range(part, 1_000 * part, 1_000) for part in range(4))
        file.seek(3_500)
        assert file.read(10) == CONTENT[3_500:3_510]
        assert sorted(file._coming) == [2_000, 3_000]


def test_it_is_a_file():
    with FetchedFile(Held()) as file:
        assert file.readable() and file.seekable() and not file.writable()
        assert file.read() == CONTENT
        assert file.read() == b""
        assert file.seek(-10, os.SEEK_END) == 9_990
        assert file.read(100) == CONTENT[-10:]
        assert file.seek(-20, os.SEEK_CUR) == file.tell() == 9_980


def test_an_error_comes_to_whoever_reads_and_a_closed_file_fetches_no_more():
    class Gone(Held):
        def read_into(self, first, memory):
            raise ConnectionError("gone")

    file = FetchedFile(Gone())
    file.plan([Range(0, 0, 1_000)])
    with pytest.raises(ConnectionError, match="gone"):
        file.read(10)
    file.close()

    class Slow(Held):
        wait = threading.Event()

        def read_into(self, first, memory):
            super().read_into(first, memory)
            self.wait.wait(20)

    slow = Slow()
    file = FetchedFile(slow)
    file.plan(Range(0, first, 100) for first in range(0, 10_000, 100))
    file.close()
    slow.wait.set()
    fetched._pool().submit(int).result()
    assert len(slow.asked) <= fetched._AT_ONCE


def _child(queue):
    with FetchedFile(Held()) as file:
        file.plan([Range(0, 0, 1_000)])
        queue.put(file.read(1_000) == CONTENT[:1_000])


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is forked there")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_fetches_with_threads_of_its_own():
    fetched._pool().submit(int).result()
    fork = multiprocessing.get_context("fork")
    queue = fork.SimpleQueue()
    process = fork.Process(target=_child, args=(queue,))
    process.start()
    process.join(30)
    assert process.exitcode == 0 and queue.get()
