import numpy as np
import pandas as pd
import pytest

from smgrid.grid import make_grid
from smgrid.simulate.evaporation import day_length, potential_evaporation
from smgrid.simulate.fields import stream
from smgrid.simulate.frame import bounds_in, make_frame
from smgrid.simulate.terrain import make_terrain
from smgrid.simulate.weather import (
    LAPSE_RATE,
    climate_at,
    make_weather,
    rain_amounts,
    temperatures,
    weather_grid,
    wet_days,
)

YEARS = np.tile(np.arange(1.0, 366.0), 200)


def test_wet_spells_follow_the_chain_and_the_season():
    climate = climate_at(41.0)
    wet = wet_days(stream(1, "test"), climate, YEARS)
    before, after = wet[:-1], wet[1:]
    assert abs(after[before].mean() - climate.wet_after_wet) < 0.01
    assert abs(after[~before].mean() - climate.wet_after_dry) < 0.01
    phase = np.cos(2 * np.pi * (YEARS[1:] - climate.wettest_day) / 365.25)
    season = ~before & (phase > 0.9)
    expected = climate.wet_after_dry * (1 + climate.rain_seasonality * phase[season].mean())
    assert abs(after[season].mean() - expected) < 0.02


def test_rain_is_gamma_distributed_on_wet_days_and_nil_on_others():
    climate = climate_at(41.0)
    wet = np.arange(200_000) % 3 == 0
    rain = rain_amounts(stream(2, "test"), climate, wet)
    assert (rain[~wet] == 0).all()
    mean, variance = rain[wet].mean(), rain[wet].var()
    assert abs(mean / (climate.rain_shape * climate.rain_scale) - 1) < 0.02
    assert abs(variance / (climate.rain_shape * climate.rain_scale**2) - 1) < 0.04


def test_temperature_has_season_and_memory():
    climate = climate_at(41.0)
    wet = np.zeros(len(YEARS), dtype=bool)
    series = temperatures(stream(3, "test"), climate, YEARS, wet)
    season = climate.temperature + climate.temperature_range * np.cos(
        2 * np.pi * (YEARS - climate.warmest_day) / 365.25
    )
    anomaly = series - season
    assert abs(anomaly.mean()) < 0.1
    assert abs(anomaly.std() / climate.temperature_spread - 1) < 0.03
    assert abs(np.corrcoef(anomaly[1:], anomaly[:-1])[0, 1] - 0.7) < 0.02


@pytest.mark.parametrize(("north", "south"), [(41.0, -41.0), (15.0, -15.0)])
def test_seasons_are_turned_round_in_the_south(north, south):
    shift = (climate_at(north).warmest_day - climate_at(south).warmest_day) % 365.25
    assert abs(shift - 182.6) < 3
    assert climate_at(south).temperature == climate_at(north).temperature


def test_cells_lie_on_the_grid_of_era5_land_with_two_more_on_every_side():
    base = make_grid((-5.48, 41.24, -5.32, 41.36), resolution=100)
    grid = weather_grid(base)
    y, x = (axis.values for axis in grid.coordinates.values())
    assert np.abs(x * 10 - np.round(x * 10)).max() < 1e-6
    assert np.abs(y * 10 - np.round(y * 10)).max() < 1e-6
    west, south, east, north = bounds_in(base, "EPSG:4326")
    assert ((x + 0.05 < west).sum(), (x - 0.05 > east).sum()) >= (2, 2)
    assert ((y + 0.05 < south).sum(), (y - 0.05 > north).sum()) >= (2, 2)


def test_weather_varies_in_space_and_cools_with_height():
    base = make_grid((-5.5, 41.2, -5.3, 41.4), resolution=500)
    frame = make_frame(base)
    terrain = make_terrain(frame, seed=1)
    days = pd.date_range("2020-01-01", "2020-12-31")
    weather = make_weather(frame, terrain, climate=climate_at(41.3), days=days, seed=1)
    wet = weather.rain.mean(axis=(1, 2)) > 0
    assert (weather.rain[~wet] == 0).all()
    spread = weather.rain[wet].std(axis=(1, 2)) / weather.rain[wet].mean(axis=(1, 2))
    assert 0.1 < spread.mean() < 0.6
    assert 200 < weather.rain.sum(axis=0).mean() < 1200  # mm in the year
    height = terrain.elevation - terrain.elevation.mean()
    fit = np.linalg.lstsq(
        np.column_stack([height.ravel(), np.ones(height.size)]), weather.offset.ravel(), rcond=None
    )[0]
    assert abs(fit[0] - LAPSE_RATE) < 1e-3
    # A cell is as warm as the mean of its pixels.
    seen = weather.temperature[0] - weather.regional_temperature[0]
    assert abs(seen[2:-2, 2:-2].mean() - weather.offset[frame.inner].mean()) < 0.3


def test_day_length():
    assert abs(day_length(80, 41.3) - 12.0) < 0.25  # equinox
    assert abs(day_length(172, 41.3) - 15.0) < 0.2  # solstice
    assert abs(day_length(172, -41.3) - 9.0) < 0.2
    assert day_length(172, 75) == 24
    assert day_length(355, 75) == 0


def test_potential_evaporation_of_known_days():
    """0.1651 x 1 x 17.3 g m-3 x 1.2 at 20 degC and 12 h; vapour density from steam tables."""
    assert abs(potential_evaporation(np.array([20.0]), 12.0)[0] - 0.1651 * 17.3 * 1.2) < 0.02
    assert abs(potential_evaporation(np.array([0.0]), 12.0)[0] - 0.1651 * 4.85 * 1.2) < 0.01
