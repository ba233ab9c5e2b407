"""SMAP: cells from constants, the right window, flags and fills, time of the overpass."""

import io
import itertools
import zipfile
from dataclasses import replace

import h5py
import numpy as np
import pandas as pd
import pystac
import pytest
import xarray as xr
from pyproj import Transformer

from smgrid.catalog import SourceSpec, StacQuery
from smgrid.errors import AssetError, CatalogError, NoDataError, SchemaError, SourceError
from smgrid.grid import ease_grid, make_grid, pixel_centres
from smgrid.sources import load_source
from smgrid.sources.smap import load_l3
from smgrid.windows import Period
from tests.builders import write_catalog

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


def test_releases_count_before_counters_and_order_does_not_matter(tmp_path):
    for name, value in (("R18290_003", 0.1), ("R19240_001", 0.2), ("R19240_002", 0.3)):
        path = write(tmp_path, "20200105", am=value)
        path.rename(tmp_path / f"SMAP_L3_SM_P_E_20200105_{name}.h5")
    files = sorted(str(path) for path in tmp_path.glob("*.h5"))
    for order in itertools.permutations(files):
        entry = replace(spec(tmp_path), paths=tuple(order))
        da = load_source(entry, GRID, PERIOD)["smap_soil_moisture"]
        np.testing.assert_allclose(da.values, 0.3, rtol=1e-6)


def test_the_poles_have_no_cells(tmp_path):
    write(tmp_path, "20200105", am=0.1)
    pole = make_grid(bbox=(-5, 88, 5, 89), resolution=10_000, crs="EPSG:3413")
    with pytest.raises(NoDataError, match=r"line 11: smap covers 85\.04 S to 85\.04 N"):
        load_l3(spec(tmp_path), pole, PERIOD)


class Archive:
    """A collection of files that stand on a server; each item has other assets besides."""

    def __init__(self, folder, server):
        self.folder, self.server, self.items = folder, server, []

    def add(self, name, start, end):
        item = pystac.Item(
            name.removesuffix(".h5"),
            geometry={
                "type": "Polygon",
                "coordinates": [[[-180, -85], [180, -85], [180, 85], [-180, 85], [-180, -85]]],
            },
            bbox=[-180, -85, 180, 85],
            datetime=pd.Timestamp(start).to_pydatetime(),
            properties={"start_datetime": f"{start}Z", "end_datetime": f"{end}Z"},
        )
        item.add_asset("browse", pystac.Asset(f"{self.server.url}/{name}.png"))
        item.add_asset("003/a", pystac.Asset(f"s3://bucket/{name}"))
        item.add_asset("003/b", pystac.Asset(f"{self.server.url}/{name}"))
        item.add_asset("metadata", pystac.Asset(f"{self.server.url}/{name}.xml"))
        self.items.append(item)

    def spec(self, **changes):
        href = str(write_catalog(self.folder, "SPL", self.items))
        stac = StacQuery(href=href, collection="SPL", sign="earthdata")
        return replace(spec(self.folder), paths=(), stac=stac, **changes)


@pytest.fixture
def archive(tmp_path, file_server, cache):
    return Archive(tmp_path / "stac", file_server)


def add_day(archive, day, *, counter="001", **values):
    path = write(archive.server.folder, day.replace("-", ""), counter=counter, **values)
    archive.add(path.name, f"{day}T00:00:00", f"{day}T23:59:59")
    return path


def test_files_of_an_archive_are_fetched_when_they_are_read_and_once(archive, file_server):
    add_day(archive, "2020-01-05", am=0.1, pm=0.2)
    add_day(archive, "2020-01-06", am=0.3, pm=0.4)
    add_day(archive, "2020-03-01", am=0.5, pm=0.5)
    ds = load_source(archive.spec(options={"overpass": "both"}), GRID, PERIOD)
    assert file_server.log() == []
    first = ds["smap_soil_moisture"].isel(time=slice(2))
    np.testing.assert_allclose(first.mean(("y", "x")), [0.2, 0.1], rtol=1e-6)
    assert [asked["path"] for asked in file_server.log()] == [
        f"/{NAME.format(day='20200105', counter='001')}"
    ]
    np.testing.assert_allclose(
        ds["smap_soil_moisture"].mean(("y", "x")), [0.2, 0.1, 0.4, 0.3], rtol=1e-6
    )
    assert len(file_server.log()) == 2


def test_of_two_versions_in_an_archive_the_newer_one_is_fetched(archive, file_server):
    add_day(archive, "2020-01-05", am=0.1, counter="002")
    add_day(archive, "2020-01-05", am=0.2, counter="001")
    da = load_source(archive.spec(), GRID, PERIOD)["smap_soil_moisture"]
    np.testing.assert_allclose(da, 0.1, rtol=1e-6)
    assert len(file_server.log()) == 1


def test_a_fetched_file_that_is_damaged_is_fetched_again_next_time(archive, file_server, cache):
    path = add_day(archive, "2020-01-05", am=0.1)
    whole = path.read_bytes()
    da = load_source(archive.spec(), GRID, PERIOD)["smap_soil_moisture"]
    path.write_bytes(whole[:2000] + bytes(len(whole) - 2000))
    with pytest.raises(
        SourceError, match=r"_001\.h5: cannot read Soil_Moisture.*download the file"
    ):
        da.compute()
    path.write_bytes(whole)
    np.testing.assert_allclose(da, 0.1, rtol=1e-6)


def test_a_file_that_cannot_be_fetched_is_named(archive, file_server, monkeypatch):
    monkeypatch.setenv("SMGRID_RETRY_PAUSES", "0.01")
    add_day(archive, "2020-01-05", am=0.1)
    da = load_source(archive.spec(), GRID, PERIOD)["smap_soil_moisture"]
    file_server.plan("503", "503")
    with pytest.raises(
        AssetError, match=r"20200105_R18290_001\.h5 could not be fetched in 2"
    ) as raised:
        da.compute()
    assert raised.value.attempts == 2
    np.testing.assert_allclose(da, 0.1, rtol=1e-6)


def test_items_of_another_product_are_said(archive):
    archive.add("SMAP_L3_SM_P_20200105_R18290_001.h5", "2020-01-05T00:00:00", "2020-01-05T23:59:59")
    with pytest.raises(
        SourceError, match=r"no asset named like a SPL3SMP_E file .*stac\.collection"
    ):
        load_l3(archive.spec(), GRID, PERIOD)


HOURS = ("0130", "0430", "0730", "1030", "1330", "1630", "1930", "2230")
L4 = "SMAP_L4_SM_gph_{day}T{hour}00_Vv{release}_{counter}.h5"


def write_l4(folder, day, hour, values, *, release="8010", counter="001"):
    """Write three hours of Level 4: the field of interest, and what stands beside it."""
    path = folder / L4.format(day=day, hour=hour, release=release, counter=counter)
    folder.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        for name in ("sm_surface", "sm_rootzone"):
            data = file.create_dataset(
                f"Geophysical_Data/{name}", SHAPE, "f4", chunks=(64, 64), fillvalue=-9999.0
            )
            data.attrs["units"] = np.bytes_("m3 m-3")
            data[ROWS, COLS] = values if name == "sm_surface" else 0.9
        for name in ("cell_lat", "cell_lon"):
            file.create_dataset(name, SHAPE, "f4", chunks=(64, 64), fillvalue=-9999.0)
    return path


def l4_spec(folder, **changes):
    fields = {
        "loader": "smgrid.sources.smap:load_l4",
        "provides": ("smap_l4_soil_moisture",),
        "paths": (f"{folder}/*.h5",),
    }
    return replace(spec(folder), **(fields | changes))


def test_level_4_is_the_mean_of_the_utc_day(tmp_path):
    shape = (ROWS.stop - ROWS.start, COLS.stop - COLS.start)
    cells = np.random.default_rng(0).uniform(0.1, 0.2, shape).astype("float32")
    for number, hour in enumerate(HOURS):
        write_l4(tmp_path, "20200105", hour, cells + 0.01 * number)
    write_l4(tmp_path, "20200104", "2230", cells + 0.5)  # not of the day
    write_l4(tmp_path, "20200106", "0130", cells + 0.5)
    period = Period.parse(("2020-01-05", "2020-01-05"))
    da = load_source(l4_spec(tmp_path), GRID, period)["smap_l4_soil_moisture"]
    assert da["time"].values.astype("datetime64[m]").astype(str).tolist() == ["2020-01-05T12:00"]
    np.testing.assert_allclose(da[0], cells + 0.035, rtol=1e-5)
    assert da.odc.geobox == ease_grid(9)[ROWS, COLS]


def test_level_4_of_a_known_place(tmp_path):
    """Row 1218, column 3180: its centre is found from the published constants alone."""
    for hour in HOURS:
        path = write_l4(tmp_path, "20200105", hour, -9999.0)
        with h5py.File(path, "r+") as file:
            file["Geophysical_Data/sm_surface"][1218, 3180] = 0.25
    to_degrees = Transformer.from_crs("EPSG:6933", "EPSG:4326", always_xy=True)
    lon, lat = to_degrees.transform((3180.5 - 1928) * CELL, (812 - 1218.5) * CELL)
    grid = make_grid(bbox=(lon - 0.2, lat - 0.2, lon + 0.2, lat + 0.2), resolution=1000)
    period = Period.parse(("2020-01-05", "2020-01-05"))
    da = load_source(l4_spec(tmp_path), grid, period)["smap_l4_soil_moisture"][0].compute()
    (row,), (col,) = np.nonzero(np.isfinite(da.values))
    assert da.values[row, col] == np.float32(0.25)
    x, y = Transformer.from_crs("EPSG:4326", "EPSG:6933", always_xy=True).transform(lon, lat)
    np.testing.assert_allclose([da["x"][col], da["y"][row]], [x, y], atol=1e-3)


def test_a_day_that_lacks_a_step_is_missing_and_so_is_a_cell(tmp_path):
    shape = (ROWS.stop - ROWS.start, COLS.stop - COLS.start)
    for day in ("20200105", "20200106"):
        for hour in HOURS:
            values = np.full(shape, 0.2)
            if (day, hour) == ("20200106", "1330"):
                values[0, 1] = -9999.0
            write_l4(tmp_path, day, hour, values)
    (tmp_path / L4.format(day="20200105", hour="0730", release="8010", counter="001")).unlink()
    period = Period.parse(("2020-01-05", "2020-01-06"))
    da = load_source(l4_spec(tmp_path), GRID, period)["smap_l4_soil_moisture"].compute()
    assert np.isnan(da[0]).all()
    assert np.isnan(da[1]).sum() == 1
    assert np.isnan(da[1, 0, 1])
    with pytest.raises(NoDataError, match="smap has all 8 files of no day from 2020-01-05"):
        load_source(l4_spec(tmp_path), GRID, Period.parse(("2020-01-05", "2020-01-05")))


def test_newest_release_of_level_4_and_a_value_that_is_none(tmp_path):
    for hour in HOURS:
        write_l4(tmp_path, "20200105", hour, 0.1, release="7032")
        write_l4(tmp_path, "20200105", hour, 0.3)
    period = Period.parse(("2020-01-05", "2020-01-05"))
    da = load_source(l4_spec(tmp_path), GRID, period)["smap_l4_soil_moisture"]
    np.testing.assert_allclose(da, 0.3, rtol=1e-6)
    write_l4(tmp_path, "20200105", "0130", 30.0, release="9000")
    da = load_source(l4_spec(tmp_path), GRID, period)["smap_l4_soil_moisture"]
    with pytest.raises(SchemaError, match=r"smap_l4_soil_moisture in .*T013000.*found 30"):
        da.compute()


def test_level_4_from_an_archive_leaves_incomplete_days_alone(archive, file_server):
    for day, hours in (("2020-01-05", HOURS), ("2020-01-06", HOURS[:7])):
        for hour in hours:
            path = write_l4(file_server.folder, day.replace("-", ""), hour, 0.2)
            start = pd.Timestamp(f"{day}T{hour}") - pd.Timedelta("1.5h")
            archive.add(
                path.name, f"{start.isoformat()}", f"{(start + pd.Timedelta('3h')).isoformat()}"
            )
    entry = archive.spec(loader="smgrid.sources.smap:load_l4", provides=("smap_l4_soil_moisture",))
    period = Period.parse(("2020-01-05", "2020-01-06"))
    da = load_source(entry, GRID, period)["smap_l4_soil_moisture"]
    assert file_server.log() == []
    np.testing.assert_allclose(da[0], 0.2, rtol=1e-6)
    assert np.isnan(da[1]).all()
    assert len(file_server.log()) == 8


@pytest.mark.shared
def test_cells_of_every_real_day_stand_where_the_constants_put_them(shared):
    """46 days of Western Australia and three of Texas (36 km), as NSIDC lists their positions."""
    to_ease = Transformer.from_crs("EPSG:4326", "EPSG:6933", always_xy=True)
    folder = shared / "data/real/smap_spl3smp_e"
    checked = 0
    for archive, km in (
        ("Western-Australia_20200101_20200215.zip", 9),
        ("Texas_20240901_20240903_36km.zip", 36),
    ):
        cells = ease_grid(km)
        with zipfile.ZipFile(folder / archive) as files:
            for name in files.namelist():
                with h5py.File(io.BytesIO(files.read(name))) as day:
                    lon, lat = day["longitude"][:], day["latitude"][:]
                x, y = to_ease.transform(lon, lat)
                col = np.floor((x - cells.affine.c) / cells.affine.a)
                row = np.floor((y - cells.affine.f) / cells.affine.e)
                x = cells.affine.c + (col + 0.5) * cells.affine.a
                y = cells.affine.f + (row + 0.5) * cells.affine.e
                back = to_ease.transform(x, y, direction="INVERSE")
                np.testing.assert_allclose(back, [lon, lat], atol=1e-3, rtol=0)
                checked += len(lon)
    assert checked > 50_000


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
