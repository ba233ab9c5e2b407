"""What every export refuses, whatever its form, and that a killed one looks like nothing."""

import json
import shutil
import signal
import subprocess
import sys

import netCDF4
import numpy as np
import pytest
import rasterio
import xarray as xr

from smgrid.cube.store import write_cube
from smgrid.errors import ConfigError, IncompleteStoreError, StoreError, StoreInUseError
from smgrid.export.cog import write_cogs
from smgrid.export.netcdf import write_netcdf
from smgrid.export.placing import placing
from smgrid.export.stac import write_stac
from smgrid.export.stored import open_stored
from smgrid.export.zarr2 import write_zarr2
from tests.cubes import make_cube
from tests.export.maps import make_map, write_map

WRITERS = {"cog": write_cogs, "netcdf": write_netcdf, "zarr2": write_zarr2}
OUT = {"cog": "cogs", "netcdf": "sm.nc", "zarr2": "v2.zarr"}

every_form = pytest.mark.parametrize("form", WRITERS)


@pytest.fixture(scope="module")
def cube(tmp_path_factory):
    path = tmp_path_factory.mktemp("cube") / "cube.zarr"
    write_cube(make_cube(chunks=None), path)
    return path


@every_form
@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"variables": ["soil_moist"]}, "has no 'soil_moist'; it has soil_moisture, soil_"),
        ({"dates": ("2023-01-01", "2023-12-31")}, "its 3 dates are from 2024-01-05 to 2024-02-10"),
        ({"group": "base"}, "it has no group 'base'; leave the group out"),
    ],
)
def test_what_the_map_does_not_have(store, tmp_path, form, chosen, message):
    with pytest.raises(ConfigError, match=message):
        WRITERS[form](store, tmp_path / OUT[form], **chosen)
    assert not list(tmp_path.iterdir())


@every_form
def test_a_cube_needs_a_group(cube, tmp_path, form):
    with pytest.raises(ConfigError, match=r"is a cube of the grids base, .* name one as the group"):
        WRITERS[form](cube, tmp_path / OUT[form])
    with pytest.raises(ConfigError, match="has no group 'x3'; it has base"):
        WRITERS[form](cube, tmp_path / OUT[form], group="x3")
    assert not list(tmp_path.iterdir())


@every_form
def test_an_incomplete_store_and_no_store(tmp_path, form):
    path = write_map(make_map((40, 50)), tmp_path / "map.zarr")
    (path / "flags" / "c" / "0" / "0" / "0").unlink()
    root = path / "zarr.json"
    root.write_text(root.read_text().replace('"complete"', '"incomplete"'))
    with pytest.raises(IncompleteStoreError, match="1 of 3 units are missing"):
        WRITERS[form](path, tmp_path / OUT[form])
    with pytest.raises(StoreError, match=r"nowhere\.zarr does not exist"):
        WRITERS[form](tmp_path / "nowhere.zarr", tmp_path / OUT[form])
    assert [p.name for p in tmp_path.iterdir()] == ["map.zarr"]


@every_form
def test_places_that_an_export_cannot_have(store, form):
    with pytest.raises(ConfigError, match="is a URL, expected a file or folder of this machine"):
        WRITERS[form](store, "s3://bucket/export")
    with pytest.raises(ConfigError, match="lies in the store"):
        WRITERS[form](store, store / "export")


def test_a_store_without_sums_is_refused(tmp_path):
    path = write_map(make_map((40, 50)), tmp_path / "map.zarr")
    (path / "_smgrid" / "sha256sums").write_text("")
    with pytest.raises(StoreError, match="sha256sums does not know soil_moisture/c/0/0/0"):
        open_stored(path)


def _cut(content):
    return content[: len(content) // 2]


def _flip(content):
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


@every_form
@pytest.mark.parametrize(
    ("damage", "what"),
    [(None, "is not there"), (_flip, "is not what was"), (_cut, "is not what was")],
)
def test_a_damaged_shard_is_no_export(tmp_path, form, damage, what):
    path, out = write_map(make_map((40, 50)), tmp_path / "map.zarr"), tmp_path / OUT[form]
    shard = path / "flags" / "c" / "1" / "0" / "0"
    sound = shard.read_bytes()
    shard.unlink() if damage is None else shard.write_bytes(damage(sound))
    with pytest.raises(StoreError, match=f"the shard flags/c/1/0/0 {what}.*`smgrid mend`"):
        WRITERS[form](path, out, variables=["flags"])
    written = [p.name for p in tmp_path.rglob("*.tif")]
    assert written == (["sm_20240105T172312Z_flags.tif"] if form == "cog" else [])
    assert form == "cog" or not out.exists()
    shard.write_bytes(sound)
    report = WRITERS[form](path, out, variables=["flags"])
    assert len(report.kept) == len(written)


def test_a_damaged_shard_of_many_dates(cube, tmp_path):
    path = shutil.copytree(cube, tmp_path / "cube.zarr")
    shard = path / "x9" / "t2m" / "c" / "0" / "0" / "0"
    shard.write_bytes(_flip(shard.read_bytes()))
    with pytest.raises(StoreError, match="the shard x9/t2m/c/0/0/0 is not what was"):
        write_netcdf(path, tmp_path / "x9.nc", group="x9")


def test_an_export_of_another_form_is_not_kept(store, tmp_path, monkeypatch):
    chosen = {"variables": ["flags"], "dates": ("2024-01-05", "2024-01-05")}
    with monkeypatch.context() as patch:
        patch.setattr("smgrid.export.stored._FORM", 1)
        write_netcdf(store, tmp_path / "sm.nc", **chosen)
    with pytest.raises(StoreError, match="is the export of something else"):
        write_netcdf(store, tmp_path / "sm.nc", **chosen)


def test_truth_values_are_bytes_with_meanings(tmp_path):
    sm = make_map((20, 30), times=("2024-01-05T17:23:12",))
    wet = (sm["soil_moisture"] > 0.3).drop_attrs()
    path = write_map(sm[["flags"]].assign(wet=wet), tmp_path / "map.zarr")
    for form, write in WRITERS.items():
        write(path, tmp_path / OUT[form])
    with netCDF4.Dataset(tmp_path / "sm.nc") as nc:
        assert nc["wet"].dtype == np.uint8
        assert nc["wet"].flag_meanings == "false true"
        assert nc["wet"].flag_values.tolist() == [0, 1]
        np.testing.assert_array_equal(nc["wet"][:], wet)
    found = xr.open_zarr(tmp_path / "v2.zarr")["wet"]
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, wet)
    with rasterio.open(tmp_path / "cogs" / "sm_20240105T172312Z_wet.tif") as src:
        np.testing.assert_array_equal(src.read(1), wet[0])
    assert write_stac(path, tmp_path / "stac", cogs=tmp_path / "cogs").exists()


ODD = {"a": True, "b": None, "c": {"x": [1, "ü"]}, "d": [], "e": [1, 2.5], "f": ["p", "q"]}


@every_form
def test_attributes_that_no_file_holds_are_json(tmp_path, form):
    sm = make_map((20, 30), times=("2024-01-05T17:23:12",))[["flags"]].assign_attrs(ODD)
    sm["flags"].attrs |= ODD
    sm["platform"].attrs |= ODD
    WRITERS[form](write_map(sm, tmp_path / "map.zarr"), tmp_path / OUT[form])
    if form == "netcdf":
        with netCDF4.Dataset(tmp_path / "sm.nc") as nc:
            for owner in (nc, nc["flags"], nc["platform"]):
                found = {key: owner.getncattr(key) for key in ODD}
                assert json.loads(found["c"]) == ODD["c"]
                assert [found[key] for key in "abd"] == ["true", "null", "[]"]
                assert (found["e"].tolist(), found["f"]) == ([1, 2.5], ["p", "q"])


def test_days_are_inclusive(store):
    stored = open_stored(store, dates=("2024-01-17", "2024-02-10"))
    assert stored.steps == (1, 2)
    assert [f"{time}" for time in stored.times] == ["2024-01-17 05:41:07", "2024-02-10 17:23:13"]
    assert stored.at(0) == {
        "platform": "sentinel-1b",
        "orbit_state": "descending",
        "relative_orbit": 37,
    }


def test_the_identity_tells_values_dates_and_attributes_apart(store, sm, tmp_path):
    def identity(path, **chosen):
        stored = open_stored(path, **chosen)
        return stored.digest(list(stored.layers))

    other = sm.copy(deep=True)
    other["soil_moisture"][1, 500, 700] = 0.1234
    renamed = sm.assign_attrs(title="Another")
    later = sm.assign_coords(time=sm["time"] + 1_000_000_000)
    stores = [
        write_map(ds, tmp_path / f"{i}.zarr") for i, ds in enumerate((other, renamed, later, sm))
    ]
    first = identity(store)
    assert identity(stores.pop()) == first
    found = {identity(path) for path in stores} | {identity(store, variables=["flags"])}
    found |= {identity(store, dates=("2024-01-05", "2024-01-20"))}
    assert len(found | {first}) == 6


KILLED = """
import os, signal, sys
from smgrid.export.{module} import {function}
from smgrid.export.stored import StoredVariable

read, count = StoredVariable.read, []

def counted(self, step, window):
    count.append(window)
    if len(count) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, step, window)

StoredVariable.read = counted
{function}(sys.argv[1], sys.argv[2])
"""


@every_form
def test_a_killed_export_leaves_nothing_that_looks_finished(store, tmp_path, form):
    """The reads of 9 layers of 9 shards each; the process dies during the second layer."""
    out = tmp_path / OUT[form]
    function = WRITERS[form]
    code = KILLED.format(module=form, function=function.__name__)
    command = [sys.executable, "-c", code, str(store), str(out), "14"]
    result = subprocess.run(command, check=False, capture_output=True)
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()
    if form == "cog":  # the first file is complete, and there is no second
        assert [p.name for p in out.glob("[!.]*")] == ["sm_20240105T172312Z_soil_moisture.tif"]
        assert len(list(out.glob(".*.partial"))) == 1
    else:
        assert [p.name for p in tmp_path.iterdir()] == [f".{out.name}.partial"]
    report = function(store, out)
    assert (len(report.kept), len(report.written)) == ((1, 8) if form == "cog" else (0, 1))
    whole = tmp_path / "whole" / out.name
    function(store, whole)
    assert _content(whole) == _content(out)
    assert not list(tmp_path.rglob(".*.partial"))


def _content(path):
    if path.is_file():
        return path.read_bytes()
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@every_form
def test_a_full_disk_is_one_error_and_leaves_nothing(store, tmp_path, form):
    """No file of the process may grow beyond 100 kB, as on a disk without space."""
    code = (
        "import resource, sys; from smgrid.cli import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); main()"
    )
    out = tmp_path / OUT[form]
    command = [sys.executable, "-c", code, "export", str(store), "--to", form, "--out", str(out)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == StoreError.exit_code, result.stderr
    assert "could not be written" in result.stderr
    assert "Traceback" not in result.stderr
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_two_processes_do_not_write_the_same_place(tmp_path):
    target = tmp_path / "sm.nc"
    with placing(target) as path:
        with pytest.raises(StoreInUseError, match=r"another process writes .*sm\.nc"):
            placing(target).__enter__()
        path.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert [p.name for p in tmp_path.iterdir()] == ["sm.nc"]
