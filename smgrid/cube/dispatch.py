"""Units on a cluster: one future each, and never more than a few per thread at a time.

A worker that dies takes nothing along but what it was at: the scheduler gives that to another one,
until it has taken the scheduler's ``allowed-failures`` with it.
"""

import time
from asyncio import CancelledError
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal
from uuid import uuid4

import dask.array as da
from dask.highlevelgraph import HighLevelGraph

from smgrid.cube.cutting import Cut, UnitGraph

Pace = Literal["full", "careful"]
"""``careful``: no more units at a time than there are threads, so that one that kills its worker
takes no other along."""

_PER_THREAD = 8
_SMALLEST = 256  # units at a time: cuts of half of it cost little per unit
_GATHER_S = 0.05

Result = Any
Results = Iterable[tuple[Any, Result]]


class LostSchedulerError(Exception):
    """The cluster has ended, or has forgotten what it was doing."""


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
        The scheduler has gone.
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
                with _connected(client):
                    futures = client.get(_layered(cut), [*cut.places, *cut.kept], sync=False)
                kept += futures[len(wanted) :]
                completed.update(futures[: len(wanted)])
                places |= cut.places
                del futures  # one that nobody holds is forgotten by the scheduler
                window = _window(client, pace)  # workers come and go
            if not places:
                return
            for key, result in _results(client, _next_batch(completed)):
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
    with _connected(client):
        threads: int = max(1, sum(client.nthreads().values()))
    return threads if pace == "careful" else max(_SMALLEST, _PER_THREAD * threads)


def _next_batch(completed: Any) -> list[Any]:
    """Wait for units, and a little for others: one request brings the results of all of them."""
    batch: list[Any] = completed.next_batch()
    if not completed.is_empty():
        time.sleep(_GATHER_S)
        batch += completed.next_batch(block=False)
    return batch


def _results(client: Any, batch: Sequence[Any]) -> Results:
    """Yield the key of every future and its value, or the exception of one that was lost."""
    if any(future.status == "cancelled" for future in batch):
        raise LostSchedulerError
    # Sorted once: the scheduler may go at any moment, and with it what their status is.
    states = [(future, future.status == "finished") for future in batch]
    finished = [future for future, is_finished in states if is_finished]
    try:
        with _connected(client):
            values = client.gather(finished)  # in one request for all of them
    except LostSchedulerError:
        raise
    except Exception:  # noqa: BLE001 (a worker took a value along, and the task fails now)
        values = [_value_of(client, future) for future in finished]
    yield from zip((future.key for future in finished), values, strict=True)
    lost = (future for future, is_finished in states if not is_finished)
    yield from ((future.key, _value_of(client, future)) for future in lost)


def _value_of(client: Any, future: Any) -> Any:
    try:
        with _connected(client):
            return future.result()
    except LostSchedulerError:
        raise
    except Exception as error:  # noqa: BLE001 (it is judged where the units are counted)
        return error


@contextmanager
def _connected(client: Any) -> Iterator[None]:
    """Tell a scheduler that has gone from anything else that went wrong."""
    try:
        yield
    except (OSError, RuntimeError, CancelledError) as error:
        if client.status == "running" and not isinstance(error, CancelledError):
            raise
        raise LostSchedulerError from error
