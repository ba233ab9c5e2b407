"""Target grids: constructors, exactly nested coarser grids, tiles and EASE-Grid 2.0.

A grid is an ``odc.geo.geobox.GeoBox``, north up. Everything that another module needs to know about
geometry is derived here from that one immutable value.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from affine import Affine
from numpy.typing import ArrayLike, NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from pyproj import Transformer

from smgrid.ease import (
    EASE_CRS,
    EASE_GRIDS,
    EaseConvention,
    ease_features,
    ease_lattice,
    ease_position,
)
from smgrid.errors import GridError
from smgrid.region import BBox, choose_crs, lonlat_bounds, project_bounds, read_region

__all__ = [
    "BBox",
    "EaseConvention",
    "NestedOffset",
    "Tile",
    "coarsen_grid",
    "ease_features",
    "ease_features_on",
    "ease_grid",
    "ease_position",
    "grid_coords",
    "iter_tiles",
    "make_grid",
    "nested_offset",
    "nesting_factor",
    "pad_grid",
    "pixel_centres",
    "require_north_up",
    "transform_points",
]

_MAX_PIXELS = 1e11  # twice the whole globe at 100 m
_SNAP = 1e-6  # fraction of a pixel that is floating-point noise
_EARTH_RADIUS = 6_378_137.0  # WGS 84 semi-major axis [m]


@dataclass(frozen=True)
class NestedOffset:
    """Where a grid lies in a coarser one: pixel ``i`` is in cell ``(i + offset) // factor``."""

    factor: int  #: base pixels along the edge of one coarse cell
    y: int  #: rows of base pixels between the upper edges of the two grids
    x: int  #: columns of base pixels between their left edges

    def rows(self, index: ArrayLike) -> NDArray[np.int64]:
        """Coarse rows of base rows."""
        return (np.asarray(index, dtype=np.int64) + self.y) // self.factor

    def columns(self, index: ArrayLike) -> NDArray[np.int64]:
        """Coarse columns of base columns."""
        return (np.asarray(index, dtype=np.int64) + self.x) // self.factor


@dataclass(frozen=True)
class Tile:
    """One tile of a grid."""

    index: tuple[int, int]  #: (row, column) of the tile
    y: slice  #: rows of the grid
    x: slice  #: columns of the grid
    geobox: GeoBox  #: the grid of the tile


def make_grid(
    bbox: BBox | None = None,
    *,
    outline: str | Path | None = None,
    resolution: float,
    crs: Any = "utm",
) -> GeoBox:
    """Grid of square pixels that covers a region, its edges on multiples of the resolution.

    Parameters
    ----------
    bbox : tuple of float, optional
        (west, south, east, north) [degree].
    outline : str or Path, optional
        GeoJSON, GeoPackage or shapefile of the region, in any CRS; instead of `bbox`.
    resolution : float
        Edge of a pixel in the units of `crs` (metres for UTM).
    crs : optional
        "utm" (WGS 84 / UTM, zone of the region's centre) or anything that ``odc.geo.CRS`` takes.

    Returns
    -------
    GeoBox
        North up; the edges are snapped outwards, so the whole region lies inside.

    Raises
    ------
    GridError
        The region, the resolution or the CRS cannot make a grid; the message says what to do.
    """
    if not (math.isfinite(resolution) and resolution > 0):
        raise GridError(f"resolution: expected a positive number, found {resolution!r}")
    region, name = read_region(bbox, outline)
    target = choose_crs(crs, lonlat_bounds(region, name), name)
    bounds = project_bounds(region, target, name)
    _check_size(bounds, resolution, target, name)
    return GeoBox.from_bbox(bounds, target, resolution=resolution, anchor="edge", tol=_SNAP)


def ease_grid(km: int, bbox: BBox | None = None) -> GeoBox:
    """EASE-Grid 2.0, cylindrical and global, or the window of its cells that covers a box.

    Parameters
    ----------
    km : {36, 25, 9, 3, 1}
        Nominal cell size; the exact ones are 36032.220840584, 25025.26, 9008.055210146,
        3002.6850700487 and 1000.89502334956 m (Brodzik et al. 2014).
    bbox : tuple of float, optional
        (west, south, east, north) [degree].

    Raises
    ------
    GridError
        An unknown cell size, or a box that the grid does not cover.
    """
    if km not in EASE_GRIDS:
        raise GridError(f"km: expected one of {EASE_GRIDS}, found {km!r}")
    rows, columns, cell = ease_lattice(km)
    top, left, bottom, right = 0, 0, rows, columns
    if bbox is not None:
        region, name = read_region(bbox, None)
        lonlat_bounds(region, name)
        x0, y0, x1, y1 = project_bounds(region, CRS(EASE_CRS), name)
        left, right = _enclosing(x0 / cell + columns / 2, x1 / cell + columns / 2)
        top, bottom = _enclosing(rows / 2 - y1 / cell, rows / 2 - y0 / cell)
        if top < 0 or left < 0 or bottom > rows or right > columns:
            raise GridError(
                f"bbox {tuple(bbox)}: the global EASE-Grid 2.0 of {km} km ends at about 85 degrees "
                "north and south; give a box within it"
            )
    affine = Affine(cell, 0, (left - columns / 2) * cell, 0, -cell, (rows / 2 - top) * cell)
    return GeoBox((bottom - top, right - left), affine, EASE_CRS)


def coarsen_grid(grid: GeoBox, factor: int) -> GeoBox:
    """Coarser grid whose cells hold exactly `factor` x `factor` pixels of `grid`.

    Cells lie on the absolute lattice of multiples of `factor` pixels in the CRS, so neighbouring
    regions share them; the box is extended outwards to that lattice. A grid that does not itself
    start on a multiple of its resolution keeps its remainder.

    Raises
    ------
    GridError
        `factor` is not a positive integer, or `grid` is not north up.
    """
    if factor != int(factor) or factor < 1:
        raise GridError(f"factor: expected a positive integer, found {factor!r}")
    require_north_up(grid)
    width, height = grid.affine.a, -grid.affine.e
    left, rest_x = _lattice_index(grid.affine.c, width)
    top, rest_y = _lattice_index(-grid.affine.f, height)
    rows, columns = grid.shape
    x0, x1 = left // factor, -(-(left + columns) // factor)
    y0, y1 = top // factor, -(-(top + rows) // factor)
    # An integer times the resolution, as in `make_grid`: equal edges are equal to the last bit.
    edge_x, edge_y = rest_x + x0 * factor * width, 0.0 - rest_y - y0 * factor * height
    affine = Affine(factor * width, 0, edge_x, 0, -factor * height, edge_y)
    return GeoBox((y1 - y0, x1 - x0), affine, grid.crs)


def nested_offset(base: GeoBox, coarse: GeoBox) -> NestedOffset:
    """Integer relation of a grid to a coarser one that covers it with whole cells.

    Raises
    ------
    GridError
        The CRS differ, an edge of `coarse` is not an edge of a base pixel, or `base` reaches out.
    """
    require_north_up(base)
    require_north_up(coarse)
    if base.crs != coarse.crs:
        raise GridError(
            f"nested grids share one CRS, found {crs_name(base.crs)} and {crs_name(coarse.crs)}"
        )
    factor = round(coarse.resolution.x / base.resolution.x)
    x = (base.boundingbox.left - coarse.boundingbox.left) / base.resolution.x
    y = (base.boundingbox.top - coarse.boundingbox.top) / base.resolution.y
    offset = NestedOffset(factor, round(y), round(x))
    mismatch = max(
        abs(x - offset.x),
        abs(y - offset.y),
        abs(coarse.resolution.x / base.resolution.x - factor) * coarse.shape.x,
        abs(coarse.resolution.y / base.resolution.y - factor) * coarse.shape.y,
    )
    inside = (
        offset.y >= 0
        and offset.x >= 0
        and offset.y + base.shape.y <= coarse.shape.y * factor
        and offset.x + base.shape.x <= coarse.shape.x * factor
    )
    if mismatch > 1e-3 or not inside:
        raise GridError(
            f"{_describe(base)} is not nested in {_describe(coarse)}: expected cells of a whole "
            "number of pixels with shared edges that cover all of it; make it with coarsen_grid"
        )
    return offset


def nesting_factor(grid: GeoBox, native_resolution: float) -> int:
    """Largest factor by which `grid` may be coarsened without losing native detail, at least 1.

    Parameters
    ----------
    grid : GeoBox
        Pixels of a geographic CRS count with their height, which no latitude shrinks.
    native_resolution : float
        Pixel size of the source [m].
    """
    if not (math.isfinite(native_resolution) and native_resolution > 0):
        raise GridError(
            f"native_resolution: expected a positive number of metres, found {native_resolution!r}"
        )
    crs = require_north_up(grid)
    unit = crs.proj.axis_info[0].unit_conversion_factor  # to metres, or to radians
    metres = -grid.resolution.y * unit * (_EARTH_RADIUS if crs.geographic else 1.0)
    return max(1, math.floor(native_resolution / metres * (1 + 1e-9)))


def pad_grid(grid: GeoBox, pixels: int) -> GeoBox:
    """`grid` with a margin of `pixels` on every side."""
    if pixels != int(pixels) or pixels < 0:
        raise GridError(f"pixels: expected a whole number, 0 or more, found {pixels!r}")
    return grid.pad(int(pixels))


def iter_tiles(grid: GeoBox, size: int) -> Iterator[Tile]:
    """Tiles of `size` x `size` pixels, row by row; the last ones of a row or column are smaller."""
    if size != int(size) or size < 1:
        raise GridError(f"size: expected a positive number of pixels, found {size!r}")
    rows, columns = grid.shape
    for iy, y in enumerate(range(0, rows, size)):
        for ix, x in enumerate(range(0, columns, size)):
            window = slice(y, min(y + size, rows)), slice(x, min(x + size, columns))
            yield Tile((iy, ix), *window, grid[window])


def grid_coords(grid: GeoBox) -> dict[str, xr.DataArray]:
    """Coordinates ``y``, ``x`` (pixel centres) and ``spatial_ref`` of a grid, whatever its CRS."""
    return {str(name): coord for name, coord in xr_coords(grid, always_yx=True).items()}


def pixel_centres(grid: GeoBox, crs: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pixel centres of `grid` in another CRS: x (or longitude) and y (or latitude), each (y, x)."""
    require_north_up(grid)
    y, x = (axis.values for axis in grid.coordinates.values())
    xx, yy = np.meshgrid(x, y)
    return transform_points(xx, yy, grid.crs, crs)


def transform_points(
    x: NDArray[np.float64], y: NDArray[np.float64], crs: Any, to_crs: Any
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates in another CRS, x (or longitude) first; ``inf`` where they do not exist."""
    if CRS(crs) == CRS(to_crs):
        return x, y
    new_x, new_y = _transformer(str(CRS(crs)), str(CRS(to_crs))).transform(x, y)
    return new_x, new_y


def ease_features_on(
    grid: GeoBox, *, km: float, convention: EaseConvention
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """`ease_features` of the pixel centres of a grid, each float32 (y, x)."""
    x, y = pixel_centres(grid, EASE_CRS)
    row, column = ease_position(x, y, km=km, convention=convention)
    fraction, sin, cos = ease_features(row, column, km=km)
    return fraction.astype(np.float32), sin.astype(np.float32), cos.astype(np.float32)


def require_north_up(grid: GeoBox) -> CRS:
    """CRS of a grid; a `GridError` unless it has one, no rotation, and rows that run southwards."""
    if grid.crs is None or not grid.axis_aligned or grid.resolution.y > 0 or grid.resolution.x < 0:
        raise GridError(f"{_describe(grid)}: expected a north-up grid with a CRS")
    return grid.crs


def _check_size(bounds: BBox, resolution: float, crs: CRS, name: str) -> None:
    unit = crs.units[0]
    if crs.geographic and resolution > 10:
        raise GridError(f"resolution {resolution}: in degrees for {crs}, expected at most 10")
    pixels = (bounds[2] - bounds[0]) / resolution * ((bounds[3] - bounds[1]) / resolution)
    if pixels > _MAX_PIXELS:
        raise GridError(
            f"resolution {resolution} {unit}: makes {pixels:.2g} pixels of {name}, expected "
            f"at most {_MAX_PIXELS:.0e}; the resolution is in the units of {crs}"
        )


def _enclosing(low: float, high: float) -> tuple[int, int]:
    return math.floor(low + _SNAP), math.ceil(high - _SNAP)


def _lattice_index(edge: float, step: float) -> tuple[int, float]:
    """Index of the last multiple of `step` at or before `edge`, and the distance to it."""
    index = math.floor(edge / step + _SNAP)
    rest = edge - index * step
    return index, rest if abs(rest) > _SNAP * step else 0.0


def _describe(grid: GeoBox) -> str:
    size = f"{grid.shape.y} x {grid.shape.x} pixels of {grid.resolution.x}"
    return f"grid of {size} in {crs_name(grid.crs)}"


def crs_name(crs: CRS | None) -> str:
    """Name a CRS in a message: by its EPSG code if it has one, never by its whole definition."""
    if crs is None:
        return "no CRS"
    return str(crs.proj.name) if crs.epsg is None else f"EPSG:{crs.epsg}"


@lru_cache(maxsize=128)
def _transformer(crs: str, to_crs: str) -> Transformer:
    return Transformer.from_crs(crs, to_crs, always_xy=True)
