"""Soil texture and bulk density from SoilGrids or rasters like it."""

import math
from functools import partial, reduce

import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec, check_options
from smgrid.errors import CatalogError
from smgrid.resample import area_average, nearest
from smgrid.schema import convert_units, describe
from smgrid.sources.checks import checked
from smgrid.sources.options import take_native_resolution, take_units
from smgrid.sources.raster import open_native
from smgrid.sources.window import pixel_metres
from smgrid.windows import Period

# Sample points along the edge of a native pixel, and along that of a cell where they suffice: with
# these the sampling error of a mean is below a tenth of the spread between neighbouring pixels.
_POINTS, _ENOUGH = 4, 16
# Edge of a chunk of sample points: 16 MB as float32.
_SAMPLED = 2048


def load(spec: SourceSpec, grid: GeoBox, period: Period, *, chunks: int = 512) -> xr.Dataset:
    """Load static soil properties onto `grid`, lazily.

    Parameters
    ----------
    spec
        ``assets`` maps each variable to a file, URL or VRT, or to the asset key of its items
        where the source has ``stac``; ``units`` are those stored. SoilGrids comes in Interrupted
        Goode Homolosine: state ``crs: ESRI:54052`` where a file does not, or does so wrongly.
    grid
        Target.
    period
        Not used: soil does not change with time.
    chunks
        Tile edge in pixels of `grid`.

    Returns
    -------
    xr.Dataset
        ``sand`` and ``clay`` [g kg-1], ``bdod`` [cg cm-3], dims (y, x).

    Raises
    ------
    CatalogError
        If an asset, its units or ``native_resolution`` is missing, or files are given as paths.
    NoDataError, SourceError
        If a file does not cover the grid or cannot be read.
    SchemaError
        If units are unknown; when reading, if values are physically impossible.

    Notes
    -----
    A finer grid gets the native pixel in which the centre of the cell lies: every value is one that
    SoilGrids states (Poggio et al. 2021, doi:10.5194/soil-7-217-2021), the provider's integers stay
    integers, and no detail is invented. A grid as coarse as the source or coarser gets the mean of
    the native pixels over the area of each cell, which is missing where less than half of it is
    known. In another CRS than the source's that area is sampled at evenly spaced points, four per
    native pixel and edge up to 16 per cell, more only where the cell has more pixels: Homolosine
    shears a cell by up to 45 degrees, and is cut into lobes, so that an upright box around the
    cell holds up to twice its area or reaches over a gap of thousands of kilometres.
    """
    del period
    check_options(spec)
    if spec.paths:
        msg = f"{spec.origin}: {spec.name} has paths; give one file per variable as assets instead"
        raise CatalogError(msg)
    ratio = pixel_metres(grid) / take_native_resolution(spec)
    variables = {}
    for name in spec.provides:
        parts = []
        for stored in open_native(spec, name, grid):
            soil = convert_units(stored, take_units(spec, name), name)
            soil = checked(soil, name, where=f"{spec.name} ({spec.origin})")
            resample = nearest if ratio < 1 else partial(_area_mean, ratio=ratio)
            parts.append(resample(soil, grid, chunks=chunks))
        merged = reduce(lambda whole, part: whole.fillna(part), parts)
        variables[name] = describe(merged, name)
    return xr.Dataset(variables)


def _area_mean(soil: xr.DataArray, grid: GeoBox, *, ratio: float, chunks: int) -> xr.DataArray:
    """Return the mean over the area of each cell; `ratio` is that of the pixel sizes."""
    if soil.odc.crs == grid.crs:
        return area_average(soil, grid, chunks=chunks)
    points = max(math.ceil(ratio), min(math.ceil(_POINTS * ratio), _ENOUGH))
    fine = grid.zoom_to((grid.shape.y * points, grid.shape.x * points))
    return area_average(nearest(soil, fine, chunks=_SAMPLED), grid, chunks=chunks)
