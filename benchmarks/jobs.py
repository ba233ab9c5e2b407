"""What a cluster costs: the driver per unit, and how two workers do beside one.

    python benchmarks/jobs.py [--quick]

The driver is the process that cuts the graph, sends units and takes their results. Its units do
nothing, on two workers and a scheduler in processes of their own; there are 100 000 of them, and
the first 5 000 (``--quick``: 2 000) are run: ``driver_ms_per_unit`` is CPU time of the driver, with
the making of the whole graph. ``wall_ms_per_unit`` is what a unit takes from end to end, which is
bound by Dask's scheduler and workers. Weak scaling is the time of one worker with its share of
units over that of two with a share each: computed, encoded and written to disk, medians of
interleaved repeats; it needs two idle cores. ``weak_scaling_busy`` compares the shares of time that
the workers compute instead of waiting for units, which other work on the machine moves less. The
last line is one JSON object.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

# This script is called like a package that it needs, and its folder is the first to be searched.
sys.path.sort(key=lambda path: Path(path).resolve() == Path(__file__).resolve().parent)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dask.array as da
import numpy as np
import numpy.typing as npt
import psutil
import xarray as xr
from distributed import get_task_stream
from odc.geo.geobox import GeoBox

from smgrid.cluster import open_scheduler
from smgrid.cube import writing
from smgrid.cube.store import write_cube
from smgrid.cube.tiling import UnitSet
from smgrid.cube.writing import Written, build_flags, compute_flags
from smgrid.grid import grid_coords

ROOT = Path(__file__).resolve().parents[1]
UNITS = 100_000
EDGE = 512


class EnoughError(Exception):
    """So many units are a measurement."""


def main() -> None:
    """Print a table for people, then the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer units, within a minute")
    quick = parser.parse_args().quick
    figures = measure_driver(2_000 if quick else 5_000)
    figures |= measure_weak_scaling(share=3 if quick else 8, repeats=3 if quick else 5)
    figures["load_average"] = psutil.getloadavg()[0]
    for name, value in figures.items():
        print(f"{name:24s} {value:12.4g}")
    print(json.dumps(figures))


def no_work(target: Any, index: Any, *blocks: Any) -> Written:
    """Stand in for the writing of a unit."""
    return Written(("",))


def measure_driver(number: int) -> dict[str, float]:
    """Run the first units of many that do nothing."""
    shape = (UNITS // 100, 1000, 1000)
    zeros = da.zeros(shape, chunks=(1, 100, 100), dtype="u1")
    units = UnitSet("", ("a", "b"), ("time", "y", "x"), shape, (1, 100, 100))
    ds = xr.Dataset(dict.fromkeys(units.names, (units.dims, zeros)))
    pending = [(units, index) for index in units.indices()]
    done: list[int] = []

    def on_done(place: int, outcome: Any) -> None:
        if not isinstance(outcome, Written):
            raise TypeError(outcome)
        done.append(place)
        if len(done) == number:
            raise EnoughError

    original, writing.write_unit = writing.write_unit, no_work  # type: ignore[assignment]
    try:
        start = time.process_time()
        flags = build_flags({"": ds}, pending, path="/nowhere", digest="")
        building = time.process_time() - start
        with cluster(workers=2) as address, open_scheduler(address) as client:
            client.wait_for_workers(2)
            client.run(no_work, None, None)  # imports
            start, clock = time.process_time(), time.perf_counter()
            try:
                compute_flags(flags, on_done)
            except EnoughError:
                sending, wall = time.process_time() - start, time.perf_counter() - clock
    finally:
        writing.write_unit = original
    return {
        "driver_ms_per_unit": 1e3 * (building / UNITS + sending / number),
        "wall_ms_per_unit": 1e3 * wall / number,
        "driver_megabytes": psutil.Process().memory_info().rss / 1e6,
    }


@contextmanager
def cluster(*, workers: int) -> Iterator[str]:
    """Start a scheduler and workers, each a process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    common = ("--host", "127.0.0.1", "--no-dashboard")
    commands = [["scheduler", "--port", str(port), *common]]
    commands += [["worker", address, "--nthreads", "1", "--no-nanny", *common]] * workers
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "dask", *command],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.DEVNULL,
        )
        for command in commands
    ]
    try:
        yield address
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure_weak_scaling(*, share: int, repeats: int) -> dict[str, float]:
    """Write a share of units with one worker, and two shares with two."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    busy: dict[int, list[float]] = {1: [], 2: []}
    with (
        tempfile.TemporaryDirectory(prefix="smgrid-benchmark-") as folder,
        cluster(workers=1) as single,
        cluster(workers=2) as double,
    ):
        for repeat in range(repeats + 1):
            for workers, address in ((1, single), (2, double)):
                out = Path(folder, f"{repeat}-{workers}.zarr")
                with open_scheduler(address) as client, get_task_stream(client) as tasks:
                    client.wait_for_workers(workers)
                    start = time.perf_counter()
                    write_cube(cube_of(share * workers), out)
                    took = time.perf_counter() - start
                if repeat:  # the first one imports
                    seconds[workers].append(took)
                    busy[workers].append(_busy_seconds(tasks.data) / workers / took)
    one, two = (statistics.median(seconds[workers]) for workers in (1, 2))
    return {
        "weak_scaling": one / two,
        "weak_scaling_busy": statistics.median(busy[2]) / statistics.median(busy[1]),
        "busy_share": statistics.median(busy[2]),
        "seconds_per_unit": one / share,
    }


def _busy_seconds(tasks: Iterable[Any]) -> float:
    spans = [span for task in tasks for span in task["startstops"] if span["action"] == "compute"]
    return float(sum(span["stop"] - span["start"] for span in spans))


def cube_of(units: int) -> xr.Dataset:
    """Describe a cube of so many units, each of about a second of work."""
    grid = GeoBox.from_bbox((0, 0, 100 * EDGE, 100 * EDGE), "EPSG:32631", resolution=100)
    times = np.datetime64("2024-01-01", "ns") + np.arange(units) * np.timedelta64(1, "D")
    values = da.map_blocks(
        work, chunks=((1,) * units, EDGE, EDGE), dtype="f4", meta=np.zeros((0, 0, 0), "f4")
    )
    return xr.Dataset(
        {"a": (("time", "y", "x"), values)}, coords={"time": times, **grid_coords(grid)}
    )


def work(block_info: Any = None) -> npt.NDArray[np.float32]:
    """Average decibels of fine pixels, as reading scenes does."""
    rng = np.random.default_rng(block_info[None]["chunk-location"][0])
    total = np.zeros((1, EDGE, EDGE))
    for _ in range(400):
        total += 10 * np.log10(rng.random((1, EDGE, EDGE)) + 0.01)
    return (total / 400).astype(np.float32)


if __name__ == "__main__":
    # Under a name that workers can import its functions by.
    import_module("benchmarks.jobs").main()
