"""The interactive page: what is in the file, and what Chromium shows of it without a network."""

import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import dask.array as da
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from smgrid.errors import ConfigError, MissingDependencyError, NoDataError
from smgrid.export import page
from smgrid.export.page import MISSING, write_page
from smgrid.grid import grid_coords
from tests.builders import utm_grid

DIMS = ("time", "y", "x")
TIMES = pd.DatetimeIndex([f"2024-03-{day:02d}T05:41:07" for day in (1, 7, 13, 19, 25)])
GRID = utm_grid((20, 30))
TO_DEGREES = Transformer.from_crs("EPSG:32631", "EPSG:4326", always_xy=True)
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


def make_map(grid=GRID, *, seed=0):
    """Wet in the north-west, with a hole; every variable that a page can show."""
    rng = np.random.default_rng(seed)
    shape = (TIMES.size, *grid.shape)
    sm = rng.uniform(0.05, 0.06, shape).astype("f4")
    rows, columns = grid.shape
    sm[:, : rows // 2, : columns // 2] += 0.3
    sm[0, 0, 0] = sm[2, -1, -1] = np.nan
    sm[:, -3:, :3] = np.nan
    data = {
        "soil_moisture": sm,
        "soil_moisture_std": rng.uniform(0.01, 0.03, shape),
        "soil_moisture_lower": sm - 0.05,
        "soil_moisture_upper": sm + rng.uniform(0, 0.08, shape),
        "dissimilarity": rng.uniform(0, 2, shape),
    }
    coords = {**grid_coords(grid), "time": TIMES}
    ds = xr.Dataset({n: (DIMS, v.astype("f4")) for n, v in data.items()}, coords)
    ds["flags"] = (DIMS, np.where(np.isnan(sm), 1, 0).astype("u2"))
    ds["flags"][3, 1, 2], ds["flags"][1, 1, 2], ds["flags"][3, 0, 1] = 4 + 256, 256, 1
    ds["flags"].attrs = {
        "flag_masks": np.array([1, 4, 256], "u2"),
        "flag_meanings": "input_missing snow <b>frozen</b>_soil",
        "not_determined": "open_water snow",
    }
    ds["soil_moisture_upper"].attrs["coverage"] = 0.9
    ds["dissimilarity"].attrs["threshold"] = 1.0
    ds.attrs = {"title": "Wet & <b>dry</b>", "license": "CC-BY-4.0", "note": "<script>x()</script>"}
    return ds


def make_stations(*places):
    lon, lat = np.transpose([TO_DEGREES.transform(*place) for place in places])
    days = pd.date_range("2024-02-20", "2024-04-05")
    values = np.linspace(0.1, 0.3, len(places) * days.size).reshape(len(places), -1)
    values[:, 13] = np.nan
    coords = {"longitude": ("station", lon), "latitude": ("station", lat)}
    names = [f"S{i}" for i in range(len(places))]
    return xr.DataArray(values, {"station": names, "time": days, **coords}, ("station", "time"))


@pytest.fixture
def shown(monkeypatch):
    """What a page is made of, in the order of the calls, instead of its text."""
    kept = []

    def render(spec, layers, title, about):
        layers = dict(layers)
        flags = {n: np.stack(layers.pop(n))[:, ::-1] for n in ("flags",) if n in layers}
        values = {
            name: np.stack(counts) * spec["variables"][name]["step"]
            + spec["variables"][name]["low"]
            for name, counts in layers.items()
        }
        empty = {name: np.stack(counts) == MISSING for name, counts in layers.items()}
        arrays = {n: np.where(empty[n], np.nan, v)[:, ::-1] for n, v in values.items()}
        kept.append((json.loads(json.dumps(spec)), arrays | flags, title, about))
        return "page"

    monkeypatch.setattr(page, "render", render)
    return kept


def test_a_page_holds_every_variable_of_the_map(shown, tmp_path):
    sm = make_map()
    write_page(sm, tmp_path / "page.html")
    spec, arrays, title, about = shown[0]
    width = sm["soil_moisture_upper"] - sm["soil_moisture_lower"]
    for name in ("soil_moisture", "soil_moisture_std", "dissimilarity"):
        np.testing.assert_allclose(arrays.pop(name), sm[name], atol=2e-5)
    np.testing.assert_allclose(arrays.pop("interval_width"), width, atol=2e-5)
    lower = arrays.pop("soil_moisture_lower")
    np.testing.assert_allclose(lower, sm["soil_moisture_lower"], atol=2e-5)
    np.testing.assert_array_equal(arrays.pop("flags"), sm["flags"])
    assert not arrays
    assert spec["flags"]["bits"] == {"input missing": 1, "snow": 4, "<b>frozen</b> soil": 256}
    assert spec["flags"]["undetermined"] == ["open water", "snow"]
    assert spec["band"] == "90 % interval"
    titles = [said["title"] for said in spec["variables"].values() if "title" in said]
    assert titles == [
        "Soil moisture (m³ m⁻³)",
        "Spread of the members (m³ m⁻³)",
        "Width of the 90 % interval (m³ m⁻³)",
        "Dissimilarity to the training (threshold 1.00)",
    ]
    assert spec["dates"][0]["label"] == "2024-03-01 05:41 UTC"
    assert [date["time"] for date in spec["dates"]] == [int(t.timestamp() * 1000) for t in TIMES]
    assert title == "Wet & <b>dry</b>"
    assert "EPSG:32631; pixels of 100 m; all 5 acquisitions" in about[0]
    assert "&lt;script&gt;x()" in about[1]
    assert spec["first"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_map_without_the_newer_variables_has_two(shown, tmp_path):
    sm = make_map()[["soil_moisture", "soil_moisture_std"]]
    write_page(sm, tmp_path / "page.html")
    assert [*shown[0][1]] == ["soil_moisture", "soil_moisture_std"]
    assert shown[0][0]["flags"] is None
    assert shown[0][0]["band"] == "± spread"


def test_a_variable_of_one_value_has_a_scale_around_it(shown, tmp_path):
    sm = make_map()
    sm["soil_moisture_upper"] = (sm["soil_moisture_lower"] + 0.12).assign_attrs(coverage=0.9)
    write_page(sm, tmp_path / "page.html")
    said = shown[0][0]["variables"]["interval_width"]
    assert said["range"] == [0, pytest.approx(0.24, rel=0.01)]


def test_large_maps_are_block_means_of_valid_pixels(shown, tmp_path):
    sm = make_map(utm_grid((21, 30)))
    write_page(sm.chunk(y=8, x=7), tmp_path / "page.html", max_pixels=10)
    spec, arrays, _, about = shown[0]
    padded = np.pad(sm["soil_moisture"].values, [(0, 0)] * 3, constant_values=np.nan)
    blocks = padded.reshape(5, 7, 3, 10, 3)
    valid = np.isfinite(blocks).sum(axis=(2, 4))
    expected = np.nansum(blocks, axis=(2, 4)) / np.where(valid, valid, np.nan)
    np.testing.assert_allclose(arrays["soil_moisture"], expected, atol=2e-5)
    assert "pixels of 300 m, each the mean of 3 × 3 pixels" in about[0]
    joined = np.bitwise_or.reduce(sm["flags"].values.reshape(5, 7, 3, 10, 3), axis=(2, 4))
    np.testing.assert_array_equal(arrays["flags"], joined)
    assert spec["flags"]["where"] == "of any pixel of this block"
    assert spec["flags"]["bits"]["snow"] == 4
    frame = spec["frame"]
    assert (frame["left"], frame["bottom"]) == pytest.approx((500.0, 5597.9))
    assert (frame["dx"], frame["dy"], frame["columns"], frame["rows"]) == (0.3, 0.3, 10, 7)


def test_blocks_that_reach_over_the_edge_keep_their_place(shown, tmp_path):
    write_page(make_map(), tmp_path / "page.html", max_pixels=10)
    frame = shown[0][0]["frame"]
    assert (frame["columns"], frame["rows"]) == (10, 7)
    assert frame["bottom"] == pytest.approx(5600 - 7 * 0.3)
    sm, arrays = make_map(), shown[0][1]
    last = sm["soil_moisture"].values[1, 18:, -3:].mean()
    assert arrays["soil_moisture"][1, -1, -1] == pytest.approx(last, abs=2e-5)
    assert arrays["flags"][2, -1, -1] == 1
    assert arrays["flags"][1, -1].tolist() == [1] + [0] * 9
    write_page(sm.drop_vars("flags"), tmp_path / "page.html", max_pixels=10)
    assert "flags" not in shown[1][1]


def test_dates_in_excess_are_left_out_evenly(shown, tmp_path):
    megabytes = 3 * 6 * GRID.shape[0] * GRID.shape[1] * 8 / 3 / 1e6
    write_page(make_map(), tmp_path / "page.html", max_megabytes=megabytes * 1.001)
    spec, arrays, _, about = shown[0]
    assert [date["label"][:10] for date in spec["dates"]] == [
        "2024-03-01",
        "2024-03-13",
        "2024-03-25",
    ]
    expected = make_map()["soil_moisture"][[0, 2, 4]]
    np.testing.assert_allclose(arrays["soil_moisture"], expected, atol=2e-5)
    assert "3 of 5 acquisitions, evenly chosen" in about[0]


def test_only_what_is_shown_is_read(shown, tmp_path):
    sm, reads = make_map(), {}
    for name in sm.data_vars:
        lazy = da.from_array(sm[name].values, (1, 20, 30))
        count = reads.setdefault(name, [])
        sm[name] = sm[name].copy(data=lazy.map_blocks(_note, count, meta=sm[name].values[:0]))
    write_page(sm, tmp_path / "page.html", dates=("2024-03-07", "2024-03-13"))
    assert [date["label"][:10] for date in shown[0][0]["dates"]] == ["2024-03-07", "2024-03-13"]
    assert {name: len(count) for name, count in reads.items()} == dict.fromkeys(reads, 2)


def _note(block, count):
    count.append(block.shape)
    return block


def test_stations_lie_in_their_pixels(shown, tmp_path):
    stations = make_stations((900_000, 5_599_000), (500_250, 5_599_870))
    write_page(make_map(), tmp_path / "page.html", reference=stations)
    spec, _, _, about = shown[0]
    (station,) = spec["stations"]
    assert (station["name"], station["column"], station["row"]) == ("S1", 2, 18)
    assert (station["x"], station["y"]) == pytest.approx((500.25, 5599.87))
    readings = stations[1].sel(time=slice("2024-03-01", "2024-03-26"))
    assert station["time"][0] == pd.Timestamp("2024-03-01").timestamp() * 1000
    assert station["value"][3] is None
    got = [np.nan if value is None else value for value in station["value"]]
    np.testing.assert_allclose(got, readings, atol=5e-5)
    assert "1 of 2 stations" in about[0]
    with pytest.raises(ConfigError, match="none of its 1 stations lies in the map"):
        write_page(make_map(), tmp_path / "page.html", reference=stations[:1])


def test_maps_in_degrees_cross_the_date_line_without_a_jump(shown, tmp_path):
    grid = GeoBox.from_bbox((179, 50, 181, 51), "EPSG:4326", resolution=0.1)
    sm = make_map(grid)
    write_page(sm, tmp_path / "page.html")
    spec, _, _, about = shown[0]
    assert spec["frame"]["labels"] == ["longitude (°)", "latitude (°)"]
    assert [spec["frame"][key] for key in ("left", "bottom", "dx", "divisor")] == [179, 50, 0.1, 1]
    assert "pixels of 0.1 °" in about[0]
    np.testing.assert_allclose(spec["nodes"]["longitude"][0], np.linspace(179, 181, 33))


def test_longitudes_between_the_nodes_are_good_for_a_country(shown, tmp_path):
    write_page(make_map(utm_grid((30, 40), 10_000, left=300_000)), tmp_path / "page.html")
    nodes = {key: np.array(values) for key, values in shown[0][0]["nodes"].items()}
    x, y = 300_000 + 400_000 * (10.5 / 32), 5_300_000 + 300_000 * (20.5 / 32)
    between = [nodes[key][20:22, 10:12].mean() for key in ("longitude", "latitude")]
    assert between == pytest.approx(TO_DEGREES.transform(x, y), abs=5e-4)


@pytest.mark.parametrize(
    ("error", "message", "keywords"),
    [
        (ConfigError, "no acquisition in 2023-01-01/2023-12-31", {"dates": "2023"}),
        (ConfigError, "max_pixels=0", {"max_pixels": 0}),
        (ConfigError, "max_megabytes=0", {"max_megabytes": 0}),
    ],
)
def test_what_cannot_be_shown_is_an_error(tmp_path, error, message, keywords):
    with pytest.raises(error, match=message):
        write_page(make_map(), tmp_path / "page.html", **keywords)
    assert not [*tmp_path.iterdir()]


def test_a_map_without_values_is_an_error(tmp_path):
    sm = make_map()
    sm["soil_moisture"] *= np.nan
    with pytest.raises(NoDataError, match="no valid pixel"):
        write_page(sm, tmp_path / "page.html")


def test_without_bokeh_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bokeh.embed", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'smgrid\[plot\]'"):
        write_page(make_map(), tmp_path / "page.html")


class Links(HTMLParser):
    """Every address that elements of a page name, and what its policy allows."""

    def __init__(self):
        super().__init__()
        self.links, self.policy, self.tags = [], "", []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        named = dict(attrs)
        self.links += [named[key] for key in ("src", "href", "data", "action") if key in named]
        if named.get("http-equiv") == "Content-Security-Policy":
            self.policy = named["content"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    stations = make_stations((500_250, 5_599_870))
    write_page(make_map(), path, reference=stations)
    return path


def test_the_file_needs_nothing_else(written):
    links = Links()
    text = written.read_text()
    links.feed(text)
    assert links.links == []
    assert links.policy.startswith("default-src 'none';")
    assert "http" not in links.policy
    assert "link" not in links.tags
    assert not re.search(
        r"@import|url\(\s*['\"]?http", "".join(re.findall("<style.*?</style>", text))
    )
    assert written.stat().st_size < 6e6


def test_attributes_of_the_map_cannot_become_elements(written):
    text = written.read_text()
    assert "<script>x()" not in text
    assert "<b>dry</b>" not in text
    assert "CC-BY-4.0" in text


# Drives the page as a reader does: by its widgets, and by events of the pointer on the map.
PROBE = """
const violations = [], errors = [];
addEventListener("securitypolicyviolation", e => violations.push(e.blockedURI));
addEventListener("error", e => errors.push(e.message));
addEventListener("unhandledrejection", e => errors.push(String(e.reason)));
function texts(node, selector, found = []) {
  if (node.matches(selector)) found.push(node.textContent.trim());
  const children = [...(node.shadowRoot?.children ?? []), ...node.children];
  for (const child of children) texts(child, selector, found);
  return found;
}
const later = () => new Promise(done => setTimeout(done, 700));
const waiting = setInterval(async () => {
  if (!window.Bokeh?.documents?.[0]?.is_idle) return;
  clearInterval(waiting);
  await later();
  const model = name => [...Bokeh.documents[0]._all_models.values()].find(m => m.name === name);
  const values = () => [...model("image").data.image[0]].map(v => Number.isNaN(v) ? null : v);
  const series = name => JSON.parse(JSON.stringify(model(name).data));
  const opened = {values: values(), title: model("map").title.text, series: series("pixel")};
  opened.menu = model("variable").options.map(([name]) => name);
  model("date").value = 3;
  await later();
  const moved = {values: values(), title: model("map").title.text};
  if (opened.menu.includes("dissimilarity")) model("variable").value = "dissimilarity";
  await later();
  const view = Bokeh.index.find_one(model("map")), area = view.canvas_view.events_el;
  const box = area.getBoundingClientRect();
  const point = async (x, y) => {
    const at = {
      clientX: box.left + view.frame.x_scale.compute(x),
      clientY: box.top + view.frame.y_scale.compute(y),
      bubbles: true, isPrimary: true, pointerId: 1, pointerType: "mouse",
    };
    const send = (kind, buttons) => area.dispatchEvent(new PointerEvent(kind, {...at, buttons}));
    send("pointermove", 0);
    send("pointerdown", 1);
    send("pointerup", 0);
    await later();
    send("pointermove", 0);
    await later();
    return {
      tip: texts(document.body, ".bk-tooltip-row-value"), title: model("series").title.text,
      pixel: series("pixel"), station: series("station"), picked: series("picked"),
      flags: model("flags").text, said: texts(document.body, ".bk-clearfix"),
      legend: model("series").below.find(m => m.items).items.map(item => item.label.value),
    };
  };
  const changed = {values: values(), title: model("map").title.text};
  const north = await point(500.27, 5599.83);
  const hole = await point(500.15, 5598.15);
  const fetched = performance.getEntriesByType("resource").map(entry => entry.name);
  const heading = texts(document.body, "h2");
  const result = {opened, moved, changed, north, hole, heading, fetched, violations, errors};
  document.body.setAttribute("data-probe", JSON.stringify(result));
}, 100);
"""


def chromium(page, folder, *arguments):
    """Open a page without a network; return what Chromium writes to its output."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1250,900",
        "--virtual-time-budget=12000", f"--user-data-dir={folder / 'profile'}", *arguments,
        page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.fixture(scope="module")
def probed(written, tmp_path_factory):
    return probe(written, tmp_path_factory.mktemp("probe"))


def probe(page, folder):
    """Use a page as a reader does, and return what it showed."""
    before, end, after = page.read_text().rpartition("</body>")
    (folder / "probed.html").write_text(f"{before}<script>{PROBE}</script>{end}{after}")
    dom = chromium(folder / "probed.html", folder, "--dump-dom")
    (found,) = re.findall('data-probe="([^"]*)"', dom)
    return json.loads(html.unescape(found))


def as_image(values):
    image = np.array([np.nan if v is None else v for v in values], float)
    return image.reshape(GRID.shape)[::-1]


def as_series(values):
    """Bokeh writes NaN as null, an array as it is or as an object by index."""
    values = values.values() if isinstance(values, dict) else values
    return np.array([np.nan if v is None else v for v in values], float)


@pytest.mark.slow
@needs_chromium
def test_the_browser_loads_nothing_else(probed):
    assert probed["fetched"] == []
    assert probed["violations"] == []
    assert probed["errors"] == []


@pytest.mark.slow
@needs_chromium
def test_the_page_opens_with_the_fullest_date(probed):
    sm = make_map()
    np.testing.assert_allclose(
        as_image(probed["opened"]["values"]), sm["soil_moisture"][1], atol=2e-5
    )
    assert probed["heading"] == ["Wet & <b>dry</b>"]
    names = ["soil_moisture", "soil_moisture_std", "interval_width", "dissimilarity"]
    assert probed["opened"]["menu"] == names
    assert probed["opened"]["title"] == "Soil moisture (m³ m⁻³), 2024-03-07 05:41 UTC"
    middle = sm["soil_moisture"][:, 9, 15]
    np.testing.assert_allclose(as_series(probed["opened"]["series"]["value"]), middle, atol=2e-5)


@pytest.mark.slow
@needs_chromium
def test_slider_and_menu_change_the_map(probed):
    expected = make_map()["soil_moisture"][3]
    np.testing.assert_allclose(as_image(probed["moved"]["values"]), expected, atol=2e-5)
    assert probed["moved"]["title"] == "Soil moisture (m³ m⁻³), 2024-03-19 05:41 UTC"
    expected = make_map()["dissimilarity"][3]
    np.testing.assert_allclose(as_image(probed["changed"]["values"]), expected, atol=2e-5)
    assert probed["changed"]["title"].endswith("(threshold 1.00), 2024-03-19 05:41 UTC")


@pytest.mark.slow
@needs_chromium
def test_the_pointer_reads_value_and_place(probed):
    value, place, degrees = probed["north"]["tip"]
    assert float(value) == pytest.approx(float(make_map()["dissimilarity"][3, 1, 2]), abs=6e-4)
    assert [int(v) for v in place.split(",")] == pytest.approx([500_270, 5_599_830], abs=2)
    lat, lon = (float(v) for v in re.findall(r"-?\d+\.\d+", degrees))
    assert (lon, lat) == pytest.approx(TO_DEGREES.transform(500_270, 5_599_830), abs=3e-5)


@pytest.mark.slow
@needs_chromium
def test_a_click_draws_the_series_of_the_pixel_and_its_station(probed):
    sm, clicked = make_map(), probed["north"]
    np.testing.assert_allclose(
        as_series(clicked["pixel"]["value"]), sm["soil_moisture"][:, 1, 2], atol=2e-5
    )
    first, second = clicked["title"].split("\n")
    assert first == "Series of the pixel 500250, 5599850; station S0"
    lat, lon = (float(v) for v in re.findall(r"-?\d+\.\d+", second))
    assert (lon, lat) == pytest.approx(TO_DEGREES.transform(500_250, 5_599_850), abs=1e-5)
    readings = make_stations((0, 0))[0].sel(time=slice("2024-03-01", "2024-03-26"))
    np.testing.assert_allclose(as_series(clicked["station"]["value"]), readings, atol=5e-5)


@pytest.mark.slow
@needs_chromium
def test_the_band_is_the_calibrated_interval(probed):
    sm, clicked = make_map().isel(y=1, x=2), probed["north"]
    assert clicked["legend"] == ["90 % interval", "map", "station"]
    for end, bound in (("low", "lower"), ("high", "upper")):
        drawn = as_series(clicked["pixel"][end])
        np.testing.assert_allclose(drawn, sm[f"soil_moisture_{bound}"], atol=4e-5)


@pytest.mark.slow
@needs_chromium
def test_flags_of_the_pixel_and_date_stand_in_words(probed):
    north, hole = probed["north"], probed["hole"]
    assert north["flags"].startswith(
        "Flags of this pixel on 2024-03-19 05:41 UTC: snow, <b>frozen</b> soil; "
        "not determined: open water."
    )
    assert "05:41 UTC: input missing; not determined: open water, snow." in hole["flags"]
    assert any(north["flags"] in text for text in north["said"])  # as text, not as elements
    fill = north["pixel"]["fill"]
    assert [name == "white" for name in fill] == [False, True, False, True, False]


@pytest.mark.slow
@needs_chromium
def test_a_page_of_a_map_without_bounds_and_flags(tmp_path):
    sm = make_map()[["soil_moisture", "soil_moisture_std"]]
    write_page(sm, tmp_path / "page.html")
    found = probe(tmp_path / "page.html", tmp_path)
    assert found["errors"] == []
    clicked = found["north"]
    value, spread = (sm[name].values[:, 1, 2] for name in sm.data_vars)
    np.testing.assert_allclose(as_series(clicked["pixel"]["low"]), value - spread, atol=4e-5)
    np.testing.assert_allclose(as_series(clicked["pixel"]["high"]), value + spread, atol=4e-5)
    assert clicked["legend"] == ["± spread", "map"]
    assert clicked["flags"] == ""


@pytest.mark.slow
@needs_chromium
def test_a_pixel_without_values_says_so(probed):
    assert np.isnan(as_series(probed["hole"]["pixel"]["value"])).all()
    assert probed["hole"]["station"]["value"] == []
    assert "station" not in probed["hole"]["title"]


@pytest.mark.slow
@needs_chromium
def test_the_canvas_shows_the_map_the_right_way_up(written, tmp_path):
    chromium(written, tmp_path, f"--screenshot={tmp_path / 'page.png'}")
    rgb = matplotlib.image.imread(tmp_path / "page.png")[110:680, 60:570, :3]
    blues = matplotlib.colormaps["YlGnBu"]
    wet = np.abs(rgb - blues(1.0)[:3]).max(axis=2) < 0.05
    dry = np.abs(rgb - blues(0.0)[:3]).max(axis=2) < 0.05
    grey = np.abs(rgb - 0xD9 / 255).max(axis=2) < 0.01
    rows, columns = wet.nonzero()
    assert wet.sum() > 10_000
    assert dry.sum() > 2 * wet.sum()
    assert rows.mean() < dry.nonzero()[0].mean()
    assert columns.mean() < dry.nonzero()[1].mean()
    assert grey.nonzero()[0].mean() > dry.nonzero()[0].mean()
    assert grey.nonzero()[1].mean() < columns.mean()
