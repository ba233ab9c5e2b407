"""Of what was processed twice the later product stays, in whatever order it comes."""

import itertools
import json
from collections import Counter

import pystac
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smgrid.sources.reprocessed import keep_latest
from tests.builders import make_item, utm_grid

SCENE = utm_grid((200, 250), 1000)
S1 = {
    "platform": "SENTINEL-1A",
    "sat:relative_orbit": 88,
    "sat:orbit_state": "ascending",
    "sar:instrument_mode": "IW",
    "sar:product_type": "GRD",
}


def item(name, start="2024-03-05T17:32:06", *, geobox=SCENE, **properties):
    return make_item(name, geobox, {"vv": f"/data/{name}.tif"}, start=start, **properties)


def slice_of(suffix, start="2024-03-05T17:32:06", **changes):
    stamp = start.replace("-", "").replace(":", "")
    name = f"S1A_IW_GRDH_1SDV_{stamp}_{stamp[:-2]}31_052853_06657F{suffix}"
    return item(name, start, **{**S1, **changes})


def modis(produced, tile="h12v11", product="MOD13Q1", **properties):
    name = f"{product}.A2022017.{tile}.061.{produced}"
    h, v = int(tile[1:3]), int(tile[4:6])
    tiles = {"modis:horizontal-tile": h, "modis:vertical-tile": v}
    return item(name, "2022-01-17", **{"platform": "", **tiles, **properties})


# Each: what is in the catalog, and the places of those that stay.
CASES = {
    "MODIS produced twice, by the id alone": (
        [modis("2022034232400"), modis("2023101010101")],
        {1},
    ),
    "MODIS: created against the id": (
        [modis("2022034232400", created="2025-01-01T00:00:00Z"), modis("2023101010101")],
        {1},
    ),
    "MODIS: two tiles": ([modis("2022034232400"), modis("2023101010101", "h12v12")], {0, 1}),
    "Terra and Aqua, platform not stated": (
        [modis("2022034232400"), modis("2023101010101", product="MYD13Q1")],
        {0, 1},
    ),
    "Sentinel-1: time of processing in another form": (
        [
            slice_of("_A1B2", **{"s1:processing_datetime": "2024-03-06 01:00:00.5+01:00"}),
            slice_of("_0C3D", **{"s1:processing_datetime": "2024-03-06T00:30:00Z"}),
        ],
        {1},
    ),
    "Sentinel-1: created": (
        [
            slice_of("_A1B2", created="2024-06-01T00:00:00Z"),
            slice_of("_C3D4", created="2024-03-06T00:00:00Z"),
        ],
        {0},
    ),
    "Sentinel-1: nothing but the id": ([slice_of("_A1B2"), slice_of("_C3D4")], {1}),
    "Sentinel-1: two slices": ([slice_of(""), slice_of("", "2024-03-05T17:32:31")], {0, 1}),
    "Sentinel-1: two platforms": (
        [slice_of("_A1B2"), slice_of("_C3D4", platform="SENTINEL-1C")],
        {0, 1},
    ),
    "Sentinel-1: two orbits": (
        [slice_of("_A1B2"), slice_of("_C3D4", **{"sat:relative_orbit": 89})],
        {0, 1},
    ),
    "OPERA: bursts of one second": (
        [
            item(f"OPERA_L2_RTC-S1_T069-147170-IW{n}_20240305T173206Z_20240306T004413Z_S1A_30_v1.0")
            for n in (1, 2)
        ],
        {0, 1},
    ),
    "OPERA: a burst made again": (
        [
            item(f"OPERA_L2_RTC-S1_T069-147170-IW1_20240305T173206Z_{made}_S1A_30_v1.0")
            for made in ("20250101T004413Z", "20240306T004413Z")
        ],
        {0},
    ),
    "Sentinel-2: another baseline": (
        [
            item(
                f"S2A_MSIL2A_20240305T105441_R051_T31UES_{made}",
                "2024-03-05T10:54:41",
                **{"s2:mgrs_tile": "31UES", "s2:generation_time": f"{day}T00:00:00Z"},
            )
            for made, day in (("20240305T140112", "2024-03-05"), ("20240601T101010", "2024-06-01"))
        ],
        {1},
    ),
    "tiles that overlap across the border of two zones": (
        [
            item(f"S1A_20200103_{zone}_ASC", geobox=SCENE, **{"mgrs:utm_zone": zone})
            for zone in ("31", "32")
        ],
        {0, 1},
    ),
    "neighbours without the name of a tile": (
        [item("DEM_a"), item("DEM_b", geobox=utm_grid((200, 250), 1000, left=520_000))],
        {0, 1},
    ),
    "the same footprint but for a pixel": (
        [item("DEM_a"), item("DEM_b", geobox=utm_grid((201, 250), 1000))],
        {1},
    ),
    "one id harvested twice": (
        [item("a", updated="2024-06-01T00:00:00Z"), item("a", updated="2024-05-01T00:00:00Z")],
        {0},
    ),
    "one id with a time that no one can read": (
        [item("a", created="soon"), item("a", created="2024-05-01T00:00:00Z")],
        {1},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_stays_whatever_the_order(name):
    items, stay = CASES[name]
    expected = sorted(json.dumps(items[n].to_dict(), sort_keys=True) for n in stay)
    for ordered in itertools.permutations(items):
        kept = keep_latest(ordered)
        assert sorted(json.dumps(one.to_dict(), sort_keys=True) for one in kept) == expected


def test_what_is_replaced_is_logged(caplog):
    with caplog.at_level("INFO"):
        keep_latest([modis("2022034232400"), modis("2023101010101")])
    message = "replaced by later versions: MOD13Q1.A2022017.h12v11.061.2022034232400"
    assert caplog.messages == [message]


EVERYTHING = [one for items, _ in CASES.values() for one in items]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(range(len(EVERYTHING))), min_size=1, max_size=12), st.randoms())
def test_the_order_of_an_answer_never_matters(chosen, random):
    items = [EVERYTHING[n] for n in chosen]
    kept = keep_latest(items)
    random.shuffle(items)
    again = keep_latest(items)

    def tell(found):
        return Counter(json.dumps(one.to_dict(), sort_keys=True) for one in found)

    assert tell(kept) == tell(again)
    assert tell(keep_latest(kept)) == tell(kept)  # nothing that stays replaces another
    assert {one.id for one in kept} <= {one.id for one in items}


def test_recorded_items_are_all_different(shared):
    folder = shared / "data" / "real" / "stac_responses"
    for path in sorted(folder.glob("*/*items*.json")):
        document = json.loads(path.read_text())
        features = document if isinstance(document, list) else document["features"]
        items = [pystac.Item.from_dict(one) for one in features]
        assert len(keep_latest(items)) == len({one.id for one in items}), path.name
