"""One training job from its sources to an ensemble with its card.

What could fail is refused before anything is read or written, and a folder becomes the job's when
the first epoch begins.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from os import PathLike
from typing import Any

import torch

from smgrid import __version__
from smgrid.features.layout import FeatureLayout
from smgrid.models.bundle import load_ensemble, save_ensemble
from smgrid.models.densesm import DenseSM
from smgrid.models.devices import check_device
from smgrid.models.ensemble import Ensemble
from smgrid.training.batches import Source
from smgrid.training.checks import (
    check_card,
    check_plan,
    check_samples,
    check_source,
)
from smgrid.training.facts import (
    describe_source,
    draw_samples,
    input_statistics,
    score_members,
)
from smgrid.training.loop import Domains, EpochEnd, Job, OnEpoch
from smgrid.training.losses import automatic_beta, domain_loss, label_loss
from smgrid.training.plan import MSDA, FitPlan
from smgrid.training.run_folder import RunFolder
from smgrid.training.table import Samples
from smgrid.training.uncertainty import with_uncertainty


@dataclass(frozen=True)
class Options:
    """Where and how a job runs, and what is told of it."""

    out: str | PathLike[str] | None
    device: str
    on_epoch: OnEpoch | None
    card: Mapping[str, Any] | None
    test: Samples | None


def run_job(
    networks: Mapping[str, DenseSM],
    domains: Domains,
    validation: Samples,
    *,
    start: Ensemble | None,
    layout: FeatureLayout,
    plan: FitPlan,
    msda: MSDA | None,
    options: Options,
) -> Ensemble:
    """Train networks by name, which are left as they are, and say in a card how that was done.

    Raises
    ------
    ConfigError
        As `smgrid.fit`.
    """
    learned = "training" if start is None else "fine"
    parts = {learned if name == "fine" else name: s for name, s in domains.parts().items()}
    sources: dict[str, Source] = {**parts, "validation": validation}
    if options.test is not None:
        sources["test"] = options.test
    _check(sources, sources[learned], layout=layout, plan=plan, options=options)
    drawn = {name: draw_samples(source) for name, source in sources.items()}
    for name, samples in drawn.items():
        check_samples(name, samples, layout=layout, plan=plan)
    facts: dict[str, Any] = {
        "method": _METHODS[(start is not None, msda is not None)],
        "plan": asdict(plan),
        "adaptation": None if msda is None else asdict(msda),
        "started_from": None if start is None else start.digest,
        "samples": {name: describe_source(source, drawn[name]) for name, source in sources.items()},
        "smgrid_version": __version__,
        "torch_version": torch.__version__,
        "device": options.device,
    }
    identity = {**facts, "layout": layout.digest, "members": list(networks)}
    facts["inputs"] = input_statistics(drawn[learned], layout)
    check_card({**_given_card(start, options), "training": facts})

    folder = None if options.out is None else RunFolder(options.out, identity)
    if folder is not None and folder.ensemble.exists():
        return _finished(folder)
    job = Job(
        list(networks.values()),
        domains,
        validation,
        plan=plan,
        msda=msda,
        betas=_betas(networks, drawn[learned], drawn.get("unlabelled"), plan=plan, msda=msda),
        device=options.device,
        drawn=drawn[learned],
    )

    def train() -> Ensemble:
        trained = _run(job, folder, options.on_epoch)
        ensemble = Ensemble(tuple(zip(networks, trained, strict=True)), layout)
        labelled = {name: drawn[name] for name in (learned, "validation", "test") if name in drawn}
        ensemble, notes = with_uncertainty(ensemble, labelled, learned=learned)
        found = facts | _result(job, ensemble, labelled) | notes
        return replace(ensemble, card={**_given_card(start, options), "training": found})

    if folder is None:
        return train()
    with folder.claimed():
        if not folder.ensemble.exists():  # nor made by another process before it was claimed
            save_ensemble(train(), folder.ensemble)
        return _finished(folder)


def _finished(folder: RunFolder) -> Ensemble:
    folder.finish()
    return load_ensemble(folder.ensemble)


def _given_card(start: Ensemble | None, options: Options) -> dict[str, Any]:
    before = {} if start is None else {"before": start.card}
    return {**before, **(options.card or {})}


_METHODS = {
    (False, False): "supervised, from random weights",
    (True, False): "fine-tuned",
    (True, True): "multi-scale domain adaptation",
}


def _check(
    sources: Mapping[str, Source],
    learned: Source,
    *,
    layout: FeatureLayout,
    plan: FitPlan,
    options: Options,
) -> None:
    """Refuse what would fail later, before anything is read."""
    check_device(options.device)
    check_plan(plan, learned)
    for name, source in sources.items():
        check_source(name, source, layout=layout)


def _run(job: Job, folder: RunFolder | None, on_epoch: OnEpoch | None) -> list[DenseSM]:
    if folder is None:
        job.run(on_epoch=on_epoch)
        return job.networks()
    folder.resume(job.state)

    def note(end: EpochEnd) -> None:
        folder.note(end)
        if on_epoch is not None:
            on_epoch(end)

    job.run(on_epoch=note, save=folder.save)
    return job.networks()


def _betas(
    networks: Mapping[str, DenseSM],
    fine: Samples,
    unlabelled: Samples | None,
    *,
    plan: FitPlan,
    msda: MSDA | None,
) -> list[float] | None:
    """Return the weight of the domain term for each member; ``None`` without the term."""
    if msda is None or unlabelled is None or msda.beta == 0:
        return None
    if msda.beta != "auto":
        return [float(msda.beta)] * len(networks)
    return [
        automatic_beta(
            network,
            fine,
            unlabelled,
            alpha=msda.alpha,
            label_loss=label_loss(plan.label_loss, floor=plan.label_floor),
            domain_loss=domain_loss(msda.domain_loss),
            seed=plan.seed,
        )
        for network in networks.values()
    ]


def _result(job: Job, ensemble: Ensemble, labelled: Mapping[str, Samples]) -> dict[str, Any]:
    """Return how well each member does on the validation, and their mean on every table."""
    scores = score_members(ensemble, labelled)
    members = [
        {
            "depth": network.depth,
            "width": network.width,
            **scores["validation"][number],
            **_at_best(job, number),
            "beta": None if job.betas is None else job.betas[number],
        }
        for number, (_, network) in enumerate(ensemble.members)
    ]
    return {"members": members, "scores": {name: found[-1] for name, found in scores.items()}}


def _at_best(job: Job, number: int) -> dict[str, Any]:
    """Say which epoch a member was kept from."""
    if job.plan.keep == "last":
        ended = job.state.stopped.get(number, (job.state.epoch - 1,))
        return {"epoch": ended[0]}
    rmse, epoch, _ = job.state.best[number]
    return {"epoch": epoch, "rmse": rmse}
