"""The batches of an epoch: from a table in memory or a stream, of one domain or of three."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from smgrid.errors import NoDataError
from smgrid.training.samples import SampleStream
from smgrid.training.table import Samples

Source: TypeAlias = Samples | SampleStream
"""A table in memory, or a stream of one epoch after the other."""

# Numbers of the domains in seeds.
_FINE, _UNLABELLED, _COARSE = range(3)


class Batch(NamedTuple):
    """Samples of one domain."""

    samples: Samples
    rows: Tensor | None
    """Their positions in the table; ``None`` for a stream."""


class Step(NamedTuple):
    """The samples of one step of training."""

    fine: Batch
    unlabelled: Batch | None
    coarse: Batch | None


def epoch_steps(
    fine: Source,
    *,
    unlabelled: Source | None,
    coarse: Source | None,
    batch_size: int,
    ratio: int,
    seed: int,
    epoch: int,
) -> Iterator[Step]:
    """Pass once over the fine samples; the others are begun again as often as needed.

    The order follows from `seed` and `epoch` alone.
    """
    sizes = (batch_size, batch_size * ratio, batch_size * ratio)
    others = [
        None if source is None else _endless(source, size=size, seed=(seed, domain, epoch))
        for domain, (source, size) in enumerate(zip((None, unlabelled, coarse), sizes, strict=True))
    ]
    for batch in batches(fine, size=batch_size, seed=(seed, _FINE, epoch)):
        yield Step(batch, *(None if other is None else next(other) for other in others[1:]))


def batches(source: Source, *, size: int, seed: tuple[int, ...]) -> Iterator[Batch]:
    """Cut a source into batches in random order.

    A single row that is left over joins no batch: batch norm cannot train on it.
    """
    if isinstance(source, Samples):
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(source))
        for start in range(0, len(source), size):
            rows = order[start : start + size]
            if len(rows) > 1:
                yield Batch(source.take(rows), torch.from_numpy(rows))
        return
    number = int(np.random.SeedSequence(seed).generate_state(1)[0])
    for samples in replace(source, batch_size=size).epoch(number):
        if len(samples) > 1:
            yield Batch(samples, None)


def _endless(source: Source, *, size: int, seed: tuple[int, ...]) -> Iterator[Batch]:
    number = 0
    while True:
        found = False
        for batch in batches(source, size=size, seed=(*seed, number)):
            found = True
            yield batch
        if not found:
            msg = (
                "a domain has fewer than 2 samples; adaptation needs some of each, or leave it out"
            )
            raise NoDataError(msg)
        number += 1
