import numpy as np
import pytest

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
