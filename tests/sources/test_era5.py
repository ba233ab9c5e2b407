"""Daily weather: hand-written days for each accumulation rule, units, nearest pixel, real files."""

import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from smgrid.catalog import SourceSpec
from smgrid.errors import CatalogError, NoDataError, SchemaError, SourceError
from smgrid.grid import make_grid, pixel_centres
from smgrid.sources import load_source
from smgrid.sources.era5 import load
from smgrid.windows import Period

LAT, LON = np.array([51.0, 50.9]), np.array([3.0, 3.1, 3.2])
# One cell of 5 km well inside the pixel of 50.9 N 3.1 E.
GRID = make_grid(bbox=(3.09, 50.89, 3.11, 50.91), resolution=5000)
FEBRUARY = Period.parse(("2024-02-28", "2024-03-01"))


def write(path, name, times, values, **attrs):
    """Write a series of one value per time, the same in every pixel."""
    data = np.broadcast_to(np.asarray(values, "float64")[:, None, None], (len(times), 2, 3))
    dims = ("time", "latitude", "longitude")
    ds = xr.Dataset(
        {name: (dims, data, attrs)}, coords={"time": times, "latitude": LAT, "longitude": LON}
    )
    ds.to_netcdf(path)
    return path


def spec(*paths, provides=("t2m",), **changes):
    fields = {
        "name": "weather",
        "loader": "smgrid.sources.era5:load",
        "provides": provides,
        "paths": tuple(str(path) for path in paths),
        "assets": {"t2m": "t2m", "tp": "tp"},
        "units": {"t2m": "K", "tp": "m"},
        "native_resolution": 11132.0,
        "options": {"accumulation": "per-step"},
        "origin": "test.yml, line 3",
    }
    return SourceSpec(**(fields | changes))


def daily(entry, period=FEBRUARY, grid=GRID):
    ds = load_source(entry, grid, period).compute()
    name = entry.provides[0]
    assert ds[name].dtype == "float32"
    return ds[name].values[:, 0, 0]


def hours(start, count):
    return pd.date_range(start, periods=count, freq="h")


def test_mean_temperature_is_of_the_stamps_00_to_23(tmp_path):
    # 280 K in hour 0 of 28 February, then one kelvin more each day; 24 h later a jump at 00:00.
    times = hours("2024-02-28", 72)
    values = 280.0 + np.repeat([0, 1, 2], 24)
    values[0] += 24.0  # 00:00 belongs to the day: its mean rises by one kelvin
    values[47] += 48.0  # 23:00 of 29 February: two kelvin
    path = write(tmp_path / "a.nc", "t2m", times, values)
    np.testing.assert_allclose(daily(spec(path)), [281, 283, 282], rtol=1e-6)


def test_per_step_total_is_of_the_stamps_01_to_00(tmp_path):
    times = hours("2024-02-28", 73)
    values = np.zeros(73)
    values[0] = 1.0  # 00:00 of 28 February: the last hour of the 27th, not asked for
    values[1] = 0.001  # 01:00 of the 28th
    values[24] = 0.010  # 00:00 of the 29th: the last hour of the 28th
    values[25] = 0.100  # 01:00 of the 29th
    values[48] = 0.200  # 00:00 of 1 March: the last hour of 29 February
    values[72] = 0.007  # 00:00 of 2 March
    path = write(tmp_path / "a.nc", "tp", times, values)
    np.testing.assert_allclose(daily(spec(path, provides=("tp",))), [0.011, 0.3, 0.007], rtol=1e-6)


def test_since_00utc_total_stands_at_00_of_the_next_day(tmp_path):
    times = hours("2024-02-28", 73)
    # 1 mm each hour of the 28th, 2 mm of the 29th, 3 mm of 1 March, accumulating from 00 UTC:
    # 01:00 holds one hour, 00:00 of the next day all 24.
    per_hour = np.repeat([1.0, 2.0, 3.0], 24)
    values = np.concatenate([[24.0], np.concatenate(np.cumsum(per_hour.reshape(3, 24), axis=1))])
    path = write(tmp_path / "a.nc", "tp", times, values / 1000)
    entry = spec(path, provides=("tp",), options={"accumulation": "since-00utc"})
    np.testing.assert_allclose(daily(entry), [0.024, 0.048, 0.072], rtol=1e-6)


def test_daily_totals_are_taken_as_they_are(tmp_path):
    days = pd.date_range("2024-02-28", periods=3)
    path = write(tmp_path / "a.nc", "tp", days, [1.0, 2.0, 3.0])
    options = {"step": "daily", "accumulation": "daily-total"}
    entry = spec(path, provides=("tp",), options=options, units={"tp": "mm/day"})
    np.testing.assert_allclose(daily(entry), [0.001, 0.002, 0.003], rtol=1e-6)
    noon = write(tmp_path / "b.nc", "t2m", days + pd.Timedelta(12, "h"), [280.0, 281.0, 282.0])
    np.testing.assert_allclose(daily(spec(noon, options=options)), [280, 281, 282])


@pytest.mark.parametrize(
    ("name", "rule", "missing", "lost"),
    [
        ("t2m", "per-step", "2024-02-29 00:00", [False, True, False]),
        ("tp", "per-step", "2024-02-29 00:00", [True, False, False]),
        ("tp", "per-step", "2024-03-02 00:00", [False, False, True]),
        ("tp", "since-00utc", "2024-02-29 00:00", [True, False, False]),
        ("tp", "since-00utc", "2024-02-29 05:00", [False, False, False]),
    ],
)
@pytest.mark.parametrize("how", ["absent", "nan"])
def test_a_missing_hour_costs_its_day_and_no_other(tmp_path, name, rule, missing, lost, how):
    times = hours("2024-02-28", 73)
    values = np.full(73, 280.0 if name == "t2m" else 0.001)
    gone = times == pd.Timestamp(missing)
    if how == "absent":
        times, values = times[~gone], values[~gone]
    else:
        values[gone] = np.nan
    path = write(tmp_path / "a.nc", name, times, values)
    entry = spec(path, provides=(name,), options={"accumulation": rule})
    np.testing.assert_array_equal(np.isnan(daily(entry)), lost)


def test_every_day_of_the_period_is_there(tmp_path):
    path = write(tmp_path / "a.nc", "t2m", hours("2024-02-29", 24), np.full(24, 275.0))
    ds = load_source(spec(path), GRID, FEBRUARY)
    assert ds.indexes["date"].equals(FEBRUARY.days)
    np.testing.assert_array_equal(ds["t2m"].values[:, 0, 0], np.float32([np.nan, 275, np.nan]))


@pytest.mark.parametrize(
    ("name", "units", "stored", "expected"),
    [
        ("t2m", "degC", 7.0, 280.15),
        ("t2m", "K", 280.15, 280.15),
        ("tp", "mm", 1.0, 0.024),
        ("tp", "m", 0.001, 0.024),
    ],
)
def test_units(tmp_path, name, units, stored, expected):
    path = write(tmp_path / "a.nc", name, hours("2024-02-28", 73), np.full(73, stored))
    values = daily(spec(path, provides=(name,), units={name: units}))
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "stored", "message"),
    [
        ("t2m", 7.0, r"t2m in weather \(test.yml, line 3\): found 7, expected 150 to 340 K"),
        ("tp", 1.0, r"tp in weather \(test.yml, line 3\): found 24, expected 0 to 2 m"),
        ("tp", -0.001, r"tp in weather \(test.yml, line 3\): found -0.024"),
    ],
)
def test_celsius_for_kelvin_millimetres_for_metres_and_negative_rain(
    tmp_path, name, stored, message
):
    path = write(tmp_path / "a.nc", name, hours("2024-02-28", 73), np.full(73, stored))
    lazy = load_source(spec(path, provides=(name,)), GRID, FEBRUARY)
    with pytest.raises(SchemaError, match=message):
        lazy.compute()


def test_packing_noise_below_zero_is_no_rain(tmp_path):
    values = np.full(73, -1e-9)
    path = write(tmp_path / "a.nc", "tp", hours("2024-02-28", 73), values)
    np.testing.assert_array_equal(daily(spec(path, provides=("tp",))), [0, 0, 0])


def test_cells_get_the_pixel_that_their_centre_lies_in(tmp_path):
    grid = make_grid(bbox=(2.96, 50.86, 3.24, 51.04), resolution=2000)
    values = np.arange(6, dtype="float64").reshape(1, 2, 3) + 280
    dims = ("time", "latitude", "longitude")
    ds = xr.Dataset(
        {"t2m": (dims, values.repeat(3, 0))},
        coords={"time": FEBRUARY.days, "latitude": LAT, "longitude": LON},
    )
    expected_x, expected_y = pixel_centres(grid, "EPSG:4326")
    row = np.clip(np.floor((51.05 - expected_y) / 0.1), 0, 1).astype(int)
    col = np.clip(np.floor((expected_x - 2.95) / 0.1), 0, 2).astype(int)
    for number, moved in enumerate(
        (ds, ds.isel(latitude=slice(None, None, -1)), ds.assign_coords(longitude=LON + 360))
    ):
        path = tmp_path / f"{number}.nc"
        moved.to_netcdf(path)
        loaded = load_source(spec(path, options={"step": "daily"}), grid, FEBRUARY)
        np.testing.assert_array_equal(loaded["t2m"].values[0], values[0][row, col])
        assert loaded["t2m"].odc.geobox == grid


def test_beyond_one_native_pixel_is_missing(tmp_path):
    path = write(tmp_path / "a.nc", "t2m", FEBRUARY.days, np.full(3, 280.0))
    to_utm = Transformer.from_crs("EPSG:4326", "EPSG:32631", always_xy=True)
    x, y = to_utm.transform(3.25, 50.95)  # on the eastern edge of the data
    grid = GeoBox.from_bbox((x - 2000, y - 500, x + 22000, y + 500), "EPSG:32631", resolution=1000)
    values = load_source(spec(path, options={"step": "daily"}), grid, FEBRUARY)["t2m"].values[0, 0]
    # 0.1 degree are 7.0 km here.
    np.testing.assert_array_equal(np.isnan(values[:9]), False)
    np.testing.assert_array_equal(np.isnan(values[10:]), True)


def test_preliminary_layer_fills_what_is_not_final(tmp_path):
    final = np.array([280.0, 281.0, np.nan])
    preliminary = np.array([np.nan, 999.0, 282.0])
    data = np.stack([final, preliminary], axis=1)[:, :, None, None] * np.ones((2, 3))
    ds = xr.Dataset(
        {"t2m": (("time", "expver", "latitude", "longitude"), data)},
        coords={"time": FEBRUARY.days, "expver": [1, 5], "latitude": LAT, "longitude": LON},
    )
    ds.to_netcdf(tmp_path / "a.nc")
    entry = spec(tmp_path / "a.nc", options={"step": "daily"})
    np.testing.assert_array_equal(daily(entry), [280, 281, 282])


def test_layers_are_final_and_preliminary_by_their_numbers(tmp_path):
    data = np.array([[282.0, 280.0], [999.0, 281.0], [282.0, np.nan]])[:, :, None, None]
    ds = xr.Dataset(
        {"t2m": (("time", "expver", "latitude", "longitude"), data * np.ones((2, 3)))},
        coords={"time": FEBRUARY.days, "expver": [5, 1], "latitude": LAT, "longitude": LON},
    )
    ds.to_netcdf(tmp_path / "a.nc")
    entry = spec(tmp_path / "a.nc", options={"step": "daily"})
    np.testing.assert_array_equal(daily(entry), [280, 281, 282])


def test_preliminary_hours_along_time_are_read_like_final_ones(tmp_path):
    """As the Climate Data Store marks them since 2024: one layer, an expver for each time."""
    path = write(tmp_path / "a.nc", "t2m", hours("2024-02-28", 72), np.full(72, 280.0))
    with xr.open_dataset(path) as ds:
        marked = ds.load().rename(time="valid_time")
    versions = np.repeat(["0001", "0005"], 36)
    marked.assign_coords(expver=("valid_time", versions), number=0).to_netcdf(tmp_path / "b.nc")
    np.testing.assert_array_equal(daily(spec(tmp_path / "b.nc")), [280, 280, 280])


def test_an_archive_of_both_kinds_of_variables(tmp_path, cache):
    """As the Climate Data Store delivers them together, under a name that says NetCDF."""
    instant = write(tmp_path / "instant.nc", "t2m", hours("2024-02-28", 73), np.full(73, 280.0))
    accum = write(tmp_path / "accum.nc", "tp", hours("2024-02-28", 73), np.full(73, 0.001))
    with zipfile.ZipFile(tmp_path / "download.nc", "w") as archive:
        archive.write(instant, "data_stream-oper_stepType-instant.nc")
        archive.write(accum, "data_stream-oper_stepType-accum.nc")
    entry = spec(tmp_path / "download.nc", provides=("t2m", "tp"))
    ds = load_source(entry, GRID, FEBRUARY)
    np.testing.assert_allclose(ds["t2m"], 280)
    np.testing.assert_allclose(ds["tp"], 0.024, rtol=1e-6)
    unpacked = sorted(path.name for path in cache.glob("unpacked/*/*"))
    assert unpacked == [f"data_stream-oper_stepType-{kind}.nc" for kind in ("accum", "instant")]
    load_source(entry, GRID, FEBRUARY)
    assert len(list(cache.glob("unpacked/*"))) == 1, "unpacked once"


@pytest.mark.parametrize("content", ["other", "damaged"])
def test_an_archive_that_holds_no_weather(tmp_path, cache, content):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("read.me" if content == "other" else "a.nc", "x" * 1000)
    if content == "damaged":
        path.write_bytes(path.read_bytes().replace(b"xxxx", b"yyyy"))
    with pytest.raises(SourceError, match=r"a\.zip (is an archive without|cannot be unpacked)"):
        load_source(spec(path), GRID, FEBRUARY)
    assert not list(cache.glob("unpacked/*/*.nc"))


def test_a_remote_file_is_fetched(tmp_path, cache, file_server):
    path = write(file_server.folder / "w.nc", "t2m", hours("2024-02-28", 72), np.full(72, 280.0))
    np.testing.assert_array_equal(daily(spec(f"{file_server.url}/{path.name}")), 280)
    assert len(file_server.log()) == 1


def packed(path, kelvin, offset, *, zipped=False):
    """Write one temperature for three days in steps of 1/100 K from `offset`."""
    path.unlink(missing_ok=True)
    file = write(path.with_suffix(".nc"), "t2m", hours("2024-02-28", 72), np.full(72, kelvin))
    with xr.open_dataset(file) as ds:
        ds.load()
    packing = {"dtype": "int16", "scale_factor": 0.01, "add_offset": offset, "_FillValue": -32768}
    ds.to_netcdf(file, encoding={"t2m": packing})
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(file, "t2m.nc")


@pytest.mark.parametrize("zipped", [False, True])
def test_preliminary_weather_that_is_replaced_is_seen(file_server, cache, later, zipped):
    """And who began with the preliminary file finishes with it, whose packing is another."""
    name = "months.zip" if zipped else "months.nc"
    packed(file_server.folder / name, 280.0, 270.0, zipped=zipped)
    entry = spec(f"{file_server.url}/{name}")
    preliminary = load_source(entry, GRID, FEBRUARY)["t2m"]
    packed(file_server.folder / name, 283.0, 300.0, zipped=zipped)
    np.testing.assert_allclose(daily(entry), 280, rtol=1e-6)
    assert len(file_server.log()) == 1
    later(1.1)
    np.testing.assert_allclose(daily(entry), 283, rtol=1e-6)
    assert len(file_server.log()) == 2
    script = "import pickle, sys; print(pickle.load(sys.stdin.buffer).values.mean())"
    # In a process that has no file open yet.
    found = subprocess.check_output([sys.executable, "-c", script], input=pickle.dumps(preliminary))
    np.testing.assert_allclose(float(found), 280, rtol=1e-6)
    assert len(list(cache.glob("unpacked/*"))) == 2


def test_a_cache_without_hard_links_holds_copies(file_server, cache, monkeypatch):
    def refuse(self, target):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    packed(file_server.folder / "copied.nc", 280.0, 270.0)
    np.testing.assert_allclose(daily(spec(f"{file_server.url}/copied.nc")), 280, rtol=1e-6)


def test_a_cache_that_cannot_hold_an_archive(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("SMGRID_CACHE", str(tmp_path / "file"))
    packed(tmp_path / "a.zip", 280.0, 270.0, zipped=True)
    with pytest.raises(SourceError, match=r"a\.zip cannot be kept in .*set SMGRID_CACHE"):
        load_source(spec(tmp_path / "a.zip"), GRID, FEBRUARY)


def test_versions_that_nobody_uses_are_removed(file_server, cache, later):
    folders = []

    def use(kelvin, name="months.nc"):
        packed(file_server.folder / name, kelvin, 270.0)
        np.testing.assert_allclose(daily(spec(f"{file_server.url}/{name}")), kelvin, rtol=1e-6)
        folders.extend(path for path in cache.glob("unpacked/*") if path not in folders)

    use(275.0, "others.nc")
    for days in range(3):
        later(1.1 * days)
        use(280.0 + days)
    other, first, second, third = folders
    now = third.stat().st_mtime
    for folder, days in ((other, 60), (first, 31), (second, 26), (third, 60)):
        os.utime(folder, (now - days * 86400,) * 2)
    use(282.0)  # the third again
    later(3.3)
    use(283.0)
    assert set(cache.glob("unpacked/*")) == {other, second, third, folders[-1]}
    assert len(folders) == 5


@pytest.mark.shared
def test_grib_is_refused_with_the_way_out(shared):
    path = shared / "data/real/era5/era5-single-level-scalar-time.grib"
    with pytest.raises(SourceError, match=r"scalar-time\.grib is GRIB, .* order NetCDF"):
        load_source(spec(path), GRID, FEBRUARY)


@pytest.mark.parametrize(
    ("name", "rule", "first", "last", "expected"),
    [
        ("t2m", "per-step", "02-28T00", "03-01T23", [1, 1, 1]),
        ("t2m", "per-step", "02-28T01", "03-01T22", [0, 1, 0]),
        ("tp", "per-step", "02-28T01", "03-02T00", [1, 1, 1]),
        ("tp", "per-step", "02-28T02", "03-01T23", [0, 1, 0]),
        ("tp", "since-00utc", "02-29T00", "03-02T00", [1, 1, 1]),
        ("tp", "since-00utc", "02-29T01", "03-01T23", [0, 1, 0]),
    ],
)
def test_days_at_the_ends_of_a_record(tmp_path, name, rule, first, last, expected):
    times = pd.date_range(f"2024-{first}:00", f"2024-{last}:00", freq="h")
    path = write(tmp_path / "a.nc", name, times, np.full(len(times), 280.0 if name == "t2m" else 0))
    ds = load_source(spec(path, provides=(name,), options={"accumulation": rule}), GRID, FEBRUARY)
    np.testing.assert_array_equal(ds["observed"], np.array(expected, bool))
    np.testing.assert_array_equal(np.isfinite(ds[name].values[:, 0, 0]), expected)


@pytest.mark.parametrize(
    ("rule", "right"), [("per-step", "since-00utc"), ("since-00utc", "per-step")]
)
def test_rain_of_the_other_kind_is_refused_when_read(tmp_path, rule, right):
    times = hours("2024-01-01", 24 * 31 + 1)
    amounts = np.where(np.arange(len(times)) % 5 == 0, 0.002, 0.0)
    if rule == "per-step":  # write what accumulates
        amounts = np.concatenate([[0], np.cumsum(amounts[1:].reshape(31, 24), axis=1).ravel()])
    path = write(tmp_path / "a.nc", "tp", times, amounts)
    lazy = load_source(
        spec(path, provides=("tp",), options={"accumulation": rule}), GRID, Period.parse("2024-01")
    )
    with pytest.raises(
        SourceError, match=rf"tp in weather \(test.yml, line 3\): its rain .*{right}"
    ):
        lazy.compute()


def test_days_that_begin_at_local_midnight_are_said_to(tmp_path):
    days = pd.date_range("2024-02-28", periods=3)
    path = write(tmp_path / "a.nc", "tp", days, [1.0, 2.0, 3.0])
    options = {"step": "daily", "accumulation": "daily-total", "day": "local"}
    entry = spec(path, provides=("tp",), options=options, units={"tp": "mm/day"})
    ds = load_source(entry, GRID, FEBRUARY)
    assert "local midnight" in ds["tp"].attrs["comment"]
    np.testing.assert_allclose(ds["tp"].values[:, 0, 0], [0.001, 0.002, 0.003], rtol=1e-6)
    entry = spec(path, provides=("tp",), options={"accumulation": "per-step", "day": "local"})
    with pytest.raises(CatalogError, match=r"options\.day of weather is for step: daily"):
        load_source(entry, GRID, FEBRUARY)


@pytest.mark.shared
@pytest.mark.parametrize("rule", ["per-step", "since-00utc"])
def test_real_days_of_three_years_survive_as_hours(shared, tmp_path, rule):
    """Daily rain and temperature of Halifax, spread over hours and put together again."""
    with xr.open_dataset(
        shared / "data/real/era5/era5_daily_surface_cancities_1990-1993.nc"
    ) as real:
        city = real[["tas", "pr"]].sel(location="Halifax", time=slice("1990", "1992")).load()
    rain = np.maximum(city["pr"].values.astype("float64") * 86400.0 / 1000.0, 0)  # kg m-2 s-1 -> m
    count = rain.size  # 1992 is a leap year
    weights = np.random.default_rng(0).dirichlet(np.full(24, 0.2), count)
    amounts = rain[:, None] * weights
    values = np.cumsum(amounts, axis=1) if rule == "since-00utc" else amounts
    times = hours("1990-01-01", 24 * count + 1)
    t2m = np.append(np.repeat(city["tas"].values, 24), 0.0)
    write(tmp_path / "t.nc", "t2m", times, t2m + np.append(np.tile(np.r_[-12:12] + 0.5, count), 0))
    write(tmp_path / "p.nc", "tp", times, np.append(0.0, values.ravel()))
    entry = spec(tmp_path / "*.nc", provides=("t2m", "tp"), options={"accumulation": rule})
    ds = load_source(entry, GRID, Period.parse(("1990-01-01", "1992-12-31"))).compute()
    np.testing.assert_allclose(ds["tp"].values[:, 0, 0], rain, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(ds["t2m"].values[:, 0, 0], city["tas"], rtol=1e-6)
    assert ds["observed"].all()


def test_several_files_and_variables_and_a_zarr_store(tmp_path):
    first = write(tmp_path / "1.nc", "t2m", hours("2024-02-28", 30), np.full(30, 280.0))
    second = write(tmp_path / "2.nc", "t2m", hours("2024-02-29 06:00", 42), np.full(42, 280.0))
    rain = write(tmp_path / "3.nc", "tp", hours("2024-02-28", 73), np.full(73, 0.001))
    entry = spec(tmp_path / "*.nc", provides=("t2m", "tp"))
    ds = load_source(entry, GRID, FEBRUARY)
    assert np.isfinite(ds["t2m"].values).all()
    np.testing.assert_allclose(ds["tp"].values, 0.024, rtol=1e-6)
    whole = xr.concat([xr.open_dataset(first), xr.open_dataset(second)], "time")
    whole.assign(tp=xr.open_dataset(rain)["tp"]).to_zarr(tmp_path / "w.zarr", zarr_format=2)
    store = spec(tmp_path / "w.zarr", provides=("t2m",))
    assert load_source(store, GRID, FEBRUARY)["t2m"].equals(ds["t2m"])


def test_nothing_is_computed_when_loading_and_only_the_window_is_chunked(tmp_path):
    path = write(tmp_path / "a.nc", "t2m", hours("2024-02-28", 73), np.full(73, 280.0))

    def refuse(*_, **__):
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        ds = load(spec(path), GRID, FEBRUARY, chunks=1)
    assert ds["t2m"].chunksizes["y"] == (1,) * GRID.shape.y


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"options": {"acumulation": "x"}}, CatalogError, "line 3: options.acumulation"),
        ({"options": {}}, CatalogError, "line 3: options.accumulation of weather is missing"),
        (
            {"options": {"step": "daily", "accumulation": "per-step"}},
            CatalogError,
            "options.accumulation of weather is 'per-step'; use daily-total",
        ),
        ({"assets": {"t2m": "t2m"}}, CatalogError, "line 3: assets.tp of weather is missing"),
        ({"assets": {"tp": "rain"}}, SourceError, "rain: none of its files has a variable"),
        ({"units": {}}, CatalogError, "line 3: units.tp of weather is missing"),
        ({"units": {"tp": "furlong"}}, SchemaError, "no exact conversion from 'furlong'"),
        ({"provides": ("ndvi",)}, CatalogError, "provides t2m and tp, not 'ndvi'"),
    ],
)
def test_mistakes_in_the_catalog(tmp_path, changes, error, message):
    path = write(tmp_path / "a.nc", "tp", hours("2024-02-28", 73), np.zeros(73))
    with pytest.raises(error, match=message):
        load(spec(path, **({"provides": ("tp",)} | changes)), GRID, FEBRUARY)


def test_other_period_and_region_are_said(tmp_path):
    path = write(tmp_path / "a.nc", "t2m", hours("2024-02-28", 73), np.full(73, 280.0))
    with pytest.raises(NoDataError, match="holds 2024-02-28 to 2024-03-02, nothing from 2023"):
        load(spec(path), GRID, Period.parse("2023"))
    hanoi = make_grid(bbox=(105.8, 20.9, 105.9, 21.0), resolution=1000)
    with pytest.raises(NoDataError, match="they do not overlap"):
        load(spec(path), hanoi, FEBRUARY)


@pytest.mark.shared
def test_real_agera5_of_one_pixel(shared):
    folder = shared / "data/real/colocated_worldcereal/00002806639B424A"
    entry = spec(
        folder / "AgERA5_DAILY_1000m_*.nc",
        provides=("t2m", "tp"),
        assets={"t2m": "temperature_mean", "tp": "precipitation_flux", "time": "timestamp"},
        units={"t2m": "K", "tp": "mm/day"},
        native_resolution=1000.0,
        options={"step": "daily", "accumulation": "daily-total"},
    )
    grid = GeoBox.from_bbox((501300, 5629000, 502100, 5629700), "EPSG:32631", resolution=100)
    period = Period.parse("2018")
    ds = load_source(entry, grid, Period(period.start, pd.Timestamp("2018-11-30"))).compute()
    path = next(folder.glob("AgERA5*"))
    with xr.open_dataset(path) as raw:
        raw = raw.sel(timestamp="2018").squeeze(drop=True).load()
    for row in (0, -1):
        np.testing.assert_array_equal(ds["t2m"][:, row, 0], raw["temperature_mean"])
        np.testing.assert_allclose(ds["tp"][:, row, 0], raw["precipitation_flux"] / 1000, rtol=1e-6)
    # The warmest and coldest months, and about the normal rain of West Flanders.
    monthly = ds["t2m"][:, 0, 0].groupby("date.month").mean().to_series()
    assert monthly.idxmax() == 7
    assert monthly.idxmin() == 2
    assert 0.4 < float(ds["tp"][:, 0, 0].sum()) < 0.9


@pytest.mark.shared
def test_real_cds_file_with_valid_time_and_expver(shared):
    """A file as the Climate Data Store delivers it; soil water stands in for temperature."""
    folder = shared / "data/real/era5/era5land_swvl1_hourly"
    entry = spec(
        folder / "ERA5_Western-Australia_20200101_20200128.nc",
        assets={"t2m": "swvl1"},
        units={"t2m": "K"},
        scale={"t2m": 1.0},
        offset={"t2m": 273.0},
        options={},
    )
    grid = make_grid(bbox=(118.0, -30.0, 118.4, -29.6), resolution=10_000)
    ds = load_source(entry, grid, Period.parse("2020-01")).compute()
    with xr.open_dataset(folder / "ERA5_Western-Australia_20200101_20200128.nc") as raw:
        hourly = raw["swvl1"].sel(valid_time="2020-01-17").load()
    lon, lat = pixel_centres(grid, "EPSG:4326")
    expected = hourly.sel(
        latitude=xr.DataArray(lat.ravel()), longitude=xr.DataArray(lon.ravel()), method="nearest"
    ).mean("valid_time")
    np.testing.assert_allclose(
        ds["t2m"].sel(date="2020-01-17").values.ravel() - 273.0, expected.values, atol=1e-4
    )


@pytest.mark.parametrize(
    ("stated", "taken", "agree"),
    [
        ("m", "mm", False),
        ("m of water equivalent", "m", True),
        ("mm d-1", "mm/day", True),
        ("kg m-2", "mm", True),
        ("kg m-2 s-1", "mm", True),  # not a unit that smgrid knows
    ],
)
def test_units_of_the_file_and_of_the_catalog_agree(tmp_path, stated, taken, agree):
    """Metres taken for millimetres are no impossible values, only a drought."""
    path = write(tmp_path / "a.nc", "tp", hours("2024-02-28", 73), np.full(73, 1e-6), units=stated)
    entry = spec(path, provides=("tp",), units={"tp": taken})
    if agree:
        load_source(entry, GRID, FEBRUARY)
        return
    with pytest.raises(SchemaError, match=r"line 3: .*a\.nc states 'm' as the units of tp, but un"):
        load_source(entry, GRID, FEBRUARY)
    scaled = spec(path, provides=("tp",), units={"tp": taken}, scale={"tp": 1000.0})
    load_source(scaled, GRID, FEBRUARY)
