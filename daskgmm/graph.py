"""A Dask graph, cut into private recipes for blocks and work they share.

A block's *recipe* is the part of the graph that leads to it. What a recipe needs from
outside are *inputs*: futures of persisted blocks, and *cut* nodes, work shared by so
many blocks (a global mean, say) that it is computed once, before, and never again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Final, final

from dask._task_spec import DataNode, GraphNode, convert_legacy_graph
from dask.utils import ensure_dict
from distributed import Future

Key = Any  # Hashable, but Dask's own annotations differ from version to version

_FEW: Final = 8
"""A node that so few blocks want is not cut: neighbours sharing a chunk of a source."""


@final
class Graph:
    """Nodes by key, with futures set apart."""

    def __init__(self, graph: Mapping[Hashable, Any]) -> None:
        flat = ensure_dict(graph)
        self.futures = {k: v for k, v in flat.items() if isinstance(v, Future)}
        rest = {k: v for k, v in flat.items() if k not in self.futures}
        self.nodes: dict[Key, GraphNode] = convert_legacy_graph(
            rest, all_keys=set(flat)
        )

    def is_work(self, key: Key) -> bool:
        """Whether there is something to compute: no literal, no future."""
        node = self.nodes.get(key)
        return node is not None and not isinstance(node, DataNode)

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
    shared by neighbours is not cut, it would be kept in memory for all passes.

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
    many = max(2, len(blocks) // 2 + 1)
    chosen: set[Key] = set()
    for key in reversed(everything):
        wants = wanted_by.pop(key, None)
        if wants is None or not graph.is_work(key):
            continue
        if len(wants) >= many or (len(wants) > _FEW and _gathers(graph, key)):
            chosen.add(key)
            continue
        for needed in graph.dependencies(key):
            if graph.is_work(needed):
                known = wanted_by.get(needed)
                # Shared until a second consumer comes: most nodes have one.
                wanted_by[needed] = wants if known is None else known | wants
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


@final
class Recipes:
    """How to make some blocks, one after the other.

    A node that several of the blocks need is computed for the first and kept until the
    last. A plain class: Dask looks into dataclasses, lists and dictionaries.

    Attributes
    ----------
    inputs : tuple of key
        What must be given.
    """

    def __init__(
        self, graph: Graph, blocks: Sequence[Sequence[Key]], cuts: set[Key]
    ) -> None:
        def dependencies(key: Key) -> Iterable[Key]:
            return () if key in cuts else graph.dependencies(key)

        visited: set[Key] = set()
        orders = [_post_order(keys, dependencies, visited) for keys in blocks]
        outside = cuts | graph.futures.keys()
        self.inputs = tuple(k for keys in orders for k in keys if k in outside)
        given = set(self.inputs)
        self._blocks = [tuple(keys) for keys in blocks]
        self._literals = {
            k: graph.nodes[k]({}) for k in visited - given if not graph.is_work(k)
        }
        given |= self._literals.keys()
        self._steps = [
            [(k, graph.nodes[k]) for k in order if k not in given] for order in orders
        ]
        used = Counter(k for keys in blocks for k in keys)
        for steps in self._steps:
            for _, node in steps:
                used.update(node.dependencies)
        self._uses = {k: n for k, n in used.items() if k not in given}

    @property
    def reads(self) -> bool:
        """Whether anything is computed at all."""
        return any(self._steps)

    def make(self, inputs: Mapping[Key, Any]) -> Iterable[tuple[Any, ...]]:
        """Compute the blocks in turn: for each, the values of its keys."""
        values = {**self._literals, **inputs}
        left = dict(self._uses)

        def release(key: Key) -> None:
            if key in left:
                left[key] -= 1
                if left[key] == 0:
                    del values[key]

        for keys, steps in zip(self._blocks, self._steps, strict=True):
            for key, node in steps:
                values[key] = node(values)
                for needed in node.dependencies:
                    release(needed)
            made = tuple(values[key] for key in keys)
            for key in keys:
                release(key)
            yield made
            del made
