"""The land and its days: weather drives water, water and season drive plants, day after day."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smgrid.simulate.evaporation import day_length, potential_evaporation
from smgrid.simulate.fields import Array
from smgrid.simulate.frame import Frame, bilinear
from smgrid.simulate.soil import Soil, make_soil
from smgrid.simulate.terrain import Terrain, make_terrain
from smgrid.simulate.vegetation import Parcels, follow_water, make_parcels, ndvi_of
from smgrid.simulate.water_balance import first_state, root_wetness, step, surface_moisture
from smgrid.simulate.weather import Climate, Weather

_NORTHERN_WARMEST_DAY = 200.0  # the seasons of `vegetation.COVERS` count with it
_FIRST_VIGOUR = 0.6


@dataclass(frozen=True)
class Land:
    """What does not change in a world."""

    frame: Frame
    terrain: Terrain
    soil: Soil
    parcels: Parcels
    parcel: NDArray[np.int32]
    """Parcel of every pixel of the domain."""


@dataclass(frozen=True)
class Day:
    """The state of a world at the end of a day; fields are on the domain's grid."""

    date: pd.Timestamp
    moisture: Array
    """Water content of the surface layer [m3 m-3]."""
    ndvi: Array
    """[1]"""
    temperature: Array
    """Daily mean of the air [degC]."""
    vigour: Array
    """How well plants do, 0 to 1; with `growth` it gives NDVI at any resolution."""
    growth: Array
    """NDVI that the season adds in each parcel at full vigour (n,)."""


def make_land(frame: Frame, seed: int) -> Land:
    """Draw the land of a world."""
    terrain = make_terrain(frame, seed)
    parcels = make_parcels(frame, seed)
    soil = make_soil(terrain, seed)
    return Land(frame, terrain, soil, parcels, parcels.locate(frame.domain))


def evolve(land: Land, weather: Weather, climate: Climate) -> Iterator[Day]:
    """Live through the days of the weather, one by one; memory does not grow with them."""
    soil, parcels, parcel = land.soil, land.parcels, land.parcel
    rain_at = bilinear(weather.grid, land.frame.domain)
    wetness = land.terrain.wetness - land.terrain.wetness.mean()
    floor = parcels.floor[parcel]
    state = first_state(soil)
    vigour = np.full(parcel.shape, _FIRST_VIGOUR, dtype=np.float32)
    for i, date in enumerate(weather.days):
        day = float(date.day_of_year)
        season = (day - climate.warmest_day + _NORTHERN_WARMEST_DAY) % 365.25
        growth = parcels.span * parcels.greenness(season)
        ndvi = ndvi_of(floor, growth[parcel], vigour)
        temperature = weather.regional_temperature[i] + weather.offset
        demand = potential_evaporation(temperature, day_length(day, weather.latitude))
        rain = rain_at(weather.rain[i])
        state, _ = step(state, soil, wetness=wetness, rain=rain, demand=demand, ndvi=ndvi)
        yield Day(date, surface_moisture(state, soil), ndvi, temperature, vigour, growth)
        vigour = follow_water(vigour, root_wetness(state, soil))
