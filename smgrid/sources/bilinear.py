"""Bilinear interpolation at exact positions, bit for bit the same whatever the chunks.

GDAL interpolates coordinates between a few exact ones per block, which shifts samples by up to an
eighth of a pixel and differently with other blocks; slopes show that as seams.
"""

from dataclasses import dataclass

import dask
import dask.array
import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.grid import grid_coords, iter_tiles, transform_points
from smgrid.sources.window import find_window, to_pixel

# Weight below which a neighbour does not take part [1]: positions come with rounding errors.
_NO_WEIGHT = 1e-6


@dataclass(frozen=True)
class Sampling:
    """Where the pixel centres of a window of a grid lie among the pixels of a source.

    Positions are computed from the whole grid and the whole source, so that rounding does not
    depend on the window either.
    """

    source: GeoBox  #: pixels that values are taken from
    grid: GeoBox  #: pixels that values are wanted for
    window: tuple[slice, slice]  #: rows and columns of `grid`

    @property
    def taken(self) -> tuple[slice, slice]:
        """Rows and columns of `source` that can take part."""
        return find_window(self.source, self.grid[self.window])

    def interpolate(self, values: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Interpolate `values`, those of `taken`; NaN where a pixel that takes part is missing.

        A centre that lies on a pixel centre of the source gets that pixel, whatever its neighbours.
        """
        row, col = self._positions()
        total = np.zeros(row.shape)
        for row_index, row_weight in _neighbours(row):
            for col_index, col_weight in _neighbours(col):
                weight = row_weight * col_weight
                pixel = self._take(values, row_index, col_index)
                total += np.where(weight > _NO_WEIGHT, weight * pixel, 0.0)
        return total

    def _positions(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return row and column among the centres of `source`; far outside where there are none."""
        y, x = (
            axis.values[part]
            for axis, part in zip(self.grid.coordinates.values(), self.window, strict=True)
        )
        x, y = np.meshgrid(x, y)
        x, y = transform_points(x, y, self.grid.crs, self.source.crs)
        row, col = to_pixel(self.source, x, y)
        exists = np.isfinite(row) & np.isfinite(col)
        return np.where(exists, row - 0.5, -9.0), np.where(exists, col - 0.5, -9.0)

    def _take(
        self,
        values: npt.NDArray[np.floating],
        row: npt.NDArray[np.int64],
        col: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.float64]:
        rows, cols = self.taken
        row, col = row - rows.start, col - cols.start
        inside = (row >= 0) & (row < values.shape[0]) & (col >= 0) & (col < values.shape[1])
        if not inside.any():
            return np.full(row.shape, np.nan)
        pixel = values[np.where(inside, row, 0), np.where(inside, col, 0)]
        return np.where(inside, pixel.astype("float64"), np.nan)


def bilinear(da: xr.DataArray, grid: GeoBox, *, chunks: int = 2048) -> xr.DataArray:
    """Interpolate `da` (y, x), dask-backed, at the pixel centres of `grid`, lazily.

    Returns
    -------
    xr.DataArray
        float64 (y, x); NaN where one of the pixels that take part is NaN or outside.
    """
    rows: dict[int, list[dask.array.Array]] = {}
    for tile in iter_tiles(grid, chunks):
        sampling = Sampling(da.odc.geobox, grid, (tile.y, tile.x))
        block = dask.array.from_delayed(
            dask.delayed(sampling.interpolate, pure=True)(da.data[sampling.taken]),
            shape=tile.geobox.shape.yx,
            dtype="float64",
        )
        rows.setdefault(tile.index[0], []).append(block)
    data = dask.array.block(list(rows.values()))
    return xr.DataArray(data, dims=("y", "x"), coords=grid_coords(grid), name=da.name)


def _neighbours(
    position: npt.NDArray[np.float64],
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
    lower = np.floor(position)
    share = position - lower
    index = lower.astype("int64")
    return [(index, 1.0 - share), (index + 1, share)]
