"""The truth, apart from everything that a provider could know: one Zarr store."""

from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from smgrid.grid import grid_coords
from smgrid.simulate.evolution import Day, Land
from smgrid.simulate.fields import Array
from smgrid.simulate.vegetation import COVERS
from smgrid.windows import Period

_SLAB = 32  # days that are kept in memory and stored in one chunk
_TILE = 512  # pixels along the edge of a chunk
_TIME = {"units": "seconds since 1970-01-01", "dtype": "int64", "calendar": "proleptic_gregorian"}
_SPATIAL = {"grid_mapping": "spatial_ref"}


class TruthWriter:
    """Writes daily soil moisture slab by slab, and the static fields at once.

    Parameters
    ----------
    path
        Of the store.
    land
        Static fields and grid.
    scenes
        First and last day.
    """

    def __init__(self, path: Path, land: Land, *, scenes: Period) -> None:
        self._path, self._scenes, self._inner = path, scenes, land.frame.inner
        self._slab: list[Array] = []
        self._written = 0
        _write_template(path, land, scenes)

    def observe(self, day: Day) -> None:
        """Take the day; write a slab when it is full."""
        if self._scenes.start <= day.date <= self._scenes.end:
            self._slab.append(day.moisture[self._inner].copy())
        if len(self._slab) == _SLAB:
            self.finish()

    def finish(self) -> None:
        """Write what has not been written."""
        if self._slab:
            values = np.stack(self._slab)
            region = {"time": slice(self._written, self._written + len(values))}
            ds = xr.Dataset({"soil_moisture": (("time", "y", "x"), values)})
            ds.to_zarr(self._path, region=region, consolidated=True)
            self._written += len(values)
            self._slab = []


def _write_template(path: Path, land: Land, scenes: Period) -> None:
    grid, days = land.frame.base, scenes.days
    tile = tuple(min(_TILE, size) for size in grid.shape)
    empty = dask.array.full(
        (len(days), *grid.shape), np.nan, dtype=np.float32, chunks=(_SLAB, *tile)
    )
    attrs = {
        "units": "m3 m-3",
        "long_name": "True water content of 0-5 cm at the end of the day",
        "standard_name": "volume_fraction_of_condensed_water_in_soil",
    }
    ds = xr.Dataset(
        {"soil_moisture": (("time", "y", "x"), empty, attrs), **_static_fields(land)},
        coords={"time": days.to_numpy().astype("datetime64[ns]"), **grid_coords(grid)},
        attrs={
            "Conventions": "CF-1.11",
            "title": "Truth of a simulated world",
            "license": "CC0-1.0",
            "cover_names": [cover.name for cover in COVERS],
        },
    )
    encoding: dict[str, Any] = {str(name): dict(_SPATIAL) for name in ds.data_vars}
    encoding["time"] = _TIME
    encoding["soil_moisture"] |= {"chunks": (min(_SLAB, len(days)), *tile)}
    ds.to_zarr(path, mode="w-", compute=False, encoding=encoding, zarr_format=2, consolidated=True)


def _static_fields(land: Land) -> dict[str, Any]:
    soil, terrain, inner = land.soil, land.terrain, land.frame.inner
    fields: dict[str, tuple[NDArray[Any], str, str]] = {
        "elevation": (terrain.elevation, "m", "Mean elevation"),
        "wetness": (terrain.wetness, "1", "Topographic wetness index, logarithm of metres"),
        "sand": (soil.sand * 1000, "g kg-1", "Sand content"),
        "clay": (soil.clay * 1000, "g kg-1", "Clay content"),
        "bdod": (soil.bulk_density * 100, "cg cm-3", "Bulk density"),
        "porosity": (soil.porosity, "m3 m-3", "Water content at saturation"),
        "field_capacity": (soil.field_capacity, "m3 m-3", "Water content at -33 kPa"),
        "wilting_point": (soil.wilting_point, "m3 m-3", "Water content at -1500 kPa"),
        "cover": (land.parcels.kind[land.parcel], "1", "Land cover, position in cover_names"),
    }
    return {
        name: (("y", "x"), values[inner], {"units": units, "long_name": long_name})
        for name, (values, units, long_name) in fields.items()
    }
