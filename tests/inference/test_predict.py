from dataclasses import replace

import dask
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from smgrid.cube.store import write_cube
from smgrid.errors import ConfigError, LayoutError, TemplateMismatchError
from smgrid.features.layout import get_layout, scale_columns, scale_series
from smgrid.grid import ease_features_on
from smgrid.inference.engine import Engine
from smgrid.inference.predict import predict
from smgrid.inference.quality import FLAGS
from smgrid.models.applicability import Applicability
from smgrid.models.calibration import Calibration
from smgrid.models.densesm import DenseSM
from smgrid.models.ensemble import Ensemble, predict_samples
from smgrid.windows import one_year_windows
from tests.cubes import make_cube


@pytest.fixture(scope="module")
def ensemble():
    torch.manual_seed(1)
    members = []
    for depth, width in ((1, 8), (2, 8), (1, 16)):
        network = DenseSM(depth, width)
        with torch.no_grad():  # batch norms of a trained network are not the identity
            for name, buffer in network.named_buffers():
                if name.endswith("running_mean"):
                    buffer.uniform_(-0.2, 0.2)
                elif name.endswith("running_var"):
                    buffer.uniform_(0.5, 1.5)
        members.append((f"m_{depth}_{width}", network.eval()))
    return Ensemble(members=tuple(members), layout=get_layout("released-9km"), card={})


def brute_force(cube, ensemble, step):
    """Members' predictions pixel by pixel, found by coordinates instead of index arithmetic."""
    layout = ensemble.layout
    base = cube["base"].to_dataset().isel(time=step)
    series = {v: n.to_dataset()[v] for n in cube.children.values() for v in n.data_vars}
    time = pd.Timestamp(base["time"].values)
    windows = one_year_windows(
        pd.DatetimeIndex([time]),
        composites=pd.DatetimeIndex(series["ndvi"]["date"].values),
        days=pd.DatetimeIndex(series["t2m"]["date"].values),
        rule=layout.window,
    )
    row, sine, cosine = ease_features_on(base.odc.geobox, km=9, convention="centre")
    turn = 2 * np.pi * time.day_of_year / 365
    derived = {
        "ease_row": row,
        "ease_col_sin": sine,
        "ease_col_cos": cosine,
        "doy_sin": np.sin(turn),
        "doy_cos": np.cos(turn),
    }
    columns, runs = [], []
    for j, y in enumerate(base["y"].values):
        for i, x in enumerate(base["x"].values):
            values = [
                np.broadcast_to(derived[c.feature], row.shape)[j, i]
                if c.feature in derived
                else base[c.feature].values[j, i]
                for c in layout.snapshot
            ]
            columns.append(values)
            run = []
            for c in layout.series:
                cell = series[c.feature].sel(y=y, x=x, method="nearest").values
                if c.feature == "ndvi":
                    run.append(cell[windows.composite_index[0]])
                else:
                    run.append(cell[windows.day_index[0]].mean(axis=1))
            runs.append(run)
    snapshot = scale_columns(np.float32(columns), layout).values
    series_ = scale_series(np.float32(runs), layout).values
    rows = np.concatenate([snapshot, series_.reshape(len(snapshot), -1)], axis=1)
    return predict_samples(ensemble, rows).reshape(-1, *base["vv"].shape)


@pytest.mark.parametrize("factors", [(1, 1), (2, 9), (4, 9)])
def test_equals_the_members_forward_pass_pixel_by_pixel(ensemble, factors):
    cube = make_cube(shape=(7, 9), factors=factors, chunks=4)
    sm = predict(cube, ensemble).compute()
    for step in range(sm.sizes["time"]):
        members = brute_force(cube, ensemble, step)
        np.testing.assert_allclose(sm["soil_moisture"][step], members.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(sm["soil_moisture_std"][step], members.std(axis=0), atol=1e-6)


def test_chunks_do_not_matter(ensemble):
    whole = predict(make_cube(), ensemble).compute()
    for chunks in (3, 5, 64):
        parts = predict(make_cube(chunks=chunks), ensemble).compute()
        xr.testing.assert_allclose(parts, whole, atol=1e-6)


def test_nothing_is_read_before_it_is_needed(ensemble):
    def refuse(*_args, **_kwargs):
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        sm = predict(make_cube(chunks=5), ensemble)
    assert sm["soil_moisture"].chunks[0] == (1, 1, 1)


def test_acquisitions_of_one_day_share_what_is_read_of_their_series(ensemble, monkeypatch):
    calls = []
    original = Engine.read_series

    def spy(self, series, **options):
        calls.append(len(series))
        return original(self, series, **options)

    monkeypatch.setattr(Engine, "read_series", spy)
    cube = make_cube(chunks=64)
    with dask.config.set(scheduler="synchronous"):
        both = predict(cube, ensemble).compute()
        assert len(calls) == 2  # of three acquisitions two are of one day
        calls.clear()
        one = predict(cube, ensemble).isel(time=[2]).compute()
        assert len(calls) == 1
    xr.testing.assert_allclose(both.isel(time=[2]), one, atol=1e-6)


def test_quantiles_are_those_of_the_members(ensemble):
    cube = make_cube(shape=(5, 6))
    sm = predict(cube, ensemble, quantiles=(0.5, 0.07)).compute()
    members = brute_force(cube, ensemble, 0)
    for name, share in (("soil_moisture_q07", 0.07), ("soil_moisture_q50", 0.5)):
        np.testing.assert_allclose(sm[name][0], np.quantile(members, share, axis=0), atol=1e-6)
        assert sm[name].attrs["units"] == "m3 m-3"
    for bad in ((0.051,), (0, 0.5), (1,), (0.5, 0.5)):
        with pytest.raises(ConfigError, match="quantiles"):
            predict(cube, ensemble, quantiles=bad)


def calibration(ensemble, effective=100.0):
    scores = tuple(np.linspace(0, 4, 101).tolist())
    return Calibration(
        a=0.01,
        b=2.0,
        scores=scores,
        rows=500,
        groups=50,
        effective=effective,
        fitted_on="held-out",
        ensemble=ensemble.digest,
    )


def test_intervals_are_those_of_the_calibration(ensemble):
    cube = make_cube(shape=(5, 6))
    known = replace(ensemble, calibration=calibration(ensemble))
    for interval, wanted in ((None, 0.9), (0.5, 0.5)):
        sm = predict(cube, known, interval=interval).compute()
        days = sm["time"].dt.dayofyear.values[:, None, None]
        values = (sm["soil_moisture"].values, sm["soil_moisture_std"].values)
        lower, upper = known.calibration.bounds(*values, wanted, days)  # without a season
        np.testing.assert_allclose(sm["soil_moisture_lower"], np.maximum(lower, -3), atol=1e-6)
        np.testing.assert_allclose(sm["soil_moisture_upper"], np.minimum(upper, 3), atol=1e-6)
        assert sm["soil_moisture_lower"].attrs["coverage"] == wanted
    few = replace(ensemble, calibration=calibration(ensemble, effective=4.5))
    assert predict(cube, few)["soil_moisture_upper"].attrs["coverage"] == 0.8
    with pytest.raises(ConfigError, match="at most"):
        predict(cube, few, interval=0.9)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        predict(cube, known, interval=90)
    assert "soil_moisture_lower" not in predict(cube, ensemble)
    with pytest.raises(LayoutError, match="no calibration"):
        predict(cube, ensemble, interval=0.9)


def test_what_is_unlike_the_training_is_told(ensemble):
    cube = make_cube(shape=(5, 6))
    n = len(ensemble.layout.snapshot) + 2 * len(ensemble.layout.series)
    seen = Applicability(
        low=np.zeros(n, np.float32),
        high=np.where(np.arange(n) == 0, 0.1, 1).astype(np.float32),  # never so wet: vv
        weight=np.ones(n, np.float32),
        coreset=np.zeros((1, n), np.float32),
        centre=np.full(n, 0.5, np.float32),
        mean_distance=1.0,
        threshold=0.9,
        radius=0.0,
        rows=10,
        groups=5,
    )
    first = predict(cube, replace(ensemble, applicability=seen)).compute()["dissimilarity"]
    seen = replace(seen, threshold=float(first.median()))
    sm = predict(cube, replace(ensemble, applicability=seen)).compute()
    index = sm["dissimilarity"]
    assert index.attrs["threshold"] == seen.threshold
    beyond = (sm["flags"] & FLAGS["outside_applicability"]) > 0
    np.testing.assert_array_equal(beyond, index > seen.threshold)
    assert 0.4 < beyond.mean() < 0.6
    assert ((sm["flags"] & FLAGS["outside_training_range"]) > 0).all()
    alone = predict(cube, ensemble)
    assert "dissimilarity" not in alone
    assert "outside_applicability" in alone["flags"].attrs["not_determined"]


def test_flags_use_what_the_cube_has_and_tell_what_it_lacks(ensemble):
    cube = make_cube(shape=(6, 8))
    bare = predict(cube, ensemble).compute()
    assert "open_water urban" in bare["flags"].attrs["not_determined"]
    base = cube["base"].to_dataset()
    water = xr.zeros_like(base["sand"]).rename("fraction_water")
    water[1, 2] = 0.5
    ndvi = cube["x2"].to_dataset()
    filled = xr.ones_like(ndvi["ndvi"]).rename("ndvi_filled")
    nodes = {f"/{k}": v.to_dataset() for k, v in cube.children.items()}
    nodes["/base"] = base.assign(fraction_water=water)
    nodes["/x2"] = ndvi.assign(ndvi_filled=filled)
    sm = predict(xr.DataTree.from_dict(nodes), ensemble).compute()
    wet = (sm["flags"] & FLAGS["open_water"]) > 0
    assert wet[:, 1, 2].all()
    assert wet.sum() == sm.sizes["time"]
    assert ((sm["flags"] & FLAGS["ndvi_filled"]) > 0).all()
    assert "open_water" not in sm["flags"].attrs["not_determined"]
    xr.testing.assert_allclose(sm["soil_moisture"], bare["soil_moisture"])


def test_frost_is_that_of_the_acquisitions_day(ensemble):
    cube = make_cube(shape=(6, 8), factors=(2, 2))
    cube["x2_daily"]["t2m"].values[...] = 290
    day = cube["x2_daily"].indexes["date"].get_loc("2021-03-14")
    cube["x2_daily"]["t2m"].values[day] = 270
    for window in ("causal", "published"):
        sm = predict(make_longer(cube), ensemble, window=window).compute()
        frozen = ((sm["flags"] & FLAGS["frozen_soil"]) > 0).all(("y", "x"))
        assert frozen.values.tolist() == [False, False, True]


def make_longer(cube):
    """Ten more days, which published windows read after the acquisition."""
    nodes = {f"/{k}": v.to_dataset() for k, v in cube.children.items()}
    days = nodes["/x2_daily"]
    dates = pd.date_range(days.indexes["date"][0], "2021-03-31")
    nodes["/x2_daily"] = days.reindex(date=dates, method="nearest")
    nodes["/x2_daily"]["t2m"][-11:] = 290
    return xr.DataTree.from_dict(nodes)


def edited(cube, change):
    nodes = {f"/{k}": v.to_dataset() for k, v in cube.children.items()}
    nodes["/base"] = change(nodes["/base"])
    return xr.DataTree.from_dict(nodes)


def test_maps_of_the_same_numbers_elsewhere_are_other_maps(ensemble):
    """Computed together, tasks of one name would be taken for one another."""
    cube = make_cube(chunks=9)
    steep = edited(cube, lambda ds: ds.assign(slope=ds["slope"] * 0 + 50))
    water = edited(cube, lambda ds: ds.assign(fraction_water=ds["sand"] * 0 + 0.3))
    cases = [
        (steep, edited(steep, lambda ds: ds.assign_coords(orbit_state=("time", ["", "", ""])))),
        (
            steep,
            edited(steep, lambda ds: ds.assign_coords(time=ds["time"] + np.timedelta64(1, "h"))),
        ),
        (water, edited(water, lambda ds: ds.rename(fraction_water="fraction_urban"))),
    ]
    for one, other in cases:
        names = [predict(c, ensemble)["flags"].data.name for c in (one, other, one)]
        assert names[0] == names[2] != names[1]


def test_another_calibration_is_another_map(ensemble, tmp_path):
    cube = make_cube(shape=(5, 6))
    known = replace(ensemble, calibration=calibration(ensemble))
    wider = replace(known, calibration=replace(known.calibration, a=0.2))
    write_cube(predict(cube, known), tmp_path / "sm.zarr")
    with pytest.raises(TemplateMismatchError, match="smgrid_calibration"):
        write_cube(predict(cube, wider), tmp_path / "sm.zarr")


def test_the_season_of_an_interval_is_that_of_its_hemisphere(ensemble):
    def width(hemisphere):
        season = {"season": (1.2, 0.0), "hemisphere": hemisphere, "b": 0.0}
        known = replace(ensemble, calibration=replace(calibration(ensemble), **season))
        sm = predict(make_cube(shape=(5, 6), times=("2021-03-02T05:30",)), known).compute()
        return float((sm["soil_moisture_upper"] - sm["soil_moisture_lower"]).mean())

    assert width(1) < 0.95 * width(-1)  # across the equator the widest season counts
    assert width(0) == width(-1)


def test_an_unknown_orbit_leaves_layover_undetermined(ensemble):
    cube = edited(make_cube(shape=(5, 6)), lambda ds: ds.drop_vars("orbit_state"))
    assert "layover_or_shadow" in predict(cube, ensemble)["flags"].attrs["not_determined"]


def test_one_chunk_of_output_reads_only_its_own_inputs(ensemble):
    """The unit of work: one acquisition of one tile, whatever the size of the cube."""
    sm = predict(make_cube(chunks=5), ensemble)
    one = sm.isel(time=[1], y=slice(0, 5), x=slice(0, 5))
    (culled,) = dask.optimize(one["soil_moisture"].data)
    scenes = [k for k in culled.__dask_graph__() if isinstance(k, tuple) and "predict" in str(k[0])]
    assert len({k for k in scenes if str(k[0]).startswith("predict-")}) == 1


@pytest.mark.parametrize("name", ["vv", "sand", "ndvi", "tp"])
def test_a_missing_input_gives_nan_and_a_flag(ensemble, name):
    cube = make_cube()
    full = predict(cube, ensemble).compute()
    node = next(n for n in cube.children.values() if name in n.data_vars)
    values = node[name].values
    values[..., 1, 1] = np.nan
    sm = predict(cube, ensemble).compute()
    missing = sm["soil_moisture"].isnull()
    assert missing.any()
    assert not missing.all()
    flagged = (sm["flags"] & FLAGS["input_missing"]) > 0
    xr.testing.assert_equal(flagged, missing.rename("flags"))
    np.testing.assert_array_equal(sm["soil_moisture_std"].isnull(), missing)
    xr.testing.assert_allclose(
        sm["soil_moisture"].where(~missing, 0), full["soil_moisture"].where(~missing, 0), atol=1e-6
    )


def test_clipped_assumed_and_out_of_range_are_flagged(ensemble):
    cube = make_cube()
    cube["base"]["vv"].values[0, 2, 3] = 9.0  # above the layout's 5 dB
    cube["base"]["bdod"].attrs["assumed"] = 1
    sm = predict(cube, ensemble).compute()
    flags = sm["flags"].values
    assert flags[0, 2, 3] & FLAGS["feature_clipped"]
    assert not (flags[1] & FLAGS["feature_clipped"]).any()
    assert (flags & FLAGS["assumed_input"]).all()
    outside = (sm["soil_moisture"] < 0) | (sm["soil_moisture"] > 0.6)
    np.testing.assert_array_equal((flags & FLAGS["outside_valid_range"]) > 0, outside)
    assert sm["flags"].dtype == np.uint16
    assert sm["flags"].attrs["flag_meanings"].split()[0] == "input_missing"


def test_only_acquisitions_with_a_full_year_are_mapped_and_keep_their_orbit(ensemble):
    sm = predict(make_cube(start="2020-03-02"), ensemble)
    assert list(sm.indexes["time"]) == [pd.Timestamp("2021-03-14T05:30")]
    assert sm["relative_orbit"].values.tolist() == [37]
    assert sm["orbit_state"].values.tolist() == ["descending"]


def test_the_window_rule_and_the_model_are_recorded(ensemble):
    causal, published = (
        predict(make_cube(end="2021-04-01"), ensemble, window=w) for w in (None, "published")
    )
    assert causal.attrs["smgrid_window"] == "causal"
    assert published.attrs["smgrid_window"] == "published"
    assert causal.attrs["smgrid_ensemble"] == ensemble.digest
    assert not np.allclose(causal["soil_moisture"], published["soil_moisture"])


def test_sigma0_weights_refuse_gamma0(ensemble):
    cube = make_cube()
    for name in ("vv", "vh"):
        cube["base"][name].attrs["convention"] = "gamma0"
    with pytest.raises(LayoutError, match="sigma0"):
        predict(cube, ensemble)
    other = replace(ensemble, layout=replace(ensemble.layout, convention="gamma0"))
    assert predict(cube, other).sizes["time"] == 3


def test_crs_and_units_are_those_of_the_cube(ensemble):
    cube = make_cube()
    sm = predict(cube, ensemble)
    assert sm.odc.geobox == cube["base"].to_dataset().odc.geobox
    assert sm["soil_moisture"].attrs["units"] == "m3 m-3"
