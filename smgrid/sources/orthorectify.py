"""Backscatter of ground range products on a tile of a grid: geocoded on terrain, calibrated, mean.

A tile is one unit of work. Inside it small blocks are done one after another, so that its memory
depends on neither its size nor that of the images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.grid import Tile, grid_coords, iter_tiles
from smgrid.resample import area_average
from smgrid.sources.annotation import Floats
from smgrid.sources.backscatter import Averaging
from smgrid.sources.bilinear import Sampling
from smgrid.sources.calibration import Window, extend_to_border, mask_border, to_sigma0
from smgrid.sources.geocoding import Geoid, PositionField, position_field, sample_image
from smgrid.sources.safe import Product

# Fine pixels along the edge of a block: its arrays of doubles have 8 MB each.
_BLOCK = 1024


@dataclass(frozen=True, eq=False)
class TileTerrain:
    """A tile of a grid and the heights of its fine pixels."""

    cells: GeoBox
    """The tile."""
    factor: int
    """Fine pixels along the edge of a cell."""
    sampling: Sampling
    """Fine pixels of the tile among those of the elevation model."""
    heights: npt.NDArray[np.float32]
    """The part of the elevation model that `sampling` takes [m]."""
    geoid: Geoid | None
    """What the heights are above; ``None`` for the ellipsoid."""


def orthorectify(
    products: Sequence[Product], terrain: TileTerrain, *, bands: Sequence[str], average: Averaging
) -> npt.NDArray[np.float32]:
    """Return sigma0 [dB] (band, y, x) of one pass on one tile.

    Parameters
    ----------
    products
        Slices of the pass, earliest first.
    terrain
        The tile.
    bands
        Polarisations.
    average
        Domain in which fine pixels are averaged.

    Returns
    -------
    numpy.ndarray
        NaN without image or elevation. Where slices overlap the earlier one holds.

    Raises
    ------
    SourceError
        If an image cannot be read, or the geoid does not cover the tile.

    Notes
    -----
    Every fine pixel is placed in the image by its own height and takes sigma0 bilinearly from the
    four samples around it. A cell is the mean of its fine pixels, of which half have to be valid.
    """
    result = np.full((len(bands), *terrain.cells.shape.yx), np.nan, dtype="float32")
    if np.isnan(terrain.heights).all():
        return result
    fields = [_field(product, terrain) for product in products]
    seen = [
        (product, field)
        for product, field in zip(products, fields, strict=True)
        if np.isfinite(field.position).all(axis=0).any()
    ]
    for block in iter_tiles(terrain.cells, max(1, _BLOCK // terrain.factor)) if seen else ():
        power = _block_power(seen, terrain, block, bands)
        result[:, block.y, block.x] = _average(power, block.geobox, average)
    return result


def _field(product: Product, terrain: TileTerrain) -> PositionField:
    return position_field(
        product.read_annotation(product.copolarised),
        terrain.sampling.grid[terrain.sampling.window],
        heights=(float(np.nanmin(terrain.heights)), float(np.nanmax(terrain.heights))),
        geoid=terrain.geoid,
    )


def _block_power(
    seen: Sequence[tuple[Product, PositionField]],
    terrain: TileTerrain,
    block: Tile,
    bands: Sequence[str],
) -> npt.NDArray[np.float32]:
    """Return sigma0 [power] (band, y, x) of the fine pixels of a block."""
    rows, columns = (
        slice(part.start * terrain.factor, part.stop * terrain.factor)
        for part in (block.y, block.x)
    )
    z = _sample_heights(terrain.sampling, rows, columns, terrain.heights)
    power = np.full((len(bands), *z.shape), np.nan, dtype="float32")
    for product, field in seen:
        line, pixel = field.interpolate(rows, columns, z)
        power = np.where(np.isnan(power), _sample_product(product, bands, line, pixel), power)
    return power


def _sample_heights(
    tile: Sampling, rows: slice, columns: slice, heights: npt.NDArray[np.float32]
) -> Floats:
    """Return the heights of some fine pixels of a tile [m]."""
    window = tuple(
        slice(whole.start + part.start, whole.start + part.stop)
        for whole, part in zip(tile.window, (rows, columns), strict=True)
    )
    part = Sampling(tile.source, tile.grid, (window[0], window[1]))
    # A part may reach a row further than its tile: both are bounded by sampled edges.
    padding, inside = [], []
    for whole, own in zip(tile.taken, part.taken, strict=True):
        padding.append((max(whole.start - own.start, 0), max(own.stop - whole.stop, 0)))
        inside.append(slice(max(own.start - whole.start, 0), own.stop - whole.start))
    return part.interpolate(np.pad(heights[tuple(inside)], padding, mode="edge"))


def _sample_product(
    product: Product, bands: Sequence[str], line: Floats, pixel: Floats
) -> npt.NDArray[np.float32]:
    """Return sigma0 [power] (band, y, x) of one slice at positions in its images."""
    result = np.full((len(bands), *line.shape), np.nan, dtype="float32")
    shape = product.read_annotation(product.copolarised).shape
    # The outermost samples reach half a sample on, where the next slice of the pass begins.
    inside = (np.abs(line - (shape[0] - 1) / 2) <= shape[0] / 2) & (
        np.abs(pixel - (shape[1] - 1) / 2) <= shape[1] / 2
    )
    if not inside.any():
        return result
    line, pixel = line[inside].clip(0, shape[0] - 1), pixel[inside].clip(0, shape[1] - 1)
    window = _cover(line), _cover(pixel)
    for number, band in enumerate(bands):
        if band in product.measurement:
            image = _read_sigma0(product, band, window)
            at = line - window[0].start, pixel - window[1].start
            result[number][inside] = sample_image(image, *at)
    return result


def _cover(position: Floats) -> slice:
    return slice(math.floor(position.min()), math.ceil(position.max()) + 1)


def _read_sigma0(product: Product, band: str, window: Window) -> npt.NDArray[np.float32]:
    noise, calibration = product.read_noise(band), product.read_calibration(band)
    numbers = product.read_image(band, window)
    if not noise.masks_border:
        numbers = np.where(_find_border(product, window), 0, numbers)
    return to_sigma0(numbers, window, calibration=calibration, noise=noise)


def _find_border(product: Product, window: Window) -> npt.NDArray[np.bool_]:
    """Return which samples of a window are border noise, by the co-polarised image."""
    name = product.copolarised
    shape = product.read_annotation(name).shape
    wider = extend_to_border(window, shape)
    numbers = product.read_image(name, wider)
    masked = mask_border(numbers, wider, shape, noise=product.read_noise(name))
    inside = tuple(
        slice(own.start - whole.start, own.stop - whole.start)
        for whole, own in zip(wider, window, strict=True)
    )
    return masked[inside]


def _average(
    power: npt.NDArray[np.float32], cells: GeoBox, average: Averaging
) -> npt.NDArray[np.float32]:
    """Return sigma0 [dB] of cells from the power of their fine pixels."""
    values = power if average == "linear" else _to_db(power)
    coords = grid_coords(cells.zoom_to(power.shape[1:]))
    fine = xr.DataArray(values, dims=("band", "y", "x"), coords=coords)
    averaged: npt.NDArray[np.float32] = area_average(fine, cells).values
    return _to_db(averaged) if average == "linear" else averaged


def _to_db(power: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return decibels; NaN where there was not more signal than noise."""
    positive = np.where(power > 0, power, np.float32(np.nan))
    return np.float32(10) * np.log10(positive)
