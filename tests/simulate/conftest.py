"""One small world for the tests of all written files, and land with a feature at a known place."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from odc.geo.geobox import GeoBox

from smgrid.grid import pixel_centres, transform_points
from smgrid.simulate import simulate_world
from smgrid.simulate.evolution import Day, make_land
from smgrid.simulate.frame import make_frame
from smgrid.simulate.soil import describe_soil

UTM = "EPSG:32630"
HILL = (299_140.0, 4_574_770.0)  # metres; on no pixel's centre or corner
WIDTH = 600.0  # metres


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    path = tmp_path_factory.mktemp("simulate") / "world"
    return simulate_world(path, size_km=2, months=2, stations=4, seed=3)


@pytest.fixture(scope="session")
def base():
    return GeoBox.from_bbox((295_000, 4_571_000, 303_000, 4_579_000), UTM, resolution=100)


@pytest.fixture(scope="session")
def hill():
    """Make the field of a grid: 1 at `HILL`, falling to 0 around it."""

    def field(grid):
        x, y = pixel_centres(grid, UTM)
        distance = (x - HILL[0]) ** 2 + (y - HILL[1]) ** 2
        return np.exp(-distance / (2 * WIDTH**2)).astype(np.float32)

    return field


@pytest.fixture(scope="session")
def land(base, hill):
    """Land whose elevation and soil are flat but for one feature at `HILL`."""
    land = make_land(make_frame(base), seed=1)
    on_domain, on_fine = hill(land.frame.domain), hill(land.terrain.fine_grid)
    soil = describe_soil(0.2 + 0.5 * on_domain, 0.4 - 0.3 * on_domain)
    terrain = replace(land.terrain, fine=500 + 200 * on_fine, elevation=500 + 200 * on_domain)
    return replace(land, terrain=terrain, soil=soil)


@pytest.fixture(scope="session")
def make_day(land):
    """Make a day of fields on the domain; what is not given is the same everywhere."""

    def day(date, *, moisture=0.2, ndvi=0.3, temperature=12.0):
        shape = land.frame.domain.shape.yx

        def full(value):
            return np.broadcast_to(np.asarray(value, dtype=np.float32), shape).copy()

        return Day(
            date=pd.Timestamp(date),
            moisture=full(moisture),
            ndvi=full(ndvi),
            temperature=full(temperature),
            vigour=full(1.0),
            growth=np.zeros_like(land.parcels.span),
        )

    return day


@pytest.fixture(scope="session")
def offset_of_hill():
    """Measure how far [m] a raster's feature lies from `HILL`, to the east and to the north."""

    def offset(values, transform, crs):
        values = np.asarray(values, dtype=np.float64)
        strength = np.clip((values - values.min()) / np.ptp(values) - 0.3, 0, None)
        row, column = np.indices(values.shape)
        x = transform.c + transform.a * (column + 0.5)
        y = transform.f + transform.e * (row + 0.5)
        x, y = transform_points(x, y, crs, UTM)
        total = strength.sum()
        return (strength * x).sum() / total - HILL[0], (strength * y).sum() / total - HILL[1]

    return offset
