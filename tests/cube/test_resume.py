"""A writer may die at any moment: the next one ends with the bytes of an uninterrupted write."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from smgrid.cube.store import open_cube
from smgrid.cube.verify import verify

WRITER = Path(__file__).with_name("kill_writer.py")


def run_writer(*args):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::PendingDeprecationWarning", WRITER, *args],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_killed_writer_is_resumed_to_the_same_bytes(tmp_path, files_of):
    report = run_writer("kill", tmp_path, "22")
    assert report["code"] == 0
    assert report["total"] == 2 * 36 + 2
    whole = files_of(tmp_path / "whole")
    kills = amid = 0
    for name, run in report["runs"].items():
        assert run["code"] == 0
        assert files_of(tmp_path / name) == whole
        for killed in run["killed"]:
            # Whatever is there is what belongs there, and complete is said of everything only.
            assert killed["other"] == []
            assert killed["status"] != "complete" or killed["shards"] == report["total"]
        counts = [killed["shards"] for killed in run["killed"]]
        assert counts == sorted(counts)  # done units are kept
        kills += len(counts)
        amid += sum(0 < count < report["total"] for count in counts)
    assert kills >= 20
    assert amid >= 10
    assert verify(tmp_path / "0").ok
    opened = open_cube(tmp_path / "0")
    np.testing.assert_array_equal(opened["base"].a, open_cube(tmp_path / "whole")["base"].a)


@pytest.mark.slow
def test_a_killed_update_is_finished_by_the_next_one(tmp_path, files_of):
    run = run_writer("update", tmp_path, "12", "3")
    assert run["code"] == 0
    assert len(run["killed"]) >= 6
    for killed in run["killed"]:
        # A shard that differs is one of the last year of a series, which grows.
        assert {key.split("/")[1] for key in killed["other"]} <= {"ndvi", "t2m", "tp"}
        assert {key.split("/")[3] for key in killed["other"]} <= {"1"}
        done = (killed["shards"], killed["other"]) == (run["total"], [])
        assert killed["status"] != "complete" or killed["shards"] == run["before"] or done
    hidden = {"_smgrid/manifest.json", "_smgrid/template.json"}
    whole, updated = files_of(tmp_path / "whole"), files_of(tmp_path / "a")
    assert {k: v for k, v in updated.items() if k not in hidden} == {
        k: v for k, v in whole.items() if k not in hidden
    }
    assert verify(tmp_path / "a").ok


@pytest.mark.slow
def test_the_memory_of_writing_does_not_grow_with_the_number_of_units(tmp_path):
    peaks = run_writer("memory", tmp_path, "20", "300")
    # 280 more units hold 294 MB.
    assert peaks["300"] - peaks["20"] < 40
