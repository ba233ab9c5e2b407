"""The static STAC catalog: plain JSON documents with relative links, in the usual folders.

Written as documents rather than through a library, so that items keep the STAC version (1.0.0) and
the very fields that the providers' catalogs have.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from odc.geo.geobox import GeoBox

from smgrid.grid import transform_points

Item = dict[str, Any]

STAC_VERSION = "1.0.0"
COG_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"
PROJECTION_EXTENSION = "https://stac-extensions.github.io/projection/v1.1.0/schema.json"
_DECIMALS = 7  # of a degree: a centimetre


@dataclass(frozen=True)
class Collection:
    """What a collection says about itself."""

    id: str
    title: str
    description: str


def make_item(
    name: str,
    *,
    collection: str,
    grid: GeoBox,
    properties: Mapping[str, Any],
    assets: Mapping[str, Any],
    extensions: Sequence[str],
) -> Item:
    """STAC item of rasters on one grid; asset hrefs are relative to the item's folder."""
    ring = _lonlat_ring(grid)
    return {
        "id": name,
        "bbox": _bounds(ring),
        "type": "Feature",
        "links": [],
        "assets": dict(assets),
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "collection": collection,
        "properties": dict(properties),
        "stac_extensions": list(extensions),
        "stac_version": STAC_VERSION,
    }


def write_catalog(root: Path, collections: Sequence[tuple[Collection, Sequence[Item]]]) -> None:
    """Write catalog, collections and items under `root`, which holds the assets already."""
    children = []
    for collection, items in collections:
        _write_collection(root / collection.id, collection, items)
        children.append(_link("child", f"./{collection.id}/collection.json"))
    catalog = {
        "type": "Catalog",
        "id": "smgrid-simulated-world",
        "stac_version": STAC_VERSION,
        "description": "A simulated world with known soil moisture; no satellite saw it.",
        "links": [_link("root", "./catalog.json"), *children],
    }
    _write(root / "catalog.json", catalog)


def _write_collection(folder: Path, collection: Collection, items: Sequence[Item]) -> None:
    boxes = [item["bbox"] for item in items]
    dates = sorted(date for item in items for date in _dates(item))
    document = {
        "type": "Collection",
        "id": collection.id,
        "title": collection.title,
        "description": collection.description,
        "stac_version": STAC_VERSION,
        "license": "CC0-1.0",
        "extent": {
            "spatial": {"bbox": [_union(boxes)]},
            "temporal": {"interval": [[dates[0], dates[-1]]]},
        },
        "links": [
            _link("root", "../catalog.json"),
            _link("parent", "../catalog.json"),
            *(_link("item", f"./{item['id']}/{item['id']}.json") for item in items),
        ],
    }
    _write(folder / "collection.json", document)
    links = [
        _link("root", "../../catalog.json"),
        _link("parent", "../collection.json"),
        _link("collection", "../collection.json"),
    ]
    for item in items:
        _write(folder / item["id"] / f"{item['id']}.json", item | {"links": links})


def _dates(item: Item) -> list[str]:
    """Return the times of an item as RFC 3339 requires them of a collection."""
    found = (item["properties"].get(k) for k in ("start_datetime", "datetime", "end_datetime"))
    return [date.replace(" ", "T").replace("+00:00", "Z") for date in found if date]


def _link(relation: str, href: str) -> dict[str, str]:
    return {"rel": relation, "href": href, "type": "application/json"}


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")


def _lonlat_ring(grid: GeoBox) -> list[list[float]]:
    """Corners of a grid [degree], counter-clockwise and closed."""
    box = grid.boundingbox
    x = np.array([box.left, box.right, box.right, box.left, box.left])
    y = np.array([box.bottom, box.bottom, box.top, box.top, box.bottom])
    lon, lat = transform_points(x, y, grid.crs, "EPSG:4326")
    corners = zip(lon, lat, strict=True)
    return [[round(float(p), _DECIMALS) for p in corner] for corner in corners]


def _bounds(ring: Sequence[Sequence[float]]) -> list[float]:
    x, y = zip(*ring, strict=True)
    return [min(x), min(y), max(x), max(y)]


def _union(boxes: Sequence[Sequence[float]]) -> list[float]:
    west, south, east, north = zip(*boxes, strict=True)
    return [min(west), min(south), max(east), max(north)]
