"""Which passes exist as ground range products and not as terrain-corrected backscatter."""

import copy
import json

import numpy as np
import pandas as pd
import pystac
import pytest
from shapely.geometry import box, mapping

from smgrid.errors import NoDataError
from smgrid.sources.gaps import find_gaps
from smgrid.sources.passes import pass_of
from tests.builders import stac_spec, utm_grid, write_catalog

GRID = utm_grid((40, 40), 100)
PERIOD = ("2024-03-01", "2024-04-30")
AREA = GRID.footprint("EPSG:4326").boundingbox


@pytest.fixture(scope="module")
def recorded(shared):
    """Items of both collections as the Planetary Computer gives them."""
    folder = shared / "data" / "real" / "stac_responses" / "planetary_computer"
    return {
        kind: json.loads((folder / f"items_sentinel-1-{kind}.json").read_text())["features"][0]
        for kind in ("grd", "rtc")
    }


def scene(recorded, kind, start, *, unit="A", orbit=88, west=0.0, east=1.0, state="ascending"):
    """Return a recorded item, made one of another moment over a part of the region."""
    first = pd.Timestamp(start)
    last = first + pd.Timedelta(seconds=25)
    found = copy.deepcopy(recorded[kind])
    suffix = "_rtc" if kind == "rtc" else ""
    name = f"S1{unit}_IW_GRDH_1SDV_{first:%Y%m%dT%H%M%S}_{last:%Y%m%dT%H%M%S}_052853_06657F{suffix}"
    found |= {"id": name, "links": [], "collection": None}
    found["properties"] |= {
        "platform": f"SENTINEL-1{unit}",
        "datetime": f"{first + (last - first) / 2:%Y-%m-%dT%H:%M:%S.%fZ}",
        "start_datetime": f"{first}.604436+00:00",
        "end_datetime": f"{last}.601759+00:00",
        "sat:relative_orbit": orbit,
        "sat:orbit_state": state,
    }
    width = AREA.right - AREA.left
    outline = box(AREA.left + west * width, AREA.bottom - 1, AREA.left + east * width, AREA.top + 1)
    found |= {"geometry": mapping(outline), "bbox": list(outline.bounds)}
    return pystac.Item.from_dict(found)


def burst(start, name="T088-187178-IW1", unit="A"):
    stamp = start.replace("-", "").replace(":", "")
    item_id = f"OPERA_L2_RTC-S1_{name}_{stamp}Z_20240401T000000Z_S1{unit}_30_v1.0"
    moment = pd.Timestamp(start).to_pydatetime()
    outline = box(AREA.left - 1, AREA.bottom - 1, AREA.right + 1, AREA.top + 1)
    return pystac.Item(item_id, mapping(outline), list(outline.bounds), moment, {})


def source(folder, name, items):
    return stac_spec(write_catalog(folder / name, name, items), collection=name, name=name)


def report(folder, expected, product, period=PERIOD):
    return find_gaps(
        GRID,
        period,
        expected=source(folder, "grd", expected),
        product=source(folder, "rtc", product),
    )


def test_a_scene_and_what_was_made_of_it_are_one_pass(recorded):
    rtc, grd = (pystac.Item.from_dict(recorded[kind]) for kind in ("rtc", "grd"))
    assert rtc.id.endswith("_rtc")
    derived = next(link for link in recorded["rtc"]["links"] if link["rel"] == "derived_from")
    assert rtc.id == derived["href"].split("/")[-1] + "_rtc"  # one scene, one start
    for item in (rtc, grd):
        assert f"{pass_of(item).time:%Y%m%dT%H%M%S}" in item.id
    assert pass_of(rtc).platform == pass_of(grd).platform == "sentinel-1a"


def test_passes_that_were_not_made_are_named(tmp_path, recorded):
    days = {"A": "2024-03-05", "B": "2024-03-11", "C": "2024-03-17", "D": "2024-04-04"}
    grd = [scene(recorded, "grd", f"{day}T17:32:06", unit=unit) for unit, day in days.items()]
    grd.append(scene(recorded, "grd", "2024-03-05T05:58:00", orbit=110, state="descending"))
    rtc = [scene(recorded, "rtc", f"{days[unit]}T17:32:06", unit=unit) for unit in "AC"]
    found = report(tmp_path, grd, rtc)
    assert len(found.passes) == 5
    assert found.missing["platform"].tolist() == ["sentinel-1a", "sentinel-1b", "sentinel-1d"]
    assert found.missing["relative_orbit"].tolist() == [110, 88, 88]
    assert [f"{start}" for start in found.missing.index] == [
        "2024-03-05 05:58:00",
        "2024-03-11 17:32:06",
        "2024-04-04 17:32:06",
    ]
    assert found.partial.empty
    assert str(found).splitlines() == [
        "rtc, 2024-03-01/2024-04-30: 3 of the 5 passes of grd missing, 0 incomplete",
        "  month  passes  missing  incomplete",
        "2024-03       4        2           0",
        "2024-04       1        1           0",
        "missing: 2024-03-05 05:58:00 sentinel-1a, orbit 110 descending, 0% of 100% of the region",
        "missing: 2024-03-11 17:32:06 sentinel-1b, orbit 88 ascending, 0% of 100% of the region",
        "missing: 2024-04-04 17:32:06 sentinel-1d, orbit 88 ascending, 0% of 100% of the region",
    ]


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({}, 0),
        ({"start": "2024-03-05T17:31:41"}, 0),  # the slice before is of the pass too
        ({"start": "2024-03-05T17:52:06"}, 1),
        ({"start": "2024-03-06T17:32:06"}, 1),
        ({"unit": "C"}, 1),
        ({"orbit": 15}, 1),
    ],
)
def test_what_makes_two_passes_one(tmp_path, recorded, changes, missing):
    start = "2024-03-05T17:32:06"
    rtc = scene(recorded, "rtc", **({"start": start} | changes))
    found = report(tmp_path, [scene(recorded, "grd", start)], [rtc])
    assert len(found.missing) == missing


def test_a_slice_that_is_missing_makes_a_pass_incomplete(tmp_path, recorded):
    starts = ("2024-03-05T17:32:06", "2024-03-05T17:32:31")
    parts = ({"east": 0.4}, {"west": 0.4})
    grd = [scene(recorded, "grd", s, **p) for s, p in zip(starts, parts, strict=True)]
    whole = [scene(recorded, "rtc", s, **p) for s, p in zip(starts, parts, strict=True)]
    found = report(tmp_path, grd, whole[1:])
    assert found.missing.empty
    assert len(found.partial) == 1
    # The edges of the region do not run along meridians exactly.
    assert found.partial["found"].item() == pytest.approx(0.6, abs=1e-3)
    assert report(tmp_path / "whole", grd, whole).partial.empty


def test_bursts_of_opera_stand_for_their_pass(tmp_path, recorded):
    days = ("2024-03-05", "2024-03-17")
    grd = [scene(recorded, "grd", f"{day}T17:32:06") for day in days]
    bursts = [burst("2024-03-05T17:32:09"), burst("2024-03-05T17:32:10", "T088-187178-IW2")]
    found = report(tmp_path, grd, bursts)
    assert found.missing.index.tolist() == [pd.Timestamp("2024-03-17T17:32:06")]


def test_a_product_that_has_nothing_lacks_all(tmp_path, recorded):
    grd = [scene(recorded, "grd", "2024-03-05T17:32:06")]
    later = [scene(recorded, "rtc", "2024-06-01T17:32:06")]
    assert len(report(tmp_path, grd, later).missing) == 1
    with pytest.raises(NoDataError, match=r"grd \(grd\) has no data for 2024-05-01/2024-05-31"):
        report(tmp_path / "may", grd, later, ("2024-05-01", "2024-05-31"))


def test_a_pass_counts_on_the_day_when_it_starts(tmp_path, recorded):
    starts = ("2024-02-29T23:59:50", "2024-03-01T00:00:15", "2024-04-30T23:59:50")
    grd = [scene(recorded, "grd", start) for start in starts]
    found = report(tmp_path, grd, [scene(recorded, "rtc", "2024-05-01T00:00:15")])
    assert found.passes.index.tolist() == [pd.Timestamp("2024-04-30T23:59:50")]
    assert found.missing.empty
    assert np.isclose(found.passes["found"].item(), 1)
