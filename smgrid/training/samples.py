"""Pixel samples from a cube: blocks come through xbatcher, pixels are drawn and shuffled inside.

A patch per pixel would be hopeless (pitfalls of xbatcher), so the unit is the storage chunk: one
acquisition of one tile. Blocks without a label are never read beyond the label itself. Blocks may
be read by worker processes; they are shuffled where they arrive, so that the stream does not
depend on how many there are.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import dask
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import xarray as xr
import xbatcher
from odc.geo.geobox import GeoBox
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from smgrid.errors import ConfigError, NoDataError, SchemaError
from smgrid.features.assemble import Block, BlockFeatures, SeriesBlock, block_features
from smgrid.features.inputs import AsOf, Cube, ModelInputs, model_inputs
from smgrid.features.layout import FeatureLayout
from smgrid.grid import transform_points
from smgrid.training.table import Samples, join_samples, make_samples

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

# Labels outside are left out, as the authors of DenseSM do for training (0 < sm <= 0.7 m3 m-3).
LABEL_RANGE = (0.0, 0.7)


def stream_samples(
    cube: Cube,
    labels: xr.DataArray | xr.Dataset | None,
    *,
    layout: FeatureLayout,
    batch_size: int = 4096,
    seed: int = 0,
    buffer: int = 65_536,
    share: float = 1.0,
    workers: int = 0,
    as_of: AsOf | None = None,
) -> "SampleStream":
    """Stream shuffled batches of pixels out of a cube.

    Parameters
    ----------
    cube
        Cube as made by `load_cube` or `open_cube`.
    labels
        Soil moisture (time, y, x) in m3 m-3 on the base grid at the acquisition times, NaN where
        unknown, or a Dataset of it with lag and stations; see `station_labels` and
        `collocate_labels`. ``None`` for samples without labels.
    layout
        The columns to make.
    batch_size
        Samples per batch; the last one may be smaller.
    seed
        Order of the blocks, draw of the pixels and shuffle.
    buffer
        Samples held in memory for shuffling: about 200 bytes each, and 550 for every distinct
        one-year series among them.
    share
        Share of the pixels of every block that is drawn, anew in every epoch.
    workers
        Processes that read blocks ahead; 0 reads in this one. The stream is the same for any
        number. Scripts that use them need the guard ``if __name__ == "__main__":``.
    as_of
        See `smgrid.windows.one_year_windows`.

    Returns
    -------
    SampleStream
        Iterate over it for one epoch of `Samples`: only pixels with a label in 0-0.7 m3 m-3 (or
        all of them without labels), every input and a complete window; each exactly once.

    Raises
    ------
    ConfigError
        The labels lie on other pixels than the cube or state other units, or a number makes no
        sense.
    SchemaError
        When a block is read, if a label is above 1 m3 m-3.
    """
    sizes = {"batch_size": batch_size, "buffer": buffer}
    if min(sizes.values()) < 1 or not 0 < share <= 1 or workers < 0:
        raise ConfigError(
            f"expected at least 1 for batch_size and buffer, a share in 0-1 and no negative number "
            f"of workers, got {sizes}, share {share} and {workers} workers"
        )
    inputs = model_inputs(cube, layout, as_of=as_of)
    target = None if labels is None else _label_dataset(labels, inputs)
    blocks = _Blocks.of(inputs, target, share=share, seed=seed)
    return SampleStream(blocks, batch_size, buffer, seed, workers)


@dataclass(frozen=True, eq=False)
class SampleStream(IterableDataset[Samples]):
    """Batches of samples of a cube, one epoch per iteration; made by `stream_samples`.

    It may also be given to a ``torch.utils.data.DataLoader`` with ``batch_size=None``. Its workers
    then share the blocks among them: every sample comes once, in an order that depends on their
    number, which the argument ``workers`` of `stream_samples` avoids.

    Attributes
    ----------
    number
        Of the epoch; another one has the same samples in another order.
    """

    blocks: "_Blocks"
    batch_size: int
    buffer: int
    seed: int
    workers: int
    number: int = 0

    def epoch(self, number: int) -> "SampleStream":
        """Return the same stream in the order of another epoch."""
        return replace(self, number=number, blocks=replace(self.blocks, epoch=number))

    def first(self, count: int) -> Samples:
        """Read about so many samples into a table.

        Raises
        ------
        NoDataError
            The stream is empty.
        """
        parts: list[Samples] = []
        for batch in self:
            parts.append(batch.compact())
            if sum(map(len, parts)) >= count:
                break
        return collect_samples(parts)

    def __iter__(self) -> Iterator[Samples]:
        """Read the blocks in random order and shuffle their samples through the buffer."""
        rng = np.random.default_rng([self.seed, self.number])
        order = rng.permutation(len(self.blocks)).tolist()
        workers, info = self.workers, get_worker_info()
        if info is not None:
            workers, order = 0, order[info.id :: info.num_workers]
            rng = np.random.default_rng([self.seed, self.number, info.id])
        tables = DataLoader(
            self.blocks,
            batch_size=None,
            sampler=order,
            num_workers=workers,
            # A fork would copy the threads of zarr and Dask in whatever state they are.
            multiprocessing_context="spawn" if workers else None,
        )
        filled = (table for table in tables if len(table))
        return _shuffled(filled, self.batch_size, self.buffer, rng)


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
    return join_samples([part.compact() for part in parts])


def _label_dataset(labels: xr.DataArray | xr.Dataset, inputs: ModelInputs) -> xr.Dataset:
    ds = labels.to_dataset(name="label") if isinstance(labels, xr.DataArray) else labels
    if "label" not in ds:
        raise ConfigError(
            f"labels have the variables {', '.join(map(str, ds.data_vars)) or 'none'}, expected "
            "label (time, y, x); make them with station_labels or collocate_labels"
        )
    label, reference = ds["label"], inputs.pixels["vv"]
    if label.dims != reference.dims or label.shape != reference.shape:
        raise ConfigError(
            f"labels have dims {label.dims} and shape {label.shape}, expected {reference.dims} "
            f"and {reference.shape}: one value per acquisition and base pixel, NaN where unknown"
        )
    if label.attrs.get("units") != "m3 m-3":
        raise ConfigError(
            f"labels have units {label.attrs.get('units')!r}, expected 'm3 m-3': convert them "
            f"(per cent: divide by 100) and set attrs['units']"
        )
    return ds[[name for name in ("label", "lag", "station") if name in ds]]


@dataclass(frozen=True, eq=False)
class _Blocks(Dataset[Samples]):
    """The samples of every storage chunk of a cube, by number."""

    generator: xbatcher.BatchGenerator
    inputs: ModelInputs
    labels: xr.Dataset | None
    share: float
    seed: int
    epoch: int = 0

    @classmethod
    def of(
        cls, inputs: ModelInputs, labels: xr.Dataset | None, *, share: float, seed: int
    ) -> "_Blocks":
        acquisitions = np.flatnonzero(inputs.windows.complete)
        variables: dict[str, xr.DataArray] = {**inputs.pixels}
        if labels is not None:
            variables |= {str(name): da for name, da in labels.data_vars.items()}
        pixels = xr.Dataset(variables).isel(time=acquisitions)
        tile = _tile_shape(inputs.pixels["vv"])
        generator = xbatcher.BatchGenerator(
            _padded(pixels, tile).assign_coords(acquisition=("time", acquisitions)),
            input_dims={"time": 1, "y": tile[0], "x": tile[1]},
            preload_batch=False,
        )
        return cls(generator, inputs, labels, share, seed)

    def __len__(self) -> int:
        return len(self.generator)

    def __getitem__(self, number: int) -> Samples:
        block = self.generator[number]
        rows, columns = block["y_index"].values, block["x_index"].values
        y, x = _slice(rows), _slice(columns)
        block = block.isel(y=slice(y.stop - y.start), x=slice(x.stop - x.start))
        with _scheduler():
            label, wanted = self._labels(block, number)
            if not wanted.any():
                return _no_samples(self.inputs.layout)
            features = _read_features(block, wanted, self.inputs, y, x)
        return _samples(block, features, label, self.inputs.grid[y, x], self.labels)

    def _labels(self, block: xr.Dataset, number: int) -> tuple[FloatArray | None, BoolArray]:
        """Return the labels of a block and which of its pixels are wanted."""
        shape = (block.sizes["y"], block.sizes["x"])
        label, wanted = None, np.ones(shape, np.bool_)
        if self.labels is not None:
            label = block["label"].values[0]
            _refuse_per_cent(label)
            wanted = (label > LABEL_RANGE[0]) & (label <= LABEL_RANGE[1])
        if self.share < 1:
            rng = np.random.default_rng([self.seed, self.epoch, number])
            wanted &= rng.random(shape, np.float32) < self.share
        return label, wanted


def _scheduler() -> Any:
    """Read in the worker's own thread; several would only get into each other's way."""
    return dask.config.set(scheduler="synchronous") if get_worker_info() else dask.config.set({})


def _slice(positions: npt.NDArray[np.float64]) -> slice:
    """Return the pixels along one axis of a padded tile that are in the cube."""
    start = int(positions[0])
    return slice(start, start + int(np.isfinite(positions).sum()))


def _refuse_per_cent(label: FloatArray) -> None:
    if (label > 1).any():
        raise SchemaError(
            f"labels: found {label[label > 1][0]:g}, expected 0 to 1 m3 m-3; if they are per cent "
            "divide them by 100"
        )


def _tile_shape(array: xr.DataArray) -> tuple[int, int]:
    chunks = array.chunks or tuple((n,) for n in array.shape)
    return max(chunks[-2]), max(chunks[-1])


def _padded(ds: xr.Dataset, tile: tuple[int, int]) -> xr.Dataset:
    """Whole tiles, so that xbatcher does not drop the remainders at the edges."""
    pad = {dim: (0, -ds.sizes[dim] % size) for dim, size in zip(("y", "x"), tile, strict=True)}
    positions = {d: (d, np.arange(ds.sizes[d])) for d in ("y", "x")}
    ds = ds.drop_vars(["y", "x"]).assign_coords({f"{d}_index": v for d, v in positions.items()})
    if any(after for _, after in pad.values()):
        fill = {n: np.nan if da.dtype.kind == "f" else -1 for n, da in ds.data_vars.items()}
        ds = ds.pad(pad, constant_values=fill)
    return ds


def _no_samples(layout: FeatureLayout) -> Samples:
    return make_samples(
        torch.empty(0, len(layout.snapshot)),
        torch.empty(0, len(layout.series), layout.steps),
        torch.empty(0, dtype=torch.int64),
    )


def _samples(
    block: xr.Dataset,
    features: BlockFeatures,
    label: FloatArray | None,
    grid: GeoBox,
    labels: xr.Dataset | None,
) -> Samples:
    where = np.flatnonzero(features.valid)
    longitude, latitude = _pixel_positions(grid)
    facts: dict[str, Any] = {}
    if labels is not None and "lag" in labels:
        lag = block["lag"].values[0]
        facts["lag"] = lag.ravel()[where] if lag.ndim else lag
    if labels is not None and "station" in labels:
        code = block["station"].values.ravel()[where].astype(np.int64)
        for name in ("station", "network"):
            # The last name, "", is that of the code -1.
            facts[name] = np.array([*labels["station"].attrs[f"{name}s"], ""])[code]
    return make_samples(
        torch.from_numpy(features.snapshot),
        torch.from_numpy(features.series),
        torch.from_numpy(features.series_index),
        label=None if label is None else torch.from_numpy(label.ravel()[where]),
        time=block["time"].values[0],
        longitude=longitude[where],
        latitude=latitude[where],
        **facts,
    )


@lru_cache(maxsize=8)
def _pixel_positions(grid: GeoBox) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Longitude and latitude of the pixels of a tile: every date asks for the same ones."""
    x, y = np.meshgrid(grid.coords["x"].values, grid.coords["y"].values)
    return transform_points(x.ravel(), y.ravel(), grid.crs, "EPSG:4326")


def _read_features(
    block: xr.Dataset, wanted: BoolArray, inputs: ModelInputs, y: slice, x: slice
) -> BlockFeatures:
    acquisition = int(block["acquisition"].values[0])
    cells = {name: inputs.cells(name, y, x) for name in inputs.series}
    windows = {
        name: inputs.series[name].isel(date=inputs.dates(name, acquisition), y=c.y, x=c.x).data
        for name, c in cells.items()
    }
    arrays, windows = dask.compute({n: block[n].data for n in inputs.pixels}, windows)
    values: Mapping[str, FloatArray] = {n: a.reshape(a.shape[-2:]) for n, a in arrays.items()}
    # Pixels that are not wanted look missing, so that no features are made for them.
    hidden = np.where(wanted, values["vv"], np.float32(np.nan))
    return block_features(
        Block(
            time=pd.Timestamp(block["time"].values[0]),
            grid=inputs.grid[y, x],
            values={**values, "vv": hidden},
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
        joined, order = join_samples(held), rng.permutation(count)
        yield from _batches(joined, order[:out], batch_size)
        held, count = [joined.take(order[out:]).compact()], count - out
    if count:
        yield from _batches(join_samples(held), rng.permutation(count), batch_size)


def _batches(samples: Samples, order: npt.NDArray[np.int64], size: int) -> Iterator[Samples]:
    for start in range(0, len(order), size):
        yield samples.take(order[start : start + size])
