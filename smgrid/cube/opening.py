"""Open the groups of a store lazily, in memory what they were before they were written."""

import math
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from xarray.coders import CFDatetimeCoder
from zarr.abc.store import Store

from smgrid.cube.coords import CRS_NAME
from smgrid.cube.encoding import memory_attrs, opened_attrs
from smgrid.cube.record import StoreRecord
from smgrid.errors import StoreError


def open_groups(store: Store, record: StoreRecord) -> dict[str, xr.Dataset]:
    """Return the Datasets of a store by group path; "" is the root.

    Values are lazy with one Dask chunk per shard, because that is what a unit of work reads; of a
    series on a coarse grid, whose shard lies under many tiles of the base grid, no more cells than
    lie under one. Floats are float32. Coordinates are in memory.

    Raises
    ------
    StoreError
        If the metadata or a coordinate are damaged.
    """
    try:
        groups = _open_all(store, record)
        return {
            path: _to_memory_form(groups[path], _blocks(record, path))
            for path in record.template["groups"]
        }
    except (ValueError, TypeError, KeyError, RuntimeError) as cause:
        msg = (
            f"{record.path}: zarr.json or a coordinate is damaged ({cause}); copy the store again, "
            "or write to a new path"
        )
        raise StoreError(msg) from cause


def _open_all(store: Store, record: StoreRecord) -> dict[str, xr.Dataset]:
    readable: Any = store  # xarray's annotation leaves zarr stores out
    how: Any = {
        "engine": "zarr",
        "zarr_format": 3,
        "chunks": None,
        "cache": False,
        "consolidated": True,
        "decode_coords": "all",
        "decode_times": CFDatetimeCoder(time_unit="ns"),
    }
    if [*record.template["groups"]] == [""]:  # without the overviews that may be below it
        return {"": xr.open_dataset(readable, **how)}
    opened = xr.open_groups(readable, **how)
    return {name.strip("/"): ds for name, ds in opened.items()}


def _blocks(record: StoreRecord, path: str) -> dict[str, dict[str, int]]:
    """Return how many elements of each dim one Dask chunk of every array of a group holds."""
    blocks = {}
    for name, array in record.template["groups"][path]["arrays"].items():
        block = dict(zip(array["dims"], array["shards"], strict=True))
        if {"date", "y", "x"} <= block.keys():
            inner = dict(zip(array["dims"], array["chunks"], strict=True))
            cells = _cells_under_a_tile(record, path, shard=block["x"])
            for dim in ("y", "x"):
                block[dim] = min(block[dim], math.ceil(cells / inner[dim]) * inner[dim])
        blocks[name] = block
    return blocks


def _cells_under_a_tile(record: StoreRecord, path: str, *, shard: int) -> int:
    """Return how many cells of a group lie along the edge of a tile of the base grid."""
    groups = record.template["groups"]
    tiles = [units.shards[-1] for units in record.sets if units.group == "base"]
    if not tiles or groups["base"]["transform"] is None or groups[path]["transform"] is None:
        return shard
    factor: float = groups[path]["transform"][0] / groups["base"]["transform"][0]
    return math.ceil(max(tiles) / factor)


def _to_memory_form(ds: xr.Dataset, blocks: Mapping[str, Mapping[str, int]]) -> xr.Dataset:
    coords = {name: _load(coord) for name, coord in ds.coords.items()}
    variables = {name: _in_blocks(ds[name], block) for name, block in blocks.items()}
    return xr.Dataset(variables, coords=coords, attrs=memory_attrs(ds.attrs, where="attributes"))


def _load(coord: xr.DataArray) -> xr.Variable:
    values = coord.values
    if values.dtype.kind in "OT":
        values = np.array(values.tolist(), dtype=str)
    bounds = {key: coord.encoding[key] for key in ("bounds",) if key in coord.encoding}
    return xr.Variable(coord.dims, values, coord.attrs | bounds)


def _in_blocks(da: xr.DataArray, chunks: Mapping[str, int]) -> xr.Variable:
    # A name of its own, because another store may be made at the same path.
    values = da.variable.chunk(chunks, name=f"open-{da.name}-{uuid.uuid4().hex}").data
    if values.dtype.kind == "f":
        values = values.astype(np.float32)  # integers with a scale are decoded to float64
    encoding = {"grid_mapping": CRS_NAME} if {"y", "x"} <= set(da.dims) else {}
    return xr.Variable(da.dims, values, opened_attrs(da), encoding)
