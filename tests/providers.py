"""Made-up providers for tests of fallbacks: each has some dates or passes and gives one value."""

import os
from pathlib import Path

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr

from smgrid.errors import NoDataError, SourceError
from smgrid.grid import ease_grid, grid_coords
from smgrid.schema import describe
from smgrid.windows import composite_calendar


def _meet_fate(spec, period):
    """Do what the options ask for instead of loading; note that it was asked for data."""
    if "log" in spec.options:
        with Path(spec.options["log"]).open("a", encoding="utf-8") as file:
            file.write(f"{spec.name} {period}\n")
    fate = spec.options.get("fate")
    if fate == "no data":
        raise NoDataError(f"{spec.name} has nothing here")
    if fate == "unreadable":
        raise SourceError(f"{spec.name} cannot be read")


def _full(spec, shape, dims, name, chunks):
    value = spec.options.get("value", 0.0)
    return describe(
        xr.DataArray(da.full(shape, value, dtype="float32", chunks=chunks), dims=dims), name
    )


def load_series(spec, grid, period, *, chunks=512):
    """Composites or days; ``observed: [first, last]`` says which of them are there."""
    _meet_fate(spec, period)
    dates = composite_calendar(period) if "ndvi" in spec.provides else period.days
    dates = dates[int(spec.options.get("skip", 0)) :]
    shape = (len(dates), *grid.shape)
    ds = xr.Dataset(
        {
            name: _full(spec, shape, ("date", "y", "x"), name, (-1, chunks, chunks))
            for name in spec.provides
        },
        coords={**grid_coords(grid), "date": dates},
    )
    if "ndvi" in ds:
        ds["ndvi"].attrs["composite_days"] = spec.options.get("composite_days", 16)
    if "observed" in spec.options:
        wanted = spec.options["observed"]
        there = [day in wanted for day in dates.strftime("%Y-%m-%d")]
        ds = ds.assign_coords(observed=("date", there))
    return ds


def load_passes(spec, grid, period, *, chunks=512):
    """Acquisitions of ``passes``: rows of time, platform and relative orbit, within the period."""
    _meet_fate(spec, period)
    rows = [
        row for row in spec.options["passes"] if pd.Timestamp(row[0]).normalize() in period.days
    ]
    if not rows:
        raise NoDataError(f"{spec.name} has no pass here")
    times = pd.DatetimeIndex([row[0] for row in rows]).as_unit("ns")
    shape, dims = (len(rows), *grid.shape), ("time", "y", "x")
    ds = xr.Dataset(
        {
            name: _full(spec, shape, dims, name, (1, chunks, chunks)).assign_attrs(
                convention=spec.convention, averaging=spec.options.get("average", "db")
            )
            for name in spec.provides
        },
        coords={**grid_coords(grid), "time": times},
    )
    return ds.assign_coords(
        platform=("time", np.array([row[1] for row in rows], dtype=str)),
        orbit_state=("time", np.array(["ascending"] * len(rows))),
        relative_orbit=("time", np.array([row[2] for row in rows], "int16")),
    )


def load_static(spec, grid, period, *, chunks=512):
    """Static variables of one value."""
    _meet_fate(spec, period)
    data = {
        name: _full(spec, tuple(grid.shape), ("y", "x"), name, chunks) for name in spec.provides
    }
    return xr.Dataset(data, coords=grid_coords(grid))


def load_labels(spec, grid, period, *, chunks=512):
    """Soil moisture on EASE-Grid 2.0 cells of ``km``, every day."""
    _meet_fate(spec, period)
    cells = ease_grid(spec.options["km"], tuple(grid.geographic_extent.boundingbox))
    shape = (len(period.days), *cells.shape)
    da_ = _full(spec, shape, ("time", "y", "x"), spec.provides[0], (1, -1, -1))
    return da_.assign_coords({**grid_coords(cells), "time": period.days}).to_dataset()


def load_broken_unit(spec, grid, period, *, chunks=512):
    """A static variable whose values cannot be read, by a loader that uses its credential."""

    def fail(block):
        assert os.environ[spec.credentials[0]]
        raise SourceError(f"{spec.name} cannot be read")

    data = da.zeros(tuple(grid.shape), dtype="float32", chunks=chunks).map_blocks(
        fail, dtype="float32", meta=np.empty((0, 0), "float32")
    )
    variable = describe(xr.DataArray(data, dims=("y", "x")), spec.provides[0])
    return xr.Dataset({spec.provides[0]: variable}, coords=grid_coords(grid))
