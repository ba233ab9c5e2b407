"""Units on a cluster: one future each, and never more than a few per thread at a time.

A worker that dies takes nothing along but what it was at: the scheduler gives that to another one,
until it has taken the scheduler's ``allowed-failures`` with it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal
from uuid import uuid4

import dask
import dask.array as da
from dask.base import get_scheduler
from dask.highlevelgraph import HighLevelGraph
from dask.utils import parse_timedelta

from smgrid.cube.cutting import Cut, UnitGraph
from smgrid.errors import StoreError

Pace = Literal["full", "careful"]
"""``careful``: no more units at a time than there are threads, so that one that kills its worker
takes no other along."""

_PER_THREAD = 8
_SMALLEST = 256  # units at a time: cuts of half of it cost little per unit
_GATHER_S = 0.05
_LOOK_S = 5.0  # between looks at how many workers there are, while nothing is done
_PATIENCE = "distributed.scheduler.no-workers-timeout"
_PATIENCE_S = "1h"  # where that is not set: queues of batch systems are long

_log = logging.getLogger(__name__)

Result = Any
Results = Iterable[tuple[Any, Result]]


class LostSchedulerError(StoreError):
    """The cluster has ended, has no workers any more, or has forgotten what it was doing."""


def dispatch(
    client: Any, flags: da.Array, on_done: Callable[[int, Result], None], *, pace: Pace = "full"
) -> None:
    """Compute every element of an array on a cluster, a bounded number of them at a time.

    Parameters
    ----------
    client
        Client of `distributed`.
    flags
        One element per unit, from `build_flags`.
    on_done
        Called with the place of every unit and its value, or the exception of a task that was
        lost. What it raises ends the work.
    pace
        How many units are on their way at a time.

    Raises
    ------
    LostSchedulerError
        The scheduler has gone, or no worker was there for as long as Dask's configuration says in
        ``distributed.scheduler.no-workers-timeout`` (here and where the scheduler was started), an
        hour if it says nothing.
    """
    # Only needed where a client was made; importing it takes half a second.
    from distributed import as_completed

    graph = UnitGraph(flags, suffix=uuid4().hex[:8])
    waiting = iter(range(len(graph)))
    places: dict[Any, int] = {}  # of the units on their way
    completed = as_completed(loop=client.loop)
    kept: list[Any] = []
    window = _window(client, pace)
    try:
        while True:
            room = window - len(places)
            # Not one by one: a cut of many units costs little per unit.
            wanted = list(islice(waiting, room)) if 2 * room >= window else []
            if wanted:
                cut = graph.cut(wanted)
                with connected(client):
                    futures = client.get(_layered(cut), [*cut.places, *cut.kept], sync=False)
                kept += futures[len(wanted) :]
                completed.update(futures[: len(wanted)])
                places |= cut.places
                del futures  # one that nobody holds is forgotten by the scheduler
                window = _window(client, pace)  # workers come and go
            if not places:
                return
            for key, result in _results(client, _next_batch(client, completed)):
                on_done(places.pop(key), result)
    except BaseException:
        if client.status == "running":
            # Those that have begun go on, and find that the lease is gone.
            # Those of shared tasks are let go with them: cancelling one that others depend on ends
            # what the scheduler does for this client.
            client.cancel([*completed.futures])
        raise


def _layered(cut: Cut) -> HighLevelGraph:
    """Return the tasks as a graph that dask does not hash, which costs as much as all else."""
    return HighLevelGraph.from_collections(uuid4().hex, cut.tasks, dependencies=())


def _window(client: Any, pace: Pace) -> int:
    """Return how many units may be on their way."""
    threads = max(1, _threads(client))
    return threads if pace == "careful" else max(_SMALLEST, _PER_THREAD * threads)


def _threads(client: Any) -> int:
    with connected(client):
        return sum(client.nthreads().values())


def _next_batch(client: Any, completed: Any) -> list[Any]:
    """Wait for units, and a little for others: one request brings the results of all of them."""
    _wait(client, completed)
    batch: list[Any] = completed.next_batch()
    if not completed.is_empty():
        time.sleep(_GATHER_S)
        batch += completed.next_batch(block=False)
    return batch


def _wait(client: Any, completed: Any) -> None:
    """Wait for a unit, but not for ever if there is nobody to compute it."""
    patience: float = parse_timedelta(dask.config.get(_PATIENCE, None) or _PATIENCE_S)
    look = time.monotonic() + _LOOK_S
    alone = None  # since when there is no worker
    while not completed.has_ready():
        with completed.thread_condition:
            completed.thread_condition.wait(_GATHER_S)
        now = time.monotonic()
        if now < look:
            continue
        look = now + _LOOK_S
        if _threads(client):
            alone = None
        elif alone is None:
            alone = now
            _log.warning("the cluster has no worker; waiting %g s for one to come", patience)
        elif now - alone >= patience:
            raise LostSchedulerError(
                f"the cluster had no worker for {patience:g} s; see why they ended, or wait longer "
                f"({_PATIENCE} of Dask, wait of a job)"
            )


def _results(client: Any, batch: Sequence[Any]) -> Results:
    """Yield the key of every future and its value, or the exception of one that was lost."""
    # Sorted once: the scheduler may go at any moment, and with it what their status is.
    states = [(future, future.status) for future in batch]
    if any(status == "cancelled" for _, status in states):
        raise _lost("it has dropped what it was doing")
    finished = [future for future, status in states if status == "finished"]
    try:
        with connected(client):
            values = client.gather(finished)  # in one request for all of them
    except LostSchedulerError:
        raise
    except Exception:  # noqa: BLE001 (a worker took a value along, and the task fails now)
        values = [_value_of(client, future) for future in finished]
    yield from zip((future.key for future in finished), values, strict=True)
    failed = (future for future, status in states if status != "finished")
    yield from ((future.key, _value_of(client, future)) for future in failed)


def _value_of(client: Any, future: Any) -> Any:
    try:
        with connected(client):
            return future.result()
    except LostSchedulerError:
        raise
    except Exception as error:  # noqa: BLE001 (it is judged where the units are counted)
        return error


@contextmanager
def connected(client: Any) -> Iterator[None]:
    """Raise LostSchedulerError for whatever the end of a cluster looks like inside the block.

    Parameters
    ----------
    client
        Client of `distributed`, or None, which changes nothing; see `current_client`.
    """
    try:
        yield
    except (Exception, asyncio.CancelledError) as error:
        if client is None:
            raise
        # Whoever has a client has imported what this imports.
        from smgrid.cluster import is_lost

        if is_lost(client, error):
            raise _lost(f"{type(error).__name__}: {error}") from error
        raise


def current_client() -> Any:
    """Return the client of `distributed` that Dask computes with, or None."""
    return getattr(get_scheduler(), "__self__", None)


def _lost(reason: str) -> LostSchedulerError:
    return LostSchedulerError(f"the scheduler was lost ({reason})")
