"""Pictures of soil moisture on matplotlib without a display: maps, time series, density scatter.

The interactive page of the same maps is in `smgrid.export.page`.
"""

import textwrap
from collections.abc import Mapping
from os import PathLike
from typing import Any, TypeAlias

import dask
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from odc.geo.geobox import GeoBox

from smgrid.errors import ConfigError, NoDataError
from smgrid.export.drawing import (
    VERMILION,
    VOLUME,
    Band,
    Kind,
    aspect_of,
    axes_of,
    colour_range,
    draw_flags,
    draw_map,
    draw_series,
)
from smgrid.export.pixel import find_pixel, flag_bits, lines_at
from smgrid.features.inputs import find_variables
from smgrid.metrics import Scores, score_arrays

DENSITY_MAP = "viridis_r"

_Values: TypeAlias = npt.NDArray[np.floating]
_DAY = np.timedelta64(1, "D")


def plot_maps(
    panels: Mapping[str, xr.DataArray],
    path: str | PathLike[str],
    *,
    title: str = "",
    differences: tuple[str, ...] = (),
    spreads: tuple[str, ...] = (),
) -> None:
    """Write a row of maps as PNG.

    Parameters
    ----------
    panels
        (y, x) fields in m3 m-3 by their caption.
    path
        File to write.
    title
        Above all panels.
    differences
        Captions drawn on a scale symmetric around zero.
    spreads
        Captions drawn on a scale from zero.
    """
    grid = next(iter(panels.values())).odc.geobox
    width = 3.9 * len(panels) + 0.4
    height = _height_of_maps(grid, len(panels), width)
    figure = Figure(figsize=(width, height + 0.3), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(panels), sharex=True, sharey=True))
    plain = [a for n, a in panels.items() if n not in (*differences, *spreads)]
    limits = colour_range(plain)
    for axis, (name, field) in zip(axes, panels.items(), strict=True):
        kind: Kind = "difference" if name in differences else "value"
        draw_map(axis, field, name, kind="spread" if name in spreads else kind, limits=limits)
    axes[0].set_ylabel(axes_of(grid)[2])
    figure.suptitle(title)
    _save(figure, path)


def _height_of_maps(grid: GeoBox, panels: int, width: float) -> float:
    """Return the height in inches of a row of maps with titles and axes, in a figure of a width."""
    box = grid.boundingbox
    each = width / panels - 1.4  # without the colour bar and its numbers
    return 1.1 + min(each * aspect_of(grid) * box.span_y / box.span_x, 6.0)


def plot_overview(
    sm: xr.Dataset,
    path: str | PathLike[str],
    *,
    date: Any = None,
    rain: xr.DataArray | None = None,
    title: str = "",
) -> None:
    """Write one picture of a map as PNG: a date in all that is known of it, and the region's mean.

    Parameters
    ----------
    sm
        Result of `predict`, or a store of it opened with `open_cube`: soil moisture and its
        spread; the width of the calibrated interval, the dissimilarity with a line around what
        lies beyond its threshold, and the share of pixels with each flag are drawn where present.
    path
        File to write.
    date
        The acquisition nearest to it is shown; default: the one with the most valid pixels.
    rain
        (date,) daily precipitation in m, drawn as bars from above.
    title
        Above the picture.

    Raises
    ------
    NoDataError
        The map has no valid pixel.
    """
    moisture, spread = sm["soil_moisture"], sm["soil_moisture_std"]
    space = ("y", "x")
    valid, mean, spread = dask.compute(
        moisture.notnull().mean(space), moisture.mean(space), spread.mean(space)
    )
    if not valid.any():
        raise NoDataError("the map has no valid pixel to draw; check its inputs and flags")
    times = pd.DatetimeIndex(sm["time"].values)
    step = int(valid.values.argmax()) if date is None else _nearest(times, date)
    one = sm.isel(time=step).compute()
    panels = _overview_panels(one, f"soil moisture, {times[step]:%Y-%m-%d %H:%M} UTC")
    width = max(12.0, 4.2 * len(panels))
    heights = (_height_of_maps(one.odc.geobox, len(panels), width), 3.3)
    figure = Figure(figsize=(width, sum(heights) + 0.3), layout="constrained")
    upper, lower = np.asarray(figure.subfigures(2, 1, height_ratios=heights))
    axes = upper.subplots(1, len(panels), sharex=True, sharey=True)
    for axis, (name, (field, kind)) in zip(axes, panels.items(), strict=True):
        draw_map(axis, field, name, kind=kind)
    axes[0].set_ylabel(axes_of(one.odc.geobox)[2])
    if "flags" in one:
        below, beside = lower.subplots(1, 2, width_ratios=(2.6, 1))
        draw_flags(beside, one["flags"])
    else:
        below = lower.subplots()
    draw_series(below, {"mean of the region": mean}, (mean - spread, mean + spread), rain)
    figure.suptitle(title)
    _save(figure, path)


def _overview_panels(one: xr.Dataset, name: str) -> dict[str, tuple[xr.DataArray, Kind]]:
    panels: dict[str, tuple[xr.DataArray, Kind]] = {
        name: (one["soil_moisture"], "value"),
        "spread of the members": (one["soil_moisture_std"], "spread"),
    }
    width = interval_width(one)
    if width is not None:
        panels[width.attrs["long_name"]] = (width, "spread")
    if "dissimilarity" in one:
        panels["dissimilarity to the training"] = (one["dissimilarity"], "distance")
    return panels


def interval_width(sm: xr.Dataset) -> xr.DataArray | None:
    """Return how wide the calibrated interval of a map is [m3 m-3]; ``None`` if it has none."""
    if "soil_moisture_upper" not in sm:
        return None
    width = sm["soil_moisture_upper"] - sm["soil_moisture_lower"]
    name = f"width of the {interval_name(sm)}"
    return width.assign_attrs(long_name=name, units="m3 m-3")


def interval_name(sm: xr.Dataset) -> str:
    """Return how the band around values of a map is called."""
    if "soil_moisture_upper" not in sm:
        return "± spread"
    share = sm["soil_moisture_upper"].attrs.get("coverage")
    return "calibrated interval" if share is None else f"{100 * float(share):.3g} % interval"


def mean_rain(cube: xr.DataTree | xr.Dataset, sm: xr.Dataset) -> xr.DataArray:
    """Return the regional mean of daily rain [m] over the days of a map, read into memory."""
    tp = find_variables(cube, ("tp",))["tp"]
    first, last = pd.DatetimeIndex(sm["time"].values)[[0, -1]]
    days = tp.sel(date=slice(first.normalize(), last.normalize()))
    return days.mean(("y", "x"), keep_attrs=True).compute()


def plot_series(
    lines: Mapping[str, xr.DataArray],
    path: str | PathLike[str],
    *,
    title: str = "",
    band: tuple[xr.DataArray, xr.DataArray] | None = None,
    rain: xr.DataArray | None = None,
) -> None:
    """Write time series of soil moisture as PNG.

    Parameters
    ----------
    lines
        (time,) series in m3 m-3 by name; the first is drawn with markers.
    path
        File to write.
    title
        Above the plot.
    band
        Lower and upper bound around the first line.
    rain
        (date,) daily precipitation in m, drawn as bars from above.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    draw_series(figure.subplots(), lines, band, rain)
    figure.suptitle(title)
    _save(figure, path)


def plot_point(
    sm: xr.Dataset,
    path: str | PathLike[str],
    *,
    x: float | None = None,
    y: float | None = None,
    lon: float | None = None,
    lat: float | None = None,
    reference: xr.DataArray | None = None,
    rain: xr.DataArray | None = None,
    title: str = "",
) -> None:
    """Write the time series of the pixel that holds a point as PNG.

    The values are those of the pixel, not interpolated. Acquisitions without a value break the
    line. Those with a flag are hollow, and the legend names the flags.

    Parameters
    ----------
    sm
        Result of `predict`, or a store of it opened with `open_cube`. The band is its calibrated
        interval, or one spread of the members to both sides where it has none.
    path
        File to write.
    x, y
        Point in the CRS of the map.
    lon, lat
        Or in degrees (WGS 84).
    reference
        Soil moisture in m3 m-3: a (time,) series, or (station, time) with ``longitude`` and
        ``latitude``, as of `open_stations`, of which the stations in the pixel are drawn.
    rain
        (date,) daily precipitation in m, drawn as bars from above.
    title
        Above the plot; the pixel and the CRS stand below it.

    Raises
    ------
    ConfigError
        Not exactly one pair of coordinates, a point outside the map, or no station in its pixel.
    NoDataError
        The pixel has no value at all.
    """
    grid = sm.odc.geobox
    pixel = find_pixel(grid, x=x, y=y, lon=lon, lat=lat)
    names = [n for n in sm.data_vars if str(n).startswith("soil_moisture") or n == "flags"]
    here = sm[names].isel(y=pixel.row, x=pixel.column).compute()
    line = here["soil_moisture"]
    if not line.notnull().any():
        raise NoDataError(f"the map has no value in the {pixel}; choose another point")
    band, label = _band_of(here)
    others = {} if reference is None else lines_at(reference, grid, pixel)
    lines = {"map": line} | {name: _within(other, line) for name, other in others.items()}
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axis = figure.subplots()
    marked, said = _flagged(here["flags"], line) if "flags" in here else (None, "")
    draw_series(axis, lines, band, rain, band_label=label, marked=marked)
    axis.set_title("\n".join(filter(None, (str(pixel), said))), fontsize="small")
    figure.suptitle(title)
    _save(figure, path)


def _within(other: xr.DataArray, line: xr.DataArray) -> xr.DataArray:
    """Return what lies in the days of a line."""
    first, last = line["time"].values[[0, -1]].astype("datetime64[D]")
    return other.sel(time=slice(first, last + _DAY))


def _band_of(here: xr.Dataset) -> tuple[Band, str]:
    name = interval_name(here)
    if "soil_moisture_upper" in here:
        return (here["soil_moisture_lower"], here["soil_moisture_upper"]), name
    mean, spread = here["soil_moisture"], here["soil_moisture_std"]
    return (mean - spread, mean + spread), name


def _flagged(flags: xr.DataArray, line: xr.DataArray) -> tuple[xr.DataArray | None, str]:
    """Return the values with a flag, and how many acquisitions have each; None without any."""
    marked = line.where(flags != 0)
    found = flags.values[marked.notnull().values]
    if not found.size:
        return None, ""
    bits = flag_bits(flags.attrs)
    counts = {name: np.count_nonzero(found & bit) for name, bit in bits.items()}
    said = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    return marked, textwrap.fill(f"flagged, of {int(line.count())} values: {said}", 120)


def plot_scatter(
    estimate: xr.DataArray,
    reference: xr.DataArray,
    path: str | PathLike[str],
    *,
    names: tuple[str, str] = ("estimate", "reference"),
    title: str = "",
) -> Scores:
    """Write the density of pairs of an estimate and a reference, with their agreement, as PNG.

    Parameters
    ----------
    estimate, reference
        Soil moisture in m3 m-3, any dims that broadcast, in memory or lazy; NaN is missing.
        Coordinates must match exactly: collocate first. Lazy ones are read once, and only pairs
        are kept: 8 bytes each in float32.
    path
        File to write.
    names
        Of both, for the axes.
    title
        Above the plot.

    Returns
    -------
    Scores
        What the picture says, see `smgrid.metrics.score`.

    Raises
    ------
    ConfigError
        Coordinates that do not match.
    NoDataError
        No pair.
    """
    y, x = _pairs(estimate, reference)
    scores = score_arrays(y, x)
    low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    margin = max(0.02 * (high - low), 0.005)
    low, high = low - margin, high + margin
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axis = figure.subplots()
    bins = axis.hexbin(
        x, y, gridsize=60, extent=(low, high, low, high), mincnt=1, cmap=DENSITY_MAP, linewidths=0.1
    )
    bins.set_norm(LogNorm(1, max(10, int(np.asarray(bins.get_array()).max()))))
    axis.axline((low, low), slope=1, color=VERMILION, linewidth=1.5, linestyle="--", label="1:1")
    axis.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    axis.set(xlabel=f"{names[1]} ({VOLUME})", ylabel=f"{names[0]} ({VOLUME})", title=title)
    box = {"facecolor": "white", "edgecolor": "lightgrey", "alpha": 0.9}
    axis.text(0.03, 0.97, _describe(scores), transform=axis.transAxes, va="top", bbox=box)
    axis.legend(loc="lower right")
    figure.colorbar(bins, ax=axis, label="pairs per cell", shrink=0.9)
    _save(figure, path)
    return scores


def _pairs(estimate: xr.DataArray, reference: xr.DataArray) -> tuple[_Values, _Values]:
    """Return the values of both where both are present, from one pass over lazy ones."""
    try:
        estimate, reference = xr.align(estimate, reference, join="exact", copy=False)
    except ValueError as cause:
        msg = f"the coordinates of estimate and reference differ ({cause}); collocate them first"
        raise ConfigError(msg) from cause
    x, y = xr.broadcast(estimate, reference)
    if x.chunks is None and y.chunks is None:
        pair = np.isfinite(x.values) & np.isfinite(y.values)
        return x.values[pair], y.values[pair]
    x, y = xr.unify_chunks(x.chunk(), y.chunk())
    wanted = np.isfinite(x.data) & np.isfinite(y.data)
    first, second = dask.compute(x.data[wanted], y.data[wanted])
    return first, second


def _describe(scores: Scores) -> str:
    return (
        f"N = {scores.n:,}\nbias = {scores.bias:+.3f}\nRMSE = {scores.rmse:.3f}\n"
        f"ubRMSE = {scores.ubrmse:.3f} {VOLUME}\nR = {scores.r:.3f}"
    )


def _nearest(times: pd.DatetimeIndex, date: Any) -> int:
    return int(np.abs(times - pd.Timestamp(date)).argmin())


def _save(figure: Figure, path: str | PathLike[str]) -> None:
    FigureCanvasAgg(figure)
    with mpl.rc_context({"savefig.facecolor": "white"}):
        figure.savefig(path, dpi=110, metadata={"Software": "smgrid"})
