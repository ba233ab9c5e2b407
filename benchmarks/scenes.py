"""Radar scenes for the benchmarks: real cloud-optimised GeoTIFFs under a static STAC catalog."""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pystac
import rasterio
import yaml
from odc.geo.geobox import GeoBox
from pystac.extensions.projection import ProjectionExtension
from rasterio.enums import Resampling

FACTOR = 5
"""Pixels of 20 m along the edge of a cell of 100 m."""
START = np.datetime64("2024-01-01")
DATES = 96

_CELL = 100
_LEFT, _TOP, _CRS = 500_000, 5_600_000, "EPSG:32631"


def grid_of(world: Path, cells: int | None = None) -> GeoBox:
    """Return the grid of a world, or its corner of so many cells."""
    size = cells or int((world / "cells.txt").read_text())
    bounds = (_LEFT, _TOP - size * _CELL, _LEFT + size * _CELL, _TOP)
    return GeoBox.from_bbox(bounds, _CRS, shape=(size, size))


def write_world(folder: Path, *, cells: int, files: int) -> Path:
    """Write a few scenes and a catalog of many dates that share them; return the folder."""
    folder.mkdir(parents=True)
    (folder / "cells.txt").write_text(str(cells))
    fine = grid_of(folder).zoom_to((cells * FACTOR, cells * FACTOR))
    for number in range(files):
        for band, level in (("vv", 0.08), ("vh", 0.015)):
            _write_scene(folder / f"{band}_{number}.tif", fine, level, seed=number)
    dates = files if files > 1 else DATES
    items = [_make_item(folder, fine, number, number % files) for number in range(dates)]
    extent = pystac.Extent(
        pystac.SpatialExtent([[-180, -90, 180, 90]]), pystac.TemporalExtent([[None, None]])
    )
    root = pystac.Catalog("benchmark", "Scenes of speckle")
    collection = pystac.Collection("scenes", "Scenes of speckle", extent)
    root.add_child(collection)
    collection.add_items(items)
    root.normalize_and_save(str(folder), pystac.CatalogType.SELF_CONTAINED)
    (folder / "catalog.yml").write_text(yaml.safe_dump(_catalog()))
    return folder


def _write_scene(path: Path, fine: GeoBox, level: float, *, seed: int) -> None:
    """Write speckle of four looks on a smooth pattern, with a border of no data."""
    rng = np.random.default_rng(seed)
    rows, columns = fine.shape
    wave = (
        1 + 0.5 * np.sin(np.arange(columns) / 300)[None, :] * np.cos(np.arange(rows) / 500)[:, None]
    )
    power = (level * wave * rng.gamma(4, 1 / 4, (rows, columns))).astype(np.float32)
    power[:, : columns // 50] = 0
    profile = {
        "driver": "COG",
        "height": rows,
        "width": columns,
        "count": 1,
        "dtype": "float32",
        "crs": str(fine.crs),
        "transform": fine.affine,
        "nodata": 0,
        "blocksize": 512,
        "compress": "deflate",
        "level": 1,
        "predictor": "yes",
        "overview_resampling": Resampling.nearest.name,
    }
    with rasterio.open(path, "w", **profile) as file:
        file.write(power, 1)


def _make_item(folder: Path, fine: GeoBox, number: int, file: int) -> pystac.Item:
    start = datetime.fromisoformat(str(START)) + timedelta(days=number, hours=6)
    footprint = fine.footprint("EPSG:4326")
    item = pystac.Item(
        f"scene-{number:03d}",
        geometry=footprint.json,
        bbox=list(footprint.boundingbox.bbox),
        datetime=start,
        properties={
            "platform": "sentinel-1a",
            "sat:orbit_state": "ascending",
            "sat:relative_orbit": 1 + number % 175,
        },
    )
    for band in ("vv", "vh"):
        item.add_asset(band, pystac.Asset(str(folder / f"{band}_{file}.tif")))
    projection = ProjectionExtension.ext(item, add_if_missing=True)
    projection.apply(
        code=_CRS, shape=list(fine.shape.yx), transform=[float(v) for v in fine.affine[:6]]
    )
    return item


def _catalog() -> dict[str, object]:
    source = {
        "loader": "smgrid.sources.sentinel1:load_stac",
        "provides": ["vv", "vh"],
        "stac": {"href": "catalog.json", "collection": "scenes"},
        "assets": {"vv": "vv", "vh": "vh"},
        "units": {"vv": "1", "vh": "1"},
        "nodata": 0,
        "convention": "gamma0",
        "native_resolution": 20,
        "options": {"average": "db"},
    }
    return {
        "smgrid_catalog": 1,
        "name": "benchmark",
        "title": "Scenes of speckle",
        "sources": {"scenes": source},
    }
