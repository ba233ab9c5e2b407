"""Gaps in time: linear, never across a long one, ends held, the same as pixel by pixel."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from smgrid.sources.fill import fill_gaps, mark_filled
from smgrid.windows import composite_calendar

nan = np.nan


def series(values):
    index = composite_calendar(("2023-11-17", "2024-12-31"))[: len(values)]
    data = np.asarray(values, "float32")[:, None, None]
    return xr.DataArray(data, dims=("date", "y", "x"), coords={"date": index})


def fill(values, limit):
    return fill_gaps(series(values), limit=limit).values[:, 0, 0]


def test_linear_in_days_across_new_year():
    # 2023-11-17, -25, 12-03, -11, -19, -27, 2024-01-01, -09: the step over New Year has 5 days.
    filled = fill([0, nan, 0.2, nan, nan, 0.5, nan, 0.63], 32)
    np.testing.assert_allclose(filled, [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.63], atol=1e-6)


def test_a_gap_as_long_as_the_limit_is_filled_and_a_longer_one_not_at_all():
    values = [0, nan, nan, nan, 0.4]
    np.testing.assert_allclose(fill(values, 32), [0, 0.1, 0.2, 0.3, 0.4], atol=1e-6)
    np.testing.assert_array_equal(fill(values, 31), np.float32([0, nan, nan, nan, 0.4]))


def test_ends_are_held_up_to_the_limit():
    filled = fill([nan, nan, 0.3, 0.5, nan, nan, nan], 10)
    np.testing.assert_allclose(filled, [nan, 0.3, 0.3, 0.5, 0.5, nan, nan], atol=1e-6)


def test_nothing_to_fill_from():
    assert np.isnan(fill([nan] * 5, 100)).all()


def test_zero_limit_fills_nothing():
    np.testing.assert_array_equal(fill([nan, 1, nan, 1], 0), np.float32([nan, 1, nan, 1]))


def test_marks():
    original = series([0.1, nan, 0.3, nan, nan, nan])
    filled = fill_gaps(original, limit=16)
    marks = mark_filled(original, filled)
    assert marks.dtype == "uint8"
    assert marks.values.ravel().tolist() == [0, 1, 0, 1, 1, 255]


def reference(values, days, limit):
    """One pixel with numpy's interpolation and pandas' own notion of neighbours."""
    s = pd.Series(values, index=days)
    out = s.copy()
    known = s.dropna()
    for day in days[s.isna()]:
        before, after = known[known.index < day], known[known.index > day]
        if len(before) and len(after):
            if after.index[0] - before.index[-1] <= limit:
                out[day] = np.interp(day, known.index, known.to_numpy())
        elif len(before) and day - before.index[-1] <= limit:
            out[day] = before.iloc[-1]
        elif len(after) and after.index[0] - day <= limit:
            out[day] = after.iloc[0]
    return out.to_numpy()


@settings(max_examples=60, deadline=None)
@given(
    data=st.lists(st.none() | st.floats(-0.25, 1.0, width=32), min_size=1, max_size=40),
    limit=st.integers(0, 80),
)
def test_equals_pixel_by_pixel(data, limit):
    values = np.array([nan if v is None else v for v in data], "float64")
    da = series(values)
    days = ((da["date"] - da["date"][0]) / np.timedelta64(1, "D")).values
    np.testing.assert_allclose(fill(values, limit), reference(values, days, limit), atol=1e-6)


def test_lazy_and_independent_of_chunks():
    rng = np.random.default_rng(3)
    values = rng.random((30, 5, 4)).astype("float32")
    values[rng.random(values.shape) < 0.5] = nan
    dates = composite_calendar(("2024-01-01", "2024-12-31"))[:30]
    da = xr.DataArray(values, dims=("date", "y", "x"), coords={"date": dates})
    lazy = fill_gaps(da.chunk(date=7, y=2), limit=24)
    assert lazy.chunks is not None
    assert lazy.dims == da.dims
    np.testing.assert_array_equal(lazy.values, fill_gaps(da, limit=24).values)


@pytest.mark.parametrize("limit", [8, 40])
def test_valid_values_are_untouched(limit):
    values = np.array([0.1, nan, 0.7, 0.2, nan, nan, 0.9])
    filled = fill(values, limit)
    np.testing.assert_array_equal(filled[~np.isnan(values)], np.float32([0.1, 0.7, 0.2, 0.9]))
