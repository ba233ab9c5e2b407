"""Where a grid lies on the globe, also one across the antimeridian or round a pole."""

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from odc.geo.geobox import GeoBox
from shapely.affinity import translate
from shapely.geometry.polygon import orient

from smgrid.grid import BBox, require_north_up, transform_points

_POINTS = 10  # per edge of a geometry, so that long edges follow the curve they are in degrees
_EXACT = 100  # per edge, for the extent
_DECIMALS = 9  # of a degree: without the noise that would make 180 something beyond


def lonlat_extent(grid: GeoBox) -> BBox:
    """Return west, south, east and north of a grid in degrees (WGS 84).

    West is greater than east across the antimeridian (RFC 7946, section 5.2). All longitudes, and
    the pole, if the grid contains a pole.
    """
    west, south, east, north = map(float, _outline(grid, _EXACT).bounds)
    if east - west >= 360:
        return -180.0, south, 180.0, north
    turns = math.floor((west + 180) / 360) * 360
    west, east = west - turns, east - turns
    return west, south, east if east <= 180 else east - 360, north


def lonlat_geometry(grid: GeoBox) -> dict[str, Any]:
    """Return the outline of a grid as GeoJSON.

    A Polygon, or a MultiPolygon that is cut at the antimeridian (RFC 7946, section 3.1.9).
    """
    whole = _outline(grid, _POINTS)
    globe = shapely.box(-180, -90, 180, 90)
    parts = [translate(whole, 360 * turn).intersection(globe) for turn in (-2, -1, 0, 1, 2)]
    # Not those that only touch the antimeridian; those of a grid round a pole are one.
    found = shapely.union_all([p for p in parts if p.area > 0], grid_size=10.0**-_DECIMALS)
    polygons = [orient(part) for part in shapely.get_parts(found)]
    outline = polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)
    geojson: dict[str, Any] = json.loads(shapely.to_geojson(outline))
    return geojson


def _outline(grid: GeoBox, points: int) -> shapely.Polygon:
    """Return the outline with longitudes that do not jump, so that some may be beyond 180."""
    crs = require_north_up(grid)
    box = grid.boundingbox
    there = np.linspace(0, 1, points, endpoint=False)
    ones = np.ones(points)
    # From the lower left corner, along the lower edge first.
    across = np.concatenate([there, ones, 1 - there, 0 * ones, [0]])
    up = np.concatenate([0 * ones, there, ones, 1 - there, [0]])
    x, y = box.left + across * (box.right - box.left), box.bottom + up * (box.top - box.bottom)
    lon, lat = transform_points(x, y, crs, "EPSG:4326")
    exists = np.isfinite(lon) & np.isfinite(lat)  # a corner may lie beyond the globe
    lon, lat = (np.round(values[exists], _DECIMALS) for values in (lon, lat))
    lon = np.unwrap(lon, period=360)
    ring = np.stack([lon, lat], axis=1)
    if abs(lon[-1] - lon[0]) > 180:  # once round a pole, to which the ring is closed
        ring = np.concatenate([ring, _pole(lon, lat)])
    return shapely.Polygon(ring)


def _pole(lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    pole = np.copysign(90, lat.mean())
    return np.array([[lon[-1], pole], [lon[0], pole]])
