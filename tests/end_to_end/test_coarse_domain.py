"""A cube on SMAP's own grid: the coarse domain that networks are pre-trained on."""

import numpy as np
import pytest
import xarray as xr

import smgrid
from smgrid.grid import transform_points
from smgrid.resample import area_average

pytestmark = pytest.mark.slow

LAYOUT = smgrid.get_layout("smgrid-1")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Thirty kilometres at 500 m: some whole cells of SMAP, for a month."""
    folder = tmp_path_factory.mktemp("coarse") / "world"
    return smgrid.simulate_world(
        folder, size_km=30, months=1, resolution=500, spacing=500, stations=1
    )


@pytest.fixture(scope="module")
def cube(world):
    box = world.grid.extent.to_crs("EPSG:4326").boundingbox
    inside = (box.left + 0.1, box.bottom + 0.08, box.right - 0.1, box.top - 0.08)
    grid = smgrid.ease_grid(9, inside)
    lazy = smgrid.load_cube(grid, world.period, catalog=world.catalog, scenes=world.scenes)
    return xr.DataTree.from_dict({n.path: n.to_dataset().compute() for n in lazy.subtree})


def test_every_input_lies_on_the_cells_of_smap(cube):
    base = cube["base"].to_dataset()
    assert base.odc.crs.epsg == 6933
    for name, da in base.data_vars.items():
        assert da.odc.geobox == base.odc.geobox, name
        assert np.isfinite(da.isel(y=1, x=1)).all(), name
    assert cube["labels"].to_dataset().odc.crs.epsg == 6933


def test_a_cell_holds_the_mean_of_its_area(world, cube):
    """Against the cube of 500 m on the region's own grid, averaged onto the cells."""
    fine = smgrid.load_cube(world.grid, world.period, catalog=world.catalog, scenes=world.scenes)
    coarse = cube["base"].to_dataset()
    own = fine["base"].to_dataset()
    for name, tolerance in (("vv", 0.02), ("angle", 0.05), ("sand", 3.0), ("elevation", 5.0)):
        expected = area_average(own[name], coarse.odc.geobox).compute()
        inner = {"y": slice(1, -1), "x": slice(1, -1)}
        found = coarse[name].isel(inner)
        assert found.size
        np.testing.assert_allclose(found, expected.isel(inner), atol=tolerance, err_msg=name)


def test_smap_labels_become_coarse_samples(cube):
    smap = cube["labels"]["smap_soil_moisture"]
    labels = smgrid.collocate_labels(smap, cube, tolerance_hours=48)
    samples = smgrid.collect_samples(smgrid.stream_samples(cube, labels, layout=LAYOUT))
    assert len(samples) > 20
    assert np.nanmax(np.abs(samples.lag)) <= 48
    x, y = transform_points(samples.longitude, samples.latitude, "EPSG:4326", "EPSG:6933")
    for k in range(0, len(samples), 7):
        cell = smap.sel(x=x[k], y=y[k], method="nearest")
        when = samples.time[k] + np.timedelta64(round(float(samples.lag[k]) * 3600), "s")
        label = cell.sel(time=when, method="nearest")
        assert abs(label["time"].values - when) <= np.timedelta64(60, "s")
        assert float(label) == pytest.approx(float(samples.label[k]), abs=1e-6)
