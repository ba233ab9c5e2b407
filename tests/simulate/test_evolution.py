"""The truth as a whole: it has to vary as real soil does, or no map of it proves anything."""

import numpy as np
import pandas as pd
import pytest

from smgrid.grid import make_grid
from smgrid.simulate.evolution import evolve, make_land
from smgrid.simulate.frame import make_frame
from smgrid.simulate.weather import climate_at, make_weather

DAYS = pd.date_range("2021-05-01", "2022-12-31")
SPIN_UP = 245


@pytest.fixture(scope="module")
def lived():
    base = make_grid((-5.45, 41.26, -5.35, 41.34), resolution=100)
    land = make_land(make_frame(base), seed=0)
    climate = climate_at(41.3)
    weather = make_weather(land.frame, land.terrain, climate=climate, days=DAYS, seed=0)
    inner = land.frame.inner
    days = [(d.date, d.moisture[inner], d.ndvi[inner]) for d in evolve(land, weather, climate)]
    dates, moisture, ndvi = zip(*days[SPIN_UP:], strict=True)
    return land, pd.DatetimeIndex(dates), np.array(moisture), np.array(ndvi)


def test_moisture_varies_in_space_and_time(lived):
    _, _, moisture, _ = lived
    assert 0.035 < moisture.std(axis=(1, 2)).mean() < 0.075
    assert 0.045 < moisture.std(axis=0).mean() < 0.085
    assert 0.12 < moisture.mean() < 0.30


def test_winter_is_wetter_than_summer(lived):
    _, dates, moisture, _ = lived
    mean = moisture.mean(axis=(1, 2))
    winter, summer = (mean[dates.month.isin(m)].mean() for m in ([1, 2, 12], [7, 8]))
    assert winter > summer + 0.06


def test_texture_and_hollows_show_in_the_moisture(lived):
    land, _, moisture, _ = lived
    inner = land.frame.inner
    mean = moisture.mean(axis=0).ravel()
    capacity = land.soil.field_capacity[inner].ravel()
    wetness = land.terrain.wetness[inner].ravel()
    assert np.corrcoef(mean, capacity)[0, 1] > 0.6
    predictors = np.column_stack([capacity, wetness, np.ones_like(mean)])
    assert np.linalg.lstsq(predictors, mean, rcond=None)[0][1] > 0.001


def test_ndvi_has_parcels_and_seasons(lived):
    _, dates, _, ndvi = lived
    assert ndvi.min() > 0.05
    assert ndvi.max() < 0.97
    spring, winter = (ndvi[dates.month == m].mean() for m in (5, 12))
    assert spring > winter + 0.1
    assert ndvi[dates.month == 5].mean(axis=0).std() > 0.08


def test_the_spin_up_is_forgotten(lived):
    """Two years from different beginnings end alike."""
    _, _, moisture, _ = lived
    base = make_grid((-5.45, 41.26, -5.35, 41.34), resolution=100)
    land = make_land(make_frame(base), seed=0)
    climate = climate_at(41.3)
    whole = make_weather(land.frame, land.terrain, climate=climate, days=DAYS, seed=0)
    late = 100
    cut = type(whole)(
        whole.days[late:],
        whole.grid,
        whole.rain[late:],
        whole.temperature[late:],
        whole.regional_temperature[late:],
        whole.offset,
        whole.latitude,
    )
    *_, last = evolve(land, cut, climate)
    difference = last.moisture[land.frame.inner] - moisture[-1]
    assert np.abs(difference).mean() < 2e-3
