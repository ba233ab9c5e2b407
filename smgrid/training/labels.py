"""Labels on the grid of a cube: station readings placed in the pixels that contain them."""

from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.errors import NoDataError
from smgrid.features.inputs import Cube, find_variables
from smgrid.grid import transform_points


def station_labels(stations: xr.Dataset, cube: Cube) -> xr.DataArray:
    """Place daily station means in the base pixels of a cube at its acquisition times.

    Parameters
    ----------
    stations
        As made by `open_stations`: ``soil_moisture`` (station, time) in m3 m-3, daily means of
        UTC days, with ``longitude`` and ``latitude`` along ``station``.
    cube
        Cube as made by `load_cube` or `open_cube`.

    Returns
    -------
    xr.DataArray
        (time, y, x) on the chunks of ``vv``, NaN where no station stands; lazy. An acquisition
        takes the mean of its own UTC day; stations in one pixel are averaged.

    Raises
    ------
    NoDataError
        No station lies in the grid, or none has a value on an acquisition day.
    """
    scenes = find_variables(cube, ("vv",))["vv"]
    grid: GeoBox = scenes.odc.geobox
    row, column, inside = _pixels(stations, grid)
    days = pd.DatetimeIndex(scenes["time"].values).normalize()
    values = (
        stations["soil_moisture"]
        .isel(station=inside)
        .transpose("time", "station")
        .reindex(time=days)
        .values.astype(np.float32)
    )
    if not np.isfinite(values).any():
        raise NoDataError(
            f"{int(inside.sum())} of {stations.sizes['station']} stations lie in the grid "
            f"{tuple(grid.boundingbox)} ({grid.crs}) and none has a reading on an acquisition "
            f"day ({days[0]:%Y-%m-%d} to {days[-1]:%Y-%m-%d})"
        )
    pixel, values = _per_pixel(row[inside] * grid.shape[1] + column[inside], values)
    chunks = scenes.chunks or tuple((n,) for n in scenes.shape)
    data = da.map_blocks(
        _scatter,
        chunks=chunks,
        dtype=np.float32,
        meta=np.empty((0, 0, 0), np.float32),
        pixel=pixel,
        values=values,
        width=grid.shape[1],
    )
    return xr.DataArray(
        data,
        dims=scenes.dims,
        coords=scenes.coords,
        name="label",
        attrs={"units": "m3 m-3", "long_name": "Soil moisture measured at stations"},
    )


def _pixels(
    stations: xr.Dataset, grid: GeoBox
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Row and column of the pixel that contains each station, and which lie in the grid."""
    longitude, latitude = stations["longitude"].values, stations["latitude"].values
    x, y = transform_points(longitude, latitude, "EPSG:4326", grid.crs)
    box = grid.boundingbox
    column = np.floor((x - box.left) / grid.resolution.x).astype(np.int64)
    row = np.floor((y - box.top) / grid.resolution.y).astype(np.int64)
    height, width = grid.shape
    return row, column, (row >= 0) & (row < height) & (column >= 0) & (column < width)


def _per_pixel(
    pixel: npt.NDArray[np.int64], values: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Average the stations that share a pixel."""
    unique, inverse = np.unique(pixel, return_inverse=True)
    known = np.isfinite(values)
    total = np.zeros((len(values), len(unique)))
    count = np.zeros_like(total)
    for station, target in enumerate(inverse):
        total[:, target] += np.where(known[:, station], values[:, station], 0)
        count[:, target] += known[:, station]
    with np.errstate(invalid="ignore"):
        return unique, (total / count).astype(np.float32)


def _scatter(
    *,
    pixel: npt.NDArray[np.int64],
    values: npt.NDArray[np.float32],
    width: int,
    block_info: dict[Any, Any],
) -> npt.NDArray[np.float32]:
    (t0, t1), (y0, y1), (x0, x1) = block_info[None]["array-location"]
    row, column = pixel // width, pixel % width
    here = (row >= y0) & (row < y1) & (column >= x0) & (column < x1)
    block = np.full((t1 - t0, y1 - y0, x1 - x0), np.nan, np.float32)
    block[:, row[here] - y0, column[here] - x0] = values[t0:t1, here]
    return block
