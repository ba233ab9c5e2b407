"""What a map costs: the whole way from store to store beside the members' own forward pass.

    python benchmarks/inference.py [--quick]

A cube of 100 m pixels with NDVI of 231 m and weather of 0.1 degree is written, mapped and written
again, all on one thread; the same pixels go through the same networks one after the other, as a
script would have it. Both ways take turns, and the medians count. CPU seconds, so that other work
on the machine matters less; only the scaling over two processes is wall time. The last line is one
JSON object.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import torch
import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

from smgrid import load_ensemble, open_cube, open_map, predict, save_ensemble, write_cube
from smgrid.features.assemble import Block, BlockFeatures, SeriesBlock, block_features
from smgrid.features.inputs import model_inputs
from smgrid.features.layout import get_layout
from smgrid.grid import coarsen_grid
from smgrid.inference.engine import Engine, compile_ensemble
from smgrid.models.densesm import DenseSM
from smgrid.models.ensemble import Ensemble, predict_samples
from smgrid.schema import describe, load_variables
from smgrid.windows import Period, composite_calendar

MODIS_PIXEL = 231.656
# Two passes of one day, as where orbits cross, and two that stand alone.
TIMES = ("2021-03-02T05:30", "2021-03-02T17:20", "2021-03-14T05:30", "2021-03-19T17:20")
PERIOD = Period.parse(("2020-01-01", "2021-03-20"))
RANGES = {
    "vv": (-20, -6),
    "vh": (-27, -12),
    "angle": (30, 45),
    "sand": (100, 800),
    "clay": (50, 500),
    "bdod": (110, 170),
    "elevation": (0, 900),
    "slope": (0, 20),
    "aspect_sin": (-0.7, 0.7),
    "aspect_cos": (-0.7, 0.7),
    "ndvi": (0.1, 0.9),
    "t2m": (265, 303),
    "tp": (0, 0.02),
}


def make_ensemble() -> Ensemble:
    """25 networks of the published sizes with random weights: speed does not depend on them."""
    torch.manual_seed(0)
    members = [(f"m_{d}_{w}", DenseSM(d, w)) for d in range(1, 6) for w in (8, 16, 32, 64, 128)]
    return Ensemble(members=tuple(members), layout=get_layout("released-9km"))


def make_cube(size: int, times: tuple[str, ...]) -> xr.DataTree:
    """Random inputs on a square of 100 m pixels; neighbours share MODIS pixels as they do."""
    rng = np.random.default_rng(0)
    box = (500_000, 5_600_000, 500_000 + 100 * size, 5_600_000 + 100 * size)
    grid = GeoBox.from_bbox(box, "EPSG:32631", resolution=100)
    half, coarse = coarsen_grid(grid, 2), coarsen_grid(grid, 90)

    def field(name: str, gbox: GeoBox, dim: str = "", steps: int = 0) -> xr.DataArray:
        low, high = RANGES[name]
        shape, dims = (gbox.shape, ("y", "x"))
        if dim:
            shape, dims = ((steps, *gbox.shape), (dim, "y", "x"))
        values = rng.uniform(low, high, shape).astype(np.float32)
        if name == "ndvi":
            ratio = 200 / MODIS_PIXEL
            rows, columns = ((np.arange(n) * ratio).astype(int) for n in gbox.shape)
            values = values[:, rows[:, None], columns[None, :]]
        return describe(xr.DataArray(values, dims=dims, name=name), name)

    scenes = [n for n in RANGES if load_variables()[n].kind == "scene"]
    static = [n for n in RANGES if load_variables()[n].kind == "static"]
    base = xr.Dataset(
        {n: field(n, grid, "time", len(times)) for n in scenes}
        | {n: field(n, grid) for n in static},
        coords={**xr_coords(grid), "time": pd.DatetimeIndex(times)},
    )
    for name in ("vv", "vh"):
        base[name].attrs |= {"convention": "sigma0", "averaging": "db"}
    composites, days = composite_calendar(PERIOD), PERIOD.days
    ndvi = field("ndvi", half, "date", len(composites)).assign_attrs(composite_days=16)
    weather = {n: field(n, coarse, "date", len(days)) for n in ("t2m", "tp")}
    return xr.DataTree.from_dict(
        {
            "/base": base,
            "/x2": xr.Dataset({"ndvi": ndvi}, coords={**xr_coords(half), "date": composites}),
            "/x90": xr.Dataset(weather, coords={**xr_coords(coarse), "date": days}),
        }
    )


def cpu_seconds(function: Callable[[], object]) -> float:
    """Time one call in CPU seconds of this process."""
    start = time.process_time()
    function()
    return time.process_time() - start


def first_acquisition(store: Path, ensemble: Ensemble) -> BlockFeatures:
    """Return what the networks are given for the first acquisition."""
    inputs = model_inputs(open_cube(store), ensemble.layout)
    whole = [slice(0, n) for n in inputs.grid.shape]
    values = {
        name: (array[0] if "time" in array.dims else array).values
        for name, array in inputs.pixels.items()
    }
    series = {}
    for name, array in inputs.series.items():
        cells = inputs.cells(name, *whole)
        window = array[inputs.dates(name, 0), cells.y, cells.x].values
        series[name] = SeriesBlock(window, cells.row, cells.column)
    block = Block(time=inputs.times[0], grid=inputs.grid, values=values, series=series)
    return block_features(block, ensemble.layout)


def end_to_end(store: Path, out: Path, ensemble: Ensemble) -> None:
    """Map a store into another one on one thread."""
    with dask.config.set(scheduler="synchronous"):
        write_cube(predict(open_cube(store), ensemble), out)


def measure_speed(folder: Path, size: int, repeats: int, plain_rows: int) -> dict[str, float]:
    """Map a store and run the plain networks on its pixels, in turns."""
    ensemble, engine = make_ensemble(), compile_ensemble(make_ensemble())
    store = folder / f"cube-{size}.zarr"
    write_cube(make_cube(size, TIMES), store)
    features = first_acquisition(store, ensemble)
    snapshot, series, index = features.snapshot, features.series, features.series_index
    some = slice(0, plain_rows)
    rows = features.rows()[some]
    figures: dict[str, list[float]] = {"way": [], "plain": [], "chunked": [], "engine": []}
    end_to_end(store, folder / "first.zarr", ensemble)
    pixels = int(open_map(folder / "first.zarr").soil_moisture.notnull().sum())
    for repeat in range(repeats):
        out = folder / f"map-{repeat}.zarr"
        figures["way"].append(cpu_seconds(lambda: end_to_end(store, out, ensemble)) / pixels)  # noqa: B023
        whole = cpu_seconds(lambda: predict_samples(ensemble, rows, batch=len(rows)))
        figures["plain"].append(whole / len(rows))
        chunks = cpu_seconds(lambda: predict_samples(ensemble, rows, batch=1024))
        figures["chunked"].append(chunks / len(rows))
        alone = cpu_seconds(lambda: engine.predict(snapshot, series, index))
        figures["engine"].append(alone / len(snapshot))
    way, plain, chunked, alone = (statistics.median(v) for v in figures.values())
    found = engine.predict(snapshot, series, index)[:, some]
    members = predict_samples(ensemble, rows)
    return {
        "speedup_end_to_end": plain / way,
        "speedup_end_to_end_over_chunks_of_1024": chunked / way,
        "speedup_engine": plain / alone,
        "end_to_end_px_date_per_cpu_second": 1 / way,
        "engine_px_date_per_cpu_second": 1 / alone,
        "plain_px_date_per_cpu_second": 1 / plain,
        "plain_in_chunks_of_1024_px_date_per_cpu_second": 1 / chunked,
        "pixels_per_distinct_series": len(snapshot) / engine.read_series(series).sums.shape[-1],
        "largest_difference": float(np.abs(found - members).max()),
        "io_share": measure_io(store, folder, way * pixels),
        **measure_parts(engine, snapshot, series, index),
    }


def measure_io(store: Path, folder: Path, whole: float) -> float:
    """Share of reading all inputs and of writing all results."""

    def read() -> None:
        for node in open_cube(store).children.values():
            node.to_dataset().compute(scheduler="synchronous")

    result = predict(open_cube(store), make_ensemble()).compute(scheduler="synchronous")
    with dask.config.set(scheduler="synchronous"):
        written = cpu_seconds(lambda: write_cube(result, folder / "io.zarr"))
    return (cpu_seconds(read) + written) / whole


def measure_parts(
    engine: Engine, snapshot: np.ndarray, series: np.ndarray, index: np.ndarray
) -> dict[str, float]:
    """Arithmetic of both parts beside that of a large matrix product."""
    square = torch.rand(1024, 1024)
    read = engine.read_series(series)
    # Two operations per weight and pixel; the branches as 84 480 multiply-adds each.
    dense = sum(
        2 * (sum(layer.weight.numel() for layer in m.dense) + m.hidden.weight.numel() + 32)
        for m in engine.members
    )
    branches = 2 * 84_480 * len(engine.members) * read.sums.shape[-1]
    rates: dict[str, list[float]] = {"sgemm": [], "dense": [], "branches": []}
    for _ in range(5):
        rates["sgemm"].append(2 * 1024**3 / cpu_seconds(lambda: square @ square))
        rows = cpu_seconds(lambda: engine.predict_rows(snapshot, read, index))
        rates["dense"].append(dense * len(snapshot) / rows)
        rates["branches"].append(branches / cpu_seconds(lambda: engine.read_series(series)))
    sgemm, rows_rate, branch_rate = (statistics.median(v) for v in rates.values())
    return {
        "sgemm_gflop_per_second": sgemm / 1e9,
        "dense_flop_per_px_date": dense,
        "dense_fraction_of_sgemm": rows_rate / sgemm,
        "branch_fraction_of_sgemm": branch_rate / sgemm,
    }


def measure_memory(folder: Path, quick: bool) -> dict[str, float]:
    """Peak memory of mapping in tiles of two sizes, more dates and a larger area, by processes."""
    days = pd.date_range("2021-01-05", periods=3, freq="6D")
    more = tuple(f"{day:%Y-%m-%d}T05:30" for day in days)
    tile, one = (256 if quick else 512), TIMES[:1]
    cases = {
        f"{tile // 2}": (tile // 2, one),
        f"{tile}": (tile, one),
        f"{tile}_three_dates": (tile, more),
        f"{tile}_four_tiles": (2 * tile, one),
    }
    save_ensemble(make_ensemble(), folder / "ensemble")
    peaks = []
    for name, (size, times) in cases.items():
        store = folder / f"memory-{name}.zarr"
        write_cube(make_cube(size, times), store, shard=tile)
        peaks.append(_peak("map", store, folder / f"memory-{name}-out.zarr", folder / "ensemble"))
    return {
        "bytes_per_pixel": 1e6 * (peaks[1] - peaks[0]) / (tile**2 * 3 / 4),
        **{f"peak_megabytes_{name}": peak for name, peak in zip(cases, peaks, strict=True)},
    }


def _peak(*arguments: object) -> float:
    done = _in_a_process(*arguments)
    return float(done["peak_megabytes"])


def _in_a_process(*arguments: object) -> dict[str, float]:
    command = [sys.executable, __file__, "--task", *map(str, arguments)]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, **threads}
    )
    return json.loads(done.stdout)


def task(kind: str, store: str, out: str, ensemble: str) -> dict[str, float]:
    """Do in a process of its own: nothing but the imports, a first call, or a map."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    if kind == "first":
        engine = compile_ensemble(load_ensemble(ensemble))
        engine.predict(np.zeros((9, 15), "f4"), np.zeros((1, 3, 46), "f4"), np.zeros(9, int))
    elif kind == "map":
        end_to_end(Path(store), Path(out), load_ensemble(ensemble))
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def measure_processes(folder: Path, size: int, repeats: int) -> dict[str, float]:
    """Wall time of the same maps by one worker process and by two, each of one thread."""
    from distributed import Client, LocalCluster

    store = folder / "scaling.zarr"
    days = pd.date_range("2021-01-05", periods=8, freq="6D")
    write_cube(make_cube(size, tuple(f"{day:%Y-%m-%d}T05:30" for day in days)), store)
    ensemble = load_ensemble(folder / "ensemble")
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for repeat in range(repeats):
        for workers in (1, 2):
            with (
                LocalCluster(
                    n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0"
                ) as c,
                Client(c),
            ):
                warm = folder / f"warm-{workers}-{repeat}.zarr"
                write_cube(predict(open_cube(store), ensemble).isel(time=slice(4)), warm)
                out = folder / f"scaling-{workers}-{repeat}.zarr"
                start = time.perf_counter()
                write_cube(predict(open_cube(store), ensemble), out)
                seconds[workers].append(time.perf_counter() - start)
    return {"two_process_scaling": min(seconds[1]) / min(seconds[2])}


def main() -> None:
    """Print a table for people, then the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer pixels, within two minutes")
    parser.add_argument("--task", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print(json.dumps(task(*options.task)))
        return
    torch.set_num_threads(1)
    quick = options.quick
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = measure_memory(folder, quick)
        _in_a_process("first", "", "", folder / "ensemble")
        figures["first_call_seconds"] = _in_a_process("first", "", "", folder / "ensemble")[
            "seconds"
        ]
        figures |= measure_processes(folder, 160 if quick else 256, 1 if quick else 3)
        size, repeats, rows = (160, 3, 8192) if quick else (256, 5, 8192)
        figures |= measure_speed(folder, size, repeats, rows)
    for key, value in figures.items():
        print(f"{key:48s} {value:12.4g}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
