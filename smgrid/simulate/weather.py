"""Daily weather on 0.1 degree: rain in spells and storms, temperature with seasons and memory.

A stochastic weather generator in the tradition of Richardson (1981, doi:10.1029/WR017i001p00182).
One sequence of wet and dry days serves the whole region; amounts and temperatures vary slowly in
space.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from smgrid.grid import pixel_centres
from smgrid.simulate.fields import Array, smooth_fields, stream
from smgrid.simulate.frame import Frame, bounds_in, lattice_window
from smgrid.simulate.terrain import Terrain

CELL = 0.1  # degrees, as ERA5-Land
MARGIN_CELLS = 2  # around the region
LAPSE_RATE = -6.5e-3  # K m-1, International Standard Atmosphere (ISO 2533)
_POLEWARD = -0.7  # K per degree of latitude
_RAIN_SPREAD = 0.4  # standard deviation of the logarithm of a cell's share of the day's rain
_RAIN_SCALE = 1.5  # cells
_MEMORY = 0.7  # lag-1 correlation of temperature anomalies
_RAIN_COOLING = 1.5  # K by which a wet day is cooler
_YEAR = 365.25


@dataclass(frozen=True)
class Climate:
    """What the weather of a place is like."""

    temperature: float
    """Annual mean [degC]."""
    temperature_range: float
    """Amplitude of the seasonal cycle [K]."""
    temperature_spread: float
    """Standard deviation of daily anomalies [K]."""
    warmest_day: float
    """Day of the year."""
    wettest_day: float
    """Day of the year."""
    rain_seasonality: float
    """Relative amplitude of the probability that a dry day is followed by a wet one, 0 to 1."""
    wet_after_dry: float
    """Its annual mean."""
    wet_after_wet: float
    """Probability that a wet day is followed by a wet one."""
    rain_shape: float
    """Shape of the gamma distribution of a wet day's rain."""
    rain_scale: float
    """Its scale [mm]."""


@dataclass(frozen=True)
class Weather:
    """Daily weather of a world."""

    days: pd.DatetimeIndex
    """Consecutive days (n,)."""
    grid: GeoBox
    """Cells of 0.1 degree, centred on multiples of 0.1."""
    rain: Array
    """Total of each day and cell [mm], (n, latitude, longitude)."""
    temperature: Array
    """Mean of each day and cell [degC], (n, latitude, longitude)."""
    regional_temperature: Array
    """Mean of each day at the region's mean elevation and latitude [degC], (n,)."""
    offset: Array
    """What a domain's pixel adds to it for its elevation and latitude [K], (y, x)."""
    latitude: float
    """Of the region's centre [degree]."""


def climate_at(latitude: float) -> Climate:
    """Plausible climate of a latitude [degree]: monsoon in the tropics, wet winters elsewhere.

    Round numbers that make seasons look real; no station's climate.
    """
    tropical = float(np.clip((35.0 - abs(latitude)) / 15.0, 0.0, 1.0))
    warmest = 200.0 if latitude >= 0 else 18.0
    return Climate(
        temperature=27.0 - 0.36 * max(abs(latitude) - 10.0, 0.0),
        temperature_range=max(1.5, 0.23 * abs(latitude)),
        temperature_spread=1.5 + 0.04 * abs(latitude),
        warmest_day=warmest,
        wettest_day=(warmest + 20.0 if tropical > 0.5 else warmest + 150.0) % _YEAR,
        rain_seasonality=0.6 + 0.25 * tropical,
        wet_after_dry=0.18 + 0.12 * tropical,
        wet_after_wet=0.55 + 0.12 * tropical,
        rain_shape=0.75,
        rain_scale=7.0 + 6.0 * tropical,
    )


def weather_grid(base: GeoBox) -> GeoBox:
    """Cells of 0.1 degree over a region with two cells more on every side."""
    margin = MARGIN_CELLS * CELL
    west, south, east, north = bounds_in(base, "EPSG:4326")
    bounds = (west - margin, south - margin, east + margin, north + margin)
    # Centres on multiples of the cell: edges on odd multiples of half a cell.
    return lattice_window(bounds, "EPSG:4326", origin=(CELL / 2, CELL / 2), step=(CELL, CELL))


def make_weather(
    frame: Frame, terrain: Terrain, *, climate: Climate, days: pd.DatetimeIndex, seed: int
) -> Weather:
    """Draw the weather of a world on every one of `days`."""
    grid = weather_grid(frame.base)
    season = days.day_of_year.to_numpy(dtype=np.float64)
    wet = wet_days(stream(seed, "rain", "days"), climate, season)
    amount = rain_amounts(stream(seed, "rain", "amounts"), climate, wet)
    shares = smooth_fields(
        stream(seed, "rain", "cells"), len(days), grid.shape.yx, scale=_RAIN_SCALE
    )
    pattern = np.exp(_RAIN_SPREAD * shares - _RAIN_SPREAD**2 / 2)
    regional = temperatures(stream(seed, "temperature"), climate, season, wet)
    offset, cell_offset = _temperature_offsets(frame, terrain, grid)
    return Weather(
        days=days,
        grid=grid,
        rain=np.asarray(amount[:, None, None] * pattern, dtype=np.float32),
        temperature=np.asarray(regional[:, None, None] + cell_offset, dtype=np.float32),
        regional_temperature=regional.astype(np.float32),
        offset=offset,
        latitude=float(pixel_centres(frame.base, "EPSG:4326")[1].mean()),
    )


def wet_days(
    rng: np.random.Generator, climate: Climate, day_of_year: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Wet and dry days: a Markov chain of first order whose wet spells start by season."""
    phase = np.cos(2 * np.pi * (day_of_year - climate.wettest_day) / _YEAR)
    starts = climate.wet_after_dry * (1 + climate.rain_seasonality * phase)
    draws = rng.random(len(day_of_year))
    wet = np.zeros(len(day_of_year), dtype=bool)
    for i in range(1, len(wet)):
        wet[i] = draws[i] < (climate.wet_after_wet if wet[i - 1] else starts[i])
    return wet


def rain_amounts(
    rng: np.random.Generator, climate: Climate, wet: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Rain of each day [mm]: gamma-distributed on wet days, else 0."""
    return np.where(wet, rng.gamma(climate.rain_shape, climate.rain_scale, len(wet)), 0.0)


def temperatures(
    rng: np.random.Generator,
    climate: Climate,
    day_of_year: NDArray[np.float64],
    wet: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Daily mean temperature [degC]: season, cooler wet days, and an AR(1) anomaly."""
    shocks = rng.normal(0.0, climate.temperature_spread, len(wet)) * np.sqrt(1 - _MEMORY**2)
    anomaly = np.zeros(len(wet))
    for i in range(1, len(wet)):
        anomaly[i] = _MEMORY * anomaly[i - 1] + shocks[i]
    phase = np.cos(2 * np.pi * (day_of_year - climate.warmest_day) / _YEAR)
    mean = climate.temperature + climate.temperature_range * phase
    return np.asarray(mean - _RAIN_COOLING * wet + anomaly)


def _temperature_offsets(frame: Frame, terrain: Terrain, grid: GeoBox) -> tuple[Array, Array]:
    """Temperature [K] relative to the region's mean elevation and latitude: pixels, cells."""
    lon, lat = pixel_centres(frame.domain, grid.crs)
    centre, level = float(lat.mean()), float(terrain.elevation.mean())
    pixels = LAPSE_RATE * (terrain.elevation - level) + _POLEWARD * (np.abs(lat) - abs(centre))
    affine = ~grid.affine
    column = np.floor(affine.c + affine.a * lon).astype(np.intp)
    row = np.floor(affine.f + affine.e * lat).astype(np.intp)
    inside = (row >= 0) & (row < grid.shape[0]) & (column >= 0) & (column < grid.shape[1])
    flat = (row * grid.shape[1] + column)[inside]
    size = grid.shape[0] * grid.shape[1]
    count = np.bincount(flat, minlength=size)
    height = np.bincount(flat, weights=terrain.elevation[inside], minlength=size)
    # A cell of the margin without simulated terrain stands at the mean elevation.
    height = np.where(count > 0, height / np.maximum(count, 1), level).reshape(grid.shape.yx)
    _, cell_lat = pixel_centres(grid, grid.crs)
    cells = LAPSE_RATE * (height - level) + _POLEWARD * (np.abs(cell_lat) - abs(centre))
    return pixels.astype(np.float32), cells.astype(np.float32)
