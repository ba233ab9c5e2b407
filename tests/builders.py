"""Small providers for tests: COGs with rasterio, static STAC catalogs with pystac, specs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pystac
import rasterio
from odc.geo.geobox import GeoBox
from pystac.extensions.projection import ProjectionExtension
from rasterio.enums import Resampling

from smgrid.catalog import SourceSpec, StacQuery


def utm_grid(shape=(4, 5), resolution=100, *, left=500_000, top=5_600_000, crs="EPSG:32631"):
    """Return a north-up grid in UTM."""
    bounds = (left, top - shape[0] * resolution, left + shape[1] * resolution, top)
    return GeoBox.from_bbox(bounds, crs, shape=shape, tight=True)


def write_cog(path, values, geobox, *, nodata=None, overviews=None, crs="of the geobox"):
    """Write one band as a tiled GeoTIFF; `overviews` is the garbage that its overviews hold."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        "driver": "GTiff",
        "dtype": values.dtype.name,
        "count": 1,
        "width": geobox.shape.x,
        "height": geobox.shape.y,
        "transform": geobox.affine,
        "crs": str(geobox.crs) if crs == "of the geobox" else crs,
        "nodata": nodata,
        "tiled": True,
        "blockxsize": 64,
        "blockysize": 64,
        "compress": "deflate",
    }
    with rasterio.open(path, "w", **profile) as dst:
        dst.write(values if overviews is None else np.full_like(values, overviews), 1)
    if overviews is not None:
        with rasterio.open(path, "r+") as dst:
            dst.build_overviews([2, 4], Resampling.nearest)
        with rasterio.open(path, "r+") as dst:
            dst.write(values, 1)
    return path


def make_item(item_id, geobox, assets, *, start, end=None, projection="stated", **properties):
    """Return a STAC item whose assets (key -> path) lie on `geobox`."""
    start = pd.Timestamp(start)
    end = pd.Timestamp(end) if end else start + pd.Timedelta(seconds=25)
    footprint = geobox.footprint("EPSG:4326")
    item = pystac.Item(
        item_id,
        geometry=footprint.json,
        bbox=list(footprint.boundingbox.bbox),
        datetime=(start + (end - start) / 2).to_pydatetime(),
        properties={
            "start_datetime": f"{start.isoformat()}Z",
            "end_datetime": f"{end.isoformat()}Z",
            **properties,
        },
    )
    for key, path in assets.items():
        item.add_asset(key, pystac.Asset(str(path), media_type=pystac.MediaType.COG))
    if projection == "stated":
        stated = ProjectionExtension.ext(item, add_if_missing=True)
        stated.apply(
            code=f"EPSG:{geobox.crs.epsg}",
            shape=list(geobox.shape.yx),
            transform=list(geobox.affine)[:6],
        )
    return item


def write_catalog(folder, collection, items):
    """Write a static STAC catalog with one collection; return the path of its catalog.json."""
    root = pystac.Catalog("root", "A catalog for a test")
    everything = pystac.Extent(
        pystac.SpatialExtent([[-180, -90, 180, 90]]), pystac.TemporalExtent([[None, None]])
    )
    child = pystac.Collection(collection, "A collection for a test", everything)
    root.add_child(child)
    child.add_items(items)
    root.normalize_and_save(str(folder), pystac.CatalogType.SELF_CONTAINED)
    return Path(folder) / "catalog.json"


def stac_spec(href, *, collection="s1", loader="smgrid.sources.sentinel1:load_stac", **changes):
    """Return the spec of a Sentinel-1 STAC source in linear power."""
    query = changes.pop("query", {})
    sign = changes.pop("sign", "none")
    defaults = {
        "name": "s1",
        "loader": loader,
        "provides": ("vv", "vh"),
        "stac": StacQuery(href=str(href), collection=collection, query=query, sign=sign),
        "assets": {"vv": "vv", "vh": "vh"},
        "units": {"vv": "1", "vh": "1"},
        "convention": "gamma0",
        "native_resolution": 10.0,
        "origin": "test.yml, line 1",
    }
    return SourceSpec(**{**defaults, **changes})
