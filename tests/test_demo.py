"""The demo on a tiny world: every promised output, no look at the truth, nothing done twice."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import smgrid.demo as demo
from smgrid.cube.store import open_map
from smgrid.errors import ConfigError
from smgrid.grid import transform_points
from smgrid.training.plan import FitPlan

pytestmark = pytest.mark.slow

PLAN = FitPlan(epochs=2)
SIZE_KM = 2.5


class Watcher:
    """Stands for `fit` and keeps what it was given; hides the truth until it may be looked at."""

    def __init__(self, folder):
        self.truth = folder / "world" / "truth.zarr"
        self.calls, self.fit, self.hidden = [], demo.fit, []

    def __call__(self, training, validation, **options):
        self.calls.append((training, validation))
        return self.fit(training, validation, **options)

    def stage(self, text):
        away = self.truth.with_name("hidden")
        if text == "build the cube":
            self.truth.rename(away)
        if away.exists():
            self.hidden.append(text.split()[0])
        if text == "score against the simulated truth":
            away.rename(self.truth)


@pytest.fixture(scope="module", autouse=True)
def short_world():
    """A year to learn from is enough to see whether all is there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "START", "2021-02-01")
        patch.setattr(demo, "MONTHS", 15)
        patch.setattr(demo, "HELD_OUT_MONTHS", 3)
        yield


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A finished demo, its report and who watched it."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    watcher = Watcher(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "fit", watcher)
        report = demo.run_demo(folder, size_km=SIZE_KM, plan=PLAN, on_stage=watcher.stage)
    return folder, report, watcher


def test_every_promised_output_is_there(ran):
    folder, report, _ = ran
    sm = open_map(folder / "soil_moisture.zarr")
    assert set(sm.data_vars) == {"soil_moisture", "soil_moisture_std", "flags"}
    assert float(sm["soil_moisture"].notnull().mean()) == 1.0
    for name in ("map.png", "series.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    written = json.loads((folder / "scores.json").read_text())
    assert set(written["scores"]) == set(report.scores)
    assert written["scores"]["smgrid"]["ubrmse"] == report.scores["smgrid"].ubrmse
    assert {"mean map", "climatology (monthly)", "SMAP 9 km"} < set(report.scores)
    assert report.table()[0]["estimate"] == "smgrid"


def test_scores_are_of_the_held_out_half_and_months_alone(ran):
    """Recomputed with NumPy from the files."""
    folder, report, _ = ran
    sm = open_map(folder / "soil_moisture.zarr")
    truth = xr.open_zarr(folder / "world" / "truth.zarr")["soil_moisture"]
    days = pd.DatetimeIndex(sm["time"].values).normalize()
    assert days[0] >= pd.Timestamp("2022-02-01")
    east = sm.sizes["x"] // 2 + sm.sizes["x"] % 2
    estimate = sm["soil_moisture"].values[:, :, -east:].astype(float)
    error = estimate - truth.sel(time=days).values[:, :, -east:]
    scores = report.scores["smgrid"]
    assert scores.n == error.size
    assert scores.ubrmse == pytest.approx(error.std(), rel=1e-5)


def test_training_sees_neither_the_held_out_half_nor_the_held_out_months(ran):
    folder, _, watcher = ran
    [(training, validation)] = watcher.calls
    sm = open_map(folder / "soil_moisture.zarr")
    middle, crs = float(sm["x"].mean()), sm.odc.crs
    for samples in (training, validation):
        x, _ = transform_points(samples.longitude, samples.latitude, "EPSG:4326", crs)
        assert x.max() < middle
        assert samples.time.max() < np.datetime64("2022-01-23")


def test_cube_training_and_map_do_without_the_truth(ran):
    """They ran while it was away."""
    _, report, watcher = ran
    assert watcher.hidden == ["build", "train", "map", "score"]
    assert report.scores["smgrid"].n > 0


def test_a_second_run_redoes_nothing(ran):
    folder, report, _ = ran
    kept = ("world", "cube.zarr", "ensemble", "soil_moisture.zarr", "training_means.json")

    def stamps() -> dict[Path, int]:
        found = [p for name in kept for p in [folder / name, *(folder / name).rglob("*")]]
        return {p: p.stat().st_mtime_ns for p in found if p.is_file()}

    before, units = stamps(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "fit", None)
        again = demo.run_demo(folder, size_km=SIZE_KM, plan=PLAN, progress=units.append)
    assert units == []
    assert stamps() == before
    assert again.table() == report.table()
    assert again.coverage == report.coverage


def test_another_plan_in_the_same_folder_is_refused(ran):
    folder, _, _ = ran
    with pytest.raises(ConfigError, match="epochs 2 -> 3"):
        demo.run_demo(folder, size_km=SIZE_KM, plan=FitPlan(epochs=3))
