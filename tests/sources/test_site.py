"""Values that the user states for a site."""

import numpy as np
import pytest

from smgrid.catalog import SourceSpec
from smgrid.errors import CatalogError, SchemaError
from smgrid.sources import load_source
from smgrid.windows import Period
from tests.builders import utm_grid

GRID = utm_grid((4, 5), 100)
PERIOD = Period.parse(("2024-03-01", "2024-03-31"))


def site(*provides, **changes):
    defaults = {
        "loader": "smgrid.sources.site:load",
        "note": "field survey",
        "origin": "test.yml, line 1",
    }
    return SourceSpec(name="site", provides=provides, **{**defaults, **changes})


def load(spec, **kwargs):
    return load_source(spec, GRID, PERIOD, **kwargs)


def test_values_cover_the_grid_and_are_marked_as_assumed():
    options = {"values": {"sand": 350, "clay": 18.5}}
    ds = load(site("sand", "clay", options=options, units={"clay": "percent"}), chunks=3)
    assert ds.odc.geobox == GRID
    assert ds["sand"].chunks == ((3, 1), (3, 2))
    np.testing.assert_array_equal(ds["sand"], np.full((4, 5), 350, "float32"))
    np.testing.assert_allclose(ds["clay"], 185)
    assert ds["clay"].attrs["units"] == "g kg-1"
    for da in ds.data_vars.values():
        assert da.attrs["assumed"] == 1
        assert da.attrs["assumed_note"] == "field survey"


def test_angles_per_relative_orbit():
    ds = load(site("angle", options={"angle": {110: 43.5, 88: 38}}))
    assert ds["angle"].dims == ("relative_orbit",)
    assert ds["relative_orbit"].values.tolist() == [88, 110]
    assert ds["relative_orbit"].dtype == "int16"
    np.testing.assert_array_equal(ds["angle"], np.array([38, 43.5], "float32"))
    assert ds["angle"].attrs["assumed"] == 1


def test_one_angle_serves_every_orbit_and_an_unknown_one():
    angle = load(site("angle", options={"angle": 38.5}))["angle"]
    assert angle["relative_orbit"].values.tolist() == list(range(176))
    assert set(angle.values.tolist()) == {38.5}


@pytest.mark.parametrize(
    ("provides", "changes", "message"),
    [
        (["sand"], {"options": {"values": {"sand": 350}}, "note": " "}, "note of site is missing"),
        (["sand"], {}, r"options\.values\.sand of site is missing; state its value"),
        (["angle"], {}, r"options\.angle of site is missing; state it in degrees"),
        (["tp"], {"options": {"values": {"tp": 0.001}}}, "tp of site changes in time"),
        (
            ["sand"],
            {"options": {"values": {"sand": 350, "sant": 1}}},
            r"options\.values\.sant of site is not in its provides; did you mean 'sand'",
        ),
        (["sand"], {"options": {"values": {"sand": "much"}}}, "give a table of numbers"),
        (["sand"], {"options": {"values": {"sand": True}}}, "give a table of numbers"),
        (["sand"], {"options": {"values": 350}}, r"options\.values of site is 350; give a table"),
        (["angle"], {"options": {"angle": {176: 38}}}, "176 is not a relative orbit"),
        (["angle"], {"options": {"angle": {"88": 38}}}, "'88' is not a relative orbit"),
        (["angle"], {"options": {"angle": "steep"}}, "give a table of numbers"),
        (
            ["sand"],
            {"options": {"value": {}}},
            r"options\.value of site: unknown key; did you mean",
        ),
    ],
)
def test_what_cannot_be_stated_is_refused(provides, changes, message):
    with pytest.raises(CatalogError, match=rf"test\.yml, line 1: .*{message}"):
        load(site(*provides, **changes))


def test_impossible_values_are_refused():
    with pytest.raises(SchemaError, match=r"sand in test\.yml, line 1: found 3500, expected 0 to"):
        load(site("sand", options={"values": {"sand": 3500}}))
    with pytest.raises(SchemaError, match=r"angle in test\.yml, line 1: found 0.6"):
        load(site("angle", options={"angle": {88: 0.6}}))
    with pytest.raises(SchemaError, match="no exact conversion from 'mm'"):
        load(site("sand", options={"values": {"sand": 350}}, units={"sand": "mm"}))
