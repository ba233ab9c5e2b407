"""SMAP soil moisture: daily HDF5 files of the Enhanced Level-3 radiometer product, 9 km.

Coordinates come from the constants of EASE-Grid 2.0; the files' latitude and longitude arrays are
filled with -9999 wherever there was no observation. Only the window over the target is read.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import dask
import dask.array
import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec, check_options, find_files
from smgrid.errors import NoDataError, SourceError
from smgrid.grid import ease_grid, grid_coords
from smgrid.schema import check_range, describe
from smgrid.sources.options import take_choice
from smgrid.sources.window import find_window
from smgrid.windows import Period

Overpass = Literal["am", "pm"]

# Group and name suffix of each overpass, and its nominal local solar time [h] (Entekhabi et al.
# 2010, doi:10.1109/JPROC.2010.2043918: sun-synchronous, 6 am descending, 6 pm ascending).
_GROUPS: Mapping[str, tuple[str, str, float]] = {
    "am": ("Soil_Moisture_Retrieval_Data_AM", "", 6.0),
    "pm": ("Soil_Moisture_Retrieval_Data_PM", "_pm", 18.0),
}
_NAME = re.compile(r"SMAP_L3_SM_P_E_(\d{8})_R(\d+)_(\d+)\.h5$")
_FILL = -9999.0
# Bit 0 of retrieval_qual_flag: 0 where the retrieval has the recommended quality.
_NOT_RECOMMENDED = 1
_MARGIN = 1


def load_l3(spec: SourceSpec, grid: GeoBox, period: Period, *, chunks: int = 512) -> xr.Dataset:
    """Load SMAP Level-3 Enhanced soil moisture over `grid` on its own EASE-Grid 2.0.

    Parameters
    ----------
    spec
        ``paths`` are SPL3SMP_E files; of several versions of one day the newest is read. Options:
        ``overpass`` "am" (default), "pm" or "both", and ``quality`` "recommended" (default) or
        "all".
    grid
        Region of interest, in any CRS; one cell more is kept on every side.
    period
        First and last UTC day.
    chunks
        Not used: the window of one overpass is one chunk.

    Returns
    -------
    xr.Dataset
        ``smap_soil_moisture`` (time, y, x) [m3 m-3] on EPSG:6933 cells of 9 km, lazy.

    Raises
    ------
    NoDataError
        If no file is of a day in `period`, or the region is beyond 85 degrees of latitude.
    SourceError
        If a file is not a SPL3SMP_E file; when reading, also if it is damaged.
    SchemaError
        When reading, if soil moisture is outside 0..1.

    Notes
    -----
    A file is the composite of one UTC day. ``time`` is that day at the UTC hour at which the
    local solar time in the middle of the region is 6 h (am) or 18 h (pm):
    ``(local - longitude / 15) mod 24``, rounded to the minute. A pass observes a cell within
    about 50 minutes of it.
    """
    del chunks
    check_options(spec, "overpass", "quality")
    overpass = take_choice(spec, "overpass", ("am", "pm", "both"), default="am")
    quality = take_choice(spec, "quality", ("recommended", "all"), default="recommended")
    period = Period.parse(period)
    files = _newest_files(find_files(spec), period)
    if not files:
        msg = (
            f"{spec.origin}: {spec.name} has no file from {period.start:%Y-%m-%d} to "
            f"{period.end:%Y-%m-%d}; download SPL3SMP_E of that period"
        )
        raise NoDataError(msg)
    rows, cols = find_window(ease_grid(9), grid, padding=_MARGIN)
    window = ease_grid(9)[rows, cols]
    passes = ("am", "pm") if overpass == "both" else (overpass,)
    longitude = grid.geographic_extent.centroid.coords[0][0]
    steps = sorted(
        (day + _utc_hour(name, longitude), path, name)
        for day, path in files.items()
        for name in passes
    )
    blocks = [
        dask.array.from_delayed(
            dask.delayed(_read, pure=True)(path, name, rows, cols, quality),
            shape=window.shape.yx,
            dtype="float32",
        )
        for _, path, name in steps
    ]
    da = xr.DataArray(
        dask.array.stack(blocks),
        dims=("time", "y", "x"),
        coords={"time": pd.DatetimeIndex([step[0] for step in steps]).as_unit("ns")},
    )
    da = describe(da.assign_coords(grid_coords(window)), "smap_soil_moisture")
    return da.to_dataset()


def _newest_files(paths: Iterable[str], period: Period) -> dict[pd.Timestamp, str]:
    """Return the newest file (release, then counter) of each day of `period`."""
    found: dict[pd.Timestamp, tuple[tuple[int, int], str]] = {}
    for path in paths:
        match = _NAME.search(Path(path).name)
        if match is None:
            msg = (
                f"{path} is not named like a SPL3SMP_E file "
                "(SMAP_L3_SM_P_E_YYYYMMDD_Rnnnnn_nnn.h5); correct paths of the source"
            )
            raise SourceError(msg)
        day, version = pd.Timestamp(match[1]), (int(match[2]), int(match[3]))
        if period.start <= day <= period.end and version > found.get(day, ((-1, -1), ""))[0]:
            found[day] = version, path
    return {day: path for day, (_, path) in found.items()}


def _utc_hour(overpass: str, longitude: float) -> pd.Timedelta:
    hours = (_GROUPS[overpass][2] - longitude / 15.0) % 24.0
    # Rounding up to 24:00 would leave the composite's day.
    return pd.Timedelta(minutes=min(round(hours * 60.0), 24 * 60 - 1))


def _read(
    path: str, overpass: str, rows: slice, cols: slice, quality: str
) -> npt.NDArray[np.float32]:
    group, suffix, _ = _GROUPS[overpass]
    try:
        with h5py.File(path, "r") as file:
            values = _window(file[group][f"soil_moisture{suffix}"], rows, cols)
            flags = _window(file[group][f"retrieval_qual_flag{suffix}"], rows, cols)
    except (OSError, KeyError, ValueError) as cause:
        msg = f"{path}: cannot read {group} ({cause}); download the file again"
        raise SourceError(msg) from cause
    missing = ~np.isfinite(values) | (values == _FILL)
    if quality == "recommended":
        missing |= (flags & _NOT_RECOMMENDED) != 0
    soil_moisture = np.where(missing, np.float32("nan"), values).astype("float32")
    check_range(soil_moisture, "smap_soil_moisture", where=path)
    return soil_moisture


def _window(dataset: Any, rows: slice, cols: slice) -> npt.NDArray[Any]:
    if dataset.shape != ease_grid(9).shape.yx:
        msg = f"{dataset.name} has the shape {dataset.shape}, expected {ease_grid(9).shape.yx}"
        raise ValueError(msg)
    return np.asarray(dataset[rows, cols])
