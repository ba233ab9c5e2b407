"""What a store knows about itself: its template, its status and which of its units are done.

``_smgrid/template.json`` claims a folder before anything else is written; the root's metadata
follow when all other metadata are there and carry the status, which is changed last of all. While
there is the journal of an update, a store is incomplete whatever its root says.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from zarr.abc.store import Store

from smgrid.cube.checksums import write_part
from smgrid.cube.geozarr import linked_factors, unlink_overviews
from smgrid.cube.journal import Journal, read_journal
from smgrid.cube.shards import digest
from smgrid.cube.storage import (
    list_top,
    make_durable,
    read_bytes,
    read_json,
    write_bytes,
    write_json,
)
from smgrid.cube.template import FORMAT, StoreTemplate, differences, digest_of
from smgrid.cube.tiling import Index, PendingUnits, UnitSet, present_shards, unit_sets
from smgrid.errors import StoreError, TemplateMismatchError

PREFIX = "_smgrid"
TEMPLATE_KEY = f"{PREFIX}/template.json"
MANIFEST_KEY = f"{PREFIX}/manifest.json"
ROOT_KEY = "zarr.json"
UNSUMMED = frozenset({TEMPLATE_KEY, ROOT_KEY, MANIFEST_KEY})
"""The manifest, and files that it covers by itself."""

Status = Literal["created", "incomplete", "complete"]


@dataclass(frozen=True)
class StoreRecord:
    """Template and status of a store on disk."""

    path: str
    template: Mapping[str, Any]
    """Record of the template, see `StoreTemplate.record`."""
    status: Status
    """``created`` while even the metadata are not all there."""
    journal: Journal | None = None
    """Of an update that has begun."""
    overviews: tuple[int, ...] = ()
    """Factors of the overviews that a complete map has."""

    @property
    def is_readable(self) -> bool:
        """Whether metadata and coordinates are there, and not just being replaced."""
        return self.status != "created" and not (self.journal and self.journal.files)

    @property
    def digest(self) -> str:
        """Digest of the template."""
        return digest_of(self.template)

    @property
    def sets(self) -> tuple[UnitSet, ...]:
        """Units that the template promises."""
        return unit_sets(self.template["groups"])

    @property
    def total(self) -> int:
        """Number of units that the template promises."""
        return sum(units.total for units in self.sets)


def read_record(store: Store, path: str) -> StoreRecord:
    """Return what the store at `path` knows about itself.

    Raises
    ------
    StoreError
        If it is not a store of smgrid, one of another format version, or damaged.
    """
    template = read_json(store, TEMPLATE_KEY)
    if template is None:
        msg = f"{path} is not a store of smgrid (it has no {TEMPLATE_KEY}); give another path"
        raise StoreError(msg)
    _check_format(template, path)
    journal = read_journal(store)
    root = read_json(store, ROOT_KEY)
    status = "created" if root is None else _status_of(root, path)
    if journal is not None and status == "complete":
        status = "incomplete"
    overviews = () if root is None or status != "complete" else linked_factors(root)
    return StoreRecord(path, template, status, journal, overviews)


def read_manifest(store: Store) -> dict[str, Any]:
    """Return the manifest of a store, empty if it has none yet."""
    return read_json(store, MANIFEST_KEY) or {}


def _check_format(template: Any, path: str) -> None:
    version = template.get("smgrid_format") if isinstance(template, Mapping) else None
    if not isinstance(version, int) or (version == FORMAT and "groups" not in template):
        msg = f"{path}: {TEMPLATE_KEY} is damaged; copy the store again, or write to a new path"
        raise StoreError(msg)
    if version < FORMAT:
        msg = (
            f"{path} has the format {version} of an older smgrid, this one reads {FORMAT}; open it "
            "with the version of smgrid that its manifest names, or build it again at a new path"
        )
        raise StoreError(msg)
    if version > FORMAT:
        msg = (
            f"{path} has the format {version} of a newer smgrid, this one reads {FORMAT}; update "
            "smgrid to open it or to go on writing it"
        )
        raise StoreError(msg)


def _status_of(root: Mapping[str, Any], path: str) -> Status:
    try:
        status = root["attributes"]["smgrid_status"]
    except (KeyError, TypeError) as cause:
        msg = (
            f"{path}: {ROOT_KEY} is damaged (it has no smgrid_status); copy the store again, or "
            "write to a new path"
        )
        raise StoreError(msg) from cause
    return "complete" if status == "complete" else "incomplete"


def find_record(store: Store, path: str, wanted: Mapping[str, Any]) -> StoreRecord | None:
    """Return the record of the store at `path`, ``None`` if none was begun; write nothing.

    Raises
    ------
    TemplateMismatchError
        If the store there is another one than `wanted`; the message lists what differs.
    StoreError
        If there is something else.
    """
    if read_bytes(store, TEMPLATE_KEY) is None:
        foreign = [name for name in list_top(store) if name != PREFIX]
        if foreign:
            msg = (
                f"{path} is not empty and not a store of smgrid (it holds {foreign[0]!r}); "
                "give a new path, or remove it if it is not needed"
            )
            raise StoreError(msg)
        return None
    record = read_record(store, path)
    if record.template != wanted:
        raise TemplateMismatchError(_mismatch(path, differences(record.template, wanted)))
    return record


def claim_store(store: Store, path: str, template: StoreTemplate) -> StoreRecord:
    """Make the store of `template` at `path` unless it is there, and return its record.

    Raises
    ------
    TemplateMismatchError, StoreError
        As `find_record`, or if it cannot be written.
    """
    wanted = template.record()
    record = find_record(store, path, wanted)
    if record is None:
        write_json(store, TEMPLATE_KEY, wanted)
        make_durable(store, [TEMPLATE_KEY])
        record = read_record(store, path)
    if record.status == "created":
        write_files(store, template.files(), part=1)
    return record


def write_files(store: Store, files: Mapping[str, bytes], *, part: int) -> None:
    """Write metadata and coordinates, and their sums as a numbered part before.

    The root's metadata come last, and when the others are durable: they say that these are there.
    """
    sums = {key: digest(content) for key, content in files.items() if key not in UNSUMMED}
    write_part(store, part, sums)
    for key, content in files.items():
        if key == ROOT_KEY:
            make_durable(store, files.keys() - {key})
        write_bytes(store, key, content)
    make_durable(store, [ROOT_KEY])


def _mismatch(path: str, found: list[str]) -> str:
    shown = "\n".join(f"  {line}" for line in found[:20])
    more = f"\n  and {len(found) - 20} more" if len(found) > 20 else ""
    return (
        f"{path} was made for something else:\n{shown}{more}\n"
        "write to a new path, or repeat exactly what the store was begun with to resume it"
    )


def pending_units(sets: Iterable[UnitSet], keys: Iterable[str]) -> PendingUnits:
    """Return the units that lack a shard among the `keys` of a store."""
    present = present_shards(keys)
    pending: list[tuple[UnitSet, Index]] = []
    for units in sets:
        done = units.done(present)
        pending += [(units, index) for index in units.indices() if index not in done]
    return pending


def set_status(store: Store, status: Literal["incomplete", "complete"]) -> None:
    """Change the status in the root's attributes, as one replacement of one object.

    A map that is not complete has no overviews: what they show may be about to change.
    """
    content = read_root(store)
    wanted = unlink_overviews(content) if status == "incomplete" else content
    wanted = wanted | {"attributes": wanted["attributes"] | {"smgrid_status": status}}
    if wanted != content:
        write_root(store, wanted)


def root_digest(store: Store) -> str:
    """Return the digest of the root's metadata, whatever the status and the overviews in them."""
    content = unlink_overviews(read_root(store))
    attrs = {key: value for key, value in content["attributes"].items() if key != "smgrid_status"}
    return digest_of(content | {"attributes": attrs})


def read_root(store: Store) -> dict[str, Any]:
    """Return the root's metadata; StoreError if they are gone."""
    content = read_json(store, ROOT_KEY)
    if content is None:
        msg = f"the store has no {ROOT_KEY} any more; write it to a new path"
        raise StoreError(msg)
    return content


def write_root(store: Store, content: Mapping[str, Any]) -> None:
    """Replace the root's metadata."""
    write_json(store, ROOT_KEY, content)
    make_durable(store, [ROOT_KEY])
