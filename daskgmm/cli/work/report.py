"""What commands tell: lines and progress for people, or JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, final

import click
from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from daskgmm.display.log import Log
from daskgmm.display.terminal import Bar
from daskgmm.display.words import number
from daskgmm.em.search import Criterion, Scored, SearchProgress
from daskgmm.steps import Listener, Step, told_to


@final
class Report:
    """Where a command tells what it does and what came of it.

    Parameters
    ----------
    as_json : bool
        Whether a JSON object is all that goes to stdout, and all else to stderr.
    """

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self.console = Console(stderr=as_json)

    def say(self, line: str) -> None:
        """Print a line, neither wrapped nor coloured, in a terminal and in a log."""
        self.console.print(line, soft_wrap=True, highlight=False, markup=False)

    def end(self, **facts: Any) -> None:
        """Say what came of it, for programs."""
        if self._as_json:
            plain = {name: _finite(value) for name, value in facts.items()}
            click.echo(json.dumps(plain, allow_nan=False))

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
        """Print a table: of a log, as lines of any width, which nothing cuts."""
        if self.console.is_terminal:
            table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
            for row in rows:
                table.add_row(*row)
            self.console.print(table)
            return
        names = [str(column.header) for column in columns]
        widths = [max(map(len, cells)) for cells in zip(names, *rows, strict=True)]
        for row in (names, *rows):
            cells = [
                cell.rjust(width) if column.justify == "right" else cell.ljust(width)
                for cell, width, column in zip(row, widths, columns, strict=True)
            ]
            self.say("  ".join(cells).rstrip())

    def steps(self, *listeners: Listener) -> AbstractContextManager[None]:
        """Show what goes on, from the start of workers on; others listen, too."""
        return self._told(lambda _last: None, listeners=listeners)

    def search(self, criterion: Criterion) -> AbstractContextManager[None]:
        """Show the passes of a search, and what is known of each candidate."""

        def table(last: object) -> Table | None:
            if not isinstance(last, SearchProgress):
                return None
            return candidates_table(last.scored, criterion)

        return self._told(table, criterion)

    @contextmanager
    def _told(
        self,
        above: Callable[[object], Table | None],
        criterion: Criterion = "bic",
        listeners: Sequence[Listener] = (),
    ) -> Iterator[None]:
        """Print a line for each pass, and in a terminal draw a bar below them."""
        resumed = _Resumed(self)
        if not self.console.is_terminal:
            with Log(self.say, criterion) as log, told_to(resumed, log, *listeners):
                yield
            return
        lines = Log(self.say, criterion, pause=math.inf)
        with (
            Bar(self.console, above) as bar,
            told_to(resumed, lines, bar, *listeners),
        ):
            yield


def _finite(value: Any) -> Any:
    """A value that JSON has: it has neither infinity nor NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


@final
class _Resumed:
    """Says where a fit was taken up."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._first = True

    def __call__(self, event: object) -> None:
        """Take note of a pass that begins."""
        if not (self._first and isinstance(event, Step)):
            return
        what, _, which = event.name.partition(" ")
        if what != "pass":
            return
        self._first = False
        if (before := int(which) - 1) > 0:
            self._report.say(f"Resuming from the checkpoint after pass {before}.")


def candidates_table(scored: Sequence[Scored], criterion: Criterion) -> Table:
    """A row for each number of components, and a column for each other choice.

    The cells have the criterion, or what is going on; the best one stands out.
    """
    rows: dict[int, dict[str, Text]] = {}
    best = min(scored, key=lambda its: its.loss(criterion))
    for its in scored:
        column = its.covariance_type
        prior = its.weight_concentration
        if prior is not None:
            is_default = prior * its.n_components == 1.0
            column = f"{column}, {'1 / K' if is_default else format(prior, 'g')}"
        said = number(criterion, its.value(criterion)) or its.status.value
        style = "dim" if its.fit is None else "bold green" if its is best else ""
        rows.setdefault(its.n_components, {})[column] = Text(said, style)
    columns = [*dict.fromkeys(name for cells in rows.values() for name in cells)]
    table = Table(
        Column("components", justify="right"),
        *(Column(name, justify="right") for name in columns),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for n_components, cells in rows.items():
        there = (cells.get(name, Text()) for name in columns)
        table.add_row(str(n_components), *there)
    return table
