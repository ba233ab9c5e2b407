"""What an export reads: one grid of a store, its values as they are stored, window by window.

Exports copy counts, not numbers: a packed value is never decoded and packed again, so that the
integers of an export are those of the store.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
import zarr
from odc.geo.geobox import GeoBox
from zarr.buffer import cpu
from zarr.core.array import AsyncArray
from zarr.storage import MemoryStore
from zarr.storage import StorePath as ArrayPlace

from smgrid.cube.checksums import SUMS_KEY, read_sums
from smgrid.cube.coords import TIME_DIMS
from smgrid.cube.encoding import ENCODING_ATTRS, array_encoding
from smgrid.cube.record import read_record
from smgrid.cube.shards import digest as sum_of
from smgrid.cube.shards import shard_key
from smgrid.cube.storage import StorePath, explaining, normalise_path, open_store, read_bytes
from smgrid.cube.store import open_cube
from smgrid.cube.template import digest_of
from smgrid.errors import ConfigError, StoreError
from smgrid.grid import require_north_up
from smgrid.schema import Packing
from smgrid.windows import Period

Window = tuple[slice, slice]
"""Rows and columns."""

_FORM = 2  # what exports say about the same values; a higher number makes earlier ones others
_BOOL_ATTRS = {"flag_values": [0, 1], "flag_meanings": "false true"}


@dataclass(frozen=True)
class StoredVariable:
    """One variable of a store, read as it is stored."""

    path: str
    """Of the store."""
    name: str
    dims: tuple[str, ...]
    """``("time", "y", "x")``, ``("date", "y", "x")`` or ``("y", "x")``."""
    packing: Packing
    attrs: dict[str, Any]
    """Of the values on disk, without scale, offset and fill value."""
    array: zarr.Array[Any]
    sums: Mapping[int, Mapping[str, str]]
    """SHA-256 of the shards by tile, by index along the dates; static ones are at 0."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type on disk; truth values are bytes, since no form of export but Zarr has them."""
        dtype = np.dtype(self.packing.dtype)
        return np.dtype(np.uint8) if dtype.kind == "b" else dtype

    @property
    def missing(self) -> float | int | None:
        """The stored value that means missing; ``None`` for bit masks and classes."""
        value: float | int | None = array_encoding(self.packing).get("_FillValue")
        return value

    @property
    def is_quantity(self) -> bool:
        """Whether values may be averaged, unlike those of bit masks and classes."""
        return self.missing is not None

    @property
    def has_steps(self) -> bool:
        """Whether there is one layer per date."""
        return len(self.dims) == 3

    @property
    def windows(self) -> Iterator[Window]:
        """Windows that together cover the grid, each of one shard of a layer."""
        edges = self.array.shards or self.array.chunks
        for y in _parts(self.array.shape[-2], edges[-2]):
            for x in _parts(self.array.shape[-1], edges[-1]):
                yield y, x

    def read(self, step: int | None, window: Window) -> npt.NDArray[Any]:
        """Return the stored values (y, x) of one of `windows`, of one date or ``None``.

        Raises
        ------
        StoreError
            The bytes of the shard are not those that were written.
        """
        edges = self.array.shards or self.array.chunks
        where = window if step is None else (step, *window)
        starts = (part.start if isinstance(part, slice) else part for part in where)
        index = tuple(start // edge for start, edge in zip(starts, edges, strict=True))
        values: Any = self._shard(index)[where]
        return np.asarray(values).astype(self.dtype, copy=False)

    def _shard(self, index: tuple[int, ...]) -> zarr.Array[Any]:
        """Return the array with one shard only, in memory: what is decoded is what was checked."""
        key = shard_key(self.array.path, index)
        content = read_bytes(self.array.store, key)
        step, tile = _split_index(index)
        if content is None or sum_of(content) != self.sums[step][tile]:
            what = "is not there" if content is None else "is not what was written to it"
            msg = (
                f"{self.path}: the shard {key} {what}, so that an export would be wrong; "
                "`smgrid verify` lists what is damaged and `smgrid mend` deletes it; write the "
                "same data to the store again, which adds what is missing, then export"
            )
            raise StoreError(msg)
        memory = MemoryStore({key: cpu.Buffer.from_bytes(content)})
        place = ArrayPlace(memory, self.array.path)
        alone: Any = AsyncArray(metadata=self.array.metadata, store_path=place)
        return zarr.Array(alone)

    def digest(self, step: int | None) -> str:
        """Return what identifies the values of one date: the sums of the shards they are in."""
        edges = self.array.shards or self.array.chunks
        return digest_of(self.sums[0 if step is None else step // edges[0]])


@dataclass(frozen=True)
class StoredMap:
    """One grid of a store and what was selected of it."""

    path: str
    grid: GeoBox
    coords: xr.Dataset
    """Coordinates in memory and attributes of the group; ``time`` or ``date`` is selected."""
    variables: tuple[StoredVariable, ...]
    steps: tuple[int, ...]
    """Positions of the selected dates in the store."""
    time_dim: str | None
    """``time`` or ``date``; ``None`` if all variables are static."""

    @property
    def times(self) -> pd.DatetimeIndex:
        """Selected dates, UTC."""
        return pd.DatetimeIndex([] if self.time_dim is None else self.coords[self.time_dim].values)

    @property
    def bounds(self) -> str | None:
        """Name of the coordinate that holds both ends of the steps of a regular product."""
        if self.time_dim is None:
            return None
        name = self.coords[self.time_dim].attrs.get("bounds")
        return str(name) if name in self.coords.coords else None

    @property
    def ends(self) -> pd.DatetimeIndex | None:
        """When the selected steps of a regular product end, UTC; ``None`` for acquisitions."""
        return (
            None if self.bounds is None else pd.DatetimeIndex(self.coords[self.bounds].values[:, 1])
        )

    @property
    def span(self) -> tuple[pd.Timestamp, pd.Timestamp]:
        """First and last moment of the selected dates, UTC; there must be one."""
        last = self.times if self.ends is None else self.ends
        return self.times[0], last[-1]

    @property
    def layers(self) -> Iterator[tuple[StoredVariable, int | None]]:
        """Every variable with each position in `steps`, ``None`` for a static one."""
        for variable in self.variables:
            positions: Sequence[int | None] = range(len(self.steps))
            for position in positions if variable.has_steps else (None,):
                yield variable, position

    def read(
        self, variable: StoredVariable, position: int | None, window: Window
    ) -> npt.NDArray[Any]:
        """Return the stored values (y, x) of a window of a layer, see `layers`."""
        with explaining(self.path):
            return variable.read(None if position is None else self.steps[position], window)

    def at(self, position: int | None) -> dict[str, Any]:
        """Return the coordinates of one date, such as ``platform``, as Python values."""
        if self.time_dim is None or position is None:
            return {}
        one = self.coords.isel({self.time_dim: position})
        names = [n for n in self.coords.coords if self.coords[n].dims == (self.time_dim,)]
        return {str(n): one[n].item() for n in names if n != self.time_dim}

    def digest(self, layers: Sequence[tuple[StoredVariable, int | None]]) -> str:
        """Return what identifies the content of an export of these layers."""
        return digest_of(
            {
                "form": _FORM,
                "crs": require_north_up(self.grid).to_wkt(),
                "transform": [float(number) for number in self.grid.affine[:6]],
                "shape": list(self.grid.shape),
                "attrs": {str(key): str(value) for key, value in self.coords.attrs.items()},
                "layers": [
                    {
                        "name": variable.name,
                        "attrs": {key: str(value) for key, value in variable.attrs.items()},
                        "time": None if p is None else str(self.times[p]),
                        "end": None if p is None or self.ends is None else str(self.ends[p]),
                        "coords": {key: str(value) for key, value in self.at(p).items()},
                        "values": variable.digest(None if p is None else self.steps[p]),
                    }
                    for variable, p in layers
                ],
            }
        )

    def select(self, positions: Sequence[int]) -> "StoredMap":
        """Return the same with some of the dates only."""
        picked = tuple(self.steps[i] for i in positions)
        dim = self.time_dim
        coords = self.coords if dim is None else self.coords.isel({dim: list(positions)})
        return StoredMap(self.path, self.grid, coords, self.variables, picked, dim)


def open_stored(
    path: StorePath,
    *,
    group: str | None = None,
    variables: Sequence[str] | None = None,
    dates: Any = None,
) -> StoredMap:
    """Open one grid of a complete store to copy its values as they are stored.

    Parameters
    ----------
    path
        Folder or URL of a map, or of a cube with `group`.
    group
        Which grid of a cube, for instance ``"base"``.
    variables
        Names; default: all.
    dates
        First and last day (UTC, inclusive); default: all.

    Raises
    ------
    ConfigError
        A cube without a group, an unknown group or variable, no date in the period.
    IncompleteStoreError, StoreError
        The store is not complete, not one of smgrid's, or has no grid.
    """
    path = normalise_path(path)
    ds = _open_group(path, group)
    grid = ds.odc.geobox
    if grid is None:
        msg = f"{path} has no grid (dims {', '.join(map(str, ds.dims))}), expected y and x with one"
        raise StoreError(msg)
    names = _check_names(path, ds, variables)
    time_dim = next((dim for dim in TIME_DIMS if any(dim in ds[name].dims for name in names)), None)
    chosen = None if time_dim is None else _choose(path, ds[time_dim], dates)
    coords = ds.drop_vars(list(ds.data_vars))
    if time_dim is not None:
        coords = coords.isel({time_dim: chosen})
    return StoredMap(
        path=path,
        grid=grid,
        coords=coords,
        variables=tuple(_open_variables(path, group or "", names)),
        steps=() if chosen is None else tuple(int(i) for i in chosen),
        time_dim=time_dim,
    )


def _open_group(path: str, group: str | None) -> xr.Dataset:
    opened = open_cube(path)
    if isinstance(opened, xr.Dataset):
        if group is not None:
            msg = f"{path} is a map on one grid, it has no group {group!r}; leave the group out"
            raise ConfigError(msg)
        return opened
    known = ", ".join(opened.children)
    if group is None:
        msg = f"{path} is a cube of the grids {known}, expected a map; name one as the group"
        raise ConfigError(msg)
    if group not in opened.children:
        msg = f"{path} has no group {group!r}; it has {known}"
        raise ConfigError(msg)
    return opened[group].to_dataset()


def _check_names(path: str, ds: xr.Dataset, wanted: Sequence[str] | None) -> list[str]:
    allowed = {("y", "x"), *((dim, "y", "x") for dim in TIME_DIMS)}
    known = [str(name) for name, da in ds.data_vars.items() if da.dims in allowed]
    names = known if wanted is None else list(dict.fromkeys(wanted))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        what = ", ".join(map(repr, unknown)) or "variable on a grid"
        msg = f"{path} has no {what}; it has {', '.join(known) or 'none'}"
        raise ConfigError(msg)
    return names


def _choose(path: str, times: xr.DataArray, dates: Any) -> npt.NDArray[np.int64]:
    index = pd.DatetimeIndex(times.values)
    if dates is None:
        return np.arange(index.size)
    period = Period.parse(dates)
    inside = (index >= period.start) & (index < period.end + pd.Timedelta(days=1))
    if not inside.any():
        msg = (
            f"{path} has no date from {period.start:%Y-%m-%d} to {period.end:%Y-%m-%d}; its "
            f"{index.size} dates are from {index[0]:%Y-%m-%d} to {index[-1]:%Y-%m-%d}"
        )
        raise ConfigError(msg)
    return np.flatnonzero(inside)


def _open_variables(path: str, group: str, names: Sequence[str]) -> Iterator[StoredVariable]:
    store = open_store(path)
    arrays = read_record(store, path).template["groups"][group]["arrays"]
    sums = read_sums(store, [])
    root = zarr.open_group(store, mode="r", path=group)
    for name in names:
        array = root[name]
        if not isinstance(array, zarr.Array):
            msg = f"{path}: {name} is no array; copy the store again"
            raise StoreError(msg)
        known = _BOOL_ATTRS if array.dtype.kind == "b" else {}
        yield StoredVariable(
            path=path,
            name=name,
            dims=tuple(arrays[name]["dims"]),
            packing=Packing(**arrays[name]["packing"]),
            attrs=known | {k: v for k, v in array.attrs.items() if k not in ENCODING_ATTRS},
            array=array,
            sums=_shard_sums(path, sums, f"{group}/{name}" if group else name, array),
        )


def _shard_sums(
    path: str, sums: Mapping[str, str], array_path: str, array: zarr.Array[Any]
) -> dict[int, dict[str, str]]:
    edges = array.shards or array.chunks
    counts = [-(-size // edge) for size, edge in zip(array.shape, edges, strict=True)]
    found: dict[int, dict[str, str]] = {}
    for index in np.ndindex(*counts):
        key = shard_key(array_path, index)
        if key not in sums:
            msg = (
                f"{path}: {SUMS_KEY} does not know {key}, so that an export could not be told "
                "from one of other values; copy the store again"
            )
            raise StoreError(msg)
        step, tile = _split_index(index)
        found.setdefault(step, {})[tile] = sums[key]
    return found


def _split_index(index: tuple[int, ...]) -> tuple[int, str]:
    """Return where the sum of a shard is: by index along the dates and by tile."""
    step, tile = (index[0], index[1:]) if len(index) == 3 else (0, index)
    return step, str(tile)


def _parts(size: int, edge: int) -> Iterator[slice]:
    edges = [*range(0, size, edge), size]
    yield from (slice(low, high) for low, high in pairwise(edges))
