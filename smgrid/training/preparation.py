"""What a training job has before its first step, and what its members are rid of after the last."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from smgrid.models.densesm import DenseSM
from smgrid.training.batches import Source
from smgrid.training.checks import require_table
from smgrid.training.facts import draw_samples
from smgrid.training.places import list_facts, place_key
from smgrid.training.plan import FitPlan
from smgrid.training.stack import MemberStack
from smgrid.training.step import Scaling
from smgrid.training.table import Samples


def make_optimiser(stack: MemberStack, plan: FitPlan) -> torch.optim.Optimizer:
    """Make the optimiser of the weights that a plan lets learn."""
    kind = torch.optim.Adam if plan.optimiser == "adam" else torch.optim.AdamW
    wanted = stack.parameters()
    if plan.frozen == "series":
        wanted = (p for name, p in stack.named_parameters() if not name.startswith("branches."))
    return kind(wanted, lr=plan.learning_rate, weight_decay=plan.weight_decay)


def find_scaling(fine: Source, n_series: int, plan: FitPlan, drawn: Samples | None) -> Scaling:
    """Return what series are scaled by; ``drawn`` are samples that a stream is known by."""
    if plan.series == "plain":
        return Scaling.none(n_series)
    return Scaling.of(drawn if drawn is not None else draw_samples(fine))


def draw_places(fine: Source, plan: FitPlan, numbers: Sequence[int]) -> Tensor | None:
    """(members, n): how often each member draws the place of each sample."""
    if plan.places == "all":
        return None
    table = require_table(fine, "places='drawn'")
    place = place_key(list_facts(table))
    useful = np.unique(place[table.weight.cpu().numpy() > 0])  # a draw of others teaches nothing
    times = np.zeros((len(numbers), int(place.max()) + 1), np.float32)
    for row, number in zip(times, numbers, strict=True):
        rng = np.random.default_rng([plan.seed, number])
        np.add.at(row, rng.choice(useful, len(useful)), 1)
    return torch.from_numpy(times[:, place]).to(table.label.device)


def for_plain_series(network: DenseSM, scaling: Scaling) -> DenseSM:
    """Move the scaling of the series into the first kernels of a network.

    Exact, since padding replicates the edges of the series.
    """
    if network.n_series:
        first, _ = network.conv_block.layers[0]
        bias: Tensor = first.bias  # type: ignore[assignment]
        mean, spread = (value.to(first.weight) for value in scaling)
        with torch.no_grad():
            first.weight /= spread[:, None]
            bias -= first.weight.sum(dim=2) @ mean
    return network.eval()
