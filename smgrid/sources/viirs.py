"""Tiles of VIIRS vegetation indices: HDF-EOS5 files on the sinusoidal grid of the MODIS land team.

The place of a pixel follows from the tile's numbers and the constants of that grid; what the files
say of it is text. Their packing attributes are not used either: the scale factor is a divisor and
there are two fill values.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import dask
import dask.array
import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import pystac
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec, find_files
from smgrid.catalogtext import Signing
from smgrid.errors import NoDataError, SourceError
from smgrid.grid import grid_coords
from smgrid.schema import check_range
from smgrid.sources.download import fetch, forget
from smgrid.sources.options import take_asset
from smgrid.sources.pixel_rule import PixelRule
from smgrid.sources.stac import search_items
from smgrid.sources.window import describe_extent, find_window
from smgrid.windows import Period

# Sphere and tiles of the land grid (Wolfe et al. 1998, doi:10.1109/36.701082), with the digits
# that the products themselves carry. A 500 m tile has 2400 pixels of 463.313 m along an edge.
_CRS = "+proj=sinu +lon_0=0 +x_0=0 +y_0=0 +R=6371007.181 +units=m +no_defs"
_TILE = 1_111_950.5196666666
_PIXELS = 2400
_TILES = (18, 36)
# Product, day, tile, collection, and when it was made. S-NPP first where satellites overlap.
_PRODUCTS = ("VNP13A1", "VJ113A1", "VJ213A1")
_NAME = re.compile(
    rf"^({'|'.join(_PRODUCTS)})\.A(\d{{7}})\.h(\d\d)v(\d\d)\.(\d{{3}})\.(\d{{13}})\.h5$"
)
# Fill values over land and over water (VIIRS VI user guide, section on the 500 m product).
_FILLS = (-13_000, -15_000)
_LAYERS = ("ndvi", "reliability", "quality")


def sinusoidal_grid() -> GeoBox:
    """Return all 500 m pixels of the sinusoidal land grid."""
    rows, columns = (tiles * _PIXELS for tiles in _TILES)
    pixel = _TILE / _PIXELS
    corner = (-_TILES[1] / 2 * _TILE, _TILES[0] / 2 * _TILE)
    return GeoBox((rows, columns), Affine(pixel, 0, corner[0], 0, -pixel, corner[1]), _CRS)


@dataclass(frozen=True)
class Granule:
    """One tile of one composite."""

    href: str
    """Local path or URL."""
    product: str
    """Short name: VNP13A1 (S-NPP), VJ113A1 (NOAA-20) or VJ213A1 (NOAA-21)."""
    start: pd.Timestamp
    """First day of the composite."""
    h: int
    """Number of the tile, eastwards from 180 W."""
    v: int
    """Number of the tile, southwards from the pole."""
    version: tuple[str, str]
    """Collection and time of production; the larger one replaces the smaller."""

    @property
    def name(self) -> str:
        """Its file name."""
        return _file_name(self.href)

    @classmethod
    def parse(cls, href: str) -> "Granule":
        """Return the granule of a file from its name; SourceError if it is named otherwise."""
        match = _NAME.match(_file_name(href))
        if match is None:
            msg = (
                f"{_bare(href)} is not named like a VIIRS 500 m vegetation index file "
                "(VNP13A1.AYYYYDDD.hHHvVV.CCC.YYYYDDDHHMMSS.h5); correct the source"
            )
            raise SourceError(msg)
        name, day, h, v, collection, made = match.groups()
        start = pd.to_datetime(day, format="%Y%j")
        return cls(href, name, start, int(h), int(v), (collection, made))


@dataclass(frozen=True)
class _Part:
    """The pixels of a block that one granule holds."""

    href: str
    tile: tuple[slice, slice]
    block: tuple[slice, slice]


@dataclass(frozen=True)
class _Reading:
    """How the pixels of a source are read."""

    fields: tuple[tuple[str, str], ...]
    rule: PixelRule
    scale: float
    offset: float
    sign: Signing
    origin: str


def find_granules(spec: SourceSpec, grid: GeoBox, period: Period) -> list[Granule]:
    """Return the newest version of every granule of a source that starts in a period.

    Parameters
    ----------
    spec
        ``paths`` (files or URLs) or ``stac``, whose items have an asset named like a granule.
    grid
        Region that a search is limited to.
    period
        First and last UTC day.

    Raises
    ------
    NoDataError
        If there is none.
    SourceError
        If a file is named otherwise, or an item has no such asset.
    """
    if spec.stac is None:
        hrefs: Iterable[str] = find_files(spec)
    else:
        hrefs = [_granule_asset(item) for item in search_items(spec, grid, period)]
    newest: dict[tuple[str, pd.Timestamp, int, int], Granule] = {}
    for granule in map(Granule.parse, hrefs):
        key = (granule.product, granule.start, granule.h, granule.v)
        if period.start <= granule.start <= period.end:
            known = newest.get(key, granule)
            newest[key] = max(known, granule, key=lambda each: each.version)
    if not newest:
        msg = f"{spec.origin}: {spec.name} has no composite that starts in {period}; choose another"
        raise NoDataError(msg)
    return sorted(newest.values(), key=lambda each: (each.start, _PRODUCTS.index(each.product)))


def open_composites(
    spec: SourceSpec, granules: Sequence[Granule], grid: GeoBox, *, rule: PixelRule, chunks: int
) -> xr.DataArray:
    """Return the usable NDVI of the pixels that cover a grid, lazily.

    Parameters
    ----------
    spec
        ``assets`` (ndvi, and reliability and quality where they are to be read), ``scale``.
    granules
        Of all satellites; where several have a composite of the same day, S-NPP comes first and
        the others fill its gaps.
    grid
        Target; native pixels around it are kept.
    rule
        Which pixels are used.
    chunks
        Tile edge [native pixels].

    Returns
    -------
    xr.DataArray
        float32 (date, y, x) [1] on the sinusoidal grid, dates increasing.

    Raises
    ------
    NoDataError
        If no granule covers the grid.
    SourceError
        When computed, if a file cannot be had or read.
    """
    rows, cols = find_window(sinusoidal_grid(), grid)
    needed = [each for each in granules if _cut(each, rows, cols) is not None]
    if not needed:
        held = ", ".join(sorted({f"h{each.h:02d}v{each.v:02d}" for each in granules}))
        msg = (
            f"{spec.origin}: {spec.name} has no tile of {describe_extent(grid)} (it has {held}); "
            "fetch the tiles of the region"
        )
        raise NoDataError(msg)
    reading = _Reading(
        fields=tuple((name, take_asset(spec, name)) for name in _layers(spec)),
        rule=rule,
        scale=spec.scale.get("ndvi", 1.0),
        offset=spec.offset.get("ndvi", 0.0),
        sign=spec.stac.sign if spec.stac else "none",
        origin=f"{spec.name} ({spec.origin})",
    )
    by_day: dict[pd.Timestamp, list[Granule]] = {}
    for each in needed:
        by_day.setdefault(each.start, []).append(each)
    days = sorted(by_day)
    blocks = [_open_day(by_day[day], rows, cols, chunks, reading) for day in days]
    da = xr.DataArray(
        dask.array.stack(blocks),
        dims=("date", "y", "x"),
        coords={"date": pd.DatetimeIndex(days).as_unit("ns")},
    )
    return da.assign_coords(grid_coords(sinusoidal_grid()[rows, cols]))


def _layers(spec: SourceSpec) -> list[str]:
    return [name for name in _LAYERS if name == "ndvi" or name in spec.assets]


def _file_name(href: str) -> str:
    return PurePosixPath(urlsplit(href).path).name


def _bare(href: str) -> str:
    """Return a path or URL without its query, which may be a signature, for messages."""
    return urlsplit(href)._replace(query="").geturl()


def _granule_asset(item: pystac.Item) -> str:
    """Return the file among the assets: providers call it by changing keys, but name it alike."""
    found = [
        asset.href
        for asset in item.assets.values()
        if _NAME.match(_file_name(asset.href)) and not asset.href.startswith("s3:")
    ]
    if not found:
        msg = f"{item.id} has no asset that is a VIIRS 500 m vegetation index file over https"
        raise SourceError(msg)
    return found[0]


def _cut(granule: Granule, rows: slice, cols: slice) -> _Part | None:
    """Return what a granule holds of a window of the global grid; ``None`` if nothing."""
    tile, block = [], []
    for number, window in ((granule.v, rows), (granule.h, cols)):
        first = number * _PIXELS
        start, stop = max(window.start, first), min(window.stop, first + _PIXELS)
        if start >= stop:
            return None
        tile.append(slice(start - first, stop - first))
        block.append(slice(start - window.start, stop - window.start))
    return _Part(granule.href, (tile[0], tile[1]), (block[0], block[1]))


def _open_day(
    granules: Sequence[Granule], rows: slice, cols: slice, chunks: int, reading: _Reading
) -> Any:
    """Return the window of one composite as blocks that each read their own files."""
    edges = [
        [slice(at, min(at + chunks, axis.stop)) for at in range(axis.start, axis.stop, chunks)]
        for axis in (rows, cols)
    ]
    blocks: list[list[Any]] = [[] for _ in edges[0]]
    for (line, part_rows), part_cols in product(enumerate(edges[0]), edges[1]):
        shape = (part_rows.stop - part_rows.start, part_cols.stop - part_cols.start)
        cuts = (_cut(each, part_rows, part_cols) for each in granules)
        parts = tuple(cut for cut in cuts if cut is not None)
        read = dask.delayed(_read_block, pure=True)(parts, shape, reading)
        blocks[line].append(dask.array.from_delayed(read, shape=shape, dtype="float32"))
    return dask.array.block(blocks)


def _read_block(
    parts: tuple[_Part, ...], shape: tuple[int, int], reading: _Reading
) -> npt.NDArray[np.float32]:
    block = np.full(shape, np.nan, dtype="float32")
    for part in parts:
        ndvi = _read_part(part, reading)
        here = block[part.block]
        block[part.block] = np.where(np.isnan(here), ndvi, here)
    return block


def _read_part(part: _Part, reading: _Reading) -> npt.NDArray[np.float32]:
    # A name carries the time of its production: what is fetched stays good.
    path = fetch(part.href, sign=reading.sign, origin=reading.origin, max_age=None)
    try:
        with h5py.File(path, "r") as file:
            layers = {
                name: (("y", "x"), _read_field(file, stored, part.tile))
                for name, stored in reading.fields
            }
    except (OSError, KeyError, ValueError) as cause:
        forget(path)
        name = _bare(part.href)
        msg = f"{name} cannot be read ({cause}); fetch it again or correct {reading.origin}"
        raise SourceError(msg) from cause
    ds = xr.Dataset(layers)
    counts = ds["ndvi"].where(~ds["ndvi"].isin(_FILLS))
    ndvi = reading.rule.select(ds.assign(ndvi=counts * reading.scale + reading.offset))
    values = ndvi.values.astype("float32")
    check_range(values, "ndvi", where=f"{_bare(part.href)} of {reading.origin}")
    return values


def _read_field(file: h5py.File, name: str, window: tuple[slice, slice]) -> npt.NDArray[Any]:
    """Read a data field of the file's one grid, whose name changes with the collection."""
    (grid_name,) = file["HDFEOS/GRIDS"]
    field = file[f"HDFEOS/GRIDS/{grid_name}/Data Fields/{name}"]
    if field.shape != (_PIXELS, _PIXELS):
        msg = f"{name} has the shape {field.shape}, expected {(_PIXELS, _PIXELS)}"
        raise ValueError(msg)
    return np.asarray(field[window])
