import numpy as np
import pandas as pd
import pytest
import xarray as xr
from pyproj import Transformer

from smgrid.errors import ConfigError, NoDataError
from smgrid.training.labels import station_labels
from smgrid.training.table import JOINED
from tests.cubes import make_cube

DAYS = ["2021-03-01", "2021-03-02", "2021-03-03", "2021-03-13", "2021-03-14"]


def make_stations(cube, *, where, values, times=DAYS, shift=0.3, networks=None, daily=True):
    """Stations ``shift`` pixels south-east of the centres of pixels (row, column)."""
    base = cube["base"].to_dataset()
    to_lonlat = Transformer.from_crs("EPSG:32631", "EPSG:4326", always_xy=True)
    x = [base["x"].values[0] + 100 * (c + shift) for _, c in where]
    y = [base["y"].values[0] - 100 * (r + shift) for r, _ in where]
    longitude, latitude = to_lonlat.transform(x, y)
    attrs = {"units": "m3 m-3"} | ({"cell_methods": "time: mean"} if daily else {})
    ds = xr.Dataset(
        {"soil_moisture": (("station", "time"), np.float32(values), attrs)},
        coords={
            "station": [f"s{i}" for i in range(len(where))],
            "longitude": ("station", longitude),
            "latitude": ("station", latitude),
            "time": pd.DatetimeIndex(times),
        },
    )
    return ds if networks is None else ds.assign_coords(network=("station", networks))


@pytest.mark.parametrize("shift", [-0.45, 0.45])
@pytest.mark.parametrize("chunks", [None, 4])
def test_an_acquisition_takes_the_mean_of_its_own_utc_day(chunks, shift):
    cube = make_cube(chunks=chunks)  # twice on 2 March, once on 14 March
    where = [(0, 0), (12, 16), (5, -1)]  # the last one is west of the grid
    values = [
        [0.9, 0.1, 0.9, 0.9, 0.2],
        [0.9, 0.3, 0.9, 0.9, np.nan],
        [0.5, 0.5, 0.5, 0.5, 0.5],
    ]
    ds = station_labels(make_stations(cube, where=where, values=values, shift=shift), cube)
    vv = cube["base"]["vv"]
    assert ds["label"].chunks == ds["lag"].chunks == (vv.chunks or tuple((n,) for n in vv.shape))
    assert ds["label"].dtype == ds["lag"].dtype == np.float32
    label = ds["label"].compute()
    assert int(label.notnull().sum()) == 3 + 2
    assert label.values[:, 0, 0].tolist() == np.float32([0.1, 0.1, 0.2]).tolist()
    assert label.values[:2, 12, 16].tolist() == np.float32([0.3, 0.3]).tolist()
    assert label.attrs["units"] == "m3 m-3"
    assert ds["lag"].isnull().all()
    for name in ("time", "y", "x", "relative_orbit", "spatial_ref"):
        xr.testing.assert_identical(
            ds[name].reset_coords(drop=True), vv[name].reset_coords(drop=True)
        )


def test_readings_of_one_day_are_averaged():
    cube = make_cube()
    times = ["2021-03-02T00:00", "2021-03-02T23:00", "2021-03-03T00:00"]
    stations = make_stations(
        cube, where=[(1, 2)], values=[[0.1, 0.3, 0.9]], times=times, daily=False
    )
    label = station_labels(stations, cube)["label"].values
    np.testing.assert_allclose(label[:, 1, 2], [0.2, 0.2, np.nan], rtol=1e-6)


@pytest.mark.parametrize("chunks", [None, 4])
def test_every_station_has_a_number_and_a_name(chunks):
    cube = make_cube(chunks=chunks)
    where = [(4, 7), (0, 0), (4, 7), (40, 3), (12, 16), (4, 7)]
    values = [[v] * 5 for v in (0.2, 0.1, 0.4, 0.9, 0.5, np.nan)]
    networks = ["SCAN", "SCAN", "USCRN", "SCAN", "FR_Aqui", "SCAN"]
    ds = station_labels(make_stations(cube, where=where, values=values, networks=networks), cube)
    station = ds["station"]
    assert station.dtype == np.int32
    assert station.data.chunks == ds["label"].data.chunks[1:]
    codes = station.compute()
    assert int((codes >= 0).sum()) == 3
    named = {
        p: (station.attrs["stations"][c], station.attrs["networks"][c])
        for p, c in ((place, int(codes[place])) for place in ((0, 0), (4, 7), (12, 16)))
    }
    assert named == {
        (0, 0): ("s1", "SCAN"),
        (4, 7): ("s0 + s2 + s5", "SCAN + USCRN + SCAN"),
        (12, 16): ("s4", "FR_Aqui"),
    }
    np.testing.assert_allclose(ds["label"].values[:, 4, 7], 0.3, rtol=1e-6)  # of those that know
    nameless = station_labels(make_stations(cube, where=where, values=values), cube)
    assert nameless["station"].attrs["networks"] == ["", "", ""]


def test_a_pixel_has_the_names_of_all_its_stations_in_order():
    cube = make_cube()
    where, values = [(0, 0), (4, 7), (0, 0), (4, 7), (0, 0), (4, 7)], [[0.2] * 5] * 6
    networks = ["B", "A", "A", "A", "B", "A"]
    stations = make_stations(cube, where=where, values=values, networks=networks)
    # In another order than that of the file, with one of them twice and names met in two pixels.
    stations = stations.assign_coords(station=["s9", "s3", "s2", "s3", "s9", "s2"])
    attrs = station_labels(stations, cube)["station"].attrs
    assert attrs["stations"] == ["s2 + s9", "s2 + s3"]
    assert attrs["networks"] == ["A + B", "A"]
    assert attrs["stations"][0].split(JOINED) == ["s2", "s9"]


@pytest.mark.parametrize("units", ["%", "saturation", None])
def test_readings_in_other_units_are_refused(units):
    cube = make_cube()
    stations = make_stations(cube, where=[(1, 1)], values=[[0.2] * 5])
    stations["soil_moisture"].attrs["units"] = units
    with pytest.raises(ConfigError, match=f"units {units!r}, expected 'm3 m-3': convert"):
        station_labels(stations, cube)


def test_with_a_tolerance_the_nearest_reading_is_taken_and_its_lag_is_kept():
    cube = make_cube()  # 2 March 05:30 and 17:20, 14 March 05:30
    times = ["2021-03-02T03:30", "2021-03-02T07:30", "2021-03-03T00:00", "2021-03-14T09:00"]
    values = [[0.1, 0.2, 0.3, 0.4], [np.nan, np.nan, 0.3, np.nan]]
    stations = make_stations(cube, where=[(1, 2), (3, 3)], values=values, times=times, daily=False)
    ds = station_labels(stations, cube, tolerance_hours=7).compute()
    # Two readings are 2 h off: the earlier.
    np.testing.assert_allclose(ds["label"][:, 1, 2], [0.1, 0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose(ds["lag"][:, 1, 2], [-2, 20 / 3, 3.5], rtol=1e-6)
    np.testing.assert_allclose(ds["label"][:, 3, 3], [np.nan, 0.3, np.nan], rtol=1e-6)
    np.testing.assert_allclose(ds["lag"][:, 3, 3], [np.nan, 20 / 3, np.nan], rtol=1e-6)
    assert int(ds["lag"].notnull().sum()) == 4


def test_a_daily_mean_stands_at_noon():
    cube = make_cube()
    stations = make_stations(cube, where=[(1, 2)], values=[[0.1, np.nan, 0.3, 0.4, np.nan]])
    ds = station_labels(stations, cube, tolerance_hours=20).compute()
    # 1 March 12:00 is 17.5 h before 2 March 05:30, 3 March 12:00 is 18.7 h after 17:20.
    np.testing.assert_allclose(ds["label"][:, 1, 2], [0.1, 0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose(ds["lag"][:, 1, 2], [-17.5, 18 + 2 / 3, -17.5], rtol=1e-6)


def test_stations_elsewhere_or_silent_are_an_error_that_says_so():
    cube = make_cube()
    with pytest.raises(NoDataError, match="0 of 1 stations lie in the grid"):
        station_labels(make_stations(cube, where=[(500, 500)], values=[[0.1] * 5]), cube)
    silent = make_stations(cube, where=[(1, 1)], values=[[0.1, np.nan, 0.1, 0.1, np.nan]])
    with pytest.raises(NoDataError, match=r"1 of 1 .* none has a reading on an acq"):
        station_labels(silent, cube)
    with pytest.raises(NoDataError, match="within 3 hours of an acquisition"):
        station_labels(silent, cube, tolerance_hours=3)
    with pytest.raises(ConfigError, match="tolerance_hours: expected 0 or more hours"):
        station_labels(silent, cube, tolerance_hours=-1)
