"""Sentinel-1 backscatter: STAC collections of rasters, provider stacks in NetCDF, incidence angles.

One step in time is one pass. Fine pixels are averaged over their area onto the target, every one of
them, in the domain that the catalog states; overviews are never read.
"""

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np
import pandas as pd
import pystac
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec, check_options, find_files
from smgrid.errors import SourceError
from smgrid.schema import convert_units, describe
from smgrid.sources.backscatter import average_backscatter, check_backscatter
from smgrid.sources.lattice import fine_grid
from smgrid.sources.netcdf import open_stack
from smgrid.sources.opera import share_lattices
from smgrid.sources.options import take_asset, take_units
from smgrid.sources.passes import (
    PASS_GAP,
    Pass,
    apply_rules,
    group_slices,
    pass_of,
    passes_within,
    read_rules,
    with_pass_coords,
)
from smgrid.sources.per_orbit import load_per_orbit
from smgrid.sources.stac import load_items, no_data, search_items, split_by_lattice
from smgrid.sources.window import crop
from smgrid.windows import Period

_DAY = pd.Timedelta(days=1)
_MASK = "mask"


def load_stac(spec: SourceSpec, grid: GeoBox, period: Period, *, chunks: int = 512) -> xr.Dataset:
    """Load backscatter of a STAC collection onto `grid`.

    Parameters
    ----------
    spec
        ``stac``, ``assets`` (vv, vh), ``units`` ("1" for linear power, or "dB"), ``convention``.
        An asset ``mask`` leaves out the pixels where it is not 0: those in layover or shadow, as
        OPERA RTC-S1 counts them. Options: ``average`` "db" (default) or "linear".
    grid
        Target.
    period
        First and last UTC day; a pass counts on the day when it starts.
    chunks
        Tile edge [pixels of `grid`].

    Returns
    -------
    xarray.Dataset
        vv, vh [dB] (time, y, x), lazy, one chunk per pass and tile.

    Raises
    ------
    NoDataError
        If no pass over the grid starts in the period.
    SourceError
        If the search fails, or, when computed, an asset cannot be read.
    SchemaError
        When computed, if values contradict the stated units.
    """
    check_options(spec, "average")
    check_backscatter(spec)
    assets = {name: take_asset(spec, name) for name in spec.provides}
    items = search_items(spec, grid, period, margin=PASS_GAP)
    # Over the poles only HH and HV are acquired; such scenes hold nothing that was asked for.
    items = [item for item in items if set(assets.values()) & set(item.assets)] or items
    if _MASK in spec.assets:
        assets[_MASK] = spec.assets[_MASK]
        _require_masks(spec, items)
    passes = passes_within(group_slices(pass_of(item) for item in items), period)
    if not passes:
        raise no_data(spec, grid, period)
    wanted = {member for one in passes for member in one.slices}
    items = [item for item in items if item.id in wanted]
    share_lattices(spec, items, tuple(assets.values()))
    parts = [
        _average_lattice(spec, grid, lattice, used, assets=assets, passes=passes, chunks=chunks)
        for lattice, used in split_by_lattice(spec, items, tuple(assets.values()))
    ]
    # Slices of one pass can come in two UTM zones.
    merged = reduce(lambda first, second: first.combine_first(second), parts)
    merged = merged.chunk({"group": 1, "y": chunks, "x": chunks}).drop_vars("group")
    return with_pass_coords(merged.rename(group="time"), passes)


def load_netcdf(spec: SourceSpec, grid: GeoBox, period: Period, *, chunks: int = 512) -> xr.Dataset:
    """Load backscatter of NetCDF stacks (time, y, x) onto `grid`.

    Parameters
    ----------
    spec
        ``paths``, ``assets`` (vv, vh, time), ``units``, ``convention``, ``crs`` if the files carry
        none. Options: ``average`` as for `load_stac`; ``passes``, a list of relative_orbit,
        orbit_state, platform, around ("17:32", UTC) and within_minutes (10): each acquisition
        belongs to the nearest one. Without it the relative orbit is 0, unknown.
    grid
        Target.
    period
        First and last UTC day.
    chunks
        Tile edge [pixels of `grid`].

    Returns
    -------
    xarray.Dataset
        vv, vh [dB] (time, y, x), lazy.

    Raises
    ------
    CatalogError
        If ``passes`` is not understood.
    NoDataError
        If the files hold nothing for grid and period.
    SourceError
        If a file cannot be read or an acquisition matches none of the passes.
    """
    check_options(spec, "average", "passes")
    check_backscatter(spec)
    rules = read_rules(spec)
    stack = _open_stacks(spec, period, chunks)
    if stack.sizes["time"] == 0:
        raise no_data(spec, grid, period)
    times = [pd.Timestamp(moment).floor("s") for moment in stack["time"].values]
    found = group_slices(
        apply_rules(rules, moment, str(number), spec) for number, moment in enumerate(times)
    )
    passes = passes_within(found, period)
    if not passes:
        raise no_data(spec, grid, period)
    labels = [f"{spec.name} at {one.time}" for one in passes]
    bands = {}
    for name in spec.provides:
        fine = crop(_mosaic(stack[name], passes), grid, source=f"{spec.name} ({spec.origin})")
        bands[name] = average_backscatter(fine, grid, spec=spec, labels=labels, chunks=chunks)
    merged = xr.Dataset(bands).chunk({"time": 1, "y": chunks, "x": chunks})
    return with_pass_coords(merged, passes)


def load_angle(spec: SourceSpec, grid: GeoBox, period: Period, *, chunks: int = 512) -> xr.Dataset:
    """Load one static raster of the incidence angle per relative orbit onto `grid`.

    Parameters
    ----------
    spec
        ``stac`` with items that carry sat:relative_orbit and sat:orbit_state, ``assets`` (angle),
        ``units`` ("degree" unless stated).
    grid
        Target.
    period
        Not used: the angle of an orbit does not change.
    chunks
        Tile edge [pixels of `grid`].

    Returns
    -------
    xarray.Dataset
        angle [degree] (relative_orbit, y, x), lazy, with ``orbit_state``. Averaged over the area
        where the rasters are finer than the grid, bilinear where they are coarser.

    Raises
    ------
    NoDataError
        If no raster meets the grid.
    SourceError
        If an item does not say its relative orbit.
    """
    check_options(spec)
    assets = {"angle": take_asset(spec, "angle")}
    items = search_items(spec, grid, None)
    ds = load_per_orbit(
        spec, grid, items, assets=assets, prepare=lambda pixels: pixels, chunks=chunks
    )
    units = take_units(spec, "angle", default="degree")
    return ds.assign(angle=describe(convert_units(ds["angle"], units, "angle"), "angle"))


def _average_lattice(
    spec: SourceSpec,
    grid: GeoBox,
    lattice: GeoBox,
    items: Sequence[pystac.Item],
    *,
    assets: Mapping[str, str],
    passes: Sequence[Pass],
    chunks: int,
) -> xr.Dataset:
    """Return the averages (group, y, x) of the items that share a lattice."""
    groups = {member: number for number, one in enumerate(passes) for member in one.slices}
    fine, edge = fine_grid(lattice, grid, chunks)
    loaded = load_items(spec, items, fine, assets=assets, groups=groups, chunks=edge)
    if _MASK in loaded:
        loaded = loaded.drop_vars(_MASK).where(loaded[_MASK] == 0)
    labels = [", ".join(passes[number].slices) for number in loaded["group"].values]
    return xr.Dataset(
        {
            name: average_backscatter(da, grid, spec=spec, labels=labels, chunks=chunks)
            for name, da in loaded.data_vars.items()
        }
    )


def _require_masks(spec: SourceSpec, items: Sequence[pystac.Item]) -> None:
    for item in items:
        if spec.assets[_MASK] not in item.assets:
            msg = (
                f"{spec.origin}: {item.id} has no asset {spec.assets[_MASK]!r}, which assets.mask "
                f"of {spec.name} names (it has {', '.join(item.assets)}); correct or omit it"
            )
            raise SourceError(msg)


def _open_stacks(spec: SourceSpec, period: Period, edge: int) -> xr.Dataset:
    """Return the acquisitions of all files that may belong to a period, ordered by time."""
    names = {name: take_asset(spec, name) for name in spec.provides}
    time = take_asset(spec, "time")
    stacks = []
    for path in find_files(spec):
        stack = open_stack(spec, path, names, time=time, edge=edge)
        first, last = period.start - PASS_GAP, period.end + _DAY + PASS_GAP
        inside = (stack["time"] >= first.to_numpy()) & (stack["time"] < last.to_numpy())
        stacks.append(stack.isel(time=np.flatnonzero(inside)))
    try:
        return xr.concat(stacks, dim="time", join="exact").sortby("time")
    except ValueError as cause:
        msg = (
            f"the files of {spec.name} ({', '.join(find_files(spec))}) lie on different grids; "
            f"make one source of each grid in {spec.origin}"
        )
        raise SourceError(msg) from cause


def _mosaic(da: xr.DataArray, passes: Sequence[Pass]) -> xr.DataArray:
    """Return one step per pass from one step per slice; the earliest valid slice wins."""
    members = [[int(key) for key in one.slices] for one in passes]
    mosaic = da.isel(time=[member[0] for member in members])
    for rank in range(1, max(len(member) for member in members)):
        later = da.isel(time=[member[min(rank, len(member) - 1)] for member in members])
        mosaic = mosaic.fillna(later.drop_vars("time").assign_coords(time=mosaic["time"]))
    return mosaic
