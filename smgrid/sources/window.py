"""The part of a source that a target grid needs, so that nothing else is ever read."""

import math

import numpy as np
import numpy.typing as npt
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from smgrid.errors import GridError, NoDataError
from smgrid.grid import grid_coords, require_north_up, transform_points

# Points per edge of the lattice whose image bounds a window. Between two of 65 points on an edge
# of 1000 km a curve deviates from its chord by about 5 m, far less than the padding.
_LATTICE = 65
_EARTH_RADIUS = 6_378_137.0  # WGS 84 semi-major axis [m]


def find_window(source: GeoBox, grid: GeoBox, *, padding: int = 2) -> tuple[slice, slice]:
    """Return the rows and columns of `source` that cover `grid`, and `padding` pixels more.

    They end where the source ends, and are empty when the two do not overlap.

    Raises
    ------
    GridError
        If one of them has no CRS.
    """
    bounds = _pixel_bounds(source, grid)
    if bounds is None:
        return slice(0, 0), slice(0, 0)
    rows, cols = (
        slice(min(max(low - padding, 0), size), max(min(high + padding, size), 0))
        for (low, high), size in zip(bounds, source.shape.yx, strict=True)
    )
    return rows, cols


def lattice_window(lattice: GeoBox, grid: GeoBox, *, padding: int = 2) -> GeoBox:
    """Return the box on the pixels of `lattice`, thought endless, that covers `grid`.

    Raises
    ------
    GridError
        If one of them has no CRS, or no part of the grid exists in the CRS of `lattice`.
    """
    bounds = _pixel_bounds(lattice, grid)
    if bounds is None:
        msg = f"no part of the grid ({describe_extent(grid)}) exists in {lattice.crs}"
        raise GridError(msg)
    (top, bottom), (left, right) = bounds
    shape = (bottom - top + 2 * padding, right - left + 2 * padding)
    width, height = lattice.affine.a, lattice.affine.e
    west = lattice.affine.c + (left - padding) * width
    north = lattice.affine.f + (top - padding) * height
    return GeoBox(shape, Affine(width, 0.0, west, 0.0, height, north), lattice.crs)


def crop(da: xr.DataArray, grid: GeoBox, *, source: str, padding: int = 2) -> xr.DataArray:
    """Return the part of `da` that covers `grid`, and `padding` pixels more.

    Parameters
    ----------
    da
        Dims (..., y, x), north up, with a GeoBox.
    grid
        The target, in any CRS.
    source
        What the error message calls the input.
    padding
        Pixels of `da` beyond the grid, where it has them.

    Raises
    ------
    NoDataError
        If the grid lies outside.
    """
    geobox = da.odc.geobox
    rows, cols = find_window(geobox, grid, padding=padding)
    if rows.start >= rows.stop or cols.start >= cols.stop:
        msg = (
            f"{source} covers {describe_extent(geobox)}, the grid covers {describe_extent(grid)}: "
            "they do not overlap; use a source of that region"
        )
        raise NoDataError(msg)
    return with_geobox(da.isel(y=rows, x=cols), geobox[rows, cols])


def with_geobox(da: xr.DataArray, geobox: GeoBox) -> xr.DataArray:
    """Return `da` (..., y, x) with the coordinates and CRS of `geobox`, and no other CRS."""
    spatial = {"spatial_ref", *da.dims[-2:]}
    others = [n for n, c in da.coords.items() if n in spatial or not set(c.dims) <= set(da.dims)]
    placed = da.drop_vars(others).rename(dict(zip(da.dims[-2:], ("y", "x"), strict=True)))
    placed.encoding = {key: v for key, v in da.encoding.items() if key != "grid_mapping"}
    placed.attrs = {key: value for key, value in da.attrs.items() if key != "grid_mapping"}
    return placed.assign_coords(grid_coords(geobox))


def to_pixel(
    grid: GeoBox, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return rows and columns of points, 0 at the upper left corner of the first pixel."""
    return (y - grid.affine.f) / grid.affine.e, (x - grid.affine.c) / grid.affine.a


def pixel_metres(grid: GeoBox) -> float:
    """Return the height of a pixel [m]; degrees count along a meridian."""
    crs = require_north_up(grid)
    unit = crs.proj.axis_info[0].unit_conversion_factor  # to metres, or to radians
    return float(-grid.resolution.y * unit * (_EARTH_RADIUS if crs.geographic else 1.0))


def describe_extent(grid: GeoBox) -> str:
    """Return the extent of a grid in degrees, for messages."""
    box = grid.geographic_extent.boundingbox
    return f"{box.left:.3f}..{box.right:.3f} E {box.bottom:.3f}..{box.top:.3f} N"


def _pixel_bounds(source: GeoBox, grid: GeoBox) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Return first and last row and column of `source` under `grid`, which need not exist."""
    if source.crs is None or grid.crs is None:
        msg = "a grid without a CRS cannot be placed on another; give both a CRS"
        raise GridError(msg)
    rows, cols = np.meshgrid(
        np.linspace(0, grid.shape.y, _LATTICE), np.linspace(0, grid.shape.x, _LATTICE)
    )
    x = grid.affine.c + cols.ravel() * grid.affine.a
    y = grid.affine.f + rows.ravel() * grid.affine.e
    x, y = transform_points(x, y, grid.crs, source.crs)
    found = np.isfinite(x) & np.isfinite(y)
    if not found.any():
        return None
    row, col = to_pixel(source, x[found], y[found])
    return _bounds(row), _bounds(col)


def _bounds(position: npt.NDArray[np.float64]) -> tuple[int, int]:
    return math.floor(position.min()), math.ceil(position.max())
