"""Curves of bounds as pictures in a page: a few lines of SVG, no library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

import numpy as np

_WIDTH, _HEIGHT, _LEFT, _BELOW = 320, 120, 66, 18
COLOURS: Final = (
    "#2F8AC4",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#8C6BB1",
)
"""After Okabe and Ito (2008): told apart by colour-blind people, on light and dark."""


def bounds_svg(bounds: Sequence[Sequence[float]]) -> str:
    """The bounds of some runs by iteration, as SVG; nothing if there is no curve."""
    curves = [np.asarray(its, dtype=float) for its in bounds]
    curves = [its[np.isfinite(its)] for its in curves]
    curves = [its for its in curves if len(its)]
    if not curves or max(map(len, curves)) < 2:
        return ""
    top = max(its.max() for its in curves)
    low = min(its.min() for its in curves)
    span = (top - low) or 1.0
    steps = max(map(len, curves)) - 1

    def points(its: np.ndarray) -> str:
        across = _LEFT + 4 + np.arange(len(its)) / steps * (_WIDTH - _LEFT - 12)
        down = 8 + (top - its) / span * (_HEIGHT - _BELOW - 16)
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, down, strict=True))

    lines = "".join(
        f'<polyline points="{points(its)}" fill="none" stroke-width="1.6" '
        f'stroke="{COLOURS[i % len(COLOURS)]}"/>'
        for i, its in enumerate(curves)
    )
    bottom = _HEIGHT - _BELOW
    said = _told_apart(top, low)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'role="img" font-size="10" fill="currentColor">'
        f"<title>Lower bound by iteration</title>"
        f'<path d="M{_LEFT},4V{bottom}H{_WIDTH - 4}" fill="none" '
        f'stroke="currentColor" stroke-opacity="0.4"/>{lines}'
        f'<text x="{_LEFT - 4}" y="14" text-anchor="end">{said[0]}</text>'
        f'<text x="{_LEFT - 4}" y="{bottom - 2}" text-anchor="end">{said[1]}</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 4}">1</text>'
        f'<text x="{_WIDTH - 6}" y="{_HEIGHT - 4}" text-anchor="end">iteration '
        f"{steps + 1}</text></svg>"
    )


def _told_apart(top: float, low: float) -> tuple[str, str]:
    """Both as text, with as many digits as they differ in."""
    for digits in range(5, 17):
        said = f"{top:.{digits}g}", f"{low:.{digits}g}"
        if said[0] != said[1]:
            break
    return escape(said[0]), escape(said[1])
