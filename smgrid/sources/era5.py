"""Daily mean temperature and total precipitation from ERA5, ERA5-Land, AgERA5 and alike.

What an hourly precipitation value stands for differs between products, and using one rule for
another shifts rain by hours or multiplies it. The catalog therefore states it, see `load`.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec, check_options, find_files
from smgrid.errors import CatalogError, NoDataError, SchemaError, SourceError
from smgrid.resample import nearest
from smgrid.schema import convert_units, describe, get_variable
from smgrid.sources.checks import checked
from smgrid.sources.gridded import concat_time, open_gridded, tidy
from smgrid.sources.options import (
    take_asset,
    take_choice,
    take_native_resolution,
    take_units,
)
from smgrid.sources.window import crop
from smgrid.units import find_conversion
from smgrid.windows import Period

# Distance up to which the nearest native pixel stands for a cell [native pixels]: a pixel beyond
# the edge of the data, and one more column across the antimeridian of a global lattice.
_TOLERANCE = 1.0
# Negative precipitation down to this is rounding of packed values, not an error [m per day]:
# a hundredth of a millimetre.
_PACKING_NOISE = 1e-5
# Time steps of one chunk, where the file has smaller ones or none: a month of hours.
_TIME_CHUNK = 744
_EXPVER = "expver"
_HOURS = 24
_HOUR = pd.Timedelta(1, "h")
_DAY = pd.Timedelta(1, "D")

_Rule = Callable[[xr.DataArray, pd.DatetimeIndex], xr.DataArray]


def load(spec: SourceSpec, grid: GeoBox, period: Period, *, chunks: int = 512) -> xr.Dataset:
    """Load daily weather: the native pixel nearest to each cell's centre, on every day of `period`.

    Parameters
    ----------
    spec
        ``paths`` are NetCDF files or Zarr stores; ``assets`` name ``t2m``, ``tp`` and optionally
        ``time`` in them; ``units`` are those after the packing that files describe themselves.
        Options: ``step`` "hourly" (default) or "daily", and
        for tp ``accumulation`` "per-step", "since-00utc" or "daily-total".
    grid
        Target.
    period
        First and last UTC day.
    chunks
        Tile edge in pixels of `grid`.

    Returns
    -------
    xr.Dataset
        ``t2m`` [K], the mean of the UTC day, and ``tp`` [m], its total; dims (date, y, x), lazy.
        A day with a missing hour is NaN, never a mean or sum of what is left.

    Raises
    ------
    CatalogError
        If the entry is incomplete or contradicts itself.
    SourceError, NoDataError
        If a file cannot be read, is not what the entry says, or does not cover region or period.
    SchemaError
        If units are unknown or contradict those that a file states; when reading, if values are
        physically impossible.

    Notes
    -----
    Day D is 00:00 to 24:00 UTC.

    ``t2m``
        Mean of the 24 instantaneous values stamped 00:00 to 23:00 of D.
    ``tp``, "since-00utc" (ERA5-Land)
        Values accumulate from 00 UTC: the total of D is the one stamped 00:00 of D + 1
        (Muñoz-Sabater et al. 2021, doi:10.5194/essd-13-4349-2021).
    ``tp``, "per-step" (ERA5)
        A value is the amount of the hour that ends at its stamp: the total of D is the sum of the
        24 stamped 01:00 of D to 00:00 of D + 1 (Hersbach et al. 2020, doi:10.1002/qj.3803).
    ``tp``, "daily-total" (AgERA5 and other daily aggregates)
        The value of D is the total of D.
    """
    check_options(spec, "step", "accumulation")
    period = Period.parse(period)
    series = {}
    for name in spec.provides:
        to_days = _choose_rule(spec, name)
        daily = to_days(_open(spec, name, grid, period), period.days)
        daily = convert_units(daily.rename(time="date"), take_units(spec, name), name)
        if name == "tp":
            daily = daily.where((daily >= 0) | (daily < -_PACKING_NOISE) | daily.isnull(), 0)
        daily = checked(daily, name, where=f"{spec.name} ({spec.origin})")
        cells = nearest(daily, grid, tolerance=_TOLERANCE, chunks=chunks)
        series[name] = describe(cells, name)
    return xr.Dataset(series)


def _choose_rule(spec: SourceSpec, name: str) -> _Rule:
    step = take_choice(spec, "step", ("hourly", "daily"), default="hourly")
    if name == "t2m":
        return _mean_of_hours if step == "hourly" else _value_of_day
    if name != "tp":
        msg = f"{spec.origin}: {spec.loader} provides t2m and tp, not {name!r}; remove it"
        raise CatalogError(msg)
    rules = _HOURLY_RULES if step == "hourly" else _DAILY_RULES
    return rules[take_choice(spec, "accumulation", tuple(rules), default=None)]


def _mean_of_hours(da: xr.DataArray, days: pd.DatetimeIndex) -> xr.DataArray:
    return _hours_of_days(da, days, first=0 * _HOUR).mean("hour", skipna=False)


def _sum_of_hours(da: xr.DataArray, days: pd.DatetimeIndex) -> xr.DataArray:
    return _hours_of_days(da, days, first=_HOUR).sum("hour", skipna=False)


def _hours_of_days(
    da: xr.DataArray, days: pd.DatetimeIndex, *, first: pd.Timedelta
) -> xr.DataArray:
    """Give the 24 stamps from `first` on of each day a dim ``hour``; NaN where one is missing."""
    stamps = np.add.outer(days + first, np.arange(_HOURS) * _HOUR.to_timedelta64()).ravel()
    hours = da.reindex(time=stamps).coarsen(time=_HOURS).construct(time=("time", "hour"))
    return hours.drop_vars("time").assign_coords(time=days)


def _value_at_next_midnight(da: xr.DataArray, days: pd.DatetimeIndex) -> xr.DataArray:
    return da.reindex(time=days + _DAY).assign_coords(time=days)


def _value_of_day(da: xr.DataArray, days: pd.DatetimeIndex) -> xr.DataArray:
    stamps = da.indexes["time"].floor("D")
    if stamps.has_duplicates:
        first = stamps[stamps.duplicated()][0]
        msg = f"{da.name}: {first:%Y-%m-%d} has several values; its catalog entry says step: daily"
        raise SourceError(msg)
    return da.assign_coords(time=stamps).reindex(time=days)


_HOURLY_RULES: Mapping[str, _Rule] = {
    "per-step": _sum_of_hours,
    "since-00utc": _value_at_next_midnight,
}
_DAILY_RULES: Mapping[str, _Rule] = {"daily-total": _value_of_day}


def _open(spec: SourceSpec, name: str, grid: GeoBox, period: Period) -> xr.DataArray:
    """Return the variable on its native pixels around `grid`, in the stored units, lazily."""
    stored = take_asset(spec, name)
    source = f"{spec.name} ({spec.origin}), {stored}"
    files = [ds for path in find_files(spec) if stored in (ds := open_gridded(path))]
    if not files:
        msg = f"{source}: none of its files has a variable of that name; correct assets.{name}"
        raise SourceError(msg)
    parts = []
    for ds in files:
        _check_stated_units(spec, name, ds)
        part = tidy(
            ds[stored],
            ds,
            source=source,
            time=spec.assets.get("time"),
            crs=spec.crs,
            native_resolution=take_native_resolution(spec),
            extra_dim=_EXPVER,
        )
        parts.append(_merge_expver(_chunk(crop(part, grid, source=source))))
    whole = concat_time(parts, source=source)
    times = whole.indexes["time"]
    if times[-1] < period.start or times[0] >= period.end + 2 * _DAY:
        msg = (
            f"{source} holds {times[0]:%Y-%m-%d} to {times[-1]:%Y-%m-%d}, nothing from "
            f"{period}; download that period"
        )
        raise NoDataError(msg)
    return _to_units(spec, name, whole)


def _check_stated_units(spec: SourceSpec, name: str, ds: xr.Dataset) -> None:
    """Refuse units that contradict the file's own: metres taken for millimetres look like drought.

    What a file calls its units does not count where the catalog scales its values.
    """
    stored = take_asset(spec, name)
    stated = ds[stored].attrs.get("units")
    if stated is None or name in spec.scale or name in spec.offset:
        return
    units, taken = get_variable(name).units, take_units(spec, name)
    try:
        found = find_conversion(str(stated), units, name=name)
    except SchemaError:
        return  # not a unit that smgrid knows: the catalog has the say
    if found != find_conversion(taken, units, name=name):
        msg = (
            f"{ds.encoding['source']} states {stated!r} as the units of {stored}, but units.{name} "
            f"of {spec.name} is {taken!r}; correct it, or the file"
        )
        raise SchemaError(msg)


def _to_units(spec: SourceSpec, name: str, da: xr.DataArray) -> xr.DataArray:
    """Apply what the catalog states besides the packing that the file describes itself."""
    if spec.nodata is not None:
        da = da.where(da != spec.nodata)
    return da.astype("float32") * spec.scale.get(name, 1.0) + spec.offset.get(name, 0.0)


def _chunk(da: xr.DataArray) -> xr.DataArray:
    """Make it lazy in chunks of a month of hours or more: windows are small, records long."""
    preferred = da.encoding.get("preferred_chunks", {}).get("time", 1)
    return da.chunk(dict.fromkeys(da.dims, -1) | {"time": max(preferred, _TIME_CHUNK)})


def _merge_expver(da: xr.DataArray) -> xr.DataArray:
    """Prefer final to preliminary ERA5, which the CDS delivers as two layers with NaN in turn."""
    if _EXPVER not in da.dims:
        return da
    final, *preliminary = (da.isel({_EXPVER: i}, drop=True) for i in range(da.sizes[_EXPVER]))
    for layer in preliminary:
        final = final.fillna(layer)
    return final
