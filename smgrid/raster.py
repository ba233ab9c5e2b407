"""The raster in a DataArray: where its pixels lie, however its file arranged them."""

import numpy as np
import odc.geo.xr  # noqa: F401 - registers the accessor .odc
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from smgrid.errors import GridError

_UNEVEN = 0.05  # pixels by which a coordinate may lie off the lattice; float32 ones do


def open_raster(da: xr.DataArray, resolution: float | None = None) -> tuple[xr.DataArray, GeoBox]:
    """Bring a raster into one form: dims (..., y, x), north up, and the grid of its pixels.

    Parameters
    ----------
    da : xarray.DataArray
        Values with one-dimensional, evenly spaced coordinates along y and x (also latitude and
        longitude), in either direction and any order of dims, and a CRS.
    resolution : float, optional
        Pixel size in units of the CRS, for an axis of a single pixel.

    Returns
    -------
    raster : xarray.DataArray
        The values without the spatial coordinates.
    grid : GeoBox
        Its lattice is fitted to all coordinates, so that single precision in them does no harm.

    Raises
    ------
    GridError
        No CRS, no coordinates, uneven or rotated ones.
    """
    name = f"raster {da.name!r}"
    geo = da.odc
    if geo.spatial_dims is None or not all(dim in da.coords for dim in geo.spatial_dims):
        raise GridError(f"{name}: expected y and x with coordinates, found dims {da.dims}")
    if geo.crs is None:
        raise GridError(f"{name}: has no CRS; state it with da.odc.assign_crs(...)")
    box = geo.geobox
    if box is not None and not (isinstance(box, GeoBox) and box.axis_aligned):
        raise GridError(f"{name}: expected a raster without rotation or ground control points")
    y_size, x_size = resolution, resolution
    if resolution is None and box is not None:
        y_size, x_size = abs(box.resolution.y), abs(box.resolution.x)
    y_dim, x_dim = geo.spatial_dims
    x0, width = _axis_lattice(da[x_dim], x_size, name)
    y0, height = _axis_lattice(-da[y_dim], y_size, name)
    drop = [c for c, coord in da.coords.items() if {y_dim, x_dim} & set(coord.dims)]
    if geo.crs_coord is not None:
        drop.append(geo.crs_coord.name)
    flips = {x_dim: slice(None, None, 1 if width > 0 else -1)}
    flips |= {y_dim: slice(None, None, 1 if height > 0 else -1)}
    raster = da.isel(flips).drop_vars(drop).transpose(..., y_dim, x_dim)
    affine = Affine(abs(width), 0, x0, 0, -abs(height), -y0)
    shape = raster.sizes[y_dim], raster.sizes[x_dim]
    return raster.rename({y_dim: "y", x_dim: "x"}), GeoBox(shape, affine, geo.crs)


def _axis_lattice(axis: xr.DataArray, resolution: float | None, name: str) -> tuple[float, float]:
    """Lowest edge of an axis and its signed step, fitted to all coordinates."""
    centres = axis.values.astype(np.float64)
    size = centres.size
    if size == 0 or (size == 1 and resolution is None):
        raise GridError(
            f"{name}: {size} pixels along {axis.name!r} do not tell their size; give the resolution"
        )
    step = (centres[-1] - centres[0]) / (size - 1) if size > 1 else float(resolution or 0)
    expected = centres[0] + step * np.arange(size)
    if not step or not np.abs(centres - expected).max() <= _UNEVEN * abs(step):
        raise GridError(f"{name}: expected evenly spaced coordinates along {axis.name!r}")
    return min(centres[0], centres[-1]) - abs(step) / 2, step
