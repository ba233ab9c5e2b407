"""Write icechunk repositories in processes that are killed at random; run by test_icechunk.py.

``kill_icechunk_writer.py PLACE KILLS`` writes at ``PLACE/0`` and so on, each with kills until it is
finished, until there were so many kills, and prints as JSON what a reader found after every kill:
how many snapshots, how many dates, and whether their values are right. Reader and
writers are forks of one process that imports everything and opens nothing itself.
"""

import json
import os
import random
import signal
import sys
import time
import traceback

import dask
import dask.array as da
import numpy as np
import xarray as xr
from icechunk import Repository  # noqa: F401 (so that no fork has to import it)
from odc.geo.geobox import GeoBox

from smgrid.cube.icechunk_store import list_snapshots, open_icechunk, write_icechunk
from smgrid.errors import StoreError
from smgrid.grid import grid_coords

GRID = GeoBox.from_bbox((0, 0, 3200, 3200), crs="EPSG:32648", resolution=100)
DATES = 8


def slow_block(block_info=None):
    time.sleep(0.02)
    block = block_info[None]
    seed = [n + 1 for n in block["chunk-location"]]
    return np.random.default_rng(seed).uniform(0.0, 0.5, block["chunk-shape"]).astype("f4")


def scenes():
    tiles = ((1,) * DATES, (16, 16), (16, 16))
    blocks = da.map_blocks(slow_block, chunks=tiles, dtype="f4", meta=np.zeros((0, 0, 0), "f4"))
    times = np.datetime64("2024-01-01", "ns") + np.arange(DATES) * np.timedelta64(1, "D")
    return xr.Dataset(
        {"a": (("time", "y", "x"), blocks)}, coords={**grid_coords(GRID), "time": times}
    )


def look(place):
    """Return what a reader finds on the branch."""
    try:
        snapshots = len(list_snapshots(place))
        opened = open_icechunk(place, incomplete="allow").a.values
    except StoreError as error:
        return {"snapshots": 0, "dates": 0, "right": True, "error": str(error)}
    dates = int(np.isfinite(opened).all(axis=(1, 2)).sum())
    expected = np.where(np.arange(DATES)[:, None, None] < dates, scenes().a.values, np.nan)
    right = np.array_equal(opened, expected.astype("f4"), equal_nan=True)
    return {"snapshots": snapshots, "dates": dates, "right": right, "error": ""}


def fork(work):
    """Run `work` in a child process; return its id and where its result can be read."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.write(writer, json.dumps(work()).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(code)
    os.close(writer)
    return child, reader


def run(work):
    child, reader = fork(work)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader) as file:
        return json.loads(file.read()) if status == 0 else None


def write_and_kill(place, rng):
    found = []
    while True:
        child, reader = fork(lambda: write_icechunk(scenes(), place, shard=16).total)
        os.close(reader)
        if len(found) < 5:
            time.sleep(rng.uniform(0.02, 0.6))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            return {"found": [*found, run(lambda: look(place))], "code": os.WEXITSTATUS(status)}
        found.append(run(lambda: look(place)))


def main(place, kills):
    rng, runs = random.Random(2), []
    # On a slow machine most kills come before the first date: go on until some came amid them.
    while len(runs) < 20:
        killed = [state for done in runs for state in done["found"][:-1]]
        if len(killed) >= kills and sum(0 < state["dates"] < DATES for state in killed) >= 2:
            break
        runs.append(write_and_kill(f"{place}/{len(runs)}", rng))
    return runs


if __name__ == "__main__":
    dask.config.set(num_workers=2)
    sys.stdout.write(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
