import numpy as np
import pandas as pd
import xarray as xr


def test_store_is_daily_on_the_grid_of_era5_land(world):
    ds = xr.open_zarr(world.path / "era5_land.zarr")
    assert set(ds.data_vars) == {"t2m", "tp"}
    assert ds["t2m"].dims == ("time", "latitude", "longitude")
    days = pd.DatetimeIndex(ds["time"].values)
    assert days[0] == world.period.start
    assert days[-1] == world.period.end
    assert (np.diff(days) == np.timedelta64(1, "D")).all()
    assert (np.diff(ds["latitude"]) < 0).all()
    np.testing.assert_allclose(np.diff(ds["latitude"]), -0.1, atol=1e-9)
    np.testing.assert_allclose(np.diff(ds["longitude"]), 0.1, atol=1e-9)


def test_units_and_magnitudes(world):
    ds = xr.open_zarr(world.path / "era5_land.zarr").compute()
    assert ds["t2m"].attrs["units"] == "K"
    assert ds["tp"].attrs["units"] == "m"
    assert ds["t2m"].dtype == np.float32
    assert 250 < float(ds["t2m"].min()) < float(ds["t2m"].max()) < 315
    per_year = float(ds["tp"].mean("time").mean()) * 365.25
    assert 0.2 < per_year < 1.2
    assert float(ds["tp"].min()) == 0
    assert not ds.isnull().any().to_array().any()
    winter = ds["t2m"].sel(time=ds["time"].dt.month == 1).mean()
    summer = ds["t2m"].sel(time=ds["time"].dt.month == 7).mean()
    assert summer - winter > 12


def test_soil_is_wetter_after_the_rain_of_the_store(world):
    """The forcing on disk is what the truth lived through, on the same days."""
    ds = xr.open_zarr(world.path / "era5_land.zarr")
    truth = xr.open_zarr(world.truth)["soil_moisture"].mean(("y", "x")).compute()
    rain = ds["tp"].mean(("latitude", "longitude")).sel(time=truth["time"]).compute()
    change = truth.diff("time")
    same = xr.corr(change, rain.isel(time=slice(1, None)))
    for shift in (-2, -1, 1, 2):
        other = xr.corr(change, rain.shift(time=shift).isel(time=slice(1, None)))
        assert same > other + 0.2
    assert same > 0.5
