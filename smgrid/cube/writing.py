"""Write units: one Dask graph with one task per pending unit, on any scheduler.

A task receives the unit's block of every variable, checks and encodes it, and writes its shards.
Nothing but these blocks passes through a process, and the graph holds paths and numbers only.
"""

import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from dask import threaded
from dask._task_spec import Task, TaskRef
from dask.base import get_scheduler
from dask.callbacks import Callback
from dask.highlevelgraph import HighLevelGraph
from dask.system import CPU_COUNT

from smgrid.cube.encoding import encode
from smgrid.cube.storage import open_store
from smgrid.cube.tiling import Index, PendingUnits, UnitSet
from smgrid.errors import SchemaError


@dataclass(frozen=True)
class Target:
    """Where the units of one set are written; opened once per process."""

    path: str
    """Path of the store."""
    digest: str
    """Digest of its template: a store that is made anew at the same path is another target."""
    arrays: tuple[str, ...]
    """Paths of the arrays, in the order of a task's blocks."""


class UnitError(Exception):
    """Units that could not be written, by their place in the list of pending ones, and why."""

    def __init__(self, places: tuple[int, ...], error: BaseException) -> None:
        super().__init__(places, error)
        self.places = places
        self.error = error


def build_flags(
    groups: Mapping[str, xr.Dataset], pending: PendingUnits, *, path: str, digest: str
) -> da.Array:
    """Return a lazy array with one flag per pending unit; computing it writes the units.

    Parameters
    ----------
    groups
        The data by group path.
    pending
        Units to write.
    path, digest
        The store and its template's digest.
    """
    name = f"write-unit-{uuid.uuid4().hex}"
    tasks: dict[Any, Task] = {}
    sources: dict[UnitSet, tuple[Target, list[da.Array]]] = {}
    for place, (units, index) in enumerate(pending):
        if units not in sources:
            arrays = [_in_shards(groups[units.group][n].variable, units) for n in units.names]
            paths = tuple(units.array_path(n) for n in units.names)
            sources[units] = (Target(path, digest, paths), arrays)
        target, arrays = sources[units]
        blocks = [TaskRef((array.name, *index)) for array in arrays]
        key = (name, place)
        tasks[key] = Task(key, write_unit, target, place, index, *blocks)
    dependencies: list[Any] = [array for _, arrays in sources.values() for array in arrays]
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=dependencies)
    return da.Array(graph, name, chunks=((1,) * len(tasks),), dtype=bool)


def _in_shards(variable: xr.Variable, units: UnitSet) -> da.Array:
    """Return the values as a Dask array with one chunk per shard."""
    name = f"shards-{uuid.uuid4().hex}"  # a name of its own: hashing the values would read them
    chunks = dict(zip(units.dims, units.shards, strict=True))
    array: da.Array = variable.chunk(chunks, name=name).data
    return array


def write_unit(
    target: Target, place: int, index: Index, *blocks: npt.NDArray[Any]
) -> npt.NDArray[np.bool_]:
    """Check, encode and write the blocks of one unit; runs in a task."""
    try:
        for path, block in zip(target.arrays, blocks, strict=True):
            _write_block(_open_array(target.path, target.digest, path), index, block)
    except Exception as error:
        # The cause of an exception is lost on its way from another process; its arguments are not.
        raise UnitError((place,), error) from error
    return np.ones(1, bool)


def _write_block(array: zarr.Array[Any], index: Index, block: npt.NDArray[Any]) -> None:
    name = array.basename
    shards = array.shards or array.chunks
    region = tuple(
        slice(i * edge, min((i + 1) * edge, size))
        for i, edge, size in zip(index, shards, array.shape, strict=True)
    )
    expected = tuple(part.stop - part.start for part in region)
    values = np.asarray(block)
    if values.shape != expected:
        msg = f"{name}: a block has the shape {values.shape}, expected {expected}"
        raise SchemaError(msg)
    array[region] = encode(values, name, array.dtype)


@lru_cache(maxsize=256)
def _open_array(path: str, digest: str, array: str) -> zarr.Array[Any]:
    """Open an array so that a shard of nothing but fill values is written, too."""
    opened = zarr.open_array(open_store(path, "write"), path=array, mode="r+")
    return opened.with_config({"write_empty_chunks": True})


def compute_flags(flags: da.Array, on_done: Callable[[int], None]) -> None:
    """Write the units of `flags` with the scheduler that Dask is set to.

    Parameters
    ----------
    flags
        From `build_flags`.
    on_done
        Called in this process with the place of every unit that was written.

    Raises
    ------
    UnitError
        At the first unit that fails.
    """
    get = get_scheduler(collections=[flags])
    client = getattr(get, "__self__", None)
    if client is None:
        _compute_here(get, flags, on_done)
    else:
        _compute_on_cluster(client, flags, on_done)


def _compute_on_cluster(client: Any, flags: da.Array, on_done: Callable[[int], None]) -> None:
    # Only needed where a client was made; importing it takes half a second.
    from distributed import as_completed, futures_of

    futures = futures_of(client.persist(flags))
    for future in as_completed(futures):
        place = future.key[1]
        if future.status != "finished":
            error = future.exception()
            client.cancel(futures)
            raise error if isinstance(error, UnitError) else UnitError((place,), error)
        on_done(place)


def _compute_here(get: Any, flags: da.Array, on_done: Callable[[int], None]) -> None:
    watch = _Watch(flags.name, on_done)
    # Not flags.compute(): that may fuse a unit's task with the collection of the flags.
    keys = flags.__dask_keys__()
    graph = flags.__dask_optimize__(flags.dask, keys)
    try:
        with watch:
            _run(get, graph, keys)
    except UnitError:
        raise
    except Exception as error:
        raise UnitError(watch.failed, error) from error


def _run(get: Any, graph: Any, keys: Any) -> None:
    if get is not threaded.get or dask.config.get("pool", None) is not None:
        get(graph, keys)
        return
    # Threads of its own, which end here: after a failure none may go on writing. They are not
    # set in dask.config, where a computation inside of a task would wait for them forever.
    with ThreadPoolExecutor(dask.config.get("num_workers", None) or CPU_COUNT) as pool:
        get(graph, keys, pool=pool)


class _Watch(Callback):
    """Report written units, and after a failure the units whose inputs were being computed."""

    def __init__(self, layer: str, on_done: Callable[[int], None]) -> None:
        self.layer = layer
        self.on_done = on_done
        self.failed: tuple[int, ...] = ()

    def _posttask(self, key: Any, result: Any, dsk: Any, state: Any, worker: Any) -> None:
        if isinstance(key, tuple) and key[0] == self.layer:
            self.on_done(key[1])

    def _finish(self, dsk: Any, state: Any, errored: bool) -> None:
        if errored:
            self.failed = self.failed or self._units_behind(state["running"], state["dependents"])

    def _units_behind(self, keys: Any, dependents: Mapping[Any, Any]) -> tuple[int, ...]:
        places, seen, ahead = set(), set(), list(keys)
        while ahead:
            key = ahead.pop()
            if isinstance(key, tuple) and key[0] == self.layer:
                places.add(key[1])
            elif key not in seen:
                seen.add(key)
                ahead += dependents.get(key, ())
        return tuple(sorted(places))
