import dask
import numpy as np
import pandas as pd
import pytest
from odc.geo.geobox import GeoBox

from smgrid.cube.build import load_cube
from smgrid.errors import SourceError, WindowError
from smgrid.grid import nested_offset

CATALOG = """\
smgrid_catalog: 1
name: made-up
title: Made up
sources:
  scenes:
    loader: tests.loaders:load_scene
    provides: [vv, vh]
    units: {{vv: dB, vh: dB}}
    convention: {convention}
    native_resolution: 10
  angle:
    loader: tests.loaders:load_angle
    provides: [angle]
    native_resolution: 10
    options: {{orbits: {orbits}}}
  soil:
    loader: tests.loaders:load_static
    provides: [sand, clay]
    native_resolution: 250
    licence: CC-BY-4.0
  ndvi:
    loader: tests.loaders:load_series
    provides: [ndvi]
    native_resolution: {ndvi}
  weather:
    loader: tests.loaders:load_series
    provides: [t2m, tp]
    native_resolution: {weather}
"""
PERIOD = ("2020-01-01", "2021-03-31")


@pytest.fixture
def catalog(tmp_path):
    def write(**changes):
        values = {"convention": "sigma0", "orbits": [161, 37], "ndvi": 231.7, "weather": 9000}
        path = tmp_path / "catalog.yml"
        path.write_text(CATALOG.format(**(values | changes)))
        return path

    return write


def grid(resolution=100, pixels=23):
    left, bottom = 500_300, 5_629_100
    edge = resolution * pixels
    bounds = (left, bottom, left + edge, bottom + edge)
    return GeoBox.from_bbox(bounds, "EPSG:32631", resolution=resolution, tight=True)


def test_variables_lie_on_nested_grids(catalog):
    cube = load_cube(grid(), PERIOD, catalog=catalog())
    assert set(cube.children) == {"base", "x2", "x90"}
    assert set(cube["base"].data_vars) == {"vv", "vh", "angle", "sand", "clay"}
    base = cube["base"].to_dataset().odc.geobox
    for name, factor in (("x2", 2), ("x90", 90)):
        assert nested_offset(base, cube[name].to_dataset().odc.geobox).factor == factor
    assert cube["base"]["sand"].attrs["license"] == "CC-BY-4.0"
    assert cube["base"]["sand"].attrs["source"] == "soil"


def test_series_of_two_calendars_on_one_grid_get_groups_of_their_own(catalog):
    cube = load_cube(grid(), PERIOD, catalog=catalog(ndvi=90, weather=50))
    assert set(cube.children) == {"base", "x1", "x1_daily"}
    assert set(cube["x1_daily"].data_vars) == {"t2m", "tp"}


def test_every_acquisition_gets_the_angle_of_its_own_orbit(catalog):
    base = load_cube(grid(), PERIOD, catalog=catalog())["base"].to_dataset()
    assert base["angle"].dims == ("time", "y", "x")
    per_time = base["angle"].isel(y=0, x=0).values
    np.testing.assert_allclose(per_time, base["relative_orbit"].values / 4)
    assert base["angle"].chunks == base["vv"].chunks


def test_an_orbit_without_an_angle_is_named(catalog):
    with pytest.raises(SourceError, match=r"orbits \[37\].*acquisitions of \[161\]"):
        load_cube(grid(), PERIOD, catalog=catalog(orbits=[37]))


def test_a_period_shorter_than_the_window_is_refused_before_anything_is_read(catalog):
    with pytest.raises(WindowError, match=r"has 366 days.*368"):
        load_cube(grid(), ("2020-01-01", "2020-12-31"), catalog=catalog())


def test_scenes_may_be_fewer_than_the_series(catalog):
    cube = load_cube(grid(), PERIOD, catalog=catalog(), scenes=("2021-03-01", "2021-03-31"))
    times = pd.DatetimeIndex(cube["base"]["time"].values)
    assert times[0] >= pd.Timestamp("2021-03-01")
    assert pd.Timestamp(cube["x90"]["date"].values[0]) == pd.Timestamp("2020-01-01")


def test_nothing_is_computed(catalog):
    def refuse(*_args, **_kwargs):
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        cube = load_cube(grid(), PERIOD, catalog=catalog(), convention="sigma0")
    for node in cube.children.values():
        assert all(v.chunks is not None for v in node.data_vars.values())


def test_gamma0_is_converted_only_when_asked(catalog):
    plain = load_cube(grid(), PERIOD, catalog=catalog(convention="gamma0"))
    assert plain["base"]["vv"].attrs["convention"] == "gamma0"
    converted = load_cube(grid(), PERIOD, catalog=catalog(convention="gamma0"), convention="sigma0")
    assert converted["base"]["vv"].attrs["convention"] == "sigma0"
    assert converted["base"]["vv"].attrs["approximate"] == 1
