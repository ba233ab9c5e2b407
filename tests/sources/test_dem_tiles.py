"""Terrain against xdem on real heights, and tiles as the Copernicus DEM has them: no seams, sea."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from scipy.ndimage import map_coordinates

from smgrid.catalog import SourceSpec, StacQuery
from smgrid.errors import NoDataError
from smgrid.grid import make_grid, pad_grid, pixel_centres
from smgrid.sources import load_source
from smgrid.windows import Period
from tests.builders import make_item, write_catalog, write_cog

PERIOD = Period.parse("2024")
TERRAIN = ("elevation", "slope", "aspect_sin", "aspect_cos")
SECOND = 1 / 3600


def spec(**changes):
    fields = {
        "name": "dem",
        "loader": "smgrid.sources.dem:load",
        "provides": TERRAIN,
        "native_resolution": 30.0,
        "origin": "test.yml, line 5",
    }
    return SourceSpec(**(fields | changes))


def xdem_terrain(heights, resolution):
    """Slope [degree] and the components of aspect by xdem, a ring of NaN around them."""
    import xdem  # slow to import, and only these tests need it

    slope, aspect = xdem.terrain.get_terrain_attribute(
        heights.astype("float64"),
        ["slope", "aspect"],
        resolution=resolution,
        surface_fit="Horn",
        out_dtype="float64",
    )
    angle = np.radians(aspect)
    is_flat = slope < 1e-4
    return {
        "slope": slope,
        "aspect_sin": np.where(is_flat, 0, np.sin(angle)),
        "aspect_cos": np.where(is_flat, 0, np.cos(angle)),
    }


def block_mean(values, k):
    rows, cols = values.shape
    return values.reshape(rows // k, k, cols // k, k).mean((1, 3))


def assert_like(ds, expected, *, inner=1):
    inside = (slice(inner, -inner), slice(inner, -inner))
    for name, values in expected.items():
        np.testing.assert_allclose(
            ds[name].values[inside], values[inside], atol=1e-3, rtol=0, err_msg=name
        )


@pytest.fixture(scope="module")
def lecco(shared):
    path = shared / "data/real/dem/DEM_5m_Lecco_Lombardy.tif"
    with rasterio.open(path) as src:
        native = GeoBox(src.shape, src.transform, str(src.crs))
        return path, native, src.read(1).astype("float32")


@pytest.mark.shared
def test_pixel_by_pixel_like_xdem_on_a_real_model(lecco):
    path, native, heights = lecco
    window = (slice(700, 1000), slice(900, 1250))
    entry = spec(assets={"elevation": str(path)}, native_resolution=5.0)
    ds = load_source(entry, native[window], PERIOD, chunks=128).compute()
    np.testing.assert_array_equal(ds["elevation"], heights[window])
    assert_like(ds, xdem_terrain(heights[window], 5.0), inner=2)
    # Mountains above a lake: steep, in every direction, and flat.
    assert float(ds["slope"].max()) > 60
    assert float(ds["slope"].min()) == 0


@pytest.mark.shared
def test_means_of_cells_like_xdem_on_a_real_model(lecco):
    path, native, heights = lecco
    grid = native[300:1300, 400:1600].zoom_to((50, 60))
    entry = spec(assets={"elevation": str(path)}, native_resolution=5.0)
    ds = load_source(entry, grid, PERIOD, chunks=32).compute()
    fine = xdem_terrain(heights[290:1310, 390:1610], 5.0)
    expected = {name: block_mean(field[10:-10, 10:-10], 20) for name, field in fine.items()}
    expected["elevation"] = block_mean(heights[300:1300, 400:1600].astype(float), 20)
    assert_like(ds, {name: field for name, field in expected.items() if name != "elevation"})
    np.testing.assert_allclose(ds["elevation"], expected["elevation"], atol=2e-3)


@pytest.mark.shared
def test_a_real_model_in_degrees_like_scipy_and_xdem(shared):
    path = shared / "data/real/dem/Rome-30m-DEM.tif"
    grid = make_grid(bbox=(12.46, 41.96, 12.54, 42.04), resolution=90)
    ds = load_source(spec(assets={"elevation": str(path)}), grid, PERIOD, chunks=40).compute()
    fine = pad_grid(grid.zoom_to(tuple(3 * n for n in grid.shape)), 3)
    to_lonlat = Transformer.from_crs(grid.crs.proj, "EPSG:4326", always_xy=True)
    x = fine.affine.c + fine.affine.a * (np.arange(fine.shape.x) + 0.5)
    y = fine.affine.f + fine.affine.e * (np.arange(fine.shape.y) + 0.5)
    lon, lat = to_lonlat.transform(*np.meshgrid(x, y))
    with rasterio.open(path) as src:
        a = src.transform
        position = [(lat - a.f) / a.e - 0.5, (lon - a.c) / a.a - 0.5]
        heights = map_coordinates(src.read(1).astype(float), position, order=1)
    terrain = xdem_terrain(heights, 30.0)
    expected = {name: block_mean(field[3:-3, 3:-3], 3) for name, field in terrain.items()}
    assert_like(ds, expected, inner=1)
    elevation = block_mean(heights[3:-3, 3:-3], 3)
    np.testing.assert_allclose(ds["elevation"], elevation, atol=1e-3)


def tile_of(folder, west, south, height_of, *, reach=70):
    """Write the part of a one-degree tile around 3 E 50 N, its pixels where GLO-30 has them.

    The first pixel of a tile is centred on its western and northern whole degree; the spacing in
    longitude is 1" south of 50 N and 1.5" north of it.
    """
    width = (1.5 if south >= 50 else 1.0) * SECOND
    shape = (3600, round(1 / width))
    tile = GeoBox(
        shape,
        Affine(width, 0, west - width / 2, 0, -SECOND, south + 1 + SECOND / 2),
        "EPSG:4326",
    )
    rows = slice(0, reach) if south < 50 else slice(3600 - reach, 3600)
    cols = slice(0, reach) if west >= 3 else slice(shape[1] - reach, shape[1])
    part = tile[rows, cols]
    lon, lat = pixel_centres(part, "EPSG:4326")
    path = write_cog(
        folder / f"N{south}E{west}.tif", height_of(lon, lat).astype("float32"), part, nodata=-32767
    )
    return path, make_item(f"dem_{south}_{west}", part, {"data": path}, start="2021-04-22")


CORNERS = [(2, 49), (3, 49), (2, 50), (3, 50)]
TO_UTM = Transformer.from_crs("EPSG:4326", "EPSG:32631", always_xy=True)
# 1.4 km x 1.8 km around the corner of four tiles.
AROUND = make_grid(bbox=(2.9905, 49.9925, 3.0095, 50.0075), resolution=30)


def hills(lon, lat):
    x, y = TO_UTM.transform(lon, lat)
    return 300 + 40 * np.sin(x / 211) * np.cos(y / 173) + 0.05 * (x - 500_000)


def hills_terrain(x, y):
    eastward = 40 / 211 * np.cos(x / 211) * np.cos(y / 173) + 0.05
    northward = -40 / 173 * np.sin(x / 211) * np.sin(y / 173)
    steepness = np.hypot(eastward, northward)
    slope = np.degrees(np.arctan(steepness))
    return slope, -eastward / steepness, -northward / steepness


def tiles_spec(tmp_path, corners, height_of):
    items = [tile_of(tmp_path, west, south, height_of)[1] for west, south in corners]
    href = write_catalog(tmp_path / "stac", "dem", items)
    return spec(stac=StacQuery(str(href), "dem"), assets={"elevation": "data"})


def test_four_tiles_of_two_spacings_have_no_seam(tmp_path):
    ds = load_source(tiles_spec(tmp_path, CORNERS, hills), AROUND, PERIOD).compute()
    slope, sine, cosine = hills_terrain(*pixel_centres(AROUND, AROUND.crs))
    lon, lat = pixel_centres(AROUND, "EPSG:4326")
    error = abs(ds["slope"].values - slope)
    # What is left is the curvature of the hills within Horn's window of 90 m.
    assert np.isfinite(error).all()
    assert error.max() < 0.8
    at_seam = (abs(lat - 50) < 2 * SECOND) | (abs(lon - 3) < 2 * SECOND)
    assert 200 < at_seam.sum() < 400
    assert error[at_seam].max() < 1.05 * error[~at_seam].max()
    assert error[at_seam].mean() < 1.25 * error[~at_seam].mean()
    np.testing.assert_allclose(ds["elevation"], hills(lon, lat), atol=0.3)
    is_steep = slope > 3
    np.testing.assert_allclose(ds["aspect_sin"].values[is_steep], sine[is_steep], atol=0.12)
    np.testing.assert_allclose(ds["aspect_cos"].values[is_steep], cosine[is_steep], atol=0.12)


def test_no_chunk_changes_the_terrain_across_the_tiles_of_a_model(tmp_path):
    entry = tiles_spec(tmp_path, CORNERS, hills)
    whole = load_source(entry, AROUND, PERIOD).compute()
    for chunks in (13, 32):
        tiled = load_source(entry, AROUND, PERIOD, chunks=chunks).compute()
        for name in TERRAIN:
            np.testing.assert_array_equal(tiled[name], whole[name], err_msg=name)
    # Nor does the region: neighbouring cubes fit together.
    part = AROUND[11:40, 17:]
    ds = load_source(entry, part, PERIOD, chunks=13).compute()
    for name in TERRAIN:
        np.testing.assert_allclose(ds[name], whole[name][11:40, 17:], atol=2e-4, err_msg=name)


def test_no_chunk_changes_the_terrain_beside_holes(tmp_path):
    native = pad_grid(AROUND, 4)
    x, y = pixel_centres(native, native.crs)
    heights = (300 + 40 * np.sin(x / 211) * np.cos(y / 173)).astype("float32")
    heights[np.random.default_rng(0).random(native.shape) < 0.15] = -32767
    path = write_cog(tmp_path / "dem.tif", heights, native, nodata=-32767)
    entry = spec(assets={"elevation": str(path)})
    whole = load_source(entry, AROUND, PERIOD).compute()
    assert 0.05 < np.isnan(whole["slope"].values).mean() < 0.9
    tiled = load_source(entry, AROUND, PERIOD, chunks=6).compute()
    for name in TERRAIN:
        np.testing.assert_array_equal(tiled[name], whole[name], err_msg=name)


def test_tiles_may_be_local_files(tmp_path):
    expected = load_source(tiles_spec(tmp_path, CORNERS, hills), AROUND, PERIOD).compute()
    far = GeoBox.from_bbox((8, 48, 8.01, 48.01), "EPSG:4326", resolution=SECOND)
    write_cog(tmp_path / "N48E008.tif", np.full(far.shape, 9, "float32"), far)
    entry = spec(paths=(f"{tmp_path}/N*.tif",))
    ds = load_source(entry, AROUND, PERIOD).compute()
    for name in TERRAIN:
        np.testing.assert_array_equal(ds[name], expected[name], err_msg=name)
    elsewhere = make_grid(bbox=(20.0, 10.0, 20.01, 10.01), resolution=30)
    with pytest.raises(NoDataError, match=r"N48E008\.tif and 4 other files .* do not overlap"):
        load_source(entry, elsewhere, PERIOD)


def test_open_sea_is_missing_and_sea_inside_of_a_tile_is_flat(tmp_path):
    def coast(lon, lat):
        return np.where(lon < 2.997, hills(lon, lat), 0.0)

    # No tile east of 3 E, where nothing but sea is.
    ds = load_source(tiles_spec(tmp_path, [(2, 49), (2, 50)], coast), AROUND, PERIOD).compute()
    lon, _ = pixel_centres(AROUND, "EPSG:4326")
    sea_of_a_tile = (lon > 2.9978) & (lon < 2.9992)
    for name in TERRAIN:
        assert np.isnan(ds[name].values[lon > 3 + SECOND]).all(), name
        assert np.isfinite(ds[name].values[lon < 3 - 2 * SECOND]).all(), name
        np.testing.assert_allclose(ds[name].values[sea_of_a_tile], 0, atol=1e-6, err_msg=name)


def test_a_region_of_nothing_but_sea_has_no_data(tmp_path):
    entry = tiles_spec(tmp_path, [(2, 49)], hills)
    with pytest.raises(NoDataError, match=r"dem \(dem\) has no data for any time"):
        load_source(entry, make_grid(bbox=(3.1, 49.9, 3.11, 49.91), resolution=30), PERIOD)
