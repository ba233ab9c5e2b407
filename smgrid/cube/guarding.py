"""A Dask graph in which a task that fails does not stop the others.

Every task is wrapped: what it raises becomes its value, and tasks that would need this value pass
it on instead of running. The shape of the graph stays, so that inputs which several units share
are read once and memory is used as before.
"""

import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from traceback import walk_tb
from typing import Any

from dask._task_spec import DataNode, Task, TaskRef, convert_legacy_graph

from smgrid.errors import SmgridError


@dataclass(frozen=True)
class Failed:
    """The value of a task that failed, or that needs one that did."""

    error: Exception
    """In a form that other processes can read, without the memory that its frames would hold."""
    kind: str
    """Name of the exception's class."""
    at: str
    """Module and line that raised it; empty for errors that smgrid raises on purpose."""
    in_store: bool = False
    """Whether writing failed, rather than reading or computing what was to be written."""


class StrangeError(Exception):
    """Stands for an exception that cannot be sent to another process."""


def failed(error: Exception, *, in_store: bool = False) -> Failed:
    """Return what is kept of an exception that a task raised."""
    at = "" if isinstance(error, SmgridError) else _place_of(error)
    kind = type(error).__name__
    _drop_frames(error)
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 (exceptions with arguments of their own fail in many ways)
        error = _stand_in(error)
    return Failed(error=error, kind=kind, at=at, in_store=in_store)


def _stand_in(error: Exception) -> StrangeError:
    """Return what can travel of an exception that cannot: its text, and what ledgers ask for."""
    stand_in = StrangeError(str(error))
    for name in ("asset", "attempts"):
        if isinstance(getattr(error, name, None), str | int):
            setattr(stand_in, name, getattr(error, name))
    return stand_in


def _place_of(error: Exception) -> str:
    frames = [(f.f_globals.get("__name__", "?"), line) for f, line in walk_tb(error.__traceback__)]
    return "{}:{}".format(*frames[-1]) if frames else ""


def _drop_frames(error: BaseException | None) -> None:
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def guard_graph(
    graph: Mapping[Any, Any], *, suffix: str, known: Mapping[Any, Any] | None = None
) -> dict[Any, Any]:
    """Return the graph with every task guarded, under keys of its own.

    Parameters
    ----------
    graph
        Tasks by key, without layers.
    suffix
        Makes the keys new: whoever computes the same inputs on the same cluster must not find a
        failure among them, nor may a later attempt.
    known
        Names that are given otherwise, also of guarded tasks that are not in this graph.
    """
    nodes = convert_legacy_graph(graph)
    names: dict[Any, Any] = {key: renamed(key, suffix) for key in nodes} | dict(known or {})
    guarded: dict[Any, Any] = {}
    for key, node in nodes.items():
        name = names[key]
        if isinstance(node, DataNode):
            guarded[name] = DataNode(name, node.value)
            continue
        needs = tuple(node.dependencies)
        # What is not in the graph is the key of somebody's future.
        references = [TaskRef(names.get(need, need)) for need in needs]
        guard = _Guard(node, needs)
        guarded[name] = Task(name, guard, *references, _data_producer=node.data_producer)
    return guarded


def renamed(key: Any, suffix: str) -> Any:
    """Return the key of a guarded task."""
    if isinstance(key, tuple) and isinstance(key[0], str):
        return (f"{key[0]}-{suffix}", *key[1:])
    return f"{key}-{suffix}"


class _Guard:
    """Runs one task."""

    __slots__ = ("needs", "node")

    def __init__(self, node: Any, needs: tuple[Any, ...]) -> None:
        self.node = node
        self.needs = needs

    def __call__(self, *values: Any) -> Any:
        failure = _first_failure(values)
        if failure is not None:
            return failure
        try:
            return self.node(dict(zip(self.needs, values, strict=True)))
        except Exception as error:  # noqa: BLE001 (it is judged where the units are counted)
            return failed(error)


def _first_failure(values: Iterable[Any]) -> Failed | None:
    return next((value for value in values if isinstance(value, Failed)), None)
