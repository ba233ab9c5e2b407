"""Backscatter conventions: the one conversion that is defined, and what it leaves behind."""

from typing import Literal, TypeAlias

import numpy as np
import xarray as xr

from smgrid.errors import SourceError

Convention: TypeAlias = Literal["sigma0", "gamma0"]

_NOTE = "by the incidence angle on the ellipsoid, not on the terrain"


def convert_convention(base: xr.Dataset, convention: Convention) -> xr.Dataset:
    """Express backscatter per another reference area, by the ellipsoid incidence angle.

    Parameters
    ----------
    base
        Scene variables with ``vv`` and ``vh`` in dB, and ``angle`` in degrees if a conversion is
        needed.
    convention
        Wanted convention; what is in it already stays as it is.

    Returns
    -------
    xr.Dataset
        Converted variables carry ``approximate: 1`` and a note, which prediction turns into a
        flag.

    Raises
    ------
    SourceError
        There is no incidence angle to convert with.

    Notes
    -----
    sigma0 = gamma0 cos(angle), exact on the ellipsoid (Small 2011, doi:10.1109/TGRS.2011.2120616).
    Terrain-flattened gamma0 was normalised by the local illuminated area, so on slopes the result
    differs from the sigma0 of a ground-range product.
    """
    names = [n for n in ("vv", "vh") if n in base and base[n].attrs["convention"] != convention]
    if not names:
        return base
    if "angle" not in base:
        given = base[names[0]].attrs["convention"]
        raise SourceError(
            f"{' and '.join(names)} are {given} and {convention} is wanted, but no source gives "
            "the incidence angle that the conversion needs: add one to the catalog (a raster per "
            "orbit, or a `site` value)"
        )
    # In decibels the cosine is a term that commutes with averaging over a pixel.
    cosine = 10 * np.log10(np.cos(np.deg2rad(base["angle"])))
    sign = 1 if convention == "sigma0" else -1
    converted = {}
    for name in names:
        attrs = base[name].attrs | {
            "convention": convention,
            "approximate": 1,
            "approximate_note": f"from {base[name].attrs['convention']} {_NOTE}",
        }
        converted[name] = (base[name] + sign * cosine).astype(np.float32).assign_attrs(attrs)
    return base.assign(converted)
