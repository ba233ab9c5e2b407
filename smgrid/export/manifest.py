"""What a map is made of, kept beside it: cube, ensemble, call and versions, by path and by hash."""

import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from os import fspath
from pathlib import Path
from typing import Any

import smgrid
from smgrid.cube.checksums import read_sums
from smgrid.cube.coords import TIME_DIMS
from smgrid.cube.encoding import json_attrs
from smgrid.cube.extending import without_extents
from smgrid.cube.finishing import SELF, SUMS
from smgrid.cube.provenance import INPUTS, LINEAGE, MADE_FROM, VERSIONS
from smgrid.cube.record import StoreRecord, read_manifest, read_record
from smgrid.cube.shards import shard_key
from smgrid.cube.storage import StorePath, explaining, normalise_path, open_store
from smgrid.cube.template import digest_of
from smgrid.errors import IncompleteStoreError, StoreError
from smgrid.models.bundle import CARD_NAME
from smgrid.models.ensemble import Ensemble

RECORD = "map"
"""Key of the record in the manifest of a map."""

_EXTENTS = frozenset({"period", "scenes", "time"})
"""Entries of a cube's manifest that a longer one of the same inputs has otherwise."""
_PACKAGES = ("numpy", "numba", "torch", "xarray", "zarr", "dask", "pandas", "odc-geo", "pyproj")


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
        JSON-ready. ``map``: the cube with its own manifest's hashes and its inputs, layout,
        bundle, call, seeds and versions. ``made_from``: what of it a store keeps for each of its
        dates and compares, see `smgrid.cube.provenance`. A later state of the same cube has the
        same static variables, catalog, grid, variables and inputs in its manifest, whatever its
        period; of the weather and the acquisitions nothing is compared.

    Raises
    ------
    IncompleteStoreError, StoreError
        The cube is not complete or no store, or has no sums.
    """
    source = _describe_cube(cube)
    files = files_of(ensemble_path)
    networks = {"path": _place(ensemble_path), "digest": ensemble.digest, "files": files}
    record = {
        "cube": source,
        "layout": {"digest": ensemble.layout.digest, **ensemble.layout.to_dict()},
        "ensemble": networks,
        "call": dict(call),
        "seeds": {},  # nothing in a map is drawn
        "versions": versions_now(),
    }
    own = json_attrs(record, where="manifest")
    # What is not given is as if the default were given.
    how = {key: value for key, value in own["call"].items() if value not in (None, [])}
    bundle = {
        "digest": ensemble.digest,
        "files_sha256": digest_of(files),
        "layout": ensemble.layout.digest,
    }
    same = {"ensemble": bundle, "call": how}
    origin = {
        INPUTS: digest_of({**same, "cube": source["sha256sums"]}),
        LINEAGE: digest_of({**same, "cube": source["lasting_sha256"]}),
        "cube": own["cube"],
        "ensemble": {"path": networks["path"], **bundle},
        "call": own["call"],
        VERSIONS: own["versions"],
    }
    return {RECORD: own, MADE_FROM: origin}


def _describe_cube(cube: StorePath) -> dict[str, Any]:
    """Return what tells which cube, and which state of it, a map is made from."""
    path, record, manifest = read_complete(cube)
    own = {key: value for key, value in manifest.items() if not key.startswith("smgrid_")}
    static = {
        shard_key(units.array_path(name), index)
        for units in record.sets
        if not {*units.dims} & {*TIME_DIMS}
        for name in units.names
        for index in units.indices()
    }
    lasting = {  # whatever `update_cube` does
        "template": without_extents(record.template),
        "static": {key: value for key, value in sums_of(path).items() if key in static},
        "inputs": {key: value for key, value in own.items() if key not in _EXTENTS},
    }
    return {
        "path": path,
        "catalog": record.template["groups"].get("", {}).get("attrs", {}).get("smgrid_catalog"),
        "sha256sums": manifest[SUMS],
        "manifest_sha256": manifest[SELF],
        "lasting_sha256": digest_of(lasting),
        "inputs": own,
    }


def read_complete(path: StorePath) -> tuple[str, StoreRecord, dict[str, Any]]:
    """Return place, record and manifest of a complete store, or raise what it lacks."""
    place = normalise_path(path)
    with explaining(place):
        store = open_store(place)
        record = read_record(store, place)
        manifest = read_manifest(store)
    if record.status != "complete":
        raise IncompleteStoreError(f"{place} is {record.status}; finish it first")
    if not {SELF, SUMS} <= manifest.keys():
        raise StoreError(f"{place} has no sums of what it holds; write it again")
    return place, record, manifest


def _place(ensemble_path: str | Path) -> str:
    """Return a path that is found from anywhere; names of released ensembles stay."""
    folder = Path(ensemble_path)
    return str(folder.resolve()) if folder.is_dir() else fspath(ensemble_path)


def files_of(ensemble_path: str | Path) -> dict[str, str]:
    """Return the hashes of what comes with the weights of a bundle."""
    card = Path(ensemble_path) / CARD_NAME
    if not card.is_file():
        return {}
    content = json.loads(card.read_text(encoding="utf-8"))
    files: dict[str, str] = content.get("files", {})
    return files


def sums_of(path: str) -> dict[str, str]:
    """Return the sums of all that a complete store holds, by key."""
    with explaining(path):
        return read_sums(open_store(path), ())  # there are no parts of them any more


def versions_now() -> dict[str, str]:
    """Return the versions of the packages that make a map."""
    found = {"smgrid": smgrid.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # numba is optional
            continue
    return found
