"""Stations as an archive of the International Soil Moisture Network: folders of ``.stm`` files.

The layout is "header + values" (Dorigo et al. 2021, doi:10.5194/hess-25-5749-2021): one line about
the station, then a line per reading with its ISMN flag and the provider's own.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smgrid.grid import transform_points
from smgrid.simulate.evolution import Day, Land
from smgrid.simulate.fields import Array, stream
from smgrid.windows import Period

NETWORK, SENSOR = "SIMNET", "Simulated Probe"
DEPTH = (0.0, 0.05)  # m
_HOURS = (0, 6, 12, 18)
_NOISE = (0.01, 0.02)  # m3 m-3: least and most standard deviation of a sensor
# Shares of the readings that are wrong, and what the ISMN calls them (Dorigo et al. 2013,
# doi:10.2136/vzj2012.0097): below 0, above 0.60 m3 m-3, a spike.
_WRONG = {"C01": 0.002, "C02": 0.001, "D06": 0.004}
_SILENT_DAYS = 6  # without any reading, once per station
_STATIC_HEADER = (
    "quantity_name;unit;depth_from[m];depth_to[m];value;description;quantity_source_name;"
    "quantity_source_description;quantity_source_provider;quantity_source_version;"
    "quantity_source_resolution;quantity_source_timerange;quantity_source_url;"
)
_STATIC_SOURCE = "simulated;The soil of the simulated world;smgrid;;;;;"


@dataclass(frozen=True)
class Sites:
    """Where the stations stand."""

    x: NDArray[np.float64]
    """[m] in the CRS of the region."""
    y: NDArray[np.float64]
    row: NDArray[np.intp]
    """Pixel of the domain."""
    column: NDArray[np.intp]


class StationWriter:
    """Reads every station's pixel each day and writes the archive at the end.

    Parameters
    ----------
    folder
        Of the archive.
    land
        What is measured.
    scenes
        First and last day.
    count
        Number of stations.
    seed
        Of the world.
    """

    def __init__(self, folder: Path, land: Land, *, scenes: Period, count: int, seed: int) -> None:
        self._folder, self._land, self._scenes, self._seed = folder, land, scenes, seed
        self._sites = place_sites(stream(seed, "stations"), land, count)
        self._days: list[Array] = []

    def observe(self, day: Day) -> None:
        """Keep the stations' moisture of this day."""
        if self._scenes.start <= day.date <= self._scenes.end:
            self._days.append(day.moisture[self._sites.row, self._sites.column])

    def finish(self) -> None:
        """Write the files of all stations."""
        sites, land = self._sites, self._land
        lon, lat = transform_points(sites.x, sites.y, land.frame.base.crs, "EPSG:4326")
        truth = np.array(self._days)
        for i in range(len(sites.x)):
            station = f"Site-{i + 1:03d}"
            pixel = sites.row[i], sites.column[i]
            rng = stream(self._seed, "stations", station)
            values, flags = take_readings(rng, np.repeat(truth[:, i], len(_HOURS)))
            lines = [
                header(station, lat[i], lon[i], float(land.terrain.elevation[pixel])),
                *_reading_lines(self._scenes.days, values, flags),
            ]
            folder = self._folder / NETWORK / station
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{_stem(station)}_sm_{_span(self._scenes)}.stm"
            path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
            _write_static(folder / f"{_stem(station)}_static_variables.csv", land, pixel)


def place_sites(rng: np.random.Generator, land: Land, count: int) -> Sites:
    """Scatter stations over the region, none nearer than half their mean spacing to another."""
    box = land.frame.base.boundingbox
    width, height = box.right - box.left, box.top - box.bottom
    apart = 0.5 * np.sqrt(width * height / count) if count else 0.0
    found: list[NDArray[np.float64]] = []
    while len(found) < count:
        # At this distance a fifth of the area is taken at most: a free place is soon found.
        spot = rng.random(2) * (width, height) + (box.left, box.bottom)
        if all(np.hypot(*(spot - other)) >= apart for other in found):
            found.append(spot)
    x, y = np.array(found).reshape(-1, 2).T
    affine = land.frame.domain.affine
    row = np.floor((y - affine.f) / affine.e).astype(np.intp)
    return Sites(x, y, row, np.floor((x - affine.c) / affine.a).astype(np.intp))


def header(station: str, latitude: float, longitude: float, elevation: float) -> str:
    """First line of a file."""
    place = f"{latitude:.5f} {longitude:.5f}"
    depths = f"{DEPTH[0]:.4f} {DEPTH[1]:.4f}"
    return (
        f"{NETWORK:<10} {NETWORK:<10} {station:<15} {place}{'':17}{elevation:.1f} {depths} {SENSOR}"
    )


def take_readings(
    rng: np.random.Generator, truth: Array
) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    """Return readings of one sensor [m3 m-3] and their ISMN flags; a gap is NaN, flagged "M"."""
    noise = rng.normal(0.0, rng.uniform(*_NOISE), len(truth))
    values = np.clip(truth + noise, 0.001, 0.599).astype(np.float64)
    draws = rng.random(len(truth))
    edges = np.cumsum(list(_WRONG.values()))
    flags = np.array([*_WRONG, "G"])[np.searchsorted(edges, draws, side="right")]
    wrong = {
        "C01": np.full(len(truth), -0.99),
        "C02": rng.uniform(0.61, 0.95, len(truth)),
        "D06": np.clip(values + rng.uniform(0.12, 0.3, len(truth)), 0.0, 0.6),
    }
    for flag, bad in wrong.items():
        values = np.where(flags == flag, bad, values)
    silent = _SILENT_DAYS * len(_HOURS)
    begin = int(rng.integers(0, max(1, len(truth) - silent)))
    values[begin : begin + silent] = np.nan
    flags[begin : begin + silent] = "M"
    return values, flags


def _reading_lines(
    days: pd.DatetimeIndex, values: NDArray[np.float64], flags: NDArray[np.str_]
) -> list[str]:
    stamps = [f"{day:%Y/%m/%d} {hour:02d}:00" for day in days for hour in _HOURS]
    return [
        f"{stamp} -9999 M M" if flag == "M" else f"{stamp} {value:.4f} {flag} M"
        for stamp, value, flag in zip(stamps, values, flags, strict=True)
    ]


def _write_static(path: Path, land: Land, pixel: tuple[np.intp, np.intp]) -> None:
    soil = land.soil
    rows = (
        ("saturation", "m^3*m^-3", soil.porosity[pixel]),
        ("clay fraction", "% weight", 100 * soil.clay[pixel]),
        ("sand fraction", "% weight", 100 * soil.sand[pixel]),
        ("silt fraction", "% weight", 100 * (1 - soil.sand[pixel] - soil.clay[pixel])),
    )
    lines = [f"{name};{unit};0.00;0.30;{v:.2f};;{_STATIC_SOURCE}" for name, unit, v in rows]
    path.write_text("\n".join([_STATIC_HEADER, *lines]) + "\n", encoding="utf-8", newline="\n")


def _stem(station: str) -> str:
    return f"{NETWORK}_{NETWORK}_{station}"


def _span(scenes: Period) -> str:
    """Depths, sensor and days, as file names end."""
    sensor = SENSOR.replace(" ", "-")
    return f"{DEPTH[0]:.6f}_{DEPTH[1]:.6f}_{sensor}_{scenes.start:%Y%m%d}_{scenes.end:%Y%m%d}"
