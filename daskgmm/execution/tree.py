"""Map one function over shards and merge its values in a fixed tree.

The blocks of a data set are grouped into *leaves*, runs of consecutive blocks that
depend on the number of blocks alone. A function turns the blocks of one leaf into a
value with ``+``; the values are the leaves of a binary tree whose shape depends on
the number of leaves alone. A *shard*, the unit of work, covers a run of leaves and
returns the sums of the largest whole subtrees in it, so the total is the same bits
however the leaves are spread over shards, threads and workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, Self, final

from daskgmm.execution.threads import single_threaded_blas

MAX_LEAVES: Final = 1024
"""More leaves than this are not made: each costs its own (K, d, d) sums."""


class Addable(Protocol):
    """What the function returns: a commutative monoid's element."""

    def __add__(self, other: Self, /) -> Self: ...


class Shard(Protocol):
    """A run of consecutive leaves, each an iterator over its blocks.

    Attributes
    ----------
    n_read : int
        Bytes of all blocks that were read so far: those that stay in memory once.
    """

    n_read: int

    def leaves(self) -> Iterator[tuple[int, Iterator[Any]]]:
        """Yield the number of each leaf and its blocks, read as they are asked for."""
        ...


LeafFunction = Callable[[Any, Iterator[Any]], Addable]
"""``function(message, blocks)``: the value of one leaf."""


@final
@dataclass(slots=True)
class Partial:
    """The sums of some leaves.

    Attributes
    ----------
    sums : dict
        Of whole subtrees by (level, index): 2^level leaves from index · 2^level on.
    n_read : int
        Bytes that were read for them.
    """

    sums: dict[tuple[int, int], Addable] = field(default_factory=dict)
    n_read: int = 0

    def join(self, other: Partial) -> None:
        """Take the subtrees of another one in."""
        for (level, index), value in other.sums.items():
            _insert(self, level, index, value)
        self.n_read += other.n_read


def leaf_bounds(n_blocks: int) -> list[int]:
    """Cut blocks into leaves: leaf i holds blocks bounds[i] to bounds[i + 1]."""
    size = max(1, -(-n_blocks // MAX_LEAVES))
    return [*range(0, n_blocks, size), n_blocks]


def most_sums(n_leaves: int) -> int:
    """How many sums a thread holds at once, at most.

    What the kernel adds up in, the same without padding, the one that is joined and
    what waits for others; and the subtrees of a shard on both sides of its largest one,
    one for each level.
    """
    return 6 + 2 * max(1, n_leaves - 1).bit_length()


def shard_bounds(n_leaves: int, n_shards: int) -> list[int]:
    """Cut leaves into at most n_shards runs of as equal a length as can be."""
    n_shards = max(1, min(n_shards, n_leaves))
    return [n_leaves * i // n_shards for i in range(n_shards + 1)]


def _insert(partial: Partial, level: int, index: int, value: Addable) -> None:
    """Put a subtree's sum in, joined with its sibling as often as there is one."""
    sums = partial.sums
    while (sibling := sums.pop((level, index ^ 1), None)) is not None:
        value = sibling + value if index & 1 else value + sibling
        level, index = level + 1, index >> 1
    sums[level, index] = value


def map_shard(function: LeafFunction, message: Any, shard: Shard) -> Partial:
    """Values of the leaves of a shard, as its whole subtrees' sums."""
    with single_threaded_blas():
        return map_leaves(function, message, shard)


def map_leaves(function: LeafFunction, message: Any, shard: Shard) -> Partial:
    """The same as `map_shard`, with as many BLAS threads as there are."""
    partial, before = Partial(), shard.n_read
    for leaf, blocks in shard.leaves():
        _insert(partial, 0, leaf, function(message, blocks))
    partial.n_read = shard.n_read - before
    return partial


def merge(partials: Iterable[Partial]) -> Partial:
    """Join the subtrees of several shards."""
    merged = Partial()
    for partial in partials:
        merged.join(partial)
    return merged


def total(partials: Iterable[Partial]) -> tuple[Addable, int]:
    """The sum over all leaves, from partials that cover each leaf once; bytes read."""
    # What is left are the subtrees of the number of leaves' binary digits, so the
    # last one, the smallest, joins its left neighbour first.
    merged = merge(partials)
    left_to_right = sorted(merged.sums.items(), key=lambda item: -item[0][0])
    *others, (_, value) = left_to_right
    for _, left in reversed(others):
        value = left + value
    return value, merged.n_read
