"""The batch jobs as an operator runs them: one file, one command, a summary and an exit code."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import xarray as xr

import smgrid
from smgrid.cube.progress import Progress
from smgrid.cube.store import WriteReport
from smgrid.errors import NoDataError, StoreError, UnitsFailedError
from smgrid.jobs import JobConfig, run_job
from smgrid.yamltext import check_model, read_yaml
from tests.networks import make_ensemble

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "pipelines"
JOBS = ("build_cube", "map_soil_moisture", "update", "map_region")

BUILD = """
bbox: [{bbox}]
period: [{start}, {middle}]
scenes: [{scenes}, {middle}]
catalog: world/catalog.yml
tile: 16
cube: cube.zarr
"""
MAP = "cube: cube.zarr\nensemble: ensemble\ntile: 16\nmap: sm.zarr\n"
UPDATE = "cube: cube.zarr\nuntil: {end}\nensemble: ensemble\nmap: sm.zarr\n"


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a job in this process; returns its exit code, its summary and what it said."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def start(job, *args, cwd):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", [job, *args])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(FOLDER / f"{job}.py"), run_name="__main__")
        out, err = capsys.readouterr()
        return ended.value.code, json.loads(out) if out else {}, err

    return start


@pytest.mark.parametrize(
    ("job", "text", "message"),
    [
        ("map_region", "period: [2021-01-01, 2022-03-01]\nmap: sm.zarr\n", "cube"),
        ("map_region", "periods: [2021-01-01, 2022-03-01]\ncube: c\nmap: m\n", "line 1"),
        ("build_cube", "period: [2021-01-01, 2022-03-01]\ncube: c.zarr\ncatalog: no.yml\n", "bbox"),
        ("build_cube", "period: [1, 2]\nscheduler: 7\ncube: c\n", "line 2: scheduler"),
        ("map_soil_moisture", "cube: c.zarr\n", "map: is missing"),
        ("update", "cube: c.zarr\nuntil: 2022-01-01\nprovisional_days: -1\n", "line 3"),
        ("map_soil_moisture", "", "job.yml, line 1: the file is empty; expected a mapping with"),
        ("map_soil_moisture", "# cube: c.zarr\n", "with the keys cube, map"),
        ("map_soil_moisture", "cube: c\n[1, 2]: b\nmap: m\n", "job.yml, line 2: a key should be"),
        ("map_soil_moisture", "cube: c\nmap: 'a\0'\n", "job.yml: is not valid YAML"),
        ("map_soil_moisture", "cube: c\nmap: ''\n", "line 2: map: should not be empty"),
        ("map_soil_moisture", 'cube: c\nmap: m\nsummary: "s\\0"\n', "line 3: summary: should not"),
        ("map_soil_moisture", "cube: c\nmap: m\nsummary: ''\n", "summary: should not be empty"),
        ("map_soil_moisture", "cube: c\nmap: m\nsummary: .\n", "summary: . is a folder"),
        ("map_soil_moisture", "cube: c\nmap: m\nsummary: job.yml\n", "the configuration file"),
        ("map_soil_moisture", "cube: c\nmap: m\nsummary: job.yml/x.json\n", "cannot be written"),
        ("map_soil_moisture", "cube: c\nmap: m\nsummary: /proc/x/y.json\n", "cannot be written"),
        ("map_soil_moisture", "cube: c\nmap: m\ncluster: {wait: soon}\n", "threads has no options"),
        ("map_soil_moisture", "cube: c\nmap: m\nscheduler: local:workers=two\n", "is 'two'"),
    ],
)
def test_a_bad_job_is_one_message_and_exit_code_2(job, text, message, tmp_path, run):
    (tmp_path / "job.yml").write_text(text)
    code, summary, err = run(job, "job.yml", cwd=tmp_path)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert (summary["status"], summary["exit_code"]) == ("failed", 2)
    assert message in summary["error"]
    assert [p.name for p in tmp_path.iterdir()] == ["job.yml"]
    assert (tmp_path / "job.yml").read_text() == text


@pytest.mark.parametrize("job", JOBS)
def test_a_missing_argument(job, tmp_path, run):
    code, _, err = run(job, cwd=tmp_path)
    assert code == 2
    assert f"python pipelines/{job}.py config.yml" in err


@pytest.mark.slow
def test_a_missing_file_as_an_operator_meets_it(tmp_path):
    command = [sys.executable, str(FOLDER / "map_region.py"), "nowhere.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: nowhere.yml: cannot be read" in done.stderr
    assert json.loads(done.stdout)["exit_code"] == 2


@pytest.mark.parametrize(
    "example", ["build_cube_example", "map_example", "update_example", "example"]
)
def test_examples_are_understood(example, monkeypatch):
    path = FOLDER / f"{example}.yml"
    (job,) = [name for name in JOBS if f"pipelines/{name}.py" in path.read_text().splitlines()[0]]
    monkeypatch.syspath_prepend(str(FOLDER))
    config = check_model(read_yaml(path), runpy.run_path(str(FOLDER / f"{job}.py"))["Config"])
    assert config.scheduler


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A world of one month and an ensemble."""
    folder = tmp_path_factory.mktemp("jobs")
    world = smgrid.simulate_world(folder / "world", size_km=2, months=1, spacing=50, stations=1)
    smgrid.save_ensemble(make_ensemble(sizes=((1, 4),), layout="smgrid-1"), folder / "ensemble")
    box = world.grid.extent.to_crs("EPSG:4326").boundingbox
    ends = (world.period.start, world.scenes.start, world.scenes.end)
    days = dict(zip(("start", "scenes", "end"), (f"{day:%Y-%m-%d}" for day in ends), strict=True))
    middle = days["scenes"][:8] + "15"
    facts = {**days, "middle": middle, "bbox": ", ".join(f"{edge:.5f}" for edge in box)}
    for name, text in (("build", BUILD), ("map", MAP), ("update", UPDATE)):
        (folder / f"{name}.yml").write_text(text.format(**facts))
    return folder


@pytest.fixture
def job(folder, run):
    return lambda name, config: run(name, config, cwd=folder)


def files_of(path):
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}


def written(summary):
    return [stage["units"]["written"] for stage in summary["stages"]]


@pytest.mark.slow
def test_build_cube_and_map_it_twice(folder, job):
    for name, config, store in (
        ("build_cube", "build.yml", "cube.zarr"),
        ("map_soil_moisture", "map.yml", "sm.zarr"),
    ):
        code, summary, err = job(name, config)
        assert code == 0, err
        stage, *overviews = summary["stages"]
        units = stage["units"]
        assert units["written"] == units["total"] > 0
        assert [more["what"] for more in overviews] == ["overviews"] * (name == "map_soil_moisture")
        assert (units["skipped"], units["failed"], stage["failures"]) == (0, 0, [])
        report = smgrid.inspect(folder / store)
        assert (stage["status"], stage["bytes"]) == ("complete", report.nbytes)
        assert stage["digest"] == report.provenance["smgrid_manifest_sha256"]
        assert summary["versions"]["smgrid"] == smgrid.__version__
        assert json.loads((folder / f"{store}.{name}.json").read_text()) == summary
        before = files_of(folder / store)
        code, summary, err = job(name, config)
        assert code == 0
        assert not any(written(summary))
        assert summary["stages"][0]["units"]["skipped"] == units["total"]
        assert f"{name}: nothing to do, all units were there" in err
        assert files_of(folder / store) == before


@pytest.mark.slow
def test_update_adds_the_new_acquisitions_and_leaves_the_older_alone(folder, job, monkeypatch):
    before = files_of(folder / "sm.zarr")
    times = smgrid.open_map(folder / "sm.zarr").time.values
    code, summary, err = job("update", "update.yml")
    assert code == 0, err
    cube, sm, overviews = summary["stages"]
    assert overviews["what"] == "overviews"
    added = sm["added"]["/"]
    assert cube["added"]["/base"] == added
    updated = smgrid.open_map(folder / "sm.zarr")
    assert updated.time.size == times.size + len(added)
    assert (updated.time.values[: times.size] == times).all()
    shards = {path: content for path, content in before.items() if "/c/" in str(path)}
    old = {p: c for p, c in shards.items() if p.parts[-4:-3] == ("c",)}  # (time, y, x)
    after = files_of(folder / "sm.zarr")
    assert old
    assert old.items() <= after.items()
    per_date = sm["units"]["total"] // updated.time.size
    assert sm["units"]["written"] == per_date * len(added)
    assert smgrid.verify(folder / "sm.zarr").ok
    manifest = smgrid.inspect(folder / "sm.zarr").provenance
    (older,) = manifest["smgrid_history"]
    assert older["periods"] == [f"{str(times[0])[:19]} to {str(times[-1])[:19]}"]
    sums = [one["made_from"]["cube"]["sha256sums"] for one in (older, manifest)]
    now = smgrid.inspect(folder / "cube.zarr").provenance["smgrid_sha256sums"]
    assert (sums[0] != now, sums[1]) == (True, now)
    code, summary, _ = job("update", "update.yml")
    assert (code, written(summary)) == (0, [0, 0, 0])
    assert files_of(folder / "sm.zarr") == after
    # A map of all of it at once is the same one.
    monkeypatch.chdir(folder)
    whole = smgrid.predict(smgrid.open_cube("cube.zarr"), smgrid.load_ensemble("ensemble"))
    smgrid.write_cube(whole, "whole.zarr", shard=16)
    xr.testing.assert_equal(updated.load(), smgrid.open_map("whole.zarr").load())


@pytest.mark.slow
def test_a_job_that_fails_says_what_it_did(folder, job, monkeypatch):
    text = (folder / "build.yml").read_text().replace("cube.zarr", "broken.zarr")
    (folder / "broken.yml").write_text(text + "summary: broken.json\n")
    write = smgrid.cube.writing.write_bytes

    def fail(store, key, content):
        if key.startswith("base/vh/c/0/"):
            raise StoreError("no more room")
        write(store, key, content)

    monkeypatch.setattr("smgrid.cube.writing.write_bytes", fail)
    monkeypatch.setenv("SMGRID_RETRY_PAUSES", "none")
    code, summary, err = job("build_cube", "broken.yml")
    assert code == StoreError.exit_code
    assert "no more room" in err
    assert "no more room" in summary["error"]
    (stage,) = summary["stages"]
    units = stage["units"]
    assert stage["status"] == "incomplete"
    assert units["skipped"] == 0
    assert units["written"] < units["total"]
    assert json.loads((folder / "broken.json").read_text()) == summary
    monkeypatch.setattr("smgrid.cube.writing.write_bytes", write)
    code, again, _ = job("build_cube", "broken.yml")
    assert code == 0
    assert again["stages"][0]["units"]["skipped"] >= units["written"]


@pytest.mark.slow
def test_map_region_does_both(folder, job):
    build = (folder / "build.yml").read_text().replace("cube.zarr", "both.zarr")
    (folder / "both.yml").write_text(f"{build}ensemble: ensemble\nmap: both_sm.zarr\n")
    code, summary, err = job("map_region", "both.yml")
    assert code == 0, err
    assert [stage["what"] for stage in summary["stages"]] == ["cube", "map", "overviews"]
    assert all(written(summary)[:2])
    code, summary, _ = job("map_region", "both.yml")
    assert (code, written(summary)) == (0, [0, 0, 0])


def test_an_unexpected_failure_is_told_as_well(folder, job, monkeypatch):
    def fail(*args, **options):
        raise ZeroDivisionError("what is this")

    monkeypatch.setattr("smgrid.open_cube", fail)
    code, summary, err = job("map_soil_moisture", "map.yml")
    assert code == 1
    assert summary["error"] == "ZeroDivisionError: what is this"
    assert "Traceback" in err


def test_a_job_that_is_terminated_says_so(folder, tmp_path):
    """As batch systems and pods end a process: the summary is no old one, and clusters close."""
    code = (
        "import os, signal, sys\n"
        "from smgrid.jobs import JobConfig, run_job\n"
        "def work(config, job):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        signal.pause()\n"
        "    finally:\n"
        "        sys.stderr.write('closed')\n"
        "sys.exit(run_job('t', '', JobConfig, work))\n"
    )
    (tmp_path / "job.yml").write_text("summary: new/summary.json\n")
    done = subprocess.run(
        [sys.executable, "-c", code, "job.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 143, done.stderr
    assert "closed" in done.stderr
    summary = json.loads((tmp_path / "new" / "summary.json").read_text())
    assert (summary["status"], summary["exit_code"]) == ("failed", 143)


def test_no_signature_reaches_a_summary(folder, job, monkeypatch):
    def fail(*args, **options):
        raise OSError("GET https://store.example/a.tif?sig=SECRET&se=1 failed")

    monkeypatch.setattr("smgrid.open_cube", fail)
    code, summary, err = job("map_soil_moisture", "map.yml")
    assert code == 1
    assert "SECRET" not in summary["error"] + err
    assert "store.example" in summary["error"]


ENDING = """
import os, signal, sys
from smgrid.jobs import JobConfig, run_job
def work(config, job):
    running = open("s.json").read()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    finally:
        os.kill(os.getpid(), signal.SIGTERM)  # batch systems ask again while clusters close
        sys.stderr.write(running)
sys.exit(run_job("t", "", JobConfig, work))
"""


def test_a_job_that_is_terminated_twice_still_says_so(tmp_path):
    """And while it runs, its summary is not that of a former run."""
    (tmp_path / "job.yml").write_text("summary: s.json\n")
    (tmp_path / "s.json").write_text('{"status": "done"}')
    command = [sys.executable, "-c", ENDING, "job.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 143, done.stderr
    assert '"status": "running"' in done.stderr
    assert json.loads((tmp_path / "s.json").read_text())["status"] == "failed"


@pytest.fixture
def run_work(tmp_path, monkeypatch, capsys):
    """Run a job that does this; returns its exit code and what it printed."""

    def start(work, text="{}\n"):
        (tmp_path / "job.yml").write_text(text)
        monkeypatch.setattr(sys, "argv", ["t", str(tmp_path / "job.yml")])
        code = run_job("t", "", JobConfig, work)
        return code, json.loads(capsys.readouterr().out)

    return start


@pytest.mark.parametrize(("error", "expected"), [(None, 4), (NoDataError("no data"), 3)])
def test_a_summary_that_cannot_be_written_hides_no_other_failure(
    run_work, tmp_path, error, expected
):
    def work(config, job):
        (tmp_path / "s.json").unlink()
        (tmp_path / "s.json").mkdir()
        if error:
            raise error

    code, summary = run_work(work, f"summary: {tmp_path}/s.json\n")
    assert (code, summary["exit_code"], summary["status"]) == (expected, expected, "failed")
    assert summary["error"] == "no data" if error else "cannot be written" in summary["error"]


@pytest.mark.parametrize("store", ["", ".", "/"])
def test_a_store_without_a_name_is_refused_before_a_summary_is_named_after_it(
    run_work, tmp_path, monkeypatch, store
):
    monkeypatch.chdir(tmp_path)

    def work(config, job):
        with job.stage("cube", store):
            raise AssertionError("begun")

    code, summary = run_work(work)
    assert (code, summary["stages"]) == (2, [])
    assert summary["error"] == f"cube: expected the path of a store, found {store!r}"
    assert [p.name for p in tmp_path.iterdir()] == ["job.yml"]


def test_units_that_were_not_tried_are_counted_apart(run_work, tmp_path):
    """They were not there, and did not fail."""

    def work(config, job):
        with job.stage("cube", tmp_path / "a.zarr"):
            failed = (SimpleNamespace(unit="a", reason="wrong"),) * 24
            report = WriteReport("a.zarr", 100, written=5, failed=failed, not_tried=61)
            raise UnitsFailedError("24 of 100", report=report)

    code, summary = run_work(work)
    assert code == 4
    units = {"total": 100, "written": 5, "skipped": 10, "failed": 24, "not_tried": 61}
    assert summary["stages"][0]["units"] == units


def test_units_of_a_job_that_was_interrupted(run_work, tmp_path):
    def work(config, job):
        with job.stage("cube", tmp_path / "a.zarr") as stage:
            for done in (10, 11, 12):
                stage.progress(Progress(done, 100, ""))
            raise KeyboardInterrupt

    code, summary = run_work(work)
    assert code == 130
    units = {"total": 100, "written": 2, "skipped": 10, "failed": 0, "not_tried": 88}
    assert summary["stages"][0]["units"] == units
