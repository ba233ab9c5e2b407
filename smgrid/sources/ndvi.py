"""NDVI on the 8-day composite calendar: composites of MODIS and VIIRS, or finer reflectances.

All loaders fill gaps in time and give ``ndvi_filled``, the share of each value that was filled.
"""

from functools import reduce

import pandas as pd
import pystac
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec, check_options
from smgrid.errors import NoDataError, SourceError
from smgrid.resample import nearest
from smgrid.sources.checks import checked
from smgrid.sources.options import take_asset, take_choice
from smgrid.sources.pixel_rule import RULE_OPTIONS, PixelRule, take_rule
from smgrid.sources.reflectance import MASKS, ClearView, composite, open_clear_view
from smgrid.sources.sentinel2 import open_clear_items
from smgrid.sources.series import SERIES_OPTIONS, Filling, finish_series, take_filling
from smgrid.sources.stac import item_span, load_items, search_items, split_by_lattice
from smgrid.sources.viirs import find_granules, open_composites
from smgrid.sources.window import lattice_window
from smgrid.windows import Period, composite_calendar

_DAY = pd.Timedelta(1, "D")
_VI_DAYS = 16
_REFLECTANCE_DAYS = 8


def load_modis(spec: SourceSpec, grid: GeoBox, period: Period, *, chunks: int = 512) -> xr.Dataset:
    """Load MOD13 and MYD13 composites: the native pixel nearest to each cell's centre.

    Parameters
    ----------
    spec
        ``stac`` with items of Terra and Aqua; ``assets`` (ndvi; reliability and quality, which are
        read where they are given; without them every pixel that holds a value is used), ``scale``
        (ndvi), ``nodata``. Options: ``accept_reliability``, ranks that are used, default [0, 1]
        (good, marginal); ``reject``, conditions in the bits of VI Quality, default [cloud,
        mixed_clouds, snow, shadow], and ``max_usefulness``, default any (see `PixelRule` for the
        reasons); ``fill_days``, default 32; ``fill``, "interpolate" (default) or "hold", and
        ``bridge``, see `fit_bridge`.
    grid
        Target.
    period
        First and last UTC day. Composites up to ``fill_days`` before and, if interpolated, after
        it are read too, so that gaps at its ends are filled.
    chunks
        Tile edge [pixels of `grid`].

    Returns
    -------
    xr.Dataset
        ``ndvi`` (date, y, x) [1] at every start of the 8-day calendar in `period`: Terra on day of
        year 1, 17, ..., Aqua on 9, 25, ...; attribute ``composite_days: 16``. Also
        ``ndvi_filled`` [1] where the catalog entry provides it: 0 observed, 1 filled.

    Raises
    ------
    CatalogError
        If an option is not understood or needs an asset that is missing.
    NoDataError
        If there is no composite for region and period.
    SourceError
        If the search fails, a composite is not on the calendar, or, when computed, an asset cannot
        be read.
    SchemaError
        When computed, if values are not NDVI, for instance without their scale.

    Notes
    -----
    A composite that does not exist and a pixel that is not used are filled in time, see
    `fill_gaps`. Interpolation looks ahead by up to ``fill_days``; ``fill: hold`` never does.
    """
    check_options(spec, *RULE_OPTIONS, *SERIES_OPTIONS)
    rule, filling = take_rule(spec, "mod13"), take_filling(spec, default=32)
    wide = filling.widen(period)
    slots = composite_calendar(wide)
    items = search_items(spec, grid, wide)
    groups = _find_slots(items, slots)
    parts = [
        _nearest_pixels(spec, lattice, used, grid, groups=groups, rule=rule, chunks=chunks)
        .assign_coords(date=lambda cells: slots[cells["date"].values])
        .reindex(date=slots)
        for lattice, members in split_by_lattice(spec, items, list(_layers(spec).values()))
        if (used := [item for item in members if item.id in groups])
    ]
    if not parts:
        msg = f"{spec.origin}: {spec.name} has no composite that starts in {wide}; choose another"
        raise NoDataError(msg)
    observed = reduce(lambda merged, other: merged.fillna(other), parts)
    dates = slots[sorted(set(groups.values()))]
    return finish_series(
        spec, observed, period, dates=dates, filling=filling, composite_days=_VI_DAYS, chunks=chunks
    )


def load_viirs(spec: SourceSpec, grid: GeoBox, period: Period, *, chunks: int = 512) -> xr.Dataset:
    """Load VNP13A1, VJ113A1 and VJ213A1 composites: the native 500 m pixel nearest to each centre.

    Parameters
    ----------
    spec
        ``paths`` of HDF-EOS5 granules (files or URLs) under their original names, or ``stac``,
        whose items link to them; files are fetched when they are read. ``assets`` are names in the
        file (ndvi; reliability and quality, which are read where they are given), ``scale``
        (ndvi). Options as for `load_modis`; ``accept_reliability`` defaults to [0, 1, 2, 3]
        (excellent to marginal): ranks of VIIRS are not those of MODIS.
    grid
        Target.
    period
        First and last UTC day, widened as by `load_modis`.
    chunks
        Tile edge [pixels of `grid`].

    Returns
    -------
    xr.Dataset
        As from `load_modis`. Composites of 16 days start every 8 days. Where several satellites
        have one of the same day, S-NPP counts first and the others fill its gaps.

    Raises
    ------
    CatalogError, NoDataError, SourceError, SchemaError
        As for `load_modis`.

    Notes
    -----
    VIIRS NDVI is higher than that of MODIS by about 0.01 to 0.02 (Miura et al. 2018,
    doi:10.1117/1.JRS.12.045004): a model that learned from MODIS needs the option ``bridge``.
    """
    check_options(spec, *RULE_OPTIONS, *SERIES_OPTIONS)
    rule, filling = take_rule(spec, "vnp13"), take_filling(spec, default=32)
    slots = composite_calendar(filling.widen(period))
    granules = find_granules(spec, grid, filling.widen(period))
    for granule in granules:
        _check_slot(granule.start, granule.name)
    native = open_composites(spec, granules, grid, rule=rule, chunks=chunks)
    observed = nearest(native, grid, chunks=chunks).reindex(date=slots)
    dates = native.indexes["date"]
    return finish_series(
        spec, observed, period, dates=dates, filling=filling, composite_days=_VI_DAYS, chunks=chunks
    )


def load_reflectance(
    spec: SourceSpec, grid: GeoBox, period: Period, *, chunks: int = 512
) -> xr.Dataset:
    """Load NDVI from stacks of red and near-infrared reflectance with a mask of clouds.

    Parameters
    ----------
    spec
        ``paths`` of NetCDF stacks; ``assets`` (red, nir, mask, time). Options: ``mask``, how the
        mask is coded: "sentinel2-scl", "landsat-pixel-qa" (Collection 1) or "landsat-qa-pixel"
        (Collection 2); ``fill_days``, default 48; ``fill`` and ``bridge`` as for `load_modis`.
    grid
        Target.
    period
        First and last UTC day, widened as by `load_modis`.
    chunks
        Tile edge [pixels of `grid`].

    Returns
    -------
    xr.Dataset
        ``ndvi`` (date, y, x) [1] at every start of the 8-day calendar in `period`, attribute
        ``composite_days: 8``, and ``ndvi_filled`` [1] where the catalog entry provides it: 1 where
        the value was filled in time, else the share of the cell that its clearest acquisition did
        not see.

    Raises
    ------
    CatalogError
        If an asset or the option ``mask`` is missing.
    NoDataError
        If the files hold nothing for region and period.
    SourceError
        If a file cannot be read, an acquisition has no mask of the same minute, or, when computed,
        the mask is coded otherwise.

    Notes
    -----
    NDVI = (nir - red) / (nir + red) of each clear fine pixel (Tucker 1979,
    doi:10.1016/0034-4257(79)90013-0), averaged over the area of each cell that is at least a
    quarter clear. A composite is the median of the acquisitions of the 8 days that begin with its
    date; gaps are filled as by `load_modis`.
    """
    check_options(spec, "mask", *SERIES_OPTIONS)
    coding = take_choice(spec, "mask", tuple(MASKS), default=None)
    filling = take_filling(spec, default=48)
    wide = filling.widen(period)
    view = open_clear_view(spec, grid, wide, coding=coding, chunks=chunks)
    return _finish_view(spec, view, period, filling=filling, chunks=chunks)


def load_sentinel2(
    spec: SourceSpec, grid: GeoBox, period: Period, *, chunks: int = 512
) -> xr.Dataset:
    """Load NDVI from Sentinel-2 Level-2A items: a record that continues without MODIS.

    Parameters
    ----------
    spec
        ``stac`` with items that state ``s2:processing_baseline``; ``assets`` (red and nir of one
        pixel size, mask: the scene classification). Options: ``fill_days``, default 48; ``fill``
        and ``bridge`` as for `load_modis`.
    grid
        Target.
    period
        First and last UTC day, widened as by `load_modis`.
    chunks
        Tile edge [pixels of `grid`].

    Returns
    -------
    xr.Dataset
        As from `load_reflectance`.

    Raises
    ------
    CatalogError
        If an asset is missing, or the entry states an offset.
    NoDataError
        If there is no item for region and period.
    SourceError
        If the search fails, an item does not state its processing baseline, or, when computed, an
        asset cannot be read.

    Notes
    -----
    As `load_reflectance`; the offset of the counts follows from each item's processing baseline.
    """
    check_options(spec, *SERIES_OPTIONS)
    filling = take_filling(spec, default=48)
    view = open_clear_items(spec, grid, filling.widen(period), chunks=chunks)
    return _finish_view(spec, view, period, filling=filling, chunks=chunks)


def _find_slots(items: list[pystac.Item], slots: pd.DatetimeIndex) -> dict[str, int]:
    """Return the position in `slots` of the items that start there; others start too early."""
    starts = pd.DatetimeIndex([item_span(item)[0].normalize() for item in items])
    for item, start in zip(items, starts, strict=True):
        _check_slot(start, item.id)
    positions = slots.get_indexer(starts)
    return {item.id: int(at) for item, at in zip(items, positions, strict=True) if at >= 0}


def _check_slot(start: pd.Timestamp, name: str) -> None:
    if start not in composite_calendar(Period(start, start)):
        msg = f"{name} starts on {start:%F}, which is no day of the 8-day calendar"
        raise SourceError(msg)


def _layers(spec: SourceSpec) -> dict[str, str]:
    names = ["ndvi", *(name for name in ("reliability", "quality") if name in spec.assets)]
    return {name: take_asset(spec, name) for name in names}


def _nearest_pixels(
    spec: SourceSpec,
    lattice: GeoBox,
    items: list[pystac.Item],
    grid: GeoBox,
    *,
    groups: dict[str, int],
    rule: PixelRule,
    chunks: int,
) -> xr.DataArray:
    """Return the usable NDVI of the pixel under each cell; ``date`` counts slots."""
    window = lattice_window(lattice, grid)
    loaded = load_items(spec, items, window, assets=_layers(spec), groups=groups, chunks=chunks)
    ndvi = loaded["ndvi"] * spec.scale.get("ndvi", 1.0) + spec.offset.get("ndvi", 0.0)
    usable = rule.select(loaded.assign(ndvi=ndvi)).astype("float32").rename(group="date")
    native = checked(usable, "ndvi", where=f"{spec.name} ({spec.origin})")
    return nearest(native, grid, chunks=chunks)


def _finish_view(
    spec: SourceSpec, view: ClearView, period: Period, *, filling: Filling, chunks: int
) -> xr.Dataset:
    slots = composite_calendar(filling.widen(period))
    days, seen = _REFLECTANCE_DAYS, None
    times = view.ndvi.indexes["time"]
    acquired = times.searchsorted(slots + days * _DAY) > times.searchsorted(slots)
    if "ndvi_filled" in spec.provides:
        seen = composite(view.seen, slots, days=days, statistic="max")
    return finish_series(
        spec,
        composite(view.ndvi, slots, days=days),
        period,
        dates=slots[acquired],
        filling=filling,
        composite_days=days,
        chunks=chunks,
        seen=seen,
    )
