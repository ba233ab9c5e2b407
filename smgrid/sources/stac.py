"""Pixels of STAC items: on the items' own lattice, exact, and never from overviews."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import odc.stac
import pystac
import xarray as xr
from odc.geo import CRS
from odc.geo.geobox import GeoBox
from pystac.extensions.projection import ProjectionExtension

from smgrid.catalog import SourceSpec
from smgrid.errors import SourceError
from smgrid.sources.reader import AssetDriver
from smgrid.sources.search import item_span, no_data, search_items, stac_query
from smgrid.yamltext import suggest

__all__ = [
    "item_span",
    "load_items",
    "no_data",
    "search_items",
    "split_by_lattice",
    "stac_query",
]


def split_by_lattice(
    spec: SourceSpec, items: Iterable[pystac.Item], assets: Sequence[str]
) -> list[tuple[GeoBox, list[pystac.Item]]]:
    """Return the items by the lattice of their pixels, each with one GeoBox on that lattice.

    Two items share a lattice when CRS, pixel size and alignment agree. Items that do not state
    their projection get it from the header of their file.
    """
    driver = AssetDriver.of(spec)
    lattices: dict[Any, tuple[GeoBox, list[pystac.Item]]] = {}
    for item in items:
        geobox = _native_geobox(spec, item, assets, driver)
        a, _, x, _, e, y, *_ = geobox.affine
        offset = [round(part % 1, 3) % 1 for part in (x / a, y / e)]
        key = (str(geobox.crs), round(a, 6), round(e, 6), *offset)
        lattices.setdefault(key, (geobox, []))[1].append(item)
    return list(lattices.values())


def load_items(
    spec: SourceSpec,
    items: Sequence[pystac.Item],
    geobox: GeoBox,
    *,
    assets: Mapping[str, str],
    groups: Mapping[str, int],
    chunks: int,
) -> xr.Dataset:
    """Return the pixels of items, those of one group mosaicked, lazily.

    Parameters
    ----------
    spec
        Signing, CRS and nodata of the assets.
    items
        From `search_items`.
    geobox
        Where, on the items' own lattice (see `split_by_lattice`): the pixels are exact copies.
    assets
        Variable -> asset key.
    groups
        Item id -> group; where slices of a group overlap, the first by time and id wins.
    chunks
        Tile edge [pixels of `geobox`].

    Returns
    -------
    xarray.Dataset
        float32 (group, y, x), values as stored, NaN where missing.

    Raises
    ------
    SourceError
        If no item has a wanted asset; when computed, if an asset cannot be read.
    """
    _check_assets(spec, items, assets)
    bands = {}
    for name, key in assets.items():
        # odc-stac takes an item without the asset for an item of another kind of collection.
        holding = [item for item in items if key in item.assets]
        loaded = odc.stac.load(
            holding,
            bands=[key],
            geobox=geobox,
            groupby=lambda item, parsed, index: groups[item.id],
            dtype="float32",
            nodata=float("nan"),
            resampling="nearest",
            use_overviews=False,
            fail_on_error=True,
            chunks={"y": chunks, "x": chunks},
            driver=AssetDriver.of(spec),
        )
        numbers = sorted({groups[item.id] for item in holding})
        bands[name] = (
            loaded[key].rename(time="group").assign_coords(group=numbers).drop_attrs(deep=False)
        )
    everything = sorted({groups[item.id] for item in items})
    return xr.Dataset({name: da.reindex(group=everything) for name, da in bands.items()})


def _native_geobox(
    spec: SourceSpec, item: pystac.Item, assets: Sequence[str], driver: AssetDriver
) -> GeoBox:
    """Return the grid of an item's pixels; SourceError if its assets lie on different ones."""
    keys = [key for key in assets if key in item.assets]
    try:
        geoboxes = odc.stac.parse_item(item).geoboxes(keys)
    except ValueError:  # an incomplete projection
        geoboxes = ()
    if not geoboxes:
        geoboxes = (driver.read_geobox(item.assets[keys[0]].href),)
        _state_projection(item, keys, geoboxes[0])
    if len(geoboxes) > 1:
        msg = (
            f"{item.id}: its assets {', '.join(keys)} lie on different grids; load them one by one"
        )
        raise SourceError(msg)
    geobox = geoboxes[0]
    return GeoBox(geobox.shape, geobox.affine, CRS(spec.crs)) if spec.crs else geobox


def _state_projection(item: pystac.Item, keys: Sequence[str], geobox: GeoBox) -> None:
    for key in keys:
        projection = ProjectionExtension.ext(item.assets[key], add_if_missing=True)
        projection.wkt2 = CRS(geobox.crs).to_wkt()
        projection.shape = list(geobox.shape.yx)
        projection.transform = list(geobox.affine)[:6]


def _check_assets(
    spec: SourceSpec, items: Sequence[pystac.Item], assets: Mapping[str, str]
) -> None:
    present: dict[str, int] = defaultdict(int)
    for item in items:
        for key in item.assets:
            present[key] += 1
    for name, key in assets.items():
        if not present[key]:
            msg = (
                f"{spec.origin}: assets.{name} of {spec.name} is {key!r}, which no item has; "
                f"{suggest(key, [known for known, count in present.items() if count])}"
            )
            raise SourceError(msg)
