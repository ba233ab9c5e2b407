import numpy as np
import pytest
import rasterio
from pyproj import CRS

from smgrid.simulate.soilgrids import file_name, write_soil


@pytest.fixture(scope="module")
def folder(land, tmp_path_factory):
    folder = tmp_path_factory.mktemp("soil")
    write_soil(folder, land)
    return folder


@pytest.mark.parametrize("variable", ["sand", "clay", "bdod"])
def test_the_patch_lies_where_it_is(folder, variable, offset_of_hill):
    with rasterio.open(folder / file_name(variable)) as file:
        values = file.read(1).astype(float)
        sign = -1 if variable == "clay" else 1
        east, north = offset_of_hill(sign * values, file.transform, file.crs.to_wkt())
    # Half of a pixel would be 125 m.
    assert abs(east) < 20
    assert abs(north) < 20


def test_units_are_those_of_the_provider(folder, land):
    soil, inner = land.soil, land.frame.inner
    expected = {
        "sand": 1000 * soil.sand,
        "clay": 1000 * soil.clay,
        "bdod": 100 * soil.bulk_density,
    }
    for variable, field in expected.items():
        with rasterio.open(folder / file_name(variable)) as file:
            values = file.read(1, masked=True)
            assert file.dtypes == ("int16",)
            assert file.nodata == -32768
        assert not values.mask.any()
        assert abs(values.max() - field[inner].max()) < 0.05 * np.ptp(field)
        assert abs(values.min() - field[inner].min()) < 0.05 * np.ptp(field)


def test_lattice_and_projection_are_those_of_the_provider(folder):
    with rasterio.open(folder / file_name("sand")) as file:
        assert file.res == (250, 250)
        assert file.transform.c % 250 == 0
        assert file.transform.f % 250 == 0
        crs = CRS.from_wkt(file.crs.to_wkt())
    assert "Homolosine" in crs.to_wkt()
    assert crs.is_projected


def test_the_region_and_a_kilometre_around_it_are_covered(folder, base):
    from smgrid.simulate.frame import bounds_in

    left, bottom, right, top = bounds_in(base, "ESRI:54052", margin=1000)
    with rasterio.open(folder / file_name("clay")) as file:
        bounds = file.bounds
    assert bounds.left <= left
    assert bounds.bottom <= bottom
    assert bounds.right >= right
    assert bounds.top >= top
