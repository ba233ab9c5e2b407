"""How the pixels of a provider cover a grid."""

import pytest

from smgrid.sources.lattice import fine_grid
from tests.builders import utm_grid

GRID = utm_grid((8, 9), 100)


@pytest.mark.parametrize(("resolution", "factor"), [(10, 10), (20, 5), (100, 1)])
def test_one_tile_of_nested_pixels_is_one_tile_of_cells(resolution, factor):
    lattice = utm_grid((500, 500), resolution, left=500_000 - 20 * resolution)
    fine, edge = fine_grid(lattice, GRID, 4)
    assert edge == 4 * factor
    assert fine.boundingbox == GRID.boundingbox
    assert fine.shape == (8 * factor, 9 * factor)


@pytest.mark.parametrize(
    "lattice",
    [
        utm_grid((500, 500), 30),
        utm_grid((500, 500), 10, left=500_004),
        utm_grid((500, 500), 10, crs="EPSG:32632"),
    ],
)
def test_other_pixels_cover_the_grid_on_their_own_lattice(lattice):
    fine, _ = fine_grid(lattice, GRID, 4)
    assert fine.crs == lattice.crs
    assert fine.resolution == lattice.resolution
    for one, other in ((fine.affine.c, lattice.affine.c), (fine.affine.f, lattice.affine.f)):
        assert (one - other) / lattice.resolution.x == pytest.approx(
            round((one - other) / lattice.resolution.x), abs=1e-6
        )
    inside = GRID.footprint(fine.crs).boundingbox
    box, pixel = fine.boundingbox, lattice.resolution.x
    assert box.left <= inside.left - pixel
    assert box.right >= inside.right + pixel
    assert box.bottom <= inside.bottom - pixel
    assert box.top >= inside.top + pixel
