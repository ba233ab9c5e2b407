"""Radar: backscatter of soil under vegetation, incidence angle across a swath, and speckle.

All backscatter is linear power, not decibels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smgrid.simulate.fields import Array

FREQUENCY = 5.405  # GHz, Sentinel-1
_LIGHT = 29.9792458  # cm GHz
WAVENUMBER = 2 * np.pi * FREQUENCY / _LIGHT  # rad cm-1
_EARTH_RADIUS, _ALTITUDE = 6371.0, 693.0  # km, the second one that of Sentinel-1 (ESA)


@dataclass(frozen=True)
class Cloud:
    """Vegetation as a cloud of water droplets (Attema & Ulaby 1978), described by its NDVI."""

    scattering: float
    """A [1]."""
    attenuation: float
    """B [1]."""


# Fitted to Sentinel-1 over crops and grassland by El Hajj et al. (2017, doi:10.3390/rs9121292).
VV_CLOUD = Cloud(scattering=0.0950, attenuation=0.5513)
VH_CLOUD = Cloud(scattering=0.0413, attenuation=1.1662)


def soil_backscatter(
    moisture: Array | float, roughness: Array | float, angle: Array | float
) -> tuple[Array, Array]:
    """Backscatter of bare soil, sigma0 (vv, vh) [1].

    Oh (2004, doi:10.1109/TGRS.2003.821065), eq. 1 and 3.

    Parameters
    ----------
    moisture
        Water content [m3 m-3]; the model was made for 0.04 to 0.29.
    roughness
        Wavenumber times rms height [1], 0.13 to 7.
    angle
        Incidence angle [degree], 10 to 70.
    """
    theta = np.radians(angle)
    vh = (
        0.11
        * moisture**0.7
        * np.cos(theta) ** 2.2
        * (1 - np.exp(-0.32 * np.asarray(roughness) ** 1.8))
    )
    ratio = (
        0.095
        * (0.13 + np.sin(1.5 * theta)) ** 1.4
        * (1 - np.exp(-1.3 * np.asarray(roughness) ** 0.9))
    )
    return np.asarray(vh / ratio, dtype=np.float32), np.asarray(vh, dtype=np.float32)


def vegetated_backscatter(soil: Array, ndvi: Array, cosine: Array, cloud: Cloud) -> Array:
    """Backscatter of soil under vegetation, sigma0 [1].

    The water-cloud model of Attema & Ulaby (1978, doi:10.1029/RS013i002p00357).

    Parameters
    ----------
    soil
        Backscatter of the bare soil, sigma0 [1].
    ndvi
        [1]
    cosine
        Of the incidence angle.
    cloud
        Parameters of the polarisation.
    """
    two_way = np.exp(-2.0 * cloud.attenuation * ndvi / cosine)
    canopy = cloud.scattering * ndvi * cosine * (1.0 - two_way)
    return np.asarray(canopy + two_way * soil, dtype=np.float32)


def ground_distance(angle: float) -> float:
    """Distance [km] from the ground track at which the incidence angle is `angle` [degree]."""
    incidence = np.radians(angle)
    look = np.arcsin(_EARTH_RADIUS / (_EARTH_RADIUS + _ALTITUDE) * np.sin(incidence))
    return float((incidence - look) * _EARTH_RADIUS)


def incidence_angle(distance: NDArray[np.float64]) -> Array:
    """Incidence angle on a spherical Earth [degree] at a distance [km] from the ground track."""
    centre = distance / _EARTH_RADIUS
    orbit = _EARTH_RADIUS + _ALTITUDE
    slant = np.sqrt(_EARTH_RADIUS**2 + orbit**2 - 2 * _EARTH_RADIUS * orbit * np.cos(centre))
    return np.degrees(np.arcsin(orbit / slant * np.sin(centre))).astype(np.float32)


def speckle(rng: np.random.Generator, shape: tuple[int, int], *, looks: float) -> Array:
    """Multiplicative speckle of multi-looked power: gamma-distributed, mean 1, variance 1/looks.

    Ulaby, Moore & Fung (1986), Microwave Remote Sensing, vol. 2; independent between pixels.
    """
    return rng.standard_gamma(looks, shape, dtype=np.float32) / np.float32(looks)
