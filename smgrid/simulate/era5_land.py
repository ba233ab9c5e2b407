"""Weather as a daily aggregate of ERA5-Land in one Zarr store on its 0.1 degree grid."""

from pathlib import Path

import numpy as np
import xarray as xr

from smgrid.simulate.weather import Weather
from smgrid.windows import Period

_KELVIN = 273.15
_TIME = {"units": "seconds since 1970-01-01", "dtype": "int64", "calendar": "proleptic_gregorian"}


def write_weather(path: Path, weather: Weather, period: Period) -> None:
    """Write ``t2m`` [K] and ``tp`` [m] of every day of `period` and every cell.

    Days are UTC days, stamped with their 00:00; latitude descends.
    """
    kept = (weather.days >= period.start) & (weather.days <= period.end)
    y, x = (np.round(axis.values, 6) for axis in weather.grid.coordinates.values())
    dims = ("time", "latitude", "longitude")
    ds = xr.Dataset(
        {
            "t2m": (
                dims,
                weather.temperature[kept] + np.float32(_KELVIN),
                {
                    "units": "K",
                    "long_name": "2 metre temperature",
                    "standard_name": "air_temperature",
                    "cell_methods": "time: mean",
                },
            ),
            "tp": (
                dims,
                weather.rain[kept] / np.float32(1000),
                {
                    "units": "m",
                    "long_name": "Total precipitation",
                    "standard_name": "lwe_thickness_of_precipitation_amount",
                    "cell_methods": "time: sum",
                },
            ),
        },
        coords={
            "time": weather.days[kept].to_numpy().astype("datetime64[ns]"),
            "latitude": ("latitude", y, {"units": "degrees_north", "standard_name": "latitude"}),
            "longitude": ("longitude", x, {"units": "degrees_east", "standard_name": "longitude"}),
        },
        attrs={"title": "Simulated daily weather in the form of ERA5-Land", "license": "CC0-1.0"},
    )
    ds.to_zarr(path, mode="w-", encoding={"time": _TIME}, zarr_format=2, consolidated=True)
