"""A map made again from what its manifest says, and every byte compared.

Of a map that was extended, each span of dates was made from the cube as it was then. Dates can be
replayed from that state of the cube alone; where it is gone, what the cube holds now tells nothing
against them, and the report says so.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import fspath
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smgrid.cube.finishing import OWN, SUMS
from smgrid.cube.progress import ProgressFunction
from smgrid.cube.provenance import (
    INPUTS,
    MADE_FROM,
    VERSIONS,
    mended_in,
    periods_of,
    spans_of,
)
from smgrid.cube.record import MANIFEST_KEY, TEMPLATE_KEY, StoreRecord, read_record
from smgrid.cube.shards import shard_key
from smgrid.cube.storage import (
    StorePath,
    explaining,
    normalise_path,
    open_store,
    read_bytes,
)
from smgrid.cube.store import open_cube, open_map, write_cube
from smgrid.cube.verify import verify
from smgrid.errors import BundleError, StoreError
from smgrid.export.manifest import (
    RECORD,
    files_of,
    read_complete,
    sums_of,
    versions_now,
)
from smgrid.features.layout import FeatureLayout
from smgrid.inference.predict import predict
from smgrid.models.bundle import CARD_NAME, load_ensemble
from smgrid.models.ensemble import Ensemble

__all__ = ["ReplayReport", "SpanReport", "replay"]

_SHOWN = 10


@dataclass(frozen=True)
class SpanReport:
    """Dates that could not be replayed, because the cube is not as it was when they were made."""

    dates: str
    why: str
    """What they were made from, and what can be done."""
    shards: int
    agreeing: int
    """Those that are byte-identical all the same."""
    missing: int
    """Those that were not made again: the cube that was given does not have their dates."""

    def __str__(self) -> str:
        told = f"{self.agreeing} of {self.shards} shards agree all the same"
        if self.missing:
            told = f"{told}, {self.missing} are of dates that the cube does not have"
        return f"{self.dates}: not replayed, {self.why}; {told}"


@dataclass(frozen=True)
class ReplayReport:
    """What a replay found; ``print(report)`` tells it."""

    path: str
    """The map that was made again."""
    out: str
    """Where it was written."""
    compared: int
    """Shards, coordinates and metadata of arrays that were compared."""
    differing: tuple[str, ...]
    """Keys of those that are not byte-identical."""
    versions: Mapping[str, tuple[str, str]]
    """Packages that are not what they were: then and now. They may explain a difference."""
    replayed: tuple[str, ...] = ()
    """What of a map that was extended was compared: dates, each with the state of the cube."""
    others: tuple[SpanReport, ...] = ()
    """Dates that could not be replayed."""

    @property
    def ok(self) -> bool:
        """Whether every byte of the map is the same."""
        return not self.differing and all(one.agreeing == one.shards for one in self.others)

    def __str__(self) -> str:
        same = "byte-identical" if not self.others else "these byte-identical"
        verdict = f"{len(self.differing)} differ" if self.differing else same
        lines = [f"{self.out}: {self.compared} objects of {self.path} made again, {verdict}"]
        lines += [f"  {key}" for key in self.differing[:_SHOWN]]
        if len(self.differing) > _SHOWN:
            lines.append(f"  and {len(self.differing) - _SHOWN} more")
        lines += [f"  {name} was {old}, is {new}" for name, (old, new) in self.versions.items()]
        lines += [f"  {text}" for text in (*self.replayed, *self.others)]
        return "\n".join(lines)


def replay(
    path: StorePath,
    out: StorePath,
    *,
    cube: StorePath | None = None,
    ensemble: str | Path | None = None,
    progress: ProgressFunction | None = None,
) -> ReplayReport:
    """Make a map again from its manifest, and compare every byte.

    Dates of a map that was extended with `extend_map` are compared with what the cube gives if it
    is in the state that they were made from; give a copy of an earlier state as `cube` to replay
    the dates of then.

    Parameters
    ----------
    path
        Folder or URL of a complete map that was written with `map_manifest`.
    out
        Where to write the new one.
    cube, ensemble
        Where cube and ensemble are now, if they were moved.
    progress
        As in `write_cube`.

    Returns
    -------
    ReplayReport
        What differs, if anything does, and which dates could not be replayed.

    Raises
    ------
    StoreError
        The map does not say how it was made, is not sound any more, or no date of it was made from
        the cube as it is; or there is a map at `out` already.
    BundleError
        The ensemble is not the one.
    """
    place, record, manifest = read_complete(path)
    how = manifest.get(RECORD)
    if how is None:
        raise StoreError(
            f"{place} does not say how it was made ({MANIFEST_KEY} has no {RECORD!r}); only maps "
            "that were written with smgrid.map_manifest can be replayed"
        )
    _check_target(place, normalise_path(out))
    sound = verify(place)
    if not sound.ok:
        raise StoreError(f"{place} is not what was written, so nothing can be told of it: {sound}")
    times = open_map(place)["time"].values
    parts = _parts_of(manifest, times)
    source, state = _find_cube(how["cube"]["path"] if cube is None else cube, parts, place, times)
    networks = _find_ensemble(how, ensemble)
    sm = predict(open_cube(source), networks, **how["call"])
    new_times = sm["time"].values
    if not np.isin(new_times, times).all():  # such as what came too late to be added
        sm = sm.isel(time=np.flatnonzero(np.isin(new_times, times)))
    shard = max(units.shards[-1] for units in record.sets)
    made = [part for part in parts if part.state == state][-1]
    write_cube(sm, out, shard=shard, manifest=_manifest_of(manifest, made), progress=progress)
    return _compare(place, normalise_path(out), record, parts, made)


@dataclass(frozen=True)
class _Part:
    """Steps of a map that were made from one state of the cube."""

    steps: npt.NDArray[np.bool_]
    made_from: Mapping[str, Any]
    """Empty if it is not known."""
    is_mended: bool = False
    """Whether some units of each step were lost, and made again from another state."""

    @property
    def state(self) -> str:
        """Digest of all that the cube held; empty if it is not known, or not one."""
        return "" if self.is_mended else self.made_from.get("cube", {}).get("sha256sums", "")

    @property
    def cube(self) -> str:
        """Place and state of the cube, for people."""
        if self.is_mended:
            return "several states of the cube, as units were lost and made again"
        if not self.made_from:
            return "what the map does not say"
        cube = self.made_from["cube"]
        return f"{cube['path']} with the sums {cube['sha256sums'][:12]}"

    def dates(self, times: npt.NDArray[np.datetime64]) -> str:
        """First and last of its dates, of every run of them."""
        return ", ".join(periods_of(self.steps, times))


def _parts_of(manifest: Mapping[str, Any], times: npt.NDArray[np.datetime64]) -> list[_Part]:
    """Return the spans of a map without steps of more than one state, and those; oldest first."""
    how = manifest[RECORD]
    mended = mended_in(manifest, times)
    *older, newest = spans_of(manifest, times)
    parts = []
    for span in (*older, newest):
        known = span.made_from
        if known is None and span is newest:  # of a version that kept no more than this
            known = {"cube": how["cube"], VERSIONS: how["versions"]}
        pieces = (_Part(span.steps & ~mended, known or {}), _Part(span.steps & mended, {}, True))
        parts += [part for part in pieces if part.steps.any()]
    return parts


def _manifest_of(manifest: Mapping[str, Any], made: _Part) -> dict[str, Any]:
    """Return the manifest of a map all of which is made from the state of one part."""
    own = {key: value for key, value in manifest.items() if not key.startswith(OWN)}
    if INPUTS not in made.made_from:
        return own
    record = {**own[RECORD], "cube": made.made_from["cube"], VERSIONS: made.made_from[VERSIONS]}
    return {**own, RECORD: record, MADE_FROM: made.made_from}


def _check_target(path: str, out: str) -> None:
    """Refuse to take what is there already for what is made now."""
    if out != path:
        try:
            store = open_store(out)
        except StoreError:  # nothing is there yet
            return
        with explaining(out):
            if read_bytes(store, TEMPLATE_KEY) is None:
                return
            if read_record(store, out).status != "complete":
                return  # what an interrupted replay has begun
    raise StoreError(
        f"{out} holds a map already, which would be compared instead of a new one; give another "
        "place, or remove it"
    )


def _find_cube(
    cube: StorePath, parts: list[_Part], path: str, times: npt.NDArray[np.datetime64]
) -> tuple[str, str]:
    """Return place and state of the cube, if anything was made from it as it is."""
    place, _, manifest = read_complete(cube)
    state: str = manifest[SUMS]
    if not any(part.state == state for part in parts):
        made = "\n".join(f"  {part.dates(times)} from {part.cube}" for part in parts)
        raise StoreError(
            f"{place} is not what the map was made of: its sums are {state[:12]}, and the dates of "
            f"{path} were made\n{made}\nIf it was updated since, give a copy of an old state as "
            "cube="
        )
    return place, state


def _find_ensemble(how: Mapping[str, Any], moved: str | Path | None) -> Ensemble:
    expected = how["ensemble"]
    place = expected["path"] if moved is None else moved
    layout = {key: value for key, value in how["layout"].items() if key != "digest"}
    is_bundle = (Path(place) / CARD_NAME).is_file()
    found = load_ensemble(place, layout=None if is_bundle else FeatureLayout.from_dict(layout))
    if found.digest != expected["digest"] or files_of(place) != expected["files"]:
        raise BundleError(
            f"{fspath(place)} is not the ensemble that the map was made with: found "
            f"{found.digest[:12]}, expected {expected['digest'][:12]}, with calibration and "
            "applicability as they were; give its place as ensemble="
        )
    return found


def _compare(
    first: str, second: str, record: StoreRecord, parts: list[_Part], made: _Part
) -> ReplayReport:
    """Compare the parts of a map that were made from one state, and look at the others."""
    before, after = sums_of(first), sums_of(second)
    times, new_times = (open_map(path)["time"].values for path in (first, second))
    places = {time: at for at, time in enumerate(new_times)}
    own: dict[str, str] = {}
    shards: set[str] = set()
    others, replayed = [], []
    for part in parts:
        pairs = dict(_shards_of(record, part, times, places))
        shards |= pairs.keys()
        if part.state == made.state:
            own |= pairs
            replayed.append(f"{part.dates(times)}: replayed from {part.cube}")
            continue
        agreeing = sum(before[key] == after.get(new, "") for key, new in pairs.items())
        missing = sum(new == "" for new in pairs.values())
        why = f"made from {part.cube}"
        if part.state:
            why += ", which it is no more (a copy of that state can be given as cube=)"
        others.append(SpanReport(part.dates(times), why, len(pairs), agreeing, missing))
    newest = [part for part in parts if not part.is_mended][-1]
    if np.array_equal(times, new_times) and newest.state == made.state:
        own |= {key: key for key in (before.keys() | after.keys()) - shards}
    else:
        replayed.append("metadata and coordinates: not compared, they are of the newest state")
    then, now = made.made_from[VERSIONS], versions_now()
    return ReplayReport(
        path=first,
        out=second,
        compared=len(own),
        differing=tuple(k for k, new in sorted(own.items()) if before.get(k) != after.get(new)),
        versions={
            name: (then.get(name, "missing"), now.get(name, "missing"))
            for name in sorted(then.keys() | now.keys())
            if then.get(name) != now.get(name)
        },
        replayed=tuple(replayed) if len(parts) > 1 else (),
        others=tuple(others),
    )


def _shards_of(
    record: StoreRecord,
    part: _Part,
    times: npt.NDArray[np.datetime64],
    places: Mapping[np.datetime64, int],
) -> Iterator[tuple[str, str]]:
    """Yield the keys of the shards of a part, and those in the other map; empty if it has none."""
    for units in record.sets:
        for step in np.flatnonzero(part.steps).tolist():
            place = places.get(times[step])
            for tile in np.ndindex(*units.counts[1:]):
                for array in map(units.array_path, units.names):
                    new = "" if place is None else shard_key(array, (place, *tile))
                    yield shard_key(array, (step, *tile)), new
