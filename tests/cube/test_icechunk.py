"""Stores with versions: one snapshot per date, each of them whole whatever kills the writer."""

import json
import pickle
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import dask
import icechunk
import numpy as np
import pytest
import xarray as xr
import zarr
from odc.geo.geobox import GeoBox

from smgrid.cube import icechunk_repo
from smgrid.cube.icechunk_commits import Committer
from smgrid.cube.icechunk_repo import make_repository, open_repository
from smgrid.cube.icechunk_store import list_snapshots, open_icechunk, write_icechunk
from smgrid.cube.storage import list_keys, read_bytes
from smgrid.cube.store import open_cube, write_cube
from smgrid.errors import (
    IncompleteStoreError,
    MissingDependencyError,
    SchemaError,
    StoreError,
    TemplateMismatchError,
)
from smgrid.grid import grid_coords
from tests.s3_server import SECRET, S3Server

BUCKET = "versions"
WARNINGS = ["-W", "error", "-W", "ignore::PendingDeprecationWarning"]


@pytest.fixture(scope="module")
def server():
    running = S3Server()
    running.make_bucket(BUCKET)
    yield running
    running.stop()


@pytest.fixture
def s3(server, monkeypatch):
    for name, value in server.environment(server.url).items():
        monkeypatch.setenv(name, value)
    server.plan()
    return server


@pytest.fixture
def repo(tmp_path):
    return str(tmp_path / "repo")


def failing_at(ds, step):
    """Let every block of one step of ``soil_moisture`` fail."""

    def fail(block, block_info=None):
        if block_info and block_info[0]["chunk-location"][0] == step:
            raise RuntimeError("asset b.tif is truncated")
        return block

    blocks = ds.soil_moisture.data
    blocks = blocks.map_blocks(fail, dtype=blocks.dtype, meta=blocks._meta)
    return ds.assign(soil_moisture=ds.soil_moisture.copy(data=blocks))


def messages(place):
    return [snapshot.message for snapshot in reversed(list_snapshots(place))]


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_a_cube_is_the_same_as_in_a_folder(cube, repo, tmp_path, files_of, scheduler):
    events = []
    with dask.config.set(scheduler=scheduler):
        report = write_icechunk(cube, repo, shard=16, progress=events.append)
    write_cube(cube, tmp_path / "a", shard=16)
    assert (report.total, report.written) == (34, 34)
    assert len(events) == 3 + 34
    xr.testing.assert_identical(open_icechunk(repo).load(), open_cube(tmp_path / "a").load())
    # The shards are those of a folder, byte by byte.
    session = open_repository(repo).readonly_session("main")
    here = {k: v for k, v in files_of(tmp_path / "a").items() if "/c/" in k}
    assert {k: read_bytes(session.store, k) for k in list_keys(session.store) if "/c/" in k} == here
    assert len(here) > 34


def test_there_is_a_snapshot_per_date(cube, soil_map, repo, tmp_path):
    report = write_icechunk(soil_map, repo, shard=16, manifest={"catalog": "flanders"})
    days = ["2024-01-01", "2024-01-03", "2031-08-10"]
    assert messages(repo) == ["Repository initialized", "template", *days, "complete"]
    newest = list_snapshots(repo)[0]
    assert (report.commits, report.snapshot) == (5, newest.id)
    about = next(iter(open_repository(repo).ancestry(branch="main"))).metadata["smgrid_manifest"]
    assert about["catalog"] == "flanders"
    cubes = str(tmp_path / "cubes")
    write_icechunk(cube, cubes, shard=16)
    # A year of a series comes with its first day, static variables come before all dates.
    firsts = ["2023-01-01", "2024-01-01", "2024-01-03", "2024-01-04", "2031-08-10"]
    assert messages(cubes)[2:] == ["without a date", *firsts, "complete"]


def test_others_read_it_without_smgrid(soil_map, repo):
    write_icechunk(soil_map, repo, shard=16)
    storage = icechunk.local_filesystem_storage(repo)
    session = icechunk.Repository.open(storage).readonly_session("main")
    ds = xr.open_zarr(session.store, consolidated=False, decode_coords="all")
    np.testing.assert_allclose(ds.soil_moisture, open_icechunk(repo).soil_moisture, atol=1e-6)
    assert ds.odc.geobox == soil_map.odc.geobox


def test_a_failure_keeps_the_dates_before_it(soil_map, repo):
    with pytest.raises(StoreError, match=r"2031-08-10: .*b\.tif is truncated\. 18 of 24 pending"):
        write_icechunk(failing_at(soil_map, 3), repo, shard=16)
    with pytest.raises(IncompleteStoreError, match="this snapshot lacks dates; write the same"):
        open_icechunk(repo)
    part = open_icechunk(repo, incomplete="allow").soil_moisture
    assert np.isnan(part[3]).all()
    assert np.isfinite(part[:3, 5:, 5:]).all()
    report = write_icechunk(soil_map, repo, shard=16)
    assert (report.written, report.commits) == (6, 2)
    assert np.isfinite(open_icechunk(repo).soil_moisture[:, 5:, 5:]).all()
    again = write_icechunk(soil_map, repo, shard=16)
    assert (again.written, again.commits, again.snapshot) == (0, 0, report.snapshot)


def test_a_value_out_of_range_commits_nothing_of_its_date(soil_map, repo):
    bad = soil_map.assign(soil_moisture=soil_map.soil_moisture * 99)
    with pytest.raises(SchemaError, match=r"2024-01-01: soil_moisture: found .*0 of 24"):
        write_icechunk(bad, repo, shard=16)
    assert messages(repo)[1:] == ["template"]


def test_a_snapshot_stays_what_it_was(soil_map, repo):
    write_icechunk(soil_map, repo, shard=16)
    second = list_snapshots(repo)[2]
    assert second.message == "2024-01-03"
    early = open_icechunk(repo, snapshot=second.id, incomplete="allow").soil_moisture
    assert np.isnan(early[3]).all()
    assert np.isfinite(early[2, 5:, 5:]).all()
    opened = open_icechunk(repo)
    session = open_repository(repo).writable_session("main")
    zarr.open_array(session.store, path="flags", mode="r+")[:] = 7
    session.commit("somebody else's change")
    np.testing.assert_array_equal(opened.flags, soil_map.flags)
    assert (open_icechunk(repo).flags == 7).all()


def test_other_data_are_refused(soil_map, repo):
    write_icechunk(soil_map, repo, shard=16)
    with pytest.raises(TemplateMismatchError, match="was made for something else") as caught:
        write_icechunk(soil_map.isel(x=slice(0, 20)), repo, shard=16)
    assert "groups..arrays.flags.shape" in str(caught.value)


def test_a_repository_of_others_is_left_alone(soil_map, repo):
    session = make_repository(repo).writable_session("main")
    zarr.create_array(session.store, name="theirs", shape=(2,), dtype="f4")
    session.commit("theirs")
    for act in (lambda: write_icechunk(soil_map, repo), lambda: open_icechunk(repo)):
        with pytest.raises(StoreError, match="holds no store of smgrid in this snapshot"):
            act()


def commit_something(repository):
    session = repository.writable_session("main")
    zarr.open_array(session.store, path="flags", mode="r+")[0, :16, :16] = 7
    session.commit("somebody else's")


@pytest.mark.parametrize("where", ["folder", "bucket"])
@pytest.mark.parametrize("moment", ["between", "within"])
def test_a_second_committer_is_noticed(soil_map, repo, s3, monkeypatch, where, moment):
    place = repo if where == "folder" else f"s3://{BUCKET}/{moment}"
    original, calls = Committer._commit, []

    def interfere(self, session, message, metadata):
        if message == "2024-01-03" and moment == "within":
            commit_something(open_repository(place))
        original(self, session, message, metadata)
        if message == "2024-01-01" and moment == "between":
            commit_something(open_repository(place))
        calls.append(message)

    with monkeypatch.context() as patch:
        patch.setattr(Committer, "_commit", interfere)
        with pytest.raises(StoreError, match=r"2024-01-03: .*another writer has committed .*6 of"):
            write_icechunk(soil_map, place, shard=16)
    assert calls == ["template", "2024-01-01"]
    assert messages(place)[2:] == ["2024-01-01", "somebody else's"]
    assert write_icechunk(soil_map, place, shard=16).written >= 17


def test_what_is_missing_is_named(soil_map, repo, tmp_path):
    with pytest.raises(StoreError, match="is no icechunk repository; check the path"):
        open_icechunk(repo)
    assert not Path(repo).exists()
    write_icechunk(soil_map, repo, shard=16)
    with pytest.raises(StoreError, match=r"has no branch 'trial'; it has main"):
        write_icechunk(soil_map, repo, branch="trial")
    with pytest.raises(StoreError, match="ref not found `trial`"):
        open_icechunk(repo, branch="trial")
    with pytest.raises(StoreError, match="invalid snapshot id: `AAAA`"):
        open_icechunk(repo, snapshot="AAAA")
    with pytest.raises(StoreError, match=r"in a folder or at s3:// only"):
        open_icechunk("gs://bucket/a")


def test_a_branch_goes_its_own_way(soil_map, repo):
    write_icechunk(soil_map, repo, shard=16)
    repository = open_repository(repo)
    template = list_snapshots(repo)[-2]
    assert template.message == "template"
    repository.create_branch("trial", template.id)
    assert write_icechunk(soil_map, repo, branch="trial", shard=16).written == 24
    trial = open_icechunk(repo, branch="trial").load()
    xr.testing.assert_identical(trial, open_icechunk(repo).load())


def test_without_the_package_the_cure_is_named(soil_map, repo, monkeypatch):
    monkeypatch.setitem(sys.modules, "icechunk", None)
    for act in (lambda: write_icechunk(soil_map, repo), lambda: open_icechunk(repo)):
        with pytest.raises(MissingDependencyError, match=r"pip install 'smgrid\[icechunk\]'"):
            act()


def test_a_commit_lists_the_chunks_of_its_time_only(repo, monkeypatch):
    monkeypatch.setattr(icechunk_repo, "STEPS_PER_MANIFEST", 4)
    grid = GeoBox.from_bbox((0, 0, 1600, 1600), "EPSG:32648", resolution=100)
    values = np.random.default_rng(1).uniform(size=(20, 16, 16)).astype("f4")
    times = np.datetime64("2020-01-01", "ns") + np.arange(20) * np.timedelta64(1, "D")
    ds = xr.Dataset(
        {"a": (("time", "y", "x"), values)}, coords={**grid_coords(grid), "time": times}
    )
    write_icechunk(ds, repo, shard=4)
    session = open_repository(repo).readonly_session("main")
    info = open_repository(repo).lookup_snapshot(session.snapshot_id)
    counts = [manifest.num_chunk_refs for manifest in info.manifests]
    assert sum(counts) == 20 * 16 + 4  # and x, y, time and the CRS
    assert max(counts) == 4 * 16
    np.testing.assert_array_equal(open_icechunk(repo).a, values)


def test_a_writer_that_died_while_it_made_the_repository_is_swept_up(soil_map, repo):
    make_repository(repo)
    shutil.rmtree(f"{repo}/refs")  # made last
    with pytest.raises(icechunk.IcechunkError, match="can only be created in clean prefixes"):
        icechunk.Repository.create(icechunk.local_filesystem_storage(repo))
    assert write_icechunk(soil_map, repo, shard=16).written == 24


def test_another_folder_is_left_alone(soil_map, tmp_path):
    write_cube(soil_map, tmp_path / "a", shard=16)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StoreError, match=r"is not empty and no icechunk repository \(it holds '_"):
        write_icechunk(soil_map, tmp_path / "a", shard=16)
    assert [path for path in before if path.is_file() and not path.exists()] == []


def test_a_bucket_holds_a_repository(s3, soil_map, tmp_path):
    place = f"s3://{BUCKET}/a"
    write_cube(soil_map, tmp_path / "a", shard=16)
    write_icechunk(soil_map, place, shard=16)
    opened = open_icechunk(place)
    fork = open_repository(place).writable_session("main").fork()
    sent = [pickle.dumps(opened.flags.data.dask), pickle.dumps(fork)]
    assert not [data for data in sent if SECRET.encode() in data]
    xr.testing.assert_identical(opened.load(), open_cube(tmp_path / "a").load())


def test_access_to_a_bucket_that_fails_is_explained(s3, soil_map):
    with pytest.raises(StoreError, match="s3://nowhere/a: there is no such bucket"):
        write_icechunk(soil_map, "s3://nowhere/a", shard=16)
    write_icechunk(soil_map, f"s3://{BUCKET}/b", shard=16)
    s3.plan(key="SOMEBODY")
    with pytest.raises(StoreError, match="access is refused"):
        open_icechunk(f"s3://{BUCKET}/b")
    s3.plan()


@pytest.mark.parametrize("fault", [503, "reset", "lost"])
def test_a_failing_network_changes_nothing(s3, soil_map, fault):
    place = f"s3://{BUCKET}/faults-{fault}"
    pattern = [None, fault, None, None, fault] + [None] * 8
    s3.plan(*(pattern * 8))
    write_icechunk(soil_map, place, shard=16)
    s3.plan()
    assert messages(place)[2:] == ["2024-01-01", "2024-01-03", "2031-08-10", "complete"]
    np.testing.assert_array_equal(open_icechunk(place).flags, soil_map.flags)


def test_a_commit_counts_though_the_answer_was_lost(s3, soil_map):
    place = f"s3://{BUCKET}/lost-commit"
    with pytest.raises(StoreError, match="is truncated"):
        write_icechunk(failing_at(soil_map, 0), place, shard=16)
    s3.plan(lose="ref.json")
    report = write_icechunk(soil_map, place, shard=16)
    puts = [path for verb, path, _ in s3.log() if verb == "PUT" and path.endswith("ref.json")]
    assert (report.commits, len(puts)) == (4, 5)
    assert messages(place)[2:] == ["2024-01-01", "2024-01-03", "2031-08-10", "complete"]


@pytest.mark.slow
def test_a_cluster_writes_forks(s3, cube, tmp_path):
    distributed = pytest.importorskip("distributed")
    place = f"s3://{BUCKET}/cluster"
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster),
    ):
        write_icechunk(cube, place, shard=16)
        opened = open_icechunk(place).load()
    write_cube(cube, tmp_path / "a", shard=16)
    xr.testing.assert_identical(opened, open_cube(tmp_path / "a").load())


@pytest.mark.slow
@pytest.mark.parametrize(("where", "kills"), [("folder", 4), ("bucket", 2)])
def test_a_killed_writer_leaves_the_last_snapshot(s3, tmp_path, where, kills):
    place = str(tmp_path) if where == "folder" else f"s3://{BUCKET}/killed"
    script = str(Path(__file__).with_name("kill_icechunk_writer.py"))
    done = subprocess.run(
        [sys.executable, *WARNINGS, script, place, str(kills)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    amid = killed = 0
    for run in json.loads(done.stdout):
        assert run["code"] == 0, done.stderr
        *found, last = run["found"]
        assert all(state["right"] for state in run["found"])
        assert all(a["dates"] <= b["dates"] for a, b in pairwise(run["found"]))
        assert (last["dates"], last["error"]) == (8, "")
        amid += sum(0 < state["dates"] < 8 for state in found)
        killed += len(found)
    assert killed >= kills
    assert amid >= 2
