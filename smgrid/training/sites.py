"""Places to train at, chosen by land cover: cells of a regular grid, and random pixels in them.

The cells lie on absolute multiples of their edge, and the draw in a cell depends on nothing but the
seed, the number of the cell and its pixels. So the chunks of the map do not matter, neighbouring
regions share cells instead of overlapping, and a larger map keeps the sites of a smaller one.
"""

from collections.abc import Mapping, Sequence
from typing import get_args

import dask
import dask.array
import numpy as np
import rioxarray  # noqa: F401 - registers the accessor .rio
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.ease import EASE_CRS
from smgrid.errors import ConfigError, GridError, NoDataError
from smgrid.grid import require_north_up, transform_points
from smgrid.raster import open_raster
from smgrid.sources.landcover_legends import LEGENDS
from smgrid.training.site_cells import SNAP, Axis, Codes, Draw, FloatArray, Found, Rule, find_points
from smgrid.yamltext import suggest

_LONLAT = "EPSG:4326"


def select_sites(
    landcover: xr.DataArray,
    *,
    cell: float,
    product: str | None = None,
    classes: Sequence[str | int] = ("tree", "grass", "crop"),
    least_share: float = 0.5,
    least_valid: float = 0.5,
    per_cell: int = 1,
    draw: Draw = "classes",
    preferred: str | int | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Choose cells that are mostly of some classes of land cover, and random pixels in them.

    Parameters
    ----------
    landcover
        Codes (y, x), lazy or not, with a CRS; NaN or the raster's nodata is no data.
    cell
        Edge of the square cells [m], which lie on multiples of it in the map's CRS (in metres), or
        in EPSG:6933, which keeps areas, where the map is in longitude and latitude.
    product
        Whose codes these are, a name in `LEGENDS`, for instance "dynamic-world". Without one, names
        of classes come from the CF attributes ``flag_values`` and ``flag_meanings``.
    classes, preferred
        Names, which stand for all codes of a group, or codes: the classes that a cell is kept for,
        and one whose pixels are drawn from instead in every cell that has some.
    least_share, least_valid
        A cell is kept if the classes are more than this share of its valid pixels, and these at
        least this share of all; those beyond the map are not valid.
    per_cell
        Points per cell, on different pixels; fewer where there are not as many.
    draw
        Pixels drawn from, all equally likely: those of ``classes``, or all valid ones of the cell.
    seed
        Of the draw.

    Returns
    -------
    xr.Dataset
        ``landcover``, the code under each ``site``, and ``share`` of the classes in its cell, with
        ``longitude`` and ``latitude`` [degree] of the pixel's centre and ``row`` and ``column`` of
        the cell, counted south- and eastwards from the origin of the CRS.

    Raises
    ------
    ConfigError, GridError, SchemaError
        An argument, the grid of the map or a code makes no sense; the message says what to do.
    NoDataError
        No cell is kept; the message tells the best share.

    Notes
    -----
    A pixel belongs to the cell in which its centre lies. The DenseSM pack takes Dynamic World,
    cells of 1 or 2 km, ``draw="cell"``, and ``preferred="crop"`` for China.
    """
    codes = _read_legend(landcover, product, classes, preferred)
    rule = Rule(codes, draw, least_share, least_valid, per_cell, seed)
    _check(rule)
    raster, box = open_raster(landcover)
    if raster.ndim != 2:
        raise ConfigError(f"landcover has dims {landcover.dims}, expected one map (y, x)")
    rows, columns, crs = _cells(box, cell)
    found = _search(raster, rows, columns, rule)
    best = max(part.best for part in found)
    if best <= least_share:
        raise NoDataError(_none_kept(best, rule, cell))
    facts = {"cell": float(cell), "crs": crs, "seed": seed, "product": product or ""}
    return _to_dataset(found, box).assign_attrs(facts)


def merge_sites(sites: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Put the sites of several regions into one table.

    Parameters
    ----------
    sites
        Name of a region -> its sites, as made by `select_sites`.

    Returns
    -------
    xr.Dataset
        The same along ``site``, with the coordinate ``network``, the name of the region, which also
        stands in front of the names of its sites.

    Raises
    ------
    ConfigError
        There is no region.
    """
    if not sites:
        raise ConfigError("there are no sites to merge; give at least one region")
    parts = [
        ds.assign_coords(
            site=[f"{name}/{site}" for site in ds["site"].values],
            network=("site", [name] * ds.sizes["site"]),
        )
        for name, ds in sites.items()
    ]
    return xr.concat(parts, dim="site", combine_attrs="drop_conflicts")


def _check(rule: Rule) -> None:
    for name in ("least_share", "least_valid"):
        if not 0 <= getattr(rule, name) <= 1:
            raise ConfigError(f"{name}: expected a share in 0..1, found {getattr(rule, name)!r}")
    if rule.per_cell < 1:
        raise ConfigError(f"per_cell: expected at least 1 point, found {rule.per_cell!r}")
    if rule.draw not in get_args(Draw):
        raise ConfigError(f"draw: expected one of {get_args(Draw)}, found {rule.draw!r}")
    if not rule.codes.wanted:
        raise ConfigError("classes: expected at least one class, found none")


def _cells(box: GeoBox, cell: float) -> tuple[Axis, Axis, str]:
    """Return the cells along both axes of a raster, and the CRS in which they are square."""
    own = require_north_up(box)
    crs = EASE_CRS if own.geographic else f"EPSG:{own.epsg}" if own.epsg else own.to_wkt()
    if not 0 < cell < np.inf:
        raise ConfigError(f"cell: expected a positive number of metres, found {cell!r}")
    if not own.geographic and own.proj.axis_info[0].unit_conversion_factor != 1:
        raise GridError(
            f"cell: expected a map in metres, as cells are, but the unit of {own.proj.name} is the "
            f"{own.units[0]}; reproject the map, for instance to UTM"
        )
    left, bottom, right, top = box.boundingbox.bbox
    x, y = transform_points(np.array([left, right]), np.array([top, bottom]), box.crs, crs)
    column, row = _edges(x / cell), _edges(-y / cell)
    # x and y depend on longitude and latitude alone, so that edges are edges in both CRS.
    x, _ = transform_points(column * cell, np.zeros(column.size), crs, box.crs)
    _, y = transform_points(np.zeros(row.size), -row * cell, crs, box.crs)
    rows = _axis(int(row[0]), (y - box.affine.f) / box.affine.e, box.shape.y)
    columns = _axis(int(column[0]), (x - box.affine.c) / box.affine.a, box.shape.x)
    if min(rows.whole.min(), columns.whole.min()) < 1:
        raise GridError(
            f"cell: {cell:g} is smaller than a pixel of the map ({box.resolution.x:g} in "
            f"{box.crs}); choose larger cells"
        )
    return rows, columns, crs


def _edges(ends: FloatArray) -> FloatArray:
    """Return the numbers of the cells' edges from before the first end to after the last."""
    if not (np.isfinite(ends).all() and ends[0] < ends[1]):
        raise GridError(_AT_THE_END)
    return np.arange(np.floor(ends[0] + SNAP), np.ceil(ends[1] - SNAP) + 1)


def _axis(first: int, edges: FloatArray, size: int) -> Axis:
    """Return the cells between edges, which are positions in pixels, that hold pixels."""
    is_ordered = np.isfinite(edges).all() and (np.diff(edges) > 0).all()
    if not (is_ordered and edges[0] <= 0.5 and edges[-1] >= size - 0.5):
        raise GridError(_AT_THE_END)
    # The first pixel whose centre lies on the edge or after it.
    pixel = np.ceil(edges - 0.5 - SNAP).astype(np.int64)
    whole, starts = np.diff(pixel), pixel.clip(0, size)
    held = np.flatnonzero(np.diff(starts))
    used = slice(int(held[0]), int(held[-1]) + 1)
    return Axis(first + used.start, starts[used.start : used.stop + 1], whole[used])


_AT_THE_END = (
    "landcover: cells cannot be laid across a pole or the antimeridian; crop the map one cell "
    "before it, count longitudes from -180, or reproject it"
)


def _search(raster: xr.DataArray, rows: Axis, columns: Axis, rule: Rule) -> list[Found]:
    """Look for points in every block of whole cells, one task each."""
    down, across = rows.blocks(), columns.blocks()
    chunks = tuple(
        tuple(int(axis.starts[cells.stop] - axis.starts[cells.start]) for cells in blocks)
        for axis, blocks in ((rows, down), (columns, across))
    )
    if raster.chunks is None:
        data = dask.array.from_array(raster.values, chunks=chunks, name=False)
    else:
        data = raster.data.rechunk(chunks)
    find = dask.delayed(find_points)
    tasks = [
        find(
            block,
            rows.part(y),
            columns.part(x),
            (rows.starts[y.start], columns.starts[x.start]),
            rule,
        )
        for y, line in zip(down, data.to_delayed(), strict=True)
        for x, block in zip(across, line, strict=True)
    ]
    return list(dask.compute(*tasks))


def _none_kept(best: float, rule: Rule, cell: float) -> str:
    if best < 0:
        return (
            f"no cell of {cell:g} has a class in {rule.least_valid:.0%} of its pixels; choose "
            "smaller cells, a larger map or another least_valid"
        )
    return (
        f"no cell of {cell:g} is to more than {rule.least_share:.0%} of the classes "
        f"{', '.join(map(str, rule.codes.wanted))}; the best has {best:.1%}: choose other classes, "
        "another region or a lower least_share"
    )


def _to_dataset(found: list[Found], box: GeoBox) -> xr.Dataset:
    place = np.concatenate([part.place for part in found], axis=1)
    order = np.lexsort((place[4], place[1], place[0]))
    row, column, y, x, number = place[:, order]
    east = box.affine.c + box.affine.a * (x + 0.5)
    north = box.affine.f + box.affine.e * (y + 0.5)
    longitude, latitude = transform_points(east, north, box.crs, _LONLAT)
    names = [f"r{r}c{c}p{n}" for r, c, n in zip(row, column, number, strict=True)]
    code = np.concatenate([part.code for part in found])[order]
    share = np.concatenate([part.share for part in found])[order]
    return xr.Dataset(
        {
            "landcover": ("site", code, {"long_name": "Land cover under the site"}),
            "share": ("site", share, {"units": "1", "long_name": "Share of the classes in a cell"}),
        },
        coords={
            "site": names,
            "longitude": ("site", longitude, {"units": "degrees_east"}),
            "latitude": ("site", latitude, {"units": "degrees_north"}),
            "row": ("site", row, {"long_name": "Row of the cell, southwards"}),
            "column": ("site", column, {"long_name": "Column of the cell, eastwards"}),
        },
    )


def _read_legend(
    landcover: xr.DataArray,
    product: str | None,
    classes: Sequence[str | int],
    preferred: str | int | None,
) -> Codes:
    """Return which codes of the map are wanted, and which are classes at all."""
    if product is not None and product not in LEGENDS:
        raise ConfigError(f"product: {product!r} is unknown; {suggest(product, list(LEGENDS))}")
    nodata = landcover.rio.nodata
    missing = () if nodata is None or np.isnan(nodata) else (float(nodata),)
    if product is not None:
        names = dict(LEGENDS[product].groups)
        missing = (*missing, *(float(code) for code in LEGENDS[product].missing))
    else:
        values = np.atleast_1d(landcover.attrs.get("flag_values", ())).tolist()
        names = dict(zip(values, landcover.attrs.get("flag_meanings", "").split(), strict=True))
    if bad := [int(code) for code in missing if code in names]:
        raise ConfigError(
            f"landcover: nodata {bad[0]} is the class {names[bad[0]]!r}; write the map's true fill "
            "value with .rio.write_nodata"
        )
    is_stated = missing or landcover.dtype.kind == "f" or (names and product is None)
    if not is_stated:
        raise ConfigError(
            f"landcover is {landcover.dtype} without nodata, so that fill values would count as a "
            "class; state them with .rio.write_nodata, 255 if there are none"
        )
    return Codes(
        wanted=tuple(code for one in classes for code in _codes(one, names)),
        preferred=() if preferred is None else _codes(preferred, names),
        known=tuple(names),
        missing=missing,
        product=product or "",
    )


def _codes(one: str | int, names: Mapping[int, str]) -> tuple[int, ...]:
    """Return the codes of a class."""
    codes = tuple(code for code, name in names.items() if one in (code, name))
    if codes:
        return codes
    if names:
        known = ", ".join(f"{code} {name}" for code, name in names.items())
        raise ConfigError(f"class {one!r} is not in the legend of the map: {known}")
    if isinstance(one, str):
        raise ConfigError(
            f"class {one!r}: the map has no legend; give product, one of {', '.join(LEGENDS)}, "
            "or codes as numbers"
        )
    return (int(one),)
