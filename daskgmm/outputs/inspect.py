"""What stands at a place: whether it may be written to, and how far it is."""

from __future__ import annotations

from daskgmm.outputs.base import Standing, Work, as_json, how_to_write
from daskgmm.outputs.parquet_output import ParquetPlace
from daskgmm.outputs.zarr_output import ZarrPlace
from daskgmm.storage.retry import check_free
from daskgmm.storage.urls import absolute, is_parquet_name


def check(url: str, work: Work) -> None:
    """Refuse a place that must not be written to.

    Raises
    ------
    PlaceError
        If there is something else; or an output that is complete, or of another
        command, and is not to be overwritten. The message says what differs.
    """
    check_free(url)
    output = _place(absolute(url))
    how_to_write(output, output.description(), as_json(work.identity), work.overwrite)


def standing(url: str) -> Standing | None:
    """How far an output is; None if what is there is no output of ours."""
    place = _place(absolute(url))
    try:
        found = place.description()
    except FileExistsError:
        return None
    if not found:
        return None
    complete = bool(found.get("complete"))
    if "layout" not in found:  # another one's, or what an overwriting left
        return None if complete else Standing(0, 0, False)
    place = type(place)(place.url, found["layout"])
    missing = place.missing()
    return Standing(place.n_parts, len(missing), complete)


def _place(url: str) -> ZarrPlace | ParquetPlace:
    """Where an output goes, by its name."""
    return ParquetPlace(url) if is_parquet_name(url) else ZarrPlace(url)
