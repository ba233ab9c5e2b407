import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smgrid.errors import ConfigError, NoDataError
from smgrid.training.leakage import check_leakage, drop_leaks
from smgrid.training.splits import split_samples
from smgrid.training.table import make_samples
from tests.training.split_tables import (
    PARTS,
    WAYS,
    days_apart,
    disjoint,
    parts,
    record,
    rows,
    squares,
    stations,
    years,
)
from tests.training.tables import random_samples

SPATIAL = [by for by in WAYS if by not in ("random", "year")]
few = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 10_000)


@pytest.mark.parametrize("by", WAYS)
@few
@given(seed=seeds)
def test_every_row_is_in_one_part_or_counted_as_removed(by, seed):
    table = record(seed=seed)
    split = split_samples(table, by=by, seed=seed, **WAYS[by])
    found = np.concatenate([rows(part) for part in parts(split)])
    assert len(np.unique(found)) == len(found)
    assert len(found) + sum(split.report.removed.values()) == len(table)
    assert split.report.rows == {n: len(p) for n, p in zip(PARTS, parts(split), strict=True)}
    if by in ("random", "station", "block"):
        assert len(found) == len(table)


@pytest.mark.parametrize("by", SPATIAL)
@few
@given(seed=seeds)
def test_a_split_in_space_shares_no_station_and_no_coarse_cell(by, seed):
    split = split_samples(record(seed=seed), by=by, seed=seed, **WAYS[by])
    assert disjoint([stations(part) for part in parts(split)])
    assert disjoint([squares(part) for part in parts(split)])


@pytest.mark.parametrize("by", ["year", "space-time"])
@few
@given(seed=seeds, gap=st.integers(0, 500))
def test_a_split_in_time_shares_no_year_and_no_window(by, seed, gap):
    split = split_samples(record(seed=seed), by=by, seed=seed, gap_days=gap)
    held = [split.validation, split.test]
    assert all(days_apart(split.training, part) >= gap for part in held)
    assert not years(split.training) & (years(held[0]) | years(held[1]))
    if by == "year":
        assert not years(held[0]) & years(held[1])
        assert days_apart(*held) >= gap


@pytest.mark.parametrize("by", WAYS)
@few
@given(seed=seeds)
def test_the_order_of_the_rows_changes_nothing(by, seed):
    table = record(seed=seed)
    mixed = table.take(np.random.default_rng(seed).permutation(len(table)))
    one, two = (split_samples(t, by=by, seed=seed, **WAYS[by]) for t in (table, mixed))
    for a, b in zip(parts(one), parts(two), strict=True):
        assert set(rows(a)) == set(rows(b))


@pytest.mark.parametrize("by", ["random", "station", "network", "block", "space-time"])
def test_the_seed_decides(by):
    table = record()
    splits = [split_samples(table, by=by, seed=seed, **WAYS[by]) for seed in (0, 0, 1)]
    tested = [set(rows(split.test)) for split in splits]
    assert tested[0] == tested[1] != tested[2]


def test_shares_count_whole_units():
    # Ten far stations, the last one with half of all rows.
    k = np.r_[np.arange(10), np.full(10, 9)]
    table = random_samples(20, longitude=k, latitude=50, station=[f"s{i}" for i in k], network="a")
    split = split_samples(table, by="station", share=(0.5, 0.2, 0.3))
    assert split.report.groups == {"training": 5, "validation": 2, "test": 3}
    split = split_samples(table, by="station", share=(0.98, 0.01, 0.01))
    assert split.report.groups == {"training": 8, "validation": 1, "test": 1}
    split = split_samples(table, by="station", share=(0.01, 0.49, 0.5))
    assert split.report.groups["training"] >= 1
    split = split_samples(table, by="station", share=(0.8, 0, 0.2))
    assert split.report.groups == {"training": 8, "validation": 0, "test": 2}


def test_a_station_is_named_by_its_network_too():
    table = random_samples(
        20, longitude=np.arange(20) % 2, latitude=50, station="1", network=["a", "b"] * 10
    )
    split = split_samples(table, by="station", share=(0.5, 0, 0.5))
    assert len(set(split.training.network)) == len(set(split.test.network)) == 1


def test_samples_without_station_go_by_their_pixel_whatever_the_network():
    longitude = np.repeat([5, 6, 7, 8], 5) + np.tile([0, 1e-9], 10)
    table = random_samples(
        20, longitude=longitude, latitude=50, station="", network=["a", "b"] * 10
    )
    split = split_samples(table, by="station", share=(0.5, 0.25, 0.25), coarse_km=None)
    assert split.report.groups == {"training": 2, "validation": 1, "test": 1}
    assert split.report.rows == {"training": 10, "validation": 5, "test": 5}


def test_stations_of_one_coarse_cell_stay_together_unless_told_otherwise():
    # 0.05 degrees apart are 5 km; the fourth place is far away.
    longitude = np.tile([5.0, 5.04, 5.041, 9.0], 5)
    table = random_samples(
        20, longitude=longitude, latitude=50.0, station=["a", "b", "c", "d"] * 5, network=""
    )
    assert len(squares(table)) == 2
    near = [split_samples(table, by="station", share=(0.5, 0, 0.5), seed=s) for s in range(9)]
    assert {frozenset(split.test.station) for split in near} == {frozenset("abc"), frozenset("d")}
    kept = dict.fromkeys(("station", "cell"), 0)
    assert all(split.report.removed == kept for split in near)
    apart = split_samples(table, by="station", share=(0.5, 0, 0.5), coarse_km=None)
    assert apart.report.groups == {"training": 2, "validation": 0, "test": 2}
    assert any("coarse cells" in note for note in apart.report.notes)


def test_a_station_met_in_two_cells_joins_them():
    table = random_samples(
        4, longitude=[5, 6, 6, 7], latitude=50, station=["a", "a", "b", "c"], network=""
    )
    split = split_samples(table, by="station", share=(0.5, 0, 0.5))
    sizes = {frozenset(part.station) for part in (split.training, split.test)}
    assert sizes == {frozenset("ab"), frozenset("c")}


@few
@given(seed=seeds, km=st.sampled_from([9, 36, 45, 90]))
def test_blocks_are_whole_squares_of_ease_grid(seed, km):
    rng = np.random.default_rng(seed)
    # Across the border of UTM zones 31 and 32.
    table = random_samples(
        300,
        longitude=rng.uniform(4, 8, 300),
        latitude=rng.uniform(49, 52, 300),
        station="",
        network="",
    )
    split = split_samples(table, by="block", block_km=km, seed=seed, share=(0.6, 0.2, 0.2))
    found = [squares(part, size=km / 9 * 9008.055210146) for part in parts(split)]
    assert disjoint(found)
    assert [len(f) for f in found] == list(split.report.groups.values())


def test_small_blocks_may_cut_coarse_cells_if_that_is_said():
    rng = np.random.default_rng(0)
    table = random_samples(
        300,
        longitude=rng.uniform(5, 5.1, 300),
        latitude=rng.uniform(50, 50.1, 300),
        station="",
        network="",
    )
    with pytest.raises(ConfigError, match=r"block_km=2 cuts coarse cells of 9 km.*coarse_km=None"):
        split_samples(table, by="block", block_km=2)
    split = split_samples(table, by="block", block_km=2, coarse_km=None, share=(0.8, 0, 0.2))
    assert disjoint([squares(part, size=2001.79004670) for part in (split.training, split.test)])
    assert len(split.training) + len(split.test) == 300
    assert len(split.validation) == 0
    assert any("coarse cells" in note for note in split.report.notes)
    assert not any(
        "coarse" in n
        for n in split_samples(
            table,
            by="block",
            block_km=2,
            coarse_km=1,
        ).report.notes
    )


def test_space_time_holds_out_places_and_years_at_once():
    table = record(1000)
    split = split_samples(
        table, by="space-time", block_km=36, test=(2022,), gap_days=0, share=(0.6, 0.2, 0.2)
    )
    assert years(split.test) == years(split.validation) == {2022}
    assert years(split.training) == set(range(2014, 2022))
    blocks = [squares(part, size=4 * 9008.055210146) for part in parts(split)]
    assert disjoint(blocks)
    everything = {i for part in parts(split) for i in rows(part)}
    for i in set(range(len(table))) - everything:
        one = table.take(np.array([i]))
        new_place = not squares(one, size=4 * 9008.055210146) <= blocks[0]
        assert new_place != (years(one) == {2022})
    assert split.report.removed["neither"] == len(table) - len(everything)


def test_validation_and_test_of_space_time_share_the_last_years():
    options = {"by": "space-time", "gap_days": 0, "share": (0.6, 0.2, 0.2)}
    split = split_samples(record(2000), **options)
    # Nine years from 2014 on; two fifths of them are four.
    held = [2019, 2020, 2021, 2022]
    assert split.report.held_out == {"validation": held, "test": held}
    assert any("validation is of the years of the test" in note for note in split.report.notes)
    alone = split_samples(record(2000), by="space-time", gap_days=0, share=(0.6, 0, 0.4))
    assert not any("validation" in note for note in alone.report.notes)


def test_the_report_is_json():
    for by, options in WAYS.items():
        split = split_samples(record(), by=by, seed=1, **options)
        read = json.loads(json.dumps(asdict(split.report)))
        assert read["plan"]["by"] == by
        assert read["rows"] == split.report.rows
    split = split_samples(record(), by="year", test=np.array([2020]), gap_days=0)
    assert json.loads(json.dumps(asdict(split.report)))["plan"]["test"] == [2020]


def test_duplicates_are_not_split_at_random():
    table = random_samples(30)
    twice = table.take(np.r_[np.arange(30), np.arange(30)])
    split = split_samples(twice, by="random")
    assert disjoint([set(part.label.tolist()) for part in parts(split)])
    assert split.report.groups == {"training": 22, "validation": 4, "test": 4}
    assert split.report.rows == {"training": 44, "validation": 8, "test": 8}
    assert any("optimistic" in note for note in split.report.notes)


def test_rows_without_facts_can_be_split_at_random_only():
    table = random_samples(
        40, longitude=np.nan, latitude=np.nan, time="NaT", station="", network=""
    )
    assert split_samples(table, by="random").report.rows["test"] == 6
    for by, fact in (("station", "position"), ("year", "time"), ("network", "network")):
        with pytest.raises(ConfigError, match=f"40 of 40 samples have no .*{fact}"):
            split_samples(table, by=by)
    # Names are enough unless coarse cells are to be kept together.
    facts = {"longitude": np.nan, "latitude": np.nan, "network": ""}
    table = random_samples(40, station=["a", "b", "c", "d"] * 10, **facts)
    with pytest.raises(ConfigError, match="40 of 40 samples have no position"):
        split_samples(table, by="station")
    assert split_samples(table, by="station", coarse_km=None).report.rows["test"] == 10
    table = random_samples(40, station=["a", "b", "c", ""] * 10, **facts)
    with pytest.raises(ConfigError, match="10 of 40 samples have no station and no position"):
        split_samples(table, by="station", coarse_km=None)


@pytest.mark.parametrize("differs", ["label", "snapshot", "time"])
def test_rows_that_differ_in_one_thing_only_are_not_duplicates(differs):
    rows = torch.arange(20.0)[:, None]
    table = make_samples(
        rows if differs == "snapshot" else torch.zeros(20, 1),
        torch.zeros(1, 1, 46),
        torch.zeros(20),
        label=rows[:, 0] if differs == "label" else None,
        time=np.arange(20) if differs == "time" else "NaT",
    )
    split = split_samples(table, by="random", share=(0.5, 0.25, 0.25))
    assert split.report.groups == {"training": 10, "validation": 5, "test": 5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "stations"}, "by: expected one of"),
        ({"by": "station", "share": (0.7, 0.2, 0.2)}, "sum to 1"),
        ({"by": "station", "share": (0.8, 0.2, 0.0)}, "only validation may be 0"),
        ({"by": "station", "share": (1.1, -0.3, 0.2)}, "share: expected"),
        ({"by": "station", "share": (0.8, 0.2)}, "share: expected"),
        ({"by": "station", "coarse_km": 0}, "coarse_km: expected a size"),
        ({"by": "station", "coarse_km": "9"}, "coarse_km: expected a size"),
        ({"by": "block", "block_km": "36"}, "block_km: expected a size"),
        ({"by": "year", "gap_days": -1}, "gap_days: expected a whole number"),
        ({"by": "year", "gap_days": float("nan")}, "gap_days: expected a whole number"),
        ({"by": "station", "seed": -1}, "seed: expected a whole number.* found -1"),
        ({"by": "station", "seed": 0.5}, "seed: expected a whole number"),
        ({"by": "block"}, "give the edge of a square"),
        ({"by": "block", "block_km": -9}, "block_km: expected a size"),
        ({"by": "block", "block_km": 10}, "cuts coarse cells of 9 km"),
        ({"by": "station", "block_km": 36}, "means nothing to by='station'"),
        ({"by": "station", "test": ("s1",)}, "draws its test units"),
        ({"by": "space-time", "validation": (2020,)}, "draws its validation units"),
        ({"by": "year", "test": (1999,)}, r"no sample is of \[1999\]; there are \[2014, 2015"),
        ({"by": "network", "test": ("net9",)}, "no sample is of .*net9.*there are .*net0"),
        ({"by": "network", "test": "net9"}, r"no sample is of \['net9'\]"),
        ({"by": "year", "test": (2020,), "validation": (2020,)}, "both name"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        split_samples(record(), **options)


def test_one_year_or_network_may_be_given_by_itself():
    for by, one in (("network", "net1"), ("year", 2017), ("year", np.int64(2017))):
        alone, listed = (split_samples(record(), by=by, test=t, gap_days=9) for t in (one, [one]))
        assert rows(alone.test).tolist() == rows(listed.test).tolist()
        assert alone.report.plan["test"] == (one,)
        json.dumps(asdict(alone.report))


@pytest.mark.parametrize("by", WAYS)
def test_an_empty_table_is_refused(by):
    with pytest.raises(NoDataError, match="there is no sample to split"):
        split_samples(record().take(np.zeros(400, bool)), by=by, **WAYS[by])


def test_too_few_units_are_named_with_the_cure():
    table = random_samples(12, longitude=5.0, latitude=50.0, time=np.datetime64("2020-06-01", "ns"))
    for by, cure in (("station", 'by="year"'), ("year", 'by="station"')):
        with pytest.raises(ConfigError, match=rf"lie in 1 whole unit.*3 part.*{cure}"):
            split_samples(table, by=by)
    with pytest.raises(ConfigError, match="use a smaller block_km"):
        split_samples(table, by="block", block_km=9, share=(0.8, 0, 0.2))


def test_no_part_is_left_empty_by_the_guard():
    time = np.array(["2020-06-01", "2021-06-01", "2022-06-01"], "M8[ns]")
    table = random_samples(3, time=time)
    message = r"none is left for training \(0 training, 1 validation, 1 test; removed .*'window': 1"
    with pytest.raises(ConfigError, match=message + ".*gap_days=0"):
        split_samples(table, by="year")
    # Two networks in one cell: a test of one leaves no training.
    table = random_samples(
        8, longitude=[5.0, 5.001] * 4, latitude=50.0, network=["a", "b"] * 4, station=""
    )
    with pytest.raises(ConfigError, match=r"none is left for training .*'cell': 4"):
        split_samples(table, by="network", share=(0.5, 0, 0.5))


def test_space_time_without_a_sample_in_both_is_refused():
    # Place a has only the old year, place b only the new one.
    time = np.array(["2010-06-01", "2020-06-01"], "M8[ns]")
    table = random_samples(
        2, longitude=[5, 9], latitude=50, time=time, station=["a", "b"], network=""
    )
    share = (0.5, 0.0, 0.5)
    tested = {}  # which place a seed draws
    for seed in range(8):
        place = split_samples(table, by="station", share=share, seed=seed).test.station[0]
        tested[str(place)] = seed
    split = split_samples(table, by="space-time", share=share, seed=tested["b"])
    assert (len(split.training), len(split.test)) == (1, 1)
    with pytest.raises(ConfigError, match=r"none is left for training and test .*'neither': 2"):
        split_samples(table, by="space-time", share=share, seed=tested["a"])


@pytest.mark.parametrize("by", WAYS)
def test_the_guard_accepts_what_a_split_made(by):
    split = split_samples(record(), by=by, seed=2, **WAYS[by])
    gap = {"gap_days": WAYS[by].get("gap_days", 381)}
    check_leakage(split.training, split.test, by=by, **gap)
    kept, removed = drop_leaks(split.training, split.test, by=by, **gap)
    assert len(kept) == len(split.training)
    assert not any(removed.values())
