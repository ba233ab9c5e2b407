"""Native pixels of static rasters around a grid: single files, URLs, or tiles of any number.

All are read through one door, `smgrid.sources.stac`, so that retries, signing, a stated CRS and
exact pixels hold for each.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import pystac
import xarray as xr
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec, find_files
from smgrid.errors import NoDataError, SourceError
from smgrid.sources.options import take_asset
from smgrid.sources.reader import AssetDriver
from smgrid.sources.stac import load_items, search_items, split_by_lattice
from smgrid.sources.window import describe_extent, find_window, lattice_window, with_geobox

# Edge of a chunk of native pixels: 16 MB as float32.
_CHUNK = 2048
# A static raster has no time, a STAC item must have one.
_ANY_TIME = datetime(2000, 1, 1, tzinfo=UTC)


def find_rasters(spec: SourceSpec, name: str, grid: GeoBox) -> list[pystac.Item]:
    """Return the rasters of a static variable that lie under a grid, as STAC items.

    Parameters
    ----------
    spec
        With ``stac``, ``assets[name]`` is the asset key of its items. With ``paths``, every file
        is a tile. Otherwise ``assets[name]`` is a file or URL.
    name
        The variable.
    grid
        Region, in any CRS.

    Raises
    ------
    CatalogError
        If the source says nowhere where the variable is.
    NoDataError
        If nothing covers the grid.
    SourceError
        If the search fails or a file cannot be opened.
    """
    if spec.stac:
        return search_items(spec, grid, None)
    hrefs = find_files(spec) if spec.paths else (take_asset(spec, name),)
    driver = AssetDriver.of(spec)
    boxes = {href: _located(spec, href, driver.read_geobox(href)) for href in hrefs}
    under = [href for href, box in boxes.items() if _overlap(box, grid)]
    if not under:
        raise NoDataError(_elsewhere(spec, boxes, grid))
    return [_file_item(name, href) for href in under]


def open_native(
    spec: SourceSpec,
    name: str,
    grid: GeoBox,
    *,
    padding: int = 2,
    items: Sequence[pystac.Item] | None = None,
) -> Iterator[xr.DataArray]:
    """Yield the native pixels of a static variable around `grid`, one array per lattice of pixels.

    Parameters
    ----------
    spec
        See `find_rasters`.
    name
        The variable.
    grid
        Target, in any CRS.
    padding
        Native pixels beyond it.
    items
        The rasters to read; all that `find_rasters` returns by default.

    Yields
    ------
    xr.DataArray
        float32 (y, x) in stored units, NaN where missing or where no tile is, lazy. A compound CRS
        is reduced to its horizontal part.

    Raises
    ------
    NoDataError
        If nothing covers the grid.
    SourceError
        If something cannot be read.
    """
    items = find_rasters(spec, name, grid) if items is None else items
    key = take_asset(spec, name) if spec.stac else name
    for lattice, members in split_by_lattice(spec, items, [key]):
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
    # The role makes it a raster for odc-stac, whatever the name of the file ends in (.vrt).
    item.add_asset(key, pystac.Asset(href=href, roles=["data"]))
    return item


def _located(spec: SourceSpec, href: str, box: GeoBox) -> GeoBox:
    """Return `box`; SourceError if its CRS is a name without a place on Earth."""
    crs = CRS(box.crs).proj
    if not (crs.is_projected or crs.is_geographic):
        msg = (
            f"{href} names its CRS {crs.name!r}, which says not where its pixels lie; state the "
            f"right one as crs: in {spec.origin}"
        )
        raise SourceError(msg)
    return box


def _overlap(source: GeoBox, grid: GeoBox) -> bool:
    rows, cols = find_window(source, grid, padding=0)
    return bool(rows.start < rows.stop and cols.start < cols.stop)


def _elsewhere(spec: SourceSpec, boxes: dict[str, GeoBox], grid: GeoBox) -> str:
    href, box = next(iter(boxes.items()))
    others = f" and {len(boxes) - 1} other files" if len(boxes) > 1 else ""
    return (
        f"{href}{others} ({spec.origin}) covers {describe_extent(box)}, the grid covers "
        f"{describe_extent(grid)}: they do not overlap; use a file of that region"
    )


def _horizontal(geobox: GeoBox) -> GeoBox:
    crs = CRS(geobox.crs)
    if not crs.proj.is_compound:
        return geobox
    return GeoBox(geobox.shape, geobox.affine, CRS(crs.proj.to_2d()))
