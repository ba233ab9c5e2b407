"""Sources: one provider format per module, each giving a lazy Dataset in physical units on a grid.

A loader is any function ``load(spec, grid, period, *, chunks) -> xr.Dataset`` that a catalog names
by its dotted path; `load_source` calls it and holds it to the rules, a user's like smgrid's own.
"""

import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec, require_credentials, resolve_loader
from smgrid.errors import NoDataError, SchemaError, SourceError
from smgrid.grid import grid_coords
from smgrid.schema import get_variable, validate
from smgrid.windows import Period

OBSERVED = "observed"
"""Coordinate (date), bool, by which a loader of a series may tell, before anything is read, which
dates its provider has: the others come from the sources that stand in for it."""

_SCENE_COORDS = ("platform", "orbit_state", "relative_orbit")
# What is known of a variable besides what the schema says; all else describes the provider's file.
_OWN_ATTRS = frozenset(
    {"convention", "averaging", "approximate", "approximate_note", "assumed", "assumed_note"}
    | {"composite_days", "comment", "history", "references"}
    | {"bridge_slope", "bridge_intercept", "bridge_rmse"}
    | {"flag_values", "flag_masks", "flag_meanings"}
)
# Part of a pixel by which the coordinates of a result may differ from those of the grid.
_ALIGNED = 1e-3


def load_source(spec: SourceSpec, grid: GeoBox, period: Period, *, chunks: int = 512) -> xr.Dataset:
    """Load what a source provides, and refuse a result that a cube could not be made of.

    Parameters
    ----------
    spec
        The source.
    grid
        Target; labels come on their own grid.
    period
        First and last UTC day.
    chunks
        Tile edge [pixels of `grid`].

    Returns
    -------
    xarray.Dataset
        The variables in ``spec.provides``, lazy, in canonical units. A series may have the
        coordinate `OBSERVED`.

    Raises
    ------
    ConfigError
        If a credential that the source needs is not set.
    NoDataError
        If the source's record ends before the period or begins after it, or holds nothing.
    SourceError
        If the loader returns something else than it promises.
    """
    require_credentials([spec])
    _check_record(spec, period)
    try:
        ds = resolve_loader(spec)(spec, grid, period, chunks=chunks)
    except SchemaError as cause:
        raise SchemaError(f"{spec.origin}: {cause}") from cause
    if not isinstance(ds, xr.Dataset):
        raise _broken(spec, f"returned {type(ds).__name__}, expected an xarray.Dataset")
    missing = [name for name in spec.provides if name not in ds.data_vars]
    if missing:
        raise _broken(spec, f"lacks {missing[0]!r} (it has {', '.join(map(str, ds.data_vars))})")
    ds = _tidy_attrs(ds[list(spec.provides)])
    try:
        validate(ds)
    except SchemaError as cause:
        raise SchemaError(f"{spec.origin}: {spec.loader}: {cause}") from cause
    for name in spec.provides:
        _check_variable(spec, ds[name], grid)
    _check_axis(spec, ds, "time")
    _check_axis(spec, ds, "date")
    _check_observed(spec, ds)
    return ds


def _tidy_attrs(ds: xr.Dataset) -> xr.Dataset:
    """Drop the attributes that a file was published with: they do not hold on another grid."""
    tidy = ds.copy(deep=False)
    tidy.attrs = {}
    for name, da in tidy.data_vars.items():
        kept = _OWN_ATTRS | get_variable(str(name)).attrs.keys()
        da.attrs = {key: value for key, value in da.attrs.items() if key in kept}
    return tidy


def _broken(spec: SourceSpec, problem: str) -> SourceError:
    return SourceError(f"{spec.origin}: what {spec.loader} loaded {problem}; correct the loader")


def _check_record(spec: SourceSpec, period: Period) -> None:
    first, last = spec.first_day, spec.last_day
    if (first and period.end.date() < first) or (last and period.start.date() > last):
        msg = (
            f"{spec.name} has data from {first or 'its start'} to {last or 'today'}, not for "
            f"{period}; choose another period or another source of {', '.join(spec.provides)} "
            f"than {spec.origin}"
        )
        raise NoDataError(msg)


def _check_variable(spec: SourceSpec, da: xr.DataArray, grid: GeoBox) -> None:
    if not {"y", "x"} <= set(da.dims):
        return
    if da.chunks is None:
        raise _broken(spec, f"holds {da.name} in memory, expected a lazy dask array")
    if da.odc.crs is None:
        raise _broken(spec, f"has no CRS for {da.name}; set it with .odc.assign_crs")
    if get_variable(str(da.name)).kind == "label":
        return
    expected = grid_coords(grid)
    for dim, step in (("y", grid.resolution.y), ("x", grid.resolution.x)):
        same = da.sizes[dim] == expected[dim].size and np.allclose(
            da[dim].values, expected[dim].values, rtol=0, atol=abs(step) * _ALIGNED
        )
        if not same or da.odc.crs != grid.crs:
            raise _broken(spec, f"has {da.name} on another grid than the target ({dim} differs)")


def _check_axis(spec: SourceSpec, ds: xr.Dataset, dim: str) -> None:
    if dim not in ds.dims:
        return
    index = ds.get_index(dim)
    if not (np.issubdtype(ds[dim].dtype, np.datetime64) and index.is_monotonic_increasing):
        raise _broken(spec, f"has a {dim} axis that is not of increasing dates")
    if not index.is_unique:
        raise _broken(spec, f"has {index[index.duplicated()][0]} twice along {dim}")
    scenes = [name for name, da in ds.items() if get_variable(str(name)).kind == "scene"]
    for coord in _SCENE_COORDS if scenes and dim == "time" else ():
        if coord not in ds.coords or ds[coord].dims != (dim,):
            raise _broken(spec, f"has no coordinate {coord} along time")


def _check_observed(spec: SourceSpec, ds: xr.Dataset) -> None:
    if OBSERVED not in ds.coords:
        return
    coord = ds[OBSERVED]
    if coord.dims != ("date",) or coord.dtype != bool:
        raise _broken(spec, f"has a coordinate {OBSERVED} that is not of booleans along date")
