"""What the ids of OPERA products say."""

import itertools

import pytest

from smgrid.sources.burst import Burst, parse_burst

# Bursts of tracks that are known to fly so over their places.
ASCENDING = ["T102-217155-IW1", "T049-103327-IW3", "T124-264305-IW2"]  # Crete, Colorado, Hawaii
DESCENDING = ["T087-185678-IW2", "T144-308029-IW1"]  # Hawaii, California


def rtc(burst, unit="A"):
    return f"OPERA_L2_RTC-S1_{burst}_20240703T162341Z_20240703T220516Z_S1{unit}_30_v1.0"


def test_everything_that_an_id_says():
    expected = Burst("T102-217155-IW1", 102, "ascending", "sentinel-1a", "1.0")
    assert parse_burst(rtc("T102-217155-IW1")) == expected
    static = parse_burst("OPERA_L2_RTC-S1-STATIC_T004-006637-IW3_20140403_S1A_30_v1.1")
    assert static == Burst("T004-006637-IW3", 4, "ascending", "sentinel-1a", "1.1")


@pytest.mark.parametrize("unit", "ABCD")
def test_every_satellite(unit):
    assert parse_burst(rtc("T049-103327-IW3", unit)).platform == f"sentinel-1{unit.lower()}"


@pytest.mark.parametrize(
    ("bursts", "state"), [(ASCENDING, "ascending"), (DESCENDING, "descending")]
)
def test_direction_of_known_tracks(bursts, state):
    assert [parse_burst(rtc(burst)).orbit_state for burst in bursts] == [state] * len(bursts)


def test_direction_turns_twice_on_every_orbit():
    numbers = range(1, 375_888, 100)  # a repeat cycle has 375 887 bursts
    states = [parse_burst(rtc(f"T001-{number:06d}-IW1")).orbit_state for number in numbers]
    turns = sum(one != other for one, other in itertools.pairwise(states))
    assert turns == 2 * 175
    assert states.count("ascending") / len(states) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    "other",
    [
        "S1A_IW_GRDH_1SDV_20250312T052236_20250312T052301_058267_073394",
        "OPERA_L2_CSLC-S1_T087-185678-IW2_20180210T232711Z_20230101T100506Z_S1A_VV_v1.0",
        "",
    ],
)
def test_other_ids_say_nothing(other):
    assert parse_burst(other) is None
