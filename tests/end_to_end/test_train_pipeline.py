"""The coarse-to-fine job as an operator runs it: two cubes, one file, one command."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import smgrid

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).resolve().parents[2] / "pipelines" / "train.py"
JOB = """
repeats: 2
tensorboard: curves
coarse: {cube: coarse.zarr, blocks_km: 9, tolerance_hours: 48}
fine: {cube: fine.zarr, stations: fine/ismn, coarse_km: null, train_on: 3, unlabelled: 500}
out: run
sizes: small
pretraining: {epochs: 2, average_from: 1, batch_size: 64}
adaptation: {epochs: 2, average_from: 1, label_loss: mse}
msda: {batch_norm: target}
"""

START = "run/pretraining/ensemble"


def run(folder, name="job.yml"):
    command = [sys.executable, str(SCRIPT), name]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A coarse world of 40 km and a fine one of 2 km, with their cubes."""
    folder = tmp_path_factory.mktemp("train")
    coarse = smgrid.simulate_world(
        folder / "coarse", size_km=40, months=1, resolution=1000, spacing=1000, stations=1
    )
    box = coarse.grid.extent.to_crs("EPSG:4326").boundingbox
    grid = smgrid.ease_grid(9, (box.left + 0.1, box.bottom + 0.1, box.right - 0.1, box.top - 0.1))
    fine = smgrid.simulate_world(folder / "fine", size_km=2, months=1, spacing=50, stations=14)
    for world, target, name in ((coarse, grid, "coarse"), (fine, fine.grid, "fine")):
        cube = smgrid.load_cube(target, world.period, catalog=world.catalog, scenes=world.scenes)
        smgrid.write_cube(cube, folder / f"{name}.zarr")
    (folder / "job.yml").write_text(JOB)
    return folder


@pytest.fixture(scope="module")
def done(folder):
    return run(folder)


def test_the_job_leaves_an_ensemble_and_a_report(folder, done):
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "run/report.json").read_text())
    assert set(report["scores"]) == {"start", "adapted"}
    assert report["scores"]["adapted"]["n"] > 0
    ensemble = smgrid.load_ensemble(folder / report["ensemble"])
    assert len(ensemble.members) == 2 * len(smgrid.load_ensemble(folder / START).members)
    assert report["trained_on"]["r0"] != report["trained_on"]["r1"]
    facts = ensemble.card["joined"]["r1"]["training"]
    assert facts["plan"]["seed"] == 1
    for stage in ("pretraining", "adaptation/r0", "adaptation/r1"):
        assert list((folder / "curves" / stage).glob("events.*"))
    assert facts["scores"]["test"] == report["repeats"]["r1"]["test"]
    assert facts["adaptation"]["batch_norm"] == "target"
    assert facts["samples"]["fine"]["stations"] == 3
    assert facts["started_from"] == smgrid.load_ensemble(folder / START).digest
    assert ensemble.card["joined"]["r1"]["data"]["coarse"]["sha256"]


def test_no_station_of_the_test_was_trained_on(folder, done):
    report = json.loads((folder / "run/report.json").read_text())
    assert [len(names) for names in report["trained_on"].values()] == [3, 3]
    groups = report["split"]["groups"]
    assert groups["training"] + groups["validation"] + groups["test"] <= 14


def test_a_second_run_trains_nothing(folder, done):
    before = {p: p.stat().st_mtime_ns for p in (folder / "run").rglob("*.safetensors")}
    assert run(folder).returncode == 0
    assert {p: p.stat().st_mtime_ns for p in (folder / "run").rglob("*.safetensors")} == before


def test_an_ensemble_to_start_from_replaces_the_pre_training(folder, done):
    text = JOB.replace("out: run", f"out: given\nstart: {START}").replace("repeats: 2\n", "")
    (folder / "start.yml").write_text(re.sub("coarse: {.*", "", text))
    result = run(folder, "start.yml")
    assert result.returncode == 0, result.stderr
    made = smgrid.load_ensemble(folder / "given/ensemble")
    assert made.card["training"]["started_from"] == smgrid.load_ensemble(folder / START).digest
    assert set(made.card["training"]["samples"]) == {"fine", "unlabelled", "validation", "test"}
    assert not (folder / "given/pretraining").exists()


def test_more_repeats_are_in_report_and_ensemble(folder, done):
    (folder / "more.yml").write_text(JOB.replace("repeats: 2", "repeats: 3"))
    assert run(folder, "more.yml").returncode == 0
    report = json.loads((folder / "run/report.json").read_text())
    ensemble = smgrid.load_ensemble(folder / report["ensemble"])
    assert set(report["repeats"]) == set(ensemble.card["joined"]) == {"r0", "r1", "r2"}
    assert run(folder).returncode == 0
    assert set(smgrid.load_ensemble(folder / "run/ensemble").card["joined"]) == {"r0", "r1"}


def test_a_table_whose_note_was_lost_is_not_taken(folder, done):
    note = folder / "run/stations.json"
    before = note.read_text()
    note.write_text(before[:20])
    result = run(folder)
    note.write_text(before)
    assert result.returncode == 2
    assert "holds samples of another job" in result.stderr


def test_a_cube_that_changed_at_its_path_is_noticed(folder, done):
    manifest = folder / "fine.zarr/_smgrid/manifest.json"
    before = manifest.read_text()
    content = json.loads(before)
    manifest.write_text(json.dumps(content | {"smgrid_manifest_sha256": "0" * 64}))
    result = run(folder)
    manifest.write_text(before)
    assert result.returncode == 2
    assert "holds samples of another job, which differs in cube" in result.stderr


def test_samples_of_another_job_are_not_taken_for_those_of_this_one(folder, done):
    (folder / "other.yml").write_text(JOB.replace("tolerance_hours: 48", "tolerance_hours: 12"))
    result = run(folder, "other.yml")
    assert result.returncode == 2
    assert "holds samples of another job" in result.stderr


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (("epochs: 2", "epoch: 2"), 2, "unknown epoch"),
        (("fine/ismn", "nowhere"), 3, "nowhere"),
        (("coarse.zarr", "fine.zarr"), 2, "Build a cube on the grid of the labels"),
        (("out: run", "out: run\nstation: 3"), 2, "station"),
        (("train_on: 3", "train_on: 0"), 2, "train_on"),
        (("label_loss: mse", "series: spread"), 2, "need series: plain"),
        (("coarse: {", "#"), 2, "give coarse, to pre-train on, or start"),
    ],
)
def test_a_bad_job_is_one_message(folder, tmp_path, change, code, message):
    text = JOB.replace(*change).replace("out: run", f"out: {tmp_path}/bad")
    (folder / "bad.yml").write_text(text)
    result = run(folder, "bad.yml")
    assert "Traceback" not in result.stderr
    assert message in result.stderr
    assert result.returncode == code
    assert not (tmp_path / "bad/pretraining").exists()
