"""Labels on the pixels and acquisition times of a cube, and stations placed there.

Every maker of labels returns the same Dataset: ``label`` (time, y, x) [m3 m-3], ``lag`` (time, y,
x), the time of the label minus that of the acquisition [h], and ``station`` (y, x), the number of
the point that stands in a pixel or -1, with the names ``stations`` and ``networks`` in its
attributes. All are lazy, on the chunks of ``vv``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.errors import ConfigError, NoDataError
from smgrid.features.inputs import Cube, find_variables
from smgrid.grid import transform_points
from smgrid.training.table import JOINED

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]

_UNITS = "m3 m-3"
_HALF_DAY = pd.Timedelta(12, "h")


@dataclass(frozen=True)
class Match:
    """Labels that may stand for one acquisition, the best first."""

    index: IntArray  #: positions along the time of the labels
    lag: FloatArray  #: their time minus that of the acquisition [h]; NaN for a mean of its day


@dataclass(frozen=True)
class Places:
    """Pixels of a grid in which points lie.

    Attributes
    ----------
    inside
        (n,) which points lie in the grid.
    of
        The place of each point inside.
    row, column
        (m,) of each place in the grid.
    stations
        (m,) names of all points in a place, sorted and joined by ``" + "``.
    networks
        (m,) their networks in the same order, or one if all are of the same; empty where they have
        none.
    """

    inside: npt.NDArray[np.bool_]
    of: IntArray
    row: IntArray
    column: IntArray
    stations: tuple[str, ...]
    networks: tuple[str, ...]


def station_labels(
    stations: xr.Dataset, cube: Cube, *, tolerance_hours: float | None = None
) -> xr.Dataset:
    """Place station readings in the base pixels of a cube at its acquisition times.

    Parameters
    ----------
    stations
        As made by `open_stations`: ``soil_moisture`` (station, time) in m3 m-3, with ``longitude``
        and ``latitude`` along ``station`` and perhaps ``network``.
    cube
        Cube as made by `load_cube` or `open_cube`.
    tolerance_hours
        Take the reading nearest in time within so many hours, of two equally near ones the earlier.
        Default: the mean of the acquisition's own UTC day. A daily mean (``cell_methods`` with
        ``time: mean``) stands at 12:00 of its day.

    Returns
    -------
    xr.Dataset
        ``label``, ``lag`` and ``station``, see this module. Labels are NaN where no station stands.
        Stations in one pixel are averaged, and all of them name it, joined by ``" + "``. The lag is
        NaN where the label is the mean of the acquisition's own day.

    Raises
    ------
    NoDataError
        No station lies in the grid, or none has a value for an acquisition.
    ConfigError
        The readings have other units, or the tolerance is not a number of hours.
    """
    check_units(stations["soil_moisture"], "soil_moisture of the stations")
    scenes = find_variables(cube, ("vv",))["vv"]
    times = pd.DatetimeIndex(scenes["time"].values)
    places = find_places(stations, scenes.odc.geobox)
    readings = stations["soil_moisture"].isel(station=places.inside).transpose("time", "station")
    if tolerance_hours is None:
        values, lag = _of_day(readings, times)
    else:
        values, lag = _nearest_in_time(readings, times, tolerance_hours)
    if not np.isfinite(values).any():
        wanted = "on an acquisition day"
        if tolerance_hours is not None:
            wanted = f"within {tolerance_hours:g} hours of an acquisition"
        raise NoDataError(
            f"{int(places.inside.sum())} of {places.inside.size} stations lie in the grid and none "
            f"has a reading {wanted} ({times[0]:%Y-%m-%d} to {times[-1]:%Y-%m-%d})"
        )
    label, hours = (scatter(_per_place(part, places), places, scenes) for part in (values, lag))
    ds = label_dataset(scenes, label, hours, places)
    ds["label"].attrs["long_name"] = "Soil moisture measured at stations"
    return ds


def check_units(labels: xr.DataArray, name: str) -> None:
    """Raise ConfigError unless labels state that they are volumetric, in m3 m-3."""
    found = labels.attrs.get("units")
    if found != _UNITS:
        raise ConfigError(
            f"{name} have units {found!r}, expected {_UNITS!r}: convert them (per cent: divide by "
            "100; saturation: multiply by the porosity) and set attrs['units']"
        )


def find_places(points: xr.Dataset, grid: GeoBox) -> Places:
    """Return the pixels of a grid that contain points.

    Parameters
    ----------
    points
        With ``longitude`` and ``latitude`` [degree] along one named dimension, and perhaps
        ``network``.
    grid
        Where to place them.

    Raises
    ------
    NoDataError
        None of them lies in the grid.
    """
    dim = str(points["longitude"].dims[0])
    longitude, latitude = points["longitude"].values, points["latitude"].values
    x, y = transform_points(longitude, latitude, "EPSG:4326", grid.crs)
    column = np.floor((x - grid.affine.c) / grid.affine.a)
    row = np.floor((y - grid.affine.f) / grid.affine.e)
    height, width = grid.shape
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    if not inside.any():
        box = grid.geographic_extent.boundingbox
        raise NoDataError(
            f"0 of {inside.size} {dim}s lie in the grid, {box.left:.3f}..{box.right:.3f} E "
            f"{box.bottom:.3f}..{box.top:.3f} N; choose {dim}s of that region"
        )
    pixel = (row[inside] * width + column[inside]).astype(np.int64)
    unique, of = np.unique(pixel, return_inverse=True)
    names = points[dim].values[inside].astype(str)
    networks = np.full(names.shape, "", "U1")
    if "network" in points:
        networks = points["network"].values[inside].astype(str)
    held = pd.DataFrame({"name": names, "network": networks, "place": of})
    by_place = held.drop_duplicates().sort_values(["name", "network"]).groupby("place")
    return Places(
        inside=inside,
        of=of,
        row=unique // width,
        column=unique % width,
        stations=tuple(by_place["name"].agg(JOINED.join)),
        networks=tuple(by_place["network"].agg(_join_networks)),
    )


def _join_networks(networks: pd.Series) -> str:
    distinct = networks.unique()
    return JOINED.join(networks if len(distinct) > 1 else distinct)


def match_times(
    labels: xr.DataArray, acquisitions: pd.DatetimeIndex, tolerance_hours: float | None
) -> list[Match]:
    """Return the labels that may stand for each acquisition, the nearest in time first.

    Parameters
    ----------
    labels
        With a coordinate ``time`` [UTC]. Where ``cell_methods`` say ``time: mean`` it is a mean of
        the UTC day, which stands at 12:00.
    acquisitions
        Their starts, UTC.
    tolerance_hours
        How far a label may be off; ``None`` for those of the acquisition's own UTC day. Of two
        equally near labels the earlier comes first.

    Raises
    ------
    ConfigError
        A tolerance that is negative or not finite.
    """
    if tolerance_hours is not None and not 0 <= tolerance_hours < np.inf:
        raise ConfigError(
            f"tolerance_hours: expected 0 or more hours, or None for the labels of the "
            f"acquisition's own UTC day, found {tolerance_hours!r}"
        )
    times = pd.DatetimeIndex(labels["time"].values)
    is_mean = "time: mean" in labels.attrs.get("cell_methods", "")
    times = times.normalize() + _HALF_DAY if is_mean else times
    order = np.argsort(times.values, kind="stable")
    ordered = times[order]
    if tolerance_hours is None:
        days = acquisitions.normalize()
        first = ordered.searchsorted(days, "left")
        last = ordered.searchsorted(days + pd.Timedelta(1, "D"), "left")
    else:
        reach = pd.Timedelta(tolerance_hours, "h")
        first = ordered.searchsorted(acquisitions - reach, "left")
        last = ordered.searchsorted(acquisitions + reach, "right")
    matches = []
    for moment, low, high in zip(acquisitions, first, last, strict=True):
        lag = (ordered[low:high] - moment) / pd.Timedelta(1, "h")
        rank = np.lexsort((lag, np.abs(lag)))
        hours = np.full(len(rank), np.nan) if is_mean and tolerance_hours is None else lag[rank]
        matches.append(Match(order[low:high][rank], np.asarray(hours, np.float32)))
    return matches


def first_valid(*layers: FloatArray, lag: Sequence[float]) -> FloatArray:
    """Return the first value that is known of layers of one shape, and its lag, stacked."""
    out = np.full((2, *layers[0].shape), np.nan, np.float32)
    for layer, hours in zip(layers, lag, strict=True):
        taken = np.isnan(out[0]) & np.isfinite(layer)
        out[0][taken], out[1][taken] = layer[taken], hours
    return out


def label_dataset(
    scenes: xr.DataArray, label: da.Array, lag: da.Array, places: Places | None = None
) -> xr.Dataset:
    """Return labels in the form that this module describes.

    Parameters
    ----------
    scenes
        ``vv`` of the cube (time, y, x).
    label, lag
        On its pixels and times.
    places
        Pixels that have a name; default: none has.
    """
    lag_name = "Time of the label minus that of the acquisition"
    return xr.Dataset(
        {
            "label": (scenes.dims, label, {"units": _UNITS, "long_name": "Soil moisture"}),
            "lag": (scenes.dims, lag, {"units": "h", "long_name": lag_name}),
            "station": station_layer(scenes, places),
        },
        coords=scenes.coords,
    )


def station_layer(scenes: xr.DataArray, places: Places | None) -> xr.Variable:
    """Return the number of the place in each pixel (y, x) of the scenes, -1 where there is none."""
    if places is None:
        codes = da.full(scenes.shape[1:], -1, dtype=np.int32, chunks=_chunks(scenes)[1:])
    else:
        numbers = np.arange(len(places.stations), dtype=np.int32)
        codes = scatter(numbers, places, scenes.isel(time=0), missing=-1)
    attrs = {
        "long_name": "Number of the station in the pixel, -1 where there is none",
        "stations": list(places.stations) if places else [],
        "networks": list(places.networks) if places else [],
    }
    return xr.Variable(scenes.dims[1:], codes, attrs)


def scatter(
    values: npt.NDArray[Any], places: Places, like: xr.DataArray, *, missing: float = np.nan
) -> da.Array:
    """Spread values (..., place) over the pixels (..., y, x) of `like`, lazily on its chunks."""
    spread: da.Array = da.map_blocks(
        _scatter,
        chunks=_chunks(like),
        dtype=values.dtype,
        meta=np.empty((0,) * like.ndim, values.dtype),
        values=values,
        row=places.row,
        column=places.column,
        missing=missing,
    )
    return spread


def _chunks(like: xr.DataArray) -> tuple[tuple[int, ...], ...]:
    return like.chunks or tuple((n,) for n in like.shape)


def _scatter(
    *,
    values: npt.NDArray[Any],
    row: IntArray,
    column: IntArray,
    missing: float,
    block_info: dict[Any, Any],
) -> npt.NDArray[Any]:
    *lead, (y0, y1), (x0, x1) = block_info[None]["array-location"]
    here = (row >= y0) & (row < y1) & (column >= x0) & (column < x1)
    shape = (*(stop - start for start, stop in lead), y1 - y0, x1 - x0)
    block = np.full(shape, missing, values.dtype)
    wanted = tuple(slice(*span) for span in lead)
    block[..., row[here] - y0, column[here] - x0] = values[wanted][..., here]
    return block


def _of_day(readings: xr.DataArray, times: pd.DatetimeIndex) -> tuple[FloatArray, FloatArray]:
    """Return the mean of each acquisition's own UTC day (time, station), and no lag."""
    table = pd.DataFrame(readings.values, index=pd.DatetimeIndex(readings["time"].values))
    daily = table.groupby(pd.DatetimeIndex(table.index).normalize()).mean()
    values = daily.reindex(times.normalize()).to_numpy(np.float32)
    return values, np.full_like(values, np.nan)


def _nearest_in_time(
    readings: xr.DataArray, times: pd.DatetimeIndex, tolerance_hours: float
) -> tuple[FloatArray, FloatArray]:
    """Return the nearest reading and its lag (time, station)."""
    values = readings.values.astype(np.float32)
    out = np.full((2, len(times), values.shape[1]), np.nan, np.float32)
    for number, match in enumerate(match_times(readings, times, tolerance_hours)):
        if len(match.index):
            out[:, number] = first_valid(*values[match.index], lag=match.lag.tolist())
    return out[0], out[1]


def _per_place(values: FloatArray, places: Places) -> FloatArray:
    """Average the stations (time, station) that share a pixel: (time, place)."""
    table = pd.DataFrame(values.T).groupby(places.of).mean()
    return np.asarray(table.to_numpy(np.float32).T)
