"""Go on with a map: acquisitions that came after its last one are added, nothing else changes."""

import json
from collections.abc import Mapping
from typing import Any

import xarray as xr
from zarr.abc.store import Store

from smgrid.cube.encoding import json_attrs
from smgrid.cube.extending import Extended, check_same, extend_group
from smgrid.cube.filling import ATTEMPTS, Plan
from smgrid.cube.journal import Journal, write_journal
from smgrid.cube.lock import writing
from smgrid.cube.opening import open_groups
from smgrid.cube.progress import ProgressFunction
from smgrid.cube.record import ROOT_KEY, TEMPLATE_KEY, StoreRecord, read_record
from smgrid.cube.storage import StorePath, explaining, normalise_path, open_store, read_bytes
from smgrid.cube.store import check_attempts, fill_store, resume_update, write_cube
from smgrid.cube.template import make_template
from smgrid.cube.tiling import DEFAULT_SHARD, dates_of
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

    Parameters
    ----------
    data
        Map of the whole longer period, dims (time, y, x), lazy: nothing is computed of it but
        what is added.
    path
        Folder or URL of a map that `write_cube` or this function has made, or a new one.
    shard
        Edge of a shard in pixels of a new map.
    progress, attempts, manifest
        As in `write_cube`.

    Returns
    -------
    UpdateReport
        What was added, and what came too late to be: acquisitions before the last one of the map.

    Raises
    ------
    TemplateMismatchError
        The map was made with another model, grid or set of variables; the message says what
        differs.
    UnitsFailedError, StoreInUseError, StoreError
        As `write_cube`.
    """
    check_attempts(attempts)
    provenance = None if manifest is None else json_attrs(manifest, where="manifest")
    path = normalise_path(path)
    with explaining(path):
        store = open_store(path, "write")
        if read_bytes(store, TEMPLATE_KEY) is None:
            how: Any = {"progress": progress, "attempts": attempts, "manifest": manifest}
            made = write_cube(data, path, shard=shard, **how)
            added = {_ROOT: tuple(dates_of(data["time"].values))}
            return UpdateReport(path, made.total, made.written, added, {}, {})
        with writing(store, path) as lease:
            resume_update(store)
            extended = _begin(store, path, data)
            resume_update(store)
            done = fill_store(
                {_ROOT: extended.ds},
                store,
                read_record(store, path),
                lease=lease,
                attempts=attempts,
                progress=progress,
                provenance=provenance,
            )
    return UpdateReport(
        path=done.path,
        total=done.total,
        written=done.written,
        added={_ROOT: extended.added} if extended.added else {},
        late={_ROOT: extended.late} if extended.late else {},
        withdrawn={_ROOT: extended.withdrawn} if extended.withdrawn else {},
    )


def _begin(store: Store, path: str, data: xr.Dataset) -> Extended:
    """Find out what the map becomes, and write it down unless it stays as it is."""
    record = read_record(store, path)
    if record.status == "created":
        raise StoreError(f"{path} was begun, but holds nothing yet; map the same cube again first")
    stored = open_groups(store, record)
    if list(stored) != [_ROOT] or "time" not in stored[_ROOT].dims:
        raise StoreError(f"{path} holds the grids {', '.join(stored)}, expected a map on one grid")
    wanted = make_template({_ROOT: data}, shard=DEFAULT_SHARD, like=record.template).record()
    check_same(path, record.template, wanted)
    extended = extend_group(
        _ROOT,
        stored[_ROOT],
        data,
        missing=Plan(store, record).missing,
        provisional={},
        begun={} if record.journal is None else record.journal.redo.get(_ROOT, {}),
    )
    template = make_template({_ROOT: extended.ds}, shard=DEFAULT_SHARD, like=record.template)
    content = template.record()
    if content != record.template:
        files = template.files()
        root = files.pop(ROOT_KEY)
        files[TEMPLATE_KEY] = json.dumps(content, indent=2, allow_nan=False).encode()
        changed = {key: new for key, new in files.items() if read_bytes(store, key) != new}
        redo = {_ROOT: extended.redo} if extended.redo else {}
        before = _before(record, stored[_ROOT])
        write_journal(store, Journal(redo=redo, before=before, files=changed | {ROOT_KEY: root}))
    return extended


def _before(record: StoreRecord, stored: xr.Dataset) -> dict[str, Any]:
    """Return what the map is now, for the history in its manifest."""
    if record.journal is not None:
        return dict(record.journal.before)
    days = dates_of(stored["time"].values.astype("datetime64[D]"))
    return {"template": record.digest, "period": f"{days[0]} to {days[-1]}"}
