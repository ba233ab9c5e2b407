"""The on-disk form of values and attributes: packing, fill values, what JSON can hold.

Attributes that describe the store itself (format, CRS, extent) are written to the groups and taken
away again on opening, because they would be wrong after the first selection in memory.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from smgrid.errors import StoreError
from smgrid.schema import Packing, Variable, check_range, load_variables

CONVENTIONS = "CF-1.11"
_STORE_ATTRS = frozenset(
    {"Conventions", "zarr_conventions", "multiscales", "smgrid_format", "smgrid_status"}
)
# Decided here, whatever the source of the data left behind.
ENCODING_ATTRS = frozenset(
    {"_FillValue", "missing_value", "nodata", "scale_factor", "add_offset"}
    | {"grid_mapping", "coordinates"}
)
_RANGE_ATTRS = frozenset({"valid_range", "valid_min", "valid_max"})
_FLAG_ATTRS = ("flag_masks", "flag_values")


def memory_attrs(attrs: Mapping[Any, Any], *, where: str) -> dict[str, Any]:
    """Return the attributes of a group that its data carries, as JSON values."""
    own = {
        key: value
        for key, value in attrs.items()
        if key not in _STORE_ATTRS and not str(key).startswith(("proj:", "spatial:"))
    }
    return json_attrs(own, where=where)


def json_attrs(attrs: Mapping[Any, Any], *, where: str) -> dict[str, Any]:
    """Return attributes as JSON values; StoreError names one that is none."""
    return {str(key): to_json(value, where=f"{where}, {key}") for key, value in attrs.items()}


def to_json(value: Any, *, where: str) -> Any:
    """Return an attribute or a manifest entry as JSON values; StoreError names what is none."""
    if isinstance(value, Mapping):
        return json_attrs(value, where=where)
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        dates = array.dtype.kind == "M"
        return to_json((array.astype(str) if dates else array).tolist(), where=where)
    if isinstance(value, list | tuple | set | frozenset):
        ordered = sorted(value) if isinstance(value, set | frozenset) else value
        return [to_json(item, where=where) for item in ordered]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if hasattr(value, "isoformat"):
        return value.isoformat()
    msg = (
        f"{where}: {value!r} ({type(value).__name__}) cannot be stored, expected text, finite "
        "numbers, dates or lists of them; convert or drop it"
    )
    raise StoreError(msg)


def variable_attrs(da: xr.DataArray, variable: Variable | None, *, where: str) -> dict[str, Any]:
    """Return the attributes of a data variable on disk, with CF names and the packed range."""
    dropped = ENCODING_ATTRS if variable is None else ENCODING_ATTRS | _RANGE_ATTRS
    attrs = {key: value for key, value in da.attrs.items() if key not in dropped}
    if variable is not None:
        packed = variable.packed_range
        attrs |= variable.attrs | ({} if packed is None else {"valid_range": packed})
    return json_attrs(attrs, where=where)


def opened_attrs(da: xr.DataArray) -> dict[Any, Any]:
    """Undo `variable_attrs`: no packed range, and flag masks of the variable's own type."""
    dropped = _RANGE_ATTRS if da.name in load_variables() else frozenset()
    kept = {key: value for key, value in da.attrs.items() if key not in dropped}
    return kept | {key: np.asarray(kept[key], da.dtype) for key in _FLAG_ATTRS if key in kept}


def packing_of(name: str, dtype: np.dtype[Any]) -> Packing:
    """Return how a variable is stored: as the schema says, or as it is if that does not know it.

    Floats of a user's own variable become float32.
    """
    known = load_variables().get(name)
    if known is not None:
        return known.packing
    return Packing(dtype="float32" if dtype.kind == "f" else dtype.name)


def encode(values: npt.NDArray[Any], name: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return values as they are stored in an array of `dtype`.

    Raises
    ------
    SchemaError
        If a variable of the schema is outside its valid range.
    """
    known = load_variables().get(name)
    if known is None:
        return values.astype(dtype, copy=False)
    check_range(values, name)
    return known.packing.encode(values, name=name)


def fill_of(packing: Packing) -> float | int:
    """Return the value of a chunk that was never written.

    The missing value where there is one; otherwise an extreme that no count or class reaches.
    """
    dtype = np.dtype(packing.dtype)
    if packing.fill is not None:
        return packing.fill
    if dtype.kind == "f":
        return math.nan
    if dtype.kind == "b":
        return 0
    limits = np.iinfo(dtype)
    return int(limits.min if dtype.kind == "i" else limits.max)


def array_encoding(packing: Packing) -> dict[str, Any]:
    """Return the xarray encoding of values: type, scale and the sentinel of missing values.

    Zarr's ``fill_value`` and CF's ``_FillValue`` are the same. A bit mask has no ``_FillValue``,
    which would make it a float in memory.
    """
    fill = fill_of(packing)
    encoding: dict[str, Any] = {"dtype": packing.dtype, "fill_value": fill}
    if packing.scale is not None:
        encoding["scale_factor"] = packing.scale
    if packing.offset is not None:
        encoding["add_offset"] = packing.offset
    if packing.scale is not None or np.dtype(packing.dtype).kind == "f":
        encoding["_FillValue"] = fill
    return encoding
