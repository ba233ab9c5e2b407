"""Attributes and coordinates of exported files: CF-1.11 and ACDD-1.3, as far as the store tells."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

import smgrid
from smgrid.cube.coords import CRS_NAME
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

_TIME = {
    "units": "seconds since 1970-01-01 00:00:00",
    "calendar": "proleptic_gregorian",
    "units_metadata": "leap_seconds: none",
}
_COORDS = {
    "time": {"long_name": "start of the acquisition, UTC"},
    "date": {"long_name": "date, UTC"},
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
    box = stored.grid.geographic_extent.boundingbox
    return {
        "geospatial_lat_min": box.bottom,
        "geospatial_lat_max": box.top,
        "geospatial_lat_units": "degrees_north",
        "geospatial_lon_min": box.left,
        "geospatial_lon_max": box.right,
        "geospatial_lon_units": "degrees_east",
        "geospatial_bounds_crs": _name(stored),
    }


def _name(stored: StoredMap) -> str:
    crs = require_north_up(stored.grid).proj
    authority = crs.to_authority(min_confidence=100)
    return ":".join(authority) if authority else str(crs.name)


def _coverage(stored: StoredMap) -> dict[str, Any]:
    times = stored.times
    if times.empty:
        return {}
    return {
        "time_coverage_start": f"{times[0]:%Y-%m-%dT%H:%M:%SZ}",
        "time_coverage_end": f"{times[-1]:%Y-%m-%dT%H:%M:%SZ}",
    }


def stored_coord(coord: xr.DataArray) -> tuple[npt.NDArray[Any], dict[str, Any]]:
    """Return the values of a coordinate as they are stored, and its attributes.

    Dates are int64 seconds since 1970, text is of objects.
    """
    values = coord.values
    attrs = _COORDS.get(str(coord.name), {}) | coord.attrs
    if values.dtype.kind == "M":
        return pd.DatetimeIndex(values).as_unit("s").asi8, attrs | _TIME
    if values.dtype.kind in "OU":
        return values.astype(object), attrs
    return values.astype(values.dtype.newbyteorder("=")), attrs


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
