"""What is known of work under way, from all that was told of it."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Final, final

from daskgmm.display import words
from daskgmm.em.progress import Progress
from daskgmm.em.search import SearchProgress
from daskgmm.steps import Step

_KNOWN_FROM: Final = 0.05
"""Part of a step after which its speed is known."""


@final
class Seen:
    """Listens, and says how things stand.

    Parameters
    ----------
    clock : callable
        Seconds since some time.

    Attributes
    ----------
    step : Step
        The newest.
    last : Progress, SearchProgress or None
        After the newest pass.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self.began = self._began = clock()
        self.step = Step("")
        self.last: Progress | SearchProgress | None = None

    def hear(self, event: object) -> None:
        """Take note of a `Step`, or of a pass."""
        if isinstance(event, Step):
            if event.name != self.step.name or event.of is None:  # it begins, or again
                self._began = self._clock()
            self.step = event
        elif isinstance(event, Progress | SearchProgress):
            self.last = event

    @property
    def part(self) -> float | None:
        """How much of the step is done, from 0 to 1; None if that is not known."""
        step = self.step
        return step.done / step.of if step.of and step.done else None

    @property
    def elapsed(self) -> float:
        """Seconds that the step takes so far."""
        return self._clock() - self._began

    @property
    def left(self) -> float | None:
        """Seconds that the step likely takes still; None if that is not known.

        Nothing of its first parts: what comes before them, once, would be taken for
        their speed.
        """
        step = self.step
        if step.of is None or step.of == step.found:
            return None
        part = (step.done - step.found) / (step.of - step.found)
        return self.elapsed * (1.0 - part) / part if part >= _KNOWN_FROM else None

    def said(self) -> str:
        """How things stand, beside the step's name: as of the last pass and this one.

        How long all goes on is said of the passes that follow this one, too.
        """
        last = self.last
        if last is None:
            return f"{words.seconds(self.left)} to go" if self.left else ""
        parts = [words.speed(last.n_rows, last.n_bytes, last.seconds)]
        if isinstance(last, SearchProgress):
            parts.append(words.of_candidates(last))
        else:
            parts = [words.of_bound(last), words.of_runs(last), *parts]
        parts.append(words.to_go(last, self.part or 0.0))
        return "  ".join(filter(None, parts))
