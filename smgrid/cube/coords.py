"""The coordinates of a group on disk: grid and CRS, dates, text, and what identifies them."""

import hashlib
import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from smgrid.cube.encoding import ENCODING_ATTRS, json_attrs
from smgrid.errors import GridError, StoreError
from smgrid.grid import grid_coords, require_north_up

CRS_NAME = "spatial_ref"
TIME_DIMS = ("time", "date")
_TOLERANCE = 1e-3  # of a pixel
_UNITS = {
    "metre": "metre",
    "kilometre": "kilometre",
    "foot": "foot",
    "US survey foot": "US_survey_foot",
}
"""Names of UDUNITS for units of a CRS."""
_TIME_ENCODING = {
    "units": "seconds since 1970-01-01",
    "calendar": "proleptic_gregorian",
    "dtype": "int64",
}


def group_grid(ds: xr.Dataset, *, where: str) -> GeoBox | None:
    """Return the grid of a group, ``None`` for one without ``y`` and ``x``.

    Raises
    ------
    StoreError
        If pixels have no CRS, are not on a regular grid, or are not north up.
    """
    if not {"y", "x"} <= set(ds.dims):
        return None
    grid: GeoBox | None = ds.odc.geobox
    if grid is None or grid.crs is None or not _on_grid(ds, grid):
        msg = (
            f"{where} has y and x but no grid with a CRS; give it evenly spaced coordinates y and "
            "x and a CRS, for instance with ds.odc.assign_crs(...)"
        )
        raise StoreError(msg)
    try:
        require_north_up(grid)
    except GridError as error:
        msg = f"{where}: {error}; sort it with ds.sortby('y', ascending=False).sortby('x')"
        raise StoreError(msg) from error
    return grid


def _on_grid(ds: xr.Dataset, grid: GeoBox) -> bool:
    """Whether y and x are the pixel centres; odc-geo may take a recorded resolution for granted."""
    axes = grid_coords(grid)
    return all(
        np.allclose(ds[dim], axes[dim], rtol=0, atol=abs(axes[dim].resolution) * _TOLERANCE)
        for dim in ("y", "x")
    )


def disk_coords(ds: xr.Dataset, grid: GeoBox | None, *, where: str) -> dict[Hashable, xr.Variable]:
    """Return the coordinates of a group as they are written, all in memory.

    Raises
    ------
    StoreError
        If one has several dims, or dates that are missing, unordered or finer than a second.
    """
    axes = {} if grid is None else grid_coords(grid)
    bounds = bounds_of(ds)
    coords: dict[Hashable, xr.Variable] = {}
    for name, coord in ds.coords.items():
        if coord.ndim > 1 and name not in bounds:
            msg = (
                f"{where}: the coordinate {name} has the dims {coord.dims}, expected one at most; "
                "drop it (drop_vars) or make it a variable (reset_coords)"
            )
            raise StoreError(msg)
        if name != CRS_NAME:
            coords[name] = _disk_coord(coord, where=where)
    if grid is not None:
        for dim in ("y", "x"):
            coords[dim].attrs |= _axis_attrs(dim, grid)
        crs = axes[CRS_NAME]
        attrs = json_attrs(crs.attrs | _pole(crs.attrs), where=where)
        coords[CRS_NAME] = xr.Variable((), crs.values, attrs)
    return coords


def bounds_of(ds: xr.Dataset) -> frozenset[Any]:
    """Return the coordinates that hold the bounds of another one, as CF's ``bounds`` says."""
    return frozenset(c.attrs["bounds"] for c in ds.coords.values() if "bounds" in c.attrs)


def _disk_coord(coord: xr.DataArray, *, where: str) -> xr.Variable:
    dropped = ENCODING_ATTRS | {"crs"}  # odc-geo repeats the CRS on the axes
    attrs = {key: value for key, value in coord.attrs.items() if key not in dropped}
    encoding: dict[str, Any] = {"chunks": coord.shape} if coord.ndim else {}
    values = coord.values
    if values.dtype.kind == "M":
        values = _check_dates(coord, where=where)
        encoding |= _TIME_ENCODING
        attrs = {key: value for key, value in attrs.items() if key not in {"units", "calendar"}}
    elif values.dtype.kind in "OUST":
        values = _as_text(values, where=f"{where}, {coord.name}")
    elif values.dtype.kind == "f":
        encoding["_FillValue"] = None  # CF: coordinates have no missing values
    if coord.name in TIME_DIMS:
        attrs |= {"standard_name": "time", "axis": "T"}
    attrs = json_attrs(attrs, where=f"{where}, {coord.name}")
    return xr.Variable(coord.dims, values, attrs, encoding)


def _as_text(values: npt.NDArray[Any], *, where: str) -> npt.NDArray[np.object_]:
    """Return text of variable length: the only text that has a data type in Zarr v3."""
    texts = values.astype(str) if values.dtype.kind == "S" else values
    texts = texts.astype(object)
    odd = [text for text in texts.ravel() if not isinstance(text, str)]
    if odd:
        msg = f"{where} holds {odd[0]!r}, expected text or numbers; write unknown text as ''"
        raise StoreError(msg)
    return texts


def _axis_attrs(dim: str, grid: GeoBox) -> dict[str, Any]:
    """Return the CF names of an axis, and its resolution, which a single pixel cannot show."""
    crs = require_north_up(grid)
    standard = {"y": "latitude", "x": "longitude"}[dim]
    if not crs.geographic:
        standard = f"projection_{dim}_coordinate"
    return {
        "standard_name": standard,
        "axis": dim.upper(),
        "units": _axis_units(dim, crs),
        "resolution": getattr(grid.resolution, dim),
    }


def _axis_units(dim: str, crs: CRS) -> str:
    """Return the units of an axis as UDUNITS reads them.

    Both axes of a CRS have one unit. It is not looked up by direction: in polar CRSs both axes
    point north, or south.
    """
    axis = crs.proj.axis_info[0]
    if axis.unit_name == "degree":
        return {"y": "degrees_north", "x": "degrees_east"}[dim]
    base = "radian" if crs.geographic else "metre"
    return _UNITS.get(axis.unit_name, f"{axis.unit_conversion_factor!r} {base}")


def _pole(attrs: Mapping[Any, Any]) -> dict[str, float]:
    """Return what CF wants to know of a polar stereographic CRS, if PROJ has left it out.

    PROJ says nothing of the pole where a standard parallel tells which one it is (CF-1.11,
    appendix F, polar stereographic).
    """
    key = "latitude_of_projection_origin"
    if attrs.get("grid_mapping_name") != "polar_stereographic" or key in attrs:
        return {}
    return {key: math.copysign(90.0, attrs["standard_parallel"])}


def _check_dates(coord: xr.DataArray, *, where: str) -> Any:
    values = coord.values
    seconds = values.astype("datetime64[s]")
    problem = ""
    if np.isnat(values).any():
        problem = "has missing dates"
    elif (seconds != values).any():
        problem = f"has fractions of a second ({values[seconds != values].flat[0]})"
    elif coord.name in coord.dims and coord.size > 1 and (np.diff(seconds).astype(int) <= 0).any():
        problem = "is not strictly increasing"
    if problem:
        msg = f"{where}: {coord.name} {problem}, expected whole seconds in order, each once"
        raise StoreError(msg)
    return seconds.astype("datetime64[ns]")


def coordinate_record(variable: xr.Variable) -> dict[str, Any]:
    """Return what identifies a coordinate: dims, size, ends and a hash of its values."""
    values = variable.values
    if values.dtype.kind == "M":
        values = values.astype("datetime64[s]")
    texts = [str(value) for value in values.ravel()[[0, -1]]] if values.size else []
    if values.dtype.kind == "O":
        content = "\0".join(values.ravel().tolist()).encode()
    else:
        content = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    return {
        "dims": list(variable.dims),
        "dtype": "string" if values.dtype.kind == "O" else values.dtype.name,
        "size": values.size,
        "ends": texts,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
