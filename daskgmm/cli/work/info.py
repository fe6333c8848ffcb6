"""``daskgmm info``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import zarr
from rich import box
from rich.table import Table

from daskgmm import steps
from daskgmm.cli.work.report import Report
from daskgmm.data.opening import open_node, shapes_in
from daskgmm.data.parquet import summary
from daskgmm.data.table_files import TableFiles, find_files
from daskgmm.data.zarr_reader import has_checksum
from daskgmm.display.words import counted
from daskgmm.estimators.models import load
from daskgmm.estimators.trained import TrainedMixture
from daskgmm.outputs import inspect
from daskgmm.outputs.base import Standing
from daskgmm.storage.glance import OURS
from daskgmm.storage.urls import is_parquet_name
from daskgmm.storage.zarr_store import ZarrArray


def info(what: str, as_json: bool) -> None:
    """See the command."""
    report = Report(as_json=as_json)
    with report.steps():
        steps.begin(f"opening {what}")
        describe = _describer(what)
    describe(report)


def _describer(what: str) -> Callable[[Report], None]:
    """What tells of the kind that was found."""
    standing = inspect.standing(what)
    has_parts = standing is None or standing.n_missing < standing.n_parts
    files = find_files(what) if has_parts else None
    if files is not None or (standing is not None and is_parquet_name(what)):
        facts = {} if files is None else _parquet_facts(files)
        return partial(_describe_parquet, facts, standing)
    found = open_node(what)
    if isinstance(found, zarr.Array):
        return partial(_describe_array, found, standing)
    if OURS not in found.attrs and (arrays := shapes_in(found)):
        return partial(_describe_group, arrays)
    return partial(_describe_model, load(what))


def _describe_group(arrays: dict[str, tuple[int, ...]], report: Report) -> None:
    report.say("Zarr group, with the arrays (for --array):")
    for path, shape in sorted(arrays.items()):
        report.say(f"  {path}  {shape}")
    report.end(type="group", arrays=arrays)


def _describe_array(
    array: ZarrArray, standing: Standing | None, report: Report
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


def _parquet_facts(files: TableFiles) -> dict[str, Any]:
    columns, n_rows = summary(files)
    return {"columns": columns, "rows": n_rows}


def _describe_parquet(
    facts: dict[str, Any], standing: Standing | None, report: Report
) -> None:
    if facts:
        report.say(f"Parquet            : {facts['rows']:,} rows")
        report.say(f"Columns            : {', '.join(facts['columns'])}")
    _say_standing(standing, "files", report)
    report.end(type="parquet", **facts, **_standing_facts(standing))


def _say_standing(standing: Standing | None, parts: str, report: Report) -> None:
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


def _standing_facts(standing: Standing | None) -> dict[str, Any]:
    if standing is None:
        return {}
    return {
        "complete": standing.complete and not standing.n_missing,
        "parts": standing.n_parts,
        "parts_missing": standing.n_missing,
    }


def _describe_model(model: TrainedMixture, report: Report) -> None:
    how = "converged" if model.converged_ else "not converged"
    report.say(
        f"{type(model).__name__}: {counted(model.n_components, 'component')}, "
        f"{counted(model.n_features_in_, 'feature')}, {model.covariance_type} "
        "covariance",
    )
    report.say(
        f"{how} after {counted(model.n_iter_, 'iteration')}, bound "
        f"{model.lower_bound_:.6f}",
    )
    names = [*map(str, getattr(model, "feature_names_in_", ()))]
    if names:
        report.say(f"features: {', '.join(names)}")
    table = Table("component", "weight", "mean", box=box.SIMPLE_HEAD, pad_edge=False)
    for k, (weight, mean) in enumerate(zip(model.weights_, model.means_, strict=True)):
        numbers = np.array2string(mean, precision=4, threshold=8, suppress_small=True)
        table.add_row(str(k), f"{weight:.4f}", numbers)
    report.console.print(table)
    report.end(
        type="model",
        components=model.n_components,
        features=model.n_features_in_,
        feature_names=names or None,
        passes=model.n_passes_,
        covariance_type=model.covariance_type,
        converged=model.converged_,
        iterations=model.n_iter_,
        bound=model.lower_bound_,
        weights=model.weights_.tolist(),
        means=model.means_.tolist(),
    )
