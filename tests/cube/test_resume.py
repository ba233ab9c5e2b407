"""A writer may die at any moment: the next one ends with the bytes of an uninterrupted write."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from smgrid.cube.store import open_cube

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
    seeds = ["1", "2", "3"]
    report = run_writer("kill", tmp_path, *seeds)
    assert report["code"] == 0
    assert report["total"] == 2 * 36 + 2
    whole = files_of(tmp_path / "whole")
    killed = 0
    for seed in seeds:
        run = report["runs"][seed]
        assert run["code"] == 0
        assert files_of(tmp_path / seed) == whole
        for status, shards in run["killed"]:
            # Complete is said only when everything is there.
            assert status != "complete" or shards == report["total"]
        counts = [shards for _, shards in run["killed"]]
        assert counts == sorted(counts)  # done units are kept
        killed += sum(0 < count < report["total"] for count in counts)
    assert killed >= 3
    opened = open_cube(tmp_path / seeds[0])
    np.testing.assert_array_equal(opened["base"].a, open_cube(tmp_path / "whole")["base"].a)


@pytest.mark.slow
def test_the_memory_of_writing_does_not_grow_with_the_number_of_units(tmp_path):
    peaks = run_writer("memory", tmp_path, "20", "300")
    # 280 more units hold 294 MB.
    assert peaks["300"] - peaks["20"] < 40
