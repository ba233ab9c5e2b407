"""What building a cube costs: beside the reads and writes it cannot avoid, and beside other ways.

    python benchmarks/build_cube.py [--quick]

Every way reads the same cloud-optimised GeoTIFFs at full resolution (20 m), averages decibels over
blocks of 5 x 5 pixels onto the same 100 m grid and writes the same Zarr shards, one after the other
on one thread, interleaved; the median of the repeats counts, in CPU seconds. Memory is the largest
resident size of a process of its own that builds a cube with two threads. The last line is one JSON
object; ``overhead_ratio`` and ``memory_growth`` are better when small, ``vs_*`` when large.
"""

import argparse
import json
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import numpy as np
import numpy.typing as npt
import pystac
import rasterio
import rioxarray
import xarray as xr
import zarr
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.windows import Window
from scenes import FACTOR, START, grid_of, write_world

import smgrid
from smgrid.cube.encoding import encode
from smgrid.cube.store import write_cube
from smgrid.cube.template import make_template
from smgrid.cube.tiling import unit_sets
from smgrid.cube.writing import build_flags
from smgrid.grid import grid_coords
from smgrid.resample import _average_blocks

CHUNK = 512


def main() -> None:
    """Print a table for people, then the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller scenes, within a minute")
    parser.add_argument("--build", nargs=3, metavar=("WORLD", "CELLS", "DATES"), help="one build")
    arguments = parser.parse_args()
    if arguments.build:
        world, cells, dates = arguments.build
        print(peak_megabytes_of_build(Path(world), int(cells), int(dates)))
        return
    quick = arguments.quick
    with tempfile.TemporaryDirectory(prefix="smgrid-benchmark-") as folder:
        world = write_world(Path(folder, "speed"), cells=512 if quick else 1024, files=2)
        figures = measure_speed(world, Path(folder), repeats=3 if quick else 5)
        world = write_world(Path(folder, "memory"), cells=1024, files=1)
        figures |= measure_memory(world, quick=quick)
    figures |= measure_graph()
    for name, value in figures.items():
        print(f"{name:32s} {value:12.4g}")
    print(json.dumps(figures))


def measure_speed(world: Path, folder: Path, *, repeats: int) -> dict[str, float]:
    """Build one cube in every way, interleaved, and compare the results."""
    items = read_items(world)
    reference = folder / "reference.zarr"
    cells = int(np.sqrt(grid_of(world).shape.y * grid_of(world).shape.x))
    build_with_smgrid(world, reference, cells, len(items))
    ways: dict[str, Callable[[Path], None]] = {
        "smgrid": lambda out: build_with_smgrid(world, out, cells, len(items)),
        "unavoidable": lambda out: build_by_hand(items, reference, out),
        "stackstac": lambda out: build_with_stackstac(items, reference, out),
        "rioxarray": lambda out: build_with_rioxarray(items, reference, out),
        "rioxarray_coarsen": lambda out: build_with_coarsen(items, reference, out),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats):
        for name, build in ways.items():
            out = folder / f"{name}.zarr"
            shutil.rmtree(out, ignore_errors=True)
            with dask.config.set(scheduler="synchronous"):
                start = time.process_time()
                build(out)
                seconds[name].append(time.process_time() - start)
            if repeat == 0:
                check_equal(out, reference, name)
    cost = {name: statistics.median(values) for name, values in seconds.items()}
    exact = error_against_numpy(items, reference)
    return {
        "overhead_ratio": cost["smgrid"] / cost["unavoidable"],
        "vs_stackstac": cost["stackstac"] / cost["smgrid"],
        "vs_rioxarray": cost["rioxarray"] / cost["smgrid"],
        "vs_rioxarray_coarsen": cost["rioxarray_coarsen"] / cost["smgrid"],
        "largest_error_db": exact,
        "cpu_seconds_smgrid": cost["smgrid"],
    }


def read_items(world: Path) -> list[pystac.Item]:
    """Return the items of the world in order of time, with absolute hrefs."""
    catalog = pystac.Catalog.from_file(str(world / "catalog.json"))
    items = sorted(catalog.get_items(recursive=True), key=lambda item: item.id)
    for item in items:
        item.make_asset_hrefs_absolute()
    return items


def build_with_smgrid(world: Path, out: Path, cells: int, dates: int) -> None:
    """Build the cube as a user does."""
    grid = grid_of(world, cells)
    last = START + np.timedelta64(dates - 1, "D")
    cube = smgrid.load_cube(grid, (START, last), catalog=world / "catalog.yml", chunks=CHUNK)
    write_cube(cube, out, shard=CHUNK)


def build_by_hand(items: list[pystac.Item], reference: Path, out: Path) -> None:
    """Read, average and write with nothing in between; the cost that no way avoids."""
    arrays, encoded = empty_copy(reference, out)
    for time_step, item in enumerate(items):
        for name, array in arrays.items():
            with rasterio.open(item.assets[name].href) as source:
                for rows, columns in tiles(array.shape):
                    power = source.read(1, window=window_of(rows, columns))
                    _average_blocks(to_db(power), (FACTOR, FACTOR), 0.5)
                    where = (time_step, rows, columns)
                    array[where] = encoded[name][where]


def build_with_stackstac(items: list[pystac.Item], reference: Path, out: Path) -> None:
    """Stack at full resolution and coarsen."""
    import stackstac  # of the extra `benchmark`

    arrays, _ = empty_copy(reference, out)
    grid = xr.open_datatree(reference, engine="zarr", decode_coords="all")["base"].ds.odc.geobox
    stack = stackstac.stack(
        items,
        assets=list(arrays),
        epsg=grid.crs.epsg,
        resolution=grid.resolution.x / FACTOR,
        bounds=tuple(grid.boundingbox.bbox),
        snap_bounds=False,
        dtype="float32",
        fill_value=np.float32(np.nan),
        rescale=False,
        chunksize=CHUNK * FACTOR,
        xy_coords=False,
        properties=False,
        band_coords=False,
    )
    for name in arrays:
        db = xr.apply_ufunc(to_db, stack.sel(band=name), dask="allowed")
        mean = db.coarsen(y=FACTOR, x=FACTOR).mean()
        store_rounded(mean.data, arrays[name])


def build_with_rioxarray(items: list[pystac.Item], reference: Path, out: Path) -> None:
    """Reproject every file with GDAL's average, the usual way."""
    arrays, _ = empty_copy(reference, out)
    grid = xr.open_datatree(reference, engine="zarr", decode_coords="all")["base"].ds.odc.geobox
    for time_step, item in enumerate(items):
        for name, array in arrays.items():
            power = rioxarray.open_rasterio(item.assets[name].href, masked=True).isel(band=0)
            db = xr.apply_ufunc(to_db, power, keep_attrs=True).rio.write_nodata(np.nan)
            mean = db.rio.reproject(
                grid.crs.to_wkt(),
                shape=grid.shape.yx,
                transform=grid.affine,
                resampling=Resampling.average,
            )
            array[time_step] = rounded(mean.values)


def build_with_coarsen(items: list[pystac.Item], reference: Path, out: Path) -> None:
    """Open with rioxarray in chunks and coarsen, which only works where the grids nest."""
    arrays, _ = empty_copy(reference, out)
    for time_step, item in enumerate(items):
        for name, array in arrays.items():
            power = rioxarray.open_rasterio(
                item.assets[name].href,
                masked=True,
                chunks={"y": CHUNK * FACTOR, "x": CHUNK * FACTOR},
            ).isel(band=0)
            db = xr.apply_ufunc(to_db, power, dask="allowed")
            array[time_step] = rounded(db.coarsen(y=FACTOR, x=FACTOR).mean().values)


def store_rounded(data: Any, array: zarr.Array[Any]) -> None:
    """Write a lazy array (time, y, x) shard by shard."""
    shards = data.rechunk((1, CHUNK, CHUNK)).map_blocks(rounded, dtype=np.float32)
    dask.array.store(shards, array, lock=False)


def to_db(power: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return decibels, NaN where there is no power."""
    decibels = np.where(power > 0, power, np.float32(np.nan))
    np.log10(decibels, out=decibels)
    return np.multiply(decibels, np.float32(10), out=decibels)


def mean_of_blocks(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the mean of the valid pixels of every block."""
    rows, columns = (size // FACTOR for size in values.shape)
    blocks = values.reshape(rows, FACTOR, columns, FACTOR)
    valid = ~np.isnan(blocks)
    total = np.where(valid, blocks, 0).sum((1, 3), dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / valid.sum((1, 3))


def rounded(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Round as smgrid does on disk, so that all ways compress the same bytes."""
    return encode(np.asarray(values, np.float32), "vv", np.dtype("float32"))


def empty_copy(
    reference: Path, out: Path
) -> tuple[dict[str, zarr.Array[Any]], dict[str, npt.NDArray[Any]]]:
    """Return empty arrays like those of a store, and what the store holds."""
    old, new = zarr.open_group(reference, mode="r"), zarr.open_group(out, mode="w")
    arrays, content = {}, {}
    for name in ("vv", "vh"):
        array = old[f"base/{name}"]
        content[name] = CONTENT.setdefault((str(reference), name), array[:])
        arrays[name] = new.create_array(
            f"base/{name}",
            shape=array.shape,
            chunks=array.chunks,
            shards=array.shards,
            dtype=array.dtype,
            compressors=array.compressors,
            fill_value=array.fill_value,
            config={"write_empty_chunks": True},
        )
    return arrays, content


CONTENT: dict[tuple[str, str], npt.NDArray[Any]] = {}


def tiles(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Yield the rows and columns of every shard."""
    for top in range(0, shape[-2], CHUNK):
        for left in range(0, shape[-1], CHUNK):
            yield (
                slice(top, min(top + CHUNK, shape[-2])),
                slice(left, min(left + CHUNK, shape[-1])),
            )


def window_of(rows: slice, columns: slice) -> Window:
    """Return the pixels of a tile."""
    return Window.from_slices(
        (rows.start * FACTOR, rows.stop * FACTOR), (columns.start * FACTOR, columns.stop * FACTOR)
    )


def check_equal(out: Path, reference: Path, name: str) -> None:
    """Refuse to compare ways that do not give the same cube."""
    for band in ("vv", "vh"):
        one = zarr.open_group(out, mode="r")[f"base/{band}"][:]
        other = zarr.open_group(reference, mode="r")[f"base/{band}"][:]
        # Two neighbours of the rounded values: 10 mantissa bits of -20 dB are 0.016 dB.
        np.testing.assert_allclose(one, other, rtol=0, atol=0.04, err_msg=f"{name}, {band}")


def error_against_numpy(items: list[pystac.Item], reference: Path) -> float:
    """Return the largest difference between cube values before rounding and NumPy's [dB]."""
    world = Path(items[0].get_root().get_self_href()).parent
    grid = grid_of(world)
    last = START + np.timedelta64(len(items) - 1, "D")
    cube = smgrid.load_cube(grid, (START, last), catalog=world / "catalog.yml", chunks=CHUNK)
    worst = 0.0
    for time_step, item in enumerate(items):
        for name in ("vv", "vh"):
            with rasterio.open(item.assets[name].href) as source:
                power = source.read(1).astype(np.float64)
            with np.errstate(divide="ignore", invalid="ignore"):
                exact = mean_of_blocks(np.where(power > 0, 10 * np.log10(power), np.nan))
            found = cube["base"][name][time_step].values
            worst = max(worst, float(np.nanmax(np.abs(found - exact))))
    return worst


def measure_memory(world: Path, *, quick: bool) -> dict[str, float]:
    """Build three sizes in processes of their own: more area, then more dates."""
    # The smallest has units enough for the allocator to settle.
    dates = (8, 24) if quick else (24, 96)
    sizes = [(512, dates[0]), (1024, dates[0]), (512 if quick else 1024, dates[1])]
    peaks = []
    for cells, dates in sizes:
        command = [sys.executable, __file__, "--build", str(world), str(cells), str(dates)]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks.append(float(found.split()[-1]))
    return {
        "memory_growth": max(peaks) / min(peaks) - 1,
        **{f"megabytes_{c}px_{d}dates": peak for (c, d), peak in zip(sizes, peaks, strict=True)},
    }


def peak_megabytes_of_build(world: Path, cells: int, dates: int) -> float:
    """Build one cube with two threads and return the largest resident size of the process."""
    with tempfile.TemporaryDirectory(prefix="smgrid-benchmark-") as folder, dask_threads(2):
        build_with_smgrid(world, Path(folder, "cube.zarr"), cells, dates)
    # Not getrusage: that begins with the size of the process that started this one.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1e3


@contextmanager
def dask_threads(workers: int) -> Iterator[None]:
    """Run Dask on threads of this process."""
    with dask.config.set(scheduler="threads", num_workers=workers):
        yield


def measure_graph() -> dict[str, float]:
    """Build, but do not run, the graph that writes 10 000 units."""
    shape = (100, 10 * 64, 10 * 64)
    grid = GeoBox.from_bbox((0, 0, 64_000, 64_000), "EPSG:32631", shape=shape[1:])
    times = np.datetime64("2024-01-01", "ns") + np.arange(shape[0]) * np.timedelta64(1, "D")
    values = dask.array.zeros(shape, chunks=(1, 64, 64), dtype="float32")
    ds = xr.Dataset(
        {"vv": (("time", "y", "x"), values, {"units": "dB"})},
        coords={"time": times, **grid_coords(grid)},
    )
    start = time.process_time()
    template = make_template({"base": ds}, shard=64)
    sets = unit_sets(template.record()["groups"])
    pending = [(units, index) for units in sets for index in units.indices()]
    flags = build_flags({"base": ds}, pending, path="unused", digest="unused")
    graph = dict(flags.__dask_graph__())
    seconds = time.process_time() - start
    return {
        "graph_units": float(len(pending)),
        "graph_seconds": seconds,
        "graph_megabytes": len(pickle.dumps(graph)) / 1e6,
    }


if __name__ == "__main__":
    main()
