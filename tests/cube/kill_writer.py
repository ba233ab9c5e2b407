"""Write stores in child processes that are killed at random moments; run by test_resume.py.

One process imports everything once and forks a fresh writer for every attempt, so that a test can
afford many kills. ``kill_writer.py kill FOLDER KILLS`` prints what happened as JSON, and ``update
FOLDER KILLS SEED`` does the same with updates of a cube; ``race FOLDER RACES WRITERS`` lets writers
begin at the same moment; ``memory FOLDER UNITS...`` prints the peak memory by number of units.
"""

import contextlib
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script, below the repository

import dask
import dask.array as da
import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.cube.build import load_cube
from smgrid.cube.store import write_cube
from smgrid.cube.update import update_cube
from smgrid.errors import StoreInUseError
from smgrid.grid import coarsen_grid, grid_coords
from tests.cube.archive import write_archive

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
    text = json.loads(root.read_text())["attributes"]["smgrid_status"] if root.exists() else ""
    return text, len(shards_of(folder))


def shards_of(folder):
    """Return the shards of data by their path."""
    found = [*folder.glob("*/*/c/*/*/*"), *folder.glob("*/*/c/*/*")]
    return {p.relative_to(folder).as_posix(): p for p in found if p.is_file() and p.name.isdigit()}


def kill_at_random(work, folder, rng, total, kills):
    """Run `work` again and again, killing it until it was killed so often, and then to the end.

    Kills come when a random number of shards have been written, and a moment later; some come
    while the metadata are written.
    """
    killed = []
    for attempt in range(kills + 60):
        child = fork(work)
        if attempt < kills:
            more = rng.choice([0, 0, 1, rng.randint(1, 1 + 2 * total // kills)])
            wait_for(folder, child, more)
            time.sleep(rng.uniform(0, 0.02 if more else 0.2))
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            killed.append(observe(folder))
        else:
            return {"killed": killed, "code": os.WEXITSTATUS(status)}
    return {"killed": killed, "code": None}


def wait_for(folder, child, more):
    """Wait until there are so many more shards than now, or the child has ended."""
    wanted = len(shards_of(folder)) + more
    while len(shards_of(folder)) < wanted:
        time.sleep(0.002)
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return


def observe(folder):
    """Return status, number of shards, and which of them differ from those of the whole store."""
    status, count = status_of(folder)
    whole = folder.parent / "whole"
    other = [k for k, p in shards_of(folder).items() if p.read_bytes() != (whole / k).read_bytes()]
    return {"status": status, "shards": count, "other": other}


def kill(folder, kills):
    """Write one store after the other until writers were killed so often."""
    _, status = os.waitpid(fork(lambda: write_cube(cube(), folder / "whole", shard=16)), 0)
    total = status_of(folder / "whole")[1]
    runs = {}
    while sum(len(run["killed"]) for run in runs.values()) < int(kills):
        name = str(len(runs))
        runs[name] = kill_at_random(
            lambda name=name: write_cube(cube(), folder / name, shard=16),
            folder / name,
            random.Random(len(runs)),
            total,
            kills=12,
        )
    return {"code": os.WEXITSTATUS(status), "total": total, "runs": runs}


def race(folder, races, writers):
    """Return the exit statuses of writers that begin at the same moment."""
    os.waitpid(fork(lambda: write_cube(cube(), folder / "whole", shard=16)), 0)

    def write(path, begin):
        time.sleep(max(0, begin - time.time()))
        try:
            write_cube(cube(), path, shard=16)
        except StoreInUseError as error:
            os._exit(error.exit_code)

    codes = {}
    for name in map(str, range(int(races))):
        begin = time.time() + 0.05
        children = [
            fork(lambda path=folder / name, begin=begin: write(path, begin))
            for _ in range(int(writers))
        ]
        codes[name] = [os.WEXITSTATUS(os.waitpid(child, 0)[1]) for child in children]
    return codes


def update(folder, kills, seed):
    """Kill updates of a cube whose archive has grown, and compare with a new build."""
    grid = GeoBox.from_bbox((0, 0, 4000, 3200), crs="EPSG:32648", resolution=100)
    days = np.datetime64("2023-06-01T11:02:05") + np.arange(20) * np.timedelta64(9, "D")
    catalog = write_archive(folder, [str(day) for day in days])

    def build(end, name):
        cube = load_cube(grid, ("2022-01-01", end), catalog=catalog, chunks=16)
        write_cube(cube, folder / name, shard=16)

    for end, name in (("2023-06-30", "a"), ("2023-12-31", "whole")):
        os.waitpid(fork(lambda end=end, name=name: build(end, name)), 0)
    before = shards_of(folder / "a")
    run = kill_at_random(
        lambda: update_cube(folder / "a", until="2023-12-31"),
        folder / "a",
        random.Random(seed),
        len(shards_of(folder / "whole")) - len(before),
        int(kills),
    )
    return run | {"before": len(before), "total": len(shards_of(folder / "whole"))}


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
    commands = {"kill": kill, "update": update, "race": race, "memory": memory}
    command = commands[sys.argv[1]]
    sys.stdout.write(json.dumps(command(Path(sys.argv[2]), *sys.argv[3:])))
