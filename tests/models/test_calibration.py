import json

import numpy as np
import pytest

from smgrid.errors import BundleError, ConfigError
from smgrid.models.calibration import LARGEST_SEASON, Calibration
from tests.models.uncertainties import make_calibration


def test_bounds_are_the_quantile_of_the_scores_times_the_scale():
    one = make_calibration(a=0.03, b=2.0, effective=4.0)
    mean = np.float32([[0.2, 0.3, np.nan], [0.1, 0.1, 0.1]])
    spread = np.float32([[0.0, 0.02, 0.02], [0.01, np.nan, 0.2]])
    lower, upper = one.bounds(mean, spread, 0.5)
    # 0.5 * (4 + 1) / 4 of the way through scores that rise evenly to 4
    reach = 2.5 * np.hypot(0.03, 2 * spread.astype(float))
    np.testing.assert_allclose(lower, mean - reach, rtol=2e-6)
    np.testing.assert_allclose(upper, mean + reach, rtol=2e-6)
    assert lower.dtype == upper.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(lower), np.isnan(mean) | np.isnan(spread))
    assert lower[0, 0] == pytest.approx(0.2 - 2.5 * 0.03)


def test_bounds_leave_what_they_are_given():
    mean, spread = np.full(3, 0.2, np.float32), np.full(3, 0.02, np.float32)
    make_calibration().bounds(mean, spread, 0.8)
    assert (mean == np.float32(0.2)).all()
    assert (spread == np.float32(0.02)).all()


def seasonal(day):
    angle = 2 * np.pi * np.asarray(day) / 365.25
    return np.exp((0.3 * np.cos(angle) - 0.4 * np.sin(angle)) / 2)


def test_the_scale_follows_the_season():
    plain, one = make_calibration(), make_calibration(season=(0.3, -0.4))
    mean = np.full((3, 2, 4), 0.2, np.float32)
    spread = np.linspace(0, 0.1, 24, dtype=np.float32).reshape(mean.shape)
    spread[0, 0, 0] = np.nan
    days = np.array([1.0, 100.0, 366.0]).reshape(3, 1, 1)
    lower, upper = one.bounds(mean, spread, 0.8, days)
    reach = plain.bounds(mean, spread, 0.8)[1] - mean
    np.testing.assert_allclose(upper - mean, reach * seasonal(days), rtol=1e-5)
    np.testing.assert_allclose(mean - lower, upper - mean, rtol=1e-5)
    assert lower.dtype == upper.dtype == one.scale(spread, days).dtype == np.float32
    for day, expected in zip(days.ravel(), upper, strict=True):
        at_once = one.bounds(mean, spread, 0.8, float(day))[1]
        np.testing.assert_array_equal(at_once[days.ravel() == day][0], expected)


def test_without_a_day_the_scale_is_the_widest():
    one = make_calibration(season=(0.3, -0.4))
    spread = np.full(3653, 0.02, np.float32)
    over_year = one.scale(spread, np.linspace(0, 365.25, 3653))
    assert one.scale(spread)[0] == pytest.approx(over_year.max(), rel=1e-6)
    unknown = one.scale(spread[:2], np.array([np.nan, 100.0]))
    assert unknown[0] == one.scale(spread)[0]
    assert unknown[1] == one.scale(spread, 100.0)[0] < unknown[0]


def test_a_season_at_most_doubles_and_halves_the_scale():
    one, spread = make_calibration(season=(LARGEST_SEASON, 0.0)), np.full(1, 0.02, np.float32)
    plain = make_calibration().scale(spread)
    assert one.scale(spread, 365.25) == pytest.approx(2 * plain)
    assert one.scale(spread, 365.25 / 2) == pytest.approx(plain / 2)


def test_without_a_season_the_day_changes_nothing():
    one, spread = make_calibration(), np.full(3, 0.02, np.float32)
    for day in (None, 1.0, np.array([np.nan, 1.0, 200.0])):
        np.testing.assert_array_equal(one.scale(spread, day), np.hypot(0.03, 0.01).astype("f4"))


def test_higher_coverage_is_wider():
    one = make_calibration()
    factors = [one.factor(c) for c in (0.01, 0.5, 0.8, 0.9, 0.95, 0.987)]
    assert factors == sorted(factors)
    assert len(set(factors)) == 6


@pytest.mark.parametrize("coverage", [0, 1, -0.1, 95, float("nan")])
def test_coverage_is_a_probability(coverage):
    with pytest.raises(ConfigError, match="coverage: expected a number between 0 and 1, found"):
        make_calibration().factor(coverage)


def test_coverage_that_the_stations_cannot_tell_is_refused():
    few = make_calibration(groups=10, effective=40.0)
    assert few.highest_coverage == pytest.approx(40 / 41)
    assert few.factor(40 / 41 - 1e-9) == pytest.approx(4)
    message = "0.99 cannot be told from 10 held-out .* at most 0.976.* on more stations"
    with pytest.raises(ConfigError, match=message):
        few.bounds(np.zeros(2, np.float32), np.zeros(2, np.float32), 0.99)


def test_calibration_round_trips_through_json():
    one = make_calibration(season=(0.3, -0.4))
    plain = json.loads(json.dumps(one.to_dict(), allow_nan=False))
    assert Calibration.from_dict(plain) == one
    assert isinstance(Calibration.from_dict(plain).scores, tuple)
    assert isinstance(Calibration.from_dict(plain).season, tuple)


def test_a_description_from_before_there_were_seasons_has_none():
    plain = make_calibration(season=(0.3, -0.4)).to_dict()
    del plain["season"]
    assert Calibration.from_dict(plain) == make_calibration(season=(0.0, 0.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": 0.0}, "a: Input should be greater than 0"),
        ({"b": -1.0}, "b: Input should be greater than or equal to 0"),
        ({"b": float("inf")}, "b: Input should be a finite number"),
        ({"scores": [1.0]}, "scores: .*at least 2"),
        ({"scores": [0.0, float("nan")]}, r"scores\.1: Input should be a finite number"),
        ({"scores": [1.0, 0.5]}, "must not decrease"),
        ({"season": [0.1]}, r"season\.1: Field required"),
        ({"season": [0.1, float("nan")]}, r"season\.1: Input should be a finite number"),
        ({"season": [1.0, 1.0]}, "season of a calibration: expected a length of at most 1.386"),
        ({"effective": 0.5}, "effective: Input should be greater"),
        ({"more": 1}, "more: Unexpected keyword argument"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused(change, message):
    plain = make_calibration().to_dict() | change
    with pytest.raises(BundleError, match=f"description of a calibration is not valid.*{message}"):
        Calibration.from_dict(plain)


@pytest.mark.parametrize("plain", [[1, 2], [[1]], "text", 1, None])
def test_a_description_that_is_no_mapping_is_refused(plain):
    with pytest.raises(BundleError, match=r"calibration is not valid.*should be a dictionary"):
        Calibration.from_dict(plain)
