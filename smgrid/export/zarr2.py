"""Zarr format 2 for tools that cannot read format 3: GDAL, QGIS and the netCDF library."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from smgrid.cube.progress import Progress, ProgressFunction
from smgrid.cube.storage import StorePath
from smgrid.export.attributes import array_attrs, file_coords, global_attrs, label_names
from smgrid.export.placing import (
    IDENTITY,
    ExportReport,
    is_there,
    json_identity,
    local_target,
    placing,
)
from smgrid.export.stored import StoredMap, StoredVariable, open_stored
from smgrid.grid import require_north_up

CHUNK = 256  # edge of a chunk in pixels, as in the store
_DIMS = "_ARRAY_DIMENSIONS"  # by which xarray, GDAL and the netCDF library know the dims
# The one compression that every reader has: netCDF builds often lack blosc and zstd.
_CODEC: dict[str, Any] = {"id": "zlib", "level": 5}


def write_zarr2(
    store: StorePath,
    out: str | PathLike[str],
    *,
    group: str | None = None,
    variables: Sequence[str] | None = None,
    dates: Any = None,
    progress: ProgressFunction | None = None,
) -> ExportReport:
    """Write a Zarr format 2 store that GDAL, netCDF and xarray read.

    Parameters
    ----------
    store
        Folder or URL of a complete map, or of a cube with `group`.
    out
        Folder of the new store.
    group, variables, dates
        What to export, see `smgrid.export.stored.open_stored`.
    progress
        Called with a `Progress` after every date of a variable.

    Returns
    -------
    ExportReport
        The store, written now or there already with the same content.

    Raises
    ------
    ConfigError, StoreError
        As `open_stored` and `smgrid.export.placing.is_there`, or a shard of the store is damaged.

    Notes
    -----
    Values are the stored counts in chunks of 256 x 256 pixels of one date, with consolidated
    metadata. The CRS is there as CF grid mapping and as GDAL's ``_CRS``. Memory depends on the
    shard of the store alone.

    GDAL derives the georeferencing from the distances between coordinates, and no attribute tells
    it otherwise: of a map with one row or one column it knows the CRS but not the place. Use COG
    or NetCDF for such a map; xarray reads it correctly.
    """
    stored = open_stored(store, group=group, variables=variables, dates=dates)
    target = local_target(out, store=stored.path)
    layers = list(stored.layers)
    identity = stored.digest(layers)
    if is_there(target, identity, _identity):
        return ExportReport(target, (), (target,))
    with placing(target) as partial:
        root = zarr.open_group(partial, mode="w-", zarr_format=2)
        root.attrs.update({**global_attrs(stored, form="Zarr format 2"), IDENTITY: identity})
        _write_coords(root, stored)
        arrays = {v.name: _create(root, stored, v) for v in stored.variables}
        for done, (variable, position) in enumerate(layers, start=1):
            _fill(arrays[variable.name], stored, variable, position)
            if progress is not None:
                progress(Progress(done, len(layers), group or ""))
        zarr.consolidate_metadata(root.store, zarr_format=2)
    return ExportReport(target, (target,), ())


def _identity(path: Path) -> str | None:
    return json_identity(path / ".zattrs")


def _write_coords(root: zarr.Group, stored: StoredMap) -> None:
    for coord in file_coords(stored):
        values, attrs = coord.values, coord.attrs
        if values.dtype.kind == "O":
            values, attrs = _fixed_width(values), attrs | {"_Encoding": "utf-8"}
        array = root.create_array(
            coord.name,
            shape=values.shape,
            chunks=tuple(max(1, size) for size in values.shape),
            dtype=values.dtype,
            fill_value=None,
            compressors=_CODEC,
            config={"write_empty_chunks": True},
        )
        array[...] = values
        array.attrs.update({**_plain(attrs), _DIMS: list(coord.dims)})


def _fixed_width(texts: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return text as bytes of one length, since GDAL reads no Zarr text of variable length."""
    encoded = [str(text).encode() for text in texts.ravel()]
    width = max([1, *map(len, encoded)])
    return np.array(encoded, f"S{width}").reshape(texts.shape)


def _create(root: zarr.Group, stored: StoredMap, variable: StoredVariable) -> zarr.Array[Any]:
    shape = (*([len(stored.steps)] if variable.has_steps else []), *stored.grid.shape)
    array = root.create_array(
        variable.name,
        shape=shape,
        chunks=(1,) * (len(shape) - 2) + tuple(min(CHUNK, size) for size in shape[-2:]),
        dtype=variable.dtype,
        # Readers take it for missing; a bit mask has no missing value, and all chunks are there.
        fill_value=variable.missing,
        compressors=_CODEC,
        config={"write_empty_chunks": True},
    )
    crs = require_north_up(stored.grid)
    attrs = _plain(array_attrs(variable, labels=label_names(stored, variable)))
    if variable.missing is not None and not np.isnan(variable.missing):
        attrs["_FillValue"] = variable.missing  # the netCDF library does not look at fill_value
    array.attrs.update({**attrs, "_CRS": {"wkt": crs.to_wkt()}, _DIMS: list(variable.dims)})
    return array


def _plain(attrs: dict[str, Any]) -> dict[str, Any]:
    """Return attributes as JSON values."""
    return {
        key: value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        for key, value in attrs.items()
    }


def _fill(
    target: zarr.Array[Any], stored: StoredMap, variable: StoredVariable, position: int | None
) -> None:
    for y, x in variable.windows:
        where = (y, x) if position is None else (position, y, x)
        target[where] = stored.read(variable, position, (y, x))
