"""Which pixels count: the default, every condition, both layers together, mistakes."""

import numpy as np
import pytest
import xarray as xr

from smgrid.catalog import SourceSpec
from smgrid.errors import CatalogError
from smgrid.sources.pixel_rule import CONDITIONS, PixelRule, take_rule

GOOD = 0b00 | 1 << 2 | 1 << 6 | 1 << 11  # of land, with little aerosol
BITS = {
    "cloud": 0b10,
    "mixed_clouds": 1 << 10,
    "adjacent_cloud": 1 << 8,
    "snow": 1 << 14,
    "shadow": 1 << 15,
    "high_aerosol": 0b11 << 6,
}
ASSETS = {"ndvi": "n", "quality": "q", "reliability": "r"}


def used(rule, quality, reliability=0):
    layers = {"ndvi": 0.5, "quality": np.asarray(quality), "reliability": reliability}
    layers = xr.Dataset({name: xr.DataArray(values) for name, values in layers.items()})
    return np.isfinite(rule.select(layers).values).tolist()


def rule(product="mod13", assets=ASSETS, **options):
    spec = SourceSpec(
        name="vi",
        loader="a:b",
        provides=("ndvi",),
        assets=assets,
        options=options,
        origin="test.yml, line 7",
    )
    return take_rule(spec, product)


def test_the_default_rejects_what_is_not_the_surface():
    words = [GOOD, *(GOOD | bits for bits in BITS.values()), GOOD | 0b01, GOOD | 0b11, 65535]
    expected = [True, False, False, True, False, False, True, True, False, False]
    assert used(rule(), words) == expected


def test_a_missing_word_is_not_used():
    assert used(rule(), [float(GOOD), np.nan]) == [True, False]
    assert used(rule(reject=[]), [np.nan]) == [False]


@pytest.mark.parametrize("name", list(BITS))
def test_each_condition_by_its_name(name):
    words = [GOOD | bits for bits in BITS.values()]
    found = used(rule(reject=[name]), words)
    assert found == [condition != name for condition in BITS]


def test_every_condition_is_tested_here():
    assert {*BITS, "water"} == set(CONDITIONS)


@pytest.mark.parametrize(("product", "land"), [("mod13", {1, 2, 4}), ("vnp13", {0, 1, 4, 5, 6, 7})])
def test_water_of_each_product(product, land):
    words = [code << 11 for code in range(8)]
    assert used(rule(product, reject=["water"]), words) == [code in land for code in range(8)]
    assert all(used(rule(product), words))


def test_usefulness():
    words = [GOOD & ~(0b1111 << 2) | score << 2 for score in range(16)]
    assert all(used(rule(), words))  # known issue PM_MOD13_16301
    assert used(rule(max_usefulness=4), words) == [score <= 4 for score in range(16)]


@pytest.mark.parametrize(("product", "accepted"), [("mod13", {0, 1}), ("vnp13", {0, 1, 2, 3})])
def test_both_layers_have_to_agree(product, accepted):
    ranks = np.arange(-4, 12)
    found = used(rule(product), np.full(ranks.shape, GOOD), ranks)
    assert found == [rank in accepted for rank in ranks]
    assert not any(used(rule(product), np.full(ranks.shape, GOOD | BITS["shadow"]), ranks))
    assert used(rule(product, accept_reliability=[3]), [GOOD] * 16, ranks)[7]


def test_layers_that_are_absent_do_not_count():
    layers = xr.Dataset({"ndvi": xr.DataArray([0.5, np.nan])})
    assert np.isfinite(PixelRule("mod13", (0,)).select(layers).values).tolist() == [True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reject": "cloud"}, r"options\.reject of vi is 'cloud'; give a list of names"),
        ({"reject": ["clouds"]}, r"options\.reject of vi has 'clouds'; did you mean 'cloud'"),
        ({"reject": [3]}, r"options\.reject of vi has 3; known are adjacent_cloud"),
        ({"max_usefulness": 16}, r"options\.max_usefulness of vi is 16; give a whole number of 0"),
        ({"max_usefulness": True}, r"options\.max_usefulness of vi is True"),
        ({"accept_reliability": 0}, r"options\.accept_reliability of vi is 0; give a list of int"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(CatalogError, match=f"^test.yml, line 7: {message}"):
        rule(**options)


@pytest.mark.parametrize(
    ("option", "asset"),
    [("reject", "quality"), ("max_usefulness", "quality"), ("accept_reliability", "reliability")],
)
def test_an_option_needs_its_layer(option, asset):
    assets = {name: key for name, key in ASSETS.items() if name != asset}
    with pytest.raises(CatalogError, match=rf"line 7: {option} of vi needs assets\.{asset}; add"):
        rule(assets=assets, **{option: []})
