"""The demo: fit data in less memory than they take, and check what was found."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Final, final

import numpy as np
import zarr
from distributed import Client, LocalCluster
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.optimize import linear_sum_assignment

from daskgmm.demo.data import (
    BLOCK_ROWS,
    N_COMPONENTS,
    N_FEATURES,
    Array,
    Truth,
    is_of_demo,
    make_truth,
    write,
)
from daskgmm.demo.memory import HeldWorker, held, is_refused, peak_memory
from daskgmm.display.words import pass_line
from daskgmm.errors import MissingLibraryError, PlaceError, StoreError
from daskgmm.estimators.gaussian import GaussianMixture
from daskgmm.execution.deploy import joined, started
from daskgmm.execution.forking import beyond_interrupts
from daskgmm.plotting import plot_mixture
from daskgmm.storage.retry import check_free

GIGABYTES: Final = 3.2
"""Size of the data."""

BUDGET: Final = 450
"""MB of memory that one process may take."""

_N_WORKERS: Final = 2
_TOL: Final = 1e-5
_MAX_ITER: Final = 15
_N_INIT: Final = 2  # k-means misses a component in one start of five
_BLOCK_BYTES: Final = BLOCK_ROWS * N_FEATURES * 8
_N_BLOCKS_DRAWN: Final = 4

_MARK: Final = "daskgmm demo"
"""What pictures of the demo say of themselves."""

_WEIGHT_TOLERANCE: Final = 0.005
_MEAN_TOLERANCE: Final = 0.05
_COVARIANCE_TOLERANCE: Final = 0.05


@final
@dataclass(frozen=True, slots=True)
class Found:
    """What a fit found, its components in the order of the true ones.

    Attributes
    ----------
    weights, means, covariances : ndarray
        As in `Truth`.
    weight_errors, mean_errors, covariance_errors : ndarray of shape (K,)
        Distance from the truth: of the weight; of the mean, in standard deviations of
        the true component; of the covariance, relative.
    """

    weights: Array
    means: Array
    covariances: Array
    weight_errors: Array
    mean_errors: Array
    covariance_errors: Array

    @property
    def near(self) -> bool:
        """Whether the truth was found."""
        return bool(
            (self.weight_errors < _WEIGHT_TOLERANCE).all()
            and (self.mean_errors < _MEAN_TOLERANCE).all()
            and (self.covariance_errors < _COVARIANCE_TOLERANCE).all()
        )


def match(model: GaussianMixture, truth: Truth) -> Found:
    """Pair components so that the distances of their means are the least in sum."""
    true = truth.covariances
    shifts = model.means_ - truth.means[:, np.newaxis]  # (K true, K found, d)
    whitened = np.linalg.solve(truth.roots.transpose(0, 2, 1), shifts.swapaxes(1, 2))
    distances = np.linalg.norm(whitened, axis=1)
    rows, order = linear_sum_assignment(distances)
    weights, covariances = model.weights_[order], model.covariances_[order]
    misfits = np.linalg.norm(covariances - true, axis=(1, 2))
    return Found(
        weights,
        model.means_[order],
        covariances,
        abs(weights - truth.weights),
        distances[rows, order],
        misfits / np.linalg.norm(true, axis=(1, 2)),
    )


@final
@dataclass(frozen=True, slots=True)
class Memory:
    """What the fit made of its memory.

    Attributes
    ----------
    peaks : dict of str to float
        MB that each process took at most.
    refused : bool
        Whether each worker was refused memory for the whole data.
    restarted : bool
        Whether a worker died and was started anew.
    """

    peaks: dict[str, float]
    refused: bool
    restarted: bool

    @property
    def kept(self) -> bool:
        """Whether no process took more than the budget, or could have."""
        within = max(self.peaks.values()) <= BUDGET
        could_not = self.refused or sys.platform != "linux"
        return within and could_not and not self.restarted


def run(
    folder: Path, gigabytes: float, seed: int, keep: bool, console: Console
) -> bool:
    """Run the demo; return whether all went as it should.

    Parameters
    ----------
    folder : Path
        Where the data and the picture go.
    gigabytes : float
        Size of the data.
    seed : int
        Seed of the truth, the rows and the fit.
    keep : bool
        Whether the data stay there.
    console : Console
        Where to print.

    Raises
    ------
    MissingLibraryError
        If Matplotlib is not installed.
    PlaceError
        If the folder holds data of the same names that are not of an earlier demo.
    StoreError
        If the disk has no room.
    """
    if find_spec("matplotlib") is None:
        raise MissingLibraryError(
            "The demo needs Matplotlib: pip install 'daskgmm[plot]'."
        )
    n_blocks = max(1, round(gigabytes * 10**9 / _BLOCK_BYTES))
    store, picture = str((folder / "rows.zarr").resolve()), folder / "mixture.png"
    check_free(store)
    folder.mkdir(parents=True, exist_ok=True)
    _check_room(folder, n_blocks * _BLOCK_BYTES)
    _check_ours(Path(store), picture)
    truth = make_truth(seed)
    _compile_apart()
    try:
        with _cluster() as client:
            _write_aloud(store, truth, n_blocks, seed, console)
            model, memory = _fit_aloud(store, seed, client, console)
        found = match(model, truth)
        _print_found(truth, found, console)
        _print_memory(memory, console)
        _draw(model, truth, _sample(store, seed), picture)
        console.print(f"Picture: {picture}", soft_wrap=True, highlight=False)
    finally:
        if not keep:
            shutil.rmtree(store, ignore_errors=True)
    _print_verdict(found, memory, console)
    return found.near and memory.kept


def _check_ours(store: Path, picture: Path) -> None:
    """Refuse to replace, and in the end remove, what is not of an earlier demo."""
    if store.exists() and not is_of_demo(store):
        raise PlaceError(
            f"{store} exists and is not of an earlier demo: choose another --folder."
        )
    if picture.exists() and _MARK.encode() not in picture.read_bytes():
        raise PlaceError(
            f"{picture} exists and is not of an earlier demo: choose another --folder."
        )


def _check_room(folder: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < 1.1 * n_bytes:
        raise StoreError(
            f"The demo needs {1.1 * n_bytes / 1e9:.1f} GB of disk, and {folder} has "
            f"{free / 1e9:.1f} GB: choose another --folder or a smaller --size."
        )


def _compile_apart() -> None:
    """Have the kernels compiled, and kept on disk, by a process of its own.

    That is done once after an installation, and takes more memory than a fit.
    """
    process = get_context("spawn").Process(target=_compile)
    beyond_interrupts(process.start).result()
    try:
        process.join()
    finally:
        process.kill()


def _compile() -> None:
    rows = np.random.default_rng(0).normal(size=(1000, N_FEATURES))
    GaussianMixture(2, tol=1e9, random_state=0).fit(rows)


@contextmanager
def _cluster() -> Iterator[Client]:
    """A local cluster, all of whose processes are held to the budget, this one too."""
    start = partial(
        LocalCluster,
        n_workers=_N_WORKERS,
        threads_per_worker=1,
        memory_limit=0,  # the operating system sets the limit
        dashboard_address="127.0.0.1:0",  # any free port
    )
    with (
        started(start) as cluster,
        joined(cluster) as client,
        held(BUDGET),
    ):
        client.register_plugin(HeldWorker(BUDGET))
        yield client


def _write_aloud(
    store: str, truth: Truth, n_blocks: int, seed: int, console: Console
) -> None:
    size, budget = n_blocks * _BLOCK_BYTES / 1e6, _N_WORKERS * BUDGET
    _say(
        console,
        f"Writing {n_blocks * BLOCK_ROWS:,} rows of {N_FEATURES} numbers, "
        f"{size:,.0f} MB: {size / budget:.1f} times what the {_N_WORKERS} workers may "
        "take together",
    )
    began = perf_counter()
    write(store, truth, n_blocks, seed)
    _say(console, f"Wrote them in {perf_counter() - began:.1f} s")


def _fit_aloud(
    store: str, seed: int, client: Client, console: Console
) -> tuple[GaussianMixture, Memory]:
    pids = client.run(os.getpid)
    n_bytes = zarr.open_array(store, mode="r").nbytes
    refused = all(client.run(is_refused, n_bytes).values())
    if refused:
        _say(console, "Asked to hold them all, each worker is refused the memory")
    model = GaussianMixture(
        N_COMPONENTS, tol=_TOL, max_iter=_MAX_ITER, n_init=_N_INIT, random_state=seed
    )
    began = perf_counter()
    model.fit(store, callback=lambda progress: _say(console, pass_line(progress)))
    _say(
        console,
        f"Fitted in {model.n_passes_} passes, {perf_counter() - began:.1f} s in all",
    )
    peaks = {f"worker {i}": peak for i, peak in enumerate(_peaks(client))}
    memory = Memory(
        {"client and scheduler": peak_memory(), **peaks},
        refused,
        restarted=pids != client.run(os.getpid),
    )
    return model, memory


def _peaks(client: Client) -> list[float]:
    return list(client.run(peak_memory).values())


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False, markup=False)


def _print_found(truth: Truth, found: Found, console: Console) -> None:
    for name, true, near, errors in (
        ("mean", truth.means, found.means, found.mean_errors),
        (
            "standard deviations",
            _deviations(truth.covariances),
            _deviations(found.covariances),
            found.covariance_errors,
        ),
    ):
        table = Table("", "weight", name, "error", box=box.SIMPLE_HEAD, pad_edge=False)
        for k, error in enumerate(errors):
            table.add_row("true", f"{truth.weights[k]:.4f}", _numbers(true[k]), "")
            table.add_row(
                "found",
                f"{found.weights[k]:.4f}",
                _numbers(near[k]),
                f"{error:.4f}",
                end_section=True,
            )
        console.print(table)


def _deviations(covariances: Array) -> Array:
    return np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))


def _numbers(values: Array) -> str:
    return " ".join(f"{value:6.3f}" for value in values)


def _print_memory(memory: Memory, console: Console) -> None:
    table = Table(
        "process", "peak memory", "limit", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for process, peak in memory.peaks.items():
        table.add_row(process, f"{peak:.0f} MB", f"{BUDGET} MB")
    console.print(table)


def _print_verdict(found: Found, memory: Memory, console: Console) -> None:
    if not found.near:
        _say(console, "FAILED: what was found is not near the truth.")
    if memory.restarted:
        _say(console, "FAILED: a worker died.")
    elif not memory.kept:
        _say(console, "FAILED: the memory was not kept to.")
    if found.near and memory.kept:
        _say(console, "The truth was found, and the memory was kept to.")


def _sample(store: str, seed: int) -> Array:
    """Some whole blocks of rows, for a picture."""
    rows = zarr.open_array(store, mode="r")
    n_blocks = rows.shape[0] // BLOCK_ROWS
    chosen = np.random.default_rng(seed).permutation(n_blocks)[:_N_BLOCKS_DRAWN]
    return np.concatenate([np.asarray(rows.blocks[int(i)]) for i in chosen])


def _draw(model: GaussianMixture, truth: Truth, rows: Array, picture: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6.5), layout="constrained")
    axes = plot_mixture(
        model, rows, true_means=truth.means, ax=figure.add_subplot(aspect="equal")
    )
    axes.legend(frameon=False, loc="upper right")
    axes.set_title("Found components at 1 and 2 standard deviations")
    figure.savefig(picture, dpi=150, metadata={"Software": _MARK})
