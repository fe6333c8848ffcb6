"""Progress as lines, where nothing can be drawn: one for each pass, or more."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Final, final

from daskgmm.display import words
from daskgmm.display.seen import Seen
from daskgmm.em.progress import Progress
from daskgmm.em.search import Criterion, SearchProgress
from daskgmm.steps import Step

PAUSE: Final = 10.0
"""Seconds after which there is a line in the middle of a step, too."""


@final
class Log:
    """A listener that says a line after each pass, and each ten seconds.

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

    def __call__(self, event: object) -> None:
        """Say what there is to say."""
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
        part = "" if seen.part is None else f"{seen.part:.0%} read"
        elapsed = seen.elapsed
        since = f"{words.seconds(elapsed)} so far" if elapsed >= 1.0 else "has begun"
        left = "" if seen.left is None else f"about {words.seconds(seen.left)} to go"
        return f"{seen.step.name}: " + ", ".join(filter(None, [part, since, left]))
