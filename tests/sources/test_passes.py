"""Which acquisitions are one pass, and the rules that tell the passes of a stack apart."""

import json

import pandas as pd
import pystac
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from smgrid.catalog import SourceSpec
from smgrid.errors import CatalogError, SourceError
from smgrid.sources.passes import (
    Pass,
    apply_rules,
    group_slices,
    pass_of,
    read_rules,
    with_pass_coords,
)
from tests.builders import make_item, utm_grid

ASCENDING = {"platform": "sentinel-1a", "orbit_state": "ascending", "relative_orbit": 88}
DESCENDING = {"platform": "sentinel-1a", "orbit_state": "descending", "relative_orbit": 110}


def piece(name, time, **orbit):
    return Pass(time=pd.Timestamp(time), slices=(name,), **(orbit or ASCENDING))


def rules_of(*passes):
    spec = SourceSpec(
        "s1", "m:f", ("vv",), options={"passes": list(passes)}, origin="c.yml, line 3"
    )
    return read_rules(spec), spec


def entry(around, orbit=88, **changes):
    return {"relative_orbit": orbit, "orbit_state": "ascending", "around": around, **changes}


def test_slices_of_one_pass_are_joined_and_time_is_that_of_the_earliest():
    slices = [piece("b", "2024-03-01T17:32:25"), piece("a", "2024-03-01T17:32:00")]
    (joined,) = group_slices(slices)
    assert joined.slices == ("a", "b")
    assert joined.time == pd.Timestamp("2024-03-01T17:32:00")


def test_passes_of_one_day_are_never_joined():
    slices = [
        piece("evening", "2024-03-01T17:32:00"),
        piece("morning", "2024-03-01T05:58:00", **DESCENDING),
    ]
    assert [one.slices for one in group_slices(slices)] == [("morning",), ("evening",)]


def test_two_satellites_in_one_minute_are_two_passes():
    slices = [
        piece("a", "2024-03-01T17:32:00"),
        piece("c", "2024-03-01T17:32:20", **(ASCENDING | {"platform": "sentinel-1c"})),
    ]
    assert len(group_slices(slices)) == 2


def test_a_pass_over_midnight_is_one_pass():
    slices = [piece("a", "2024-02-29T23:59:50"), piece("b", "2024-03-01T00:00:15")]
    assert [one.slices for one in group_slices(slices)] == [("a", "b")]


def test_the_same_orbit_twelve_days_later_is_another_pass():
    assert len(group_slices([piece("a", "2024-03-01"), piece("b", "2024-03-13")])) == 2


def test_indistinguishable_passes_are_refused():
    slices = [piece("a", "2024-03-01"), piece("b", "2024-03-01", **DESCENDING)]
    with pytest.raises(SourceError, match=r"two passes start at 2024-03-01 00:00:00: . and ."):
        group_slices(slices)


@given(st.permutations([0, 25, 50, 86400, 86425, 600000]))
def test_grouping_does_not_depend_on_the_order_of_slices(seconds):
    start = pd.Timestamp("2024-03-01")
    passes = group_slices(piece(str(s), start + pd.Timedelta(seconds=s)) for s in seconds)
    assert [one.slices for one in passes] == [("0", "25", "50"), ("86400", "86425"), ("600000",)]


def test_coordinates_of_passes():
    passes = group_slices([piece("a", "2024-03-01"), piece("b", "2024-03-02", **DESCENDING)])
    ds = with_pass_coords(xr.Dataset({"vv": ("time", [1.0, 2.0])}), passes)
    assert ds["time"].dtype == "datetime64[ns]"
    assert ds["relative_orbit"].dtype == "int16"
    assert ds["relative_orbit"].values.tolist() == [88, 110]
    assert ds["orbit_state"].values.tolist() == ["ascending", "descending"]
    assert ds["platform"].values.tolist() == ["sentinel-1a", "sentinel-1a"]


@pytest.mark.parametrize(
    ("time", "orbit"),
    [("2018-03-01T17:32:36", 161), ("2018-03-01T17:40:12", 88), ("2018-03-01T17:39:00", 88)],
)
def test_an_acquisition_belongs_to_the_nearest_rule(time, orbit):
    rules, spec = rules_of(entry("17:32", 161), entry("17:40", 88, platform="SENTINEL-1B"))
    found = apply_rules(rules, pd.Timestamp(time), "0", spec)
    assert (found.relative_orbit, found.orbit_state) == (orbit, "ascending")
    assert found.platform == ("sentinel-1b" if orbit == 88 else "")


@pytest.mark.parametrize("time", ["2018-03-01T00:03:00", "2018-03-01T23:57:00"])
def test_rules_wrap_around_midnight(time):
    rules, spec = rules_of(entry("23:59:30", within_minutes=5))
    assert apply_rules(rules, pd.Timestamp(time), "0", spec).relative_orbit == 88


def test_an_acquisition_that_no_rule_knows_is_refused():
    rules, spec = rules_of(entry("17:32"))
    message = r"the acquisition at 2018-03-01 05:58:00 is 694.0 minutes .* c.yml, line 3"
    with pytest.raises(SourceError, match=message):
        apply_rules(rules, pd.Timestamp("2018-03-01T05:58:00"), "0", spec)


def test_without_rules_the_orbit_is_unknown():
    rules, spec = rules_of()
    found = apply_rules(rules, pd.Timestamp("2018-03-01"), "7", spec)
    assert found == Pass(pd.Timestamp("2018-03-01"), "", "", 0, ("7",))


@pytest.mark.parametrize(
    "wrong",
    [
        entry("17.32"),
        entry("25:00"),
        entry("17:32", orbit=176),
        entry("17:32", orbit="88"),
        entry("17:32", within=3),
        entry("17:32", orbit_state="up"),
    ],
)
def test_rules_that_are_not_understood_are_refused(wrong):
    with pytest.raises(CatalogError, match=r"c.yml, line 3: options.passes.0"):
        rules_of(wrong)


@pytest.mark.parametrize(
    "stated", ["SENTINEL-1C", "Sentinel-1C", "sentinel-1c", "S1C", "Sentinel 1C", "", None]
)
def test_satellites_have_one_name_however_they_are_stated(stated):
    name = "OPERA_L2_RTC-S1_T102-217155-IW1_20240703T162341Z_20240703T220516Z_S1C_30_v1.0"
    item = make_item(name, utm_grid(), {}, start="2024-07-03T16:23:41", platform=stated)
    found = pass_of(item)
    assert found.platform == "sentinel-1c"
    assert found.time == pd.Timestamp("2024-07-03T16:23:41")


def test_what_an_item_states_comes_before_what_its_id_says():
    name = "OPERA_L2_RTC-S1_T102-217155-IW1_20240703T162341Z_20240703T220516Z_S1A_30_v1.0"
    start = "2024-07-03T16:23:41"
    silent = make_item(name, utm_grid(), {}, start=start)
    assert (pass_of(silent).relative_orbit, pass_of(silent).orbit_state) == (102, "ascending")
    stated = {"sat:relative_orbit": 101, "sat:orbit_state": "DESCENDING", "platform": "S1D"}
    found = pass_of(make_item(name, utm_grid(), {}, start=start, **stated))
    assert (found.relative_orbit, found.orbit_state) == (101, "descending")
    assert found.platform == "sentinel-1d"


def test_an_item_that_says_nothing_is_of_no_known_orbit():
    found = pass_of(make_item("scene", utm_grid(), {}, start="2024-07-03"))
    assert (found.platform, found.orbit_state, found.relative_orbit) == ("", "", 0)


def recorded_items(folder):
    for path in sorted(folder.glob("*/*.json")):
        pending = [json.loads(path.read_text())]
        while pending:
            found = pending.pop()
            if isinstance(found, list):
                pending.extend(found)
            elif isinstance(found, dict) and found.get("type") == "Feature":
                if str(found.get("collection")).startswith("sentinel") and "1" in found["id"][:3]:
                    yield found
            elif isinstance(found, dict):
                pending.extend(found.values())


def test_orbit_fields_of_every_recorded_sentinel1_item(shared):
    items = [
        found
        for found in recorded_items(shared / "data" / "real" / "stac_responses")
        if found["collection"].startswith(("sentinel-1", "sentinel1"))
    ]
    assert len(items) >= 8
    for found in items:
        one = pass_of(pystac.Item.from_dict(found))
        acquired, orbit = found["id"], found["properties"]["sat:absolute_orbit"]
        assert one.platform == f"sentinel-1{acquired[2].lower()}"
        assert one.orbit_state in ("ascending", "descending")
        # The offset between absolute and relative orbit is a constant of each satellite.
        offset = {"a": 73, "b": 27, "c": 172}[one.platform[-1]]
        assert one.relative_orbit == (orbit - offset) % 175 + 1
        if "_1S" in acquired:
            assert f"{one.time:%Y%m%dT%H%M%S}" in acquired
