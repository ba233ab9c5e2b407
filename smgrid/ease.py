"""The numbers of EASE-Grid 2.0: lattices, row and column of a point, location features.

References
----------
Brodzik et al. 2012, EASE-Grid 2.0: Incremental but Significant Improvements for Earth-Gridded Data
Sets, ISPRS Int. J. Geo-Inf. 1(1), 32-45, doi:10.3390/ijgi1010032; corrected in 2014, 3(3),
1154-1156, doi:10.3390/ijgi3031154. Corners and cell sizes as in NSIDC's tables of grids.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smgrid.errors import GridError

EaseConvention = Literal["published", "exact", "centre"]

EASE_CRS = "EPSG:6933"
EASE_GRIDS = (36, 25, 9, 3, 1)  # nominal cell sizes of the global grids [km]
_ROWS, _COLUMNS, _CELL = 1624, 3856, 9008.055210146  # the 9 km grid, cell in m
# The 25 km grid is not nested in the others and ends 7.2 km closer to the equator.
_GRID_25KM = (584, 1388, 25025.26)
_SNAP = 1e-6  # fraction of a cell that is floating-point noise
# Rounded constants of the published preparation code of DenseSM.
_PUBLISHED_X0, _PUBLISHED_Y0 = -17367530.45, 7314540.83
_PUBLISHED_CELLS: Mapping[float, float] = {9: 9008.05, 36: 36032.22, 72: 2 * 36032.22}
_PUBLISHED_KILOMETRE = 1000.90


def ease_position(
    x: ArrayLike, y: ArrayLike, *, km: float, convention: EaseConvention
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Row and column in the global EASE-Grid 2.0 of a point in EPSG:6933.

    Parameters
    ----------
    x, y : array_like
        Coordinates in EPSG:6933 [m].
    km : float
        Nominal cell size: 25, or a size whose cells divide those of 9 km or are made of them
        (36, 9, 3, 1, 0.1, 0.05, ...).
    convention : {"exact", "centre", "published"}
        "exact": zero-based cell indices from the exact cell size; a border belongs to the cell
        east or south of it, within 1e-6 of a cell. "centre": the continuous position
        of the point, in cells from the upper-left corner. "published": the indices of the published
        preparation code of DenseSM, whose rows count from one, whose columns count from zero and
        whose cell sizes are rounded (9, 36, 72 km and 1 km or less only).

    Returns
    -------
    row, column : ndarray
        int64, float64 for "centre". Not clipped to the extent of the grid.

    Raises
    ------
    GridError
        Coordinates that are not finite, or a cell size that the convention does not know.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise GridError("ease_position: expected finite coordinates in EPSG:6933")
    if convention == "published":
        cell = _published_cell(km)
        row, column = np.ceil((_PUBLISHED_Y0 - y) / cell), np.floor((x - _PUBLISHED_X0) / cell)
        return row.astype(np.int64), column.astype(np.int64)
    rows, columns, cell = ease_lattice(km)
    row, column = rows / 2 - y / cell, columns / 2 + x / cell
    if convention == "centre":
        return row, column
    if convention == "exact":
        row, column = np.floor(row + _SNAP), np.floor(column + _SNAP)
        return row.astype(np.int64), column.astype(np.int64)
    raise GridError(f'convention: expected "published", "exact" or "centre", found {convention!r}')


def ease_features(
    row: ArrayLike, column: ArrayLike, *, km: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Location features of DenseSM: row fraction, sine and cosine of the column angle [1].

    With k = 9 / km cells per 9 km cell, the fraction is row / k / 1624 and the angle
    2 pi (column / k) / 3856: the shares of the globe's rows and columns (Zhu et al. 2024,
    doi:10.1016/j.rse.2023.113944, as in the published preparation code).
    """
    k = 9 / km
    angle = 2 * np.pi * (np.asarray(column, dtype=np.float64) / k) / _COLUMNS
    fraction = np.asarray(row, dtype=np.float64) / k / _ROWS
    return fraction, np.sin(angle), np.cos(angle)


def ease_lattice(km: float) -> tuple[int, int, float]:
    """Rows, columns and cell size [m] of a global grid, which is centred on the origin.

    Raises
    ------
    GridError
        The globe does not hold a whole number of such cells.
    """
    if km == 25:
        return _GRID_25KM
    if not km > 0:
        raise GridError(f"km: expected a positive cell size, found {km!r}")
    rows, columns = _ROWS * 9 / km, _COLUMNS * 9 / km
    if max(abs(rows - round(rows)), abs(columns - round(columns))) > 1e-4:
        raise GridError(f"km: expected 25 or a size that divides the globe evenly, found {km!r}")
    return round(rows), round(columns), _CELL * km / 9


def _published_cell(km: float) -> float:
    if 0 < km <= 1:
        return _PUBLISHED_KILOMETRE * km
    if km in _PUBLISHED_CELLS:
        return _PUBLISHED_CELLS[km]
    raise GridError(
        f'km: the convention "published" knows {sorted(_PUBLISHED_CELLS)} and 1 or less, '
        f"found {km!r}"
    )
