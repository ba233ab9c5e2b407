"""Pictures of soil moisture: map panels and time series, on matplotlib without a display."""

from collections.abc import Mapping
from os import PathLike

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Dry to wet in a perceptually ordered map that colour-blind readers can follow.
MOISTURE_MAP = "YlGnBu"
DIFFERENCE_MAP = "RdBu"
SPREAD_MAP = "magma_r"


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
        style: dict[str, object] = {"cmap": MOISTURE_MAP, "vmin": limits[0], "vmax": limits[1]}
        if name in differences:
            reach = float(np.nanquantile(np.abs(field.values), 0.99))
            style = {"cmap": DIFFERENCE_MAP, "vmin": -reach, "vmax": reach}
        elif name in spreads:
            style = {"cmap": SPREAD_MAP, "vmin": 0, "vmax": float(np.nanquantile(field, 0.99))}
        image = axis.imshow(
            field.values, extent=_extent_km(field), interpolation="nearest", **style
        )
        axis.set(title=name, xlabel="easting (km)")
        figure.colorbar(image, ax=axis, orientation="horizontal", label="m³ m⁻³", shrink=0.85)
    axes[0].set_ylabel("northing (km)")
    figure.suptitle(title)
    _save(figure, path)


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
    axis = figure.subplots()
    for number, (name, line) in enumerate(lines.items()):
        marker = {"marker": "o", "markersize": 3.5} if number == 0 else {"alpha": 0.8}
        axis.plot(line["time"].values, line.values, label=name, **marker)
    if band is not None:
        axis.fill_between(
            band[0]["time"].values, band[0].values, band[1].values, alpha=0.2, label="± spread"
        )
    axis.set(ylabel="soil moisture (m³ m⁻³)", title=title)
    axis.grid(alpha=0.3)
    if rain is not None:
        bars = axis.twinx()
        bars.bar(rain["date"].values, 1000 * rain.values, color="tab:blue", alpha=0.35, width=1)
        bars.set(ylabel="rain (mm d⁻¹)", ylim=(3.5 * max(1.0, 1000 * float(rain.max())), 0))
    axis.legend(loc="upper left", ncols=len(lines) + 1, fontsize="small")
    _save(figure, path)


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
