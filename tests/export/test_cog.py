import numpy as np
import pyproj
import pytest
import rasterio
from rio_cogeo.cogeo import cog_validate

import smgrid
from smgrid.cube.store import write_cube
from smgrid.errors import StoreError
from smgrid.export.cog import write_cogs
from smgrid.export.stored import StoredVariable
from tests.cubes import make_cube
from tests.export.maps import DIGEST, counts, make_map, write_map

STAMPS = ("20240105T172312Z", "20240117T054107Z", "20240210T172313Z")
NAMES = ("soil_moisture", "soil_moisture_std", "flags")


@pytest.fixture(scope="module")
def cogs(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cogs")
    write_cogs(store, folder)
    return folder


def path_of(folder, step, name):
    return folder / f"sm_{STAMPS[step]}_{name}.tif"


def test_there_is_one_file_per_acquisition_and_variable_and_nothing_else(cogs):
    expected = {path_of(cogs, step, name) for step in range(3) for name in NAMES}
    assert set(cogs.iterdir()) == expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("step", range(3))
def test_integers_are_those_of_the_store(cogs, sm, step, name):
    with rasterio.open(path_of(cogs, step, name)) as src:
        np.testing.assert_array_equal(src.read(1), counts(sm, name)[step])


@pytest.mark.parametrize(
    ("name", "dtype", "nodata", "scale", "unit"),
    [
        ("soil_moisture", "int16", -32768, 1e-4, "m3 m-3"),
        ("soil_moisture_std", "uint16", 65535, 1e-4, "m3 m-3"),
        ("flags", "uint16", None, 1.0, "1"),
    ],
)
def test_packing_is_told_in_the_band(cogs, name, dtype, nodata, scale, unit):
    with rasterio.open(path_of(cogs, 0, name)) as src:
        assert src.dtypes == (dtype,)
        assert src.nodata == nodata
        assert (src.scales, src.offsets) == ((scale,), (0.0,))
        assert src.units == (unit,)
        assert src.descriptions == (name,)


@pytest.mark.parametrize("name", NAMES)
def test_gdal_and_rio_cogeo_take_it_for_a_cog(cogs, name):
    valid, errors, warnings = cog_validate(path_of(cogs, 0, name), strict=True)
    assert (valid, errors, warnings) == (True, [], [])
    with rasterio.open(path_of(cogs, 0, name)) as src:
        assert src.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert src.block_shapes == [(512, 512)]
        assert src.compression.name == "deflate"
        assert src.overviews(1)


def test_pixels_have_their_corners_where_the_grid_has_them(cogs, sm):
    with rasterio.open(path_of(cogs, 1, "soil_moisture")) as src:
        assert src.transform == sm.odc.geobox.affine
        assert src.bounds == tuple(sm.odc.geobox.boundingbox.bbox)
        assert src.tags()["AREA_OR_POINT"] == "Area"
        assert pyproj.CRS(src.crs.to_wkt()) == pyproj.CRS("EPSG:32631")
        # A point in the south-eastern part of a pixel, in longitude and latitude.
        row, column = 417, 88
        x, y = float(sm["x"][column]) + 30, float(sm["y"][row]) - 40
        lonlat = pyproj.Transformer.from_crs(32631, 4326, always_xy=True).transform(x, y)
        back = pyproj.Transformer.from_crs(4326, 32631, always_xy=True).transform(*lonlat)
        (found,) = next(src.sample([back]))
    assert found == counts(sm, "soil_moisture")[1, row, column]


def test_overviews_average_what_is_valid_and_take_the_mode_of_flags(tmp_path):
    sm = make_map((600, 600), times=("2024-01-05T17:23:12",))
    sm["soil_moisture"][0, :2, :2] = [[0.1, 0.2], [np.nan, 0.3]]
    sm["flags"][0, :2, :2] = [[2, 8], [8, 8]]
    write_cogs(write_map(sm, tmp_path / "map.zarr"), tmp_path)
    found = {}
    for name in ("soil_moisture", "flags"):
        with rasterio.open(path_of(tmp_path, 0, name), OVERVIEW_LEVEL=0) as src:
            assert src.shape == (300, 300)
            found[name] = src.read(1)[0, 0]
    assert found == {"soil_moisture": 2000, "flags": 8}


def test_tags_say_when_and_by_what(cogs):
    with rasterio.open(path_of(cogs, 1, "flags")) as src:
        tags, band = src.tags(), src.tags(1)
    assert tags["datetime"] == "2024-01-17T05:41:07Z"
    assert tags["TIFFTAG_DATETIME"] == "2024:01:17 05:41:07"
    assert tags["platform"] == "sentinel-1b"
    assert tags["relative_orbit"] == "37"
    assert tags["smgrid_ensemble"] == DIGEST
    assert tags["TIFFTAG_SOFTWARE"] == f"smgrid {smgrid.__version__}"
    assert band["flag_masks"] == "1 2 4 8"
    assert band["flag_meanings"].split()[0] == "input_missing"
    assert band["long_name"] == "Quality flags of soil moisture"


def test_a_second_export_writes_only_what_is_missing(store, tmp_path):
    write_cogs(store, tmp_path, variables=["soil_moisture"])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    events = []
    report = write_cogs(store, tmp_path, progress=events.append)
    assert set(report.kept) == set(before)
    assert len(report.written) == 6
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [(e.done, e.total) for e in events] == [(i, 9) for i in range(3, 10)]


def test_the_same_map_gives_the_same_bytes(store, cogs, tmp_path):
    write_cogs(store, tmp_path, variables=["soil_moisture"], dates=("2024-01-05", "2024-01-05"))
    assert path_of(tmp_path, 0, "soil_moisture").read_bytes() == (
        path_of(cogs, 0, "soil_moisture").read_bytes()
    )


def test_files_of_another_map_are_not_replaced(cogs, tmp_path):
    other = write_map(make_map(seed=1), tmp_path / "other.zarr")
    before = {path: path.read_bytes() for path in cogs.iterdir()}
    with pytest.raises(StoreError, match="the export of something else"):
        write_cogs(other, cogs)
    assert {path: path.read_bytes() for path in cogs.iterdir()} == before


@pytest.mark.parametrize("before", [[0, 1], [1, 2]])
def test_more_dates_in_the_store_leave_files_as_they_are(tmp_path, before):
    """What `update` is for: a catalog of files grows, nothing in it changes."""
    sm = make_map((40, 50))
    write_cogs(write_map(sm.isel(time=before), tmp_path / "two.zarr"), tmp_path / "cogs")
    report = write_cogs(write_map(sm, tmp_path / "three.zarr"), tmp_path / "cogs")
    assert (len(report.kept), len(report.written)) == (6, 3)


def test_no_more_than_a_shard_is_read_at_once(store, tmp_path, monkeypatch):
    read, sizes = StoredVariable.read, []

    def watched(self, step, window):
        values = read(self, step, window)
        sizes.append(values.size)
        return values

    monkeypatch.setattr(StoredVariable, "read", watched)
    write_cogs(store, tmp_path, variables=["flags"], dates=("2024-01-05", "2024-01-05"))
    assert max(sizes) == 256 * 256
    assert sum(sizes) == 530 * 710


def test_one_grid_of_a_cube(tmp_path):
    cube = make_cube(chunks=None)
    write_cube(cube, tmp_path / "cube.zarr")
    names = ["elevation", "vv"]
    report = write_cogs(tmp_path / "cube.zarr", tmp_path, group="base", variables=names)
    assert [p.name for p in report.written] == [
        "sm_elevation.tif",
        *(f"sm_{t}_vv.tif" for t in ("20210302T053000Z", "20210302T172000Z", "20210314T053000Z")),
    ]
    opened = smgrid.open_cube(tmp_path / "cube.zarr")["base"]
    with rasterio.open(tmp_path / "sm_20210302T172000Z_vv.tif") as src:
        assert src.dtypes == ("float32",)
        assert np.isnan(src.nodata)
        np.testing.assert_array_equal(src.read(1), opened["vv"][1].values)
    with rasterio.open(tmp_path / "sm_elevation.tif") as src:
        np.testing.assert_array_equal(src.read(1), opened["elevation"].values)
