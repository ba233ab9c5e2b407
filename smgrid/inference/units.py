"""One unit of a map: the pixels of a tile on one acquisition, held in memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from smgrid.features.assemble import (
    Block,
    BlockSeries,
    BlockSnapshot,
    FloatArray,
    block_series,
    block_snapshot,
)
from smgrid.features.layout import FeatureLayout
from smgrid.inference.engine import Engine, SeriesFeatures
from smgrid.inference.quality import (
    FLAGS,
    VALID_RANGE,
    DoubleArray,
    FlagArray,
    ground_flags,
    latitude_and_north,
    season_flags,
)
from smgrid.inference.weights import EngineFile, receive
from smgrid.models.applicability import Applicability
from smgrid.models.calibration import Calibration

Outputs = dict[str, npt.NDArray[Any]]

# What the packing of the bounds and of the index can hold; far beyond anything that makes sense.
_WIDEST, _FARTHEST = 3.0, 5.08


@dataclass(frozen=True, eq=False)
class Recipe:
    """What makes a map of features, the same for all units.

    Attributes
    ----------
    engine, layout
        The networks, and what they read.
    quantiles
        Quantiles of the members, 0 to 1.
    interval, calibration
        Coverage of the interval, and how wide it is; ``None`` for none.
    applicability
        What the networks have seen; ``None`` where nobody knows.
    flags
        Bits that hold for every pixel: they follow from the origin of the inputs.
    """

    engine: Engine | EngineFile
    layout: FeatureLayout
    quantiles: tuple[float, ...] = ()
    interval: float | None = None
    calibration: Calibration | None = None
    applicability: Applicability | None = None
    flags: int = 0

    @property
    def outputs(self) -> dict[str, npt.DTypeLike]:
        """Names of the variables of a map in order, with their types."""
        names = ["soil_moisture", "soil_moisture_std"]
        names += [quantile_name(q) for q in self.quantiles]
        if self.interval is not None:
            names += ["soil_moisture_lower", "soil_moisture_upper"]
        if self.applicability is not None:
            names.append("dissimilarity")
        return {**dict.fromkeys(names, np.float32), "flags": np.uint16}


def quantile_name(quantile: float) -> str:
    """Name of the variable of a quantile, such as ``soil_moisture_q05``."""
    return f"soil_moisture_q{round(100 * quantile):02d}"


@dataclass(frozen=True, eq=False)
class WindowFeatures:
    """What all acquisitions with one window share over a tile."""

    series: BlockSeries
    features: SeriesFeatures


def read_window(block: Mapping[str, Any], recipe: Recipe) -> WindowFeatures:
    """Run the series branches over all distinct series under a tile."""
    series = block_series(block, recipe.layout)
    return WindowFeatures(series, receive(recipe.engine).read_series(series.values))


def map_block(
    block: Block,
    recipe: Recipe,
    *,
    orbit: str = "",
    day: int,
    window: WindowFeatures | None = None,
) -> Outputs:
    """Map one block.

    Parameters
    ----------
    block
        The inputs.
    recipe
        What to make of them.
    orbit
        ``ascending`` or ``descending``, for layover.
    day
        Position of the acquisition's day in the windows of the weather.
    window
        What was read of the series already, if another acquisition shares them.

    Returns
    -------
    dict
        (y, x) arrays by the names of ``recipe.outputs``; see `smgrid.inference.predict.predict`.
    """
    series = block_series(block.series, recipe.layout) if window is None else window.series
    snapshot = block_snapshot(block, series, recipe.layout)
    arrays: Outputs = {
        name: np.full(block.grid.shape, np.nan, np.float32)
        for name, dtype in recipe.outputs.items()
        if dtype == np.float32
    }
    flags = ground_flags(block.values, orbit=orbit, grid=block.grid)
    flags |= season_flags(block.series, day=day) | np.uint16(recipe.flags)
    flags[~snapshot.valid] |= np.uint16(FLAGS["input_missing"])
    if len(snapshot.cell):
        read = (
            _read_used(receive(recipe.engine), snapshot, series)
            if window is None
            else window.features
        )
        values, bits = _estimate(recipe, snapshot, series, read, block=block)
        for name, value in values.items():
            arrays[name][snapshot.valid] = value
        flags[snapshot.valid] |= bits
    return {**arrays, "flags": flags}


def _read_used(engine: Engine, snapshot: BlockSnapshot, series: BlockSeries) -> SeriesFeatures:
    used = np.zeros(len(series.values), np.bool_)
    used[snapshot.cell] = True
    return engine.read_series(series.values, wanted=used)


def _estimate(
    recipe: Recipe,
    snapshot: BlockSnapshot,
    series: BlockSeries,
    read: SeriesFeatures,
    *,
    block: Block,
) -> tuple[dict[str, FloatArray], FlagArray]:
    """Values and flags of the valid pixels."""
    members = receive(recipe.engine).predict_rows(snapshot.columns, read, snapshot.cell)
    mean, spread = members.mean(axis=0), members.std(axis=0)
    values = {"soil_moisture": mean, "soil_moisture_std": spread}
    if recipe.quantiles:
        found = np.quantile(members, recipe.quantiles, axis=0, overwrite_input=True)
        names = (quantile_name(q) for q in recipe.quantiles)
        values |= dict(zip(names, found.astype(np.float32), strict=True))
    if recipe.interval is not None and recipe.calibration is not None:
        lower, upper = recipe.calibration.bounds(
            mean,
            spread,
            recipe.interval,
            block.time.day_of_year,
            latitude=_latitudes(block.grid, snapshot.valid),
        )
        values["soil_moisture_lower"] = np.maximum(lower, np.float32(-_WIDEST))
        values["soil_moisture_upper"] = np.minimum(upper, np.float32(_WIDEST))
    flags = _flag(snapshot.clipped, "feature_clipped")
    flags |= _flag((mean < VALID_RANGE[0]) | (mean > VALID_RANGE[1]), "outside_valid_range")
    if recipe.applicability is not None:
        known, inputs = recipe.applicability, (snapshot.columns, series.values, snapshot.cell)
        index = known.dissimilarity(*inputs)
        values["dissimilarity"] = np.minimum(index, np.float32(_FARTHEST))
        beyond = index > known.threshold
        flags |= _flag(beyond, "outside_applicability")
        flags |= _flag(known.outside_range(*inputs), "outside_training_range")
    return values, flags


def _flag(where: npt.NDArray[np.bool_], name: str) -> FlagArray:
    return np.where(where, np.uint16(FLAGS[name]), np.uint16(0))


def _latitudes(grid: GeoBox, valid: npt.NDArray[np.bool_]) -> float | DoubleArray:
    """Latitude of a block, of every valid pixel if the equator crosses it."""
    south, north = _extent(grid)
    if south * north > 0:
        return south
    return latitude_and_north(grid, *np.nonzero(valid))[0]


@lru_cache(maxsize=64)
def _extent(grid: GeoBox) -> tuple[float, float]:
    box = grid.geographic_extent.boundingbox
    return float(box.bottom), float(box.top)
