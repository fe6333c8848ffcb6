"""How often a state is written; in a file that loads nothing slow."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from numbers import Integral
from typing import Any, final

from dask.utils import parse_timedelta

from daskgmm.errors import ParameterError


@final
@dataclass(frozen=True, slots=True)
class Interval:
    """How often a state is written: after so many passes, or so many seconds."""

    passes: int | None
    seconds: float | None


def parse_interval(value: Any) -> Interval:
    """An interval from an int, passes, or a string such as '30s', time.

    Raises
    ------
    ValueError
        If it is neither, or not above zero.
    """
    if isinstance(value, Integral) and not isinstance(value, bool):
        if int(value) >= 1:
            return Interval(int(value), None)
    elif isinstance(value, str):
        seconds = _seconds(value)
        if seconds >= 0.0:
            return Interval(None, seconds)
    raise ParameterError(
        f"checkpoint_interval must be a number of passes (an int from 1) or a time "
        f"such as '30s' or '5 minutes', got {value!r}."
    )


@cache
def _seconds(text: str) -> float:
    """A time in seconds; below zero if it is none."""
    try:
        return float(parse_timedelta(text, default="s"))
    except (IndexError, KeyError, ValueError):
        return -1.0
