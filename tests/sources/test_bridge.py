"""Bridges between records of NDVI: against ordinary regressions, lazily, on real pairs."""

import tracemalloc

import dask
import dask.array
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec
from smgrid.errors import CatalogError, NoDataError, SourceError
from smgrid.sources import load_source
from smgrid.sources.bridge import Bridge, apply_bridge, fit_bridge, take_bridge
from smgrid.windows import Period, composite_calendar

DATES = composite_calendar("2024")


def record(values, dates=DATES, **coords):
    values = np.asarray(values, "float32")
    coords = {"y": np.arange(values.shape[1])[::-1], "x": np.arange(values.shape[2])} | coords
    return xr.DataArray(values, dims=("date", "y", "x"), coords={"date": dates, **coords})


def two_sensors(noise=0.03, seed=0):
    """Seasons seen by a reference and, at 0.9 of the contrast and 0.04 more, by another sensor."""
    rng = np.random.default_rng(seed)
    season = 0.45 + 0.3 * np.sin(np.arange(46) / 46 * 2 * np.pi)
    truth = season[:, None, None] + rng.normal(0, 0.1, (46, 6, 7))
    reference = truth + rng.normal(0, noise, truth.shape)
    other = 0.04 + 0.9 * truth + rng.normal(0, 0.9 * noise, truth.shape)
    return record(reference), record(other)


def pairs(reference, replacement):
    y, x = reference.values.ravel().astype(float), replacement.values.ravel().astype(float)
    both = np.isfinite(x) & np.isfinite(y)
    return y[both], x[both]


def test_between_the_two_ordinary_regressions():
    reference, replacement = two_sensors()
    reference = reference.where(np.random.default_rng(5).random(reference.shape) < 0.8)
    bridge = fit_bridge(reference, replacement)
    y, x = pairs(reference, replacement)
    # The geometric mean of the slopes of y on x and of x on y, both by least squares.
    forwards, backwards = np.polyfit(x, y, 1)[0], np.polyfit(y, x, 1)[0]
    assert bridge.slope == pytest.approx(np.sqrt(forwards / backwards), rel=1e-6)
    assert bridge.intercept == pytest.approx(y.mean() - bridge.slope * x.mean(), abs=1e-6)
    residual = y - (bridge.intercept + bridge.slope * x)
    assert bridge.rmse == pytest.approx(np.sqrt((residual**2).mean()), rel=1e-5)
    assert bridge.correlation == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-6)
    assert bridge.n == len(x)
    assert bridge.period == "2024-01-01/2024-12-26"


def test_equal_noise_does_not_flatten_the_bridge():
    bridge = fit_bridge(*two_sensors(noise=0.08))
    assert bridge.slope == pytest.approx(1 / 0.9, rel=0.02)
    assert bridge.intercept == pytest.approx(-0.04 / 0.9, abs=0.01)
    y, x = pairs(*two_sensors(noise=0.08))
    assert np.polyfit(x, y, 1)[0] < 0.95 / 0.9  # as least squares do


def test_a_perfect_line_has_no_error():
    reference, _ = two_sensors()
    bridge = fit_bridge(reference, (reference - 0.1) / 1.25)
    assert (bridge.slope, bridge.intercept) == pytest.approx((1.25, 0.1), abs=1e-5)
    assert bridge.rmse < 1e-3


def test_only_common_dates_count():
    reference, replacement = two_sensors()
    later = replacement.isel(date=slice(20, None))
    spoiled = xr.concat([later, later.isel(date=[-1]) * 0 + 0.9], "date")
    dates = DATES[20:].append(pd.DatetimeIndex(["2025-01-01"]))
    bridge = fit_bridge(reference, spoiled.assign_coords(date=dates))
    assert bridge == fit_bridge(reference.isel(date=slice(20, None)), later)
    assert bridge.n == 26 * 42
    assert bridge.period == "2024-06-09/2024-12-26"


def test_lazy_records_are_reduced_block_by_block():
    reference, replacement = two_sensors()
    lazy = fit_bridge(reference.chunk(date=5, y=4), replacement.chunk(x=3))
    eager = fit_bridge(reference, replacement)
    assert (lazy.n, lazy.period) == (eager.n, eager.period)
    for name in ("slope", "intercept", "rmse", "correlation"):
        assert getattr(lazy, name) == pytest.approx(getattr(eager, name), rel=1e-6)


def test_memory_does_not_grow_with_the_years():
    """The sums of a block are known before many others are read."""
    dates = pd.date_range("2020-01-01", periods=60, freq="8D")
    data = dask.array.random.default_rng(0).random((60, 250, 250), chunks=(1, 250, 250))
    season = 0.4 + 0.3 * np.sin(np.arange(60))[:, None, None]
    lazy = xr.DataArray(
        (data * 0.1 + season).astype("float32"),
        dims=("date", "y", "x"),
        coords={"date": dates},
    )
    tracemalloc.start()
    try:
        with dask.config.set(scheduler="synchronous"):
            bridge = fit_bridge(lazy, lazy * np.float32(0.9))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert bridge.slope == pytest.approx(1 / 0.9, rel=1e-5)
    block, record_size = 250 * 250 * 8, 60 * 250 * 250 * 8
    assert peak < 25 * block < record_size / 2


def test_applied():
    bridge = {"slope": 1.2, "intercept": -0.05, "rmse": 0.03}
    values = record(np.full((46, 1, 4), [0.5, -0.5, 0.95, np.nan])).assign_attrs(note="kept")
    bridged = apply_bridge(values, bridge)
    np.testing.assert_allclose(bridged.values[0, 0], [0.55, -0.2, 1.0, np.nan], rtol=1e-6)
    assert bridged.dtype == "float32"
    assert bridged.attrs == {
        "note": "kept",
        "bridge_slope": 1.2,
        "bridge_intercept": -0.05,
        "bridge_rmse": 0.03,
        "approximate": 1,
        "approximate_note": "continued by another sensor: -0.0500 + 1.2000 NDVI, root mean square "
        "error 0.0300",
    }


def test_from_fit_to_catalog_and_back():
    reference, replacement = two_sensors()
    bridge = fit_bridge(reference, replacement)
    stated = take_bridge(spec(dict(bridge.options)))
    bridged = apply_bridge(replacement, stated)
    difference = (bridged - reference).values
    assert np.sqrt((difference**2).mean()) == pytest.approx(bridge.rmse, rel=1e-3)
    assert abs(difference.mean()) < 1e-3
    assert take_bridge(spec(None)) is None


def spec(bridge):
    options = {} if bridge is None else {"bridge": bridge}
    return SourceSpec(
        name="v", loader="a:b", provides=("ndvi",), options=options, origin="test.yml, line 9"
    )


@pytest.mark.parametrize(
    ("bridge", "message"),
    [
        (1.1, r"is 1\.1; give slope, intercept and rmse"),
        ({"slop": 1, "intercept": 0, "rmse": 0}, "has 'slop'; did you mean 'slope'"),
        ({"slope": 1, "intercept": 0}, "rmse is None; give a number, see fit_bridge"),
        ({"slope": "1", "intercept": 0, "rmse": 0}, "slope is '1'; give a number"),
        ({"slope": 1, "intercept": np.nan, "rmse": 0}, "intercept is nan"),
        ({"slope": -1, "intercept": 0, "rmse": 0.1}, "slope must be positive"),
        ({"slope": 1, "intercept": 0, "rmse": -0.1}, "rmse not negative"),
    ],
)
def test_mistakes_in_the_catalog(bridge, message):
    with pytest.raises(CatalogError, match=rf"^test.yml, line 9: options\.bridge of v.*{message}"):
        take_bridge(spec(bridge))


def test_records_that_make_no_bridge():
    reference, replacement = two_sensors()
    few = np.arange(reference.size).reshape(reference.shape) < 29
    with pytest.raises(NoDataError, match="needs 30 pairs of values or more, found 29"):
        fit_bridge(reference.where(few), replacement)
    with pytest.raises(NoDataError, match="found 0"):
        fit_bridge(reference, replacement.assign_coords(date=DATES + pd.Timedelta(400, "D")))
    with pytest.raises(SourceError, match="not positively correlated in 1932 pairs"):
        fit_bridge(reference, 1 - replacement)
    with pytest.raises(SourceError, match="lie on different grids"):
        fit_bridge(reference, replacement.assign_coords(x=replacement["x"] + 0.5))


@pytest.mark.shared
def test_real_landsat_continued_by_sentinel2(shared):
    """Two sensors over the same fields of Flanders in 2017 and 2018, on the same composites."""
    folder = shared / "data/real/colocated_worldcereal/00002806639B424A"
    box = (501_360, 5_629_040, 502_000, 5_629_680)
    grid = GeoBox.from_bbox(box, "EPSG:32631", resolution=80, tight=True)
    period = Period.parse(("2017-09-01", "2018-11-30"))

    def load(pattern, mask, assets, **options):
        entry = SourceSpec(
            name=mask,
            loader="smgrid.sources.ndvi:load_reflectance",
            provides=("ndvi",),
            paths=(f"{folder}/{pattern}",),
            assets=assets | {"time": "timestamp"},
            options={"mask": mask, "fill_days": 0, **options},
            origin="test.yml, line 2",
        )
        return load_source(entry, grid, period)["ndvi"].compute()

    sentinel = {"red": "B04", "nir": "B08", "mask": "SCL"}
    landsat = load(
        "L8_SR_*.nc", "landsat-pixel-qa", {"red": "B04", "nir": "B05", "mask": "pixel_qa"}
    )
    replacement = load("S2_L2A_*.nc", "sentinel2-scl", sentinel)
    bridge = fit_bridge(landsat, replacement)
    assert isinstance(bridge, Bridge)
    y, x = pairs(landsat, replacement)
    forwards, backwards = np.polyfit(x, y, 1)[0], np.polyfit(y, x, 1)[0]
    assert bridge.slope == pytest.approx(np.sqrt(forwards / backwards), rel=1e-5)
    assert bridge.n == len(x) > 300
    assert bridge.correlation > 0.8
    assert 0.7 < bridge.slope < 1.3
    bridged = load("S2_L2A_*.nc", "sentinel2-scl", sentinel, bridge=dict(bridge.options))
    y, x = pairs(landsat, bridged)
    assert np.sqrt(((y - x) ** 2).mean()) == pytest.approx(bridge.rmse, rel=0.02)
    assert abs((y - x).mean()) < 0.005
