"""Attributes and coordinates of exported files: CF-1.11 and ACDD-1.3, as far as the store tells."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

import smgrid
from smgrid.cube.coords import CRS_NAME
from smgrid.export.footprint import lonlat_extent
from smgrid.export.stored import StoredMap, StoredVariable
from smgrid.grid import require_north_up

OF_STORED_TYPE = frozenset({"valid_range", "valid_min", "valid_max", "flag_masks", "flag_values"})
"""Attributes that have the type of the values on disk."""
CONVENTIONS = "CF-1.11, ACDD-1.3"

# Where the store is silent.
_DEFAULTS = {
    "title": "Gridded data of smgrid",
    "references": "not stated",
    "license": "not stated; the licences of the inputs apply",
}
_MAP = {
    "title": "Surface soil moisture",
    "summary": (
        "Surface soil moisture of single Sentinel-1 acquisitions, estimated by an ensemble of "
        "neural networks from backscatter, vegetation, weather, soil and terrain, with the spread "
        "of the ensemble and quality flags."
    ),
    "keywords": "soil moisture, Sentinel-1, neural network ensemble",
    "references": "Zhu, Dai, Liu, Yuan and Walker (2024), Remote Sens. Environ. 301:113944",
}
_REGULAR = {
    "summary": (
        "Surface soil moisture in regular steps, each made of the Sentinel-1 acquisitions in it or "
        "before it, which were estimated by an ensemble of neural networks from backscatter, "
        "vegetation, weather, soil and terrain; with their number and age."
    )
}

_TIME = {
    "units": "seconds since 1970-01-01 00:00:00",
    "calendar": "proleptic_gregorian",
    "units_metadata": "leap_seconds: none",
}
_COORDS = {
    "time": {"long_name": "start of the acquisition, UTC"},
    "date": {"long_name": "date, UTC"},
    "step": {"long_name": "start of the step, UTC"},
    "platform": {"long_name": "satellite", "standard_name": "platform_name"},
    "orbit_state": {"long_name": "direction of flight"},
    "relative_orbit": {"long_name": "relative orbit number", "units": "1"},
}


def global_attrs(stored: StoredMap, *, form: str) -> dict[str, Any]:
    """Return the global attributes of an export.

    Parameters
    ----------
    stored
        What is exported; attributes of its group win over what is derived here.
    form
        What the history calls the export, for instance ``"NetCDF"``.

    Returns
    -------
    dict
        Those of CF (``Conventions``, ``title``, ``source``, ``history``, ``references``) and of
        ACDD-1.3 (``summary``, ``license``, extent in space and time). Nothing in it depends on
        the clock or the place of the store, so that the same store gives the same file.
    """
    own = {str(key): value for key, value in stored.coords.attrs.items()}
    names = [variable.name for variable in stored.variables]
    about = _MAP if "soil_moisture" in names else {"summary": f"Gridded {', '.join(names)}."}
    if about is _MAP and "smgrid_regular" in own:
        about = _MAP | _REGULAR
    attrs = _DEFAULTS | about | {"source": _source(own)} | own
    line = f"smgrid {smgrid.__version__}: exported as {form} from a Zarr store"
    history = "\n".join(text for text in (str(own.get("history", "")), line) if text)
    attrs |= {"Conventions": CONVENTIONS, "history": history, "cdm_data_type": "Grid"}
    return attrs | _extent(stored) | _coverage(stored)


def _source(own: Mapping[str, Any]) -> str:
    parts = [f"smgrid {smgrid.__version__}"]
    if "smgrid_ensemble" in own:
        parts.append(f"ensemble {own['smgrid_ensemble']} on layout {own.get('smgrid_layout')}")
    if "smgrid_catalog" in own:
        parts.append(f"catalog {own['smgrid_catalog']}")
    return ", ".join(parts)


def _extent(stored: StoredMap) -> dict[str, Any]:
    west, south, east, north = lonlat_extent(stored.grid)
    return {
        "geospatial_lat_min": south,
        "geospatial_lat_max": north,
        "geospatial_lat_units": "degrees_north",
        "geospatial_lon_min": west,  # greater than the other across the antimeridian, says ACDD
        "geospatial_lon_max": east,
        "geospatial_lon_units": "degrees_east",
        "geospatial_bounds_crs": _name(stored),
    }


def _name(stored: StoredMap) -> str:
    crs = require_north_up(stored.grid).proj
    authority = crs.to_authority(min_confidence=100)
    return ":".join(authority) if authority else str(crs.name)


def _coverage(stored: StoredMap) -> dict[str, Any]:
    if stored.times.empty:
        return {}
    first, last = stored.span
    return {
        "time_coverage_start": f"{first:%Y-%m-%dT%H:%M:%SZ}",
        "time_coverage_end": f"{last:%Y-%m-%dT%H:%M:%SZ}",
    }


@dataclass(frozen=True)
class FileCoord:
    """A coordinate as it is in a file."""

    name: str
    dims: tuple[str, ...]
    values: npt.NDArray[Any]
    """Dates are int64 seconds since 1970, text is of objects."""
    attrs: dict[str, Any]


def file_coords(stored: StoredMap) -> list[FileCoord]:
    """Return the coordinates of an export: axes, labels of dates, the CRS, bounds of steps."""
    dims = {"y", "x", stored.time_dim}
    return [
        _file_coord(coord, stored.bounds)
        for name, coord in stored.coords.coords.items()
        if name == stored.bounds or set(coord.dims) <= dims
    ]


def _file_coord(coord: xr.DataArray, bounds: str | None) -> FileCoord:
    name, values = str(coord.name), coord.values
    is_step = bounds is not None and coord.attrs.get("bounds") == bounds
    attrs = _COORDS.get("step" if is_step else name, {}) | coord.attrs
    if values.dtype.kind == "M":
        values, attrs = pd.DatetimeIndex(values.ravel()).as_unit("s").asi8, attrs | _TIME
    elif values.dtype.kind in "OU":
        values = values.astype(object)
    else:
        values = values.astype(values.dtype.newbyteorder("="))
    if name == bounds:
        attrs = {}  # CF 7.1: those of the coordinate hold for its bounds
    return FileCoord(name, tuple(map(str, coord.dims)), values.reshape(coord.shape), attrs)


def json_text(value: Any) -> Any:
    """Return an attribute as it is, or as JSON if it is no text, number or list of either."""
    kinds = {type(part) for part in (value if isinstance(value, list) else [value])}
    if isinstance(value, np.ndarray | np.generic) or kinds == {str}:
        return value
    return value if kinds and kinds <= {int, float} else json.dumps(value)


def label_names(stored: StoredMap, variable: StoredVariable) -> list[str]:
    """Return the coordinates of a variable that are no axes, such as ``platform``."""
    dims = set(variable.dims)
    coords = stored.coords.coords
    axes = {*dims, CRS_NAME}
    return [str(n) for n in coords if n not in axes and set(coords[n].dims) <= dims]


def array_attrs(variable: StoredVariable, *, labels: Sequence[str]) -> dict[str, Any]:
    """Return the attributes of a variable on disk, apart from its fill value."""
    packing = {"scale_factor": variable.packing.scale, "add_offset": variable.packing.offset}
    attrs = variable.attrs | {
        key: np.float64(value) for key, value in packing.items() if value is not None
    }
    if labels:
        attrs["coordinates"] = " ".join(labels)
    return {**attrs, "grid_mapping": CRS_NAME}
