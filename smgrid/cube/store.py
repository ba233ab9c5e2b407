"""Cubes and maps in Zarr v3 stores: write them unit by unit, resume, and open them lazily."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import xarray as xr
from zarr.abc.store import Store

from smgrid.cube.checksums import next_part
from smgrid.cube.encoding import json_attrs
from smgrid.cube.failures import Failure, summarise
from smgrid.cube.filling import ATTEMPTS, Plan, fill
from smgrid.cube.finishing import finish
from smgrid.cube.journal import read_journal, write_journal
from smgrid.cube.linking import open_overview, unlink
from smgrid.cube.lock import Lease, writing
from smgrid.cube.opening import open_groups
from smgrid.cube.progress import Progress, ProgressFunction, UnitCounter
from smgrid.cube.provenance import check_inputs, claim_inputs
from smgrid.cube.record import (
    StoreRecord,
    claim_store,
    find_record,
    pending_units,
    read_manifest,
    read_record,
    set_status,
    write_files,
)
from smgrid.cube.storage import (
    StorePath,
    explaining,
    list_keys,
    normalise_path,
    open_store,
)
from smgrid.cube.template import make_template
from smgrid.cube.tiling import DEFAULT_SHARD
from smgrid.errors import ConfigError, IncompleteStoreError, StoreError, UnitsFailedError

__all__ = ["Progress", "ProgressFunction", "WriteReport", "open_cube", "open_map", "write_cube"]


@dataclass(frozen=True)
class WriteReport:
    """What one call of `write_cube` did."""

    path: str
    total: int
    """Units of the store."""
    written: int
    """Units that this call wrote; the others were there already."""
    failed: tuple[Failure, ...] = ()
    """Units that are missing after all attempts, in the report of a `UnitsFailedError`."""
    not_tried: int = 0
    """Units that are missing because all those before them had wrong values, likewise."""


def write_cube(
    data: xr.DataTree | xr.Dataset,
    path: StorePath,
    *,
    shard: int = DEFAULT_SHARD,
    progress: ProgressFunction | None = None,
    manifest: Mapping[str, Any] | None = None,
    attempts: int = ATTEMPTS,
) -> WriteReport:
    """Write a cube or a map to a Zarr v3 store, or go on with one that was interrupted.

    Every unit of work, one shard of one date, is computed and written by itself with the scheduler
    that Dask is set to: memory depends on the unit alone. Units that are there are not computed.
    A unit that fails is tried again when the others are done; one that fails to the end is listed
    in ``_smgrid/failures.jsonl`` of the store, has no shard, and is tried again by the next write.

    Parameters
    ----------
    data
        A cube of nested grids, one group each, or a single Dataset. Dims (time, y, x),
        (date, y, x), (y, x) and those of points; lazy or in memory.
    path
        Folder or URL of the store: new, empty, or begun with the same data.
    shard
        Edge of a shard in pixels, at most 256 or a multiple of it.
    progress
        Called with a `Progress` per group at the start and after every unit.
    manifest
        Provenance to keep beside the data: inputs, catalog, versions, seeds. Its entry
        ``made_from``, such as `map_manifest` gives, is written before any unit; see
        `smgrid.cube.provenance`.
    attempts
        How often a unit is tried, unless its failure is one that cannot pass.

    Returns
    -------
    WriteReport
        How many units there are and how many were written now.

    Raises
    ------
    UnitsFailedError
        Units failed, all others were written; its ``report`` lists them.
    TemplateMismatchError
        The store was begun with other data, or from other inputs as ``made_from`` says; the
        message says what differs.
    StoreInUseError
        Another process writes to the store.
    SchemaError
        A variable has wrong units, dims or type.
    StoreError
        The folder holds something else, cannot be written or is full. Units written before are
        kept: write again to resume.
    """
    check_attempts(attempts)
    groups = _groups(data)
    template = make_template(groups, shard=shard)
    provenance = None if manifest is None else json_attrs(manifest, where="manifest")
    path = normalise_path(path)
    with explaining(path):
        store = open_store(path, "write")
        if read_journal(store) is None:
            # Before the lease, so that nothing is written where nothing may or need be.
            found = find_record(store, path, template.record())
            if found is not None:
                check_inputs(path, read_manifest(store), provenance)
                if _is_done(found, store):
                    return WriteReport(path, found.total, written=0)
        with writing(store, path) as lease:
            resume_update(store)
            record = claim_store(store, path, template)
            rest = claim_inputs(store, record, provenance, groups)
            how: Any = {"lease": lease, "attempts": attempts, "progress": progress}
            return fill_store(groups, store, record, provenance=rest, **how)


def check_attempts(attempts: int) -> None:
    """Raise ConfigError if nothing would be tried."""
    if attempts < 1:
        msg = f"attempts is {attempts}, expected 1 or more"
        raise ConfigError(msg)


def _is_done(record: StoreRecord, store: Store) -> bool:
    return record.status == "complete" and not pending_units(record.sets, list_keys(store))


def resume_update(store: Store) -> None:
    """Carry out what the journal of an interrupted update says."""
    journal = read_journal(store)
    if journal is not None and journal.files:
        write_files(store, journal.files, part=next_part(list_keys(store)))
        write_journal(store, replace(journal, files={}))


def fill_store(
    groups: Mapping[str, xr.Dataset],
    store: Store,
    record: StoreRecord,
    *,
    lease: Lease,
    attempts: int = ATTEMPTS,
    progress: ProgressFunction | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> WriteReport:
    """Write what a claimed store lacks, and close it if nothing is missing any more."""
    plan = Plan(store, record)
    if plan.missing:
        set_status(store, "incomplete")
    elif plan.pending:
        unlink(store)  # what overviews of a map show may be about to change
    counter = UnitCounter(record.sets, plan.pending, progress)
    counter.start()
    written = not_tried = 0
    failed: tuple[Failure, ...] = ()
    if plan.pending:
        how: Any = {"lease": lease, "attempts": attempts, "counter": counter}
        written, failed, not_tried = fill(groups, store, plan, **how)
    report = WriteReport(record.path, record.total, written, failed, not_tried)
    if failed:
        counts = {"written": written, "total": report.total, "not_tried": not_tried}
        text = summarise(record.path, failed, **counts)
        raise UnitsFailedError(text, report=report)
    lease.confirm()
    finish(store, plan, provenance)
    return report


def open_cube(
    path: StorePath, *, incomplete: Literal["refuse", "allow"] = "refuse"
) -> xr.DataTree | xr.Dataset:
    """Open a store lazily, with one Dask chunk per shard, or less of series on coarse grids.

    A store that says that it is complete is believed, so that opening takes a handful of requests;
    `inspect` counts its shards and `verify` reads them.

    Parameters
    ----------
    path
        Folder or URL of the store.
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
        if not record.is_readable or (record.status, incomplete) == ("incomplete", "refuse"):
            pending = pending_units(record.sets, list_keys(store))
            raise IncompleteStoreError(_what_is_missing(record, len(pending)))
        groups = open_groups(store, record)
    if list(groups) == [""]:
        return groups[""]
    return xr.DataTree.from_dict({f"/{name}": ds for name, ds in groups.items()})


def open_map(path: StorePath, *, level: int = 1) -> xr.Dataset:
    """Open a store that holds a single grid, such as a soil-moisture map; see `open_cube`.

    Parameters
    ----------
    path
        Folder or URL of the store.
    level
        Factor of the overview to open; 1 is the map itself.

    Raises
    ------
    ConfigError
        The map has no such overview.
    StoreError
        The store holds a cube of nested grids, or is none or incomplete.
    """
    if level != 1:
        path = normalise_path(path)
        with explaining(path):
            store = open_store(path)
            return open_overview(store, read_record(store, path), level)
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


def _what_is_missing(record: StoreRecord, pending: int) -> str:
    if record.journal is not None:
        return (
            f"{record.path} is incomplete: an update is at work or was interrupted, {pending} of "
            f"{record.total} units are missing; run update_cube again to finish it, or look at "
            "what is there with incomplete='allow'"
        )
    return (
        f"{record.path} is incomplete: {pending} of {record.total} units are missing; write the "
        "same data to it again to resume, or look at what is there with incomplete='allow'"
    )
