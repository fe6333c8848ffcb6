"""Progress as a bar in a notebook: a little HTML, and no widgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from time import perf_counter
from typing import Any, Final, Self, final

from daskgmm.display import words
from daskgmm.display.curves import COLOURS, bounds_svg
from daskgmm.display.seen import Seen
from daskgmm.em.progress import Progress
from daskgmm.em.search import SearchProgress
from daskgmm.steps import Step

_PAUSE: Final = 0.2
"""Seconds between two pictures, at the least."""
_BAR: Final = (
    "display:inline-block;vertical-align:middle;width:16em;height:0.6em;"
    "border-radius:0.3em;background:rgba(128,128,128,0.3);overflow:hidden"
)
_SPAN: Final = '<span style="font-family:monospace">'
"""No `code`: themes give that colours of their own, which not all grounds go with."""
_DONE: Final = f"height:100%;background:{COLOURS[0]}"


@final
class Html:
    """What a notebook shows, and for all else the same as text."""

    def __init__(self, html: str, text: str) -> None:
        self._html, self._text = html, text

    def _repr_mimebundle_(self, **_which: Any) -> Mapping[str, str]:
        return {"text/html": self._html, "text/plain": self._text}


@final
class Notebook:
    """A listener that shows how things stand in the output of a cell.

    Parameters
    ----------
    show : callable
        Called with what is to be seen first; what it returns has an `update`.
    clock : callable
        Seconds since some time.
    """

    def __init__(
        self,
        show: Callable[[Html], Any],
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._show, self._clock = show, clock
        self._handle: Any = None
        self._seen = Seen(clock)
        self._shown = -_PAUSE

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_more: object) -> None:
        self._draw(self._ended(broken=kind is not None))

    def __call__(self, event: object) -> None:
        """Show what is known now, if it is time to."""
        new = isinstance(event, Step) and event.name != self._seen.step.name
        self._seen.hear(event)
        if new or self._clock() - self._shown >= _PAUSE:
            self._shown = self._clock()
            self._draw(self._under_way())

    def _draw(self, picture: Html) -> None:
        if self._handle is None:
            self._handle = self._show(picture)
        else:
            self._handle.update(picture)

    def _under_way(self) -> Html:
        seen = self._seen
        name, said = seen.step.name or "starting", seen.said()
        part = 0.0 if seen.part is None else seen.part
        bar = f'<div style="{_BAR}"><div style="{_DONE};width:{part:.1%}"></div></div>'
        html = (
            f"<div>{_SPAN}{escape(name)} {bar} {part:4.0%}  {escape(said)}</span></div>"
        )
        return Html(html, f"{name} {part:.0%}  {said}")

    def _ended(self, *, broken: bool) -> Html:
        """What stays: where it ended, and the curves."""
        last, time = self._seen.last, words.seconds(self._clock() - self._seen.began)
        how = "interrupted" if broken else "done"
        if last is None:
            return Html(f"<div>{_SPAN}{how}, {time}</span></div>", f"{how}, {time}")
        said = f"{last.n_pass} passes, {time}"
        curves = ""
        if isinstance(last, Progress):
            said = f"{said}, {words.of_bound(last)}"
            curves = bounds_svg([run.bounds for run in last.runs])
        elif isinstance(last, SearchProgress):
            said = f"{said}, {len(last.scored)} candidates"
            curves = bounds_svg([its.run.bounds for its in last.scored])
        line = f"{how}: {said}"
        return Html(f"<div>{_SPAN}{escape(line)}</span><br>{curves}</div>", line)
