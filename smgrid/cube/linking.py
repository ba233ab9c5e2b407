"""Which overviews belong to a map, and whether they are of what it holds now.

Overviews are a store of their own in a folder of the map, with a template, sums and a manifest.
They name the sums of the map that they were made of. The map's root tells of them from the moment
when they are complete until anything in the map is written again, so that no reader meets half of
them, or those of other data.
"""

import math
from typing import Any

import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from zarr.abc.store import Store
from zarr.core.sync import sync

from smgrid.cube.geozarr import FOLDER, is_linked, link_overviews, multiscales, unlink_overviews
from smgrid.cube.opening import open_groups
from smgrid.cube.record import (
    ROOT_KEY,
    TEMPLATE_KEY,
    StoreRecord,
    read_record,
    read_root,
    write_root,
)
from smgrid.cube.storage import open_store, read_json
from smgrid.errors import ConfigError, IncompleteStoreError, StoreError

OVERVIEWS_OF = "smgrid_overviews_of"
"""Attribute of the overviews' root: digest of the sums of the map that they were made of."""


def overview_path(path: str) -> str:
    """Return the path of the store of overviews of the map at `path`."""
    return f"{path.rstrip('/')}/{FOLDER}"


def overview_grid(grid: GeoBox, factor: int) -> GeoBox:
    """Return the grid of an overview: the same upper left corner, pixels `factor` times as large.

    Pixels of the last row and column may reach over the edge of the map.
    """
    shape = (math.ceil(grid.shape.y / factor), math.ceil(grid.shape.x / factor))
    dx, _, left, _, dy, top = grid.affine[:6]
    return GeoBox(shape, Affine(dx * factor, 0.0, left, 0.0, dy * factor, top), grid.crs)


def map_grid(record: StoreRecord) -> GeoBox | None:
    """Return the grid of a store with nothing but one, ``None`` for another store."""
    groups = record.template["groups"]
    group = groups.get("")
    if group is None or len(groups) > 1 or group["transform"] is None:
        return None
    shapes = (a["shape"] for a in group["arrays"].values() if a["dims"][-2:] == ["y", "x"])
    shape = next(shapes, None)
    if shape is None:
        return None
    return GeoBox(tuple(shape[-2:]), Affine(*group["transform"]), group["crs"])


def require_map(record: StoreRecord) -> GeoBox:
    """Return the grid of a complete map.

    Raises
    ------
    IncompleteStoreError, StoreError
        If it is not complete, or no map.
    """
    grid = map_grid(record)
    if grid is None:
        raise StoreError(
            f"{record.path} is not a map on one grid (it has the groups "
            f"{', '.join(record.template['groups']) or 'none'}), and only maps have overviews"
        )
    if record.status != "complete":
        raise IncompleteStoreError(
            f"{record.path} is {record.status}: overviews show a map that is complete; write the "
            "same map to it again to finish it"
        )
    return grid


def open_overview(store: Store, record: StoreRecord, factor: int) -> xr.Dataset:
    """Open one overview of a map lazily; see `smgrid.open_map`.

    Raises
    ------
    ConfigError
        The map has no overview of this factor.
    IncompleteStoreError, StoreError
        The map is not complete, or there is none.
    """
    require_map(record)
    if factor not in record.overviews:
        known = ", ".join(map(str, record.overviews)) or "none"
        raise ConfigError(
            f"{record.path} has no overview of factor {factor}, it has {known}; write_overviews "
            "adds them"
        )
    below = overview_path(record.path)
    overviews = open_store(below)
    return open_groups(overviews, read_record(overviews, below))[str(factor)]


def read_origin(store: Store) -> str | None:
    """Return which sums the overviews in a map's folder were made of; ``None`` without any."""
    template = read_json(store, f"{FOLDER}/{TEMPLATE_KEY}")
    try:
        return None if template is None else template["groups"][""]["attrs"][OVERVIEWS_OF]
    except (KeyError, TypeError) as cause:
        msg = (
            f"{store}: {FOLDER} does not hold the overviews of this map; give the map another path"
        )
        raise StoreError(msg) from cause


def linked_root(store: Store, record: StoreRecord) -> dict[str, Any]:
    """Return what the root's metadata are with the overviews that the folder holds.

    Raises
    ------
    StoreError
        If they are gone or damaged.
    """
    root = read_root(store)
    overviews = read_json(store, f"{FOLDER}/{ROOT_KEY}")
    template = read_json(store, f"{FOLDER}/{TEMPLATE_KEY}")
    grid = map_grid(record)
    if overviews is None or template is None or grid is None:
        raise StoreError(f"{record.path}: the overviews are not there; write them again")
    factors = sorted(int(group) for group in template["groups"] if group)
    grids = {factor: overview_grid(grid, factor) for factor in (1, *factors)}
    return link_overviews(root, overviews, multiscales(grids))


def link(store: Store, record: StoreRecord) -> None:
    """Let the root tell of the overviews, as one replacement of one object."""
    root = linked_root(store, record)
    if root != read_root(store):
        write_root(store, root)


def unlink(store: Store) -> None:
    """Let the root say nothing about overviews."""
    root = read_root(store)
    if is_linked(root):
        write_root(store, unlink_overviews(root))


def drop_overviews(store: Store) -> None:
    """Delete the folder of overviews, after all that the root tells of them."""
    unlink(store)
    sync(store.delete_dir(FOLDER))


def settle_overviews(store: Store, record: StoreRecord, sums: str) -> None:
    """Link the overviews of a map that is there again, or delete them if it changed.

    Parameters
    ----------
    store, record
        The store, which lacks nothing but the status.
    sums
        Digest of the sums of what it holds.
    """
    if map_grid(record) is None:
        return
    origin = read_origin(store)
    if origin is not None and origin != sums:
        drop_overviews(store)
    elif origin is not None and are_complete(store):
        link(store, record)


def are_complete(store: Store) -> bool:
    """Whether the overviews in a map's folder are all there."""
    root = read_json(store, f"{FOLDER}/{ROOT_KEY}")
    return root is not None and root["attributes"].get("smgrid_status") == "complete"
