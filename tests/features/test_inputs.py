import numpy as np
import pytest
import xarray as xr

from smgrid.errors import LayoutError, WindowError
from smgrid.features.inputs import model_inputs
from smgrid.features.layout import get_layout
from tests.cubes import make_cube

LAYOUT = get_layout("released-9km")


def without(cube, node, name):
    return xr.DataTree.from_dict(
        {
            f"/{k}": (n.to_dataset().drop_vars(name) if k == node else n.to_dataset())
            for k, n in cube.children.items()
        }
    )


def test_a_missing_variable_is_named_with_what_is_there():
    with pytest.raises(LayoutError, match=r"no clay, which is needed; it has .*angle"):
        model_inputs(without(make_cube(), "base", "clay"), LAYOUT)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("convention", "gamma0", r"vv .* convention 'gamma0'.* trained with 'sigma0'"),
        ("averaging", "linear", r"vv .* averaging 'linear'.* trained with 'db'"),
    ],
)
def test_backscatter_of_another_kind_is_refused(attribute, value, message):
    cube = make_cube()
    cube["base"]["vv"].attrs[attribute] = value
    with pytest.raises(LayoutError, match=message):
        model_inputs(cube, LAYOUT)


def replaced(cube, node, name, change):
    """Return the cube with one variable changed, in a node with coordinates of its own."""
    moved = change(cube[node][name].load())
    rest = {f"/{k}": n.to_dataset() for k, n in without(cube, node, name).children.items()}
    return xr.DataTree.from_dict({**rest, "/other": moved.to_dataset(name=name)})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sand", lambda da: da.assign_coords(x=da.x + 3200), "sand lies elsewhere along x than vv"),
        ("elevation", lambda da: da.sortby("y"), "elevation lies elsewhere along y than vv"),
        ("clay", lambda da: da[:, 2:], r"clay lies elsewhere along x .* expected \d+ from"),
        ("bdod", lambda da: da.odc.assign_crs("EPSG:32633"), "bdod is in the CRS EPSG:32633, vv"),
        ("angle", lambda da: da[[1, 0, 2]], "time of angle does not increase"),
        ("angle", lambda da: da[:2], "angle lies elsewhere along time than vv: 2 from"),
        (
            "vh",
            lambda da: da.assign_coords(time=da.time + np.timedelta64(1, "h")),
            "vh lies elsewhere along time",
        ),
    ],
)
def test_what_lies_elsewhere_than_backscatter_is_refused(name, change, message):
    with pytest.raises(LayoutError, match=message):
        model_inputs(replaced(make_cube(), "base", name, change), LAYOUT)


def test_a_variable_in_two_nodes_is_refused():
    cube = make_cube()
    cube["soil"] = cube["base"].to_dataset()[["sand"]]
    with pytest.raises(LayoutError, match="the cube has 2 variables sand, in nodes of the sizes"):
        model_inputs(cube, LAYOUT)


@pytest.mark.parametrize(
    ("node", "name", "units"),
    [("x90", "tp", "mm"), ("x90", "t2m", "degC"), ("base", "sand", "%"), ("base", "vv", "1")],
)
def test_other_units_are_refused(node, name, units):
    cube = make_cube()
    found = next(n for n in cube.children.values() if name in n.data_vars)
    found[name].attrs["units"] = units
    message = f"{name} of the cube is in '{units}', expected '.+'; convert it"
    with pytest.raises(LayoutError, match=message):
        model_inputs(cube, LAYOUT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ds: ds.isel(time=slice(0)), "vv of the cube is empty along time"),
        (lambda ds: ds.isel(x=slice(0)), "vv of the cube is empty along x"),
        (lambda ds: ds.isel(time=[1, 0, 2]), "time of vv does not increase"),
        (lambda ds: ds.isel(time=[0, 0, 2]), "time of vv does not increase"),
        (lambda ds: ds.convert_calendar("noleap"), "time of vv is of the type object"),
        (
            lambda ds: ds.assign_coords(time=ds.indexes["time"].tz_localize("UTC")),
            "time of vv is of the type datetime64.* without a time zone",
        ),
    ],
)
def test_times_that_are_none_are_refused(change, message):
    cube = make_cube()
    groups = {f"/{k}": n.to_dataset() for k, n in cube.children.items()}
    groups["/base"] = change(groups["/base"])
    with pytest.raises(LayoutError, match=message):
        model_inputs(xr.DataTree.from_dict(groups), LAYOUT)


@pytest.mark.parametrize("days", ["x", None, 0, -5])
def test_composites_without_a_length_are_refused(days):
    cube = make_cube()
    found = next(n for n in cube.children.values() if "ndvi" in n.data_vars)
    found["ndvi"].attrs["composite_days"] = days
    with pytest.raises(LayoutError, match=r"has composite_days .* expected 16 or 8"):
        model_inputs(cube, LAYOUT)


def until(cube, day):
    groups = {f"/{k}": n.to_dataset() for k, n in cube.children.items()}
    return xr.DataTree.from_dict(
        {k: ds.sel(date=slice(None, day)) if "date" in ds.dims else ds for k, ds in groups.items()}
    )


def test_series_that_end_too_early_are_named_as_the_cause(caplog):
    cube = make_cube()
    times = cube["base"]["time"].values
    message = r"none of the 3 .* the series of the cube end with .* `smgrid update`"
    with pytest.raises(WindowError, match=message):
        model_inputs(until(cube, times[0] - np.timedelta64(40, "D")), LAYOUT)
    assert not caplog.messages
    model_inputs(cube, LAYOUT)
    assert not caplog.messages
    last = times[-1].astype("datetime64[D]") - np.timedelta64(1, "D")
    inputs = model_inputs(until(cube, last), LAYOUT.with_window("causal"))
    assert inputs.windows.complete.tolist() == [True, True, False]
    assert "1 of 3 acquisitions are not mapped, the first of them 2021" in caplog.text


def test_as_of_is_named_as_the_cause():
    with pytest.raises(WindowError, match="too little was there as of 2019-01-01"):
        model_inputs(make_cube(), LAYOUT, as_of="2019-01-01")


def test_no_acquisition_with_a_year_behind_it_names_the_first_mappable_date():
    with pytest.raises(WindowError, match="can be mapped is 2021-05-03"):
        model_inputs(make_cube(start="2020-05-01"), LAYOUT)


def test_only_acquisitions_with_a_full_year_are_complete():
    inputs = model_inputs(make_cube(start="2020-03-02"), LAYOUT)
    assert inputs.windows.complete.tolist() == [False, False, True]


@pytest.mark.parametrize("factors", [(1, 1), (2, 9), (3, 9), (4, 9), (2, 90)])
def test_cells_under_a_block_are_the_cells_that_contain_its_pixels(factors):
    """Index arithmetic against a geometric lookup, for series that do and do not nest mutually."""
    inputs = model_inputs(make_cube(factors=factors), LAYOUT)
    y, x = slice(3, 11), slice(5, 17)
    for name, series in inputs.series.items():
        cells = inputs.cells(name, y, x)
        part = series.isel(y=cells.y, x=cells.x)
        base = inputs.pixels["vv"].isel(y=y, x=x)
        for dim, index in (("y", cells.row), ("x", cells.column)):
            containing = part[dim].sel({dim: base[dim].values}, method="nearest").values
            np.testing.assert_array_equal(part[dim].values[index], containing)


def test_stated_values_are_reported_as_assumed():
    cube = make_cube()
    cube["base"]["sand"].attrs["assumed"] = 1
    assert model_inputs(cube, LAYOUT).assumed == ("sand",)
