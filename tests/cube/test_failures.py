"""What goes wrong while writing: each test pins a way in which a store could lie."""

import errno
import os
import shutil
import threading

import dask
import numpy as np
import pytest
import xarray as xr
from zarr.storage import LocalStore

from smgrid.cube.inspect import inspect
from smgrid.cube.store import open_cube, write_cube
from smgrid.errors import IncompleteStoreError, SchemaError, SourceError, StoreError


@pytest.fixture
def store(tmp_path):
    return tmp_path / "a.zarr"


def with_fault(ds, name, where, fault):
    """Let one block of a variable of `ds` do `fault(block)` when it is computed."""

    def run(block, block_info=None):
        inside = block_info and block_info[0]["chunk-location"] == where
        return fault(block) if inside else block

    blocks = ds[name].data
    blocks = blocks.map_blocks(run, dtype=blocks.dtype, meta=blocks._meta)
    return ds.assign({name: ds[name].copy(data=blocks)})


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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(soil_map, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="cannot be written"):
        write_cube(soil_map, tmp_path / "a.zarr")
    tmp_path.chmod(0o700)


def test_a_value_out_of_range_is_found_in_its_unit(cube, store):
    tree = cube.copy()
    tree["base"] = xr.DataTree(
        with_fault(cube["base"].to_dataset(), "vh", (2, 1, 0), lambda block: block * 0 + 99)
    )
    with pytest.raises(
        SchemaError,
        match=r"/base \(vv, vh\), time 2024-01-03T22:53:40, tile \(1, 0\): vh: found 99, expected",
    ) as caught:
        write_cube(tree, store, shard=16)
    assert isinstance(caught.value.__cause__, SchemaError)


def raising(error):
    def fault(block):
        raise error

    return fault


def test_an_input_that_fails_is_named_with_its_unit(cube, store):
    tree = cube.copy()
    ds = cube["base"].to_dataset().chunk({"y": 16, "x": 16})
    error = SourceError("asset b.tif is truncated")
    tree["base"] = xr.DataTree(with_fault(ds, "vv", (1, 0, 2), raising(error)))
    with (
        dask.config.set(scheduler="synchronous"),
        pytest.raises(
            SourceError,
            match=r"^/base \(vv, vh\), time 2024-01-03T11:02:05, tile \(0, 2\): asset b",
        ) as caught,
    ):
        write_cube(tree, store, shard=16)
    assert caught.value.__cause__ is error


def test_an_input_of_several_units_names_them(soil_map, store):
    whole = with_fault(
        soil_map.chunk({"y": 32, "x": 64}), "flags", (3, 0, 0), raising(KeyError("token"))
    )
    with (
        dask.config.set(scheduler="synchronous"),
        pytest.raises(
            StoreError, match=r"one of .*2031-08-10T11:02:06, tile \(0, 0\); .*KeyError: 'token'"
        ),
    ):
        write_cube(whole, store, shard=16)


def test_a_block_of_another_shape_is_an_error(soil_map, store):
    bad = with_fault(soil_map, "flags", (0, 0, 0), lambda block: block[:, :1])
    with pytest.raises(SchemaError, match=r"flags: a block has the shape \(1, 1, 16\), expected"):
        write_cube(bad, store, shard=16)


def test_a_value_that_would_collide_with_the_fill_value_is_an_error(soil_map, store):
    bad = with_fault(soil_map, "flags", (0, 0, 0), lambda block: block * 0 + 65535)
    with pytest.raises(SchemaError, match="flags: 65535 cannot be stored as uint16"):
        write_cube(bad, store, shard=16)


def test_a_store_made_anew_at_the_same_path_is_another_one(soil_map, store):
    write_cube(soil_map, store, shard=16)
    shutil.rmtree(store)
    write_cube(soil_map.isel(x=slice(0, 20)), store, shard=8)
    np.testing.assert_array_equal(open_cube(store).flags, soil_map.flags[:, :, :20])


@pytest.mark.slow
def test_a_cluster_writes_the_same_bytes_and_names_failing_units(
    cube, soil_map, store, tmp_path, files_of
):
    distributed = pytest.importorskip("distributed")
    write_cube(cube, tmp_path / "threads.zarr", shard=16)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
    ):
        events = []
        write_cube(cube, store, shard=16, progress=events.append)
        assert len(events) == 3 + 34
        assert files_of(store) == files_of(tmp_path / "threads.zarr")
        bad = with_fault(soil_map, "soil_moisture", (1, 0, 0), lambda block: block + 9)
        with pytest.raises(SchemaError, match=r"time 2024-01-03T11:02:05, tile \(0, 0\): soil_moi"):
            write_cube(bad, tmp_path / "b.zarr", shard=16)
        lost = with_fault(soil_map, "flags", (2, 1, 1), raising(OSError("b.tif: truncated")))
        with pytest.raises(StoreError, match=r"22:53:40, tile \(1, 1\): .*b\.tif: truncated"):
            write_cube(lost, tmp_path / "c.zarr", shard=16)
    assert write_cube(soil_map, tmp_path / "c.zarr", shard=16).total == 24
    assert open_cube(tmp_path / "c.zarr").flags.equals(soil_map.flags.compute())
