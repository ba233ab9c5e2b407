"""The series branches of several members as one network, for devices that like few, large steps.

On a GPU a kernel's launch costs more than its arithmetic, so the members' convolutions run as the
groups of one. On a CPU that is slower than one member after the other (`smgrid.training.branch`);
values and gradients are the same up to rounding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from smgrid.models.densesm import POOLING, ConvBlock, NoSeries
from smgrid.training.branch import Mask, Statistics


def grouped_features(
    branches: Sequence[ConvBlock | NoSeries],
    padded: Tensor,
    *,
    masks: Sequence[Sequence[Mask]],
    statistics: Statistics,
) -> Tensor:
    """Run the series branches of all members.

    Parameters
    ----------
    branches
        Their weights.
    padded
        (steps + 4, series, n) from `smgrid.training.branch.steps_first`.
    masks
        What dropout leaves of each layer's activations, of each member.
    statistics
        Of the batch norms.

    Returns
    -------
    Tensor
        (members, 12, n) features.
    """
    y = padded.permute(2, 1, 0)
    layers = zip(*(branch.layers for branch in branches), strict=True)
    for number, (layer, mask) in enumerate(zip(layers, zip(*masks, strict=True), strict=True)):
        convolutions, norms = zip(*layer, strict=True)
        if number:
            y = fn.pad(fn.avg_pool1d(y, POOLING[number - 1]), (2, 2), mode="replicate")
        # The first layer's input is that of all members, later ones have one each.
        groups = len(branches) if number else 1
        weight = torch.cat([one.weight for one in convolutions])
        bias = torch.cat([one.bias for one in convolutions])
        y = fn.relu(_normalise(fn.conv1d(y, weight, bias, groups=groups), norms, statistics))
        kept = [m.permute(2, 1, 0) for m in mask if m is not None]
        if kept:
            y = y * torch.cat(kept, dim=1)
    y = fn.avg_pool1d(y, POOLING[-1], ceil_mode=True)
    found: Tensor = y.unflatten(1, (len(branches), -1))
    return found.flatten(2).permute(1, 2, 0)


def _normalise(y: Tensor, norms: Sequence[nn.BatchNorm1d], statistics: Statistics) -> Tensor:
    """Batch norms of the members over (n, members * channels, steps)."""
    mean = torch.cat([norm.running_mean for norm in norms])  # type: ignore[misc]
    variance = torch.cat([norm.running_var for norm in norms])  # type: ignore[misc]
    y = fn.batch_norm(
        y,
        None if statistics == "batch" else mean,
        None if statistics == "batch" else variance,
        torch.cat([norm.weight for norm in norms]),
        torch.cat([norm.bias for norm in norms]),
        training=statistics != "running",
        momentum=norms[0].momentum or 0.0,
        eps=norms[0].eps,
    )
    if statistics == "update":
        _remember(norms, mean, variance)
    return y


def _remember(norms: Sequence[nn.BatchNorm1d], mean: Tensor, variance: Tensor) -> None:
    """Give each member its part of the running statistics."""
    parts = zip(norms, mean.chunk(len(norms)), variance.chunk(len(norms)), strict=True)
    for norm, own_mean, own_variance in parts:
        norm.running_mean.copy_(own_mean)  # type: ignore[union-attr]
        norm.running_var.copy_(own_variance)  # type: ignore[union-attr]
        norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
