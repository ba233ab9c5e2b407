"""NetCDF-4 files after CF-1.11: one of all dates, or one per year, month or day."""

from collections.abc import Callable, Sequence
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import netCDF4
import numpy as np

from smgrid.cube.progress import Progress, ProgressFunction
from smgrid.cube.storage import StorePath
from smgrid.errors import ConfigError
from smgrid.export.attributes import (
    OF_STORED_TYPE,
    FileCoord,
    array_attrs,
    file_coords,
    global_attrs,
    json_text,
    label_names,
)
from smgrid.export.placing import IDENTITY, ExportReport, is_there, local_target, placing
from smgrid.export.stored import StoredMap, StoredVariable, open_stored

Per = Literal["all", "year", "month", "day"]

CHUNK = 256  # edge of a chunk in pixels, as in the store
_CHUNK_CACHE = 4 * 2**20  # bytes a variable: every chunk is written once, whole
_NAMES: dict[str, str] = {"year": "%Y", "month": "%Y%m", "day": "%Y%m%d"}


def write_netcdf(
    store: StorePath,
    out: str | PathLike[str],
    *,
    group: str | None = None,
    variables: Sequence[str] | None = None,
    dates: Any = None,
    per: Per = "all",
    prefix: str = "sm",
    progress: ProgressFunction | None = None,
) -> ExportReport:
    """Write NetCDF-4 files that follow CF-1.11 and ACDD-1.3.

    Parameters
    ----------
    store
        Folder or URL of a complete map, or of a cube with `group`.
    out
        The file, or the folder of the files if there is one `per` year, month or day.
    group, variables, dates
        What to export, see `smgrid.export.stored.open_stored`.
    per
        What one file holds.
    prefix
        Files in a folder are ``<prefix>_2024.nc``, ``<prefix>_202401.nc`` or
        ``<prefix>_20240105.nc``.
    progress
        Called with a `Progress` at the start and after every date of a variable.

    Returns
    -------
    ExportReport
        Files that were written, and those that were there already with the same content.

    Raises
    ------
    ConfigError, StoreError
        As `open_stored` and `smgrid.export.placing.is_there`, or a shard of the store is damaged.

    Notes
    -----
    Values are the stored counts, with scale, offset and fill value as attributes, deflated in
    chunks of 256 x 256 pixels. Memory depends on the shard of the store alone.
    """
    stored = open_stored(store, group=group, variables=variables, dates=dates)
    target = local_target(out, store=stored.path)
    parts = {target: stored} if per == "all" else _split(stored, target, per, prefix)
    identities = {path: part.digest(list(part.layers)) for path, part in parts.items()}
    kept = [path for path, identity in identities.items() if is_there(path, identity, _identity)]
    written = [path for path in parts if path not in kept]
    total, done = sum(len(list(parts[path].layers)) for path in written), count(1)

    def tell() -> None:
        if progress is not None:
            progress(Progress(next(done), total, group or ""))

    for path in written:
        _write(path, parts[path], identities[path], tell)
    return ExportReport(target, tuple(written), tuple(kept))


def _write(path: Path, stored: StoredMap, identity: str, tell: Callable[[], None]) -> None:
    """Write one file; tells after every layer."""
    with placing(path) as partial, netCDF4.Dataset(partial, "x", format="NETCDF4") as nc:
        _describe(nc, stored, identity)
        for variable, position in stored.layers:
            _fill(nc, stored, variable, position)
            tell()


def _split(stored: StoredMap, folder: Path, per: Per, prefix: str) -> dict[Path, StoredMap]:
    if stored.time_dim is None:
        names = ", ".join(variable.name for variable in stored.variables)
        msg = f"one file per {per} needs dates, but {names} have none; export all into one file"
        raise ConfigError(msg)
    labels = stored.times.strftime(_NAMES[per])
    return {
        folder / f"{prefix}_{label}.nc": stored.select(np.flatnonzero(labels == label).tolist())
        for label in dict.fromkeys(labels)
    }


def _identity(path: Path) -> str | None:
    with netCDF4.Dataset(path) as nc:
        found: str | None = getattr(nc, IDENTITY, None)
    return found


def _describe(nc: netCDF4.Dataset, stored: StoredMap, identity: str) -> None:
    attrs = {**global_attrs(stored, form="NetCDF"), IDENTITY: identity}
    nc.setncatts({key: json_text(value) for key, value in attrs.items()})
    sizes = dict(zip(("y", "x"), stored.grid.shape, strict=True))
    if stored.time_dim is not None:
        sizes = {stored.time_dim: len(stored.steps), **sizes}
    coords = file_coords(stored)
    for coord in coords:
        sizes |= dict(zip(coord.dims, coord.values.shape, strict=True))
    for dim, size in sizes.items():
        nc.createDimension(dim, size)
    for coord in coords:
        _write_coord(nc, coord)
    for variable in stored.variables:
        _create(nc, variable, labels=label_names(stored, variable))


def _write_coord(nc: netCDF4.Dataset, coord: FileCoord) -> None:
    kind: Any = str if coord.values.dtype.kind == "O" else coord.values.dtype
    variable = nc.createVariable(coord.name, kind, coord.dims, fill_value=None)
    variable.setncatts({key: json_text(value) for key, value in coord.attrs.items()})
    variable[...] = coord.values


def _create(nc: netCDF4.Dataset, stored: StoredVariable, *, labels: Sequence[str]) -> None:
    sizes = [len(nc.dimensions[dim]) for dim in stored.dims]
    variable = nc.createVariable(
        stored.name,
        stored.dtype,
        stored.dims,
        compression="zlib",
        complevel=4,
        shuffle=True,
        chunksizes=[1] * (len(sizes) - 2) + [min(CHUNK, size) for size in sizes[-2:]],
        chunk_cache=_CHUNK_CACHE,
        fill_value=False if stored.missing is None else stored.missing,
    )
    variable.set_auto_maskandscale(False)
    attrs = array_attrs(stored, labels=labels)
    variable.setncatts({key: _typed(key, value, stored) for key, value in attrs.items()})


def _typed(key: str, value: Any, stored: StoredVariable) -> Any:
    """Give limits and flags the type of the values on disk, as CF demands."""
    return np.asarray(value, stored.dtype) if key in OF_STORED_TYPE else json_text(value)


def _fill(
    nc: netCDF4.Dataset, stored: StoredMap, variable: StoredVariable, position: int | None
) -> None:
    target = nc[variable.name]
    for y, x in variable.windows:
        values = stored.read(variable, position, (y, x))
        if position is None:
            target[y, x] = values
        else:
            target[position, y, x] = values
