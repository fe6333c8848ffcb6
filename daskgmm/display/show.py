"""Progress, wherever this is: in a notebook, in a terminal, or in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from rich.console import Console

from daskgmm.display.log import Log
from daskgmm.display.notebook import Html, Notebook
from daskgmm.display.terminal import Bar
from daskgmm.steps import Listener, told_to


@contextmanager
def progress() -> Iterator[None]:
    """Show how fits, and searches, within it progress.

    In a terminal a bar: what is done, how much of it, rows and bytes in a second, the
    bound and its change, how many starts are still running, and how long the rest may
    take. In a notebook the same, and at the end the curve of the bounds. Elsewhere, as
    in a log, a line after each pass, and each ten seconds.

    Examples
    --------
    >>> import daskgmm
    >>> with daskgmm.progress():  # doctest: +SKIP
    ...     model = daskgmm.GaussianMixture(8).fit("rows.zarr")
    """
    with _display() as listener, told_to(listener):
        yield


def _display() -> AbstractContextManager[Listener]:
    show = _show_in_notebook()
    if show is not None:
        return Notebook(show)
    console = Console(stderr=True)
    if console.is_terminal:
        return Bar(console)
    return Log(_print)


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _show_in_notebook() -> Any:
    """What shows something in the output of a cell, if this is a notebook."""
    ipython = sys.modules.get("IPython")  # who is in a notebook has loaded it
    shell = None if ipython is None else ipython.get_ipython()
    if getattr(shell, "kernel", None) is None:
        return None
    from IPython.display import display

    def show(picture: Html) -> Any:
        return display(picture, display_id=True)  # type: ignore[no-untyped-call]

    return show
