"""Commits to a branch of an icechunk repository: the template, one date after another, the end."""

import pickle
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import xarray as xr
import zarr
from zarr.core.sync import sync

import smgrid
from smgrid.cube.icechunk_repo import (
    explain_conflict,
    explaining_icechunk,
    import_icechunk,
    writable_session,
)
from smgrid.cube.record import ROOT_KEY
from smgrid.cube.shards import encode_shard, shard_key
from smgrid.cube.storage import read_json, write_bytes, write_json
from smgrid.cube.template import StoreTemplate, differences
from smgrid.cube.tiling import Index, UnitSet
from smgrid.errors import StoreError, TemplateMismatchError

if TYPE_CHECKING:
    from icechunk import Repository, Session

TEMPLATE_ATTR = "smgrid_template"
"""Attribute of the root with the record of the template: icechunk keeps no files but zarr's."""


class Committer:
    """The one process that commits to a branch."""

    def __init__(self, repository: "Repository", branch: str, place: str) -> None:
        self.repository = repository
        self.branch = branch
        self.place = place
        self.tip = writable_session(repository, branch, place).snapshot_id
        self.commits = 0

    def begin(self, template: StoreTemplate) -> None:
        """Commit metadata and coordinates, or check those that are there."""
        session = self._session()
        wanted = template.record()
        if sync(session.store.is_empty("")):
            # Groups before their members, and all of them before values.
            for key, content in sorted(template.files().items(), key=_depth):
                write_bytes(session.store, key, content)
            self._set_root(session, {TEMPLATE_ATTR: wanted})
            self._commit(session, "template", {"smgrid_version": smgrid.__version__})
            return
        stored = root_attrs(session, self.place)[TEMPLATE_ATTR]
        if stored != wanted:
            lines = "\n".join(f"  {line}" for line in differences(stored, wanted)[:20])
            msg = (
                f"{self.place} was made for something else:\n{lines}\nwrite to a new path, or "
                "repeat exactly what it was begun with to resume it"
            )
            raise TemplateMismatchError(msg)

    def present(self, sets: Sequence[UnitSet]) -> dict[str, set[Index]]:
        """Return the shards of the last snapshot by array path."""
        session = self._session()

        async def collect(array: str) -> set[Index]:
            return {tuple(at) async for at in session.chunk_coordinates(f"/{array}")}

        with explaining_icechunk(self.place):
            arrays = [units.array_path(name) for units in sets for name in units.names]
            return {array: sync(collect(array)) for array in arrays}

    def add(
        self, groups: Mapping[str, xr.Dataset], units: Sequence[tuple[UnitSet, Index]], date: str
    ) -> None:
        """Write the units of one date and commit them."""
        session = self._session()
        with explaining_icechunk(self.place):
            fork = pickle.dumps(session.fork())
            forks = dask.compute(*(_delayed_unit(groups, *unit, fork=fork) for unit in units))
            session.merge(*forks)
        self._commit(session, date or "without a date", {"smgrid_units": len(units)})

    def finish(self, provenance: Mapping[str, Any]) -> None:
        """Commit that everything is there."""
        session = self._session()
        if root_attrs(session, self.place)["smgrid_status"] == "complete":
            return
        self._set_root(session, {"smgrid_status": "complete"})
        about = {**provenance, "smgrid_version": smgrid.__version__}
        self._commit(session, "complete", {"smgrid_manifest": about})

    def _session(self) -> "Session":
        session = writable_session(self.repository, self.branch, self.place)
        if session.snapshot_id != self.tip:
            raise StoreError(explain_conflict(self.place))
        return session

    def _set_root(self, session: "Session", attrs: Mapping[str, Any]) -> None:
        root = read_json(session.store, ROOT_KEY) or {}
        root["attributes"] |= attrs
        write_json(session.store, ROOT_KEY, root)

    def _commit(self, session: "Session", message: str, metadata: dict[str, Any]) -> None:
        own = uuid.uuid4().hex
        with explaining_icechunk(self.place):
            try:
                self.tip = session.commit(message, {**metadata, "smgrid_commit": own})
            except import_icechunk().ConflictError:
                # Where an answer was lost, the client has asked again and met its own commit.
                newest = next(iter(self.repository.ancestry(branch=self.branch)))
                if newest.metadata.get("smgrid_commit") != own:
                    raise
                self.tip = newest.id
        self.commits += 1


def _delayed_unit(
    groups: Mapping[str, xr.Dataset], units: UnitSet, index: Index, *, fork: bytes
) -> Any:
    edges = zip(units.dims, index, units.shards, strict=True)
    region = {dim: slice(i * edge, (i + 1) * edge) for dim, i, edge in edges}
    blocks = [groups[units.group][name].variable.isel(region).data for name in units.names]
    paths = tuple(units.array_path(name) for name in units.names)
    return dask.delayed(_write_unit, pure=False)(fork, paths, index, *blocks)


def _write_unit(fork: bytes, paths: tuple[str, ...], index: Index, *blocks: Any) -> Any:
    """Write the shards of one unit on a fork of its own and return it; runs in a task."""
    session = pickle.loads(fork)
    for path, block in zip(paths, blocks, strict=True):
        array = zarr.open_array(session.store, path=path, mode="r")
        content = encode_shard(array, index, np.asarray(block))
        write_bytes(session.store, shard_key(path, index), content)
    return session


def root_attrs(session: "Session", place: str) -> dict[str, Any]:
    """Return the attributes of the root; StoreError if it is not a store of smgrid."""
    root = read_json(session.store, ROOT_KEY) or {}
    attrs: dict[str, Any] = root.get("attributes", {})
    if TEMPLATE_ATTR not in attrs:
        msg = f"{place} holds no store of smgrid in this snapshot; give another path or snapshot"
        raise StoreError(msg)
    return attrs


def _depth(item: tuple[str, bytes]) -> tuple[bool, int, str]:
    key = item[0]
    return not key.endswith(ROOT_KEY), key.count("/"), key
