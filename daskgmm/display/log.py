"""Progress as lines, where nothing can be drawn: one for each pass, or more."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from threading import Event, RLock, Thread
from time import perf_counter
from typing import Final, Self, final

from daskgmm.display import words
from daskgmm.display.seen import Seen
from daskgmm.em.progress import Progress
from daskgmm.em.search import Criterion, SearchProgress
from daskgmm.steps import Step

PAUSE: Final = 10.0
"""Seconds after which there is a line in the middle of a step, too."""
_LOOKS: Final = 10.0
"""How often it is looked within them whether there should be one."""


@final
class Log:
    """A listener that says a line after each pass, and each ten seconds.

    Within it as a context the latter also where nothing is told to it, as while the
    kernel is compiled.

    Parameters
    ----------
    say : callable
        Prints a line.
    criterion : str, optional
        Of a search.
    pause : float
        Seconds, see `PAUSE`.
    clock : callable
        Seconds since some time.
    """

    def __init__(
        self,
        say: Callable[[str], object],
        criterion: Criterion = "bic",
        *,
        pause: float = PAUSE,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._say, self._criterion, self._clock = say, criterion, clock
        self._pause = pause
        self._seen = Seen(clock)
        self._said = clock()
        self._lock, self._ended = RLock(), Event()
        self._thread: Thread | None = None

    def __enter__(self) -> Self:
        if math.isfinite(self._pause):
            self._thread = Thread(target=self._look, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _look(self) -> None:
        """Say how far the step is where that is long unsaid, until it has ended."""
        with suppress(OSError, ValueError):  # nobody reads on
            while not self._ended.wait(self._pause / _LOOKS):
                with self._lock:
                    if self._seen.step.name and self._is_time:
                        self._print(self._line())

    def __call__(self, event: object) -> None:
        """Say what there is to say."""
        with self._lock:
            self._say_of(event)

    def _say_of(self, event: object) -> None:
        self._seen.hear(event)
        if isinstance(event, Progress):
            self._print(words.pass_line(event))
        elif isinstance(event, SearchProgress):
            self._print(words.search_line(event, self._criterion))
        elif isinstance(event, Step) and event.done != event.of and self._is_time:
            self._print(self._line())

    @property
    def _is_time(self) -> bool:
        return self._clock() - self._said >= self._pause

    def _print(self, line: str) -> None:
        self._said = self._clock()
        self._say(line)

    def _line(self) -> str:
        """How far the step is."""
        seen = self._seen
        part = "" if seen.part is None else f"{seen.part:.0%} done"
        elapsed = seen.elapsed
        since = f"{words.seconds(elapsed)} so far" if elapsed >= 1.0 else "has begun"
        left = "" if seen.left is None else f"about {words.seconds(seen.left)} to go"
        return f"{seen.step.name}: " + ", ".join(filter(None, [part, since, left]))
