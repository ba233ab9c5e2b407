"""In-situ soil moisture from archives of the International Soil Moisture Network (ISMN).

ISMN archives are zip files or folders of text files, one per sensor, in two layouts: "CEOP" repeats
the station on every line, "header + values" states it once. Both are read in place and nothing is
written beside the archive. The layer is chosen from the depths in the files' names, which may read
0.0508 m (two inches), and archives without tables of static variables are complete for this use.
"""

import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from smgrid.errors import NoDataError, SchemaError, SourceError
from smgrid.windows import Period

DEPTH_TOLERANCE = 0.001
"""Metres by which a sensor may leave the layer: labels of 0.0508 m (2 inches) belong to 0-5 cm."""

_DEPTHS = re.compile(r"_sm_(-?\d+\.\d+)_(-?\d+\.\d+)_")
_NUMBER = r"(-?\d+(?:\.\d*)?)"
_HEADER = re.compile(rf"\S+\s+(\S+)\s+(.+?)\s+{_NUMBER}\s+{_NUMBER}\s+-?\d\S*\s+\S+\s+\S+")
_DATE = re.compile(r"\d{4}/\d{2}/\d{2}\s")
# Columns that precede the station on a CEOP line: nominal and actual date and time.
_CEOP_TIMES = 4
# Positions of date, time, value and flag on a line of each layout.
_CEOP_COLUMNS = [0, 1, 12, 13]
_HEADER_COLUMNS = [0, 1, 2, 3]


@dataclass(frozen=True)
class _Sensor:
    """One file: where the sensor stands and its good readings."""

    network: str
    station: str
    latitude: float
    longitude: float
    depth: tuple[float, float]
    readings: pd.Series


def open_stations(
    path: str | PathLike[str],
    *,
    depth: tuple[float, float] = (0.0, 0.05),
    quality: Sequence[str] = ("G",),
    period: Any = None,
) -> xr.Dataset:
    """Read daily in-situ soil moisture from an ISMN archive.

    Parameters
    ----------
    path
        Zip file or folder as downloaded from ISMN.
    depth
        Upper and lower bound of the layer [m]; sensors wholly inside it are used, with a
        tolerance of 1 mm.
    quality
        ISMN quality flags that make a reading good. A reading with several flags is good if all
        of them are named.
    period
        First and last day (UTC, inclusive); all days of the archive by default.

    Returns
    -------
    xr.Dataset
        ``soil_moisture`` (station, time) [m3 m-3], the mean of the good readings of each UTC day,
        NaN where there is none, and ``count``, their number. Where several sensors of a station
        lie in the layer they are averaged per time stamp first. Coordinates along ``station``:
        its name (with its network in front where two networks use one name), ``network``,
        ``longitude`` and ``latitude`` [degree], ``depth_from`` and ``depth_to`` [m]. The attribute
        ``stations_without_good_readings`` names what was left out.

    Raises
    ------
    NoDataError
        If no station has a good reading in the layer and period.
    SourceError
        If the archive does not exist or a file is not in a known layout.
    SchemaError
        If a good reading is outside 0..1.

    Notes
    -----
    Flags and layouts: Dorigo et al. (2021, doi:10.5194/hess-25-5749-2021) and the ISMN user
    manual. Flags C01 to C03 mark implausible values, D01 to D10 suspicious ones; "G" is good.
    """
    days = None if period is None else Period.parse(period)
    found = list(_read_sensors(Path(path), depth, frozenset(quality), days))
    good = [sensor for sensor in found if len(sensor.readings)]
    if not good:
        msg = (
            f"{path}: {len(found)} soil-moisture sensors lie between {depth[0]} and {depth[1]} m, "
            f"none has a reading flagged {', '.join(quality)}"
            + (f" from {days.start:%Y-%m-%d} to {days.end:%Y-%m-%d}" if days else "")
            + "; check depth, quality and period, or download other stations"
        )
        raise NoDataError(msg)
    stations: dict[tuple[str, str], list[_Sensor]] = {}
    for sensor in sorted(good, key=lambda s: (s.network, s.station, s.depth)):
        stations.setdefault((sensor.network, sensor.station), []).append(sensor)
    silent = sorted({f"{s.network}/{s.station}" for s in found if _key(s) not in stations})
    return _to_dataset(stations, days, silent)


def _key(sensor: _Sensor) -> tuple[str, str]:
    return sensor.network, sensor.station


def _read_sensors(
    path: Path, depth: tuple[float, float], quality: frozenset[str], days: Period | None
) -> Iterator[_Sensor]:
    for name, text in _read_files(path, depth):
        try:
            yield _parse(name, text, quality, days)
        except SchemaError as cause:
            raise SchemaError(f"{path}: {name}: {cause}") from cause
        except (ValueError, IndexError, pd.errors.ParserError) as cause:
            msg = (
                f"{path}: {name} is neither in the CEOP nor in the header + values layout of ISMN "
                f"({cause}); download the archive again"
            )
            raise SourceError(msg) from cause


def _read_files(path: Path, depth: tuple[float, float]) -> Iterator[tuple[str, str]]:
    """Yield name and text of every soil-moisture file of the layer."""
    if path.is_dir():
        for file in sorted(path.rglob("*.stm")):
            if _is_in_layer(file.name, depth):
                yield file.name, file.read_text(encoding="utf-8", errors="replace")
    elif path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".stm") and _is_in_layer(name, depth):
                    yield name, archive.read(name).decode("utf-8", errors="replace")
    else:
        msg = f"{path} is neither a folder nor a zip file; give an archive downloaded from ISMN"
        raise SourceError(msg)


def _is_in_layer(name: str, depth: tuple[float, float]) -> bool:
    match = _DEPTHS.search(name)
    if match is None:
        return False
    top, bottom = float(match[1]), float(match[2])
    return top >= depth[0] - DEPTH_TOLERANCE and bottom <= depth[1] + DEPTH_TOLERANCE


def _parse(name: str, text: str, quality: frozenset[str], days: Period | None) -> _Sensor:
    # Archives hold all three conventions of line ends.
    text = text.replace("\r\n", "\n").replace("\r", "\n").lstrip()
    first, _, rest = text.partition("\n")
    is_ceop = _DATE.match(first) is not None
    header = first.split(maxsplit=_CEOP_TIMES)[-1] if is_ceop else first
    station = _HEADER.match(header)
    depths = _DEPTHS.search(name)
    if station is None or depths is None:
        msg = f"its first line is {first[:80]!r}"
        raise ValueError(msg)
    columns = _CEOP_COLUMNS if is_ceop else _HEADER_COLUMNS
    return _Sensor(
        network=station[1],
        station=station[2],
        latitude=float(station[3]),
        longitude=float(station[4]),
        depth=(float(depths[1]), float(depths[2])),
        readings=_good_readings(text if is_ceop else rest, columns, quality, days),
    )


def _good_readings(
    lines: str, columns: list[int], quality: frozenset[str], days: Period | None
) -> pd.Series:
    if not lines.strip():
        return pd.Series(dtype="float64", index=pd.DatetimeIndex([]))
    table = pd.read_csv(
        StringIO(lines),
        sep=r"\s+",
        header=None,
        usecols=columns,
        names=list(range(columns[-1] + 2)),
        dtype=dict(zip(columns, ("str", "str", "float64", "str"), strict=True)),
        index_col=False,
    )
    date, clock, value, flag = (table[column] for column in columns)
    is_good = {flags: quality.issuperset(str(flags).split(",")) for flags in flag.unique()}
    kept = flag.map(is_good).to_numpy(dtype=bool) & value.notna().to_numpy()
    stamps = pd.to_datetime(date[kept] + " " + clock[kept], format="%Y/%m/%d %H:%M")
    readings = pd.Series(value[kept].to_numpy(), index=pd.DatetimeIndex(stamps))
    if days is not None:
        inside = (readings.index >= days.start) & (readings.index < days.end + pd.Timedelta(1, "D"))
        readings = readings[inside]
    if ((readings < 0) | (readings > 1)).any():
        msg = (
            f"good readings run from {readings.min():g} to {readings.max():g}, expected 0 to 1 "
            "m3 m-3 as in every ISMN archive; divide per cent by 100"
        )
        raise SchemaError(msg)
    return readings


def _to_dataset(
    stations: dict[tuple[str, str], list[_Sensor]], days: Period | None, silent: list[str]
) -> xr.Dataset:
    daily = [_to_daily([sensor.readings for sensor in group]) for group in stations.values()]
    start = days.start if days else min(table.index[0] for table in daily)
    end = days.end if days else max(table.index[-1] for table in daily)
    calendar = pd.date_range(start, end, freq="D", name="time")
    table = pd.concat([part.reindex(calendar) for part in daily], keys=range(len(daily)))
    shape = (len(daily), len(calendar))
    soil_moisture = table["mean"].to_numpy(dtype="float32").reshape(shape)
    count = table["count"].fillna(0).to_numpy(dtype="int32").reshape(shape)
    ds = xr.Dataset(
        {
            "soil_moisture": (("station", "time"), soil_moisture, _SOIL_MOISTURE_ATTRS),
            "count": (("station", "time"), count, {"units": "1", "long_name": "Good readings"}),
        },
        coords={"time": calendar.astype("datetime64[ns]")} | _station_coords(stations),
    )
    ds.attrs = {
        "references": "doi:10.5194/hess-25-5749-2021",
        "stations_without_good_readings": ", ".join(silent),
    }
    return ds


def _to_daily(sensors: list[pd.Series]) -> pd.DataFrame:
    """Average the sensors per time stamp, then the time stamps per UTC day."""
    readings = pd.concat(sensors)
    per_stamp = readings.groupby(level=0).mean()
    days = pd.DatetimeIndex(per_stamp.index).normalize()
    daily = per_stamp.groupby(days)
    return pd.DataFrame({"mean": daily.mean(), "count": daily.count()})


def _station_coords(stations: dict[tuple[str, str], list[_Sensor]]) -> dict[str, Any]:
    first = [group[0] for group in stations.values()]
    names = [sensor.station for sensor in first]
    labels = [s.station if names.count(s.station) == 1 else "/".join(_key(s)) for s in first]
    tops = [min(sensor.depth[0] for sensor in group) for group in stations.values()]
    bottoms = [max(sensor.depth[1] for sensor in group) for group in stations.values()]
    return {
        "station": labels,
        "network": ("station", [sensor.network for sensor in first]),
        "longitude": ("station", np.array([s.longitude for s in first]), _LONGITUDE_ATTRS),
        "latitude": ("station", np.array([s.latitude for s in first]), _LATITUDE_ATTRS),
        "depth_from": ("station", np.array(tops), {"units": "m"}),
        "depth_to": ("station", np.array(bottoms), {"units": "m"}),
    }


_SOIL_MOISTURE_ATTRS = {
    "units": "m3 m-3",
    "long_name": "In-situ soil moisture, mean of the good readings of the day",
    "standard_name": "volume_fraction_of_condensed_water_in_soil",
    "cell_methods": "time: mean",
}
_LONGITUDE_ATTRS = {"units": "degrees_east", "standard_name": "longitude"}
_LATITUDE_ATTRS = {"units": "degrees_north", "standard_name": "latitude"}
