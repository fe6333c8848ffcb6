"""Progress as a bar in a terminal, below what is printed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Self, final

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from daskgmm.display.seen import Seen

_PARTS: Final = 1000
"""What a whole step counts as."""


@final
class _Bar(Progress):
    """A bar, above it what else is to be seen, and below it how things stand.

    Beside the bar there would be no room for that in most terminals.
    """

    above: Callable[[], RenderableType | None] = staticmethod(lambda: None)
    said: str = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """What rich draws, from top to bottom."""
        if (above := self.above()) is not None:
            yield above
        yield from super().get_renderables()
        yield Text(self.said)


@final
class Bar:
    """A listener that draws how far the step is, and how things stand.

    Parameters
    ----------
    console : Console
        A terminal.
    above : callable, optional
        What is to be seen above the bar, if anything, by what was told last.
    """

    def __init__(
        self,
        console: Console,
        above: Callable[[Any], RenderableType | None] = lambda _last: None,
    ) -> None:
        self._seen = Seen()
        self._bar = _Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            console=console,
            transient=True,
        )
        self._bar.above = lambda: above(self._seen.last)
        self._task = self._bar.add_task("starting", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.stop()

    def __call__(self, event: object) -> None:
        """Draw what is known now."""
        self._seen.hear(event)
        seen = self._seen
        part = seen.part
        self._bar.said = seen.said()
        self._bar.update(
            self._task,
            description=seen.step.name or "starting",
            completed=0 if part is None else round(part * _PARTS),
        )
        # Without a total, the bar says that something goes on.
        self._bar.tasks[0].total = None if part is None else _PARTS
