"""What a training job refuses before it begins: samples that nothing could be learned from."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from smgrid.errors import ConfigError
from smgrid.features.layout import FeatureLayout
from smgrid.training.batches import Source
from smgrid.training.plan import FitPlan
from smgrid.training.samples import SampleStream
from smgrid.training.table import Samples

_LEAST = {"validation": 1, "test": 1}  # samples; the others need a batch


def check_source(name: str, source: Source, *, layout: FeatureLayout) -> None:
    """Refuse a stream that cannot play its part, before anything is read from it.

    Raises
    ------
    ConfigError
        It streams another layout, or comes without the labels or the end that its part needs.
    """
    if isinstance(source, Samples):
        return
    if name in _LEAST:
        raise ConfigError(
            f"{name} is a stream, expected a table that stays the same: collect it with "
            "collect_samples"
        )
    found = source.blocks.inputs.layout
    if found != layout:
        raise ConfigError(
            f"{name} is streamed in the layout {found.name!r}, expected {layout.name!r}"
        )
    if name != "unlabelled" and source.blocks.labels is None:
        raise ConfigError(
            f"{name} is a stream without labels; give labels to stream_samples, or give it as "
            "unlabelled"
        )


def check_samples(name: str, samples: Samples, *, layout: FeatureLayout, plan: FitPlan) -> None:
    """Refuse a table with values that no loss can be made of.

    Raises
    ------
    ConfigError
        Too few rows, other columns than the layout's, inputs that are not finite, labels that are
        missing or no m3 m-3, weights that are negative or all 0.
    """
    least = _LEAST.get(name, 2)
    if len(samples) < least:
        raise ConfigError(
            f"{name} has {len(samples)} samples, expected at least {least}: add labels or "
            "split them differently"
        )
    n_columns = samples.snapshot.shape[1] + samples.series.shape[1] * samples.series.shape[2]
    if n_columns != layout.n_columns:
        raise ConfigError(
            f"{name} samples have {n_columns} columns, the layout {layout.name!r} has "
            f"{layout.n_columns}: stream them with that layout"
        )
    if samples.snapshot.device.type != "cpu":
        raise ConfigError(
            f"{name} samples are on {samples.snapshot.device}; give them as they were made, "
            "device=... moves them"
        )
    if samples.snapshot.dtype != torch.float32:
        raise ConfigError(
            f"{name} samples are {samples.snapshot.dtype}, expected torch.float32; make them with "
            "make_samples"
        )
    _check_inputs(name, samples)
    if name != "unlabelled":
        _check_labels(name, samples, plan)


def _check_inputs(name: str, samples: Samples) -> None:
    complete = torch.isfinite(samples.series).flatten(1).all(dim=1)[samples.series_index]
    complete &= torch.isfinite(samples.snapshot).all(dim=1)
    if not bool(complete.all()):
        raise ConfigError(
            f"{int((~complete).sum())} of {len(samples)} {name} samples have inputs that are "
            "missing or not finite; leave them out"
        )


def _check_labels(name: str, samples: Samples, plan: FitPlan) -> None:
    label, weight = samples.label, samples.weight
    missing = int((~torch.isfinite(label)).sum())
    if missing:
        raise ConfigError(
            f"{missing} of {len(samples)} {name} samples have no label; leave them out, or give "
            "them as unlabelled"
        )
    low, high = float(label.min()), float(label.max())
    if low < 0 or high > 1:
        raise ConfigError(
            f"labels of the {name} samples span {low:g} to {high:g}, expected 0 to 1 m3 m-3; if "
            "they are per cent divide them by 100"
        )
    if low == 0 and plan.label_loss == "mape" and plan.label_floor == 0 and name not in _LEAST:
        raise ConfigError(
            f"{name} samples have labels of 0, by which 'mape' divides; leave them out or give "
            "the plan a label_floor such as 0.01"
        )
    if not bool((torch.isfinite(weight) & (weight >= 0)).all()) or not bool((weight > 0).any()):
        raise ConfigError(
            f"weights of the {name} samples span {float(weight.min()):g} to "
            f"{float(weight.max()):g}, expected finite ones of at least 0 and some above it"
        )


def require_table(source: Source, setting: str) -> Samples:
    """Return a source that a plan needs whole.

    Raises
    ------
    ConfigError
        It is a stream.
    """
    if isinstance(source, SampleStream):
        raise ConfigError(
            f"{setting} needs all training samples at once: collect the stream with "
            "collect_samples, or give a plan with places='all', such as "
            "smgrid.training.plan.PRETRAINING"
        )
    return source


def check_plan(plan: FitPlan, fine: Source) -> None:
    """Refuse a stream where the plan needs a table; raises `ConfigError`."""
    if plan.places == "drawn":
        require_table(fine, "places='drawn'")


def check_sizes(sizes: Sequence[tuple[int, int]]) -> None:
    """Refuse an ensemble without members, or members without layers; raises `ConfigError`."""
    if not sizes or any(len(size) != 2 or min(size) < 1 for size in sizes):
        raise ConfigError(
            f"sizes: expected a depth and a width of at least 1 for every member, found {sizes}"
        )


def check_card(card: Mapping[str, Any]) -> None:
    """Refuse what a card cannot say, before days of training; raises `ConfigError`."""
    try:
        json.dumps(dict(card), allow_nan=False)
    except (TypeError, ValueError) as cause:
        raise ConfigError(
            f"card must be JSON-ready and free of NaN ({cause}); give plain numbers, text and None"
        ) from cause
