"""Supervised training of a small ensemble: mean squared error, early stopping on unseen places.

Few stations seen on few dates are little to learn from, so training leans on what is known of the
problem: the newest steps of the series matter most, the series are scaled by their own spread,
and a member is the running mean of its weights. Each member sees its own draw of places, so that
the spread of the ensemble tells what the choice of places does.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from smgrid import __version__
from smgrid.errors import ConfigError
from smgrid.features.layout import FeatureLayout
from smgrid.models.densesm import ConvBlock, DenseSM
from smgrid.models.ensemble import Ensemble
from smgrid.training.samples import Samples

Places: TypeAlias = Literal["all", "drawn"]

# A series that varies less than this share of its range is not stretched further.
_LEAST_SPREAD = 1e-3


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
        Of the AdamW optimiser; the rate falls to 0 along half a cosine.
    dropout
        Share of the activations of the series branch that a training step silences.
    averaging
        Share of the past that the running mean of the weights keeps at each step
        (``torch.optim.swa_utils``); validation and the ensemble use the mean.
    places
        ``"drawn"``: each member trains on as many places as there are, drawn with replacement
        (bagging: Breiman 1996, Mach. Learn. 24:123); ``"all"``: every member on all.
    first_taps
        Factors on the taps of the random kernels of the series branch before training, oldest
        first. Edge replication lets the last tap carry the newest steps through every pooling.
    seed
        Of the initial weights, the draw of places, the order of samples and dropout; member ``i``
        uses ``seed + i``.
    """

    members: tuple[tuple[int, int], ...] = ((1, 16), (1, 32), (2, 16), (2, 32), (3, 16))
    epochs: int = 14
    patience: int = 14
    batch_size: int = 64
    learning_rate: float = 4e-3
    weight_decay: float = 0.1
    dropout: float = 0.1
    averaging: float = 0.99
    places: Places = "drawn"
    first_taps: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.1, 2.0)
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


class _ScaledSeries(nn.Module):
    """A network whose series branch is fed series of mean 0 and spread 1."""

    mean: Tensor
    spread: Tensor

    def __init__(self, network: DenseSM, x: Tensor) -> None:
        super().__init__()
        self.network = network
        _, series = network.split(x)
        self.register_buffer("mean", series.mean(dim=(0, 2)))
        self.register_buffer("spread", series.std(dim=(0, 2)).clamp(min=_LEAST_SPREAD))

    def forward(self, x: Tensor) -> Tensor:
        network = self.network
        snapshot, series = network.split(x)
        scaled = (series - self.mean[:, None]) / self.spread[:, None]
        features = network.head(snapshot, series.mean(dim=2), network.conv_block(scaled))
        return network.out(features).squeeze(1)  # type: ignore[no-any-return]

    def plain(self) -> DenseSM:
        """Return the network for series as they are, the scaling moved into its first kernels.

        Exact, since padding replicates the edges of the series.
        """
        network = deepcopy(self.network)
        first = network.conv_block.conv1
        bias: Tensor = first.bias  # type: ignore[assignment]
        with torch.no_grad():
            first.weight /= self.spread[:, None]
            bias -= first.weight.sum(dim=2) @ self.mean
        return network.eval()


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
        Sizes and rates; the defaults suit some thousand samples of some dozen stations.
    on_epoch
        Called after each pass.

    Returns
    -------
    Ensemble
        Networks in evaluation mode with a card that holds the plan and the errors. The same seed
        and samples on the same machine make the same networks.

    Raises
    ------
    ConfigError
        Fewer than two training samples, no validation sample, or another layout's columns.
    """
    plan = FitPlan() if plan is None else plan
    _check(training, validation, layout)
    members, card = [], []
    for number, (depth, width) in enumerate(plan.members):
        drawn = _drawn(training, plan, number)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed + number)
            scaled = _untrained(depth, width, drawn, plan)
            best = _fit_member(scaled, drawn, validation, plan, number, on_epoch)
        scaled.load_state_dict(best.state)
        members.append((f"m{number + 1}_{depth}_{width}", scaled.plain()))
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


def _drawn(samples: Samples, plan: FitPlan, number: int) -> Samples:
    """Take the places that a member trains on; one drawn twice counts twice."""
    if plan.places == "all":
        return samples
    unique, place = np.unique(np.stack([samples.x, samples.y]), axis=1, return_inverse=True)
    count = unique.shape[1]
    times = np.bincount(
        np.random.default_rng(plan.seed + number).integers(0, count, count), minlength=count
    )
    return samples.take(np.repeat(np.arange(len(samples)), times[place.ravel()]))


def _untrained(depth: int, width: int, samples: Samples, plan: FitPlan) -> _ScaledSeries:
    """Random weights that look at the newest steps, and predict the mean label at first."""
    network = DenseSM(depth, width)
    branch: ConvBlock = network.conv_block
    branch.dropout.p = plan.dropout
    with torch.no_grad():
        for convolution in (branch.conv1, branch.conv2, branch.conv3):
            convolution.weight *= torch.tensor(plan.first_taps)
        network.out.bias.fill_(float(samples.label.mean()))
    return _ScaledSeries(network, torch.from_numpy(samples.features))


def _fit_member(
    network: _ScaledSeries,
    training: Samples,
    validation: Samples,
    plan: FitPlan,
    number: int,
    on_epoch: Callable[[EpochEnd], None] | None,
) -> _Best:
    x, y = torch.from_numpy(training.features), torch.from_numpy(training.label)
    vx, vy = torch.from_numpy(validation.features), torch.from_numpy(validation.label)
    averaged = AveragedModel(
        network, multi_avg_fn=get_ema_multi_avg_fn(plan.averaging), use_buffers=True
    )
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, plan.epochs)
    best = _Best()
    for epoch in range(plan.epochs):
        loss = _one_pass(network, x, y, optimiser, averaged, plan.batch_size)
        schedule.step()
        rmse = _rmse(averaged, vx, vy)
        if on_epoch is not None:
            on_epoch(EpochEnd(number, epoch, loss, rmse))
        if rmse < best.rmse:
            best = _Best(rmse, epoch, deepcopy(averaged.module.state_dict()))
        elif epoch - best.epoch >= plan.patience:
            break
    return best


def _one_pass(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    optimiser: torch.optim.Optimizer,
    averaged: AveragedModel,
    batch_size: int,
) -> float:
    network.train()
    total = 0.0
    for rows in _batches(len(y), batch_size):
        optimiser.zero_grad()
        loss = nn.functional.mse_loss(network(x[rows]), y[rows])
        loss.backward()
        optimiser.step()
        averaged.update_parameters(network)
        total += float(loss.detach()) * len(rows)
    return total / len(y)


def _batches(count: int, size: int) -> Iterator[Tensor]:
    """Random batches; a single left-over row joins none, batch norm cannot train on it."""
    order = torch.randperm(count)
    for rows in order.split(size):
        if len(rows) > 1:
            yield rows


def _rmse(network: nn.Module, x: Tensor, y: Tensor) -> float:
    network.eval()
    with torch.inference_mode():
        parts = [network(rows) for rows in x.split(8192)]
    return float(np.sqrt(float(((torch.cat(parts) - y) ** 2).mean())))
