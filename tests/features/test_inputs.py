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
