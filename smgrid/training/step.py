"""One step of training: a batch of each domain goes through a stack, forward and back."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from smgrid.training.batches import Batch, Step
from smgrid.training.branch import Statistics, steps_first
from smgrid.training.losses import (
    LossTerms,
    domain_loss,
    label_loss,
    three_loader_loss,
    two_loader_loss,
)
from smgrid.training.plan import MSDA, FitPlan
from smgrid.training.stack import MemberStack, Outputs
from smgrid.training.table import Samples

# A series that varies less than this share of its range is not stretched further.
_LEAST_SPREAD = 1e-3


class Scaling(NamedTuple):
    """Mean and spread of each series that a branch is fed without: (series,)."""

    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, samples: Samples) -> "Scaling":
        """Return those of the samples' series, each as often as it is used."""
        count = torch.bincount(samples.series_index, minlength=len(samples.series))
        weight = (count / count.sum()).to(torch.float64)
        series = samples.series.to(torch.float64)
        mean = torch.einsum("m,mst->s", weight, series) / series.shape[2]
        square = (series - mean[:, None]).square()
        variance = torch.einsum("m,mst->s", weight, square) / series.shape[2]
        return cls(mean.float(), variance.sqrt().clamp(min=_LEAST_SPREAD).float())

    def to(self, device: torch.device) -> "Scaling":
        """Return the scaling with its tensors on a device."""
        return Scaling(self.mean.to(device), self.spread.to(device))

    @classmethod
    def none(cls, n_series: int) -> "Scaling":
        """Return the scaling that changes nothing."""
        return cls(torch.zeros(n_series), torch.ones(n_series))


class Part(NamedTuple):
    """The rows of one domain in a step, rows innermost."""

    inputs: Tensor
    """(snapshot columns + series, n)."""
    series: Tensor
    """(steps + 4, series, n) scaled."""
    features: Tensor | None
    """(members, 12, n) of the series branch, where it is frozen."""


@dataclass(frozen=True)
class Objective:
    """What is made small, and how."""

    plan: FitPlan
    msda: MSDA | None
    beta: Tensor | None
    """(members,) weights of the domain term, in the order of the stack; ``None`` without it."""


def make_part(samples: Samples, scaling: Scaling, *, with_series: bool) -> Part:
    """Arrange the rows of a batch; ``with_series`` false leaves out what a frozen branch does."""
    series = samples.series[samples.series_index]
    inputs = torch.cat([samples.snapshot.t(), series.mean(dim=2).t()])
    if not with_series:
        return Part(inputs, series[:0], None)
    scaled = (series - scaling.mean[:, None]) / scaling.spread[:, None]
    return Part(inputs, steps_first(scaled), None)


def take_step(
    stack: MemberStack,
    step: Step,
    parts: Mapping[str, Part],
    objective: Objective,
    *,
    weight: Tensor,
    seed: tuple[int, ...],
) -> LossTerms:
    """Compute the loss of every member and add up the gradients.

    Parameters
    ----------
    stack
        Members.
    step
        Samples of each domain.
    parts
        The same, arranged, by the names of the step's fields and in their order.
    objective
        Losses.
    weight
        (n,) or (members, n) of the fine samples.
    seed
        Of dropout.

    Returns
    -------
    LossTerms
        Each (members,), without gradients.
    """
    outputs = _forward(stack, parts, objective, seed)
    terms = _terms(step, outputs, objective, weight)
    terms.total.sum().backward()
    return LossTerms(*(None if term is None else term.detach() for term in terms))  # type: ignore[arg-type]


def _terms(
    step: Step, outputs: Mapping[str, Outputs], objective: Objective, weight: Tensor
) -> LossTerms:
    plan, msda = objective.plan, objective.msda
    of_label = label_loss(plan.label_loss, floor=plan.label_floor)
    near = outputs["fine"]
    fine = of_label(near.prediction, step.fine.samples.label, weight)
    domain = torch.zeros_like(fine)
    if msda is None:
        return LossTerms(fine, None, domain, fine)
    beta = domain
    if objective.beta is not None:
        beta = objective.beta
        gap = domain_loss(msda.domain_loss)
        domain = gap(near.features, outputs["unlabelled"].features)
    if step.coarse is None:
        return two_loader_loss(fine, domain=domain, alpha=msda.alpha, beta=beta)
    far = step.coarse.samples
    coarse = of_label(outputs["coarse"].prediction, far.label, far.weight)
    return three_loader_loss(fine, coarse, domain=domain, alpha=msda.alpha, beta=beta)


def _forward(
    stack: MemberStack,
    parts: Mapping[str, Part],
    objective: Objective,
    seed: tuple[int, ...],
) -> dict[str, Outputs]:
    """Run the domains through the stack, together or one by one."""
    plan, msda = objective.plan, objective.msda
    if msda is not None and msda.batch_norm in ("separate", "target"):
        # What is predicted later are fine samples: the coarse domain is a guest.
        remembered = {"fine", "unlabelled"} & set(parts)
        if msda.batch_norm == "target" and "unlabelled" in parts:
            remembered = {"unlabelled"}
        outputs = {}
        for number, (name, part) in enumerate(parts.items()):
            statistics: Statistics = "update" if name in remembered else "batch"
            outputs[name] = _run(stack, part, plan, statistics, (*seed, number))
        return outputs
    frozen = msda is not None and msda.batch_norm == "frozen"
    whole = _run(stack, _together([*parts.values()]), plan, "running" if frozen else "update", seed)
    sizes = [part.inputs.shape[1] for part in parts.values()]
    predictions = whole.prediction.split(sizes, dim=1)
    features = whole.features.split(sizes, dim=1)
    return {n: Outputs(p, f) for n, p, f in zip(parts, predictions, features, strict=True)}


def _together(parts: Sequence[Part]) -> Part:
    if len(parts) == 1:
        return parts[0]
    features = [part.features for part in parts if part.features is not None]
    return Part(
        torch.cat([part.inputs for part in parts], dim=1),
        parts[0].series if features else torch.cat([part.series for part in parts], dim=2),
        torch.cat(features, dim=2) if features else None,
    )


def _run(
    stack: MemberStack, part: Part, plan: FitPlan, statistics: Statistics, seed: tuple[int, ...]
) -> Outputs:
    features = part.features
    if features is None:
        masks = stack.draw_masks(part.inputs.shape[1], seed=seed)
        features = stack.series_features(part.series, masks=masks, statistics=statistics)
    with _autocast(part.inputs.device, plan):
        outputs = stack(part.inputs, features, statistics=statistics)
    return Outputs(outputs.prediction.float(), outputs.features.float())


def _autocast(device: torch.device, plan: FitPlan) -> AbstractContextManager[object]:
    if plan.precision != "bfloat16":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def places_weight(batch: Batch, drawn: Tensor | None) -> Tensor:
    """Return the weights of a batch: (n,), or (members, n) where members drew their places."""
    weight = batch.samples.weight
    if drawn is None or batch.rows is None:
        return weight
    return weight * drawn[:, batch.rows.to(drawn.device)]
