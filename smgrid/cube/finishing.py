"""Close a store whose units are all there: sums, manifest, and the status last of all."""

from collections.abc import Mapping
from typing import Any

from zarr.abc.store import Store

import smgrid
from smgrid.cube.checksums import part_keys, write_sums
from smgrid.cube.failures import LEDGER_KEY
from smgrid.cube.filling import Plan
from smgrid.cube.journal import remove_journal
from smgrid.cube.linking import settle_overviews
from smgrid.cube.record import (
    MANIFEST_KEY,
    ROOT_KEY,
    StoreRecord,
    read_manifest,
    root_digest,
    set_status,
)
from smgrid.cube.shards import digest, shard_key
from smgrid.cube.storage import delete_keys, make_durable, read_bytes, write_json
from smgrid.cube.template import digest_of
from smgrid.errors import StoreError

_PARTIAL = ".partial"  # what a killed process leaves of the file that it was writing
OWN = "smgrid_"
"""What the names of the entries of a manifest begin with that smgrid adds to it."""
HISTORY = f"{OWN}history"
SUMS = f"{OWN}sha256sums"
ROOT = f"{OWN}root_sha256"
TEMPLATE = f"{OWN}template"
SELF = f"{OWN}manifest_sha256"


def finish(store: Store, plan: Plan, provenance: Mapping[str, Any] | None) -> None:
    """Make a store complete; each step may be repeated if the process dies in between.

    Parameters
    ----------
    store, plan
        The store, every unit of which has been written.
    provenance
        Manifest of the data; ``None`` keeps what the store has.
    """
    record = plan.record
    sums = _shard_sums(plan) | _metadata_sums(store, plan)
    digest_of_sums = write_sums(store, sums)
    _write_manifest(store, record, provenance, sums=digest_of_sums)
    leftovers = [key for key in plan.keys if key.endswith(_PARTIAL)]
    delete_keys(store, [*part_keys(plan.keys), LEDGER_KEY, *leftovers])
    remove_journal(store)
    settle_overviews(store, record, digest_of_sums)
    set_status(store, "complete")


def _shard_sums(plan: Plan) -> dict[str, str]:
    shards = (
        shard_key(units.array_path(name), index)
        for units in plan.record.sets
        for index in units.indices()
        for name in units.names
    )
    return {key: plan.sums[key] for key in shards}


def metadata_keys(record: StoreRecord, keys: set[str]) -> list[str]:
    """Return which of the `keys` of a store are metadata and coordinates, without the root's."""
    folders = []
    for path, group in record.template["groups"].items():
        prefix = f"{path}/" if path else ""
        folders += [f"{prefix}{name}/" for name in group["coords"]]
    nodes = {f"{path}/{ROOT_KEY}" for path in record.template["groups"] if path}
    arrays = {f"{units.array_path(n)}/{ROOT_KEY}" for units in record.sets for n in units.names}
    coords = {key for key in keys if key.startswith(tuple(folders)) and not _is_partial(key)}
    return sorted((nodes | arrays) & keys | coords)


def _is_partial(key: str) -> bool:
    return key.endswith(_PARTIAL)


def _metadata_sums(store: Store, plan: Plan) -> dict[str, str]:
    sums = {}
    for key in metadata_keys(plan.record, plan.keys):
        if key in plan.sums:
            sums[key] = plan.sums[key]  # of what was written, whatever is there now
            continue
        content = read_bytes(store, key)
        if content is None:
            msg = f"{plan.record.path}: {key} was removed while the store was written; rebuild it"
            raise StoreError(msg)
        sums[key] = digest(content)
    return sums


def _write_manifest(
    store: Store, record: StoreRecord, provenance: Mapping[str, Any] | None, *, sums: str
) -> None:
    before = read_manifest(store)
    kept = {key: value for key, value in before.items() if not key.startswith(OWN)}
    manifest = dict(kept if provenance is None else provenance) | {
        f"{OWN}version": smgrid.__version__,
        TEMPLATE: record.digest,
        ROOT: root_digest(store),
        SUMS: sums,
    }
    history = _history(before, record)
    if history:
        manifest[HISTORY] = history
    manifest = seal(manifest)
    if manifest != before:
        write_manifest(store, manifest)


def seal(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest with the digest of the rest of it."""
    rest = {key: value for key, value in manifest.items() if key != SELF}
    return rest | {SELF: digest_of(rest)}


def write_manifest(store: Store, manifest: Mapping[str, Any]) -> None:
    """Replace the manifest."""
    write_json(store, MANIFEST_KEY, manifest)
    make_durable(store, [MANIFEST_KEY])


def _history(before: Mapping[str, Any], record: StoreRecord) -> list[Mapping[str, Any]]:
    """Return what the store was before its updates, oldest first; maps have it written down."""
    history: list[Mapping[str, Any]] = list(before.get(HISTORY, []))
    journal = record.journal
    extended = journal is not None and journal.before.get("template") not in {None, record.digest}
    if journal is not None and extended and dict(journal.before) not in history:
        history.append(dict(journal.before))
    return history
