"""Small cubes made in memory, on nested grids as `load_cube` lays them out."""

import numpy as np
import pandas as pd
import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

from smgrid.grid import coarsen_grid
from smgrid.schema import describe
from smgrid.windows import Period, composite_calendar

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


def make_cube(
    *,
    shape=(13, 17),
    times=("2021-03-02T05:30", "2021-03-02T17:20", "2021-03-14T05:30"),
    start="2020-01-01",
    end="2021-03-20",
    factors=(2, 9),
    chunks=None,
    seed=0,
):
    """Random inputs in plausible ranges; the grid starts off the lattice of the coarse cells."""
    rng = np.random.default_rng(seed)
    grid = GeoBox.from_bbox(
        (500_300, 5_629_100, 500_300 + 100 * shape[1], 5_629_100 + 100 * shape[0]),
        "EPSG:32631",
        resolution=100,
    )
    period = Period.parse((start, end))
    time = pd.DatetimeIndex(times)
    days = pd.date_range(period.start, period.end)
    composites = composite_calendar(period)

    def field(name, gbox, coords, dims):
        low, high = RANGES[name]
        sizes = [len(c) for c in coords.values()] + list(gbox.shape)
        values = rng.uniform(low, high, sizes).astype(np.float32)
        return describe(xr.DataArray(values, dims=(*dims, "y", "x"), name=name), name)

    scene = {n: field(n, grid, {"time": time}, ("time",)) for n in ("vv", "vh", "angle")}
    for name in ("vv", "vh"):
        scene[name].attrs |= {"convention": "sigma0", "averaging": "db"}
    static_names = ("sand", "clay", "bdod", "elevation", "slope", "aspect_sin", "aspect_cos")
    static = {n: field(n, grid, {}, ()) for n in static_names}
    base = xr.Dataset({**scene, **static}, coords={**xr_coords(grid), "time": time})
    base = base.assign_coords(
        platform=("time", ["sentinel-1a"] * len(time)),
        orbit_state=("time", ["descending" if t.hour < 12 else "ascending" for t in time]),
        relative_orbit=("time", np.array([37 if t.hour < 12 else 161 for t in time], np.int16)),
    )
    nodes = {"/base": base}
    for name, factor, dates in (("ndvi", factors[0], composites), ("weather", factors[1], days)):
        coarse = coarsen_grid(grid, factor)
        names = ("ndvi",) if name == "ndvi" else ("t2m", "tp")
        series = {n: field(n, coarse, {"date": dates}, ("date",)) for n in names}
        ds = xr.Dataset(series, coords={**xr_coords(coarse), "date": dates})
        if name == "ndvi":
            ds["ndvi"].attrs["composite_days"] = 16
        key = f"/x{factor}" if f"/x{factor}" not in nodes else f"/x{factor}_daily"
        nodes[key] = ds
    if chunks is not None:
        sizes = {"time": 1, "y": chunks, "x": chunks}
        # Coordinates stay in memory, as `open_cube` has them.
        nodes["/base"] = base.chunk(sizes).assign_coords(base.coords)
        for key in set(nodes) - {"/base"}:
            nodes[key] = nodes[key].chunk({"date": 20, "y": 3, "x": 2})
    return xr.DataTree.from_dict(nodes)
