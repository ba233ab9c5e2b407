"""Training as plain functions: from random weights, on coarse labels, and adapted to fine scale.

Each takes samples and a frozen plan and returns an ensemble whose card says what it was made from.
With a folder the job can be interrupted at any moment: the same call goes on where it was.
"""

from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np
import torch

from smgrid.errors import ConfigError
from smgrid.features.layout import FeatureLayout
from smgrid.models.densesm import DenseSM
from smgrid.models.ensemble import Ensemble
from smgrid.training.batches import Source
from smgrid.training.checks import check_sizes
from smgrid.training.job import Options, run_job
from smgrid.training.loop import Domains, OnEpoch
from smgrid.training.plan import (
    ADAPTATION,
    MSDA,
    PRETRAINING,
    PUBLISHED_SIZES,
    SMALL_SIZES,
    FitPlan,
    Sizes,
)
from smgrid.training.table import Samples


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
    test: Samples | None = None,
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
        split. That of a job that is finished in ``out`` stays.
    test
        Samples that nothing is decided by; the card says how the ensemble does on them.

    Returns
    -------
    Ensemble
        Networks in evaluation mode with a card that holds the plan and the errors. The same seed
        and samples on the same machine make the same networks.

    Raises
    ------
    ConfigError
        Fewer than two training samples, no validation sample, another layout's columns, values that
        nothing can be learned from, a device that is not there, a folder of another job, or a loss
        that does not stay finite.
    """
    plan = FitPlan() if plan is None else plan
    check_sizes(sizes)
    networks = {
        f"m{k + 1}_{size[0]}_{size[1]}": _untrained(size, plan, k, training, layout)
        for k, size in enumerate(sizes)
    }
    return run_job(
        networks,
        Domains(training),
        validation,
        start=None,
        layout=layout,
        plan=plan,
        msda=None,
        options=Options(out, str(device), on_epoch, card, test),
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
    test: Samples | None = None,
) -> Ensemble:
    """Train the published ensemble on coarse labels, as `fit` with its sizes and plan.

    Parameters
    ----------
    coarse
        Samples of coarse cells with their labels (SMAP), usually a stream.
    validation, layout, sizes, plan, out, device, on_epoch, card, test
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
        test=test,
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
    test: Samples | None = None,
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
    out, device, on_epoch, card, test
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
    return run_job(
        dict(ensemble.members),
        domains,
        validation,
        start=ensemble,
        layout=ensemble.layout,
        plan=plan,
        msda=msda,
        options=Options(out, str(device), on_epoch, card, test),
    )


def _untrained(
    size: tuple[int, int], plan: FitPlan, number: int, training: Source, layout: FeatureLayout
) -> DenseSM:
    """Random weights that look at the newest steps, and predict the mean label at first."""
    with torch.random.fork_rng(devices=[]):
        # Not their sum: runs with neighbouring seeds would share all members but one.
        state = np.random.SeedSequence([plan.seed, number]).generate_state(1)
        torch.manual_seed(int(state[0]))
        network = DenseSM(
            *size,
            n_snapshot=len(layout.snapshot),
            n_series=len(layout.series),
            n_steps=layout.steps,
        )
    with torch.no_grad():
        for convolution, _ in network.conv_block.layers:
            convolution.weight *= torch.tensor(plan.first_taps)
        if isinstance(training, Samples):
            network.out.bias.fill_(float(training.label.mean()))
    return network
