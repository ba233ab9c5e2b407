"""Potential evaporation from temperature and day length."""

import numpy as np
from numpy.typing import NDArray

from smgrid.simulate.fields import Array

_CALIBRATION = 1.2  # Hamon's formula underestimates; Lu et al. (2005) use 1.2


def day_length(day_of_year: float, latitude: float) -> float:
    """Hours of daylight (Allen et al. 1998, FAO Irrigation and Drainage Paper 56, eq. 24, 25, 34).

    Parameters
    ----------
    day_of_year
        1 to 366.
    latitude
        [degree]
    """
    declination = 0.409 * np.sin(2 * np.pi * day_of_year / 365.0 - 1.39)
    cosine = -np.tan(np.radians(latitude)) * np.tan(declination)
    return float(24.0 / np.pi * np.arccos(np.clip(cosine, -1.0, 1.0)))


def potential_evaporation(temperature: NDArray[np.floating], daylight: float) -> Array:
    """Potential evapotranspiration of a day [mm].

    Hamon (1961, J. Hydraulics Div. ASCE 87, 107-120) in the form of Lu et al. (2005,
    doi:10.1111/j.1752-1688.2005.tb03759.x): 0.1651 times day length [12 h] times the density of
    saturated vapour [g m-3].

    Parameters
    ----------
    temperature
        Daily mean [degC].
    daylight
        [h]
    """
    pressure = 6.108 * np.exp(17.26939 * temperature / (temperature + 237.3))  # hPa
    density = 216.7 * pressure / (temperature + 273.3)
    return np.asarray(_CALIBRATION * 0.1651 * daylight / 12.0 * density, dtype=np.float32)
