"""Values that the user states for a site instead of a file: measured soil texture, a known angle.

They are marked as assumed, so that no report can take them for data of a provider.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import dask.array
import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec, check_options
from smgrid.errors import CatalogError
from smgrid.grid import grid_coords
from smgrid.schema import check_range, convert_units, describe, get_variable
from smgrid.windows import Period
from smgrid.yamltext import suggest

# Sentinel-1 repeats after 175 orbits; 0 stands for an unknown one.
_ORBITS = range(176)


def load(spec: SourceSpec, grid: GeoBox, period: Period, *, chunks: int = 512) -> xr.Dataset:
    """Return constants over `grid`, marked as assumed.

    Parameters
    ----------
    spec
        ``note`` says where the values come from. Options: ``values``, a number per static
        variable; ``angle``, a number per relative orbit or one for all orbits. ``units`` where
        they are not smgrid's.
    grid
        Target.
    period
        Not used: the values do not change.
    chunks
        Tile edge [pixels of `grid`].

    Returns
    -------
    xarray.Dataset
        Static variables (y, x), lazy; angle (relative_orbit,). Attributes ``assumed: 1`` and
        ``assumed_note``.

    Raises
    ------
    CatalogError
        If the note or a value is missing, or a value is for a variable that changes in time.
    SchemaError
        If a value is out of its valid range.
    """
    check_options(spec, "values", "angle")
    if not spec.note.strip():
        msg = (
            f"{spec.origin}: note of {spec.name} is missing; say where the stated values come from"
        )
        raise CatalogError(msg)
    values = _take_table(spec, "values", spec.options.get("values", {}))
    _refuse_surplus(spec, values)
    ds = xr.Dataset(coords=grid_coords(grid))
    for name in spec.provides:
        stated = _angle(spec) if name == "angle" else _static(spec, name, values, grid, chunks)
        ds[name] = describe(stated, name).assign_attrs(assumed=1, assumed_note=spec.note.strip())
    return ds


def _static(
    spec: SourceSpec, name: str, values: Mapping[Any, float], grid: GeoBox, chunks: int
) -> xr.DataArray:
    if get_variable(name).kind != "static":
        msg = (
            f"{spec.origin}: {name} of {spec.name} changes in time and cannot be stated as one "
            "value; give a source with data"
        )
        raise CatalogError(msg)
    if name not in values:
        msg = f"{spec.origin}: options.values.{name} of {spec.name} is missing; state its value"
        raise CatalogError(msg)
    (value,) = _to_canonical(spec, name, [values[name]])
    data = dask.array.full(tuple(grid.shape), value, dtype="float32", chunks=chunks)
    return xr.DataArray(data, dims=("y", "x"))


def _angle(spec: SourceSpec) -> xr.DataArray:
    stated = spec.options.get("angle")
    if stated is None:
        msg = f"{spec.origin}: options.angle of {spec.name} is missing; state it in degrees"
        raise CatalogError(msg)
    per_orbit = isinstance(stated, Mapping)
    table = _take_table(spec, "angle", stated if per_orbit else dict.fromkeys(_ORBITS, stated))
    wrong = [orbit for orbit in table if orbit not in _ORBITS]
    if wrong:
        msg = (
            f"{spec.origin}: options.angle of {spec.name}: {wrong[0]!r} is not a relative orbit; "
            "its keys are whole numbers from 1 to 175"
        )
        raise CatalogError(msg)
    orbits = sorted(table)
    data = _to_canonical(spec, "angle", [table[orbit] for orbit in orbits])
    coords = {"relative_orbit": np.array(orbits, dtype="int16")}
    return xr.DataArray(data, dims="relative_orbit", coords=coords)


def _to_canonical(spec: SourceSpec, name: str, stated: Sequence[float]) -> npt.NDArray[np.float32]:
    """Return stated values in the variable's units, checked against its valid range."""
    units = spec.units.get(name, get_variable(name).units)
    converted = convert_units(xr.DataArray(np.array(stated)), units, name).values
    check_range(converted, name, where=spec.origin)
    return converted


def _take_table(spec: SourceSpec, key: str, table: Any) -> dict[Any, float]:
    """Return a table of numbers from the options."""
    numbers = table.values() if isinstance(table, Mapping) else [table]
    if not isinstance(table, Mapping) or not all(type(n) in (int, float) for n in numbers):
        msg = f"{spec.origin}: options.{key} of {spec.name} is {table!r}; give a table of numbers"
        raise CatalogError(msg)
    return dict(table)


def _refuse_surplus(spec: SourceSpec, values: Mapping[Any, float]) -> None:
    for name in values:
        if name not in spec.provides:
            msg = (
                f"{spec.origin}: options.values.{name} of {spec.name} is not in its provides; "
                f"{suggest(str(name), spec.provides)}"
            )
            raise CatalogError(msg)
