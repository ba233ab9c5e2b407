"""Backscatter from fine pixels to a target grid: the averaging domain, decibels, plausibility.

The mean of decibels is the logarithm of the geometric mean of power: lower than the logarithm of
the mean power, by about 2.5 dB for single-look speckle. Which of the two a model was trained with
is part of its layout, so both are exact averages over every fine pixel.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec
from smgrid.errors import CatalogError, SchemaError
from smgrid.resample import area_average
from smgrid.schema import describe
from smgrid.sources.options import take_choice, take_units

Averaging = Literal["db", "linear"]

# Power cannot be negative; subtracting thermal noise leaves values of about -0.01 at the lowest.
_LOWEST_POWER = -1.0
# A block of decibels with nothing below 0 is power. Fewer pixels may all be bright targets.
_BRIGHT_PIXELS = 8


def take_average(spec: SourceSpec) -> Averaging:
    """Return the averaging domain of a source, ``"db"`` unless its options say otherwise."""
    return take_choice(spec, "average", get_args(Averaging), default="db")  # type: ignore[return-value]


def check_backscatter(spec: SourceSpec) -> None:
    """Raise CatalogError unless `spec` states convention, units and a known averaging domain."""
    take_average(spec)
    if spec.convention not in ("sigma0", "gamma0"):
        msg = (
            f"{spec.origin}: convention of {spec.name} is {spec.convention!r}; write sigma0 or "
            "gamma0 as the provider's guide says, the two differ by the cosine of the angle"
        )
        raise CatalogError(msg)
    for name in spec.provides:
        units = take_units(spec, name)
        if units not in ("1", "dB"):
            msg = (
                f"{spec.origin}: units.{name} of {spec.name} is {units!r}; "
                'write "1" for linear power or dB'
            )
            raise CatalogError(msg)


def average_backscatter(
    da: xr.DataArray, grid: GeoBox, *, spec: SourceSpec, labels: Sequence[str], chunks: int
) -> xr.DataArray:
    """Return backscatter [dB] on `grid`, averaged over all of its fine pixels.

    Parameters
    ----------
    da
        Fine pixels (time, y, x) in the units that `spec` states, one acquisition per chunk; its
        name is the variable. NaN is missing, and so is a power of 0 or less.
    grid
        Target.
    spec
        Units, convention and averaging domain.
    labels
        What each acquisition is called in errors.
    chunks
        Tile edge [pixels of `grid`].

    Raises
    ------
    SchemaError
        When computed, if the values contradict the stated units.

    Notes
    -----
    ``dB = 10 log10(power)`` (Ulaby and Long 2014, Microwave Radar and Radiometric Remote Sensing).
    """
    name, average = str(da.name), take_average(spec)
    stored: dict[str, Any] = {"name": name, "units": take_units(spec, name), "origin": spec.origin}
    acquisition = xr.DataArray(np.array(labels, dtype=object), dims=da.dims[:1])
    fine = _lazily(_to_domain, da, acquisition.chunk(1), average=average, **stored)
    averaged = area_average(fine, grid, chunks=chunks)
    if average == "linear":
        averaged = _lazily(_power_to_db, averaged)
    described = describe(averaged, name)
    return described.assign_attrs(convention=spec.convention, averaging=average)


def _lazily(function: Any, *arrays: xr.DataArray, **kwargs: Any) -> xr.DataArray:
    result: xr.DataArray = xr.apply_ufunc(
        function, *arrays, kwargs=kwargs, dask="parallelized", output_dtypes=["float32"]
    )
    return result


def _to_domain(
    values: npt.NDArray[np.float32],
    label: npt.NDArray[np.object_],
    *,
    name: str,
    units: str,
    average: Averaging,
    origin: str,
) -> npt.NDArray[np.float32]:
    """Return values of one acquisition in the domain in which they are averaged."""
    where = f"{name} of {label.flat[0]}"
    if units == "1":
        _refuse_decibels(values, where, origin)
        power = np.where(values > 0, values, np.float32(np.nan))
        return power if average == "linear" else _power_to_db(power, out=power)
    _refuse_power(values, where, origin)
    return values if average == "db" else np.power(np.float32(10), values / 10)


def _power_to_db(
    power: npt.NDArray[np.float32], out: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """Return decibels, in `out` if given: new memory for a fine tile costs as much as the logs."""
    decibels = np.log10(power, out=out)
    return np.multiply(decibels, np.float32(10), out=decibels)


def _refuse_decibels(values: npt.NDArray[np.float32], where: str, origin: str) -> None:
    impossible = values < _LOWEST_POWER
    if impossible.any():
        msg = (
            f'{where}: found {values[impossible][0]:g}, but power (units "1") cannot be negative; '
            f"in {origin} write units dB if it is decibels, or nodata if it means missing"
        )
        raise SchemaError(msg)


def _refuse_power(values: npt.NDArray[np.float32], where: str, origin: str) -> None:
    valid = values[np.isfinite(values)]
    if valid.size >= _BRIGHT_PIXELS and valid.min() > 0:
        msg = (
            f"{where}: its units are dB, but all {valid.size} values are above 0 ({valid.min():g} "
            f'to {valid.max():g}); if it is linear power write units "1" in {origin}'
        )
        raise SchemaError(msg)
