"""The real run: one field site in Flanders from the providers' files to soil moisture.

Expected figures are those found independently with the published weights on the same inputs
(correlations of the site mean with rain, 38-39 acquisitions with a full year behind them).
"""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid import load_cube, load_ensemble, open_cube, open_map, predict, write_cube
from smgrid.inference.predict import FLAGS

PERIOD = ("2017-08-01", "2018-11-30")
# The site, and the whole cells of 100 m in it.
BOUNDS = {
    20: (501_360, 5_629_040, 502_000, 5_629_680),
    100: (501_400, 5_629_100, 502_000, 5_629_600),
}

pytestmark = [pytest.mark.shared, pytest.mark.slow]


@pytest.fixture(scope="module")
def ensemble(shared):
    return load_ensemble(shared / "data/densesm_9km")


@pytest.fixture(scope="module", params=[20, 100])
def cube(request, shared, tmp_path_factory):
    folder = shared / "data/real/colocated_worldcereal/00002806639B424A"
    grid = GeoBox.from_bbox(BOUNDS[request.param], "EPSG:32631", resolution=request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMGRID_SITE", str(folder))
        lazy = load_cube(grid, PERIOD, catalog="local-files")
        path = tmp_path_factory.mktemp("flanders") / f"cube{request.param}.zarr"
        write_cube(lazy, path)
    return open_cube(path)


@pytest.fixture(scope="module")
def sm(cube, ensemble, tmp_path_factory):
    path = tmp_path_factory.mktemp("map") / "sm.zarr"
    write_cube(predict(cube, ensemble), path)
    return open_map(path)


def rain(cube):
    tp = next(n["tp"] for n in cube.children.values() if "tp" in n.data_vars)
    return tp.isel(y=0, x=0).to_series()


def summed(daily, times, first, last):
    """Rain of the days ``first`` to ``last`` counted from each acquisition day."""
    days = pd.DatetimeIndex(times).normalize()
    return np.array(
        [daily.loc[d + pd.Timedelta(days=first) : d + pd.Timedelta(days=last)].sum() for d in days]
    )


def test_every_pass_is_kept_with_its_orbit(cube):
    base = cube["base"].to_dataset()
    assert base.sizes["time"] == 159
    assert set(base["relative_orbit"].values.tolist()) == {59, 161}
    assert set(base["orbit_state"].values.tolist()) == {"ascending"}


def test_site_mean_backscatter_is_that_of_the_file(cube, shared):
    """The area mean in dB must not depend on the resolution of the target."""
    folder = shared / "data/real/colocated_worldcereal/00002806639B424A"
    with xr.open_dataset(next(folder.glob("S1_GRD*.nc"))) as raw:
        vv = cube["base"]["vv"]
        half = float(vv.x[1] - vv.x[0]) / 2
        site = raw["VV"].sel(
            x=slice(vv.x[0] - half, vv.x[-1] + half), y=slice(vv.y[0] + half, vv.y[-1] - half)
        )
        expected = site.mean(("y", "x")).values
    np.testing.assert_allclose(vv.mean(("y", "x")).values, expected, atol=2e-2)


def test_acquisitions_with_a_full_year_and_no_other(cube, sm):
    times = pd.DatetimeIndex(cube["base"]["time"].values)
    first_day = pd.Timestamp(PERIOD[0])
    served = times[times.normalize() - pd.Timedelta(days=367) >= first_day]
    assert list(pd.DatetimeIndex(sm["time"].values)) == list(served)
    assert 37 <= len(served) <= 40
    # At 20 m the ring of pixels beside the end of the clipped DEM has no slope.
    assert float(sm["soil_moisture"].notnull().mean()) > 0.8


def test_soil_moisture_is_plausible_and_follows_the_rain(cube, sm, ensemble):
    mean = sm["soil_moisture"].mean(("y", "x")).values
    assert ((mean > 0.15) & (mean < 0.40)).all()
    outside = (sm["flags"] & FLAGS["outside_valid_range"]) > 0
    assert float(outside.mean()) <= 0.01
    before = summed(rain(cube), sm["time"].values, -9, 0)
    after = summed(rain(cube), sm["time"].values, 0, 7)
    assert np.corrcoef(mean, before)[0, 1] >= 0.5
    assert np.corrcoef(mean, after)[0, 1] < 0.1


def test_published_windows_see_rain_that_has_not_fallen(cube, ensemble):
    sm = predict(cube, ensemble, window="published")
    mean = sm["soil_moisture"].mean(("y", "x")).compute().values
    before = summed(rain(cube), sm["time"].values, -9, 0)
    after = summed(rain(cube), sm["time"].values, 0, 7)
    assert np.corrcoef(mean, before)[0, 1] == pytest.approx(0.17, abs=0.1)
    assert np.corrcoef(mean, after)[0, 1] == pytest.approx(0.41, abs=0.1)


def test_assumed_inputs_are_flagged_and_named(sm):
    assert set(sm.attrs["smgrid_assumed"].split()) == {"angle", "sand", "clay", "bdod"}
    assert ((sm["flags"] & 4) > 0).all()
