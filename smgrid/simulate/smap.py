"""SMAP soil moisture as daily SPL3SMP_E files: HDF5 on the global 9 km EASE-Grid 2.0.

Group and variable names, types and fill values are those of the product (O'Neill et al. 2021, SMAP
Enhanced L3 Radiometer Global Daily 9 km EASE-Grid Soil Moisture, User Guide, NSIDC). Arrays have
the global shape, but only the chunks over the region are stored.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smgrid.grid import ease_grid, nested_offset, pixel_centres
from smgrid.simulate.evolution import Day, Land
from smgrid.simulate.fields import Array, stream
from smgrid.simulate.frame import cell_mean
from smgrid.windows import Period

NOISE = 0.03  # m3 m-3, one standard deviation of a recommended retrieval
_POOR_NOISE = 0.06
_POOR_SHARE = 0.1  # of the retrievals
_CHUNK = 64  # cells
_FILL, _FLAG_FILL = -9999.0, 65534
# retrieval_qual_flag: bit 0 not recommended, bit 1 not attempted, bit 2 not successful.
_RECOMMENDED, _NOT_RECOMMENDED, _SKIPPED = 0, 1, 7
_REPEAT_DAYS = 8  # of SMAP's ground track (Entekhabi et al. 2010, doi:10.1109/JPROC.2010.2043918)
_J2000 = pd.Timestamp("2000-01-01T11:58:55.816")  # UTC, where tb_time_seconds begins


@dataclass(frozen=True)
class Overpass:
    """One half of a file."""

    group: str
    suffix: str
    local_hour: float
    days: tuple[int, ...]
    """Of the repeat cycle on which the region is seen."""


OVERPASSES = (
    Overpass("Soil_Moisture_Retrieval_Data_AM", "", 6.0, (0, 3, 6)),
    Overpass("Soil_Moisture_Retrieval_Data_PM", "_pm", 18.0, (1, 3, 6)),
)
# name: (type, fill value, units, long_name)
_VARIABLES: dict[str, tuple[str, Any, str, str]] = {
    "soil_moisture": ("f4", _FILL, "cm**3/cm**3", "Soil moisture, dual channel algorithm"),
    "soil_moisture_dca": ("f4", _FILL, "cm**3/cm**3", "Soil moisture, dual channel algorithm"),
    "soil_moisture_error": ("f4", _FILL, "cm**3/cm**3", "Net uncertainty of soil moisture"),
    "retrieval_qual_flag": ("u2", _FLAG_FILL, "", "Conditions and quality of the retrieval"),
    "retrieval_qual_flag_dca": ("u2", _FLAG_FILL, "", "Conditions and quality of the retrieval"),
    "surface_flag": ("u2", _FLAG_FILL, "", "Land surface conditions"),
    "surface_temperature": ("f4", _FILL, "Kelvins", "Temperature at the land surface"),
    "vegetation_water_content": ("f4", _FILL, "kg/m**2", "Vegetation water content"),
    "latitude": ("f4", _FILL, "degrees_north", "Latitude of the centre of the cell"),
    "longitude": ("f4", _FILL, "degrees_east", "Longitude of the centre of the cell"),
    "EASE_row_index": ("u2", _FLAG_FILL, "", "Row of the cell, from 0"),
    "EASE_column_index": ("u2", _FLAG_FILL, "", "Column of the cell, from 0"),
    "tb_time_seconds": ("f8", _FILL, "seconds", "Time of observation since J2000"),
    "tb_time_utc": ("S24", b"", "", "Time of observation"),
}


class SmapWriter:
    """Writes a file on every day on which SMAP sees the region, every two to three days.

    The real archive has a file of every day; days that do not see the region are left out.

    Parameters
    ----------
    folder
        Of the files.
    land
        What is seen.
    scenes
        First and last day.
    seed
        Of the world.
    """

    def __init__(self, folder: Path, land: Land, *, scenes: Period, seed: int) -> None:
        self._folder, self._scenes, self._seed = folder, scenes, seed
        window = land.frame.ease
        offset = nested_offset(window, ease_grid(9))
        rows, columns = window.shape
        self._window = slice(offset.y, offset.y + rows), slice(offset.x, offset.x + columns)
        parts = max(3, round(window.resolution.x / land.frame.domain.resolution.x))
        self._mean = cell_mean(land.frame.domain, window, parts=parts)
        self._longitude, self._latitude = pixel_centres(window, "EPSG:4326")

    def observe(self, day: Day) -> None:
        """Write the file of this day, if there is one."""
        if not self._scenes.start <= day.date <= self._scenes.end:
            return
        phase = (day.date - self._scenes.start).days % _REPEAT_DAYS
        seen = [one for one in OVERPASSES if phase in one.days]
        if not seen:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with h5py.File(self._folder / file_name(day.date), "w") as file:
            for one in OVERPASSES:
                values = self._retrieve(day, one) if one in seen else {}
                _write_group(file.create_group(one.group), one.suffix, values, self._window)
            _write_metadata(file, day.date)

    def _retrieve(self, day: Day, one: Overpass) -> dict[str, NDArray[Any]]:
        """Values of each variable in the window."""
        rng = stream(self._seed, "smap", f"{day.date:%Y%m%d}", one.group)
        temperature, ndvi = self._mean(day.temperature), self._mean(day.ndvi)
        flag, moisture = retrieve(rng, self._mean(day.moisture), frozen=temperature < 0)
        error = np.where(flag == _RECOMMENDED, NOISE, _POOR_NOISE)
        time = _utc_times(day.date, one.local_hour, self._longitude)
        rows, columns = np.mgrid[self._window]
        # Chan et al. (2013), SMAP ATBD Vegetation Water Content, without woody stems.
        water = np.maximum(1.9134 * ndvi**2 - 0.3215 * ndvi, 0.0)
        stamps = [[f"{t:%Y-%m-%dT%H:%M:%S}.000Z" for t in row] for row in time]
        seconds = [[(t - _J2000).total_seconds() for t in row] for row in time]
        return {
            "soil_moisture": moisture,
            "soil_moisture_dca": moisture,
            "soil_moisture_error": np.where(flag == _SKIPPED, _FILL, error),
            "retrieval_qual_flag": flag,
            "retrieval_qual_flag_dca": flag,
            "surface_flag": np.where(flag == _SKIPPED, 1 << 7, 0),
            "surface_temperature": temperature + 273.15,
            "vegetation_water_content": water,
            "latitude": self._latitude,
            "longitude": self._longitude,
            "EASE_row_index": rows,
            "EASE_column_index": columns,
            "tb_time_seconds": np.array(seconds),
            "tb_time_utc": np.array(stamps, dtype="S24"),
        }


def file_name(date: pd.Timestamp) -> str:
    """Name of the file of a day."""
    return f"SMAP_L3_SM_P_E_{date:%Y%m%d}_R19240_001.h5"


def retrieve(
    rng: np.random.Generator, truth: Array, *, frozen: NDArray[np.bool_]
) -> tuple[NDArray[np.uint16], Array]:
    """Quality flag and noisy soil moisture of cells [m3 m-3]; -9999 where the ground is frozen."""
    poor = rng.random(truth.shape) < _POOR_SHARE
    noise = rng.standard_normal(truth.shape) * np.where(poor, _POOR_NOISE, NOISE)
    flag = np.where(poor, _NOT_RECOMMENDED, _RECOMMENDED)
    flag = np.where(frozen, _SKIPPED, flag).astype(np.uint16)
    # The product holds no values below 0.02 m3 m-3.
    moisture = np.where(frozen, _FILL, np.maximum(truth + noise, 0.02))
    return flag, moisture.astype(np.float32)


def _utc_times(
    date: pd.Timestamp, local_hour: float, longitude: NDArray[np.float64]
) -> list[list[pd.Timestamp]]:
    hours = (local_hour - longitude / 15.0) % 24.0
    return [[date + pd.Timedelta(seconds=round(float(h) * 3600)) for h in row] for row in hours]


def _write_group(
    group: Any, suffix: str, values: dict[str, NDArray[Any]], window: tuple[slice, slice]
) -> None:
    shape = ease_grid(9).shape.yx
    for name, (dtype, fill, units, long_name) in _VARIABLES.items():
        dataset = group.create_dataset(
            f"{name}{suffix}",
            shape=shape,
            dtype=dtype,
            chunks=(_CHUNK, _CHUNK),
            compression="gzip",
            compression_opts=1,
            fillvalue=fill,
        )
        dataset.attrs["long_name"] = long_name
        if units:
            dataset.attrs["units"] = units
        if dtype != "S24":
            dataset.attrs["_FillValue"] = np.array(fill, dtype=dtype)
        if name in values:
            dataset[window] = values[name].astype(dtype)


def _write_metadata(file: Any, date: pd.Timestamp) -> None:
    identification = file.create_group("Metadata/DatasetIdentification")
    identification.attrs["shortName"] = "SPL3SMP_E"
    identification.attrs["abstract"] = "Simulated; no satellite saw it."
    extent = file.create_group("Metadata/Extent")
    extent.attrs["rangeBeginningDateTime"] = f"{date:%Y-%m-%d}T00:00:00.000Z"
    extent.attrs["rangeEndingDateTime"] = f"{date:%Y-%m-%d}T23:59:59.999Z"
