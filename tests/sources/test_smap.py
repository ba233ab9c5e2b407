"""SMAP: cells from constants, the right window, flags and fills, time of the overpass."""

import zipfile

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from pyproj import Transformer

from smgrid.catalog import SourceSpec
from smgrid.errors import CatalogError, NoDataError, SchemaError, SourceError
from smgrid.grid import ease_grid, make_grid, pixel_centres
from smgrid.sources import load_source
from smgrid.sources.smap import load_l3
from smgrid.windows import Period

PERIOD = Period.parse(("2020-01-01", "2020-01-31"))
GRID = make_grid(bbox=(118.0, -30.0, 118.3, -29.7), resolution=1000)
SHAPE = (1624, 3856)
NAME = "SMAP_L3_SM_P_E_{day}_R18290_{counter}.h5"


def write(folder, day, *, am=None, pm=None, flags=0, counter="001", shape=SHAPE):
    """Write a day; `am` and `pm` fill the whole globe unless they are arrays."""
    path = folder / NAME.format(day=day, counter=counter)
    with h5py.File(path, "w") as file:
        for group, suffix, values in (
            ("Soil_Moisture_Retrieval_Data_AM", "", am),
            ("Soil_Moisture_Retrieval_Data_PM", "_pm", pm),
        ):
            values = -9999.0 if values is None else values
            for name, value, dtype in (
                ("soil_moisture", values, "f4"),
                ("retrieval_qual_flag", flags, "u2"),
                ("latitude", -9999.0, "f4"),
                ("longitude", -9999.0, "f4"),
            ):
                data = file.create_dataset(
                    f"{group}/{name}{suffix}", shape, dtype, chunks=(64, 64), fillvalue=0
                )
                if np.ndim(value):
                    data[ROWS, COLS] = value
                else:
                    data[900:1250, 3050:3250] = value
    return path


# Rows and columns of the window over GRID, found with pyproj and the published cell size only.
X, Y = pixel_centres(GRID, "EPSG:6933")
CELL = 9008.055210146
ROWS = slice(int((812 * CELL - Y.max()) // CELL) - 1, int((812 * CELL - Y.min()) // CELL) + 2)
COLS = slice(int((X.min() + 1928 * CELL) // CELL) - 1, int((X.max() + 1928 * CELL) // CELL) + 2)


def spec(folder, **options):
    return SourceSpec(
        name="smap",
        loader="smgrid.sources.smap:load_l3",
        provides=("smap_soil_moisture",),
        paths=(f"{folder}/*.h5",),
        options=options,
        origin="test.yml, line 11",
    )


def test_cells_stand_where_the_constants_put_them(tmp_path):
    shape = (ROWS.stop - ROWS.start, COLS.stop - COLS.start)
    values = np.random.default_rng(0).uniform(0.05, 0.4, shape).astype("float32")
    write(tmp_path, "20200105", am=values)
    ds = load_source(spec(tmp_path), GRID, PERIOD)
    da = ds["smap_soil_moisture"]
    assert da.shape == (1, *shape)
    np.testing.assert_array_equal(da.values[0], values)
    assert da.odc.geobox == ease_grid(9)[ROWS, COLS]
    assert da.odc.crs.epsg == 6933
    np.testing.assert_allclose(da["y"].values[0], (812 - ROWS.start - 0.5) * CELL, atol=1e-6)


def test_fills_and_flags(tmp_path):
    shape = (ROWS.stop - ROWS.start, COLS.stop - COLS.start)
    values = np.full(shape, 0.2, "float32")
    values[0, 0] = -9999.0
    flags = np.zeros(shape, "uint16")
    flags[0, 1], flags[1, 0], flags[1, 1] = 1, 8, 65534
    values[1, 1] = -9999.0
    write(tmp_path, "20200105", am=values, flags=flags)
    recommended = load_source(spec(tmp_path), GRID, PERIOD)["smap_soil_moisture"].values[0]
    assert np.isnan(recommended[[0, 0, 1], [0, 1, 1]]).all()
    assert np.isnan(recommended).sum() == 3
    everything = load_source(spec(tmp_path, quality="all"), GRID, PERIOD)
    assert np.isnan(everything["smap_soil_moisture"].values).sum() == 2


@pytest.mark.parametrize(
    ("overpass", "expected"),
    [
        # At 118.15 E the sun is 7 h 53 min ahead: 6 h local is 22:07 UTC of the same UTC day.
        ("am", ["2020-01-05T22:07", "2020-01-06T22:07"]),
        ("pm", ["2020-01-05T10:07", "2020-01-06T10:07"]),
        (
            "both",
            ["2020-01-05T10:07", "2020-01-05T22:07", "2020-01-06T10:07", "2020-01-06T22:07"],
        ),
    ],
)
def test_time_is_the_local_overpass_in_utc(tmp_path, overpass, expected):
    write(tmp_path, "20200105", am=0.1, pm=0.2)
    write(tmp_path, "20200106", am=0.3, pm=0.4)
    da = load_source(spec(tmp_path, overpass=overpass), GRID, PERIOD)["smap_soil_moisture"]
    assert da["time"].values.astype("datetime64[m]").astype(str).tolist() == expected
    means = {"am": [0.1, 0.3], "pm": [0.2, 0.4], "both": [0.2, 0.1, 0.4, 0.3]}[overpass]
    np.testing.assert_allclose(da.mean(("y", "x")), means, rtol=1e-6)


def test_west_of_greenwich_the_morning_is_later_in_utc(tmp_path):
    grid = make_grid(bbox=(-99.2, 30.0, -98.8, 30.3), resolution=1000)
    path = write(tmp_path, "20200105", am=0.1)
    with h5py.File(path, "r+") as file:
        file["Soil_Moisture_Retrieval_Data_AM/soil_moisture"][300:500, 700:1000] = 0.25
    da = load_source(spec(tmp_path), grid, PERIOD)["smap_soil_moisture"]
    assert pd.Timestamp(da["time"].item()).round("min") == pd.Timestamp("2020-01-05 12:36")
    np.testing.assert_allclose(da.values, 0.25)


def test_newest_version_of_a_day_and_only_days_of_the_period(tmp_path):
    write(tmp_path, "20200105", am=0.1, counter="001")
    write(tmp_path, "20200105", am=0.3, counter="002")
    write(tmp_path, "20191231", am=0.2)
    write(tmp_path, "20200201", am=0.2)
    da = load_source(spec(tmp_path), GRID, PERIOD)["smap_soil_moisture"]
    assert da.sizes["time"] == 1
    np.testing.assert_allclose(da.values, 0.3, rtol=1e-6)


def test_files_are_opened_only_when_computed(tmp_path):
    (tmp_path / NAME.format(day="20200105", counter="001")).write_bytes(b"not HDF5")
    ds = load_source(spec(tmp_path), GRID, PERIOD)
    with pytest.raises(SourceError, match=r"20200105_R18290_001\.h5: cannot read Soil_Moisture"):
        ds.compute()


def test_mistakes(tmp_path):
    with pytest.raises(SourceError, match="no file matches"):
        load_l3(spec(tmp_path), GRID, PERIOD)
    write(tmp_path, "20200105", am=0.1)
    with pytest.raises(NoDataError, match="line 11: smap has no file from 2021-01-01 to 2021-12"):
        load_l3(spec(tmp_path), GRID, Period.parse("2021"))
    with pytest.raises(CatalogError, match=r"line 11: options\.overpass of smap is 'noon'"):
        load_l3(spec(tmp_path, overpass="noon"), GRID, PERIOD)
    with pytest.raises(CatalogError, match=r"options\.quality of smap is 'best'"):
        load_l3(spec(tmp_path, quality="best"), GRID, PERIOD)
    with pytest.raises(CatalogError, match=r"options\.pass of smap: unknown key"):
        load_l3(spec(tmp_path, **{"pass": "am"}), GRID, PERIOD)
    (tmp_path / "other.h5").write_bytes(b"")
    with pytest.raises(SourceError, match=r"other\.h5 is not named like a SPL3SMP_E file"):
        load_l3(spec(tmp_path), GRID, PERIOD)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"am": 25.0}, SchemaError, "smap_soil_moisture in .*20200105.*found 25, expected 0 to 1"),
        ({"am": 0.2, "shape": (406 * 4, 3500)}, SourceError, r"has the shape \(1624, 3500\)"),
    ],
)
def test_what_is_no_such_file_fails_when_read(tmp_path, changes, error, message):
    write(tmp_path, "20200105", **changes)
    with pytest.raises(error, match=message):
        load_source(spec(tmp_path), GRID, PERIOD).compute()


@pytest.mark.shared
def test_real_soil_moisture_stands_at_its_latitude_and_longitude(shared, tmp_path):
    """Values that NSIDC lists by latitude and longitude, put into a file by row and column."""
    archive = shared / "data/real/smap_spl3smp_e/Western-Australia_20200101_20200215.zip"
    with zipfile.ZipFile(archive) as files:
        (name,) = [name for name in files.namelist() if "2020-01-05" in name]
        (tmp_path / "list.nc").write_bytes(files.read(name))
    with xr.open_dataset(tmp_path / "list.nc") as listed:
        listed = listed.to_dataframe().drop_duplicates(["latitude", "longitude"])
    to_ease = Transformer.from_crs("EPSG:4326", "EPSG:6933", always_xy=True)
    x, y = to_ease.transform(listed["longitude"].to_numpy(), listed["latitude"].to_numpy())
    row, col = ((812 * CELL - y) // CELL).astype(int), ((x + 1928 * CELL) // CELL).astype(int)
    path = write(tmp_path, "20200105")
    with h5py.File(path, "r+") as file:
        data = file["Soil_Moisture_Retrieval_Data_AM/soil_moisture"]
        values = data[:]
        values[row, col] = listed["soil_moisture"]
        data[:] = values
    grid = make_grid(bbox=(116.5, -31.5, 121.5, -27.5), resolution=5000)
    da = load_source(spec(tmp_path), grid, PERIOD)["smap_soil_moisture"][0].compute()
    kept = listed[listed["longitude"].between(117, 121) & listed["latitude"].between(-31, -28)]
    x, y = to_ease.transform(kept["longitude"].to_numpy(), kept["latitude"].to_numpy())
    found = da.sel(x=xr.DataArray(x), y=xr.DataArray(y), method="nearest", tolerance=20)
    assert len(found) > 200
    np.testing.assert_allclose(found, kept["soil_moisture"], rtol=1e-6)
