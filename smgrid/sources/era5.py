"""Daily mean temperature and total precipitation from ERA5, ERA5-Land, AgERA5 and alike.

What an hourly precipitation value stands for differs between products, and using one rule for
another shifts rain by hours or multiplies it. The catalog therefore states it, see `load`.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec, check_options
from smgrid.errors import CatalogError, NoDataError, SchemaError, SourceError
from smgrid.resample import nearest
from smgrid.schema import convert_units, describe, get_variable
from smgrid.sources import OBSERVED
from smgrid.sources.checks import checked
from smgrid.sources.daily import (
    MEAN_OF_HOURS,
    SUM_OF_HOURS,
    TOTAL_AT_MIDNIGHT,
    DayRule,
    covered_days,
    to_days,
    values_of_days,
)
from smgrid.sources.gridded import (
    chunk_as_stored,
    concat_time,
    mark_blocks,
    open_gridded,
    tidy,
)
from smgrid.sources.options import (
    take_asset,
    take_choice,
    take_days,
    take_native_resolution,
    take_units,
)
from smgrid.sources.weather_files import weather_files
from smgrid.sources.window import crop
from smgrid.units import find_conversion
from smgrid.windows import Period

# Distance up to which the nearest native pixel stands for a cell [native pixels]: a pixel beyond
# the edge of the data, and one more column across the antimeridian of a global lattice.
_TOLERANCE = 1.0
# Negative precipitation down to this is rounding of packed values, not an error [m per day]:
# a hundredth of a millimetre.
_PACKING_NOISE = 1e-5
# Time steps that one task reads at least: a month of hours.
_STEPS = 744
_EXPVER = "expver"
_DAY, _SECOND = pd.Timedelta(1, "D"), pd.Timedelta(1, "s")
_LOCAL_DAYS = "days of the provider begin at local midnight, not at 00 UTC"

_RAIN_RULES: Mapping[str, DayRule] = {
    "per-step": SUM_OF_HOURS,
    "since-00utc": TOTAL_AT_MIDNIGHT,
}


def load(spec: SourceSpec, grid: GeoBox, period: Period, *, chunks: int = 512) -> xr.Dataset:
    """Load daily weather: the native pixel nearest to each cell's centre, on every day of `period`.

    Parameters
    ----------
    spec
        ``paths`` are NetCDF files (also zipped, as the Climate Data Store delivers variables of
        different kinds, or URLs) or Zarr stores, local or behind HTTP; ``assets`` name ``t2m``,
        ``tp`` and optionally ``time`` in them; ``units`` are those after the packing that files
        describe themselves. Options: ``step`` "hourly" (default) or "daily"; for tp
        ``accumulation`` "per-step", "since-00utc" or "daily-total"; for daily values ``day``
        "utc" (default) or "local", which is where the provider's days begin; ``max_days``, the
        longest period that is read from a store whose chunks hold the globe.
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
        A day with a missing hour is NaN, never a mean or sum of what is left. ``observed``
        (date) tells which days the files have.

    Raises
    ------
    CatalogError
        If the entry is incomplete or contradicts itself.
    SourceError, NoDataError
        If a file cannot be read, is not what the entry says, or does not cover region or period;
        when reading, if hourly rain contradicts its accumulation.
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
        The value of D is the total of D. AgERA5's days begin at local midnight (Boogaard et al.
        2020, doi:10.24381/cds.6c68c9bb): ``day: local`` records it as a comment, the values stay.
    """
    check_options(spec, "step", "accumulation", "day", "max_days")
    period = Period.parse(period)
    _check_length(spec, period)
    series, observed = {}, np.ones(len(period.days), bool)
    for name in spec.provides:
        daily, covered = _load_days(spec, name, grid, period)
        cells = nearest(daily, grid, tolerance=_TOLERANCE, chunks=chunks)
        series[name] = describe(cells, name)
        observed &= covered
        if take_choice(spec, "day", ("utc", "local"), default="utc") == "local":
            series[name].attrs["comment"] = _LOCAL_DAYS
    return xr.Dataset(series).assign_coords({OBSERVED: ("date", observed)})


def _load_days(
    spec: SourceSpec, name: str, grid: GeoBox, period: Period
) -> tuple[xr.DataArray, npt.NDArray[np.bool_]]:
    """Return the days of a variable on its native pixels, and which of them the files have."""
    rule = _choose_rule(spec, name)
    where = f"{spec.name} ({spec.origin})"
    source = f"{name} in {where}"
    native = convert_units(_open(spec, name, grid, period), take_units(spec, name), name)
    covered = covered_days(native.indexes["time"], period.days, rule)
    if rule is None:
        daily = values_of_days(native, period.days, source=source)
    else:
        daily = to_days(native, period.days, rule, source=source)
    if name == "tp":
        daily = daily.where((daily >= 0) | (daily < -_PACKING_NOISE) | daily.isnull(), 0)
    return checked(daily.rename(time="date"), name, where=where), covered


def _choose_rule(spec: SourceSpec, name: str) -> DayRule | None:
    """Return how hours become days; ``None`` for daily values."""
    step = take_choice(spec, "step", ("hourly", "daily"), default="hourly")
    if name not in ("t2m", "tp"):
        msg = f"{spec.origin}: {spec.loader} provides t2m and tp, not {name!r}; remove it"
        raise CatalogError(msg)
    if step == "daily":
        if name == "tp":
            take_choice(spec, "accumulation", ("daily-total",), default=None)
        return None
    if spec.options.get("day", "utc") != "utc":
        msg = f"{spec.origin}: options.day of {spec.name} is for step: daily; remove it"
        raise CatalogError(msg)
    if name == "t2m":
        return MEAN_OF_HOURS
    return _RAIN_RULES[take_choice(spec, "accumulation", tuple(_RAIN_RULES), default=None)]


def _check_length(spec: SourceSpec, period: Period) -> None:
    longest = take_days(spec, "max_days", default=len(period.days))
    if len(period.days) > longest:
        msg = (
            f"{spec.origin}: {spec.name} is read for {longest} days at most (options.max_days), "
            f"not for the {len(period.days)} of {period}: each of its chunks holds the whole "
            "globe; use a source whose chunks are long in time"
        )
        raise SourceError(msg)


def _open(spec: SourceSpec, name: str, grid: GeoBox, period: Period) -> xr.DataArray:
    """Return the variable on its native pixels around `grid`, in the stored units, lazily."""
    stored = take_asset(spec, name)
    source = f"{spec.name} ({spec.origin}), {stored}"
    files = [ds for path in weather_files(spec) if stored in (ds := open_gridded(path))]
    if not files:
        msg = f"{source}: none of its files has a variable of that name; correct assets.{name}"
        raise SourceError(msg)
    span, parts = [], []
    for ds in files:
        _check_stated_units(spec, name, ds)
        part, blocks = mark_blocks(ds[stored])
        part = tidy(
            part,
            ds,
            source=source,
            time=spec.assets.get("time"),
            crs=spec.crs,
            native_resolution=take_native_resolution(spec),
            extra_dim=_EXPVER,
            keep=(*blocks, _EXPVER),
        )
        span += [part.indexes["time"][0], part.indexes["time"][-1]]
        part = _crop_time(part, period)
        if part.sizes["time"]:
            part = crop(part, grid, source=source)
            parts.append(_merge_expver(chunk_as_stored(part, blocks, steps=_STEPS)))
    if not parts:
        msg = (
            f"{source} holds {min(span):%Y-%m-%d} to {max(span):%Y-%m-%d}, nothing from "
            f"{period}; download that period"
        )
        raise NoDataError(msg)
    return _to_units(spec, name, concat_time(parts, source=source))


def _crop_time(da: xr.DataArray, period: Period) -> xr.DataArray:
    """Keep the stamps that days of `period` need: up to 00 UTC of the day after the last."""
    times = da.indexes["time"]
    first, end = times.searchsorted([period.start, period.end + _DAY + _SECOND])
    return da.isel(time=slice(first, end))


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


def _merge_expver(da: xr.DataArray) -> xr.DataArray:
    """Prefer final to preliminary ERA5, which the CDS delivers as two layers with NaN in turn.

    The final one is experiment version 1, the preliminary one (ERA5T) is 5.
    """
    if _EXPVER not in da.dims:
        return da.drop_vars(_EXPVER, errors="ignore")
    order = np.arange(da.sizes[_EXPVER])
    if _EXPVER in da.coords:
        order = np.argsort(da[_EXPVER].values.astype(int), kind="stable")
    final, *preliminary = (da.isel({_EXPVER: i}, drop=True) for i in order)
    for layer in preliminary:
        final = final.fillna(layer)
    return final
