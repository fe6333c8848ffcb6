"""The command ``daskgmm``: fit, predict, score, sample, info, demo."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Final, final

import click
import dask.array as da
import numpy as np
import zarr
from distributed import KilledWorker
from rich import box
from rich.table import Table
from sklearn.exceptions import ConvergenceWarning

from daskgmm.cli.estimate import Forecast, forecast_answer, forecast_fit
from daskgmm.cli.options import (
    Cluster,
    Data,
    cluster_options,
    data_options,
    dry_run_option,
    json_option,
    missing_option,
    nan_option,
)
from daskgmm.cli.report import Report, seconds
from daskgmm.data.opening import Opened, open_node
from daskgmm.data.parquet import ParquetRows, summary
from daskgmm.data.sources import as_dask
from daskgmm.data.table_files import TableFiles, find_files, has_suffix
from daskgmm.data.versions import versions_of
from daskgmm.data.zarr_reader import has_checksum
from daskgmm.demo import run as demonstration
from daskgmm.em.checkpoint import describe, parse_interval
from daskgmm.errors import DaskGMMError, PlaceError, SkippedRowsWarning
from daskgmm.estimators.gaussian import GaussianMixture, load
from daskgmm.estimators.sampling import draw_lazily
from daskgmm.mixtures.covariance import SHAPES
from daskgmm.outputs import writing
from daskgmm.storage.models import existing
from daskgmm.storage.retry import check_free
from daskgmm.storage.urls import absolute as place
from daskgmm.storage.urls import check_apart
from daskgmm.storage.zarr_store import ZarrArray

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
            with warnings.catch_warnings():
                warnings.showwarning = _warn  # type: ignore[assignment]
                return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click ends quietly when nobody reads on
        except KilledWorker as error:
            raise _in_one_line(
                error,
                "A worker process died again and again, most likely for want of "
                "memory: give it more with --memory-limit, or store smaller chunks.",
            ) from error
        except MemoryError as error:
            raise _in_one_line(
                error,
                "Out of memory: give each process more with --memory-limit, start "
                "fewer, or store smaller chunks.",
            ) from error
        except (DaskGMMError, ValueError, OSError, ImportError) as error:
            raise _in_one_line(error, str(error)) from error


def _warn(message: Warning | str, *_where: Any) -> None:
    """Show a warning as errors are shown: users do not know this program's lines."""
    click.echo(f"Warning: {' '.join(str(message).split())}", err=True)


def _in_one_line(error: Exception, message: str) -> click.ClickException:
    """A message, and what was noted where the error passed by."""
    notes = getattr(error, "__notes__", ())
    return click.ClickException(" ".join(" ".join([message, *notes]).split()))


def _check_apart(
    written: Mapping[str, str | None], read: Mapping[str, str | None]
) -> None:
    """Refuse arguments that would have the command write to what it reads."""
    try:
        check_apart(written, read)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _interval(
    _context: click.Context, _parameter: click.Parameter, value: str
) -> int | str:
    """An interval as `fit` takes it: digits alone are passes."""
    interval = int(value) if value.isdigit() else value
    try:
        parse_interval(interval)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return interval


# Dask calls its commands what they call themselves: `dask gmm`.
@click.group(
    "gmm",
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="daskgmm")
def main() -> None:
    """Gaussian mixtures for data larger than memory.

    Data are Zarr arrays with one row for each sample, or Parquet files, on a disk or at
    a URL:

    \b
      daskgmm fit rows.zarr model.zarr -k 8
      daskgmm predict model.zarr rows.zarr labels.zarr
      daskgmm score model.zarr rows.zarr
      daskgmm sample model.zarr drawn.zarr -n 1000000

    They work on a cluster of local processes unless told --scheduler, to join a cluster
    that is running, or --cluster, to start one that a file describes. A command that
    fails ends with status 1 and a line on stderr, one that is mistyped with status 2.
    """  # noqa: D301  \b is a backspace: click leaves the lines that follow alone


@main.command()
@click.argument("store", type=place)
@click.argument("model", type=place)
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
    type=place,
    metavar="STORE",
    help="Zarr array with the weight of each row.",
)
@click.option(
    "--checkpoint",
    type=place,
    metavar="PLACE",
    help="Keep the state of the fit there, a folder or URL. If the same command was "
    "broken off, it goes on from it.",
)
@click.option(
    "--checkpoint-interval",
    default="1 minute",
    show_default=True,
    callback=_interval,
    help="How often: a number of passes, or a time such as 30s.",
)
@data_options
@missing_option
@nan_option
@click.option("--overwrite", is_flag=True, help="Replace a model that is there.")
@dry_run_option
@json_option
@cluster_options
def fit(
    store: str,
    model: str,
    weights: str | None,
    checkpoint: str | None,
    checkpoint_interval: int | str,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    data: Data,
    cluster: Cluster,
    **parameters: Any,
) -> None:
    """Fit a mixture to the rows in STORE, and save it as MODEL.

    STORE is a Zarr array of shape (rows, features), or Parquet: a file, a folder or a
    glob. Each iteration reads it once and prints a line: the number of the pass, the
    mean log likelihood of a row (the bound), its change, the speed, and how long it
    goes on at most.

    \b
      daskgmm fit rows.zarr model.zarr -k 8 --n-init 5 --seed 0
      daskgmm fit 'cells/*.parquet' model.zarr -k 8 --columns x,y --filter 'x > 0'
      daskgmm fit rows.zarr model.zarr -k 8 --dry-run

    With --checkpoint, a fit that was broken off goes on when the same command is given
    again, and ends with the same model to the last bit.
    """  # noqa: D301
    _check_apart(
        {"MODEL": model, "--checkpoint": checkpoint},
        {"STORE": store, "--weights": weights},
    )
    check_free(model)
    if existing(model) is not None and not overwrite:
        raise PlaceError(f"{model} exists: pass --overwrite to replace it.")
    mixture = GaussianMixture(**parameters)
    report = Report(as_json=as_json)
    rows = data.open(store)
    if dry_run:
        _tell(forecast_fit(mixture, rows, *cluster.threads()), report)
        return
    began = perf_counter()
    with (
        cluster.connect(),
        report.passes(mixture.max_iter) as observe,
        warnings.catch_warnings(),
    ):
        for told_below in (ConvergenceWarning, SkippedRowsWarning):
            warnings.simplefilter("ignore", told_below)
        mixture._fit(
            rows,
            weights,
            observer=observe,
            checkpoint=checkpoint,
            checkpoint_interval=checkpoint_interval,
        )
    mixture.save(model, overwrite=overwrite)
    _tell_fitted(mixture, model, perf_counter() - began, report)


def _tell_fitted(
    mixture: GaussianMixture, model: str, time: float, report: Report
) -> None:
    how = "Converged" if mixture.converged_ else "Did not converge"
    report.say(f"{how} in {mixture.n_iter_} iterations, {seconds(time)}.")
    if not mixture.converged_:
        report.say("Raise --max-iter or --tol, or try other starts.")
    if mixture.n_rows_skipped_:
        report.say(f"{mixture.n_rows_skipped_:,} rows with NaN were left out.")
    report.say(f"The model is in {model}.")
    report.end(
        model=model,
        converged=mixture.converged_,
        iterations=mixture.n_iter_,
        passes=mixture.n_passes_,
        bound=mixture.lower_bound_,
        rows_skipped=mixture.n_rows_skipped_,
        seconds=time,
    )


def _tell(forecast: Forecast, report: Report) -> None:
    for line in forecast.lines():
        report.say(line)
    report.end(**asdict(forecast))


@main.command()
@click.argument("model", type=place)
@click.argument("store", type=place)
@click.argument("out", type=place)
@click.option(
    "--kind",
    type=click.Choice(list(_METHODS)),
    default="labels",
    show_default=True,
    help="The most probable component of each row, the probability of each component, "
    "or the log density of the mixture.",
)
@click.option(
    "--key",
    "keys",
    metavar="COLUMN",
    multiple=True,
    help="Column of STORE to carry along, if STORE and OUT are Parquet; may be given "
    "several times.",
)
@data_options
@missing_option
@nan_option
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace another output that is there. The unfinished one of this very "
    "command is gone on with: to begin anew, remove it.",
)
@dry_run_option
@json_option
@cluster_options
def predict(
    model: str,
    store: str,
    out: str,
    kind: str,
    keys: tuple[str, ...],
    missing_chunks: str,
    nan: str,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    data: Data,
    cluster: Cluster,
) -> None:
    """Label the rows in STORE by MODEL, and write the labels to OUT.

    OUT is a Zarr array with a row for each of STORE, in chunks of as many rows, with
    checksums; small chunks are put into shards. If its name ends in .parquet, it is a
    folder of Parquet files, one for each block of STORE, with the columns "component",
    or "probability_0" and so on, or "log_density".

    \b
      daskgmm predict model.zarr rows.zarr labels.zarr
      daskgmm predict model.zarr rows.zarr proba.zarr --kind proba
      daskgmm predict model.zarr cells.parquet labels.parquet --key id

    A command that was broken off, by an error or in any other way, goes on when it is
    given again; what is done is kept. OUT says of itself whether it is complete, and so
    does "daskgmm info OUT".
    """  # noqa: D301
    _check_apart({"OUT": out}, {"MODEL": model, "STORE": store})
    mixture = load(model).set_params(missing_chunks=missing_chunks, nan=nan)
    report = Report(as_json=as_json)
    rows = data.open(store, getattr(mixture, "feature_names_in_", None))
    keyed = _keyed(rows, out, keys)
    work = writing.Work(
        {
            "kind": kind,
            "model": _digest(mixture),
            "keys": keys,
            "nan": nan,
            **_identity(rows, data, store),
        },
        overwrite,
        versions_of(rows).of_rows,
    )
    writing.check(out, work)
    if dry_run:
        _tell(forecast_answer(mixture, rows, *cluster.threads()), report)
        return
    began = perf_counter()
    with cluster.connect(), report.counting("parts") as observe:
        answer = getattr(mixture, _METHODS[kind])(rows)
        work = replace(work, observer=observe)
        if has_suffix(out):
            written = writing.write_parquet(
                answer,
                out,
                work,
                names=_columns(kind, mixture.n_components),
                keys=keys,
                keyed=keyed,
            )
        else:
            written = writing.write_zarr(_with_lengths(answer, rows), out, work)
    _tell_written(written, out, perf_counter() - began, report)


def _keyed(rows: Opened, out: str, keys: tuple[str, ...]) -> ParquetRows | None:
    """What has the key columns."""
    if not keys:
        return None
    if not (isinstance(rows, ParquetRows) and has_suffix(out)):
        raise click.UsageError("--key is for STORE and OUT that are Parquet.")
    # Blocks are cut by what a row takes: more columns to read would cut them anew.
    return rows


def _columns(kind: str, n_components: int) -> list[str]:
    if kind == "proba":
        return [f"probability_{k}" for k in range(n_components)]
    return ["component" if kind == "labels" else "log_density"]


def _with_lengths(answer: da.Array, rows: Opened) -> da.Array:
    """An answer whose blocks' lengths are known, if need be by counting rows."""
    if np.isnan(answer.shape[0]):
        # To count rows costs less than to count answers.
        counted: Any = as_dask(rows).compute_chunk_sizes()
        answer._chunks = (counted.chunks[0], *answer.chunks[1:])
    return answer


def _digest(mixture: GaussianMixture) -> Any:
    parameters = (mixture.weights_, mixture.means_, mixture.precisions_cholesky_)
    return describe(np.concatenate([np.ravel(array) for array in parameters]))


def _identity(rows: Opened, data: Data, store: str) -> dict[str, Any]:
    """The data, as far as they are known before they are read."""
    if isinstance(rows, ParquetRows):
        return {
            "data": rows.url,
            "columns": rows.columns,
            "filters": [[name, op, str(value)] for name, op, value in data.filters],
            "blocks": rows.n_blocks,
            "rows": None if np.isnan(rows.n_rows) else int(rows.n_rows),
        }
    return {
        "data": store if data.array is None else f"{store}, array {data.array}",
        "decode_cf": data.decode_cf,
        "shape": rows.shape,
        "dtype": str(rows.dtype),
    }


def _tell_written(
    written: writing.Written, out: str, time: float, report: Report
) -> None:
    found = written.n_found
    kept = f", {found} of {written.n_parts} parts being there already" if found else ""
    report.say(f"Wrote {written.n_rows:,} rows to {out} in {seconds(time)}{kept}.")
    report.end(
        out=out,
        rows=written.n_rows,
        parts=written.n_parts,
        parts_found=found,
        seconds=time,
    )


@main.command()
@click.argument("model", type=place)
@click.argument("store", type=place)
@data_options
@missing_option
@nan_option
@dry_run_option
@json_option
@cluster_options
def score(
    model: str,
    store: str,
    missing_chunks: str,
    nan: str,
    dry_run: bool,
    as_json: bool,
    data: Data,
    cluster: Cluster,
) -> None:
    """Print how well MODEL describes the rows in STORE, from one pass over them.

    That is the mean log density of a row (the higher, the better), and the criteria of
    Akaike and of Bayes (the lower, the better), which compare models with different
    numbers of components:

    \b
      daskgmm score model-8.zarr rows.zarr
      daskgmm score model-9.zarr rows.zarr --json
    """  # noqa: D301
    mixture = load(model).set_params(missing_chunks=missing_chunks, nan=nan)
    report = Report(as_json=as_json)
    rows = data.open(store, getattr(mixture, "feature_names_in_", None))
    if dry_run:
        _tell(forecast_answer(mixture, rows, *cluster.threads()), report)
        return
    with cluster.connect(), report.console.status("reading"):
        found, dtype = mixture._score(rows, None)
    facts = {
        "rows": int(found.weight),
        "mean_log_density": float(dtype.type(found.mean)),
        "aic": found.aic(mixture._n_parameters()),
        "bic": found.bic(mixture._n_parameters()),
    }
    report.say(f"Rows               : {facts['rows']:,}")
    report.say(f"Mean log density   : {facts['mean_log_density']:.6f}")
    report.say(f"AIC                : {facts['aic']:.3f}")
    report.say(f"BIC                : {facts['bic']:.3f}")
    report.end(**facts)


@main.command()
@click.argument("model", type=place)
@click.argument("out", type=place)
@click.option(
    "-n",
    "--rows",
    "n_rows",
    type=click.IntRange(min=1),
    required=True,
    help="How many rows to draw.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    help="Seed of the draw.  [default: another one each time]",
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace another output that is there. The unfinished one of this very "
    "command is gone on with: to begin anew, remove it.",
)
@json_option
def sample(
    model: str,
    out: str,
    n_rows: int,
    seed: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Draw rows from MODEL, in random order, and write them to OUT.

    OUT is a Zarr array of shape (rows, features), or, if its name ends in .parquet, a
    folder of Parquet files. Rows are drawn block by block: any number of them takes
    little memory.

    \b
      daskgmm sample model.zarr drawn.zarr -n 1000000 --seed 0
      daskgmm sample model.zarr drawn.parquet -n 1000000

    The same seed gives the same rows. Each block of 8 MB has a seed of its own, the
    i-th child of SEED, so that more rows begin with the same whole blocks.
    """  # noqa: D301
    _check_apart({"OUT": out}, {"MODEL": model})
    mixture = load(model)
    report = Report(as_json=as_json)
    seed = secrets.randbits(32) if seed is None else seed
    identity = {
        "kind": "sample",
        "model": _digest(mixture),
        "rows": n_rows,
        "seed": seed,
    }
    began = perf_counter()
    drawn = draw_lazily(mixture, n_rows, seed)
    with report.counting("parts") as observe:
        work = writing.Work(identity, overwrite, observer=observe)
        if has_suffix(out):
            written = writing.write_parquet(drawn, out, work, names=_features(mixture))
        else:
            written = writing.write_zarr(drawn, out, work)
    report.say(f"Seed {seed}.")
    _tell_written(written, out, perf_counter() - began, report)


def _features(mixture: GaussianMixture) -> list[str]:
    numbered = [f"feature_{j}" for j in range(mixture.n_features_in_)]
    return list(map(str, getattr(mixture, "feature_names_in_", numbered)))


@main.command()
@click.argument("what", metavar="MODEL_OR_STORE", type=place)
@json_option
def info(what: str, as_json: bool) -> None:
    """Describe a model, data, or an output: whether it is complete.

    \b
      daskgmm info model.zarr
      daskgmm info labels.zarr
      daskgmm info cells.parquet --json
    """  # noqa: D301
    report = Report(as_json=as_json)
    standing = writing.standing(what)
    has_parts = standing is None or standing.n_missing < standing.n_parts
    files = find_files(what) if has_parts else None
    if files is not None or (standing is not None and has_suffix(what)):
        _describe_parquet(files, standing, report)
        return
    found = open_node(what)
    if isinstance(found, zarr.Array):
        _describe_array(found, standing, report)
    else:
        _describe_model(load(what), report)


def _describe_array(
    array: ZarrArray, standing: writing.Standing | None, report: Report
) -> None:
    report.say(str(array.info))
    _say_standing(standing, "chunks" if array.shards is None else "shards", report)
    checksums = has_checksum(array)
    report.say(
        "Checksums          : "
        + (
            "yes"
            if checksums
            else "none: a flipped bit would not be noticed (add Crc32cCodec)"
        ),
    )
    report.end(
        type="array",
        shape=array.shape,
        dtype=str(array.dtype),
        chunks=array.chunks,
        shards=array.shards,
        checksums=checksums,
        **_standing_facts(standing),
    )


def _describe_parquet(
    files: TableFiles | None, standing: writing.Standing | None, report: Report
) -> None:
    facts: dict[str, Any] = {}
    if files is not None:
        columns, n_rows = summary(files)
        facts = {"columns": columns, "rows": n_rows}
        report.say(f"Parquet            : {n_rows:,} rows")
        report.say(f"Columns            : {', '.join(columns)}")
    _say_standing(standing, "files", report)
    report.end(type="parquet", **facts, **_standing_facts(standing))


def _say_standing(
    standing: writing.Standing | None, parts: str, report: Report
) -> None:
    """Say whether an output is complete."""
    if standing is None:
        return
    if standing.complete and not standing.n_missing:
        how = "complete"
    else:
        how = (
            f"not complete: {standing.n_missing} of {standing.n_parts} {parts} missing"
        )
    report.say(f"Output             : {how}")


def _standing_facts(standing: writing.Standing | None) -> dict[str, Any]:
    if standing is None:
        return {}
    return {
        "complete": standing.complete and not standing.n_missing,
        "parts": standing.n_parts,
        "parts_missing": standing.n_missing,
    }


def _describe_model(model: GaussianMixture, report: Report) -> None:
    how = "converged" if model.converged_ else "not converged"
    report.say(
        f"{type(model).__name__}: {model.n_components} components, "
        f"{model.n_features_in_} features, {model.covariance_type} covariance",
    )
    report.say(
        f"{how} after {model.n_iter_} iterations, bound {model.lower_bound_:.6f}",
    )
    table = Table("component", "weight", "mean", box=box.SIMPLE_HEAD, pad_edge=False)
    for k, (weight, mean) in enumerate(zip(model.weights_, model.means_, strict=True)):
        numbers = np.array2string(mean, precision=4, threshold=8, suppress_small=True)
        table.add_row(str(k), f"{weight:.4f}", numbers)
    report.console.print(table)
    report.end(
        type="model",
        components=model.n_components,
        features=model.n_features_in_,
        covariance_type=model.covariance_type,
        converged=model.converged_,
        iterations=model.n_iter_,
        bound=model.lower_bound_,
        weights=model.weights_.tolist(),
        means=model.means_.tolist(),
    )


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
    type=click.FloatRange(min=demonstration.BUDGET / 1000),
    default=demonstration.GIGABYTES,
    show_default=True,
    help="Size of the data in GB, more than a process may take.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--keep", is_flag=True, help="Keep the data when done.")
@json_option
def demo(folder: Path, gigabytes: float, seed: int, keep: bool, as_json: bool) -> None:
    """Fit data in less memory than they take, and show what was found.

    Writes rows of a known mixture to a Zarr array, fits a mixture on a local cluster
    whose processes are kept from taking the memory to hold them, compares it with the
    known one, and draws it. Fails unless they agree and the memory was kept to.

    \b
      daskgmm demo
      daskgmm demo --size 0.5 --folder /tmp/demo
    """  # noqa: D301
    report = Report(as_json=as_json)
    if not demonstration.run(folder, gigabytes, seed, keep, report.console):
        raise click.ClickException("The demo did not go as it should have.")
    report.end(folder=str(folder), gigabytes=gigabytes, seed=seed, passed=True)
