"""Terrain: tilted planes, an independent slope and aspect, seams between tiles, real heights."""

import dask
import numpy as np
import pytest
import rasterio
import xarray as xr
import xrspatial
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec, StacQuery
from smgrid.errors import CatalogError, GridError, NoDataError, SchemaError
from smgrid.grid import ease_grid, grid_coords, make_grid, pad_grid, pixel_centres
from smgrid.resample import area_average
from smgrid.sources import load_source
from smgrid.sources.bilinear import bilinear
from smgrid.sources.dem import compute_gradient, load
from smgrid.windows import Period
from tests.builders import make_item, utm_grid, write_catalog, write_cog

PERIOD = Period.parse("2024")
TERRAIN = ("elevation", "slope", "aspect_sin", "aspect_cos")
GRID = utm_grid((6, 5), 90)
NATIVE = pad_grid(GRID.zoom_to((18, 15)), 6)
DIRECTIONS = [0, 45, 90, 135, 180, 225, 270, 315]


def spec(path, **changes):
    fields = {
        "name": "dem",
        "loader": "smgrid.sources.dem:load",
        "provides": TERRAIN,
        "assets": {"elevation": str(path)},
        "native_resolution": 30.0,
        "origin": "test.yml, line 5",
    }
    return SourceSpec(**(fields | changes))


def plane(geobox, aspect, slope):
    """Heights that fall by `slope` degrees towards `aspect`, clockwise from north."""
    x, y = pixel_centres(geobox, geobox.crs)
    east, north = np.sin(np.radians(aspect)), np.cos(np.radians(aspect))
    fall = np.tan(np.radians(slope))
    return (500.0 - fall * (east * (x - x.mean()) + north * (y - y.mean()))).astype("float32")


def rough(geobox, seed=0):
    """Hills of several sizes, smooth between pixels."""
    x, y = (axis / 1000.0 for axis in pixel_centres(geobox, geobox.crs))
    rng = np.random.default_rng(seed)
    heights = np.full(geobox.shape, 800.0)
    for wave in (9.0, 4.0, 2.0, 1.0):
        phase = rng.uniform(0, 6, 2)
        heights += 25 * wave * np.sin(x / wave + phase[0]) * np.cos(y / wave + phase[1])
    return heights.astype("float32")


def degrees_around(grid):
    """Return a lattice of 1 second of arc that covers a grid."""
    box = pad_grid(grid, 8).footprint("EPSG:4326").boundingbox
    return GeoBox.from_bbox(box.bbox, "EPSG:4326", resolution=1 / 3600)


@pytest.mark.parametrize("aspect", DIRECTIONS)
@pytest.mark.parametrize("crs", ["grid", "EPSG:4326"])
def test_tilted_plane(tmp_path, aspect, crs):
    native = NATIVE if crs == "grid" else degrees_around(GRID)
    x, y = pixel_centres(native, GRID.crs)
    centre = GRID.boundingbox
    east, north = np.sin(np.radians(aspect)), np.cos(np.radians(aspect))
    fall = np.tan(np.radians(11))
    heights = 500 - fall * (east * (x - centre.left) + north * (y - centre.top))
    path = write_cog(tmp_path / "dem.tif", heights.astype("float32"), native)
    ds = load_source(spec(path), GRID, PERIOD).compute()
    tolerance = 2e-3 if crs == "grid" else 2e-2
    np.testing.assert_allclose(ds["slope"], 11, atol=tolerance)
    np.testing.assert_allclose(ds["aspect_sin"], east, atol=tolerance / 10)
    np.testing.assert_allclose(ds["aspect_cos"], north, atol=tolerance / 10)
    cx, cy = pixel_centres(GRID, GRID.crs)
    expected = 500 - fall * (east * (cx - centre.left) + north * (cy - centre.top))
    np.testing.assert_allclose(ds["elevation"], expected, atol=0.02)


@pytest.mark.parametrize("aspect", [0, 45, 90, 250])
def test_distances_on_ease_grids_are_those_on_the_ground(tmp_path, aspect):
    """At 50.5 N a pixel of 1 km on the map is 0.73 km wide and 1.36 km high."""
    grid = ease_grid(1, (2.98, 50.48, 3.02, 50.52))
    around = grid.footprint("EPSG:32631").boundingbox.buffered(900)
    native = GeoBox.from_bbox(around.bbox, "EPSG:32631", resolution=30)
    path = write_cog(tmp_path / "dem.tif", plane(native, aspect, 11), native)
    ds = load_source(spec(path), grid, PERIOD).compute()
    np.testing.assert_allclose(ds["slope"], 11, atol=0.02)
    np.testing.assert_allclose(ds["aspect_sin"], np.sin(np.radians(aspect)), atol=3e-3)
    np.testing.assert_allclose(ds["aspect_cos"], np.cos(np.radians(aspect)), atol=3e-3)


def test_flat_ground_has_no_aspect(tmp_path):
    native = degrees_around(GRID)
    heights = np.full(native.shape, 123.4, "float32")
    ds = load_source(spec(write_cog(tmp_path / "dem.tif", heights, native)), GRID, PERIOD).compute()
    np.testing.assert_allclose(ds["slope"], 0, atol=1e-12)
    np.testing.assert_array_equal(ds["aspect_sin"], 0)
    np.testing.assert_array_equal(ds["aspect_cos"], 0)


def test_flat_pixels_dilute_the_components(tmp_path):
    # The ground falls eastwards in the western half of a cell and is flat in the eastern half.
    grid = utm_grid((1, 1), 100)
    native = pad_grid(grid.zoom_to((4, 4)), 6)
    x, _ = pixel_centres(native, native.crs)
    middle = 500_000 + 50
    heights = np.where(x < middle, (middle - x) * 0.1, 0).astype("float32")
    path = write_cog(tmp_path / "d.tif", heights, native)
    ds = load_source(spec(path, native_resolution=25.0), grid, PERIOD).compute()
    # Of the columns at 12.5, 37.5, 62.5, 87.5 m the window of the third still sees the foot.
    np.testing.assert_allclose(ds["aspect_sin"], [[0.75]], atol=1e-6)
    np.testing.assert_allclose(ds["aspect_cos"], [[0.0]], atol=1e-6)


def test_agrees_with_xarray_spatial_on_the_same_lattice(tmp_path):
    heights = rough(NATIVE)
    ds = load_source(spec(write_cog(tmp_path / "dem.tif", heights, NATIVE)), GRID, PERIOD).compute()
    _assert_like_xrspatial(ds, heights, NATIVE, GRID, atol=2e-4)


def _assert_like_xrspatial(ds, heights, fine, grid, *, atol):
    da = xr.DataArray(heights.astype("float64"), dims=("y", "x"), coords=grid_coords(fine))
    da.attrs["res"] = (fine.resolution.x, -fine.resolution.y)
    slope, aspect = xrspatial.slope(da), np.radians(xrspatial.aspect(da))
    is_flat = aspect < 0
    for name, field in {
        "slope": slope,
        "aspect_sin": np.sin(aspect).where(~is_flat, 0),
        "aspect_cos": np.cos(aspect).where(~is_flat, 0),
    }.items():
        np.testing.assert_allclose(ds[name], area_average(field, grid), atol=atol, err_msg=name)
    np.testing.assert_allclose(ds["elevation"], area_average(da, grid), atol=1e-3)


def test_gradient_of_horn_by_hand():
    z = np.array([[1.0, 2, 4], [2, 99, 7], [3, 5, 9]])
    eastward, northward = compute_gradient(z, width=10.0, height=5.0)
    assert eastward[1, 1] == ((4 + 14 + 9) - (1 + 4 + 3)) / 80
    assert northward[1, 1] == ((1 + 4 + 4) - (3 + 10 + 9)) / 40
    assert np.isnan(eastward).sum() == 8


@pytest.mark.parametrize(("row", "col"), [(1, 1), (0, 0), (1, 2)])
def test_gradient_is_missing_where_any_height_is(row, col):
    z = np.arange(9.0).reshape(3, 3)
    z[row, col] = np.nan
    assert np.isnan(compute_gradient(z, width=1.0, height=1.0)[0]).all()


def test_missing_heights(tmp_path):
    # 3 x 3 fine pixels per cell: a hole of one leaves 8 of 9 heights and gradients.
    heights = rough(NATIVE)
    heights[6 + 4, 6 + 4] = -9999
    path = write_cog(tmp_path / "dem.tif", heights, NATIVE, nodata=-9999)
    ds = load_source(spec(path), GRID, PERIOD).compute()
    whole = write_cog(tmp_path / "whole.tif", rough(NATIVE), NATIVE, nodata=-9999)
    expected = load_source(spec(whole), GRID, PERIOD).compute()
    for name in ("elevation", "slope"):
        assert np.isfinite(ds[name]).all()
        changed = ds[name].values != expected[name].values
        assert changed[1, 1]
        assert changed.sum() <= 9


def test_the_last_heights_of_a_model_have_a_slope(tmp_path):
    """A plane is continued exactly, whichever side it ends on, in tiles of any size."""
    y, x = np.mgrid[: NATIVE.shape.y, : NATIVE.shape.x]
    plane = (3.0 * x - 2.0 * y).astype("float32")
    path = write_cog(tmp_path / "dem.tif", plane, NATIVE, nodata=-9999)
    grid = GeoBox(NATIVE.shape, NATIVE.affine, NATIVE.crs)
    first = load_source(spec(path), grid, PERIOD).compute()
    np.testing.assert_allclose(first["slope"], first["slope"].values[3, 3], rtol=1e-5)
    tiled = load_source(spec(path), grid, PERIOD, chunks=4).compute()
    np.testing.assert_array_equal(tiled["slope"], first["slope"])


def test_tiles_leave_no_seams_and_chunks_do_not_matter(tmp_path):
    native = degrees_around(GRID)
    x, y = pixel_centres(native, "EPSG:32631")
    heights = (200 + 30 * np.sin(x / 300) * np.cos(y / 400)).astype("float32")
    path = write_cog(tmp_path / "dem.tif", heights, native)
    whole = load_source(spec(path), GRID, PERIOD).compute()
    for chunks in (2, 4):
        tiled = load_source(spec(path), GRID, PERIOD, chunks=chunks)
        assert tiled["slope"].chunksizes["y"][0] == chunks
        for name in TERRAIN:
            np.testing.assert_array_equal(tiled[name].values, whole[name].values, err_msg=name)


def test_the_lattice_follows_the_spacing_of_the_heights(tmp_path):
    path = write_cog(tmp_path / "dem.tif", rough(NATIVE), NATIVE)
    fine = load_source(spec(path), GRID, PERIOD)["slope"].values
    coarse = load_source(spec(path, native_resolution=90.0), GRID, PERIOD)["slope"].values
    # A wider window smooths: the same ground is less steep.
    assert (coarse < fine).all()


def test_a_grid_finer_than_the_heights(tmp_path):
    grid = utm_grid((8, 8), 10, left=500_100, top=5_599_900)
    heights = plane(NATIVE, 90, 5)
    ds = load_source(spec(write_cog(tmp_path / "d.tif", heights, NATIVE)), grid, PERIOD).compute()
    np.testing.assert_allclose(ds["slope"], 5, atol=1e-3)
    np.testing.assert_allclose(ds["aspect_sin"], 1, atol=1e-5)


def copernicus_tile(folder, west, south, spacing, height_of):
    """Write a tile as the Copernicus DEM has them: pixel centres on whole degrees."""
    a, e = spacing / 3600, 1 / 60
    shape = (60, round(1 / a))
    left, top = west - a / 2, south + 1 + e / 2
    geobox = GeoBox.from_bbox((left, top - 1, left + 1, top), "EPSG:4326", shape=shape, tight=True)
    lon, lat = pixel_centres(geobox, "EPSG:4326")
    path = write_cog(folder / f"{south}_{west}.tif", height_of(lon, lat).astype("float32"), geobox)
    return make_item(f"dem_{south}_{west}", geobox, {"data": path}, start="2021-04-22")


def test_tiles_of_different_longitude_spacing_join_without_a_seam(tmp_path):
    # Spacing 60" south of 50 N and 90" north of it, as GLO-30 has 1" and 1.5".
    def height_of(lon, lat):
        return 1000 + 3000 * (lat - 50) + 2000 * (lon - 3)

    items = [
        copernicus_tile(tmp_path, west, south, spacing, height_of)
        for west in (2, 3)
        for south, spacing in ((49, 60), (50, 90))
    ]
    href = write_catalog(tmp_path / "stac", "dem", items)
    entry = spec(
        "data",
        stac=StacQuery(str(href), "dem"),
        assets={"elevation": "data"},
        native_resolution=1800.0,
    )
    grid = make_grid(bbox=(2.9, 49.9, 3.1, 50.1), resolution=1800)
    ds = load_source(entry, grid, PERIOD).compute()
    assert np.isfinite(ds["slope"]).all()
    lon, lat = pixel_centres(grid, "EPSG:4326")
    # A plane in degrees is almost one in metres: a seam would stand out by far more.
    np.testing.assert_allclose(ds["elevation"], height_of(lon, lat), atol=1.0)
    assert float(ds["slope"].max() - ds["slope"].min()) < 0.02


def test_nothing_is_read_when_loading(tmp_path):
    path = write_cog(tmp_path / "dem.tif", rough(NATIVE), NATIVE)

    def refuse(*_, **__):
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        load(spec(path), GRID, PERIOD)


def test_degrees_and_distorted_maps_are_refused(tmp_path):
    path = write_cog(tmp_path / "dem.tif", rough(NATIVE), NATIVE)
    degrees = make_grid(bbox=(3.0, 50.5, 3.01, 50.51), resolution=0.001, crs="EPSG:4326")
    with pytest.raises(GridError, match=r"slopes need a grid in metres.*crs='utm'"):
        load(spec(path), degrees, PERIOD)
    mollweide = make_grid(bbox=(-60.0, 50.4, -59.9, 50.5), resolution=900, crs="ESRI:54009")
    with pytest.raises(GridError, match=r"distances on ESRI:54009 are wrong by \d+%"):
        load(spec(path), mollweide, PERIOD)


def test_other_mistakes(tmp_path):
    path = write_cog(tmp_path / "dem.tif", rough(NATIVE), NATIVE)
    with pytest.raises(CatalogError, match=r"line 5: options\.smooth of dem: unknown key"):
        load(spec(path, options={"smooth": 1}), GRID, PERIOD)
    with pytest.raises(CatalogError, match="provides elevation, slope"):
        load(spec(path, provides=("sand",)), GRID, PERIOD)
    with pytest.raises(CatalogError, match="native_resolution of dem is missing"):
        load(spec(path, native_resolution=0.0), GRID, PERIOD)
    with pytest.raises(NoDataError, match="they do not overlap"):
        load(spec(path), utm_grid((4, 4), 100, left=600_000), PERIOD)


def test_units_of_the_heights(tmp_path):
    path = write_cog(tmp_path / "cm.tif", rough(NATIVE) * 100, NATIVE)
    with pytest.raises(SchemaError, match="elevation in the digital elevation model"):
        load_source(spec(path), GRID, PERIOD).compute()
    ds = load_source(spec(path, units={"elevation": "cm"}), GRID, PERIOD)
    expected = load_source(spec(write_cog(tmp_path / "m.tif", rough(NATIVE), NATIVE)), GRID, PERIOD)
    np.testing.assert_allclose(ds["slope"].values, expected["slope"].values, atol=1e-3)


@pytest.mark.shared
def test_real_heights_with_a_compound_crs(shared):
    path = shared / "data/real/dem/Rome-30m-DEM.tif"
    grid = make_grid(bbox=(12.47, 41.97, 12.53, 42.03), resolution=100)
    ds = load_source(spec(path), grid, PERIOD).compute()
    assert all(np.isfinite(ds[name]).all() for name in TERRAIN)
    assert 5 < float(ds["elevation"].min()) < float(ds["elevation"].max()) < 150
    # The same lattice, given to xarray-spatial.
    with rasterio.open(path) as src:
        native = GeoBox(src.shape, src.transform, "EPSG:4326")
        heights = src.read(1)
    fine = pad_grid(grid.zoom_to(tuple(3 * n for n in grid.shape)), 2)
    lazy = xr.DataArray(heights, dims=("y", "x"), coords=grid_coords(native)).chunk()
    _assert_like_xrspatial(ds, bilinear(lazy, fine).values, fine, grid, atol=1e-3)


@pytest.mark.shared
def test_real_mountains_of_five_metres(shared):
    path = shared / "data/real/dem/DEM_5m_Lecco_Lombardy.tif"
    grid = make_grid(bbox=(9.40, 45.86, 9.44, 45.89), resolution=100)
    ds = load_source(spec(path, native_resolution=5.0), grid, PERIOD).compute()
    with rasterio.open(path) as src:
        native = GeoBox(src.shape, src.transform, str(src.crs))
        heights = src.read(1).astype("float32")
    da = xr.DataArray(heights, dims=("y", "x"), coords=grid_coords(native))
    # Other lattice, same ground: averages agree within what half a pixel of shift makes.
    np.testing.assert_allclose(ds["elevation"], area_average(da, grid), atol=3.0)
    assert 15 < float(ds["slope"].mean()) < 45
