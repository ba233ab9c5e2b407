"""Write stores to a bucket in processes that are killed at random moments; run by test_s3.py.

``kill_s3_writer.py BUCKET KILLS`` writes ``s3://BUCKET/whole``, then ``s3://BUCKET/0`` and so on,
each with kills until it is finished, until there were so many kills. It prints as JSON which
objects each store had after every kill. One process imports everything and forks the writers; it
opens no connection but for listings, because a connection does not survive a fork.
"""

import json
import os
import random
import signal
import sys
import time
import traceback

import boto3
import dask
import dask.array as da
import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.cube.store import write_cube
from smgrid.grid import grid_coords

GRID = GeoBox.from_bbox((0, 0, 4000, 4000), crs="EPSG:32648", resolution=100)


def slow_block(block_info=None):
    time.sleep(0.004)
    block = block_info[None]
    seed = [n + 1 for n in block["chunk-location"]]
    return np.random.default_rng(seed).uniform(0.0, 0.5, block["chunk-shape"]).astype("f4")


def scenes():
    tiles = ((1,) * 4, (16, 16, 8), (16, 16, 8))
    blocks = da.map_blocks(slow_block, chunks=tiles, dtype="f4", meta=np.zeros((0, 0, 0), "f4"))
    times = np.datetime64("2024-01-01", "ns") + np.arange(4) * np.timedelta64(1, "D")
    return xr.Dataset(
        {"a": (("time", "y", "x"), blocks)}, coords={**grid_coords(GRID), "time": times}
    )


def start(url):
    """Write a store in a child process and return its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            write_cube(scenes(), url, shard=16)
            code = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(code)
    return child


def write_and_kill(bucket, name, rng, duration):
    """Return the keys after every kill and the exit status of the writer that got through."""
    killed = []
    while True:
        child = start(f"s3://{bucket}/{name}")
        if len(killed) < 12:
            # Early moments hit the template, late ones the end.
            time.sleep(rng.uniform(0, duration) * rng.choice([0.3, 1.0]))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            return {"killed": killed, "code": os.WEXITSTATUS(status)}
        listing = boto3.client("s3").list_objects_v2(Bucket=bucket, Prefix=f"{name}/")
        killed.append([entry["Key"] for entry in listing.get("Contents", ())])


def main(bucket, kills):
    begin = time.perf_counter()
    code = os.waitpid(start(f"s3://{bucket}/whole"), 0)[1]
    duration, rng, runs = time.perf_counter() - begin, random.Random(1), []
    while sum(len(run["killed"]) for run in runs) < kills:
        runs.append(write_and_kill(bucket, str(len(runs)), rng, duration))
    return {"code": code, "runs": runs}


if __name__ == "__main__":
    dask.config.set(num_workers=2)
    sys.stdout.write(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
