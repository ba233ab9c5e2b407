"""OPERA RTC-S1 static layers: incidence angle and the product's own factor from gamma0 to sigma0.

One item holds one burst, on a grid that never changes; the layers were made once for each burst.
The backscatter itself is read by `smgrid.sources.sentinel1.load_stac`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pystac
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec, check_options
from smgrid.errors import CatalogError, SchemaError
from smgrid.schema import convert_units, describe
from smgrid.sources.backscatter import take_average
from smgrid.sources.burst import parse_burst
from smgrid.sources.options import take_asset, take_units
from smgrid.sources.per_orbit import load_per_orbit
from smgrid.sources.stac import search_items, split_by_lattice
from smgrid.windows import Period

ANGLE = "angle"
FACTOR = "gamma0_to_sigma0"
_MASK = "mask"


def load_static(spec: SourceSpec, grid: GeoBox, period: Period, *, chunks: int = 512) -> xr.Dataset:
    """Load static layers of OPERA RTC-S1 onto `grid`, one raster per relative orbit.

    Parameters
    ----------
    spec
        ``stac``; ``provides`` angle, gamma0_to_sigma0 or both, with their ``assets``; ``units``
        ("degree" and "1" unless stated). Options: ``average`` "db" (default) or "linear", the
        domain in which the factor is averaged: that of the backscatter it is meant for. An asset
        ``mask`` leaves out the factor of pixels in layover or shadow, where it is not 0.
    grid
        Target.
    period
        Not used: the layers do not change.
    chunks
        Tile edge [pixels of `grid`].

    Returns
    -------
    xarray.Dataset
        angle [degree] and gamma0_to_sigma0 [1] (relative_orbit, y, x), lazy, with ``orbit_state``.

    Raises
    ------
    CatalogError
        If the source provides something else.
    NoDataError
        If no burst meets the grid.
    SchemaError
        When computed, if a factor is negative, as decibels are.

    Notes
    -----
    ``rtc_anf_gamma0_to_sigma0`` is what gamma0 is multiplied by to get sigma0 (OPERA RTC-S1 Static
    Layers product specification). Both areas are those of the terrain: this is not the sigma0 of a
    ground range product, which refers to the ellipsoid, except where the ground is level.
    """
    check_options(spec, "average")
    _check_variables(spec)
    assets = {name: take_asset(spec, name) for name in spec.provides}
    if _MASK in spec.assets and FACTOR in assets:
        assets[_MASK] = spec.assets[_MASK]
    items = _latest_layers(search_items(spec, grid, None))
    share_lattices(spec, items, tuple(assets.values()))
    average = take_average(spec)
    where = f"{spec.name} ({spec.origin})"

    def prepare(pixels: xr.Dataset) -> xr.Dataset:
        if FACTOR not in pixels:
            return pixels
        factor = pixels[FACTOR]
        if _MASK in pixels:
            factor = factor.where(pixels[_MASK] == 0)
        domain = _lazily(_to_domain, factor, average=average, where=where)
        return pixels.assign({FACTOR: domain}).drop_vars(_MASK, errors="ignore")

    ds = load_per_orbit(spec, grid, items, assets=assets, prepare=prepare, chunks=chunks)
    if ANGLE in ds:
        units = take_units(spec, ANGLE, default="degree")
        ds[ANGLE] = describe(convert_units(ds[ANGLE], units, ANGLE), ANGLE)
    if FACTOR in ds:
        factor = _lazily(_from_domain, ds[FACTOR], average=average)
        ds[FACTOR] = describe(factor, FACTOR).assign_attrs(averaging=average)
    return ds


def share_lattices(spec: SourceSpec, items: Sequence[pystac.Item], assets: Sequence[str]) -> None:
    """State on every item of a burst the grid of the first one, where items state none.

    The items of CMR-STAC have no projection, so each file would have to be opened to find its grid,
    but the grid of a burst is fixed (OPERA RTC-S1 product specification: a map grid defined
    beforehand for each burst). A file that lies elsewhere is refused when it is read.
    """
    firsts: dict[tuple[str, str], pystac.Item] = {}
    followers = []
    for item in items:
        burst = parse_burst(item.id)
        keys = [key for key in assets if key in item.assets]
        if burst is None or not keys or _states_projection(item, keys):
            continue
        first = firsts.setdefault((burst.name, burst.version), item)
        if first is not item:
            followers.append((first, item))
    split_by_lattice(spec, firsts.values(), assets)  # reads and states the grids
    for first, item in followers:
        shared = next((first.assets[key] for key in assets if key in first.assets), None)
        fields = _projection(shared.extra_fields) if shared else {}
        for key in assets:
            if key in item.assets:
                item.assets[key].extra_fields |= fields
        known = set(item.stac_extensions)
        item.stac_extensions += [url for url in first.stac_extensions if url not in known]


def _projection(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name.startswith("proj:")}


def _states_projection(item: pystac.Item, keys: Sequence[str]) -> bool:
    stated = [item.properties, *(item.assets[key].extra_fields for key in keys)]
    return any(_projection(fields) for fields in stated)


def _check_variables(spec: SourceSpec) -> None:
    for name in spec.provides:
        if name not in (ANGLE, FACTOR):
            msg = f"{spec.origin}: {spec.name} cannot provide {name!r}, only {ANGLE} and {FACTOR}"
            raise CatalogError(msg)
    if take_units(spec, FACTOR, default="1") != "1":
        msg = f'{spec.origin}: units.{FACTOR} of {spec.name} must be "1", a ratio of powers'
        raise CatalogError(msg)


def _latest_layers(items: Sequence[pystac.Item]) -> list[pystac.Item]:
    """Return one item of each burst: the layers that were made for the latest period."""
    latest: dict[str, pystac.Item] = {}
    for item in items:  # by time
        burst = parse_burst(item.id)
        latest[burst.name if burst else item.id] = item
    return list(latest.values())


def _lazily(function: Any, da: xr.DataArray, **kwargs: Any) -> xr.DataArray:
    result: xr.DataArray = xr.apply_ufunc(
        function, da, kwargs=kwargs, dask="parallelized", output_dtypes=["float32"]
    )
    return result


def _to_domain(
    values: npt.NDArray[np.float32], *, average: str, where: str
) -> npt.NDArray[np.float32]:
    """Return factors in the domain in which they are averaged; 0 is missing, as for power."""
    if (values < 0).any():
        msg = (
            f"{FACTOR} of {where}: found {values[values < 0][0]:g}, but a ratio of powers cannot "
            "be negative; write nodata if it means missing"
        )
        raise SchemaError(msg)
    valid = np.where(values > 0, values, np.float32(np.nan))
    return valid if average == "linear" else np.log10(valid)


def _from_domain(values: npt.NDArray[np.float32], *, average: str) -> npt.NDArray[np.float32]:
    return values if average == "linear" else np.power(np.float32(10), values)
