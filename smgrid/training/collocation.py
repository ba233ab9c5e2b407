"""Rasters of soil moisture collocated with the acquisitions of a cube, in time and in space.

No date is ever moved: how far a label is off is recorded for every pixel. A label that is much
coarser than the pixels of the cube is refused, since most of its variance would be that of its cell
and not of the pixel.
"""

import math

import dask.array
import numpy as np
import pandas as pd
import shapely
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.errors import ConfigError, GridError, NoDataError
from smgrid.features.inputs import Cube, find_variables
from smgrid.grid import grid_coords, transform_points
from smgrid.raster import open_raster
from smgrid.resample import area_average, nearest
from smgrid.sources.window import crop
from smgrid.training.labels import (
    IntArray,
    Match,
    check_units,
    find_places,
    first_valid,
    label_dataset,
    match_times,
    station_layer,
)

# Edge of a label's cell in edges of a base pixel: from this on the cell is another quantity, ...
_TOO_COARSE = 2.0
# ... and up to this the pixel holds several cells.
_AVERAGED = 0.5
_ALIGNED = 1e-6  # fraction of a pixel that is floating-point noise


def collocate_labels(
    labels: xr.DataArray, cube: Cube, *, tolerance_hours: float | None = None
) -> xr.Dataset:
    """Bring a series of soil-moisture rasters to the pixels and acquisition times of a cube.

    Parameters
    ----------
    labels
        Soil moisture (time, y, x) [m3 m-3] on any grid, at its own times [UTC], for instance the
        variable of the group ``labels`` of a cube. A daily mean says so with ``time: mean`` in its
        ``cell_methods``.
    cube
        Cube as made by `load_cube` or `open_cube`.
    tolerance_hours
        Take the label nearest in time within so many hours. Default: the label of the
        acquisition's own UTC day, the nearest in time where there are several (morning and evening
        overpasses). Each pixel takes the nearest label that it has; of two equally near ones the
        earlier.

    Returns
    -------
    xr.Dataset
        ``label``, ``lag`` and ``station``, see `smgrid.training.labels`; lazy. The lag is that of
        each pixel; NaN without a label, and for a daily mean taken for its own day. With a
        tolerance a daily mean stands at 12:00. No pixel has a station; see `at_sites`.

    Raises
    ------
    ConfigError
        The labels have other dims or units, or the tolerance is not a number of hours.
    GridError
        A cell of the labels is wider than two pixels of the cube.
    NoDataError
        No label is near any acquisition in time, or the two do not overlap.

    Notes
    -----
    Where the pixels hold two cells of the labels or more along an edge they take the area mean, NaN
    where less than half of a pixel is known; otherwise the cell in which their centre lies.
    """
    _check_labels(labels)
    scenes = find_variables(cube, ("vv",))["vv"]
    times = pd.DatetimeIndex(scenes["time"].values)
    matches = match_times(labels, times, tolerance_hours)
    used = np.unique(np.concatenate([match.index for match in matches]))
    if used.size == 0:
        raise NoDataError(_no_match(labels, times, tolerance_hours))
    placed = _on_pixels(labels.isel(time=used), scenes)
    parts = [_pick(placed, used, match) for match in matches]
    both = dask.array.concatenate(parts, axis=1).rechunk({1: (scenes.chunks or (-1,))[0]})
    ds = label_dataset(scenes, both[0], both[1])
    kept = {name: labels.attrs[name] for name in ("long_name", "comment") if name in labels.attrs}
    ds["label"].attrs |= kept
    return ds


def at_sites(labels: xr.Dataset, sites: xr.Dataset) -> xr.Dataset:
    """Keep only the pixels that contain a site, and name them by it.

    Parameters
    ----------
    labels
        As made by `collocate_labels`.
    sites
        As made by `select_sites` or `merge_sites`: ``longitude`` and ``latitude`` along ``site``,
        perhaps ``network``.

    Returns
    -------
    xr.Dataset
        The same with NaN elsewhere and ``station`` the number of the site; a pixel with several
        sites has the names of all, joined by ``" + "``.

    Raises
    ------
    NoDataError
        No site lies in the grid of the labels.
    """
    places = find_places(sites, labels.odc.geobox)
    ds = labels.assign(station=station_layer(labels["label"], places))
    return ds.assign({name: ds[name].where(ds["station"] >= 0) for name in ("label", "lag")})


def _check_labels(labels: xr.DataArray) -> None:
    if len(labels.dims) != 3 or labels.dims[0] != "time":
        raise ConfigError(
            f"labels {labels.name!r} have dims {labels.dims}, expected time, y and x; choose one "
            "variable of the group labels of a cube"
        )
    check_units(labels, f"labels {labels.name!r}")


def _no_match(labels: xr.DataArray, times: pd.DatetimeIndex, tolerance_hours: float | None) -> str:
    stamps = pd.DatetimeIndex(labels["time"].values)
    own = f"{stamps.min():%Y-%m-%d} to {stamps.max():%Y-%m-%d}" if len(stamps) else "none"
    wanted = "on the UTC day" if tolerance_hours is None else f"within {tolerance_hours:g} hours"
    return (
        f"none of {len(stamps)} labels ({own}) is {wanted} of one of {len(times)} acquisitions "
        f"({times[0]:%Y-%m-%d} to {times[-1]:%Y-%m-%d}); choose labels of that period or a larger "
        "tolerance_hours"
    )


def _on_pixels(labels: xr.DataArray, scenes: xr.DataArray) -> dask.array.Array:
    """Return labels (time, y, x) on the pixels of the scenes, lazily, one time per chunk."""
    grid: GeoBox = scenes.odc.geobox
    chunks = scenes.chunks or tuple((n,) for n in scenes.shape)
    raster, source = open_raster(labels)
    raster = raster.astype(np.float32).chunk(time=1).assign_coords(grid_coords(source))
    if not _is_same(source, grid):
        raster = _resample(raster, grid, chunks=max(*chunks[1], *chunks[2]))
    placed: dask.array.Array = raster.chunk({"y": chunks[1], "x": chunks[2]}).data
    return placed


def _resample(raster: xr.DataArray, grid: GeoBox, *, chunks: int) -> xr.DataArray:
    name, source = f"labels {raster.name!r}", raster.odc.geobox
    raster = crop(raster, grid, source=f"the raster of {name}")
    width = _relative_width(source, grid)
    if width > _TOO_COARSE * (1 + _ALIGNED):
        raise GridError(
            f"{name}: a cell ({source.resolution.x:g} in {source.crs}) is {width:.1f} times as "
            f"wide as a pixel of the cube ({grid.resolution.x:g} in {grid.crs}), expected at most "
            f"{_TOO_COARSE:g}: such a label says little of one pixel. Build a cube on the grid of "
            "the labels, with ease_grid or make_grid"
        )
    if width <= _AVERAGED * (1 + _ALIGNED):
        return area_average(raster, grid, chunks=chunks)
    return nearest(raster, grid, chunks=chunks)


def _is_same(source: GeoBox, grid: GeoBox) -> bool:
    if source.crs != grid.crs or source.shape != grid.shape:
        return False
    return bool(source.affine.almost_equals(grid.affine, _ALIGNED * abs(grid.resolution.x)))


def _relative_width(source: GeoBox, grid: GeoBox) -> float:
    """Return the edge of a source pixel in edges of the grid's middle pixel, by their areas."""
    left, bottom, right, top = grid.center_pixel.boundingbox.bbox
    x, y = np.array([left, right, right, left]), np.array([bottom, bottom, top, top])
    corners = transform_points(x, y, grid.crs, source.crs)
    pixel = shapely.Polygon(np.stack(corners, axis=1)).area
    return math.sqrt(abs(source.affine.a * source.affine.e) / pixel)


def _pick(placed: dask.array.Array, used: IntArray, match: Match) -> dask.array.Array:
    """Return label and lag (2, 1, y, x) of one acquisition: of each pixel's nearest label."""
    shape, chunks = (2, 1, *placed.shape[1:]), ((2,), (1,), *placed.chunks[1:])
    if not len(match.index):
        missing: dask.array.Array = dask.array.full(shape, np.nan, dtype=np.float32, chunks=chunks)
        return missing
    steps = np.searchsorted(used, match.index)
    picked: dask.array.Array = dask.array.map_blocks(
        first_valid,
        *(placed[step : step + 1] for step in steps.tolist()),
        lag=match.lag.tolist(),
        new_axis=0,
        chunks=chunks,
        dtype=np.float32,
        meta=np.empty((0,) * 4, np.float32),
    )
    return picked
