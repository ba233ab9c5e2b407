"""One block of a cube becomes the columns of a layout: snapshot values per pixel, series per cell.

Training and prediction go through this one module, so a network is always fed what it was trained
with. Everything here is NumPy on one block; laziness belongs to the callers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pandas as pd
from odc.geo.geobox import GeoBox

from smgrid.features.layout import FeatureLayout, scale_columns, scale_series
from smgrid.grid import EaseConvention, ease_features_on
from smgrid.windows import BLOCK_DAYS, day_of_year

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

SCENE_FEATURES = ("vv", "vh", "angle")
SERIES_FEATURES = ("ndvi", "t2m", "tp")
_DERIVED = ("doy_sin", "doy_cos", "ease_row", "ease_col_sin", "ease_col_cos")


@dataclass(frozen=True)
class SeriesBlock:
    """The window of one series over a block, on its coarser grid.

    Attributes
    ----------
    values
        (46, cell rows, cell columns) composites, or (368, ...) days; canonical units.
    row, column
        For every pixel row and column of the block the row and column of ``values`` it lies in.
    """

    values: FloatArray
    row: IntArray
    column: IntArray


@dataclass(frozen=True)
class Block:
    """All inputs of one block of pixels on one date, in canonical units.

    Attributes
    ----------
    time
        Start of the acquisition, UTC.
    grid
        GeoBox of the block.
    values
        (y, x) arrays of the scene and static variables by name.
    series
        Window of each series by name.
    """

    time: pd.Timestamp
    grid: GeoBox
    values: Mapping[str, FloatArray]
    series: Mapping[str, SeriesBlock]


@dataclass(frozen=True)
class BlockSeries:
    """The distinct series under a block, which all dates of one window share.

    Attributes
    ----------
    cell
        (n,) for every pixel of the block, in C order, the row of ``values`` that it uses.
    values
        (m, 3, 46) scaled series; NaN where an input is missing.
    complete
        (m,) series without a gap.
    clipped
        (m,) series of which some input lay outside the layout's range.
    """

    cell: IntArray
    values: FloatArray
    complete: BoolArray
    clipped: BoolArray


@dataclass(frozen=True)
class BlockSnapshot:
    """Scaled snapshot columns of the pixels of a block that have all inputs.

    Attributes
    ----------
    valid
        (y, x) pixels with every input present, series included; the rows below are these in C
        order.
    columns
        (n, snapshot columns), scaled.
    cell
        (n,) row of the block's series that each pixel uses.
    clipped
        (n,) pixels of which some input lay outside the layout's range.
    """

    valid: BoolArray
    columns: FloatArray
    cell: IntArray
    clipped: BoolArray


@dataclass(frozen=True)
class BlockFeatures:
    """Scaled inputs of the pixels of a block that have all of them.

    Attributes
    ----------
    valid
        (y, x) pixels with every input present; the rows below are these in C order.
    snapshot
        (n, 15) scaled snapshot columns.
    series
        (m, 3, 46) scaled distinct series of the block.
    series_index
        (n,) row of ``series`` that each pixel uses.
    clipped
        (n,) pixels of which some input lay outside the layout's range.
    """

    valid: BoolArray
    snapshot: FloatArray
    series: FloatArray
    series_index: IntArray
    clipped: BoolArray

    def rows(self) -> FloatArray:
        """(n, 153) vectors in the layout's column order."""
        runs = self.series.reshape(len(self.series), -1)[self.series_index]
        return np.concatenate([self.snapshot, runs], axis=1)


def required_variables(layout: FeatureLayout) -> tuple[str, ...]:
    """Cube variables that a layout is made from."""
    snapshot = [c.feature for c in layout.snapshot if c.feature not in _DERIVED]
    return tuple(dict.fromkeys([*snapshot, *(c.feature for c in layout.series)]))


def block_features(block: Block, layout: FeatureLayout) -> BlockFeatures:
    """Make a layout's scaled inputs from one block, with the series that its pixels use."""
    series = block_series(block.series, layout)
    snapshot = block_snapshot(block, series, layout)
    used, index = _used(snapshot.cell, len(series.values))
    return BlockFeatures(
        valid=snapshot.valid,
        snapshot=snapshot.columns,
        series=series.values[used],
        series_index=index,
        clipped=snapshot.clipped,
    )


def block_series(series: Mapping[str, SeriesBlock], layout: FeatureLayout) -> BlockSeries:
    """Make the scaled series of a layout from the windows under a block."""
    cell, distinct = _distinct_cells(series)
    windows = _series_values(series, layout, distinct)
    values, clipped = scale_series(windows, layout)
    return BlockSeries(
        cell=cell,
        values=values,
        complete=np.asarray(np.isfinite(windows).all(axis=(1, 2))),
        clipped=np.asarray(clipped.any(axis=(1, 2))),
    )


def block_snapshot(block: Block, series: BlockSeries, layout: FeatureLayout) -> BlockSnapshot:
    """Make the scaled snapshot columns of a block.

    A pixel is valid only if every snapshot value is finite and its three series have no gap: the
    mean of a run tolerates gaps, the convolution over it does not.
    """
    columns, cell = _snapshot_values(block, layout), series.cell
    valid: BoolArray = np.isfinite(columns).all(axis=1) & series.complete[cell]
    if not valid.all():
        columns, cell = columns[valid], cell[valid]
    scaled, clipped = scale_columns(columns, layout)
    return BlockSnapshot(
        valid=valid.reshape(block.grid.shape),
        columns=scaled,
        cell=cell,
        clipped=clipped.any(axis=1) | series.clipped[cell],
    )


def _snapshot_values(block: Block, layout: FeatureLayout) -> FloatArray:
    values = {**block.values, **_date_features(block.time), **_location_features(block, layout)}
    if layout.aspect == "direction":
        values |= _unit_aspect(values["aspect_sin"], values["aspect_cos"])
    columns = np.empty((int(np.prod(block.grid.shape)), len(layout.snapshot)), np.float32)
    for i, column in enumerate(layout.snapshot):
        columns[:, i] = np.broadcast_to(values[column.feature], block.grid.shape).ravel()
    return columns


def _date_features(time: pd.Timestamp) -> dict[str, FloatArray]:
    # The published features divide by 365 in leap years too (densesm, P1).
    turn = 2 * np.pi * float(day_of_year(pd.DatetimeIndex([time]))[0]) / 365
    return {
        "doy_sin": np.array([[np.sin(turn)]], np.float32),
        "doy_cos": np.array([[np.cos(turn)]], np.float32),
    }


def _location_features(block: Block, layout: FeatureLayout) -> dict[str, FloatArray]:
    row, sine, cosine = _cached_ease_features(block.grid, layout.ease_km, layout.ease)
    return {"ease_row": row, "ease_col_sin": sine, "ease_col_cos": cosine}


@lru_cache(maxsize=32)
def _cached_ease_features(
    grid: GeoBox, km: float, convention: EaseConvention
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Location features of a tile: every date asks for the same ones."""
    return ease_features_on(grid, km=km, convention=convention)


def _unit_aspect(sine: FloatArray, cosine: FloatArray) -> dict[str, FloatArray]:
    """Direction of the mean aspect; flat ground faces north, as Earth Engine's aspect of 0 does."""
    length = np.hypot(sine, cosine)
    flat = length == 0
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "aspect_sin": np.where(flat, np.float32(0), sine / length),
            "aspect_cos": np.where(flat, np.float32(1), cosine / length),
        }


def _distinct_cells(
    series: Mapping[str, SeriesBlock],
) -> tuple[IntArray, dict[str, tuple[IntArray, IntArray]]]:
    """Count the distinct combinations of series cells under a block.

    Returns for every pixel (flattened) the number of its combination, and for every series the
    cell row and column of each combination. Rows and columns separate because all grids are
    nested in one lattice.
    """
    row_key, rows = _distinct([series[name].row for name in SERIES_FEATURES])
    column_key, columns = _distinct([series[name].column for name in SERIES_FEATURES])
    count = columns.shape[1]
    cell = (row_key[:, None] * count + column_key[None, :]).ravel()
    cells = {
        name: (np.repeat(rows[i], count), np.tile(columns[i], rows.shape[1]))
        for i, name in enumerate(SERIES_FEATURES)
    }
    return cell, cells


def _used(cell: IntArray, count: int) -> tuple[BoolArray, IntArray]:
    """Return which of the cells are used, and the position among those of each pixel's cell."""
    used = np.zeros(count, np.bool_)
    used[cell] = True
    position = np.cumsum(used, dtype=np.int64) - 1
    return used, position[cell]


def _distinct(indices: list[IntArray]) -> tuple[IntArray, IntArray]:
    unique, inverse = np.unique(np.stack(indices), axis=1, return_inverse=True)
    return inverse.ravel(), unique


def _series_values(
    series: Mapping[str, SeriesBlock],
    layout: FeatureLayout,
    cells: Mapping[str, tuple[IntArray, IntArray]],
) -> FloatArray:
    """(m, 3, 46) unscaled windows of the distinct cells."""
    runs = []
    for column in layout.series:
        values = _block_steps(series[column.feature].values, column.block, layout.steps)
        row, col = cells[column.feature]
        runs.append(values[:, row, col].T)
    return np.ascontiguousarray(np.stack(runs, axis=1), dtype=np.float32)


def _block_steps(values: FloatArray, block: str, steps: int) -> FloatArray:
    """Days of each weather block become one value; composites are one per step already."""
    if len(values) == steps:
        return values
    days = values.reshape(steps, BLOCK_DAYS, *values.shape[1:])
    if block == "first":
        return days[:, 0]
    # Sums of 8 daily amounts in float64: single precision would cost the last digits of a metre.
    total: npt.NDArray[np.float64] = days.sum(axis=1, dtype=np.float64)
    return np.float32(1 / BLOCK_DAYS if block == "mean" else 1) * total.astype(np.float32)
