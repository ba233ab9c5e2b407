"""Which items a region and period need, from static catalogs and from an API."""

import gzip
import json
import logging

import pandas as pd
import pystac
import pystac_client
import pytest
from odc.geo.geobox import GeoBox

from smgrid.errors import CatalogError, ConfigError, NoDataError, SourceError
from smgrid.sources import itemcache
from smgrid.sources.search import item_span, search_items
from smgrid.windows import Period
from tests.builders import make_item, stac_spec, utm_grid, write_catalog
from tests.services import range_server, stac_server

GRID = utm_grid((4, 5), 100)
SCENE = GRID.pad(2)
PERIOD = Period.parse(("2024-03-01", "2024-03-31"))
SPRING = Period.parse(("2024-03-01", "2024-04-30"))
QUERY = {"sar:instrument_mode": {"eq": "IW"}}


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """Short waits, and a cache of its own for every test."""
    monkeypatch.setenv("SMGRID_RETRY_PAUSES", "0.01,0.01,0.01")
    monkeypatch.setenv("SMGRID_CACHE", str(tmp_path / "cache"))


def item(name, start="2024-03-05T17:32:00", *, geobox=SCENE, **properties):
    return make_item(name, geobox, {"vv": f"/data/{name}.tif"}, start=start, **properties)


def search(folder, items, *, grid=GRID, period=PERIOD, **changes):
    href = write_catalog(folder / "stac", "s1", items)
    return [found.id for found in search_items(stac_spec(href, **changes), grid, period)]


def test_items_are_sorted_by_time_and_id(tmp_path):
    items = [item("z"), item("b", "2024-03-09"), item("a", "2024-03-09")]
    assert search(tmp_path, items) == ["z", "a", "b"]


@pytest.mark.parametrize(
    ("start", "end", "inside"),
    [
        ("2024-02-29T23:59:00", "2024-02-29T23:59:25", False),
        ("2024-02-29T23:59:50", "2024-03-01T00:00:15", True),
        ("2024-03-31T23:59:59", "2024-04-01T00:00:24", True),
        ("2024-04-01T00:00:00", "2024-04-01T00:00:25", False),
        ("2024-01-01", "2024-12-31", True),
    ],
)
def test_an_item_is_kept_if_its_span_meets_the_period(tmp_path, start, end, inside):
    known = item("always")
    one = make_item("one", SCENE, {"vv": "/data/one.tif"}, start=start, end=end)
    assert ("one" in search(tmp_path, [known, one])) is inside


def test_static_data_are_searched_without_a_period(tmp_path):
    assert search(tmp_path, [item("old", "1999-01-01")], period=None) == ["old"]


def test_a_margin_widens_the_period(tmp_path):
    href = write_catalog(tmp_path, "s1", [item("a", "2024-02-29T23:55:00")])
    margin = pd.Timedelta(minutes=10)
    assert len(search_items(stac_spec(href), GRID, PERIOD, margin=margin)) == 1


def test_relative_hrefs_become_absolute(tmp_path):
    folder = tmp_path / "stac"
    href = write_catalog(folder, "s1", [item("a")])
    path = folder / "s1" / "a" / "a.json"
    document = json.loads(path.read_text())
    document["assets"]["vv"]["href"] = "../../data/a.tif"
    path.write_text(json.dumps(document))
    (found,) = search_items(stac_spec(href), GRID, PERIOD)
    assert found.assets["vv"].href == str(folder / "data" / "a.tif")


def test_nothing_found_names_collection_region_and_period(tmp_path):
    message = (
        r"s1 \(s1\) has no data for 2024-03-01/2024-03-31 in 3\.0000\.\.3\.0071 E "
        r"50\.5483\.\.50\.5519 N; choose another period or region, .* test\.yml, line 1"
    )
    with pytest.raises(NoDataError, match=message):
        search(tmp_path, [item("a", "2020-01-01")])


@pytest.mark.parametrize("west", [179.9, -180.0])
def test_a_grid_at_the_antimeridian_finds_both_sides(tmp_path, west):
    left = GeoBox.from_bbox((178, -18, 180, -16), "EPSG:4326", shape=(20, 20))
    right = GeoBox.from_bbox((-180, -18, -178, -16), "EPSG:4326", shape=(20, 20))
    far = GeoBox.from_bbox((0, -18, 2, -16), "EPSG:4326", shape=(20, 20))
    grid = GeoBox.from_bbox((790_000, 8_100_000, 850_000, 8_140_000), "EPSG:32760", shape=(40, 60))
    items = [item("left", geobox=left), item("right", geobox=right), item("far", geobox=far)]
    assert search(tmp_path, items, grid=grid) == ["left", "right"]


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ({"sar:instrument_mode": "IW"}, ["iw"]),
        ({"sar:instrument_mode": {"eq": "IW"}}, ["iw"]),
        ({"sar:instrument_mode": {"neq": "IW"}}, ["ew"]),
        ({"sat:relative_orbit": {"gte": 88, "lt": 110}}, ["iw"]),
        ({"sat:relative_orbit": {"gt": 88, "lte": 110}}, ["ew"]),
        ({"sat:relative_orbit": {"in": [88, 110]}}, ["ew", "iw"]),
        ({"platform": {"startsWith": "sentinel", "endsWith": "1a"}}, ["iw"]),
        ({"sar:polarizations": {"contains": "HH"}}, ["ew"]),
    ],
)
def test_conditions_are_held_here_where_no_server_does(tmp_path, query, kept):
    common = {"start": "2024-03-05", "geobox": SCENE}
    properties = {
        "iw": ("IW", 88, "sentinel-1a", ["VV"]),
        "ew": ("EW", 110, "sentinel-1b", ["HH"]),
    }
    items = [item("bare")]
    for name, (mode, orbit, platform, polarizations) in properties.items():
        stated = {
            "sar:instrument_mode": mode,
            "sat:relative_orbit": orbit,
            "platform": platform,
            "sar:polarizations": polarizations,
        }
        items.append(item(name, **common, **stated))
    assert search(tmp_path, items, query=query) == kept


def test_an_unknown_condition_is_refused(tmp_path):
    message = r"test\.yml, line 1: stac\.query\.a of s1: unknown condition 'le'; did you mean"
    with pytest.raises(CatalogError, match=message):
        search(tmp_path, [item("a")], query={"a": {"le": 3}})


def test_an_unknown_collection_suggests_the_nearest(tmp_path):
    message = r"catalog\.json cannot be searched for s11 \(no such collection; did you mean 's1'"
    with pytest.raises(SourceError, match=message):
        search(tmp_path, [item("a")], collection="s11")


@pytest.mark.parametrize("content", ["", "{}", '{"type": "Feature"}'])
def test_a_broken_catalog_is_named(tmp_path, content):
    path = tmp_path / "catalog.json"
    path.write_text(content)
    with pytest.raises(SourceError, match=r"catalog\.json cannot be searched for s1"):
        search_items(stac_spec(path), GRID, PERIOD)


def test_span_of_an_item_is_utc_to_the_second():
    stated = {
        "datetime": "2025-03-12T05:22:49.103098Z",
        "start_datetime": "2025-03-12 07:22:36.604436+02:00",
        "end_datetime": None,
    }
    one = pystac.Item("a", None, None, None, {**stated, "datetime": None}, None, None)
    one.properties.update(stated)
    start, end = item_span(one)
    assert start == pd.Timestamp("2025-03-12T05:22:36")
    assert end == pd.Timestamp("2025-03-12T05:22:49")


@pytest.fixture(scope="module")
def api():
    """A real API with seven items, one of which begins in March and ends in April."""
    beside = utm_grid((4, 5), 100, left=600_000)
    border = make_item("border", SCENE, {"vv": "/data/x.tif"}, start="2024-03-31T23:59:50")
    items = [
        item("a", **{"sar:instrument_mode": "IW"}),
        item("c", "2024-04-02"),
        item("b", "2024-03-06", **{"sar:instrument_mode": "EW"}),
        item("beside", geobox=beside),
        border,
        *(item(f"may{n:03}", f"2024-05-{1 + n % 31:02}T{n // 31:02}:00") for n in range(300)),
    ]
    with stac_server(items) as running:
        yield running


@pytest.fixture(autouse=True)
def no_faults(request):
    if "api" in request.fixturenames:
        request.getfixturevalue("api").set()


def ids(found):
    return [one.id for one in found]


def searches(api):
    """Return the bodies of the requests for /search."""
    asked = [one for one in api.requests() if one["path"].startswith("/search")]
    return [json.loads(one["body"]) for one in asked]


def entries():
    return sorted(itemcache.cache_folder("search").glob("*.gz"))


def test_an_api_is_searched_month_by_month(api):
    assert ids(search_items(stac_spec(api.url), GRID, SPRING)) == ["a", "b", "border", "c"]
    first = {asked["datetime"]: asked for asked in searches(api)}
    assert list(first) == [
        "2024-03-01T00:00:00Z/2024-04-01T00:00:00Z",
        "2024-04-01T00:00:00Z/2024-05-01T00:00:00Z",
    ]
    assert all(asked["collections"] == ["s1"] for asked in first.values())
    west, south, east, north = next(iter(first.values()))["bbox"]
    assert west < 3.001 < 3.006 < east
    assert south < 50.549 < 50.551 < north


def test_all_pages_are_read(api):
    period = Period.parse(("2024-05-01", "2024-05-31"))
    assert len(search_items(stac_spec(api.url), GRID, period)) == 300
    assert len(searches(api)) >= 2


def test_a_margin_costs_no_search_of_its_own(api):
    margin = pd.Timedelta(minutes=10)
    found = search_items(stac_spec(api.url), GRID, PERIOD, margin=margin)
    assert ids(found) == ["a", "b", "border"]
    assert [asked["datetime"] for asked in searches(api)] == [
        "2024-02-29T23:50:00Z/2024-04-01T00:10:00Z"
    ]


def test_a_server_that_knows_no_queries_answers_one_with_nothing_and_is_not_asked_one(api):
    client = pystac_client.Client.open(api.url)
    with pytest.warns(UserWarning, match="QUERY"):
        assert not list(client.search(collections=["s1"], query=QUERY).items())
    assert ids(search_items(stac_spec(api.url, query=QUERY), GRID, PERIOD)) == ["a"]


@pytest.mark.parametrize("conforms", [True, False])
def test_only_a_server_that_says_so_is_asked_a_query(tmp_path, conforms):
    folder = tmp_path / "served"
    folder.mkdir()
    with range_server(folder) as server:
        classes = ["https://api.stacspec.org/v1.0.0/core"]
        classes += ["https://api.stacspec.org/v1.0.0/item-search"]
        classes += ["https://api.stacspec.org/v1.0.0/item-search#query"] if conforms else []
        links = [
            {"rel": "root", "href": server.url},
            {
                "rel": "search",
                "href": f"{server.url}/search",
                "method": "POST",
                "type": "application/geo+json",
            },
        ]
        about = {"type": "Catalog", "id": "api", "stac_version": "1.0.0", "description": "A test"}
        page = {**about, "conformsTo": classes, "links": links}
        (folder / "index.json").write_text(json.dumps(page))
        documents = [item("ew", **{"sar:instrument_mode": "EW"}).to_dict()]
        documents += [item("iw", **{"sar:instrument_mode": "IW"}).to_dict()]
        answer = {"type": "FeatureCollection", "features": documents, "links": []}
        (folder / "search").write_text(json.dumps(answer))
        server.set()
        found = search_items(stac_spec(server.url, query=QUERY), GRID, PERIOD)
        assert ids(found) == ["iw"]
        assert ("query" in searches(server)[0]) is conforms


def test_an_api_that_is_busy_is_asked_again_and_each_time_is_logged(api, caplog):
    api.set(fail=2, status=503)
    with caplog.at_level(logging.INFO):
        assert ids(search_items(stac_spec(api.url), GRID, PERIOD)) == ["a", "b", "border"]
    lines = [one.getMessage() for one in caplog.records]
    retries = [line for line in lines if "HTTP 503; attempt" in line]
    assert [line.split("attempt ")[1][:6] for line in retries] == ["1 of 4", "2 of 4"]
    assert all(line.startswith(f"{api.url}/") for line in retries)
    assert "s1: 3 items of s1 (2024-03: 3)" in lines


def test_a_wait_that_the_api_asks_for_is_kept(api):
    api.set(fail=1, status=429, retry_after=1)
    search_items(stac_spec(api.url), GRID, PERIOD)
    first, second, *_ = (one["time"] for one in api.requests())
    assert 0.95 < second - first < 5


@pytest.mark.parametrize("fault", ["reset", "truncate"])
def test_an_answer_that_breaks_off_is_asked_for_again(api, fault):
    api.set(fail=2, fault=fault)
    assert ids(search_items(stac_spec(api.url), GRID, PERIOD)) == ["a", "b", "border"]


def test_an_api_that_stays_away_is_named():
    message = r"http://127\.0\.0\.1:9 cannot be searched for s1 .* correct test\.yml, line 1$"
    with pytest.raises(SourceError, match=message):
        search_items(stac_spec("http://127.0.0.1:9"), GRID, PERIOD)


def test_a_rerun_makes_no_request_at_all(api):
    first = search_items(stac_spec(api.url), GRID, SPRING)
    api.set(fault="reset", fail=1000)
    again = search_items(stac_spec(api.url), GRID, SPRING)
    assert api.log() == []
    assert [one.to_dict() for one in again] == [one.to_dict() for one in first]


def test_another_question_is_asked(api):
    spec = stac_spec(api.url)
    search_items(spec, GRID, PERIOD)
    for changed, grid, period in (
        (stac_spec(api.url, query=QUERY), GRID, PERIOD),
        (spec, GRID.pad(5), PERIOD),
        (spec, GRID, Period.parse(("2024-03-01", "2024-03-30"))),
    ):
        api.set()
        search_items(changed, grid, period)
        assert len(searches(api)) == 1
    with pytest.raises(SourceError, match="s2"):
        search_items(stac_spec(f"{api.url}/s2", collection="s2"), GRID, PERIOD)


def test_only_the_months_that_are_new_are_searched(api):
    search_items(stac_spec(api.url), GRID, PERIOD)
    api.set()
    assert ids(search_items(stac_spec(api.url), GRID, SPRING)) == ["a", "b", "border", "c"]
    assert [asked["datetime"] for asked in searches(api)] == [
        "2024-04-01T00:00:00Z/2024-05-01T00:00:00Z"
    ]


def grow_old():
    """Make every answer in the cache a hundred days old."""
    for path in entries():
        answer = json.loads(gzip.decompress(path.read_bytes()))
        answer["searched"] -= 100 * 86400
        path.write_bytes(gzip.compress(json.dumps(answer).encode()))


def test_an_answer_that_is_too_old_is_offered_but_not_used(api, monkeypatch):
    search_items(stac_spec(api.url), GRID, PERIOD)
    grow_old()
    api.set(fail=1000)
    message = r"cannot be searched .*; the answer of .* UTC .* set SMGRID_SEARCH_CACHE=stale"
    with pytest.raises(SourceError, match=message):
        search_items(stac_spec(api.url), GRID, PERIOD)
    monkeypatch.setenv("SMGRID_SEARCH_CACHE", "stale")
    api.set(fail=1000)
    assert ids(search_items(stac_spec(api.url), GRID, PERIOD)) == ["a", "b", "border"]
    assert api.log() == []


def test_the_cache_can_be_switched_off_and_refreshed(api, monkeypatch):
    monkeypatch.setenv("SMGRID_SEARCH_CACHE", "off")
    search_items(stac_spec(api.url), GRID, PERIOD)
    assert entries() == []
    monkeypatch.setenv("SMGRID_SEARCH_CACHE", "on")
    search_items(stac_spec(api.url), GRID, PERIOD)
    (path,) = entries()
    before = path.stat().st_mtime_ns
    monkeypatch.setenv("SMGRID_SEARCH_CACHE", "refresh")
    api.set()
    search_items(stac_spec(api.url), GRID, PERIOD)
    assert len(searches(api)) == 1
    assert path.stat().st_mtime_ns > before
    monkeypatch.setenv("SMGRID_SEARCH_CACHE", "fresh")
    with pytest.raises(ConfigError, match="SMGRID_SEARCH_CACHE is 'fresh'; did you mean 'refresh'"):
        search_items(stac_spec(api.url), GRID, PERIOD)


@pytest.mark.parametrize("damage", ["cut", "flipped", "not gzip", "other", "empty"])
def test_a_damaged_file_is_searched_again(api, caplog, damage):
    search_items(stac_spec(api.url), GRID, PERIOD)
    (path,) = entries()
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
    damaged = {
        "cut": content[:middle],
        "flipped": flipped,
        "not gzip": b"{}",
        "other": gzip.compress(b'{"items": [1]}'),
        "empty": b"",
    }
    path.write_bytes(damaged[damage])
    api.set()
    assert ids(search_items(stac_spec(api.url), GRID, PERIOD)) == ["a", "b", "border"]
    assert len(searches(api)) == 1
    assert "is damaged" in caplog.text
    assert json.loads(gzip.decompress(path.read_bytes()))["items"]


def test_a_cache_that_cannot_be_written_stops_nothing(api, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SMGRID_CACHE", str(tmp_path / "file"))
    assert ids(search_items(stac_spec(api.url), GRID, PERIOD)) == ["a", "b", "border"]
    assert "the search cache" in caplog.text
    assert "cannot be written" in caplog.text
