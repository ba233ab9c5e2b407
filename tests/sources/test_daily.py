"""From hours to days, by hand at every kind of midnight, and rules that the values contradict."""

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from smgrid.errors import SourceError
from smgrid.sources.daily import (
    MEAN_OF_HOURS,
    SUM_OF_HOURS,
    TOTAL_AT_MIDNIGHT,
    covered_days,
    to_days,
    values_of_days,
)

MIDNIGHTS = {
    "month": "2024-02-01",
    "month of 30 days": "2023-07-01",
    "year": "2024-01-01",
    "into the leap day": "2024-02-29",
    "out of the leap day": "2024-03-01",
    "out of February": "2023-03-01",
    "daylight saving": "2024-03-31",
}


def series(values, shape=(1, 1)):
    """Return stamp -> value as (time, y, x), the same in every pixel."""
    index = pd.DatetimeIndex(sorted(values)).as_unit("ns")
    data = np.array([values[stamp] for stamp in index], "float64")
    cube = np.broadcast_to(data[:, None, None], (len(index), *shape))
    return xr.DataArray(cube, dims=("time", "y", "x"), coords={"time": index}, name="x")


def at(midnight, hour):
    return pd.Timestamp(midnight) + pd.Timedelta(hours=hour)


def two_days(midnight):
    return pd.DatetimeIndex([at(midnight, -24), pd.Timestamp(midnight)])


def day_values(da, days, rule):
    return to_days(da, days, rule, source="rain in w")[:, 0, 0].values


@pytest.mark.parametrize("midnight", MIDNIGHTS.values(), ids=MIDNIGHTS)
def test_mean_before_and_after_midnight(midnight):
    values = {at(midnight, hour): 280.0 for hour in range(-24, 24)}
    values[at(midnight, -25)] = 0.0  # the day before the first
    values[at(midnight, -1)] += 24.0  # 23 UTC: one kelvin more of the first day
    values[at(midnight, 0)] += 48.0  # 00 UTC: two kelvin more of the second
    values[at(midnight, 24)] = 0.0  # the day after the last
    found = day_values(series(values), two_days(midnight), MEAN_OF_HOURS)
    np.testing.assert_allclose(found, [281.0, 282.0])


@pytest.mark.parametrize("midnight", MIDNIGHTS.values(), ids=MIDNIGHTS)
def test_amounts_of_the_hours_before_and_after_midnight(midnight):
    values = {at(midnight, hour): 0.0 for hour in range(-23, 25)}
    values[at(midnight, -24)] = 0.5  # fell in the last hour of the day before the first
    values[at(midnight, -23)] = 0.001  # in the first hour of the first day
    values[at(midnight, 0)] = 0.002  # in its last hour
    values[at(midnight, 1)] = 0.004  # in the first hour of the second day
    values[at(midnight, 24)] = 0.008  # in its last hour
    values[at(midnight, 25)] = 0.5
    found = day_values(series(values), two_days(midnight), SUM_OF_HOURS)
    np.testing.assert_allclose(found, [0.003, 0.012])


@pytest.mark.parametrize("midnight", MIDNIGHTS.values(), ids=MIDNIGHTS)
def test_what_has_accumulated_at_midnight(midnight):
    # 1 mm fell in the first hour of the first day, 2 mm in its last; 4 and 8 mm on the second.
    values = {at(midnight, -24): 0.5}  # all that fell the day before the first
    values |= {at(midnight, hour): 0.001 for hour in range(-23, 0)}
    values[at(midnight, 0)] = 0.003
    values |= {at(midnight, hour): 0.004 for hour in range(1, 24)}
    values[at(midnight, 24)] = 0.012
    values[at(midnight, 25)] = 0.7
    found = day_values(series(values), two_days(midnight), TOTAL_AT_MIDNIGHT)
    np.testing.assert_allclose(found, [0.003, 0.012])


@pytest.mark.parametrize("midnight", MIDNIGHTS.values(), ids=MIDNIGHTS)
@pytest.mark.parametrize("hour", [0, 6, 12, 23])
def test_daily_values_belong_to_the_day_that_they_are_stamped_with(midnight, hour):
    values = {at(midnight, hour - 24): 1.0, at(midnight, hour): 2.0, at(midnight, hour + 24): 9.0}
    days = two_days(midnight)
    np.testing.assert_array_equal(
        values_of_days(series(values), days, source="x")[:, 0, 0], [1.0, 2.0]
    )


@pytest.mark.parametrize(
    ("rule", "missing", "expected"),
    [
        (MEAN_OF_HOURS, -24, [np.nan, 1]),
        (MEAN_OF_HOURS, -1, [np.nan, 1]),
        (MEAN_OF_HOURS, 0, [1, np.nan]),
        (MEAN_OF_HOURS, 23, [1, np.nan]),
        (MEAN_OF_HOURS, 24, [1, 1]),
        (SUM_OF_HOURS, -24, [24, 24]),
        (SUM_OF_HOURS, -23, [np.nan, 24]),
        (SUM_OF_HOURS, 0, [np.nan, 24]),
        (SUM_OF_HOURS, 1, [24, np.nan]),
        (SUM_OF_HOURS, 24, [24, np.nan]),
        (TOTAL_AT_MIDNIGHT, -1, [1, 1]),
        (TOTAL_AT_MIDNIGHT, 0, [np.nan, 1]),
        (TOTAL_AT_MIDNIGHT, 24, [1, np.nan]),
    ],
)
def test_a_missing_stamp_costs_the_days_that_need_it(rule, missing, expected):
    midnight = "2024-01-01"
    values = {at(midnight, hour): 1.0 for hour in range(-24, 25)}
    hole = dict(values)
    hole[at(midnight, missing)] = np.nan
    del values[at(midnight, missing)]
    days = two_days(midnight)
    for da in (series(values), series(hole)):
        np.testing.assert_array_equal(day_values(da, days, rule), expected)
    covered = covered_days(series(values).indexes["time"], days, rule)
    np.testing.assert_array_equal(covered, np.isfinite(expected))


def test_days_covered_by_daily_values():
    times = pd.DatetimeIndex(["2024-01-01T12", "2024-01-03T12"])
    days = pd.date_range("2024-01-01", periods=3)
    np.testing.assert_array_equal(covered_days(times, days, None), [True, False, True])


def rain(days, *, seed=0, wet=0.3):
    """Amounts of hours (hour, y, x) that end at 01 UTC of the first day and later [m]."""
    random = np.random.default_rng(seed)
    shape = (24 * days, 2, 2)
    return np.where(random.random(shape) < wet, random.gamma(0.7, 0.001, shape), 0)


def as_series(amounts, start="2024-01-01"):
    times = pd.date_range(
        pd.Timestamp(start) + pd.Timedelta(1, "h"), periods=len(amounts), freq="h"
    )
    return xr.DataArray(amounts, dims=("time", "y", "x"), coords={"time": times.as_unit("ns")})


def accumulate(amounts):
    days = amounts.reshape(-1, 24, *amounts.shape[1:])
    return np.cumsum(days, axis=1).reshape(amounts.shape)


@pytest.mark.parametrize("seed", range(5))
def test_both_kinds_of_hourly_rain_give_the_same_days(seed):
    amounts = rain(30, seed=seed)
    days = pd.date_range("2024-01-01", periods=30)
    expected = amounts.reshape(30, 24, 2, 2).sum(1)
    steps = to_days(as_series(amounts), days, SUM_OF_HOURS, source="")
    np.testing.assert_allclose(steps, expected, rtol=1e-6)
    # Packed by provider: rounded anew in every field.
    noise = np.random.default_rng(1).uniform(-3e-6, 3e-6, amounts.shape)
    since = to_days(as_series(accumulate(amounts) + noise), days, TOTAL_AT_MIDNIGHT, source="")
    np.testing.assert_allclose(since, expected, atol=4e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("wet", [0.02, 0.3, 0.9])
def test_one_kind_taken_for_the_other_is_refused(seed, wet):
    amounts = rain(60, seed=seed, wet=wet)
    days = pd.date_range("2024-01-01", periods=60)
    noise = np.random.default_rng(1).uniform(-3e-6, 3e-6, amounts.shape)
    with pytest.raises(SourceError, match=r"rain in w: its rain never slackens .* since-00utc"):
        to_days(as_series(accumulate(amounts) + noise), days, SUM_OF_HOURS, source="rain in w")
    with pytest.raises(SourceError, match=r"rain in w: its rain becomes less within a day.*per-st"):
        to_days(as_series(amounts), days, TOTAL_AT_MIDNIGHT, source="rain in w")


@pytest.mark.parametrize("rule", [SUM_OF_HOURS, TOTAL_AT_MIDNIGHT])
def test_a_dry_month_contradicts_nothing(rule):
    days = pd.date_range("2024-01-01", periods=30)
    daily = to_days(as_series(rain(30, wet=0.0)), days, rule, source="")
    np.testing.assert_array_equal(daily, 0)


def test_a_few_evenings_of_growing_rain_contradict_nothing():
    amounts = np.zeros((24 * 10, 1, 1))
    for day in range(4):
        amounts[24 * day + 21 : 24 * day + 24, 0, 0] = [0.001, 0.002, 0.003]
    days = pd.date_range("2024-01-01", periods=10)
    daily = to_days(as_series(amounts), days, SUM_OF_HOURS, source="")
    np.testing.assert_allclose(daily[:, 0, 0], [0.006] * 4 + [0.0] * 6, rtol=1e-6)


def test_totals_alone_need_no_other_hour():
    stamps = pd.date_range("2024-01-02", periods=2)
    da = series(dict(zip(stamps, [0.003, 0.001], strict=True)))
    days = pd.date_range("2024-01-01", periods=2)
    np.testing.assert_allclose(day_values(da, days, TOTAL_AT_MIDNIGHT), [0.003, 0.001])


@pytest.mark.parametrize(
    ("step", "rule", "message"),
    [
        ("D", MEAN_OF_HOURS, "24 h apart, not hourly; use options.step: daily"),
        ("3h", SUM_OF_HOURS, "3 h apart, not hourly; use a source of hourly values"),
        ("30min", MEAN_OF_HOURS, r"0\.5 h apart"),
    ],
)
def test_steps_that_leave_every_day_empty_are_said(step, rule, message):
    stamps = pd.date_range("2024-01-01", periods=40, freq=step)
    da = series(dict.fromkeys(stamps, 1.0))
    with pytest.raises(SourceError, match=message):
        to_days(da, stamps[:1].floor("D"), rule, source="x")


def test_totals_that_never_stand_at_midnight_are_said():
    da = series(dict.fromkeys(pd.date_range("2024-01-01T12", periods=4), 1.0))
    with pytest.raises(SourceError, match="x: has no value at 00 UTC"):
        to_days(da, da.indexes["time"].floor("D"), TOTAL_AT_MIDNIGHT, source="x")


@pytest.mark.parametrize("rule", [MEAN_OF_HOURS, SUM_OF_HOURS, TOTAL_AT_MIDNIGHT])
@pytest.mark.parametrize("chunk", [7, 24, 100, 2880])
def test_chunks_change_nothing(rule, chunk):
    amounts = accumulate(rain(20)) if rule is TOTAL_AT_MIDNIGHT else rain(20)
    da = as_series(amounts)
    days = pd.date_range("2023-12-30", periods=25)
    whole = to_days(da, days, rule, source="")
    lazy = to_days(da.chunk(time=chunk), days, rule, source="")
    assert dask.is_dask_collection(lazy)
    np.testing.assert_array_equal(lazy, whole)
