"""The demo on a tiny world: every promised output, no look at the truth, nothing done twice."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from rich.console import Console

import smgrid.demo as demo
from smgrid.cli import console
from smgrid.cube.store import open_map
from smgrid.errors import ConfigError
from smgrid.grid import transform_points
from smgrid.metrics import Scores
from smgrid.models.bundle import load_ensemble, save_ensemble
from smgrid.training.plan import FitPlan

pytestmark = pytest.mark.slow

PLAN = FitPlan(epochs=2)
SIZE_KM = 2.5


class Watcher:
    """Stands for `fit` and the fit of intervals, and keeps what they were given.

    Hides the truth until it may be looked at.
    """

    def __init__(self, folder):
        self.truth = folder / "world" / "truth.zarr"
        self.calls, self.fit, self.hidden = [], demo.fit, []
        self.calibrated_on, self.fit_calibration = [], demo.fit_calibration

    def __call__(self, training, validation, **options):
        self.calls.append((training, validation))
        return self.fit(training, validation, **options)

    def calibrate(self, ensemble, samples, *, test, name):
        self.calibrated_on.append((samples, test))
        return self.fit_calibration(ensemble, samples, test=test, name=name)

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
        patch.setattr(demo, "fit_calibration", watcher.calibrate)
        report = demo.run_demo(folder, size_km=SIZE_KM, plan=PLAN, on_stage=watcher.stage)
    return folder, report, watcher


def test_every_promised_output_is_there(ran):
    folder, report, _ = ran
    sm = open_map(folder / "soil_moisture.zarr")
    values = {"soil_moisture", *(f"soil_moisture_{n}" for n in ("std", "lower", "upper"))}
    assert set(sm.data_vars) == {*values, "dissimilarity", "flags"}
    assert float(sm["soil_moisture"].notnull().mean()) == 1.0
    for name in ("map.png", "series.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    written = json.loads((folder / "scores.json").read_text())
    assert set(written["scores"]) == set(report.scores)
    assert written["scores"]["smgrid"]["ubrmse"] == report.scores["smgrid"].ubrmse
    assert {"mean map", "monthly mean", "SMAP 9 km"} < set(report.scores)
    assert written["coverage"] == report.coverage
    first, second, third, *_ = report.table()
    assert [first["estimate"], second["estimate"]] == ["smgrid", demo.AT_STATIONS]
    for row in (first, second):
        shares = [f"{100 * share:.1f}" for share in report.coverage[row["estimate"]].values()]
        assert row["in 50/80/90/95 %"] == "/".join(shares)
    assert third["in 50/80/90/95 %"] == ""


def test_the_table_fits_on_a_narrow_terminal(ran, monkeypatch):
    """Every cell in one line, at the longest numbers that scores can have."""
    _, report, _ = ran
    longest = replace(report.scores["smgrid"], bias=-0.123, rmse=0.123, ubrmse=0.123, r=-0.51)
    shares = {"0.5": 0.499, "0.8": 0.801, "0.9": 0.902, "0.95": 1.0}
    wide = demo.DemoReport(
        Path(), dict.fromkeys(report.scores, longest), dict.fromkeys(report.scores, shares)
    )
    monkeypatch.setattr(console, "OUT", Console(width=80, file=io.StringIO()))
    console.print_rows(wide.table(), "Scores")
    lines = console.OUT.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for row in wide.table():
        assert any(all(cell in line for cell in row.values()) for line in lines)


def test_levels_that_have_no_interval_are_dashes():
    scores = {"a": Scores(9, 0, 0, 0, 1, 1)}
    report = demo.DemoReport(Path(), scores, {"a": {"0.5": 0.5, "0.9": 0.9}})
    assert report.table()[0]["in 50/80/90/95 %"] == "50.0/-/90.0/-"


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


def test_coverage_is_that_of_the_truth_and_of_the_stations_in_the_held_out_half(ran):
    """Recomputed with NumPy from the files; for stations from the samples of the calibration."""
    folder, report, watcher = ran
    calibration = load_ensemble(folder / "ensemble").calibration
    sm = open_map(folder / "soil_moisture.zarr")
    truth = xr.open_zarr(folder / "world" / "truth.zarr")["soil_moisture"]
    days = pd.DatetimeIndex(sm["time"].values)
    east = sm.sizes["x"] // 2 + sm.sizes["x"] % 2
    mean, spread = (sm[n].values[:, :, -east:] for n in ("soil_moisture", "soil_moisture_std"))
    real = truth.sel(time=days.normalize()).values[:, :, -east:]
    assert list(report.coverage["smgrid"]) == ["0.5", "0.8", "0.9", "0.95"]
    for level, found in report.coverage["smgrid"].items():
        day = days.dayofyear.to_numpy(float)[:, None, None]
        lower, upper = calibration.bounds(mean, spread, float(level), day)
        assert found == pytest.approx(((real >= lower) & (real <= upper)).mean(), abs=1e-4)
    [(_, test)] = watcher.calibrated_on
    assert report.scores[demo.AT_STATIONS].n == len(test)
    for level, found in report.coverage[demo.AT_STATIONS].items():
        assert found == pytest.approx(calibration.coverage["test"][level], abs=0.01)


def test_intervals_are_fitted_on_stations_of_the_held_out_half_before_the_held_out_months(ran):
    folder, _, watcher = ran
    [(samples, test)] = watcher.calibrated_on
    sm = open_map(folder / "soil_moisture.zarr")
    for one in (samples, test):
        x, _ = transform_points(one.longitude, one.latitude, "EPSG:4326", sm.odc.crs)
        assert x.min() > float(sm["x"].mean()) - 1
    assert samples.time.max() < np.datetime64("2022-01-23")
    assert test.time.min() >= np.datetime64("2022-02-01")
    calibration = load_ensemble(folder / "ensemble").calibration
    assert calibration.fitted_on == demo.CALIBRATED_ON
    assert calibration.rows == len(samples)


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
    assert watcher.hidden == ["build", "train", "calibrate", "map", "score"]
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
        patch.setattr(demo, "fit_calibration", None)
        again = demo.run_demo(folder, size_km=SIZE_KM, plan=PLAN, progress=units.append)
    assert units == []
    assert stamps() == before
    assert again.table() == report.table()
    assert again.coverage == report.coverage


def test_an_ensemble_of_before_is_calibrated_and_its_map_made_again(ran, tmp_path):
    folder, report, _ = ran
    shutil.copytree(folder, tmp_path / "out")
    ensemble = load_ensemble(folder / "ensemble")
    shutil.rmtree(tmp_path / "out" / "ensemble")
    save_ensemble(replace(ensemble, calibration=None), tmp_path / "out" / "ensemble")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "fit", None)
        units = []
        again = demo.run_demo(tmp_path / "out", size_km=SIZE_KM, plan=PLAN, progress=units.append)
    assert units
    assert again.coverage == report.coverage
    assert load_ensemble(tmp_path / "out" / "ensemble").calibration == ensemble.calibration
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        p.name for p in folder.iterdir()
    )


def test_another_plan_in_the_same_folder_is_refused(ran):
    folder, _, _ = ran
    with pytest.raises(ConfigError, match="epochs 2 -> 3"):
        demo.run_demo(folder, size_km=SIZE_KM, plan=FitPlan(epochs=3))
