"""Gridded files of weather: NetCDF or Zarr with whatever names, order and range of coordinates.

Latitudes may ascend or descend, longitudes count from -180 or from 0, the time may be called
``valid_time``, and the CRS is stated in a grid mapping, by the names of the coordinates, or not.
"""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from smgrid.catalog import is_url
from smgrid.errors import SourceError
from smgrid.sources.remote_zarr import open_remote_zarr
from smgrid.sources.window import with_geobox

_Y_NAMES = ("y", "latitude", "lat", "northing")
_X_NAMES = ("x", "longitude", "lon", "easting")
_TIME_NAMES = ("time", "valid_time", "timestamp", "t", "date")
_LONLAT = "EPSG:4326"
_GRIB = (".grib", ".grib1", ".grib2", ".grb", ".grb2")
# Mean metres per degree of latitude; only to give a file of one pixel an extent.
_METRES_PER_DEGREE = 111_195.0
# Part of a pixel by which coordinates may miss a regular lattice: degrees in float32 do.
_UNEVEN = 0.02


def open_gridded(path: str) -> xr.Dataset:
    """Open a NetCDF file or Zarr store lazily; values are decoded as its attributes say.

    Parameters
    ----------
    path
        A local file or store, or the URL of a Zarr store (see `open_remote_zarr`).

    Raises
    ------
    SourceError
        If it cannot be opened.
    """
    if is_url(path):
        return open_remote_zarr(path)
    if path.endswith(_GRIB) or _starts_with(path, b"GRIB"):
        msg = (
            f"{path} is GRIB, which smgrid does not read; order NetCDF from the provider, or "
            "convert it with 'cdo -f nc4 copy' or 'grib_to_netcdf'"
        )
        raise SourceError(msg)
    is_zarr = path.rstrip("/").endswith(".zarr") or Path(path, "zarr.json").exists()
    try:
        return xr.open_dataset(path, engine="zarr" if is_zarr else None)
    except (OSError, ValueError, KeyError) as cause:
        kind = "Zarr store" if is_zarr else "NetCDF file"
        msg = f"{path} cannot be read as a {kind} ({cause}); check the file and paths"
        raise SourceError(msg) from cause


def tidy(
    da: xr.DataArray,
    ds: xr.Dataset,
    *,
    source: str,
    time: str | None = None,
    crs: str | None = None,
    native_resolution: float = 0.0,
    extra_dim: str = "",
    keep: Collection[str] = (),
) -> xr.DataArray:
    """Return `da` with dims (time, y, x), north up, sorted in time, with an exact GeoBox.

    Parameters
    ----------
    da
        A variable of `ds`.
    ds
        The file it comes from.
    source
        What error messages call the input.
    time
        Name of its time coordinate; one of the usual names by default.
    crs
        CRS that replaces what the file states.
    native_resolution
        Pixel size [m], needed only where the file has a single row or column.
    extra_dim
        A dim that may stand between time and y; others of size 1 are dropped.
    keep
        Coordinates to keep besides those of the dims.

    Returns
    -------
    xr.DataArray
        Longitudes are within -180..180. Nothing is read but coordinates.

    Raises
    ------
    SourceError
        If coordinates are missing or uneven, no CRS is stated, or dims are left over.
    """
    names = {
        "y": _find_dim(da, _Y_NAMES, source),
        "x": _find_dim(da, _X_NAMES, source),
        "time": _find_dim(da, (time,) if time else _TIME_NAMES, source),
    }
    placed_in = CRS(crs or _stated_crs(da, ds, names["y"], source))
    others = [str(dim) for dim in da.dims if dim not in (*names.values(), extra_dim)]
    if left := [dim for dim in others if da.sizes[dim] > 1]:
        msg = f"{source}: the dims {', '.join(left)} are not understood; expected time, y and x"
        raise SourceError(msg)
    da = da.squeeze(others, drop=True)
    da = da.drop_vars([name for name in da.coords if name not in (*da.dims, *keep)])
    da = da.rename({old: new for new, old in names.items() if old != new})
    da = da.transpose("time", ..., "y", "x")
    da = _sort(da.assign_coords(time=_to_utc(da["time"].values, source)), "time")
    if placed_in.geographic:
        da = da.assign_coords(x=(da["x"].astype("float64") + 180.0) % 360.0 - 180.0)
    da = _sort(_sort(da, "x"), "y").isel(y=slice(None, None, -1))
    da.encoding = {}
    return with_geobox(da, _to_geobox(da, placed_in, native_resolution, source))


def concat_time(parts: Iterable[xr.DataArray], *, source: str) -> xr.DataArray:
    """Put parts of one variable after one another in time.

    Raises
    ------
    SourceError
        If they are on different grids, or a time occurs twice.
    """
    parts = list(parts)
    for part in parts[1:]:
        if part.odc.geobox != parts[0].odc.geobox:
            msg = f"{source}: its files lie on different grids; make one source of each grid"
            raise SourceError(msg)
    whole = xr.concat(parts, dim="time").sortby("time") if len(parts) > 1 else parts[0]
    times = whole.indexes["time"]
    if times.has_duplicates:
        first = times[times.duplicated()][0]
        msg = f"{source}: {first} occurs twice; give every time in one file only"
        raise SourceError(msg)
    return whole


def mark_blocks(da: xr.DataArray) -> tuple[xr.DataArray, tuple[str, ...]]:
    """Give `da` coordinates with the number of the stored chunk along each dim, and their names.

    A dim along which it is not stored in chunks gets none.
    """
    stored = da.encoding.get("preferred_chunks", {})
    blocks = {
        f"block_{dim}": (dim, np.arange(size) // stored[dim])
        for dim, size in da.sizes.items()
        if dim in stored
    }
    return da.assign_coords(blocks), tuple(blocks)


def chunk_as_stored(da: xr.DataArray, blocks: Iterable[str], *, steps: int) -> xr.DataArray:
    """Make `da` lazy with one task per stored chunk, from the marks of `mark_blocks`.

    Parameters
    ----------
    da
        With the marks, sorted and cropped at will.
    blocks
        Names of the marks; they are dropped.
    steps
        Steps in time that a task has at least: smaller chunks are read several at a time.
    """
    chunks: dict[Any, Any] = dict.fromkeys(da.dims, -1) | {"time": steps}
    for name in blocks:
        if name in da.coords and da[name].dims:  # a mark of a dropped dim is a scalar, or gone
            dim = da[name].dims[0]
            chunks[dim] = _runs(da[name].values, steps if dim == "time" else 1)
    return da.drop_vars(blocks, errors="ignore").chunk(chunks)


def _runs(blocks: npt.NDArray[np.int_], least: int) -> tuple[int, ...]:
    """Return how many values stand together: those of one block, or of as many as make `least`."""
    ends = np.append(np.flatnonzero(np.diff(blocks)) + 1, len(blocks))
    runs, start = [], 0
    for end in ends:
        if end - start >= least or end == len(blocks):
            runs.append(int(end - start))
            start = end
    return tuple(runs)


def _starts_with(path: str, magic: bytes) -> bool:
    if not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        return file.read(len(magic)) == magic


def _find_dim(da: xr.DataArray, names: Iterable[str], source: str) -> str:
    for name in names:
        if name in da.dims and name in da.coords:
            return name
    msg = (
        f"{source}: expected a dim with a coordinate called {' or '.join(names)}, "
        f"found the dims {', '.join(map(str, da.dims)) or 'none'}"
    )
    raise SourceError(msg)


def _stated_crs(da: xr.DataArray, ds: xr.Dataset, y_name: str, source: str) -> str:
    """Return the CRS of the grid mapping, else degrees if the coordinates are called so."""
    mapping = da.encoding.get("grid_mapping") or da.attrs.get("grid_mapping") or "spatial_ref"
    attrs = ds.variables[mapping].attrs if mapping in ds.variables else {}
    stated = attrs.get("crs_wkt") or attrs.get("spatial_ref")
    if not stated and y_name in ("latitude", "lat"):
        stated = _LONLAT
    if not stated:
        msg = f"{source} does not state its CRS; add crs: to its catalog entry"
        raise SourceError(msg)
    return str(stated)


def _to_utc(times: npt.NDArray[Any], source: str) -> pd.DatetimeIndex:
    try:
        index = pd.DatetimeIndex(pd.to_datetime(times, utc=True, format="ISO8601"))
    except (ValueError, TypeError) as cause:
        msg = f"{source}: its times are not dates, found {times[:1]} ({cause})"
        raise SourceError(msg) from cause
    return index.tz_localize(None).as_unit("ns")


def _sort(da: xr.DataArray, dim: str) -> xr.DataArray:
    """Sort ascending, by a slice where one does it: reading through a slice is much cheaper."""
    index = da.indexes[dim]
    if index.is_monotonic_increasing:
        return da
    if index.is_monotonic_decreasing:
        return da.isel({dim: slice(None, None, -1)})
    return da.sortby(dim)


def _to_geobox(da: xr.DataArray, crs: CRS, native_resolution: float, source: str) -> GeoBox:
    single = native_resolution / (_METRES_PER_DEGREE if crs.geographic else 1.0)
    x0, dx = _regular(da["x"].values.astype("float64"), single, f"{source}, x")
    y0, dy = _regular(da["y"].values.astype("float64"), -single, f"{source}, y")
    affine = Affine(dx, 0.0, x0 - dx / 2, 0.0, dy, y0 - dy / 2)
    return GeoBox((da.sizes["y"], da.sizes["x"]), affine, crs)


def _regular(centres: npt.NDArray[np.float64], single: float, what: str) -> tuple[float, float]:
    """Return first centre and step of a regular axis; `single` is the step of a lone centre."""
    if len(centres) == 1:
        if single == 0:
            msg = f"{what}: a single pixel has no size; add native_resolution to the catalog entry"
            raise SourceError(msg)
        return float(centres[0]), single
    step = (centres[-1] - centres[0]) / (len(centres) - 1)
    expected = centres[0] + step * np.arange(len(centres))
    if np.abs(centres - expected).max() > _UNEVEN * abs(step):
        msg = f"{what}: the coordinate is not evenly spaced; give a source on a regular grid"
        raise SourceError(msg)
    return float(centres[0]), float(step)
