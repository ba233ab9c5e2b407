"""The variables of smgrid: units, CF names, valid range, kind and packing on disk.

``catalogs/variables.yml`` is the one list; this module reads it, describes DataArrays with it,
checks Datasets against it and encodes values for the disk.
"""

import difflib
from collections.abc import Mapping
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

Kind = Literal["scene", "series", "static", "label", "map"]

_DIMS: Mapping[Kind, tuple[tuple[str, ...], ...]] = {
    "scene": (("time", "y", "x"),),
    "series": (("date", "y", "x"),),
    "static": (("y", "x"),),
    "label": (("time", "y", "x"), ("station", "time"), ("time", "station")),
    "map": (("time", "y", "x"),),
}
_DIMS_PER_ORBIT = (("relative_orbit",), ("relative_orbit", "y", "x"))

# Spellings of one and the same unit, found in provider files; the value is smgrid's spelling.
_SPELLINGS: Mapping[str, str] = {
    "": "1",
    "dimensionless": "1",
    "db": "dB",
    "degrees": "degree",
    "deg": "degree",
    "kelvin": "K",
    "C": "degC",
    "°C": "degC",
    "celsius": "degC",
    "Celsius": "degC",
    "degree_Celsius": "degC",
    "degrees_Celsius": "degC",
    "metre": "m",
    "meter": "m",
    "metres": "m",
    "meters": "m",
    "m of water equivalent": "m",
    "mm/day": "mm",
    "mm d-1": "mm",
    "mm day-1": "mm",
    "%": "percent",
    "g/kg": "g kg-1",
    "cg/cm3": "cg cm-3",
    "cg/cm³": "cg cm-3",
    "g/cm3": "g cm-3",
    "g/cm³": "g cm-3",
    "kg/dm3": "g cm-3",
    "kg/dm³": "g cm-3",
    "kg dm-3": "g cm-3",
    "kg/m3": "kg m-3",
    "kg/m³": "kg m-3",
    "m3/m3": "m3 m-3",
    "cm3/cm3": "m3 m-3",
    "cm3 cm-3": "m3 m-3",
    "cm**3/cm**3": "m3 m-3",
    "m**3 m**-3": "m3 m-3",
}

# (from, to): (factor, offset), exact by the definition of the units. A daily total in kg m-2 is
# its depth in millimetres at the conventional density of water of 1000 kg m-3.
_CONVERSIONS: Mapping[tuple[str, str], tuple[float, float]] = {
    ("degC", "K"): (1.0, 273.15),
    ("mm", "m"): (1e-3, 0.0),
    ("cm", "m"): (1e-2, 0.0),
    ("kg m-2", "m"): (1e-3, 0.0),
    ("percent", "g kg-1"): (10.0, 0.0),
    ("g cm-3", "cg cm-3"): (100.0, 0.0),
    ("kg m-3", "cg cm-3"): (0.1, 0.0),
    ("percent", "m3 m-3"): (1e-2, 0.0),
    ("rad", "degree"): (180.0 / np.pi, 0.0),
}


def catalog_folder() -> Path:
    """Return the folder of the YAML files that ship with smgrid.

    A wheel carries it inside the package; in a source checkout it stands beside the package.
    """
    package = Path(__file__).resolve().parent
    packaged = package / "catalogs"
    return packaged if packaged.is_dir() else package.parent / "catalogs"


@dataclass(frozen=True)
class Packing:
    """How a variable is stored: rounded floats, or integers with a scale and a fill value."""

    dtype: str
    """numpy name of the type on disk."""
    scale: float | None = None
    """Physical units per count; ``None`` when counts are the values themselves."""
    offset: float | None = None
    """Physical value of count 0."""
    fill: int | None = None
    """Count that stands for a missing value; floats use NaN."""
    mantissa_bits: int | None = None
    """Explicit mantissa bits that a float keeps; ``None`` keeps all."""

    def encode(self, values: npt.ArrayLike, *, name: str = "values") -> npt.NDArray[Any]:
        """Return `values` as they are stored.

        Parameters
        ----------
        values
            Physical values; NaN is missing.
        name
            What the error message calls them.

        Raises
        ------
        SchemaError
            If an integer type cannot hold a value. Nothing is ever wrapped or clipped.

        Notes
        -----
        Integers are ``round((value - offset) / scale)``. Floats keep `mantissa_bits` explicit
        mantissa bits, rounded to nearest, ties to even: "BitRound" of Kouzmin et al. (2021,
        doi:10.1038/s43588-021-00156-2) in the family of Zender (2016,
        doi:10.5194/gmd-9-3199-2016). The relative error is at most ``2**-(mantissa_bits + 1)``.
        """
        array = np.asarray(values)
        if np.dtype(self.dtype).kind == "f":
            return _round_mantissa(array.astype(self.dtype, copy=False), self.mantissa_bits)
        return self._to_integers(array, name)

    def _to_integers(self, values: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
        missing = np.isnan(values)
        counts = np.where(missing, 0, values).astype("float64")
        counts = np.rint((counts - (self.offset or 0.0)) / (self.scale or 1.0))
        limits = np.iinfo(self.dtype)
        bad = (counts < limits.min) | (counts > limits.max)
        if self.fill is not None:
            bad |= (counts == self.fill) & ~missing
        elif missing.any():
            msg = f"{name}: a missing value cannot be stored, {self.dtype} has no fill value here"
            raise SchemaError(msg)
        if bad.any():
            msg = (
                f"{name}: {values[bad].flat[0]} cannot be stored as {self.dtype} "
                f"(scale {self.scale or 1.0:g}, fill value {self.fill}); "
                "the value is outside of what the variable can hold, check its units"
            )
            raise SchemaError(msg)
        packed = counts.astype(self.dtype)
        if self.fill is not None:
            packed[missing] = self.fill
        return packed


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
    return MappingProxyType({name: _to_variable(name, fields) for name, fields in entries.items()})


def get_variable(name: str) -> Variable:
    """Return the variable called `name`; SchemaError if there is none."""
    variables = load_variables()
    if name not in variables:
        near = difflib.get_close_matches(name, variables, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(variables)}"
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
        msg = (
            f"{name}{origin}: found {values[bad].flat[0]:g}, expected {low:g} to {high:g} "
            f"{variable.units} ({int(bad.sum())} of {values.size} values are outside); "
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
    stored = _SPELLINGS.get(from_units.strip(), from_units.strip())
    if stored == units:
        converted = da.astype("float32")
    elif (stored, units) in _CONVERSIONS:
        factor, offset = _CONVERSIONS[stored, units]
        converted = (da * factor + offset).astype("float32")
    else:
        known = sorted(start for start, end in _CONVERSIONS if end == units)
        msg = (
            f"{name}: no exact conversion from {from_units!r} to {units!r}; "
            f"known for {units!r}: {', '.join([units, *known])}"
        )
        raise SchemaError(msg)
    converted.attrs = da.attrs | {"units": units}
    return converted


_SCHEMA_ATTRS = frozenset({"units", "long_name", "standard_name", "cell_methods"})


def _to_variable(name: str, fields: Mapping[str, Any]) -> Variable:
    packing = Packing(**fields["packing"])
    valid_range = fields["valid_range"] and tuple(float(limit) for limit in fields["valid_range"])
    return Variable(name=name, **{**fields, "packing": packing, "valid_range": valid_range})


def _round_mantissa(values: npt.NDArray[Any], bits: int | None) -> npt.NDArray[Any]:
    explicit = np.finfo(values.dtype).nmant
    if bits is None or bits >= explicit:
        return values
    unsigned = values.view(f"u{values.dtype.itemsize}")
    dropped = unsigned.dtype.type(explicit - bits)
    one = unsigned.dtype.type(1)
    # Adding just under half of the last kept bit, plus that bit itself, carries ties to even.
    half = (one << (dropped - one)) - one
    rounded = unsigned + half + ((unsigned >> dropped) & one)
    rounded &= ~((one << dropped) - one)
    # The carry would turn some NaN patterns into numbers.
    return np.where(np.isnan(values), values, rounded.view(values.dtype))
