"""Units on a cluster: what ends the work, and what is left when it has ended."""

import asyncio
import concurrent.futures
import logging
from types import SimpleNamespace

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, Event, LocalCluster, get_worker
from distributed.client import ClosedClientError, FutureCancelledError
from distributed.comm import CommClosedError
from distributed.scheduler import NoWorkerError

from smgrid.cube import dispatch as module
from smgrid.cube.dispatch import LostSchedulerError, connected, dispatch
from smgrid.cube.inspect import inspect
from smgrid.cube.store import write_cube
from smgrid.errors import NoDataError, StoreError

UNITS = 12


@pytest.fixture(scope="module")
def cluster():
    """A cluster in this process that begins with one worker."""
    options = {"processes": False, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=1, **options) as made:
        yield made


@pytest.fixture
def client(cluster):
    with Client(cluster) as made:
        yield made


def units_that_share():
    """Units that need a value, which is held for them, and a sum, which is a task of its own."""
    weights = dask.delayed(np.arange(100.0), pure=False)
    total = dask.delayed(np.sum)(weights)

    def unit(weights, total, place):
        worker = get_worker()
        if getattr(worker, "has_begun", False):  # the others are still at work when one is done
            Event("go").wait(timeout=30)
        worker.has_begun = True
        return weights[place] + total

    parts = [dask.delayed(unit)(weights, total, place) for place in range(UNITS)]
    return da.stack([da.from_delayed(part, (), float) for part in parts])


class EnoughError(Exception):
    pass


def test_an_error_where_units_are_counted_leaves_a_client_that_computes(client, monkeypatch):
    """Cancelling what units share would end what the scheduler does for this client."""
    monkeypatch.setattr(module, "_SMALLEST", 4)
    values = units_that_share()

    def stop(place, result):
        raise EnoughError

    with pytest.raises(EnoughError):
        dispatch(client, values, stop)
    Event("go", client=client).set()
    assert client.submit(sum, [1, 2]).result(timeout=20) == 3
    found = {}
    dispatch(client, values, found.__setitem__)
    assert [found[place].item() for place in range(UNITS)] == [4950 + n for n in range(UNITS)]


@pytest.fixture
def without_workers(cluster, client, monkeypatch):
    """A cluster whose workers have gone, and how to let one come back."""
    monkeypatch.setattr(module, "_LOOK_S", 0.05)
    cluster.scale(0)
    while client.nthreads():
        pass
    yield lambda: cluster.scale(1)
    cluster.scale(1)
    client.wait_for_workers(1)


def test_a_cluster_without_workers_is_given_up_after_a_while(soil_map, tmp_path, without_workers):
    with (
        dask.config.set({"distributed.scheduler.no-workers-timeout": "0.2s"}),
        pytest.raises(StoreError, match=r"no worker for 0\.2 s; see why .* 0 of 24 .* to resume"),
    ):
        write_cube(soil_map, tmp_path / "a.zarr", shard=16)
    assert inspect(tmp_path / "a.zarr").writers == ()


def test_workers_may_come_back(soil_map, tmp_path, without_workers, caplog, monkeypatch):
    class OneComes(logging.Handler):
        def emit(self, record):
            without_workers()

    log = logging.getLogger(module.__name__)
    handler = OneComes()
    log.addHandler(handler)
    try:
        assert write_cube(soil_map, tmp_path / "a.zarr", shard=16).written == 24
    finally:
        log.removeHandler(handler)
    assert "the cluster has no worker; waiting 3600 s for one to come" in caplog.text


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (FutureCancelledError("a", "scheduler-connection-lost"), "running"),
        (concurrent.futures.CancelledError(), "running"),
        (asyncio.CancelledError(), "running"),
        (CommClosedError("in <TCP>: Stream is closed"), "running"),
        (ClosedClientError("Client is closed"), "running"),
        (NoWorkerError("a", 3600), "running"),
        (AttributeError("'NoneType' object has no attribute 'ncores'"), "closed"),
        (RuntimeError("ConnectionPool is closed"), "closing"),
        (OSError("Timed out trying to connect"), "connecting"),
    ],
)
def test_what_the_end_of_a_scheduler_looks_like(error, status):
    """Each of these is what a client of `distributed` 2026.8 has raised when it was killed."""
    with (
        pytest.raises(LostSchedulerError, match="the scheduler was lost") as caught,
        connected(SimpleNamespace(status=status)),
    ):
        raise error
    assert caught.value.__cause__ is error
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("no"), "running"),
        (OSError("disk"), "running"),
        (NoDataError("nothing"), "closed"),
        (KeyboardInterrupt(), "closed"),
    ],
)
def test_what_it_does_not_look_like(error, status):
    with pytest.raises(type(error)) as caught, connected(SimpleNamespace(status=status)):
        raise error
    assert caught.value is error


def test_without_a_cluster_nothing_changes():
    with pytest.raises(RuntimeError, match="mine"), connected(None):
        raise RuntimeError("mine")
