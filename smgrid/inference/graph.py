"""The Dask graph of a map: one task per acquisition and tile, which returns all outputs together.

A unit reads its blocks of the scene and static variables and the window of each series on its own
coarse grid. So writing all outputs computes nothing twice, and memory depends on the tile alone.
Acquisitions that have one window share what the networks make of its series.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from operator import getitem
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from odc.geo.geobox import GeoBox

from smgrid.features.assemble import SCENE_FEATURES, Block, FloatArray, SeriesBlock
from smgrid.features.inputs import CellSlice, ModelInputs
from smgrid.inference.units import Recipe, WindowFeatures, map_block, read_window

_Windows = list[tuple[list[Any], list[slice]]]


@dataclass(frozen=True)
class _Tile:
    """Where a block lies: its GeoBox and the cells of each series under it."""

    grid: GeoBox
    cells: dict[str, CellSlice]


@dataclass(frozen=True, eq=False)
class _Shared:
    """What every unit needs: one key of the graph, not an argument of each task."""

    recipe: Recipe
    pixels: tuple[str, ...]
    series: tuple[str, ...]


@dataclass(frozen=True)
class _Scene:
    """One acquisition: when, in which orbit, and where its day is in the windows of the weather."""

    time: pd.Timestamp
    orbit: str
    day: int


def lazy_outputs(
    inputs: ModelInputs,
    recipe: Recipe,
    acquisitions: npt.NDArray[np.int64],
    *,
    helpful: Mapping[str, xr.DataArray],
) -> dict[str, da.Array]:
    """Return one lazy (time, y, x) array per output of a recipe.

    Parameters
    ----------
    inputs, recipe
        What is mapped, and how.
    acquisitions
        Which ones, all with a complete window.
    helpful
        Further static variables on the base grid, and ``ndvi_filled`` on the grid of the NDVI.
    """
    extra = {name: array for name, array in helpful.items() if array.ndim == 2}
    pixels = {n: _tiled(a) for n, a in _aligned({**inputs.pixels, **extra}).items()}
    others = {name: array for name, array in helpful.items() if array.ndim == 3}
    series = {name: _as_dask(array) for name, array in {**inputs.series, **others}.items()}
    sources = [*pixels.values(), *series.values()]
    names = [f"{name} {array.name}" for name, array in {**pixels, **series}.items()]
    token = _token(inputs, recipe, acquisitions, names)
    unit, shared = f"predict-{token}", f"recipe-{token}"
    layer: dict[Any, Any] = {shared: _Shared(recipe, tuple(pixels), tuple(series))}
    found = [(array.name, array.ndim) for array in pixels.values()]
    scenes = [_scene(inputs, a) for a in acquisitions.tolist()]
    common = _shared_windows(inputs, acquisitions)
    _, y_chunks, x_chunks = pixels["vv"].chunks
    edges = {name: [np.cumsum([0, *c]) for c in array.chunks] for name, array in series.items()}
    dates = {
        name: [
            _part(edges[name][0], inputs.dates(_lattice(name), a)) for a in acquisitions.tolist()
        ]
        for name in series
    }
    for iy, ix, y, x in _tiles(y_chunks, x_chunks):
        tile = f"tile-{token}-{iy}-{ix}"
        cells = {name: inputs.cells(_lattice(name), y, x) for name in series}
        layer[tile] = _Tile(inputs.grid[y, x], cells)
        under = {n: (_part(edges[n][1], c.y), _part(edges[n][2], c.x)) for n, c in cells.items()}
        known: dict[tuple[str, range], list[Any]] = {}  # most windows lie in the same chunks
        for it, acquisition in enumerate(acquisitions.tolist()):
            blocks = [(n, acquisition, iy, ix) if d == 3 else (n, iy, ix) for n, d in found]
            windows = []
            for name, array in series.items():
                parts = (dates[name][it], *under[name])
                keys = known.get((name, parts[0].chunks))
                if keys is None:
                    keys = known[name, parts[0].chunks] = _window_keys(array.name, parts)
                windows.append([keys, [part.place for part in parts]])
            read: Any = None
            if common[it] is not None:
                read = (f"window-{token}", common[it], iy, ix)
                layer.setdefault(read, (_read_window, shared, tile, windows))
            layer[unit, it, iy, ix] = (_map_unit, shared, tile, scenes[it], blocks, windows, read)
    return _collect(unit, layer, sources, recipe, (len(acquisitions), y_chunks, x_chunks))


def _token(
    inputs: ModelInputs, recipe: Recipe, acquisitions: npt.NDArray[np.int64], names: list[str]
) -> str:
    windows = inputs.windows
    made = (recipe.quantiles, recipe.interval, recipe.flags, recipe.engine.device)
    known = (recipe.calibration, recipe.applicability)
    where = (inputs.grid, tuple(inputs.offsets.items()), names)
    when = (acquisitions, inputs.times, _orbits(inputs), windows.composite_start, windows.day_start)
    return tokenize(recipe.engine.digest, recipe.layout.digest, made, known, where, when)


def _orbits(inputs: ModelInputs) -> list[str]:
    """``ascending`` or ``descending`` of every acquisition, empty where nobody knows."""
    coords = inputs.pixels["vv"].coords
    if "orbit_state" not in coords:
        return [""] * len(inputs.times)
    return [str(orbit) for orbit in coords["orbit_state"].values]


def _scene(inputs: ModelInputs, acquisition: int) -> _Scene:
    time = inputs.times[acquisition]
    orbit = _orbits(inputs)[acquisition]
    days = inputs.series["t2m"]["date"].values
    first = pd.Timestamp(days[inputs.windows.day_start[acquisition]])
    return _Scene(time, orbit, (time.normalize() - first).days)


def _shared_windows(
    inputs: ModelInputs, acquisitions: npt.NDArray[np.int64]
) -> list[tuple[int, int] | None]:
    """Window of each acquisition, if another one has the same."""
    starts = zip(inputs.windows.composite_start, inputs.windows.day_start, strict=True)
    every = [(int(composite), int(day)) for composite, day in starts]
    wanted = pd.Series([every[a] for a in acquisitions.tolist()])
    return [w if many else None for w, many in zip(wanted, wanted.duplicated(False), strict=True)]


def _lattice(name: str) -> str:
    return "ndvi" if name == "ndvi_filled" else name


def _collect(
    unit: str,
    layer: dict[Any, Any],
    sources: list[da.Array],
    recipe: Recipe,
    sizes: tuple[int, tuple[int, ...], tuple[int, ...]],
) -> dict[str, da.Array]:
    """One array per output, each picking its part of the units' results."""
    steps, y_chunks, x_chunks = sizes
    chunks = ((1,) * steps, y_chunks, x_chunks)
    dependencies: list[Any] = list(sources)
    graph = HighLevelGraph.from_collections(unit, layer, dependencies=dependencies)
    keys = list(product(*(range(len(c)) for c in chunks)))
    arrays = {}
    for name, dtype in recipe.outputs.items():
        output = f"{name}-{unit}"
        picks = {(output, *k): (getitem, (unit, *k), name) for k in keys}
        layers: dict[str, Any] = {**graph.layers, output: picks}
        found = {**graph.dependencies, output: {unit}}
        arrays[name] = da.Array(HighLevelGraph(layers, found), output, chunks, dtype=dtype)
    return arrays


def _aligned(pixels: Mapping[str, xr.DataArray]) -> dict[str, da.Array]:
    """Scene and static variables as Dask arrays on the chunks of ``vv`` in y and x."""
    _, y_chunks, x_chunks = _as_dask(pixels["vv"]).chunks
    return {
        name: _as_dask(array).rechunk({-2: y_chunks, -1: x_chunks})
        for name, array in pixels.items()
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


@dataclass(frozen=True)
class _Part:
    """Chunks of one dim that hold a range, and the place of the range in them when joined."""

    chunks: range
    place: slice


def _part(edges: npt.NDArray[np.int64], wanted: slice) -> _Part:
    first = int(np.searchsorted(edges, wanted.start, side="right")) - 1
    last = int(np.searchsorted(edges, wanted.stop, side="left"))
    start = int(edges[first])
    return _Part(range(first, last), slice(wanted.start - start, wanted.stop - start))


def _window_keys(name: str, parts: tuple[_Part, _Part, _Part]) -> list[Any]:
    """Keys of the chunks that hold a window, nested as `numpy.block` wants them."""
    dates, rows, columns = (part.chunks for part in parts)
    return [[[(name, i, j, k) for k in columns] for j in rows] for i in dates]


def _read_window(shared: _Shared, tile: _Tile, windows: _Windows) -> WindowFeatures:
    return read_window(_series_blocks(shared, tile, windows), shared.recipe)


def _map_unit(
    shared: _Shared,
    tile: _Tile,
    scene: _Scene,
    arrays: list[FloatArray],
    windows: _Windows,
    read: WindowFeatures | None,
) -> dict[str, npt.NDArray[Any]]:
    values = {
        name: array[0] if name in SCENE_FEATURES else array
        for name, array in zip(shared.pixels, arrays, strict=True)
    }
    series = _series_blocks(shared, tile, windows)
    block = Block(time=scene.time, grid=tile.grid, values=values, series=series)
    found = map_block(block, shared.recipe, orbit=scene.orbit, day=scene.day, window=read)
    return {name: array[None] for name, array in found.items()}


def _series_blocks(shared: _Shared, tile: _Tile, windows: _Windows) -> dict[str, SeriesBlock]:
    return {
        name: _series_block(blocks, trims, tile.cells[name])
        for name, (blocks, trims) in zip(shared.series, windows, strict=True)
    }


def _series_block(blocks: list[Any], trims: list[slice], cells: CellSlice) -> SeriesBlock:
    window = np.block(blocks)[tuple(trims)]
    return SeriesBlock(values=window, row=cells.row, column=cells.column)
