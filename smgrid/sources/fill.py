"""Short gaps of a series, filled in time, and what share of each value was filled."""

from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from smgrid.errors import SourceError

FillMethod = Literal["interpolate", "hold"]

_DAY = np.timedelta64(1, "D")
_Values = npt.NDArray[np.float32]


def fill_gaps(
    da: xr.DataArray,
    *,
    limit: int,
    method: FillMethod = "interpolate",
    ends: tuple[pd.Timestamp, pd.Timestamp] | None = None,
) -> xr.DataArray:
    """Fill NaN along ``date`` from valid values that are near enough, lazily.

    Parameters
    ----------
    da
        Dims (date, y, x), dates increasing; dask-backed arrays are brought into one chunk along
        ``date``.
    limit
        Days that are bridged at most.
    method
        "interpolate": linear in days between the neighbours of a gap if they are at most `limit`
        days apart; a longer gap stays NaN throughout. A gap at an end of the record is
        filled with the one valid value beside it, as long as nothing tells that it is longer than
        `limit`. Looks ahead.
        "hold": the last valid value, for at most `limit` days. Never looks ahead, so a value does
        not change when later dates arrive.
    ends
        The last date before and the first date after those that the provider has: where a gap at an
        end of the record may begin or end at the earliest. "interpolate" asks for them; default:
        the day before the first and the day after the last date of `da`.

    Returns
    -------
    xr.DataArray
        float32, valid values untouched. None depends on where a longer series was cut, if `limit`
        days were left on both sides.

    Raises
    ------
    SourceError
        If the dates do not increase.
    """
    if not (da.indexes["date"].is_monotonic_increasing and da.indexes["date"].is_unique):
        msg = "gaps in time can only be filled along increasing dates; sort the series by date"
        raise SourceError(msg)
    days = (da["date"] - da["date"][0]).values / _DAY
    first, last = da["date"].values[[0, -1]]
    before, after = (first - _DAY, last + _DAY) if ends is None else map(np.datetime64, ends)
    outside = ((before - first) / _DAY, (after - first) / _DAY)
    filled: xr.DataArray = xr.apply_ufunc(
        _FILLS[method],
        da.chunk(date=-1) if da.chunks else da,
        input_core_dims=[["date"]],
        output_core_dims=[["date"]],
        kwargs={"days": days, "limit": limit, "outside": outside},
        dask="parallelized",
        output_dtypes=["float32"],
        keep_attrs=True,
    )
    return filled.transpose(*da.dims)


def filled_share(
    observed: xr.DataArray, filled: xr.DataArray, *, seen: xr.DataArray | None = None
) -> xr.DataArray:
    """Return the share of each value that stands on no observation of its date.

    Parameters
    ----------
    observed
        Series before filling.
    filled
        The same after it.
    seen
        Share of a cell's area that an observed value was averaged over, 0 to 1, for cells of many
        pixels; without it an observed value was seen as a whole.

    Returns
    -------
    xr.DataArray
        float32: 1 where the value was filled in time, ``1 - seen`` where it was observed, NaN where
        there is none.
    """
    unseen = xr.zeros_like(observed) if seen is None else 1 - seen
    share = unseen.where(observed.notnull(), 1).where(filled.notnull())
    return share.astype("float32").drop_attrs(deep=False)


def _interpolate(
    values: _Values,
    *,
    days: npt.NDArray[np.float64],
    limit: float,
    outside: tuple[float, float],
) -> _Values:
    """Fill along the last axis, one step after another to keep the memory small."""
    later, later_day = _last_valid(values[..., ::-1], days[::-1])
    earlier, earlier_day = _last_valid(values, days)
    filled = values.astype("float32")
    for step, day in enumerate(days):
        v0, d0 = earlier[..., step], earlier_day[..., step]
        v1, d1 = later[..., -1 - step], later_day[..., -1 - step]
        # At an end both neighbours are the one valid value.
        v0, v1 = np.where(np.isnan(v0), v1, v0), np.where(np.isnan(v1), v0, v1)
        d0 = np.where(np.isnan(d0), min(day, outside[0]), d0)
        d1 = np.where(np.isnan(d1), max(day, outside[1]), d1)
        between = v0 + (v1 - v0) * (day - d0) / np.maximum(d1 - d0, 1)
        is_gap = np.isnan(values[..., step])
        filled[..., step][is_gap] = np.where(d1 - d0 <= limit, between, np.nan)[is_gap]
    return filled


def _hold(
    values: _Values,
    *,
    days: npt.NDArray[np.float64],
    limit: float,
    outside: tuple[float, float],
) -> _Values:
    """Fill along the last axis with the last valid value before."""
    earlier, earlier_day = _last_valid(values, days)
    return np.where(days - earlier_day <= limit, earlier, np.nan).astype("float32")


def _last_valid(values: _Values, days: npt.NDArray[np.float64]) -> tuple[_Values, _Values]:
    """Return, for every step, the last valid value up to it and its day; NaN before the first."""
    value, day = np.empty_like(values), np.empty_like(values)
    last_value = np.full(values.shape[:-1], np.nan, dtype=values.dtype)
    last_day = last_value.copy()
    for step, today in enumerate(days):
        is_valid = np.isfinite(values[..., step])
        last_value[is_valid] = values[..., step][is_valid]
        last_day[is_valid] = today
        value[..., step], day[..., step] = last_value, last_day
    return value, day


_FILLS = {"interpolate": _interpolate, "hold": _hold}
