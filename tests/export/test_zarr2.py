import json

import netCDF4
import numpy as np
import pyproj
import pytest
import rasterio
import xarray as xr
import zarr

from smgrid.cube.store import open_map, write_cube
from smgrid.errors import StoreError
from smgrid.export.zarr2 import write_zarr2
from tests.cubes import make_cube
from tests.export.maps import TIMES, counts

NAMES = ("soil_moisture", "soil_moisture_std", "flags")


@pytest.fixture(scope="module")
def path(store, tmp_path_factory):
    path = tmp_path_factory.mktemp("zarr2") / "sm.zarr"
    assert write_zarr2(store, path).written == (path,)
    assert [p.name for p in path.parent.iterdir()] == ["sm.zarr"]
    return path


@pytest.mark.parametrize("name", NAMES)
def test_gdal_reads_values_and_georeferencing(path, sm, name):
    with rasterio.open(f'ZARR:"{path}":/{name}') as src:
        np.testing.assert_array_equal(src.read(), counts(sm, name))
        assert src.transform == sm.odc.geobox.affine
        assert pyproj.CRS(src.crs.to_wkt()) == pyproj.CRS("EPSG:32631")
        nodata = {"soil_moisture": -32768, "soil_moisture_std": 65535, "flags": None}[name]
        scale = 1.0 if name == "flags" else 1e-4
        assert (src.nodata, src.scales[0]) == (nodata, scale)
        assert src.units[0] == sm[name].attrs["units"]


def test_the_netcdf_library_reads_it(path, sm):
    with netCDF4.Dataset(f"file://{path}#mode=zarr,file") as nc:
        masked = nc["soil_moisture"][:]
        assert (nc["soil_moisture"]._FillValue, nc["soil_moisture_std"]._FillValue) == (
            -32768,
            65535,
        )
        np.testing.assert_allclose(masked.filled(np.nan), sm["soil_moisture"], atol=6e-5)
        nc.set_auto_maskandscale(False)
        np.testing.assert_array_equal(nc["flags"][:], counts(sm, "flags"))
        time = nc["time"]
        found = netCDF4.num2date(time[:], time.units, time.calendar)
        assert [t.strftime("%Y-%m-%dT%H:%M:%S") for t in found] == list(TIMES)
        np.testing.assert_array_equal(nc["y"][:], sm["y"].values)
        assert nc["platform"][:].tolist() == sm["platform"].values.tolist()


def test_xarray_reads_the_map(path, store):
    found, expected = xr.open_zarr(path, decode_coords="all"), open_map(store)
    for name in NAMES:
        np.testing.assert_array_equal(found[name].astype(expected[name].dtype), expected[name])
    assert found["flags"].dtype == np.uint16
    for name in ("time", "platform", "relative_orbit"):
        np.testing.assert_array_equal(found[name], expected[name])
    assert found.odc.geobox == expected.odc.geobox


def test_it_is_format_2_with_consolidated_metadata(path):
    content = json.loads((path / ".zmetadata").read_text())["metadata"]
    assert content["soil_moisture/.zarray"]["zarr_format"] == 2
    assert content["soil_moisture/.zarray"]["chunks"] == [1, 256, 256]
    assert content["soil_moisture/.zattrs"]["_ARRAY_DIMENSIONS"] == ["time", "y", "x"]
    assert content["soil_moisture/.zarray"]["fill_value"] == -32768
    # Beside the grid mapping, for releases of GDAL that do not look at it.
    crs = content["soil_moisture/.zattrs"]["_CRS"]["wkt"]
    assert pyproj.CRS(crs) == pyproj.CRS("EPSG:32631")
    assert content["flags/.zarray"]["fill_value"] is None
    assert not list(path.rglob("zarr.json"))
    # Chunks of fill values are there as well: a reader need not know what their absence means.
    assert len(list((path / "flags").glob("[0-9]*"))) == 3 * 3 * 3


def test_a_chunk_without_any_value_is_written(tmp_path, sm):
    empty = sm.isel(time=[0]).copy(deep=True)
    empty["soil_moisture"][:] = np.nan
    write_cube(empty, tmp_path / "map.zarr")
    write_zarr2(tmp_path / "map.zarr", tmp_path / "v2.zarr")
    chunks = list((tmp_path / "v2.zarr" / "soil_moisture").glob("[0-9]*"))
    assert len(chunks) == 3 * 3


def test_the_same_again_does_nothing_and_other_content_is_refused(store, path, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    assert write_zarr2(store, path).kept == (path,)
    with pytest.raises(StoreError, match="the export of something else"):
        write_zarr2(store, path, variables=["flags"])
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before
    (tmp_path / "mine").mkdir()
    for content in (None, "[]", '{"smgrid_export": 1}'):
        if content is not None:
            (tmp_path / "mine" / ".zattrs").write_text(content)
        with pytest.raises(StoreError, match="mine exists already and is not an export"):
            write_zarr2(store, tmp_path / "mine")


def test_a_grid_of_a_cube(tmp_path):
    write_cube(make_cube(chunks=None), tmp_path / "cube.zarr")
    write_zarr2(tmp_path / "cube.zarr", tmp_path / "v2.zarr", group="base")
    source = zarr.open_group(tmp_path / "cube.zarr", mode="r")["base"]
    with rasterio.open(f'ZARR:"{tmp_path / "v2.zarr"}":/elevation') as src:
        np.testing.assert_array_equal(src.read(1), source["elevation"][:])
        assert np.isnan(src.nodata)
