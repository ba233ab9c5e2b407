"""What any loader, a user's as well, has to return."""

from datetime import date

import dask.array
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from smgrid import schema
from smgrid.catalog import SourceSpec
from smgrid.errors import CatalogError, ConfigError, NoDataError, SchemaError, SourceError
from smgrid.grid import grid_coords
from smgrid.sources import load_source
from smgrid.windows import Period
from tests.builders import utm_grid

GRID = utm_grid((4, 5), 100)
PERIOD = Period.parse(("2024-03-01", "2024-03-31"))


def scene(name="vv", *, grid=GRID, times=("2024-03-01", "2024-03-02")):
    data = dask.array.full((len(times), *grid.shape), -10, dtype="float32", chunks=(1, 4, 5))
    coords = {
        "time": pd.DatetimeIndex(times).as_unit("ns"),
        **grid_coords(grid),
        "platform": ("time", ["a"] * len(times)),
        "orbit_state": ("time", ["ascending"] * len(times)),
        "relative_orbit": ("time", np.full(len(times), 88, "int16")),
    }
    da = xr.DataArray(data, dims=("time", "y", "x"), coords=coords)
    return schema.describe(da, name).to_dataset()


def static(name="sand"):
    data = dask.array.full(tuple(GRID.shape), 350, dtype="float32")
    da = xr.DataArray(data, dims=("y", "x"), coords=grid_coords(GRID))
    return schema.describe(da, name).to_dataset()


@pytest.fixture
def load_with(monkeypatch):
    """Load with a loader that returns what the test gives."""

    def load(result, provides=("vv",), period=PERIOD, **changes):
        def loader(spec, grid, period, *, chunks):
            return result

        monkeypatch.setattr("smgrid.demo_loader", loader, raising=False)
        spec = SourceSpec(
            "mine", "smgrid:demo_loader", provides, origin="test.yml, line 1", **changes
        )
        return load_source(spec, GRID, period)

    return load


def test_only_what_is_provided_is_passed_on(load_with):
    ds = load_with(scene("vv").assign(vh=scene("vh")["vh"]))
    assert list(ds.data_vars) == ["vv"]
    assert set(load_with(static(), ("sand",)).data_vars) == {"sand"}


def without_crs(ds):
    bare = ds.drop_vars("spatial_ref")
    return bare.assign_coords(y=bare["y"].values, x=bare["x"].values)


def on_another_crs(ds):
    return ds.drop_vars("spatial_ref").odc.assign_crs("EPSG:32632")


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (scene()["vv"], "returned DataArray, expected an xarray.Dataset"),
        (scene("vh"), r"lacks 'vv' \(it has vh\)"),
        (scene().compute(), "holds vv in memory, expected a lazy dask array"),
        (scene(grid=utm_grid((4, 5), 100, left=500_050)), "vv on another grid than the target"),
        (scene().isel(x=slice(1, None)), r"vv on another grid than the target \(x differs\)"),
        (on_another_crs(scene()), "vv on another grid"),
        (without_crs(scene()), "has no CRS for vv"),
        (scene().drop_vars("platform"), "has no coordinate platform along time"),
        (scene(times=("2024-03-02", "2024-03-01")), "a time axis that is not of increasing dates"),
        (scene(times=("2024-03-01", "2024-03-01")), "has 2024-03-01 00:00:00 twice along time"),
        (scene().drop_vars("time"), "a time axis that is not of increasing dates"),
    ],
)
def test_a_loader_that_breaks_the_rules_is_named(load_with, result, message):
    with pytest.raises(
        SourceError, match=rf"test\.yml, line 1: what smgrid:demo_loader.*{message}"
    ):
        load_with(result)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ds: ds.assign(vv=ds["vv"].assign_attrs(units="1")), "units '1', expected 'dB'"),
        (lambda ds: ds.assign(vv=ds["vv"].astype("float64")), "vv is float64, expected float32"),
        (lambda ds: ds.transpose("y", "x", "time"), "vv has the dims"),
    ],
)
def test_schema_errors_name_the_loader(load_with, change, message):
    with pytest.raises(SchemaError, match=rf"test\.yml, line 1: smgrid:demo_loader: .*{message}"):
        load_with(change(scene()))


@pytest.mark.parametrize(("first", "last"), [(date(2024, 4, 1), None), (None, date(2024, 2, 29))])
def test_a_period_outside_of_the_record_is_refused_before_loading(load_with, first, last):
    message = r"mine has data from .* not for 2024-03-01/2024-03-31; .* than test\.yml, line 1"
    with pytest.raises(NoDataError, match=message):
        load_with(None, first_day=first, last_day=last)


def test_a_period_that_meets_the_record_is_loaded(load_with):
    load_with(scene(), first_day=date(2024, 3, 31), last_day=date(2024, 3, 31))


def test_a_loader_that_does_not_exist():
    spec = SourceSpec("mine", "smgrid.nowhere:load", ("vv",), origin="test.yml, line 1")
    with pytest.raises(CatalogError, match=r"'smgrid\.nowhere:load' of mine cannot be"):
        load_source(spec, GRID, PERIOD)


def test_a_missing_credential_is_found_before_loading(load_with, monkeypatch):
    monkeypatch.delenv("SMGRID_TEST_TOKEN", raising=False)
    with pytest.raises(ConfigError, match=r"test\.yml, line 1: mine needs .* SMGRID_TEST_TOKEN"):
        load_with(None, credentials=("SMGRID_TEST_TOKEN",))


@pytest.mark.parametrize("observed", [("date", [1, 0]), ("y", [True] * 4), ((), True)])
def test_what_a_series_says_of_its_dates_has_to_be_understood(load_with, observed):
    ds = static("ndvi").expand_dims(date=pd.DatetimeIndex(["2024-03-05", "2024-03-13"]))
    message = r"has a coordinate observed that is not of booleans along date"
    with pytest.raises(SourceError, match=message):
        load_with(ds.assign_coords(observed=observed), ("ndvi",))
    assert load_with(ds.assign_coords(observed=("date", [True, False])), ("ndvi",)).observed.any()


def test_a_bridge_and_a_legend_stay_with_their_variables(load_with):
    sand = static()["sand"].assign_attrs(bridge_rmse=0.02, flag_meanings="a b", TITLE="a file")
    attrs = load_with(sand.to_dataset(), ("sand",))["sand"].attrs
    assert (attrs["bridge_rmse"], attrs["flag_meanings"]) == (0.02, "a b")
    assert "TITLE" not in attrs
