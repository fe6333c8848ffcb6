"""Where a fit stands, for callbacks, and what `verbose` prints of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from daskgmm.em.state import Run, Status


@final
@dataclass(frozen=True, slots=True)
class Progress:
    """Where a fit stands after a pass over the data.

    Attributes
    ----------
    n_pass : int
        Passes so far, from 1.
    runs : sequence of Run
        All restarts.
    n_rows : int
        Rows read in the pass.
    seconds : float
        Time the pass took.
    n_bytes : int
        Bytes that were read in the pass, as they are in memory: of what stays in memory
        from pass to pass, none.
    max_iter, tol : optional
        As the estimator has them, by which a run ends.

    Examples
    --------
    >>> from daskgmm import GaussianMixture
    >>> gm = GaussianMixture(1)
    >>> rows = [[0.0], [1.0], [5.0]]
    >>> gm = gm.fit(rows, callback=lambda progress: print(f"{progress.bound:.4f}"))
    -2.1892
    -2.1892
    """

    n_pass: int
    runs: Sequence[Run[Any]]
    n_rows: int
    seconds: float
    n_bytes: int = 0
    max_iter: int = 0
    tol: float = 0.0

    def __repr__(self) -> str:
        """One line, as for ``callback=print``, without the runs' parameters."""
        told = {
            "n_pass": self.n_pass,
            "bound": f"{self.bound:.6g}",
            "change": f"{self.change:.2g}",
            "n_live": self.n_live,
            "n_runs": self.n_runs,
            "n_rows": self.n_rows,
            "n_bytes": self.n_bytes,
            "seconds": f"{self.seconds:.3g}",
        }
        return f"Progress({', '.join(f'{k}={v}' for k, v in told.items())})"

    @property
    def n_runs(self) -> int:
        """Number of restarts."""
        return len(self.runs)

    @property
    def n_live(self) -> int:
        """Restarts that go on."""
        return sum(run.is_live for run in self.runs)

    @property
    def _leader(self) -> Run[Any]:
        return max(self.runs, key=lambda run: run.bound)

    @property
    def bound(self) -> float:
        """The best lower bound so far."""
        return self._leader.bound

    @property
    def change(self) -> float:
        """The last change of that run's bound."""
        return self._leader.change

    @property
    def passes_to_go(self) -> tuple[int, bool]:
        """How many there are at most, and whether as many are likely: see the next."""
        most, likely = max(self.max_iter - self.n_pass, 0), self.likely_passes
        if not self.n_live:
            return 0, True
        return (most, False) if likely is None or likely > most else (likely, True)

    @property
    def likely_passes(self) -> int | None:
        """Passes to go, if the gains of all runs go on to shrink as they did last.

        None where that says nothing: of two passes, or where gains grow, or without a
        `tol` to end it.
        """
        tol = self.tol
        to_go = [_passes_to_go(run.bounds, tol) for run in self.runs if run.is_live]
        known = [n for n in to_go if n is not None]
        return max(known, default=0) if len(known) == len(to_go) else None


def _passes_to_go(bounds: Sequence[float], tol: float) -> int | None:
    if len(bounds) < 3 or tol <= 0.0:
        return None
    *earlier, before, last = (abs(gain) for gain in np.diff(bounds[-4:]))
    if not 0.0 < last < before:
        return None
    rest = 1.0 - last / before
    if earlier and before < earlier[0]:
        # Gains that shrink more and more slowly go on to do so.
        rest *= min(1.0, rest / (1.0 - before / earlier[0]))
    return max(1, math.ceil(math.log(tol / last) / math.log1p(-rest)))


_TOLD: Final = {
    "n_pass": np.int64,
    "run": np.int64,
    "bound": np.float64,
    "change": np.float64,
    "seconds": np.float64,
    "n_rows": np.int64,
    "n_bytes": np.int64,
}


def told(progress: Progress, before: Sequence[Run[Any]]) -> NDArray[np.float64]:
    """What a pass says of each run that took part in it.

    Parameters
    ----------
    progress : Progress
    before : sequence of Run
        The runs before the pass.

    Returns
    -------
    ndarray of shape (n_live, 7)
        The number of the pass and of the run, its bound and by how much that changed;
        and of the pass: seconds, rows, and bytes that were read.
    """
    pairs = zip(progress.runs, before, strict=True)
    rows = [
        (progress.n_pass, i, run.bound, run.change)
        + (progress.seconds, progress.n_rows, progress.n_bytes)
        for i, (run, earlier) in enumerate(pairs)
        if earlier.is_live
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, len(_TOLD))


def as_columns(history: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
    """What was told of passes, by name; counts are integers."""
    columns = zip(_TOLD.items(), history.T, strict=True)
    return {name: column.astype(kind) for (name, kind), column in columns}


def from_columns(history: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """The same as it was told."""
    return np.column_stack([history[name] for name in _TOLD]).astype(np.float64)


_LONG: Final = 1.0
"""Seconds that a pass may take without being printed."""

Callback = Callable[[Progress], object]
"""Called after each pass; what it returns is not looked at."""


@final
class Reporter:
    """Prints the progress of a fit.

    Parameters
    ----------
    verbose : int
        0 prints nothing, 1 iterations and ends, 2 also times and bounds.
    interval : int
        Iterations between two prints.
    """

    def __init__(self, verbose: int, interval: int) -> None:
        self._verbose = verbose
        self._interval = interval
        self._ended: set[int] = set()
        self._seconds = 0.0
        self._since = 0.0

    def report(self, progress: Progress) -> None:
        """Print what there is to say after a pass."""
        if not self._verbose:
            return
        if progress.n_pass == 1:
            for i in range(progress.n_runs):
                print(f"Initialization {i}")
        self._seconds += progress.seconds
        if progress.n_pass % self._interval == 0 or progress.seconds > _LONG:
            self._report_iteration(progress)
        for i, run in enumerate(progress.runs):
            if not run.is_live and i not in self._ended:
                self._ended.add(i)
                self._report_end(progress, i)

    def _report_iteration(self, progress: Progress) -> None:
        line = f"  Iteration {progress.n_pass}"
        if progress.n_runs > 1:
            runs = f"{progress.n_live} of {progress.n_runs}"
            line += f" ({runs} initializations still running)"
        if self._verbose >= 2:
            lapse = self._seconds - self._since
            line += f"\t time lapse {lapse:.5f}s\t ll change {progress.change:.5f}"
            self._since = self._seconds
        if progress.seconds > _LONG:
            line += f"\t lower bound {progress.bound:.5f}"
        print(line)

    def _report_end(self, progress: Progress, i: int) -> None:
        run = progress.runs[i]
        how = {
            Status.CONVERGED: "converged",
            Status.EXHAUSTED: "did not converge",
            Status.OUTDONE: "was outdone by others on a subsample",
            Status.FAILED: f"failed: {run.error}",
        }[run.status]
        which = "Initialization" if progress.n_runs == 1 else f"Initialization {i}"
        line = f"{which} {how}."
        if self._verbose >= 2:
            line += f" time lapse {self._seconds:.5f}s\t lower bound {run.bound:.5f}."
        print(line)
