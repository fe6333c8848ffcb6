"""What a command would do and take, found out by doing a little of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Final, final

import dask
import dask.array as da
import numpy as np
from dask.utils import format_time
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from daskgmm import config
from daskgmm.data.dask_array import as_dask
from daskgmm.data.gaps import Gaps
from daskgmm.display.words import counted
from daskgmm.em.fit import check_enough
from daskgmm.em.progress import Progress
from daskgmm.em.scan import of_lengths
from daskgmm.estimators.trained import TrainedMixture
from daskgmm.execution.tree import leaf_bounds, most_sums
from daskgmm.mixtures.covariance import SHAPES
from daskgmm.mixtures.e_step import sums_bytes

_OF_A_PROCESS: Final = 400_000_000
"""Bytes that a worker takes besides its blocks, most of them for libraries."""
_BLOCKS_PER_THREAD: Final = 2
"""One is read while the other is worked on."""
_LOOKS: Final = 2
"""Passes before those of EM: to look through the data, and to find starts."""
_MUCH: Final = 1e6
"""Bytes of sums that are worth a word."""
_UNKNOWN: Final = "unknown"


@final
@dataclass(frozen=True, slots=True)
class Forecast:
    """What a command would take.

    Attributes
    ----------
    rows : int or None
        None where filters pick rows that were not counted.
    features, blocks : int
    bytes_per_pass : int or None
        Of the rows once they are read: compressed ones take less in their store.
    block_bytes : int
        Of the largest block.
    sums_bytes : int
        Of what a pass adds up, in each thread: by features, components and starts.
    passes : int
        Passes over the data, at most.
    threads : int or None
        Of all workers together; None if that is not known here.
    threads_per_worker : int or None
    memory_per_worker : int or None
        Bytes.
    seconds_per_block : float
        To read and compute the block that was tried, on one thread of this machine.
    seconds_per_pass, seconds : float or None
        With so many threads: an estimate.
    likely_passes : int or None
        What the passes likely are; None if that is not known.
    """

    rows: int | None
    features: int
    blocks: int
    bytes_per_pass: int | None
    block_bytes: int
    sums_bytes: int
    passes: int
    threads: int | None
    threads_per_worker: int | None
    memory_per_worker: int | None
    seconds_per_block: float
    seconds_per_pass: float | None
    seconds: float | None
    likely_passes: int | None = None

    def lines(self) -> list[str]:
        """For people."""
        workers = self.threads_per_worker
        memory = (
            f"{_megabytes(_OF_A_PROCESS)} and {_BLOCKS_PER_THREAD} × "
            f"{_megabytes(self.block_bytes)} + {_megabytes(self.sums_bytes)} for each "
            "of its threads"
            if self.memory_per_worker is None
            else f"{_megabytes(self.memory_per_worker)} with "
            f"{counted(workers or 0, 'thread')}"
        )
        time = (
            f"{format_time(self.seconds_per_block)} a block on one thread of this "
            "machine; how many threads there will be is not known here"
            if self.seconds is None or self.seconds_per_pass is None
            else f"{format_time(self.seconds_per_pass)} a pass, "
            f"{self._in_all()}: an estimate, from one block "
            f"on this machine and {counted(self.threads or 0, 'thread')}"
        )
        rows = _UNKNOWN if self.rows is None else f"{self.rows:,}"
        n_bytes = self.bytes_per_pass
        of_sums = (
            f", of which {_megabytes(self.sums_bytes)} for sums in each thread"
            if self.memory_per_worker is not None and self.sums_bytes > _MUCH
            else ""
        )
        return [
            f"Rows               : {rows}, of {self.features} features",
            f"Blocks             : {self.blocks:,}",
            "Bytes per pass     : "
            + (_UNKNOWN if n_bytes is None else f"{n_bytes:,} uncompressed"),
            f"Passes             : {self.passes}"
            + (" at most" if self.passes > 1 else "")
            + ("" if self.likely_passes is None else f", {self.likely_passes} likely"),
            f"Memory per worker  : {memory}{of_sums}",
            f"Time               : {time}",
            "Nothing was started or written.",
        ]

    def _in_all(self) -> str:
        assert self.seconds is not None and self.seconds_per_pass is not None
        at_most = f"{format_time(self.seconds)} in all at most"
        if self.likely_passes is None:
            return at_most
        likely = format_time(self.likely_passes * self.seconds_per_pass)
        return f"{likely} in all likely, {at_most}"


def forecast_fit(
    model: TrainedMixture, rows: Any, threads: int | None, per_worker: int | None
) -> Forecast:
    """What it would take to fit a model that is not fitted yet.

    Parameters
    ----------
    model : GaussianMixture or BayesianGaussianMixture
    rows : as for `GaussianMixture.fit`
    threads, per_worker : int or None
        Of all workers, and of one; None if they are not known.
    """

    def try_block(block: Any) -> float:
        return _pass_seconds(model, block)

    lazy = as_dask(rows, _gaps(model))
    if not np.isnan(lazy.shape[0]):
        check_enough(of_lengths([lazy.shape[0]]), model.n_components)
    of_run = sums_bytes(
        SHAPES[model.covariance_type], model.n_components, int(lazy.shape[1])
    )
    of_run *= most_sums(len(leaf_bounds(lazy.numblocks[0])) - 1)
    # Starts that take more train in turns.
    together = max(1, min(model.n_init, int(config.size("sums-memory") // of_run)))
    turns = -(-model.n_init // together)
    forecast = _forecast(
        lazy,
        try_block,
        turns * model.max_iter + _LOOKS,
        threads,
        per_worker,
        together * of_run,
    )
    if forecast.rows is None:
        return forecast
    likely = model._likely_passes(forecast.features, forecast.rows)
    if likely is None:
        return forecast
    likely = turns * min(likely, model.max_iter) + _LOOKS
    return replace(forecast, likely_passes=likely)


def forecast_answer(
    model: TrainedMixture, rows: Any, threads: int | None, per_worker: int | None
) -> Forecast:
    """What it would take to ask a fitted model about all rows, once."""

    def try_block(block: Any) -> float:
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            # The block has lost its features' names: the rows have them.
            answers = model.score_samples(_as_one_block(block))
        answers[:1].compute()  # compiles the kernel, if need be
        began = perf_counter()
        answers.compute()
        return perf_counter() - began

    lazy = as_dask(rows, _gaps(model))
    return _forecast(lazy, try_block, 1, threads, per_worker)


def _gaps(model: TrainedMixture) -> Gaps:
    return Gaps(model.missing_chunks, model.nan)


def _forecast(
    rows: da.Array,
    try_block: Callable[[Any], float],
    passes: int,
    threads: int | None,
    per_worker: int | None,
    sums: int = 0,
) -> Forecast:
    n_blocks = rows.numblocks[0]
    seconds, read_bytes = 0.0, 0
    if n_blocks:
        began = perf_counter()
        with dask.config.set(scheduler="synchronous"):
            block = rows.blocks[0].compute()
            reading = perf_counter() - began
            seconds, read_bytes = reading + try_block(block), block.nbytes
    known = not np.isnan(rows.shape[0])
    row_bytes = rows.shape[1] * rows.dtype.itemsize
    largest = int(max(rows.chunks[0]) * row_bytes) if known else read_bytes
    per_pass = None
    if threads is not None:
        per_pass = seconds * n_blocks / max(1, min(threads, n_blocks))
    return Forecast(
        rows=int(rows.shape[0]) if known else None,
        features=int(rows.shape[1]),
        blocks=n_blocks,
        bytes_per_pass=int(rows.shape[0] * row_bytes) if known else None,
        block_bytes=largest,
        sums_bytes=sums,
        passes=passes,
        threads=threads,
        threads_per_worker=per_worker,
        memory_per_worker=None
        if per_worker is None
        else _OF_A_PROCESS + per_worker * (_BLOCKS_PER_THREAD * largest + sums),
        seconds_per_block=seconds,
        seconds_per_pass=per_pass,
        seconds=None if per_pass is None else passes * per_pass,
    )


def _pass_seconds(model: TrainedMixture, block: Any) -> float:
    """Time of one pass of EM over a block, with as many components and starts."""
    trial = clone(model).set_params(
        init_params="random_from_data", max_iter=2, tol=0.0, random_state=0, verbose=0
    )
    n_rows = max(len(block), 2 * trial.n_components, 2)
    seconds: list[float] = []

    def observe(progress: Progress) -> None:
        seconds.append(progress.seconds)

    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        enough = np.resize(block, (n_rows, block.shape[1]))
        trial.fit(_as_one_block(enough), callback=observe)
    return min(seconds)


def _as_one_block(rows: Any) -> da.Array:
    """Rows that Dask's scheduler works on, so on one thread if it says so."""
    block: da.Array = da.from_array(rows, chunks=-1)
    return block


def _megabytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e6:,.1f} MB"
