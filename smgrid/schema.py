"""The variables of smgrid: units, CF names, valid range, kind and packing on disk.

``catalogs/variables.yml`` is the one list; this module reads it, describes DataArrays with it and
checks Datasets against it.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr
import yaml

from smgrid.errors import SchemaError
from smgrid.packing import Packing as Packing
from smgrid.units import find_conversion

Kind = Literal["scene", "series", "static", "label", "map"]

_DIMS: Mapping[Kind, tuple[tuple[str, ...], ...]] = {
    "scene": (("time", "y", "x"),),
    "series": (("date", "y", "x"),),
    "static": (("y", "x"),),
    "label": (("time", "y", "x"), ("station", "time"), ("time", "station")),
    "map": (("time", "y", "x"),),
}
_DIMS_PER_ORBIT = (("relative_orbit",), ("relative_orbit", "y", "x"))


def catalog_folder() -> Path:
    """Return the folder of the YAML files that ship with smgrid.

    A wheel carries it inside the package; in a source checkout it stands beside the package.
    """
    package = Path(__file__).resolve().parent
    packaged = package / "catalogs"
    return packaged if packaged.is_dir() else package.parent / "catalogs"


@dataclass(frozen=True)
class Variable:
    """What is known about one variable; see ``catalogs/variables.yml``."""

    name: str
    """Short name, as in a Dataset."""
    units: str
    """The only units that smgrid keeps it in."""
    long_name: str
    """For people."""
    kind: Kind
    """Decides dims and how it is resampled."""
    packing: Packing
    """Its form on disk."""
    standard_name: str | None = None
    """CF standard name, where CF has one with these units."""
    valid_range: tuple[float, float] | None = None
    """Physical limits in `units`; a value outside is an error."""
    cell_methods: str | None = None
    """CF cell methods of a mean or a sum over time."""
    constant_per_orbit: bool = False
    """Whether a source may give one value or raster per relative orbit."""

    @property
    def dtype(self) -> str:
        """Type in memory: float32, except for integers that are not scaled (masks, classes)."""
        on_disk = np.dtype(self.packing.dtype)
        return self.packing.dtype if on_disk.kind != "f" and not self.packing.scale else "float32"

    @property
    def allowed_dims(self) -> tuple[tuple[str, ...], ...]:
        """Every order of dims that a Dataset may give it."""
        return _DIMS[self.kind] + (_DIMS_PER_ORBIT if self.constant_per_orbit else ())

    @property
    def attrs(self) -> dict[str, str]:
        """Attributes that describe it in a Dataset and on disk."""
        described = {
            "units": self.units,
            "long_name": self.long_name,
            "standard_name": self.standard_name,
            "cell_methods": self.cell_methods,
        }
        return {key: value for key, value in described.items() if value is not None}

    @property
    def packed_range(self) -> tuple[float, float] | None:
        """`valid_range` in the values on disk, as CF wants the attribute of a packed variable."""
        if self.valid_range is None or self.packing.scale is None:
            return self.valid_range
        low, high = self.packing.encode(np.array(self.valid_range), name=self.name)
        return int(low), int(high)


@cache
def load_variables() -> Mapping[str, Variable]:
    """Return every variable of smgrid by name, read from ``catalogs/variables.yml``."""
    path = catalog_folder() / "variables.yml"
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    named = {n: f for name, fields in entries.items() for n, f in _named(name, fields)}
    return MappingProxyType({name: _to_variable(name, fields) for name, fields in named.items()})


def _named(name: str, fields: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """One entry, or one for each per cent."""
    if "{percent}" not in name:
        yield name, fields
        return
    for percent in (f"{number:02d}" for number in range(1, 100)):
        long_name = fields["long_name"].format(percent=percent)
        yield name.format(percent=percent), {**fields, "long_name": long_name}


def get_variable(name: str) -> Variable:
    """Return the variable called `name`; SchemaError if there is none."""
    variables = load_variables()
    if name not in variables:
        near = difflib.get_close_matches(name, variables, n=1)
        known = ", ".join(n for n in variables if not n.startswith("soil_moisture_q"))
        hint = f"did you mean {near[0]!r}?" if near else f"known are {known}"
        msg = f"{name!r} is not a variable of smgrid; {hint}"
        raise SchemaError(msg)
    return variables[name]


def describe(da: xr.DataArray, name: str) -> xr.DataArray:
    """Return `da` called `name` with the units, long name and CF names of that variable.

    Attributes that the schema does not set (for instance ``convention``) are kept.
    """
    variable = get_variable(name)
    kept = {key: value for key, value in da.attrs.items() if key not in _SCHEMA_ATTRS}
    described = da.copy(deep=False).rename(name)
    described.attrs = kept | variable.attrs
    return described


def check_range(values: npt.NDArray[Any], name: str, *, where: str = "") -> None:
    """Raise SchemaError if a value of the variable `name` is outside its valid range.

    Parameters
    ----------
    values
        Values in the variable's units; NaN is missing and passes.
    name
        The variable.
    where
        What the message says about their origin, for instance a file.
    """
    variable = get_variable(name)
    if variable.valid_range is None:
        return
    low, high = variable.valid_range
    bad = (values < low) | (values > high)
    if bad.any():
        origin = f" in {where}" if where else ""
        units = "" if variable.units == "1" else f" {variable.units}"
        msg = (
            f"{name}{origin}: found {values[bad].flat[0]:g}, expected {low:g} to {high:g}"
            f"{units} ({int(bad.sum())} of {values.size} values are outside); "
            "check units, scale and nodata of the source's catalog entry"
        )
        raise SchemaError(msg)


def validate(ds: xr.Dataset) -> None:
    """Raise SchemaError unless every variable of `ds` is as ``catalogs/variables.yml`` says.

    Names, dims, units and types are always checked; values only where they are in memory, so
    that nothing is computed.
    """
    for name, da in ds.data_vars.items():
        variable = get_variable(str(name))
        if da.dims not in variable.allowed_dims:
            expected = " or ".join(str(dims) for dims in variable.allowed_dims)
            msg = f"{name} has the dims {da.dims}, expected {expected}; transpose or expand it"
            raise SchemaError(msg)
        if da.attrs.get("units") != variable.units:
            msg = (
                f"{name} has the units {da.attrs.get('units')!r}, expected {variable.units!r}; "
                "convert it with smgrid.schema.convert_units"
            )
            raise SchemaError(msg)
        if da.dtype != variable.dtype:
            msg = f"{name} is {da.dtype}, expected {variable.dtype}; convert it with astype"
            raise SchemaError(msg)
        if isinstance(da.variable._data, np.ndarray):
            check_range(da.values, str(name))


def convert_units(da: xr.DataArray, from_units: str, name: str) -> xr.DataArray:
    """Return `da` in the units of the variable `name`, as float32.

    Parameters
    ----------
    da
        Values in `from_units`; numpy or dask.
    from_units
        Units as the provider spells them, for instance ``"degC"`` or ``"g/kg"``.
    name
        The variable that `da` holds.

    Raises
    ------
    SchemaError
        If no exact conversion is listed. Linear power to dB is not one: the averaging domain
        decides when it is done.
    """
    units = get_variable(name).units
    factor, offset = find_conversion(from_units, units, name=name)
    converted = (da * factor + offset).astype("float32")
    converted.attrs = da.attrs | {"units": units}
    return converted


_SCHEMA_ATTRS = frozenset({"units", "long_name", "standard_name", "cell_methods"})


def _to_variable(name: str, fields: Mapping[str, Any]) -> Variable:
    packing = Packing(**fields["packing"])
    valid_range = fields["valid_range"] and tuple(float(limit) for limit in fields["valid_range"])
    return Variable(name=name, **{**fields, "packing": packing, "valid_range": valid_range})
