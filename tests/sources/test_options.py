"""Options, assets and units of a catalog entry: what is refused, and that the entry is named."""

import pytest

from smgrid.catalog import SourceSpec
from smgrid.errors import CatalogError
from smgrid.sources.options import (
    take_asset,
    take_choice,
    take_days,
    take_integers,
    take_native_resolution,
    take_units,
)


def spec(**changes):
    fields = {"name": "s", "loader": "a:b", "provides": ("ndvi",), "origin": "test.yml, line 7"}
    return SourceSpec(**(fields | changes))


def test_given_and_default_values():
    entry = spec(options={"step": "daily", "fill_days": 16, "accept": [0]})
    assert take_choice(entry, "step", ("hourly", "daily"), default="hourly") == "daily"
    assert take_choice(spec(), "step", ("hourly", "daily"), default="hourly") == "hourly"
    assert take_days(entry, "fill_days", default=32) == 16
    assert take_days(spec(), "fill_days", default=32) == 32
    assert take_integers(entry, "accept", default=(0, 1)) == (0,)
    assert take_integers(spec(), "accept", default=(0, 1)) == (0, 1)
    assert take_units(spec(), "ndvi", default="1") == "1"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: take_choice(s, "step", ("a", "b"), default=None), "options.step of s is 'c'"),
        (lambda s: take_choice(s, "mode", ("a", "b"), default=None), "options.mode of s is miss"),
        (lambda s: take_days(s, "days", default=3), "options.days of s is -1; give whole days"),
        (lambda s: take_days(s, "flag", default=3), "options.flag of s is True"),
        (lambda s: take_integers(s, "ranks", default=(1,)), "options.ranks of s is 1; give a list"),
        (lambda s: take_integers(s, "empty", default=(1,)), "options.empty"),
        (lambda s: take_asset(s, "red"), r"assets.red of s is missing \(it has nir\)"),
        (lambda s: take_units(s, "ndvi"), "units.ndvi of s is missing"),
        (take_native_resolution, "native_resolution of s is missing; give it in metres"),
    ],
)
def test_mistakes_name_the_entry(call, message):
    options = {"step": "c", "days": -1, "flag": True, "ranks": 1, "empty": []}
    with pytest.raises(CatalogError, match=r"test\.yml, line 7: " + message):
        call(spec(options=options, assets={"nir": "B08"}))
