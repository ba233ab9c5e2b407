"""DenseSM without its batch norms: the same function in fewer, plain affine layers.

In evaluation mode a batch norm is affine. It joins the linear layer before it, or after it where a
ReLU stands between. The norm over the inputs stays a step of its own: spread over the layers that
read them, its shifts would partly cancel in single precision.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from smgrid.models.densesm import BATCH_NORM_EPS, POOLING, DenseSM

State: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class Layer:
    """An affine layer; weight (outputs, inputs) and bias (outputs, 1), or stacks of them."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Member:
    """One member without batch norms; ``dense`` holds three layers per block.

    ``scale`` and ``shift``, (inputs, 1), turn snapshot columns, means of the series and sums over
    the windows of the last pooling into the normalised inputs of the dense part.
    """

    width: int
    convolutions: list[Layer]
    scale: Tensor
    shift: Tensor
    dense: list[Layer]
    hidden: Layer
    out: Layer


def on_device(member: Member, device: str) -> Member:
    """Return a member whose tensors are on a device."""

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device)
        if isinstance(value, Layer):
            return Layer(value.weight.to(device), value.bias.to(device))
        return [move(layer) for layer in value] if isinstance(value, list) else value

    return replace(member, **{f.name: move(getattr(member, f.name)) for f in fields(member)})


def fold(network: DenseSM) -> Member:
    """Fold every batch norm of a network into the linear layer beside it, in float64."""
    state = {key: value.cpu().double() for key, value in network.state_dict().items()}
    scale, shift = _fold_inputs(state, network)
    dense = [
        _fold_linear(state, f"dense_layers.{block}.linear{i}", f"dense_layers.{block}.bn{i}")
        for block in range(network.depth)
        for i in (1, 2, 3)
    ]
    gain, offset = _affine(state, "fc_layers.0.bn1")
    out = state["out.weight"]
    return Member(
        width=network.width,
        convolutions=_fold_convolutions(state) if network.n_series else [],
        scale=scale[:, None].float(),
        shift=shift[:, None].float(),
        dense=dense,
        hidden=_layer(state["fc_layers.0.linear1.weight"], state["fc_layers.0.linear1.bias"]),
        out=_layer(out * gain, state["out.bias"] + out @ offset),
    )


def _fold_inputs(state: State, network: DenseSM) -> tuple[Tensor, Tensor]:
    steps = network.n_steps // POOLING[0] // POOLING[1]
    counts = torch.tensor([min(POOLING[2], steps - i) for i in range(0, steps, POOLING[2])])
    gain, shift = _affine(state, "norm")
    n_given = network.n_snapshot + network.n_series
    n_channels = (len(gain) - n_given) // max(1, len(counts))  # none without series
    counts = counts.repeat(n_channels)
    return gain / torch.cat([torch.ones(n_given), counts]), shift


def _fold_convolutions(state: State) -> list[Layer]:
    """Fold the convolutions; they read sums of pooled steps, not means, in rows (step, channel)."""
    layers = []
    for number, pooled in enumerate((1, *POOLING[:2]), start=1):
        name = f"conv_block.conv{number}"
        gain, shift = _affine(state, f"conv_block.bn{number}")
        weight = gain[:, None] * state[f"{name}.weight"].transpose(1, 2).flatten(1) / pooled
        layers.append(_layer(weight, gain * state[f"{name}.bias"] + shift))
    return layers


def _fold_linear(state: State, name: str, norm: str) -> Layer:
    gain, shift = _affine(state, norm)
    weight = gain[:, None] * state[f"{name}.weight"]
    return _layer(weight, gain * state[f"{name}.bias"] + shift)


def _affine(state: State, norm: str) -> tuple[Tensor, Tensor]:
    """Gain and shift of a batch norm in evaluation mode."""
    gain = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + BATCH_NORM_EPS)
    return gain, state[f"{norm}.bias"] - gain * state[f"{norm}.running_mean"]


def _layer(weight: Tensor, bias: Tensor) -> Layer:
    return Layer(weight.float().contiguous(), bias[:, None].float())
