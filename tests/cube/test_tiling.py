import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smgrid.cube.tiling import (
    UnitSet,
    check_shard,
    cut_array,
    dates_of,
    present_shards,
    steps_of_a_year,
    unit_sets,
)
from smgrid.errors import ConfigError

sizes = st.integers(1, 3000)


@given(st.tuples(sizes, sizes, sizes), st.sampled_from([1, 64, 100, 256, 512, 1024]))
def test_scene_shards_are_one_time_of_a_tile_and_whole_inner_chunks(shape, shard):
    chunks, shards = cut_array(("time", "y", "x"), shape, shard=shard, year_steps=46)
    assert (chunks[0], shards[0]) == (1, 1)
    for size, chunk, edge in zip(shape, chunks, shards, strict=True):
        assert edge % chunk == 0
        assert chunk <= size
        assert edge <= shard
        # A smaller array does not get a shard with a whole chunk of nothing.
        assert edge - size < chunk


@given(st.tuples(sizes, sizes, sizes), st.sampled_from([46, 368]))
def test_series_shards_hold_a_year_with_chunks_contiguous_in_time(shape, year_steps):
    chunks, shards = cut_array(("date", "y", "x"), shape, shard=512, year_steps=year_steps)
    assert chunks == tuple(min(n, c) for n, c in zip(shape, (46, 64, 64), strict=True))
    assert all(edge % chunk == 0 for chunk, edge in zip(chunks, shards, strict=True))
    assert all(e <= m for e, m in zip(shards, (year_steps, 256, 256), strict=True))


def test_default_shards_are_those_of_the_conventions():
    big = (700, 5000, 5000)
    assert cut_array(("time", "y", "x"), big, shard=512, year_steps=46) == (
        (1, 256, 256),
        (1, 512, 512),
    )
    assert cut_array(("y", "x"), big[1:], shard=512, year_steps=46) == ((256, 256), (512, 512))
    assert cut_array(("date", "y", "x"), big, shard=512, year_steps=368) == (
        (46, 64, 64),
        (368, 256, 256),
    )
    assert cut_array(("station", "time"), (9, 700), shard=512, year_steps=46) == ((9, 700),) * 2


@pytest.mark.parametrize(("freq", "steps"), [("1D", 368), ("8D", 46), ("16D", 46)])
def test_a_year_of_steps_follows_the_calendar(freq, steps):
    dates = pd.date_range("2024-01-01", periods=30, freq=freq).values
    assert steps_of_a_year(dates) == steps
    assert steps_of_a_year(dates[:1]) == 46


@pytest.mark.parametrize("shard", [0, -4, 300, 700])
def test_a_shard_that_inner_chunks_do_not_fill_is_refused(shard):
    with pytest.raises(
        ConfigError, match=rf"shard is {shard}, expected at most 256 pixels or a mu"
    ):
        check_shard(shard)


@given(st.tuples(*[st.integers(1, 20)] * 3), st.tuples(*[st.integers(1, 7)] * 3))
def test_units_cover_an_array_once(shape, shards):
    units = UnitSet("base", ("vv",), ("time", "y", "x"), shape, shards)
    assert len(list(units.indices())) == units.total == math.prod(units.counts)
    seen = np.zeros(shape, int)
    for index in units.indices():
        seen[tuple(slice(i * s, (i + 1) * s) for i, s in zip(index, shards, strict=True))] += 1
    assert (seen == 1).all()


def test_variables_of_one_shape_share_units():
    arrays = {
        "vv": {"dims": ["time", "y", "x"], "shape": [3, 9, 9], "shards": [1, 4, 4]},
        "sand": {"dims": ["y", "x"], "shape": [9, 9], "shards": [4, 4]},
        "vh": {"dims": ["time", "y", "x"], "shape": [3, 9, 9], "shards": [1, 4, 4]},
    }
    scenes, statics = unit_sets({"base": {"arrays": arrays}})
    assert (scenes.names, scenes.total) == (("vv", "vh"), 27)
    assert (statics.names, statics.total) == (("sand",), 9)


def test_only_whole_shards_of_all_variables_count_as_done():
    keys = [
        "base/vv/c/0/1/2",
        "base/vh/c/0/1/2",
        "base/vv/c/0/0/0",
        "base/vh/c/0/0/0.3f2a.partial",
        "base/vv/zarr.json",
        "base/spatial_ref/c",
        "flags/c/7/0/0",
        "base/time/c/0",
    ]
    present = present_shards(keys)
    assert present["flags"] == {(7, 0, 0)}
    units = UnitSet("base", ("vv", "vh"), ("time", "y", "x"), (1, 2, 3), (1, 1, 1))
    assert units.done(present) == {(0, 1, 2)}


def test_a_label_names_group_variables_date_and_tile():
    units = UnitSet("x2", ("ndvi",), ("date", "y", "x"), (50, 9, 9), (46, 4, 4))
    dates = dates_of(pd.date_range("2024-01-01", periods=50, freq="8D"))
    assert units.label((1, 0, 2), {"date": dates}) == "/x2 (ndvi), date 2025-01-03, tile (0, 2)"


def test_dates_show_a_time_of_day_only_if_there_is_one():
    assert dates_of(["2024-01-01", "2024-01-09"]) == ["2024-01-01", "2024-01-09"]
    assert dates_of(["2024-01-01T05:06:07"]) == ["2024-01-01T05:06:07"]
