"""Pictures of soil moisture: map panels and time series, on matplotlib without a display."""

from collections.abc import Mapping
from os import PathLike
from typing import Any, Literal, TypeAlias

import matplotlib as mpl
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from smgrid.features.inputs import find_variables

# Dry to wet in a perceptually ordered map that colour-blind readers can follow.
MOISTURE_MAP = "YlGnBu"
DIFFERENCE_MAP = "RdBu"
SPREAD_MAP = "magma_r"

_Kind: TypeAlias = Literal["value", "difference", "spread"]
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
    figure = Figure(figsize=(3.9 * len(panels) + 0.4, 4.3), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(panels), sharex=True, sharey=True))
    plain = [a for n, a in panels.items() if n not in (*differences, *spreads)]
    limits = _limits(plain)
    for axis, (name, field) in zip(axes, panels.items(), strict=True):
        kind: _Kind = "difference" if name in differences else "value"
        _draw_map(axis, field, name, kind="spread" if name in spreads else kind, limits=limits)
    axes[0].set_ylabel("northing (km)")
    figure.suptitle(title)
    _save(figure, path)


def plot_overview(
    sm: xr.Dataset,
    path: str | PathLike[str],
    *,
    date: Any = None,
    rain: xr.DataArray | None = None,
    title: str = "",
) -> None:
    """Write one picture of a map: a date, its spread, and the regional mean over time, as PNG.

    Parameters
    ----------
    sm
        Result of `predict`, or a store of it opened with `open_cube`.
    path
        File to write.
    date
        The acquisition nearest to it is shown; default: the one with the most valid pixels.
    rain
        (date,) daily precipitation in m, drawn as bars from above.
    title
        Above the picture.
    """
    valid = sm["soil_moisture"].notnull().mean(("y", "x"))
    times = pd.DatetimeIndex(sm["time"].values)
    step = int(valid.values.argmax()) if date is None else _nearest(times, date)
    one = sm.isel(time=step).compute()
    figure = Figure(figsize=(12, 7.2), layout="constrained")
    upper, lower = np.asarray(figure.subfigures(2, 1, height_ratios=(1.35, 1)))
    axes = upper.subplots(1, 2, sharex=True, sharey=True)
    _draw_map(axes[0], one["soil_moisture"], f"soil moisture, {times[step]:%Y-%m-%d %H:%M} UTC")
    _draw_map(axes[1], one["soil_moisture_std"], "spread of the members", kind="spread")
    axes[0].set_ylabel("northing (km)")
    mean = sm["soil_moisture"].mean(("y", "x")).compute()
    spread = sm["soil_moisture_std"].mean(("y", "x")).compute()
    _draw_series(
        lower.subplots(), {"mean of the region": mean}, (mean - spread, mean + spread), rain
    )
    figure.suptitle(title)
    _save(figure, path)


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
    _draw_series(figure.subplots(), lines, band, rain)
    figure.suptitle(title)
    _save(figure, path)


def _nearest(times: pd.DatetimeIndex, date: Any) -> int:
    return int(np.abs(times - pd.Timestamp(date)).argmin())


def _draw_map(
    axis: Axes,
    field: xr.DataArray,
    name: str,
    *,
    kind: _Kind = "value",
    limits: tuple[float, float] | None = None,
) -> None:
    low, high = _limits([field]) if limits is None else limits
    style: dict[str, Any] = {"cmap": MOISTURE_MAP, "vmin": low, "vmax": high}
    if kind == "difference":
        reach = float(np.nanquantile(np.abs(field.values), 0.99))
        style = {"cmap": DIFFERENCE_MAP, "vmin": -reach, "vmax": reach}
    elif kind == "spread":
        style = {"cmap": SPREAD_MAP, "vmin": 0, "vmax": float(np.nanquantile(field, 0.99))}
    image = axis.imshow(field.values, extent=_extent_km(field), interpolation="nearest", **style)
    axis.set(title=name, xlabel="easting (km)")
    axis.ticklabel_format(useOffset=False)
    axis.figure.colorbar(image, ax=axis, label="m³ m⁻³", shrink=0.85)


def _draw_series(
    axis: Axes,
    lines: Mapping[str, xr.DataArray],
    band: tuple[xr.DataArray, xr.DataArray] | None,
    rain: xr.DataArray | None,
) -> None:
    for number, (name, line) in enumerate(lines.items()):
        marker: dict[str, Any] = {"marker": "o", "markersize": 3.5} if number == 0 else {}
        axis.plot(line["time"].values, line.values, label=name, **marker)
    if band is not None:
        axis.fill_between(
            band[0]["time"].values, band[0].values, band[1].values, alpha=0.2, label="± spread"
        )
    axis.set(ylabel="soil moisture (m³ m⁻³)")
    axis.grid(alpha=0.3)
    if rain is not None:
        bars = axis.twinx()
        height = 1000 * rain.values
        bars.bar(rain["date"].values, height, width=_DAY, color="tab:blue", alpha=0.4)
        bars.set(ylabel="rain (mm d⁻¹)", ylim=(3.5 * max(1.0, float(height.max())), 0))
    axis.legend(loc="lower left", ncols=len(lines) + 1, fontsize="small")


def _limits(fields: list[xr.DataArray]) -> tuple[float, float]:
    values = np.concatenate([f.values[np.isfinite(f.values)] for f in fields] or [np.zeros(1)])
    low, high = np.quantile(values, [0.01, 0.99]) if values.size else (0.0, 0.6)
    return float(low), float(high)


def _extent_km(field: xr.DataArray) -> tuple[float, float, float, float]:
    box = field.odc.geobox.boundingbox
    return box.left / 1000, box.right / 1000, box.bottom / 1000, box.top / 1000


def _save(figure: Figure, path: str | PathLike[str]) -> None:
    FigureCanvasAgg(figure)
    with mpl.rc_context({"savefig.facecolor": "white"}):
        figure.savefig(path, dpi=110, metadata={"Software": "smgrid"})
