import json

import numpy as np
import pytest

from smgrid.errors import BundleError, ConfigError
from smgrid.models.calibration import Calibration
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
    one = make_calibration()
    plain = json.loads(json.dumps(one.to_dict(), allow_nan=False))
    assert Calibration.from_dict(plain) == one
    assert isinstance(Calibration.from_dict(plain).scores, tuple)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": 0.0}, "a: Input should be greater than 0"),
        ({"b": -1.0}, "b: Input should be greater than or equal to 0"),
        ({"b": float("inf")}, "b: Input should be a finite number"),
        ({"scores": [1.0]}, "scores: .*at least 2"),
        ({"scores": [0.0, float("nan")]}, r"scores\.1: Input should be a finite number"),
        ({"scores": [1.0, 0.5]}, "must not decrease"),
        ({"effective": 0.5}, "effective: Input should be greater"),
        ({"more": 1}, "more: Unexpected keyword argument"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused(change, message):
    plain = make_calibration().to_dict() | change
    with pytest.raises(BundleError, match=f"description of a calibration is not valid.*{message}"):
        Calibration.from_dict(plain)
