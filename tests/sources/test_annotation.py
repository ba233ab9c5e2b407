"""Annotations of real products, and what is refused."""

import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest

from smgrid.errors import SourceError
from smgrid.sources.annotation import parse_annotation, parse_relative_orbit, relative_orbit
from tests.safe_scene import Scene, ramps
from tests.sources.real_products import ANNOTATIONS, open_real


@pytest.mark.shared
@pytest.mark.parametrize(("name", "polarisation"), ANNOTATIONS)
def test_every_real_annotation_is_read(shared, name, polarisation):
    product = open_real(shared, name)
    annotation = product.read_annotation(polarisation)
    lines, pixels = annotation.shape
    grid = annotation.grid
    assert annotation.platform == f"sentinel-1{name[2].lower()}"
    assert annotation.start.strftime("%Y%m%dT%H%M%S") == name.split("_")[4]
    assert annotation.absolute_orbit == int(name.split("_")[6])
    assert (grid.line[0], grid.line[-1]) == (0, lines - 1)
    assert (grid.pixel[0], grid.pixel[-1]) == (0, pixels - 1)
    assert grid.incidence.shape == (10, 21)
    assert (np.diff(grid.incidence, axis=1) > 0).all()
    assert annotation.spacing == pytest.approx((10, 10), abs=1e-3)
    assert annotation.orbit_position.shape == (3, annotation.orbit_time.size)
    assert np.linalg.norm(annotation.orbit_position, axis=0) == pytest.approx(7.07e6, rel=5e-3)
    seconds = (annotation.last_line - annotation.first_line) / np.timedelta64(1, "s")
    assert seconds == pytest.approx(25.0, abs=0.01)


@pytest.mark.shared
def test_orbits_and_directions_of_the_real_products(shared):
    found = {}
    for name, polarisation in ANNOTATIONS:
        product = open_real(shared, name)
        annotation = product.read_annotation(polarisation)
        computed = relative_orbit(annotation.mission, annotation.absolute_orbit)
        root = product.read_manifest()
        assert computed == parse_relative_orbit(root), name
        found[name[17:25]] = (annotation.platform, annotation.orbit_state, computed)
    assert found == {
        "20150222": ("sentinel-1a", "ascending", 117),
        "20210119": ("sentinel-1a", "descending", 79),
        "20210401": ("sentinel-1b", "descending", 168),
        "20211223": ("sentinel-1b", "descending", 22),
    }


@pytest.mark.parametrize(
    ("mission", "absolute", "expected"),
    [
        ("S1A", 58267, 95),  # an item of the Planetary Computer, 2025-03-12
        ("S1A", 60328, 56),  # an item of Earth Search, 2025-07-31
        ("S1A", 73, 1),
        ("S1A", 72, 175),
        ("S1B", 27, 1),
        ("S1C", 1681, 110),  # known from its products
        ("S1C", 8018, 147),  # the last orbit before its move in June 2026
        ("S1C", 8019, 46),
        ("S1D", 2389, 73),  # known from its products
    ],
)
def test_relative_orbits_of_all_satellites(mission, absolute, expected):
    assert relative_orbit(mission, absolute) == expected


def test_an_unknown_mission_is_refused():
    with pytest.raises(SourceError, match="mission 'S1E' is not known; expected one of S1A, S1B"):
        relative_orbit("S1E", 100)


def annotation_text(**changes):
    return Scene(ramps(), **changes).annotation("vv")


def test_what_is_written_is_read():
    annotation = parse_annotation(ET.fromstring(annotation_text(mission="S1D")), source="test")
    assert annotation.platform == "sentinel-1d"
    assert annotation.orbit_state == "ascending"
    assert annotation.start == pd.Timestamp("2024-03-05T17:32:00")
    assert annotation.shape == (360, 400)
    assert annotation.ranges.coefficients.shape == (annotation.ranges.time.size, 3)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<productType>GRD", "<productType>SLC", "annotates a product of type SLC; use ground"),
        ("<pass>Ascending</pass>", "", "has no generalAnnotation/productInformation/pass"),
        ("<frame>Earth Fixed", "<frame>J2000", "in the frame J2000; expected Earth Fixed"),
        ("<line>0</line><pixel>0</pixel>", "<line>1</line><pixel>0</pixel>", "do not fill a grid"),
        ("incidenceAngle>", "tilt>", "has no incidenceAngle; it is not an annotation or truncated"),
        ("orbitList>", "orbits>", "has no generalAnnotation/orbitList/orbit"),
    ],
)
def test_damage_is_named(old, new, message):
    damaged = annotation_text().replace(old, new, 1 if old.startswith("<line>") else -1)
    with pytest.raises(SourceError, match=message):
        parse_annotation(ET.fromstring(damaged), source="s1.xml")
