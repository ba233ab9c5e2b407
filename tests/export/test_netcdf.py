import json
import subprocess
import sys
from pathlib import Path

import netCDF4
import numpy as np
import pyproj
import pytest
import rasterio
import xarray as xr

from smgrid.cube.store import open_map, write_cube
from smgrid.errors import ConfigError, StoreError
from smgrid.export.netcdf import write_netcdf
from tests.cubes import make_cube
from tests.export.maps import DIGEST, MEANINGS, TIMES, counts, make_map, write_map

NAMES = ("soil_moisture", "soil_moisture_std", "flags")


@pytest.fixture(scope="module")
def path(store, tmp_path_factory):
    path = tmp_path_factory.mktemp("netcdf") / "sm.nc"
    report = write_netcdf(store, path)
    assert report.written == (path,)
    assert [p.name for p in path.parent.iterdir()] == ["sm.nc"]
    return path


@pytest.fixture
def raw(path):
    with netCDF4.Dataset(path) as nc:
        nc.set_auto_maskandscale(False)
        yield nc


def check(path, standard):
    """What the IOOS compliance checker says, by its priorities: high ones are errors."""
    command = [str(Path(sys.executable).with_name("compliance-checker")), "-t", standard]
    command += ["-c", "strict", "-f", "json", "-o", "-", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(result.stdout[result.stdout.index("{") :])[standard], result.returncode


def test_the_compliance_checker_finds_no_error(path):
    report, code = check(path, "cf:1.11")
    assert report["possible_points"] > 40
    assert [p for p in report["high_priorities"] if p["msgs"]] == []
    # It warns of packed unsigned integers, which CF allows since 1.9.
    assert [p["msgs"] for p in report["medium_priorities"] if p["msgs"]] == [
        [
            "Variable is not of type byte, short, or int as required for different type "
            "add_offset/scale_factor."
        ]
    ]
    assert code in (0, 1)


def test_the_compliance_checker_would_find_one(path, tmp_path):
    broken = tmp_path / "broken.nc"
    broken.write_bytes(path.read_bytes())
    with netCDF4.Dataset(broken, "a") as nc:
        nc["soil_moisture"].units = "K"
    report, _ = check(broken, "cf:1.11")
    assert any("units" in str(p["msgs"]) for p in report["high_priorities"])


@pytest.mark.parametrize("name", NAMES)
def test_integers_are_those_of_the_store(raw, sm, name):
    np.testing.assert_array_equal(raw[name][:], counts(sm, name))
    assert raw[name].dtype == counts(sm, name).dtype
    assert raw[name].chunking() == [1, 256, 256]
    assert raw[name].filters()["zlib"]


def test_attributes_of_variables_have_the_types_that_cf_demands(raw):
    sm, flags = raw["soil_moisture"], raw["flags"]
    assert sm.units == "m3 m-3"
    assert sm.standard_name == "volume_fraction_of_condensed_water_in_soil"
    assert (sm._FillValue, sm.scale_factor, sm.valid_range.tolist()) == (
        -32768,
        1e-4,
        [-30000, 30000],
    )
    assert sm.valid_range.dtype == np.int16
    assert sm.scale_factor.dtype == np.float64
    assert "_FillValue" not in flags.ncattrs()
    assert flags.flag_masks.dtype == np.uint16
    assert flags.flag_masks.tolist() == [1, 2, 4, 8]
    assert flags.flag_meanings.split() == list(MEANINGS)
    assert set(sm.coordinates.split()) == {"platform", "orbit_state", "relative_orbit"}


def test_grid_and_time(raw, path, sm):
    crs = pyproj.CRS.from_cf(
        {key: raw["spatial_ref"].getncattr(key) for key in raw["spatial_ref"].ncattrs()}
    )
    assert crs == pyproj.CRS("EPSG:32631")
    assert all(raw[name].grid_mapping == "spatial_ref" for name in NAMES)
    np.testing.assert_array_equal(raw["y"][:], sm["y"].values)
    np.testing.assert_array_equal(raw["x"][:], sm["x"].values)
    time = raw["time"]
    found = netCDF4.num2date(time[:], time.units, time.calendar)
    assert [t.strftime("%Y-%m-%dT%H:%M:%S") for t in found] == list(TIMES)
    assert raw["platform"][:].tolist() == ["sentinel-1a", "sentinel-1b", "sentinel-1a"]
    assert raw["relative_orbit"][:].tolist() == [161, 37, 161]
    with rasterio.open(f"netcdf:{path}:soil_moisture") as src:
        assert src.transform == sm.odc.geobox.affine
        assert src.crs.to_epsg() == 32631
        np.testing.assert_array_equal(src.read(2), counts(sm, "soil_moisture")[1])


def test_xarray_reads_the_map(path, store):
    with xr.open_dataset(path, decode_coords="all") as found:
        expected = open_map(store)
        for name in NAMES:
            values = found[name].astype(expected[name].dtype)
            np.testing.assert_array_equal(values, expected[name])
        np.testing.assert_array_equal(found["time"], expected["time"])
        assert found.odc.geobox == expected.odc.geobox


def test_global_attributes_say_what_it_is_and_where_it_came_from(raw, store):
    attrs = {key: raw.getncattr(key) for key in raw.ncattrs()}
    assert attrs["Conventions"] == "CF-1.11, ACDD-1.3"
    assert attrs["title"] == "Surface soil moisture"
    assert DIGEST in attrs["source"]
    assert "exported as NetCDF" in attrs["history"]
    assert all(attrs[key] for key in ("summary", "references", "license", "keywords"))
    assert attrs["time_coverage_start"] == "2024-01-05T17:23:12Z"
    assert attrs["time_coverage_end"] == "2024-02-10T17:23:13Z"
    assert 50.3 < attrs["geospatial_lat_min"] < attrs["geospatial_lat_max"] < 51
    assert str(store.parent) not in str(attrs)


def test_attributes_of_the_store_win(tmp_path):
    ds = make_map((20, 30))
    ds.attrs |= {"license": "CC-BY-4.0", "history": "2024-03-01 mapped", "institution": "Us"}
    write_netcdf(write_map(ds, tmp_path / "map.zarr"), tmp_path / "sm.nc")
    with netCDF4.Dataset(tmp_path / "sm.nc") as nc:
        assert (nc.license, nc.institution) == ("CC-BY-4.0", "Us")
        assert nc.history.splitlines()[0] == "2024-03-01 mapped"
        assert len(nc.history.splitlines()) == 2


@pytest.mark.parametrize(
    ("per", "expected"),
    [
        ("year", {"sm_2024.nc": 3}),
        ("month", {"sm_202401.nc": 2, "sm_202402.nc": 1}),
        ("day", {"sm_20240105.nc": 1, "sm_20240117.nc": 1, "sm_20240210.nc": 1}),
    ],
)
def test_one_file_per_period(store, sm, tmp_path, per, expected):
    write_netcdf(store, tmp_path / "files", per=per, variables=["flags"])
    found = {}
    for path in sorted((tmp_path / "files").iterdir()):
        with xr.open_dataset(path) as ds:
            found[path.name] = ds.sizes["time"]
            times = ds["time"].values
            np.testing.assert_array_equal(ds["flags"], sm["flags"].sel(time=times))
    assert found == expected


def test_the_same_again_does_nothing_and_other_content_is_refused(store, path, tmp_path):
    before = path.read_bytes()
    assert write_netcdf(store, path).kept == (path,)
    with pytest.raises(StoreError, match=r"sm\.nc exists already and is the export of something"):
        write_netcdf(store, path, dates=("2024-01-05", "2024-01-20"))
    assert path.read_bytes() == before
    foreign = tmp_path / "notes.nc"
    foreign.write_text("mine")
    with pytest.raises(StoreError, match=r"notes\.nc exists already and is not an export"):
        write_netcdf(store, foreign)
    assert foreign.read_text() == "mine"
    write_netcdf(store, tmp_path / "again.nc")
    assert (tmp_path / "again.nc").read_bytes() == before


def test_static_variables_of_a_cube(tmp_path):
    write_cube(make_cube(chunks=None), tmp_path / "cube.zarr")
    chosen = {"group": "base", "variables": ["sand", "clay"]}
    write_netcdf(tmp_path / "cube.zarr", tmp_path / "soil.nc", **chosen)
    with xr.open_dataset(tmp_path / "soil.nc") as ds:
        assert ds["sand"].dims == ("y", "x")
        assert "time" not in ds.dims
    report, _ = check(tmp_path / "soil.nc", "cf:1.11")
    assert [p for p in report["high_priorities"] if p["msgs"]] == []
    with pytest.raises(ConfigError, match="sand, clay have none"):
        write_netcdf(tmp_path / "cube.zarr", tmp_path / "files", per="year", **chosen)


def test_series_of_a_cube(tmp_path):
    cube = make_cube(chunks=None)
    write_cube(cube, tmp_path / "cube.zarr")
    write_netcdf(tmp_path / "cube.zarr", tmp_path / "weather.nc", group="x9")
    with xr.open_dataset(tmp_path / "weather.nc") as ds:
        np.testing.assert_allclose(ds["t2m"], cube["x9"]["t2m"], rtol=2**-14)
    report, _ = check(tmp_path / "weather.nc", "cf:1.11")
    assert [p for p in report["high_priorities"] if p["msgs"]] == []


def test_progress_counts_the_dates_of_all_variables_over_all_files(store, tmp_path):
    events = []
    write_netcdf(store, tmp_path / "files", per="month", progress=events.append)
    assert [(e.done, e.total) for e in events] == [(i, 9) for i in range(1, 10)]


def test_a_failure_in_the_callback_leaves_nothing(store, tmp_path):
    def fail(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_netcdf(store, tmp_path / "sm.nc", progress=fail)
    assert not list(tmp_path.iterdir())
