"""Clear NDVI of single acquisitions from reflectances, and their composites."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec, find_files
from smgrid.errors import NoDataError, SourceError
from smgrid.resample import area_average, nearest
from smgrid.sources.gridded import concat_time
from smgrid.sources.netcdf import open_stack
from smgrid.sources.options import take_asset
from smgrid.sources.window import crop, pixel_metres
from smgrid.windows import Period

_Mask = npt.NDArray[np.int64]
_Ranks = npt.NDArray[np.float32]
_SIMULTANEOUS = pd.Timedelta(1, "min")
_DAY = pd.Timedelta(1, "D")
# Reflectance that land and water can have. At the lower end atmospheric correction has removed too
# much and NDVI tends to 1; the valid range of Landsat ends at 1.6 (USGS LSDS-1368), and negative
# counts stored as unsigned ones come out near 6.5.
_REFLECTANCE = (0.001, 1.6)
# Edge of a chunk of fine pixels, 4 MB as float32.
_EDGE = 1024


# What a mask says of a pixel: to be used, perhaps to be used, cloud or its shadow, not to be used.
_CLEAR, _DOUBTFUL, _CLOUD, _UNUSABLE = range(4)
# Share of a cell that must be clear: NDVI varies less within a field than clouds take from it.
_CLEAR_SHARE = 0.25
# Share of a cell in cloud from which its doubtful pixels are taken for cloud as well.
_CLOUDY_CELL = 0.1


def _rank_scl(values: _Mask) -> _Ranks:
    """Scene classes of Sen2Cor (ESA, Sentinel-2 Level-2A ATBD).

    Clear: 4 vegetation, 5 bare soil, 6 water. Doubtful: 7 unclassified, where thin cloud ends but
    also fields with sparse cover, above all in low sun: without it these go missing for a winter.
    Cloud: 3 shadow, 8 and 9 cloud, 10 cirrus. Unusable: 0 no data, 1 defective, 2 dark, 11 snow.
    """
    _refuse(values > 11, values, "scene classes are 0 to 11")
    ranks = np.full(12, _UNUSABLE, dtype="float32")
    ranks[[4, 5, 6]], ranks[7], ranks[[3, 8, 9, 10]] = _CLEAR, _DOUBTFUL, _CLOUD
    return ranks[values]


def _rank_pixel_qa(values: _Mask) -> _Ranks:
    """Landsat Collection 1 pixel_qa: clear (bit 1) or water (bit 2).

    Without shadow, snow or cloud (bits 3 to 5), high confidence of cirrus (bits 8 and 9) and
    terrain occlusion (bit 10) (USGS LSDS-1368).
    """
    _refuse(values >= 1 << 11, values, "for Collection 2 use landsat-qa-pixel")
    is_cirrus = (values & 0b11_0000_0000) == 0b11_0000_0000
    is_clear = ((values & 0b110) != 0) & ((values & 0b100_0011_1000) == 0) & ~is_cirrus
    return np.where(is_clear, _CLEAR, _UNUSABLE).astype("float32")


def _rank_qa_pixel(values: _Mask) -> _Ranks:
    """Landsat Collection 2 QA_PIXEL: none of fill, dilated cloud, cirrus, cloud, shadow and snow.

    Bits 0 to 5 (USGS LSDS-1619). Bits 8 to 13 hold confidences that are at least "low", so no
    value of a pixel with data is below 0x1500.
    """
    _refuse((values > 1) & (values < 0x1500), values, "for Collection 1 use landsat-pixel-qa")
    is_clear = (values > 1) & ((values & 0b11_1111) == 0)
    return np.where(is_clear, _CLEAR, _UNUSABLE).astype("float32")


MASKS: Mapping[str, Callable[[_Mask], _Ranks]] = {
    "sentinel2-scl": _rank_scl,
    "landsat-pixel-qa": _rank_pixel_qa,
    "landsat-qa-pixel": _rank_qa_pixel,
}


@dataclass(frozen=True)
class ClearView:
    """What acquisitions saw of each cell, lazily, float32 (time, y, x)."""

    ndvi: xr.DataArray
    """Mean NDVI of the clear part [1]; NaN where too little is clear."""
    seen: xr.DataArray
    """Share of the cell that is clear, 0 to 1, whether that is enough for `ndvi` or not."""


def open_clear_view(
    spec: SourceSpec, grid: GeoBox, period: Period, *, coding: str, chunks: int
) -> ClearView:
    """Return what the acquisitions in NetCDF stacks saw, lazily.

    Parameters
    ----------
    spec
        The source.
    grid
        Target.
    period
        First and last UTC day.
    coding
        How the mask is coded, a key of `MASKS`.
    chunks
        Tile edge [pixels of `grid`].
    """
    red = _open_band(spec, "red", grid, period)
    nir = _at_times_of(red, _open_band(spec, "nir", grid, period), spec, "nir")
    mask = _at_times_of(red, _open_band(spec, "mask", grid, period), spec, "mask")
    if nir.odc.geobox != red.odc.geobox:
        msg = f"{spec.name} ({spec.origin}): red and nir lie on different grids; give bands of one"
        raise SourceError(msg)
    where = f"{spec.name} ({spec.origin})"
    return clear_view(red, nir, mask, grid, coding=coding, chunks=chunks, where=where)


def clear_view(
    red: xr.DataArray,
    nir: xr.DataArray,
    mask: xr.DataArray,
    grid: GeoBox,
    *,
    coding: str,
    chunks: int,
    where: str,
) -> ClearView:
    """Return NDVI of the clear part of each cell.

    Parameters
    ----------
    red, nir
        Reflectance [1] (time, y, x) on one grid of fine pixels; NaN is missing.
    mask
        As stored, on that grid or a coarser one.
    grid
        Target; cells as large as the pixels or smaller take the nearest pixel.
    coding
        How the mask is coded, a key of `MASKS`.
    chunks
        Tile edge [pixels of `grid`].
    where
        What messages call the source.
    """
    rank = xr.apply_ufunc(
        _rank,
        mask,
        kwargs={"coding": coding, "where": where},
        dask="parallelized",
        output_dtypes=["float32"],
    )
    # Chunked as red and nir are, so that a tile of one needs a tile of the other.
    edge = red.chunksizes["x"][0]
    rank = nearest(rank, red.odc.geobox, chunks=edge).assign_coords(y=red["y"], x=red["x"])
    ndvi = ((nir - red) / (nir + red)).where(_is_plausible(red) & _is_plausible(nir))
    if pixel_metres(grid) < pixel_metres(red.odc.geobox):
        to_cells = partial(nearest, grid=grid, chunks=chunks)
    else:
        average = partial(area_average, min_coverage=_CLEAR_SHARE)
        to_cells = partial(average, grid=grid, chunks=chunks)
    certain = ndvi.where(rank == _CLEAR)
    found, seen = to_cells(certain), to_cells(certain.notnull().astype("float32"))
    if coding == "sentinel2-scl":
        likely = ndvi.where(rank <= _DOUBTFUL)
        is_fair = to_cells((rank == _CLOUD).astype("float32")) < _CLOUDY_CELL
        found = to_cells(likely).where(is_fair, found)
        seen = to_cells(likely.notnull().astype("float32")).where(is_fair, seen)
    return ClearView(found, seen)


def composite(
    clear: xr.DataArray,
    slots: pd.DatetimeIndex,
    *,
    days: int,
    statistic: Literal["median", "max"] = "median",
) -> xr.DataArray:
    """Return the median or maximum of the acquisitions in the `days` that begin with each slot.

    Parameters
    ----------
    clear
        Dims (time, y, x), times increasing, dask-backed; NaN is not clear.
    slots
        Starts of the composites.
    days
        Length of each [day].
    statistic
        Of the values that are not NaN.

    Returns
    -------
    xr.DataArray
        float32 (date, y, x); NaN where no acquisition is clear.
    """
    times = clear.indexes["time"]
    first = times.searchsorted(slots)
    last = times.searchsorted(slots + days * _DAY)
    composites: xr.DataArray = xr.apply_ufunc(
        _reduce,
        clear.chunk(time=-1),
        input_core_dims=[["time"]],
        output_core_dims=[["date"]],
        kwargs={"first": first, "last": last, "statistic": statistic},
        dask="parallelized",
        output_dtypes=["float32"],
        dask_gufunc_kwargs={"output_sizes": {"date": len(slots)}},
    )
    return composites.transpose("date", "y", "x").assign_coords(date=slots)


def _open_band(spec: SourceSpec, name: str, grid: GeoBox, period: Period) -> xr.DataArray:
    stored = take_asset(spec, name)
    source = f"{spec.name} ({spec.origin}), {stored}"
    time = take_asset(spec, "time")
    parts = []
    for path in find_files(spec):
        if _has_variable(path, stored):
            stack = open_stack(spec, path, {name: stored}, time=time, edge=_EDGE, raw=("mask",))
            parts.append(crop(stack[name], grid, source=source))
    if not parts:
        msg = f"{source}: none of its files has a variable of that name; correct assets.{name}"
        raise SourceError(msg)
    whole = concat_time(parts, source=source)
    inside = whole.sel(time=slice(period.start, period.end + _DAY - pd.Timedelta(1, "ns")))
    if inside.sizes["time"] == 0:
        times = whole.indexes["time"]
        msg = f"{source} holds {times[0]:%F} to {times[-1]:%F}, nothing in {period}; choose another"
        raise NoDataError(msg)
    return inside


def _has_variable(path: str, name: str) -> bool:
    try:
        with xr.open_dataset(path, decode_cf=False) as ds:
            return name in ds.variables
    except (OSError, ValueError) as cause:
        msg = f"{path} cannot be read as NetCDF ({cause}); fetch it again or correct the path"
        raise SourceError(msg) from cause


def _at_times_of(
    red: xr.DataArray, other: xr.DataArray, spec: SourceSpec, name: str
) -> xr.DataArray:
    """Return the acquisitions of `other` that belong to those of `red`."""
    times = red.indexes["time"]
    index = other.indexes["time"].get_indexer(times, method="nearest", tolerance=_SIMULTANEOUS)
    if (index < 0).any():
        alone = times[index < 0]
        msg = (
            f"{spec.name} ({spec.origin}): {len(alone)} of {len(times)} acquisitions have no "
            f"{name} within a minute, the first at {alone[0]}; give files of the same acquisitions"
        )
        raise SourceError(msg)
    return other.isel(time=index).assign_coords(time=times)


def _is_plausible(reflectance: xr.DataArray) -> xr.DataArray:
    low, high = _REFLECTANCE
    return (reflectance > low) & (reflectance <= high)


def _rank(values: _Mask, *, coding: str, where: str) -> _Ranks:
    try:
        return MASKS[coding](values)
    except ValueError as cause:
        msg = f"{where}: its mask is not coded as {coding}: {cause}"
        raise SourceError(msg) from cause


def _refuse(wrong: npt.NDArray[np.bool_], values: _Mask, cure: str) -> None:
    if wrong.any():
        raise ValueError(f"it holds {values[wrong].flat[0]}; {cure}")


def _reduce(
    values: npt.NDArray[np.float32],
    *,
    first: npt.NDArray[np.intp],
    last: npt.NDArray[np.intp],
    statistic: str,
) -> npt.NDArray[np.float32]:
    """Return a statistic of ``values[..., first:last]`` for each pair, NaN ignored."""
    reduced = np.full((*values.shape[:-1], len(first)), np.nan, dtype="float32")
    for step, (start, stop) in enumerate(zip(first, last, strict=True)):
        if start == stop:
            continue
        ordered = np.sort(values[..., start:stop], axis=-1)  # NaN last
        count = np.isfinite(ordered).sum(axis=-1, keepdims=True)
        high = count - 1 if statistic == "max" else count // 2
        low = count - 1 if statistic == "max" else (count - 1) // 2
        lower = np.take_along_axis(ordered, np.maximum(low, 0), axis=-1)
        upper = np.take_along_axis(ordered, np.clip(high, 0, stop - start - 1), axis=-1)
        reduced[..., step] = ((lower + upper) / 2)[..., 0]
    return reduced
