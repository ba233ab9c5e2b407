import dask
import numpy as np
import pandas as pd
import pytest
from odc.geo.geobox import GeoBox

from smgrid.cube.build import load_cube
from smgrid.cube.store import open_cube, write_cube
from smgrid.errors import CatalogError, ConfigError, SourceError, WindowError
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


def test_a_cube_says_how_it_was_described(catalog):
    path = catalog()
    attrs = load_cube(grid(), PERIOD, catalog=path).attrs
    assert attrs["smgrid_period"] == "2020-01-01/2021-03-31"
    assert attrs["smgrid_catalog"] == "made-up"
    assert attrs["smgrid_catalog_path"] == [str(path)]
    assert not {"smgrid_scenes", "smgrid_convention"} & attrs.keys()
    given = {"scenes": "2021-03", "convention": "sigma0", "chunks": 64}
    attrs = load_cube(grid(), PERIOD, catalog=path, **given).attrs
    assert attrs["smgrid_scenes"] == "2021-03-01/2021-03-31"
    assert attrs["smgrid_convention"] == "sigma0"
    # How it is cut in memory decides no value: a store may be resumed with smaller tiles.
    assert load_cube(grid(), PERIOD, catalog=path, **given | {"chunks": 32}).attrs == attrs
    again = load_cube(grid(), attrs["smgrid_period"], catalog=attrs["smgrid_catalog_path"])
    assert again.attrs["smgrid_catalog"] == "made-up"


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


FALLBACKS = """\
smgrid_catalog: 1
name: chains
title: Sources that stand in for others
sources:
  rtc:
    loader: tests.providers:load_passes
    provides: [vv, vh]
    convention: gamma0
    fallbacks: [opera]
    options: {value: -11, passes: [["2021-03-02T05:30", sentinel-1a, 37]]}
  opera:
    loader: tests.providers:load_passes
    provides: [vv, vh]
    convention: gamma0
    credentials: [SMGRID_TEST_TOKEN]
    options:
      value: -12
      passes:
        - ["2021-03-02T05:30:07", sentinel-1a, 37]
        - ["2021-03-08T05:30", sentinel-1a, 37]
  modis:
    loader: tests.providers:load_series
    provides: [ndvi]
    native_resolution: 231.7
    last_day: 2020-12-31
    fallbacks: [viirs]
    options: {value: 0.5}
  viirs:
    loader: tests.providers:load_series
    provides: [ndvi]
    native_resolution: 463.3
    options: {value: 0.25}
  weather:
    loader: tests.providers:load_series
    provides: [t2m, tp]
    native_resolution: 231.7
    options: {value: 280}
  survey:
    loader: tests.providers:load_static
    provides: [sand]
    fallbacks: [soilgrids]
    options: {fate: no data}
  soilgrids:
    loader: tests.providers:load_static
    provides: [sand, clay]
    options: {value: 400}
"""


@pytest.fixture
def chains(tmp_path, monkeypatch):
    monkeypatch.setenv("SMGRID_TEST_TOKEN", "anything")
    path = tmp_path / "chains.yml"
    path.write_text(FALLBACKS.replace("provides: [t2m, tp]", "provides: [t2m]"))
    return path


def test_what_was_used_for_which_date_is_in_the_store(chains, tmp_path):
    cube = load_cube(grid(), PERIOD, catalog=chains)
    assert set(cube.children) == {"base", "x2", "x2_daily"}
    write_cube(cube, tmp_path / "cube.zarr", shard=256)
    stored = open_cube(tmp_path / "cube.zarr")
    for opened in (cube, stored):
        base, ndvi = opened["base"].to_dataset(), opened["x2"].to_dataset()
        assert base["source"].values.tolist() == ["rtc", "opera"]
        assert base["vv"].isel(y=0, x=0).values.tolist() == [-11, -12]
        assert base["vv"].attrs["source"] == "rtc, opera"
        assert base["sand"].attrs["source"] == "soilgrids"
        assert "clay" not in base
        used = ndvi["ndvi_source"].to_series()
        assert set(used[:"2020-12-31"]) == {"modis"}
        assert set(used["2021-01-01":]) == {"viirs"}
        assert ndvi["ndvi_source"].dims == ("date",)
        values = ndvi["ndvi"].isel(y=0, x=0).values
        np.testing.assert_array_equal(values, np.where(used == "modis", 0.5, 0.25))
        assert "ndvi_source" not in opened["x2_daily"].coords
    assert write_cube(cube, tmp_path / "cube.zarr", shard=256).written == 0


def test_every_missing_credential_is_found_before_anything_is_read(chains, monkeypatch, tmp_path):
    log = tmp_path / "log"
    text = chains.read_text().replace("options: {", f"options: {{log: {log}, ")
    chains.write_text(text)
    monkeypatch.delenv("SMGRID_TEST_TOKEN")
    message = r"chains\.yml, line 11: opera needs the environment variable SMGRID_TEST_TOKEN"
    with pytest.raises(ConfigError, match=message):
        load_cube(grid(), PERIOD, catalog=chains)
    assert not log.exists()


LABELS = """\
smgrid_catalog: 1
name: labels
title: Labels on two grids
sources:
  smap-l3: {loader: "tests.providers:load_labels", provides: [smap_soil_moisture], options: {km: 9}}
"""


def test_labels_lie_in_one_group_or_in_one_for_each_source(tmp_path):
    path = tmp_path / "labels.yml"
    path.write_text(LABELS)
    assert set(load_cube(grid(), PERIOD, catalog=path).children) == {"labels"}
    other = LABELS.splitlines()[-1].replace("smap-l3", "smap 1km").replace("9", "1")
    path.write_text(LABELS + other.replace("[smap_soil", "[smap_1km_soil") + "\n")
    cube = load_cube(grid(), PERIOD, catalog=path)
    assert set(cube.children) == {"labels_smap_l3", "labels_smap_1km"}
    for name, variable, edge in (("smap_l3", "smap", 9000), ("smap_1km", "smap_1km", 1000)):
        labels = cube[f"labels_{name}"].to_dataset()
        assert set(labels.data_vars) == {f"{variable}_soil_moisture"}
        assert labels.odc.geobox.resolution.x == pytest.approx(edge, rel=0.01)


def test_sources_of_labels_that_would_share_a_group_are_refused(tmp_path):
    path = tmp_path / "labels.yml"
    other = LABELS.splitlines()[-1].replace("smap-l3", "smap_l3")
    path.write_text(LABELS + other.replace("[smap_soil", "[smap_1km_soil") + "\n")
    with pytest.raises(CatalogError, match="another source of labels is called smap_l3"):
        load_cube(grid(), PERIOD, catalog=path)
