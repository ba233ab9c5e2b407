"""Bilinear interpolation: exact on planes, faithful on pixel centres, the same for any chunks."""

import dask.array
import numpy as np
import pytest
import xarray as xr
from odc.geo.geobox import GeoBox
from scipy.interpolate import RegularGridInterpolator

from smgrid.grid import grid_coords, make_grid, pixel_centres
from smgrid.sources.bilinear import Sampling, bilinear

SOURCE = GeoBox.from_bbox((2.9, 50.7, 3.3, 51.1), "EPSG:4326", resolution=0.004)
GRID = make_grid(bbox=(3.0, 50.8, 3.15, 50.9), resolution=130)


def raster(values, geobox=SOURCE):
    data = dask.array.from_array(np.asarray(values, "float32"), chunks=17)
    return xr.DataArray(data, dims=("y", "x"), coords=grid_coords(geobox))


def test_agrees_with_scipy_in_another_crs():
    values = np.random.default_rng(0).normal(size=SOURCE.shape).astype("float32")
    found = bilinear(raster(values), GRID).values
    x, y = pixel_centres(GRID, "EPSG:4326")
    lat = 51.1 - 0.004 * (np.arange(100) + 0.5)
    lon = 2.9 + 0.004 * (np.arange(100) + 0.5)
    oracle = RegularGridInterpolator((lat[::-1], lon), values[::-1].astype("float64"))
    np.testing.assert_allclose(found, oracle(np.stack([y, x], axis=-1)), atol=1e-6)


def test_the_same_whatever_the_chunks():
    values = np.random.default_rng(1).normal(size=SOURCE.shape)
    expected = bilinear(raster(values), GRID).values
    for chunks in (7, 40):
        np.testing.assert_array_equal(bilinear(raster(values), GRID, chunks=chunks), expected)


def test_a_centre_on_a_pixel_centre_needs_no_neighbours():
    geobox = GeoBox.from_bbox((0, 0, 500, 500), "EPSG:32631", resolution=100)
    values = np.full((5, 5), np.nan)
    values[2, 2] = 7.0
    found = bilinear(raster(values, geobox), geobox).values
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(("row", "col"), [(1, 2), (2, 1), (3, 3)])
def test_a_missing_pixel_that_takes_part_makes_it_missing(row, col):
    geobox = GeoBox.from_bbox((0, 0, 500, 500), "EPSG:32631", resolution=100)
    values = np.ones((5, 5))
    values[row, col] = np.nan
    between = GeoBox.from_bbox((200, 100, 400, 300), "EPSG:32631", shape=(1, 1), tight=True)
    # Its centre is the common corner of the pixels in rows 2 and 3, columns 2 and 3.
    expected = np.nan if row in (2, 3) and col in (2, 3) else 1.0
    np.testing.assert_array_equal(bilinear(raster(values, geobox), between), [[expected]])


def test_outside_is_missing():
    geobox = GeoBox.from_bbox((0, 0, 300, 300), "EPSG:32631", resolution=100)
    wide = GeoBox.from_bbox((-200, -200, 500, 500), "EPSG:32631", resolution=100)
    found = bilinear(raster(np.ones((3, 3)), geobox), wide, chunks=2).values
    assert np.isnan(found[:2]).all()
    np.testing.assert_array_equal(found[2:5, 2:5], 1)


def test_sampling_takes_no_more_than_its_window():
    taken = Sampling(SOURCE, GRID, (slice(0, 10), slice(0, 10))).taken
    assert taken[0].stop - taken[0].start < 12
    assert taken[1].stop - taken[1].start < 12
