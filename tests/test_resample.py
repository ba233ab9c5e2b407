import dask
import dask.array
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from smgrid.errors import GridError
from smgrid.grid import coarsen_grid, grid_coords, make_grid
from smgrid.resample import area_average, nearest

pytestmark = [
    # rasterio hides its own warning in a way that a second thread undoes.
    pytest.mark.filterwarnings("ignore:Dataset has no geotransform"),
    # odc-geo transforms the outlines of chunks with a function that shapely 2.2 deprecates.
    pytest.mark.filterwarnings("ignore:The 'shapely.ops.transform:DeprecationWarning"),
]

UTM = "EPSG:32648"
# The sphere and projection of the MODIS land products.
SINUSOIDAL = "+proj=sinu +lon_0=0 +x_0=0 +y_0=0 +R=6371007.181 +units=m +no_defs"
MODIS_PIXEL = 231.65635826


def box_at(left, top, pixel, shape, crs=UTM):
    return GeoBox(shape, Affine(pixel, 0, left, 0, -pixel, top), crs)


def raster(grid, values=None, *, steps=0, name="vv", seed=0, missing=0.0):
    """A DataArray on `grid`, of noise unless values are given."""
    rng = np.random.default_rng(seed)
    shape = (steps, *grid.shape) if steps else grid.shape
    if values is None:
        values = rng.normal(-12, 3, shape).astype(np.float32)
        values[rng.random(shape) < missing] = np.nan
    coords = dict(grid_coords(grid))
    dims = ("y", "x")
    if steps:
        dims = ("time", *dims)
        coords["time"] = pd.date_range("2024-01-01", periods=steps, unit="ns")
        coords["platform"] = ("time", [f"sentinel-1{'ac'[i % 2]}" for i in range(steps)])
    return xr.DataArray(values, dims=dims, coords=coords, name=name, attrs={"units": "dB"})


def assert_on(result, grid):
    assert result.odc.geobox == grid
    assert result.dims[-2:] == ("y", "x")
    assert result.dtype == np.float32
    assert result.encoding == {"grid_mapping": "spatial_ref"}


def counting(da, chunks, reads):
    """Dask-backed copy of `da` whose every chunk adds its location to `reads` when it is read."""

    def read(block, block_info=None):
        reads.append(block_info[0]["chunk-location"])
        return block

    data = dask.array.from_array(da.values, chunks=chunks).map_blocks(
        read, dtype=da.dtype, meta=np.empty((0,) * da.ndim, da.dtype)
    )
    return da.copy(data=data)


# --- area_average: whole pixels ------------------------------------------------------------------


def block_means(fine, source, grid, min_coverage):
    """Mean over blocks on a canvas of full resolution; the slow, obvious way."""
    k = round(grid.affine.a / source.affine.a)
    canvas = np.full((*fine.shape[:-2], grid.shape.y * k, grid.shape.x * k), np.nan)
    row = round((grid.affine.f - source.affine.f) / source.affine.a)
    column = round((source.affine.c - grid.affine.c) / source.affine.a)
    for i in range(source.shape.y):
        for j in range(source.shape.x):
            if 0 <= i + row < canvas.shape[-2] and 0 <= j + column < canvas.shape[-1]:
                canvas[..., i + row, j + column] = fine[..., i, j]
    blocks = canvas.reshape(*fine.shape[:-2], grid.shape.y, k, grid.shape.x, k)
    blocks = np.moveaxis(blocks, -3, -2).reshape(*fine.shape[:-2], *grid.shape, k * k)
    with np.errstate(invalid="ignore"):
        share = np.isfinite(blocks).mean(-1)
        mean = np.nansum(blocks, -1) / np.isfinite(blocks).sum(-1)
    return np.where((share >= min_coverage) & (share > 0), mean, np.nan)


@settings(max_examples=40, deadline=None)
@given(
    k=st.integers(1, 6),
    corner=st.tuples(st.integers(-30, 30), st.integers(-30, 30)),
    shape=st.tuples(st.integers(1, 25), st.integers(1, 25)),
    chunks=st.integers(1, 6),
    pieces=st.tuples(st.integers(1, 25), st.integers(1, 25)),
    min_coverage=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
def test_nested_average_is_the_mean_over_blocks_wherever_the_raster_lies(
    k, corner, shape, chunks, pieces, min_coverage
):
    grid = box_at(600_000, 2_300_000, 10 * k, (7, 5))
    source = box_at(600_000 + 10 * corner[0], 2_300_000 + 10 * corner[1], 10, shape)
    fine = raster(source, steps=2, missing=0.3)
    expected = block_means(fine.values, source, grid, min_coverage)
    eager = area_average(fine, grid, min_coverage=min_coverage)
    np.testing.assert_allclose(eager.values, expected, rtol=1e-6)
    lazy = fine.chunk(y=pieces[0], x=pieces[1])
    lazy = area_average(lazy, grid, min_coverage=min_coverage, chunks=chunks)
    assert set(lazy.data.chunks[0]) == {1}
    assert max(lazy.data.chunks[1] + lazy.data.chunks[2]) <= chunks
    xr.testing.assert_identical(lazy.compute(), eager)


def test_nested_average_keeps_name_attributes_and_leading_coordinates():
    base = make_grid((105.80, 20.90, 105.82, 20.92), resolution=10)
    grid = coarsen_grid(base, 10)
    fine = raster(base, steps=3)
    result = area_average(fine, grid)
    assert_on(result, grid)
    assert (result.name, result.attrs) == ("vv", {"units": "dB"})
    assert result["platform"].values.tolist() == fine["platform"].values.tolist()
    assert result.indexes["time"].equals(fine.indexes["time"])
    assert isinstance(result.data, np.ndarray)
    assert result.sizes == {"time": 3, "y": grid.shape.y, "x": grid.shape.x}


def test_static_rasters_and_integers_are_averaged_too():
    source = box_at(0, 40, 10, (4, 4))
    values = np.arange(16, dtype=np.int16).reshape(4, 4)
    result = area_average(raster(source, values), box_at(0, 40, 20, (2, 2)))
    np.testing.assert_array_equal(result, [[2.5, 4.5], [10.5, 12.5]])
    assert result.dtype == np.float32


def test_pixels_need_not_be_square():
    source = GeoBox((4, 2), Affine(20, 0, 0, 0, -10, 40), UTM)
    values = np.arange(8, dtype=np.float32).reshape(4, 2)
    result = area_average(raster(source, values), box_at(0, 40, 20, (2, 2)))
    np.testing.assert_array_equal(result, [[1, 2], [5, 6]])


@pytest.mark.parametrize(
    ("min_coverage", "valid", "kept"),
    [
        (0.5, 50, True),
        (0.5, 49, False),
        (0.07, 7, True),
        (0, 1, True),
        (0, 0, False),
        (1, 99, False),
    ],
)
def test_coverage_is_the_share_of_valid_pixels(min_coverage, valid, kept):
    source = box_at(0, 100, 10, (10, 10))
    values = np.full(100, np.nan, np.float32)
    values[:valid] = 3
    fine = raster(source, values.reshape(10, 10))
    result = area_average(fine, box_at(0, 100, 100, (1, 1)), min_coverage=min_coverage)
    assert result.item() == 3 if kept else np.isnan(result.item())


def test_mean_of_large_blocks_loses_no_precision():
    source = box_at(0, 9000, 10, (900, 900))
    values = (np.random.default_rng(0).normal(0, 1e-3, (900, 900)) + 283.15).astype(np.float32)
    result = area_average(raster(source, values), box_at(0, 9000, 9000, (1, 1)))
    np.testing.assert_allclose(result.item(), values.astype(np.float64).mean(), rtol=1e-7)


def test_one_chunk_of_the_result_reads_only_its_own_pixels():
    """The unit of work of a cube must not read its neighbours' scenes."""
    source = box_at(0, 800, 10, (80, 80))
    reads = []
    fine = counting(raster(source, steps=2), (1, 40, 40), reads)
    result = area_average(fine, box_at(0, 800, 100, (8, 8)), chunks=4)
    assert reads == []
    result[1, :4, 4:].compute(scheduler="synchronous")
    assert reads == [(1, 0, 1)]
    graph = dask.optimize(result.data[1, :4, 4:])[0].dask
    assert len(graph) <= 6  # a fused chain; it does not grow with the area


def test_raster_elsewhere_gives_missing_values():
    grid = box_at(0, 100, 10, (4, 4))
    for shift in (0.0, 0.3):  # nested, and warped
        source = box_at(5000 + shift, 100, 10, (4, 4))
        for fine in (raster(source, steps=2), raster(source, steps=2).chunk(time=1)):
            result = area_average(fine, grid, chunks=3).compute()
            assert result.shape == (2, 4, 4)
            assert result.isnull().all()
            assert_on(result, grid)


def test_coordinates_in_single_precision_count_as_aligned():
    source = box_at(600_000.0, 2_300_000.0, 10, (40, 40))
    fine = raster(source)
    rounded = fine.assign_coords(x=fine["x"].astype("f4"), y=fine["y"].astype("f4"))
    grid = box_at(600_000, 2_300_000, 100, (4, 4))
    np.testing.assert_array_equal(area_average(rounded, grid), area_average(fine, grid))


@pytest.mark.parametrize("function", [area_average, nearest])
def test_rows_may_run_northwards_and_dims_may_come_in_any_order(function):
    source = box_at(105.0, 21.0, 0.1, (8, 6), "EPSG:4326")
    plain = raster(source, steps=2)
    grid = box_at(105.0, 21.0, 0.2, (4, 3), "EPSG:4326")
    odd = plain[:, ::-1].transpose("y", "time", "x").rename(y="latitude", x="longitude")
    xr.testing.assert_identical(function(odd, grid), function(plain, grid))
    odd = plain[..., ::-1].rename(y="lat", x="lon").chunk(lat=3)
    xr.testing.assert_identical(function(odd, grid).compute(), function(plain, grid))


# --- area_average: shares of pixels --------------------------------------------------------------


def overlaps(first, pixel, n, other_first, other_pixel, other_n):
    """Length that each cell of one axis shares with each pixel of another."""
    edges = first + pixel * np.arange(n + 1)
    cells = other_first + other_pixel * np.arange(other_n + 1)
    low = np.maximum(edges[None, :-1], cells[:-1, None])
    return (np.minimum(edges[None, 1:], cells[1:, None]) - low).clip(0)


def weighted_means(fine, source, grid):
    """Area-weighted mean and valid share of each cell, from one-dimensional overlaps."""
    wy = overlaps(-source.affine.f, -source.affine.e, source.shape.y,
                  -grid.affine.f, -grid.affine.e, grid.shape.y)  # fmt: skip
    wx = overlaps(source.affine.c, source.affine.a, source.shape.x,
                  grid.affine.c, grid.affine.a, grid.shape.x)  # fmt: skip
    valid = np.isfinite(fine)
    area = wy @ valid @ wx.T
    with np.errstate(invalid="ignore"):
        mean = wy @ np.where(valid, fine, 0).astype(float) @ wx.T / area
    return mean, area / (grid.affine.a * -grid.affine.e)


@pytest.mark.parametrize("missing", [0.0, 0.4])
@pytest.mark.parametrize("cell", [73.0, 25.0, 8.0])
def test_misaligned_average_weighs_pixels_by_shared_area(missing, cell):
    source = box_at(1000, 5000, 10, (60, 60), "EPSG:32631")
    grid = box_at(1000 - 1.37 * cell, 5000 + 0.71 * cell, cell, (10, 10), "EPSG:32631")
    fine = raster(source, missing=missing)
    mean, share = weighted_means(fine.values, source, grid)
    expected = np.where((share >= 0.5) & (share > 0), mean, np.nan)
    undecided = np.abs(share - 0.5) < 1e-4
    assert np.isfinite(expected).sum() > 20
    assert np.isnan(expected).sum() > 10
    for lazy in (fine, fine.chunk(y=25, x=17)):
        result = area_average(lazy, grid, chunks=4).compute()
        assert_on(result, grid)
        np.testing.assert_allclose(
            np.where(undecided, np.nan, result), np.where(undecided, np.nan, expected), atol=1e-5
        )


def test_area_beyond_the_raster_counts_as_missing():
    source = box_at(0, 100, 10, (10, 10))
    grid = box_at(-65, 100, 100, (1, 2))  # 35 and 65 per cent of the cells lie on the raster
    fine = raster(source, np.full((10, 10), 7, np.float32))
    for threshold, expected in ((0.34, [[7, 7]]), (0.5, [[np.nan, 7]]), (0.66, [[np.nan] * 2])):
        np.testing.assert_array_equal(area_average(fine, grid, min_coverage=threshold), expected)


def test_average_in_another_crs_follows_the_field():
    """A smooth field and its area means differ by its curvature only, whatever the rotation."""
    source = box_at(700_000, 5_600_000, 10, (300, 300), "EPSG:32631")
    to_source = Transformer.from_crs("EPSG:32632", "EPSG:32631", always_xy=True)
    middle = to_source.transform(701_500, 5_598_500, direction="INVERSE")
    grid = box_at(middle[0] - 2000, middle[1] + 2000, 100, (40, 40), "EPSG:32632")
    x, y = np.meshgrid(*(grid_coords(source)[d].values for d in ("x", "y")))
    fine = raster(source, (np.sin(x / 3000) + np.cos(y / 2000)).astype(np.float32), steps=0)
    eager = area_average(fine, grid)
    x, y = to_source.transform(*np.meshgrid(eager["x"], eager["y"]))
    inside = (np.abs(x - 701_500) < 1400) & (np.abs(y - 5_598_500) < 1400)
    assert inside.sum() > 300
    expected = np.sin(x / 3000) + np.cos(y / 2000)
    np.testing.assert_allclose(eager.values[inside], expected[inside], atol=2e-3)
    outside = (np.abs(x - 701_500) > 1600) | (np.abs(y - 5_598_500) > 1600)
    assert outside.any()
    assert np.isnan(eager.values[outside]).all()
    lazy = area_average(fine.chunk(y=70, x=110), grid, chunks=13).compute()
    xr.testing.assert_allclose(lazy, eager, atol=1e-4)


def test_old_nodata_attributes_do_not_spoil_the_warp():
    source = box_at(0, 100, 10, (10, 10))
    fine = raster(source, missing=0.3)
    grid = box_at(3, 97, 30, (3, 3))
    marked = fine.assign_attrs(nodata=-9999, _FillValue=-9999)
    result = area_average(marked, grid, min_coverage=0)
    np.testing.assert_array_equal(result, area_average(fine, grid, min_coverage=0))
    assert np.isfinite(result).all()


# --- nearest -------------------------------------------------------------------------------------


def nearest_by_search(da, grid):
    """Value at the smallest distance to each centre along y and x; the slow, obvious way."""
    x, y = np.meshgrid(*(grid_coords(grid)[d].values for d in ("x", "y")))
    x, y = Transformer.from_crs(grid.crs.proj, da.odc.crs.proj, always_xy=True).transform(x, y)
    row = np.abs(da["y"].values - y[..., None]).argmin(-1)
    column = np.abs(da["x"].values - x[..., None]).argmin(-1)
    half_y, half_x = np.abs(np.diff(da["y"])[0]) / 2, np.abs(np.diff(da["x"])[0]) / 2
    far = (np.abs(da["y"].values[row] - y) > half_y) | (np.abs(da["x"].values[column] - x) > half_x)
    return np.where(far, np.nan, da.values[..., row, column])


def modis_raster(steps=2):
    x, y = Transformer.from_crs(4326, SINUSOIDAL, always_xy=True).transform(105.85, 20.98)
    corner = x // MODIS_PIXEL * MODIS_PIXEL, y // MODIS_PIXEL * MODIS_PIXEL
    source = box_at(corner[0] - 60 * MODIS_PIXEL, corner[1] + 40 * MODIS_PIXEL, MODIS_PIXEL,
                    (90, 110), SINUSOIDAL)  # fmt: skip
    return raster(source, steps=steps, name="ndvi", missing=0.1)


def lonlat_raster(steps=2):
    return raster(box_at(105.75, 21.05, 0.01, (20, 24), "EPSG:4326"), steps=steps, name="t2m")


@pytest.mark.parametrize("source", [modis_raster(), lonlat_raster()], ids=["sinusoidal", "lonlat"])
def test_nearest_is_exact_and_the_same_for_every_chunking(source):
    grid = make_grid((105.8, 20.9, 105.9, 21.1), resolution=200)
    eager = nearest(source, grid)
    expected = nearest_by_search(source, grid)
    assert np.isfinite(expected).mean() > 0.5
    assert np.isnan(expected).any()
    np.testing.assert_array_equal(eager.values, expected)
    assert_on(eager, grid)
    assert (eager.name, eager.attrs) == (source.name, source.attrs)
    for pieces, chunks in (({"time": 1}, 512), ({"y": 7, "x": 11}, 33), ({"time": 2, "x": 5}, 20)):
        lazy = nearest(source.chunk(pieces), grid, chunks=chunks)
        assert max(lazy.data.chunks[1] + lazy.data.chunks[2]) <= chunks
        assert lazy.data.chunks[0] == source.chunk(pieces).data.chunks[0]
        xr.testing.assert_identical(lazy.compute(), eager)


def test_centres_on_a_border_take_the_eastern_southern_pixel():
    source = box_at(0, 40, 10, (4, 4))
    values = np.arange(16, dtype=np.float32).reshape(4, 4)
    # Centres on 0, 10, ..., 40 in both directions: the outermost ones lie on the raster's edges.
    grid = box_at(-5, 45, 10, (5, 5))
    index = [0, 1, 2, 3, 3]
    np.testing.assert_array_equal(nearest(raster(source, values), grid), values[index][:, index])
    flipped = raster(source, values)[::-1, ::-1]
    np.testing.assert_array_equal(nearest(flipped, grid), values[index][:, index])


def test_rounding_does_not_decide_on_a_border():
    """Pixel edges at multiples of a tenth of a degree have no exact binary value."""
    source = box_at(100.0, 30.0, 0.1, (200, 200), "EPSG:4326")
    values = np.broadcast_to(np.arange(200, dtype=np.float32), (200, 200))
    grid = box_at(100.05, 29.95, 0.1, (150, 150), "EPSG:4326")
    result = nearest(raster(source, values), grid)
    np.testing.assert_array_equal(result, np.broadcast_to(np.arange(1.0, 151), (150, 150)))


@pytest.mark.parametrize(("tolerance", "reach"), [(0.0, 0), (0.4, 0), (0.6, 1), (1.5, 2)])
def test_tolerance_lets_the_edge_pixel_reach_outwards(tolerance, reach):
    source = box_at(0, 40, 10, (4, 4))
    values = np.arange(16, dtype=np.float32).reshape(4, 4)
    grid = box_at(-30, 70, 10, (10, 10))
    padded = np.full((10, 10), np.nan)
    padded[3 - reach : 7 + reach, 3 - reach : 7 + reach] = np.pad(values, reach, mode="edge")
    for da in (raster(source, values), raster(source, values).chunk(x=2)):
        np.testing.assert_array_equal(nearest(da, grid, tolerance=tolerance, chunks=4), padded)


@pytest.mark.parametrize("bbox", [(-100.3, 39.9, -99.7, 40.1), (-0.4, 50, 0.4, 50.2)])
def test_longitudes_from_0_to_360_serve_the_western_hemisphere(bbox):
    east = box_at(-0.125, 90.125, 0.25, (721, 1440), "EPSG:4326")  # centres 0 ... 359.75
    values = np.arange(721 * 1440, dtype=np.float32).reshape(721, 1440)
    source = raster(east, values)
    grid = make_grid(bbox, resolution=2000)
    lon, lat = np.meshgrid(grid_coords(grid)["x"], grid_coords(grid)["y"])
    lon, lat = Transformer.from_crs(grid.crs.proj, 4326, always_xy=True).transform(lon, lat)
    column = np.round(lon % 360 / 0.25).astype(int) % 1440
    expected = values[np.round((90 - lat) / 0.25).astype(int), column]
    for da in (source, source.chunk(y=100)):
        np.testing.assert_array_equal(nearest(da, grid, chunks=13), expected)


def test_a_pole_inside_a_tile_is_found():
    source = raster(box_at(-180, 90, 1, (180, 360), "EPSG:4326"))
    grid = make_grid((-180, 80, 180, 90), resolution=40_000, crs="EPSG:6931")
    grid = grid.translate_pix(0.31, 0.17)  # no centre on a meridian between two pixels
    expected = nearest_by_search(source, grid)
    np.testing.assert_array_equal(nearest(source, grid), expected)
    np.testing.assert_array_equal(nearest(source.chunk(y=30), grid, chunks=40), expected)


def test_tiles_across_the_antimeridian_are_found():
    source = raster(box_at(-180, 90, 1, (180, 360), "EPSG:4326"))
    grid = box_at(-200_000, -1_800_000, 20_000, (20, 20), "+proj=merc +lon_0=180")
    expected = nearest_by_search(source, grid)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(nearest(source.chunk(x=30), grid, chunks=20), expected)


def test_centres_without_a_place_in_the_source_are_missing():
    """Half of an orthographic map's square lies beyond the globe."""
    source = raster(box_at(-180, 90, 10, (18, 36), "EPSG:4326"))
    grid = box_at(-8e6, 8e6, 1e6, (16, 16), "+proj=ortho +lat_0=20 +lon_0=10")
    for da in (source, source.chunk(y=5)):
        result = nearest(da, grid, chunks=5).compute()
        assert np.isnan(result[0, 0])
        assert np.isfinite(result[8, 8])


def test_only_the_window_of_the_source_is_read():
    reads = []
    source = raster(box_at(100, 30, 0.1, (100, 100), "EPSG:4326"), steps=3)
    lazy = counting(source, (1, 10, 10), reads)
    grid = make_grid((104.2, 25.2, 104.4, 25.4), resolution=1000)
    result = nearest(lazy, grid, chunks=512)
    assert reads == []
    result[1].compute(scheduler="synchronous")
    assert sorted(set(reads)) == [(1, 4, 4)]


def test_integers_become_floats_with_missing_values():
    source = box_at(0, 20, 10, (2, 2))
    classes = raster(source, np.array([[1, 2], [3, 4]], np.uint8))
    result = nearest(classes, box_at(0, 20, 10, (2, 3)))
    np.testing.assert_array_equal(result, [[1, 2, np.nan], [3, 4, np.nan]])
    assert result.dtype == np.float32


def test_a_single_pixel_needs_its_size():
    one = xr.DataArray(
        np.array([[280.0]]), dims=("y", "x"), coords={"y": [20.0], "x": [105.0]}, name="t2m"
    ).odc.assign_crs("EPSG:4326")
    grid = box_at(104.9, 20.1, 0.05, (4, 8), "EPSG:4326")
    with pytest.raises(GridError, match=r"'t2m': 1 pixels along 'x'.*give the resolution"):
        nearest(one, grid)
    result = nearest(one, grid, resolution=0.2)
    np.testing.assert_array_equal(result.notnull(), np.tile(np.arange(8) < 4, (4, 1)))
    # A pixel that was cut from a raster still knows its size.
    oblong = GeoBox((5, 5), Affine(0.2, 0, 105.0, 0, -0.1, 20.0), "EPSG:4326")
    cut = raster(oblong)[1:2, 1:2]
    assert nearest(cut, box_at(105.2, 19.9, 0.05, (8, 8), "EPSG:4326")).notnull().sum() == 8


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [area_average, nearest])
def test_rasters_that_cannot_be_placed_are_refused(function):
    grid = box_at(0, 40, 20, (2, 2))
    good = raster(box_at(0, 40, 10, (4, 4)))
    bare = xr.DataArray(np.zeros((4, 4)), {"y": good["y"].values, "x": good["x"].values}, name="vv")
    with pytest.raises(GridError, match=r"raster 'vv': has no CRS; state it with da\.odc\.assign"):
        function(bare, grid)
    with pytest.raises(GridError, match="expected y and x with coordinates"):
        function(good.drop_vars(["x", "y"]), grid)
    with pytest.raises(GridError, match="evenly spaced coordinates along 'x'"):
        function(good.assign_coords(x=[5.0, 15.0, 25.0, 45.0]), grid)
    with pytest.raises(GridError, match="north-up grid"):
        function(good, grid.flipy())


def test_rotated_rasters_are_refused():
    turned = GeoBox((4, 4), Affine.rotation(30), UTM)
    grid = box_at(0, 40, 20, (2, 2))
    da = xr.DataArray(np.zeros((4, 4)), dims=("y", "x"), coords=grid_coords(turned), name="vv")
    with pytest.raises(GridError, match="without rotation"):
        area_average(da, grid)


def test_shares_and_distances_have_to_make_sense():
    good, grid = raster(box_at(0, 40, 10, (4, 4))), box_at(0, 40, 20, (2, 2))
    with pytest.raises(GridError, match=r"min_coverage: expected a share within 0\.\.1, found 50"):
        area_average(good, grid, min_coverage=50)
    with pytest.raises(GridError, match="tolerance: expected 0 or more"):
        nearest(good, grid, tolerance=-1)
