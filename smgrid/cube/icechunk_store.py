"""Cubes and maps in icechunk repositories: one commit per date, every one of them a snapshot.

The arrays, shards and bytes of a snapshot are those of `write_cube`. A writer that dies leaves the
branch at the last date that was committed; the next one goes on from there. One process commits:
on a file system nothing keeps two from losing each other's commits, in a bucket the second is told.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import xarray as xr

from smgrid.cube.coords import TIME_DIMS
from smgrid.cube.encoding import json_attrs
from smgrid.cube.icechunk_commits import TEMPLATE_ATTR, Committer, root_attrs
from smgrid.cube.icechunk_repo import (
    explaining_icechunk,
    make_repository,
    normalise_place,
    open_repository,
)
from smgrid.cube.opening import open_groups
from smgrid.cube.progress import ProgressFunction, UnitCounter
from smgrid.cube.record import StoreRecord
from smgrid.cube.storage import StorePath, explain_os_error
from smgrid.cube.template import make_template
from smgrid.cube.tiling import DEFAULT_SHARD, Index, UnitSet, dates_of, unit_sets
from smgrid.errors import IncompleteStoreError, SmgridError, StoreError

__all__ = ["IcechunkReport", "Snapshot", "list_snapshots", "open_icechunk", "write_icechunk"]

Places = list[int]


@dataclass(frozen=True)
class IcechunkReport:
    """What one call of `write_icechunk` did."""

    path: str
    branch: str
    snapshot: str
    """Id of the last snapshot of the branch."""
    total: int
    """Units of the store."""
    written: int
    """Units that this call wrote."""
    commits: int
    """Snapshots that this call made."""


@dataclass(frozen=True)
class Snapshot:
    """One commit of a repository."""

    id: str
    written_at: datetime
    message: str
    """The date that it added, or what else it did."""


def write_icechunk(
    data: xr.DataTree | xr.Dataset,
    path: StorePath,
    *,
    branch: str = "main",
    shard: int = DEFAULT_SHARD,
    progress: ProgressFunction | None = None,
    manifest: Mapping[str, Any] | None = None,
) -> IcechunkReport:
    """Write a cube or a map to an icechunk repository, or go on with one that was interrupted.

    The units of one date are computed with the scheduler that Dask is set to, every task on a fork
    of the session, and committed together. A unit that fails ends the write after earlier dates.

    Parameters
    ----------
    data, shard, manifest
        As for `write_cube`; the manifest is kept with the last commit.
    path
        Folder or ``s3://`` URL of the repository: new, or begun with the same data.
    branch
        Branch to commit to.
    progress
        Called with a `Progress` per group at the start, and per unit after every commit.

    Returns
    -------
    IcechunkReport
        How many units there are, how many were written now, and the last snapshot.

    Raises
    ------
    MissingDependencyError
        icechunk is not installed.
    TemplateMismatchError
        The branch was begun with other data; the message says what differs.
    SchemaError
        A variable has wrong units, dims or type, or a value out of its valid range.
    StoreError
        It cannot be written, a unit failed, or somebody else has committed: write again to resume.
    """
    groups = _groups(data)
    template = make_template(groups, shard=shard)
    provenance = json_attrs(manifest or {}, where="manifest")
    place = normalise_place(path)
    writer = Committer(make_repository(place), branch, place)
    writer.begin(template)
    sets = unit_sets(template.record()["groups"])
    present = writer.present(sets)
    done = {units: units.done(present) for units in sets}
    pending = [(u, index) for u in sets for index in u.indices() if index not in done[u]]
    counter = UnitCounter(sets, pending, progress)
    counter.start()
    for date, places in _by_date(groups, pending).items():
        units = [pending[place] for place in places]
        try:
            writer.add(groups, units, date)
        except Exception as error:
            raise _failure(error, place, date, f"{counter.written} of {len(pending)}") from error
        for number in places:
            counter.count(number)
    writer.finish(provenance)
    return IcechunkReport(
        path=place,
        branch=branch,
        snapshot=writer.tip,
        total=sum(units.total for units in sets),
        written=len(pending),
        commits=writer.commits,
    )


def open_icechunk(
    path: StorePath,
    *,
    branch: str = "main",
    snapshot: str | None = None,
    incomplete: Literal["refuse", "allow"] = "refuse",
) -> xr.DataTree | xr.Dataset:
    """Open a snapshot lazily, like `open_cube` opens a store.

    Parameters
    ----------
    path
        Folder or ``s3://`` URL of the repository.
    branch
        Branch whose last snapshot is opened.
    snapshot
        Id of the snapshot to open instead, see `list_snapshots`.
    incomplete
        What to do with a snapshot that lacks dates: ``"allow"`` shows them as missing values.

    Returns
    -------
    xr.DataTree or xr.Dataset
        As from `open_cube`. It stays as it is whatever is committed later.

    Raises
    ------
    MissingDependencyError
        icechunk is not installed.
    IncompleteStoreError
        Dates are missing.
    StoreError
        There is no such repository, branch or snapshot, or it is not one of smgrid.
    """
    place = normalise_place(path)
    repository = open_repository(place)
    with explaining_icechunk(place):
        if snapshot is None:
            session = repository.readonly_session(branch)
        else:
            session = repository.readonly_session(snapshot_id=snapshot)
        attrs = root_attrs(session, place)
        if attrs["smgrid_status"] != "complete" and incomplete == "refuse":
            msg = (
                f"{place} is incomplete: this snapshot lacks dates; write the same data to it "
                "again to resume, or look at what is there with incomplete='allow'"
            )
            raise IncompleteStoreError(msg)
        record = StoreRecord(path=place, template=attrs[TEMPLATE_ATTR], status="complete")
        groups = open_groups(session.store, record)
    for ds in groups.values():
        ds.attrs.pop(TEMPLATE_ATTR, None)
    if list(groups) == [""]:
        return groups[""]
    return xr.DataTree.from_dict({f"/{name}": ds for name, ds in groups.items()})


def list_snapshots(path: StorePath, *, branch: str = "main") -> tuple[Snapshot, ...]:
    """Return the commits of a branch, the newest first."""
    place = normalise_place(path)
    repository = open_repository(place)
    with explaining_icechunk(place):
        found = repository.ancestry(branch=branch)
        return tuple(Snapshot(info.id, info.written_at, info.message) for info in found)


def _by_date(
    groups: Mapping[str, xr.Dataset], pending: list[tuple[UnitSet, Index]]
) -> dict[str, Places]:
    """Return the places of pending units by day in order; those without a date are first."""
    days = {
        (group, dim): [date[:10] for date in dates_of(ds[dim].values)]
        for group, ds in groups.items()
        for dim in TIME_DIMS
        if dim in ds.coords
    }
    found: dict[str, Places] = {}
    for place, (units, index) in enumerate(pending):
        steps = [
            days[units.group, dim][i * edge]
            for dim, i, edge in zip(units.dims, index, units.shards, strict=True)
            if (units.group, dim) in days
        ]
        found.setdefault(max(steps, default=""), []).append(place)
    return dict(sorted(found.items()))


def _failure(error: Exception, place: str, date: str, progress: str) -> SmgridError:
    if isinstance(error, OSError):
        reason = explain_os_error(error, place)
    else:
        known = isinstance(error, SmgridError)
        reason = str(error) if known else f"{type(error).__name__}: {error}"
    kind = type(error) if isinstance(error, SmgridError) else StoreError
    return kind(
        f"{date or 'units without a date'}: {reason.rstrip('.')}. {progress} pending units were "
        "committed; write again to resume"
    )


def _groups(data: xr.DataTree | xr.Dataset) -> dict[str, xr.Dataset]:
    if isinstance(data, xr.Dataset):
        return {"": data}
    return {node.path.strip("/"): node.to_dataset() for node in data.subtree}
