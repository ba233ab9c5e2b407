"""OPERA RTC-S1: bursts become passes, static layers become rasters per orbit."""

import numpy as np
import pytest

from smgrid.cube.build import load_cube
from smgrid.errors import CatalogError, SchemaError, SourceError
from smgrid.schema import validate
from smgrid.sources import load_source
from smgrid.sources.reader import AssetDriver
from smgrid.windows import Period
from tests.builders import stac_spec, write_catalog
from tests.sources.opera_builders import (
    BURSTS,
    GRID,
    RTC,
    STATIC,
    one_pass,
    write_burst,
    write_layers,
)

PERIOD = Period.parse(("2024-03-01", "2024-03-31"))


def open_rtc(folder, *items, assets=RTC, **changes):
    href = write_catalog(folder / "stac", "rtc", items)
    return load_source(stac_spec(href, collection="rtc", assets=assets, **changes), GRID, PERIOD)


def static_spec(folder, *items, **changes):
    defaults = {
        "collection": "static",
        "loader": "smgrid.sources.opera:load_static",
        "provides": tuple(STATIC),
        "assets": STATIC,
        "units": {"angle": "degree", "gamma0_to_sigma0": "1"},
        "convention": None,
    }
    href = write_catalog(folder / "static", "static", items)
    return stac_spec(href, **{**defaults, **changes})


def open_static(folder, *items, **changes):
    return load_source(static_spec(folder, *items, **changes), GRID, PERIOD)


def test_all_bursts_of_a_pass_are_one_step(tmp_path):
    first = one_pass(tmp_path)
    second = one_pass(tmp_path, "2024-03-11", unit="C", value=0.2)
    ds = open_rtc(tmp_path, *second, *first).compute()
    assert ds["time"].values.astype("datetime64[s]").astype(str).tolist() == [
        "2024-03-05T17:32:06",
        "2024-03-11T17:32:06",
    ]
    assert ds["platform"].values.tolist() == ["sentinel-1a", "sentinel-1c"]
    assert ds["relative_orbit"].values.tolist() == [88, 88]
    assert ds["orbit_state"].values.tolist() == ["ascending", "ascending"]
    np.testing.assert_allclose(ds["vv"][0], -10, atol=1e-5)
    np.testing.assert_allclose(ds["vh"][1], 10 * np.log10(0.05), atol=1e-5)
    validate(ds)


def test_the_earlier_burst_wins_where_two_overlap_and_no_hole_is_left(tmp_path):
    one, other = "T088-187178-IW1", "T088-187178-IW2"
    items = [
        write_burst(tmp_path, one, "2024-03-05T17:32:06", value=0.1),
        write_burst(tmp_path, other, "2024-03-05T17:32:07", value=1.0),
    ]
    vv = open_rtc(tmp_path, *items, provides=("vv",))["vv"].values[0]
    # Columns 12 to 15: two of the first burst at -10 dB, two of the second at 0 dB.
    np.testing.assert_allclose(vv[0], [-10, -10, -10, -5, 0, 0], atol=1e-5)
    np.testing.assert_allclose(vv[2], vv[0], atol=1e-5)  # half of its rows are there
    assert np.isnan(vv[3]).all()


def test_of_a_burst_that_was_made_again_the_later_product_stays(tmp_path):
    burst, start = "T088-187178-IW1", "2024-03-05T17:32:06"
    items = [
        write_burst(tmp_path, burst, start, value=0.1, made="20250101T000000Z"),
        write_burst(tmp_path, burst, start, value=1.0, made="20240306T000000Z"),
    ]
    ds = open_rtc(tmp_path, *items)
    assert ds.sizes["time"] == 1
    np.testing.assert_allclose(ds["vv"].values[0, :2, :3], -10, atol=1e-5)


def test_pixels_in_layover_and_shadow_are_left_out(tmp_path):
    hidden = [(row, column, 1 + (row + column) % 3) for row in range(4) for column in range(3)]
    items = one_pass(tmp_path, masked=hidden)
    seen = open_rtc(tmp_path, *items)["vv"].values[0]
    assert np.isnan(seen[0, 0])  # a quarter is left
    assert np.isfinite(seen[1:]).all()
    whole = open_rtc(tmp_path / "all", *items, assets={"vv": "0_VV", "vh": "0_VH"})
    assert np.isfinite(whole["vv"].values).all()


def test_a_mask_that_an_item_lacks_is_refused(tmp_path):
    items = one_pass(tmp_path)
    del items[2].assets["0_mask"]
    with pytest.raises(SourceError, match=r"test.yml, line 1: OPERA.*187179-IW1.*no asset '0_mask"):
        open_rtc(tmp_path, *items)


def test_one_file_of_each_burst_tells_where_the_others_lie(tmp_path, monkeypatch):
    opened = []
    read = AssetDriver.read_geobox

    def count(driver, href):
        opened.append(href)
        return read(driver, href)

    monkeypatch.setattr(AssetDriver, "read_geobox", count)
    days = ("2024-03-05", "2024-03-17", "2024-03-29")
    ds = open_rtc(tmp_path, *(item for day in days for item in one_pass(tmp_path, day)))
    assert len(opened) == len(BURSTS)
    np.testing.assert_allclose(ds["vv"], np.full((3, 4, 6), -10), atol=1e-5)


def test_static_layers_are_averaged_per_orbit(tmp_path):
    factors = np.array([0.4, 0.9], "float32")
    items = [
        *(write_layers(tmp_path, burst, 0.8, 39.0) for burst in BURSTS),
        write_layers(tmp_path, "T110-234890-IW3", np.tile(factors, (16, 12)), 43.0),
    ]
    ds = open_static(tmp_path, *items)
    assert ds["relative_orbit"].values.tolist() == [88, 110]
    assert ds["orbit_state"].values.tolist() == ["ascending", "descending"]
    np.testing.assert_allclose(ds["angle"].values[:, 0, 0], [39, 43], atol=1e-4)
    np.testing.assert_allclose(ds["gamma0_to_sigma0"].values[0], 0.8, rtol=1e-5)
    # The mean of decibels is the geometric mean.
    np.testing.assert_allclose(ds["gamma0_to_sigma0"].values[1], 0.6, rtol=1e-5)
    assert ds["gamma0_to_sigma0"].attrs["averaging"] == "db"
    validate(ds.compute())
    linear = open_static(tmp_path / "linear", *items, options={"average": "linear"})
    np.testing.assert_allclose(linear["gamma0_to_sigma0"].values[1], 0.65, rtol=1e-5)
    assert linear["gamma0_to_sigma0"].attrs["averaging"] == "linear"


def test_layers_made_again_replace_the_old_ones(tmp_path):
    burst = "T088-187178-IW1"
    items = [
        write_layers(tmp_path, burst, 0.5, since="20250101"),
        write_layers(tmp_path, burst, 0.8),
    ]
    ds = open_static(tmp_path, *items)
    np.testing.assert_allclose(ds["gamma0_to_sigma0"].values[0, 0, 0], 0.5, rtol=1e-5)


def test_the_factor_of_pixels_in_layover_and_shadow_is_left_out(tmp_path):
    burst, factor = "T088-187178-IW1", np.full((10, 14), 0.8, "float32")
    factor[0, 0], factor[0, 1], factor[0, 2] = 5.0, 7.0, 9.0
    hidden = [(0, column, reason) for column, reason in enumerate((1, 2, 3))]
    item = write_layers(tmp_path, burst, factor, masked=hidden)
    whole = open_static(tmp_path, item)
    assert whole["gamma0_to_sigma0"].values[0, 0, 0] > 1
    ds = open_static(tmp_path / "masked", item, assets=STATIC | {"mask": "0_mask"})
    np.testing.assert_allclose(ds["gamma0_to_sigma0"].values[0, :2, :3], 0.8, rtol=1e-5)
    np.testing.assert_allclose(ds["angle"].values[0, :2, :3], 39, rtol=1e-5)
    assert set(ds.data_vars) == {"angle", "gamma0_to_sigma0"}


def test_the_angle_alone(tmp_path):
    ds = open_static(tmp_path, write_layers(tmp_path, "T088-187178-IW1", 0.8), provides=("angle",))
    assert list(ds.data_vars) == ["angle"]


def test_a_missing_factor_stays_missing_and_decibels_are_refused(tmp_path):
    ds = open_static(tmp_path, write_layers(tmp_path, "T088-187178-IW1", 0.0))
    assert np.isnan(ds["gamma0_to_sigma0"].values).all()
    ds = open_static(tmp_path / "db", write_layers(tmp_path / "db", "T088-187178-IW1", -0.97))
    with pytest.raises(SchemaError, match=r"gamma0_to_sigma0 of s1 .*found -0.97"):
        ds["gamma0_to_sigma0"].compute()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"provides": ("angle", "vv")}, "s1 cannot provide 'vv'"),
        ({"units": {"gamma0_to_sigma0": "dB"}}, 'units.gamma0_to_sigma0 of s1 must be "1"'),
        ({"options": {"average": "power"}}, "options.average of s1 is 'power'"),
        ({"assets": {"angle": "a"}}, "assets.gamma0_to_sigma0 of s1 is missing"),
    ],
)
def test_what_an_entry_has_wrong_is_said(tmp_path, changes, message):
    item = write_layers(tmp_path, "T088-187178-IW1", 0.8)
    with pytest.raises(CatalogError, match=f"test.yml, line 1: {message}"):
        open_static(tmp_path, item, **changes)


CATALOG = """
smgrid_catalog: 1
name: opera
title: Bursts and their layers
sources:
  rtc:
    loader: smgrid.sources.sentinel1:load_stac
    provides: [vv, vh]
    stac: {href: rtc/catalog.json, collection: rtc}
    assets: {vv: 0_VV, vh: 0_VH, mask: 0_mask}
    units: {vv: "1", vh: "1"}
    convention: gamma0
    native_resolution: 30
  static:
    loader: smgrid.sources.opera:load_static
    provides: [angle, gamma0_to_sigma0]
    stac: {href: static/catalog.json, collection: static}
    assets: {angle: 0_incidence_angle, gamma0_to_sigma0: 0_rtc_anf_gamma0_to_sigma0}
    units: {angle: degree, gamma0_to_sigma0: "1"}
    native_resolution: 30
"""


def test_a_cube_of_sigma0_by_the_factor_of_the_product(tmp_path):
    # Of the last burst there are no layers: its corner of the region has no factor.
    names = list(BURSTS)
    write_catalog(tmp_path / "rtc", "rtc", one_pass(tmp_path))
    layers = [write_layers(tmp_path, burst, 0.8, 39.0) for burst in names[:3]]
    write_catalog(tmp_path / "static", "static", layers)
    path = tmp_path / "opera.yml"
    path.write_text(CATALOG)
    base = load_cube(GRID, PERIOD, catalog=path, convention="sigma0")["base"].to_dataset()
    # Factor and gamma0 are exact averages of the same pixels.
    sigma0 = base["vv"].values[0]
    assert np.isnan(sigma0[3, 4:]).all()
    np.testing.assert_allclose(sigma0[:2], -10 + 10 * np.log10(0.8), atol=1e-5)
    np.testing.assert_allclose(sigma0[3, :3], -10 + 10 * np.log10(0.8), atol=1e-5)
    assert base["vv"].attrs["convention"] == "sigma0"
    assert "approximate" not in base["vv"].attrs
    assert base["gamma0_to_sigma0"].dims == ("time", "y", "x")
    np.testing.assert_allclose(base["angle"].values[0, 0], 39, atol=1e-4)
    path.write_text(CATALOG.replace("[angle, gamma0_to_sigma0]", "[angle]"))
    base = load_cube(GRID, PERIOD, catalog=path, convention="sigma0")["base"].to_dataset()
    np.testing.assert_allclose(
        base["vv"].values[0, 0], -10 + 10 * np.log10(np.cos(np.deg2rad(39))), atol=1e-4
    )
    assert base["vv"].attrs["approximate"] == 1
