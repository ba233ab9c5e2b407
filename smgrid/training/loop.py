"""The loop over epochs: steps, running means of the weights, validation, early stopping.

All members of an ensemble are trained as one job with one pass over the data. Everything that is
drawn follows from the seed and the numbers of epoch, step and member, so that a job which goes on
from what it saved ends with the weights of one that was never interrupted.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from smgrid.errors import ConfigError
from smgrid.metrics import Scores, score_arrays
from smgrid.models.densesm import DenseSM
from smgrid.training.batches import Batch, Source, Step, epoch_steps
from smgrid.training.branch import steps_first
from smgrid.training.plan import MSDA, FitPlan
from smgrid.training.preparation import (
    draw_places,
    find_scaling,
    for_plain_series,
    make_optimiser,
)
from smgrid.training.stack import MemberStack, stack_by_width
from smgrid.training.step import Objective, Part, make_part, places_weight, take_step
from smgrid.training.table import Samples

# Rows of the validation samples that go through the members at once.
_ROWS = 2048


@dataclass(frozen=True)
class Domains:
    """What a job learns from."""

    fine: Source
    """With labels."""
    unlabelled: Source | None = None
    coarse: Source | None = None
    """With labels."""

    def parts(self) -> dict[str, Source]:
        """Return those that are there by name."""
        named = {"fine": self.fine, "unlabelled": self.unlabelled, "coarse": self.coarse}
        return {name: source for name, source in named.items() if source is not None}


@dataclass(frozen=True)
class EpochEnd:
    """Progress of a training job, told to a callback and kept in its history.

    Attributes
    ----------
    epoch
        Number of the pass, from 0.
    epochs
        Passes at most.
    loss
        Mean over steps and members of each term of the loss by name.
    members
        Of each member its loss terms and its scores on the validation samples.
    """

    epoch: int
    epochs: int
    loss: Mapping[str, float]
    members: tuple[Mapping[str, float], ...]

    @property
    def ubrmse(self) -> float:
        """Mean over the members of the unbiased error on the validation samples, m3 m-3."""
        return float(np.mean([member["ubrmse"] for member in self.members]))


OnEpoch: TypeAlias = Callable[[EpochEnd], None]


@dataclass
class State:
    """Everything that the next epoch depends on."""

    stacks: list[MemberStack]
    averages: list[MemberStack]
    """What the ensemble and validation use; the stacks themselves if nothing is averaged."""
    optimisers: list[torch.optim.Optimizer]
    epoch: int = 0
    """The next one."""
    averaged: int = 0
    """How many weights went into the running means."""
    best: dict[int, Any] = field(default_factory=dict)
    """Validation RMSE, epoch and weights of each member at its best, by its number."""
    stopped: dict[int, Any] = field(default_factory=dict)
    """Epoch at which the patience with a member ended, its weights and what was told of it."""

    def to_dict(self) -> dict[str, Any]:
        """Return what is saved."""
        same = self.averages is self.stacks
        return {
            "stacks": [stack.state_dict() for stack in self.stacks],
            "averages": None if same else [stack.state_dict() for stack in self.averages],
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "epoch": self.epoch,
            "averaged": self.averaged,
            "best": self.best,
            "stopped": self.stopped,
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        """Take over what was saved."""
        for name in ("stacks", "averages", "optimisers"):
            for part, state in zip(getattr(self, name), saved[name] or (), strict=False):
                part.load_state_dict(state)
        self.epoch, self.averaged = saved["epoch"], saved["averaged"]
        self.best, self.stopped = saved["best"], saved["stopped"]


class Job:
    """Members of an ensemble in training, all of them or some by their numbers.

    ``drawn`` are samples that the fine ones are known by, if these are a stream.
    """

    def __init__(
        self,
        networks: Sequence[DenseSM],
        domains: Domains,
        validation: Samples,
        *,
        plan: FitPlan,
        msda: MSDA | None = None,
        betas: Sequence[float] | None = None,
        numbers: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
        drawn: Samples | None = None,
    ) -> None:
        self.plan, self.msda = plan, msda
        self.device = torch.device(device)
        # Tables are moved once, streams batch by batch.
        moved = {
            name: source.to(self.device) if isinstance(source, Samples) else source
            for name, source in domains.parts().items()
        }
        self.domains, self.validation = Domains(**moved), validation.to(self.device)
        self.numbers = list(range(len(networks)) if numbers is None else numbers)
        self.betas = None if betas is None else dict(zip(self.numbers, betas, strict=True))
        self.scaling = find_scaling(domains.fine, networks[0].n_series, plan, drawn).to(self.device)
        stacks = [stack.to(self.device) for stack in stack_by_width(networks, numbers=self.numbers)]
        for branch in (branch for stack in stacks for branch in stack.branches):
            branch.dropout.p = plan.dropout  # type: ignore[union-attr]
        averages = stacks if plan.average == "none" else copy.deepcopy(stacks)
        self.state = State(stacks, averages, [make_optimiser(stack, plan) for stack in stacks])
        self.drawn = [draw_places(self.domains.fine, plan, stack.numbers) for stack in stacks]
        self.cached = self._run_frozen_branches()

    def run(
        self,
        *,
        on_epoch: OnEpoch | None = None,
        save: Callable[[State], None] | None = None,
    ) -> None:
        """Train until the plan ends it; ``save`` is called with the state after each epoch."""
        state = self.state
        with _precision(self.plan):
            while state.epoch < self.plan.epochs and not self._is_over():
                end = self._one_epoch(state.epoch)
                state.epoch += 1
                if on_epoch is not None:
                    on_epoch(end)
                if save is not None:
                    save(state)

    def networks(self) -> list[DenseSM]:
        """Return the members as the plan keeps them, for series as they are."""
        found: dict[int, DenseSM] = {}
        for stack in self.state.averages:
            given = [number for number in self.numbers if number in stack.numbers]
            for number, network in zip(given, stack.networks(), strict=True):
                if self.plan.keep == "best" and number in self.state.best:
                    network.load_state_dict(self.state.best[number][2])
                elif number in self.state.stopped:
                    network.load_state_dict(self.state.stopped[number][1])
                found[number] = for_plain_series(network, self.scaling)
        return [found[number] for number in self.numbers]

    def _is_over(self) -> bool:
        """Whether no member has become better for as long as the plan waits."""
        return len(self.state.stopped) == len(self.numbers)

    def _one_epoch(self, epoch: int) -> EpochEnd:
        self._set_learning_rate(epoch)
        sums: dict[int, Any] = {}
        count = 0
        msda = self.msda or MSDA()
        for number, step in enumerate(
            epoch_steps(
                self.domains.fine,
                unlabelled=self.domains.unlabelled,
                coarse=self.domains.coarse,
                batch_size=self.plan.batch_size,
                ratio=msda.ratio,
                seed=self.plan.seed,
                epoch=epoch,
            )
        ):
            for member, terms in self._one_step(step, (self.plan.seed, epoch, number)).items():
                sums[member] = sums.get(member, 0) + terms
            count += 1
        if not count:
            raise ConfigError("there is no batch of at least 2 samples with labels; add labels")
        if self.plan.average == "epochs":
            self._fold_epoch(epoch)
        return self._end(epoch, {member: terms / count for member, terms in sums.items()})

    def _one_step(self, step: Step, seed: tuple[int, int, int]) -> dict[int, Tensor]:
        step = Step(*(None if b is None else self._on_device(b) for b in step))  # type: ignore[arg-type]
        frozen = self.plan.frozen == "series"
        shared = {
            name: make_part(batch.samples, self.scaling, with_series=not frozen)
            for name, batch in step._asdict().items()
            if batch is not None
        }
        found: dict[int, Tensor] = {}
        for place, (stack, optimiser) in enumerate(
            zip(self.state.stacks, self.state.optimisers, strict=True)
        ):
            parts = self._with_features(place, step, shared) if frozen else shared
            optimiser.zero_grad(set_to_none=True)
            terms = take_step(
                stack,
                step,
                parts,
                Objective(self.plan, self.msda, self._beta(stack)),
                weight=places_weight(step.fine, self.drawn[place]),
                seed=seed,
            )
            optimiser.step()
            if self.plan.average == "exponential":
                self._fold(place, _share(self.state.averaged, self.plan.averaging))
            rows = torch.stack([getattr(terms, name) for name in self._terms()], dim=1)
            found |= dict(zip(stack.numbers, rows.cpu(), strict=True))
        self.state.averaged += self.plan.average == "exponential"
        return found

    def _on_device(self, batch: Batch) -> Batch:
        samples = batch.samples
        if batch.rows is None and self.device.type != "cpu":
            samples = samples.compact()  # a batch of a stream holds the series of its whole buffer
        return Batch(samples.to(self.device), batch.rows)

    def _run_frozen_branches(self) -> list[dict[str, Tensor]]:
        """Run the series of tables through branches that stay as they are: (members, 12, m)."""
        if self.plan.frozen != "series":
            return []
        return [
            {
                name: self._features(stack, source.series)
                for name, source in self.domains.parts().items()
                if isinstance(source, Samples)
            }
            for stack in self.state.stacks
        ]

    def _features(self, stack: MemberStack, series: Tensor) -> Tensor:
        scaled = (series - self.scaling.mean[:, None]) / self.scaling.spread[:, None]
        with torch.no_grad():
            parts = [
                stack.series_features(steps_first(rows.to(self.device)))
                for rows in scaled.split(_ROWS)
            ]
        return torch.cat(parts, dim=2)

    def _with_features(self, place: int, step: Step, shared: Mapping[str, Part]) -> dict[str, Part]:
        stack, known = self.state.stacks[place], self.cached[place]
        parts = {}
        for name, batch in step._asdict().items():
            if batch is None:
                continue
            samples = batch.samples
            features = known.get(name)
            if features is None:
                samples = samples.compact()
                features = self._features(stack, samples.series)
            index = samples.series_index.to(features.device)
            parts[name] = shared[name]._replace(features=features[:, :, index])
        return parts

    def _beta(self, stack: MemberStack) -> Tensor | None:
        if self.betas is None:
            return None
        return torch.tensor([self.betas[number] for number in stack.numbers], device=self.device)

    def _set_learning_rate(self, epoch: int) -> None:
        rate = self.plan.learning_rate
        if self.plan.schedule == "cosine":
            rate *= (1 + math.cos(math.pi * epoch / self.plan.epochs)) / 2
        for optimiser in self.state.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate

    def _fold_epoch(self, epoch: int) -> None:
        """Take the weights at the end of an epoch into their plain mean."""
        first = epoch <= self.plan.average_from
        self.state.averaged = 1 if first else self.state.averaged + 1
        for place in range(len(self.state.stacks)):
            self._fold(place, 1 / self.state.averaged)

    @torch.no_grad()
    def _fold(self, place: int, share: float) -> None:
        """Move the running mean of weights and statistics towards the present ones."""
        mean, now = self.state.averages[place], self.state.stacks[place]
        pairs = [
            *zip(mean.parameters(), now.parameters(), strict=True),
            *zip(mean.buffers(), now.buffers(), strict=True),
        ]
        floating = [(m, n) for m, n in pairs if m.is_floating_point()]
        torch._foreach_lerp_([m for m, _ in floating], [n for _, n in floating], share)
        for m, n in pairs:
            if not m.is_floating_point():  # counters of batches
                m.copy_(n)

    def _end(self, epoch: int, terms: Mapping[int, Tensor]) -> EpochEnd:
        """Validate the members, note the best of each, and say how the epoch went.

        A member that was stopped is told as it was then: what it goes on to learn beside the
        others is not its own any more.
        """
        names, stopped = self._terms(), self.state.stopped
        members = {number: dict(stopped[number][2]) for number in stopped}
        going = [number for number in self.numbers if number not in stopped]
        for number in going:
            members[number] = dict(zip(names, terms[number].tolist(), strict=True))
        self._refuse_divergence(epoch, {k: members[k]["total"] for k in going})
        for number, found in self._validate(epoch, going).items():
            members[number] |= {k: v for k, v in vars(found).items() if k != "n"}
            self._judge(number, epoch, members[number])
        loss = {name: float(np.mean([m[name] for m in members.values()])) for name in names}
        ordered = tuple(members[number] for number in self.numbers)
        return EpochEnd(epoch, self.plan.epochs, loss, ordered)

    def _terms(self) -> list[str]:
        """Name the terms that the loss of this job has."""
        domain = ["domain"] if self.betas is not None else []
        coarse = ["coarse"] if self.msda and self.domains.coarse is not None else []
        return ["fine", *coarse, *domain, "total"]

    def _refuse_divergence(self, epoch: int, values: Mapping[int, float]) -> None:
        lost = {number: value for number, value in values.items() if not math.isfinite(value)}
        if lost:
            number, value = next(iter(lost.items()))
            raise ConfigError(
                f"training diverged in epoch {epoch}: what {len(lost)} of {len(self.numbers)} "
                f"members learn or predict is not finite (member {number + 1}: {value}). Lower "
                "learning_rate in the plan, or give 'mape' a label_floor such as 0.01"
            )

    def _judge(self, number: int, epoch: int, entry: Mapping[str, float]) -> None:
        """Note the best of a member, and when it has not become better for long enough."""
        state, rmse, patience = self.state, entry["rmse"], self.plan.patience
        if number not in state.best or rmse < state.best[number][0]:
            state.best[number] = (rmse, epoch, self._weights_of(number))
        elif patience is not None and epoch - state.best[number][1] >= patience:
            state.stopped[number] = (epoch, self._weights_of(number), dict(entry))

    def _weights_of(self, number: int) -> dict[str, Tensor]:
        stack = next(s for s in self.state.averages if number in s.numbers)
        return stack.state_of(number)

    @torch.no_grad()
    def _validate(self, epoch: int, going: Sequence[int]) -> dict[int, Scores]:
        found: dict[int, Scores] = {}
        label = self.validation.label.cpu().numpy()
        for stack in self.state.averages:
            predictions = []
            for samples in self.validation.split(_ROWS):
                part = make_part(samples, self.scaling, with_series=True)
                features = stack.series_features(part.series)
                predictions.append(stack(part.inputs, features).prediction.cpu())
            whole = torch.cat(predictions, dim=1).numpy()
            own = {n: row for n, row in zip(stack.numbers, whole, strict=True) if n in going}
            self._refuse_divergence(epoch, {n: float(row.sum()) for n, row in own.items()})
            found |= {n: score_arrays(row, label) for n, row in own.items()}
        return found


def _share(averaged: int, averaging: float) -> float:
    """Return the weight of a step in the running mean of those before it.

    In the beginning the mean forgets faster, so that a short job does not keep its random start.
    """
    return max(1 - averaging, 9 / (10 + averaged)) if averaged else 1.0


@contextmanager
def _precision(plan: FitPlan) -> Iterator[None]:
    """Allow TF32 for a while, in products and in convolutions, or forbid it."""
    switches: tuple[Any, Any] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = plan.precision == "tf32"
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value
