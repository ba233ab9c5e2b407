"""Supervised training of a small ensemble: mean squared error, early stopping on unseen places."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from smgrid import __version__
from smgrid.errors import ConfigError
from smgrid.features.layout import FeatureLayout
from smgrid.models.densesm import DenseSM
from smgrid.models.ensemble import Ensemble
from smgrid.training.samples import Samples


@dataclass(frozen=True)
class FitPlan:
    """How an ensemble is trained; recorded in its card.

    Attributes
    ----------
    members
        (depth, width) of each network.
    epochs
        Passes over the training samples at most.
    patience
        Epochs without a better validation error before a member stops.
    batch_size
        Samples per step.
    learning_rate, weight_decay
        Of the AdamW optimiser.
    seed
        Of the initial weights, the order of samples and dropout; member ``i`` uses ``seed + i``.
    """

    members: tuple[tuple[int, int], ...] = ((1, 16), (2, 16), (2, 32), (3, 16), (3, 32))
    epochs: int = 60
    patience: int = 12
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    seed: int = 0


@dataclass(frozen=True)
class EpochEnd:
    """Progress of a training run, told to a callback.

    Attributes
    ----------
    member
        Number of the network, from 0.
    epoch
        Number of the pass, from 0.
    loss
        Mean squared error of the pass, (m3 m-3)^2.
    validation_rmse
        On the samples kept apart, m3 m-3.
    """

    member: int
    epoch: int
    loss: float
    validation_rmse: float


@dataclass
class _Best:
    rmse: float = float("inf")
    epoch: int = -1
    state: dict[str, Any] = field(default_factory=dict)


def fit(
    training: Samples,
    validation: Samples,
    *,
    layout: FeatureLayout,
    plan: FitPlan | None = None,
    on_epoch: Callable[[EpochEnd], None] | None = None,
) -> Ensemble:
    """Train an ensemble, each member kept as it was at its best validation error.

    Parameters
    ----------
    training, validation
        Samples of the layout; keep the places apart, see `split_by_block`.
    layout
        The layout that the samples were made with.
    plan
        Sizes and rates; the defaults suit a few thousand samples.
    on_epoch
        Called after each pass.

    Returns
    -------
    Ensemble
        Networks in evaluation mode with a card that holds the plan and the errors.

    Raises
    ------
    ConfigError
        Fewer than two training samples, no validation sample, or another layout's columns.
    """
    plan = FitPlan() if plan is None else plan
    _check(training, validation, layout)
    members, card = [], []
    for number, (depth, width) in enumerate(plan.members):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed + number)
            network = DenseSM(depth, width)
            best = _fit_member(network, training, validation, plan, number, on_epoch)
        network.load_state_dict(best.state)
        members.append((f"m_{depth}_{width}", network.eval()))
        card.append({"depth": depth, "width": width, "epoch": best.epoch, "rmse": best.rmse})
    facts = {
        "method": "supervised, mean squared error",
        "plan": asdict(plan),
        "samples": {"training": len(training), "validation": len(validation)},
        "members": card,
        "smgrid_version": __version__,
        "torch_version": torch.__version__,
    }
    return Ensemble(members=tuple(members), layout=layout, card={"training": facts})


def _check(training: Samples, validation: Samples, layout: FeatureLayout) -> None:
    if len(training) < 2 or len(validation) < 1:
        raise ConfigError(
            f"training needs at least 2 samples and validation 1, got {len(training)} and "
            f"{len(validation)}: add labels or split them differently"
        )
    for name, samples in (("training", training), ("validation", validation)):
        if samples.features.shape[1] != layout.n_columns:
            raise ConfigError(
                f"{name} samples have {samples.features.shape[1]} columns, the layout "
                f"{layout.name!r} has {layout.n_columns}: stream them with that layout"
            )


def _fit_member(
    network: nn.Module,
    training: Samples,
    validation: Samples,
    plan: FitPlan,
    number: int,
    on_epoch: Callable[[EpochEnd], None] | None,
) -> _Best:
    x, y = torch.from_numpy(training.features), torch.from_numpy(training.label)
    vx, vy = torch.from_numpy(validation.features), torch.from_numpy(validation.label)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, plan.epochs)
    best = _Best()
    for epoch in range(plan.epochs):
        loss = _one_pass(network, x, y, optimiser, plan.batch_size)
        schedule.step()
        rmse = _rmse(network, vx, vy)
        if on_epoch is not None:
            on_epoch(EpochEnd(number, epoch, loss, rmse))
        if rmse < best.rmse:
            best = _Best(rmse, epoch, deepcopy(network.state_dict()))
        elif epoch - best.epoch >= plan.patience:
            break
    return best


def _one_pass(
    network: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    optimiser: torch.optim.Optimizer,
    batch_size: int,
) -> float:
    network.train()
    total = 0.0
    for rows in _batches(len(y), batch_size):
        optimiser.zero_grad()
        loss = nn.functional.mse_loss(network(x[rows]), y[rows])
        loss.backward()
        optimiser.step()
        total += float(loss.detach()) * len(rows)
    return total / len(y)


def _batches(count: int, size: int) -> Iterator[torch.Tensor]:
    """Random batches; a single left-over row joins none, batch norm cannot train on it."""
    order = torch.randperm(count)
    for rows in order.split(size):
        if len(rows) > 1:
            yield rows


def _rmse(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    network.eval()
    with torch.inference_mode():
        parts = [network(rows) for rows in x.split(8192)]
    return float(np.sqrt(float(((torch.cat(parts) - y) ** 2).mean())))
