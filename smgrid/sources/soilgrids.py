"""Soil texture and bulk density from SoilGrids or rasters like it."""

import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec, check_options
from smgrid.resample import area_average, nearest
from smgrid.schema import convert_units, describe
from smgrid.sources.checks import checked
from smgrid.sources.options import take_native_resolution, take_units
from smgrid.sources.raster import open_native
from smgrid.sources.window import pixel_metres
from smgrid.windows import Period


def load(spec: SourceSpec, grid: GeoBox, period: Period, *, chunks: int = 512) -> xr.Dataset:
    """Load static soil properties onto `grid`, lazily.

    Parameters
    ----------
    spec
        ``assets`` maps each variable to a file, URL or VRT; ``units`` are those stored.
        SoilGrids comes in Interrupted Goode Homolosine: state ``crs: ESRI:54052`` where a file
        does not.
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
        If an asset, its units or ``native_resolution`` is missing.
    NoDataError, SourceError
        If a file does not cover the grid or cannot be read.
    SchemaError
        If units are unknown; when reading, if values are physically impossible.

    Notes
    -----
    A grid as coarse as the source or coarser gets the area mean of the native pixels. A finer grid
    gets the native pixel in which the centre of the cell lies: every value is one that SoilGrids
    states (Poggio et al. 2021, doi:10.5194/soil-7-217-2021), and no detail is invented.
    """
    del period
    check_options(spec)
    is_finer = pixel_metres(grid) < take_native_resolution(spec)
    variables = {}
    for name in spec.provides:
        (stored,) = open_native(spec, name, grid)
        soil = convert_units(stored, take_units(spec, name), name)
        soil = checked(soil, name, where=f"{spec.name} ({spec.origin})")
        resample = nearest if is_finer else area_average
        variables[name] = describe(resample(soil, grid, chunks=chunks), name)
    return xr.Dataset(variables)
