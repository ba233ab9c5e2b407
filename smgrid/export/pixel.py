"""What holds at one place of a map: its pixel, the stations in it, the names of its flags."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from smgrid.errors import ConfigError
from smgrid.grid import require_north_up, transform_points

WGS84 = "EPSG:4326"


@dataclass(frozen=True)
class Pixel:
    """The pixel of a grid that holds a point."""

    row: int
    """Counted from the north."""
    column: int
    """Counted from the west."""
    x: float
    """Of its centre, in the CRS of the grid."""
    y: float
    """Of its centre, in the CRS of the grid."""
    longitude: float
    """Of its centre, in degrees (WGS 84)."""
    latitude: float
    """Of its centre, in degrees (WGS 84)."""
    crs: str

    def __str__(self) -> str:
        return (
            f"pixel centre {self.x:.10g}, {self.y:.10g} in {self.crs} "
            f"(latitude {self.latitude:.5f}°, longitude {self.longitude:.5f}°)"
        )


def find_pixel(
    grid: GeoBox,
    *,
    x: float | None = None,
    y: float | None = None,
    lon: float | None = None,
    lat: float | None = None,
) -> Pixel:
    """Return the pixel that holds a point; points on the outer edge belong to the map.

    Parameters
    ----------
    grid
        North up, with a CRS.
    x, y
        Point in the CRS of the grid.
    lon, lat
        Or in degrees (WGS 84).

    Raises
    ------
    ConfigError
        Not exactly one of both pairs, or a point outside the grid.
    GridError
        The grid has no CRS or is not north up.
    """
    crs = require_north_up(grid)
    if x is not None and y is not None and lon is None and lat is None:
        px, py, said = x, y, f"x={x:.10g}, y={y:.10g}"
    elif lon is not None and lat is not None and x is None and y is None:
        px, py = _transform(lon, lat, WGS84, crs)
        px = float(_nearest_turn(px, grid))
        said = f"lon={lon:.6g}, lat={lat:.6g}"
    else:
        msg = f"point: expected either x and y or lon and lat, got {x=}, {y=}, {lon=}, {lat=}"
        raise ConfigError(msg)
    box, step = grid.boundingbox, grid.resolution
    if not (box.left <= px <= box.right and box.bottom <= py <= box.top):
        msg = f"point {said} lies outside the map, which reaches {_extent(grid)}; choose one in it"
        raise ConfigError(msg)
    row = min(int((py - box.top) / step.y), grid.shape.y - 1)
    column = min(int((px - box.left) / step.x), grid.shape.x - 1)
    centre = box.left + (column + 0.5) * step.x, box.top + (row + 0.5) * step.y
    return Pixel(row, column, *centre, *_transform(*centre, crs, WGS84), crs=crs_name(crs))


def lines_at(reference: xr.DataArray, grid: GeoBox, pixel: Pixel) -> dict[str, xr.DataArray]:
    """Return the series of a reference that belong to a pixel, by name.

    Parameters
    ----------
    reference
        (time,) series, taken as it is, or (station, time) with ``longitude`` and ``latitude``
        [degree], of which the stations in the pixel are taken.
    grid
        Of the pixel.
    pixel
        As of `find_pixel`.

    Raises
    ------
    ConfigError
        Other dims, or no station in the pixel.
    """
    if reference.dims == ("time",):
        return {str(reference.name or "reference"): reference}
    x, y = place_stations(reference, grid)
    names = [str(name) for name in reference["station"].values]
    dx, dy = x - pixel.x, y - pixel.y
    half = grid.resolution.x / 2, -grid.resolution.y / 2
    inside = np.flatnonzero((np.abs(dx) <= half[0]) & (np.abs(dy) <= half[1]))
    if not inside.size:
        nearest = int(np.hypot(dx, dy).argmin())
        place = {c: reference[c].values[nearest] for c in ("longitude", "latitude")}
        msg = (
            f"reference: none of its {len(names)} stations lies in the {pixel}; the nearest is "
            f"{names[nearest]} at lon={place['longitude']:.5f}, lat={place['latitude']:.5f}: "
            "draw the pixel that holds it, or give the series of one station"
        )
        raise ConfigError(msg)
    return {names[i]: reference.transpose("station", "time")[i] for i in inside}


def place_stations(stations: xr.DataArray, grid: GeoBox) -> tuple[Any, Any]:
    """Return x and y of stations in the CRS of a grid, float64 (station,).

    Raises
    ------
    ConfigError
        No dims (station, time) or no coordinates ``longitude`` and ``latitude``.
    """
    if {*stations.dims} != {"station", "time"} or not {"longitude", "latitude"} <= {
        *stations.coords
    }:
        msg = (
            "reference: expected (time,), or (station, time) with coordinates longitude and "
            f"latitude, got {stations.dims} with {', '.join(map(str, stations.coords))}"
        )
        raise ConfigError(msg)
    lon, lat = (stations[name].values.astype(np.float64) for name in ("longitude", "latitude"))
    x, y = transform_points(lon, lat, WGS84, require_north_up(grid))
    return _nearest_turn(x, grid), y


def _nearest_turn(x: Any, grid: GeoBox) -> Any:
    """Return longitudes in the turn of the globe in which they are nearest to a geographic grid.

    A grid that crosses the antimeridian goes on beyond 180, or begins below -180. Coordinates of
    a projection stay as they are.
    """
    crs, box = require_north_up(grid), grid.boundingbox
    if not crs.geographic:
        return x
    turn = 2 * np.pi / crs.proj.axis_info[0].unit_conversion_factor
    return x - turn * np.round((x - (box.left + box.right) / 2) / turn)


def flag_bits(attrs: Mapping[str, Any]) -> dict[str, int]:
    """Return the bit of every flag by its name in words, from the CF attributes of a bit mask."""
    meanings = str(attrs.get("flag_meanings", "")).split()
    masks = np.atleast_1d(attrs.get("flag_masks", ()))
    return {name.replace("_", " "): int(mask) for name, mask in zip(meanings, masks, strict=True)}


def crs_name(crs: CRS) -> str:
    """Return ``EPSG:32631`` or, without such a code, what the CRS calls itself."""
    return str(crs.proj.name) if crs.epsg is None else f"EPSG:{crs.epsg}"


def _transform(x: float, y: float, crs: Any, to_crs: Any) -> tuple[float, float]:
    (new_x,), (new_y,) = transform_points(np.array([x]), np.array([y]), crs, to_crs)
    return float(new_x), float(new_y)


def _extent(grid: GeoBox) -> str:
    box, name = grid.boundingbox, crs_name(require_north_up(grid))
    west, south, east, north = grid.geographic_extent.boundingbox.bbox
    return (
        f"from x={box.left:.10g} to {box.right:.10g} and from y={box.bottom:.10g} to "
        f"{box.top:.10g} in {name} (about lon={west:.5f} to {east:.5f}, "
        f"lat={south:.5f} to {north:.5f})"
    )
