"""GeoZarr attributes: the CRS and extent of a group, and the overviews that belong to a map.

The conventions ``proj``, ``spatial`` and ``multiscales`` at their version 0.1, as registered at
https://github.com/zarr-conventions.
"""

from collections.abc import Mapping
from typing import Any

from odc.geo.geobox import GeoBox

from smgrid.grid import require_north_up

FOLDER = "overviews"
"""Group of a map that holds a group per overview, named by its factor."""

MULTISCALES = "multiscales"
_SOURCE = "https://raw.githubusercontent.com/zarr-conventions/{name}/refs/tags/v0.1/schema.json"
_README = "https://github.com/zarr-conventions/{name}/blob/v0.1/README.md"


def _convention(name: str, uuid: str, description: str) -> dict[str, str]:
    return {
        "uuid": uuid,
        "name": name,
        "schema_url": _SOURCE.format(name=name),
        "spec_url": _README.format(name=name),
        "description": description,
    }


_PROJ = _convention(
    "proj",
    "f17cb550-5864-4468-aeb7-f3180cfb622f",
    "Coordinate reference system information for geospatial data",
)
_SPATIAL = _convention(
    "spatial", "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "Spatial coordinate information"
)
_MULTISCALES = _convention(
    MULTISCALES, "d35379db-88df-4056-af3a-620245f8e347", "Multiscale layout of zarr datasets"
)


def geo_attrs(grid: GeoBox) -> dict[str, Any]:
    """Return the ``proj:`` and ``spatial:`` attributes of a grid."""
    crs = require_north_up(grid).proj
    authority = crs.to_authority(min_confidence=100)
    bounds = grid.boundingbox
    code = {"proj:code": ":".join(authority)} if authority else {}
    return {
        "zarr_conventions": [_PROJ, _SPATIAL],
        **code,
        "proj:wkt2": crs.to_wkt(),
        "spatial:dimensions": ["y", "x"],
        "spatial:transform_type": "affine",
        **_placement(grid),
        "spatial:bbox": [bounds.left, bounds.bottom, bounds.right, bounds.top],
        "spatial:registration": "pixel",
    }


def _placement(grid: GeoBox) -> dict[str, Any]:
    return {
        "spatial:transform": [float(number) for number in grid.affine[:6]],
        "spatial:shape": [int(size) for size in grid.shape],
    }


def multiscales(grids: Mapping[int, GeoBox]) -> dict[str, Any]:
    """Return the ``multiscales`` attribute of a map.

    Parameters
    ----------
    grids
        Grids by factor, finest first; factor 1 is the map itself, which is the group that carries
        the attribute and is therefore called ``"."``.

    Notes
    -----
    Every overview is derived from the map and not from the one before it. All have its upper left
    corner, so that nothing is translated. The method is that of quantities; bits of a mask are set
    where they hold in most pixels, as ``cell_methods`` of each variable tells.
    """
    layout = []
    for factor, grid in grids.items():
        level: dict[str, Any] = {"asset": "." if factor == 1 else f"{FOLDER}/{factor}"}
        if factor > 1:
            level["derived_from"] = "."
        scale = [float(factor), float(factor)]
        level["transform"] = {"scale": scale, "translation": [0.0, 0.0]}
        layout.append(level | _placement(grid))
    return {"layout": layout, "resampling_method": "average"}


def link_overviews(
    root: Mapping[str, Any], overviews: Mapping[str, Any], attribute: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the root's metadata of a map with its overviews among them.

    Parameters
    ----------
    root, overviews
        Content of ``zarr.json`` of the map and of the group of its overviews, whose consolidated
        metadata become part of the map's.
    attribute
        See `multiscales`.
    """
    root = unlink_overviews(root)
    node = dict(overviews)
    below = node.pop("consolidated_metadata")["metadata"]
    # As zarr writes groups inside of consolidated metadata.
    node["consolidated_metadata"] = root["consolidated_metadata"] | {"metadata": {}}
    added = {FOLDER: node} | {f"{FOLDER}/{key}": content for key, content in below.items()}
    attrs = root["attributes"]
    return root | {
        "attributes": attrs
        | {"zarr_conventions": [*attrs["zarr_conventions"], _MULTISCALES], MULTISCALES: attribute},
        "consolidated_metadata": root["consolidated_metadata"]
        | {"metadata": root["consolidated_metadata"]["metadata"] | added},
    }


def unlink_overviews(root: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `link_overviews`; metadata without overviews stay as they are."""
    if not is_linked(root):
        return dict(root)
    attrs = {key: value for key, value in root["attributes"].items() if key != MULTISCALES}
    attrs["zarr_conventions"] = [c for c in attrs["zarr_conventions"] if c != _MULTISCALES]
    consolidated = root["consolidated_metadata"]
    kept = {
        key: content
        for key, content in consolidated["metadata"].items()
        if key != FOLDER and not key.startswith(f"{FOLDER}/")
    }
    return {
        **root,
        "attributes": attrs,
        "consolidated_metadata": consolidated | {"metadata": kept},
    }


def is_linked(root: Mapping[str, Any]) -> bool:
    """Whether the root's metadata tell of overviews."""
    return MULTISCALES in root["attributes"]


def linked_factors(root: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the factors of the overviews that the root's metadata tell of."""
    if not is_linked(root):
        return ()
    assets = [level["asset"] for level in root["attributes"][MULTISCALES]["layout"]]
    return tuple(int(asset.rpartition("/")[2]) for asset in assets if asset != ".")
