"""From what was observed of NDVI to the series of a cube: bridged, gaps filled, described."""

from dataclasses import dataclass
from typing import cast

import pandas as pd
import xarray as xr

from smgrid.catalog import SourceSpec
from smgrid.errors import CatalogError
from smgrid.schema import describe
from smgrid.sources import OBSERVED
from smgrid.sources.bridge import apply_bridge, take_bridge
from smgrid.sources.fill import FillMethod, fill_gaps, filled_share
from smgrid.sources.options import take_choice, take_days
from smgrid.windows import Period, composite_calendar

_DAY = pd.Timedelta(1, "D")
_STEP = pd.Timedelta(8, "D")  # at most, from one slot to the next

SERIES_OPTIONS = ("fill", "fill_days", "bridge")
"""The options that `take_filling` and `finish_series` read."""


@dataclass(frozen=True)
class Filling:
    """How gaps are filled, see `fill_gaps`."""

    limit: int
    """Most days that are bridged."""
    method: FillMethod
    """From both sides or from the past alone."""

    def widen(self, period: Period) -> Period:
        """Return the days whose composites can fill a gap of `period`."""
        ahead = 0 if self.method == "hold" else self.limit
        return Period(period.start - self.limit * _DAY, period.end + ahead * _DAY)


def take_filling(spec: SourceSpec, *, default: int) -> Filling:
    """Return what the options ``fill`` and ``fill_days`` of a source state."""
    method = take_choice(spec, "fill", ("interpolate", "hold"), default="interpolate")
    return Filling(take_days(spec, "fill_days", default=default), cast(FillMethod, method))


def finish_series(
    spec: SourceSpec,
    observed: xr.DataArray,
    period: Period,
    *,
    dates: pd.Index,
    filling: Filling,
    composite_days: int,
    chunks: int,
    seen: xr.DataArray | None = None,
) -> xr.Dataset:
    """Bridge to another record, fill gaps, keep the slots of a period and describe them.

    Parameters
    ----------
    spec
        Its ``provides`` and the option ``bridge``.
    observed
        NDVI [1] on the slots of the widened period, NaN where not observed.
    period
        Whose slots are kept.
    dates
        Slots that the provider has anything for.
    filling
        How gaps are filled.
    composite_days
        Length of the period that a value stands for [day].
    chunks
        Tile edge [pixels].
    seen
        Share of each cell that was observed; without it a cell is observed as a whole.

    Returns
    -------
    xr.Dataset
        ``ndvi`` and, if provided, ``ndvi_filled``, with the coordinate ``observed`` along date.

    Raises
    ------
    CatalogError
        If the entry provides something else.
    """
    if bridge := take_bridge(spec):
        observed = apply_bridge(observed, bridge)
    filled = fill_gaps(
        observed, limit=filling.limit, method=filling.method, ends=_slots_around(dates)
    )
    variables = {"ndvi": filled, "ndvi_filled": filled_share(observed, filled, seen=seen)}
    if unknown := set(spec.provides) - set(variables):
        msg = f"{spec.origin}: {spec.loader} gives {', '.join(variables)}, not {min(unknown)}"
        raise CatalogError(f"{msg}; correct provides of {spec.name}")
    wanted = composite_calendar(period)
    ds = xr.Dataset(
        {
            name: describe(variables[name].sel(date=wanted), name).assign_attrs(
                composite_days=composite_days
            )
            for name in spec.provides
        }
    )
    ds = ds.chunk({"date": -1, "y": chunks, "x": chunks})
    return ds.assign_coords({"date": wanted, OBSERVED: ("date", wanted.isin(dates))})


def _slots_around(dates: pd.Index) -> tuple[pd.Timestamp, pd.Timestamp]:
    """Return the last slot before and the first one after these."""
    first, last = dates.min(), dates.max()
    earlier = composite_calendar(Period(first - _STEP, first - _DAY))
    return earlier[-1], composite_calendar(Period(last + _DAY, last + _STEP))[0]
