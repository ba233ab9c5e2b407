"""Splits by what stations and networks are called, some pixels by several names at once."""

import numpy as np
import pytest
import torch
import xarray as xr
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from smgrid.errors import ConfigError
from smgrid.training.labels import find_places
from smgrid.training.leakage import check_leakage
from smgrid.training.splits import split_samples
from tests.training.split_tables import disjoint, parts, record, rows, squares
from tests.training.tables import random_samples


def test_a_named_network_is_the_test_and_its_neighbours_leave_training():
    table = record()
    split = split_samples(table, by="network", test=("net1",), seed=3)
    assert set(split.test.network) == {"net1"}
    assert (split.test.network == "net1").sum() == (table.network == "net1").sum()
    assert len(set(split.validation.network)) == 1
    # The one station of net1 in the first town has neighbours in net0.
    close = [
        i for i in range(len(table)) if squares(table.take(np.array([i]))) & squares(split.test)
    ]
    neighbours = {int(i) for i in close if table.network[i] != "net1"}
    assert neighbours
    assert not neighbours & (set(rows(split.training)) | set(rows(split.validation)))
    assert split.report.removed["cell"] >= len(neighbours)


def networks_of_pixels(n=60):
    """Far stations of the networks A and B; in rows 28 to 31 pixels of both, named by both."""
    return random_samples(
        n,
        network=["A"] * 28 + ["A + B"] * 4 + ["B"] * (n - 32),
        station=[f"p{i}" for i in range(28)]
        + [f"p{i} + p{i + 4}" for i in range(28, 32)]
        + [f"p{i}" for i in range(32, n)],
        longitude=np.linspace(0, 20, n),
        latitude=50.0,
        weight=torch.arange(n),
    )


@pytest.mark.parametrize(("test", "others"), [("A", range(36, 60)), ("B", range(28))])
def test_pixels_of_two_networks_are_held_out_with_either(test, others):
    table = networks_of_pixels()
    split = split_samples(table, by="network", test=test, share=(0.7, 0, 0.3))
    held = set(range(32)) if test == "A" else set(range(28, 60))
    assert set(rows(split.test)) == held
    # The stations p32 to p35 are met alone, too, and leave the training of B.
    assert set(rows(split.training)) == set(others)
    assert split.report.removed["station"] == (4 if test == "A" else 0)
    assert split.report.held_out["test"] == [test]
    assert split.report.groups == {"training": 1, "validation": 0, "test": 1}
    assert any("4 samples of several networks" in note for note in split.report.notes)
    check_leakage(split.training, split.test, by="network")


def test_a_pixel_of_two_networks_is_of_the_test_before_the_validation():
    table = random_samples(
        4,
        network=["A", "B", "C + B + A", "C"],
        station=list("abcd"),
        longitude=[1, 3, 5, 7],
        latitude=50,
        weight=torch.arange(4),
    )
    split = split_samples(table, by="network", test=["A"], validation=["B"])
    assert [rows(part).tolist() for part in parts(split)] == [[3], [1], [0, 2]]
    assert split.report.held_out == {"validation": ["B"], "test": ["A"]}
    with pytest.raises(
        ConfigError, match=r"no sample is of \['C \+ B'\]; there are \['A', 'B', 'C'"
    ):
        split_samples(table, by="network", test="C + B")
    half = random_samples(4, network=["A", " + B", "C", " + "], longitude=[1, 3, 5, 7])
    with pytest.raises(ConfigError, match="1 of 4 samples have no network"):
        split_samples(half, by="network")


def test_stations_of_one_pixel_stay_together_in_a_split():
    table = random_samples(
        6,
        network=["n", "n", "n", "m", "", "n"],
        station=["a + b", "a", "b", "c", "c", "d"],
        longitude=np.arange(6),
        latitude=50,
        weight=torch.arange(6),
    )
    split = split_samples(table, by="station", share=(0.4, 0.3, 0.3))
    assert {frozenset(rows(part)) for part in parts(split)} == {
        frozenset({0, 1, 2}),
        frozenset({3, 4}),
        frozenset({5}),
    }
    assert any("1 samples have a station without network" in n for n in split.report.notes)
    nameless = random_samples(40, station="", network="")
    for other in (record(), nameless):
        report = split_samples(other, by="station", coarse_km=None).report
        assert not any("without network" in note for note in report.notes)


def test_a_station_is_known_in_the_cubes_of_two_grids():
    """Two stations 150 m apart at the border of two cells: 100 m tell them apart, 1 km do not."""
    border, row = -17367530.45 + 2000 * 9008.0552, 7314540.83 - 700.5 * 9008.0552
    to_lonlat = Transformer.from_crs("EPSG:6933", "EPSG:4326", always_xy=True)
    longitude, latitude = to_lonlat.transform([border - 200, border - 50], [row, row])
    stations = xr.Dataset(
        coords={
            "station": ["s0", "s1"],
            "longitude": ("station", longitude),
            "latitude": ("station", latitude),
            "network": ("station", ["n", "n"]),
        }
    )
    tables = []
    for size, shift in ((100, 0), (1000, 700)):
        west, south = border - 20 * size + shift, row - 20 * size
        box = (west, south, west + 40 * size, south + 40 * size)
        places = find_places(
            stations, GeoBox.from_bbox(box, "EPSG:6933", resolution=size, tight=True)
        )
        x = west + (places.column + 0.5) * size
        y = south + (39.5 - places.row) * size
        facts = dict(zip(("longitude", "latitude"), to_lonlat.transform(x, y), strict=True))
        tables.append(
            random_samples(len(x), station=places.stations, network=places.networks, **facts)
        )
    fine, coarse = tables
    assert (len(fine), len(coarse)) == (2, 1)
    assert disjoint([squares(table) for table in tables])
    for training, test in ((fine, coarse), (coarse, fine)):
        with pytest.raises(ConfigError, match=f"{len(test)} share a station"):
            check_leakage(training, test, by="station")


def test_one_unit_less_than_parts_is_too_few():
    table = random_samples(12, longitude=[5, 7] * 6, latitude=50, network=["a", "b"] * 6)
    message = r"lie in 2 whole unit\(s\), of which {} can be drawn, but {} part\(s\) need"
    with pytest.raises(ConfigError, match=message.format(2, 3)):
        split_samples(table, by="network")
    with pytest.raises(ConfigError, match=message.format(1, 2)):
        split_samples(table, by="network", test=("a",))
    assert split_samples(table, by="network", test=("a",), share=(0.8, 0, 0.2)).training
