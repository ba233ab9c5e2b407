import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smgrid.errors import ConfigError, NoDataError
from smgrid.training.leakage import check_leakage, drop_leaks
from smgrid.training.places import list_facts, station_key
from tests.training.split_tables import WAYS
from tests.training.tables import random_samples


def pair(**test):
    """Training of three far stations in 2015, the test in 2020 elsewhere unless told otherwise."""
    facts = {"latitude": 50.0, "network": "n"}
    training = random_samples(
        6,
        longitude=[5, 5, 6, 6, 7, 7],
        station=list("aabbcc"),
        time=np.datetime64("2015-06-01", "ns"),
        **facts,
    )
    facts |= {"longitude": 9.0, "station": "z", "time": np.datetime64("2020-06-01", "ns")} | test
    return training, random_samples(2, **facts)


@pytest.mark.parametrize(
    ("test", "rule", "refused_by"),
    [
        ({"station": "a"}, "station", {"station", "network", "block", "space-time"}),
        ({"longitude": 5.01}, "cell", {"station", "network", "block", "space-time"}),
        ({"time": np.datetime64("2016-06-01", "ns")}, "window", {"year", "space-time"}),
        ({"time": np.datetime64("2016-06-15", "ns")}, "window", {"year", "space-time"}),
        ({"time": np.datetime64("2016-06-16", "ns")}, "window", set()),
        ({"time": np.datetime64("2014-06-01", "ns")}, "window", {"year", "space-time"}),
        ({"station": "a", "network": "other"}, "station", set()),
        ({"station": "a", "network": ""}, "station", {"station", "network", "block", "space-time"}),
        ({"station": "z + a"}, "station", {"station", "network", "block", "space-time"}),
        (
            {"station": "z + a", "network": "other + n"},
            "station",
            {"station", "network", "block", "space-time"},
        ),
        ({"station": "z + a", "network": "n + other"}, "station", set()),
        ({"station": "z + a", "network": "other"}, "station", set()),
        ({}, "", set()),
    ],
)
def test_the_guard_refuses_what_the_declared_split_keeps_apart(test, rule, refused_by):
    training, tested = pair(**test)
    for by in WAYS:
        if by not in refused_by:
            check_leakage(training, tested, by=by)
            continue
        with pytest.raises(ConfigError, match=rf"of 2 test samples 2 share a {rule} "):
            check_leakage(training, tested, by=by)


def test_leaks_are_dropped_from_training_and_counted_once():
    # Station a is met again, far away; one test sample lies in the cell of b.
    training, tested = pair(station=["a", "z"], longitude=[9.0, 6.0])
    kept, removed = drop_leaks(training, tested, by="station")
    assert set(kept.station) == {"c"}
    assert removed == {"station": 2, "cell": 2}
    kept, removed = drop_leaks(training, tested, by="station", coarse_km=None)
    assert set(kept.station) == {"b", "c"}
    training, tested = pair(time=np.datetime64("2015-07-01", "ns"))
    with pytest.raises(ConfigError, match=r"all 6 do \(\{'window': 6\}\)"):
        drop_leaks(training, tested, by="year")
    assert len(drop_leaks(training, tested, by="year", gap_days=30)[0]) == 6
    assert len(drop_leaks(training, tested, by="year", gap_days=0)[0]) == 6


def test_joined_pixels_of_training_are_dropped_for_one_of_their_stations():
    tested = pair(station=["b", "z"])[1]
    training = random_samples(
        4,
        longitude=[1, 2, 3, 4],
        latitude=0,
        network=["n", "n + m", "m", ""],
        station=["a", "b + c", "d", "e"],
    )
    kept, removed = drop_leaks(training, tested, by="station")
    assert kept.station.tolist() == ["a", "d", "e"]
    assert removed == {"station": 1, "cell": 0}


NAMES = st.lists(st.sampled_from("abcdefgh"), max_size=3, unique=True).map(" + ".join)
NETWORKS = st.lists(st.sampled_from(["", "n", "m"]), min_size=1, max_size=3).map(" + ".join)


def share_a_station(one, two):
    """By the names of two pixels, or by their positions where they have none."""
    if not one[1] or not two[1]:
        return one[1] == two[1] and one[2] == two[2]
    return any(
        s == t and (n == m or "" in (n, m))
        for n, s in list_stations(*one[:2])
        for m, t in list_stations(*two[:2])
    )


def list_stations(network, station):
    """One network for all stations of a pixel, or one for each; else it could be any."""
    stations, networks = station.split(" + "), network.split(" + ")
    if len(networks) == len(stations):
        return [(networks[i], stations[i]) for i in range(len(stations))]
    return [(n, s) for n in networks for s in stations]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(NETWORKS, NAMES, st.integers(0, 3)), min_size=1, max_size=12))
def test_pixels_that_share_a_station_have_one_key(pixels):
    network, station, longitude = zip(*pixels, strict=True)
    table = random_samples(
        len(pixels), longitude=longitude, latitude=0, station=station, network=network
    )
    key = station_key(list_facts(table))
    group = list(range(len(pixels)))
    for _ in pixels:
        for i, one in enumerate(pixels):
            for j, two in enumerate(pixels):
                if share_a_station(one, two):
                    group = [group[i] if g == group[j] else g for g in group]
    together = np.equal.outer(group, group)
    found = np.equal.outer(key, key)
    assert (found >= together).all()
    # More is joined only where a station of that name is known without its network.
    if not any("" in name.split(" + ") for name in network):
        np.testing.assert_array_equal(found, together)
    mixed = np.random.default_rng(0).permutation(len(pixels))
    np.testing.assert_array_equal(station_key(list_facts(table.take(mixed))), key[mixed])


@pytest.mark.parametrize(
    ("one", "two"), [(180, -180), (190, -170), (359.5, -0.5), (-180, 180 - 1e-9)]
)
def test_a_longitude_is_one_place_however_it_is_counted(one, two):
    facts = {"latitude": 10.0, "station": "", "network": ""}
    training, tested = (random_samples(1, longitude=[x], **facts) for x in (one, two))
    for km in (9.0, None):
        with pytest.raises(ConfigError, match="1 share a station"):
            check_leakage(training, tested, by="station", coarse_km=km)
    found = list_facts(training, tested)["longitude"]
    assert found.between(-180, 180, inclusive="left").all()
    x = np.random.default_rng(0).uniform(-180, 180, 1000)
    exact = list_facts(random_samples(1000, longitude=x))["longitude"]
    np.testing.assert_array_equal(exact, x.round(6))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gap_days": float("nan")}, "gap_days: expected a whole number .* found nan"),
        ({"gap_days": 200.5}, "gap_days: expected a whole number"),
        ({"gap_days": float("inf")}, "gap_days: expected a whole number"),
        ({"gap_days": -1}, "gap_days: expected a whole number"),
        ({"gap_days": "9"}, "gap_days: expected a whole number"),
        ({"coarse_km": "9"}, "coarse_km: expected a size in km or None, found '9'"),
        ({"coarse_km": float("nan")}, "coarse_km: expected a size"),
    ],
)
def test_a_guard_that_would_check_nothing_is_refused(wrong, message):
    for guard in (check_leakage, drop_leaks):
        with pytest.raises(ConfigError, match=message):
            guard(*pair(), by="space-time", **wrong)


def test_an_empty_training_table_is_told():
    training, tested = pair()
    with pytest.raises(NoDataError, match="training has no sample"):
        drop_leaks(training.take(np.zeros(6, bool)), tested, by="station")
