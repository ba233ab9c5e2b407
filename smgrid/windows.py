"""Time: periods, the 8-day composite calendar, and the one-year windows of the network as indices.

The calendar is that of the MODIS vegetation indices: composites start on day of year 1, 9, ..., 361
of every year, the 16-day products of Terra (1, 17, ...) and Aqua (9, 25, ...) interleaved (Didan et
al. 2015, MODIS Vegetation Index User's Guide, Collection 6). The step across New Year is 5 days, 6
in leap years. 46 consecutive composites always fit the 363 days that end with the last of them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smgrid.errors import ConfigError, WindowError

WindowRule = Literal["published", "causal"]

STEPS = 46  #: composites, and 8-day blocks of weather, in one window
BLOCK_DAYS = 8  #: days of weather in one block
WINDOW_DAYS = STEPS * BLOCK_DAYS  #: days of weather in one window

_DAY = pd.Timedelta(days=1)


@dataclass(frozen=True)
class Period:
    """A span of whole days in UTC, both ends included."""

    start: pd.Timestamp  #: 00:00 of the first day
    end: pd.Timestamp  #: 00:00 of the last day

    def __post_init__(self) -> None:
        for day in (self.start, self.end):
            if not isinstance(day, pd.Timestamp) or day.tz is not None or day != day.normalize():
                raise ConfigError(f"period: expected days at 00:00, no time zone, found {day!r}")
        if self.start > self.end:
            raise ConfigError(f"period {self}: the first day is after the last; exchange them")

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Period of ``(first, last)``, ``"first/last"`` or one date, each as pandas parses it.

        A year ("2024") or month ("2024-05") stands for all of its days; a time zone is converted to
        UTC, and the time of day is dropped.

        Raises
        ------
        ConfigError
            Not a period, or its ends are exchanged.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            value = value.split("/")
        ends = list(value) if isinstance(value, list | tuple) else [value]
        if len(ends) not in (1, 2):
            raise ConfigError(f"period: expected a first and a last day, found {value!r}")
        return cls(_parse_day(ends[0], "start"), _parse_day(ends[-1], "end"))

    @property
    def days(self) -> pd.DatetimeIndex:
        """Every day of the period."""
        return pd.date_range(self.start, self.end, freq="D", unit="ns")

    def __str__(self) -> str:
        return f"{self.start:%Y-%m-%d}/{self.end:%Y-%m-%d}"


@dataclass(frozen=True)
class Windows:
    """One-year windows of n acquisitions, as integer indices; -1 marks a window without data."""

    composite_start: NDArray[np.int64]  #: (n,) first of 46 consecutive composites
    day_start: NDArray[np.int64]  #: (n,) first of 368 consecutive days
    complete: NDArray[np.bool_]  #: (n,) both are there

    @property
    def composite_index(self) -> NDArray[np.int64]:
        """Composites of each window (n, 46), oldest first; -1 throughout where there is none."""
        return _expand(self.composite_start, np.arange(STEPS))

    @property
    def day_index(self) -> NDArray[np.int64]:
        """Days of each block of each window (n, 46, 8); -1 throughout where there is none."""
        return _expand(self.day_start, np.arange(WINDOW_DAYS).reshape(STEPS, BLOCK_DAYS))


def composite_calendar(period: Any) -> pd.DatetimeIndex:
    """Composite starts within a period: day 1, 9, ..., 361 of every year."""
    days = Period.parse(period).days
    return days[days.day_of_year % BLOCK_DAYS == 1]


def day_of_year(times: Any) -> NDArray[np.float64]:
    """Day of the year of each time, 1 to 366."""
    return pd.DatetimeIndex(times).day_of_year.to_numpy(dtype=np.float64)


def one_year_windows(
    times: Any,
    *,
    composites: pd.DatetimeIndex,
    days: pd.DatetimeIndex,
    rule: WindowRule,
    as_of: Any = None,
    composite_days: int = 16,
) -> Windows:
    """One-year windows of composites and daily weather for each acquisition.

    Parameters
    ----------
    times : datetime_like
        Acquisition times (n,), UTC.
    composites : pandas.DatetimeIndex
        Consecutive slots of the composite calendar.
    days : pandas.DatetimeIndex
        Consecutive days, at 00:00.
    rule : {"published", "causal"}
        Both take the 46 composites that end with L, the last one that starts on or before the
        acquisition. "published" takes the 368 days from the first of these composites on, as the
        published preparation code of DenseSM does: the last block ends 2 to 10 days *after* the
        acquisition. "causal" takes the 368 days that end with the day of the acquisition.
    as_of : optional
        What was known when ("causal" only). None: an archive, a composite counts once its period
        has started although it holds up to `composite_days` - 1 later days. A time: the map as it
        could be made at the end of that day; a composite counts only if its period was over before
        that day, and an acquisition after that day has no window. "acquisition": the same with the
        day of each acquisition. The window then ends with an earlier composite; the weather still
        ends with the day of the acquisition, whose total is known when that day is over.
    composite_days : int
        Length of a composite's period [day]: 16 (MODIS) or 8.

    Raises
    ------
    WindowError
        An axis has a gap or is empty; the message names the first gap.
    ConfigError
        An unknown rule, or `as_of` with "published", whose weather lies in the future.
    """
    _check_rule(rule, as_of)
    _check_axis("composites", composites, composite_calendar)
    _check_axis("days", days, lambda period: period.days)
    acquired = _to_utc(pd.DatetimeIndex(times)).normalize()
    latest, known = acquired, np.ones(len(acquired), dtype=bool)
    if as_of is not None:
        horizon = _horizon(as_of, acquired)
        ended = horizon - composite_days * _DAY
        latest, known = acquired.where(acquired <= ended, ended), acquired <= horizon
    last = composites.get_indexer(_slot(latest))
    first = np.where((last >= STEPS - 1) & known, last - (STEPS - 1), -1).astype(np.int64)
    opening = acquired - (WINDOW_DAYS - 1) * _DAY if rule == "causal" else composites[first]
    begin = days.get_indexer(opening).astype(np.int64)
    fits = (begin >= 0) & (begin + WINDOW_DAYS <= len(days)) & known
    if rule == "published":
        fits &= first >= 0  # without composites there is no first day to start from
    begin = np.where(fits, begin, -1)
    return Windows(first, begin, (first >= 0) & (begin >= 0))


def first_served_day(
    *,
    composites: pd.DatetimeIndex,
    days: pd.DatetimeIndex,
    rule: WindowRule,
    as_of: Any = None,
    composite_days: int = 16,
) -> pd.Timestamp:
    """First day on which an acquisition has a complete window, for messages and for planning.

    Parameters are those of `one_year_windows`.

    Raises
    ------
    WindowError
        The axes hold no complete window.
    """
    latest = max(composites[-1], days[-1]) + (composite_days + BLOCK_DAYS) * _DAY
    candidates = pd.date_range(max(composites[0], days[0]), latest, freq="D", unit="ns")
    windows = one_year_windows(
        candidates,
        composites=composites,
        days=days,
        rule=rule,
        as_of=as_of,
        composite_days=composite_days,
    )
    if not windows.complete.any():
        raise WindowError(
            f"composites {_span(composites)} and days {_span(days)} hold no complete window: "
            f"the rule {rule!r} needs {STEPS} composites and {WINDOW_DAYS} days of weather; "
            "load a longer period"
        )
    return candidates[int(windows.complete.argmax())]


def _check_rule(rule: str, as_of: Any) -> None:
    if rule not in get_args(WindowRule):
        raise ConfigError(f"rule: expected one of {get_args(WindowRule)}, found {rule!r}")
    if rule == "published" and as_of is not None:
        raise ConfigError(
            f'as_of {as_of!r}: the rule "published" uses weather after the acquisition and cannot '
            'tell what was known; use a layout with the rule "causal"'
        )


def _check_axis(
    name: str, axis: pd.DatetimeIndex, regular: Callable[[Period], pd.DatetimeIndex]
) -> None:
    """Hold an axis against all regular steps between its ends."""
    if len(axis) == 0:
        raise WindowError(f"{name}: expected at least one date, found none")
    span = _span(axis)
    if not (axis.is_monotonic_increasing and axis.is_unique):
        raise WindowError(f"{name} {span}: expected increasing dates without repetition")
    expected = regular(Period.parse((axis[0], axis[-1])))
    surplus, missing = axis.difference(expected), expected.difference(axis)
    if len(surplus):
        raise WindowError(f"{name} {span}: {surplus[0]} is not one of the regular steps")
    if len(missing):
        raise WindowError(
            f"{name} {span}: expected consecutive steps, {_date(missing[0])} is missing"
        )


def _horizon(as_of: Any, acquired: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """Day of which each acquisition's window may know."""
    if isinstance(as_of, str) and as_of == "acquisition":
        return acquired
    return pd.DatetimeIndex([_parse_day(as_of, "end")] * len(acquired))


def _slot(days: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """Last composite start on or before each day."""
    return days - pd.to_timedelta((days.day_of_year - 1) % BLOCK_DAYS, unit="D")


def _expand(start: NDArray[np.int64], steps: NDArray[np.int64]) -> NDArray[np.int64]:
    first = start.reshape(-1, *(1,) * steps.ndim)
    return np.where(first < 0, -1, first + steps)


def _to_utc(times: pd.DatetimeIndex) -> pd.DatetimeIndex:
    return times if times.tz is None else times.tz_convert("UTC").tz_localize(None)


def _parse_day(value: Any, edge: Literal["start", "end"]) -> pd.Timestamp:
    if isinstance(value, str) and re.fullmatch(r"\d{4}(-\d{2})?", value.strip()):
        span = pd.Period(value.strip())
        return (span.start_time if edge == "start" else span.end_time).normalize().as_unit("ns")
    try:
        if isinstance(value, int | float):
            raise TypeError("a number is not a date")
        day = pd.DatetimeIndex([pd.Timestamp(value)])
        if day.hasnans:
            raise ValueError("not a time")
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{value!r} is not a date that pandas parses: {error}") from error
    return _to_utc(day).normalize().as_unit("ns")[0]


def _date(day: pd.Timestamp) -> str:
    return str(day.date())


def _span(axis: pd.DatetimeIndex) -> str:
    return f"{_date(axis[0])}/{_date(axis[-1])}"
