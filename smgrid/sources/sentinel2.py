"""Clear NDVI of Sentinel-2 Level-2A items: which of them count, and their reflectance."""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import pystac
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec
from smgrid.errors import CatalogError, SourceError
from smgrid.sources.lattice import fine_grid
from smgrid.sources.options import take_asset
from smgrid.sources.reflectance import ClearView, clear_view
from smgrid.sources.stac import item_span, load_items, search_items, split_by_lattice
from smgrid.sources.window import pixel_metres
from smgrid.windows import Period

# Counts per unit of reflectance, and what processing baseline 04.00 (from 25 January 2022 on, and
# in every later reprocessing of older scenes) adds to them so that negative values can be stored
# (ESA, Sentinel-2 Products Specification Document, issue 14.9: BOA_ADD_OFFSET).
_SCALE = 1e-4
_STRIP_START = re.compile(r"_S(\d{8}T\d{6})")
_OFFSET = -1000
_OFFSET_SINCE = 4.0
# Earth Search subtracts it from the pixels of most items, and says so in this property.
_SUBTRACTED = "earthsearch:boa_offset_applied"
# Edge of a tile of fine pixels, 4 MB as float32: 512 cells of 240 m would be 600 MB.
_EDGE = 1024


def open_clear_items(spec: SourceSpec, grid: GeoBox, period: Period, *, chunks: int) -> ClearView:
    """Return what the Sentinel-2 acquisitions of a STAC collection saw, lazily.

    Parameters
    ----------
    spec
        ``stac``; ``assets`` (red, nir, mask).
    grid
        Target.
    period
        First and last UTC day.
    chunks
        Largest tile edge [pixels of `grid`].

    Raises
    ------
    CatalogError
        If the entry states an offset, which differs from item to item.
    SourceError
        If the search fails, an item does not state its processing baseline, or red and nir have
        pixels of different size.
    """
    if stated := {"red", "nir"} & set(spec.offset):
        msg = (
            f"{spec.origin}: offset.{min(stated)} of {spec.name} must not be given; it follows "
            "from the processing baseline of each item"
        )
        raise CatalogError(msg)
    items = newest_items(search_items(spec, grid, period))
    bands = [take_asset(spec, name) for name in ("red", "nir")]
    views = [
        _view_lattice(spec, members, lattice, grid, chunks)
        for lattice, members in split_by_lattice(spec, items, bands)
    ]
    return ClearView(
        ndvi=xr.concat([view.ndvi for view in views], dim="time").sortby("time"),
        seen=xr.concat([view.seen for view in views], dim="time").sortby("time"),
    )


def newest_items(items: Iterable[pystac.Item]) -> list[pystac.Item]:
    """Return the items without those that a later processing of the same tile replaces."""
    newest: dict[tuple[str, ...], tuple[tuple[float, str, str], pystac.Item]] = {}
    for item in items:
        properties = item.properties
        tile = properties.get("s2:mgrs_tile") or properties.get("grid:code") or item.id
        # Where a datastrip ends inside a tile, two items of one moment have a half each.
        strip = _STRIP_START.search(str(properties.get("s2:datastrip_id", "")))
        platform, start = str(properties.get("platform", "")).lower(), str(item_span(item)[0])
        key = (platform, start, str(tile), strip[1] if strip else "")
        made = (_baseline(item), str(properties.get("s2:generation_time", "")), item.id)
        if key not in newest or made > newest[key][0]:
            newest[key] = made, item
    return [item for _, item in newest.values()]


def count_offset(item: pystac.Item) -> int:
    """Return what is added to the counts of an item before they are scaled: 0 or -1000.

    The sensing date does not tell: reprocessed scenes of before 2022 have the offset as well.

    Raises
    ------
    SourceError
        If the item does not state its processing baseline.
    """
    if item.properties.get(_SUBTRACTED) is True:
        return 0
    return _OFFSET if _baseline(item) >= _OFFSET_SINCE else 0


def _baseline(item: pystac.Item) -> float:
    stated = item.properties.get("s2:processing_baseline")
    try:
        return float(str(stated))
    except ValueError as cause:
        msg = (
            f"{item.id} states the processing baseline {stated!r}, expected a number such as "
            "05.11; without it the offset of its counts is unknown, use a collection that has "
            "s2:processing_baseline"
        )
        raise SourceError(msg) from cause


def _passes(items: Sequence[pystac.Item]) -> tuple[dict[str, int], list[tuple[pd.Timestamp, int]]]:
    """Return the number of each item's pass, and start and count offset of each pass.

    Items of one pass and offset are mosaicked; their tiles overlap and are copies there.
    """
    starts: dict[tuple[str, int], pd.Timestamp] = {}
    keys: dict[str, tuple[str, int]] = {}
    for item in items:
        properties, start = item.properties, item_span(item)[0]
        fallback = f"{properties.get('platform')}_{properties.get('sat:relative_orbit')}_{start:%F}"
        # GS2B_20250312T014549_041856_N05.11: satellite, start, orbit, baseline
        pass_id = str(properties.get("s2:datatake_id", "")).rpartition("_")[0] or fallback
        key = keys[item.id] = (pass_id, count_offset(item))
        starts[key] = min(start, starts.get(key, start))
    ordered = sorted(starts, key=lambda key: (starts[key], key))
    number = {key: at for at, key in enumerate(ordered)}
    groups = {item_id: number[key] for item_id, key in keys.items()}
    return groups, [(starts[key], key[1]) for key in ordered]


def _view_lattice(
    spec: SourceSpec, items: list[pystac.Item], lattice: GeoBox, grid: GeoBox, chunks: int
) -> ClearView:
    """Return what the items of one UTM zone saw."""
    groups, passes = _passes(items)
    per_edge = int(_EDGE * pixel_metres(lattice) / pixel_metres(grid))
    edge = max(1, min(chunks, per_edge))
    box, pixels = fine_grid(lattice, grid, edge)
    bands = {name: take_asset(spec, name) for name in ("red", "nir")}
    counts = load_items(spec, items, box, assets=bands, groups=groups, chunks=pixels)
    mask = _load_mask(spec, items, grid, groups=groups, edge=edge)
    offset = xr.DataArray(np.array([each for _, each in passes], "float32"), dims="group")
    times = pd.DatetimeIndex([start for start, _ in passes]).as_unit("ns")
    red, nir = (
        ((counts[name] + offset) * np.float32(spec.scale.get(name, _SCALE)))
        .rename(group="time")
        .assign_coords(time=times)
        for name in bands
    )
    return clear_view(
        red,
        nir,
        mask.rename(group="time").assign_coords(time=times),
        grid,
        coding="sentinel2-scl",
        chunks=edge,
        where=f"{spec.name} ({spec.origin})",
    )


def _load_mask(
    spec: SourceSpec,
    items: list[pystac.Item],
    grid: GeoBox,
    *,
    groups: Mapping[str, int],
    edge: int,
) -> xr.DataArray:
    key = take_asset(spec, "mask")
    lattices = split_by_lattice(spec, items, [key])
    if len(lattices) > 1:
        found = ", ".join(f"{box.crs} {box.resolution.x:g} m" for box, _ in lattices)
        msg = f"{spec.name} ({spec.origin}): its masks {key} lie on several lattices ({found})"
        raise SourceError(msg)
    box, pixels = fine_grid(lattices[0][0], grid, edge)
    loaded = load_items(spec, items, box, assets={"mask": key}, groups=groups, chunks=pixels)
    return loaded["mask"].fillna(0).astype("uint8")
