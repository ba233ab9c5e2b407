import json

import pystac
import pytest

COUNTS = {"sentinel-1-rtc": 10, "sentinel-1-angle": 2, "cop-dem-glo-30": 1}


@pytest.fixture(scope="module")
def catalog(world):
    return pystac.Catalog.from_file(str(world.stac))


def test_pystac_finds_every_item_and_file(catalog, world):
    found = {c.id: list(c.get_items()) for c in catalog.get_children()}
    assert set(found) == {*COUNTS, "modis-13Q1-061"}
    for name, count in COUNTS.items():
        assert len(found[name]) == count
    assert len(found["modis-13Q1-061"]) > 50
    for name, items in found.items():
        for item in items:
            assert item.collection_id == name
            assert item.get_collection().id == name
            item.make_asset_hrefs_absolute()
            for asset in item.assets.values():
                assert asset.href.startswith(str(world.path))
                with open(asset.href, "rb"):  # noqa: PTH123 (an href, not a path)
                    pass


def test_no_document_knows_where_it_lies(world):
    for path in world.path.rglob("*.json"):
        text = path.read_text()
        assert str(world.path.parent) not in text
        for link in json.loads(text).get("links", ()):
            assert link["href"].startswith(".")


def test_extents_hold_their_items(catalog):
    for collection in catalog.get_children():
        west, south, east, north = collection.extent.spatial.bboxes[0]
        start, end = collection.extent.temporal.intervals[0]
        for item in collection.get_items():
            assert west <= item.bbox[0] <= item.bbox[2] <= east
            assert south <= item.bbox[1] <= item.bbox[3] <= north
            first = item.common_metadata.start_datetime or item.datetime
            last = item.common_metadata.end_datetime or item.datetime
            assert start <= first <= last <= end
