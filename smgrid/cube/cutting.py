"""The graph of all units, cut into one task per unit.

What a unit alone needs is computed inside of its task, so that a scheduler has one task per unit
and a worker holds nothing but the units that it is at. What several units need stays a task of its
own and is computed once for all units that are cut together; what is large is kept for all others.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
from dask._task_spec import DataNode, GraphNode, convert_legacy_graph, cull
from dask.blockwise import fuse_roots, optimize_blockwise
from dask.core import flatten, reverse_dict
from dask.highlevelgraph import HighLevelGraph

from smgrid.cube.guarding import guard_graph, renamed

_LARGEST = 64  # tasks that become one: more of them are worth several workers
_SECTION = 4096  # units

Nodes = Mapping[Any, GraphNode]


@dataclass(frozen=True)
class Cut:
    """The tasks that write some of the units."""

    tasks: Mapping[Any, Any]
    """Guarded tasks by key."""
    places: Mapping[Any, int]
    """Place of every unit by the key of its task."""
    kept: Collection[Any]
    """Keys that later cuts refer to and do not contain, such as that of the weights of a model:
    they have to be held on the cluster."""


class UnitGraph:
    """The lazy array of `build_flags`, cut piece by piece.

    Parameters
    ----------
    flags
        One element per unit.
    suffix
        Unlike that of any other computation on the same cluster, see `guard_graph`.
    """

    def __init__(self, flags: da.Array, *, suffix: str) -> None:
        self._flags = flags
        self._keys = list(flatten(flags.__dask_keys__()))
        self._suffix = suffix
        self._cuts = 0
        # Layers are fused before anything is cut off: dask cannot do that afterwards.
        fused = optimize_blockwise(flags.dask, keys=self._keys)
        self._graph: HighLevelGraph = fuse_roots(fused, keys=self._keys)
        self._section = (range(0), self._graph)
        self._kept: dict[Any, Any] = {}  # names on the cluster by key

    def __len__(self) -> int:
        """Return the number of units."""
        return len(self._keys)

    def cut(self, places: Sequence[int]) -> Cut:
        """Return the tasks that write the units at these places, which ascend."""
        keys = [self._keys[place] for place in places]
        graph = dict(self._section_with(places).cull(keys))
        found = convert_legacy_graph(self._flags.__dask_optimize__(graph, keys))
        nodes = cull({key: node for key, node in found.items() if key not in self._kept}, keys)
        new = {key: renamed(key, self._suffix) for key in worth_keeping(nodes, keys)}
        self._kept |= new
        # All others are named by the cut as well: in another one they may be fused otherwise.
        self._cuts += 1
        suffix = f"{self._suffix}-{self._cuts}"
        return Cut(
            tasks=guard_graph(fuse_units(nodes, keys, apart=new), suffix=suffix, known=self._kept),
            places={renamed(key, suffix): place for key, place in zip(keys, places, strict=True)},
            kept=list(new.values()),
        )

    def _section_with(self, places: Sequence[int]) -> HighLevelGraph:
        """Return a part of the graph: cutting takes time by the length of what is cut."""
        graph: HighLevelGraph
        covered, graph = self._section
        if places[0] not in covered or places[-1] not in covered:
            covered = range(places[0], max(places[0] + _SECTION, places[-1] + 1))
            graph = self._graph.cull(self._keys[covered.start : covered.stop])
            self._section = (covered, graph)
        return graph


def worth_keeping(nodes: Nodes, keys: Collection[Any]) -> set[Any]:
    """Return what several tasks need and is a value, or has taken many tasks to make.

    Parameters
    ----------
    nodes
        A graph.
    keys
        Tasks of units: what they need directly is kept, not what that was made from.
    """
    dependents = reverse_dict({key: node.dependencies for key, node in nodes.items()})
    kept = set()
    for unit in keys:
        for need in nodes[unit].dependencies:
            if need in nodes and len(dependents[need]) > 1 and _is_large(nodes, need):
                kept.add(need)
    values = {key for key, node in nodes.items() if isinstance(node, DataNode)}
    return kept | {key for key in values if len(dependents[key]) > 1}


def _is_large(nodes: Nodes, key: Any) -> bool:
    """Whether a task and all below it are more than are fused."""
    below, open_ = {key}, [key]
    while open_ and len(below) <= _LARGEST:
        new = {need for need in nodes[open_.pop()].dependencies if need in nodes} - below
        below |= new
        open_ += new
    return len(below) > _LARGEST


def fuse_units(
    nodes: Nodes, keys: Collection[Any], *, apart: Collection[Any] = ()
) -> dict[Any, GraphNode]:
    """Move into the tasks of units what they alone need, and return the smaller graph.

    Parameters
    ----------
    nodes
        A graph.
    keys
        Tasks of units, on which no other task depends.
    apart
        Tasks that stay as they are.
    """
    inside = {key: [key] for key in keys}
    owner: dict[Any, Any] = {key: key for key in keys}
    dependents = reverse_dict({key: node.dependencies for key, node in nodes.items()})
    for key in _from_the_top(nodes, dependents, keys):
        owners = {owner.get(above) for above in dependents[key]}
        unit = owners.pop() if len(owners) == 1 else None
        if unit is not None and key not in apart:
            owner[key] = unit
            inside[unit].append(key)
    inside = {key: members for key, members in inside.items() if len(members) <= _LARGEST}
    moved = {key for members in inside.values() for key in members}
    remaining = {key: node for key, node in nodes.items() if key not in moved}
    fused = {
        key: GraphNode.fuse(*(nodes[member] for member in members), key=key)
        for key, members in inside.items()
    }
    return {**remaining, **fused}


def _from_the_top(
    nodes: Nodes, dependents: Mapping[Any, Collection[Any]], keys: Collection[Any]
) -> Iterator[Any]:
    """Yield what some tasks depend on, each after everything that depends on it."""
    open_ = {key: len(dependents.get(key, ())) for key in nodes}
    ready = list(keys)
    while ready:
        for need in nodes[ready.pop()].dependencies:
            if need not in nodes:
                continue  # kept on the cluster, or the key of somebody's future
            open_[need] -= 1
            if not open_[need]:
                ready.append(need)
                yield need
