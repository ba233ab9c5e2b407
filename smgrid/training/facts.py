"""What the card of an ensemble says about its samples: how many, which, and how they are spread."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from smgrid.features.layout import FeatureLayout
from smgrid.training.batches import Source
from smgrid.training.samples import SampleStream
from smgrid.training.table import Samples

_QUANTILES = (0.0, 0.01, 0.5, 0.99, 1.0)
_DRAW = 65_536  # samples of a stream that its statistics are taken from


def describe_source(source: Source) -> dict[str, Any]:
    """Return what tells one set of samples from another, JSON-ready."""
    if isinstance(source, SampleStream):
        blocks = source.blocks
        acquired = blocks.inputs.times
        return {
            "stream": f"{len(blocks)} blocks of {blocks.inputs.grid.shape} pixels",
            "grid": f"{blocks.inputs.grid.crs} {list(blocks.inputs.grid.affine)[:6]}",
            "period": [f"{acquired[0]}", f"{acquired[-1]}"],
            "share": blocks.share,
            "seed": source.seed,
        }
    named = sorted({str(name) for name in source.network} - {""})
    times = source.time[~np.isnat(source.time)]
    return {
        "count": len(source),
        "sha256": digest_samples(source),
        "stations": len({*zip(source.network, source.station, strict=True)} - {("", "")}),
        "networks": named,
        "period": [str(times.min()), str(times.max())] if len(times) else [],
    }


def digest_samples(samples: Samples) -> str:
    """Return the SHA-256 of the rows of a table, however its series are shared."""
    digest = hashlib.sha256()
    for start in range(0, len(samples), _DRAW):
        part = samples.take(np.arange(start, min(start + _DRAW, len(samples))))
        for tensor in (part.features, part.label, part.weight):
            digest.update(tensor.contiguous().numpy().tobytes())
        for values in (part.time, part.longitude, part.latitude):
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def input_statistics(source: Source, layout: FeatureLayout) -> dict[str, Any]:
    """Return how the scaled inputs are spread, by which extrapolation is noticed later.

    Returns
    -------
    dict
        For every snapshot column and for the values of every series: mean, standard deviation and
        the quantiles 0, 0.01, 0.5, 0.99 and 1, all in scaled units. Of a stream a first draw of
        65 536 samples is taken.
    """
    samples = source if isinstance(source, Samples) else source.first(_DRAW)
    columns: dict[str, npt.NDArray[np.float32]] = {
        column.feature: samples.snapshot[:, k].numpy() for k, column in enumerate(layout.snapshot)
    }
    used = torch.unique(samples.series_index)
    columns |= {
        column.feature: samples.series[used, k].flatten().numpy()
        for k, column in enumerate(layout.series)
    }
    return {name: _summary(values) for name, values in columns.items()}


def _summary(values: npt.NDArray[np.float32]) -> dict[str, Any]:
    return {
        "mean": float(values.mean(dtype=np.float64)),
        "std": float(values.std(dtype=np.float64)),
        "quantiles": [float(q) for q in np.quantile(values, _QUANTILES)],
    }
