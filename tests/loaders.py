"""Loaders of made-up sources, named by dotted path in the catalogs of tests."""

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr

from smgrid.grid import grid_coords
from smgrid.schema import describe
from smgrid.windows import composite_calendar


def load_scene(spec, grid, period, *, chunks=512):
    """vv and vh of two orbits on every 12th day, 5:30 and 17:20."""
    days = pd.date_range(period.start, period.end, freq="12D")
    times = pd.DatetimeIndex([d + pd.Timedelta(h) for d in days for h in ("5h30min", "17h20min")])
    shape = (len(times), *grid.shape)
    data = {
        name: describe(
            xr.DataArray(
                da.full(shape, value, dtype="float32", chunks=(1, chunks, chunks)),
                dims=("time", "y", "x"),
                name=name,
                attrs={"convention": spec.convention, "averaging": "db"},
            ),
            name,
        )
        for name, value in (("vv", -11.0), ("vh", -18.0))
    }
    return xr.Dataset(
        data, coords={**grid_coords(grid), "time": times.as_unit("ns")}
    ).assign_coords(
        platform=("time", ["sentinel-1a"] * len(times)),
        orbit_state=("time", ["descending", "ascending"] * len(days)),
        relative_orbit=("time", np.array([37, 161] * len(days), "int16")),
    )


def load_static(spec, grid, period, *, chunks=512):
    """Every variable that is asked for, increasing from west to east."""
    row = np.linspace(0.1, 0.6, grid.shape.x, dtype="float32")
    data = {}
    for name in spec.provides:
        array = da.from_array(np.broadcast_to(row, grid.shape).copy(), chunks=chunks)
        scale = 100 if name in ("sand", "clay", "elevation") else 1
        data[name] = describe(xr.DataArray(array * scale, dims=("y", "x"), name=name), name)
    return xr.Dataset(data, coords=grid_coords(grid))


def load_series(spec, grid, period, *, chunks=512):
    """Composites or days, whichever is asked for."""
    dates = composite_calendar(period) if "ndvi" in spec.provides else period.days
    values = {"ndvi": 0.5, "t2m": 285.0, "tp": 0.002}
    data = {
        name: describe(
            xr.DataArray(
                da.full((len(dates), *grid.shape), values[name], dtype="float32", chunks=chunks),
                dims=("date", "y", "x"),
                name=name,
            ),
            name,
        )
        for name in spec.provides
    }
    ds = xr.Dataset(data, coords={**grid_coords(grid), "date": dates})
    if "ndvi" in ds:
        ds["ndvi"].attrs["composite_days"] = 16
    return ds


def load_angle(spec, grid, period, *, chunks=512):
    """A raster of angles per relative orbit, in no particular order."""
    orbits = np.array(spec.options.get("orbits", [161, 37]), "int16")
    data = np.stack([np.full(grid.shape, o / 4, "float32") for o in orbits])
    angle = xr.DataArray(
        da.from_array(data, chunks=(1, chunks, chunks)),
        dims=("relative_orbit", "y", "x"),
        name="angle",
    )
    return xr.Dataset(
        {"angle": describe(angle, "angle")},
        coords={**grid_coords(grid), "relative_orbit": orbits},
    )
