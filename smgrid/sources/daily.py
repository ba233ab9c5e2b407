"""From values of hours to values of UTC days, and whether they are what the catalog calls them.

What an hourly precipitation value stands for differs between products. One rule taken for another
shifts rain by hours or multiplies it by twelve, and the result looks like weather: so the values
are held against the rule as they are read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from smgrid.errors import SourceError

_Hours = npt.NDArray[np.floating[Any]]

_HOURS = 24
_HOUR = pd.Timedelta(1, "h")
_DAY = pd.Timedelta(1, "D")
# What accumulates falls by rounding only [m]; and what falls by this is no rounding.
_ROUNDING, _FALL = 1e-5, 1e-4
# A value of an hour is above this [m] on a day that tells; rounding does not reach it.
_RAIN = 1e-3
# So many days with rain that never once slackened are accumulated rain. By chance a single day
# is so a few times in a hundred, when rain sets in late and grows until midnight.
_TELLING_DAYS = 5


@dataclass(frozen=True)
class DayRule:
    """How the 24 values of a day become one."""

    first: int
    """Hour after 00 UTC of the day's first stamp; the others follow hour by hour."""
    needed: int
    """How many of its stamps, counted from the last one, a day cannot do without."""
    reduce: Callable[[_Hours, str], _Hours]
    """Values (..., 24) and what messages call them -> value of the day (...)."""


def to_days(
    da: xr.DataArray, days: pd.DatetimeIndex, rule: DayRule, *, source: str
) -> xr.DataArray:
    """Return the value of each day; NaN where a stamp that it needs is missing.

    Parameters
    ----------
    da
        Hourly values (time, y, x), sorted; precipitation in metres.
    days
        UTC days, at 00:00.
    rule
        What a value stands for.
    source
        What error messages call the input.

    Raises
    ------
    SourceError
        If the values are not hourly; when computed, if they contradict the rule.
    """
    _require_steps(da.indexes["time"], rule, source)
    hours = _align(da.reindex(time=_stamps(days, rule).ravel()))
    hours = hours.coarsen(time=_HOURS).construct(time=("time", "hour"))
    hours = hours.drop_vars("time").assign_coords(time=days)
    daily: xr.DataArray = xr.apply_ufunc(
        rule.reduce,
        hours,
        input_core_dims=[["hour"]],
        kwargs={"source": source},
        dask="parallelized",
        output_dtypes=["float32"],
        keep_attrs=True,
    )
    return daily


def values_of_days(da: xr.DataArray, days: pd.DatetimeIndex, *, source: str) -> xr.DataArray:
    """Return the value of each day from daily values, whatever hour they are stamped with."""
    stamps = da.indexes["time"].floor("D")
    if stamps.has_duplicates:
        first = stamps[stamps.duplicated()][0]
        msg = f"{source}: {first:%Y-%m-%d} has several values; its catalog entry says step: daily"
        raise SourceError(msg)
    return da.assign_coords(time=stamps).reindex(time=days)


def covered_days(
    times: pd.DatetimeIndex, days: pd.DatetimeIndex, rule: DayRule | None
) -> npt.NDArray[np.bool_]:
    """Return which days have all the stamps that they need; `rule` is None for daily values."""
    if rule is None:
        return np.asarray(days.isin(times.floor("D")))
    stamps = _stamps(days, rule)[:, -rule.needed :]
    covered: npt.NDArray[np.bool_] = np.isin(stamps, times.to_numpy()).min(axis=1)
    return covered


def _stamps(days: pd.DatetimeIndex, rule: DayRule) -> npt.NDArray[np.datetime64]:
    """Return the stamps (day, hour) of the values of each day."""
    hours = (rule.first + np.arange(_HOURS)) * _HOUR.to_timedelta64()
    stamps: npt.NDArray[np.datetime64] = np.add.outer(days.to_numpy(), hours)
    return stamps


def _align(da: xr.DataArray) -> xr.DataArray:
    """Move the ends of chunks, where there are any, to the ends of days."""
    if da.chunks is None:
        return da
    ends = np.unique(-(-np.cumsum(da.chunksizes["time"]) // _HOURS)) * _HOURS
    return da.chunk(time=tuple(int(size) for size in np.diff(ends, prepend=0)))


def _require_steps(times: pd.DatetimeIndex, rule: DayRule, source: str) -> None:
    """Refuse steps that leave every day without a value: they would look like missing days."""
    if rule.needed == 1:
        if (times.hour != 0).all():
            msg = (
                f"{source}: has no value at 00 UTC, where the total of a day stands that "
                "accumulates from 00 UTC; download that hour, or correct options.accumulation"
            )
            raise SourceError(msg)
        return
    steps = pd.Series(times[1:] - times[:-1])
    usual = steps.mode()
    if len(usual) and usual[0] != _HOUR:
        hours = usual[0] / _HOUR
        cure = "options.step: daily" if usual[0] == _DAY else "a source of hourly values"
        msg = f"{source}: its values are {hours:g} h apart, not hourly; use {cure}"
        raise SourceError(msg)


def _mean(hours: _Hours, source: str) -> _Hours:
    mean: _Hours = hours.mean(axis=-1, dtype="float64").astype("float32")
    return mean


def _sum(hours: _Hours, source: str) -> _Hours:
    rainy = hours.max(axis=-1) > _RAIN
    slackens = np.asarray((np.diff(hours, axis=-1) < -_ROUNDING).any(axis=-1))
    rainy_days = np.count_nonzero(np.asarray(rainy).any(axis=(-2, -1)))
    if rainy_days >= _TELLING_DAYS and not slackens[rainy].any():
        msg = (
            f"{source}: its rain never slackens before midnight, so its values accumulate from 00 "
            "UTC and are no amounts of hours; set options.accumulation to since-00utc"
        )
        raise SourceError(msg)
    total: _Hours = hours.sum(axis=-1, dtype="float64").astype("float32")
    return total


def _last(hours: _Hours, source: str) -> _Hours:
    falls = np.diff(hours, axis=-1) < -_FALL
    if falls.any():
        msg = (
            f"{source}: its rain becomes less within a day, so its values do not accumulate from "
            "00 UTC; set options.accumulation to per-step if they are amounts of hours"
        )
        raise SourceError(msg)
    return hours[..., -1].astype("float32")


MEAN_OF_HOURS = DayRule(first=0, needed=_HOURS, reduce=_mean)
"""Mean of the instantaneous values stamped 00 to 23 UTC."""
SUM_OF_HOURS = DayRule(first=1, needed=_HOURS, reduce=_sum)
"""Sum of the amounts of the hours that end at 01 UTC to 00 UTC of the next day."""
TOTAL_AT_MIDNIGHT = DayRule(first=1, needed=1, reduce=_last)
"""What has accumulated since 00 UTC when 00 UTC of the next day is reached."""
