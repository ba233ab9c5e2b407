import numpy as np
from odc.geo.geobox import GeoBox

from smgrid.grid import pixel_centres
from smgrid.simulate.frame import Frame
from smgrid.simulate.vegetation import COVERS, PARCEL_SIZE, follow_water, make_parcels, ndvi_of


def square(resolution, size=6000.0):
    return GeoBox.from_bbox(
        (3e5, 4.5e6, 3e5 + size, 4.5e6 + size), "EPSG:32630", resolution=resolution
    )


DOMAIN = square(100)
PARCELS = make_parcels(Frame(DOMAIN, DOMAIN, DOMAIN), seed=4)


def test_parcels_are_the_same_at_every_resolution():
    coarse, fine = PARCELS.locate(DOMAIN), PARCELS.locate(square(20))
    assert np.array_equal(coarse, fine[2::5, 2::5])  # the centres coincide


def test_a_parcel_is_where_its_centre_is_nearest():
    found = PARCELS.locate(DOMAIN)[::7, ::7]
    x, y = (c[::7, ::7] for c in pixel_centres(DOMAIN, DOMAIN.crs))
    distance = np.hypot(x[..., None] - PARCELS.x.ravel(), y[..., None] - PARCELS.y.ravel())
    # Only the 3 x 3 nearest cells of the lattice are searched.
    agreement = (distance.argmin(axis=-1) == found).mean()
    assert agreement > 0.98
    sizes = np.unique(PARCELS.locate(square(20)), return_counts=True)[1]
    assert abs(sizes[sizes > 0].mean() * 400 / PARCEL_SIZE**2 - 1) < 0.25


def test_every_cover_is_green_in_its_season():
    days = np.arange(1, 366)
    green = np.array([PARCELS.greenness(float(d)) for d in days])
    assert green.min() >= 0
    assert green.max() <= 1
    for kind, cover in enumerate(COVERS):
        mean = green[:, PARCELS.kind == kind].mean(axis=1)
        middle = (cover.green_up + cover.senescence) / 2
        assert abs(days[mean.argmax()] - middle) < 25
        assert mean.max() > 0.75
    jumps = np.abs(np.diff(np.vstack([green, green[:1]]), axis=0)).max()
    assert jumps < 0.05  # the year is closed


def test_ndvi_stays_in_range_and_falls_in_a_drought():
    kind = PARCELS.kind == 0
    growth = (PARCELS.span * PARCELS.greenness(120.0))[kind]
    fresh, dry = (ndvi_of(PARCELS.floor[kind], growth, np.float32(v)) for v in (1.0, 0.0))
    assert 0.6 < fresh.mean() < 0.9
    assert dry.mean() < 0.45
    assert dry.min() > 0.05
    assert fresh.max() < 1.0


def test_vigour_follows_water_slowly():
    vigour, wet = np.float32([0.0]), np.float32([1.0])
    course = []
    for _ in range(60):
        vigour = follow_water(vigour, wet)
        course.append(float(vigour[0]))
    assert course[0] < 0.06
    assert 0.6 < course[19] < 0.7  # 1 - (1 - 1/20) ** 20
    assert course[-1] > 0.93
