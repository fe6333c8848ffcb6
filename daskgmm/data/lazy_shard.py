"""A shard of lazy rows, made block by block on each pass.

What it reads, it reads ahead. Where it has read all, its thread's reader goes on with
another shard that is still to come in the pass.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain, count, islice, pairwise
from typing import Any, Final, final

import numpy as np

from daskgmm.data.block import Block, as_block
from daskgmm.data.dask_graph import Key, Recipes
from daskgmm.data.gaps import Nan
from daskgmm.data.kept import Kept, Pieces
from daskgmm.data.parquet_reader import Stream, go_on_with, let_go
from daskgmm.data.prefetch import ReadAhead, in_reading_thread
from daskgmm.data.zarr_reader import careful_arrays_in
from daskgmm.errors import DataError
from daskgmm.execution.forking import after_fork


@final
class ShardPlan:
    """All of a shard but its inputs. A plain class: Dask looks into dataclasses.

    Parameters
    ----------
    family : str
        Which shards are of the same rows.
    n_features : int
    cut_rows : tuple of int, or None
        Rows of a block, and of the user's chunks in it.
    streamed : bool
        Whether blocks are of `Stream`.
    nan : {'error', 'skip'}
    most_kept : float
        See `Kept`.
    recipes : Recipes
    first_leaf : int
    bounds : sequence of int
        Blocks where leaves begin, and where the last one ends.
    places : sequence of int
        Of the blocks: see `Kept`.
    """

    def __init__(
        self,
        family: str,
        n_features: int,
        cut_rows: tuple[int, int] | None,
        streamed: bool,
        nan: Nan,
        most_kept: float,
        recipes: Recipes,
        first_leaf: int,
        bounds: Sequence[int],
        places: Sequence[int],
    ) -> None:
        self.family = family
        self.n_features = n_features
        self.cut_rows = cut_rows
        self.streamed = streamed
        self.nan = nan
        self.most_kept = most_kept
        self.recipes = recipes
        held = chain.from_iterable(map(careful_arrays_in, recipes.values()))
        self.arrays = tuple({id(array): array for array in held}.values())
        self.first_leaf = first_leaf
        self.bounds = list(bounds)
        self.places = places

    @property
    def n_blocks(self) -> int:
        """Number of the shard's blocks."""
        return self.bounds[-1] - self.bounds[0]


def make_shard(plan: ShardPlan, *inputs: Any) -> LazyShard:
    """A shard, by its plan and the values of its recipes' inputs."""
    return LazyShard(plan, dict(zip(plan.recipes.inputs, inputs, strict=True)))


@final
class LazyShard:
    """A run of leaves of a Dask collection.

    Attributes
    ----------
    n_read : int
        Bytes that were read so far.
    n_passes : int
        Passes that it has begun here, or others of its family have.
    turn : int
        By which it is known what was begun before what in a pass.
    ahead : object or None
        What was begun to be read by another shard's thread.
    """

    def __init__(self, plan: ShardPlan, inputs: Mapping[Key, Any]) -> None:
        self._plan = plan
        self._inputs = inputs
        self._made: list[Block] | None = None
        most = plan.most_kept if plan.recipes.are_apart else 0.0
        self._kept = Kept(most if plan.recipes.reads else 0.0, plan.places)
        self._pieces = Pieces(0.0 if plan.recipes.reads else plan.most_kept)
        self.n_read = 0
        self.n_passes = self.turn = 0
        self.ahead: _Reading | None = None
        _here.add(self)

    @property
    def family(self) -> str:
        """Shards of the same rows have the same."""
        return self._plan.family

    def __getstate__(self) -> dict[str, Any]:
        """All but what was made of the inputs."""
        return {**vars(self), "_made": None, "ahead": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        _here.add(self)

    def __sizeof__(self) -> int:
        """Bytes held: Dask weighs by them whether to move or to spill a shard."""
        held = [*self._inputs.values(), *self._plan.recipes.literals.values()]
        n_bytes = sum(value.nbytes for value in held if isinstance(value, np.ndarray))
        return object.__sizeof__(self) + n_bytes

    def leaves(self) -> Iterator[tuple[int, Iterator[Block]]]:
        """The number of each leaf, and its blocks."""
        plan = self._plan
        if not plan.recipes.reads:
            yield from self._resident()
            return
        sizes = [b - a for a, b in pairwise(plan.bounds)]
        with closing(self._read()) as blocks:
            for leaf, size in enumerate(sizes, start=plan.first_leaf):
                rest = islice(blocks, size)
                yield leaf, rest
                # What a kernel left must not become the next leaf's.
                deque(rest, maxlen=0)

    def _resident(self) -> Iterator[tuple[int, Iterator[Block]]]:
        """Blocks of what is in memory: checked once, not on each pass."""
        plan = self._plan
        self._pieces.trim()
        is_first, first = self._made is None, plan.bounds[0]
        if self._made is None:
            self._made = list(self._blocks(range(plan.n_blocks)))
        for leaf, (start, stop) in enumerate(pairwise(plan.bounds), plan.first_leaf):
            blocks = self._made[start - first : stop - first]
            # Of a single read, no more than it needs is kept.
            yield leaf, iter(blocks) if is_first else self._pieces.of(leaf, blocks)

    def _read(self) -> Generator[Block]:
        """Blocks that are read, but for those that are kept from passes before."""
        reading = _here.taken_up(self)
        numbers = range(self._plan.n_blocks)
        last = max((i for i in numbers if i not in reading.kept), default=0)
        with closing(reading):
            for number in numbers:
                kept = reading.kept.get(number)
                # A name here would keep a block alive while the next one is read.
                block = [self._counted(number, reading) if kept is None else kept]
                if number == last and not self._plan.streamed:
                    _here.begin_another(self)
                yield block.pop()

    def _counted(self, number: int, reading: _Reading) -> Block:
        """A block that is read."""
        block = next(reading.rest)
        self.n_read += block.n_bytes
        return self._kept.offered(number, block)

    def begun(self, n_pass: int) -> _Reading:
        """Begin to read what is not kept, for a pass."""
        plan = self._plan
        for array in plan.arrays:
            array.look_again()  # disks and data may change from pass to pass
        kept = self._kept.trimmed()
        numbers = [i for i in range(plan.n_blocks) if i not in kept]
        blocks = self._blocks(numbers)
        if plan.streamed:
            return _Reading(n_pass, kept, _as_they_are(blocks, len(numbers)))
        return _Reading(n_pass, kept, ReadAhead(blocks, len(numbers)))

    def let_go(self, before: float = math.inf) -> _Reading | None:
        """What was begun to be read, if it was for a pass before this one."""
        if self.ahead is None or self.ahead.n_pass >= before:
            return None
        begun, self.ahead = self.ahead, None
        return begun

    def _block(self, index: int, made: tuple[Any, ...]) -> Block:
        """A block from its recipe's values: rows, and weights if there are any."""
        plan, cut = self._plan, None
        if plan.cut_rows is not None:
            block_rows, chunk_rows = plan.cut_rows
            cut = index * block_rows, chunk_rows
        weights = made[1] if len(made) > 1 else None
        return as_block(index, made[0], plan.n_features, weights, plan.nan, cut)

    def _blocks(self, numbers: Sequence[int]) -> Generator[Block]:
        made = iter(self._plan.recipes.make(self._inputs, numbers))
        for number in numbers:
            index = self._plan.bounds[0] + number
            try:
                # Passed on at once: a name here would keep the block alive.
                block = [self._block(index, next(made))]
            except DataError:
                raise
            except Exception as error:
                error.add_note(f"This happened while block {index} of X was read.")
                raise
            yield block.pop()


@final
class _Reading:
    """What a shard has in a pass: the blocks that are kept, and the rest to come."""

    def __init__(
        self,
        n_pass: int,
        kept: Mapping[int, Block],
        rest: ReadAhead | Generator[Block],
    ) -> None:
        self.n_pass, self.kept, self.rest = n_pass, kept, rest
        self.close = rest.close


@final
class _Here:
    """The shards of this process, and how far each is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shards: weakref.WeakSet[LazyShard] = weakref.WeakSet()
        self._turns = count(1)

    def add(self, shard: LazyShard) -> None:
        """Take note of a shard."""
        with self._lock:
            self._shards.add(shard)

    def _family_of(self, shard: LazyShard) -> list[LazyShard]:
        return [other for other in self._shards if other.family == shard.family]

    def taken_up(self, shard: LazyShard) -> _Reading:
        """What was begun for a shard's next pass, or is begun now."""
        with self._lock:
            family = self._family_of(shard)
            others = max(other.n_passes for other in family)
            n_pass = shard.n_passes = max(shard.n_passes + 1, others)
            shard.turn = next(self._turns)
            # What was begun for shards that were worked on elsewhere then is too old.
            late = [other.let_go(before=n_pass) for other in family]
            reading = shard.let_go()
        for one in late:
            if one is not None:
                one.close()
        return reading or shard.begun(n_pass)

    def begin_another(self, shard: LazyShard) -> None:
        """Begin to read the shard that comes next: in the order of the pass before.

        One that was not here in that pass will hardly be in this. In the first pass
        nothing is begun, as what comes last would be in memory all the time.
        """
        with self._lock:
            coming = [
                other
                for other in self._family_of(shard)
                if other.n_passes == shard.n_passes - 1 and other.ahead is None
            ]
            if coming and shard.n_passes > 1:
                another = min(coming, key=lambda other: other.turn)
                another.ahead = another.begun(shard.n_passes)

    def forget(self) -> None:
        """In a process that was forked off, nothing is being read."""
        self._lock = threading.Lock()
        for shard in self._shards:
            shard.ahead = None


_here: Final = _Here()
after_fork(_here.forget)


def _as_they_are(blocks: Generator[Block], n_blocks: int) -> Generator[Block]:
    """Streams, read by who works on them, until one shows that to read is to wait."""
    with closing(blocks):
        for left in reversed(range(n_blocks)):
            block = next(blocks)
            yield block
            if isinstance(block.rows, Stream) and block.rows.waited:
                # The file that is open goes to the other thread and comes back.
                in_reading_thread(go_on_with, let_go()).result()
                with closing(ReadAhead(blocks, left)) as rest:
                    yield from rest
                go_on_with(in_reading_thread(let_go).result())
                return
