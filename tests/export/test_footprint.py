import numpy as np
import pyproj
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from shapely.geometry import Point, shape

from smgrid import make_grid
from smgrid.export.footprint import lonlat_extent, lonlat_geometry
from smgrid.grid import ease_grid


def grid(crs, left, top, *, resolution=1000, shape=(60, 60)):
    return GeoBox(shape, Affine(resolution, 0, left, 0, -resolution, top), crs)


GRIDS = {
    "west of the antimeridian": make_grid((178, 66, 179, 66.5), resolution=1000),
    "up to it, and snapped beyond": make_grid((179.6, -17.2, 180, -16.6), resolution=1000),
    "from it, and snapped beyond": make_grid((-180, -17.2, -179.7, -16.6), resolution=1000),
    "across in a zone": grid("EPSG:32660", 500_000, 7_000_000, shape=(200, 400)),
    "across in degrees": grid("EPSG:4326", 179, -16, resolution=0.01, shape=(100, 200)),
    "round the north pole": grid("EPSG:3413", -500_000, 900_000, resolution=20_000),
    "round the south pole": grid("EPSG:3031", -500_000, 900_000, resolution=20_000),
    "the globe": grid("EPSG:4326", -180, 90, resolution=1, shape=(180, 360)),
    "from Greenwich round the globe": grid("EPSG:4326", 0, 90, resolution=1, shape=(180, 360)),
    "down under": grid("EPSG:28355", 500_000, 5_800_000),
}

every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)


def points(grid, low, high):
    """Random places as pyproj has them; 0 and 1 are the edges of the grid."""
    rng = np.random.default_rng(0)
    right, down = (rng.uniform(low, high, 200) * size for size in grid.shape[::-1])
    back = pyproj.Transformer.from_crs(grid.crs.proj, 4326, always_xy=True)
    at = grid.affine
    lon, lat = back.transform(at.c + right * at.a, at.f + down * at.e)
    return (lon + 180) % 360 - 180, lat


@every_grid
def test_the_outline_holds_what_the_grid_does(grid):
    outline = shape(lonlat_geometry(grid))
    assert outline.is_valid
    assert -180 <= outline.bounds[0] < outline.bounds[2] <= 180
    rings = getattr(outline, "geoms", [outline])
    assert all(ring.exterior.is_ccw for ring in rings)
    assert all(outline.contains(Point(at)) for at in zip(*points(grid, 0.02, 0.98), strict=True))


@every_grid
def test_the_extent_is_that_of_the_grid(grid):
    west, south, east, north = lonlat_extent(grid)
    lon, lat = points(grid, 0, 1)
    across = west > east
    inside = (lon >= west) | (lon <= east) if across else (lon >= west) & (lon <= east)
    assert inside.all()
    assert ((lat >= south) & (lat <= north)).all()


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("up to it, and snapped beyond", "MultiPolygon", (179.592, -17.206, -179.996, -16.594)),
        ("across in degrees", "MultiPolygon", (179, -17, -179, -16)),
        ("round the north pole", "Polygon", (-180, 79.503, 180, 90)),
        ("the globe", "Polygon", (-180, -90, 180, 90)),
        ("from Greenwich round the globe", "Polygon", (-180, -90, 180, 90)),
    ],
)
def test_extents_that_are_known(name, kind, expected):
    assert lonlat_geometry(GRIDS[name])["type"] == kind
    np.testing.assert_allclose(lonlat_extent(GRIDS[name]), expected, atol=0.02)


def test_what_only_touches_the_antimeridian_is_not_cut():
    touching = grid("EPSG:4326", 179, 1, resolution=0.1, shape=(10, 10))
    assert lonlat_extent(touching) == (179, 0, 180, 1)
    # Whose edge is beyond it in the twelfth decimal.
    first, last = ease_grid(36, (-180, 0, -170, 10)), ease_grid(36, (170, 0, 180, 10))
    assert (lonlat_extent(first)[0], lonlat_extent(last)[2]) == (-180, 180)
    assert {lonlat_geometry(g)["type"] for g in (touching, first, last)} == {"Polygon"}


def test_what_is_on_the_other_side_is_not_in_the_outline():
    outline = shape(lonlat_geometry(GRIDS["up to it, and snapped beyond"]))
    assert not outline.contains(Point(0, -17))
    assert outline.area < 0.5
