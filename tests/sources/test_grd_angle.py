"""Incidence angles of relative orbits from files and items."""

import numpy as np
import pytest

from smgrid.catalog import SourceSpec
from smgrid.errors import NoDataError, SourceError
from smgrid.grid import make_grid, pixel_centres
from smgrid.sources import load_source
from smgrid.sources.grd import load_angle
from smgrid.windows import Period
from tests.safe_scene import Scene, ramps
from tests.services import range_server
from tests.sources.grd_builders import PERIOD, grd_item, region, stac
from tests.sources.real_products import ANNOTATIONS, open_real, real_file


def angle_spec(**changes):
    defaults = {
        "name": "angles",
        "loader": "smgrid.sources.grd:load_angle",
        "provides": ("angle",),
        "origin": "test.yml, line 9",
    }
    return SourceSpec(**{**defaults, **changes})


def test_angles_of_files_without_the_extra(tmp_path, monkeypatch):
    scene, grid = Scene(ramps()), region(10)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    spec = angle_spec(paths=(str(scene.write(tmp_path)),))
    angle = load_source(spec, grid, PERIOD, chunks=32)["angle"]
    assert angle.dims == ("relative_orbit", "y", "x")
    assert angle.chunks[1][0] == 32
    assert angle["relative_orbit"].values.tolist() == [88]
    assert angle["orbit_state"].values.tolist() == ["ascending"]
    assert angle.attrs["units"] == "degree"
    line, pixel = scene.find(*pixel_centres(grid, "EPSG:4326"))
    values = angle.values[0]
    known = np.isfinite(values)
    np.testing.assert_allclose(values[known], scene.incidence(line, pixel)[known], atol=1e-3)
    rows, columns = scene.shape
    inside = (line > -0.9) & (line < rows - 0.1) & (pixel > -0.9) & (pixel < columns - 0.1)
    outside = (line < -1.1) | (line > rows + 0.1) | (pixel < -1.1) | (pixel > columns + 0.1)
    assert known[inside].all()
    assert not known[outside].any()


def test_one_pass_of_each_orbit_that_covers_the_grid_gives_its_angles(tmp_path):
    whole = ramps()
    upper, lower = (
        {k: v[part] for k, v in whole.items()} for part in (slice(0, 170), slice(170, None))
    )
    scenes = [
        Scene(lower, first=170, start="2024-03-05T17:32:00"),  # half of the region only
        Scene(upper, start="2024-03-17T17:32:00"),
        Scene(lower, first=170, start="2024-03-17T17:32:00"),
        Scene(whole, start="2024-03-29T17:32:00"),  # covers no more than the two slices
        Scene(whole, start="2024-03-06T17:40:00", orbit=52_863, relative_orbit=None),
    ]
    spec = angle_spec(paths=tuple(str(scene.write(tmp_path)) for scene in scenes))
    grid = region(20, half=(0.008, 0.006))
    (tmp_path / f"{scenes[3].name}.SAFE" / "annotation").rename(tmp_path / "kept")
    (tmp_path / f"{scenes[3].name}.SAFE" / "annotation").mkdir()
    for file in (tmp_path / "kept").glob("*.xml"):
        text = file.read_text().replace("<incidenceAngle>", "<incidenceAngle>1")
        (tmp_path / f"{scenes[3].name}.SAFE" / "annotation" / file.name).write_text(text)
    angle = load_angle(spec, grid, PERIOD)["angle"]
    assert angle["relative_orbit"].values.tolist() == [88, 116]
    line, pixel = scenes[4].find(*pixel_centres(grid, "EPSG:4326"))
    for values in angle.values:
        np.testing.assert_allclose(values, scenes[4].incidence(line, pixel), atol=1e-3)


def test_angles_of_items_need_their_annotation_only(tmp_path, monkeypatch):
    monkeypatch.setenv("SMGRID_CACHE", str(tmp_path / "cache"))
    scene, grid = Scene(ramps()), region(50)
    scene.write(tmp_path)
    with range_server(tmp_path) as server:
        # The orbit was flown in the days before the period.
        query = stac(tmp_path, [grd_item(scene, server.url)])
        period = Period.parse(("2024-03-10", "2024-03-11"))
        ds = load_angle(angle_spec(stac=query), grid, period)
        assert server.log() == []
        values = ds["angle"].values
        assert {path.rpartition("/")[2][:6] for path in server.log()} == {"s1a-iw"}
        assert not [path for path in server.log() if "measurement" in path]
    expected = load_angle(angle_spec(paths=(f"{tmp_path}/{scene.name}.SAFE",)), grid, PERIOD)
    np.testing.assert_array_equal(values, expected["angle"].values)


def test_no_product_of_the_region_means_no_angle(tmp_path):
    spec = angle_spec(paths=(str(Scene(ramps()).write(tmp_path)),))
    with pytest.raises(NoDataError, match="angles has no data"):
        load_angle(spec, make_grid((20, 50, 20.1, 50.1), resolution=100), PERIOD)


def test_one_product_named_twice_is_refused(tmp_path):
    safe = Scene(ramps()).write(tmp_path)
    spec = angle_spec(paths=(str(safe), str(safe / "manifest.safe")))
    with pytest.raises(SourceError, match="are one product; name it once"):
        load_angle(spec, region(100), PERIOD)


@pytest.mark.shared
def test_angles_of_real_products_by_their_orbits(shared):
    names = sorted({name for name, _ in ANNOTATIONS})
    spec = angle_spec(paths=tuple(str(real_file(shared, name)) for name in names))
    for name, orbit in zip(names, [117, 79, 168, 22], strict=True):
        points = open_real(shared, name).read_annotation("vv").grid
        x, y = points.longitude[4, 10], points.latitude[4, 10]
        grid = make_grid((x - 0.02, y - 0.02, x + 0.02, y + 0.02), resolution=100)
        angle = load_angle(spec, grid, PERIOD)["angle"]
        assert angle["relative_orbit"].values.tolist() == [orbit]
        longitude, latitude = pixel_centres(grid, "EPSG:4326")
        nearest = np.argmin(np.hypot(longitude - x, latitude - y))
        # A pixel of 100 m in 17 km of swath for each degree.
        assert angle.values[0].flat[nearest] == pytest.approx(points.incidence[4, 10], abs=0.006)
