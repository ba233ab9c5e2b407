"""Daily GeoTIFFs of soil moisture as labels: masked reads, each file held to one lattice of pixels.

Nothing is resampled. A file may cover more or less than the region; its pixels are copied to where
the lattice has them, and a file whose pixels lie elsewhere is an error, half a pixel included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import numpy.typing as npt
import pandas as pd
import rasterio
import xarray as xr
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from rasterio.errors import RasterioError
from rasterio.windows import Window

from smgrid.catalogtext import Signing
from smgrid.errors import SourceError
from smgrid.grid import grid_coords, iter_tiles, transform_points
from smgrid.schema import check_range, convert_units, describe
from smgrid.sources.download import fetch, forget
from smgrid.sources.retry import redact
from smgrid.sources.window import to_pixel

# Providers reprocess labels under the same names.
_MAX_AGE = timedelta(days=1)
# Part of a pixel by which the corners of a file may miss the lattice: rounded corners do.
_ALIGNED = 0.05


@dataclass(frozen=True)
class LabelFiles:
    """How the files of one product become soil moisture."""

    variable: str
    """Name in ``catalogs/variables.yml``."""
    origin: str
    """Where the source was written, for messages."""
    units: str
    """Of the values after scale and offset."""
    scale: float = 1.0
    offset: float = 0.0
    nodata: tuple[float, ...] = ()
    """Stored values that mean missing, besides what a file says itself."""
    quality_band: int | None = None
    """Band that is 0 where a value is good; ``None`` to use all."""
    crs: str | None = None
    """CRS of files that carry none or a wrong one."""
    sign: Signing = "none"
    """How a download is authorised."""

    def open_box(self, path: str) -> GeoBox:
        """Return where the pixels of a file lie; SourceError if that is not known."""
        local = self._fetch(path)
        try:
            with rasterio.open(local) as file:
                return self._box(file, redact(path))
        except RasterioError as cause:
            raise self._unreadable(path, local, cause) from cause

    def read(self, path: str, bands: Sequence[int], grid: GeoBox) -> npt.NDArray[np.float32]:
        """Return the mean of `bands` on `grid` (y, x), NaN where one of them is not good.

        Raises
        ------
        SourceError
            If the file cannot be read, lacks a band, or its pixels are not those of `grid`.
        SchemaError
            If a value is not soil moisture.
        """
        mean = np.full(grid.shape.yx, np.nan, dtype="float32")
        local, name = self._fetch(path), redact(path)
        try:
            with rasterio.open(local) as file:
                needed = max(*bands, self.quality_band or 0, 0)
                if file.count < needed:
                    msg = f"{name} has {file.count} bands, expected at least {needed}"
                    raise SourceError(f"{msg}; correct paths or bands of {self.origin}")
                here, there = self._overlap(self._box(file, name), grid, name)
                if there is not None:
                    mean[here] = self._read_window(file, bands, there)
        except RasterioError as cause:
            raise self._unreadable(path, local, cause) from cause
        check_range(mean, self.variable, where=name)
        return mean

    def require_lattice(self, box: GeoBox, grid: GeoBox, path: str) -> tuple[int, int]:
        """Return row and column of the first pixel of a file on `grid`, which need not hold it.

        Raises
        ------
        SourceError
            If the pixels of the file are not those of the lattice of `grid`.
        """
        # Two corners of pixels away from the edge of the globe, where longitude is ambiguous.
        size = np.array(box.shape.yx)
        corners = np.array([size // 4, size - size // 4])
        x = box.affine.c + box.affine.a * corners[:, 1]
        y = box.affine.f + box.affine.e * corners[:, 0]
        place = np.stack(to_pixel(grid, *transform_points(x, y, box.crs, grid.crs)), axis=1)
        first = np.round(place[0]) - corners[0]
        drift = float(np.abs(place - first - corners).max())
        if not drift <= _ALIGNED:
            msg = (
                f"{path} has pixels of {box.resolution.x:g} in {CRS(box.crs).proj.name} that are "
                f"not those of {grid.resolution.x:g} in {CRS(grid.crs).proj.name} ({drift:.2f} of "
                f"a pixel off); all files of {self.origin} must be of one product and version"
            )
            raise SourceError(msg)
        return int(first[0]), int(first[1])

    def _fetch(self, path: str) -> Path:
        return fetch(path, sign=self.sign, origin=self.origin, max_age=_MAX_AGE)

    def _box(self, file: rasterio.DatasetReader, path: str) -> GeoBox:
        crs = self.crs or (file.crs and file.crs.to_string())
        if not crs or not file.transform.is_rectilinear or file.transform.e >= 0:
            msg = (
                f"{path} has no CRS or is not north up; state its CRS as crs: in {self.origin} or "
                "use the file as the provider delivers it"
            )
            raise SourceError(msg)
        return GeoBox((file.height, file.width), file.transform, CRS(crs))

    def _overlap(
        self, box: GeoBox, grid: GeoBox, path: str
    ) -> tuple[tuple[slice, slice], Window | None]:
        """Return the part of `grid` that a file covers, and the window of the file."""
        row, col = self.require_lattice(box, grid, path)
        top, left = max(row, 0), max(col, 0)
        bottom = min(row + box.shape.y, grid.shape.y)
        right = min(col + box.shape.x, grid.shape.x)
        if top >= bottom or left >= right:
            return (slice(0, 0), slice(0, 0)), None
        window = Window(left - col, top - row, right - left, bottom - top)
        return (slice(top, bottom), slice(left, right)), window

    def _read_window(
        self, file: rasterio.DatasetReader, bands: Sequence[int], window: Window
    ) -> npt.NDArray[np.float32]:
        stored = file.read(list(bands), window=window, masked=True)
        values = stored.astype("float64").filled(np.nan)
        values[np.isin(values, self.nodata)] = np.nan
        if self.quality_band is not None:
            # Not masked: a file whose nodata is 0 would mask what is good.
            quality = file.read(self.quality_band, window=window)
            values[:, quality != 0] = np.nan
        mean = values.mean(axis=0) * self.scale + self.offset
        mean[~np.isfinite(mean)] = np.nan
        da = convert_units(xr.DataArray(mean), self.units, self.variable)
        return np.asarray(da.values)

    def _unreadable(self, path: str, local: Path, cause: Exception) -> SourceError:
        forget(local)  # so that the next run downloads it again
        return SourceError(
            f"{redact(path)} cannot be read ({cause}); it is damaged or not a raster: download it "
            "again"
        )


@dataclass(frozen=True)
class Step:
    """One time of a label: files that are mosaicked, the first valid pixel wins."""

    time: pd.Timestamp
    paths: tuple[str, ...]
    bands: tuple[int, ...]
    """Bands whose mean is the label; all must be valid."""


def solar_time(day: pd.Timestamp, hour: float, grid: GeoBox) -> pd.Timestamp:
    """Return the UTC time on a UTC day at which it is `hour` of local solar time [h] at a grid.

    Local time at the centre: ``(hour - longitude / 15) mod 24``, rounded to the minute.
    """
    longitude = float(grid.geographic_extent.centroid.coords[0][0])
    minutes = round((hour - longitude / 15.0) % 24.0 * 60.0)
    # Rounding up to 24:00 would leave the day.
    return day + pd.Timedelta(minutes=min(minutes, 24 * 60 - 1))


def stack_labels(
    files: LabelFiles, steps: Sequence[Step], grid: GeoBox, *, chunks: int
) -> xr.DataArray:
    """Return labels (time, y, x) on `grid`, lazily, one chunk per time and tile."""
    steps = sorted(steps, key=lambda step: step.time)
    tiles = [tile.geobox.shape for tile in iter_tiles(grid, chunks)]
    across = -(-grid.shape.x // chunks)
    data = dask.array.map_blocks(
        _read_block,
        chunks=(
            (1,) * len(steps),
            tuple(shape.y for shape in tiles[::across]),
            tuple(shape.x for shape in tiles[:across]),
        ),
        dtype=np.float32,
        meta=np.empty((0, 0, 0), np.float32),
        files=files,
        steps=tuple(steps),
        grid=grid,
    )
    times = pd.DatetimeIndex([step.time for step in steps]).as_unit("ns")
    da = xr.DataArray(data, dims=("time", "y", "x"), coords={"time": times})
    return describe(da.assign_coords(grid_coords(grid)), files.variable)


def _read_block(
    *,
    files: LabelFiles,
    steps: tuple[Step, ...],
    grid: GeoBox,
    block_info: Mapping[Any, Any],
) -> npt.NDArray[np.float32]:
    (at, _), *place = block_info[None]["array-location"]
    tile = grid[tuple(slice(*span) for span in place)]
    step = steps[at]
    label = np.full(tile.shape.yx, np.nan, dtype="float32")
    for path in step.paths:
        label = np.where(np.isnan(label), files.read(path, step.bands, tile), label)
    return label[None]
