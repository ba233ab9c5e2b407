"""Splits by year: gaps of whole windows between the parts."""

import numpy as np
import pandas as pd
import pytest

from smgrid.errors import ConfigError
from smgrid.training.splits import split_samples
from smgrid.windows import Period, composite_calendar, one_year_windows
from tests.training.split_tables import days_apart, parts, record, years
from tests.training.tables import random_samples


def test_drawn_years_are_the_last_ones_and_for_validation_the_first_ones():
    split = split_samples(record(), by="year", share=(0.6, 0.2, 0.2), gap_days=368)
    # Nine years from 2014 on; a fifth of them is two.
    assert split.report.held_out == {"validation": [2014, 2015], "test": [2021, 2022]}
    time = split.training.time
    assert np.datetime64("2016-12-25") < time.min() < np.datetime64("2017-06")
    assert np.datetime64("2019-06") < time.max() < np.datetime64("2020-01-06")
    assert split.report.removed["window"] > 0


def test_by_default_no_two_parts_of_a_split_in_time_share_a_day():
    split = split_samples(record(), by="year")
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert days_apart(parts(split)[one], parts(split)[two]) >= 381


def test_validation_keeps_the_gap_to_the_test_and_what_goes_is_counted():
    table = record(2000)
    split = split_samples(table, by="year", test=2020, validation=2019, gap_days=100)
    last = split.validation.time.max()
    assert np.datetime64("2019-09-13") < last < np.datetime64("2019-09-24")
    assert len(split.training) + len(split.validation) + len(split.test) < 2000
    assert sum(split.report.rows.values()) + split.report.removed["window"] == 2000
    message = r"none is left for validation .*farther apart.*gap_days=0"
    with pytest.raises(ConfigError, match=message):
        split_samples(table, by="year", test=2020, validation=2019)


@pytest.mark.parametrize(
    ("named", "drawn"),
    [
        ({"test": 2022}, {"validation": [2014]}),
        ({"test": 2014}, {"validation": [2022]}),
        ({"test": [2014, 2022]}, {"validation": [2018]}),
        ({"validation": 2021}, {"test": [2014]}),
        ({"test": 2018}, {"validation": [2022]}),
    ],
)
def test_drawn_years_are_far_from_named_ones(named, drawn):
    held = split_samples(record(), by="year", **named).report.held_out
    assert {name: held[name] for name in drawn} == drawn


def test_named_years_are_held_out_and_the_gap_is_on_both_sides():
    table = record(2000)
    split = split_samples(table, by="year", test=(2017,), validation=np.array([2020]), gap_days=100)
    assert (years(split.test), years(split.validation)) == ({2017}, {2020})
    left, days = split.training.time.astype("M8[D]"), np.timedelta64(1, "D")
    for year in (2017, 2020):
        first, last = np.datetime64(f"{year}-01-01"), np.datetime64(f"{year}-12-31")
        assert not ((left > first - 90 * days) & (left < last + 90 * days)).any()
        assert ((left > first - 120 * days) & (left < first)).any()
        assert ((left > last) & (left < last + 120 * days)).any()


@pytest.mark.parametrize(("apart", "kept"), [(380, 1), (381, 2)])
def test_a_window_is_cleared_after_381_days(apart, kept):
    # By days and not by hours, as windows are: the acquisition of the morning uses its whole day.
    test = np.datetime64("2020-06-15T23:00", "ns")
    near = test - np.timedelta64(apart, "D") - np.timedelta64(20, "h")
    table = random_samples(3, time=[np.datetime64("2015-01-01", "ns"), near, test])
    split = split_samples(table, by="year", test=(2020,), share=(0.9, 0, 0.1))
    assert len(split.training) == kept
    assert split.report.removed == {"window": 2 - kept}


def test_the_gaps_of_the_docstring_clear_what_they_say():
    acquired = pd.date_range("2016-01-01", "2023-12-31")
    composites, days = composite_calendar("2014/2024"), Period.parse("2014/2024").days
    for rule, gap in (("causal", 368), ("published", 381)):
        windows = one_year_windows(acquired, composites=composites, days=days, rule=rule)
        weather = days[windows.day_start]
        after = (weather - acquired).days.to_numpy() + 367
        before = (acquired - weather).days.to_numpy()
        assert after.max() + before.max() < gap
    first = (acquired - composites[windows.composite_start]).days.max()
    last = (composites[windows.composite_start + 45] - acquired).days.max() + 15
    assert first + last == 380


def test_without_a_gap_no_sample_goes_and_the_report_says_so():
    split = split_samples(record(), by="year", gap_days=0)
    assert split.report.removed == {}
    assert any("windows of training and test overlap" in note for note in split.report.notes)
    split = split_samples(record(), by="year", gap_days=368)
    assert any("368 days" in note and "overlap" in note for note in split.report.notes)
    assert not any("overlap" in n for n in split_samples(record(), by="year").report.notes)


def test_a_year_begins_at_midnight_utc():
    time = np.array(["2019-12-31T23:59", "2020-01-01T00:00"], "M8[ns]")
    split = split_samples(random_samples(2, time=time), by="year", share=(0.5, 0, 0.5), gap_days=0)
    assert list(split.test.time) == [time[1]]
