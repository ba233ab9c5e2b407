"""What the pictures of `smgrid.export.plot` are made of: a map, bars of flags, a time series."""

import textwrap
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.ticker import MaxNLocator
from odc.geo.geobox import GeoBox

from smgrid.export.pixel import flag_bits

# Dry to wet in a perceptually ordered map that colour-blind readers can follow.
MOISTURE_MAP = "YlGnBu"
DIFFERENCE_MAP = "RdBu"
SPREAD_MAP = "magma_r"
DISTANCE_MAP = "cividis_r"
VOLUME = "m³ m⁻³"

Kind: TypeAlias = Literal["value", "difference", "spread", "distance"]
_MAPS: dict[Kind, str] = {
    "value": MOISTURE_MAP,
    "difference": DIFFERENCE_MAP,
    "spread": SPREAD_MAP,
    "distance": DISTANCE_MAP,
}
Band: TypeAlias = tuple[xr.DataArray, xr.DataArray]

_DAY = np.timedelta64(1, "D")
_EMPTY = (0.0, 0.6)
# Colours are of no smaller differences [m3 m-3], and of no smaller ones relative to a spread.
_NARROWEST, _FLATTEST = 0.02, 0.05
# Of the palette of Okabe and Ito, which colour-blind readers tell apart.
VERMILION, _SKY = "#D55E00", "#56B4E9"


def draw_map(
    axis: Axes,
    field: xr.DataArray,
    name: str,
    *,
    kind: Kind = "value",
    limits: tuple[float, float] | None = None,
) -> None:
    """Draw a (y, x) field with its colour bar; `limits` are those of a ``"value"``."""
    if limits is None or kind != "value":
        limits = colour_range([field], kind)
    if kind == "distance":
        name += _draw_threshold(axis, field)
    extent, xlabel, _ = axes_of(field.odc.geobox)
    style: dict[str, Any] = {"cmap": _MAPS[kind], "vmin": limits[0], "vmax": limits[1]}
    image = axis.imshow(field.values, extent=extent, interpolation="nearest", **style)
    axis.set(title=name, xlabel=xlabel, aspect=aspect_of(field.odc.geobox))
    axis.ticklabel_format(useOffset=False)
    axis.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))  # of long numbers
    # Beside the map it is as high as the map itself, whatever its shape.
    beside = axis.inset_axes((1.04, 0, 0.05, 1))
    axis.figure.colorbar(image, cax=beside, label="" if kind == "distance" else VOLUME)


def _draw_threshold(axis: Axes, field: xr.DataArray) -> str:
    """Draw a line around what lies beyond the threshold; return how much that is."""
    threshold = field.attrs.get("threshold")
    if threshold is None:
        return ""
    beyond = (field > threshold).where(field.notnull())
    share = float(beyond.mean())
    if 0 < share < 1:
        extent, _, _ = axes_of(field.odc.geobox)
        line: dict[str, Any] = {"colors": VERMILION, "linewidths": 1.0}
        axis.contour(field.values, levels=[float(threshold)], origin="upper", extent=extent, **line)
    return f"\n{100 * share:.1f} % beyond {float(threshold):.2f} (line)"


def draw_flags(axis: Axes, flags: xr.DataArray) -> None:
    """Draw the share of pixels with each flag that any pixel has, and name those not determined."""
    bits = flag_bits(flags.attrs)
    shares = {name: 100 * float(((flags & bit) != 0).mean()) for name, bit in bits.items()}
    shares = {name: share for name, share in shares.items() if share > 0}
    names = str(flags.attrs.get("not_determined", "")).replace("_", "\N{NO-BREAK SPACE}").split(" ")
    unknown = ", ".join(filter(None, names))
    note = textwrap.fill(f"clear but not determined: {unknown}", 40) if unknown else ""
    if not shares:
        axis.set_axis_off()
        axis.text(0.5, 0.5, f"no pixel has a flag on this date\n{note}", ha="center", va="center")
        return
    bars = axis.barh([*shares], [*shares.values()], color=_SKY)
    axis.bar_label(bars, labels=[f"{share:.3g} %" for share in shares.values()], padding=3)
    axis.set_title("flags of this date")
    axis.set_xlabel(f"share of the pixels (%)\n{note}", fontsize="small")
    axis.set(xlim=(0, 125), xticks=[0, 25, 50, 75, 100])
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)


def draw_series(
    axis: Axes,
    lines: Mapping[str, xr.DataArray],
    band: Band | None,
    rain: xr.DataArray | None,
    *,
    band_label: str = "± spread",
    marked: xr.DataArray | None = None,
) -> None:
    """Draw (time,) series, the first with markers: hollow ones where `marked` has values."""
    for number, (name, line) in enumerate(lines.items()):
        marker: dict[str, Any] = {"marker": "o", "markersize": 4} if number == 0 else {}
        axis.plot(line["time"].values, line.values, label=name, **marker)
    if marked is not None:
        first = axis.lines[0].get_color()
        hollow: dict[str, Any] = {"marker": "o", "markerfacecolor": "white", "linestyle": ""}
        axis.plot(marked["time"].values, marked.values, label="flagged", color=first, **hollow)
    if band is not None:
        low, high = band
        axis.fill_between(low["time"].values, low.values, high.values, alpha=0.2, label=band_label)
        # A band has no extent at a value between two gaps, a bar does.
        gap = low.isnull() | high.isnull()
        alone = ~gap & gap.shift(time=1, fill_value=True) & gap.shift(time=-1, fill_value=True)
        bars = (side.values[alone.values] for side in (low["time"], low, high))
        axis.vlines(*bars, alpha=0.3, linewidth=2)
    axis.set(ylabel=f"soil moisture ({VOLUME})")
    axis.grid(alpha=0.3)
    _draw_dates(axis, lines)
    if rain is not None:
        above = axis.twinx()
        height = 1000 * rain.values
        above.bar(rain["date"].values, height, width=_DAY, color=_SKY, alpha=0.5)
        above.set(ylabel="rain (mm d⁻¹)", ylim=(3.5 * max(1.0, float(height.max())), 0))
    # Below the axes it hides neither values nor rain.
    axis.legend(
        loc="upper left", bbox_to_anchor=(0, -0.1), ncols=4, fontsize="small", frameon=False
    )


def _draw_dates(axis: Axes, lines: Mapping[str, xr.DataArray]) -> None:
    """Limit the time axis to the lines, and name as many dates as have room."""
    times = np.concatenate([line["time"].values.astype("datetime64[s]") for line in lines.values()])
    if times.size:
        span = np.ptp(times)
        margin = max(span // 25, _DAY) if span else 3 * _DAY
        axis.set_xlim(times.min() - margin, times.max() + margin)
    locator = AutoDateLocator(minticks=3, maxticks=8)  # type: ignore[no-untyped-call]
    axis.xaxis.set_major_locator(locator)
    names = ConciseDateFormatter(locator)  # type: ignore[no-untyped-call]
    axis.xaxis.set_major_formatter(names)


def colour_range(fields: list[xr.DataArray], kind: Kind = "value") -> tuple[float, float]:
    """Return the ends of the colour scale of some fields.

    They are quantiles, 1 and 99 % of all values, so that single ones take no colour away; from zero
    for spreads and distances, symmetric around zero for differences. Fields of nearly one value
    lie in the middle of a scale that is wider than they need.
    """
    values = np.concatenate([f.values[np.isfinite(f.values)] for f in fields] or [np.zeros(0)])
    if not values.size:
        return _EMPTY
    if kind == "difference":
        values = np.abs(values)
    low, high = (float(end) for end in np.quantile(values, [0.01, 0.99]))
    if kind == "difference":
        reach = max(high, _NARROWEST / 2)
        return -reach, reach
    if kind == "value":
        spare = max(0.0, _NARROWEST - (high - low)) / 2
        return low - spare, high + spare
    if high - low < _FLATTEST * high:
        high *= 2
    return 0.0, high or _NARROWEST


def aspect_of(grid: GeoBox) -> float:
    """Return how much longer a unit of y is than one of x: in degrees, in the middle of a map."""
    if grid.crs is None or not grid.crs.geographic:
        return 1.0
    box = grid.boundingbox
    return float(1 / np.cos(np.radians((box.bottom + box.top) / 2)))


def axes_of(grid: GeoBox) -> tuple[tuple[float, float, float, float], str, str]:
    """Return left, right, bottom and top of a grid, and the labels of its axes."""
    box = grid.boundingbox
    edges = (box.left, box.right, box.bottom, box.top)
    if grid.crs is not None and grid.crs.geographic:
        return edges, "longitude (°)", "latitude (°)"
    left, right, bottom, top = (edge / 1000 for edge in edges)
    return (left, right, bottom, top), "easting (km)", "northing (km)"
