"""Write stores in child processes that are killed at random moments; run by test_resume.py.

One process imports everything once and forks a fresh writer for every attempt, so that a test can
afford many kills. ``kill_writer.py kill FOLDER SEED...`` prints what happened as JSON;
``kill_writer.py memory FOLDER UNITS...`` prints the peak memory of a writer by number of units.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.cube.store import write_cube
from smgrid.grid import coarsen_grid, grid_coords

GRID = GeoBox.from_bbox((0, 0, 4000, 4000), crs="EPSG:32648", resolution=100)


def slow_block(block_info=None):
    """Make a block that depends on its place, slowly enough for a kill to hit it."""
    time.sleep(0.004)
    block = block_info[None]
    seed = [n + 1 for n in block["chunk-location"]]
    return np.random.default_rng(seed).uniform(0.0, 0.5, block["chunk-shape"]).astype("f4")


def lazy(chunks):
    return da.map_blocks(slow_block, chunks=chunks, dtype="f4", meta=np.zeros((0, 0, 0), "f4"))


def cube():
    times = np.datetime64("2024-01-01", "ns") + np.arange(4) * np.timedelta64(1, "D")
    tiles = (16, 16, 8)
    scenes = {name: (("time", "y", "x"), lazy(((1,) * 4, tiles, tiles))) for name in "ab"}
    half = coarsen_grid(GRID, 2)
    series = {"c": (("date", "y", "x"), lazy(((46, 46), (20,), (20,))))}
    dates = np.datetime64("2023-01-01", "ns") + np.arange(92) * np.timedelta64(8, "D")
    return xr.DataTree.from_dict(
        {
            "/base": xr.Dataset(scenes, {**grid_coords(GRID), "time": times}),
            "/x2": xr.Dataset(series, {**grid_coords(half), "date": dates}),
        }
    )


def fork(work):
    """Run `work` in a child process and return its id; the exit status is 0 if it succeeded."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(code)
    return child


def status_of(folder):
    """Return the status in the root and the number of shards, without zarr."""
    root = folder / "zarr.json"
    shards = [p for p in folder.glob("*/[abc]/c/*/*/*") if p.name.isdigit()]
    text = json.loads(root.read_text())["attributes"]["smgrid_status"] if root.exists() else ""
    return text, len(shards)


def write_and_kill(folder, duration, seed):
    rng = random.Random(seed)
    killed = []
    for attempt in range(60):
        child = fork(lambda: write_cube(cube(), folder, shard=16))
        if attempt < 50:
            # Early moments hit the template, late ones the end.
            time.sleep(rng.uniform(0, duration) * rng.choice([0.3, 1.2]))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            killed.append(status_of(folder))
        else:
            return {"killed": killed, "code": os.WEXITSTATUS(status)}
    return {"killed": killed, "code": None}


def kill(folder, *seeds):
    start = time.perf_counter()
    _, status = os.waitpid(fork(lambda: write_cube(cube(), folder / "whole", shard=16)), 0)
    duration = time.perf_counter() - start
    runs = {seed: write_and_kill(folder / seed, duration, int(seed)) for seed in seeds}
    return {"code": os.WEXITSTATUS(status), "total": status_of(folder / "whole")[1], "runs": runs}


def memory(folder, *sizes):
    """Return the peak resident memory [MB] of writing so many units of 1 MB."""
    peaks = {}
    for size in sizes:
        times = np.datetime64("2024-01-01", "ns") + np.arange(int(size)) * np.timedelta64(1, "D")
        grid = GeoBox.from_bbox((0, 0, 51200, 51200), crs="EPSG:32648", resolution=100)
        blocks = da.random.default_rng(1).random(
            (len(times), 512, 512), chunks=(1, 512, 512), dtype="f4"
        )
        ds = xr.Dataset({"a": (("time", "y", "x"), blocks)}, {**grid_coords(grid), "time": times})
        _, status, usage = os.wait4(fork(lambda ds=ds, s=size: write_cube(ds, folder / s)), 0)
        peaks[size] = usage.ru_maxrss / 1000
        assert status == 0
    return peaks


if __name__ == "__main__":
    dask.config.set(num_workers=2)
    command = {"kill": kill, "memory": memory}[sys.argv[1]]
    sys.stdout.write(json.dumps(command(Path(sys.argv[2]), *sys.argv[3:])))
