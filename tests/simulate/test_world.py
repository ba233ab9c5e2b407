import hashlib
import json

import numpy as np
import pytest
import xarray as xr
import yaml

from smgrid.errors import ConfigError, GridError, StoreError, TemplateMismatchError
from smgrid.grid import pixel_centres
from smgrid.schema import load_variables
from smgrid.simulate import open_world, simulate_world
from smgrid.simulate.evolution import make_land
from smgrid.simulate.frame import bounds_in, make_frame
from smgrid.simulate.plan import WorldPlan
from smgrid.simulate.weather import climate_at, make_weather

TINY = {"size_km": 2, "resolution": 500, "spacing": 100, "months": 1, "stations": 2}

PLAN = {
    "resolution": 100,
    "spacing": 20,
    "start": "2022-01-01",
    "months": 1,
    "seed": 0,
    "stations": 1,
    "looks": 4.4,
}


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return simulate_world(tmp_path_factory.mktemp("tiny") / "a", **TINY)


def test_the_same_seed_makes_the_same_files(tiny, tmp_path):
    other = simulate_world(tmp_path / "somewhere" / "else", **TINY)
    assert digests(other.path) == digests(tiny.path)


def test_another_seed_makes_another_world(tiny):
    frame = make_frame(tiny.grid)
    one, two = make_land(frame, 0), make_land(frame, 1)
    assert not np.array_equal(one.terrain.fine, two.terrain.fine)
    assert not np.array_equal(one.soil.sand, two.soil.sand)
    assert not np.array_equal(one.parcels.kind, two.parcels.kind)
    climate, days = climate_at(41.3), tiny.scenes.days
    rain = [
        make_weather(frame, one.terrain, climate=climate, days=days, seed=seed).rain
        for seed in (0, 1)
    ]
    assert not np.array_equal(*rain)


def test_a_world_of_the_same_parameters_is_used_again(tiny):
    before = {p: p.stat().st_mtime_ns for p in tiny.path.rglob("*")}
    again = simulate_world(tiny.path, **TINY)
    assert again == tiny
    assert {p: p.stat().st_mtime_ns for p in tiny.path.rglob("*")} == before
    assert open_world(tiny.path) == tiny


def test_a_world_of_other_parameters_is_not_overwritten(tiny):
    with pytest.raises(TemplateMismatchError, match="seed 0 -> 9"):
        simulate_world(tiny.path, **TINY, seed=9)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(TemplateMismatchError, match="not empty"):
        simulate_world(tmp_path, **TINY)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    with pytest.raises(StoreError, match="run simulate_world"):
        open_world(tmp_path)


def test_a_failed_world_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("smgrid.simulate.world.write_dem", fail)  # after weather and soil
    with pytest.raises(OSError, match="disk full"):
        simulate_world(tmp_path / "world", **TINY)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled(tmp_path, monkeypatch):
    def write(root, plan):
        assert root.parent == tmp_path
        assert not any((tmp_path / "empty").iterdir())
        (root / "world.json").write_text(json.dumps(plan.record()))

    monkeypatch.setattr("smgrid.simulate.world._write_world", write)
    (tmp_path / "empty").mkdir()
    world = simulate_world(tmp_path / "empty", **TINY)
    assert open_world(world.path) == world
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


def test_periods(world):
    assert str(world.scenes) == "2022-01-01/2022-02-28"
    assert str(world.period) == "2020-12-01/2022-03-16"
    assert world.grid.shape == (20, 20)
    assert world.grid.resolution.x == 100


@pytest.mark.parametrize("centre", [(105.9, 20.4), (146.1, -34.7), (25.0, 67.0), (179.9, 0.2)])
def test_the_region_is_a_square_about_the_centre(centre):
    plan = WorldPlan(centre=centre, size_km=7, **PLAN)
    grid = plan.grid()
    assert grid.shape == (70, 70)
    assert grid.boundingbox.left % 100 == 0
    assert grid.boundingbox.top % 100 == 0
    lon, lat = (c.mean() for c in pixel_centres(grid, "EPSG:4326"))
    assert (lon, lat) == pytest.approx(centre, abs=2e-3)


def test_a_world_in_the_tropics_far_from_greenwich(tmp_path):
    """A monsoon in Tonkin, where the sinusoidal grid is skewed by 36 degrees."""
    world = simulate_world(tmp_path / "w", centre=(105.9, 20.4), **TINY)
    assert len(list((world.path / "smap").iterdir())) > 10
    weather = xr.open_zarr(world.path / "era5_land.zarr").compute()
    rain = weather["tp"].mean(("latitude", "longitude")).groupby("time.month").mean()
    assert float(rain.sel(month=[7, 8]).mean()) > 2 * float(rain.sel(month=[1, 2]).mean())
    # The morning pass of the radar is before midnight in UTC.
    names = [p.name for p in (world.path / "stac/sentinel-1-rtc").iterdir() if p.is_dir()]
    assert {name.split("_")[4][9:11] for name in names} == {"10", "22"}


def test_a_box_makes_a_grid_that_covers_it():
    plan = WorldPlan(bbox=(4.0, 51.0, 4.05, 51.03), **PLAN)
    grid = plan.grid()
    west, south, east, north = bounds_in(grid, "EPSG:4326")
    assert west <= 4.0
    assert south <= 51.0
    assert east >= 4.05
    assert north >= 51.03
    assert make_frame(grid).base == grid


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"months": 0}, "months: expected a whole number"),
        ({"stations": -1}, "stations: expected a whole number"),
        ({"looks": 0}, "looks: expected a positive number"),
        ({"size_km": float("nan")}, "size_km: expected a positive number"),
        ({"spacing": 1000}, "expected at most the resolution"),
    ],
)
def test_impossible_parameters_are_named(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        simulate_world(tmp_path / "w", **(TINY | change))
    assert not (tmp_path / "w").exists()


def test_a_place_off_the_globe_is_named(tmp_path):
    with pytest.raises(GridError, match="latitude"):
        simulate_world(tmp_path / "w", centre=(0.0, 95.0), **TINY)


def test_the_catalog_names_files_that_exist(world):
    document = yaml.safe_load(world.catalog.read_text())
    assert document["smgrid_catalog"] == 1
    provided = [n for s in document["sources"].values() for n in s["provides"]]
    assert sorted(provided) == sorted(set(provided))
    assert set(provided) <= set(load_variables())
    for source in document["sources"].values():
        assert source["licence"] == "CC0-1.0"
        assert source["citation"]
        if "stac" in source:
            root = world.path / source["stac"]["href"]
            links = json.loads(root.read_text())["links"]
            assert any(f"/{source['stac']['collection']}/" in link["href"] for link in links)
            continue
        for name in source.get("paths", source["assets"].values() if "assets" in source else ()):
            assert list(world.path.glob(name)), name
