"""Backscatter conventions: the conversions that are defined, and what they leave behind."""

from typing import Literal, TypeAlias

import numpy as np
import xarray as xr

from smgrid.errors import SourceError

Convention: TypeAlias = Literal["sigma0", "gamma0"]

FACTOR = "gamma0_to_sigma0"
_BY_FACTOR = "by the product's own factor (gamma0_to_sigma0)"
_BY_ANGLE = "by the incidence angle on the ellipsoid, not on the terrain"


def convert_convention(base: xr.Dataset, convention: Convention) -> xr.Dataset:
    """Express backscatter per another reference area.

    Parameters
    ----------
    base
        Scene variables with ``vv`` and ``vh`` in dB, and, if a conversion is needed, the product's
        own factor ``gamma0_to_sigma0`` or else ``angle`` in degrees.
    convention
        Wanted convention; what is in it already stays as it is.

    Returns
    -------
    xr.Dataset
        Converted variables carry ``comment``, what they were converted by. Those converted by the
        ellipsoid angle carry ``approximate: 1`` and a note as well, which prediction turns into a
        flag. Where the factor is missing so is the result: the angle never stands in for it.

    Raises
    ------
    SourceError
        There is neither a factor nor an incidence angle, or the factor was averaged in another
        domain than the backscatter.

    Notes
    -----
    sigma0 = gamma0 * factor, the ratio of the areas of the terrain that the two refer to (OPERA
    RTC-S1 Static Layers product specification). Averaged in decibels the two commute; averaged as
    power this holds as far as the factor does not vary with gamma0 within a cell.

    sigma0 = gamma0 cos(angle), exact on the ellipsoid (Small 2011, doi:10.1109/TGRS.2011.2120616).
    Terrain-flattened gamma0 was normalised by the local illuminated area, so on slopes the result
    differs from the sigma0 of a ground-range product.
    """
    names = [n for n in ("vv", "vh") if n in base and base[n].attrs["convention"] != convention]
    if not names:
        return base
    sign = 1 if convention == "sigma0" else -1
    decibels = _ratio(base, names, convention)
    converted = {}
    for name in names:
        given = base[name].attrs["convention"]
        attrs = base[name].attrs | {"convention": convention}
        if FACTOR in base:
            attrs["comment"] = f"from {given} {_BY_FACTOR}"
        else:
            note = f"from {given} {_BY_ANGLE}"
            attrs |= {"approximate": 1, "approximate_note": note, "comment": note}
        converted[name] = (base[name] + sign * decibels).astype(np.float32).assign_attrs(attrs)
    return base.assign(converted)


def _ratio(base: xr.Dataset, names: list[str], convention: Convention) -> xr.DataArray:
    """Return sigma0 over gamma0 [dB]."""
    if FACTOR in base:
        _check_domain(base, names)
        factor = base[FACTOR]
        return _decibels(factor.where(factor > 0))
    if "angle" not in base:
        given = base[names[0]].attrs["convention"]
        raise SourceError(
            f"{' and '.join(names)} are {given} and {convention} is wanted, but no source gives "
            "the incidence angle that the conversion needs, nor the product's own factor "
            "(gamma0_to_sigma0): add one to the catalog (a raster per orbit; for the angle also a "
            "`site` value)"
        )
    # In decibels the cosine is a term that commutes with averaging over a pixel.
    angle = base["angle"]
    return _decibels(angle.copy(data=np.cos(np.deg2rad(angle.data))))


def _decibels(ratio: xr.DataArray) -> xr.DataArray:
    return ratio.copy(data=10 * np.log10(ratio.data))


def _check_domain(base: xr.Dataset, names: list[str]) -> None:
    own = base[FACTOR].attrs.get("averaging")
    for name in names:
        wanted = base[name].attrs.get("averaging")
        if own != wanted:
            raise SourceError(
                f"{name} was averaged in the domain {wanted!r} and {FACTOR} in {own!r}; make "
                "options.average of the two sources the same"
            )
