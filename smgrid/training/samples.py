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

from smgrid.errors import ConfigError, NoDataError
from smgrid.features.assemble import Block, BlockFeatures, SeriesBlock, block_features
from smgrid.features.inputs import AsOf, Cube, ModelInputs, model_inputs
from smgrid.features.layout import FeatureLayout
from smgrid.grid import transform_points
from smgrid.training.shuffle import shuffled
from smgrid.training.table import Samples, join_samples, make_samples
from smgrid.training.targets import LABEL_RANGE, align_labels, find_wanted, row_facts

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


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
        Cube as made by `load_cube` or `open_cube`. A chunk of scenes that holds several times is
        read once for each of them.
    labels
        Soil moisture (time, y, x) in m3 m-3 on the base grid at the acquisition times, NaN where
        unknown, or a Dataset of ``label`` with ``lag``, ``station`` and ``weight`` [1], each along
        any of these dims; see `station_labels` and `collocate_labels`. ``None`` for samples without
        labels.
    layout
        The columns to make.
    batch_size
        Samples per batch; the last one may be smaller.
    seed
        Order of the blocks, draw of the pixels and shuffle.
    buffer
        Samples to draw from. Up to twice as many are in memory, at about 100 bytes each and 550 for
        every distinct one-year series among them. Chunks of a cube are held whole: where they have
        more labels than half of the buffer, up to five of them, so that batches still mix dates.
        With a label in every pixel that is 170 MB for chunks of 512 x 512 pixels and 230 MB more
        where each series serves only 2 x 2 of them. Smaller chunks or a `share` need less.
    share
        Share of the pixels of every block that is drawn, anew in every epoch.
    workers
        Processes that read blocks ahead, two each; 0 reads in this one. The stream is the same for
        any number. They start anew in every epoch, so they pay only where one takes minutes.
        Scripts that use them need the guard ``if __name__ == "__main__":``.
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
        The labels have other times or pixels than the cube, other units or variables, or a number
        makes no sense.
    SchemaError
        When a block is read, if a label is above 1 m3 m-3, a weight negative or not finite, or a
        station without a name.
    """
    sizes = {"batch_size": batch_size, "buffer": buffer}
    if min(sizes.values()) < 1 or not 0 < share <= 1 or workers < 0:
        raise ConfigError(
            f"expected at least 1 for batch_size and buffer, a share in 0-1 and no negative number "
            f"of workers, got {sizes}, share {share} and {workers} workers"
        )
    inputs = model_inputs(cube, layout, as_of=as_of)
    target = None if labels is None else align_labels(labels, inputs)
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
            # Nothing is drawn from it, but without one the global generator of torch moves on.
            generator=torch.Generator(),
        )
        filled = (table for table in tables if len(table))
        return shuffled(filled, batch_size=self.batch_size, buffer=self.buffer, rng=rng)


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
            f"no sample: no pixel has a label ({LABEL_RANGE[0]:g} < sm <= {LABEL_RANGE[1]:g} m3 "
            "m-3), all inputs and a complete window together. Check that the labels lie in the "
            "region, on acquisition dates and in that range"
        )
    return join_samples([part.compact() for part in parts])


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
        variables: dict[Any, xr.DataArray] = {**inputs.pixels}
        if labels is not None:
            variables |= dict(labels.data_vars)
        xr.align(*variables.values(), join="exact")  # a Dataset would be of all coordinates
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
            target = self._target(block)
            wanted = self._wanted(target, (y.stop - y.start, x.stop - x.start), number)
            if not wanted.any():
                return _no_samples(self.inputs.layout)
            features = _read_features(block, wanted, self.inputs, y, x)
        where = np.flatnonzero(features.valid)
        longitude, latitude = _pixel_positions(self.inputs.grid[y, x])
        return make_samples(
            torch.from_numpy(features.snapshot),
            torch.from_numpy(features.series),
            torch.from_numpy(features.series_index),
            time=block["time"].values[0],
            longitude=longitude[where],
            latitude=latitude[where],
            **self._label_facts(target, where),
        )

    def _target(self, block: xr.Dataset) -> xr.Dataset | None:
        """Read the labels of a block, all at once because they may come from the same files."""
        return None if self.labels is None else block[list(self.labels.data_vars)].compute()

    def _wanted(self, target: xr.Dataset | None, shape: tuple[int, int], number: int) -> BoolArray:
        """Return which pixels of a block are wanted."""
        wanted = np.ones(shape, np.bool_)
        if target is not None:
            wanted = find_wanted(target["label"].values[0])
        if self.share < 1:
            rng = np.random.default_rng([self.seed, self.epoch, number])
            wanted &= rng.random(shape, np.float32) < self.share
        return wanted

    def _label_facts(self, target: xr.Dataset | None, rows: IntArray) -> dict[str, Any]:
        if self.labels is None or target is None:
            return {}
        return row_facts(target, rows, self.labels)


def _scheduler() -> Any:
    """Read in the worker's own thread; several would only get into each other's way."""
    return dask.config.set(scheduler="synchronous") if get_worker_info() else dask.config.set({})


def _slice(positions: npt.NDArray[np.float64]) -> slice:
    """Return the pixels along one axis of a padded tile that are in the cube."""
    start = int(positions[0])
    return slice(start, start + int(np.isfinite(positions).sum()))


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
