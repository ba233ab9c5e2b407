"""Satellite passes: which slices belong together, and the coordinates that tell passes apart.

A day can hold an ascending and a descending pass, and the slices of one pass are seconds apart;
grouping by day would merge the first and grouping by time split the second.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import pystac
import xarray as xr
from pydantic import Field, TypeAdapter, ValidationError

from smgrid.catalog import SourceSpec
from smgrid.errors import CatalogError, SourceError
from smgrid.sources.burst import parse_burst
from smgrid.sources.search import item_span
from smgrid.windows import Period
from smgrid.yamltext import StrictModel

# Slices of a pass start 25 s apart; the next pass of a satellite follows after an orbit of 98.6 min
# (ESA Sentinel-1 User Handbook: 175 orbits in 12 days).
PASS_GAP = pd.Timedelta(minutes=10)
_DAY = pd.Timedelta(days=1)
# "SENTINEL-1A", "Sentinel-1A", "S1A"
_PLATFORM = re.compile(r"s(?:entinel)?[-_ ]?1[-_ ]?([a-d])", re.IGNORECASE)


@dataclass(frozen=True)
class Pass:
    """One pass of one satellite over a region."""

    time: pd.Timestamp
    """Start of the earliest slice, UTC."""
    platform: str
    """``"sentinel-1a"``; empty if unknown."""
    orbit_state: str
    """``"ascending"``, ``"descending"`` or empty."""
    relative_orbit: int
    """Relative orbit number; 0 if unknown."""
    slices: tuple[str, ...]
    """Ids of its slices, earliest first."""


class PassRule(StrictModel):
    """Which pass an acquisition belongs to, by its time of day."""

    relative_orbit: Annotated[int, Field(ge=1, le=175)]
    """Relative orbit number."""
    orbit_state: Literal["ascending", "descending"]
    """Direction of flight."""
    platform: str = ""
    """Satellite, where all of them are of one."""
    around: Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d(:[0-5]\d)?$")]
    """Time of day, UTC."""
    within_minutes: Annotated[float, Field(gt=0)] = 10.0
    """Largest difference from it."""


def pass_of(item: pystac.Item) -> Pass:
    """Return the pass of one slice, or burst, that a STAC item describes.

    What its properties do not state is taken from the id of an OPERA product, else unknown.
    """
    properties, burst = item.properties, parse_burst(item.id)
    stated = str(properties.get("platform") or "").lower()
    named = _PLATFORM.fullmatch(stated)
    platform = f"sentinel-1{named[1].lower()}" if named else stated
    return Pass(
        time=item_span(item)[0],
        platform=platform or (burst.platform if burst else ""),
        orbit_state=str(properties.get("sat:orbit_state") or "").lower()
        or (burst.orbit_state if burst else ""),
        relative_orbit=int(properties.get("sat:relative_orbit") or 0)
        or (burst.relative_orbit if burst else 0),
        slices=(item.id,),
    )


def passes_within(passes: Iterable[Pass], period: Period) -> list[Pass]:
    """Return the passes that start in a period: a pass counts on the day when it starts."""
    return [one for one in passes if period.start <= one.time < period.end + _DAY]


def group_slices(slices: Iterable[Pass]) -> list[Pass]:
    """Return passes from slices (passes of one slice each), ordered by time.

    Raises
    ------
    SourceError
        If two passes start in the same second, which no cube can tell apart.
    """
    ordered = sorted(
        slices, key=lambda s: (s.platform, s.relative_orbit, s.orbit_state, s.time, s.slices)
    )
    passes: list[Pass] = []
    latest = pd.Timestamp.min
    for piece in ordered:
        if passes and _same_orbit(passes[-1], piece) and piece.time - latest <= PASS_GAP:
            passes[-1] = replace(passes[-1], slices=passes[-1].slices + piece.slices)
        else:
            passes.append(piece)
        latest = piece.time
    passes.sort(key=lambda one: one.time)
    for one, other in pairwise(passes):
        if one.time == other.time:
            msg = (
                f"two passes start at {one.time}: {', '.join(one.slices)} and "
                f"{', '.join(other.slices)}; give platform and orbits, or leave one out"
            )
            raise SourceError(msg)
    return passes


def with_pass_coords(ds: xr.Dataset, passes: Sequence[Pass]) -> xr.Dataset:
    """Return `ds` with ``time``, ``platform``, ``orbit_state`` and ``relative_orbit`` of passes.

    Parameters
    ----------
    ds
        First dim ``time`` with one step per pass, in their order.
    passes
        From `group_slices`.
    """
    times = pd.DatetimeIndex([one.time for one in passes]).as_unit("ns")
    return ds.assign_coords(
        time=("time", times, {"long_name": "Start of the acquisition", "standard_name": "time"}),
        platform=("time", np.array([one.platform for one in passes], dtype=str)),
        orbit_state=("time", np.array([one.orbit_state for one in passes], dtype=str)),
        relative_orbit=("time", np.array([one.relative_orbit for one in passes], dtype="int16")),
    )


def read_rules(spec: SourceSpec) -> list[PassRule]:
    """Return the rules in ``options.passes`` of a source; CatalogError if one is not valid."""
    try:
        return TypeAdapter(list[PassRule]).validate_python(spec.options.get("passes", []))
    except ValidationError as cause:
        first = cause.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        msg = (
            f"{spec.origin}: options.passes.{key} of {spec.name}: {first['msg']}; each pass has "
            'relative_orbit, orbit_state, platform, around ("17:32") and within_minutes'
        )
        raise CatalogError(msg) from cause


def apply_rules(rules: Sequence[PassRule], time: pd.Timestamp, key: str, spec: SourceSpec) -> Pass:
    """Return the slice `key`, acquired at `time`, as of the pass that its time of day says.

    Without rules nothing is known of it. SourceError if no rule is near enough.
    """
    if not rules:
        return Pass(time, "", "", 0, (key,))
    distance, rule = min(
        ((_minutes_from(one, time), one) for one in rules), key=lambda pair: pair[0]
    )
    if distance > rule.within_minutes:
        msg = (
            f"{spec.name}: the acquisition at {time} is {distance:.1f} minutes from the nearest of "
            f"the passes in {spec.origin} (around {rule.around}); add its pass to options.passes"
        )
        raise SourceError(msg)
    return Pass(time, rule.platform.lower(), rule.orbit_state, rule.relative_orbit, (key,))


def _same_orbit(one: Pass, other: Pass) -> bool:
    return (one.platform, one.relative_orbit, one.orbit_state) == (
        other.platform,
        other.relative_orbit,
        other.orbit_state,
    )


def _minutes_from(rule: PassRule, time: pd.Timestamp) -> float:
    around = pd.Timedelta(rule.around if rule.around.count(":") == 2 else f"{rule.around}:00")
    minutes = abs((time - time.normalize() - around).total_seconds()) / 60
    return min(minutes, 24 * 60 - minutes)
