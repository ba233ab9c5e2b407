"""SMAP soil moisture, 9 km: overpasses of the Enhanced Level-3 product, daily means of Level 4.

Only the window over the target is read, on the cells of EASE-Grid 2.0.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

import dask
import dask.array
import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec, check_options
from smgrid.errors import NoDataError
from smgrid.grid import ease_grid, grid_coords
from smgrid.schema import check_range, describe
from smgrid.sources.options import take_choice
from smgrid.sources.retry import redact
from smgrid.sources.smap_files import FILL, Product, RemoteFile, find_newest, read_cells
from smgrid.sources.window import describe_extent, find_window
from smgrid.windows import Period

Overpass = Literal["am", "pm"]

# Group and name suffix of each overpass, and its nominal local solar time [h] (Entekhabi et al.
# 2010, doi:10.1109/JPROC.2010.2043918: sun-synchronous, 6 am descending, 6 pm ascending).
_GROUPS: Mapping[str, tuple[str, str, float]] = {
    "am": ("Soil_Moisture_Retrieval_Data_AM", "", 6.0),
    "pm": ("Soil_Moisture_Retrieval_Data_PM", "_pm", 18.0),
}
_L3 = Product(
    "SPL3SMP_E",
    "SMAP_L3_SM_P_E_YYYYMMDD_Rnnnnn_nnn.h5",
    re.compile(r"SMAP_L3_SM_P_E_(\d{8})_R(\d+)_(\d+)\.h5$"),
)
_L4 = Product(
    "SPL4SMGP",
    "SMAP_L4_SM_gph_YYYYMMDDThhmmss_Vvnnnn_nnn.h5",
    re.compile(r"SMAP_L4_SM_gph_(\d{8}T\d{6})_Vv(\d+)_(\d+)\.h5$"),
)
# Level 4 has means of three hours, named by their middle (Reichle et al. 2022, SMAP L4 user guide).
_L4_FIELD = "Geophysical_Data/sm_surface"
_L4_STEP = pd.Timedelta(hours=3)
_L4_STEPS = 8
_DAY = pd.Timedelta(days=1)
# Bit 0 of retrieval_qual_flag: 0 where the retrieval has the recommended quality.
_NOT_RECOMMENDED = 1
_MARGIN = 1


def load_l3(spec: SourceSpec, grid: GeoBox, period: Period, *, chunks: int = 512) -> xr.Dataset:
    """Load SMAP Level-3 Enhanced soil moisture over `grid` on its own EASE-Grid 2.0.

    Parameters
    ----------
    spec
        ``paths`` are SPL3SMP_E files, or ``stac`` a collection of them, which are fetched when
        they are read; of several versions of one day the newest is read. Options:
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
        If a file is not a SPL3SMP_E file; when reading, also if it is damaged or cannot be
        fetched.
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
    files = find_newest(spec, _L3, grid, period)
    rows, cols = _find_cells(spec, grid)
    window = ease_grid(9)[rows, cols]
    passes = ("am", "pm") if overpass == "both" else (overpass,)
    longitude = grid.geographic_extent.centroid.coords[0][0]
    steps = sorted(
        (
            (day + _utc_hour(name, longitude), file, name)
            for day, file in files.items()
            for name in passes
        ),
        key=lambda step: step[0],
    )
    read = dask.delayed(_read_overpass, pure=True)
    fields = [read(file, name, rows, cols, quality) for _, file, name in steps]
    return _assemble("smap_soil_moisture", [step[0] for step in steps], fields, window)


def load_l4(spec: SourceSpec, grid: GeoBox, period: Period, *, chunks: int = 512) -> xr.Dataset:
    """Load daily means of SMAP Level-4 surface soil moisture over `grid` on EASE-Grid 2.0.

    Parameters
    ----------
    spec
        ``paths`` are SPL4SMGP files, or ``stac`` a collection of them, which are fetched when they
        are read: eight of about 150 MB for a day. Of several versions the newest is read.
    grid
        Region of interest, in any CRS; one cell more is kept on every side.
    period
        First and last UTC day.
    chunks
        Not used: the window of one day is one chunk.

    Returns
    -------
    xr.Dataset
        ``smap_l4_soil_moisture`` (time, y, x) [m3 m-3], 0-5 cm, on EPSG:6933 cells of 9 km, lazy.
        ``time`` is 12:00 UTC of each day of `period`, the middle of what the mean is of.

    Raises
    ------
    NoDataError
        If no day of `period` has all its files, or the region is beyond 85 degrees of latitude.
    SourceError
        If a file is not a SPL4SMGP file; when reading, also if it is damaged or cannot be fetched.
    SchemaError
        When reading, if soil moisture is outside 0..1.

    Notes
    -----
    The mean of a UTC day is of the eight fields stamped 01:30, 04:30, ... 22:30, each a mean of
    three hours (``Geophysical_Data/sm_surface``). A day that lacks one of them is NaN and none of
    its files is fetched; so is a cell that lacks one value.
    """
    del chunks
    check_options(spec)
    period = Period.parse(period)
    files = find_newest(spec, _L4, grid, period)
    rows, cols = _find_cells(spec, grid)
    window = ease_grid(9)[rows, cols]
    read, mean = dask.delayed(_read_l4, pure=True), dask.delayed(_mean, pure=True)
    fields = []
    for day in period.days:
        stamps = [day + _L4_STEP / 2 + number * _L4_STEP for number in range(_L4_STEPS)]
        complete = all(stamp in files for stamp in stamps)
        fields.append(
            mean([read(files[stamp], rows, cols) for stamp in stamps]) if complete else None
        )
    if not any(field is not None for field in fields):
        msg = (
            f"{spec.origin}: {spec.name} has all {_L4_STEPS} files of no day from "
            f"{period.start:%Y-%m-%d} to {period.end:%Y-%m-%d}; download the others"
        )
        raise NoDataError(msg)
    return _assemble("smap_l4_soil_moisture", list(period.days + _DAY / 2), fields, window)


def _find_cells(spec: SourceSpec, grid: GeoBox) -> tuple[slice, slice]:
    rows, cols = find_window(ease_grid(9), grid, padding=_MARGIN)
    if rows.start >= rows.stop or cols.start >= cols.stop:
        msg = (
            f"{spec.origin}: {spec.name} covers 85.04 S to 85.04 N, the grid covers "
            f"{describe_extent(grid)}: they do not overlap; use another source"
        )
        raise NoDataError(msg)
    return rows, cols


def _assemble(
    name: str, times: list[pd.Timestamp], fields: list[Any], window: GeoBox
) -> xr.Dataset:
    """Put fields (y, x) after one another in time; one that is None is missing throughout."""
    shape = window.shape.yx
    blocks = [
        dask.array.full(shape, np.nan, dtype="float32", chunks=shape)
        if field is None
        else dask.array.from_delayed(field, shape=shape, dtype="float32")
        for field in fields
    ]
    coords = {"time": pd.DatetimeIndex(times).as_unit("ns")}
    da = xr.DataArray(dask.array.stack(blocks), dims=("time", "y", "x"), coords=coords)
    return describe(da.assign_coords(grid_coords(window)), name).to_dataset()


def _utc_hour(overpass: str, longitude: float) -> pd.Timedelta:
    hours = (_GROUPS[overpass][2] - longitude / 15.0) % 24.0
    # Rounding up to 24:00 would leave the composite's day.
    return pd.Timedelta(minutes=min(round(hours * 60.0), 24 * 60 - 1))


def _read_overpass(
    file: RemoteFile, overpass: str, rows: slice, cols: slice, quality: str
) -> npt.NDArray[np.float32]:
    group, suffix, _ = _GROUPS[overpass]

    def read(opened: h5py.File) -> npt.NDArray[np.float32]:
        values = read_cells(opened[group][f"soil_moisture{suffix}"], rows, cols)
        flags = read_cells(opened[group][f"retrieval_qual_flag{suffix}"], rows, cols)
        missing = ~np.isfinite(values) | (values == FILL)
        if quality == "recommended":
            missing |= (flags & _NOT_RECOMMENDED) != 0
        return np.where(missing, np.float32("nan"), values).astype("float32")

    soil_moisture = file.read(group, read)
    check_range(soil_moisture, "smap_soil_moisture", where=redact(file.href))
    return soil_moisture


def _read_l4(file: RemoteFile, rows: slice, cols: slice) -> npt.NDArray[np.float32]:
    def read(opened: h5py.File) -> npt.NDArray[np.float32]:
        values = read_cells(opened[_L4_FIELD], rows, cols)
        missing = ~np.isfinite(values) | (values == FILL)
        return np.where(missing, np.float32("nan"), values).astype("float32")

    soil_moisture = file.read(_L4_FIELD, read)
    check_range(soil_moisture, "smap_l4_soil_moisture", where=redact(file.href))
    return soil_moisture


def _mean(fields: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    mean: npt.NDArray[np.float32] = np.mean(fields, axis=0, dtype="float64").astype("float32")
    return mean
