"""The journal of an update: what a store becomes, written down before anything is changed.

``_smgrid/update.json`` holds the new metadata, coordinates and template, the manifest of a map,
and which shards have to be computed again. From the moment it is there the store counts as
incomplete; whoever writes to it next carries out what it says, as often as it takes. It is removed
when every unit is there.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zarr.abc.store import Store

from smgrid.cube.storage import delete_keys, make_durable, read_json, write_json
from smgrid.cube.tiling import Index, UnitSet
from smgrid.errors import StoreError

JOURNAL_KEY = "_smgrid/update.json"

Steps = Sequence[tuple[int, int]]
"""Ranges of positions along a dim: each the first one and the one after the last."""

Redo = Mapping[str, Mapping[str, Steps]]
"""Steps whose shards are computed again, by group and dim."""


@dataclass(frozen=True)
class Journal:
    """An update that has begun."""

    redo: Redo
    before: Mapping[str, str]
    """What the store was, for the history in its manifest; empty where `files` has the manifest."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Metadata, coordinates and the template by key, in the order of writing; empty once done."""

    def is_redone(self, units: UnitSet, index: Index) -> bool:
        """Whether a unit that is there is to be computed again."""
        redo = self.redo.get(units.group, {})
        return any(
            start < (i + 1) * edge and i * edge < stop
            for dim, i, edge in zip(units.dims, index, units.shards, strict=True)
            for start, stop in redo.get(dim, ())
        )


def read_journal(store: Store) -> Journal | None:
    """Return the journal of a store that is being updated; StoreError if it is damaged."""
    content = read_json(store, JOURNAL_KEY)
    if content is None:
        return None
    try:
        files = {key: base64.b64decode(text) for key, text in content["files"].items()}
        redo = {
            group: {dim: [(start, stop) for start, stop in steps] for dim, steps in dims.items()}
            for group, dims in content["redo"].items()
        }
        return Journal(redo=redo, before=content["before"], files=files)
    except (KeyError, TypeError, AttributeError, ValueError) as cause:
        msg = f"{store}: {JOURNAL_KEY} is damaged ({cause!r}); copy the store again or rebuild it"
        raise StoreError(msg) from cause


def write_journal(store: Store, journal: Journal) -> None:
    """Write the journal, as one replacement of one object."""
    files = {key: base64.b64encode(content).decode() for key, content in journal.files.items()}
    content: dict[str, Any] = {"redo": journal.redo, "before": journal.before, "files": files}
    write_json(store, JOURNAL_KEY, content)
    make_durable(store, [JOURNAL_KEY])  # before anything that it tells of


def remove_journal(store: Store) -> None:
    """End the update."""
    delete_keys(store, [JOURNAL_KEY])
