"""Cubes and maps in Zarr v3 stores: write them unit by unit, resume, and open them lazily."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import xarray as xr

import smgrid
from smgrid.cube.coords import TIME_DIMS
from smgrid.cube.encoding import json_attrs
from smgrid.cube.opening import open_groups
from smgrid.cube.progress import Progress, ProgressFunction, UnitCounter
from smgrid.cube.record import (
    MANIFEST_KEY,
    StoreRecord,
    claim_store,
    pending_units,
    read_record,
    set_status,
)
from smgrid.cube.storage import (
    StorePath,
    delete_keys,
    explain_os_error,
    explaining,
    list_keys,
    normalise_path,
    open_store,
    write_json,
)
from smgrid.cube.template import make_template
from smgrid.cube.tiling import DEFAULT_SHARD, Index, PendingUnits, UnitSet, dates_of
from smgrid.cube.writing import UnitError, build_flags, compute_flags
from smgrid.errors import IncompleteStoreError, SchemaError, SmgridError, StoreError

__all__ = ["Progress", "ProgressFunction", "WriteReport", "open_cube", "open_map", "write_cube"]

_PARTIAL = ".partial"  # what a killed process leaves of the file that it was writing


@dataclass(frozen=True)
class WriteReport:
    """What one call of `write_cube` did."""

    path: str
    total: int
    """Units of the store."""
    written: int
    """Units that this call wrote; the others were there already."""


def write_cube(
    data: xr.DataTree | xr.Dataset,
    path: StorePath,
    *,
    shard: int = DEFAULT_SHARD,
    progress: ProgressFunction | None = None,
    manifest: Mapping[str, Any] | None = None,
) -> WriteReport:
    """Write a cube or a map to a Zarr v3 store, or go on with one that was interrupted.

    Every unit of work, one shard of one date, is computed and written by itself with the scheduler
    that Dask is set to: memory depends on the unit alone. Units that are there are not computed.

    Parameters
    ----------
    data
        A cube of nested grids, one group each, or a single Dataset. Dims (time, y, x),
        (date, y, x), (y, x) and those of points; lazy or in memory.
    path
        Folder of the store: new, empty, or begun with the same data.
    shard
        Edge of a shard in pixels, at most 256 or a multiple of it.
    progress
        Called with a `Progress` per group at the start and after every unit.
    manifest
        Provenance to keep beside the data: inputs, catalog, versions, seeds.

    Returns
    -------
    WriteReport
        How many units there are and how many were written now.

    Raises
    ------
    TemplateMismatchError
        The store was begun with other data; the message says what differs.
    SchemaError
        A variable has wrong units, dims or type, or a value out of its valid range.
    StoreError
        The folder holds something else, cannot be written or is full, or a unit failed. Units
        written before are kept: write again to resume.
    """
    groups = _groups(data)
    template = make_template(groups, shard=shard)
    provenance = json_attrs(manifest or {}, where="manifest")
    path = normalise_path(path)
    with explaining(path):
        store = open_store(path, "write")
        record = claim_store(store, path, template)
        keys = list_keys(store)
        pending = pending_units(record.sets, keys)
        if not pending and record.status == "complete":
            return WriteReport(path=path, total=record.total, written=0)
        if record.status == "complete":
            set_status(store, "incomplete")
        _write_pending(groups, record, pending, progress)
        delete_keys(store, [key for key in keys if key.endswith(_PARTIAL)])
        write_json(store, MANIFEST_KEY, provenance | _versions(record))
        set_status(store, "complete")
    return WriteReport(path=path, total=record.total, written=len(pending))


def open_cube(
    path: StorePath, *, incomplete: Literal["refuse", "allow"] = "refuse"
) -> xr.DataTree | xr.Dataset:
    """Open a store lazily, with one Dask chunk per shard.

    Parameters
    ----------
    path
        Folder of the store.
    incomplete
        What to do with a store whose units are not all there: ``"allow"`` shows missing units as
        missing values (NaN, for bit masks all bits).

    Returns
    -------
    xr.DataTree or xr.Dataset
        What was written: float32 with NaN for missing values, bit masks as integers, coordinates
        in memory, the CRS in ``spatial_ref``.

    Raises
    ------
    IncompleteStoreError
        Writing was interrupted.
    StoreError
        There is no store of smgrid at `path`.
    """
    path = normalise_path(path)
    with explaining(path):
        store = open_store(path)
        record = read_record(store, path)
        if record.status == "created" or (record.status, incomplete) == ("incomplete", "refuse"):
            pending = pending_units(record.sets, list_keys(store))
            raise IncompleteStoreError(_what_is_missing(record, len(pending)))
        groups = open_groups(store, record)
    if list(groups) == [""]:
        return groups[""]
    return xr.DataTree.from_dict({f"/{name}": ds for name, ds in groups.items()})


def open_map(path: StorePath) -> xr.Dataset:
    """Open a store that holds a single grid, such as a soil-moisture map; see `open_cube`.

    Raises
    ------
    StoreError
        The store holds a cube of nested grids, or is none or incomplete.
    """
    opened = open_cube(path)
    if isinstance(opened, xr.Dataset):
        return opened
    raise StoreError(
        f"{normalise_path(path)} holds a cube of the grids {', '.join(opened.children)}, expected "
        "a map on one grid; open it with open_cube"
    )


def _groups(data: xr.DataTree | xr.Dataset) -> dict[str, xr.Dataset]:
    if isinstance(data, xr.Dataset):
        return {"": data}
    return {node.path.strip("/"): node.to_dataset() for node in data.subtree}


def _write_pending(
    groups: Mapping[str, xr.Dataset],
    record: StoreRecord,
    pending: PendingUnits,
    progress: ProgressFunction | None,
) -> None:
    counter = UnitCounter(record.sets, pending, progress)
    counter.start()
    if not pending:
        return
    flags = build_flags(groups, pending, path=record.path, digest=record.digest)
    try:
        compute_flags(flags, counter.count)
    except UnitError as failure:
        error = failure.error
        units = [_label(groups, *pending[place]) for place in failure.places[:4]]
        msg = (
            f"{'one of ' if len(units) > 1 else ''}{'; '.join(units) or record.path}: "
            f"{_reason(error, record.path).rstrip('.')}. {counter.written} of {len(pending)} "
            f"pending units were written; {_cure(error)}"
        )
        kind = type(error) if isinstance(error, SmgridError) else StoreError
        raise kind(msg) from error


def _versions(record: StoreRecord) -> dict[str, str]:
    return {"smgrid_version": smgrid.__version__, "smgrid_template": record.digest}


def _label(groups: Mapping[str, xr.Dataset], units: UnitSet, index: Index) -> str:
    coords = groups[units.group].coords
    steps = {dim: dates_of(coords[dim].values) for dim in TIME_DIMS if dim in coords}
    return units.label(index, steps)


def _reason(error: BaseException, path: str) -> str:
    if isinstance(error, OSError):
        return explain_os_error(error, path)
    if isinstance(error, SmgridError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _cure(error: BaseException) -> str:
    if isinstance(error, SchemaError):
        return "others may be wrong as well, so write to a new path when the input is corrected"
    return "write again to resume"


def _what_is_missing(record: StoreRecord, pending: int) -> str:
    return (
        f"{record.path} is incomplete: {pending} of {record.total} units are missing; write the "
        "same data to it again to resume, or look at what is there with incomplete='allow'"
    )
