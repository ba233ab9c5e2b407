"""What the card of an ensemble says: its samples, how they are spread, and the errors on them."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from smgrid.features.layout import FeatureLayout
from smgrid.metrics import score_arrays
from smgrid.models.ensemble import Ensemble, FloatArray, predict_samples
from smgrid.training.batches import Source
from smgrid.training.places import list_stations
from smgrid.training.samples import SampleStream
from smgrid.training.table import JOINED, Samples

_QUANTILES = (0.0, 0.01, 0.5, 0.99, 1.0)
_DRAW = 65_536  # samples of a stream that it is known by
_ROWS = 4096  # that go through a network at once


def draw_samples(source: Source) -> Samples:
    """Return a table, or the first 65 536 samples of a stream, by which it is known."""
    return source if isinstance(source, Samples) else source.first(_DRAW)


def describe_source(source: Source, drawn: Samples) -> dict[str, Any]:
    """Return what tells one set of samples from another, JSON-ready.

    Parameters
    ----------
    source
        A table, which is told by all of its rows, or a stream, told by its settings and the rows
        that were drawn from it.
    drawn
        See `draw_samples`.
    """
    return {
        **(_describe_stream(source) if isinstance(source, SampleStream) else {}),
        "count": len(drawn),
        "sha256": digest_samples(drawn),
        **_describe_places(drawn),
    }


def _describe_stream(stream: SampleStream) -> dict[str, Any]:
    blocks = stream.blocks
    acquired = blocks.inputs.times
    return {
        "stream": f"{len(blocks)} blocks, {len(acquired)} acquisitions of "
        f"{blocks.inputs.grid.height} x {blocks.inputs.grid.width} pixels",
        "grid": f"{blocks.inputs.grid.crs} {list(blocks.inputs.grid.affine)[:6]}",
        "acquired": [f"{acquired[0]}", f"{acquired[-1]}"],
        "share": blocks.share,
        "seed": stream.seed,
        "buffer": stream.buffer,
    }


def _describe_places(samples: Samples) -> dict[str, Any]:
    networks = {name for joined in samples.network.tolist() for name in joined.split(JOINED)}
    times = samples.time[~np.isnat(samples.time)]
    return {
        "stations": len(list_stations(samples)),
        "networks": sorted(networks - {""}),
        "period": [str(times.min()), str(times.max())] if len(times) else [],
    }


def digest_samples(samples: Samples) -> str:
    """Return the SHA-256 of the rows of a table, however its series are shared."""
    digest = hashlib.sha256()
    for part in samples.split(_DRAW):
        for tensor in (part.features, part.label, part.weight):
            digest.update(tensor.contiguous().numpy().tobytes())
        for values in (part.time, part.longitude, part.latitude):
            digest.update(np.ascontiguousarray(values).tobytes())
        for names in (part.network, part.station):  # by which places may be told
            digest.update("\n".join(names.tolist()).encode())
    return digest.hexdigest()


def input_statistics(samples: Samples, layout: FeatureLayout) -> dict[str, Any]:
    """Return how the scaled inputs are spread, by which extrapolation is noticed later.

    Returns
    -------
    dict
        For every snapshot column and for the values of every series: mean, standard deviation and
        the quantiles 0, 0.01, 0.5, 0.99 and 1, all in scaled units.
    """
    columns: dict[str, FloatArray] = {
        column.feature: samples.snapshot[:, k].numpy() for k, column in enumerate(layout.snapshot)
    }
    used = torch.unique(samples.series_index)
    columns |= {
        column.feature: samples.series[used, k].flatten().numpy()
        for k, column in enumerate(layout.series)
    }
    return {name: _summary(values) for name, values in columns.items()}


def score_members(
    ensemble: Ensemble, parts: Mapping[str, Samples]
) -> dict[str, list[dict[str, float]]]:
    """Score each member, and last their mean, on each part.

    Parameters
    ----------
    ensemble
        The members.
    parts
        Tables by name. Of one with more than 65 536 rows as many are drawn, always the same.

    Returns
    -------
    dict
        By the name of the part: for each member, and for their mean, the scores of
        `smgrid.metrics.Scores` that are defined.
    """
    return {name: _score(ensemble, some_samples(samples)) for name, samples in parts.items()}


def some_samples(samples: Samples, count: int = _DRAW) -> Samples:
    """Return at most so many rows of a table, drawn at random, but always the same."""
    if len(samples) <= count:
        return samples
    return samples.take(np.random.default_rng(0).choice(len(samples), count, replace=False))


def predict_table(ensemble: Ensemble, samples: Samples) -> FloatArray:
    """Predict every member on a table, (members, n), without all its vectors in memory at once."""
    parts = [predict_samples(ensemble, part.features) for part in samples.split(_ROWS)]
    return np.concatenate([np.empty((len(ensemble.members), 0), np.float32), *parts], axis=1)


def _score(ensemble: Ensemble, samples: Samples) -> list[dict[str, float]]:
    predicted, label = predict_table(ensemble, samples), samples.label.numpy()
    scored = [score_arrays(one, label) for one in (*predicted, predicted.mean(axis=0))]
    return [{k: v for k, v in asdict(one).items() if np.isfinite(v)} for one in scored]


def _summary(values: FloatArray) -> dict[str, Any]:
    return {
        "mean": float(values.mean(dtype=np.float64)),
        "std": float(values.std(dtype=np.float64)),
        "quantiles": [float(q) for q in np.quantile(values, _QUANTILES)],
    }
