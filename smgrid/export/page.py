"""A map as one HTML file that needs no network: choose date and variable, click for a time series.

BokehJS and the values are in the file. Its content security policy forbids the browser to load
anything else. What the page does when it is used is in the scripts beside this module.
"""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from matplotlib.colors import to_hex
from odc.geo.geobox import GeoBox

import smgrid
from smgrid.errors import ConfigError, MissingDependencyError, NoDataError
from smgrid.export.drawing import (
    DISTANCE_MAP,
    MOISTURE_MAP,
    SPREAD_MAP,
    VOLUME,
    Kind,
    axes_of,
    colour_range,
)
from smgrid.export.page_models import render
from smgrid.export.pixel import WGS84, crs_name, flag_bits, place_stations
from smgrid.export.plot import interval_name, interval_width
from smgrid.grid import require_north_up, transform_points
from smgrid.windows import Period

MISSING = 65535
"""Count of a missing value: pages carry uint16, which resolve a range to a 65534th of it."""

_LOWER, _FLAGS = "soil_moisture_lower", "flags"
# Bytes of a count in base64.
_BYTES = 2 * 4 / 3
# Longitude and latitude are interpolated between so many nodes to each side of the map: over
# 1000 km of a UTM zone, where a pixel of the page has 2 km, they are wrong by less than 50 m.
_NODES = 33
_LONGEST = 300


@dataclass(frozen=True)
class _Shown:
    """What a page shows: values in memory, reduced to its resolution, rows from the south."""

    values: xr.Dataset
    grid: GeoBox
    """Of the map itself."""
    factor: int
    """Pixels of the map along the edge of one of the page."""
    chosen: int
    """Acquisitions of which those shown were taken."""


def write_page(
    sm: xr.Dataset,
    path: str | PathLike[str],
    *,
    dates: Any = None,
    reference: xr.DataArray | None = None,
    title: str = "",
    max_pixels: int = 512,
    max_megabytes: float = 32,
) -> None:
    """Write a map as an interactive page: one HTML file without any link to the network.

    A slider chooses the date and a menu the variable: soil moisture, its spread, and where the map
    has them the width of the calibrated interval and the dissimilarity. Pointing reads the value,
    the place in the CRS of the map and its longitude and latitude; a click draws the time series
    of the pixel with its calibrated interval, or the spread where the map has none, and names the
    flags of the pixel on the date shown.

    Parameters
    ----------
    sm
        Result of `predict`, or a store of it opened with `open_cube`. Only what is shown is read.
    path
        File to write, replaced when the page is complete.
    dates
        First and last day (UTC, inclusive); default: all.
    reference
        Soil moisture of stations in m3 m-3, (station, time) with ``longitude`` and ``latitude``,
        as of `open_stations`: marked on the map and drawn beside the series of their pixel.
    title
        Heading; default: the title of the map.
    max_pixels
        Along the longer edge; larger maps are shown as means of square blocks of pixels, with the
        flags of all pixels of a block.
    max_megabytes
        Of the values in the file; acquisitions in excess are left out evenly. The page says so.

    Raises
    ------
    MissingDependencyError
        Without the extra ``plot``.
    ConfigError
        No acquisition in `dates`, no station in the map, or a limit that leaves nothing.
    NoDataError
        No valid pixel on the dates shown.
    """
    _require_bokeh()
    if max_pixels < 1 or not max_megabytes > 0:
        msg = f"expected positive limits of the page, got {max_pixels=}, {max_megabytes=}"
        raise ConfigError(msg)
    shown = _read(_choose(sm, dates), max_pixels, max_megabytes)
    stations = [] if reference is None else _stations(reference, shown)
    heading = title or str(sm.attrs.get("title", "Surface soil moisture"))
    about = _about(shown, sm, len(stations), reference)
    said, layers = _variables(shown.values)
    text = render(_spec(shown, sm, said, stations), layers, heading, about)
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(target)


def _require_bokeh() -> None:
    try:
        import bokeh.embed  # noqa: F401
    except ImportError as cause:
        msg = "interactive pages need bokeh; install it with pip install 'smgrid[plot]'"
        raise MissingDependencyError(msg) from cause


def _choose(sm: xr.Dataset, dates: Any) -> xr.Dataset:
    if dates is None:
        return sm
    period = Period.parse(dates)
    times = pd.DatetimeIndex(sm["time"].values)
    inside = (times >= period.start) & (times < period.end + pd.Timedelta(days=1))
    if not inside.any():
        ends = f"{times.min():%Y-%m-%d} to {times.max():%Y-%m-%d}" if times.size else "never"
        msg = f"dates: the map has no acquisition in {period}; its {times.size} are from {ends}"
        raise ConfigError(msg)
    return sm.isel(time=inside)


def _read(sm: xr.Dataset, max_pixels: int, max_megabytes: float) -> _Shown:
    wanted = {name: sm[name] for name in ("soil_moisture", "soil_moisture_std")}
    width = interval_width(sm)
    if width is not None:
        wanted |= {"interval_width": width, _LOWER: sm[_LOWER]}
    wanted |= {name: sm[name] for name in ("dissimilarity", _FLAGS) if name in sm}
    grid: GeoBox = sm.odc.geobox
    require_north_up(grid)
    factor = math.ceil(max(grid.shape) / max_pixels)
    pixels = math.prod(math.ceil(size / factor) for size in grid.shape)
    affordable = max(1, int(1e6 * max_megabytes / (len(wanted) * pixels * _BYTES)))
    count = sm.sizes["time"]
    steps = np.unique(np.linspace(0, count - 1, min(affordable, count)).round().astype(int))
    values = xr.Dataset(wanted).isel(time=steps)
    if factor > 1:
        values = _reduce(values, factor)
    (values,) = dask.compute(values.isel(y=slice(None, None, -1)))
    if not values["soil_moisture"].notnull().any():
        raise NoDataError("the map has no valid pixel on the dates of the page; choose others")
    return _Shown(values.transpose("time", "y", "x"), grid, factor, count)


def _reduce(values: xr.Dataset, factor: int) -> xr.Dataset:
    """Return means of blocks of pixels, and the flags that any pixel of a block has."""
    blocks = {"y": factor, "x": factor}
    quantities = values.drop_vars(_FLAGS, errors="ignore")
    reduced = quantities.coarsen(blocks, boundary="pad").mean(keep_attrs=True)
    if _FLAGS in values:
        flags = values[_FLAGS].drop_vars(["y", "x"])
        excess = {dim: (0, -flags.sizes[dim] % factor) for dim in blocks}
        flags = flags.pad(excess, constant_values=0, keep_attrs=True)
        reduced[_FLAGS] = flags.coarsen(blocks).reduce(_any_flag, keep_attrs=True)
    return reduced


def _any_flag(flags: Any, axis: tuple[int, ...], **_: Any) -> Any:
    join = np.bitwise_or.reduce
    return da.reduction(da.asarray(flags), join, join, axis=axis, dtype=flags.dtype)


def _spec(
    shown: _Shown,
    sm: xr.Dataset,
    variables: Mapping[str, Any],
    stations: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return what the scripts of the page need to know beside the values."""
    frame, times = _frame(shown), pd.DatetimeIndex(shown.values["time"].values)
    moments = zip(_milliseconds(times.to_numpy()), times, strict=True)
    return {
        "first": int(shown.values["soil_moisture"].notnull().sum(("y", "x")).values.argmax()),
        "dates": [{"time": t, "label": f"{label:%Y-%m-%d %H:%M} UTC"} for t, label in moments],
        "variables": variables,
        "missing": MISSING,
        "flags": _said_of_flags(shown),
        "frame": frame,
        "nodes": _nodes(shown, frame),
        "stations": stations,
        "band": interval_name(sm),
    }


def _said_of_flags(shown: _Shown) -> dict[str, Any] | None:
    if _FLAGS not in shown.values:
        return None
    attrs = shown.values[_FLAGS].attrs
    return {
        "bits": flag_bits(attrs),
        "undetermined": [n.replace("_", " ") for n in str(attrs.get("not_determined", "")).split()],
        "where": "of this pixel" if shown.factor == 1 else "of any pixel of this block",
    }


def _frame(shown: _Shown) -> dict[str, Any]:
    """Return how pixels of the page lie on its axes, in km or degrees from the lower left."""
    (left, _, _, top), xlabel, ylabel = axes_of(shown.grid)
    divisor = 1 if require_north_up(shown.grid).geographic else 1000
    dx, dy = (shown.factor * abs(step) / divisor for step in shown.grid.resolution.xy)
    rows, columns = shown.values.sizes["y"], shown.values.sizes["x"]
    return {
        "left": left,
        # Blocks are counted from the upper left corner; the last may reach over the lower edge.
        "bottom": top - rows * dy,
        "dx": dx,
        "dy": dy,
        "columns": columns,
        "rows": rows,
        "divisor": divisor,
        "labels": [xlabel, ylabel],
    }


def _nodes(shown: _Shown, frame: Mapping[str, Any]) -> dict[str, list[list[float]]]:
    x = frame["left"] + frame["columns"] * frame["dx"] * np.linspace(0, 1, _NODES)
    y = frame["bottom"] + frame["rows"] * frame["dy"] * np.linspace(0, 1, _NODES)
    xx, yy = np.meshgrid(x * frame["divisor"], y * frame["divisor"])
    lon, lat = transform_points(xx, yy, require_north_up(shown.grid), WGS84)
    lon = (lon - lon[0, 0] + 180) % 360 - 180 + lon[0, 0]  # no jump at the date line
    return {"longitude": lon.round(7).tolist(), "latitude": lat.round(7).tolist()}


def _stations(reference: xr.DataArray, shown: _Shown) -> list[dict[str, Any]]:
    """Return the stations in the map with their readings in the period shown."""
    frame = _frame(shown)
    x, y = (place / frame["divisor"] for place in place_stations(reference, shown.grid))
    columns = np.floor((x - frame["left"]) / frame["dx"])
    rows = np.floor((y - frame["bottom"]) / frame["dy"])
    times = shown.values["time"].values[[0, -1]].astype("datetime64[D]")
    period = slice(times[0], times[1] + np.timedelta64(1, "D"))
    readings = reference.transpose("station", "time").sel(time=period).compute()
    inside = (columns >= 0) & (columns < frame["columns"]) & (rows >= 0) & (rows < frame["rows"])
    if not inside.any():
        msg = f"reference: none of its {inside.size} stations lies in the map; leave it out"
        raise ConfigError(msg)
    return [
        {
            "name": str(reference["station"].values[i]),
            "x": float(x[i]),
            "y": float(y[i]),
            "column": int(columns[i]),
            "row": int(rows[i]),
            "time": _milliseconds(readings["time"].values),
            "value": [round(float(v), 4) if np.isfinite(v) else None for v in readings[i].values],
        }
        for i in np.flatnonzero(inside)
    ]


def _milliseconds(times: npt.NDArray[np.datetime64]) -> list[int]:
    milliseconds: list[int] = times.astype("datetime64[ms]").astype(np.int64).tolist()
    return milliseconds


def _encode(values: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.uint16], float, float]:
    """Return counts of `step` from `low`, and both."""
    valid = np.isfinite(values)
    low, high = (values[valid].min(), values[valid].max()) if valid.any() else (0.0, 0.0)
    step = float(high - low) / (MISSING - 1) or 1.0
    counts = np.rint((np.where(valid, values, low).astype(np.float64) - low) / step)
    return np.where(valid, counts, MISSING).astype(np.uint16), float(low), step


def _variables(values: xr.Dataset) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return what the page says of every variable, and its counts by date.

    A variable without a title is not in the menu.
    """
    said: dict[str, Any] = {}
    layers: dict[str, list[Any]] = {}
    for key, field in values.data_vars.items():
        name = str(key)
        if name == _FLAGS:
            layers[name] = [*field.values.astype(np.uint16)]
            continue
        counts, offset, step = _encode(field.values)
        layers[name] = [*counts]
        said[name] = {"low": offset, "step": step} | _look(name, field)
    return said, layers


def _look(name: str, field: xr.DataArray) -> dict[str, Any]:
    """Return title, units, colours and their range of a variable of the menu."""
    styles: dict[str, tuple[str, Kind, str, str]] = {
        "soil_moisture": ("Soil moisture", "value", MOISTURE_MAP, VOLUME),
        "soil_moisture_std": ("Spread of the members", "spread", SPREAD_MAP, VOLUME),
        "interval_width": ("Width of the interval", "spread", SPREAD_MAP, VOLUME),
        "dissimilarity": ("Dissimilarity to the training", "distance", DISTANCE_MAP, ""),
    }
    if name not in styles:
        return {}
    title, kind, colours, units = styles[name]
    if name == "interval_width":
        title = str(field.attrs["long_name"]).capitalize()
    if "threshold" in field.attrs:
        title += f" (threshold {float(field.attrs['threshold']):.2f})"
    palette = mpl.colormaps[colours](np.linspace(0, 1, 256))
    return {
        "title": f"{title} ({units})" if units else title,
        "units": units,
        "palette": [to_hex(colour) for colour in palette],
        "range": [*colour_range([field], kind)],
    }


def _about(
    shown: _Shown, sm: xr.Dataset, stations: int, reference: xr.DataArray | None
) -> tuple[str, str]:
    """Return what stands above and below the map as HTML: what it shows, and where it is from."""
    crs = require_north_up(shown.grid)
    edge, unit = abs(shown.grid.resolution.x), "°" if crs.geographic else "m"
    pixels = f"pixels of {edge:.6g} {unit}"
    if shown.factor > 1:
        pixels = (
            f"reduced to pixels of {shown.factor * edge:.6g} {unit}, each the mean of "
            f"{shown.factor} × {shown.factor} pixels of the map (those with a value)"
        )
    count = shown.values.sizes["time"]
    dates = f"all {count} acquisitions"
    if count < shown.chosen:
        dates = f"{count} of {shown.chosen} acquisitions, evenly chosen to bound the page's size"
    parts = [crs_name(crs), pixels, dates, "grey: no value", "click a pixel for its series"]
    if reference is not None:
        parts.append(f"{stations} of {reference.sizes['station']} stations lie in the map")
    attrs = {str(key): str(value) for key, value in sm.attrs.items() if str(value)}
    attrs["written by"] = f"smgrid {smgrid.__version__}"
    rows = "".join(
        f"<tr><td style='padding-right:1em'>{html.escape(key)}</td>"
        f"<td style='overflow-wrap:anywhere'>{html.escape(_shorten(value))}</td></tr>"
        for key, value in attrs.items()
    )
    return html.escape("; ".join(parts)), f"<table style='font-size:11px'>{rows}</table>"


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
