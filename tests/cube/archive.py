"""Sources whose archive grows: what they offer stands in a JSON file that a test writes.

``scenes``: acquisition times. ``provisional``: first day whose weather is still preliminary.
``reprocessed``: whether scenes are those of another processor, under another platform's name.
Every block that is computed leaves a line in ``reads.txt`` beside the JSON file.
"""

import hashlib
import json
from pathlib import Path

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.cube.build import load_cube
from smgrid.cube.store import write_cube
from smgrid.cube.update import update_cube
from smgrid.grid import grid_coords
from smgrid.schema import describe
from smgrid.windows import composite_calendar

GRID = GeoBox.from_bbox((500_000, 2_200_000, 504_000, 2_203_200), crs="EPSG:32648", resolution=100)
START, END, LATER = "2022-01-01", "2023-06-30", "2024-02-10"
OLD = ["2023-05-02T22:45:11", "2023-05-14T22:45:12", "2023-06-20T11:02:05"]
NEW = ["2023-07-07T22:45:13", "2023-12-31T22:45:14", "2024-02-10T23:59:59"]

CATALOG = """\
smgrid_catalog: 1
name: growing
title: An archive that grows
sources:
  scenes:
    loader: tests.cube.archive:load_scenes
    provides: [vv, vh]
    units: {{vv: dB, vh: dB}}
    convention: sigma0
    native_resolution: 10
    options: {{archive: {archive}}}
  soil:
    loader: tests.cube.archive:load_soil
    provides: [sand]
    native_resolution: 250
    options: {{archive: {archive}}}
  ndvi:
    loader: tests.cube.archive:load_series
    provides: [ndvi]
    native_resolution: 200
    options: {{archive: {archive}}}
  weather:
    loader: tests.cube.archive:load_series
    provides: [t2m, tp]
    native_resolution: 1600
    options: {{archive: {archive}}}
"""


def write_archive(folder: Path, scenes, provisional="2100-01-01", reprocessed=False):
    """Write the archive and its catalog, and return the catalog's path."""
    state = {"scenes": list(scenes), "provisional": provisional, "reprocessed": reprocessed}
    (folder / "archive.json").write_text(json.dumps(state))
    catalog = folder / "catalog.yml"
    catalog.write_text(CATALOG.format(archive=folder / "archive.json"))
    return catalog


def reads_of(folder: Path):
    """Return what was computed since the last call: (variable, first date)."""
    path = folder / "reads.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [tuple(line.split()) for line in lines]


def build(folder, end, name="a.zarr"):
    cube = load_cube(GRID, (START, end), catalog=folder / "catalog.yml", chunks=16)
    write_cube(cube, folder / name, shard=16, manifest={"seed": 3})
    reads_of(folder)
    return folder / name


def update(folder, until=LATER, name="a.zarr", **kwargs):
    return update_cube(folder / name, until=until, catalog=folder / "catalog.yml", **kwargs)


def shards_of(store):
    """SHA-256 and time of change of every shard by its path."""
    return {
        path.relative_to(store).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in store.rglob("c/*")
        for path in ([path] if path.is_file() else path.rglob("*"))
        if path.is_file()
    }


def data_of(store, files_of):
    """Every file but those that tell of the history."""
    return {
        key: content
        for key, content in files_of(store).items()
        if not key.startswith("_smgrid/") and key != "zarr.json"
    }


def let_viirs_stand_in(archive, last_day):
    """Let NDVI come from another source after this day."""
    catalog = write_archive(archive, OLD + NEW)
    ndvi = "  ndvi:\n"
    viirs = (
        "  viirs:\n    loader: tests.cube.archive:load_replacement\n    provides: [ndvi]\n"
        f"    native_resolution: 200\n    options: {{archive: {archive / 'archive.json'}}}\n"
    )
    text = catalog.read_text()
    catalog.write_text(
        text.replace(ndvi, f"{viirs}{ndvi}    fallbacks: [viirs]\n    last_day: {last_day}\n")
    )


def _lazy(spec, name, steps, grid, chunk, low, high, provisional="2100-01-01"):
    """Noise that depends on the variable, the step and the place, and a step when provisional."""
    log = Path(spec.options["archive"]).with_name("reads.txt")

    def block(block_info=None):
        where = block_info[None]["array-location"]
        first = where[0][0]
        with log.open("a") as file:
            file.write(f"{name} {np.datetime_as_string(steps[first], 's')}\n")
        rows, columns = (np.arange(*ends) for ends in where[1:])
        values = []
        for step in steps[slice(*where[0])]:
            seconds = step.astype("datetime64[s]").astype(int)
            seed = (seconds // 3600 + 7 * rows[:, None] + 31 * columns + len(name)) % 97 / 97
            if step >= np.datetime64(provisional):
                seed = 1 - seed
            values.append(low + (high - low) * seed)
        return np.stack(values).astype("f4")

    # A function of its own for every array, because the archive changes between two of them.
    chunks = tuple(da.core.normalize_chunks(chunk, (len(steps), *grid.shape)))
    blocks = da.map_blocks(block, chunks=chunks, dtype="f4", meta=np.zeros((0, 0, 0), "f4"))
    dim = "date" if chunk[0] != 1 else "time"
    return describe(xr.DataArray(blocks, dims=(dim, "y", "x"), name=name), name)


def _archive(spec):
    return json.loads(Path(spec.options["archive"]).read_text())


def load_scenes(spec, grid, period, *, chunks=512):
    """Scenes of the period."""
    state = _archive(spec)
    times = pd.DatetimeIndex(sorted(state["scenes"])).as_unit("ns")
    times = times[(times >= period.start) & (times < period.end + pd.Timedelta("1D"))]
    chunk = (1, chunks, chunks)
    data = {
        "vv": _lazy(spec, "vv", times.values, grid, chunk, -20, -5) + 2 * state["reprocessed"],
        "vh": _lazy(spec, "vh", times.values, grid, chunk, -28, -12),
    }
    for variable in data.values():
        variable.attrs |= {"convention": "sigma0", "averaging": "db"}
    n = len(times)
    return xr.Dataset(data, {**grid_coords(grid), "time": times}).assign_coords(
        platform=(
            "time",
            ["other" if state["reprocessed"] else f"sentinel-1{'ac'[t.year % 2]}" for t in times],
        ),
        orbit_state=("time", ["descending"] * n),
        relative_orbit=("time", np.full(n, 37, "int16")),
    )


def load_soil(spec, grid, period, *, chunks=512):
    """A map of sand."""
    values = np.linspace(100, 600, grid.shape.x, dtype="f4") * np.ones(tuple(grid.shape), "f4")
    sand = xr.DataArray(da.from_array(values, chunks=chunks), dims=("y", "x"), name="sand")
    return xr.Dataset({"sand": describe(sand, "sand")}, grid_coords(grid))


def load_series(spec, grid, period, *, chunks=512):
    """Composites or days of the whole period; weather is preliminary at its end."""
    ndvi = "ndvi" in spec.provides
    dates = (composite_calendar(period) if ndvi else period.days).values
    ranges = {"ndvi": (0.1, 0.8), "t2m": (270, 300), "tp": (0, 0.02)}
    provisional = _archive(spec)["provisional"]
    # More than one step per chunk, so that the chunks of a shard are parts of it.
    chunk = (30, chunks, chunks)
    data = {
        name: _lazy(spec, name, dates, grid, chunk, *ranges[name], provisional)
        for name in spec.provides
    }
    ds = xr.Dataset(data, {**grid_coords(grid), "date": dates})
    if ndvi:
        ds["ndvi"].attrs["composite_days"] = 16
    return ds


def load_replacement(spec, grid, period, *, chunks=512):
    """Another sensor's composites, bridged to those of `load_series` but for a constant."""
    ds = load_series(spec, grid, period, chunks=chunks)
    ds["ndvi"] = describe(ds["ndvi"] + 0.1, "ndvi")
    ds["ndvi"].attrs |= {"composite_days": 8, "approximate": 1, "approximate_note": "bridged"}
    return ds
