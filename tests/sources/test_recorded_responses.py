"""Answers of real STAC APIs, all that are recorded, through smgrid's own path."""

import json
import re
from datetime import date

import odc.stac
import pandas as pd
import pystac
import pystac_client
import pytest
import requests
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry, box
from requests.adapters import BaseAdapter

from smgrid.catalog import SourceSpec, StacQuery, open_catalog
from smgrid.errors import SourceError
from smgrid.sources import dem, landcover, ndvi, search, sentinel1
from smgrid.sources.stac import item_span, search_items, split_by_lattice
from smgrid.windows import Period, composite_calendar
from tests.conftest import SHARED

FOLDER = SHARED / "data/real/stac_responses"
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.glob("*/*.json"))
# What pystac says of the hrefs of Earth Search when it brings old items up to date.
pytestmark = pytest.mark.filterwarnings("ignore:Could not parse bucket/account from href")
API = "https://planetarycomputer.microsoft.com/api/stac/v1"


def read(name):
    return json.loads((FOLDER / name).read_text())


def item_dicts(document):
    """Return the items of a document: one, a page, a list of items, or requests with answers."""
    if isinstance(document, list):
        return [item for part in document for item in item_dicts(part)]
    if "response" in document:
        return item_dicts(document["response"])
    if document.get("type") == "FeatureCollection":
        return document["features"]
    return [document] if document.get("type") == "Feature" else []


def items_of(name):
    """Return the items of a document with absolute URLs, as a search gives them."""
    items = [pystac.Item.from_dict(item) for item in item_dicts(read(name))]
    for item in items:
        if item.get_self_href() is None:  # those that stactools ships as examples
            item.set_self_href(f"https://example.org/{item.id}/{item.id}.json")
        item.make_asset_hrefs_absolute()
    return items


def spec_for(collection, **changes):
    query = StacQuery(API, collection)
    return SourceSpec("recorded", "m:f", (), stac=query, origin="test.yml, line 1", **changes)


def test_all_recorded_answers_are_here(shared):
    listed = (shared / "data/real/stac_responses/PROVENANCE.md").read_text()
    rows = re.findall(r"^\| `([^`]+\.json)` \|", listed, flags=re.MULTILINE)
    assert set(rows) == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_every_answer_is_understood(name):
    document = read(name)
    kind = document.get("type") if isinstance(document, dict) else "list"
    if kind == "Collection":
        collection = pystac.Collection.from_dict(document)
        assert name.endswith(f"collection_{collection.id}.json")
        assert collection.extent.temporal.intervals
        return
    if kind == "Catalog":
        assert pystac.Catalog.from_dict(document).id == "microsoft-pc"
        return
    items = items_of(name)
    assert items
    for item in items:
        start, end = item_span(item)
        assert start <= end
        for moment in (start, end):
            assert moment.tz is None
            assert moment == moment.floor("s")
        stated = item.properties.get("datetime") or item.properties["start_datetime"]
        assert abs(start - pd.Timestamp(stated).tz_localize(None)) < pd.Timedelta(days=366)
        assert item.geometry is not None


def test_times_without_datetime_and_with_blanks():
    modis, rtc = (items_of(f"planetary_computer/items_{name}.json")[0] for name in SPANS)
    assert modis.properties["datetime"] is None
    assert (item_span(modis), item_span(rtc)) == tuple(SPANS.values())


SPANS = {
    "modis-13Q1-061": (pd.Timestamp("2025-02-18"), pd.Timestamp("2025-03-05T23:59:59")),
    # "2025-03-11 04:42:31.719576+00:00" to "2025-03-11 04:42:49.673729+00:00"
    "sentinel-1-rtc": (pd.Timestamp("2025-03-11T04:42:31"), pd.Timestamp("2025-03-11T04:42:49")),
}


# The grid that an item states, in its properties or in those of an asset.
STATED = {
    "planetary_computer/items_sentinel-1-rtc.json": ("vv", "EPSG:32634", (17058, 28320), 10),
    "planetary_computer/search_items_sentinel-1-rtc.json": ("vh", "EPSG:32633", (12949, 27526), 10),
    "planetary_computer/items_cop-dem-glo-30.json": ("data", "EPSG:4326", (3600, 360), 1 / 360),
    "planetary_computer/items_esa-worldcover.json": ("map", "EPSG:4326", (36000, 36000), 1 / 12000),
    "planetary_computer/items_io-lulc.json": ("data", "EPSG:32660", (107066, 51822), 10),
    "planetary_computer/search_items_io-lulc-annual-v02.json": (
        "data",
        "EPSG:32660",
        (89448, 29338),
        10,
    ),
    "planetary_computer/items_sentinel-2-l2a.json": ("SCL", "EPSG:32653", (5490, 5490), 20),
    "planetary_computer/items_landsat-c2-l2.json": ("red", "EPSG:32655", (7881, 7871), 30),
    "stactools/item_cop-dem-glo-30.json": ("data", "EPSG:4326", (3600, 2400), 1 / 2400),
    "stactools/item_esa-worldcover.json": ("map", "EPSG:4326", (36000, 36000), 1 / 12000),
    "stactools/item_sentinel1_rtc.json": ("gamma0_vv", "EPSG:32617", (5490, 5490), 20),
}


@pytest.mark.parametrize("name", STATED)
def test_the_grid_that_an_item_states_is_taken(name):
    asset, crs, shape, pixel = STATED[name]
    item = items_of(name)[0]
    ((lattice, members),) = split_by_lattice(spec_for(item.collection_id), [item], [asset])
    assert members == [item]
    assert lattice.crs == crs
    assert lattice.shape.yx == shape
    assert lattice.affine.a == pytest.approx(pixel)
    assert lattice.affine.e < 0
    # The pixels lie where the item says it is.
    outline = Geometry(item.geometry, "EPSG:4326").to_crs(lattice.crs).boundingbox.polygon
    shared_area = (outline & lattice.boundingbox.polygon).area
    assert shared_area > 0.9 * outline.area


MODIS = [
    "planetary_computer/items_modis-13Q1-061.json",
    "planetary_computer/items_modis-11A1-061.json",
    "stactools/item_modis-13Q1-061_MOD.json",
    "stactools/item_modis-13Q1-061_MYD.json",
    "stactools/item_modis-11A1-061.json",
]


@pytest.mark.parametrize("name", MODIS)
def test_modis_tiles_lie_on_the_sinusoidal_grid(name):
    item = items_of(name)[0]
    asset = "250m_16_days_NDVI" if "13Q1" in name else "LST_Day_1km"
    ((lattice, _),) = split_by_lattice(spec_for(item.collection_id), [item], [asset])
    # Sphere and tiles of the land grid (Wolfe et al. 1998, doi:10.1109/36.701082).
    tile = 1_111_950.5196666666
    pixel = tile / (4800 if "13Q1" in name else 1200)
    h, v = (int(item.id.split(".")[2][at : at + 2]) for at in (1, 4))
    assert lattice.affine.a == pytest.approx(pixel, rel=1e-9)
    assert lattice.affine.c == pytest.approx((h - 18) * tile, abs=0.01 * pixel)
    assert lattice.affine.f == pytest.approx((9 - v) * tile, abs=0.01 * pixel)
    assert lattice.crs.proj.ellipsoid.semi_major_metre == pytest.approx(6371007.181)


def test_ground_range_products_are_never_taken_for_geocoded_ones():
    """The grid of stactools' item is the bounding box divided by lines and pixels: false."""
    item = items_of("stactools/item_sentinel1_grd.json")[0]
    lines, pixels = item.properties["proj:shape"]
    transform = item.properties["proj:transform"]
    west, south, east, north = item.bbox
    size = (transform[0] * pixels, -transform[4] * lines)
    assert size == pytest.approx((east - west, north - south), rel=1e-6)
    assert item.properties["sat:orbit_state"] == "ascending"  # so it cannot be upright
    recorded = items_of("planetary_computer/items_sentinel-1-grd.json")[0]
    assert not {"proj:shape", "proj:transform"} & recorded.properties.keys()
    assert not odc.stac.parse_item(recorded).geoboxes(["vv"])
    loaders = {
        spec.loader.partition(":")[0]
        for name in ("planetary-computer", "planetary-computer-grd")
        for spec in open_catalog(name).sources.values()
        if spec.stac.collection == "sentinel-1-grd"
    }
    assert loaders == {"smgrid.sources.grd"}


# Sources of shipped catalogs by the collection that they read, where answers of it are recorded.
DESCRIBED = [
    ("planetary-computer", source, f"planetary_computer/{name}")
    for source, name in (
        ("sentinel-1-rtc", "items_sentinel-1-rtc.json"),
        ("sentinel-1-rtc", "search_items_sentinel-1-rtc.json"),
        ("modis-13q1", "items_modis-13Q1-061.json"),
        ("sentinel-2-ndvi", "items_sentinel-2-l2a.json"),
        ("copernicus-dem", "items_cop-dem-glo-30.json"),
        ("copernicus-dem", "search_items_cop-dem-glo-30.json"),
        ("io-lulc", "search_items_io-lulc-annual-v02.json"),
        ("esa-worldcover", "items_esa-worldcover.json"),
    )
] + [("planetary-computer-grd", "sentinel-1-grd", "planetary_computer/items_sentinel-1-grd.json")]


@pytest.mark.parametrize(("catalog", "source", "name"), DESCRIBED)
def test_shipped_entries_agree_with_the_recorded_items(catalog, source, name):
    spec = open_catalog(catalog).sources[source]
    assert spec.stac.href == API
    assets = spec.assets or {variable: variable for variable in spec.provides}
    for item in items_of(name):
        assert item.collection_id == spec.stac.collection
        assert search._matches(item, spec.stac, box(*item.bbox, "EPSG:4326"), None)
        for variable, key in assets.items():
            for band in item.assets[key].extra_fields.get("raster:bands", [{}]):
                if variable in spec.provides and "nodata" in band:
                    assert band["nodata"] == spec.nodata
                if "scale" in band and variable in spec.provides:
                    assert band["scale"] == spec.scale[variable]
                if "offset" in band and variable in spec.provides:
                    assert band["offset"] == spec.offset[variable]


def test_every_source_of_a_recorded_collection_is_compared():
    compared = {(catalog, source) for catalog, source, _ in DESCRIBED}
    for catalog in ("planetary-computer", "planetary-computer-grd", "earthdata"):
        for source, spec in open_catalog(catalog).sources.items():
            stac = spec.stac
            if stac and f"planetary_computer/items_{stac.collection}.json" in FILES:
                twins = {("planetary-computer", source), (catalog, source)}
                assert twins & compared or source == "sentinel-1-angle"


@pytest.mark.parametrize(
    "source", open_catalog("planetary-computer").sources.values(), ids=lambda spec: spec.name
)
def test_shipped_entries_agree_with_the_recorded_collections(source):
    document = read(f"planetary_computer/collection_{source.stac.collection}.json")
    collection = pystac.Collection.from_dict(document)
    if collection.license.startswith("CC"):
        assert source.licence == collection.license
    first = collection.extent.temporal.intervals[0][0].date()
    if source.first_day:
        assert source.first_day == first
    else:
        assert source.kind == "static"
    described = document["item_assets"]
    assert set(source.assets.values()) <= set(described)


def test_the_record_of_a_collection_has_not_ended():
    for spec in open_catalog("planetary-computer").sources.values():
        collection = read(f"planetary_computer/collection_{spec.stac.collection}.json")
        last = collection["extent"]["temporal"]["interval"][0][1]
        assert spec.last_day is None
        assert last is None or spec.kind == "static"


def test_facts_of_the_recorded_backscatter():
    item = items_of("planetary_computer/items_sentinel-1-rtc.json")[0]
    stated = item.properties
    assert (stated["sat:relative_orbit"], stated["sat:orbit_state"]) == (80, "descending")
    assert (stated["platform"], stated["sar:instrument_mode"]) == ("SENTINEL-1A", "IW")
    assert {a: item.assets[a].extra_fields["raster:bands"][0]["nodata"] for a in ("vv", "vh")} == {
        "vv": -32768,
        "vh": -32768,
    }
    # 175 orbits in 12 days; orbit 73 of Sentinel-1A was its first of this numbering (ESA).
    assert (stated["sat:absolute_orbit"] - 73) % 175 + 1 == 80


@pytest.fixture
def recorded(monkeypatch):
    """Let a loader find the recorded items; none of their files can be read."""

    def give(module, items):
        monkeypatch.setattr(module, "search_items", lambda *args, **kwargs: items)

    return give


def grid_of(item, *, resolution=100, edge=2000):
    """A small grid in the middle of an item's footprint."""
    middle = Geometry(item.geometry, "EPSG:4326").centroid
    point = middle.to_crs(utm_of(middle))
    x, y = (round(part / resolution) * resolution for part in point.coords[0])
    return GeoBox.from_bbox((x, y, x + edge, y + edge), point.crs, resolution=resolution)


def utm_of(point):
    lon, lat = point.coords[0]
    return CRS(f"EPSG:{(32600 if lat >= 0 else 32700) + int((lon + 180) // 6) + 1}")


def test_recorded_slices_become_one_pass(recorded):
    """Four slices of 25 s, 04:57:49 to 04:59:16 on 2024-04-19, of one pass of Sentinel-1A."""
    spec = open_catalog("planetary-computer").sources["sentinel-1-rtc"]
    items = items_of("planetary_computer/search_items_sentinel-1-rtc.json")
    recorded(sentinel1, items)
    period = Period.parse("2024-04-19")
    ds = sentinel1.load_stac(spec, grid_of(items[0]), period, chunks=20)
    assert ds["time"].values.tolist() == [pd.Timestamp("2024-04-19T04:57:49").value]
    assert ds["platform"].values.tolist() == ["sentinel-1a"]
    assert ds["orbit_state"].values.tolist() == ["descending"]
    assert ds["relative_orbit"].values.tolist() == [51]
    assert ds["vv"].attrs["convention"] == "gamma0"
    assert ds["vv"].chunks == ((1,), (20,), (20,))


@pytest.mark.parametrize(
    "name",
    [
        "planetary_computer/items_modis-13Q1-061.json",
        "stactools/item_modis-13Q1-061_MOD.json",
        "stactools/item_modis-13Q1-061_MYD.json",
    ],
)
def test_recorded_composites_stand_on_the_calendar(recorded, name):
    spec = open_catalog("planetary-computer").sources["modis-13q1"]
    items = items_of(name)
    recorded(ndvi, items)
    start = item_span(items[0])[0]
    period = Period(start, start + pd.Timedelta(days=40))
    ds = ndvi.load_modis(spec, grid_of(items[0]), period, chunks=20)
    assert ds.indexes["date"].equals(composite_calendar(period))
    assert start in ds.indexes["date"]
    aqua = items[0].id.startswith("MYD")
    assert start.day_of_year % 16 == (9 if aqua else 1)
    assert ds["ndvi"].attrs["composite_days"] == 16


def test_recorded_tiles_of_terrain_and_land_cover_are_opened_lazily(recorded, monkeypatch):
    catalog = open_catalog("planetary-computer")
    year = Period.parse("2023")
    tiles = items_of("stactools/item_cop-dem-glo-30.json")
    monkeypatch.setattr("smgrid.sources.raster.search_items", lambda *args, **kwargs: tiles)
    terrain = dem.load(catalog.sources["copernicus-dem"], grid_of(tiles[0]), year, chunks=20)
    assert set(terrain.data_vars) == {"elevation", "slope", "aspect_sin", "aspect_cos"}
    for source, name in (
        ("io-lulc", "planetary_computer/search_items_io-lulc-annual-v02.json"),
        ("esa-worldcover", "stactools/item_esa-worldcover.json"),
    ):
        tiles = items_of(name)
        spec = catalog.sources[source]
        cover = landcover.load(spec, grid_of(tiles[0]), year, chunks=20)
        assert set(spec.provides) <= set(cover.data_vars)
        assert cover["landcover"].chunks is not None


class Replay(BaseAdapter):
    """Answers requests of a session with what was recorded; others are errors."""

    def __init__(self):
        super().__init__()
        pages = read("planetary_computer/paged_search_naip.json")
        self.pages = {json.loads(p["request_body"]).get("token"): p["response"] for p in pages}
        self.bodies = []

    def send(self, request, **kwargs):
        if request.method == "GET" and request.url.rstrip("/") == API:
            content = read("planetary_computer/landing_page.json")
        else:
            assert (request.method, request.url) == ("POST", f"{API}/search")
            self.bodies.append(json.loads(request.body))
            token = self.bodies[-1].get("token")
            # What follows the last page that was recorded is an empty one.
            content = self.pages.get(token, {"type": "FeatureCollection", "features": []})
        response = requests.Response()
        response.status_code, response.url, response.request = 200, request.url, request
        response._content = json.dumps(content).encode()
        return response

    def close(self):
        pass


@pytest.fixture
def replay(monkeypatch, tmp_path):
    monkeypatch.setenv("SMGRID_CACHE", str(tmp_path / "cache"))
    adapter = Replay()

    def open_session():
        session = requests.Session()
        session.mount("https://", adapter)
        return session

    monkeypatch.setattr(search, "open_session", open_session)
    return adapter


def test_the_api_conforms_to_what_is_asked_of_it(replay):
    client = pystac_client.Client.open(API, stac_io=search._api_io())
    assert client.id == "microsoft-pc"
    for wanted in ("CORE", "ITEM_SEARCH", "QUERY", "FILTER", "SORT", "COLLECTIONS"):
        assert client.conforms_to(wanted)
    assert not client.conforms_to("COLLECTION_SEARCH")
    assert client.get_search_link().href == f"{API}/search"


def test_all_pages_of_a_search_are_read(replay):
    grid = GeoBox.from_bbox((-73.21, 43.99, -73.12, 44.05), "EPSG:4326", resolution=0.001)
    found = search_items(spec_for("naip"), grid, None)
    recorded = [
        item["id"] for item in item_dicts(read("planetary_computer/paged_search_naip.json"))
    ]
    assert len(recorded) == len(set(recorded)) == 20
    assert len(found) == 20
    assert {item.id for item in found} == set(recorded)
    assert [item.id for item in found] == [
        item.id for item in sorted(found, key=lambda item: (item_span(item)[0], item.id))
    ]
    tokens = [body.get("token") for body in replay.bodies]
    assert tokens == [
        None,
        "next:naip:vt_m_4307307_nw_18_060_20211029",
        "next:naip:vt_m_4307307_ne_18_h_20160805",
    ]
    assert all(body["collections"] == ["naip"] for body in replay.bodies)


def test_pages_are_filtered_by_time_and_place_here_too(replay):
    grid = GeoBox.from_bbox((-73.21, 43.99, -73.12, 44.05), "EPSG:4326", resolution=0.001)
    found = search_items(spec_for("naip"), grid, Period.parse("2021-10"))
    assert found
    assert {item_span(item)[0].year for item in found} == {2021}
    elsewhere = GeoBox.from_bbox((5, 50, 5.1, 50.1), "EPSG:4326", resolution=0.001)
    with pytest.raises(SourceError, match=r"naip.* has no data"):
        search_items(spec_for("naip"), elsewhere, None)


def test_a_mixed_answer_is_told_apart_by_collection():
    items = items_of("earth_search/search_mixed_sentinel-1-grd.json")
    kinds = {item.collection_id for item in items}
    assert kinds == {"sentinel-1-grd", "sentinel-2-l1c", "sentinel-2-l2a", "sentinel-2-c1-l2a"}
    optical = [item for item in items if item.collection_id == "sentinel-2-l2a"]
    spec = spec_for("sentinel-2-l2a")
    for lattice, members in split_by_lattice(spec, optical, ["red"]):
        assert lattice.affine.a == 10
        assert members
    clear = [item for item in optical if search._holds(item, "eo:cloud_cover", {"lte": 40})]
    assert 0 < len(clear) < len(optical)  # only the first of the two requests asked for it
    assert {item.id for item in clear} == {
        item.id for item in optical if item.properties["eo:cloud_cover"] <= 40
    }


def test_the_tiles_of_the_other_elevation_api_are_the_same_tiles():
    theirs = {item.id: item for item in items_of("earth_search/search_cop-dem-glo-30.json")}
    ours = {
        item.id: item for item in items_of("planetary_computer/search_items_cop-dem-glo-30.json")
    }
    shared_ids = theirs.keys() & ours.keys()
    assert shared_ids
    for name in shared_ids:
        boxes = [
            split_by_lattice(spec_for("cop-dem-glo-30"), [items[name]], ["data"])[0][0]
            for items in (theirs, ours)
        ]
        assert boxes[0].shape == boxes[1].shape
        assert boxes[0].affine.almost_equals(boxes[1].affine, 1e-6)


def test_first_days_of_shipped_entries():
    sources = open_catalog("planetary-computer").sources
    assert sources["sentinel-1-rtc"].first_day == date(2014, 10, 10)
    assert sources["modis-13q1"].first_day == date(2000, 2, 18)
