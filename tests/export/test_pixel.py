"""Pixels of grids that cross the antimeridian."""

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from smgrid.errors import ConfigError
from smgrid.export.pixel import find_pixel, lines_at, place_stations


def make_lonlat_grid(left, columns=20):
    """Pixels of 0.1 degrees from `left` eastwards, from 16 degrees south southwards."""
    return GeoBox((10, columns), Affine(0.1, 0, left, 0, -0.1, -16), "EPSG:4326")


@pytest.mark.parametrize("left", [179, -181])
@pytest.mark.parametrize(("lon", "column"), [(179.05, 0), (-180, 10), (180, 10), (-179.65, 13)])
def test_a_longitude_is_found_on_either_side_of_the_antimeridian(left, lon, column):
    pixel = find_pixel(make_lonlat_grid(left), lon=lon, lat=-16.25)
    assert (pixel.row, pixel.column) == (2, column)


def test_the_edges_of_the_globe_are_two():
    grid = make_lonlat_grid(-180, 3600)
    assert find_pixel(grid, lon=-180, lat=-16.5).column == 0
    assert find_pixel(grid, lon=180, lat=-16.5).column == 3599


@pytest.mark.parametrize("lon", [-178.9, 178.9, 0])
def test_other_longitudes_lie_outside(lon):
    with pytest.raises(ConfigError, match="lies outside the map"):
        find_pixel(make_lonlat_grid(179), lon=lon, lat=-16.25)


def test_stations_across_the_antimeridian_lie_in_their_pixels():
    grid = make_lonlat_grid(179)
    coords = {
        "station": ["west", "east", "south"],
        "longitude": ("station", [179.05, -179.65, -179.65]),
        "latitude": ("station", [-16.25, -16.25, -20.0]),
    }
    stations = xr.DataArray(np.zeros((3, 2)), coords, ("station", "time"))
    x, _ = place_stations(stations, grid)
    np.testing.assert_allclose(x, [179.05, 180.35, 180.35])
    assert [*lines_at(stations, grid, find_pixel(grid, lon=-179.65, lat=-16.25))] == ["east"]


def test_the_nearest_station_is_so_across_the_antimeridian_too():
    coords = {
        "station": ["far", "near"],
        "longitude": ("station", [178.0, -179.95]),
        "latitude": ("station", [-16.25, -16.25]),
    }
    stations = xr.DataArray(np.zeros((2, 2)), coords, ("station", "time"))
    grid = make_lonlat_grid(179)
    with pytest.raises(ConfigError, match=r"the nearest is near at lon=-179\.95"):
        lines_at(stations, grid, find_pixel(grid, lon=179.95, lat=-16.25))
    stations["longitude"] = "station", [178.95, 178.0]  # both west of the map
    with pytest.raises(ConfigError, match="the nearest is far"):
        lines_at(stations, grid, find_pixel(grid, lon=179.05, lat=-16.25))
