"""A run of rows, checked: what a kernel is given at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from daskgmm.data.columns import float_dtype
from daskgmm.data.gaps import Gaps, Nan, left_out
from daskgmm.data.parquet_reader import Stream
from daskgmm.errors import DataError
from daskgmm.execution.tree import MAX_LEAVES
from daskgmm.kernel.layout import Part, as_rows
from daskgmm.kernel.passes import first_not_finite

_BLOCK_NUMBERS: Final = 2**17
_MIN_BLOCK_ROWS: Final = 1024
NO_GAPS: Final = Gaps()


@final
@dataclass(frozen=True, slots=True)
class Block:
    """A run of rows.

    Attributes
    ----------
    index : int
        Number of the block in the data set.
    rows : ndarray of shape (n, d), float32 or float64, or Stream
        A stream only where no row is left out.
    weights : ndarray of shape (n,), float64, or None
    cut : tuple of int, or None
        How the user knows the rows, if not by the number of the block: its first row,
        and rows of a chunk, or 0 if the rows are not cut.
    numbers : ndarray of int, shape (n,), or None
        Of the rows in what was given, where some of those are left out.
    n_skipped : int
        Rows with weight that were left out, as they have NaN.
    """

    index: int
    rows: NDArray[Any] | Stream
    weights: NDArray[np.float64] | None
    cut: tuple[int, int] | None = None
    numbers: NDArray[np.intp] | None = None
    n_skipped: int = 0

    @property
    def x(self) -> NDArray[Any]:
        """The rows in one piece, (n, d)."""
        return self.rows.array() if isinstance(self.rows, Stream) else self.rows

    @property
    def size(self) -> int:
        """Numbers in all rows, before filters."""
        if isinstance(self.rows, Stream):
            return self.rows.n_rows * self.rows.n_columns
        return self.rows.size

    @property
    def n_bytes(self) -> int:
        """Bytes of the rows, before filters, and of their weights."""
        rows, weights = self.rows, self.weights
        n_bytes = rows.n_bytes if isinstance(rows, Stream) else rows.nbytes
        return n_bytes + (0 if weights is None else weights.nbytes)

    def parts(self) -> Iterator[Part]:
        """Rows and their weights as they come, to be gone through once.

        They end where the kernel's tiles do, but for the last.
        """
        if not isinstance(self.rows, Stream):
            yield self.rows, self.weights
            return
        first, weights = 0, self.weights
        for part in self.rows.parts():
            stop = first + len(part)
            yield part, None if weights is None else weights[first:stop]
            first = stop

    def place(self, row: int, column: int | None = None) -> str:
        """Where a row is, or a number in it, as the user knows the data."""
        if self.numbers is not None:
            row = int(self.numbers[row])
        in_row = "" if column is None else f", column {column}"
        if self.cut is None:
            block = self.index
        else:
            first_row, chunk_rows = self.cut
            row += first_row
            if not chunk_rows:
                return f"row {row}{in_row}"
            block, row = divmod(row, chunk_rows)
        return f"block {block}, row {row}{in_row} (counted from the start of the block)"


def check_kind(meta: Any, name: str) -> None:
    """Refuse what does not hold real numbers in NumPy arrays."""
    if not isinstance(meta, np.ndarray):
        raise DataError(
            f"{name} is made of {type(meta).__module__}.{type(meta).__name__} blocks; "
            "only dense NumPy blocks can be used: convert them with map_blocks, sparse "
            "ones by toarray()."
        )
    if meta.dtype.kind not in "fiub":
        raise DataError(
            f"{name} has dtype {meta.dtype}: only real numbers can be used. Convert it "
            "with astype(float)."
        )


def as_block(
    index: int,
    x: Any,
    n_features: int,
    weights: Any = None,
    nan: Nan = "error",
    cut: tuple[int, int] | None = None,
) -> Block:
    """Check what was computed for a block, and leave out the rows that do not count.

    Raises
    ------
    DataError
        Naming the block, if it is no array of numbers with so many columns.
    """
    of_weights = f"Block {index} of sample_weight"
    if weights is not None:
        weights = as_floats(weights, of_weights, keep_single=False)
    if isinstance(x, Stream):
        if weights is None or _weighs_all(x, weights):
            return Block(index, x, weights)
        x = x.array()
    name = f"Block {index} of X"
    x = as_floats(x, name, nan, keep_single=True)
    if x.ndim != 2 or x.shape[1] != n_features:
        raise DataError(
            f"{name} has shape {x.shape}: expected rows of {n_features} feature(s)."
        )
    if weights is not None and weights.shape != x.shape[:1]:
        raise DataError(
            f"{of_weights} has shape {weights.shape} but that of X has {len(x)} "
            "row(s): cut both alike."
        )
    block = Block(index, x, weights, cut)
    if nan == "skip" or (weights is not None and not weights.all()):
        return _without_gaps(block, nan)
    return block


def _weighs_all(stream: Stream, weights: NDArray[np.float64]) -> bool:
    """Whether weights are those of a stream's rows, and none of them is left out."""
    is_of_each = stream.is_whole and weights.shape == (stream.n_rows,)
    return is_of_each and bool(weights.all())


def _without_gaps(block: Block, nan: Nan) -> Block:
    """A block less the rows that are left out; most have none of those."""
    x, weights = block.x, block.weights
    if first_not_finite(as_rows(x)) < 0:
        return block
    found = left_out(x, weights, nan)
    if found is None:
        return block
    out, n_skipped = found
    kept = np.flatnonzero(~out)
    return replace(
        block,
        rows=x[kept],
        weights=None if weights is None else weights[kept],
        numbers=kept,
        n_skipped=n_skipped,
    )


_AS_IT_IS: Final = {
    True: (np.dtype(np.float64), np.dtype(np.float32)),
    False: (np.dtype(np.float64),),
}


def as_floats(
    array: Any, name: str, nan: Nan = "error", *, keep_single: bool
) -> NDArray[Any]:
    """A computed block as float64, or float32 where that is kept.

    What is masked is NaN, if such rows are to be skipped, or else an error.
    """
    if type(array) is np.ndarray and array.dtype in _AS_IT_IS[keep_single]:
        return array
    is_masked = isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array)
    if is_masked and nan == "error":
        row = int(np.argwhere(np.ma.getmaskarray(array))[0][0])
        raise DataError(
            f"{name} has a masked entry in row {row}: fill or drop masked entries "
            "before, or pass nan='skip' to leave out rows that have one."
        )
    mask = np.ma.getmaskarray(array) if is_masked else None
    plain = np.ma.getdata(array) if isinstance(array, np.ma.MaskedArray) else array
    plain = np.asarray(plain) if np.isscalar(plain) else plain
    check_kind(plain, name)
    dtype = float_dtype(plain.dtype) if keep_single else np.dtype(np.float64)
    # Native byte order comes with it, and no copy where nothing changes.
    floats: NDArray[Any] = plain.astype(dtype, copy=mask is not None)
    if mask is not None:
        floats[mask] = np.nan
    return floats


def block_rows(n_rows: int, n_features: int) -> int:
    """Rows of a block of an array in memory: depends on its shape alone."""
    rows = max(_MIN_BLOCK_ROWS, _BLOCK_NUMBERS // n_features)
    return max(rows, -(-n_rows // MAX_LEAVES))
