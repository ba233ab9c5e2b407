"""What a map was made of, kept beside it, and the map made again from that.

The record names the cube and the ensemble by path and by hash, so that a replay either works on
the same inputs or says which of them is another one.
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from os import fspath
from pathlib import Path
from typing import Any

import smgrid
from smgrid.cube.checksums import read_sums
from smgrid.cube.encoding import json_attrs
from smgrid.cube.finishing import SELF, SUMS
from smgrid.cube.progress import ProgressFunction
from smgrid.cube.record import MANIFEST_KEY, StoreRecord, read_record
from smgrid.cube.storage import (
    StorePath,
    explaining,
    list_keys,
    normalise_path,
    open_store,
    read_json,
)
from smgrid.cube.store import open_cube, write_cube
from smgrid.cube.verify import verify
from smgrid.errors import BundleError, IncompleteStoreError, StoreError
from smgrid.features.layout import FeatureLayout
from smgrid.inference.predict import predict
from smgrid.models.bundle import CARD_NAME, load_ensemble
from smgrid.models.ensemble import Ensemble

RECORD = "map"
"""Key of the record in the manifest of a map."""

_PACKAGES = ("numpy", "numba", "torch", "xarray", "zarr", "dask", "pandas", "odc-geo", "pyproj")
_SHOWN = 10


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

    @property
    def ok(self) -> bool:
        """Whether every byte is the same."""
        return not self.differing

    def __str__(self) -> str:
        verdict = "byte-identical" if self.ok else f"{len(self.differing)} differ"
        lines = [f"{self.out}: {self.compared} objects of {self.path} made again, {verdict}"]
        lines += [f"  {key}" for key in self.differing[:_SHOWN]]
        if len(self.differing) > _SHOWN:
            lines.append(f"  and {len(self.differing) - _SHOWN} more")
        lines += [f"  {name} was {old}, is {new}" for name, (old, new) in self.versions.items()]
        return "\n".join(lines)


def map_manifest(
    cube: StorePath,
    ensemble: Ensemble,
    *,
    ensemble_path: str | Path,
    call: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the record of how a map is made, for ``write_cube(..., manifest=...)``.

    Parameters
    ----------
    cube
        Folder or URL of the complete cube that is mapped.
    ensemble, ensemble_path
        The ensemble, and what `load_ensemble` loaded it from.
    call
        Keyword arguments of `predict`.

    Returns
    -------
    dict
        JSON-ready: the cube with its own manifest's hashes and its inputs, layout, bundle, call,
        seeds and versions.

    Raises
    ------
    IncompleteStoreError, StoreError
        The cube is not complete or no store, or has no sums.
    """
    path, _, manifest = _read_manifest(cube)
    own = {key: value for key, value in manifest.items() if not key.startswith("smgrid_")}
    record = {
        "cube": {
            "path": path,
            "sha256sums": manifest[SUMS],
            "manifest_sha256": manifest[SELF],
            "inputs": own,
        },
        "layout": {"digest": ensemble.layout.digest, **ensemble.layout.to_dict()},
        "ensemble": {
            "path": _place(ensemble_path),
            "digest": ensemble.digest,
            "files": _files(ensemble_path),
        },
        "call": dict(call),
        "seeds": {},  # nothing in a map is drawn
        "versions": _versions(),
    }
    return {RECORD: json_attrs(record, where="manifest")}


def replay(
    path: StorePath,
    out: StorePath,
    *,
    cube: StorePath | None = None,
    ensemble: str | Path | None = None,
    progress: ProgressFunction | None = None,
) -> ReplayReport:
    """Make a map again from its manifest, and compare every byte.

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
        What differs, if anything does.

    Raises
    ------
    StoreError
        The map does not say how it was made, is not sound any more, or the cube is not the one
        that it was made of; or there is a map at `out` already.
    BundleError
        The ensemble is not the one.
    """
    place, record, manifest = _read_manifest(path)
    how = manifest.get(RECORD)
    if how is None:
        raise StoreError(
            f"{place} does not say how it was made ({MANIFEST_KEY} has no {RECORD!r}); only maps "
            "that were written with smgrid.export.replay.map_manifest can be replayed"
        )
    _check_target(place, normalise_path(out))
    sound = verify(place)
    if not sound.ok:
        raise StoreError(f"{place} is not what was written, so nothing can be told of it: {sound}")
    source = _find_cube(how["cube"], cube)
    networks = _find_ensemble(how, ensemble)
    sm = predict(open_cube(source), networks, **how["call"])
    shard = max(units.shards[-1] for units in record.sets)
    write_cube(sm, out, shard=shard, manifest={RECORD: how}, progress=progress)
    return _compare(place, normalise_path(out), how["versions"])


def _check_target(path: str, out: str) -> None:
    """Refuse to take what is there already for what is made now."""
    if out != path:
        try:
            store = open_store(out)
        except StoreError:  # nothing is there yet
            return
        if read_json(store, MANIFEST_KEY) is None:
            return  # what an interrupted replay has begun
    raise StoreError(
        f"{out} holds a map already, which would be compared instead of a new one; give another "
        "place, or remove it"
    )


def _read_manifest(path: StorePath) -> tuple[str, StoreRecord, dict[str, Any]]:
    place = normalise_path(path)
    with explaining(place):
        store = open_store(place)
        record = read_record(store, place)
        manifest = read_json(store, MANIFEST_KEY) or {}
    if record.status != "complete":
        raise IncompleteStoreError(f"{place} is {record.status}; finish it first")
    if not {SELF, SUMS} <= manifest.keys():
        raise StoreError(f"{place} has no sums of what it holds; write it again")
    return place, record, manifest


def _place(ensemble_path: str | Path) -> str:
    """Return a path that is found from anywhere; names of released ensembles stay."""
    folder = Path(ensemble_path)
    return str(folder.resolve()) if folder.is_dir() else fspath(ensemble_path)


def _files(ensemble_path: str | Path) -> dict[str, str]:
    """Return the hashes of what comes with the weights of a bundle."""
    card = Path(ensemble_path) / CARD_NAME
    if not card.is_file():
        return {}
    content = json.loads(card.read_text(encoding="utf-8"))
    files: dict[str, str] = content.get("files", {})
    return files


def _find_cube(how: Mapping[str, Any], moved: StorePath | None) -> str:
    place, _, manifest = _read_manifest(how["path"] if moved is None else moved)
    if manifest[SUMS] != how["sha256sums"]:
        raise StoreError(
            f"{place} is not what the map was made of: its sums are {manifest[SUMS][:12]}, not "
            f"{how['sha256sums'][:12]}. If it was updated since, give a copy of the old state as "
            "cube="
        )
    return place


def _find_ensemble(how: Mapping[str, Any], moved: str | Path | None) -> Ensemble:
    expected = how["ensemble"]
    place = expected["path"] if moved is None else moved
    layout = {key: value for key, value in how["layout"].items() if key != "digest"}
    is_bundle = (Path(place) / CARD_NAME).is_file()
    found = load_ensemble(place, layout=None if is_bundle else FeatureLayout.from_dict(layout))
    if found.digest != expected["digest"] or _files(place) != expected["files"]:
        raise BundleError(
            f"{fspath(place)} is not the ensemble that the map was made with: found "
            f"{found.digest[:12]}, expected {expected['digest'][:12]}, with calibration and "
            "applicability as they were; give its place as ensemble="
        )
    return found


def _compare(first: str, second: str, versions: Mapping[str, str]) -> ReplayReport:
    before, after = (_sums(path) for path in (first, second))
    keys = sorted(before.keys() | after.keys())
    now = _versions()
    return ReplayReport(
        path=first,
        out=second,
        compared=len(keys),
        differing=tuple(key for key in keys if before.get(key) != after.get(key)),
        versions={
            name: (versions.get(name, "missing"), now.get(name, "missing"))
            for name in sorted(versions.keys() | now.keys())
            if versions.get(name) != now.get(name)
        },
    )


def _sums(path: str) -> dict[str, str]:
    with explaining(path):
        store = open_store(path)
        return read_sums(store, list_keys(store))


def _versions() -> dict[str, str]:
    found = {"smgrid": smgrid.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # numba is optional
            continue
    return found
