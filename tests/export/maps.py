"""A small map in memory, and the integers that its store and every export of it must hold."""

import numpy as np
import pandas as pd
import xarray as xr
from odc.geo.xr import xr_coords

from smgrid.cube.store import write_cube
from smgrid.schema import describe
from tests.builders import utm_grid

TIMES = ("2024-01-05T17:23:12", "2024-01-17T05:41:07", "2024-02-10T17:23:13")
MEANINGS = ("input_missing", "feature_clipped", "assumed_input", "outside_valid_range")
DIGEST = "5e" * 32


def make_map(shape=(530, 710), times=TIMES, seed=0):
    """Random soil moisture with gaps, its spread, and flags that use the highest bits."""
    rng = np.random.default_rng(seed)
    grid = utm_grid(shape, left=500_300, top=5_629_100)
    size = (len(times), *shape)
    values = rng.integers(-300, 6500, size)
    sm = np.where(rng.random(size) < 0.1, np.nan, values * 1e-4).astype(np.float32)
    flags = np.where(np.isnan(sm), 1, rng.choice([0, 2, 8, 2**15, 65534], size)).astype(np.uint16)
    data = {"soil_moisture": sm, "soil_moisture_std": np.abs(sm) / 7, "flags": flags}
    ds = xr.Dataset(
        {n: describe(xr.DataArray(v, dims=("time", "y", "x")), n) for n, v in data.items()},
        coords={**xr_coords(grid), "time": pd.DatetimeIndex(times)},
    )
    ds = ds.assign_coords(
        platform=("time", ["sentinel-1a", "sentinel-1b", "sentinel-1a"][: len(times)]),
        orbit_state=("time", ["ascending", "descending", "ascending"][: len(times)]),
        relative_orbit=("time", np.array([161, 37, 161], np.int16)[: len(times)]),
    )
    ds["flags"].attrs |= {
        "flag_masks": np.array([1, 2, 4, 8], np.uint16),
        "flag_meanings": " ".join(MEANINGS),
    }
    ds.attrs = {
        "title": "Surface soil moisture",
        "smgrid_layout": "smgrid-1",
        "smgrid_ensemble": DIGEST,
        "smgrid_assumed": "",
        "smgrid_members": 3,
    }
    return ds


def write_map(ds, path):
    """Write it in shards that are smaller than the map, so that exports read several."""
    write_cube(ds, path, shard=256)
    return path


def counts(ds, name):
    """The integers on disk, from what CF says of packing and from nothing in smgrid."""
    values = ds[name].values.astype(np.float64)
    if name == "flags":
        return ds[name].values
    dtype, fill = {
        "soil_moisture": (np.int16, -32768),
        "soil_moisture_std": (np.uint16, 65535),
    }[name]
    return np.where(np.isnan(values), fill, np.rint(values / 1e-4)).astype(dtype)
