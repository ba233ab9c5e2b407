import re
import zipfile

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from smgrid.grid import transform_points
from smgrid.simulate.fields import stream
from smgrid.simulate.ismn import header, place_sites, take_readings

HEADER = re.compile(r"^(\S+) +(\S+) +(\S+) +(-?\d+\.\d{5}) (-?\d+\.\d{5}) {17}(-?\d+\.\d) (.*)$")


def stations(world):
    return sorted(world.stations.glob("*/*/*.stm"))


def table(path):
    names = ["date", "hour", "value", "flag", "own"]
    frame = pd.read_csv(path, sep=" ", skiprows=1, names=names)
    frame.index = pd.to_datetime(frame["date"] + " " + frame["hour"], format="%Y/%m/%d %H:%M")
    return frame


def test_a_header_is_laid_out_as_a_real_one(shared):
    path = shared / "data/real/ismn/OZNET_2017_2021_0-5cm.zip"
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if "Banandra" in n)
        first, second = archive.read(name).decode().split("\n")[:2]
    ours = header("Site-001", -34.65478, 146.11028, 130.0)
    real = HEADER.match(first)
    mine = HEADER.match(ours)
    assert real
    assert mine
    assert [mine.start(i) for i in (1, 2, 3, 4)] == [real.start(i) for i in (1, 2, 3, 4)]
    assert mine[7].split()[:2] == real[7].split()[:2]  # the depths
    assert len(second.split()) == 5


def test_files_lie_and_are_named_as_in_an_archive(world):
    paths = stations(world)
    assert len(paths) == 4
    for path in paths:
        network, station = path.parts[-3:-1]
        span = f"{world.scenes.start:%Y%m%d}_{world.scenes.end:%Y%m%d}"
        assert path.name == (
            f"{network}_{network}_{station}_sm_0.000000_0.050000_Simulated-Probe_{span}.stm"
        )
        assert path.with_name(f"{network}_{network}_{station}_static_variables.csv").exists()


def test_readings_are_the_truth_of_their_pixel_and_day(world):
    truth = xr.open_zarr(world.truth)["soil_moisture"].compute()
    for path in stations(world):
        match = HEADER.match(path.read_text().split("\n")[0])
        lat, lon = float(match[4]), float(match[5])
        (x,), (y,) = transform_points(np.array([lon]), np.array([lat]), "EPSG:4326", "EPSG:32630")
        here = truth.sel(x=x, y=y, method="nearest")
        readings = table(path)
        good = readings[readings["flag"] == "G"]
        days = xr.DataArray(good.index.normalize(), dims="reading")
        error = good["value"].to_numpy() - here.sel(time=days).to_numpy()
        assert abs(error.mean()) < 0.003
        assert 0.008 < error.std() < 0.022


def test_a_line_per_reading_every_six_hours(world):
    readings = table(stations(world)[0])
    assert len(readings) == 4 * len(world.scenes.days)
    assert set(np.diff(readings.index)) == {np.timedelta64(6, "h")}
    missing = readings["flag"] == "M"
    assert (readings["value"][missing] == -9999).all()
    assert missing.sum() == 24


def test_flags_name_what_is_wrong():
    truth = np.full(100_000, 0.25, dtype=np.float32)
    values, flags = take_readings(stream(1, "test"), truth)
    assert set(flags) == {"G", "C01", "C02", "D06", "M"}
    assert (values[flags == "C01"] < 0).all()
    assert (values[flags == "C02"] > 0.6).all()
    assert (values[flags == "D06"] > 0.3).all()
    good = values[flags == "G"]
    assert abs(good.mean() - 0.25) < 1e-3
    assert 0.01 <= good.std() <= 0.0202
    assert 0.98 < (flags == "G").mean() < 0.999


@pytest.mark.parametrize("count", [1, 7, 60])
def test_sites_keep_their_distance_and_stay_in_the_region(land, count):
    sites = place_sites(stream(2, "test"), land, count)
    box = land.frame.base.boundingbox
    assert ((sites.x > box.left) & (sites.x < box.right)).all()
    assert ((sites.y > box.bottom) & (sites.y < box.top)).all()
    distance = np.hypot(*(np.subtract.outer(c, c) for c in (sites.x, sites.y)))
    distance[np.diag_indices(count)] = np.inf
    assert distance.min() >= 0.5 * np.sqrt(8000 * 8000 / count)
    centre_x = land.frame.domain.coordinates["x"].values[sites.column]
    assert np.abs(centre_x - sites.x).max() <= 50
