"""DenseSM, the network behind every member, and the forms its weights come in.

A one-dimensional convolution branch condenses three one-year series to 12 features; dense blocks
of linear layers join them with the snapshot columns (Zhu, Dai, Liu, Yuan and Walker 2024, Remote
Sens. Environ. 301:113944). Parameter names are those of the published files, so that these load
strictly. A layout without series has no branch: the dense part then reads the snapshot alone.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from smgrid.errors import BundleError

N_FEATURES = 32
# Steps that a window of the average pooling after each convolution spans; only the last pooling
# keeps a partial window at the end.
POOLING = (2, 2, 4)
BATCH_NORM_EPS = 1e-5
_CONV_CHANNELS = (32, 16, 4)
KERNEL = 5
_DROPOUT = 0.5


class ConvBlock(nn.Module):
    """(n, series, steps) -> (n, features): three convolutions with edge replication and pooling."""

    def __init__(self, n_series: int) -> None:
        super().__init__()
        first, second, third = _CONV_CHANNELS
        self.conv1 = _convolution(n_series, first)
        self.bn1 = _norm(first)
        self.conv2 = _convolution(first, second)
        self.bn2 = _norm(second)
        self.conv3 = _convolution(second, third)
        self.bn3 = _norm(third)
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, series: Tensor) -> Tensor:
        """Run the branch; the flattened features are channel-major."""
        y = fn.avg_pool1d(self.dropout(fn.relu(self.bn1(self.conv1(series)))), POOLING[0])
        y = fn.avg_pool1d(self.dropout(fn.relu(self.bn2(self.conv2(y)))), POOLING[1])
        y = self.dropout(fn.relu(self.bn3(self.conv3(y))))
        y = fn.avg_pool1d(y, POOLING[2], ceil_mode=True)
        return y.flatten(1)

    @property
    def layers(self) -> tuple[tuple[nn.Conv1d, nn.BatchNorm1d], ...]:
        """The convolutions, each with its batch norm."""
        return ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3))


class NoSeries(nn.Module):
    """(n, 0, steps) -> (n, 0): what stands in for the branch where a layout has no series."""

    layers: tuple[tuple[nn.Conv1d, nn.BatchNorm1d], ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, series: Tensor) -> Tensor:
        """Return no features."""
        return series.flatten(1)


class DenseBlock(nn.Module):
    """Three layers of linear, batch norm, ReLU; their output goes in front of the input."""

    def __init__(self, n_inputs: int, width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(n_inputs, width)
        self.linear2 = nn.Linear(width, width)
        self.linear3 = nn.Linear(width, width)
        self.bn1 = _norm(width)
        self.bn2 = _norm(width)
        self.bn3 = _norm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs) -> (n, width + inputs)."""
        y = fn.relu(self.bn1(self.linear1(x)))
        y = fn.relu(self.bn2(self.linear2(y)))
        y = fn.relu(self.bn3(self.linear3(y)))
        return torch.cat([y, x], dim=1)


class FullyConnected(nn.Module):
    """Linear, ReLU, batch norm: in this order, unlike the dense blocks."""

    def __init__(self, n_inputs: int, n_outputs: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(n_inputs, n_outputs)
        self.bn1 = _norm(n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs) -> (n, outputs)."""
        return self.bn1(fn.relu(self.linear1(x)))  # type: ignore[no-any-return]


class DenseSM(nn.Module):
    """One member: soil moisture of a pixel from its snapshot columns and one-year series.

    Parameters
    ----------
    depth
        Number of dense blocks.
    width
        Units of every layer of a dense block.
    n_snapshot, n_series, n_steps
        Sizes of the layout: snapshot columns, series (there may be none), steps of each series.
    """

    def __init__(
        self, depth: int, width: int, *, n_snapshot: int = 15, n_series: int = 3, n_steps: int = 46
    ) -> None:
        super().__init__()
        self.depth, self.width = depth, width
        self.n_snapshot, self.n_series, self.n_steps = n_snapshot, n_series, n_steps
        self.conv_block: ConvBlock | NoSeries = ConvBlock(n_series) if n_series else NoSeries()
        n_features = _CONV_CHANNELS[-1] * pooled_steps(n_steps)[-1] if n_series else 0
        n_inputs = n_snapshot + n_series + n_features
        self.norm = _norm(n_inputs)
        self.dense_layers = nn.ModuleList(
            DenseBlock(n_inputs + k * width, width) for k in range(depth)
        )
        self.fc_layers = nn.ModuleList([FullyConnected(n_inputs + depth * width, N_FEATURES)])
        self.out = nn.Linear(N_FEATURES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Predict soil moisture.

        Parameters
        ----------
        x
            (n, columns) scaled vectors in the order of the layout: 153 columns for the built-in
            ones. The means of the series are inserted here.

        Returns
        -------
        Tensor
            (n,) in m3 m-3, neither clipped nor bounded.
        """
        return self.out(self.features(x)).squeeze(1)  # type: ignore[no-any-return]

    def features(self, x: Tensor) -> Tensor:
        """(n, columns) -> the (n, 32) features that domain adaptation aligns."""
        snapshot, series = self.split(x)
        return self.head(snapshot, series.nanmean(dim=2), self.conv_block(series))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, columns) -> (n, snapshot columns) and (n, series, steps)."""
        series = x[:, self.n_snapshot :].reshape(len(x), self.n_series, self.n_steps)
        return x[:, : self.n_snapshot], series

    def head(self, snapshot: Tensor, means: Tensor, series_features: Tensor) -> Tensor:
        """Run the dense part from snapshot columns, means of the series and their features.

        The series branch depends on the series alone: who keeps its output (``conv_block``) need
        not run it again.
        """
        y = self.norm(torch.cat([snapshot, means, series_features], dim=1))
        for layer in (*self.dense_layers, *self.fc_layers):
            y = layer(y)
        return y  # type: ignore[no-any-return]


def pooled_steps(n_steps: int) -> tuple[int, int, int]:
    """Return the steps left after each of the three poolings."""
    first = n_steps // POOLING[0]
    second = first // POOLING[1]
    return first, second, -(-second // POOLING[2])


def network_from_state(
    state: Mapping[str, Any],
    *,
    n_snapshot: int = 15,
    n_series: int = 3,
    n_steps: int = 46,
    where: str = "the weights",
) -> DenseSM:
    """Build a network in evaluation mode from any form of its state dict.

    Nothing is initialised at random, so this is safe in worker threads and leaves the caller's
    random numbers alone.

    Parameters
    ----------
    state
        Plain (``out.*``), split (``fe.*`` and ``mv.*``), either with a leading ``0.``.
    n_snapshot, n_series, n_steps
        Sizes of the layout.
    where
        Name of the origin for messages.

    Raises
    ------
    BundleError
        The weights are no DenseSM, do not fit these sizes, or are not finite.
    """
    plain = plain_state(state, where=where)
    depth, width = infer_depth_width(plain, where=where)
    with torch.device("meta"):
        network = DenseSM(depth, width, n_snapshot=n_snapshot, n_series=n_series, n_steps=n_steps)
    try:
        network.load_state_dict(plain, strict=True, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise BundleError(
            f"{where}: the weights do not fit a DenseSM of depth {depth} and width {width} with "
            f"{n_snapshot} snapshot columns and {n_series} series of {n_steps} steps: {reason}"
        ) from error
    return network.eval()


def plain_state(state: Mapping[str, Any], *, where: str = "the weights") -> dict[str, Tensor]:
    """Bring a state dict to the plain form: float32 weights, integer counters.

    The released files average the counters of batches, so they are fractional there.

    Raises
    ------
    BundleError
        An entry is no tensor or is not finite.
    """
    plain = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise BundleError(f"{where}: expected tensors by name, found {key!r}: {type(value)}")
        if not bool(torch.isfinite(value).all()):
            raise BundleError(f"{where}: {key} has values that are not finite")
        counter = key.endswith("num_batches_tracked")
        plain[_plain_key(key)] = value.detach().to(
            device="cpu", dtype=torch.int64 if counter else torch.float32, copy=True
        )
    return plain


def infer_depth_width(
    state: Mapping[str, Tensor], *, where: str = "the weights"
) -> tuple[int, int]:
    """Return the number of dense blocks and their width, from a plain state dict.

    Raises
    ------
    BundleError
        There is no dense block.
    """
    blocks = [m for key in state if (m := re.fullmatch(r"dense_layers\.(\d+)\.linear2\.bias", key))]
    if not blocks:
        found = ", ".join(list(state)[:3]) or "nothing"
        raise BundleError(f"{where}: no dense block of a DenseSM in it; it begins with {found}")
    return len(blocks), state[blocks[0].group()].shape[0]


def _plain_key(key: str) -> str:
    key = key.removeprefix("0.")
    return re.sub(r"^mv\.", "out.", key).removeprefix("fe.")


def _convolution(n_in: int, n_out: int) -> nn.Conv1d:
    return nn.Conv1d(n_in, n_out, KERNEL, padding=KERNEL // 2, padding_mode="replicate")


def _norm(n: int) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(n, eps=BATCH_NORM_EPS)
