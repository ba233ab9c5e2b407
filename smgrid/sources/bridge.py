"""Bridges between two records of NDVI: one sensor's values on the scale of another's.

A record that ends, such as that of MODIS, is continued by another sensor whose bands, view angles
and compositing differ a little. The bridge is fitted where both exist and carries its error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import dask
import numpy as np
import xarray as xr

from smgrid.catalog import SourceSpec
from smgrid.errors import CatalogError, NoDataError, SourceError
from smgrid.yamltext import suggest

# A bridge of fewer pairs has no error worth stating.
_FEWEST = 30
_COLUMNS = ("slope", "intercept", "rmse")
# NDVI that MOD13 can hold (MODIS Vegetation Index User's Guide, Collection 6.1, table 2).
_VALID = (-0.2, 1.0)


@dataclass(frozen=True)
class Bridge:
    """``reference = intercept + slope * replacement``, with the error of that."""

    slope: float
    """Units of the reference per unit of the replacement [1]."""
    intercept: float
    """Reference where the replacement is 0 [1]."""
    rmse: float
    """Root mean square difference of reference and bridged replacement [1]."""
    correlation: float
    """Of the pairs [1]."""
    n: int
    """Pairs that it was fitted to."""
    period: str
    """First and last date of the pairs."""

    @property
    def options(self) -> Mapping[str, float]:
        """What stands under ``options: bridge:`` of the replacement's catalog entry."""
        return MappingProxyType({name: getattr(self, name) for name in _COLUMNS})


def fit_bridge(reference: xr.DataArray, replacement: xr.DataArray) -> Bridge:
    """Fit a bridge to two records of NDVI on one grid.

    Parameters
    ----------
    reference
        NDVI (date, y, x) that is to be continued. Give observed values only, for instance
        ``ds["ndvi"].where(ds["ndvi_filled"] == 0)``: filled ones say nothing of the sensor.
    replacement
        NDVI of the other sensor on the same cells; dates that only one of them has do not count.

    Returns
    -------
    Bridge
        Fitted to all pairs of values that both have.

    Raises
    ------
    SourceError
        If they are on different grids, or not positively correlated.
    NoDataError
        If there are fewer than 30 pairs.

    Notes
    -----
    Geometric mean regression (also reduced major axis): ``slope = sd(reference) /
    sd(replacement)`` through both means (Ricker 1973, doi:10.1139/f73-072; used for NDVI of two
    sensors by Ji and Gallo 2006, doi:10.14358/PERS.72.7.823). Both records have noise of similar
    size; ordinary least squares would take the replacement as exact and flatten its seasons, while
    this keeps mean and variance of the reference. The sums are computed in one pass over lazy
    arrays, so that memory does not grow with area or years. It is not robust: mask clouds first.
    """
    try:
        reference, replacement = xr.align(reference, replacement, join="exact", exclude=["date"])
    except ValueError as cause:
        msg = "reference and replacement lie on different grids; load both on one grid"
        raise SourceError(msg) from cause
    reference, replacement = xr.align(reference, replacement, join="inner")
    y, x = reference.astype("float64"), replacement.astype("float64")
    both = y.notnull() & x.notnull()
    y, x = y.where(both), x.where(both)
    # About 0.5 in place of 0 the sums of squares lose no digits.
    y, x = y - 0.5, x - 0.5
    lazy = (both.sum(), x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum())
    dates = both.any([dim for dim in both.dims if dim != "date"])
    (*sums, dates) = dask.compute(*lazy, dates)
    n, sx, sy, sxx, syy, sxy = (float(value) for value in sums)
    if n < _FEWEST:
        msg = (
            f"a bridge needs {_FEWEST} pairs of values or more, found {int(n)}; "
            "give records that overlap in time and area"
        )
        raise NoDataError(msg)
    return _solve(n, sx, sy, sxx, syy, sxy, period=_span(dates))


def apply_bridge(ndvi: xr.DataArray, bridge: Mapping[str, float]) -> xr.DataArray:
    """Return NDVI on the scale of the reference.

    Parameters
    ----------
    ndvi
        NDVI of the replacement [1].
    bridge
        ``slope``, ``intercept`` and ``rmse``, see `Bridge.options`.

    Returns
    -------
    xr.DataArray
        float32, limited to -0.2..1, what the reference can hold. Attributes ``bridge_slope``,
        ``bridge_intercept`` and ``bridge_rmse``, ``approximate: 1`` and ``approximate_note``.
    """
    low, high = _VALID
    bridged = (ndvi * bridge["slope"] + bridge["intercept"]).clip(low, high).astype("float32")
    note = (
        f"continued by another sensor: {bridge['intercept']:.4f} + {bridge['slope']:.4f} NDVI, "
        f"root mean square error {bridge['rmse']:.4f}"
    )
    stated = {f"bridge_{name}": float(bridge[name]) for name in _COLUMNS}
    return bridged.assign_attrs(ndvi.attrs | stated, approximate=1, approximate_note=note)


def take_bridge(spec: SourceSpec) -> Mapping[str, float] | None:
    """Return the option ``bridge`` of a source: slope, intercept and rmse; ``None`` if it has none.

    Raises
    ------
    CatalogError
        If one of them is missing, is no number or cannot be.
    """
    stated: Any = spec.options.get("bridge")
    if stated is None:
        return None
    where = f"{spec.origin}: options.bridge of {spec.name}"
    if not isinstance(stated, Mapping):
        raise CatalogError(f"{where} is {stated!r}; give slope, intercept and rmse")
    for name in stated:
        if name not in _COLUMNS:
            raise CatalogError(f"{where} has {name!r}; {suggest(str(name), _COLUMNS)}")
    for name in _COLUMNS:
        value = stated.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise CatalogError(f"{where}: {name} is {value!r}; give a number, see fit_bridge")
    if stated["slope"] <= 0 or stated["rmse"] < 0:
        raise CatalogError(f"{where}: slope must be positive and rmse not negative")
    return MappingProxyType({name: float(stated[name]) for name in _COLUMNS})


def _solve(
    n: float, sx: float, sy: float, sxx: float, syy: float, sxy: float, *, period: str
) -> Bridge:
    mean_x, mean_y = sx / n, sy / n
    var_x, var_y = sxx / n - mean_x**2, syy / n - mean_y**2
    covariance = sxy / n - mean_x * mean_y
    if not covariance > 0:
        msg = (
            f"reference and replacement are not positively correlated in {int(n)} pairs; they do "
            "not see the same ground, check grids, dates and scales"
        )
        raise SourceError(msg)
    slope = float(np.sqrt(var_y / var_x))
    correlation = covariance / float(np.sqrt(var_x * var_y))
    return Bridge(
        slope=slope,
        intercept=(mean_y + 0.5) - slope * (mean_x + 0.5),
        rmse=float(np.sqrt(max(var_y - 2 * slope * covariance + slope**2 * var_x, 0.0))),
        correlation=correlation,
        n=int(n),
        period=period,
    )


def _span(dates: xr.DataArray) -> str:
    used = dates.indexes["date"][dates.values]
    return f"{used[0]:%Y-%m-%d}/{used[-1]:%Y-%m-%d}"
