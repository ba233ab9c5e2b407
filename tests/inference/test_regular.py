"""Regular steps from irregular maps, against pandas pixel by pixel."""

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from smgrid.cube.overviews import write_overviews
from smgrid.cube.store import open_map, write_cube
from smgrid.cube.verify import verify
from smgrid.errors import ConfigError, NoDataError
from smgrid.grid import grid_coords
from smgrid.inference.regular import regular_product, step_edges
from smgrid.schema import describe, validate

DIMS = ("time", "y", "x")
MASKS = {"input_missing": 1, "feature_clipped": 2, "assumed_input": 4}


def make_maps(times, shape=(2, 3), *, seed=0, missing=0.4, chunk=2):
    rng = np.random.default_rng(seed)
    full = (len(times), *shape)
    moisture = rng.uniform(0, 0.6, full).astype("f4")
    empty = rng.random(full) < missing
    moisture[empty] = np.nan
    spread = np.where(empty, np.nan, rng.uniform(0.01, 0.1, full)).astype("f4")
    flags = np.where(empty, 1, rng.choice([0, 2, 4, 6], full)).astype("u2")
    grid = GeoBox.from_bbox((0, 0, 100 * shape[1], 100 * shape[0]), "EPSG:32631", resolution=100)
    parts = {"soil_moisture": moisture, "soil_moisture_std": spread, "flags": flags}
    ds = xr.Dataset(
        {
            name: describe(
                xr.DataArray(da.from_array(values, chunks=(1, chunk, chunk)), dims=DIMS), name
            )
            for name, values in parts.items()
        },
        coords={**grid_coords(grid), "time": np.array(times, "datetime64[ns]")},
        attrs={"smgrid_layout": "smgrid-1"},
    )
    ds["flags"].attrs |= {
        "flag_masks": np.array([*MASKS.values()], "u2"),
        "flag_meanings": " ".join(MASKS),
    }
    return ds


def oracle(sm, starts, ends, *, value, max_age, correlation):
    """Return the outputs of one pixel as a table, from its time series alone."""
    table = pd.DataFrame(
        {name: sm[name].values for name in ("soil_moisture", "soil_moisture_std", "flags")},
        index=sm.indexes["time"],
    )
    rows, memory = [], None
    for start, end in zip(starts, ends, strict=True):
        step = table[(table.index >= start) & (table.index < end)]
        good = step.dropna()
        if len(good):
            used = good if value == "mean" else good.tail(1)
            n, s = len(used), used["soil_moisture_std"].astype("f8")
            r = np.full((n, n), correlation)
            np.fill_diagonal(r, 1)
            flags = 0
            for mask in used["flags"].astype(int):
                flags |= mask
            memory = {
                "soil_moisture": used["soil_moisture"].astype("f8").mean(),
                "soil_moisture_std": np.sqrt(s.to_numpy() @ r @ s.to_numpy()) / n,
                "flags": flags,
                "last": used.index[-1],
            }
        row = {"soil_moisture_count": len(good)}
        age = np.nan if memory is None else (end - memory["last"]) / pd.Timedelta("1D")
        if memory is not None and (len(good) or age <= max_age):
            row |= {key: memory[key] for key in memory if key != "last"}
            row["soil_moisture_age"] = age
        else:
            flags = 0 if len(step) else MASKS["input_missing"]
            for mask in step["flags"].astype(int):
                flags |= mask
            row |= {"soil_moisture": np.nan, "soil_moisture_std": np.nan, "flags": flags}
            row["soil_moisture_age"] = np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def compare(found, sm, **how):
    starts, ends = (pd.DatetimeIndex(found["time_bnds"].values[:, at]) for at in (0, 1))
    assert (starts == found.indexes["time"]).all()
    for y, x in np.ndindex(sm.sizes["y"], sm.sizes["x"]):
        wanted = oracle(sm.isel(y=y, x=x), starts, ends, **how)
        for name in wanted:
            np.testing.assert_allclose(
                found[name].values[:, y, x], wanted[name].to_numpy("f8"), rtol=2e-6, err_msg=name
            )


@settings(deadline=None, max_examples=30)
@given(
    hours=st.sets(st.integers(0, 24 * 90), min_size=1, max_size=25),
    first=st.dates(pd.Timestamp("2023-11-01").date(), pd.Timestamp("2024-03-01").date()),
    period=st.sampled_from(["8D", "MS", "10D", "W-MON", "D"]),
    value=st.sampled_from(["mean", "last"]),
    max_age=st.sampled_from([0.0, 0.5, 3.0, 20.0, 365.0]),
    correlation=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
def test_every_pixel_is_what_pandas_makes_of_its_series(
    hours, first, period, value, max_age, correlation, seed
):
    times = [pd.Timestamp(first) + pd.Timedelta(hours=hour) for hour in sorted(hours)]
    sm = make_maps(times, seed=seed)
    how = {"value": value, "max_age": max_age, "correlation": correlation}
    found = regular_product(sm, period=period, **how)
    with dask.config.set(scheduler="synchronous"):
        compare(found.load(), sm.load(), **how)


def test_steps_of_eight_days_begin_anew_every_year():
    edges = step_edges("8D", ("2023-12-20", "2024-01-10"))
    assert [str(day.date()) for day in edges] == [
        "2023-12-19",
        "2023-12-27",
        "2024-01-01",
        "2024-01-09",
        "2024-01-17",
    ]


@pytest.mark.parametrize(
    ("period", "within", "expected"),
    [
        ("MS", ("2024-01-31", "2024-02-01"), ["2024-01-01", "2024-02-01", "2024-03-01"]),
        ("10D", ("2024-01-31", "2024-02-12"), ["2024-01-31", "2024-02-10", "2024-02-20"]),
        ("8D", ("2024-01-01", "2024-01-08"), ["2024-01-01", "2024-01-09"]),
        ("D", ("2024-02-28", "2024-02-29"), ["2024-02-28", "2024-02-29", "2024-03-01"]),
    ],
)
def test_steps_cover_the_days_and_no_more(period, within, expected):
    assert [str(day.date()) for day in step_edges(period, within)] == expected


def test_a_value_is_carried_until_it_is_too_old():
    sm = make_maps(["2024-01-06T12:00"], missing=0)
    found = regular_product(sm, within=("2024-01-01", "2024-02-10"), max_age=19.0).load()
    ages = found.soil_moisture_age.values[:, 0, 0]
    np.testing.assert_allclose(ages, [2.5, 10.5, 18.5, np.nan, np.nan, np.nan])
    assert found.soil_moisture_count.values[:, 0, 0].tolist() == [1, 0, 0, 0, 0, 0]
    assert (found.soil_moisture.values[:3] == sm.soil_moisture.values[0]).all()
    assert np.isnan(found.soil_moisture.values[3:]).all()
    assert (found.flags.values[:3] == sm.flags.values[0]).all()
    assert (found.flags.values[3:] == MASKS["input_missing"]).all()


@settings(deadline=None, max_examples=15)
@given(
    hours=st.sets(st.integers(0, 24 * 90), min_size=2, max_size=12),
    period=st.sampled_from(["8D", "MS", "2MS", "10D", "W-MON"]),
    max_age=st.sampled_from([0.0, 0.5, 12.0, 20.0, 300.0]),
    value=st.sampled_from(["mean", "last"]),
    data=st.data(),
)
def test_steps_within_some_days_are_those_of_the_whole_product(hours, period, max_age, value, data):
    times = [pd.Timestamp("2023-11-20") + pd.Timedelta(hours=hour) for hour in sorted(hours)]
    how = {"period": period, "max_age": max_age, "value": value}
    with dask.config.set(scheduler="synchronous"):
        sm = make_maps(times, (1, 3), chunk=3)
        ends = ("2023-11-20", "2024-03-31")  # steps without acquisitions at both ends
        whole = regular_product(sm, within=ends, **how).load()
        first = data.draw(st.integers(0, whole.sizes["time"] - 1))
        last = data.draw(st.integers(first, whole.sizes["time"] - 1))
        wanted = whole.isel(time=slice(first, last + 1))
        days = (wanted.time_bnds.values[0, 0], wanted.time_bnds.values[-1, 1] - np.timedelta64(1))
        xr.testing.assert_identical(regular_product(sm, within=days, **how).load(), wanted)


def test_a_value_of_the_day_before_is_carried_into_the_first_step():
    sm = make_maps(["2024-01-08T12:00"], missing=0)
    for period in ("8D", "4D"):
        found = regular_product(
            sm, period=period, within=("2024-01-09", "2024-01-16"), max_age=8.5
        ).load()
        end = (pd.Timestamp(found.time_bnds.values[0, 1]) - sm.indexes["time"][0]).total_seconds()
        assert (found.soil_moisture_age[0] == end / 86400).all()
        np.testing.assert_array_equal(found.soil_moisture[0], sm.soil_moisture[0])
        assert (found.soil_moisture_count == 0).all()


def test_eight_days_are_the_composite_calendar_in_small_letters_too():
    sm = make_maps(pd.date_range("2023-12-20", periods=9, freq="3D"))
    xr.testing.assert_identical(
        regular_product(sm, period="8d").load(), regular_product(sm, period="8D").load()
    )
    assert step_edges("8d", "2024-01-03")[0] == pd.Timestamp("2024-01-01")


def test_a_mean_of_members_has_at_most_the_combined_spread():
    # Members over dates, correlated and not: the bound of the documentation.
    rng = np.random.default_rng(3)
    for shared in (0.0, 0.7, 1.0):
        members = shared * rng.normal(size=(25, 1)) + (1 - shared) * rng.normal(size=(25, 4))
        times = pd.date_range("2024-01-01", periods=4, freq="D")
        sm = make_maps(times, (1, 1), missing=0).load()
        sm["soil_moisture_std"][:, 0, 0] = members.std(axis=0)
        spread = regular_product(sm).soil_moisture_std.values.item()
        true = members.mean(axis=1).std()
        assert true <= spread * (1 + 1e-6)
        if shared == 1:
            assert spread == pytest.approx(true, rel=1e-5)


def test_other_quantities_are_treated_alike():
    sm = make_maps(pd.date_range("2024-01-01", periods=3, freq="D"))
    sm["upper"] = sm.soil_moisture + 0.1
    sm["static"] = (("y", "x"), np.zeros((2, 3)))
    found = regular_product(sm)
    np.testing.assert_allclose(found.upper, found.soil_moisture + 0.1, rtol=1e-5)
    assert "static" not in found
    bare = regular_product(sm[["soil_moisture"]])
    assert {*bare.data_vars} == {"soil_moisture", "soil_moisture_age", "soil_moisture_count"}
    np.testing.assert_array_equal(bare.soil_moisture, found.soil_moisture)


def test_memory_depends_on_the_step_and_every_block_is_read_once():
    calls = []
    times = pd.date_range("2024-01-01", periods=12, freq="4D")
    sm = make_maps(times, (4, 4))
    blocks = sm.soil_moisture.data.map_blocks(
        lambda block: calls.append(block.shape) or block, dtype="f4", meta=np.empty(0, "f4")
    )
    sm["soil_moisture"] = sm.soil_moisture.copy(data=blocks)
    found = regular_product(sm, max_age=16.0)
    assert calls == []
    assert found.soil_moisture.chunks == ((1,) * 6, (2, 2), (2, 2))
    one = found.isel(time=5, y=slice(2), x=slice(2))
    with dask.config.set(scheduler="synchronous"):
        dask.compute(one)
        # Its own two acquisitions, and those of the two steps before that are young enough.
        assert len(calls) <= 2 * 3
        calls.clear()
        dask.compute(found)
    assert len(calls) == 12 * 4


def test_it_is_written_and_read_again_with_its_bounds(tmp_path):
    sm = make_maps(pd.date_range("2024-01-03T17:20:00", periods=9, freq="3D"), (20, 30), chunk=16)
    found = regular_product(sm, max_age=8.0)
    validate(found)
    write_cube(found, tmp_path / "r.zarr", shard=16)
    opened = open_map(tmp_path / "r.zarr")
    loaded = found.load()
    for name in ("soil_moisture", "soil_moisture_std"):
        np.testing.assert_allclose(opened[name], loaded[name], atol=0.51e-4)
    np.testing.assert_allclose(opened.soil_moisture_age, loaded.soil_moisture_age, atol=0.0051)
    for name in ("soil_moisture_count", "flags", "time", "time_bnds"):
        np.testing.assert_array_equal(opened[name], loaded[name])
    assert opened.odc.geobox == sm.odc.geobox
    assert opened.time.attrs["bounds"] == "time_bnds"
    assert opened.soil_moisture.attrs["cell_methods"] == "time: mean"
    assert opened.attrs["smgrid_regular"] == "8D"
    assert opened.time.attrs["long_name"] == "start of the step, UTC"
    assert "regular steps (8D): the mean of" in opened.attrs["summary"]
    assert "up to 8 days old when the step ends" in opened.attrs["summary"]
    assert verify(tmp_path / "r.zarr").ok
    # What was opened can be written and reduced again.
    write_cube(opened, tmp_path / "again.zarr", shard=16)
    write_overviews(tmp_path / "again.zarr", smallest=16)
    level = open_map(tmp_path / "again.zarr", level=2)
    np.testing.assert_array_equal(level.time_bnds, loaded.time_bnds)


def test_other_tools_see_the_bounds(tmp_path):
    sm = make_maps(pd.date_range("2024-01-03", periods=4, freq="5D"))
    write_cube(regular_product(sm), tmp_path / "r.zarr")
    plain = xr.open_zarr(tmp_path / "r.zarr", decode_coords="all", decode_timedelta=None)
    assert plain.time.encoding["bounds"] == "time_bnds"
    assert plain.soil_moisture_age.dtype.kind == "f"
    # Bounds are no coordinates: only `time` may name them.
    assert "coordinates" not in zarr.open_group(tmp_path / "r.zarr", mode="r").attrs
    assert plain.time_bnds.values[0].tolist() == [
        pd.Timestamp(day).value for day in ("2024-01-01", "2024-01-09")
    ]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"period": "often"}, "period is 'often', expected '8D' or an offset"),
        ({"period": "-3D"}, "period is '-3D'"),
        ({"period": "ME"}, "here the last ones; give 'MS' for calendar months"),
        ({"period": "2QE"}, "period is '2QE', but steps begin with the days of the offset"),
        ({"period": "YE"}, "'YS' for years"),
        ({"value": "median"}, "value is 'median', expected one of"),
        ({"max_age": -1}, "max_age is -1"),
        ({"max_age": float("nan")}, "max_age is nan"),
        ({"correlation": 1.5}, "correlation is 1.5"),
    ],
)
def test_wrong_arguments_are_named(how, message):
    sm = make_maps(["2024-01-01"])
    with pytest.raises(ConfigError, match=message):
        regular_product(sm, **how)


def test_wrong_maps_are_named():
    sm = make_maps(["2024-01-01", "2024-01-02"])
    with pytest.raises(ConfigError, match=r"sm needs soil_moisture .* found only flags"):
        regular_product(sm[["flags"]])
    with pytest.raises(ConfigError, match=r"found \('y', 'x'\)"):
        regular_product(sm.isel(time=0))
    with pytest.raises(ConfigError, match="times of sm are not increasing"):
        regular_product(sm.isel(time=[1, 0]))
    with pytest.raises(NoDataError, match="sm holds no acquisition"):
        regular_product(sm.isel(time=slice(0)))
    empty = regular_product(sm.isel(time=slice(0)), within=("2024-01-01", "2024-01-16"))
    assert np.isnan(empty.soil_moisture).all()
    assert empty.sizes["time"] == 2
