"""Members of one width as one network: their dense layers are batches of matrix products.

Every member keeps its own weights, batch norms and dropout; what it computes does not depend on the
others. So training a stack is training its members one by one on the same batches, only faster.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from smgrid.models.densesm import DenseBlock, DenseSM
from smgrid.training.branch import (
    Mask,
    Statistics,
    branch_features,
    draw_masks,
    normalise,
    steps_first,
)
from smgrid.training.grouped import grouped_features


class Rows(NamedTuple):
    """A batch as members take it: rows innermost."""

    inputs: Tensor
    """(snapshot columns + series, n): snapshot and the means of the series."""
    series: Tensor
    """(steps + 4, series, n), see `steps_first`."""


class Outputs(NamedTuple):
    """What the members of a stack make of a batch."""

    prediction: Tensor
    """(members, n) m3 m-3."""
    features: Tensor
    """(members, n, 32) that domain adaptation aligns."""


def make_rows(snapshot: Tensor, series: Tensor) -> Rows:
    """Make a batch from (n, columns) and (n, series, steps)."""
    return Rows(torch.cat([snapshot.t(), series.mean(dim=2).t()]), steps_first(series))


class MemberStack(nn.Module):
    """Networks of one width and any depths, the deepest first.

    Parameters
    ----------
    networks
        Members of one width and one layout; they are copied.
    numbers
        Their numbers in the ensemble, on which dropout depends; default: from 0.
    """

    def __init__(
        self, networks: Sequence[DenseSM], *, numbers: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        # Those that have a block are then the first ones.
        self.order = sorted(range(len(networks)), key=lambda k: -networks[k].depth)
        ordered = [copy.deepcopy(networks[k]) for k in self.order]
        numbers = range(len(networks)) if numbers is None else numbers
        self.numbers = [numbers[k] for k in self.order]
        self._members = [(n.depth, n.width) for n in ordered]
        self._sizes = (ordered[0].n_snapshot, ordered[0].n_series, ordered[0].n_steps)
        self._branches = [network.conv_block for network in ordered]
        self._blocks = [
            _StackedBlock([n.dense_layers[k] for n in ordered if n.depth > k])  # type: ignore[misc]
            for k in range(ordered[0].depth)
        ]
        heads = [network.fc_layers[0] for network in ordered]
        self._heads: list[nn.Linear] = [head.linear1 for head in heads]  # type: ignore[misc]
        self.norm = _StackedNorm([network.norm for network in ordered])
        self.head_norm = _StackedNorm([head.bn1 for head in heads])  # type: ignore[misc]
        self.out = _StackedLinear([network.out for network in ordered])
        self.branches = nn.ModuleList(self._branches)
        self.blocks = nn.ModuleList(self._blocks)
        self.heads = nn.ModuleList(self._heads)  # their inputs differ with the depth

    def __len__(self) -> int:
        """Count the members."""
        return len(self._members)

    def forward(
        self,
        inputs: Tensor,
        series_features: Tensor,
        *,
        statistics: Statistics = "running",
    ) -> Outputs:
        """Run the dense part of all members.

        Parameters
        ----------
        inputs
            (snapshot columns + series, n) as in `Rows`.
        series_features
            (members, 12, n) from `series_features`; (members, 0, n) without series.
        statistics
            Of the batch norms.
        """
        x = torch.cat([inputs.expand(len(self), -1, -1), series_features], dim=1)
        x = self.norm(x, statistics)
        ended: list[Tensor] = []
        for block in self._blocks:
            ended = [*x[len(block) :], *ended]
            x = block(x[: len(block)], statistics)
        hidden = [
            fn.relu(torch.addmm(head.bias[:, None], head.weight, y))
            for head, y in zip(self._heads, [*x, *ended], strict=True)
        ]
        features = self.head_norm(torch.stack(hidden), statistics)
        return Outputs(self.out(features).squeeze(1), features.transpose(1, 2))

    def series_features(
        self,
        series: Tensor,
        *,
        masks: Sequence[Sequence[Mask]] | None = None,
        statistics: Statistics = "running",
    ) -> Tensor:
        """Run the series branch of every member: (steps + 4, series, n) -> (members, 12, n).

        ``masks`` are those of each member, see `draw_masks`; none without dropout.
        """
        every = [(None,) * len(b.layers) for b in self._branches] if masks is None else masks
        if series.device.type == "cuda" and self._sizes[1]:
            return grouped_features(self._branches, series, masks=every, statistics=statistics)
        each = zip(self._branches, every, strict=True)
        return torch.stack(
            [branch_features(b, series, masks=m, statistics=statistics) for b, m in each]
        )

    def draw_masks(self, n: int, *, seed: Sequence[int]) -> list[tuple[Mask, ...]]:
        """Draw the dropout of a batch of n rows; each member has its own, by its number."""
        device = self._heads[0].weight.device
        return [
            draw_masks(branch, n, steps=self._sizes[2], seed=(*seed, number), device=device)
            for branch, number in zip(self._branches, self.numbers, strict=True)
        ]

    def networks(self) -> list[DenseSM]:
        """Return the members as networks of their own, in the order in which they were given."""
        found: dict[int, DenseSM] = {}
        for place, number in enumerate(self.order):
            depth, width = self._members[place]
            n_snapshot, n_series, n_steps = self._sizes
            with torch.device("meta"):
                network = DenseSM(
                    depth, width, n_snapshot=n_snapshot, n_series=n_series, n_steps=n_steps
                )
            network.load_state_dict(self.state_of(self.numbers[place]), assign=True)
            network.conv_block.dropout.p = self._branches[place].dropout.p
            found[number] = network.eval()
        return [found[number] for number in sorted(found)]

    def state_of(self, number: int) -> dict[str, Tensor]:
        """Return the weights of one member, by its number, under their own names."""
        place = self.numbers.index(number)
        depth, _ = self._members[place]
        parts = {
            "conv_block": self._branches[place].state_dict(),
            "norm": self.norm.state_of(place),
            **{f"dense_layers.{k}": self._blocks[k].state_of(place) for k in range(depth)},
            "fc_layers.0.linear1": self._heads[place].state_dict(),
            "fc_layers.0.bn1": self.head_norm.state_of(place),
            "out": self.out.state_of(place),
        }
        return {
            f"{prefix}.{key}": value.detach().cpu().clone()
            for prefix, state in parts.items()
            for key, value in state.items()
        }


class _StackedLinear(nn.Module):
    """(members, inputs, n) -> (members, outputs, n)."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias[:, :, None], self.weight, x)

    def state_of(self, place: int) -> dict[str, Tensor]:
        return {"weight": self.weight[place], "bias": self.bias[place]}


class _StackedNorm(nn.Module):
    """Batch norms of (members, channels, n), each channel of each member by itself."""

    def __init__(self, layers: Sequence[nn.BatchNorm1d]) -> None:
        super().__init__()
        self.channels = layers[0].num_features
        flat = nn.BatchNorm1d(len(layers) * self.channels, layers[0].eps, layers[0].momentum)
        flat = flat.to(layers[0].weight.dtype)
        states = [layer.state_dict() for layer in layers]
        state = {
            key: torch.cat([s[key] for s in states])
            for key in ("weight", "bias", "running_mean", "running_var")
        }
        flat.load_state_dict(state | {"num_batches_tracked": states[0]["num_batches_tracked"]})
        self.flat = flat

    def forward(self, x: Tensor, statistics: Statistics) -> Tensor:
        return normalise(x.flatten(0, 1)[None], self.flat, statistics).view_as(x)

    def state_of(self, place: int) -> dict[str, Tensor]:
        part = slice(place * self.channels, (place + 1) * self.channels)
        state = self.flat.state_dict()
        return {key: value[part] if value.ndim else value for key, value in state.items()}


class _StackedBlock(nn.Module):
    """Dense blocks of the members that have one: three times linear, batch norm, ReLU."""

    def __init__(self, blocks: Sequence[DenseBlock]) -> None:
        super().__init__()
        self._count = len(blocks)
        self.linear1 = _StackedLinear([block.linear1 for block in blocks])
        self.linear2 = _StackedLinear([block.linear2 for block in blocks])
        self.linear3 = _StackedLinear([block.linear3 for block in blocks])
        self.bn1 = _StackedNorm([block.bn1 for block in blocks])
        self.bn2 = _StackedNorm([block.bn2 for block in blocks])
        self.bn3 = _StackedNorm([block.bn3 for block in blocks])

    def __len__(self) -> int:
        return self._count

    def forward(self, x: Tensor, statistics: Statistics) -> Tensor:
        y = fn.relu(self.bn1(self.linear1(x), statistics))
        y = fn.relu(self.bn2(self.linear2(y), statistics))
        y = fn.relu(self.bn3(self.linear3(y), statistics))
        return torch.cat([y, x], dim=1)

    def state_of(self, place: int) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": value
            for name, layer in self.named_children()
            for key, value in layer.state_of(place).items()  # type: ignore[operator]
        }


def stack_by_width(
    networks: Sequence[DenseSM], *, numbers: Sequence[int] | None = None
) -> list[MemberStack]:
    """Stack members by their width; their numbers are by default those of an ensemble, from 0."""
    named = list(range(len(networks)) if numbers is None else numbers)
    widths = sorted({network.width for network in networks})
    places = [[k for k, n in enumerate(networks) if n.width == width] for width in widths]
    return [
        MemberStack([networks[k] for k in which], numbers=[named[k] for k in which])
        for which in places
    ]
