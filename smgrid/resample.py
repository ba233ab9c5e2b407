"""Lazy resampling onto a grid: area means of finer pixels, and the nearest pixel of coarser ones.

Both functions take a DataArray on a regular raster with a CRS and any leading dimensions, and give
float32 (..., y, x) on the target grid with NaN for missing. What is dask-backed stays lazy, what is
in memory stays in memory.
"""

import math
from dataclasses import dataclass
from typing import Any

import dask
import dask.array
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from smgrid.errors import GridError
from smgrid.grid import (
    Tile,
    grid_coords,
    iter_tiles,
    pixel_centres,
    require_north_up,
    transform_points,
)
from smgrid.raster import open_raster

_ALIGNED = 0.01  # pixels by which two lattices may differ and count as one
_SNAP = 1e-6  # pixels: a position this close before a border lies on it


@dataclass(frozen=True)
class _AxisPlan:
    """How the pixels along one axis become cells."""

    factor: int  #: pixels per cell
    window: slice  #: pixels to read
    pixels: tuple[int, int]  #: pixels to pad before and after, to whole cells
    outside: tuple[int, int]  #: cells before and after that hold no pixel
    blocks: tuple[int, ...]  #: cells in each chunk


def area_average(
    da: xr.DataArray, grid: GeoBox, *, min_coverage: float = 0.5, chunks: int = 512
) -> xr.DataArray:
    """Mean of all valid pixels of a finer raster over the area of each grid cell.

    Parameters
    ----------
    da : xarray.DataArray
        Values on a finer raster (..., y, x) that carries its CRS; NaN is missing. Longitudes count
        from -180.
    grid : GeoBox
        Target grid.
    min_coverage : float
        Share of a cell's area, 0 to 1, that has to be valid; below it the cell is NaN. Area beyond
        the raster counts as missing.
    chunks : int
        Edge of the result's dask chunks in cells; one step along every leading dimension.

    Returns
    -------
    xarray.DataArray
        float32 (..., y, x) with the name, attributes and leading coordinates of `da`.

    Raises
    ------
    GridError
        `da` is not a regular raster with a CRS, or `min_coverage` is not a share.

    Notes
    -----
    Where whole pixels fill the cells (same CRS, integer ratio, shared edges) this is the mean over
    blocks of full-resolution pixels. Otherwise GDAL's "average" weighs each pixel with the area
    that it shares with the cell: exactly in the same CRS; in another one the cell counts as its
    bounding rectangle in the source, which is larger by the angle between the two. Overviews are
    never read.
    """
    if not 0 <= min_coverage <= 1:
        raise GridError(f"min_coverage: expected a share within 0..1, found {min_coverage!r}")
    require_north_up(grid)
    fine, source = open_raster(da)
    fine = fine.astype(np.float32)
    if fine.chunks is not None:
        fine = fine.chunk(dict.fromkeys(fine.dims[:-2], 1))
    steps = _block_steps(source, grid)
    if steps is None:
        data = _warp_average(fine, source, grid, min_coverage, chunks)
    else:
        data = _block_average(fine, grid, steps, min_coverage, chunks)
    return _on_grid(data, fine, grid)


def nearest(
    da: xr.DataArray,
    grid: GeoBox,
    *,
    tolerance: float = 0.0,
    resolution: float | None = None,
    chunks: int = 512,
) -> xr.DataArray:
    """Value of the source pixel in which the centre of each grid cell lies.

    Parameters
    ----------
    da : xarray.DataArray
        Values on a regular raster (..., y, x) that carries its CRS. Longitudes may count from -180
        or from 0.
    grid : GeoBox
        Target grid.
    tolerance : float
        Distance in source pixels by which a centre may lie outside the raster and still take the
        pixel at its edge; farther out is NaN.
    resolution : float, optional
        Pixel size in units of the source's CRS, for an axis of a single pixel.
    chunks : int
        Edge of the result's dask chunks in cells; leading dimensions keep the chunks of `da`.

    Returns
    -------
    xarray.DataArray
        float32 (..., y, x) with the name, attributes and leading coordinates of `da`.

    Raises
    ------
    GridError
        `da` is not a regular raster with a CRS, or `tolerance` is negative.

    Notes
    -----
    The pixel comes from the coordinates that PROJ gives for the centre, so it depends neither on
    the chunks nor on an interpolated transformation as in GDAL's warper. A centre on the border of
    two pixels belongs to the eastern, southern one (within 1e-6 of a pixel, so that rounding
    does not decide); the outermost borders belong to the raster.
    """
    if not tolerance >= 0:
        raise GridError(f"tolerance: expected 0 or more source pixels, found {tolerance!r}")
    require_north_up(grid)
    raster, source = open_raster(da, resolution)
    if raster.chunks is None:
        return _on_grid(_take(raster.values, _nearest_index(grid, source, tolerance)), raster, grid)
    return _on_grid(_take_tiles(raster.data, source, grid, tolerance, chunks), raster, grid)


def _on_grid(data: Any, like: xr.DataArray, grid: GeoBox) -> xr.DataArray:
    out = xr.DataArray(
        data,
        dims=(*like.dims[:-2], "y", "x"),
        coords={**like.coords, **grid_coords(grid)},
        name=like.name,
        attrs=like.attrs,
    )
    out.encoding["grid_mapping"] = "spatial_ref"
    return out


def _block_steps(source: GeoBox, grid: GeoBox) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """(pixels per cell, pixels from the raster's first edge to the grid's) for y and x, if whole.

    None where cells are not made of whole pixels.
    """
    if source.crs != grid.crs:
        return None
    steps = []
    for size, cell, pixel, edge, first in (
        (grid.shape.y, grid.affine.e, source.affine.e, grid.affine.f, source.affine.f),
        (grid.shape.x, grid.affine.a, source.affine.a, grid.affine.c, source.affine.c),
    ):
        factor, offset = round(cell / pixel), round((edge - first) / pixel)
        last = (edge + size * cell - first) / pixel
        drift = max(abs((edge - first) / pixel - offset), abs(last - offset - size * factor))
        if factor < 1 or drift > _ALIGNED:
            return None
        steps.append((factor, offset))
    return steps[0], steps[1]


def _plan_axis(size: int, pixels: int, factor: int, offset: int, chunks: int) -> _AxisPlan | None:
    """Plan for `size` cells and as many `pixels`; None where no cell holds a pixel."""
    low, high = max(-offset // factor, 0), min(-((offset - pixels) // factor), size)
    if low >= high:
        return None
    start, stop = offset + low * factor, offset + high * factor
    edges = [low, *range((low // chunks + 1) * chunks, high, chunks), high]
    return _AxisPlan(
        factor=factor,
        window=slice(max(start, 0), min(stop, pixels)),
        pixels=(max(-start, 0), max(stop - pixels, 0)),
        outside=(low, size - high),
        blocks=tuple(int(cells) for cells in np.diff(edges)),
    )


def _block_average(
    fine: xr.DataArray,
    grid: GeoBox,
    steps: tuple[tuple[int, int], tuple[int, int]],
    min_coverage: float,
    chunks: int,
) -> Any:
    """Crop and pad the pixels to whole cells, average these, pad the cells to the grid."""
    plans = {}
    for dim, size, step in zip(("y", "x"), grid.shape, steps, strict=True):
        plan = _plan_axis(size, fine.sizes[dim], *step, chunks)
        if plan is None:
            return _missing(fine, grid, chunks)
        plans[dim] = plan
    fine = fine.isel({dim: plan.window for dim, plan in plans.items()})
    fine = fine.pad({dim: plan.pixels for dim, plan in plans.items()}, constant_values=np.nan)
    factors = plans["y"].factor, plans["x"].factor
    outside = {dim: plan.outside for dim, plan in plans.items()}
    if fine.chunks is None:
        cells = xr.Variable(fine.dims, _average_blocks(fine.values, factors, min_coverage))
        return cells.pad(outside, constant_values=np.nan).data
    # One task per chunk of the result: the pixels are cut where its chunks end.
    aligned = {dim: tuple(n * plan.factor for n in plan.blocks) for dim, plan in plans.items()}
    pixels = fine.chunk(aligned).data
    means = pixels.map_blocks(
        _average_blocks,
        factors,
        min_coverage,
        chunks=(*pixels.chunks[:-2], plans["y"].blocks, plans["x"].blocks),
        dtype=np.float32,
        meta=np.empty((0,) * pixels.ndim, np.float32),
    )
    cells = xr.Variable(fine.dims, means).pad(outside, constant_values=np.nan)
    return cells.chunk({"y": chunks, "x": chunks}).data


def _missing(fine: xr.DataArray, grid: GeoBox, chunks: int) -> Any:
    shape = (*fine.shape[:-2], *grid.shape)
    if fine.chunks is None:
        return np.full(shape, np.nan, np.float32)
    lead = fine.chunks[:-2]
    return dask.array.full(shape, np.nan, dtype=np.float32, chunks=(*lead, chunks, chunks))


def _average_blocks(
    values: NDArray[np.float32], factors: tuple[int, int], min_coverage: float
) -> NDArray[np.float32]:
    """Mean of the valid values of each block, one pass over the rows to bound the memory."""
    ky, kx = factors
    *lead, rows, columns = values.shape
    total = np.zeros((*lead, rows // ky, columns))
    count = np.zeros((*lead, rows // ky, columns), np.int32)
    for row in range(ky):
        strip = values[..., row::ky, :]
        valid = ~np.isnan(strip)
        total += np.where(valid, strip, 0)
        count += valid
    blocks = (*lead, rows // ky, columns // kx, kx)
    total, count = total.reshape(blocks).sum(-1), count.reshape(blocks).sum(-1)
    enough = (count > 0) & (count >= min_coverage * ky * kx - 1e-6)
    return np.where(enough, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _warp_average(
    fine: xr.DataArray, source: GeoBox, grid: GeoBox, min_coverage: float, chunks: int
) -> Any:
    # A margin of NaN as wide as a cell, so that area beyond the raster counts as missing.
    margin = 2 * math.ceil(_cell_span(grid, source) + 1)
    padded = fine.pad(y=margin, x=margin, constant_values=np.nan)
    padded = padded.drop_vars(list(padded.coords))
    padded = padded.assign_coords(grid_coords(source.pad(margin)))
    how: dict[str, Any] = {"resampling": "average", "src_nodata": np.nan, "dst_nodata": np.nan}
    if fine.chunks is not None:
        how["chunks"] = (chunks, chunks)
    mean = padded.odc.reproject(grid, **how)
    share = padded.notnull().astype(np.float32).odc.reproject(grid, **how)
    # GDAL adds shares in float32: a cell that is just covered may come out a little below.
    return mean.where(share >= min_coverage - 1e-5).data


def _cell_span(grid: GeoBox, source: GeoBox) -> float:
    """Source pixels that the cell in the middle of a grid spans in its wider direction."""
    left, bottom, right, top = grid.center_pixel.boundingbox.bbox
    x, y = np.array([left, right, left, right]), np.array([bottom, bottom, top, top])
    row, column = _source_position(*transform_points(x, y, grid.crs, source.crs), source)
    span = float(max(np.ptp(row), np.ptp(column)))
    if not math.isfinite(span):
        raise GridError(f"the middle of the grid in {grid.crs} has no place in {source.crs}")
    return span


def _nearest_index(
    grid: GeoBox, source: GeoBox, tolerance: float, origin: tuple[int, int] = (0, 0)
) -> NDArray[np.int32]:
    """Source row and column (2, y, x) of each centre, counted from `origin`; -1 where outside."""
    y, x = _source_position(*pixel_centres(grid, source.crs), source)
    row = _whole_pixel(y, source.shape.y, tolerance)
    column = _whole_pixel(x, source.shape.x, tolerance)
    index = np.stack([row - origin[0], column - origin[1]])
    return np.where((row < 0) | (column < 0), -1, index).astype(np.int32)


def _source_position(
    x: NDArray[np.float64], y: NDArray[np.float64], source: GeoBox
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Continuous row and column of points in the source's CRS, 0 at its outer edge."""
    if source.crs is not None and source.crs.geographic:
        middle = source.affine.c + source.affine.a * source.shape.x / 2
        with np.errstate(invalid="ignore"):  # infinite where PROJ has no answer
            x = middle + (x - middle + 180) % 360 - 180
    return (y - source.affine.f) / source.affine.e, (x - source.affine.c) / source.affine.a


def _whole_pixel(position: NDArray[np.float64], size: int, tolerance: float) -> NDArray[np.int64]:
    reach = tolerance + _SNAP
    inside = (position >= -reach) & (position <= size + reach)
    index = np.floor(np.where(inside, position, 0) + _SNAP).astype(np.int64)
    return np.where(inside, index.clip(0, size - 1), -1)


def _take(values: NDArray[Any], index: NDArray[np.int32]) -> NDArray[np.float32]:
    row, column = index
    taken = values[..., row, column].astype(np.float32)
    taken[..., row < 0] = np.nan
    return taken


def _take_tiles(
    values: dask.array.Array, source: GeoBox, grid: GeoBox, tolerance: float, chunks: int
) -> dask.array.Array:
    """Assemble the result from tiles, each of which reads only its own window of the source."""
    rows: dict[int, list[dask.array.Array]] = {}
    for tile in iter_tiles(grid, chunks):
        window = _source_window(tile, source)
        origin = window[0].start, window[1].start
        index = dask.array.from_delayed(
            dask.delayed(_nearest_index, pure=True)(tile.geobox, source, tolerance, origin),
            shape=(2, *tile.geobox.shape),
            dtype=np.int32,
        )
        part = values[(..., *window)].rechunk({-2: -1, -1: -1})
        rows.setdefault(tile.index[0], []).append(_take_lazily(part, index))
    out: dask.array.Array = dask.array.block(list(rows.values()))
    return out


def _take_lazily(values: dask.array.Array, index: dask.array.Array) -> dask.array.Array:
    lead = tuple(range(values.ndim - 2))
    y, x, row, column, pair = range(values.ndim - 2, values.ndim + 3)
    out: dask.array.Array = dask.array.blockwise(
        _take,
        (*lead, y, x),
        values,
        (*lead, row, column),
        index,
        (pair, y, x),
        concatenate=True,
        dtype=np.float32,
        meta=np.empty((0,) * values.ndim, np.float32),
    )
    return out


def _source_window(tile: Tile, source: GeoBox) -> tuple[slice, slice]:
    """Source rows and columns that hold every pixel of a tile, found from its rim.

    A map keeps the inside of a rim inside, unless a pole or the antimeridian lies in it: then, and
    where the rim leaves the domain of the source's CRS, the window is the whole source.
    """
    ys, xs = (axis.values for axis in tile.geobox.coordinates.values())
    rim_x = np.concatenate([xs, xs, np.repeat(xs[[0, -1]], ys.size)])
    rim_y = np.concatenate([np.repeat(ys[[0, -1]], xs.size), ys, ys])
    crs = tile.geobox.crs
    longitude, _ = transform_points(rim_x, rim_y, crs, "EPSG:4326")
    position = _source_position(*transform_points(rim_x, rim_y, crs, source.crs), source)
    if not np.isfinite([longitude, *position]).all() or np.ptp(longitude) > 180:
        return slice(0, source.shape.y), slice(0, source.shape.x)
    rows, columns = (
        slice(
            min(max(math.floor(axis.min()) - 1, 0), size - 1),
            min(max(math.floor(axis.max()) + 2, 1), size),
        )
        for axis, size in zip(position, source.shape, strict=True)
    )
    return rows, columns
