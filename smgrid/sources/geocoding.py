"""Where a point in space lies in a radar image, by range and Doppler, and image values on a grid.

Exact positions are computed with sarsen on a coarse lattice of nodes at several heights. Between
them they are smooth: interpolated linearly along x, y and height they are right to a few
centimetres, at a thousandth of the cost.
"""

import importlib.util
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from smgrid.errors import MissingDependencyError, SourceError
from smgrid.grid import transform_points
from smgrid.sources.annotation import Annotation, Floats, RangeConversion
from smgrid.sources.window import pixel_metres, to_pixel

_LIGHT = 299_792_458.0  # speed of light [m/s]
_SECOND = np.timedelta64(1, "s").astype("timedelta64[ns]")
# Along-track distance of a point from the plane of zero Doppler at which the search ends [m].
_ZERO_DOPPLER = 0.01
# How far beyond an image a position is still computed: nodes lie outside of it, at other heights.
_BEYOND_S = 2.0
_BEYOND_M = 6000.0
_RANGE_STEPS = 8
_RANGE_TOLERANCE = 0.1  # [m]
# Spacing of the nodes [m]: the curvature of a slant range of 800 km bends 4 cm between two of them,
# and 16 cm between two heights.
_NODE_SPACING = 500.0
_NODE_HEIGHT = 1000.0
# Weight below which a neighbour does not take part [1]: positions come with rounding errors.
_NO_WEIGHT = 1e-6


def require_sarsen() -> None:
    """Raise MissingDependencyError unless the extra ``[safe]`` is installed."""
    missing = [name for name in ("sarsen", "xarray_sentinel") if not importlib.util.find_spec(name)]
    if missing:
        msg = (
            f"geocoding ground range products needs {' and '.join(missing)}; install it with "
            "pip install 'smgrid[safe]'"
        )
        raise MissingDependencyError(msg)


def image_position(
    annotation: Annotation, ecef: Floats
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return line and pixel of points in space, 0 at the centre of the first sample.

    Parameters
    ----------
    annotation
        Of the image.
    ecef
        (axis, y, x), Earth-centred, Earth-fixed [m].

    Returns
    -------
    tuple of numpy.ndarray
        NaN more than a few kilometres beyond the image.

    Notes
    -----
    Zero-Doppler time and slant range by the range-Doppler equations (Small and Schubert 2019, Guide
    to Sentinel-1 Geocoding, UZH-S1-GC-AD). Two more of their points: the processor corrects the
    motion of the satellite between sending and receiving for the middle of the swath only, and the
    rest, up to 0.2 lines, is taken from the times that the geolocation grid states; and slant range
    becomes ground range by inverting the annotated polynomials from ground to slant range, because
    those in the other direction are up to 4 pixels less exact in old products. Between two of them
    they are linear in time; the annotated places themselves hold the nearest one and are up to 1.5
    pixels off where it changes fast, in the Alps.
    """
    zero_doppler, distance = _zero_doppler(annotation, ecef)
    seconds = (zero_doppler - annotation.first_line) / _SECOND
    offset = _time_offset(annotation)
    seconds = seconds - np.polyval(offset, 2.0 * distance / _LIGHT)
    duration = float((annotation.last_line - annotation.first_line) / _SECOND)
    line = seconds / duration * (annotation.shape[0] - 1)
    line[(seconds < -_BEYOND_S) | (seconds > duration + _BEYOND_S)] = np.nan
    width = annotation.spacing[1] * (annotation.shape[1] - 1)
    ground = _ground_range(annotation.ranges, zero_doppler, distance, width)
    return line, ground / annotation.spacing[1]


@dataclass(frozen=True, eq=False)
class Geoid:
    """The surface that heights above sea level count from."""

    grid: GeoBox
    """Any CRS."""
    undulation: npt.NDArray[np.float32]
    """(y, x), its height above the ellipsoid [m]."""
    origin: str = ""
    """Where the source was written, for messages."""

    def sample(self, longitude: Floats, latitude: Floats) -> Floats:
        """Return its height at places [m], bilinear; SourceError where it is not known."""
        x, y = transform_points(longitude, latitude, "EPSG:4326", self.grid.crs)
        row, column = to_pixel(self.grid, x, y)
        height = sample_image(self.undulation, row - 0.5, column - 0.5)
        if not np.isfinite(height).all():
            unknown = np.argmin(np.isfinite(height).ravel())
            msg = (
                f"the geoid of {self.origin} has no value at {latitude.flat[unknown]:.3f} N "
                f"{longitude.flat[unknown]:.3f} E; give one that covers the whole grid"
            )
            raise SourceError(msg)
        return height


@dataclass(frozen=True, eq=False)
class PositionField:
    """Lines and pixels of an image at the nodes of a lattice over a grid, at several heights."""

    grid: GeoBox
    """The grid that the nodes span, from edge to edge."""
    height: Floats
    """Heights of the nodes [m], evenly spaced, in the system of the elevation model."""
    position: Floats
    """(line and pixel, height, y, x)."""

    def interpolate(self, rows: slice, columns: slice, height: Floats) -> tuple[Floats, Floats]:
        """Return line and pixel of pixel centres of the grid at their `height` (y, x)."""
        nodes = self.position.shape[2:]
        y, x = (
            (np.arange(part.start, part.stop) + 0.5) / size * (count - 1)
            for part, size, count in zip((rows, columns), self.grid.shape.yx, nodes, strict=True)
        )
        at = _expand(_expand(self.position, y, axis=2), x, axis=3)
        z = (height - self.height[0]) / (self.height[1] - self.height[0])
        known = np.isfinite(z)
        z = np.where(known, z, 0.0)
        lower = np.floor(z).astype("int64").clip(0, self.height.size - 2)
        share = np.where(known, z - lower, np.nan)
        below = np.take_along_axis(at, lower[np.newaxis, np.newaxis], axis=1)[:, 0]
        above = np.take_along_axis(at, lower[np.newaxis, np.newaxis] + 1, axis=1)[:, 0]
        line, pixel = below + share * (above - below)
        return line, pixel


def position_field(
    annotation: Annotation,
    grid: GeoBox,
    *,
    heights: tuple[float, float],
    geoid: Geoid | None = None,
) -> PositionField:
    """Return where the points over a grid lie in an image.

    Parameters
    ----------
    annotation
        Of the image.
    grid
        Any CRS.
    heights
        Lowest and highest that will be asked for [m].
    geoid
        What `heights` are above; ``None`` for the ellipsoid.

    Raises
    ------
    SourceError
        If the geoid does not cover the grid.
    """
    levels = max(2, math.ceil((heights[1] - heights[0]) / _NODE_HEIGHT) + 1)
    height = np.linspace(heights[0], max(heights[1], heights[0] + 1.0), levels)
    x, y = _node_coordinates(grid)
    longitude, latitude = transform_points(x, y, grid.crs, "EPSG:4326")
    base = geoid.sample(longitude, latitude) if geoid else np.zeros(longitude.shape)
    position = np.empty((2, levels, *longitude.shape))
    for level in range(levels):
        ecef = np.stack(_to_ecef().transform(longitude, latitude, base + height[level]))
        position[:, level] = image_position(annotation, ecef)
    return PositionField(grid=grid, height=height, position=position)


def sample_image(image: npt.NDArray[np.float32], line: Floats, pixel: Floats) -> Floats:
    """Return the values of an image at positions, bilinear; NaN where one that takes part is."""
    total = np.zeros(line.shape)
    for row, row_weight in _neighbours(line):
        for column, column_weight in _neighbours(pixel):
            weight = row_weight * column_weight
            row_index = row.clip(0, image.shape[0] - 1)
            value = image[row_index, column.clip(0, image.shape[1] - 1)]
            total += np.where(weight > _NO_WEIGHT, weight * value, 0.0)
    return total


def _zero_doppler(annotation: Annotation, ecef: Floats) -> tuple[Any, Floats]:
    """Return zero-Doppler time and distance of points from the satellite [m]."""
    from sarsen.geocoding import backward_geocode  # takes seconds to import
    from sarsen.orbit import OrbitPolyfitInterpolator

    axes = {"axis": np.arange(3)}
    orbit = xr.DataArray(
        annotation.orbit_position,
        dims=("axis", "azimuth_time"),
        coords={**axes, "azimuth_time": annotation.orbit_time},
    )
    points = xr.DataArray(ecef, dims=("axis", "y", "x"), coords=axes)
    found = backward_geocode(
        points,
        OrbitPolyfitInterpolator.from_position(orbit),
        zero_doppler_distance=_ZERO_DOPPLER,
    )
    distance: Floats = np.linalg.norm(found["dem_distance"].transpose("axis", ...), axis=0)
    return found["azimuth_time"].values, distance


def _time_offset(annotation: Annotation) -> Floats:
    """Return what the time of a line lacks to the zero-Doppler time, over slant range time [s]."""
    grid = annotation.grid
    duration = annotation.last_line - annotation.first_line
    share = grid.line / (annotation.shape[0] - 1)
    of_line = share[:, np.newaxis] * float(duration / _SECOND)
    seconds = (grid.azimuth_time - annotation.first_line) / _SECOND
    fit: Floats = np.polyfit(grid.slant_range_time.ravel(), (seconds - of_line).ravel(), 1)
    return fit


def _ground_range(
    ranges: RangeConversion, time: npt.NDArray[np.datetime64], distance: Floats, width: float
) -> Floats:
    """Return the ground range [m] at which an image has a slant range [m], by Newton's method."""
    known = ranges.time.astype("int64").astype("float64")
    at = time.astype("int64").astype("float64")
    origin = np.interp(at, known, ranges.origin)
    terms = [np.interp(at, known, term) for term in ranges.coefficients.T]
    ground = np.full(distance.shape, width / 2.0)
    missed = np.full(distance.shape, np.inf)
    for _ in range(_RANGE_STEPS):
        slant, slope = _polynomial(terms, ground - origin)
        missed = distance - slant
        ground = (ground + missed / slope).clip(-_BEYOND_M, width + _BEYOND_M)
    return np.where(np.abs(missed) < _RANGE_TOLERANCE, ground, np.nan)


def _polynomial(terms: list[Floats], x: Floats) -> tuple[Floats, Floats]:
    """Return a polynomial and its derivative, by Horner's rule."""
    value, slope = np.zeros_like(x), np.zeros_like(x)
    for term in reversed(terms):
        slope = slope * x + value
        value = value * x + term
    return value, slope


def _node_coordinates(grid: GeoBox) -> tuple[Floats, Floats]:
    per_pixel = pixel_metres(grid) / _NODE_SPACING
    y_count, x_count = (max(2, math.ceil(size * per_pixel) + 1) for size in grid.shape.yx)
    x = grid.affine.c + np.linspace(0, grid.shape.x, x_count) * grid.affine.a
    y = grid.affine.f + np.linspace(0, grid.shape.y, y_count) * grid.affine.e
    xx, yy = np.meshgrid(x, y)
    return xx, yy


def _expand(values: Floats, position: Floats, *, axis: int) -> Floats:
    """Return values between nodes along one axis, linear."""
    lower = np.floor(position).astype("int64").clip(0, values.shape[axis] - 2)
    shape = [1] * values.ndim
    shape[axis] = -1
    share = (position - lower).reshape(shape)
    first, second = values.take(lower, axis=axis), values.take(lower + 1, axis=axis)
    expanded: Floats = first + share * (second - first)
    return expanded


def _neighbours(position: Floats) -> list[tuple[npt.NDArray[np.int64], Floats]]:
    lower = np.floor(position)
    share = position - lower
    index = np.nan_to_num(lower).astype("int64")
    return [(index, 1.0 - share), (index + 1, share)]


@lru_cache(maxsize=1)
def _to_ecef() -> Transformer:
    return Transformer.from_crs("EPSG:4979", "EPSG:4978", always_xy=True)
