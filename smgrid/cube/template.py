"""What a store will hold: groups, arrays, shards, packing, coordinates and attributes.

The template is made before any data is read. Its record is kept in the store and compared with the
template of every later write, so that a store never mixes two things.
"""

import hashlib
import json
import warnings
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from odc.geo.geobox import GeoBox
from zarr.codecs import BloscCodec
from zarr.storage import MemoryStore

from smgrid.cube.coords import CRS_NAME, coordinate_record, disk_coords, group_grid
from smgrid.cube.encoding import (
    CONVENTIONS,
    array_encoding,
    fill_of,
    memory_attrs,
    packing_of,
    variable_attrs,
)
from smgrid.cube.geozarr import geo_attrs
from smgrid.cube.tiling import Shape, check_shard, cut_array, steps_of_a_year
from smgrid.errors import StoreError
from smgrid.schema import Packing, load_variables, validate

FORMAT = 1
"""Version of the conventions; a change of what is written is a new one."""

# On noise-like backscatter, smooth soil moisture and elevation the smallest of blosc's codecs that
# still encodes above 200 MB/s.
CODEC = BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle")

# They may change between two writes of the same data.
_DESCRIPTIVE = frozenset(
    {"title", "summary", "comment", "history", "references", "institution", "license"}
    | {"date_created", "date_modified", "smgrid_catalog_path"}
)
_KINDS = "fiub"
_HASH = ".sha256"


@dataclass(frozen=True)
class ArrayTemplate:
    """One data variable on disk."""

    dims: tuple[str, ...]
    shape: Shape
    chunks: Shape
    """Inner chunks of a shard."""
    shards: Shape
    packing: Packing
    attrs: Mapping[str, Any]

    def record(self) -> dict[str, Any]:
        """Return what must not change."""
        fill = fill_of(self.packing)
        return {
            "dims": list(self.dims),
            "shape": list(self.shape),
            "chunks": list(self.chunks),
            "shards": list(self.shards),
            "fill": "NaN" if np.isnan(fill) else fill,
            "packing": asdict(self.packing),
            "attrs": _compared(self.attrs),
        }


@dataclass(frozen=True)
class GroupTemplate:
    """One group of a store: variables on one grid."""

    grid: GeoBox | None
    arrays: Mapping[str, ArrayTemplate]
    coords: Mapping[Hashable, xr.Variable]
    attrs: Mapping[str, Any]
    """Attributes of the data; those of the store are added on writing."""

    def record(self) -> dict[str, Any]:
        """Return what must not change."""
        grid = self.grid
        return {
            "crs": None if grid is None or grid.crs is None else grid.crs.to_wkt(),
            "transform": None if grid is None else [float(number) for number in grid.affine[:6]],
            "attrs": _compared(self.attrs),
            "coords": {str(name): coordinate_record(v) for name, v in self.coords.items()},
            "arrays": {name: array.record() for name, array in self.arrays.items()},
        }


@dataclass(frozen=True)
class StoreTemplate:
    """All groups of a store by path; the root is ""."""

    groups: Mapping[str, GroupTemplate]

    def record(self) -> dict[str, Any]:
        """Return what must not change between two writes to one store, as JSON values."""
        content = {
            "smgrid_format": FORMAT,
            "codec": CODEC.to_dict(),
            "groups": {path: group.record() for path, group in self.groups.items()},
        }
        # A round trip, so that it equals what is read back.
        record: dict[str, Any] = json.loads(json.dumps(content, allow_nan=False))
        return record

    def files(self) -> dict[str, bytes]:
        """Return the metadata and coordinates of an empty store by key, the root's last."""
        content: dict[str, Any] = {}
        store = MemoryStore(content)
        for path, group in self.groups.items():
            _group_dataset(group, is_root=path == "").to_zarr(
                store,
                group=path,
                mode="a",
                compute=False,
                consolidated=False,
                zarr_format=3,
                write_empty_chunks=True,
            )
        with warnings.catch_warnings():
            # zarr says that other libraries need not read consolidated metadata; they may skip it.
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            zarr.consolidate_metadata(store)
        ordered = sorted(content, key=lambda key: (key == "zarr.json", key))
        return {key: content[key].to_bytes() for key in ordered}


def make_template(
    groups: Mapping[str, xr.Dataset],
    *,
    shard: int,
    like: Mapping[str, Any] | None = None,
) -> StoreTemplate:
    """Return the template of a store that will hold these Datasets by group path.

    Parameters
    ----------
    groups
        The data, lazy or in memory.
    shard
        Edge of a shard of scenes, maps and static variables in pixels.
    like
        Record of a template whose chunks and shards are kept, whatever the sizes are now.

    Raises
    ------
    SchemaError
        If a variable of the schema is not as the schema says.
    StoreError
        If something cannot be stored: no CRS, a type or an attribute without a form on disk.
    """
    check_shard(shard)
    known = {} if like is None else like["groups"]
    return StoreTemplate(
        {
            path: _group_template(path, ds, shard, known.get(path, {}).get("arrays", {}))
            for path, ds in groups.items()
        }
    )


def digest_of(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a template record in canonical JSON."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return in words what differs between the record of a store and that of a write."""
    old, new = _flatten(stored), _flatten(wanted)
    keys = [
        key for key in sorted(old.keys() | new.keys()) if old.get(key, ...) != new.get(key, ...)
    ]
    # A hash says nothing to people where size or ends of the same coordinate say more.
    told = {key.rpartition(".")[0] for key in keys if not key.endswith(_HASH)}
    return [
        f"{key}: the store has {_shown(old, key)}, this write {_shown(new, key)}"
        for key in keys
        if not (key.endswith(_HASH) and key.removesuffix(_HASH) in told)
    ]


def _shown(values: Mapping[str, Any], key: str) -> str:
    text = repr(values[key]) if key in values else "nothing"
    return text if len(text) <= 120 else f"{text[:117]}..."


def _flatten(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {key: value}
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= _flatten(item, f"{key}.{name}" if key else str(name))
    return flat


def _compared(attrs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in attrs.items() if key not in _DESCRIPTIVE}


def _group_template(
    path: str, ds: xr.Dataset, shard: int, like: Mapping[str, Any]
) -> GroupTemplate:
    where = f"/{path}"
    variables = load_variables()
    validate(ds[[name for name in ds.data_vars if name in variables]])
    grid = group_grid(ds, where=where)
    coords = disk_coords(ds, grid, where=where)
    year_steps = steps_of_a_year(coords["date"].values if "date" in coords else None)
    arrays = {}
    for name, array in ds.data_vars.items():
        _check_array(array, where=f"{where}, {name}")
        kept = like.get(str(name), {})
        if kept.get("dims") == list(array.dims):
            chunks, shards = tuple(kept["chunks"]), tuple(kept["shards"])
        else:
            chunks, shards = cut_array(array.dims, array.shape, shard=shard, year_steps=year_steps)
        arrays[str(name)] = ArrayTemplate(
            dims=tuple(map(str, array.dims)),
            shape=array.shape,
            chunks=chunks,
            shards=shards,
            packing=packing_of(str(name), array.dtype),
            attrs=variable_attrs(array, variables.get(str(name)), where=f"{where}, {name}"),
        )
    return GroupTemplate(
        grid=grid, arrays=arrays, coords=coords, attrs=memory_attrs(ds.attrs, where=where)
    )


def _check_array(array: xr.DataArray, *, where: str) -> None:
    if array.ndim == 0:
        msg = f"{where} has no dims; make it an attribute or a coordinate"
        raise StoreError(msg)
    if array.dtype.kind not in _KINDS:
        msg = f"{where} is {array.dtype}, expected numbers; encode it as integers or drop it"
        raise StoreError(msg)


def _group_dataset(group: GroupTemplate, *, is_root: bool) -> xr.Dataset:
    attrs = {**group.attrs, "Conventions": CONVENTIONS}
    if group.grid is not None:
        attrs |= geo_attrs(group.grid)
    if is_root:
        attrs |= {"smgrid_format": FORMAT, "smgrid_status": "incomplete"}
    variables = {name: _empty_variable(array) for name, array in group.arrays.items()}
    # As coordinates, bounds would be listed as such of the whole group, which CF does not know.
    bounds = {name: c for name, c in group.coords.items() if c.ndim > 1}
    coords = {name: c for name, c in group.coords.items() if name not in bounds}
    return xr.Dataset(variables | bounds, coords=coords, attrs=attrs)


def _empty_variable(array: ArrayTemplate) -> xr.Variable:
    """Return a lazy variable that xarray writes the metadata of; its values are never computed."""
    dtype = np.dtype(array.packing.dtype)
    in_memory = dtype if array.packing.scale is None else np.dtype("float32")
    encoding = array_encoding(array.packing) | {
        "chunks": array.chunks,
        "shards": array.shards,
        "compressors": (CODEC,),
    }
    if {"y", "x"} <= set(array.dims):
        encoding["grid_mapping"] = CRS_NAME
    empty = da.zeros(array.shape, chunks=array.shape, dtype=in_memory)
    return xr.Variable(array.dims, empty, dict(array.attrs), encoding)
