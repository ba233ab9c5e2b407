import numpy as np
import pytest
import xarray as xr

from smgrid.cube.convention import convert_convention
from smgrid.errors import SourceError
from tests.cubes import make_cube


def gamma0_base():
    base = make_cube()["base"].to_dataset()
    for name in ("vv", "vh"):
        base[name].attrs["convention"] = "gamma0"
    return base


def test_sigma0_is_gamma0_times_the_cosine_of_the_angle():
    base = gamma0_base()
    sigma0 = convert_convention(base, "sigma0")
    power = 10 ** (base["vv"] / 10) * np.cos(np.deg2rad(base["angle"]))
    np.testing.assert_allclose(10 ** (sigma0["vv"] / 10), power, rtol=1e-5)
    assert sigma0["vv"].attrs["convention"] == "sigma0"
    assert sigma0["vv"].attrs["approximate"] == 1
    assert sigma0["vv"].dtype == np.float32
    back = convert_convention(sigma0, "gamma0")
    np.testing.assert_allclose(back["vh"], base["vh"], atol=1e-5)


def test_what_is_right_already_stays_and_is_not_flagged():
    base = make_cube()["base"].to_dataset()
    assert convert_convention(base, "sigma0") is base


def test_without_an_angle_there_is_no_conversion():
    with pytest.raises(SourceError, match="no source gives the incidence angle"):
        convert_convention(gamma0_base().drop_vars("angle"), "sigma0")


def with_factor(base, value=0.8, *, averaging="db"):
    factor = xr.full_like(base["vv"], value).rename("gamma0_to_sigma0")
    factor.attrs = {"averaging": averaging}
    return base.assign(gamma0_to_sigma0=factor)


def test_the_factor_of_the_product_comes_before_the_angle():
    base = with_factor(gamma0_base())
    sigma0 = convert_convention(base, "sigma0")
    for name in ("vv", "vh"):
        # 10 log10(0.8) dB; the cosine of the angle would be another number.
        np.testing.assert_allclose(sigma0[name] - base[name], -0.96910, atol=1e-4)
        assert sigma0[name].attrs["convention"] == "sigma0"
        assert "approximate" not in sigma0[name].attrs
        assert sigma0[name].attrs["comment"] == (
            "from gamma0 by the product's own factor (gamma0_to_sigma0)"
        )
        assert sigma0[name].dtype == np.float32
    back = convert_convention(sigma0, "gamma0")
    np.testing.assert_allclose(back["vv"], base["vv"], atol=1e-5)
    assert back["vv"].attrs["convention"] == "gamma0"


def test_the_factor_alone_is_enough():
    base = with_factor(gamma0_base()).drop_vars("angle")
    assert convert_convention(base, "sigma0")["vv"].attrs["convention"] == "sigma0"


def test_where_the_factor_is_missing_the_angle_does_not_stand_in():
    base = with_factor(gamma0_base())
    base["gamma0_to_sigma0"][0, 0, :2] = [np.nan, 0]
    sigma0 = convert_convention(base, "sigma0")
    assert np.isnan(sigma0["vv"].values[0, 0, :2]).all()
    np.testing.assert_array_equal(np.isnan(sigma0["vv"][1:]), np.isnan(base["vv"][1:]))


def test_what_it_was_converted_by_is_told_for_the_angle_too():
    sigma0 = convert_convention(gamma0_base(), "sigma0")
    expected = "from gamma0 by the incidence angle on the ellipsoid, not on the terrain"
    assert sigma0["vv"].attrs["comment"] == sigma0["vv"].attrs["approximate_note"] == expected


def test_two_domains_of_averaging_do_not_mix():
    base = with_factor(gamma0_base(), averaging="linear")
    message = r"vv was averaged in the domain 'db' and gamma0_to_sigma0 in 'linear'"
    with pytest.raises(SourceError, match=message):
        convert_convention(base, "sigma0")


def test_conversion_stays_lazy():
    base = with_factor(gamma0_base()).chunk()
    sigma0 = convert_convention(base, "sigma0")
    assert sigma0["vv"].chunks is not None
