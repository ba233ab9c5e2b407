"""Overviews of a map: the same values in larger pixels, for whoever looks at all of it."""

import math
from collections.abc import Mapping
from typing import Any

import xarray as xr
from odc.geo.geobox import GeoBox
from zarr.abc.store import Store

from smgrid.cube.filling import ATTEMPTS
from smgrid.cube.finishing import SUMS
from smgrid.cube.geozarr import FOLDER
from smgrid.cube.linking import (
    OVERVIEWS_OF,
    are_complete,
    drop_overviews,
    link,
    overview_grid,
    overview_path,
    read_origin,
    require_map,
)
from smgrid.cube.lock import writing
from smgrid.cube.opening import open_groups
from smgrid.cube.progress import ProgressFunction
from smgrid.cube.record import MANIFEST_KEY, TEMPLATE_KEY, StoreRecord, read_record
from smgrid.cube.reducing import Method, method_of, reduce_levels
from smgrid.cube.storage import StorePath, explaining, normalise_path, open_store, read_json
from smgrid.cube.store import WriteReport, check_attempts, write_cube
from smgrid.cube.verify import require_sound
from smgrid.errors import ConfigError, StoreError
from smgrid.grid import grid_coords

SMALLEST = 256
"""Edge of the coarsest overview in pixels: a picture, and one inner chunk."""

_CELL_METHODS: Mapping[Method, str] = {"mean": "mean", "majority": "mode", "mode": "mode"}


def write_overviews(
    path: StorePath,
    *,
    smallest: int = SMALLEST,
    progress: ProgressFunction | None = None,
    attempts: int = ATTEMPTS,
) -> WriteReport:
    """Add overviews to a complete map: groups ``overviews/2``, ``overviews/4`` and so on.

    Each halves the one before, from the same upper left corner, until it fits into `smallest`
    pixels; pixels of the last row and column may reach over the edge. Dims, coordinates, types and
    attributes are those of the map. Quantities are the mean of the map's valid pixels, bits of a
    mask are set where they hold in more than half of them; see `reduce_levels`.

    The map is read shard by shard and its bytes stay as they are. It is verified first, which
    reads it once more: a lost shard reads as missing values, and overviews of it would pass for
    those of the map after it is mended. Until the overviews are complete, no metadata of the map
    tell of them; an interrupted call is finished by the next one. Overviews of what the map held
    before are replaced, those that are there are kept.

    Parameters
    ----------
    path
        Folder or URL of a map: a complete store of a single grid.
    smallest
        Largest edge of the coarsest overview in pixels.
    progress, attempts
        As in `write_cube`.

    Returns
    -------
    WriteReport
        Units of the overviews; none if the map is not larger than `smallest`.

    Raises
    ------
    IncompleteStoreError
        The map is not complete.
    StoreError
        The store is a cube of several grids, or none, or cannot be written, or a shard of the map
        is missing or is not what was written.
    StoreInUseError
        Another process writes to the map.
    UnitsFailedError
        As `write_cube`.

    Notes
    -----
    Open a level with ``open_map(path, level=4)``, or without smgrid with ``xr.open_zarr(path,
    group="overviews/4")``. ``xr.open_datatree`` cannot open a map with its overviews as one tree:
    there a group inherits the coordinates of the one above it, while ``y`` and ``x`` of each level
    are its own.
    """
    check_attempts(attempts)
    if smallest < 1:
        raise ConfigError(f"smallest is {smallest}, expected 1 or more pixels")
    path = normalise_path(path)
    with explaining(path):
        store = open_store(path, "write")
        grid = require_map(read_record(store, path))
        factors = overview_factors(grid, smallest=smallest)
        if not factors:
            return WriteReport(path, total=0, written=0)
        with writing(store, path) as lease:  # nobody changes the map meanwhile
            record = read_record(store, path)
            require_map(record)
            how: Any = {"progress": progress, "attempts": attempts}
            report = _write(store, record, grid, factors, **how)
            lease.confirm()
            link(store, record)
    return report


def _write(
    store: Store, record: StoreRecord, grid: GeoBox, factors: tuple[int, ...], **how: Any
) -> WriteReport:
    origin = _origin(store, record)
    of_use = _is_of_use(store, origin, factors)
    if not (of_use and are_complete(store)):
        require_sound(store, record)
    if not of_use:
        drop_overviews(store)
    tree = _overviews(open_groups(store, record)[""], grid, factors, tile=_tile(record))
    tree.attrs |= {"title": "Overviews of a map", OVERVIEWS_OF: origin}
    manifest = {"map": {"sha256sums": origin, "template": record.digest}}
    path = overview_path(record.path)
    return write_cube(tree, path, shard=_tile(record), manifest=manifest, **how)


def overview_factors(grid: GeoBox, *, smallest: int = SMALLEST) -> tuple[int, ...]:
    """Return the factors of the overviews of a map on `grid`: powers of 2 until one is small."""
    edge = max(grid.shape)
    return tuple(2**n for n in range(1, 1 + math.ceil(math.log2(max(1, edge / smallest)))))


def _origin(store: Store, record: StoreRecord) -> str:
    sums = (read_json(store, MANIFEST_KEY) or {}).get(SUMS)
    if sums is None:
        raise StoreError(
            f"{record.path} has no {SUMS} in {MANIFEST_KEY}, so that nothing would tell when its "
            "overviews are out of date; write the same map to it again"
        )
    return str(sums)


def _is_of_use(store: Store, origin: str, factors: tuple[int, ...]) -> bool:
    """Whether the overviews that are there are of the same map, and the ones that are wanted."""
    if read_origin(store) != origin:
        return False
    template = read_json(store, f"{FOLDER}/{TEMPLATE_KEY}") or {}
    return {*template["groups"]} == {"", *map(str, factors)}


def _overviews(ds: xr.Dataset, grid: GeoBox, factors: tuple[int, ...], *, tile: int) -> xr.DataTree:
    """Return the lazy overviews of a map, one group each."""
    gridded = [name for name, array in ds.data_vars.items() if array.dims[-2:] == ("y", "x")]
    reduced = {name: reduce_levels(ds[name], len(factors), tile=tile) for name in gridded}
    coords = {name: c for name, c in ds.coords.items() if not {"y", "x"} & {*c.dims}}
    groups = {}
    for place, factor in enumerate(factors):
        variables = {name: _like(ds[name], reduced[name][place]) for name in gridded}
        where = grid_coords(overview_grid(grid, factor))
        groups[f"/{factor}"] = xr.Dataset(variables, coords | where, ds.attrs)
    return xr.DataTree.from_dict(groups)


def _like(array: xr.DataArray, values: Any) -> xr.Variable:
    said = array.attrs.get("cell_methods")
    method = f"area: {_CELL_METHODS[method_of(array)]}"
    attrs = array.attrs | {"cell_methods": f"{said} {method}" if said else method}
    return xr.Variable(array.dims, values, attrs)


def _tile(record: StoreRecord) -> int:
    return max(units.shards[-1] for units in record.sets if units.dims[-2:] == ("y", "x"))
