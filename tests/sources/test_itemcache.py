"""How long the answer of a search holds, and what is never kept."""

import multiprocessing
import os
import time

import pandas as pd
import pytest

from smgrid.sources import itemcache


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SMGRID_CACHE", str(tmp_path / "cache"))


def entries():
    return sorted(itemcache.cache_folder("search").glob("*.gz"))


DAY = 86400
END = pd.Timestamp("2024-04-01", tz="UTC").timestamp()


@pytest.mark.parametrize(
    ("searched", "age", "holds"),
    [
        (END + 30 * DAY, 29.9 * DAY, True),
        (END + 30 * DAY, 30.1 * DAY, False),
        (END + 29.9 * DAY, 0.24 * DAY, True),
        (END + 29.9 * DAY, 0.26 * DAY, False),
        (END - 10 * DAY, 0.26 * DAY, False),
        (END + 60 * DAY, -60, False),
    ],
)
def test_how_long_an_answer_holds(monkeypatch, searched, age, holds):
    span = ("2024-03-01T00:00:00Z", "2024-04-01T00:00:00Z")
    key = itemcache.SearchKey("https://api", "s1", (0, 0, 1, 1), span, {})
    monkeypatch.setattr(itemcache.time, "time", lambda: searched)
    itemcache.write_answer(key, [{"id": "a", "assets": {}}])
    monkeypatch.setattr(itemcache.time, "time", lambda: searched + age)
    assert (itemcache.read_answer(key) is not None) is holds


@pytest.mark.parametrize(("age", "holds"), [(0.24 * DAY, True), (0.26 * DAY, False)])
def test_an_empty_answer_is_not_believed_for_long(monkeypatch, age, holds):
    span = ("2024-03-01T00:00:00Z", "2024-04-01T00:00:00Z")
    key = itemcache.SearchKey("https://api", "s1", (0, 0, 1, 1), span, {})
    monkeypatch.setattr(itemcache.time, "time", lambda: END + 60 * DAY)
    itemcache.write_answer(key, [])
    monkeypatch.setattr(itemcache.time, "time", lambda: END + 60 * DAY + age)
    assert (itemcache.read_answer(key) == []) is holds


@pytest.mark.parametrize("place", ["assets", "links"])
def test_a_signed_url_is_never_kept(place):
    key = itemcache.SearchKey("https://api", "s1", (0, 0, 1, 1), None, {})
    one = {"id": "a", "assets": {"vv": {"href": "https://a/vv.tif"}}, "links": []}
    signed = {"rel": "self", "href": "https://a/vv.tif?st=2024&se=2025&sp=rl&sig=secret"}
    itemcache.write_answer(key, [one])
    assert len(entries()) == 1
    entries()[0].unlink()
    one[place] = {"vv": signed} if place == "assets" else [signed]
    itemcache.write_answer(key, [one])
    assert entries() == []


def test_old_files_are_removed():
    keys = [itemcache.SearchKey("https://api", name, (0, 0, 1, 1), None, {}) for name in "abc"]
    for key, age in zip(keys, (61 * DAY, 59 * DAY, 0), strict=True):
        itemcache.write_answer(key, [])
        moment = time.time() - age
        os.utime(key.path, (moment, moment))
    itemcache.write_answer(keys[2], [])
    assert set(entries()) == {keys[1].path, keys[2].path}


def write_many(folder, number):
    """Write and read one answer again and again, in a process of its own."""
    os.environ["SMGRID_CACHE"] = folder
    key = itemcache.SearchKey("https://api", "s1", (0, 0, 1, 1), None, {})
    for _ in range(150):
        itemcache.write_answer(key, [{"id": str(number), "assets": {}}] * 200)
        found = itemcache.read_answer(key)
        assert found is not None
        assert len({one["id"] for one in found}) == 1


def test_two_processes_may_write_one_answer(tmp_path):
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=write_many, args=(str(tmp_path / "cache"), n)) for n in (1, 2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert not list((tmp_path / "cache" / "search").glob(".*"))
