"""Which items a region and period need, from static catalogs and from an API."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pystac
import pytest
from odc.geo.geobox import GeoBox

from smgrid.errors import CatalogError, NoDataError, SourceError
from smgrid.sources.stac import item_span, search_items, split_by_lattice
from smgrid.windows import Period
from tests.builders import make_item, stac_spec, utm_grid, write_catalog, write_cog

GRID = utm_grid((4, 5), 100)
SCENE = GRID.pad(2)
PERIOD = Period.parse(("2024-03-01", "2024-03-31"))


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


def test_items_are_split_by_their_lattice(tmp_path):
    shifted = utm_grid((40, 50), 10, left=500_004)
    other_zone = utm_grid((40, 50), 10, crs="EPSG:32632")
    items = [
        item("a", geobox=utm_grid((40, 50), 10)),
        item("b", geobox=utm_grid((10, 10), 10, left=500_730, top=5_600_110)),
        item("c", geobox=shifted),
        item("d", geobox=other_zone),
        item("e", geobox=utm_grid((20, 25), 20)),
    ]
    lattices = split_by_lattice(stac_spec("nowhere"), items, ["vv"])
    assert [[one.id for one in members] for _, members in lattices] == [
        ["a", "b"],
        ["c"],
        ["d"],
        ["e"],
    ]


def test_assets_of_one_item_on_two_grids_are_refused(tmp_path):
    coarse = write_cog(tmp_path / "coarse.tif", _zeros(4, 5), GRID)
    fine = write_cog(tmp_path / "fine.tif", _zeros(40, 50), GRID.zoom_to((40, 50)))
    one = make_item("a", GRID, {"vv": coarse, "vh": fine}, start="2024-03-05", projection="absent")
    for key, geobox in (("vv", GRID), ("vh", GRID.zoom_to((40, 50)))):
        stated = pystac.extensions.projection.ProjectionExtension.ext(
            one.assets[key], add_if_missing=True
        )
        stated.apply(
            code="EPSG:32631", shape=list(geobox.shape.yx), transform=list(geobox.affine)[:6]
        )
    with pytest.raises(SourceError, match="a: its assets vv, vh lie on different grids"):
        split_by_lattice(stac_spec("nowhere"), [one], ["vv", "vh"])


def _zeros(*shape):
    import numpy as np

    return np.zeros(shape, "float32")


class Api(ThreadingHTTPServer):
    """A STAC API on loopback; as some do, it answers a query that it does not know with nothing."""

    def __init__(self, items, *, knows_query=False, failures=0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.items = [found.to_dict(include_self_link=False) for found in items]
        self.knows_query = knows_query
        self.failures = failures
        self.asked = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        conforms = ["https://api.stacspec.org/v1.0.0/core"]
        conforms += ["https://api.stacspec.org/v1.0.0/item-search"]
        if self.server.knows_query:
            conforms.append("https://api.stacspec.org/v1.0.0/item-search#query")
        self.answer(
            {
                "type": "Catalog",
                "id": "api",
                "stac_version": "1.0.0",
                "description": "An API for a test",
                "conformsTo": conforms,
                "links": [
                    {"rel": "self", "href": self.server.url},
                    {"rel": "root", "href": self.server.url},
                    {
                        "rel": "search",
                        "href": f"{self.server.url}/search",
                        "method": "POST",
                        "type": "application/geo+json",
                    },
                ],
            }
        )

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        if self.server.failures:
            self.server.failures -= 1
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        first, last = (pd.Timestamp(text) for text in body["datetime"].split("/"))
        found = [
            one
            for one in self.server.items
            if pd.Timestamp(one["properties"]["start_datetime"]) <= last
            and pd.Timestamp(one["properties"]["end_datetime"]) >= first
        ]
        if "query" in body and not self.server.knows_query:
            found = []
        page = body.get("page", 0)
        links = []
        if page + 1 < len(found):
            following = {**body, "page": page + 1}
            href = f"{self.server.url}/search"
            links = [{"rel": "next", "href": href, "method": "POST", "body": following}]
        features = found[page : page + 1]
        self.answer({"type": "FeatureCollection", "features": features, "links": links})

    def answer(self, document):
        content = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def serve():
    running = []

    def start(*args, **kwargs):
        api = Api(*args, **kwargs)
        running.append(api)
        threading.Thread(target=api.serve_forever, daemon=True).start()
        return api

    yield start
    for api in running:
        api.shutdown()
        api.server_close()


def collected(*items):
    for one in items:
        one.collection_id = "s1"
    return items


def test_an_api_is_searched_month_by_month_through_all_pages(serve):
    beside = utm_grid((4, 5), 100, left=600_000)
    api = serve(
        collected(
            item("a"),
            item("c", "2024-04-02"),
            item("b", "2024-03-06"),
            item("beside", geobox=beside),
        )
    )
    period = Period.parse(("2024-03-01", "2024-04-30"))
    found = search_items(stac_spec(api.url), GRID, period)
    assert [one.id for one in found] == ["a", "b", "c"]
    assert {asked["datetime"] for asked in api.asked} == {
        "2024-03-01T00:00:00Z/2024-04-01T00:00:00Z",
        "2024-04-01T00:00:00Z/2024-05-01T00:00:00Z",
    }
    assert all(asked["collections"] == ["s1"] for asked in api.asked)
    west, south, east, north = api.asked[0]["bbox"]
    assert west < 3.001 < 3.006 < east
    assert south < 50.549 < 50.551 < north


def test_an_item_on_the_border_of_two_months_comes_once(serve):
    border = make_item("border", SCENE, {"vv": "/data/x.tif"}, start="2024-03-31T23:59:50")
    api = serve(collected(border))
    period = Period.parse(("2024-03-01", "2024-04-30"))
    assert len(search_items(stac_spec(api.url), GRID, period)) == 1


@pytest.mark.parametrize("knows_query", [True, False])
def test_an_api_that_does_not_know_queries_is_not_asked_one(serve, knows_query):
    items = collected(item("iw", **{"sar:instrument_mode": "IW"}), item("none"))
    api = serve(items, knows_query=knows_query)
    query = {"sar:instrument_mode": {"eq": "IW"}}
    found = search_items(stac_spec(api.url, query=query), GRID, PERIOD)
    assert [one.id for one in found] == ["iw"]
    assert ("query" in api.asked[0]) is knows_query


def test_an_api_that_is_busy_is_asked_again(serve):
    api = serve(collected(item("a")), failures=1)
    assert len(search_items(stac_spec(api.url), GRID, PERIOD)) == 1


def test_an_api_that_stays_away_is_named(monkeypatch):
    from urllib3.util import Retry

    from smgrid.sources import stac

    monkeypatch.setattr(stac, "_RETRY", Retry(total=0))
    message = r"http://127\.0\.0\.1:9 cannot be searched for s1 .* correct test\.yml, line 1"
    with pytest.raises(SourceError, match=message):
        search_items(stac_spec("http://127.0.0.1:9"), GRID, PERIOD)


def test_lattices_of_recorded_items(shared):
    folder = shared / "data" / "real" / "stac_responses" / "planetary_computer"
    documents = json.loads((folder / "search_items_sentinel-1-rtc.json").read_text())
    documents = documents if isinstance(documents, list) else documents["features"]
    items = [pystac.Item.from_dict(document) for document in documents]
    lattices = split_by_lattice(stac_spec("nowhere"), items, ["vv", "vh"])
    assert sum(len(members) for _, members in lattices) == len(items) > 1
    for geobox, _ in lattices:
        assert geobox.resolution.xy == (10, -10)
        assert geobox.crs.epsg // 100 == 326
