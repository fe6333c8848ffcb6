"""What commands tell: lines and progress for people, or JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from time import perf_counter
from typing import Any, Final, TypeVar, final

import click
from dask.utils import format_bytes
from rich import box
from rich.console import Console, RenderableType
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

from daskgmm.demo import run as demo
from daskgmm.em.progress import Progress as Pass
from daskgmm.em.search import Criterion, Scored, SearchProgress
from daskgmm.em.state import Status

_AnyPass = TypeVar("_AnyPass", Pass, SearchProgress)

_PAUSE: Final = 10.0
"""Seconds between two lines of progress where no bar can be drawn."""


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

    def passes(
        self, most: int, tol: float
    ) -> AbstractContextManager[Callable[[Pass], None]]:
        """Show the passes of a fit, of which there are so many at most."""
        return self._passes(
            "passes, at most",
            lambda progress: _pass_line(progress, most, tol),
            lambda progress: (progress.n_pass, most),
        )

    def search(
        self, criterion: Criterion
    ) -> AbstractContextManager[Callable[[SearchProgress], None]]:
        """Show the passes of a search, and what is known of each candidate."""
        return self._passes(
            "candidates that have ended",
            lambda progress: _search_line(progress, criterion),
            lambda progress: (_n_ended(progress), len(progress.scored)),
            lambda progress: candidates_table(progress.scored, criterion),
        )

    @contextmanager
    def _passes(
        self,
        what: str,
        line: Callable[[_AnyPass], str],
        done: Callable[[_AnyPass], tuple[int, int]],
        table: Callable[[_AnyPass], Table] | None = None,
    ) -> Iterator[Callable[[_AnyPass], None]]:
        """Print a line for each pass, above a bar of how many things are done.

        And above that, in a terminal, a table that changes with each pass.
        """
        resumed = _Resumed(self)
        with self._bar("finding starts") as bar:
            task = None if bar is None else bar.add_task("finding starts", total=None)

            def observe(progress: _AnyPass) -> None:
                resumed.observe(progress.n_pass)
                self.say(line(progress))
                if bar is not None and task is not None:
                    n, of = done(progress)
                    bar.update(task, completed=n, total=of, description=what)
                    bar.show(None if table is None else table(progress))

            yield observe

    @contextmanager
    def _bar(self, what: str) -> Iterator[_Bar | None]:
        if not self.console.is_terminal:
            yield None
            return
        with _Bar(
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


@final
class _Bar(Progress):
    """A bar, and above it what else is to be seen."""

    _above: Table | None = None

    def show(self, above: Table | None) -> None:
        """Show something above the bar, instead of what was there."""
        self._above = above
        self.refresh()

    def get_renderables(self) -> Iterable[RenderableType]:
        """What rich draws, from top to bottom."""
        if self._above is not None:
            yield self._above
        yield from super().get_renderables()


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

    def observe(self, n_pass: int) -> None:
        """Take note of a pass."""
        if self._first and n_pass > 1:
            self._report.say(f"Going on from the checkpoint after pass {n_pass - 1}.")
        self._first = False


def _pass_line(progress: Pass, most: int, tol: float) -> str:
    read = f"{format_bytes(progress.n_bytes)} read"
    line = f"{demo.progress_line(progress)}  {read}  {seconds(progress.seconds)}"
    if not progress.n_live:
        return line
    left, likely = most - progress.n_pass, progress.likely_passes(tol)
    if likely is not None and likely < left:
        return f"{line}, about {seconds(likely * progress.seconds)} to go"
    return f"{line}, at most {seconds(left * progress.seconds)} to go"


def _search_line(progress: SearchProgress, criterion: Criterion) -> str:
    batches = (
        f"  batch {progress.batch + 1} of {progress.n_batches}"
        if progress.n_batches > 1
        else ""
    )
    line = (
        f"pass {progress.n_pass:>3}{batches}  "
        f"{_n_ended(progress)} of {len(progress.scored)} candidates have ended  "
        f"{progress.n_rows / progress.seconds:,.0f} rows/s  "
        f"{format_bytes(progress.n_bytes)} read  {seconds(progress.seconds)}"
    )
    best = min(progress.scored, key=lambda its: its.loss(criterion))
    if best.fit is None:
        return line
    said = candidate(best.n_components, best.covariance_type, best.weight_concentration)
    value = number(criterion, best.value(criterion))
    return f"{line}, best so far: {said} ({criterion} {value})"


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


def _n_ended(progress: SearchProgress) -> int:
    return sum(map(_has_ended, progress.scored))


def _has_ended(scored: Scored) -> bool:
    """Whether nothing of a candidate goes on; its best run may end before others."""
    return scored.fit is not None or scored.status in (Status.FAILED, Status.OUTDONE)


def candidate(
    n_components: int, covariance_type: str, concentration: float | None = None
) -> str:
    """What a mixture is among others, for people."""
    s = "" if n_components == 1 else "s"
    prior = "" if concentration is None else f", weight concentration {concentration:g}"
    return f"{n_components} component{s} and {covariance_type} covariance{s}{prior}"


def number(criterion: str, value: float) -> str:
    """A criterion's value as ``daskgmm score`` prints it; nothing if it is NaN."""
    if math.isnan(value):
        return ""
    # Of all rows together, or of one.
    return f"{value:.6f}" if criterion == "held_out" else f"{value:.3f}"


def seconds(time: float) -> str:
    """A time for people."""
    if time < 100:
        return f"{time:.1f} s" if time >= 0.1 else f"{1000 * time:.0f} ms"
    minutes, rest = divmod(round(time), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


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
        if now - self._said < _PAUSE and done < of:
            return
        self._said = now
        left = (now - self._began) / (done - self._before) * (of - done)
        to_go = f", {seconds(left)} to go" if done < of else ""
        self._report.say(f"{done:,} of {of:,} {self._what}{to_go}")
