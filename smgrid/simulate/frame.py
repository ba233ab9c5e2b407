"""Where the world lies: the region, the larger domain that is simulated, and ways between grids.

The domain is the region and a margin, and holds every 9 km cell of EASE-Grid 2.0 that touches the
region, so that what a provider's pixel covers is simulated and its value is the mean of it.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from smgrid.errors import GridError
from smgrid.grid import ease_grid, nested_offset, pixel_centres, transform_points
from smgrid.simulate.fields import Array

_MARGIN = 2000.0  # metres that providers' rasters may reach beyond the region
_HALF_TURN = 180.0  # degrees
_MAX_PIXELS = 2**31  # of one provider's raster
_EDGE_POINTS = 65  # along each edge, to follow its curvature in another CRS

Bounds = tuple[float, float, float, float]


@dataclass(frozen=True)
class Frame:
    """The grids of a world, all north up."""

    base: GeoBox
    """The region: the grid of the truth."""
    domain: GeoBox
    """What is simulated: the same lattice, extended."""
    ease: GeoBox
    """The 9 km cells of EASE-Grid 2.0 over the region's box of longitude and latitude."""

    @property
    def inner(self) -> tuple[slice, slice]:
        """Rows and columns of the domain that are the region."""
        offset = nested_offset(self.base, self.domain)
        rows, columns = self.base.shape
        return slice(offset.y, offset.y + rows), slice(offset.x, offset.x + columns)


@dataclass(frozen=True)
class CellMean:
    """Means of a source grid's field over the cells of another grid."""

    index: NDArray[np.intp]
    """Source pixels under each cell (y, x, n), flat."""

    def __call__(self, field: NDArray[Any]) -> Array:
        """Mean of `field` over each cell (y, x)."""
        return np.asarray(field.ravel()[self.index].mean(axis=-1), dtype=np.float32)


@dataclass(frozen=True)
class Bilinear:
    """Bilinear interpolation of a source grid's field at the pixel centres of another grid."""

    row: NDArray[np.intp]
    column: NDArray[np.intp]
    down: Array
    across: Array

    def __call__(self, field: NDArray[Any]) -> Array:
        """Interpolated `field` (y, x); beyond the outermost centres the edge is continued."""
        row, column, down, across = self.row, self.column, self.down, self.across
        upper = field[row, column] * (1 - across) + field[row, column + 1] * across
        lower = field[row + 1, column] * (1 - across) + field[row + 1, column + 1] * across
        return np.asarray(upper * (1 - down) + lower * down, dtype=np.float32)


def make_frame(base: GeoBox) -> Frame:
    """Domain and EASE-Grid cells of a region.

    Raises
    ------
    GridError
        The region crosses the antimeridian or is too near to a pole.
    """
    west, south, east, north = bounds_in(base, "EPSG:4326")
    if east - west > _HALF_TURN:
        raise GridError("the region crosses the antimeridian; move the centre")
    ease = ease_grid(9, (west, south, east, north))
    x0, y0, x1, y1 = bounds_in(base, base.crs, margin=_MARGIN)
    ex0, ey0, ex1, ey1 = bounds_in(ease, base.crs)
    outer = (min(x0, ex0), min(y0, ey0), max(x1, ex1), max(y1, ey1))
    domain = GeoBox.from_bbox(outer, base.crs, resolution=base.resolution.x, anchor="edge")
    return Frame(base, domain, ease)


def bounds_in(grid: GeoBox, crs: Any, *, margin: float = 0.0) -> Bounds:
    """Bounds of `grid`, grown by `margin` in its own units, in another CRS."""
    box = grid.boundingbox
    t = np.linspace(0.0, 1.0, _EDGE_POINTS)
    x = box.left - margin + t * (box.right - box.left + 2 * margin)
    y = box.bottom - margin + t * (box.top - box.bottom + 2 * margin)
    edge_x = np.concatenate([x, x, np.full_like(t, x[0]), np.full_like(t, x[-1])])
    edge_y = np.concatenate([np.full_like(t, y[0]), np.full_like(t, y[-1]), y, y])
    new_x, new_y = transform_points(edge_x, edge_y, grid.crs, crs)
    if not (np.isfinite(new_x).all() and np.isfinite(new_y).all()):
        raise GridError(f"the region {tuple(box)} does not exist in {CRS(crs)}; move the centre")
    return float(new_x.min()), float(new_y.min()), float(new_x.max()), float(new_y.max())


def lattice_window(
    bounds: Bounds, crs: Any, *, origin: tuple[float, float], step: tuple[float, float]
) -> GeoBox:
    """Smallest window of a provider's pixel lattice that covers `bounds`.

    Parameters
    ----------
    bounds
        (left, bottom, right, top) in `crs`.
    crs
        Of the lattice.
    origin
        x and y of any corner of a pixel.
    step
        Width and height of a pixel.

    Raises
    ------
    GridError
        The window is absurdly large.
    """
    width, height = step
    left, bottom, right, top = bounds
    first_column = math.floor((left - origin[0]) / width)
    last_column = math.ceil((right - origin[0]) / width)
    first_row = math.floor((origin[1] - top) / height)
    last_row = math.ceil((origin[1] - bottom) / height)
    if (last_row - first_row) * (last_column - first_column) > _MAX_PIXELS:
        raise GridError(
            f"the region is torn apart in {CRS(crs)}, which is interrupted there; move the centre"
        )
    affine = Affine(
        width, 0, origin[0] + first_column * width, 0, -height, origin[1] - first_row * height
    )
    return GeoBox((last_row - first_row, last_column - first_column), affine, crs)


def refine(grid: GeoBox, factor: int) -> GeoBox:
    """`grid` with `factor` x `factor` pixels in each of its pixels."""
    rows, columns = grid.shape
    return grid.zoom_to((rows * factor, columns * factor))


def cell_mean(source: GeoBox, target: GeoBox, *, parts: int) -> CellMean:
    """Plan the means over the cells of `target`, each split into `parts` x `parts` points.

    The corners of a window in a skewed projection may lie beyond `source`: there its edge is
    continued.
    """
    x, y = pixel_centres(refine(target, parts), source.crs)
    row, column = (np.floor(p).astype(np.intp) for p in _position(source, x, y))
    rows, columns = source.shape
    row, column = np.clip(row, 0, rows - 1), np.clip(column, 0, columns - 1)
    flat = (row * columns + column).reshape(target.shape[0], parts, target.shape[1], parts)
    return CellMean(flat.transpose(0, 2, 1, 3).reshape(*target.shape, parts * parts))


def bilinear(source: GeoBox, target: GeoBox) -> Bilinear:
    """Plan the interpolation from the pixel centres of `source` to those of `target`."""
    x, y = pixel_centres(target, source.crs)
    row, column = _position(source, x, y)
    row = np.clip(row - 0.5, 0, source.shape[0] - 1)
    column = np.clip(column - 0.5, 0, source.shape[1] - 1)
    above = np.minimum(row.astype(np.intp), source.shape[0] - 2)
    before = np.minimum(column.astype(np.intp), source.shape[1] - 2)
    return Bilinear(
        above, before, (row - above).astype(np.float32), (column - before).astype(np.float32)
    )


def nearest_pixels(source: GeoBox, target: GeoBox) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of `source` under the pixels of `target`, which shares its CRS.

    Two index vectors made for ``field[np.ix_(rows, columns)]``.
    """
    y, x = (axis.values for axis in target.coordinates.values())
    rows, _ = _position(source, np.full_like(y, source.boundingbox.left), y)
    _, columns = _position(source, x, np.full_like(x, source.boundingbox.top))
    return np.floor(rows).astype(np.intp), np.floor(columns).astype(np.intp)


def _position(
    grid: GeoBox, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Row and column, in pixels from the upper-left corner."""
    affine = grid.affine
    return (y - affine.f) / affine.e, (x - affine.c) / affine.a
