import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from smgrid.errors import GridError
from smgrid.grid import make_grid, pixel_centres
from smgrid.simulate.frame import (
    bilinear,
    bounds_in,
    cell_mean,
    lattice_window,
    make_frame,
    nearest_pixels,
)

METRES = "EPSG:32630"


def ramp(grid):
    """A field that is its own position, in thousands of metres."""
    x, y = pixel_centres(grid, METRES)
    return (x - 3e5) / 1000 + 2 * (y - 4.57e6) / 1000


def box(x, y, width, height, resolution, crs=METRES):
    return GeoBox.from_bbox(
        (x, y, x + width, y + height), crs, resolution=resolution, anchor="edge"
    )


SOURCE = box(290_000, 4_560_000, 30_000, 30_000, 100)


@pytest.mark.parametrize(
    "place", [(-5.4, 41.3), (105.9, 20.4), (146.1, -34.7), (25.0, 67.0), (-0.01, 0.01)]
)
def test_the_domain_holds_region_and_every_ease_cell_that_touches_it(place):
    lon, lat = place
    base = make_grid((lon, lat, lon + 0.06, lat + 0.05), resolution=200)
    frame = make_frame(base)
    x0, y0, x1, y1 = bounds_in(frame.ease, base.crs)
    outer = frame.domain.boundingbox
    assert outer.left <= x0
    assert outer.bottom <= y0
    assert outer.right >= x1
    assert outer.top >= y1
    assert frame.domain[frame.inner] == base
    west, south, east, north = bounds_in(base, "EPSG:4326")
    lon0, lat0, lon1, lat1 = bounds_in(frame.ease, "EPSG:4326")
    assert lon0 <= west
    assert east <= lon1
    assert lat0 <= south
    assert north <= lat1


def test_a_region_across_the_antimeridian_is_refused():
    with pytest.raises(GridError, match="antimeridian; move the centre"):
        make_frame(box(160_000, 1_000_000, 16_000, 4_000, 100, "EPSG:32601"))


@settings(max_examples=50, deadline=None)
@given(
    left=st.floats(-1e6, 1e6),
    bottom=st.floats(-1e6, 1e6),
    width=st.floats(1, 5000),
    height=st.floats(1, 5000),
    step=st.sampled_from([(250.0, 250.0), (231.65635826395825, 231.65635826395825), (30.0, 20.0)]),
)
def test_lattice_window_is_the_smallest_cover_on_the_lattice(left, bottom, width, height, step):
    origin = (-123.25, 77.5)
    right, top = left + width, bottom + height
    window = lattice_window((left, bottom, right, top), METRES, origin=origin, step=step)
    got = window.boundingbox
    tiny = 1e-6
    assert got.left <= left + tiny
    assert left - got.left < step[0] + tiny
    assert got.right >= right - tiny
    assert got.right - right < step[0] + tiny
    assert got.bottom <= bottom + tiny
    assert bottom - got.bottom < step[1] + tiny
    assert got.top >= top - tiny
    assert got.top - top < step[1] + tiny
    columns, rows = (got.left - origin[0]) / step[0], (got.top - origin[1]) / step[1]
    assert abs(columns - round(columns)) < 1e-5
    assert abs(rows - round(rows)) < 1e-5


def test_lattice_window_refuses_a_region_that_is_torn_apart():
    with pytest.raises(GridError, match="torn apart"):
        lattice_window((-2e7, -8e6, 2e7, 8e6), "ESRI:54052", origin=(0, 0), step=(250, 250))


@pytest.mark.parametrize("resolution", [200, 231.6, 1000])
def test_cell_means_of_a_plane_are_its_values_at_the_centres(resolution):
    target = box(300_037, 4_570_011, 5_000, 4_000, resolution)
    found = cell_mean(SOURCE, target, parts=20)(ramp(SOURCE))
    # Points fall on whole source pixels: up to half of one is left of the plane.
    assert np.abs(found - ramp(target)).max() < 0.06
    assert abs((found - ramp(target)).mean()) < 0.02


def test_cell_means_are_those_of_the_covered_pixels():
    field = np.random.default_rng(0).random(SOURCE.shape).astype(np.float32)
    target = box(300_000, 4_570_000, 4_000, 4_000, 500)
    found = cell_mean(SOURCE, target, parts=5)(field)
    expected = field[160:200, 100:140].reshape(8, 5, 8, 5).mean(axis=(1, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_bilinear_interpolation_is_exact_on_a_plane_and_continues_the_edge():
    target = box(300_013, 4_570_029, 3_000, 3_000, 37)
    np.testing.assert_allclose(bilinear(SOURCE, target)(ramp(SOURCE)), ramp(target), atol=1e-4)
    outside = box(280_000, 4_575_000, 1_000, 1_000, 100)
    assert bilinear(SOURCE, outside)(ramp(SOURCE)).min() >= ramp(SOURCE).min()


def test_nearest_pixels_pick_the_pixel_that_holds_the_centre():
    field = np.arange(SOURCE.shape[0] * SOURCE.shape[1]).reshape(SOURCE.shape)
    target = box(300_060, 4_570_020, 400, 300, 20)
    picked = field[np.ix_(*nearest_pixels(SOURCE, target))]
    x, y = pixel_centres(target, METRES)
    expected = field[((4_590_000 - y) // 100).astype(int), ((x - 290_000) // 100).astype(int)]
    assert np.array_equal(picked, expected)
