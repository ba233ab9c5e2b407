import datetime
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smgrid.errors import ConfigError, WindowError
from smgrid.windows import (
    BLOCK_DAYS,
    STEPS,
    WINDOW_DAYS,
    Period,
    composite_calendar,
    day_of_year,
    first_served_day,
    one_year_windows,
)

# Long enough for every acquisition of 2015-2030 under every rule.
COMPOSITES = composite_calendar(("2013-01-01", "2031-03-01"))
DAYS = Period.parse(("2013-01-01", "2031-03-01")).days
ALL_DAYS = pd.date_range("2015-01-01", "2030-12-31", freq="D")
DAY = pd.Timedelta(days=1)

acquisitions = st.datetimes(datetime.datetime(2015, 1, 1), datetime.datetime(2030, 12, 31, 23, 59))


def windows_of(times, rule="causal", **kwargs):
    return one_year_windows(times, composites=COMPOSITES, days=DAYS, rule=rule, **kwargs)


# --- Period --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (("2024-01-01", "2025-02-05"), "2024-01-01/2025-02-05"),
        (["20240101", datetime.date(2024, 3, 5)], "2024-01-01/2024-03-05"),
        ("2024-01-01/2024-12-31", "2024-01-01/2024-12-31"),
        ("2024", "2024-01-01/2024-12-31"),
        (("2024-01", "2024-02"), "2024-01-01/2024-02-29"),
        ("2024-05-07", "2024-05-07/2024-05-07"),
        (datetime.datetime(2024, 5, 7, 17, 30), "2024-05-07/2024-05-07"),
        ((np.datetime64("2024-05-07"), pd.Timestamp("2024-05-08 23:59")), "2024-05-07/2024-05-08"),
        (("2024-05-07T23:00-05:00", "2024-05-08T23:00Z"), "2024-05-08/2024-05-08"),
    ],
)
def test_period_takes_what_pandas_parses_as_whole_days_in_utc(value, expected):
    period = Period.parse(value)
    assert str(period) == expected
    assert period.start.tz is None
    assert Period.parse(period) is period


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (("2024-02-01", "2024-01-01"), "2024-02-01/2024-01-01: the first day is after the last"),
        (("2024-01-01",) * 3, "expected a first and a last day"),
        ("yesterday or so", "is not a date"),
        (2024, "is not a date"),
        ((pd.NaT, "2024"), "is not a date"),
        (None, "is not a date"),
    ],
)
def test_what_is_no_period_is_refused(value, message):
    with pytest.raises(ConfigError, match=message):
        Period.parse(value)


def test_period_holds_days_only():
    noon, day = pd.Timestamp("2024-01-01 12:00"), pd.Timestamp("2024-01-02")
    with pytest.raises(ConfigError, match="expected days at 00:00"):
        Period(noon, day)
    with pytest.raises(ConfigError, match="expected days at 00:00"):
        Period(day, day.tz_localize("UTC"))


def test_days_include_both_ends():
    days = Period.parse(("2024-02-28", "2024-03-01")).days
    assert [str(day.date()) for day in days] == ["2024-02-28", "2024-02-29", "2024-03-01"]
    assert days.unit == "ns"


# --- calendar ------------------------------------------------------------------------------------


@pytest.mark.parametrize("year", [2023, 2024])
def test_a_year_has_46_composites_that_begin_again_at_new_year(year):
    calendar = composite_calendar(str(year))
    expected = [
        pd.Timestamp(datetime.date(year, 1, 1) + datetime.timedelta(n)) for n in range(0, 361, 8)
    ]
    assert list(calendar) == expected
    assert len(calendar) == STEPS
    following = composite_calendar(f"{year}-12-20/{year + 1}-01-10")
    assert (following[1] - following[0]).days == (6 if year == 2024 else 5)


def test_calendar_holds_the_slots_that_start_inside():
    assert len(composite_calendar(("2024-01-02", "2024-01-08"))) == 0
    assert list(composite_calendar("2024-01-09")) == [pd.Timestamp("2024-01-09")]


def test_day_of_year_counts_to_366():
    values = day_of_year(["2023-12-31T23:59", "2024-12-31", "2024-01-01"])
    assert values.tolist() == [365, 366, 1]
    assert values.dtype == np.float64


# --- golden vectors of the published preparation code --------------------------------------------


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "reference/golden/prep_golden.npz")


def golden_windows(golden, times):
    composites, days = (pd.DatetimeIndex(golden[k]) for k in ("ndvi_dates", "weather_dates"))
    return one_year_windows(times, composites=composites, days=days, rule="published")


@pytest.mark.parametrize(
    ("key", "kelvin", "block"),
    [
        ("rszlj_8day_mean_timestamp", (263.15, 308.15), "mean"),
        ("rszlj_8day_mean_dateonly", (263.15, 308.15), "mean"),
        ("fork_every_8th_day_dateonly", (273.15, 318.15), "first"),
    ],
)
def test_published_windows_reproduce_the_published_vectors(golden, key, kelvin, block):
    times = pd.DatetimeIndex(golden["acq"])
    windows = golden_windows(golden, times.normalize() if "dateonly" in key else times)
    assert windows.complete.all()
    t2m, tp = golden["t2m"][windows.day_index], golden["tp"][windows.day_index]
    t2m, tp = (v.mean(axis=-1) if block == "mean" else v[..., 0] for v in (t2m, tp))
    ndvi = (golden["ndvi"][windows.composite_index] + 2000) / 12000
    t2m = (t2m - kelvin[0]) / (kelvin[1] - kelvin[0])
    vectors = np.hstack([ndvi, t2m, tp / 0.3]).clip(0, 1)
    usable = golden[f"{key}_status"] == "ok"
    assert usable.sum() >= 4
    np.testing.assert_allclose(vectors[usable], golden[key][usable, 15:], rtol=1e-12)


def test_published_windows_match_the_reference_table(golden):
    table = json.loads(str(golden["window_table_json"]))
    windows = golden_windows(golden, [row["acq"] for row in table])
    composites, days = golden["ndvi_dates"], golden["weather_dates"]
    for i, row in enumerate(table):
        assert composites[windows.composite_index[i, -1]] == row["last"]
        assert composites[windows.composite_index[i, 0]] == row["first"]
        assert days[windows.day_index[i, -1, -1]] == row["last_weather_day_8day_mean"]
        assert days[windows.day_index[i, -1, 0]] == row["last_weather_day_training"]


# --- rules over sixteen years --------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["published", "causal"])
def test_every_day_has_exactly_the_46_composites_of_its_363_days(rule):
    windows = windows_of(ALL_DAYS, rule)
    assert windows.complete.all()
    first = COMPOSITES[windows.composite_index[:, 0]]
    last = COMPOSITES[windows.composite_index[:, -1]]
    assert ((last <= ALL_DAYS) & (last > ALL_DAYS - BLOCK_DAYS * DAY)).all()
    # Counted from the dates alone, without the calendar's order.
    slots = COMPOSITES.values
    inside = (slots > (last - 363 * DAY).values[:, None]) & (slots <= last.values[:, None])
    assert (inside.sum(axis=1) == STEPS).all()
    np.testing.assert_array_equal(first, slots[inside.argmax(axis=1)])


def test_published_weather_starts_with_the_first_composite_and_ends_in_the_future():
    windows = windows_of(ALL_DAYS, "published")
    first = COMPOSITES[windows.composite_start]
    np.testing.assert_array_equal(DAYS[windows.day_index[:, 0, 0]], first)
    ahead = (DAYS[windows.day_index[:, -1, -1]] - ALL_DAYS).days
    assert (ahead.min(), ahead.max()) == (2, 10)


def test_causal_weather_ends_on_the_day_of_the_acquisition():
    windows = windows_of(ALL_DAYS, "causal")
    assert windows.day_index.shape == (len(ALL_DAYS), STEPS, BLOCK_DAYS)
    np.testing.assert_array_equal(DAYS[windows.day_index[:, -1, -1]], ALL_DAYS)
    np.testing.assert_array_equal(
        DAYS[windows.day_index[:, 0, 0]], ALL_DAYS - (WINDOW_DAYS - 1) * DAY
    )
    steps = np.diff(windows.day_index.reshape(len(ALL_DAYS), -1), axis=1)
    assert (steps == 1).all()


@settings(max_examples=100, deadline=None)
@given(time=acquisitions, as_of=st.sampled_from([None, "acquisition"]))
def test_causal_windows_never_reach_past_the_acquisition(time, as_of):
    windows = windows_of([time], as_of=as_of)
    assert windows.complete.all()
    assert DAYS[windows.day_index.max()] <= pd.Timestamp(time)
    assert COMPOSITES[windows.composite_index.max()] <= pd.Timestamp(time)


@settings(max_examples=100, deadline=None)
@given(time=acquisitions, composite_days=st.sampled_from([8, 16]))
def test_real_time_uses_the_latest_composite_that_had_ended(time, composite_days):
    windows = windows_of([time], as_of="acquisition", composite_days=composite_days)
    today = pd.Timestamp(time).normalize()
    last = COMPOSITES[windows.composite_index[0, -1]]
    ends = COMPOSITES + (composite_days - 1) * DAY
    assert last == COMPOSITES[ends < today][-1]


@settings(max_examples=100, deadline=None)
@given(time=acquisitions, lag=st.integers(0, 60))
def test_a_later_day_of_knowledge_lies_between_real_time_and_archive(time, lag):
    as_of = pd.Timestamp(time).normalize() + lag * DAY
    windows = windows_of([time], as_of=as_of)
    last = windows.composite_index[0, -1]
    assert windows.complete.all()
    assert COMPOSITES[last] + 16 * DAY <= as_of
    archive = windows_of([time]).composite_index[0, -1]
    assert windows_of([time], as_of="acquisition").composite_index[0, -1] <= last <= archive
    if lag >= 23:
        assert last == archive
    np.testing.assert_array_equal(windows.day_index, windows_of([time]).day_index)


def test_acquisitions_after_the_day_of_knowledge_have_no_window():
    windows = windows_of(["2024-05-01T17:00", "2024-05-02T06:00"], as_of="2024-05-01")
    assert windows.complete.tolist() == [True, False]
    assert windows.composite_start[1] == windows.day_start[1] == -1


def test_day_of_knowledge_takes_any_date_and_the_time_of_day_does_not_count():
    reference = windows_of(["2024-05-01T17:00"], as_of="2024-05-01")
    for as_of in (pd.Timestamp("2024-05-01 23:00"), "2024-05-01T20:00-03:00", "2024-05-01 01:00"):
        windows = windows_of(["2024-05-01T17:00"], as_of=as_of)
        np.testing.assert_array_equal(windows.composite_index, reference.composite_index)


@pytest.mark.parametrize(
    ("time", "first", "last"),
    [
        ("2024-12-31T23:59", "2024-01-01", "2024-12-26"),  # day 361 of a leap year
        ("2025-01-01T00:00", "2024-01-09", "2025-01-01"),
        ("2025-01-08T23:59", "2024-01-09", "2025-01-01"),
        ("2025-01-09T00:00", "2024-01-17", "2025-01-09"),
        ("2023-12-31T23:59", "2023-01-01", "2023-12-27"),
        ("2024-02-29T12:00", "2023-03-06", "2024-02-26"),
        ("2024-03-01T12:00", "2023-03-06", "2024-02-26"),
    ],
)
def test_new_year_and_leap_days(time, first, last):
    index = windows_of([time]).composite_index[0]
    assert COMPOSITES[index[[0, -1]]].strftime("%Y-%m-%d").tolist() == [first, last]


def test_times_with_a_zone_are_read_as_utc():
    zoned = pd.DatetimeIndex(["2024-05-01T22:30"]).tz_localize("America/Lima")
    windows = windows_of(zoned)
    assert DAYS[windows.day_index[0, -1, -1]] == pd.Timestamp("2024-05-02")


# --- axes that end, axes with gaps ---------------------------------------------------------------


def test_windows_that_the_axes_cannot_fill_are_marked_and_index_nothing():
    composites = composite_calendar(("2023-01-01", "2024-03-01"))
    days = Period.parse(("2023-03-01", "2024-12-31")).days
    times = pd.DatetimeIndex(["2023-06-01", "2024-02-01", "2024-03-04", "2024-03-05", "2024-12-01"])
    windows = one_year_windows(times, composites=composites, days=days, rule="causal")
    # No composites yet; no weather yet; complete; a later composite exists and is not on the axis.
    assert windows.complete.tolist() == [False, False, True, False, False]
    assert windows.composite_start.tolist() == [-1, 4, 8, -1, -1]
    assert windows.day_start.tolist() == [-1, -1, 2, 3, 274]
    assert (windows.composite_index[0] == -1).all()
    assert (windows.day_index[1] == -1).all()
    assert windows.composite_index[2].tolist() == list(range(8, 8 + STEPS))


def test_published_rule_needs_the_weather_after_the_acquisition():
    composites = composite_calendar(("2023-01-01", "2024-03-01"))
    short, full = (Period.parse(("2023-01-01", end)).days for end in ("2024-03-06", "2024-03-07"))
    for days, complete in ((short, False), (full, True)):
        windows = one_year_windows(
            ["2024-03-01"], composites=composites, days=days, rule="published"
        )
        assert windows.complete.tolist() == [complete]


def test_published_weather_cannot_start_without_composites():
    composites, days = composite_calendar("2023"), Period.parse("2022/2025").days
    windows = one_year_windows(["2023-06-01"], composites=composites, days=days, rule="published")
    assert windows.composite_start.tolist() == windows.day_start.tolist() == [-1]


def test_no_acquisitions_give_empty_windows():
    windows = windows_of([])
    assert windows.composite_index.shape == (0, STEPS)
    assert windows.day_index.shape == (0, STEPS, BLOCK_DAYS)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"composites": COMPOSITES.delete(7)}, "composites 2013.*2013-02-26 is missing"),
        ({"composites": COMPOSITES + DAY}, "composites.*2013-01-02 00:00:00 is not one of"),
        ({"composites": COMPOSITES[::2]}, "2013-01-09 is missing"),  # Terra without Aqua
        ({"composites": COMPOSITES[:0]}, "composites: expected at least one date"),
        ({"days": DAYS.delete(40)}, "days 2013-01-01/2031-03-01.*2013-02-10 is missing"),
        ({"days": DAYS + pd.Timedelta(hours=12)}, "12:00:00 is not one of"),
        ({"days": DAYS[::-1]}, "days.*increasing dates"),
        ({"days": DAYS.insert(1, DAYS[0])}, "days.*without repetition"),
    ],
)
def test_the_first_gap_of_an_axis_is_named(axes, message):
    axes = {"composites": COMPOSITES, "days": DAYS} | axes
    with pytest.raises(WindowError, match=message):
        one_year_windows(["2024-01-01"], rule="causal", **axes)


def test_rules_that_contradict_are_refused():
    with pytest.raises(ConfigError, match="as_of 'acquisition': the rule \"published\" uses weath"):
        windows_of(["2024-01-01"], "published", as_of="acquisition")
    with pytest.raises(ConfigError, match="rule: expected one of"):
        windows_of(["2024-01-01"], "newest")
    with pytest.raises(ConfigError, match="is not a date"):
        windows_of(["2024-01-01"], as_of="later")


# --- first served day ----------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    start=st.dates(datetime.date(2015, 1, 1), datetime.date(2020, 1, 1)),
    weather_lead=st.integers(-400, 400),
    how=st.sampled_from([("published", None), ("causal", None), ("causal", "acquisition")]),
)
def test_first_served_day_is_the_first_complete_one(start, weather_lead, how):
    start = pd.Timestamp(start)
    axes = {
        "composites": composite_calendar((start, start + 900 * DAY)),
        "days": Period.parse((start + weather_lead * DAY, start + 900 * DAY)).days,
        "rule": how[0],
        "as_of": how[1],
    }
    first = first_served_day(**axes)
    everything = pd.date_range(start - 400 * DAY, start + 900 * DAY)
    complete = one_year_windows(everything, **axes).complete
    assert everything[complete.argmax()] == first
    assert complete[complete.argmax()]


def test_axes_without_any_window_say_what_is_needed():
    with pytest.raises(WindowError, match=r"46 composites and 368 days .* load a longer period"):
        first_served_day(
            composites=composite_calendar("2024"),
            days=Period.parse("2024").days,
            rule="causal",
        )
