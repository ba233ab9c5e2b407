"""Whatever happens to a store after it was written is found, and named."""

import json
import shutil
import subprocess

import dask
import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

from smgrid.cli import app
from smgrid.cube.inspect import inspect
from smgrid.cube.lock import writing
from smgrid.cube.storage import open_store
from smgrid.cube.store import open_cube, write_cube
from smgrid.cube.template import digest_of
from smgrid.cube.verify import drop_damaged, verify
from smgrid.errors import IncompleteStoreError, StoreError, StoreInUseError, UnitsFailedError
from tests.cube.faults import raising, with_fault


@pytest.fixture
def store(cube, tmp_path):
    write_cube(cube, tmp_path / "a.zarr", shard=16)
    return tmp_path / "a.zarr"


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_sound_store_is_sound(store, files_of):
    before = files_of(store)
    report = verify(store)
    assert report.ok
    shards = 30 * 2 - 6 + 2 + 4
    assert report.checked > shards
    assert (report.problems, report.unsummed, report.status) == ((), 0, "complete")
    assert str(report).endswith(f"a.zarr: sound; {report.checked} objects checked")
    assert files_of(store) == before


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
def test_the_sums_are_those_of_sha256sum(store):
    def check():
        args = ["sha256sum", "--quiet", "-c", "_smgrid/sha256sums"]
        return subprocess.run(args, cwd=store, capture_output=True, text=True, check=False)

    assert check().returncode == 0
    lines = (store / "_smgrid/sha256sums").read_text().splitlines()
    listed = {line[66:] for line in lines}
    files = {p.relative_to(store).as_posix() for p in store.rglob("*") if p.is_file()}
    assert files - listed == {
        "zarr.json",
        "_smgrid/sha256sums",
        "_smgrid/manifest.json",
        "_smgrid/template.json",
    }
    flip(store / "base/vv/c/1/0/0", 40)
    assert "base/vv/c/1/0/0: FAILED" in check().stdout


# Data, the index at the end of the shard, and its checksum.
@pytest.mark.parametrize("at", [0, 40, -1, -20])
def test_a_flipped_bit_is_named_with_its_unit(store, at):
    flip(store / "base/vh/c/1/0/2", at)
    report = verify(store)
    (problem,) = report.problems
    assert not report.ok
    assert problem.key == "base/vh/c/1/0/2"
    assert problem.kind in {"changed", "unreadable"}
    assert problem.unit == "/base (vv, vh), time 2024-01-03T11:02:05, tile (0, 2)"
    assert "base/vh/c/1/0/2 [/base (vv, vh), time 2024-01-03T11:02:05, tile" in str(report)


def test_every_flipped_bit_of_a_shard_is_found(store):
    path = store / "x90/t2m/c/0/0/0"
    content = path.read_bytes()
    for at in np.random.default_rng(0).choice(len(content), 12, replace=False):
        flip(path, at)
        assert [problem.key for problem in verify(store).problems] == ["x90/t2m/c/0/0/0"]
        path.write_bytes(content)
    assert verify(store).ok


def test_missing_cut_and_replaced_shards_are_named(store):
    (store / "base/sand/c/0/1").unlink()
    cut = store / "x2/ndvi/c/0/0/0"
    cut.write_bytes(cut.read_bytes()[:-10])
    (store / "x90/tp/c/1/0/0").write_bytes(b"")
    shutil.copy(store / "base/vv/c/0/0/0", store / "base/vv/c/1/0/0")
    report = verify(store)
    assert [(problem.key, problem.kind) for problem in report.problems] == [
        ("base/sand/c/0/1", "missing"),
        ("base/vv/c/1/0/0", "changed"),  # a sound shard, but of another date
        ("x2/ndvi/c/0/0/0", "unreadable"),
        ("x90/tp/c/1/0/0", "unreadable"),
    ]
    # What open_cube does not see.
    assert np.isnan(open_cube(store)["base"].sand.values[:16, 16:32]).all()


def test_an_edited_coordinate_is_named(store):
    array = zarr.open_array(store, path="base/time", mode="r+")
    array[1] = array[1] + 3600
    problems = {problem.key: problem for problem in verify(store).problems}
    assert set(problems) == {"base/time/c/0", "base/time"}
    assert problems["base/time"].text == "the coordinate has other values than the template says"


def test_an_edited_coordinate_is_found_without_sums(store):
    (store / "_smgrid/sha256sums").unlink()
    (store / "_smgrid/manifest.json").unlink()
    array = zarr.open_array(store, path="x2/x", mode="r+")
    array[3] = array[3] + 1
    report = verify(store)
    assert [problem.key for problem in report.problems] == ["_smgrid/manifest.json", "x2/x"]
    assert report.unsummed == 30 * 2 - 6 + 2 + 4
    assert "have no recorded sum" in str(report)


@pytest.mark.parametrize(
    "name",
    [
        "base/vv/zarr.json",
        "x2/zarr.json",
        "zarr.json",
        "_smgrid/template.json",
        "_smgrid/manifest.json",
        "_smgrid/sha256sums",
    ],
)
def test_edited_metadata_are_named(store, name):
    text = (store / name).read_text()
    if name.endswith("sha256sums"):
        text = text.replace("base/vv/c/0/0/0", "base/vv/c/0/0/9")
    else:
        content = json.loads(text)
        place = content.get("attributes", content)
        place["comment"] = "edited"
        if name.endswith("template.json"):
            content["groups"]["base"]["attrs"]["title"] = "edited"
        text = json.dumps(content)
    (store / name).write_text(text)
    assert name in {problem.key for problem in verify(store).problems}


def test_a_lost_array_or_coordinate_is_named(store):
    shutil.rmtree(store / "base/vh")
    shutil.rmtree(store / "x90/y")
    keys = [problem.key for problem in verify(store).problems]
    assert {"base/vh/zarr.json", "base/vh/c/0/0/0", "x90/y/zarr.json"} <= set(keys)


def test_an_unfinished_store_lacks_what_it_lacks(soil_map, tmp_path):
    bad = with_fault(soil_map, "flags", (2, 1, 0), raising(ValueError("no")))
    with pytest.raises(UnitsFailedError):
        write_cube(bad, tmp_path / "b.zarr", shard=16, attempts=1)
    report = verify(tmp_path / "b.zarr")
    assert (report.status, report.ok, report.unsummed) == ("incomplete", False, 0)
    assert {problem.kind for problem in report.problems} == {"missing"}
    assert [problem.key for problem in report.problems] == [
        f"{name}/c/2/1/0" for name in ("flags", "soil_moisture", "soil_moisture_std")
    ]
    about = inspect(tmp_path / "b.zarr")
    assert [failure.reason for failure in about.failures] == ["ValueError: no"]
    assert "1 units failed\n  / (soil_moisture, soil_moisture_std, flags), time" in str(about)


def test_a_shard_that_a_crash_left_damaged_is_written_again(soil_map, tmp_path, files_of):
    """Without their sums, as after a power cut, shards are read before they count as done."""
    write_cube(soil_map, tmp_path / "whole.zarr", shard=16)
    bad = with_fault(soil_map, "flags", (2, 1, 0), raising(ValueError("no")))
    store = tmp_path / "b.zarr"
    with pytest.raises(UnitsFailedError):
        write_cube(bad, store, shard=16, attempts=1)
    for path in (store / "_smgrid").glob("sha256sums-*"):
        path.unlink()
    (store / "flags/c/0/0/0").write_bytes(b"")
    (store / "soil_moisture/c/1/1/1").write_bytes(b"torn" * 100)
    assert write_cube(soil_map, store, shard=16).written == 3
    assert files_of(store) == files_of(tmp_path / "whole.zarr")
    assert verify(store).ok


def test_damage_while_a_store_is_resumed_is_not_blessed(soil_map, tmp_path):
    """The sums are those of what was written, not of what is there when the store is closed."""
    bad = with_fault(soil_map, "flags", (2, 1, 0), raising(ValueError("no")))
    store = tmp_path / "b.zarr"
    with pytest.raises(UnitsFailedError):
        write_cube(bad, store, shard=16, attempts=1)
    flip(store / "flags/c/0/0/0", 5)
    flip(store / "x/c/0", 3)
    write_cube(soil_map, store, shard=16)
    assert {"flags/c/0/0/0", "x/c/0"} <= {problem.key for problem in verify(store).problems}


def lose_lines(store, name):
    path = store / "_smgrid/sha256sums"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if name not in line))


@pytest.mark.parametrize("part", [None, "_smgrid/sha256sums-000001"])
def test_sums_that_were_lost_are_a_problem(store, part):
    """With a part left over, as during an update, the manifest's sum of the sums says nothing."""
    lose_lines(store, "base/vh/c/")
    if part:
        (store / part).touch()
    report = verify(store)
    assert not report.ok
    assert report.unsummed == 24
    assert [(problem.key, problem.kind) for problem in report.problems] == [
        ("_smgrid/sha256sums", "changed")
    ]
    assert ("no sums of 24 shards" in str(report)) == bool(part)


def test_a_store_that_never_had_sums_is_sound(store):
    """As older versions left it."""
    (store / "_smgrid/sha256sums").unlink()
    path = store / "_smgrid/manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["smgrid_sha256sums"], manifest["smgrid_manifest_sha256"]
    manifest["smgrid_manifest_sha256"] = digest_of(manifest)
    path.write_text(json.dumps(manifest))
    report = verify(store)
    assert report.ok
    assert report.unsummed == 30 * 2 - 6 + 2 + 4


def test_damaged_shards_are_dropped_and_written_again(cube, store, files_of):
    before = files_of(store)
    flip(store / "base/vh/c/1/0/2", 40)
    (store / "x90/tp/c/1/0/0").write_bytes(b"")
    shutil.copy(store / "base/vv/c/0/0/0", store / "base/vv/c/3/0/0")  # sound, of another date
    (store / "base/sand/c/0/1").unlink()
    report = verify(store)
    assert "smgrid.cube.verify.drop_damaged(report) deletes" in str(report)
    assert drop_damaged(report) == 3
    with pytest.raises(IncompleteStoreError):
        open_cube(store)
    lost = ["base/sand/c/0/1", "base/vh/c/1/0/2", "base/vv/c/3/0/0", "x90/tp/c/1/0/0"]
    found = verify(store)
    assert [(problem.key, problem.kind) for problem in found.problems] == [
        (key, "missing") for key in lost
    ]
    assert before.keys() - files_of(store).keys() == {*lost}
    assert write_cube(cube, store, shard=16).written == 4
    assert files_of(store) == before
    # What was found before is sound by now, and is kept.
    assert drop_damaged(report) == 0
    assert files_of(store) == before
    assert verify(store).ok


def test_nothing_is_dropped_for_sums_that_are_damaged_or_while_others_write(store, files_of):
    path = store / "_smgrid/sha256sums"
    text = path.read_text()
    path.write_text(text.replace("a", "b"))
    before = files_of(store)
    with pytest.raises(StoreError, match=r"a\.zarr: _smgrid/sha256sums or .* copy both again"):
        drop_damaged(verify(store))
    assert files_of(store) == before
    path.write_text(text)
    flip(store / "base/vh/c/1/0/2", 40)
    with writing(open_store(store, "write"), str(store)), pytest.raises(StoreInUseError):
        drop_damaged(verify(store))
    assert (store / "base/vh/c/1/0/2").exists()


def test_shards_are_read_in_parallel_and_few_at_a_time(store):
    with dask.config.set(scheduler="synchronous"):
        assert verify(store).ok


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(StoreError, match="is not a store of smgrid"):
        verify(tmp_path)


def test_the_command_ends_with_4_unless_the_store_is_sound(store):
    runner = CliRunner()
    result = runner.invoke(app, ["verify", str(store)])
    assert (result.exit_code, "a.zarr: sound" in result.output) == (0, True)
    (store / "base/sand/c/0/1").unlink()
    result = runner.invoke(app, ["verify", str(store)])
    assert result.exit_code == 4
    assert "base/sand/c/0/1 [/base (sand), tile (0, 1)]: the shard is not there" in result.output
