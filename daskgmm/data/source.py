"""What a fit reads: a data set that can be cut into shards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from daskgmm.execution.runners import Shards


class Unchanging(Protocol):
    """What must not change while it is read."""

    def check_unchanged(self) -> None:
        """Raise StoreError if it has changed, as far as its store tells."""


class Source(ABC):
    """A data set of rows.

    Attributes
    ----------
    n_features : int
        Number of features, d.
    dtype : dtype
        float32 if the rows are, else float64: what results have.
    """

    n_features: int
    dtype: np.dtype[Any]

    @property
    @abstractmethod
    def lengths(self) -> Sequence[int] | None:
        """Rows of each block, if they are known unread and all count alike."""

    @abstractmethod
    def shards(self, *, keep_rows: bool = False) -> Shards:
        """Cut the data set into shards; what is shared is computed here.

        Parameters
        ----------
        keep_rows : bool
            Whether blocks stay in memory once they are read, as far as they fit:
            other reads will follow.
        """

    @abstractmethod
    def check_unchanged(self) -> None:
        """Raise StoreError if a store tells that the data are not as they were.

        To be called once all reads are done.
        """
