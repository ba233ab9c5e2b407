"""MODIS composites: Terra and Aqua on one calendar, exact pixels, reliability, gaps, tiles."""

import json
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import pytest
import rasterio
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec, StacQuery
from smgrid.errors import CatalogError, NoDataError, SchemaError, SourceError
from smgrid.grid import make_grid, pixel_centres
from smgrid.sources import load_source
from smgrid.sources.ndvi import load_modis
from smgrid.windows import Period, composite_calendar
from tests.builders import make_item, write_catalog, write_cog

nan = np.nan
TILE = 1111950.5196666666
PIXEL = TILE / 4800
# As the items of the Planetary Computer state it.
WKT = (
    'PROJCS["unnamed",GEOGCS["Unknown datum based upon the custom spheroid",'
    'DATUM["Not specified (based on custom spheroid)",SPHEROID["Custom spheroid",6371007.181,0]],'
    'PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433,AUTHORITY["EPSG","9122"]]],'
    'PROJECTION["Sinusoidal"],PARAMETER["longitude_of_center",0],PARAMETER["false_easting",0],'
    'PARAMETER["false_northing",0],UNIT["Meter",1],AXIS["Easting",EAST],AXIS["Northing",NORTH]]'
)
SINUSOIDAL = "+proj=sinu +R=6371007.181 +units=m"
GRID = make_grid(bbox=(3.0, 50.80, 3.06, 50.84), resolution=200)
PERIOD = Period.parse(("2024-01-01", "2024-02-10"))


def around(grid, margin=6, h=None):
    """Return the MODIS pixels around a grid, within the tile `h` if given."""
    x, y = pixel_centres(grid, SINUSOIDAL)
    left, right = np.floor(x.min() / PIXEL) - margin, np.ceil(x.max() / PIXEL) + margin
    bottom, top = np.floor(y.min() / PIXEL) - margin, np.ceil(y.max() / PIXEL) + margin
    if h is not None:
        left, right = max(left, (h - 18) * 4800), min(right, (h - 17) * 4800)
    box = tuple(PIXEL * edge for edge in (left, bottom, right, top))
    return GeoBox.from_bbox(box, WKT, shape=(int(top - bottom), int(right - left)), tight=True)


NATIVE = around(GRID)


def composite(
    folder,
    start,
    ndvi,
    reliability=0,
    *,
    geobox=NATIVE,
    name=None,
    quality="int8",
    words=None,
    **properties,
):
    """Write one composite and return its item, as the Planetary Computer has them."""
    start = pd.Timestamp(start)
    name = name or f"{'MOD' if start.day_of_year % 16 == 1 else 'MYD'}13Q1.A{start:%Y%j}.h18v03"
    ndvi = np.broadcast_to(np.asarray(ndvi, "int16"), geobox.shape)
    assets = {"250m_16_days_NDVI": write_cog(folder / f"{name}_ndvi.tif", ndvi, geobox)}
    if reliability is not None:
        values = np.broadcast_to(np.asarray(reliability, quality), geobox.shape)
        fill = -1 if quality == "int8" else 255
        path = write_cog(folder / f"{name}_rel.tif", values, geobox, nodata=fill)
        assets["250m_16_days_pixel_reliability"] = path
    if words is not None:
        values = np.broadcast_to(np.asarray(words, "uint16"), geobox.shape)
        path = write_cog(folder / f"{name}_vi.tif", values, geobox, nodata=65535)
        assets["250m_16_days_VI_Quality"] = path
    end = start + pd.Timedelta(16, "D") - pd.Timedelta(1, "s")
    item = make_item(name, geobox, assets, start=start, end=end, projection="none")
    item.datetime = None
    item.properties |= {
        "datetime": None,
        "platform": "",
        "proj:epsg": None,
        "proj:wkt2": WKT,
        "proj:shape": list(geobox.shape.yx),
        "proj:transform": list(geobox.affine)[:6],
    } | properties
    item.stac_extensions.append("https://stac-extensions.github.io/projection/v1.0.0/schema.json")
    return item


def spec(folder, items, **changes):
    href = write_catalog(Path(folder) / "stac", "modis-13Q1-061", items)
    fields = {
        "name": "modis",
        "loader": "smgrid.sources.ndvi:load_modis",
        "provides": ("ndvi", "ndvi_filled"),
        "stac": StacQuery(str(href), "modis-13Q1-061"),
        "assets": {
            "ndvi": "250m_16_days_NDVI",
            "reliability": "250m_16_days_pixel_reliability",
        },
        "scale": {"ndvi": 1e-4},
        "nodata": -3000.0,
        "native_resolution": 231.65635826,
        "options": {"fill_days": 0},
        "origin": "test.yml, line 17",
    }
    return SourceSpec(**(fields | changes))


def series(entry, period=PERIOD, grid=GRID):
    return load_source(entry, grid, period)["ndvi"].values[:, 0, 0]


def test_terra_and_aqua_stand_on_one_calendar(tmp_path):
    starts = composite_calendar(("2023-12-19", "2024-02-18"))
    items = [composite(tmp_path, start, 1000 * n) for n, start in enumerate(starts)]
    ds = load_source(spec(tmp_path, items[::-1]), GRID, PERIOD)
    assert ds.indexes["date"].equals(composite_calendar(PERIOD))
    expected = np.float32([0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    np.testing.assert_allclose(ds["ndvi"].values[:, 0, 0], expected, rtol=1e-6)
    assert ds["ndvi"].attrs["composite_days"] == 16
    assert ds["ndvi"].dtype == "float32"


def test_every_cell_gets_the_pixel_its_centre_lies_in(tmp_path):
    values = np.random.default_rng(0).integers(-2000, 10000, NATIVE.shape)
    entry = spec(tmp_path, [composite(tmp_path, "2024-01-01", values)])
    x, y = pixel_centres(GRID, SINUSOIDAL)
    row = np.floor((NATIVE.boundingbox.top - y) / PIXEL).astype(int)
    col = np.floor((x - NATIVE.boundingbox.left) / PIXEL).astype(int)
    for chunks in (512, 7):
        found = load_source(entry, GRID, PERIOD, chunks=chunks)["ndvi"].values[0]
        np.testing.assert_allclose(found, values[row, col] * 1e-4, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("quality", ["int8", "uint8"])
def test_fill_values_and_reliability(tmp_path, quality):
    ndvi = np.full(NATIVE.shape, 5000)
    reliability = np.zeros(NATIVE.shape)
    bands = np.arange(NATIVE.shape.x) * 7 // NATIVE.shape.x
    ndvi[:, bands == 1] = -3000
    for band, rank in ((2, 1), (3, 2), (4, 3), (5, -1 if quality == "int8" else 255)):
        reliability[:, bands == band] = rank
    item = composite(tmp_path, "2024-01-01", ndvi, reliability, quality=quality)
    col = np.floor((pixel_centres(GRID, SINUSOIDAL)[0] - NATIVE.boundingbox.left) / PIXEL)
    band = bands[col.astype(int)]
    found = load_source(spec(tmp_path, [item]), GRID, PERIOD)["ndvi"].values[0]
    np.testing.assert_array_equal(np.isfinite(found), np.isin(band, (0, 2, 6)))
    strict = spec(tmp_path, [item], options={"accept_reliability": [0], "fill_days": 0})
    found = load_source(strict, GRID, PERIOD)["ndvi"].values[0]
    np.testing.assert_array_equal(np.isfinite(found), np.isin(band, (0, 6)))


QUALITY = {
    "ndvi": "250m_16_days_NDVI",
    "quality": "250m_16_days_VI_Quality",
    "reliability": "250m_16_days_pixel_reliability",
}
GOOD = 1 << 2 | 1 << 6 | 1 << 11


def test_the_bits_of_quality_are_read_where_they_are_given(tmp_path):
    bands = np.arange(NATIVE.shape.x) % 7
    # Good, cloudy, beside a cloud, mixed, not processed, of little use, shadow.
    words = [GOOD, GOOD | 2, GOOD | 1 << 8, GOOD | 1 << 10, 65535, GOOD | 15 << 2, GOOD | 1 << 15]
    item = composite(tmp_path, "2024-01-01", 5000, words=np.array(words)[bands][None])
    col = np.floor((pixel_centres(GRID, SINUSOIDAL)[0] - NATIVE.boundingbox.left) / PIXEL)
    band = bands[col.astype(int)]

    def used(**options):
        assets = options.pop("assets", QUALITY)
        entry = spec(tmp_path, [item], assets=assets, options=options | {"fill_days": 0})
        found = load_source(entry, GRID, PERIOD)["ndvi"].values[0]
        return sorted(set(band[np.isfinite(found)].tolist()))

    seen = sorted(set(band.ravel().tolist()))
    assert seen == list(range(7))
    assert used() == [0, 2, 5]
    assert used(reject=["adjacent_cloud"]) == [0, 1, 3, 5, 6]
    assert used(max_usefulness=12) == [0, 2]
    assert used(reject=[]) == [0, 1, 2, 3, 5, 6]
    assert used(assets={"ndvi": QUALITY["ndvi"]}) == seen
    rejected = composite(tmp_path, "2024-01-01", 5000, 3, words=GOOD)
    assert np.isnan(series(spec(tmp_path, [rejected], assets=QUALITY))).all()


def test_holding_never_looks_ahead(tmp_path):
    early = [composite(tmp_path, "2023-12-19", 1000), composite(tmp_path, "2024-01-09", 2300)]
    late = [composite(tmp_path, "2024-02-02", 4700), composite(tmp_path, "2024-02-18", 6300)]
    options = {"fill_days": 16, "fill": "hold"}
    ds = load_source(spec(tmp_path, early + late, options=options), GRID, PERIOD)
    expected = np.float32([0.1, 0.23, 0.23, 0.23, 0.47, 0.47])
    np.testing.assert_allclose(ds["ndvi"].values[:, 0, 0], expected, rtol=1e-6)
    assert ds["ndvi_filled"].values[:, 0, 0].tolist() == [1, 0, 1, 1, 0, 1]
    before = load_source(spec(tmp_path, early, options=options), GRID, PERIOD)
    np.testing.assert_array_equal(before["ndvi"][:4].values, ds["ndvi"][:4].values)


def test_a_bridge_comes_before_the_gaps_are_filled(tmp_path):
    items = [composite(tmp_path, "2024-01-01", 9000), composite(tmp_path, "2024-01-17", 2000)]
    bridge = {"slope": 1.5, "intercept": -0.1, "rmse": 0.02}
    entry = spec(tmp_path, items, options={"fill_days": 16, "bridge": bridge})
    ds = load_modis(entry, GRID, Period.parse(("2024-01-01", "2024-01-17")))
    # 1.25 is more than the reference can hold.
    np.testing.assert_allclose(ds["ndvi"].values[:, 0, 0], [1, 0.6, 0.2], rtol=1e-5)
    assert ds["ndvi"].attrs["bridge_rmse"] == 0.02
    assert "bridge_rmse" not in ds["ndvi_filled"].attrs
    kept = load_source(entry, GRID, PERIOD)["ndvi"].attrs
    assert kept["approximate"] == 1
    assert "root mean square error 0.0200" in kept["approximate_note"]


def test_without_reliability_every_value_counts(tmp_path):
    item = composite(tmp_path, "2024-01-01", 5000, None)
    assets = {"ndvi": "250m_16_days_NDVI"}
    assert series(spec(tmp_path, [item], assets=assets))[0] == np.float32(0.5)


def test_gaps_are_filled_from_beyond_the_period_and_marked(tmp_path):
    items = [
        composite(tmp_path, "2023-12-27", 1000),
        composite(tmp_path, "2024-01-09", 2300),
        composite(tmp_path, "2024-01-17", 9999, 3),
        composite(tmp_path, "2024-02-02", 4700),
        composite(tmp_path, "2024-02-18", 6300),
    ]
    ds = load_source(spec(tmp_path, items, options={"fill_days": 24}), GRID, PERIOD)
    expected = [0.15, 0.23, 0.31, 0.39, 0.47, 0.55]
    np.testing.assert_allclose(ds["ndvi"].values[:, 0, 0], expected, rtol=1e-5)
    assert ds["ndvi_filled"].values[:, 0, 0].tolist() == [1, 0, 1, 1, 0, 1]
    # The provider has the composite of 17 January, although no pixel of it can be used.
    assert ds["observed"].values.tolist() == [False, True, True, False, True, False]
    short = load_source(spec(tmp_path, items, options={"fill_days": 16}), GRID, PERIOD)
    np.testing.assert_array_equal(
        np.isfinite(short["ndvi"].values[:, 0, 0]), [True, True, False, False, True, True]
    )


def test_tiles_are_mosaicked(tmp_path):
    # The border of h18 and h19 is at 10 E on the equator.
    grid = make_grid(bbox=(9.97, 0.1, 10.03, 0.14), resolution=200)
    items = [
        composite(tmp_path, "2024-01-01", value, geobox=around(grid, h=h), name=f"MOD.h{h}")
        for h, value in ((18, 2000), (19, 6000))
    ]
    found = load_source(spec(tmp_path, items), grid, PERIOD)["ndvi"].values[0]
    x, _ = pixel_centres(grid, SINUSOIDAL)
    np.testing.assert_allclose(found, np.where(x < TILE, 0.2, 0.6), rtol=1e-6)


def test_items_that_state_their_projection_differently_are_one_composite(tmp_path):
    grid = make_grid(bbox=(9.97, 0.1, 10.03, 0.14), resolution=200)
    west = composite(tmp_path, "2024-01-01", 2000, geobox=around(grid, h=18), name="west")
    east = composite(
        tmp_path,
        "2024-01-01",
        6000,
        geobox=around(grid, h=19),
        name="east",
        **{"proj:wkt2": rasterio.crs.CRS.from_wkt(WKT).to_wkt(version="WKT2_2019")},
    )
    found = load_source(spec(tmp_path, [west, east]), grid, PERIOD)["ndvi"].values[0]
    x, _ = pixel_centres(grid, SINUSOIDAL)
    np.testing.assert_allclose(found, np.where(x < TILE, 0.2, 0.6), rtol=1e-6)


def test_nothing_is_read_when_loading(tmp_path):
    entry = spec(tmp_path, [composite(tmp_path, "2024-01-01", 5000)])

    def refuse(*_, **__):
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        ds = load_modis(entry, GRID, PERIOD, chunks=8)
    assert ds["ndvi"].chunksizes["y"][0] == 8


def test_raw_integers_never_leave(tmp_path):
    entry = spec(tmp_path, [composite(tmp_path, "2024-01-01", 5000)], scale={})
    with pytest.raises(SchemaError, match=r"ndvi in modis .*found 5000, expected -1 to 1"):
        load_source(entry, GRID, PERIOD).compute()


def test_mistakes(tmp_path):
    items = [composite(tmp_path, "2024-01-01", 5000)]
    with pytest.raises(CatalogError, match=r"line 17: options\.accept of modis: unknown key"):
        load_modis(spec(tmp_path, items, options={"accept": [0]}), GRID, PERIOD)
    with pytest.raises(CatalogError, match=r"line 17: options\.fill_days of modis is 'x'"):
        load_modis(spec(tmp_path, items, options={"fill_days": "x"}), GRID, PERIOD)
    assets = {"ndvi": "250m_16_days_NDVI"}
    options = {"accept_reliability": [0]}
    with pytest.raises(CatalogError, match="accept_reliability of modis needs assets"):
        load_modis(spec(tmp_path, items, assets=assets, options=options), GRID, PERIOD)
    with pytest.raises(CatalogError, match="gives ndvi, ndvi_filled, not t2m; correct provides"):
        load_modis(spec(tmp_path, items, provides=("ndvi", "t2m")), GRID, PERIOD)
    with pytest.raises(NoDataError):
        load_modis(spec(tmp_path, items), GRID, Period.parse("2022"))
    # Its 16 days reach into the period, but no composite starts there.
    with pytest.raises(NoDataError, match="line 17: modis has no composite that starts in"):
        load_modis(spec(tmp_path, items), GRID, Period.parse(("2024-01-09", "2024-01-12")))
    odd = [composite(tmp_path, "2024-01-03", 5000, name="odd")]
    with pytest.raises(SourceError, match="odd starts on 2024-01-03, which is no day of the 8-day"):
        load_modis(spec(tmp_path, odd), GRID, PERIOD)


@pytest.mark.shared
def test_real_items_of_terra_and_aqua_stand_on_the_calendar(shared):
    folder = shared / "data/real/stac_responses"
    features = [
        json.loads((folder / f"stactools/item_modis-13Q1-061_{kind}.json").read_text())
        for kind in ("MOD", "MYD")
    ]
    answer = folder / "planetary_computer/items_modis-13Q1-061.json"
    features += json.loads(answer.read_text())["features"]
    for feature in features:
        start = feature["properties"]["start_datetime"][:10]
        assert start in composite_calendar((start, start))
        assert {"250m_16_days_NDVI", "250m_16_days_pixel_reliability"} <= set(feature["assets"])


@pytest.mark.shared
def test_real_composites_of_mato_grosso(shared, tmp_path):
    """A year of Terra over double-cropped land, with the tile's own lattice and real values."""
    items = []
    for path in sorted((shared / "data/real/modis/mod13q1_h12v10").glob("*.jp2")):
        start = pd.Timestamp(path.stem[-10:])
        with rasterio.open(path) as src:
            geobox = GeoBox(src.shape, src.transform, WKT)
            values = src.read(1).clip(-2000, 10000)  # JPEG2000 overshoots
        items.append(composite(tmp_path, start, values, None, geobox=geobox, name=path.stem))
    entry = spec(tmp_path, items, assets={"ndvi": "250m_16_days_NDVI"}, options={"fill_days": 32})
    lon, lat = geobox.geographic_extent.centroid.coords[0]
    grid = make_grid(bbox=(lon - 0.05, lat - 0.05, lon + 0.05, lat + 0.05), resolution=200)
    ds = load_source(entry, grid, Period.parse(("2013-09-14", "2014-08-29"))).compute()
    assert ds["ndvi"].isnull().sum() == 0
    x, y = pixel_centres(grid, SINUSOIDAL)
    row = np.floor((geobox.boundingbox.top - y) / PIXEL).astype(int)
    col = np.floor((x - geobox.boundingbox.left) / PIXEL).astype(int)
    np.testing.assert_allclose(
        ds["ndvi"].sel(date=start), values[row, col] * 1e-4, rtol=1e-5, atol=1e-6
    )
    seasonal = ds["ndvi"].mean(("y", "x")).to_series()
    # The end of the dry season, soya at its height, its harvest, maize.
    assert seasonal["2014-01-01"] > seasonal["2013-09"].mean() + 0.2
    assert seasonal["2014-02"].min() < seasonal["2014-01-01"] - 0.15
    assert seasonal["2014-04"].mean() > seasonal["2014-02"].min() + 0.1
