"""What goes wrong while writing: each test pins a way in which a store could lie."""

import errno
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
from zarr.storage import LocalStore

from smgrid.cube.inspect import inspect
from smgrid.cube.store import open_cube, write_cube
from smgrid.cube.verify import verify
from smgrid.errors import IncompleteStoreError, StoreError, UnitsFailedError
from tests.cube.faults import raising, with_fault


@pytest.fixture
def store(tmp_path):
    return tmp_path / "a.zarr"


def refuse_writes(monkeypatch, code, *, after):
    """Let the store's files fail with an OSError once `after` chunks or shards are written."""
    original, lock, count = LocalStore.set, threading.Lock(), [0]

    async def set_or_fail(self, key, value):
        if "/c/" in key:
            with lock:
                count[0] += 1
                if count[0] > after:
                    raise OSError(code, os.strerror(code), key)
        return await original(self, key, value)

    monkeypatch.setattr(LocalStore, "set", set_or_fail)


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_a_full_disk_keeps_the_units_and_says_what_to_do(
    soil_map, store, tmp_path, files_of, monkeypatch, scheduler
):
    write_cube(soil_map, tmp_path / "whole.zarr", shard=16)
    with monkeypatch.context() as patch, dask.config.set(scheduler=scheduler):
        refuse_writes(patch, errno.ENOSPC, after=30)
        with pytest.raises(StoreError, match=r"no space is left .*Free space .*resume") as caught:
            write_cube(soil_map, store, shard=16)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    done = inspect(store).units.done
    assert 0 < done < 24
    with pytest.raises(IncompleteStoreError, match=f"{24 - done} of 24 units are missing"):
        open_cube(store)
    assert write_cube(soil_map, store, shard=16).written == 24 - done
    assert files_of(store) == files_of(tmp_path / "whole.zarr")


def test_a_disk_that_is_full_at_once_leaves_a_store_to_resume(soil_map, store, monkeypatch):
    with monkeypatch.context() as patch:
        refuse_writes(patch, errno.EDQUOT, after=1)  # among the coordinates
        with pytest.raises(StoreError, match="no space is left"):
            write_cube(soil_map, store)
    with pytest.raises(IncompleteStoreError, match="4 of 4 units are missing"):
        open_cube(store, incomplete="allow")
    assert inspect(store).status == "created"
    assert write_cube(soil_map, store).written == 4
    assert not np.isnan(open_cube(store).soil_moisture[:, 20, 20]).any()


def test_a_folder_that_cannot_be_written_is_named(soil_map, store, monkeypatch):
    refuse_writes(monkeypatch, errno.EACCES, after=0)
    with pytest.raises(StoreError, match=r"a\.zarr cannot be written \(Permission denied\); check"):
        write_cube(soil_map, store)


@pytest.fixture
def locked():
    """A folder that this process may read and not write, even if root runs the tests."""
    folder = Path(tempfile.mkdtemp())
    user = os.geteuid()
    folder.chmod(0o777)

    def lock():
        folder.chmod(0o555)
        if user == 0:
            os.seteuid(65534)
        return folder

    yield folder, lock
    os.seteuid(user)
    folder.chmod(0o700)
    shutil.rmtree(folder)


def test_a_read_only_folder_is_named(soil_map, locked):
    folder, lock = locked
    lock()
    with pytest.raises(StoreError, match=r"a\.zarr cannot be written \(Permission denied\); check"):
        write_cube(soil_map, folder / "a.zarr")
    assert list(folder.iterdir()) == []


def test_a_store_in_a_read_only_folder_is_read_and_not_harmed(soil_map, locked, files_of):
    folder, lock = locked
    write_cube(soil_map, folder, shard=16)
    before = files_of(folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    lock()
    # Nothing is missing, so nothing needs to be written.
    assert write_cube(soil_map, folder, shard=16).written == 0
    assert open_cube(folder).flags.equals(soil_map.flags.compute())
    assert verify(folder).ok
    assert files_of(folder) == before


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 100 kB, and a function that makes it larger."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options):
        args = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        return subprocess.run(args, capture_output=True, check=False).returncode == 0

    if not mount("size=100k"):
        pytest.skip("only root may mount a disk")
    yield disk, lambda: mount("remount,size=10m")
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_a_disk_that_is_really_full(soil_map, small_disk, tmp_path, files_of, scheduler):
    disk, enlarge = small_disk
    write_cube(soil_map, tmp_path / "whole.zarr", shard=8)
    with (
        dask.config.set(scheduler=scheduler),
        pytest.raises(StoreError, match=r"no space is left for .*a\.zarr .*Free space .* resume"),
    ):
        write_cube(soil_map, disk / "a.zarr", shard=8)
    with pytest.raises(IncompleteStoreError):
        open_cube(disk / "a.zarr")
    done = inspect(disk / "a.zarr").units.done
    enlarge()
    assert write_cube(soil_map, disk / "a.zarr", shard=8).written == 80 - done
    assert files_of(disk / "a.zarr") == files_of(tmp_path / "whole.zarr")
    assert verify(disk / "a.zarr").ok


def test_a_value_out_of_range_is_found_in_its_unit(cube, store):
    tree = cube.copy()
    tree["base"] = xr.DataTree(
        with_fault(cube["base"].to_dataset(), "vh", (2, 1, 0), lambda block: block * 0 + 99)
    )
    with pytest.raises(
        UnitsFailedError,
        match=r"1 of 34 .* 33 .*: /base \(vv, vh\), time 2024-01-03T22:53:40, tile \(1, 0\): vh: "
        r"found 99, expected .* write to a new path",
    ) as caught:
        write_cube(tree, store, shard=16)
    (failure,) = caught.value.report.failed
    assert (failure.kind, failure.attempts) == ("SchemaError", 1)


def test_an_input_of_several_units_fails_them_all(soil_map, store):
    whole = with_fault(
        soil_map.chunk({"y": 32, "x": 64}), "flags", (3, 0, 0), raising(KeyError("token"))
    )
    with pytest.raises(
        UnitsFailedError,
        match=r"6 of 24 .*2031-08-10T11:02:06, tile \(0, 0\): KeyError: 'token'; .* and 3 more",
    ):
        write_cube(whole, store, shard=16, attempts=1)


def test_a_block_of_another_shape_is_an_error(soil_map, store):
    bad = with_fault(soil_map, "flags", (0, 0, 0), lambda block: block[:, :1])
    with pytest.raises(
        UnitsFailedError, match=r"flags: a block has the shape \(1, 1, 16\), expected"
    ):
        write_cube(bad, store, shard=16)


def test_a_value_that_would_collide_with_the_fill_value_is_an_error(soil_map, store):
    bad = with_fault(soil_map, "flags", (0, 0, 0), lambda block: block * 0 + 65535)
    with pytest.raises(UnitsFailedError, match="flags: 65535 cannot be stored as uint16"):
        write_cube(bad, store, shard=16)


def test_a_store_made_anew_at_the_same_path_is_another_one(soil_map, store):
    write_cube(soil_map, store, shard=16)
    shutil.rmtree(store)
    write_cube(soil_map.isel(x=slice(0, 20)), store, shard=8)
    np.testing.assert_array_equal(open_cube(store).flags, soil_map.flags[:, :, :20])
