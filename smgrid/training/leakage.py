"""What a test may not share with training; it depends on the question that the split asks.

============  ===========================  =======================================================
by            whole units on one side      no test sample shares with a training sample
============  ===========================  =======================================================
random        samples                      nothing is checked: known places and days, optimistic
station       stations                     a station, a coarse cell
block         squares of EASE-Grid 2.0     a station, a coarse cell
network       networks or regions          a station, a coarse cell
year          calendar years (UTC)         a window: acquisitions less than `gap_days` days apart
space-time    stations or squares, years   a station, a coarse cell, a window
============  ===========================  =======================================================

A coarse cell (9 km, that of SMAP and about that of ERA5-Land) has one series of weather and one
SMAP value, so two stations in it are not independent. Windows count only where time is the
question: a new place has its own series and may see the same year. Where time is the question they
count between all places, because one weather system rules many of them.

A pixel of several stations shares each of them, and a station without a network counts as that of
its name in any network.
"""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from smgrid.errors import ConfigError, NoDataError
from smgrid.training.places import IntArray, cell_key, list_facts, require_known, station_key
from smgrid.training.table import Samples

SplitBy = Literal["random", "station", "year", "network", "block", "space-time"]
LeakRule = Literal["station", "cell", "window"]
BoolArray = npt.NDArray[np.bool_]

#: Days apart from which on two windows share no day. The 46 composites of one begin up to 365 days
#: before the acquisition, and the last of them, which holds 16 days, ends up to 15 days after it.
GAP_DAYS = 381

RULES: Mapping[SplitBy, tuple[LeakRule, ...]] = {
    "random": (),
    "station": ("station", "cell"),
    "year": ("window",),
    "network": ("station", "cell"),
    "block": ("station", "cell"),
    "space-time": ("station", "cell", "window"),
}


def check_leakage(
    training: Samples,
    test: Samples,
    *,
    by: SplitBy,
    coarse_km: float | None = 9.0,
    gap_days: int = GAP_DAYS,
) -> None:
    """Refuse a test that shares with training what the declared split keeps apart.

    Parameters
    ----------
    training, test
        What is trained on and tested with.
    by
        The declared split: the table above says what it keeps apart. "random" declares that
        nothing is.
    coarse_km
        Size of a coarse cell of EASE-Grid 2.0 in nominal km; None checks no cells.
    gap_days
        Fewest days between windows; 0 checks no windows. See `split_samples`.

    Raises
    ------
    ConfigError
        Test samples share a station, cell or window with training; the message counts them.
    """
    leaks = _find_between(test, training, by, coarse_km, gap_days)
    found = [f"{mask.sum()} share a {rule}" for rule, mask in leaks.items() if mask.any()]
    if found:
        raise ConfigError(
            f"by={by!r}: expected a test that shares nothing with training, but of {len(test)} "
            f"test samples {' and '.join(found)} (cells of {coarse_km} km, windows of {gap_days} "
            'days); drop_leaks removes such training samples, and by="random" declares that the '
            "test is not independent"
        )


def drop_leaks(
    training: Samples,
    test: Samples,
    *,
    by: SplitBy,
    coarse_km: float | None = 9.0,
    gap_days: int = GAP_DAYS,
) -> tuple[Samples, dict[str, int]]:
    """Return the training samples that `check_leakage` accepts, and how many went for which reason.

    Parameters are those of `check_leakage`. A sample counts for the first reason that applies.

    Raises
    ------
    NoDataError
        There is no training sample.
    ConfigError
        No training sample is left.
    """
    if not len(training):
        raise NoDataError("training has no sample; check what selects its samples")
    leaks = _find_between(training, test, by, coarse_km, gap_days)
    gone, removed = np.zeros(len(training), dtype=bool), {}
    for rule, mask in leaks.items():
        removed[str(rule)] = int((mask & ~gone).sum())
        gone |= mask
    if gone.all():
        raise ConfigError(
            f"by={by!r}: expected training samples that share nothing with the test, but all "
            f"{len(training)} do ({removed}); test other places or years"
        )
    return training.take(~gone), removed


def leak_keys(
    facts: pd.DataFrame, *, by: SplitBy, coarse_km: float | None, gap_days: int
) -> dict[LeakRule, IntArray]:
    """Make the keys that may not be equal or, for a window, not be closer than the gap [day]."""
    keys: dict[LeakRule, IntArray] = {}
    if "station" in RULES[by]:
        keys["station"] = station_key(facts)
    if "cell" in RULES[by] and coarse_km is not None:
        keys["cell"] = cell_key(facts, coarse_km)
    if "window" in RULES[by] and gap_days > 0:
        require_known(facts["time"].notna(), "time")
        keys["window"] = facts["time"].to_numpy("M8[D]").astype(np.int64)
    return keys


def find_leaks(
    keys: Mapping[LeakRule, IntArray], other: BoolArray, *, gap_days: int
) -> dict[LeakRule, BoolArray]:
    """Find the rows that share something with those of the mask `other`, by rule."""
    leaks: dict[LeakRule, BoolArray] = {}
    for rule, key in keys.items():
        if rule == "window":
            days = np.unique(key[other])
            first = np.searchsorted(days, key - (gap_days - 1))
            leaks[rule] = np.searchsorted(days, key + (gap_days - 1), side="right") > first
        else:
            leaks[rule] = np.isin(key, key[other])
    return leaks


def check_guard(by: str, coarse_km: float | None, gap_days: int) -> None:
    """Refuse an unknown split, a cell without size, or a gap that is no number of days."""
    if by not in get_args(SplitBy):
        raise ConfigError(f"by: expected one of {get_args(SplitBy)}, found {by!r}")
    if coarse_km is not None and not is_size(coarse_km):
        raise ConfigError(f"coarse_km: expected a size in km or None, found {coarse_km!r}")
    if not isinstance(gap_days, Integral) or gap_days < 0:
        raise ConfigError(
            f"gap_days: expected a whole number of days, 0 or more, found {gap_days!r}"
        )


def is_size(km: object) -> bool:
    """Tell whether this is a finite length."""
    return isinstance(km, Real) and 0 < float(km) < np.inf


def _find_between(
    samples: Samples, other: Samples, by: SplitBy, coarse_km: float | None, gap_days: int
) -> dict[LeakRule, BoolArray]:
    """Find the samples that share something with another table, by rule."""
    check_guard(by, coarse_km, gap_days)
    facts = list_facts(samples, other)
    keys = leak_keys(facts, by=by, coarse_km=coarse_km, gap_days=gap_days)
    leaks = find_leaks(keys, np.arange(len(facts)) >= len(samples), gap_days=gap_days)
    return {rule: mask[: len(samples)] for rule, mask in leaks.items()}
