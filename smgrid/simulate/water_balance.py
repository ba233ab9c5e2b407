"""The water balance of every pixel and day: two soil layers over one shared groundwater store.

The surface layer (0-5 cm) is the truth of the world. Water enters it as rain, drains under gravity,
evaporates and is taken up by plants, and is exchanged with the root zone below. What leaves the
root zone recharges the groundwater of the whole domain, which rises to the root zone of hollows and
feeds the streams. Nothing is lost: see `Fluxes`.
"""

from dataclasses import dataclass

import numpy as np

from smgrid.simulate.fields import Array
from smgrid.simulate.soil import Soil

SURFACE_DEPTH = 50.0  # mm, 0-5 cm: what SMAP, Sentinel-1 and shallow stations see
ROOT_DEPTH = 500.0  # mm below it
MIN_MOISTURE = 0.02  # m3 m-3
# Groundwater, in the terms of TOPMODEL (Beven & Kirkby 1979, doi:10.1080/02626667909491834).
_RECESSION = 40.0  # mm of deficit per unit of topographic wetness
_BASEFLOW = 5.0  # mm per day at no deficit
_CAPILLARY = 60.0  # mm of local deficit over which the supply from below fades
_SUPPLY_RATE = 0.25  # share of the missing water that groundwater supplies in a day
_FIRST_DEFICIT = 110.0  # mm
_EXCHANGE = 1.0  # mm per day and unit difference of relative saturation, per mm of surface layer
_SURFACE_UPTAKE = 0.2  # share of transpiration that roots take from the surface layer
_FULL_COVER = 0.85  # NDVI of a closed canopy
_BARE = 0.12  # NDVI of bare soil
_CROP_FACTOR = 1.1  # transpiration of a closed canopy relative to the reference
_DRY_SATURATION = 0.3  # relative saturation below which drainage stands still


@dataclass(frozen=True)
class State:
    """Water in store."""

    surface: Array
    """Surface layer [mm], (y, x)."""
    root: Array
    """Root zone [mm], (y, x)."""
    deficit: float
    """Mean storage that the groundwater of the domain lacks [mm]."""


@dataclass(frozen=True)
class Fluxes:
    """Water that moved in a day [mm].

    Of a pixel: ``change of (surface + root) = rain - runoff - evaporation - transpiration -
    recharge + supply``. Of the groundwater: ``change of deficit = baseflow + mean(supply) -
    mean(recharge)``.
    """

    runoff: Array
    evaporation: Array
    transpiration: Array
    recharge: Array
    supply: Array
    baseflow: float


def first_state(soil: Soil) -> State:
    """State before the spin-up: moist soil, a groundwater table at medium depth."""
    return State(
        surface=soil.field_capacity * np.float32(SURFACE_DEPTH),
        root=soil.field_capacity * np.float32(0.8 * ROOT_DEPTH),
        deficit=_FIRST_DEFICIT,
    )


def surface_moisture(state: State, soil: Soil) -> Array:
    """Water content of the surface layer [m3 m-3], within 0.02 and porosity."""
    moisture = state.surface / np.float32(SURFACE_DEPTH)
    return np.asarray(np.clip(moisture, MIN_MOISTURE, soil.porosity), dtype=np.float32)


def root_wetness(state: State, soil: Soil) -> Array:
    """Plant-available water of the root zone relative to its most [1], 0 to 1."""
    content = state.root / np.float32(ROOT_DEPTH)
    available = soil.field_capacity - soil.wilting_point
    return np.clip((content - soil.wilting_point) / available, 0.0, 1.0)


def step(
    state: State, soil: Soil, *, wetness: Array, rain: Array, demand: Array, ndvi: Array
) -> tuple[State, Fluxes]:
    """Move the water of one day.

    Parameters
    ----------
    state
        At the end of the day before.
    soil
        Of the same grid.
    wetness
        Topographic wetness index minus its mean [ln m].
    rain
        [mm]
    demand
        Potential evapotranspiration [mm].
    ndvi
        Divides demand between bare soil and plants [1].
    """
    room_below = soil.porosity * np.float32(ROOT_DEPTH) - state.root
    filled = state.surface + rain
    to_root = np.maximum(filled - soil.porosity * np.float32(SURFACE_DEPTH), 0.0)
    surface = filled - to_root
    runoff = np.maximum(to_root - room_below, 0.0)
    root = state.root + to_root - runoff

    drained = drainage(surface, soil, depth=SURFACE_DEPTH)
    drained = np.minimum(drained, soil.porosity * np.float32(ROOT_DEPTH) - root)
    surface, root = surface - drained, root + drained

    cover = np.clip((ndvi - _BARE) / (_FULL_COVER - _BARE), 0.0, 1.0)
    evaporation = _evaporation(surface, soil, demand * (1.0 - cover))
    surface = surface - evaporation
    from_surface, from_root = _transpiration(surface, root, soil, _CROP_FACTOR * demand * cover)
    surface, root = surface - from_surface, root - from_root

    rising = _exchange(surface, root, soil)
    surface, root = surface + rising, root - rising

    recharge = drainage(root, soil, depth=ROOT_DEPTH)
    supply = _supply(root - recharge, soil, state.deficit - _RECESSION * wetness)
    baseflow = float(_BASEFLOW * np.exp(-state.deficit / _RECESSION))
    deficit = state.deficit + baseflow + float(supply.mean()) - float(recharge.mean())
    fluxes = Fluxes(runoff, evaporation, from_surface + from_root, recharge, supply, baseflow)
    return State(surface, root - recharge + supply, deficit), fluxes


def drainage(store: Array, soil: Soil, *, depth: float) -> Array:
    """Water that gravity drains from a layer in one day [mm].

    The layer loses water at the conductivity of its mean water content, K = Ks (w / porosity) ** n
    (Saxton & Rawls 2006, eq. 17): the unit-gradient drainage of Sisson et al. (1980,
    doi:10.2136/sssaj1980.03615995004400060002x), integrated over the day exactly.

    Parameters
    ----------
    store
        Water in the layer [mm].
    soil
        Its properties.
    depth
        Of the layer [mm].
    """
    full = soil.porosity * np.float32(depth)
    saturation = np.maximum(store / full, _DRY_SATURATION)
    steepness = soil.exponent - 1.0
    speed = 24.0 * soil.conductivity * steepness / full
    after = (saturation**-steepness + speed) ** (-1.0 / steepness)
    drained = full * np.maximum(saturation - after, 0.0)
    return np.where(saturation > _DRY_SATURATION, drained, np.float32(0.0)).astype(np.float32)


def _evaporation(surface: Array, soil: Soil, demand: Array) -> Array:
    """Evaporation of bare soil, down to half the wilting point (Allen et al. 1998, eq. 73-74)."""
    dry = np.maximum(0.5 * soil.wilting_point, MIN_MOISTURE) * np.float32(SURFACE_DEPTH)
    wet = soil.field_capacity * np.float32(SURFACE_DEPTH)
    available = np.maximum(surface - dry, 0.0)
    relative = np.clip(available / (wet - dry), 0.0, 1.0)
    return np.asarray(np.minimum(demand * relative, available), dtype=np.float32)


def _transpiration(surface: Array, root: Array, soil: Soil, demand: Array) -> tuple[Array, Array]:
    """Uptake from both layers, reduced linearly as water runs out (Allen et al. 1998, eq. 84)."""
    taken = []
    for store, depth, share in (
        (surface, SURFACE_DEPTH, _SURFACE_UPTAKE),
        (root, ROOT_DEPTH, 1.0 - _SURFACE_UPTAKE),
    ):
        available = np.maximum(store - soil.wilting_point * np.float32(depth), 0.0)
        most = (soil.field_capacity - soil.wilting_point) * np.float32(depth)
        stress = np.clip(available / (0.5 * most), 0.0, 1.0)
        taken.append(np.minimum(share * demand * stress, available))
    return taken[0], taken[1]


def _exchange(surface: Array, root: Array, soil: Soil) -> Array:
    """Water that diffuses from the root zone to a drier surface layer [mm]; negative downwards.

    The restoring term of the force-restore method (Deardorff 1978, doi:10.1029/JC083iC04p01889).
    """
    upper = surface / (soil.porosity * np.float32(SURFACE_DEPTH))
    lower = root / (soil.porosity * np.float32(ROOT_DEPTH))
    rising = _EXCHANGE * (lower - upper)
    spare = np.maximum(root - soil.wilting_point * np.float32(ROOT_DEPTH), 0.0)
    room = soil.porosity * np.float32(ROOT_DEPTH) - root
    return np.clip(rising, -np.minimum(room, surface * np.float32(0.5)), spare)


def _supply(root: Array, soil: Soil, local_deficit: Array) -> Array:
    """Groundwater that rises into the root zone where the table is near [mm]."""
    nearness = np.exp(-np.maximum(local_deficit, 0.0) / _CAPILLARY)
    content = soil.field_capacity + (soil.porosity - soil.field_capacity) * nearness
    missing = np.maximum(content * np.float32(ROOT_DEPTH) - root, 0.0)
    return np.asarray(_SUPPLY_RATE * nearness * missing, dtype=np.float32)
