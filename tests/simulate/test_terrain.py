import numpy as np
from odc.geo.geobox import GeoBox

from smgrid.simulate.frame import Frame
from smgrid.simulate.terrain import block_mean, fill_sinks, make_terrain, wetness_index


def frame(size=60):
    domain = GeoBox.from_bbox(
        (3e5, 4.5e6, 3e5 + size * 100, 4.5e6 + size * 100), "EPSG:32630", resolution=100
    )
    return Frame(domain, domain, domain)


def test_elevation_is_the_mean_of_the_fine_surface():
    terrain = make_terrain(frame(), seed=1)
    assert terrain.fine.shape == (180, 180)
    assert terrain.fine_grid.boundingbox == frame().domain.boundingbox
    np.testing.assert_allclose(terrain.elevation[2, 3], terrain.fine[6:9, 9:12].mean(), rtol=1e-6)
    assert terrain.fine.min() > 0
    assert 50 < np.ptp(terrain.fine) < 1000


def test_block_mean_of_known_blocks():
    field = np.arange(16, dtype=np.float32).reshape(4, 4)
    assert np.array_equal(block_mean(field, 2), [[2.5, 4.5], [10.5, 12.5]])


def test_every_inner_pixel_of_a_filled_surface_has_a_lower_neighbour():
    rough = np.random.default_rng(0).normal(0, 10, (40, 50)).astype(np.float32)
    filled = fill_sinks(rough)
    assert (filled >= rough).all()
    around = [np.roll(filled, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
    assert (np.min(around, axis=0) < filled)[1:-1, 1:-1].all()


def test_surface_without_sinks_is_not_changed():
    plane = np.add.outer(np.arange(20.0), np.zeros(20)).astype(np.float32)
    assert np.array_equal(fill_sinks(plane), plane)


def test_wetness_of_a_plane_grows_with_the_length_of_the_slope():
    """On a plane the area per contour length is the distance to the divide."""
    y = np.arange(50)
    plane = np.repeat((50.0 - y)[:, None], 201, axis=1).astype(np.float32)  # falls by 1 m per row
    index = wetness_index(plane, 100.0)[:, 100]  # far from the sides, which are divides
    width = 0.5 + 2 * 0.354  # contour that faces the three lower neighbours [pixels]
    gradient = (0.5 + 2 * 0.354 / np.sqrt(2)) / 100 / width
    expected = np.log((y[:-1] + 1) * 100.0 / width / gradient)
    np.testing.assert_allclose(index[:-1], expected, atol=2e-3)


def test_valley_floor_is_wetter_than_its_sides():
    x = np.abs(np.arange(41) - 20.0)
    valley = (5 * x[None, :] + 0.5 * np.arange(60)[::-1, None]).astype(np.float32)
    index = wetness_index(valley, 100.0)
    assert index[40, 20] > index[40, 5:18].max() + 2
    assert index[50, 20] > index[10, 20]
