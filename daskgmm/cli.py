"""The command ``daskgmm``: fit, predict, info, demo."""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from time import perf_counter
from typing import Any, Final, final

import click
import dask.array as da
import fsspec
import numpy as np
import zarr
from distributed import Client, KilledWorker, LocalCluster, progress
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.exceptions import ConvergenceWarning
from zarr.codecs import Crc32cCodec, ZstdCodec

from daskgmm import demo as demonstration
from daskgmm.covariance import SHAPES
from daskgmm.errors import DaskGMMError
from daskgmm.estimators import GaussianMixture, load
from daskgmm.training import Progress

_STARTS: Final = ("kmeans", "k-means++", "random", "random_from_data")
_METHODS: Final = {
    "labels": "predict",
    "proba": "predict_proba",
    "log-density": "score_samples",
}


@final
class _Commands(click.Group):
    """Turns errors that a user can do something about into one line and status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click ends quietly when nobody reads on
        except KilledWorker as error:
            raise click.ClickException(
                "A worker process died again and again, most likely for want of "
                "memory: give it more with --memory-limit, or store smaller chunks."
            ) from error
        except MemoryError as error:
            raise click.ClickException(
                "Out of memory: give each process more with --memory-limit, start "
                "fewer, or store smaller chunks."
            ) from error
        except (DaskGMMError, ValueError, OSError, ImportError) as error:
            raise click.ClickException(" ".join(str(error).split())) from error


def _place(text: str) -> str:
    """A URL, or a path: absolute, as workers may run in another folder."""
    return text if "://" in text else os.path.abspath(text)


@final
@dataclass(frozen=True, slots=True)
class Cluster:
    """Where the work is done, as the options say."""

    scheduler: str | None
    n_workers: int | None
    threads_per_worker: int | None
    memory_limit: str
    dashboard: str | None

    @contextmanager
    def connect(self) -> Iterator[Client]:
        """Join the scheduler, or start a local cluster, for as long as the context."""
        if self.scheduler is not None:
            with Client(self.scheduler) as client:
                yield client
            return
        with (
            LocalCluster(
                n_workers=self.n_workers,
                threads_per_worker=self.threads_per_worker,
                memory_limit=self.memory_limit,
                dashboard_address=self.dashboard or "127.0.0.1:0",  # any free port
                silence_logs=logging.CRITICAL,  # errors reach the user as exceptions
            ) as cluster,
            Client(cluster) as client,
        ):
            yield client


_CLUSTER_OPTIONS: Final = (
    click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="Work on the Dask cluster of this scheduler, such as tcp://host:8786, "
        "instead of a local one.",
    ),
    click.option(
        "--workers",
        "n_workers",
        type=click.IntRange(min=1),
        help="Processes of the local cluster.  [default: by the number of cores]",
    ),
    click.option(
        "--threads-per-worker",
        type=click.IntRange(min=1),
        help="Threads of each process.  [default: by the number of cores]",
    ),
    click.option(
        "--memory-limit",
        metavar="SIZE",
        default="auto",
        show_default=True,
        help="Memory of each process of the local cluster, such as 2GB; 'auto' shares "
        "this machine's between them.",
    ),
    click.option(
        "--dashboard",
        metavar="ADDRESS",
        help="Serve Dask's dashboard of the local cluster at this address, such as "
        ":8787.  [default: a free port of this machine]",
    ),
)


def _cluster_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options above, which reach the command as one `cluster`."""

    @functools.wraps(command)
    def with_cluster(**options: Any) -> None:
        of_cluster = {field.name: options.pop(field.name) for field in fields(Cluster)}
        cluster = Cluster(**of_cluster)
        if cluster.scheduler is not None and (
            cluster.n_workers or cluster.threads_per_worker or cluster.dashboard
        ):
            raise click.UsageError(
                "--workers, --threads-per-worker and --dashboard are for a local "
                "cluster: leave them out with --scheduler."
            )
        command(cluster=cluster, **options)

    decorated: Callable[..., None] = with_cluster
    for option in reversed(_CLUSTER_OPTIONS):
        decorated = option(decorated)
    return decorated


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="daskgmm")
def main() -> None:
    """Gaussian mixtures for data larger than memory.

    Data are Zarr arrays with one row for each sample, on a disk or at a URL:

    \b
      daskgmm fit rows.zarr model.zarr -k 8
      daskgmm predict model.zarr rows.zarr labels.zarr

    Both work on a cluster of local processes unless told --scheduler.
    """  # noqa: D301  \b is a backspace: click leaves the lines that follow alone


@main.command()
@click.argument("store", type=_place)
@click.argument("model", type=_place)
@click.option(
    "-k",
    "--components",
    "n_components",
    type=click.IntRange(min=1),
    required=True,
    help="Number of components.",
)
@click.option(
    "--covariance-type",
    type=click.Choice(list(SHAPES)),
    default="full",
    show_default=True,
    help="A matrix for each component, one matrix for all, a diagonal for each, or "
    "one variance for each.",
)
@click.option(
    "--tol",
    type=click.FloatRange(min=0),
    default=1e-3,
    show_default=True,
    help="Stop when a row's mean log likelihood gains less.",
)
@click.option(
    "--reg-covar",
    type=click.FloatRange(min=0),
    default=1e-6,
    show_default=True,
    help="Added to the diagonal of each covariance.",
)
@click.option(
    "--max-iter",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Stop after so many iterations.",
)
@click.option(
    "--n-init",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Starts; they train in the same passes over the data, and the best is kept.",
)
@click.option(
    "--init-params",
    type=click.Choice(_STARTS),
    default="kmeans",
    show_default=True,
    help="How starts are found.",
)
@click.option(
    "--init-size",
    type=click.IntRange(min=1),
    default=100_000,
    show_default=True,
    help="Starts are found from so many rows, drawn uniformly.",
)
@click.option(
    "--seed",
    "random_state",
    type=click.IntRange(0, 2**32 - 1),
    help="Seed of the starts.  [default: another one each time]",
)
@click.option(
    "--weights",
    type=_place,
    metavar="STORE",
    help="Zarr array with the weight of each row.",
)
@click.option("--overwrite", is_flag=True, help="Replace a model that is there.")
@_cluster_options
def fit(
    store: str,
    model: str,
    weights: str | None,
    overwrite: bool,
    cluster: Cluster,
    **parameters: Any,
) -> None:
    """Fit a mixture to the rows in STORE, and save it as MODEL.

    STORE is a Zarr array of shape (rows, features). Each iteration reads it once and
    prints a line: the number of the pass, the mean log likelihood of a row (the
    bound), its change, and the speed.
    """
    _refuse_existing(model, overwrite, zarr.Group)
    mixture = GaussianMixture(**parameters)
    console = Console()
    began = perf_counter()
    with cluster.connect():
        _fit_with_progress(mixture, store, weights, console)
    mixture.save(model, overwrite=overwrite)
    seconds = perf_counter() - began
    how = "Converged" if mixture.converged_ else "Did not converge"
    _say(console, f"{how} in {mixture.n_iter_} iterations, {seconds:.1f} s.")
    if not mixture.converged_:
        _say(console, "Raise --max-iter or --tol, or try other starts.")
    _say(console, f"The model is in {model}.")


def _fit_with_progress(
    mixture: GaussianMixture, store: str, weights: str | None, console: Console
) -> None:
    def observe(progress: Progress) -> None:
        _say(console, demonstration.progress_line(progress))
        status.update(f"pass {progress.n_pass + 1}")

    with (
        console.status("finding starts") as status,
        warnings.catch_warnings(action="ignore", category=ConvergenceWarning),
    ):
        mixture._fit(store, weights, observer=observe)


@main.command()
@click.argument("model", type=_place)
@click.argument("store", type=_place)
@click.argument("out", type=_place)
@click.option(
    "--kind",
    type=click.Choice(list(_METHODS)),
    default="labels",
    show_default=True,
    help="The most probable component of each row, the probability of each component, "
    "or the log density of the mixture.",
)
@click.option("--overwrite", is_flag=True, help="Replace a Zarr array that is there.")
@_cluster_options
def predict(
    model: str, store: str, out: str, kind: str, overwrite: bool, cluster: Cluster
) -> None:
    """Label the rows in STORE by MODEL, and write the labels to OUT.

    OUT is a Zarr array with a row for each of STORE, in chunks of as many rows, with
    checksums. Its attribute "daskgmm" says whether it is complete.
    """
    if out in (model, store):
        raise click.UsageError("OUT must be another place than MODEL and STORE.")
    _refuse_existing(out, overwrite, zarr.Array)
    answer = getattr(load(model), _METHODS[kind])(store)
    console = Console()
    began = perf_counter()
    # The first in is the last out: what a failure leaves of OUT is removed once the
    # local cluster is gone, so that nothing still writes to it.
    with ExitStack() as undo, cluster.connect() as client:
        target = _create(out, answer, overwrite)
        undo.callback(_remove, out)
        _write(answer, target, client, console)
        undo.pop_all()
    seconds = perf_counter() - began
    _say(console, f"Wrote {len(answer):,} rows to {out} in {seconds:.1f} s.")


def _create(url: str, like: da.Array, overwrite: bool) -> zarr.Array[Any]:
    return zarr.create_array(
        url,
        shape=like.shape,
        chunks=tuple(int(size) for size in like.chunksize),
        dtype=like.dtype,
        # A chunk that goes missing must not read as an answer.
        fill_value=-1 if like.dtype.kind == "i" else np.nan,
        compressors=(ZstdCodec(), Crc32cCodec()),
        attributes={"daskgmm": {"complete": False}},
        overwrite=overwrite,
    )


def _write(
    answer: da.Array, target: zarr.Array[Any], client: Client, console: Console
) -> None:
    """Write the answer chunk by chunk; the mark that it is complete comes last."""
    stored = da.store(answer, target, lock=False, compute=False)  # type: ignore[arg-type]
    written = client.compute(stored)
    if console.is_terminal:
        progress(written, notebook=False)
    written.result()
    target.update_attributes({"daskgmm": {"complete": True}})


def _remove(url: str) -> None:
    files, path = fsspec.url_to_fs(url)
    files.rm(path, recursive=True)


def _refuse_existing(url: str, overwrite: bool, kind: type) -> None:
    """Raise if something is there that must not be replaced by a Zarr node of a kind.

    To overwrite is to delete, so what is there must be of that kind itself.
    """
    files, path = fsspec.url_to_fs(url)
    if not files.exists(path):
        return
    if not overwrite:
        raise FileExistsError(f"{url} exists: pass --overwrite to replace it.")
    try:
        is_kind = isinstance(zarr.open(url, mode="r"), kind)
    except Exception:  # whatever it is, it is no Zarr node
        is_kind = False
    if not is_kind:
        raise FileExistsError(
            f"{url} exists and is no Zarr {kind.__name__.lower()}: choose another "
            "place."
        )


@main.command()
@click.argument("place", metavar="MODEL_OR_STORE", type=_place)
def info(place: str) -> None:
    """Describe a model, or a Zarr array of data or results."""
    node = zarr.open(place, mode="r")
    console = Console()
    if isinstance(node, zarr.Array):
        _say(console, str(node.info))
        if "daskgmm" in node.attrs:
            _say(console, f"daskgmm            : {node.attrs['daskgmm']}")
    else:
        _describe(load(place), console)


def _describe(model: GaussianMixture, console: Console) -> None:
    how = "converged" if model.converged_ else "not converged"
    _say(
        console,
        f"{type(model).__name__}: {model.n_components} components, "
        f"{model.n_features_in_} features, {model.covariance_type} covariance",
    )
    _say(
        console,
        f"{how} after {model.n_iter_} iterations, bound {model.lower_bound_:.6f}",
    )
    table = Table("component", "weight", "mean", box=box.SIMPLE_HEAD, pad_edge=False)
    for k, (weight, mean) in enumerate(zip(model.weights_, model.means_, strict=True)):
        numbers = np.array2string(mean, precision=4, threshold=8, suppress_small=True)
        table.add_row(str(k), f"{weight:.4f}", numbers)
    console.print(table)


def _say(console: Console, line: str) -> None:
    # Neither wrapped nor coloured: a line is a line, in a terminal and in a log.
    console.print(line, soft_wrap=True, highlight=False, markup=False)


@main.command()
@click.option(
    "--folder",
    type=click.Path(file_okay=False, writable=True, path_type=Path),
    default="demo-output",
    show_default=True,
    help="Where to write.",
)
@click.option(
    "--size",
    "gigabytes",
    type=click.FloatRange(min=0, min_open=True),
    default=demonstration.GIGABYTES,
    show_default=True,
    help="Size of the data in GB.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--keep", is_flag=True, help="Keep the data when done.")
def demo(folder: Path, gigabytes: float, seed: int, keep: bool) -> None:
    """Fit data in less memory than they take, and show what was found.

    Writes rows of a known mixture to a Zarr array, fits a mixture on a local cluster
    whose processes are kept from taking the memory to hold them, compares it with the
    known one, and draws it. Fails unless they agree and the memory was kept to.
    """
    if not demonstration.run(folder, gigabytes, seed, keep, Console()):
        raise click.ClickException("The demo did not go as it should have.")
