"""Stacks of rasters in NetCDF as providers write them, cleaned where they enter.

Their packing attributes can be text, their fill values can have the wrong sign and their CRS can be
the ``+init`` form that PROJ no longer wants; nothing beyond this module sees that.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from smgrid.catalog import SourceSpec
from smgrid.errors import SourceError
from smgrid.sources.gridded import tidy
from smgrid.yamltext import suggest

_MISSING = ("_FillValue", "missing_value")
_INIT = re.compile(r"^\+init=(\w+:\w+)$", re.IGNORECASE)


def open_stack(
    spec: SourceSpec,
    path: str,
    names: Mapping[str, str],
    *,
    time: str,
    edge: int,
    raw: tuple[str, ...] = (),
) -> xr.Dataset:
    """Open variables of one file lazily as (time, y, x).

    Parameters
    ----------
    spec
        Its ``crs``, ``scale``, ``offset`` and ``nodata`` replace what the file's attributes say.
    path
        NetCDF file or URL.
    names
        Variable -> name in the file.
    time
        Name of the time coordinate in the file.
    edge
        Tile edge [pixels of the file].
    raw
        Variables to leave as stored (masks, classes).

    Returns
    -------
    xarray.Dataset
        float32 in the units as stored, NaN where missing; untouched where `raw`. North up, sorted
        in time, with its CRS, one acquisition per chunk, without attributes.

    Raises
    ------
    SourceError
        If the file cannot be read, lacks a variable or a CRS, or is not a regular grid.
    """
    ds = _open_undecoded(path)
    for name in (*names.values(), time):
        if name not in ds.variables:
            known = [str(key) for key in ds.variables]
            msg = f"{path} has no {name!r}; {suggest(name, known)} (assets in {spec.origin})"
            raise SourceError(msg)
    try:
        ds = ds.assign_coords({time: xr.decode_cf(ds[[time]])[time]})
    except ValueError as cause:
        msg = f"{path}: the times in {time!r} are not understood ({cause}); correct the file"
        raise SourceError(msg) from cause
    stack = {}
    for key, name in names.items():
        da = ds[name].chunk({dim: 1 if dim == time else edge for dim in ds[name].dims})
        if key not in raw:
            da = _decode(da, spec, key)
        stack[key] = tidy(
            da, ds, source=f"{path}, {name}", time=time, crs=spec.crs or _global_crs(ds)
        ).drop_attrs(deep=False)
    return xr.Dataset(stack)


def _open_undecoded(path: str) -> xr.Dataset:
    try:
        return xr.open_dataset(path, decode_cf=False)
    except (OSError, ValueError) as cause:
        msg = f"{path} cannot be read as NetCDF ({cause}); fetch it again or correct the path"
        raise SourceError(msg) from cause


def _decode(da: xr.DataArray, spec: SourceSpec, name: str) -> xr.DataArray:
    """Return one variable with its packing undone."""
    scale = _to_number(da.attrs.get("scale_factor", 1.0))
    offset = _to_number(da.attrs.get("add_offset", 0.0))
    if name in spec.scale or name in spec.offset:
        scale, offset = spec.scale.get(name, 1.0), spec.offset.get(name, 0.0)
    fills = [da.attrs[key] for key in _MISSING if key in da.attrs]
    fills = fills if spec.nodata is None else [spec.nodata]
    stored = [value for fill in fills if (value := _to_stored(fill, da.dtype)) is not None]
    # float64 holds every integer count; the sum of a large offset and a small step needs it too.
    values = (da.astype("float64") * scale + offset).where(~da.isin(stored)).astype("float32")
    return values.assign_attrs({key: v for key, v in da.attrs.items() if key == "grid_mapping"})


def _to_number(value: Any) -> float:
    """Return an attribute as a number; providers write numbers as text and as arrays of one."""
    return float(np.asarray(value).reshape(-1)[0])


def _to_stored(value: Any, dtype: np.dtype[Any]) -> Any:
    """Return a fill value in the type of its data; ``None`` if it cannot occur there."""
    number = _to_number(value)
    if dtype.kind == "f":
        return dtype.type(number)
    if not np.isfinite(number):
        return None
    # A fill value of 65535 on int16 means the same bits, -1.
    return np.int64(number).astype(dtype)


def _global_crs(ds: xr.Dataset) -> str | None:
    """Return the CRS among the file's own attributes, where no grid mapping states it."""
    if any("grid_mapping" in da.attrs for da in ds.values()):
        return None
    stated = ds.attrs.get("crs")
    return _INIT.sub(r"\1", str(stated).strip()) if stated else None
