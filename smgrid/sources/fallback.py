"""Sources that stand in for another where it has nothing, and the record of which was used where.

Only what a provider does not have is taken from the next one. What it has and cannot be read stays
an error: a fault must never turn one sensor into another.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec
from smgrid.errors import NoDataError, SourceError
from smgrid.sources import OBSERVED, load_source
from smgrid.sources.passes import PASS_GAP
from smgrid.windows import Period

SOURCE = "source"
"""Attribute of every variable, and coordinate (time) of acquisitions with fallbacks."""

_EQUAL_ATTRS = ("convention", "averaging")
_FLAG_ATTRS = ("assumed", "approximate")
_NOTE_ATTRS = ("assumed_note", "approximate_note")
_Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Part:
    """What one source of a chain gave."""

    spec: SourceSpec
    data: xr.Dataset


def load_chain(
    chain: Sequence[SourceSpec], grid: GeoBox, period: Period, *, chunks: int = 512
) -> xr.Dataset:
    """Load a source, and what it lacks from those that stand in for it.

    Parameters
    ----------
    chain
        The source and its fallbacks in order, see `Catalog.chain_of`.
    grid
        Target; labels come on the grid of the source that has them.
    period
        First and last UTC day.
    chunks
        Tile edge [pixels of `grid`].

    Returns
    -------
    xarray.Dataset
        The variables of the first source, lazy. Each has the attributes ``source``,
        ``source_settings`` and ``license``. Where there are fallbacks, the source of each step is
        recorded: acquisitions get the coordinate ``source`` (time), series
        ``<variable>_source`` (date); static variables, labels and angles per relative orbit come
        from one source as a whole, which the attribute names.

    Raises
    ------
    ConfigError
        If a credential of a source that is needed is not set.
    NoDataError
        If none of them has anything.
    SourceError
        If one cannot be read (fallbacks are for what a provider does not have, not for faults), or
        two do not fit together.

    Notes
    -----
    Acquisitions: passes that the sources before do not have; two are the same pass if platform and
    relative orbit agree, where both are known, and their starts are at most 10 minutes apart.
    Series: dates before ``first_day`` or after ``last_day`` of the sources before, and dates that
    their loaders say are not there (`OBSERVED`). A date that none has keeps the value of the first.
    """
    first = chain[0]
    if len(chain) == 1:
        ds = load_source(first, grid, period, chunks=chunks).drop_vars(OBSERVED, errors="ignore")
        return _describe(ds, chain)
    chain = (first, *(replace(spec, provides=first.provides) for spec in chain[1:]))
    if first.kind == "series":
        return _describe(_load_series(chain, grid, period, chunks), chain)
    parts = _load_parts(chain, grid, period, chunks)
    part = next(parts)
    if first.kind == "scene" and "time" in part.data.dims:
        return _describe(_join_passes([part, *parts], chunks), chain)
    return _describe(part.data, [part.spec])


def sources_needed(chain: Sequence[SourceSpec], period: Period) -> tuple[SourceSpec, ...]:
    """Return the sources of a chain that will be asked, as far as their records tell beforehand.

    A source whose record reaches over the whole period needs none to stand in for it, unless it
    turns out to have gaps; which passes it has, only its search tells.
    """
    if chain[0].kind == "scene":
        return tuple(chain)
    needed, lacking = [], np.ones(len(period.days), bool)
    for spec in chain:
        has = _in_record(spec, period.days)
        if (lacking & has).any():
            needed.append(spec)
            lacking &= ~has
    return tuple(needed)


def _describe(ds: xr.Dataset, specs: Sequence[SourceSpec]) -> xr.Dataset:
    """Record on each variable where it came from and what decided its values."""
    names = ", ".join(spec.name for spec in specs)
    settings = [_settings(spec) for spec in specs]
    if len(specs) > 1:
        settings = [f"{spec.name}: {{{text}}}" for spec, text in zip(specs, settings, strict=True)]
    licences = "; ".join(dict.fromkeys(spec.licence for spec in specs if spec.licence))
    for da in ds.data_vars.values():
        da.attrs |= {SOURCE: names, "source_settings": ", ".join(settings)}
        if licences:
            da.attrs["license"] = licences
    return ds


def _settings(spec: SourceSpec) -> str:
    """Tell what decides the values besides the files: a store of another entry is another one."""
    names = ("units", "scale", "offset", "nodata", "convention", "crs", "options", "loader")
    stated = [(name, getattr(spec, name)) for name in names]
    texts = [f"{k}: {json.dumps(v, sort_keys=True)}" for k, v in stated if v not in (None, {})]
    return ", ".join(texts)


def _load_parts(
    chain: Sequence[SourceSpec], grid: GeoBox, period: Period, chunks: int
) -> Iterator[_Part]:
    """Yield what the sources have, one after another; NoDataError if none has anything."""
    reasons = []
    for spec in chain:
        try:
            yield _Part(spec, load_source(spec, grid, period, chunks=chunks))
        except NoDataError as cause:
            reasons.append(str(cause))
    if len(reasons) == len(chain):
        raise NoDataError("\n".join(reasons))


def _join_passes(parts: Sequence[_Part], chunks: int) -> xr.Dataset:
    merged = _with_source(parts[0])
    for part in parts[1:]:
        other = _with_source(part)
        other = other.isel(time=np.flatnonzero(~_are_known(other, merged)))
        if other.sizes["time"]:
            merged = _concat([merged, other], "time")
    index = merged.indexes["time"]
    if index.has_duplicates:
        moment = index[index.duplicated()][0]
        both = ", ".join(merged[SOURCE].values[index == moment])
        msg = f"two passes of {both} start at {moment}; state their orbits and platforms"
        raise SourceError(msg)
    return merged.chunk({"time": 1, "y": chunks, "x": chunks})


def _with_source(part: _Part) -> xr.Dataset:
    if "time" not in part.data.dims:
        msg = (
            f"{part.spec.origin}: {part.spec.name} gives nothing along time and cannot stand in "
            "for a source of acquisitions; remove it from fallbacks"
        )
        raise SourceError(msg)
    names = np.full(part.data.sizes["time"], part.spec.name)
    return part.data.assign_coords({SOURCE: ("time", names)})


def _are_known(passes: xr.Dataset, known: xr.Dataset) -> _Flags:
    """Whether each pass is among the known ones: near in time, nothing known of them differs."""
    starts, others = passes["time"].values[:, None], known["time"].values[None, :]
    near = np.abs(starts - others) <= PASS_GAP.to_timedelta64()
    for name, unknown in (("platform", ""), ("relative_orbit", 0)):
        one, other = passes[name].values[:, None], known[name].values[None, :]
        same = (one == other) | (one == unknown) | (other == unknown)
        near = np.logical_and(near, same)
    result: _Flags = near.any(axis=1)
    return result


def _load_series(
    chain: Sequence[SourceSpec], grid: GeoBox, period: Period, chunks: int
) -> xr.Dataset:
    parts: list[_Part] = []
    reasons = []
    dates, chosen = pd.DatetimeIndex([]), np.empty(0, int)
    for spec in chain:
        asked = period
        if parts:
            lacking = dates[chosen < 0]
            if lacking.empty:
                break
            asked = Period(lacking[0].normalize(), lacking[-1].normalize())
        try:
            part = _Part(spec, load_source(spec, grid, asked, chunks=chunks))
        except NoDataError as cause:
            reasons.append(str(cause))
            continue
        if parts:
            _check_calendar(part, dates, asked)
        else:
            dates = _axis_of(part)
            chosen = np.full(len(dates), -1)
        chosen[dates.isin(_dates_of(part)) & (chosen < 0)] = len(parts)
        parts.append(part)
    if not parts:
        raise NoDataError("\n".join(reasons))
    return _join_dates(parts, np.maximum(chosen, 0))


def _axis_of(part: _Part) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(part.data.indexes["date"])


def _dates_of(part: _Part) -> pd.DatetimeIndex:
    """Return the dates that a source has, as far as it is known without reading."""
    dates = _axis_of(part)
    has = _in_record(part.spec, dates)
    if OBSERVED in part.data.coords:
        has &= part.data[OBSERVED].values
    return dates[has]


def _in_record(spec: SourceSpec, dates: pd.DatetimeIndex) -> _Flags:
    has = np.ones(len(dates), bool)
    if spec.first_day:
        has &= dates >= pd.Timestamp(spec.first_day)
    if spec.last_day:
        has &= dates < pd.Timestamp(spec.last_day) + pd.Timedelta(days=1)
    return has


def _check_calendar(part: _Part, dates: pd.DatetimeIndex, asked: Period) -> None:
    """Refuse a series whose dates are not those of the one that it completes."""
    inside = dates[(dates >= asked.start) & (dates <= asked.end)]
    own = _axis_of(part)
    if not own.equals(inside):
        odd = own.symmetric_difference(inside)[0]
        msg = (
            f"{part.spec.origin}: {part.spec.name} cannot stand in for another source: the two "
            f"have different dates ({odd:%Y-%m-%d} is in one of them only)"
        )
        raise SourceError(msg)


def _join_dates(parts: Sequence[_Part], chosen: npt.NDArray[np.int_]) -> xr.Dataset:
    """Return one series from the part chosen for each date of the first."""
    reference = parts[0].data.drop_vars(OBSERVED, errors="ignore")
    dates = _axis_of(parts[0])
    pieces = []
    for number, part in enumerate(parts):
        wanted = dates[chosen == number]
        if len(wanted):
            pieces.append(part.data.drop_vars(OBSERVED, errors="ignore").sel(date=wanted))
    merged = _concat(pieces, "date").chunk(dict(reference.chunksizes))
    names = np.array([part.spec.name for part in parts])[chosen]
    return merged.assign_coords({f"{name}_source": ("date", names) for name in merged.data_vars})


def _concat(pieces: Sequence[xr.Dataset], dim: str) -> xr.Dataset:
    """Put pieces of one grid after one another in time, with the coordinates that all have."""
    first = pieces[0]
    shared = set.intersection(*({str(name) for name in piece.coords} for piece in pieces))
    aligned = [
        piece.drop_vars(set(piece.coords) - shared).assign_coords(y=first["y"], x=first["x"])
        for piece in pieces
    ]
    minimal: dict[str, Any] = {"data_vars": "minimal", "coords": "minimal", "compat": "override"}
    whole = xr.concat(
        aligned, dim=dim, join="override", combine_attrs="override", **minimal
    ).sortby(dim)
    for name, da in whole.data_vars.items():
        da.attrs = _join_attrs(str(name), [piece[name].attrs for piece in pieces])
    return whole


def _join_attrs(name: str, attrs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    joined = dict(attrs[0])
    for key in _EQUAL_ATTRS:
        found = list(dict.fromkeys(one.get(key) for one in attrs))
        if len(found) > 1:
            msg = (
                f"{name}: the {key} of sources that stand in for one another is "
                f"{' and '.join(map(str, found))}; make it the same in the catalog"
            )
            raise SourceError(msg)
    for key in _FLAG_ATTRS:
        if any(one.get(key) for one in attrs):
            joined[key] = 1
    for key in _NOTE_ATTRS:
        if notes := list(dict.fromkeys(one[key] for one in attrs if key in one)):
            joined[key] = "; ".join(notes)
    if days := [one["composite_days"] for one in attrs if "composite_days" in one]:
        joined["composite_days"] = max(days)  # complete when the longest is
    return joined
