"""Soil: correlated fields of texture and density, and the water that such a soil can hold."""

from dataclasses import dataclass

import numpy as np

from smgrid.simulate.fields import Array, fractal_field, standardise, stream
from smgrid.simulate.terrain import Terrain

_PARTICLE_DENSITY = 2.65  # g cm-3, as in Saxton & Rawls (2006)


@dataclass(frozen=True)
class Soil:
    """The fine earth of 0-5 cm, on the domain's grid."""

    sand: Array
    """Share of mass [1]."""
    clay: Array
    """Share of mass [1]."""
    bulk_density: Array
    """[g cm-3]."""
    porosity: Array
    """Water content at saturation [m3 m-3]."""
    field_capacity: Array
    """Water content at -33 kPa [m3 m-3]."""
    wilting_point: Array
    """Water content at -1500 kPa [m3 m-3]."""
    conductivity: Array
    """Saturated hydraulic conductivity [mm h-1]."""
    exponent: Array
    """Of the relative conductivity, ``(water content / porosity) ** exponent`` [1]."""


def make_soil(terrain: Terrain, seed: int) -> Soil:
    """Draw the soil of a world: finer in wet hollows, coarser on ridges, patchy everywhere."""
    rng = stream(seed, "soil")
    shape = terrain.elevation.shape
    hollow = standardise(terrain.wetness)
    coarse = fractal_field(rng, shape, exponent=3.0) - 0.3 * hollow
    heavy = fractal_field(rng, shape, exponent=3.0) + 0.3 * hollow
    # Shares of sand, clay and silt as a softmax: positive, and together 1.
    sand, clay = np.exp(0.3 + 0.6 * coarse), np.exp(-0.5 + 0.35 * heavy - 0.25 * coarse)
    total = sand + clay + 1.0
    compaction = 1.0 + 0.03 * fractal_field(rng, shape, exponent=2.5)
    sand, clay = (np.asarray(part / total, dtype=np.float32) for part in (sand, clay))
    return describe_soil(sand, clay, compaction=compaction)


def describe_soil(
    sand: Array, clay: Array, *, compaction: Array | float = 1.0, organic_matter: float = 1.5
) -> Soil:
    """Hydraulic properties of a texture.

    The pedotransfer functions of Saxton & Rawls (2006, doi:10.2136/sssaj2005.0117), equations 1 to
    18.

    Parameters
    ----------
    sand, clay
        Shares of mass [1].
    compaction
        Bulk density relative to the normal one of this texture [1], 0.9 to 1.3.
    organic_matter
        Percent of mass, up to 8.
    """
    s, c, om = sand, clay, organic_matter
    t = -0.024 * s + 0.487 * c + 0.006 * om + 0.005 * s * om - 0.013 * c * om + 0.068 * s * c
    wilting_point = 1.14 * (t + 0.031) - 0.02
    t = -0.251 * s + 0.195 * c + 0.011 * om + 0.006 * s * om - 0.027 * c * om + 0.452 * s * c
    t = t + 0.299
    at_33 = t + 1.283 * t * t - 0.374 * t - 0.015
    t = 0.278 * s + 0.034 * c + 0.022 * om - 0.018 * s * om - 0.027 * c * om - 0.584 * s * c
    to_33 = 1.636 * (t + 0.078) - 0.107
    normal = at_33 + to_33 - 0.097 * s + 0.043
    bulk_density = (1.0 - normal) * _PARTICLE_DENSITY * compaction
    porosity = 1.0 - bulk_density / _PARTICLE_DENSITY
    field_capacity = at_33 - 0.2 * (normal - porosity)
    slope = (np.log(1500.0) - np.log(33.0)) / (np.log(field_capacity) - np.log(wilting_point))
    conductivity = 1930.0 * (porosity - field_capacity) ** (3.0 - 1.0 / slope)
    values = (
        sand,
        clay,
        bulk_density,
        porosity,
        field_capacity,
        wilting_point,
        conductivity,
        3.0 + 2.0 * slope,
    )
    return Soil(*(np.asarray(value, dtype=np.float32) for value in values))
