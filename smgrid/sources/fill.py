"""Short gaps of a series, filled in time."""

import numpy as np
import numpy.typing as npt
import xarray as xr


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


def _fill(
    values: npt.NDArray[np.float32], *, days: npt.NDArray[np.float64], limit: float
) -> npt.NDArray[np.float32]:
    """Fill along the last axis."""
    count = values.shape[-1]
    steps = np.arange(count, dtype="int32")
    valid = np.isfinite(values)
    before = np.maximum.accumulate(np.where(valid, steps, -1), axis=-1)
    after = np.minimum.accumulate(np.where(valid, steps, count)[..., ::-1], axis=-1)[..., ::-1]
    has_before, has_after = before >= 0, after < count
    before, after = np.maximum(before, 0), np.minimum(after, count - 1)
    since, until = days - days[before], days[after] - days
    gap = np.where(has_before, since, 0.0) + np.where(has_after, until, 0.0)
    first = np.take_along_axis(values, np.where(has_before, before, after), axis=-1)
    last = np.take_along_axis(values, np.where(has_after, after, before), axis=-1)
    weight = np.where(has_before & has_after, since / np.maximum(gap, 1.0), 0.0)
    # At an end both neighbours are the one valid value, and the gap is its distance.
    filled = np.where(gap <= limit, first + (last - first) * weight, np.nan)
    return np.where(valid, values, filled).astype("float32")
