"""Columns of pandas' data frames as features.

As scikit-learn, and beyond: numbers of any dtype, nullable and Arrow's too; categories
and strings that are numbers; sparse columns; and columns of lists of one length, of
which each element is a feature.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from numbers import Real
from typing import Any, Final, Self, final

import numpy as np
from numpy.typing import NDArray

from daskgmm.errors import DataError, MissingLibraryError

_LISTS: Final = (list, tuple, np.ndarray)


def element_names(column: Any, width: int) -> list[str]:
    """Names of the features that a column of lists gives."""
    return [f"{column}[{i}]" for i in range(width)]


def float_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Dtype of results for rows of a dtype: float32 stays, all else is float64."""
    return np.dtype(np.float32 if dtype.newbyteorder("=") == np.float32 else np.float64)


@final
@dataclass(frozen=True, slots=True)
class FrameColumns:
    """What the columns of a data frame give.

    Attributes
    ----------
    labels : tuple
        Of the columns, in order.
    widths : tuple of int
        Features that each gives: of lists, their length; 0 stands for one of numbers.
    dtype : dtype
        float32 if no column needs more, else float64.
    """

    labels: tuple[Any, ...]
    widths: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, frame: Any) -> Self:
        """Those of a data frame of which some rows are there, if it has lists.

        Raises
        ------
        DataError
            If a column holds no numbers; it names the column.
        """
        labels = tuple(frame.columns)
        kinds = [
            _kind(frame.iloc[:, j], f"Column {label!r} of X")
            for j, label in enumerate(labels)
        ]
        dtypes = [dtype for _, dtype in kinds]
        dtype = float_dtype(np.result_type(*dtypes)) if kinds else np.dtype(float)
        return cls(labels, tuple(width for width, _ in kinds), dtype)

    @property
    def names(self) -> list[Any]:
        """Of the features."""
        return list(
            chain.from_iterable(
                element_names(label, width) if width else [label]
                for label, width in zip(self.labels, self.widths, strict=True)
            )
        )

    @property
    def n_features(self) -> int:
        """Number of features, d."""
        return sum(max(1, width) for width in self.widths)

    def numbers(self, frame: Any, what: str = "X") -> NDArray[Any]:
        """The features of a data frame with these columns, (n, d), with NaN for null.

        Parameters
        ----------
        frame : pandas.DataFrame
            Columns in another order are put in order by their labels.
        what : str
            What it is, for errors.

        Raises
        ------
        DataError
            If it has other columns, or what cannot be a number.
        """
        frame = self._in_order(frame, what)
        if not any(self.widths) and all(map(is_plain, frame.dtypes)):
            numbers: NDArray[Any] = frame.astype(self.dtype).to_numpy()
            return numbers
        parts = [
            _numbers(frame.iloc[:, j], width, f"Column {label!r} of {what}")
            for j, (label, width) in enumerate(
                zip(self.labels, self.widths, strict=True)
            )
        ]
        if len(parts) == 1 and parts[0].ndim == 2:
            return parts[0].astype(self.dtype, copy=False)
        return np.column_stack(parts).astype(self.dtype, copy=False)

    def _in_order(self, frame: Any, what: str) -> Any:
        given, labels = list(frame.columns), list(self.labels)
        if given == labels:
            return frame
        if len(set(given)) == len(given) and set(given) == set(labels):
            return frame[labels]
        raise DataError(
            f"{what} has the columns {given}, but {labels} are expected, as the data "
            "frame says that it has: all partitions must have the same."
        )


def is_plain(dtype: Any) -> bool:
    """Whether a pandas dtype is of real numbers, with NaN for null if need be."""
    return _plain_dtype(dtype) is not None


def _plain_dtype(dtype: Any) -> np.dtype[Any] | None:
    """NumPy's dtype for one of pandas that is of real numbers."""
    # Nullable dtypes and Arrow's say what they would be without nulls.
    plain = getattr(dtype, "numpy_dtype", dtype)
    return plain if isinstance(plain, np.dtype) and plain.kind in "fiub" else None


def check_number(dtype: Any, name: str) -> np.dtype[Any]:
    """NumPy's dtype for one of pandas, or DataError if it is none of real numbers."""
    plain = _plain_dtype(dtype)
    if plain is not None:
        return plain
    raise DataError(
        f"{name} has dtype {dtype}: only real numbers can be used. Convert it with "
        "astype(float), or leave it out."
    )


def _kind(column: Any, name: str) -> tuple[int, np.dtype[Any]]:
    """Elements of a column's lists, or 0 of one of numbers; and the numbers' dtype."""
    plain = _plain_dtype(column.dtype)
    if plain is not None:
        return 0, plain
    if may_be_lists(column.dtype):
        first = next((v for v in column if isinstance(v, _LISTS)), None)
        if first is not None:
            row = _list_numbers(first)
            if row.ndim != 1 or not row.size or row.dtype.kind not in "fiub":
                raise DataError(
                    f"{name} begins with {first!r}: only lists of real numbers, all of "
                    "one length, give features."
                )
            return row.size, row.dtype
    if _holds_numbers(column.dtype):
        return 0, np.dtype(float)
    check_number(column.dtype, name)
    raise AssertionError  # it has raised


def may_be_lists(dtype: Any) -> bool:
    """Whether a column of a pandas dtype may hold lists: its values tell."""
    return dtype == np.dtype(object) or str(dtype).startswith(
        ("list<", "fixed_size_list<", "large_list<", "list_view<", "large_list_view<")
    )


def first_with_lists(frame: Any) -> Any:
    """The first row of a data frame that has no null where a list may be."""
    places = [j for j, dtype in enumerate(frame.dtypes) if may_be_lists(dtype)]
    there = frame.iloc[:, places].notna().all(axis=1).to_numpy()
    return frame.iloc[np.flatnonzero(there)[:1]]


def _holds_numbers(dtype: Any) -> bool:
    """Whether values of a pandas dtype may be numbers: strings, categories, sparse."""
    kind = type(dtype).__name__
    if kind == "CategoricalDtype":
        categories = dtype.categories
        # Dask may not know them yet.
        return (
            categories is None
            or _holds_numbers(categories.dtype)
            or is_plain(categories.dtype)
        )
    if kind == "SparseDtype":
        return _plain_dtype(dtype.subtype) is not None
    return (
        dtype == np.dtype(object)
        or kind == "StringDtype"
        or str(dtype).startswith(("string[", "large_string[", "decimal"))
    )


def _numbers(column: Any, width: int, name: str) -> NDArray[Any]:
    """A column's numbers, (n,), or (n, width) of one of lists."""
    if width:
        return np.array(list(_rows(column, width, name)))
    if type(column.dtype).__name__ == "SparseDtype":
        column = column.sparse.to_dense()
    try:
        numbers: NDArray[Any] = column.astype(float).to_numpy()
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} is not numeric: {error}.{_hint(column)}") from error
    return numbers


def _hint(column: Any) -> str:
    """What to do about structs, and about lists that Dask has made strings of."""
    if any(isinstance(value, dict) for value in column[:1]):
        return (
            " Make columns of a struct's fields, as pandas.json_normalize does; of "
            "Parquet, columns=['struct.field'] names them."
        )
    if not any(str(value).startswith("[") for value in column[:1]):
        return ""
    return (
        " If Dask has made strings of lists, set dataframe.convert-string to False in "
        "its configuration before the data frame is made."
    )


def _rows(column: Any, width: int, name: str) -> Iterator[NDArray[Any]]:
    """A column's lists; a row of NaN where there is none."""
    nothing = np.full(width, np.nan)
    for row, value in enumerate(column):
        if not isinstance(value, _LISTS):
            if _is_null(value):
                yield nothing
                continue
            raise DataError(f"{name} has {value!r} in row {row}, no list of numbers.")
        numbers = _list_numbers(value)
        if numbers.shape == (width,) and numbers.dtype.kind not in "fiub":
            raise DataError(
                f"{name} has {value!r} in row {row}, no list of real numbers."
            )
        if numbers.shape != (width,):
            raise DataError(
                f"{name} has a list of {len(value)} elements in row {row}, and lists "
                f"of {width} numbers elsewhere: features are lists of one length."
            )
        yield numbers


def _list_numbers(value: Any) -> NDArray[Any]:
    """The elements of a list; NaN for those that are null."""
    numbers = np.asarray(value)
    if numbers.dtype != np.dtype(object) or numbers.ndim != 1:
        return numbers
    elements = [np.nan if _is_null(element) else element for element in numbers]
    if all(isinstance(element, (Real, Decimal)) for element in elements):
        return np.array(elements, dtype=float)
    return numbers


def _is_null(value: Any) -> bool:
    """Whether a value stands for none: None, NaN or pandas' NA."""
    return value is None or bool(sys.modules["pandas"].isna(value) is True)


def as_table(columns: Mapping[str, NDArray[Any]]) -> Any:
    """Columns as a pandas DataFrame.

    Raises
    ------
    MissingLibraryError
        If pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingLibraryError(
            "A table is a pandas DataFrame: pip install pandas."
        ) from error
    return pd.DataFrame(columns)
