"""Native pixels of static rasters around a grid: single files, URLs, or tiles of a STAC collection.

All are read through one door, `smgrid.sources.stac`, so that retries, signing, a stated CRS and
exact pixels hold for each.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

import pystac
import xarray as xr
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec
from smgrid.errors import NoDataError
from smgrid.sources.options import take_asset
from smgrid.sources.stac import load_items, search_items, split_by_lattice
from smgrid.sources.window import describe_extent, find_window, lattice_window, with_geobox

# Edge of a chunk of native pixels: 16 MB as float32.
_CHUNK = 2048
# A static raster has no time, a STAC item must have one.
_ANY_TIME = datetime(2000, 1, 1, tzinfo=UTC)


def open_native(
    spec: SourceSpec, name: str, grid: GeoBox, *, padding: int = 2
) -> Iterator[xr.DataArray]:
    """Yield the native pixels of a static variable around `grid`, one array per lattice of pixels.

    Parameters
    ----------
    spec
        With ``stac``, ``assets[name]`` is the asset key of its items; otherwise it is a file or
        URL.
    name
        The variable.
    grid
        Target, in any CRS.
    padding
        Native pixels beyond it.

    Yields
    ------
    xr.DataArray
        float32 (y, x) in stored units, NaN where missing, lazy. A compound CRS is reduced to its
        horizontal part.

    Raises
    ------
    NoDataError
        If nothing covers the grid.
    SourceError
        If something cannot be read.
    """
    asset = take_asset(spec, name)
    key = asset if spec.stac else name
    items = search_items(spec, grid, None) if spec.stac else [_file_item(key, asset)]
    for lattice, members in split_by_lattice(spec, items, [key]):
        if not spec.stac:
            _require_overlap(spec, asset, lattice, grid)
        window = lattice_window(lattice, grid, padding=padding)
        loaded = load_items(
            spec,
            members,
            window,
            assets={name: key},
            groups=dict.fromkeys((item.id for item in members), 0),
            chunks=_CHUNK,
        )
        yield with_geobox(loaded[name].isel(group=0, drop=True), _horizontal(window))


def _file_item(key: str, href: str) -> pystac.Item:
    item = pystac.Item(id=href, geometry=None, bbox=None, datetime=_ANY_TIME, properties={})
    item.add_asset(key, pystac.Asset(href=href))
    return item


def _require_overlap(spec: SourceSpec, href: str, source: GeoBox, grid: GeoBox) -> None:
    rows, cols = find_window(source, grid, padding=0)
    if rows.start >= rows.stop or cols.start >= cols.stop:
        msg = (
            f"{href} ({spec.origin}) covers {describe_extent(source)}, the grid covers "
            f"{describe_extent(grid)}: they do not overlap; use a file of that region"
        )
        raise NoDataError(msg)


def _horizontal(geobox: GeoBox) -> GeoBox:
    crs = CRS(geobox.crs)
    if not crs.proj.is_compound:
        return geobox
    return GeoBox(geobox.shape, geobox.affine, CRS(crs.proj.to_2d()))
