"""Soil as SoilGrids 2.0: 250 m in the Interrupted Goode Homolosine projection, 16-bit integers.

Units and lattice are those of the provider's ``*_0-5cm_mean`` layers (Poggio et al. 2021,
doi:10.5194/soil-7-217-2021): sand and clay in g/kg, bulk density in cg/cm3.
"""

from pathlib import Path

import numpy as np

from smgrid.simulate.evolution import Land
from smgrid.simulate.fields import Array
from smgrid.simulate.frame import bounds_in, cell_mean, lattice_window
from smgrid.simulate.rasters import write_cog

CRS_NAME = "ESRI:54052"
NODATA = -32768
PIXEL = 250.0  # m
_ORIGIN = (-19949750.0, 8361000.0)  # upper-left corner of the global lattice [m]
_MARGIN = 1000.0  # m beyond the region
_PARTS = 5


def file_name(variable: str) -> str:
    """Name of the raster of sand, clay or bdod."""
    return f"{variable}_0-5cm_mean.tif"


def write_soil(folder: Path, land: Land) -> None:
    """Write sand, clay and bdod of 0-5 cm into `folder`."""
    bounds = bounds_in(land.frame.base, CRS_NAME, margin=_MARGIN)
    grid = lattice_window(bounds, CRS_NAME, origin=_ORIGIN, step=(PIXEL, PIXEL))
    mean = cell_mean(land.frame.domain, grid, parts=_PARTS)
    layers: dict[str, Array] = {
        "sand": land.soil.sand * np.float32(1000),
        "clay": land.soil.clay * np.float32(1000),
        "bdod": land.soil.bulk_density * np.float32(100),
    }
    for variable, field in layers.items():
        values = np.rint(mean(field)).astype(np.int16)
        write_cog(folder / file_name(variable), values, grid, nodata=NODATA)
