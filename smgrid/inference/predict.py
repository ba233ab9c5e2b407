"""Map an ensemble over a cube: lazy soil moisture, the members' spread and quality flags.

One Dask task per acquisition and tile reads its blocks of the scene and static variables and the
window of each series on its own coarse grid, and returns all outputs together, so that writing
them computes nothing twice and memory depends on the tile alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from operator import getitem
from typing import Any, Literal

import dask.array as da
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

from smgrid.features.assemble import (
    SCENE_FEATURES,
    Block,
    FloatArray,
    SeriesBlock,
    block_features,
)
from smgrid.features.inputs import AsOf, CellSlice, Cube, ModelInputs, model_inputs
from smgrid.features.layout import FeatureLayout
from smgrid.inference.engine import Engine, compile_ensemble
from smgrid.models.ensemble import Ensemble
from smgrid.schema import describe

# Bits of `flags`; the authors of DenseSM treat 0-0.6 m3 m-3 as the valid range of its output.
FLAGS: dict[str, int] = {
    "input_missing": 1,
    "feature_clipped": 2,
    "assumed_input": 4,
    "outside_valid_range": 8,
    "approximate_convention": 16,
}
VALID_RANGE = (0.0, 0.6)

FlagArray = npt.NDArray[np.uint16]
Outputs = tuple[FloatArray, FloatArray, FlagArray]

_OUTPUTS: dict[str, npt.DTypeLike] = {
    "soil_moisture": np.float32,
    "soil_moisture_std": np.float32,
    "flags": np.uint16,
}


def predict(
    cube: Cube,
    ensemble: Ensemble,
    *,
    as_of: AsOf | None = None,
    window: Literal["causal", "published"] | None = None,
) -> xr.Dataset:
    """Predict soil moisture for every acquisition with a full year of series behind it.

    Parameters
    ----------
    cube
        Cube as made by `load_cube` or `open_cube`.
    ensemble
        Trained networks with their layout.
    as_of
        Use only composites that had ended by this date, or by each ``"acquisition"``; default:
        composites that had begun (an archive run).
    window
        Replace the layout's window rule. ``"published"`` reads weather up to ten days after the
        acquisition and exists for parity with the published code only.

    Returns
    -------
    xr.Dataset
        Lazy, dims (time, y, x): ``soil_moisture`` and ``soil_moisture_std`` (spread of the
        members) in m3 m-3, and ``flags`` (CF flag_masks). NaN wherever a required input is
        missing. The layout, window rule and digest of the ensemble are attributes.

    Raises
    ------
    LayoutError
        The cube cannot provide what the ensemble was trained with.
    WindowError
        No acquisition has a full year of series behind it.
    """
    layout = ensemble.layout if window is None else ensemble.layout.with_window(window)
    inputs = model_inputs(cube, layout, as_of=as_of)
    acquisitions = np.flatnonzero(inputs.windows.complete)
    arrays = _lazy_outputs(inputs, compile_ensemble(ensemble), acquisitions)
    scenes = inputs.pixels["vv"].isel(time=acquisitions)
    coords = {
        **xr_coords(inputs.grid),
        **{name: c for name, c in scenes.coords.items() if c.dims == ("time",)},
    }
    ds = xr.Dataset(
        {
            name: describe(xr.DataArray(array, dims=("time", "y", "x"), name=name), name)
            for name, array in arrays.items()
        },
        coords=coords,
    )
    ds["flags"].attrs |= {
        "flag_masks": np.array(list(FLAGS.values()), np.uint16),
        "flag_meanings": " ".join(FLAGS),
    }
    ds.attrs = _provenance(ensemble, layout, inputs, as_of)
    return ds


def _provenance(
    ensemble: Ensemble, layout: FeatureLayout, inputs: ModelInputs, as_of: AsOf | None
) -> dict[str, Any]:
    return {
        "title": "Surface soil moisture",
        "smgrid_layout": layout.name,
        "smgrid_layout_digest": layout.digest,
        "smgrid_window": layout.window,
        "smgrid_as_of": "archive" if as_of is None else str(as_of),
        "smgrid_convention": layout.convention,
        "smgrid_ensemble": ensemble.digest,
        "smgrid_members": len(ensemble.members),
        "smgrid_assumed": " ".join(inputs.assumed),
    }


def _common_flags(inputs: ModelInputs) -> int:
    """Combine the flags that hold for every pixel: they follow from the origin of the inputs."""
    approximate = any(inputs.pixels[n].attrs.get("approximate") for n in ("vv", "vh"))
    return (FLAGS["assumed_input"] if inputs.assumed else 0) | (
        FLAGS["approximate_convention"] if approximate else 0
    )


@dataclass(frozen=True)
class _Tile:
    """Where a block lies: its GeoBox and the cells of each series under it."""

    grid: GeoBox
    cells: dict[str, CellSlice]


def _lazy_outputs(
    inputs: ModelInputs, engine: Engine, acquisitions: npt.NDArray[np.int64]
) -> dict[str, da.Array]:
    pixels = {name: _tiled(array) for name, array in _aligned(inputs).items()}
    series = {name: _as_dask(array) for name, array in inputs.series.items()}
    _, y_chunks, x_chunks = pixels["vv"].chunks
    token = tokenize(
        engine.digest,
        inputs.layout.digest,
        _common_flags(inputs),
        acquisitions,
        inputs.windows.composite_start,
        inputs.windows.day_start,
        [a.name for a in (*pixels.values(), *series.values())],
    )
    unit, shared = f"predict-{token}", f"engine-{token}"
    layer: dict[Any, Any] = {
        shared: _Shared(
            engine, inputs.layout, tuple(pixels), tuple(series), flags=_common_flags(inputs)
        )
    }
    for iy, ix, y, x in _tiles(y_chunks, x_chunks):
        tile_key = f"tile-{token}-{iy}-{ix}"
        cells = {name: inputs.cells(name, y, x) for name in series}
        layer[tile_key] = _Tile(inputs.grid[y, x], cells)
        for it, acquisition in enumerate(acquisitions.tolist()):
            blocks = [
                (a.name, acquisition, iy, ix) if a.ndim == 3 else (a.name, iy, ix)
                for a in pixels.values()
            ]
            windows = [
                _window_keys(series[name], inputs.dates(name, acquisition), cells[name])
                for name in series
            ]
            layer[unit, it, iy, ix] = (
                _predict_unit,
                shared,
                tile_key,
                inputs.times[acquisition],
                blocks,
                windows,
            )
    return _collect(unit, layer, [*pixels.values(), *series.values()], len(acquisitions), pixels)


def _collect(
    unit: str,
    layer: dict[Any, Any],
    sources: list[Any],
    steps: int,
    pixels: dict[str, da.Array],
) -> dict[str, da.Array]:
    """One array per output, each picking its part of the units' results."""
    _, y_chunks, x_chunks = pixels["vv"].chunks
    chunks = ((1,) * steps, y_chunks, x_chunks)
    graph = HighLevelGraph.from_collections(unit, layer, dependencies=sources)
    keys = list(product(*(range(len(c)) for c in chunks)))
    arrays = {}
    for position, (name, dtype) in enumerate(_OUTPUTS.items()):
        output = f"{name}-{unit}"
        picks = {(output, *k): (getitem, (unit, *k), position) for k in keys}
        layers: dict[str, Any] = {**graph.layers, output: picks}
        dependencies = {**graph.dependencies, output: {unit}}
        arrays[name] = da.Array(HighLevelGraph(layers, dependencies), output, chunks, dtype=dtype)
    return arrays


def _aligned(inputs: ModelInputs) -> dict[str, da.Array]:
    """Scene and static variables as Dask arrays on the chunks of ``vv`` in y and x."""
    reference = _as_dask(inputs.pixels["vv"])
    _, y_chunks, x_chunks = reference.chunks
    return {
        name: _as_dask(array).rechunk({-2: y_chunks, -1: x_chunks})
        for name, array in inputs.pixels.items()
    }


def _tiled(array: da.Array) -> da.Array:
    """One acquisition per chunk."""
    return array.rechunk({0: 1}) if array.ndim == 3 else array


def _as_dask(array: xr.DataArray) -> da.Array:
    data: da.Array = (array if array.chunks is not None else array.chunk()).data
    return data


def _tiles(
    y_chunks: tuple[int, ...], x_chunks: tuple[int, ...]
) -> Iterator[tuple[int, int, slice, slice]]:
    y_edges, x_edges = np.cumsum([0, *y_chunks]), np.cumsum([0, *x_chunks])
    for iy, ix in product(range(len(y_chunks)), range(len(x_chunks))):
        y = slice(int(y_edges[iy]), int(y_edges[iy + 1]))
        x = slice(int(x_edges[ix]), int(x_edges[ix + 1]))
        yield iy, ix, y, x


def _window_keys(array: da.Array, dates: slice, cells: CellSlice) -> list[Any]:
    """Chunks of a series that hold a window, and the window's place in them when joined."""
    ranges, trims = [], []
    for chunks, wanted in zip(array.chunks, (dates, cells.y, cells.x), strict=True):
        edges = np.cumsum([0, *chunks])
        first = int(np.searchsorted(edges, wanted.start, side="right")) - 1
        last = int(np.searchsorted(edges, wanted.stop, side="left"))
        ranges.append(range(first, last))
        start = int(edges[first])
        trims.append(slice(wanted.start - start, wanted.stop - start))
    keys = [[[(array.name, i, j, k) for k in ranges[2]] for j in ranges[1]] for i in ranges[0]]
    return [keys, trims]


@dataclass(frozen=True)
class _Shared:
    """What every unit needs: one key of the graph, not an argument of each task."""

    engine: Engine
    layout: FeatureLayout
    pixels: tuple[str, ...]
    series: tuple[str, ...]
    flags: int


def _predict_unit(
    shared: _Shared,
    tile: _Tile,
    time: pd.Timestamp,
    arrays: list[FloatArray],
    windows: list[tuple[list[Any], list[slice]]],
) -> Outputs:
    values = {
        name: array[0] if name in SCENE_FEATURES else array
        for name, array in zip(shared.pixels, arrays, strict=True)
    }
    series = {
        name: _series_block(blocks, trims, tile.cells[name])
        for name, (blocks, trims) in zip(shared.series, windows, strict=True)
    }
    block = Block(time=time, grid=tile.grid, values=values, series=series)
    mean, spread, flags = predict_block(block, shared.engine, shared.layout)
    return mean[None], spread[None], (flags | np.uint16(shared.flags))[None]


def _series_block(blocks: list[Any], trims: list[slice], cells: CellSlice) -> SeriesBlock:
    window = np.block(blocks)[tuple(trims)]
    return SeriesBlock(values=window, row=cells.row, column=cells.column)


def predict_block(block: Block, engine: Engine, layout: FeatureLayout) -> Outputs:
    """Predict one block held in memory.

    Returns
    -------
    tuple of arrays
        (y, x) mean and standard deviation over the members (population form) in m3 m-3, and the
        flags that follow from the pixels themselves.
    """
    features = block_features(block, layout)
    shape = block.grid.shape
    mean = np.full(shape, np.nan, np.float32)
    spread = np.full(shape, np.nan, np.float32)
    flags = np.where(features.valid, 0, FLAGS["input_missing"]).astype(np.uint16)
    if not features.valid.any():
        return mean, spread, flags
    members = engine.predict(features.snapshot, features.series, features.series_index)
    average = members.mean(axis=0)
    mean[features.valid], spread[features.valid] = average, members.std(axis=0)
    outside = (average < VALID_RANGE[0]) | (average > VALID_RANGE[1])
    flags[features.valid] |= np.where(features.clipped, FLAGS["feature_clipped"], 0).astype(
        np.uint16
    ) | np.where(outside, FLAGS["outside_valid_range"], 0).astype(np.uint16)
    return mean, spread, flags
