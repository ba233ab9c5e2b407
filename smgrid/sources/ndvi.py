"""NDVI on the 8-day composite calendar: MODIS composites, or reflectances of finer sensors."""

from functools import reduce

import pandas as pd
import pystac
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec, check_options
from smgrid.errors import CatalogError, NoDataError, SourceError
from smgrid.resample import nearest
from smgrid.schema import describe
from smgrid.sources.checks import checked
from smgrid.sources.fill import fill_gaps, mark_filled
from smgrid.sources.options import take_asset, take_choice, take_days, take_integers
from smgrid.sources.reflectance import MASKS, composite, open_clear_ndvi
from smgrid.sources.stac import item_span, load_items, search_items, split_by_lattice
from smgrid.sources.window import lattice_window
from smgrid.windows import Period, composite_calendar

_DAY = pd.Timedelta(1, "D")
_MODIS_DAYS = 16
_REFLECTANCE_DAYS = 8
# Ranks of MOD13 pixel reliability that are used by default: good and marginal; 2 is snow or ice,
# 3 cloud (Didan et al. 2015, MODIS Vegetation Index User's Guide, Collection 6, table 4).
_ACCEPTED = (0, 1)


def load_modis(spec: SourceSpec, grid: GeoBox, period: Period, *, chunks: int = 512) -> xr.Dataset:
    """Load MOD13 and MYD13 composites: the native pixel nearest to each cell's centre.

    Parameters
    ----------
    spec
        ``stac`` with items of Terra and Aqua; ``assets`` (ndvi, reliability; without reliability
        every pixel that holds a value is used), ``scale`` (ndvi), ``nodata``. Options:
        ``accept_reliability``, ranks that are used, default [0, 1] (good, marginal), and
        ``fill_days``, default 32.
    grid
        Target.
    period
        First and last UTC day. Composites up to ``fill_days`` before and after it are read too, so
        that gaps at its ends are interpolated.
    chunks
        Tile edge [pixels of `grid`].

    Returns
    -------
    xr.Dataset
        ``ndvi`` (date, y, x) [1] at every start of the 8-day calendar in `period`: Terra on day of
        year 1, 17, ..., Aqua on 9, 25, ...; attribute ``composite_days: 16``. Also
        ``ndvi_filled`` (1 filled, 0 observed, 255 missing) where the catalog entry provides it.

    Raises
    ------
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
    `fill_gaps`: linearly between neighbours at most ``fill_days`` apart. Filling looks ahead by
    up to ``fill_days``.
    """
    check_options(spec, "accept_reliability", "fill_days")
    limit = take_days(spec, "fill_days", default=32)
    wide = _widen(period, limit)
    slots = composite_calendar(wide)
    items = search_items(spec, grid, wide)
    groups = _find_slots(items, slots)
    names = {name: take_asset(spec, name) for name in _modis_assets(spec)}
    parts = []
    for lattice, members in split_by_lattice(spec, items, list(names.values())):
        used = [item for item in members if item.id in groups]
        if not used:
            continue
        window = lattice_window(lattice, grid)
        loaded = load_items(spec, used, window, assets=names, groups=groups, chunks=chunks)
        native = _usable_ndvi(spec, loaded).rename(group="date")
        cells = nearest(native, grid, chunks=chunks).assign_coords(
            date=slots[native["date"].values]
        )
        parts.append(cells.reindex(date=slots))
    if not parts:
        msg = f"{spec.origin}: {spec.name} has no composite that starts in {wide}; choose another"
        raise NoDataError(msg)
    observed = reduce(lambda merged, other: merged.fillna(other), parts)
    return _finish(spec, observed, period, limit=limit, composite_days=_MODIS_DAYS, chunks=chunks)


def load_reflectance(
    spec: SourceSpec, grid: GeoBox, period: Period, *, chunks: int = 512
) -> xr.Dataset:
    """Load NDVI from stacks of red and near-infrared reflectance with a mask of clouds.

    Parameters
    ----------
    spec
        ``paths`` of NetCDF stacks; ``assets`` (red, nir, mask, time). Options: ``mask``, how the
        mask is coded: "sentinel2-scl", "landsat-pixel-qa" (Collection 1) or "landsat-qa-pixel"
        (Collection 2); ``fill_days``, default 48.
    grid
        Target.
    period
        First and last UTC day; ``fill_days`` before and after it are read too.
    chunks
        Tile edge [pixels of `grid`].

    Returns
    -------
    xr.Dataset
        ``ndvi`` (date, y, x) [1] at every start of the 8-day calendar in `period`, attribute
        ``composite_days: 8``, and ``ndvi_filled`` where the catalog entry provides it, as for
        `load_modis`.

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
    doi:10.1016/0034-4257(79)90013-0), averaged over the area of each cell that is at least half
    clear. A composite is the median of the acquisitions of the 8 days that begin with its date;
    gaps are filled as by `load_modis`.
    """
    check_options(spec, "mask", "fill_days")
    coding = take_choice(spec, "mask", tuple(MASKS), default=None)
    limit = take_days(spec, "fill_days", default=48)
    wide = _widen(period, limit)
    clear = open_clear_ndvi(spec, grid, wide, coding=coding, chunks=chunks)
    slots = composite_calendar(wide)
    observed = composite(clear, slots, days=_REFLECTANCE_DAYS)
    return _finish(
        spec, observed, period, limit=limit, composite_days=_REFLECTANCE_DAYS, chunks=chunks
    )


def _widen(period: Period, days: int) -> Period:
    return Period(period.start - days * _DAY, period.end + days * _DAY)


def _find_slots(items: list[pystac.Item], slots: pd.DatetimeIndex) -> dict[str, int]:
    """Return the position in `slots` of the items that start there; others start too early."""
    starts = pd.DatetimeIndex([item_span(item)[0].normalize() for item in items])
    for item, start in zip(items, starts, strict=True):
        if start not in composite_calendar(Period(start, start)):
            msg = f"{item.id} starts on {start:%F}, which is no day of the 8-day calendar"
            raise SourceError(msg)
    positions = slots.get_indexer(starts)
    return {item.id: int(at) for item, at in zip(items, positions, strict=True) if at >= 0}


def _modis_assets(spec: SourceSpec) -> list[str]:
    names = ["ndvi", "reliability"]
    if "reliability" in spec.assets:
        return names
    if "accept_reliability" in spec.options:
        msg = f"{spec.origin}: accept_reliability of {spec.name} needs assets.reliability; add it"
        raise CatalogError(msg)
    return names[:1]


def _usable_ndvi(spec: SourceSpec, loaded: xr.Dataset) -> xr.DataArray:
    ndvi = loaded["ndvi"] * spec.scale.get("ndvi", 1.0) + spec.offset.get("ndvi", 0.0)
    if "reliability" in loaded:
        accepted = take_integers(spec, "accept_reliability", default=_ACCEPTED)
        ndvi = ndvi.where(loaded["reliability"].isin(accepted))
    return checked(ndvi.astype("float32"), "ndvi", where=f"{spec.name} ({spec.origin})")


def _finish(
    spec: SourceSpec,
    observed: xr.DataArray,
    period: Period,
    *,
    limit: int,
    composite_days: int,
    chunks: int,
) -> xr.Dataset:
    """Fill gaps, keep the slots of `period` and describe them."""
    filled = fill_gaps(observed, limit=limit)
    variables = {"ndvi": filled, "ndvi_filled": mark_filled(observed, filled)}
    wanted = composite_calendar(period)
    ds = xr.Dataset(
        {
            name: describe(variables[name].sel(date=wanted), name).assign_attrs(
                composite_days=composite_days
            )
            for name in spec.provides
        }
    )
    return ds.chunk({"date": -1, "y": chunks, "x": chunks}).assign_coords(date=wanted)
