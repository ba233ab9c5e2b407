"""The journal of an update: what a store becomes, written down before anything is changed.

``_smgrid/update.json`` holds the new metadata, coordinates and template, and which shards have to
be computed again. From the moment it is there the store counts as incomplete; whoever writes to it
next carries out what it says, as often as it takes. It is removed when every unit is there.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zarr.abc.store import Store

from smgrid.cube.storage import delete_keys, read_json, write_json
from smgrid.cube.tiling import Index, UnitSet
from smgrid.errors import StoreError

JOURNAL_KEY = "_smgrid/update.json"

Redo = Mapping[str, Mapping[str, int]]
"""First position along a dim from which on shards are computed again, by group and dim."""


@dataclass(frozen=True)
class Journal:
    """An update that has begun."""

    redo: Redo
    before: Mapping[str, str]
    """What the store was, for the history in its manifest."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Metadata, coordinates and the template by key, in the order of writing; empty once done."""

    def is_redone(self, units: UnitSet, index: Index) -> bool:
        """Whether a unit that is there is to be computed again."""
        starts = self.redo.get(units.group, {})
        return any(
            dim in starts and (i + 1) * edge > starts[dim]
            for dim, i, edge in zip(units.dims, index, units.shards, strict=True)
        )


def read_journal(store: Store) -> Journal | None:
    """Return the journal of a store that is being updated; StoreError if it is damaged."""
    content = read_json(store, JOURNAL_KEY)
    if content is None:
        return None
    try:
        files = {key: base64.b64decode(text) for key, text in content["files"].items()}
        return Journal(redo=content["redo"], before=content["before"], files=files)
    except (KeyError, TypeError, AttributeError, ValueError) as cause:
        msg = f"{store}: {JOURNAL_KEY} is damaged ({cause!r}); copy the store again or rebuild it"
        raise StoreError(msg) from cause


def write_journal(store: Store, journal: Journal) -> None:
    """Write the journal, as one replacement of one object."""
    files = {key: base64.b64encode(content).decode() for key, content in journal.files.items()}
    content: dict[str, Any] = {"redo": journal.redo, "before": journal.before, "files": files}
    write_json(store, JOURNAL_KEY, content)


def remove_journal(store: Store) -> None:
    """End the update."""
    delete_keys(store, [JOURNAL_KEY])
