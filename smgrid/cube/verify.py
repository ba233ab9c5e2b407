"""Check a store against itself: every shard present and readable, every sum true; mend shards."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import xarray as xr
from zarr.abc.store import Store

from smgrid.cube.checksums import SUMS_KEY, part_keys, read_sums
from smgrid.cube.coords import TIME_DIMS, coordinate_record
from smgrid.cube.finishing import ROOT, SELF, SUMS, TEMPLATE, metadata_keys
from smgrid.cube.geozarr import FOLDER
from smgrid.cube.linking import linked_root, overview_path, read_origin, unlink
from smgrid.cube.lock import writing
from smgrid.cube.opening import open_groups
from smgrid.cube.record import (
    MANIFEST_KEY,
    ROOT_KEY,
    TEMPLATE_KEY,
    Status,
    StoreRecord,
    read_record,
    read_root,
    root_digest,
    set_status,
)
from smgrid.cube.shards import ShardState, digest, read_states, shard_key
from smgrid.cube.storage import (
    StorePath,
    delete_keys,
    explaining,
    list_keys,
    normalise_path,
    open_store,
    read_bytes,
    read_json,
)
from smgrid.cube.template import digest_of
from smgrid.cube.tiling import Index, UnitSet, dates_of
from smgrid.errors import StoreError

ProblemKind = Literal["missing", "unreadable", "changed"]
_CHANGED = "its SHA-256 is not the one recorded when it was written"
_CURE = (
    "smgrid.cube.verify.drop_damaged(report) deletes the shards that are damaged; writing the same "
    "cube again, updating it, or writing the overviews of a map again adds those that are missing"
)
_STALE = "they are of what the map held before; write them again with write_overviews"
_UNLIKE = "what it says about overviews is not so; write them again with write_overviews"
_SHOWN = 20
_AT_ONCE = 8192  # shards in one graph


@dataclass(frozen=True)
class Problem:
    """One object of a store that is not as it was written."""

    key: str
    """Of the object in the store."""
    kind: ProblemKind
    unit: str
    """Group, variables, date and tile of a shard; empty for other objects."""
    text: str
    """What was found."""

    def __str__(self) -> str:
        unit = f" [{self.unit}]" if self.unit else ""
        return f"{self.key}{unit}: {self.text}"


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found; ``print(report)`` lists it."""

    path: str
    status: Status
    checked: int
    """Shards, coordinates and metadata that were read."""
    unsummed: int
    """Those whose sum was never recorded: they can be read, but nothing tells whether they are
    what was written."""
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether the store is complete and nothing is wrong."""
        return self.status == "complete" and not self.problems

    def __str__(self) -> str:
        verdict = "sound" if self.ok else f"{self.status}, {len(self.problems)} problems"
        lines = [f"{self.path}: {verdict}; {self.checked} objects checked"]
        if self.unsummed:
            lines.append(f"  {self.unsummed} of them have no recorded sum, they were only read")
        lines += [f"  {problem}" for problem in self.problems[:_SHOWN]]
        if len(self.problems) > _SHOWN:
            lines.append(f"  and {len(self.problems) - _SHOWN} more")
        if any(problem.unit for problem in self.problems):
            lines.append(f"  {_CURE}")
        return "\n".join(lines)


def verify(path: StorePath) -> VerifyReport:
    """Read every shard and every coordinate of a store and compare them with what was written.

    Runs with the scheduler that Dask is set to; memory depends on the shards in flight alone.
    `open_cube` trusts the status of a store and sees nothing of what happened to it afterwards: a
    shard that was lost reads as missing values. This function is what finds it. Overviews of a map
    are checked in the same way, and that they are of what the map holds.

    Parameters
    ----------
    path
        Folder or URL of the store.

    Returns
    -------
    VerifyReport
        Every object that is missing, cannot be read or has changed, by its key. Units that a store
        still lacks because it is not complete are among the missing.

    Raises
    ------
    StoreError
        There is no store of smgrid at `path`, or it cannot be reached.
    """
    path = normalise_path(path)
    with explaining(path):
        store = open_store(path)
        record = read_record(store, path)
        found = _verify_own(store, record)
        if not record.overviews:
            return found
        below = verify(overview_path(path))
        problems = [
            *found.problems,
            *(replace(problem, key=f"{FOLDER}/{problem.key}") for problem in below.problems),
            *_check_links(store, record),
        ]
        return replace(
            found,
            checked=found.checked + below.checked,
            unsummed=found.unsummed + below.unsummed,
            problems=tuple(problems),
        )


def _check_links(store: Store, record: StoreRecord) -> Iterator[Problem]:
    """Compare overviews with the map, and what the root says about them with what they are."""
    if read_origin(store) != (read_json(store, MANIFEST_KEY) or {}).get(SUMS):
        yield Problem(FOLDER, "changed", "", _STALE)
    if linked_root(store, record) != read_root(store):
        yield Problem(ROOT_KEY, "changed", "", _UNLIKE)


def require_sound(store: Store, record: StoreRecord) -> None:
    """Raise unless a store, apart from its overviews, is what was written; see `verify`.

    Raises
    ------
    StoreError
        Something is missing or damaged.
    """
    problems = _verify_own(store, record).problems
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise StoreError(
            f"{record.path} is damaged: {problems[0]}{more}, and what is made of it would be "
            "wrong. `smgrid verify` lists the damage and `smgrid mend` deletes damaged shards; "
            "write the same map to it again, which adds those that are missing"
        )


def _verify_own(store: Store, record: StoreRecord) -> VerifyReport:
    """Verify a store without the overviews that belong to it."""
    path = record.path
    with explaining(path):
        keys = set(list_keys(store))
        sums = read_sums(store, keys)
        coords, opening = _open_coords(store, record)
        problems = [
            *_check_own(store, record, keys),
            *_check_metadata(store, record, keys, sums),
            *(opening or _check_coords(record, coords)),
        ]
        shards = _expected(record)
        unsummed = 0
        for at in range(0, len(shards), _AT_ONCE):
            part = dict(shards[at : at + _AT_ONCE])
            states = read_states(path, record.digest, [(a, index) for _, a, index in part.values()])
            unsummed += sum(s.state == "readable" and k not in sums for k, s in states.items())
            problems += _check_shards(states, sums, part, coords)
        if unsummed and record.status == "complete" and _has_sums(store, keys):
            text = f"it has no sums of {unsummed} shards, so nothing tells whether they are sound"
            problems.append(Problem(SUMS_KEY, "changed", "", f"{text}; copy it again"))
    once = {problem.key: problem for problem in reversed(problems)}
    return VerifyReport(
        path=path,
        status=record.status,
        checked=len(shards) + len(metadata_keys(record, keys)),
        unsummed=unsummed,
        problems=tuple(once[key] for key in sorted(once)),
    )


def drop_damaged(report: VerifyReport) -> int:
    """Delete the shards that are damaged, so that they are written again.

    The store is incomplete from then on, until `write_cube` is called with the same data, or
    `update_cube`, which add exactly what is missing. Metadata and coordinates are not mended.

    Parameters
    ----------
    report
        What `verify` found. Its shards are read again: one that is sound by now is kept.

    Returns
    -------
    int
        How many shards were deleted.

    Raises
    ------
    StoreInUseError
        Another process writes to the store.
    StoreError
        The recorded sums are damaged themselves, so that nothing tells which shards are; or the
        store cannot be written.
    """
    path = report.path
    below = tuple(
        replace(problem, key=problem.key.removeprefix(f"{FOLDER}/"))
        for problem in report.problems
        if problem.key.startswith(f"{FOLDER}/")
    )
    if any(problem.key in {SUMS_KEY, MANIFEST_KEY} for problem in report.problems):
        msg = (
            f"{path}: {SUMS_KEY} or {MANIFEST_KEY} is damaged, so that nothing tells which shards "
            "are sound; copy both again from where the store came from, or write to a new path"
        )
        raise StoreError(msg)
    with explaining(path):
        store = open_store(path, "write")
        with writing(store, path):
            record = read_record(store, path)
            sums = read_sums(store, list_keys(store))
            found = {problem.key for problem in report.problems if problem.kind != "missing"}
            shards = {key: shard for key, shard in _expected(record) if key in found}
            states = read_states(path, record.digest, [(a, i) for _, a, i in shards.values()])
            problems = _check_shards(states, sums, shards, {})
            damaged = {problem.key for problem in problems if problem.kind != "missing"}
            if damaged:
                set_status(store, "incomplete")
                delete_keys(store, damaged)
            if below:
                unlink(store)
                part = replace(report, path=overview_path(path), problems=below)
                return len(damaged) + drop_damaged(part)
    return len(damaged)


_Coords = Mapping[str, Mapping[Any, xr.DataArray]]
_Shard = tuple[UnitSet, str, Index]


def _open_coords(store: Store, record: StoreRecord) -> tuple[_Coords, list[Problem]]:
    try:
        groups = open_groups(store, record)
    except (StoreError, FileNotFoundError) as error:
        return {}, [Problem(ROOT_KEY, "unreadable", "", str(error))]
    return {path: dict(ds.coords) for path, ds in groups.items()}, []


def _check_own(store: Store, record: StoreRecord, keys: set[str]) -> Iterator[Problem]:
    """Compare template, root and sums with the manifest, and the manifest with itself."""
    manifest = read_json(store, MANIFEST_KEY)
    if manifest is None:
        if record.status == "complete":
            yield Problem(MANIFEST_KEY, "missing", "", "there is no manifest")
        return
    rest = {key: value for key, value in manifest.items() if key != SELF}
    content = read_bytes(store, SUMS_KEY)
    found = {
        (MANIFEST_KEY, SELF): digest_of(rest),
        (TEMPLATE_KEY, TEMPLATE): record.digest,
        (ROOT_KEY, ROOT): root_digest(store),
        (SUMS_KEY, SUMS): "" if content is None else digest(content),
    }
    # While units are written again, the manifest is that of the last time.
    current = record.status == "complete" and not part_keys(keys)
    for (key, name), value in found.items():
        if name in manifest and manifest[name] != value and (current or name == SELF):
            text = f"its SHA-256 is not that of the manifest's {name}"
            kind: ProblemKind = "changed" if value else "missing"
            yield Problem(key, kind, "", text if value else "it is not there")


def _has_sums(store: Store, keys: set[str]) -> bool:
    """Whether sums were recorded when the store was finished, as older versions did not."""
    return SUMS_KEY in keys or SUMS in (read_json(store, MANIFEST_KEY) or {})


def _check_metadata(
    store: Store, record: StoreRecord, keys: set[str], sums: Mapping[str, str]
) -> Iterator[Problem]:
    shards = {key for key, _ in _expected(record)}
    recorded = {key for key in sums if key not in shards}
    for key in sorted(recorded | set(metadata_keys(record, keys))):
        content = read_bytes(store, key)
        if content is None:
            yield Problem(key, "missing", "", "it is not there")
        elif key in sums and digest(content) != sums[key]:
            yield Problem(key, "changed", "", _CHANGED)


def _check_coords(record: StoreRecord, coords: _Coords) -> Iterator[Problem]:
    """Compare coordinates with the template, which also tells for stores without sums."""
    for path, group in record.template["groups"].items():
        for name, expected in group["coords"].items():
            key = f"{path}/{name}".lstrip("/")
            coord = coords[path].get(name)
            if coord is None:
                yield Problem(key, "missing", "", "the coordinate is not there")
                continue
            variable = coord.variable
            if variable.dtype.kind == "U":  # text is variable in length on disk
                variable = variable.astype(object)
            if coordinate_record(variable) != expected:
                text = "the coordinate has other values than the template says"
                yield Problem(key, "changed", "", text)


def _expected(record: StoreRecord) -> list[tuple[str, _Shard]]:
    return [
        (shard_key(units.array_path(name), index), (units, units.array_path(name), index))
        for units in record.sets
        for index in units.indices()
        for name in units.names
    ]


def _check_shards(
    states: Mapping[str, ShardState],
    sums: Mapping[str, str],
    shards: Mapping[str, _Shard],
    coords: _Coords,
) -> Iterator[Problem]:
    for key, found in states.items():
        units, _, index = shards[key]
        if found.state == "missing":
            yield Problem(key, "missing", _label(units, index, coords), "the shard is not there")
        elif found.state == "unreadable":
            text = f"the shard cannot be decoded ({found.reason})"
            yield Problem(key, "unreadable", _label(units, index, coords), text)
        elif sums.get(key, found.sha256) != found.sha256:
            yield Problem(key, "changed", _label(units, index, coords), _CHANGED)


def _label(units: UnitSet, index: Index, coords: _Coords) -> str:
    known = coords.get(units.group, {})
    return units.label(index, {d: dates_of(known[d].values) for d in TIME_DIMS if d in known})
