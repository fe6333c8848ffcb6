"""A Dask graph, cut into private recipes for blocks and work they share.

A block's *recipe* is the part of the graph that leads to it. What a recipe needs from
outside are *inputs*: futures of persisted blocks, and *cut* nodes, work shared by so
many blocks (a global mean, say) that it is computed once, before, and never again.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol, final

from dask._task_spec import Alias, Dict, GraphNode, convert_legacy_graph
from dask._task_spec import DataNode as DataNode
from dask._task_spec import Task as Task
from dask._task_spec import TaskRef as TaskRef
from dask.utils import ensure_dict

from daskgmm.loaded import is_a

Key = Any  # Hashable, but Dask's own annotations differ from version to version

_FEW: Final = 8
"""A node that so few blocks want is not cut: neighbours sharing a chunk of a source."""


GETTERS: Final = frozenset({"getter", "getter_inline", "getter_nofancy"})
"""Dask's functions that take a slice of an array."""

_MOVES: Final = GETTERS | {
    "concatenate",
    "concatenate3",
    "concatenate_shaped",
    "getitem",
    "take",
}
"""Functions that hand rows on as they are: their results are as large as the data."""


def function_name(node: Any) -> str:
    """What a node calls; nothing if it is no task."""
    return str(getattr(getattr(node, "func", None), "__name__", ""))


def is_task(node: Any) -> bool:
    """Whether a node, or what a layer makes nodes of, is more than a value."""
    return isinstance(node, GraphNode) and not isinstance(node, DataNode)


def moves_rows(node: Any) -> bool:
    """Whether a node makes chunks from chunks, and computes nothing."""
    return isinstance(node, Alias) or function_name(node) in _MOVES


class Change(Protocol):
    """What takes the place of a value; often the value itself."""

    def __call__(self, value: Any, *, sliced: bool) -> Any:
        """Change a value, of which nothing but slices are taken if `sliced`."""


def changed(node: Any, change: Change, *, sliced: bool) -> Any:
    """A node with all values that it holds changed; the node itself if none is."""
    if isinstance(node, DataNode):
        value = change(node.value, sliced=sliced)
        return node if value is node.value else DataNode(node.key, value)
    if isinstance(node, Task) and not isinstance(node, Dict):
        sliced = function_name(node) in GETTERS
        args = [changed(arg, change, sliced=sliced) for arg in node.args]
        named = {k: changed(v, change, sliced=sliced) for k, v in node.kwargs.items()}
        if all(map(operator.is_, args, node.args)) and all(
            named[name] is node.kwargs[name] for name in named
        ):
            return node
        if type(node) is Task:
            return Task(node.key, node.func, *args, **named)
        return type(node)(*args)
    if isinstance(node, GraphNode | TaskRef):
        return node
    return change(node, sliced=sliced)


@final
class Graph:
    """Nodes by key, with futures set apart."""

    def __init__(self, graph: Mapping[Hashable, Any]) -> None:
        flat = ensure_dict(graph)
        self.futures = {
            k: v for k, v in flat.items() if is_a(v, "distributed", "Future")
        }
        rest = {k: v for k, v in flat.items() if k not in self.futures}
        self.nodes: dict[Key, GraphNode] = convert_legacy_graph(
            rest, all_keys=set(flat)
        )

    def change(self, change: Change) -> None:
        """Change all values that the nodes hold."""
        not_only_sliced = {
            key
            for node in self.nodes.values()
            if function_name(node) not in GETTERS
            for key in node.dependencies
        }
        for key, node in self.nodes.items():
            sliced = key not in not_only_sliced
            self.nodes[key] = changed(node, change, sliced=sliced)

    def is_work(self, key: Key) -> bool:
        """Whether there is something to compute: no literal, no future."""
        return is_task(self.nodes.get(key))

    def is_elsewhere(self, key: Key) -> bool:
        """Whether a cluster holds it: a future, also one passed as an argument."""
        return key not in self.nodes

    def moves_rows(self, key: Key) -> bool:
        """Whether a node makes chunks from chunks, and computes nothing."""
        return moves_rows(self.nodes[key])

    @property
    def only_moves_rows(self) -> bool:
        """Whether chunks are those of its sources, and nothing is computed."""
        return all(moves_rows(n) for n in self.nodes.values() if is_task(n))

    def dependencies(self, key: Key) -> Iterable[Key]:
        """Keys that a node needs directly."""
        return self.nodes[key].dependencies if key in self.nodes else ()


def _post_order(
    starts: Iterable[Key],
    dependencies: Callable[[Key], Iterable[Key]],
    visited: set[Key],
) -> list[Key]:
    """Keys reached from `starts` that are not visited yet, needed ones first."""
    order = []
    stack = [(key, False) for key in reversed(list(starts))]
    while stack:
        key, expanded = stack.pop()
        if expanded:
            order.append(key)
        elif key not in visited:
            visited.add(key)
            stack.append((key, True))
            # Sorted, so that equal graphs give equal recipes.
            needed = sorted(dependencies(key), key=str, reverse=True)
            stack.extend((needed_key, False) for needed_key in needed)
    return order


def cut(graph: Graph, blocks: Sequence[Sequence[Key]]) -> set[Key]:
    """Choose the nodes to compute once, before.

    Cut is a node that more than half of the blocks want, or more than a few while it
    gathers from many sources (a mean over a group of chunks). A node below a cut is
    wanted by that node alone: its block does not reach through. A chunk of a source
    shared by neighbours is not cut, nor one put together from small ones and cut up
    again: the data would be kept in memory for all passes.

    Parameters
    ----------
    graph : Graph
    blocks : sequence of sequence of key
        The keys that make each block.
    """
    everything = _post_order(
        (key for keys in blocks for key in keys), graph.dependencies, set()
    )
    wanted_by: dict[Key, set[int]] = {}
    for i, keys in enumerate(blocks):
        for key in keys:
            wanted_by.setdefault(key, set()).add(i)
    own: set[Key] = set()
    many = max(2, len(blocks) // 2 + 1)
    chosen: set[Key] = set()
    for key in reversed(everything):
        wants = wanted_by.pop(key, None)
        if wants is None or not graph.is_work(key):
            continue
        if len(wants) >= many or (
            len(wants) > _FEW and not graph.moves_rows(key) and _gathers(graph, key)
        ):
            chosen.add(key)
            continue
        for needed in graph.dependencies(key):
            if graph.is_work(needed):
                # Shared until a second consumer comes: most nodes have one. Then a
                # set of its own, which grows in place: many may come.
                if needed not in wanted_by:
                    wanted_by[needed] = wants
                elif needed in own:
                    wanted_by[needed] |= wants
                else:
                    wanted_by[needed] = wanted_by[needed] | wants
                    own.add(needed)
    return chosen


def _gathers(graph: Graph, key: Key) -> bool:
    """Whether more than a few sources lie under a node."""
    n_sources, stack, seen = 0, [key], {key}
    while stack and n_sources <= _FEW:
        needed = [k for k in graph.dependencies(stack.pop()) if graph.is_work(k)]
        n_sources += not needed
        fresh = [k for k in needed if k not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    return n_sources > _FEW


def count_sources(graph: Graph, blocks: Sequence[Sequence[Key]], cuts: set[Key]) -> int:
    """Number of nodes that nothing else need be computed for, apart from cuts."""

    def is_given(key: Key) -> bool:
        return key in cuts or not graph.is_work(key)

    tops = {key for keys in blocks for key in keys}
    below = _post_order(
        tops, lambda key: () if key in cuts else graph.dependencies(key), set()
    )
    return sum(
        key in tops if is_given(key) else all(map(is_given, graph.dependencies(key)))
        for key in below
    )


@final
class Recipes:
    """How to make some blocks, one after the other.

    A node that several of the blocks need is computed for the first and kept until the
    last. A plain class: Dask looks into dataclasses, lists and dictionaries.

    Attributes
    ----------
    inputs : tuple of key
        What must be given.
    literals : dict
        What the graph holds itself, by key.
    are_apart : bool
        Whether each block can be made without those before it.
    """

    def __init__(
        self, graph: Graph, blocks: Sequence[Sequence[Key]], cuts: set[Key]
    ) -> None:
        def dependencies(key: Key) -> Iterable[Key]:
            return () if key in cuts else graph.dependencies(key)

        visited: set[Key] = set()
        orders = [_post_order(keys, dependencies, visited) for keys in blocks]
        self.inputs = tuple(
            k for keys in orders for k in keys if k in cuts or graph.is_elsewhere(k)
        )
        given = set(self.inputs)
        self._blocks = [tuple(keys) for keys in blocks]
        self.literals = {
            k: graph.nodes[k]({}) for k in visited - given if not graph.is_work(k)
        }
        given |= self.literals.keys()
        self._steps = [
            [(k, graph.nodes[k]) for k in order if k not in given] for order in orders
        ]
        used = Counter(k for keys in blocks for k in keys)
        for steps in self._steps:
            for _, node in steps:
                used.update(node.dependencies)
        self._uses = {k: n for k, n in used.items() if k not in given}
        self.are_apart = self._blocks_are_apart()

    def _blocks_are_apart(self) -> bool:
        """Whether no block needs what is computed for another one."""
        for keys, steps in zip(self._blocks, self._steps, strict=True):
            own = Counter(keys)
            for _, node in steps:
                own.update(node.dependencies)
            if any(own[key] != self._uses[key] for key, _ in steps):
                return False
        return True

    def values(self) -> list[Any]:
        """All that the nodes hold themselves."""
        found = list(self.literals.values())

        def note(value: Any, *, sliced: bool) -> Any:
            found.append(value)
            return value

        for steps in self._steps:
            for _, node in steps:
                changed(node, note, sliced=False)
        return found

    @property
    def reads(self) -> bool:
        """Whether anything is computed at all."""
        return any(self._steps)

    def make(
        self, inputs: Mapping[Key, Any], numbers: Iterable[int]
    ) -> Iterable[tuple[Any, ...]]:
        """Compute some blocks in turn: for each, the values of its keys.

        All of them, but where they are apart.
        """
        values = {**self.literals, **inputs}
        left = dict(self._uses)

        def release(key: Key) -> None:
            if key in left:
                left[key] -= 1
                if left[key] == 0:
                    del values[key]

        for number in numbers:
            keys = self._blocks[number]
            for key, node in self._steps[number]:
                # Only what it needs: a node looks at all that it is given.
                values[key] = node({k: values[k] for k in node.dependencies})
                for needed in node.dependencies:
                    release(needed)
            made = tuple(values[key] for key in keys)
            for key in keys:
                release(key)
            yield made
            del made
