import numpy as np
import pytest

from smgrid.errors import ConfigError
from smgrid.training.leakage import check_leakage, drop_leaks
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
        ({"time": np.datetime64("2016-06-02", "ns")}, "window", {"year", "space-time"}),
        ({"time": np.datetime64("2016-06-03", "ns")}, "window", set()),
        ({"time": np.datetime64("2014-06-01", "ns")}, "window", {"year", "space-time"}),
        ({"station": "a", "network": "other"}, "station", set()),
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
