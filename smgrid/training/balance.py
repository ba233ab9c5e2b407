"""Thin out common soil moistures, so that training sees dry and wet soil often enough."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from smgrid.errors import ConfigError, NoDataError
from smgrid.training.places import check_seed, row_key
from smgrid.training.table import Samples


def balance_by_moisture(
    samples: Samples,
    *,
    edges: Sequence[float],
    share: Sequence[float],
    maximum: int | None = None,
    seed: int = 0,
) -> Samples:
    """Keep a share of each bin of soil moisture; for training, as a balanced test shows no place.

    Parameters
    ----------
    samples
        What to thin out. Rows stay in order; which ones stay does not depend on it.
    edges
        Of the bins, m3 m-3, rising. A bin holds its lower edge, the last one its upper edge too.
        Samples outside, or without a label, are left out.
    share
        Kept in each bin, 0-1. ``edges=(0.1, 0.3, 0.4, 0.7), share=(0.5, 1, 0.5)`` is the choice of
        EOV-Solutions' fork of Transfer-DenseSM-E, but for labels of exactly 0.4.
    maximum
        Samples kept in any one bin at most.
    seed
        Draw of what is kept.

    Raises
    ------
    ConfigError
        Edges that do not rise, not one share per bin, shares outside 0-1, a maximum below 1, or a
        seed that is no whole number.
    NoDataError
        Nothing is left.
    """
    # As float32, like the labels: a label of 0.7 is below Python's 0.7.
    bounds, kept = np.asarray(edges, np.float32), np.asarray(share, np.float64)
    _check_bins(bounds, kept, maximum)
    check_seed(seed)
    label = samples.label.numpy()
    bins = np.where(label == bounds[-1], len(kept), np.searchsorted(bounds, label, "right")) - 1
    inside = (bins >= 0) & (bins < len(kept))
    count = np.bincount(bins[inside], minlength=len(kept))
    most = np.minimum(np.round(kept * count), len(label) if maximum is None else maximum)
    order = np.argsort(row_key(samples), kind="stable")
    draw = np.empty(len(label))
    draw[order] = np.random.default_rng(seed).random(len(label))
    rank = pd.Series(draw).groupby(bins).rank(method="first").to_numpy()
    wanted = inside & (rank <= most[np.where(inside, bins, 0)])
    if not wanted.any():
        raise NoDataError(
            f"balance_by_moisture: none of {len(label)} samples is left; the bins of "
            f"edges={list(edges)} (m3 m-3) hold {count.tolist()} and keep {most.tolist()}"
        )
    return samples.take(wanted)


def _check_bins(
    bounds: np.typing.NDArray[np.float32],
    kept: np.typing.NDArray[np.float64],
    maximum: int | None,
) -> None:
    rises = bounds.ndim == 1 and len(bounds) > 1 and bool((np.diff(bounds) > 0).all())
    if not rises or kept.shape != (len(bounds) - 1,) or not ((kept >= 0) & (kept <= 1)).all():
        raise ConfigError(
            "balance_by_moisture: expected n + 1 rising edges and n shares of 0-1, found "
            f"edges={bounds.tolist()}, share={kept.tolist()}"
        )
    if maximum is not None and maximum < 1:
        raise ConfigError(f"balance_by_moisture: expected a maximum of 1 or more, found {maximum}")
