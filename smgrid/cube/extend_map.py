"""Go on with a map: acquisitions that came after its last one are added, nothing else changes."""

import json
from collections.abc import Mapping
from typing import Any

import xarray as xr
from zarr.abc.store import Store

from smgrid.cube.encoding import json_attrs
from smgrid.cube.extending import (
    Extended,
    check_same,
    extend_group,
    lacking_steps,
    ranges_of,
    steps_inside,
)
from smgrid.cube.filling import ATTEMPTS, Plan
from smgrid.cube.finishing import seal, write_manifest
from smgrid.cube.journal import Journal, write_journal
from smgrid.cube.lock import writing
from smgrid.cube.opening import open_groups
from smgrid.cube.progress import ProgressFunction
from smgrid.cube.provenance import (
    check_lineage,
    continued,
    made_from,
    steps_to_redo,
    with_mended,
)
from smgrid.cube.record import (
    MANIFEST_KEY,
    ROOT_KEY,
    TEMPLATE_KEY,
    StoreRecord,
    read_manifest,
    read_record,
)
from smgrid.cube.storage import (
    StorePath,
    explaining,
    list_keys,
    make_durable,
    normalise_path,
    open_store,
    read_bytes,
    write_json,
)
from smgrid.cube.store import check_attempts, fill_store, resume_update, write_cube
from smgrid.cube.template import make_template
from smgrid.cube.tiling import DEFAULT_SHARD, dates_of, present_shards
from smgrid.cube.update import UpdateReport
from smgrid.errors import StoreError

_ROOT = ""


def extend_map(
    data: xr.Dataset,
    path: StorePath,
    *,
    shard: int = DEFAULT_SHARD,
    progress: ProgressFunction | None = None,
    attempts: int = ATTEMPTS,
    manifest: Mapping[str, Any] | None = None,
) -> UpdateReport:
    """Add to a map on disk the acquisitions that came after its last one; make it if it is new.

    Units that are there keep their bytes, whatever `data` now has for them. While it runs, and
    after it was interrupted, the store says that it is incomplete; running it again finishes it.

    The cube of a map may have been updated since, also since an extension was interrupted: the
    manifest then tells which dates were made from which state of it, and of the dates that were
    being added, those that are not whole are computed again.

    Parameters
    ----------
    data
        Map of the whole longer period, dims (time, y, x), lazy: nothing is computed of it but
        what is added.
    path
        Folder or URL of a map that `write_cube` or this function has made, or a new one.
    shard
        Edge of a shard in pixels of a new map.
    progress, attempts
        As in `write_cube`.
    manifest
        As in `write_cube`; it is that of the dates which are added, so that a map to which nothing
        is added keeps its own.

    Returns
    -------
    UpdateReport
        What was added, and what came too late to be: acquisitions before the last one of the map.

    Raises
    ------
    TemplateMismatchError
        The map was made with another model, grid or set of variables, or from another cube than
        an earlier state of this one; the message says what differs.
    UnitsFailedError, StoreInUseError, StoreError
        As `write_cube`.
    """
    check_attempts(attempts)
    provenance = None if manifest is None else json_attrs(manifest, where="manifest")
    path = normalise_path(path)
    how: Any = {"progress": progress, "attempts": attempts}
    with explaining(path):
        store = open_store(path, "write")
        if _is_new(store, path, data, shard):
            made = write_cube(data, path, shard=shard, manifest=manifest, **how)
            added = {_ROOT: tuple(dates_of(data["time"].values))}
            return UpdateReport(path, made.total, made.written, added, {}, {})
        with writing(store, path) as lease:
            resume_update(store)
            group, pending = _begin(store, path, data, provenance)
            resume_update(store)
            record = read_record(store, path)
            total, written = record.total, 0
            if pending or record.status != "complete":
                done = fill_store({_ROOT: group.ds}, store, record, lease=lease, **how)
                total, written = done.total, done.written
    return UpdateReport(
        path=path,
        total=total,
        written=written,
        added={_ROOT: group.added} if group.added else {},
        late={_ROOT: group.late} if group.late else {},
        withdrawn={_ROOT: group.withdrawn} if group.withdrawn else {},
    )


def _is_new(store: Store, path: str, data: xr.Dataset, shard: int) -> bool:
    """Whether there is no map yet, apart from a claim; one of fewer dates is replaced."""
    if read_bytes(store, TEMPLATE_KEY) is None:
        return True
    if read_record(store, path).status != "created":
        return False
    with writing(store, path):
        record = read_record(store, path)
        if record.status == "created":  # still, as another process might have gone on
            _replace_claim(store, record, data, shard)
    return record.status == "created"


def _replace_claim(store: Store, record: StoreRecord, data: xr.Dataset, shard: int) -> None:
    """Let a store with nothing but a claim and some metadata, which are replaced, be for `data`."""
    like = make_template({_ROOT: data}, shard=shard, like=record.template).record()
    check_same(record.path, record.template, like)
    wanted = make_template({_ROOT: data}, shard=shard).record()
    if record.template == wanted:
        return
    present = present_shards(list_keys(store))
    if any(units.array_path(n) in present for units in record.sets for n in units.names):
        raise StoreError(
            f"{record.path} holds values, but its {ROOT_KEY} is lost; map what it was begun with "
            "to it again, or write to a new path"
        )
    write_json(store, TEMPLATE_KEY, wanted)
    make_durable(store, [TEMPLATE_KEY])


def _begin(
    store: Store, path: str, data: xr.Dataset, provenance: Mapping[str, Any] | None
) -> tuple[Extended, bool]:
    """Find out what the map becomes, and write it down unless it stays as it is.

    Returns
    -------
    Extended
        The map that it becomes.
    bool
        Whether units are to be computed.
    """
    record = read_record(store, path)
    stored = open_groups(store, record)
    if list(stored) != [_ROOT] or "time" not in stored[_ROOT].dims:
        raise StoreError(f"{path} holds the grids {', '.join(stored)}, expected a map on one grid")
    wanted = make_template({_ROOT: data}, shard=DEFAULT_SHARD, like=record.template).record()
    check_same(path, record.template, wanted)
    manifest = read_manifest(store)
    check_lineage(path, manifest, provenance)
    times = stored[_ROOT]["time"].values
    missing = Plan(store, record).missing
    lacking = lacking_steps(missing, "time", times.size)
    redo = {} if record.journal is None else record.journal.redo.get(_ROOT, {})
    begun = list(redo.get("time", ()))
    unsure = lacking | steps_inside(begun, times.size)
    again = steps_to_redo(manifest, record, provenance, times, unsure)
    extended = extend_group(
        _ROOT,
        stored[_ROOT],
        data,
        missing=missing,
        provisional={},
        begun={"time": [*begun, *ranges_of(again)]},
    )
    grows = bool(extended.added)
    after: Mapping[str, Any] = continued(
        manifest, record, provenance, times=times, again=again, grows=grows
    )
    new = made_from(provenance)
    if new is not None:
        after = with_mended(after, new, times, lacking)
    _write_down(store, record, extended, before=manifest, after=after, again=bool(again.any()))
    return extended, bool(missing or extended.redo or grows)


def _write_down(
    store: Store,
    record: StoreRecord,
    extended: Extended,
    *,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    again: bool,
) -> None:
    """Write down what the map becomes: in a journal, unless only lost units are added."""
    template = make_template({_ROOT: extended.ds}, shard=DEFAULT_SHARD, like=record.template)
    content = template.record()
    sealed = seal(after) if after != before else before
    if content != record.template or again:
        files = template.files()
        root = files.pop(ROOT_KEY)
        files[TEMPLATE_KEY] = json.dumps(content, indent=2, allow_nan=False).encode()
        files[MANIFEST_KEY] = json.dumps(sealed, indent=2, allow_nan=False).encode()
        changed = {key: new for key, new in files.items() if read_bytes(store, key) != new}
        redo = {_ROOT: extended.redo} if extended.redo else {}
        earlier = {} if record.journal is None else record.journal.before
        write_journal(store, Journal(redo=redo, before=earlier, files=changed | {ROOT_KEY: root}))
    elif sealed != before:
        write_manifest(store, sealed)
