"""Training as plain functions: from random weights, on coarse labels, and adapted to fine scale.

Each takes samples and a frozen plan and returns an ensemble whose card says what it was made from.
With a folder the job can be interrupted at any moment: the same call goes on where it was.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch

from smgrid import __version__
from smgrid.errors import ConfigError
from smgrid.features.layout import FeatureLayout
from smgrid.metrics import score_arrays
from smgrid.models.bundle import load_ensemble, save_ensemble
from smgrid.models.densesm import ConvBlock, DenseSM
from smgrid.models.ensemble import Ensemble
from smgrid.training.batches import Source
from smgrid.training.facts import describe_source, input_statistics
from smgrid.training.loop import Domains, EpochEnd, Job
from smgrid.training.losses import automatic_beta, domain_loss, label_loss
from smgrid.training.plan import (
    ADAPTATION,
    MSDA,
    PRETRAINING,
    PUBLISHED_SIZES,
    SMALL_SIZES,
    FitPlan,
    Sizes,
)
from smgrid.training.run_folder import RunFolder
from smgrid.training.samples import SampleStream
from smgrid.training.table import Samples

_ROWS = 8192  # that go through a network at once
_BETA_SAMPLES = 16_384  # of a stream from which the weight of the domain term is found

OnEpoch = Callable[[EpochEnd], None]


def fit(
    training: Source,
    validation: Samples,
    *,
    layout: FeatureLayout,
    sizes: Sizes = SMALL_SIZES,
    plan: FitPlan | None = None,
    out: str | PathLike[str] | None = None,
    device: str = "cpu",
    on_epoch: OnEpoch | None = None,
    card: Mapping[str, Any] | None = None,
) -> Ensemble:
    """Train an ensemble from random weights.

    Parameters
    ----------
    training
        Samples with labels, or a stream of them.
    validation
        Samples that decide when a member stops (or only watch, see the plan). Keep their places
        apart from those of the training and of the test, see `split_samples`.
    layout
        The layout that the samples were made with.
    sizes
        Depth and width of each member.
    plan
        Rates and rules; the defaults suit some thousand samples of some dozen stations.
    out
        Folder in which the job can go on after an interruption, with its history and, at the end,
        the ensemble. A job that is finished there is not run again.
    device
        ``"cpu"`` or ``"cuda"``.
    on_epoch
        Called after each pass.
    card
        What else the card of the ensemble should say, JSON-ready: data sources, the report of the
        split, scores on the test.

    Returns
    -------
    Ensemble
        Networks in evaluation mode with a card that holds the plan and the errors. The same seed
        and samples on the same machine make the same networks.

    Raises
    ------
    ConfigError
        Fewer than two training samples, no validation sample, another layout's columns, or a folder
        of another job.
    """
    plan = FitPlan() if plan is None else plan
    _check({"training": training, "validation": validation}, layout)
    networks = {
        f"m{k + 1}_{size[0]}_{size[1]}": _untrained(size, plan, k, training, layout)
        for k, size in enumerate(sizes)
    }
    return _train(
        networks,
        Domains(training),
        validation,
        start=None,
        layout=layout,
        plan=plan,
        msda=None,
        options=_Options(out, device, on_epoch, card),
    )


def pretrain(
    coarse: Source,
    validation: Samples,
    *,
    layout: FeatureLayout,
    sizes: Sizes = PUBLISHED_SIZES,
    plan: FitPlan = PRETRAINING,
    out: str | PathLike[str] | None = None,
    device: str = "cpu",
    on_epoch: OnEpoch | None = None,
    card: Mapping[str, Any] | None = None,
) -> Ensemble:
    """Train the published ensemble on coarse labels, as `fit` with its sizes and plan.

    Parameters
    ----------
    coarse
        Samples of coarse cells with their labels (SMAP), usually a stream.
    validation, layout, sizes, plan, out, device, on_epoch, card
        As for `fit`.
    """
    return fit(
        coarse,
        validation,
        layout=layout,
        sizes=sizes,
        plan=plan,
        out=out,
        device=device,
        on_epoch=on_epoch,
        card=card,
    )


def finetune(
    ensemble: Ensemble,
    fine: Source,
    *,
    validation: Samples,
    unlabelled: Source | None = None,
    coarse: Source | None = None,
    plan: FitPlan = ADAPTATION,
    msda: MSDA | None = None,
    out: str | PathLike[str] | None = None,
    device: str = "cpu",
    on_epoch: OnEpoch | None = None,
    card: Mapping[str, Any] | None = None,
) -> Ensemble:
    """Adapt an ensemble to another scale or region.

    With unlabelled samples this is multi-scale domain adaptation (Zhu et al. 2025, J. Hydrol.
    657:133073): the labels of the fine scale, and those of the coarse one if they are given, are
    learned while the features of labelled and unlabelled samples are drawn together. Without both
    it is plain fine-tuning.

    Parameters
    ----------
    ensemble
        Where to start from; its layout is that of all samples.
    fine
        The labelled samples of the fine scale; an epoch is one pass over them.
    validation
        As for `fit`: neither training nor test.
    unlabelled
        Samples of the fine scale where the ensemble is to be used; their labels are not looked at.
        Samples that a test uses may be among them (transductive adaptation) if that is reported.
    coarse
        Labelled samples of the coarse scale.
    plan
        Rates and rules.
    msda
        How the domains are joined; default: `MSDA` where there are other domains.
    out, device, on_epoch, card
        As for `fit`.

    Raises
    ------
    ConfigError
        As for `fit`; also if ``msda`` is given without other samples, or needs what is missing.
    """
    domains = Domains(fine, unlabelled, coarse)
    others = {name: source for name, source in domains.parts().items() if name != "fine"}
    if msda is not None and not others:
        raise ConfigError(
            "domain adaptation needs unlabelled or coarse samples; give them, or leave msda out "
            "for plain fine-tuning"
        )
    if plan.series != "plain":
        raise ConfigError(
            "members that have learned already take series as they are: give a plan with "
            "series='plain', such as smgrid.training.plan.ADAPTATION"
        )
    msda = MSDA() if msda is None and others else msda
    _check({"fine": fine, "validation": validation, **others}, ensemble.layout)
    return _train(
        {name: copy.deepcopy(network) for name, network in ensemble.members},
        domains,
        validation,
        start=ensemble,
        layout=ensemble.layout,
        plan=plan,
        msda=msda,
        options=_Options(out, device, on_epoch, card),
    )


def _train(
    networks: Mapping[str, DenseSM],
    domains: Domains,
    validation: Samples,
    *,
    start: Ensemble | None,
    layout: FeatureLayout,
    plan: FitPlan,
    msda: MSDA | None,
    options: "_Options",
) -> Ensemble:
    facts: dict[str, Any] = {
        "method": _METHODS[(start is not None, msda is not None)],
        "plan": asdict(plan),
        "adaptation": None if msda is None else asdict(msda),
        "started_from": None if start is None else start.digest,
        "samples": {
            name: describe_source(source)
            for name, source in {**domains.parts(), "validation": validation}.items()
        },
        "smgrid_version": __version__,
        "torch_version": torch.__version__,
        "device": options.device,
    }
    identity = {**facts, "layout": layout.digest, "members": list(networks)}
    folder = None if options.out is None else RunFolder(options.out, identity)
    if folder is not None and folder.ensemble.exists():
        folder.finish()
        return load_ensemble(folder.ensemble)
    job = Job(
        list(networks.values()),
        domains,
        validation,
        plan=plan,
        msda=msda,
        betas=_betas(networks, domains, plan, msda),
        device=options.device,
    )
    _run(job, folder, options.on_epoch)
    members = tuple(zip(networks, job.networks(), strict=True))
    facts["members"] = [
        {**_scores(network, validation), **_at_best(job, number), "beta": _beta(job, number)}
        for number, (_, network) in enumerate(members)
    ]
    facts["inputs"] = input_statistics(domains.fine, layout)
    before = {} if start is None else {"before": start.card}
    card = {**before, **(options.card or {}), "training": facts}
    ensemble = Ensemble(members=members, layout=layout, card=card)
    if folder is not None:
        save_ensemble(ensemble, folder.ensemble)
        folder.finish()
    return ensemble


_METHODS = {
    (False, False): "supervised, from random weights",
    (True, False): "fine-tuned",
    (True, True): "multi-scale domain adaptation",
}


@dataclass(frozen=True)
class _Options:
    """What does not change the result."""

    out: str | PathLike[str] | None
    device: str
    on_epoch: OnEpoch | None
    card: Mapping[str, Any] | None


def _run(job: Job, folder: RunFolder | None, on_epoch: OnEpoch | None) -> None:
    if folder is None:
        job.run(on_epoch=on_epoch)
        return
    folder.resume(job.state)

    def note(end: EpochEnd) -> None:
        folder.note(end)
        if on_epoch is not None:
            on_epoch(end)

    job.run(on_epoch=note, save=folder.save)


def _betas(
    networks: Mapping[str, DenseSM], domains: Domains, plan: FitPlan, msda: MSDA | None
) -> list[float] | None:
    """Return the weight of the domain term for each member; ``None`` without the term."""
    if msda is None or domains.unlabelled is None or msda.beta == 0:
        return None
    if msda.beta != "auto":
        return [float(msda.beta)] * len(networks)
    tables = []
    for name in ("fine", "unlabelled"):
        source = domains.parts()[name]
        # Of a stream a first draw is enough: the rule averages over subsets anyway.
        tables.append(source if isinstance(source, Samples) else source.first(_BETA_SAMPLES))
    return [
        automatic_beta(
            network,
            tables[0],
            tables[1],
            alpha=msda.alpha,
            label_loss=label_loss(plan.label_loss, floor=plan.label_floor),
            domain_loss=domain_loss(msda.domain_loss),
            seed=plan.seed,
        )
        for network in networks.values()
    ]


def _check(sources: Mapping[str, Source], layout: FeatureLayout) -> None:
    for name, source in sources.items():
        least = 1 if name == "validation" else 2
        if isinstance(source, SampleStream):
            found = source.blocks.inputs.layout
            if found != layout:
                raise ConfigError(
                    f"{name} is streamed in the layout {found.name!r}, expected {layout.name!r}"
                )
            continue
        if len(source) < least:
            raise ConfigError(
                f"{name} has {len(source)} samples, expected at least {least}: add labels or "
                "split them differently"
            )
        n_columns = source.snapshot.shape[1] + source.series.shape[1] * source.series.shape[2]
        if n_columns != layout.n_columns:
            raise ConfigError(
                f"{name} samples have {n_columns} columns, the layout {layout.name!r} has "
                f"{layout.n_columns}: stream them with that layout"
            )
        if name != "unlabelled" and not bool(torch.isfinite(source.label).all()):
            missing = int((~torch.isfinite(source.label)).sum())
            raise ConfigError(
                f"{missing} of {len(source)} {name} samples have no label; leave them out, or give "
                "them as unlabelled"
            )


def _untrained(
    size: tuple[int, int], plan: FitPlan, number: int, training: Source, layout: FeatureLayout
) -> DenseSM:
    """Random weights that look at the newest steps, and predict the mean label at first."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed + number)
        network = DenseSM(
            *size,
            n_snapshot=len(layout.snapshot),
            n_series=len(layout.series),
            n_steps=layout.steps,
        )
    branch: ConvBlock = network.conv_block
    with torch.no_grad():
        for convolution in (branch.conv1, branch.conv2, branch.conv3):
            convolution.weight *= torch.tensor(plan.first_taps)
        if isinstance(training, Samples):
            network.out.bias.fill_(float(training.label.mean()))
    return network


def _scores(network: DenseSM, validation: Samples) -> dict[str, Any]:
    with torch.inference_mode():
        parts = [network(x) for x in validation.features.split(_ROWS)]
    found = score_arrays(torch.cat(parts).numpy(), validation.label.numpy())
    numbers = {k: v for k, v in asdict(found).items() if k != "n" and np.isfinite(v)}
    return {"depth": network.depth, "width": network.width, **numbers}


def _at_best(job: Job, number: int) -> dict[str, Any]:
    """Say which epoch a member was kept from."""
    if job.plan.keep == "last":
        ended = job.state.stopped.get(number, (job.state.epoch - 1,))
        return {"epoch": ended[0]}
    rmse, epoch, _ = job.state.best[number]
    return {"epoch": epoch, "rmse": rmse}


def _beta(job: Job, number: int) -> float | None:
    return None if job.betas is None else job.betas[number]
