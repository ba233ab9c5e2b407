import json
import math

import geopandas
import numpy as np
import pytest
from affine import Affine
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from shapely.geometry import Point, Polygon, box

from smgrid.errors import GridError
from smgrid.grid import (
    NestedOffset,
    coarsen_grid,
    ease_features,
    ease_features_on,
    ease_grid,
    ease_position,
    grid_coords,
    iter_tiles,
    make_grid,
    nested_offset,
    nesting_factor,
    pad_grid,
    pixel_centres,
    require_north_up,
)

HANOI = (105.8, 20.9, 106.0, 21.1)

# Corner and grids of NSIDC's tables; the corner of the 25 km grid differs from that of the others.
EASE_TABLE = {
    36: (406, 964, 36032.220840584, -17367530.4451615, 7314540.8306386),
    25: (584, 1388, 25025.26, -17367530.44, 7307375.92),
    9: (1624, 3856, 9008.055210146, -17367530.4451615, 7314540.8306386),
    3: (4872, 11568, 3002.6850700487, -17367530.4451615, 7314540.8306386),
    1: (14616, 34704, 1000.89502334956, -17367530.4451615, 7314540.8306386),
}


@st.composite
def lonlat_boxes(draw):
    west = draw(st.floats(-180, 179.9))
    south = draw(st.floats(-79, 82))
    width, height = draw(st.floats(0.001, 2)), draw(st.floats(0.001, 2))
    assume(west + width <= 180)
    return west, south, west + width, south + height


@st.composite
def base_grids(draw, max_pixels=60):
    resolution = draw(st.sampled_from([0.1, 0.25, 1, 10.0, 100, 231.65635826, 9008.055210146]))
    index = st.integers(-100_000, 100_000)
    shape = st.integers(1, max_pixels)
    left, top = draw(index) * resolution, draw(index) * resolution
    affine = Affine(resolution, 0, left, 0, -resolution, top)
    return GeoBox((draw(shape), draw(shape)), affine, "EPSG:32648")


def is_multiple(value, step):
    return abs(value / step - round(value / step)) < 1e-6


# --- make_grid -----------------------------------------------------------------------------------


def test_make_grid_defaults_to_the_utm_zone_of_the_centre():
    grid = make_grid(HANOI, resolution=100)
    assert grid.crs.epsg == 32648
    assert grid.resolution.xy == (100, -100)
    assert make_grid((-58.6, -34.8, -58.2, -34.4), resolution=100).crs.epsg == 32721
    assert make_grid((179.5, 10, 180, 10.5), resolution=100).crs.epsg == 32660
    assert make_grid((-180, 10, -179.5, 10.5), resolution=100).crs.epsg == 32601
    assert make_grid((5.9, 50, 6.3, 50.5), resolution=100).crs.epsg == 32632


@settings(max_examples=60, deadline=None)
@given(bbox=lonlat_boxes(), resolution=st.sampled_from([10.0, 100.0, 231.65635826, 1000.0]))
def test_grid_covers_the_box_with_edges_on_multiples_and_no_spare_pixel(bbox, resolution):
    grid = make_grid(bbox, resolution=resolution)
    bounds = grid.boundingbox
    assert all(is_multiple(edge, resolution) for edge in bounds.bbox)
    t = np.linspace(0, 1, 201)
    lon, lat = np.meshgrid(bbox[0] + t * (bbox[2] - bbox[0]), bbox[1] + t * (bbox[3] - bbox[1]))
    x, y = Transformer.from_crs("EPSG:4326", grid.crs.proj, always_xy=True).transform(lon, lat)
    noise = 1e-4 * resolution
    assert bounds.left - noise <= x.min() < bounds.left + resolution + noise
    assert bounds.bottom - noise <= y.min() < bounds.bottom + resolution + noise
    assert bounds.right - resolution - noise < x.max() <= bounds.right + noise
    assert bounds.top - resolution - noise < y.max() <= bounds.top + noise


def test_box_that_is_aligned_already_gets_no_further_pixel():
    grid = make_grid((105.8, 20.0, 106.6, 20.7), resolution=0.1, crs="EPSG:4326")
    assert grid.shape == (7, 8)
    assert make_grid((-180, -90, 180, 90), resolution=0.25, crs=4326).shape == (720, 1440)


def test_polar_crs_may_hold_the_pole():
    grid = make_grid((-180, 70, 180, 90), resolution=10_000, crs="EPSG:6931")
    x, y = Transformer.from_crs(4326, 6931, always_xy=True).transform([0, 90, 180, -90], [70] * 4)
    bounds = grid.boundingbox
    assert bounds.left <= min(x) < bounds.left + 10_000
    assert bounds.top - 10_000 < max(y) <= bounds.top


@pytest.mark.parametrize(
    ("bbox", "message"),
    [
        ((179, -18, -179, -16), "antimeridian"),
        ((20.9, 105.8, 21.1, 106.0), "latitude outside.*axes swapped"),
        ((500000, 2300000, 510000, 2310000), "latitude outside.*metres"),
        ((182, 10, 183, 11), "longitude outside -180..180"),
        ((10, 50, 10, 51), "no area"),
        ((10, 50, 11, 50), "no area"),
        ((10, 51, 11, 50), "south is north"),
        ((10, 50, math.nan, 51), "finite"),
        ((10, 50, math.inf, 51), "finite"),
        ((10, 50, 11), "four numbers"),
        (("a", 50, 11, 51), "four numbers"),
        ((10, 83, 11, 85), "polar CRS .*EPSG:6931"),
        ((10, -82, 11, -81), "polar CRS .*EPSG:6932"),
        ((0, 40, 20, 50), "20.0 degrees wide"),
    ],
)
def test_mistaken_boxes_are_told_apart(bbox, message):
    with pytest.raises(GridError, match=message):
        make_grid(bbox, resolution=100)


@pytest.mark.parametrize("resolution", [0, -10, math.nan, math.inf])
def test_resolution_has_to_be_positive(resolution):
    with pytest.raises(GridError, match="resolution: expected a positive number"):
        make_grid(HANOI, resolution=resolution)


def test_sizes_that_betray_the_wrong_unit_are_refused():
    with pytest.raises(GridError, match=r"resolution 0.001 metre.*pixels.*units of EPSG:32648"):
        make_grid(HANOI, resolution=0.001)
    with pytest.raises(GridError, match="in degrees for EPSG:4326"):
        make_grid(HANOI, resolution=100, crs="EPSG:4326")


def test_crs_has_to_be_a_map():
    with pytest.raises(GridError, match="crs: expected \"utm\" or a CRS, found 'nowhere'"):
        make_grid(HANOI, resolution=100, crs="nowhere")
    with pytest.raises(GridError, match="projected or geographic"):
        make_grid(HANOI, resolution=100, crs="EPSG:4978")
    with pytest.raises(GridError, match="cannot be expressed in"):
        make_grid((-10, -10, 10, 10), resolution=1000, crs="+proj=gnom +lat_0=90 +lon_0=0")


def test_a_region_is_given_once():
    with pytest.raises(GridError, match="either bbox or outline"):
        make_grid(resolution=100)
    with pytest.raises(GridError, match="either bbox or outline"):
        make_grid(HANOI, outline="x.geojson", resolution=100)


# --- outlines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".shp"])
@pytest.mark.parametrize("crs", [4326, 3857])
def test_outline_of_any_format_and_crs_equals_its_box(tmp_path, suffix, crs):
    path = tmp_path / f"outline{suffix}"
    shape = geopandas.GeoDataFrame({"name": ["a"]}, geometry=[box(*HANOI)], crs=4326)
    shape.to_crs(crs).to_file(path)
    assert make_grid(outline=path, resolution=100) == make_grid(HANOI, resolution=100)
    assert make_grid(outline=str(path), resolution=100).crs.epsg == 32648


def test_outline_is_followed_in_the_target_crs(tmp_path):
    """A diamond's box in lon/lat is wider than the diamond itself when both are turned."""
    path = tmp_path / "diamond.gpkg"
    diamond = Polygon([(8, 0), (14, 3), (8, 6), (2, 3)])
    geopandas.GeoSeries([diamond], crs=4326).to_file(path)
    crs = "+proj=omerc +lat_0=3 +lonc=8 +alpha=45 +gamma=0 +datum=WGS84"
    inside = make_grid(outline=path, resolution=1000, crs=crs)
    around = make_grid(diamond.bounds, resolution=1000, crs=crs)
    assert inside.shape.x < around.shape.x
    assert inside.shape.y < around.shape.y


def test_all_parts_of_an_outline_count(tmp_path):
    path = tmp_path / "two.geojson"
    parts = [box(105.8, 20.9, 105.85, 21.1), box(105.95, 20.9, 106.0, 21.1)]
    geopandas.GeoSeries(parts, crs=4326).to_file(path)
    assert make_grid(outline=path, resolution=100) == make_grid(HANOI, resolution=100)


def test_outline_without_crs_is_refused_with_the_cure(tmp_path):
    path = tmp_path / "bare.shp"
    geopandas.GeoSeries([box(*HANOI)], crs=4326).to_file(path)
    path.with_suffix(".prj").unlink()
    with pytest.raises(GridError, match=r"does not name its CRS; add it .*\.prj"):
        make_grid(outline=path, resolution=100)


def test_outline_in_metres_that_claims_degrees_is_refused(tmp_path):
    path = tmp_path / "wrong.gpkg"
    geopandas.GeoSeries([box(500000, 2300000, 510000, 2310000)], crs=4326).to_file(path)
    with pytest.raises(GridError, match="not on the globe; is its CRS right"):
        make_grid(outline=path, resolution=100)


def test_outline_needs_an_area(tmp_path):
    path = tmp_path / "points.geojson"
    geopandas.GeoSeries([Point(105.8, 21)], crs=4326).to_file(path)
    with pytest.raises(GridError, match="polygon with an area"):
        make_grid(outline=path, resolution=100)


def test_outline_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "text.geojson"
    path.write_text("not json")
    with pytest.raises(GridError, match=r"text\.geojson.*not a readable"):
        make_grid(outline=path, resolution=100)
    with pytest.raises(GridError, match=r"missing\.gpkg.*not a readable"):
        make_grid(outline=tmp_path / "missing.gpkg", resolution=100)


# --- EASE-Grid 2.0 -------------------------------------------------------------------------------


@pytest.mark.parametrize("km", EASE_TABLE)
def test_ease_grids_are_those_of_nsidc(km):
    rows, columns, cell, left, top = EASE_TABLE[km]
    grid = ease_grid(km)
    assert grid.shape == (rows, columns)
    assert grid.crs.epsg == 6933
    np.testing.assert_allclose(grid.resolution.xy, (cell, -cell), rtol=1e-13)
    np.testing.assert_allclose(grid.boundingbox.bbox, (left, -top, -left, top), atol=1e-6)


def test_ease_grid_spans_all_longitudes():
    """The constants agree with the projection: the outer edges are the antimeridian."""
    x, _ = Transformer.from_crs(4326, 6933, always_xy=True).transform([-180, 180], [0, 0])
    bounds = ease_grid(9).boundingbox
    np.testing.assert_allclose((bounds.left, bounds.right), x, atol=1e-2)


@settings(max_examples=50, deadline=None)
@given(bbox=lonlat_boxes(), km=st.sampled_from(sorted(EASE_TABLE)))
def test_ease_window_covers_the_box_with_whole_cells_of_the_globe(bbox, km):
    window, globe = ease_grid(km, bbox), ease_grid(km)
    to_ease = Transformer.from_crs(4326, 6933, always_xy=True)
    x, y = to_ease.transform([bbox[0], bbox[2]], [bbox[1], bbox[3]])
    bounds, cell = window.boundingbox, globe.resolution.x
    assert bounds.left - 0.1 <= x[0] <= bounds.left + cell + 0.1
    assert bounds.right - cell - 0.1 <= x[1] <= bounds.right + 0.1
    assert bounds.bottom - 0.1 <= y[0] <= bounds.bottom + cell + 0.1
    assert bounds.top - cell - 0.1 <= y[1] <= bounds.top + 0.1
    assert nested_offset(window, globe).factor == 1


def test_ease_grid_refuses_what_it_does_not_hold():
    with pytest.raises(GridError, match=r"km: expected one of \(36, 25, 9, 3, 1\), found 12"):
        ease_grid(12)
    with pytest.raises(GridError, match="ends at about 85 degrees"):
        ease_grid(9, (0, 80, 10, 89))
    with pytest.raises(GridError, match="axes swapped"):
        ease_grid(9, (20, 105, 21, 106))


@pytest.fixture(scope="module")
def ease_points(shared):
    return json.loads((shared / "reference/golden/ease_golden.json").read_text())["points"]


def test_published_positions_and_features_match_the_reference(ease_points):
    assert len(ease_points) == 32
    for point in ease_points:
        km = point["cell_km"]
        row, column = ease_position(point["x"], point["y"], km=km, convention="published")
        assert (row, column) == (point["published_r"], point["published_c"])
        expected = (point["r_feature"], point["c_sin"], point["c_cos"])
        np.testing.assert_allclose(ease_features(row, column, km=km), expected, rtol=0, atol=1e-13)


def test_exact_positions_match_the_reference(ease_points):
    """The reference rounds the corner to 1 cm, which decides on a meridian between two cells."""
    for point in ease_points:
        km = point["cell_km"]
        row, column = ease_position(point["x"], point["y"], km=km, convention="exact")
        meridian = (point["lon"] + 180) / 360 * point["grid_rows_cols"][1]
        if meridian == round(meridian):
            assert column == meridian
        else:
            assert column == point["exact_col0"]
        assert row == point["exact_row0"]


@settings(max_examples=100, deadline=None)
@given(
    row=st.integers(0, 1623),
    column=st.integers(0, 3855),
    dy=st.floats(0.001, 0.999),
    dx=st.floats(0.001, 0.999),
    km=st.sampled_from([36, 9, 3, 1, 0.1, 0.05]),
)
def test_positions_agree_with_the_geometry_at_every_cell_size(row, column, dy, dx, km):
    cell = EASE_TABLE[9][2]
    x, y = EASE_TABLE[9][3] + (column + dx) * cell, EASE_TABLE[9][4] - (row + dy) * cell
    k = 9 / km
    centre = ease_position(x, y, km=km, convention="centre")
    expected = np.array(((row + dy) * k, (column + dx) * k))
    np.testing.assert_allclose(centre, expected, atol=1e-8 * k)
    assume((np.abs(expected - np.round(expected)) > 1e-6).all())
    assert ease_position(x, y, km=km, convention="exact") == tuple(np.floor(expected))
    np.testing.assert_allclose(
        ease_features(*centre, km=km),
        ease_features(row + dy, column + dx, km=9),
        rtol=1e-9,
        atol=1e-9,
    )


def test_position_on_the_25_km_grid_is_its_own_lattice():
    _, _, cell, left, top = EASE_TABLE[25]
    x, y = left + 700.5 * cell, top - 10.5 * cell
    assert ease_position(x, y, km=25, convention="exact") == (10, 700)


def test_positions_that_make_no_sense_are_refused():
    with pytest.raises(GridError, match="finite coordinates"):
        ease_position([0, math.inf], [0, 0], km=9, convention="exact")
    with pytest.raises(GridError, match=r"divides the globe evenly, found 0\.07"):
        ease_position(0, 0, km=0.07, convention="exact")
    with pytest.raises(GridError, match="positive cell size"):
        ease_position(0, 0, km=-9, convention="centre")
    with pytest.raises(GridError, match=r'"published" knows \[9, 36, 72\] and 1 or less, found 3'):
        ease_position(0, 0, km=3, convention="published")
    with pytest.raises(GridError, match="convention: expected"):
        ease_position(0, 0, km=9, convention="nearest")


def test_location_features_of_a_grid_are_those_of_its_pixel_centres():
    grid = make_grid((105.8, 20.9, 105.82, 20.92), resolution=500)
    fraction, sin, cos = ease_features_on(grid, km=0.1, convention="centre")
    assert fraction.shape == sin.shape == cos.shape == grid.shape
    assert {a.dtype for a in (fraction, sin, cos)} == {np.dtype("float32")}
    i, j = 2, 3
    x, y = grid.affine.c + (j + 0.5) * 500, grid.affine.f - (i + 0.5) * 500
    x, y = Transformer.from_crs(grid.crs.proj, 6933, always_xy=True).transform(x, y)
    angle = 2 * np.pi * (x + 17367530.4451615) / 9008.055210146 / 3856
    row = (7314540.8306386 - y) / 9008.055210146
    expected = row / 1624, np.sin(angle), np.cos(angle)
    np.testing.assert_allclose((fraction[i, j], sin[i, j], cos[i, j]), expected, rtol=1e-6)


def test_location_features_do_not_depend_on_tiles():
    grid = make_grid((105.8, 20.9, 105.82, 20.92), resolution=100)
    whole = np.stack(ease_features_on(grid, km=9, convention="published"))
    for tile in iter_tiles(grid, 7):
        part = np.stack(ease_features_on(tile.geobox, km=9, convention="published"))
        np.testing.assert_array_equal(part, whole[:, tile.y, tile.x])


# --- nesting -------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(base=base_grids(), factor=st.integers(1, 90))
def test_coarse_cells_cover_the_base_exactly_and_stand_on_the_absolute_lattice(base, factor):
    coarse = coarsen_grid(base, factor)
    step = factor * base.resolution.x
    assert all(is_multiple(edge, step) for edge in coarse.boundingbox.bbox)
    outer, inner = coarse.boundingbox, base.boundingbox
    noise = 1e-6 * step
    assert 0 - noise <= inner.left - outer.left < step - noise
    assert 0 - noise <= outer.right - inner.right < step - noise
    assert 0 - noise <= inner.bottom - outer.bottom < step - noise
    assert 0 - noise <= outer.top - inner.top < step - noise


@settings(max_examples=100, deadline=None)
@given(base=base_grids(), factor=st.integers(1, 90))
def test_expansion_by_integers_equals_the_lookup_by_geometry(base, factor):
    coarse = coarsen_grid(base, factor)
    offset = nested_offset(base, coarse)
    assert offset.factor == factor
    x, y = pixel_centres(base, base.crs)
    column = np.floor((x[0] - coarse.affine.c) / coarse.affine.a)
    row = np.floor((y[:, 0] - coarse.affine.f) / coarse.affine.e)
    np.testing.assert_array_equal(offset.rows(np.arange(base.shape.y)), row)
    np.testing.assert_array_equal(offset.columns(np.arange(base.shape.x)), column)


@settings(max_examples=100, deadline=None)
@given(
    base=base_grids(),
    factor=st.integers(1, 90),
    shift=st.tuples(st.integers(-60, 60), st.integers(-60, 60)),
)
def test_neighbouring_regions_share_coarse_cells(base, factor, shift):
    neighbour = base.translate_pix(*shift)
    ours, theirs = coarsen_grid(base, factor), coarsen_grid(neighbour, factor)
    both = ours | theirs
    assert nested_offset(ours, both).factor == 1
    assert nested_offset(theirs, both).factor == 1
    assert ours == coarsen_grid(base, factor)


def test_equal_regions_of_different_origin_have_bitwise_equal_cells():
    """Two boxes made separately give the same floats for a cell that they share."""
    west = make_grid((105.80, 20.9, 105.90, 21.0), resolution=100)
    east = make_grid((105.89, 20.9, 106.00, 21.0), resolution=100)
    a, b = (grid_coords(coarsen_grid(g, 90))["x"].values for g in (west, east))
    assert set(a) & set(b)
    assert len(set(a) | set(b)) == len(np.unique(np.round(np.concatenate([a, b]))))


def test_grid_off_its_own_lattice_keeps_its_remainder():
    base = GeoBox((10, 10), Affine(10, 0, 1003, 0, -10, 5007), "EPSG:32648")
    coarse = coarsen_grid(base, 4)
    assert nested_offset(base, coarse).factor == 4
    assert coarse.affine.c % 40 == 3
    assert coarsen_grid(base.translate_pix(4, 0), 4).affine.c == coarse.affine.c + 40


def test_ease_grids_nest_in_each_other():
    assert nested_offset(ease_grid(9), ease_grid(36)) == NestedOffset(4, 0, 0)
    window = ease_grid(9, HANOI)
    offset = nested_offset(window, ease_grid(36))
    assert offset == NestedOffset(4, offset.y, offset.x)
    assert coarsen_grid(ease_grid(9), 4) == ease_grid(36)


def test_factor_one_is_the_grid_itself():
    base = make_grid(HANOI, resolution=100)
    assert coarsen_grid(base, 1) == base


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.translate_pix(0.5, 0), "not nested"),
        (lambda g: g[1:, :], "not nested"),
        (lambda g: GeoBox(g.shape, g.affine, "EPSG:32647"), "share one CRS"),
        (lambda g: GeoBox(g.shape, g.affine * Affine.scale(1.01, 1), g.crs), "not nested"),
        (lambda g: g.flipy(), "north-up"),
    ],
)
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_grids_that_do_not_nest_are_refused(change, message):
    base = GeoBox((9, 9), Affine(10, 0, 0, 0, -10, 0), "EPSG:32648")
    with pytest.raises(GridError, match=message):
        nested_offset(base, change(coarsen_grid(base, 3)))


@pytest.mark.parametrize("factor", [0, -2, 1.5])
def test_factor_has_to_be_a_positive_integer(factor):
    with pytest.raises(GridError, match="factor: expected a positive integer"):
        coarsen_grid(make_grid(HANOI, resolution=100), factor)


@pytest.mark.parametrize(
    ("resolution", "crs", "native", "factor"),
    [
        (100, "utm", 231.65635826, 2),
        (100, "utm", 9000, 90),
        (100, "utm", 100, 1),
        (100, "utm", 30, 1),
        (0.1, "utm", 0.3, 3),  # 0.3 / 0.1 is below 3 in floating point
        (0.01, "EPSG:4326", 9000, 8),  # a hundredth of a degree is 1113 m
        (100, "EPSG:2225", 100, 3),  # US survey feet
    ],
)
def test_nesting_factor_loses_no_native_detail(resolution, crs, native, factor):
    region = (-122.01, 38.0, -122.0, 38.01)
    assert nesting_factor(make_grid(region, resolution=resolution, crs=crs), native) == factor


def test_nesting_factor_needs_a_size():
    with pytest.raises(GridError, match="native_resolution"):
        nesting_factor(make_grid(HANOI, resolution=100), 0)


# --- tiles, margins, coordinates -----------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(grid=base_grids(), size=st.integers(1, 70))
def test_tiles_partition_the_grid(grid, size):
    seen = np.zeros(grid.shape, int)
    for tile in iter_tiles(grid, size):
        seen[tile.y, tile.x] += 1
        assert tile.geobox == grid[tile.y, tile.x]
        assert tile.index == (tile.y.start // size, tile.x.start // size)
        assert max(tile.geobox.shape) <= size
    assert (seen == 1).all()


def test_tile_size_and_margin_have_to_be_whole_numbers():
    grid = make_grid(HANOI, resolution=100)
    with pytest.raises(GridError, match="size: expected a positive"):
        list(iter_tiles(grid, 0))
    with pytest.raises(GridError, match="pixels: expected a whole number"):
        pad_grid(grid, -1)


def test_margin_keeps_the_lattice():
    grid = make_grid(HANOI, resolution=100)
    padded = pad_grid(grid, 3)
    assert padded.shape == (grid.shape.y + 6, grid.shape.x + 6)
    assert padded[3:-3, 3:-3] == grid
    assert pad_grid(grid, 0) == grid


@pytest.mark.parametrize("crs", ["utm", "EPSG:4326"])
def test_coordinates_are_y_and_x_in_every_crs(crs):
    grid = make_grid(HANOI, resolution=0.01 if crs == "EPSG:4326" else 1000, crs=crs)
    coords = grid_coords(grid)
    assert set(coords) == {"y", "x", "spatial_ref"}
    assert coords["y"].dtype == coords["x"].dtype == np.float64
    assert (np.diff(coords["y"]) < 0).all()
    assert coords["x"][0] == grid.affine.c + grid.affine.a / 2


def test_grids_have_to_be_north_up():
    grid = make_grid(HANOI, resolution=100)
    assert require_north_up(grid) == grid.crs
    for odd in (grid.flipx(), GeoBox((2, 2), grid.affine, None)):
        with pytest.raises(GridError, match="north-up grid with a CRS"):
            require_north_up(odd)
