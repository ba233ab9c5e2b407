"""Training, validation and test samples, kept apart by the question that the test is to answer.

`smgrid.training.leakage` says what each split keeps apart and why. The kinds of split and the need
for them follow Zhu et al. 2025 (doi:10.1109/TGRS.2025.3533927): a median RMSE of 0.06 m3 m-3 for
random rows, 0.078 for new periods, 0.089 for new sites.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from smgrid.errors import ConfigError, NoDataError
from smgrid.training.leakage import (
    GAP_DAYS,
    RULES,
    BoolArray,
    LeakRule,
    SplitBy,
    check_guard,
    find_leaks,
    is_size,
    leak_keys,
)
from smgrid.training.places import (
    IntArray,
    cell_key,
    check_seed,
    join_keys,
    list_facts,
    require_known,
    row_key,
    station_key,
    year_of,
)
from smgrid.training.table import JOINED, Samples

Share = tuple[float, float, float]

_PARTS = ("training", "validation", "test")
_TRAINING, _VALIDATION, _TEST, _DROPPED = 0, 1, 2, -1
_NAMEABLE: Mapping[SplitBy, tuple[str, ...]] = {
    "year": ("test", "validation"),
    "network": ("test", "validation"),
    "space-time": ("test",),
}
_CURES: Mapping[SplitBy, str] = {
    "random": "collect more samples",
    "station": 'use by="year", or a smaller coarse_km',
    "year": 'hold out years that are farther apart, use by="station" or by="block", or collect '
    "more years",
    "network": 'use by="station" or by="block", or other networks',
    "block": 'use a smaller block_km, or by="year"',
    "space-time": 'use by="station" or by="year" alone, or a smaller block_km',
}


@dataclass(frozen=True)
class SplitReport:
    """How samples were split, for model cards: plain values, see `dataclasses.asdict`.

    Attributes
    ----------
    plan
        The arguments of `split_samples`.
    rows, groups
        Samples, and whole units that hold them, by part.
    held_out
        Years or networks of validation and test; empty where places or rows were drawn. A sample
        of several networks counts as that of them which is held out.
    removed
        Samples in no part, by reason: a shared "station", "cell" or "window" (the first that
        applies), or "neither" for new places in known years and known places in new years.
    notes
        What the scores do not show.
    """

    plan: dict[str, Any]
    rows: dict[str, int]
    groups: dict[str, int]
    held_out: dict[str, list[Any]]
    removed: dict[str, int]
    notes: list[str]


@dataclass(frozen=True, eq=False)
class Split:
    """Three parts of one table, which share its series, and how they were made."""

    training: Samples
    validation: Samples  #: empty if its share was 0
    test: Samples
    report: SplitReport


@dataclass(frozen=True)
class _Plan:
    by: SplitBy
    share: Share
    test: tuple[Any, ...]
    validation: tuple[Any, ...]
    block_km: float | None
    coarse_km: float | None
    gap_days: int
    seed: int


def split_samples(
    samples: Samples,
    *,
    by: SplitBy,
    share: Share = (0.7, 0.15, 0.15),
    test: Sequence[int | str] | int | str = (),
    validation: Sequence[int | str] | int | str = (),
    block_km: float | None = None,
    coarse_km: float | None = 9.0,
    gap_days: int = GAP_DAYS,
    seed: int = 0,
) -> Split:
    """Split samples into training, validation and test.

    Parameters
    ----------
    samples
        What to split; the order of its rows changes nothing.
    by
        What is new in the test, see `smgrid.training.leakage`. "space-time" tests held-out places
        in held-out years, validates other held-out places in the same years, trains the other
        places in other years and drops the rest. Samples without station go by their pixel. With
        "network" a pixel of several networks goes to the test if one of them does, else to the
        validation if one of them does.
    share
        Of training, validation (0: none) and test, in whole units and not in their samples: scores
        are taken per place, and one long record must not decide.
    test, validation
        Networks ("network") or years ("year"; "space-time" for `test` only) to hold out, one or
        several. What is not named is drawn; drawn years are the last ones for the test and the
        first ones for the validation, or those farthest from the other's, so that years of training
        lie between.
    block_km
        Edge of a square of EASE-Grid 2.0 in nominal km: 9 km are 9008 m of EPSG:6933, equal in
        area everywhere and square at 30 degrees of latitude. Without it "space-time" goes by
        stations.
    coarse_km
        Samples in one cell of this size stay together, and its stations count as one unit; None
        lets neighbours in one cell be apart, which the report says.
    gap_days
        Training samples less than this many days before or after a held-out one are dropped, which
        costs a year per edge, and so are validation samples near the test if by="year"; with
        "space-time" both are of the same years. With the default no two windows share a day of
        weather or of a 16-day composite, for every built-in layout; 368 does so for the weather of
        causal windows alone. 0 drops none. The report says where windows overlap.
    seed
        Draws places, networks and rows.

    Raises
    ------
    NoDataError
        The table is empty.
    ConfigError
        An argument is not valid, samples lack a fact to go by, or a part would be empty.
    """
    plan = _Plan(by, share, _plain(test), _plain(validation), block_km, coarse_km, gap_days, seed)
    _check_plan(plan)
    if not len(samples):
        raise NoDataError("there is no sample to split; check what selects the samples")
    facts = list_facts(samples)
    part, group = _assign(samples, facts, plan)
    removed = {"neither": int((part == _DROPPED).sum())} if by == "space-time" else {}
    keys = leak_keys(facts, by=by, coarse_km=coarse_km, gap_days=gap_days)
    removed |= _drop_leaking(part, keys, plan)
    masks = {name: part == number for number, name in enumerate(_PARTS)}
    _require_parts(masks, removed, plan)
    training, validated, tested = (samples.take(mask) for mask in masks.values())
    return Split(training, validated, tested, _make_report(plan, facts, group, masks, removed))


def _check_plan(plan: _Plan) -> None:
    check_guard(plan.by, plan.coarse_km, plan.gap_days)
    check_seed(plan.seed)
    share = plan.share
    whole = len(share) == len(_PARTS) and abs(sum(share) - 1) < 1e-6
    if not whole or min(share) < 0 or share[_TRAINING] == 0 or share[_TEST] == 0:
        raise ConfigError(
            "share: expected shares of training, validation and test that sum to 1, of which only "
            f"validation may be 0, found {share!r}"
        )
    _check_block(plan)
    for name in ("test", "validation"):
        if getattr(plan, name) and name not in _NAMEABLE.get(plan.by, ()):
            raise ConfigError(
                f"{name}={getattr(plan, name)!r}: by={plan.by!r} draws its {name} units; name "
                'years or networks with by="year" or "network", test years with "space-time"'
            )
    if both := set(plan.test) & set(plan.validation):
        raise ConfigError(f"test and validation both name {list(both)}; name each unit once")


def _check_block(plan: _Plan) -> None:
    km, cell = plan.block_km, plan.coarse_km
    if km is None:
        if plan.by == "block":
            raise ConfigError('by="block": give the edge of a square, for instance block_km=36')
        return
    if plan.by not in ("block", "space-time"):
        raise ConfigError(f"block_km={km!r} means nothing to by={plan.by!r}; leave it out")
    if not is_size(km):
        raise ConfigError(f"block_km: expected a size in km, found {km!r}")
    if cell is not None and (round(km / cell) < 1 or abs(km / cell - round(km / cell)) > 1e-6):
        raise ConfigError(
            f"block_km={km:g} cuts coarse cells of {cell:g} km: give a multiple of coarse_km, a "
            "smaller coarse_km, or coarse_km=None to let training and test share coarse cells"
        )


def _plain(names: Any) -> tuple[Any, ...]:
    """One or several names as values of Python, for JSON."""
    return tuple(np.atleast_1d(names).tolist())


def _assign(
    samples: Samples, facts: pd.DataFrame, plan: _Plan
) -> tuple[IntArray, npt.NDArray[Any]]:
    """Part and unit of each sample, before leaks are dropped."""
    if plan.by == "year":
        return _assign_years(facts, plan, plan.share)
    if plan.by == "random":
        unit = row_key(samples)
    elif plan.by == "network":
        return _assign_networks(facts, plan)
    else:
        unit = _place_key(facts, plan)
    names, group = np.unique(unit, return_inverse=True)
    order = _shuffle(len(names), plan)
    if plan.by != "space-time":
        return _deal(names, order, plan.share, plan)[group], group
    part = _deal(names, order, plan.share, replace(plan, test=()))[group]
    held_share = (plan.share[_TRAINING], 0.0, plan.share[_VALIDATION] + plan.share[_TEST])
    held = _assign_years(facts, plan, held_share)[0] == _TEST
    part[(part == _TRAINING) == held] = _DROPPED
    return part, group


def _shuffle(count: int, plan: _Plan) -> IntArray:
    return np.random.default_rng(plan.seed).permutation(count)


def _assign_networks(facts: pd.DataFrame, plan: _Plan) -> tuple[IntArray, npt.NDArray[Any]]:
    """Part and network of each sample; of several networks that which is held out counts."""
    row, joined = pd.factorize(facts["network"])
    network = pd.Series(joined).str.split(JOINED, regex=False).explode()
    network = network[network != ""]
    require_known(pd.Series(row).isin(network.index), "network")
    names, number = np.unique(network.to_numpy(str), return_inverse=True)
    part = _deal(names, _shuffle(len(names), plan), plan.share, plan)[number]
    single = pd.DataFrame({"part": part, "network": network}).sort_values("part", kind="stable")
    held = single.groupby(level=0).last().loc[row]
    return held["part"].to_numpy(), held["network"].to_numpy(str)


def _assign_years(facts: pd.DataFrame, plan: _Plan, share: Share) -> tuple[IntArray, IntArray]:
    years, year = np.unique(year_of(facts), return_inverse=True)
    named = years[np.isin(years, plan.test + plan.validation)]
    distance = np.abs(years[:, None] - named).min(axis=1, initial=np.iinfo(np.int64).max)
    return _deal(years, np.lexsort((-years, -distance)), share, plan)[year], year


def _place_key(facts: pd.DataFrame, plan: _Plan) -> IntArray:
    """Places to keep whole; a block needs no coarse cells, of which it is made."""
    stations, km = station_key(facts), plan.block_km or plan.coarse_km
    return stations if km is None else join_keys(stations, cell_key(facts, km))


def _deal(names: npt.NDArray[Any], order: IntArray, share: Share, plan: _Plan) -> IntArray:
    """Part of each unit: as named, else by share and at least one, from the ends of the order."""
    part = np.full(len(names), _TRAINING)
    for number, named in ((_TEST, plan.test), (_VALIDATION, plan.validation)):
        if missing := [name for name in named if name not in names.tolist()]:
            raise ConfigError(
                f"{_PARTS[number]}: no sample is of {missing}; there are {names.tolist()}"
            )
        part[np.isin(names, named)] = number
    free = order[part[order] == _TRAINING]
    drawn = [n for n in (_TEST, _VALIDATION) if share[n] > 0 and not (part == n).any()]
    if len(free) <= len(drawn):
        raise ConfigError(
            f"by={plan.by!r}: all samples lie in {len(names)} whole unit(s), of which {len(free)} "
            f"can be drawn, but {len(drawn) + 1} part(s) need one each; {_CURES[plan.by]}"
        )
    for number in drawn:
        others = len(drawn) - drawn.index(number)
        count = min(max(1, round(share[number] * len(names))), len(free) - others)
        # The next part from the other end, so that years of training lie between the two.
        part[free[:count]], free = number, free[count:][::-1]
    return part


def _drop_leaking(part: IntArray, keys: Mapping[LeakRule, IntArray], plan: _Plan) -> dict[str, int]:
    """Drop what leaks, in place: validation gives way to test, and training to both."""
    removed: dict[str, int] = dict.fromkeys(keys, 0)
    # Validation and test of "space-time" are of the same years.
    held = {r: k for r, k in keys.items() if r != "window" or plan.by == "year"}
    for mine, checked in ((_VALIDATION, held), (_TRAINING, keys)):
        for rule, leak in find_leaks(checked, part > mine, gap_days=plan.gap_days).items():
            gone = leak & (part == mine)
            removed[rule] += int(gone.sum())
            part[gone] = _DROPPED
    return removed


def _require_parts(masks: Mapping[str, BoolArray], removed: Mapping[str, int], plan: _Plan) -> None:
    optional = "" if plan.share[_VALIDATION] or plan.validation else "validation"
    if empty := [name for name, mask in masks.items() if name != optional and not mask.any()]:
        rows = ", ".join(f"{mask.sum()} {name}" for name, mask in masks.items())
        gap = ", or gap_days=0 (windows then overlap)" if removed.get("window") else ""
        raise ConfigError(
            f"by={plan.by!r}: expected samples in every part, none is left for "
            f"{' and '.join(empty)} ({rows}; removed {dict(removed)}); {_CURES[plan.by]}{gap}"
        )


def _make_report(
    plan: _Plan,
    facts: pd.DataFrame,
    group: npt.NDArray[Any],
    masks: Mapping[str, BoolArray],
    removed: dict[str, int],
) -> SplitReport:
    unit = group if plan.by == "network" else facts["time"].dt.year.to_numpy()
    held_out = {n: np.unique(unit[masks[n]]).tolist() for n in ("validation", "test")}
    return SplitReport(
        plan=asdict(plan),
        rows={name: int(mask.sum()) for name, mask in masks.items()},
        groups={name: len(np.unique(group[mask])) for name, mask in masks.items()},
        held_out=held_out if plan.by in _NAMEABLE else {},
        removed=removed,
        notes=[*_notes(plan, bool(masks["validation"].any())), *_notes_on_names(facts, plan)],
    )


def _notes(plan: _Plan, is_validated: bool) -> list[str]:
    rules, notes = RULES[plan.by], []
    if not rules:
        notes.append("random rows: training knows the places and days of the test; optimistic")
    elif "window" not in rules:
        notes.append("no year is held out: training knows the weather of the test's days")
    elif plan.gap_days < GAP_DAYS:
        notes.append(
            f"a gap of {plan.gap_days} days, less than {GAP_DAYS}: one-year windows of training "
            "and test overlap"
        )
    if plan.by == "year":
        notes.append("no place is held out: training knows the places of the test")
    if plan.by == "space-time" and is_validated:
        notes.append("the validation is of the years of the test, at other places")
    if "cell" in rules and plan.coarse_km is None:
        notes.append("coarse cells are not kept together: neighbours share weather and SMAP value")
    return notes


def _notes_on_names(facts: pd.DataFrame, plan: _Plan) -> list[str]:
    notes = []
    several = int(facts["network"].str.contains(JOINED, regex=False).sum())
    if plan.by == "network" and several:
        notes.append(
            f"{several} samples of several networks count as the one that is held out, if one is"
        )
    homeless = int(((facts["station"] != "") & (facts["network"] == "")).sum())
    if "station" in RULES[plan.by] and homeless:
        notes.append(
            f"{homeless} samples have a station without network, which counts as that of its name "
            "in any network"
        )
    return notes
