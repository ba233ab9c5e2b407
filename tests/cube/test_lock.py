"""One writer per store: the second is told who the first is, and a dead one is in nobody's way."""

import json
import os
import platform
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import dask
import numpy as np
import pytest

from smgrid.cube import lock
from smgrid.cube.guarding import Failed
from smgrid.cube.inspect import inspect
from smgrid.cube.lock import Claim, read_writers, writing
from smgrid.cube.record import read_record
from smgrid.cube.storage import open_store, write_bytes
from smgrid.cube.store import open_cube, write_cube
from smgrid.cube.verify import verify
from smgrid.cube.writing import Target, Written, write_unit
from smgrid.errors import StoreInUseError

WRITER = Path(__file__).with_name("kill_writer.py")
LEASE = "_smgrid/writer-000001.json"


@pytest.fixture
def store(tmp_path):
    return tmp_path / "a.zarr"


def leases_of(store):
    return sorted(path.name for path in (store / "_smgrid").glob("writer-*"))


def leave_lease(store, number=1, silent=0, **changes):
    """Write the lease of another process, by default of one that is dead; silent for [s]."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    content = {
        "host": platform.node(),
        "pid": child.pid,
        "process_started": time.time(),
        "namespace": lock._namespace(),
        "since": "2024-01-01T00:00:00+00:00",
        "seen": time.time() - silent,
        "token": f"token{number}",
    }
    path = store / f"_smgrid/writer-{number:06d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | changes))


def test_the_second_writer_is_told_about_the_first(soil_map, store):
    with writing(open_store(store, "write"), str(store)):
        before = (store / LEASE).read_bytes()
        with pytest.raises(
            StoreInUseError,
            match=rf"a\.zarr is being written by process {os.getpid()} on \S+, which began at 20.*"
            r"last seen at 20.*from another one after 10 minutes.*delete _smgrid/writer-000001",
        ) as caught:
            write_cube(soil_map, store, shard=16)
        assert caught.value.exit_code == 4
        assert (store / LEASE).read_bytes() == before
        assert not (store / "_smgrid/template.json").exists()
    assert leases_of(store) == []
    assert write_cube(soil_map, store, shard=16).written == 24
    assert leases_of(store) == []


def test_inspect_names_the_writer(soil_map, store):
    write_cube(soil_map, store, shard=16)
    assert inspect(store).writers == ()
    with writing(open_store(store, "write"), str(store)):
        (writer,) = inspect(store).writers
        assert (writer.pid, writer.host) == (os.getpid(), platform.node())
        assert f"written by process {os.getpid()} on" in str(inspect(store))
    leave_lease(store)
    assert inspect(store).writers == ()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pid": os.getpid()},  # of a process that had this number before
        {"pid": os.getpid(), "token": "forgotten"},
        {"host": "elsewhere", "silent": 700},
        {"namespace": "another", "silent": 700},
        {"pid": 1, "process_started": 5.0},
    ],
)
def test_a_dead_writer_is_taken_over(soil_map, store, changes):
    leave_lease(store, **changes)
    write_cube(soil_map, store, shard=16)
    assert leases_of(store) == []


@pytest.mark.skipif(sys.platform != "linux", reason="other systems show such processes otherwise")
def test_a_process_that_nobody_has_waited_for_is_dead(soil_map, store):
    child = subprocess.Popen([sys.executable, "-c", ""])
    process = lock.psutil.Process(child.pid)
    while process.status() != lock.psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    leave_lease(store, pid=child.pid, process_started=process.create_time())
    write_cube(soil_map, store, shard=16)
    child.wait()


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "elsewhere"},
        {"host": "elsewhere", "silent": 500},
        {"namespace": "another"},
        {"pid": os.getppid(), "process_started": None},
    ],
)
def test_a_living_writer_is_not(soil_map, store, changes):
    if "process_started" in changes:
        started = lock.psutil.Process(os.getppid()).create_time()
        # Of this machine: its process is what counts, not when it was last seen.
        changes = changes | {"process_started": started, "seen": 0.0}
    leave_lease(store, **changes)
    with pytest.raises(StoreInUseError, match=r"is being written by process \d+ on"):
        write_cube(soil_map, store, shard=16)
    assert leases_of(store) == ["writer-000001.json"]


def test_a_lease_that_cannot_be_read_counts(soil_map, store):
    leave_lease(store)
    (store / LEASE).write_text("{")
    with pytest.raises(StoreInUseError, match=r"by another process.* delete _smgrid/writer-000001"):
        write_cube(soil_map, store, shard=16)


def test_the_heir_of_a_dead_writer_is_one(store):
    """Both have seen that the first one is dead; only one of them gets the next number."""
    leave_lease(store)
    results, holders, barrier = [], set(), threading.Barrier(4)

    def take():
        opened = open_store(store, "write")
        barrier.wait()
        try:
            with writing(opened, str(store)):
                holders.add(threading.get_ident())
                time.sleep(0.2)
                results.append(len(holders))
                holders.remove(threading.get_ident())
        except StoreInUseError:
            results.append(0)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert max(results) == 1  # one at a time, though one may come after another
    assert leases_of(store) == []


def test_who_comes_between_two_others_withdraws(store, monkeypatch):
    """A lease of the number that was free appears after the look, and another one below it."""
    original = lock.create_bytes

    def create(opened, key, content):
        leave_lease(store, 7, pid=os.getppid(), host="elsewhere")
        return original(opened, key, content)

    monkeypatch.setattr(lock, "create_bytes", create)
    with (
        pytest.raises(StoreInUseError, match="on elsewhere"),
        writing(open_store(store, "write"), "a"),
    ):
        pytest.fail("two writers")
    assert leases_of(store) == ["writer-000007.json"]


def test_a_sign_of_life_is_given(store, monkeypatch):
    monkeypatch.setattr(lock, "_HEARTBEAT_S", 0.02)
    opened = open_store(store, "write")
    with writing(opened, str(store)):
        (first,) = read_writers(opened).values()
        time.sleep(0.3)
        (second,) = read_writers(opened).values()
    assert first.token == second.token
    assert second.seen > first.seen


@pytest.mark.parametrize("loss", ["succeeded", "removed"])
def test_who_has_lost_the_store_stops(soil_map, store, monkeypatch, loss):
    monkeypatch.setattr(lock, "_HEARTBEAT_S", 0.02)

    def lose(event):
        if event.done == 3:
            if loss == "succeeded":
                leave_lease(store, 2)
            for _ in range(30):  # a sign of life that is being given would bring it back
                (store / LEASE).unlink(missing_ok=True)
                time.sleep(0.01)

    with pytest.raises(StoreInUseError, match=r"no sign of life .* lost the right to write"):
        write_cube(soil_map, store, shard=16, progress=lose)
    assert inspect(store).units.done < 24
    assert leases_of(store) == (["writer-000002.json"] if loss == "succeeded" else [])


def test_a_lease_that_was_renewed_too_late_is_taken_back(store):
    """The sign of life came when another process had looked at the store and taken over."""
    with writing(open_store(store, "write"), str(store)) as lease:
        leave_lease(store, 2)
        with pytest.raises(StoreInUseError, match="lost the right to write"):
            lease.confirm()
        assert leases_of(store) == ["writer-000002.json"]


def test_a_writer_that_was_paused_at_its_last_step_does_not_close_the_store(soil_map, store):
    """Its next sign of life, which would tell it of the takeover, is not due before it ends."""

    def lose(event):
        if event.done == event.total:
            next((store / "_smgrid").glob("writer-*")).unlink()
            leave_lease(store, number=2, namespace="another")

    with pytest.raises(StoreInUseError, match="lost the right to write"):
        write_cube(soil_map, store, shard=16, progress=lose)
    assert inspect(store).status == "incomplete"


@pytest.mark.parametrize(
    ("content", "written"),
    [
        (b'{"token": "mine"}', True),
        (b'{"tok', True),  # half of it: no proof that it was lost
        (b"", True),
        (b'{"token": "another"}', False),
        (None, False),
    ],
)
def test_a_unit_is_written_under_its_lease_alone(soil_map, store, content, written):
    """Tasks on a cluster may outlive the process that sent them."""
    write_cube(soil_map, store, shard=16)
    shard = store / "flags/c/0/0/0"
    before = shard.read_bytes()
    opened = open_store(store, "write")
    if content is not None:
        write_bytes(opened, LEASE, content)
    digest = read_record(opened, str(store)).digest
    target = Target(str(store), digest, ("flags",), Claim(LEASE, "mine"))
    outcome = write_unit(target, (0, 0, 0), np.full((1, 16, 16), 7, "uint16"))
    if written:
        assert isinstance(outcome, Written)
        assert shard.read_bytes() != before
    else:
        assert isinstance(outcome, Failed)
        assert outcome.in_store
        assert isinstance(outcome.error, StoreInUseError)
        assert "has ended or has lost the right to write" in str(outcome.error)
        assert shard.read_bytes() == before


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_a_unit_that_misses_its_lease_ends_the_run_at_once(soil_map, store, scheduler):
    """Long before the next sign of life, and without a write."""
    shards = []

    def lose(event):
        if event.done == 3:
            (store / LEASE).unlink()
            leave_lease(store, 2)
            shards.extend(store.glob("*/c/*/*/*"))

    with (
        dask.config.set(scheduler=scheduler, num_workers=1),
        pytest.raises(StoreInUseError, match="no sign of life"),
    ):
        write_cube(soil_map, store, shard=16, progress=lose)
    # At most the unit that had looked before.
    assert len(set(store.glob("*/c/*/*/*")) - set(shards)) <= 3
    assert leases_of(store) == ["writer-000002.json"]


@pytest.mark.slow
def test_tasks_that_outlive_an_aborted_write_write_nothing(soil_map, store, tmp_path):
    distributed = pytest.importorskip("distributed")

    def wait(block):
        """Let eight blocks pass, whichever come first, and the others when the gate is open."""
        for number in range(8):
            with suppress(FileExistsError):
                tmp_path.joinpath(f"passed-{number}").touch(exist_ok=False)
                return block
        tmp_path.joinpath(f"waiting-{os.getpid()}").touch()
        while not tmp_path.joinpath("gate").exists():
            time.sleep(0.01)
        tmp_path.joinpath("through").touch()
        return block

    blocks = soil_map.flags.data
    waiting = blocks.map_blocks(wait, dtype=blocks.dtype, meta=blocks._meta)
    # One variable: reading a block and writing it are then fused into one task.
    ds = soil_map[["flags"]].assign(flags=soil_map.flags.copy(data=waiting))

    def abort(event):
        if event.done == 1:
            while len([*tmp_path.glob("waiting-*")]) < 2:
                time.sleep(0.01)
            raise KeyboardInterrupt

    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        try:
            with pytest.raises(KeyboardInterrupt):
                write_cube(ds, store, shard=16, progress=abort)
            shards = sorted(store.glob("*/c/*/*/*"))
            assert (leases_of(store), len(shards)) == ([], 8)
        finally:
            tmp_path.joinpath("gate").touch()
        while any(client.run(lambda dask_worker: len(dask_worker.state.executing)).values()):
            time.sleep(0.05)
        assert tmp_path.joinpath("through").exists()
        assert sorted(store.glob("*/c/*/*/*")) == shards
    write_cube(soil_map[["flags"]], store, shard=16)
    assert verify(store).ok


def test_a_complete_store_needs_no_lease(soil_map, store):
    write_cube(soil_map, store, shard=16)
    with writing(open_store(store, "write"), str(store)):
        assert write_cube(soil_map, store, shard=16).written == 0


@pytest.mark.slow
def test_of_several_processes_one_writes(tmp_path, files_of):
    """Whoever starts while another one writes is refused; nothing is mixed."""
    command = [sys.executable, str(WRITER), "race", str(tmp_path), "12", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    whole = files_of(tmp_path / "whole")
    refused = 0
    for name, codes in report.items():
        assert set(codes) <= {0, 4}
        assert 0 in codes
        refused += codes.count(4)
        assert files_of(tmp_path / name) == whole
        assert verify(tmp_path / name).ok
    assert refused >= 10
    assert open_cube(tmp_path / "0")["base"].a.shape == (4, 40, 40)
