"""Where a point of the ground lies in an image, by its geolocation grid.

The grid is regular in line and pixel and bent in longitude and latitude: its cells are bilinear in
the image, and each place is found by inverting the cell that it lies in.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry, polygon

from smgrid.grid import pixel_centres
from smgrid.sources.annotation import Floats, GeolocationGrid

_LONLAT = "EPSG:4326"
# Lines and pixels beyond the outermost points that still belong to the image: half a pixel ends
# it, and the next slice of the pass begins there, so that a gap must not open between the two.
_MARGIN = 1.0
_ITERATIONS = 20
# Degrees by which a found place may miss the wanted one: a millimetre.
_TOLERANCE = 1e-8
# Cells beyond the grid at which the search for a point outside stops.
_BEYOND = 0.5


@dataclass(frozen=True, eq=False)
class GridPosition:
    """Continuous rows and columns of points in a geolocation grid; NaN outside the image."""

    row: Floats
    column: Floats

    def interpolate(self, values: Floats) -> Floats:
        """Return values (row, column) of the grid's points at the positions, bilinear."""
        known = np.isfinite(self.row)
        row, column = np.where(known, self.row, 0.0), np.where(known, self.column, 0.0)
        found, *_ = _bilinear(values, row, column)
        return np.where(known, found, np.nan)


def locate(grid: GeolocationGrid, longitude: Floats, latitude: Floats) -> GridPosition:
    """Return where points lie among the points of a geolocation grid.

    Parameters
    ----------
    grid
        Of one image.
    longitude, latitude
        Of the points [degree], any shape. Their height is that of the grid's own surface.

    Notes
    -----
    Newton's method on the piecewise bilinear map from rows and columns to longitude and latitude,
    from a quadratic fit. A step that leaves a cell goes on with the next cell.
    """
    active = np.isfinite(longitude) & np.isfinite(latitude)
    origin = grid.longitude[0, 0]
    longitude = np.where(active, longitude, origin)
    latitude = np.where(active, latitude, grid.latitude[0, 0])
    east, x = _from(origin, grid.longitude), _from(origin, longitude)
    row, column = _first_guess(east, grid.latitude, x, latitude)
    missed = np.full(x.shape, np.inf)
    for _ in range(_ITERATIONS):
        i, j = row[active], column[active]
        u, u_row, u_column = _bilinear(east, i, j)
        v, v_row, v_column = _bilinear(grid.latitude, i, j)
        du, dv = x[active] - u, latitude[active] - v
        missed[active] = np.hypot(du, dv)
        determinant = u_row * v_column - u_column * v_row
        row[active] = _within(i + (du * v_column - dv * u_column) / determinant, east.shape[0])
        column[active] = _within(j + (dv * u_row - du * v_row) / determinant, east.shape[1])
        active = active & (missed > _TOLERANCE)
        if not active.any():
            break
    inside = (
        (missed <= _TOLERANCE)
        & _is_inside(to_image(grid.line, row), grid.line)
        & _is_inside(to_image(grid.pixel, column), grid.pixel)
    )
    return GridPosition(np.where(inside, row, np.nan), np.where(inside, column, np.nan))


def to_image(axis: Floats, position: Floats) -> Floats:
    """Return the lines (pixels) at continuous rows (columns) of a grid with the lines `axis`."""
    lower, share = _split(position, axis.size)
    found: Floats = axis[lower] + share * (axis[lower + 1] - axis[lower])
    return found


def incidence_angle(grid: GeolocationGrid, target: GeoBox) -> Floats:
    """Return the incidence angle [degree] (y, x) at the pixel centres of `target`.

    Parameters
    ----------
    grid
        Of one image.
    target
        Any CRS.

    Returns
    -------
    numpy.ndarray
        Bilinear between the annotated angles, which are those on the ellipsoid; NaN outside the
        image.
    """
    longitude, latitude = pixel_centres(target, _LONLAT)
    return locate(grid, longitude, latitude).interpolate(grid.incidence)


def footprint(grid: GeolocationGrid) -> Geometry:
    """Return the outline of an image in degrees."""
    origin = grid.longitude[0, 0]
    east, north = origin + _from(origin, grid.longitude), grid.latitude
    outline = [(float(x), float(y)) for x, y in zip(_rim(east), _rim(north), strict=True)]
    return polygon([*outline, outline[0]], _LONLAT)


def _rim(values: Floats) -> Floats:
    return np.concatenate([values[0], values[1:, -1], values[-1, -2::-1], values[-2:0:-1, 0]])


def _from(origin: float, longitude: Floats) -> Floats:
    """Return longitudes as differences from `origin`, -180 to 180."""
    return (longitude - origin + 180.0) % 360.0 - 180.0


def _first_guess(east: Floats, north: Floats, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    rows, columns = np.indices(east.shape)
    fit, *_ = np.linalg.lstsq(
        _quadratic(east.ravel(), north.ravel()),
        np.column_stack([rows.ravel(), columns.ravel()]),
        rcond=None,
    )
    row, column = np.moveaxis(_quadratic(x, y) @ fit, -1, 0)
    return _within(row, east.shape[0]), _within(column, east.shape[1])


def _quadratic(x: Floats, y: Floats) -> Floats:
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)


def _within(position: Floats, size: int) -> Floats:
    return position.clip(-_BEYOND, size - 1 + _BEYOND)


def _split(position: Floats, size: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return the cell that a position lies in, the outermost ones reaching on, and the rest."""
    lower = np.floor(position).astype("int64").clip(0, size - 2)
    return lower, position - lower


def _bilinear(values: Floats, row: Floats, column: Floats) -> tuple[Floats, Floats, Floats]:
    """Return values at positions and their derivatives along rows and columns."""
    i, s = _split(row, values.shape[0])
    j, t = _split(column, values.shape[1])
    a, b = values[i, j], values[i, j + 1]
    c, d = values[i + 1, j], values[i + 1, j + 1]
    upper, lower = a + t * (b - a), c + t * (d - c)
    along_columns = (1.0 - s) * (b - a) + s * (d - c)
    return upper + s * (lower - upper), lower - upper, along_columns


def _is_inside(position: Floats, axis: Floats) -> npt.NDArray[np.bool_]:
    middle, half = (axis[0] + axis[-1]) / 2, (axis[-1] - axis[0]) / 2
    inside: npt.NDArray[np.bool_] = np.abs(position - middle) <= half + _MARGIN
    return inside
