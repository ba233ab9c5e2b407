"""Land cover: classes of a fine map become their shares of each cell, and masks for flags.

A product's classes are put into groups that all products share. A code that a product does not
define is an error: it comes from another product, or from a fill value that would pass for water.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import dask
import dask.array
import numpy as np
import numpy.typing as npt
import pystac
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec, check_options
from smgrid.errors import CatalogError, ConfigError, SchemaError, SourceError
from smgrid.grid import Tile, grid_coords, iter_tiles, transform_points
from smgrid.resample import nearest
from smgrid.schema import describe
from smgrid.sources.landcover_legends import GROUPS, LEGENDS, UNKNOWN, Legend
from smgrid.sources.options import take_choice, take_native_resolution
from smgrid.sources.raster import find_rasters, open_native
from smgrid.sources.stac import item_span
from smgrid.sources.window import find_window, pixel_metres, to_pixel
from smgrid.windows import Period
from smgrid.yamltext import suggest

DEFAULT_THRESHOLDS: Mapping[str, float] = MappingProxyType(
    {"water": 0.05, "urban": 0.25, "wetland": 0.5, "snow": 0.05}
)
"""Shares [1] above which a cell is masked, see `landcover_masks`."""

_MAP = "landcover"
_MISSING = 255
_MIN_COVERAGE = 0.5
# Cells of this many pixels and more hold the centre of one, whatever the angle between the two.
_COUNTED = 2.0
# Fine pixels whose places are computed at a time, which bounds the memory to about 0.1 GB.
_STRIP = 1 << 20
# Native pixels along the edge of what one task reads: 100 MB.
_EDGE = 5120


def load(spec: SourceSpec, grid: GeoBox, period: Period, *, chunks: int = 512) -> xr.Dataset:
    """Load the shares of groups of land cover in each cell of `grid`, lazily.

    Parameters
    ----------
    spec
        The map: ``stac`` with ``assets.landcover``, an asset key; ``paths`` of tiles; or
        ``assets.landcover``, a file or URL. ``native_resolution`` is its pixel size [m]. Options:
        ``product``, one of `LEGENDS`, and ``year``, which map of a STAC collection to read.
        ``nodata`` has to be stated for a product whose code 0 is a class.
    grid
        Target.
    period
        Decides the year of the map: the last one that begins on or before the period's first day,
        so that no map shows what came later, or the earliest one where all begin later. One year
        for the whole grid.
    chunks
        Tile edge in pixels of `grid`.

    Returns
    -------
    xr.Dataset
        ``fraction_<group>`` (y, x) [1] for the groups in ``spec.provides``, and ``landcover``,
        1 + the place in `GROUPS` of the group with the largest share (the first of equal ones),
        255 where missing, with ``flag_values`` and ``flag_meanings``.

    Raises
    ------
    CatalogError
        If an option or an asset is missing or wrong, or nodata is a class.
    NoDataError, SourceError
        If no map covers the grid or is of the year, or one cannot be read.
    SchemaError
        When computed, if a pixel has a code that the product does not define.

    Notes
    -----
    Each fine pixel belongs to the cell in which its centre lies, found with PROJ, so the result
    does not depend on the tiles. Shares are those of the pixels that have a class, add up to 1, and
    are missing where these pixels are less than half of a cell. Where cells are smaller than two
    pixels, a cell has the class of the pixel in which its own centre lies. Pixels of several
    lattices, for instance of two UTM zones, are counted together.
    """
    check_options(spec, "product", "year")
    product = take_choice(spec, "product", tuple(LEGENDS), default=None)
    _check_provides(spec)
    _check_nodata(spec, product)
    items = _of_one_year(spec, find_rasters(spec, _MAP, grid), period)
    is_counted = pixel_metres(grid) >= _COUNTED * take_native_resolution(spec)
    sample = _count_lazily if is_counted else _sample_lazily
    parts = [
        sample(native, grid, product, chunks)
        for native in open_native(spec, _MAP, grid, items=items)
    ]
    return _describe(spec, dask.array.stack(parts).sum(axis=0), grid, product)


def landcover_masks(
    ds: xr.Dataset, *, thresholds: Mapping[str, float] = DEFAULT_THRESHOLDS
) -> xr.Dataset:
    """Return where a group of land cover makes soil moisture doubtful.

    Parameters
    ----------
    ds
        With ``fraction_<group>`` (y, x) [1] for every group of `thresholds`.
    thresholds
        Group -> share [1] above which a cell is masked.

    Returns
    -------
    xr.Dataset
        bool (y, x) by group; False where the share is missing.

    Raises
    ------
    ConfigError
        If a group is unknown or a share is not within 0..1.
    SchemaError
        If `ds` lacks a fraction.

    Notes
    -----
    The defaults for water, urban and snow are those above which SMAP's retrievals are of uncertain
    quality (O'Neill et al. 2021, Algorithm Theoretical Basis Document, JPL D-66480); for wetland
    there is none, and it is where most of the cell is.
    """
    masks = {}
    for group, share in thresholds.items():
        if group not in GROUPS or not 0 <= share <= 1:
            msg = f"thresholds: {group}: {share}, expected a share in 0..1 of {', '.join(GROUPS)}"
            raise ConfigError(msg)
        name = f"fraction_{group}"
        if name not in ds:
            msg = f"{name} is missing; add it to the provides of the land-cover source"
            raise SchemaError(msg)
        mask = ds[name] > share
        masks[group] = mask.rename(group).assign_attrs(long_name=f"{group} above {share:g}")
    return xr.Dataset(masks)


def _check_provides(spec: SourceSpec) -> None:
    known = [_MAP, *(f"fraction_{group}" for group in GROUPS)]
    for name in spec.provides:
        if name not in known:
            msg = f"{spec.origin}: {spec.loader} does not provide {name!r}; {suggest(name, known)}"
            raise CatalogError(msg)


def _check_nodata(spec: SourceSpec, product: str) -> None:
    classes = LEGENDS[product].groups
    if spec.nodata in classes or (spec.nodata is None and 0 in classes):
        found = "is missing" if spec.nodata is None else f"is {spec.nodata:g}"
        msg = (
            f"{spec.origin}: nodata of {spec.name} {found}; in {product} "
            f"{spec.nodata or 0:g} is {classes[int(spec.nodata or 0)]}: state the fill value"
        )
        raise CatalogError(msg)


def _of_one_year(
    spec: SourceSpec, items: Sequence[pystac.Item], period: Period
) -> list[pystac.Item]:
    """Return the items of the year that the option says, or else the period; files are all used."""
    if not spec.stac:
        if "year" in spec.options:
            msg = f"{spec.origin}: options.year of {spec.name} needs stac; give files of one year"
            raise CatalogError(msg)
        return list(items)
    starts = {item.id: item_span(item)[0] for item in items}
    years = sorted({start.year for start in starts.values()})
    before = {start.year for start in starts.values() if start <= period.start}
    year = spec.options.get("year", max(before, default=years[0]))
    if year not in years:
        msg = (
            f"{spec.origin}: options.year of {spec.name} is {year!r}; there are maps of "
            f"{', '.join(map(str, years))}"
        )
        raise SourceError(msg)
    return [item for item in items if starts[item.id].year == year]


def _count_lazily(
    native: xr.DataArray, grid: GeoBox, product: str, chunks: int
) -> dask.array.Array:
    """Return each group's share of the pixels of each cell (group, y, x), one task per tile."""
    source = native.odc.geobox
    rows: dict[int, list[dask.array.Array]] = {}
    # Coarse cells hold so many pixels each that a task takes fewer of them.
    edge = max(1, min(chunks, int(_EDGE * pixel_metres(source) / pixel_metres(grid))))
    for tile in iter_tiles(grid, edge):
        window = find_window(source, tile.geobox)
        block = dask.array.from_delayed(
            dask.delayed(_count, pure=True)(
                native.data[window], source, window, grid, tile, product
            ),
            shape=(len(GROUPS), *tile.geobox.shape.yx),
            dtype="float64",
        )
        rows.setdefault(tile.index[0], []).append(block)
    shares: dask.array.Array = dask.array.block(list(rows.values())).rechunk({1: chunks, 2: chunks})
    return shares


def _count(
    codes: npt.NDArray[np.float32],
    source: GeoBox,
    window: tuple[slice, slice],
    grid: GeoBox,
    tile: Tile,
    product: str,
) -> npt.NDArray[np.float64]:
    """Count the pixels of a window of `source` by the group they have and the cell they lie in."""
    groups, cells = len(GROUPS) + 1, tile.geobox.shape.y * tile.geobox.shape.x
    counts = np.zeros(groups * cells, dtype="int64")
    step = max(1, _STRIP // max(1, codes.shape[1]))
    for start in range(0, codes.shape[0], step):
        strip = codes[start : start + step]
        first = window[0].start + start
        cell = _cells(source, slice(first, first + len(strip)), window[1], grid, tile)
        inside = cell >= 0
        group = _to_groups(strip[inside], product)
        counts += np.bincount(group * cells + cell[inside], minlength=groups * cells)
    by_group = counts.reshape(groups, *tile.geobox.shape.yx)
    shares: npt.NDArray[np.float64] = by_group[:-1] / np.maximum(by_group.sum(axis=0), 1)
    return shares


def _cells(
    source: GeoBox, rows: slice, cols: slice, grid: GeoBox, tile: Tile
) -> npt.NDArray[np.int64]:
    """Return in which cell of a tile the centres of pixels lie; -1 outside.

    Places are computed on the whole source and grid, so that rounding is the same for all tiles.
    """
    x = source.affine.c + source.affine.a * (np.arange(cols.start, cols.stop) + 0.5)
    y = source.affine.f + source.affine.e * (np.arange(rows.start, rows.stop) + 0.5)
    xx, yy = np.meshgrid(x, y)
    place = to_pixel(grid, *transform_points(xx, yy, source.crs, grid.crs))
    exists = np.isfinite(place[0]) & np.isfinite(place[1])
    row, col = (np.floor(np.where(exists, part, -1.0)).astype("int64") for part in place)
    inside = (row >= tile.y.start) & (row < tile.y.stop)
    inside &= (col >= tile.x.start) & (col < tile.x.stop)
    cell = (row - tile.y.start) * tile.geobox.shape.x + col - tile.x.start
    return np.where(inside, cell, -1)


def _sample_lazily(
    native: xr.DataArray, grid: GeoBox, product: str, chunks: int
) -> dask.array.Array:
    """Return 1 for the group of the pixel in which the centre of each cell lies (group, y, x)."""
    codes = nearest(native, grid, chunks=chunks).data
    shares: dask.array.Array = dask.array.map_blocks(
        _one_hot,
        codes,
        product=product,
        new_axis=0,
        chunks=((len(GROUPS),), *codes.chunks),
        dtype="float64",
        meta=np.empty((0, 0, 0)),
    )
    return shares


def _one_hot(codes: npt.NDArray[np.float32], *, product: str) -> npt.NDArray[np.float64]:
    groups = np.arange(len(GROUPS))[:, None, None]
    return np.asarray(_to_groups(codes, product) == groups, dtype="float64")


def _to_groups(codes: npt.NDArray[np.float32], product: str) -> npt.NDArray[np.int64]:
    """Return the place in `GROUPS` of each code, ``len(GROUPS)`` where it is missing."""
    legend: Legend = LEGENDS[product]
    known = np.isfinite(codes)
    index = np.where(known, codes, 0).astype("int64")
    in_table = known & (index >= 0) & (index < len(legend.table))
    group = np.where(in_table, legend.table[np.where(in_table, index, 0)], UNKNOWN)
    group = np.where(known, group, len(GROUPS)).astype("int64")
    if (group == UNKNOWN).any():
        msg = (
            f"land cover: found the code {codes[group == UNKNOWN].flat[0]:g}, which is no class of "
            f"{product} ({legend.citation}); correct options.product or nodata of the source"
        )
        raise SchemaError(msg)
    return group


def _describe(spec: SourceSpec, shares: dask.array.Array, grid: GeoBox, product: str) -> xr.Dataset:
    """Return what the source provides, of the shares (group, y, x) of each cell."""
    coords = grid_coords(grid)
    known = shares.sum(axis=0)
    is_covered = known >= _MIN_COVERAGE - 1e-9
    divisor = dask.array.where(is_covered, known, 1.0)

    def to_variable(name: str, data: dask.array.Array) -> xr.DataArray:
        return describe(xr.DataArray(data, dims=("y", "x"), coords=coords), name)

    comment = f"{product}: {LEGENDS[product].citation}"
    variables: dict[str, Any] = {}
    for name in spec.provides:
        if name == _MAP:
            largest = dask.array.argmax(shares, axis=0) + 1
            classes = dask.array.where(is_covered, largest, _MISSING).astype("uint8")
            variables[name] = to_variable(name, classes).assign_attrs(
                flag_values=np.arange(1, len(GROUPS) + 1, dtype="uint8"),
                flag_meanings=" ".join(GROUPS),
            )
        else:
            share = shares[GROUPS.index(name.removeprefix("fraction_"))] / divisor
            fraction = dask.array.where(is_covered, share, np.nan).astype("float32")
            variables[name] = to_variable(name, fraction)
        variables[name].attrs["comment"] = comment
    return xr.Dataset(variables)
