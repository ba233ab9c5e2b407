"""The fast form of an ensemble: folded batch norms, shared series, cache-sized matrix products.

Two exact rearrangements keep it equal to the members' own forward passes up to rounding:

- A batch norm in evaluation mode is affine and becomes part of a linear layer beside it.
- The series branch depends on the series alone, so it runs once per distinct series, for all pixels
  and dates that share it.

Activations have the pixels (or series) innermost. So a convolution is a batch of matrix products
over overlapping windows of rows, without copies, and a dense block is stacked on top of its input.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smgrid.errors import LayoutError
from smgrid.inference.folding import Layer, Member, fold, on_device
from smgrid.models.densesm import KERNEL, POOLING, pooled_steps
from smgrid.models.devices import check_device, one_thread
from smgrid.models.ensemble import Ensemble

FloatArray: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.int64]

_log = logging.getLogger(__name__)

# Rows of the dense part, and series of the convolutions, at a time: on a CPU their activations
# shall stay in cache, on a GPU they shall be many.
_ROWS = {"cpu": 512, "cuda": 1 << 16}
_SERIES = {"cpu": 128, "cuda": 1 << 13}


@dataclass(frozen=True)
class _Group:
    """Members of one width, the deepest first, so that those that have a block stand in front.

    ``positions`` are those in the ensemble; ``scale`` and ``shift`` are stacked over the members, a
    layer of ``dense`` over those that have it.
    """

    width: int
    positions: list[int]
    members: list[Member]
    scale: Tensor
    shift: Tensor
    dense: list[Layer]


@dataclass(frozen=True, eq=False)
class SeriesFeatures:
    """What the branches of all members make of series; see `Engine.read_series`.

    Attributes
    ----------
    row
        (m,) where the features of each series stand; -1 for a series that was not read.
    means
        (d, series) means over the steps.
    sums
        (members, features, d) sums over the windows of the last pooling.
    """

    row: IntArray
    means: FloatArray
    sums: FloatArray


@dataclass(frozen=True, eq=False)
class Engine:
    """A compiled ensemble, made by `compile_ensemble`; threads may share it.

    Attributes
    ----------
    digest
        Digest of the ensemble.
    n_snapshot, n_series, n_steps
        Sizes of the layout.
    members, groups
        The folded networks, in the order of the ensemble and by width.
    """

    digest: str
    n_snapshot: int
    n_series: int
    n_steps: int
    members: tuple[Member, ...]
    groups: tuple[_Group, ...]
    kernels: tuple[FloatArray, ...]
    """Weights and biases of the convolutions of all members, as `smgrid.inference.kernels` takes
    them."""
    device: str = "cpu"
    """Where it computes; arrays come and go in ordinary memory."""

    def predict(
        self, snapshot: FloatArray, series: FloatArray, series_index: IntArray
    ) -> FloatArray:
        """Predict every member.

        Parameters
        ----------
        snapshot
            (n, snapshot columns), scaled, in the layout's order.
        series
            (m, series, steps) distinct scaled series.
        series_index
            (n,) row of ``series`` that each row uses.

        Returns
        -------
        array
            (members, n) in m3 m-3; NaN for a row of which any value is not finite.

        Raises
        ------
        LayoutError
            An array does not have the layout's shape, or an index points outside ``series``.
        """
        _check_index(series_index, len(snapshot), len(series))
        return self.predict_rows(snapshot, self.read_series(series), series_index)

    def read_series(
        self, series: FloatArray, *, wanted: npt.NDArray[np.bool_] | None = None
    ) -> SeriesFeatures:
        """Run the series branches of all members, once for series that are equal.

        Parameters
        ----------
        series
            (m, series, steps), scaled.
        wanted
            (m,) which of them; default: all. Those with a gap are never read.
        """
        if series.shape[1:] != (self.n_series, self.n_steps):
            raise LayoutError(
                f"series have the shape {series.shape}, expected (m, {self.n_series}, "
                f"{self.n_steps})"
            )
        read = np.isfinite(series).all(axis=(1, 2))
        if wanted is not None:
            read &= wanted
        row = np.full(len(series), -1, np.int64)
        found = series if read.all() else series[read]
        first, row[read] = _distinct(found.reshape(len(found), self.n_series * self.n_steps))
        distinct = np.ascontiguousarray(found[first], np.float32)
        del found
        return SeriesFeatures(
            row=row,
            means=distinct.mean(axis=2, dtype=np.float64).astype(np.float32),
            sums=self._branch_sums(distinct),
        )

    def predict_rows(
        self, snapshot: FloatArray, series: SeriesFeatures, series_index: IntArray
    ) -> FloatArray:
        """Predict every member, as `predict` does, from series that were read before."""
        if snapshot.shape[1:] != (self.n_snapshot,):
            raise LayoutError(
                f"snapshot has the shape {snapshot.shape}, expected (n, {self.n_snapshot})"
            )
        _check_index(series_index, len(snapshot), len(series.row))
        cells = series.row[series_index]
        rows = np.flatnonzero(np.isfinite(snapshot).all(axis=1) & (cells >= 0))
        predictions = np.full((len(self.members), len(snapshot)), np.nan, np.float32)
        if len(rows) == 0:
            return predictions
        cells = cells[rows]
        inputs = np.concatenate([snapshot[rows], series.means[cells]], axis=1, dtype=np.float32)
        with torch.inference_mode(), one_thread():
            found = _dense(
                self.groups,
                torch.from_numpy(inputs).to(self.device),
                torch.from_numpy(series.sums).to(self.device),
                torch.from_numpy(cells).to(self.device),
            )
        predictions[:, rows] = found.cpu().numpy()
        return predictions

    def _branch_sums(self, series: FloatArray) -> FloatArray:
        """(d, series, steps) -> (members, features, d).

        By the compiled kernel, or with matrix products on a GPU and where numba is not installed.
        """
        branch_sums = _compiled_kernel() if self.device == "cpu" else None
        if branch_sums is None or not self.n_series:
            with torch.inference_mode(), one_thread():
                found = _branches(self.members, torch.from_numpy(series).to(self.device))
                return found.cpu().numpy()
        windows = pooled_steps(self.n_steps)[-1]
        sums = np.empty((len(self.members), self.kernels[-1].shape[1] * windows, len(series)), "f4")
        branch_sums(series, *self.kernels, sums)
        return sums


def compile_ensemble(ensemble: Ensemble, *, device: str = "cpu") -> Engine:
    """Fold and stack the networks of an ensemble; milliseconds per member.

    Parameters
    ----------
    ensemble
        The networks.
    device
        Where they shall run: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Raises
    ------
    ConfigError
        There is no such device.
    """
    check_device(device)
    networks = [network for _, network in ensemble.members]
    members = [fold(network) for network in networks]
    kernels = tuple(_stack_convolutions(members))
    members = [on_device(member, device) for member in members]
    return Engine(
        digest=ensemble.digest,
        n_snapshot=networks[0].n_snapshot,
        n_series=networks[0].n_series,
        n_steps=networks[0].n_steps,
        members=tuple(members),
        groups=tuple(_group(members, width) for width in sorted({m.width for m in members})),
        kernels=kernels,
        device=device,
    )


def _check_index(index: IntArray, n: int, n_series: int) -> None:
    if index.shape != (n,):
        raise LayoutError(f"series_index has the shape {index.shape}, expected ({n},)")
    if n and not (index.min() >= 0 and index.max() < n_series):
        raise LayoutError(
            f"series_index must lie in 0..{n_series - 1}, the rows of series; it runs from "
            f"{index.min()} to {index.max()}"
        )


def _distinct(rows: FloatArray) -> tuple[IntArray, IntArray]:
    """Return the first row of every kind, and the kind of each row.

    Rows are told apart by one number each, which sorts six times faster than whole rows do.
    """
    if not len(rows):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    weights = np.random.default_rng(0).random(rows.shape[1])
    # In parts, as each becomes double precision.
    key = np.concatenate([rows[part] @ weights for part in _parts(len(rows), 4096)])
    _, first, kind = np.unique(key, return_index=True, return_inverse=True)
    if np.array_equal(rows[first[kind]], rows):
        return first, kind
    _, first, kind = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return first, kind


def _stack_convolutions(members: list[Member]) -> Iterator[FloatArray]:
    """Give weights (members, inputs, outputs, taps) and biases (members, outputs) of each layer."""
    for layers in zip(*(member.convolutions for member in members), strict=True):
        weight = np.stack([layer.weight.numpy() for layer in layers])
        taps = weight.reshape(*weight.shape[:2], KERNEL, -1)
        yield np.ascontiguousarray(taps.transpose(0, 3, 1, 2))
        yield np.stack([layer.bias[:, 0].numpy() for layer in layers])


@cache
def _compiled_kernel() -> Callable[..., None] | None:
    try:
        from smgrid.inference.kernels import branch_sums
    except ImportError:
        _log.info(
            "numba is not installed: series go through matrix products, with equal results, but "
            "more slowly; pip install 'smgrid[numba]'"
        )
        return None
    except Exception as error:  # noqa: BLE001 (of another NumPy, or without its library)
        _log.warning(
            "numba cannot be used (%s: %s): series go through matrix products, with equal results, "
            "but more slowly",
            *(type(error).__name__, error),
        )
        return None
    return branch_sums


def _branches(members: tuple[Member, ...], series: Tensor) -> Tensor:
    if not series.shape[1] or not len(series):
        return series.new_empty(len(members), 0, len(series))
    parts = []
    for part in _parts(len(series), _SERIES[series.device.type]):
        source = _replicate_edges(series[part].permute(2, 1, 0).contiguous())
        parts.append(torch.stack([_branch_sums(member.convolutions, source) for member in members]))
    return torch.cat(parts, dim=2)


def _branch_sums(layers: list[Layer], source: Tensor) -> Tensor:
    y = source
    for layer in layers[:-1]:
        y = _convolve(layer, y)
        even = len(y) // 2 * 2
        y = _replicate_edges(y[0:even:2] + y[1:even:2])
    windows = _convolve(layers[-1], y).split(POOLING[-1])
    return torch.stack([window.sum(dim=0) for window in windows], dim=1).flatten(0, 1)


def _convolve(layer: Layer, padded: Tensor) -> Tensor:
    """Map (steps + padding, channels, n) to (steps, outputs, n)."""
    n_channels, n = padded.shape[1:]
    n_inputs = layer.weight.shape[1]
    steps = len(padded) - n_inputs // n_channels + 1
    windows = padded.as_strided((steps, n_inputs, n), (n_channels * n, n, 1))
    return torch.baddbmm(layer.bias, layer.weight.expand(steps, -1, -1), windows).relu_()


def _replicate_edges(y: Tensor) -> Tensor:
    return torch.cat([y[:1], y[:1], y, y[-1:], y[-1:]])


def _dense(groups: tuple[_Group, ...], inputs: Tensor, features: Tensor, cells: Tensor) -> Tensor:
    """Map (n, columns) inputs and the features of their series to (members, n)."""
    n = len(inputs)
    given = inputs.shape[1] + features.shape[1]
    predictions = inputs.new_empty(len(features), n)
    at_once = _ROWS[inputs.device.type]
    for group in groups:
        height = given + group.width * (len(group.dense) // 3)
        buffer = inputs.new_empty(len(group.members), height, min(n, at_once))
        for part in _parts(n, at_once):
            x = buffer[:, :, : part.stop - part.start]
            _fill(x[:, -given:], group, inputs[part], features, cells[part])
            predictions[group.positions, part] = _run_group(group, x, given)
    return predictions


def _fill(x: Tensor, group: _Group, inputs: Tensor, features: Tensor, cells: Tensor) -> None:
    """Write what the members are given, scaled, to ``x`` (members, columns and features, n)."""
    k = inputs.shape[1]
    torch.addcmul(group.shift[:, :k], inputs.T, group.scale[:, :k], out=x[:, :k])
    for i, position in enumerate(group.positions):
        found = features[position].index_select(1, cells)  # three times as fast as by brackets
        torch.addcmul(group.shift[i, k:], found, group.scale[i, k:], out=x[i, k:])


def _run_group(group: _Group, x: Tensor, given: int) -> Tensor:
    """Stack block on block in ``x``, of which the last ``given`` rows are the inputs."""
    top = x.shape[1] - given
    for first in range(0, len(group.dense), 3):
        y = x[: len(group.dense[first].weight), top:]
        for layer in group.dense[first : first + 2]:
            y = torch.baddbmm(layer.bias, layer.weight, y).relu_()
        last = group.dense[first + 2]
        block = x[: len(y), top - group.width : top]
        torch.baddbmm(last.bias, last.weight, y, out=block).relu_()
        top -= group.width
    outputs = []
    for rows, member in zip(x, group.members, strict=True):
        used = rows[-member.hidden.weight.shape[1] :]
        y = torch.addmm(member.hidden.bias, member.hidden.weight, used).relu_()
        outputs.append(torch.addmm(member.out.bias, member.out.weight, y))
    return torch.cat(outputs)


def _parts(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _group(members: list[Member], width: int) -> _Group:
    positions = [i for i, member in enumerate(members) if member.width == width]
    positions.sort(key=lambda i: -len(members[i].dense))
    found = [members[i] for i in positions]
    dense = []
    for k in range(len(found[0].dense)):
        layers = [member.dense[k] for member in found if k < len(member.dense)]
        weight = torch.stack([layer.weight for layer in layers])
        dense.append(Layer(weight, torch.stack([layer.bias for layer in layers])))
    return _Group(
        width=width,
        positions=positions,
        members=found,
        scale=torch.stack([member.scale for member in found]),
        shift=torch.stack([member.shift for member in found]),
        dense=dense,
    )
