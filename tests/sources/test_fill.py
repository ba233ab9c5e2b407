"""Gaps in time: linear, never across a long one, ends held, the same as pixel by pixel."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from smgrid.errors import SourceError
from smgrid.sources.fill import fill_gaps, filled_share
from smgrid.sources.series import _slots_around
from smgrid.windows import composite_calendar

nan = np.nan
BEFORE = pd.Timestamp("2023-11-09")


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


def test_an_end_is_held_while_its_gap_may_still_be_short_enough():
    # 2023-11-17, -25, 12-03, -11, -19, -27, 2024-01-01: the slots around are 11-09 and 01-09.
    values = [nan, nan, nan, 0.3, 0.5, nan, nan]
    around = (pd.Timestamp("2023-11-09"), pd.Timestamp("2024-01-09"))

    def held(limit, ends=around):
        return fill_gaps(series(values), limit=limit, ends=ends).values.ravel()

    np.testing.assert_array_equal(held(32), np.float32([0.3, 0.3, 0.3, 0.3, 0.5, 0.5, 0.5]))
    np.testing.assert_array_equal(held(31), np.float32([nan, nan, nan, 0.3, 0.5, 0.5, 0.5]))
    np.testing.assert_array_equal(held(20), np.float32([nan, nan, nan, 0.3, 0.5, nan, nan]))
    # A record that has nothing outside of December: what is further away is not reached.
    record = (pd.Timestamp("2023-12-03"), pd.Timestamp("2023-12-27"))
    np.testing.assert_array_equal(held(8, record), np.float32([nan, nan, 0.3, 0.3, 0.5, 0.5, nan]))


def test_nothing_to_fill_from():
    assert np.isnan(fill([nan] * 5, 100)).all()


def test_zero_limit_fills_nothing():
    np.testing.assert_array_equal(fill([nan, 1, nan, 1], 0), np.float32([nan, 1, nan, 1]))


def test_filled_share():
    original = series([0.1, nan, 0.3, nan, nan, nan])
    filled = fill_gaps(original, limit=16, ends=(BEFORE, pd.Timestamp("2023-12-11")))
    share = filled_share(original, filled)
    np.testing.assert_array_equal(share.values.ravel(), np.float32([0, 1, 0, 1, 1, nan]))
    seen = series([0.25, nan, 1, nan, nan, nan])
    share = filled_share(original, filled, seen=seen)
    np.testing.assert_array_equal(share.values.ravel(), np.float32([0.75, 1, 0, 1, 1, nan]))
    assert share.dtype == "float32"


def test_holding_takes_the_last_value_and_never_looks_ahead():
    values = [nan, 0.2, nan, nan, 0.5, nan, 0.63]
    # 2023-11-17, -25, 12-03, -11, -19, -27, 2024-01-01.
    held = fill_gaps(series(values), limit=8, method="hold").values.ravel()
    np.testing.assert_array_equal(held, np.float32([nan, 0.2, 0.2, nan, 0.5, 0.5, 0.63]))
    held = fill_gaps(series(values), limit=7, method="hold").values.ravel()
    np.testing.assert_array_equal(held, np.float32([nan, 0.2, nan, nan, 0.5, nan, 0.63]))


def test_dates_must_increase():
    with pytest.raises(SourceError, match="only be filled along increasing dates; sort"):
        fill_gaps(series([0.1, nan, 0.3]).isel(date=[2, 0, 1]), limit=8)


METHODS = st.sampled_from(["interpolate", "hold"])
SERIES = st.lists(st.none() | st.floats(-0.25, 1.0, width=32), min_size=2, max_size=40)


def as_array(data):
    return np.array([nan if v is None else v for v in data], "float32")


@settings(max_examples=60, deadline=None)
@given(data=SERIES, limit=st.integers(0, 80), method=METHODS)
def test_never_across_the_limit_and_observed_values_stay(data, limit, method):
    da = series(as_array(data))
    filled = fill_gaps(da, limit=limit, method=method).values.ravel()
    observed = np.isfinite(da.values.ravel())
    np.testing.assert_array_equal(filled[observed], da.values.ravel()[observed])
    days = da["date"].values.astype("datetime64[D]").astype(int)
    for day in days[np.isfinite(filled) & ~observed]:
        before, after = days[observed & (days < day)], days[observed & (days > day)]
        if method == "hold":
            assert day - before[-1] <= limit
        else:
            begin = before[-1] if len(before) else days[0] - 1
            end = after[0] if len(after) else days[-1] + 1
            assert end - begin <= limit


@settings(max_examples=40, deadline=None)
@given(data=SERIES, limit=st.integers(0, 80), known=st.integers(1, 40))
def test_what_is_held_does_not_change_when_later_dates_arrive(data, limit, known):
    da = series(as_array(data))
    whole = fill_gaps(da, limit=limit, method="hold").values[:known]
    early = fill_gaps(da.isel(date=slice(known)), limit=limit, method="hold").values
    np.testing.assert_array_equal(early, whole)


@settings(max_examples=100, deadline=None)
@given(
    data=st.lists(st.none() | st.floats(-0.25, 1.0, width=32), min_size=30, max_size=60),
    limit=st.integers(0, 60),
    first=st.integers(0, 20),
    length=st.integers(1, 12),
    method=METHODS,
)
def test_a_window_of_a_longer_series_has_its_values(data, limit, first, length, method):
    days = composite_calendar(("2023-01-01", "2024-12-31"))[: len(data)]
    da = xr.DataArray(as_array(data)[:, None, None], dims=("date", "y", "x"), coords={"date": days})
    wanted = days[first : first + length]
    margin = pd.Timedelta(limit, "D")
    cut = da.sel(date=slice(wanted[0] - margin, wanted[-1] + margin))
    ends = _slots_around(cut.indexes["date"])
    windowed = fill_gaps(cut, limit=limit, method=method, ends=ends)
    whole = fill_gaps(da, limit=limit, method=method, ends=_slots_around(days))
    np.testing.assert_array_equal(
        windowed.sel(date=wanted).values.ravel(), whole.sel(date=wanted).values.ravel()
    )


@settings(max_examples=40, deadline=None)
@given(data=SERIES, limit=st.integers(0, 80))
def test_interpolation_is_the_same_backwards_in_time(data, limit):
    da = series(as_array(data))
    mirrored = da.isel(date=slice(None, None, -1))
    last, first = da["date"].values[-1], da["date"].values[0]
    mirrored = mirrored.assign_coords(date=first + (last - mirrored["date"].values))
    forwards = fill_gaps(da, limit=limit).values
    backwards = fill_gaps(mirrored, limit=limit).values[::-1]
    np.testing.assert_allclose(forwards, backwards, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(chunk=st.tuples(st.integers(1, 12), st.integers(1, 5)), method=METHODS)
def test_independent_of_chunks(chunk, method):
    rng = np.random.default_rng(3)
    values = rng.random((12, 5, 4)).astype("float32")
    values[rng.random(values.shape) < 0.5] = nan
    dates = composite_calendar(("2024-01-01", "2024-12-31"))[:12]
    da = xr.DataArray(values, dims=("date", "y", "x"), coords={"date": dates})
    lazy = fill_gaps(da.chunk(date=chunk[0], y=chunk[1]), limit=24, method=method)
    np.testing.assert_array_equal(lazy.values, fill_gaps(da, limit=24, method=method).values)


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
        elif len(before) and days[-1] + 1 - before.index[-1] <= limit:
            out[day] = before.iloc[-1]
        elif len(after) and after.index[0] - (days[0] - 1) <= limit:
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
