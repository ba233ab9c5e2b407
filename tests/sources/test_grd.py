"""Backscatter of ground range products: written scenes with a known geometry."""

import numpy as np
import pytest
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from smgrid.grid import pixel_centres
from smgrid.sources.bilinear import Sampling
from smgrid.sources.grd import load_safe
from smgrid.sources.orthorectify import _sample_heights
from tests.safe_scene import Scene, ramps
from tests.sources.grd_builders import (
    PERIOD,
    grd_spec,
    region,
    write_dem,
    write_geoid,
)


def to_place(ds, scene, step=0):
    """Return the line and pixel that the digital numbers of `ramps` say."""
    power = {name: 10 ** (ds[name].values[step].astype(float) / 10) for name in ("vv", "vh")}
    vv, vh = (np.sqrt(p * scene.amplitude**2 + scene.noise) for p in power.values())
    return (vv - 500) / 10, (vh - 500) / 10


@pytest.mark.parametrize(
    "height",
    [0.0, 640.0, lambda x, y: 300 + 0.12 * (x - 638_000) - 0.05 * (y - 5_644_000)],
    ids=["sea level", "plateau", "slope"],
)
def test_every_pixel_comes_from_its_place_in_the_image(tmp_path, height):
    """To a hundredth of a sample, by its own height: terrain correction is really done."""
    scene, grid = Scene(ramps()), region(10)
    spec = grd_spec(tmp_path, scene, dem=write_dem(tmp_path, height))
    line, pixel = to_place(load_safe(spec, grid, PERIOD).compute(), scene)
    x, y = pixel_centres(grid, grid.crs)
    heights = height(x, y) if callable(height) else height
    expected = scene.find(*pixel_centres(grid, "EPSG:4326"), heights)
    seen = np.isfinite(line)
    assert seen.mean() > 0.5
    np.testing.assert_allclose(line[seen], expected[0][seen], atol=0.01)
    np.testing.assert_allclose(pixel[seen], expected[1][seen], atol=0.01)
    rows, columns = scene.shape
    inside = (np.abs(expected[0] - (rows - 1) / 2) < rows / 2 - 0.01) & (
        np.abs(expected[1] - (columns - 1) / 2) < columns / 2 - 0.01
    )
    assert (seen[inside]).all(), "the image ends half a sample beyond its outermost centres"


def test_height_moves_a_pixel_in_range_and_not_in_azimuth(tmp_path):
    scene, grid = Scene(ramps()), region(20, half=(0.003, 0.002))
    places = [
        to_place(load_safe(spec, grid, PERIOD).compute(), scene)
        for spec in (
            grd_spec(tmp_path, scene, dem=write_dem(tmp_path, height, name=f"{height}.tif"))
            for height in (0.0, 300.0)
        )
    ]
    shift = np.nanmean(places[1][1] - places[0][1])
    # A point 300 m up is closer to the satellite by 300 cos(39.1 deg) = 233 m in slant range.
    assert shift == pytest.approx(-300 * np.cos(np.radians(39.1)) / 0.66 / 10, rel=0.02)
    assert abs(np.nanmean(places[1][0] - places[0][0])) < 0.1


def test_a_bright_target_lands_in_its_cell(tmp_path):
    numbers = {"vv": np.full((360, 400), 100, dtype="uint16")}
    numbers["vv"][151, 243] = 60_000
    scene, grid = Scene(numbers), region(10)
    spec = grd_spec(tmp_path, scene, provides=("vv",), dem=write_dem(tmp_path, 200.0))
    vv = load_safe(spec, grid, PERIOD)["vv"].values[0]
    power = np.nan_to_num(10 ** (vv / 10.0))
    y, x = np.indices(grid.shape)
    peak = power > 10 * np.median(power)
    row, column = ((axis * power)[peak].sum() / power[peak].sum() for axis in (y, x))
    longitude, latitude = scene.place(151.0, 243.0, 200.0)
    east, north = Transformer.from_crs("EPSG:4326", grid.crs.proj, always_xy=True).transform(
        longitude, latitude
    )
    expected = (grid.boundingbox.top - north) / 10 - 0.5, (east - grid.boundingbox.left) / 10 - 0.5
    assert (row, column) == pytest.approx(expected, abs=0.25)


@pytest.mark.parametrize("average", ["db", "linear"])
def test_a_cell_is_the_mean_of_its_fine_pixels(tmp_path, average):
    scene, grid = Scene(ramps()), region(100)
    spec = grd_spec(tmp_path, scene, options={"average": average})
    fine = grid.zoom_to(tuple(10 * n for n in grid.shape))
    line, pixel = scene.find(*pixel_centres(fine, "EPSG:4326"))
    found = load_safe(spec, grid, PERIOD).compute()
    assert found["vv"].attrs["averaging"] == average
    assert found["vv"].attrs["convention"] == "sigma0"
    for name, place, size in (("vv", line, 360), ("vh", pixel, 400)):
        power = ((500 + 10 * place) ** 2 - 2000) / 500**2
        values = 10 * np.log10(power) if average == "db" else power
        blocks = values.reshape(grid.shape.y, 10, grid.shape.x, 10).mean(axis=(1, 3))
        expected = blocks if average == "db" else 10 * np.log10(blocks)
        inside = (np.abs(place - size / 2) < size / 2 - 12).reshape(
            grid.shape.y, 10, grid.shape.x, 10
        )
        whole = inside.all(axis=(1, 3)) & np.isfinite(found[name].values[0])
        assert whole.sum() > 50
        np.testing.assert_allclose(found[name].values[0][whole], expected[whole], atol=2e-3)


@pytest.mark.parametrize("average", ["db", "linear"])
def test_what_is_below_the_noise_counts_in_a_mean_of_power_only(tmp_path, average):
    """To the left of pixel 200 less comes back than the noise."""
    numbers = np.full((360, 400), 40, dtype="uint16")
    numbers[:, 200:] = 90
    scene, grid = Scene({"vv": numbers}, noise=2500.0), region(100, half=(0.008, 0.002))
    spec = grd_spec(tmp_path, scene, provides=("vv",), options={"average": average})
    vv = load_safe(spec, grid, PERIOD)["vv"].values[0]
    fine = grid.zoom_to(tuple(10 * n for n in grid.shape))
    _, pixel = scene.find(*pixel_centres(fine, "EPSG:4326"))
    bright = np.clip(pixel - 199, 0, 1).reshape(grid.shape.y, 10, grid.shape.x, 10)
    share = bright.mean(axis=(1, 3))
    dark, light = (40**2 - 2500) / 500**2, (90**2 - 2500) / 500**2
    assert np.isnan(vv[share == 0]).all()
    np.testing.assert_allclose(vv[share == 1], 10 * np.log10(light), atol=1e-4)
    mixed = (share > 0.6) & (share < 0.95)
    assert mixed.any()
    expected = 10 * np.log10((dark + share * (light - dark))[mixed])
    if average == "linear":
        np.testing.assert_allclose(vv[mixed], expected, atol=1e-3)
    else:
        assert (vv[mixed] > expected).all()


def test_slices_of_a_pass_are_joined_without_a_seam(tmp_path):
    whole = ramps()
    first, second = (
        Scene({k: v[part] for k, v in whole.items()}, first=part.start)
        for part in (slice(0, 170), slice(170, 360))
    )
    grid = region(10, half=(0.008, 0.006))
    spec = grd_spec(tmp_path, second, first)
    ds = load_safe(spec, grid, PERIOD).compute()
    assert ds["time"].values.astype("datetime64[s]").astype(str).tolist() == ["2024-03-05T17:32:00"]
    assert np.isfinite(ds["vv"].values).all()
    line, pixel = to_place(ds, first)
    expected = first.find(*pixel_centres(grid, "EPSG:4326"))
    # Within half a line of the seam the nearest line holds.
    np.testing.assert_allclose(line, expected[0], atol=0.51)
    away = np.abs(expected[0] - 169.5) > 0.51
    np.testing.assert_allclose(line[away], expected[0][away], atol=0.01)
    np.testing.assert_allclose(pixel, expected[1], atol=0.01)


def test_samples_without_a_value_are_missing(tmp_path):
    numbers = {"vv": np.full((360, 400), 200, dtype="uint16")}
    numbers["vv"][:, :150] = 0
    scene, grid = Scene(numbers), region(10)
    vv = load_safe(grd_spec(tmp_path, scene, provides=("vv",)), grid, PERIOD)["vv"].values[0]
    line, pixel = scene.find(*pixel_centres(grid, "EPSG:4326"))
    inside = (line > 1) & (line < 358)
    assert np.isnan(vv[inside & (pixel < 149.9)]).all()
    expected = 10 * np.log10((200**2 - 2000) / 500**2)
    np.testing.assert_allclose(vv[inside & (pixel > 150.1) & (pixel < 398)], expected, atol=1e-4)


@pytest.mark.parametrize("layout", ["old", "new"])
def test_border_noise_is_masked_where_the_processor_did_not(tmp_path, layout):
    """By the co-polarised image, in the cross-polarised one as well."""
    numbers = {
        "vv": np.full((360, 400), 200, dtype="uint16"),
        "vh": np.full((360, 400), 25, dtype="uint16"),  # as weak as border noise
    }
    for values in numbers.values():
        values[:, :150] = 20
    scene, grid = Scene(numbers, noise=0.0, noise_layout=layout), region(10)
    spec = grd_spec(tmp_path, scene, provides=("vh",))
    vh = load_safe(spec, grid, PERIOD)["vh"].values[0]
    line, pixel = scene.find(*pixel_centres(grid, "EPSG:4326"))
    strip = (line > 1) & (line < 358) & (pixel > 1) & (pixel < 149)
    land = (line > 1) & (line < 358) & (pixel > 151) & (pixel < 398)
    assert np.isnan(vh[strip]).all() == (layout == "old")
    np.testing.assert_allclose(vh[land], 10 * np.log10(25**2 / 500**2), atol=1e-4)


def test_nothing_depends_on_the_tiles(tmp_path, monkeypatch):
    scene = Scene(ramps())
    hilly = write_dem(tmp_path, lambda x, y: 200 + 150 * np.sin(x / 300) * np.cos(y / 200))
    spec, grid = grd_spec(tmp_path, scene, dem=hilly), region(50)
    whole = load_safe(spec, grid, PERIOD, chunks=64).compute()
    monkeypatch.setattr("smgrid.sources.orthorectify._BLOCK", 35)
    tiles = load_safe(spec, grid, PERIOD, chunks=9)
    assert tiles["vv"].chunks[1:] == tuple(
        tuple(min(9, n - k) for k in range(0, n, 9)) for n in grid.shape
    )
    tasks = [key for key in dict(tiles["vv"].__dask_graph__()) if "orthorectify" in str(key)]
    assert len(tasks) == len(tiles["vv"].chunks[1]) * len(tiles["vv"].chunks[2])
    tiles = tiles.compute()
    for name in ("vv", "vh"):
        np.testing.assert_allclose(tiles[name], whole[name], atol=2e-3)


def test_missing_heights_leave_their_pixels_missing(tmp_path):
    dem = write_dem(tmp_path, lambda x, y: np.where(x < 638_800, 0.0, -9999.0))
    scene, grid = Scene(ramps()), region(10)
    vv = load_safe(grd_spec(tmp_path, scene, dem=dem), grid, PERIOD)["vv"].values[0]
    x, _ = pixel_centres(grid, grid.crs)
    assert np.isnan(vv[x > 638_830]).all()
    assert np.isfinite(vv[x < 638_770]).mean() > 0.5


def test_heights_above_the_geoid_are_lifted_to_the_ellipsoid(tmp_path):
    scene, grid = Scene(ramps()), region(20, half=(0.003, 0.002))
    geoid = {"heights": "geoid", "geoid": write_geoid(tmp_path, 44.0)}
    above = load_safe(grd_spec(tmp_path, scene, options=geoid), grid, PERIOD).compute()
    expected = scene.find(*pixel_centres(grid, "EPSG:4326"), 44.0)
    np.testing.assert_allclose(to_place(above, scene)[1], expected[1], atol=0.02)


def test_a_part_that_needs_a_row_beyond_those_of_its_tile_has_heights():
    """Both are bounded by sampled edges, so that a part may reach a row further than its tile."""
    source = GeoBox.from_bbox((0, 0, 10, 10), "EPSG:32631", resolution=1)
    tile = Sampling(source, source, (slice(4, 8), slice(0, 10)))
    heights = np.arange(100.0, dtype="float32").reshape(10, 10)[tile.taken]
    found = _sample_heights(tile, slice(0, 2), slice(0, 10), heights)
    np.testing.assert_allclose(found, np.arange(40.0, 60.0).reshape(2, 10))

    class Narrow(Sampling):
        @property
        def taken(self):
            rows, columns = super().taken
            return slice(rows.start + 3, rows.stop), columns

    narrow = Narrow(source, source, tile.window)
    found = _sample_heights(narrow, slice(1, 3), slice(0, 10), heights[3:])
    assert np.isfinite(found).all()
