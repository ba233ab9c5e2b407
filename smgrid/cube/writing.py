"""Write units: a lazy Dask array with one element per pending unit, on any scheduler.

A task receives the unit's block of every variable, checks and encodes it, and writes its shards.
Nothing but these blocks passes through a process, and the graph holds paths and numbers only.
"""

import uuid
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from dataclasses import replace as replaced
from typing import Any

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask import threaded
from dask._task_spec import Task, TaskRef
from dask.base import get_scheduler
from dask.callbacks import Callback
from dask.core import flatten
from dask.highlevelgraph import HighLevelGraph
from dask.system import CPU_COUNT

from smgrid.cube.dispatch import Pace, dispatch
from smgrid.cube.guarding import Failed, StrangeError, failed, guard_graph, renamed
from smgrid.cube.lock import Claim
from smgrid.cube.shards import digest as digest_of
from smgrid.cube.shards import encode_shard, open_array, shard_key
from smgrid.cube.storage import open_store, read_bytes, write_bytes
from smgrid.cube.tiling import Index, PendingUnits, UnitSet


@dataclass(frozen=True)
class Target:
    """Where the units of one set are written."""

    path: str
    """Path of the store."""
    digest: str
    """Digest of its template: a store that is made anew at the same path is another target."""
    arrays: tuple[str, ...]
    """Paths of the arrays, in the order of a task's blocks."""
    claim: Claim | None = None
    """The lease without which nothing is written; ``None`` where nobody else can write."""
    replace: bool = False
    """Whether there are shards already, which are left alone if nothing in them changes."""


@dataclass(frozen=True)
class Written:
    """The value of a task that has written its unit."""

    sha256: tuple[str, ...]
    """Of the shards, in the order of the variables."""
    changed: bool = True
    """Whether any shard is not what it was before."""


Outcome = Written | Failed
OutcomeFunction = Callable[[int, Outcome], None]


def build_flags(
    groups: Mapping[str, xr.Dataset],
    pending: PendingUnits,
    *,
    path: str,
    digest: str,
    claim: Claim | None = None,
    replace: Collection[tuple[UnitSet, Index]] = (),
) -> da.Array:
    """Return a lazy array with one element per pending unit; `compute_flags` writes the units.

    Parameters
    ----------
    groups
        The data by group path.
    pending
        Units to write.
    path, digest
        The store and its template's digest.
    claim
        Of the writer's lease.
    replace
        Those of the pending units that are there, but may have changed.
    """
    name = f"write-unit-{uuid.uuid4().hex}"
    tasks: dict[Any, Task] = {}
    sources: dict[UnitSet, tuple[Target, Target, list[da.Array]]] = {}
    for place, (units, index) in enumerate(pending):
        if units not in sources:
            arrays = [_in_shards(groups[units.group][n].variable, units) for n in units.names]
            paths = tuple(units.array_path(n) for n in units.names)
            new = Target(path, digest, paths, claim)
            sources[units] = (new, replaced(new, replace=True), arrays)
        new, old, arrays = sources[units]
        target = old if (units, index) in replace else new
        blocks = [TaskRef((array.name, *index)) for array in arrays]
        key = (name, place)
        tasks[key] = Task(key, write_unit, target, index, *blocks)
    dependencies: list[Any] = [array for _, _, arrays in sources.values() for array in arrays]
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=dependencies)
    return da.Array(graph, name, chunks=((1,) * len(tasks),), dtype=object)


def _in_shards(variable: xr.Variable, units: UnitSet) -> da.Array:
    """Return the values as a Dask array with one chunk per shard."""
    name = f"shards-{uuid.uuid4().hex}"  # a name of its own: hashing the values would read them
    chunks = dict(zip(units.dims, units.shards, strict=True))
    array: da.Array = variable.chunk(chunks, name=name).data
    return array


def write_unit(target: Target, index: Index, *blocks: npt.NDArray[Any]) -> Outcome:
    """Check, encode and write the blocks of one unit; runs in a task."""
    try:
        arrays = [open_array(target.path, target.digest, path) for path in target.arrays]
        store = open_store(target.path, "write")
    except Exception as error:  # noqa: BLE001 (it is judged where the units are counted)
        return failed(error, in_store=True)
    # All variables before the first write: none stands alone because another has wrong values.
    contents = [
        encode_shard(array, index, np.asarray(block))
        for array, block in zip(arrays, blocks, strict=True)
    ]
    changed = False
    try:
        if target.claim is not None:
            # A worker learns from nobody that its client has died or given up.
            target.claim.confirm(store, target.path)
        for path, content in zip(target.arrays, contents, strict=True):
            key = shard_key(path, index)
            if not (target.replace and read_bytes(store, key) == content):
                write_bytes(store, key, content)
                changed = True
    except Exception as error:  # noqa: BLE001 (likewise)
        return failed(error, in_store=True)
    return Written(tuple(digest_of(content) for content in contents), changed)


def compute_flags(flags: da.Array, on_done: OutcomeFunction, *, pace: Pace = "full") -> None:
    """Write the units of `flags` with the scheduler that Dask is set to.

    Parameters
    ----------
    flags
        From `build_flags`.
    on_done
        Called in this process with the place of every unit and what became of it. What it raises
        ends the work: units that have begun are finished, no other is begun.
    pace
        How many units are on their way at a time on a cluster.

    Raises
    ------
    LostSchedulerError
        The cluster's scheduler has gone.
    """
    get = get_scheduler(collections=[flags])
    client = getattr(get, "__self__", None)
    if client is not None:

        def on_result(place: int, result: Any) -> None:
            # A guarded task fails itself only if its worker dies or cannot send its result.
            on_done(place, _lost(result) if isinstance(result, Exception) else result)

        dispatch(client, flags, on_result, pace=pace)
        return
    keys = list(flatten(flags.__dask_keys__()))
    suffix = uuid.uuid4().hex[:8]
    # Optimised before it is guarded: fusing afterwards would not know one task from another.
    graph = guard_graph(flags.__dask_optimize__(flags.dask, keys), suffix=suffix)
    keys = [renamed(key, suffix) for key in keys]
    with _Listener({*keys}, on_done):
        _run(get, graph, keys)


def _lost(error: Exception) -> Failed:
    """Return what is kept of a task that was lost, in the words of smgrid if it took workers."""
    outcome = failed(error)
    worker = getattr(error, "last_worker", None)
    if worker is None:
        return outcome
    died: int = error.allowed_failures + 1  # type: ignore[attr-defined]
    msg = (
        f"workers that died at it: {died}, the last one {worker.address}; out of memory or a crash "
        "in a library, their logs say more"
    )
    return replaced(outcome, error=StrangeError(msg))


def _run(get: Any, graph: Any, keys: Any) -> None:
    if get is not threaded.get or dask.config.get("pool", None) is not None:
        get(graph, keys)
        return
    # Threads of its own, which end here: after an interruption none may go on writing. They are
    # not set in dask.config, where a computation inside of a task would wait for them forever.
    with ThreadPoolExecutor(dask.config.get("num_workers", None) or CPU_COUNT) as pool:
        get(graph, keys, pool=pool)


class _Listener(Callback):
    """Tells what became of a unit as soon as its task has ended."""

    def __init__(self, keys: set[Any], on_done: OutcomeFunction) -> None:
        self.keys = keys
        self.on_done = on_done

    def _posttask(self, key: Any, result: Any, dsk: Any, state: Any, worker: Any) -> None:
        if key in self.keys:
            self.on_done(key[1], result)
