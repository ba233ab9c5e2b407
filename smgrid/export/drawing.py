"""What the pictures of `smgrid.export.plot` are made of: a map, bars of flags, a time series."""

import textwrap
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from odc.geo.geobox import GeoBox

from smgrid.export.pixel import flag_bits

# Dry to wet in a perceptually ordered map that colour-blind readers can follow.
MOISTURE_MAP = "YlGnBu"
DIFFERENCE_MAP = "RdBu"
SPREAD_MAP = "magma_r"
DISTANCE_MAP = "cividis_r"
VOLUME = "m³ m⁻³"

Kind: TypeAlias = Literal["value", "difference", "spread", "distance"]
Band: TypeAlias = tuple[xr.DataArray, xr.DataArray]

_DAY = np.timedelta64(1, "D")
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
    low, high = robust_range([field]) if limits is None else limits
    style: dict[str, Any] = {"cmap": MOISTURE_MAP, "vmin": low, "vmax": high}
    if kind == "difference":
        reach = robust_range([abs(field)])[1]
        style = {"cmap": DIFFERENCE_MAP, "vmin": -reach, "vmax": reach}
    elif kind in ("spread", "distance"):
        style = {"cmap": SPREAD_MAP, "vmin": 0, "vmax": robust_range([field])[1]}
    if kind == "distance":
        style["cmap"] = DISTANCE_MAP
        name += _draw_threshold(axis, field)
    extent, xlabel, _ = axes_of(field.odc.geobox)
    image = axis.imshow(field.values, extent=extent, interpolation="nearest", **style)
    axis.set(title=name, xlabel=xlabel)
    axis.ticklabel_format(useOffset=False)
    label = "" if kind == "distance" else VOLUME
    axis.figure.colorbar(image, ax=axis, label=label, shrink=0.85)


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
    unknown = ", ".join(str(flags.attrs.get("not_determined", "")).split()).replace("_", " ")
    note = textwrap.fill(f"not determined: {unknown}", 36) if unknown else ""
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
    if rain is not None:
        above = axis.twinx()
        height = 1000 * rain.values
        above.bar(rain["date"].values, height, width=_DAY, color=_SKY, alpha=0.5)
        above.set(ylabel="rain (mm d⁻¹)", ylim=(3.5 * max(1.0, float(height.max())), 0))
    # Below the axes it hides neither values nor rain.
    axis.legend(
        loc="upper left", bbox_to_anchor=(0, -0.1), ncols=4, fontsize="small", frameon=False
    )


def robust_range(fields: list[xr.DataArray]) -> tuple[float, float]:
    """Return the quantiles 1 and 99 % of all values, so that single ones take no colour away."""
    values = np.concatenate([f.values[np.isfinite(f.values)] for f in fields] or [np.zeros(1)])
    low, high = np.quantile(values, [0.01, 0.99]) if values.size else (0.0, 0.6)
    return float(low), float(high)


def axes_of(grid: GeoBox) -> tuple[tuple[float, float, float, float], str, str]:
    """Return left, right, bottom and top of a grid, and the labels of its axes."""
    box = grid.boundingbox
    edges = (box.left, box.right, box.bottom, box.top)
    if grid.crs is not None and grid.crs.geographic:
        return edges, "longitude (°)", "latitude (°)"
    left, right, bottom, top = (edge / 1000 for edge in edges)
    return (left, right, bottom, top), "easting (km)", "northing (km)"
