"""Jobs on a cluster of real processes that die: the store is that of a single process in the end.

All files of the stores are compared: none of them holds a time, and the lease of the writer is
gone when it is complete.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from smgrid.cluster import open_scheduler
from smgrid.cube.dispatch import LostSchedulerError
from smgrid.cube.inspect import inspect
from smgrid.cube.shards import read_states
from smgrid.cube.store import write_cube
from smgrid.cube.verify import verify
from smgrid.inference.coverage import require_values
from tests.end_to_end.distributed_job import UNITS, cube

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
JOB = Path(__file__).with_name("distributed_job.py")
ENVIRON = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "SMGRID_RETRY_PAUSES": "none",
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
}


def dask_process(*arguments):
    command = [sys.executable, "-m", "dask", *arguments, "--no-dashboard", "--host", "127.0.0.1"]
    return subprocess.Popen(command, env=ENVIRON, stderr=subprocess.DEVNULL)


class Cluster:
    """A scheduler and two workers of one thread, each a process."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.scheduler = None
        self.workers = []

    def repair(self):
        """Start what is not running."""
        if self.scheduler is None or self.scheduler.poll() is not None:
            self.close()
            self.scheduler = dask_process("scheduler", "--port", str(self.port))
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        while len(self.workers) < 2:
            worker = ("worker", self.address, "--nthreads", "1", "--no-nanny")
            self.workers.append(dask_process(*worker))

    def close(self):
        for process in filter(None, (*self.workers, self.scheduler)):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def machines():
    made = Cluster()
    yield made
    made.close()


@pytest.fixture
def cluster(machines):
    machines.repair()
    return machines


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of the store that one process writes."""
    folder = tmp_path_factory.mktemp("whole")
    write_cube(cube(folder / "calls"), folder / "a.zarr", shard=16)
    return files_of(folder / "a.zarr")


@pytest.fixture
def store(tmp_path):
    return tmp_path / "a.zarr"


def files_of(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def shards_of(store):
    """Return when every shard was written, without those that are being written."""
    shards = {}
    for path in store.glob("a/c/*/*/*"):
        if path.suffix != ".partial":
            shards[path] = path.stat().st_mtime_ns
    return shards


def calls_of(store):
    return [int(line) for line in store.with_suffix(".calls").read_text().split()]


def start(cluster, store, *poison):
    command = [sys.executable, str(JOB), cluster, str(store), *poison]
    return subprocess.Popen(
        command, env=ENVIRON, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_shards(store, number, job):
    while len(shards_of(store)) < number:
        assert job.poll() is None, job.communicate()[1]
        time.sleep(0.02)


def finish(job):
    out, err = job.communicate(timeout=150)
    return job.returncode, out, err


def test_a_client_that_is_killed_is_succeeded_by_the_next(store, whole, cluster):
    job = start(cluster.address, store)
    wait_for_shards(store, 8, job)
    job.kill()
    job.communicate()
    assert inspect(store).status == "incomplete"
    before = shards_of(store)
    code, out, err = finish(start(cluster.address, store))
    assert code == 0, err
    assert 0 < int(out) <= UNITS - len(before)
    assert before.items() <= shards_of(store).items()
    assert files_of(store) == whole
    # Only what the cluster was at when the client died.
    assert len(calls_of(store)) <= UNITS + 8


def test_a_worker_that_is_killed_loses_nothing(store, whole, cluster):
    job = start(cluster.address, store)
    wait_for_shards(store, 8, job)
    cluster.workers[0].kill()
    code, out, err = finish(job)
    assert (code, out) == (0, f"{UNITS}\n"), err
    assert files_of(store) == whole
    # Only what it was at, and results that it had not sent yet.
    assert len(calls_of(store)) <= UNITS + 4


def test_a_scheduler_that_is_killed_ends_the_job_and_another_one_goes_on(store, whole, cluster):
    job = start(cluster.address, store)
    wait_for_shards(store, 8, job)
    cluster.scheduler.kill()
    code, _, err = finish(job)
    assert code == 4, err
    assert "the scheduler was lost (" in err
    assert f" of {UNITS} pending units were written; run again to resume" in err
    found = inspect(store)
    assert (found.status, found.writers) == ("incomplete", ())
    before = shards_of(store)
    assert len(before) >= 8
    cluster.repair()
    code, out, err = finish(start(cluster.address, store))
    assert (code, int(out)) == (0, UNITS - len(before)), err
    assert before.items() <= shards_of(store).items()
    assert files_of(store) == whole


def look_at_shards(slow):
    read_states("nowhere.zarr", "", [("a", (0,))])


def look_for_values(slow):
    values = da.zeros(1, chunks=1).map_blocks(slow, meta=np.zeros(0, np.uint16))
    require_values(xr.Dataset({"flags": ("x", values)}), None, layout=None)


@pytest.mark.parametrize("work", [look_at_shards, look_for_values])
def test_a_scheduler_may_be_lost_before_anything_is_written(work, cluster, tmp_path, monkeypatch):
    begun = tmp_path / "begun"

    def slow(*args):
        begun.touch()
        time.sleep(60)

    def kill():
        while not begun.exists():
            time.sleep(0.01)
        cluster.scheduler.kill()

    monkeypatch.setattr("smgrid.cube.shards._read_batch", slow)
    killer = threading.Thread(target=kill)
    killer.start()
    with (
        pytest.raises(LostSchedulerError, match=r"lost .*scheduler-connection-lost") as caught,
        open_scheduler(cluster.address),
    ):
        work(slow)
    killer.join()
    assert caught.value.exit_code == 4


def test_a_unit_that_kills_its_worker_is_named_and_takes_no_other_along(store, whole):
    poison = 27
    code, _, err = finish(start("local:2", store, str(poison)))
    assert code == 4, err
    assert (
        f": 1 of {UNITS} units failed, {UNITS - 1} were written now: / (a), time 2024-01-07" in err
    )
    assert "tile (1, 1) (2 attempts): KilledWorker: workers that died at it: 1" in err
    (line,) = (store / "_smgrid/failures.jsonl").read_text().splitlines()
    assert json.loads(line)["index"] == [6, 1, 1]
    assert calls_of(store).count(poison) == 2
    assert write_cube(cube(store.with_suffix(".calls")), store, shard=16).written == 1
    assert files_of(store) == whole
    assert verify(store).ok
