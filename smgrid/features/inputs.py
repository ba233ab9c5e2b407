"""What a layout takes from a cube: checked once, then cut into blocks by index arithmetic.

A cube keeps its variables on nested grids in one DataTree. Here they are found, held against the
layout's contract (variables, backscatter convention, averaging domain, calendars, nesting), and
the one-year window of every acquisition is computed. Nothing is read.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.errors import GridError, LayoutError, WindowError
from smgrid.features.assemble import (
    SCENE_FEATURES,
    SERIES_FEATURES,
    IntArray,
    required_variables,
)
from smgrid.features.layout import FeatureLayout
from smgrid.grid import NestedOffset, crs_name, nested_offset
from smgrid.schema import get_variable
from smgrid.windows import (
    STEPS,
    WINDOW_DAYS,
    Windows,
    composite_calendar,
    first_served_day,
    one_year_windows,
)

_log = logging.getLogger(__name__)

AsOf: TypeAlias = str | date | np.datetime64
"""A date, or ``"acquisition"``; see `smgrid.windows.one_year_windows`."""

Cube: TypeAlias = xr.DataTree | xr.Dataset
"""Variables on nested grids, one node each, or on a single grid."""


@dataclass(frozen=True)
class CellSlice:
    """The cells of one series that a block of base pixels lies in.

    Attributes
    ----------
    y, x
        Slices of the series' grid.
    row, column
        For every pixel row and column of the block the cell inside those slices.
    """

    y: slice
    x: slice
    row: IntArray
    column: IntArray


@dataclass(frozen=True)
class ModelInputs:
    """The variables of a cube that a layout needs, and where their windows lie.

    Attributes
    ----------
    layout
        The contract that these inputs fulfil.
    grid
        Base GeoBox.
    pixels
        Scene (time, y, x) and static (y, x) variables on the base grid.
    series
        (date, y, x) variables on their own nested grids.
    offsets
        How the base pixels lie in each series' grid.
    windows
        Window of every acquisition, incomplete ones included.
    assumed
        Variables whose values the user stated instead of a file providing them.
    """

    layout: FeatureLayout
    grid: GeoBox
    pixels: Mapping[str, xr.DataArray]
    series: Mapping[str, xr.DataArray]
    offsets: Mapping[str, NestedOffset]
    windows: Windows
    assumed: tuple[str, ...]

    @property
    def times(self) -> pd.DatetimeIndex:
        """Start of every acquisition."""
        return pd.DatetimeIndex(self.pixels["vv"]["time"].values)

    def dates(self, name: str, acquisition: int) -> slice:
        """Select the steps of a series that the window of an acquisition covers."""
        if name == "ndvi":
            start = int(self.windows.composite_start[acquisition])
            return slice(start, start + STEPS)
        start = int(self.windows.day_start[acquisition])
        return slice(start, start + WINDOW_DAYS)

    def cells(self, name: str, y: slice, x: slice) -> CellSlice:
        """Find the cells of a series under the base pixels ``y`` and ``x``."""
        offset = self.offsets[name]
        row = offset.rows(np.arange(y.start, y.stop))
        column = offset.columns(np.arange(x.start, x.stop))
        return CellSlice(
            y=slice(int(row[0]), int(row[-1]) + 1),
            x=slice(int(column[0]), int(column[-1]) + 1),
            row=row - row[0],
            column=column - column[0],
        )


def model_inputs(cube: Cube, layout: FeatureLayout, *, as_of: AsOf | None = None) -> ModelInputs:
    """Find and check in a cube everything that a layout needs.

    Parameters
    ----------
    cube
        Cube as made by `load_cube` or `open_cube`.
    layout
        The layout of the model that will read it.
    as_of
        See `smgrid.windows.one_year_windows`.

    Raises
    ------
    LayoutError
        A variable is missing, lies elsewhere than backscatter, has other units than its own or was
        prepared in another convention than the layout's, or the layout does not have every series.
    WindowError
        No acquisition has a full year of series behind it.
    """
    _check_series(layout)
    found = find_variables(cube, required_variables(layout))
    _check_backscatter(found, layout)
    series = {name: found[name] for name in SERIES_FEATURES}
    for name, da in found.items():
        _check_steps(name, da)
        _check_units(name, da)
        if name not in series:
            check_aligned(name, da, found["vv"])
    grid = found["vv"].odc.geobox
    windows = _windows(found, layout, as_of)
    return ModelInputs(
        layout=layout,
        grid=grid,
        pixels={k: v for k, v in found.items() if k not in series},
        series=series,
        offsets={k: _offset(k, grid, v) for k, v in series.items()},
        windows=windows,
        assumed=tuple(k for k, v in found.items() if v.attrs.get("assumed")),
    )


def find_variables(cube: Cube, names: tuple[str, ...]) -> dict[str, xr.DataArray]:
    """Find variables in whatever node of a cube they are.

    Raises
    ------
    LayoutError
        One is missing, is there twice or has other dims than its kind.
    """
    nodes = [cube] if isinstance(cube, xr.Dataset) else [n.to_dataset() for n in cube.subtree]
    _refuse_twins(nodes, names)
    found = {n: ds[n] for n in names for ds in nodes if n in ds.data_vars}
    missing = [n for n in names if n not in found]
    if missing:
        present = sorted({str(v) for ds in nodes for v in ds.data_vars})
        raise LayoutError(
            f"the cube has no {', '.join(missing)}, which is needed; it has "
            f"{', '.join(present) or 'no variable'}. Add a source that provides "
            f"{'it' if len(missing) == 1 else 'them'} to the catalog and build the cube again"
        )
    for name, da in found.items():
        wanted = _dims(name)
        if da.dims != wanted:
            raise LayoutError(f"{name} has dims {da.dims}, expected {wanted}")
    return found


def _refuse_twins(nodes: Sequence[xr.Dataset], names: tuple[str, ...]) -> None:
    for name in names:
        grids = [f"{dict(ds[name].sizes)}" for ds in nodes if name in ds.data_vars]
        if len(grids) > 1:
            raise LayoutError(
                f"the cube has {len(grids)} variables {name}, in nodes of the sizes "
                f"{' and '.join(grids)}; drop all but the one that is meant"
            )


def check_aligned(name: str, da: xr.DataArray, vv: xr.DataArray) -> None:
    """Raise LayoutError unless a scene or static variable lies on the pixels and times of ``vv``.

    What is on them is combined by position, so nothing but this tells a shifted one.
    """
    if da.odc.crs != vv.odc.crs:
        raise LayoutError(
            f"{name} is in the CRS {crs_name(da.odc.crs)}, vv in {crs_name(vv.odc.crs)}; "
            f"{_REGRID}, or state the right CRS"
        )
    for dim in da.dims:
        found, wanted = da[dim].values, vv[dim].values
        if not np.array_equal(found, wanted):
            raise LayoutError(
                f"{name} lies elsewhere along {dim} than vv: {_extent(found)}, expected "
                f"{_extent(wanted)}; {_REGRID}"
            )


_REGRID = "put it on the grid and the acquisitions of vv, as load_cube does with every input"


def _extent(values: npt.NDArray[Any]) -> str:
    if not values.size:
        return "nothing"
    return f"{values.size} from {values[0]} to {values[-1]}"


def _check_units(name: str, da: xr.DataArray) -> None:
    wanted = get_variable(name).units
    found = da.attrs.get("units", wanted)
    if found != wanted:
        raise LayoutError(
            f"{name} of the cube is in {found!r}, expected {wanted!r}; convert it with "
            f"smgrid.schema.convert_units, or build the cube from a catalog that names its units"
        )


def _check_steps(name: str, da: xr.DataArray) -> None:
    """Refuse times that are no moments in UTC, or do not increase."""
    for dim in {"time", "date"} & {*da.dims}:
        values = da[dim].values
        if values.dtype.kind != "M":
            raise LayoutError(
                f"{dim} of {name} is of the type {da[dim].dtype} ({_extent(values)}), expected "
                "datetime64 in UTC without a time zone; other calendars go through "
                "convert_calendar('standard') of xarray"
            )
        if np.isnat(values).any() or (np.diff(values) <= np.timedelta64(0)).any():
            raise LayoutError(
                f"{dim} of {name} does not increase from step to step ({_extent(values)}); sort "
                f"the cube by it, and drop what is there twice or has no {dim}"
            )
    empty = [str(dim) for dim, size in da.sizes.items() if not size]
    if empty:
        raise LayoutError(f"{name} of the cube is empty along {', '.join(empty)}; select less")


def _dims(name: str) -> tuple[str, ...]:
    if name in SCENE_FEATURES:
        return ("time", "y", "x")
    return ("date", "y", "x") if name in SERIES_FEATURES else ("y", "x")


def _check_series(layout: FeatureLayout) -> None:
    missing = {*SERIES_FEATURES} - {column.feature for column in layout.series}
    if missing:
        raise LayoutError(
            f"the layout {layout.name!r} has no series of {', '.join(sorted(missing))}; cubes are "
            f"read by layouts with all of {', '.join(SERIES_FEATURES)}. Networks without them take "
            "tables: use predict_samples"
        )


def _check_backscatter(found: Mapping[str, xr.DataArray], layout: FeatureLayout) -> None:
    for name in ("vv", "vh"):
        for attribute in ("convention", "averaging"):
            is_, wanted = found[name].attrs.get(attribute), getattr(layout, attribute)
            if is_ != wanted:
                raise LayoutError(
                    f"{name} of the cube has {attribute} {is_!r}, the layout {layout.name!r} was "
                    f"trained with {wanted!r}. {_CURES[attribute]}"
                )


_CURES = {
    "convention": (
        "sigma0 and gamma0 differ by a few tenths to two decibels with the incidence angle. Use a "
        "source of the right convention, or convert with load_cube(..., convention=...) or "
        "smgrid build --convention"
    ),
    "averaging": "Set `options: {average: ...}` of the backscatter source and build again",
}


def _offset(name: str, grid: GeoBox, series: xr.DataArray) -> NestedOffset:
    try:
        return nested_offset(grid, series.odc.geobox)
    except GridError as error:
        raise LayoutError(f"the grid of {name} is not nested in the base grid: {error}") from error


def _windows(
    found: Mapping[str, xr.DataArray], layout: FeatureLayout, as_of: AsOf | None
) -> Windows:
    times = pd.DatetimeIndex(found["vv"]["time"].values)
    composites = pd.DatetimeIndex(found["ndvi"]["date"].values)
    days = pd.DatetimeIndex(found["t2m"]["date"].values)
    if not days.equals(pd.DatetimeIndex(found["tp"]["date"].values)):
        raise LayoutError("t2m and tp of the cube do not have the same days")
    windows = one_year_windows(
        times,
        composites=composites,
        days=days,
        rule=layout.window,
        as_of=as_of,
        composite_days=_composite_days(found["ndvi"]),
    )
    first = _first_mappable(composites[0], days[0], layout)
    late = ~windows.complete & (times >= first)
    ends = f"{composites[-1]:%Y-%m-%d} (NDVI) and {days[-1]:%Y-%m-%d} (weather)"
    if not windows.complete.any():
        said = (
            f"none of the {len(times)} acquisitions ({times[0]:%Y-%m-%d} to {times[-1]:%Y-%m-%d}) "
            "has a full year of NDVI and weather behind it: "
        )
        if late.any() and as_of is not None:
            raise WindowError(f"{said}of the series, too little was there as of {as_of}")
        if late.any():
            raise WindowError(f"{said}the series of the cube end with {ends}; {_LONGER}")
        raise WindowError(
            f"{said}the series of the cube begin "
            f"{composites[0]:%Y-%m-%d} (NDVI) and {days[0]:%Y-%m-%d} (weather), so the first date "
            f"that can be mapped is {first:%Y-%m-%d}. Build the cube with an earlier start"
        )
    if late.any() and as_of is None:
        # Published windows, which reach beyond the day of the pass, never serve the last ones.
        level = logging.WARNING if layout.window == "causal" else logging.INFO
        _log.log(
            level,
            "%d of %d acquisitions are not mapped, the first of them %s: the series of the cube "
            "end with %s; %s",
            *(late.sum(), len(times), f"{times[late][0]:%Y-%m-%d}", ends, _LONGER),
        )
    return windows


_LONGER = "extend it with `smgrid update`, or build it with a later end"


def _composite_days(ndvi: xr.DataArray) -> int:
    days = ndvi.attrs.get("composite_days", 16)
    if isinstance(days, (int, np.integer)) and days > 0:
        return int(days)
    raise LayoutError(f"ndvi of the cube has composite_days {days!r}, expected 16 or 8")


def _first_mappable(composite: pd.Timestamp, day: pd.Timestamp, layout: FeatureLayout) -> Any:
    """First day with a window, were the series to go on from where they begin."""
    end = max(composite, day) + pd.DateOffset(years=2)
    return first_served_day(
        composites=composite_calendar((composite, end)),
        days=pd.date_range(day, end, unit="ns"),
        rule=layout.window,
    )
