"""A fitted mixture, and a search, as pieces of HTML that need no style of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any, Final

from numpy.typing import NDArray

from daskgmm.display.curves import bounds_svg

_MOST_ROWS: Final = 20
"""Components, or candidates, that are shown: of thousands nobody reads more."""
_MOST_FEATURES: Final = 6


def fitted(
    weights: NDArray[Any],
    means: NDArray[Any],
    deviations: NDArray[Any],
    names: Sequence[str],
    bounds: Sequence[Sequence[float]],
    facts: Sequence[str],
) -> str:
    """A table of components, the curve of the bounds, and some facts.

    Parameters
    ----------
    weights : ndarray of shape (K,)
    means, deviations : ndarray of shape (K, d)
    names : sequence of str, of length d
    bounds : sequence of sequence of float
        Of each run, by iteration.
    facts : sequence of str
        Said below.
    """
    shown = names[:_MOST_FEATURES]
    head = ["", "weight", *(f"{name} (mean ± sd)" for name in shown)]
    rows = [
        [
            str(k),
            f"{weights[k]:.4f}",
            *(
                mean_and_deviation(means[k, j], deviations[k, j])
                for j in range(len(shown))
            ),
        ]
        for k in range(min(len(weights), _MOST_ROWS))
    ]
    left = [
        _more(len(weights) - len(rows), "component"),
        _more(len(names) - len(shown), "feature"),
    ]
    below = "; ".join(filter(None, [*facts, *left]))
    return _box(table(head, rows) + bounds_svg(bounds), below)


def mean_and_deviation(mean: float, deviation: float) -> str:
    """Both, the mean to as many places as the deviation has."""
    said = f"{mean:.5g}"
    if deviation > 0.0:
        places = 2 - math.floor(math.log10(deviation))
        if 0 <= places <= 9:
            said = f"{round(mean, places) + 0.0:.{places}f}"  # zero has no sign
    return f"{said} ± {deviation:#.3g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts, right-aligned."""
    style = 'style="text-align:right;padding:0.1em 0.6em"'
    heads = "".join(f"<th {style}>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td {style}>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def candidates(head: Sequence[str], rows: Sequence[Sequence[str]], known: str) -> str:
    """The best candidates of a search, and how many there are."""
    more = _more(len(rows) - _MOST_ROWS, "candidate")
    return _box(table(head, rows[:_MOST_ROWS]), "; ".join(filter(None, [known, more])))


def said(text: str) -> str:
    """A line of text."""
    return f"<div><small>{escape(text)}</small></div>"


def _more(n: int, what: str) -> str:
    return "" if n <= 0 else f"{n} more {what}{'' if n == 1 else 's'} not shown"


def _box(content: str, below: str) -> str:
    style = "margin-top:0.5em;overflow-x:auto"
    return f'<div style="{style}">{content}{said(below)}</div>'
