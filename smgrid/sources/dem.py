"""Elevation, slope and aspect from a digital elevation model."""

from functools import reduce
from typing import Any, TypeAlias

import dask
import dask.array
import numpy as np
import numpy.typing as npt
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Proj

from smgrid.catalog import SourceSpec, check_options
from smgrid.errors import CatalogError, GridError
from smgrid.grid import grid_coords, iter_tiles, pad_grid, require_north_up, transform_points
from smgrid.resample import area_average
from smgrid.schema import check_range, convert_units, describe
from smgrid.sources.bilinear import Sampling, bilinear
from smgrid.sources.options import take_native_resolution, take_units
from smgrid.sources.raster import open_native
from smgrid.sources.window import pixel_metres
from smgrid.windows import Period

_TERRAIN = ("elevation", "slope", "aspect_sin", "aspect_cos")
# Fine pixels around a tile: one for the 3 x 3 window, two that a missing one is continued from.
_HALO = 3
# Fine pixels along the edge of one unit of work, which bounds its memory to about 0.5 GB.
_MAX_EDGE = 2048
# Gradient [m/m] below which a pixel is flat and has no aspect: 1 mm in 1 km, rounding noise.
_FLAT = 1e-6
# Relative error of distances on the map that slopes may inherit.
_MAX_DISTORTION = 0.05
# Angle between the columns of a grid and north [degree] below which they are the same.
_NO_CONVERGENCE = 1e-3

Lengths: TypeAlias = float | npt.NDArray[np.float64]


def load(spec: SourceSpec, grid: GeoBox, period: Period, *, chunks: int = 512) -> xr.Dataset:
    """Load terrain onto `grid`, lazily.

    Parameters
    ----------
    spec
        ``stac``, ``paths`` of tiles, or ``assets.elevation``: a file or URL; ``units`` of the
        heights, default m. ``native_resolution`` is the spacing of the heights [m].
    grid
        Target in a projected CRS in metres.
    period
        Not used: terrain does not change with time.
    chunks
        Tile edge in pixels of `grid`.

    Returns
    -------
    xr.Dataset
        ``elevation`` [m], ``slope`` [degree], ``aspect_sin`` and ``aspect_cos`` [1], dims (y, x).

    Raises
    ------
    GridError
        If distances on `grid` are not in metres, or distorted by more than 5 % on a projection that
        is not cylindrical.
    NoDataError, SourceError
        If nothing covers the grid, or a file cannot be read.

    Notes
    -----
    Heights are interpolated bilinearly onto a lattice of `factor` x `factor` fine pixels per cell,
    ``factor = round(resolution / native_resolution)``, at least 1. Gradients there are those of
    Horn (1981, doi:10.1109/PROC.1981.11918); beside missing heights the surface is continued
    linearly, see `continue_surface`. A cell's values are means over its fine pixels: of height, of
    slope in degrees, and of sine and cosine of aspect, the direction in which the ground falls,
    clockwise from grid north. Flat fine pixels add 0 to both components. A cell with fewer than
    half of its fine pixels is NaN. Every tile computes its own margin, so the result does not
    depend on the tiles, neither those of `chunks` nor those of the provider.

    Where no tile is, heights are missing and not 0: the Copernicus DEM has none over the open sea,
    but a tile that failed to arrive would look the same. Sea inside of a tile is 0 m and flat.
    """
    del period
    check_options(spec)
    _require_metric(grid)
    if unknown := set(spec.provides) - set(_TERRAIN):
        msg = f"{spec.origin}: {spec.loader} provides {', '.join(_TERRAIN)}, not {unknown}"
        raise CatalogError(msg)
    factor = max(1, round(pixel_metres(grid) / take_native_resolution(spec)))
    native = _open_elevation(spec, _fine_lattice(grid, factor))
    terrain = _lazy_terrain(native, grid, factor, chunks)
    coords = grid_coords(grid)
    return xr.Dataset(
        {
            name: describe(xr.DataArray(terrain[i], dims=("y", "x"), coords=coords), name)
            for i, name in enumerate(_TERRAIN)
            if name in spec.provides
        }
    )


def compute_gradient(
    elevation: npt.NDArray[np.float64], *, width: Lengths, height: Lengths
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the eastward and northward slope of a surface [m/m] by Horn's method.

    Parameters
    ----------
    elevation
        Heights (y, x) [m], north up.
    width, height
        Pixel size on the ground [m], one for all or one per row, (y, 1).

    Returns
    -------
    tuple of ndarray
        NaN on the outermost ring and where any pixel of the 3 x 3 window, its centre included, is
        NaN.

    Notes
    -----
    Differences of the sums over the outer columns (rows) with weights 1, 2, 1, over 8 pixel
    sizes (Horn 1981, doi:10.1109/PROC.1981.11918).
    """
    z = elevation
    along_y = z[:-2] + 2.0 * z[1:-1] + z[2:]
    along_x = z[:, :-2] + 2.0 * z[:, 1:-1] + z[:, 2:]
    hole = 0.0 * z[1:-1, 1:-1]  # Horn's weights leave the centre out
    eastward, northward = np.full(z.shape, np.nan), np.full(z.shape, np.nan)
    wide, high = (np.broadcast_to(size, (len(z), 1))[1:-1] for size in (width, height))
    eastward[1:-1, 1:-1] = (along_y[:, 2:] - along_y[:, :-2]) / (8.0 * wide) + hole
    northward[1:-1, 1:-1] = (along_x[:-2] - along_x[2:]) / (8.0 * high) + hole
    return eastward, northward


def continue_surface(elevation: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return heights continued by one pixel into missing ones, so that the last have a slope.

    Parameters
    ----------
    elevation
        Heights (y, x) [m]; NaN is missing.

    Notes
    -----
    Linear from the two nearest heights of the row, then of the column; the mean where both sides
    offer one. At the end of a model this is what gdaldem does with ``-compute_edges``.
    """
    along_rows = _continue_rows(elevation)
    return _continue_rows(along_rows.T).T


def _continue_rows(z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    from_west, from_east = np.full(z.shape, np.nan), np.full(z.shape, np.nan)
    from_west[:, 2:] = 2 * z[:, 1:-1] - z[:, :-2]
    from_east[:, :-2] = 2 * z[:, 1:-1] - z[:, 2:]
    count = np.isfinite(from_west).astype("float64") + np.isfinite(from_east)
    total = np.nan_to_num(from_west) + np.nan_to_num(from_east)
    continued = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return np.where(np.isnan(z), continued, z)


def _require_metric(grid: GeoBox) -> None:
    crs = require_north_up(grid)
    if crs.geographic or crs.proj.axis_info[0].unit_name not in ("metre", "meter"):
        msg = f"slopes need a grid in metres, found {crs}; make it with make_grid(..., crs='utm')"
        raise GridError(msg)
    factors = _scale_at(grid.center_pixel)
    distortion = max(abs(factors.meridional_scale - 1), abs(factors.parallel_scale - 1))
    if distortion > _MAX_DISTORTION and not _is_cylindrical(grid):
        lon, lat = grid.geographic_extent.centroid.coords[0]
        msg = (
            f"distances on {crs} are wrong by {distortion:.0%} at {lat:.1f} N {lon:.1f} E, and so "
            "would be slopes; make the grid with make_grid(..., crs='utm')"
        )
        raise GridError(msg)


def _is_cylindrical(grid: GeoBox) -> bool:
    """Whether columns run north and rows east, as on EASE grids: then scales repair distances."""
    corners = (grid[0, 0], grid[0, -1], grid[-1, 0], grid[-1, -1])
    return all(abs(_scale_at(corner).meridian_convergence) < _NO_CONVERGENCE for corner in corners)


def _scale_at(pixel: GeoBox) -> Any:
    lon, lat = pixel.geographic_extent.centroid.coords[0]
    return Proj(require_north_up(pixel).proj).get_factors(lon, lat)


def _ground_size(grid: GeoBox) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return how wide and high the pixels of each row are on the ground, (y, 1) [m]."""
    width, height = np.full((2, grid.shape.y, 1), [[[grid.resolution.x]], [[-grid.resolution.y]]])
    if not _is_cylindrical(grid):
        return width, height
    coords = grid_coords(grid)
    y = coords["y"].values
    x = np.full_like(y, coords["x"].values.mean())
    lon, lat = transform_points(x, y, grid.crs, "EPSG:4326")
    factors = Proj(require_north_up(grid).proj).get_factors(lon, lat)
    parallel, meridional = (
        np.asarray(scale)[:, None] for scale in (factors.parallel_scale, factors.meridional_scale)
    )
    return width / parallel, height / meridional


def _open_elevation(spec: SourceSpec, fine: GeoBox) -> xr.DataArray:
    """Return native heights around the fine lattice as one raster.

    Tiles of the Copernicus DEM are wider spaced in longitude towards the poles. They are brought
    to the finest spacing present before anything else, so that interpolation sees across the
    borders between the spacings.
    """
    units = take_units(spec, "elevation", default="m")
    native = sorted(
        (convert_units(da, units, "elevation") for da in open_native(spec, "elevation", fine)),
        key=lambda da: float(da.odc.geobox.resolution.x),
    )
    lattice = native[0].odc.geobox
    return reduce(lambda merged, da: merged.fillna(bilinear(da, lattice)), native)


def _lazy_terrain(native: xr.DataArray, grid: GeoBox, factor: int, chunks: int) -> dask.array.Array:
    """Return the variables of terrain (4, y, x), one task per tile."""
    fine = _fine_lattice(grid, factor)
    rows: dict[int, list[dask.array.Array]] = {}
    for tile in iter_tiles(grid, max(1, min(chunks, _MAX_EDGE // factor))):
        # In the fine lattice, which has a margin of its own, tiles overlap by their margins.
        window = tuple(
            slice(part.start * factor, part.stop * factor + 2 * _HALO) for part in (tile.y, tile.x)
        )
        sampling = Sampling(native.odc.geobox, fine, (window[0], window[1]))
        block = dask.array.from_delayed(
            dask.delayed(_compute_terrain, pure=True)(
                native.data[sampling.taken], sampling, tile.geobox
            ),
            shape=(len(_TERRAIN), *tile.geobox.shape.yx),
            dtype="float32",
        )
        rows.setdefault(tile.index[0], []).append(block)
    terrain = dask.array.block(list(rows.values()))
    rechunked: dask.array.Array = terrain.rechunk((1, chunks, chunks))
    return rechunked


def _fine_lattice(grid: GeoBox, factor: int) -> GeoBox:
    """Return `factor` x `factor` pixels per cell of `grid`, and a margin around them."""
    width, height = grid.affine.a / factor, grid.affine.e / factor
    affine = Affine(width, 0.0, grid.affine.c, 0.0, height, grid.affine.f)
    return pad_grid(GeoBox((grid.shape.y * factor, grid.shape.x * factor), affine, grid.crs), _HALO)


def _compute_terrain(
    heights: npt.NDArray[np.float32], sampling: Sampling, grid: GeoBox
) -> npt.NDArray[np.float32]:
    z = sampling.interpolate(heights)
    check_range(z, "elevation", where="the digital elevation model")
    fine = sampling.grid[sampling.window]
    surface = continue_surface(z)
    width, height = _ground_size(fine)
    eastward, northward = (
        np.where(np.isnan(z), np.nan, part)
        for part in compute_gradient(surface, width=width, height=height)
    )
    steepness = np.hypot(eastward, northward)
    is_flat = steepness < _FLAT
    divisor = np.where(is_flat, 1.0, steepness)
    fields = (
        z,
        np.degrees(np.arctan(steepness)),
        np.where(is_flat, 0.0, -eastward / divisor),
        np.where(is_flat, 0.0, -northward / divisor),
    )
    inner = slice(_HALO, -_HALO)
    stacked = xr.DataArray(
        np.stack(fields)[:, inner, inner].astype("float32"),
        dims=("field", "y", "x"),
        coords=grid_coords(fine[inner, inner]),
    )
    averaged: npt.NDArray[np.float32] = area_average(stacked, grid).values
    return averaged
