"""Terrain: a fractal surface with valleys, and the wetness that its shape gives every pixel."""

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from smgrid.simulate.fields import Array, fractal_field, standardise, stream
from smgrid.simulate.frame import Frame, refine

_FINE = 30.0  # target pixel of the surface [m], that of the 1 arc-second DEM
_MEAN_ELEVATION, _RELIEF = 720.0, 45.0  # [m], the second one standard deviation
_MIN_GRADIENT = 0.005  # keeps flat pixels' wetness finite
_FILL_STEP = 1e-4  # m
_NEGLIGIBLE = 1e-3  # [m2] of flow still on its way when the index is ready
# The eight neighbours: rows and columns away, distance in pixels, and the share of the contour
# that faces them (Quinn et al. 1991).
_NEIGHBOURS = tuple(
    (dy, dx, float(np.hypot(dy, dx)), 0.5 if dy == 0 or dx == 0 else 0.354)
    for dy in (-1, 0, 1)
    for dx in (-1, 0, 1)
    if (dy, dx) != (0, 0)
)


@dataclass(frozen=True)
class Terrain:
    """Shape of the land."""

    fine_grid: GeoBox
    """Grid of `fine`: the domain in pixels of about 30 m."""
    fine: Array
    """Elevation [m]."""
    elevation: Array
    """Elevation of the domain's pixels [m], the mean of the fine ones."""
    wetness: Array
    """Topographic wetness index of the domain's pixels [ln m]."""


def make_terrain(frame: Frame, seed: int) -> Terrain:
    """Draw the terrain of a world.

    A rough fractal surface is added to valleys, which follow the zero lines of smoother ones.
    """
    factor = max(1, round(frame.domain.resolution.x / _FINE))
    fine_grid = refine(frame.domain, factor)
    rng = stream(seed, "terrain")
    shape = fine_grid.shape.yx
    hills = fractal_field(rng, shape, exponent=3.5)
    valleys = np.tanh(1.5 * np.abs(fractal_field(rng, shape, exponent=3.8)))
    side_valleys = np.tanh(1.5 * np.abs(fractal_field(rng, shape, exponent=3.5)))
    tilt = np.linspace(-1.0, 1.0, shape[0])[:, None] + np.linspace(0.7, -0.7, shape[1])[None, :]
    surface = standardise(0.6 * hills + 2.4 * valleys + 0.9 * side_valleys + 0.5 * tilt)
    fine = np.maximum(_MEAN_ELEVATION + _RELIEF * surface, 1.0).astype(np.float32)
    elevation = block_mean(fine, factor)
    return Terrain(fine_grid, fine, elevation, wetness_index(elevation, frame.domain.resolution.x))


def block_mean(field: Array, factor: int) -> Array:
    """Mean of every `factor` x `factor` block."""
    rows, columns = (n // factor for n in field.shape)
    blocks = field.reshape(rows, factor, columns, factor)
    return np.asarray(blocks.mean(axis=(1, 3)), dtype=np.float32)


def wetness_index(elevation: Array, pixel: float) -> Array:
    """Topographic wetness index ``ln(a / tan b)`` [ln m].

    a is the area that drains through a pixel per metre of contour and b its slope (Beven & Kirkby
    1979, doi:10.1080/02626667909491834). Flow spreads over all lower neighbours in proportion to
    slope and contour length (Quinn et al. 1991, doi:10.1002/hyp.3360050106), over a surface
    without sinks; it leaves at the edge of the domain.

    Parameters
    ----------
    elevation
        (y, x) [m].
    pixel
        Pixel size [m].
    """
    shares, gradient, contour = _outflow(fill_sinks(elevation), pixel)
    area = np.full(elevation.shape, pixel * pixel, dtype=np.float64)
    total = area.copy()
    while area.max() > _NEGLIGIBLE:
        area = _move(area, shares)
        total += area
    index = np.log(total / (contour * pixel) / np.maximum(gradient, _MIN_GRADIENT))
    return np.asarray(index, dtype=np.float32)


def fill_sinks(elevation: Array) -> NDArray[np.float64]:
    """Surface on which water from every pixel finds a way down to the edge.

    The priority flood of Barnes et al. (2014, doi:10.1016/j.cageo.2013.04.024) with a gradient of
    a tenth of a millimetre per pixel across what is filled.
    """
    rows, columns = elevation.shape
    filled = elevation.astype(np.float64)
    edge = np.ones(elevation.shape, dtype=bool)
    edge[1:-1, 1:-1] = False
    done = edge.copy()
    heap = [(filled[y, x], y, x) for y, x in np.argwhere(edge).tolist()]
    heapq.heapify(heap)
    while heap:
        level, y, x = heapq.heappop(heap)
        for dy, dx, *_ in _NEIGHBOURS:
            i, j = y + dy, x + dx
            if 0 <= i < rows and 0 <= j < columns and not done[i, j]:
                done[i, j] = True
                filled[i, j] = max(filled[i, j], level + _FILL_STEP)
                heapq.heappush(heap, (filled[i, j], i, j))
    return filled


def _outflow(
    elevation: NDArray[np.float64], pixel: float
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64], NDArray[np.float64]]:
    """Share of the flow to each neighbour, mean downhill gradient, contour length [pixels]."""
    padded = np.pad(elevation, 1, constant_values=np.inf)
    weights, contour = [], np.zeros(elevation.shape)
    for dy, dx, distance, length in _NEIGHBOURS:
        drop = elevation - _shifted(padded, dy, dx)
        weights.append(np.maximum(drop, 0.0) / (distance * pixel) * length)
        contour += np.where(drop > 0, length, 0.0)
    flow = np.sum(weights, axis=0)
    shares = [np.divide(w, flow, out=np.zeros_like(w), where=flow > 0) for w in weights]
    sink = contour == 0
    contour[sink] = 1.0
    return shares, np.where(sink, _MIN_GRADIENT, flow / contour), contour


def _move(area: NDArray[np.float64], shares: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Area that arrives in each pixel when all of it moves on by one pixel."""
    arriving = np.zeros((area.shape[0] + 2, area.shape[1] + 2))
    rows, columns = area.shape
    for (dy, dx, *_), share in zip(_NEIGHBOURS, shares, strict=True):
        arriving[1 + dy : 1 + dy + rows, 1 + dx : 1 + dx + columns] += area * share
    return arriving[1:-1, 1:-1]


def _shifted(padded: NDArray[np.float64], dy: int, dx: int) -> NDArray[np.float64]:
    rows, columns = padded.shape[0] - 2, padded.shape[1] - 2
    return padded[1 + dy : 1 + dy + rows, 1 + dx : 1 + dx + columns]
