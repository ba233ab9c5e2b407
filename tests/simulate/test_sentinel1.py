import hashlib
import json

import numpy as np
import pandas as pd
import pytest
import rasterio

from smgrid.grid import transform_points
from smgrid.simulate.orbits import TRACKS, swath_angle
from smgrid.simulate.radar import soil_backscatter
from smgrid.simulate.sentinel1 import Sentinel1Writer, scene_grid
from smgrid.windows import Period

PERIOD = Period.parse(("2022-01-01", "2022-01-10"))  # one pass of each track
LOOKS = 1e9  # no speckle to speak of


@pytest.fixture(scope="module")
def scene_of(land, make_day, tmp_path_factory):
    """Make the scene of the first pass for a field of moisture."""

    def scene(moisture):
        root = tmp_path_factory.mktemp("scene")
        writer = Sentinel1Writer(root, land, scenes=PERIOD, spacing=20, looks=LOOKS, seed=1)
        writer.observe(make_day("2022-01-02", moisture=moisture))
        (item,) = writer.items
        path = root / "sentinel-1-rtc" / item["id"] / "iw-vv.rtc.tiff"
        with rasterio.open(path) as file:
            return item, file.read(1, masked=True), file.transform, file.crs

    return scene


def test_a_wet_pixel_is_bright_exactly_where_it_is(scene_of, land):
    dry = np.full(land.frame.domain.shape, 0.1, dtype=np.float32)
    wet = dry.copy()
    wet[land.frame.inner][30, 41] = 0.4
    _, before, transform, _ = scene_of(dry)
    _, after, _, _ = scene_of(wet)
    rows, columns = np.nonzero((after / before).filled(1) > 1.05)
    box = land.frame.base.boundingbox
    left, top = box.left + 41 * 100, box.top - 30 * 100
    x0, x1 = (transform.c + 20 * edge for edge in (columns.min(), columns.max() + 1))
    y0, y1 = (transform.f - 20 * edge for edge in (rows.min(), rows.max() + 1))
    assert (x0, y0, x1, y1) == (left, top, left + 100, top - 100)
    assert len(rows) == 25


def test_moisture_makes_the_dynamic_of_bare_soil(scene_of):
    _, dry, _, _ = scene_of(0.08)
    _, wet, _, _ = scene_of(0.36)
    change = 10 * np.ma.log10(wet / dry)
    assert 3 < np.ma.median(change) < 6


def test_values_are_gamma0_in_linear_power(scene_of, land):
    """The water cloud over Oh's soil, written out, divided by the cosine of the angle."""
    _, vv, _, _ = scene_of(0.2)
    grid = scene_grid(land.frame.base, 20)
    parcel = land.parcels.locate(grid)
    angle = swath_angle(TRACKS[0], grid, land.frame.base)
    cosine = np.cos(np.radians(angle))
    soil, _ = soil_backscatter(0.2, 1.13279 * land.parcels.rms_height[parcel], angle)
    ndvi = land.parcels.floor[parcel]  # outside of the growing season
    through = np.exp(-2 * 0.5513 * ndvi / cosine)
    sigma0 = 0.0950 * ndvi * cosine * (1 - through) + through * soil
    seen = np.isfinite(angle)
    assert np.array_equal(seen, ~vv.mask)
    np.testing.assert_allclose(vv.data[seen], (sigma0 / cosine)[seen], rtol=1e-3)


def test_scenes_are_utm_cogs_with_overviews(world):
    for path in sorted((world.stac.parent / "sentinel-1-rtc").glob("*/*.tiff")):
        with rasterio.open(path) as file:
            assert file.crs == rasterio.CRS.from_epsg(32630)
            assert file.dtypes == ("float32",)
            assert file.nodata == -32768
            assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            assert file.res == (20, 20)
            assert file.transform.c % 20 == 0
            values = file.read(1, masked=True)
        assert (values.compressed() > 0).all()
        assert 0 < values.mask.mean() < 0.1  # the wedge beyond the swath
        bounds = world.grid.boundingbox
        window = rasterio.windows.from_bounds(*bounds, transform=file.transform)
        assert not values[window.round().toslices()].mask.any()


def test_overviews_are_written_for_large_scenes(land, make_day, tmp_path):
    writer = Sentinel1Writer(tmp_path, land, scenes=PERIOD, spacing=10, looks=4.4, seed=1)
    writer.observe(make_day("2022-01-02"))
    with rasterio.open(next(tmp_path.glob("*/*/iw-vv.rtc.tiff"))) as file:
        assert file.overviews(1)
        assert file.block_shapes == [(256, 256)]


def test_backscatter_is_plausible_and_speckled(world):
    for key, low, high in (("vv", -18, -6), ("vh", -25, -12)):
        paths = sorted((world.stac.parent / "sentinel-1-rtc").glob(f"*/iw-{key}.rtc.tiff"))
        stack = []
        for path in paths:
            with rasterio.open(path) as file:
                stack.append(file.read(1, masked=True))
        stack = np.ma.stack(stack)
        field = 10 * np.ma.log10(stack[:, 20:120, 20:120].reshape(-1, 20, 5, 20, 5).mean((2, 4)))
        assert np.ma.masked_outside(field, low, high).count() > 0.9 * field.count()
        # Within a 100 m pixel moisture is constant: mostly speckle varies, by 1 / looks at least.
        blocks = stack[:, 20:120, 20:120].reshape(-1, 20, 5, 20, 5)
        noise = (blocks.var((2, 4)) / blocks.mean((2, 4)) ** 2) * 25 / 24
        assert 0.75 / 4.4 < np.ma.median(noise) < 1.4 / 4.4


def test_backscatter_follows_the_truth(world):
    import xarray as xr

    truth = xr.open_zarr(world.truth)["soil_moisture"].mean(("y", "x")).compute()
    found = []
    for path in sorted((world.stac.parent / "sentinel-1-rtc").glob("*/*.json")):
        item = json.loads(path.read_text())
        with rasterio.open(path.parent / "iw-vv.rtc.tiff") as file:
            day = pd.Timestamp(item["properties"]["datetime"]).tz_localize(None).normalize()
            found.append(
                (
                    item["properties"]["sat:orbit_state"],
                    10 * np.log10(file.read(1, masked=True).mean()),
                    float(truth.sel(time=day)),
                )
            )
    assert len(found) == 10
    table = pd.DataFrame(found, columns=["orbit", "vv", "sm"])
    anomaly = table[["vv", "sm"]] - table.groupby("orbit")[["vv", "sm"]].transform("mean")
    assert np.corrcoef(anomaly["vv"], anomaly["sm"])[0, 1] > 0.7


def test_items_have_the_properties_of_recorded_ones(world, shared):
    folder = shared / "data/real/stac_responses/planetary_computer"
    real = json.loads((folder / "items_sentinel-1-rtc.json").read_text())["features"][0]
    paths = sorted((world.stac.parent / "sentinel-1-rtc").glob("*/*.json"))
    item = json.loads(paths[0].read_text())
    found, expected = item["properties"], real["properties"]
    assert {k: type(v) for k, v in found.items()} == {k: type(v) for k, v in expected.items()}
    same = (
        "platform",
        "constellation",
        "sar:instrument_mode",
        "sar:polarizations",
        "s1:resolution",
    )
    for key in same:
        assert found[key] == expected[key]
    for key in ("proj:bbox", "proj:shape", "proj:transform"):
        assert [type(v) for v in found[key]] == [type(v) for v in expected[key]]
    assert set(item["stac_extensions"]) == set(real["stac_extensions"])
    assert item["stac_version"] == real["stac_version"]
    for key in ("vv", "vh"):
        assert set(item["assets"][key]) == set(real["assets"][key])
        assert item["assets"][key]["type"] == real["assets"][key]["type"]
        bands = item["assets"][key]["raster:bands"][0], real["assets"][key]["raster:bands"][0]
        assert bands[0].keys() == bands[1].keys()
        assert bands[0]["nodata"] == bands[1]["nodata"]
    assert len(found["start_datetime"]) == len(expected["start_datetime"])


def test_items_describe_their_files(world):
    for path in (world.stac.parent / "sentinel-1-rtc").glob("*/*.json"):
        item = json.loads(path.read_text())
        p = item["properties"]
        start, end = pd.Timestamp(p["start_datetime"]), pd.Timestamp(p["end_datetime"])
        assert start < pd.Timestamp(p["datetime"]) < end
        assert item["id"].split("_")[4] == f"{start:%Y%m%dT%H%M%S}"
        assert int(item["id"].split("_")[6]) == p["sat:absolute_orbit"]
        for asset in item["assets"].values():
            content = (path.parent / asset["href"]).read_bytes()
            assert asset["file:size"] == len(content)
            assert asset["file:checksum"] == hashlib.md5(content).hexdigest()
            with rasterio.open(path.parent / asset["href"]) as file:
                assert list(file.transform) == p["proj:transform"]
                assert list(file.shape) == p["proj:shape"]
                assert list(file.bounds) == p["proj:bbox"]
                assert file.crs.to_epsg() == p["proj:epsg"]
        box = p["proj:bbox"]
        x, y = np.array([box[0], box[2]]), np.array([box[1], box[3]])
        lon, lat = transform_points(x, y, "EPSG:32630", "EPSG:4326")
        assert item["bbox"][0] <= lon[0] + 1e-6
        assert item["bbox"][3] >= lat[1] - 1e-6


def test_angles_have_one_raster_per_relative_orbit(world):
    scenes = {
        (p["sat:relative_orbit"], p["sat:orbit_state"])
        for path in (world.stac.parent / "sentinel-1-rtc").glob("*/*.json")
        for p in [json.loads(path.read_text())["properties"]]
    }
    angles = {}
    for path in (world.stac.parent / "sentinel-1-angle").glob("*/*.json"):
        item = json.loads(path.read_text())
        with rasterio.open(path.parent / item["assets"]["angle"]["href"]) as file:
            values = file.read(1, masked=True)
        p = item["properties"]
        angles[p["sat:relative_orbit"], p["sat:orbit_state"]] = values
    assert angles.keys() == scenes
    means = sorted(values.mean() for values in angles.values())
    assert means == pytest.approx([34, 39], abs=0.1)
    assert all(30 < v.min() < v.max() < 45 for v in angles.values())
