import re
import zipfile
from xml.etree import ElementTree

import numpy as np
import pytest

from smgrid.simulate.fields import stream
from smgrid.simulate.radar import (
    VH_CLOUD,
    VV_CLOUD,
    WAVENUMBER,
    ground_distance,
    incidence_angle,
    soil_backscatter,
    speckle,
    vegetated_backscatter,
)


def db(power):
    return 10 * np.log10(power)


def test_wavenumber_is_that_of_c_band():
    assert abs(2 * np.pi / WAVENUMBER - 5.5466) < 1e-3  # wavelength [cm]


def test_bare_soil_of_a_worked_example():
    """Oh (2004) by hand: moisture 0.25, ks 1.1, 38 degrees."""
    vv, vh = soil_backscatter(0.25, 1.1, 38.0)
    by_hand = 0.11 * 0.25**0.7 * 0.7880108**2.2 * (1 - np.exp(-0.32 * 1.1**1.8))
    ratio = 0.095 * (0.13 + 0.8386706) ** 1.4 * (1 - np.exp(-1.3 * 1.1**0.9))
    assert vh == pytest.approx(by_hand, rel=1e-5)
    assert vv == pytest.approx(by_hand / ratio, rel=1e-5)
    assert db(vv) == pytest.approx(-9.45, abs=0.1)
    assert db(vh) == pytest.approx(-21.08, abs=0.1)


def test_bare_soil_has_the_dynamic_of_observations():
    vv, vh = soil_backscatter(np.array([0.08, 0.36]), 0.9, 38.0)
    assert 3 < db(vv[1] / vv[0]) < 6
    assert 3 < db(vh[1] / vh[0]) < 6
    assert (db(vv) < -6).all()
    assert (db(vv) > -18).all()
    assert (db(vh) < -12).all()
    assert (db(vh) > -27).all()


def test_bare_soil_is_darker_at_a_larger_angle_and_brighter_when_rough():
    near, far = (soil_backscatter(0.2, 0.9, angle)[0] for angle in (30.0, 45.0))
    smooth, rough = (soil_backscatter(0.2, ks, 38.0)[1] for ks in (0.5, 1.5))
    assert near > far
    assert rough > smooth


@pytest.mark.parametrize("cloud", [VV_CLOUD, VH_CLOUD])
def test_vegetation_hides_the_soil(cloud):
    soil = np.float32([0.02, 0.08])
    cosine = np.float32(0.79)
    np.testing.assert_allclose(vegetated_backscatter(soil, np.float32(0), cosine, cloud), soil)
    contrast = [
        np.ptp(db(vegetated_backscatter(soil, np.float32(v), cosine, cloud)))
        for v in (0.1, 0.4, 0.8)
    ]
    assert contrast[0] > contrast[1] > contrast[2] > 0
    opaque = vegetated_backscatter(soil, np.float32(50), cosine, cloud)
    np.testing.assert_allclose(opaque, cloud.scattering * 50 * 0.79, rtol=1e-4)


@pytest.mark.parametrize("angle", [29.1, 34.0, 39.0, 46.0])
def test_distance_and_angle_are_inverse(angle):
    assert incidence_angle(np.array([ground_distance(angle)]))[0] == pytest.approx(angle, abs=1e-4)


def test_angles_across_the_swath_agree_with_a_real_scene(shared):
    """Annotated incidence angles of a GRD scene, whose pixels are 10 m on the ground."""
    name = "S1A_IW_GRDH_1SDV_20210119T031653_20210119T031718_036201_043ED0_8255.zip"
    with zipfile.ZipFile(shared / "data/real/s1_grd_safe" / name) as archive:
        inside = next(
            n for n in archive.namelist() if re.search(r"annotation/[^/]*vv[^/]*\.xml$", n)
        )
        root = ElementTree.fromstring(archive.read(inside))
    points = [
        (float(p.findtext("pixel")) * 0.01, float(p.findtext("incidenceAngle")))
        for p in root.iter("geolocationGridPoint")
        if p.findtext("line") == "0"
    ]
    distance, angle = np.array(points).T
    assert np.ptp(distance) > 240
    simulated = incidence_angle(ground_distance(angle[0]) + distance - distance[0])
    assert np.abs(simulated - angle).max() < 0.3


@pytest.mark.parametrize("looks", [1.0, 4.4, 20.0])
def test_speckle_has_the_stated_number_of_looks(looks):
    values = speckle(stream(1, "test"), (600, 600), looks=looks).astype(np.float64)
    assert abs(values.mean() - 1) < 0.01
    assert abs(values.var() * looks - 1) < 0.03
    skewness = ((values - 1) ** 3).mean() / values.std() ** 3
    assert abs(skewness * np.sqrt(looks) / 2 - 1) < 0.06  # of a gamma distribution
    neighbours = np.corrcoef(values[:, 1:].ravel(), values[:, :-1].ravel())[0, 1]
    assert abs(neighbours) < 0.01
