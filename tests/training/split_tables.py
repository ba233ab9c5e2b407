"""A record of stations to split, and what its parts share, by other means than the library's."""

import numpy as np
import torch
from pyproj import Transformer

from tests.training.tables import random_samples

PARTS = ("training", "validation", "test")
WAYS = {
    "random": {},
    "station": {},
    "year": {"gap_days": 200},
    "network": {},
    "block": {"block_km": 36},
    "space-time": {"gap_days": 200},
}


def record(n=400, *, seed=0, **facts):
    """Twelve towns of three stations each, nine years, some rows without station; row as weight.

    The stations of a town lie kilometres apart: some share a 9 km cell and some do not. Each town
    is in one of four networks, but for one station of another network in the first town.
    """
    rng = np.random.default_rng(seed)
    k = np.r_[np.arange(36), rng.integers(0, 36, n - 36)]
    town = k // 3
    place = np.random.default_rng(seed + 1).uniform(-0.06, 0.06, (36, 2))
    network = np.where(k == 0, 1, town % 4)
    facts = {
        "longitude": 5 + 0.5 * (town % 4) + place[k, 0],
        "latitude": 50 + 0.5 * (town // 4) + place[k, 1],
        "time": np.datetime64("2014-01-01", "ns")
        + rng.integers(0, 78_000, n) * np.timedelta64(1, "h"),
        "station": np.where(rng.random(n) < 0.2, "", [f"s{i % 3 + 3 * (i // 12)}" for i in k]),
        "network": [f"net{i}" for i in network],
    } | facts
    table = random_samples(n, seed=seed, **facts)
    table.weight[:] = torch.arange(n)
    return table


def rows(part):
    return part.weight.numpy().astype(int)


def parts(split):
    return [getattr(split, name) for name in PARTS]


def stations(part):
    names = zip(part.network, part.station, strict=True)
    return {name for name in names if name[1]}


def squares(part, size=9008.055210146):
    """From the constants of NSIDC's tables: the corner of EASE-Grid 2.0 and its 9 km cell."""
    to_ease = Transformer.from_crs("EPSG:4326", "EPSG:6933", always_xy=True)
    x, y = to_ease.transform(part.longitude, part.latitude)
    column, row = (x + 17367530.45) // size, (7314540.83 - y) // size
    return set(zip(row, column, strict=True))


def days_apart(one, two):
    days = [part.time.astype("M8[D]").astype(int) for part in (one, two)]
    return np.abs(days[0][:, None] - days[1]).min()


def years(part):
    return set(part.time.astype("M8[Y]").astype(int) + 1970)


def disjoint(sets):
    return len(set().union(*sets)) == sum(map(len, sets))
