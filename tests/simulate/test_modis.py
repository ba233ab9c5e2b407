import json

import numpy as np
import pandas as pd
import pytest
import rasterio

from smgrid.grid import make_grid
from smgrid.simulate.fields import stream
from smgrid.simulate.modis import (
    PIXEL,
    ModisWriter,
    composite_layers,
    granule_name,
    tile_windows,
)
from smgrid.simulate.weather import Weather
from smgrid.windows import Period, composite_calendar


@pytest.fixture(scope="module")
def dry_weather(land):
    days = pd.date_range("2022-01-01", "2022-03-01")
    none = np.zeros((len(days), 5, 5), dtype=np.float32)
    return Weather(days, None, none, none, none[:, 0, 0], none[0], 41.3)


def write(land, weather, days, root, period):
    writer = ModisWriter(root, land, weather=weather, period=Period.parse(period), seed=1)
    for day in days:
        writer.observe(day)
    return writer.items


def read(root, item, key):
    path = root / "modis-13Q1-061" / item["id"] / item["assets"][key]["href"]
    with rasterio.open(path) as file:
        return file.read(1), file


def test_the_field_lies_where_it_is(land, dry_weather, make_day, hill, tmp_path, offset_of_hill):
    ndvi = 0.2 + 0.6 * hill(land.frame.domain)
    days = [make_day(d, ndvi=ndvi) for d in pd.date_range("2022-01-01", "2022-01-16")]
    (item,) = write(land, dry_weather, days, tmp_path, ("2022-01-01", "2022-01-05"))
    values, file = read(tmp_path, item, "250m_16_days_NDVI")
    east, north = offset_of_hill(values, file.transform, file.crs.to_wkt())
    # Half of a pixel would be 116 m.
    assert abs(east) < 30
    assert abs(north) < 30
    assert values.max() * 1e-4 == pytest.approx(0.8, abs=0.06)
    assert file.dtypes == ("int16",)


def test_a_composite_is_the_best_of_its_16_days(land, dry_weather, make_day, tmp_path):
    """A peak on the last day counts, one on the day after does not."""
    course = {"2022-01-16": 0.5, "2022-01-17": 0.9}
    days = [
        make_day(d, ndvi=course.get(f"{d:%Y-%m-%d}", 0.2))
        for d in pd.date_range("2022-01-01", "2022-02-05")
    ]
    items = write(land, dry_weather, days, tmp_path, ("2022-01-01", "2022-01-31"))
    found = {
        item["properties"]["start_datetime"][:10]: np.median(
            read(tmp_path, item, "250m_16_days_NDVI")[0]
        )
        for item in items
    }
    assert set(found) == {"2022-01-01", "2022-01-09", "2022-01-17"}  # 25 January is not complete
    assert found["2022-01-01"] == pytest.approx(5000, abs=60)
    assert found["2022-01-09"] == pytest.approx(9000, abs=60)
    assert found["2022-01-17"] == pytest.approx(9000, abs=60)


@pytest.mark.parametrize("wet_share", [0.0, 0.3, 0.8])
def test_clouds_come_with_rain_and_are_flagged(wet_share):
    clear = np.full((150, 150), 0.6, dtype=np.float32)
    layers = composite_layers(stream(1, "test"), clear, wet_share=wet_share)
    counts, quality, reliability = layers.values()
    assert quality.dtype == np.uint16
    assert reliability.dtype == np.int8
    good, cloudy, lost = reliability == 0, reliability == 3, reliability == -1
    assert abs(counts[good].mean() - 6000) < 60
    assert (counts[lost] == -3000).all()
    assert (quality[lost] == 65535).all()
    assert (quality[good] & 3 == 0).all()
    assert (quality[cloudy] & 3 == 2).all()
    assert (quality[reliability == 1] & 3 == 1).all()
    assert ((quality[~lost] >> 11) & 7 == 1).all()  # land
    share = {0.0: (0, 0.03), 0.3: (0.005, 0.12), 0.8: (0.12, 0.5)}[wet_share]
    assert share[0] <= (cloudy | lost).mean() <= share[1]
    if cloudy.any():
        assert counts[cloudy].mean() < 5200


def test_terra_and_aqua_interleave(world):
    found = sorted(
        (p["start_datetime"][:10], path.stem[:7])
        for path in (world.stac.parent / "modis-13Q1-061").glob("*/*.json")
        for p in [json.loads(path.read_text())["properties"]]
    )
    starts = pd.DatetimeIndex([date for date, _ in found])
    assert starts.equals(pd.DatetimeIndex(composite_calendar(world.period)).as_unit(starts.unit))
    for start, (_, product) in zip(starts, found, strict=True):
        expected = "MOD13Q1" if start.day_of_year % 16 == 1 else "MYD13Q1"
        assert product == expected


def test_names_are_those_of_real_granules():
    assert granule_name(pd.Timestamp("2025-02-18"), 35, 10).startswith(
        "MOD13Q1.A2025049.h35v10.061."
    )
    assert granule_name(pd.Timestamp("2022-01-09"), 9, 6).startswith("MYD13Q1.A2022009.h09v06.061.")


@pytest.mark.parametrize(
    ("place", "tile"),
    [((-5.4, 41.3), (17, 4)), ((105.9, 20.4), (27, 6)), ((-55.5, -11.65), (12, 10))],
)
def test_tiles_of_known_places(place, tile):
    lon, lat = place
    grid = make_grid((lon, lat, lon + 0.01, lat + 0.01), resolution=100)
    assert [(h, v) for h, v, _ in tile_windows(grid)] == [tile]


def test_a_region_on_a_tile_edge_has_two_granules():
    grid = make_grid((-5.4, 39.95, -5.35, 40.05), resolution=100)
    (_, v0, upper), (_, v1, lower) = tile_windows(grid)
    assert (v0, v1) == (4, 5)
    assert upper.boundingbox.bottom == pytest.approx(lower.boundingbox.top, abs=1e-6)


def test_lattice_is_that_of_a_recorded_item(shared, world):
    folder = shared / "data/real/stac_responses/planetary_computer"
    real = json.loads((folder / "items_modis-13Q1-061.json").read_text())["features"][0]
    left, top = real["properties"]["proj:transform"][2], real["properties"]["proj:transform"][5]
    assert real["properties"]["proj:transform"][0] == pytest.approx(PIXEL, abs=1e-9)
    path = next((world.stac.parent / "modis-13Q1-061").glob("*/*NDVI.tif"))
    with rasterio.open(path) as file:
        columns, rows = (file.transform.c - left) / PIXEL, (file.transform.f - top) / PIXEL
        assert file.res == pytest.approx((PIXEL, PIXEL))
    assert columns == pytest.approx(round(columns), abs=1e-4)
    assert rows == pytest.approx(round(rows), abs=1e-4)


def test_items_have_the_properties_of_recorded_ones(world, shared):
    folder = shared / "data/real/stac_responses/planetary_computer"
    real = json.loads((folder / "items_modis-13Q1-061.json").read_text())["features"][0]
    item = json.loads(next((world.stac.parent / "modis-13Q1-061").glob("*/*.json")).read_text())
    found, expected = item["properties"], real["properties"]
    assert {k: type(v) for k, v in found.items()} == {k: type(v) for k, v in expected.items()}
    assert found["datetime"] is None
    assert found["proj:epsg"] is None
    assert found["proj:wkt2"] == expected["proj:wkt2"]
    assert set(item["assets"]) <= set(real["assets"])
    for key, asset in item["assets"].items():
        band, real_band = asset["raster:bands"][0], real["assets"][key]["raster:bands"][0]
        assert band["data_type"] == real_band["data_type"]
        assert band.get("scale") == real_band.get("scale")
    assert set(item["stac_extensions"]) == set(real["stac_extensions"])
