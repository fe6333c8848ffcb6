"""What is refused before anything is loaded for the work."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import click

from daskgmm.cli.options import Cluster, Data
from daskgmm.cli.wording import as_options
from daskgmm.data.column_check import missing_column, need_arrow
from daskgmm.execution.cluster_file import content_of
from daskgmm.storage.glance import (
    OTHER_FILE,
    ArrayThere,
    array_at,
    arrays_in,
    first_parquet,
    holds_array,
    holds_model,
    is_empty,
    is_folder,
    is_other_file,
    is_whole_output,
    lacks_array,
    n_features_of,
    names_of,
    said_of_group,
    why_no_data,
    why_not_written,
)
from daskgmm.storage.urls import (
    as_path,
    check_apart,
    is_parquet_name,
    why_read_only,
)

if TYPE_CHECKING:
    from daskgmm.data.parquet import ParquetRows

_NOT_WRITTEN: Final = frozenset(
    {".csv", ".tsv", ".txt", ".json", ".jsonl", ".npy", ".npz", ".h5", ".hdf5", ".nc"}
    | {".feather", ".arrow", ".orc", ".avro", ".xls", ".xlsx", ".db", ".sqlite"}
    | {".pkl", ".pickle", ".joblib"}
)
"""Suffixes of what people may expect, and would not get."""
_COMPRESSED: Final = frozenset({".gz", ".bz2", ".xz", ".zst", ".zip"})


def _suffix(place: str) -> str:
    """Of what a name promises, compressed or not."""
    path = PurePosixPath(place.rstrip("/").lower())
    while path.suffix in _COMPRESSED:
        path = path.with_suffix("")
    return path.suffix


def check_format(out: str) -> None:
    """Refuse a name that promises a format which is none of those written."""
    if (suffix := _suffix(out)) in _NOT_WRITTEN:
        raise click.UsageError(
            f"{out} would be no {suffix[1:].upper()}: what is written is Parquet if "
            "the name of OUT ends in .parquet, and else a Zarr array. Choose such a "
            "name."
        )


def check_there(**places: str | None) -> None:
    """Refuse arguments that should be there, and are not, or are no data."""
    for name, place in places.items():
        if place is not None and is_empty(place):
            where = f"in the folder {place}" if is_folder(place) else f"at {place}"
            raise click.ClickException(f"{name}: there is nothing {where}.")
        if place is not None and is_other_file(place):
            raise click.ClickException(
                f"There is no Zarr array and no Parquet at {place}. {OTHER_FILE}"
            )


def check_store(
    store: str,
    data: Data,
    key: Sequence[str] = (),
    *,
    model: str | None = None,
    n_components: int = 0,
) -> None:
    """Refuse what is not there, options of the other kind, and columns mistyped.

    And arrays of a shape that does not suit the model, if there is one, or as many
    components.
    """
    check_there(STORE=store)
    if "://" in store and is_parquet_name(store):
        need_arrow()
    for_parquet = {
        "--columns": data.columns,
        "--filter": data.filters,
        "--key": key,
        "--table-version": data.version,
    }
    for_zarr = {"--array": data.array, "--decode-cf": data.decode_cf}
    if (option := _given(for_parquet)) and holds_array(store):
        raise click.ClickException(f"{store} is not Parquet, which {option} is for.")
    misfit = _given(for_zarr)
    if data.array is not None and holds_array(store):
        raise click.ClickException(f"{store} is an array itself: leave out --array.")
    if data.array is not None and lacks_array(store, data.array):
        raise click.ClickException(
            f"There is no array {data.array!r} in {store}, as --array names it."
        )
    wanted = [*(data.columns or ()), *key, *(name for name, _, _ in data.filters)]
    path = first_parquet(store)
    if path is None:
        _check_array(store, data.array, model, n_components)
        if data.storage_options and array_at(store, data.array) is not None:
            raise click.ClickException(
                f"--storage-option is for a STORE at a URL, and {store} is on this "
                "machine."
            )
        return
    if data.version is not None:
        raise click.ClickException(
            f"{store} has no versions: it is no table of Delta Lake."
        )
    if misfit:
        raise click.ClickException(f"{store} is not Zarr, which {misfit} is for.")
    if said := missing_column(path, wanted):
        raise click.ClickException(said)
    names = None if model is None else tuple(names_of(model))
    rows = _rows_of_file(path, data.columns or names or None, data)
    if rows is None:
        return
    if store == path and not data.filters:
        _check_number(n_components, rows.n_rows)
    if model is not None:
        _check_same(rows, model)


def _check_array(
    store: str, array: str | None, model: str | None, n_components: int
) -> None:
    """Refuse a Zarr group, or an array of a shape that does not suit."""
    if (said := why_no_data(store)) is not None:
        raise click.ClickException(said)
    found = _array_of_numbers("STORE", store, array, n_dimensions=2)
    if found is None:
        return
    n_rows, has = found.shape
    wanted = None if model is None else n_features_of(model)
    if wanted not in (None, has):
        said = f"X has {has} features, but it is expecting {wanted} features as input."
        raise click.ClickException(as_options(said))
    _check_number(n_components, n_rows)


def _check_same(rows: ParquetRows, model: str) -> None:
    """Refuse columns that are not the features of a model, as far as it says those."""
    fitted, names = n_features_of(model), names_of(model)
    if fitted not in (None, rows.n_features):
        raise click.ClickException(
            f"STORE has {rows.n_features} features, and MODEL was fitted to {fitted}: "
            "choose them with --columns."
        )
    if names and list(rows.names) != names:
        raise click.ClickException(
            f"--columns gives {', '.join(rows.names)}, and MODEL was fitted to "
            f"{', '.join(names)}, in this order."
        )


def check_weights(weights: str | None, store: str, data: Data) -> None:
    """Refuse weights that are not there, or that do not suit the rows."""
    check_there(**{"--weights": weights})
    if weights is None:
        return
    found = _array_of_numbers("--weights", weights, None, n_dimensions=1)
    rows = array_at(store, data.array)
    if found is not None and rows is not None:
        check_as_many(found, rows.shape[0])


def check_as_many(weights: ArrayThere, n_rows: float) -> None:
    """Refuse weights of another number of rows."""
    if weights.shape[0] != n_rows:
        raise click.ClickException(
            f"--weights has {weights.shape[0]} entries, but STORE has {n_rows:.0f} "
            "rows."
        )


def _array_of_numbers(
    name: str, place: str, array: str | None, *, n_dimensions: int
) -> ArrayThere | None:
    """A Zarr array on this machine, refused if it has not numbers in such a shape."""
    if holds_model(place) and array is None:
        raise click.ClickException(f"{place} holds a model, and nothing for {name}.")
    if (inside := arrays_in(place, array)) is not None:
        said = said_of_group(place, array, inside, n_dimensions=n_dimensions)
        raise click.ClickException(as_options(said))
    found = array_at(place, array)
    if found is None:
        return None
    what = place if array is None else f"{place}, array {array!r}"
    if len(found.shape) != n_dimensions:
        wanted = "2-D array of rows and features" if n_dimensions == 2 else "1-D array"
        raise click.ClickException(
            f"{name}: {what} has the shape {found.shape}: expected a {wanted}."
        )
    if not found.is_of_numbers:
        raise click.ClickException(
            f"{name}: {what} holds {found.dtype}: only real numbers can be used."
        )
    return found


def _check_number(n_components: int, n_rows: float | None) -> None:
    """Refuse more components than rows, as far as these are known."""
    if n_rows is not None and n_components > n_rows:
        raise click.ClickException(
            f"--components {n_components} is more than there are rows: {n_rows:.0f}."
        )


def _rows_of_file(
    path: str, columns: Sequence[str] | None, data: Data
) -> ParquetRows | None:
    """Refuse columns of no numbers, and filters that do not fit, as opening does.

    A file without rows may know no types: whoever opens all files says more.
    """
    if "=" in path:  # a column of paths, by which files are picked
        return None
    from daskgmm.data.parquet import rows_of, summary
    from daskgmm.data.table_files import find_files

    files = find_files(path)
    if files is None or not summary(files)[1]:
        return None
    return rows_of(files, columns, [*data.filters] or None)


def _given(options: Mapping[str, Any]) -> str | None:
    """The first option that was given."""
    return next((name for name, its in options.items() if its not in (None, ())), None)


def check_holds_model(model: str) -> None:
    """Refuse what is no model, in the words of who loads them."""
    if is_empty(model):
        raise click.ClickException(f"There is no model at {model}.")
    if holds_array(model):
        raise click.ClickException(f"{model} holds no model, but a Zarr array.")


def check_features(model: str, features: Sequence[int | str] | None) -> None:
    """Refuse features that a model has not, as far as it says so at a glance."""
    n_features, names = n_features_of(model), names_of(model)
    if n_features is None:
        return
    for feature in features or ():
        if feature in names or (isinstance(feature, int) and feature < n_features):
            continue
        has = f"or {', '.join(names)}" if names else "without names"
        raise click.ClickException(
            f"--features: MODEL has no feature {feature}, but 0 to {n_features - 1}, "
            f"{has}."
        )
    if features is not None and len(set(features)) < len(features):
        raise click.ClickException("--features names a feature twice.")


def check_new_model(model: str, *, overwrite: bool) -> None:
    """Refuse to write where a model is."""
    if holds_model(model) and not overwrite:
        raise click.ClickException(exists(model))


def exists(place: str) -> str:
    """What is said of something in the place of what is to be written."""
    return f"{place} exists: pass --overwrite to replace it."


def check_out(out: str, *, overwrite: bool) -> None:
    """Refuse to write an output over what is there, as far as a glance tells."""
    if said := why_not_written(out) or why_read_only(out):
        raise click.ClickException(said)
    if is_whole_output(out) and not overwrite:
        raise click.ClickException(exists(out))


def check_checkpoint(place: str | None) -> None:
    """Refuse a checkpoint in the place of something else."""
    if place is None:
        return
    kinds = {
        "a file": os.path.isfile(as_path(place)),
        "a model": holds_model(place),
        "a Zarr array": holds_array(place),
    }
    for what, is_one in kinds.items():
        if is_one:
            raise click.ClickException(
                f"--checkpoint: {place} is {what}: choose another place."
            )


def check_not_read_only(*places: str | None) -> None:
    """Refuse places of this machine where this user may not write."""
    for place in places:
        if place is not None and (said := why_read_only(place)):
            raise click.ClickException(said)


def check_cluster(cluster: Cluster) -> None:
    """Refuse a cluster file with a mistake, and an address without its certificates."""
    if cluster.file is not None:
        content_of(cluster.file)  # before Dask loads
        from daskgmm.execution import deploy

        deploy.read(cluster.file).check()
    if cluster.scheduler is not None:
        from daskgmm.execution import deploy

        deploy.addressed(cluster.scheduler, cluster.credentials())


def check_picture(picture: str, *, overwrite: bool) -> None:
    """Refuse to draw over a picture, elsewhere, or in a folder that is not there."""
    if "://" in picture:
        raise click.ClickException(
            f"A picture is written to this machine, and not to {picture}: give a path."
        )
    target = Path(picture)
    if target.exists() and not overwrite:
        raise click.ClickException(exists(picture))
    if not target.parent.is_dir():
        raise click.ClickException(
            f"There is no folder {target.parent}: make it before."
        )
    check_not_read_only(picture)


def check_model_name(model: str) -> None:
    """Refuse a name that promises a format in which no model is written."""
    suffix = _suffix(model)
    if suffix in _NOT_WRITTEN or is_parquet_name(model):
        raise click.UsageError(
            f"{model} would be no {suffix[1:].upper()}: a model is a folder in Zarr's "
            "format. Choose a name such as model.zarr."
        )


def check_arguments_apart(
    written: Mapping[str, str | None], read: Mapping[str, str | None]
) -> None:
    """Refuse arguments that would have the command write to what it reads."""
    try:
        check_apart(written, read)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
