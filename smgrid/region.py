"""The region that a user gives, as a box or an outline, checked and expressed in a CRS.

Ground floor of `smgrid.grid`: everything here is about telling a mistaken region from a good one.
"""

import math
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import shapely
from odc.geo.crs import CRS

from smgrid.errors import GridError

BBox = tuple[float, float, float, float]

_LONLAT = "EPSG:4326"
_UTM_NORTH, _UTM_SOUTH = 84.0, -80.0  # limits of UTM [degrees of latitude]
_UTM_SPAN = 12.0  # 6 degrees off its central meridian UTM is 0.5 % off in scale


def read_region(bbox: BBox | None, outline: str | Path | None) -> tuple[Any, str]:
    """Return the region as a ``geopandas.GeoSeries`` with a CRS, and its name for messages.

    Raises
    ------
    GridError
        Neither or both are given, the box is not one, or the file is not an outline with a CRS.
    """
    if (bbox is None) == (outline is None):
        raise GridError("give either bbox or outline, and not both")
    if bbox is not None:
        corners = shapely.box(*_check_bbox(bbox))
        return geopandas.GeoSeries([corners], crs=_LONLAT), f"bbox {bbox}"
    name = f"outline {str(outline)!r}"
    try:
        region = geopandas.read_file(outline).geometry
    except (RuntimeError, OSError, AttributeError) as error:
        raise GridError(
            f"{name}: not a readable GeoJSON, GeoPackage or shapefile: {error}"
        ) from error
    region = region[~(region.is_empty | region.isna())]
    if region.crs is None:
        raise GridError(
            f"{name}: the file does not name its CRS; add it (for a shapefile the .prj file), "
            "for instance with geopandas: gdf.set_crs(...).to_file(...)"
        )
    if region.empty or not shapely.area(region.to_numpy()).sum() > 0:
        raise GridError(f"{name}: expected a polygon with an area, found none")
    return region, name


def _check_bbox(bbox: BBox) -> BBox:
    try:
        west, south, east, north = (float(value) for value in bbox)
    except (TypeError, ValueError) as error:
        raise GridError(
            f"bbox {bbox!r}: expected four numbers, west, south, east, north"
        ) from error
    order = "expected (west, south, east, north) in degrees, longitudes within -180..180"
    if not all(math.isfinite(value) for value in (west, south, east, north)):
        raise GridError(f"bbox {bbox}: expected finite numbers")
    if max(abs(south), abs(north)) > 90:
        raise GridError(
            f"bbox {bbox}: latitude outside -90..90; {order}; are the axes swapped or in metres?"
        )
    if max(abs(west), abs(east)) > 180:
        raise GridError(f"bbox {bbox}: longitude outside -180..180; {order}")
    if west > east:
        raise GridError(
            f"bbox {bbox}: west is east of east; {order}. A region across the antimeridian has to "
            "be given as two boxes, one on either side"
        )
    if south > north:
        raise GridError(f"bbox {bbox}: south is north of north; {order}")
    if west == east or south == north:
        raise GridError(f"bbox {bbox}: the box has no area; {order}")
    return west, south, east, north


def lonlat_bounds(region: Any, name: str) -> BBox:
    """West, south, east and north [degree] of a region, or a `GridError` if off the globe."""
    bounds = project_bounds(region, CRS(_LONLAT), name)
    beyond = np.abs(bounds) - (180, 90, 180, 90)
    if beyond.max() > 1e-6:  # degrees that a transformation may be off
        raise GridError(f"{name}: coordinates {bounds} are not on the globe; is its CRS right?")
    return bounds


def project_bounds(region: Any, crs: CRS, name: str) -> BBox:
    """Bounds in `crs`, with edges followed closely enough for their curvature not to matter."""
    west, south, east, north = region.total_bounds
    fine = region.segmentize(max(east - west, north - south) / 1000)
    bounds = fine.to_crs(crs.proj).total_bounds
    if not np.isfinite(bounds).all():
        raise GridError(
            f"{name}: cannot be expressed in {crs}; choose a crs that covers the region"
        )
    x0, y0, x1, y1 = (float(value) for value in bounds)
    return x0, y0, x1, y1


def choose_crs(crs: Any, lonlat: BBox, name: str) -> CRS:
    """CRS of a grid: "utm" (the zone of the centre of `lonlat`) or what ``odc.geo.CRS`` takes."""
    if isinstance(crs, str) and crs.lower() == "utm":
        return _utm_crs(lonlat, name)
    try:
        chosen = CRS(crs)
    except Exception as error:  # odc-geo and pyproj raise by the type of the input
        raise GridError(f'crs: expected "utm" or a CRS, found {crs!r}: {error}') from error
    if not (chosen.projected or chosen.geographic):
        raise GridError(f"crs: expected a projected or geographic CRS, found {crs!r}")
    return chosen


def _utm_crs(lonlat: BBox, name: str) -> CRS:
    west, south, east, north = lonlat
    if north > _UTM_NORTH or south < _UTM_SOUTH:
        polar = "EPSG:6931 or EPSG:3413" if north > _UTM_NORTH else "EPSG:6932 or EPSG:3031"
        raise GridError(
            f"{name}: UTM ends at 84 degrees north and 80 degrees south; give a polar CRS ({polar})"
        )
    if east - west > _UTM_SPAN:
        raise GridError(
            f"{name}: {east - west:.1f} degrees wide, UTM maps no more than {_UTM_SPAN:.0f}; give "
            "a crs that suits the region, or split it, as well where it crosses the antimeridian"
        )
    zone = min(60, int(((west + east) / 2 + 180) // 6) + 1)
    return CRS(f"EPSG:{(32600 if north + south >= 0 else 32700) + zone}")
