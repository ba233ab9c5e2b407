"""Sentinel-1 ground range products as ESA publishes them: sigma0 on terrain, incidence angles.

Products come as SAFE folders, as their zip files, or as items of a STAC collection that points at
the same files. Angles need nothing but the annotation; images need the extra ``[safe]``.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import dask
import dask.array
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec, StacQuery, check_options, is_url
from smgrid.errors import CatalogError
from smgrid.grid import Tile, grid_coords, iter_tiles
from smgrid.schema import describe
from smgrid.sources.backscatter import take_average
from smgrid.sources.bilinear import Sampling, bilinear
from smgrid.sources.geocoding import Geoid, require_sarsen
from smgrid.sources.geolocation import incidence_angle
from smgrid.sources.options import take_choice, take_native_resolution
from smgrid.sources.orthorectify import TileTerrain, orthorectify
from smgrid.sources.passes import PASS_GAP, group_slices, passes_within, with_pass_coords
from smgrid.sources.raster import open_native
from smgrid.sources.safe import Product
from smgrid.sources.slices import best_passes, find_slices
from smgrid.sources.stac import no_data
from smgrid.sources.window import pixel_metres
from smgrid.windows import Period

# An orbit is flown again after 12 days (ESA Sentinel-1 User Handbook), so that every orbit of a
# period is met within that many days of it.
_CYCLE = pd.Timedelta(days=12)
# Fine pixels along the edge of one unit of work, which bounds its memory.
_MAX_EDGE = 5120
_COLLECTION_KEYS = ("href", "collection", "asset", "sign")
_COMMENT = (
    "Thermal noise removed with the tables of each product; those processed before version 2.50 "
    "(July 2015) have none that can be used and keep their noise"
)


def load_safe(spec: SourceSpec, grid: GeoBox, period: Period, *, chunks: int = 512) -> xr.Dataset:
    """Load sigma0 of ground range products onto `grid`, geocoded on terrain.

    Parameters
    ----------
    spec
        ``paths`` (SAFE folders, their zip files or manifests) or ``stac`` (a collection of ground
        range products); ``convention`` sigma0; ``native_resolution``, to which a cell is divided
        into fine pixels (10 m for the products of land). ``assets`` (vv, vh) where a polarisation
        has another name. Options:

        - ``dem``: raster file, list of tiles, or href, collection, asset and sign (STAC).
        - ``heights``: "geoid" or "ellipsoid", what its heights are above. Taking one for the other
          shifts images by up to 150 m.
        - ``geoid``: raster of the geoid's height above the ellipsoid [m], with heights: geoid; the
          PROJ data package has ``us_nga_egm08_25.tif`` for the Copernicus DEM.
        - ``average``: "db" (default) or "linear".
    grid
        Target.
    period
        First and last UTC day; a pass counts on the day when it starts.
    chunks
        Tile edge [pixels of `grid`].

    Returns
    -------
    xarray.Dataset
        vv, vh [dB] (time, y, x), lazy, one task per pass and tile.

    Raises
    ------
    MissingDependencyError
        If the extra ``[safe]`` is not installed.
    CatalogError
        If the entry is not understood.
    NoDataError
        If no pass over the grid starts in the period.
    SourceError
        If a product cannot be read.

    Notes
    -----
    Formulas: `calibration.to_sigma0`, `geocoding.image_position`. Samples that are negative without
    their noise keep a mean of power unbiased; a mean of decibels leaves them out.
    """
    require_sarsen()
    check_options(spec, "dem", "heights", "geoid", "average")
    _check_entry(spec)
    bands = {name: spec.assets.get(name, name) for name in spec.provides}
    found = find_slices(spec, grid, period, margin=PASS_GAP)
    slices = [piece for piece in found if {*bands.values()} & {*piece.product.measurement}]
    passes = passes_within(group_slices(piece.acquired for piece in slices), period)
    if not passes:
        raise no_data(spec, grid, period)
    products = {piece.product.name: piece.product for piece in slices}
    data = _lazy_passes(
        spec,
        grid,
        [tuple(products[name] for name in one.slices) for one in passes],
        bands=tuple(bands.values()),
        chunks=chunks,
    )
    attrs = {"convention": "sigma0", "averaging": take_average(spec), "comment": _COMMENT}
    loaded = {
        name: describe(
            xr.DataArray(data[:, number], dims=("time", "y", "x"), coords=grid_coords(grid)), name
        ).assign_attrs(attrs)
        for number, name in enumerate(bands)
    }
    return with_pass_coords(xr.Dataset(loaded), passes)


def load_angle(spec: SourceSpec, grid: GeoBox, period: Period, *, chunks: int = 512) -> xr.Dataset:
    """Load the incidence angle of each relative orbit from annotations of ground range products.

    Parameters
    ----------
    spec
        ``paths`` (SAFE folders, their zip files or manifests) or ``stac`` (a collection of ground
        range products). Other products of the same orbits, terrain-corrected ones, have the same
        angles.
    grid
        Target.
    period
        Days, UTC: with ``stac``, the orbits flown within 12 days of it.
    chunks
        Tile edge [pixels of `grid`].

    Returns
    -------
    xarray.Dataset
        angle [degree] (relative_orbit, y, x), on the ellipsoid, lazy, with ``orbit_state``: of the
        pass that covers most of the grid, its slices joined. NaN outside the swath.

    Raises
    ------
    NoDataError
        If no product meets the grid.
    SourceError
        If a product cannot be read; of items, when computed.
    """
    check_options(spec)
    slices = find_slices(spec, grid, period if spec.stac else None, margin=_CYCLE)
    if not slices:
        raise no_data(spec, grid, None)
    products = {piece.product.name: piece.product for piece in slices}
    chosen = best_passes(slices, grid)
    planes = [
        _lazy_angle(grid, tuple(products[name] for name in one.slices), chunks) for one in chosen
    ]
    angle = xr.DataArray(
        dask.array.stack(planes), dims=("relative_orbit", "y", "x"), coords=grid_coords(grid)
    )
    orbits = np.array([one.relative_orbit for one in chosen], dtype="int16")
    states = np.array([one.orbit_state for one in chosen], dtype=str)
    return xr.Dataset({"angle": describe(angle, "angle")}).assign_coords(
        relative_orbit=("relative_orbit", orbits), orbit_state=("relative_orbit", states)
    )


def _check_entry(spec: SourceSpec) -> None:
    """Raise CatalogError unless `spec` says all that geocoding needs to know."""
    take_average(spec)
    take_native_resolution(spec)
    if spec.convention != "sigma0":
        msg = (
            f"{spec.origin}: convention of {spec.name} is {spec.convention!r}; {spec.loader} "
            "calibrates to sigma0, write that"
        )
        raise CatalogError(msg)
    above = take_choice(spec, "heights", ("geoid", "ellipsoid"), default=None)
    for key, needed in (("dem", True), ("geoid", above == "geoid")):
        if needed and key not in spec.options:
            msg = f"{spec.origin}: options.{key} of {spec.name} is missing; give a raster of " + (
                "heights" if key == "dem" else "the geoid's height above the ellipsoid"
            )
            raise CatalogError(msg)


def _lazy_passes(
    spec: SourceSpec,
    grid: GeoBox,
    passes: Sequence[tuple[Product, ...]],
    *,
    bands: tuple[str, ...],
    chunks: int,
) -> dask.array.Array:
    """Return sigma0 [dB] (time, band, y, x), one task per pass and tile."""
    factor = max(1, round(pixel_metres(grid) / take_native_resolution(spec)))
    edge = max(1, min(chunks, _MAX_EDGE // factor))
    terrain = _lazy_terrain(spec, grid, factor, edge)
    products = np.empty(len(passes), dtype=object)
    products[:] = passes
    stacked: dask.array.Array = dask.array.blockwise(
        _orthorectify_block,
        "tbyx",
        dask.array.from_array(products, chunks=1),
        "t",
        terrain,
        "yx",
        new_axes={"b": len(bands)},
        adjust_chunks={
            dim: tuple(min(edge, size - start) for start in range(0, size, edge))
            for dim, size in zip("yx", grid.shape.yx, strict=True)
        },
        dtype="float32",
        meta=np.empty((0, 0, 0, 0), dtype="float32"),
        token="orthorectify",
        bands=bands,
        average=take_average(spec),
    )
    rechunked: dask.array.Array = stacked.rechunk((1, -1, chunks, chunks))
    return rechunked


def _lazy_terrain(spec: SourceSpec, grid: GeoBox, factor: int, edge: int) -> dask.array.Array:
    """Return one `TileTerrain` per tile: an array of objects (y, x) with one in each chunk."""
    fine = grid.zoom_to((grid.shape.y * factor, grid.shape.x * factor))
    dem = _open_raster(spec, "dem", fine)
    geoid = _open_raster(spec, "geoid", grid) if "geoid" in spec.options else None
    place = None if geoid is None else geoid.odc.geobox

    def lazy(tile: Tile) -> dask.array.Array:
        rows, columns = (
            slice(part.start * factor, part.stop * factor) for part in (tile.y, tile.x)
        )
        sampling = Sampling(dem.odc.geobox, fine, (rows, columns))
        task = dask.delayed(_to_terrain, pure=True)(
            *(tile.geobox, factor, sampling, dem.data[sampling.taken]),
            *(place, None if geoid is None else geoid.data, spec.origin),
        )
        one: dask.array.Array = dask.array.from_delayed(task, shape=(1, 1), dtype=object)
        return one

    return _assemble(grid, edge, lazy)


def _to_terrain(
    cells: GeoBox,
    factor: int,
    sampling: Sampling,
    heights: npt.NDArray[np.float32],
    place: GeoBox | None,
    undulation: npt.NDArray[np.float32] | None,
    origin: str,
) -> npt.NDArray[np.object_]:
    geoid = None
    if place is not None and undulation is not None:
        geoid = Geoid(place, undulation, origin)
    one = np.empty((1, 1), dtype=object)
    one[0, 0] = TileTerrain(cells, factor, sampling, heights, geoid)
    return one


def _orthorectify_block(
    products: npt.NDArray[np.object_], terrain: npt.NDArray[np.object_], **kwargs: Any
) -> npt.NDArray[np.float32]:
    return orthorectify(products[0], terrain[0, 0], **kwargs)[np.newaxis]


def _open_raster(spec: SourceSpec, key: str, grid: GeoBox) -> xr.DataArray:
    """Return the native pixels around `grid` of the raster that the option `key` names."""
    stated = spec.options[key]
    source = replace(spec, stac=None, paths=(), crs=None, nodata=None)
    if isinstance(stated, dict):
        if sorted(stated) != sorted(_COLLECTION_KEYS):
            msg = (
                f"{spec.origin}: options.{key} of {spec.name} has {', '.join(map(str, stated))}; "
                f"a collection needs {', '.join(_COLLECTION_KEYS)}"
            )
            raise CatalogError(msg)
        query = StacQuery(stated["href"], stated["collection"], sign=stated["sign"])
        source = replace(source, stac=query, assets={key: stated["asset"]})
    else:
        tiles = stated if isinstance(stated, list) else [stated]
        source = replace(source, paths=tuple(_to_path(spec, key, path) for path in tiles))
    # Tiles of the Copernicus DEM are wider spaced in longitude towards the poles.
    native = sorted(
        open_native(source, key, grid), key=lambda da: float(da.odc.geobox.resolution.x)
    )
    lattice = native[0].odc.geobox
    return reduce(lambda merged, da: merged.fillna(bilinear(da, lattice)), native)


def _to_path(spec: SourceSpec, key: str, stated: Any) -> str:
    path = os.path.expandvars(str(stated))
    if not is_url(path) and not Path(path).is_file():
        msg = (
            f"{spec.origin}: options.{key} of {spec.name} is {stated!r}, which is no file; give "
            "its whole path or a URL (${VAR} is taken from the environment)"
        )
        raise CatalogError(msg)
    return path


def _lazy_angle(grid: GeoBox, products: tuple[Product, ...], chunks: int) -> dask.array.Array:
    def lazy(tile: Tile) -> dask.array.Array:
        task = dask.delayed(_angle_of_pass, pure=True)(products, tile.geobox)
        shape = tile.geobox.shape.yx
        block: dask.array.Array = dask.array.from_delayed(task, shape=shape, dtype="float32")
        return block

    return _assemble(grid, chunks, lazy)


def _angle_of_pass(products: Sequence[Product], grid: GeoBox) -> npt.NDArray[np.float32]:
    """Return the incidence angle [degree] (y, x); where slices overlap the earlier one holds."""
    angle = np.full(grid.shape.yx, np.nan)
    for product in products:
        annotation = product.read_annotation(product.copolarised)
        angle = np.where(np.isnan(angle), incidence_angle(annotation.grid, grid), angle)
    return angle.astype("float32")


def _assemble(
    grid: GeoBox, edge: int, lazy: Callable[[Tile], dask.array.Array]
) -> dask.array.Array:
    """Return the array (..., y, x) made of what `lazy` returns for each tile."""
    rows: dict[int, list[dask.array.Array]] = {}
    for tile in iter_tiles(grid, edge):
        rows.setdefault(tile.index[0], []).append(lazy(tile))
    assembled: dask.array.Array = dask.array.block(list(rows.values()))
    return assembled
