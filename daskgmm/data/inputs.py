"""Data frames and labelled arrays as rows, and answers in the kind the rows came in.

pandas, Dask's data frames and xarray are never imported here: whoever hands over one of
their objects has imported them.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any, Final, NamedTuple, Protocol, final

import dask.array as da
import numpy as np
from dask.array.utils import meta_from_array
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray

from daskgmm.data.block import as_floats
from daskgmm.data.columns import (
    FrameColumns,
    check_number,
    first_with_lists,
    may_be_lists,
)
from daskgmm.data.dask_array import as_dask, is_lazy, opened, with_care
from daskgmm.data.dask_graph import Task, TaskRef
from daskgmm.data.gaps import Gaps
from daskgmm.data.packed import check_not_packed
from daskgmm.data.source import Source
from daskgmm.data.sources import open_source
from daskgmm.data.weights import weights_of_rows_in_memory
from daskgmm.errors import DataError
from daskgmm.loaded import is_a

_VARIABLES: Final = "daskgmm: variables of a Dataset"
"""The dimension along which a Dataset's variables are laid: a name nobody else uses."""
_WRITE: Final = "or write it as Parquet and give the path of that."
_NOT_TAKEN: Final = (
    ("polars", ("LazyFrame",), f"call collect() on it, {_WRITE}"),
    (
        "pyarrow.dataset",
        ("Dataset", "Scanner"),
        "give the path of its files, or what "
        "daskgmm.open_rows(path, columns=…, filters=…) returns.",
    ),
    (
        "pyarrow",
        ("RecordBatchReader",),
        f"it can be read only once. Call read_all() on it, {_WRITE}",
    ),
    ("pyarrow.parquet", ("ParquetFile", "ParquetDataset"), "give the path of it."),
    ("duckdb", ("DuckDBPyRelation",), f"call df() on it, {_WRITE}"),
    ("duckdb", ("DuckDBPyConnection",), f"call df() on what it finds, {_WRITE}"),
    ("pyspark.sql", ("DataFrame",), f"call toPandas() on it, {_WRITE}"),
)
"""Tables that are computed elsewhere, and what to do with them."""


class Axis(NamedTuple):
    """What numbers for a row are along.

    Attributes
    ----------
    name : str
        The dimension that labelled arrays have on top of the rows' own.
    length : int
    labels : tuple of str, or None
    """

    name: str
    length: int
    labels: tuple[str, ...] | None = None


class RowFunction(Protocol):
    """A function of rows, (n, d), that has a number, or some, for each of them.

    It travels to workers. What it is a function of, nobody here knows.
    """

    @property
    def axes(self) -> tuple[Axis, ...]:
        """What its values for a row are along: none, one or two."""

    def dtype(self, of_rows: np.dtype[Any]) -> np.dtype[Any]:
        """Dtype of its values for rows of a dtype."""

    def shape(self, n_rows: int) -> tuple[int, ...]:
        """Shape of its values: (n, ...), with the lengths of the axes."""

    def __call__(self, x: Any, index: int = 0) -> NDArray[Any]:
        """Its values for the block of a number."""

    def in_memory(self, x: NDArray[Any]) -> NDArray[Any]:
        """Its values for any number of rows, on this process's threads."""


class Rows(ABC):
    """Rows of one kind, opened.

    Attributes
    ----------
    gaps : Gaps
        What is done about rows, or chunks, that are not there.
    """

    gaps: Gaps

    @property
    @abstractmethod
    def is_lazy(self) -> bool:
        """Whether rows are read block by block, and answers are lazy too."""

    @property
    @abstractmethod
    def rows(self) -> Any:
        """What `source` takes if lazy; else what scikit-learn makes an array of."""

    @property
    @abstractmethod
    def names(self) -> Any:
        """What has the names, or at least the number, of the features."""

    def weights(self, sample_weight: Any) -> Any:
        """Weights of any kind as what `source` takes: in memory if the rows are.

        Raises
        ------
        DataError
            If they cannot be laid beside the rows.
        """
        if isinstance(sample_weight, np.ma.MaskedArray):
            sample_weight = as_floats(sample_weight, "sample_weight", keep_single=False)
        laid = self._laid(sample_weight)
        return laid if self.is_lazy else weights_of_rows_in_memory(laid, self.gaps)

    def _laid(self, sample_weight: Any) -> Any:
        """Weights, or None, in the order of the rows."""
        return _plain_weights(sample_weight)

    def source(self, rows: Any, weights: Any) -> Source:
        """What a fit reads, of rows that were validated, and their weights.

        Raises
        ------
        DataError
            If they are not of a shape or dtype that can be used.
        """
        return open_source(rows, weights, self.gaps)

    @abstractmethod
    def map(self, function: RowFunction, rows: Any) -> Any:
        """A function's values for these rows, which were validated, in their kind."""


def open_input(X: Any, gaps: Gaps) -> Rows:
    """Rows of any kind; what is not known here is left to scikit-learn.

    Parameters
    ----------
    X : rows of shape (n, d)
        See `GaussianMixture`.
    gaps : Gaps

    Raises
    ------
    DataError
        If they are a data frame with columns that are no numbers, or labelled arrays
        of which it is not clear where the features are.
    """
    if type(X) is np.ndarray:
        return _RowsInMemory(X, gaps)
    if is_a(X, "xarray", "DataArray", "Dataset"):
        X = from_xarray(X)
    if isinstance(X, XarrayRows):
        return replace(X, gaps=gaps)
    if isinstance(X, Rows):
        return X
    if is_a(X, "dask.dataframe", "DataFrame"):
        return _PartitionedRows(X, gaps)
    if is_a(X, "dask.dataframe", "Series", "Index"):
        raise DataError(
            f"X is a Dask {type(X).__name__}: expected a DataFrame. With one feature, "
            "it can be made by to_frame()."
        )
    if is_a(X, "pandas", "DataFrame"):
        return _RowsInMemory(_in_memory(X), gaps)
    for module, names, advice in _NOT_TAKEN:
        if is_a(X, module, *names):
            raise DataError(f"X is a {type(X).__module__}.{type(X).__name__}: {advice}")
    if _is_table(X):
        return _RowsInMemory(_in_memory(X.to_pandas()), gaps)
    # A place is looked at once, not at each use.
    if is_lazy(X):
        return _LazyRows(opened(X), gaps)
    return _RowsInMemory(X, gaps)


def _is_table(X: Any) -> bool:
    """Whether X is a table of Arrow or polars that is to be taken as one of pandas'.

    One of numbers, which scikit-learn would make an array of at eight bytes each, or
    with lists.
    """
    if is_a(X, "polars", "DataFrame"):
        kinds = X.dtypes
        numbers = all(kind.is_numeric() or str(kind) == "Boolean" for kind in kinds)
        return numbers or any(kind.is_nested() for kind in kinds)
    if is_a(X, "pyarrow", "Table", "RecordBatch"):
        kinds = [field.type for field in X.schema]
        arrow = sys.modules["pyarrow"]
        types = arrow.types
        if any(isinstance(kind, arrow.BaseExtensionType) for kind in kinds):
            return True  # tensors of a fixed shape, say
        return all(
            types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
            for kind in kinds
        ) or any(kind.num_fields for kind in kinds)
    return False


@final
@dataclass(frozen=True, eq=False)
class _RowsInMemory(Rows):
    """An array-like or pandas DataFrame."""

    given: Any
    gaps: Gaps
    is_lazy = False

    @property
    def rows(self) -> Any:
        return self.given

    @property
    def names(self) -> Any:
        return self.given

    def map(self, function: RowFunction, rows: Any) -> NDArray[Any]:
        return function.in_memory(rows)


@final
@dataclass(frozen=True, eq=False)
class _LazyRows(Rows):
    """Whatever `open_source` reads itself."""

    given: Any
    gaps: Gaps
    is_lazy = True

    @property
    def rows(self) -> Any:
        return self.given

    @property
    def names(self) -> Any:
        meta = getattr(self.given, "_meta", None)
        # Only its shape is wanted here: missing chunks are an error once rows are read.
        return meta if hasattr(meta, "columns") else as_dask(self.given, Gaps("fill"))

    def map(self, function: RowFunction, rows: Any) -> da.Array:
        return _map_blocks(function, with_care(as_dask(rows, self.gaps), self.gaps))


def _plain_weights(weights: Any) -> Any:
    """Weights without labels, in their order."""
    name = "sample_weight"
    if is_a(weights, "dask.dataframe", "Series"):
        check_number(weights.dtype, name)
        return weights.map_partitions(_as_floats, meta=np.empty(0))
    if is_a(weights, "pandas", "Series") and weights.dtype != np.dtype(object):
        check_number(weights.dtype, name)
        return _as_floats(weights)
    if not is_a(weights, "xarray", "DataArray"):
        return weights
    _check_numbers(weights, name)
    return weights.data


def _as_floats(column: Any) -> NDArray[np.float64]:
    """A pandas Series as an array, with NaN for null."""
    numbers: NDArray[np.float64] = column.astype(float).to_numpy()
    return numbers


def _are_plain(dtypes: Any, kinds: str) -> bool:
    return all(isinstance(d, np.dtype) and d.kind in kinds for d in dtypes)


def is_plain_frame(rows: Any) -> bool:
    """Whether a pandas DataFrame is made an array of in a dtype of its columns."""
    # Of booleans and numbers, pandas makes an array of objects.
    return is_a(rows, "pandas", "DataFrame") and _are_plain(rows.dtypes, "fiu")


def _in_memory(frame: Any) -> Any:
    """A pandas DataFrame that scikit-learn makes an array of as it is meant."""
    columns = FrameColumns.of(frame)
    if _are_plain(frame.dtypes, "fiub"):
        return frame
    return _pandas_frame(columns.numbers(frame), columns=columns.names, copy=False)


@final
@dataclass(frozen=True, eq=False)
class _PartitionedRows(Rows):
    """A Dask DataFrame, of whose partitions the lengths are not known."""

    frame: Any
    gaps: Gaps
    is_lazy = True

    @cached_property
    def _columns(self) -> FrameColumns:
        """What the columns give: of lists, the first rows tell."""
        meta = self.frame._meta
        lists = [j for j, dtype in enumerate(meta.dtypes) if may_be_lists(dtype)]
        if not lists:
            return FrameColumns.of(meta)
        # Its nulls say nothing.
        for i in range(self.frame.npartitions):
            partition = self.frame.partitions[i]
            first = partition.map_partitions(first_with_lists, meta=meta).compute()
            if len(first):
                return FrameColumns.of(first)
        return FrameColumns.of(meta)

    @property
    def rows(self) -> Any:
        columns = self._columns
        meta = np.empty((0, columns.n_features), dtype=columns.dtype)
        return self.frame.map_partitions(_partition_numbers, columns, meta=meta)

    @property
    def names(self) -> Any:
        return _pandas_frame(columns=self._columns.names)

    def _laid(self, sample_weight: Any) -> Any:
        if is_a(sample_weight, "dask.dataframe", "Series"):
            ours, theirs = self.frame.divisions, sample_weight.divisions
            if None not in (*ours, *theirs) and ours != theirs:
                raise DataError(
                    f"sample_weight has the divisions {theirs} but X has {ours}: call "
                    "sample_weight.repartition(divisions=X.divisions)."
                )
        weights = _plain_weights(sample_weight)
        return weights if weights is None or is_lazy(weights) else self._cut(weights)

    def _cut(self, weights: Any) -> Any:
        """Weights in memory in blocks as long as the partitions."""
        array = np.asarray(weights)
        lengths = tuple(map(int, self.frame.map_partitions(len).compute()))
        if array.shape != (sum(lengths),):
            raise DataError(
                f"sample_weight has shape {array.shape} but X has {sum(lengths)} rows."
            )
        return da.from_array(array, chunks=(lengths,))

    def map(self, function: RowFunction, rows: Any) -> Any:
        meta = _labelled(
            np.empty(function.shape(0), function.dtype(rows.dtype)),
            self.frame._meta.index,
            function.axes,
        )
        # Of the data frame's own partitions, so that Dask knows them for aligned.
        return self.frame.map_partitions(
            _map_partition, self._columns, function, meta=meta
        )


def _partition_numbers(
    frame: Any, columns: FrameColumns, partition_info: dict[str, int] | None = None
) -> NDArray[Any]:
    number = 0 if partition_info is None else partition_info["number"]
    return columns.numbers(frame, f"X (partition {number})")


def _map_partition(
    frame: Any,
    columns: FrameColumns,
    function: RowFunction,
    partition_info: dict[str, int] | None = None,
) -> Any:
    number = 0 if partition_info is None else partition_info["number"]
    rows = _partition_numbers(frame, columns, partition_info)
    return _labelled(function(rows, number), frame.index, function.axes)


def _labelled(values: NDArray[Any], index: Any, axes: Sequence[Axis]) -> Any:
    """Answers as pandas has them: a Series, or a DataFrame with columns 0, 1, ….

    Or named by the labels, or of two axes by both: "a,b".
    """
    pandas = sys.modules["pandas"]
    if not axes:
        return pandas.Series(values, index=index, copy=False)
    columns: Any = axes[0].labels
    if len(axes) > 1:
        names = [axis.labels or tuple(map(str, range(axis.length))) for axis in axes]
        columns = list(map(",".join, product(*names)))
    table = values.reshape(len(values), math.prod(axis.length for axis in axes))
    return pandas.DataFrame(table, index=index, columns=columns, copy=False)


def from_xarray(data: Any, feature_dim: Hashable | None = None) -> XarrayRows:
    """Say where in labelled arrays the features are; all else are samples.

    Parameters
    ----------
    data : xarray.DataArray or xarray.Dataset
        In memory or on Dask. Variables of a Dataset are broadcast against each other.
    feature_dim : hashable, default=None
        The dimension that holds the features. Without it they are the variables of a
        Dataset, or the second of a DataArray's two dimensions. With it each variable of
        a Dataset that has the dimension gives a feature for each label of it,
        `name[label]`, and each other variable one.

    Returns
    -------
    XarrayRows
        To be used as `X`. A label of the feature dimension is a feature's name. Rows
        are in the order of the other dimensions, the last one changing fastest; on Dask
        block after block, so that nothing is read to be reordered.

    Raises
    ------
    DataError
        If it is not clear where the features are, or they are not real numbers.

    Examples
    --------
    >>> import numpy as np
    >>> import xarray as xr
    >>> from daskgmm import GaussianMixture, from_xarray
    >>> image = xr.DataArray(np.random.rand(3, 20, 30), dims=("band", "y", "x"))
    >>> pixels = from_xarray(image, feature_dim="band")
    >>> GaussianMixture(2).fit(pixels).predict(pixels).sizes
    Frozen({'y': 20, 'x': 30})
    """
    if is_a(data, "xarray", "Dataset"):
        data, feature_dim = _variables(data, feature_dim)
    elif not is_a(data, "xarray", "DataArray"):
        raise DataError(
            f"Expected an xarray DataArray or Dataset, not {type(data).__name__}."
        )
    if feature_dim is None and data.ndim == 2:
        feature_dim = data.dims[1]
    if feature_dim not in data.dims or data.ndim < 2:
        what = "no" if feature_dim is None else f"{feature_dim!r} as"
        raise DataError(
            f"X has the dimensions {data.dims} and {what} feature dimension: name one "
            "of several with daskgmm.from_xarray(X, feature_dim=…)."
        )
    _check_numbers(data, "X")
    return XarrayRows(data.transpose(..., feature_dim))


def _check_numbers(data: Any, name: str) -> None:
    """Refuse what xarray holds that are no numbers, or stand for others."""
    check_number(data.dtype, name)
    check_not_packed(
        name,
        data.attrs,
        data.dtype,
        "Decode them with xarray.decode_cf, or open them with mask_and_scale=True; or, "
        "to take them as they are, drop these attributes.",
    )


def _variables(data: Any, feature_dim: Hashable | None) -> tuple[Any, Hashable]:
    """A Dataset as a DataArray, and the dimension that holds its features."""
    names = list(data.data_vars)
    for name in names:
        _check_numbers(data[name], f"Variable {name!r} of X")
    if not names:
        raise DataError("X is a Dataset without variables: they are its features.")
    if feature_dim is not None:
        return _stacked(data, names, feature_dim), feature_dim
    # Coordinates may have dimensions that no variable has.
    used = {dim for name in names for dim in data[name].dims}
    data = data.drop_dims(set(data.dims) - used)
    return data.to_dataarray(dim=_VARIABLES), _VARIABLES


def _stacked(data: Any, names: Sequence[Hashable], feature_dim: Hashable) -> Any:
    """Variables side by side along their dimension of features; one as it is."""
    if len(names) == 1:
        return data[names[0]]
    xarray, parts = sys.modules["xarray"], []
    if not any(feature_dim in data[name].dims for name in names):
        raise DataError(f"No variable of X has the feature dimension {feature_dim!r}.")
    for name in names:
        variable = data[name]
        if feature_dim in variable.dims:
            places = range(variable.sizes[feature_dim])
            index = variable.indexes.get(feature_dim, places)
            labels = [f"{name}[{label}]" for label in index]
            variable = variable.drop_vars(
                [c for c in variable.coords if feature_dim in variable.coords[c].dims]
            )
        else:
            labels, variable = [str(name)], variable.expand_dims(feature_dim)
        parts.append(variable.assign_coords({feature_dim: labels}).rename(None))
    aligned = xarray.broadcast(*parts, exclude=[feature_dim])
    return xarray.concat(
        aligned, dim=feature_dim, join="exact", coords="minimal", compat="override"
    )


@final
@dataclass(frozen=True, eq=False)
class XarrayRows(Rows):
    """A labelled array as rows; made by `from_xarray`.

    Attributes
    ----------
    array : xarray.DataArray
        The features are along its last dimension, the samples along all others.
    gaps : Gaps
        What is done about them, as the mixture says.
    """

    array: Any
    gaps: Gaps = field(default_factory=Gaps)

    @property
    def rows(self) -> Any:
        if self.is_lazy:
            return _flat(self._blocks(), 1)
        x = self.array.to_numpy().reshape(-1, self.array.shape[-1])
        labels = self._labels()
        return x if labels is None else _pandas_frame(x, columns=labels, copy=False)

    @property
    def names(self) -> Any:
        labels = self._labels()
        if labels is None:
            labels = range(self.array.shape[-1])
        return _pandas_frame(columns=labels)

    @property
    def is_lazy(self) -> bool:
        return self.array.chunks is not None

    def _labels(self) -> Any:
        return self.array.indexes.get(self.array.dims[-1])

    def _blocks(self) -> da.Array:
        """Blocks that hold all features."""
        blocks: da.Array = self.array.data
        return blocks if blocks.numblocks[-1] == 1 else blocks.rechunk({-1: -1})

    def _laid(self, sample_weight: Any) -> Any:
        samples = self.array.dims[:-1]
        if is_a(sample_weight, "xarray", "DataArray"):
            return self._flat_weights(sample_weight)
        if len(samples) > 1 and sample_weight is not None:
            raise DataError(
                f"X has samples along {samples}: give sample_weight as a DataArray "
                "with these dimensions."
            )
        return _plain_weights(sample_weight)

    def _flat_weights(self, weights: Any) -> Any:
        """Labelled weights in the order of the rows."""
        like = self.array.isel({self.array.dims[-1]: 0}, drop=True)
        if not set(weights.dims) <= set(like.dims):
            raise DataError(
                f"sample_weight has the dimensions {weights.dims} but the samples of X "
                f"are along {like.dims}."
            )
        try:
            sys.modules["xarray"].align(like, weights, join="exact", copy=False)
        except ValueError as error:
            raise DataError(f"sample_weight does not fit X: {error}") from error
        _check_numbers(weights, "sample_weight")
        if not self.is_lazy:
            return weights.broadcast_like(like).transpose(*like.dims).to_numpy().ravel()
        # Cut before it is broadcast: that costs no memory.
        cut = weights.chunk({d: like.chunksizes[d] for d in weights.dims})
        laid = cut.broadcast_like(like).transpose(*like.dims).data.rechunk(like.chunks)
        return _flat(laid, 0)

    def map(self, function: RowFunction, rows: Any) -> Any:
        samples = self.array.dims[:-1]
        features = self.array.dims[-1]
        taken = {*samples, *self.array.coords} - {features}
        for name in taken.intersection(axis.name for axis in function.axes):
            raise DataError(
                f"X has a dimension or coordinate {name!r}, which the answer would "
                "add: rename it."
            )
        if self.is_lazy:
            blocks = with_care(self._blocks(), self.gaps)
            values: Any = _map_blocks(function, blocks)
        else:
            flat = function.in_memory(rows)
            values = flat.reshape(self.array.shape[:-1] + flat.shape[1:])
        return self._labelled(values, function.axes)

    def _labelled(self, values: Any, axes: Sequence[Axis]) -> Any:
        """Values with the coordinates that the samples have, and their own."""
        features = self.array.dims[-1:]
        left = self.array.coords.to_dataset().drop_dims(features, errors="ignore")
        # Not of the rows' own class, which may want more, nor with a Dask array's name.
        xarray = sys.modules["xarray"]
        dims = (*self.array.dims[:-1], *(axis.name for axis in axes))
        named = xarray.DataArray(values, left.coords, dims).rename(None)
        return named.assign_coords(
            {axis.name: list(axis.labels) for axis in axes if axis.labels is not None}
        )


def _pandas_frame(*args: Any, **kwargs: Any) -> Any:
    return sys.modules["pandas"].DataFrame(*args, **kwargs)


def _flat(blocks: da.Array, n_left: int) -> da.Array:
    """Blocks one after the other, with all axes but the last few made one.

    Dask's `reshape` would move rows between blocks, and its `reshape_blockwise` is
    wrong or fails where all axes, or some, have the length 1 or 0.
    """
    if blocks.ndim == 1 + n_left:
        return blocks
    n_axes = blocks.ndim - n_left
    name = f"flat-{tokenize(blocks, n_left)}"
    last = (0,) * n_left
    layer: dict[Any, Any] = {}
    for i, place in enumerate(np.ndindex(*blocks.numblocks[:n_axes])):
        key = (name, i, *last)
        layer[key] = Task(key, _flatten, TaskRef((blocks.name, *place, *last)), n_axes)
    lengths = tuple(map(math.prod, product(*blocks.chunks[:n_axes])))
    below: Any = [blocks]
    graph = HighLevelGraph.from_collections(name, layer, dependencies=below)
    return da.Array(
        graph, name, (lengths, *blocks.chunks[n_axes:]), meta=meta_from_array(blocks)
    )


def _flatten(block: NDArray[Any], n_axes: int) -> NDArray[Any]:
    shape = block.shape
    return block.reshape(math.prod(shape[:n_axes]), *shape[n_axes:])


def _map_blocks(function: RowFunction, blocks: da.Array) -> da.Array:
    """Values for blocks with samples along all axes but the last: a Dask array."""
    dtype = function.dtype(blocks.dtype)
    _, *wide = function.shape(1)
    is_masked = isinstance(meta_from_array(blocks), np.ma.MaskedArray)
    empty = np.ma.empty if is_masked else np.empty
    chunks = (*blocks.chunks[:-1], *((n,) for n in wide or [1]))
    values: da.Array = da.map_blocks(
        _values_of_block,
        blocks,
        function,
        blocks.numblocks,
        dtype=dtype,
        chunks=chunks,
        new_axis=list(range(blocks.ndim, len(chunks))) or None,
        meta=empty((0,) * len(chunks), dtype=dtype),
    )
    return values if wide else values[..., 0]


def _values_of_block(
    x: Any,
    function: RowFunction,
    grid: tuple[int, ...],
    block_id: tuple[int, ...] | None = None,
) -> NDArray[Any]:
    """Values of a block, with as many axes as it has.

    To drop an axis, Dask puts blocks together first, and fails where they are none.
    """
    place = (0,) * len(grid) if block_id is None else block_id
    number = int(np.ravel_multi_index(place[: len(grid) - 1], grid[:-1]))
    is_table = len(grid) == 2
    values = function(x if is_table else x.reshape(-1, x.shape[-1]), number)
    table = values[:, np.newaxis] if values.ndim == 1 else values
    return table if is_table else table.reshape(*x.shape[:-1], *table.shape[1:])
