"""What is said of passes, times and speeds: the same words wherever they are seen."""

from __future__ import annotations

import math

from dask.utils import format_bytes

from daskgmm.em.progress import Progress
from daskgmm.em.search import Criterion, SearchProgress


def seconds(time: float) -> str:
    """A time for people."""
    if time < 100:
        return f"{time:.1f} s" if time >= 0.1 else f"{1000 * time:.0f} ms"
    minutes, rest = divmod(round(time), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def counted(n: int, what: str) -> str:
    """So many of something, whose plural has an s, or es, at its end."""
    es = "es" if what.endswith("s") else "s"
    return f"{n} {what}" if n == 1 else f"{n} {what}{es}"


def number(criterion: str, value: float) -> str:
    """A criterion's value as ``daskgmm score`` prints it; nothing if it is NaN."""
    if math.isnan(value):
        return ""
    # Of all rows together, or of one.
    return f"{value:.6f}" if criterion == "held_out" else f"{value:.3f}"


def candidate(
    n_components: int, covariance_type: str, concentration: float | None = None
) -> str:
    """What a mixture is among others, for people."""
    s = "" if n_components == 1 else "s"
    prior = "" if concentration is None else f", weight concentration {concentration:g}"
    return f"{n_components} component{s} and {covariance_type} covariance{s}{prior}"


def of_bound(progress: Progress) -> str:
    """The bound after a pass, and its change since the one before, if there is one."""
    change = f"  change {progress.change:.2e}" if math.isfinite(progress.change) else ""
    return f"bound {progress.bound:.6f}{change}"


def of_runs(progress: Progress) -> str:
    """How many runs go on, if there are several; else nothing."""
    if progress.n_runs == 1:
        return ""
    return f"{progress.n_live} of {progress.n_runs} starts still running"


def speed(n_rows: float, n_bytes: float, time: float) -> str:
    """Rows, and bytes that were read, in a second."""
    if time <= 0:
        return ""
    rows = f"{n_rows / time:,.0f} rows/s"
    # Of what stays in memory, nothing is read.
    return f"{rows}  {format_bytes(int(n_bytes / time))}/s" if n_bytes else rows


def was_read(n_bytes: int) -> str:
    """How much a pass read; nothing where all rows stay in memory."""
    return f"{format_bytes(n_bytes)} read" if n_bytes else "all rows in memory"


def to_go(progress: Progress | SearchProgress, part: float = 0.0) -> str:
    """How long a fit or a search goes on, if it does.

    Of the next pass a part is done.
    """
    n_passes, is_likely = progress.passes_to_go
    if not n_passes:
        return ""
    time = seconds((n_passes - part) * progress.seconds)
    return f"{'about' if is_likely else 'at most'} {time} to go"


def _of_time(progress: Progress | SearchProgress) -> str:
    """What a pass took, and how long others will."""
    return ", ".join(filter(None, [seconds(progress.seconds), to_go(progress)]))


def pass_line(progress: Progress) -> str:
    """A pass in one line."""
    rows = f"{progress.n_rows / progress.seconds:,.0f} rows/s"
    parts = [
        f"pass {progress.n_pass:>3}",
        of_bound(progress),
        rows,
        of_runs(progress),
        was_read(progress.n_bytes),
        _of_time(progress),
    ]
    return "  ".join(filter(None, parts))


def of_candidates(progress: SearchProgress) -> str:
    """How many candidates have ended."""
    return f"{progress.n_ended} of {len(progress.scored)} candidates have ended"


def search_line(progress: SearchProgress, criterion: Criterion) -> str:
    """A pass of a search in one line."""
    batches = (
        f"  batch {progress.batch + 1} of {progress.n_batches}"
        if progress.n_batches > 1
        else ""
    )
    line = (
        f"pass {progress.n_pass:>3}{batches}  "
        f"{of_candidates(progress)}  "
        f"{progress.n_rows / progress.seconds:,.0f} rows/s  "
        f"{was_read(progress.n_bytes)}  {_of_time(progress)}"
    )
    best = min(progress.scored, key=lambda its: its.loss(criterion))
    if best.fit is None:
        return line
    said = candidate(best.n_components, best.covariance_type, best.weight_concentration)
    value = number(criterion, best.value(criterion))
    return f"{line}, best so far: {said} ({criterion} {value})"
