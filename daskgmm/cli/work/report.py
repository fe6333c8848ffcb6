"""What commands tell: lines and progress for people, or JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from time import perf_counter
from typing import Any, final

import click
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from daskgmm.display.log import PAUSE, Log
from daskgmm.display.terminal import Bar
from daskgmm.display.words import number, seconds
from daskgmm.em.search import Criterion, Scored, SearchProgress
from daskgmm.steps import Step, told_to


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

    @contextmanager
    def counting(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Show how many of some things are done, and how long the rest may take."""
        with self._bar(what) as bar:
            if bar is None:
                yield _Lines(self, what).observe
                return
            task = bar.add_task(what, total=None)
            yield lambda done, of: bar.update(task, completed=done, total=of)

    def passes(self) -> AbstractContextManager[None]:
        """Show the passes of a fit, from the start of workers on."""
        return self._told(lambda _last: None)

    def search(self, criterion: Criterion) -> AbstractContextManager[None]:
        """Show the passes of a search, and what is known of each candidate."""

        def table(last: object) -> Table | None:
            if not isinstance(last, SearchProgress):
                return None
            return candidates_table(last.scored, criterion)

        return self._told(table, criterion)

    @contextmanager
    def _told(
        self, above: Callable[[object], Table | None], criterion: Criterion = "bic"
    ) -> Iterator[None]:
        """Print a line for each pass, and in a terminal draw a bar below them."""
        resumed = _Resumed(self)
        if not self.console.is_terminal:
            with Log(self.say, criterion) as log, told_to(resumed, log):
                yield
            return
        lines = Log(self.say, criterion, pause=math.inf)
        with (
            Bar(self.console, above) as bar,
            told_to(resumed, lines, bar),
        ):
            yield

    @contextmanager
    def _bar(self, what: str) -> Iterator[Progress | None]:
        if not self.console.is_terminal:
            yield None
            return
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("to go"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        ) as bar:
            yield bar


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


@final
class _Lines:
    """A line now and then on how much is done."""

    def __init__(self, report: Report, what: str) -> None:
        self._report, self._what = report, what
        self._began = self._said = perf_counter()
        self._before: int | None = None

    def observe(self, done: int, of: int) -> None:
        """Print a line if it is time to, or all is done."""
        if self._before is None:
            self._before = done - 1  # what a run that broke off had done
        now = perf_counter()
        if now - self._said < PAUSE and done < of:
            return
        self._said = now
        left = (now - self._began) / (done - self._before) * (of - done)
        to_go = f", {seconds(left)} to go" if done < of else ""
        self._report.say(f"{done:,} of {of:,} {self._what}{to_go}")
