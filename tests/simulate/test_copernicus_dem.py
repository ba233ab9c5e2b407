import json

import numpy as np
import pytest
import rasterio

from smgrid.simulate.copernicus_dem import tile_name, tile_window, write_dem


@pytest.fixture(scope="module")
def tiles(land, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dem")
    items = write_dem(folder, land)
    return [(item, folder / item["id"] / item["assets"]["data"]["href"]) for item in items]


def test_the_hill_stands_where_it_is(tiles, offset_of_hill):
    ((_, path),) = tiles
    with rasterio.open(path) as file:
        east, north = offset_of_hill(file.read(1), file.transform, file.crs.to_wkt())
        # Half of a pixel would be 12 m and 15 m.
        assert abs(east) < 1.5
        assert abs(north) < 1.5


def test_values_are_those_of_the_surface(tiles, land):
    ((_, path),) = tiles
    with rasterio.open(path) as file:
        values = file.read(1)
        assert file.dtypes == ("float32",)
        assert file.nodata == -32767
        assert file.crs.to_epsg() == 4326
        assert file.tags()["AREA_OR_POINT"] == "Point"
    assert abs(values.max() - land.terrain.fine.max()) < 0.5
    assert abs(np.median(values) - 500) < 5


def test_pixels_are_centred_on_whole_arc_seconds(tiles):
    ((_, path),) = tiles
    with rasterio.open(path) as file:
        x, y = file.xy(0, 0)
        assert file.res == pytest.approx((1 / 3600, 1 / 3600))
    assert x * 3600 == pytest.approx(round(x * 3600), abs=1e-4)
    assert y * 3600 == pytest.approx(round(y * 3600), abs=1e-4)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ((-6, 41), "Copernicus_DSM_COG_10_N41_00_W006_00_DEM"),
        ((106, 20), "Copernicus_DSM_COG_10_N20_00_E106_00_DEM"),
        ((146, -35), "Copernicus_DSM_COG_10_S35_00_E146_00_DEM"),
        ((0, 0), "Copernicus_DSM_COG_10_N00_00_E000_00_DEM"),
    ],
)
def test_tiles_are_named_by_their_south_western_corner(place, name):
    assert tile_name(*place) == name


@pytest.mark.parametrize(
    ("latitude", "seconds"),
    [(0, 1), (49, 1), (50, 1.5), (60, 2), (70, 3), (83, 5), (-1, 1), (-51, 1.5), (-90, 10)],
)
def test_pixels_widen_towards_the_poles(latitude, seconds):
    bounds = (10.2, latitude + 0.2, 10.3, latitude + 0.3)
    grid = tile_window(10, latitude, bounds)
    assert grid.resolution.x * 3600 == pytest.approx(seconds)
    assert grid.resolution.y * 3600 == pytest.approx(-1)


def test_a_whole_tile_is_the_recorded_one(shared):
    """Lattice of a real item: its corner and pixel, at the South Pole's edge."""
    folder = shared / "data/real/stac_responses/planetary_computer"
    item = json.loads((folder / "items_cop-dem-glo-30.json").read_text())["features"][0]
    grid = tile_window(-180, -90, (-180, -90, -179, -89))
    assert list(grid.shape) == item["properties"]["proj:shape"]
    assert list(grid.affine)[:6] == pytest.approx(item["properties"]["proj:transform"], abs=1e-9)


def test_a_region_on_a_tile_edge_makes_seamless_tiles():
    bounds = (-0.05, 41.2, 0.05, 41.3)
    west, east = tile_window(-1, 41, bounds), tile_window(0, 41, bounds)
    assert west.boundingbox.right == pytest.approx(east.boundingbox.left, abs=1e-9)


def test_items_have_the_properties_of_recorded_ones(tiles, shared):
    folder = shared / "data/real/stac_responses/planetary_computer"
    real = json.loads((folder / "items_cop-dem-glo-30.json").read_text())["features"][0]
    item = tiles[0][0]
    assert {k: type(v) for k, v in item["properties"].items()} == {
        k: type(v) for k, v in real["properties"].items()
    }
    assert item["stac_version"] == real["stac_version"]
    assert item["properties"]["platform"] == real["properties"]["platform"]
    assert set(item["assets"]["data"]) == set(real["assets"]["data"])
    title = item["assets"]["data"]["title"]
    assert title == item["id"].removeprefix("Copernicus_DSM_COG_10_").removesuffix("_DEM")
