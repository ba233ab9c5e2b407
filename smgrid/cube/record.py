"""What a store knows about itself: its template, its status and which of its units are done.

``_smgrid/template.json`` claims a folder before anything else is written; the root's metadata
follow when all other metadata are there and carry the status, which is changed last of all.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from zarr.abc.store import Store

from smgrid.cube.storage import (
    list_top,
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
_ROOT_KEY = "zarr.json"

Status = Literal["created", "incomplete", "complete"]


@dataclass(frozen=True)
class StoreRecord:
    """Template and status of a store on disk."""

    path: str
    template: Mapping[str, Any]
    """Record of the template, see `StoreTemplate.record`."""
    status: Status
    """``created`` while even the metadata are not all there."""

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
        If it is not a store of smgrid, or one of another format version.
    """
    template = read_json(store, TEMPLATE_KEY)
    if template is None:
        msg = f"{path} is not a store of smgrid (it has no {TEMPLATE_KEY}); give another path"
        raise StoreError(msg)
    if template["smgrid_format"] != FORMAT:
        msg = (
            f"{path} has the format {template['smgrid_format']}, this smgrid reads {FORMAT}; "
            "use the version of smgrid that its manifest names, or write it again"
        )
        raise StoreError(msg)
    return StoreRecord(path=path, template=template, status=_read_status(store))


def _read_status(store: Store) -> Status:
    root = read_json(store, _ROOT_KEY)
    if root is None:
        return "created"
    return "complete" if root["attributes"]["smgrid_status"] == "complete" else "incomplete"


def claim_store(store: Store, path: str, template: StoreTemplate) -> StoreRecord:
    """Make the store of `template` at `path` unless it is there, and return its record.

    Raises
    ------
    TemplateMismatchError
        If the store there is another one; the message lists what differs.
    StoreError
        If there is something else, or it cannot be written.
    """
    wanted = template.record()
    if read_bytes(store, TEMPLATE_KEY) is None:
        foreign = [name for name in list_top(store) if name != PREFIX]
        if foreign:
            msg = (
                f"{path} is not empty and not a store of smgrid (it holds {foreign[0]!r}); "
                "give a new path, or remove it if it is not needed"
            )
            raise StoreError(msg)
        write_json(store, TEMPLATE_KEY, wanted)
    record = read_record(store, path)
    if record.template != wanted:
        raise TemplateMismatchError(_mismatch(path, differences(record.template, wanted)))
    if record.status == "created":
        for key, content in template.files().items():
            write_bytes(store, key, content)
    return record


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
    """Change the status in the root's attributes, as one replacement of one object."""
    content = read_json(store, _ROOT_KEY)
    if content is None:
        msg = f"the store has no {_ROOT_KEY} any more; write it to a new path"
        raise StoreError(msg)
    content["attributes"]["smgrid_status"] = status
    write_json(store, _ROOT_KEY, content)
