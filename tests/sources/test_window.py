"""Windows of sources under a grid: complete, no larger than needed, empty where nothing meets."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from smgrid.errors import GridError, NoDataError
from smgrid.grid import grid_coords, make_grid, pixel_centres
from smgrid.sources.window import crop, find_window, lattice_window, pixel_metres, with_geobox

SINUSOIDAL = "+proj=sinu +R=6371007.181 +units=m"
WORLD = GeoBox.from_bbox((-180, -90, 180, 90), "EPSG:4326", resolution=0.1)


@settings(max_examples=30, deadline=None)
@given(
    lon=st.floats(-170, 170),
    lat=st.floats(-70, 70),
    size=st.floats(0.01, 1.5),
    crs=st.sampled_from(["utm", SINUSOIDAL, "EPSG:6933"]),
)
def test_window_covers_every_pixel_centre_and_little_more(lon, lat, size, crs):
    grid = make_grid(bbox=(lon, lat, lon + size, lat + size), resolution=1000, crs=crs)
    rows, cols = find_window(WORLD, grid, padding=0)
    x, y = pixel_centres(grid, "EPSG:4326")
    row, col = np.floor((90 - y) / 0.1), np.floor((x + 180) / 0.1)
    assert rows.start <= row.min() <= rows.start + 1
    assert row.max() < rows.stop <= row.max() + 2
    assert cols.start <= col.min() <= cols.start + 1
    assert col.max() < cols.stop <= col.max() + 2


def test_window_ends_with_the_source_and_lattice_does_not():
    source = GeoBox.from_bbox((0, 0, 1000, 1000), "EPSG:32631", resolution=100)
    grid = GeoBox.from_bbox((700, 700, 1300, 1300), "EPSG:32631", resolution=50)
    assert find_window(source, grid, padding=1) == (slice(0, 4), slice(6, 10))
    window = lattice_window(source, grid, padding=1)
    assert window.boundingbox.bbox == (600, 600, 1400, 1400)
    assert window.resolution == source.resolution


def test_no_overlap_is_empty_and_said():
    source = GeoBox.from_bbox((2, 50, 3, 51), "EPSG:4326", resolution=0.1)
    da = xr.DataArray(np.zeros(source.shape), dims=("y", "x"), coords=grid_coords(source))
    grid = make_grid(bbox=(105.0, 20.0, 105.1, 20.1), resolution=1000)
    assert find_window(source, grid) == (slice(10, 10), slice(10, 10))
    with pytest.raises(NoDataError, match=r"stack covers 2.000..3.000 E.*they do not overlap"):
        crop(da, grid, source="stack")


def test_crop_keeps_values_in_place():
    source = GeoBox.from_bbox((2, 50, 4, 52), "EPSG:4326", resolution=0.1)
    values = np.arange(source.shape.y * source.shape.x, dtype="float32").reshape(source.shape)
    da = xr.DataArray(values, dims=("y", "x"), coords=grid_coords(source))
    cut = crop(da, make_grid(bbox=(2.95, 50.95, 3.05, 51.05), resolution=500), source="s")
    assert cut.shape == (6, 6)
    same = da.sel(y=cut["y"], x=cut["x"], method="nearest")
    np.testing.assert_array_equal(cut.values, same.values)
    xr.testing.assert_allclose(cut, same, rtol=0, atol=1e-9)
    assert cut.odc.geobox.crs == source.crs


def test_with_geobox_replaces_coordinates_and_crs():
    geobox = GeoBox.from_bbox((0, 0, 200, 100), "EPSG:32631", resolution=100)
    da = xr.DataArray(
        np.zeros((1, 1, 2)),
        dims=("time", "lat", "lon"),
        coords={"lat": [5.0], "lon": [1.0, 2.0], "time": [0], "spatial_ref": 0},
        attrs={"grid_mapping": "crs", "units": "1"},
    )
    placed = with_geobox(da, geobox)
    assert placed.dims == ("time", "y", "x")
    assert placed.odc.geobox == geobox
    assert placed.attrs == {"units": "1"}


@pytest.mark.parametrize(
    ("crs", "resolution", "metres"),
    [("EPSG:32631", 30, 30.0), ("EPSG:4326", 0.01, 1113.1949), ("EPSG:2263", 100, 30.48006096)],
)
def test_pixel_metres(crs, resolution, metres):
    grid = GeoBox((2, 2), GeoBox.from_bbox((0, 0, 1, 1), crs, resolution=resolution).affine, crs)
    assert pixel_metres(grid) == pytest.approx(metres, rel=1e-6)


def test_grids_without_a_place_are_refused():
    nowhere = GeoBox((2, 2), WORLD.affine, None)
    with pytest.raises(GridError, match="without a CRS"):
        find_window(WORLD, nowhere)
    pole = GeoBox.from_bbox((0, 95, 1, 96), "EPSG:4326", resolution=0.5)
    with pytest.raises(GridError, match="no part of the grid"):
        lattice_window(GeoBox.from_bbox((0, 0, 9, 9), "EPSG:32631", resolution=3), pole)
