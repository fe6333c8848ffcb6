"""Whether Parquet has some columns, found out by Arrow alone: all else is slow to load.

What it does not find out, whoever opens the place will.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from daskgmm.errors import MissingLibraryError


def need_arrow() -> None:
    """Raise MissingLibraryError where there is no pyarrow."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise MissingLibraryError(
            "Parquet needs pyarrow: pip install 'daskgmm[parquet]'."
        ) from error


def missing_column(path: str, wanted: Iterable[str]) -> str | None:
    """What is said of the first column that a file lacks; None if nothing is known.

    The fields of structs, and elements of lists, are left to whoever opens the place.
    """
    if "=" in path:  # a column of paths, by which files are picked
        return None
    need_arrow()
    from pyarrow import ArrowException
    from pyarrow.parquet import read_schema

    try:
        names = read_schema(path).names
    except (ArrowException, OSError):
        return None
    for name in wanted:
        if re.split(r"[.\[]", name)[0] not in names and name not in names:
            return no_column(path, name, names)
    return None


def no_column(path: str, name: str, names: Iterable[str]) -> str:
    """What is said of a column that a Parquet file lacks."""
    has = ", ".join(map(repr, names))
    return f"The Parquet file {path} has no column {name!r}: it has {has}."
