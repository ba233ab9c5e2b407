"""Short gaps of a series, filled in time."""

import numpy as np
import numpy.typing as npt
import xarray as xr

_Values = npt.NDArray[np.float32]


def fill_gaps(da: xr.DataArray, *, limit: int) -> xr.DataArray:
    """Fill NaN along ``date`` by linear interpolation between valid neighbours, lazily.

    Parameters
    ----------
    da
        Dims (date, y, x); dask-backed arrays are brought into one chunk along ``date``.
    limit
        Most days between the neighbours of a gap; a longer gap stays NaN throughout. Before the
        first and after the last valid value that value is held for as many days.

    Returns
    -------
    xr.DataArray
        float32, valid values untouched.
    """
    days = (da["date"] - da["date"][0]).values / np.timedelta64(1, "D")
    filled: xr.DataArray = xr.apply_ufunc(
        _fill,
        da.chunk(date=-1) if da.chunks else da,
        input_core_dims=[["date"]],
        output_core_dims=[["date"]],
        kwargs={"days": days, "limit": limit},
        dask="parallelized",
        output_dtypes=["float32"],
        keep_attrs=True,
    )
    return filled.transpose(*da.dims)


def mark_filled(original: xr.DataArray, filled: xr.DataArray) -> xr.DataArray:
    """Return 1 where `filled` has a value that `original` lacks, 0 where both have it, else 255."""
    marks = original.isnull().astype("uint8")
    return marks.where(filled.notnull(), np.uint8(255))


def _fill(values: _Values, *, days: npt.NDArray[np.float64], limit: float) -> _Values:
    """Fill along the last axis, one step after another to keep the memory small."""
    later, later_day = _last_valid(values[..., ::-1], days[::-1])
    earlier, earlier_day = _last_valid(values, days)
    filled = values.astype("float32")
    for step, day in enumerate(days):
        v0, d0 = earlier[..., step], earlier_day[..., step]
        v1, d1 = later[..., -1 - step], later_day[..., -1 - step]
        # At an end both neighbours are the one valid value, and the gap is its distance.
        v0, v1 = np.where(np.isnan(v0), v1, v0), np.where(np.isnan(v1), v0, v1)
        d0, d1 = np.where(np.isnan(d0), day, d0), np.where(np.isnan(d1), day, d1)
        between = v0 + (v1 - v0) * (day - d0) / np.maximum(d1 - d0, 1)
        is_gap = np.isnan(values[..., step])
        filled[..., step][is_gap] = np.where(d1 - d0 <= limit, between, np.nan)[is_gap]
    return filled


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
