"""A job of slow units that a test kills; run as ``distributed_job.py SCHEDULER STORE [POISON]``.

Every unit leaves a line in the file ``calls`` beside the store when it is computed. The unit whose
number is POISON kills the process that computes it, unless that is the process of the job.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script, below the repository

import dask.array as da
import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid import cluster
from smgrid.cluster import open_scheduler
from smgrid.cube.store import write_cube
from smgrid.errors import SmgridError
from smgrid.grid import grid_coords

DATES, TILES, EDGE = 15, 4, 16
UNITS = DATES * TILES
SECONDS = 0.1


class Block:
    """Makes a block that depends on its place."""

    def __init__(self, calls, poison=None):
        self.calls = str(calls)
        self.poison = poison
        self.job = os.getpid()

    def __call__(self, block_info=None):
        date, y, x = block_info[None]["chunk-location"]
        number = date * TILES + 2 * y + x
        with Path(self.calls).open("a") as file:
            file.write(f"{number}\n")
        if os.getpid() != self.job:
            time.sleep(SECONDS)
            if number == self.poison:
                os._exit(1)
        seed = [date, y, x]
        return np.random.default_rng(seed).uniform(0, 0.5, block_info[None]["chunk-shape"])


def cube(calls, poison=None):
    edges = (EDGE, EDGE)
    block = Block(calls, poison)
    values = da.map_blocks(
        block, chunks=((1,) * DATES, edges, edges), dtype="f8", meta=np.zeros((0, 0, 0))
    ).astype("f4")
    grid = GeoBox.from_bbox((0, 0, 3200, 3200), crs="EPSG:32631", resolution=100)
    times = np.datetime64("2024-01-01", "ns") + np.arange(DATES) * np.timedelta64(1, "D")
    return xr.Dataset({"a": (("time", "y", "x"), values)}, {**grid_coords(grid), "time": times})


def main():
    scheduler, store, *poison = sys.argv[1:]
    store = Path(store)
    if poison:  # one death per round: to start a worker takes seconds
        cluster._SCHEDULER["distributed.scheduler.allowed-failures"] = 0
    try:
        with open_scheduler(scheduler):
            numbers = [int(number) for number in poison]
            report = write_cube(cube(store.with_suffix(".calls"), *numbers), store, shard=EDGE)
    except SmgridError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(f"{report.written}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
