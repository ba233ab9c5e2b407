"""A regular product from irregular maps: one value per period, with its age and what it is made of.

Acquisitions come when satellites pass; users of time series want steps of equal length. One Dask
task per step and tile reads the acquisitions of the step, and earlier ones if values are carried
forward, so that memory depends on the tile and the length of a step alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from operator import getitem
from typing import Any, Literal, cast, get_args

import dask.array as da
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from smgrid.errors import ConfigError, NoDataError
from smgrid.schema import describe, get_variable
from smgrid.windows import BLOCK_DAYS, Period, composite_calendar

VALUE, SPREAD, FLAGS = "soil_moisture", "soil_moisture_std", "flags"
AGE, COUNT = "soil_moisture_age", "soil_moisture_count"
COMPOSITES = f"{BLOCK_DAYS}D"
"""The composite calendar, which begins anew on each 1 January."""

Choice = Literal["mean", "last"]
Values = npt.NDArray[Any]

_DAY = np.timedelta64(1, "D")
_NO_VALUE = "input_missing"
_DIMS = ("time", "y", "x")
_TIME_ATTRS = {"long_name": "start of the step, UTC", "bounds": "time_bnds"}
_ENDS = (
    pd.offsets.MonthEnd,
    pd.offsets.BusinessMonthEnd,
    pd.offsets.SemiMonthEnd,
    pd.offsets.QuarterEnd,
    pd.offsets.BQuarterEnd,
    pd.offsets.YearEnd,
    pd.offsets.BYearEnd,
)


def regular_product(
    sm: xr.Dataset,
    *,
    period: str = COMPOSITES,
    within: Any = None,
    value: Choice = "mean",
    max_age: float = 0.0,
    correlation: float = 1.0,
) -> xr.Dataset:
    """Make regular steps of maps at irregular times.

    Parameters
    ----------
    sm
        Maps with ``soil_moisture`` (time, y, x), as of `predict` or `open_map`, in memory or lazy;
        ``soil_moisture_std``, ``flags`` and other quantities of the same dims if there are any.
    period
        Length of a step: ``"8D"`` or ``"8d"`` is the MODIS composite calendar (day of year 1, 9,
        ..., 361); anything else is an offset of pandas with whose days steps begin, such as
        ``"MS"`` (calendar months), ``"W-MON"`` (weeks from Monday to Sunday) or ``"10D"`` (counted
        from the first day of `within`).
    within
        First and last day (UTC) that the steps cover; default: those of the acquisitions. Values
        of earlier acquisitions are carried into these steps too, as `max_age` allows.
    value
        ``"mean"`` of a step's valid acquisitions, or the ``"last"`` of them.
    max_age
        A step without a valid acquisition takes over the value of the latest one that has one, if
        this value is at most so many days old when the step ends. 0 carries nothing forward.
    correlation
        Of the errors of acquisitions in one step, 0 to 1.

    Returns
    -------
    xr.Dataset
        Lazy, dims (time, y, x); ``time`` is the first moment of a step and ``time_bnds`` both
        ends, of which the last does not belong to it. NaN where there is no value.
        ``soil_moisture_age`` is the time from the last acquisition that was used to the end of the
        step [day], ``soil_moisture_count`` the number of valid acquisitions in the step, 0 for a
        value that was carried forward. Flags are those of all acquisitions that were used
        together; where there is no value those of all in the step, or ``input_missing`` if there
        are none. Other quantities are treated as soil moisture is.

    Raises
    ------
    ConfigError
        There is no soil moisture, its times are not increasing, or an argument is none.
    NoDataError
        There is no acquisition, and `within` is not given.

    Notes
    -----
    The spread of a mean of n acquisitions is ``sqrt((1 - r) * sum(s**2) + r * sum(s)**2) / n`` with
    one correlation r between any two (law of propagation of uncertainty, JCGM 100:2008, eq. 16).
    With r = 1 it is the mean of the spreads, which the spread of the members' means does not exceed
    (Minkowski) and comes close to, as members are the same networks on every date.
    """
    _check(sm, value, max_age, correlation)
    times = sm["time"].values.astype("datetime64[ns]")
    period = _canonical(period)
    days = Period.parse(_span(sm, within))
    longer = _edges(period, days, _first_used(times, days, max_age))
    before = int(longer.searchsorted(days.start, side="right")) - 1
    edges = longer[before:]
    spec = _Spec(value, max_age, correlation, _gridded(sm), _missing_bit(sm))
    steps = [_find_step(times, longer, place, max_age) for place in range(before, len(longer) - 1)]
    arrays = _lazy(sm, spec, steps, times)
    ds = xr.Dataset(
        {name: _describe(sm, name, array, value) for name, array in arrays.items()},
        coords=_coords(sm, edges),
        attrs=sm.attrs | _attrs(period, value, max_age, correlation),
    )
    for array in ds.data_vars.values():
        array.encoding["grid_mapping"] = "spatial_ref"
    return ds


def step_edges(period: str, within: Any) -> pd.DatetimeIndex:
    """Return where steps begin, and as the last one where the last step ends.

    Parameters
    ----------
    period
        As in `regular_product`.
    within
        First and last day, both in one of the steps.

    Raises
    ------
    ConfigError
        If `period` is no length that pandas knows.
    """
    days = Period.parse(within)
    return _edges(_canonical(period), days, days.start)


def _canonical(period: str) -> str:
    """Return the composite calendar by its one name; pandas knows days as "d" as well."""
    return COMPOSITES if period.upper() == COMPOSITES else period


def _first_used(times: npt.NDArray[np.datetime64], days: Period, max_age: float) -> pd.Timestamp:
    """Return the first moment of which a value may be carried into one of the days."""
    if not times.size:
        return days.start
    oldest = days.start - pd.Timedelta(max_age, "D")
    return min(days.start, max(oldest, pd.Timestamp(times[0])))


def _edges(period: str, days: Period, since: pd.Timestamp) -> pd.DatetimeIndex:
    """Return the edges of the steps of some days and of those before, back to a moment."""
    after = days.end + pd.Timedelta(1, "D")
    if period == COMPOSITES:
        margin = pd.Timedelta(BLOCK_DAYS, "D")
        starts = composite_calendar((since - margin, after + margin))
    else:
        offset = _offset(period)
        is_tick = isinstance(offset, pd.offsets.Tick)
        begin = days.start if is_tick else offset.rollback(days.start)
        # Counted backwards, so that earlier steps change none of those asked for.
        while begin > since:
            begin -= offset
        starts = pd.date_range(begin, after + 2 * offset, freq=offset, unit="ns")
    first = int(starts.searchsorted(since, side="right")) - 1
    last = int(starts.searchsorted(after, side="left"))
    return pd.DatetimeIndex(starts[first : last + 1].to_numpy())


def _offset(period: str) -> pd.offsets.BaseOffset:
    msg = f"period is {period!r}, expected '8D' or an offset of pandas such as 'MS' or '10D'"
    try:
        offset = pd.tseries.frequencies.to_offset(period)
    except (ValueError, TypeError) as error:
        raise ConfigError(msg) from error
    if offset is None or offset.n < 1:
        raise ConfigError(msg)
    if isinstance(offset, _ENDS):
        raise ConfigError(
            f"period is {period!r}, but steps begin with the days of the offset, here the last "
            "ones; give 'MS' for calendar months, 'QS' for quarters or 'YS' for years"
        )
    return offset


def _check(sm: xr.Dataset, value: str, max_age: float, correlation: float) -> None:
    if VALUE not in sm or sm[VALUE].dims != _DIMS:
        found = sm[VALUE].dims if VALUE in sm else f"only {', '.join(map(str, sm.data_vars))}"
        raise ConfigError(f"sm needs {VALUE} with the dims {_DIMS}, found {found}")
    if not sm.indexes["time"].is_monotonic_increasing:
        raise ConfigError("the times of sm are not increasing; sort it with sm.sortby('time')")
    if value not in get_args(Choice):
        raise ConfigError(f"value is {value!r}, expected one of {get_args(Choice)}")
    oldest = cast("tuple[float, float]", get_variable(AGE).valid_range)[1]
    if not 0 <= max_age <= oldest:
        raise ConfigError(f"max_age is {max_age}, expected 0 to {oldest:g} days")
    if not 0 <= correlation <= 1:
        raise ConfigError(f"correlation is {correlation}, expected 0 to 1")


def _span(sm: xr.Dataset, within: Any) -> Any:
    if within is not None:
        return within
    if not sm.sizes["time"]:
        raise NoDataError("sm holds no acquisition; give the days that the steps cover as within=")
    return sm["time"].values[0], sm["time"].values[-1]


def _gridded(sm: xr.Dataset) -> tuple[str, ...]:
    """Return the variables to combine: quantities and flags."""
    like = [str(name) for name, array in sm.data_vars.items() if array.dims == _DIMS]
    return tuple(name for name in like if name == FLAGS or sm[name].dtype.kind == "f")


def _missing_bit(sm: xr.Dataset) -> int:
    attrs = sm[FLAGS].attrs if FLAGS in sm else {}
    meanings = str(attrs.get("flag_meanings", "")).split()
    masks = [int(mask) for mask in np.atleast_1d(attrs.get("flag_masks", []))]
    return dict(zip(meanings, masks, strict=False)).get(_NO_VALUE, 0)


def _coords(sm: xr.Dataset, edges: pd.DatetimeIndex) -> dict[Any, Any]:
    return {
        **{name: c for name, c in sm.coords.items() if "time" not in c.dims},
        "time": ("time", edges[:-1].to_numpy(), _TIME_ATTRS),
        "time_bnds": (("time", "nv"), np.stack([edges[:-1], edges[1:]], axis=1)),
    }


def _attrs(period: str, value: Choice, max_age: float, correlation: float) -> dict[str, Any]:
    carried = f", or a value that is up to {max_age:g} days old when the step ends"
    return {
        "summary": f"Surface soil moisture in regular steps ({period}): the {value} of what an "
        "ensemble of neural networks estimated for the Sentinel-1 acquisitions in each step"
        f"{carried if max_age else ''}.",
        "smgrid_regular": period,
        "smgrid_regular_value": value,
        "smgrid_regular_max_age": float(max_age),
        "smgrid_regular_correlation": float(correlation),
    }


def _describe(sm: xr.Dataset, name: str, array: da.Array, value: Choice) -> xr.DataArray:
    found = xr.DataArray(array, dims=_DIMS, name=name)
    if name in {AGE, COUNT}:
        return describe(found, name)
    found.attrs = dict(sm[name].attrs)
    if array.dtype.kind == "f":
        before = found.attrs.get("cell_methods")
        method = f"time: {'mean' if value == 'mean' else 'point'}"
        found.attrs["cell_methods"] = f"{before} {method}" if before else method
    return found


@dataclass(frozen=True)
class _Spec:
    """What every task needs."""

    value: Choice
    max_age: float
    correlation: float
    names: tuple[str, ...]
    missing_bit: int


@dataclass(frozen=True)
class _Step:
    """One step: its acquisitions, and those of earlier steps whose values it may take over."""

    end: np.datetime64
    groups: tuple[tuple[int, ...], ...]
    """Places of acquisitions along time, of the step itself and then of earlier ones."""


def _find_step(
    times: npt.NDArray[np.datetime64], edges: pd.DatetimeIndex, place: int, max_age: float
) -> _Step:
    borders = times.searchsorted(edges.to_numpy())
    end = edges[place + 1].to_datetime64()
    groups = [tuple(range(borders[place], borders[place + 1]))]
    for earlier in range(place - 1, -1, -1):
        found = tuple(range(borders[earlier], borders[earlier + 1]))
        if found and (end - times[found[-1]]) / _DAY <= max_age:
            groups.append(found)
        elif found or (end - edges[earlier].to_datetime64()) / _DAY > max_age:
            break
    return _Step(end, tuple(groups))


def _lazy(
    sm: xr.Dataset, spec: _Spec, steps: Sequence[_Step], times: npt.NDArray[np.datetime64]
) -> dict[str, da.Array]:
    """Return one array per output, each picking its part of what a task makes."""
    first: da.Array = sm[VALUE].chunk({"time": 1}).data
    _, y_chunks, x_chunks = first.chunks
    sources = [
        sm[name].chunk({"time": 1}).data.rechunk({1: y_chunks, 2: x_chunks}) for name in spec.names
    ]
    token = tokenize(spec, steps, times, [source.name for source in sources])
    unit, shared = f"regular-{token}", f"regular-spec-{token}"
    layer: dict[Any, Any] = {shared: spec}
    keys = list(product(range(len(steps)), range(len(y_chunks)), range(len(x_chunks))))
    for at, iy, ix in keys:
        blocks = [
            [[(source.name, i, iy, ix) for i in places] for source in sources]
            for places in steps[at].groups
        ]
        ages = [(steps[at].end - times[list(places)]) / _DAY for places in steps[at].groups]
        shape = (y_chunks[iy], x_chunks[ix])
        layer[unit, at, iy, ix] = (_combine, shared, shape, ages, blocks)
    graph = HighLevelGraph.from_collections(unit, layer, dependencies=sources)
    chunks = ((1,) * len(steps), y_chunks, x_chunks)
    arrays = {}
    for place, name in enumerate((*spec.names, AGE, COUNT)):
        output = f"{name}-{unit}"
        picks = {(output, *key): (getitem, (unit, *key), place) for key in keys}
        layers: dict[str, Any] = {**graph.layers, output: picks}
        needs = {**graph.dependencies, output: {unit}}
        dtype = sm[FLAGS].dtype if name == FLAGS else np.dtype(np.float32)
        arrays[name] = da.Array(HighLevelGraph(layers, needs), output, chunks, dtype=dtype)
    return arrays


def _combine(
    spec: _Spec, shape: tuple[int, int], ages: list[Values], blocks: list[list[list[Values]]]
) -> tuple[Values, ...]:
    """Return every output of one step and tile, each (1, y, x); runs in a task.

    Parameters
    ----------
    spec, shape
        What every task needs, and the tile's rows and columns.
    ages, blocks
        By group of acquisitions, those of the step itself first: ages [day] when the step ends,
        and by variable the block of each acquisition.
    """
    found = _nothing(spec, shape)
    is_open = np.ones(shape, bool)
    for place, (age, arrays) in enumerate(zip(ages, blocks, strict=True)):
        if not age.size:
            continue
        stacks = {n: np.concatenate(array) for n, array in zip(spec.names, arrays, strict=True)}
        part = _summarise(spec, stacks, age)
        taken = is_open & (part[COUNT] > 0)
        if place == 0:
            found[COUNT] = part[COUNT]
            if FLAGS in stacks:
                found[FLAGS] = np.bitwise_or.reduce(stacks[FLAGS], axis=0)
        else:
            taken &= part[AGE] <= spec.max_age
        for name in (*spec.names, AGE):
            found[name] = np.where(taken, part[name], found[name])
        is_open &= ~taken
        if not is_open.any():
            break
    return tuple(
        found[name][None].astype(np.uint16 if name == FLAGS else np.float32)
        for name in (*spec.names, AGE, COUNT)
    )


def _nothing(spec: _Spec, shape: tuple[int, int]) -> dict[str, Values]:
    found: dict[str, Values] = {name: np.full(shape, np.nan) for name in (*spec.names, AGE)}
    if FLAGS in found:
        found[FLAGS] = np.full(shape, spec.missing_bit, np.uint16)
    return found | {COUNT: np.zeros(shape)}


def _summarise(spec: _Spec, stacks: Mapping[str, Values], ages: Values) -> dict[str, Values]:
    """Return what the acquisitions of one step make, and how old the last of them is."""
    valid = np.isfinite(stacks[VALUE])
    last = len(valid) - 1 - valid[::-1].argmax(axis=0)
    part: dict[str, Values] = {AGE: ages[last], COUNT: valid.sum(axis=0)}
    for name, stack in stacks.items():
        if spec.value == "last":
            part[name] = np.take_along_axis(stack, last[None], axis=0)[0]
        elif name == FLAGS:
            part[name] = np.bitwise_or.reduce(np.where(valid, stack, 0).astype(stack.dtype), axis=0)
        else:
            part[name] = _mean(stack, valid, spec.correlation if name == SPREAD else None)
    return part


def _mean(stack: Values, valid: Values, correlation: float | None) -> Values:
    """Return the mean over the first axis, or with a correlation the spread of such a mean."""
    used = valid & np.isfinite(stack)
    values = np.where(used, stack, 0).astype(np.float64)
    count = used.sum(axis=0)
    total = values.sum(axis=0)
    if correlation is not None:
        squares = np.square(values).sum(axis=0)
        total = np.sqrt((1 - correlation) * squares + correlation * np.square(total))
    mean = np.full(count.shape, np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean
