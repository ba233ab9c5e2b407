"""Fine-grid labels for training: Planet soil water content, and SMAP downscaled to 1 km.

The second is NSIDC-0779. Both are GeoTIFFs of a day, and stay on the grid that they come on.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec, check_options, find_files
from smgrid.errors import CatalogError, NoDataError, SourceError
from smgrid.grid import ease_grid
from smgrid.sources.label_files import LabelFiles, Step, solar_time, stack_labels
from smgrid.sources.options import take_choice, take_units
from smgrid.sources.window import find_window, lattice_window
from smgrid.windows import Period

_SMAP = "smap_1km_soil_moisture"
_PLANET = "planet_soil_moisture"
_SMAP_NAME = re.compile(r"NSIDC-0779_EASE2_G1km_SMAP_SM_DS_(\d{8})")
_PLANET_NAME = re.compile(r"(?<!\d)(\d{4}-\d{2}-\d{2})(?!\d)")
# Bands and nominal local solar times [h] of SMAP's overpasses (Entekhabi et al. 2010,
# doi:10.1109/JPROC.2010.2043918); the mean of both stands at noon between them.
_OVERPASSES: Mapping[str, tuple[tuple[int, ...], float]] = {
    "am": ((1,), 6.0),
    "pm": ((2,), 18.0),
    "mean": ((1, 2), 12.0),
}
_SMAP_FILL = -9999.0
# The value band of Planet's files as the DenseSM pack describes them holds half of the soil
# moisture, and a quality of 0 is good.
_PLANET_SCALE = 2.0
_PLANET_BANDS: Mapping[str, str] = {_PLANET: "2", "quality": "1"}
# Nominal local solar time [h] of the descending overpasses of AMSR2, from which, with SMAP, the
# product is made.
_PLANET_HOUR = 1.5
_MARGIN = 1


def load_nsidc(spec: SourceSpec, grid: GeoBox, period: Period, *, chunks: int = 512) -> xr.Dataset:
    """Load SMAP soil moisture downscaled to 1 km over `grid` on its own EASE-Grid 2.0.

    Parameters
    ----------
    spec
        ``paths`` are NSIDC-0779 GeoTIFFs, global or clipped: files of one day are mosaicked. URLs
        are downloaded, those of Earthdata with its token. Option ``overpass``: "am" (default),
        "pm", "both" as steps of their own, or "mean" of both, which needs both.
    grid
        Region of interest, in any CRS; one pixel more is kept on every side.
    period
        First and last UTC day.
    chunks
        Tile edge in pixels of the labels.

    Returns
    -------
    xr.Dataset
        ``smap_1km_soil_moisture`` (time, y, x) [m3 m-3] on EPSG:6933 cells of 1 km, lazy.

    Raises
    ------
    NoDataError
        If no file is of a day in `period`, or the region is beyond 85 degrees of latitude.
    SourceError
        If a file has another name; when reading, if it is damaged or not on the lattice.
    SchemaError
        When reading, if soil moisture is outside 0..1.

    Notes
    -----
    Band 1 is the morning and band 2 the evening overpass. Coordinates come from the constants of
    EASE-Grid 2.0, which every file is held to. ``time`` is the file's day at the UTC hour at which
    the local solar time in the middle of the region is 6 h (am), 18 h (pm) or 12 h (mean), as for
    `smgrid.sources.smap.load_l3`.
    """
    check_options(spec, "overpass")
    choice = take_choice(spec, "overpass", ("am", "pm", "both", "mean"), default="am")
    days = _by_day(spec, _SMAP_NAME, Period.parse(period))
    window = ease_grid(1)[find_window(ease_grid(1), grid, padding=_MARGIN)]
    if 0 in window.shape.yx:
        msg = f"{spec.origin}: {spec.name} ends at 85 degrees of latitude; choose another region"
        raise NoDataError(msg)
    steps = [
        Step(solar_time(day, _OVERPASSES[name][1], grid), paths, _OVERPASSES[name][0])
        for day, paths in days.items()
        for name in (("am", "pm") if choice == "both" else (choice,))
    ]
    da = stack_labels(_smap_files(spec), steps, window, chunks=chunks)
    return da.assign_attrs(comment=f"overpass: {choice}").to_dataset()


def load_planet(spec: SourceSpec, grid: GeoBox, period: Period, *, chunks: int = 512) -> xr.Dataset:
    """Load Planet soil water content of 100 m over `grid` on the grid of its files.

    Parameters
    ----------
    spec
        ``paths`` are GeoTIFFs with a date YYYY-MM-DD in their names; those of one day are
        mosaicked, the first by name wins. ``assets`` number their bands,
        ``{planet_soil_moisture: "2", quality: "1"}`` by default; without ``quality`` no band is
        taken for it. ``scale``, 2 by default, and ``offset`` make ``units``, "m3 m-3" by default,
        of what is stored. Options: ``quality``, "good" (default, where the band is 0) or "all";
        ``local_hour``, local solar time of the observation [h], default 1.5.
    grid
        Region of interest, in any CRS; one pixel more is kept on every side.
    period
        First and last UTC day.
    chunks
        Tile edge in pixels of the labels.

    Returns
    -------
    xr.Dataset
        ``planet_soil_moisture`` (time, y, x) [m3 m-3] on the lattice of the files, lazy.

    Raises
    ------
    CatalogError
        If an option or a band is wrong.
    NoDataError
        If no file is of a day in `period` and of the region.
    SourceError
        If a name has no date, or the pixels of two files lie on different lattices; when reading,
        if a file is damaged or lacks a band.
    SchemaError
        When reading, if soil moisture is outside 0..1, for instance with another scale.

    Notes
    -----
    The defaults are those of the files that the DenseSM pack was trained with: band 1 is quality,
    0 is good, and band 2 is half of the soil moisture. Deliveries differ: where yours stores counts
    of 0.001, say so as ``scale``. A date is taken for a UTC day, and ``time`` is the UTC hour on it
    at which it is ``local_hour`` in the middle of the region.
    """
    check_options(spec, "quality", "local_hour")
    quality = take_choice(spec, "quality", ("good", "all"), default="good")
    bands, hour = _take_bands(spec), _take_hour(spec)
    files = _planet_files(spec, bands.get("quality") if quality == "good" else None)
    days = _by_day(spec, _PLANET_NAME, Period.parse(period))
    window, days = _of_region(spec, files, days, grid)
    steps = [
        Step(solar_time(day, hour, grid), paths, (bands[_PLANET],)) for day, paths in days.items()
    ]
    da = stack_labels(files, steps, window, chunks=chunks)
    good = f" where band {files.quality_band} is 0" if files.quality_band else ""
    comment = f"band {bands[_PLANET]} times {files.scale:g} plus {files.offset:g}{good}"
    return da.assign_attrs(comment=comment).to_dataset()


def _smap_files(spec: SourceSpec) -> LabelFiles:
    return LabelFiles(
        _SMAP,
        origin=spec.origin,
        units=take_units(spec, _SMAP, default="m3 m-3"),
        scale=spec.scale.get(_SMAP, 1.0),
        offset=spec.offset.get(_SMAP, 0.0),
        nodata=(_SMAP_FILL,) if spec.nodata is None else (_SMAP_FILL, spec.nodata),
        crs=spec.crs,
        sign="earthdata",
    )


def _planet_files(spec: SourceSpec, quality_band: int | None) -> LabelFiles:
    return LabelFiles(
        _PLANET,
        origin=spec.origin,
        units=take_units(spec, _PLANET, default="m3 m-3"),
        scale=spec.scale.get(_PLANET, _PLANET_SCALE),
        offset=spec.offset.get(_PLANET, 0.0),
        nodata=() if spec.nodata is None else (spec.nodata,),
        quality_band=quality_band,
        crs=spec.crs,
    )


def _by_day(
    spec: SourceSpec, name: re.Pattern[str], period: Period
) -> dict[pd.Timestamp, tuple[str, ...]]:
    """Return the files of each day of `period`, by name."""
    days: dict[pd.Timestamp, tuple[str, ...]] = {}
    for path in sorted(find_files(spec), key=lambda path: Path(path).name):
        match = name.search(Path(path).name)
        day = pd.to_datetime(match[1], errors="coerce") if match else pd.NaT
        if pd.isna(day):
            msg = f"{path} has no date in its name; correct paths of {spec.name} ({spec.origin})"
            raise SourceError(msg)
        if period.start <= day <= period.end:
            days[day] = (*days.get(day, ()), path)
    if not days:
        msg = (
            f"{spec.origin}: {spec.name} has no file from {period.start:%Y-%m-%d} to "
            f"{period.end:%Y-%m-%d}; add files of that period to its paths"
        )
        raise NoDataError(msg)
    return days


def _of_region(
    spec: SourceSpec,
    files: LabelFiles,
    days: Mapping[pd.Timestamp, Iterable[str]],
    grid: GeoBox,
) -> tuple[GeoBox, dict[pd.Timestamp, tuple[str, ...]]]:
    """Return the pixels around `grid` on the lattice of the files, and the files that hold some."""
    boxes = {path: files.open_box(path) for paths in days.values() for path in paths}
    window = lattice_window(next(iter(boxes.values())), grid, padding=_MARGIN)
    under = {path for path, box in boxes.items() if _meet(files, box, window, path)}
    kept = {day: tuple(path for path in paths if path in under) for day, paths in days.items()}
    kept = {day: paths for day, paths in kept.items() if paths}
    if not kept:
        first = next(iter(boxes))
        msg = (
            f"{spec.origin}: none of the {len(boxes)} files of {spec.name} ({first}, ...) lies in "
            "the region; choose another region or add its files"
        )
        raise NoDataError(msg)
    return window, kept


def _meet(files: LabelFiles, box: GeoBox, window: GeoBox, path: str) -> bool:
    row, col = files.require_lattice(box, window, path)
    vertically = row < window.shape.y and row + box.shape.y > 0
    return bool(vertically and col < window.shape.x and col + box.shape.x > 0)


def _take_hour(spec: SourceSpec) -> float:
    hour = spec.options.get("local_hour", _PLANET_HOUR)
    if not isinstance(hour, int | float) or not 0 <= hour < 24:
        msg = f"{spec.origin}: options.local_hour of {spec.name} is {hour!r}; give hours 0 to 24"
        raise CatalogError(msg)
    return float(hour)


def _take_bands(spec: SourceSpec) -> dict[str, int]:
    """Return the number of each band that ``spec.assets`` names, or those of the defaults."""
    bands = {}
    for name, number in (spec.assets or _PLANET_BANDS).items():
        if name not in _PLANET_BANDS or not number.isdecimal() or int(number) < 1:
            msg = (
                f"{spec.origin}: assets.{name} of {spec.name} is {number!r}; give the number of a "
                f"band for {' and '.join(_PLANET_BANDS)}"
            )
            raise CatalogError(msg)
        bands[name] = int(number)
    if _PLANET not in bands:
        msg = f"{spec.origin}: assets.{_PLANET} of {spec.name} is missing; give its band"
        raise CatalogError(msg)
    return bands
