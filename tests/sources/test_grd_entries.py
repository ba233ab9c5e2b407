"""Ground range products as catalogs name them: files, items, passes, and what is refused."""

import dask
import numpy as np
import pytest

from smgrid.errors import CatalogError, MissingDependencyError, NoDataError, SourceError
from smgrid.grid import make_grid
from smgrid.sources import load_source
from smgrid.sources.grd import load_safe
from smgrid.windows import Period
from tests.safe_scene import Scene, ramps
from tests.services import range_server
from tests.sources.grd_builders import (
    PERIOD,
    grd_item,
    grd_spec,
    region,
    stac,
    write_dem,
    write_geoid,
)


def test_passes_of_all_satellites_are_told_apart(tmp_path):
    scenes = [
        Scene(ramps(), start="2024-03-05T17:32:00"),
        Scene(ramps(), start="2024-03-11T17:32:10.5", mission="S1B", orbit=27, relative_orbit=None),
        Scene(ramps(), start="2024-03-12T17:32:00", mission="S1C", orbit=8019, relative_orbit=None),
        Scene(ramps(), start="2024-03-13T17:32:00", mission="S1D", orbit=2389, relative_orbit=None),
        Scene(ramps(), start="2024-04-01T00:00:00"),
    ]
    ds = load_source(grd_spec(tmp_path, *scenes), region(100), PERIOD)
    assert ds["platform"].values.tolist() == [f"sentinel-1{letter}" for letter in "abcd"]
    assert ds["relative_orbit"].values.tolist() == [88, 1, 46, 73]
    assert set(ds["orbit_state"].values.tolist()) == {"ascending"}
    assert str(ds["time"].values[1]) == "2024-03-11T17:32:10.000000000"


def test_a_product_of_one_polarisation_gives_that_one(tmp_path):
    single = Scene({"vv": ramps()["vv"]}, start="2024-03-11T17:32:00")
    ds = load_safe(grd_spec(tmp_path, Scene(ramps()), single), region(100), PERIOD).compute()
    assert np.isfinite(ds["vv"].values).any(axis=(1, 2)).tolist() == [True, True]
    assert np.isfinite(ds["vh"].values).any(axis=(1, 2)).tolist() == [True, False]


def test_images_are_read_when_computed_and_named_when_missing(tmp_path):
    scene = Scene(ramps())
    spec = grd_spec(tmp_path, scene)
    image = next((tmp_path / f"{scene.name}.SAFE" / "measurement").glob("*vv*"))
    image.write_bytes(b"nothing")
    ds = load_safe(spec, region(100), PERIOD)
    with pytest.raises(SourceError, match=rf"{image.name} cannot be read"):
        ds.compute()


def test_tiles_of_a_dem_are_joined(tmp_path):
    west = write_dem(tmp_path, lambda x, y: np.where(x < 638_800, 100.0, -9999.0), name="west.tif")
    east = write_dem(tmp_path, lambda x, y: np.where(x < 638_800, -9999.0, 100.0), name="east.tif")
    scene, grid = Scene(ramps()), region(20)
    tiles = grd_spec(tmp_path, scene, options={"dem": [str(west), str(east)]})
    whole = grd_spec(tmp_path, scene, dem=write_dem(tmp_path, 100.0))
    found, expected = (load_safe(spec, grid, PERIOD)["vv"].values for spec in (tiles, whole))
    np.testing.assert_array_equal(found, expected)


def test_a_geoid_of_another_region_is_refused(tmp_path):
    geoid = {"heights": "geoid", "geoid": write_geoid(tmp_path, 44.0, (30, 40, 40, 60))}
    with pytest.raises(NoDataError, match=r"geoid.tif .* do not overlap"):
        load_safe(grd_spec(tmp_path, Scene(ramps()), options=geoid), region(100), PERIOD)
    edge = {"heights": "geoid", "geoid": write_geoid(tmp_path, 44.0, (-10, 40, 5, 60))}
    ds = load_safe(grd_spec(tmp_path, Scene(ramps()), options=edge), region(100), PERIOD)
    with pytest.raises(SourceError, match=r"the geoid of test\.yml, line 1 has no value at 50"):
        ds.compute()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"convention": "gamma0"}, "convention of grd is 'gamma0'; .* calibrates to sigma0"),
        ({"native_resolution": 0.0}, "native_resolution of grd is missing"),
        ({"options": {"heights": None}}, "options.heights of grd is missing; use geoid or"),
        ({"options": {"heights": "geoid"}}, "options.geoid of grd is missing; give a raster of"),
        ({"options": {"dem": "no.tif"}}, "options.dem of grd is 'no.tif', which is no file"),
        ({"options": {"dem": {"href": "x"}}}, "a collection needs href, collection, asset, sign"),
        ({"options": {"average": "max"}}, "options.average of grd is 'max'"),
        ({"options": {"speckle": "lee"}}, "options.speckle of grd: unknown key"),
    ],
)
def test_an_entry_that_is_not_understood_is_refused(tmp_path, changes, message):
    with pytest.raises(CatalogError, match=message):
        load_safe(grd_spec(tmp_path, Scene(ramps()), **changes), region(100), PERIOD)


def test_without_the_extra_nothing_is_loaded(tmp_path, monkeypatch):
    spec = grd_spec(tmp_path, Scene(ramps()))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"smgrid\[safe\]"):
        load_safe(spec, region(100), PERIOD)


def test_a_region_or_period_without_a_pass_has_no_data(tmp_path):
    spec = grd_spec(tmp_path, Scene(ramps()))
    with pytest.raises(NoDataError, match="grd has no data for 2023"):
        load_safe(spec, region(100), Period.parse(("2023-01-01", "2023-01-31")))
    with pytest.raises(NoDataError, match="grd has no data"):
        load_safe(spec, make_grid((20, 50, 20.1, 50.1), resolution=100), PERIOD)


def test_items_of_a_collection_give_what_their_files_give(tmp_path):
    scene = Scene(ramps())
    files = grd_spec(tmp_path, scene)
    items = grd_spec(tmp_path, scene, paths=(), stac=stac(tmp_path, [grd_item(scene, tmp_path)]))
    found, expected = (load_safe(spec, region(50), PERIOD).compute() for spec in (items, files))
    assert found.identical(expected)


def test_items_are_read_over_http_despite_faults(tmp_path, monkeypatch):
    monkeypatch.setenv("SMGRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SMGRID_RETRY_PAUSES", "0.05,0.05,0.05")
    monkeypatch.setattr("smgrid.sources.download._PAUSES", (0.05, 0.05, 0.05))
    scene, grid = Scene(ramps()), region(50)
    files = grd_spec(tmp_path, scene)
    with range_server(tmp_path) as server:
        query = stac(tmp_path, [grd_item(scene, server.url)])
        items = grd_spec(tmp_path, scene, paths=(), stac=query)
        ds = load_safe(items, grid, PERIOD)
        server.set(status=503, fail=2)
        with dask.config.set(scheduler="synchronous"):
            found = ds.compute()
            first = len(server.log())
            again = ds.compute()
        documents = [path for path in server.log()[first:] if path.endswith(".xml")]
    assert found.identical(again)
    assert not documents, "documents are fetched once"
    assert found.identical(load_safe(files, grid, PERIOD).compute())
