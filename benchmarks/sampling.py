"""What streaming samples costs: xbatcher with a shuffle beside a reader of chunks written by hand.

    python benchmarks/sampling.py [--quick]

Both read the same stored cube with a label in every pixel, make the same inputs, shuffle through a
buffer of the same size and cut the same batches; they take turns on one thread, and the median of
the repeats counts. The memory is the largest resident size in a first pass, above that before it.
CPU seconds, so that other work on the machine matters less. The last line is one JSON object.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import psutil
import torch
import xarray as xr
import zarr

from smgrid.cube.store import open_cube, write_cube
from smgrid.features.inputs import ModelInputs, model_inputs
from smgrid.features.layout import get_layout, scale_columns, scale_series
from smgrid.grid import ease_features_on
from smgrid.training.samples import stream_samples

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.cubes import make_cube

LAYOUT = get_layout("released-9km")
TILE, BATCH, BUFFER = 512, 4096, 65_536
STATIC = ("sand", "clay", "bdod", "elevation", "slope", "aspect_sin", "aspect_cos")


def store_cube(folder: Path, *, edge: int, dates: int) -> xr.DataTree:
    """Write a cube of random inputs; edge in pixels."""
    times = pd.date_range("2021-03-02T05:30", periods=dates, freq="6D")
    cube = make_cube(shape=(edge, edge), times=times, end="2021-06-30", factors=(2, 90))
    write_cube(cube, folder / "cube.zarr", shard=TILE)
    tree = open_cube(folder / "cube.zarr")
    assert isinstance(tree, xr.DataTree)
    return tree


def by_hand(cube: xr.DataTree, store: Path, labels: xr.DataArray) -> Iterator[torch.Tensor]:
    """Read chunk by chunk with zarr, in random order, and shuffle through a buffer.

    Rows have their inputs, label and position, and point to the series that they share.
    """
    inputs = model_inputs(cube, LAYOUT)
    root = zarr.open_group(store, mode="r")
    rng = np.random.default_rng(0)
    height, width = inputs.grid.shape
    blocks = [
        (int(t), slice(y, min(y + TILE, height)), slice(x, min(x + TILE, width)))
        for t in np.flatnonzero(inputs.windows.complete)
        for y in range(0, height, TILE)
        for x in range(0, width, TILE)
    ]
    held: list[list[torch.Tensor]] = []
    for k in rng.permutation(len(blocks)):
        held.append(_rows_by_hand(inputs, root, labels, *blocks[k]))
        count = sum(len(rows[0]) for rows in held)
        if count < BUFFER:
            continue
        joined, order = _joined(held), torch.from_numpy(rng.permutation(count))
        out = count // 2 // BATCH * BATCH
        yield from _cut(joined, order[:out])
        kept = [column[order[out:]] for column in joined[:-1]]
        used, index = torch.unique(kept[1], return_inverse=True)
        held = [[kept[0], index, *kept[2:], joined[-1][used]]]
    if held:
        joined = _joined(held)
        yield from _cut(joined, torch.from_numpy(rng.permutation(len(joined[0]))))


def _joined(held: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    """Rows of all blocks; the second column points into the last, the series."""
    before = 0
    for rows in held:
        rows[1] = rows[1] + before
        before += len(rows[-1])
    return [torch.cat(parts) for parts in zip(*held, strict=True)]


def _cut(joined: list[torch.Tensor], order: torch.Tensor) -> Iterator[torch.Tensor]:
    for start in range(0, len(order), BATCH):
        batch = [column[order[start : start + BATCH]] for column in joined[:-1]]
        yield batch[0]


def _rows_by_hand(
    inputs: ModelInputs, root: zarr.Group, labels: xr.DataArray, t: int, y: slice, x: slice
) -> list[torch.Tensor]:
    read = {n: _decoded(root[f"base/{n}"], (t, y, x)) for n in ("vv", "vh", "angle")}
    read |= {n: _decoded(root[f"base/{n}"], (y, x)) for n in STATIC}
    label = labels.data[t, y, x].compute().ravel()
    grid = inputs.grid[y, x]
    row, sine, cosine = ease_features_on(grid, km=LAYOUT.ease_km, convention=LAYOUT.ease)
    turn = 2 * np.pi * inputs.times[t].dayofyear / 365
    read |= {"doy_sin": np.sin(turn), "doy_cos": np.cos(turn)}
    read |= {"ease_row": row, "ease_col_sin": sine, "ease_col_cos": cosine}
    columns = np.stack(
        [np.broadcast_to(read[c.feature], grid.shape).ravel() for c in LAYOUT.snapshot], axis=1
    ).astype(np.float32)
    snapshot, _ = scale_columns(columns, LAYOUT)
    windows, cells = [], []
    for name, steps in (("ndvi", 1), ("t2m", 8), ("tp", 8)):
        c = inputs.cells(name, y, x)
        node = next(p for p in root if name in root[p])
        values = _decoded(root[f"{node}/{name}"], (inputs.dates(name, t), c.y, c.x))
        run = values.reshape(46, steps, *values.shape[1:])
        windows.append(run.sum(1) if name == "tp" else run.mean(1))
        cells.append((c.row, c.column))
    fine = windows[0]
    up = [
        w[:, r[:: len(r) // fine.shape[1]][: fine.shape[1]], :][
            :, :, k[:: len(k) // fine.shape[2]][: fine.shape[2]]
        ]
        for w, (r, k) in zip(windows[1:], cells[1:], strict=True)
    ]
    runs = np.stack([fine, *up], axis=1).reshape(46, 3, -1).transpose(2, 1, 0)
    series, _ = scale_series(np.ascontiguousarray(runs, np.float32), LAYOUT)
    index = (cells[0][0][:, None] * fine.shape[2] + cells[0][1][None]).ravel()
    valid = np.isfinite(snapshot).all(1) & np.isfinite(label)
    assert np.isfinite(series).all()
    x, y = np.meshgrid(grid.coords["x"].values, grid.coords["y"].values)
    return [
        torch.from_numpy(snapshot[valid]),
        torch.from_numpy(index[valid]),
        torch.from_numpy(label[valid]),
        torch.from_numpy(np.stack([x.ravel(), y.ravel()], axis=1)[valid]),
        torch.from_numpy(series),
    ]


def _decoded(array: zarr.Array, key: tuple[object, ...]) -> np.ndarray:
    """Unpack the values as the conventions of the store say."""
    values = array[key]
    attrs = array.attrs
    decoded = values.astype(np.float32)
    if "scale_factor" in attrs:
        fill = attrs.get("_FillValue", array.fill_value)
        decoded[values == np.asarray(fill)] = np.nan
        decoded *= np.float32(attrs["scale_factor"])
        decoded += np.float32(attrs.get("add_offset", 0))
    return decoded


def cpu_seconds(function: Callable[[], int]) -> tuple[float, int]:
    """Time one call in CPU seconds of this process; returns also what it counted."""
    start = time.process_time()
    count = function()
    return time.process_time() - start, count


def measure(edge: int, dates: int, repeats: int) -> dict[str, float]:
    """Stream the same samples both ways, in turns."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cube = store_cube(folder, edge=edge, dates=dates)
        vv = cube["base"].to_dataset()["vv"]
        labels = (vv * 0 + 0.25).assign_attrs(units="m3 m-3")

        def streamed() -> int:
            stream = stream_samples(cube, labels, layout=LAYOUT, batch_size=BATCH, buffer=BUFFER)
            return sum(len(batch) for batch in stream)

        def read() -> int:
            return sum(len(rows) for rows in by_hand(cube, folder / "cube.zarr", labels))

        process = psutil.Process()
        ours, theirs = [], []
        before = process.memory_info().rss
        stream = stream_samples(cube, labels, layout=LAYOUT, batch_size=BATCH, buffer=BUFFER)
        peak = max(process.memory_info().rss for _ in stream)
        for _ in range(repeats):
            ours.append(cpu_seconds(streamed))
            theirs.append(cpu_seconds(read))
    count = ours[0][1]
    assert count == theirs[0][1]
    own = statistics.median(seconds for seconds, _ in ours)
    hand = statistics.median(seconds for seconds, _ in theirs)
    return {
        "samples": count,
        "samples_per_cpu_second": count / own,
        "by_hand_per_cpu_second": count / hand,
        "vs_chunk_reader": own / hand,
        "growth_of_memory_mb": (peak - before) / 1e6,
    }


def main() -> None:
    """Print a table for people, then the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer dates, within a minute")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    with dask.config.set(scheduler="synchronous"):
        figures = measure(edge=1024, dates=3 if quick else 12, repeats=2 if quick else 5)
    for name, value in figures.items():
        print(f"{name:32s} {value:12.4g}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
