"""Incidence angles between the points of geolocation grids, on every real annotation."""

import zipfile

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from smgrid.grid import make_grid
from smgrid.sources.annotation import GeolocationGrid
from smgrid.sources.geolocation import footprint, incidence_angle, locate
from tests.sources.real_products import ANNOTATIONS, open_real, real_file


@pytest.mark.shared
@pytest.mark.parametrize(("name", "polarisation"), ANNOTATIONS)
def test_angles_at_the_products_own_points(shared, name, polarisation):
    grid = open_real(shared, name).read_annotation(polarisation).grid
    position = locate(grid, grid.longitude, grid.latitude)
    rows, columns = np.indices(grid.incidence.shape)
    np.testing.assert_allclose(position.row, rows, atol=1e-6)
    np.testing.assert_allclose(position.column, columns, atol=1e-6)
    np.testing.assert_allclose(position.interpolate(grid.incidence), grid.incidence, atol=1e-6)


@pytest.mark.shared
@pytest.mark.parametrize(("name", "polarisation"), ANNOTATIONS)
def test_angles_between_them_against_xarray_sentinel(shared, tmp_path, name, polarisation):
    from xarray_sentinel.sentinel1 import open_gcp_dataset

    with zipfile.ZipFile(real_file(shared, name)) as archive:
        member = next(
            member
            for member in archive.namelist()
            if f"-grd-{polarisation}-" in member and "/annotation/s1" in member
        )
        path = archive.extract(member, tmp_path)
    points = open_gcp_dataset(path).swap_dims(azimuth_time="line", slant_range_time="pixel")
    rng = np.random.default_rng(1)
    at = {
        dim: xr.DataArray(rng.uniform(0, float(points[dim][-1]), 4000), dims="sample")
        for dim in ("line", "pixel")
    }
    wanted = points[["longitude", "latitude", "incidenceAngle"]].interp(at)
    grid = open_real(shared, name).read_annotation(polarisation).grid
    position = locate(grid, wanted["longitude"].values, wanted["latitude"].values)
    found = position.interpolate(grid.incidence)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, wanted["incidenceAngle"].values, atol=1e-4)


@pytest.mark.shared
@pytest.mark.parametrize(("name", "polarisation"), ANNOTATIONS)
def test_angles_on_a_grid_end_with_the_swath(shared, name, polarisation):
    geolocation = open_real(shared, name).read_annotation(polarisation).grid
    outline = footprint(geolocation)
    grid = make_grid(tuple(outline.boundingbox), resolution=5000)
    angle = incidence_angle(geolocation, grid)
    assert angle.shape == grid.shape
    for y in range(0, grid.shape.y, 5):
        for x in range(0, grid.shape.x, 5):
            centre = grid[y : y + 1, x : x + 1].footprint("EPSG:4326").centroid
            # Straight lines between points are straight in degrees only here.
            assert np.isfinite(angle[y, x]) == outline.contains(centre)
    assert 29 < np.nanmin(angle) < 32
    assert 45 < np.nanmax(angle) < 47


def bent_grid(seed=0, longitude=10.0, latitude=45.0, rows=4, columns=5):
    """A rotated grid with bumps, as terrain makes them."""
    rng = np.random.default_rng(seed)
    i, j = np.indices((rows, columns)).astype(float)
    u, v = 0.16 * j - 0.04 * i, 0.03 * j + 0.18 * i
    u, v = u + rng.uniform(-0.03, 0.03, u.shape), v + rng.uniform(-0.02, 0.02, u.shape)
    flat = np.zeros((rows, columns))
    return GeolocationGrid(
        line=np.array([0, 2000, 4000, 4700.0])[:rows],
        pixel=np.arange(columns) * 1300.0,
        longitude=(longitude + u + 180) % 360 - 180,
        latitude=latitude + v,
        height=flat,
        incidence=30.0 + 3 * j + 0.1 * i + rng.uniform(-0.1, 0.1, flat.shape),
        elevation=flat,
        azimuth_time=flat.astype("datetime64[ns]"),
        slant_range_time=flat,
    )


@given(
    seed=st.integers(0, 1000),
    row=st.floats(0, 3),
    column=st.floats(0, 4),
    longitude=st.sampled_from([10.0, 179.8, -179.9, 0.0]),
    latitude=st.sampled_from([-70.0, -18.0, 0.0, 45.0, 70.0]),
)
@settings(max_examples=200, deadline=None)
def test_positions_are_found_again(seed, row, column, longitude, latitude):
    grid = bent_grid(seed, longitude, latitude)
    i, j = min(int(row), 2), min(int(column), 3)
    s, t = row - i, column - j

    def at(values):
        upper = (1 - t) * values[i, j] + t * values[i, j + 1]
        return (1 - s) * upper + s * ((1 - t) * values[i + 1, j] + t * values[i + 1, j + 1])

    east = at((grid.longitude - longitude + 180) % 360 - 180) + longitude
    found = locate(grid, np.array([east]), np.array([at(grid.latitude)]))
    assert found.row[0] == pytest.approx(row, abs=1e-5)
    assert found.column[0] == pytest.approx(column, abs=1e-5)
    assert found.interpolate(grid.incidence)[0] == pytest.approx(at(grid.incidence), abs=1e-4)


def test_the_image_ends_at_its_outermost_samples():
    """Within a sample of the last line a place still belongs to the image, beyond it does not."""
    grid = bent_grid()
    last, before = (np.array([grid.longitude[k, 2], grid.latitude[k, 2]]) for k in (-1, -2))
    per_line = (last - before) / (grid.line[-1] - grid.line[-2])
    near, far = last + 0.8 * per_line, last + 1.2 * per_line
    found = locate(grid, *np.array([near, far]).T)
    assert np.isfinite(found.row).tolist() == [True, False]
    assert np.isnan(found.interpolate(grid.incidence)[1])


def test_places_that_do_not_exist_are_outside():
    found = locate(bent_grid(), np.array([np.inf, np.nan, 10.3]), np.array([np.inf, 45.2, 45.3]))
    assert np.isfinite(found.row).tolist() == [False, False, True]


def test_a_grid_far_away_is_all_nan():
    grid = GeoBox.from_bbox((20, 50, 21, 51), "EPSG:4326", resolution=0.1)
    assert np.isnan(incidence_angle(bent_grid(), grid)).all()


def test_the_footprint_crosses_the_antimeridian_in_one_piece():
    outline = footprint(bent_grid(longitude=179.8))
    assert outline.boundingbox.width < 2
