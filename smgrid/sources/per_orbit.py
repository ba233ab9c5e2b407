"""Rasters that are the same at every pass of a relative orbit, such as the incidence angle."""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import TypeAlias

import numpy as np
import pystac
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec
from smgrid.errors import SourceError
from smgrid.resample import area_average
from smgrid.sources.lattice import fine_grid
from smgrid.sources.passes import pass_of
from smgrid.sources.stac import load_items, split_by_lattice
from smgrid.sources.window import pixel_metres

_BILINEAR = {"resampling": "bilinear", "src_nodata": np.nan, "dst_nodata": np.nan}

Prepare: TypeAlias = Callable[[xr.Dataset], xr.Dataset]
"""What is done to the pixels (group, y, x), lazily, before they are averaged."""


def load_per_orbit(
    spec: SourceSpec,
    grid: GeoBox,
    items: Sequence[pystac.Item],
    *,
    assets: Mapping[str, str],
    prepare: Prepare,
    chunks: int,
) -> xr.Dataset:
    """Return rasters of items as one per relative orbit on `grid`.

    Parameters
    ----------
    spec
        How the assets are read.
    grid
        Target.
    items
        From `search_items`; where two of one orbit overlap, the first by time and id wins.
    assets
        Variable -> asset key.
    prepare
        Turns what is read into what is averaged.
    chunks
        Tile edge [pixels of `grid`].

    Returns
    -------
    xarray.Dataset
        float32 (relative_orbit, y, x), lazy, with ``orbit_state``: averages over the area where the
        rasters are finer than the grid, bilinear where they are coarser.

    Raises
    ------
    SourceError
        If an item does not say its relative orbit.
    """
    orbits = {item.id: _take_orbit(item) for item in items}
    states = {orbits[item.id]: pass_of(item).orbit_state for item in items}
    parts = []
    for lattice, members in split_by_lattice(spec, items, tuple(assets.values())):
        fine, edge = fine_grid(lattice, grid, chunks)
        loaded = load_items(spec, members, fine, assets=assets, groups=orbits, chunks=edge)
        is_fine = pixel_metres(lattice) <= pixel_metres(grid)
        onto = _average if is_fine else _interpolate
        fields = prepare(loaded).data_vars
        # Not Dataset.map: it gives the new spatial_ref the attributes, and so the CRS, of the old.
        parts.append(
            xr.Dataset({n: onto(da, grid=grid, chunks=chunks) for n, da in fields.items()})
        )
    merged = reduce(lambda first, second: first.combine_first(second), parts)
    merged = merged.rename(group="relative_orbit")
    merged = merged.chunk({"relative_orbit": 1, "y": chunks, "x": chunks})
    found = [int(orbit) for orbit in merged["relative_orbit"].values]
    return merged.assign_coords(
        relative_orbit=("relative_orbit", np.array(found, dtype="int16")),
        orbit_state=("relative_orbit", np.array([states[orbit] for orbit in found], dtype=str)),
    )


def _average(da: xr.DataArray, grid: GeoBox, chunks: int) -> xr.DataArray:
    return area_average(da, grid, chunks=chunks)


def _interpolate(da: xr.DataArray, grid: GeoBox, chunks: int) -> xr.DataArray:
    onto: xr.DataArray = da.odc.reproject(grid, chunks=(chunks, chunks), **_BILINEAR)
    return onto


def _take_orbit(item: pystac.Item) -> int:
    orbit = pass_of(item).relative_orbit
    if not orbit:
        msg = f"{item.id} has no sat:relative_orbit, so it is not known which passes it serves"
        raise SourceError(msg)
    return orbit
