"""Pixel samples from a cube: blocks come through xbatcher, pixels are drawn and shuffled inside.

A patch per pixel would be hopeless (pitfalls of xbatcher), so the unit is the storage chunk: one
acquisition of one tile. Blocks without a label are never read beyond the label itself.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import dask
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
import xbatcher

from smgrid.errors import ConfigError, NoDataError, SchemaError
from smgrid.features.assemble import Block, BlockFeatures, FloatArray, SeriesBlock, block_features
from smgrid.features.inputs import AsOf, Cube, ModelInputs, model_inputs
from smgrid.features.layout import FeatureLayout

BoolArray = npt.NDArray[np.bool_]

# Labels outside are refused, as the authors of DenseSM do for training (0 < sm <= 0.7 m3 m-3).
LABEL_RANGE = (0.0, 0.7)


@dataclass(frozen=True)
class Samples:
    """Rows of a layout's columns with their labels.

    Attributes
    ----------
    features
        (n, 153) scaled columns of the layout, float32.
    label
        (n,) soil moisture in m3 m-3, float32.
    time
        (n,) start of the acquisition, UTC.
    x, y
        (n,) pixel centres in the CRS of the cube.
    """

    features: FloatArray
    label: FloatArray
    time: npt.NDArray[np.datetime64]
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.label)

    def take(self, which: npt.NDArray[np.int64] | BoolArray) -> "Samples":
        """Return the samples at these positions, or where true."""
        return replace(self, **{name: getattr(self, name)[which] for name in _FIELDS})


_FIELDS = ("features", "label", "time", "x", "y")


def stream_samples(
    cube: Cube,
    labels: xr.DataArray,
    *,
    layout: FeatureLayout,
    batch_size: int = 4096,
    seed: int = 0,
    buffer: int = 65_536,
    as_of: AsOf | None = None,
) -> Iterator[Samples]:
    """Stream shuffled batches of labelled pixels out of a cube.

    Parameters
    ----------
    cube
        Cube as made by `load_cube` or `open_cube`.
    labels
        Soil moisture (time, y, x) in m3 m-3 on the base grid at the acquisition times, NaN where
        unknown; see `station_labels`.
    layout
        The columns to make.
    batch_size
        Samples per batch; the last one may be smaller.
    seed
        Order of the blocks and of the shuffle.
    buffer
        Samples held in memory for shuffling: about 700 bytes each.
    as_of
        See `smgrid.windows.one_year_windows`.

    Yields
    ------
    Samples
        Only pixels with a label in 0-0.7 m3 m-3, every input and a complete window.

    Raises
    ------
    ConfigError
        The labels lie on other pixels than the cube or state other units.
    SchemaError
        When a block is read, if a label is above 1 m3 m-3.
    """
    inputs = model_inputs(cube, layout, as_of=as_of)
    _check_labels(labels, inputs)
    rng = np.random.default_rng(seed)
    return _shuffled(_blocks(inputs, labels, rng), batch_size, buffer, rng)


def collect_samples(batches: Iterable[Samples]) -> Samples:
    """Hold all batches of a stream in memory as one table.

    Raises
    ------
    NoDataError
        The stream is empty.
    """
    parts = list(batches)
    if not parts:
        raise NoDataError(
            "no sample: no pixel has a label, all inputs and a complete window together. Check "
            "that the labels lie in the region and on acquisition dates"
        )
    return _join(parts)


def split_by_block(
    samples: Samples, *, size: float, share: float = 0.2, seed: int = 0
) -> tuple[Samples, Samples]:
    """Split in space: whole squares of the map go to one side or the other.

    Parameters
    ----------
    samples
        What to split.
    size
        Edge of a square in units of the CRS. Larger than the correlation length of soil moisture
        that the test should not see across.
    share
        Share of the squares that hold samples which goes to the second part (at least one).
    seed
        Draw of the squares.

    Raises
    ------
    ConfigError
        All samples lie in one square, so that no split is possible.
    """
    squares = np.stack([samples.x // size, samples.y // size], axis=1).astype(np.int64)
    unique, square = np.unique(squares, axis=0, return_inverse=True)
    if len(unique) < 2:
        raise ConfigError(f"all samples lie in one square of {size:g}: choose a smaller size")
    count = min(max(1, round(share * len(unique))), len(unique) - 1)
    held = np.random.default_rng(seed).choice(len(unique), count, replace=False)
    second = np.isin(square.ravel(), held)
    return samples.take(~second), samples.take(second)


def _check_labels(labels: xr.DataArray, inputs: ModelInputs) -> None:
    reference = inputs.pixels["vv"]
    if labels.dims != reference.dims or labels.shape != reference.shape:
        raise ConfigError(
            f"labels have dims {labels.dims} and shape {labels.shape}, expected {reference.dims} "
            f"and {reference.shape}: one value per acquisition and base pixel, NaN where unknown"
        )
    if labels.attrs.get("units") != "m3 m-3":
        raise ConfigError(
            f"labels have units {labels.attrs.get('units')!r}, expected 'm3 m-3': convert them "
            f"(per cent: divide by 100) and set attrs['units']"
        )


def _blocks(
    inputs: ModelInputs, labels: xr.DataArray, rng: np.random.Generator
) -> Iterator[Samples]:
    """One table per storage chunk that holds labels, in random order."""
    acquisitions = np.flatnonzero(inputs.windows.complete)
    pixels = xr.Dataset({**inputs.pixels, "label": labels}).isel(time=acquisitions)
    tile = _tile_shape(inputs.pixels["vv"])
    generator = xbatcher.BatchGenerator(
        _padded(pixels, tile).assign_coords(acquisition=("time", acquisitions)),
        input_dims={"time": 1, "y": tile[0], "x": tile[1]},
        preload_batch=False,
    )
    for number in rng.permutation(len(generator)):
        block = generator[int(number)]
        labelled = block["label"].values[0]
        _refuse_per_cent(labelled)
        labelled = np.where(_usable(labelled), labelled, np.nan)
        if np.isfinite(labelled).any():
            yield _block_samples(block, labelled, inputs)


def _refuse_per_cent(label: FloatArray) -> None:
    if (label > 1).any():
        raise SchemaError(
            f"labels: found {label[label > 1][0]:g}, expected 0 to 1 m3 m-3; if they are per cent "
            "divide them by 100"
        )


def _usable(label: FloatArray) -> BoolArray:
    return (label > LABEL_RANGE[0]) & (label <= LABEL_RANGE[1])


def _tile_shape(array: xr.DataArray) -> tuple[int, int]:
    chunks = array.chunks or tuple((n,) for n in array.shape)
    return max(chunks[-2]), max(chunks[-1])


def _padded(ds: xr.Dataset, tile: tuple[int, int]) -> xr.Dataset:
    """Whole tiles, so that xbatcher does not drop the remainders at the edges."""
    pad = {dim: (0, -ds.sizes[dim] % size) for dim, size in zip(("y", "x"), tile, strict=True)}
    positions = {d: (d, np.arange(ds.sizes[d])) for d in ("y", "x")}
    ds = ds.drop_vars(["y", "x"]).assign_coords({f"{d}_index": v for d, v in positions.items()})
    if any(after for _, after in pad.values()):
        ds = ds.pad(pad, constant_values=dict.fromkeys(ds.data_vars, np.nan))
    return ds


def _block_samples(block: xr.Dataset, label: FloatArray, inputs: ModelInputs) -> Samples:
    rows, columns = block["y_index"].values, block["x_index"].values
    height, width = int(np.isfinite(rows).sum()), int(np.isfinite(columns).sum())
    y = slice(int(rows[0]), int(rows[0]) + height)
    x = slice(int(columns[0]), int(columns[0]) + width)
    label = label[:height, :width]
    features = _read_features(block, label, inputs, y, x)
    grid = inputs.grid[y, x]
    where = np.flatnonzero(features.valid)
    time = np.full(len(where), block["time"].values[0])
    column, row = np.meshgrid(grid.coords["x"].values, grid.coords["y"].values)
    return Samples(
        features=features.rows(),
        label=label.ravel()[where].astype(np.float32),
        time=time,
        x=column.ravel()[where],
        y=row.ravel()[where],
    )


def _read_features(
    block: xr.Dataset, label: FloatArray, inputs: ModelInputs, y: slice, x: slice
) -> BlockFeatures:
    acquisition = int(block["acquisition"].values[0])
    cells = {name: inputs.cells(name, y, x) for name in inputs.series}
    windows = {
        name: inputs.series[name].isel(date=inputs.dates(name, acquisition), y=c.y, x=c.x).data
        for name, c in cells.items()
    }
    arrays, windows = dask.compute({n: block[n].data for n in inputs.pixels}, windows)
    unlabelled = np.isnan(label)
    height, width = label.shape
    values = {n: a.reshape(a.shape[-2:])[:height, :width] for n, a in arrays.items()}
    # Unlabelled pixels look missing, so that no features are made for them.
    values["vv"] = np.where(unlabelled, np.float32(np.nan), values["vv"])
    return block_features(
        Block(
            time=pd.Timestamp(block["time"].values[0]),
            grid=inputs.grid[y, x],
            values=values,
            series={n: SeriesBlock(windows[n], c.row, c.column) for n, c in cells.items()},
        ),
        inputs.layout,
    )


def _shuffled(
    blocks: Iterator[Samples], batch_size: int, buffer: int, rng: np.random.Generator
) -> Iterator[Samples]:
    """Shuffle across blocks through a bounded buffer, and cut into batches."""
    held: list[Samples] = []
    count = 0
    for block in blocks:
        held.append(block)
        count += len(block)
        if count < max(buffer, batch_size):
            continue
        # Half of the buffer stays behind, so that batches mix blocks that were read far apart.
        out = max(count // 2 // batch_size, 1) * batch_size
        mixed = _permuted(held, rng)
        yield from _batches(mixed.take(np.arange(out)), batch_size)
        held, count = [mixed.take(np.arange(out, count))], count - out
    if count:
        yield from _batches(_permuted(held, rng), batch_size)


def _permuted(parts: list[Samples], rng: np.random.Generator) -> Samples:
    joined = _join(parts)
    return joined.take(rng.permutation(len(joined)))


def _batches(samples: Samples, size: int) -> Iterator[Samples]:
    for start in range(0, len(samples), size):
        yield samples.take(np.arange(start, min(start + size, len(samples))))


def _join(parts: list[Samples]) -> Samples:
    if len(parts) == 1:
        return parts[0]
    return Samples(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in _FIELDS})
