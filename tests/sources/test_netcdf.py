"""Stacks in NetCDF: real ones of a provider, and the oddities that such files have."""

import netCDF4
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from smgrid.catalog import SourceSpec
from smgrid.errors import CatalogError, NoDataError, SchemaError, SourceError
from smgrid.sources import load_source
from smgrid.sources.netcdf import open_stack
from smgrid.sources.sentinel1 import load_netcdf
from smgrid.windows import Period
from tests.builders import utm_grid

GRID = utm_grid((4, 5), 100)
PERIOD = Period.parse(("2018-03-01", "2018-03-31"))
TIMES = ("2018-03-02T17:32:36", "2018-03-03T05:58:10", "2018-03-08T17:32:10")
RULES = [
    {"relative_orbit": 161, "orbit_state": "ascending", "around": "17:32"},
    {"relative_orbit": 110, "orbit_state": "descending", "around": "05:58", "platform": "S1A"},
]


def stack_spec(*paths, **changes):
    defaults = {
        "name": "stack",
        "loader": "smgrid.sources.sentinel1:load_netcdf",
        "provides": ("vv", "vh"),
        "paths": tuple(map(str, paths)),
        "assets": {"vv": "VV", "vh": "VH", "time": "timestamp"},
        "units": {"vv": "dB", "vh": "dB"},
        "convention": "sigma0",
        "origin": "test.yml, line 1",
    }
    return SourceSpec(**{**defaults, **changes})


def decibels(count, shape=(40, 50), *, seed=0):
    values = np.random.default_rng(seed).normal(-11, 2, (count, *shape))
    return values.round(4).astype("float32")


def write_stack(path, values, *, times=TIMES, left=500_000, top=5_600_000, upwards=False, attrs=()):
    """Write VV and VH as int32 of 0.0001 dB, fill value and packing as text."""
    rows, columns = values.shape[1:]
    with netCDF4.Dataset(path, "w") as nc:
        for name, size in (("timestamp", len(times)), ("y", rows), ("x", columns)):
            nc.createDimension(name, size)
        time = nc.createVariable("timestamp", "i8", ("timestamp",))
        time.units, time.calendar = "seconds since 2018-01-01 00:00:00", "proleptic_gregorian"
        since = pd.DatetimeIndex(times) - pd.Timestamp("2018-01-01")
        time[:] = since.total_seconds().astype("int64")
        y = top - 5 - 10 * np.arange(rows)
        nc.createVariable("y", "f8", ("y",))[:] = y[::-1] if upwards else y
        nc.createVariable("x", "f8", ("x",))[:] = left + 5 + 10 * np.arange(columns)
        for name, offset in (("VV", 0), ("VH", -7)):
            var = nc.createVariable(name, "i4", ("timestamp", "y", "x"))
            stored = np.where(np.isnan(values), 0, np.rint((values + offset) * 1e4))
            var[:] = stored[:, ::-1] if upwards else stored
            var.setncattr("missing_value", "0")
            var.setncattr("scale_factor", "0.0001")
            var.setncattr("bounds", [1, 2, 3])
        nc.setncatts(dict(attrs or {"crs": "+init=epsg:32631"}))
    return path


def block_mean(values, factor=10):
    rows, columns = (n // factor for n in values.shape[1:])
    blocks = values.astype("float64").reshape(-1, rows, factor, columns, factor)
    return np.nanmean(blocks, axis=(2, 4))


def test_a_stack_is_averaged_exactly_and_its_passes_are_told_apart(tmp_path):
    values = decibels(3)
    values[0, :3, :4] = np.nan
    spec = stack_spec(write_stack(tmp_path / "s.nc", values), options={"passes": RULES})
    ds = load_source(spec, GRID, PERIOD)
    np.testing.assert_allclose(ds["vv"], block_mean(values), atol=1e-5)
    np.testing.assert_allclose(ds["vh"], block_mean(values) - 7, atol=1e-5)
    assert ds["time"].values.astype("datetime64[s]").astype(str).tolist() == list(TIMES)
    assert ds["relative_orbit"].values.tolist() == [161, 110, 161]
    assert ds["orbit_state"].values.tolist() == ["ascending", "descending", "ascending"]
    assert ds["platform"].values.tolist() == ["", "s1a", ""]
    assert ds["vv"].attrs["convention"] == "sigma0"
    assert ds["vv"].chunks[0] == (1, 1, 1)


def test_rows_that_run_northwards_are_turned(tmp_path):
    values = decibels(3)
    path = write_stack(tmp_path / "s.nc", values, upwards=True)
    ds = load_netcdf(stack_spec(path), GRID, PERIOD)
    np.testing.assert_allclose(ds["vv"], block_mean(values), atol=1e-5)
    assert ds["relative_orbit"].values.tolist() == [0, 0, 0]


def test_slices_within_minutes_are_one_pass_the_earlier_first(tmp_path):
    values = decibels(2)
    values[0, :, 25:] = np.nan
    times = ("2018-03-02T17:32:11", "2018-03-02T17:32:36")
    path = write_stack(tmp_path / "s.nc", values, times=times)
    ds = load_netcdf(stack_spec(path), GRID, PERIOD)
    assert ds["time"].values.astype("datetime64[s]").astype(str).tolist() == list(times[:1])
    joined = np.where(np.isnan(values[0]), values[1], values[0])[None]
    np.testing.assert_allclose(ds["vv"], block_mean(joined), atol=1e-5)


def test_several_files_are_one_record(tmp_path):
    values = decibels(3)
    write_stack(tmp_path / "b.nc", values[:1], times=TIMES[:1])
    write_stack(tmp_path / "a.nc", values[1:], times=TIMES[1:])
    ds = load_netcdf(stack_spec(tmp_path / "*.nc"), GRID, PERIOD)
    np.testing.assert_allclose(ds["vv"], block_mean(values), atol=1e-5)


def test_files_on_different_grids_are_refused(tmp_path):
    values = decibels(1)
    write_stack(tmp_path / "a.nc", values, times=TIMES[:1])
    write_stack(tmp_path / "b.nc", values, times=TIMES[1:2], left=500_010)
    with pytest.raises(
        SourceError, match=r"the files of stack .* lie on different grids; make one"
    ):
        load_netcdf(stack_spec(tmp_path / "*.nc"), GRID, PERIOD)


@pytest.mark.parametrize(
    ("grid", "period"),
    [(utm_grid((4, 5), 100, left=600_000), PERIOD), (GRID, Period.parse(("2020-01-01",) * 2))],
)
def test_another_region_or_period_holds_nothing(tmp_path, grid, period):
    path = write_stack(tmp_path / "s.nc", decibels(3))
    with pytest.raises(NoDataError, match="stack"):
        load_netcdf(stack_spec(path), grid, period)


def test_a_catalog_scale_replaces_that_of_the_file(tmp_path):
    path = write_stack(tmp_path / "s.nc", decibels(3) / 2)
    changes = {"scale": {"vv": 2e-4}, "provides": ("vv",), "nodata": 5.0}
    ds = load_netcdf(stack_spec(path, **changes), GRID, PERIOD)
    exact = np.rint(decibels(3) / 2 * 1e4) * 2e-4
    np.testing.assert_allclose(ds["vv"], block_mean(exact), atol=1e-5)


def test_a_file_without_crs_is_refused_unless_it_is_stated(tmp_path):
    path = write_stack(tmp_path / "s.nc", decibels(3), attrs={"title": "x"})
    message = r"s\.nc, VV does not state its CRS; add crs: to its catalog entry"
    with pytest.raises(SourceError, match=message):
        load_netcdf(stack_spec(path), GRID, PERIOD)
    ds = load_netcdf(stack_spec(path, crs="EPSG:32631"), GRID, PERIOD)
    np.testing.assert_allclose(ds["vv"], block_mean(decibels(3)), atol=1e-5)


def test_a_name_that_the_file_lacks_is_refused(tmp_path):
    path = write_stack(tmp_path / "s.nc", decibels(3))
    assets = {"vv": "Sigma", "vh": "VH", "time": "timestamp"}
    with pytest.raises(SourceError, match=r"s\.nc has no 'Sigma'; known are .*VH, VV"):
        load_netcdf(stack_spec(path, assets=assets), GRID, PERIOD)
    with pytest.raises(CatalogError, match=r"assets\.time of stack is missing"):
        load_netcdf(stack_spec(path, assets={"vv": "VV", "vh": "VH"}), GRID, PERIOD)


@pytest.mark.parametrize("kept", [0, 2000])
def test_a_truncated_file_is_named(tmp_path, kept):
    path = write_stack(tmp_path / "s.nc", decibels(3))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(SourceError, match=r"s\.nc cannot be read as NetCDF"):
        load_netcdf(stack_spec(path), GRID, PERIOD)


def test_power_declared_as_decibels_names_the_acquisition(tmp_path):
    path = write_stack(tmp_path / "s.nc", np.full((3, 40, 50), 0.2, "float32"))
    ds = load_netcdf(stack_spec(path), GRID, PERIOD)
    with pytest.raises(SchemaError, match="vv of stack at 2018-03-02 17:32:36: its units are dB"):
        ds["vv"][0].compute()


def test_masks_are_left_as_stored(tmp_path):
    path = write_stack(tmp_path / "s.nc", decibels(3))
    names = {"vv": "VV", "mask": "VH"}
    stack = open_stack(stack_spec(path), str(path), names, time="timestamp", edge=20, raw=("mask",))
    assert stack["mask"].dtype == "int32"
    assert stack["vv"].dtype == "float32"
    assert stack["vv"].attrs == {}
    assert stack["vv"].chunks == ((1, 1, 1), (20, 20), (20, 20, 10))


@pytest.mark.parametrize(("fill", "dtype"), [(65535, "int16"), ("-9999", "int16"), (np.nan, "i2")])
def test_fill_values_that_were_written_wrongly(tmp_path, fill, dtype):
    stored = np.full((1, 4, 5), 7, dtype)
    if isinstance(fill, str):
        stored[0, 0, 0] = -9999
    elif np.isfinite(fill):
        stored[0, 0, 0] = -1
    with netCDF4.Dataset(tmp_path / "s.nc", "w") as nc:
        for name, size in (("t", 1), ("y", 4), ("x", 5)):
            nc.createDimension(name, size)
        nc.createVariable("t", "i8", ("t",))[:] = 0
        nc["t"].units = "days since 2018-01-01"
        nc.createVariable("y", "f8", ("y",))[:] = -np.arange(4.0)
        nc.createVariable("x", "f8", ("x",))[:] = np.arange(5.0)
        nc.createVariable("v", dtype, ("t", "y", "x"))[:] = stored
        nc["v"].setncattr("missing_value", fill)
    spec = stack_spec(crs="EPSG:32631")
    stack = open_stack(spec, str(tmp_path / "s.nc"), {"vv": "v"}, time="t", edge=9)
    missing = np.isnan(stack["vv"].values)
    assert missing.sum() == (0 if not isinstance(fill, str) and np.isnan(fill) else 1)


REAL = "00002806639B424A/S1_GRD-ASCENDING_20m_00002806639B424A_32631_2017-08-01_2018-11-30.nc"


def test_a_real_stack_of_a_provider(shared):
    path = shared / "data/real/colocated_worldcereal" / REAL
    rules = [
        {"relative_orbit": 161, "orbit_state": "ascending", "around": "17:32"},
        {"relative_orbit": 59, "orbit_state": "ascending", "around": "17:40"},
    ]
    spec = stack_spec(path, options={"passes": rules})
    grid = utm_grid((8, 8), 80, left=501_360, top=5_629_680)
    ds = load_source(spec, grid, Period.parse(("2017-08-01", "2018-11-30")))
    with xr.open_dataset(path, decode_cf=False) as raw:
        counts = raw["VV"].values.astype("float64")
        seconds = raw["timestamp"].values
    power = np.where(counts == 0, np.nan, counts * 1e-4)
    np.testing.assert_allclose(ds["vv"], block_mean(power, 4), atol=1e-5)
    first = np.datetime64("2017-08-01T17:32:36")
    assert (ds["time"].values == first + seconds.astype("timedelta64[s]")).all()
    # One satellite passes an orbit every 12 days, two of them every 6.
    for orbit in (161, 59):
        steps = np.diff(ds["time"].values[ds["relative_orbit"].values == orbit])
        assert set((steps / np.timedelta64(1, "D")).round(1) % 6.0) == {0.0}
    assert -20 < float(ds["vv"].mean()) < -5
